"""
A fleet: several clients, in this process and others, on one database and one sandbox, which keeps the true count.

The server says what is true: `breaches` of the cap, and which voices were made. Leases are short here, and clones last
long enough that a process can be stopped in the middle of one.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter

import anyio
import asyncpg
import pytest
from fleets import CHILD, Place, ask, busiest, place, run_sql, workers

from useapi_voice import CloneCancelled, ConfigurationError, StoreError, VoiceClient, VoiceInfo
from useapi_voice._jobs import Job
from useapi_voice.stores.postgres import PostgresStore

__all__ = ["place"]

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

ONE = pytest.mark.parametrize("place", [{"accounts": ["north"], "clone_s": 0.03}], indirect=True)
LONG = pytest.mark.parametrize("place", [{"accounts": ["north", "south"], "clone_s": 1.0}], indirect=True)


async def test_who_submits_need_not_work(place: Place) -> None:
    """Jobs of a process that does not work are made by others, and its waiters get the voices, as does `find`."""
    names = [f"voice {number}" for number in range(12)]
    async with place.client(work=False) as api:
        jobs = await api.submit_many([ask(name) for name in names], keys=names)
        with workers(2, **place.options, **CHILD):
            voices = [await job for job in jobs]
        found = await api.find("voice 3")
        assert found is not None
        assert (await found).voice_id == voices[3].voice_id
        assert [voice.voice_name for voice in voices] == names
    place.check(names)


async def test_one_key_is_one_job_in_all_processes(place: Place) -> None:
    """Submitted in two processes at once, a key makes one job, and both wait for its voice."""
    async with place.client() as one, place.client() as other:
        found: list[VoiceInfo] = []

        async def submit(client: VoiceClient) -> None:
            found.append(await (await client.submit(ask("Ann"), key="ann")))

        async with anyio.create_task_group() as tasks:
            for client in (one, other, one, other):
                tasks.start_soon(submit, client)
    assert len({voice.voice_id for voice in found}) == 1
    place.check(["Ann"])


async def test_pinned_and_unpinned_jobs_share_one_cap(place: Place) -> None:
    """No account is idle while an unpinned job waits, and none has more than its places, pinned jobs among them."""
    async with place.client() as one, place.client() as other:
        pinned = [ask(f"pinned {number}", account="north") for number in range(6)]
        free = [ask(f"free {number}") for number in range(12)]
        jobs = [*await one.submit_many(pinned), *await other.submit_many(free)]
        for job in jobs:
            await job
        accounts = Counter(job.account for job in jobs)
    assert {job.account for job in jobs[:6]} == {"north"}
    assert accounts["south"] >= 6
    place.check([job.request.voice_name for job in jobs])


@ONE
async def test_the_cap_holds_under_ever_more_urgent_arrivals(place: Place) -> None:
    """Each job is more urgent than all before it, four processes work, and the server never sees a third clone."""
    names = [f"voice {number}" for number in range(150)]
    async with place.client(work=False) as api:
        with workers(4, **place.options, **CHILD):
            jobs = [await api.submit(ask(name), priority=number) for number, name in enumerate(names)]
            for job in jobs:
                await job
    assert place.server.ask("sandbox.max_parallel_seen") == {"north": 2}
    place.check(names)


@LONG
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_lost_worker_loses_and_doubles_nothing(place: Place, how: signal.Signals) -> None:
    """Killed in mid-call, or stopped past its lease and woken later: its clones are found, and its seats kept."""
    names = [f"voice {number}" for number in range(16)]
    async with place.client(work=False) as api:
        with workers(2, **place.options, **CHILD) as running:
            jobs = await api.submit_many([ask(name) for name in names])
            if how is signal.SIGKILL:
                lost = await busiest(place.url, running)
            else:
                # Wherever it is then: a moment after the record, what it does on waking is a race that no test decides.
                lost = running[0]
                await anyio.sleep(1.5)
            lost.signal(how)
            with workers(1, **place.options, **CHILD):
                await anyio.sleep(6.0 if how is signal.SIGSTOP else 0)
                if how is signal.SIGSTOP:
                    lost.signal(signal.SIGCONT)
                for job in jobs:
                    await job
    place.check(names)


@LONG
async def test_what_a_closed_client_leaves_in_progress_is_found(place: Place) -> None:
    """Closed in mid-call, without waiting: the others see its clones through, on whatever seats these are."""
    names = [f"voice {number}" for number in range(4)]
    async with place.client(work=False) as api:
        async with place.client(close_grace_s=0.001) as leaver:
            jobs = await leaver.submit_many([ask(name) for name in names], keys=names)
            await anyio.sleep(0.5)
        assert [job.done() for job in jobs] == [True] * 4
        async with place.client():
            for name in names:
                job = await api.find(name)
                assert job is not None
                await job
    place.check(names)


@LONG
async def test_a_claim_on_any_seat_finds_what_was_left(place: Place) -> None:
    """A clone left on the second seat alone is seen through by a turn of the first."""
    async with place.client(work=False) as api:
        async with place.client(close_grace_s=0.001) as leaver:
            job = await leaver.submit(ask("Ann"), key="ann")
            await anyio.sleep(0.5)
        run_sql(place.url, "UPDATE useapi_voice.jobs SET seat = 1 WHERE seat = 0")
        async with place.client():
            found = await api.find("ann")
            assert found is not None
            await found
    assert job.state.value == "sent"
    place.check(["Ann"])


@LONG
async def test_lost_connections_lose_and_double_nothing(place: Place) -> None:
    """Every connection to the database is cut, three times in the middle of clones; all goes on by itself."""
    names = [f"voice {number}" for number in range(14)]
    others = "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity {others}"
    async with place.client(work=False) as api:
        with workers(2, **place.options, **CHILD):
            jobs = await api.submit_many([ask(name) for name in names])
            for _ in range(3):
                await anyio.sleep(0.8)
                run_sql(place.url, cut)
            for job in jobs:
                await job
    place.check(names)


@LONG
async def test_a_database_that_is_away_stops_new_clones_only(place: Place) -> None:
    """While it is away `submit` says so, running clones finish, and nothing new leaves; then all are recorded."""
    names = [f"voice {number}" for number in range(10)]
    name = place.url.rpartition("/")[2]
    main = place.url.removesuffix(name) + "postgres"
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    async with place.client() as client, place.client() as other:
        jobs = await client.submit_many([ask(name) for name in names])
        await anyio.sleep(0.5)
        run_sql(main, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", cut)
        try:
            with pytest.raises(StoreError, match="cannot be used"):
                await other.submit(ask("late"))
            await anyio.sleep(2.0)
            begun = place.server.ask("len(sandbox.clones)")
            assert begun <= 4
            assert place.server.ask("sandbox.in_progress()") == 0
        finally:
            run_sql(main, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        for job in jobs:
            await job
    place.check(names)


async def test_a_replica_that_disagrees_is_refused(place: Place) -> None:
    """Another cap, or other accounts: the error names both, and how to change them; the fleet goes on."""
    async with place.client(accounts=["north", "south"]) as client:
        with pytest.raises(ConfigurationError, match=r"max_parallel=1.* 2.*fleet accounts set"):
            async with place.client(max_parallel=1):
                pass
        with pytest.raises(ConfigurationError, match=r"\['south'\].*\['north', 'south'\].*fleet accounts set"):
            async with place.client(accounts=["south"]):
                pass
        await client.clone(ask("Ann"))


async def test_a_job_that_another_process_has_can_be_cancelled(place: Place) -> None:
    """One that waits ends at once; the submitter learns of it."""
    async with place.client(work=False) as api:
        job = await api.submit(ask("Ann"))
        assert (await job.cancel()).value == "cancelled"
        with pytest.raises(CloneCancelled):
            await job
    assert place.server.ask("len(sandbox.clones)") == 0


async def test_time_runs_out_where_nobody_works(place: Place) -> None:
    """A job whose clock runs out while it waits ends, even if no worker is there."""
    async with place.client(work=False) as api:
        job = await api.submit(ask("Ann"), queue_timeout_s=0.2)
        assert (await job.wait()).value == "expired"


async def test_a_pause_is_everybodys(place: Place) -> None:
    """What one process was told to wait, all wait; the job goes on elsewhere or afterwards, and none is doubled."""
    place.server.ask("sandbox.fail('clone-voice', __import__('useapi_voice').sandbox.Fault.rate_limited(1), times=1)")
    names = [f"voice {number}" for number in range(8)]
    async with place.client() as one, place.client() as other:
        jobs = [
            *await one.submit_many([ask(n) for n in names[:4]]),
            *await other.submit_many([ask(n) for n in names[4:]]),
        ]
        for job in jobs:
            await job
    place.check(names)


@pytest.mark.parametrize("place", [{"accounts": ["north", "south"], "clone_s": 0.2}], indirect=True)
async def test_an_account_that_is_out_is_out_for_all(place: Place) -> None:
    """A 596 in one process closes the account for the fleet; its unpinned jobs are made by the others."""
    place.server.ask("sandbox.break_account('north')")
    async with place.client() as one, place.client() as other:
        jobs = [
            *await one.submit_many([ask(f"a{i}") for i in range(4)]),
            *await other.submit_many([ask(f"b{i}") for i in range(4)]),
        ]
        assert {voice.account for voice in [await job for job in jobs]} == {"south"}


async def test_a_job_that_was_claimed_for_an_account_that_goes_out_moves(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claimed before the account was out, and brought here afterwards: it waits for nobody, and others take it."""
    place.server.ask("sandbox.break_account('north')")
    fetch, claimed = PostgresStore.fetch_samples, Counter[str]()

    async def fetch_late(store: PostgresStore, job: Job, account: str, holder: str) -> None:
        claimed[account] += 1
        is_first = claimed[account] == 1
        await fetch(store, job, account, holder)
        while account == "north" and not is_first and (await store.gates())[account].refused is None:
            await anyio.sleep(0.01)

    monkeypatch.setattr(PostgresStore, "fetch_samples", fetch_late)
    async with place.client() as client:
        jobs = await client.submit_many([ask(f"voice {number}") for number in range(6)])
        assert {voice.account for voice in [await job for job in jobs]} == {"south"}
    assert claimed["north"] > 1


