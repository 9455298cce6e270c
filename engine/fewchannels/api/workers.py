"""Where a call runs: in this process, or in Ray actors on this machine or on a cluster."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewchannels.cluster.shares import Pool
from fewchannels.cluster.sizing import choose_pool, choose_workers
from fewchannels.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Workers:
    """Workers that a caller requests.

    Attributes:
        workers: number of workers; 0 or 1 without an address is this process, without Ray; None chooses a number.
        gpus: GPUs of each worker; None for 1 if a GPU is available.
        threads: CPU threads of each worker; None for an even share.
        address: address of a running Ray cluster; None for this machine.
    """

    workers: int | None = None
    gpus: float | None = None
    threads: int | None = None
    address: str | None = None

    def pool(self, n_forwards: int, pipeline: "DiffusionPipeline | None" = None) -> Pool:
        """The pool of a capture or a sweep, with the same defaults as for a command.

        Args:
            n_forwards: number of forward passes, for one image each.
            pipeline: a pipeline that is loaded in this process, which works alone then; None for a model by its name.

        Raises:
            InputError: a number is out of range, this machine has fewer CPUs or GPUs, or other processes were requested
                for a loaded pipeline.
        """
        if pipeline is None:
            return choose_pool(self._n_workers, self.gpus, self.address, self.threads, n_forwards)
        import torch

        from fewchannels.models.in_memory import device_of

        given: dict[str, Any] = {"workers": self.workers, "gpus_per_worker": self.gpus, "address": self.address}
        if wrong := [f"{name}={value!r}" for name, value in given.items() if value not in (None, 0)]:
            raise InputError(
                f"{wrong[0]} cannot be used with a loaded pipeline, which exists only in this process. Pass workers=0, "
                "or the model's folder or hub id instead of the pipeline."
            )
        return Pool(1, float(device_of(pipeline) == "cuda"), self.threads or torch.get_num_threads())

    def for_scores(self, n_scores: int) -> Pool:
        """The pool of an analysis of so many scores, with the same defaults as for a command.

        Raises:
            InputError: a number is out of range, or this machine has fewer CPUs or GPUs.
        """
        return choose_workers(self._n_workers, self.gpus, self.address, n_scores)

    @property
    def _n_workers(self) -> int | None:
        return 1 if self.workers == 0 and self.address is None else self.workers
