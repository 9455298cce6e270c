"""A real Ray of one node that takes jobs."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

BIN = Path(sys.executable).parent


@contextmanager
def job_server(folder: Path | None = None, **environment: str) -> Iterator[str]:
    """The address of its dashboard; its node finds this environment's commands.

    Args:
        folder: that it is started in; None for the current one.
        environment: of the node's processes, and of no other.
    """
    with socket.socket() as free:  # the port that every Ray takes by itself may be another's
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ({"PATH": f"{BIN}:{os.environ['PATH']}"} | environment).items():
            patched.setenv(name, value)
        patched.chdir(folder or Path.cwd())
        head = {"num_cpus": 2, "include_dashboard": True, "dashboard_agent_listen_port": port}
        cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield f"http://{cluster.head_node.address_info['webui_url']}"
    finally:
        cluster.shutdown()
