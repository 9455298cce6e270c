"""Ray, quietly: what each actor owns, and a session on this machine or on a cluster."""

import logging
import os
import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import worker
from ray.job_config import JobConfig

from fewchannels.cluster.nodes import alive, head_watched, lacking, may_grow
from fewchannels.cluster.own_ray import refused_token, settled
from fewchannels.cluster.shares import Pool
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.settings.environment import check_environment
from fewchannels.settings.units import size

MACHINE_FAULT_RETRIES = 3
_ANSWER_S = 10.0


def pool_of_cluster(
    n_actors: int | None, gpus_per_actor: float | None, address: str, cpus_per_actor: int | None
) -> Pool:
    _connect(address)
    nodes = alive()
    n_gpus = [node.get("GPU", 0.0) for node in nodes]
    gpus = float(any(n_gpus)) if gpus_per_actor is None else gpus_per_actor
    _check_nodes(nodes, gpus, cpus_per_actor or 1, address)
    # How many actors' GPUs each node has; without GPUs, an actor for every CPU.
    cpus = cpus_per_actor or 1
    room = [int(n / gpus if gpus else node.get("CPU", 0) / cpus) for n, node in zip(n_gpus, nodes, strict=True)]
    if n_actors is None and not any(room):
        raise InputError(
            f"the cluster at {address!r} has no node yet with {f'{gpus:g} GPUs' if gpus else 'a CPU'} for an actor, so "
            "the number of actors cannot be chosen. Give --actors; pending actors make the autoscaler start nodes."
        )
    shares = [max(1, int(node.get("CPU", 1)) // n) for n, node in zip(room, nodes, strict=True) if n]
    return Pool(n_actors or sum(room), gpus, cpus_per_actor or min(shares, default=1), address)


def _check_nodes(nodes: list[dict[str, float]], gpus: float, cpus: int, address: str) -> None:
    """Refuse a share that no node has if no other node will be started: its actors would wait forever."""
    what = lacking(nodes, gpus, cpus)
    if not what or not any(node.get("CPU") for node in nodes) or may_grow():
        return
    raise InputError(
        f"an actor needs {cpus} CPUs and {gpus:g} GPUs, but in the cluster at {address!r}, {what}. Request fewer, "
        "or add such a node first."
    )


@contextmanager
def _without_standard_error() -> Iterator[None]:
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def ray_session(pool: Pool) -> Iterator[None]:
    """A quiet Ray: the cluster at the pool's address, or one on this machine for as long as the context lasts.

    Raises:
        FewchannelsError: it cannot be reached or started, or could not run the work inside the context.
    """
    try:
        with _connected(pool):
            yield
    except ray.exceptions.RayError as error:
        raise FewchannelsError(
            f"Ray could not run the actors: {str(error).strip()}\nFinished work is kept; run again to resume."
        ) from error


@contextmanager
def _connected(pool: Pool) -> Iterator[None]:
    if ray.is_initialized():
        with head_watched(ray.get_runtime_context().gcs_address):
            yield
        return
    check_environment()
    with settled() if pool.address is None else nullcontext():
        _connect(pool.address, num_cpus=pool.n_actors * pool.cpus_per_actor, include_dashboard=False)
        try:
            with head_watched(ray.get_runtime_context().gcs_address):
                yield
        finally:
            ray.shutdown()


class _OwnPath(JobConfig):
    """Keeps the driver's working directory and its script's folder off the workers' import path.

    Ray puts them there, and a user's ``profile.py`` or ``statistics.py`` would then hide the library's. Ray skips this
    for jobs with a ``working_dir``, which it detects by this method, and uses the method for nothing else (Ray 2.60).
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def _shorten_messages() -> None:
    """Have Ray print the first sentence of what happened to a process or node, not its paragraph for developers.

    It goes to standard error, since results are on standard output. Ray has no setting for this: ``log_to_driver``
    does not change these messages (Ray 2.60).
    """
    if getattr(worker.print_to_stdstream, "is_short", False):
        return
    ray_prints = worker.print_to_stdstream

    def print_short(data: dict[str, Any], *rest: Any, **more: Any) -> None:
        if data.get("pid") == "raylet":
            texts = [text.strip().partition("\n")[0] for text in data["lines"]]
            data = data | {"lines": [re.split(r"(?<=[.!?])\s", text)[0] for text in texts], "is_err": True}
        ray_prints(data, *rest, **more)

    print_short.is_short = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = print_short


def _connect(address: str | None, **options: Any) -> None:
    """Reach a cluster, or start one here with these options.

    Raises:
        FewchannelsError: it cannot be reached or started.
    """
    if ray.is_initialized():
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR} | (options if address is None else {})
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # advice to Ray's developers, not to our users
    if address is not None:
        _check_answers(address)
    _shorten_messages()
    try:
        with _without_standard_error():  # Ray's core announces that very setting there
            # Otherwise Ray would join the cluster that was last started here, and fail if that has died.
            ray.init(address=address or "local", job_config=_OwnPath(), **options)
    except ray.exceptions.AuthenticationError:
        raise FewchannelsError(refused_token(f"the cluster at {address!r}")) from None
    except Exception as error:  # what Ray raises while it starts has no common base class
        remedy = _address_space()
        if address is not None:
            remedy = "If the cluster requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. "
        raise FewchannelsError(
            f"Ray could not {'start here' if address is None else f'be reached at {address!r}'}: "
            f"{str(error).strip()}\n{remedy}Finished work is kept; run again to resume."
        ) from error


def _address_space() -> str:
    """Remedy if address space is limited, since Ray reserves far more than it uses; else empty."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        f"Virtual memory is limited to {size(limit)} (ulimit -v), of which Ray reserves more than it uses: run "
        "ulimit -v unlimited before, or limit memory by the job's or the container's own means. "
    )


def _check_answers(address: str) -> None:
    """Refuse a cluster where nothing listens, for which Ray would wait a minute without a message.

    Raises:
        FewchannelsError: nothing listens; the message names the address, and the variable that it is from.
    """
    variable = os.environ.get("RAY_ADDRESS", "")
    host, _, port = (variable if address == "auto" else address).rpartition(":")
    if not re.fullmatch(r"[\w.-]+", host) or not port.isdecimal():
        return  # Ray searches for a cluster on this machine, or handles this kind of address itself
    whose = ", which RAY_ADDRESS names" if address == "auto" else ""
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=_ANSWER_S):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise FewchannelsError(
                    f"nothing answers at {host}:{port}{whose}: {error.strerror or error}. Start the cluster's head "
                    "there, or correct the address; on a node of the cluster, auto finds it without RAY_ADDRESS."
                ) from None
        time.sleep(1)
