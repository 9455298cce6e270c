"""``fewchannels query`` and ``fewchannels sql``: query a run; print the result as a table, JSON or CSV, or write it."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fewchannels.cli import streams
from fewchannels.cli.answers import (
    BY_CHANNEL,
    MOST_COUNTED,
    MOST_TOLD,
    print_answer,
    print_relation,
    rows_in_words,
)
from fewchannels.cli.commands import Command
from fewchannels.cli.console import errors, note, print_json, results
from fewchannels.cli.tables import Column, Wide, print_table
from fewchannels.cli.unused import refuse_unused
from fewchannels.errors import FewchannelsError, InputError, unknown
from fewchannels.files.durable import check_output

if TYPE_CHECKING:
    from fewchannels.runs.sql.catalog import Catalog
    from fewchannels.runs.sql.limits import Limits
    from fewchannels.runs.sql.named_queries import Query
    from fewchannels.runs.sql.question import Question

DEFAULT_LIMIT = 40
MOST_PRINTED = 100_000

AsJson = Annotated[bool, typer.Option("--json", help="Print rows as JSON: null for NaN, base64 for binary.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV: JSON for lists, base64 for binary.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the result to a .parquet, .csv or .json file.")
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=0, max=2**63 - 1, help=f"Maximum number of rows, 0 for all. Default: {DEFAULT_LIMIT} in a table, else all."
    ),
]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Stop the query after this time.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Register ``query`` and ``sql``."""
    app.command("query")(query)
    app.command("sql", cls=_Sql)(sql)


class _Sql(Command):
    """A command whose text may start with ``--``, SQL's comment, which is not an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {arg}" if re.match(r"--[^\s=]*\s", arg) else arg for arg in args])


def query(
    run: Annotated[str | None, typer.Argument(help="Folder or URL of the run.", show_default=False)] = None,
    name: Annotated[
        str | None, typer.Argument(help="Name of the query; --list shows them.", show_default=False)
    ] = None,
    param: Annotated[list[str] | None, typer.Option(help="Parameter as name=value; repeatable.")] = None,
    as_list: Annotated[bool, typer.Option("--list", help="List the queries; with a query's name, explain it.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    output: Output = None,
    limit: Limit = None,
    timeout: Timeout = None,
    wide: Wide = False,
    rows: Annotated[
        bool,
        typer.Option("--rows", help="Print massive_channels by layer and step, instead of channels over all of them."),
    ] = False,
) -> None:
    """Run a named query on a run, finished or not; --list shows which queries need the results of an analysis.

    On a terminal, what the rows say comes first, then the main columns; --json, --csv and --output have all of them.

    Example: fewchannels query RUN massive_channels --param step=last --param top=3
    """
    from fewchannels.runs.sql.catalog import Catalog
    from fewchannels.runs.sql.named_queries import queries

    if as_list:
        refuse_unused(["--param", "--csv", "--output", "--limit", "--timeout", "--rows"], "--list does not query a run")
        if run is not None and name is not None:
            raise InputError(f"--list explains a query and does not run it. Pass only its name: query --list {name}.")
        wanted = run
        if wanted is not None and wanted not in queries():
            raise unknown("query", wanted, queries())
        chosen = [queries()[wanted]] if wanted else list(queries().values())
        if as_json:
            print_json([_described(one) for one in chosen])
        elif wanted:
            _explain(chosen[0])
        else:
            _list(chosen, wide)
        return
    if run is None or name is None:
        raise InputError(
            "a run and a query are needed, as in: fewchannels query RUN massive_channels. --list shows all queries."
        )
    if name not in queries():
        raise unknown("query", name, queries())
    if name != BY_CHANNEL:
        refuse_unused(["--rows"], f"it applies to {BY_CHANNEL}; other queries always print their rows")
    elif as_json or as_csv or output is not None:
        refuse_unused(["--rows"], "--json, --csv and --output always have all rows")
    parameters = _parameters(queries()[name], param or [])
    limits = _limits(timeout, as_json, as_csv, output, limit)
    with Catalog(run) as catalog:
        _tell_note(catalog)
        _deliver(catalog.ask_query(name, limits, **parameters), as_json, as_csv, output, limit, wide, rows)


def sql(
    run: Annotated[str, typer.Argument(help="Folder or URL of the run.")],
    text: Annotated[
        str,
        typer.Argument(
            help="One SELECT over cells, samples, manifest, tasks, run and tables of analyses (LABEL_TABLE)."
        ),
    ],
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    output: Output = None,
    limit: Limit = None,
    timeout: Timeout = None,
    wide: Wide = False,
) -> None:
    """Run one read-only SQL query on a run.

    Example: fewchannels sql RUN "select stream, layer, avg(ratio) from cells group by all order by all"

    In a WHERE on Parquet, DuckDB may evaluate isnan(x) and isfinite(x) incorrectly; write
    if(isfinite(x), x, null) is not null instead.
    """
    from fewchannels.runs.sql.catalog import Catalog

    limits = _limits(timeout, as_json, as_csv, output, limit)
    with Catalog(run) as catalog:
        _tell_note(catalog)
        _deliver(catalog.ask(text, limits=limits), as_json, as_csv, output, limit, wide)


def _tell_note(catalog: "Catalog") -> None:
    if catalog.note:
        note(catalog.note)


def _limits(timeout: float | None, as_json: bool, as_csv: bool, output: Path | None, limit: int | None) -> "Limits":
    """Check that the options fit together; return the limits of the query."""
    from fewchannels.runs.sql.limits import Limits, default_limits
    from fewchannels.runs.sql.writing import check_format

    if as_json + as_csv + (output is not None) > 1:
        raise InputError("--json, --csv and --output cannot be combined. Pass only one of them.")
    if output is not None:
        check_format(output)
        check_output(output)
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        raise InputError(f"--timeout is {timeout:g}; it must be a positive number of seconds.")
    if limit == 0 and not (as_json or as_csv or output):
        return replace(default_limits(), rows=MOST_PRINTED, seconds=timeout)
    return Limits(seconds=timeout)


def _deliver(
    question: "Question",
    as_json: bool,
    as_csv: bool,
    output: Path | None,
    limit: int | None,
    is_wide: bool,
    every_row: bool = False,
) -> None:
    """Run a query, and print or write the result as it arrives; only the rows of a table are held in memory."""
    from fewchannels import machine
    from fewchannels.runs.sql import writing

    machine.hold_to_free_bytes()
    try:
        if output is not None:
            n = writing.write(output, lambda: question.batches(limit))
            errors.print(f"wrote {rows_in_words(n)} to {output}")
        elif as_json or as_csv:
            for text in (writing.json_texts if as_json else writing.csv_texts)(question.batches(limit)):
                streams.write(text)
        else:
            most = DEFAULT_LIMIT if limit is None else limit
            if question.is_named:
                answer, n_rows = question.first(max(MOST_TOLD, most) if most else 0, MOST_COUNTED)
                print_answer(answer, n_rows, most, is_wide=is_wide, every_row=every_row)
            else:
                print_relation(*question.first(most, MOST_COUNTED), is_wide)
    except MemoryError:
        raise FewchannelsError("the result does not fit in memory. Select fewer rows or columns.") from None


def _parameters(query: "Query", given: Sequence[str]) -> dict[str, Any]:
    """Parse ``name=value`` texts to values of the query's parameters."""
    texts: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--param is {text!r}; it must be name=value, such as --param layer=3.")
        texts[name] = value
    return query.parse(texts)


