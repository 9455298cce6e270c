"""The code blocks of docs/recipes.md: which file each belongs to, and where in it.

A fence names its file: ```` ```python title="PATH" ````. That is a new file, unless a place in an old one follows:
``after="..."`` or ``before="..."`` the only line that begins so, ``replace="..."`` that line, ``at="end"`` of the file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"
_BLOCK = re.compile(
    r'^ *```\w+ title="(?P<path>[^"]+)"(?: (?P<how>\w+)="(?P<line>(?:[^"\\]|\\.)*)")?\n(?P<code>.*?)^ *```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        recipe: heading that it is below.
        path: of its file, from the root.
        how: ``new``, ``after``, ``before``, ``replace`` or ``at``.
        line: beginning of the line that it stands at; ``end`` for the end of the file.
        code: with a line feed at the end.
    """

    recipe: str
    path: str
    how: str
    line: str
    code: str

    def put(self, root: Path) -> None:
        """Do what a reader would.

        Args:
            root: of a checkout.
        """
        path = root / self.path
        if self.how == "new":
            assert not path.exists(), f"{self.path} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.code, encoding="utf-8")
            return
        text = path.read_text(encoding="utf-8")
        if self.how == "at":
            path.write_text(f"{text}\n\n{self.code}", encoding="utf-8")
            return
        lines = text.splitlines(keepends=True)
        (at,) = (i for i, line in enumerate(lines) if line.startswith(self.line))
        lines[at + (self.how == "after") : at + (self.how != "before")] = [self.code]
        path.write_text("".join(lines), encoding="utf-8")


def blocks() -> Iterator[Block]:
    """Every block with a title, in order."""
    for part in re.split(r"^## ", RECIPES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        recipe = part.partition("\n")[0]
        for found in _BLOCK.finditer(part):
            indent = re.match(" *", found[0])[0]
            code = "".join(line.removeprefix(indent) for line in found["code"].splitlines(keepends=True))
            line = (found["line"] or "").replace('\\"', '"')
            yield Block(recipe, found["path"], found["how"] or "new", line, code)
