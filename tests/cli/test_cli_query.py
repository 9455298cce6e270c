"""``fewchannels query`` and ``fewchannels sql``: what is printed, what is written, what is refused."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from made_run import make_run
from rich.console import Console
from typer.testing import CliRunner, Result

from fewchannels.cli import answers, tables
from fewchannels.cli import query as cli
from fewchannels.errors import InputError, StorageError
from fewchannels.runs.sql.named_queries import queries

app = typer.Typer()
cli.register(app)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two samples, 30 layers, one channel in all of them; the second prompt is hostile."""
    cells = [{"sample": i, "layer": layer, "top_channels": [3]} for i in range(2) for layer in range(30)]
    samples = [{"sample": 1, "prompt": "[bold red]a \x1b[31mcat[/]\n" + "and on " * 20, "image": b"\x89PNG\x00"}]
    return str(make_run(tmp_path_factory.mktemp("cli") / "run", cells, samples))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def lines(*arguments: object) -> list[str]:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def test_a_query_prints_a_table_with_units(run: str) -> None:
    shown = lines("query", run, "massive_channels", "--param", "layer=7")
    head = next(i for i, line in enumerate(shown) if line.startswith("layer"))
    assert shown[0].startswith("Channel 3 is a top channel at layer 7, step 0, of 100 % of the samples")
    assert shown[head].split() == ["layer", "step", "channel", "n_samples", "frequency", "mean_ratio", "mean_rank"]
    assert shown[head + 1].split()[:4] == ["index", "index", "index", "samples"]
    row = next(line for line in shown if line.startswith("7"))
    assert row.split()[:5] == ["7", "0", "3", "2", "1.000"]
    assert shown[-1] == "1 row"
    wide = lines("query", run, "massive_channels", "--param", "layer=7", "--wide")
    # Two prompts are too few for an interval.
    assert wide[-2].split()[:9] == ["7", "0", "3", "2", "2", "2", "1.000", "-", "-"]


def test_channels_of_the_whole_run_come_first_and_by_layer_on_request(run: str) -> None:
    shown = lines("query", run, "massive_channels", "--param", "min_frequency=0")
    head = next(line for line in shown if line.startswith("channel"))
    assert head.split()[:3] == ["channel", "n_cells", "frequency"]
    n = len(json.loads(call("query", run, "massive_channels", "--param", "min_frequency=0", "--json").stdout))
    assert shown[-1].endswith(f"channels, means over cells; --rows prints the {n} rows by layer and step")
    rows = lines("query", run, "massive_channels", "--param", "min_frequency=0", "--rows", "--limit", 0)
    assert rows[0] == shown[0]
    assert rows[-1] == f"{n} rows"


def test_a_long_table_says_how_much_is_shown(run: str) -> None:
    assert lines("query", run, "channel_history", "--limit", 4)[-1] == "4 of 30 rows; --limit 0 for all"
    assert lines("sql", run, "select * from cells")[-1] == "40 of 60 rows; --limit 0 for all"
    assert lines("sql", run, "select * from cells", "--limit", 0)[-1] == "60 rows"
    assert lines("sql", run, "select * from cells where false")[-1] == "0 rows"


@pytest.mark.parametrize("text", ["-- how many\nselect count(*) as n from cells", "--how many?\nselect 60 as n"])
def test_a_text_that_begins_with_a_comment_is_no_option(text: str, run: str) -> None:
    for arguments in (("--csv", run, text), (run, text, "--csv"), (run, "--csv", "--", text)):
        assert lines("sql", *arguments) == ["n", "60"]
    assert "No such option: --jsn" in call("sql", run, "select 1", "--jsn").output


def test_numbers_have_four_digits_and_align_right(run: str) -> None:
    shown = lines("sql", run, "select unnest([0.0, 1.23456, 98765.4, 1.5e-7, 'nan'::double, null]) as x, 7 as n")
    assert [line.split()[0] for line in shown[-7:-1]] == ["0", "1.235", "98765", "1.500e-07", "nan", "-"]
    result = call("sql", run, "select unnest([5, 12345]) as long_name").stdout
    assert "    5  \n" in result
    assert "12345  \n" in result


def test_text_from_prompts_is_shown_as_it_is_on_one_short_line(run: str) -> None:
    output = call("sql", run, "select prompt from samples where sample = 1").stdout
    assert r"[bold red]a \x1b[31mcat[/]\nand on" in output
    assert "\x1b" not in output
    assert "…" in output
    assert max(map(len, output.splitlines())) < 60


def test_images_are_counted_and_lists_are_compact(run: str) -> None:
    shown = lines("sql", run, "select image, [1, 2, 3] as l, [0.123456, null] as m from samples where sample = 1")
    assert shown[-2] == "<5 bytes>  [1 2 3]  [0.1235 -]"


def test_every_column_is_printed_when_it_is_not_to_a_terminal(run: str) -> None:
    row = lines("sql", run, "select * from cells order by sample, layer limit 1")[-2].split()
    assert row[0] == "0" * 16
    assert row[-1] == "0"
    assert len(row) == 18


def test_a_terminal_gets_the_columns_that_fit_and_the_names_of_the_rest(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewchannels.runs.sql.catalog import Catalog

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, color_system=None)
    for module in (answers, tables):
        monkeypatch.setattr(module, "results", console)
    with Catalog(run) as catalog:
        cli.print_relation(catalog.query("massive_channels", layer=7))
    shown = screen.getvalue().splitlines()
    assert max(map(len, shown)) <= 60
    assert "Columns that do not fit: " in screen.getvalue()
    assert "mean_rank" in screen.getvalue().split("Columns that do not fit: ")[1]


