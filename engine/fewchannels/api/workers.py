"""Where a call runs: in this process, or in Ray actors on this machine or on a cluster."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewchannels.cluster.shares import Pool
from fewchannels.cluster.sizing import choose_pool
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

    def pool(self, n_forwards: int | None = None) -> Pool:
        """The pool, with the same defaults as for a command.

        Args:
            n_forwards: number of forward passes, for one image each; None for many.

        Raises:
            InputError: a number is out of range, or this machine has fewer CPUs or GPUs.
        """
        n_workers = 1 if self.workers == 0 and self.address is None else self.workers
        return choose_pool(n_workers, self.gpus, self.address, self.threads, n_forwards)

    def of_pipeline(self, pipeline: "DiffusionPipeline") -> Pool:
        """The pool for a pipeline that is loaded in this process: this process alone.

        Raises:
            InputError: other processes were requested.
        """
        import torch

        given: dict[str, Any] = {"workers": self.workers, "gpus_per_worker": self.gpus, "address": self.address}
        if wrong := [f"{name}={value!r}" for name, value in given.items() if value not in (None, 0)]:
            raise InputError(
                f"{wrong[0]} cannot be used with a loaded pipeline, which exists only in this process. Pass workers=0, "
                "or the model's folder or hub id instead of the pipeline."
            )
        device = torch.device(getattr(pipeline, "_execution_device", None) or pipeline.transformer.device)
        return Pool(1, float(device.type == "cuda"), self.threads or torch.get_num_threads())
