"""How fast a manifest is made, and in how much memory: ``python benchmarks/manifest_ingest.py [--rows 1000000]``.

Ingests a CSV of prompts with one row in a hundred there twice, against the obvious alternative in the same run: pandas
reads the file whole, hashes each row with ``apply``, drops duplicates and writes Parquet, and checks nothing. Each arm
is a process of its own, so that peak memory is the arm's. A quarter of the rows shows how memory grows. The arms take
turns and the best of each counts; CPU seconds are there because other work on the machine slows the clock, not them.
"""

import argparse
import csv
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from fewchannels.manifest import ingest


def make_csv(path: Path, n_rows: int) -> None:
    """Write ``n_rows`` prompts of about 70 characters with two extra columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "category", "source"])
        for row in range(n_rows):
            number = row - 1 if row % 100 == 99 else row
            prompt = f"a photograph of scene {number}, with trees, a river and a café in the evening"
            writer.writerow([prompt, f"category {number % 12}", "benchmark"])


def ingest_arm(source: Path, output: Path) -> int:
    """This project; returns samples written."""
    return ingest([source], output).n_written


def pandas_arm(source: Path, output: Path) -> int:
    """The obvious alternative; returns rows written."""
    table = pd.read_csv(source)
    table["seed"] = 0
    table["sample_id"] = table.apply(
        lambda row: hashlib.sha256(f"{row['prompt']}\0{row['seed']}".encode()).hexdigest()[:16], axis=1
    )
    table = table.drop_duplicates("sample_id")
    table.to_parquet(output)
    return len(table)


ARMS = {"ingest": ingest_arm, "pandas": pandas_arm}


def run_arm(arm: str, source: Path) -> None:
    """Run an arm in this process and print its figures as JSON."""
    began, began_cpu = time.perf_counter(), time.process_time()
    n_written = ARMS[arm](source, source.with_suffix(f".{arm}.parquet"))
    figures = {
        "n_written": n_written,
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - began_cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }
    print(json.dumps(figures))


def measure(arm: str, source: Path, n_rows: int) -> dict[str, float]:
    """Run an arm in a process of its own, print its figures and return them."""
    command = [sys.executable, __file__, "--arm", arm, "--source", str(source)]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"{arm:>7} {n_rows:>9,} rows: {figures['seconds']:6.2f} s, {figures['cpu_s']:6.2f} CPU s, "
        f"{n_rows / figures['seconds']:>9,.0f} rows/s, peak memory {figures['peak_mb']:,.0f} MB, "
        f"{figures['n_written']:,} written"
    )
    return figures


def main() -> None:
    """Measure both arms, or run the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        run_arm(options.arm, options.source)
        return
    with tempfile.TemporaryDirectory() as folder:
        quarter, source = Path(folder) / "quarter.csv", Path(folder) / "all.csv"
        make_csv(quarter, options.rows // 4)
        make_csv(source, options.rows)
        measure("ingest", quarter, options.rows // 4)
        turns = [{arm: measure(arm, source, options.rows) for arm in ARMS} for _ in range(options.turns)]
    for unit in ("seconds", "cpu_s"):
        best = {arm: min(turn[arm][unit] for turn in turns) for arm in ARMS}
        print(
            f"{unit}: ingest {best['ingest']:.2f}, pandas {best['pandas']:.2f}, {best['pandas'] / best['ingest']:.2f} x"
        )


if __name__ == "__main__":
    main()
