"""JSON documents that know whether they are whole: ``run.json``, and the ledger's records.

A document is written in one way only, its last field the CRC-32C of itself without that field, so that any change of
any byte is seen.
"""

import json
import re
from typing import Any

from crc32c import crc32c

CHECKSUM = "crc32c"
_END = re.compile(rb',\n "crc32c": "([0-9a-f]{8})"\n}\n')
_END_BYTES = len(b',\n "crc32c": "00000000"\n}\n')


class DamagedDocumentError(ValueError):
    """The bytes are not what :func:`encode` wrote."""


def encode(content: dict[str, Any]) -> bytes:
    """A document's bytes."""
    return _text(content | {CHECKSUM: f"{crc32c(_text(content)):08x}"})


def decode(data: bytes) -> dict[str, Any]:
    """A document's content. One of format version 1, which has no checksum and names no objects, is taken as it is.

    Raises:
        DamagedDocumentError: a byte is not as it was written.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise DamagedDocumentError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DamagedDocumentError(f"it holds {type(content).__name__}, not fields")
    found = content.pop(CHECKSUM, None)
    if found is None and "objects" in content:
        raise DamagedDocumentError(f"it has no {CHECKSUM}")
    # Of the bytes and not of what they mean: writing a document again to compare takes ten times as long as reading it.
    if found is not None and not _is_whole(data):
        raise DamagedDocumentError("its checksum is not that of its content")
    return content


def _is_whole(data: bytes) -> bool:
    end = _END.fullmatch(data[-_END_BYTES:])
    return end is not None and crc32c(b"\n}\n", crc32c(data[:-_END_BYTES])) == int(end[1], 16)


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode("ascii")
