"""The queue's promises, one by one: the cap, the order, the gate, the clocks, the endings, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from harness import (
    TOKEN,
    HangUp,
    Heard,
    Say,
    ask,
    diary,
    error_of,
    in_process,
    over_loopback,
    serving,
    virtual,
    virtually_asyncio,
    wav,
)

from useapi_voice import (
    AccountUnavailable,
    ApiError,
    AuthenticationError,
    CloneCancelled,
    CloneError,
    CloneJob,
    CloneOutcomeUnknown,
    ConfigurationError,
    DeadlineExceeded,
    JobState,
    QueueClosed,
    QueueFull,
    RequestInvalid,
    ServerError,
    StoreError,
    SubscriptionError,
    VoiceClient,
    VoiceInfo,
    VoiceSlotsFull,
    _client,
)
from useapi_voice._jobs import Job, Outcome
from useapi_voice._models import account_of
from useapi_voice.sandbox import Fault, Sandbox
from useapi_voice.stores import KeyTaken
from useapi_voice.stores.memory import MemoryStore
from useapi_voice.stores.sqlite import SqliteStore


def sandbox_of(accounts: int | Sequence[str] = ("a",), clone_s: Any = 10.0, **more: Any) -> Sandbox:
    """Make a sandbox of one account, whose clones take ten seconds."""
    return Sandbox(accounts=accounts, clone_s=clone_s, **more)


# --- hundreds at once -------------------------------------------------------------------------------------------------


class OnlyClones:
    """A server that offers nothing but `clone-voice`, and counts the clones in progress of each account."""

    def __init__(self, generation: str = "audio", clone_s: float = 0.002) -> None:
        self.generation, self.clone_s = generation, clone_s
        self.now: Counter[str | None] = Counter()
        self.most: Counter[str | None] = Counter()
        self.paths: Counter[str] = Counter()

    async def __call__(self, heard: Heard) -> Say:
        self.paths[heard.path] += 1
        if (heard.method, heard.path) != ("POST", f"/{self.generation}/clone-voice"):
            return Say(404, b"404 page not found\n")
        if heard.headers.get("authorization") != f"Bearer {TOKEN}":
            return Say(401, {"error": "Unauthorized"})
        account = account_of(heard.fields["files"])
        number = self.paths[heard.path]
        self.now[account] += 1
        self.most[account] = max(self.most[account], self.now[account])
        try:
            await anyio.sleep(self.clone_s)
        finally:
            self.now[account] -= 1
        return Say(
            200, {"voice_id": f"user:1-minimax:{account}-audio:{number}", "voice_name": heard.fields["voice_name"]}
        )


FILES = {
    "one account": [["user:1-minimax:a-file:1"]],
    "three accounts": [[f"user:1-minimax:{name}-file:{n}" for n in range(2)] for name in "abc"],
    "opaque": [["7733"], ["opaque-file"]],
}


@pytest.mark.slow  # 300 clones over real sockets
@pytest.mark.parametrize("api", ["auto", "audio", "speech"])
@pytest.mark.parametrize("kind", list(FILES))
async def test_three_hundred_at_a_server_that_offers_nothing_else(kind: str, api: str) -> None:
    """Every one gets its voice, no account has more than two in progress at the server, and none is sent twice."""
    server = OnlyClones("speech" if api == "speech" else "audio")
    sets = FILES[kind]
    async with serving(server) as base_url, VoiceClient(TOKEN, base_url=base_url, api=api) as client:
        requests = [ask(f"voice {n}", files=sets[n % len(sets)]) for n in range(300)]
        voices = await asyncio.gather(*(client.clone(request) for request in requests))
    assert [voice.voice_name for voice in voices] == [request.voice_name for request in requests]
    assert len({voice.voice_id for voice in voices}) == 300
    assert server.paths[f"/{server.generation}/clone-voice"] == 300
    assert set(server.most.values()) == {2}
    assert len(server.most) == (3 if kind == "three accounts" else 1)


@pytest.mark.slow  # 300 clones over real sockets
async def test_three_hundred_by_auto_on_a_speech_only_server() -> None:
    """`auto` finds the speech route where the audio one is gone, with all 300 waiting."""
    server = OnlyClones("speech")
    async with serving(server) as base_url, VoiceClient(TOKEN, base_url=base_url) as client:
        jobs = await client.submit_many([ask(f"v{n}", files=FILES["one account"][0]) for n in range(300)])
        assert len([await job async for job in client.as_completed(jobs)]) == 300
        assert client.statistics().generation == "speech"
    assert server.paths["/speech/clone-voice"] == 300
    assert server.paths["/audio/clone-voice"] <= 2
    assert max(server.most.values()) == 2


@pytest.mark.slow  # 300 clones
@virtual
@pytest.mark.parametrize("generation", ["audio", "speech"])
@pytest.mark.parametrize("accounts", [1, 3])
async def test_three_hundred_at_a_sandbox_that_offers_nothing_else(generation: Any, accounts: int) -> None:
    """The same by the sandbox's own `only`: it measures the cap, and records no breach."""
    sandbox = Sandbox(accounts=accounts, clone_s=(5, 60), only=[f"{generation}/clone-voice"])
    files = [sandbox.add_sample(account=account) for account in sandbox.accounts]
    async with in_process(sandbox) as client:
        jobs = await client.submit_many([ask(f"v{n}", files=[files[n % accounts]]) for n in range(300)])
        assert len([await job for job in jobs]) == 300
        assert client.statistics().jobs == {JobState.CLONED: 300}
    assert sandbox.breaches == ()
    assert set(sandbox.max_parallel_seen.values()) == {2}
    assert len(sandbox.voices()) == 300


@virtual
@pytest.mark.parametrize("max_parallel", [1, 2])
async def test_the_makespan_is_the_ideal_one(max_parallel: int) -> None:
    """A hundred clones of a minute each on two places take 3,000 s, to the second; on one place 6,000 s."""
    sandbox = sandbox_of(clone_s=60)
    fid = sandbox.add_sample()
    async with in_process(sandbox, max_parallel=max_parallel) as client:
        jobs = await client.submit_many([ask(f"v{n}", files=[fid]) for n in range(100)])
        begun_t = anyio.current_time()
        for job in jobs:
            await job
        assert anyio.current_time() - begun_t == pytest.approx(6000 / max_parallel, abs=1e-6)
    assert sandbox.max_parallel_seen == {"a": max_parallel}


@virtual
async def test_uploads_hide_behind_clones() -> None:
    """Each with a sample of its own that takes 25 s to go up, the clones still leave no place idle after the first."""
    sandbox = sandbox_of(clone_s=60, upload_s=25)
    async with in_process(sandbox) as client:
        for job in await client.submit_many([ask(f"v{n}", tone=n) for n in range(20)]):
            await job
        assert anyio.current_time() == pytest.approx(25 + 10 * 60, abs=1)


@pytest.mark.slow  # 200 clones over real sockets, while a thousand tasks are cancelled
@pytest.mark.parametrize("by", ["asyncio", "scopes"])
async def test_a_thousand_cancelled_waiters_leak_nothing(by: str) -> None:
    """Whoever waits may be cancelled at any moment: every job ends, no connection, task or place is left."""
    dice = random.Random(by)
    sandbox = Sandbox(accounts=4, clone_s=0.01)
    files = [sandbox.add_sample(account=account) for account in sandbox.accounts]
    tasks_before = asyncio.all_tasks()
    async with over_loopback(sandbox) as client:
        jobs: list[CloneJob] = []
        cancelled = Counter[str]()

        async def one(number: int) -> None:
            job = await client.submit(ask(f"v{number % 200}", files=[files[number % 4]]), key=f"k{number % 200}")
            jobs.append(job)
            await job

        async def doomed(number: int) -> None:
            if by == "asyncio":
                task = asyncio.ensure_future(one(number))
                await asyncio.sleep(dice.random() * 0.3)
                task.cancel()
                await asyncio.wait([task])
                cancelled["yes" if task.cancelled() else "no"] += 1
            else:
                with anyio.move_on_after(dice.random() * 0.3) as scope:
                    await one(number)
                cancelled["yes" if scope.cancelled_caught else "no"] += 1

        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(doomed, number)
        assert cancelled["yes"] > 100
        jobs += await client.submit_many(
            [ask(f"v{n}", files=[files[n % 4]]) for n in range(200)], keys=[f"k{n}" for n in range(200)]
        )
        assert len({job.id for job in jobs}) == 200
        for job in jobs:
            assert (await job).voice_name == job.request.voice_name
        pools = [line._transport._pool for line in client._transport._own._lines.values()]  # type: ignore[union-attr,attr-defined]
        assert [one for pool in pools for one in pool.connections if not one.is_idle()] == []
        assert [one for pool in pools for one in pool._requests] == []
        statistics = client.statistics()
        assert [(lane.in_progress, lane.staged, lane.waiting) for lane in statistics.lanes] == [(0, 0, 0)] * 4
        assert set(statistics.jobs) == {JobState.CLONED}
    assert sandbox.breaches == ()
    assert asyncio.all_tasks() == tasks_before
    gc.collect()


@virtually_asyncio
async def test_a_waiting_client_is_idle() -> None:
    """With clocks set, a key to forget and an account to look at, it wakes only when there is something to do."""
    sandbox = sandbox_of(["a", "b"])
    sandbox.break_account("b")
    async with in_process(sandbox, keep_s=900) as client:
        await (await client.submit(ask(), key="k", deadline_s=500, queue_timeout_s=400))
        wakes = 0
        assign = client._queue._schedule.assign

        def counting(now_t: float) -> Any:
            nonlocal wakes
            wakes += 1
            return assign(now_t)

        client._queue._schedule.assign = counting  # type: ignore[method-assign]
        await anyio.sleep(1000)
        assert wakes < 40
        assert client.job("k") is None


# --- order ------------------------------------------------------------------------------------------------------------


@virtual
async def test_priority_then_first_in_first_out() -> None:
    """Higher priorities go first, equals in the order in which they came; what was sent is not called back."""
    sandbox = sandbox_of()
    fid = sandbox.add_sample()
    async with in_process(sandbox, max_parallel=1) as client:
        jobs = [await client.submit(ask("first", files=[fid]))]
        await anyio.sleep(1)
        for name, priority in (("b0", 0), ("c5", 5), ("d0", 0), ("e5", 5), ("f9", 9), ("g-1", -1)):
            jobs.append(await client.submit(ask(name, files=[fid]), priority=priority))
        assert [job.position for job in jobs] == [None, 3, 1, 4, 2, 0, 5]
        for job in jobs:
            await job
    # Two were ready ahead of the rest when the place became free: the more urgent of them went, then the rest in order.
    assert [clone.voice_name for clone in sandbox.clones] == ["first", "c5", "f9", "e5", "b0", "d0", "g-1"]


