"""SPARK's stopping rule against the rule written out in plain Python, and planted channels."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewchannels.errors import InputError
from fewchannels.measures.stopping import joint_stop, stopping_point, transitions


def by_the_letter(
    scores: list[list[list[float]]], k: int, minibatch: int, every: int, decay: float, window: int, threshold: float
) -> tuple[int | None, list[list[float]]]:
    """Scores (sample, block, channel): after how many samples it stops, and the overlaps (transition, block)."""
    n_blocks, n_channels = len(scores[0]), len(scores[0][0])
    m = [[0.0] * n_channels for _ in range(n_blocks)]
    snapshots: list[list[set[int]]] = []
    overlaps: list[list[float]] = []
    for n in range(minibatch, len(scores) + 1, minibatch):
        batch = scores[n - minibatch : n]
        for b in range(n_blocks):
            for c in range(n_channels):
                a = sum(sample[b][c] for sample in batch) / minibatch
                m[b][c] = decay * m[b][c] + (1 - decay) * a
        if (n // minibatch) % every == 0:
            snapshots.append([set(sorted(range(n_channels), key=lambda c: (-row[c], c))[:k]) for row in m])
            if len(snapshots) > 1:
                pairs = zip(snapshots[-2], snapshots[-1], strict=True)
                overlaps.append([len(a & b) / len(a | b) for a, b in pairs])
            last = overlaps[-window:]
            if len(last) == window and all(sum(o[b] for o in last) / window >= threshold for b in range(n_blocks)):
                return n, overlaps
    return None, overlaps


@given(
    st.integers(1, 60),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.integers(1, 4),
    st.sampled_from([0.3, 0.62, 0.9, 1.0]),
    st.integers(0, 10**6),
)
@settings(max_examples=200)
def test_it_stops_where_the_rule_written_out_stops(
    n: int, n_blocks: int, k: int, minibatch: int, every: int, decay: float, window: int, threshold: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = np.exp(random.normal(0, 1, (n_blocks, 6)) + random.normal(0, 0.5, (n, n_blocks, 6)))
    rule = {"k": k, "minibatch": minibatch, "every": every, "decay": decay, "window": window, "threshold": threshold}
    n_samples, overlaps = by_the_letter(scores.tolist(), **rule)
    got = stopping_point(scores, **rule)
    assert got.n_samples == n_samples
    np.testing.assert_allclose(got.jaccard.reshape(-1, n_blocks), np.reshape(overlaps, (-1, n_blocks)))
    assert got.snapshots.tolist() == [minibatch * every * (i + 1) for i in range(len(got.snapshots))]
    assert len(got.settled) == len(got.jaccard)
    expected = [
        np.mean(overlaps[i + 1 - window : i + 1], 0).min() if i + 1 >= window else np.nan for i in range(len(overlaps))
    ]
    np.testing.assert_allclose(got.settled, np.array(expected, float))


@given(
    st.integers(1, 60),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.integers(1, 4),
    st.sampled_from([0.3, 0.62, 0.9, 1.0]),
    st.integers(0, 10**6),
)
@settings(max_examples=200)
def test_blocks_that_are_looked_at_one_by_one_stop_together_where_the_rule_written_out_stops(
    n: int, n_blocks: int, k: int, minibatch: int, every: int, decay: float, window: int, threshold: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = np.exp(random.normal(0, 1, (n_blocks, 6)) + random.normal(0, 0.5, (n, n_blocks, 6)))
    rule = {"k": k, "minibatch": minibatch, "every": every, "decay": decay}
    seen = [transitions(scores[:, block], **rule) for block in range(n_blocks)]
    n_needed, _ = joint_stop(np.array(seen), minibatch=minibatch, every=every, window=window, threshold=threshold)
    assert n_needed == by_the_letter(scores.tolist(), **rule, window=window, threshold=threshold)[0]


def test_blocks_that_are_settled_at_different_checks_do_not_stop_the_rule() -> None:
    first, second = [1, 1, 1, 1, 0, 0, 0, 1], [0, 1, 1, 1, 1, 0, 0, 0]
    assert joint_stop(np.array([first])) == (400, 1.0)
    assert joint_stop(np.array([second])) == (480, 1.0)
    assert joint_stop(np.array([first, second])) == (None, 0.25)
    assert joint_stop(np.array([[1, 1, 1]])) == (None, None)
    assert len(transitions(np.ones((159, 9)))) == 0


def test_channels_that_never_change_stop_it_at_400_samples_as_published() -> None:
    scores = np.tile(np.arange(64.0), (1000, 3, 1))
    got = stopping_point(scores)
    assert got.n_samples == 400
    assert got.snapshots.tolist() == [80, 160, 240, 320, 400]
    assert (got.jaccard == 1).all()
    assert got.jaccard.shape == (4, 3)
    assert stopping_point(scores[:399]).n_samples is None


def test_one_block_whose_channels_change_delays_all() -> None:
    scores = np.tile(np.arange(64.0), (1200, 2, 1))
    # After 10 minibatches block 1 has other channels; j more, and the old weigh 0.95^j (1 - 0.95^10), the new
    # 1 - 0.95^j, which is more from j = 7 on: the snapshot after 15 has the old ones, that after 20 the new.
    scores[160:, 1] = scores[160:, 1, ::-1]
    got = stopping_point(scores)
    changed = got.snapshots[1:][got.jaccard[:, 1] < 1]
    assert changed.tolist() == [320]
    # Its overlap there is 0; 4 transitions without it are over 4 snapshots later.
    assert got.n_samples == 640
    assert (got.jaccard[:, 0] == 1).all()


def test_of_a_stream_no_more_is_read_than_it_needs() -> None:
    read = []

    def stream() -> Iterator[np.ndarray]:
        for n in range(10_000):
            read.append(n)
            yield np.arange(20.0)

    assert stopping_point(stream()).n_samples == len(read) == 400


def test_a_stream_too_short_for_a_transition_has_none() -> None:
    got = stopping_point(np.ones((100, 9)))
    assert got.n_samples is None
    assert (len(got.snapshots), len(got.jaccard), len(got.settled), got.n_nonfinite) == (1, 0, 0, 0)


def test_scores_that_are_not_finite_are_counted_and_rank_first() -> None:
    scores = np.tile(np.arange(20.0), (400, 1))
    scores[5, 0], scores[200, 1] = np.nan, np.inf
    got = stopping_point(scores, k=2)
    assert got.n_nonfinite == 2
    # Top 2: {0, 19} from the first snapshot on, then {0, 1} from the third on.
    assert got.jaccard.tolist() == [1, 1 / 3, 1, 1]


def test_a_last_minibatch_that_is_not_full_is_not_used() -> None:
    scores = np.tile(np.arange(20.0), (90, 1))
    scores[85] = np.nan
    assert stopping_point(scores).n_nonfinite == 0


@pytest.mark.parametrize(
    ("setting", "says"),
    [({"k": 0}, "the stopping rule's k is 0"), ({"window": 0}, "window"), ({"decay": 1.0}, "decay is 1.0")],
)
def test_settings_that_cannot_work_are_refused(setting: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        stopping_point(np.ones((9, 9)), **setting)
