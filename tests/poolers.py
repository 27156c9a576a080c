"""PgBouncer, in front of a server of the tests' own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from clusters import Cluster, as_account, free_port, give, own_directory

START_S = 20.0


def program() -> str | None:
    """Return where it is; Debian keeps it where only root looks."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def a_pooler(cluster: Cluster, mode: str, **settings: object) -> Generator[str, None, None]:
    """Run one in this mode, and give the URL that goes through it; skips, saying why, where it is not installed."""
    found = program()
    if found is None:
        pytest.skip("no pgbouncer: apt-get install pgbouncer")
    with own_directory() as directory:
        port = free_port()
        options: dict[str, object] = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            **settings,
        }
        lines = ["[databases]", f"* = host={cluster.host} port={cluster.port} user=postgres", "[pgbouncer]"]
        file = directory / "pgbouncer.ini"
        file.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in options.items()), ""]))
        give(file)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [found, str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_account()
            )
        try:
            _wait_until_it_listens(process, port, directory / "log")
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            process.kill()
            process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.02)
