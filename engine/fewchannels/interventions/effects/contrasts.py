"""Effects of a sweep's edits: means of every group of conditions, and contrasts with their controls. Pure.

A *group* is a condition without its trial: an item's draws of random channels are averaged first. A control's
*counterpart* is the group with the same settings whose channels are the top ones or, if there is none, listed ones.
Images that were not edited, or whose latents were not finite, are counted and otherwise excluded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from fewchannels.interventions.conditions import BASELINES, MEASURES
from fewchannels.interventions.effects.exclusions import not_edited, not_finite
from fewchannels.interventions.metrics import METRICS
from fewchannels.measures.intervals import Interval, cluster_interval
from fewchannels.tables import Columns, schema

SETTINGS = (
    "action",
    "amount",
    "selection",
    "k",
    "scores_from",
    "layers_name",
    "steps_name",
    "streams",
    "tokens",
    "placement",
)
"""Columns that name a group. Groups of other listed channels differ in ``condition``, the first of their conditions."""
DOSES = MEASURES
"""Metrics of how large an edit was, not of what it did: they are set by the conditions, so they are not tested."""
_UNTESTED = (*DOSES, "nonfinite_steps")  # set by the conditions, or a sign of a fault
_RANGES = {"energy_share": (0.0, 1.0), "token_share": (0.0, 1.0)}
_COUNTED = (0.0, np.inf)  # channels, steps, and the norm of an edit
_MOST_EXACT = 300  # nonzero differences: more take long, and the normal approximation is good
_DECIMALS = 12  # smaller differences are rounding errors, which would be ranked


def metrics() -> list[str]:
    """Columns of ``edits`` that have means, in its order."""
    names = schema("edits").names
    return list(names[names.index("n_channels") : names.index("image")])


def means(edits: pd.DataFrame, only: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean of every metric in every group, a prompt's items averaged first, with 95 % intervals over prompts.

    A pair's prompt is its target's; that pairs may share sources is not accounted for.

    Args:
        edits: rows of ``schemas/edits.yaml``; the images are not needed.
        only: metrics; None for all.

    Returns:
        The columns of ``schemas/effects_means.yaml``: groups in the sweep's order, then images that are not edited,
        as the actions ``undisturbed`` and ``source``. A metric without a value in any of these three has no rows there.
    """
    tables = []
    for role in ("edited", "undisturbed", "source"):
        grouped = _grouped(edits, role)
        parts = []
        for metric in metrics() if only is None else only:
            values = grouped.values(metric)
            if not (known := np.isfinite(values)).any():
                continue
            by_prompt = grouped.by_prompt(values)
            mean, low, high = _over_prompts(by_prompt, *value_range(metric))
            found = {"n_items": known.sum(axis=0), "n_prompts": np.isfinite(by_prompt).sum(axis=0)}
            found |= {"mean": mean, "low": low, "high": high}
            parts.append(grouped.groups.assign(metric=metric, **found))
        tables.append(parts)
    return _table("effects_means", tables)


def contrasts(edits: pd.DataFrame) -> pd.DataFrame:
    """Every control's counterpart minus the control, item by item, for every metric.

    Mean, interval, effect size and test are over prompts, each the mean of its items' differences. Cohen's d_z is their
    mean over their standard deviation (with n - 1); the test is Wilcoxon's signed-rank test, two-sided, with Pratt's
    treatment of zeros (:func:`signed_rank`). q is Benjamini and Hochberg's over all tests of the sweep. Sizes of edits
    (:data:`DOSES`) are settings and non-finite steps are a fault, so they have no p. Contrasts of one prompt or without
    any difference have none either, since they would only make the others' q larger.

    Args:
        edits: same as for :func:`means`.

    Returns:
        The columns of ``schemas/effects_contrasts.yaml``, controls in the sweep's order; NaN if not defined. The
        control ``all`` has no k, and is compared with the counterpart of every k.
    """
    grouped = _grouped(edits, "edited")
    pairs = _counterparts(grouped.groups)
    about = pairs.drop(columns=["effect", "control"])
    parts = []
    for metric in metrics() if len(pairs) else ():
        values = grouped.values(metric)
        effect, control = values[:, pairs["effect"]], values[:, pairs["control"]]
        difference = effect - control
        if not (known := np.isfinite(difference)).any():
            continue
        by_prompt = np.round(grouped.by_prompt(difference), _DECIMALS)
        least, most = value_range(metric)
        mean, low, high = _over_prompts(by_prompt, least - most, most - least)
        found = {"n_items": known.sum(axis=0), "n_prompts": np.isfinite(by_prompt).sum(axis=0)}
        found |= {
            f"{name}_mean": _over_prompts(grouped.by_prompt(np.where(known, of, np.nan)))[0]
            for name, of in (("effect", effect), ("control", control))
        }
        of_prompts = [each[np.isfinite(each)] for each in by_prompt.T]
        found |= {
            "mean": mean,
            "low": low,
            "high": high,
            "d_z": [standardised(each) for each in of_prompts],
            "p": [np.nan if metric in _UNTESTED or not each.any() else signed_rank(each) for each in of_prompts],
        }
        parts.append(about.assign(metric=metric, **found))
    table = _table("effects_contrasts", [parts])
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "q"] = stats.false_discovery_control(table.loc[tested, "p"])
    return table


