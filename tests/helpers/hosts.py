"""Hosts on this machine, for tests of what crosses a network: each has an address, an sshd and processes of its own.

They are namespaces of the kernel. They share this machine's files, as nodes with a shared file system do, but for
``/tmp`` and the home folder, which are small disks of each host's own.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from network import network

ROOT = Path(__file__).parents[2]
NETWORK = "10.77.3"
_BRIDGE, _KEPT = "fc-hosts", "/run/fc-kept"
_SSHD = """ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
SetEnv PATH={path} RAY_worker_niceness=0
"""


class NoHostsError(Exception):
    """This machine lacks what it takes: root, iproute2, openssh-server, rsync, network namespaces."""


@dataclass(frozen=True)
class Host:
    """A network namespace, and its address."""

    name: str
    address: str

    def cut(self) -> None:
        """Take the cable out."""
        with network(changes=True):
            _run("ip", "link", "set", f"v-{self.name}", "down")

    def mend(self) -> None:
        """Put it back."""
        with network(changes=True):
            _run("ip", "link", "set", f"v-{self.name}", "up")


@contextmanager
def hosts(n: int, folder: Path, disk: str = "512m") -> Iterator[list[Host]]:
    """So many hosts while the context lasts; root may log in with the key ``folder/key``.

    Args:
        n: how many.
        folder: on this machine and all hosts the same; the key is put there.
        disk: size of each host's ``/tmp``.

    Raises:
        NoHostsError: why.
    """
    missing = [name for name in ("ip", "unshare", "ssh-keygen", "rsync", "/usr/sbin/sshd") if not shutil.which(name)]
    if os.geteuid() or missing:
        raise NoHostsError(f"it takes root and {', '.join(missing) or 'namespaces'}")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("key", "host_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    devices = ExitStack()
    try:
        with network(changes=True):
            made = _plugged_in(n, devices)
        with ExitStack() as processes:
            for host in made:
                _start(host, folder, disk, processes)
            for host in made:
                _wait_for(host, folder)
            yield made
    finally:
        with network(changes=True):
            devices.close()


def _plugged_in(n: int, stack: ExitStack) -> list[Host]:
    """Hosts on a bridge of their own."""
    made = [Host(f"fc{i}", f"{NETWORK}.{10 + i}") for i in range(n)]
    try:
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        stack.callback(_run, "ip", "link", "del", _BRIDGE)
        _run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        for host in made:
            _plug_in(host, stack)
    except subprocess.CalledProcessError as error:
        raise NoHostsError(f"{error.cmd}: {error.stderr}") from None
    return made


def _plug_in(host: Host, stack: ExitStack) -> None:
    _run("ip", "netns", "add", host.name)
    stack.callback(_run, "ip", "netns", "del", host.name)
    _run("ip", "link", "add", f"v-{host.name}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
    stack.callback(_run, "ip", "link", "del", f"v-{host.name}")
    _run("ip", "link", "set", f"v-{host.name}", "master", _BRIDGE, "up")
    _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _run("ip", "-n", host.name, "link", "set", device, "up")
    # It leads nowhere, but tells programs which address is their own.
    _run("ip", "-n", host.name, "route", "add", "default", "via", f"{NETWORK}.1")


def _start(host: Host, folder: Path, disk: str, stack: ExitStack) -> None:
    config = folder / f"sshd-{host.name}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    config.write_text(_SSHD.format(address=host.address, folder=folder, path=path))
    home = str(Path.home())
    kept = [path for path in map(str, (sys.base_prefix, ROOT, folder)) if path.startswith(("/tmp", home))]
    lines = ["set -e", f"hostname {host.name}", f"mkdir -p {_KEPT}", f"mount -t tmpfs tmpfs {_KEPT}"]
    for i, path in enumerate(kept):
        lines += [f"mkdir {_KEPT}/{i}", f"mount --rbind {path} {_KEPT}/{i}"]
    lines += [f"mount -t tmpfs -o size={disk} tmpfs /tmp", f"mount -t tmpfs -o size=64m tmpfs {home}"]
    for i, path in enumerate(kept):
        lines += [f"mkdir -p {path}", f"mount --rbind {_KEPT}/{i} {path}"]
    lines += ["chmod 1777 /tmp", f"exec /usr/sbin/sshd -D -e -f {config}"]
    own = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private", "--uts"]
    log = (folder / f"{host.name}.log").open("w")
    process = subprocess.Popen(
        ["ip", "netns", "exec", host.name, "unshare", *own, "bash", "-c", "\n".join(lines)], stdout=log, stderr=log
    )
    stack.callback(process.wait)
    stack.callback(process.kill)  # and with the first of its processes all others


def ssh(host: Host, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a host."""
    return subprocess.run(_ssh(host, folder) + list(command), capture_output=True, text=True, timeout=300, check=False)


def _ssh(host: Host, folder: Path) -> list[str]:
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5")
    return ["ssh", "-i", str(folder / "key"), *(f"-o{option}" for option in options), f"root@{host.address}"]


def _wait_for(host: Host, folder: Path) -> None:
    for _ in range(50):
        with suppress(subprocess.TimeoutExpired):
            if ssh(host, folder, "true").returncode == 0:
                return
        time.sleep(0.2)
    raise NoHostsError(f"{host.name} does not answer: {(folder / f'{host.name}.log').read_text()}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
