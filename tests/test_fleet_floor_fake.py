"""
What a fleet's store may ask of a queue, by a store that does nothing by itself: in virtual time, without a database.

The real store asks the same in the order that its database allows; here the test says when.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from harness import TOKEN, ask, error_of, virtual

from useapi_voice import CloneCancelled, VoiceClient, _client
from useapi_voice._errors import AccountUnavailable
from useapi_voice._jobs import CancelChoice, Job, advance, ending_of
from useapi_voice._models import VoiceInfo
from useapi_voice._replies import Refused, Scope
from useapi_voice.sandbox import Fault, Sandbox
from useapi_voice.stores import Desk, Gate, KeyTaken, Ledger
from useapi_voice.stores.memory import MemoryStore

OPEN = Gate(wait_s=0.0, limit=2, refused=None, look_s=0.0, serves_pool=True)
OUT = Gate(0.0, 2, Refused(AccountUnavailable, Scope.ACCOUNT, "out of order", 596), 300.0, serves_pool=True)


class Shared(MemoryStore):
    """A shared store whose test is the fleet."""

    is_durable = True
    is_shared = True

    def __init__(self) -> None:
        self.desk: Desk
        self.added: list[Job] = []
        self.back: list[str] = []
        self.freed_ids: list[str] = []
        self.reopened: list[str] = []
        self.ends_at_once = False

    def attach(self, desk: Desk) -> None:
        self.desk = desk

    async def watch(self) -> None:
        await anyio.sleep_forever()

    async def add(self, jobs: Sequence[Job]) -> None:
        self.added += jobs
        if self.ends_at_once:
            for job in jobs:
                self.desk.has_ended(ended(job))

    def handed_back(self, job: Job) -> None:
        self.back.append(job.id)

    def freed(self, job: Job) -> None:
        self.freed_ids.append(job.id)

    def opened(self, account: str) -> None:
        self.reopened.append(account)

    def cancel(self, job: Job, voice: CancelChoice) -> None:
        raise AssertionError(f"{job.id} is here, {voice}")

    def look_for(self, job_id: str) -> None:
        """The test tells."""

    async def ledger(self, account: str) -> Ledger:
        return Ledger(frozenset(), has_baseline=bool(account))


def ended(job: Job) -> Job:
    """Return the job as another process ended it."""
    other = Job(job.id, job.key, job.request, job.priority, job.seq, job.pinned)
    other.outcome = VoiceInfo(voice_id="v", voice_name=job.request.voice_name)
    advance(other, "stage")  # type: ignore[arg-type]
    advance(other, "staged")  # type: ignore[arg-type]
    advance(other, "send")  # type: ignore[arg-type]
    advance(other, ending_of(other.outcome))
    return other


@asynccontextmanager
async def fleet(sandbox: Sandbox, store: Shared, **settings: Any) -> AsyncIterator[VoiceClient]:
    """Open a client on this store."""
    sandbox.now()
    async with httpx.AsyncClient(transport=sandbox.transport()) as http:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_client, "_open_store", lambda *_: store)
            async with VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http, **settings) as client:
                store.desk.heed("a", OPEN)
                yield client


def a_sandbox(**options: Any) -> Sandbox:
    """Make a sandbox of one account."""
    return Sandbox(accounts=["a"], clone_s=20, **options)


@virtual
async def test_an_account_that_goes_out_gives_all_its_jobs_back() -> None:
    """Those whose samples are up, and those behind them; they are anybody's, and go on when it is back in order."""
    store, sandbox = Shared(), a_sandbox()
    async with fleet(sandbox, store) as client:
        jobs = await client.submit_many([ask(f"voice {number}") for number in range(7)])
        for job in store.added:
            store.desk.adopt(job, "a", sent_ago_s=None, ledger=None)
        await anyio.sleep(5)
        sent = {job.id for job in jobs if job.state == "sent"}
        store.desk.heed("a", OUT)
        assert (len(sent), len(store.back)) == (2, 5)
        assert set(store.back) == set(store.desk.waits_for()) == {job.id for job in jobs} - sent
        assert store.desk.gate_s("a") == float("inf")
        store.desk.heed("a", OPEN)
        assert store.reopened == []  # the fleet said so, and need not be told
        assert store.desk.gate_s("a") == 0
        for job in store.added:
            if job.id in store.back:
                store.desk.adopt(job, "a", sent_ago_s=None, ledger=None)
        assert [(await job).voice_name for job in jobs] == [f"voice {number}" for number in range(7)]
        assert sorted(store.freed_ids) == sorted(job.id for job in jobs)