def value_range(metric: str) -> tuple[float, float]:
    """The smallest and the largest possible value of an image's metric."""
    if metric in METRICS:
        return METRICS[metric].least, METRICS[metric].most
    return _RANGES.get(metric, _COUNTED)


def _over_prompts(by_prompt: np.ndarray, least: float = -np.inf, most: float = np.inf) -> Interval:
    """Mean and interval of prompts' values ``(prompt, cell)``, NaN if a prompt has none."""
    known = np.isfinite(by_prompt)
    return cluster_interval(np.where(known, by_prompt, 0), known.astype(np.float64), least, most)


def standardised(differences: np.ndarray) -> float:
    """Cohen's d_z, mean over standard deviation; NaN with fewer than 2 differences, or if all are the same."""
    if len(differences) < 2 or not np.ptp(differences):
        return np.nan
    return float(differences.mean() / differences.std(ddof=1))


def signed_rank(differences: np.ndarray) -> float:
    """p of Wilcoxon's signed-rank test, two-sided: are both signs of the differences equally likely?

    Zeros are ranked and then left out, so that many of them count against an effect (Pratt 1959); ties get their mean
    rank. Up to 300 nonzero differences, p is exact given the ranks, including ties and zeros: the distribution over all
    combinations of signs is computed rank by rank. Above, it is the normal approximation.

    Args:
        differences: one difference per independent unit.

    Returns:
        0 to 1; 1 if all are zero, NaN with fewer than 2.
    """
    if len(differences) < 2:
        return np.nan
    if not differences.any():
        return 1.0
    if np.count_nonzero(differences) > _MOST_EXACT:
        return float(stats.wilcoxon(differences, zero_method="pratt", method="asymptotic").pvalue)
    ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(int)  # whole, as mean ranks are halves
    ranks //= np.gcd.reduce(ranks[differences != 0])
    ways, reach = np.zeros(ranks[differences != 0].sum() + 1), 0
    ways[0] = 1
    for rank in np.sort(ranks[differences != 0]):
        flipped = ways[: reach + 1] / 2
        ways[: reach + 1] = flipped
        ways[rank : rank + reach + 1] += flipped
        reach += rank
    positive = ranks[differences > 0].sum()
    return float(min(1.0, 2 * min(ways[: positive + 1].sum(), ways[positive:].sum())))


def as_columns(frame: pd.DataFrame) -> Columns:
    """A table's columns with None if there is no value, as Parquet has it."""
    return {name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame.columns}


@dataclass(frozen=True)
class _Grouped:
    """The rows of one role, by item and group.

    Attributes:
        rows: rows of ``edits``.
        item: position of each row's item in ``prompt``.
        group: position of each row's group in ``groups``.
        groups: columns that identify each group, and its ``n_failed``, ``n_nonfinite`` and ``n_not_edited`` images.
        prompt: number of each item's prompt.
        n_prompts: number of prompts.
        counts: whether each row is included in means.
    """

    rows: pd.DataFrame
    item: np.ndarray
    group: np.ndarray
    groups: pd.DataFrame
    prompt: np.ndarray
    n_prompts: int
    counts: np.ndarray

    def values(self, metric: str) -> np.ndarray:
        """A metric as ``(item, group)`` float64, the mean over trials that have it; NaN if none has."""
        values = self.rows[metric].to_numpy(dtype=np.float64, na_value=np.nan)
        known = np.isfinite(values) & (self.counts | (metric == "nonfinite_steps"))
        shape = len(self.prompt), len(self.groups)
        at = self.item[known] * shape[1] + self.group[known]
        n = np.bincount(at, minlength=shape[0] * shape[1])
        return _ratio(np.bincount(at, values[known], len(n)), n).reshape(shape)

    def by_prompt(self, values: np.ndarray) -> np.ndarray:
        """Each prompt's mean of ``(item, cell)``: ``(prompt, cell)``, NaN if none of its items has a value."""
        known = np.isfinite(values)
        sums, counts = np.zeros((2, self.n_prompts, values.shape[1]))
        np.add.at(sums, self.prompt, np.where(known, values, 0))
        np.add.at(counts, self.prompt, known)
        return _ratio(sums, counts)