@virtual
async def test_position_and_eta() -> None:
    """They count what goes before, and guess by what clones have taken so far; an ended job has neither."""
    sandbox = sandbox_of(clone_s=30)
    fid = sandbox.add_sample()
    async with in_process(sandbox) as client:
        jobs = await client.submit_many([ask(f"v{n}", files=[fid]) for n in range(9)])
        assert [job.position for job in jobs] == list(range(9))
        assert jobs[8].eta_s == pytest.approx(5 * 20)
        await jobs[1]
        await anyio.sleep(0.1)
        assert [job.position for job in jobs][4:] == [0, 1, 2, 3, 4]
        assert jobs[8].eta_s == pytest.approx(3 * 30)
        assert client.statistics().mean_clone_s == pytest.approx(30)
        await jobs[8]
        assert jobs[8].eta_s == 0.0


@virtual
async def test_eta_without_accounts() -> None:
    """While no account is known, or all are out, nobody can say when."""
    sandbox = sandbox_of()
    async with in_process(sandbox, wait_when_blocked=True) as client:
        sandbox.break_account("a")
        job = await client.submit(ask(files=[sandbox.add_sample()]))
        await anyio.sleep(1)
        assert (job.state, job.eta_s) == ("queued", None)


@virtual
async def test_statistics_add_up() -> None:
    """The picture shows every job once, every lane, and what is staged, waiting and in progress."""
    sandbox = sandbox_of(["a", "b"])
    fid = sandbox.add_sample(account="b")
    async with in_process(sandbox) as client:
        jobs = await client.submit_many(
            [*(ask(f"p{n}", files=[fid]) for n in range(7)), *(ask(f"u{n}") for n in range(7))]
        )
        await anyio.sleep(3)
        now = client.statistics()
        assert sum(now.jobs.values()) == 14
        assert now.jobs[JobState.SENT] == 4
        lanes = {lane.account: lane for lane in now.lanes}
        assert {lane.in_progress for lane in lanes.values()} == {2}
        assert lanes["b"].waiting + lanes["b"].staged + lanes["a"].staged + now.pooled == 10
        assert (now.generation, {lane.limit for lane in now.lanes}) == ("audio", {2})
        for job in jobs:
            await job
        now = client.statistics()
        assert now.jobs == {JobState.CLONED: 14}
        assert {(lane.in_progress, lane.staged, lane.waiting, lane.gate_s, lane.closed_by) for lane in now.lanes} == {
            (0, 0, 0, 0.0, None)
        }


# --- the gate ---------------------------------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("form", ["seconds", "date", "body"])
async def test_429_shuts_the_accounts_gate_for_as_long_as_told(form: Any) -> None:
    """Nothing is sent to that account until then, and then at once; the other account does not notice."""
    sandbox = sandbox_of(["a", "b"], epoch=datetime(2026, 8, 24, tzinfo=UTC))
    sandbox.fail("clone-voice", Fault.rate_limited(300, form), account="a")
    files = {account: sandbox.add_sample(account=account) for account in "ab"}
    async with in_process(sandbox) as client, diary(client) as found:
        on_a = await client.submit_many([ask(f"a{n}", files=[files["a"]]) for n in range(4)])
        on_b = await client.submit_many([ask(f"b{n}", files=[files["b"]]) for n in range(6)])
        begun_t = anyio.current_time()
        for job in on_b:
            await job
        assert anyio.current_time() - begun_t == pytest.approx(30, abs=0.1)
        assert client.statistics().lanes[0].gate_s > 200
        for job in on_a:
            await job
    begun = sorted(clone.begun_at for clone in sandbox.clones if clone.account == "a")
    # The clone beside the refused one may have left already; then the gate; then one at a time, until that goes well.
    held = [begun_at for begun_at in begun if begun_at >= 1]
    assert held[0] == pytest.approx(300, abs=1.1)
    assert held[0] >= 300
    assert held[1] == pytest.approx(held[0] + 10, abs=0.01)
    assert len(held) in {3, 4}
    assert len(found.of("gate_shut")) == 1
    assert sorted((job.attempts for job in on_a), reverse=True) == [2, 1, 1, 1]


@virtual
@pytest.mark.parametrize("told", ["1e12", "1e300", "Fri, 31 Dec 9999 23:59:59 -1200"])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_wait_that_no_calendar_holds_harms_nobody_else(told: str, status: int) -> None:
    """An account that says "never again" is closed for as long as makes no odds; the other works on."""
    sandbox = sandbox_of(["a", "b"])
    sandbox.fail("clone-voice", Fault.status(status, headers={"retry-after": told}), account="a")
    files = {account: sandbox.add_sample(account=account) for account in "ab"}
    async with in_process(sandbox, close_grace_s=0) as client:
        job = await client.submit(ask("A", files=[files["a"]]), deadline_s=500)
        assert (await client.clone(ask("B", files=[files["b"]]))).voice_name == "B"
        assert isinstance(await error_of(job), DeadlineExceeded)


@virtual
async def test_429_without_advice_waits_20_s_growing() -> None:
    """20 s, 40 s, 80 s: each refusal in a row doubles the wait, a success makes it 20 s again."""
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", Fault.rate_limited(), times=3)
    fid = sandbox.add_sample()
    async with in_process(sandbox) as client, diary(client) as found:
        await client.clone(ask("A", files=[fid]))
        assert sandbox.clones[0].begun_at == pytest.approx(140, abs=0.1)
        sandbox.fail("clone-voice", Fault.rate_limited())
        await client.clone(ask("B", files=[fid]))
    assert [event.detail["wait_s"] for event in found.of("gate_shut")] == pytest.approx([20, 40, 80, 20])


@virtual
async def test_success_raises_the_limit_again() -> None:
    """After a 429 an account goes one at a time; some successes later it tries two."""
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", Fault.rate_limited(5))
    fid = sandbox.add_sample()
    async with in_process(sandbox) as client, diary(client) as found:
        for job in await client.submit_many([ask(f"v{n}", files=[fid]) for n in range(12)]):
            await job
        assert client.statistics().lanes[0].limit == 2
    assert [event.detail["limit"] for event in found.events if "limit" in event.detail] == [1, 2]
    assert sandbox.breaches == ()


@virtual
async def test_429_beyond_the_deadline_is_told_at_once() -> None:
    """Where the gate opens later than the job's deadline, waiting is pointless, unless another account will do."""
    sandbox = sandbox_of(["a", "b"])
    sandbox.fail("clone-voice", Fault.rate_limited(1000), account="a")
    async with in_process(sandbox) as client:
        pinned = await client.submit(ask("P", files=[sandbox.add_sample(account="a")]), deadline_s=100)
        error = await error_of(pinned)
        assert anyio.current_time() < 10
        assert isinstance(error, DeadlineExceeded)
        assert (error.clock, error.voice_may_exist, error.safe_to_retry) == ("deadline_s", False, True)
        assert error.retry_after_s == pytest.approx(1000)
    sandbox = sandbox_of(["a", "b"])
    sandbox.fail("clone-voice", Fault.rate_limited(1000), account="a")
    async with in_process(sandbox) as client:
        jobs = await client.submit_many([ask("A"), ask("B")], deadline_s=100)
        assert {(await job).account for job in jobs} == {"b"}


@virtual
@pytest.mark.parametrize("fault", [Fault.rate_limited(100), Fault.account_error()])
async def test_what_waits_for_the_first_list_heeds_the_gate(fault: Fault) -> None:
    """An account that is closed while its voices are listed for the first time is not sent what has a place already."""
    sandbox = sandbox_of(upload_s=1)
    sandbox.fail("voices", Fault.delay(12))
    sandbox.fail("upload-sample", fault)
    async with in_process(sandbox, api="audio") as client:
        jobs = await client.submit_many([ask("A", files=[sandbox.add_sample()]), ask("B")])
        for job in jobs:
            await job.wait()
    assert [clone.begun_at for clone in sandbox.clones if clone.begun_at < 100] == []
    assert {job.state for job in jobs} == {JobState.CLONED if fault.kind == "rate_limited" else JobState.REFUSED}


@virtual
async def test_429_on_uploads_shuts_the_gate_too() -> None:
    """An account that is asked too fast is left alone as a whole."""
    sandbox = sandbox_of()
    sandbox.fail("upload-sample", Fault.rate_limited(40))
    async with in_process(sandbox) as client, diary(client) as found:
        await client.clone(ask())
        assert sandbox.clones[0].begun_at == pytest.approx(40, abs=0.1)
    assert len(found.of("gate_shut")) == 1


# --- keys -------------------------------------------------------------------------------------------------------------


@virtual
async def test_keys_are_idempotent() -> None:
    """The same key with the same request is the same job, in one batch, later, and after its end; else an error."""
    sandbox = sandbox_of()
    async with in_process(sandbox, keep_s=100) as client:
        first, same, other = await client.submit_many([ask(), ask(), ask("Ben")], keys=["k", "k", None])
        assert first.id == same.id != other.id
        again = await client.submit(ask(), key="k")
        assert again.id == first.id
        found = client.job("k")
        assert found is not None
        assert found.id == first.id
        assert client.job("no") is None
        with pytest.raises(RequestInvalid, match="'k' belongs to another request"):
            await client.submit_many([ask("Cid"), ask("Dot")], keys=[None, "k"])
        await first
        assert (await client.submit(ask(), key="k")).id == first.id
        await anyio.sleep(101)
        assert client.job("k") is None
        await (await client.submit(ask("Eve"), key="k"))
    assert len(sandbox.clones) == 3


@virtual
async def test_submits_of_one_key_at_once_make_one_job() -> None:
    """However many tasks submit it at the same moment."""
    sandbox = sandbox_of()
    sandbox.fail("config", Fault.delay(2))
    async with in_process(sandbox) as client:
        ids: list[str] = []

        async def submit() -> None:
            ids.append((await client.submit(ask(), key="k")).id)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(submit)
        assert len(set(ids)) == 1
    assert len(sandbox.clones) == 1


