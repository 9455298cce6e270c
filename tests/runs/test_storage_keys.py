"""What storage takes as a key, and where a folder's links lead: nowhere outside the run."""

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dead_process import left_by_a_dead_process
from hypothesis import example, given
from hypothesis import strategies as st

from fewchannels.errors import StorageError
from fewchannels.runs.arrays import NAME, open_dataset, read
from fewchannels.runs.storage import FolderStorage, ObjectStorage, Storage, open_storage

PLAIN = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("Cs",)), min_size=1, max_size=8).filter(
    lambda part: part not in (".", "..") and part[1:2] != ":"
)
BAD_PARTS = ("", ".", "..", "C:", "c:x", "a\\b", "..\\b", "\\", "a\0", "\0")


@st.composite
def forged(draw: st.DrawFn) -> str:
    """A key of plain parts, and one at any place that is not."""
    parts = draw(st.lists(PLAIN, max_size=3))
    parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(BAD_PARTS)))
    return "/".join(parts)


VERBS: dict[str, Callable[[Storage, str], object]] = {
    "put": lambda storage, key: storage.put(key, [b"forged"]),
    "get": lambda storage, key: storage.get(key),
    "open": lambda storage, key: storage.open(key),
    "list": lambda storage, key: storage.list(f"{key}/"),
    "delete": lambda storage, key: storage.delete([key]),
    "move": lambda storage, key: storage.move(key, "a"),
    "move to": lambda storage, key: storage.move("a", key),
    "size": lambda storage, key: storage.size(key),
    "exists": lambda storage, key: storage.exists(key),
    "location": lambda storage, key: storage.location(f"{key}/"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Storage]]:
    """A folder with a file that is not the run's, a run in it, and a bucket that no request may reach."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "victim.txt").write_text("mine")
    (folder / "RUN").mkdir()
    return folder, [open_storage(folder / "RUN"), ObjectStorage("s3://nobody/RUN", patience_s=0.01)]


@pytest.mark.parametrize("verb", VERBS)
@given(key=forged())
@example(key="../victim.txt")
@example(key="a/../../victim.txt")
@example(key="/etc/passwd")
@example(key="")
@example(key="ledger/\n/..")
def test_a_key_that_could_lead_out_of_a_run_is_refused(verb: str, key: str, places: tuple[Path, list[Storage]]) -> None:
    folder, storages = places
    for storage in storages:
        with pytest.raises(StorageError, match="is not a location inside"):
            VERBS[verb](storage, key)
    assert sorted(os.listdir(folder)) == ["RUN", "victim.txt"]
    assert (folder / "victim.txt").read_text() == "mine"


def test_the_verbs_of_objects_alone_refuse_it_as_well() -> None:
    storage = ObjectStorage("s3://nobody/RUN", patience_s=0.01)
    for ask in (lambda: storage.get_tagged("../a"), lambda: storage.put_if("../a", b"", None)):
        with pytest.raises(StorageError, match="is not a location inside"):
            ask()


@given(parts=st.lists(PLAIN.filter(lambda part: part[0] != "."), min_size=1, max_size=3))
def test_every_other_key_is_taken(parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    storage, key = open_storage(tmp_path_factory.mktemp("plain") / "RUN"), "/".join(parts)
    stored = storage.put(key, [b"data"])
    assert (storage.get(key), storage.size(key), storage.list()) == (b"data", stored.n_bytes, {key: 4})
    storage.delete([key])
    assert not storage.exists(key)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A run whose file ``a/file`` and folder ``b`` are links to files outside, ``c`` to nothing, ``pipe`` a pipe."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "file").write_text("mine")
    run = tmp_path / "RUN"
    (run / "a").mkdir(parents=True)
    (run / "a" / "file").symlink_to(tmp_path / "private" / "file")
    (run / "b").symlink_to(tmp_path / "private")
    (run / "c").symlink_to(tmp_path / "made")
    os.mkfifo(run / "pipe")
    return run


@pytest.mark.parametrize("verb", ["get", "open", "size", "exists", "location"])
@pytest.mark.parametrize("key", ["a/file", "b/file", "c/file", "c"])
def test_nothing_is_read_through_a_link(linked: Path, verb: str, key: str) -> None:
    with pytest.raises(StorageError, match="is a symbolic link"):
        VERBS[verb](open_storage(linked), key)


def test_a_listing_has_what_lies_in_the_run(linked: Path) -> None:
    storage = open_storage(linked)
    storage.put("a/own", [b"1"])
    (linked / "a" / "again").symlink_to(linked)
    assert storage.list() == storage.list("a/") == {"a/own": 1}
    with pytest.raises(StorageError, match="b is a symbolic link"):
        storage.list("b/")


@pytest.mark.parametrize("verb", ["put", "delete", "move", "move to"])
@pytest.mark.parametrize("key", ["b/file", "b/new", "b/new/file", "c/file", "c/new/file"])
def test_nothing_is_written_or_deleted_behind_a_link(linked: Path, tmp_path: Path, verb: str, key: str) -> None:
    with pytest.raises(StorageError, match="is a symbolic link"):
        VERBS[verb](open_storage(linked), key)
    assert sorted(os.listdir(tmp_path)) == ["RUN", "private"]
    assert {path.name: path.read_text() for path in (tmp_path / "private").iterdir()} == {"file": "mine"}


def test_pruning_removes_no_folder_behind_a_link(linked: Path, tmp_path: Path) -> None:
    (tmp_path / "private" / "empty").mkdir()
    (linked / "a" / "again").symlink_to(tmp_path / "private")
    storage = open_storage(linked)
    with pytest.raises(StorageError, match="b is a symbolic link"):
        storage.prune("b/")
    storage.prune("a/")
    assert (tmp_path / "private" / "empty").is_dir()


def test_a_link_in_an_objects_place_is_replaced_or_removed_itself(linked: Path, tmp_path: Path) -> None:
    storage = open_storage(linked)
    storage.put("a/file", [b"new"])
    assert storage.get("a/file") == b"new"
    storage.delete(["b"])
    assert not (linked / "b").exists()
    assert (tmp_path / "private" / "file").read_text() == "mine"


def test_a_link_in_a_temporary_files_place_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name can be foreseen: node, process and thread."""
    (tmp_path / "private").write_text("mine")
    storage, opened = open_storage(tmp_path / "RUN"), []
    true_open = os.open

    def plant(path: str, flags: int, *rest: int) -> int:
        if str(path).endswith(".tmp") and not opened:
            opened.append(path)
            os.symlink(tmp_path / "private", path)
        return true_open(path, flags, *rest)

    storage.put("file", [b"old"])
    monkeypatch.setattr(os, "open", plant)
    storage.put("file", [b"new"])
    assert opened
    assert storage.get("file") == b"new"
    assert (tmp_path / "private").read_text() == "mine"
    assert storage.clean() == 0


