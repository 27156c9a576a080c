"""
Which jobs there are, by id and by key, and how each ends: the one place that settles, and that tells of it.

Every ending goes through `Registry.settle`, once. A job that cannot go on in this process is *left* to a store that
keeps it: its waiters here are told, and the store goes on.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import anyio

from ._clocks import Clocks
from ._errors import CloneError, Fault, QueueClosed, RequestInvalid
from ._events import NOT_OURS, EventHub
from ._floor import Floor
from ._intake import Checked
from ._jobs import OCCUPYING_STATES, CancelChoice, Event, Job, JobState, Outcome, Step, advance, ending_of
from ._outcomes import cancelled, out_of_time, refusal, told_of, unknown_outcome
from ._replies import Refused
from ._samples import Inspected, SampleBook
from ._schedule import Schedule
from .stores import JobStore
from .stores.codec import digest_of

logger = logging.getLogger("useapi_voice.events")
"""Of its own, so that whoever shows events can do without their lines, and with all else that is logged."""

_OUT_OF_ORDER: Final = frozenset({"account_out", "slots_full"})
CLOSED_EARLY: Final = "the client was closed before its turn came; the store keeps it for the next client"


class Registry:
    """
    The jobs of this process.

    Args:
        schedule: Where they wait.
        store: Keeps them.
        book: Holds copies of their samples.
        clocks: Ring when their time is up.
        keep_s: Seconds for which a job that has ended is found by its key, where the store does not keep it.
    """

    def __init__(self, schedule: Schedule, store: JobStore, book: SampleBook, clocks: Clocks, keep_s: float) -> None:
        self.hub = EventHub()
        self.floor = Floor(schedule, store)
        self.jobs: dict[str, Job] = {}
        """Those that this process works on, by id."""
        self.keys: dict[str, Job] = {}
        """Those that are known by key; ended ones too, where the store does not keep them."""
        self.unkept: dict[str, anyio.Event] = {}
        """Keys of jobs that the store has not accepted yet; the event is set when it has, or has not."""
        self.counts: Counter[JobState] = Counter()
        """Jobs that have ended since the client was opened, by state."""
        self.is_closing = False
        self._schedule = schedule
        self._store = store
        self._book = book
        self._clocks = clocks
        self._keep_s = keep_s
        self._held: dict[str, tuple[Inspected, ...]] = {}
        self._settled = 0

    # --- among the waiting -------------------------------------------------------------------------------------------

    def enrol(self, job: Job, held: tuple[Inspected, ...] = ()) -> None:
        """Take an accepted job in, to wait here; `held` are samples that must live as long as it does."""
        if held:
            self._held[job.id] = held
        self.jobs[job.id] = job
        self._schedule.add(job)
        self.watch_clocks(job)
        self.tell(job, "queued")

    def resume(self, job: Job) -> None:
        """Take a job in whose request has left already."""
        self.jobs[job.id] = job
        self.remember_key(job)
        self.set_clocks(job)
        self.watch_clocks(job)

    def remember_key(self, job: Job) -> None:
        """Know this job by its key, if it has one."""
        if job.key is not None:
            self.keys[job.key] = job

    def set_clocks(self, job: Job) -> None:
        """Translate the times that a store keeps into the loop's."""
        now_t, now_at = self._clocks.now(), datetime.now(UTC)
        if job.queue_deadline_at is not None:
            job.queue_deadline_t = now_t + (job.queue_deadline_at - now_at).total_seconds()
        if job.deadline_at is not None:
            job.deadline_t = now_t + (job.deadline_at - now_at).total_seconds()

    def watch_clocks(self, job: Job) -> None:
        """End the job when its time is up."""
        for clock_t, clock in ((job.queue_deadline_t, "queue_timeout_s"), (job.deadline_t, "deadline_s")):
            if clock_t is not None:
                self._clocks.ring_at(clock_t, partial(self._expire, job, clock))

    def _expire(self, job: Job, clock: str) -> None:
        if not job.is_settled and (clock == "deadline_s" or not job.was_sent):
            self.settle(job, out_of_time(job, clock))

    def unstage(self, job: Job) -> None:
        """Put a job back whose samples were up, or going up."""
        advance(job, Step.UNSTAGE)
        self.floor.unstage(job)

    def requeue(self, job: Job) -> None:
        """Put a sent job back among the waiting, in its old order, unless somebody wants it to end."""
        if job.is_settled or job.state is JobState.QUEUED:
            return
        if job.cancelling is not None:
            self.settle(job, cancelled(job, "it was cancelled; no voice was made"))
            return
        if self.is_closing and not self._store.is_durable:
            self.settle(job, cancelled(job, "the client was closed; no voice was made"))
            return
        advance(job, Step.REQUEUE)
        self.floor.put_back(job)
        self.tell(job, "queued")
        if self.is_closing:
            self.floor.leave_all()
            if job.id in self.jobs and not job.is_settled:
                self.end_or_leave(job, cancelled(job, CLOSED_EARLY))

    # --- endings -----------------------------------------------------------------------------------------------------

    def cancel(self, job: Job, voice: CancelChoice) -> None:
        """End a job that was not sent; else remember that it is unwanted until the truth is known."""
        if job.is_settled:
            return
        if job.id not in self.jobs:
            if not self.floor.cancel_elsewhere(job, voice):
                raise QueueClosed(NOT_OURS)
            return
        if job.state in OCCUPYING_STATES:
            job.cancelling = voice
            return
        self.settle(job, cancelled(job, "it was cancelled before its request left"))
        # What can start now is left to the task of the clocks: this may be called from where no task can be started.
        self._clocks.wake_by(self._clocks.now())

    def refuse_waiting(self, refused: Refused) -> None:
        """401 or 402: every call would be refused, so nothing that waits is sent, and all who wait are told."""
        for job in [job for job in self.jobs.values() if job.state not in OCCUPYING_STATES]:
            self.end_or_leave(job, refusal(job, refused))
        self.floor.was_refused(refused)

    def refuse_orphans(self) -> None:
        """End the jobs that no account can serve."""
        for job, refused in self.floor.orphans():
            self.settle(job, refusal(job, refused))

    def stop_taking(self) -> None:
        """The client closes: what was not sent ends here, or is left to the store."""
        self.is_closing = True
        for job in [job for job in self.jobs.values() if job.state not in OCCUPYING_STATES]:
            kept = "; the store keeps it for the next client" if self._store.is_durable else ""
            self.end_or_leave(job, cancelled(job, f"the client was closed before its turn came{kept}"))
        self.floor.leave_all()

    def abandon(self) -> None:
        """The client is closed: what is still in progress at the remote, nobody will read."""
        advice = "the next client of this store will look for it" if self._store.is_durable else "look for it yourself"
        for job in list(self.jobs.values()):
            message = f"the client was closed while its clone was in progress: a voice may exist; {advice}"
            self.end_or_leave(job, unknown_outcome(job, message))

    def end_or_leave(self, job: Job, outcome: CloneError) -> None:
        """End a job that cannot go on in this process; a durable store keeps it as it is, for another."""
        if not self._store.is_durable:
            self.settle(job, outcome)
            return
        was_sent = job.state in OCCUPYING_STATES
        job.outcome = outcome
        if not was_sent:
            self._schedule.remove(job, job.state)
        self._dismiss(job)
        if not was_sent:
            self.floor.release(job)
        self.forget_key(job)
        self.tell(job, "left", **told_of(outcome))
        job.call_watchers()

    def settle(self, job: Job, outcome: Outcome) -> None:
        """The only way to an ending; the second call for a job changes nothing."""
        if job.is_settled:
            return
        was = job.state
        advance(job, ending_of(outcome))
        if was not in OCCUPYING_STATES:
            self._schedule.remove(job, was)
        self.note_ending(job)
        self._dismiss(job)
        self._store.settled(job, outcome, lambda: self._announce_ending(job, outcome))

    def note_ending(self, job: Job) -> None:
        """Count it, and give it its number in the order of endings."""
        self._settled += 1
        job.settled_seq = self._settled
        self.counts[job.state] += 1

    def _dismiss(self, job: Job) -> None:
        """This process has no more to do for it."""
        del self.jobs[job.id]
        self.floor.gone(job)
        for inspected in self._held.pop(job.id, ()):
            self._book.release(inspected)

    def _announce_ending(self, job: Job, outcome: Outcome) -> None:
        job.outcome = outcome
        if self._store.is_durable:
            # The store knows it from now on.
            self.forget_key(job)
        elif job.key is not None:
            self._clocks.ring_at(self._clocks.now() + self._keep_s, partial(self.forget_key, job))
        self.tell_ending(job, outcome)
        job.call_watchers()

    async def wait_for_ending(self, job: Job) -> None:
        """Wait until the ending of a settled job is on record, and told."""
        if job.outcome is None:
            announced = anyio.Event()
            job.watch(announced.set)
            await announced.wait()

    def forget_key(self, job: Job) -> bool:
        """Know the job by its key no longer; return whether it was."""
        if job.key is None or self.keys.get(job.key) is not job:
            return False
        del self.keys[job.key]
        return True

    # --- what is told ------------------------------------------------------------------------------------------------

    def tell_ending(self, job: Job, outcome: Outcome) -> None:
        """Tell how a job ended; that there may be a voice of which nobody has the id is for an operator to know."""
        is_trouble = isinstance(outcome, CloneError) and outcome.voice_may_exist
        self.tell(job, job.state.value, logging.WARNING if is_trouble else logging.DEBUG, **told_of(outcome))

    def tell(self, job: Job, kind: str, level: int = logging.DEBUG, /, **detail: Any) -> None:
        """One event, and one line in the log; neither is made if nobody listens."""
        account = job.account or None
        if logger.isEnabledFor(level):
            logger.log(level, "job %s %s account=%s %s", job.id, kind, account, detail or "")
        if self.hub.has_listeners:
            self.hub.publish(Event(kind, datetime.now(UTC), job.id, job.request.voice_name, account, detail))

    def tell_of_lane(self, kind: str, account: str, **detail: Any) -> None:
        """The same of an account; that it takes nothing until somebody mends it is for an operator to know."""
        level = logging.WARNING if kind in _OUT_OF_ORDER else logging.INFO
        logger.log(level, "account %s %s %s", account or "(only)", kind, detail or "")
        if self.hub.has_listeners:
            self.hub.publish(Event(kind, datetime.now(UTC), account=account or None, detail=detail))

    def tell_of_client(self, kind: str, **detail: Any) -> None:
        """The same of the client."""
        if self.hub.has_listeners:
            self.hub.publish(Event(kind, datetime.now(UTC), detail=detail))


def same_or_error(known: Job, item: Checked) -> Job:
    """
    Return the job of a key that was submitted again.

    Raises:
        RequestInvalid: The request is another one.
    """
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
