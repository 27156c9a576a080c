"""
Where the queue meets a fleet: which jobs are here, which are elsewhere, and what passes between them.

A job of a shared store is *elsewhere* until the store has this process adopt it; its handle, if it was submitted or
looked up here, waits for news. An adopted job is worked on by the queue as one that is pinned to the account it was
claimed for, until it is settled or handed back. Only `CloneQueue` and its store talk to this room.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from ._errors import ApiError, AuthenticationError, CloneError, StoreError, SubscriptionError
from ._events import CloneJob
from ._jobs import CancelChoice, Job
from ._outcomes import cancelled, out_of_time, refusal
from ._replies import Refused
from ._schedule import ANY_ACCOUNT
from .stores import Gate, Ledger, SharedStore

if TYPE_CHECKING:
    from ._queue import CloneQueue

logger = logging.getLogger("useapi_voice")

DISCOVER_AGAIN_S: Final = 5.0
"""Between two rounds of asking which accounts there are."""
REFUSED_PAUSE_S: Final = 60.0
"""For how long a process whose token was refused takes no jobs: every call would be refused."""
LONG_WAIT_S: Final = 2.0
"""A job that was just claimed for an account goes back if nothing leaves there for longer than this."""
_OURS: Final = {"files", "queue_deadline_t", "deadline_t", "outcome", "watchers", "settled_seq", "first_sent_t"}
"""Fields of a job that are this process's own."""
_NOTES: Final = {"not_sent_since_t", "uploads_forgotten"}
"""Likewise, and kept while the job is elsewhere."""


