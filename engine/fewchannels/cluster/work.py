"""What a pool of actors works at."""

from typing import Protocol, Self

from fewchannels.runs.storage import Storage


class Work(Protocol):
    """Tasks of one place, as actors and their driver see them: a capture's job, or a sweep's. Plain values only."""

    @property
    def storage(self) -> Storage:
        """Where they write."""

    @property
    def fingerprint(self) -> str:
        """Of what they do."""

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Fields of its identity that what is there was created without."""

    @property
    def n_tasks(self) -> int:
        """How many there are."""

    def rows(self, task: int) -> range:
        """What a task owns, each of which is done or fails by itself."""

    def ids(self, task: int) -> list[str]:
        """The ids of what it owns, of samples or of pairs."""

    def leased(self, token: str) -> Self:
        """The same work under a lease."""
