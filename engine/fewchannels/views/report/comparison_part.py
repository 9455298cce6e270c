"""A comparison's part of a report: the two runs, findings, figures, and samples of both."""

from fewchannels.analyses.comparison.figures import figures
from fewchannels.analyses.comparison.findings import findings, warnings
from fewchannels.analyses.document import (
    Facts,
    Findings,
    Gallery,
    Missing,
    Part,
    Section,
    Shown,
    Warnings,
)
from fewchannels.analyses.evidence import Evidence
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.views.report import gallery

_ABOUT = (
    "Samples are matched by sample_id, and the channels of both runs are ranked by the same score and k. Differences "
    "are B minus A of the same sample. Brackets show 95 % intervals over prompts. If A and B overlap less than two "
    "seeds of one prompt, they differ more than seeds do; if equally, their difference is no larger than that of "
    "seeds."
)
_EACH = 2  # samples for each rank


def comparison_part(evidence: Evidence, title: str) -> Part:
    """A comparison's part.

    Args:
        evidence: the comparison.
        title: its name.

    Raises:
        StorageError: the comparison is damaged.
    """
    numbers = evidence.description["numbers"]
    samples, said = _samples(evidence), warnings(numbers)
    sections = [
        Section("What was compared", [*([Warnings(said)] if said else []), Facts(_facts(evidence))]),
        Section("What was found", [Findings(_ABOUT, findings(evidence))]),
        Section("By layer and step", figures(evidence)),
        Section("Samples", [samples] if isinstance(samples, Gallery) else []),
        Section("Not computed", [samples] if isinstance(samples, Missing) else []),
    ]
    told = {name: value for name, value in numbers.items() if name != "layers"} | {"runs": evidence.description["runs"]}
    return Part(evidence.place, "comparison", title, [each for each in sections if each.blocks], told)


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    about, numbers = evidence.description, evidence.description["numbers"]
    sides = [about["identity"][side] for side in "ab"]
    rows = [
        *(
            (side.upper(), f"{run}, {numbers[f'n_channels_{side}']:,} channels, fingerprint {own['run']}")
            for (side, run), own in zip(about["runs"].items(), sides, strict=True)
        ),
        (
            "samples",
            f"{numbers['n_samples']:,} of {numbers['n_prompts']:,} prompts, finished in both; {numbers['n_only_a']:,} "
            f"of A and {numbers['n_only_b']:,} of B have no match",
        ),
        ("matched", f"samples by sample_id, layers by {numbers['layers_by']}, steps by {numbers['steps_by']}"),
        ("ranked", f"by {numbers['score']} in both, k = {numbers['k']}"),
        ("tokens and branch", f"{evidence.stream} tokens, {evidence.branch} branch"),
        ("settings that differ", "; ".join(numbers["settings"]) or "none"),
        ("versions", ", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items())),
    ]
    return [(name, value) for name, value in rows if value]


def _samples(evidence: Evidence) -> Gallery | Missing | None:
    """Samples ranked by overlap of A and B, or by difference of their ratios, each with the images of both."""
    numbers = evidence.description["numbers"]
    same = numbers["n_channels_a"] == numbers["n_channels_b"]
    value = "avg(jaccard)" if same else "avg(ratio_b - ratio_a)"
    text = (
        f"select sample_id, {value} as value from samples where step_a = {numbers['step_a']} group by sample_id having "
        "if(isfinite(value), value, null) is not null order by value desc, sample_id"
    )
    rows = evidence.ask(text)
    if rows.empty:
        return None
    words = f"overlap of the top {numbers['k']} channels" if same else "ratio, B minus A"
    opened: dict[str, Catalog] = {}
    try:
        for side, run in evidence.description["runs"].items():
            opened[side] = _run(run, evidence.description["identity"][side]["run"])
        shown = []
        for rank, place in gallery.places(len(rows), _EACH):
            sample_id = str(rows.iloc[place]["sample_id"])
            (about,) = (
                opened["a"]
                .sql("select prompt, seed from samples where sample_id = $sample_id", {"sample_id": sample_id})
                .fetchall()
            )
            images = [
                (f"{side.upper()}'s image", gallery.thumbnail(catalog.image(sample_id)))
                for side, catalog in opened.items()
            ]
            shown.append(Shown(rank, float(rows.iloc[place]["value"]), sample_id, about[0], f"seed {about[1]}", images))
    except FewchannelsError as error:
        why = f"the images are in the runs, which cannot be opened: {error}"
        return Missing("Samples as A and B drew them", [], why)
    finally:
        for catalog in opened.values():
            catalog.close()
    title = f"Samples by {words}, mean over layers, step {numbers['step_a']} of A\nn = {len(rows):,} samples"
    return Gallery("gallery", title, shown, [evidence.sql(text)])


def _run(place: str, fingerprint: str) -> Catalog:
    """Open a compared run, after checking that it is still the same."""
    catalog = Catalog(place)
    found = catalog.sql("select fingerprint from run").fetchall() if catalog.of == "run" else [(catalog.of,)]
    if found != [(fingerprint,)]:
        catalog.close()
        raise InputError(f"{place!r} is now a different run: {found[0][0]}; the compared one was {fingerprint}.")
    return catalog
