"""What the code says about itself, as pages: commands, Python, tables and named queries."""

import inspect
import re
from pathlib import Path, PurePosixPath
from types import ModuleType

import commands
import yaml

import fewchannels
from fewchannels.runs.sql.named_queries import Query, queries


def reference(root: Path) -> dict[PurePosixPath, str]:
    """All generated pages by their paths.

    Args:
        root: the repository.
    """
    folders = {"commands": commands.pages(), "python": _python()}
    pages = {f"{folder}/{name}": text for folder, named in folders.items() for name, text in named.items()}
    pages |= {"tables.md": _tables(root), "queries.md": _queries()}
    return {PurePosixPath("reference") / name: text for name, text in pages.items()}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _begun(text: str) -> str:
    return text[:1].upper() + _cell(text[1:])


def _python() -> dict[str, str]:
    pages, rows, places = {}, {}, {}
    for name in sorted(fewchannels.__all__, key=lambda name: (not name[0].isalpha(), name.lower())):
        value = getattr(fewchannels, name)
        places[name] = f"{name}-class" if inspect.isclass(value) else name  # some disks hold Edit and edit for one name
        if isinstance(value, ModuleType):
            directive = f".. automodule:: {value.__name__}\n   :members:"
        elif inspect.isclass(value):
            directive = (
                f".. autoclass:: fewchannels.{name}\n   :members:\n   :inherited-members: Exception, tuple, dict"
            )
        elif callable(value):
            directive = f".. autofunction:: fewchannels.{name}"
        else:
            directive = f".. py:data:: fewchannels.{name}\n   :type: {type(value).__name__}"
        title = name.replace("_", "\\_")
        pages[f"{places[name]}.md"] = f"# {title}\n\n```{{eval-rst}}\n{directive}\n```\n"
        about = (inspect.getdoc(value) or "").partition("\n\n")[0] if callable(value) else "The installed version."
        rows[name] = _cell(re.sub(r":\w+:`~?([^`]+)`", r"`\1`", about).replace("``", "`"))
    lines = [
        "# Python\n",
        "`import fewchannels as fc`. The [guide](../../docs/python.md) shows how these names work together.\n",
        "| | |\n|---|---|",
        *(f"| [`{name}`]({places[name]}.md) | {about} |" for name, about in rows.items()),
        "\n```{toctree}\n:hidden:\n",
        *(f"{name} <{places[name]}.md>" for name in rows),
        "```\n",
    ]
    return pages | {"index.md": "\n".join(lines)}


def _tables(root: Path) -> str:
    parts = [
        "# Tables\n",
        "What SQL, and every Parquet reader, finds in a run, a sweep, a comparison or a result. "
        "[The run on disk](../schemas/store.md) says where the files are. Tables of a result are called `LABEL_TABLE`; "
        "the label is the name of the analysis unless another was given.\n",
    ]
    for path in sorted((root / "schemas").glob("*.yaml")):
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        key = ", ".join(f"`{each}`" for each in table["key"])
        parts.append(
            f"## {table['table']}\n\n{_begun(table['grain'])}. Key: {key}. Written by {_cell(table['written_by'])}."
        )
        parts.append("\n| column | type | null | content |\n|---|---|---|---|")
        for column in table["columns"]:
            null = "may be" if column["nullable"] else "never"
            parts.append(f"| `{column['name']}` | `{column['type']}` | {null} | {_cell(column['doc'])} |")
        parts.append("")
    return "\n".join(parts)


def _queries() -> str:
    text = (
        "# Named queries\n\n`fewchannels query RUN NAME --param name=value`, or `run.query(NAME, name=value)`. "
        "`fewchannels query --list` lists them in a terminal.\n"
    )
    return "\n".join([text, *map(_query, queries().values())])


def _query(query: Query) -> str:
    needs = "".join(f", after `fewchannels analyze {each}`" for each in query.needs if query.of == "run")
    parts = [f"## {query.name}\n\n{_cell(query.purpose)} Reads a {query.of}{needs}. {_begun(query.grain)}.\n"]
    if query.parameters:
        parts.append("| parameter | type | default | |\n|---|---|---|---|")
        for each in query.parameters:
            among = f" (one of {', '.join(f'`{choice}`' for choice in each.choices)})" if each.choices else ""
            default = str(each.default).lower() if isinstance(each.default, bool) else each.default
            parts.append(f"| `{each.name}` | {each.type.__name__} | `{default}` | {_cell(each.doc)}{among} |")
        parts.append("")
    parts.append("| column | unit | content |\n|---|---|---|")
    parts += [f"| `{each.name}` | {_cell(each.unit)} | {_cell(each.doc)} |" for each in query.columns]
    body = re.sub(r"\A(--.*\n)+", "", query.sql).rstrip()  # without the header, which is the text above
    return "\n".join([*parts, f"\n<details>\n<summary>SQL</summary>\n\n```sql\n{body}\n```\n\n</details>\n"])
