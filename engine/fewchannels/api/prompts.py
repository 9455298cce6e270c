"""Prompts: a manifest in memory, made from a table, a list or a data frame."""

import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fewchannels import manifest
from fewchannels.api.messages import for_python, in_python
from fewchannels.api.progress import counting
from fewchannels.errors import FewchannelsError, InputError, unknown, warn
from fewchannels.files.durable import as_url, check_output, expanded, write
from fewchannels.manifest import ALIASES
from fewchannels.runs.opened import as_html
from fewchannels.settings.arguments import checked
from fewchannels.tables import schema

if TYPE_CHECKING:
    import pandas as pd

_NOTES_SHOWN = 5


class Prompts:
    """Validated samples, each a prompt and a seed, with the columns of their source.

    Created by :func:`prompts`. Selecting returns new prompts; nothing is changed in place.

    Args:
        data: a manifest, Parquet.
        name: name of the source, for messages.

    Raises:
        InputError: the data are not a manifest.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._manifest = manifest.Manifest.of(data, name)
        self.name = name

    def __len__(self) -> int:
        """Number of samples."""
        return self._manifest.n_samples

    def __repr__(self) -> str:
        return f"Prompts({len(self):,} samples from {self.name})"

    @cached_property
    def _frame(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_parquet(io.BytesIO(self._manifest.data))

    def df(self) -> "pd.DataFrame":
        """The samples as a data frame: ``sample_id``, ``prompt``, ``seed``, settings, and the source's own columns."""
        return self._frame.copy()

    to_pandas = df

    def __getitem__(self, rows: "int | slice | Sequence[bool] | np.ndarray | pd.Series") -> "Prompts":
        """Select samples by an index, a slice, or a boolean mask.

        Raises:
            IndexError: there is no sample of that index.
            InputError: the argument is none of these, or it selects nothing.

        Example:
            >>> some = fc.prompts(["a red star", "a blue circle"])
            >>> some[some.df().prompt.str.contains("star")]
            Prompts(1 samples from a list of 2 prompts)
        """
        if isinstance(rows, slice):
            return self._of(range(*rows.indices(len(self))))
        if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
            if not -len(self) <= int(rows) < len(self):
                raise IndexError(f"there is no sample {rows}; there are {len(self):,}.")
            return self._of([int(rows) % len(self)])
        chosen = np.asarray(rows)
        if chosen.dtype != bool or chosen.shape != (len(self),):
            raise InputError(
                f"samples are selected by an index, a slice, or a boolean mask of length {len(self):,}; this is a "
                f"{type(rows).__name__} of shape {chosen.shape}, {chosen.dtype}. Pass prompts[:64], for example."
            )
        return self._of(np.flatnonzero(chosen))

    @checked
    def sample(self, n: int, *, by: str | None = None, seed: int = 0) -> "Prompts":
        """Draw samples at random, without replacement; they keep their order.

        Args:
            n: number of samples.
            by: column of categories to draw equally many samples from, as far as each category has enough.
            seed: random seed of the draw.

        Raises:
            InputError: there are fewer samples than ``n``, the column does not exist, or some samples have no category.

        Example:
            >>> fc.prompts(["a red star", "a blue circle", "a green square"]).sample(2)
            Prompts(2 samples from a list of 3 prompts)
        """
        if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= len(self):
            raise InputError(f"n is {n!r}; there are {len(self):,} samples. Pass a number from 1 to {len(self):,}.")
        random = np.random.default_rng(seed)
        if by is None:
            return self._of(np.sort(random.choice(len(self), n, replace=False)))
        if by not in self._frame:
            raise unknown("column of the prompts", by, self._frame.columns)
        column = self._frame[by]
        if lacking := int(column.isna().sum()):
            raise InputError(
                f"{lacking:,} of {len(self):,} samples have no {by}. Leave them out first: "
                f"prompts[prompts.df()[{by!r}].notna()]."
            )
        groups = [random.permutation(np.flatnonzero(column == value)) for value in column.unique()]
        random.shuffle(groups)  # the first ones get one more where n does not divide
        shares = _shares([len(own) for own in groups], int(n))
        return self._of(np.sort(np.concatenate([own[:k] for own, k in zip(groups, shares, strict=True)])))

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the manifest, for ``fewchannels capture --manifest``.

        Raises:
            InputError: the path cannot be written.
            StorageError: writing failed.
        """
        out = expanded(path)
        check_output(out)
        write(out, self._manifest.data)
        return out

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A temporary file with the manifest."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "manifest.parquet")
            path.write_bytes(self._manifest.data)
            yield path

    def _of(self, rows: Any) -> "Prompts":
        places = [(0, int(row)) for row in rows]
        if not places:
            raise InputError(f"no sample of {self.name} is selected. Select at least one.")
        return Prompts(bytes(manifest.select([self._manifest.open()], places)), self.name)

    def _repr_html_(self) -> str:
        """A short table for notebooks."""
        frame = self._frame
        own = [f"{name}, {frame[name].nunique():,} values" for name in frame if name not in schema("manifest").names]
        rows = {
            "prompts": self.name,
            "samples": f"{len(self):,}",
            "distinct prompts": f"{frame.prompt.nunique():,}",
            "seeds": f"{frame.seed.nunique():,}",
            "columns": "; ".join(own) or "none of its own",
        }
        return as_html(rows)


@checked
def prompts(
    source: "Prompts | str | Path | Iterable[str] | pd.DataFrame",
    *,
    prompt_column: str | None = None,
    seeds: int | Sequence[int] | None = None,
    ignore_columns: Sequence[str] = (),
    on_error: Literal["fail", "skip"] = "fail",
    progress: bool = True,
) -> Prompts:
    """Make validated samples from a table, a list of prompts, or a data frame.

    Columns named ``seed``, ``negative_prompt``, ``width``, ``height``, ``steps``, ``guidance``, ``mask`` and
    ``reference`` override that setting for their sample; all other columns are kept, as categories for analyses.

    Args:
        source: a file (.csv, .tsv, .jsonl, .json, .parquet, .txt), a folder of files, ``"demo:N"`` for N captions of
            the demo model, a manifest, a list of prompts, or a data frame. Prompts are returned unchanged.
        prompt_column: column of prompts; None for ``prompt``, ``caption``, ``text`` or a similar name.
        seeds: seeds of every prompt; None for the column ``seed`` or, without one, 0.
        ignore_columns: columns to leave out.
        on_error: what to do on bad rows: ``"fail"`` raises an error, ``"skip"`` leaves them out.
        progress: whether to show a progress bar if this takes more than two seconds.

    Raises:
        InputError: the file does not exist, or a row or a column is not valid.

    Example:
        >>> some = fc.prompts(["a small red star", "a large blue circle"], seeds=range(3))
        >>> len(some), some.df().seed.tolist()
        (6, [0, 1, 2, 0, 1, 2])
    """
    if isinstance(source, Prompts):
        return source
    chosen = None if seeds is None else _seeds(seeds)
    with in_python(), tempfile.TemporaryDirectory() as folder:
        path, name = _as_file(source, Path(folder))
        if isinstance(source, str | Path) and manifest.is_manifest(path):
            if prompt_column is not None or seeds is not None or ignore_columns:
                raise InputError(f"{path!r} is a manifest, which already has prompts and seeds. Pass only its path.")
            return Prompts(manifest.Manifest.read(path).data, name)
        table = Path(folder, "manifest.parquet")
        with _named(path, name), counting("reading rows", "row", progress) as update:
            report = manifest.ingest(
                [path],
                table,
                prompt_column=prompt_column,
                ignore_columns=ignore_columns,
                seeds=chosen,
                on_error=on_error,
                progress=lambda done, total, n: update(n, n * total // done if done else n),
            )
        for note in (*map(str, report.bad_rows), *report.notes)[:_NOTES_SHOWN]:
            warn(for_python(note.replace(path, name)))
        for each in report.settings:
            if each.column.casefold() != each.name:
                warn(
                    f"the column {each.column!r} of {name} sets the samples' {each.name}. Rename it to keep it as a "
                    f"column of your own, or leave it out with ignore_columns=[{each.column!r}]."
                )
        return Prompts(table.read_bytes(), name)


@contextmanager
def _named(path: str, name: str) -> Iterator[None]:
    """Replace the path of a temporary file in errors by the caller's name of the source."""
    try:
        yield
    except FewchannelsError as error:
        error.args = (str(error).replace(path, name),)
        raise


