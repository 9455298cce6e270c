"""The model of a call: a name, whose files are located, or an already loaded pipeline."""

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fewchannels.api.calls.indices import as_text
from fewchannels.errors import InputError
from fewchannels.models.family_file import read_family
from fewchannels.models.generation import Generation
from fewchannels.models.load_options import Loading
from fewchannels.models.model import Model, from_files
from fewchannels.settings.file import settled

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LOCK, _LENT = threading.Lock(), set[int]()
_Settings = TypeVar("_Settings", bound=Generation)


def described(
    model: "str | Path | DiffusionPipeline",
    kind: type[_Settings],
    given: Mapping[str, Any],
    family: str | Path | None,
    caller: str,
) -> tuple[_Settings, Model, "DiffusionPipeline | None"]:
    """Resolve the settings of a call, its model, and its pipeline if that is already loaded.

    Args:
        model: ``demo``, a folder, a hub id, or a pipeline.
        kind: class of the settings.
        given: settings by field, without the model.
        family: path of a family file, for an unknown transformer class.
        caller: name of the public function, for messages.

    Raises:
        InputError: a setting is not valid, the model does not exist, or its family is unknown.
    """
    own, caller = read_family(Path(family)) if family is not None else None, f"fc.{caller}"
    plain = {name: as_plain(value) for name, value in given.items()}
    if isinstance(model, str | Path):
        of_model = {name: value for name, value in plain.items() if name in _names(Generation)}
        named = {"model": str(model)}
        found = from_files(Generation(**settled(Generation, named | of_model, caller)), own)
        return kind(**settled(kind, named | _from_the_end(plain, found), caller)), found, None
    from fewchannels.api.calls.watched import is_watched
    from fewchannels.models.in_memory import dtype_of, from_pipeline, name_of

    if wrong := sorted({"revision", *_names(Loading)} & set(plain)):
        raise InputError(
            f"{wrong[0]} cannot be applied to a pipeline that is already loaded. Load the pipeline with it, or pass "
            "the model's folder or hub id instead."
        )
    found = from_pipeline(model, own)
    if is_watched(model):
        raise InputError(
            f"the pipeline is inside fc.record or fc.edit, which the result on disk would not mention. Call {caller} "
            "outside that context."
        )
    named = {"model": name_of(model), "dtype": dtype_of(model)}
    return kind(**named | settled(kind, _from_the_end(plain, found), caller)), found, model


def as_plain(value: Any) -> Any:
    """Convert an argument to a value of a settings file: ranges, tuples and arrays to lists, paths to text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value.item() if hasattr(value, "item") else value
    return [as_plain(each) for each in value]


def _from_the_end(given: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Replace negative layers and steps by the indices that they stand for."""
    n_steps = given.get("num_inference_steps", Generation.num_inference_steps)
    counts = {"layers": len(model.geometry.blocks)}
    counts |= {"steps": model.geometry.n_run(n_steps)} if isinstance(n_steps, int) else {}
    found = dict(given)
    for name, n in counts.items():
        value = found.get(name)
        several: list[Any] = value if isinstance(value, list) else [value]
        if any(isinstance(each, int) and each < 0 for each in several):
            found[name] = as_text(name, several, n)
    return found


def _names(settings: type) -> set[str]:
    return {each.name for each in dataclasses.fields(settings)}


@contextmanager
def lent(pipeline: "DiffusionPipeline | None") -> Iterator[None]:
    """Use the caller's pipeline with its progress bars off, and restore them afterwards."""
    if pipeline is None:
        yield
        return
    from fewchannels.models.compiled import warn_if_compiled

    with _LOCK:
        if id(pipeline) in _LENT:
            raise InputError(
                "the pipeline is in use by another call of fc.capture or fc.probe. Wait for it, or load a second one."
            )
        _LENT.add(id(pipeline))
    warn_if_compiled(pipeline)
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**before | {"disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**{"disable": False} | before)
        with _LOCK:
            _LENT.discard(id(pipeline))
