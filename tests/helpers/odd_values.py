"""Gives every option and argument of every command odd values, through the real command line, in this process.

    python tests/helpers/odd_values.py --examples 2000

The commands and their options are discovered, so that a new one is tried as well. A command must end by itself, with an
exit code of its own and a sentence; a traceback or no end within :data:`LIMIT_S` is a failure. The folder that it works
on is real: a tiny model, a run with results, a sweep, manifests. What would start Ray, serve, or take long is asked to
stop where the work would begin; with ``--work``, dry runs generate.
"""

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer
from PIL import Image
from tiny import TINY
from two_runs import ROWS, captured

import fewchannels.cli
from fewchannels import manifest
from fewchannels.demo.build import build_pipeline
from fewchannels.views.explore.server import Bound

LIMIT_S = 60
ODD = (
    *("", " ", "\t", ",", ",,", "-", "--", "'", '"', "%s", "{}", ":", "@", "=", "null", "true"),
    *("0", "-0", "1", "-1", "2", "3.5", "1_0", "0x10", "٣", "²", "½", "1e3", "12345678901234567890123456789"),
    *("99999", "2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808"),
    *("18446744073709551616", "-2147483649", "-9223372036854775809", "9" * 400, "9" * 5000),
    *("nan", "inf", "-inf", "1e308", "-1e308", "1e400", "1e-400", "1e30", "0.5", "1.5"),
    *("all", "none", "each", "thirds", "last", "auto", "random:0", "random:99999999999999999999", "random:-1"),
    *("pool:0", "pool:99999999999999999999", "pool:٣", "windows:0", "windows:99999999999", "scale:nan", "scale:1e308"),
    *("1,nan", "0,-1", "1,,2", "0,99999999999999999999", "x@nan", "x@1e400", "@", "0:99999999999999", "demo:0"),
    *("1e400TB", "0TB", "-1MB", "é", "💥", "\udcff", "a" * 300, "a" * 5000, "~nobody/x", "~", ".", "s3:/x/y", "x://y"),
    *("file", "a b", "a\nb", "\x1b[31m", "\x7f", "http://[", "clip=", "clip=nowhere", "name=value", "--help=1"),
)
"""Values that were, or could be, taken for what they are not. No process can be given a NUL."""