class SlowStore(MemoryStore):
    """A store that takes its time, and may fail; what `add` and `sent` promise is not yet true while they run."""

    def __init__(self, *failing: str) -> None:
        self.failing = list(failing)
        self.told: list[str] = []

    async def _do(self, what: str) -> None:
        await anyio.sleep(1)
        if self.failing and self.failing[0] == what:
            self.failing.pop(0)
            raise StoreError("the disk is full")
        self.told.append(what)

    async def add(self, jobs: Sequence[Job]) -> None:
        await self._do("add")

    async def sent(self, job: Job) -> None:
        await self._do("sent")


@asynccontextmanager
async def stored(sandbox: Sandbox, store: MemoryStore, **settings: Any) -> AsyncIterator[VoiceClient]:
    """Open a client on a store of a test's own."""
    sandbox.now()
    async with httpx.AsyncClient(transport=sandbox.transport()) as http:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_client, "_open_store", lambda *_: store)
            async with VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http, **settings) as client:
                yield client


@virtual
async def test_a_store_that_finds_a_key_taken_is_believed() -> None:
    """Only a fleet's jobs can be another process's: anywhere else, if it is not there, it is no reason to try again."""

    class Taken(MemoryStore):
        async def add(self, jobs: Sequence[Job]) -> None:
            raise KeyTaken(f"nothing was kept of {len(jobs)} jobs: a key is taken")

    async with stored(sandbox_of(), Taken()) as client:
        with pytest.raises(StoreError, match="a key is taken"):
            await client.submit(ask(), key="k")
        assert client.job("k") is None


@virtual
async def test_a_key_whose_first_submit_fails_is_free_again() -> None:
    """A second submit waits for the store's word on the first: where that is no, it makes the job itself."""
    sandbox = sandbox_of()
    async with stored(sandbox, SlowStore("add")) as client:
        await client.config()
        ends: list[str] = []

        async def submit() -> None:
            try:
                job = await client.submit(ask(), key="k")
            except StoreError:
                ends.append("StoreError")
            else:
                ends.append((await job).voice_name or "")

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(submit)
        assert sorted(ends) == ["Ann", "Ann", "StoreError"]
        assert client.statistics().jobs == {JobState.CLONED: 1}
    assert len(sandbox.clones) == 1


@virtual
async def test_a_cancelled_first_submit_leaves_no_orphan() -> None:
    """Its waiter is cancelled while the store is at it: whoever shares the key gets a job that ends."""
    sandbox = sandbox_of()
    async with stored(sandbox, SlowStore()) as client, anyio.create_task_group() as tasks:
        await client.config()
        with anyio.CancelScope() as first:
            async with anyio.create_task_group() as inner:
                inner.start_soon(lambda: client.submit(ask(), key="k"))
                await anyio.sleep(0.5)
                tasks.start_soon(lambda: client.clone(ask()))
                first.cancel()
        with anyio.fail_after(100):
            assert (await (await client.submit(ask(), key="k"))).voice_name == "Ann"


@virtual
async def test_closing_while_the_store_takes_a_job() -> None:
    """The client is left during `add`: the submit ends as `QueueClosed`, and nothing crashes."""
    sandbox = sandbox_of()
    raised: list[Exception] = []

    async def submit(client: VoiceClient) -> None:
        try:
            await (await client.submit(ask(), key="k"))
        except (QueueClosed, CloneCancelled) as error:
            raised.append(error)

    async with anyio.create_task_group() as tasks, stored(sandbox, SlowStore()) as client:
        await client.config()
        await client.submit(ask("other"))
        tasks.start_soon(submit, client)
        await anyio.sleep(0.5)
    assert [type(error) for error in raised] == [QueueClosed]


@virtual
async def test_nothing_leaves_unless_the_intent_is_on_record() -> None:
    """Where the store cannot keep that a clone is sent, it is not sent; it goes when the store can."""
    sandbox = sandbox_of()
    store = SlowStore("sent", "sent")
    async with stored(sandbox, store) as client:
        job = await client.submit(ask(files=[sandbox.add_sample()]))
        assert (await job).voice_name == "Ann"
        assert (job.attempts, [one.verdict for one in job.history]) == (1, ["not_sent", "not_sent", "cloned"])
    assert (len(sandbox.clones), store.told) == (1, ["add", "sent"])


@virtual
async def test_cancelled_or_expired_on_the_way_out() -> None:
    """While the store keeps the intent the job is cancelled, or its time is up: its request does not leave."""
    sandbox = sandbox_of()
    async with stored(sandbox, SlowStore()) as client:
        job = await client.submit(ask(files=[sandbox.add_sample()]))
        await anyio.sleep(0.5)
        assert job.state == "sent"
        assert await job.cancel() == "cancelled"
        late = await client.submit(ask(files=[sandbox.add_sample()]), deadline_s=1.5)
        assert isinstance(await error_of(late), DeadlineExceeded)
        assert (job.attempts, late.attempts) == (0, 1)
        await anyio.sleep(10)
        assert client.statistics().lanes[0].in_progress == 0
    assert sandbox.clones == ()


# --- clocks and limits ------------------------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("clock", ["queue_timeout_s", "deadline_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e12, "5", True])
async def test_a_clock_that_is_no_time_is_refused(clock: Any, value: Any) -> None:
    """It is refused before anything is kept; taken in, NaN would stop the clocks of all jobs behind it."""
    async with in_process(sandbox_of()) as client:
        with pytest.raises(ConfigurationError, match=clock):
            await client.submit(ask(), **{clock: value})
        assert client.statistics().jobs == {}


@virtual
async def test_queue_timeout_is_for_what_was_not_sent() -> None:
    """It ends a job that waits, at its very moment, and never one that was sent."""
    sandbox = sandbox_of(clone_s=50)
    fid = sandbox.add_sample()
    async with in_process(sandbox, max_parallel=1, queue_timeout_s=20) as client:
        sent, waits, patient = [
            await client.submit(ask("S", files=[fid])),
            await client.submit(ask("W", files=[fid])),
            await client.submit(ask("P", files=[fid]), queue_timeout_s=500),
        ]
        error = await error_of(waits)
        assert anyio.current_time() == pytest.approx(20, abs=0.1)
        assert isinstance(error, DeadlineExceeded)
        assert (error.clock, error.voice_may_exist, error.safe_to_retry, error.attempts) == (
            "queue_timeout_s", False, True, 0,
        )  # fmt: skip
        assert "no voice was made" in str(error)
        await sent
        await patient
    assert [clone.voice_name for clone in sandbox.clones] == ["S", "P"]


@virtual
async def test_deadline_ends_the_job_but_not_the_place() -> None:
    """With its request in progress the job ends in time; its place is kept, and the late voice is reported."""
    sandbox = sandbox_of(clone_s=50)
    fid = sandbox.add_sample()
    async with in_process(sandbox, max_parallel=1) as client, diary(client) as found:
        job = await client.submit(ask("D", files=[fid]), deadline_s=20)
        behind = await client.submit(ask("B", files=[fid]))
        error = await error_of(job)
        assert anyio.current_time() == pytest.approx(20, abs=0.1)
        assert isinstance(error, DeadlineExceeded)
        assert (error.clock, error.voice_may_exist, error.safe_to_retry) == ("deadline_s", True, False)
        assert client.statistics().lanes[0].in_progress == 1
        await behind
        assert [voice.voice_name for voice in job.surplus] == ["D"]
        assert (job.state, await job.wait()) == ("expired", "expired")
    assert [clone.begun_at for clone in sandbox.clones] == pytest.approx([0, 50], abs=0.1)
    assert len(found.of("late_voice")) == 1


class TardyStore(MemoryStore):
    """Has endings on record when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []
        self.noted: list[Outcome | None] = []

    def settled(self, job: Job, outcome: Outcome, announce: Callable[[], None]) -> None:
        self.due.append(announce)

    def changed(self, job: Job) -> None:
        self.noted.append(job.outcome)


@virtual
async def test_a_late_voice_is_noted_after_the_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that there would be no ending to keep with it."""
    store = TardyStore()
    monkeypatch.setattr(_client, "_open_store", lambda *_: store)
    sandbox = sandbox_of(clone_s=50)
    async with in_process(sandbox) as client:
        job = await client.submit(ask(files=[sandbox.add_sample()]), deadline_s=20)
        await anyio.sleep(60)
        assert (len(store.due), store.noted, job.surplus) == (1, [], ())
        store.due[0]()
        await anyio.sleep(1)
        assert len(job.surplus) == 1
    (noted,) = store.noted
    assert isinstance(noted, DeadlineExceeded)


