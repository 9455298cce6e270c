"""Build the documentation site: ``python docs/site/build.py [OUT]``, by default into ``build/site``.

Pages are those of the repository, at their own paths, so that a relative link is the same on a Git host and on the
site; the reference is generated from the code. A warning, a broken link, or anything that a page loads from another
server is an error.
"""

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from check import problems
from pages import ROOT, write
from sphinx.cmd.build import build_main

HERE = Path(__file__).parent


def build(out: Path) -> int:
    """Write the pages beside ``out`` and the site into it; return the exit code.

    Args:
        out: folder of the site; it is replaced.
    """
    source, trees = out.parent / "pages", out.parent / "doctrees"
    for folder in (source, trees, out):
        shutil.rmtree(folder, ignore_errors=True)
    write(source)
    places = [str(source), str(out)]
    code = build_main(["-q", "-W", "--keep-going", "-b", "html", "-d", str(trees), "-c", str(HERE), *places])
    found = [] if code else problems(out)
    sys.stderr.writelines(f"error: {each}\n" for each in found)
    return code or bool(found)


if __name__ == "__main__":
    place = Path(sys.argv[1] if sys.argv[1:] else ROOT / "build" / "site").resolve()
    failed = build(place)
    sys.stderr.write(f"{'not ' if failed else ''}built: {place / 'index.html'}\n")
    sys.exit(failed)
