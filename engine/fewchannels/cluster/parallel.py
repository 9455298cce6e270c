"""Small pieces of work, spread over Ray's workers or run in this process."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fewchannels.cluster.folder import enter, working_folder
from fewchannels.cluster.interrupts import interrupts
from fewchannels.cluster.shares import Pool
from fewchannels.errors import FewchannelsError
from fewchannels.settings.environment import settle_environment

if TYPE_CHECKING:
    from fewchannels.cluster.nodes import NodeWatch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_LOOK_EVERY_S = 1.0


def spread(work: Callable[[_Item], _Result], items: Sequence[_Item], pool: Pool) -> Iterator[tuple[_Item, _Result]]:
    """Run small work, each item in one thread: on Ray, like :func:`mapped`, or here if one worker is enough.

    Args:
        work: a plain function, safe to repeat.
        items: arguments of the work.
        pool: pool of workers; a single worker is this process, unless its share is a cluster's GPU.

    Raises:
        FewchannelsError: an error that the work raised, or that Ray reported.
    """

    def by_one_thread(item: _Item) -> _Result:
        with one_thread():
            return work(item)

    is_elsewhere = pool.address is not None and pool.gpus_per_actor > 0
    if (pool.n_actors == 1 or len(items) <= 1) and not is_elsewhere:
        yield from ((item, by_one_thread(item)) for item in items)
        return
    from fewchannels.cluster.session import ray_session  # Ray takes a second to import

    with ray_session(pool), interrupts() as check_interrupted:
        for found in mapped(by_one_thread, items, pool):
            check_interrupted()
            yield found


@contextmanager
def one_thread() -> Iterator[None]:
    """Have PyTorch compute with one thread: a second gains little on small work, and loses much on a busy CPU."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def mapped(work: Callable[[_Item], _Result], items: Iterable[_Item], pool: Pool) -> Iterator[tuple[_Item, _Result]]:
    """Run work on Ray, a few items ahead of the consumer; yields each item with its result as it ends, in any order.

    Args:
        work: a plain function, safe to repeat: it is retried elsewhere if a machine fails.
        items: arguments of the work.
        pool: pool whose share per actor is the share of one worker.

    Raises:
        FewchannelsError: an error that the work raised, or that Ray reported.
    """

    import ray

    from fewchannels.cluster.nodes import NodeWatch
    from fewchannels.cluster.session import MACHINE_FAULT_RETRIES

    folder = working_folder()

    def one(item: _Item) -> _Result:  # Ray takes plain functions only
        enter(folder)
        return work(item)

    remote = ray.remote(num_cpus=pool.cpus_per_actor, num_gpus=pool.gpus_per_actor, max_retries=MACHINE_FAULT_RETRIES)(
        one
    )
    waiting = deque(items)
    running: dict[Any, _Item] = {}
    nodes = NodeWatch(pool)
    while waiting or running:
        while waiting and len(running) < 2 * pool.n_actors:
            item = waiting.popleft()
            running[remote.remote(item)] = item
        done = _first(list(running), nodes)
        item = running.pop(done)
        with _own_error(repr(item)):
            result = ray.get(done)
        yield item, result


def streamed(work: Callable[..., Iterator[_Result]], arguments: Sequence[Any], pool: Pool) -> Iterator[_Result]:
    """Run one generator in a Ray process that ends with it and releases its memory; yields what it yields.

    Args:
        work: a plain generator function, safe to repeat.
        arguments: arguments of the function.
        pool: pool whose share per actor is the share of the process.

    Raises:
        FewchannelsError: the work raised it.
    """
    import ray

    from fewchannels.cluster.nodes import NodeWatch
    from fewchannels.cluster.session import MACHINE_FAULT_RETRIES

    folder = working_folder()

    def whole() -> Iterator[_Result]:  # Ray takes plain functions only
        enter(folder)
        settle_environment()  # the node may have been started without it
        yield from work(*arguments)

    remote = ray.remote(
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        num_returns="streaming",
        max_calls=1,
        max_retries=MACHINE_FAULT_RETRIES,
    )(whole)
    nodes, results = NodeWatch(pool), remote.remote()
    while True:
        _first([results], nodes)
        with _own_error(work.__name__.lstrip("_")):
            try:
                result = ray.get(next(results))
            except StopIteration:
                return
        yield result


def _first(references: list[Any], nodes: "NodeWatch") -> Any:
    """Wait for the first that is ready, and check the nodes in the meantime."""
    import ray

    while True:
        ready, _ = ray.wait(references, num_returns=1, timeout=_LOOK_EVERY_S)
        if ready:
            return ready[0]
        nodes.look()


@contextmanager
def _own_error(what: str) -> Iterator[None]:
    """Raise the error of work on Ray if it is one of this package's, else one with its message."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FewchannelsError):
            raise cause from None
        raise FewchannelsError(f"{what} failed: {type(cause).__name__}: {cause}") from error
