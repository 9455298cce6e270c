"""The analysis ``stability``: are massive channels the same across prompts, seeds, steps, layers, definitions?"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.ratio import ABOUT_LAYER, extreme
from fewchannels.analyses.selection import Selected
from fewchannels.analyses.settings import StabilitySettings
from fewchannels.analyses.stability.figures import figures
from fewchannels.analyses.stability.findings import ABOUT, by_layer, most_frequent, overlap, spark
from fewchannels.analyses.summary import Summary, page
from fewchannels.errors import InputError
from fewchannels.measures import STATISTICS
from fewchannels.measures.intervals import Interval, cluster_interval, pair_interval
from fewchannels.measures.overlap import PairSums, expected_jaccard, matched_jaccard, pair_overlap, selection_counts
from fewchannels.measures.ranks import draw_pairs, kendall, rank_biased_overlap, spearman
from fewchannels.measures.scores import top_k
from fewchannels.measures.stopping import joint_stop, stopping_point, transitions
from fewchannels.runs.results import Results
from fewchannels.tables import Columns, as_columns

SPARK_K = 8
N_ORDERS = 20
"""Random orders of the samples in which SPARK's rule is tried, besides the one they were captured in."""
_MOST_ORDERED = 4096  # samples of an order: ten times the minimum of the rule
_RANGES = {"spearman": (-1.0, 1.0), "kendall": (-1.0, 1.0), "rbo": (0.0, 1.0)}
"""Measures of agreement of rankings, and the range of each."""
_Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Stability(StabilitySettings):
    """The analysis, with its settings."""

    @property
    def name(self) -> str:
        """``stability``."""
        return "stability"

    @property
    def schemas(self) -> Mapping[str, str]:
        """The schema of each table."""
        tables = ("channels", "pairs", "ranks", "agreement", "stopping", "transitions", "spark")
        return {table: f"stability_{table}" for table in tables}

    def identity(self, selected: Selected) -> dict[str, Any]:
        """Settings of the analysis."""
        return asdict(self)

    def check(self, selected: Selected) -> None:
        """Refuse sets larger than there are channels."""
        if max(self.ks) > selected.layout.n_channels:
            raise InputError(f"k is {max(self.ks)}; {selected.run!r} has {selected.layout.n_channels} channels.")

    def units(self, selected: Selected) -> list[int]:
        """Layers, by number."""
        return [block.layer for block in selected.blocks]

    def unit(self, selected: Selected, results: Results, unit: int, device: str) -> dict[str, Columns]:
        """A layer's rows, from its chunks of the store and, for the drift, those of the layer before."""
        layer = _Layer(self, selected, unit)
        rows = {
            "channels": layer.channels(),
            "pairs": layer.pairs(),
            "ranks": layer.ranks(),
            "agreement": layer.agreement(),
            "stopping": layer.stopping(),
            "transitions": layer.transitions(),
        }
        return {table: as_columns(self.schemas[table], found) for table, found in rows.items()}

    def means(self, selected: Selected, results: Results) -> dict[str, Columns]:
        """Find where SPARK's rule stops for all layers at once, in each order of the samples."""
        rows = [row for part in results.parts("transitions") for row in part.to_pylist()]
        found = []
        for order in sorted({row["permutation"] for row in rows}):
            own = [row for row in rows if row["permutation"] == order]
            n_needed, settled = joint_stop(np.array([row["jaccard"] for row in own]))
            about = {"score": self.score, "permutation": order, "n_samples": own[0]["n_samples"], "n_layers": len(own)}
            found.append(about | {"n_needed": n_needed, "settled": settled})
        return {"spark": as_columns(self.schemas["spark"], found)}

    def end(self, selected: Selected, results: Results, evidence: Evidence) -> Summary:
        """Sentences, layers, figures."""
        n_samples, n_prompts = len(selected.samples), int(selected.prompts.max()) + 1
        found, layers, drawn = extreme(evidence, self.name), by_layer(evidence), figures(evidence)
        joint, lacking = spark(evidence), int((selected.categories < 0).sum())
        sentences = [most_frequent(evidence, found), overlap(evidence, found), joint] if found else [joint]
        findings = [*(each for each in sentences if each is not None), layers]
        text = page(
            "Stability of the top channels",
            f"{n_samples:,} samples of {n_prompts:,} prompts. Jaccard overlap over all pairs of samples; brackets "
            f"hold 95 % intervals over prompts.{_without_category(lacking, self.by)} {ABOUT_LAYER}",
            findings,
            notes=ABOUT,
            names=[figure.name for figure in drawn],
        )
        numbers = {"n_samples": n_samples, "n_prompts": n_prompts, **layers.numbers}
        numbers |= {} if self.by is None else {"n_without_category": lacking}
        numbers |= {"spark": dict(joint.numbers)} if joint else {}
        return Summary(numbers, text, findings, drawn)


