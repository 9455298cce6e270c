"""What was computed of a run, in ``results/LABEL/``, or of two, in a place of its own: unit by unit, then its end.

A unit is a piece of the work that is done, and written, whole: a task's samples, or a layer. Its record is written
after its parts and names them; the end, ``result.json`` or ``comparison.json``, is written last of all. So an
interrupted result resumes where it stopped, and readers ignore one without its end.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fewchannels.errors import InputError, StorageError
from fewchannels.runs import documents
from fewchannels.runs.description import COMPARISON
from fewchannels.runs.identity import grown
from fewchannels.runs.lease import LEASE
from fewchannels.runs.parts import read_rows
from fewchannels.runs.place import begun_otherwise, check_free
from fewchannels.runs.storage import Count, Storage, Stored
from fewchannels.settings.ranges import NAME, check, name
from fewchannels.tables import Columns, to_parquet

FOLDER = "results/"
BEGUN = "begun.json"
END = "result.json"
_FIGURES = r"figures/\w+\.(png|svg)"
Rows = list[dict[str, Any]]


class _Unit(documents.Fields):
    unit: Count
    objects: documents.Objects


class _ComparedUnit(_Unit):
    rows: dict[documents.Name, list[dict[str, Any]]]


class _Begun(documents.Fields):
    identity: dict[str, Any]


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
        storage: storage of the run.
        label: its folder's name, and what its tables' names begin with.
    """

    storage: Storage
    label: str = field(metadata=name("Name of the result and of its tables."))

    _END: ClassVar[str] = END
    _UNIT: ClassVar[type[_Unit]] = _Unit
    _AGAIN: ClassVar[str] = "Recompute the result with --replace."
    _OURS: ClassVar[re.Pattern[str]] = re.compile(
        rf"(begun|result)\.json|summary\.md|units/\d+\.json|[a-z_]+/(\d+|all)\.parquet|{_FIGURES}"
    )

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
            replace: whether to delete what is there, whatever its settings are.

        Returns:
            The units that are done, whose parts are there, and of which nothing failed.

        Raises:
            RunConflictError: there is a result of other settings, naming them.
            StorageError: what says which result is there is damaged.
        """
        self.storage.clean()
        try:
            begun = self._begun()
        except StorageError:
            if not replace:
                raise
            begun = None
        known = identity if begun is None else grown(identity, begun)
        if begun is not None and begun != known and not replace:
            raise begun_otherwise(known, begun, *self._conflict)
        if begun != known or replace or self._is_made_anew():
            self.delete()
        if begun != identity or replace or self._is_made_anew():
            self.storage.put(self.key(BEGUN), [documents.to_bytes(self._as_begun(identity))])
        return {number for number, unit in self.units().items() if not unit.get("n_failed")}

    def is_of(self, identity: Mapping[str, Any]) -> bool:
        """Return whether what is there was created with the very identity; not where that cannot be read."""
        try:
            return self._begun() == identity
        except StorageError:
            return False

    def reopen(self) -> None:
        """Take a result's end away, so that nobody reads units that are done again. Safe to repeat."""
        self.storage.delete([self.key(self._END)])

    def write_unit(self, unit: int, tables: Mapping[str, Columns], schemas: Mapping[str, str]) -> None:
        """Write a unit's parts, then its record. Safe to repeat.

        Args:
            unit: its number.
            tables: columns by table.
            schemas: each table's schema, by table.
        """
        parts = {
            f"{table}/{unit:05d}.parquet": to_parquet(schemas[table], columns) for table, columns in tables.items()
        }
        errors = [column for columns in tables.values() if (column := columns.get("error")) is not None]
        n_failed = sum(error is not None for column in errors for error in column)
        self._record(unit, parts, {"n_failed": n_failed} if n_failed else {})

    def parts(self, table: str) -> Iterator[Any]:
        """A table's rows, a ``pyarrow.Table`` for each finished unit, ascending.

        Raises:
            StorageError: a part is missing, damaged, or not what was stored.
        """
        for _, unit in sorted(self.units().items()):
            for key, stored in unit["objects"].items():
                if key.startswith(self.key(f"{table}/")):
                    yield read_rows(self.storage, key, Stored(**stored))

    def part(self, table: str, unit: int) -> Any:
        """A finished unit's rows of a table, a ``pyarrow.Table``; raises as :meth:`parts` does."""
        record = self._document(f"units/{unit:05d}.json", self._UNIT)
        if record is None:
            raise StorageError(f"{self.key('')} in {self.storage.url!r} has no record of unit {unit}. {self._AGAIN}")
        key = self.key(f"{table}/{unit:05d}.parquet")
        return read_rows(self.storage, key, objects_of(record).get(key))

    def put(self, files: Mapping[str, bytes | memoryview]) -> dict[str, dict[str, Any]]:
        """Write files that do not belong to a unit, by name; returns them as the end names them. Safe to repeat."""
        return {self.key(name): asdict(self.storage.put(self.key(name), [data])) for name, data in files.items()}

    def content(
        self, about: Mapping[str, Any], tables: Mapping[str, str], objects: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the end says of units and files that are written; arguments as those of :meth:`end`."""
        named = dict(objects)
        for unit in self.units().values():
            named |= unit["objects"]
        return {**about, "tables": dict(tables), "objects": named}

    def pending(self, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The end by its key, as a catalog takes it before it is written."""
        return {self.key(self._END): content}

    def end(
        self,
        about: Mapping[str, Any],
        tables: Mapping[str, str],
        files: Mapping[str, bytes],
        stored: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the last files of a result, its end at the very end. Safe to repeat.

        Args:
            about: the numbers that answer, settings, versions.
            tables: schema of every table, by table.
            files: further files by name, such as figures.
            stored: result of :meth:`put`, what was written before.
        """
        content = self.content(about, tables, self.put(files) | dict(stored or {}))
        self.storage.put(self.key(self._END), [documents.to_bytes(content)])
        self._settle()

    def read(self) -> dict[str, Any]:
        """``result.json``.

        Raises:
            InputError: the analysis was not run, or did not finish.
        """
        content = self._document(self._END, _Result)
        if content is None:
            raise InputError(
                f"{self.storage.url!r} has no finished result {self.label!r}. Run fewchannels analyze first."
            )
        return content

    def delete(self) -> None:
        """Delete all that it writes, its end first. Whatever else is there stays."""
        keys = [key for key in self.storage.list(self.key("")) if self._OURS.fullmatch(key.removeprefix(self.key("")))]
        self.storage.delete([self.key(self._END)])
        self.storage.delete(keys)

    def units(self) -> dict[int, dict[str, Any]]:
        """Each finished unit's record; one whose record or part is gone or cut short is not finished."""
        sizes = self.storage.list(self.key(""))
        found = {}
        for key in sizes:
            if not key.startswith(self.key("units/")):
                continue
            try:
                unit = documents.from_bytes(self.storage.get(key), self._UNIT)
            except documents.DamagedDocumentError:
                continue
            if all(sizes.get(part) == each["n_bytes"] for part, each in unit["objects"].items()):
                found[unit["unit"]] = unit
        return found

    def _record(self, unit: int, parts: Mapping[str, bytes | memoryview], more: Mapping[str, Any]) -> None:
        """Write parts, by name, then the record of the unit that names them."""
        record = {"unit": unit, "objects": self.put(parts), **more}
        self.storage.put(self.key(f"units/{unit:05d}.json"), [documents.to_bytes(record)])

    def _is_made_anew(self) -> bool:
        """Return whether what is there is whole, and would not be resumed."""
        return False

    def _settle(self) -> None:
        """Delete what only an interrupted result needs."""

    def _as_begun(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return dict(identity)

    def _begun(self) -> dict[str, Any] | None:
        """What an earlier call began; None where there is nothing."""
        return self._document(BEGUN, documents.Fields)

    @property
    def _conflict(self) -> tuple[str, str]:
        """The message where something else was begun: how it begins, and its end."""
        return (
            f"{self.key('')} has a result with different settings",
            "Give --replace to delete it, or --label to choose another name.",
        )

    def _document(self, name: str, fields: type[documents.Fields]) -> dict[str, Any] | None:
        try:
            return documents.read(self.storage, self.key(name), fields, self._AGAIN)
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class ComparisonResults(Results):
    """A comparison of two runs in a place of its own: units are layers, whose rows but of samples are in their records.

    ``begun.json`` and the units' records are deleted at the end, so a finished comparison is made anew.

    Attributes:
        storage: the place.
        label: none.
    """

    label: str = ""

    _END: ClassVar[str] = COMPARISON
    _UNIT: ClassVar[type[_Unit]] = _ComparedUnit
    _AGAIN: ClassVar[str] = "Give --replace."
    _OURS: ClassVar[re.Pattern[str]] = re.compile(
        rf"{re.escape(COMPARISON)}|{re.escape(BEGUN)}|units/\d+\.json|summary\.md|samples/\d+\.parquet|"
        rf"(agreement|differences|profiles)\.parquet|{_FIGURES}"
    )

    def key(self, name: str) -> str:
        """Where one of its files is."""
        return name

    @property
    def place(self) -> Storage:
        """The place."""
        return self.storage

    def check_place(self) -> None:
        """Refuse a place that holds other files than a comparison's. Reads only.

        Raises:
            RunConflictError: naming some of them.
        """
        check_free(self.storage, lambda key: key == LEASE or bool(self._OURS.fullmatch(key)))

    def rows(self) -> dict[int, dict[str, Rows]]:
        """Rows of the units that are done, by table."""
        return {number: unit["rows"] for number, unit in self.units().items()}

    def write_layer(self, unit: int, rows: Mapping[str, Rows], layer: int, samples: Columns | None) -> None:
        """Write a unit's part of ``samples`` if it has one, then its rows. Safe to repeat.

        Args:
            unit: its number.
            rows: rows in plain values, by table.
            layer: layer whose ``samples`` they are.
            samples: columns of ``comparison_samples``.
        """
        parts = (
            {f"samples/{layer:05d}.parquet": to_parquet("comparison_samples", samples)} if samples is not None else {}
        )
        self._record(unit, parts, {"rows": dict(rows)})

    def _is_made_anew(self) -> bool:
        return self.storage.exists(COMPARISON)

    def _settle(self) -> None:
        self.storage.delete([*(key for key in self.storage.list() if key.startswith("units/")), BEGUN])

    def _as_begun(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return {"identity": dict(identity)}

    def _begun(self) -> dict[str, Any] | None:
        found = self._document(COMPARISON, _Begun) or self._document(BEGUN, _Begun)
        return None if found is None else dict(found["identity"])

    @property
    def _conflict(self) -> tuple[str, str]:
        return f"{self.storage.url!r} has a different comparison", "Give --replace to delete it, or another --out."


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
        storage: storage of the run.
        keys: its listing.
    """
    stored = set(keys)
    return [result for label in labels(stored) if (result := Results(storage, label)).key(END) in stored]


def objects_of(content: Mapping[str, Any]) -> dict[str, Stored]:
    """The objects that ``result.json`` names, by key."""
    return {key: Stored(**each) for key, each in content["objects"].items()}
