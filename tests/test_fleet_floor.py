"""What a queue does differently in a fleet: clients on a real database, and what its store asks of them."""

from __future__ import annotations

import asyncio

import pytest
from fleets import Place, ask, place, run_sql

from useapi_voice import (
    Account,
    AuthenticationError,
    CloneCancelled,
    CloneError,
    CloneRefused,
    DeadlineExceeded,
    ServerError,
    StoreError,
    _fleet_floor,
)
from useapi_voice._jobs import Job
from useapi_voice._replies import Refused, Scope
from useapi_voice._roster import Roster
from useapi_voice.stores import _replica
from useapi_voice.stores.postgres import PostgresStore

__all__ = ["place"]

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

ONE = pytest.mark.parametrize("place", [{"accounts": ["north"], "clone_s": 0.3}], indirect=True)
FAULT = "__import__('useapi_voice').sandbox.Fault"


def fail(place: Place, what: str, fault: str, times: int = 1) -> None:
    """Plan a fault."""
    place.server.ask(f"sandbox.fail({what!r}, {FAULT}.{fault}, times={times})")


async def until_sent(place: Place, count: int = 1) -> None:
    """Wait until so many clones are in progress."""
    while place.server.ask("sandbox.in_progress()") < count:
        await asyncio.sleep(0.01)


@ONE
async def test_a_token_that_is_refused_ends_the_wait_and_leaves_the_jobs(place: Place) -> None:
    """Whoever waits here is told; the fleet keeps the jobs for a process whose token is good."""
    fail(place, "clone-voice", "status(401)", times=2)
    async with place.client() as client:
        jobs = await client.submit_many([ask(f"voice {n}") for n in range(4)], keys=[str(n) for n in range(4)])
        for job in jobs:
            with pytest.raises(CloneRefused):
                await job
        waiting = "SELECT count(*) AS n FROM useapi_voice.jobs WHERE state = 'queued' AND owner IS NULL"
        while run_sql(place.url, waiting)[0][0]["n"] < 4:
            await asyncio.sleep(0.02)
    async with place.client() as client:
        for n in range(4):
            found = await client.find(str(n))
            assert found is not None
            await found
    place.check([f"voice {n}" for n in range(4)])


async def test_whoever_waits_for_a_forgotten_job_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voice may exist: nobody here knows."""
    monkeypatch.setattr(_replica, "TIDY_EVERY", 2)
    async with place.client(work=False) as api:
        job = await api.submit(ask("Ann"), key="ann")
        run_sql(place.url, "DELETE FROM useapi_voice.jobs")
        with pytest.raises(CloneCancelled, match="was forgotten") as raised:
            await job
        assert raised.value.voice_may_exist
        again = await api.submit(ask("Ann"), key="ann")
        assert again.id != job.id
        assert (await again.cancel()).value == "cancelled"


async def test_accounts_are_asked_for_until_they_are_known(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a broken remote nor a refused token is the end of it."""
    monkeypatch.setattr(_fleet_floor, "DISCOVER_AGAIN_S", 0.01)
    monkeypatch.setattr(_fleet_floor, "REFUSED_PAUSE_S", 0.01)
    ask_remote, troubles = Roster.all, [ServerError("broken"), AuthenticationError("refused"), ServerError("broken")]

    async def all_in_the_end(self: Roster) -> tuple[Account, ...]:
        if troubles:
            raise troubles.pop()
        return await ask_remote(self)

    monkeypatch.setattr(Roster, "all", all_in_the_end)
    async with place.client() as client:
        while troubles:
            await asyncio.sleep(0.01)
        assert (await client.clone(ask("Ann"))).voice_name == "Ann"


@ONE
async def test_a_job_in_progress_is_cancelled_where_it_is(place: Place) -> None:
    """By a handle of this process, or from another: its voice is deleted, and both are told the truth."""
    async with place.client() as client, place.client(work=False) as api:
        mine, other = await client.submit(ask("mine")), await api.submit(ask("other"))
        await until_sent(place, 2)
        states = await asyncio.gather(mine.cancel(voice="delete"), other.cancel(voice="delete"))
        assert [state.value for state in states] == ["cancelled", "cancelled"]
        found = [job async for job in api.jobs()]
        assert {job.state.value for job in found} == {"cancelled"}
    assert place.server.ask("[voice.voice_name for voice in sandbox.voices()]") == []


@ONE
async def test_what_no_account_can_serve_is_refused_and_served_when_one_is_back(place: Place) -> None:
    """The account is out for all: unpinned jobs end; when it is back in order, jobs are made again."""
    place.server.ask("sandbox.break_account('north')")
    async with place.client(look_again_after_s=0.3) as client, place.client(look_again_after_s=0.3) as other:
        jobs = await client.submit_many([ask(f"voice {n}") for n in range(3)])
        for job in jobs:
            with pytest.raises(CloneError) as raised:
                await job
            assert raised.value.safe_to_retry
        place.server.ask("sandbox.repair('north')")
        while any(lane.closed_by for lane in (*client.statistics().lanes, *other.statistics().lanes)):
            await asyncio.sleep(0.02)
        assert (await client.clone(ask("Ann"))).voice_name == "Ann"


@ONE
async def test_draining_returns_what_is_left_to_the_fleet(place: Place) -> None:
    """What was sent is finished; the rest is with the fleet, and another goes on with it."""
    async with place.client() as client:
        jobs = await client.submit_many([ask(f"voice {n}") for n in range(5)], keys=[str(n) for n in range(5)])
        await until_sent(place, 2)
        left = await client.drain()
        assert {job.id for job in left} <= {job.id for job in jobs}
        assert len(left) >= 2
    async with place.client() as client:
        for n in range(5):
            found = await client.find(str(n))
            assert found is not None
            await found
    place.check([f"voice {n}" for n in range(5)])


@ONE
async def test_patience_that_a_deadline_does_not_leave_ends_the_job(place: Place) -> None:
    """The only account asks for more of it; nobody else could serve the job."""
    fail(place, "clone-voice", "rate_limited(30)")
    async with place.client() as client:
        job = await client.submit(ask("Ann"), deadline_s=10.0)
        with pytest.raises(DeadlineExceeded, match="more than its deadline leaves"):
            await job


@ONE
async def test_a_lost_answer_is_looked_for_even_if_the_fleet_cannot_be_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process knows of the account's voices is enough to go on."""

    async def away(*_: object) -> None:
        raise StoreError("away")

    fail(place, "clone-voice", "drop(made=True)")
    monkeypatch.setattr(PostgresStore, "ledger", away)
    async with place.client() as client:
        assert (await client.clone(ask("Ann"))).voice_name == "Ann"
    place.check(["Ann"])


async def test_a_job_that_is_claimed_while_its_account_is_shut_goes_on_elsewhere(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account was refused between the claim and the beginning: the job does not wait there until it is back."""
    shut: list[str] = []
    async with place.client() as client:
        fetch = PostgresStore.fetch_samples

        async def fetch_and_shut(self: PostgresStore, job: Job, account: str, holder: str) -> None:
            await fetch(self, job, account, holder)
            if not shut:
                shut.append(account)
                client._queue._lanes.close(account, Refused(ServerError, Scope.ACCOUNT, "out of order", 596))

        monkeypatch.setattr(PostgresStore, "fetch_samples", fetch_and_shut)
        assert (await client.clone(ask("Ann"))).account not in shut
    place.check(["Ann"])
