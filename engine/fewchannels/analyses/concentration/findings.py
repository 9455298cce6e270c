"""Findings on concentration: a sentence, a table by layer and figures, each with the query that reproduces it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fewchannels.analyses.concentration.means import RANKS
from fewchannels.analyses.document import Figure, Finding, Table, bracketed, bracketed_row, finite, ranged_row, span
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.figures.drawings import Lines
from fewchannels.analyses.figures.frames import series
from fewchannels.analyses.ratio import Extreme, has_cell, record, where


def registers(evidence: Evidence, found: Extreme) -> Finding | None:
    """Say whether channels or a few tokens are the outliers."""
    result = evidence.results.get("concentration")
    if not result or not has_cell(evidence, "concentration", "means", found):
        return None
    view = evidence.table("concentration", "means")
    text = (
        f"select metric, n_samples, n_prompts, mean, low, high from {view} where metric "
        f"in ('n_registers', 'n_token_outliers') and layer = {found.layer} and step = {found.step} order by metric"
    )
    rows = evidence.ask(text).set_index("metric")
    if len(rows) < 2 or rows["mean"].isna().any():
        return None
    tokens, channels = rows.loc["n_registers"], rows.loc["n_token_outliers"]
    k = result["settings"]["k"]
    sentence = (
        f"Channels or register tokens: a sample has {ranged_row(tokens)} tokens with an outlier norm (registers), "
        f"which "
        f"hold at least half of the energy of {ranged_row(channels)} of the top {k} channels "
        f"({where(evidence, found)}, n = {span(rows['n_samples'])} samples); 0 means that channels stand out at "
        f"every "
        f"token, {k} that a few tokens do."
    )
    numbers = {"layer": found.layer, "step": found.step, "k": k}
    numbers |= {"n_registers": record(tokens), "n_token_outliers": record(channels)}
    return Finding("registers", sentence, numbers, [evidence.sql(text)])


def about(evidence: Evidence) -> str:
    """Define the terms of the table, with the settings."""
    settings = evidence.results["concentration"]["settings"]
    rule = "times the median norm" if settings["registers"] == "ratio" else "robust standard deviations"
    return (
        f"Scalar test: |x| > {settings['absolute']:g} and at least {settings['relative']:g} times the median "
        f"(Sun et al. 2024). Registers: mean number of tokens above {settings['register_threshold']:g} {rule}. Token "
        f"norm ratio: the largest token norm / the median, and the same without the top {settings['k']} channels. "
        "Token outliers: number of these channels explained by a few tokens."
    )


def by_layer(evidence: Evidence) -> Finding:
    """Every metric of every layer at the last step."""
    result, view = evidence.results["concentration"], evidence.table("concentration", "means")
    settings, step = result["settings"], max(result["selected"]["steps"])
    text = f"select layer, metric, n_prompts, mean, low, high from {view} where step = {step} order by layer, metric"
    every = {int(layer): rows.set_index("metric") for layer, rows in evidence.ask(text).groupby("layer")}
    layers: list[dict[str, Any]] = [
        {"layer": layer}
        | {str(metric): [_rounded(row[name]) for name in ("mean", "low", "high")] for metric, row in rows.iterrows()}
        for layer, rows in every.items()
    ]
    share = f"energy_share_{max(settings['ks'])}"
    plain = ("effective_channels", "n_massive_channels", "is_massive", "n_registers")
    more = ("elevation", "elevation_excised", "n_token_outliers")
    table = Table(
        f"Means at step {step}, 95 % over prompts in brackets",
        [
            "layer",
            "largest over median",
            f"top {max(settings['ks'])} hold",
            "effective channels",
            f"over {settings['threshold']:g} x median",
            "scalar test",
            "registers",
            "elevation",
            "without top channels",
            "token outliers",
        ],
        [
            [
                str(layer["layer"]),
                *(bracketed_row(every[layer["layer"]].loc[name]) for name in ("ratio", share)),
                *(_passed(layer[name][0]) if name == "is_massive" else bracketed(layer[name][0]) for name in plain),
                *(bracketed(layer[name][0]) for name in more),
            ]
            for layer in layers
        ],
    )
    sentence = f"Channels by {settings['score']} at step {step}, by layer."
    numbers = {"step": step, "layers": layers}
    return Finding("concentration_by_layer", sentence, numbers, [evidence.sql(text)], table)


def _passed(share: float | None) -> str:
    return "undecided" if share is None else f"{share:.0%} pass"


def _rounded(value: Any) -> float | None:
    return None if finite(value) is None else float(f"{value:.6g}")


def figures(evidence: Evidence) -> list[Figure]:
    """Draw the energy of the top channels, scores by rank, and tokens with an outlier norm."""
    result = evidence.results["concentration"]
    settings, table = result["settings"], evidence.table("concentration", "means")
    step = int(evidence.ask(f"select max(step) as step from {table}")["step"].fillna(0).iloc[0])
    score = settings["score"]
    groups = {
        "energy_shares": (
            {f"energy_share_{k}": f"top {k}" for k in settings["ks"]},
            f"Share of the squared values in the top channels by {score}",
            "share of squared values, 0 to 1",
        ),
        "ratio_by_rank": (
            {f"ratio_rank_{rank}": f"rank {rank}" for rank in RANKS},
            f"Score of a rank / median score ({score})",
            "times the median",
        ),
        "elevation": (
            {"elevation": "all channels", "elevation_excised": f"without the top {settings['k']} channels"},
            "Largest token norm / median token norm",
            "times the median",
        ),
    }
    drawn = []
    for name, (metrics, title, unit) in groups.items():
        text = _of_metrics(table, step, list(metrics))
        rows: pd.DataFrame = evidence.ask(text).rename(columns={"low": "mean_low", "high": "mean_high"})
        lines = {
            label: series(rows[rows["metric"] == metric], "layer", "mean")
            for metric, label in metrics.items()
            if (rows["metric"] == metric).any()
        }
        if lines:
            title = f"{title}\nstep {step}, n = {span(rows['n_samples'])} samples, bands: 95 % over prompts"
            drawing = Lines(series=lines, title=title, x="layer", y=unit, least=0)
            drawn.append(Figure(name, drawing, [evidence.sql(text)], less_important=name == "elevation"))
    return drawn


def _of_metrics(table: str, step: int, metrics: Sequence[str]) -> str:
    listed = ", ".join(f"'{metric}'" for metric in metrics)
    return (
        f"select layer, metric, n_samples, mean, low, high from {table} where step = {step} and metric in "
        f"({listed}) order by layer, metric"
    )
