"""What analyses leave in a run, under ``results/LABEL/``: Parquet parts unit by unit, then figures, text and the end.

A unit is a piece of the work that is done, and written, whole: a task's samples, or a layer. Its record is written
after its parts and names them; ``result.json`` is written last of all. So an interrupted result resumes where it
stopped, and readers ignore one without ``result.json``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from fewchannels.errors import InputError, RunConflictError, StorageError
from fewchannels.runs import documents
from fewchannels.runs.identity import differences
from fewchannels.runs.parts import read_rows
from fewchannels.runs.storage import Count, Storage, Stored
from fewchannels.settings.ranges import NAME, check, name
from fewchannels.tables import Columns, encode

FOLDER = "results/"
BEGUN = "begun.json"
END = "result.json"
_OURS = re.compile(
    r"(begun|result)\.json|summary\.md|units/\d+\.json|[a-z_]+/(\d+|all)\.parquet|figures/\w+\.(png|svg)"
)
_AGAIN = "Make the result again with --replace."


class _Unit(documents.Fields):
    unit: Count
    objects: documents.Objects


class _Settings(documents.Fields):
    """Of an analysis; what reports name of it stands in SQL as it is."""

    score: documents.Score = "mean_abs"
    k: Count = 0
    ks: Annotated[list[Count], Field(min_length=1)] = Field(default_factory=lambda: [0])


class _Selected(documents.Fields):
    stream: Literal["image", "text"] = "image"
    branch: Literal["cond", "uncond"] = "cond"
    n_samples: Count = 0


class _Result(documents.Fields):
    analysis: str = ""
    settings: _Settings = Field(default_factory=_Settings)
    selected: _Selected = Field(default_factory=_Selected)
    versions: documents.Versions = Field(default_factory=dict)
    tables: dict[documents.Name, documents.Table]
    objects: documents.Objects


@dataclass(frozen=True)
class Results:
    """One analysis' place in a run. Plain values only: it travels to workers.

    Attributes:
        storage: of the run.
        label: its folder's name, and what its tables' names begin with.
    """

    storage: Storage
    label: str = field(metadata=name("Name of the result and of its tables."))

    def __post_init__(self) -> None:
        check(self)

    def key(self, name: str) -> str:
        """Where one of its files is."""
        return f"{FOLDER}{self.label}/{name}"

    @property
    def place(self) -> Storage:
        """Its folder, for the lease of whoever writes to it: the run itself may still be captured."""
        return self.storage.below(f"{FOLDER}{self.label}")

    def begin(self, identity: Mapping[str, Any], *, replace: bool = False) -> set[int]:
        """Say what is to be computed, or recognize what an earlier call began. What killed writers left is removed.

        Args:
            identity: all that decides the numbers, in plain values.
            replace: whether to delete a result of other settings.

        Returns:
            The units that are done, and whose parts are there.

        Raises:
            RunConflictError: there is a result of other settings, naming them.
        """
        self.storage.clean()
        begun = self._begun(replace)
        if begun != identity:
            if begun is not None and not replace:
                lines = "\n  ".join(differences(dict(identity), begun))
                raise RunConflictError(
                    f"{self.key('')} holds a result with other settings:\n  {lines}\nGive --replace to delete it, or "
                    "--label to choose another name."
                )
            self.delete()
            self.storage.put(self.key(BEGUN), [documents.encode(dict(identity))])
        return set(self._units())

    def write_unit(self, unit: int, tables: Mapping[str, Columns], schemas: Mapping[str, str]) -> None:
        """Write a unit's parts, then its record. Safe to repeat.

        Args:
            unit: its number.
            tables: columns by table.
            schemas: each table's schema, by table.
        """
        objects = {}
        for table, columns in tables.items():
            key = self.key(f"{table}/{unit:05d}.parquet")
            objects[key] = asdict(self.storage.put(key, [encode(schemas[table], columns)]))
        self.storage.put(self.key(f"units/{unit:05d}.json"), [documents.encode({"unit": unit, "objects": objects})])

    def parts(self, table: str) -> Iterator[Any]:
        """A table's rows, a ``pyarrow.Table`` for each finished unit, ascending.

        Raises:
            StorageError: a part is missing, damaged, or not what was stored.
        """
        for _, objects in sorted(self._units().items()):
            for key, stored in objects.items():
                if key.startswith(self.key(f"{table}/")):
                    yield read_rows(self.storage, key, Stored(**stored))

    def part(self, table: str, unit: int) -> Any:
        """A finished unit's rows of a table, a ``pyarrow.Table``; raises as :meth:`parts` does."""
        record = self._document(f"units/{unit:05d}.json", _Unit)
        if record is None:
            raise StorageError(f"{self.key('')} in {self.storage.url!r} has no record of unit {unit}. {_AGAIN}")
        key = self.key(f"{table}/{unit:05d}.parquet")
        return read_rows(self.storage, key, objects_of(record).get(key))

    def end(self, about: Mapping[str, Any], tables: Mapping[str, str], files: Mapping[str, bytes]) -> None:
        """Write the last files of a result, ``result.json`` at the very end. Safe to repeat.

        Args:
            about: the numbers that answer, settings, versions.
            tables: schema of every table, by table.
            files: further files by name, such as figures.
        """
        objects = {self.key(name): asdict(self.storage.put(self.key(name), [data])) for name, data in files.items()}
        for parts in self._units().values():
            objects |= parts
        content = {**about, "tables": dict(tables), "objects": objects}
        self.storage.put(self.key(END), [documents.encode(content)])

    def read(self) -> dict[str, Any]:
        """``result.json``.

        Raises:
            InputError: the analysis was not run, or did not finish.
        """
        content = self._document(END, _Result)
        if content is None:
            raise InputError(f"{self.storage.url!r} has no finished result {self.label!r}; see fewchannels analyze.")
        return content

    def delete(self) -> None:
        """Delete all that an analysis writes, ``result.json`` first. Whatever else is there stays."""
        keys = [key for key in self.storage.list(self.key("")) if _OURS.fullmatch(key.removeprefix(self.key("")))]
        self.storage.delete([self.key(END)])
        self.storage.delete(keys)

    def _begun(self, replace: bool) -> dict[str, Any] | None:
        """What an earlier call began; None where there is nothing, or something damaged that is to be replaced."""
        try:
            return self._document(BEGUN, documents.Fields)
        except StorageError:
            if replace:
                return None
            raise

    def _units(self) -> dict[int, dict[str, Any]]:
        """What each finished unit stored, by unit; one whose record or part is gone or cut short is not finished."""
        sizes = self.storage.list(self.key(""))
        found = {}
        for key in sizes:
            if not key.startswith(self.key("units/")):
                continue
            try:
                unit = documents.decode(self.storage.get(key), _Unit)
            except documents.DamagedDocumentError:
                continue
            if all(sizes.get(part) == each["n_bytes"] for part, each in unit["objects"].items()):
                found[unit["unit"]] = unit["objects"]
        return found

    def _document(self, name: str, fields: type[documents.Fields]) -> dict[str, Any] | None:
        try:
            return documents.read(self.storage, self.key(name), fields, _AGAIN)
        except FileNotFoundError:
            return None


def labels(keys: Iterable[str]) -> list[str]:
    """The label of every result, finished or not.

    Args:
        keys: the run's listing.
    """
    found = {key.removeprefix(FOLDER).partition("/")[0] for key in keys if key.startswith(FOLDER)}
    return sorted(label for label in found if not NAME.fault(label))


def finished(storage: Storage, keys: Iterable[str]) -> list[Results]:
    """Every finished result.

    Args:
        storage: of the run.
        keys: its listing.
    """
    stored = set(keys)
    return [result for label in labels(stored) if (result := Results(storage, label)).key(END) in stored]


def objects_of(content: Mapping[str, Any]) -> dict[str, Stored]:
    """The objects that ``result.json`` names, by key."""
    return {key: Stored(**each) for key, each in content["objects"].items()}
