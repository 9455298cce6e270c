"""Default number of actors: as many as fit."""

from dataclasses import replace

from fewchannels import machine
from fewchannels.cluster.shares import Pool, check_shares
from fewchannels.errors import InputError

_ACTORS_OF_A_CPU = 16
_MOST_ACTORS = 4
# On a CPU: an actor takes as long to start as this many forwards of a small model; a large model uses every CPU.
_FORWARDS_OF_AN_ACTOR = 1_000
_FEW_SCORES = 250_000  # analyzed by one process before Ray has started


def check_room(n_actors: int | None, cpus_per_actor: int | None, n_cpus: int) -> None:
    """Refuse more actors or CPUs than one machine has.

    Args:
        n_actors: requested number of actors; None for no preference.
        cpus_per_actor: CPU threads of each; None for no preference.
        n_cpus: number of CPUs that this process may use.

    Raises:
        InputError: it has fewer CPUs than requested for an actor, or far fewer than actors are requested.
    """
    if cpus_per_actor is not None and cpus_per_actor > n_cpus:
        raise InputError(
            f"cpus_per_actor is {cpus_per_actor}; this process may use {n_cpus} CPU{'s' * (n_cpus > 1)}. Give "
            "fewer, or the --address of a Ray cluster that has them."
        )
    if n_actors is not None and n_actors > _ACTORS_OF_A_CPU * n_cpus:
        raise InputError(
            f"{n_actors} actors are too many for this machine: at most {_ACTORS_OF_A_CPU} for each of the "
            f"{n_cpus} CPU{'s' * (n_cpus > 1)} that this process may use. Give fewer, or the --address of a Ray "
            "cluster."
        )


def choose_pool(
    n_actors: int | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
    cpus_per_actor: int | None = None,
    n_forwards: int | None = None,
) -> Pool:
    """Fill in what the user left open: an actor per GPU; without one, an actor per CPU, at most four on one machine.

    Without a GPU there are fewer for small work: one for every thousand forwards.

    For a cluster, the resources of its current nodes are counted; nodes that have not started yet do not count.

    Args:
        n_actors: maximum number of actors; None for as many as fit.
        gpus_per_actor: GPUs of each actor; None for 1 if a GPU is available.
        address: address of a running Ray cluster, to which this process is connected from here on; None for this
            machine.
        cpus_per_actor: CPUs of each actor; None for an even share of its node, or 1 if a cluster has no node yet.
        n_forwards: number of forwards of one image in the work; None for many.

    Raises:
        InputError: a number is out of its range, more CPUs or GPUs per actor are requested than this machine or any
            node of a cluster has, or no number of actors is given and a cluster has no node yet.
        FewchannelsError: the cluster cannot be reached.
    """
    check_shares(n_actors=n_actors, gpus_per_actor=gpus_per_actor, cpus_per_actor=cpus_per_actor, address=address)
    if address is not None:
        from fewchannels.cluster.session import pool_of_cluster  # Ray takes a second to import

        return pool_of_cluster(n_actors, gpus_per_actor, address, cpus_per_actor)
    n_gpus, n_cpus = _n_gpus(), machine.processors()
    if (gpus_per_actor or 0) > n_gpus:
        raise InputError(
            f"each worker needs {gpus_per_actor:g} GPUs, but PyTorch finds {n_gpus} on this machine. Request fewer, or "
            "the --address of a Ray cluster that has them."
        )
    check_room(n_actors, cpus_per_actor, n_cpus)
    gpus = float(bool(n_gpus)) if gpus_per_actor is None else gpus_per_actor
    if n_actors is None:
        n_actors = max(1, int(n_gpus / gpus)) if gpus else min(n_cpus, _MOST_ACTORS)
        if not gpus and n_forwards is not None:
            n_actors = min(n_actors, max(1, n_forwards // _FORWARDS_OF_AN_ACTOR))
    return Pool(n_actors, gpus, cpus_per_actor or max(1, n_cpus // n_actors))


def choose_workers(n_workers: int | None, gpus_per_worker: float | None, address: str | None, n_scores: int) -> Pool:
    """Choose workers with one CPU thread each for an analysis: as many as a capture's actors; small work runs here.

    Args:
        n_workers: requested number of workers; 1 is this process; None chooses a number for the work.
        gpus_per_worker: GPUs of each worker; None for 1 if a GPU is available.
        address: address of a running Ray cluster; None for this machine.
        n_scores: number of scores that are analyzed.

    Raises:
        InputError: a number is out of range, or exceeds what is available.
    """
    if n_workers is None and address is None and gpus_per_worker == 0 and n_scores <= _FEW_SCORES:
        n_workers = 1
    return replace(choose_pool(n_workers, gpus_per_worker, address), cpus_per_actor=1)


def _n_gpus() -> int:
    """GPUs that PyTorch finds on this machine."""
    if not machine.has_gpus():
        return 0
    import torch

    return torch.cuda.device_count()
