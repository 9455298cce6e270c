"""A sweep's part of a report: settings, top channels against every control, dose-response figures, samples."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from fewchannels.analyses.document import Block, Facts, Figure, Findings, How, Missing, Part, Section, Warnings
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.figures.drawings import Drawing
from fewchannels.interventions.effects.exclusions import not_edited, not_finite
from fewchannels.interventions.effects.figures import AXES, default_figures, shown_items
from fewchannels.interventions.effects.summary import in_part
from fewchannels.interventions.effects.sweep_findings import find
from fewchannels.settings.units import size
from fewchannels.views.report import gallery

_OPEN = 2  # metrics of an axis that are shown at once
Progress = Callable[[str, int, int], None]


def sweep_part(evidence: Evidence, title: str, by: str | None, on_progress: Progress) -> Part:
    """A sweep's part.

    Args:
        evidence: the sweep, finished or not.
        title: its name.
        by: the column of ``edits`` that items are shown by; None for each main metric.
        on_progress: called with the activity, the number done, and the total.

    Raises:
        InputError: no such column.
        StorageError: the sweep is damaged.
    """
    edits = evidence.ask("select * exclude (image) from edits")
    numbers = _numbers(evidence, edits)
    sections = [Section("What was run", [*_warnings(evidence, edits, numbers), Facts(_facts(evidence, numbers))])]
    if (edits["role"] == "edited").any():
        found = find(evidence, edits, lambda done, total: on_progress("measuring effects", done, total))
        if found.sentences:
            sections.append(Section("What was found", [Findings(found.about, found.sentences)]))
        drawn = default_figures(edits.assign(image=_images(evidence, edits)), found.averages)
        on_progress("measuring effects", 3, 3)
        sections += _figures(evidence, drawn, found.first)
        columns, chosen = found.main if by is None else [by], found.chosen
        shown = gallery.of_sweep(evidence, columns, chosen.condition, chosen.words) if chosen else []
        sections.append(Section("Items", shown))
    sections.append(Section("Not computed", _missing(evidence, edits, numbers)))
    return Part(evidence.place, "sweep", title, [each for each in sections if each.blocks], numbers)


def _images(evidence: Evidence, edits: pd.DataFrame) -> pd.Series:
    """The images of the items that figures show; None for other items."""
    found = pd.Series([None] * len(edits), index=edits.index, dtype=object)
    for item in shown_items(edits):
        rows = evidence.ask(f"select role, condition_id, image from edits where item = {item:d}")
        images = {(row.role, row.condition_id or ""): row.image for row in rows.itertuples()}
        for i in edits.index[edits["item"] == item]:
            found[i] = images[edits.at[i, "role"], edits.at[i, "condition_id"] or ""]
    return found


def _numbers(evidence: Evidence, edits: pd.DataFrame) -> dict[str, Any]:
    ((n_prompts, n_samples, n_seeds, first_seed, last_seed),) = evidence.catalog.sql(
        "select count(distinct prompt), count(*), count(distinct seed), min(seed), max(seed) from manifest"
    ).fetchall()
    edited = edits[edits["role"] == "edited"]
    about = evidence.ask("select * from sweep").iloc[0]
    return {
        "sweep": str(about["kind"]),
        "protocol": None if pd.isna(about["protocol"]) else str(about["protocol"]),
        "model": str(about["model"]),
        "fingerprint": str(about["fingerprint"]),
        "n_items": int(about["n_items"]),
        "n_items_done": int(edits["item"].nunique()),
        "n_prompts": n_prompts,
        "n_samples": n_samples,
        "n_seeds": n_seeds,
        "seeds": [first_seed, last_seed],
        "n_conditions": int(about["n_conditions"]),
        "n_edited": len(edited),
        "n_failed": int((edits["status"] != "done").sum()),
        "n_nonfinite": int(not_finite(edits)[edits["role"] == "edited"].sum()),
        "n_not_edited": int(not_edited(edits).sum()),
        "n_tasks": int(about["n_tasks"]),
        "n_tasks_done": int(about["n_tasks_done"]),
    }


def _facts(evidence: Evidence, numbers: dict[str, Any]) -> list[tuple[str, str]]:
    about, sizes = evidence.description, evidence.storage.list()
    model, settings = about["model"], about["identity"].get("generation", {})
    seeds = "-".join(dict.fromkeys(str(seed) for seed in numbers["seeds"]))
    n_seeds = numbers["n_seeds"]
    rows = [
        ("model", ", ".join(str(model[name]) for name in ("name", "family") if model.get(name))),
        ("sweep", numbers["sweep"] + (f", protocol {numbers['protocol']}" if numbers["protocol"] else "")),
        (
            "manifest",
            f"{numbers['n_samples']:,} samples of {numbers['n_prompts']:,} prompts, {n_seeds:,} "
            f"seed{'s' * (n_seeds != 1)} ({seeds})",
        ),
        (
            "finished",
            f"{numbers['n_items_done']:,} of {numbers['n_items']:,} items; {numbers['n_tasks_done']:,} of "
            f"{numbers['n_tasks']:,} tasks",
        ),
        (
            "edits",
            f"{numbers['n_edited']:,} edited images, {numbers['n_conditions']:,} conditions per item; "
            f"{numbers['n_failed']:,} images failed, {numbers['n_nonfinite']:,} had non-finite latents"
            f", not edited: {numbers['n_not_edited']:,}",
        ),
        ("settings", ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)),
        ("on disk", f"{size(sum(sizes.values()))} in {len(sizes):,} files"),
        ("fingerprint", numbers["fingerprint"]),
        ("begun", about.get("created", "")),
        ("versions", ", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items())),
    ]
    return [(name, value) for name, value in rows if value]


def _warnings(evidence: Evidence, edits: pd.DataFrame, numbers: dict[str, Any]) -> list[Block]:
    texts, left = [], numbers["n_items"] - numbers["n_items_done"]
    if not numbers["n_items_done"]:
        texts.append(f"No item of this sweep is finished (0 of {numbers['n_items']:,}). Rerun its command to resume.")
    elif left > 0:
        texts.append(
            f"The sweep is unfinished: {left:,} of {numbers['n_items']:,} items are missing and not included below. "
            "Rerun its command to resume."
        )
    if numbers["n_failed"]:
        reasons = evidence.ask(
            "select error, count(*) as n from edits where status != 'done' group by error order by n desc, error "
            "limit 3"
        )
        listed = "; ".join(f"{row.n:,} x {row.error}" for row in reasons.itertuples())
        texts.append(f"{numbers['n_failed']:,} images failed and are excluded below: {listed}")
    if numbers["n_nonfinite"]:
        texts.append(
            f"{numbers['n_nonfinite']:,} edited images are excluded below because their latents, or those of the "
            "unedited image, contained a NaN or an infinity."
        )
    if numbers["n_not_edited"]:
        texts.append(
            f"{numbers['n_not_edited']:,} images are excluded below because their condition selected no token or no "
            "channel, so nothing was edited."
        )
    texts += [said] if (said := in_part(edits)) else []
    return [Warnings(texts)] if texts else []


def _figures(evidence: Evidence, drawn: dict[str, Drawing], first: Sequence[How]) -> list[Section]:
    """The sweep's figures, grouped by their axis."""
    headings = {axis: f"Dose-response: {axis}" for axis in AXES} | {
        "effects": "Every setting at once",
        "strip": "Strips of images",
    }
    found: dict[str, list[Block]] = {key: [] for key in headings}
    for name, drawing in drawn.items():
        kind, _, rest = name.partition("_")
        if kind == "dose":
            axis, _, metric = rest.partition("_")
            text = (
                "select action, amount, selection, k, layers_name, steps_name, tokens, n_items, n_prompts, mean, low, "
                f"high from effects_means where metric = '{metric}' order by condition"
            )
            one = evidence.command("plot", evidence.place, "--of", metric, "--axis", axis, "--out", f"{name}.svg")
            how, key = [one, *first, evidence.sql(text)], axis
        elif kind == "strip":
            one = evidence.command("plot", evidence.place, "--item", rest, "--out", f"{name}.png")
            text = f"select role, selection, k, amount, status, width, height from edits where item = {int(rest)}"
            how, key = [one, evidence.sql(text)], "strip"
        else:
            metrics = ", ".join(f"'{each.partition(' (')[0]}'" for each in getattr(drawing, "drawn", {}))
            text = (
                "select action, amount, selection, k, layers_name, steps_name, tokens, metric, n_items, mean, low, "
                f"high from effects_means where metric in ({metrics}) order by condition, metric"
            )
            how, key = [*first, evidence.sql(text)], "effects"
        folded = kind == "dose" and len(found[key]) >= _OPEN
        found[key].append(Figure(name, drawing, how, less_important=folded))
    return [Section(headings[key], blocks) for key, blocks in found.items() if blocks]


def _missing(evidence: Evidence, edits: pd.DataFrame, numbers: dict[str, Any]) -> list[Missing]:
    if not numbers["n_items_done"]:
        return [Missing("Findings and figures", [], "no item is finished.")]
    learned = {
        "lpips": ("lpips", "alex"),
        "clip_image": ("clip", "FOLDER"),
        "dino": ("dino", "FOLDER"),
        "aesthetic": ("aesthetic", "FOLDER"),
    }
    absent = [name for name in learned if not edits[name].notna().any()]
    found = []
    if absent:
        options = [word for name in absent for word in ("--metric", "=".join(learned[name]))]
        kind = (
            "probe disruption"
            if evidence.description["identity"]["kind"] == "disruption"
            else (f"transport {evidence.description['identity']['kind']}")
        )
        found.append(
            Missing(
                f"Learned metrics of the images ({', '.join(absent)})",
                [],
                f"they are measured during generation: rerun the sweep's command, fewchannels {kind}, with "
                f"{' '.join(options)} and a new --out.",
            )
        )
    return found
