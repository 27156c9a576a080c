"""
Hosts of a fleet, as network namespaces on this machine: their links can be cut, which no process notices at once.

    hub ──(api)── 10.77.1.1      every host has two links to the hub, one to the API and one to the database,
     │                           so that either can be cut without a word: no RST, no answer
     └───(data)── 10.77.2.1

Needs root and `ip`, as in a container with `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

NETS = {"api": 1, "data": 2}
_NEWNET = 0x40000000


class Hosts:
    """So many hosts, numbered from 1, and a hub where the database and the API live."""

    def __init__(self, count: int) -> None:
        self._prefix = f"uav{os.getpid()}"
        self.numbers = range(1, count + 1)
        # What multiprocessing starts once, and keeps, is not to live in a namespace.
        resource_tracker.ensure_running()

    def address(self, net: str) -> str:
        """Return the address of the hub on this net."""
        return f"10.77.{NETS[net]}.1"

    def name(self, number: int | None = None) -> str:
        """Return the namespace of a host, or of the hub."""
        return f"{self._prefix}{'hub' if number is None else number}"

    def make(self) -> None:
        """Make them, all links up."""
        hub = self.name()
        self._ip("netns", "add", hub)
        self._ip("-n", hub, "link", "set", "lo", "up")
        for net in NETS:
            self._ip("-n", hub, "link", "add", net, "type", "bridge")
            self._ip("-n", hub, "addr", "add", f"{self.address(net)}/24", "dev", net)
            self._ip("-n", hub, "link", "set", net, "up")
        for number in self.numbers:
            host = self.name(number)
            self._ip("netns", "add", host)
            self._ip("-n", host, "link", "set", "lo", "up")
            for net, third in NETS.items():
                port = f"{net}{number}"
                self._ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", net, "netns", host)
                self._ip("-n", hub, "link", "set", port, "master", net, "up")
                self._ip("-n", host, "addr", "add", f"10.77.{third}.{10 + number}/24", "dev", net)
                self._ip("-n", host, "link", "set", net, "up")

    def remove(self) -> None:
        """Remove what is there of them."""
        for number in (None, *self.numbers):
            _ip("netns", "delete", self.name(number))

    def cut(self, number: int, *nets: str) -> None:
        """Cut the links of a host."""
        for net in nets:
            self._ip("-n", self.name(), "link", "set", f"{net}{number}", "down")

    def mend(self, number: int, *nets: str) -> None:
        """Have them back."""
        for net in nets:
            self._ip("-n", self.name(), "link", "set", f"{net}{number}", "up")

    @contextmanager
    def inside(self, number: int | None = None) -> Generator[None, None, None]:
        """Let this thread, and all that it starts, be in the network of a host, or of the hub."""
        network = Path("/run/netns") / self.name(number)
        with Path("/proc/thread-self/ns/net").open("rb") as before, network.open("rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def _ip(self, *words: str) -> None:
        told = _ip(*words)
        assert not told, f"ip {' '.join(words)}: {told}"


def _ip(*words: str) -> str:
    """Run it; return what it has to say against it."""
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or f"code {done.returncode}"


def _enter(file: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, _NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def why_no_hosts() -> str:
    """Return why there can be none; empty if there can."""
    if shutil.which("ip") is None:
        return "no hosts: `ip` is not installed; apt-get install iproute2"
    probe = f"uav{os.getpid()}probe"
    told = _ip("netns", "add", probe) or _ip("-n", probe, "link", "add", "probe", "type", "bridge")
    _ip("netns", "delete", probe)
    return told and f"no hosts: no network namespaces here ({told})"


@contextmanager
def some_hosts(count: int) -> Generator[Hosts, None, None]:
    """Make hosts; skips, saying why, where that is not permitted."""
    if why := why_no_hosts():
        pytest.skip(why)
    hosts = Hosts(count)
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()
