"""Small libraries in C that are compiled in the tests, to be preloaded into processes."""

import os
import shutil
import subprocess
from pathlib import Path


def compiled(source: Path, folder: Path) -> Path | None:
    """Compile a source into a folder; None where there is no C compiler, or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or os.uname().sysname != "Linux":
        return None
    library = folder / f"{source.stem}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library