@dataclass(frozen=True)
class Base:
    """What a command is given besides the odd value: words by argument, and options."""

    arguments: dict[str, list[str]]
    options: tuple[str, ...] = ()


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the command line: its words, and Typer's object."""

    def walk(node: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if not hasattr(node, "commands"):
            yield words, node
            return
        for name, each in node.commands.items():
            yield from walk(each, (*words, name))

    yield from walk(typer.main.get_command(fewchannels.cli.app), ())


def bases(folder: Path) -> dict[tuple[str, ...], Base]:
    """A real place for every command, and what it is given there. Slow: made once."""
    os.environ["HOME"] = str(folder)  # of those that write to ~
    model = folder / "model"
    build_pipeline(TINY, seed=1).save_pretrained(model)
    settings = {"top_k": 32, "shard_samples": 4}
    run, other = (str(captured(folder, name, model, rows, **settings)) for name, rows in (("A", ROWS), ("B", ROWS[2:])))
    table = folder / "A.parquet"
    image = folder / "picture.png"
    Image.new("RGB", (16, 16), (200, 30, 30)).save(image)
    (folder / "refs.csv").write_text(f"prompt,reference,mask\na red star,{image},{image}\n", encoding="utf-8")
    manifest.ingest([str(folder / "refs.csv")], folder / "refs.parquet")
    sweep = str(_sweep(folder, table, model))
    tiny = ("--model", str(model), "--num-inference-steps", "2")
    dry = ("--manifest", str(table), "--out", "new", *tiny, "--dry-run")
    nowhere = ("--address", "http://127.0.0.1:9")
    alone = ("--workers", "1", "--dry-run")
    return {
        ("plot",): Base({"sweep": [sweep]}),
        ("capture",): Base({}, dry),
        ("compare",): Base({"run_a": [run], "run_b": [other]}, ("--workers", "1", "--out", "compared", "--replace")),
        ("demo",): Base({}, ("--prompts", "2", "--out", "demo")),
        ("report",): Base({"places": [run]}, ("--out", "report.md")),
        ("explore",): Base({"places": [run]}, ("--no-browser", "--port", "0")),
        ("query",): Base({"run": [run], "name": ["massive_channels"]}),
        ("sql",): Base({"run": [run], "text": ["select 1"]}),
        ("submit",): Base({"command": ["runs", "show", run]}, nowhere),
        ("status",): Base({}, nowhere),
        ("logs",): Base({"job_id": ["job"]}, nowhere),
        ("stop",): Base({"job_id": ["job"]}, nowhere),
        ("manifest", "ingest"): Base({"sources": [str(folder / "A.csv")]}, ("--output", "new.parquet")),
        ("manifest", "show"): Base({"path": [str(table)]}),
        ("manifest", "split"): Base({"path": [str(table)]}, ("--parts", "2", "--output", "parts")),
        ("models", "list"): Base({}),
        ("models", "show"): Base({"model": [str(model)]}),
        ("models", "inspect"): Base({"model": [str(model)]}, ("--height", "32", "--width", "16")),
        ("runs", "verify"): Base({"run": [run]}),
        ("runs", "merge"): Base({"runs": [run, other]}, ("--out", "merged")),
        ("runs", "compact"): Base({"run": [run]}),
        ("runs", "export"): Base({"run": [run]}, ("--out", "exported")),
        ("runs", "push"): Base({"run": [run], "repository": ["my-lab/stars"]}, ("--dry-run",)),
        ("runs", "pull"): Base({"repository": ["my-lab/stars"], "run": ["pulled"]}, ("--dry-run",)),
        ("runs", "list"): Base({"folder": [str(folder)]}),
        ("runs", "show"): Base({"run": [run]}),
        ("analyze", "masks"): Base({"run": [run]}, ("--from", "saliency", *alone)),
        ("analyze", "stability"): Base({"run": [run]}, ("--k", "2", "--rank-pairs", "2", *alone)),
        ("analyze", "concentration"): Base({"run": [run]}, ("--shares", "1", "--k", "2", *alone)),
        ("analyze", "alignment"): Base({"run": [run]}, ("--k", "2", *alone)),
        ("probe", "disruption"): Base({}, ("--k", "2", *dry)),
        ("transport", "text"): Base({}, ("--pairs", "2", "--k", "2", *dry)),
        ("transport", "image"): Base(
            {}, ("--references", str(folder / "refs.parquet"), "--pairs", "2", "--k", "2", *dry)
        ),
    }


def _sweep(folder: Path, table: Path, model: Path) -> Path:
    from fewchannels.captures.config import CaptureConfig
    from fewchannels.interventions.begin import begin_sweep
    from fewchannels.interventions.conditions import Grid
    from fewchannels.interventions.effects.measure import end_sweep
    from fewchannels.interventions.run import start_sweep
    from fewchannels.interventions.settings import SweepSettings
    from fewchannels.interventions.sweep import prepare_sweep

    generation = CaptureConfig(model=str(model), num_inference_steps=2)
    settings = SweepSettings("disruption", generation, (Grid(k=(2,), selections=("top", "random"), trials=1),))
    prepared = prepare_sweep(table, folder / "SWEEP", settings)
    begin_sweep(prepared)
    worker = start_sweep(prepared.sweep, 1)
    for task in range(prepared.sweep.n_tasks):
        worker(task)
    end_sweep(prepared.sweep.storage, ())
    return folder / "SWEEP"


def words_with(command: tuple[str, ...], base: Base, parameter: Any, value: str) -> list[str]:
    """A command line with one parameter's value replaced, or a flag set."""
    options, arguments = list(base.options), dict(base.arguments)
    if parameter.param_type_name == "argument":
        arguments[parameter.name] = [value, *arguments.get(parameter.name, [])[1:]]
    else:
        options += [parameter.opts[0]] if getattr(parameter, "is_flag", False) else [parameter.opts[0], value]
    return [*command, *options, *(word for words in arguments.values() for word in words)]


class _StoppedError(Exception):
    """The command came to where its work begins."""


def _stop(*arguments: Any, **keywords: Any) -> Any:
    for each in arguments:
        if isinstance(each, Bound):  # which would be open for as long as it is served
            each.server.server_close()
    raise _StoppedError


BEGINNINGS = (
    "fewchannels.captures.estimate.estimate",
    "fewchannels.interventions.estimate.cost",
    "fewchannels.analyses.analysis.foresee",
    "fewchannels.analyses.comparison.compare.compare",
    "fewchannels.views.report.build.build",
    "fewchannels.captures.recompute.recompute",
    "fewchannels.models.load.open_pipeline",
)
"""What takes seconds, where checks are over."""
ALWAYS = (
    "fewchannels.cluster.session._connect",
    "fewchannels.cli.capture.run_job",
    "fewchannels.views.explore.server.serve",
    "fewchannels.runs.upkeep.hub.Repository.check_token",
    "fewchannels.runs.upkeep.hub.Repository.head",
)
"""What starts Ray, asks a server far away, or has no end of its own."""


@contextlib.contextmanager
def stopped_where_work_begins(*, work: bool) -> Iterator[None]:
    """With ``work``, only what starts Ray, asks a server far away, or has no end is stopped."""
    with contextlib.ExitStack() as stack:
        for name in ALWAYS if work else (*ALWAYS, *BEGINNINGS):
            stack.enter_context(patch(name, _stop))
        yield


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"it did not end within {seconds} s")

    earlier = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGALRM, end)
    left = signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(left)  # of a limit around this one
        for number, handler in earlier.items():  # a command has its own
            signal.signal(number, handler)


