"""A lock on this machine's network devices: Chromium drops what it is loading when one appears or goes."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = Path(tempfile.gettempdir(), f"fewchannels-network-{os.getuid()}.lock")


@contextmanager
def network(*, changes: bool) -> Iterator[None]:
    """Wait until nobody changes the devices or, to change them, until nobody has a page open.

    Args:
        changes: whether this context changes devices.
    """
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if changes else fcntl.LOCK_SH)
        yield