class Floor:
    """
    What a shared store asks of a queue; see `stores.Desk`.

    Args:
        queue: The queue of this process.
        store: The fleet's.
    """

    def __init__(self, queue: CloneQueue, store: SharedStore) -> None:
        self._queue = queue
        self._store = store
        self.elsewhere: dict[str, Job] = {}
        """Jobs that have handles here, and that this process does not work on, by id."""
        self._watched: set[str] = set()
        """Ids of adopted jobs that have handles here."""
        self._pins: dict[str, str | None] = {}
        self._notes: dict[str, tuple[float | None, bool]] = {}
        self._refused_until_t = float("-inf")
        store.attach(self)

    # --- handles -----------------------------------------------------------------------------------------------------

    def expect(self, job: Job) -> Job:
        """Wait for news of a job on behalf of its handle; return the job that the news will come to."""
        here = self._queue._jobs.get(job.id)
        if here is not None:
            self._watched.add(job.id)
            return here
        return self.elsewhere.setdefault(job.id, job)

    def follow(self, job: Job) -> None:
        """Have a job that was merely listed hear of its end."""
        known = self.expect(job)
        if known is not job:
            known.watch(partial(_copy_ending, known, job))
        else:
            # It may have ended since it was looked up, and nobody would say so again.
            self._store.look_for(job.id)

    def leave_all(self) -> None:
        """This process closes: the fleet goes on with what it has, but nobody here will hear of it."""
        for job in list(self.elsewhere.values()):
            message = "the client was closed while the job was waiting; the fleet goes on with it"
            self._leave(job, cancelled(job, message))

    def was_refused(self, refused: Refused) -> None:
        """The token was: take nothing for a while, and tell those who wait; their jobs stay with the fleet."""
        self._refused_until_t = anyio.current_time() + REFUSED_PAUSE_S
        logger.error("the token was refused (%s): this process takes no jobs for a while", refused.detail)
        for job in list(self.elsewhere.values()):
            self._leave(job, refusal(job, refused))

    def _leave(self, job: Job, outcome: CloneError) -> None:
        del self.elsewhere[job.id]
        self._forget_key(job)
        job.outcome = outcome
        _call_watchers(job)

    def _forget_key(self, job: Job) -> None:
        if job.key is not None:
            self._queue._keys.pop(job.key, None)

    def waits_for(self) -> Sequence[str]:
        """Return the ids of the jobs that are elsewhere."""
        return list(self.elsewhere)

    def has_ended(self, job: Job) -> None:
        """Settle the handle of a job that ended elsewhere."""
        known = self.elsewhere.pop(job.id, None)
        if known is None or known.outcome is not None:
            return
        _take_facts(known, job)
        self._forget_key(known)
        self._queue._note_ending(known)
        known.outcome = job.outcome
        assert job.outcome is not None  # noqa: S101 - the store says that it has ended
        self._queue._tell_ending(known, job.outcome)
        _call_watchers(known)

    def was_forgotten(self, job_id: str) -> None:
        """Settle the handle of a job that is no longer there."""
        job = self.elsewhere.get(job_id)
        if job is not None:
            message = "the job was forgotten before anybody here learned how it ended"
            self._leave(job, cancelled(job, message, voice_may_exist=True))

    # --- work --------------------------------------------------------------------------------------------------------

    @property
    def is_taking(self) -> bool:
        """Whether this process takes jobs to work on."""
        is_open = not self._queue._is_closed and self._queue._tasks is not None
        return is_open and anyio.current_time() >= self._refused_until_t

    @property
    def waits_when_blocked(self) -> bool:
        """See `VoiceClient`."""
        return self._queue._settings.wait_when_blocked

    async def discover(self) -> Sequence[str]:
        """Return the accounts of this token that support audio, or `[""]`."""
        while True:
            try:
                accounts = await self._queue._roster.all()
            except (AuthenticationError, SubscriptionError) as error:
                logger.error("the accounts cannot be listed: %s", error)  # noqa: TRY400 - one line
                await anyio.sleep(REFUSED_PAUSE_S)
            except ApiError as error:
                logger.warning("the accounts cannot be listed: %s", error)
                await anyio.sleep(DISCOVER_AGAIN_S)
            else:
                return [known.account for known in accounts if known.support_audio is not False] or [ANY_ACCOUNT]

    def adopt(self, job: Job, account: str, *, sent_ago_s: float | None, ledger: Ledger | None) -> None:
        """Take a job on; see `stores.Desk`."""
        queue = self._queue
        job = self._bring_here(job)
        self._pins[job.id] = job.pinned
        job.pinned = job.account = account
        first = next((attempt for attempt in job.history if attempt.account == (account or None)), None)
        if first is None:
            job.first_sent_t = None
        else:
            # By the clocks of whoever sent it and of this host: no other is left.
            ago_s = (datetime.now(UTC) - first.sent_at).total_seconds()
            job.first_sent_t = anyio.current_time() - max(0.0, ago_s)
        if ledger is not None:
            queue._witness.replace(account, ledger)
        if sent_ago_s is not None:
            queue._resume_attempt(job, sent_ago_s)
            return
        queue._jobs[job.id] = job
        if self.gate_s(account) > LONG_WAIT_S:
            # The account was shut between the claim and now: others may serve the job, or must refuse it.
            self.give_back(job)
            return
        queue._schedule.add(job)
        queue._ring_for(job)
        queue._turn()

    def _bring_here(self, stored: Job) -> Job:
        """Return the job that handles here wait for, brought up to date, or the stored one where there are none."""
        known = self.elsewhere.pop(stored.id, None)
        if known is None:
            job = stored
        else:
            _take_facts(known, stored)
            known.queue_deadline_t, known.deadline_t = stored.queue_deadline_t, stored.deadline_t
            self._watched.add(known.id)
            job = known
        job.not_sent_since_t, job.uploads_forgotten = self._notes.pop(job.id, (None, False))
        return job

    def give_back(self, job: Job) -> None:
        """A queued job that is in no heap is anybody's again."""
        del self._queue._jobs[job.id]
        job.account = job.pinned = self._pins.pop(job.id, job.pinned)
        self._notes[job.id] = (job.not_sent_since_t, job.uploads_forgotten)
        if job.id in self._watched:
            self._watched.discard(job.id)
            self.elsewhere[job.id] = job
        self._store.handed_back(job)

    def give_back_waiting(self, account: str) -> None:
        """The jobs that wait for this account here are anybody's: it takes nothing now."""
        for job in list(self._queue._schedule.lane(account).waiting):
            self._queue._schedule.lane(account).waiting.discard(job)
            self.give_back(job)

    def release(self, job: Job) -> None:
        """A job that was adopted and not sent ended for its waiters here, but not for the fleet."""
        self._store.handed_back(job)

    def gone(self, job: Job) -> None:
        """This process has no more to do for it."""
        job.pinned = self._pins.pop(job.id, job.pinned)
        self._notes.pop(job.id, None)
        self._watched.discard(job.id)

    def can_move(self, job: Job) -> bool:
        """Whether another account might serve it."""
        lanes = [lane for lane in self._queue._schedule.lanes.values() if lane.serves_pool]
        return self._pins.get(job.id, job.pinned) is None and len(lanes) > 1

    def end(self, job: Job, why: str | Refused) -> None:
        """End a job that the store has claimed for that."""
        queue = self._queue
        job = self._bring_here(job)
        queue._jobs[job.id] = job
        queue._schedule.add(job)
        if isinstance(why, Refused):
            outcome: CloneError = refusal(job, why)
        elif why == "cancelled":
            outcome = cancelled(job, "it was cancelled before its request left")
        else:
            outcome = out_of_time(job, why)
        queue._settle(job, outcome)

    def cancel(self, job_id: str, voice: CancelChoice) -> None:
        """Cancel an adopted job."""
        job = self._queue._jobs.get(job_id)
        if job is not None:
            self._queue.cancel(job, voice)

    def cancel_elsewhere(self, job: Job, voice: CancelChoice) -> bool:
        """Ask the fleet to cancel a job that is elsewhere; return whether it is."""
        if job.id in self._queue._jobs:
            return False
        self._store.cancel(job, voice)
        return True

    async def prepare(self, job: Job, account: str) -> None:
        """Upload what it needs."""
        try:
            await self._queue.uploads.ensure(job.request.samples, account, job.fingerprints)
        except Exception as error:  # noqa: BLE001 - its own turn will meet the same, and say so
            logger.debug("job %s could not be prepared: %s", job.id, type(error).__name__)

    async def refresh_ledger(self, account: str) -> None:
        """Know what the fleet knows of an account's voices, as far as it can be asked."""
        try:
            self._queue._witness.replace(account, await self._store.ledger(account))
        except StoreError as error:
            logger.debug("account %s: the fleet's voices are not known: %s", account, error)

    # --- accounts ----------------------------------------------------------------------------------------------------

    def gate_s(self, account: str) -> float:
        """Return for how long this process sends nothing there."""
        lane = self._queue._schedule.lane(account)
        if lane.closed_by is not None:
            return float("inf")
        return max(0.0, lane.gate_t - anyio.current_time())

    def heed(self, account: str, gate: Gate) -> None:
        """Apply what the fleet knows of an account to its lane here."""
        queue, now_t = self._queue, anyio.current_time()
        lane = queue._schedule.lane(account)
        lane.serves_pool = gate.serves_pool
        lane.gate_t = max(lane.gate_t, now_t + gate.wait_s) if gate.wait_s > 0 else lane.gate_t
        limit = min(gate.limit, lane.cap)
        if limit != lane.limit:
            lane.limit, lane.successes = limit, 0
        if gate.refused is not None and lane.closed_by is None:
            queue._take_out(account, gate.refused, now_t + max(0.0, gate.look_s))
        elif gate.refused is None and lane.closed_by is not None:
            queue.reopen(account, is_told=True)
        queue._turn()

    def count(self) -> int:
        """Count the jobs that wait elsewhere for handles here."""
        return len(self.elsewhere)

    def handles(self) -> list[CloneJob]:
        """Return handles of the jobs that are elsewhere."""
        return [CloneJob(job, self._queue) for job in sorted(self.elsewhere.values())]


def _take_facts(known: Job, stored: Job) -> None:
    """Bring a job up to date."""
    for field in fields(Job):
        if field.name not in _OURS and field.name not in _NOTES:
            setattr(known, field.name, getattr(stored, field.name))


def _copy_ending(known: Job, other: Job) -> None:
    _take_facts(other, known)
    other.outcome = known.outcome
    _call_watchers(other)


def _call_watchers(job: Job) -> None:
    watchers, job.watchers = job.watchers or (), None
    for watcher in watchers:
        watcher()
