"""A running query: read in batches, within limits; any thread can stop it at any time."""

import threading
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import duckdb
import pyarrow as pa

from fewchannels.errors import FewchannelsError, InputError, StorageError
from fewchannels.runs.sql.answer import Answer
from fewchannels.runs.sql.limits import Limits
from fewchannels.runs.sql.named_queries import Query
from fewchannels.runs.sql.values import distinct, projection
from fewchannels.settings.units import size

_BATCH_ROWS = 2048  # as many as DuckDB produces at a time; more images would take much memory
_LARGER = (
    "Select fewer rows or columns, or write the result, of any size, to a file: fewchannels sql RUN QUERY -o FILE."
)
Result = TypeVar("Result")


class Asked(Protocol):
    """Protocol of an object that runs a query."""

    def cursor(self) -> tuple[duckdb.DuckDBPyConnection, int]:
        """A separate read-only connection, and the number of times the catalog was refreshed."""

    def failed(self, error: Exception, looked: int, needs: Collection[str]) -> FewchannelsError | None:
        """The error's message; None if the query may be retried."""


class Question:
    """A checked query, which runs when its result is read; reading it twice runs it twice.

    Args:
        asked: the catalog.
        text: one SELECT.
        parameters: values of its ``$names``.
        limits: limits of the query.
        query: the named query that it is, if it is one.
    """

    def __init__(
        self,
        asked: Asked,
        text: str,
        parameters: Mapping[str, Any] | None,
        limits: Limits,
        query: Query | None = None,
    ) -> None:
        self._asked, self._text, self._parameters = asked, text, dict(parameters) if parameters else None
        self._limits, self._query = limits, query
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._state = threading.Condition()
        self._looked = 0
        self._busy = False
        self._stopped: FewchannelsError | None = None

    @property
    def is_named(self) -> bool:
        """Whether it is a named query."""
        return self._query is not None

    def answer(self) -> Answer:
        """The whole answer, in memory.

        Raises:
            InputError: DuckDB does not understand the query, or a limit is reached.
            StorageError: a file of the run cannot be read.
            FewchannelsError: it was stopped, or does not fit in memory.
        """
        batches = self._batches()
        schema = next(batches)
        return Answer(pa.Table.from_batches(list(batches), schema), self._query)

    def first(self, n: int, most: int) -> tuple[Answer, int]:
        """The first ``n`` rows, 0 for all, and the number of rows: ``most + 1`` if there are more than ``most``.

        Raises the same errors as :meth:`answer`.
        """
        if not n:
            answer = self.answer()
            return answer, len(answer)
        kept: list[pa.RecordBatch] = []
        counted = 0
        for batch in self.batches():
            if counted < n or not kept:
                kept.append(batch.slice(0, n - counted))
            counted += batch.num_rows
            if counted > most:
                return Answer(pa.Table.from_batches(kept), self._query), most + 1
        return Answer(pa.Table.from_batches(kept), self._query), counted

    def batches(self, most: int | None = None) -> Iterator[pa.RecordBatch]:
        """The answer's rows as they are found, a few thousand at a time; an empty answer is one batch without rows.

        Raises the same errors as :meth:`answer`.

        Args:
            most: maximum number of rows; None or 0 for all.
        """
        batches = self._batches()
        try:
            schema, n = next(batches), 0
            for batch in batches:
                yield batch.slice(0, most - n) if most else batch
                n += batch.num_rows
                if most and n >= most:
                    return
            if not n:
                yield pa.RecordBatch.from_pylist([], schema)
        finally:
            batches.close()

    def stop(self, why: FewchannelsError | None = None) -> None:
        """End it now, from another thread; a thread that waits for its answer gets an error."""
        with self._state:
            self._stopped = self._stopped or why or FewchannelsError("the query was stopped.")
            while self._busy:
                if self._cursor is not None:
                    self._cursor.interrupt()  # has no effect if DuckDB was just about to start, so it is repeated
                self._state.wait(0.02)

    def _batches(self) -> Generator[Any, None, None]:
        """The schema, then the batches."""
        timer = None
        if self._limits.seconds is not None:
            late = InputError(
                f"the query took longer than {self._limits.seconds:g} s and was stopped. Select fewer rows or "
                f"columns, or raise "
                "--timeout."
            )
            timer = threading.Timer(self._limits.seconds, self.stop, (late,))
            timer.daemon = True
            timer.start()
        threads = ThreadPoolExecutor(1, "question") if threading.current_thread() is threading.main_thread() else None

        def work(job: Callable[[], Result]) -> Result:
            if threads is None:
                return self._work(job)
            waited = threads.submit(self._work, job)
            try:
                return waited.result()  # signals are handled here; within DuckDB they may not be
            except (KeyboardInterrupt, SystemExit):
                self.stop()
                raise

        try:
            names, reader = work(self._begin)
            schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
            yield schema
            n_rows = n_bytes = 0
            while (batch := work(lambda: self._next(reader))) is not None:
                n_rows, n_bytes = n_rows + batch.num_rows, n_bytes + batch.nbytes
                self._check(n_rows, n_bytes)
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        finally:
            if timer is not None:
                timer.cancel()
            if threads is not None:
                threads.shutdown()
            if self._cursor is not None:
                self._cursor.close()
                self._cursor = None

    def _work(self, job: Callable[[], Result]) -> Result:
        """Do a part of DuckDB's work, so that it can be stopped."""
        with self._state:
            if self._stopped is not None:
                raise self._stopped
            self._busy = True
        try:
            return job()
        except Exception:
            if self._stopped is not None:
                raise self._stopped from None
            raise
        finally:
            with self._state:
                self._busy = False
                self._state.notify_all()

    def _begin(self) -> tuple[list[str], Any]:
        """The names of the columns, and a reader of the batches."""
        while True:
            self._cursor, self._looked = self._asked.cursor()
            try:
                (statement,) = self._cursor.extract_statements(self._text)
                relation = self._cursor.sql(statement, params=self._parameters)
                names = distinct(relation.columns)
                cast = projection(names, relation.types)
                return names, (relation.project(cast) if cast else relation).to_arrow_reader(_BATCH_ROWS)
            except Exception as error:
                self._raise(error)

    def _next(self, reader: Any) -> Any | None:
        try:
            return reader.read_next_batch()
        except StopIteration:
            return None
        except Exception as error:
            self._raise(error)
            raise StorageError("files of the run were replaced while being read. Run the query again.") from None

    def _raise(self, error: Exception) -> None:
        """Translate an error into a message, unless the query may be retried."""
        if self._stopped is not None or isinstance(error, duckdb.InternalException | duckdb.FatalException):
            raise error  # a fault in DuckDB itself: show the traceback
        said = self._asked.failed(error, self._looked, self._query.needs if self._query else ())
        if said is not None:
            raise said from None

    def _check(self, n_rows: int, n_bytes: int) -> None:
        if self._limits.rows is not None and n_rows > self._limits.rows:
            raise InputError(f"the result has more than {self._limits.rows:,} rows. {_LARGER}")
        if self._limits.n_bytes is not None and n_bytes > self._limits.n_bytes:
            raise InputError(f"the result takes more than {size(self._limits.n_bytes)} of memory. {_LARGER}")
