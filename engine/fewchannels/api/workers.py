"""Who does the work of a call: this process, Ray's actors on this machine, or those of a cluster."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewchannels.cluster.shares import Pool
from fewchannels.cluster.sizing import choose_pool
from fewchannels.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Workers:
    """Workers as a caller asks for them.

    Attributes:
        workers: how many; 0 or 1 without an address is this process, without Ray; None leaves it open.
        gpus: GPUs of each; None for 1 where there are any.
        threads: CPU threads of each; None for an even share.
        address: address of a running Ray cluster; None for this machine.
    """

    workers: int | None = None
    gpus: float | None = None
    threads: int | None = None
    address: str | None = None

    def pool(self, n_forwards: int | None = None) -> Pool:
        """The pool, with what is left open filled in as for a command.

        Args:
            n_forwards: forwards of one image that the work takes; None for many.

        Raises:
            InputError: a number is out of its range, or this machine does not have what is asked for.
        """
        n_workers = 1 if self.workers == 0 and self.address is None else self.workers
        return choose_pool(n_workers, self.gpus, self.address, self.threads, n_forwards)

    def of_pipeline(self, pipeline: "DiffusionPipeline") -> Pool:
        """The pool of a pipeline that is loaded in this process: this process.

        Raises:
            InputError: more was asked for.
        """
        import torch

        given: dict[str, Any] = {"workers": self.workers, "gpus_per_worker": self.gpus, "address": self.address}
        if wrong := [f"{name}={value!r}" for name, value in given.items() if value not in (None, 0)]:
            raise InputError(
                f"{wrong[0]} was given with a pipeline that is loaded in this process, which no other process can use. "
                "Pass workers=0, or the model's folder or hub id instead of the pipeline."
            )
        device = torch.device(getattr(pipeline, "_execution_device", None) or pipeline.transformer.device)
        return Pool(1, float(device.type == "cuda"), self.threads or torch.get_num_threads())
