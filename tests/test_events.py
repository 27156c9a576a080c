"""What callers await and watch: handles, jobs in the order in which they end, and the stream of events."""

from __future__ import annotations

import asyncio
import gc
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness import ask, both, diary, error_of, in_process, virtual

from useapi_voice import CloneError, CloneRefused, Event, EventStream
from useapi_voice._events import EVENTS_KEPT, EventHub
from useapi_voice.sandbox import Fault, Sandbox

NOW = datetime(2026, 8, 24, tzinfo=UTC)


# --- handles ----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_job_is_awaited_by_many_any_number_of_times() -> None:
    """Each waiter gets the same voice, before and after the end."""
    sandbox = Sandbox(accounts=["a"], clone_s=10)
    async with in_process(sandbox) as client:
        job = await client.submit(ask(), key="k")
        voices: list[Any] = []

        async def wait() -> None:
            voices.append(await job)

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(wait)
        assert voices == [await job] * 50
        assert await job.result() is await job
        assert await job.wait() == "cloned"
        assert (job.done(), job.key, job.account, job.attempts, job.position, job.eta_s) == (
            True,
            "k",
            "a",
            1,
            None,
            0.0,
        )
        assert (job.surplus, [attempt.verdict for attempt in job.history]) == ((), ["cloned"])


@virtual
async def test_each_waiter_gets_an_error_of_its_own() -> None:
    """One object raised in many tasks would gather the tracebacks of all; each is equal, and none is another."""
    sandbox = Sandbox(clone_s=10)
    sandbox.fail("clone-voice", Fault.moderated())
    async with in_process(sandbox) as client:
        job = await client.submit(ask())
        errors = [await error_of(job) for _ in range(3)]
        assert len({id(error) for error in errors}) == 3
        assert len({repr(error.__dict__) for error in errors}) == 1
        assert {error.status_code for error in errors} == {422}
        assert all(error.__context__ is None for error in errors)


@virtual
async def test_a_handle_says_what_it_is() -> None:
    """The repr names job, voice and state, and the account once there is one."""
    sandbox = Sandbox(accounts=["a"], clone_s=10)
    async with in_process(sandbox) as client:
        job = await client.submit(ask())
        assert repr(job) == f"<CloneJob {job.id} 'Ann' queued>"
        await job
        assert repr(job) == f"<CloneJob {job.id} 'Ann' cloned on a>"


async def test_waiters_that_are_cancelled_leave_nothing_behind() -> None:
    """A waiter's cancellation, by asyncio or by a scope, ends that wait only, and the job forgets the waiter."""
    sandbox = Sandbox(clone_s=0.1)
    async with in_process(sandbox) as client:
        job = await client.submit(ask())
        waiters = [asyncio.ensure_future(job.result()) for _ in range(10)]
        await asyncio.sleep(0.01)
        for waiter in waiters[:5]:
            waiter.cancel()
        with anyio.move_on_after(0.01):
            await job
        assert len(job._job.watchers or ()) == 5
        ends = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(end).__name__ for end in ends] == ["CancelledError"] * 5 + ["VoiceInfo"] * 5
        assert job._job.watchers is None


# --- as_completed -----------------------------------------------------------------------------------------------------


@virtual
async def test_jobs_come_in_the_order_in_which_they_end() -> None:
    """Those that ended before are first, in the order of their ends; failures come too, and each job once."""
    lengths = {"a": 30.0, "b": 10.0, "c": 25.0, "d": 1.0}
    sandbox = Sandbox(accounts=["x", "y"], clone_s=lengths.__getitem__)
    sandbox.fail("clone-voice", Fault.moderated(at="end"), voice_name="c")
    async with in_process(sandbox) as client:
        files = {account: sandbox.add_sample(account=account) for account in ("x", "y")}
        jobs = await client.submit_many([ask(name, files=[files["x" if name in "ab" else "y"]]) for name in lengths])
        await anyio.sleep(12)
        seen: list[str] = []
        times: list[float] = []
        async for job in client.as_completed([*jobs, jobs[0]]):
            seen.append(job.request.voice_name)
            times.append(anyio.current_time())
            if job.request.voice_name == "c":
                await error_of(job)
            else:
                await job
        assert seen == ["d", "b", "c", "a"]
        assert times[0] == times[1] < times[2] < times[3]
        assert [job async for job in client.as_completed(jobs)] == [jobs[3], jobs[1], jobs[2], jobs[0]]
        assert [job async for job in client.as_completed([])] == []


