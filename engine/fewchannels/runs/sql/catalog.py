"""A run, a sweep or a comparison, as SQL: DuckDB views over its tables, read-only."""

import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb

from fewchannels.errors import FewchannelsError, InputError, StorageError, unknown
from fewchannels.runs.changes import manifest_key
from fewchannels.runs.description import (
    COMPARISON,
    NAME,
    SWEEP,
    read_comparison,
    read_description,
    read_sweep,
)
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import TABLES, Parts
from fewchannels.runs.results import finished
from fewchannels.runs.sql.answer import Answer
from fewchannels.runs.sql.named_queries import queries
from fewchannels.runs.storage import FolderStorage, ObjectStorage, open_storage
from fewchannels.runs.storage.requests import reason
from fewchannels.tables import schema

VIEWS = ("cells", "manifest", "run", "samples", "tasks")
_RUN_TYPES = {
    "n_samples": "bigint",
    "n_steps": "integer",
    "n_layers": "integer",
    "n_channels": "integer",
    "n_tokens": "integer",
    "top_k": "integer",
    "score": "varchar",
    "model": "varchar",
    "fingerprint": "varchar",
    "n_tasks": "bigint",
    "n_tasks_done": "bigint",
}
_SWEEP_TYPES = {
    "kind": "varchar",
    "protocol": "varchar",
    "n_items": "bigint",
    "n_conditions": "integer",
    "n_edits": "bigint",
    "score": "varchar",
    "model": "varchar",
    "fingerprint": "varchar",
    "n_tasks": "bigint",
    "n_tasks_done": "bigint",
}
_COMPARISON_TYPES = {
    "run_a": "varchar",
    "run_b": "varchar",
    "n_samples": "bigint",
    "n_prompts": "bigint",
    "n_only_a": "bigint",
    "n_only_b": "bigint",
    "n_channels_a": "integer",
    "n_channels_b": "integer",
    "layers_by": "varchar",
    "steps_by": "varchar",
    "step_a": "integer",
    "step_b": "integer",
    "score": "varchar",
    "k": "integer",
}
_ABOUT = {"run": _RUN_TYPES, "sweep": _SWEEP_TYPES, "comparison": _COMPARISON_TYPES}
_READ = {"run": read_description, "sweep": read_sweep, "comparison": read_comparison}
_FILES = {"run": NAME, "sweep": SWEEP, "comparison": COMPARISON}
_TASK_TYPES = {int: "bigint", float: "double", str: "varchar"}


