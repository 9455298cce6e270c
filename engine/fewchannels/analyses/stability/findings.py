"""What the rows of a stability analysis say together: figures, and a page of text."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fewchannels.analyses.analysis import Finding
from fewchannels.analyses.drawn import as_files, cell_map, series
from fewchannels.analyses.figures.drawings import Drawing, Lines, Series
from fewchannels.analyses.selected import Selected
from fewchannels.runs.results import Results

if TYPE_CHECKING:
    from fewchannels.analyses.stability.units import Stability

_KINDS = {"within": "same prompt, other seed", "across": "other prompt", "category": "other prompt, same category"}


def summarise(analysis: "Stability", selected: Selected, results: Results) -> Finding:
    """Figures and a page, from tables whose size does not depend on the number of samples."""
    tables = {name: _read(results, name) for name in analysis.schemas}
    k = max(analysis.ks)
    step = selected.step_numbers[-1]
    n = len(selected.samples)
    files = _figures(tables, analysis, k, step, n)
    by_layer = [_layer(tables, block.layer, k, step) for block in selected.blocks]
    numbers = {
        "n_samples": n,
        "n_prompts": int(selected.prompts.max()) + 1,
        "k": k,
        "step": step,
        "layers": by_layer,
    }
    return Finding(numbers, _text(analysis, numbers, by_layer), {}, files)


def _read(results: Results, table: str) -> pd.DataFrame:
    parts = [part.to_pandas() for part in results.parts(table)]
    return pd.concat(parts, ignore_index=True)


def _layer(tables: dict[str, pd.DataFrame], layer: int, k: int, step: int) -> dict[str, Any]:
    here = {name: rows[(rows["layer"] == layer) & (rows["step"] == step)] for name, rows in tables.items()}
    channels = here["channels"][here["channels"]["k"] == k].sort_values(
        ["frequency", "channel"], ascending=[False, True]
    )
    found: dict[str, Any] = {
        "layer": layer,
        "core": channels[channels["frequency"] == 1]["channel"].tolist(),
        "n_channels_seen": len(channels),
    }
    for _, row in here["pairs"][here["pairs"]["k"] == k].iterrows():
        found[row["kind"]] = [_number(row[name]) for name in ("jaccard", "jaccard_low", "jaccard_high")]
        found["chance"] = _number(row["chance"])
    ranks = here["ranks"][(here["ranks"]["measure"] == "spearman") & (here["ranks"]["kind"] == "across")]
    found["spearman_across"] = _number(ranks["mean"].iloc[0]) if len(ranks) else None
    stopping = tables["stopping"]
    needed = stopping[(stopping["layer"] == layer) & stopping["step"].isna()]["n_needed"].iloc[0]
    found["spark_stops_after"] = None if pd.isna(needed) else int(needed)
    return found


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else round(float(value), 4)


def _figures(tables: dict[str, pd.DataFrame], analysis: "Stability", k: int, step: int, n: int) -> dict[str, bytes]:
    pairs = tables["pairs"][(tables["pairs"]["k"] == k) & (tables["pairs"]["step"] == step)]
    shown = {}
    for kind, name in _KINDS.items():
        rows = pairs[pairs["kind"] == kind]
        if len(rows):
            shown[name] = series(rows, "layer", "jaccard")
    layers = np.sort(pairs["layer"].unique())
    if len(pairs):
        shown["chance"] = Series(layers, np.full(len(layers), pairs["chance"].iloc[0]), reference=True)
    drawn: dict[str, Drawing] = {
        "overlap_by_layer": Lines(
            series=shown,
            title=f"Overlap of the top {k} by {analysis.score} of two samples, step {step}\nn = {n:,} samples, all "
            "pairs, bands: 95 % over prompts",
            x="layer",
            y="mean Jaccard overlap",
            least=0,
        )
    }
    drift = tables["agreement"]
    drift = drift[(drift["k"] == k) & (drift["kind"] == "last_step")]
    if len(drift):
        title = f"Overlap of each step's top {k} with the last step's, n = {n:,} samples"
        drawn["drift_over_steps"] = cell_map(drift, "jaccard", title=title, unit="mean Jaccard overlap")
    rows = tables["agreement"]
    rows = rows[(rows["k"] == k) & (rows["step"] == step) & (rows["kind"] == "definition")]
    drawn["definitions"] = Lines(
        series={
            f"{analysis.score} and {other}": series(each, "layer", "jaccard") for other, each in rows.groupby("other")
        },
        title=f"Overlap of the top {k} by two definitions, same sample, step {step}\nn = {n:,} samples, bands: 95 % "
        "over prompts",
        x="layer",
        y="mean Jaccard overlap",
        least=0,
    )
    return as_files(drawn)


def _text(analysis: "Stability", numbers: dict[str, Any], by_layer: list[dict[str, Any]]) -> str:
    def ranged(values: list[float | None] | None) -> str:
        if values is None or values[0] is None:
            return ""
        ends = "" if values[1] is None else f" ({values[1]:.2f} to {values[2]:.2f})"
        return f"{values[0]:.2f}{ends}"

    lines_of_text = [
        "# Stability of the massive channels",
        "",
        f"{numbers['n_samples']:,} samples of {numbers['n_prompts']:,} prompts; the top {numbers['k']} by "
        f"`{analysis.score}` at step {numbers['step']}. Jaccard overlap over all pairs of samples, 95 % intervals over "
        "prompts:",
        "",
        "| layer | same prompt | other prompt | chance | Spearman, all channels | in every sample | seen at all "
        "| SPARK stops after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in by_layer:
        core = row["core"]
        shown = f"{len(core)}: {', '.join(map(str, core[:8]))}{' ...' if len(core) > 8 else ''}" if core else "none"
        spearman = "" if row["spearman_across"] is None else f"{row['spearman_across']:.2f}"
        lines_of_text.append(
            f"| {row['layer']} | {ranged(row.get('within'))} | {ranged(row.get('across'))} "
            f"| {row.get('chance', 0):.3f} | {spearman} | {shown} | {row['n_channels_seen']} "
            f"| {row['spark_stops_after'] or 'not yet'} |"
        )
    return "\n".join(
        [
            *lines_of_text,
            "",
            "In every sample: channels in the top set of all samples. SPARK: its stopping rule (arXiv 2609.03813) on "
            "this run's samples in order, top 8 of the mean over steps; it cannot stop before 400.",
            "",
            "![overlap by layer](figures/overlap_by_layer.png)",
            "![drift over steps](figures/drift_over_steps.png)",
            "![definitions](figures/definitions.png)",
            "",
        ]
    )
