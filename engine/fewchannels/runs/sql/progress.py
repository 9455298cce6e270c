"""Coverage of a sweep's results, for a note if they do not cover all items."""

from collections.abc import Mapping
from typing import Any

from fewchannels.runs.ledger import Record


def parts(records: Mapping[int, Record]) -> list[str]:
    """The checksum of each finished task's table, which identifies the data that effects were computed from."""
    return [stored.crc32c for record in records.values() for _, stored in sorted(record.objects.items())]


def are_current(effects: Mapping[str, Any], records: Mapping[int, Record]) -> bool:
    """Return whether effects cover everything that is finished now.

    Args:
        effects: settings of their result.
        records: records of the sweep's finished tasks.
    """
    return effects.get("tasks") == list(records) and effects.get("parts", parts(records)) == parts(records)


def note(place: str, n_items: int, records: Mapping[int, Record], effects: Mapping[str, Any] | None) -> str | None:
    """Note about the coverage of a sweep's results; None if they cover all of it.

    Args:
        place: location of the sweep.
        n_items: number of items of the whole sweep.
        records: records of its finished tasks.
        effects: settings of the result with its effects; None if there is none.
    """
    done = sum(record.stop - record.start for record in records.values())
    said = []
    if done < n_items:
        said.append(f"{done:,} of {n_items:,} items are finished; rerun the sweep's command to resume.")
    if effects is not None and not are_current(effects, records):
        there = [records[task] for task in effects.get("tasks", ()) if task in records]
        measured = sum(record.stop - record.start for record in there)
        said.append(
            f"The tables effects_* cover {measured:,} of {done:,} finished items; fewchannels plot "
            f"{place} updates them."
        )
    return " ".join(said) or None
