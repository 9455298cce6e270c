"""A run, a sweep or a comparison, as SQL: DuckDB views over its tables, read-only."""

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, get_type_hints
from weakref import WeakSet

import duckdb

from fewchannels.errors import FewchannelsError, InputError, StorageError
from fewchannels.runs.changes import manifest_key
from fewchannels.runs.description import COMPARISON, MANIFEST, NAME, SWEEP, kind_of, objects_of, read_document
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import TABLES, Compaction, Parts
from fewchannels.runs.provenance import in_words
from fewchannels.runs.results import END, finished
from fewchannels.runs.sql import about, confined, macros, places, progress, rules, spill
from fewchannels.runs.sql.answer import Answer
from fewchannels.runs.sql.checksums import Checksums
from fewchannels.runs.sql.limits import Limits, default_limits
from fewchannels.runs.sql.named_queries import Query, query_of
from fewchannels.runs.sql.older_files import by_columns
from fewchannels.runs.sql.question import Question
from fewchannels.runs.storage import FolderStorage, Stored, open_storage
from fewchannels.runs.storage.requests import reason
from fewchannels.tables import schema

VIEWS = ("cells", "manifest", "run", "samples", "tasks")
_GREW = ("concentration_means", "stability_agreement", "stability_channels", "stability_ranks")
"""Tables of results that got columns later, which are null in older ones."""
TRANSACTION = "begin transaction read only"
_TASK_TYPES = {int: "bigint", float: "double", str: "varchar"}


