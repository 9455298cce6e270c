"""The end of a sweep: from its parts to means, contrasts, figures and a summary, under ``results/effects/``."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from engine.analyses.analysis import Finding, plain, versions
from engine.errors import InputError
from engine.interventions.figures import shown_items
from engine.interventions.summary import summarise
from engine.ledger import Ledger
from engine.results import Results
from engine.runfile import read_sweep
from engine.storage import Storage
from engine.tables import decode, encode

if TYPE_CHECKING:
    from engine.interventions.set_distances import SetDistances

LABEL = "effects"
SCHEMAS = {"means": "effects_means", "contrasts": "effects_contrasts"}
_SETS = {"sets": "effects_sets"}


def end_sweep(
    storage: Storage, metrics: Sequence[str] = (), on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Finding:
    """Measure a sweep's effects over what is finished, and write them. Safe to repeat: it replaces them.

    Args:
        storage: of the sweep.
        metrics: learned metrics whose models say how far the sets of edited pictures are from the undisturbed ones.
        on_progress: called with the tasks read so far and in all.

    Raises:
        InputError: there is no sweep, nothing of it is finished, or a model cannot be loaded.
        StorageError: a finished task's part is missing or damaged.
    """
    description = read_sweep(storage)
    tasks = sorted(Ledger(storage).records(description["fingerprint"]))
    if not tasks:
        raise InputError(f"no task of the sweep {storage.url!r} is finished; run its command again to go on.")
    sets = _set_distances(metrics) if metrics else None
    parts = []
    for n, task in enumerate(tasks, start=1):
        table = decode(storage.get(f"edits/{task:05d}.parquet"))
        if sets:
            sets.add(table)
        parts.append(table.drop_columns(["image"]).to_pandas())
        on_progress(n, len(tasks))
    edits = pd.concat(parts, ignore_index=True)
    finding = summarise(edits.assign(image=_pictures(storage, edits)))
    tables, schemas = dict(finding.tables), dict(SCHEMAS)
    if sets:
        tables["sets"], schemas = sets.table(edits), schemas | _SETS
    results = Results(storage, LABEL)
    settings = plain({"sweep": description["fingerprint"], "tasks": tasks, "metrics": list(metrics)})
    results.begin(settings, replace=True)
    encoded = {f"{table}/all.parquet": bytes(encode(schemas[table], columns)) for table, columns in tables.items()}
    about = {"analysis": LABEL, "settings": settings, "numbers": finding.numbers, "versions": versions()}
    results.end(about, schemas, encoded | finding.files | {"summary.md": finding.text.encode()})
    return finding


def _set_distances(metrics: Sequence[str]) -> "SetDistances":
    from engine.interventions.set_distances import SetDistances  # here: seconds to import, and seldom needed

    return SetDistances(metrics)


def _pictures(storage: Storage, edits: pd.DataFrame) -> pd.Series:
    """The pictures of the items that figures show; None of the others."""
    wanted = edits["item"].isin(shown_items(edits))
    found = pd.Series([None] * len(edits), index=edits.index, dtype=object)
    for task in sorted(edits.loc[wanted, "task"].unique().tolist()):
        images = decode(storage.get(f"edits/{task:05d}.parquet")).column("image").to_pylist()
        rows = edits.index[edits["task"] == task]
        found[rows] = [image if shown else None for image, shown in zip(images, wanted[rows], strict=True)]
    return found
