"""
One clone request, from the intent on record to the truth about it; its place is occupied for as long as that takes.

    begin ─▶ sent ─▶ answer ─▶ voice ─▶ settled
                       │ └───▶ refused, not sent ─▶ _refusals
                       └─────▶ lost ─▶ look ─▶ adopted, absent (it may go again), or nobody can tell

A place belongs to the task of the attempt, not to the job: a job may end early (its deadline, its owner), but its place
is free only when the remote is known to be done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import anyio

from . import _endpoints, _replies
from ._clocks import Clocks
from ._errors import ApiError, ServerError, StoreError
from ._jobs import Attempt, Job, JobState, Step, advance
from ._lanes import Lanes
from ._models import VoiceInfo
from ._outcomes import cancelled, end_attempt, refusal, unknown_outcome
from ._pictures import Pace
from ._recovery import Absent, Found, Looking, Unclear
from ._refusals import Refusals
from ._registry import Registry
from ._replies import Answer, Done, NotSent, Refused, Scope, Unknown, interpret
from ._schedule import ANY_ACCOUNT, Schedule
from ._settings import Settings
from ._transport import HeldBack, Transport
from ._witness import Witness
from .stores import JobStore

logger = logging.getLogger("useapi_voice")


@dataclass(slots=True)
class _Sent:
    """An attempt whose request has left: where to, and when, by the loop's clock and by this machine's."""

    account: str
    t: float
    """Moves on until the request has really left: from then on the remote has `settle_after_s`."""
    at: datetime


class Attempts:
    """
    Sends clone requests, and sees each through.

    Args:
        schedule: Frees places.
        registry: Settles jobs.
        lanes: Learn how their accounts fare.
        refusals: Act where nothing was made.
        witness: Looks for voices whose answers were lost.
        transport: Sends.
        store: Has the intent on record before a request leaves.
        clocks: The time.
        settings: The queue's.
        start: Starts a task of the queue's: its work, and its name.
        turn: Starts all jobs that can be started now.
    """

    def __init__(
        self,
        schedule: Schedule,
        registry: Registry,
        lanes: Lanes,
        refusals: Refusals,
        witness: Witness,
        transport: Transport,
        store: JobStore,
        clocks: Clocks,
        settings: Settings,
        *,
        start: Callable[..., None],
        turn: Callable[[], None],
    ) -> None:
        self.pace = Pace()
        self._schedule = schedule
        self._registry = registry
        self._lanes = lanes
        self._refusals = refusals
        self._witness = witness
        self._transport = transport
        self._store = store
        self._clocks = clocks
        self._settings = settings
        self._start = start
        self._turn = turn
        self._running = 0
        self._ended: anyio.Event | None = None

    # --- tasks -------------------------------------------------------------------------------------------------------

    def send(self, job: Job, account: str) -> None:
        """Start an attempt; the schedule has given it a place."""
        self._running += 1
        self._start(self._run, job, account, name=f"useapi_voice clone {job.id}")

    def resume(self, job: Job, ago_s: float | None = None) -> None:
        """
        Go on with an attempt that an earlier life of the process began, or another replica, so many seconds ago.

        Without `ago_s` only the wall clock tells, as no other outlives a process. It may have been set meanwhile: it
        says from when on a voice may be the job's, but that the remote is done is counted from now.
        """
        account, sent_at, now_t = job.account or ANY_ACCOUNT, job.history[-1].sent_at, self._clocks.now()
        if ago_s is None:
            job.first_sent_t = now_t - max(0.0, (datetime.now(UTC) - sent_at).total_seconds())
        sent = _Sent(account, now_t - (ago_s or 0.0), sent_at)
        self._schedule.occupy(job, account)
        self._running += 1
        self._start(self._see_through, job, sent, name=f"useapi_voice clone {job.id}")

    async def wait_for_all(self) -> None:
        """Wait until nothing is in progress or in doubt."""
        while self._running:
            if self._ended is None:
                # One for all who wait, be it in `drain` or in closing: each is told.
                self._ended = anyio.Event()
            await self._ended.wait()

    async def _run(self, job: Job, account: str) -> None:
        with self._holding_place(job, account):
            await self._witness.take_baseline(account)
            if job.state is not JobState.READY or job.is_settled:
                return
            if not self._schedule.lanes[account].is_open(self._clocks.now()):
                # The account was closed meanwhile, by a job that was still uploading.
                self._registry.unstage(job)
                self._registry.refuse_orphans()
                return
            sent = await self._begin(job, account)
            if sent is not None:
                answer = await self._transport.route(
                    lambda generation: _endpoints.clone_voice(generation, job.request, job.files, account or None),
                    read_timeout_s=self._settings.clone_timeout_s,
                    on_left=partial(self._leaves, sent, sent.t),
                )
                await self._conclude(job, sent, answer)

    def _leaves(self, sent: _Sent, recorded_t: float) -> None:
        """The request begins to leave; it must not if this process slept since its intent was put on record."""
        sent.t = self._clocks.now()
        if sent.t - recorded_t > self._registry.floor.late_after_s:
            raise HeldBack("too long after it was recorded: its place may be another's by now")

    async def _see_through(self, job: Job, sent: _Sent) -> None:
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
            is_news = self._schedule.free_place(job, account)
            if is_over:
                self._registry.floor.freed(job)
            if self._ended is not None:
                self._ended.set()
                self._ended = None
            if is_news:  # else the next clone has left
                self._turn()

    # --- sending -----------------------------------------------------------------------------------------------------

    async def _begin(self, job: Job, account: str) -> _Sent | None:
        """Put the intent on record; `None` if the request must not leave after all."""
        sent = _Sent(account, self._clocks.now(), datetime.now(UTC))
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
            self._withdraw(job, str(error))
            self._lanes.back_off(account, str(error))
            self._registry.requeue(job)
            return None
        if job.cancelling is not None or job.is_settled:
            self._withdraw(job, "cancelled before it left")
            self._registry.settle(job, cancelled(job, "it was cancelled before its request left"))
            return None
        if self._registry.is_closing:
            self._withdraw(job, "the client was closed before it left")
            self._registry.requeue(job)
            return None
        self._registry.tell(job, "sent")
        return sent

    def _withdraw(self, job: Job, why: str) -> None:
        """The request never left, so it does not count."""
        end_attempt(job, datetime.now(UTC), "not_sent", why)
        job.attempts -= 1

    # --- the answer --------------------------------------------------------------------------------------------------

    async def _conclude(self, job: Job, sent: _Sent, answer: Answer) -> None:
        verdict = interpret(answer)
        if not isinstance(verdict, NotSent):
            job.not_sent_since_t = None
        if isinstance(verdict, Done):
            voice = _replies.read_voice(verdict.payload)
            if voice is not None:
                # The next clone leaves first; whoever waits for this one has waited a minute already.
                self._schedule.free_place(job, sent.account)
                self._lanes.succeeded(sent.account)
                self._turn()
                self.pace.note(self._clocks.now() - sent.t)
                end_attempt(job, datetime.now(UTC), "cloned", status_code=verdict.status_code)
                await self._got_voice(job, sent.account, voice.on(sent.account or None))
                return
            verdict = Unknown("the answer has no voice_id", verdict.status_code)
        match verdict:
            case Unknown():
                if verdict.retry_after_s:
                    self._lanes.pause(sent.account, verdict.retry_after_s)
                await self._look_for_voice(job, sent, verdict)
            case Refused() if verdict.scope is Scope.REQUEST and job.absences:
                # What refuses a clone that went again may be the voice of the first: say, where names are unique.
                doubt = Unknown(verdict.detail, verdict.status_code, verdict.code, if_absent=verdict, resends=0)
                await self._look_for_voice(job, sent, doubt)
            case NotSent():
                self._withdraw(job, verdict.detail)
                self._refusals.wait_for_remote(job, sent.account, _replies.error_from(verdict))
            case Refused():  # pragma: no branch - there are no others
                told = "not_accepted" if verdict.scope is Scope.PACE else "refused"
                end_attempt(job, datetime.now(UTC), told, verdict.detail, verdict.status_code)
                self._refusals.apply(job, sent.account, verdict)

    async def _got_voice(self, job: Job, account: str, voice: VoiceInfo) -> None:
        self._witness.claim(account, voice)
        if job.cancelling == "delete":
            await self._delete_unwanted(job, account, voice)
        elif job.is_settled:
            # Its deadline passed, or the client is closing: nobody waits, but the voice is there, and was paid for.
            await self._registry.wait_for_ending(job)
            job.surplus += (voice,)
            logger.warning("voice %s of job %s turned up after the job had ended", voice.voice_id, job.id)
            self._registry.tell(job, "late_voice", voice_id=voice.voice_id)
            self._store.changed(job)
        else:
            self._registry.settle(job, voice)

    async def _delete_unwanted(self, job: Job, account: str, voice: VoiceInfo) -> None:
        try:
            await self.delete(voice.voice_id, account)
        except ApiError as error:
            job.surplus += (voice,)
            message = f"it was cancelled, but its voice {voice.voice_id} could not be deleted: {error}"
            self._registry.settle(job, cancelled(job, message, voice_may_exist=True))
        else:
            self._registry.settle(job, cancelled(job, "it was cancelled, and its voice was deleted"))

    async def delete(self, voice_id: str, account: str | None) -> None:
        """Delete a voice, and note that its account has a slot again. Raises `ApiError`."""
        await self._transport.ask(
            lambda generation: _endpoints.delete_voice(generation, voice_id, account or None), needs_json=False
        )
        self._lanes.reopen(account, only_slots=True)

    # --- in doubt ----------------------------------------------------------------------------------------------------

    async def _look_for_voice(self, job: Job, sent: _Sent, unknown: Unknown) -> None:
        """The answer was lost: find the voice, or prove that there is none, or say that nobody can tell."""
        if not job.is_settled and job.state is JobState.SENT:
            advance(job, Step.LOSE)
            self._store.changed(job)
            self._registry.tell(job, "in_doubt", reason=unknown.detail, status_code=unknown.status_code)
        await self._registry.floor.refresh_ledger(sent.account)
        # A voice of an earlier attempt here is the job's as well, should that one have been slower than all patience.
        earlier_s = 0.0 if job.first_sent_t is None else max(0.0, sent.t - job.first_sent_t)
        evidence = self._witness.evidence(
            sent.account, job.request.voice_name, sent.t, sent.at, self._settings.settle_after_s, earlier_s
        )
        async with aclosing(self._witness.find(sent.account, evidence)) as states:
            async for state in states:
                match state:
                    case Looking():
                        self._registry.tell(job, "looked", looks=state.evidence.looks)
                    case Found():
                        await self._adopt(job, sent, state, unknown)
                    case Absent():
                        end_attempt(job, datetime.now(UTC), "absent", unknown.detail, unknown.status_code)
                        self._was_absent(job, unknown)
                    case Unclear():  # pragma: no branch - there are no others
                        end_attempt(job, datetime.now(UTC), "unknown", unknown.detail, unknown.status_code)
                        message = f"{unknown.detail}; and the voices cannot be listed: {state.reason}"
                        self._registry.settle(job, unknown_outcome(job, message, unknown))
                        await anyio.sleep_until(evidence.settles_t)

    async def _adopt(self, job: Job, sent: _Sent, found: Found, unknown: Unknown) -> None:
        end_attempt(job, datetime.now(UTC), "adopted", unknown.detail, unknown.status_code)
        if found.others:
            for other in found.others:
                self._witness.claim(sent.account, other)
            job.surplus += found.others
            ids = [voice.voice_id for voice in found.others]
            logger.warning("job %s: %d further voices fit it; they were left alone: %s", job.id, len(ids), ids)
            self._registry.tell(job, "surplus", voice_ids=ids)
        self._lanes.succeeded(sent.account)
        await self._got_voice(job, sent.account, found.voice)

    def _was_absent(self, job: Job, unknown: Unknown) -> None:
        job.absences += 1
        most = self._settings.max_resends if unknown.resends is None else unknown.resends
        if job.is_settled or job.absences <= most:
            self._registry.requeue(job)
            return
        refused = unknown.if_absent or Refused(
            ServerError,
            Scope.PACE,
            f"{unknown.detail}; {job.attempts} attempts are proven to have made nothing",
            unknown.status_code,
            unknown.code,
        )
        self._registry.settle(job, refusal(job, refused))
