"""Layers and steps of a run, as parameters of its queries name them: an index, ``all`` or ``last``."""

from collections.abc import Mapping
from typing import Any

from fewchannels.errors import InputError
from fewchannels.runs.sql.named_queries import PLACES, Query
from fewchannels.settings.indices import in_short


def recorded(description: Mapping[str, Any]) -> dict[str, list[int]]:
    """Indices of the layers and of the steps that a run has recorded, ascending, by ``layer`` and ``step``.

    Args:
        description: content of ``run.json``.
    """
    config = description.get("config", {})
    return {name: sorted(config[f"{name}s"]) for name in PLACES if isinstance(config.get(f"{name}s"), list)}


def resolved(query: Query, given: Mapping[str, object], kept: Mapping[str, list[int]]) -> dict[str, object]:
    """Parameters of a query with the indices that ``all`` and ``last`` stand for.

    Args:
        query: the query.
        given: its given parameters.
        kept: result of :func:`recorded`; empty if unknown.

    Raises:
        InputError: a layer or a step that the run has not recorded.
    """
    found = dict(given)
    for name in (each.name for each in query.parameters if each.is_place and each.name in given):
        there, value = kept.get(name, []), given[name]
        if value == "all" or (value == "last" and there):
            found[name] = -1 if value == "all" else there[-1]
        elif there and isinstance(value, int) and value >= 0 and value not in there:
            raise InputError(
                f"parameter {name!r} is {value}; this run has {name}s {in_short(there, ' to ')}. Give one of them, "
                "last, "
                "or all (-1)."
            )
    return found
