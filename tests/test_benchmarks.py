"""Benchmarks run as they are documented, at a small size."""

import json
import subprocess
import sys
from pathlib import Path

from two_runs import ROWS, captured

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_first_answer_is_timed_beside_plain_duckdb(tmp_path: Path, tiny_model: Path) -> None:
    run, out = captured(tmp_path, "RUN", tiny_model, ROWS), tmp_path / "out.json"
    command = [sys.executable, BENCHMARKS / "first_answer.py", run, "--rounds", "1", "--json", out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert set(rows) == {"plain DuckDB", "sql", "query"}
    assert rows["plain DuckDB"]["plain_ratio"] == 1
    assert all(row["plain_ratio"] > 0 and row["wall_s"] > 0 for row in rows.values())
