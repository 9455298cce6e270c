"""Assign items and conditions to rows of batches. Pure.

Everything that an edit is compared with, or copied from, is a row of the same batch: the unedited sample and the source
run once for all conditions in the batch, and no trajectory is ever stored.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fewchannels.errors import InputError
from fewchannels.interventions.conditions import GUIDE, Condition
from fewchannels.manifest import Sample

ROLES = ("undisturbed", "source", "edited", "disturbed")
"""Roles of a row; a ``disturbed`` row only serves to guide the row after it."""


@dataclass(frozen=True)
class Item:
    """An item of a sweep: a sample, or a target with a source.

    Attributes:
        item: index of the item.
        item_id: the sample's id, or the pair's.
        target: the sample.
        source: source whose hidden states are transported; None if there is none. For an image, its prompt and noise.
        image: path of the image whose noised latents are the source's trajectory; None for a generated source.
        mask: path of the mask of the transported region: the target's for text sources, otherwise the image's own.
    """

    item: int
    item_id: str
    target: Sample
    source: Sample | None = None
    image: str | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        item: item that the row belongs to.
        role: one of :data:`ROLES`.
        condition: condition of the edit; None if it is unedited.
        place: index of the condition in the sweep; -1 if there is none.
        undisturbed: position in the batch of the same item's unedited row.
        source: position in the batch of the row of the item's source; None if there is none.
    """

    item: Item
    role: str
    condition: Condition | None
    place: int
    undisturbed: int
    source: int | None

    @property
    def sample(self) -> Sample:
        """The sample to generate."""
        if self.role == "source":
            assert self.item.source is not None
            return self.item.source
        return self.item.target


@dataclass(frozen=True)
class Batch:
    """Rows that are generated together.

    Attributes:
        rows: rows of the batch; those that a row is compared with are before it.
        blended: edited images that are blended from images of the rows, not generated.
    """

    rows: tuple[Row, ...]
    blended: tuple[Row, ...]

    @property
    def items(self) -> list[Item]:
        """Its items, each once."""
        return list({row.item.item: row.item for row in self.rows}.values())


def pair_id(target_id: str, source: str, source_seed: int | None, mask: str | None = None) -> str:
    """The id of a target and its source, by which random channels are drawn: 16 hex digits.

    Args:
        target_id: the target's sample id.
        source: the source's sample id, or the path of its reference image.
        source_seed: random seed of the source's noise.
        mask: path of the mask of the transported region; None if there is none.
    """
    text = "\0".join(map(str, (target_id, source, source_seed, mask)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def n_rows(condition: Condition) -> int:
    """Number of rows that a condition needs: two for guidance, none for blends of images or no change."""
    return 0 if condition.is_nothing else {GUIDE: 2, "pixels": 0}.get(condition.action, 1)


def check_batch_size(conditions: Sequence[Condition], batch_size: int, *, has_source: bool) -> None:
    """Reject batches without room for an edit and the rows it is compared with.

    Raises:
        InputError: the batch is too small; the message has the required number of rows.
    """
    least = 1 + has_source + max(map(n_rows, conditions))
    if batch_size < least:
        raise InputError(
            f"batch_size is {batch_size}; an edit needs {least} rows in one batch: its own, the unedited sample's"
            f"{' and the source' if has_source else ''}."
        )


def batches(items: Sequence[Item], conditions: Sequence[Condition], batch_size: int) -> Iterator[Batch]:
    """Batches of all items under all conditions; items whose conditions fit share one.

    Args:
        items: items with the same settings; either all or none have a source.
        conditions: conditions of the sweep.
        batch_size: maximum number of rows.
    """
    has_source = items[0].source is not None
    fixed = 1 + has_source
    parts = list(_parts(conditions, batch_size - fixed))
    if len(parts) == 1:
        n = fixed + sum(n_rows(condition) for _, condition in parts[0])
        together = max(1, batch_size // n)
        for first in range(0, len(items), together):
            yield _batch([(item, parts[0]) for item in items[first : first + together]])
    else:
        for item, part in itertools.product(items, parts):
            yield _batch([(item, part)])


def count(n_items: int, conditions: Sequence[Condition], batch_size: int, *, has_source: bool) -> tuple[int, int]:
    """Number of batches and rows for a number of items with the same settings."""
    fixed = 1 + has_source
    parts = [sum(n_rows(condition) for _, condition in part) for part in _parts(conditions, batch_size - fixed)]
    together = max(1, batch_size // (fixed + parts[0])) if len(parts) == 1 else 1
    return len(parts) * -(-n_items // together), n_items * (len(parts) * fixed + sum(parts))


def _parts(conditions: Sequence[Condition], most: int) -> Iterator[list[tuple[int, Condition]]]:
    part: list[tuple[int, Condition]] = []
    n = 0
    for place, condition in enumerate(conditions):
        if n + n_rows(condition) > most:
            yield part
            part, n = [], 0
        part.append((place, condition))
        n += n_rows(condition)
    if part:
        yield part


def _batch(items: Sequence[tuple[Item, list[tuple[int, Condition]]]]) -> Batch:
    rows: list[Row] = []
    blended: list[Row] = []
    for item, part in items:
        at = len(rows)
        source = at + 1 if item.source is not None else None
        rows.append(Row(item, "undisturbed", None, -1, at, source))
        if source is not None:
            rows.append(replace(rows[-1], role="source"))
        for place, condition in part:
            edited = Row(item, "edited", condition, place, at, source)
            if n_rows(condition) == 2:
                rows.append(replace(edited, role="disturbed"))
            (rows if n_rows(condition) else blended).append(edited)
    return Batch(tuple(rows), tuple(blended))
