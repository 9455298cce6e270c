"""Findings on the stability of top channels: sentences, a table by layer, and the queries that reproduce them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fewchannels.analyses.document import Finding, Table, bracketed, ends, finite, number, ranged_row
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.ratio import Extreme, has_cell, where
from fewchannels.analyses.settings import ConcentrationSettings

PAIRS = {
    "within": "same prompt, different seed",
    "across": "different prompts",
    "category": "different prompts, same category",
}
"""Name of each kind of pair of samples."""
_SAMPLES = {"within": "the same prompt", "across": "different prompts", "category": "different prompts of one category"}
_THRESHOLD = ConcentrationSettings().threshold
ABOUT = (
    "Always in top k: channels in the top set of all samples, the largest ratio first. SPARK: its stopping "
    "rule (arXiv 2609.03813) on this run's samples in order, top 8 of the mean over steps, for each layer alone; it "
    "needs at least 400 samples."
)
_ENDS = ("", "_low", "_high", "_n")
_MOST_TOP = 12
_MOST_CORE = 8


def most_frequent(evidence: Evidence, found: Extreme) -> Finding | None:
    """Find the channels most often in the top k, counted in the result or, without one, in ``cells``."""
    n_channels = int(evidence.description["geometry"]["n_channels"])
    result, own_score = evidence.results.get("stability"), evidence.description["config"]["score"]
    cells = f"from cells where {evidence.of_track} and layer = {found.layer} and step = {found.step}"
    if result and has_cell(evidence, "stability", "channels", found):
        k, score = max(result["settings"]["ks"]), result["settings"]["score"]
        counted = (
            f"select channel, n_selected, n_samples from {evidence.table('stability', 'channels')} where layer = "
            f"{found.layer} and step = {found.step} and k = {k}"
        )
    else:
        longest = evidence.ask(f"select max(len(top_channels)) as k from cells where {evidence.of_track}")["k"].iloc[0]
        k, score = min(int(longest), _MOST_TOP, max(1, n_channels // 2)), own_score
        counted = (
            f"select channel, count(*) as n_selected, (select count(*) {cells}) as n_samples from (select "
            f"unnest(top_channels[1:{k}]) as channel {cells}) group by channel"
        )
    text = (
        f"with counted as ({counted}), seen as (select *, count(*) over () as n_seen, max(n_selected) over () as most "
        "from counted), ratios as (select channel, avg(if(median_score > 0, own / median_score, null)) as ratio from "
        "(select median_score, unnest(top_channels) as channel, unnest(top_scores) as own "
        f"{cells} and score = '{score}') group by channel) select channel, n_selected, n_samples, n_seen, ratio from "
        "seen left join ratios using (channel) where n_selected = most order by ratio desc nulls last, channel"
    )
    rows = evidence.ask(text)
    if rows.empty:
        return None
    row, channels = rows.iloc[0], [int(channel) for channel in rows["channel"]]
    n, total, seen = int(row["n_selected"]), int(row["n_samples"]), int(row["n_seen"])
    threshold = evidence.results.get("concentration", {}).get("settings", {}).get("threshold", _THRESHOLD)
    ratio, massive = finite(row["ratio"]), [int(each) for each in rows[rows["ratio"] >= threshold]["channel"]]
    numbers = {"layer": found.layer, "step": found.step, "k": k, "channel": channels[0], "channels": channels}
    numbers |= {"n_selected": n, "n_samples": total, "frequency": n / total, "chance": k / n_channels}
    numbers |= {"ratio": ratio, "threshold": threshold, "massive": massive}
    numbers |= {"n_channels": n_channels, "n_channels_seen": seen}
    is_one = len(channels) == 1
    sentence = (
        f"{_named(channels)} {'is' if is_one else 'are'} most often among the top {k} by {score}: "
        f"{'' if is_one else 'each '}in {n:,} of {total:,} samples, {number(100 * n / total)} %, "
        f"{where(evidence, found)} (the most frequent of {n_channels:,} channels, selected post hoc: no interval)."
    )
    if ratio is not None:
        largest = "It scores" if is_one else f"Channel {channels[0]} scores highest,"
        sentence += (
            f" {largest} {number(ratio)} times the median channel on average; {_massive(channels, massive)} by the "
            f"channel test (at least {threshold:g} times the median)."
        )
    sentence += (
        f" By chance, a channel would be in {number(100 * k / n_channels)} % of random sets of {k} of the "
        f"{n_channels:,} channels; {n_channels - seen:,} channels are in no sample's top {k}."
    )
    return Finding("most_frequent_channel", sentence, numbers, [evidence.sql(text)])


def _named(channels: Sequence[int]) -> str:
    if len(channels) == 1:
        return f"Channel {channels[0]}"
    if len(channels) > _MOST_CORE:
        return f"Channels {', '.join(map(str, channels[:_MOST_CORE]))} and {len(channels) - _MOST_CORE:,} more"
    return f"Channels {', '.join(map(str, channels[:-1]))} and {channels[-1]}"


def _massive(channels: Sequence[int], massive: Sequence[int]) -> str:
    if not massive:
        return "it is not massive" if len(channels) == 1 else "none of them is massive"
    if len(channels) == 1:
        return "it is massive"
    return "all of them are massive" if len(massive) == len(channels) else f"{_are(massive)} massive"


def _are(channels: Sequence[int]) -> str:
    named = _named(channels)
    return f"{named[0].lower()}{named[1:]} {'is' if len(channels) == 1 else 'are'}"


def overlap(evidence: Evidence, found: Extreme) -> Finding | None:
    """Compare the overlap of two samples' top sets with chance."""
    result = evidence.results.get("stability")
    if not result or not has_cell(evidence, "stability", "pairs", found):
        return None
    table, k = evidence.table("stability", "pairs"), max(result["settings"]["ks"])
    text = (
        f"select kind, n_pairs, n_prompts, jaccard, jaccard_low, jaccard_high, chance from {table} where layer = "
        f"{found.layer} and step = {found.step} and k = {k} order by kind"
    )
    rows = (
        evidence.ask(text)
        .set_index("kind")
        .rename(columns={"jaccard": "mean", "jaccard_low": "low", "jaccard_high": "high"})
    )
    by = result["settings"].get("by")
    samples = _SAMPLES | ({"category": f"different prompts with the same {by}"} if by else {})
    parts = [
        f"{ranged_row(rows.loc[kind])} for two samples of {name} (n = {int(rows.loc[kind, 'n_pairs']):,} pairs of "
        f"{int(rows.loc[kind, 'n_prompts']):,} prompts)"
        for kind, name in samples.items()
        if kind in rows.index and pd.notna(rows.loc[kind, "mean"])
    ]
    if not parts:
        return None
    chance = float(rows["chance"].iloc[0])
    sentence = (
        f"Overlap of two samples' top {k} by {result['settings']['score']} (Jaccard, {where(evidence, found)}): "
        f"{'; '.join(parts)}. The overlap of two random sets of {k} is {number(chance)}."
    )
    numbers: dict[str, Any] = {"layer": found.layer, "step": found.step, "k": k, "chance": chance}
    for kind in rows.index:
        about = {"n_pairs": int(rows.loc[kind, "n_pairs"]), "n_prompts": int(rows.loc[kind, "n_prompts"])}
        numbers[str(kind)] = ends(rows.loc[kind]) | about
    return Finding("overlap", sentence, numbers, [evidence.sql(text)])


