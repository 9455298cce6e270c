"""A Ray on this machine whose node dies while actors start: the driver ends in words."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

DRIVER = """
import sys
from stub_work import StubWork, start_stub
from fewchannels.cluster.pool import outcomes
from fewchannels.cluster.session import ray_session
from fewchannels.cluster.shares import Pool
from fewchannels.errors import FewchannelsError
pool, work = Pool(2, 0, 1), StubWork(sys.argv[1], 4)
try:
    with ray_session(pool):
        print("started", flush=True)
        list(outcomes(work, start_stub, [0, 1, 2, 3], pool))
except FewchannelsError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def part_of(process: psutil.Process, what: str) -> list[psutil.Process]:
    """The node itself, or one of the agents that it does not outlive."""
    found = []
    for each in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if each.name() == what or (what in each.name() and each.name().startswith("ray::")):
                found.append(each)
    return found


@pytest.mark.parametrize("what", ["raylet", "RuntimeEnvAgent"])
def test_a_node_that_dies_while_actors_start_ends_the_work_with_the_reason(what: str, tmp_path: Path) -> None:
    helpers = str(Path(__file__).parents[1] / "helpers")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert driver.stdout
    try:
        assert driver.stdout.readline() == "started\n"
        while not (victims := part_of(psutil.Process(driver.pid), what)):
            time.sleep(0.05)
        for victim in victims:
            victim.kill()
        killed = time.monotonic()
        said, _ = driver.communicate(timeout=120)
    finally:
        family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        for each in family:
            each.kill()
        driver.kill()
    assert driver.returncode == 1, said
    assert "Ray's node has died" in said
    assert "run again to resume" in said
    assert time.monotonic() - killed < 90
