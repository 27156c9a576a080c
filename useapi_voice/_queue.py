"""
The clone queue: owns the tasks and carries out what `_schedule` decides, from the accepted request to the settled job.

    submit ─▶ waiting ─▶ upload ─▶ ready ─▶ attempt ─▶ conclude ─▶ settle
                 ▲                             │           │
                 └───────── requeue ───────────┴── look ◀──┘

One task per upload and one per attempt; a waiting job is data. Three rules hold it together. Every change ends in
`_turn`, which asks the schedule what can be started. Every ending goes through `_settle`, once. And a place belongs to
the task of the attempt, not to the job: a job may end early (its deadline, its owner), but its place is free only when
the remote is known to be done.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, cast

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from . import _endpoints, _replies
from ._errors import (
    ApiError,
    AuthenticationError,
    CloneError,
    CloneRefused,
    Fault,
    QueueClosed,
    QueueFull,
    RateLimited,
    RequestInvalid,
    SampleChanged,
    ServerError,
    StoreError,
    SubscriptionError,
)
from ._events import CloneJob, EventHub
from ._floor import Floor
from ._intake import Checked, Intake
from ._jobs import (
    OCCUPYING_STATES,
    TERMINAL_STATES,
    Attempt,
    CancelChoice,
    Event,
    Job,
    JobState,
    Outcome,
    Step,
    advance,
    ending_of,
)
from ._models import Account, CloneRequest, VoiceInfo
from ._outcomes import broken, cancelled, end_attempt, facts_of, out_of_time, refusal, told_of, unknown_outcome
from ._pictures import Pace, Statistics, count_states, picture_of_lane, position_of
from ._recovery import Absent, Found, Looking, Unclear
from ._replies import STALE_FILE_CODE, Answer, Done, NotSent, Refused, Scope, Unknown, interpret
from ._roster import Roster
from ._samples import Inspected, SampleBook
from ._schedule import ANY_ACCOUNT, Schedule, Send, Stage
from ._transport import Transport
from ._uploads import Uploads
from ._witness import Witness
from .stores import JobStore, KeyTaken, Recovered, SharedStore
from .stores.codec import digest_of

logger = logging.getLogger("useapi_voice")

T = TypeVar("T")

ROSTER_PAUSE_S: Final = 1.0
"""Between two rounds of asking which accounts there are, where the remote cannot be reached."""
ID_BYTES: Final = 16
CLOSED_EARLY: Final = "the client was closed before its turn came; the store keeps it for the next client"
LONG_WAIT_S: Final = 2.0
"""A gate that is shut for longer than this lets the staged jobs behind it go to other accounts."""
LONGEST_LOOK_S: Final = 10 * 365 * 24 * 3600.0
"""What a store is told where nobody will look at an account again of his own accord."""
EXCEPTIONAL_GRACE_S: Final = 5.0
"""How long closing waits for clones in progress when the `async with` body failed or was cancelled."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The queue's settings; `VoiceClient` documents them."""

    max_parallel: int = 2
    clone_timeout_s: float = 120.0
    settle_after_s: float = 75.0
    queue_timeout_s: float | None = None
    deadline_s: float | None = None
    max_pending: int | None = None
    max_resends: int = 2
    unreachable_after_s: float = 30.0
    look_again_after_s: float = 300.0
    wait_when_blocked: bool = False
    close_grace_s: float = 25.0
    keep_s: float = 24 * 3600.0
    resume: bool = True


