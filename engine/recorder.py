"""The reading tap of a capture: reduces each block's image stream to what a task's shard keeps."""

from collections.abc import Sequence

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
            if array.name not in STATISTICS
        }
        shape = (n_samples, len(layout.steps), len(layout.blocks), layout.n_channels)
        self._statistics = torch.full((len(STATISTICS), *shape), torch.nan)
        self._arrays |= dict(zip(STATISTICS, self._statistics, strict=True))  # views, so that a tap writes all at once

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
            self._statistics[:, rows, step, layer] = stats
            arrays["massive_channel"][rows, step, layer] = channels
            arrays["massive_value"][rows, step, layer, :, :n_tokens] = take_channels(x, channels)
            arrays["token_norm"][rows, step, layer, :n_tokens] = token_norms(x)

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
    ) -> dict[str, np.ndarray]:
        """Columns of ``cells``, but for those that name the sample: one row per (step, layer) that it ran.

        Args:
            row: the sample's position in the task.
            n_tokens: its image tokens.
            timesteps: the scheduler's timestep of every step.
            sigmas: the scheduler's noise level of every step, or None.
        """
        layout = self.layout
        n_run = sum(step < len(timesteps) for step in layout.steps)
        scores = self._arrays[STATISTICS[self._score]][row, :n_run]
        channels = self._arrays["massive_channel"][row, :n_run].long()
        norms = self._arrays["token_norm"][row, :n_run, :, :n_tokens]
        top_scores = scores.gather(-1, channels)
        median = lower_median(scores)
        measured = {
            "top_channels": channels.flatten(0, 1).int(),
            "top_scores": top_scores.flatten(0, 1),
            "median_score": median.flatten(),
            "ratio": (top_scores[..., 0] / median).flatten(),
            "energy_share": energy_share(self._arrays["rms"][row, :n_run], channels).flatten(),
            "gini": gini(scores).flatten(),
            "token_norm_ratio": (norms.amax(dim=-1) / lower_median(norms)).flatten(),
            "nonfinite": (~norms.isfinite()).sum(dim=-1).flatten(),
        }
        steps, n_layers = np.array(layout.steps[:n_run]), len(layout.blocks)
        n = n_run * n_layers
        return {
            "step": steps.repeat(n_layers),
            "timestep": np.array(timesteps)[steps].repeat(n_layers),
            "sigma": np.full(n, None) if sigmas is None else np.array(sigmas)[steps].repeat(n_layers),
            "layer": np.tile([block.layer for block in layout.blocks], n_run),
            "block": np.tile(np.array([block.path for block in layout.blocks], dtype=object), n_run),
            "stream": np.full(n, "image", dtype=object),
            "branch": np.full(n, "cond", dtype=object),
            "score": np.full(n, STATISTICS[self._score], dtype=object),
        } | {name: values.numpy() for name, values in measured.items()}
