"""A run's part of a report: settings, findings, figures, samples, and missing results."""

from collections.abc import Callable
from typing import Any

from fewchannels.analyses import ratio
from fewchannels.analyses.alignment.figures import figures as alignment_figures
from fewchannels.analyses.alignment.findings import best_cells
from fewchannels.analyses.concentration.findings import figures as concentration_figures
from fewchannels.analyses.document import Block, Facts, Findings, Missing, Part, Section, Warnings
from fewchannels.analyses.evidence import ANALYSES, Evidence
from fewchannels.analyses.findings import SUBJECTS, of_run
from fewchannels.analyses.stability.figures import figures as stability_figures
from fewchannels.interventions.conditions import in_short
from fewchannels.settings.units import size
from fewchannels.views.report import gallery, landscape

_QUIET = ("model", "revision", "layers", "steps")
_FIGURES = {
    "concentration": concentration_figures,
    "stability": stability_figures,
}
Progress = Callable[[str, int, int], None]


def run_part(evidence: Evidence, title: str, by: str | None, on_progress: Progress) -> Part:
    """A run's part.

    Args:
        evidence: the run, finished or not.
        title: its name.
        by: the column that samples are shown by; None for the IoU or the ratio.
        on_progress: called with the activity, the number done, and the total.

    Raises:
        InputError: no such column.
        StorageError: the run is damaged.
    """
    numbers = _numbers(evidence)
    sections = [Section("What was run", [*_warnings(evidence, numbers), Facts(_facts(evidence, numbers))])]
    found = of_run(evidence)
    if found.extreme is not None:
        sections.append(Section("What was found", [Findings(found.about, [each for _, each in found.sentences])]))
        magnitudes = landscape.magnitudes(evidence, lambda done, total: on_progress("reading the store", done, total))
        if magnitudes is not None:
            sections.append(Section("Channel landscape", landscape.figures(evidence, magnitudes)))
        drawn = ratio.figures(evidence, found.extreme)
        sections.append(Section("How far the largest channel stands out", drawn))
        for analysis, figures in _FIGURES.items():
            if analysis in found.layers:
                sections.append(Section(SUBJECTS[analysis], [*figures(evidence), found.layers[analysis]]))
        if found.best is not None:
            drawn = alignment_figures(evidence, best_cells(evidence))
            sections.append(Section(SUBJECTS["alignment"], drawn))
        shown = gallery.of_run(evidence, found.extreme, found.best, by)
        if shown is not None:
            sections.append(Section("Samples", [shown]))
    missing = _missing(evidence, numbers)
    if missing:
        sections.append(Section("Not computed", missing))
    return Part(evidence.place, "run", title, [each for each in sections if each.blocks], numbers)


def _numbers(evidence: Evidence) -> dict[str, Any]:
    about = evidence.description
    ((n_prompts, n_seeds, first_seed, last_seed),) = evidence.catalog.sql(
        "select count(distinct prompt), count(distinct seed), min(seed), max(seed) from manifest"
    ).fetchall()
    ((done, failed, truncated),) = evidence.catalog.sql(
        "select count(*) filter (status = 'done'), count(*) filter (status = 'failed'), "
        "count(*) filter (prompt_truncated) from samples"
    ).fetchall()
    ((n_nonfinite,),) = evidence.catalog.sql(
        "select count(*) from cells where nonfinite > 0 or if(isfinite(ratio), ratio, null) is null"
    ).fetchall()
    ((tasks_done,),) = evidence.catalog.sql("select count(*) from tasks").fetchall()
    return {
        "model": about["config"]["model"],
        "fingerprint": about["fingerprint"],
        "n_samples": about["geometry"]["n_samples"],
        "n_prompts": n_prompts,
        "n_seeds": n_seeds,
        "seeds": [first_seed, last_seed],
        "n_done": done,
        "n_failed": failed,
        "n_truncated": truncated,
        "n_nonfinite_cells": n_nonfinite,
        "n_tasks": about["n_tasks"],
        "n_tasks_done": tasks_done,
    }