def outcome(words: list[str], seconds: int = LIMIT_S) -> tuple[int, str]:
    """Exit code and output of a command line; 0 where it was stopped at its work.

    Raises:
        BaseException: what a shell would show as a traceback, or TimeoutError.
    """
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        patch.object(sys, "argv", ["fewchannels", *words]),
        time_limit(seconds),
    ):
        try:
            fewchannels.cli.main()
        except _StoppedError:
            return 0, output.getvalue()
        except SystemExit as end:
            return int(end.code or 0), output.getvalue()
    return 0, output.getvalue()


def fault(words: list[str], seconds: int = LIMIT_S) -> str:
    """What is wrong with how a command line ends; empty where nothing is."""
    try:
        code, text = outcome(words, seconds)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error)[-3:]).strip()
    if "Traceback" in text:
        return text
    if code not in (0, 1, 2, 3, 4, 5) or (code and not text.strip()):
        return f"exit code {code}, {text[-300:]!r}"
    return ""


def main(examples: int, seed: int, *, work: bool, only: str, show: Callable[[str], None]) -> int:
    """Every odd value of every parameter alone, then as many random pairs; returns the number of failures."""
    n_faults = n = 0
    random.seed(seed)
    with tempfile.TemporaryDirectory() as home, stopped_where_work_begins(work=work):
        found = bases(Path(home))
        (Path(home) / "a" / "b").mkdir(parents=True)
        os.chdir(Path(home) / "a" / "b")
        lines = [
            (command, parameter, value)
            for command, node in commands()
            if only in " ".join(command)
            for parameter in node.params
            for value in (ODD if not getattr(parameter, "is_flag", False) else ODD[:1])
        ]
        random.shuffle(lines)
        for command, parameter, value in lines[:examples]:
            words = words_with(command, found[command], parameter, value)
            began = time.monotonic()
            wrong, n = fault(words), n + 1
            if wrong or time.monotonic() - began > LIMIT_S / 2:
                n_faults += bool(wrong)
                show(f"{' '.join(command)} {parameter.opts[0]} {value[:60]!a}: {wrong[-600:]}\n")
    show(f"{n} command lines, {n_faults} failures")
    return n_faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands whose words contain this")
    parser.add_argument("--work", action="store_true", help="dry runs generate")
    given = parser.parse_args()
    stream = sys.stdout
    sys.exit(
        bool(
            main(
                given.examples,
                given.seed,
                work=given.work,
                only=given.only,
                show=lambda x: print(x, file=stream, flush=True),
            )
        )
    )