def test_json_is_valid_and_keeps_full_precision(run: str) -> None:
    text = "select 1/3.0 as third, 'nan'::double as lost, [1.5, 'inf'::double] as l, image, true as yes, null as no, "
    result = call(
        "sql", run, text + "date '2026-01-02' as day, {'a': 1} as s, prompt from samples where sample = 1", "--json"
    )
    (record,) = json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert record["third"] == 1 / 3
    assert record["lost"] is None
    assert record["l"] == [1.5, None]
    assert base64.b64decode(record["image"]) == b"\x89PNG\x00"
    assert (record["yes"], record["no"], record["day"], record["s"]) == (True, None, "2026-01-02", {"a": 1})
    assert record["prompt"].startswith("[bold red]a \x1b[31mcat")


def test_json_has_every_row_unless_a_limit_is_given(run: str) -> None:
    assert len(json.loads(call("sql", run, "select * from cells", "--json").stdout)) == 60
    assert len(json.loads(call("sql", run, "select * from cells", "--json", "--limit", 3).stdout)) == 3
    assert json.loads(call("sql", run, "select * from cells where false", "--json").stdout) == []


def test_csv_can_be_read_back(run: str) -> None:
    text = (
        "select prompt, top_channels, 0.1 as x, null as no, image "
        "from cells join samples using (sample) where sample = 1"
    )
    rows = list(csv.DictReader(io.StringIO(call("sql", run, text, "--csv").stdout)))
    assert len(rows) == 30
    assert rows[0]["prompt"].startswith("[bold red]a \x1b[31mcat[/]\nand on")
    assert json.loads(rows[0]["top_channels"]) == [3]
    assert (rows[0]["x"], rows[0]["no"]) == ("0.1", "")
    assert base64.b64decode(rows[0]["image"]) == b"\x89PNG\x00"


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_an_answer_is_written_to_a_file_of_the_named_kind(suffix: str, run: str, tmp_path: Path) -> None:
    path = tmp_path / f"answer{suffix}"
    result = call("query", run, "channel_history", "-o", path)
    assert result.stdout == ""
    assert f"wrote 30 rows to {path}" in result.stderr.replace("\n", "")
    if suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    else:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
    assert [int(row["layer"]) for row in rows] == list(range(30))
    assert float(rows[0]["mean_ratio"]) == 10


def test_a_file_of_another_kind_is_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"xlsx'; its suffix must be one of .parquet, .csv, .json"):
        call("query", run, "failures", "-o", tmp_path / "a.xlsx")
    with pytest.raises(StorageError, match="cannot write"):
        call("query", run, "failures", "-o", tmp_path / "missing" / "a.csv")
    with pytest.raises(InputError, match="--json, --csv and --output cannot be combined"):
        call("query", run, "failures", "--json", "--csv")


def test_parameters_reach_the_query(run: str) -> None:
    rows = json.loads(
        call("query", run, "massive_channels", "--param", "layer=4", "--param", "min_frequency=0.9", "--json").stdout
    )
    assert [(row["layer"], row["channel"], row["n"]) for row in rows] == [(4, 3, 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer", "--param is 'layer'; it must be name=value, such as --param layer=3"),
        ("layer=x", "parameter 'layer' is 'x'; it must be a whole number"),
        ("layer=1.5", "parameter 'layer' is '1.5'; it must be a whole number"),
        ("min_frequency=inf", "it must be a finite number"),
        ("layer=٣", "parameter 'layer' is '٣'; it must be a whole number, -1 to 1,000,000,000"),
        ("layer=1_0", "it must be a whole number"),
        ("layer=99999999999999999999", "is 99999999999999999999; it must be a whole number, -1 to 1,000,000,000"),
        ("min_frequency=1e300", "it must be a finite number, -1,000,000,000 to 1,000,000,000"),
        ("layr=3", "Did you mean 'layer'"),
    ],
)
def test_a_parameter_that_cannot_work_is_refused(text: str, message: str, run: str) -> None:
    with pytest.raises(InputError, match=message):
        call("query", run, "massive_channels", "--param", text)


def test_a_query_needs_a_run_and_a_known_name(run: str) -> None:
    with pytest.raises(InputError, match="a run and a query are needed"):
        call("query", run)
    with pytest.raises(InputError, match="Did you mean 'failures'"):
        call("query", run, "failure")


def test_the_list_names_every_query_and_its_parameters() -> None:
    output = call("query", "--list").stdout
    for name, query in queries().items():
        assert name in output
        assert all(f"{parameter.name}=" in output for parameter in query.parameters)


def test_the_list_as_json_describes_everything() -> None:
    described = {query["name"]: query for query in json.loads(call("query", "--list", "--json").stdout)}
    assert set(described) == set(queries())
    layer = next(p for p in described["massive_channels"]["parameters"] if p["name"] == "layer")
    assert (layer["type"], layer["default"]) == ("int", -1)
    assert described["failures"]["columns"][0]["name"] == "sample_id"
    assert "select" in described["failures"]["sql"]


@pytest.mark.parametrize("name", queries())
def test_one_query_is_explained_with_every_column(name: str) -> None:
    output = call("query", "--list", name).stdout
    words = " ".join(output.split())
    assert queries()[name].purpose.split(".")[0] in words
    assert all(column.name in output for column in queries()[name].columns)
    with pytest.raises(InputError, match="unknown query 'nothing'"):
        call("query", "--list", "nothing")


@pytest.mark.parametrize("command", ["query", "sql"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: fewchannels {command} RUN" in " ".join(call(command, "--help").stdout.split())
