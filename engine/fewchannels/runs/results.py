"""Results: of a run, in ``results/LABEL/``, or of a comparison, in its own location. Units are written before the end.

A unit is a piece of work that is computed and written as a whole: a task's samples, or a layer. Its record is written
after its parts and names them; the end, ``result.json`` or ``comparison.json``, is written last. So an interrupted
result resumes where it stopped, and readers ignore a result without its end.
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
    """Content of an analysis's document; the names in it are used in SQL, so they are checked."""

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
    """Location of one analysis in a run. Has only plain values, since it is sent to workers.

    Attributes:
        storage: storage of the run.
        label: name of its folder, and prefix of its tables' names.
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
        """Key of one of its files."""
        return f"{FOLDER}{self.label}/{name}"

    @property
    def place(self) -> Storage:
        """Its folder, which has a lease of its own, since the run itself may still be captured."""
        return self.storage.below(f"{FOLDER}{self.label}")

    def begin(self, identity: Mapping[str, Any], *, replace: bool = False) -> set[int]:
        """Begin the result, or resume that of an earlier call. Removes remains of killed writers.

        Args:
            identity: everything that determines the numbers, as plain values.
            replace: whether to delete an existing result, regardless of its settings.

        Returns:
            The finished units, whose parts exist and in which nothing failed.

        Raises:
            RunConflictError: there is a result with other settings; the message lists them.
            StorageError: the document that identifies the existing result is damaged.
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
        """Return whether the existing result has the same identity; False if that cannot be read."""
        try:
            return self._begun() == identity
        except StorageError:
            return False

    def reopen(self) -> None:
        """Remove a result's end, so that no units are read while they are recomputed. Safe to repeat."""
        self.storage.delete([self.key(self._END)])

    def write_unit(self, unit: int, tables: Mapping[str, Columns], schemas: Mapping[str, str]) -> None:
        """Write a unit's parts, then its record. Safe to repeat.

        Args:
            unit: number of the unit.
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
        """Yield a table's rows, a ``pyarrow.Table`` for each finished unit, ascending.

        Raises:
            StorageError: a part is missing, damaged, or differs from the stored one.
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
        """Write files that do not belong to a unit, by name; returns their entries for the end. Safe to repeat."""
        return {self.key(name): asdict(self.storage.put(self.key(name), [data])) for name, data in files.items()}

    def content(
        self, about: Mapping[str, Any], tables: Mapping[str, str], objects: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Content of the end for written units and files; same arguments as :meth:`end`."""
        named = dict(objects)
        for unit in self.units().values():
            named |= unit["objects"]
        return {**about, "tables": dict(tables), "objects": named}

    def pending(self, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The end by its key, for a catalog that reads it before it is written."""
        return {self.key(self._END): content}

    def end(
        self,
        about: Mapping[str, Any],
        tables: Mapping[str, str],
        files: Mapping[str, bytes],
        stored: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the last files of a result, and finally its end. Safe to repeat.

        Args:
            about: numbers of the result, settings and versions.
            tables: schema of every table, by table.
            files: further files by name, such as figures.
            stored: result of :meth:`put`, for files written earlier.
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
        """Delete all of its files, its end first. Other files stay."""
        keys = [key for key in self.storage.list(self.key("")) if self._OURS.fullmatch(key.removeprefix(self.key("")))]
        self.storage.delete([self.key(self._END)])
        self.storage.delete(keys)

    def units(self) -> dict[int, dict[str, Any]]:
        """Each finished unit's record; a unit with a missing or truncated record or part is not finished."""
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
        """Return whether the result is complete, so that nothing remains to be resumed."""
        return False

    def _settle(self) -> None:
        """Delete files that only an interrupted result needs."""

    def _as_begun(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return dict(identity)

    def _begun(self) -> dict[str, Any] | None:
        """The document of an earlier call; None if there is none."""
        return self._document(BEGUN, documents.Fields)

    @property
    def _conflict(self) -> tuple[str, str]:
        """Beginning and end of the message about an existing result with other settings."""
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
    """A comparison of two runs in its own location. Units are layers; their records have all rows except ``samples``.

    ``begun.json`` and the units' records are deleted at the end, so a finished comparison is recomputed.

    Attributes:
        storage: storage of the comparison.
        label: empty.
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
        """Key of one of its files."""
        return name

    @property
    def place(self) -> Storage:
        """The location of the comparison."""
        return self.storage

    def check_place(self) -> None:
        """Reject a location that contains other files than a comparison's. Reads only.

        Raises:
            RunConflictError: there are other files; the message names some of them.
        """
        check_free(self.storage, lambda key: key == LEASE or bool(self._OURS.fullmatch(key)))

    def rows(self) -> dict[int, dict[str, Rows]]:
        """Rows of the finished units, by table."""
        return {number: unit["rows"] for number, unit in self.units().items()}

    def write_layer(self, unit: int, rows: Mapping[str, Rows], layer: int, samples: Columns | None) -> None:
        """Write a unit's part of ``samples``, if it has one, then its rows. Safe to repeat.

        Args:
            unit: number of the unit.
            rows: rows as plain values, by table.
            layer: layer of the samples' columns.
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
        keys: the run's listing.
    """
    stored = set(keys)
    return [result for label in labels(stored) if (result := Results(storage, label)).key(END) in stored]


def objects_of(content: Mapping[str, Any]) -> dict[str, Stored]:
    """The objects that ``result.json`` names, by key."""
    return {key: Stored(**each) for key, each in content["objects"].items()}
