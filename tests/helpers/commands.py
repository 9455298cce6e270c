"""Commands in processes of their own that have imported before what takes seconds, so that they start together."""

import contextlib
import io
import json
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

HEAVY = [
    "torch",
    "duckdb",
    "xarray",
    "matplotlib.figure",
    "plotly.graph_objects",
    "fewchannels.cli",
    "fewchannels.runs.run",
    "fewchannels.analyses.comparison.compare",
    "fewchannels.analyses.alignment.units",
    "fewchannels.interventions.effects.measure",
    "fewchannels.views.report.build",
]


def together(commands: Sequence[Sequence[str]], folder: Path, said: Path) -> list[tuple[int, str]]:
    """Start commands of ``fewchannels`` at the same moment.

    Args:
        commands: their words.
        folder: that they are run in.
        said: folder for what they print.

    Returns:
        The exit code of each, and what it printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    barrier = context.Barrier(len(commands))
    places = [said / f"{i}.json" for i in range(len(commands))]
    processes = [
        context.Process(target=_run, args=(list(words), folder, place, barrier))
        for words, place in zip(commands, places, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, process
    return [tuple(json.loads(place.read_text(encoding="utf-8"))) for place in places]


def _run(words: list[str], folder: Path, place: Path, barrier: Barrier) -> None:
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        from fewchannels.cli import app
        from fewchannels.errors import FewchannelsError

        barrier.wait(60)
        code = 0
        try:
            app(words, standalone_mode=False)
        except FewchannelsError as error:
            code = error.exit_code
            printed.write(f"error: {error}\n")
    place.write_text(json.dumps([code, printed.getvalue()]), encoding="utf-8")
