"""A cluster of several hosts by Ray's own launcher over ssh: up, a cut network, a full disk, a dead head, down."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from hosts import ROOT, Host, NoHostsError, hosts, ssh
from sent import NEEDED
from tiny import TINY

from fewchannels import manifest, open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.demo.build import build_pipeline
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.verify import verify

BIN = Path(sys.executable).parent
N_SAMPLES, N_TASKS = 24, 12
FLAGS = {"num_inference_steps": 120, "top_k": 4, "batch_size": 2, "shard_samples": 2}
# A node that is out of reach is given up after 5 s instead of a minute.
IMPATIENT = "RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=1000 RAY_health_check_failure_threshold=5"
# And a node gives up a head that is out of reach after 20 s.
LONELY = "RAY_gcs_rpc_server_reconnect_timeout_s=20"


@dataclass
class Site:
    """Three hosts with a shared folder, and the cluster file for them."""

    head: Host
    workers: list[Host]
    folder: Path
    config: Path

    def launcher(self, verb: str) -> subprocess.CompletedProcess[str]:
        """``ray up`` or ``ray down``."""
        command = [str(BIN / "ray"), verb, "-y", *(["--no-config-cache"] if verb == "up" else []), str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)

    def fewchannels(self, *words: str) -> list[str]:
        return [str(BIN / "fewchannels"), *words]

    def submit(self, run: str, job: str) -> subprocess.Popen[str]:
        """Start a capture as a job, and follow it."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
        capture = ["capture", "--model", f"{self.folder}/tiny", "--manifest", f"{self.folder}/manifest.parquet"]
        capture += ["--out", f"{self.folder}/{run}", "--actors", "2", "--cpus-per-actor", "1", *flags]
        address = f"http://{self.head.address}:8265"
        words = self.fewchannels("submit", "--address", address, "--id", job, "--follow", "--", *capture)
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)

    def records(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in (self.folder / run / "ledger").glob("0*.json")]

    def check(self, run: str) -> None:
        """It holds what an undisturbed capture in this process holds, and every byte is the recorded one."""
        here, there = (open_run(self.folder / name) for name in ("undisturbed", run))
        question = "select sample, sample_id, image from samples order by sample"
        assert here.sql(question).fetchall() == there.sql(question).fetchall()
        assert not verify(open_storage(self.folder / run)).problems


def until(is_so: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.2)


def runs_ray(host: Host, folder: Path) -> bool:
    return "raylet" in ssh(host, folder, "ps", "axo", "comm").stdout


@contextmanager
def large_run() -> Iterator[None]:
    """A run of 1 GB where the demo leaves its own, beside what nodes are sent; their home has room for 64 MB."""
    place = ROOT / "runs" / "test-hosts"
    place.mkdir(parents=True, exist_ok=True)
    try:
        with (place / "large").open("wb") as file:
            file.truncate(2**30)
        yield
    finally:
        shutil.rmtree(place)
        with suppress(OSError):  # not empty: the user's own
            place.parent.rmdir()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not os.environ.get("FEWCHANNELS_CLUSTER_TESTS"):
        pytest.skip("set FEWCHANNELS_CLUSTER_TESTS=1 to make hosts of network namespaces; it takes root")
    folder = tmp_path_factory.mktemp("shared")
    manifest.ingest([f"demo:{N_SAMPLES}"], folder / "manifest.parquet")
    build_pipeline(TINY, seed=1).save_pretrained(folder / "tiny")
    job = prepare(folder / "manifest.parquet", folder / "undisturbed", CaptureConfig(model=f"{folder}/tiny", **FLAGS))
    begin(job, folder / "manifest.parquet")
    list(map(CaptureWorker(job, 1), range(N_TASKS)))
    try:
        with hosts(3, folder) as (head, *workers):
            config = yaml.safe_load((ROOT / "docs" / "cluster" / "on_premise.yaml").read_text(encoding="utf-8"))
            config["provider"] |= {"head_ip": head.address, "worker_ips": [each.address for each in workers]}
            config["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
            # No package index is in reach: the environment is there.
            *kept, make, pick, install = config["setup_commands"]
            assert ("venv" in make, "pip install" in install) == (True, True)
            config["setup_commands"] = [*kept, f"ln -sfn {BIN.parent} ~/venv", pick]
            config["head_start_ray_commands"][1] = f"export {IMPATIENT}; {config['head_start_ray_commands'][1]}"
            # One actor fills a host, and computes with one thread: two of each on this machine wait for each other.
            start = config["worker_start_ray_commands"][1].replace("ray start", "ray start --num-cpus=1")
            config["worker_start_ray_commands"][1] = f"export {LONELY}; {start}"
            (folder / "cluster.yaml").write_text(yaml.safe_dump(config))
            made = Site(head, workers, folder, folder / "cluster.yaml")
            with large_run():
                up = made.launcher("up")
            assert up.returncode == 0, up.stdout + up.stderr
            until(lambda: all(runs_ray(host, folder) for host in workers))
            yield made
            down = made.launcher("down")
            assert down.returncode == 0, down.stdout + down.stderr
            assert not runs_ray(head, folder), down.stdout + down.stderr
            until(lambda: not any(runs_ray(host, folder) for host in workers))
    except NoHostsError as error:
        pytest.skip(f"hosts cannot be made here: {error}")


def test_every_host_got_what_it_needs_and_no_runs(site: Site) -> None:
    for host in (site.head, *site.workers):
        names = set(ssh(host, site.folder, "ls ~/fewchannels").stdout.split())
        assert names == NEEDED
        pins = ssh(host, site.folder, "cat ~/constraints.txt").stdout
        assert f"ray=={ray.__version__}\n" in pins
        assert "\ntorch==" not in pins


def test_a_full_disk_on_a_host_costs_no_sample(site: Site) -> None:
    job = site.submit("FULL", "full")
    # Ray starts no actor on a full disk. So both work already, and no host is away that could come back meanwhile.
    until(lambda: len({record["host"] for record in site.records("FULL")}) == 2)
    for host in site.workers:
        ssh(host, site.folder, "fallocate -l 2G /tmp/rest || dd if=/dev/zero of=/tmp/rest bs=1M")
    said, _ = job.communicate(timeout=240)
    for host in site.workers:
        ssh(host, site.folder, "rm /tmp/rest")
    assert job.returncode == 0, said
    site.check("FULL")


def test_a_host_whose_network_is_cut_costs_time_and_no_sample(site: Site) -> None:
    job = site.submit("CUT", "cut")
    until(lambda: len({record["host"] for record in site.records("CUT")}) == 2)
    site.workers[0].cut()
    said, _ = job.communicate(timeout=240)
    site.workers[0].mend()
    assert job.returncode == 0, said
    assert re.search("24 of 24 samples .* [12] tasks were retried", said), said
    site.check("CUT")


@pytest.mark.exhaustive  # five minutes, most of them spent waiting for Ray
def test_a_head_that_dies_leaves_a_run_that_goes_on_on_the_next(site: Site) -> None:
    job = site.submit("HEAD", "head")
    until(lambda: len(site.records("HEAD")) >= 2)
    ssh(site.head, site.folder, "pkill -9 gcs_server; pkill -9 raylet; pkill -9 -f fewchannels")
    job.communicate(timeout=240)
    done = len(site.records("HEAD"))
    assert job.returncode != 0
    assert 2 <= done < N_TASKS
    up = site.launcher("up")
    assert up.returncode == 0, up.stdout + up.stderr
    again = site.submit("HEAD", "head2")
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert "resuming 24 samples" in said
    site.check("HEAD")
