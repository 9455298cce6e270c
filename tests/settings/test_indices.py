"""One grammar of indices, for layers and steps of models and of runs."""

import pytest

from fewchannels.errors import InputError
from fewchannels.settings.indices import counts_from_end, in_short, parse_indices


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,5", (0, 5)),
        ("5, 0,5", (0, 5)),
        ("2-4", (2, 3, 4)),
        ("2:5", (2, 3, 4)),
        (":2", (0, 1)),
        ("4:", (4, 5)),
        ("-2:", (4, 5)),
        ("last", (5,)),
        ("-1", (5,)),
        ("-6", (0,)),
        ("0,2-3,last", (0, 2, 3, 5)),
        ("5:6", (5,)),
    ],
)
def test_every_way_of_writing_indices_names_the_same_ones(text: str, expected: tuple[int, ...]) -> None:
    assert parse_indices("layer", text, range(6)) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("0-19", (0, 9, 19)), ("1:19", (9,)), ("-1", (19,)), ("-3", (0,)), ("9,last", (9, 19))]
)
def test_a_range_stands_for_those_that_a_run_has(text: str, expected: tuple[int, ...]) -> None:
    assert parse_indices("step", text, [0, 9, 19]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("33", "layer 33 does not exist; the valid ones are 0 to 5."),
        ("-7", "layer -7 does not exist; the valid ones are 0 to 5."),
        ("2-6", "layer 6 does not exist"),
        ("2:7", "layer 6 does not exist"),
        ("4-2", "layers '4-2' is empty"),
        ("3:3", "layers '3:3' is empty"),
        ("1.5", "layer '1.5' is not an index; give e.g. 0,5, each 0 to 5."),
        ("0,,1", "layer empty is not an index"),
        ("١", "is not an index"),
    ],
)
def test_what_is_no_index_is_refused_with_the_valid_ones(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_indices("layer", text, range(6))
    assert message in str(refused.value)


def test_a_single_index_that_a_run_has_not_recorded_is_refused() -> None:
    with pytest.raises(InputError, match="step 4 was not recorded; it has 0,9"):
        parse_indices("step", "4", [0, 9], "was not recorded; it has 0,9")


def test_what_is_counted_from_the_end_is_told_apart() -> None:
    assert [counts_from_end(text) for text in ("last", "-1", "0,-1", "2:", "2:-1", "0,last")] == [True] * 6
    assert [counts_from_end(text) for text in ("0", "2-4", "2:5", ":3", "0,5")] == [False] * 5


def test_runs_of_indices_are_drawn_together() -> None:
    assert in_short([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert in_short(range(6), " to ") == "0 to 5"
    assert in_short([]) == ""
