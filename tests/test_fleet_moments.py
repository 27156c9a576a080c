"""A fleet on a real database, in the moments that go wrong: words that get lost, rows that others left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import asyncpg
import pytest
from fleets import Bench, Place, a_store, ask, database, opened, place, run_sql
from stored import a_job, a_voice, keyed, requeue, send

from useapi_voice import CloneCancelled, ConfigurationError, StoreError
from useapi_voice._errors import AccountUnavailable
from useapi_voice._jobs import Job, advance, ending_of
from useapi_voice._replies import Refused, Scope
from useapi_voice.stores import KeyTaken, _claims, _fleet_sql, _replica, _schema, postgres
from useapi_voice.stores.postgres import PostgresStore

__all__ = ["database", "place"]

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

LOST = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
OUT = Refused(AccountUnavailable, Scope.ACCOUNT, "out of order", 596)
MANY = 450


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll often, and keep leases short."""
    monkeypatch.setattr(_replica, "POLL_S", 0.1)
    monkeypatch.setattr(postgres, "LEASE_MARGIN_S", 0.5)
    monkeypatch.setattr(postgres, "ASK_AGAIN_S", 0.0)
    monkeypatch.setattr(postgres, "TIDY_AFTER_S", -1.0)


def lose_words(monkeypatch: pytest.MonkeyPatch, store: PostgresStore, part: str) -> list[int]:
    """Commit what the store is asked to write next, if its name has this part, and lose the word of it, once."""
    ask_for, times = store._writer.ask, [1]

    async def lose(what: str, run: Any) -> Any:
        answer = await ask_for(what, run)
        if part in what and times:
            times.clear()
            raise store.database.address.explain(what, LOST)
        return answer

    monkeypatch.setattr(store._writer, "ask", lose)
    return times


async def rows(url: str, columns: str = "*", where: str = "true") -> list[Any]:
    """Read jobs."""
    return (
        await asyncio.to_thread(run_sql, url, f"SELECT {columns} FROM useapi_voice.jobs WHERE {where} ORDER BY seq")
    )[0]


async def sql(url: str, *statements: str) -> None:
    """Run statements."""
    await asyncio.to_thread(run_sql, url, *statements)


async def end(store: PostgresStore, job: Job) -> None:
    """End a job."""
    told = asyncio.Event()
    advance(job, ending_of(a_voice(job.seq)))
    store.settled(job, a_voice(job.seq), told.set)
    await told.wait()


@asynccontextmanager
async def idle(url: str, bench: Bench, **options: Any) -> AsyncIterator[PostgresStore]:
    """Open a store of a process that takes part, and takes no jobs."""
    async with opened(url, bench, work=False, accounts=["north", "south"], **options) as store:
        yield store


# --- words that get lost ----------------------------------------------------------------------------------------------