def _grouped(edits: pd.DataFrame, role: str) -> _Grouped:
    chosen = edits["role"] == role
    rows, broken, as_it_was = edits[chosen], not_finite(edits)[chosen], not_edited(edits)[chosen]
    items = edits.drop_duplicates("item").sort_values("item")
    prompts, names = pd.factorize(items["prompt"], sort=True)
    if role == "edited":
        conditions = _conditions(rows)
        place = rows["condition_id"].map(conditions["group"]).to_numpy(int)
        groups = conditions.drop_duplicates("group").set_index("group")[["condition", *SETTINGS]]
    else:
        place = np.zeros(len(rows), int)
        groups = pd.DataFrame([{"action": role}], columns=["condition", *SETTINGS])
    counts = {"n_failed": rows["status"] != "done", "n_nonfinite": broken, "n_not_edited": as_it_was}
    groups = groups.assign(**{n: np.bincount(place, each, len(groups)).astype(int) for n, each in counts.items()})
    item = np.searchsorted(items["item"].to_numpy(), rows["item"].to_numpy())
    return _Grouped(rows, item, place, groups, prompts, len(names), ~(broken | as_it_was).to_numpy())


def _conditions(rows: pd.DataFrame) -> pd.DataFrame:
    """Every condition by its id, in the sweep's order, with the number of its group."""
    found = rows.drop_duplicates("condition_id").sort_values("condition").set_index("condition_id")
    alike = found.groupby([*SETTINGS, "trial"], sort=False).cumcount()  # listed channels are not in SETTINGS
    group = found.groupby([*(found[name] for name in SETTINGS), alike], sort=False).ngroup()
    return found.assign(group=group)[["condition", "group", *SETTINGS]]


def _counterparts(groups: pd.DataFrame) -> pd.DataFrame:
    """Controls with their counterparts: positions in ``groups``, and the columns that identify a contrast.

    A setting that a control lacks, such as the k of all channels, is taken from its counterpart.
    """
    rows = groups.reset_index(names="place")
    is_effect, is_baseline = rows["selection"].isin(["top", "listed"]), rows["action"].isin(BASELINES)
    shared = [name for name in SETTINGS if name != "selection"]
    effects = rows.loc[is_effect, ["place", "condition", "selection", *shared]]

    def beside(controls: pd.DataFrame, effects: pd.DataFrame, lacked: list[str]) -> pd.DataFrame:
        on = [name for name in shared if name not in lacked]
        return controls.drop(columns=[n for n in lacked if n in effects]).merge(
            effects, on=on, suffixes=("", "_effect")
        )

    of_all, drawn = rows["selection"] == "all", rows["selection"].isin(["random", "redrawn"])
    pairs = pd.concat(
        [
            beside(rows[~is_effect & ~is_baseline & ~of_all & ~drawn], effects, []),
            beside(rows[drawn & ~is_baseline], effects, ["scores_from"]),  # the same channels for any ranking
            beside(rows[of_all & ~is_baseline], effects, ["k", "scores_from"]),
            beside(
                rows[is_baseline],
                effects[effects["action"] == "transport"].drop(columns="action"),
                [name for name in shared if name != "amount"],
            ),
        ]
    )
    has_top = (pairs["selection_effect"] == "top").groupby([pairs["place"], pairs["k"]]).transform("any")
    pairs = pairs[~has_top | (pairs["selection_effect"] == "top")].sort_values(["place", "place_effect"])
    names = {
        "place": "control",
        "place_effect": "effect",
        "selection_effect": "counterpart",
        "condition_effect": "counterpart_condition",
    }
    kept = ["condition", *SETTINGS, *names.values()]
    return pairs.rename(columns=names)[kept].reset_index(drop=True)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _table(name: str, tables: list[list[pd.DataFrame]]) -> pd.DataFrame:
    """Merge tables with the same groups, one table per metric, group by group; then append the next list of tables."""
    ordered = [pd.concat(parts).sort_index(kind="stable") for parts in tables if parts]
    table = pd.concat(ordered, ignore_index=True) if ordered else pd.DataFrame()
    kinds = {"int32": "Int64", "int64": "Int64", "float": "float64", "string": "object"}
    fields = {field.name: kinds[str(field.type)] for field in schema(name)}
    return table.reindex(columns=list(fields)).astype(fields)
