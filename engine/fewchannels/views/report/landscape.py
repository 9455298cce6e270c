"""The channel landscape: every channel's score by layer, averaged over samples, read a range of samples at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewchannels.analyses.document import Figure, How
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.figures.drawings import HeatMap, Landscape
from fewchannels.runs.arrays import open_dataset, read
from fewchannels.runs.layout import Track

MOST_SAMPLES = 2000
MOST_BINS = 400


@dataclass(frozen=True)
class Magnitudes:
    """Mean scores at one step.

    Attributes:
        values: ``(layer, channel)`` float64, the score's mean over samples; NaN if no sample has one.
        layers: numbers of the layers.
        step: number of the step.
        name: name of the array.
        n_samples: number of samples whose scores are in the mean.
        n_finished: samples that are finished.
        samples_sql: the query that lists the samples.
    """

    values: np.ndarray
    layers: list[int]
    step: int
    name: str
    n_samples: int
    n_finished: int
    samples_sql: str


def magnitudes(
    evidence: Evidence, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Magnitudes | None:
    """Average the run's score over samples at the last step that was kept.

    If there are more than :data:`MOST_SAMPLES` finished samples, only every second, third, ... finished task is read.
    One task's samples at one step are in memory at a time.

    Args:
        evidence: a run.
        on_progress: called with the tasks read so far and in all.

    Returns:
        None if no sample is finished.

    Raises:
        StorageError: the store is damaged.
    """
    ((n_finished,),) = evidence.catalog.sql("select count(*) from samples where status = 'done'").fetchall()
    if not n_finished:
        return None
    every = -(-n_finished // MOST_SAMPLES)
    text = "select sample from samples where status = 'done'"
    if every > 1:
        text += f" qualify (dense_rank() over (order by task) - 1) % {every} = 0"
    text += f" order by sample limit {MOST_SAMPLES}"
    rows = evidence.ask(f"select task, sample from samples join ({text}) using (sample) order by sample")
    name = Track(evidence.stream, evidence.branch).prefix + evidence.description["config"]["score"]
    sums, counts = np.zeros(0), np.zeros(0)
    try:
        data = open_dataset(evidence.storage)
        layers, steps = data.layer.values.tolist(), data.step.values.tolist()
        tasks = [part["sample"].to_numpy() for _, part in rows.groupby("task", sort=False)]
        region = ([len(steps) - 1], list(range(len(layers))))
        for n, samples in enumerate(tasks, start=1):
            start, stop = int(samples[0]), int(samples[-1]) + 1
            values = read(evidence.storage, [name], start, stop, region)[name][samples - start, 0].astype(np.float64)
            known = np.isfinite(values)
            part = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
            sums, counts = part if n == 1 else (sums + part[0], counts + part[1])
            on_progress(n, len(tasks))
    except (ValueError, KeyError, OSError) as error:
        raise evidence.unreadable(name, error) from None
    mean = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return Magnitudes(mean, layers, steps[-1], name, int(counts.max(initial=0)), n_finished, text)


def binned(values: np.ndarray, most: int = MOST_BINS) -> tuple[np.ndarray, int]:
    """The maximum over groups of neighboring channels, so that no channel that stands out can vanish.

    Args:
        values: ``(layer, channel)``; NaN is left out.
        most: maximum number of bins.

    Returns:
        ``(layer, bin)``, and the number of channels per bin; the last bin may have fewer.
    """
    n = values.shape[1]
    width = -(-n // most)
    padded = np.pad(values, ((0, 0), (0, -n % width)), constant_values=np.nan)
    parts = padded.reshape(len(values), -1, width)
    largest = np.max(np.where(np.isnan(parts), -np.inf, parts), axis=2)
    return np.where(np.isneginf(largest), np.nan, largest), width


def figures(evidence: Evidence, found: Magnitudes) -> list[Figure]:
    """The landscape as a heat map and as a surface."""
    values, width = binned(found.values)
    score, n_channels = evidence.description["config"]["score"], found.values.shape[1]
    of = (
        f"n = {found.n_samples:,} samples"
        if found.n_samples == found.n_finished
        else (f"n = {found.n_samples:,} of {found.n_finished:,} samples, spread evenly")
    )
    bins = f"; each place is the maximum of {width} neighboring channels" if width > 1 else ""
    title = f"Magnitude of every channel ({score}), step {found.step}\nmean over {of}{bins}"
    firsts = list(range(0, n_channels, width))
    names = [f"{a}" if width == 1 else f"{a}-{min(a + width, n_channels) - 1}" for a in firsts]
    labels: dict[str, Any] = {"row": "layer", "column": "channel", "value": f"mean {score}"}
    how = [_how(evidence, found)]
    drawn = [
        Figure("landscape", HeatMap(values=values, title=title, rows=found.layers, columns=names, **labels), how),
    ]
    if len(found.layers) > 1:  # one row is not a surface
        surface = Landscape(values=values, title=title, rows=found.layers, columns=firsts, **labels)
        drawn.append(Figure("landscape_surface", surface, how))
    return drawn


def _how(evidence: Evidence, found: Magnitudes) -> How:
    return How(
        "import fewchannels\n\n"
        f"run = fewchannels.open_run({evidence.place!r})\n"
        f'samples = run.sql("{found.samples_sql}").df()["sample"]\n'
        f'score = run.activations["{found.name}"].sel(step={found.step})\n'
        'print(score.isel(sample=samples.to_numpy()).mean("sample"))  # layer x channel',
        "python",
    )
