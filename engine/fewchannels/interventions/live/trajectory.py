"""The denoising trajectory of one live request so far, readable from any thread."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import numpy as np

from fewchannels.interventions.live.ask import Ask
from fewchannels.models.family import Block

STATES = ("waiting", "running", "done", "failed", "cancelled")
"""States of a generation; the last three are final."""
_ENDS = STATES[2:]


@dataclass(frozen=True, eq=False)
class RowStep:
    """Data of one row's image stream at every layer's output in one step. The arrays are read-only.

    Attributes:
        channels: ``(layer, k)`` int32, this row's own, largest score first.
        scores: ``(layer, k)`` float32, scores of these channels.
        median_score: ``(layer,)`` float32, the lower median over all channels.
        ratio: ``(layer,)`` float32, the largest score divided by that.
        energy_share: ``(layer,)`` float32, share of the squared values that the ``k`` channels hold.
        maps: ``(layer, k, y, x)`` float32, their signed values over the grid of tokens.
    """

    channels: np.ndarray
    scores: np.ndarray
    median_score: np.ndarray
    ratio: np.ndarray
    energy_share: np.ndarray
    maps: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):
            getattr(self, field.name).flags.writeable = False

    @property
    def n_bytes(self) -> int:
        """Of its arrays."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))


@dataclass(frozen=True)
class Step:
    """A finished step.

    Attributes:
        step: 0-based.
        timestep: the scheduler's.
        sigma: the scheduler's noise level; None if it has none.
        rows: rows by role: ``undisturbed``, ``source`` of a transport, ``edited``. The edited row is in the state after
            the edit, which later blocks see.
    """

    step: int
    timestep: float
    sigma: float | None
    rows: Mapping[str, RowStep]

    @property
    def n_bytes(self) -> int:
        """Of its arrays, each counted once."""
        return sum(row.n_bytes for row in {id(row): row for row in self.rows.values()}.values())


@dataclass(frozen=True)
class Snapshot:
    """A generation at one moment.

    Attributes:
        state: one of :data:`STATES`.
        error: why it failed or was canceled, for the user; None otherwise.
        steps: finished steps, in order.
        images: PNG files by role, once it is done.
        measures: size of the edit, the columns :data:`fewchannels.interventions.conditions.MEASURES` of ``edits``, once
            it is done; empty without an edit.
    """

    state: str
    error: str | None
    steps: tuple[Step, ...]
    images: Mapping[str, bytes]
    measures: Mapping[str, float | None]

    @property
    def has_ended(self) -> bool:
        """Return whether nothing more will come."""
        return self.state in _ENDS

    @property
    def n_bytes(self) -> int:
        """Of its arrays and images."""
        return sum(step.n_bytes for step in self.steps) + sum(map(len, self.images.values()))


class CancelledError(Exception):
    """Signal that ends a generation from inside the pipeline."""


class Trajectory:
    """One generation of a live session. Any thread may read it, wait for it and cancel it.

    Args:
        ask: the request.
        n_steps: denoising steps.
        token_grid: tokens along height and width.
        blocks: blocks of the model, in the order of the arrays' layers.
        roles: roles of its rows.

    Attributes:
        ask: the request.
    """

    def __init__(
        self, ask: Ask, n_steps: int, token_grid: tuple[int, int], blocks: tuple[Block, ...], roles: tuple[str, ...]
    ) -> None:
        self.ask, self.n_steps, self.token_grid, self.blocks, self.roles = ask, n_steps, token_grid, blocks, roles
        self._changed = threading.Condition()
        self._now = Snapshot("waiting", None, (), MappingProxyType({}), MappingProxyType({}))
        self._cancelled: str | None = None

    def snapshot(self) -> Snapshot:
        """Immutable snapshot of its current state."""
        with self._changed:
            return self._now

    def wait(self, timeout_s: float | None = None, *, after_steps: int | None = None) -> Snapshot:
        """Wait until it has ended or, with ``after_steps``, until more steps than those are finished.

        Args:
            timeout_s: maximum waiting time in seconds; None for no limit.
            after_steps: steps that are known already.

        Returns:
            Its state at that time, also after a timeout.
        """

        def is_awaited() -> bool:
            more = after_steps is not None and len(self._now.steps) > after_steps
            return more or self._now.has_ended

        with self._changed:
            self._changed.wait_for(is_awaited, timeout_s)
            return self._now

    def cancel(self, why: str = "it was cancelled") -> None:
        """Cancel it: immediately if it is waiting, before the next block if it is running. No effect after its end."""
        with self._changed:
            if self._cancelled is None and not self._now.has_ended:
                self._cancelled = why
            if self._now.state == "waiting":
                self._become(state="cancelled", error=self._cancelled)

    @property
    def is_cancelled(self) -> bool:
        """Return whether it was canceled, or is about to be."""
        with self._changed:
            return self._cancelled is not None

    def begin(self) -> None:
        """Mark it as running, unless it was cancelled. For its runner, like all methods below."""
        with self._changed:
            if self._now.state == "waiting":
                self._become(state="running")

    def check(self) -> None:
        """Decide whether to continue.

        Raises:
            CancelledError: it was cancelled.
        """
        with self._changed:
            if self._cancelled is not None:
                raise CancelledError(self._cancelled)

    def add(self, step: Step) -> None:
        """Add a finished step."""
        with self._changed:
            self._become(steps=(*self._now.steps, step))

    def finish(self, images: Mapping[str, bytes], measures: Mapping[str, float | None]) -> None:
        """Mark it as done."""
        with self._changed:
            self._become(state="done", images=MappingProxyType(dict(images)), measures=MappingProxyType(dict(measures)))

    def end(self, state: str, why: str) -> None:
        """Mark it as failed or cancelled; its finished steps stay."""
        with self._changed:
            self._become(state=state, error=why)

    def _become(self, **changed: object) -> None:
        self._now = replace(self._now, **changed)  # type: ignore[arg-type]
        self._changed.notify_all()
