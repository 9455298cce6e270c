"""What was found in a run, as sentences: every number is one that a query returns, with what it is read against."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fewchannels.analyses.document import Finding, How, Table, ends, finite, number, ranged, ranged_row
from fewchannels.analyses.source import Source
from fewchannels.measures.intervals import cluster_bootstrap

_MOST_TOP = 12
_CONTROLS = {
    "random": "random channels",
    "matched": "as many other channels as hold the same energy (matched)",
    "bottom": "the channels of smallest score (bottom)",
    "all": "all channels",
    "pca": "as many principal components",
}


@dataclass(frozen=True)
class Extreme:
    """The layer whose largest channel stands out most, at one step, and all layers beside it.

    Attributes:
        layers: ``layer``, ``n_samples``, ``mean``, ``low`` and ``high`` of the ratio, a row each.
        layer: whose mean ratio is largest.
        step: the last that was looked at.
        how: what gives the rows.
        over: what the intervals resample.
    """

    layers: pd.DataFrame
    layer: int
    step: int
    how: How
    over: str


def extreme(source: Source) -> Extreme | None:
    """Where the largest channel stands out most; None where no cell is usable."""
    result = source.results.get("concentration")
    if result and result["settings"]["score"] == source.description["config"]["score"]:
        table = source.table("concentration", "means")
        step = int(source.ask(f"select max(step) as step from {table}")["step"].iloc[0])
        text = (
            f"select layer, n_samples, mean, low, high from {table} where metric = 'ratio' and step = {step} "
            "order by layer"
        )
        rows, how, over = source.ask(text), source.sql(text), "prompts"
    else:
        steps = source.ask(f"select max(step) as step from cells where {source.of_track}")["step"]
        if steps.isna().all():
            return None
        step = int(steps.iloc[0])
        asked = {"step": step, "measure": "ratio", "stream": source.stream, "branch": source.branch}
        rows = source.query("layer_profile", **asked).rename(columns={"mean_low": "low", "mean_high": "high"})
        how, over = source.named("layer_profile", **asked), "samples, each taken as independent"
    if rows["mean"].isna().all():
        return None
    return Extreme(rows, int(rows.loc[rows["mean"].idxmax(), "layer"]), step, how, over)


def of_run(source: Source, found: Extreme) -> list[Finding]:
    """Every finding that the run's tables allow, in the order in which they are read."""
    made = [
        _ratio(source, found),
        _frequency(source, found),
        _overlap(source, found),
        _energy(source, found),
        _registers(source, found),
        _alignment(source),
    ]
    return [finding for finding in made if finding is not None]


def _ratio(source: Source, found: Extreme) -> Finding:
    rows: Any = found.layers.set_index("layer")
    top, least = rows.loc[found.layer], int(rows["mean"].idxmin())
    score = source.description["config"]["score"]
    where = _where(source, found)
    text = (
        f"The largest channel scores {ranged_row(top)} times the median channel ({score}, {where}, "
        f"n = {int(top['n_samples']):,} samples); the median channel's ratio is 1 by definition. The layer was "
        f"chosen by looking, as that of the largest mean, so it is a little high"
    )
    if len(rows) > 1:
        other = rows.loc[least]
        text += f"; at layer {least}, where it is smallest, the ratio is {ranged_row(other)}"
    numbers = {"layer": found.layer, "step": found.step, "chosen_by_looking": True, "reference": 1.0}
    numbers |= _record(top) | {"least_layer": least, "least": _record(rows.loc[least])}
    return Finding("ratio", f"{text}.", numbers, [found.how])