def test_a_pipe_is_refused_and_not_waited_for(linked: Path) -> None:
    storage = open_storage(linked)
    for verb in ("get", "open", "size"):
        with pytest.raises(StorageError, match="neither a file nor a folder"):
            VERBS[verb](storage, "pipe")
    storage.put("pipe", [b"file"])
    assert storage.get("pipe") == b"file"


def test_cleaning_removes_links_and_not_what_they_name(linked: Path, tmp_path: Path) -> None:
    left = left_by_a_dead_process("file")
    (tmp_path / "private" / left).write_text("mine")
    (linked / "a" / left).write_text("left over")
    assert open_storage(linked).clean() == 1
    assert (tmp_path / "private" / left).read_text() == "mine"


KEPT = Path(__file__).parents[1] / "data" / "kept_runs" / "format_2"


def test_arrays_on_another_disk_are_read_and_never_written_through_their_link(tmp_path: Path) -> None:
    run, disk = tmp_path / "RUN", tmp_path / "disk"
    shutil.copytree(KEPT, run)
    shutil.move(run / NAME, disk)
    (run / NAME).symlink_to(disk)
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    storage = pickle.loads(pickle.dumps(open_storage(run)))
    assert storage.list() == open_storage(KEPT).list()
    assert storage.size(f"{NAME}/zarr.json") == open_storage(KEPT).size(f"{NAME}/zarr.json")
    assert open_dataset(storage).load().identical(open_dataset(open_storage(KEPT)).load())
    for verb in ("put", "delete"):
        with pytest.raises(StorageError, match="are not written through links"):
            VERBS[verb](storage, f"{NAME}/zarr.json")
    assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before
    (disk / "zarr.json").unlink()  # now it could be any folder
    with pytest.raises(StorageError, match="is a symbolic link"):
        storage.size(f"{NAME}/rms/zarr.json")
    assert not [key for key in storage.list() if key.startswith(NAME)]


@pytest.mark.parametrize("key", ["zarr.json", "rms/c.0.0.0.0", "rms"])
def test_zarr_reads_nothing_behind_a_link_in_the_arrays(tmp_path: Path, key: str) -> None:
    run = tmp_path / "RUN"
    shutil.copytree(KEPT, run)
    shutil.move(run / NAME / key, tmp_path / "moved")
    (run / NAME / key).symlink_to(tmp_path / "moved")
    with pytest.raises(StorageError, match="is a symbolic link"):
        read(open_storage(run), ["rms"], 0, 2)
    with pytest.raises(StorageError, match="is a symbolic link"):
        open_dataset(open_storage(run))["rms"].load()


def test_what_a_file_system_keeps_in_a_volumes_root_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only root may list it, and tests may run as root: whoever lists it here is refused all the same."""
    (tmp_path / "lost+found").mkdir(mode=0o700)
    (tmp_path / "lost+found" / ".x.tmp").write_bytes(b"another's")
    own = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return own(path)

    monkeypatch.setattr(os, "scandir", scandir)
    storage = FolderStorage(tmp_path)
    storage.put("a/b", [b"x"])
    assert storage.list() == {"a/b": 1}
    assert storage.left_over() == {}
    assert storage.clean() == 0
    storage.prune("a")
