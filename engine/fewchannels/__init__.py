"""fewchannels: massive channels of diffusion transformers, recorded, edited and analyzed.

    import fewchannels as fc

Names are imported when they are first used, so that ``import fewchannels`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewchannels.api.calls.comparing import compare_images
    from fewchannels.api.calls.editing import edit
    from fewchannels.api.calls.edits import Edit, mean, scale, shuffle, transport, zero
    from fewchannels.api.calls.loading import load
    from fewchannels.api.calls.recorded import Recorded
    from fewchannels.api.calls.recording import record
    from fewchannels.api.capture import capture
    from fewchannels.api.comparison import compare
    from fewchannels.api.explorer import Explorer, explore
    from fewchannels.api.inspection import Inspected, inspect
    from fewchannels.api.prompts import Prompts, ingest, prompts
    from fewchannels.api.report import report
    from fewchannels.api.result import Result
    from fewchannels.api.run import Run, open_run
    from fewchannels.api.sweeps import Sweep, open_sweep, probe, probe_transport

    __version__: str

_PLACES = {
    "api.calls.loading": ("load",),
    "api.calls.recording": ("record",),
    "api.calls.recorded": ("Recorded",),
    "api.calls.comparing": ("compare_images",),
    "api.calls.editing": ("edit",),
    "api.calls.edits": ("Edit", "mean", "scale", "shuffle", "transport", "zero"),
    "api.prompts": ("Prompts", "ingest", "prompts"),
    "api.capture": ("capture",),
    "api.run": ("Run", "open_run"),
    "api.result": ("Result",),
    "api.sweeps": ("Sweep", "open_sweep", "probe", "probe_transport"),
    "api.comparison": ("compare",),
    "api.report": ("report",),
    "api.explorer": ("Explorer", "explore"),
    "api.inspection": ("Inspected", "inspect"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "Edit",
    "Explorer",
    "Inspected",
    "Prompts",
    "Recorded",
    "Result",
    "Run",
    "Sweep",
    "__version__",
    "capture",
    "compare",
    "compare_images",
    "edit",
    "explore",
    "ingest",
    "inspect",
    "load",
    "mean",
    "open_run",
    "open_sweep",
    "probe",
    "probe_transport",
    "prompts",
    "record",
    "report",
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