def _frequency(source: Source, found: Extreme) -> Finding | None:
    n_channels = int(source.description["geometry"]["n_channels"])
    result = source.results.get("stability")
    if result and _has_cell(source, "stability", "channels", found):
        table = source.table("stability", "channels")
        k = max(result["settings"]["ks"])
        text = (
            f"select channel, n_selected, n_samples, count(*) over () as n_seen from {table} where layer = "
            f"{found.layer} and step = {found.step} and k = {k} order by n_selected desc, channel limit 1"
        )
        score = result["settings"]["score"]
    else:
        longest = source.ask(f"select max(len(top_channels)) as k from cells where {source.of_track}")["k"].iloc[0]
        k, score = min(int(longest), _MOST_TOP, max(1, n_channels // 2)), source.description["config"]["score"]
        text = (
            f"with cell as (select top_channels[1:{k}] as top from cells where {source.of_track} and layer = "
            f"{found.layer} and step = {found.step}) select channel, count(*) as n_selected, (select count(*) from "
            "cell) as n_samples, count(*) over () as n_seen from (select unnest(top) as channel from cell) "
            "group by channel order by n_selected desc, channel limit 1"
        )
    rows = source.ask(text)
    if rows.empty:
        return None
    row = rows.iloc[0]
    n, total, seen = int(row["n_selected"]), int(row["n_samples"]), int(row["n_seen"])
    low, high = wilson(n, total)
    numbers = {"layer": found.layer, "step": found.step, "k": k, "channel": int(row["channel"]), "n_selected": n}
    numbers |= {"n_samples": total, "frequency": n / total, "low": low, "high": high, "chance": k / n_channels}
    numbers |= {"n_channels": n_channels, "n_channels_seen": seen}
    sentence = (
        f"Channel {int(row['channel'])} is the most frequent massive one: among the top {k} by {score} of {n:,} of "
        f"{total:,} samples, {number(100 * n / total)} % (95 %, Wilson: {number(100 * low)} to {number(100 * high)} "
        f"%), {_where(source, found)}. A random set of {k} of the {n_channels:,} channels would hold it in "
        f"{number(100 * k / n_channels)} %; {n_channels - seen:,} channels are in no sample's top {k}."
    )
    return Finding("most_frequent_channel", sentence, numbers, [source.sql(text)])


def wilson(n: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    ends = stats.binomtest(n, total).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def _overlap(source: Source, found: Extreme) -> Finding | None:
    result = source.results.get("stability")
    if not result or not _has_cell(source, "stability", "pairs", found):
        return None
    table, k = source.table("stability", "pairs"), max(result["settings"]["ks"])
    text = (
        f"select kind, n_pairs, n_prompts, jaccard, jaccard_low, jaccard_high, chance from {table} where layer = "
        f"{found.layer} and step = {found.step} and k = {k} order by kind"
    )
    rows = (
        source.ask(text)
        .set_index("kind")
        .rename(columns={"jaccard": "mean", "jaccard_low": "low", "jaccard_high": "high"})
    )
    words = {"within": "same prompt, other seed", "across": "other prompt", "category": "other prompt, same category"}
    parts = [
        f"{ranged_row(rows.loc[kind])} for two samples of the {name} (n = {int(rows.loc[kind, 'n_pairs']):,} pairs)"
        for kind, name in words.items()
        if kind in rows.index and pd.notna(rows.loc[kind, "mean"])
    ]
    if not parts:
        return None
    chance = float(rows["chance"].iloc[0])
    sentence = (
        f"Two samples' top {k} by {result['settings']['score']} overlap (Jaccard, {_where(source, found)}): "
        f"{'; '.join(parts)}. Two random sets of {k} overlap by {number(chance)}; "
        f"n = {int(rows['n_prompts'].max()):,} prompts."
    )
    numbers: dict[str, Any] = {"layer": found.layer, "step": found.step, "k": k, "chance": chance}
    for kind in rows.index:
        about = {"n_pairs": int(rows.loc[kind, "n_pairs"]), "n_prompts": int(rows.loc[kind, "n_prompts"])}
        numbers[str(kind)] = ends(rows.loc[kind]) | about
    return Finding("overlap", sentence, numbers, [source.sql(text)])


def _energy(source: Source, found: Extreme) -> Finding | None:
    n_channels = int(source.description["geometry"]["n_channels"])
    result = source.results.get("concentration")
    if result and _has_cell(source, "concentration", "means", found):
        k = max(result["settings"]["ks"])
        text = (
            f"select n_samples, mean, low, high from {source.table('concentration', 'means')} where metric = "
            f"'energy_share_{k}' and layer = {found.layer} and step = {found.step}"
        )
        rows, how, score = source.ask(text), source.sql(text), result["settings"]["score"]
        over = "samples"
    else:
        k = int(source.ask(f"select max(len(top_channels)) as k from cells where {source.of_track}")["k"].iloc[0])
        asked = {"step": found.step, "measure": "energy_share", "stream": source.stream, "branch": source.branch}
        rows = source.query("layer_profile", **asked).rename(columns={"mean_low": "low", "mean_high": "high"})
        rows, how = rows[rows["layer"] == found.layer], source.named("layer_profile", **asked)
        score, over = source.description["config"]["score"], "samples, each taken as independent"
    if rows.empty or k >= n_channels or pd.isna(rows["mean"].iloc[0]):
        return None
    row, numbers, hows = rows.iloc[0], {"layer": found.layer, "step": found.step, "k": k}, [how]
    numbers |= _record(row) | {"chance": k / n_channels}
    sentence = (
        f"The top {k} of {n_channels:,} channels by {score} hold {ranged_row(row)} of the squared values "
        f"({_where(source, found)}, n = {int(row['n_samples']):,} {over}); spread evenly it would be "
        f"{number(k / n_channels)}."
    )
    matched = _matched(source, found)
    if matched is not None:
        of, n, share, matched_how = matched
        sentence += (
            f" {number(n)} other channels, the largest first, are what it takes to hold as much as the top {of}, or "
            f"all that are left where that is less: they hold {number(share)}."
        )
        numbers |= {"matched_of": of, "matched_n_channels": n, "matched_energy_share": share}
        hows.append(matched_how)
    return Finding("energy_share", sentence, numbers, hows)


def _matched(source: Source, found: Extreme) -> tuple[int, float, float, How] | None:
    result = source.results.get("alignment")
    if not result:
        return None
    text = (
        f"select n_channels, energy_share from {source.table('alignment', 'means')} where selection = 'matched' and "
        f"layer = {found.layer} and step = {found.step} order by n_clusters limit 1"
    )
    rows = source.ask(text)
    if rows.empty:
        return None
    row = rows.iloc[0]
    return int(result["settings"]["k"]), float(row["n_channels"]), float(row["energy_share"]), source.sql(text)


def _registers(source: Source, found: Extreme) -> Finding | None:
    result = source.results.get("concentration")
    if not result or not _has_cell(source, "concentration", "means", found):
        return None
    text = (
        f"select metric, n_samples, mean, low, high from {source.table('concentration', 'means')} where metric in "
        f"('n_registers', 'n_token_outliers') and layer = {found.layer} and step = {found.step} order by metric"
    )
    rows = source.ask(text).set_index("metric")
    if len(rows) < 2 or rows["mean"].isna().any():
        return None
    tokens, channels = rows.loc["n_registers"], rows.loc["n_token_outliers"]
    k = result["settings"]["k"]
    sentence = (
        f"Channels or a few tokens? A sample has {ranged_row(tokens)} tokens of outlying norm (registers), which hold "
        f"half or more of {ranged_row(channels)} of the top {k} channels ({_where(source, found)}, "
        f"n = {int(channels['n_samples']):,} samples); 0 where channels stand out at every token, {k} where tokens do."
    )
    numbers = {"layer": found.layer, "step": found.step, "k": k}
    numbers |= {"n_registers": _record(tokens), "n_token_outliers": _record(channels)}
    return Finding("registers", sentence, numbers, [source.sql(text)])


@dataclass(frozen=True)
class Cell:
    """Where the top channels' foreground fits the subject best: chosen by looking."""

    layer: int
    step: int
    n_clusters: int


def best_cell(source: Source) -> Cell | None:
    """The layer and step of the largest mean IoU of the top channels; None without an alignment of them."""
    if "alignment" not in source.results:
        return None
    rows = source.ask(
        f"select layer, step, n_clusters from {source.table('alignment', 'means')} where selection = 'top' and "
        "if(isfinite(iou), iou, null) is not null order by n_clusters, iou desc, layer, step limit 1"
    )
    return None if rows.empty else Cell(*(int(value) for value in rows.iloc[0]))


def _alignment(source: Source) -> Finding | None:
    best = best_cell(source)
    if best is None:
        return None
    here = f"layer = {best.layer} and step = {best.step} and n_clusters = {best.n_clusters}"
    means_text = (
        "select selection, n_samples, n_prompts, iou, iou_low, iou_high, chance_iou, best_iou, best_iou_low, "
        f"best_iou_high from {source.table('alignment', 'means')} where {here} order by selection"
    )
    rows = source.ask(means_text).set_index("selection")
    each_text = (
        "select sample, prompt, selection, avg(iou) as iou from "
        f"{source.table('alignment', 'samples')} join samples using (sample, sample_id) where {here} and "
        "if(isfinite(iou), iou, null) is not null group by all"
    )
    differences = paired(source.ask(each_text))
    difference_text = (
        f"with each as ({each_text}) select other.selection, count(*) as n_samples, avg(top.iou - other.iou) as "
        "difference from each as top join each as other using (sample) where top.selection = 'top' and "
        "other.selection <> 'top' group by all order by all"
    )
    top = rows.loc["top"]
    shown = [name for name in _CONTROLS if name in differences]
    sentence = (
        f"Clustering tokens by the top {source.results['alignment']['settings']['k']} channels finds the subject with "
        f"a mean IoU of {_iou(top)}, against {number(top['chance_iou'])} by chance (independent masks of the same "
        f"areas), n = {int(top['n_samples']):,} samples of {int(top['n_prompts']):,} prompts, at layer {best.layer}, "
        f"step {best.step}: the best cell, chosen by looking, so it is a little high. {_verdicts(shown, differences)}"
    )
    table = Table(
        f"Mean IoU with the subject, layer {best.layer}, step {best.step}, 95 % over prompts; better signed is the "
        "better of foreground and complement, which looks at the answer",
        ["channels", "n", "IoU", "chance", "top minus these", "better signed"],
        [
            [
                name if name == "top" else _CONTROLS[name],
                f"{int(rows.loc[name, 'n_samples']):,}",
                _iou(rows.loc[name]),
                number(rows.loc[name, "chance_iou"]),
                ranged(*differences[name][:3]) if name in differences else "",
                ranged(*(float(rows.loc[name, f"best_iou{end}"]) for end in ("", "_low", "_high"))),
            ]
            for name in ("top", *_CONTROLS)
            if name in rows.index
        ],
    )
    numbers: dict[str, Any] = {"layer": best.layer, "step": best.step, "chosen_by_looking": True}
    numbers["selections"] = {
        str(name): {"mean": finite(row["iou"]), "low": finite(row["iou_low"]), "high": finite(row["iou_high"])}
        | {"n_samples": int(row["n_samples"]), "chance": finite(row["chance_iou"]), "best": finite(row["best_iou"])}
        for name, row in rows.iterrows()
    }
    numbers["top_minus"] = {
        name: {"mean": finite(mean), "low": finite(low), "high": finite(high), "n_samples": n}
        for name, (mean, low, high, n) in differences.items()
    }
    return Finding("alignment", sentence, numbers, [source.sql(means_text), source.sql(difference_text)], table)


def paired(rows: pd.DataFrame) -> dict[str, tuple[float, float, float, int]]:
    """Top minus every other selection, sample by sample, with an interval that resamples prompts.

    Args:
        rows: ``sample``, ``prompt``, ``selection`` and ``iou``, one row of each sample and selection.

    Returns:
        Mean, its ends, and the samples that have both, by selection.
    """
    wide = rows.pivot(index=["sample", "prompt"], columns="selection", values="iou")
    if "top" not in wide:
        return {}
    prompt, _ = pd.factorize(wide.index.get_level_values("prompt"))
    found = {}
    for name in wide.columns.drop("top"):
        difference = (wide["top"] - wide[name]).to_numpy(float)
        known = np.isfinite(difference)
        sums, counts = np.zeros((2, prompt.max() + 1, 1))
        np.add.at(sums[:, 0], prompt[known], difference[known])
        np.add.at(counts[:, 0], prompt[known], 1)
        mean, low, high = (float(each[0]) for each in cluster_bootstrap(sums, counts))
        found[str(name)] = (mean, low, high, int(known.sum()))
    return found


def _verdicts(names: Sequence[str], differences: dict[str, tuple[float, float, float, int]]) -> str:
    """In plain words, which controls the top channels exceed and which they do not."""
    by: dict[str, list[str]] = {"exceed": [], "fall below": [], "cannot be told from": []}
    for name in names:
        mean, low, high, _ = differences[name]
        verdict = "exceed" if low > 0 else "fall below" if high < 0 else "cannot be told from"
        by[verdict].append(
            f"{_CONTROLS[name]} by {ranged(mean, low, high)}"
            if verdict != "cannot be told from"
            else (f"{_CONTROLS[name]} (difference {ranged(mean, low, high)})")
        )
    parts = [
        f"they {'do NOT exceed, and ' if verdict == 'fall below' else ''}{verdict} {'; '.join(each)}"
        for verdict, each in by.items()
        if each
    ]
    return f"Sample by sample {'. Sample by sample '.join(parts)}." if parts else "No control was analysed beside them."


def _has_cell(source: Source, analysis: str, table: str, found: Extreme) -> bool:
    view = source.table(analysis, table)
    at = f"layer = {found.layer} and step = {found.step}"
    return len(source.ask(f"select layer from {view} where {at} limit 1")) > 0


def _where(source: Source, found: Extreme) -> str:
    tokens = "" if source.stream == "image" else f", {source.stream} tokens"
    return f"layer {found.layer}, step {found.step}{tokens}"


def _iou(row: pd.Series) -> str:
    return ranged(float(row["iou"]), float(row["iou_low"]), float(row["iou_high"]))


def _record(row: pd.Series) -> dict[str, Any]:
    return ends(row) | {"n_samples": int(row["n_samples"])}
