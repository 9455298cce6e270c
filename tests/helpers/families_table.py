"""Prints the table of docs/families.md: what the family table says, and what each line was tested with."""

from checkpoints import CASES

from fewchannels.models.families import FAMILIES
from fewchannels.models.family import Family, Pipeline

_GUIDANCE = {"none": "", "batched": "in one batch", "sequential": "one forward each", "component": "by the guider"}


def guidance(how: Pipeline) -> str:
    """Which guidance a pipeline has, in words."""
    parts = [f"distilled (`{how.embedded}`)"] if how.embedded else []
    if how.guidance != "none":
        scale = f", `{how.classifier_free}`" if how.classifier_free else ""
        parts.append(f"classifier-free, {_GUIDANCE[how.guidance]}{scale}")
    return "; ".join(parts) or "none"


def layers(family: Family) -> str:
    """The kinds of a family's block lists, in running order."""
    return ", ".join(f"`{each.path}` ({each.kind})" for each in family.lists)


def rows() -> list[tuple[str, ...]]:
    """One row for each pipeline class."""
    tested: dict[str, list[str]] = {}
    for case in CASES:
        sizes = [case.square, *([case.tall] if case.tall else [])]
        grids = " and ".join(f"{height // case.token_side} x {width // case.token_side}" for height, width in sizes)
        tested.setdefault(type(case.build()).__name__, []).append(f"{case.name}: {grids}")
    return [
        (
            f"`{pipeline}`",
            layers(family),
            ", ".join(family.streams),
            guidance(how),
            "needed" if how.needs_reference else "may be given" if how.reference else "no",
            "; ".join(tested[pipeline]),
        )
        for family in FAMILIES.values()
        for pipeline, how in family.pipelines.items()
    ]


def main() -> None:
    """Print it."""
    head = ("pipeline", "layers", "streams", "guidance", "reference image", "tested with (tokens)")
    for row in (head, ("---",) * len(head), *rows()):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
