"""Report of an ingest, counted while it reads."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewchannels.files.durable import as_url
from fewchannels.manifest.rows import PATH_COLUMNS, BadRow, Checked

_KEPT_BAD_ROWS = 10


@dataclass(frozen=True)
class OwnSetting:
    """A column that overrides a setting of the run for its rows.

    Attributes:
        name: name of the setting, a column of the manifest.
        column: its name in the source.
        n_rows: number of kept rows that set it.
        lowest: lowest value; None if values are text or there are none.
        highest: highest value; None if values are text or there are none.
    """

    name: str
    column: str
    n_rows: int
    lowest: float | None
    highest: float | None

    @property
    def values(self) -> str:
        """Its range as text, such as ``25 to 50``; empty for text."""
        if self.lowest is None or self.highest is None:
            return ""
        one, other = (str(value) if isinstance(value, int) else f"{value:g}" for value in (self.lowest, self.highest))
        return one if one == other else f"{one} to {other}"


@dataclass(frozen=True)
class IngestReport:
    """Report of an ingest. ``n_written == (n_rows - n_bad) * seeds per prompt - n_duplicates``.

    Attributes:
        output: the manifest.
        sources: sources as given by the user.
        prompt_column: the column or columns that were used as the prompt.
        n_rows: rows read, including bad ones, without blank lines.
        n_written: samples in the manifest.
        n_duplicates: samples left out because another sample has the same id.
        n_differing: number of these whose extra columns differ from those of the sample that
            was kept.
        differing_columns: the extra columns in which any of them differs.
        n_bad: rows left out because they break a rule.
        n_blank: blank lines.
        bad_rows: the first bad rows.
        settings: columns that override settings for their rows.
        ignored_columns: the sources' columns that were left out at the caller's request.
        notes: notes for the user about columns, quotes and missing files.
        n_files: distinct files that masks and references name.
        n_missing: number of these that do not exist.
    """

    output: Path
    sources: tuple[str, ...]
    prompt_column: str
    n_rows: int
    n_written: int
    n_duplicates: int
    n_differing: int
    differing_columns: tuple[str, ...]
    n_bad: int
    n_blank: int
    bad_rows: tuple[BadRow, ...]
    settings: tuple[OwnSetting, ...]
    ignored_columns: tuple[str, ...]
    notes: tuple[str, ...]
    n_files: int = 0
    n_missing: int = 0


@dataclass
class Tally:
    """Counts of rows, and of the settings that they override."""

    n_rows: int = 0
    n_bad: int = 0
    n_blank: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    files: dict[str, bool] = field(default_factory=dict)
    _n_set: Counter[tuple[str, str]] = field(default_factory=Counter)
    _ranges: dict[tuple[str, str], tuple[Any, Any]] = field(default_factory=dict)

    def count(self, checked: Checked, taken: Mapping[str, str], n_blank: int) -> None:
        """Count a batch.

        Args:
            checked: the batch.
            taken: manifest column -> source column.
            n_blank: number of blank lines.
        """
        self.n_rows += len(checked.good) + len(checked.bad)
        self.n_bad += len(checked.bad)
        self.n_blank += n_blank
        self.bad_rows += checked.bad[: _KEPT_BAD_ROWS - len(self.bad_rows)]
        for name, values in checked.columns.items():
            if name == "prompt":
                continue
            key = name, taken[name]
            found = [values[row] for row in checked.good if values[row] is not None]
            self._n_set[key] += len(found)
            if found and not isinstance(found[0], str):
                lowest, highest = self._ranges.get(key, (found[0], found[0]))
                self._ranges[key] = min(lowest, *found), max(highest, *found)

    def look(self, checked: Checked) -> None:
        """Note which of the files that good rows name exist."""
        for name in PATH_COLUMNS:
            values = checked.columns.get(name, ())
            for path in {values[row] for row in checked.good} - {None} if values else ():
                if path not in self.files:
                    self.files[path] = bool(as_url(Path(path))) or os.path.isfile(path)

    def notes(self) -> list[str]:
        """Notes about missing files."""
        missing = [path for path, is_there in self.files.items() if not is_there]
        if not missing:
            return []
        which = f"{len(missing):,} of the {len(self.files):,} files in the columns mask and reference do not exist"
        return [f"{which}, such as {min(missing)!r}"]

    def settings(self) -> tuple[OwnSetting, ...]:
        """The columns that override a setting for any row."""
        return tuple(
            OwnSetting(name, column, n, *self._ranges.get((name, column), (None, None)))
            for (name, column), n in self._n_set.items()
        )
