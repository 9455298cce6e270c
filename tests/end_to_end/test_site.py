"""The documentation site: it builds without a warning, and has a place for everything that can be named."""

import base64
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import fewchannels
from fewchannels.cli import application
from fewchannels.runs.sql.named_queries import queries

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a module of the site's builder by name."""
    monkeypatch.syspath_prepend(SITE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def imported(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        found = __import__(name)
        monkeypatch.delitem(sys.modules, name)
        return found

    return imported


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for tool in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(tool)
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-B", str(SITE / "build.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def page(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def commands() -> list[tuple[str, ...]]:
    app = application()
    alone = [(command.name,) for command in app.registered_commands]
    of_groups = [
        (group.name, command.name or command.callback.__name__)
        for group in app.registered_groups
        for command in group.typer_instance.registered_commands
    ]
    return [*alone, *of_groups]


def test_every_command_has_a_page_with_its_example_and_options(site: Path) -> None:
    index = page(site, "reference/commands/index.html")
    assert len(commands()) > 25
    for words in commands():
        text = page(site, f"reference/commands/{'-'.join(words)}.html")
        assert f'href="{"-".join(words)}.html"' in index
        plain = re.sub(r"<[^>]+>", "", text)
        assert plain.count(f"fewchannels {' '.join(words)}") > 2, words
        assert "--help" in plain
    capture = re.sub(r"<[^>]+>|\s+", " ", page(site, "reference/commands/capture.html"))
    assert re.search(r"--num-inference-steps +int +20 +Number of denoising steps \(1 to 10,000\)", capture)
    assert re.search(r"--manifest +path +required ", capture)
    assert all(re.search(rf"<p>{code}</p>", index) for code in (0, 1, 2, 3, 4, 5)), "every exit code"


def test_every_public_name_has_an_anchor_with_its_docstring(site: Path) -> None:
    for name in fewchannels.__all__:
        value = getattr(fewchannels, name)
        text = page(site, f"reference/python/{name}{'-class' if inspect.isclass(value) else ''}.html")
        anchor = f"module-{value.__name__}" if isinstance(value, ModuleType) else f"fewchannels.{name}"
        assert f'id="{anchor}"' in text
        if inspect.isclass(value) or inspect.isfunction(value):
            first = (inspect.getdoc(value) or "").splitlines()[0].split(":")[0].split("`")[0]
            assert first in re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text)), name
    run = page(site, "reference/python/Run-class.html")
    assert 'id="fewchannels.Run.query"' in run, "inherited ones too"
    assert "One row per finished sample, without the images: see" in re.sub(r"\s+", " ", run), "a property's whole text"


def test_every_table_and_query_has_an_anchor_with_its_columns(site: Path) -> None:
    tables, named = page(site, "reference/tables.html"), page(site, "reference/queries.html")
    for path in (ROOT / "schemas").glob("*.yaml"):
        section = tables.split(f'<section id="{path.stem.replace("_", "-")}"')[1].split("<section")[0]
        for column in yaml.safe_load(path.read_text(encoding="utf-8"))["columns"]:
            assert f'<span class="pre">{column["name"]}</span>' in section, (path.stem, column)
    for query in queries().values():
        section = named.split(f'<section id="{query.name.replace("_", "-")}"')[1].split("<section")[0]
        for each in (*query.parameters, *query.columns):
            assert f'<span class="pre">{each.name}</span>' in section, (query.name, each)


def test_every_page_of_the_docs_is_there(site: Path) -> None:
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("schemas/*.md"), *ROOT.glob("docs/tutorials/*.ipynb")]
    names = [str(path.relative_to(site)).lower() for path in site.rglob("*.html")]
    assert len(set(names)) == len(names), "also on a disk that ignores case"
    missing = [path for path in pages if not (site / path.relative_to(ROOT)).with_suffix(".html").exists()]
    assert not missing
    home = page(site, "index.html")
    assert all(f">{caption}<" in home for caption in ("Start", "Concepts", "How-to guides", "Reference", "Trust"))


def test_nothing_is_loaded_from_another_server(site: Path) -> None:
    loaded = r"<(?:script|img|link|iframe|source)\b[^>]*(?:src|href)=[\"'](?:https?:)?//[^>]*>"
    for path in site.rglob("*.html"):
        outside = re.findall(loaded, path.read_text(encoding="utf-8"))
        assert not outside, path
    assert not [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text())]


def test_the_check_finds_what_is_broken(tmp_path: Path, module: Any) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"></p><a href="#here"></a><a href="b.html#there"></a><a href="https://example.org/"></a>'
        '<a href="gone.html"></a><a href="b.html#gone"></a><script src="https://example.org/x.js"></script>'
        '<link rel="stylesheet" href="//example.org/x.css"><img src="data:image/png;base64,AA">'
    )
    (tmp_path / "b.html").write_text('<p id="there" style="background: url(https://example.org/b.png)"></p>')
    (tmp_path / "c.css").write_text("@import 'https://example.org/font.css';")
    assert module("check").problems(tmp_path) == [
        "a.html loads https://example.org/x.js from another server",
        "a.html loads //example.org/x.css from another server",
        "a.html links to gone.html, which is not there",
        "a.html links to b.html#gone, which is not there",
        "b.html loads https://example.org/b.png from another server",
        "c.css loads https://example.org/font.css from another server",
    ]


def test_a_notebook_becomes_a_page_with_its_stored_outputs(tmp_path: Path, module: Any) -> None:
    image = base64.b64encode(b"\x89PNG").decode()
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n", "\x1b[31mtwo\x1b[0m\n"]},
        {"output_type": "display_data", "data": {"image/png": image, "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": ["<table></table>"], "text/plain": "1"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# A study\n", "\n", "What it shows."]},
        {"cell_type": "code", "source": "print('```')", "outputs": outputs},
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    path = tmp_path / "study.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    text, images = module("notebooks").page_of(path)
    assert text.startswith("# A study\n\n*A notebook: ")
    assert "What it shows.\n\n````python\nprint('```')\n````\n\n```text\none\ntwo\n```\n\n" in text
    assert "<table></table>" in text
    assert images == {"study-1-1.png": b"\x89PNG"}
    assert "](study-1-1.png)" in text
