"""Which files of this machine a command takes along to a cluster, and what would fail there."""

import shlex
from pathlib import Path

import pytest
import typer

from fewchannels.cli import app
from fewchannels.cli.job_command import JobCommand, job_command
from fewchannels.cluster.jobs import check_sizes
from fewchannels.errors import InputError

CAPTURE = "capture --manifest m.parquet --out s3://bucket/RUN"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "m.parquet",
        "sub/m.parquet",
        "2-m.parquet",
        "id_rsa",
        "a",
        "b",
        "c,d@1",
        ".gitignore",
        "3",
        "head.pt",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name, encoding="utf-8")
    Path("folder").mkdir()


def made(line: str) -> JobCommand:
    return job_command(shlex.split(line), typer.main.get_command(app))


def sent(line: str) -> tuple[str, dict[str, str]]:
    """The command as it is sent, and by the name of each file in the job's folder what it says here."""
    job = made(line)
    return shlex.join(job.words), {name: path.read_text(encoding="utf-8") for name, path in job.files.items()}


@pytest.mark.parametrize(
    ("line", "words", "files"),
    [
        (CAPTURE, f"{CAPTURE} --address auto", {"m.parquet": "m.parquet"}),
        (
            "fewchannels capture --out s3://b/R --manifest=sub/m.parquet --address 10.0.0.1:6379",
            "capture --out s3://b/R --manifest=m.parquet --address 10.0.0.1:6379",
            {"m.parquet": "sub/m.parquet"},
        ),
        (
            f"{CAPTURE} --lora 'a@0.8, b,sub/m.parquet' --transformer-file=id_rsa",
            f"{CAPTURE} --lora a@0.8,b,2-m.parquet --transformer-file=id_rsa --address auto",
            {"m.parquet": "m.parquet", "a": "a", "b": "b", "2-m.parquet": "sub/m.parquet", "id_rsa": "id_rsa"},
        ),
        (
            f"{CAPTURE} --model id_rsa --revision a --layers 3 --steps b",
            f"{CAPTURE} --model id_rsa --revision a --layers 3 --steps b --address auto",
            {"m.parquet": "m.parquet"},
        ),
        (
            "manifest ingest 2-m.parquet m.parquet sub/m.parquet ./m.parquet demo:4 --seeds 3 -o /mnt/x.parquet",
            "manifest ingest 2-m.parquet m.parquet 3-m.parquet m.parquet demo:4 --seeds 3 -o /mnt/x.parquet",
            {"2-m.parquet": "2-m.parquet", "m.parquet": "m.parquet", "3-m.parquet": "sub/m.parquet"},
        ),
        (
            "manifest ingest -o/mnt/x.parquet --prompt-column a -- m.parquet .gitignore",
            "manifest ingest -o/mnt/x.parquet --prompt-column a -- m.parquet 2-.gitignore",
            {"m.parquet": "m.parquet", "2-.gitignore": ".gitignore"},
        ),
        (
            "analyze stability /mnt/RUN --label id_rsa --workers 3",
            "analyze stability /mnt/RUN --label id_rsa --workers 3 --address auto",
            {},
        ),
        (
            "probe disruption --manifest m.parquet --out s3://b/S --k 3 --metric aesthetic=org/model,head.pt "
            "--metric clip=org/model",
            "probe disruption --manifest m.parquet --out s3://b/S --k 3 --metric aesthetic=org/model,head.pt "
            "--metric clip=org/model --address auto",
            {"m.parquet": "m.parquet", "head.pt": "head.pt"},
        ),
        ("sql s3://bucket/RUN a", "sql s3://bucket/RUN a", {}),
        ("query s3://bucket/RUN a --param b=3", "query s3://bucket/RUN a --param b=3", {}),
        ("sql /mnt/RUN 'select 1' -o /mnt/id_rsa", "sql /mnt/RUN 'select 1' -o /mnt/id_rsa", {}),
        ("manifest show /mnt/m.parquet", "manifest show /mnt/m.parquet", {}),
    ],
)
def test_what_options_that_take_files_name_is_sent_and_nothing_else(
    line: str, words: str, files: dict[str, str]
) -> None:
    assert sent(line) == (words, files)


def test_every_option_that_is_declared_as_a_file_is_sent_or_is_what_is_written() -> None:
    """A command that gets a new one is seen here."""
    found: set[tuple[str, str]] = set()

    def look(command: object, name: str) -> None:
        for each, below in getattr(command, "commands", {}).items():
            look(below, f"{name} {each}".strip())
        for each in getattr(command, "params", []):
            values = {parameter.name: None for parameter in command.params}  # type: ignore[attr-defined]
            try:
                given = command.make_context(name, [each.opts[0], "a"], resilient_parsing=True)  # type: ignore[attr-defined]
                values = given.params
            except Exception:  # a flag, or a number
                continue
            value = values.get(each.name)
            if isinstance(value, Path):
                found.add((name, each.opts[0]))

    look(typer.main.get_command(app), "")
    written = {("plot", "--out"), ("demo", "--out"), ("report", "--out"), ("query", "--output"), ("sql", "--output")}
    written |= {("manifest ingest", "--output"), ("manifest split", "--output"), ("models inspect", "--output")}
    assert written <= found
    assert {option for _, option in found - written} == {
        "--manifest", "--config", "--family", "--pairs-file", "--references", "path"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("capture --manifest m.parquet --out RUN", "out is 'RUN', a path on this machine"),
        ("analyze stability RUN", "run is 'RUN', a path on this machine"),
        ("compare RUN_A s3://bucket/RUN --out s3://bucket/C", "run_a is 'RUN_A', a path on this machine"),
        ("report RUN -o /mnt/r.html", "places is 'RUN', a path on this machine"),
        ("compare s3://bucket/A s3://bucket/B", "--out is missing.*deleted with it"),
        ("manifest ingest demo:4 -o x.parquet", "output is 'x.parquet', a path on this machine"),
        ("sql /mnt/RUN 'select 1' -o id_rsa", "output is 'id_rsa', a path on this machine"),
        ("demo", "out is 'runs/demo', a path on this machine"),
        ("capture --manifest nowhere.parquet --out /mnt/RUN", "file 'nowhere.parquet' does not exist on this machine"),
        ("manifest ingest sub/m.parquet m2.parquet -o /mnt/x", "file 'm2.parquet' does not exist on this machine"),
        (f"{CAPTURE} --lora a@0.8,nowhere", "file 'nowhere' does not exist on this machine"),
        (f"{CAPTURE} --model folder", "model is 'folder', a folder on this machine"),
        (
            "probe disruption --manifest m.parquet --out /mnt/S --metric clip=folder",
            "metric is 'clip=folder', a folder",
        ),
        ("capture --manifest m.parquet --oout /mnt/RUN", "No such option: --oout"),
        ("captur --out /mnt/RUN", "unknown command 'captur'. Did you mean 'capture'"),
        ("capture --help", "only prints help"),
        ("status", "cannot run as a cluster job"),
    ],
)
def test_what_would_fail_on_the_cluster_is_refused_here(line: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        made(line)


def test_too_much_is_refused_before_it_is_sent() -> None:
    with Path("large.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(InputError, match=r"large\.bin' and the other files .* more than 100 MiB"):
        check_sizes({"a": Path("a"), "large.bin": Path("large.bin")})
    assert check_sizes({"a": Path("a"), "x": Path("id_rsa")}) == {"a": 1, "x": 6}