def spark(evidence: Evidence) -> Finding | None:
    """Report where SPARK's rule, which tests all layers at once, stops, in the samples' order and in random orders."""
    result, view = evidence.results["stability"], evidence.table("stability", "spark")
    if view not in evidence.catalog.views:
        return None  # a result of an older version
    text = f"select permutation, n_samples, n_layers, n_needed, settled from {view} order by permutation"
    rows: Any = evidence.ask(text).set_index("permutation")
    random = rows.drop(index=0)
    stopped, n, n_layers = random["n_needed"].dropna(), int(rows["n_samples"].max()), int(rows["n_layers"].max())
    needed = rows.loc[0, "n_needed"]
    numbers: dict[str, Any] = {
        "n_samples": n,
        "n_layers": n_layers,
        "n_needed": None if pd.isna(needed) else int(needed),
        "n_orders": len(random),
        "n_orders_stop": len(stopped),
        "median_needed": float(stopped.median()) if len(stopped) else None,
    }
    one = n_layers == 1
    kept = str(evidence.description["config"].get("streams", "image")).split(",")
    others = [stream.strip() for stream in kept if stream.strip() != evidence.stream]
    numbers["streams_left_out"] = others
    both = (
        f"SPARK tests both streams; this run also has {' and '.join(others)} tokens, with which it stops no earlier"
        if others
        else "SPARK tests both streams if a model has two"
    )
    rule = (
        f"SPARK's rule stops when the top 8 of {'the layer' if one else f'all {n_layers:,} layers'} "
        f"{'is' if one else 'are'} stable at the same check ({evidence.stream} tokens, {result['settings']['score']}, "
        f"mean over steps; {both})"
    )
    if rows["settled"].isna().all():
        told = f"with {n:,} samples it cannot stop yet, because its first check is after 400 samples"
    else:
        own = f"does not stop within {n:,}" if pd.isna(needed) else f"stops after {int(needed):,} of {n:,}"
        told = f"it {own} samples in their order, and in {len(stopped):,} of {len(random):,} random orders"
        if len(stopped):
            told += f", after a median of {stopped.median():,.0f} ({stopped.min():,.0f} to {stopped.max():,.0f})"
    return Finding("spark", f"{rule}: {told}.", numbers, [evidence.sql(text)])