def _facts(evidence: Evidence, numbers: dict[str, Any]) -> list[tuple[str, str]]:
    about = evidence.description
    config, geometry, model = about["config"], about["geometry"], about.get("model", {})
    names = [config["model"], model.get("family"), config.get("revision")]
    sizes = evidence.storage.list()
    seeds = "-".join(dict.fromkeys(str(seed) for seed in numbers["seeds"]))
    rows = [
        ("model", ", ".join(str(name) for name in names if name)),
        ("weights", str(model.get("weights_sha256", ""))),
        (
            "manifest",
            f"{numbers['n_samples']:,} samples of {numbers['n_prompts']:,} prompts, "
            f"{_counted(numbers['n_seeds'], 'seed')} ({seeds})",
        ),
        (
            "finished",
            f"{numbers['n_done']:,} of {numbers['n_samples']:,} samples, {numbers['n_failed']:,} failed, "
            f"{numbers['n_truncated']:,} with a truncated prompt; {numbers['n_tasks_done']:,} of "
            f"{numbers['n_tasks']:,} tasks",
        ),
        (
            "kept",
            f"{geometry['n_layers']:,} layers ({in_short(config.get('layers', []))}), {geometry['n_steps']:,} steps "
            f"({in_short(config.get('steps', []))}), {geometry['n_channels']:,} channels, {geometry['n_tokens']:,} "
            "tokens",
        ),
        ("tokens and branch", f"{evidence.stream} tokens, {evidence.branch} branch"),
    ]
    settings = [f"{name} {value}" for name, value in config.items() if name not in _QUIET and value is not None]
    rows += [
        ("settings", ", ".join(settings)),
        ("on disk", f"{size(sum(sizes.values()))} in {len(sizes):,} files"),
        ("fingerprint", about["fingerprint"]),
        ("begun", about.get("created", "")),
        ("versions", ", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items())),
    ]
    return [(name, value) for name, value in rows if value]


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _warnings(evidence: Evidence, numbers: dict[str, Any]) -> list[Block]:
    texts = []
    left = numbers["n_samples"] - numbers["n_done"] - numbers["n_failed"]
    if not numbers["n_done"] and not numbers["n_failed"]:
        texts.append(f"No sample of this run is finished (0 of {numbers['n_samples']:,}). Rerun its capture to resume.")
    elif left > 0:
        texts.append(
            f"The run is unfinished: {left:,} of {numbers['n_samples']:,} samples are missing and not included below. "
            "Rerun its capture to resume."
        )
    if numbers["n_failed"]:
        reasons = evidence.ask(
            "select error, count(*) as n from samples where status = 'failed' group by error order by n desc, error "
            "limit 3"
        )
        listed = "; ".join(f"{row.n:,} x {row.error}" for row in reasons.itertuples())
        texts.append(f"{numbers['n_failed']:,} samples failed and are excluded below: {listed}")
    if numbers["n_nonfinite_cells"]:
        texts.append(
            f"{numbers['n_nonfinite_cells']:,} cells (one per sample, step and layer) have non-finite states or ratios "
            "and are excluded below."
        )
    if numbers["n_truncated"]:
        texts.append(f"{numbers['n_truncated']:,} prompts are longer than the text encoder's limit and were truncated.")
    texts += [evidence.catalog.lacks(key) for key in evidence.catalog.incomplete.values()]
    for analysis, result in evidence.results.items():
        n = result["selected"]["n_samples"]
        if n != numbers["n_done"]:
            texts.append(
                f"The {analysis} analysis covers {n:,} of the {numbers['n_done']:,} samples that are finished now."
            )
    return [Warnings(texts)] if texts else []


def _missing(evidence: Evidence, numbers: dict[str, Any]) -> list[Missing]:
    about = {
        "concentration": "Concentration: energy share of the top channels, registers, published criteria",
        "stability": "Stability: overlap of the top channels of two samples",
        "masks": "Subject masks, needed by the alignment analysis",
        "alignment": "Alignment: clusters of tokens against the subject",
    }
    if not numbers["n_done"]:
        return [Missing("Findings and figures", [], "no sample is finished.")]
    found = []
    for analysis in ("concentration", "stability", "masks", "alignment"):
        if analysis in evidence.results or (analysis == "masks" and "alignment" in evidence.results):
            continue
        options, why = _options(evidence, analysis)
        how = [] if why else [evidence.command("analyze", analysis, evidence.place, *options)]
        found.append(Missing(about[analysis], how, why))
    assert set(about) == set(ANALYSES)
    return found


def _options(evidence: Evidence, analysis: str) -> tuple[list[str], str]:
    """Options that the analysis needs for this run, or the reason why it cannot be done."""
    config, geometry = evidence.description["config"], evidence.description["geometry"]
    top_k, n_channels = config["top_k"], geometry["n_channels"]
    track = [] if evidence.stream == "image" else ["--stream", evidence.stream]
    track += [] if evidence.branch == "cond" else ["--branch", evidence.branch]
    if analysis in ("masks", "alignment") and evidence.stream != "image":
        return [], "it needs image tokens, which this run did not record."
    if analysis == "stability":
        ks = [str(k) for k in (4, 8, 12) if k <= n_channels]
        return [*track, *(["--k", ",".join(ks or ["1"])] if len(ks) < 3 else [])], ""
    if analysis == "concentration":
        shares = [str(k) for k in (1, 2, 4, 8, 12) if k <= n_channels]
        return [*track, *(["--shares", ",".join(shares)] if len(shares) < 5 else [])], ""
    if analysis == "masks":
        return [], ""
    if not top_k:
        return [], "it needs token maps, which this run did not record (--top-k 0). Capture with --top-k 1 or more."
    options = track + (["--k", str(top_k)] if top_k < 12 else [])
    if top_k < n_channels:
        controls = config.get("controls", "none")
        kept = ["top", *(word for word in ("bottom", "random") if word in controls)]
        trials = [part.partition(":")[2] for part in controls.split(",") if part.startswith("random:")]
        options += ["--selections", ",".join(kept), *(["--trials", trials[0]] if trials else [])]
    return options, ""
