"""``fc.capture``: the command ``fewchannels capture`` as a function."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewchannels.api.messages import in_python
from fewchannels.api.models import described, lent
from fewchannels.api.progress import RunBar, warn_of
from fewchannels.api.prompts import Prompts
from fewchannels.api.prompts import prompts as as_prompts
from fewchannels.api.run import Run
from fewchannels.api.workers import Workers
from fewchannels.captures.budget import check_budget
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.run import capture as run_capture
from fewchannels.errors import warn
from fewchannels.settings.arguments import checked
from fewchannels.settings.units import parse_size

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import DiffusionPipeline


@checked
def capture(
    prompts: "Prompts | str | Path | Sequence[str] | pd.DataFrame",
    out: str | Path,
    *,
    model: "str | Path | DiffusionPipeline" = "demo",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    threads_per_worker: int | None = None,
    address: str | None = None,
    family: str | Path | None = None,
    max_bytes: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Generate an image for every prompt, and record its hidden states in a run on disk. Call it again to resume.

    Args:
        prompts: result of :func:`fewchannels.prompts`, a manifest, or anything that :func:`fewchannels.prompts` takes.
        out: folder or URL of the run.
        model: ``"demo"``, a folder, a hub id, or a loaded pipeline of diffusers, which is used in this process and
            unchanged, with its LoRA, scheduler and quantization.
        workers: number of Ray workers; 0 runs in this process, without Ray. None chooses a number for the machine and
            the amount of work.
        gpus_per_worker: GPUs of each worker; None for 1 if a GPU is available.
        threads_per_worker: CPU threads of each worker; None for an even share.
        address: address of a running Ray cluster; None for this machine.
        family: path of a family file, for an unknown transformer class.
        max_bytes: largest estimated size of the run, such as ``"20GB"``; a larger one is rejected.
        progress: whether to show a progress bar.
        **settings: fields of :class:`fewchannels.captures.config.CaptureConfig`, such as ``top_k``, ``layers``,
            ``steps``, ``num_inference_steps`` or ``guidance_scale``; indices may be ranges or lists.

    Returns:
        The run, opened.

    Raises:
        InputError: the prompts, the model or a setting is not valid; nothing was written.
        RunConflictError: ``out`` holds a run with other settings, or something else.
        StorageError: writing failed, for example on a full disk; finished samples are kept.
        IncompleteRunError: some samples failed; finished ones are kept, and ``fc.open_run(out)`` opens them.

    Example:
        >>> run = fc.capture(["a small red star"], "RUN", num_inference_steps=4, progress=False)
        >>> run.top(sample=0, layer=3).channel.tolist()[0]
        46
    """
    with (
        in_python(),
        RunBar("capturing", "sample", progress) as bar,
        as_prompts(prompts, progress=progress).file() as manifest,
    ):
        config, found, pipeline = described(model, CaptureConfig, settings, family, "capture")
        job = prepare(manifest, out, config, model=found)
        workload = Workers(workers, gpus_per_worker, threads_per_worker, address)
        pool = workload.pool(job.n_forwards, pipeline)
        if max_bytes is not None:
            check_budget(job.layout, job.token_grid, math.prod(job.size), parse_size(max_bytes))
        with lent(pipeline):
            outcome = run_capture(
                job,
                manifest,
                pool,
                on_wait=warn,
                on_begun=lambda resumed: bar.begin(job.layout.n_samples),
                on_progress=bar.show,
                on_encoded=lambda done: bar.describe(f"encoding prompts, {done} of {job.layout.n_samples}"),
                on_note=warn,
                pipeline=pipeline,
            )
        warn_of(outcome)
        outcome.check_complete()
    return Run(out)
