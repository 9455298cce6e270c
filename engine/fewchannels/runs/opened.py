"""Base class of opened runs and sweeps: location, description, and SQL."""

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewchannels.runs.sql.answer import Answer
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import FolderStorage, Storage, open_storage
from fewchannels.settings.arguments import checked


class Opened:
    """A run or a sweep on disk, finished or not: the tasks that were recorded when it was opened.

    Args:
        path: folder or URL.
        read: reads its description.

    Raises:
        InputError: there is no run or sweep.
    """

    def __init__(self, path: str | Path, read: Callable[[Storage], dict[str, Any]]) -> None:
        self._read = read
        self.storage = open_storage(path)
        self.description = read(self.storage)
        self.catalog = Catalog(path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, also in other processes, open it again, and so see what was recorded by then."""
        return type(self), (self.place,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.storage.url!r})"

    @property
    def place(self) -> str:
        """Its folder or URL, from any working directory."""
        return str(self.storage.path) if isinstance(self.storage, FolderStorage) else self.storage.url

    def reopen(self) -> None:
        """Read its current state: what tasks and analyses have recorded, and samples that were added."""
        self.catalog.close()
        self.description = self._read(self.storage)
        self.catalog = Catalog(self.place)
        self.__dict__.pop("activations", None)  # cached on first access

    @checked
    def sql(self, text: str) -> Answer:
        """Run a read-only SQL query on its views: ``manifest``, ``tasks``, those of results, and the following.

        A run has ``samples``, ``cells`` and ``run``; a sweep ``conditions``, ``edits``, ``pairs`` and ``sweep``.

        Returns:
            The answer in memory: ``.df()``, ``.arrow()``, ``.fetchall()``, or print it.

        Raises:
            InputError: the statement is not a query, or DuckDB does not understand it.
        """
        return self.catalog.sql(text)

    @checked
    def query(self, name: str, **parameters: object) -> Answer:
        """Run a named query of ``queries/``, e.g. ``run.query("massive_channels", top=3)``.

        Raises:
            InputError: an unknown query or parameter.
        """
        return self.catalog.query(name, **parameters)


def as_html(rows: Mapping[str, object]) -> str:
    """A table of names and values, for notebooks."""
    cells = (f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"
