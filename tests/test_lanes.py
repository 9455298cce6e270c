"""Every test runs in one lane, and each guarantee of the main path in the fast one."""

import pytest
from lanes import LANES, LANES_OF, LONGEST, MAIN_PATH, NEEDS_OF, TESTS, THIRDS, TOGETHER, longest_first, thirds, unit


def test_every_test_is_in_exactly_one_lane(request: pytest.FixtureRequest) -> None:
    """Of whatever pytest was asked for: all of them, in a lane of the whole."""
    found = request.config.stash[LANES_OF]
    assert {name: lanes for name, lanes in found.items() if len(lanes) != 1 or not lanes <= set(LANES)} == {}


@pytest.mark.parametrize("beginning", MAIN_PATH.values(), ids=list(MAIN_PATH))
def test_what_the_fast_lane_has_of_the_main_path_is_there(request: pytest.FixtureRequest, beginning: str) -> None:
    found = request.config.stash[LANES_OF]
    if not any(name.startswith(f"{TESTS.name}/{beginning.split('::')[0]}") for name in found):
        pytest.skip("its file was not asked for")
    chosen = [lanes for name, lanes in found.items() if name.startswith(f"{TESTS.name}/{beginning}")]
    assert set().union(*chosen) - {"exhaustive"} == {"fast"}


def test_what_starts_clusters_is_handed_to_one_process(request: pytest.FixtureRequest) -> None:
    found = request.config.stash[NEEDS_OF]
    together = {name for name in found if unit(name) == TOGETHER}
    assert together == {name for name, needed in found.items() if needed & {"cluster", "hosts"}}


def test_a_slow_file_is_in_one_third_and_the_longest_are_spread_over_them() -> None:
    shorter = [f"tests/runs/test_{i}.py" for i in range(20)]
    found = thirds(
        [f"tests/{file}::test_{i}" for file in LONGEST for i in range(2)] + [f"{file}::test" for file in shorter]
    )
    of_file = {name.split("::")[0]: third for name, third in found.items()}
    assert all(third == of_file[name.split("::")[0]] for name, third in found.items())
    assert [of_file[f"tests/{file}"] for file in LONGEST[:7]] == [1, 2, 3, 3, 2, 1, 1]
    sizes = [sum(third == each for third in of_file.values()) for each in range(1, THIRDS + 1)]
    assert sum(sizes) == len(LONGEST) + len(shorter)
    assert max(sizes) - min(sizes) <= 1


def test_the_files_that_take_longest_are_there_and_begin_first() -> None:
    assert [file for file in LONGEST if not (TESTS / file).is_file()] == []
    files = ["tests/runs/test_layout.py", "tests/end_to_end/test_kills.py", "tests/end_to_end/test_jobs.py"]
    assert sorted(files, key=longest_first) == files[::-1]
