"""A run as a Python object: reading, analyzing, reporting and exploring."""

from pathlib import Path
from typing import Any

from fewchannels.api.analyze import analysis_of
from fewchannels.api.calls.indices import Indices, several
from fewchannels.api.messages import in_python
from fewchannels.api.progress import counting
from fewchannels.api.result import Result
from fewchannels.api.viewed import Viewed
from fewchannels.api.workers import Workers
from fewchannels.errors import InputError
from fewchannels.runs.run import StoredRun
from fewchannels.runs.sql.answer import Answer
from fewchannels.settings.arguments import checked


class Run(StoredRun, Viewed):
    """A run on disk, finished or not: the data of the tasks that were finished when it was opened.

    Args:
        path: the run's folder or URL.

    Raises:
        InputError: there is no run at this path.
    """

    @checked
    def analyze(
        self,
        analysis: str,
        *,
        label: str | None = None,
        where: str | None = None,
        layers: Indices = "all",
        steps: Indices = "all",
        stream: str = "image",
        branch: str = "cond",
        replace: bool = False,
        workers: int | None = None,
        gpus_per_worker: float = 0,
        address: str | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> Result:
        """Run an analysis, and write its result into the run. Call it again to resume, or to get the result again.

        Args:
            analysis: ``"stability"``, ``"concentration"``, ``"masks"`` or ``"alignment"``.
            label: name of the result and of its tables; None for the analysis' name.
            where: SQL condition on columns of ``samples`` and ``manifest``; None for all finished samples.
            layers: layers to analyze; negative indices count from the last recorded one.
            steps: steps to analyze; negative indices count from the last recorded one.
            stream: ``image`` or, for stability only, ``text``.
            branch: ``cond`` or ``uncond``.
            replace: whether to delete a result with this label that has other settings.
            workers: number of Ray workers; 0 runs in this process. None chooses a number for the amount of work.
            gpus_per_worker: GPUs of each worker.
            address: address of a running Ray cluster; None for this machine.
            progress: whether to show a progress bar if this takes more than two seconds.
            **settings: settings of the analysis (:mod:`fewchannels.analyses.settings`), such as ``k=8`` and
                ``by="Category"`` of stability.

        Returns:
            The result: findings, tables and figures.

        Raises:
            InputError: a setting is not valid, or the run lacks data that the analysis needs.
            RunConflictError: the label has a result with other settings.

        Example:
            >>> result = fc.open_run("RUN").analyze("stability", k=4, progress=False)
            >>> result.plot(result.figures[0]).savefig("overlap.pdf")
        """
        from fewchannels.analyses.analysis import analyze
        from fewchannels.analyses.selection import select
        from fewchannels.runs.results import Results

        with in_python(), counting(str(analysis), "unit", progress) as update:
            made = analysis_of(analysis, self, settings)
            selected = select(
                self.place,
                where=where,
                layers=_recorded("layers", layers, self.layers),
                steps=_recorded("steps", steps, self.steps),
                stream=stream,
                branch=branch,
                by=_column(settings.get("by")),
            )
            pool = Workers(workers, gpus_per_worker, None, address).for_scores(selected.n_scores)
            name = made.name if label is None else label
            summary = analyze(made, selected, name, pool, replace=replace, on_progress=update)
        self.reopen()
        results = Results(self.storage, name)
        written, views = results.read(), {table: f"{name}_{table}" for table in made.schemas}

        def ask(text: str) -> Answer:
            if results.read() != written:
                raise InputError(f"the result {name!r} was replaced by another one. Call run.analyze again.")
            return self.sql(text)

        return Result(name, self.storage.location(results.key("")), summary, views, ask)

    @property
    def findings(self) -> list[str]:
        """Findings of the run's finished analyses: one sentence each, with its interval and its control."""
        from fewchannels.analyses.evidence import open_evidence
        from fewchannels.analyses.findings import of_run

        evidence = open_evidence(self.place)
        with evidence.catalog:
            return [finding.text for _, finding in of_run(evidence).sentences]


def _column(by: Any) -> str | None:
    if by is not None and not isinstance(by, str):
        raise InputError(f"by is {by!r:.80}; it must be the name of a column. Pass a text such as 'Category'.")
    return by


def _recorded(name: str, value: Indices, recorded: list[int]) -> str:
    """Convert layers or steps of a run to text; negative ones count from the last recorded one."""
    if isinstance(value, str):
        return value
    chosen = several(name, value)
    if wrong := [each for each in chosen if each < -len(recorded)]:
        raise InputError(f"{name} includes {wrong[0]}; the run has {len(recorded)} {name}: {recorded}.")
    return ",".join(str(recorded[each] if each < 0 else each) for each in chosen)


@checked
def open_run(path: str | Path) -> Run:
    """Open a run for reading and analyzing.

    Args:
        path: the run's folder or URL.

    Raises:
        InputError: there is no run at this path.

    Example:
        >>> len(fc.open_run("RUN"))
        4
    """
    return Run(path)
