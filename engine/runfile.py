"""``run.json``: what a run is. Written once, when the run begins."""

import json
from pathlib import Path
from typing import Any

from engine.errors import InputError, StorageError

NAME = "run.json"
FORMAT_VERSION = 1


def read_description(run: Path) -> dict[str, Any]:
    """``run.json`` of a run.

    Raises:
        InputError: the folder holds no run, or one of a newer format.
        StorageError: the file is damaged.
    """
    path = run / NAME
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{str(run)!r} holds no run: it has no {NAME}. Make one with fewchannels capture.") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from None
    if description.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(
            f"{str(run)!r} has format_version {description['format_version']}; this version of fewchannels reads up to "
            f"{FORMAT_VERSION}. Upgrade fewchannels."
        )
    return description
