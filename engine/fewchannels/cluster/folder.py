"""The driver's folder: what relative paths of options, settings and manifests start from, on workers too."""

import os
from contextlib import suppress


def working_folder() -> str:
    """This process's, absolute; empty if it has been deleted."""
    with suppress(OSError):
        return os.getcwd()
    return ""


def enter(folder: str) -> None:
    """Make the driver's folder that of this worker, where its machine has such a folder.

    Workers start in the folder in which somebody started Ray, where ``--out RUN`` would be another place.

    Args:
        folder: result of :func:`working_folder` in the driver.
    """
    with suppress(OSError):
        os.chdir(folder)
