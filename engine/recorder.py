"""The reading tap of a capture: reduces each block's image stream to what a task's shard keeps."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.channels import (
    energy_share,
    gini,
    lower_median,
    pool_tokens,
    round_to_bfloat16,
    statistics,
    take_channels,
    token_norms,
    top_k,
)
from engine.models.families import Block
from engine.plan import Layout
from engine.sampler import Sampler
from engine.statistics import STATISTICS
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
        cells = (n_samples, len(layout.steps), len(layout.blocks))
        n_tokens = layout.n_tokens if layout.top_k else 0
        # One tensor for the four, so that a tap writes them at once.
        self._statistics = _filled((len(STATISTICS), *cells, layout.n_channels), np.nan)
        self._channels = _filled((*cells, layout.n_ranked), -1, np.int32)
        self._norm_ratio = _filled(cells, np.nan)
        self._nonfinite = _filled(cells, 0, np.int64)
        self._values = _filled((*cells, layout.top_k, n_tokens), np.nan)
        self._norms = _filled((*cells, n_tokens), np.nan)

    def tap(self, sampler: Sampler, rows: slice, grid: tuple[int, int]) -> Tap:
        """A tap that records the conditional branch's chosen steps.

        Args:
            sampler: says which step and branch it is.
            rows: positions of the batch in the task.
            grid: image tokens along height and width.
        """
        layout = self.layout

        def read(block: Block, x: Tensor) -> None:
            step = self._step_position.get(sampler.step)
            if step is None or sampler.branch != "cond":
                return
            layer = self._layer_position[block.layer]
            stats, norms = statistics(x), token_norms(x)
            channels = top_k(stats[self._score], layout.n_ranked)
            self._statistics[:, rows, step, layer] = stats.to(self._statistics.device)
            self._channels[rows, step, layer] = channels.to(self._channels)
            self._nonfinite[rows, step, layer] = (~norms.isfinite()).sum(dim=-1).to(self._nonfinite)
            self._norm_ratio[rows, step, layer] = (norms.amax(dim=-1) / lower_median(norms)).to(self._norm_ratio)
            if not layout.top_k:
                return
            maps = pool_tokens(take_channels(x, channels), grid, layout.pool)
            if layout.rounded:
                maps = round_to_bfloat16(maps)
            n_tokens = maps.shape[-1]
            self._values[rows, step, layer, :, :n_tokens] = maps.to(self._values)
            self._norms[rows, step, layer, :n_tokens] = pool_tokens(norms, grid, layout.pool).to(self._norms)

        return read

    def discard(self, rows: slice) -> None:
        """Forget what a failed batch left at ``rows``."""
        self._statistics[:, rows] = torch.nan
        for values in (self._norm_ratio, self._values, self._norms):
            values[rows] = torch.nan
        self._channels[rows] = -1
        self._nonfinite[rows] = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """The task's arrays by name, ``(sample, step, layer, ...)``, not copied."""
        kept = dict(zip(STATISTICS, self._statistics, strict=True))
        if self.layout.top_k:
            kept |= {"massive_value": self._values, "massive_channel": self._channels, "token_norm": self._norms}
        return {name: values.numpy() for name, values in kept.items()}

    def nonfinite_cells(self, row: int) -> int:
        """Recorded (step, layer) cells of one sample whose hidden state holds a NaN or an infinity."""
        return int((self._nonfinite[row] > 0).sum())

    def cells(self, row: int, timesteps: Sequence[float], sigmas: Sequence[float] | None) -> dict[str, np.ndarray]:
        """Columns of ``cells``, but for those that name the sample: one row per (step, layer) that it ran.

        Args:
            row: the sample's position in the task.
            timesteps: the scheduler's timestep of every step.
            sigmas: the scheduler's noise level of every step, or None.
        """
        layout = self.layout
        n_run = sum(step < len(timesteps) for step in layout.steps)
        scores = self._statistics[self._score, row, :n_run]
        channels = self._channels[row, :n_run].long()
        top_scores = scores.gather(-1, channels)
        median = lower_median(scores)
        measured = {
            "top_channels": channels.flatten(0, 1).int(),
            "top_scores": top_scores.flatten(0, 1),
            "median_score": median.flatten(),
            "ratio": (top_scores[..., 0] / median).flatten(),
            "energy_share": energy_share(self._statistics[STATISTICS.index("rms"), row, :n_run], channels).flatten(),
            "gini": gini(scores).flatten(),
            "token_norm_ratio": self._norm_ratio[row, :n_run].flatten(),
            "nonfinite": self._nonfinite[row, :n_run].flatten(),
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


def _filled(shape: tuple[int, ...], value: float, dtype: type[np.generic] = np.float32) -> Tensor:
    """A tensor whose memory NumPy fills: PyTorch would do so with threads, for whose harm see CaptureWorker."""
    return torch.from_numpy(np.full(shape, value, dtype))