async def test_an_add_whose_word_is_lost_is_taken_back(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller was told that nothing was kept: so nothing stays, but what he can come back to by its key."""
    async with idle(database, Bench()) as store:
        lose_words(monkeypatch, store, "keeping 2 jobs")
        with pytest.raises(StoreError, match="keeping 2 jobs failed"):
            await store.add([keyed(a_job(1), "mine"), a_job(2)])
        assert await store.find("mine") is not None
        with pytest.raises(KeyTaken):
            await store.add([keyed(a_job(3), "mine")])
        assert [row["key"] for row in await rows(database)] == ["mine"]


async def test_a_claimed_job_whose_word_was_lost_is_cancelled(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another replica was faster than the taking back: it is asked to end the job."""
    async with idle(database, Bench()) as store:
        ask_for = store._writer.ask

        async def claim_and_lose(what: str, run: Any) -> Any:
            await ask_for(what, run)
            await sql(database, "UPDATE useapi_voice.jobs SET owner = 'another', seat = 0, account = 'north'")
            raise store.database.address.explain(what, LOST)

        monkeypatch.setattr(store._writer, "ask", claim_and_lose)
        with pytest.raises(StoreError):
            await store.add([a_job(1)])
        monkeypatch.undo()
        await store.flush()
        assert [row["cancelling"] for row in await rows(database)] == ["keep"]


async def test_a_sent_job_whose_word_is_lost_goes_back_to_the_waiting(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on record as sent, but the request must not leave; handed back, it is nobody's, and was never sent."""
    bench = Bench()
    async with opened(database, bench, accounts=["north", "south"]) as store:
        await store.add([a_job(1)])
        await bench.until(lambda: bench.adopted)
        job = bench.adopted[0][0]
        lose_words(monkeypatch, store, "is sent")
        bench.is_taking = False
        with pytest.raises(StoreError, match="is sent failed"):
            await store.sent(send(job))
        assert [row["state"] for row in await rows(database)] == ["sent"]
        job.attempts -= 1
        store.handed_back(requeue(job))
        await store.flush()
        (row,) = await rows(database)
        assert (row["state"], row["owner"], row["seat"], row["sent_at"], row["attempts"]) == (
            "queued",
            None,
            None,
            None,
            0,
        )


async def test_nothing_leaves_that_another_replica_has_taken_over(database: str) -> None:
    """Nor is anything noted for it; but a voice that was made is the truth, whoever brings it."""
    bench = Bench()
    async with opened(database, bench, accounts=["north", "south"]) as store:
        await store.add([a_job(1)])
        await bench.until(lambda: bench.adopted)
        job = bench.adopted[0][0]
        await sql(database, "UPDATE useapi_voice.jobs SET owner = 'another'")
        with pytest.raises(StoreError, match="is another replica's by now"):
            await store.sent(send(job))
        store.changed(job)
        await store.flush()
        assert [(row["state"], row["owner"]) for row in await rows(database)] == [("queued", "another")]
        await sql(database, "UPDATE useapi_voice.jobs SET state = 'sent', attempts = 1, sent_at = now()")
        await end(store, job)
        store.handed_back(job)
        await store.flush()
        assert [row["state"] for row in await rows(database)] == ["cloned"]
        late = send(a_job(9))
        await end(store, late)


async def test_a_process_that_slept_sends_nothing(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On record, but so long ago that somebody may have the seat before the request would be there."""
    async with opened(database) as store:
        job = a_job(1)
        await store.add([job])
        store.lease_s = 0.0
        with pytest.raises(StoreError, match="took too long"):
            await store.sent(send(job))


async def test_a_cancel_whose_word_is_lost_ends_the_job_once(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, the claim that nobody heard of is its own."""
    bench, job = Bench(), a_job(1)
    async with idle(database, bench) as store:
        await store.add([job])
        times = lose_words(monkeypatch, store, "cancelling")
        store.cancel(job, "keep")
        await bench.until(lambda: bench.ended)
        assert bench.ended == [(job.id, "cancelled")]
        assert times == []
    store.cancel(job, "keep")


async def test_a_claim_to_end_that_nobody_heard_of_is_given_up(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the replica itself, which lives; then it ends as it should."""
    monkeypatch.setattr(postgres, "ENDING_S", 0.0)
    bench, job = Bench(), a_job(1)
    async with idle(database, bench) as store:
        await store.add([job])
        past = "now() - interval '1 second'"
        claimed = f"owner = '{store.replica_id}', claimed_at = {past}, queue_deadline_at = {past}"
        await sql(database, f"UPDATE useapi_voice.jobs SET {claimed}")
        await store.tidy()
        await bench.until(lambda: bench.ended)
    assert bench.ended == [(job.id, "queue_timeout_s")]


async def test_what_a_dead_replica_was_about_to_end_is_let_go(database: str) -> None:
    """Its row is gone, or it was not seen for a minute."""
    bench, job = Bench(), a_job(1)
    async with idle(database, bench) as store:
        await store.add([job])
        await sql(database, "UPDATE useapi_voice.jobs SET owner = 'dead', queue_deadline_at = now()")
        await store.tidy()
        await bench.until(lambda: bench.ended)


# --- what is not heard ------------------------------------------------------------------------------------------------


async def test_an_ending_of_which_nothing_was_heard_is_found(database: str) -> None:
    """The notification was lost; the poll looks at what ended lately."""
    bench, job = Bench(), a_job(1)
    async with idle(database, bench) as store:
        bench.expected = {job.id}
        await store.add([job])
        await sql(database, "UPDATE useapi_voice.jobs SET state = 'cloned', settled_at = now()")
        await bench.until(lambda: bench.heard)
        assert set(bench.heard) == {job.id}


async def test_a_job_that_is_gone_is_missed_in_the_end(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten by another before anybody here learned how it ended; one that is just being added is not missed."""
    monkeypatch.setattr(_replica, "TIDY_EVERY", 2)
    bench, gone, coming = Bench(), a_job(1), a_job(2, sample=b"any")
    async with idle(database, bench) as store:
        may_go_on = asyncio.Event()

        async def put(_: Any) -> None:
            await may_go_on.wait()
            raise StoreError("no more")

        monkeypatch.setattr(store._contents, "put", put)
        bench.expected = {gone.id, coming.id}
        add = asyncio.create_task(store.add([coming]))
        await bench.until(lambda: bench.forgotten)
        assert bench.forgotten == [gone.id]
        may_go_on.set()
        await asyncio.gather(add, return_exceptions=True)


async def test_news_that_must_wait_is_looked_for_by_the_poll(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is away just when an ending is heard of, for longer than the poll looks back."""
    monkeypatch.setattr(_replica, "OVERLAP_S", 0.0)
    bench, job = Bench(), a_job(1)
    async with idle(database, bench) as store:
        await store.add([job])
        replica = store._replica
        assert replica is not None
        look, times = replica._look_for_endings, []

        async def look_in_vain_at_first(ids: set[str]) -> None:
            if ids and not times:
                times.append(1)
                raise StoreError("away")
            await look(ids)

        monkeypatch.setattr(replica, "_look_for_endings", look_in_vain_at_first)
        bench.expected = {job.id}
        await sql(
            database,
            "UPDATE useapi_voice.jobs SET state = 'cloned', settled_at = now() - interval '30 minutes'",
            f"SELECT pg_notify('{_fleet_sql.CHANNEL}', 'o:{job.id}')",
        )
        await bench.until(lambda: bench.heard)
        assert times == [1]


async def test_a_long_look_that_fails_is_made_again(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is away when all jobs that somebody waits for are looked for: the next poll looks for them."""
    bench = Bench()
    async with idle(database, bench) as store:
        replica = store._replica
        assert replica is not None
        tries, looked = [], asyncio.Event()

        async def look_in_vain_at_first() -> None:
            tries.append(1)
            if len(tries) == 1:
                raise StoreError("away")
            looked.set()

        monkeypatch.setattr(replica, "_look_for_all", look_in_vain_at_first)
        replica._has_returned()
        await looked.wait()
        assert len(tries) == 2


async def test_words_of_a_newer_version_are_not_understood_and_do_no_harm(database: str) -> None:
    """Whatever they mean, what comes after is heard."""
    bench, job = Bench(), a_job(1)
    async with idle(database, bench) as store:
        await store.add([job])
        bench.expected = {job.id}
        await sql(
            database, f"SELECT pg_notify('{_fleet_sql.CHANNEL}', 'z:what')", "UPDATE useapi_voice.jobs SET owner = 'x'"
        )
        store.look_for(job.id)
        await sql(
            database,
            "UPDATE useapi_voice.jobs SET state = 'cloned', settled_at = now()",
            f"SELECT pg_notify('{_fleet_sql.CHANNEL}', 'o:{job.id}')",
        )
        await bench.until(lambda: bench.heard)
    store.look_for(job.id)


# --- who ends what ----------------------------------------------------------------------------------------------------


async def test_all_whose_time_is_up_end_in_one_poll(database: str) -> None:
    """However many they are, and by the clock that ran out, which is the database's."""
    bench = Bench()
    async with idle(database, bench) as store:
        jobs = [a_job(seq) for seq in range(1, MANY + 1)]
        for job in jobs:
            job.queue_deadline_at = datetime.now(UTC) + timedelta(hours=1)
        await store.add(jobs)
        at = "CASE WHEN seq % 2 = 0 THEN now() END"
        await sql(database, f"UPDATE useapi_voice.jobs SET queue_deadline_at = now(), deadline_at = {at}")
        await bench.until(lambda: len(bench.ended) == MANY)
    assert Counter(why for _, why in bench.ended) == {"deadline_s": MANY // 2, "queue_timeout_s": MANY // 2}


async def test_jobs_that_nobody_can_serve_are_refused_unless_they_are_to_wait(database: str) -> None:
    """Those that are pinned to an account that is out; all, when all are out; and none of the others."""
    bench = Bench()
    bench.waits_when_blocked = True
    async with opened(database, bench, accounts=["north", "south"]) as store:
        bench.is_taking = False
        pinned = [a_job(seq, account="north") for seq in range(1, MANY + 1)]
        free = a_job(MANY + 1, account="south")
        free.pinned = free.account = None
        store.closed("north", OUT, 300.0)
        await store.add([*pinned, free])
        await bench.until(lambda: bench.heeded.get("north") and bench.heeded["north"].refused)
        assert bench.ended == []
        bench.waits_when_blocked, bench.is_taking = False, True
        bench.gates = {"south": 1000.0}
        await bench.until(lambda: len(bench.ended) == MANY)
        assert {job_id for job_id, _ in bench.ended} == {job.id for job in pinned}
        store.closed("south", OUT, 300.0)
        await bench.until(lambda: len(bench.ended) == MANY + 1)
        assert bench.ended[-1] == (free.id, OUT)
        store.opened("north")


async def test_who_has_a_job_hears_that_it_is_to_be_cancelled(database: str) -> None:
    """Wherever that was said, with what is to become of a voice; who has none of it is not asked."""
    bench, other = Bench(), Bench()
    async with opened(database, bench, accounts=["north", "south"]) as store, idle(database, other) as api:
        await api.add([a_job(1)])
        await bench.until(lambda: bench.adopted)
        job = bench.adopted[0][0]
        await store.sent(send(job))
        api.cancel(job, "delete")
        await bench.until(lambda: bench.cancelled)
        assert set(bench.cancelled) == {(job.id, "delete")}
        store.freed(job)
        await end(store, job)
        assert other.cancelled == []


async def test_a_job_that_is_not_worked_on_here_is_not_cancelled_here(database: str) -> None:
    """Claimed by this replica in order to end it, say: only what is on a seat of it is the queue's to cancel."""
    bench = Bench()
    async with opened(database, bench, accounts=["north", "south"]) as store:
        await store.add([a_job(1)])
        await bench.until(lambda: bench.adopted)
        await sql(
            database,
            "INSERT INTO useapi_voice.jobs (seq, id, state, priority, voice_name, payload, attempts, shas, owner, "
            f"cancelling) VALUES (99, 'other', 'queued', 0, 'Ann', '{{}}', 0, '{{}}', '{store.replica_id}', 'keep')",
        )
        assert store._replica is not None
        await store._replica._heed_cancels()
        assert bench.cancelled == []
        await sql(database, "DELETE FROM useapi_voice.jobs WHERE id = 'other'")
        job = bench.adopted[0][0]
        await store.sent(send(job))
        store.freed(job)
        await end(store, job)


async def test_the_ending_of_a_job_may_come_before_its_place_is_free(database: str) -> None:
    """Its time is up while the remote is at it: its seat stays taken until the remote is done."""
    bench = Bench()
    async with opened(database, bench, accounts=["north", "south"]) as store:
        await store.add([a_job(1)])
        await bench.until(lambda: bench.adopted)
        job = bench.adopted[0][0]
        await store.sent(send(job))
        await end(store, job)
        assert [row["seat"] is None for row in await rows(database)] == [False]
        assert not await store.forget(job.id)
        store.freed(job)
        await store.flush()
        assert [(row["seat"], row["owner"]) for row in await rows(database)] == [(None, None)]


# --- what others left on a seat ---------------------------------------------------------------------------------------


async def left_behind(url: str, columns: str) -> tuple[Bench, PostgresStore, Job]:
    """Leave a job on the first seat of the north, and open a replica that takes nothing until it is told."""
    async with idle(url, Bench()) as store:
        job = a_job(2)
        job.pinned = job.account = "north"
        await store.add([job])
    await sql(url, f"UPDATE useapi_voice.jobs SET owner = 'gone', seat = 0, {columns}")
    bench = Bench()
    store = a_store(url, bench, accounts=["north", "south"])
    await store.open()
    return bench, store, job


async def test_a_job_that_was_claimed_and_never_sent_is_claimed_anew(database: str) -> None:
    """Its owner is gone; nothing can have been made."""
    bench, store, job = await left_behind(database, "state = 'queued'")
    await bench.until(lambda: bench.adopted)
    await store.aclose()
    assert [(found.id, sent_ago_s) for found, _, sent_ago_s in bench.adopted] == [(job.id, None)]


async def test_a_job_that_was_sent_is_looked_for_with_its_age(database: str) -> None:
    """By the database's clock, whatever those of the hosts say."""
    bench, store, job = await left_behind(database, "state = 'sent', sent_at = now() - interval '100 seconds'")
    await bench.until(lambda: bench.adopted)
    await store.aclose()
    ((found, account, sent_ago_s),) = bench.adopted
    assert (found.id, account) == (job.id, "north")
    assert sent_ago_s is not None
    assert 100 <= sent_ago_s < 160


@pytest.mark.parametrize("sent", ["now()", "now() - interval '1 hour'", "NULL"])
async def test_the_seat_of_an_ended_job_is_free_when_the_remote_must_be_done(
    database: str, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended early, and its owner is gone: the rest of the time is waited for, and no longer."""
    monkeypatch.setattr(_claims, "LONGEST_WAIT_S", 0.05)
    bench, store, _ = await left_behind(database, f"state = 'expired', settled_at = now(), sent_at = {sent}")
    began_t = asyncio.get_running_loop().time()
    next_one = a_job(4)
    next_one.pinned = next_one.account = "north"
    store.limited("north", 1)
    await store.add([next_one])
    await bench.until(lambda: bench.adopted)
    waited_s = asyncio.get_running_loop().time() - began_t
    await store.aclose()
    assert [found.id for found, _, _ in bench.adopted] == [next_one.id]
    if sent == "now()":
        assert waited_s > 1.0, "the remote may have been at it for `settle_after_s`"


async def test_a_turn_that_this_process_lost_waits_for_its_own_work(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease ran out while it slept, and it is given its own seat again."""
    bench = Bench()
    async with opened(database, bench, accounts=["north", "south"]) as store:
        job = a_job(2)
        await store.add([job])
        await bench.until(lambda: bench.adopted)
        account = bench.adopted[0][1]
        seat = (await rows(database))[0]["seat"]
        found = await _claims.claim(store, bench, account, seat, {job.id})
        assert (found.job, found.wait_s) == (None, _claims.BUSY_S)
        bench.is_taking = False
        other = await _claims.claim(store, bench, "south" if account == "north" else "north", 1, {job.id})
        assert other.wait_s == float("inf")
        bench.is_taking = True
        nobody = await _claims.claim(store, bench, "nowhere", 0, {job.id})
        assert nobody.wait_s == float("inf")
        bench.gates = {account: 7.0}
        assert (await _claims.claim(store, bench, account, 1 - seat, {job.id})).wait_s == 7.0


# --- accounts ---------------------------------------------------------------------------------------------------------


async def test_the_nameless_account_may_be_any_of_the_others(database: str) -> None:
    """Where nobody can name the account, a clone on it counts for each that has a name, and the other way round."""
    bench = Bench()
    bench.found = [""]
    async with opened(database, bench, max_parallel=1) as store:
        free, named = a_job(1), a_job(2, account="north")
        free.pinned = free.account = None
        await store.add([free])
        await bench.until(lambda: bench.adopted)
        assert bench.adopted[0][1] == ""
        await store.add([named])
        found = await _claims.claim(store, bench, "north", 0, {free.id})
        assert (found.job, found.wait_s) == (None, 0.0)
        job = bench.adopted[0][0]
        await store.sent(send(job))
        store.freed(job)
        await end(store, job)
        await bench.until(lambda: len(bench.adopted) == 2)
        assert bench.adopted[1][1] == "north"


async def test_the_first_replica_writes_the_accounts(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named or found, however long the database is away; those that come later find them."""
    has_accounts, times = PostgresStore.has_accounts, []

    async def away_at_first(self: PostgresStore) -> bool:
        times.append(1)
        if len(times) == 1:
            raise StoreError("away")
        return await has_accounts(self)

    monkeypatch.setattr(PostgresStore, "has_accounts", away_at_first)
    bench, other = Bench(), Bench()
    bench.found, other.found = ["east"], ["west"]
    async with opened(database, bench) as store:
        await bench.until(lambda: bench.heeded)
        await store.found_accounts(["nobody"])
        async with opened(database, other):
            await other.until(lambda: other.heeded)
    assert (set(bench.heeded), set(other.heeded)) == ({"east"}, {"east"})
    with pytest.raises(ConfigurationError, match=r"\['south'\].*\['east'\]"):
        await a_store(database, accounts=["south"]).open()


async def test_a_pause_is_by_the_clock_of_the_database(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour slow pauses an account for as long as it means to, for all."""

    class Slow(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - timedelta(hours=1)

    monkeypatch.setattr(postgres, "datetime", Slow)
    async with opened(database) as store:
        until = Slow.now(UTC) + timedelta(seconds=60)
        store.pause("north", until)
        wait_s = (await store.gates())["north"].wait_s
        assert 30 < wait_s <= 60
    store = a_store(database)
    recovered = await store.open()
    await store.aclose()
    assert abs((recovered.pauses["north"] - until).total_seconds()) < 1


async def test_a_paused_account_gets_its_turns_when_the_pause_is_over(database: str) -> None:
    """Its jobs wait no longer than that."""
    bench, job = Bench(), a_job(2)
    job.pinned = job.account = "north"
    async with opened(database, bench, accounts=["north"]) as store:
        store.pause("north", datetime.now(UTC) + timedelta(seconds=1))
        await store.flush()
        await store.add([job])
        await bench.until(lambda: bench.adopted)
    assert bench.heeded["north"].wait_s <= 1


# --- what is dropped --------------------------------------------------------------------------------------------------


async def test_ended_jobs_are_kept_for_as_long_as_was_asked(database: str) -> None:
    """Then they go; one whose seat is still taken stays."""
    async with opened(database, keep_s=3600.0) as store:
        jobs = [a_job(seq) for seq in (1, 2, 3)]
        await store.add(jobs)
        for job in jobs:
            await store.sent(send(job))
            await end(store, job)
        await sql(
            database,
            "UPDATE useapi_voice.jobs SET settled_at = now() - interval '2 hours' WHERE seq <> 1",
            "UPDATE useapi_voice.jobs SET seat = 0 WHERE seq = 2",
        )
        await store.tidy()
        assert [row["seq"] for row in await rows(database)] == [1, 2]


async def test_one_replica_tidies_up_for_all(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another did just now need not be done again."""
    monkeypatch.setattr(postgres, "TIDY_AFTER_S", 60.0)
    async with opened(database, keep_s=0.001) as store:
        job = a_job(1)
        await store.tidy()
        await store.add([job])
        await store.sent(send(job))
        await end(store, job)
        await store.tidy()
        assert len(await rows(database)) == 1


async def test_a_key_is_forgotten_with_its_job(database: str) -> None:
    """And the oldest that this process knew, when it knows too many."""
    async with opened(database) as store:
        one, other = keyed(a_job(1), "one"), keyed(a_job(2), "other")
        await store.add([one, other])
        await end(store, send(one))
        assert store.find_nowait("one") is not None
        assert await store.forget(one.id)
        assert store.find_nowait("one") is None
        assert not await store.forget(other.id)


async def test_only_so_many_keys_are_known_without_asking(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest are found by asking."""
    monkeypatch.setattr(postgres, "KNOWN_KEYS", 2)
    async with opened(database) as store:
        await store.add([keyed(a_job(seq), f"key {seq}") for seq in (1, 2, 3)])
        assert [store.find_nowait(f"key {seq}") is None for seq in (1, 2, 3)] == [True, False, False]
        assert await store.find("key 1") is not None


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_replicas_that_submit_at_once_do_not_deadlock(database: str) -> None:
    """The same accounts and samples in any order: rows are taken in one."""
    names = [f"account {number}" for number in range(8)]
    async with opened(database, Bench(), accounts=names) as one, opened(database, Bench(), accounts=names) as other:

        async def submit(store: PostgresStore, backwards: bool) -> None:
            for turn in range(12):
                jobs = [a_job(seq, account=name) for seq, name in enumerate(names)]
                await store.add(jobs[::-1] if (turn % 2 == 0) is backwards else jobs)

        await asyncio.gather(submit(one, False), submit(other, True))
    assert len(await rows(database)) == 2 * 12 * 8


async def test_the_handle_of_a_job_that_was_looked_up_ends_with_the_job(place: Place) -> None:
    """Looked up while this very process works on it, or just before it ended; and cancelling it cancels the job."""
    async with place.client() as client, place.client(work=False) as api:
        await api.submit_many([ask(f"voice {n}") for n in range(6)], keys=[str(n) for n in range(6)])
        handles = [await client.find(str(n)) for n in range(6)]
        for handle in handles:
            assert handle is not None
            assert (await handle).voice_name == handle.request.voice_name
        again = [await api.find(str(n)) for n in range(6)]
        assert [handle.done() for handle in again if handle is not None] == [True] * 6
        await api.submit_many([ask(f"more {n}") for n in range(9)], keys=[f"m{n}" for n in range(9)])
        last = await client.find("m8")
        assert last is not None
        state = await last.cancel()
        if state.value == "cancelled":
            with pytest.raises(CloneCancelled):
                await last
        found = [await client.find(f"m{n}") for n in range(8)]
        ended = [handle async for handle in client.as_completed([handle for handle in found if handle is not None])]
        assert {handle.key for handle in ended} == {f"m{n}" for n in range(8)}


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_a_schema_of_a_newer_version_is_left_alone(database: str) -> None:
    """Upgrading is the remedy, and said."""
    async with opened(database):
        pass
    await sql(database, "UPDATE useapi_voice.settings SET version = 1000")
    with pytest.raises(StoreError, match=r"newer version of useapi_voice .*upgrade"):
        await a_store(database).open()


async def test_many_may_make_the_schema_at_once(database: str) -> None:
    """One does; the others find it made."""
    connections = [await asyncpg.connect(database) for _ in range(4)]
    try:
        await asyncio.gather(*(_schema.migrate(connection) for connection in connections))
    finally:
        for connection in connections:
            await connection.close()
    assert run_sql(database, "SELECT version FROM useapi_voice.settings")[0][0]["version"] == len(_fleet_sql.MIGRATIONS)


async def test_a_database_that_is_not_there_is_named(database: str) -> None:
    """As is a user who may not make the schema."""
    with pytest.raises(StoreError, match=r"nowhere.*check the user, the password and the database"):
        await a_store(database.rpartition("/")[0] + "/nowhere").open()


async def test_a_replica_that_cannot_take_part_leaves_nothing_open(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong comes out, bug or not."""

    async def fail(_: Any) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(_replica.Replica, "start", fail)
    store = a_store(database, Bench())
    with pytest.raises(LookupError, match="a bug"):
        await store.open()
    with pytest.raises(StoreError, match="not open"):
        await store.gates()
    monkeypatch.setattr(PostgresStore, "_prepare", fail)
    with pytest.raises(LookupError, match="a bug"):
        await a_store(database).open()


async def test_a_task_that_dies_of_a_bug_is_told(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not silently gone: the queue's own task raises it."""

    async def fail(_: Any) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(_replica.Replica, "_act", fail)
    async with opened(database, Bench()) as store:
        with pytest.raises(LookupError, match="a bug"):
            await store.watch()


# --- the rest of what is promised -------------------------------------------------------------------------------------


async def test_an_upload_is_made_here_if_nobody_can_be_asked(database: str) -> None:
    """Uploaded once more, it does no harm; and one that another makes is waited for."""
    async with idle(database, Bench()) as store, idle(database, Bench()) as other:
        assert await store.file_id("north", "a" * 64) is None
        waits = asyncio.create_task(other.file_id("north", "a" * 64))
        await asyncio.sleep(0)
        store.uploaded("north", "a" * 64, "file")
        assert await waits == "file"
    assert await store.file_id("north", "b" * 64) is None


async def test_voices_that_nobody_adopted_are_known_to_all(database: str) -> None:
    """A job without a voice of its own may have left some: they are no other job's."""
    async with opened(database) as store:
        job = a_job(2)
        job.surplus = (a_voice(7),)
        await store.add([job])
        told = asyncio.Event()
        outcome = CloneCancelled("unwanted")
        advance(job, ending_of(outcome))
        store.settled(job, outcome, told.set)
        await told.wait()
        assert len((await store.ledger("north")).taken) == 1


async def test_watching_outlives_tasks_that_are_cancelled(database: str) -> None:
    """Closing cancels them in order; that is no bug, and nothing is freed for a job that is not here."""
    async with opened(database, Bench()) as store:
        watch = asyncio.create_task(store.watch())
        store.freed(a_job(1))
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)  # so that it sees what closing has cancelled
    assert not watch.done()
    watch.cancel()


async def test_what_lies_on_a_seat_without_a_turn_is_found_from_any_other(database: str) -> None:
    """Its owner left in order: sent, it is looked for; claimed and no more, it waits again."""
    async with opened(database, Bench(), work=False, accounts=["north"]) as store:
        sent, claimed = a_job(2), a_job(4)
        for job in (sent, claimed):
            job.pinned = job.account = "north"
        await store.add([sent, claimed])
        await sql(
            database,
            "UPDATE useapi_voice.jobs SET owner = 'gone', seat = 1, state = 'sent', sent_at = now() WHERE seq = 1",
            "UPDATE useapi_voice.jobs SET owner = 'gone', seat = 2 WHERE seq = 2",
        )
        found = await _claims.claim(store, Bench(), "north", 0, [])
        assert (found.job is not None and found.job.id, found.sent_ago_s is None) == (sent.id, False)
        found = await _claims.claim(store, Bench(), "north", 1, [sent.id])
        assert (found.job is not None and found.job.id, found.sent_ago_s) == (claimed.id, None)
        assert [(row["seat"], row["owner"]) for row in await rows(database)] == [
            (0, store.replica_id),
            (1, store.replica_id),
        ]
