"""A folder as file systems of clusters have it: some calls fail there, in every process that a command starts."""

import os
from pathlib import Path

from preload import compiled


def environment(folder: Path, scratch: Path, **failing: int) -> dict[str, str] | None:
    """The environment in which calls fail below a folder; None where no library can be preloaded.

    Args:
        folder: where they fail.
        scratch: folder for the library.
        failing: the error number by call: ``flock``, ``folder_sync``, ``file_sync``, ``advice`` or ``mode``.
    """
    library = compiled(Path(__file__).with_name("disk.c"), scratch)
    if library is None:
        return None
    numbers = {f"ODD_{name.upper()}": str(number) for name, number in failing.items()}
    return os.environ | numbers | {"ODD_FOLDER": os.path.realpath(folder), "LD_PRELOAD": str(library)}
