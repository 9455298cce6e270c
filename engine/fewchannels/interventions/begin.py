"""How an actor gets a sweep's worker, without importing PyTorch in the process that only asks for it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fewchannels.runs.ledger import Record

if TYPE_CHECKING:
    from fewchannels.interventions.sweep import Sweep


def start_sweep(sweep: "Sweep", n_threads: int) -> Callable[[int], Record]:
    """A sweep's worker."""
    from fewchannels.interventions.worker import SweepWorker

    return SweepWorker(sweep, n_threads)
