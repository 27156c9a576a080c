"""
The contract of `JobStore`, sentence by sentence, for every member of the family.

A member is a way to open a store over one place, again and again: what one life of it was told, the next one finds.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from fleets import a_database
from harness import both
from stored import ACCOUNTS, a_job, a_voice, facts, keyed, requeue, send

from useapi_voice._errors import (
    AccountUnavailable,
    CloneCancelled,
    CloneOutcomeUnknown,
    DeadlineExceeded,
    RateLimited,
)
from useapi_voice._jobs import TERMINAL_STATES, Job, JobState, Outcome, advance, ending_of
from useapi_voice._recovery import voice_key
from useapi_voice._replies import Refused, Scope
from useapi_voice.stores import JobStore, KeyTaken, Recovered
from useapi_voice.stores.memory import MemoryStore
from useapi_voice.stores.postgres import PostgresStore
from useapi_voice.stores.sqlite import SqliteStore

pytestmark = both

KEEP_S = 24 * 3600.0
SHA, OTHER_SHA = "a" * 64, "b" * 64
NORTH, SOUTH = ACCOUNTS
REFUSED = Refused(AccountUnavailable, Scope.ACCOUNT, "out of order", 596)

Member = Callable[[], JobStore]
"""Makes a store over one place; another call is another life of it."""


def sqlite_member(directory: Path) -> Member:
    """Keep jobs in a file."""
    return lambda: SqliteStore(directory / "jobs.db", keep_s=KEEP_S)


DURABLE: dict[str, Callable[[Path], Member]] = {"sqlite": sqlite_member}
FAMILY: dict[str, Callable[[Path], Member]] = {"memory": lambda _: MemoryStore, **DURABLE}
POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)


@contextmanager
def a_member(name: str, directory: Path, backend: str) -> Generator[Member, None, None]:
    """Make a member of the family."""
    if name != "postgres":
        yield FAMILY[name](directory)
        return
    if backend != "asyncio":
        pytest.skip("its driver is asyncio's")
    with a_database() as url:
        yield lambda: PostgresStore(url, keep_s=KEEP_S)


@pytest.fixture(params=[*FAMILY, POSTGRES])
def any_member(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend_name: str) -> Iterator[Member]:
    """Give each member of the family."""
    with a_member(request.param, tmp_path, anyio_backend_name) as member:
        yield member


@pytest.fixture(params=[*DURABLE, POSTGRES])
def member(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend_name: str) -> Iterator[Member]:
    """Give each member whose jobs outlive the process."""
    with a_member(request.param, tmp_path, anyio_backend_name) as member:
        yield member


@asynccontextmanager
async def life(make: Member) -> AsyncIterator[tuple[JobStore, Recovered]]:
    """Open a store, and close it in order."""
    store = make()
    recovered = await store.open()
    try:
        yield store, recovered
    finally:
        await store.aclose()


async def end(store: JobStore, job: Job, outcome: Outcome) -> None:
    """Tell a store how a job ended, as the queue does, and wait until that is announced."""
    announced = anyio.Event()
    advance(job, ending_of(outcome))
    store.settled(job, outcome, announced.set)
    await announced.wait()
    job.outcome = outcome


async def everything(store: JobStore, state: JobState | None = None) -> list[Job]:
    """List all jobs of a store."""
    async with aclosing(store.jobs(state)) as jobs:
        return [job async for job in jobs]


# --- all members ------------------------------------------------------------------------------------------------------


async def test_a_new_store_has_nothing(any_member: Member) -> None:
    """There is no earlier life, no job, no upload."""
    async with life(any_member) as (store, recovered):
        assert (list(recovered.jobs), recovered.last_seq) == ([], 0)
        assert (dict(recovered.pauses), dict(recovered.baselines)) == ({}, {})
        assert await store.find("key") is None
        assert store.find_nowait("key") is None
        assert await everything(store) == []
        assert [record async for record in store.export()] == []
        assert await store.file_id(NORTH, SHA) is None
        assert not await store.forget("no such job")


async def test_an_ending_is_announced_once_on_the_event_loop(any_member: Member) -> None:
    """`announce` is called in the loop's own thread, exactly once for each job, in the order of the endings."""
    async with life(any_member) as (store, _):
        jobs = [send(a_job(seq)) for seq in range(1, 9)]
        await store.add(jobs)
        told: list[tuple[int, int]] = []
        for job in jobs:
            advance(job, ending_of(a_voice(job.seq)))
            store.settled(job, a_voice(job.seq), lambda seq=job.seq: told.append((seq, threading.get_ident())))
        await store.aclose()
    assert told == [(job.seq, threading.get_ident()) for job in jobs]


