"""Commands and code of the documentation's pages, as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from command import Answer

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/start.md", "docs/maintain.md")]
BIN = Path(sys.executable).parent


def block(after: str) -> list[str]:
    """The lines of the first indented block after a heading."""
    return blocks(after)[0]


def blocks(after: str) -> list[list[str]]:
    """The lines of each indented block below a heading."""
    (page,) = (page for page in PAGES if f"\n## {after}\n" in page)
    text = page.split(f"\n## {after}\n", 1)[1].partition("\n## ")[0]
    found = re.findall(r"\n((?:    .*\n|\n)+)", f"{text}\n")
    return [lines for each in found if (lines := [line[4:] for line in each.splitlines() if line])]


def shell(after: str) -> list[str]:
    """The commands below a heading, without comments."""
    return [re.sub(r" +# .*", "", line) for line in block(after)]


def process(line: str, folder: Path) -> Answer:
    """Run a command line in a process of its own."""
    words = shlex.split(line)
    command = [str(BIN / words[0]), *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)
