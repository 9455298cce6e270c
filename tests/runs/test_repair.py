"""Whatever is damaged, repair removes records only, says so before, and the command that it names mends the rest."""

import random
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_points.forks import Forks

from fewchannels import manifest
from fewchannels.errors import StorageError
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.repair import check_report, plan, repair
from fewchannels.runs.upkeep.verify import verify

pytestmark = pytest.mark.usefixtures("undrawn")

SETTINGS = "--num-inference-steps 2 --batch-size 2"
RECORDS = r"ledger/\d{5}\.json|results/\w+/(units/\d{5}|result)\.json"
"""All that may ever be removed: small documents, of what the same command makes again."""
DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Forks]]:
    """A folder with a run, a merged run and a sweep, all with results; and what commands are run with."""
    folder = tmp_path_factory.mktemp("repair")
    forks = Forks(folder)
    for name, seed in (("manifest", 0), ("other", 1)):
        manifest.ingest(["demo:6"], folder / f"{name}.parquet", seeds=[seed])
    for command in (
        capture(folder, tiny_model, "run", "manifest"),
        capture(folder, tiny_model, "second", "other"),
        merge(folder),
        f"analyze stability {folder}/run --workers 1",
        f"analyze masks {folder}/run --label seen --workers 1",
        probe(folder, tiny_model),
    ):
        assert forks.run(shlex.split(command)) == 0, forks.said()
    yield folder, forks
    forks.close()


def capture(folder: Path, model: Path, run: str, table: str) -> str:
    return (
        f"capture --model {model} --manifest {folder}/{table}.parquet --out {folder}/{run} {SETTINGS} --top-k 3 "
        "--shard-samples 4 --actors 1"
    )


def merge(folder: Path) -> str:
    return f"runs merge {folder}/run {folder}/second --out {folder}/both"


def probe(folder: Path, model: Path) -> str:
    table = f"--manifest {folder}/manifest.parquet --out {folder}/sweep"
    return f"probe disruption --model {model} {table} {SETTINGS} --k 2 --actors 1"


@pytest.fixture(params=["run", "both", "sweep"])
def kept(request: pytest.FixtureRequest, made: tuple[Path, Forks]) -> Iterator[Path]:
    """A copy of one of them, whose own place may be damaged and is put back afterwards."""
    place = made[0] / request.param
    kept = place.with_name(f"{place.name}.kept")
    shutil.copytree(place, kept)
    yield kept
    again(kept)
    shutil.rmtree(kept)


def again(kept: Path) -> Path:
    """The place that was copied, as it was."""
    place = kept.with_suffix("")
    shutil.rmtree(place)
    return shutil.copytree(kept, place)


