"""The explorer as a command of its own, for as long as a test needs it."""

import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def explorer(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the layout of its start page. One that does not answer within two minutes is killed.

    Args:
        command: the command line, without its port.
        folder: where it is started.
        environment: of the process; None for this one's.
    """
    words = [*command, "--no-browser", "--port", "0"]
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        patience = threading.Timer(120, process.kill)
        patience.start()
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(f"{address}_dash-layout", timeout=60) as answer:
                layout = answer.read().decode()
            patience.cancel()
            yield process, layout
        finally:
            patience.cancel()
            process.kill()
