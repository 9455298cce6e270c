"""Protocol of the work of a pool of actors."""

from typing import Protocol, Self

from fewchannels.runs.storage import Storage


class Work(Protocol):
    """Tasks of one location: a capture's job, or a sweep. Has only plain values."""

    @property
    def storage(self) -> Storage:
        """Storage that the tasks write to."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the identity of the work."""

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Fields of its identity that the existing run or sweep lacks."""

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""

    def rows(self, task: int) -> range:
        """Samples or items of a task; each succeeds or fails individually."""

    def ids(self, task: int) -> list[str]:
        """The ids of what it owns, of samples or of pairs."""

    def leased(self, token: str) -> Self:
        """The same work under a lease."""
