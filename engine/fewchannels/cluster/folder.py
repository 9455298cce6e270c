"""The driver's folder: the base of relative paths in options, settings and manifests, on workers too."""

import os
from contextlib import suppress


def working_folder() -> str:
    """This process's working directory as an absolute path; empty if it has been deleted."""
    with suppress(OSError):
        return os.getcwd()
    return ""


def enter(folder: str) -> None:
    """Change to the driver's folder in this worker, if its machine has such a folder.

    Workers start in the folder in which Ray was started, where ``--out RUN`` would be a different place.

    Args:
        folder: result of :func:`working_folder` in the driver.
    """
    with suppress(OSError):
        os.chdir(folder)