@checked
def ingest(source: "str | Path | Sequence[str] | pd.DataFrame", output: str | Path, **options: Any) -> Prompts:
    """Write a manifest, as ``fewchannels manifest ingest`` does.

    Args:
        source: as for :func:`prompts`.
        output: the Parquet file.
        **options: further arguments of :func:`prompts`.

    Raises:
        InputError: the file does not exist, or a row or a column is not valid; nothing was written.
        StorageError: writing failed.

    Example:
        >>> fc.ingest("demo:16", "manifest.parquet")
        Prompts(16 samples from demo:16)
    """
    with in_python():
        check_output(expanded(output))
    found = prompts(source, **options)
    found.save(output)
    return found


def _seeds(seeds: Any) -> tuple[int, ...]:
    several = tuple(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else (seeds,)
    if not all(isinstance(each, Integral) and not isinstance(each, bool) for each in several):
        raise InputError(f"seeds is {seeds!r:.80}; pass a whole number, or several, such as range(4).")
    return tuple(map(int, several))


def _as_file(source: Any, folder: Path) -> tuple[str, str]:
    """The path of a source's file, and its name in messages."""
    if isinstance(source, str | Path):
        text = str(source)
        if not text.startswith("demo:"):
            text = str(expanded(text))
        if " " in text and not Path(text).exists():
            raise InputError(f"there is no file named {text!r}. To use it as a prompt, pass a list: [{text!r}].")
        return text, str(source)
    import pandas as pd

    name, columns = _as_columns(source)
    path = folder / "prompts.parquet"
    try:
        (columns if isinstance(columns, pd.DataFrame) else pd.DataFrame(columns)).to_parquet(path, index=False)
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:  # pyarrow's own are among them
        raise InputError(
            f"{name} cannot be kept as a table: {str(error).splitlines()[0]}. Give every column a name of its own and "
            "values of one kind: text, numbers, truth values or dates."
        ) from None
    return str(path), name


def _as_columns(source: Any) -> "tuple[str, pd.DataFrame | dict[str, list[str]]]":
    """The name of a frame or a list of prompts in messages, and its columns."""
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return f"a data frame of {len(source):,} rows", _with_absolute_paths(source)
    texts = list(source) if isinstance(source, Iterable) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{source!r:.80} is not a source of prompts. Pass a file, a list of texts, or a data frame with a column "
            "prompt."
        )
    return f"a list of {len(texts):,} prompt{'s' * (len(texts) != 1)}", {"prompt": texts}


def _with_absolute_paths(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A copy of a frame with absolute paths: in a file, they would be relative to that file."""
    named = {column: ALIASES.get(str(column).casefold(), str(column).casefold()) for column in frame}

    def absolute(value: Any) -> Any:
        is_relative = isinstance(value, str) and value and not as_url(Path(value)) and not Path(value).is_absolute()
        return str(expanded(value).absolute()) if is_relative else value

    own = [column for column, name in named.items() if name in ("mask", "reference")]
    changed = frame.copy()
    for column in own:
        changed[column] = frame[column].map(absolute)
    return changed


def _shares(sizes: Sequence[int], n: int) -> list[int]:
    """How many of each group make n in all, as evenly as their sizes allow; the first ones get one more."""
    shares = [0] * len(sizes)
    while n:
        left = [i for i, size in enumerate(sizes) if shares[i] < size]
        each = max(1, n // len(left))
        for i in left:
            taken = min(each, sizes[i] - shares[i], n)
            shares[i] += taken
            n -= taken
    return shares
