"""What the rows of a named query of a sweep say."""

from collections.abc import Callable

from fewchannels.analyses.phrases import Row, Rows, counted, most, ranged
from fewchannels.settings.units import number


def _failed(rows: Rows) -> list[str]:
    first = rows[0]
    return [
        f"{counted(len(rows), 'image')} listed, such as one of item {first['item']} ({first['role']}): "
        f"{first['error'] or first['reason']}"
    ]


def _flipped(rows: Rows) -> list[str]:
    top = rows[0]
    items = len({row["item"] for row in rows})
    taken = f", and took {top['taken_from_source']} from the source" if top.get("taken_from_source") else ""
    return [
        f"Edits changed what {counted(items, 'item')} of those listed show; most in item {top['item']}, which lost "
        f"{top['lost'] or 'nothing'}{taken}, with {_setting(top)}."
    ]


def _best(rows: Rows) -> list[str]:
    top, told = rows[0], []
    level = "" if top["undisturbed"] is None else f"; unedited images have {number(top['undisturbed'])}"
    told.append(
        f"First of {counted(len(rows), 'setting')} listed: {_setting(top)}, mean {ranged(top, 'mean', '')} (n = "
        f"{top['n_items']:,} items of {top['n_prompts']:,} prompts; selected post hoc){level}."
    )
    effects = [row for row in rows if row["selection"] in ("top", "listed")]
    if effects and effects[0] is not top:
        first = effects[0]
        told.append(f"The first with top or listed channels: {_setting(first)}, mean {ranged(first, 'mean', '')}.")
    return told


def _over(rows: Rows) -> list[str]:
    top = max(rows, key=lambda row: abs(row["mean"]))
    return [
        f"The top channels have a larger effect than a matched or scaled control in {counted(len(rows), 'contrast')} "
        f"listed; the largest difference is {ranged(top, 'mean', '')} from {top['control']} ({_setting(top)}, n = "
        f"{top['n_items']:,} items of {top['n_prompts']:,} prompts, q {number(top['q'])})."
    ]


def _sets(rows: Rows) -> list[str]:
    top = most(rows, "kernel")
    return [
        f"The edited images furthest from the unedited ones as a set, by {top['model']}: {_setting(top)}, kernel "
        "distance "
        f"{number(top['kernel'])}, CMMD {number(top['cmmd'])} ({top['n_edited']:,} edited, {top['n_undisturbed']:,} "
        "unedited images; one number for two sets, without an interval)."
    ]


def _setting(row: Row) -> str:
    """The setting of a row: its selection or baseline, and what else it has."""
    words = {"k": "k {:g}", "amount": "amount {:g}", "layers_name": "layers {}", "steps_name": "steps {}"}
    is_baseline = row.get("selection") == "none"
    first = str(row["action"] if is_baseline else row.get("selection", "top channels"))
    rest = [text.format(row[name]) for name, text in words.items() if row.get(name) is not None]
    return ", ".join([first, *([] if is_baseline else rest)])


SENTENCES: dict[str, Callable[[Rows], list[str]]] = {
    "failed_edits": _failed,
    "flipped_prompts": _flipped,
    "best_settings": _best,
    "top_over_matched": _over,
    "set_distances": _sets,
}
"""Sentences of a query's rows, by its name."""
EMPTY = {
    "failed_edits": "No image failed, and all latents are finite.",
    "flipped_prompts": "No edit changed what an image shows.",
    "top_over_matched": "In no setting do the top channels have a larger effect than a matched or scaled control.",
}
"""Sentences of results without rows, by query."""
