"""Time and memory of ingesting a manifest: ``python benchmarks/manifest_ingest.py``.

Ingests a CSV of prompts in which one row in a hundred is a duplicate, against the obvious alternative in the same run:
pandas reads the whole file, hashes each row with ``apply``, drops duplicates and writes Parquet, without checks. Each
arm runs in its own process, so that peak memory is the arm's own. A run with a quarter of the rows shows how memory
grows. The arms alternate, and the best of each counts; CPU seconds are reported because other work on the machine
affects them less than wall-clock time.
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
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from measurement import Rows, options, ratio, rotated, save

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
    """Run an arm in its own process, print its figures and return them."""
    command = [sys.executable, __file__, "--arm", arm, "--source", str(source)]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"{arm:>7} {n_rows:>9,} rows: {figures['seconds']:6.2f} s, {figures['cpu_s']:6.2f} CPU s, "
        f"{n_rows / figures['seconds']:>9,.0f} rows/s, peak memory {figures['peak_mb']:,.0f} MB, "
        f"{figures['n_written']:,} written"
    )
    return figures


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--rows", type=int, default=1_000_000, help="of the file")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    found.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both arms, or run the named one; ``--json FILE`` also writes the measurements."""
    chosen = parser().parse_args(argv)
    if chosen.arm:
        run_arm(chosen.arm, chosen.source)
        return
    with tempfile.TemporaryDirectory() as folder:
        quarter, source = Path(folder) / "quarter.csv", Path(folder) / "all.csv"
        make_csv(quarter, chosen.rows // 4)
        make_csv(source, chosen.rows)
        found = {"ingest, a quarter": [measure("ingest", quarter, chosen.rows // 4)]}
        found |= rotated({arm: arm for arm in ARMS}, chosen.rounds, lambda arm: measure(arm, source, chosen.rows))
    rows: Rows = {name: {key: [each[key] for each in turns] for key in turns[0]} for name, turns in found.items()}
    ratios = [
        ratio(rows, arm, "pandas", of=unit, by="least") for unit in ("seconds", "cpu_s", "peak_mb") for arm in ARMS
    ]
    for each in ratios[::2]:
        best = {arm: min(rows[arm][each["of"]]) for arm in ARMS}
        print(f"{each['of']}: ingest {best['ingest']:.2f}, pandas {best['pandas']:.2f}, {each['ratio']:.2f} of pandas")
    save(chosen, ("fewchannels", "pandas", "pyarrow"), rows, ratios)


if __name__ == "__main__":
    main()
