"""Summary of a sweep: means, contrasts with controls, figures, and a page of text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fewchannels.analyses import summary
from fewchannels.analyses.document import Figure, bracketed_row, span
from fewchannels.interventions.effects.contrasts import as_columns, contrasts, means, metrics
from fewchannels.interventions.effects.exclusions import not_edited, not_finite
from fewchannels.interventions.effects.figures import counted, default_figures, main_metrics, setting_words
from fewchannels.interventions.effects.findings import FEWEST, Q, contrast_words, control_of, headline, of_sweep
from fewchannels.interventions.metrics import METRICS
from fewchannels.tables import Columns

_MOST_ROWS = 40
_FAIREST = ("matched", "scaled", "random")
_IN_TABLES = ("all_settings", "other_settings", "no_control")  # findings that the page's tables cover in more detail


@dataclass(frozen=True)
class Effects(summary.Summary):
    """Summary of a sweep.

    Attributes:
        tables: columns of ``means`` and ``contrasts`` (``schemas/effects_*.yaml``), by table.
    """

    tables: dict[str, Columns] = field(default_factory=dict)

    @property
    def headlines(self) -> list[str]:
        """The described setting, its fairest control, and the counts over all settings."""
        by = {each.name: each for each in self.findings}
        against = [name for name in by if name.startswith("against_")]
        fair = next((f"against_{name}" for name in _FAIREST if f"against_{name}" in by), next(iter(against), None))
        chosen = [by.get("setting"), by.get("no_control"), by.get(fair or ""), by.get("all_settings")]
        return [each.headline for each in chosen if each is not None] or super().headlines


def summarize(edits: pd.DataFrame, sets: Columns | None = None) -> Effects:
    """Summarize a sweep's images by condition.

    Args:
        edits: every row of ``schemas/edits.yaml``. Images are used for the items that
            :func:`fewchannels.interventions.effects.figures.shown_items` names; without a column ``image``, no strips
            are drawn.
        sets: columns of ``schemas/effects_sets.yaml``; None if set distances were not measured.

    Returns:
        The numbers of the main metrics, the page, the tables, and the figures.
    """
    averages, differences = means(edits), contrasts(edits)
    edited = edits[edits["role"] == "edited"]
    main = main_metrics(averages)
    seen = set(averages.loc[averages["condition"].notna(), "metric"])
    numbers = {
        "n_items": int(edits["item"].nunique()),
        "n_prompts": int(edits["prompt"].nunique()),
        "n_conditions": int(edited["condition_id"].nunique()),
        "n_edited": len(edited),
        "n_failed": int((edited["status"] != "done").sum()),
        "n_nonfinite": int(not_finite(edits)[edits["role"] == "edited"].sum()),
        "n_not_edited": int(not_edited(edits).sum()),
        "metrics": main,
        "not_measured": [metric for metric in metrics() if metric not in seen],
        "measured_in_part": measured_in_part(edits),
        "means": _records(averages[averages["metric"].isin(main)]),
        "contrasts": _records(differences[differences["metric"].isin(main)]),
    }
    figures = [Figure(name, drawing, []) for name, drawing in default_figures(edits, averages).items()]
    measured = pd.DataFrame(sets) if sets else None
    chosen = headline(averages, differences) if main else None
    found = of_sweep(averages, differences, main, chosen, lambda text: [], measured)
    told = [each.text for each in found if each.name not in _IN_TABLES]
    page = [*_head(numbers), *(line for text in told for line in (text, "")), *_undisturbed(averages)]
    page += [*_means(averages, main), *_contrasts(differences, main)]
    text = "\n".join([*page, *_end(numbers, figures, in_part(edits))])
    tables = {"means": as_columns(averages), "contrasts": as_columns(differences)}
    return Effects(numbers, text, found, figures, tables)


def measured_in_part(edits: pd.DataFrame) -> dict[str, int]:
    """Metrics that some items lack altogether, with the number of items that have them.

    An item lacks a metric if its prompt or its source does not allow it, or if its task was finished by a version that
    did not have it.

    Args:
        edits: rows of ``schemas/edits.yaml``.
    """
    done = edits[(edits["role"] == "edited") & (edits["status"] == "done")]
    counts = done.groupby("item")[list(metrics())].count()
    items = {metric: int((counts[metric] > 0).sum()) for metric in metrics()}
    return {metric: n for metric, n in items.items() if 0 < n < len(counts)}


def in_part(edits: pd.DataFrame) -> str:
    """The same as a sentence; empty if no metric is missing for some items."""
    found = measured_in_part(edits)
    n_items = edits["item"].nunique()
    each = ", ".join(f"{metric} ({n:,} of {n_items:,})" for metric, n in found.items())
    return (
        f"Not measured for every item: {each}. The other items' prompts do not allow it, or their tasks ran with a "
        "version without that metric."
        if found
        else ""
    )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    columns = as_columns(table)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()} for row in rows]


def _head(numbers: dict[str, Any]) -> list[str]:
    n = numbers["n_conditions"]
    return [
        "# Effects",
        "",
        f"{numbers['n_items']:,} items of {numbers['n_prompts']:,} prompts, {n:,} condition{'s' * (n != 1)}: "
        f"{numbers['n_edited']:,} edited images. {numbers['n_failed']:,} of them failed, {numbers['n_nonfinite']:,} "
        f"had non-finite latents, and {numbers['n_not_edited']:,} were not edited (their conditions selected no "
        "token or no channel); these are excluded from all numbers below. Means are over prompts: trials are averaged "
        "per "
        "item, then items per prompt; brackets show 95 % intervals over prompts.",
        "",
    ]


def _undisturbed(averages: pd.DataFrame) -> list[str]:
    rows = averages[(averages["action"] == "undisturbed") & averages["metric"].isin(METRICS) & averages["mean"].notna()]
    if rows.empty:
        return []
    shown = ", ".join(f"{row['metric']} {bracketed_row(row)}" for _, row in rows.iterrows())
    return [f"Unedited images, {counted(rows)}: {shown}.", ""]


def _means(averages: pd.DataFrame, main: Sequence[str]) -> list[str]:
    rows = averages[averages["condition"].notna() & averages["metric"].isin([*main, "change"])]
    groups = rows.drop_duplicates("condition")
    if len(groups) > _MOST_ROWS:
        return [f"The means of {len(groups):,} settings are in the table `effects_means`.", ""]
    columns = [metric for metric in (*main, "change") if metric in set(rows["metric"])]
    heads, body = _heads(rows, columns), []
    for (_, group), words in zip(groups.iterrows(), setting_words(groups), strict=True):
        own = rows[rows["condition"] == group["condition"]]
        cells = {row["metric"]: bracketed_row(row) + heads.beside(row) for _, row in own.iterrows()}
        body.append([words, *(cells.get(metric, "") for metric in columns)])
    return summary.table(["setting", *heads.texts], body)


def _contrasts(differences: pd.DataFrame, main: Sequence[str]) -> list[str]:
    if differences.empty:
        return [
            "No contrasts: no control of this sweep (bottom, random, matched, ...) has the settings of a top or listed "
            "selection, so the effect of the top channels cannot be compared with that of other channels.",
            "",
        ]
    rows = differences[differences["metric"].isin(main)]
    pairs = rows.drop_duplicates(["condition", "counterpart_condition"])
    few = _few(rows)
    about = [
        "## Against controls",
        "",
        *few,
        "Top channels (listed ones if there are no top ones) minus the control, paired by item: difference "
        "(95 % interval over prompts), d_z over prompts, q of Wilcoxon's signed-rank test (Benjamini and Hochberg's, "
        f"over the sweep's {int(differences['p'].notna().sum()):,} tests of all metrics; edit sizes, non-finite "
        "steps, and contrasts without any difference are not tested).",
        "",
    ]
    if len(pairs) > _MOST_ROWS:
        return [*about, *_counts(rows, main), "Every contrast is in the table `effects_contrasts`.", ""]
    heads, body = _heads(rows, main), []
    for (_, pair), effect in zip(pairs.iterrows(), contrast_words(pairs), strict=True):
        names = ["condition", "counterpart_condition"]
        own = rows[(rows[names] == pair[names]).all(axis=1)]
        cells = {row["metric"]: _contrast(row) + heads.beside(row) for _, row in own.iterrows()}
        body.append([f"{effect}, minus {control_of(pair)}", *(cells.get(metric, "") for metric in main)])
    return about + summary.table(["", *heads.texts], body)


def _few(rows: pd.DataFrame) -> list[str]:
    """Name metrics that too few prompts have for the test; none if all have enough."""
    most = rows.groupby("metric")["n_prompts"].max()
    lacking = most[most < FEWEST]
    if lacking.empty:
        return []
    n = span(lacking)
    whose = "" if len(lacking) == len(most) else f" that have {', '.join(map(str, lacking.index))}"
    return [f"{n} prompt{'s' * (n != '1')}{whose}: too few for the test, which needs at least {FEWEST}.", ""]


def _counts(rows: pd.DataFrame, main: Sequence[str]) -> list[str]:
    """Count the settings with a significant difference, by control."""
    body = []
    controls = [control_of(row) for _, row in rows.iterrows()]
    for control, own in rows.groupby(controls, sort=False):
        cells = []
        for metric in main:
            each = own[own["metric"] == metric]
            clear = each[each["q"] < Q]
            cells.append(f"{(clear['mean'] > 0).sum()} higher, {(clear['mean'] < 0).sum()} lower, of {len(each)}")
        body.append([f"minus {control}", *cells])
    return [f"Settings whose q is below {Q:g}, by control:", "", *summary.table(["", *main], body)]


def _end(numbers: dict[str, Any], figures: Sequence[Figure], partly: str) -> list[str]:
    lacking = ", ".join(numbers["not_measured"])
    said = [f"Not measured: {lacking}."] if lacking else []
    images = summary.images([each.name for each in figures])
    return [*(line for each in [*said, partly] if each for line in (each, "")), *images, ""]


@dataclass(frozen=True)
class _Heads:
    """Headings of a table's metrics, each with its number of items if that is the same in all rows.

    Attributes:
        texts: the headings.
        varying: metrics whose cells have the number instead.
    """

    texts: list[str]
    varying: frozenset[str]

    def beside(self, row: pd.Series) -> str:
        """A cell's number of items, if it varies."""
        return f", n = {int(row['n_items']):,}" if row["metric"] in self.varying else ""


def _heads(rows: pd.DataFrame, metrics: Sequence[str]) -> _Heads:
    counts = {metric: set(rows.loc[rows["metric"] == metric, "n_items"].astype(int)) for metric in metrics}
    varying = frozenset(metric for metric, found in counts.items() if len(found) > 1)
    texts = [f"{metric} (n = {max(found):,})" if len(found) == 1 else metric for metric, found in counts.items()]
    return _Heads(texts, varying)


def _contrast(row: pd.Series) -> str:
    parts = [bracketed_row(row)]
    parts += [f"d_z {row['d_z']:.2f}"] if pd.notna(row["d_z"]) else []
    parts += [f"q {row['q']:.2g}"] if pd.notna(row["q"]) else []
    return ", ".join(parts)