async def test_whoever_is_told_of_an_ending_may_use_the_event_loop(any_member: Member) -> None:
    """`announce` may set events and ask for the time, as the queue's does."""
    async with life(any_member) as (store, _):
        job = send(a_job(1))
        await store.add([job])
        announced = anyio.Event()
        times: list[float] = []

        def announce() -> None:
            times.append(anyio.current_time())
            announced.set()

        advance(job, ending_of(a_voice(1)))
        store.settled(job, a_voice(1), announce)
        await announced.wait()
        assert times[0] <= anyio.current_time()


async def test_notes_never_fail(any_member: Member) -> None:
    """What is no promise returns at once, whatever it says, and can be repeated."""
    async with life(any_member) as (store, _):
        job = a_job(1)
        await store.add([job])
        await store.sent(send(job))
        for _ in range(2):
            store.changed(job)
            store.uploaded(NORTH, SHA, "file")
            store.forget_uploads(NORTH, ["file", "no such file"])
            store.forget_uploads(SOUTH, [])
            store.keep_baseline(NORTH, {"1"})
            store.pause(NORTH, datetime.now(UTC))
            store.limited(NORTH, 1)
            store.closed(NORTH, REFUSED, 300.0)
            store.opened(NORTH)
            store.upload_failed(NORTH, SHA)


async def test_closing_twice_is_closing_once(any_member: Member) -> None:
    """A store that is closed, or was never opened, closes without a word."""
    store = any_member()
    await store.aclose()
    async with life(any_member) as (store, _):
        await store.aclose()


async def test_only_what_is_durable_wants_copies(any_member: Member) -> None:
    """Samples that exist nowhere else are to be copied where jobs outlive the process, and only there."""
    store = any_member()
    assert (store.spool_directory is not None) == store.is_durable


# --- promises ---------------------------------------------------------------------------------------------------------


async def test_what_was_accepted_is_found_in_the_order_of_submission(member: Member) -> None:
    """All jobs that had not ended come back whole, accounts interleaved as they were, with the highest number given."""
    jobs = [a_job(seq, priority=seq % 3) if seq > 2 else keyed(a_job(seq), f"key {seq}") for seq in range(1, 8)]
    jobs[3].deadline_at = jobs[4].queue_deadline_at = datetime(2026, 12, 1, tzinfo=UTC)
    async with life(member) as (store, _):
        await store.add(jobs[4:])
        await store.add(jobs[:4])
    async with life(member) as (_, recovered):
        assert [facts(job) for job in recovered.jobs] == [facts(job) for job in jobs]
        assert recovered.last_seq == 7


async def test_a_batch_is_kept_whole_or_not_at_all(member: Member) -> None:
    """One key that is taken, by a kept job or within the batch, refuses the batch; and the store goes on."""
    async with life(member) as (store, _):
        await store.add([keyed(a_job(1), "taken")])
        with pytest.raises(KeyTaken):
            await store.add([a_job(2), keyed(a_job(3), "taken"), a_job(4)])
        with pytest.raises(KeyTaken):
            await store.add([keyed(a_job(5), "twice"), a_job(6), keyed(a_job(7), "twice")])
        await store.add([a_job(8)])
        await store.add([])
    async with life(member) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == [1, 8]


async def test_adding_at_once_keeps_all_that_is_good(member: Member) -> None:
    """Of many callers at the same time, only the one whose key is taken is refused."""
    refused: list[int] = []

    async def add(store: JobStore, job: Job) -> None:
        try:
            await store.add([job])
        except KeyTaken:
            refused.append(job.seq)

    async with life(member) as (store, _):
        await store.add([keyed(a_job(1), "taken")])
        async with anyio.create_task_group() as tasks:
            for seq in range(2, 60):
                tasks.start_soon(add, store, keyed(a_job(seq), "taken" if seq == 30 else f"key {seq}"))
    async with life(member) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == [seq for seq in range(1, 60) if seq != 30]
    assert refused == [30]


