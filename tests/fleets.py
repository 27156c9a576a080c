"""What the tests of the fleet share: a PostgreSQL server, found or started, and a database for each test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from clusters import shared_cluster, why_no_cluster
from harness import wav

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice._jobs import CancelChoice, Job
from useapi_voice._replies import Refused
from useapi_voice.stores import Gate, Ledger, _replica, postgres
from useapi_voice.stores.postgres import PostgresStore

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import Server, sandbox_process

__all__ = [
    "CHILD", "SETTINGS", "Bench", "Place", "Server", "Worker", "a_database", "a_store", "ask", "busiest", "database",
    "on", "opened", "place", "run_sql", "sandbox_process", "server", "some_workers", "who_holds", "workers",
]  # fmt: skip

SETTINGS: dict[str, Any] = {"clone_timeout_s": 3.0, "settle_after_s": 2.0}
"""What every client is told, so that what takes minutes takes seconds."""
CHILD: dict[str, Any] = {**SETTINGS, "lease_margin_s": 0.5, "poll_s": 0.3}
"""Of a worker in a process of its own."""

LOOPBACK = "postgresql://postgres@127.0.0.1:5432/postgres"


async def _run(url: str, *statements: str) -> list[Any]:
    connection = await asyncpg.connect(url, timeout=3)
    try:
        return [await connection.fetch(statement) for statement in statements]
    finally:
        await connection.close()


def run_sql(url: str, *statements: str) -> list[Any]:
    """Run statements on a loop of their own, each in its own transaction, and return their rows."""
    results: list[Any] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.extend(asyncio.run(_run(url, *statements)))
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results


@cache
def server() -> tuple[str | None, str]:
    """Return the URL of a server: the one named, else that on loopback, else one of our own; or why there is none."""
    url = _NAMED or LOOPBACK
    try:
        run_sql(url, "SELECT 1")
    except Exception as error:  # noqa: BLE001 - whatever it is, there is no server
        cluster = None if _NAMED else shared_cluster()
        if cluster is not None:
            return cluster.url(), ""
        why = f"{url.rpartition('@')[2]} says {type(error).__name__}" if _NAMED else why_no_cluster()
        return None, f"{why}; or name a server in USEAPI_VOICE_TEST_POSTGRES"
    return url, ""


# Read before any test hides the environment.
_NAMED = os.environ.get("USEAPI_VOICE_TEST_POSTGRES")


def on(url: str, database: str) -> str:
    """Return the URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@contextmanager
def a_database() -> Generator[str, None, None]:
    """Make a database for one test, and drop it afterwards; skips where there is no server."""
    url, why = server()
    if url is None:
        pytest.skip(why)
    name = f"useapi_voice_test_{uuid.uuid4().hex[:12]}"
    run_sql(url, f"CREATE DATABASE {name}")
    try:
        yield on(url, name)
    finally:
        run_sql(url, f"DROP DATABASE {name} WITH (FORCE)")


class Worker:
    """A working replica in a process of its own."""

    def __init__(self, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fleet_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(options) + "\n")
        self.process.stdin.flush()

    def wait_ready(self) -> None:
        """Wait until it works."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it in order, if it is still there, and return its code."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            code = self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code


@contextmanager
def workers(count: int, **options: Any) -> Generator[list[Worker], None, None]:
    """Run so many working replicas."""
    with some_workers([Worker(**options) for _ in range(count)]) as running:
        yield running


@contextmanager
def some_workers(running: list[Worker]) -> Generator[list[Worker], None, None]:
    """Wait until these work, and end them afterwards."""
    with contextlib.ExitStack() as stack:
        for worker in running:
            stack.callback(worker.stop)
        for worker in running:
            worker.wait_ready()
        yield running


HOLDS = """
    SELECT replica.pid FROM useapi_voice.jobs job
    JOIN useapi_voice.replicas replica ON replica.id = job.owner
    WHERE job.state = 'sent' AND job.seat IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1