@pytest.mark.slow  # real time, as a file is involved
async def test_a_late_voice_leaves_the_ending_on_record(tmp_path: Path) -> None:
    """Whoever asks the next client for the job learns how it ended, and of the voice; nobody waits for ever."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.5)
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        job = await client.submit(ask(files=[sandbox.add_sample()]), key="k", deadline_s=0.2)
        assert isinstance(await error_of(job), DeadlineExceeded)
    assert len(job.surplus) == 1
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        again = client.job("k")
        assert again is not None
        assert isinstance(await error_of(again), DeadlineExceeded)
        assert again.surplus == job.surplus
    assert len(sandbox.clones) == 1


@virtual
async def test_deadline_of_a_waiting_job() -> None:
    """One that was not sent costs nothing; nor does one whose samples are going up."""
    sandbox = sandbox_of(clone_s=50, upload_s=30)
    async with in_process(sandbox) as client:
        error = await error_of(await client.submit(ask(), deadline_s=10))
        assert isinstance(error, DeadlineExceeded)
        assert not error.voice_may_exist
        await anyio.sleep(100)
        assert client.statistics().lanes[0].staged == 0
    assert sandbox.clones == ()


@virtual
async def test_max_pending() -> None:
    """One job too many is `QueueFull`, with nothing accepted; a known key is no new job; room comes with progress."""
    sandbox = sandbox_of(clone_s=20)
    fid = sandbox.add_sample()
    async with in_process(sandbox, max_pending=3) as client:
        with pytest.raises(QueueFull):
            await client.submit_many([ask(f"v{n}", files=[fid]) for n in range(4)])
        jobs = await client.submit_many([ask(f"v{n}", files=[fid]) for n in range(3)], keys=["0", "1", "2"])
        jobs += await client.submit_many([ask(f"w{n}", files=[fid]) for n in range(2)])
        with pytest.raises(QueueFull) as raised:
            await client.submit(ask("x", files=[fid]))
        assert (raised.value.max_pending, raised.value.eta_s) == (3, pytest.approx(40))
        assert "3 jobs wait and max_pending is 3" in str(raised.value)
        assert (await client.submit(ask("v1", files=[fid]), key="1")).id == jobs[1].id
        await anyio.sleep(21)
        with pytest.raises(QueueFull):
            await client.submit_many([ask(f"y{n}", files=[fid]) for n in range(3)])
        await client.submit_many([ask(f"y{n}", files=[fid]) for n in range(2)])
        assert sum(client.statistics().jobs.values()) == 7


@virtual
async def test_max_pending_counts_what_waits() -> None:
    """Jobs that have ended but still occupy a place neither make room nor take it."""
    sandbox = sandbox_of(clone_s=50)
    fid = sandbox.add_sample()
    async with in_process(sandbox, max_pending=2) as client:
        for job in await client.submit_many([ask(f"v{n}", files=[fid]) for n in range(2)], deadline_s=10):
            await error_of(job)
        await client.submit_many([ask(f"w{n}", files=[fid]) for n in range(2)])
        with pytest.raises(QueueFull):
            await client.submit(ask("x", files=[fid]))


# --- cancelling -------------------------------------------------------------------------------------------------------


@virtually_asyncio  # on trio, which of the uploads ends first is a matter of dice
async def test_cancel_before_it_is_sent() -> None:
    """Queued, uploading or ready: it ends at once, costs nothing, and its place in line is the next one's."""
    sandbox = sandbox_of(clone_s=50, upload_s=5)
    async with in_process(sandbox, max_parallel=1) as client:
        jobs = await client.submit_many([ask(f"v{n}", tone=n) for n in range(6)])
        await anyio.sleep(7)
        states = [job.state for job in jobs]
        assert states == ["sent", "ready", "ready", "queued", "queued", "queued"]
        uploading = await client.submit(ask("u", tone=99), priority=9)
        for job in (jobs[1], jobs[3]):
            assert await job.cancel() == "cancelled"
            error = await error_of(job)
            assert isinstance(error, CloneCancelled)
            assert (error.voice_may_exist, error.safe_to_retry, error.attempts) == (False, True, 0)
        await anyio.sleep(1)
        assert uploading.state == "uploading"
        uploading.cancel()
        assert uploading.done()
        for job in (jobs[0], jobs[2], jobs[4], jobs[5]):
            await job
        jobs[0].cancel()
        assert jobs[0].state == "cloned"
    assert len(sandbox.clones) == 4


@virtual
@pytest.mark.parametrize("choice", ["keep", "delete"])
async def test_cancel_after_it_is_sent(choice: Any) -> None:
    """It waits for the truth: kept, the job has its voice after all; deleted, it is cancelled and the slot is free."""
    sandbox = sandbox_of()
    async with in_process(sandbox) as client:
        job = await client.submit(ask())
        await anyio.sleep(1)
        ending = job.cancel(voice=choice)
        assert (job.state, job.done()) == ("sent", False)
        assert await ending == ("cloned" if choice == "keep" else "cancelled")
        assert anyio.current_time() >= 10
        assert len(sandbox.voices()) == (choice == "keep")
        if choice == "delete":
            error = await error_of(job)
            assert (error.voice_may_exist, "deleted" in str(error)) == (False, True)


@virtual
async def test_cancel_while_in_doubt() -> None:
    """A voice that is found is treated as asked; where there is none, the job is not sent again."""
    for made in (True, False):
        sandbox = sandbox_of()
        sandbox.fail("clone-voice", Fault.drop(made=made))
        async with in_process(sandbox) as client:
            job = await client.submit(ask())
            await anyio.sleep(2)
            assert job.state == "in_doubt"
            assert await job.cancel(voice="delete") == "cancelled"
            assert sandbox.voices() == ()
        assert len(sandbox.clones) == made


@virtual
@pytest.mark.parametrize("fault", [
    Fault.moderated(), Fault.rate_limited(500), Fault.account_error(), Fault.slots_full(), Fault.status(401),
    Fault.status(400),
])  # fmt: skip
async def test_a_refused_job_that_was_cancelled_is_cancelled(fault: Fault) -> None:
    """Nothing was made: whatever the refusal was, the job ends as its owner asked."""
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", fault)
    async with stored(sandbox, MemoryStore()) as client:
        job = await client.submit(ask(), deadline_s=50)
        begin = client._queue.attempts._begin

        async def begin_and_cancel(*args: Any) -> Any:
            sent = await begin(*args)
            job.cancel()
            return sent

        client._queue.attempts._begin = begin_and_cancel  # type: ignore[method-assign]
        assert await job.wait() == "cancelled"
        assert not (await error_of(job)).voice_may_exist


@virtual
async def test_an_unwanted_voice_that_cannot_be_deleted() -> None:
    """The job ends as cancelled, and says that the voice is there and why."""
    sandbox = sandbox_of()
    sandbox.fail("delete-voice", Fault.status(400), times=None)
    async with in_process(sandbox) as client:
        job = await client.submit(ask())
        await anyio.sleep(1)
        assert await job.cancel(voice="delete") == "cancelled"
        error = await error_of(job)
        assert (error.voice_may_exist, error.safe_to_retry) == (True, False)
        assert [voice.voice_id for voice in job.surplus] == [sandbox.voices()[0].voice_id]


@virtual
async def test_an_unwanted_voice_is_deleted_even_when_it_is_late() -> None:
    """Cancelled with `delete`, then out of time: nobody waits any more, and the voice is still not left behind."""
    sandbox = sandbox_of(clone_s=50)
    async with in_process(sandbox) as client:
        job = await client.submit(ask(), deadline_s=20)
        await anyio.sleep(1)
        job.cancel(voice="delete")
        await error_of(job)
        await anyio.sleep(100)
        assert (sandbox.voices(), job.surplus) == ((), ())
    assert len(sandbox.clones) == 1


# --- accounts that fail -----------------------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("fault", [Fault.account_error(), Fault.no_subscription()])
async def test_an_account_that_is_out_moves_its_jobs(fault: Fault) -> None:
    """Jobs that any account may serve go elsewhere; pinned ones end, safe to retry; neither waits for it."""
    sandbox = sandbox_of(["a", "b"])
    sandbox.fail("clone-voice", fault, account="a", times=None)
    async with in_process(sandbox) as client, diary(client) as found:
        free = await client.submit_many([ask(f"f{n}") for n in range(8)])
        pinned = await client.submit_many([ask(f"p{n}", account="a") for n in range(3)])
        assert {(await job).account for job in free} == {"b"}
        for job in pinned:
            error = await error_of(job)
            assert isinstance(error, AccountUnavailable)
            assert (error.safe_to_retry, error.voice_may_exist, error.account) == (True, False, "a")
        late = await error_of(await client.submit(ask("late", account="a")))
        assert isinstance(late, AccountUnavailable)
        assert late.attempts == 0
        lane = next(lane for lane in client.statistics().lanes if lane.account == "a")
        assert lane.closed_by
    assert len(found.of("account_out")) >= 1
    assert sandbox.breaches == ()


@virtual
async def test_an_account_that_is_out_is_looked_at_again() -> None:
    """Every `look_again_after_s`; mended, it takes jobs again."""
    sandbox = sandbox_of()
    sandbox.break_account("a")
    async with in_process(sandbox, look_again_after_s=100) as client, diary(client) as found:
        assert isinstance(await error_of(await client.submit(ask())), AccountUnavailable)
        asked = sandbox.count("accounts")
        await anyio.sleep(350)
        assert sandbox.count("accounts") - asked == 3
        sandbox.fail("accounts", Fault.status(404))
        sandbox.fail("accounts", Fault.status(401))
        sandbox.repair("a")
        await anyio.sleep(100)
        assert (await client.clone(ask())).account == "a"
    assert [event.account for event in found.of("account_back")] == ["a"]


@virtual
@pytest.mark.parametrize("files", [["opaque"], ["user:4242-minimax:a-file:1"]])
async def test_an_account_comes_back_where_there_is_no_list(files: list[str]) -> None:
    """A server that offers nothing but clone-voice cannot be asked: after `look_again_after_s` a clone tries."""
    answers = [Say(596, {"error": "pending", "code": 596})]

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("clone-voice"):
            return httpx.Response(404)
        said = answers.pop() if answers else Say(200, {"voice_id": "v"})
        return httpx.Response(said.status, json=said.body)

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http,
        VoiceClient(TOKEN, base_url="https://sandbox.invalid", http_client=http, look_again_after_s=100) as client,
    ):
        assert isinstance(await error_of(await client.submit(ask(files=files))), AccountUnavailable)
        await anyio.sleep(50)
        assert isinstance(await error_of(await client.submit(ask(files=files))), AccountUnavailable)
        await anyio.sleep(60)
        assert (await client.clone(ask(files=files))).voice_id == "v"


@virtual
async def test_a_nameless_account_is_in_order_when_any_is() -> None:
    """Jobs whose account nobody could name are tried again when the list shows one that works."""
    sandbox = sandbox_of(["a", "b"])
    sandbox.break_account("a")
    sandbox.break_account("b")
    async with in_process(sandbox) as client:
        client._queue._schedule.admit("")
        assert not await client._queue._lanes.is_in_order("")
        sandbox.repair("b")
        assert await client._queue._lanes.is_in_order("")
        assert await client._queue._lanes.is_in_order("b")
        assert not await client._queue._lanes.is_in_order("a")
        assert not await client._queue._lanes.is_in_order("gone")


@virtual
async def test_blocked_jobs_may_wait() -> None:
    """With `wait_when_blocked` nobody is told off: the jobs wait for their account, and go on when it is back."""
    sandbox = sandbox_of()
    sandbox.break_account("a")
    async with in_process(sandbox, wait_when_blocked=True, look_again_after_s=100) as client:
        jobs = await client.submit_many([ask("A"), ask("B", account="a")])
        await anyio.sleep(250)
        assert {job.state for job in jobs} == {"queued"}
        sandbox.repair("a")
        for job in jobs:
            await job
        assert anyio.current_time() < 330


