"""A stored notebook as a page: its text, its code, and the outputs that are stored in it. Nothing is executed."""

import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def page_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """Convert a notebook to Markdown.

    Args:
        path: the notebook, of nbformat 4.

    Returns:
        The page, and the images that it shows by their file names.
    """
    images: dict[str, bytes] = {}
    parts = [f"*A notebook: run it from `{path.parent.parent.name}/{path.parent.name}/{path.name}`.*"]
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        text = _text(cell["source"]).strip()
        if cell["cell_type"] == "markdown" and text:
            parts.append(text)
        elif cell["cell_type"] == "code" and text:
            parts.append(_fenced(text, "python"))
            parts += [_output(each, f"{path.stem}-{i}-{j}", images) for j, each in enumerate(cell["outputs"])]
    if len(parts) > 1:  # the title first
        title, _, rest = parts[1].partition("\n")
        parts[:2] = [title, parts[0], rest.strip()]
    return "\n\n".join(part for part in parts if part) + "\n", images


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _output(output: dict[str, Any], name: str, images: dict[str, bytes]) -> str:
    """The richest form of an output that a page can show without scripts."""
    if output["output_type"] == "stream":
        return _fenced(_ESCAPES.sub("", _text(output["text"])), "text")
    if output["output_type"] == "error":
        return _fenced(_ESCAPES.sub("", "\n".join(output["traceback"])), "text")
    data = output["data"]
    if "image/png" in data:
        images[f"{name}.png"] = b64decode(_text(data["image/png"]))
        return f"![Output of the cell above]({name}.png)"
    if "text/html" in data and "<script" not in (html := _text(data["text/html"])):
        return f'```{{raw}} html\n<div class="output">{html}</div>\n```'
    return _fenced(_text(data.get("text/plain", "")), "text")
