"""Print a page to PDF with a Chromium on the PATH."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from fewchannels.errors import FewchannelsError, InputError
from fewchannels.files.durable import write

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_QUIET = (
    "--headless",
    "--no-first-run",
    "--no-pdf-header-footer",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--disable-gpu",
    "--run-all-compositor-stages-before-draw",
    "--virtual-time-budget=120000",
)
_SECONDS = 300


def find_browser() -> str:
    """The path of a Chromium.

    Raises:
        InputError: there is none on the path.
    """
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise InputError(
        f"writing a PDF needs Chromium, and none of {', '.join(BROWSERS)} is on the PATH. Install one, or write "
        "report.html and print it from a browser."
    )


def print_pdf(page: Path, out: Path, browser: str) -> int:
    """Print a page; returns the PDF's size in bytes.

    Args:
        page: the HTML file.
        out: the PDF to write.
        browser: result of :func:`find_browser`.

    Raises:
        FewchannelsError: the browser printed nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "report.pdf"
        # A browser does not start as root in its own sandbox; the page is the project's own, and may load nothing.
        rights = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [browser, *_QUIET, *rights, f"--user-data-dir={folder}/profile", f"--print-to-pdf={printed}"]
        try:
            done = subprocess.run(
                [*command, f"{page.resolve().as_uri()}#print"], capture_output=True, text=True, timeout=_SECONDS
            )
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        except subprocess.TimeoutExpired:
            said = [f"it took more than {_SECONDS} s"]
        if not printed.exists() or not printed.stat().st_size:
            raise FewchannelsError(
                f"{browser} did not print the PDF: {said[0]}. Open {page} in a browser and print it."
            )
        return write(out, printed.read_bytes())
