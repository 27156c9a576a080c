"""
What a job is and how it may change: its states, the table of its transitions, and the event each one causes.

A job is data, so that thousands may wait for about a kilobyte each; nothing here knows tasks, clocks or sockets.
Two rules: every change of `Job.state` goes through `advance`, and an illegal step raises and changes nothing.

    queued ──stage──▶ uploading ──staged──▶ ready ──send──▶ sent ──lose──▶ in_doubt
      ▲ └────────────────────staged────────▶ │                │               │
      └──────unstage──────┴──────────────────┘                │               │
      └───────────────────────────requeue─────────────────────┴───────────────┘

    From any of these: refused, expired, cancelled. From sent and in_doubt also: cloned, unknown.

A job whose files are uploaded already goes from queued to ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal

from ._errors import CloneCancelled, CloneError, CloneOutcomeUnknown, DeadlineExceeded
from ._models import CloneRequest, VoiceInfo


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    """Waits for its turn; nothing of it is at the remote, except perhaps samples."""
    UPLOADING = "uploading"
    """Next in its account's lane: its samples are going up while others clone."""
    READY = "ready"
    """Its samples are up; it waits for a place."""
    SENT = "sent"
    """Its clone request has left; it occupies a place."""
    IN_DOUBT = "in_doubt"
    """The answer was lost; the account's voices are being looked through. It still occupies its place."""
    CLONED = "cloned"
    """It has its voice."""
    REFUSED = "refused"
    """The remote said no, and made nothing."""
    UNKNOWN = "unknown"
    """The remote could not be asked; a voice may exist."""
    EXPIRED = "expired"
    """One of its clocks ran out."""
    CANCELLED = "cancelled"
    """Cancelled by its owner, or by the client's closing."""


class Step(StrEnum):
    """What can happen to a job."""

    STAGE = "stage"
    STAGED = "staged"
    UNSTAGE = "unstage"
    SEND = "send"
    LOSE = "lose"
    REQUEUE = "requeue"
    CLONE = "clone"
    REFUSE = "refuse"
    GIVE_UP = "give_up"
    EXPIRE = "expire"
    CANCEL = "cancel"


TERMINAL_STATES: Final = frozenset(
    {JobState.CLONED, JobState.REFUSED, JobState.UNKNOWN, JobState.EXPIRED, JobState.CANCELLED}
)
OCCUPYING_STATES: Final = frozenset({JobState.SENT, JobState.IN_DOUBT})
"""States in which the remote may be at work for the job."""

_Q, _U, _R, _S, _D = JobState.QUEUED, JobState.UPLOADING, JobState.READY, JobState.SENT, JobState.IN_DOUBT
_ENDINGS: Final = {
    Step.REFUSE: JobState.REFUSED,
    Step.EXPIRE: JobState.EXPIRED,
    Step.CANCEL: JobState.CANCELLED,
}
# Unknown is an ending of SENT too: a client that closes leaves a request behind whose answer nobody will read.
TRANSITIONS: Final[Mapping[JobState, Mapping[Step, JobState]]] = MappingProxyType(
    {
        _Q: {Step.STAGE: _U, Step.STAGED: _R, **_ENDINGS},
        _U: {Step.STAGED: _R, Step.UNSTAGE: _Q, **_ENDINGS},
        _R: {Step.SEND: _S, Step.UNSTAGE: _Q, **_ENDINGS},
        _S: {
            Step.LOSE: _D,
            Step.REQUEUE: _Q,
            Step.CLONE: JobState.CLONED,
            Step.GIVE_UP: JobState.UNKNOWN,
            **_ENDINGS,
        },
        _D: {Step.REQUEUE: _Q, Step.CLONE: JobState.CLONED, Step.GIVE_UP: JobState.UNKNOWN, **_ENDINGS},
        **{state: {} for state in TERMINAL_STATES},
    }
)


