"""Runs pushed to the Hugging Face Hub and pulled from it: the Hub's own client, against a stand-in for its server."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Answer, command
from hub_server import OWNER, HubServer, connected, environment, hub_server
from made_sweep import make_sweep
from planted_edits import planted
from two_runs import ROWS, captured

from fewchannels import open_run
from fewchannels.runs.lease import hold
from fewchannels.runs.results import Results
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep import push as pushing
from fewchannels.runs.upkeep.verify import verify

pytestmark = pytest.mark.usefixtures("undrawn")
NAME = f"{OWNER}/stars"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as running, connected(running):
        yield running


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, undrawn: None) -> Path:
    """A run of eight samples in three tasks, with a result."""
    run = captured(tmp_path_factory.mktemp("hub"), "RUN", tiny_model, ROWS)
    assert command("analyze", "concentration", run, "--k", 2, "--workers", 1).code == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(finished, tmp_path / "RUN"))


def push(run: Path, name: str = NAME, *options: str) -> Answer:
    return command("runs", "push", run, name, *options)


def pull(place: Path, name: str = NAME, *options: str) -> Answer:
    return command("runs", "pull", name, place, *options)


def contents(folder: Path) -> dict[str, bytes]:
    """A place's files, but for hidden ones."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if "/." not in f"/{name}"}


def of_repository(hub: HubServer, name: str = NAME) -> dict[str, bytes]:
    return {path: data for path, data in hub.repos[name].files.items() if path not in ("README.md", ".gitattributes")}


def test_a_run_comes_back_as_it_was_pushed(hub: HubServer, run: Path, tmp_path: Path) -> None:
    pushed = push(run)
    assert (pushed.code, hub.repos[NAME].private) == (0, True), pushed.stderr
    assert of_repository(hub) == contents(run)
    pulled = pull(tmp_path / "BACK")
    assert pulled.code == 0, pulled.stderr
    assert contents(tmp_path / "BACK") == contents(run)
    assert verify(open_storage(tmp_path / "BACK")).unrecorded == ()
    asked = [open_run(place).query("massive_channels", top=3).df() for place in (run, tmp_path / "BACK")]
    assert asked[0].equals(asked[1])
    assert not asked[0].empty
    assert not (tmp_path / "BACK" / ".pull").exists()


def test_commands_find_server_and_token_in_the_environment_and_print_neither_token_nor_traceback(
    hub: HubServer, run: Path, tmp_path: Path
) -> None:
    own = os.environ | environment(hub) | {"HF_HOME": str(tmp_path / "hf")}

    def fewchannels(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "fewchannels", "runs", *map(str, words)]
        return subprocess.run(line, env=own | more, capture_output=True, text=True, timeout=120, check=False)

    ended = [
        fewchannels("push", run, NAME, "--public"),
        fewchannels("pull", NAME, tmp_path / "BACK"),
        fewchannels("push", run, f"{OWNER}/other", HF_TOKEN="hf_ofSomebodyElse0123456789"),
    ]
    assert [each.returncode for each in ended] == [0, 0, 2]
    assert not hub.repos[NAME].private
    assert contents(tmp_path / "BACK") == contents(run)
    said = "".join(each.stdout + each.stderr for each in ended)
    assert "hf_" not in said
    assert "Traceback" not in said
    assert "refused" in ended[2].stderr.splitlines()[-1]


def test_a_second_push_uploads_nothing(hub: HubServer, run: Path) -> None:
    assert push(run).code == 0
    hub.requests.clear()
    again = push(run)
    assert again.code == 0
    assert "has all of it" in again.stderr
    assert hub.count("POST", "") + hub.count("PUT", "") == 0


def test_a_run_that_has_grown_uploads_what_is_new(hub: HubServer, tiny_model: Path, tmp_path: Path) -> None:
    run = captured(tmp_path, "RUN", tiny_model, ROWS[:6])
    assert push(run).code == 0
    before = set(hub.uploaded)
    captured(tmp_path, "RUN", tiny_model, ROWS)
    assert push(run).code == 0
    assert of_repository(hub) == contents(run)
    assert len(set(hub.uploaded) - before) == len(hub.uploaded) - len(before) < len(before)


