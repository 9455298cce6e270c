"""The end of a sweep: from its parts to means, contrasts, figures and a summary, under ``results/effects/``."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from fewchannels.analyses.analysis import plain, versions
from fewchannels.analyses.figures.drawings import Images, Panels
from fewchannels.errors import InputError, unknown
from fewchannels.interventions.effects.contrasts import means
from fewchannels.interventions.effects.contrasts import metrics as all_metrics
from fewchannels.interventions.effects.figures import AXES, dose_response, shown_items, strip, varying
from fewchannels.interventions.effects.summary import Effects, summarize
from fewchannels.runs.description import read_sweep
from fewchannels.runs.lease import check_held, hold
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import own_rows
from fewchannels.runs.results import Results
from fewchannels.runs.sql import progress
from fewchannels.runs.storage import Storage
from fewchannels.tables import Columns, schema, to_parquet

if TYPE_CHECKING:
    from fewchannels.interventions.effects.set_distances import SetDistances

LABEL = "effects"
_PATIENCE_S = 600.0
SCHEMAS = {"means": "effects_means", "contrasts": "effects_contrasts", "sets": "effects_sets"}


def end_sweep(
    storage: Storage,
    metrics: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    share: str = "cuda",
) -> Effects:
    """Measure a sweep's effects over its finished items, and write them. Safe to repeat: it replaces them.

    A sweep's own end and ``fewchannels plot`` may coincide: the second one waits for the first.

    Args:
        storage: storage of the sweep.
        metrics: learned metrics whose models measure the distance between sets of edited and of unedited images.
        on_progress: called with the tasks read so far and in all.
        share: ``cuda`` if a GPU of this machine may be used for the metrics.

    Raises:
        InputError: there is no sweep, nothing of it is finished, or a model cannot be loaded.
        StorageError: a finished task's part is missing or damaged.
        RunConflictError: another command is writing the effects, and does not end in time.
    """
    results = Results(storage, LABEL)
    _finished(storage)
    with hold(results.place, patience_s=_PATIENCE_S) as token:
        return _ended(storage, results, token, metrics, on_progress, share)


def _ended(
    storage: Storage,
    results: Results,
    token: str,
    metrics: Sequence[str],
    on_progress: Callable[[int, int], None],
    share: str,
) -> Effects:
    fingerprint, records = _finished(storage)
    sets = _set_distances(metrics, share) if metrics else None
    edits = _edits(storage, records, on_progress, sets.add if sets else None)
    measured = sets.table(edits) if sets else None
    effects = summarize(edits.assign(image=_images(storage, records, edits)), sets=measured)
    no_sets: Columns = {name: [] for name in schema(SCHEMAS["sets"]).names}
    tables = effects.tables | {"sets": measured or no_sets}
    settings = plain(
        {"sweep": fingerprint, "tasks": list(records), "parts": progress.parts(records), "metrics": list(metrics)}
    )
    check_held(results.place, token)
    results.begin(settings, replace=not results.is_of(settings))
    about = {"analysis": LABEL, "settings": settings, "numbers": effects.numbers, "versions": versions()}
    parquet = {f"{table}/all.parquet": bytes(to_parquet(SCHEMAS[table], columns)) for table, columns in tables.items()}
    results.end(about, SCHEMAS, parquet | effects.files | {"summary.md": effects.text.encode()})
    return effects


def draw_dose(storage: Storage, metric: str, axis: str | None = None) -> Panels:
    """One metric of finished items against one axis: :func:`fewchannels.interventions.effects.figures.dose_response`.

    Args:
        storage: storage of the sweep.
        metric: a column of ``edits``.
        axis: one of :data:`fewchannels.interventions.effects.figures.AXES`; None for the first that varies.

    Raises:
        InputError: there is no sweep, nothing of it is finished, or it has no such metric or axis.
        StorageError: a finished task's part is missing or damaged.
    """
    edits = _edits(storage, _finished(storage)[1])
    measured = [name for name in all_metrics() if edits.loc[edits["role"] == "edited", name].notna().any()]
    if metric not in measured:
        raise unknown("metric of edited images", metric, measured)
    averages = means(edits, only=[metric])
    axes = [axis] if axis else varying(averages)
    if not axes:
        raise InputError(f"none of {', '.join(AXES)} varies in the sweep {storage.url!r}. Choose one with --axis.")
    return dose_response(averages, metric, axes[0])


def draw_strip(storage: Storage, item: int, axis: str | None = None) -> Images:
    """The images of one item: :func:`fewchannels.interventions.effects.figures.strip`.

    Args:
        storage: storage of the sweep.
        item: index of the item.
        axis: one of :data:`fewchannels.interventions.effects.figures.AXES`; None for the one with the most positions.

    Raises:
        InputError: there is no sweep, nothing of the item is finished, or there is no such axis.
        StorageError: a finished task's part is missing or damaged.
    """
    records = _finished(storage)[1]
    owners = [task for task, record in records.items() if record.start <= item < record.stop]
    if not owners:
        raise InputError(f"item {item} has no edited images: no finished task of {storage.url!r} owns it.")
    return strip(own_rows(storage, "edits", records[owners[0]]).to_pandas(), item, axis=axis)


def _finished(storage: Storage) -> tuple[str, dict[int, Record]]:
    """The sweep's fingerprint, and its finished tasks' records."""
    fingerprint = read_sweep(storage)["fingerprint"]
    records = Ledger(storage).records(fingerprint)
    if not records:
        raise InputError(f"no task of the sweep {storage.url!r} is finished. Rerun its command to resume.")
    return fingerprint, records


def _edits(
    storage: Storage,
    records: Mapping[int, Record],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_images: Callable[[Any], None] | None = None,
) -> pd.DataFrame:
    """Rows of ``edits`` without images; ``on_images`` gets them with images, a ``pyarrow.Table`` per task.

    A metric that is newer than the sweep has no values.
    """
    parts = []
    for n, record in enumerate(records.values(), start=1):
        table = own_rows(storage, "edits", record)
        if on_images:
            on_images(table)
        parts.append(table.drop_columns(["image"]).to_pandas())
        on_progress(n, len(records))
    names = [name for name in schema("edits").names if name != "image"]
    return pd.concat(parts, ignore_index=True).reindex(columns=names)


def _set_distances(metrics: Sequence[str], share: str) -> "SetDistances":
    # Imported here: it takes seconds, and is rarely needed.
    from fewchannels.interventions.effects.set_distances import SetDistances
    from fewchannels.models.loaded import device_of

    return SetDistances(metrics, device_of(share))


def _images(storage: Storage, records: Mapping[int, Record], edits: pd.DataFrame) -> pd.Series:
    """The images of the items that figures show; None for other items."""
    wanted = edits["item"].isin(shown_items(edits))
    found = pd.Series([None] * len(edits), index=edits.index, dtype=object)
    for task in sorted(edits.loc[wanted, "task"].unique().tolist()):
        images = own_rows(storage, "edits", records[task]).column("image").to_pylist()
        rows = edits.index[edits["task"] == task]
        found[rows] = [image if shown else None for image, shown in zip(images, wanted[rows], strict=True)]
    return found
