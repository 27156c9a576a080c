"""
A fleet whose PostgreSQL is in trouble: killed, behind a pooler, behind TLS, or open to few.

Every server here is the test's own, so that it may be killed; the sandbox keeps the true count.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import anyio
import asyncpg
import pytest
from clusters import Cluster, a_cluster, give, own_directory
from fleets import CHILD, Place, Server, a_database, ask, run_sql, sandbox_process, workers
from poolers import a_pooler
from relay import Fate, Watch, relay
from typer.testing import CliRunner

from useapi_voice import StoreError, _attempts
from useapi_voice._cli import app
from useapi_voice.stores import _database, _listener, _replica, _writer, postgres
from useapi_voice.stores import _fleet_sql as sql
from useapi_voice.stores._database import Address, Database
from useapi_voice.stores._listener import Listener
from useapi_voice.stores._writer import Writer

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

NORTH_SOUTH: dict[str, Any] = {"accounts": ["north", "south"], "clone_s": 1.0}


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what takes minutes take seconds in this process."""
    monkeypatch.setattr(postgres, "LEASE_MARGIN_S", 0.5)
    monkeypatch.setattr(_replica, "POLL_S", 0.3)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Give a server of the test's own."""
    with a_cluster() as cluster:
        yield cluster


@pytest.fixture
def server() -> Iterator[Server]:
    """Give a sandbox with short clones."""
    with sandbox_process(accounts=["north", "south"], clone_s=0.1) as server:
        yield server


@asynccontextmanager
async def through(url: str, watch: Watch) -> AsyncIterator[str]:
    """Give the URL of the same database through a wire that can be cut."""
    parts = urlsplit(url)
    async with relay(str(parts.hostname), parts.port or 5432, watch) as port:
        yield urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))


async def until(place: Place, question: str) -> None:
    """Wait until the server says yes."""
    while not place.server.ask(question):
        await anyio.sleep(0.02)


async def test_a_killed_database_loses_and_doubles_nothing(cluster: Cluster) -> None:
    """
    Killed three times in the middle of clones: submitters are told, nothing new leaves while it is away.

    What ended meanwhile is on record when it is back, by its answer: nobody had to look for a voice.
    """
    names = [f"voice {number}" for number in range(16)]
    with sandbox_process(**NORTH_SOUTH) as server:
        place = Place(cluster.url(), server)
        async with place.client(work=False) as api:
            with workers(2, **place.options, **CHILD):
                jobs = await api.submit_many([ask(name) for name in names])
                for _ in range(3):
                    await until(place, "sandbox.in_progress() >= 2")
                    cluster.kill()
                    with pytest.raises(StoreError, match=r"cannot be used.*can it be reached"):
                        await api.submit(ask("late"))
                    await anyio.sleep(0.2)  # whose leaving was on record leaves now
                    begun = server.ask("len(sandbox.clones)")
                    await until(place, "sandbox.in_progress() == 0")
                    await anyio.sleep(0.5)  # in which a new clone would have begun
                    assert server.ask("len(sandbox.clones)") == begun
                    cluster.start()
                for job in jobs:
                    await job
                assert {job.attempts for job in jobs} == {1}
        place.check(names)


