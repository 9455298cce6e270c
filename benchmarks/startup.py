"""Seconds from the shell's prompt to the result, of whole commands: ``python benchmarks/startup.py``.

Every command runs in a process of its own on a run of 8 prompts of the demo model, which is made first. Beside the
commands are two floors from the same run: a Python that imports PyTorch and diffusers, which every generation needs,
and one that starts an empty Ray and connects to it. The order rotates from round to round, and a first round that is
not counted fills the page cache. The medians of wall-clock and CPU time are reported, with each command's goal.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from measurement import Rows, options, ratio, rotated, save

ENGINE = Path(__file__).parent.parent / "engine"
FLOOR, RAY = "import torch, diffusers", "an empty Ray"
SCRIPTS = {FLOOR: FLOOR, RAY: "import ray; ray.init(num_cpus=2, include_dashboard=False)"}
SMALL = ("--model", "demo", "--manifest", "manifest.parquet", "--batch-size", "8")


@dataclass(frozen=True)
class Command:
    """A command that is measured.

    Attributes:
        words: its words, after ``fewchannels``.
        goal_s: goal of its wall-clock time, s; None without one.
        out: folder that it writes, deleted before each round; empty if nothing is deleted.
        serves: whether it runs until it is interrupted, and is measured up to its first page.
    """

    words: tuple[str, ...]
    goal_s: float | None
    out: str = ""
    serves: bool = False


def commands(steps: int) -> dict[str, Command]:
    """The commands, by what they do."""
    few = ("--num-inference-steps", str(steps))
    return {
        "capture, finished": Command(("capture", *SMALL, *few, "--out", "RUN"), 1.5),
        "capture, dry run": Command(("capture", *SMALL, *few, "--out", "NEW", "--dry-run"), 5),
        "capture": Command(("capture", *SMALL, *few, "--out", "NEW"), 9, out="NEW"),
        "probe disruption, 4 steps": Command(
            ("probe", "disruption", *SMALL, "--num-inference-steps", "4", "--out", "SWEEP"), 11, out="SWEEP"
        ),
        "analyze stability": Command(("analyze", "stability", "RUN", "--replace"), 4),
        "analyze concentration": Command(("analyze", "concentration", "RUN", "--replace"), 3),
        "report": Command(("report", "RUN", "--out", "report.html"), 3, out="report.html"),
        "explore, first page": Command(("explore", "RUN", "--no-browser", "--port", "0"), 2.5, serves=True),
    }


def took(folder: Path, what: Command | str) -> tuple[float, float]:
    """Seconds of wall-clock and CPU time of a new process, its workers included."""
    if isinstance(what, Command) and what.out:
        subprocess.run(["rm", "-rf", str(folder / what.out)], check=True)
    words = ["-m", "fewchannels", *what.words] if isinstance(what, Command) else ["-c", what]
    environment = os.environ | {"PYTHONPATH": str(ENGINE)}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-P", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        if isinstance(what, Command) and what.serves:
            seconds = _first_page(process, started)
            said = ""
        else:
            said, _ = process.communicate()
            seconds = time.perf_counter() - started
    if process.returncode and not (isinstance(what, Command) and what.serves):
        sys.exit(f"{' '.join(words[:5])} ended with {process.returncode}: {said.strip()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _first_page(process: "subprocess.Popen[str]", started: float) -> float:
    """Seconds until the address that an explorer prints has answered; then it is ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line):
            with urlopen(found[0], timeout=60) as answer:  # noqa: S310 - of this machine, by the pattern above
                answer.read()
            seconds = time.perf_counter() - started
            process.terminate()
            return seconds
    sys.exit("explore ended before it printed an address")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--samples", type=int, default=8)
    found.add_argument("--steps", type=int, default=20, help="denoising steps of the captures")
    found.add_argument("--only", nargs="+", metavar="WORD", help="commands whose name contains one of these words")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    known = commands(chosen.steps)
    some = {name: each for name, each in known.items() if any(word in name for word in chosen.only or [""])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest = ("manifest", "ingest", f"demo:{chosen.samples}", "--output", "manifest.parquet")
        for words in (ingest, known["capture, finished"].words):
            took(folder, Command(words, None))
        works: dict[str, Command | str] = SCRIPTS | some
        for each in works.values():
            took(folder, each)
        found = rotated(works, chosen.rounds, lambda what: took(folder, what))
    rows: Rows = {
        name: {"wall_s": [wall for wall, _ in times], "cpu_s": [cpu for _, cpu in times]}
        for name, times in found.items()
    }
    ratios = [ratio(rows, name, FLOOR, of=unit, by="median") for unit in ("wall_s", "cpu_s") for name in rows]
    print(f"{'command':28} {'wall s':>7} {'goal':>5} {'CPU s':>7} {'x floor':>8}")
    for (name, row), each in zip(rows.items(), ratios, strict=False):
        goal = known[name].goal_s if name in known else None
        wall, cpu = (statistics.median(row[unit]) for unit in ("wall_s", "cpu_s"))
        print(f"{name:28} {wall:7.2f} {'' if goal is None else format(goal, 'g'):>5} {cpu:7.2f} {each['ratio']:8.2f}")
    save(chosen, ("fewchannels", "torch", "diffusers", "ray"), rows, ratios)


if __name__ == "__main__":
    main()
