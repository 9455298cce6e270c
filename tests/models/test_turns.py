"""Of processes that read the same, the first goes ahead."""

import threading
import time

from fewchannels.models.loaded import after_the_first


def spans(names: list[str]) -> list[tuple[str, float, float]]:
    """When each of several threads was at it, a moment after one another; a lock is its opener's, not its process's."""
    found = []

    def work(what: str) -> None:
        with after_the_first(what):
            began = time.monotonic()
            time.sleep(0.4)
            found.append((what, began, time.monotonic()))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return sorted(found, key=lambda span: span[1])


def test_the_first_goes_ahead_and_the_others_follow_together() -> None:
    (_, _, end), (_, second, second_end), (_, third, _) = spans(["a model"] * 3)
    assert min(second, third) >= end
    assert third < second_end, "not one after another"


def test_others_that_read_something_else_do_not_wait() -> None:
    (_, _, end), (_, second, _) = spans(["one model", "another"])
    assert second < end


def test_after_all_processes_have_ended_the_next_one_goes_first_again() -> None:
    for _ in range(2):
        (_, _, end), (_, second, _) = spans(["again"] * 2)
        assert second >= end
