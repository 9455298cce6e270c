"""``fewchannels manifest``: create and inspect manifests."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fewchannels.cli.commands import Commands
from fewchannels.cli.console import duration, errors, print_json, progress_bar, results
from fewchannels.cli.options import ruled
from fewchannels.errors import InputError
from fewchannels.files.durable import check_output
from fewchannels.settings.ranges import within
from fewchannels.settings.units import size

if TYPE_CHECKING:
    from fewchannels.manifest import IngestReport, OwnSetting

app = Commands(no_args_is_help=True)
_BAR_AFTER_S = 2.0
_NOTES_SHOWN = 20
_LIMIT = within(1, 10**9, "Keep only the first prompts, each with all its seeds.")
_SAMPLE = within(1, 10**9, "Keep only a random sample of prompts, the same for the same prompts in any order.")
_PARTS = within(2, 10_000, "Number of parts.")


class OnError(StrEnum):
    """How to handle bad rows."""

    FAIL = "fail"
    SKIP = "skip"


def register(commands: typer.Typer) -> None:
    """Register the command group."""
    commands.add_typer(app, name="manifest", help="Create and inspect manifests: tables of prompts and seeds.")


@app.callback()
def _group() -> None:
    """Create and inspect manifests: tables of prompts and seeds."""


@app.command()
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .txt: one prompt a line), folders of them, or "
            "demo:N for N synthetic captions of the demo model."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write.")],
    prompt_column: Annotated[
        str | None, typer.Option(help="Column of prompts.", show_default="prompt, caption, text, description, ...")
    ] = None,
    ignore_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave this column out, such as one whose name would set the samples' steps; repeatable.",
            metavar="NAME",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds for each prompt: 0,1,2, 0-3 or 0:4.", show_default="the seed column, else 0"),
    ] = None,
    limit: Annotated[int | None, ruled(_LIMIT)] = None,
    sample: Annotated[int | None, ruled(_SAMPLE)] = None,
    by: Annotated[
        str | None, typer.Option(help="With --sample: spread the prompts evenly over this column's values.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="Keep only samples that meet this SQL condition on the manifest's columns; those of CSV are text."
        ),
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="On bad rows, fail and write nothing, or skip them.")
    ] = OnError.FAIL,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Create a manifest from tables of prompts: validate every row, give every sample an id, drop duplicates.

    Columns named seed, negative_prompt, width, height, steps, guidance, mask and reference override that setting for
    their sample, as the report lists; all other columns are kept, except those of --ignore-column. With several files,
    the column source_file names each row's file. In TSV, quotes are part of the text.

    Example: fewchannels manifest ingest prompts.csv more.jsonl -o manifest.parquet --seeds 0:4
    Example: fewchannels manifest ingest prompts.csv -o manifest.parquet --sample 100 --by category
    """
    from fewchannels import manifest

    if by is not None and sample is None:
        raise InputError("--by spreads a random sample over a column. Give --sample N with it, or omit it.")
    if limit is not None and sample is not None:
        raise InputError("--limit and --sample both choose prompts. Pass only one of them.")
    is_part = limit is not None or sample is not None or where is not None
    began = time.monotonic()
    with ExitStack() as stack:
        whole = output
        if is_part:
            check_output(output)
            whole = Path(stack.enter_context(TemporaryDirectory(prefix="fewchannels-"))) / "whole.parquet"
        progress = stack.enter_context(_progress())
        report = manifest.ingest(
            sources,
            whole,
            prompt_column=prompt_column,
            ignore_columns=ignore_column or (),
            seeds=None if seeds is None else manifest.parse_seeds(seeds),
            on_error=on_error.value,
            progress=progress,
        )
        n_whole = report.n_written
        if is_part:
            kept = manifest.choose(
                whole, output, limit=limit, sample=sample, by=by, matching=_matching(whole, where) if where else None
            )
            report = replace(report, output=output, n_written=kept)
    if as_json:
        print_json(asdict(report) | {"output": str(report.output)} | ({"n_before_choice": n_whole} if is_part else {}))
    else:
        _print_report(report, time.monotonic() - began, n_whole)