def _described(query: "Query") -> dict[str, Any]:
    described = asdict(query)
    for parameter in described["parameters"]:
        parameter["type"] = parameter["type"].__name__
    return described


def _list(chosen: Sequence["Query"], is_wide: bool) -> None:
    sentences = []
    for one in chosen:
        sentence = re.split(r"(?<=[.?]) ", one.purpose)[0]
        sentences.append(sentence + (f" Needs analyze {', '.join(one.needs)}." if one.needs else ""))
    parameters = [" ".join(f"{p.name}={p.default}" for p in one.parameters) for one in chosen]
    print_table(
        [
            Column("query", [one.name for one in chosen], style="bold"),
            Column("description", sentences, wraps=True),
            Column("parameters", parameters, wraps=True),
        ],
        is_wide,
    )
    results.print("fewchannels query --list NAME describes one query.")


def _explain(query: "Query") -> None:
    results.print(Text(query.name, style="bold"))
    results.print(query.purpose)
    for label in query.needs:
        results.print(f"Needs: fewchannels analyze {label} RUN.")
    results.print(f"One row: {query.grain.removeprefix('one row per ')}.")
    for title, lines in (
        (
            "parameters",
            [(f"{p.name}={p.default}", " or ".join(p.choices) or p.type.__name__, p.doc) for p in query.parameters],
        ),
        ("columns", [(column.name, column.unit, column.doc) for column in query.columns]),
    ):
        table = Table(box=None, title=title, title_justify="left", show_header=False, pad_edge=False)
        for line in lines:
            table.add_row(*map(Text, line))
        if lines:
            results.print(table)
