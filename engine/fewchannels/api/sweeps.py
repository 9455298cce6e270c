"""Sweeps of edited generations from Python: ablation and activation patching over many prompts, with controls."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewchannels.api.messages import in_python
from fewchannels.api.models import as_plain, described, lent
from fewchannels.api.progress import RunBar, counting
from fewchannels.api.prompts import Prompts
from fewchannels.api.prompts import prompts as as_prompts
from fewchannels.api.viewed import Viewed
from fewchannels.api.workers import Workers
from fewchannels.errors import InputError, warn
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.protocols import protocol_of
from fewchannels.interventions.run import run_sweep
from fewchannels.interventions.settings import TRANSPORT, PairRule, SweepSettings, unused, with_baselines
from fewchannels.interventions.sweep import prepare_sweep
from fewchannels.models.generation import Generation
from fewchannels.runs.sweep import StoredSweep
from fewchannels.settings.arguments import checked
from fewchannels.settings.file import settled

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import DiffusionPipeline
    from matplotlib.figure import Figure

_AS_OPTIONS = {"action": "actions", "amount": "amounts", "alpha": "amounts", "selection": "selections"}
"""Names of command options, with the field of a grid that each stands for."""
_MEASURED = ("score", "cluster_k", "metrics")


class Sweep(StoredSweep, Viewed):
    """A sweep on disk, finished or not: the data of the tasks that were finished when it was opened.

    Args:
        path: the sweep's folder or URL.

    Raises:
        InputError: there is no sweep at this path.
    """

    @property
    def findings(self) -> list[str]:
        """Findings of the finished items: one sentence each, with its interval and its control."""
        from fewchannels.analyses.evidence import open_evidence
        from fewchannels.interventions.effects.sweep_findings import find

        evidence = open_evidence(self.place)
        with evidence.catalog:
            edits = evidence.ask("select * exclude (image) from edits")
            return [each.text for each in find(evidence, edits).sentences] if len(edits) else []

    @checked
    def plot(self, metric: str | None = None, *, item: int | None = None, axis: str | None = None) -> "Figure":
        """Draw a metric against the setting that varies, or the images of one item.

        Args:
            metric: column of ``edits``; None for the first main metric.
            item: index of the item whose images are drawn instead.
            axis: horizontal axis: ``k``, ``amount``, ``layer`` or ``step``; None for the setting that varies.

        Returns:
            A Matplotlib figure, which a notebook shows.

        Raises:
            InputError: no item is finished, or the metric, item or axis does not exist.
        """
        from fewchannels.analyses.figures.still import drawn
        from fewchannels.interventions.effects.measure import draw_dose, draw_strip

        with in_python():
            if metric is not None and item is not None:
                raise InputError("metric and item select two different figures. Pass only one of them.")
            if item is not None:
                return drawn(draw_strip(self.storage, item, axis))
            return drawn(draw_dose(self.storage, metric or self.metrics[0], axis))

    @property
    def metrics(self) -> list[str]:
        """The main metrics of the finished items."""
        from fewchannels.interventions.effects.contrasts import means
        from fewchannels.interventions.effects.figures import main_metrics

        found: list[str] = main_metrics(means(self.edits))
        return found


@checked
def open_sweep(path: str | Path) -> Sweep:
    """Open a sweep for reading.

    Args:
        path: the sweep's folder or URL.

    Raises:
        InputError: there is no sweep at this path.

    Example:
        >>> fc.open_sweep("SWEEP").conditions.action.unique().tolist()
        ['zero']
    """
    return Sweep(path)


@checked
def probe(
    prompts: "Prompts | str | Path | Sequence[str] | pd.DataFrame",
    out: str | Path,
    *,
    model: "str | Path | DiffusionPipeline" = "demo",
    grids: Sequence[Mapping[str, Any]] | None = None,
    protocol: str | None = None,
    channels_from: str = "undisturbed",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    threads_per_worker: int | None = None,
    address: str | None = None,
    family: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Sweep:
    """Ablate channels of every prompt's generation, with controls, and measure the effect. Call it again to resume.

    Args:
        prompts: result of :func:`fewchannels.prompts`, a manifest, or anything that :func:`fewchannels.prompts` takes.
        out: folder or URL of the sweep.
        model: ``"demo"``, a folder, a hub id, or a loaded pipeline of diffusers, which is used in this process.
        grids: several grids of conditions, each a dictionary of settings to combine; None for one grid with
            ``settings``.
        protocol: a published protocol, ``"turri2026"`` or ``"gan2025"``, instead of grids.
        channels_from: scores that rank channels: ``"undisturbed"`` (the unedited image), ``"own"``, or a run's folder.
        workers: number of Ray workers; 0 runs in this process, without Ray. None chooses a number for the machine and
            the amount of work.
        gpus_per_worker: GPUs of each worker; None for 1 if a GPU is available.
        threads_per_worker: CPU threads of each worker; None for an even share.
        address: address of a running Ray cluster; None for this machine.
        family: path of a family file, for an unknown transformer class.
        progress: whether to show a progress bar.
        **settings: fields of :class:`fewchannels.interventions.conditions.Grid` such as ``actions``, ``k`` and
            ``layers`` (``range(2, 5)`` is one choice, ``[[0], [1, 2]]`` are two), fields of
            :class:`fewchannels.models.generation.Generation` such as ``num_inference_steps``, and ``metrics``,
            ``score`` and ``cluster_k``.

    Returns:
        The sweep, opened.

    Raises:
        InputError: the prompts, the model or a setting is not valid; nothing was written.
        RunConflictError: ``out`` holds a sweep with other settings, or something else.
        IncompleteRunError: some items failed; finished ones are kept.

    Example:
        >>> sweep = fc.probe(["a small red star"], "SWEEP", k=[4, 8], trials=1, num_inference_steps=2, progress=False)
        >>> sweep.conditions.query("selection == 'top'").k.tolist()
        [4, 8]
    """
    with in_python():
        run = None if channels_from in ("undisturbed", "own") else str(channels_from)
        own, rest = _of_grid(settings)
        if protocol is not None and (own or grids):
            raise InputError(
                f"protocol {protocol!r} defines the edits, so {'grids' if grids else next(iter(own))} cannot be "
                "combined with it. Pass only one of them."
            )
        if protocol is not None:
            chosen = protocol_of(protocol, run).grids
        else:
            chosen = _grids(own, grids, {"scores_from": ("run" if run else channels_from,)})
        workload = Workers(workers, gpus_per_worker, threads_per_worker, address)
        about = {"kind": "disruption", "grids": chosen, "protocol": protocol, "channels_run": run}
        return _swept(prompts, out, model, about, rest, workload, family, progress, "probe")


@checked
def probe_transport(
    prompts: "Prompts | str | Path | Sequence[str] | pd.DataFrame",
    out: str | Path,
    *,
    model: "str | Path | DiffusionPipeline" = "demo",
    pairs: int | str | Path = 100,
    references: "Prompts | str | Path | None" = None,
    within: str | Sequence[str] = (),
    across: str | Sequence[str] = (),
    noise: str = "shared",
    pair_seed: int = 0,
    baselines: Sequence[str] | None = None,
    grids: Sequence[Mapping[str, Any]] | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    threads_per_worker: int | None = None,
    address: str | None = None,
    family: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Sweep:
    """Patch a source's channels into a target's generation over many pairs (activation patching), with controls.

    This is the sweep of ``fewchannels transport``; :func:`fewchannels.transport` is the edit of a single call. Call it
    again to resume.

    Args:
        prompts: result of :func:`fewchannels.prompts`, a manifest, or anything that :func:`fewchannels.prompts` takes.
        out: folder or URL of the sweep.
        model: ``"demo"``, a folder, a hub id, or a loaded pipeline of diffusers, which is used in this process.
        pairs: number of random pairs, ``"all"``, or a CSV or Parquet file with the columns ``target`` and ``source``.
        references: samples with a column ``reference`` of image files, to patch from images instead of prompts.
        within: columns in which target and source must agree.
        across: columns in which target and source must differ.
        noise: initial noise of the source: ``"shared"`` (the target's) or ``"separate"`` (its own).
        pair_seed: random seed of the pairs.
        baselines: blends at the same strengths, as comparison: ``prompt``, ``latents``, ``pixels``; None for all that
            apply; an empty list for none.
        grids: several grids of conditions, each a dictionary of settings to combine; None for one grid with
            ``settings``.
        workers: number of Ray workers; 0 runs in this process, without Ray. None chooses a number for the machine and
            the amount of work.
        gpus_per_worker: GPUs of each worker; None for 1 if a GPU is available.
        threads_per_worker: CPU threads of each worker; None for an even share.
        address: address of a running Ray cluster; None for this machine.
        family: path of a family file, for an unknown transformer class.
        progress: whether to show a progress bar.
        **settings: same as for :func:`fewchannels.probe`; ``alpha`` is the strength.

    Returns:
        The sweep, opened.

    Raises:
        InputError: the prompts, the model, a pair or a setting is not valid; nothing was written.
        RunConflictError: ``out`` holds a sweep with other settings, or something else.
        IncompleteRunError: some pairs failed; finished ones are kept.

    Example:
        >>> two = ["a small red star", "a large blue circle"]
        >>> sweep = fc.probe_transport(two, "PATCHED", pairs=1, k=8, num_inference_steps=2, progress=False)
        >>> sorted(set(sweep.conditions.action))
        ['latents', 'pixels', 'prompt', 'transport']
    """
    with in_python(), ExitStack() as stack:
        own, rest = _of_grid(settings)
        kind = "text" if references is None else "image"
        usual = ("prompt", "latents", "pixels") if kind == "text" else ("latents", "pixels")
        chosen = with_baselines(_grids(own, grids, TRANSPORT), usual if baselines is None else tuple(baselines))
        about: dict[str, Any] = {"kind": kind, "grids": chosen}
        rule = {"within": _several(within), "across": _several(across), "noise": noise, "seed": pair_seed}
        if isinstance(pairs, int):
            rule["n"] = pairs
        elif pairs != "all":
            about["pairs_file"] = Path(pairs)
        about["pairs"] = PairRule(**settled(PairRule, {k: as_plain(v) for k, v in rule.items()}, "probe_transport"))
        if references is not None:
            about["references"] = stack.enter_context(as_prompts(references, progress=progress).file())
        workload = Workers(workers, gpus_per_worker, threads_per_worker, address)
        return _swept(prompts, out, model, about, rest, workload, family, progress, "probe_transport")


def _swept(
    prompts: Any,
    out: str | Path,
    model: Any,
    about: dict[str, Any],
    settings: Mapping[str, Any],
    workload: Workers,
    family: str | Path | None,
    progress: bool,
    caller: str,
) -> Sweep:
    measured = {name: value for name, value in settings.items() if name in _MEASURED}
    generated = {name: value for name, value in settings.items() if name not in _MEASURED}
    measured = settled(SweepSettings, {name: as_plain(value) for name, value in measured.items()}, f"fc.{caller}")
    taken = as_prompts(prompts, progress=progress)
    with RunBar("editing", "image", progress) as bar, taken.file() as manifest, ExitStack() as ending:
        generation, found, pipeline = described(model, Generation, generated, family, caller)
        asked = SweepSettings(generation=generation, **about, **measured)
        prepared = prepare_sweep(manifest, out, asked, model=found)
        sweep = prepared.sweep
        pool = workload.pool(sweep.n_forwards, pipeline)
        with lent(pipeline):
            outcome, _ = run_sweep(
                prepared,
                pool,
                on_wait=warn,
                on_begun=lambda resumed: bar.begin(sweep.n_items, len(sweep.conditions)),
                on_progress=bar.show,
                on_note=warn,
                on_ended=lambda: ending.enter_context(counting("computing effects and figures", "task", progress)),
                pipeline=pipeline,
            )
        outcome.check_complete()
    return Sweep(out)


def _of_grid(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a grid, by field, and all others."""
    named = {_AS_OPTIONS.get(name, name): value for name, value in settings.items()}
    own = {name: value for name, value in named.items() if name in Grid.__dataclass_fields__}
    return own, {name: value for name, value in named.items() if name not in own}


def _grids(
    own: Mapping[str, Any], several: Sequence[Mapping[str, Any]] | None, defaults: Mapping[str, Any]
) -> tuple[Grid, ...]:
    """The grids of a call, given as settings of one or as several."""
    if several is not None and own:
        raise InputError(
            f"grids and {next(iter(own))} cannot be combined. Put {next(iter(own))} into each of the grids."
        )
    found = []
    for each in [own] if several is None else several:
        given = {_AS_OPTIONS.get(name, name): as_plain(value) for name, value in each.items()}
        given |= {name: _choices(given[name]) for name in ("layers", "steps") if name in given}
        fields = settled(Grid, given, "a grid")
        for name, why in unused({**defaults, **fields}):
            if name in fields:
                raise InputError(f"{name} would have no effect: {why}. Omit it.")
        found.append(Grid(**{**defaults, **fields}))
    if not found:
        raise InputError("grids is empty. Pass at least one grid.")
    return tuple(found)


def _choices(value: Any) -> list[Any]:
    """Choices of layers or steps to combine with other settings: indices together are one choice."""
    if isinstance(value, list) and any(isinstance(each, list | str) for each in value):
        return [choice for each in value for choice in _choices(each)]
    return [",".join(map(str, value))] if isinstance(value, list) else [value]


def _several(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)
