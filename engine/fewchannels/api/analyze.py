"""Create an analysis from its name and from settings that are Python arguments."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewchannels.analyses.settings import AlignmentSettings, ConcentrationSettings, MaskSettings, StabilitySettings
from fewchannels.api.models import as_plain
from fewchannels.errors import InputError, unknown
from fewchannels.settings.file import settled

if TYPE_CHECKING:
    from fewchannels.analyses.analysis import Analysis
    from fewchannels.runs.run import StoredRun

_KINDS: dict[str, tuple[type, str]] = {
    "stability": (StabilitySettings, "Stability"),
    "concentration": (ConcentrationSettings, "Concentration"),
    "masks": (MaskSettings, "SubjectMasks"),
    "alignment": (AlignmentSettings, "Alignment"),
}
_AS_OPTIONS = {
    "stability": {"k": "ks"},
    "concentration": {"shares": "ks"},
    "alignment": {"clusters": "n_clusters"},
    "masks": {},
}
"""Names of command options, with the setting that each stands for."""
_ASCENDING = ("ks", "n_clusters")


def analysis_of(name: str, run: "StoredRun", given: Mapping[str, Any]) -> "Analysis":
    """Create an analysis with its settings.

    Args:
        name: ``stability``, ``concentration``, ``masks`` or ``alignment``.
        run: run to analyze, which determines the defaults of some settings.
        given: settings, by the names of their fields or of the command's options.

    Raises:
        InputError: an unknown analysis or setting, or a value that is not valid or would have no effect.
    """
    if not isinstance(name, str) or name not in _KINDS:
        raise unknown("analysis", name, _KINDS)
    kind, class_name = _KINDS[name]
    values = {_AS_OPTIONS[name].get(key, key): as_plain(value) for key, value in given.items()}
    values = settled(kind, values, f"run.analyze({name!r})")
    values |= {key: tuple(sorted(set(values[key]))) for key in _ASCENDING if key in values}
    _check_used(name, values)
    if name in ("stability", "concentration"):
        values = {"score": run.description["config"]["score"]} | values
    if name == "masks" and "source" not in values:
        from fewchannels.analyses.masks.units import usual_source

        values["source"] = usual_source(run.place)
    made: Analysis = getattr(import_module(f"fewchannels.analyses.{name}.units"), class_name)(**values)
    return made


def _check_used(name: str, given: Mapping[str, Any]) -> None:
    """Reject alignment settings that the other settings leave without effect."""
    if name != "alignment":
        return
    selections = given.get("selections", AlignmentSettings.selections)
    registers = given.get("registers", AlignmentSettings.registers)
    for setting, is_used, why in (
        ("trials", "random" in selections, "none of the selections is random"),
        (
            "register_threshold",
            registers == "drop",
            f"it applies only to registers 'drop', but registers is {registers!r}",
        ),
        ("clip", registers == "clip", f"it applies only to registers 'clip', but registers is {registers!r}"),
    ):
        if setting in given and not is_used:
            raise InputError(f"{setting} would have no effect: {why}. Omit it.")