@virtual
async def test_endings_while_the_reader_is_busy_are_kept() -> None:
    """A reader that takes its time gets all the jobs that ended meanwhile, in order."""
    sandbox = Sandbox(accounts=["a"], clone_s=10)
    async with in_process(sandbox) as client:
        fid = sandbox.add_sample()
        jobs = await client.submit_many([ask(f"{n}", files=[fid]) for n in range(8)])
        seen = []
        async for job in client.as_completed(jobs):
            seen.append(job.request.voice_name)
            await anyio.sleep(23)
        assert sorted(seen) == [f"{n}" for n in range(8)]


@virtual
async def test_a_reader_that_leaves_early_is_forgotten() -> None:
    """Breaking out of the loop leaves no watcher on the jobs that go on."""
    sandbox = Sandbox(accounts=["a"], clone_s=lambda name: 5.0 + ord(name))
    async with in_process(sandbox) as client:
        jobs = await client.submit_many([ask(name) for name in "AB"])
        stream = client.as_completed(jobs)
        assert (await anext(aiter(stream))).request.voice_name == "A"
        await stream.aclose()  # type: ignore[attr-defined]
        assert not jobs[1]._job.watchers
        await jobs[1]


# --- events -----------------------------------------------------------------------------------------------------------


@virtual
async def test_the_events_of_a_clone() -> None:
    """The golden sequence: a clone from samples, one from files, a lost answer that is found, a refusal."""
    sandbox = Sandbox(accounts=["a"], clone_s=10)
    async with in_process(sandbox) as client, diary(client) as found:
        await client.clone(ask("plain"))
        await client.clone(ask("filed", files=[sandbox.add_sample()]))
        sandbox.fail("clone-voice", Fault.drop(made=True), voice_name="lost")
        await client.clone(ask("lost"))
        sandbox.fail("clone-voice", Fault.moderated(), voice_name="rude")
        await error_of(await client.submit(ask("rude")))
        sandbox.fail("clone-voice", Fault.rate_limited(30), voice_name="fast")
        await client.clone(ask("fast"))
        await (await client.submit(ask("gone"))).cancel()
    told = [(event.kind, event.voice_name) for event in found.events]
    assert told == [
        ("queued", "plain"), ("uploading", "plain"), ("ready", "plain"), ("sent", "plain"), ("cloned", "plain"),
        ("queued", "filed"), ("sent", "filed"), ("cloned", "filed"),
        ("queued", "lost"), ("uploading", "lost"), ("ready", "lost"), ("sent", "lost"), ("in_doubt", "lost"),
        ("looked", "lost"), ("looked", "lost"), ("cloned", "lost"),
        ("queued", "rude"), ("uploading", "rude"), ("ready", "rude"), ("sent", "rude"), ("refused", "rude"),
        ("queued", "fast"), ("uploading", "fast"), ("ready", "fast"), ("sent", "fast"), ("gate_shut", None),
        ("queued", "fast"), ("uploading", "fast"), ("ready", "fast"), ("sent", "fast"), ("cloned", "fast"),
        ("queued", "gone"), ("uploading", "gone"), ("cancelled", "gone"),
    ]  # fmt: skip
    [shut] = found.of("gate_shut")
    assert shut.detail == {"wait_s": pytest.approx(30), "limit": 1}
    assert found.of("cloned")[0].detail["voice_id"] == sandbox.voices()[0].voice_id
    assert found.of("refused")[0].detail == {
        "error": "ContentRejected",
        "status_code": 422,
        "reason": "Text was moderated",
    }
    assert all(event.at.tzinfo is UTC and (event.account in {"a", None}) for event in found.events)
    assert all(event.job_id for event in found.events if event.voice_name)


