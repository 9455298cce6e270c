"""A model whose weights need not be loaded: its geometry and identity."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fewchannels.models.family import Family, ModelGeometry
from fewchannels.models.generation import Generation
from fewchannels.models.identity import model_identity
from fewchannels.models.source import check_files, find, geometry, text_encoders


@dataclass(frozen=True)
class Model:
    """A model, from its files or from a pipeline in memory.

    Attributes:
        geometry: its geometry.
        text_encoders: names of its text encoders.
        identity: reads its weights for the model's fields of an identity (``schemas/store.md``).
    """

    geometry: ModelGeometry
    text_encoders: tuple[str, ...]
    identity: Callable[[], Mapping[str, Any]]


def from_files(generation: Generation, family: tuple[str, Family] | None = None) -> Model:
    """Find a model by its name, and check its files; no weights are loaded.

    Args:
        generation: names the model, and the files that change its weights.
        family: family of the transformer class, in addition to the known families.

    Raises:
        InputError: there is no such model, its family is unknown, or a file is missing.
    """
    source = find(generation.model, generation.revision)
    shape = geometry(source, family)
    check_files(source, generation)
    return Model(shape, tuple(text_encoders(source)), lambda: model_identity(source, generation, family))
