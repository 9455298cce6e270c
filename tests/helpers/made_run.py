"""A run folder made from a few rows: real files, written as a capture writes them."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fewchannels.runs import documents
from fewchannels.runs.results import Results
from fewchannels.runs.storage import Stored, open_storage
from fewchannels.tables import as_columns, schema, to_parquet

FINGERPRINT = "0123456789abcdef"
RESULTS = {
    "alignment": {"samples": "alignment_samples", "means": "alignment_means"},
    "concentration": {"cells": "concentration_cells", "means": "concentration_means"},
    "masks": {"samples": "subject_masks"},
    "stability": {
        table: f"stability_{table}"
        for table in ("channels", "pairs", "ranks", "agreement", "stopping", "transitions", "spark")
    },
}
"""The schema of every table of every analysis, by label and table: the view ``LABEL_TABLE``."""


def cell(row: dict[str, Any]) -> dict[str, Any]:
    """A row of ``cells``: what is given, and plain values for the rest."""
    filled = {
        "sample": 0,
        "step": 0,
        "layer": 0,
        "stream": "image",
        "branch": "cond",
        "score": "mean_abs",
        "top_channels": [],
        "median_score": 1.0,
        "energy_share": 0.5,
        "gini": 0.5,
        "token_norm_ratio": 1.0,
        "nonfinite": 0,
    } | row
    k = len(filled["top_channels"])
    filled = {
        "sample_id": f"{filled['sample']:016x}",
        "timestep": 1000.0 - 100 * filled["step"],
        "sigma": 1.0 - filled["step"] / 10,
        "block": f"blocks.{filled['layer']}",
        "top_scores": [float(10 * (k - i)) for i in range(k)],
    } | filled
    largest = filled["top_scores"][0] if k else 1.0
    return {"ratio": largest / filled["median_score"] if filled["median_score"] else float("nan")} | filled


def sample(row: dict[str, Any], task: int) -> dict[str, Any]:
    """A row of ``samples``: what is given, and plain values for the rest."""
    failed = row.get("status") == "failed"
    return {
        "sample_id": f"{row['sample']:016x}",
        "task": task,
        "prompt": f"prompt {row['sample']}",
        "seed": 0,
        "status": "done",
        "error": "it broke" if failed else None,
        "image": None if failed else b"\x89PNG",
        "width": 16,
        "height": 16,
        "grid_width": 4,
        "grid_height": 4,
        "n_steps": 2,
        "guidance": None,
        "prompt_tokens": 2,
        "prompt_truncated": False,
        "seconds": 0.5,
        "batch_size": 1,
        "attempt": 1,
        "peak_memory_bytes": 1000,
    } | row


def result_row(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """A row of an analysis' table: what is given, the usual values, and null, nothing or 0 for the rest."""
    filled: dict[str, Any] = {}
    for field in schema(kind):
        filled[field.name] = None if field.nullable else [] if pa.types.is_list(field.type) else _value("0", field.type)
    usual = {"selection": "top", "n_clusters": 2, "sample_id": f"{row.get('sample', 0):016x}"}
    return filled | {name: value for name, value in usual.items() if name in filled} | row


def write_results(path: Path, results: Mapping[str, Mapping[str, Iterable[dict[str, Any]]]]) -> None:
    """Write finished results of analyses into a run.

    Args:
        path: of the run.
        results: rows by table by label, as little of each row as matters; other tables of :data:`RESULTS` are empty.
    """
    for label, tables in results.items():
        kinds = RESULTS[label]
        assert set(tables) <= set(kinds)
        columns = {
            table: as_columns(kind, [result_row(row, kind) for row in tables.get(table, ())])
            for table, kind in kinds.items()
        }
        result = Results(open_storage(path), label)
        result.begin({})
        result.write_unit(0, columns, kinds)
        result.end({"analysis": label}, kinds, {})


