"""What the cells of a concentration analysis say together: means with intervals, figures, and a page of text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fewchannels.analyses.analysis import Finding
from fewchannels.analyses.drawn import as_files, cell_map, series
from fewchannels.analyses.figures.drawings import Drawing, Lines, Series
from fewchannels.analyses.selected import Selected
from fewchannels.measures.means import means
from fewchannels.runs.results import Results

if TYPE_CHECKING:
    from fewchannels.analyses.concentration.units import Concentration

_CELL = ["step", "layer"]
_METRICS = (
    "ratio",
    "gini",
    "effective_channels",
    "n_massive_channels",
    "largest",
    "is_massive",
    "n_registers",
    "register_share",
    "register_norm_ratio",
    "registers_on_border",
    "border_share",
    "n_token_outliers",
    "elevation",
    "elevation_excised",
    "selectivity",
    "bimodality",
    "bimodality_log",
)
_SHOWN_RANKS = (1, 2, 4, 8, 16, 32)


def summarise(analysis: "Concentration", selected: Selected, results: Results) -> Finding:
    """Means over samples, intervals over prompts, and what they look like."""
    shares = [f"energy_share_{k}" for k in analysis.ks]
    ranks = [f"ratio_rank_{rank}" for rank in _SHOWN_RANKS if rank <= selected.layout.n_channels]
    metrics = [*_METRICS, *shares, *ranks, "held_by_registers"]
    n_prompts = int(selected.prompts.max()) + 1
    found = means(_samples(analysis, selected, results, ranks), _CELL, [], metrics, n_prompts)
    by_metric = pd.concat(
        found[_CELL].assign(
            metric=metric,
            n_samples=found[f"{metric}_n"],
            mean=found[metric],
            low=found[f"{metric}_low"],
            high=found[f"{metric}_high"],
        )
        for metric in metrics
    )
    columns = {name: by_metric[name].to_numpy() for name in by_metric.columns}
    step, n = selected.step_numbers[-1], len(selected.samples)
    last = found[found["step"] == step].sort_values("layer")
    numbers = {
        "n_samples": n,
        "n_prompts": n_prompts,
        "step": step,
        "layers": [
            {"layer": int(row["layer"])}
            | {m: [_number(row[f"{m}{end}"]) for end in ("", "_low", "_high")] for m in metrics}
            for _, row in last.iterrows()
        ],
    }
    text = _text(analysis, last, n, n_prompts, step)
    return Finding(numbers, text, {"means": columns}, _figures(analysis, found, last, n, step))


def _samples(
    analysis: "Concentration", selected: Selected, results: Results, ranks: list[str]
) -> Iterator[pd.DataFrame]:
    prompt_of = pd.Series(selected.prompts, index=selected.samples)
    for part in results.parts("cells"):
        rows = part.to_pandas()
        shares, by_rank, held = (
            np.stack(rows[name].to_list()) for name in ("energy_shares", "ratio_by_rank", "held_by_registers")
        )
        wide = rows[[*_CELL, *_METRICS]].copy()
        for i, k in enumerate(analysis.ks):
            wide[f"energy_share_{k}"] = shares[:, i]
        for name in ranks:
            wide[name] = by_rank[:, int(name.rpartition("_")[2]) - 1]
        wide["held_by_registers"] = np.where(
            np.isnan(held).all(axis=1), np.nan, np.nansum(held, axis=1) / held.shape[1]
        )
        wide["prompt"] = rows["sample"].map(prompt_of)
        yield wide.replace([np.inf, -np.inf], np.nan)


def _number(value: Any) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _figures(analysis: "Concentration", found: pd.DataFrame, last: pd.DataFrame, n: int, step: int) -> dict[str, bytes]:
    about = f"step {step}, n = {n:,} samples, bands: 95 % over prompts"

    def by_layer(names: dict[str, str]) -> dict[str, Series]:
        return {label: series(last, "layer", name) for name, label in names.items()}

    ranks = [name for name in last.columns if name.startswith("ratio_rank_") and name[-1].isdigit()]
    drawn: dict[str, Drawing] = {
        "energy_shares": Lines(
            series=by_layer({f"energy_share_{k}": f"top {k}" for k in analysis.ks}),
            title=f"Share of the squared values in the top channels by {analysis.score}\n{about}",
            x="layer",
            y="share of squared values",
            least=0,
        ),
        "ratio_by_rank": Lines(
            series=by_layer({name: f"rank {name.rpartition('_')[2]}" for name in ranks}),
            title=f"Score of a rank over the median score, {analysis.score}\n{about}",
            x="layer",
            y="times the median",
            least=0,
        ),
        "elevation": Lines(
            series=by_layer({"elevation": "as it is", "elevation_excised": f"without the top {analysis.k} channels"}),
            title=f"Largest token norm over the median\n{about}",
            x="layer",
            y="times the median",
            least=0,
        ),
    }
    if found["step"].nunique() > 1:
        title = f"Largest score over the median score, {analysis.score}, n = {n:,} samples"
        drawn["ratio"] = cell_map(found, "ratio", title=title, unit="times the median")
    return as_files(drawn)


def _text(analysis: "Concentration", last: pd.DataFrame, n: int, n_prompts: int, step: int) -> str:
    k = max(analysis.ks)
    rows = [
        f"| layer | largest over median | top {k} hold | effective channels | over {analysis.threshold:g} x median "
        "| scalar test | registers | elevation | without top channels | token outliers |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for _, row in last.iterrows():
        passed = "undecided" if np.isnan(row["is_massive"]) else f"{row['is_massive']:.0%} pass"
        rows.append(
            f"| {row['layer']:.0f} | {_ranged(row, 'ratio')} | {_ranged(row, f'energy_share_{k}')} | "
            f"{row['effective_channels']:.1f} | {row['n_massive_channels']:.1f} | {passed} | "
            f"{row['n_registers']:.2f} | {row['elevation']:.2f} | {row['elevation_excised']:.2f} | "
            f"{row['n_token_outliers']:.2f} |"
        )
    rule = "times the median norm" if analysis.registers == "ratio" else "robust standard deviations"
    return "\n".join(
        [
            "# Concentration",
            "",
            f"{n:,} samples of {n_prompts:,} prompts, channels by `{analysis.score}`, step {step}; means, with 95 % "
            "intervals over prompts where two numbers are in brackets.",
            "",
            *rows,
            "",
            f"Scalar test: |x| > {analysis.absolute:g} and at least {analysis.relative:g} times the median (Sun et al. "
            f"2024). Registers: tokens above {analysis.register_threshold:g} {rule}, on average. Elevation: the "
            f"largest token norm over the median, and the same without the top {analysis.k} channels. Token outliers: "
            "how many of those channels a few tokens explain.",
            "",
            "![energy](figures/energy_shares.png)",
            "![ranks](figures/ratio_by_rank.png)",
            "![elevation](figures/elevation.png)",
            "",
        ]
    )


def _ranged(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3g} ({row[f'{name}_low']:.3g} to {row[f'{name}_high']:.3g})"
