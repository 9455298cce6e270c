"""The commands beside anybody's files: in a folder whose modules and packages have names of ours and of libraries'."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty

import pytest
from explorer import explorer, layout_of
from job_server import BIN, job_server
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from fewchannels import manifest, open_run

RAISES = "raise RuntimeError(f'a file of somebody else was imported: {__file__}')\n"
FILES = ("engine", "store", "models", "manifest", "cluster", "worker", "tasks")
FOLDERS = ("runs", "queries", "tests", "schemas", "capture", "analyses")
# Modules that libraries import late. Python itself takes them from a folder that is on its path, so they are beside the
# command only: it has no such path, and Ray's workers must not have one either.
LIBRARIES = ("statistics", "timeit", "profile", "colorsys", "datasets")

COMMAND = [str(BIN / "fewchannels")]
MODULE = [sys.executable, "-m", "fewchannels"]


def fill(folder: Path, *files: str) -> None:
    """Modules and packages whose import raises, and a folder called ``fewchannels``, as a clone's parent has."""
    for name in (*FILES, *files):
        (folder / f"{name}.py").write_text(RAISES, encoding="utf-8")
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(RAISES, encoding="utf-8")
    (folder / "fewchannels" / "docs").mkdir(parents=True)
    manifest.ingest(["demo:4"], folder / "prompts.parquet", seeds=[0])


class Place:
    """A folder of somebody else's, and a way to start the command in it."""

    def __init__(self, folder: Path, command: list[str], **environment: str) -> None:
        self.folder, self.command = folder, command
        self.environment = os.environ | environment

    def run(self, line: str) -> str:
        """Everything that a command prints, which has to end well."""
        words = [*self.command, *line.split()]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module", params=["command", pytest.param("module", marks=pytest.mark.exhaustive)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Place:
    """With a run in it that two actors captured: by the command alone, and by ``python -m`` with ``PYTHONPATH=.``."""
    folder = tmp_path_factory.mktemp("foreign")
    is_command = request.param == "command"
    fill(folder, *(LIBRARIES if is_command else ()))
    made = Place(folder, COMMAND) if is_command else Place(folder, MODULE, PYTHONPATH=".")
    said = made.run(
        f"capture --manifest prompts.parquet --out RUN --model {tiny_model} --actors 2 --num-inference-steps 2 "
        "--shard-samples 1 --batch-size 1"
    )
    assert "4 samples in 4 tasks" in said
    assert "2 actors" in said
    return made


def test_a_capture_with_two_actors_is_whole(place: Place) -> None:
    run = open_run(place.folder / "RUN")
    assert run.sql("select count(*), count(distinct task) from samples").fetchone() == (4, 4)
    assert "4 of 4" in place.run("runs show RUN")


def test_an_analysis_has_several_workers(place: Place) -> None:
    place.run("analyze concentration RUN --workers 2")
    found = open_run(place.folder / "RUN").sql("select count(distinct sample_id) from concentration_cells")
    assert found.fetchone() == (4,)


def test_a_probe_edits(place: Place, tiny_model: Path) -> None:
    place.run(
        f"probe disruption --manifest prompts.parquet --out ZEROED --model {tiny_model} --actors 1 --k 2 "
        "--num-inference-steps 2"
    )
    assert list((place.folder / "ZEROED" / "edits").glob("*.parquet"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a Ray that was started in such a folder, with it on the path of all its processes."""
    folder = tmp_path_factory.mktemp("head")
    fill(folder)
    with job_server(folder, PYTHONPATH=str(folder)) as address:
        yield address


def test_a_job_captures(place: Place, address: str, tiny_model: Path) -> None:
    said = place.run(
        f"submit --address {address} --follow -- capture --manifest prompts.parquet --out {place.folder}/JOB "
        f"--model {tiny_model} --num-inference-steps 2 --actors 1"
    )
    assert "4 of 4 samples" in said


def test_the_explorer_answers(place: Place) -> None:
    with explorer([*place.command, "explore", "RUN"], place.folder, place.environment) as (_, address):
        assert "fewchannels" in layout_of(address)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingKernelClient]:
    """A real kernel of Jupyter, started in such a folder, which is first on its path."""
    folder = tmp_path_factory.mktemp("notebook")
    fill(folder)
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def execute(client: BlockingKernelClient, code: str) -> str:
    """What a cell prints; it must not raise."""
    sent, printed = client.execute(code), []
    while True:
        try:
            message = client.get_iopub_msg(timeout=300)
        except Empty:
            raise AssertionError("".join(printed)) from None
        if message["parent_header"].get("msg_id") != sent:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
        elif message["msg_type"] == "display_data":
            printed.append(content["data"].get("text/plain", ""))
        elif message["msg_type"] == "error":
            raise AssertionError("".join(printed) + "\n".join(content["traceback"]))
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            return "".join(printed)


def test_a_notebook_captures_analyzes_probes_submits_and_explores(
    kernel: BlockingKernelClient, address: str, tiny_model: Path, tmp_path: Path
) -> None:
    execute(
        kernel,
        "import importlib.util, os, threading, urllib.request\n"
        "import fewchannels\n"
        "from fewchannels.cli import app\n"
        "def call(line):\n"
        "    app(line.split(), standalone_mode=False)\n"
        "assert importlib.util.find_spec('engine').origin == os.path.join(os.getcwd(), 'engine.py')\n",
    )
    model = f"--model {tiny_model} --num-inference-steps 2"
    actors = "--actors 2 --shard-samples 1 --batch-size 1"
    captured = f"call('capture --manifest prompts.parquet --out RUN {model} {actors}')"
    assert "4 of 4 samples" in execute(kernel, captured)
    execute(kernel, "call('analyze concentration RUN --workers 1')")
    execute(kernel, f"call('probe disruption --manifest prompts.parquet --out ZEROED {model} --k 2')")
    job = f"capture --manifest prompts.parquet --out {tmp_path}/JOB {model}"
    assert "4 of 4 samples" in execute(kernel, f"call('submit --address {address} --follow -- {job}')")
    assert "4 of 4" in execute(kernel, "call('runs show RUN')")
    counted = execute(kernel, "print(fewchannels.open_run('RUN').sql('select count(*) from samples').fetchone())")
    assert counted == "(4,)\n"
    explored = execute(
        kernel,
        "from fewchannels.views.explore.opened import open_places\n"
        "from fewchannels.views.explore.server import bind\n"
        "bound = bind(open_places(['RUN']), 0)\n"
        "threading.Thread(target=bound.server.serve_forever, daemon=True).start()\n"
        "print(urllib.request.urlopen(bound.address).read().decode())\n"
        "bound.server.shutdown()\n",
    )
    assert "fewchannels" in explored
