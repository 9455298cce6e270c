"""fewchannels: dataset-scale analysis of massive channels in diffusion transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewchannels.runs.run import Run, open_run

__all__ = ["Run", "open_run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fewchannels.runs import run as reader  # on demand, so that `import fewchannels` costs nothing in a worker

        return getattr(reader, name)
    raise AttributeError(f"module 'fewchannels' has no attribute {name!r}")