def _matching(path: Path, where: str) -> list[int]:
    from fewchannels.runs.sql.matching import matching

    return matching(path, where)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Parquet manifest.", metavar="MANIFEST")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Validate a manifest and show its contents: samples, prompts, seeds, settings and extra columns.

    Example: fewchannels manifest show manifest.parquet
    """
    from fewchannels import manifest

    about = {"digest": manifest.Manifest.read(path).sha256} | manifest.summary(path)
    if as_json:
        print_json(about)
    else:
        _print_summary(path, about)


@app.command()
def split(
    path: Annotated[Path, typer.Argument(help="Parquet manifest.", metavar="MANIFEST")],
    parts: Annotated[int, ruled(_PARTS)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for part-0000.parquet and so on.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Split a manifest into parts of equal size, to be captured by independent jobs, such as a SLURM array.

    Each part is captured as a run of its own; runs merge joins them.

    Example: fewchannels manifest split manifest.parquet --parts 16 -o PARTS
    """
    from fewchannels import manifest

    made = manifest.split(path, parts, output)
    if as_json:
        print_json([{"path": str(each.path), "n_samples": each.n_samples} for each in made])
        return
    sizes = sorted({each.n_samples for each in made})
    counted = " or ".join(f"{n:,}" for n in sizes)
    results.print(f"{len(made):,} parts of {counted} samples: {made[0].path} to {made[-1].path.name}", soft_wrap=True)
    errors.print(
        f"Next: fewchannels capture --manifest {shlex.quote(str(made[0].path))} --out RUNS/0000, and so on; then "
        "fewchannels runs merge RUNS/* --out RUN",
        soft_wrap=True,
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int, int], None]]:
    """Yield a callback of bytes read, total bytes and rows read, with a progress bar once reading takes a while."""
    began = time.monotonic()
    bar = progress_bar()
    shown = bar.add_task("reading rows", total=None, rate="")

    def update(done_bytes: int, total_bytes: int, n_rows: int) -> None:
        if not bar.live.is_started and errors.is_terminal and time.monotonic() - began > _BAR_AFTER_S:
            bar.start()
        n_expected = n_rows * total_bytes // done_bytes if done_bytes else None
        bar.update(shown, completed=n_rows, total=n_expected)

    try:
        yield update
    finally:
        bar.stop()


def _print_report(report: "IngestReport", seconds: float, n_whole: int) -> None:
    for row in report.bad_rows:
        errors.print(f"skipped {row}", style="yellow", soft_wrap=True)
    if report.n_bad > len(report.bad_rows):
        errors.print(f"skipped {report.n_bad - len(report.bad_rows):,} more", style="yellow")
    for note in report.notes[:_NOTES_SHOWN]:
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
    if len(report.notes) > _NOTES_SHOWN:
        errors.print(f"{len(report.notes) - _NOTES_SHOWN:,} more notes are in --json", style="yellow")
    table = _table(report.output)
    chosen = f", chosen from {n_whole:,}" if report.n_written < n_whole else ""
    table.add_row("samples", f"{report.n_written:,}{chosen}")
    table.add_row("rows read", f"{report.n_rows:,}")
    table.add_row("prompts from", _literal(report.prompt_column))
    for each in report.settings:
        table.add_row(each.name, _own_setting(each, report.n_rows - report.n_bad))
    if report.ignored_columns:
        table.add_row("ignored", _literal(", ".join(report.ignored_columns)))
    table.add_row("duplicates", f"{report.n_duplicates:,} left out")
    if report.n_differing:
        others = ", ".join(report.differing_columns)
        table.add_row("", _literal(f"{report.n_differing:,} of them differ from the sample that is kept, in {others}"))
    table.add_row("bad rows", f"{report.n_bad:,} left out")
    table.add_row("blank lines", f"{report.n_blank:,}")
    if report.n_files:
        table.add_row("files named", f"{report.n_files:,}, {report.n_missing:,} missing")
    table.add_row("took", duration(seconds))
    results.print(table)
    errors.print(
        f"Next: fewchannels capture --model demo --manifest {shlex.quote(str(report.output))} --out RUN", soft_wrap=True
    )


def _own_setting(setting: "OwnSetting", n_rows: int) -> Text:
    from fewchannels.manifest.columns import ignoring

    values = f": {setting.values} in" if setting.values else " in"
    n = f"{setting.n_rows:,}" if setting.n_rows == n_rows else f"{setting.n_rows:,} of {n_rows:,}"
    return _literal(f"from {setting.column!r}{values} {n} rows; leave it out with {ignoring(setting.column)}")


def _print_summary(path: Path, about: dict[str, Any]) -> None:
    table = _table(path)
    seeds, lengths = about["seeds"], about["prompt_characters"]
    table.add_row("samples", f"{about['n_samples']:,}")
    table.add_row("prompts", f"{about['n_prompts']:,} distinct")
    table.add_row("seeds", f"{seeds['n']:,} distinct, {seeds['min']} to {seeds['max']}")
    table.add_row(
        "characters", f"{lengths['0']} to {lengths['100']}, median {lengths['50']}, 95 % within {lengths['95']}"
    )
    for name, n in about["optional"].items():
        if n:
            table.add_row(name, f"set in {n:,}")
    table.add_row("not set", ", ".join(name for name, n in about["optional"].items() if not n))
    for side in about["sizes"]:
        if side["height"] or side["width"]:
            table.add_row("size", f"{side['height'] or 'any'} high, {side['width'] or 'any'} wide: {side['n']:,}")
    for name, column in about["extra"].items():
        commonest = ", ".join(f"{value['value']!r} {value['n']:,}" for value in column["commonest"])
        many = "" if column["n_distinct"] is None else f"{column['n_distinct']:,} distinct: "
        table.add_row(_literal(name), Text(f"{column['type']}, {many}{commonest}".removesuffix(", ")))
    table.add_row("file", size(about["bytes"]))
    table.add_row("digest", about["digest"])
    results.print(table)


def _table(path: Path) -> Table:
    table = Table(title=_literal(str(path)), title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value", overflow="fold")
    return table


def _literal(text: str) -> Text:
    """Escape text of unknown origin: no markup, and control characters spelled out."""
    return Text(text if text.isprintable() else repr(text))