@virtual
async def test_full_slots_move_jobs_on() -> None:
    """An account without a slot is left for one that has some; when all are full, that is the error."""
    sandbox = sandbox_of(["a", "b"], slots=2, generations=["speech"])
    async with in_process(sandbox) as client, diary(client) as found:
        jobs = await client.submit_many([ask(f"v{n}") for n in range(6)])
        ends = [await job.wait() for job in jobs]
        assert Counter(ends) == {JobState.CLONED: 4, JobState.REFUSED: 2}
        for job in jobs:
            if job.state == "refused":
                error = await error_of(job)
                assert isinstance(error, VoiceSlotsFull)
                assert (error.code, error.safe_to_retry, error.voice_may_exist) == (2600010, True, False)
        assert isinstance(await error_of(await client.submit(ask("x"))), VoiceSlotsFull)
    assert sorted(event.account or "" for event in found.of("slots_full")) == ["a", "b"]
    assert len(sandbox.voices()) == 4


@virtual
@pytest.mark.parametrize("generation", ["audio", "speech"])
async def test_a_delete_frees_a_slot(generation: Any) -> None:
    """A voice that this client deletes opens its account at once; only the jobs that wait need it."""
    sandbox = sandbox_of(slots=1, generations=[generation])
    async with in_process(sandbox, wait_when_blocked=True) as client, diary(client) as found:
        first = await client.clone(ask("A"))
        job = await client.submit(ask("B"))
        await anyio.sleep(100)
        assert (job.state, client.statistics().lanes[0].closed_by is not None) == ("queued", True)
        await client.delete_voice(first.voice_id)
        assert (await job).voice_name == "B"
    assert len(found.of("slots_free")) == 1


@virtual
async def test_equity_shows_that_a_slot_is_free() -> None:
    """A slot that somebody else frees is seen at the next look; a look that fails is repeated."""
    sandbox = sandbox_of(slots=1, generations=["speech"])
    async with (
        in_process(sandbox, wait_when_blocked=True, look_again_after_s=100) as client,
        httpx.AsyncClient(
            transport=sandbox.transport(), base_url=sandbox.base_url, headers={"Authorization": f"Bearer {TOKEN}"}
        ) as owner,
    ):
        first = await client.clone(ask("A"))
        job = await client.submit(ask("B"))
        await anyio.sleep(250)
        assert sandbox.count("equity") == 2
        sandbox.fail("equity", Fault.status(400))
        await owner.post("speech/delete-voice", json={"voice_id": first.voice_id})
        assert (await job).voice_name == "B"
        assert sandbox.count("equity") == 4


@virtual
@pytest.mark.parametrize(("status", "error"), [(401, AuthenticationError), (402, SubscriptionError)])
async def test_a_refused_token_stops_all_that_waits(status: int, error: type[CloneError]) -> None:
    """One 401 or 402 is everybody's: those who wait are told, those in progress see theirs through."""
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", Fault.status(status), nth=2)
    fid = sandbox.add_sample()
    async with in_process(sandbox) as client:
        jobs = await client.submit_many([ask(f"v{n}", files=[fid]) for n in range(20)])
        ends = Counter([await job.wait() for job in jobs])
        assert ends == {JobState.CLONED: 1, JobState.REFUSED: 19}
        for job in jobs:
            if job.state == "refused":
                told = await error_of(job)
                assert isinstance(told, error)
                assert (told.status_code, told.safe_to_retry, told.job_id) == (status, False, job.id)
        await client.clone(ask("again", files=[fid]))
    assert len(sandbox.clones) == 2


@virtual
async def test_a_refused_token_on_upload_stops_all_too() -> None:
    """The same where it is an upload that learns of it."""
    sandbox = sandbox_of()
    sandbox.fail("upload-sample", Fault.status(401))
    async with in_process(sandbox) as client:
        for job in await client.submit_many([ask(f"v{n}") for n in range(5)]):
            assert isinstance(await error_of(job), AuthenticationError)


@virtual
async def test_an_account_that_is_out_on_upload() -> None:
    """An upload that meets 596 takes the account out as a clone does."""
    sandbox = sandbox_of(["a", "b"])
    async with in_process(sandbox) as client:
        await client.accounts()
        jobs = await client.submit_many([ask(f"v{n}", tone=n) for n in range(6)])
        sandbox.break_account("a")
        assert {(await job).account for job in jobs} <= {"a", "b"}
        assert len(sandbox.voices()) == 6


# --- samples that the remote has lost ---------------------------------------------------------------------------------


@virtual
async def test_lost_samples_go_up_once_more() -> None:
    """A clone that is refused for its file is uploaded again, once; refused again, that is its end."""
    sandbox = sandbox_of()
    refusal = Fault.status(400, {"error": "Parameter files has unknown value x", "code": 400})
    for times, uploads in ((1, 2), (None, 2)):
        sandbox = sandbox_of()
        sandbox.fail("clone-voice", refusal, times=times)
        async with in_process(sandbox) as client:
            job = await client.submit(ask())
            assert await job.wait() == ("cloned" if times else "refused")
            assert job.attempts == 2
        assert len(sandbox.uploads) == uploads
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", refusal)
    async with in_process(sandbox) as client:
        error = await error_of(await client.submit(ask(files=[sandbox.add_sample()])))
        assert (error.status_code, error.attempts) == (400, 1)


# --- lost answers -----------------------------------------------------------------------------------------------------


@virtual
async def test_patience_for_the_absent_ends() -> None:
    """A clone whose answer is lost again and again, and that never made anything, is not sent for ever."""
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", Fault.status(500), times=None)
    async with in_process(sandbox, max_resends=2) as client:
        job = await client.submit(ask())
        error = await error_of(job)
        assert isinstance(error, ServerError)
        assert (error.attempts, error.status_code, error.voice_may_exist, error.safe_to_retry) == (3, 500, False, True)
        assert [attempt.verdict for attempt in job.history] == ["absent"] * 3


@virtual
async def test_what_cannot_be_told_keeps_its_place() -> None:
    """Neither answer nor list: the job ends as unknown at once, its place only when the remote is surely done."""
    sandbox = sandbox_of(clone_s=60)
    sandbox.fail("clone-voice", Fault.drop(made=True), voice_name="A")
    sandbox.fail("voices", Fault.status(403), times=None)
    async with in_process(sandbox, max_parallel=1, settle_after_s=75) as client:
        fid = sandbox.add_sample()
        first, second = await client.submit_many([ask("A", files=[fid]), ask("B", files=[fid])])
        error = await error_of(first)
        assert anyio.current_time() < 20
        assert isinstance(error, CloneOutcomeUnknown)
        assert (error.voice_may_exist, error.safe_to_retry) == (True, False)
        assert client.statistics().lanes[0].in_progress == 1
        await second
    assert sandbox.clones[1].begun_at >= 75
    assert sandbox.breaches == ()


@virtual
async def test_an_answer_without_a_voice_is_no_voice() -> None:
    """Success without a `voice_id` is looked into like a lost answer."""
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", Fault.status(200, {}, made=True, at="end"))
    async with in_process(sandbox) as client:
        job = await client.submit(ask())
        assert (await job).voice_id == sandbox.voices()[0].voice_id
        assert [attempt.verdict for attempt in job.history] == ["adopted"]


@pytest.mark.slow  # real time, as sockets are involved
async def test_what_waits_for_a_connection_has_not_left() -> None:
    """A caller's client may have none to spare: what the remote has is counted from when the request gets one."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.6)
    sandbox.fail("clone-voice", Fault.drop(made=True), voice_name="Ann")
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=0)
    async with sandbox, httpx.AsyncClient(limits=limits) as http:
        client = VoiceClient(sandbox.token, base_url=sandbox.base_url, http_client=http, settle_after_s=0.8)
        async with client:
            await client.clone(ask("First"))
            busy = http.stream("GET", f"{sandbox.base_url}/accounts", headers={"Authorization": f"Bearer {TOKEN}"})
            async with busy:
                job = await client.submit(ask("Ann", files=[sandbox.add_sample()]))
                await anyio.sleep(0.75)
            assert (await job).voice_name == "Ann"
    assert sorted(clone.voice_name for clone in sandbox.clones) == ["Ann", "First"]


class Reluctant(httpx.AsyncBaseTransport):
    """To a sandbox, over a proxy that takes 70 s to say that a route is gone."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._inner = sandbox.transport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if "audio/clone-voice" in request.url.path:
            await anyio.sleep(70)
        return response


@virtual
async def test_what_goes_by_the_other_route_has_left_only_then() -> None:
    """A route that takes its time to say that it is gone leaves the remote as long as ever for the other one."""
    sandbox = sandbox_of(clone_s=50, generations=["speech"], only=["speech/clone-voice"])
    sandbox.fail("clone-voice", Fault.drop(made=True), voice_name="A")
    sandbox.now()
    fid = sandbox.add_sample()
    async with httpx.AsyncClient(transport=Reluctant(sandbox)) as http:
        client = VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http, api="auto", max_parallel=1)
        async with client:
            lost, _ = jobs = await client.submit_many([ask("A", files=[fid]), ask("B", files=[fid])])
            assert isinstance(await error_of(lost), CloneOutcomeUnknown)
            assert (await jobs[1]).voice_name == "B"
    begun = [clone.begun_at for clone in sandbox.clones]
    # Nothing came back by the other route, so that B tries the first one as well.
    assert begun == pytest.approx([70, 70 + 75 + 70], abs=0.1)


@virtual
async def test_voices_too_many_are_reported_not_deleted() -> None:
    """Where two voices fit, the newest is the job's; the other is named, and left alone."""
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", Fault.drop(made=True))
    async with in_process(sandbox) as client, diary(client) as found:
        job = await client.submit(ask())
        await anyio.sleep(11)
        extra = sandbox.add_voice("Ann")
        assert (await job).voice_id == extra.voice_id
    own = sandbox.voices()[0].voice_id
    assert [voice.voice_id for voice in job.surplus] == found.of("surplus")[0].detail["voice_ids"] == [own]
    assert len(sandbox.voices()) == 2


# --- out of reach -----------------------------------------------------------------------------------------------------


