"""Kills real captures at random moments, lets them resume, and counts what that cost.

    python tests/helpers/kill_harness.py --rounds 50 --seed 0 --json kills.json

A round is one run: a capture through the real command is killed at a random moment, sometimes the next one too, then
the same command is run until it ends well. What is killed:

- ``actor``: the process of a Ray actor.
- ``group``: the actor's process group. Ray gives each of its workers one of its own, so that this is the actor and
  whatever it started; the driver and Ray's daemons share another.
- ``driver``: the driver alone; its daemons and actors find out by themselves.
- ``driver, met``: the raylet, which would kill the actors, and then the driver; the actors are held up, as a slow disk
  may do, until the next capture, started at once, has found them: workers that outlive their capture meet the next.
- ``everything``: the driver and all that it started.
- ``raylet``: the daemon that starts and watches the actors.

Every capture has a session of its own, and nothing outside of it is ever signalled.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from tiny import TINY

from fewchannels import manifest, open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import Job, prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cli.console import results, say
from fewchannels.cluster.sizing import choose_pool
from fewchannels.demo.build import build_pipeline
from fewchannels.runs.description import NAME, objects_of, read_description
from fewchannels.runs.lease import DRIVER_LOCK, WORKERS_LOCK
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.storage import Stored, open_storage

N_SAMPLES, N_TASKS = 24, 12
FLAGS = {"num_inference_steps": 3, "top_k": 4, "batch_size": 2, "shard_samples": 2}
KINDS = ("actor", "group", "driver", "driver, met", "everything", "raylet")
MOMENTS = ("starting", "beginning", "begun", "recording")
RERUNS = 3
LIMIT_S, ORPHANS_S = 300.0, 3.0
BEGUN, WAITS = ("capturing", "resuming"), "waiting for them to end"  # what captures say


@dataclass(frozen=True)
class Kill:
    """What to kill, and when: so many seconds after the start, or new records, and a delay after that moment."""

    kind: str
    moment: str
    amount: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True)
class Blow:
    """What a kill did: to what, after how many records; the capture's exit code, None where it was killed itself."""

    kill: Kill
    n_records: int
    killed: list[str]
    exit_code: int | None
    traceback: bool


@dataclass(frozen=True)
class Findings:
    """What is wrong: samples lost, doubled, unlike an undisturbed run's; objects unlike their records; stray files."""

    lost: int
    duplicated: int
    differing: int
    damaged: int
    stray: int


CLEAN = Findings(0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Round:
    """One run's fate; ``met`` counts captures that had to wait for workers of an earlier one."""

    blows: list[Blow]
    reruns: int
    complete: bool
    redone: int
    met: int
    findings: Findings
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether it ended as it must."""
        return self.complete and self.findings == CLEAN


class Stage:
    """What all rounds share: a model, a manifest, and the run of an undisturbed capture, made in this process."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model, self.manifest, self.undisturbed = model, folder / "manifest.parquet", folder / "undisturbed"
        manifest.ingest([f"demo:{N_SAMPLES}"], self.manifest)
        self.sample_ids = manifest.sample_ids(self.manifest)
        self.work(self.begun(self.undisturbed), range(N_TASKS))

    def prepared(self, run: Path) -> Job:
        """The job of a run."""
        return prepare(self.manifest, run, CaptureConfig(model=str(self.model), **FLAGS))

    def begun(self, run: Path) -> Job:
        """The job of a run that has begun."""
        begin(job := self.prepared(run), self.manifest)
        return job

    @staticmethod
    def work(job: Job, tasks: Sequence[int]) -> None:
        """Do tasks in this process."""
        list(map(CaptureWorker(job, choose_pool(2, None).cpus_per_actor), tasks))

    def command(self, run: Path, *more: str) -> list[str]:
        """The capture's command line."""
        paths = {"model": self.model, "manifest": self.manifest, "out": run}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in (paths | FLAGS).items()]
        return [str(Path(sys.executable).parent / "fewchannels"), "capture", *flags, "--actors=2", *more]

    def check(self, run: Path) -> Findings:
        """Compare a run with what it must be."""
        try:
            ours, theirs = _contents(run), _contents(self.undisturbed)
            found = [row[0] for row in open_run(run).sql("select sample_id from samples").fetchall()]
            damaged, stray = _against_records(run)
        except Exception as error:  # a run that cannot be read is the worst finding, not the end of all rounds
            say(f"{run} cannot be read: {type(error).__name__}: {error}", style="red")
            return Findings(N_SAMPLES, 0, 0, 0, 0)
        lost, doubled = set(self.sample_ids) - set(found), len(found) - len(set(found) & set(self.sample_ids))
        differing = sum(ours[sample] != content for sample, content in theirs.items())
        return Findings(len(lost), doubled, differing, damaged, stray)