@dataclass(slots=True)
class _Sent:
    """An attempt whose request has left."""

    account: str
    t: float
    at: datetime


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
        self.hub = EventHub()
        self._transport = transport
        self._book = book
        self._roster = roster
        self._store = store
        self._settings = settings
        self._schedule = Schedule(settings.max_parallel, waits_when_closed=settings.wait_when_blocked)
        self.uploads = Uploads(transport, book, store)
        self._witness = Witness(transport, store)
        self._intake = Intake(transport, book, roster, self.run_owned, store.spool_directory, travels=store.is_shared)
        self._jobs: dict[str, Job] = {}
        self._keys: dict[str, Job] = {}
        self._unkept: dict[str, anyio.Event] = {}
        """Keys of jobs that the store has not accepted yet; the event is set when it has, or has not."""
        self._held: dict[str, tuple[Inspected, ...]] = {}
        self._clocks: list[tuple[float, int, Job, str]] = []
        self._forgettable: list[tuple[float, int, str]] = []
        self._counts: Counter[JobState] = Counter()
        self._seq = 0
        self._settled = 0
        self._pace = Pace()
        self._roster_is_asked = False
        self._is_closed = False
        """Takes no more requests: draining, or closing."""
        self._is_closing = False
        self._attempts_ended: anyio.Event | None = None
        self._running = 0
        self._wake_t = float("inf")
        self._alarm: anyio.Event | None = None
        self._tasks: TaskGroup | None = None
        self._clock: Callable[[], float] = anyio.current_time
        self._floor = Floor(self, cast("SharedStore", store)) if store.is_shared else None
        """What a fleet's store asks of this queue, and which of its jobs are elsewhere; `None` for other stores."""

    # --- life --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Run the queue's tasks around the body; at its end, close in order."""
        # Not `anyio.current_time`, which asks for a task: a job may be cancelled from a callback or a signal handler.
        self._clock = anyio.lowlevel.current_token().backend_class.current_time
        recovered = await self._store.open()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._resume(recovered)
                tasks.start_soon(self._keep_time, name="useapi_voice clocks")
                if self._floor is not None:
                    tasks.start_soon(cast("SharedStore", self._store).watch, name="useapi_voice fleet")
                try:
                    yield
                    self._stop_taking()
                    with anyio.move_on_after(self._settings.close_grace_s):
                        await self._wait_for_attempts()
                except BaseException:
                    self._stop_taking()
                    with anyio.move_on_after(min(EXCEPTIONAL_GRACE_S, self._settings.close_grace_s), shield=True):
                        await self._wait_for_attempts()
                    raise
                finally:
                    self._abandon()
                    tasks.cancel_scope.cancel()
        finally:
            # Whatever the body raised, readers of events must learn that this is the end, and callers that it is over.
            self._tasks = None
            self.hub.close()

    def _resume(self, recovered: Recovered) -> None:
        """Go on where an earlier life stopped: what it sent is looked for first, and occupies its places until then."""
        self._seq = recovered.last_seq
        now_t, now_at = self._clock(), datetime.now(UTC)
        for account, until in recovered.pauses.items():
            self._schedule.lane(account).gate_t = now_t + (until - now_at).total_seconds()
        if not self._settings.resume:
            return
        in_progress = [job for job in recovered.jobs if job.state in OCCUPYING_STATES]
        for account in {job.account or ANY_ACCOUNT for job in in_progress}:
            self._witness.resume(account, recovered.baselines.get(account))
        for job in in_progress:
            self._resume_attempt(job)
        for job in recovered.jobs:
            if job.state is JobState.QUEUED:
                self._resume_waiting(job)

    def _resume_waiting(self, job: Job) -> None:
        job.account = job.pinned
        self._remember_key(job)
        self._set_clocks(job)
        self._enrol(job)

    def _resume_attempt(self, job: Job, ago_s: float | None = None) -> None:
        self._jobs[job.id] = job
        self._remember_key(job)
        self._set_clocks(job)
        self._ring_for(job)
        if job.pinned is None and self._floor is None:
            # Should it prove to have made nothing, it needs somewhere to go.
            self._ask_roster()
        account, sent_at = job.account or ANY_ACCOUNT, job.history[-1].sent_at
        # By the wall clock, as no other outlives a process; one that was set back must not make it later than now.
        # A fleet has a clock of its own.
        ago_s = max(0.0, (datetime.now(UTC) - sent_at).total_seconds() if ago_s is None else ago_s)
        sent = _Sent(account, self._clock() - ago_s, sent_at)
        self._schedule.occupy(job, account)
        self._running += 1
        self._task_group().start_soon(self._finish_attempt, job, sent, name=f"useapi_voice clone {job.id}")

    def _set_clocks(self, job: Job) -> None:
        """Translate the times that a store keeps into the loop's."""
        now_t, now_at = self._clock(), datetime.now(UTC)
        if job.queue_deadline_at is not None:
            job.queue_deadline_t = now_t + (job.queue_deadline_at - now_at).total_seconds()
        if job.deadline_at is not None:
            job.deadline_t = now_t + (job.deadline_at - now_at).total_seconds()

    def _stop_taking(self) -> None:
        """No more work; what was not sent ends here, or is left to the store."""
        self._is_closed = self._is_closing = True
        self._schedule.is_paused = True
        for job in [job for job in self._jobs.values() if job.state not in OCCUPYING_STATES]:
            kept = "; the store keeps it for the next client" if self._store.is_durable else ""
            self._end_or_leave(job, cancelled(job, f"the client was closed before its turn came{kept}"))
        if self._floor is not None:
            self._floor.leave_all()

    def _abandon(self) -> None:
        """What is still in progress at the remote, and nobody will read."""
        advice = "the next client of this store will look for it" if self._store.is_durable else "look for it yourself"
        for job in list(self._jobs.values()):
            message = f"the client was closed while its clone was in progress: a voice may exist; {advice}"
            self._end_or_leave(job, unknown_outcome(job, message))

    def _end_or_leave(self, job: Job, outcome: CloneError) -> None:
        """End a job that cannot go on in this process; a durable store keeps it as it is, for another."""
        if not self._store.is_durable:
            self._settle(job, outcome)
        else:
            was = job.state
            job.outcome = outcome
            if was not in OCCUPYING_STATES:
                self._schedule.remove(job, was)
            self._dismiss(job)
            if self._floor is not None and was not in OCCUPYING_STATES:
                self._floor.release(job)
            if job.key is not None:
                self._keys.pop(job.key, None)
            self._tell(job, "left", **told_of(outcome))
            _call_watchers(job)

    async def drain(self, timeout_s: float | None) -> tuple[CloneJob, ...]:
        """Start nothing new, wait for what was sent, and return the jobs that are left."""
        self._is_closed = True
        self._schedule.is_paused = True
        with anyio.move_on_after(timeout_s):
            await self._wait_for_attempts()
        left = [CloneJob(job, self) for job in sorted(self._jobs.values())]
        return (*left, *self._floor.handles()) if self._floor is not None else tuple(left)

    async def _wait_for_attempts(self) -> None:
        while self._running:
            if self._attempts_ended is None:
                # One for all who wait, be it in `drain` or in closing: each is told.
                self._attempts_ended = anyio.Event()
            await self._attempts_ended.wait()

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

        self._task_group().start_soon(run, name="useapi_voice call")
        await finished.wait()
        if errors:
            raise errors[0]
        if not results:
            raise QueueClosed("the client was closed while this call was in progress")
        return results[0]

    def _task_group(self) -> TaskGroup:
        if self._tasks is None:
            raise QueueClosed("the client is closed")
        return self._tasks

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
                while waits := [self._unkept[key] for key in keys if key in self._unkept]:
                    # Another submit of this key is not through: should the store refuse it, there is no job to share.
                    # The last wait before ours is announced, or two submits that pass here at once would both make one.
                    await waits[0].wait()
                # Checked again: the checks above took their time.
                self._check_taking(keys)
                jobs, fresh = self._make_jobs(checked, keys, priority, ended)
                try:
                    await self._accept(fresh, queue_timeout_s, deadline_s)
                except KeyTaken:
                    # Another process of a fleet was faster: there is a job to share now.
                    if self._floor is None or len({job.key for job, _ in fresh}) < sum(
                        bool(job.key) for job, _ in fresh
                    ):
                        raise
                else:
                    break
        except BaseException:
            self._intake.release(checked)
            raise
        self._release_known(checked, fresh)
        self._turn()
        return [CloneJob(job, self) for job in jobs]

    def _check_taking(self, keys: Sequence[str | None]) -> None:
        if self._is_closed:
            raise QueueClosed("the client is closed or draining, and takes no more requests")
        most = self._settings.max_pending
        # A job that has ended may still occupy a place, but is not among the jobs any more.
        places = (job for lane in self._schedule.lanes.values() for job in lane.places.values())
        waiting = len(self._jobs) - sum(not job.is_settled for job in places)
        waiting += self._floor.count() if self._floor is not None else 0
        count = sum(key is None or key not in self._keys for key in keys)
        if most is not None and count and waiting + count > most:
            message = f"{waiting} jobs wait and max_pending is {most}: nothing was accepted; submit again later"
            raise QueueFull(message, max_pending=most, eta_s=self._backlog_s(waiting))

    async def _find_kept(self, keys: Sequence[str | None]) -> dict[str, Job]:
        """Return the ended jobs of these keys that the store has; go on with those that have not ended."""
        found: dict[str, Job] = {}
        if not self._store.is_durable:
            return found
        for key in keys:
            if key is None or key in self._keys:
                continue
            job = await self._store.find(key)
            if job is None or key in self._keys or key in self._unkept:
                # Nobody has it, or another submit has just brought it in, or is about to.
                continue
            if job.is_settled:
                found[key] = job
            elif self._floor is not None:
                self._remember_key(self._floor.expect(job))
            elif job.state in OCCUPYING_STATES:
                self._witness.resume(job.account or ANY_ACCOUNT, None)
                self._resume_attempt(job)
            else:
                self._resume_waiting(job)
        return found

    def _remember_key(self, job: Job) -> None:
        if job.key is not None:
            self._keys[job.key] = job

    def _make_jobs(
        self, checked: Sequence[Checked], keys: Sequence[str | None], priority: int, ended: Mapping[str, Job]
    ) -> tuple[list[Job], list[tuple[Job, Checked]]]:
        jobs: list[Job] = []
        fresh: list[tuple[Job, Checked]] = []
        made: dict[str, Job] = {}
        # 128 random bits each, asked of the system once for all: they are unique over processes and hosts.
        noise = os.urandom(ID_BYTES * len(checked)).hex()
        for index, (item, key) in enumerate(zip(checked, keys, strict=True)):
            known = None if key is None else made.get(key) or self._keys.get(key) or ended.get(key)
            if known is not None:
                jobs.append(_same_or_error(known, item))
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

    def _release_known(self, checked: Sequence[Checked], fresh: Sequence[tuple[Job, Checked]]) -> None:
        """Let go of what was checked for requests whose jobs were there already."""
        kept = {id(item) for _, item in fresh}
        self._intake.release(item for item in checked if id(item) not in kept)

    async def _accept(
        self, fresh: Sequence[tuple[Job, Checked]], queue_timeout_s: float | None, deadline_s: float | None
    ) -> None:
        now_t = self._clock()
        kept = anyio.Event()
        keys = [job.key for job, _ in fresh if job.key is not None]
        now_at = datetime.now(UTC)
        for job, _ in fresh:
            if queue_timeout_s is not None:
                job.queue_deadline_t = now_t + queue_timeout_s
                job.queue_deadline_at = now_at + timedelta(seconds=queue_timeout_s)
            if deadline_s is not None:
                job.deadline_t = now_t + deadline_s
                job.deadline_at = now_at + timedelta(seconds=deadline_s)
        self._unkept |= dict.fromkeys(keys, kept)
        if self._floor is not None:
            # Before the fleet has them, as this very process may be given them before it hears that it has.
            for job, _ in fresh:
                self._floor.expect(job)
        try:
            await self._store.add([job for job, _ in fresh])
        except BaseException:
            if self._floor is not None:
                for job, _ in fresh:
                    self._floor.elsewhere.pop(job.id, None)
            raise
        finally:
            for key in keys:
                del self._unkept[key]
            kept.set()
        if self._is_closing and not self._store.is_durable:
            raise QueueClosed("the client was closed before it could take these requests")
        if self._is_closing:
            # Accepted they are, though not by this client: it must not say that they are not.
            for job, _ in fresh:
                job.outcome = cancelled(job, CLOSED_EARLY)
            self._intake.release(item for _, item in fresh)
            return
        self._keys |= {job.key: job for job, _ in fresh if job.key is not None and job.outcome is None}
        if self._floor is not None:
            # The store has their samples, too.
            self._intake.release(item for _, item in fresh)
            for job, _ in fresh:
                self._tell(job, "queued")
            return
        for job, item in fresh:
            if item.held:
                self._held[job.id] = item.held
            self._enrol(job)
        self._settle_orphans()

    def _enrol(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._schedule.add(job)
        self._ring_for(job)
        if job.pinned is None:
            self._ask_roster()
        self._tell(job, "queued")

    def _ring_for(self, job: Job) -> None:
        for clock_t, clock in ((job.queue_deadline_t, "queue_timeout_s"), (job.deadline_t, "deadline_s")):
            if clock_t is not None:
                heapq.heappush(self._clocks, (clock_t, job.seq, job, clock))
                self._wake_by(clock_t)

    def find(self, key: str) -> CloneJob | None:
        """Return the job of this key, ended ones included."""
        job = self._keys.get(key) or self._store.find_nowait(key)
        return None if job is None else CloneJob(job, self)

    async def look_up(self, key: str) -> CloneJob | None:
        """Return the job of this key, whichever process submitted it."""
        job = self._keys.get(key) or await self._store.find(key)
        return None if job is None else CloneJob(job, self)

    async def jobs(self, state: JobState | None) -> AsyncGenerator[CloneJob, None]:
        """Yield the jobs that are known, in the order in which they were submitted."""
        live: Mapping[str, Job]
        live = self._jobs if self._store.is_durable else {**self._jobs, **{job.id: job for job in self._keys.values()}}
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
        if job.id in self._jobs or not job.is_settled:
            return False
        known = job.key is not None and self._keys.get(job.key) is job
        if known and job.key is not None:
            del self._keys[job.key]
        return await self._store.forget(job.id) or known

    def is_at(self, job: Job) -> bool:
        """Whether this process works on it, or will hear of its end."""
        if self._floor is not None and job.state not in TERMINAL_STATES:
            # It may be a copy that was looked up, even of one that this process works on.
            if self._tasks is not None:
                self._floor.follow(job)
            return self._tasks is not None
        return job.id in self._jobs or job.state in TERMINAL_STATES

    # --- accounts ----------------------------------------------------------------------------------------------------

    def _ask_roster(self) -> None:
        if not self._roster_is_asked:
            self._roster_is_asked = True
            self._task_group().start_soon(self._admit_accounts, name="useapi_voice accounts")

    async def _admit_accounts(self) -> None:
        """Let the accounts that there are serve the jobs that any may serve."""
        accounts: tuple[Account, ...] | None = None
        while accounts is None:
            try:
                accounts = await self._roster.all()
            except (AuthenticationError, SubscriptionError) as error:
                self._roster_is_asked = False
                self._stop_everything(_replies.refused_from(error))
                return
            except ApiError as error:
                self._lose_patience(error)
                if not self._schedule.pool:
                    self._roster_is_asked = False
                    return
                await anyio.sleep(ROSTER_PAUSE_S)
        for job in self._schedule.pool:
            job.not_sent_since_t = None
        for account in accounts:
            if account.support_audio is not False:
                self._schedule.admit(account.account)
            if account.error is not None:
                self._close_lane(account.account, broken(account.error))
        if not accounts:
            self._schedule.admit(ANY_ACCOUNT)
        elif not any(account.support_audio is not False for account in accounts):
            self._settle_pool(broken("no account of this token supports audio"))
            self._roster_is_asked = False
        self._settle_orphans()
        self._turn()

    def _lose_patience(self, error: ApiError) -> None:
        """The accounts could not be had: end the jobs that have waited for them long enough."""
        now_t = self._clock()
        for job in sorted(self._schedule.pool):
            since_t = now_t if job.not_sent_since_t is None else job.not_sent_since_t
            job.not_sent_since_t = since_t
            if now_t - since_t >= self._settings.unreachable_after_s:
                self._settle(job, refusal(job, _replies.refused_from(error), safe_to_retry=True))

    def _settle_pool(self, refused: Refused) -> None:
        for job in sorted(self._schedule.pool):
            self._settle(job, refusal(job, refused))

    def _close_lane(self, account: str, refused: Refused) -> None:
        """This account refuses everything, or every clone: its jobs move on, or end."""
        slots = refused.scope is Scope.SLOTS
        can_look = not slots or self._transport.generation.has_equity
        look_t = self._clock() + self._settings.look_again_after_s if can_look else float("inf")
        if self._take_out(account, refused, look_t):
            look_s = max(0.0, min(look_t - self._clock(), LONGEST_LOOK_S))
            self._store.closed(account, refused, look_s)
        self._settle_orphans()

    def _take_out(self, account: str, refused: Refused, look_t: float) -> bool:
        """Close a lane, and return whether that is news: else the other place met the same wall."""
        is_news = self._schedule.lane(account).closed_by is None
        for job in self._schedule.close_lane(account, refused, look_t):
            self._unstage(job)
        if self._floor is not None:
            self._floor.give_back_waiting(account)
        if is_news:
            kind = "slots_full" if refused.scope is Scope.SLOTS else "account_out"
            self._announce_lane(kind, account, reason=refused.detail)
        return is_news

    def _settle_orphans(self) -> None:
        if self._floor is not None:
            # Only the fleet knows whether an account is left that can serve them.
            return
        for job, refused in self._schedule.orphans():
            self._settle(job, refusal(job, refused))

    async def _look_again(self, account: str, scope: Scope) -> None:
        """Ask whether a closed account is in order again."""
        try:
            if await (self._has_slot(account) if scope is Scope.SLOTS else self._is_in_order(account)):
                self.reopen(account)
                return
        except ApiError as error:
            logger.debug("account %s could not be looked at: %s", account, type(error).__name__)
        lane = self._schedule.lane(account)
        lane.look_again_t = self._clock() + self._settings.look_again_after_s
        self._turn()

    async def _is_in_order(self, account: str) -> bool:
        try:
            found = {known.account: known.usable for known in await self._roster.fetch()}
        except (AuthenticationError, SubscriptionError, RateLimited, ServerError):
            raise
        except ApiError:
            # It serves no such list, so only a clone can tell.
            return True
        return found.get(account, False) if account != ANY_ACCOUNT else not found or any(found.values())

    async def _has_slot(self, account: str) -> bool:
        payload = await self._transport.ask(lambda generation: _endpoints.equity(account or None))
        return bool(_replies.read_slots(payload).free)

    def reopen(self, account: str | None, *, only_slots: bool = False, is_told: bool = False) -> None:
        """
        Take an account in again, after a look or a delete, or as another process of a fleet did.

        A delete whose account nobody named may have freed a slot on any.
        """
        if account is None and only_slots:
            for name in list(self._schedule.lanes):
                self.reopen(name, only_slots=True, is_told=is_told)
            return
        lane = self._schedule.lanes.get(account or ANY_ACCOUNT)
        if lane is None or lane.closed_by is None or (only_slots and lane.closed_by.scope is not Scope.SLOTS):
            return
        kind = "slots_free" if lane.closed_by.scope is Scope.SLOTS else "account_back"
        self._schedule.open_lane(lane.account)
        if not is_told:
            self._store.opened(lane.account)
        self._announce_lane(kind, lane.account)
        self._turn()

    # --- the turn ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Start all that can be started now."""
        now_t = self._clock()
        for action in self._schedule.assign(now_t):
            match action:
                case Stage():
                    self._stage(action)
                case Send():  # pragma: no branch - there are no others
                    self._running += 1
                    name = f"useapi_voice clone {action.job.id}"
                    self._task_group().start_soon(self._run_attempt, action.job, action.account, name=name)
        self._wake_by(self._schedule.wake_at(now_t))

    def _stage(self, action: Stage) -> None:
        job = action.job
        if action.moved:
            advance(job, Step.UNSTAGE)
        if job.request.files:
            job.files = job.request.files
            advance(job, Step.STAGED)
            self._schedule.staged(job)
            return
        advance(job, Step.STAGE)
        self._tell(job, "uploading")
        self._task_group().start_soon(self._upload, job, action.account, name=f"useapi_voice upload {job.id}")

    def _unstage(self, job: Job) -> None:
        advance(job, Step.UNSTAGE)
        if self._floor is not None:
            self._schedule.remove(job, JobState.READY)
            self._floor.give_back(job)
        else:
            self._schedule.unstage(job)

    async def _keep_time(self) -> None:
        """Ring the clocks: gates that open, accounts to look at again, jobs whose time is up."""
        while True:
            self._wake_t, self._alarm = float("inf"), None
            now_t = self._clock()
            self._expire(now_t)
            self._forget_finished(now_t)
            for lane in self._schedule.lanes_to_look_at(now_t):
                lane.look_again_t = float("inf")
                if lane.closed_by is not None:
                    name = f"useapi_voice look at {lane.account or 'the account'}"
                    self._task_group().start_soon(self._look_again, lane.account, lane.closed_by.scope, name=name)
            self._turn()
            # Set up after the look, which asks for wake-ups itself: heard now, they would make this loop spin.
            self._alarm = anyio.Event()
            with anyio.move_on_after(self._wake_t - self._clock()):
                await self._alarm.wait()

    def _wake_by(self, t: float) -> None:
        if t < self._wake_t:
            self._wake_t = t
            if self._alarm is not None:
                self._alarm.set()

    def _expire(self, now_t: float) -> None:
        while self._clocks and self._clocks[0][0] <= now_t:
            _, _, job, clock = heapq.heappop(self._clocks)
            if not job.is_settled and (clock == "deadline_s" or not job.was_sent):
                self._settle(job, out_of_time(job, clock))
        if self._clocks:
            self._wake_by(self._clocks[0][0])

    def _forget_finished(self, now_t: float) -> None:
        while self._forgettable and self._forgettable[0][0] <= now_t:
            _, _, key = heapq.heappop(self._forgettable)
            self._keys.pop(key, None)
        if self._forgettable:
            self._wake_by(self._forgettable[0][0])

    # --- uploading ---------------------------------------------------------------------------------------------------

    async def _upload(self, job: Job, account: str) -> None:
        try:
            files = await self.uploads.ensure(job.request.samples, account, job.fingerprints)
        except (RequestInvalid, SampleChanged) as error:
            if self._is_staging(job, account):
                message = f"a sample is no longer what was submitted: {error}"
                self._settle(job, CloneRefused(message, **facts_of(job)))
        except ApiError as error:
            if self._is_staging(job, account):
                self._could_not_upload(job, account, error)
        else:
            # It may have moved to another account, or ended, while its samples went up here.
            if self._is_staging(job, account):
                job.files = files
                if not job.history or job.history[-1].verdict != "not_sent":
                    # It was its uploads that did not get through, and now they have.
                    job.not_sent_since_t = None
                advance(job, Step.STAGED)
                self._schedule.staged(job)
                self._tell(job, "ready")
        self._turn()

    def _is_staging(self, job: Job, account: str) -> bool:
        """Whether its upload to this account still matters: it may have moved to another, or ended, meanwhile."""
        return job.state is JobState.UPLOADING and job.account == account and not job.is_settled

    def _could_not_upload(self, job: Job, account: str, error: ApiError) -> None:
        if isinstance(error, ServerError):
            self._unstage(job)
            self._wait_for_remote(job, account, error)
            return
        refused = _replies.refused_from(error)
        if refused.scope in {Scope.PACE, Scope.ACCOUNT, Scope.SLOTS}:
            self._unstage(job)
        self._apply_refusal(job, account, refused)

    # --- one attempt -------------------------------------------------------------------------------------------------

    async def _run_attempt(self, job: Job, account: str) -> None:
        """Send one clone request, and see it through; the place is this task's until it returns."""
        with self._holding_place(job, account):
            await self._witness.take_baseline(account)
            if job.state is not JobState.READY or job.is_settled:
                return
            sent = await self._begin(job, account)
            if sent is not None:
                answer = await self._transport.route(
                    lambda generation: _endpoints.clone_voice(generation, job.request, job.files, account or None),
                    read_timeout_s=self._settings.clone_timeout_s,
                )
                await self._conclude(job, sent, answer)

    async def _finish_attempt(self, job: Job, sent: _Sent) -> None:
        """See an attempt through that an earlier life of the process began."""
        with self._holding_place(job, sent.account):
            await self._look_for_voice(job, sent, Unknown("the process ended before the answer came"))

    @contextmanager
    def _holding_place(self, job: Job, account: str) -> Generator[None, None, None]:
        is_over = False  # when this client closes, the remote may still be at it
        try:
            yield
            is_over = True
        finally:
            self._running -= 1
            self._schedule.free_place(job, account)
            if self._floor is not None and is_over:
                cast("SharedStore", self._store).freed(job)
            if self._attempts_ended is not None:
                self._attempts_ended.set()
                self._attempts_ended = None
            self._turn()

    async def _begin(self, job: Job, account: str) -> _Sent | None:
        """Put the intent on record; `None` if the request must not leave after all."""
        sent = _Sent(account, self._clock(), datetime.now(UTC))
        advance(job, Step.SEND)
        if not any(earlier.account == (account or None) for earlier in job.history):
            job.first_sent_t = sent.t
        job.attempts += 1
        job.history += (Attempt(account or None, sent.at),)
        try:
            await self._store.sent(job)
        except StoreError as error:
            # Unless the intent is on record nothing may leave; a disk that is full now may have room in a minute.
            logger.error("nothing is sent to account %s: %s", account or "(only)", error)  # noqa: TRY400 - one line
            end_attempt(job, datetime.now(UTC), "not_sent", str(error))
            self._withdraw(job)
            gate_t = self._schedule.back_off(account, self._clock())
            self._announce_lane("gate_shut", account, wait_s=gate_t - self._clock(), reason=str(error))
            self._requeue(job)
            return None
        if job.cancelling is not None or job.is_settled:
            end_attempt(job, datetime.now(UTC), "not_sent", "cancelled before it left")
            self._withdraw(job)
            self._settle(job, cancelled(job, "it was cancelled before its request left"))
            return None
        if self._is_closing:
            end_attempt(job, datetime.now(UTC), "not_sent", "the client was closed before it left")
            self._withdraw(job)
            self._requeue(job)
            return None
        self._tell(job, "sent")
        return sent

    async def _conclude(self, job: Job, sent: _Sent, answer: Answer) -> None:
        verdict = interpret(answer)
        if not isinstance(verdict, NotSent):
            job.not_sent_since_t = None
        if isinstance(verdict, Done):
            voice = _replies.read_voice(verdict.payload)
            if voice is not None:
                # The next clone leaves first; whoever waits for this one has waited a minute already.
                self._schedule.free_place(job, sent.account)
                self._turn()
                self._pace.note(self._clock() - sent.t)
                end_attempt(job, datetime.now(UTC), "cloned", status_code=verdict.status_code)
                await self._got_voice(job, sent.account, voice.on(sent.account or None))
                return
            verdict = Unknown("the answer has no voice_id", verdict.status_code)
        match verdict:
            case Unknown():
                if verdict.retry_after_s:
                    self._pause(sent.account, verdict.retry_after_s)
                await self._look_for_voice(job, sent, verdict)
            case Refused() if verdict.scope is Scope.REQUEST and job.absences:
                # What refuses a clone that went again may be the voice of the first: say, where names are unique.
                doubt = Unknown(verdict.detail, verdict.status_code, verdict.code, if_absent=verdict, resends=0)
                await self._look_for_voice(job, sent, doubt)
            case NotSent():
                end_attempt(job, datetime.now(UTC), "not_sent", verdict.detail)
                self._withdraw(job)
                self._wait_for_remote(job, sent.account, _replies.error_from(verdict))
            case Refused():  # pragma: no branch - there are no others
                pace = verdict.scope is Scope.PACE
                end_attempt(
                    job, datetime.now(UTC), "not_accepted" if pace else "refused", verdict.detail, verdict.status_code
                )
                self._apply_refusal(job, sent.account, verdict)

    def _withdraw(self, job: Job) -> None:
        """The request never left, so it does not count."""
        job.attempts -= 1

    async def _got_voice(self, job: Job, account: str, voice: VoiceInfo) -> None:
        self._witness.claim(account, voice)
        if self._schedule.succeeded(account):
            self._announce_lane("limit", account, limit=self._schedule.lanes[account].limit)
            self._store.limited(account, self._schedule.lanes[account].limit)
        if job.cancelling == "delete":
            await self._delete_unwanted(job, account, voice)
        elif job.is_settled:
            # Its deadline passed, or the client is closing: nobody waits, but the voice is there, and was paid for.
            job.surplus += (voice,)
            logger.warning("voice %s of job %s turned up after the job had ended", voice.voice_id, job.id)
            self._tell(job, "late_voice", voice_id=voice.voice_id)
            self._store.changed(job)
        else:
            self._settle(job, voice)

    async def _delete_unwanted(self, job: Job, account: str, voice: VoiceInfo) -> None:
        try:
            await self.delete(voice.voice_id, account)
        except ApiError as error:
            job.surplus += (voice,)
            message = f"it was cancelled, but its voice {voice.voice_id} could not be deleted: {error}"
            self._settle(job, cancelled(job, message, voice_may_exist=True))
        else:
            self._settle(job, cancelled(job, "it was cancelled, and its voice was deleted"))

    async def delete(self, voice_id: str, account: str | None) -> None:
        """Delete a voice, and note that its account has a slot again."""
        await self._transport.ask(
            lambda generation: _endpoints.delete_voice(generation, voice_id, account or None), needs_json=False
        )
        self.reopen(account, only_slots=True)

    # --- refusals ----------------------------------------------------------------------------------------------------

    def _apply_refusal(self, job: Job, account: str, refused: Refused) -> None:
        """Nothing was made: act on whose refusal it is, then let the job go on, or end it."""
        job.not_sent_since_t = None
        match refused.scope:
            case Scope.PACE:
                self._slow_down(job, account, refused)
            case Scope.ACCOUNT | Scope.SLOTS:
                # First back among the waiting, so that closing the lane finds it there.
                self._requeue(job)
                self._close_lane(account, refused)
            case Scope.TOKEN:
                if job.state in OCCUPYING_STATES:
                    # Back among the waiting, all of which end, or are left to the store.
                    self._requeue(job)
                self._stop_everything(refused)
            case Scope.REQUEST:  # pragma: no branch - there are no others
                if self._can_upload_again(job, account, refused):
                    self._requeue(job)
                elif not job.is_settled:
                    self._settle(job, refusal(job, refused))

    def _slow_down(self, job: Job, account: str, refused: Refused) -> None:
        now_t = self._clock()
        gate_t = self._schedule.slow_down(account, refused.retry_after_s, now_t)
        wait_s = gate_t - now_t
        self._announce_lane("gate_shut", account, wait_s=wait_s, limit=self._schedule.lanes[account].limit)
        self._store.pause(account, datetime.now(UTC) + timedelta(seconds=wait_s))
        self._store.limited(account, self._schedule.lanes[account].limit)
        is_wanted = not job.is_settled and job.cancelling is None
        if is_wanted and job.deadline_t is not None and gate_t > job.deadline_t and not self._can_move(job):
            message = f"the remote asks for {wait_s:.0f} s of patience, which is more than its deadline leaves"
            self._settle(job, out_of_time(job, "deadline_s", message, retry_after_s=wait_s))
            return
        self._requeue(job)
        if wait_s > LONG_WAIT_S:
            for staged in self._schedule.movable(account, now_t):
                self._unstage(staged)

    def _pause(self, account: str, wait_s: float) -> None:
        """Send nothing to this account for a while: a failing remote asks for patience."""
        self._schedule.pause(account, self._clock() + wait_s)
        self._announce_lane("gate_shut", account, wait_s=wait_s)
        self._store.pause(account, datetime.now(UTC) + timedelta(seconds=wait_s))

    def _can_move(self, job: Job) -> bool:
        if self._floor is not None:
            return self._floor.can_move(job)
        now_t = self._clock()
        lanes = self._schedule.lanes.values()
        return job.pinned is None and any(lane.serves_pool and lane.is_open(now_t) for lane in lanes)

    def _can_upload_again(self, job: Job, account: str, refused: Refused) -> bool:
        """Whether the remote may merely have lost its samples, which are uploaded once more then."""
        says_so = refused.code == STALE_FILE_CODE or (
            refused.status_code in {400, 404} and "file" in refused.detail.lower()
        )
        was_sent = job.state is JobState.SENT  # a refused upload is no word on samples that are there
        if not says_so or not was_sent or job.uploads_forgotten or not job.request.samples:
            return False
        job.uploads_forgotten = True
        self.uploads.forget(job.files, account)
        return True

    def _requeue(self, job: Job) -> None:
        """Back among the waiting, in its old order, unless somebody wants it to end."""
        if job.is_settled or job.state is JobState.QUEUED:
            return
        if job.cancelling is not None:
            self._settle(job, cancelled(job, "it was cancelled; no voice was made"))
        elif self._is_closing and not self._store.is_durable:
            self._settle(job, cancelled(job, "the client was closed; no voice was made"))
        else:
            advance(job, Step.REQUEUE)
            if self._floor is not None:
                self._floor.give_back(job)
            else:
                job.account = job.pinned
                self._schedule.add(job)
                self._store.changed(job)
            self._tell(job, "queued")
            if self._is_closing and self._floor is not None:
                self._floor.leave_all()
            elif self._is_closing and not job.is_settled:
                self._end_or_leave(job, cancelled(job, CLOSED_EARLY))

    def _wait_for_remote(self, job: Job, account: str, error: ApiError) -> None:
        """It cannot be reached: go again after a little, for as long as that has a point."""
        now_t = self._clock()
        since_t = now_t if job.not_sent_since_t is None else job.not_sent_since_t
        job.not_sent_since_t = since_t
        gate_t = self._schedule.back_off(account, now_t)
        self._announce_lane("gate_shut", account, wait_s=gate_t - now_t, reason=error.message)
        if not job.is_settled and now_t - since_t >= self._settings.unreachable_after_s:
            self._settle(job, refusal(job, _replies.refused_from(error), safe_to_retry=True))
        else:
            self._requeue(job)

    def _stop_everything(self, refused: Refused) -> None:
        """401 or 402: every call would be refused, so nothing that waits is sent, and all who wait are told."""
        for job in [job for job in self._jobs.values() if job.state not in OCCUPYING_STATES]:
            self._end_or_leave(job, refusal(job, refused))
        if self._floor is not None:
            self._floor.was_refused(refused)

    # --- in doubt ----------------------------------------------------------------------------------------------------

    async def _look_for_voice(self, job: Job, sent: _Sent, unknown: Unknown) -> None:
        """The answer was lost: find the voice, or prove that there is none, or say that nobody can tell."""
        if not job.is_settled and job.state is JobState.SENT:
            advance(job, Step.LOSE)
            self._store.changed(job)
            self._tell(job, "in_doubt", reason=unknown.detail, status_code=unknown.status_code)
        if self._floor is not None:
            await self._floor.refresh_ledger(sent.account)
        # A voice of an earlier attempt here is the job's as well, should that one have been slower than all patience.
        earlier_s = 0.0 if job.first_sent_t is None else max(0.0, sent.t - job.first_sent_t)
        evidence = self._witness.evidence(
            sent.account, job.request.voice_name, sent.t, sent.at, self._settings.settle_after_s, earlier_s
        )
        async with aclosing(self._witness.find(sent.account, evidence)) as states:
            async for state in states:
                match state:
                    case Looking():
                        self._tell(job, "looked", looks=state.evidence.looks)
                    case Found():
                        await self._adopt(job, sent, state, unknown)
                    case Absent():
                        end_attempt(job, datetime.now(UTC), "absent", unknown.detail, unknown.status_code)
                        self._was_absent(job, unknown)
                    case Unclear():  # pragma: no branch - there are no others
                        end_attempt(job, datetime.now(UTC), "unknown", unknown.detail, unknown.status_code)
                        message = f"{unknown.detail}; and the voices cannot be listed: {state.reason}"
                        self._settle(job, unknown_outcome(job, message, unknown))
                        await anyio.sleep_until(evidence.settles_t)

    async def _adopt(self, job: Job, sent: _Sent, found: Found, unknown: Unknown) -> None:
        end_attempt(job, datetime.now(UTC), "adopted", unknown.detail, unknown.status_code)
        if found.others:
            for other in found.others:
                self._witness.claim(sent.account, other)
            job.surplus += found.others
            ids = [voice.voice_id for voice in found.others]
            logger.warning("job %s: %d further voices fit it; they were left alone: %s", job.id, len(ids), ids)
            self._tell(job, "surplus", voice_ids=ids)
        await self._got_voice(job, sent.account, found.voice)

    def _was_absent(self, job: Job, unknown: Unknown) -> None:
        job.absences += 1
        most = self._settings.max_resends if unknown.resends is None else unknown.resends
        if job.is_settled or job.absences <= most:
            self._requeue(job)
            return
        refused = unknown.if_absent or Refused(
            ServerError,
            Scope.PACE,
            f"{unknown.detail}; {job.attempts} attempts are proven to have made nothing",
            unknown.status_code,
            unknown.code,
        )
        self._settle(job, refusal(job, refused))

    # --- endings -----------------------------------------------------------------------------------------------------

    def cancel(self, job: Job, voice: CancelChoice) -> None:
        """End a job that was not sent; else remember that it is unwanted until the truth is known."""
        if self._floor is not None:
            # It may be a copy that was looked up.
            job = self._jobs.get(job.id, job)
        if job.is_settled:
            return
        if self._floor is not None and self._floor.cancel_elsewhere(job, voice):
            return
        if job.state in OCCUPYING_STATES:
            job.cancelling = voice
            return
        self._settle(job, cancelled(job, "it was cancelled before its request left"))
        # Left to the task of the clocks: this may be called from where no task can be started, as in a signal handler.
        self._wake_by(self._clock())

    def _settle(self, job: Job, outcome: Outcome) -> None:
        """The only way to an ending; the second call for a job changes nothing."""
        if job.is_settled:
            return
        was = job.state
        advance(job, ending_of(outcome))
        if was not in OCCUPYING_STATES:
            self._schedule.remove(job, was)
        self._note_ending(job)
        self._dismiss(job)
        self._store.settled(job, outcome, lambda: self._announce_ending(job, outcome))

    def _note_ending(self, job: Job) -> None:
        self._settled += 1
        job.settled_seq = self._settled
        self._counts[job.state] += 1

    def _dismiss(self, job: Job) -> None:
        """This process has no more to do for it."""
        del self._jobs[job.id]
        if self._floor is not None:
            self._floor.gone(job)
        for inspected in self._held.pop(job.id, ()):
            self._book.release(inspected)

    def _announce_ending(self, job: Job, outcome: Outcome) -> None:
        job.outcome = outcome
        if job.key is not None and self._store.is_durable:
            # The store knows it from now on.
            self._keys.pop(job.key, None)
        elif job.key is not None:
            forget_t = self._clock() + self._settings.keep_s
            heapq.heappush(self._forgettable, (forget_t, job.seq, job.key))
            self._wake_by(forget_t)
        self._tell_ending(job, outcome)
        _call_watchers(job)

    def _tell_ending(self, job: Job, outcome: Outcome) -> None:
        self._tell(job, job.state.value, **told_of(outcome))

    # --- what is told ------------------------------------------------------------------------------------------------

    def _tell(self, job: Job, kind: str, **detail: Any) -> None:
        """One event, and one line in the log; neither is made if nobody listens."""
        account = job.account or None
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("job %s %s account=%s %s", job.id, kind, account, detail or "")
        if self.hub.has_listeners:
            self.hub.publish(Event(kind, datetime.now(UTC), job.id, job.request.voice_name, account, detail))

    def _announce_lane(self, kind: str, account: str, **detail: Any) -> None:
        logger.info("account %s %s %s", account or "(only)", kind, detail or "")
        if self.hub.has_listeners:
            self.hub.publish(Event(kind, datetime.now(UTC), account=account or None, detail=detail))

    # --- pictures ----------------------------------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """Return a picture of the queue as it is now."""
        now_t = self._clock()
        elsewhere = () if self._floor is None else self._floor.elsewhere.values()
        return Statistics(
            jobs=count_states(self._counts, [*self._jobs.values(), *elsewhere]),
            pooled=len(self._schedule.pool),
            lanes=tuple(picture_of_lane(lane, now_t) for lane in self._schedule.lanes.values()),
            uploads=self.uploads.count,
            generation=self._transport.generation.name,
            mean_clone_s=self._pace.mean_clone_s,
        )

    def position(self, job: Job) -> int | None:
        """Count the jobs that go before this one."""
        return position_of(job, self._jobs.values())

    def eta_s(self, job: Job) -> float | None:
        """Estimate the seconds until this job will have ended."""
        return 0.0 if job.is_settled else self._backlog_s((self.position(job) or 0) + 1)

    def _backlog_s(self, count: int) -> float | None:
        return self._pace.backlog_s(count, self._schedule.lanes.values())

    def announce_generation(self, generation: str) -> None:
        """Tell that the client went on with another generation of endpoints."""
        if self.hub.has_listeners:
            self.hub.publish(Event("generation", datetime.now(UTC), detail={"generation": generation}))


def _same_or_error(known: Job, item: Checked) -> Job:
    if known.fingerprints or item.fingerprints:
        # A store keeps no content, but what it was.
        is_same = digest_of(known.request, known.fingerprints) == digest_of(item.request, item.fingerprints)
    else:
        is_same = known.request == item.request
    if is_same:
        return known
    raise RequestInvalid(
        [Fault("key", f"{known.key!r} belongs to another request", "use a new key, or submit the same request again")]
    )


def _call_watchers(job: Job) -> None:
    watchers, job.watchers = job.watchers or (), None
    for watcher in watchers:
        watcher()
