"""Write a document as Markdown, with its figures as PNG files in a folder, for a paper or a repository."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from fewchannels.analyses.document import (
    Block,
    Document,
    Facts,
    Figure,
    Findings,
    Gallery,
    How,
    Missing,
    Table,
    Warnings,
    described,
    number,
)
from fewchannels.analyses.figures.still import still
from fewchannels.errors import StorageError
from fewchannels.files.durable import write
from fewchannels.views.report.gallery import alternative

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$>^-])")
Progress = Callable[[str, int, int], None]


def write_markdown(document: Document, out: Path, on_progress: Progress) -> int:
    """Write ``report.md`` and the images that it names, in ``report_figures/``, the text last.

    Args:
        document: content of the report.
        out: the Markdown file.
        on_progress: called with the activity, the number done, and the total.

    Returns:
        Size of all written files in bytes.

    Raises:
        StorageError: writing failed.
    """
    folder = out.with_name(f"{out.stem}_figures")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {str(folder)!r}: {error}") from None
    n_figures = sum(len(part.figures()) for part in document.parts)
    n_bytes, n_done = 0, 0
    lines = [f"# {plain(document.title)}", ""]
    for i, part in enumerate(document.parts, start=1):
        lines += [
            f"## {plain(part.kind.capitalize())}: {plain(part.title)}",
            "",
            plain(part.place),
            "",
        ]
        for section in part.sections:
            lines += [f"### {plain(section.heading)}", ""]
            for block in section.blocks:
                prefix = f"part{i}_"
                text, images = _block(block, folder.name, prefix)
                n_done += isinstance(block, Figure)
                on_progress("drawing figures", n_done, n_figures)
                for name, data in images.items():
                    n_bytes += write(folder / name, data)
                lines += text
    return n_bytes + write(out, "\n".join(lines).encode())


def plain(text: str) -> str:
    """Escape a text so that Markdown shows it literally: on one line, without HTML and markup."""
    shown = _SPECIAL.sub(r"\\\1", " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;"))
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", shown)


def _block(block: Block, folder: str, prefix: str) -> tuple[list[str], dict[str, bytes]]:
    """Lines, and the images that they name."""
    match block:
        case Warnings():
            return [line for text in block.texts for line in (f"> **Warning.** {plain(text)}", "")], {}
        case Facts():
            return _table(["", ""], block.rows), {}
        case Findings():
            lines = [plain(block.about), ""]
            for n, each in enumerate(block.each, start=1):
                lines += [f"{n}. {plain(each.text)}", ""]
                lines += _small_table(each.table) if each.table else []
                lines += _commands(each.how, "How to reproduce these numbers")
            return lines, {}
        case Figure():
            name = f"{prefix}{block.name}.png"
            title = block.drawing.title.split("\n")
            lines = [_image(described(block.drawing), folder, name), "", f"**{plain(title[0])}**"]
            lines += [f"{plain(line)}" for line in title[1:]]
            lines += ["", *_commands(block.how, "How to reproduce this figure")]
            return lines, {name: still(block.drawing, ["png"])["png"]}
        case Gallery():
            return _gallery(block, folder, prefix)
        case Missing():
            why = f": {plain(block.why)}" if block.why else ":"
            return [f"{plain(block.what)}{why}", "", *(line for how in block.how for line in _fenced(how))], {}


def _gallery(block: Gallery, folder: str, prefix: str) -> tuple[list[str], dict[str, bytes]]:
    title = block.title.split("\n")
    lines, images, body = [f"**{plain(title[0])}**", *(plain(line) for line in title[1:]), ""], {}, []
    for n, each in enumerate(block.shown):
        cells = []
        for i, (caption, pixels) in enumerate(each.images):
            about = alternative(caption, each.prompt, pixels)
            if pixels is None:
                cells.append(plain(about))
                continue
            name = f"{prefix}{block.name}_{n}_{i}.png"
            images[name] = _png(pixels)
            cells.append(f"{_image(about, folder, name)} {plain(caption)}")
        body.append([f"{each.rank}: {number(each.value)}", " ".join(cells), plain(f"{each.prompt} ({each.about})")])
    lines += ["| value | images | prompt |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in body), ""]
    return [*lines, *_commands(block.how, "How to list these samples")], images


def _png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    if max(image.size) < 128:  # a token map of a few pixels would be shown too small
        factor = 128 // max(image.size)
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _image(alt: str, folder: str, name: str) -> str:
    return f"![{plain(alt)}]({quote(folder)}/{quote(name)})"


def _commands(how: Sequence[How], label: str) -> list[str]:
    return [f"{label}:", "", *(line for each in how for line in _fenced(each))] if how else []


def _fenced(how: How) -> list[str]:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", how.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{'sh' if how.language == 'shell' else how.language}", how.text, fence, ""]


def _small_table(table: Table) -> list[str]:
    return [f"{plain(table.caption)}:", "", *_table(table.heads, table.rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[plain(head) for head in heads], ["---"] * len(heads), *([plain(cell) for cell in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