"""


def who_holds(url: str) -> list[int]:
    """Return the processes that have clones in progress, the busiest first."""
    return [row["pid"] for row in run_sql(url, HOLDS)[0]]


async def busiest(url: str, running: list[Worker]) -> Worker:
    """Wait until one of these workers is in mid-call, and return the one with most clones in progress."""
    mine = {worker.process.pid: worker for worker in running if worker.process.poll() is None}
    while not (pids := [pid for pid in who_holds(url) if pid in mine]):
        await asyncio.sleep(0.02)
    return mine[pids[0]]


@dataclass
class Place:
    """Where a fleet lives."""

    url: str
    server: Server

    @property
    def options(self) -> dict[str, Any]:
        """What every client is told."""
        return {"token": self.server.token, "base_url": self.server.base_url, "store": self.url}

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[VoiceClient]:
        """Open a client in this process."""
        async with VoiceClient(**{**self.options, **SETTINGS, **options}) as client:
            yield client

    def check(self, names: list[str]) -> None:
        """Assert by the server's own count that no cap was broken, nothing lost and nothing doubled."""
        assert self.server.ask("len(sandbox.breaches)") == 0
        made = Counter(self.server.ask("[voice.voice_name for voice in sandbox.voices()]"))
        assert made == Counter(names)


def ask(name: str, **more: Any) -> CloneRequest:
    """Make a request."""
    return CloneRequest(voice_name=name, language_tag="English", samples=[wav()], **more)


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Give a database and a sandbox of two accounts in a process of its own."""
    monkeypatch.setattr(postgres, "LEASE_MARGIN_S", 0.5)
    monkeypatch.setattr(_replica, "POLL_S", 0.3)
    options = getattr(request, "param", {"accounts": ["north", "south"], "clone_s": 0.2})
    with a_database() as url, sandbox_process(**options) as server:
        yield Place(url, server)


class Bench:
    """A desk whose queue does nothing by itself: what the store asks of it is noted, and the test answers."""

    def __init__(self) -> None:
        self.is_taking = True
        self.waits_when_blocked = False
        self.adopted: list[tuple[Job, str, float | None]] = []
        self.ended: list[tuple[str, str | Refused]] = []
        self.expected: set[str] = set()
        self.heard: dict[str, Job] = {}
        self.forgotten: list[str] = []
        self.cancelled: list[tuple[str, str]] = []
        self.heeded: dict[str, Gate] = {}
        self.prepared: list[str] = []
        self.gates: dict[str, float] = {}
        self.found: list[str] = ["north"]
        self._changed = asyncio.Event()

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds that the store brings about."""
        while not holds():
            await self._changed.wait()

    async def discover(self) -> Sequence[str]:
        return self.found

    def adopt(self, job: Job, account: str, *, sent_ago_s: float | None, ledger: Ledger | None) -> None:
        self.adopted.append((job, account, sent_ago_s))
        self._note()

    def end(self, job: Job, why: str | Refused) -> None:
        self.ended.append((job.id, why))
        self._note()

    def waits_for(self) -> Sequence[str]:
        return list(self.expected)

    def has_ended(self, job: Job) -> None:
        self.heard[job.id] = job
        self.expected.discard(job.id)
        self._note()

    def was_forgotten(self, job_id: str) -> None:
        self.forgotten.append(job_id)
        self.expected.discard(job_id)
        self._note()

    def cancel(self, job_id: str, voice: CancelChoice) -> None:
        self.cancelled.append((job_id, voice))
        self._note()

    def heed(self, account: str, gate: Gate) -> None:
        self.heeded[account] = gate
        self._note()

    def gate_s(self, account: str) -> float:
        return self.gates.get(account, 0.0)

    async def prepare(self, job: Job, account: str) -> None:
        self.prepared.append(job.id)
        self._note()


def a_store(url: str, bench: Bench | None = None, **options: Any) -> PostgresStore:
    """Make a store on a database, with a desk if one is given."""
    store = PostgresStore(url, **{"keep_s": 3600.0, "clone_timeout_s": 3.0, "settle_after_s": 2.0, **options})
    if bench is not None:
        store.attach(bench)
    return store


@asynccontextmanager
async def opened(url: str, bench: Bench | None = None, **options: Any) -> AsyncIterator[PostgresStore]:
    """Open a store, and close it in order."""
    store = a_store(url, bench, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def database() -> Iterator[str]:
    """Give an empty database."""
    with a_database() as url:
        yield url
