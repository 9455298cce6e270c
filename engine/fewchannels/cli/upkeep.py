"""``fewchannels runs merge``, ``compact`` and ``export``: combine, compact and extract runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from fewchannels.cli.console import errors, print_json, progress_bar, results, say
from fewchannels.errors import InputError

AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


class Kind(StrEnum):
    """Format of an export."""

    run = "run"
    parquet = "parquet"


def merge(
    runs: Annotated[list[str], typer.Argument(help="Folders or URLs of two or more runs with the same settings.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL of the new run.")],
    as_json: AsJson = False,
) -> None:
    """Merge runs that were captured separately, such as on different clusters, into a new one.

    Finished samples come first; capturing with the new run's manifest.parquet generates the remaining ones.

    Example: fewchannels runs merge RUN_A RUN_B --out RUN
    """
    from fewchannels.runs.lease import hold
    from fewchannels.runs.storage import open_storage
    from fewchannels.runs.upkeep.merge import merge

    storages, target = [open_storage(run) for run in runs], open_storage(out)
    with hold(target, on_wait=say), _bar("merging") as on_progress:
        counts = merge(storages, target, on_progress)
    _tell(
        counts | {"out": out},
        f"{counts['n_done']:,} of {counts['n_samples']:,} samples are done in {out}; {counts['n_twice']:,} were "
        "in more than one run and were taken from the first.",
        as_json,
    )


def compact(run: Annotated[str, typer.Argument(help="Folder or URL of the run.")], as_json: AsJson = False) -> None:
    """Merge a run's many small Parquet files into a few large ones, so that queries open fewer. Arrays are unchanged.

    Example: fewchannels runs compact RUN
    """
    from fewchannels.runs.description import read_description
    from fewchannels.runs.layout import Layout
    from fewchannels.runs.lease import hold
    from fewchannels.runs.ledger import Ledger
    from fewchannels.runs.parts import compact
    from fewchannels.runs.storage import open_storage

    storage = open_storage(run)
    description = read_description(storage)
    layout = Layout.of(description)
    before = _n_parts(run)
    with hold(storage, on_wait=say), _bar("compacting") as on_progress:
        compact(storage, Ledger(storage).records(description["fingerprint"]), layout.shard_samples, on_progress)
    after = _n_parts(run)
    _tell({"n_before": before, "n_after": after}, f"{before:,} Parquet files are now {after:,} in {run}", as_json)


def export(
    run: Annotated[str, typer.Argument(help="Folder or URL of the run.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL of the export.")],
    where: Annotated[
        str, typer.Option(help="SQL condition over the columns of samples and the manifest.", show_default="all")
    ] = "true",
    kind: Annotated[
        Kind, typer.Option("--as", help="Format: a run, or Parquet for Hugging Face's load_dataset.")
    ] = Kind.run,
    as_json: AsJson = False,
) -> None:
    """Export a subset of a run as a new run, or as Parquet with images.

    Example: fewchannels runs export RUN --where "prompt like '%star%'" --out STARS
    """
    from fewchannels.runs.lease import hold
    from fewchannels.runs.sql.catalog import Catalog
    from fewchannels.runs.storage import open_storage
    from fewchannels.runs.upkeep import datasets, merge

    storage, target = open_storage(run), open_storage(out)
    if storage.url.rstrip("/") == target.url.rstrip("/"):
        raise InputError(f"--out is {out!r}, the run itself. Choose another folder or URL.")
    with errors.status("selecting samples"), Catalog(run) as catalog:
        samples = datasets.chosen_samples(catalog, where)
    if not samples:
        raise InputError("no finished sample meets the --where condition, so nothing was written.")
    if kind is Kind.parquet:
        datasets.check_place(target)
    write = datasets.export if kind is Kind.parquet else merge.export
    with hold(target, on_wait=say), _bar("exporting") as on_progress:
        write(storage, samples, target, on_progress)
    _tell(
        {"n_samples": len(samples), "out": out},
        f"{len(samples):,} sample{' is' if len(samples) == 1 else 's are'} in {out}",
        as_json,
    )


def _n_parts(run: str) -> int:
    from fewchannels.runs.parts import TABLES
    from fewchannels.runs.storage import open_storage

    return sum(len(open_storage(run).list(f"{table}/")) for table in TABLES)


def _tell(outcome: dict[str, object], text: str, as_json: bool) -> None:
    if as_json:
        print_json(outcome)
    else:
        results.print(text, soft_wrap=True)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    with progress_bar() as bar:
        shown = bar.add_task(what, total=None, rate="")
        yield lambda done, total: bar.update(shown, completed=done, total=total)
