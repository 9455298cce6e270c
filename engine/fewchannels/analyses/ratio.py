"""The layer in which a run's largest channel has the highest ratio, and the energy share of its top channels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fewchannels.analyses.document import Figure, Finding, How, ends, number, ranged_row, span
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.figures.drawings import Lines, Series
from fewchannels.analyses.figures.frames import cell_map, series

ABOUT_LAYER = (
    "Sentences about a single layer refer to the one with the largest mean ratio of the largest channel's score to the "
    "median channel's, at the last step."
)
"""Rule that selects the layer for sentences without a table."""


@dataclass(frozen=True)
class Extreme:
    """The layer whose largest channel stands out most, at one step, and a table of all layers.

    Attributes:
        layers: ``layer``, ``n_samples``, ``mean``, ``low`` and ``high`` of the ratio, one row per layer.
        layer: layer whose mean ratio is largest.
        step: last step that was analyzed.
        how: commands that reproduce the rows.
        over: independent units of the intervals.
    """

    layers: pd.DataFrame
    layer: int
    step: int
    how: How
    over: str


def extreme(evidence: Evidence, within: str | None = None) -> Extreme | None:
    """Find the layer where the largest channel stands out most.

    Args:
        evidence: the run.
        within: analysis with a finished result, to use only its layers, at its last step; None for all of the run.

    Returns:
        None if no cell is usable.
    """
    chosen = evidence.results[within]["selected"] if within else None
    if _is_measured(evidence):
        table = evidence.table("concentration", "means")
        step = int(evidence.ask(f"select max(step) as step from {table}")["step"].iloc[0])
        step = max(chosen["steps"]) if chosen else step
        text = (
            f"select layer, n_samples, n_prompts, mean, low, high from {table} where metric = 'ratio' and step = "
            f"{step} order by layer"
        )
        found = _of(evidence.ask(text), step, evidence.sql(text), "prompts", chosen)
        if found is not None or chosen is None:
            return found
    steps = evidence.ask(f"select max(step) as step from cells where {evidence.of_track}")["step"]
    if steps.isna().all():
        return None
    step = max(chosen["steps"]) if chosen else int(steps.iloc[0])
    asked = {"step": step, "measure": "ratio", "stream": evidence.stream, "branch": evidence.branch}
    rows = evidence.query("layer_profile", **asked).rename(columns={"mean_low": "low", "mean_high": "high"})
    return _of(rows, step, evidence.named("layer_profile", **asked), "prompts", chosen)


def _is_measured(evidence: Evidence) -> bool:
    """Return whether the analysis ``concentration`` has the ratio of the run's own score."""
    result = evidence.results.get("concentration")
    return bool(result and result["settings"]["score"] == evidence.description["config"]["score"])


def _of(rows: pd.DataFrame, step: int, how: How, over: str, chosen: Any) -> Extreme | None:
    rows = rows[rows["layer"].isin(chosen["layers"])] if chosen else rows
    if rows["mean"].isna().all():
        return None
    layer = int(rows["layer"].to_numpy()[np.nanargmax(rows["mean"].to_numpy(float))])
    return Extreme(rows, layer, step, how, over)


def ratio(evidence: Evidence, found: Extreme) -> Finding:
    """Report how far the largest channel stands out, at the layers with the most and the least."""
    rows: Any = found.layers.set_index("layer")
    top, least = rows.loc[found.layer], int(rows["mean"].idxmin())
    score = evidence.description["config"]["score"]
    text = (
        f"The largest channel scores {ranged_row(top)} times the median channel ({score}, {where(evidence, found)}, "
        f"selected post hoc, n = {int(top['n_samples']):,} samples). This layer is the one with the largest mean, "
        "so the estimate is biased upward; the interval does not account for the selection"
    )
    if len(rows) > 1:
        other = rows.loc[least]
        text += f"; the smallest mean ratio is {ranged_row(other)}, at layer {least}"
    numbers = {"layer": found.layer, "step": found.step, "selected_post_hoc": True, "reference": 1.0}
    numbers |= record(top) | {"least_layer": least, "least": record(rows.loc[least])}
    return Finding("ratio", f"{text}.", numbers, [found.how])


