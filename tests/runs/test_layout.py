"""Plans by arithmetic: tasks, layers, steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewchannels.errors import InputError
from fewchannels.models.family import Block
from fewchannels.runs.choices import choose_controls, choose_layers, choose_pool_side, choose_steps
from fewchannels.runs.layout import Layout

BLOCKS = tuple(Block(i, f"b.{i}", "dual" if i < 2 else "single") for i in range(6))


def layout(n_samples: int, shard_samples: int, n_steps: int = 4) -> Layout:
    return Layout(n_samples, tuple(range(n_steps)), BLOCKS, 128, 64, 12, shard_samples)


@given(st.integers(1, 500), st.integers(1, 64))
def test_tasks_own_every_row_exactly_once_in_order(n: int, s: int) -> None:
    plan = layout(n, s)
    assert [row for task in range(plan.n_tasks) for row in plan.rows(task)] == list(range(n))
    assert all(plan.rows(task).start == task * s for task in range(plan.n_tasks))


@given(st.integers(1, 60), st.integers(1, 64))
def test_chunks_divide_shards_and_stay_small(n_steps: int, s: int) -> None:
    for array in layout(64, s, n_steps).arrays():
        assert all(shard % chunk == 0 for shard, chunk in zip(array.shard, array.chunk, strict=True))
        assert array.chunk[1] == 1 or 4 * array.chunk[0] * array.chunk[1] * array.chunk[3] <= 256 * 1024


def test_bytes_of_flux_geometry_match_the_arithmetic_by_hand() -> None:
    blocks = tuple(Block(i, f"b.{i}", "dual") for i in range(57))
    plan = Layout(8, tuple(range(28)), blocks, 3072, 4096, 12, 1)
    statistics = [array for array in plan.arrays() if array.dims[-1] == "channel"]
    assert len(statistics) == 4
    # About 20 MB a sample for one statistic, 78 MB for four; the maps are 12 of 4096 tokens.
    assert statistics[0].value_bytes == 8 * 28 * 57 * 3072 * 4
    assert plan.sample_value_bytes == 28 * 57 * 4 * (4 * 3072 + 12 * 4096 + 12 + 4096)


def test_layers_are_chosen_by_word_and_by_index() -> None:
    def chosen(text: str) -> list[int]:
        return [block.layer for block in choose_layers(text, BLOCKS)]

    assert chosen("all") == [0, 1, 2, 3, 4, 5]
    assert chosen("dual") == [0, 1]
    assert chosen("single") == [2, 3, 4, 5]
    assert chosen("5, 0,0") == [0, 5]
    assert chosen("last") == chosen("-1") == [5]
    assert chosen("2-4") == chosen("2:5") == [2, 3, 4]
    assert chosen("0,-2, 2:4") == [0, 2, 3, 4]
    assert chosen("3-3") == chosen("3:4") == [3]


def test_steps_are_chosen_by_word_and_by_index() -> None:
    assert choose_steps("all", 4) == (0, 1, 2, 3)
    assert choose_steps("last", 20) == (19,)
    assert choose_steps("0,9,19", 20) == (0, 9, 19)
    assert choose_steps("0,-3,last", 20) == (0, 17, 19)
    assert choose_steps("0-2,18:20", 20, same_for_all=False) == (0, 1, 2, 18, 19)


@pytest.mark.parametrize(
    ("choose", "text", "says"),
    [
        (lambda t: choose_layers(t, BLOCKS), "singel", "Did you mean 'single'"),
        (lambda t: choose_layers(t, BLOCKS), "6", "layer 6 does not exist; the valid ones are 0 to 5"),
        (lambda t: choose_layers(t, BLOCKS), "-7", "layer -7 does not exist; the valid ones are 0 to 5"),
        (lambda t: choose_layers(t, BLOCKS), "4-6", "layer 6 does not exist; the valid ones are 0 to 5"),
        (lambda t: choose_layers(t, BLOCKS), "4:7", "layer 6 does not exist; the valid ones are 0 to 5"),
        (lambda t: choose_layers(t, BLOCKS), "4-2", "layers '4-2' is empty"),
        (lambda t: choose_layers(t, BLOCKS), "2:2", "layers '2:2' is empty"),
        (lambda t: choose_layers(t, BLOCKS), "0:999999999999999999", "layer 999999999999999998 does not exist"),
        (lambda t: choose_layers(t, BLOCKS), "-3--1", "layer '-3--1' is not an index"),
        (lambda t: choose_layers(t, BLOCKS), "lastly", "layer 'lastly' is not an index"),
        (lambda t: choose_layers(t, BLOCKS), "1-", "layer '1-' is not an index"),
        (lambda t: choose_layers(t, BLOCKS), "", "is not an index"),
        (lambda t: choose_layers(t, BLOCKS), "²", "layer '²' is not an index"),
        (choose_pool_side, "pool:²", "tokens is 'pool:²'"),
        (choose_controls, "random:²", "controls is 'random:²'"),
        (lambda t: choose_steps(t, 20), "lost", "Did you mean 'last'"),
        (lambda t: choose_steps(t, 20), "20", "step 20 does not exist; the valid ones are 0 to 19"),
        (lambda t: choose_steps(t, 20, same_for_all=False), "last", "the samples have different numbers of steps"),
        (lambda t: choose_steps(t, 20, same_for_all=False), "0, last", "the samples have different numbers of steps"),
        (lambda t: choose_steps(t, 20, same_for_all=False), "0,-1", "the samples have different numbers of steps"),
    ],
)
def test_a_wrong_choice_names_the_valid_ones(choose, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose(text)
