"""Every command of docs/start.md and docs/maintain.md, and mistakes beside them, on the bundled model.

In one process, but for those that show that a process of its own does the same: a capture, a mistake, and the help.
"""

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
from command import line as run
from explorer import explorer, layout_of
from pages import BIN, block, process, shell

HEADINGS = ("Capture and query", "Analyze", "Intervene", "Report and explore", "Commands and guarantees")
LINES = [line for heading in HEADINGS for line in shell(heading)]
EXPLORE = [line for line in LINES if line.startswith("fewchannels explore")]
COMMANDS = [line for line in LINES if line not in EXPLORE]
# In a process of its own.
CAPTURE = "fewchannels capture --model demo --manifest manifest.parquet --out RUN"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which commands are run."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def main_path(folder: Path) -> dict:
    """The pages' commands, run once in one folder."""
    prompts = [
        "a small pink star at the left on a gray background",
        "a large red ring in the center on a blue background",
    ]
    (folder / "prompts.csv").write_text("prompt\n" + "\n".join(prompts) + "\n", encoding="utf-8")
    done = {line: (process if line == CAPTURE else run)(line, folder) for line in COMMANDS}
    return {"folder": folder} | done


def test_every_command_works(main_path: dict) -> None:
    assert len(COMMANDS) == 28
    assert CAPTURE in COMMANDS
    for line in COMMANDS:
        assert main_path[line].code == 0, (line, main_path[line].stderr)
        assert "Traceback" not in main_path[line].stderr


def test_the_reports_hold_what_was_asked(main_path: dict) -> None:
    folder = main_path["folder"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("MAPS", "ZEROED", "a small pink star at the left on a gray background"))
    text = (folder / "report.md").read_text(encoding="utf-8")
    images = re.findall(r"!\[.*?\]\((.+?)\)", text)
    assert images
    assert all((folder / each).read_bytes().startswith(b"\x89PNG") for each in images)


@pytest.mark.parametrize("line", EXPLORE)
def test_the_explorer_answers_where_it_says_until_it_is_interrupted(main_path: dict, line: str) -> None:
    words = shlex.split(line)
    with explorer([str(BIN / words[0]), *words[1:]], main_path["folder"]) as (process, address):
        assert "fewchannels" in layout_of(address)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_the_manifest_has_a_row_per_prompt_and_seed(main_path: dict) -> None:
    shown = run("fewchannels manifest show manifest.parquet --json", main_path["folder"])
    about = json.loads(shown.stdout)
    assert (about["n_samples"], about["n_prompts"], about["seeds"]["n"]) == (8, 2, 4)


def test_the_estimate_is_within_5_percent_of_what_the_run_took(main_path: dict) -> None:
    folder = main_path["folder"]
    estimate = json.loads(
        run("fewchannels capture --manifest manifest.parquet --out NEW --dry-run --json", folder).stdout
    )
    files = [file for file in (folder / "RUN").rglob("[!.]*") if file.is_file()]
    assert not (folder / "NEW").exists()
    assert estimate["n_files"] == len(files)
    assert estimate["total_bytes"] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.05)


def test_the_runs_that_upkeep_made_are_whole_and_hold_what_they_should(main_path: dict) -> None:
    folder = main_path["folder"]
    for name, n_samples in (("RUN", 8), ("STARS", 4), ("BOTH", 8)):
        report = json.loads(run(f"fewchannels runs verify {name} --json", folder).stdout)
        assert (report["problems"], report["n_recorded"]) == ([], 1), name
        about = json.loads(run(f"fewchannels runs show {name} --json", folder).stdout)
        assert (about["n_done"], about["n_samples"]) == (n_samples, n_samples), name
    assert "8 samples regenerated: 8 bit-identical" in main_path[block("Commands and guarantees")[1]].stdout
    assert len(list((folder / "FOR_DATASETS").rglob("*.parquet"))) == 2


