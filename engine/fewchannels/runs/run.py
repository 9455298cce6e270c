"""Reading a run from Python: ``run = fewchannels.open_run(path)``."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewchannels.errors import InputError
from fewchannels.runs.description import read_description
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.provenance import by_version
from fewchannels.runs.sql.answer import Answer
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.storage import open_storage

if TYPE_CHECKING:
    import xarray as xr
    from PIL import Image


class Run:
    """A run on disk, finished or not: what tasks had recorded when it was opened.

    Args:
        path: the run's folder or URL.

    Raises:
        InputError: there is no run.
    """

    def __init__(self, path: str | Path) -> None:
        self.storage = open_storage(path)
        self.description = read_description(self.storage)
        self.catalog = Catalog(path)

    def __repr__(self) -> str:
        return f"Run({self.storage.url!r})"

    def sql(self, text: str) -> Answer:
        """Ask a read-only SQL query of the views ``manifest``, ``samples``, ``cells``, ``tasks`` and ``run``.

        Returns:
            The answer in memory: ``.df()``, ``.arrow()``, ``.fetchall()``, or print it.

        Raises:
            InputError: the statement is not a query, or DuckDB does not understand it.
        """
        return self.catalog.sql(text)

    def query(self, name: str, **parameters: object) -> Answer:
        """Run a named query of ``queries/``, e.g. ``run.query("massive_channels", top=3)``.

        Raises:
            InputError: an unknown query or parameter.
        """
        return self.catalog.query(name, **parameters)

    @cached_property
    def activations(self) -> "xr.Dataset":
        """The store as a lazy, labeled dataset; samples of unfinished tasks are NaN."""
        from fewchannels.runs.arrays import open_dataset

        return open_dataset(self.storage, self.description["geometry"]["n_samples"])

    def image(self, sample_id: str) -> "Image.Image":
        """The generated image of one sample.

        Raises:
            InputError: there is no such sample among the finished tasks, or it failed.
            StorageError: the image is damaged.
        """
        found = self.catalog.image(sample_id)
        if found is None:
            raise InputError(
                f"no finished sample has the id {sample_id!r}; list them with: select sample_id, prompt from samples."
            )
        from fewchannels.runs.images import opened

        return opened(found)

    def summary(self) -> dict[str, Any]:
        """What the run is and how far it is: the description with counts, bytes and files on disk."""
        ((done, failed, truncated, seconds),) = self.sql(
            "select count(*) filter (status = 'done'), count(*) filter (status = 'failed'), "
            "count(*) filter (prompt_truncated), avg(seconds) from samples"
        ).fetchall()
        ((tasks_done,),) = self.sql("select count(*) from tasks").fetchall()
        files = self.storage.list()
        return self.description | {
            "n_samples": self.description["geometry"]["n_samples"],
            "n_done": done,
            "n_failed": failed,
            "n_truncated": truncated,
            "n_tasks_done": tasks_done,
            "computed_by": by_version(Ledger(self.storage).records(self.description["fingerprint"]).values()),
            "seconds_per_sample": seconds,
            "bytes": sum(files.values()),
            "files": len(files),
            "left_over": self.storage.left_over(),
        }


def open_run(path: str | Path) -> Run:
    """Open a run for reading.

    Args:
        path: the run's folder or URL.

    Raises:
        InputError: there is no run.
    """
    return Run(path)
