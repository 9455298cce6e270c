"""Jobs of a real Ray that asks for a token, as one does whose user has a token in the home folder."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_server import BIN

TOKEN, OTHER = "ab" * 32, "cd" * 32


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def head(home: Path) -> Iterator[str]:
    """The address of its dashboard."""
    folder, port, dashboard = Path(f"/tmp/fewchannels-{os.getpid()}"), free_port(), free_port()
    folder.mkdir()
    given = {"HOME": str(home), "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    words = ["start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=1"]
    words += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    process = subprocess.Popen(
        [BIN / "ray", *words],
        env=os.environ | given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while "No jobs" not in asked(["status"], home, f"http://127.0.0.1:{dashboard}", TOKEN).stderr:
            assert time.monotonic() < deadline
            assert process.poll() is None
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", folder], check=True)


def asked(words: list[str], home: Path, address: str, token: str | None) -> subprocess.CompletedProcess[str]:
    """Ask as a user whose environment has a token or none; proxies of the environment are not for this machine."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    given = {"HOME": str(home), "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    given |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    return subprocess.run(
        [BIN / "fewchannels", words[0], "--address", address, *words[1:]],
        capture_output=True,
        text=True,
        env=bare | given,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("token", "says"), [(None, "none is sent without RAY_AUTH_MODE=token"), (OTHER, "has a different token than this")]
)
def test_a_cluster_that_asks_for_a_token_is_named_with_the_remedy(
    token: str | None, says: str, head: str, home: Path
) -> None:
    for words in (["status"], ["logs", "job"], ["stop", "job"], ["submit", "--", "query", "--list"]):
        done = asked(words, home, head, token)
        said = " ".join(done.stderr.split())
        assert done.returncode == 1, said
        assert "Traceback" not in said
        assert says in said, said
        assert "Set RAY_AUTH_MODE=token, and give the token of its head in RAY_AUTH_TOKEN" in said
        assert TOKEN not in said
        assert OTHER not in said


def test_an_id_that_is_taken_is_named(head: str, home: Path) -> None:
    words = ["submit", "--id", "first", "--", "query", "--list"]
    assert asked(words, home, head, TOKEN).returncode == 0
    again = asked(words, home, head, TOKEN)
    assert again.returncode == 3
    assert "the id 'first' is already used by another job. Give another --id." in " ".join(again.stderr.split())
