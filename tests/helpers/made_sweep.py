"""A sweep's folder made from a table of edits, with its effects: for questions whose answers are known."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from fewchannels import manifest
from fewchannels.interventions.effects.measure import end_sweep
from fewchannels.runs import documents
from fewchannels.runs.description import SWEEP
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.storage import open_storage
from fewchannels.tables import schema, to_parquet


def make_sweep(folder: Path, edits: pd.DataFrame, metrics: Sequence[str] = (), protocol: str | None = None) -> Path:
    """Write ``sweep.json``, manifest, conditions, one part with its record, and the effects."""
    storage = open_storage(folder)
    manifest.ingest(["demo:1"], folder.parent / "manifest.parquet", seeds=[0])
    objects = {"manifest.parquet": storage.put("manifest.parquet", [(folder.parent / "manifest.parquet").read_bytes()])}
    conditions = edits[edits["role"] == "edited"].drop_duplicates("condition").sort_values("condition")
    about = conditions.assign(
        channels=[[]] * len(conditions), layers=[[0]] * len(conditions), steps=[[0]] * len(conditions)
    )
    columns = {name: about[name].tolist() for name in schema("conditions").names}
    objects["conditions.parquet"] = storage.put("conditions.parquet", [to_parquet("conditions", columns)])
    description = {
        "format_version": 1,
        "fingerprint": "0" * 16,
        "identity": {"kind": "text", "n_items": int(edits["item"].nunique()), "score": "mean_abs", "generation": {}},
        "protocol": protocol,
        "n_conditions": len(conditions),
        "n_edits": int((edits["role"] == "edited").sum()),
        "n_tasks": 1,
        "model": {"name": "demo", "family": "FluxTransformer2DModel"},
        "versions": {},
        "created": "2026-01-01T00:00:00",
        "objects": {key: asdict(each) for key, each in objects.items()},
    }
    rows = {
        name: edits[name].astype(object).where(edits[name].notna(), None).tolist() for name in schema("edits").names
    }
    part = storage.put("edits/00000.parquet", [to_parquet("edits", rows)])
    n = description["identity"]["n_items"]
    record = Record(
        0, 0, n, "0" * 16, 1, n, 0, 1.0, "2026-01-01T00:00:00", "here", "cpu", {"edits/00000.parquet": part}
    )
    Ledger(storage).write(record)
    storage.put(SWEEP, [documents.to_bytes(description)])
    end_sweep(storage, metrics)
    return folder