@virtual
async def test_a_remote_out_of_reach_is_tried_for_a_while() -> None:
    """A clone that cannot be sent is tried until `unreachable_after_s`, ever more slowly; no attempt is counted."""
    sandbox = sandbox_of()
    tries: list[float] = []
    down = True

    class Wire(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if down and request.url.path.endswith("clone-voice"):
                tries.append(anyio.current_time())
                raise httpx.ConnectError("refused")
            return await sandbox.transport().handle_async_request(request)

    async with (
        httpx.AsyncClient(transport=Wire()) as http,
        VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http, unreachable_after_s=30) as client,
    ):
        fid = sandbox.add_sample()
        job = await client.submit(ask(files=[fid]))
        error = await error_of(job)
        assert isinstance(error, ServerError)
        assert (error.attempts, error.safe_to_retry, error.voice_may_exist) == (0, True, False)
        assert tries[-1] - tries[0] == pytest.approx(30.5)
        assert len(tries) == 7
        assert {attempt.verdict for attempt in job.history} == {"not_sent"}
        job = await client.submit(ask(files=[fid]))
        cancelled = await client.submit(ask("C", files=[fid]))
        await anyio.sleep(20)
        cancelled.cancel()
        down = False
        await job
        assert job.attempts == 1
    assert len(sandbox.clones) == 1


# --- draining and closing ---------------------------------------------------------------------------------------------


@virtual
async def test_drain() -> None:
    """Nothing new starts; what was sent is seen through; what is left is named; submitting is over."""
    sandbox = sandbox_of()
    fid = sandbox.add_sample()
    async with in_process(sandbox) as client:
        jobs = await client.submit_many([ask(f"v{n}", files=[fid]) for n in range(5)])
        await anyio.sleep(1)
        left = await client.drain(timeout_s=2)
        assert [job.state for job in left] == ["sent", "sent", "queued", "queued", "queued"] or len(left) == 5
        drained: list[int] = []

        async def drain() -> None:
            drained.append(len(await client.drain()))

        with anyio.fail_after(100):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(drain)
        assert drained == [3, 3, 3]
        with pytest.raises(QueueClosed, match="draining"):
            await client.submit(ask())
        assert {job.state for job in jobs[:2]} == {"cloned"}
    for job in jobs[2:]:
        error = await error_of(job)
        assert isinstance(error, CloneCancelled)
        assert error.safe_to_retry
    assert len(sandbox.clones) == 2


BODIES = ["normal", "raises", "raises a group", "cancelled"]


@virtual
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("grace_s", [0.0, 25.0])
async def test_closing_in_the_middle_of_everything(body: str, grace_s: float) -> None:
    """However the block ends, every waiter of every job is told, and the body's own error comes out as itself."""
    sandbox = sandbox_of(["a", "b"], clone_s=20, upload_s=15)
    sandbox.fail("clone-voice", Fault.drop(made=True), voice_name="lost")
    fid = sandbox.add_sample()
    ends: Counter[str] = Counter()
    jobs: list[CloneJob] = []
    caught: BaseException | None = None

    async def wait(job: CloneJob) -> None:
        try:
            await job
            ends["cloned"] += 1
        except CloneError as error:
            ends[type(error).__name__] += 1

    with anyio.fail_after(500):
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                try:
                    async with in_process(sandbox, close_grace_s=grace_s) as client:
                        jobs = await client.submit_many(
                            [
                                ask("lost", files=[fid]),
                                ask("sent", files=[fid]),
                                *(ask(f"u{n}", tone=n) for n in range(20)),
                            ]
                        )
                        for job in jobs:
                            tasks.start_soon(wait, job)
                        tasks.start_soon(_call_until_closed, client)
                        await anyio.sleep(10)
                        match body:
                            case "raises":
                                raise ValueError("mine")
                            case "raises a group":
                                raise ExceptionGroup("mine", [ValueError("inside")])
                            case "cancelled":
                                scope.cancel()
                                await anyio.sleep(1)
                except Exception as error:  # noqa: BLE001 - whatever comes out is looked at below
                    caught = error
    if body == "raises":
        assert isinstance(caught, ValueError)
        assert str(caught) == "mine"
    elif body == "raises a group":
        assert isinstance(caught, ExceptionGroup)
        assert caught.message == "mine"
    else:
        assert caught is None
        assert scope.cancelled_caught == (body == "cancelled")
    assert ends.total() == len(jobs) == 22
    assert all(job.done() for job in jobs)
    if grace_s and body == "normal":
        assert ends == {"CloneCancelled": 20, "cloned": 2}
    elif not grace_s:
        assert ends == {"CloneCancelled": 20, "CloneOutcomeUnknown": 2}


async def _call_until_closed(client: VoiceClient) -> None:
    """Ask on and on, until the client is closed."""
    with pytest.raises(QueueClosed):
        while True:
            await client.accounts()
            await anyio.sleep(0.5)


@pytest.mark.parametrize("body", ["normal", "raises", "cancelled", "cancelled twice"])
async def test_closing_over_real_sockets_leaves_nothing(body: str) -> None:
    """No task, no connection and no file is left, whether the body ends, fails, or its task is cancelled natively."""
    before = asyncio.all_tasks()
    sandbox = Sandbox(accounts=2, clone_s=5)
    files = [sandbox.add_sample(account=account) for account in sandbox.accounts]
    clients: list[VoiceClient] = []
    jobs: list[CloneJob] = []

    async def life() -> None:
        async with VoiceClient(TOKEN, base_url=sandbox.base_url, close_grace_s=0.05) as client:
            clients.append(client)
            jobs.extend(await client.submit_many([ask(f"v{n}", files=[files[n % 2]]) for n in range(20)]))
            jobs.extend(await client.submit_many([ask(f"s{n}", tone=n) for n in range(5)]))
            while sandbox.in_progress() < 4:
                await asyncio.sleep(0.001)
            if body == "normal":
                return
            if body == "raises":
                raise ValueError
            await asyncio.sleep(60)

    async with sandbox:
        task = asyncio.ensure_future(life())
        while sandbox.in_progress() < 4:
            await asyncio.sleep(0.001)
        if "cancelled" in body:
            await asyncio.sleep(0.01)
            task.cancel()
            if body == "cancelled twice":
                await asyncio.sleep(0.01)
                task.cancel()
        [end] = await asyncio.gather(task, return_exceptions=True)
        expected = {"normal": type(None), "raises": ValueError}.get(body, asyncio.CancelledError)
        assert type(end) is expected
        assert all(job.done() for job in jobs)
        assert Counter(job.state for job in jobs)[JobState.UNKNOWN] == 4
        [client] = clients
        lines = client._transport._own._lines.values()  # type: ignore[union-attr]
        assert len(lines) == 3
        assert [line._transport._pool.connections for line in lines] == [[]] * 3  # type: ignore[attr-defined]
        for wrong in (client.clone(ask()), client.config(), client.drain()):
            with pytest.raises(QueueClosed, match="this VoiceClient is closed"):
                await wrong
    assert asyncio.all_tasks() == before
    gc.collect()


async def test_a_call_while_the_last_things_are_closed() -> None:
    """Between the end of the queue and the end of the client a call is `QueueClosed`, not an internal error."""
    sandbox = sandbox_of(clone_s=0.01)
    raised: list[Exception] = []

    class Nosy(MemoryStore):
        async def aclose(self) -> None:
            for wrong in (client.config(), client.submit(ask()), client.upload_sample(wav())):
                with pytest.raises(QueueClosed) as caught:
                    await wrong
                raised.append(caught.value)

    async with stored(sandbox, Nosy()) as client:
        await client.clone(ask())
    assert len(raised) == 3


@virtual
async def test_a_call_that_is_cut_off_by_closing() -> None:
    """Whoever asks something else while the client closes is told, in one sentence."""
    sandbox = sandbox_of()
    sandbox.fail("equity", Fault.hang(made=False))
    told: list[str] = []

    async def asks(client: VoiceClient) -> None:
        with pytest.raises(QueueClosed) as raised:
            await client.slots()
        told.append(str(raised.value))

    async with anyio.create_task_group() as tasks, in_process(sandbox) as client:
        tasks.start_soon(asks, client)
        await anyio.sleep(1)
    assert told == ["the client was closed while this call was in progress"]


@virtual
async def test_clones_end_within_the_grace() -> None:
    """Leaving the client waits for what is in progress, and takes what it made."""
    sandbox = sandbox_of(clone_s=20)
    async with in_process(sandbox, close_grace_s=25) as client:
        job = await client.submit(ask(files=[sandbox.add_sample()]))
        await anyio.sleep(1)
    assert isinstance(await job, VoiceInfo)


@virtual
async def test_refusals_while_closing_end_the_job() -> None:
    """A clone that is refused during the grace is not queued again, as nobody would send it."""
    sandbox = sandbox_of(clone_s=20)
    sandbox.fail("clone-voice", Fault.slots_full())
    async with in_process(sandbox, close_grace_s=25) as client:
        job = await client.submit(ask(files=[sandbox.add_sample()]))
        await anyio.sleep(1)
    error = await error_of(job)
    assert isinstance(error, CloneCancelled)
    assert not error.voice_may_exist


async def test_a_server_that_hangs_up_on_everything() -> None:
    """A server that drops every connection ends no task but the jobs': all are told, none is sent twice unseen."""
    heard: Counter[str] = Counter()

    async def handler(request: Heard) -> Say:
        heard[request.path] += 1
        raise HangUp

    async with (
        serving(handler) as base_url,
        VoiceClient(TOKEN, base_url=base_url, api="audio", settle_after_s=0.1) as client,
    ):
        error = await error_of(await client.submit(ask(files=["user:1-minimax:a-file:1"])))
    assert isinstance(error, CloneOutcomeUnknown)
    assert heard["/audio/clone-voice"] == 1


@virtual
async def test_an_unexpected_refusal_is_one_jobs_affair() -> None:
    """A 400 ends its job with the remote's words, and nobody else's."""
    sandbox = sandbox_of()
    sandbox.fail("clone-voice", Fault.status(400, {"error": "no such thing", "code": 400}), voice_name="B")
    fid = sandbox.add_sample()
    async with in_process(sandbox) as client:
        a, b, c = await client.submit_many([ask(name, files=[fid]) for name in "ABC"])
        error = await error_of(b)
        assert (type(error), str(error), error.voice_may_exist, error.safe_to_retry) == (
            ApiError, "no such thing", False, False,
        )  # fmt: skip
        await a
        await c


# --- moments in between -----------------------------------------------------------------------------------------------


