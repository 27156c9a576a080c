"""
Where the queue meets a fleet: which jobs are here, which are elsewhere, and what passes between them.

A job of a shared store is *elsewhere* until the store has this process adopt it; its handle, if it was submitted or
looked up here, waits for news. An adopted job is worked on by the queue as one that is pinned to the account it was
claimed for, until it is settled or put back. Only the queue and its store talk to this room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from typing import Final

import anyio

from ._attempts import Attempts
from ._errors import ApiError, AuthenticationError, CloneError, StoreError, SubscriptionError
from ._floor import Floor
from ._jobs import CancelChoice, Job, JobState
from ._lanes import Lanes
from ._outcomes import cancelled, out_of_time, refusal
from ._refusals import LONG_WAIT_S
from ._registry import Registry
from ._replies import Refused
from ._roster import Roster
from ._schedule import ANY_ACCOUNT, Schedule
from ._settings import Settings
from ._uploads import Uploads
from ._witness import Witness
from .stores import Gate, Ledger, SharedStore

logger = logging.getLogger("useapi_voice")

DISCOVER_AGAIN_S: Final = 5.0
"""Between two rounds of asking which accounts there are."""
REFUSED_PAUSE_S: Final = 60.0
"""For how long a process whose token was refused takes no jobs: every call would be refused."""
_OURS: Final = {"files", "queue_deadline_t", "deadline_t", "outcome", "watchers", "settled_seq", "first_sent_t"}
"""Fields of a job that are this process's own."""
_NOTES: Final = {"not_sent_since_t", "uploads_forgotten"}
"""Likewise, and kept while the job is elsewhere."""


