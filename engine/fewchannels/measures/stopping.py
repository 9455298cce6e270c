"""SPARK's stopping rule (arXiv 2609.03813): the number of samples after which the massive channels are known.

The rule checks all blocks and streams at the same time. :func:`stopping_point` applies it to a sequence of samples;
:func:`transitions` computes the overlaps of one block, so that :func:`joint_stop` can combine blocks that were
processed one by one, and for several orders of the samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from fewchannels.errors import InputError
from fewchannels.measures.overlap import matched_jaccard
from fewchannels.measures.scores import top_k


@dataclass(frozen=True)
class Stop:
    """Result of the stopping rule, with the values that it used.

    Attributes:
        n_samples: number of samples after which the rule stops; None if it does not stop.
        snapshots: ``(snapshot,)`` int64, number of samples before each snapshot.
        jaccard: ``(transition, ...)`` float64, overlap of each snapshot except the first with the one before, for each
            of the scores' leading dimensions (block, stream).
        settled: ``(transition,)`` float64, value that is compared with the threshold: the mean of the last transitions'
            overlaps where it is lowest; NaN before there are enough transitions.
        n_nonfinite: number of non-finite scores among the samples used.
    """

    n_samples: int | None
    snapshots: np.ndarray
    jaccard: np.ndarray
    settled: np.ndarray
    n_nonfinite: int


def stopping_point(
    scores: Iterable[np.ndarray],
    *,
    k: int = 8,
    minibatch: int = 16,
    every: int = 5,
    decay: float = 0.95,
    window: int = 4,
    threshold: float = 0.9,
) -> Stop:
    """Update a moving average of scores until its top-k channels stay the same; the defaults are SPARK's.

    The average is ``m <- decay m + (1 - decay) a`` over the means ``a`` of minibatches. Every ``every`` minibatches, a
    snapshot of the top k of ``m`` is taken. The rule stops when the mean Jaccard overlap of the last transitions
    between snapshots is at least the threshold everywhere. It cannot stop before ``(window + 1) * every * minibatch``
    samples, 400 with the defaults. ``m`` starts at zero, as in SPARK's own code (github.com/aimagelab/spark,
    ``utils/phase1_online.py``): the weights of the minibatches then decrease with age only; they do not sum to 1, which
    does not change any ranking. An incomplete last minibatch is not used; SPARK's code uses it, which can only matter
    for a snapshot at the very end of the samples.

    Args:
        scores: scores of one sample after the other, each ``(..., channel)`` of the same shape, such as the rows of a
            ``(sample, block, channel)`` array; read only until the rule stops. A NaN channel stays NaN in ``m`` and
            ranks first, as in :func:`fewchannels.measures.scores.top_k`; such channels are counted.
        k: size of the sets.
        minibatch: number of samples per minibatch.
        every: number of minibatches between snapshots.
        decay: decay of the average, 0 or more and below 1.
        window: number of last transitions to average.
        threshold: overlap at which the rule stops, 0 to 1.

    Raises:
        InputError: a count is below 1, or the decay is out of range.
    """
    for name, count in {"k": k, "minibatch": minibatch, "every": every, "window": window}.items():
        if count < 1:
            raise InputError(f"the stopping rule's {name} is {count}; it must be at least 1.")
    if not 0 <= decay < 1:
        raise InputError(f"the stopping rule's decay is {decay}; it must be at least 0 and below 1, such as 0.95.")
    average, total = np.zeros(()), np.zeros(())
    tops: list[np.ndarray] = []
    jaccard: list[np.ndarray] = []
    settled: list[float] = []
    n_nonfinite = n_unused = 0
    stops_at = None
    for n_samples, sample in enumerate(scores, 1):
        total = total + sample
        n_unused += int((~np.isfinite(sample)).sum())
        if n_samples % minibatch:
            continue
        average = decay * average + (1 - decay) * total / minibatch
        total = np.zeros(())
        n_nonfinite, n_unused = n_nonfinite + n_unused, 0
        if n_samples % (minibatch * every):
            continue
        tops.append(top_k(torch.from_numpy(average), k).numpy())
        if len(tops) == 1:
            continue
        jaccard.append(matched_jaccard(tops[-2], tops[-1]))
        enough = len(jaccard) >= window
        settled.append(float(np.mean(jaccard[-window:], axis=0).min()) if enough else float("nan"))
        if settled[-1] >= threshold:
            stops_at = n_samples
            break
    snapshots = np.arange(1, len(tops) + 1) * minibatch * every
    return Stop(stops_at, snapshots, np.array(jaccard), np.array(settled), n_nonfinite)


def transitions(
    scores: np.ndarray, *, k: int = 8, minibatch: int = 16, every: int = 5, decay: float = 0.95
) -> np.ndarray:
    """Overlaps of a block's successive snapshots, over all samples; the settings are those of :func:`stopping_point`.

    Args:
        scores: ``(sample, channel)`` scores, in order.
        k: size of the sets.
        minibatch: number of samples per minibatch.
        every: number of minibatches between snapshots.
        decay: decay of the average.

    Returns:
        ``(transition,)`` float64, overlap of each snapshot except the first with the one before.
    """
    n = len(scores) // minibatch
    of_minibatches = scores[: n * minibatch].reshape(n, minibatch, scores.shape[1]).mean(axis=1, dtype=np.float64)
    average, averages = np.zeros(scores.shape[1]), []
    for number, each in enumerate(of_minibatches, 1):
        average = decay * average + (1 - decay) * each
        if number % every == 0:
            averages.append(average)
    if len(averages) < 2:
        return np.zeros(0)
    tops = top_k(torch.from_numpy(np.stack(averages)), k).numpy()
    return matched_jaccard(tops[:-1], tops[1:])


def joint_stop(
    jaccard: np.ndarray, *, minibatch: int = 16, every: int = 5, window: int = 4, threshold: float = 0.9
) -> tuple[int | None, float | None]:
    """Apply the rule to all blocks together: it stops at the first check at which every block is settled.

    Args:
        jaccard: ``(block, transition)`` overlaps from :func:`transitions`, with one order of samples for all blocks.
        minibatch: number of samples per minibatch.
        every: number of minibatches between snapshots.
        window: number of last transitions to average.
        threshold: overlap at which the rule stops, 0 to 1.

    Returns:
        The number of samples after which the rule stops, None if it does not stop; and the mean of the last
        transitions' overlaps at that point, or at the end, for the block where it is lowest, None if there is no check.
    """
    n_checks = jaccard.shape[1] - window + 1
    if n_checks < 1:
        return None, None
    settled = np.array([jaccard[:, at : at + window].mean(axis=1).min() for at in range(n_checks)])
    passed = np.flatnonzero(settled >= threshold)
    if not len(passed):
        return None, float(settled[-1])
    return int(passed[0] + window + 1) * every * minibatch, float(settled[passed[0]])
