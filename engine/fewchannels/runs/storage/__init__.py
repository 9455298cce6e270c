"""Storage of a run: a folder or an object store (``s3://``, ``gs://``, ``az://``), with one interface.

Every operation is atomic: a reader never sees half an object, and an object is durable when :meth:`Storage.put`
returns. What each kind of store must offer for that is in ``schemas/store.md``.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

from fewchannels.errors import InputError
from fewchannels.runs.storage.base import Buffer, Checksum, Count, Sink, Storage, Stored, is_key
from fewchannels.runs.storage.folder import FolderStorage
from fewchannels.runs.storage.objects import ObjectStorage

__all__ = [
    "Buffer",
    "Checksum",
    "Count",
    "FolderStorage",
    "ObjectStorage",
    "Sink",
    "Storage",
    "Stored",
    "is_key",
    "open_storage",
]

SCHEMES = ("s3", "gs", "az")


def open_storage(url: str | Path) -> Storage:
    """The storage at a path or URL; nothing is read or written yet.

    Object stores take their credentials and endpoints from the environment, as their own tools do
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME``,
    instance roles, ...).

    Raises:
        InputError: an unknown kind of URL, one with credentials in it, or a name that readers interpret differently.
    """
    if not isinstance(url, str | Path) or not str(url):
        raise InputError(
            f"{url!r:.80} is not a folder or URL. Give the path of a folder, or a URL such as s3://BUCKET/RUN."
        )
    text = str(url)
    if one_slash := re.match(rf"({'|'.join((*SCHEMES, 'file'))}):/(?!/)", text):
        raise InputError(f"{text!r} has only one slash after {one_slash[1]}:; write {one_slash[1]}://BUCKET/RUN.")
    if "://" not in text:
        return FolderStorage(Path(text))
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InputError(
            f"{text!r} is not a valid URL: {error}. Give a folder, or a URL such as s3://BUCKET/RUN."
        ) from None
    if parts.scheme == "file":
        return FolderStorage(Path(parts.path))
    if parts.scheme not in SCHEMES:
        raise InputError(
            f"a run cannot be stored at {parts.scheme}://; give a folder, or a URL that starts with "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}."
        )
    if re.search("[:@]", parts.netloc) or parts.query or parts.fragment:  # a secret may contain a slash, then an @
        raise InputError(
            f"the URL {parts.scheme}://... of the run contains credentials or options, which would end up in logs. "
            "Give the bare URL, and pass credentials through the environment, as for the store's own tools."
        )
    if not re.fullmatch(r"[\w.-]+", parts.netloc):
        raise InputError(f"{text!r} has no bucket; give {parts.scheme}://BUCKET/RUN.")
    if text != text.strip() or re.search(r"\s(/|$)|/\s", parts.path):
        raise InputError(f"{text!r} has a space at the beginning or end of a name; remove it.")
    path = parts.path.rstrip("/")
    if re.search(r"[*\[\]%\\]|//|/\.\.?(/|$)", path):  # readers interpret them differently
        raise InputError(f"{text!r} has *, [, ], %, \\, // or a name of only dots; choose a plain name for the run.")
    return ObjectStorage(f"{parts.scheme}://{parts.netloc}{path}")
