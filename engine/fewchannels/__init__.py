"""fewchannels: massive channels of diffusion transformers, recorded, edited and analyzed.

    import fewchannels as fc

Names are imported when they are first used, so that ``import fewchannels`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewchannels.interventions.calls.comparing import compare_images
    from fewchannels.interventions.calls.editing import edit
    from fewchannels.interventions.calls.edits import Edit, mean, scale, shuffle, transport, zero
    from fewchannels.interventions.calls.loading import load
    from fewchannels.interventions.calls.recorded import Recorded
    from fewchannels.interventions.calls.recording import record
    from fewchannels.runs.run import Run, open_run
    from fewchannels.runs.sweep import Sweep, open_sweep

    __version__: str

_PLACES = {
    "interventions.calls.loading": ("load",),
    "interventions.calls.recording": ("record",),
    "interventions.calls.recorded": ("Recorded",),
    "interventions.calls.comparing": ("compare_images",),
    "interventions.calls.editing": ("edit",),
    "interventions.calls.edits": ("Edit", "mean", "scale", "shuffle", "transport", "zero"),
    "runs.run": ("Run", "open_run"),
    "runs.sweep": ("Sweep", "open_sweep"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "Edit",
    "Recorded",
    "Run",
    "Sweep",
    "__version__",
    "compare_images",
    "edit",
    "load",
    "mean",
    "open_run",
    "open_sweep",
    "record",
    "scale",
    "shuffle",
    "transport",
    "zero",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fewchannels")
    if name in _MODULES:
        return getattr(import_module(f"fewchannels.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'fewchannels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
