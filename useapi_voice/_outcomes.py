"""How a job's ending is put: the error with its facts, the attempt's verdict, and what an event says. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from . import _replies
from ._errors import AccountUnavailable, CloneCancelled, CloneError, CloneOutcomeUnknown, DeadlineExceeded
from ._jobs import OCCUPYING_STATES, Job, Outcome
from ._models import VoiceInfo
from ._replies import Refused, Scope, Unknown


def facts_of(job: Job) -> dict[str, Any]:
    """What every error of a job says of it."""
    return {
        "job_id": job.id,
        "account": job.account or None,
        "voice_name": job.request.voice_name,
        "attempts": job.attempts,
    }


def refusal(job: Job, refused: Refused, *, safe_to_retry: bool | None = None) -> CloneError:
    """The error of a job that was refused; one that its owner wanted to end is cancelled instead."""
    if job.cancelling is not None:
        return cancelled(job, f"it was cancelled; no voice was made: {refused.detail}")
    return refused.error(
        refused.detail,
        **facts_of(job),
        status_code=refused.status_code,
        code=refused.code,
        safe_to_retry=refused.safe_to_retry if safe_to_retry is None else safe_to_retry,
        retry_after_s=refused.retry_after_s,
    )


def unknown_outcome(job: Job, message: str, unknown: Unknown | None = None) -> CloneOutcomeUnknown:
    """The error of a job of which nobody can tell."""
    return CloneOutcomeUnknown(
        message,
        **facts_of(job),
        status_code=unknown.status_code if unknown else None,
        code=unknown.code if unknown else None,
        voice_may_exist=True,
    )


def cancelled(job: Job, message: str, *, voice_may_exist: bool = False) -> CloneCancelled:
    """The error of a job that was cancelled."""
    facts = facts_of(job)
    return CloneCancelled(message, **facts, voice_may_exist=voice_may_exist, safe_to_retry=not voice_may_exist)


def out_of_time(job: Job, clock: str, message: str = "", retry_after_s: float | None = None) -> DeadlineExceeded:
    """The error of a job whose clock ran out; with a message nothing of it is in progress."""
    may_exist = job.state in OCCUPYING_STATES and not message
    told = "its request is in progress, and may yet make a voice" if may_exist else "no voice was made"
    return DeadlineExceeded(
        f"{clock} ran out: {message or told}",
        clock=clock,
        **facts_of(job),
        voice_may_exist=may_exist,
        safe_to_retry=not may_exist,
        retry_after_s=retry_after_s,
    )


def end_attempt(job: Job, now_at: datetime, verdict: str, detail: str = "", status_code: int | None = None) -> None:
    """Write down how the job's last attempt ended."""
    *earlier, last = job.history
    ended = replace(last, ended_at=now_at, verdict=verdict, detail=detail, status_code=status_code)
    job.history = (*earlier, ended)


def broken(reason: str) -> Refused:
    """The refusal of an account that is out of order."""
    return Refused(AccountUnavailable, Scope.ACCOUNT, reason, _replies.ACCOUNT_ERROR_STATUS)


def told_of(outcome: Outcome) -> dict[str, Any]:
    """What an event says of an ending."""
    if isinstance(outcome, VoiceInfo):
        return {"voice_id": outcome.voice_id}
    return {"error": type(outcome).__name__, "status_code": outcome.status_code, "reason": outcome.message}
