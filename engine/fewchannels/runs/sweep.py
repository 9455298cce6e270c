"""A sweep on disk, for reading."""

from pathlib import Path
from typing import TYPE_CHECKING

from fewchannels.errors import InputError
from fewchannels.runs.description import read_sweep
from fewchannels.runs.opened import Opened, as_html
from fewchannels.settings.arguments import checked

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image


class StoredSweep(Opened):
    """A sweep on disk, finished or not: what tasks had recorded when it was opened.

    Args:
        path: the sweep's folder or URL.

    Raises:
        InputError: there is no sweep.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, read_sweep)

    @property
    def conditions(self) -> "pd.DataFrame":
        """The conditions, one row each."""
        return self.sql("select * from conditions order by condition").df()

    @property
    def edits(self) -> "pd.DataFrame":
        """One row per image, with its settings and metrics, without the images: see :meth:`image`."""
        return self.sql("select * exclude (image) from edits order by item, condition, role").df()

    @property
    def effects(self) -> "pd.DataFrame":
        """Means of every metric in every group of conditions that differ in the trial only, with 95 % intervals.

        Raises:
            InputError: the effects have not been computed yet.
        """
        if "effects" not in self.catalog.results:
            raise InputError(
                f"{self.storage.url!r} has no effects yet. Its command computes them at the end; fewchannels plot "
                f"{self.storage.url} computes them for the finished items."
            )
        return self.sql("select * from effects_means order by condition, metric").df()

    @checked
    def image(self, item: int, condition: int | None = None, *, role: str = "edited") -> "Image.Image":
        """One image.

        Args:
            item: index of the item in the sweep.
            condition: number of the condition; None for an image that is not edited.
            role: without a condition, ``undisturbed`` (the unedited image) or ``source``.

        Raises:
            InputError: there is no such image among the finished items.
            StorageError: the image is damaged.
        """
        from fewchannels.runs.images import opened

        where = (
            f"role = 'edited' and condition = {int(condition):d}" if condition is not None else f"role = {_role(role)}"
        )
        found = self.sql(f"select image from edits where item = {int(item):d} and {where} limit 1").fetchone()
        if found is None or found[0] is None:
            raise InputError(
                f"there is no image of item {item} with {where}. List them with: select item, condition, role, status "
                "from edits."
            )
        return opened(found[0])

    def _repr_html_(self) -> str:
        """A short table for notebooks."""
        about = self.description
        ((n_items,),) = self.sql("select count(distinct item) from edits").fetchall()
        rows = {
            "sweep": self.storage.url,
            "model": about["model"]["name"],
            "items": f"{n_items:,} finished, {about['n_tasks']:,} tasks in all",
            "conditions": f"{about['n_conditions']:,}",
        }
        return as_html(rows)


def _role(role: str) -> str:
    if role not in ("undisturbed", "source"):
        raise InputError(f"role is {role!r}; without a condition it is undisturbed or source.")
    return f"'{role}'"
