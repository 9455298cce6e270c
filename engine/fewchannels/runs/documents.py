"""JSON documents whose damage is detected: ``run.json``, and the ledger's records.

A document has only one valid form. Its last field is the CRC-32C of the document without that field, so a change of
any byte is detected. A checksum is not a signature: the author of the run can compute it. So the content of a document
is validated as well, against the fields that its readers rely on.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

from crc32c import crc32c
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fewchannels.errors import StorageError
from fewchannels.runs.storage import Checksum, Count, Storage, is_key
from fewchannels.tables import tables

CHECKSUM = "crc32c"
_END = re.compile(rb',\n "crc32c": "([0-9a-f]{8})"\n}\n')
_END_BYTES = len(b',\n "crc32c": "00000000"\n}\n')
_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


class DamagedDocumentError(ValueError):
    """A document whose bytes were not written by :func:`to_bytes`, or whose content is not valid."""


class Fields(BaseModel):
    """Required fields of a document, with their exact types. Later versions may add further fields."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


def _as_key(text: str) -> str:
    if not is_key(text):
        raise ValueError("it is not a location inside the run")
    return text


def _as_table(text: str) -> str:
    if text not in tables():
        raise ValueError("there is no such table")
    return text


Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Key = Annotated[str, AfterValidator(_as_key)]


class StoredFields(Fields):
    """Size and checksum of an object."""

    model_config = ConfigDict(extra="forbid")

    n_bytes: Count
    crc32c: Checksum


Objects = dict[Key, StoredFields]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,80}\z")]
"""Name of a table, which is used in SQL without quotes."""
Table = Annotated[str, AfterValidator(_as_table)]
Score = Literal["mean_abs", "abs_mean", "max_abs", "rms"]
Versions = dict[str, str]


def check(fields: Callable[[_Given], _Found], content: _Given) -> _Found:
    """Validate a document's content against the fields of such a document, and return pydantic's result.

    Args:
        fields: pydantic's validation, such as ``Fields.model_validate``.
        content: content of the document.

    Raises:
        DamagedDocumentError: naming the field.
    """
    try:
        return fields(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where, given = ".".join(map(str, first["loc"])), f"{first['input']!r:.60}"
        given = "" if first["type"] == "missing" else f", but is {given}"
        message = first["msg"].removeprefix("Value error, ")
        raise DamagedDocumentError(f"{where or 'the document'}: {message[:1].lower()}{message[1:]}{given}") from None


def read(storage: Storage, key: str, fields: type[Fields], remedy: str) -> dict[str, Any]:
    """A document of a run.

    Args:
        storage: storage of the run.
        key: key of the document.
        fields: its fields.
        remedy: remedy for a damaged document, one sentence.

    Raises:
        FileNotFoundError: the document does not exist.
        StorageError: it is damaged.
    """
    with damage(storage, key, remedy):
        return from_bytes(storage.get(key), fields)


@contextmanager
def damage(storage: Storage, key: str, remedy: str) -> Iterator[None]:
    """Inside the context, which reads a document, turn any fault in it into a :class:`StorageError` that names it."""
    try:
        yield
    except DamagedDocumentError as error:
        raise StorageError(f"{storage.location(key)} is damaged: {error}. {remedy}") from None


def to_bytes(content: dict[str, Any]) -> bytes:
    """A document's bytes."""
    return _text(content | {CHECKSUM: f"{crc32c(_text(content)):08x}"})


def from_bytes(data: bytes, fields: type[Fields] = Fields) -> dict[str, Any]:
    """Read a document's content. Documents of format version 1 have no checksum, and are accepted without a check.

    Args:
        data: the document's bytes.
        fields: its fields.

    Raises:
        DamagedDocumentError: a byte is not as it was written, or the content is not such a document's.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedDocumentError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DamagedDocumentError(f"it contains {type(content).__name__}, not a JSON object")
    found = content.pop(CHECKSUM, None)
    if found is None and "objects" in content:
        raise DamagedDocumentError(f"it has no {CHECKSUM}")
    if found is not None:
        check_whole(data)
    check(fields.model_validate, content)
    return content


def check_whole(data: bytes) -> None:
    """Check a document's bytes against its checksum.

    Raises:
        DamagedDocumentError: a byte is not as it was written.
    """
    # Computed on the bytes, not on the content: serializing the document again takes ten times as long as reading it.
    if not _is_whole(data):
        raise DamagedDocumentError("its checksum does not match its content")


def needs_checksum(data: bytes) -> bool:
    """Return whether a document must have a checksum: one of format version 1 has none, and names no objects."""
    return f'"{CHECKSUM}"'.encode() in data or b'"objects"' in data


def _is_whole(data: bytes) -> bool:
    end = _END.fullmatch(data[-_END_BYTES:])
    return end is not None and crc32c(b"\n}\n", crc32c(data[:-_END_BYTES])) == int(end[1], 16)


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode("ascii")
