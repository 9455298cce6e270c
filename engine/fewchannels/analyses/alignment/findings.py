"""What the rows of an alignment say together: means with intervals, figures, and a page of text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fewchannels.analyses.analysis import Finding
from fewchannels.analyses.drawn import as_files, cell_map, series
from fewchannels.analyses.figures.drawings import Drawing, Lines, Pictures, Series
from fewchannels.analyses.selected import Selected
from fewchannels.measures.means import means
from fewchannels.measures.statistics import SELECTIONS
from fewchannels.runs.pictures import decoded
from fewchannels.runs.results import Results
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.tables import schema

if TYPE_CHECKING:
    from fewchannels.analyses.alignment.units import Alignment

_CELL = ["step", "layer", "selection", "n_clusters"]
_INTERVALS = ("iou", "over_chance", "over_random", "complement_iou", "best_iou", "ari", "nmi")
_PLAIN = (
    "chance_iou",
    "area",
    "mask_area",
    "n_channels",
    "energy_share",
    "n_left_out",
)
_SUM_BYTES = 128 * 2**20
_MEASURED = ["iou", "complement_iou", "best_iou", "ari", "nmi", *_PLAIN]


def summarise(analysis: "Alignment", selected: Selected, results: Results) -> Finding:
    """Means over samples, intervals over prompts, and what they look like."""
    n_prompts = int(selected.prompts.max()) + 1
    found = pd.concat(
        means(_samples(results, selected, layers), _CELL, _PLAIN, _INTERVALS, n_prompts)
        for layers in _passes(analysis, selected)
    ).sort_values(_CELL, ignore_index=True)
    n_samples = int(found["n_samples"].max())
    best = _best(found)
    sheet = _sheet(analysis, selected, results, best)
    files = as_files(_figures(found, n_samples) | {"contact_sheet": sheet})
    columns = {name: found[name].to_numpy() for name in schema("alignment_means").names}
    return Finding(_numbers(found, best, n_samples), _text(analysis, found, best, n_samples), {"means": columns}, files)


def _passes(analysis: "Alignment", selected: Selected) -> list[list[int]]:
    """Layers whose sums fit in memory together."""
    cells = len(selected.steps) * len(analysis.selections) * len(analysis.n_clusters)
    n_bytes = 8 * (len(_INTERVALS) * 2 + len(_PLAIN) + 1) * cells * (int(selected.prompts.max()) + 1)
    at_once = max(1, _SUM_BYTES // n_bytes)
    layers = [block.layer for block in selected.blocks]
    return [layers[i : i + at_once] for i in range(0, len(layers), at_once)]


def _samples(results: Results, selected: Selected, layers: list[int]) -> Iterator[pd.DataFrame]:
    """Rows of some layers, a unit at a time: a sample's trials are one row."""
    prompt_of = pd.Series(selected.prompts, index=selected.samples)
    for part in results.parts("samples"):
        rows = part.to_pandas()
        rows = rows[rows["layer"].isin(layers)]
        if rows.empty:
            continue
        each = rows.groupby([*_CELL, "sample"], sort=False)[_MEASURED].mean()
        each["over_chance"] = each["iou"] - each["chance_iou"]
        each["over_random"] = np.nan
        random = each["iou"][each.index.get_level_values("selection") == "random"].droplevel("selection")
        each = each.reset_index()
        if len(random):
            index = pd.MultiIndex.from_frame(each[list(random.index.names)])
            each["over_random"] = each["iou"] - random.reindex(index).to_numpy()
        each["prompt"] = each["sample"].map(prompt_of)
        yield each


def _best(found: pd.DataFrame) -> pd.Series:
    """The cell of the top channels whose two clusters fit the subject best."""
    top = found[found["selection"] == "top"]
    top = top if len(top) else found
    top = top[top["n_clusters"] == top["n_clusters"].min()]
    return top.loc[top["iou"].idxmax()]


def _numbers(found: pd.DataFrame, best: pd.Series, n_samples: int) -> dict[str, Any]:
    same = found[(found["step"] == best["step"]) & (found["layer"] == best["layer"])]
    same = same[same["n_clusters"] == best["n_clusters"]]
    keep = [
        "iou",
        "iou_low",
        "iou_high",
        "chance_iou",
        "over_random",
        "over_random_low",
        "over_random_high",
        "best_iou",
    ]
    return {
        "n_samples": n_samples,
        "best_layer": int(best["layer"]),
        "best_step": int(best["step"]),
        "there": {
            row["selection"]: {name: None if pd.isna(row[name]) else round(float(row[name]), 4) for name in keep}
            for _, row in same.iterrows()
        },
    }


