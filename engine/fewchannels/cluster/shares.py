"""Number of actors, and each one's share of CPUs and GPUs."""

from dataclasses import dataclass, field
from typing import Any

from fewchannels.errors import InputError
from fewchannels.settings.ranges import check, check_given, text, within

_LEAST_GPU = 0.01


@dataclass(frozen=True)
class Pool:
    """Number of actors, and each one's share of CPUs and GPUs.

    Attributes:
        n_actors: maximum number of actors.
        gpus_per_actor: GPUs of each, may be a fraction.
        cpus_per_actor: CPUs of each, and its PyTorch threads.
        address: address of a running Ray cluster; None starts one on this machine and stops it at the end.
    """

    n_actors: int = field(metadata=within(1, 10_000, "Number of Ray actors."))
    gpus_per_actor: float = field(metadata=within(0.0, 64.0, "GPUs per actor."))
    cpus_per_actor: int = field(metadata=within(1, 1_024, "CPU threads per actor."))
    address: str | None = field(
        default=None,
        metadata=text("Address of a Ray cluster, or auto on one of its nodes. Without it, Ray starts on this machine."),
    )

    def __post_init__(self) -> None:
        check(self)
        _check_parts(self.gpus_per_actor)

    def is_here(self, n_tasks: int) -> bool:
        """Return whether a single worker in this process runs this number of tasks."""
        return self.address is None and min(self.n_actors, n_tasks) == 1 and self.gpus_per_actor <= 1

    def in_words(self, *, is_here: bool) -> str:
        """Description of the workers, such as ``2 actors with 1 CPU thread each``."""
        threads = f"{self.cpus_per_actor} CPU thread{'s' * (self.cpus_per_actor > 1)}"
        if is_here:
            return f"one worker in this process with {threads}"
        return f"{self.n_actors} actors with {threads} each" if self.n_actors > 1 else f"1 actor with {threads}"

    @property
    def device(self) -> str:
        """Device of an actor: ``cuda`` if its share has a GPU, else ``cpu``, regardless of the machine."""
        return "cuda" if self.gpus_per_actor else "cpu"


def check_shares(**given: Any) -> None:
    """Check requested settings of a pool against the ranges of its fields; None is skipped.

    Raises:
        InputError: a value is out of its range.
    """
    check_given(Pool, given)
    _check_parts(given.get("gpus_per_actor") or 0)


def _check_parts(n_gpus: float) -> None:
    """Check a share of GPUs: Ray assigns hundredths of one GPU, or whole ones."""
    if n_gpus and (n_gpus < _LEAST_GPU or (n_gpus > 1 and n_gpus != int(n_gpus))):
        raise InputError(
            f"gpus_per_actor is {n_gpus:g}; it must be 0, a share of one GPU (at least {_LEAST_GPU}), or a whole "
            "number of GPUs."
        )
