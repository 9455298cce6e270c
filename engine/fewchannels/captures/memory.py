"""Memory needed by a worker, checked against the available memory before any work."""

from fewchannels import machine
from fewchannels.captures.job import Job
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.settings.units import size

_VALUE_BYTES = 4
_PIXEL_VALUES = 2 * 3  # in the VAE's format, and as it is written


def batch_bytes(n_rows: int, n_tokens: int, n_channels: int, n_pixels: int) -> int:
    """Minimum number of bytes that a batch takes: its hidden states and images, once.

    The model, attention and intermediate results of a block come on top of this lower bound.

    Args:
        n_rows: number of rows of the batch.
        n_tokens: image tokens of each.
        n_channels: width of the hidden state.
        n_pixels: number of pixels of each image.
    """
    return n_rows * _VALUE_BYTES * (n_tokens * n_channels + _PIXEL_VALUES * n_pixels)


def needed_bytes(job: Job) -> int:
    """Minimum number of bytes that a worker holds: a task's values, and a batch."""
    layout, (height, width) = job.layout, job.size
    task = min(layout.shard_samples, layout.n_samples) * layout.sample_value_bytes
    n_rows = min(job.batch_size, layout.n_samples)
    return task + batch_bytes(n_rows, job.token_grid[0] * job.token_grid[1], layout.n_channels, height * width)


def check_memory(job: Job, pool: Pool) -> None:
    """Refuse a capture that this machine cannot hold.

    Raises:
        InputError: the memory does not suffice; the message has the required amount and remedies.
    """
    height, width = job.size
    what = (
        f"images of {height} x {width} pixels, {len(job.layout.steps)} steps, {job.layout.top_k} channels' maps, "
        f"{job.layout.shard_samples} samples in a task, {job.batch_size} in a batch"
    )
    check_fits(needed_bytes(job), what, pool)


def check_fits(needed: int, what: str, pool: Pool) -> None:
    """Reject work that does not fit on this machine. A cluster's nodes are not checked, since larger ones may start.

    Args:
        needed: required bytes.
        what: name of the work that needs them, for the message.
        pool: pool whose worker needs them.

    Raises:
        InputError: the memory does not suffice; the message has the required amount.
    """
    there = machine.most_bytes()
    if pool.address is None and needed > there:
        raise InputError(
            f"a worker needs at least {size(needed)} of memory: {what}. This process may use {size(there)}. Reduce "
            "one of these, or give the --address of a Ray cluster."
        )
