"""Settings of Sphinx. It runs on the pages that ``build.py`` writes, not on this folder."""

import ast
import re
from importlib.metadata import version as version_of
from typing import Any

from docutils import nodes
from sphinx.ext.napoleon import GoogleDocstring

project = "fewchannels"
version = release = version_of("fewchannels")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

myst_heading_anchors = 4
smartquotes = False  # two hyphens are an option's
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]  # a parameter of a query, $top, is in no dialect

autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Keywords of all edits", "params_style")]
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"fewchannels {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_show_sourcelink = html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

_SHELL = re.compile(r"(fewchannels|python|python3\.11|pip|make|pytest|ray|ssh|sbatch|source|\.venv/\S+|\$) ")


def _language(code: str) -> str:
    """The language of an indented block, which Markdown cannot name."""
    if _SHELL.match(code):
        return "console" if code.startswith("$ ") else "bash"
    try:
        ast.parse(code)
    except SyntaxError:
        return "yaml" if re.match(r"\w+: ?.*\n( |- )", code) else "text"
    return "python" if re.search(r"[=(]|^import ", code) else "text"


def _mend(app: Any, tree: nodes.document) -> None:
    """Name the languages of indented blocks, and put a colon after a parameter's name in place of two hyphens."""
    for text in list(tree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(": "))
    for block in tree.findall(nodes.literal_block):
        if block.get("language") in (None, "none", "default"):
            block["language"] = _language(block.astext())


_WHOLE: dict[str, list[str]] = {}


def _read_whole(app: Any, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Read a property's docstring as a function's: of others, Napoleon takes what precedes a colon as the type."""
    if what in ("attribute", "data", "property"):
        _WHOLE[name] = GoogleDocstring(list(lines), app.config, app, "function", name, value, options).lines()


def _put_back(app: Any, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    lines[:] = _WHOLE.pop(name, lines)


def setup(app: Any) -> None:
    """Register what Sphinx calls."""
    app.connect("autodoc-process-docstring", _read_whole, priority=100)  # Napoleon has 500
    app.connect("autodoc-process-docstring", _put_back, priority=900)
    app.connect("doctree-read", _mend)