class Catalog:
    """Read-only SQL over one run, sweep or comparison, in the state of its ledger when the catalog was opened.

    Views of a run: ``manifest``, ``samples`` and ``cells`` (``schemas/*.yaml``; only files of tasks that have a
    record), ``tasks`` (the records, one row each, ``finished`` in UTC) and ``run`` (one row). Of a sweep: ``manifest``,
    ``conditions``, ``edits``, ``pairs`` and ``channel_ranks`` where it has them, ``tasks`` and ``sweep``.
    Of a comparison: ``agreement``, ``differences``, ``profiles``, ``samples`` and ``comparison``.
    Nothing can be written and no other file can be read.

    Attributes:
        of: ``run``, ``sweep`` or ``comparison``.
        views: names of all views.
        results: labels of the finished results, whose views begin with them.
        incomplete: a missing file, by label, of each result that therefore has no views.
        note: message about items of a sweep that the results do not cover; None if they cover all.

    Args:
        path: the folder or URL of a run, a sweep or a comparison.
        pending: documents that will be written last, ``comparison.json`` or a result's, by key. They are read as if
            they already existed, so that the tables that they name can be queried before others see them.

    Raises:
        InputError: there is none, or one of a newer format.
        StorageError: a file of a recorded task is missing or damaged.
        RunConflictError: a record belongs to another run.
    """

    def __init__(self, path: str | Path, pending: Mapping[str, dict[str, Any]] | None = None) -> None:
        self._storage = open_storage(path)
        self._pending = dict(pending or {})
        self.views = list(VIEWS)
        self.results: list[str] = []
        self.incomplete: dict[str, str] = {}
        self.note: str | None = None
        if isinstance(self._storage, FolderStorage) and not self._storage.path.exists():
            raise InputError(
                f"there is no folder {str(path)!r}. Check the path, or create a run with fewchannels capture."
            )
        document = next((name for name in (SWEEP, COMPARISON) if self._has(name)), NAME)
        self.of = kind_of(document)
        description = self._pending.get(document) or read_document(self._storage, document)
        self._records: dict[int, Record] = {}
        if self.of != "comparison":
            self._records = Ledger(self._storage).records(description["fingerprint"])
        self._kept = places.recorded(description) if self.of == "run" else {}
        row = about.about(self.of, description, len(self._records))
        self._files: dict[str, Stored | None] = {}
        self._limits = default_limits()
        self._questions: WeakSet[Question] = WeakSet()
        self._looking, self._looked = threading.Lock(), 0
        self._connection = confined.connect(self._storage, Checksums(self._storage, self._files).check)
        try:
            self._add_views(row, description)
        except duckdb.Error as error:
            self.close()
            raise self._said(error) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has(self, key: str) -> bool:
        return key in self._pending or self._storage.exists(key)

    def close(self) -> None:
        """Close the connection; answers already returned stay valid. A running query ends with an error."""
        self.stop()
        self._connection.close()

    def stop(self) -> None:
        """Stop all running queries, from another thread."""
        for question in list(self._questions):
            question.stop()

    def sql(self, text: str, parameters: Mapping[str, Any] | None = None, limits: Limits | None = None) -> Answer:
        """Run one read-only SQL query on the views. Several threads may do so at the same time.

        Args:
            text: one SELECT statement.
            parameters: values of its ``$names``.
            limits: limits of the query; None for a share of the free memory.

        Raises:
            InputError: it is not one SELECT statement, DuckDB does not understand it, it reads something else, or it
                reached a limit.
            StorageError: a file of the run cannot be read.
        """
        return self.ask(text, parameters, limits).answer()

    def ask(self, text: str, parameters: Mapping[str, Any] | None = None, limits: Limits | None = None) -> Question:
        """A query whose result can be read in any number of batches, and that can be stopped: see :class:`Question`.

        Args:
            text: one SELECT statement.
            parameters: values of its ``$names``.
            limits: limits of the query; None for a share of the free memory.

        Raises:
            InputError: it is not one SELECT statement, or does more than read the views.
        """
        return self._asked(text, parameters, limits)

    def query(self, name: str, limits: Limits | None = None, /, **parameters: object) -> Answer:
        """Run a named query, e.g. ``query("massive_channels", layer=3, top=5)``; see ``queries/``.

        Args:
            name: name of the query.
            limits: limits, as for :meth:`sql`; positional, so that a parameter of the query may have any name.
            **parameters: parameters of the query.

        Raises:
            InputError: an unknown query or parameter, an invalid value, a query that needs a result that the run lacks,
                or a limit that was reached.
            StorageError: a file of the run cannot be read.
        """
        return self.ask_query(name, limits, **parameters).answer()

    def ask_query(self, name: str, limits: Limits | None = None, /, **parameters: object) -> Question:
        """A named query that can be read in batches and stopped, as :meth:`ask` does for free SQL."""
        chosen = query_of(name, self.of)
        values = chosen.bind(places.resolved(chosen, parameters, self._kept))
        if chosen.of != self.of:
            raise InputError(
                f"query {name!r} reads a {chosen.of}, but {self._storage.url!r} is a {self.of}. "
                "fewchannels query --list shows what each query reads."
            )
        if missing := [label for label in chosen.needs if label not in self.results]:
            raise InputError(
                f"query {name!r} needs the result of an analysis that this {self.of} lacks: {self._commands(missing)}. "
                "To read results under another --label, use fewchannels sql."
            )
        return self._asked(chosen.sql, values, limits, chosen)

    def _commands(self, labels: Collection[str], option: str = "") -> str:
        """The commands that make results."""
        if self.of == "sweep":
            return f"fewchannels plot {self._storage.url}"
        return ", then ".join(f"fewchannels analyze {label} {self._storage.url}{option}" for label in labels)

    def lacks(self, key: str) -> str:
        """The message about a result that lacks a file.

        Args:
            key: key of the file, a value of ``incomplete``.
        """
        return (
            f"{self._storage.location(key)} is missing, so its result has no tables. Run fewchannels runs verify "
            f"{self._storage.url} --repair to remove its record, then run its command again."
        )

    def image(self, sample_id: str) -> bytes | None:
        """One sample's generated image, PNG bytes; None if the sample does not exist or has none."""
        found = self.sql("select image from samples where sample_id = $sample_id", {"sample_id": sample_id})
        return next((image for (image,) in found.fetchall()), None)

    def condition(self, text: str | None) -> str:
        """Wrap a condition in parentheses for use in a query, so that it cannot escape them; true if there is none.

        Raises:
            InputError: it is not one expression.
        """
        if not text:
            return "(true)"
        try:
            with self._connection.cursor() as parser:
                rules.check_condition(parser, text)
        except duckdb.Error as error:
            raise self._said(error) from None
        return f"({text}\n)"

    def mentioned(self, text: str) -> frozenset[tuple[str, str]]:
        """The names in a condition, as pairs of table and name; the table is empty for plain names."""
        with self._connection.cursor() as parser:
            return rules.mentioned(parser, text)

    def _asked(
        self, text: str, parameters: Mapping[str, Any] | None, limits: Limits | None, query: Query | None = None
    ) -> Question:
        try:
            with self._connection.cursor() as parser:
                rules.check(parser, text, self.of, self.views)
        except duckdb.Error as error:
            raise self._said(error) from None
        question = Question(self, text, parameters, limits or self._limits, query)
        self._questions.add(question)
        return question

    def cursor(self) -> tuple[duckdb.DuckDBPyConnection, int]:
        """For a :class:`Question`: a read-only connection, and the number of times the catalog was refreshed."""
        with self._looking:
            cursor, looked = self._connection.cursor(), self._looked
        cursor.execute(TRANSACTION)
        return cursor, looked

    def failed(self, error: Exception, looked: int, needs: Collection[str]) -> FewchannelsError | None:
        """For a :class:`Question`: the error's message; None if the files that it missed have been replaced."""
        if needs and isinstance(error, duckdb.BinderException | duckdb.CatalogException):
            return InputError(
                f"the result {' or '.join(needs)} was written by an older version and lacks columns that the query "
                f"reads. Recompute it: {self._commands(needs, ' --replace')}.\n{error}"
            )
        said = self._said(error)
        if not isinstance(said, StorageError):
            return said
        try:
            return None if self._look_again(looked) else said
        except FewchannelsError as missing:
            return missing

    def _look_again(self, looked: int) -> bool:
        """Reopen the views on the current files, for example after a compaction; False if nothing has changed."""
        with self._looking:
            if looked == self._looked:
                fresh = Catalog(self._storage.url, self._pending)
                if fresh._files == self._files:
                    fresh.close()
                    return False
                self._connection.close()
                self._connection, self._files, self._records = fresh._connection, fresh._files, fresh._records
                self.views, self.results, self.incomplete = fresh.views, fresh.results, fresh.incomplete
                self.note = fresh.note
                self._looked += 1
        return True

    def _said(self, error: Exception) -> FewchannelsError:
        message = str(error).strip().replace(confined.PREFIX, self._storage.location(""))
        if "Traceback" in message:  # of the file system in Python
            return StorageError(f"the {self.of} {self._storage.url!r} cannot be read: {reason(message)}")
        if spill.PREFIX in message and confined.PREFIX not in message:
            return FewchannelsError(
                "the query needs more memory than available and cannot spill to disk: it needs space in the folder for "
                f"temporary files, which TMPDIR sets. {message.splitlines()[0]}"
            )
        if isinstance(error, duckdb.IOException) or confined.PREFIX in str(error).partition("\nLINE ")[0]:
            return StorageError(f"the {self.of} {self._storage.url!r} cannot be read: {message}")
        if isinstance(error, duckdb.OutOfMemoryException | MemoryError) or "failed to allocate" in message:
            return FewchannelsError(
                "the query needs more memory, or more disk space to spill to, than available. Select fewer rows or "
                f"columns, group them, or free space in the folder that TMPDIR sets. {message.splitlines()[0]}"
            )
        lacking = [key for label, key in self.incomplete.items() if f"{label}_" in message]
        return InputError("\n".join([message, *(self.lacks(key) for key in lacking)]))

    def _add_views(self, row: dict[str, Any], description: dict[str, Any]) -> None:
        if self.of == "comparison":
            self._add_comparison(description)
        else:
            stored = self._add_sweep(description) if self.of == "sweep" else self._add_run(description)
            settings = self._add_results(stored)
            self._add_tasks()
            if self.of == "sweep":
                n_items = description["identity"]["n_items"]
                self.note = progress.note(self._storage.url, n_items, self._records, settings.get("effects"))
        macros.define(self._connection)
        columns = ", ".join(f"${name}::{kind} as {name}" for name, kind in about.TYPES[self.of].items())
        self._connection.execute(f"create table {self.of} as select {columns}", row)
        confined.confine(self._connection, self._files)

    def _add_tasks(self) -> None:
        types = get_type_hints(Record)
        names = {each.name: _TASK_TYPES[types[each.name]] for each in fields(Record) if types[each.name] in _TASK_TYPES}
        names["finished"] = "timestamp"
        records = self._records.values()
        columns = {name: [getattr(record, name) for record in records] for name in names}
        columns["computed_by"] = [in_words(record.computed_by) or None for record in records]
        names["computed_by"] = "varchar"
        rows = ", ".join(f"unnest(${name}::{kind}[]) as {name}" for name, kind in names.items())
        self._connection.execute(f"create table tasks as select {rows}", columns)

    def _add_run(self, description: dict[str, Any]) -> Collection[str]:
        """A run's tables; returns what is stored."""
        shard_samples = description.get("shard_samples", 1)
        parts = Parts(self._storage, self._records)
        parts_of = {table: parts.files(table, shard_samples) for table in TABLES}
        manifest = manifest_key(self._storage, description)
        once = objects_of(description)
        recorded = _objects([*self._records.values(), *parts.compactions])
        self._files[manifest] = once.get(MANIFEST)
        self._files.update({key: recorded.get(key) for table in TABLES for key in parts_of[table]})
        stored = self._check_files()
        self._add_manifest(manifest, description["geometry"]["n_samples"])
        for table in TABLES:
            which = {
                key: "true" if ranges is None else " or ".join(f"sample >= {a:d} and sample < {b:d}" for a, b in ranges)
                for key, ranges in parts_of[table].items()
            }
            self._add_view(table, table, (which, ", ".join(schema(table).names)))
        return stored

    def _add_sweep(self, description: dict[str, Any]) -> Collection[str]:
        """A sweep's tables; returns what is stored."""
        once = objects_of(description)
        edits = _objects(self._records.values())
        self._files.update(once | edits)
        stored = self._check_files()
        self.views = sorted({"edits", "sweep", "tasks", *(key.removesuffix(".parquet") for key in once)})
        for key in once:
            name = key.removesuffix(".parquet")
            self._add_view(name, name, ({key: "true"}, "*"))
        self._add_view("edits", "edits", *by_columns(self._connection, "edits", edits))
        return stored

    def _add_comparison(self, description: dict[str, Any]) -> None:
        tables = description["tables"]
        stored = {key for key in self._storage.list("samples/") if key.endswith(".parquet")}
        parts = sorted(stored | {f"samples/{each['layer_a']:05d}.parquet" for each in description["numbers"]["layers"]})
        files = {name: parts if name == "samples" else [f"{name}.parquet"] for name in tables}
        recorded = objects_of(description)
        self._files.update({key: recorded.get(key) for keys in files.values() for key in keys})
        self._check_files()
        self.views = sorted({"comparison", *tables})
        for name, kind in tables.items():
            self._add_view(name, kind, *by_columns(self._connection, kind, files[name]))

    def _add_results(self, stored: Collection[str]) -> dict[str, dict[str, Any]]:
        """Views ``LABEL_TABLE`` of finished analyses; an analysis with a missing file has none until it is rerun.

        Returns:
            The settings of each, by label.
        """
        settings: dict[str, dict[str, Any]] = {}
        for result in finished(self._storage, {*stored, *self._pending}):
            content = self._pending.get(result.key(END)) or result.read()
            if lacking := sorted(content["objects"].keys() - set(stored)):
                self.incomplete[result.label] = lacking[0]
                continue
            self.results.append(result.label)
            settings[result.label] = content.get("settings", {})
            recorded = objects_of(content)
            for table, kind in content["tables"].items():
                keys = [key for key in content["objects"] if key.startswith(result.key(f"{table}/"))]
                self._files.update({key: recorded[key] for key in keys})
                view = f"{result.label}_{table}"
                # With whatever columns it was written: the catalog must also open with a result of an older version.
                of_files = (
                    by_columns(self._connection, kind, keys) if kind in _GREW else [(dict.fromkeys(keys, "true"), "*")]
                )
                self._add_view(view, kind, *of_files)
                self.views.append(view)
        return settings

    def _check_files(self) -> dict[str, int]:
        """The listing of all stored objects, after checking that it has every file of the views."""
        stored = self._storage.list()
        for key in self._files:
            if key not in stored:
                self._storage.size(key)  # raises if there is a link in its place
                url = self._storage.url
                remedy = (
                    "recompute it with fewchannels compare --replace"
                    if self.of == "comparison"
                    else f"run fewchannels runs verify {url} --repair to remove its record, then run its command again"
                )
                raise StorageError(
                    f"{self._storage.location(key)} is missing from the {self.of} {url!r}. Restore it, or {remedy}."
                )
        return stored

    def _add_manifest(self, key: str, n_samples: int) -> None:
        """The view of a manifest's first rows: while a run grows, its manifest may be longer than the run."""
        rows = f"from read_parquet('{confined.address(key)}', hive_partitioning = false)"
        ((n_rows,),) = self._connection.sql(f"select count(*) {rows}").fetchall()
        # DuckDB can number a file's rows, but not if the file has a column with the name of that number.
        first = f" limit {n_samples:d}" if n_rows > n_samples else ""
        self._connection.execute(f"create view manifest as select * {rows}{first}")

    def _add_view(self, name: str, kind: str, *groups: tuple[dict[str, str], str]) -> None:
        """A view of the rows of files of a schema.

        Args:
            name: name of the view.
            kind: the schema.
            groups: files, by key, each with the condition on its rows; and the select list for them.
        """
        selects = []
        for files, columns in groups:
            alike: dict[str, list[str]] = {}
            for key, condition in files.items():
                alike.setdefault(condition, []).append(f"'{confined.address(key)}'")
            selects += [
                # Without hive_partitioning=false a run below a folder such as "k=12" would gain a column k.
                f"select {columns} from read_parquet([{', '.join(patterns)}], hive_partitioning = false) "
                f"where {condition}"
                for condition, patterns in alike.items()
            ]
        if not selects:
            empty = self._connection.from_arrow(schema(kind).empty_table())
            empty.create(name)
            return
        self._connection.execute(f"create view {name} as {' union all '.join(selects)}")


def _objects(records: Iterable[Record | Compaction]) -> dict[str, Stored]:
    """Objects that records name, by key."""
    return {key: stored for record in records for key, stored in record.objects.items()}
