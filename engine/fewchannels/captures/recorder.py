"""The reading tap of a capture, which reduces each block's streams to the arrays of a task's shard."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewchannels.captures.transfer import Transfer
from fewchannels.measures import STATISTICS
from fewchannels.measures.draws import cell_keys, random_channels
from fewchannels.measures.scores import (
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
from fewchannels.models.taps import Site, Tap
from fewchannels.runs.layout import Layout, Track


class Recorder:
    """Collector of one task's arrays while its samples are generated, batch by batch.

    Args:
        layout: the run's shape.
        score: the statistic that ranks channels.
        sample_ids: sample ids of the task's samples; rows below are positions among them.
    """

    def __init__(self, layout: Layout, score: str, sample_ids: Sequence[str]) -> None:
        self.layout = layout
        ids = np.array([int(sample_id, 16) for sample_id in sample_ids], dtype=np.uint64)
        self._score = STATISTICS.index(score)
        self._step_position = {step: i for i, step in enumerate(layout.steps)}
        self._layer_position = {block.layer: i for i, block in enumerate(layout.blocks)}
        self._transfer = Transfer()
        self._tracks = {
            (track.stream, track.branch): _Kept(layout, self._score, track, ids, self._transfer)
            for track in layout.tracks
        }

    def tap(self, rows: slice) -> Tap:
        """Create a tap that records the chosen steps, at their own timesteps.

        Args:
            rows: positions of the batch in the task.
        """

        def read(site: Site, x: Tensor) -> None:
            step = self._step_position.get(site.forward.step)
            if step is None or not site.forward.leads:
                return
            kept = self._tracks[site.stream, site.branch]
            layer = self._layer_position[site.block.layer]
            if site.lengths is None:
                kept.read(x, (rows, step, layer), site.forward.token_grid)
                return
            for i, length in enumerate(site.lengths):
                kept.read(x[i : i + 1, :length], (slice(rows.start + i, rows.start + i + 1), step, layer), (1, length))

        return read

    def discard(self, rows: slice) -> None:
        """Discard the data of a failed batch at ``rows``."""
        self._transfer.finish()
        for kept in self._tracks.values():
            kept.discard(rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """The task's arrays by name, ``(sample, step, layer, ...)``, not copied."""
        self._transfer.finish()
        return {name: values for kept in self._tracks.values() for name, values in kept.arrays().items()}

    def nonfinite_cells(self, row: int) -> int:
        """Number of one sample's cells whose hidden state contains a NaN or an infinity."""
        self._transfer.finish()
        return sum(int((kept.nonfinite[row] > 0).sum()) for kept in self._tracks.values())

    def cells(self, row: int, timesteps: Sequence[float], sigmas: Sequence[float | None]) -> dict[str, np.ndarray]:
        """Columns of ``cells`` without those that identify the sample: one row per (stream, branch, step, layer).

        Args:
            row: the sample's position in the task.
            timesteps: the scheduler's timestep of every step.
            sigmas: the scheduler's noise level of every step; None if it has none.
        """
        self._transfer.finish()
        parts = [kept.cells(row, timesteps, sigmas) for kept in self._tracks.values()]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Kept:
    """Recorded arrays of one stream of one branch."""

    def __init__(self, layout: Layout, score: int, track: Track, ids: np.ndarray, transfer: Transfer) -> None:
        n_samples, self._ids = len(ids), ids
        self._layout, self._score, self._track, self._transfer = layout, score, track, transfer
        cells = (n_samples, len(layout.steps), len(layout.blocks))
        self._has_maps = layout.top_k > 0 and track.stream == "image"
        n_tokens = layout.n_tokens if self._has_maps else 0
        # One tensor for the four, so that a tap writes them at once.
        self._statistics = _filled((len(STATISTICS), *cells, layout.n_channels), np.nan)
        self._channels = _filled((*cells, layout.n_ranked), -1, np.int32)
        self._norm_ratio = _filled(cells, np.nan)
        self.nonfinite = _filled(cells, 0, np.int64)
        self._values = _filled((*cells, layout.top_k, n_tokens), np.nan)
        self._norms = _filled((*cells, n_tokens), np.nan)
        self._controls = layout.controls if self._has_maps else ()
        controls = (len(self._controls), layout.top_k) if self._controls else (0, 0)
        self._control_channels = _filled((*cells, *controls), -1, np.int32)
        self._control_values = _filled((*cells, *controls, n_tokens), np.nan)

    def read(self, x: Tensor, at: tuple[slice, int, int], grid: tuple[int, int]) -> None:
        """Reduce tokens ``(sample, token, channel)`` to cells, ``(samples, step, layer)``."""
        layout = self._layout
        rows, step, layer = at
        stats, norms = statistics(x), token_norms(x)
        channels = top_k(stats[self._score], layout.n_ranked)
        norm_ratio = norms.amax(dim=-1) / lower_median(norms)
        moves = [
            (self._statistics[:, rows, step, layer], stats),
            (self._channels[at], channels.to(self._channels.dtype)),
            (self.nonfinite[at], (~norms.isfinite()).sum(dim=-1)),
            (self._norm_ratio[at], norm_ratio),
        ]
        if self._has_maps:
            maps = pool_tokens(take_channels(x, channels), grid, layout.pool)
            if layout.rounded:
                maps = round_to_bfloat16(maps)
            n_tokens = maps.shape[-1]
            moves += [
                (self._values[rows, step, layer, :, :n_tokens], maps),
                (self._norms[rows, step, layer, :n_tokens], pool_tokens(norms, grid, layout.pool)),
            ]
        if self._controls:
            chosen = self._control_selections(stats[self._score], at)
            maps = pool_tokens(take_channels(x, chosen.flatten(1)).unflatten(1, chosen.shape[1:]), grid, layout.pool)
            if layout.rounded:
                maps = round_to_bfloat16(maps)
            moves += [
                (self._control_channels[at], chosen.to(self._control_channels.dtype)),
                (self._control_values[rows, step, layer, :, :, : maps.shape[-1]], maps),
            ]
        self._transfer.move(moves)

    def _control_selections(self, scores: Tensor, at: tuple[slice, int, int]) -> Tensor:
        """Channels of every control, ``(sample, control, k)``; the bottom ones by descending score."""
        layout, (rows, step, layer) = self._layout, at
        k, n_channels = layout.top_k, layout.n_channels
        chosen = []
        for name in self._controls:
            if name == "bottom":
                chosen.append(top_k(scores, n_channels)[..., -k:])
                continue
            trial = int(name.removeprefix("random_"))
            keys = cell_keys(trial, self._ids[rows], layout.blocks[layer].layer, layout.steps[step])
            chosen.append(torch.from_numpy(random_channels(keys, n_channels, k)).to(scores.device))
        return torch.stack(chosen, dim=1)

    def discard(self, rows: slice) -> None:
        self._statistics[:, rows] = torch.nan
        for values in (self._norm_ratio, self._values, self._norms, self._control_values):
            values[rows] = torch.nan
        self._channels[rows] = -1
        self._control_channels[rows] = -1
        self.nonfinite[rows] = 0

    def arrays(self) -> dict[str, np.ndarray]:
        kept = dict(zip(STATISTICS, self._statistics, strict=True))
        if self._layout.has_ranks:
            kept["massive_channel"] = self._channels
        if self._has_maps:
            kept |= {"massive_value": self._values, "token_norm": self._norms}
        if self._controls:
            kept |= {"control_value": self._control_values, "control_channel": self._control_channels}
        return {self._track.prefix + name: values.numpy() for name, values in kept.items()}

    def cells(self, row: int, timesteps: Sequence[float], sigmas: Sequence[float | None]) -> dict[str, np.ndarray]:
        layout = self._layout
        n_run = sum(step < len(timesteps) for step in layout.steps)
        # A block without the stream ranks no channels.
        ran = self._channels[row, :n_run, :, 0] >= 0
        step_at, layer_at = (each.numpy() for each in ran.nonzero(as_tuple=True))
        scores = self._statistics[self._score, row, :n_run][ran]
        channels = self._channels[row, :n_run][ran].long()
        top_scores = scores.gather(-1, channels)
        median = lower_median(scores)
        measured = {
            "top_channels": channels.int(),
            "top_scores": top_scores,
            "median_score": median,
            "ratio": top_scores[..., 0] / median,
            "energy_share": energy_share(self._statistics[STATISTICS.index("rms"), row, :n_run][ran], channels),
            "gini": gini(scores),
            "token_norm_ratio": self._norm_ratio[row, :n_run][ran],
            "nonfinite": self.nonfinite[row, :n_run][ran],
        }
        steps, n = np.array(layout.steps, dtype=int)[step_at], len(step_at)
        return {
            "step": steps,
            "timestep": np.array(timesteps)[steps],
            "sigma": np.array(sigmas, dtype=object)[steps],
            "layer": np.array([block.layer for block in layout.blocks])[layer_at],
            "block": np.array([block.path for block in layout.blocks], dtype=object)[layer_at],
            "stream": np.full(n, self._track.stream, dtype=object),
            "branch": np.full(n, self._track.branch, dtype=object),
            "score": np.full(n, STATISTICS[self._score], dtype=object),
        } | {name: values.numpy() for name, values in measured.items()}


def _filled(shape: tuple[int, ...], value: float, dtype: type[np.generic] = np.float32) -> Tensor:
    """A tensor whose memory NumPy fills: PyTorch would use a second pool of threads, see LoadedModel."""
    return torch.from_numpy(np.full(shape, value, dtype))
