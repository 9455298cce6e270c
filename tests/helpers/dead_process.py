"""What a process that is gone has left behind."""

import subprocess
import sys


def left_by_a_dead_process(name: str) -> str:
    """The name of the unfinished file of a name, as a process that has ended by now called it."""
    naming = f"import pathlib, fewchannels.files.durable as f; print(f.unfinished(pathlib.Path({name!r})).__enter__())"
    return subprocess.run([sys.executable, "-c", naming], capture_output=True, text=True, check=True).stdout.strip()
