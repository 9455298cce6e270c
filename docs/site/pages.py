"""The pages of the site: the repository's Markdown and notebooks at their own paths, and what the code generates."""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import yaml
from notebooks import page_of
from reference import reference

ROOT = Path(__file__).parents[2]
NAVIGATION = Path(__file__).with_name("navigation.yaml")
SOURCES = ("*.md", "docs/**/*.md", "schemas/*.md", "benchmarks/*.md", "engine/fewchannels/demo/*.md")
IMAGES = ("docs/**/*.png", "engine/fewchannels/demo/*.png")
_LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".json": "json", ".sql": "sql"}
_SHOWN = {".md", ".ipynb", *_LANGUAGES}
_LINK = re.compile(r"(?<!!)(\[(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")

Pages = dict[PurePosixPath, str | bytes]


def write(folder: Path) -> None:
    """Write every page and image.

    Args:
        folder: an empty folder, or none.
    """
    for name, content in _pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _pages() -> Pages:
    pages: Pages = {_relative(path): path.read_bytes() for pattern in IMAGES for path in ROOT.glob(pattern)}
    generated = reference(ROOT)
    linked: set[PurePosixPath] = set()
    texts = {_relative(path): path.read_text(encoding="utf-8") for pattern in SOURCES for path in ROOT.glob(pattern)}
    for path in ROOT.glob("docs/tutorials/*.ipynb"):
        texts[_relative(path)], images = page_of(path)
        pages |= {_relative(path).parent / name: content for name, content in images.items()}
    for name, text in texts.items():
        pages[_page_of(name)] = _LINK.sub(_to_page(name, linked), _with_titles(text))
    for name in sorted(linked - texts.keys()):
        pages[_page_of(name)] = _shown(name)
    pages |= generated
    home = PurePosixPath("index.md")
    pages[home] = f"{pages[home]}\n{_navigation(pages)}"
    return pages


def _relative(path: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(ROOT))


def _page_of(name: PurePosixPath) -> PurePosixPath:
    """The page that shows a file or a folder of the repository."""
    if name.name == "README.md" or (ROOT / name).is_dir():
        return (name.parent if name.name == "README.md" else name) / "index.md"
    if name.suffix == ".ipynb":
        return name.with_suffix(".md")
    return name if name.suffix == ".md" else name.with_name(f"{name.name}.md")


def _to_page(name: PurePosixPath, linked: set[PurePosixPath]) -> Callable[[re.Match], str]:
    """A function that points a link of a file to the page of what it names, and notes what has no page yet."""

    def changed(link: re.Match) -> str:
        before, target, after = link.groups()
        path = PurePosixPath(os.path.normpath(name.parent / target))
        if path.suffix in (".yaml", ".sql") and str(path.parent) in _SECTIONS:
            return f"{before}{os.path.relpath(_SECTIONS[str(path.parent)], _page_of(name).parent)}#{path.stem})"
        if not (ROOT / path).exists():
            return link[0]
        if (ROOT / path).is_dir():
            files = [each for each in (ROOT / path).iterdir() if each.suffix in _SHOWN]
            if not files:
                return before[1:-2]
            linked.update({path, *map(_relative, files)})
        else:
            linked.add(path)
        return f"{before}{os.path.relpath(_page_of(path), _page_of(name).parent)}{after}"

    return changed


def _shown(name: PurePosixPath) -> str:
    """A page with the text of a file, or with the list of a folder."""
    path = ROOT / name
    if path.is_dir():
        titles = [(each, _title(each)) for each in sorted(path.iterdir()) if each.suffix in _SHOWN]
        rows = [f"- [{title}]({_page_of(_relative(each)).name})" for each, title in titles]
        names = [f"{title} <{_page_of(_relative(each)).name}>" for each, title in titles]
        return "\n".join([f"{_ORPHAN}# {_FOLDERS.get(str(name), f'`{name}`')}\n", *rows, "", _toctree(names), ""])
    code = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return f"{_ORPHAN}{code}"
    fence = "`" * (max(map(len, re.findall("`+", code)), default=2) + 1)
    return f"{_ORPHAN}# `{name}`\n\n{fence}{_LANGUAGES.get(name.suffix, 'text')}\n{code}{fence}\n"


_SECTIONS = {"schemas": "reference/tables.md", "queries": "reference/queries.md"}
"""Folders whose files each have a section of one page."""
_ORPHAN = "---\norphan: true\n---\n\n"  # it may be in no menu
_FOLDERS = {"docs/design": "Decisions", "docs/cluster": "Configurations of clusters"}


def _title(path: Path) -> str:
    if path.suffix in _LANGUAGES or not path.suffix:
        return path.name
    text = page_of(path)[0] if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("# ")


def _with_titles(text: str) -> str:
    """Code blocks with a title in Sphinx's form of them."""
    fence = re.compile(r"^( *)```(\w+) title=\"([^\"]+)\"\n", re.MULTILINE)
    return fence.sub(r"\1```{code-block} \2\n\1:caption: \3\n\n", text)


def _navigation(pages: Pages) -> str:
    """The site's menu, as hidden tables of contents at the end of the home page."""
    menu = yaml.safe_load(NAVIGATION.read_text(encoding="utf-8"))
    parts = []
    for caption, patterns in menu.items():
        found = [name for each in patterns for name in sorted(pages) if name.match(each)]
        names = [str(name.with_suffix("")) for name in found if name.name != "index.md" or str(name) in patterns]
        if names:
            parts.append(_toctree(names, f":caption: {caption}\n"))
    return "\n".join(parts)


def _toctree(names: list[str], options: str = "") -> str:
    return "\n".join(["```{toctree}", f":hidden:\n{options}", *names, "```", ""])
