"""A command to run on a cluster: parsed as it will be there, with the files of this machine that it reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import typer

from fewchannels.errors import InputError, unknown
from fewchannels.files.durable import expanded

_NOT_THERE = ("submit", "status", "logs", "stop")
_PLACES = ("out", "output", "run", "runs", "run_a", "run_b", "sweep", "places")  # of runs, and of what is written
_MODELS = ("model", "source")  # a folder or a hub id
_BUILT_IN = ("", "demo", "manifest", "saliency")
_Rename = Callable[[str], str]


@dataclass
class JobCommand:
    """A command and what it takes along.

    Attributes:
        words: of the command, without ``fewchannels``; files are named as the job finds them in its working directory.
        files: paths on this machine, by those names.
    """

    words: list[str]
    files: dict[str, Path] = field(default_factory=dict)

    def take(self, text: str) -> str:
        """The name by which the job finds a file; an absolute path that is not here must be there.

        Raises:
            InputError: there is no such file.
        """
        path = expanded(text)
        if not path.is_file():
            if path.is_absolute():
                return text
            raise InputError(f"there is no file {text!r} here to send with the job.")
        for name, taken in self.files.items():
            if taken.samefile(path):
                return name
        own = () if path.name.startswith(".") else (path.name,)  # Ray obeys a .gitignore among what it sends
        names = chain(own, (f"{i}-{path.name}" for i in count(2)))
        name = next(each for each in names if each not in self.files)
        self.files[name] = path
        return name


def job_command(command: list[str], parser: Any) -> JobCommand:
    """Parse a command here as it will be parsed on the cluster; ``--address auto`` is added where it takes one.

    Files are those of options and arguments that take files; a word that merely happens to be the name of one is not.

    Args:
        command: its words, with or without ``fewchannels``.
        parser: of ``fewchannels`` itself.

    Raises:
        InputError: it cannot run there, reads what is not here, or writes to a place of this machine.
    """
    words = command[1:] if command[0] == "fewchannels" else command
    name, rest = "", list(words)
    while hasattr(parser, "commands"):  # a group of them
        name = rest.pop(0) if rest else ""
        if name not in parser.commands:
            raise unknown("command", name, parser.commands)
        parser = parser.commands[name]
    if name in _NOT_THERE:
        raise InputError(f"fewchannels {name} is not for a cluster; run it here.")
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
            "out is not given, and the comparison would be written to the job's own folder, which is deleted with it. "
            "Give a URL, or the absolute path of a folder that every node of the cluster has at the same place."
        )
    for name, value in values.items():
        for place in map(str, _several(value)):
            is_here = "://" not in place and not place.startswith("/")
            if name in _PLACES and is_here:
                raise InputError(
                    f"{name} is {place!r}, a path of this machine. Give a URL such as s3://BUCKET/RUN, or the absolute "
                    "path of a folder that every node of the cluster has at the same place."
                )
            folder = place.partition("=")[2] if name == "metric" else place if name in _MODELS else ""
            if folder not in _BUILT_IN and is_here and expanded(folder).is_dir():
                raise InputError(
                    f"{name} is {place!r}, a folder of this machine, and folders are not sent. Give a hub id, or the "
                    "absolute path of a folder that every node of the cluster has at the same place."
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
    """Where each value stands: the word, the characters before it in that word, and the parameter's name."""
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
    """``aesthetic=MODEL,FILE``, or ``KIND=`` and a hub id, or perhaps a file."""
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
"""Parameters whose text has the names of files in it, and what puts other names there."""


def _several(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