def _literal(text: object) -> str:
    return "'" + str(text).replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A column's name as SQL takes it, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def _pattern(path: str) -> str:
    """The glob pattern that matches this one path: DuckDB reads every file name as a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", path)


class Catalog:
    """Read-only SQL over one run, sweep or comparison, as its ledger was when the catalog was opened.

    Views of a run: ``manifest``, ``samples`` and ``cells`` (``schemas/*.yaml``; only files of tasks that have a
    record), ``tasks`` (the records, one row each, ``finished`` in UTC) and ``run`` (one row). Of a sweep: ``manifest``,
    ``conditions``, ``edits``, ``pairs`` and ``channel_ranks`` where it has them, ``tasks`` and ``sweep``.
    Of a comparison: ``agreement``, ``differences``, ``profiles``, ``samples`` and ``comparison``.
    Nothing can be written and no other file can be read.

    Args:
        path: the folder or URL of a run, a sweep or a comparison.

    Raises:
        InputError: there is none, or one of a newer format.
        StorageError: a file of a recorded task is missing or damaged.
        RunConflictError: a record belongs to another run.
    """

    def __init__(self, path: str | Path) -> None:
        self._storage = open_storage(path)
        self.views = list(VIEWS)
        self.results: list[str] = []
        if isinstance(self._storage, FolderStorage) and not self._storage.path.exists():
            raise InputError(
                f"there is no folder {str(path)!r}. Check the path, or make a run with fewchannels capture."
            )
        self.of = next((kind for kind in ("sweep", "comparison") if self._storage.exists(_FILES[kind])), "run")
        description = _READ[self.of](self._storage)
        self._records: dict[int, Record] = {}
        try:
            if self.of != "comparison":
                self._records = Ledger(self._storage).records(description["fingerprint"])
            about = self._about(description)
        except KeyError as error:
            raise StorageError(f"{self._storage.location(_FILES[self.of])} is damaged: it has no {error}.") from None
        self._connection = duckdb.connect(":memory:")
        if isinstance(self._storage, ObjectStorage):
            self._connection.register_filesystem(self._storage.filesystem())
        try:
            self._add_views(about, description)
            self._lock()
        except duckdb.Error as error:
            self.close()
            raise self._translated(error) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; answers already given stay valid."""
        self._connection.close()

    def sql(self, text: str, parameters: dict[str, Any] | None = None) -> Answer:
        """Ask one read-only SQL question of the views. Threads may ask at the same time.

        Args:
            text: one SELECT statement.
            parameters: values of its ``$names``.

        Raises:
            InputError: it is not one SELECT statement, DuckDB does not understand it, or it reads another file.
            StorageError: a file of the run cannot be read.
        """
        return Answer(self._ask(text, parameters))

    def query(self, name: str, /, **parameters: object) -> Answer:
        """Run a named query, e.g. ``query("massive_channels", layer=3, top=5)``; see :func:`queries`.

        Raises:
            InputError: an unknown query or parameter, an unfit value, or a query that needs a result the run lacks.
            StorageError: a file of the run cannot be read.
        """
        if name not in queries():
            raise unknown("query", name, queries())
        chosen = queries()[name]
        values = chosen.bind(parameters)
        if chosen.of != self.of:
            raise InputError(
                f"query {name!r} is asked of a {chosen.of}, and {self._storage.url!r} is a {self.of}. "
                "fewchannels query --list shows which are of which."
            )
        if missing := [label for label in chosen.needs if label not in self.results]:
            raise InputError(
                f"query {name!r} needs the result of what this {self.of} was not asked: {self._commands(missing)}. "
                "Results under another --label are read by fewchannels sql."
            )
        return Answer(self._ask(chosen.sql, values, chosen.needs), chosen)

    def _commands(self, labels: Collection[str], option: str = "") -> str:
        """The commands that make results."""
        if self.of == "sweep":
            return f"fewchannels plot {self._storage.url}"
        return ", then ".join(f"fewchannels analyze {label} {self._storage.url}{option}" for label in labels)

    def joined(self) -> str:
        """A question for all of a run's samples: their columns but for the picture, then the manifest's others."""
        own = set(self.sql("select * from samples limit 0").columns) - {"sample_id"}
        others = [name for name in self.sql("select * from manifest limit 0").columns if name not in own]
        return (
            "select * from (select * exclude (image) from samples) join "
            f"(select {', '.join(map(quoted, others))} from manifest) using (sample_id)"
        )

    def picture(self, sample_id: str) -> bytes | None:
        """One sample's generated picture, PNG bytes; None where there is no such sample or it has none."""
        found = self._ask("select image from samples where sample_id = $sample_id", {"sample_id": sample_id})
        return next(iter(found.column("image").to_pylist()), None)

    def _ask(self, text: str, parameters: dict[str, Any] | None = None, needs: Collection[str] = ()) -> Any:
        try:
            statements = self._connection.extract_statements(text)
            if len(statements) != 1:
                raise InputError(f"give one SELECT statement; this text has {len(statements)}.")
            kind = statements[0].type
            if kind.name == "MULTI":
                raise InputError("PIVOT must name its values, as in: pivot ... on column in ('a', 'b') using ...")
            if kind.name != "SELECT":
                raise InputError(f"{kind.name} is refused: the catalog is read-only. Ask with one SELECT statement.")
            return self._connection.cursor().sql(text, params=parameters).to_arrow_table()
        except (duckdb.InternalException, duckdb.FatalException):
            raise  # a fault of DuckDB's own: its trace is wanted
        except duckdb.Error as error:
            if needs and isinstance(error, duckdb.BinderException | duckdb.CatalogException):
                raise InputError(
                    f"the result {' or '.join(needs)} was written by an older version and lacks what the query reads. "
                    f"Make it again: {self._commands(needs, ' --replace')}.\n{error}"
                ) from None
            raise self._translated(error) from None

    def _translated(self, error: duckdb.Error) -> FewchannelsError:
        message = str(error).strip()
        if isinstance(error, duckdb.PermissionException):
            self._check_files()  # a file that has gone is searched for as a pattern, which is not permitted
            return InputError(
                f"a question reads this {self.of}'s tables only ({', '.join(self.views)}), no other file or address. "
                f"{message}"
            )
        if isinstance(self._storage, ObjectStorage) and message.startswith("Traceback"):
            return StorageError(f"the {self.of} {self._storage.url!r} cannot be read: {reason(message)}")
        if isinstance(error, duckdb.IOException) or f"{self._storage.location('')}" in message:
            return StorageError(f"the {self.of} {self._storage.url!r} cannot be read: {message}")
        if isinstance(error, duckdb.OutOfMemoryException):
            return FewchannelsError(f"the answer does not fit in memory; ask for fewer rows or columns. {message}")
        if isinstance(error, duckdb.CatalogException) and "Table" in message:
            return InputError(f"{message}\nTables: {', '.join(self.views)}.")
        return InputError(message)

    def _about(self, description: dict[str, Any]) -> dict[str, Any]:
        """The one row of ``run``, ``sweep`` or ``comparison``."""
        if self.of == "comparison":
            values = description["numbers"] | {f"run_{side}": run for side, run in description["runs"].items()}
        elif self.of == "sweep":
            values = description | description["identity"] | {"model": description["model"]["name"]}
        else:
            values = description["geometry"] | description["config"] | description
            values |= {"model": description["config"]["model"]}
        values |= {"n_tasks_done": len(self._records)}
        return {name: values[name] for name in _ABOUT[self.of]}

    def _add_views(self, about: dict[str, Any], description: dict[str, Any]) -> None:
        if self.of == "comparison":
            self._add_comparison(description["tables"])
        else:
            stored = self._add_sweep(description) if self.of == "sweep" else self._add_run(description)
            self._add_results(stored)
            self._add_tasks()
        columns = ", ".join(f"${name}::{kind} as {name}" for name, kind in _ABOUT[self.of].items())
        self._connection.execute(f"create table {self.of} as select {columns}", about)
        files = [self._storage.location(key) for key in self._keys]
        allowed = ", ".join(_literal(name) for file in files for name in {file, _pattern(file)})
        self._connection.execute(f"set allowed_paths = [{allowed}]")

    def _add_tasks(self) -> None:
        names = {each.name: _TASK_TYPES[each.type] for each in fields(Record) if each.type in _TASK_TYPES}
        names["finished"] = "timestamp"
        rows = ", ".join(f"unnest(${name}::{kind}[]) as {name}" for name, kind in names.items())
        self._connection.execute(
            f"create table tasks as select {rows}",
            {name: [getattr(record, name) for record in self._records.values()] for name in names},
        )

    def _add_run(self, description: dict[str, Any]) -> Collection[str]:
        """A run's tables; returns what is stored."""
        shard_samples = description.get("shard_samples", 1)
        parts = Parts(self._storage, self._records)
        parts_of = {table: parts.files(table, shard_samples) for table in TABLES}
        manifest = manifest_key(self._storage, description)
        self._keys = [manifest, *(key for table in TABLES for key in parts_of[table])]
        stored = self._check_files()
        # While a run grows, its manifest may be longer than the run.
        rows = f"file_row_number < {description['geometry']['n_samples']:d}"
        self._add_view("manifest", "manifest", {manifest: rows}, "* exclude (file_row_number)")
        for table in TABLES:
            which = {
                key: "true" if ranges is None else " or ".join(f"sample >= {a:d} and sample < {b:d}" for a, b in ranges)
                for key, ranges in parts_of[table].items()
            }
            self._add_view(table, table, which, ", ".join(schema(table).names))
        return stored

    def _add_sweep(self, description: dict[str, Any]) -> Collection[str]:
        """A sweep's tables; returns what is stored."""
        once = list(description["objects"])
        edits = [key for task in sorted(self._records) for key in self._records[task].objects]
        self._keys = [*once, *edits]
        stored = self._check_files()
        self.views = sorted({"edits", "sweep", "tasks", *(key.removesuffix(".parquet") for key in once)})
        for key in once:
            name = key.removesuffix(".parquet")
            self._add_view(name, name, {key: "true"}, "* exclude (file_row_number)")
        self._add_view("edits", "edits", dict.fromkeys(edits, "true"), ", ".join(schema("edits").names))
        return stored

    def _add_comparison(self, tables: dict[str, str]) -> None:
        parts = [key for key in self._storage.list("samples/") if key.endswith(".parquet")]
        files = {name: parts if name == "samples" else [f"{name}.parquet"] for name in tables}
        self._keys = [key for keys in files.values() for key in keys]
        self._check_files()
        self.views = sorted({"comparison", *tables})
        for name, kind in tables.items():
            self._add_view(name, kind, dict.fromkeys(files[name], "true"), ", ".join(schema(kind).names))

    def _add_results(self, stored: Collection[str]) -> None:
        """Views ``LABEL_TABLE`` of finished analyses; one that lacks a file has none, until it is run again."""
        for result in finished(self._storage, stored):
            content = result.read()
            if content["objects"].keys() - set(stored):
                continue
            self.results.append(result.label)
            for table, kind in content["tables"].items():
                keys = [key for key in content["objects"] if key.startswith(result.key(f"{table}/"))]
                view = f"{result.label}_{table}"
                # Whatever columns it was written with: an older version's result is no reason not to open.
                self._add_view(view, kind, dict.fromkeys(keys, "true"), "* exclude (file_row_number)")
                self._keys += keys
                self.views.append(view)

    def _check_files(self) -> dict[str, int]:
        """The listing of all that is stored, with every file of the views in it."""
        stored = self._storage.list()
        for key in self._keys:
            if key not in stored:
                self._storage.size(key)  # says so if a link stands in its place
                url = self._storage.url
                remedy = (
                    "make it again with fewchannels compare --replace"
                    if self.of == "comparison"
                    else f"let fewchannels runs verify {url} --repair drop its record and run its command again"
                )
                raise StorageError(
                    f"{self._storage.location(key)} is missing, and the {self.of} {url!r} names it. Restore it, or "
                    f"{remedy}."
                )
        return stored

    def _add_view(self, name: str, kind: str, files: dict[str, str], columns: str) -> None:
        """A view of the rows of files of a schema, by key, for which each file's condition holds."""
        if not files:
            empty = self._connection.from_arrow(schema(kind).empty_table())
            empty.create(name)
            return
        alike: dict[str, list[str]] = {}
        for key, condition in files.items():
            alike.setdefault(condition, []).append(_literal(_pattern(self._storage.location(key))))
        selects = [
            # Without hive_partitioning=false a run below a folder such as "k=12" would gain a column k.
            f"select {columns} from read_parquet([{', '.join(patterns)}], hive_partitioning = false, "
            f"file_row_number = true) where {condition}"
            for condition, patterns in alike.items()
        ]
        self._connection.execute(f"create view {name} as {' union all '.join(selects)}")

    def _lock(self) -> None:
        for setting in (
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "python_enable_replacements = false",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            self._connection.execute(f"set {setting}")