def test_sql_answers_with_one_row_per_layer(main_path: dict) -> None:
    question = 'fewchannels sql RUN "select layer, count(*) as n from cells group by layer order by layer" --json'
    rows = json.loads(run(question, main_path["folder"]).stdout)
    assert rows == [{"layer": layer, "n": 8 * 20} for layer in range(6)]


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("fewchannels capture --model dmeo --manifest manifest.parquet --out X", 2, "Did you mean 'demo'"),
        ("fewchannels capture --manifest nowhere.parquet --out X", 2, "there is no manifest 'nowhere.parquet'"),
        ("fewchannels capture --manifest manifest.parquet --out X --layers 6", 2, "the valid ones are 0 to 5"),
        ("fewchannels capture --manifest manifest.parquet --out X --steps 20", 2, "the valid ones are 0 to 19"),
        ("fewchannels capture --manifest manifest.parquet --out X --score mean_ab", 2, "Did you mean 'mean_abs'"),
        ("fewchannels capture --manifest manifest.parquet --out RUN --top-k 5", 3, "config.top_k: 12 -> 5"),
        ("fewchannels query RUN massive_chanels", 2, "Did you mean 'massive_channels'"),
        ("fewchannels query nowhere massive_channels", 2, "there is no folder 'nowhere'"),
        ('fewchannels sql RUN "drop view cells"', 2, "read-only"),
        ("fewchannels runs show .", 2, "is not a run"),
        ("fewchannels runs verify .", 2, "is not a run"),
        ("fewchannels runs export RUN --where nonsense=1 --out Y", 2, "nonsense"),
        ("fewchannels runs export RUN --where false --out Y", 2, "no finished sample meets the --where condition"),
        ("fewchannels runs merge RUN --out Y", 2, "at least two runs"),
        ("fewchannels capture --manifest manifest.parquet --out X --max-bytes 1MB", 2, "Options that fit:"),
        (
            "fewchannels capture --manifest manifest.parquet --out X --tokens pool:3",
            2,
            "8 x 8 tokens, which 3 does not divide",
        ),
        ("fewchannels capture --manifest manifest.parquet --out s3://me:secret@bucket/X", 2, "Give the bare URL"),
    ],
)
def test_a_users_mistake_ends_with_a_message_and_its_exit_code(
    main_path: dict, line: str, code: int, says: str
) -> None:
    done = run(line, main_path["folder"])
    assert done.code == code
    assert says in " ".join(done.stderr.split())
    assert not (main_path["folder"] / "X").exists()


def test_a_mistake_shows_no_traceback(main_path: dict) -> None:
    done = process("fewchannels capture --model dmeo --manifest manifest.parquet --out X", main_path["folder"])
    assert (done.code, "Traceback" in done.stderr, "error: " in done.stderr) == (2, False, True)


def test_a_failed_sample_gives_exit_code_5_and_the_failures_query_names_it(folder: Path) -> None:
    # Guidance of 1e38 leaves float32 inside the model: that sample fails by itself, the one beside it is done.
    (folder / "p.csv").write_text("prompt,guidance\na small red star,\na large red star,1e38\n", encoding="utf-8")
    assert run("fewchannels manifest ingest p.csv -o m.parquet", folder).code == 0
    done = run("fewchannels capture --manifest m.parquet --out FAILED --layers 0 --steps last", folder)
    assert done.code == 5
    assert "1 of 2 samples are done, 1 failed" in done.stderr
    (failed,) = json.loads(run("fewchannels query FAILED failures --json", folder).stdout)
    assert failed["prompt"] == "a large red star"
    assert "non-finite hidden states" in failed["error"]


def test_settings_come_from_the_command_line_then_the_file_then_the_default(main_path: dict) -> None:
    folder = main_path["folder"]
    (folder / "settings.yaml").write_text("layers: [0, 5]\nsteps: last\ntop_k: 3\n", encoding="utf-8")
    line = "fewchannels capture --manifest manifest.parquet --out NEW --config settings.yaml --top-k 7 --dry-run --json"
    estimate = json.loads(run(line, folder).stdout)
    assert estimate["shapes"]["massive_channel"] == [8, 1, 2, 7]


def test_every_command_has_an_example_in_its_help(folder: Path) -> None:
    for words in (
        "manifest ingest",
        "manifest show",
        "capture",
        "query",
        "sql",
        "runs show",
        "runs verify",
        "runs merge",
        "runs compact",
        "runs export",
        "demo",
    ):
        shown = (process if words == "capture" else run)(f"fewchannels {words} --help", folder)
        assert shown.code == 0
        assert f"fewchannels {words}" in shown.stdout.split("Example")[1], words