@virtual
async def test_an_idle_account_takes_over_what_another_cannot_send() -> None:
    """Jobs that were staged at an account whose gate is shut are served by the other, once that has nothing left."""
    sandbox = sandbox_of(["a", "b"])
    sandbox.fail("clone-voice", Fault.rate_limited(1000), account="a", times=2)
    async with in_process(sandbox) as client:
        jobs = await client.submit_many([ask(f"v{n}", tone=n) for n in range(9)])
        for job in jobs:
            await job
        assert anyio.current_time() < 100
        assert {job.account for job in jobs} == {"b"}
    assert sandbox.breaches == ()


@virtual
async def test_any_account_where_there_is_no_list() -> None:
    """A server without a list of accounts gets uploads and clones that name none."""
    sandbox = sandbox_of(only=["audio/clone-voice", "audio/upload-sample"])
    async with in_process(sandbox) as client:
        jobs = await client.submit_many([ask(f"v{n}") for n in range(5)])
        assert {(await job).account for job in jobs} == {"a"}
        assert [lane.account for lane in client.statistics().lanes] == [None]
    assert sandbox.max_parallel_seen == {"a": 2}


@virtual
async def test_a_look_that_is_overtaken_by_a_delete() -> None:
    """A slot that was freed and used again while the account was being asked about is no reason to close anything."""
    sandbox = sandbox_of(slots=1, generations=["speech"])
    async with in_process(sandbox, wait_when_blocked=True, look_again_after_s=100) as client:
        first = await client.clone(ask("A"))
        job = await client.submit(ask("B"))
        sandbox.fail("equity", Fault.delay(25))
        await anyio.sleep(112)
        assert sandbox.count("equity") == 1
        await client.delete_voice(first.voice_id)
        await job
        await anyio.sleep(300)
        assert client.statistics().lanes[0].closed_by is None
        assert sandbox.count("equity") == 1


@virtual
async def test_a_look_that_is_refused_is_repeated() -> None:
    """A token that is refused for once, or a remote that fails, leaves the account out until the next look."""
    sandbox = sandbox_of()
    sandbox.break_account("a")
    async with in_process(sandbox, look_again_after_s=100) as client:
        assert isinstance(await error_of(await client.submit(ask())), AccountUnavailable)
        sandbox.repair("a")
        sandbox.fail("accounts", Fault.status(401))
        await anyio.sleep(150)
        assert isinstance(await error_of(await client.submit(ask())), AccountUnavailable)
        await anyio.sleep(100)
        await client.clone(ask())


@virtual
async def test_a_job_that_ends_while_its_account_is_being_listed() -> None:
    """Cancelled with a place, but before its request left: it costs nothing, and the place is the next one's."""
    sandbox = sandbox_of()
    sandbox.fail("voices", Fault.delay(5))
    async with in_process(sandbox, max_parallel=1) as client:
        fid = sandbox.add_sample()
        first, second = await client.submit_many([ask("A", files=[fid]), ask("B", files=[fid])])
        await anyio.sleep(1)
        assert client.statistics().lanes[0].in_progress == 1
        assert await first.cancel() == "cancelled"
        await second
    assert [clone.voice_name for clone in sandbox.clones] == ["B"]


@virtual
@pytest.mark.parametrize("fault", [
    Fault.moderated(at="end"), Fault.drop(made=True, at="end"), Fault.status(500, at="end"), Fault.slots_full(),
    Fault.status(401, at="end"), Fault.drop(made=False, at="end"),
])  # fmt: skip
async def test_whatever_comes_after_the_deadline(fault: Fault) -> None:
    """The job has ended; its place is freed when the remote is done, and nothing is sent again."""
    sandbox = sandbox_of(clone_s=50, slots=5)
    sandbox.fail("clone-voice", fault, voice_name="D")
    async with in_process(sandbox, max_parallel=1) as client:
        job = await client.submit(ask("D"), deadline_s=20)
        assert isinstance(await error_of(job), DeadlineExceeded)
        await anyio.sleep(300)
        assert client.statistics().lanes[0].in_progress == 0
        assert job.attempts == 1
    assert len(sandbox.clones) == 1


# --- what a file keeps ------------------------------------------------------------------------------------------------


@pytest.mark.slow  # real time, as a file is involved
async def test_what_was_not_sent_goes_on_with_the_next_client(tmp_path: Path) -> None:
    """Left in the middle, the queued jobs are told that they are kept, and the next client of the file clones them."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.1)
    path = tmp_path / "s.wav"
    path.write_bytes(wav())
    async with in_process(sandbox, store=tmp_path / "q.db", max_parallel=1) as client:
        events = client.events()
        settings = {"queue_timeout_s": 500.0, "deadline_s": 1000.0}
        requests = [ask("A"), ask("B", samples=[path]), ask("C", tone=2)]
        jobs = await client.submit_many(requests, keys=["a", "b", "c"], **settings)
        while sandbox.in_progress() == 0:
            await anyio.sleep(0.001)
    assert (await jobs[0]).voice_name == "A"
    for job in jobs[1:]:
        error = await error_of(job)
        assert isinstance(error, CloneCancelled)
        assert "the store keeps it for the next client" in str(error)
    assert [event.kind async for event in events].count("left") == 2
    uploads = len(sandbox.uploads)
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        resumed = [await client.submit(request, key=key) for request, key in zip(requests, "abc", strict=True)]
        assert [job.id for job in resumed] == [job.id for job in jobs]
        assert [(await job).voice_name for job in resumed] == ["A", "B", "C"]
        with pytest.raises(RequestInvalid, match="belongs to another request"):
            await client.submit(ask("A", tone=7), key="a")
    assert len(sandbox.voices()) == 3
    assert uploads <= len(sandbox.uploads) <= 3


@pytest.mark.slow  # real time, as a file is involved
async def test_what_was_sent_is_looked_for_by_the_next_client(tmp_path: Path) -> None:
    """A clone in progress when the client is left is found by the next, adopted, and not sent again."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.3)
    settings: dict[str, Any] = {"store": tmp_path / "q.db", "settle_after_s": 1.0}
    async with in_process(sandbox, close_grace_s=0, **settings) as client:
        job = await client.submit(ask(), key="k", deadline_s=100)
        while sandbox.in_progress() == 0:
            await anyio.sleep(0.001)
    assert isinstance(await error_of(job), CloneOutcomeUnknown)
    async with in_process(sandbox, **settings) as client:
        assert client.statistics().lanes[0].in_progress == 1
        again = client.job("k")
        assert again is not None
        assert (await again).voice_name == "Ann"
    assert len(sandbox.clones) == 1