class FleetFloor(Floor):
    """
    What a shared store asks of a queue (see `stores.Desk`), and what the queue does with jobs that it shares.

    Args:
        schedule: Of this queue.
        store: The fleet's.
        registry: Has the jobs that are here.
        lanes: Heed what the fleet knows of accounts.
        attempts: Go on with what another replica left in doubt.
        uploads: Send samples ahead.
        witness: Knows whose voices an account has.
        roster: Can be asked for the accounts, once for the whole fleet.
        settings: The queue's.
        is_open: Whether the queue takes jobs.
        turn: Starts all jobs that can be started now.
    """

    finds_accounts = False

    def __init__(
        self,
        schedule: Schedule,
        store: SharedStore,
        registry: Registry,
        lanes: Lanes,
        attempts: Attempts,
        uploads: Uploads,
        witness: Witness,
        roster: Roster,
        settings: Settings,
        *,
        is_open: Callable[[], bool],
        turn: Callable[[], None],
    ) -> None:
        super().__init__(schedule, store)
        self._fleet = store
        self._registry = registry
        self._lanes = lanes
        self._attempts = attempts
        self._uploads = uploads
        self._witness = witness
        self._roster = roster
        self._settings = settings
        # A third, so that what leaves just in time is done with before anybody looks for it in vain.
        self.late_after_s = min(settings.clone_timeout_s, settings.settle_after_s) / 3
        self._is_open = is_open
        self._turn = turn
        self._elsewhere: dict[str, Job] = {}
        self._watched: set[str] = set()
        """Ids of adopted jobs that have handles here."""
        self._pins: dict[str, str | None] = {}
        self._notes: dict[str, tuple[float | None, bool]] = {}
        self._refused_until_t = float("-inf")
        store.attach(self)

    # --- handles -----------------------------------------------------------------------------------------------------

    @property
    def elsewhere(self) -> Collection[Job]:
        """Jobs that have handles here, and that this process does not work on."""
        return self._elsewhere.values()

    def waits_for(self) -> Sequence[str]:
        """Return their ids."""
        return list(self._elsewhere)

    def expect(self, job: Job) -> Job:
        """Wait for news of a job on behalf of its handle; return the job that the news will come to."""
        here = self._registry.jobs.get(job.id)
        if here is not None:
            self._watched.add(job.id)
            return here
        return self._elsewhere.setdefault(job.id, job)

    def expect_no_more(self, job: Job) -> None:
        """The store did not take it after all."""
        self._elsewhere.pop(job.id, None)

    def follow(self, job: Job) -> bool:
        """Have a job that was merely listed hear of its end; return whether it will."""
        known = self.expect(job)
        if known is not job:
            known.watch(partial(_copy_ending, known, job))
        else:
            # It may have ended since it was looked up, and nobody would say so again.
            self._fleet.look_for(job.id)
        return True

    def has_ended(self, job: Job) -> None:
        """Settle the handle of a job that ended elsewhere."""
        known = self._elsewhere.pop(job.id, None)
        if known is None or known.outcome is not None:
            return
        _take_facts(known, job)
        self._registry.forget_key(known)
        self._registry.note_ending(known)
        known.outcome = job.outcome
        assert job.outcome is not None  # noqa: S101 - the store says that it has ended
        self._registry.tell_ending(known, job.outcome)
        known.call_watchers()

    def was_forgotten(self, job_id: str) -> None:
        """Settle the handle of a job that is no longer there."""
        job = self._elsewhere.get(job_id)
        if job is not None:
            message = "the job was forgotten before anybody here learned how it ended"
            self._leave(job, cancelled(job, message, voice_may_exist=True))

    def leave_all(self) -> None:
        """This process closes: the fleet goes on with what it has, but nobody here will hear of it."""
        for job in list(self._elsewhere.values()):
            message = "the client was closed while the job was waiting; the fleet goes on with it"
            self._leave(job, cancelled(job, message))

    def was_refused(self, refused: Refused) -> None:
        """The token was: take nothing for a while, and tell those who wait; their jobs stay with the fleet."""
        self._refused_until_t = anyio.current_time() + REFUSED_PAUSE_S
        logger.error("the token was refused (%s): this process takes no jobs for a while", refused.detail)
        for job in list(self._elsewhere.values()):
            self._leave(job, refusal(job, refused))

    def _leave(self, job: Job, outcome: CloneError) -> None:
        del self._elsewhere[job.id]
        self._registry.forget_key(job)
        job.outcome = outcome
        job.call_watchers()

    def cancel_elsewhere(self, job: Job, voice: CancelChoice) -> bool:
        """Ask the fleet to cancel a job that is elsewhere."""
        self._fleet.cancel(job, voice)
        return True

    # --- work --------------------------------------------------------------------------------------------------------

    @property
    def is_taking(self) -> bool:
        """Whether this process takes jobs to work on."""
        return self._is_open() and anyio.current_time() >= self._refused_until_t

    @property
    def waits_when_blocked(self) -> bool:
        """See `VoiceClient`."""
        return self._settings.wait_when_blocked

    def adopt(self, job: Job, account: str, *, sent_ago_s: float | None, ledger: Ledger | None) -> None:
        """Take a job on; see `stores.Desk`."""
        job = self._bring_here(job)
        self._pins[job.id] = job.pinned
        job.pinned = job.account = account
        job.first_sent_t = _first_sent_t(job, account, sent_ago_s)
        if ledger is not None:
            self._witness.replace(account, ledger)
        if sent_ago_s is not None:
            self._registry.resume(job)
            self._attempts.resume(job, sent_ago_s)
            return
        self._registry.jobs[job.id] = job
        if self.gate_s(account) > LONG_WAIT_S:
            # Shut between the claim and this: others may serve the job, or must refuse it, and here it would wait.
            self.put_back(job)
            return
        self._schedule.add(job)
        self._registry.watch_clocks(job)
        self._turn()

    def _bring_here(self, stored: Job) -> Job:
        """Return the job that handles here wait for, brought up to date, or the stored one where there are none."""
        known = self._elsewhere.pop(stored.id, None)
        if known is None:
            job = stored
        else:
            _take_facts(known, stored)
            known.queue_deadline_t, known.deadline_t = stored.queue_deadline_t, stored.deadline_t
            self._watched.add(known.id)
            job = known
        job.not_sent_since_t, job.uploads_forgotten = self._notes.pop(job.id, (None, False))
        return job

    def unstage(self, job: Job) -> None:
        """A job whose samples were up is anybody's again."""
        self._schedule.remove(job, JobState.READY)
        self.put_back(job)

    def put_back(self, job: Job) -> None:
        """A queued job that is in no heap is anybody's again."""
        del self._registry.jobs[job.id]
        job.account = job.pinned = self._pins.pop(job.id, job.pinned)
        self._notes[job.id] = (job.not_sent_since_t, job.uploads_forgotten)
        if job.id in self._watched:
            self._watched.discard(job.id)
            self._elsewhere[job.id] = job
        self._fleet.handed_back(job)

    def put_back_waiting(self, account: str) -> None:
        """The jobs that wait for this account here are anybody's: it takes nothing now."""
        waiting = self._schedule.lane(account).waiting
        for job in list(waiting):
            waiting.discard(job)
            self.put_back(job)

    def release(self, job: Job) -> None:
        """A job that was adopted and not sent ended for its waiters here, but not for the fleet."""
        self._fleet.handed_back(job)

    def gone(self, job: Job) -> None:
        """This process has no more to do for it."""
        job.pinned = self._pins.pop(job.id, job.pinned)
        self._notes.pop(job.id, None)
        self._watched.discard(job.id)

    def freed(self, job: Job) -> None:
        """The remote is done with its request."""
        self._fleet.freed(job)

    def end(self, job: Job, why: str | Refused) -> None:
        """End a job that the store has claimed for that."""
        job = self._bring_here(job)
        self._registry.jobs[job.id] = job
        self._schedule.add(job)
        if isinstance(why, Refused):
            outcome: CloneError = refusal(job, why)
        elif why == "cancelled":
            outcome = cancelled(job, "it was cancelled before its request left")
        else:
            outcome = out_of_time(job, why)
        self._registry.settle(job, outcome)

    def cancel(self, job_id: str, voice: CancelChoice) -> None:
        """Cancel an adopted job."""
        job = self._registry.jobs.get(job_id)
        if job is not None:
            self._registry.cancel(job, voice)

    async def prepare(self, job: Job, account: str) -> None:
        """Upload what it needs."""
        try:
            await self._uploads.ensure(job.request.samples, account, job.fingerprints)
        except Exception as error:  # noqa: BLE001 - its own turn will meet the same, and say so
            logger.debug("job %s could not be prepared: %s", job.id, type(error).__name__)

    async def refresh_ledger(self, account: str) -> None:
        """Know what the fleet knows of an account's voices, as far as it can be asked."""
        try:
            self._witness.replace(account, await self._fleet.ledger(account))
        except StoreError as error:
            logger.debug("account %s: the fleet's voices are not known: %s", account, error)

    # --- accounts ----------------------------------------------------------------------------------------------------

    async def discover(self) -> Sequence[str]:
        """Return the accounts of this token that support audio, or `[""]`."""
        while True:
            try:
                accounts = await self._roster.all()
            except (AuthenticationError, SubscriptionError) as error:
                logger.error("the accounts cannot be listed: %s", error)  # noqa: TRY400 - one line
                await anyio.sleep(REFUSED_PAUSE_S)
            except ApiError as error:
                logger.warning("the accounts cannot be listed: %s", error)
                await anyio.sleep(DISCOVER_AGAIN_S)
            else:
                return [known.account for known in accounts if known.support_audio is not False] or [ANY_ACCOUNT]

    def orphans(self) -> list[tuple[Job, Refused]]:
        """Return none: only the fleet knows whether an account is left that can serve a job."""
        return []

    def can_move(self, job: Job, now_t: float) -> bool:
        """Whether another account might serve it; whether one is open now, only the fleet knows."""
        del now_t
        lanes = [lane for lane in self._schedule.lanes.values() if lane.serves_pool]
        return self._pins.get(job.id, job.pinned) is None and len(lanes) > 1

    def gate_s(self, account: str) -> float:
        """Return for how long this process sends nothing there."""
        lane = self._schedule.lane(account)
        if lane.closed_by is not None:
            return float("inf")
        return max(0.0, lane.gate_t - anyio.current_time())

    def heed(self, account: str, gate: Gate) -> None:
        """Apply what the fleet knows of an account to its lane here."""
        now_t = anyio.current_time()
        lane = self._schedule.lane(account)
        lane.serves_pool = gate.serves_pool
        lane.gate_t = max(lane.gate_t, now_t + gate.wait_s) if gate.wait_s > 0 else lane.gate_t
        limit = min(gate.limit, lane.cap)
        if limit != lane.limit:
            lane.limit, lane.successes = limit, 0
        if gate.refused is not None and lane.closed_by is None:
            self._lanes.take_out(account, gate.refused, now_t + max(0.0, gate.look_s))
        elif gate.refused is None and lane.closed_by is not None:
            self._lanes.reopen(account, is_told=True)
        self._turn()


def _first_sent_t(job: Job, account: str, sent_ago_s: float | None) -> float | None:
    """When its first request left for this account; what its last one does not tell, by the clocks of its senders."""
    first = next((attempt for attempt in job.history if attempt.account == (account or None)), None)
    if first is None:
        return None
    if sent_ago_s is None:
        ago_s = (datetime.now(UTC) - first.sent_at).total_seconds()
    else:
        ago_s = sent_ago_s + (job.history[-1].sent_at - first.sent_at).total_seconds()
    return anyio.current_time() - max(0.0, ago_s)


def _take_facts(known: Job, stored: Job) -> None:
    """Bring a job up to date."""
    for field in fields(Job):
        if field.name not in _OURS and field.name not in _NOTES:
            setattr(known, field.name, getattr(stored, field.name))


def _copy_ending(known: Job, other: Job) -> None:
    _take_facts(other, known)
    other.outcome = known.outcome
    other.call_watchers()
