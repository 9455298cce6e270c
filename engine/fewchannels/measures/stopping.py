"""After how many samples the massive channels are known: SPARK's stopping rule (arXiv 2609.03813).

The rule asks all blocks and streams at the same check. :func:`stopping_point` follows it over a stream of samples;
:func:`transitions` keeps what it sees of one block, so that :func:`joint_stop` can ask blocks together that were looked
at one by one, and in several orders of the samples.
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
    """Where the stopping rule stops, and what it saw until then.

    Attributes:
        n_samples: after how many samples it stops; None if they end before.
        snapshots: ``(snapshot,)`` int64, after how many samples each was taken.
        jaccard: ``(transition, ...)`` float64, overlap of each snapshot but the first with the one before, for each of
            the scores' leading dimensions (block, stream).
        settled: ``(transition,)`` float64, what the threshold is held against: the mean of the last transitions'
            overlaps where it is lowest; NaN before there are enough.
        n_nonfinite: scores that are not finite among the samples used.
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
    """Follow a moving average of scores until its top-k channels stay the same; the defaults are SPARK's.

    ``m <- decay m + (1 - decay) a`` over the means ``a`` of minibatches; every so many minibatches, a snapshot of the
    top-k of ``m``; stop when the mean Jaccard overlap of the last transitions between snapshots is at least the
    threshold everywhere. It cannot stop before ``(window + 1) * every * minibatch`` samples, 400 with the defaults.
    ``m`` begins at zero, as in SPARK's own code (github.com/aimagelab/spark, ``utils/phase1_online.py``): the weights
    of the minibatches so far then fall by age alone, and that they do not sum to 1 changes no ranking. A last minibatch
    that is not full is not used; theirs uses it, which can only matter to a snapshot at the very end of the samples.

    Args:
        scores: scores of one sample after the other, each ``(..., channel)`` of the same shape, such as the rows of a
            ``(sample, block, channel)`` array. Read no further than where the rule stops. A NaN channel stays NaN in
            ``m`` and ranks first, as in :func:`fewchannels.measures.scores.top_k`; they are counted.
        k: size of the sets.
        minibatch: samples.
        every: minibatches from snapshot to snapshot.
        decay: decay of the average, 0 or more and below 1.
        window: transitions.
        threshold: 0 to 1.

    Raises:
        InputError: a count is below 1, or the decay out of range.
    """
    for name, count in {"k": k, "minibatch": minibatch, "every": every, "window": window}.items():
        if count < 1:
            raise InputError(f"{name} of the stopping rule is {count}; give 1 or more.")
    if not 0 <= decay < 1:
        raise InputError(f"the stopping rule's decay is {decay}; it is at least 0 and below 1, such as 0.95.")
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
    """Overlaps of a block's snapshots, to the end of its samples; the settings are those of :func:`stopping_point`.

    Args:
        scores: ``(sample, channel)``, in order.
        k: size of the sets.
        minibatch: samples.
        every: minibatches from snapshot to snapshot.
        decay: decay of the average.

    Returns:
        ``(transition,)`` float64: of each snapshot but the first with the one before.
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
    """Where the rule stops for all blocks: at the first check at which each of them is settled.

    Args:
        jaccard: ``(block, transition)`` of :func:`transitions`, the samples of all blocks in the same order.
        minibatch: samples.
        every: minibatches from snapshot to snapshot.
        window: transitions.
        threshold: 0 to 1.

    Returns:
        After how many samples, None if they end before; and the mean of the last transitions' overlaps there, or at the
        end, of the block where it is lowest, None if there is no check.
    """
    n_checks = jaccard.shape[1] - window + 1
    if n_checks < 1:
        return None, None
    settled = np.array([jaccard[:, at : at + window].mean(axis=1).min() for at in range(n_checks)])
    passed = np.flatnonzero(settled >= threshold)
    if not len(passed):
        return None, float(settled[-1])
    return int(passed[0] + window + 1) * every * minibatch, float(settled[passed[0]])
