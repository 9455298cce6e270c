"""Findings of a sweep: the top channels against every control, whether they exceed it or not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fewchannels.analyses.document import Finding, How, Table, bracketed_row, number, ranged_row, span
from fewchannels.analyses.wording import CHANNELS
from fewchannels.interventions.conditions import BASELINES
from fewchannels.interventions.effects.figures import counted, in_words, setting_words
from fewchannels.interventions.metrics import METRICS

Q = 0.05
"""Significance threshold of q; the interval must exclude zero, too."""
FEWEST = 6
"""Minimum number of prompts for the test: with fewer, its exact p always exceeds 0.05."""
_TOO_FEW = f"too few prompts for the test, which needs at least {FEWEST}"
_MOST_ROWS = 40
_DOSES = ("energy_share", "change")
_WORDS = CHANNELS | {
    "prompt": "prompts blended at the same strength",
    "latents": "latents blended at the same strength",
    "pixels": "pixels blended at the same strength",
}
_SETTINGS = ("action", "amount", "k", "scores_from", "layers_name", "steps_name", "streams", "tokens", "placement")
Asked = Callable[[str], Sequence[How]]


@dataclass(frozen=True)
class Headline:
    """The setting that is described in full.

    Attributes:
        condition: index of the condition.
        selection: ``top`` or ``listed``.
        words: the setting as text.
        of: explanation of which of several settings it is; empty if it is the only one.
    """

    condition: int
    selection: str
    words: str
    of: str = ""


def headline(averages: pd.DataFrame, differences: pd.DataFrame) -> Headline | None:
    """Choose the setting of top channels with the most controls; ties by the largest amount, the largest k, then the
    first.

    Without controls, all settings are considered in the same way.

    Args:
        averages: result of :func:`fewchannels.interventions.effects.contrasts.means`.
        differences: result of :func:`fewchannels.interventions.effects.contrasts.contrasts`.

    Returns:
        None if nothing was edited.
    """
    groups: Any = averages[averages["condition"].notna()].drop_duplicates("condition").set_index("condition")
    if groups.empty:
        return None
    counts = differences.groupby("counterpart_condition")["condition"].nunique()
    rank = groups[["amount", "k"]].assign(n=counts.reindex(groups.index).fillna(0), amount=groups["amount"].abs())
    ordered = rank.sort_index().sort_values(["n", "amount", "k"], ascending=False, kind="stable")
    condition = int(ordered.index[0])
    row, best = groups.loc[condition], ordered.iloc[0]
    alike: Any = groups[(groups["selection"] == row["selection"]) & (rank["n"] == best["n"])]
    of = ""
    if len(alike) > 1:
        tied = (alike["amount"].abs() == best["amount"]) & (alike["k"].eq(best["k"]) | alike["k"].isna())
        rule = "the largest amount and k" + (", the first of those" if tied.sum() > 1 else "")
        of = f"One of {len(alike):,} settings of these channels ({rule}), not selected by its effect"
    words = f"{row['selection']} channels: {in_words(row, _SETTINGS)}"
    return Headline(condition, str(row["selection"]), words, of)


def of_sweep(
    averages: pd.DataFrame,
    differences: pd.DataFrame,
    main: Sequence[str],
    chosen: Headline | None,
    asked: Asked,
    sets: pd.DataFrame | None = None,
) -> list[Finding]:
    """All findings of a sweep, in reading order.

    Args:
        averages: result of :func:`fewchannels.interventions.effects.contrasts.means`.
        differences: result of :func:`fewchannels.interventions.effects.contrasts.contrasts`.
        main: the main metrics.
        chosen: the setting that is described in full.
        asked: function that returns the commands for a query.
        sets: ``effects_sets``, distances between sets of images; None if they were not measured.
    """
    if chosen is None:
        return []
    found = [_level(averages, main, chosen, asked)]
    own: Any = differences[differences["counterpart_condition"] == chosen.condition]
    for condition, rows in own[own["metric"].isin([*main, *_DOSES])].groupby("condition", sort=False):
        if rows["metric"].isin(main).any():
            found.append(_against(rows, int(condition), chosen, main, asked))
    if not len(own):
        found.append(
            Finding(
                "no_control",
                "The sweep has no control for this setting, so the effect cannot be attributed to these channels.",
                {},
                [],
            )
        )
    if differences["counterpart_condition"].nunique() > 1:
        found += [_everywhere(differences, main, asked), _others(differences, main, chosen, asked)]
    conditions = [chosen.condition, *own["condition"].unique().tolist()]
    distances = _sets(sets[sets["condition"].isin(conditions)], conditions, chosen, asked) if sets is not None else None
    return found if distances is None else [*found, distances]


def _level(averages: pd.DataFrame, main: Sequence[str], chosen: Headline, asked: Asked) -> Finding:
    own: Any = averages[(averages["condition"] == chosen.condition) & averages["metric"].isin(main)].set_index("metric")
    plain: Any = averages[(averages["action"] == "undisturbed") & averages["metric"].isin(main)].set_index("metric")
    parts, numbers = [], {}
    for metric in (name for name in main if name in own.index):
        row = own.loc[metric]
        text = f"{metric} {ranged_row(row)}{_own_n(row, own)}"
        numbers[metric] = _record(row)
        if metric in plain.index and pd.notna(plain.loc[metric, "mean"]):
            text += f", unedited images {ranged_row(plain.loc[metric])}"
            numbers[metric]["undisturbed"] = _record(plain.loc[metric])
        parts.append(text)
    text = (
        "select action, selection, metric, n_items, n_prompts, mean, low, high from effects_means where (condition = "
        f"{chosen.condition} or action = 'undisturbed') and metric in ({_listed(main)}) order by metric, condition"
    )
    sentence = f"{_upper(chosen.words)}, have {'; '.join(parts)}; {counted(own)}."
    sentence += f" {chosen.of}." if chosen.of else ""
    return Finding("setting", sentence, {"condition": chosen.condition, "metrics": numbers}, asked(text))


def _against(rows: pd.DataFrame, condition: int, chosen: Headline, main: Sequence[str], asked: Asked) -> Finding:
    row = rows.iloc[0]
    control = control_of(row)
    by: dict[str, list[str]] = {"more": [], "less": [], "open": [], "alike": [], "few": []}
    every = rows
    rows = every[every["metric"].isin(main)]
    for _, each in rows.iterrows():
        by[verdict(each)].append(f"{each['metric']} {ranged_row(each)}{_own_n(each, rows)}")
    words = {
        "more": "larger effect by",
        "less": "SMALLER effect by",
        "open": "inconclusive (only one of interval and test is significant):",
        "alike": "no significant difference:",
        "few": f"{_TOO_FEW}:",
    }
    parts = [f"{words[name]} {', '.join(each)}" for name, each in by.items() if each]
    exceeded = bool(by["more"]) and not (by["less"] or by["open"] or by["alike"])
    lead = "exceed" if exceeded else "exceed only in part" if by["more"] else "do NOT exceed"
    lead = (
        lead
        if by["more"] or by["less"]
        else "are not shown to exceed"
        if by["open"]
        else "do not differ significantly from"
    )
    if len(by["few"]) == len(rows):
        sentence = (
            f"The {chosen.selection} channels minus {_WORDS.get(control, control)}: {', '.join(by['few'])}; "
            f"{counted(rows)}: {_TOO_FEW}."
        )
    else:
        sentence = (
            f"The {chosen.selection} channels {lead} {_WORDS.get(control, control)}: {'; '.join(parts)}; "
            f"{counted(rows)}."
        )
    table = Table(
        f"{chosen.selection} minus {control}; energy_share and change show how similar the edits were",
        ["metric", chosen.selection, control, "difference", "d_z", "q", "n"],
        [
            [
                str(each["metric"]),
                number(each["effect_mean"]),
                number(each["control_mean"]),
                ranged_row(each),
                "" if pd.isna(each["d_z"]) else f"{each['d_z']:.2f}",
                "" if pd.isna(each["q"]) else f"{each['q']:.2g}",
                f"{int(each['n_items']):,}",
            ]
            for _, each in pd.concat([rows, every[every["metric"].isin(_DOSES) & every["mean"].notna()]]).iterrows()
        ],
    )
    text = (
        "select metric, n_items, n_prompts, effect_mean, control_mean, mean, low, high, d_z, p, q from "
        f"effects_contrasts where condition = {condition} and counterpart_condition = {chosen.condition} and metric in "
        f"({_listed([*main, *_DOSES])}) order by metric"
    )
    numbers: dict[str, Any] = {"control": control, "condition": condition, "counterpart_condition": chosen.condition}
    numbers |= {"exceeded": exceeded}
    numbers["metrics"] = {
        str(each["metric"]): _record(each)
        | {name: _plain(each[name]) for name in ("effect_mean", "control_mean", "d_z", "q")}
        | {"verdict": verdict(each)}
        for _, each in rows.iterrows()
    }
    return Finding(f"against_{control}", sentence, numbers, asked(text), table)


def verdict(row: pd.Series) -> str:
    """Return whether the effect is ``more`` or ``less`` than the control's, ``alike``, ``open``, or of too ``few``.

    ``more`` means further from the unedited image and from its prompt, or nearer to the source. It requires an interval
    that excludes zero and a q below :data:`Q`; if only one of them holds, the verdict is ``open``. If all prompts
    differ by the same amount, there is no interval, and the test alone decides. With fewer than :data:`FEWEST` prompts
    that have the metric, there is no verdict.

    Args:
        row: result of :func:`fewchannels.interventions.effects.contrasts.contrasts`.
    """
    if row["n_prompts"] < FEWEST:
        return "few"
    passes = pd.notna(row["q"]) and row["q"] < Q
    apart = passes if pd.isna(row["low"]) else not row["low"] <= 0 <= row["high"]
    if not (passes and apart):
        return "open" if passes or apart else "alike"
    rises = METRICS[row["metric"]].more in ("change", "source") if row["metric"] in METRICS else True
    return "more" if (row["mean"] > 0) == rises else "less"


def _everywhere(differences: pd.DataFrame, main: Sequence[str], asked: Asked) -> Finding:
    """Count the settings in which the channels have a larger effect than each control."""
    rows = differences[differences["metric"].isin(main)]
    rows = rows.assign(control=[control_of(row) for _, row in rows.iterrows()])
    rows = rows.assign(verdict=[verdict(row) for _, row in rows.iterrows()])
    shown = [metric for metric in main if metric in set(rows["metric"])]
    body, numbers, plain, told = [], {}, [], []
    for control, own in rows.groupby("control", sort=False):
        cells, counts = [str(control)], {}
        for metric in shown:
            each = own[own["metric"] == metric]["verdict"].value_counts()
            counts[metric] = {name: int(each.get(name, 0)) for name in ("more", "less", "open", "alike")}
            total = sum(counts[metric].values())  # without those of too few prompts, of which nothing is said
            cells.append(f"{counts[metric]['more']} more, {counts[metric]['less']} less, of {total}" if total else "")
        body.append(cells)
        numbers[str(control)] = counts
        tested = {metric: each for metric, each in counts.items() if any(each.values())}
        if tested and not any(each["more"] for each in tested.values()):
            plain.append(str(control))
        told += [_in_settings(control, tested)] if tested else []
    n_settings = int(rows["counterpart_condition"].nunique())
    not_exceeded = f" They do not exceed {', '.join(plain)} in any setting or metric." if plain else ""
    if not told:
        sentence = (
            f"Over all {n_settings:,} settings, the channels cannot be compared with their controls; "
            f"{counted(rows)}: {_TOO_FEW}."
        )
    else:
        n_tests = int(differences["q"].notna().sum())
        sentence = (
            f"Over all {n_settings:,} settings, the channels have a significantly larger effect than "
            f"{'; than '.join(told)} (q over the sweep's {n_tests:,} tests).{not_exceeded}"
        )
    text = (
        "select action, amount, selection, k, layers_name, steps_name, tokens, metric, n_items, effect_mean, "
        f"control_mean, mean, low, high, d_z, q from effects_contrasts where metric in ({_listed(main)}) "
        "order by condition, counterpart_condition, metric"
    )
    table = Table("Settings by control and metric", ["minus", *shown], body)
    return Finding("all_settings", sentence, numbers, asked(text), table)


def _others(differences: pd.DataFrame, main: Sequence[str], chosen: Headline, asked: Asked) -> Finding:
    """Compare every other setting with its controls, if there are few."""
    rows = differences[(differences["counterpart_condition"] != chosen.condition) & differences["metric"].isin(main)]
    pairs = rows.drop_duplicates(["condition", "counterpart_condition"])
    text = (
        "select counterpart, action, amount, selection, k, layers_name, steps_name, tokens, metric, n_items, "
        "n_prompts, mean, low, high, q from effects_contrasts where counterpart_condition != "
        f"{chosen.condition} and metric in ({_listed(main)}) order by condition, counterpart_condition, metric"
    )
    shown = [metric for metric in main if metric in set(rows["metric"])]
    if len(pairs) > _MOST_ROWS:
        sentence = f"The other settings' {len(pairs):,} contrasts are in the table effects_contrasts."
        return Finding("other_settings", sentence, {"n_contrasts": len(pairs)}, asked(text))
    body = []
    for (_, pair), words in zip(pairs.iterrows(), contrast_words(pairs), strict=True):
        own: Any = rows[_same(rows, pair)].set_index("metric")
        cells = [bracketed_row(own.loc[metric]) if metric in own.index else "" for metric in shown]
        body.append([f"{words}, minus {control_of(pair)}", *cells, _items(own)])
    table = Table("Difference of the other settings, 95 % over prompts", ["", *shown, "n"], body)
    sentence = f"The other settings compared with their controls; {counted(rows)}."
    return Finding("other_settings", sentence, {"n_contrasts": len(pairs)}, asked(text), table)


def contrast_words(pairs: pd.DataFrame) -> list[str]:
    """Describe the settings of contrasts, one row each, by :func:`setting_words`."""
    is_baseline = pairs["action"].isin(BASELINES)
    return setting_words(
        pairs.assign(selection=pairs["counterpart"], action=pairs["action"].mask(is_baseline, "transport"))
    )


def _same(rows: pd.DataFrame, pair: pd.Series) -> pd.Series:
    names = ["condition", "counterpart_condition"]
    return (rows[names] == pair[names]).all(axis=1)


def _items(rows: pd.DataFrame) -> str:
    return span(rows["n_items"])


def _own_n(row: pd.Series, rows: pd.DataFrame) -> str:
    """A metric's numbers of items and of prompts, if metrics differ in them."""
    if rows["n_items"].nunique() == 1 and rows["n_prompts"].nunique() == 1:
        return ""
    return f", n = {int(row['n_items']):,} items of {int(row['n_prompts']):,} prompts"


