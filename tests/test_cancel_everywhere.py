"""
Cancellation at every step that is taken on a clone's way, by whoever may cancel; afterwards everything is whole.

Whole means: no place is occupied at the client, no connection is open, no task is left, no copy of a sample is left on
the disk, and the job is settled and its error (or voice) agrees with the server.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trio
from trio.testing import MockClock
from worlds import ENDINGS, World, a_world, wav

from useapi_voice import CloneError, CloneJob, CloneRequest, QueueClosed, VoiceClient, VoiceInfo
from useapi_voice.sandbox import Fault, Sandbox

WAYS: dict[str, Callable[[Sandbox], object]] = {
    "plain": lambda sandbox: None,
    "lost, made": lambda sandbox: sandbox.fail("clone-voice", Fault.drop(made=True)),
    "lost, not made": lambda sandbox: sandbox.fail("clone-voice", Fault.drop(made=False, at="end")),
    "refused": lambda sandbox: sandbox.fail("clone-voice", Fault.moderated("end")),
    "429": lambda sandbox: sandbox.fail("clone-voice", Fault.rate_limited(5)),
    "hang": lambda sandbox: sandbox.fail("clone-voice", Fault.hang(made=True)),
}


class AtStep(trio.abc.Instrument):
    """Calls `act` before the nth step that any task takes from now on."""

    def __init__(self, n: int, act: Callable[[], object]) -> None:
        self.left, self.act = n, act
        self.taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1
        if self.taken == self.left + 1:
            self.act()


def walk(way: str, n: int, who: str) -> int:
    """Walk a way, cancelled at step `n` by `who`; judge the rest, and return how many steps there were."""

    async def main() -> int:
        sandbox = Sandbox()
        WAYS[way](sandbox)
        jobs: list[CloneJob] = []
        caller_scope, body_scope, leave = anyio.CancelScope(), anyio.CancelScope(), anyio.Event()
        world: World | None = None

        def act() -> None:
            if who == "caller":
                caller_scope.cancel()
            elif who == "body":
                body_scope.cancel()
            elif who == "close":
                leave.set()
            elif jobs:
                jobs[0].cancel(voice="delete" if who == "job, delete" else "keep")

        async def call(client: VoiceClient) -> None:
            with caller_scope, suppress(CloneError, QueueClosed):
                # Two jobs, so that there is one that waits on the first one's upload.
                jobs.extend(await client.submit_many([world.sampled("Ann"), world.sampled("Ben")]))
                await jobs[0]

        before = len(trio.lowlevel.current_root_task().child_nurseries[0].child_tasks)
        instrument = AtStep(n, act)
        with body_scope:
            async with a_world(sandbox, close_grace_s=30) as world:
                stream = world.client.events()
                trio.lowlevel.add_instrument(instrument)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call, world.client)
                    if who == "close":
                        with anyio.move_on_after(400):
                            await leave.wait()
                            caller_scope.cancel()
                    else:
                        await anyio.sleep(400)
                stats = world.client.statistics()
                if who != "close":
                    assert [lane.in_progress for lane in stats.lanes] in ([], [0])
                    assert [lane.staged + lane.waiting for lane in stats.lanes] in ([], [0])
                    assert world.wire.open_now == 0
        trio.lowlevel.remove_instrument(instrument)
        assert world is not None
        told = [event.job_id async for event in stream if event.kind in ENDINGS]
        await anyio.sleep(400)
        assert world.wire.open_now == 0
        assert len(trio.lowlevel.current_root_task().child_nurseries[0].child_tasks) == before
        world.check_cap()
        assert len(told) == len(set(told))
        if jobs:
            assert sorted(told) == sorted(job.id for job in jobs)
            for job in jobs:
                judge(world, job, deleted=who == "job, delete" and job is jobs[0])
        else:
            # Cancelled before `submit` returned: either no job exists, or the client settled it at its end.
            assert len(told) in {0, 2}
        return instrument.taken

    trio_run = trio.run
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio._core._run._r.seed(0)
    return trio_run(main, clock=MockClock(autojump_threshold=0))


def judge(world: World, job: CloneJob, *, deleted: bool) -> None:
    """Hold what a job says against the server."""
    voices = world.voices(job.request.voice_name)
    outcome = job._job.outcome
    assert outcome is not None
    if isinstance(outcome, VoiceInfo):
        assert voices == [outcome.voice_id]
    else:
        assert len(voices) <= int(outcome.voice_may_exist)
        assert not (outcome.safe_to_retry and outcome.voice_may_exist)
    if deleted:
        assert len(voices) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("who", ["caller", "close", "body", "job, keep", "job, delete"])
@pytest.mark.parametrize("way", WAYS)
def test_cancelled_at_every_step(way: str, who: str) -> None:
    """Whoever cancels, and whenever: places, connections and tasks are whole, and each job has ended, once."""
    for n in range(walk(way, 10**9, "nobody") + 1):
        try:
            walk(way, n, who)
        except BaseException as error:
            error.add_note(f"cancelled at step {n}")
            raise


# --- files
# --------------------------------------------------------------------------------------------------------------


class _Stepped:
    """Awaits something, and calls `act` at its nth suspension."""

    def __init__(self, work: Any, n: int, act: Callable[[], object]) -> None:
        self._work, self._n, self._act = work, n, act

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        try:
            awaited = next(steps)
            while True:
                if self._n == 0:
                    self._act()
                self._n -= 1
                try:
                    sent = yield awaited
                except BaseException as error:  # noqa: BLE001 - handed on to what is awaited
                    awaited = steps.throw(error)
                else:
                    awaited = steps.send(sent)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("n", range(12))
async def test_copies_of_streams_do_not_outlive_a_cancelled_submit(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit cancelled at any of its waits leaves no copy of a stream behind, and the next one works."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sandbox = Sandbox(clone_s=0.0)

    def request() -> CloneRequest:
        streams = [io.BytesIO(wav(tone=tone)) for tone in (1, 2, 3)]
        return CloneRequest(voice_name="Ann", language_tag="English", samples=streams)

    async with (
        httpx.AsyncClient(transport=sandbox.transport()) as http,
        VoiceClient(sandbox.token, base_url=sandbox.base_url, http_client=http) as client,
    ):

        async def caller() -> None:
            task = asyncio.current_task()
            assert task is not None
            job = await _Stepped(client.submit(request()), n, task.cancel)
            await job

        task = asyncio.ensure_future(caller())
        with suppress(asyncio.CancelledError):
            await task
        await (await client.submit(request()))
        with anyio.fail_after(5):
            while any(path.is_file() for path in tmp_path.rglob("*")):
                await anyio.sleep(0.001)
        assert sandbox.max_parallel_seen[sandbox.accounts[0]] <= 2
    assert not list(tmp_path.rglob("*"))


async def test_a_job_is_cancelled_from_a_callback_of_the_loop() -> None:
    """Where there is no task, as in a signal handler, `cancel` works all the same: waiters learn, the next job goes."""
    sandbox = Sandbox(clone_s=0.01)
    async with (
        httpx.AsyncClient(transport=sandbox.transport()) as http,
        VoiceClient(sandbox.token, base_url=sandbox.base_url, http_client=http, max_parallel=1) as client,
    ):
        requests = [
            CloneRequest(voice_name=name, language_tag="English", samples=[wav(tone=tone)])
            for tone, name in enumerate("abcdef")
        ]
        jobs = await client.submit_many(requests)
        while jobs[2].state != "ready":
            await anyio.sleep(0)
        # Its place among those whose samples are up goes to the next, whose upload is a task.
        for job in jobs[1:4]:
            asyncio.get_running_loop().call_soon(job.cancel)
        with anyio.fail_after(5):
            endings = [await job.wait() for job in jobs]
        assert endings == ["cloned", "cancelled", "cancelled", "cancelled", "cloned", "cloned"]
        lanes = client.statistics().lanes
        assert [(lane.in_progress, lane.staged, lane.waiting) for lane in lanes] == [(0, 0, 0)]
