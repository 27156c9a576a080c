"""
The clone queue: owns the tasks, takes requests in, and starts what `_schedule` decides.

    submit ─▶ waiting ─▶ _staging ─▶ ready ─▶ _attempts ─▶ settled
                 ▲                               │  │
                 └───────── _refusals ◀──────────┘  └─▶ in doubt ─▶ found, or back to the waiting

One task per upload and one per attempt; a waiting job is data. Three rules hold it together. Every change ends in
`_turn`, which asks the schedule what can be started. Every ending goes through `Registry.settle`, once. And a place is
free only when the remote is known to be done.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, cast

import anyio
from anyio.abc import TaskGroup

from ._attempts import Attempts
from ._clocks import Clocks
from ._errors import QueueClosed, QueueFull
from ._events import CloneJob
from ._fleet_floor import FleetFloor
from ._intake import Checked, Intake
from ._jobs import OCCUPYING_STATES, TERMINAL_STATES, CancelChoice, Job, JobState
from ._lanes import Lanes
from ._models import CloneRequest
from ._outcomes import cancelled
from ._pictures import Statistics, count_states, picture_of_lane, position_of
from ._refusals import Refusals
from ._registry import CLOSED_EARLY, Registry, same_or_error
from ._roster import Roster
from ._samples import SampleBook
from ._schedule import ANY_ACCOUNT, Schedule, Send, Stage
from ._settings import Settings
from ._staging import Staging
from ._transport import Transport
from ._uploads import Uploads
from ._witness import Witness
from .stores import JobStore, KeyTaken, Recovered, SharedStore

T = TypeVar("T")

ID_BYTES: Final = 16
EXCEPTIONAL_GRACE_S: Final = 5.0
"""How long closing waits for clones in progress when the `async with` body failed or was cancelled."""


class CloneQueue:
    """
    Takes requests, and settles a job for each.

    Args:
        transport: Sends calls.
        book: Reads samples.
        roster: Knows the accounts.
        store: Keeps jobs.
        settings: See `VoiceClient`.
    """

    def __init__(
        self, transport: Transport, book: SampleBook, roster: Roster, store: JobStore, settings: Settings
    ) -> None:
        self._store = store
        self._settings = settings
        self._transport = transport
        self._tasks: TaskGroup | None = None
        self._is_closed = False
        """Takes no more requests: draining, or closing."""
        self._seq = 0
        starts: dict[str, Any] = {"start": self._start, "turn": self._turn}
        self._clocks = clocks = Clocks()
        self._schedule = schedule = Schedule(settings.max_parallel, waits_when_closed=settings.wait_when_blocked)
        self.registry = registry = Registry(schedule, store, book, clocks, settings.keep_s)
        self.uploads = uploads = Uploads(transport, book, store)
        self._witness = witness = Witness(transport, store)
        self._lanes = lanes = Lanes(schedule, registry, store, roster, transport, clocks, settings, **starts)
        refusals = Refusals(schedule, registry, lanes, uploads, clocks, settings)
        self._staging = Staging(schedule, registry, refusals, uploads, **starts)
        self.attempts = attempts = Attempts(
            schedule, registry, lanes, refusals, witness, transport, store, clocks, settings, **starts
        )
        self._intake = Intake(transport, book, roster, self.run_owned, store.spool_directory, travels=store.is_shared)
        if store.is_shared:
            registry.floor = FleetFloor(
                schedule,
                cast("SharedStore", store),
                registry,
                lanes,
                attempts,
                uploads,
                witness,
                roster,
                settings,
                is_open=lambda: not self._is_closed and self._tasks is not None,
                turn=self._turn,
            )

    # --- life --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Run the queue's tasks around the body; at its end, close in order."""
        self._clocks.set()
        recovered = await self._store.open()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._resume(recovered)
                self._start(self._clocks.keep, self._wake, name="useapi_voice clocks")
                if self._store.is_shared:
                    self._start(cast("SharedStore", self._store).watch, name="useapi_voice fleet")
                try:
                    yield
                    self._stop_taking()
                    with anyio.move_on_after(self._settings.close_grace_s):
                        await self.attempts.wait_for_all()
                except BaseException:
                    self._stop_taking()
                    with anyio.move_on_after(min(EXCEPTIONAL_GRACE_S, self._settings.close_grace_s), shield=True):
                        await self.attempts.wait_for_all()
                    raise
                finally:
                    self.registry.abandon()
                    tasks.cancel_scope.cancel()
        finally:
            # Whatever the body raised, callers must learn that it is over.
            self._tasks = None

    def _resume(self, recovered: Recovered) -> None:
        """Go on where an earlier life stopped: what it sent is looked for first, and occupies its places until then."""
        self._seq = recovered.last_seq
        now_t, now_at = self._clocks.now(), datetime.now(UTC)
        for account, until in recovered.pauses.items():
            self._schedule.lane(account).gate_t = now_t + (until - now_at).total_seconds()
        in_progress = [job for job in recovered.jobs if job.state in OCCUPYING_STATES]
        for account in {job.account or ANY_ACCOUNT for job in in_progress}:
            self._witness.resume(account, recovered.baselines.get(account))
        if not self._settings.resume:
            for job in in_progress:
                self._leave_place(job)
            return
        for job in in_progress:
            self._resume_attempt(job)
        for job in recovered.jobs:
            if job.state is JobState.QUEUED:
                self._resume_waiting(job)

    def _leave_place(self, job: Job) -> None:
        """Nobody here asks what became of its request, but the remote may be at it still."""
        account = job.account or ANY_ACCOUNT
        self._schedule.occupy(job, account)

        def free() -> None:
            # Else it was submitted again by its key, and its own attempt has the place.
            if self._schedule.lanes[account].places.get(job.id) is job:
                self._schedule.free_place(job, account)

        self._clocks.ring_at(self._clocks.now() + self._settings.settle_after_s, free)

    def _resume_waiting(self, job: Job) -> None:
        job.account = job.pinned
        self.registry.remember_key(job)
        self.registry.set_clocks(job)
        self._enrol(job)

    def _resume_attempt(self, job: Job) -> None:
        self.registry.resume(job)
        if job.pinned is None:
            # Should it prove to have made nothing, it needs somewhere to go.
            self._lanes.ask()
        self.attempts.resume(job)

    def _stop_taking(self) -> None:
        self._is_closed = True
        self._schedule.is_paused = True
        self.registry.stop_taking()

    async def drain(self, timeout_s: float | None) -> tuple[CloneJob, ...]:
        """Start nothing new, wait for what was sent, and return the jobs that are left."""
        self._is_closed = True
        self._schedule.is_paused = True
        with anyio.move_on_after(timeout_s):
            await self.attempts.wait_for_all()
        left = [*sorted(self.registry.jobs.values()), *sorted(self.registry.floor.elsewhere)]
        return tuple(CloneJob(job, self) for job in left)

    async def run_owned(self, work: Callable[[], Awaitable[T]]) -> T:
        """
        Run `work` in a task of the queue's, and wait for it: a caller's cancellation cancels the wait alone.

        Raises:
            QueueClosed: The client was closed meanwhile.
        """
        finished = anyio.Event()
        results: list[T] = []
        errors: list[Exception] = []

        async def run() -> None:
            try:
                results.append(await work())
            except Exception as error:  # noqa: BLE001 - handed to the caller, whatever it is
                errors.append(error)
            finally:
                finished.set()

        self._start(run, name="useapi_voice call")
        await finished.wait()
        if errors:
            raise errors[0]
        if not results:
            raise QueueClosed("the client was closed while this call was in progress")
        return results[0]

    def _start(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object, name: str) -> None:
        if self._tasks is None:
            raise QueueClosed("the client is closed")
        self._tasks.start_soon(work, *args, name=name)

    # --- the turn ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Start all that can be started now."""
        now_t = self._clocks.now()
        for action in self._schedule.assign(now_t):
            match action:
                case Stage():
                    self._staging.begin(action)
                case Send():  # pragma: no branch - there are no others
                    self.attempts.send(action.job, action.account)
        self._clocks.wake_by(self._schedule.wake_at(now_t))

    def _wake(self, now_t: float) -> None:
        self._lanes.look_at_closed(now_t)
        self._turn()

    # --- taking requests ---------------------------------------------------------------------------------------------

    async def submit(
        self,
        requests: Sequence[CloneRequest],
        *,
        keys: Sequence[str | None],
        priority: int,
        queue_timeout_s: float | None,
        deadline_s: float | None,
    ) -> list[CloneJob]:
        """Check requests, keep them, and return a job for each; all of them, or none."""
        self._check_taking(keys)
        checked = await self._intake.check(requests)
        try:
            while True:
                ended = await self._find_kept(keys)
                if waits := [self.registry.unkept[key] for key in keys if key in self.registry.unkept]:
                    # Another submit of this key is not through. Should the store refuse it, there is no job to share,
                    # or one that the store alone knows: so look again. After the last look nothing waits until ours
                    # is announced, or two submits that pass here at once would both make one.
                    await waits[0].wait()
                    continue
                # Checked again: the checks above took their time.
                self._check_taking(keys)
                jobs, fresh = self._make_jobs(checked, keys, priority, ended)
                _set_deadlines([job for job, _ in fresh], self._clocks.now(), queue_timeout_s, deadline_s)
                try:
                    await self._accept(fresh)
                except KeyTaken:
                    # Another was faster: a process of a fleet, or a submit here whose job has ended since, so that it
                    # is the store's alone. There is a job to share now.
                    if not self._store.is_shared and not await self._is_any_kept(fresh):
                        raise
                else:
                    break
        except BaseException:
            self._intake.release(checked)
            raise
        # What was checked for requests whose jobs were there already is needed no more.
        kept = {id(item) for _, item in fresh}
        self._intake.release(item for item in checked if id(item) not in kept)
        self._turn()
        return [CloneJob(job, self) for job in jobs]

    async def _is_any_kept(self, fresh: Sequence[tuple[Job, Checked]]) -> bool:
        keys = [job.key for job, _ in fresh if job.key is not None]
        return any([await self._store.find(key) is not None for key in keys])

    def _check_taking(self, keys: Sequence[str | None]) -> None:
        if self._is_closed:
            raise QueueClosed("the client is closed or draining, and takes no more requests")
        most = self._settings.max_pending
        # A job that has ended may still occupy a place, but is not among the jobs any more.
        places = (job for lane in self._schedule.lanes.values() for job in lane.places.values())
        waiting = len(self.registry.jobs) - sum(job.id in self.registry.jobs for job in places)
        waiting += len(self.registry.floor.elsewhere)
        count = sum(key is None or key not in self.registry.keys for key in keys)
        if most is not None and count and waiting + count > most:
            message = f"{waiting} jobs wait and max_pending is {most}: nothing was accepted; submit again later"
            raise QueueFull(message, max_pending=most, eta_s=self._backlog_s(waiting))

    async def _find_kept(self, keys: Sequence[str | None]) -> dict[str, Job]:
        """Return the ended jobs of these keys that the store has; go on with those that have not ended."""
        found: dict[str, Job] = {}
        if not self._store.is_durable:
            return found
        registry = self.registry
        for key in keys:
            if key is None or key in registry.keys:
                continue
            job = await self._store.find(key)
            if job is None or key in registry.keys or key in registry.unkept:
                # Nobody has it, or another submit has just brought it in, or is about to.
                continue
            if job.is_settled:
                found[key] = job
            elif self._store.is_shared:
                registry.remember_key(registry.floor.expect(job))
            elif job.state in OCCUPYING_STATES:
                self._resume_attempt(job)
            else:
                self._resume_waiting(job)
        return found

    def _make_jobs(
        self, checked: Sequence[Checked], keys: Sequence[str | None], priority: int, ended: Mapping[str, Job]
    ) -> tuple[list[Job], list[tuple[Job, Checked]]]:
        jobs: list[Job] = []
        fresh: list[tuple[Job, Checked]] = []
        made: dict[str, Job] = {}
        # 128 random bits each, asked of the system once for all: they are unique over processes and hosts.
        noise = os.urandom(ID_BYTES * len(checked)).hex()
        for index, (item, key) in enumerate(zip(checked, keys, strict=True)):
            known = None if key is None else made.get(key) or self.registry.keys.get(key) or ended.get(key)
            if known is not None:
                jobs.append(same_or_error(known, item))
                continue
            self._seq += 1
            job_id = noise[2 * ID_BYTES * index : 2 * ID_BYTES * (index + 1)]
            job = Job(job_id, key, item.request, priority, self._seq, item.pinned, account=item.pinned)
            job.fingerprints = item.fingerprints
            jobs.append(job)
            fresh.append((job, item))
            if key is not None:
                made[key] = job
        return jobs, fresh

    async def _accept(self, fresh: Sequence[tuple[Job, Checked]]) -> None:
        """Have the store keep new jobs, then take them in."""
        registry = self.registry
        await self._keep([job for job, _ in fresh])
        if registry.is_closing and not self._store.is_durable:
            raise QueueClosed("the client was closed before it could take these requests")
        if registry.is_closing:
            # Accepted they are, though not by this client: it must not say that they are not.
            for job, _ in fresh:
                job.outcome = cancelled(job, CLOSED_EARLY)
            self._intake.release(item for _, item in fresh)
            return
        for job, _ in fresh:
            if job.outcome is None:
                registry.remember_key(job)
        if self._store.is_shared:
            # It has their samples, too, and says who works on them.
            self._intake.release(item for _, item in fresh)
            for job, _ in fresh:
                registry.tell(job, "queued")
            return
        for job, item in fresh:
            self._enrol(job, item)
        registry.refuse_orphans()

    async def _keep(self, jobs: Sequence[Job]) -> None:
        registry = self.registry
        kept = anyio.Event()
        keys = [job.key for job in jobs if job.key is not None]
        registry.unkept |= dict.fromkeys(keys, kept)
        # Before the store has them: a fleet may give them to this very process before it hears that they are kept.
        for job in jobs:
            registry.floor.expect(job)
        try:
            await self._store.add(jobs)
        except BaseException:
            for job in jobs:
                registry.floor.expect_no_more(job)
            raise
        finally:
            for key in keys:
                del registry.unkept[key]
            kept.set()

    def _enrol(self, job: Job, item: Checked | None = None) -> None:
        self.registry.enrol(job, () if item is None else item.held)
        if job.pinned is None:
            self._lanes.ask()

    # --- jobs --------------------------------------------------------------------------------------------------------

    def find(self, key: str) -> CloneJob | None:
        """Return the job of this key, ended ones included."""
        job = self.registry.keys.get(key) or self._store.find_nowait(key)
        return None if job is None else CloneJob(job, self)

    async def look_up(self, key: str) -> CloneJob | None:
        """Return the job of this key, whichever process submitted it."""
        job = self.registry.keys.get(key) or await self._store.find(key)
        return None if job is None else CloneJob(job, self)

    async def jobs(self, state: JobState | None) -> AsyncGenerator[CloneJob, None]:
        """Yield the jobs that are known, in the order in which they were submitted."""
        live: Mapping[str, Job] = self.registry.jobs
        if not self._store.is_durable:
            live = {**live, **{job.id: job for job in self.registry.keys.values()}}
        here = {job.id: job for job in sorted(live.values(), key=lambda job: job.seq)}
        async with aclosing(self._store.jobs(None)) as kept:
            async for stored in kept:
                job = here.pop(stored.id, stored)
                if state in {None, job.state}:
                    yield CloneJob(job, self)
        for job in here.values():
            if state in {None, job.state}:
                yield CloneJob(job, self)

    async def forget(self, job: Job) -> bool:
        """Forget a job that has ended, and its key."""
        if job.id in self.registry.jobs or not job.is_settled:
            return False
        known = self.registry.forget_key(job)
        return await self._store.forget(job.id) or known

    def cancel(self, job: Job, voice: CancelChoice) -> None:
        """End a job, or remember that it is unwanted; see `CloneJob.cancel`."""
        self.registry.cancel(job, voice)

    def is_at(self, job: Job) -> bool:
        """Whether this process works on it, or will hear of its end."""
        if self.registry.jobs.get(job.id) is job or job.state in TERMINAL_STATES:
            return True
        # It may be a copy that was looked up, even of one that this process works on.
        return self._tasks is not None and self.registry.floor.follow(job)

    # --- accounts ----------------------------------------------------------------------------------------------------

    async def delete(self, voice_id: str, account: str | None) -> None:
        """Delete a voice, and note that its account has a slot again. Raises `ApiError`."""
        await self.attempts.delete(voice_id, account)

    # --- pictures ----------------------------------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """Return a picture of the queue as it is now."""
        now_t = self._clocks.now()
        registry = self.registry
        return Statistics(
            jobs=count_states(registry.counts, [*registry.jobs.values(), *registry.floor.elsewhere]),
            pooled=len(self._schedule.pool),
            lanes=tuple(picture_of_lane(lane, now_t) for lane in self._schedule.lanes.values()),
            uploads=self.uploads.count,
            generation=self._transport.generation.name,
            mean_clone_s=self.attempts.pace.mean_clone_s,
        )

    def position(self, job: Job) -> int | None:
        """Count the jobs that go before this one."""
        return position_of(job, self.registry.jobs.values())

    def eta_s(self, job: Job) -> float | None:
        """Estimate the seconds until this job will have ended."""
        return 0.0 if job.is_settled else self._backlog_s((self.position(job) or 0) + 1)

    def _backlog_s(self, count: int) -> float | None:
        return self.attempts.pace.backlog_s(count, self._schedule.lanes.values())


def _set_deadlines(jobs: Sequence[Job], now_t: float, queue_timeout_s: float | None, deadline_s: float | None) -> None:
    now_at = datetime.now(UTC)
    for job in jobs:
        if queue_timeout_s is not None:
            job.queue_deadline_t = now_t + queue_timeout_s
            job.queue_deadline_at = now_at + timedelta(seconds=queue_timeout_s)
        if deadline_s is not None:
            job.deadline_t = now_t + deadline_s
            job.deadline_at = now_at + timedelta(seconds=deadline_s)
