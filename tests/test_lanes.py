"""Every test runs in one lane, and each guarantee of the main path in the fast one."""

import pytest
from lanes import LANES, LANES_OF, MAIN_PATH, NEEDS_OF, TESTS, TOGETHER, unit


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