@virtual
async def test_leaving_gives_back_what_was_not_sent() -> None:
    """Whoever waits here is told; for the fleet the job goes on."""
    store, sandbox = Shared(), a_sandbox()
    async with fleet(sandbox, store) as client:
        jobs = await client.submit_many([ask(f"voice {number}") for number in range(4)])
        for job in store.added:
            store.desk.adopt(job, "a", sent_ago_s=None, ledger=None)
        await anyio.sleep(5)
        left = [job for job in jobs if job.state != "sent"]
    assert len(left) == 2
    assert sorted(store.back) == sorted(job.id for job in left)
    for job in left:
        assert isinstance(await error_of(job), CloneCancelled)
    assert len(sandbox.voices()) == 2


@virtual
async def test_a_clone_refused_while_closing_is_given_back() -> None:
    """Sent, and told to wait when the client was closing already: the fleet has it, and its waiter is told."""
    store, sandbox = Shared(), a_sandbox()
    sandbox.fail("clone-voice", Fault.status(429, at="end"))
    async with fleet(sandbox, store) as client:
        job = await client.submit(ask())
        store.desk.adopt(store.added[0], "a", sent_ago_s=None, ledger=None)
        await anyio.sleep(1)
    assert isinstance(await error_of(job), CloneCancelled)
    assert store.back == [job.id]
    assert store.desk.waits_for() == []


@virtual
async def test_a_request_that_would_leave_late_is_held_back() -> None:
    """Recorded, and not gone when the process was stopped for longer than its place is surely its own."""

    class Slow(Shared):
        async def sent(self, job: Job) -> None:
            await anyio.sleep(26 if not self.back else 1)

    store, sandbox = Slow(), a_sandbox()
    async with fleet(sandbox, store) as client:
        job = await client.submit(ask())
        store.desk.adopt(store.added[0], "a", sent_ago_s=None, ledger=None)
        await anyio.sleep(40)
        assert (sandbox.clones, store.back, job.attempts) == ((), [job.id], 0)
        assert [attempt.verdict for attempt in job.history] == ["not_sent"]
        store.desk.adopt(store.added[0], "a", sent_ago_s=None, ledger=None)
        assert (await job).voice_name == "Ann"
    assert len(sandbox.clones) == 1


@virtual
async def test_a_job_that_ends_before_its_submit_returns() -> None:
    """Others may be as quick as that: the job has its voice, and its key is looked up in the store."""
    store = Shared()
    store.ends_at_once = True
    async with fleet(a_sandbox(), store) as client:
        job = await client.submit(ask(), key="k")
        assert (await job).voice_id == "v"
        assert client.job("k") is None


class Taken(Shared):
    """A store in which another process has the key; its answers take a while."""

    def __init__(self, *, is_settled: bool) -> None:
        super().__init__()
        self.theirs = Job("theirs", "k", ask(), 0, 1, None)
        self.is_settled = is_settled
        self.tries = 0

    async def find(self, key: str) -> Job | None:
        await anyio.sleep(1)
        return ended(self.theirs) if self.is_settled else self.theirs

    async def add(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        self.tries += 1
        assert self.tries <= 2, "nobody who was told so has to ask again and again"
        await anyio.sleep(1.5)
        raise KeyTaken("the key is taken")


@virtual
@pytest.mark.parametrize("is_settled", [True, False])
async def test_submits_of_a_key_that_another_process_has_share_its_job(is_settled: bool) -> None:
    """Those that meet here do not send each other round in circles: whoever waited for another looks once more."""
    store = Taken(is_settled=is_settled)
    find = store.find

    async def find_nothing_at_first(key: str) -> Job | None:
        found = await find(key)
        return found if store.tries else None

    store.find = find_nothing_at_first  # type: ignore[method-assign]
    ids: list[str] = []
    async with fleet(a_sandbox(), store) as client:

        async def submit() -> None:
            ids.append((await client.submit(ask(), key="k")).id)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(submit)
    assert ids == ["theirs"] * 5


@virtual
async def test_news_of_jobs_that_nobody_here_knows_does_no_harm() -> None:
    """They ended, were forgotten or are to be cancelled; whoever waited for them is gone."""
    store = Shared()
    async with fleet(a_sandbox(), store) as client:
        job = await client.submit(ask())
        stranger = Job("stranger", None, ask(), 0, 9, None)
        store.desk.was_forgotten("stranger")
        store.desk.cancel("stranger", "keep")
        store.desk.has_ended(ended(stranger))
        store.desk.was_forgotten(job.id)
        store.desk.has_ended(ended(store.added[0]))
        assert isinstance(await error_of(job), CloneCancelled)
