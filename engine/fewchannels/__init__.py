"""fewchannels: dataset-scale analysis of massive channels in diffusion transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewchannels.runs.run import Run, open_run

    __version__: str

__all__ = ["Run", "__version__", "open_run"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import fewchannels`` costs nothing in a worker."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fewchannels")
    if name in __all__:
        from fewchannels.runs import run

        return getattr(run, name)
    raise AttributeError(f"module 'fewchannels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
