"""Time of a query from the shell's prompt to its answer: ``python benchmarks/first_answer.py RUN``.

Each answer comes from a new process, as on the command line: ``sql`` and ``query``, against the obvious alternative,
Python that imports DuckDB and reads the same Parquet files without checks. ``--against FOLDER`` adds another checkout
of this project, such as an earlier commit, run by the same Python. The order rotates from round to round. The minimum
and the median of wall-clock and CPU time are reported, and ratios of the minimum CPU times, which other processes
affect least.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measurement import Rows, options, ratio, rotated, save

ENGINE = Path(__file__).parent.parent / "engine"
COUNT = "select count(*) as n, avg(ratio) as ratio from cells"
PLAIN = (
    'import duckdb, sys; print(duckdb.sql("select count(*) as n, avg(ratio) as ratio from read_parquet(\'" + '
    'sys.argv[1] + "/cells/*.parquet\')"))'
)


def commands(run: str, against: Path | None) -> dict[str, tuple[list[str], Path]]:
    """Commands and the locations of their sources, by name."""
    asked = {"sql": ["sql", run, COUNT], "query": ["query", run, "massive_channels"]}
    found = {"plain DuckDB": (["-c", PLAIN, run], ENGINE)}
    for name, words in asked.items():
        found[name] = ["-m", "fewchannels", *words], ENGINE
        if against:
            found[f"{name}, {against.name}"] = ["-m", "fewchannels", *words], against / "engine"
    return found


def took(words: Sequence[str], sources: Path) -> tuple[float, float]:
    """Seconds of wall-clock and CPU time of a new Python process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(sources)}
    ended = subprocess.run([sys.executable, "-P", *words], env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(words[:4])} ended with {ended.returncode}: {ended.stderr.strip()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("run", help="a folder with a run, such as `fewchannels demo` leaves")
    found.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout")
    found.add_argument("--rounds", type=int, default=15)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    found = rotated(commands(chosen.run, chosen.against), chosen.rounds, lambda asked: took(*asked))
    rows: Rows = {
        name: {"wall_s": [wall for wall, _ in times], "cpu_s": [cpu for _, cpu in times]}
        for name, times in found.items()
    }
    ratios = [ratio(rows, name, "plain DuckDB", of=unit, by="least") for unit in ("cpu_s", "wall_s") for name in rows]
    print(f"{'question':40} {'wall s':>7} {'median':>7} {'CPU s':>7} {'median':>7} {'x plain':>8}")
    for (name, row), each in zip(rows.items(), ratios, strict=False):  # those of CPU time come first
        numbers = [function(row[unit]) for unit in ("wall_s", "cpu_s") for function in (min, statistics.median)]
        print(f"{name:40} " + " ".join(f"{value:7.3f}" for value in (*numbers, each["ratio"])))
    save(chosen, ("fewchannels", "duckdb"), rows, ratios)


if __name__ == "__main__":
    main()
