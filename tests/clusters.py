"""PostgreSQL servers of the tests' own: killed as a power cut would, and gone afterwards."""

from __future__ import annotations

import atexit
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

START_S = 30.0
"""For a start after a kill too, on a busy machine."""
SETTINGS = ("log_min_messages=warning", "autovacuum=off", "shared_buffers=16MB", "max_connections=60")


@cache
def binaries() -> Path | None:
    """Return where `initdb` and `postgres` are, or `None`."""
    found = shutil.which("initdb")
    if found is not None and (Path(found).resolve().parent / "postgres").exists():
        return Path(found).resolve().parent
    homes = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(homes, key=lambda path: int(re.sub(r"\D.*", "", path.parent.name) or 0), default=None)


@cache
def account() -> str | None:
    """Return as whom servers run: they refuse root; `None`: as we are."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall() if entry.pw_uid != 0}
    return next((name for name in ("postgres", "nobody", "daemon") if name in known), None)


def as_account() -> dict[str, Any]:
    """Return what has `subprocess` run something as that user."""
    name = account()
    if name is None:
        return {}
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def own_directory() -> Generator[Path, None, None]:
    """Make a directory for that user; not under pytest's, which nobody else may enter."""
    directory = Path(tempfile.mkdtemp(prefix="useapi-voice-pg-"))
    try:
        give(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def give(path: Path) -> None:
    """Let that user own it."""
    name = account()
    if name is not None:
        shutil.chown(path, name, pwd.getpwnam(name).pw_gid)


class Cluster:
    """
    One server with a data directory and a port of its own.

    Args:
        directory: Its own, made by `own_directory`.
        host: Where it listens; superusers get in from there without a password.
        settings: More of them, as `name=value`.
        rules: Lines of `pg_hba.conf`, in place of those that let everybody on loopback in.
    """

    def __init__(
        self, directory: Path, host: str = "127.0.0.1", settings: Sequence[str] = (), rules: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.host = host
        self.port = free_port(host)
        self._settings = [*SETTINGS, *settings]
        self._process: subprocess.Popen[bytes] | None = None
        home = binaries()
        assert home is not None
        self._home = home
        self._run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        if rules:
            (self._data / "pg_hba.conf").write_text("".join(f"{rule}\n" for rule in rules), encoding="ascii")

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def url(self, database: str = "postgres", user: str = "postgres", query: str = "") -> str:
        """Return the URL of a database."""
        return f"postgresql://{user}@{self.host}:{self.port}/{database}{query}"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._home / program, *arguments],
            check=False, cwd=self.directory, capture_output=True, text=True, **as_account(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        until = time.monotonic() + START_S
        while not self._is_started(until):
            # What a kill left behind may take a moment to be gone.
            assert time.monotonic() < until, self.log
            time.sleep(0.1)

    def _is_started(self, until: float) -> bool:
        options = {"listen_addresses": self.host, "port": self.port, "unix_socket_directories": self.directory}
        words = [f"{name}={value}" for name, value in options.items()] + self._settings
        arguments = [word for setting in words for word in ("-c", setting)]
        with (self.directory / "log").open("ab") as log:
            self._process = process = subprocess.Popen(
                [self._home / "postgres", "-D", "data", *arguments],
                cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_account(),
            )  # fmt: skip
        while process.poll() is None:
            assert time.monotonic() < until, self.log
            if self._says_ready(process.pid):
                return True
            time.sleep(0.02)
        return False

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="ascii").splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def kill(self) -> None:
        """Let it be gone at once, all its processes, as by a power cut; `start` has it recover."""
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)  # so that it has no more children from here on
        for pid in [*_children(process.pid), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """Shut it down, if it runs."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


def _children(parent: int) -> list[int]:
    """Return the children of a process; where the system does not show them, they notice by themselves."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def why_no_cluster() -> str:
    """Return why no server can be started here; empty if one can."""
    if binaries() is None:
        return "no PostgreSQL: neither initdb nor /usr/lib/postgresql is there; apt-get install postgresql"
    if os.geteuid() == 0 and account() is None:
        return "PostgreSQL does not run as root, and there is no other user"
    return ""


@contextmanager
def a_cluster(
    host: str = "127.0.0.1", settings: Sequence[str] = (), rules: Sequence[str] = ()
) -> Generator[Cluster, None, None]:
    """Run a server of one's own; skips, saying why, where that cannot be done."""
    if why := why_no_cluster():
        pytest.skip(why)
    with own_directory() as directory:
        cluster = Cluster(directory, host, settings, rules)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@cache
def shared_cluster() -> Cluster | None:
    """Return the server that all tests of this process share, until it ends; `None`: none can be started."""
    if why_no_cluster():
        return None
    directory = Path(tempfile.mkdtemp(prefix="useapi-voice-pg-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    give(directory)
    cluster = Cluster(directory, settings=["fsync=off"])
    atexit.register(cluster.stop)
    cluster.start()
    return cluster