# --- what else goes wrong at night ------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_h", [2, -2], ids=["fast", "slow"])
async def test_a_replica_whose_clock_is_off_loses_no_voice(skew_h: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone in mid-call, it left moments of its own clock: its voice is judged by the database's, and found."""

    class Off(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=skew_h)

    with a_database() as url, sandbox_process(**NORTH_SOUTH) as server:
        place = Place(url, server)
        with monkeypatch.context() as patch:
            patch.setattr(_attempts, "datetime", Off)
            async with place.client(close_grace_s=0.001) as leaver:
                await leaver.submit(ask("Ann"), key="ann")
                await until(place, "sandbox.in_progress() == 1")
        (row,) = run_sql(url, "SELECT payload, sent_at FROM useapi_voice.jobs")[0]
        sent_at = datetime.fromisoformat(json.loads(row["payload"])["history"][0]["sent_at"])
        assert abs(sent_at - row["sent_at"]) > timedelta(hours=1)
        async with place.client() as client:
            job = await client.find("ann")
            assert job is not None
            await job
        place.check(["Ann"])


async def test_a_lower_cap_counts_at_once(server: Server) -> None:
    """Replicas that run on with the old one heed it too: who lowers it at night may have no time to restart them."""
    names = [f"voice {number}" for number in range(6)]
    with a_database() as url:
        place = Place(url, server)
        async with place.client() as one, place.client() as other:
            await one.clone(ask("first"))
            await until_no_seat_is_held(url)
            said = await anyio.to_thread.run_sync(fleet, url, "accounts", "set", "north", "--max-parallel", "1")
            assert "Changed" in said
            jobs = [
                *await one.submit_many([ask(name) for name in names[:3]]),
                *await other.submit_many([ask(name) for name in names[3:]]),
            ]
            for job in jobs:
                await job
        assert server.ask("sandbox.max_parallel_seen.get('north')") == 1
        place.check(["first", *names])


async def until_no_seat_is_held(url: str) -> None:
    """Wait until no place is occupied."""
    while run_sql(url, "SELECT FROM useapi_voice.jobs WHERE seat IS NOT NULL")[0]:
        await anyio.sleep(0.02)


# --- what it says -----------------------------------------------------------------------------------------------------


async def test_a_database_that_takes_no_changes_is_owed_them(cluster: Cluster) -> None:
    """
    A standby by now, or read only as its disk is nearly full: what ends meanwhile is kept for when it takes changes.

    Submitters are told why.
    """
    names = [f"voice {number}" for number in range(4)]
    others = "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity {others}"
    with sandbox_process(**NORTH_SOUTH) as server:
        place = Place(cluster.url(), server)
        async with place.client() as client:
            jobs = await client.submit_many([ask(name) for name in names])
            await until(place, "sandbox.in_progress() == 4")
            await set_read_only(place.url, "on")
            run_sql(place.url, cut)
            said = ""
            while "takes no changes" not in said:  # and not that the connection was lost, which comes first
                with pytest.raises(StoreError) as raised:
                    await client.submit(ask("late"))
                said = str(raised.value)
            await until(place, "sandbox.in_progress() == 0")
            await set_read_only(place.url, "off")
            run_sql(place.url, cut)
            for job in jobs:
                await job
            assert [job.attempts for job in jobs] == [1] * 4
        assert run_sql(place.url, "SELECT DISTINCT state FROM useapi_voice.jobs")[0][0]["state"] == "cloned"
        place.check(names)


async def set_read_only(url: str, value: str) -> None:
    """Have new sessions take no changes, or take them again."""
    run_sql(url, f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()")
    while run_sql(url, "SELECT current_setting('default_transaction_read_only') AS value")[0][0]["value"] != value:
        await anyio.sleep(0.02)


@pytest.mark.parametrize("why", ["closed", "owed for too long"])
async def test_what_an_announcement_notes_is_announced_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """While the database is away; the ending of one job may be the next one's, and each is told."""
    monkeypatch.setattr(_writer, "CLOSE_S", 0.1)
    told: list[str] = []
    is_told = anyio.Event()
    database = Database(Address(cluster.url()))
    await database.open()
    writer = Writer(database)
    writer.start()
    cluster.kill()

    async def write(connection: Any) -> None:
        await connection.execute("SELECT")

    def note(left: int) -> None:
        told.append(f"{left} to go")
        if left:
            writer.note("an ending", write, lambda: note(left - 1))
        else:
            is_told.set()

    if why == "owed for too long":
        monkeypatch.setattr(_writer, "OWED_S", 0.0)
    writer.note("an ending", write, lambda: note(2))
    writer.note("another", write, lambda: told.append("another"))
    if why == "owed for too long":
        await is_told.wait()
    await writer.close()
    await database.close()
    assert sorted(told) == ["0 to go", "1 to go", "2 to go", "another"]


async def test_a_commit_whose_answer_was_lost_is_taken_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The submitter was told that nothing was kept, so nothing is made; under a key, it is made once."""
    armed: set[bytes] = set()

    async def leave_it(store: postgres.PostgresStore) -> None:
        """So that all commits are of what is submitted."""

    monkeypatch.setattr(postgres.PostgresStore, "tidy", leave_it)

    def watch(data: bytes) -> Fate:
        if b"COMMIT" in data and armed:
            armed.clear()
            return Fate.LOSES_THE_ANSWER
        return Fate.GOES_ON

    with a_database() as url:
        async with through(url, watch) as far, Place(far, server).client(work=False) as client:
            armed.add(b"COMMIT")
            with pytest.raises(StoreError):
                await client.submit(ask("lost"))
            while not armed and run_sql(url, "SELECT FROM useapi_voice.jobs")[0]:
                await anyio.sleep(0.02)
            armed.add(b"COMMIT")
            with pytest.raises(StoreError):
                await client.submit(ask("kept"), key="kept")
            job = await client.submit(ask("kept"), key="kept")
            async with Place(url, server).client():
                await job
        Place(url, server).check(["kept"])


async def test_a_silent_replica_holds_no_lock_for_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off, or stopped, in the middle of a claim: PostgreSQL ends its transaction, and the others go on."""
    monkeypatch.setattr(_database, "IDLE_S", 0.5)
    with a_database() as url:
        async with Place(url, server).client(accounts=["north", "south"]) as client:
            silent = Database(Address(url))
            await silent.open()
            try:
                with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                    async with silent.borrow() as connection, connection.transaction():
                        assert await connection.fetch(sql.LOCK_ALL_GATES)
                        await client.clone(ask("Ann"))
                        await connection.execute("SELECT")
            finally:
                await silent.close()
        Place(url, server).check(["Ann"])


async def test_a_listener_whose_other_end_is_gone_listens_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet says that it is gone: it is asked now and then, and what is told afterwards is heard."""
    monkeypatch.setattr(_listener, "PROBE_S", 0.2)
    monkeypatch.setattr(_listener, "PROBE_ANSWER_S", 0.2)
    is_silent, returned, heard = False, anyio.Event(), anyio.Event()

    def watch(_data: bytes) -> Fate:
        nonlocal is_silent
        falls, is_silent = is_silent, False
        return Fate.FALLS_SILENT if falls else Fate.GOES_ON

    with a_database() as url:
        async with through(url, watch) as far, anyio.create_task_group() as tasks:
            listener = Listener(Database(Address(far)), returned.set)
            listener.subscribe(sql.CHANNEL, lambda told: heard.set())
            await listener.start()
            is_silent = True
            tasks.start_soon(listener.keep)
            await returned.wait()
            run_sql(url, f"NOTIFY {sql.CHANNEL}, 'w:'")
            await heard.wait()
            tasks.cancel_scope.cancel()
            listener.stop()


async def test_what_gave_way_to_another_is_written_again() -> None:
    """Of two transactions that wait for each other one is rolled back: it is written again, and nobody is told."""
    with a_database() as url:
        database = Database(Address(url))
        await database.open()
        writer = Writer(database)
        writer.start()
        tries: list[int] = []

        async def write(connection: Any) -> int:
            tries.append(1)
            if len(tries) == 1:
                raise asyncpg.DeadlockDetectedError("deadlock detected")
            found: int = await connection.fetchval("SELECT 1")
            return found

        assert await writer.ask("writing", write) == 1
        assert len(tries) == 2
        await writer.close()
        await database.close()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (asyncpg.InvalidPasswordError("no"), "check the user"),
        (asyncpg.InsufficientPrivilegeError("no"), "fleet init"),
        (asyncpg.DuplicatePreparedStatementError("__asyncpg_stmt_1__ exists"), "in session mode"),
        (asyncpg.ReadOnlySQLTransactionError("no"), "standby"),
        (asyncpg.DiskFullError("no"), "lacks disk"),
        (asyncpg.TooManyConnectionsError("no"), "connections"),
        (ssl.SSLCertVerificationError("no"), "sslrootcert"),
        (TimeoutError(), "a connection left"),
        (ConnectionRefusedError(), "is PostgreSQL running"),
        (asyncpg.UndefinedTableError("no"), "not expected"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_has_its_remedy(error: Exception, remedy: str) -> None:
    """What failed, why, and what to do; never the password."""
    told = str(Address("postgresql://ann:hunter2@db.example/fleet").explain("a look", error))
    assert "db.example:5432/fleet cannot be used: a look failed" in told
    assert remedy in told
    assert "hunter2" not in told


# --- PgBouncer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("transaction", {}),
        ("transaction", {"server_round_robin": 1}),
        ("transaction", {"default_pool_size": 1}),
        ("statement", {}),
    ],
    ids=["transaction", "round-robin", "one-session", "statement"],
)
async def test_a_pooler_without_sessions_is_refused(cluster: Cluster, mode: str, settings: dict[str, Any]) -> None:
    """At once, with a remedy, by a client and by the shell, also where the only client always gets one session."""
    with a_pooler(cluster, mode, **settings) as url:
        place = Place(url, Server("http://127.0.0.1:9", "user:1-token", None))  # type: ignore[arg-type]
        with pytest.raises(StoreError, match=r"PgBouncer in transaction or statement mode.*in session mode"):
            async with place.client():
                pass
        done = await anyio.to_thread.run_sync(fleet, url, "init")
        assert "in session mode" in done
        assert not run_sql(cluster.url(), "SELECT FROM pg_namespace WHERE nspname = 'useapi_voice'")[0]


async def test_a_busy_pooler_without_sessions_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others keep its sessions moving, so that none is ever met twice, what is not heard is proof enough."""
    monkeypatch.setattr(_database, "CHECK_S", 0.5)
    monkeypatch.setattr(sql, "SESSION", "SELECT (random() * 1000000)::int")
    with a_pooler(cluster, "transaction") as url:
        with pytest.raises(StoreError, match=r"do not arrive.*in session mode"):
            await Database(Address(url)).open()


def fleet(url: str, *arguments: str) -> str:
    """Run a command of `fleet`."""
    return CliRunner().invoke(app, ["fleet", *arguments], env={"USEAPI_VOICE_STORE": url}).output


async def test_a_pooler_with_sessions_will_do(cluster: Cluster, server: Server) -> None:
    """Two clients and a batch, through a PgBouncer in session mode."""
    names = [f"voice {number}" for number in range(8)]
    with a_pooler(cluster, "session", default_pool_size=30) as url:
        place = Place(url, server)
        async with place.client() as one, place.client() as other:
            jobs = [
                *await one.submit_many([ask(name) for name in names[:4]]),
                *await other.submit_many([ask(name) for name in names[4:]]),
            ]
            for job in jobs:
                await job
            assert "north" in await anyio.to_thread.run_sync(fleet, url, "status")
        place.check(names)


# --- TLS --------------------------------------------------------------------------------------------------------------


def a_certificate(directory: Path, name: str) -> Path:
    """Make one that signs itself, for loopback."""
    if shutil.which("openssl") is None:
        pytest.skip("no certificates: openssl is not installed")
    file = directory / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{file}.key", "-out", file],
        check=True, capture_output=True,
    )  # fmt: skip
    for path in (file, Path(f"{file}.key")):
        path.chmod(0o600)
        give(path)
    return file


async def test_what_the_url_says_of_tls_reaches_the_driver(server: Server) -> None:
    """Asked for, it is used; a server that another root signed is refused, and no password is shown."""
    with own_directory() as directory:
        ours, other = a_certificate(directory, "ours"), a_certificate(directory, "other")
        settings = ("ssl=on", f"ssl_cert_file={ours}", f"ssl_key_file={ours}.key")
        rules = ("local all all trust", "hostssl all all 127.0.0.1/32 trust")
        with a_cluster(settings=settings, rules=rules) as cluster:
            url = cluster.url(user="postgres:hunter2")
            async with Place(f"{url}?sslmode=verify-full&sslrootcert={ours}", server).client() as client:
                await client.clone(ask("Ann"))
            async with Place(f"{url}?sslmode=require", server).client(work=False):
                query = (
                    "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename IS NOT NULL"
                )
                assert [row["ssl"] for row in run_sql(f"{url}?sslmode=require", query)[0]] == [True]
            for more, said in [
                (f"?sslmode=verify-full&sslrootcert={other}", "SSLCertVerificationError.*sslrootcert"),
                ("?sslmode=disable", "check the user"),
            ]:
                with pytest.raises(StoreError, match=said) as raised:
                    async with Place(url + more, server).client():
                        pass
                assert "hunter2" not in f"{raised.value} {raised.value.__cause__!r} {raised.value.__context__!r}"


# --- privileges -------------------------------------------------------------------------------------------------------


async def test_the_privileges_in_the_readme_are_enough(cluster: Cluster, server: Server) -> None:
    """After `fleet init` by an owner a replica works with those alone; without them it says what is missing."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    grants = re.findall(r"^ {4}(GRANT .* TO app;)$", readme, re.MULTILINE)
    assert grants
    place = Place(cluster.url(user="app"), server)
    run_sql(cluster.url(), "CREATE ROLE app LOGIN")
    lacks = r"lacks a privilege.*`useapi-voice fleet init`"
    with pytest.raises(StoreError, match=lacks):  # to make a schema
        async with place.client():
            pass
    assert "up to date" in await anyio.to_thread.run_sync(fleet, cluster.url(), "init")
    with pytest.raises(StoreError, match=lacks):  # to use it
        async with place.client():
            pass
    run_sql(cluster.url(), *grants)
    names = [f"voice {number}" for number in range(6)]
    async with place.client() as one, place.client() as other:
        jobs = [
            *await one.submit_many([ask(name) for name in names[:3]], keys=names[:3]),
            *await other.submit_many([ask(name) for name in names[3:]]),
        ]
        for job in jobs:
            await job
        assert await one.find(names[0]) is not None
        assert "north" in await anyio.to_thread.run_sync(fleet, place.url, "status")
    place.check(names)