def test_a_compacted_run_replaces_its_parts(hub: HubServer, run: Path) -> None:
    assert push(run).code == 0
    hub.repos[NAME].add(
        hub.repos[NAME].files | {"samples/notes.txt": b"mine"}, hub.repos[NAME].large[hub.repos[NAME].head]
    )
    assert command("runs", "compact", run).code == 0
    assert push(run).code == 0
    assert of_repository(hub) == contents(run) | {"samples/notes.txt": b"mine"}


@pytest.fixture
def _small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "_FILES_PER_COMMIT", 12)


@pytest.mark.usefixtures("_small_commits")
def test_an_interrupted_push_leaves_a_readable_run_and_resumes(hub: HubServer, run: Path, tmp_path: Path) -> None:
    hub.fail = ("POST", "/commit/", 3, 500)
    ended = push(run)
    assert ended.code == 4
    assert "run the same command again to resume" in ended.stderr
    assert 0 < len(of_repository(hub)) < len(contents(run))
    partly = pull(tmp_path / "PART")
    assert partly.code == 0, partly.stderr
    assert 0 < len(open_run(tmp_path / "PART").samples) < len(ROWS)
    before = list(hub.uploaded)
    resumed = push(run)
    assert resumed.code == 0, resumed.stderr
    assert of_repository(hub) == contents(run)
    assert set(hub.uploaded[len(before) :]).isdisjoint(before)
    assert pull(tmp_path / "PART").code == 0
    assert contents(tmp_path / "PART") == contents(run)


def test_an_interrupted_pull_keeps_what_has_arrived_and_resumes(hub: HubServer, run: Path, tmp_path: Path) -> None:
    assert push(run).code == 0
    hub.fail = ("GET", "/cdn/", 20, 403)
    ended = pull(tmp_path / "BACK")
    assert ended.code == 2, ended.stderr
    there = contents(tmp_path / "BACK")
    assert 8 < len(there) < len(contents(run))
    assert there.items() <= contents(run).items()
    hub.requests.clear()
    assert pull(tmp_path / "BACK").code == 0
    assert contents(tmp_path / "BACK") == contents(run)
    assert hub.count("GET", "/resolve/|/cdn/") <= len(contents(run)) - len(there) + 1  # and the description


def test_only_what_the_run_consists_of_is_pushed(hub: HubServer, run: Path) -> None:
    whole = contents(run)
    (run / "notes.txt").write_text("my own", encoding="utf-8")
    (run / "README.md").write_text("my own", encoding="utf-8")
    (run / "results" / "concentration" / "notes.txt").write_text("my own", encoding="utf-8")
    (run / "cells" / f".00001.parquet.{'a' * 8}.elsewhere-1-0.tmp").write_bytes(b"half")
    (run / "lease.json").write_text("{}", encoding="utf-8")
    (run / "ledger" / "failed").mkdir()
    (run / "ledger" / "failed" / "00000.1.json").write_text("{}", encoding="utf-8")
    (run / ".git").mkdir()
    (run / ".git" / "config").write_text("token", encoding="utf-8")
    Results(open_storage(run), "unfinished").begin({"analysis": "stability"})
    pushed = push(run)
    assert pushed.code == 0, pushed.stderr
    assert "unfinished results are not pushed: unfinished" in pushed.stderr
    assert of_repository(hub) == whole


