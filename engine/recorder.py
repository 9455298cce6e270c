"""The reading tap of a capture: reduces each block's image stream to what a task's shard keeps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.channels import (
    STATISTICS,
    energy_share,
    gini,
    lower_median,
    statistics,
    take_channels,
    token_norms,
    top_k,
)
from engine.models.families import Block
from engine.plan import Layout
from engine.sampler import Sampler
from engine.taps import Tap


class Recorder:
    """Collects one task's arrays while its samples are generated, batch by batch.

    Args:
        layout: the run's shape.
        score: the statistic that ranks channels.
        n_samples: samples of the task; rows below are positions among them.
    """

    def __init__(self, layout: Layout, score: str, n_samples: int) -> None:
        self.layout = layout
        self._score = STATISTICS.index(score)
        self._step_position = {step: i for i, step in enumerate(layout.steps)}
        self._layer_position = {block.layer: i for i, block in enumerate(layout.blocks)}
        self._arrays = {
            array.name: torch.full(
                (n_samples, *array.shape[1:]),
                -1 if array.dtype == "int32" else torch.nan,
                dtype=getattr(torch, array.dtype),
            )
            for array in layout.arrays()
        }

    def tap(self, sampler: Sampler, rows: slice) -> Tap:
        """A tap that records the conditional branch's chosen steps for the batch at ``rows``."""
        arrays = self._arrays

        def read(block: Block, x: Tensor) -> None:
            step = self._step_position.get(sampler.step)
            if step is None or sampler.branch != "cond":
                return
            layer = self._layer_position[block.layer]
            n_tokens = x.shape[1]
            stats = statistics(x)
            channels = top_k(stats[self._score], self.layout.top_k)
            for name, values in zip(STATISTICS, stats, strict=True):
                arrays[name][rows, step, layer] = values.cpu()
            arrays["massive_channel"][rows, step, layer] = channels.int().cpu()
            arrays["massive_value"][rows, step, layer, :, :n_tokens] = take_channels(x, channels).cpu()
            arrays["token_norm"][rows, step, layer, :n_tokens] = token_norms(x).cpu()

        return read

    def discard(self, rows: slice) -> None:
        """Forget what a failed batch left at ``rows``."""
        for values in self._arrays.values():
            values[rows] = torch.nan if values.is_floating_point() else -1

    def arrays(self) -> dict[str, np.ndarray]:
        """The task's arrays by name, ``(sample, step, layer, ...)``, not copied."""
        return {name: values.numpy() for name, values in self._arrays.items()}

    def nonfinite_cells(self, row: int, n_tokens: int, n_steps: int) -> int:
        """Recorded (step, layer) cells of one sample whose hidden state holds a NaN or an infinity.

        Args:
            row: the sample's position in the task.
            n_tokens: its image tokens.
            n_steps: its denoising steps.
        """
        run = [i for i, step in enumerate(self.layout.steps) if step < n_steps]
        norms = self._arrays["token_norm"][row, run, :, :n_tokens]
        return int((~norms.isfinite()).any(dim=-1).sum())

    def cells(
        self, row: int, n_tokens: int, timesteps: Sequence[float], sigmas: Sequence[float] | None
    ) -> list[dict[str, Any]]:
        """One ``cells`` row per (step, layer) of a sample, without the columns that name the sample.

        Args:
            row: the sample's position in the task.
            n_tokens: its image tokens.
            timesteps: the scheduler's timestep of every step.
            sigmas: the scheduler's noise level of every step, or None.
        """
        scores = self._arrays[STATISTICS[self._score]][row]
        channels = self._arrays["massive_channel"][row].long()
        norms = self._arrays["token_norm"][row, :, :, :n_tokens]
        top_scores = scores.gather(-1, channels.clamp(min=0))
        median = lower_median(scores)
        columns = {
            "top_channels": channels,
            "top_scores": top_scores,
            "median_score": median,
            "ratio": top_scores[..., 0] / median,
            "energy_share": energy_share(self._arrays["rms"][row], channels.clamp(min=0)),
            "gini": gini(scores),
            "token_norm_ratio": norms.amax(dim=-1) / lower_median(norms),
            "nonfinite": (~norms.isfinite()).sum(dim=-1),
        }
        values = {name: tensor.tolist() for name, tensor in columns.items()}
        return [
            {
                "step": step,
                "timestep": timesteps[step],
                "sigma": None if sigmas is None else sigmas[step],
                "layer": block.layer,
                "block": block.path,
                "stream": "image",
                "branch": "cond",
                "score": STATISTICS[self._score],
            }
            | {name: values[name][i][j] for name in columns}
            for i, step in enumerate(self.layout.steps)
            if step < len(timesteps)
            for j, block in enumerate(self.layout.blocks)
        ]
