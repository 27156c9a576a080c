"""What the tests of the stores share: jobs in every state, and how they end."""

from __future__ import annotations

import uuid
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from useapi_voice import CloneError, CloneRequest, VoiceInfo
from useapi_voice._jobs import Attempt, Fingerprint, Job, JobState

ACCOUNTS = ("north", "south")
SENT_AT = datetime(2026, 11, 22, 10, 30, 0, 123456, tzinfo=UTC)
OF_ONE_PROCESS = {
    "files",
    "queue_deadline_t",
    "deadline_t",
    "not_sent_since_t",
    "uploads_forgotten",
    "settled_seq",
    "watchers",
}
"""The fields of a job that a store cannot keep: they mean nothing to another process, or can be found out again."""


def a_job(seq: int, *, account: str | None = None, sample: bytes | None = None, priority: int = 0) -> Job:
    """Make a queued job; odd numbers are pinned to one account and even ones to another unless one is named."""
    account = account or ACCOUNTS[seq % 2]
    content = f"/samples/{seq}.mp3" if sample is None else sample
    request = CloneRequest(voice_name=f"voice {seq}", language_tag="English", samples=[content])
    path = None if sample is not None else str(content)
    prints = (Fingerprint(f"{seq}.mp3", f"{seq:064x}", 1000 + seq, path),)
    return Job(uuid.uuid4().hex, None, request, priority, seq, account, account=account, fingerprints=prints)


def keyed(job: Job, key: str) -> Job:
    """Give a job a key."""
    job.key = key
    return job


def send(job: Job, sent_at: datetime = SENT_AT) -> Job:
    """Bring a job to where its request is about to leave."""
    job.state = JobState.SENT
    job.attempts += 1
    job.history = (*job.history, Attempt(job.account, sent_at))
    return job


def requeue(job: Job) -> Job:
    """Bring a sent job back among the waiting, its attempt being proven to have made nothing."""
    *earlier, last = job.history
    ended_at = last.sent_at + timedelta(seconds=80)
    job.history = (*earlier, replace(last, ended_at=ended_at, verdict="absent", detail="lost", status_code=502))
    job.state = JobState.QUEUED
    job.absences += 1
    return job


def a_voice(number: int, account: str = ACCOUNTS[0]) -> VoiceInfo:
    """Make a voice as the remote describes it, with a field that the model does not know."""
    return VoiceInfo.model_validate(
        {"voice_id": f"user:1-minimax:{account}-audio:{number}", "voice_name": f"voice {number}", "mood": {"is": [1]}}
    ).on(account)


def facts(job: Job) -> dict[str, Any]:
    """Return all of a job that a store keeps; the samples by their fingerprints."""
    kept = {field.name: getattr(job, field.name) for field in fields(job) if field.name not in OF_ONE_PROCESS}
    request = kept.pop("request")
    kept["request"] = {name: value for name, value in request if name != "samples"}
    if isinstance(job.outcome, CloneError):
        kept["outcome"] = (type(job.outcome), job.outcome.args, vars(job.outcome))
    return kept
