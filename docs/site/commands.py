"""Reference of the commands, from the application itself: one page per command."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import typer
from typer._click.core import Context

from fewchannels import errors
from fewchannels.cli import application

Named = tuple[tuple[str, ...], Any]


def commands() -> Iterator[Named]:
    """Every command that does something, by its words, in the order of the help."""
    yield from _below((), typer.main.get_command(application()))


def _below(words: tuple[str, ...], command: Any) -> Iterator[Named]:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name in command.list_commands(None):
        yield from _below((*words, name), command.commands[name])


def pages() -> dict[str, str]:
    """The pages by file name: an index, and one per command."""
    whole = typer.main.get_command(application())
    found, index = {}, ["# Commands\n", _sentences(whole.help), _EXIT_CODES, _exit_codes(), _OPTIONS]
    every = list(commands())
    for panel, group in itertools.groupby(every, lambda each: whole.commands[each[0][0]].rich_help_panel):
        index.append(f"## {panel}\n\n| command | |\n|---|---|")
        for words, command in group:
            name = "-".join(words)
            found[f"{name}.md"] = _page(words, command)
            index.append(f"| [`{' '.join(words)}`]({name}.md) | {_sentences(_parts(command)[0][0])} |")
        index.append("")
    names = "\n".join(f"{' '.join(words)} <{'-'.join(words)}.md>" for words, _ in every)
    found["index.md"] = "\n".join([*index, "```{toctree}", ":hidden:\n", names, "```", ""])
    return found


_EXIT_CODES = """
`fewchannels --help` prints the same in a terminal, and `fewchannels --version` the version. Results go to stdout,
everything else to stderr.

## Exit codes

| code | meaning |
|---|---|
| 0 | Success. |"""

_OPTIONS = """| 130, 143 | The command was interrupted (Ctrl+C) or terminated; finished work is kept. |
"""


def _exit_codes() -> str:
    """Rows of the table of exit codes, one per group of errors."""
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and "exit_code" in vars(each)]
    lines = [(each.exit_code, (each.__doc__ or "").partition("\n")[0]) for each in kinds]
    return "\n".join(f"| {code} | {_sentences(doc)} |" for code, doc in sorted(lines))


def _parts(command: Any) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's help, and the examples in it."""
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    examples = [part.partition(":")[2].strip() for part in paragraphs if re.match("Examples?:", part)]
    return [part for part in paragraphs if not re.match("Examples?:", part)], examples


def _page(words: tuple[str, ...], command: Any) -> str:
    name = f"fewchannels {' '.join(words)}"
    context = Context(command, info_name=name, help_option_names=["-h", "--help"])
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    paragraphs, examples = _parts(command)
    parts = [f"# {name}\n", f"```text\n{usage}\n```\n", *(f"{_sentences(each)}\n" for each in paragraphs)]
    if examples:
        parts.append("Example:\n\n```bash\n" + "\n".join(examples) + "\n```\n")
    panels: dict[str, list[str]] = {}
    for each in command.get_params(context):
        if not getattr(each, "hidden", False):
            is_argument = each.param_type_name == "argument"
            panel = getattr(each, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
            panels.setdefault(panel, []).append(_row(each, context))
    for panel, rows in panels.items():
        head = "argument" if panel == "Arguments" else "option"
        parts.append(f"## {panel}\n\n| {head} | value | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    parts.append("## Exit codes\n\n0 for success; the others are [those of every command](index.md#exit-codes).\n")
    return "\n".join(parts)


def _row(parameter: Any, context: Context) -> str:
    """A parameter's row: its names, the value that it takes, its default, and its help with the range."""
    spelled, about = parameter.get_help_record(context)
    names, _, value = spelled.partition(" <")
    if parameter.param_type_name == "option":
        names, value = spelled, ""
        if found := re.match(r"(.*?--[\w-]+(?:, -\w)?) (<.*>|[A-Z]+)$", spelled):
            names, value = found.groups()
    limits = (getattr(parameter, "min", None), getattr(parameter, "max", None))
    if limits != (None, None):
        value = f"<{'int' if float(limits[0] or 0).is_integer() else 'float'}>"
    about = re.sub(r"\s+\[[^\]]*\]$", "", about)
    if limits[0] is not None:
        about = f"{about.removesuffix('.')} (at least {limits[0]})."
    value = value.strip("<> ").replace("|", "\\|")
    return f"| `{names}` | {f'`{value}`' if value else ''} | {_default(parameter)} | {_sentences(about)} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown, default = parameter.show_default, parameter.default
    if isinstance(shown, str):
        return _sentences(shown)
    if default in (None, False, ()) or not shown:
        return ""
    return f"`{default if not hasattr(default, 'value') else default.value}`"


def _sentences(text: str | None) -> str:
    """A text of the help in Markdown: nothing in it is markup but code, and options are code."""
    escaped = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join((text or "").split()))
    escaped = re.sub(r"\\`\\`(.+?)\\`\\`", lambda found: "`" + found[1].replace("\\", "") + "`", escaped)
    options = r"(?<![\w\\-])--[a-z][\w-]*"
    return re.sub(options, lambda found: f"`{found[0]}`", escaped)
