"""A lease is held by whoever lives, whatever the clocks of those who want it say: in a folder and in a bucket."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_server as s3
from moved_clock import YEAR_S, MovedClock, build

from fewchannels.errors import RunConflictError
from fewchannels.runs import lease
from fewchannels.runs.lease import hold
from fewchannels.runs.storage import open_storage

BEAT_S = 0.2
# Says when it holds the lease, and holds it until it is told to end; it is refused otherwise.
HOLDER = """
import sys, time
from fewchannels.errors import RunConflictError
from fewchannels.runs import lease
from fewchannels.runs.storage import open_storage
lease.BEAT_S = float(sys.argv[2])
try:
    with lease.hold(open_storage(sys.argv[1]), lambda why: print("waits", why, flush=True)) as token:
        print("holds", time.time(), flush=True)
        for line in sys.stdin:
            lease.check_held(open_storage(sys.argv[1]), token)
            print("still", time.time(), flush=True)
except RunConflictError as error:
    print("refused", error, flush=True)
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> MovedClock:
    built = build(tmp_path_factory.mktemp("clock"))
    if built is None:
        pytest.skip("a clock is moved by a library that is compiled here, and there is no C compiler")
    return built


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.s3_server(seed=4) as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, server: s3.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "BEAT_S", BEAT_S)
    if request.param == "folder":
        return str(tmp_path / "place")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.BUCKET}/{tmp_path.name}"


class Holder:
    """A process with a clock of its own that asks for the lease."""

    def __init__(self, url: str, clock: MovedClock) -> None:
        command = [sys.executable, "-c", HOLDER, url, str(BEAT_S)]
        environment = os.environ | clock.environment()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def said(self) -> list[str]:
        assert self.process.stdout
        return self.process.stdout.readline().split(maxsplit=1)

    def asked(self) -> list[str]:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.said()

    def end(self) -> None:
        self.process.communicate(timeout=30)


def test_whoever_holds_the_lease_keeps_it_while_its_clock_jumps(url: str, clock: MovedClock) -> None:
    clock.move(0)
    holder = Holder(url, clock)
    try:
        assert holder.said()[0] == "holds"
        for seconds in (YEAR_S, -YEAR_S, 0, -3600):
            clock.move(seconds)
            word, now = holder.asked()
            assert (word, round((float(now) - time.time()) / 60)) == ("still", seconds // 60)
            with pytest.raises(RunConflictError, match="another command is writing"), hold(open_storage(url)):
                pass
        assert holder.asked()[0] == "still"
        holder.end()
    finally:
        holder.process.kill()
    with hold(open_storage(url)):
        pass


@pytest.mark.parametrize("seconds", [YEAR_S, -YEAR_S])
def test_a_clock_that_jumps_takes_the_lease_from_nobody_who_lives(url: str, clock: MovedClock, seconds: int) -> None:
    clock.move(seconds)
    with hold(open_storage(url)) as token:
        other = Holder(url, clock)
        while (found := other.said())[0] == "waits":
            pass
        word, _ = found
        other.end()
        assert word == "refused"
        lease.check_held(open_storage(url), token)


@pytest.mark.parametrize("seconds", [YEAR_S, -YEAR_S])
def test_the_lease_of_one_that_was_killed_is_waited_for_as_long_as_ever(
    url: str, clock: MovedClock, seconds: int
) -> None:
    clock.move(0)
    killed = Holder(url, clock)
    assert killed.said()[0] == "holds"
    killed.process.kill()
    killed.process.wait()
    next_one = Holder(url, clock)
    try:
        if url.startswith("s3:"):
            assert next_one.said()[0] == "waits"
            started = time.monotonic()
            clock.move(seconds)
            assert next_one.said()[0] == "holds"
            assert time.monotonic() - started > 0.9 * BEAT_S * lease.MISSED_BEATS
        else:
            clock.move(seconds)
            assert next_one.said()[0] == "holds"
        next_one.end()
    finally:
        next_one.process.kill()