def by_layer(evidence: Evidence) -> Finding:
    """Tabulate every layer at the last step: overlap, chance, agreement of rankings, core, SPARK's stopping point."""
    result = evidence.results["stability"]
    k, step = max(result["settings"]["ks"]), max(result["selected"]["steps"])
    text = _question(evidence, result["settings"]["score"], k, step)
    rows = evidence.ask(text)
    layers = [_layer(row) for row in rows.to_dict("records")]
    kinds = [kind for kind in PAIRS if any(kind in layer for layer in layers)]
    heads = ["layer", *(PAIRS[kind] for kind in kinds), "chance", "Spearman, all channels"]
    table = Table(
        f"Mean Jaccard overlap of two samples' top {k}, step {step}, 95 % over prompts",
        [*heads, "always in top k", "ever in top k", "SPARK, this layer alone, stops after"],
        [
            [
                str(layer["layer"]),
                *(bracketed(*(row[f"{kind}{end}"] for end in _ENDS)) if kind in layer else "" for kind in kinds),
                bracketed(layer.get("chance")),
                bracketed(*(row[f"spearman_across{end}"] for end in _ENDS)),
                _core(row["core"]),
                str(layer["n_channels_seen"]),
                str(layer["spark_stops_after"] or "not yet"),
            ]
            for layer, row in zip(layers, rows.to_dict("records"), strict=True)
        ],
    )
    sentence = f"The top {k} by {result['settings']['score']} at step {step}, over all pairs of samples, by layer."
    numbers = {"k": k, "step": step, "layers": layers}
    return Finding("stability_by_layer", sentence, numbers, [evidence.sql(text)], table)


def _question(evidence: Evidence, score: str, k: int, step: int) -> str:
    channels, pairs, ranks, stopping = (
        evidence.table("stability", name) for name in ("channels", "pairs", "ranks", "stopping")
    )
    kinds = ", ".join(
        f"max({column}) filter (kind = '{kind}') as {kind}{end}"
        for kind in PAIRS
        for column, end in (("jaccard", ""), ("jaccard_low", "_low"), ("jaccard_high", "_high"), ("n_prompts", "_n"))
    )
    return (
        "with ratios as (select layer, channel, avg(if(median_score > 0, own / median_score, null)) as ratio from "
        "(select layer, median_score, unnest(top_channels) as channel, unnest(top_scores) as own from cells where "
        f"{evidence.of_track} and step = {step} and score = '{score}') group by all), core as (select layer, count(*) "
        "as n_channels_seen, list(channel order by ratio desc nulls last, channel) filter (n_selected = n_samples) as "
        f"core from {channels} left join ratios using (layer, channel) where k = {k} and step = {step} group by "
        "layer), pairs as (select layer, "
        f"max(chance) as chance, {kinds} from {pairs} where k = {k} and step = {step} group by layer), ranks as "
        "(select layer, max(mean) as spearman_across, max(low) as spearman_across_low, max(high) as "
        f"spearman_across_high, max(n_prompts) as spearman_across_n from {ranks} where step = {step} and measure = "
        f"'spearman' and kind = 'across' group by layer), stopping as (select layer, n_needed from {stopping} where "
        "step is null) select * from core left join pairs using (layer) left join ranks using (layer) left join "
        "stopping using (layer) order by layer"
    )


def _layer(row: dict[str, Any]) -> dict[str, Any]:
    """A layer's numbers in plain values."""
    core = row["core"]
    found: dict[str, Any] = {
        "layer": int(row["layer"]),
        "core": sorted(_channels(core)),
        "n_channels_seen": int(row["n_channels_seen"]),
    }
    for kind in PAIRS:
        if pd.notna(row[kind]):
            found[kind] = [_rounded(row[f"{kind}{end}"]) for end in ("", "_low", "_high")]
    if pd.notna(row["chance"]):
        found["chance"] = _rounded(row["chance"])
    needed = row["n_needed"]
    found["spearman_across"] = _rounded(row["spearman_across"])
    found["spark_stops_after"] = None if pd.isna(needed) else int(needed)
    return found


def _channels(core: Any) -> list[int]:
    return [] if core is None or not hasattr(core, "__len__") else [int(channel) for channel in core]


def _core(core: Any) -> str:
    """The number of channels and the first of them, those that stand out most first."""
    if not (channels := _channels(core)):
        return "none"
    more = " ..." if len(channels) > _MOST_CORE else ""
    return f"{len(channels)}: {', '.join(map(str, channels[:_MOST_CORE]))}{more}"


def _rounded(value: Any) -> float | None:
    return None if pd.isna(value) else round(float(value), 4)