def _contents(run: Path) -> dict[int, list[Any]]:
    """All that is kept of each sample, but for what depends on the clock and the machine; -1 is for the axes."""
    opened = open_run(run)
    arrays = opened.activations.load()
    names = sorted(arrays.variables)
    contents: dict[int, list[Any]] = {-1: [repr(arrays[n].values) for n in names if "sample" not in arrays[n].dims]}
    for sample in range(arrays.sizes["sample"]):
        values = [arrays[name].values[sample] for name in names if "sample" in arrays[name].dims]
        contents[sample] = [value if isinstance(value, str) else value.tobytes() for value in values]
    for question in (
        "select sample, sample_id, prompt, status, image from samples",
        "select sample, * exclude (sample) from cells order by step, layer",
    ):
        for row in opened.sql(question).fetchall():
            contents[row[0]].append(repr(row))  # as text, so that NaN equals NaN
    return contents


def _against_records(run: Path) -> tuple[int, int]:
    """How many objects are not as the records say, and how many files nothing names."""
    storage = open_storage(run)
    description = read_description(storage)
    records = Ledger(storage).records(description["fingerprint"])
    named = objects_of(description) | {key: each for record in records.values() for key, each in record.objects.items()}
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    damaged = [key for key, each in named.items() if key not in there or Stored.of([storage.get(key)]) != each]
    known = {*named, NAME, DRIVER_LOCK, WORKERS_LOCK, *map(Ledger.key, records)}
    stray = [key for key in there - known if not key.startswith("ledger/failed/")]
    if damaged or stray:
        say(f"{run}: damaged {damaged}, stray {stray}", style="red")
    return len(damaged), len(stray)


def until(condition: Callable[[], Any], limit: float) -> None:
    """Wait until something is so, or the time is over."""
    deadline = time.monotonic() + limit
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


# Leads a capture's session, outlives it, and adopts what it leaves: the kernel hangs up on stopped processes without
# a parent in their session. Writes the driver's id, and in a file its exit code.
LEADER = """
import ctypes, pathlib, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
driver = subprocess.Popen(sys.argv[2:], stdout=sys.stderr)
print(driver.pid, flush=True)
pathlib.Path(sys.argv[1]).write_text(str(driver.wait()))
signal.pause()
"""


