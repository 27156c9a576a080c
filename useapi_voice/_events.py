"""
What callers await and watch: the job's handle, jobs in the order in which they finish, and the stream of events.

Handles are events, not futures: a waiter that is cancelled cancels only itself, never a clone that is paid for.
"""

from __future__ import annotations

import copy
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable
from functools import partial
from typing import Final, Protocol, Self, cast, get_args

import anyio

from ._errors import ConfigurationError, QueueClosed
from ._jobs import Attempt, CancelChoice, Event, Job, JobState
from ._models import CloneRequest, VoiceInfo

EVENTS_KEPT: Final = 10_000
"""Events that a reader of `events()` may be behind before the oldest are dropped, and counted in a `missed` event."""
NOT_OURS: Final = "this client does not work on the job: it was opened with resume=False, or is closed"


class JobQueue(Protocol):
    """What a handle asks of the queue."""

    def cancel(self, job: Job, voice: CancelChoice) -> None:
        """Ask that the job end."""

    def position(self, job: Job) -> int | None:
        """Count the jobs ahead of it."""

    def eta_s(self, job: Job) -> float | None:
        """Estimate when it will have ended."""

    def is_at(self, job: Job) -> bool:
        """Whether it has ended, or this process works on it."""
        ...


class CloneJob:
    """
    A clone request that was accepted: await it for its `VoiceInfo`, any number of times, from any number of tasks.

    Awaiting raises the `CloneError` that says why there is no voice. Cancelling a task that awaits it cancels nothing
    but that wait; `cancel()` cancels the job.
    """

    __slots__ = ("_job", "_queue")

    def __init__(self, job: Job, queue: JobQueue) -> None:
        self._job = job
        self._queue = queue

    def __repr__(self) -> str:
        where = f" on {self.account}" if self.account else ""
        return f"<CloneJob {self.id} {self.request.voice_name!r} {self.state}{where}>"

    def __await__(self) -> Generator[object, None, VoiceInfo]:
        return self.result().__await__()

    @property
    def id(self) -> str:
        """The job's own id, unique for ever."""
        return self._job.id

    @property
    def key(self) -> str | None:
        """The caller's key for it, if it was submitted with one."""
        return self._job.key

    @property
    def request(self) -> CloneRequest:
        """What was asked for."""
        return self._job.request

    @property
    def state(self) -> JobState:
        """Where it stands now."""
        return self._job.state

    @property
    def account(self) -> str | None:
        """The account that was chosen for it, once there is one."""
        return self._job.account or None

    @property
    def attempts(self) -> int:
        """How many clone requests have left for it."""
        return self._job.attempts

    @property
    def history(self) -> tuple[Attempt, ...]:
        """Its attempts, with times and verdicts."""
        return self._job.history

    @property
    def surplus(self) -> tuple[VoiceInfo, ...]:
        """Further voices that this job may have made, and that nobody deleted: look, and delete what is too much."""
        return self._job.surplus

    @property
    def position(self) -> int | None:
        """How many jobs go before it, 0 for the next; `None` once it was sent. Its cost grows with the backlog."""
        return self._queue.position(self._job)

    @property
    def eta_s(self) -> float | None:
        """Seconds until it will have ended, at the present pace; `None` where that cannot be said."""
        return self._queue.eta_s(self._job)

    def done(self) -> bool:
        """Whether it has ended."""
        return self._job.outcome is not None

    async def result(self) -> VoiceInfo:
        """
        Wait for the voice. The same as awaiting the job itself.

        Raises:
            CloneError: The leaf that says how it ended. Each waiter gets an error object of its own.
            QueueClosed: It has not ended, and this client does not work on it.

        Cancel-safe: cancelling the wait changes nothing.
        """
        await self.wait()
        outcome = self._job.outcome
        assert outcome is not None  # noqa: S101 - for type checkers; `wait` ends no earlier
        if isinstance(outcome, VoiceInfo):
            return outcome
        # A copy each: one object raised in many tasks would gather the tracebacks of all of them.
        raise copy.copy(outcome)

    async def wait(self) -> JobState:
        """
        Wait until it has ended, whichever way, and return its state. Cancel-safe.

        Raises:
            QueueClosed: It has not ended, and this client does not work on it.
        """
        job = self._job
        self._check_awaited()
        if job.outcome is None:
            finished = anyio.Event()
            job.watch(finished.set)
            try:
                await finished.wait()
            finally:
                job.unwatch(finished.set)
        return job.state

    def _check_awaited(self) -> None:
        """Raise `QueueClosed` if nobody would say how it ends."""
        if self._job.outcome is None and not self._queue.is_at(self._job):
            raise QueueClosed(NOT_OURS)

    def cancel(self, *, voice: CancelChoice = "keep") -> Awaitable[JobState]:
        """
        Ask that the job end. The asking happens at once; await the answer to know the truth.

        A job that was not sent ends as `cancelled`, and costs nothing. One that was sent cannot be called back, as the
        remote goes on: its place stays occupied, and the job ends when the truth is known. It is `cancelled` if no
        voice was made, or if it was deleted; else it is `cloned` and has its voice.

        Args:
            voice: What to do with a voice that turns up: `"keep"` it or `"delete"` it.

        Returns:
            Awaitable, which need not be awaited: the job's final state.

        Raises:
            ConfigurationError: `voice` is neither.
            QueueClosed: This client does not work on the job.
        """
        if voice not in get_args(CancelChoice):
            raise ConfigurationError(f'voice must be "keep" or "delete", not {voice!r}')
        self._queue.cancel(self._job, voice)
        return _Ending(self)


