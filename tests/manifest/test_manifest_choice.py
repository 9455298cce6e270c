"""Some prompts of a table as a manifest: the first, a random sample, balanced over a column, or by a condition."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fewchannels.cli import app
from fewchannels.errors import InputError
from fewchannels.manifest import Manifest

COLORS = ["red"] * 12 + ["blue"] * 4 + ["green"] * 2


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"a {color} star {i}", "color": color, "n": i} for i, color in enumerate(COLORS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def rows(table: Path, *options: str) -> list[dict]:
    """What the manifest of a table with these options has."""
    out = table.with_suffix(".parquet")
    done = CliRunner().invoke(app, ["manifest", "ingest", str(table), "-o", str(out), *options])
    if done.exception is not None:
        raise done.exception
    assert done.exit_code == 0, done.output
    Manifest.read(out)
    return pq.read_table(out).to_pylist()


def test_the_first_prompts_keep_their_order_and_all_their_seeds(table: Path) -> None:
    found = rows(table, "--limit", "3", "--seeds", "0:2")
    assert [(row["n"], row["seed"]) for row in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_sample_depends_on_the_prompts_and_not_on_their_order(table: Path) -> None:
    first = {row["prompt"] for row in rows(table, "--sample", "5")}
    assert len(first) == 5
    table.write_text("\n".join(reversed(table.read_text().splitlines())))
    assert {row["prompt"] for row in rows(table, "--sample", "5")} == first
    assert first < {row["prompt"] for row in rows(table, "--sample", "8")}
    assert len(rows(table, "--sample", "99")) == 18


def test_a_sample_by_a_column_takes_as_many_of_each_value_while_there_are_any(table: Path) -> None:
    found = rows(table, "--sample", "6", "--by", "color")
    assert Counter(row["color"] for row in found) == {"red": 2, "blue": 2, "green": 2}
    found = rows(table, "--sample", "10", "--by", "color")
    assert Counter(row["color"] for row in found) == {"red": 4, "blue": 4, "green": 2}


def test_a_condition_reads_the_columns_of_the_manifest(table: Path) -> None:
    found = rows(table, "--where", "color = 'blue' and seed > 0", "--seeds", "0-1")
    assert [(row["n"], row["seed"]) for row in found] == [(n, 1) for n in (12, 13, 14, 15)]
    assert [row["n"] for row in rows(table, "--where", "n % 2 = 1", "--limit", "2")] == [1, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "n > 99"], "none of the 18 samples is left"),
        (["--where", "1) or (2"], "1"),
        (["--where", "colour = 'red'"], "colour"),
        (["--where", "n in (select 1 from read_csv('x.csv'))"], "disabled"),
        (["--sample", "3", "--by", "colour"], "color"),
        (["--by", "color"], "Give --sample N"),
        (["--sample", "3", "--limit", "3"], "Pass only one"),
    ],
)
def test_what_cannot_be_chosen_is_refused_and_leaves_the_manifest_as_it_was(
    table: Path, options: list[str], message: str
) -> None:
    whole = rows(table)
    with pytest.raises(InputError, match=message):
        rows(table, *options)
    assert pq.read_table(table.with_suffix(".parquet")).to_pylist() == whole


def test_a_table_of_prompts_in_place_of_a_manifest_names_the_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "my prompts.tsv"
    path.write_text("prompt\tn\na star\t1\n")
    for group in (["capture"], ["probe", "disruption"]):
        done = CliRunner().invoke(app, [*group, "--manifest", str(path), "--out", str(tmp_path / "run")])
        assert isinstance(done.exception, InputError)
        wanted = f"fewchannels manifest ingest '{path}' -o 'my prompts'.parquet"
        assert wanted in str(done.exception)
    assert not (tmp_path / "run").exists()