def figures(evidence: Evidence, found: Extreme) -> list[Figure]:
    """The ratio by layer with its interval, and by layer and step."""
    score = evidence.description["config"]["score"]
    about = f"Largest score over the median score ({score})"
    rows = found.layers.rename(columns={"low": "mean_low", "high": "mean_high"})
    reach = np.array([rows["layer"].min(), rows["layer"].max()])
    by_layer = Lines(
        series={
            "largest channel": series(rows, "layer", "mean"),
            "median channel (ratio 1)": Series(reach, np.ones(2), reference=True),
        },
        title=f"{about}, step {found.step}\nn = {span(rows['n_samples'])} samples, bands: 95 % over {found.over}",
        x="layer",
        y="ratio, times the median",
        least=0,
    )
    drawn = [Figure("ratio_by_layer", by_layer, [found.how])]
    if _is_measured(evidence):
        table = evidence.table("concentration", "means")
        text = f"select layer, step, n_samples, mean from {table} where metric = 'ratio' order by layer, step"
    else:
        text = (
            "select layer, step, count(*) as n_samples, avg(ratio) as mean from cells where "
            f"{evidence.of_track} group by all order by all"
        )
    cells = evidence.ask(text)
    if cells["step"].nunique() > 1:
        title = f"{about}, by layer and step\nmean over n = {span(cells['n_samples'])} samples"
        drawing = cell_map(cells, "mean", title=title, unit="times the median")
        drawn.append(Figure("ratio", drawing, [evidence.sql(text)]))
    return drawn


def energy(evidence: Evidence, found: Extreme) -> Finding | None:
    """Report the share of the squared values in the top channels."""
    n_channels = int(evidence.description["geometry"]["n_channels"])
    result = evidence.results.get("concentration")
    if result and has_cell(evidence, "concentration", "means", found):
        k = max(result["settings"]["ks"])
        text = (
            f"select n_samples, n_prompts, mean, low, high from {evidence.table('concentration', 'means')} where "
            f"metric = 'energy_share_{k}' and layer = {found.layer} and step = {found.step}"
        )
        rows, how, score = evidence.ask(text), evidence.sql(text), result["settings"]["score"]
        over = "samples"
    else:
        k = int(evidence.ask(f"select max(len(top_channels)) as k from cells where {evidence.of_track}")["k"].iloc[0])
        asked = {"step": found.step, "measure": "energy_share", "stream": evidence.stream, "branch": evidence.branch}
        rows = evidence.query("layer_profile", **asked).rename(columns={"mean_low": "low", "mean_high": "high"})
        rows, how = rows[rows["layer"] == found.layer], evidence.named("layer_profile", **asked)
        score, over = evidence.description["config"]["score"], "samples"
    if rows.empty or k >= n_channels or pd.isna(rows["mean"].iloc[0]):
        return None
    row, numbers, hows = rows.iloc[0], {"layer": found.layer, "step": found.step, "k": k}, [how]
    numbers |= record(row) | {"chance": k / n_channels}
    sentence = (
        f"The top {k} of {n_channels:,} channels by {score} hold {ranged_row(row)} of the squared values "
        f"({where(evidence, found)}, n = {int(row['n_samples']):,} {over}); an even spread would give "
        f"{number(k / n_channels)}."
    )
    matched = _matched(evidence, found)
    if matched is not None:
        of, n, share, matched_how = matched
        sentence += (
            f" For comparison, the energy-matched control takes {number(n)} other channels, largest first, until they "
            f"hold as much as the top {of} or none are left: they hold {number(share)}."
        )
        numbers |= {"matched_of": of, "matched_n_channels": n, "matched_energy_share": share}
        hows.append(matched_how)
    return Finding("energy_share", sentence, numbers, hows)


def _matched(evidence: Evidence, found: Extreme) -> tuple[int, float, float, How] | None:
    result = evidence.results.get("alignment")
    if not result:
        return None
    text = (
        f"select n_channels, energy_share from {evidence.table('alignment', 'means')} where selection = 'matched' and "
        f"layer = {found.layer} and step = {found.step} order by n_clusters limit 1"
    )
    rows = evidence.ask(text)
    if rows.empty:
        return None
    row = rows.iloc[0]
    return int(result["settings"]["k"]), float(row["n_channels"]), float(row["energy_share"]), evidence.sql(text)


def has_cell(evidence: Evidence, analysis: str, table: str, found: Extreme) -> bool:
    """Return whether a result's table has rows of the cell."""
    view = evidence.table(analysis, table)
    at = f"layer = {found.layer} and step = {found.step}"
    return len(evidence.ask(f"select layer from {view} where {at} limit 1")) > 0


def where(evidence: Evidence, found: Extreme) -> str:
    """The cell as text."""
    tokens = "" if evidence.stream == "image" else f", {evidence.stream} tokens"
    return f"layer {found.layer}, step {found.step}{tokens}"


def record(row: pd.Series) -> dict[str, Any]:
    """A row's mean, the ends of its interval and its n, in plain values."""
    return ends(row) | {"n_samples": int(row["n_samples"])}