async def test_a_slow_reader_is_told_what_it_missed() -> None:
    """The oldest events are dropped, counted in one `missed` event that comes first; nobody waits for a reader."""
    hub = EventHub()
    stream = hub.subscribe()
    assert hub.has_listeners
    for index in range(EVENTS_KEPT + 7):
        hub.publish(Event(f"{index}", NOW))
    first = await anext(stream)
    assert (first.kind, first.detail) == ("missed", {"count": 7})
    assert (await anext(stream)).kind == "7"
    hub.publish(Event("a", NOW))
    hub.publish(Event("b", NOW))
    assert (await anext(stream)).detail == {"count": 1}
    hub.close()
    assert len([event async for event in stream]) == EVENTS_KEPT
    assert not hub.has_listeners


@both
async def test_two_readers_of_one_stream_both_learn_of_its_end() -> None:
    """Events are shared out between them; none of them waits for ever."""
    hub = EventHub()
    stream = hub.subscribe()
    got: list[str] = []

    async def read() -> None:
        async for event in stream:
            got.append(event.kind)
            await anyio.sleep(0)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            for index in range(10):
                hub.publish(Event(f"{index}", NOW))
            await anyio.wait_all_tasks_blocked()
            hub.close()
    assert sorted(got) == [f"{index}" for index in range(10)]


@both
async def test_a_closed_stream_ends_after_what_it_holds() -> None:
    """Leaving `async with` stops listening; the reader of it comes to an end, with what was there before."""
    hub = EventHub()
    async with hub.subscribe() as stream:
        hub.publish(Event("a", NOW))
    hub.publish(Event("b", NOW))
    assert [event.kind async for event in stream] == ["a"]
    assert not hub.has_listeners
    await stream.aclose()


async def test_a_stream_that_is_dropped_is_forgotten() -> None:
    """Whoever just stops reading costs nothing from then on."""
    hub = EventHub()
    streams: list[EventStream] = [hub.subscribe()]
    assert hub.has_listeners
    streams.clear()
    gc.collect()
    assert not hub.has_listeners


@virtual
async def test_streams_end_with_the_client() -> None:
    """A reader's loop ends when the client is left, whichever way."""
    for fails in (False, True):
        sandbox = Sandbox(clone_s=10)
        kinds: list[str] = []
        with anyio.fail_after(1000):
            async with anyio.create_task_group() as tasks:

                async def read(stream: EventStream, kinds: list[str] = kinds) -> None:
                    kinds += [event.kind async for event in stream]

                try:
                    async with in_process(sandbox) as client:
                        tasks.start_soon(read, client.events())
                        await client.clone(ask())
                        if fails:
                            raise ValueError
                except ValueError:
                    assert fails
        assert kinds[-1] == "cloned"


@pytest.mark.slow  # real time, as a file is involved
async def test_the_last_ending_is_told_with_a_store_too(tmp_path: Path) -> None:
    """An ending that waits for its commit while the client closes is announced before the streams end."""
    for number in range(5):
        sandbox = Sandbox(accounts=["a"], clone_s=0.02)
        async with in_process(sandbox, store=tmp_path / f"{number}.db") as client:
            stream = client.events()
            await client.submit(ask(files=[sandbox.add_sample()]))
            while not sandbox.in_progress():
                await anyio.sleep(0.001)
        assert [event.kind async for event in stream][-1] == "cloned"


def test_refusals_are_clone_errors() -> None:
    """Whatever a job raises is a `CloneError`."""
    assert issubclass(CloneRefused, CloneError)


# --- the log ----------------------------------------------------------------------------------------------------------


@virtual
async def test_what_an_operator_should_know_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A voice that may exist unseen, and an account that takes nothing, are warnings with the ids to look for."""
    sandbox = Sandbox(accounts=["a", "b"], clone_s=10)
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Mod")
    sandbox.fail("clone-voice", Fault.account_error(), account="b")
    sandbox.fail("clone-voice", Fault.drop(made=True), voice_name="Gone")
    sandbox.fail("voices", Fault.status(500), times=None)
    caplog.set_level(logging.WARNING, logger="useapi_voice")
    async with in_process(sandbox) as client:
        await error_of(await client.submit(ask("Mod", account="a")))
        assert not caplog.records  # the caller is told of that, and need do nothing at the remote
        await error_of(await client.submit(ask("Bea", account="b")))
        job = await client.submit(ask("Gone", account="a"))
        await error_of(job)
    out, unknown = (record.getMessage() for record in caplog.records)
    assert out.startswith("account b account_out ")
    assert unknown.startswith(f"job {job.id} unknown account=a ")
