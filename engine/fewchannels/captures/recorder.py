"""The reading tap of a capture, which reduces each block's streams to the arrays of a task's shard."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewchannels.captures.aside import Aside, Reduced
from fewchannels.captures.transfer import Move, Transfer, sent
from fewchannels.measures import STATISTICS
from fewchannels.measures.draws import cell_keys, random_channels
from fewchannels.measures.scores import (
    energy_share,
    gini,
    lower_median,
    pool_tokens,
    round_to_bfloat16,
    take_channels,
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
        self._transfer, aside = Transfer(), Aside()
        self._tracks = {
            (track.stream, track.branch): _Kept(layout, self._score, track, ids, self._transfer, aside)
            for track in layout.tracks
        }

    def tap(self, rows: slice) -> Tap:
        """Create a tap that records the chosen steps, at their own timesteps.

        Args:
            rows: positions of the batch in the task.
        """
        self._transfer.send()

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
        """Discard the data of a failed batch at ``rows``, the last one that a tap was created for."""
        self._transfer.discard()
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

    def __init__(
        self, layout: Layout, score: int, track: Track, ids: np.ndarray, transfer: Transfer, aside: Aside
    ) -> None:
        n_samples, self._ids = len(ids), ids
        self._layout, self._score, self._track = layout, score, track
        self._transfer, self._aside = transfer, aside
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
        with self._aside.reduced(x, keeps=self._has_maps) as reduced:
            scores = reduced.statistics[self._score]
            channels = top_k(scores, self._layout.n_ranked)
            moves = self._numbers(reduced, channels, at)
            if self._has_maps:
                moves += self._maps(reduced, channels, at, grid)
            if self._controls:
                moves += self._control_maps(reduced.x, scores, at, grid)
            self._transfer.move(moves, page=at[1])

    def _numbers(self, reduced: Reduced, channels: Tensor, at: tuple[slice, int, int]) -> list[Move]:
        """What is kept of every stream: statistics, channels ``(sample, k)``, and two numbers of the tokens' norms."""
        norms, (rows, step, layer) = reduced.norms, at
        return [
            (self._statistics[:, rows, step, layer], reduced.statistics),
            (self._channels[at], channels.to(torch.int32)),
            (self.nonfinite[at], (~norms.isfinite()).sum(dim=-1, dtype=torch.int32)),
            (self._norm_ratio[at], norms.amax(dim=-1) / lower_median(norms)),
        ]

    def _maps(
        self, reduced: Reduced, channels: Tensor, at: tuple[slice, int, int], grid: tuple[int, int]
    ) -> list[Move]:
        """Token maps of the given channels, ``(sample, k)``, and norms."""
        rows, step, layer = at
        maps = self._as_kept(take_channels(reduced.x, channels), grid)
        n_tokens = maps.shape[-1]
        return [
            (self._values[rows, step, layer, :, :n_tokens], maps),
            (self._norms[rows, step, layer, :n_tokens], pool_tokens(reduced.norms, grid, self._layout.pool)),
        ]

    def _control_maps(self, x: Tensor, scores: Tensor, at: tuple[slice, int, int], grid: tuple[int, int]) -> list[Move]:
        """Channels of the controls, and their token maps."""
        rows, step, layer = at
        chosen = self._control_selections(scores, at)
        maps = self._as_kept(take_channels(x, chosen.flatten(1)).unflatten(1, chosen.shape[1:]), grid)
        return [
            (self._control_channels[at], chosen.to(torch.int32)),
            (self._control_values[rows, step, layer, :, :, : maps.shape[-1]], maps),
        ]

    def _as_kept(self, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        """Token maps ``(..., token)`` at the resolution and precision that are kept."""
        pooled = pool_tokens(maps, grid, self._layout.pool)
        return round_to_bfloat16(pooled) if self._layout.rounded else pooled

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
            chosen.append(sent(torch.from_numpy(random_channels(keys, n_channels, k)), scores.device))
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
