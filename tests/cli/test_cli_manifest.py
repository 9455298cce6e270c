"""The commands of ``fewchannels manifest``, as a person runs them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from fewchannels import manifest
from fewchannels.cli.console import results
from fewchannels.cli.manifest import app
from fewchannels.errors import InputError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs a command line in a folder with ``prompts.csv``; errors of this project are raised."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("prompt,kind\na red star,[bold]x[/bold]\na blue ring,\x1b[31my\na red star,z\n")

    monkeypatch.setattr(results, "_width", None)  # which a COLUMNS of this process would have settled

    def invoke(*arguments: str) -> Result:
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_ingest_writes_the_manifest_and_says_what_it_did(run) -> None:
    result = run("ingest", "prompts.csv", "-o", "m.parquet", "--seeds", "0:3")
    assert result.exit_code == 0
    assert list(pd.read_parquet("m.parquet").seed) == [0, 1, 2] * 2
    lines = {
        line.split("│")[1].strip(): line.split("│")[2].strip() for line in result.stdout.splitlines() if "│" in line
    }
    assert lines["samples"] == "6"
    assert lines["rows read"] == "3"
    assert lines["prompts from"] == "prompt"
    assert lines["duplicates"] == "3 left out"


def test_ingest_prints_its_report_as_json_and_nothing_else_on_standard_output(run) -> None:
    Path("more.jsonl").write_text('{"caption": "x"}\n{"caption": ""}\n')
    result = run("ingest", "prompts.csv", "more.jsonl", "-o", "m.parquet", "--on-error", "skip", "--json")
    report = json.loads(result.stdout)
    assert (report["n_rows"], report["n_written"], report["n_duplicates"], report["n_bad"]) == (5, 3, 1, 1)
    assert report["bad_rows"][0] | {"value": "", "rule": ""} == {
        "file": "more.jsonl",
        "line": 2,
        "column": "caption",
        "value": "",
        "rule": "",
    }
    assert report["output"] == "m.parquet"


def test_skipped_rows_are_named_on_standard_error_without_their_markup(run) -> None:
    Path("bad.csv").write_text('prompt,seed\nx,[red]no[/red]\ny,1\n"\x1b[31m",\x1b[2J\n')
    result = run("ingest", "bad.csv", "-o", "m.parquet", "--on-error", "skip")
    assert result.exit_code == 0
    assert "skipped bad.csv:2: 'seed': '[red]no[/red]' is not a whole number" in result.stderr
    assert r"skipped bad.csv:4: 'seed': '\x1b[2J' is not" in result.stderr
    assert "\x1b" not in result.output


def test_bad_rows_fail_by_default_and_the_error_is_left_to_the_caller(run) -> None:
    Path("bad.csv").write_text("prompt,seed\nx,no\n")
    with pytest.raises(InputError, match=r"bad\.csv:2: 'seed': 'no'") as failure:
        run("ingest", "bad.csv", "-o", "m.parquet")
    assert failure.value.exit_code == 2
    assert not Path("m.parquet").exists()


def test_ingest_takes_the_prompt_column_it_is_told(run) -> None:
    result = run("ingest", "prompts.csv", "-o", "m.parquet", "--prompt-column", "kind", "--json")
    assert json.loads(result.stdout)["prompt_column"] == "kind"
    assert list(pd.read_parquet("m.parquet").source_prompt) == ["a red star", "a blue ring", "a red star"]


def test_show_prints_a_summary_with_markup_and_control_characters_spelled_out(run) -> None:
    run("ingest", "prompts.csv", "-o", "m.parquet")
    result = run("show", "m.parquet")
    assert result.exit_code == 0
    assert "'[bold]x[/bold]' 1" in result.stdout
    assert r"'\x1b[31my' 1" in result.stdout
    assert "\x1b" not in result.stdout
    assert "10 to 11, median 10" in result.stdout
    assert manifest.digest("m.parquet") in result.stdout


def test_show_prints_the_same_summary_as_json(run) -> None:
    run("ingest", "prompts.csv", "-o", "m.parquet")
    about = json.loads(run("show", "m.parquet", "--json").stdout)
    assert about == manifest.summary("m.parquet") | {"digest": manifest.digest("m.parquet")}


def test_show_refuses_a_file_that_is_no_manifest(run) -> None:
    pd.DataFrame({"prompt": ["x"]}).to_parquet("plain.parquet")
    with pytest.raises(InputError, match=r"no column 'sample_id'.*fewchannels manifest ingest"):
        run("show", "plain.parquet")


@pytest.mark.parametrize("command", ["ingest", "show"])
def test_every_command_has_an_example_in_its_help(run, command: str) -> None:
    assert f"Example: fewchannels manifest {command}" in run(command, "--help").stdout


def test_ingest_says_which_columns_set_samples_own_settings_and_how_to_leave_them_out(run) -> None:
    lines = "".join(f"p{i},{step},{i or ''}\n" for i, step in enumerate((50, 25, 30, 50, 25, 50)))
    Path("own.csv").write_text("prompt,step,cfg scale\n" + lines)
    out = run("ingest", "own.csv", "-o", "m.parquet").stdout
    assert "from 'step': 25 to 50 in 6 rows; leave it out with --ignore-column step" in out
    assert "from 'cfg scale': 1 to 5 in 5 of 6 rows; leave it out with --ignore-column 'cfg scale'" in out
    report = json.loads(run("ingest", "own.csv", "-o", "m.parquet", "--json").stdout)
    assert report["settings"][0] == {"name": "steps", "column": "step", "n_rows": 6, "lowest": 25, "highest": 50}

    run("ingest", "own.csv", "-o", "m.parquet", "--ignore-column", "step", "--ignore-column", "CFG scale")
    table = pd.read_parquet("m.parquet")
    assert table.steps.isna().all()
    assert table.guidance.isna().all()
    with pytest.raises(InputError, match="unknown column to ignore 'turn'"):
        run("ingest", "own.csv", "-o", "m.parquet", "--ignore-column", "turn")


def test_ingest_says_that_duplicates_differ_and_in_which_columns(run) -> None:
    out = run("ingest", "prompts.csv", "-o", "m.parquet").stdout
    assert "1 of them differ from the sample that is kept, in kind" in out
