"""Descriptions: ``run.json`` of a run, ``sweep.json`` of a sweep, ``comparison.json`` of a comparison of two runs.

The first two are written last when a run or a sweep is created, and again when a run grows; the third at the very end.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fewchannels.errors import InputError, StorageError
from fewchannels.runs import documents
from fewchannels.runs.documents import Fields, Name, Objects, Score, Table, Versions
from fewchannels.runs.layout import Layout
from fewchannels.runs.storage import Count, Storage, Stored
from fewchannels.tables import tables

NAME = "run.json"
MANIFEST = "manifest.parquet"
EMBEDDINGS = "embeddings/"
FORMAT_VERSION = 2
SWEEP = "sweep.json"
SWEEP_FORMAT_VERSION = 1
COMPARISON = "comparison.json"
COMPARISON_FORMAT_VERSION = 1
ARRAYS = "activations.zarr/"

Extent = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(gt=0, lt=2**31)]


class _Versioned(Fields):
    format_version: Positive


class _Config(Fields):
    model: str
    score: Score
    top_k: Extent


class _Geometry(Fields):
    n_samples: Count
    n_steps: Extent
    n_layers: Extent
    n_channels: Extent
    n_tokens: Extent


class _Model(Fields):
    name: str
    family: str


class _RunModel(_Model):
    weights_sha256: str


class _Described(Fields):
    fingerprint: str
    n_tasks: Count
    versions: Versions = Field(default_factory=dict)
    created: str = ""
    objects: Objects = Field(default_factory=dict)


class _Run1(_Described):
    """A run of format version 1."""

    config: _Config
    geometry: _Geometry
    shard_samples: Positive = 1
    model: _RunModel = Field(default_factory=lambda: _RunModel(name="", family="", weights_sha256=""))


class _Config2(_Config):
    steps: Annotated[list[Extent], Field(min_length=1)]
    tokens: str
    value_precision: str
    dtype: str
    streams: str = "image"
    branches: str = "cond"
    controls: str = "none"


class _Block(Fields):
    layer: Extent
    path: str
    kind: str


class _Geometry2(_Geometry):
    n_channels: Positive
    n_tokens: Positive
    blocks: Annotated[list[_Block], Field(min_length=1)]


class _Manifest(Fields):
    n_samples: Count
    sha256: str


class _Run2(_Run1):
    """A run of format version 2."""

    config: _Config2
    geometry: _Geometry2
    shard_samples: Positive
    model: _RunModel
    manifest: _Manifest
    identity: dict[str, Any]
    versions: Versions
    created: str
    objects: Objects

    @model_validator(mode="after")
    def _agrees(self) -> "_Run2":
        try:
            layout = Layout.of({"format_version": FORMAT_VERSION} | self.model_dump())
        except InputError as error:
            raise ValueError(str(error)) from None
        geometry = self.geometry
        found = (geometry.n_steps, geometry.n_layers, self.n_tasks, self.manifest.n_samples)
        expected = (len(layout.steps), len(layout.blocks), layout.n_tasks, geometry.n_samples)
        if found != expected:
            raise ValueError(f"steps, layers, tasks and samples are recorded as {found}, but are {expected}")
        if layout.top_k > layout.n_channels:
            raise ValueError(f"config.top_k is {layout.top_k} of {layout.n_channels} channels")
        decided, config = self.identity.get("config"), self.config.model_dump()
        if isinstance(decided, dict):
            for name in sorted(decided.keys() & config.keys()):
                if decided[name] != config[name]:
                    raise ValueError(
                        f"config.{name} is {str(config[name])!r:.60}, and {str(decided[name])!r:.60} in its identity"
                    )
        if others := [key for key in self.objects if key != MANIFEST and not key.startswith(ARRAYS)]:
            raise ValueError(f"objects: {others[0]!r} is not stored once for a run")
        return self


class _SweepIdentity(Fields):
    kind: str
    n_items: Count
    score: Score
    generation: dict[str, Any]


class _Sweep(_Described):
    identity: _SweepIdentity
    protocol: str | None
    n_conditions: Count
    n_edits: Count
    model: _Model
    versions: Versions
    created: str
    objects: dict[Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,80}\.parquet\z")], documents.StoredFields]

    @model_validator(mode="after")
    def _agrees(self) -> "_Sweep":
        if unknown := [key for key in self.objects if key.removesuffix(".parquet") not in tables()]:
            raise ValueError(f"objects: {unknown[0]!r} is not a table of a sweep")
        return self


class _Side(Fields):
    run: str
    stream: Literal["image", "text"]
    branch: Literal["cond", "uncond"]


class _ComparisonIdentity(Fields):
    a: _Side
    b: _Side


class _Runs(Fields):
    a: str
    b: str


class _Layers(Fields):
    """A layer of each side, and their differences: a value, or a mean and its interval, for each measure."""

    layer_a: Extent
    layer_b: Extent
    __pydantic_extra__: dict[str, list[float | None]]


class _Numbers(Fields):
    n_samples: Count
    n_prompts: Count
    n_only_a: Count
    n_only_b: Count
    n_cells_left_out: Count
    n_channels_a: Positive
    n_channels_b: Positive
    layers_by: str
    steps_by: str
    step_a: Extent
    step_b: Extent
    score: Score
    k: Positive
    settings: list[str]
    layers: list[_Layers]


class _Comparison(Fields):
    identity: _ComparisonIdentity
    runs: _Runs
    numbers: _Numbers
    tables: dict[Name, Table]
    versions: Versions
    objects: Objects = Field(default_factory=dict)


def read_description(storage: Storage) -> dict[str, Any]:
    """``run.json`` of a run.

    Raises:
        InputError: there is no run, or one of a newer format.
        StorageError: the file is damaged.
    """
    return _read(storage, NAME, [_Run1, _Run2], "run", "capture")


def begun_identity(storage: Storage, name: str) -> dict[str, Any] | None:
    """The identity at a location; None if it cannot be read, in which case the writer reports why.

    Args:
        storage: the place.
        name: :data:`NAME` or :data:`SWEEP`.
    """
    try:
        if not storage.exists(name):
            return None
        found = (read_description if name == NAME else read_sweep)(storage).get("identity")
    except (InputError, StorageError):
        return None
    return found if isinstance(found, dict) else None


def read_sweep(storage: Storage) -> dict[str, Any]:
    """``sweep.json`` of a sweep.

    Raises:
        InputError: there is no sweep, or one of a newer format.
        StorageError: the file is damaged.
    """
    return _read(storage, SWEEP, [_Sweep], "sweep", "probe or fewchannels transport")


def read_comparison(storage: Storage) -> dict[str, Any]:
    """``comparison.json`` of a comparison.

    Raises:
        InputError: there is no comparison, or one of a newer format.
        StorageError: the file is damaged.
    """
    return _read(storage, COMPARISON, [_Comparison], "comparison", "compare")


READERS: dict[str, tuple[str, Callable[[Storage], dict[str, Any]]]] = {
    NAME: ("run", read_description),
    SWEEP: ("sweep", read_sweep),
    COMPARISON: ("comparison", read_comparison),
}
"""What the document of each name describes, and what reads it."""


def kind_of(name: str) -> str:
    """What a document describes: ``run``, ``sweep`` or ``comparison``."""
    return READERS[name][0]


def read_document(storage: Storage, name: str) -> dict[str, Any]:
    """The description of a run, a sweep or a comparison.

    Args:
        storage: the place.
        name: name of its document, see :data:`READERS`.

    Raises:
        InputError: it is missing, or of a newer format.
        StorageError: it is damaged.
    """
    return READERS[name][1](storage)


_OTHERS = (
    (NAME, "a run", ", or fewchannels.open_run in Python"),
    (SWEEP, "a sweep", ", or fewchannels.open_sweep in Python"),
    (COMPARISON, "a comparison of two runs", ""),
)


def _read(storage: Storage, name: str, formats: Sequence[type[Fields]], what: str, command: str) -> dict[str, Any]:
    """A document, validated against the fields of its format version: the first of ``formats`` for version 1, etc."""
    damaged = f"Delete it and rerun the {what}'s command, which rewrites the file and keeps finished work."
    try:
        with documents.damage(storage, name, damaged):
            description = documents.from_bytes(storage.get(name), _Versioned)
            version = description["format_version"]
            if version > len(formats):
                raise InputError(
                    f"{storage.url!r} has format_version {version}; this version of fewchannels reads up to "
                    f"{len(formats)}. Upgrade fewchannels."
                )
            documents.check(formats[version - 1].model_validate, description)
        return description
    except (FileNotFoundError, NotADirectoryError):
        remedy = f"Create one with fewchannels {command}."
        for other, held, opened in _OTHERS:
            if other != name and storage.exists(other):
                remedy = f"It holds {held}: use fewchannels report or fewchannels sql for it{opened}."
        raise InputError(f"{storage.url!r} is not a {what}: it has no {name}. {remedy}") from None


def write_description(storage: Storage, description: dict[str, Any]) -> None:
    """Write ``run.json``. Safe to repeat: it replaces the file."""
    storage.put(NAME, [documents.to_bytes(description)])


def objects_of(description: dict[str, Any]) -> dict[str, Stored]:
    """Objects that are stored once per run, by key: the manifest, and the arrays' metadata and coordinates."""
    return {key: Stored(**stored) for key, stored in description.get("objects", {}).items()}