async def test_a_sent_job_is_found_as_sent(member: Member) -> None:
    """When `sent` has returned, the attempt is on record: the account, the time, and how many there were."""
    async with life(member) as (store, _):
        jobs = [a_job(seq) for seq in (1, 2, 3)]
        await store.add(jobs)
        for job in jobs[:2]:
            await store.sent(send(job))
    async with life(member) as (_, recovered):
        assert [facts(job) for job in recovered.jobs] == [facts(job) for job in jobs]
        assert [job.state for job in recovered.jobs] == [JobState.SENT, JobState.SENT, JobState.QUEUED]


async def test_what_is_told_first_is_kept_first(member: Member) -> None:
    """When a promise has returned, all that was noted before it is on record as well, in that order."""
    async with life(member) as (store, _):
        moved, doubted = a_job(1), a_job(2)
        await store.add([moved, doubted])
        await store.sent(send(moved))
        await store.sent(send(doubted))
        doubted.state = JobState.IN_DOUBT
        store.changed(doubted)
        store.changed(requeue(moved))
        moved.account = NORTH
        await store.sent(send(moved))
    async with life(member) as (_, recovered):
        assert [facts(job) for job in recovered.jobs] == [facts(moved), facts(doubted)]
        assert [attempt.verdict for attempt in recovered.jobs[0].history] == ["absent", ""]


async def test_a_requeued_job_is_found_waiting(member: Member) -> None:
    """What is proven to have made nothing waits again; what was being prepared waits too."""
    async with life(member) as (store, _):
        back, ready = a_job(1), a_job(2)
        await store.add([back, ready])
        await store.sent(send(back))
        store.changed(requeue(back))
        ready.state = JobState.READY
        store.changed(ready)
    async with life(member) as (_, recovered):
        assert [(job.seq, job.state, job.attempts) for job in recovered.jobs] == [
            (1, JobState.QUEUED, 1),
            (2, JobState.QUEUED, 0),
        ]


