"""A comparison's part of a report: which two runs, what their massive channels share, figures, samples of both."""

import re
from typing import Any

from fewchannels.analyses.comparison.figures import figures
from fewchannels.analyses.comparison.findings import of_comparison
from fewchannels.analyses.comparison.pairing import title as side_title
from fewchannels.analyses.document import (
    Block,
    Facts,
    Figure,
    Findings,
    Gallery,
    How,
    Missing,
    Part,
    Section,
    Shown,
    Warnings,
)
from fewchannels.analyses.source import Source
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.views.report import gallery

_ABOUT = (
    "Samples are matched by sample_id, and both runs are ranked anew by one score and one k. Differences are B minus A "
    "of the same sample. Brackets hold 95 % intervals that resample prompts. That A and B share less than two seeds do "
    "says that they differ; that they share as much says that seeds change as much as whatever differs between them."
)
_EACH = 2  # samples for each rank


def comparison_part(source: Source, title: str) -> Part:
    """A comparison's part.

    Args:
        source: the comparison.
        title: its name.

    Raises:
        StorageError: the comparison is damaged.
    """
    numbers = source.description["numbers"]
    titles = {side: side_title(side, run) for side, run in source.description["runs"].items()}
    tables = {name: source.ask(f"select * from {name}") for name in ("agreement", "differences", "profiles")}
    drawn: list[Block] = [
        Figure(name, drawing, [_how(source, name, numbers)], less_important="gini" in name or "token_norm" in name)
        for name, drawing in figures(numbers, titles, tables).items()
    ]
    drawn.sort(key=lambda each: not (isinstance(each, Figure) and each.name.startswith("overlap")))
    samples = _samples(source)
    sections = [
        Section("What was compared", [*_warnings(numbers), Facts(_facts(source))]),
        Section("What was found", [Findings(_ABOUT, of_comparison(source))]),
        Section("By layer and step", drawn),
        Section("Samples", [samples] if isinstance(samples, Gallery) else []),
        Section("Not computed", [samples] if isinstance(samples, Missing) else []),
    ]
    told = {name: value for name, value in numbers.items() if name != "layers"} | {"runs": source.description["runs"]}
    return Part(source.place, "comparison", title, [each for each in sections if each.blocks], told)


def _facts(source: Source) -> list[tuple[str, str]]:
    about, numbers = source.description, source.description["numbers"]
    sides = [about["identity"][side] for side in "ab"]
    rows = [
        *(
            (side.upper(), f"{run}, {numbers[f'n_channels_{side}']:,} channels, fingerprint {own['run']}")
            for (side, run), own in zip(about["runs"].items(), sides, strict=True)
        ),
        (
            "samples",
            f"{numbers['n_samples']:,} of {numbers['n_prompts']:,} prompts that both finished; {numbers['n_only_a']:,} "
            f"of A and {numbers['n_only_b']:,} of B are left out",
        ),
        ("matched", f"samples by sample_id, layers by {numbers['layers_by']}, steps by {numbers['steps_by']}"),
        ("ranked", f"by {numbers['score']} in both, k = {numbers['k']}"),
        ("this report is of", f"{source.stream} tokens, {source.branch} branch"),
        ("captured with other", "; ".join(numbers["settings"]) or "nothing: the same settings"),
        ("versions", ", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items())),
    ]
    return [(name, value) for name, value in rows if value]


def _warnings(numbers: dict[str, Any]) -> list[Block]:
    texts = []
    if numbers["n_cells_left_out"]:
        texts.append(
            f"{numbers['n_cells_left_out']:,} cells (a sample, step and layer each) are left out: a value is not "
            "finite, or the sample has no such step."
        )
    if numbers["n_channels_a"] != numbers["n_channels_b"]:
        texts.append(
            f"Channels are not compared: A has {numbers['n_channels_a']:,} of them and B "
            f"{numbers['n_channels_b']:,}, so none of the one is any of the other's."
        )
    return [Warnings(texts)] if texts else []


def _how(source: Source, name: str, numbers: dict[str, Any]) -> How:
    """The question whose answer a figure draws."""
    a, b = numbers["step_a"], numbers["step_b"]
    if name == "overlap":
        text = (
            "select layer_a, kind, n, mean, low, high, chance from agreement where measure = 'jaccard' and step_a = "
            f"{a} order by kind, layer_a"
        )
    elif name == "overlap_map":
        text = (
            "select layer_a, step_a, n, mean, low, high from agreement where measure = 'jaccard' and kind = 'matched' "
            "order by layer_a, step_a"
        )
    elif found := re.fullmatch(r"difference_(\w+)", name):
        text = (
            f"select layer_a, step_a, n_samples, mean, low, high from differences where metric = '{found[1]}' order by "
            "layer_a, step_a"
        )
    else:
        text = (
            f"select run, layer, depth, n_samples, mean, low, high from profiles where metric = '{name}' and step = "
            f"if(run = 'a', {a}, {b}) order by run, layer"
        )
    return source.sql(text)


def _samples(source: Source) -> Gallery | Missing | None:
    """Samples by how much A and B share, or by how much more B's largest channel stands out, each as both drew it."""
    numbers = source.description["numbers"]
    same = numbers["n_channels_a"] == numbers["n_channels_b"]
    value = "avg(jaccard)" if same else "avg(ratio_b - ratio_a)"
    text = (
        f"select sample_id, {value} as value from samples where step_a = {numbers['step_a']} group by sample_id having "
        "if(isfinite(value), value, null) is not null order by value desc, sample_id"
    )
    rows = source.ask(text)
    if rows.empty:
        return None
    words = f"overlap of the top {numbers['k']} channels" if same else "ratio, B minus A"
    opened: dict[str, Catalog] = {}
    try:
        for side, run in source.description["runs"].items():
            opened[side] = _run(run, source.description["identity"][side]["run"])
        shown = []
        for rank, place in gallery.places(len(rows), _EACH):
            sample_id = str(rows.iloc[place]["sample_id"])
            (about,) = (
                opened["a"]
                .sql("select prompt, seed from samples where sample_id = $sample_id", {"sample_id": sample_id})
                .fetchall()
            )
            pictures = [
                (f"{side.upper()}'s picture", gallery.thumbnail(catalog.picture(sample_id)))
                for side, catalog in opened.items()
            ]
            shown.append(
                Shown(rank, float(rows.iloc[place]["value"]), sample_id, about[0], f"seed {about[1]}", pictures)
            )
    except FewchannelsError as error:
        why = f"the pictures are in the runs, which cannot be read from here: {error}"
        return Missing("Samples as A and B drew them", [], why)
    finally:
        for catalog in opened.values():
            catalog.close()
    title = f"Samples by {words}, mean over layers, step {numbers['step_a']} of A\nn = {len(rows):,} samples"
    return Gallery("gallery", title, shown, [source.sql(text)])


def _run(place: str, fingerprint: str) -> Catalog:
    """A run that was compared, and is still the same."""
    catalog = Catalog(place)
    found = catalog.sql("select fingerprint from run").fetchall() if catalog.of == "run" else [(catalog.of,)]
    if found != [(fingerprint,)]:
        catalog.close()
        raise InputError(f"{place!r} is another one now: {found[0][0]}, and {fingerprint} was compared.")
    return catalog
