"""A model that a worker has loaded, with the one thread that runs it."""

import hashlib
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch

from fewchannels import machine
from fewchannels.errors import InputError, StorageError
from fewchannels.files import file_system
from fewchannels.models.compiled import eager
from fewchannels.models.family import ModelGeometry
from fewchannels.models.generation import Generation
from fewchannels.models.load import load
from fewchannels.models.quiet import quietly
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, text_encoders
from fewchannels.models.timings import took

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class LoadedModel:
    """A model on this machine's device.

    One thread runs all of PyTorch's work for all callers. OpenMP keeps a pool for each computing thread; with two pools
    on the same cores, it stops busy-waiting between operations, and generation takes 1.3 times as long.

    Args:
        generation: settings that name the model and how it is loaded.
        geometry: geometry of the model.
        n_threads: CPU threads for PyTorch.
        device: device assigned to this process; None to choose by the machine.
        encodes: whether to load its text encoders.
        pipeline: the model, if it is loaded already; None loads it.

    Raises:
        InputError: the model cannot be loaded, or PyTorch does not find the assigned GPU.

    Attributes:
        sampler: sampler of its pipeline.
        device: ``cuda`` or ``cpu``.
        name: name of the device, for records.
        n_threads: CPU threads for PyTorch.
    """

    def __init__(
        self,
        generation: Generation,
        geometry: ModelGeometry,
        n_threads: int,
        device: str | None = None,
        *,
        encodes: bool = True,
        pipeline: "DiffusionPipeline | None" = None,
    ) -> None:
        machine.name_user()
        self._thread = ThreadPoolExecutor(1, "generator", _settle_thread, (n_threads,))
        self.device, self.n_threads = device or default_device(), n_threads
        _check_device(self.device)
        self.name = device_in_words(self.device)
        self._running: Callable[[], AbstractContextManager[Any]] = nullcontext
        if pipeline is None:
            with after_the_first(f"load {generation.model} {generation.revision}"):
                source = find(generation.model, generation.revision)
                without = () if encodes else text_encoders(source)
                pipeline = self.run(load, source, geometry, generation, self.device, dict.fromkeys(without))
        else:
            self._running = partial(eager, pipeline)
        self.sampler = Sampler(pipeline, geometry)

    def run(
        self, work: Callable[_Arguments, _Result], *arguments: _Arguments.args, **keywords: _Arguments.kwargs
    ) -> _Result:
        """Run work in the model's thread. Its duration counts as stage ``model``, the time before as ``wait``."""
        asked = time.monotonic()
        begun = ended = asked

        def timed() -> _Result:
            nonlocal begun, ended
            begun = time.monotonic()
            try:
                with quietly("diffusers", "transformers"), self._running():
                    return work(*arguments, **keywords)
            finally:
                ended = time.monotonic()

        try:
            return self._thread.submit(timed).result()
        finally:
            took("wait", begun - asked)
            took("model", ended - begun)

    def close(self) -> None:
        """End the thread; no further work can run."""
        self._thread.shutdown()

    def let_go(self) -> None:
        """Release cached device memory after a failed batch."""
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def peak_memory_bytes(self) -> int:
        """Peak resident memory of this process, or peak device memory on a GPU."""
        return peak_memory_bytes(self.device)


@contextmanager
def after_the_first(what: str) -> Iterator[None]:
    """Run work that other processes of this machine also run: first in one process alone, then in the others together.

    The first of several actors on a node downloads a model's weights into the node's cache or memory, and the others
    read them from there.

    Args:
        what: name of the work, the same in all processes.
    """
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"fewchannels-{os.getuid()}")
    with ExitStack() as held:
        with suppress(OSError, StorageError):  # without a folder for the lock, all of them load at once
            folder.mkdir(mode=0o700, exist_ok=True)
            # Otherwise another user created it first, and may lock it.
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                file = held.enter_context((path := folder / f"{name}.lock").open("a"))
                if not file_system.lock(file.fileno(), path):
                    file_system.lock(file.fileno(), path, shared=True, waits=True)
        yield


def peak_memory_bytes(device: str) -> int:
    """Peak resident memory of this process, or peak memory of a ``cuda`` device."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_in_words(device: str) -> str:
    """Kind and name of a device, for records: ``cuda NVIDIA H100``, ``cpu x86_64``."""
    return f"{device} {torch.cuda.get_device_name() if device == 'cuda' else platform.machine()}"


def default_device() -> str:
    """``cuda`` if there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(share: str) -> str:
    """Device of this process for work with the given share: ``cpu`` if the share has no GPU."""
    return default_device() if share == "cuda" else "cpu"


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"this actor was assigned a GPU of {platform.node()}, but PyTorch finds none there. Check its driver and "
            "its build of PyTorch (python -m torch.utils.collect_env), or give --gpus-per-actor 0."
        )


def _settle_thread(n_threads: int) -> None:
    """Apply settings that PyTorch keeps per thread."""
    torch.set_num_threads(n_threads)
    torch.set_flush_denormal(True)