def _in_settings(control: Any, counts: Mapping[str, Mapping[str, int]]) -> str:
    """Count the settings that have a larger and a smaller effect than a control, by metric."""
    each = [
        f"{metric} in {found['more']:,} of {sum(found.values()):,}"
        + (f" (smaller in {found['less']:,})" if found["less"] else "")
        for metric, found in counts.items()
    ]
    return f"{control}: {', '.join(each)}"


def _sets(rows: Any, conditions: Sequence[int], chosen: Headline, asked: Asked) -> Finding | None:
    """Compare the set of a setting's images, and those of its controls, with the set of unedited ones."""
    if rows.empty:
        return None
    text = (
        "select model, condition, action, selection, trial, k, n_edited, n_undisturbed, frechet, kernel, cmmd from "
        f"effects_sets where condition in ({', '.join(f'{each:d}' for each in conditions)}) order by model, condition"
    )
    rows = rows.sort_values(["model", "condition"])
    own = rows[rows["condition"] == chosen.condition]
    told = [
        f"by {row.model} kernel distance {number(row.kernel)}, CMMD {number(row.cmmd)}"
        + ("" if pd.isna(row.frechet) else f", Fréchet distance {number(row.frechet)}")
        + f" ({row.n_edited:,} edited, {row.n_undisturbed:,} unedited images)"
        for row in own.itertuples()
    ]
    sentence = (
        f"The set of edited images of the {chosen.selection} channels differs from the set of unedited ones: "
        f"{'; '.join(told)}. Each distance is one number for two sets, without an interval. 0 means no difference, the "
        "kernel distance may be slightly negative, and the Fréchet distance needs more images than features. The "
        "table adds the "
        "controls."
    )
    table = Table(
        "Distance of edited from unedited images, as sets of embeddings",
        ["embedded by", "channels", "edited", "unedited", "kernel (KID)", "CMMD", "Fréchet (FID)"],
        [
            [
                str(row.model),
                control_of(pd.Series(row._asdict())) + (f", draw {row.trial}" if row.trial else ""),
                f"{row.n_edited:,}",
                f"{row.n_undisturbed:,}",
                number(row.kernel),
                number(row.cmmd),
                "" if pd.isna(row.frechet) else number(row.frechet),
            ]
            for row in rows.itertuples()
        ],
    )
    names = ("model", "condition", "n_edited", "n_undisturbed", "frechet", "kernel", "cmmd")
    sets = [{name: None if pd.isna(row[name]) else row[name] for name in names} for row in rows.to_dict("records")]
    return Finding("sets", sentence, {"sets": sets}, asked(text), table)


def control_of(row: pd.Series) -> str:
    """The other side of a contrast: a baseline, or a selection of channels."""
    return str(row["action"] if row["action"] in BASELINES else row["selection"])


def _record(row: pd.Series) -> dict[str, Any]:
    return {name: _plain(row[name]) for name in ("mean", "low", "high")} | {"n_items": int(row["n_items"])}


def _plain(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
