"""What this process may use of the machine: memory, processors and GPUs, as the kernel and its groups limit them."""

import getpass
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_GPU_FILES = ("nvidia*", "nvhost*", "dxg", "kfd")  # CUDA, on Jetson and in WSL too, and ROCm
_UNLIMITED = 2**60
"""Control groups of version 1 write about 2^63 if there is no limit."""


def processors() -> int:
    """How many threads can run at once: the processors that this process may use, or its quota of them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *_quotas()]))


def most_bytes() -> int:
    """Memory that this process could take if nothing else took any."""
    installed = psutil.virtual_memory().total
    limits = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    own = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return min([installed, *own, *(most for most, _ in _group_bytes())])


def free_bytes() -> int:
    """Memory that this process may still take before the kernel kills it or the machine begins to swap."""
    return max(0, min([psutil.virtual_memory().available, *(left for _, left in _group_bytes()), *_process_bytes()]))


def hold_to_free_bytes() -> None:
    """Limit this process to memory that is free now: then it can report a failure, and the kernel does not kill it."""
    free, used = free_bytes(), psutil.Process().memory_info()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if hasattr(used, "data"):  # on Linux
        limit = used.data + free
        resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def name_user() -> None:
    """Give a user without an entry in the machine's list of users a name: libraries ask for one, as compilers do."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        os.environ["USER"] = str(os.getuid())


def has_gpus() -> bool:
    """Whether PyTorch may find GPUs here, without importing it, which takes seconds; True if that is not known."""
    return not sys.platform.startswith("linux") or any(any(Path("/dev").glob(name)) for name in _GPU_FILES)


def _process_bytes() -> Iterator[int]:
    """What the limits of this process (ulimit) have left."""
    used = psutil.Process().memory_info()
    for limit, size in ((resource.RLIMIT_DATA, getattr(used, "data", None)), (resource.RLIMIT_AS, used.vms)):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY and size is not None:
            yield most - size


def _group_bytes() -> Iterator[tuple[int, int]]:
    """What each control group above this process may take, and has left; cached file pages count as free."""
    for folder in _groups("memory"):
        # version 2, then version 1
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None and most < _UNLIMITED:
                pairs = (line.split() for line in _lines(folder / "memory.stat"))
                spare = sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == cache)
                yield most, most - max(0, now - spare)


def _quotas() -> Iterator[int]:
    for folder in _groups("cpu"):
        words = " ".join(_lines(folder / "cpu.max")).split()
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit():
            quota, period = int(words[0]), int(words[1])
        if quota and period and quota > 0:
            yield -(-quota // period)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups that limit this process, from its own up to the root."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [Path("/sys/fs/cgroup", controller), Path("/sys/fs/cgroup", controllers)] if controllers else []
        root = next((mount for mount in mounts if mount.is_dir()), Path("/sys/fs/cgroup"))
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder == root or root in folder.parents)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not this version's, or hidden in a container
        return []


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.lstrip("-").isdigit() else None
