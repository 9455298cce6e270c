"""A document as one HTML file that needs no network: its style, interactive figures, and their script."""

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fewchannels.analyses.document import Block, Document, Figure, Gallery, Part, described, number
from fewchannels.analyses.figures.drawings import Dots, Images, Landscape, Panels
from fewchannels.analyses.figures.interactive import as_json, dark_colors, data_uri, interactive, plotly_script
from fewchannels.analyses.figures.still import still
from fewchannels.views.report.gallery import SIDE, alternative

_HEADROOM = 36  # pixels above the axes, for headings of panels; the title is in the page
Progress = Callable[[str, int, int], None]


def as_html(document: Document, on_progress: Progress) -> str:
    """The page.

    Every text is escaped where it is put; data for figures is JSON in which no text can end its script. A content
    security policy allows the page's own two scripts, by their hash, and no network.

    Args:
        document: content of the report.
        on_progress: called with the activity, the number done, and the total.
    """
    n_figures, done = sum(len(part.figures()) for part in document.parts), 0
    data: list[tuple[str, Markup]] = []

    def drawn(figure: Figure, part_id: str) -> dict[str, Any]:
        nonlocal done
        made = _figure(figure, part_id)
        if made["data"] is not None:
            data.append((made["id"], made.pop("data")))
        done += 1
        on_progress("drawing figures", done, n_figures)
        return made

    parts = [_part(part, f"part-{i}", drawn) for i, part in enumerate(document.parts, start=1)]
    plotly, script = plotly_script().replace("</script", "<\\/script"), _resource("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_resource("page.html.jinja")).render(
        title=document.title,
        version=version("fewchannels"),
        style=_trusted(_resource("page.css")),
        policy=_policy([plotly, script]),
        parts=parts,
        figures=data,
        dark=_trusted(as_json(dark_colors())),
        plotly=_trusted(plotly),
        script=_trusted(script),
    )


def _trusted(text: str) -> Markup:
    """Mark the project's own text, or JSON that no text in it can escape, as safe to insert unchanged."""
    return Markup(text)  # noqa: S704


def _policy(scripts: Iterable[str]) -> str:
    """Content security policy: these scripts, styles, and embedded images."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


@cache
def _resource(name: str) -> str:
    return files("fewchannels.views.report").joinpath(name).read_text(encoding="utf-8")


def _part(part: Part, part_id: str, drawn: Callable[[Figure, str], dict[str, Any]]) -> dict[str, Any]:
    sections = [
        {"id": f"{part_id}-{i}", "heading": section.heading, "blocks": list(_blocks(section.blocks, part_id, drawn))}
        for i, section in enumerate(part.sections, start=1)
    ]
    return {"id": part_id, "kind": part.kind, "title": part.title, "place": part.place, "sections": sections}


def _blocks(
    blocks: Sequence[Block], part_id: str, drawn: Callable[[Figure, str], dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Blocks for the template: a section's figures together, with less important ones collapsed."""
    figures = [block for block in blocks if isinstance(block, Figure)]
    if figures:
        made = [(figure, drawn(figure, part_id)) for figure in figures]
        yield {
            "kind": "Figures",
            "shown": [each for figure, each in made if not figure.less_important],
            "folded": [each for figure, each in made if figure.less_important],
        }
    for block in blocks:
        if isinstance(block, Gallery):
            shown = [
                {
                    "rank": each.rank,
                    "value": number(each.value),
                    "about": each.about,
                    "prompt": each.prompt,
                    "sample_id": each.sample_id,
                    "images": [_image(caption, each.prompt, pixels) for caption, pixels in each.images],
                }
                for each in block.shown
            ]
            yield {"kind": "Gallery", "id": f"{part_id}-{block.name}", "of": block, "shown": shown}
        elif not isinstance(block, Figure):
            yield {"kind": type(block).__name__, "of": block}


def _figure(figure: Figure, part_id: str) -> dict[str, Any]:
    drawing = figure.drawing
    about = {"id": f"{part_id}-{figure.name}", "title": drawing.title, "alt": described(drawing), "how": figure.how}
    if isinstance(drawing, Images):  # images in a table have labels that can be read, and fit a narrow screen
        return about | {"images": _rows(drawing), "columns": drawing.columns, "data": None}
    shown = interactive(drawing)
    shown.update_layout(title_text="", margin_t=_HEADROOM)
    return about | {
        "images": None,
        "wide": isinstance(drawing, Panels | Dots),
        "height": int(shown.layout.height),
        # A surface does not print: its graphics context is not kept.
        "still": data_uri(still(drawing, ["png"])["png"]) if isinstance(drawing, Landscape) else None,
        "data": _trusted(as_json(shown)),
    }


def _rows(drawing: Images) -> list[dict[str, Any]]:
    """A row for each label; a failed or missing image leaves its cell empty."""
    title = drawing.title.split("\n")[0]
    return [
        {
            "label": label,
            "cells": [
                _image(column, f"{label}, {title}", pixels if pixels.size > 3 else None)
                | {"failed": pixels.size <= 3 and bool((pixels < 255).all())}
                for column, pixels in zip(drawing.columns, row, strict=True)
            ],
        }
        for label, row in zip(drawing.labels, drawing.rows, strict=True)
    ]


def _image(caption: str, prompt: str, pixels: np.ndarray | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"caption": caption, "alt": alternative(caption, prompt, pixels), "source": None}
    if pixels is not None:
        buffer = io.BytesIO()
        # Small images and token maps are exact; photographs at full size would not fit in a page.
        lossless = max(pixels.shape) <= SIDE // 4
        Image.fromarray(pixels).save(buffer, "WEBP", lossless=lossless, quality=82, method=4)
        shown |= {"source": data_uri(buffer.getvalue(), "webp"), "width": pixels.shape[1], "height": pixels.shape[0]}
    return shown