def _each(processes: Sequence[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            do(process)


class Victim:
    """A real capture in a session of its own, by which all that it starts is told from everything else that runs."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log, self._code, self.started = log, log.with_suffix(".code"), time.monotonic()
        with log.open("w") as errors:
            leader = [sys.executable, "-c", LEADER, str(self._code), *command]
            self._leader = subprocess.Popen(leader, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        assert self._leader.stdout
        self.driver = int(self._leader.stdout.readline())

    def family(self, name: str = "") -> list[psutil.Process]:
        """What lives of the driver and all that it has started, with this in their names."""
        found = []
        for pid in psutil.pids() if self._leader.returncode is None else []:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if os.getsid(pid) == self._leader.pid != pid and process.status() != psutil.STATUS_ZOMBIE:
                    found += [process] if name in process.name() else []
        return found

    def said(self, *texts: str) -> bool:
        """Whether it has said one of these."""
        return any(text in self.log.read_text(encoding="utf-8", errors="replace") for text in texts)

    def code(self) -> int | None:
        """The driver's exit code; negative where a signal ended it, None where it runs."""
        text = self._code.read_text() if self._code.exists() else ""
        return int(text) if text else None

    def wait_for(self, condition: Callable[[], Any], limit: float = LIMIT_S) -> None:
        """Wait until something is so, or the driver has ended, or the time is over."""
        until(lambda: self.code() is not None or condition(), limit)

    def end(self, limit: float = LIMIT_S) -> int | None:
        """Let the driver end, kill what is left then; its exit code, or None where it did not end by itself."""
        self.wait_for(lambda: False, limit)
        code = self.code()
        while left := self.family():
            _each(left, psutil.Process.kill)
            time.sleep(0.01)
        self._leader.kill()
        self._leader.wait()
        return code if code is not None and code >= 0 else None


def records_of(run: Path) -> dict[str, tuple[int, int]]:
    """The records of a run, each with what changes when it is written again."""
    found = {path.name: path.stat() for path in (run / "ledger").glob("[0-9]*.json")}
    return {name: (about.st_ino, about.st_mtime_ns) for name, about in found.items()}


def _targets(victim: Victim, kind: str) -> list[psutil.Process]:
    if kind == "everything":
        return victim.family()
    if kind.startswith("driver"):
        guards = victim.family("raylet") if kind == "driver, met" else []
        return guards + [process for process in victim.family() if process.pid == victim.driver]
    if kind == "raylet":
        return victim.family("raylet")
    actors = victim.family("ray::Actor")[-1:]
    if kind == "actor" or not actors:
        return actors
    with suppress(ProcessLookupError):
        group = os.getpgid(actors[0].pid)
        return [process for process in victim.family() if os.getpgid(process.pid) == group]
    return []


def strike(victim: Victim, run: Path, kill: Kill) -> tuple[list[str], list[psutil.Process]]:
    """Wait for a kill's moment, and kill: the names of what was killed, and the actors that are held up."""
    before = len(records_of(run))
    moments: dict[str, Callable[[], bool]] = {
        "starting": lambda: time.monotonic() - victim.started > kill.amount or len(records_of(run)) > before,
        "beginning": lambda: (run / DRIVER_LOCK).exists(),
        "begun": lambda: victim.said(*BEGUN),
        "recording": lambda: len(records_of(run)) >= min(before + kill.amount, N_TASKS),
    }
    victim.wait_for(moments[kill.moment])
    victim.wait_for(lambda: _targets(victim, kill.kind))  # a kill of what has not started yet comes as soon as it has
    time.sleep(kill.delay)  # no event marks the moments in between
    held = victim.family("ray::Actor") if kill.kind == "driver, met" else []
    _each(held, psutil.Process.suspend)
    killed = _targets(victim, kill.kind)
    names = [process.name() for process in killed]
    _each(killed, psutil.Process.kill)
    return names, held


def play(stage: Stage, run: Path, kills: Sequence[Kill]) -> Round:
    """One round: a capture for each kill, then undisturbed ones until one ends well."""
    started = time.monotonic()
    blows: list[Blow] = []
    victims: list[Victim] = []
    held: list[psutil.Process] = []
    code, reruns, marks = None, 0, []

    def start() -> Victim:
        victim = Victim(stage.command(run), run.with_name(f"{run.name}.{len(victims)}.log"))
        victims.append(victim)
        if held:
            victim.wait_for(lambda: victim.said(WAITS, *BEGUN))
            _each(held, psutil.Process.resume)
            until(lambda: not victims[-2].family("ray::Actor"), ORPHANS_S)
            _each(held, psutil.Process.kill)  # as Ray itself does where it sees that the raylet is gone
            held.clear()
        return victim

    try:
        for kill in kills:
            victim = start()
            killed, held = strike(victim, run, kill)
            marks.append(records_of(run))
            code = None
            if kill.kind == "driver":
                until(lambda: not victim.family("ray::Actor"), ORPHANS_S)  # noqa: B023
            if kill.kind != "driver, met":
                code = victim.end(LIMIT_S if kill.kind in ("actor", "group", "raylet") else 0)
            blows.append(Blow(kill, len(marks[-1]), killed, code, victim.said("Traceback")))
        while code != 0 and reruns < RERUNS:
            code = start().end()
            reruns += 1
    finally:
        for victim in victims:
            victim.end(0)
    last = records_of(run)
    redone = {name for mark in marks for name, version in mark.items() if last.get(name) != version}
    met = sum(victim.said(WAITS) for victim in victims)
    return Round(blows, reruns, code == 0, len(redone), met, stage.check(run), round(time.monotonic() - started, 1))


def plan(rng: random.Random, index: int) -> list[Kill]:
    """The kills of a round: every kind in turn, every fourth round with a second one of any kind."""
    kills = []
    for kind in (KINDS[index % len(KINDS)], *([rng.choice(KINDS)] if rng.random() < 0.25 else [])):
        moment = rng.choice(MOMENTS)
        amount = {"starting": rng.uniform(0, 14), "recording": rng.randint(1, N_TASKS)}.get(moment, 0)
        kills.append(Kill(kind, moment, round(amount, 2), round(rng.uniform(0, 0.06), 3)))
    return kills


def table_of(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """One row per kind of kill; ``early`` rounds were killed before their first record."""
    labels, rows = [each.blows[0].kill.kind if len(each.blows) == 1 else "several" for each in rounds], []
    for label in (*KINDS, "several", "all"):
        mine = [each for each, its in zip(rounds, labels, strict=True) if label in (its, "all")]
        early = sum(not each.blows[0].n_records for each in mine)
        row: dict[str, Any] = {"kill": label, "rounds": len(mine), "early": early, "late": len(mine) - early}
        row["incomplete"] = sum(not each.complete for each in mine)
        row["tracebacks"] = sum(blow.traceback for each in mine for blow in each.blows)
        row |= {name: sum(getattr(each, name) for each in mine) for name in ("reruns", "redone", "met")}
        row |= {name: sum(getattr(each.findings, name) for each in mine) for name in asdict(CLEAN)}
        rows += [row] if mine else []
    return rows


def main() -> None:
    """Play rounds, and print the table."""
    parser = argparse.ArgumentParser(description="Kill real captures, and count what that cost.")
    for name, kind, default in (("--rounds", int, 50), ("--seed", int, 0), ("--json", Path, None)):
        parser.add_argument(name, type=kind, default=default)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    build_pipeline(TINY, seed=1).save_pretrained(folder / "tiny")
    stage = Stage(folder, folder / "tiny")
    rounds: list[Round] = []
    for index in range(options.rounds):
        run = folder / f"run{index:03d}"
        played = play(stage, run, plan(random.Random(f"{options.seed} {index}"), index))
        rounds.append(played)
        story = [f"{b.kill.kind} {b.kill.moment} at {b.n_records} records, exit {b.exit_code}" for b in played.blows]
        story += [f"{played.reruns} re-runs", "clean" if played.clean else f"WRONG {played.findings}, kept in {run}"]
        say(f"{index + 1}/{options.rounds} {played.seconds:.0f} s: {'; '.join(story)}")
        if played.clean:
            shutil.rmtree(run)
    rows = table_of(rounds)
    for line in (rows[0], *(row.values() for row in rows)):
        results.print("".join(str(each).ljust(13) for each in line), soft_wrap=True)
    if options.json:
        about = {"seed": options.seed, "table": rows, "rounds": [asdict(each) for each in rounds]}
        options.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if not all(each.clean for each in rounds):
        sys.exit(f"what is wrong is kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