async def test_no_password_is_shown(place: Place) -> None:
    """Neither a repr nor an error has it."""
    url = "postgresql://ann:hunter2@127.0.0.1:1/nowhere"
    client = VoiceClient(**{**place.options, "store": url})
    with pytest.raises(StoreError) as raised:
        async with client:
            pass
    assert "127.0.0.1:1/nowhere" in str(raised.value)
    assert "hunter2" not in f"{client!r} {raised.value} {raised.value.__cause__!r} {vars(client)!r}"


async def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a client on a fleet says what to install; everything else works without it."""
    for name in (
        "postgres",
        "_claims",
        "_contents",
        "_database",
        "_listener",
        "_replica",
        "_schema",
        "_seats",
        "_turns",
        "_writer",
    ):
        monkeypatch.delitem(sys.modules, f"useapi_voice.stores.{name}")
    monkeypatch.delattr("useapi_voice.stores.postgres")
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'useapi-voice\[postgres\]'"):
        VoiceClient("user:1-token", store="postgresql://nowhere/fleet")
    VoiceClient("user:1-token")
    # What is missing besides is a broken installation, which that command would not mend.
    monkeypatch.setitem(sys.modules, "asyncpg", asyncpg)
    monkeypatch.setitem(sys.modules, "pgqueuer.domain.settings", None)
    with pytest.raises(ModuleNotFoundError, match="settings"):
        VoiceClient("user:1-token", store="postgresql://nowhere/fleet")