def make_run(
    path: Path,
    cells: Iterable[dict[str, Any]] = (),
    samples: Iterable[dict[str, Any]] = (),
    *,
    n_channels: int = 16,
    shard_samples: int = 16,
    unrecorded: Iterable[int] = (),
    results: Mapping[str, Mapping[str, Iterable[dict[str, Any]]]] | None = None,
    **description: Any,
) -> Path:
    """Write a run folder and return it.

    Args:
        path: of the folder; made with its parents.
        cells: rows of ``cells``, as little of each as matters; see :func:`cell`.
        samples: rows of ``samples``; those of samples that only have cells are added.
        n_channels: width of the hidden state.
        shard_samples: samples in a task.
        unrecorded: tasks whose files are written and whose record is not.
        results: of analyses; see :func:`write_results`.
        description: what ``run.json`` has besides or instead.
    """
    cells = [cell(row) for row in cells]
    by_sample: dict[int, dict[str, Any]] = {row["sample"]: {"sample": row["sample"]} for row in cells}
    by_sample |= {row["sample"]: row for row in samples}
    rows = [sample(by_sample[i], i // shard_samples) for i in sorted(by_sample)]
    n_tasks = max((row["task"] + 1 for row in rows), default=0)
    for folder in ("cells", "samples", "ledger"):
        (path / folder).mkdir(parents=True)
    _write(
        "manifest",
        [{name: row.get(name) for name in schema("manifest").names} for row in rows],
        path / "manifest.parquet",
    )
    for task in range(n_tasks):
        mine = [row for row in rows if row["task"] == task]
        _write("samples", mine, path / "samples" / f"{task:05d}.parquet")
        mine_cells = [row for row in cells if row["sample"] // shard_samples == task]
        _write("cells", mine_cells, path / "cells" / f"{task:05d}.parquet")
        if task not in set(unrecorded):
            n_failed = sum(row["status"] == "failed" for row in mine)
            record = {
                "task": task,
                "start": task * shard_samples,
                "stop": task * shard_samples + len(mine),
                "fingerprint": FINGERPRINT,
                "attempt": 1,
                "n_done": len(mine) - n_failed,
                "n_failed": n_failed,
                "seconds": 1.5,
                "finished": "2026-01-02T03:04:05+00:00",
                "host": "here",
                "device": "cpu",
            }
            (path / "ledger" / f"{task:05d}.json").write_text(json.dumps(record), encoding="utf-8")
    about = {
        "format_version": 1,
        "fingerprint": FINGERPRINT,
        "config": {
            "model": "demo",
            "score": "mean_abs",
            "top_k": max((len(c["top_channels"]) for c in cells), default=12),
        },
        "geometry": {
            "n_samples": len(rows),
            "n_steps": len({row["step"] for row in cells}),
            "n_layers": len({row["layer"] for row in cells}),
            "n_channels": n_channels,
            "n_tokens": 16,
        },
        "n_tasks": n_tasks,
    }
    (path / "run.json").write_text(json.dumps(about | description), encoding="utf-8")
    write_results(path, results or {})
    return path


def replace_part(part: Path, table: pa.Table) -> None:
    """Write a part of a result again, with other rows or columns, and its records as if it had been written so."""
    pq.write_table(table, part)
    folder = part.parent.parent
    key = f"results/{part.relative_to(folder.parent).as_posix()}"
    for path in (folder / "result.json", *(folder / "units").glob("*.json")):
        content = documents.from_bytes(path.read_bytes())
        if key in content["objects"]:
            content["objects"][key] = asdict(Stored.of([part.read_bytes()]))
            path.write_bytes(documents.to_bytes(content))


def read_csv(path: Path, table: str | None = None) -> list[dict[str, Any]]:
    """Rows of a CSV file: empty is left out, lists are separated by spaces; a table's name gives the types."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {} if table is None else {field.name: field.type for field in schema(table)}
    return [
        {name: _value(text, kinds.get(name)) for name, text in row.items() if text or table is None} for row in rows
    ]


def _value(text: str, kind: pa.DataType | None) -> Any:
    if kind is None or pa.types.is_string(kind):
        return text
    if pa.types.is_list(kind):
        return [_value(item, kind.value_type) for item in text.split()]
    if pa.types.is_boolean(kind):
        return text == "true"
    return float(text) if pa.types.is_floating(kind) else int(text)


def _write(table: str, rows: list[dict[str, Any]], path: Path) -> None:
    open_storage(path.parent).put(path.name, [to_parquet(table, as_columns(table, rows))])