OUTCOMES: list[Outcome] = [
    a_voice(7),
    RateLimited("wait", account=SOUTH, status_code=429, retry_after_s=3.5),
    CloneOutcomeUnknown("lost", account=SOUTH, voice_may_exist=True),
    DeadlineExceeded("late", clock="deadline_s", safe_to_retry=True),
    CloneCancelled("unwanted"),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
async def test_an_ended_job_answers_at_once(member: Member, outcome: Outcome) -> None:
    """How a job ended is found by its key, in this life and the next, and it is no longer among those to go on with."""
    async with life(member) as (store, _):
        job, other = keyed(a_job(1), "done"), keyed(a_job(2), "waits")
        await store.add([job, other])
        await store.sent(send(job))
        await end(store, job, outcome)
        for found in (await store.find("done"), store.find_nowait("done")):
            assert found is not None
            assert facts(found) == facts(job)
            assert found.is_settled
    async with life(member) as (store, recovered):
        assert [kept.id for kept in recovered.jobs] == [other.id]
        for key, expected in (("done", job), ("waits", other)):
            found = await store.find(key)
            assert found is not None
            assert facts(found) == facts(expected)
        assert recovered.last_seq == 2


async def test_all_endings_are_announced_before_closing_is_over(member: Member) -> None:
    """Closing writes what is pending, and nobody waits for an announcement in vain."""
    told: list[int] = []
    async with life(member) as (store, _):
        jobs = [send(a_job(seq)) for seq in range(1, 50)]
        await store.add(jobs)
        for job in jobs:
            advance(job, ending_of(a_voice(job.seq)))
            store.settled(job, a_voice(job.seq), lambda seq=job.seq: told.append(seq))
    assert told == [job.seq for job in jobs]
    async with life(member) as (store, recovered):
        assert list(recovered.jobs) == []
        assert {job.state for job in await everything(store)} == {JobState.CLONED}


async def test_nothing_is_kept_for_a_caller_that_was_cancelled(member: Member) -> None:
    """An `add` that is cancelled while it waits leaves no job behind, and its key is free."""
    async with life(member) as (store, _):
        for seq in range(1, 20):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await store.add([keyed(a_job(seq), "mine"), a_job(seq + 100)])
            assert scope.cancelled_caught
        await store.add([keyed(a_job(50), "mine")])
    async with life(member) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == [50]


async def test_nothing_is_kept_for_a_task_that_was_cancelled(member: Member, anyio_backend_name: str) -> None:
    """The same for asyncio's own way of cancelling, which knows no shields, however late it comes."""
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio's own")
    async with life(member) as (store, _):
        accepted = []
        for seq in range(1, 40):
            task = asyncio.create_task(store.add([a_job(seq)]))
            await asyncio.sleep(seq * 1e-5)
            task.cancel()
            try:
                await task
                accepted.append(seq)
            except asyncio.CancelledError:
                pass
    async with life(member) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == accepted


# --- looking and forgetting -------------------------------------------------------------------------------------------


async def test_jobs_are_listed_in_the_order_of_submission(member: Member) -> None:
    """All of them, or those of one state; more than any page of a listing holds."""
    async with life(member) as (store, _):
        jobs = [a_job(seq) for seq in range(1, 601)]
        await store.add(jobs)
        for job in jobs[::100]:
            await store.sent(send(job))
        await end(store, jobs[0], a_voice(1))
        assert [job.seq for job in await everything(store)] == list(range(1, 601))
        assert [job.seq for job in await everything(store, JobState.SENT)] == [101, 201, 301, 401, 501]
        assert [job.seq for job in await everything(store, JobState.CLONED)] == [1]
        assert await everything(store, JobState.REFUSED) == []


async def test_only_what_has_ended_can_be_forgotten(member: Member) -> None:
    """Forgetting frees the key of an ended job, and says so; one that goes on stays; no number is given twice."""
    async with life(member) as (store, _):
        ended, waiting, sent = (keyed(a_job(seq), f"key {seq}") for seq in (3, 1, 2))
        await store.add([waiting, sent, ended])
        await store.sent(send(sent))
        await end(store, ended, CloneCancelled("unwanted"))
        assert [await store.forget(job.id) for job in (waiting, sent, ended, ended)] == [False, False, True, False]
        assert await store.find("key 3") is None
    async with life(member) as (store, recovered):
        assert [job.seq for job in recovered.jobs] == [1, 2]
        assert recovered.last_seq == 3
        await store.add([keyed(a_job(4), "key 3")])


async def test_what_is_told_of_a_forgotten_job_does_not_bring_it_back(member: Member) -> None:
    """A late note changes nothing."""
    async with life(member) as (store, _):
        job = a_job(1)
        await store.add([job])
        await end(store, job, CloneCancelled("unwanted"))
        assert await store.forget(job.id)
        store.changed(job)
        assert await everything(store) == []


async def test_an_export_is_plain_data_with_histories(member: Member) -> None:
    """Each job as JSON could hold it: who, what, every attempt, and how it ended."""
    async with life(member) as (store, _):
        jobs = [keyed(a_job(seq), f"key {seq}") for seq in range(1, 301)]
        await store.add(jobs)
        await store.sent(send(jobs[0]))
        await end(store, jobs[0], a_voice(1))
        records = [record async for record in store.export()]
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert [record["key"] for record in records] == [job.key for job in jobs]
    first, second, *_ = records
    assert (first["state"], first["outcome"]["voice"]["voice_id"]) == ("cloned", a_voice(1).voice_id)
    assert first["history"][0]["account"] == first["account"] == SOUTH
    assert (second["state"], second["outcome"], second["settled_at"]) == ("queued", None, None)
    assert datetime.fromisoformat(first["settled_at"]).tzinfo is not None


async def test_a_listing_that_is_left_early_holds_nothing_up(member: Member) -> None:
    """Whoever breaks out of a listing can go on to use the store, and close it."""
    async with life(member) as (store, _):
        await store.add([a_job(seq) for seq in range(1, 601)])
        async with aclosing(store.jobs(None)) as jobs:
            async for job in jobs:
                if job.seq == 3:
                    break
        async with aclosing(store.export()) as records:
            async for _record in records:
                break
        await store.add([a_job(601)])


# --- what else outlives a process -------------------------------------------------------------------------------------


async def test_uploads_are_remembered_by_account_and_content(member: Member) -> None:
    """A later fileID replaces an earlier one; what one account forgets, the other keeps."""
    async with life(member) as (store, _):
        for account in ACCOUNTS:
            store.uploaded(account, SHA, f"old {account}")
            store.uploaded(account, SHA, f"file {account}")
            store.uploaded(account, OTHER_SHA, f"other {account}")
        assert await store.file_id(NORTH, SHA) == "file north"
        store.forget_uploads(NORTH, [f"file {SOUTH}", f"file {NORTH}"])
        assert await store.file_id(NORTH, SHA) is None
    async with life(member) as (store, _):
        found = [await store.file_id(account, sha256) for sha256 in (SHA, OTHER_SHA) for account in ACCOUNTS]
        assert found == [None, "file south", "other north", "other south"]


async def test_a_voice_that_comes_after_the_ending_does_not_undo_it(member: Member) -> None:
    """A job whose time was up may yet get a voice: it stays ended, as it did, and the voice is among its own."""
    async with life(member) as (store, _):
        late, doubtful = keyed(a_job(1, account=NORTH), "late"), a_job(2, account=NORTH)
        await store.add([late, doubtful])
        store.keep_baseline(NORTH, {"old"})
        for job in (late, doubtful):
            await store.sent(send(job))
        await end(store, late, DeadlineExceeded("too late", clock="deadline_s", voice_may_exist=True))
        late.surplus = (a_voice(7),)
        store.changed(late)
    async with life(member) as (store, recovered):
        assert [job.id for job in recovered.jobs] == [doubtful.id]
        assert dict(recovered.baselines) == {NORTH: {"old", voice_key(a_voice(7).voice_id)}}
        found = await store.find("late")
        assert found is not None
        assert isinstance(found.outcome, DeadlineExceeded)
        assert (found.state, found.surplus) == (JobState.EXPIRED, (a_voice(7),))


async def test_a_baseline_is_found_where_a_job_may_have_made_a_voice(member: Member) -> None:
    """With it come the voices of jobs that ended there; accounts with nothing in progress, or none, are left out."""
    async with life(member) as (store, _):
        jobs = [a_job(1, account=NORTH), a_job(2, account=SOUTH), a_job(3, account=NORTH), a_job(4, account="west")]
        store.keep_baseline(NORTH, {"old"})
        store.keep_baseline(NORTH, {"there before", "and this"})
        store.keep_baseline(SOUTH, {"of the south"})
        await store.add([*jobs, a_job(5, account="east")])
        store.keep_baseline("east", {"nothing is in progress there"})
        for job in jobs:
            await store.sent(send(job))
        jobs[0].surplus = (a_voice(31), a_voice(32))
        await end(store, jobs[0], a_voice(30))
        await end(store, jobs[1], a_voice(40, SOUTH))
    async with life(member) as (_, recovered):
        surplus = {voice_key(a_voice(number).voice_id) for number in (30, 31, 32)}
        assert dict(recovered.baselines) == {NORTH: {"there before", "and this"} | surplus}


async def test_an_account_without_voices_has_a_baseline_too(member: Member) -> None:
    """That there was nothing is known, which is more than not to know."""
    async with life(member) as (store, _):
        job = a_job(1, account=NORTH)
        await store.add([job])
        store.keep_baseline(NORTH, {"one"})
        store.keep_baseline(NORTH, set())
        await store.sent(send(job))
    async with life(member) as (_, recovered):
        assert dict(recovered.baselines) == {NORTH: frozenset()}


async def test_pauses_are_found_until_they_are_over(member: Member) -> None:
    """The latest word of each account counts."""
    soon = datetime.now(UTC) + timedelta(minutes=5)
    async with life(member) as (store, _):
        store.pause(NORTH, soon + timedelta(hours=1))
        store.pause(SOUTH, soon)
        store.pause(NORTH, soon)
        store.pause("west", datetime.now(UTC) - timedelta(seconds=1))
    async with life(member) as (_, recovered):
        assert dict(recovered.pauses) == {NORTH: soon, SOUTH: soon}


async def test_every_ending_is_an_ending(member: Member) -> None:
    """A store keeps jobs in any state that a job can end in."""
    async with life(member) as (store, _):
        for seq, state in enumerate(sorted(TERMINAL_STATES), start=1):
            job = a_job(seq)
            await store.add([job])
            job.state = state
            announced = anyio.Event()
            store.settled(job, CloneCancelled("any"), announced.set)
            await announced.wait()
    async with life(member) as (store, recovered):
        assert list(recovered.jobs) == []
        assert [job.state for job in await everything(store)] == sorted(TERMINAL_STATES)