@pytest.mark.slow  # real time, as a file is involved
async def test_an_earlier_job_comes_in_once(tmp_path: Path) -> None:
    """Submitted twice at once by its key, a job of an earlier life goes on as one; pinned, it stays where it is."""
    sandbox = Sandbox(accounts=["a", "b"], clone_s=0.2)
    settings: dict[str, Any] = {"store": tmp_path / "q.db", "settle_after_s": 0.6}
    async with in_process(sandbox, close_grace_s=0, **settings) as client:
        await client.submit_many(
            [ask("A", account="b"), ask("B", account="b"), ask("C", account="b")], keys=list("abc")
        )
        while sandbox.in_progress() < 2:
            await anyio.sleep(0.001)
    async with in_process(sandbox, resume=False, **settings) as client:
        found: list[CloneJob] = []

        async def submit() -> None:
            requests = [ask(name, account="b") for name in "ABC"]
            found.extend(await client.submit_many(requests, keys=list("abc")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit)
            tasks.start_soon(submit)
        assert len({job.id for job in found}) == 3
        assert [(await job).account for job in found] == ["b"] * 6
        await anyio.sleep(settings["settle_after_s"])  # in which the earlier life's places are given up
        assert [lane.in_progress for lane in client.statistics().lanes if lane.account == "b"] == [0]
    assert len(sandbox.clones) == 3


@pytest.mark.slow  # real time, as a file is involved
async def test_a_client_may_leave_the_earlier_jobs_alone(tmp_path: Path) -> None:
    """With `resume=False` nothing of an earlier life goes on, unless it is submitted again by its key."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.2)
    settings: dict[str, Any] = {"store": tmp_path / "q.db", "settle_after_s": 0.6, "max_parallel": 1}
    async with in_process(sandbox, close_grace_s=0, **settings) as client:
        await client.submit_many([ask("A"), ask("B")], keys=["a", "b"])
        while sandbox.in_progress() == 0:
            await anyio.sleep(0.001)
    async with in_process(sandbox, resume=False, **settings) as client:
        old = client.job("b")
        assert old is not None
        with pytest.raises(QueueClosed, match="resume=False"):
            await old
        with pytest.raises(QueueClosed, match="resume=False"):
            old.cancel()
        jobs = await client.submit_many([ask("A"), ask("B")], keys=["a", "b"])
        assert [(await job).voice_name for job in jobs] == ["A", "B"]
    assert len(sandbox.clones) == 2


@pytest.mark.slow  # real time, as a file is involved
async def test_what_an_earlier_life_sent_keeps_its_places_whoever_goes_on(tmp_path: Path) -> None:
    """With `resume=False` nobody looks for it, yet the remote may be at it: until it is surely done, nobody is sent."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.4, over_cap="allow")
    fid = sandbox.add_sample()
    settings: dict[str, Any] = {"store": tmp_path / "q.db", "settle_after_s": 0.6}
    async with in_process(sandbox, close_grace_s=0, **settings) as client:
        await client.submit_many([ask("A", files=[fid]), ask("B", files=[fid])])
        while sandbox.in_progress() < 2:
            await anyio.sleep(0.001)
    async with in_process(sandbox, resume=False, max_pending=1, **settings) as client:
        assert client.statistics().lanes[0].in_progress == 2
        assert (await client.clone(ask("C", files=[fid]))).voice_name == "C"
        assert client.statistics().lanes[0].in_progress == 0
    assert sandbox.max_parallel_seen == {"a": 2}


@pytest.mark.slow  # real time, as a file is involved
async def test_a_job_that_is_submitted_again_late_finds_its_voice(tmp_path: Path) -> None:
    """With `resume=False` a list that this life made may hold the voice of what an earlier one sent."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.05)
    fid = sandbox.add_sample()
    settings: dict[str, Any] = {"store": tmp_path / "q.db", "settle_after_s": 0.4}
    async with in_process(sandbox, close_grace_s=0, **settings) as client:
        await client.submit(ask("A", files=[fid]), key="a")
        while sandbox.in_progress() == 0:
            await anyio.sleep(0.001)
    while not sandbox.voices():
        await anyio.sleep(0.001)
    async with in_process(sandbox, resume=False, **settings) as client:
        await client.clone(ask("B", files=[fid]))
        assert (await (await client.submit(ask("A", files=[fid]), key="a"))).voice_name == "A"
    assert [voice.voice_name for voice in sandbox.voices()] == ["A", "B"]


@pytest.mark.slow  # real time, as a file is involved
@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(hours=1)])
@pytest.mark.parametrize("has_baseline", [True, False])
async def test_a_clock_that_is_set_between_two_lives_makes_no_second_voice(
    tmp_path: Path, step: timedelta, has_baseline: bool
) -> None:
    """How long ago a request left is what the wall clock says, and that proves nothing."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.5, over_cap="allow")
    fid = sandbox.add_sample()
    if not has_baseline:
        sandbox.fail("voices", Fault.status(500))
    settings: dict[str, Any] = {"store": tmp_path / "q.db", "settle_after_s": 0.8}
    async with in_process(sandbox, close_grace_s=0, **settings) as client:
        await client.submit(ask(files=[fid]), key="k")
        while sandbox.in_progress() == 0:
            await anyio.sleep(0.001)
    with closing(sqlite3.connect(tmp_path / "q.db")) as connection:
        payload = json.loads(connection.execute("SELECT payload FROM jobs").fetchone()[0])
        (attempt,) = payload["history"]
        attempt["sent_at"] = (datetime.fromisoformat(attempt["sent_at"]) - step).isoformat()
        connection.execute("UPDATE jobs SET payload = ?", (json.dumps(payload),))
        connection.commit()
    async with in_process(sandbox, **settings) as client:
        job = client.job("k")
        assert job is not None
        if step > timedelta():
            assert (await job).voice_name == "Ann"
        else:
            assert isinstance(await error_of(job), CloneOutcomeUnknown)
    assert len(sandbox.clones) == 1


@pytest.mark.slow  # real time, as a file is involved
async def test_the_next_client_knows_which_voices_were_there_before(tmp_path: Path) -> None:
    """A namesake that was there before the lost clone is not taken for its voice, nor for a doubt."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.1)
    sandbox.fail("clone-voice", Fault.hang(made=False))
    settings: dict[str, Any] = {"store": tmp_path / "q.db", "settle_after_s": 0.4}
    sandbox.now()
    old = sandbox.add_voice("Ann")
    async with in_process(sandbox, close_grace_s=0, **settings) as client:
        await client.submit(ask(files=[sandbox.add_sample()]), key="k")
        while sandbox.in_progress() == 0:
            await anyio.sleep(0.001)
    async with in_process(sandbox, **settings) as client:
        job = client.job("k")
        assert job is not None
        assert (await job).voice_id != old.voice_id
    assert [clone.made for clone in sandbox.clones] == [False, True]


async def test_jobs_without_a_key_go_on_too(tmp_path: Path) -> None:
    """A job needs no key to be kept: the next client lists it, and clones it."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.02)
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        await client.submit(ask())
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        [job] = [job async for job in client.jobs()]
        assert (await job).voice_name == "Ann"


def test_a_store_in_memory_remembers_nothing() -> None:
    """It is a full member of the family: it answers what it is asked, and knows of no earlier job."""

    async def main() -> None:
        store = MemoryStore()
        assert await store.find("k") is None
        assert store.find_nowait("k") is None
        assert await store.file_id("a", "x") is None
        assert not await store.forget("x")
        assert [job async for job in store.jobs(None)] == [row async for row in store.export()] == []

    anyio.run(main)


async def test_pauses_and_uploads_are_remembered(tmp_path: Path) -> None:
    """The next client of the file waits out the gate that the last one met, and uploads nothing twice."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    sandbox.fail("clone-voice", Fault.rate_limited(2))
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        job = await client.submit(ask())
        while not client.statistics().lanes or not client.statistics().lanes[0].gate_s:
            await anyio.sleep(0.001)
    assert job.state == "queued"
    async with in_process(sandbox, store=tmp_path / "q.db", resume=False) as client:
        assert 0 < client.statistics().lanes[0].gate_s <= 2
        assert (await client.upload_sample(wav(), "a")).file_id == sandbox.uploads[0].file_id
    assert len(sandbox.uploads) == 1


async def test_a_refused_token_leaves_jobs_to_the_file(tmp_path: Path) -> None:
    """401 ends nothing for good where a store keeps the jobs: with a good token, the next client clones them."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    sandbox.fail("clone-voice", Fault.status(401))
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        jobs = await client.submit_many([ask("A"), ask("B")], keys=["a", "b"])
        assert AuthenticationError in {type(await error_of(jobs[0])), type(await job_end(jobs[1]))}
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        for name, key in (("A", "a"), ("B", "b")):
            assert (await (await client.submit(ask(name), key=key))).voice_name == name
    assert len(sandbox.voices()) == 2


async def job_end(job: CloneJob) -> object:
    """Return what a job ended with."""
    try:
        return await job
    except CloneError as error:
        return error


async def test_a_sample_that_is_another_now(tmp_path: Path) -> None:
    """The file remembers what was submitted: other content under the same path is not cloned in its place."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    path = tmp_path / "s.wav"
    path.write_bytes(wav())
    sandbox.fail("upload-sample", Fault.rate_limited(0.2))
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        await client.submit(ask(samples=[path]), key="k")
    path.write_bytes(wav(tone=3))
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        job = client.job("k")
        assert job is not None
        assert "no longer what was submitted" in str(await error_of(job))
    assert sandbox.voices() == ()


class DawdlingStore(SqliteStore):
    """Takes its time over one promise, so that the client can be closed meanwhile."""

    def __init__(self, path: Path, slow: str) -> None:
        super().__init__(str(path), keep_s=3600.0)
        self._slow = slow
        self.asked = anyio.Event()

    async def add(self, jobs: Sequence[Job]) -> None:
        """Keep the jobs, late."""
        await super().add(jobs)
        await self._dawdle("add")

    async def sent(self, job: Job) -> None:
        """Note the intent, late."""
        await super().sent(job)
        await self._dawdle("sent")

    async def _dawdle(self, what: str) -> None:
        if what == self._slow:
            self.asked.set()
            await anyio.sleep(0.05)


@pytest.mark.slow  # real time, as a file is involved
async def test_a_key_whose_job_comes_and_goes_during_a_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not there when it was asked for, and is the store's alone when it is to be kept: it is shared."""
    asked, may_go = anyio.Event(), anyio.Event()

    class LateStore(SqliteStore):
        async def find(self, key: str) -> Job | None:
            if key == "late":
                asked.set()
                await may_go.wait()
            return await super().find(key)

    monkeypatch.setattr(_client, "_open_store", lambda *_: LateStore(tmp_path / "q.db", keep_s=3600.0))
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    requests = [ask(name, files=[sandbox.add_sample()]) for name in "AB"]
    jobs: list[CloneJob] = []
    async with in_process(sandbox) as client:

        async def submit() -> None:
            jobs.extend(await client.submit_many(requests, keys=["early", "late"]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit)
            await asked.wait()
            early = await client.submit(requests[0], key="early")
            await early
            may_go.set()
        assert jobs[0].id == early.id
        assert [(await job).voice_name for job in jobs] == ["A", "B"]
    assert len(sandbox.clones) == 2


@pytest.mark.slow  # real time, as a file is involved
@pytest.mark.parametrize("slow", ["add", "sent"])
async def test_closed_while_the_store_works_nothing_leaves_and_nothing_is_denied(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store has accepted is never denied; no request leaves a client that closes; the next one clones it."""
    store = DawdlingStore(tmp_path / "q.db", slow)
    monkeypatch.setattr(_client, "_open_store", lambda *_: store)
    sandbox = Sandbox(accounts=["a"], clone_s=0.05)
    outcomes: list[CloneError | VoiceInfo] = []
    async with anyio.create_task_group() as tasks:
        async with in_process(sandbox, store=tmp_path / "q.db") as client:

            async def submit() -> None:
                outcomes.append(await error_of(await client.submit(ask("A"), key="a")))

            tasks.start_soon(submit)
            await store.asked.wait()
    (error,) = outcomes
    assert isinstance(error, CloneCancelled)
    assert "the store keeps it for the next client" in str(error)
    assert not sandbox.clones
    monkeypatch.undo()
    async with in_process(sandbox, store=tmp_path / "q.db") as client:
        job = client.job("a")
        assert job is not None
        assert (await job).voice_name == "A"
    assert len(sandbox.clones) == 1


async def test_a_delete_that_names_no_account_frees_a_slot_all_the_same() -> None:
    """A bare id says nothing of its account, so whichever was full is tried again."""
    sandbox = Sandbox(accounts=["a"], slots=1, clone_s=0.01, id_form="bare")
    old = sandbox.add_voice("Old", "a")
    async with in_process(sandbox, api="audio", wait_when_blocked=True) as client:
        events = client.events()
        job = await client.submit(ask("New"))
        async for event in events:  # pragma: no branch - it ends by the break
            if event.kind == "slots_full":
                break
        await client.delete_voice(old.voice_id)
        assert (await job).voice_name == "New"


@pytest.mark.parametrize("key", ["", "\ud800", "a\nb"])
async def test_a_key_that_is_no_name_is_refused(key: str) -> None:
    """A key has to be kept and shown, so it must be text that can be."""
    async with in_process(Sandbox()) as client:
        with pytest.raises(RequestInvalid, match="is no name"):
            await client.submit(ask("A"), key=key)


@pytest.mark.slow  # real time, as a file is involved
async def test_a_lost_clone_of_an_earlier_life_that_made_nothing_finds_an_account(tmp_path: Path) -> None:
    """The only job of the file was sent, and made nothing: the next client asks for accounts, and sends it again."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.2)
    sandbox.fail("clone-voice", Fault.hang(made=False))
    settings: dict[str, Any] = {"store": tmp_path / "q.db", "settle_after_s": 0.5}
    async with in_process(sandbox, close_grace_s=0, **settings) as client:
        await client.submit(ask(), key="k")
        while sandbox.in_progress() == 0:
            await anyio.sleep(0.001)
    async with in_process(sandbox, **settings) as client:
        job = client.job("k")
        assert job is not None
        with anyio.fail_after(20):
            assert (await job).voice_name == "Ann"
    assert len(sandbox.voices()) == 1