def test_a_run_that_git_or_another_client_downloaded_is_whole(hub: HubServer, run: Path) -> None:
    for name in (".git/HEAD", ".cache/huggingface/download/run.json.metadata", "README.md"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x", encoding="utf-8")
    report = verify(open_storage(run))
    assert (report.problems, report.unrecorded) == ((), ())


def test_a_dry_run_writes_nothing(hub: HubServer, run: Path, tmp_path: Path) -> None:
    planned = push(run, NAME, "--dry-run")
    assert planned.code == 0
    assert f"to upload to {NAME} (new, private): {len(contents(run))}" in planned.stderr
    assert not hub.repos
    assert push(run).code == 0
    foreseen = json.loads(pull(tmp_path / "BACK", NAME, "--dry-run", "--json").stdout)
    assert (foreseen["n_downloaded"], foreseen["commit"]) == (len(contents(run)), hub.repos[NAME].head)
    assert not (tmp_path / "BACK").exists()


def test_a_sweep_and_a_comparison_come_back(hub: HubServer, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    edits = planted([{"selection": word, "k": 4} for word in ("top", "random")], {"top": 0.012, "random": 0.0})
    sweep = make_sweep(tmp_path / "SWEEP", edits)
    other = captured(tmp_path, "OTHER", tiny_model, ROWS, top_k=4)
    assert command("compare", run, other, "--out", tmp_path / "DIFFERENCES", "--workers", 1, "--k", 2).code == 0
    for place in (sweep, tmp_path / "DIFFERENCES"):
        assert push(place, f"{OWNER}/{place.name}").code == 0
        pulled = pull(tmp_path / f"{place.name}-2", f"{OWNER}/{place.name}")
        assert pulled.code == 0, pulled.stderr
        assert contents(tmp_path / f"{place.name}-2") == contents(place)
    mixed = push(run, f"{OWNER}/SWEEP")
    assert (mixed.code, "has a sweep, not a run" in mixed.stderr) == (3, True)


def test_an_incomplete_run_is_pushed_only_if_asked_and_resumes_elsewhere(
    hub: HubServer, run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (run / "ledger" / "00002.json").unlink()
    refused = push(run)
    assert refused.code == 5
    assert "2 of 8 samples are missing or failed" in refused.stderr
    assert not hub.requests
    assert push(run, NAME, "--partial").code == 0
    assert "samples/00002.parquet" not in of_repository(hub)
    pulled = pull(tmp_path / "BACK")
    assert (pulled.code, "6 of 8 samples" in pulled.stdout) == (0, True)
    captured(tmp_path, "BACK", tiny_model, ROWS)
    assert len(open_run(tmp_path / "BACK").samples) == len(ROWS)
    assert verify(open_storage(tmp_path / "BACK")).problems == ()
    assert push(tmp_path / "BACK").code == 0


def test_a_damaged_run_is_not_pushed(hub: HubServer, run: Path) -> None:
    part = run / "samples" / "00001.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    refused = push(run)
    assert (refused.code, "1 damaged object" in refused.stderr, hub.requests) == (4, True, [])


def test_arrays_behind_a_link_are_not_pushed(hub: HubServer, run: Path, tmp_path: Path) -> None:
    (run / "activations.zarr").rename(tmp_path / "arrays")
    (run / "activations.zarr").symlink_to(tmp_path / "arrays")
    refused = push(run)
    assert (refused.code, "is a symbolic link" in refused.stderr, hub.requests) == (4, True, [])


@pytest.mark.parametrize("place", ["", "results/concentration"])
def test_a_run_that_is_being_written_is_not_pushed(hub: HubServer, run: Path, place: str) -> None:
    with hold(open_storage(run / place)):
        refused = push(run)
    assert (refused.code, "another command is writing" in refused.stderr, hub.requests) == (3, True, [])


def test_another_run_is_not_overwritten(hub: HubServer, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert push(run).code == 0
    before = hub.repos[NAME].head
    settings = captured(tmp_path, "SETTINGS", tiny_model, ROWS, guidance_scale=2.0)
    samples = captured(tmp_path, "SAMPLES", tiny_model, [*ROWS[1:], "a tree,9", "a tree,10"])
    fewer = captured(tmp_path, "FEWER", tiny_model, ROWS[:6])
    for place, words in ((settings, "guidance_scale"), (samples, "other samples"), (fewer, "1 finished task ")):
        refused = push(place)
        assert (refused.code, words in refused.stderr) == (3, True), refused.stderr
    assert hub.repos[NAME].head == before


def test_a_repository_of_something_else_is_not_overwritten(hub: HubServer, run: Path) -> None:
    hub.make(NAME, {"train.csv": b"a,b"})
    refused = push(run)
    assert (refused.code, "holds other files (train.csv)" in refused.stderr) == (3, True)
    hub.make(NAME, {"README.md": b"---\nlicense: cc0-1.0\n---\n\nMine.\n", "LICENSE": b"CC0"})
    assert push(run).code == 0
    card = hub.repos[NAME].files["README.md"].decode()
    assert "license: cc0-1.0" in card
    assert "Mine." in card


def test_a_commit_in_between_ends_the_push(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert push(run).code == 0
    assert command("runs", "compact", run).code == 0
    planned = pushing.plan_push

    def interrupted(*words: object) -> pushing.PushPlan:
        plan = planned(*words)  # type: ignore[arg-type]
        hub.repos[NAME].add(hub.repos[NAME].files | {"LICENSE": b"MIT"}, hub.repos[NAME].large[hub.repos[NAME].head])
        return plan

    monkeypatch.setattr(pushing, "plan_push", interrupted)
    refused = push(run)
    assert (refused.code, "came in between" in refused.stderr) == (3, True)


@pytest.mark.parametrize(
    "name", ["stars", "a/b/c", "my lab/stars", "my-lab/", "../stars", "my-lab/a--b", "https://x/y"]
)
def test_a_wrong_name_is_refused_before_anything_else(hub: HubServer, run: Path, tmp_path: Path, name: str) -> None:
    for refused in (push(run, name), pull(tmp_path / "BACK", name)):
        assert (refused.code, "OWNER/NAME" in refused.stderr) == (2, True)
    assert not hub.requests
    assert not (tmp_path / "BACK").exists()


def test_what_the_token_lacks_is_said(
    hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = push(run, "their-lab/stars")
    assert (foreign.code, "(403)" in foreign.stderr, "hf auth login" in foreign.stderr) == (2, True, True)
    assert push(run).code == 0
    monkeypatch.setenv("HF_TOKEN", "hf_wrongWrongWrong")
    for refused in (push(run), pull(tmp_path / "BACK")):
        assert (refused.code, "(401)" in refused.stderr, "hf_" in refused.stderr) == (2, True, False), refused.stderr
    monkeypatch.delenv("HF_TOKEN")
    none = push(run)
    assert (none.code, "there is none" in none.stderr) == (2, True)
    hidden = pull(tmp_path / "BACK")  # a private one, without a token
    assert (hidden.code, "HF_TOKEN" in hidden.stderr) == (2, True)


def test_without_a_network_the_message_says_so(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    ended = push(run)
    assert (ended.code, "Check the network" in ended.stderr) == (4, True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ended = push(run)
    assert (ended.code, "HF_HUB_OFFLINE is set" in ended.stderr) == (2, True)


def test_the_visibility_of_a_repository_is_not_changed_silently(hub: HubServer, run: Path) -> None:
    assert push(run, NAME, "--public").code == 0
    refused = push(run, NAME, "--private")
    assert (refused.code, "is public, and --private was given" in refused.stderr) == (2, True)
    assert "(public)" in push(run).stdout


def test_too_many_files_for_a_folder_of_the_hub_are_refused(
    hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MOST_IN_FOLDER", 2)
    refused = push(run)
    assert (refused.code, "the Hub accepts 2 in a folder" in refused.stderr, hub.requests) == (2, True, [])


def test_a_pull_replaces_nothing(hub: HubServer, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert push(run).code == 0
    (tmp_path / "MINE").mkdir()
    (tmp_path / "MINE" / "thesis.tex").write_text("mine", encoding="utf-8")
    other = captured(tmp_path, "OTHER", tiny_model, ROWS, guidance_scale=2.0)
    part = run / "samples" / "00001.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    for place, words in ((tmp_path / "MINE", "thesis.tex"), (other, "guidance_scale"), (run, "samples/00001.parquet")):
        before = contents(place)
        refused = pull(place)
        assert (refused.code, words in refused.stderr) == (3, True), refused.stderr
        assert contents(place) == before
    part.unlink()
    assert pull(run).code == 0


def test_what_is_no_run_is_not_pulled(hub: HubServer, run: Path, tmp_path: Path) -> None:
    hub.make("their-lab/images", {"train.csv": b"a,b"})
    missing, foreign = pull(tmp_path / "BACK", "their-lab/nothing"), pull(tmp_path / "BACK", "their-lab/images")
    assert (missing.code, "there is no dataset" in missing.stderr) == (2, True)
    assert (foreign.code, "has no run" in foreign.stderr) == (2, True)
    assert push(run).code == 0
    old = pull(tmp_path / "BACK", NAME, "--revision", "0" * 40)
    assert (old.code, "no revision" in old.stderr) == (2, True)
    assert not (tmp_path / "BACK").exists()


def test_an_earlier_commit_can_be_pulled(hub: HubServer, tiny_model: Path, tmp_path: Path) -> None:
    run = captured(tmp_path, "RUN", tiny_model, ROWS[:3])
    assert push(run).code == 0
    earlier, commit = contents(run), hub.repos[NAME].head
    captured(tmp_path, "RUN", tiny_model, ROWS)
    assert push(run).code == 0
    assert pull(tmp_path / "BACK", NAME, "--revision", commit).code == 0
    assert contents(tmp_path / "BACK") == earlier
