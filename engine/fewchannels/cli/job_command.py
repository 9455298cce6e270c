"""A command to run on a cluster, parsed as it will be parsed there, with the local files that it reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import typer

from fewchannels.errors import InputError, unknown
from fewchannels.files.durable import expanded

_NOT_THERE = ("submit", "status", "logs", "stop")
_PLACES = ("out", "output", "run", "runs", "run_a", "run_b", "sweep", "places")  # runs, and outputs
_MODELS = ("model", "source")  # a folder or a hub id
_BUILT_IN = ("", "demo", "manifest", "saliency")
_Rename = Callable[[str], str]


@dataclass
class JobCommand:
    """A command and the files that are sent with it.

    Attributes:
        words: words of the command, without ``fewchannels``, with file names relative to the job's working directory.
        files: local paths, by those names.
    """

    words: list[str]
    files: dict[str, Path] = field(default_factory=dict)

    def take(self, text: str) -> str:
        """Return the name of a file in the job's working directory; an absolute path that is not here must exist there.

        Raises:
            InputError: the file does not exist.
        """
        path = expanded(text)
        if not path.is_file():
            if path.is_absolute():
                return text
            raise InputError(f"file {text!r} does not exist on this machine, so it cannot be sent with the job.")
        for name, taken in self.files.items():
            if taken.samefile(path):
                return name
        own = () if path.name.startswith(".") else (path.name,)  # Ray applies any .gitignore among the files it sends
        names = chain(own, (f"{i}-{path.name}" for i in count(2)))
        name = next(each for each in names if each not in self.files)
        self.files[name] = path
        return name


def job_command(command: list[str], parser: Any) -> JobCommand:
    """Parse a command here as it will be parsed on the cluster, adding ``--address auto`` if it accepts one.

    Only values of options and arguments that accept files count as files, not words that happen to be file names.

    Args:
        command: words of the command, with or without ``fewchannels``.
        parser: the parser of ``fewchannels`` itself.

    Raises:
        InputError: the command cannot run there, reads a missing file, or writes to a local path.
    """
    words = command[1:] if command[0] == "fewchannels" else command
    name, rest = "", list(words)
    while hasattr(parser, "commands"):  # a command group
        name = rest.pop(0) if rest else ""
        if name not in parser.commands:
            raise unknown("command", name, parser.commands)
        parser = parser.commands[name]
    if name in _NOT_THERE:
        raise InputError(f"fewchannels {name} cannot run as a cluster job; run it here.")
    try:
        values = parser.make_context(name, list(rest)).params
    except typer.Exit:
        raise InputError(f"{' '.join(words)!r} only prints help; run it here.") from None
    except Exception as error:  # typer's own errors, which have no public base class
        if not hasattr(error, "format_message"):
            raise
        raise InputError(f"fewchannels {' '.join(words)} would be refused: {error.format_message()}") from None
    _check_places(name, values)
    made = JobCommand(list(words))
    _take_files(made, parser, values, len(words) - len(rest))
    if values.get("address", "") is None:
        made.words += ["--address", "auto"]
    return made


def _check_places(command: str, values: dict[str, Any]) -> None:
    if command == "compare" and values["out"] is None:
        raise InputError(
            "--out is missing, so the comparison would be written to the job's own folder, which is deleted with it. "
            "Give a URL, or an absolute path that is the same shared folder on every node."
        )
    for name, value in values.items():
        for place in map(str, _several(value)):
            is_here = "://" not in place and not place.startswith("/")
            if name in _PLACES and is_here:
                raise InputError(
                    f"{name} is {place!r}, a path on this machine. Give a URL such as s3://BUCKET/RUN, or an "
                    "absolute path that is the same shared folder on every node."
                )
            folder = place.partition("=")[2] if name == "metric" else place if name in _MODELS else ""
            if folder not in _BUILT_IN and is_here and expanded(folder).is_dir():
                raise InputError(
                    f"{name} is {place!r}, a folder on this machine, and folders are not sent. Give a hub id, or an "
                    "absolute path that is the same shared folder on every node."
                )


def _take_files(made: JobCommand, parser: Any, values: dict[str, Any], first: int) -> None:
    for i, n, name in _given(parser, values, made.words, first):
        text = made.words[i][n:]
        if name in _IN_TEXT:
            text = _IN_TEXT[name](text, made.take)
        elif name not in _PLACES and any(isinstance(each, Path) for each in _several(values[name])):
            text = made.take(text)
        made.words[i] = made.words[i][:n] + text


def _given(parser: Any, values: dict[str, Any], words: list[str], first: int) -> Iterator[tuple[int, int, str]]:
    """Locate each value: index of its word, characters before it in that word, and the parameter's name."""
    options = {text: each for each in parser.params if hasattr(each, "is_flag") for text in each.opts}
    arguments = [
        each.name for each in parser.params if not hasattr(each, "is_flag") for _ in _several(values[each.name])
    ]
    places = iter(range(first, len(words)))
    for i in places:
        word = words[i]
        text, equals, _ = word.partition("=")
        short = word[:2] if word[:1] == "-" and word[:2] in options else ""
        if word == "--":
            yield from zip(places, [0] * len(arguments), arguments, strict=False)
        elif text in options:
            if equals:
                yield i, len(text) + 1, options[text].name
            elif not options[text].is_flag:
                yield next(places), 0, options[text].name
        elif short:
            if not options[short].is_flag:
                yield i, 2, options[short].name
        elif arguments and not (word.startswith("-") and len(word) > 1):
            yield i, 0, arguments.pop(0)


def _adapters(text: str, rename: _Rename) -> str:
    """``FILE@STRENGTH``, comma-separated."""
    parts = [part.strip().rpartition("@") for part in text.split(",")]
    return ",".join(f"{rename(path)}@{strength}" if at else rename(strength) for path, at, strength in parts)


def _metric(text: str, rename: _Rename) -> str:
    """Split ``aesthetic=MODEL,FILE``, or ``KIND=`` followed by a hub id or possibly a file."""
    kind, _, value = text.partition("=")
    if kind == "aesthetic":
        model, comma, file = value.rpartition(",")
        return f"{kind}={model}{comma}{rename(file)}"
    return f"{kind}={rename(value)}" if Path(value).is_file() else text


_IN_TEXT: dict[str, Callable[[str, _Rename], str]] = {
    "lora": _adapters,
    "metric": _metric,
    "sources": lambda text, rename: text if text.startswith("demo:") else rename(text),
    "transformer_file": lambda text, rename: rename(text),
}
"""Parameters whose values contain file names, and the functions that replace those names."""


def _several(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
