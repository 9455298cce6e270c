"""Blends of prompts, latents and predictions: the baselines of transport, and guidance."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fewchannels.interventions.conditions import GUIDE
from fewchannels.interventions.rows import Row
from fewchannels.models.patching import replaced
from fewchannels.models.sampler import Forward
from fewchannels.models.taps import Prediction


@contextmanager
def prompts_blended(pipeline: Any, batch: Sequence[Row]) -> Iterator[None]:
    """Inside the context, rows that blend prompts get ``t + a (s - t)`` of the target's and the source's embeddings.

    Args:
        pipeline: pipeline with ``encode_prompt``.
        batch: rows of the batch.

    Raises:
        RuntimeError: the pipeline encodes no prompts, and rows blend some.
    """
    own = getattr(pipeline, "encode_prompt", None)
    mixed = [
        (i, row.undisturbed, row.source, row.condition.amount)
        for i, row in enumerate(batch)
        if row.role == "edited" and row.condition and row.condition.action == "prompt" and row.source is not None
    ]
    if not mixed:
        yield
        return
    if own is None:
        raise RuntimeError(f"{type(pipeline).__name__} encodes no prompts, so none can be blended")

    @functools.wraps(own)
    def encode_prompt(*arguments: Any, **keywords: Any) -> Any:
        return _mixed(own(*arguments, **keywords), len(batch), mixed)

    with replaced(pipeline, "encode_prompt", encode_prompt):
        yield


def _mixed(result: Any, n: int, mixed: Sequence[tuple[int, int, int, float]]) -> Any:
    """A result for ``n`` prompts with some of its rows mixed, in any nesting of tuples and lists."""
    if isinstance(result, Tensor):
        if len(result) not in (n, 2 * n):  # both branches may be in one; else positions, the same for all
            return result
        rows = result.clone()
        for first in range(0, len(rows), n):
            branch = rows[first : first + n]
            for row, target, source, amount in mixed:
                if rows.is_floating_point():
                    branch[row] = torch.lerp(branch[target], branch[source], amount)
                else:  # a mask of tokens: those of either prompt, and the source's own where nothing else is left
                    either = torch.maximum(branch[target], branch[source])
                    branch[row] = branch[source] if amount == 1 else either
        return rows
    if isinstance(result, list) and len(result) == n and all(isinstance(each, Tensor) for each in result):
        listed = list(result)
        for row, target, source, amount in mixed:
            if listed[target].shape != listed[source].shape:
                raise RuntimeError(
                    f"the prompts have {len(listed[target])} and {len(listed[source])} tokens, and this pipeline pads "
                    "neither: their embeddings cannot be blended"
                )
            listed[row] = torch.lerp(listed[target], listed[source], amount)
        return listed
    if isinstance(result, (tuple, list)):
        return type(result)(_mixed(each, n, mixed) for each in result)
    return result


@contextmanager
def stepped(pipeline: Any, edit: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Inside the context, edit the latents that the scheduler returns after each step.

    Args:
        pipeline: pipeline whose scheduler must return tuples.
        edit: function of the step that ends, 0-based, and its latents ``(row, ...)``; returns the edited latents.
    """
    scheduler = pipeline.scheduler
    own, order = scheduler.step, getattr(scheduler, "order", 1)
    n_ended = 0

    @functools.wraps(own)  # pipelines inspect its signature
    def step(*arguments: Any, **keywords: Any) -> Any:
        nonlocal n_ended
        first, *rest = own(*arguments, **keywords)
        n_ended += 1
        return (edit((n_ended - 1) // order, first), *rest)

    with replaced(scheduler, "step", step):
        yield


class Latents:
    """Blend the latents of rows whose conditions request it, and count the steps after which a row's are not finite.

    Args:
        batch: rows of the batch.
        n_steps: denoising steps of the batch.
    """

    def __init__(self, batch: Sequence[Row], n_steps: int) -> None:
        self._batch, self._n_steps = batch, n_steps
        self._nonfinite = torch.zeros(len(batch), dtype=torch.int64)

    def edit(self, step: int, latents: Tensor) -> Tensor:
        """The latents after a step: ``t + a (s - t)`` if a condition blends them in that step."""
        for i, row in enumerate(self._batch):
            condition = row.condition
            if not condition or condition.action != "latents" or row.source is None:
                continue
            if condition.edits_in(step, self._n_steps):
                latents[i] = torch.lerp(latents[row.undisturbed], latents[row.source], condition.amount)
        finite = latents.flatten(1).isfinite().all(dim=1)
        self._nonfinite = self._nonfinite.to(finite.device) + ~finite
        return latents

    def nonfinite_steps(self) -> list[int]:
        """Steps after which each row's latents contained a NaN or an infinity."""
        return self._nonfinite.tolist()


def guidance(batch: Sequence[Row], n_steps: int) -> Prediction | None:
    """Guidance based on edited activations: detail guidance of arXiv 2510.11538.

    A guided row and its edited companion are at the same latents; both continue with ``v + a (v - v_disturbed)``.

    Args:
        batch: its rows; an edited row is right before the row that it guides.
        n_steps: denoising steps of the batch.

    Returns:
        A function that edits the transformer's predictions; None if no row is guided.
    """
    guided = [
        (i, row.condition)
        for i, row in enumerate(batch)
        if row.role == "edited" and row.condition and row.condition.action == GUIDE
    ]
    if not guided:
        return None

    def edit(forward: Forward, prediction: Tensor) -> Tensor:
        prediction = prediction.clone()
        for rows in forward.rows.values():
            of_branch = prediction[rows]
            for i, condition in guided:
                own, disturbed = of_branch[i], of_branch[i - 1]
                amount = condition.amount if condition.edits_in(forward.step, n_steps) else 0.0
                of_branch[i - 1] = of_branch[i] = own + amount * (own - disturbed)
        return prediction

    return edit
