"""The view that describes a run, a sweep or a comparison in one row."""

from collections.abc import Mapping
from typing import Any

_RUN_TYPES = {
    "n_samples": "bigint",
    "n_steps": "integer",
    "n_layers": "integer",
    "n_channels": "integer",
    "n_tokens": "integer",
    "top_k": "integer",
    "score": "varchar",
    "model": "varchar",
    "fingerprint": "varchar",
    "n_tasks": "bigint",
    "n_tasks_done": "bigint",
}
_SWEEP_TYPES = {
    "kind": "varchar",
    "protocol": "varchar",
    "n_items": "bigint",
    "n_conditions": "integer",
    "n_edits": "bigint",
    "score": "varchar",
    "model": "varchar",
    "fingerprint": "varchar",
    "n_tasks": "bigint",
    "n_tasks_done": "bigint",
}
_COMPARISON_TYPES = {
    "run_a": "varchar",
    "run_b": "varchar",
    "n_samples": "bigint",
    "n_prompts": "bigint",
    "n_only_a": "bigint",
    "n_only_b": "bigint",
    "n_channels_a": "integer",
    "n_channels_b": "integer",
    "layers_by": "varchar",
    "steps_by": "varchar",
    "step_a": "integer",
    "step_b": "integer",
    "score": "varchar",
    "k": "integer",
}
TYPES = {"run": _RUN_TYPES, "sweep": _SWEEP_TYPES, "comparison": _COMPARISON_TYPES}
"""Types of its columns, for each kind of data."""


def about(of: str, description: Mapping[str, Any], n_tasks_done: int) -> dict[str, Any]:
    """The row of the view.

    Raises:
        KeyError: the description lacks a part.
    """
    if of == "comparison":
        values = description["numbers"] | {f"run_{side}": run for side, run in description["runs"].items()}
    elif of == "sweep":
        values = {**description, **description["identity"], "model": description["model"]["name"]}
    else:
        values = description["geometry"] | description["config"] | description
        values |= {"model": description["config"]["model"]}
    values |= {"n_tasks_done": n_tasks_done}
    return {name: values[name] for name in TYPES[of]}