class IllegalStep(RuntimeError):
    """A step that the table does not allow: a bug of this library, never of its user."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    One clone request that left.

    Attributes:
        account: The account it went to.
        sent_at: When it left, by this machine's clock (aware, UTC).
        ended_at: When its outcome was known, or `None` while it is not.
        verdict: `cloned`, `refused`, `not_accepted`, `not_sent`, `adopted`, `absent` or `unknown`; `""` while it lasts.
        status_code: HTTP status of the answer, or `None` where there was none.
        detail: The remote's words, or what was wrong with its answer.
    """

    account: str | None
    sent_at: datetime
    ended_at: datetime | None = None
    verdict: str = ""
    status_code: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that happened, to a job or to an account's lane.

    Attributes:
        kind: A job's new state (`queued`, `uploading`, `ready`, `sent`, `in_doubt`, `cloned`, `refused`, `unknown`,
            `expired`, `cancelled`); of a job also `looked` (its voice was looked for), `surplus` (more than one voice
            fits), `late_voice` (a voice turned up after its job had ended) and `left` (this client works on it no
            longer, and its store keeps it for another); of a lane `gate_shut`, `limit`, `account_out`, `account_back`,
            `slots_full`, `slots_free`; of the client `generation`; of a stream `missed`.
        at: When, by this machine's clock (aware, UTC).
        job_id: The job, if it is of one.
        voice_name: The job's voice name.
        account: The account, where one is chosen.
        detail: More, by kind; values are plain data. Never contents, never the token.
    """

    kind: str
    at: datetime
    job_id: str | None = None
    voice_name: str | None = None
    account: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """
    What a sample was when it was accepted.

    Attributes:
        name: What messages call it.
        sha256: Of its content, in hex.
        size_bytes: Of its content.
        path: Where the user keeps it; `None` where the store keeps a copy.
    """

    name: str
    sha256: str
    size_bytes: int
    path: str | None


CancelChoice = Literal["keep", "delete"]
Outcome = VoiceInfo | CloneError


@dataclass(slots=True, eq=False)
class Job:
    """
    One request on its way to a voice. Compared by urgency, so that a heap of jobs yields the next one first.

    Times ending in `_t` are seconds of the event loop's clock, those in `_at` the same for a store, aware and in UTC;
    `None` means that the clock in question is not set.
    """

    id: str
    key: str | None
    request: CloneRequest
    priority: int
    seq: int
    pinned: str | None
    state: JobState = JobState.QUEUED
    account: str | None = None
    attempts: int = 0
    history: tuple[Attempt, ...] = ()
    files: tuple[str, ...] = ()
    queue_deadline_t: float | None = None
    deadline_t: float | None = None
    queue_deadline_at: datetime | None = None
    deadline_at: datetime | None = None
    fingerprints: tuple[Fingerprint, ...] = ()
    """Of its samples, where the store is durable."""
    absences: int = 0
    """Attempts that are proven to have made nothing although their answers were lost."""
    first_sent_t: float | None = None
    """When its first request left for its present account, where that was in this life."""
    not_sent_since_t: float | None = None
    """Since when it could not be sent, the remote being out of reach."""
    uploads_forgotten: bool = False
    """Whether its samples were uploaded once more already, the remote having lost them."""
    cancelling: CancelChoice | None = None
    outcome: Outcome | None = None
    settled_seq: int = 0
    """Its number in the order in which jobs ended."""
    surplus: tuple[VoiceInfo, ...] = ()
    watchers: list[Callable[[], None]] | None = None
    """Called once, when it has ended."""

    def __lt__(self, other: Job) -> bool:
        if self.priority != other.priority:
            return self.priority > other.priority
        return self.seq < other.seq

    @property
    def is_settled(self) -> bool:
        """Whether it has ended, or, with an outcome but no ending, was left to the store for another life."""
        return self.state in TERMINAL_STATES or self.outcome is not None

    @property
    def is_waiting(self) -> bool:
        """Whether it is among the waiting of this process."""
        return self.state is JobState.QUEUED and self.outcome is None

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` once when it has ended."""
        if self.watchers is None:
            self.watchers = []
        self.watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Do not, after all."""
        if self.watchers and watcher in self.watchers:
            self.watchers.remove(watcher)

    def call_watchers(self) -> None:
        """Tell those who wait, once, that it has ended."""
        watchers, self.watchers = self.watchers or (), None
        for watcher in watchers:
            watcher()

    @property
    def was_sent(self) -> bool:
        """Whether any clone request of it ever left."""
        return self.attempts > 0


def advance(job: Job, step: Step) -> JobState:
    """
    Take one step of the table, and return the new state.

    Raises:
        IllegalStep: The table has no such step from the job's state; the job is unchanged.
    """
    state = TRANSITIONS[job.state].get(step)
    if state is None:
        raise IllegalStep(f"{step} from {job.state}")
    job.state = state
    return state


def ending_of(outcome: Outcome) -> Step:
    """Return the step that this outcome means for a job."""
    match outcome:
        case VoiceInfo():
            return Step.CLONE
        case CloneOutcomeUnknown():
            return Step.GIVE_UP
        case CloneCancelled():
            return Step.CANCEL
        case DeadlineExceeded():
            return Step.EXPIRE
        case _:
            return Step.REFUSE