class _Ending:
    """The end of a job, for whoever cares to await it; unlike a coroutine it does not mind being dropped."""

    __slots__ = ("_job",)

    def __init__(self, job: CloneJob) -> None:
        self._job = job

    def __await__(self) -> Generator[object, None, JobState]:
        return self._job.wait().__await__()


def _several(jobs: Iterable[CloneJob]) -> list[CloneJob]:
    several: list[object] = list(jobs) if hasattr(jobs, "__iter__") else [jobs]
    if isinstance(jobs, CloneJob) or not all(isinstance(job, CloneJob) for job in several):
        raise ConfigurationError("as_completed takes a list of jobs, as submit and submit_many return them")
    return cast("list[CloneJob]", several)


async def in_order_of_completion(jobs: Iterable[CloneJob]) -> AsyncIterator[CloneJob]:
    """Yield each job once it has ended, in the order in which they end; those that have ended already come first."""
    pending = {job.id: job for job in _several(jobs)}
    ended: deque[str] = deque()
    changed = anyio.Event()

    def note(job_id: str) -> None:
        ended.append(job_id)
        changed.set()

    notes = {job_id: partial(note, job_id) for job_id in pending}
    done = sorted((job for job in pending.values() if job.done()), key=lambda job: job._job.settled_seq)
    ended.extend(job.id for job in done)
    for job_id, job in pending.items():
        if not job.done():
            job._check_awaited()
            job._job.watch(notes[job_id])
    try:
        while pending:
            while ended:
                yield pending.pop(ended.popleft())
            if pending:
                # Replaced before waiting, with nothing in between that could end a job unseen.
                changed = anyio.Event()
                await changed.wait()
    finally:
        for job_id, job in pending.items():
            job._job.unwatch(notes[job_id])


class EventStream:
    """
    Events from the moment it was made, until the client closes: `async for event in client.events()`.

    A reader that falls behind by more than `EVENTS_KEPT` loses the oldest, and is told by an event of the kind
    `missed`, with their `count`. Nothing in the queue ever waits for a reader.
    """

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._buffer: deque[Event] = deque()
        self._missed: Event | None = None
        self._changed = anyio.Event()
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._missed is not None:
                missed, self._missed = self._missed, None
                return missed
            if self._buffer:
                return self._buffer.popleft()
            if self._is_closed:
                raise StopAsyncIteration
            if self._changed.is_set():
                # One for all who wait: a second reader must not take the first one's wake-up away.
                self._changed = anyio.Event()
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening."""
        self._hub.leave(self)
        self.close_nowait()

    def close_nowait(self) -> None:
        """End the stream after what it holds."""
        self._is_closed = True
        self._changed.set()

    def put_nowait(self, event: Event) -> None:
        """Add an event."""
        if len(self._buffer) >= EVENTS_KEPT:
            self._buffer.popleft()
            count = 1 + (self._missed.detail["count"] if self._missed else 0)
            self._missed = Event("missed", event.at, detail={"count": count})
        self._buffer.append(event)
        self._changed.set()


class EventHub:
    """Hands each event to all streams."""

    def __init__(self) -> None:
        # A reader that just stops reading would otherwise be kept, and filled, for as long as the client lives.
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()

    @property
    def has_listeners(self) -> bool:
        """Whether anybody listens; if not, no event need be made."""
        return bool(self._streams)

    def subscribe(self) -> EventStream:
        """Start a stream."""
        stream = EventStream(self)
        self._streams.add(stream)
        return stream

    def leave(self, stream: EventStream) -> None:
        """End a stream's subscription."""
        self._streams.discard(stream)

    def publish(self, event: Event) -> None:
        """Hand out an event."""
        for stream in self._streams:
            stream.put_nowait(event)

    def close(self) -> None:
        """End all streams."""
        for stream in self._streams:
            stream.close_nowait()
        self._streams.clear()
