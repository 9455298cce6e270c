"""Nodes of a cluster: whether one has room for an actor's share, and warnings while none does."""

import json
import math
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.experimental.internal_kv import _internal_kv_get

from fewchannels.cluster.shares import Pool
from fewchannels.errors import FewchannelsError, FewchannelsWarning

_LOOK_EVERY_S = 1.0
_NO_NODE_S = 10.0
_NO_ROOM_S = 20.0
_LOOK_AT_HEAD_S = 5.0
_MOST_MISSED = 3


class NoRoomWarning(FewchannelsWarning):
    """No node of the cluster has room for an actor, so all actors wait."""


class HeadWarning(FewchannelsWarning):
    """The cluster's head does not respond."""


def alive() -> list[dict[str, float]]:
    """Total resources of each live node (``CPU``, ``GPU`` and others), free or in use."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def lacking(nodes: Sequence[Mapping[str, float]], gpus: float, cpus: int) -> str:
    """Description of the part of an actor's share that no node has; empty if one has all of it."""
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return ""
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU")}
    largest = " and ".join([_counted(most["CPU"], "CPU")] + [_counted(most["GPU"], "GPU")] * (gpus > 0))
    if most["CPU"] < cpus or most["GPU"] < gpus:
        wanted = [_counted(cpus, "CPU")] * (most["CPU"] < cpus) + [_counted(gpus, "GPU")] * (most["GPU"] < gpus)
        return f"no node has {' and '.join(wanted)}; the largest has {largest}"
    return f"no node has both {_counted(cpus, 'CPU')} and {_counted(gpus, 'GPU')}; the most of each is {largest}"


def may_grow() -> bool:
    """Return whether an autoscaler may start nodes; True also if none has reported yet.

    Without one, Ray reports every node as a separate type, called ``node_`` and its id (Ray 2.60).
    """
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = json.loads(status).get("autoscaler_report") if status else None
    return report is None or any(not name.startswith("node_") for name in report["active_nodes"])


class NodeWatch:
    """Monitor of the nodes while actors or workers are pending.

    Args:
        pool: pool whose share each of them needs.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._looked, self._alone_since, self._no_room_since = -math.inf, math.inf, math.inf

    def look(self, *, has_actors: bool = False) -> None:
        """Check the nodes, at most once a second. Warns if none has room for an actor, which may then wait forever.

        Args:
            has_actors: whether actors are alive, so that there is room for them.

        Raises:
            FewchannelsError: no node is left on which an actor could start.
        """
        now = time.monotonic()
        if now < self._looked + _LOOK_EVERY_S:
            return
        self._looked, nodes = now, alive()
        self._alone_since = math.inf if nodes or has_actors else min(self._alone_since, now)
        if now > self._alone_since + _NO_NODE_S:
            raise FewchannelsError(
                "Ray's node has died (its raylet, possibly killed for lack of memory), and no other node can start "
                "actors. Finished work is kept; run again to resume."
            )
        what = "" if has_actors else lacking(nodes, self._pool.gpus_per_actor, self._pool.cpus_per_actor)
        if not what:
            self._no_room_since = math.inf
        elif self._no_room_since == math.inf:
            self._no_room_since = now
        elif now > self._no_room_since + _NO_ROOM_S:
            self._no_room_since = -math.inf  # once, until there is room
            warnings.warn(
                f"{what}. Waiting for such a node to join; press Ctrl+C to stop.", NoRoomWarning, stacklevel=2
            )


@contextmanager
def head_watched(address: str) -> Iterator[None]:
    """Warn when the cluster's head no longer responds: Ray ends this process a minute later, without a message.

    Args:
        address: host and port of the head.
    """
    ended = threading.Event()
    threading.Thread(target=_watch_head, args=(address, ended), name="head watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _watch_head(address: str, ended: threading.Event) -> None:
    host, _, port = address.rpartition(":")
    n_missed = 0
    while not ended.wait(_LOOK_AT_HEAD_S):
        try:
            socket.create_connection((host.strip("[]"), int(port)), _LOOK_AT_HEAD_S).close()
            n_missed = 0
        except OSError as error:
            n_missed += 1
            if n_missed == _MOST_MISSED and not ended.is_set():
                warnings.warn(
                    f"the cluster's head does not answer at {address} ({error.strerror or error}); it may have died. "
                    "If it does not come back within a minute, this command ends. Finished work is kept; rerun the "
                    "same command to resume.",
                    HeadWarning,
                    stacklevel=2,
                )


def _counted(n: float, what: str) -> str:
    return f"{n:g} {what}{'s' * (n != 1)}"
