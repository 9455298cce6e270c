"""``fc.compare``: two runs of the same samples, side by side."""

from pathlib import Path

from fewchannels.api.calls.indices import Indices, of_each_run
from fewchannels.api.messages import in_python
from fewchannels.api.progress import counting
from fewchannels.api.report import where as place_of
from fewchannels.api.result import Result
from fewchannels.api.workers import Workers
from fewchannels.runs.opened import Opened
from fewchannels.settings.arguments import checked


@checked
def compare(
    run_a: str | Path | Opened,
    run_b: str | Path | Opened,
    out: str | Path,
    *,
    k: int = 12,
    score: str | None = None,
    match: str = "auto",
    where: str | None = None,
    layers: Indices = "all",
    steps: Indices = "all",
    stream: str = "image",
    branch: str = "cond",
    replace: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Result:
    """Compare the top channels of two models, checkpoints or settings, sample by sample.

    Args:
        run_a: a run, opened or as a folder or URL.
        run_b: the other run; differences are B - A.
        out: folder or URL of the comparison, which ``fc.report`` takes as well.
        k: size of the sets of top channels.
        score: statistic that ranks channels; None for that of run A.
        match: how layers are matched: by ``"number"``, by relative ``"depth"``, or ``"auto"``.
        where: SQL condition on columns of ``samples`` and ``manifest`` that selects samples; None for all finished
            ones.
        layers: layers of each run: ``"all"``, ``"dual"``, ``"single"``, one index, or several.
        steps: steps of each run: ``"all"``, ``"last"``, one index, or several.
        stream: ``image`` or ``text``.
        branch: ``cond`` or ``uncond``.
        replace: whether to delete another comparison in ``out``.
        workers: number of Ray workers; 0 runs in this process. None chooses a number for the amount of work.
        progress: whether to show a progress bar if this takes more than two seconds.

    Raises:
        InputError: the runs cannot be compared.
        RunConflictError: ``out`` holds something else.

    Example:
        >>> fc.compare("RUN", "RUN_B", "COMPARISON", k=4, progress=False).tables
        ['agreement', 'differences', 'profiles', 'samples']
    """
    from fewchannels.analyses.comparison.compare import TABLES
    from fewchannels.analyses.comparison.compare import compare as compare_sides
    from fewchannels.analyses.comparison.pairing import side_by_side
    from fewchannels.analyses.settings import Criteria
    from fewchannels.runs.description import read_description
    from fewchannels.runs.sql.catalog import Catalog
    from fewchannels.runs.storage import open_storage

    with in_python(), counting("comparing", "layer", progress) as update:
        a, b = place_of(run_a), place_of(run_b)
        criteria = Criteria(read_description(open_storage(a))["config"]["score"] if score is None else score, k)
        layers, steps = of_each_run("layers", layers), of_each_run("steps", steps)
        choice = {"where": where, "layers": layers, "steps": steps, "stream": stream, "branch": branch}
        pairing = side_by_side(a, b, match=match, **choice)
        n_scores = sum(side.selected.n_scores for side in (pairing.a, pairing.b))
        pool = Workers(workers, gpus=0).for_scores(n_scores)
        target = open_storage(out)
        summary = compare_sides(pairing, criteria, target, pool, replace=replace, on_progress=update)
        return Result("comparison", target.url, summary, {name: name for name in TABLES}, Catalog(out).sql)