def _figures(found: pd.DataFrame, n_samples: int) -> dict[str, Drawing]:
    drawn: dict[str, Drawing] = {}
    for n_clusters, rows in found.groupby("n_clusters"):
        last = rows[rows["step"] == rows["step"].max()]
        what = f"K = {n_clusters}, n = {n_samples:,} samples, bands: 95 % over prompts"
        about = "IoU of the foreground with the subject"
        drawn[f"iou_by_layer_k{n_clusters}"] = Lines(
            series=_series(last, "layer", "iou"),
            title=f"{about}, step {last['step'].iloc[0]}\n{what}",
            x="layer",
            y="mean IoU",
            least=0,
        )
        drawn[f"best_iou_by_layer_k{n_clusters}"] = Lines(
            series=_series(last, "layer", "best_iou"),
            title=f"IoU of the best union of clusters, which looks at the answer, step {last['step'].iloc[0]}\n{what}",
            x="layer",
            y="mean best IoU",
            least=0,
        )
        if rows["step"].nunique() > 1:
            layer = _best(rows)["layer"]
            drawn[f"iou_by_step_k{n_clusters}"] = Lines(
                series=_series(rows[rows["layer"] == layer], "step", "iou"),
                title=f"{about}, layer {layer}\n{what}",
                x="step",
                y="mean IoU",
                least=0,
            )
            top = rows[rows["selection"] == "top"]
            if len(top):
                title = f"IoU of the top channels' foreground, K = {n_clusters}, n = {n_samples:,} samples"
                drawn[f"iou_k{n_clusters}"] = cell_map(top, "iou", title=title, unit="mean IoU")
    return drawn


def _series(rows: pd.DataFrame, along: str, name: str) -> dict[str, Series]:
    shown = [word for word in SELECTIONS if word in rows["selection"].values]
    found = {selection: series(rows[rows["selection"] == selection], along, name) for selection in shown}
    top = rows[rows["selection"] == "top"] if "top" in rows["selection"].values else rows
    chance = top.groupby(along)["chance_iou"].mean()
    found["chance of a foreground\n(areas of the first)"] = Series(
        chance.index.to_numpy(), chance.to_numpy(), reference=True
    )
    return found


def _sheet(analysis: "Alignment", selected: Selected, results: Results, best: pd.Series) -> Drawing:
    """Best, middle and worst samples of the best cell: picture, mask, heat and foreground."""
    ious: list[tuple[float, int]] = []
    for part in results.parts("samples"):
        rows = part.to_pandas()
        alike = rows[(rows[_CELL] == best[_CELL].to_numpy()).all(axis=1) & (rows["trial"] == 0)]
        ious += list(zip(alike["iou"], alike["sample"], strict=True))
    ious = sorted(pair for pair in ious if not np.isnan(pair[0]))
    n = len(ious)
    chosen = [ious[i] for i in sorted({0, 1, n // 2, n // 2 + 1, n - 2, n - 1} & set(range(n)), reverse=True)]
    drawn, labels = [], []
    with Catalog(selected.run) as catalog:
        for iou, sample in chosen:
            i = int(np.searchsorted(selected.samples, sample))
            shown = analysis.show(selected, i, int(best["layer"]), int(best["step"]), str(best["selection"]))
            picture = catalog.picture(selected.sample_ids[i])
            assert picture is not None
            drawn.append([np.asarray(decoded(picture)), shown.mask, shown.heat, shown.front])
            labels.append(f"IoU {iou:.2f}\nsample {sample}")
    title = f"{best['selection']} channels, layer {best['layer']}, step {best['step']}: best, middle and worst samples"
    return Pictures(rows=drawn, labels=labels, columns=("picture", "subject", "heat", "foreground"), title=title)


def _text(analysis: "Alignment", found: pd.DataFrame, best: pd.Series, n_samples: int) -> str:
    at = (found["step"] == best["step"]) & (found["layer"] == best["layer"])
    rows = found[at & (found["n_clusters"] == best["n_clusters"])]
    table = [
        "| selection | channels | mean IoU (95 %) | chance | over random (95 %) | better signed (95 %) | area | mask |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, row in rows.iterrows():
        over = "" if pd.isna(row["over_random"]) or row["selection"] == "random" else _ranged(row, "over_random")
        table.append(
            f"| {row['selection']} | {row['n_channels']:.0f} | {_ranged(row, 'iou')} | {row['chance_iou']:.3f} "
            f"| {over} | {_ranged(row, 'best_iou')} | {row['area']:.2f} | {row['mask_area']:.2f} |"
        )
    return "\n".join(
        [
            "# Alignment of clusters with the subject",
            "",
            f"{n_samples:,} samples of {int(found['n_prompts'].max()):,} prompts, k = {analysis.k}, masks of "
            f"`{analysis.masks}`, registers: {analysis.registers}. The top channels' foreground fits best at layer "
            f"{best['layer']}, step {best['step']} (chosen by looking, so its mean is a little high):",
            "",
            *table,
            "",
            "Chance: independent masks of the same areas. Better signed: the foreground or its complement, whichever "
            "fits better, which looks at the answer. Intervals resample prompts; random channels are averaged over "
            f"{analysis.trials} draws a sample first.",
            "",
            "![by layer](figures/iou_by_layer_k2.png)" if 2 in analysis.n_clusters else "",
            "![samples](figures/contact_sheet.png)",
            "",
        ]
    )


def _ranged(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"