@pytest.fixture(
    params=[pytest.param(each, marks=pytest.mark.exhaustive) for each in (*DAMAGES,)] + [pytest.param("drawn")]
)
def damage_of(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A function that says how a key is damaged: in one way, or in one that is drawn for each key."""
    seed = random.randrange(2**32)
    print(f"drawn with seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    return lambda key: chance.choice([*DAMAGES]) if request.param == "drawn" else request.param


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def is_unfinished(key: str, damage: str) -> bool:
    """Whether work that was not finished looks as this damage does."""
    return damage == "missing" and bool(re.fullmatch(RECORDS, key))


def test_each_object_that_is_damaged_is_found_and_only_records_are_removed(
    kept: Path, damage_of: Callable[[str], str]
) -> None:
    place = again(kept)
    (place / "notes.txt").write_text("a user's own")
    storage, whole = open_storage(place), files(place)
    assert not verify(storage).problems
    for key in sorted(whole.keys() - {"notes.txt", "run.json", "sweep.json"}):
        damage = damage_of(key)
        DAMAGES[damage](place / key)
        report, before = verify(storage), files(place)
        assert is_unfinished(key, damage) or key in {problem.key for problem in report.problems}, (damage, key)
        planned = plan(report, str(place))
        assert files(place) == before, "a plan changes nothing"
        assert all(re.fullmatch(RECORDS, each) for each in planned.removed), planned.removed
        assert not report.problems or planned.steps
        repair(storage, planned)
        assert files(place) == {each: data for each, data in before.items() if each not in planned.removed}
        for each in {key, *planned.removed}:
            (place / each).write_bytes(whole[each])
    assert not verify(storage).problems


def test_a_repair_that_is_interrupted_at_any_record_is_gone_on_with(made: tuple[Path, Forks], tmp_path: Path) -> None:
    shutil.copytree(made[0] / "run", tmp_path / "run")
    for part in (tmp_path / "run" / "results").rglob("*.parquet"):
        part.write_bytes(flipped(part.read_bytes()))
    for shard in (tmp_path / "run").rglob("activations.zarr/rms/c.*"):
        shard.unlink()
    storage = open_storage(tmp_path / "run")
    left = plan(verify(storage), "run").removed
    assert {"ledger/00000.json", "ledger/00001.json", "results/seen/result.json"} < set(left)
    while left:
        (tmp_path / "run" / left[0]).unlink()
        again = plan(verify(storage), "run").removed
        assert set(again) == set(left[1:]), "what is left of the repair is what a second one does"
        left = again
    assert "seen_samples" not in files(tmp_path / "run")


def commands_in(text: str) -> list[list[str]]:
    """The ``fewchannels`` commands that a message names, as a shell splits them."""
    return [
        shlex.split(each)
        for each in re.findall(r"Run fewchannels (.*?)(?: with its original settings|, which recreates)", text)
    ]


KINDS = {
    "run": [
        "manifest.parquet",
        "activations.zarr/zarr.json",
        "activations.zarr/rms/zarr.json",
        "activations.zarr/sample_id/c/0",
        "activations.zarr/rms/c.1.0.0.0",
        "cells/00000.parquet",
        "samples/00001.parquet",
        "ledger/00001.json",
        "results/stability/begun.json",
        "results/stability/result.json",
        "results/seen/units/00001.json",
        "results/seen/samples/00000.parquet",
        "results/stability/summary.md",
    ],
    "both": ["manifest.parquet", "activations.zarr/sample/c/0", "samples/00002.parquet", "ledger/00000.json"],
    "sweep": [
        "manifest.parquet",
        "conditions.parquet",
        "edits/00000.parquet",
        "ledger/00000.json",
        "results/effects/begun.json",
        "results/effects/result.json",
        "results/effects/means/all.parquet",
    ],
}


def mend(made: tuple[Path, Forks], model: Path, place: Path, said: str) -> None:
    """Do what a message says, whichever of the three commands it names, or the commands that it spells out."""
    folder, forks = made
    remakes = {
        "the capture's command": capture(folder, model, place.name, "manifest"),
        "the merge's or export's command": merge(folder),
        "the probe's command": probe(folder, model),
    }
    todo = [shlex.split(command) for words, command in remakes.items() if words in said] + commands_in(said)
    assert todo, said
    for arguments in todo:
        workers = ["--workers", "1"] if arguments[0] == "analyze" else []
        assert forks.run([*arguments, *workers]) == 0, forks.said()


def test_the_command_that_is_named_mends_each_kind_of_damage(
    made: tuple[Path, Forks],
    tiny_model: Path,
    kept: Path,
    damage_of: Callable[[str], str],
    request: pytest.FixtureRequest,
) -> None:
    forks, kinds = made[1], KINDS[kept.stem]
    if request.node.get_closest_marker("exhaustive") is None:
        kinds = [kinds[0], *random.sample(kinds[1:], 3 if kept.stem == "run" else 1)]
        print("of", *kinds)  # noqa: T201
    for key in kinds:
        damage, place = damage_of(key), again(kept)
        if is_unfinished(key, damage):
            continue
        DAMAGES[damage](place / key)
        advice = advised(place)
        assert forks.run(["runs", "verify", str(place), "--repair", "--dry-run"]) == 4
        listed = forks.said()
        assert forks.run(["runs", "verify", str(place), "--repair"]) == 4
        repaired = forks.said()
        assert "Traceback" not in repaired
        assert keys_in(listed) == keys_in(repaired)
        assert advice in " ".join(repaired.split()), "what is said before and after a repair is the same remedy"
        mend(made, tiny_model, place, advice)
        assert not verify(open_storage(place)).problems, (damage, key)
        tables_with_seconds = ("samples/", "edits/")
        if not key.endswith("json") and not key.startswith(tables_with_seconds) and (place / key).exists():
            assert (place / key).read_bytes() == (kept / key).read_bytes(), (damage, key)


def keys_in(listing: str) -> list[str]:
    return re.findall(r"^  (\S+)$", listing, re.MULTILINE)


def advised(place: Path) -> str:
    """The steps of the message with which an undisturbed look ends."""
    with pytest.raises(StorageError) as caught:
        check_report(verify(open_storage(place)), str(place))
    return str(caught.value).rpartition("Then: ")[2].rpartition("damaged object. ")[2]


def test_a_result_of_masks_is_never_removed_where_only_files_of_a_user_would_make_it_again(
    made: tuple[Path, Forks], tmp_path: Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(made[0] / "run", place)
    (place / "results" / "seen" / "begun.json").write_bytes(b"{")
    before = files(place)
    report = verify(open_storage(place))
    planned = plan(report, str(place))
    assert planned.removed == ()
    (step,) = planned.steps
    assert f"fewchannels analyze masks {place} --label seen --replace" in step
    assert "Masks from files are read again" in step
    repair(open_storage(place), planned)
    assert files(place) == before


def test_dry_run_alone_is_refused(made: tuple[Path, Forks]) -> None:
    folder, forks = made
    assert forks.run(["runs", "verify", f"{folder}/run", "--dry-run"]) == 2
    assert "--dry-run needs --repair" in forks.said()


def test_a_repair_goes_with_the_lease(made: tuple[Path, Forks]) -> None:
    from fewchannels.runs.lease import hold

    folder, forks = made
    with hold(open_storage(folder / "run")):
        assert forks.run(["runs", "verify", f"{folder}/run", "--repair"]) == 3
        assert forks.run(["runs", "verify", f"{folder}/run", "--repair", "--dry-run"]) == 0


def test_nothing_is_made_where_there_is_no_run(made: tuple[Path, Forks], tmp_path: Path) -> None:
    assert made[1].run(["runs", "verify", str(tmp_path / "none"), "--repair"]) == 2
    assert not (tmp_path / "none").exists()
