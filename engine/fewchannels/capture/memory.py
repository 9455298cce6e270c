"""What a worker must hold at once, against the memory that it may have: refused before any work if it never fits."""

from fewchannels import machine
from fewchannels.capture.job import Job
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.settings.units import size

_VALUE_BYTES = 4
_PICTURE_VALUES = 2 * 3  # of a pixel: as the VAE has it, and as it is written


def needed_bytes(job: Job) -> int:
    """Bytes that a worker holds at the least: a task's values, and a batch's hidden states and pictures once.

    The model, attention and all that a block computes in between come on top; what this counts is surely needed.
    """
    layout, config = job.layout, job.config
    side = job.geometry.default_side
    height, width = config.height or side, config.width or side
    tokens = job.grid[0] * job.grid[1]
    batch = min(job.batch_size, layout.n_samples)
    task = min(layout.shard_samples, layout.n_samples) * layout.sample_value_bytes
    return task + batch * _VALUE_BYTES * (tokens * layout.n_channels + _PICTURE_VALUES * height * width)


def check_memory(job: Job, pool: Pool) -> None:
    """Refuse what this machine cannot hold. A cluster's nodes are not looked at: larger ones may start.

    Raises:
        InputError: saying what it takes, and what makes it less.
    """
    if pool.address is not None:
        return
    needed, there = needed_bytes(job), machine.most_bytes()
    if needed > there:
        raise InputError(
            f"a worker must hold at least {size(needed)} at once: pictures of {job.config.height} x "
            f"{job.config.width} pixels, {len(job.layout.steps)} steps, {job.layout.top_k} channels' maps, "
            f"{job.layout.shard_samples} samples in a task, {job.batch_size} in a batch. This process may have "
            f"{size(there)}. Make one of them smaller, or give the --address of a Ray cluster."
        )
