"""A Ray of this command's own, where the environment is not as Ray expects it."""

import os
import resource
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from ray._private import worker

from fewchannels import machine
from fewchannels.cluster import nodes, own_ray, session
from fewchannels.cluster.own_ray import settled
from fewchannels.errors import FewchannelsError, InputError

LONG = "x" * 80


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def is_bindable(path: Path) -> bool:
    """Whether the kernel takes the path of a socket."""
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(str(path))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("length", range(20, 60, 3))
def test_a_folder_is_usable_where_the_kernel_takes_its_sockets(length: int, tmp_path: Path) -> None:
    root = Path("/tmp", f"{os.getpid()}")
    folder = root / ("x" * (length - len(str(root)) - 1))
    session = f"session_2026-11-30_05-57-08_249846_{os.getpid()}"  # as Ray names it
    try:
        assert (own_ray._unusable(folder) == "") == is_bindable(folder / session / "sockets" / "plasma_store")
    finally:
        subprocess.run(["rm", "-rf", root], check=True)


def test_a_long_temporary_folder_is_left_for_a_short_one_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / LONG))
    with settled():
        chosen = Path(os.environ["RAY_TMPDIR"])
        assert own_ray._unusable(chosen / "ray") == ""
        assert (chosen.stat().st_uid, chosen.stat().st_mode & 0o777) == (os.getuid(), 0o700)
    assert "RAY_TMPDIR" not in os.environ


def test_a_long_folder_that_the_user_chose_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / LONG))
    with pytest.raises(InputError, match=r"RAY_TMPDIR is .* is too long a path for its sockets"):
        settled().__enter__()


def test_another_users_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(own_ray, "_LONGEST_SOCKET", 200)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "ray")  # root may write everywhere
    assert "is not writable for this user" in own_ray._unusable(tmp_path / "ray")
    with settled():
        assert os.environ["RAY_TMPDIR"] == f"/tmp/fewchannels-ray-{os.getuid()}"


def test_the_token_of_a_ray_ends_with_it() -> None:
    with settled():
        token = os.environ["RAY_AUTH_TOKEN"]
        assert len(token) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ
    with settled():
        assert os.environ["RAY_AUTH_TOKEN"] != token


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"])
def test_what_the_user_says_about_tokens_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "disabled")
    with settled():
        assert {each: os.environ[each] for each in os.environ if each.startswith("RAY_AUTH_")} == {name: "disabled"}


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("USER", raising=False)
    monkeypatch.setattr("getpass.getuser", unknown)
    machine.name_user()
    assert os.environ["USER"] == str(os.getuid())


CAPTURE = """
import os, sys
from pathlib import Path
from fewchannels.cluster.parallel import mapped
from fewchannels.cluster.session import ray_session
from fewchannels.cluster.shares import Pool
pool = Pool(1, 0, 1)
with ray_session(pool):
    print(sorted(mapped(abs, [-1, -2], pool)))
"""


def test_ray_starts_for_a_user_without_home_and_name_in_a_long_temporary_folder(tmp_path: Path) -> None:
    folder = tmp_path / LONG
    folder.mkdir()
    bare = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    command = [sys.executable, "-c", CAPTURE]
    if os.getuid() == 0:
        os.chmod(folder, 0o777)
        rights = "+dac_read_search"  # the interpreter may be in a folder of root's
        words = ["--reuid=12345", "--regid=12345", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}"]
        command = ["setpriv", *words, *command]
    environment = bare | {"TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[(-2, 2), (-1, 1)]"), done.stderr
    assert not list(folder.iterdir())


def test_a_home_folder_that_nobody_knows_is_refused_in_words(tmp_path: Path) -> None:
    words = ["runs", "show", "~fewchannels-nobody/run"]
    done = subprocess.run([sys.executable, "-m", "fewchannels", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "starts with a home folder that cannot be resolved" in " ".join(done.stderr.split())


def test_a_limit_of_virtual_memory_is_named_where_ray_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(session.ray, "init", fail)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3 * 10**9, 3 * 10**9))
    with pytest.raises(FewchannelsError, match=r"limited to 3 GB \(ulimit -v\).* run ulimit -v unlimited"):
        session._connect(None)


def test_of_rays_paragraphs_the_first_sentence_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    death = "A worker died or was killed by an unexpected system error. To troubleshoot, check the logs. Lease ID: 00."
    session._shorten_messages()
    session._shorten_messages()
    for text in (death, "The autoscaler failed with the following error:\nTerminated"):
        worker.print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    worker.print_to_stdstream({"lines": ["One. Two."], "pid": 7, "ip": "", "is_err": False}, ignore_prefix=True)
    out, errors = capsys.readouterr()
    assert "(raylet)" not in out
    assert "One. Two." in out
    assert [line.partition("(raylet)")[2].split(" ", 1)[1] for line in errors.splitlines()] == [
        "A worker died or was killed by an unexpected system error.",
        "The autoscaler failed with the following error:",
    ]


def test_a_head_that_no_longer_answers_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_LOOK_AT_HEAD_S", 0.05)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with socket.create_server(("127.0.0.1", 0)) as head:
            address = f"127.0.0.1:{head.getsockname()[1]}"
            with nodes.head_watched(address):
                time.sleep(0.5)
                assert not found
                head.close()
                deadline = time.monotonic() + 20
                while not found and time.monotonic() < deadline:
                    time.sleep(0.05)
                time.sleep(0.5)
    (warning,) = found
    assert warning.category is nodes.HeadWarning
    assert f"does not answer at {address} (Connection refused)" in str(warning.message)
    assert "rerun the same command to resume" in str(warning.message)