def _without_category(n: int, column: str | None) -> str:
    return f" {n:,} samples have no {column} and are not in the pairs of one category." if n else ""


class _Layer:
    """One layer: every sample's top-k sets by each definition, and the scores of samples whose ranks are compared."""

    def __init__(self, settings: Stability, selected: Selected, number: int) -> None:
        self.settings, self.selected, self.number = settings, selected, number
        self.steps = np.array(selected.step_numbers)
        self._of_prompt = np.bincount(selected.prompts)  # samples
        self.drawn = {
            kind: draw_pairs(selected.prompts, settings.rank_pairs, kind, settings.seed)
            for kind in ("within", "across")
        }
        ranked = np.unique(np.concatenate([pairs.ravel() for pairs in self.drawn.values()])).astype(np.int64)
        self._ranked_at = {int(sample): i for i, sample in enumerate(ranked)}
        most = max(settings.ks)
        n, n_steps = len(selected.samples), len(self.steps)
        self.sets = {score: np.empty((n, n_steps, most), np.int32) for score in STATISTICS}
        self.scores = np.empty((len(ranked), n_steps, selected.layout.n_channels), np.float32)
        random = np.random.default_rng(settings.seed)
        some = random.permutation(n)[:_MOST_ORDERED]
        self.orders = [np.arange(len(some)), *(random.permutation(some) for _ in range(N_ORDERS))]
        kept = np.unique(np.concatenate([self.orders[0], some]))
        self._averaged_at = np.full(n, -1)
        self._averaged_at[kept] = np.arange(len(kept))
        self.averaged = np.empty((len(kept), selected.layout.n_channels), np.float32)
        for at, stats in _stream(selected, number, STATISTICS):
            for score, values in stats.items():
                self.sets[score][at] = top_k(torch.from_numpy(values), most).numpy()
            places = self._averaged_at[at]
            self.averaged[places[places >= 0]] = stats[settings.score][places >= 0].mean(axis=1)
            for i, position in enumerate(at):
                if (place := self._ranked_at.get(int(position))) is not None:
                    self.scores[place] = stats[settings.score][i]

    def _about(self, step: int, k: int | None = None) -> dict[str, Any]:
        about = {"layer": self.number, "step": int(step), "score": self.settings.score}
        return about if k is None else about | {"k": k}

    def channels(self) -> _Rows:
        """Count how often each channel is in the top k."""
        rows, n = [], len(self.selected.samples)
        for i, step in enumerate(self.steps):
            for k in self.settings.ks:
                chosen = self.sets[self.settings.score][:, i, :k]
                counts = selection_counts(chosen, self.selected.layout.n_channels)
                channels = np.flatnonzero(counts)
                _, low, high = self._share(chosen, channels)
                for at, channel in enumerate(channels):
                    count = int(counts[channel])
                    found = {"channel": int(channel), "n_selected": count, "n_samples": n, "frequency": count / n}
                    ends = {"frequency_low": _finite(low[at]), "frequency_high": _finite(high[at])}
                    rows.append(self._about(step, k) | found | ends | {"n_prompts": len(self._of_prompt)})
        return rows

    def _share(self, chosen: np.ndarray, channels: np.ndarray) -> Interval:
        """The share of samples that have each channel in their top k, with an interval over prompts."""
        place = np.full(self.selected.layout.n_channels, -1)
        place[channels] = np.arange(len(channels))
        sums = np.zeros((len(self._of_prompt), len(channels)))
        np.add.at(sums, (self.selected.prompts[:, None], place[chosen]), 1)
        return cluster_interval(sums, np.broadcast_to(self._of_prompt[:, None], sums.shape), 0, 1)

    def pairs(self) -> _Rows:
        """Compute the exact overlap over all pairs of samples: of one prompt, of two prompts, and of one category."""
        rows = []
        selected = self.selected
        categories = selected.categories if len(selected.categories) else None
        for i, step in enumerate(self.steps):
            for k in self.settings.ks:
                found = pair_overlap(self.sets[self.settings.score][:, i, :k], selected.prompts, categories)
                chance = expected_jaccard(k, selected.layout.n_channels)
                kinds = {"within": found.within, "across": found.across, "category": found.within_category}
                for kind, sums in kinds.items():
                    if sums is not None and sums.total_pairs:
                        interval = self._interval(sums)
                        rows.append(self._about(step, k) | {"kind": kind, "chance": chance} | interval)
        return rows

    def _interval(self, sums: PairSums) -> dict[str, Any]:
        interval = cluster_interval if sums.groups_per_pair == 1 else pair_interval
        mean, low, high = interval(sums.jaccard[:, None], sums.n_pairs[:, None], 0, 1)
        return {
            "n_pairs": sums.total_pairs,
            "n_prompts": int((sums.n_pairs > 0).sum()),
            "jaccard": float(mean[0]),
            "jaccard_low": _finite(low[0]),
            "jaccard_high": _finite(high[0]),
            "overlap": sums.mean_overlap,
        }

    def ranks(self) -> _Rows:
        """Agreement of the rankings of all channels, over pairs drawn at random."""
        rows = []
        for kind, pairs in self.drawn.items():
            if not len(pairs):
                continue
            one, other = (np.array([self._ranked_at[int(s)] for s in side]) for side in pairs.T)
            of = self.selected.prompts[pairs]
            n_prompts = int(self.selected.prompts.max()) + 1
            # A pair of two prompts is in the sums of both.
            clusters = of.T if kind == "across" else of.T[:1]
            counts = np.bincount(clusters.ravel(), minlength=n_prompts)[:, None]
            interval = pair_interval if kind == "across" else cluster_interval
            for i, step in enumerate(self.steps):
                a, b = self.scores[one, i], self.scores[other, i]
                measures = {
                    "spearman": spearman(a, b),
                    "kendall": kendall(a, b),
                    "rbo": rank_biased_overlap(a, b, self.settings.persistence),
                }
                for measure, values in measures.items():
                    sums = np.bincount(clusters.ravel(), np.tile(values, len(clusters)), n_prompts)[:, None]
                    mean, low, high = interval(sums, counts, *_RANGES[measure])
                    rows.append(
                        self._about(step)
                        | {"kind": kind, "measure": measure, "n_pairs": len(pairs)}
                        | {"n_prompts": int((counts > 0).sum())}
                        | {"mean": _finite(mean[0]), "low": _finite(low[0]), "high": _finite(high[0])}
                    )
        return rows

    def agreement(self) -> _Rows:
        """Overlap of a sample's own sets: with its next and last step, with the layer before, by other definitions."""
        rows = []
        mine = self.sets[self.settings.score]
        before = self._layer_before()
        for k in self.settings.ks:
            for i, step in enumerate(self.steps):
                about = self._about(step, k)
                here = mine[:, i, :k]
                if i + 1 < len(self.steps):
                    rows.append(about | self._matched("next_step", self.steps[i + 1], here, mine[:, i + 1, :k]))
                    rows.append(about | self._matched("last_step", self.steps[-1], here, mine[:, -1, :k]))
                if before is not None:
                    number, sets = before
                    rows.append(about | self._matched("layer_before", number, here, sets[:, i, :k]))
                for score, sets in self.sets.items():
                    if score != self.settings.score:
                        rows.append(about | self._matched("definition", score, here, sets[:, i, :k]))
        return rows

    def _layer_before(self) -> tuple[int, np.ndarray] | None:
        numbers = [block.layer for block in self.selected.blocks]
        at = numbers.index(self.number)
        if at == 0:
            return None
        sets = np.empty_like(self.sets[self.settings.score])
        for rows, stats in _stream(self.selected, numbers[at - 1], (self.settings.score,)):
            sets[rows] = top_k(torch.from_numpy(stats[self.settings.score]), sets.shape[-1]).numpy()
        return numbers[at - 1], sets

    def _matched(self, kind: str, other: object, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
        jaccard = matched_jaccard(a, b)
        n_prompts = int(self.selected.prompts.max()) + 1
        sums = np.bincount(self.selected.prompts, jaccard, n_prompts)[:, None]
        counts = np.bincount(self.selected.prompts, minlength=n_prompts)[:, None]
        mean, low, high = cluster_interval(sums, counts, 0, 1)
        return {
            "kind": kind,
            "other": str(other),
            "n_samples": len(jaccard),
            "n_prompts": int((counts > 0).sum()),
            "jaccard": float(mean[0]),
            "jaccard_low": _finite(low[0]),
            "jaccard_high": _finite(high[0]),
            "chance": expected_jaccard(a.shape[1], self.selected.layout.n_channels),
        }

    def stopping(self) -> _Rows:
        """Number of samples after which SPARK's rule would have stopped, at each step and for the mean over steps."""
        score, window, threshold = self.settings.score, 4, 0.9
        together = (
            np.concatenate([values.mean(axis=0, keepdims=True), values])
            for _, stats in _stream(self.selected, self.number, (score,))
            for values in stats[score]
        )
        k = min(SPARK_K, self.selected.layout.n_channels)
        seen = stopping_point(together, k=k, window=window, threshold=threshold)
        rows = []
        for i, step in enumerate([None, *self.steps.tolist()]):
            settled = [
                float(np.mean(seen.jaccard[end - window : end, i])) for end in range(window, len(seen.jaccard) + 1)
            ]
            first = next((at for at, value in enumerate(settled) if value >= threshold), None)
            rows.append(
                {
                    "layer": self.number,
                    "step": step,
                    "score": score,
                    "n_samples": len(self.selected.samples),
                    "n_needed": None if first is None else int(seen.snapshots[first + window]),
                    "settled": settled[-1 if first is None else first] if settled else None,
                }
            )
        return rows

    def transitions(self) -> _Rows:
        """Apply SPARK's rule to the layer's mean over steps, in each order of the samples."""
        k = min(SPARK_K, self.selected.layout.n_channels)
        about = {"layer": self.number, "score": self.settings.score}
        return [
            about
            | {"permutation": order, "n_samples": len(samples)}
            | {"jaccard": transitions(self.averaged[self._averaged_at[samples]], k=k).tolist()}
            for order, samples in enumerate(self.orders)
        ]


def _stream(selected: Selected, layer: int, scores: tuple[str, ...]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """A layer's statistics ``(sample, step, channel)`` task by task, with the samples' positions."""
    position = next(i for i in selected.layers if selected.layout.blocks[i].layer == layer)
    for task in selected.tasks:
        at = selected.of_task(task)
        yield at, {name: values[:, :, 0] for name, values in selected.read(scores, at, [position]).items()}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
