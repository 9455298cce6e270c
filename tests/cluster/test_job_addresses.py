"""Addresses of clusters that are none, or at which nothing listens, are told at once."""

import socket
import time

import pytest

from fewchannels.cluster.jobs import Jobs
from fewchannels.errors import FewchannelsError, InputError


@pytest.mark.parametrize(
    "address",
    ["random:0", "head", "", "head:x", "head:99999", ":6379", "ftp://head:21", "file:///etc/passwd", "http://"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is not the address of a Ray cluster"):
        Jobs(address)


def test_a_head_that_does_not_listen_is_told_at_once() -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(FewchannelsError, match=r"cannot be reached: Connection refused"):
            Jobs(f"127.0.0.1:{taken.getsockname()[1]}")
    assert time.monotonic() - started < 5
