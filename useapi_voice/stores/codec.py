"""
Jobs as rows and back: versioned JSON for all that is not looked up, never pickle, never the token. Pure.

A request is written with the fingerprints of its samples: a path with the hash and size of its content, so that a
changed file is noticed; `bytes` and streams by their hash alone, under which a store keeps a copy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from .. import _errors
from .._errors import CloneError, StoreError, restore_error
from .._jobs import OCCUPYING_STATES, TERMINAL_STATES, Attempt, Fingerprint, Job, JobState, Outcome
from .._models import CloneRequest, Sample, VoiceInfo

PAYLOAD_VERSION: Final = 1
"""Of what `encode` writes as JSON; a reader refuses what is newer than itself."""

_write_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # one for all: making it takes 3 us


_PREPARING: Final = frozenset({JobState.UPLOADING, JobState.READY})


class Row(NamedTuple):
    """
    A job as a store keeps it; times are aware, UTC.

    Attributes:
        payload: JSON of all that is not looked up: see `encode`.
        sent_at: When its last request left, while that is in progress or in doubt.
        settled_at: When it ended.
        voice_id: Of the voice that it ended with.
    """

    id: str
    key: str | None
    state: JobState
    priority: int
    seq: int
    account: str | None
    pinned: str | None
    voice_name: str
    payload: str
    sent_at: datetime | None
    settled_at: datetime | None
    voice_id: str | None


def encode(job: Job, *, outcome: Outcome | None = None, settled_at: datetime | None = None) -> Row:
    """
    Write a job down, with how it ended if it has.

    Raises:
        ValueError: It has samples without fingerprints, which nobody could find again.
    """
    request = job.request
    if outcome is None and job.state in TERMINAL_STATES:
        # What is noted of a job that has ended, say a late voice, is no new beginning.
        outcome = job.outcome
    if len(job.fingerprints) != len(request.samples):
        raise ValueError(f"{len(request.samples)} samples, but {len(job.fingerprints)} fingerprints")
    payload = {
        "v": PAYLOAD_VERSION,
        "request": {
            "voice_name": request.voice_name,
            "language_tag": request.language_tag,
            "files": list(request.files),
            "account": request.account,
            "need_noise_reduction": request.need_noise_reduction,
            "samples": [_encode_fingerprint(print_) for print_ in job.fingerprints],
        },
        "attempts": job.attempts,
        "absences": job.absences,
        "history": [_encode_attempt(attempt) for attempt in job.history],
        "cancelling": job.cancelling,
        "queue_deadline_at": _write_time(job.queue_deadline_at),
        "deadline_at": _write_time(job.deadline_at),
        "surplus": [_plain(voice.model_dump()) for voice in job.surplus],
        "outcome": None if outcome is None else _encode_outcome(outcome),
    }
    in_progress = job.state in OCCUPYING_STATES and job.history
    return Row(
        id=job.id,
        key=job.key,
        # What was merely being prepared has to be prepared again by whoever comes back.
        state=JobState.QUEUED if job.state in _PREPARING else job.state,
        priority=job.priority,
        seq=job.seq,
        account=job.account,
        pinned=job.pinned,
        voice_name=request.voice_name,
        payload=_write_json(payload),
        sent_at=job.history[-1].sent_at if in_progress else None,
        settled_at=settled_at,
        voice_id=outcome.voice_id if isinstance(outcome, VoiceInfo) else None,
    )


def decode(row: Row, locate: Callable[[str], str]) -> Job:
    """
    Read a job back.

    Args:
        row: As it was written.
        locate: Returns the path of the copy of a content, by its hash.

    Raises:
        StoreError: It was written by a newer version.
    """
    payload = _read_payload(row)
    fields = dict(payload["request"])
    fingerprints = tuple(Fingerprint(**sample) for sample in fields.pop("samples"))
    samples = [
        Sample(locate(print_.sha256) if print_.path is None else print_.path, name=print_.name)
        for print_ in fingerprints
    ]
    outcome = payload["outcome"]
    return Job(
        id=row.id,
        key=row.key,
        request=CloneRequest(samples=samples, **fields),
        priority=row.priority,
        seq=row.seq,
        pinned=row.pinned,
        state=row.state,
        account=row.account,
        attempts=payload["attempts"],
        absences=payload["absences"],
        history=tuple(_decode_attempt(attempt) for attempt in payload["history"]),
        cancelling=payload["cancelling"],
        queue_deadline_at=_read_time(payload["queue_deadline_at"]),
        deadline_at=_read_time(payload["deadline_at"]),
        surplus=tuple(VoiceInfo.model_validate(voice) for voice in payload["surplus"]),
        outcome=None if outcome is None else _decode_outcome(outcome),
        fingerprints=fingerprints,
    )


def digest_of(request: CloneRequest, fingerprints: tuple[Fingerprint, ...]) -> str:
    """Return what two submits of one request share: its values, and the content of its samples wherever they lie."""
    values = [
        request.voice_name,
        request.language_tag,
        request.files,
        request.account,
        request.need_noise_reduction,
        [print_.sha256 for print_ in fingerprints],
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def export(row: Row) -> dict[str, Any]:
    """Return a row as plain data for users. Raises as `decode` does."""
    payload = _read_payload(row)
    del payload["v"]
    return {
        "id": row.id,
        "key": row.key,
        "state": row.state.value,
        "account": row.account or None,
        "priority": row.priority,
        **payload,
        "settled_at": _write_time(row.settled_at),
    }


def voice_ids_of(row: Row) -> list[str]:
    """Return the ids of all voices that belong to a job: the one it ended with, and those that fit it as well."""
    surplus = json.loads(row.payload)["surplus"]
    return [voice_id for voice_id in (row.voice_id, *(voice["voice_id"] for voice in surplus)) if voice_id is not None]


def _read_payload(row: Row) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(row.payload)
    if payload["v"] > PAYLOAD_VERSION:
        raise StoreError(f"job {row.id} was written by a newer version of useapi_voice: upgrade this one to go on")
    return payload


# By hand, because `dataclasses.asdict` would cost more than all the rest of a submit.
def _encode_fingerprint(print_: Fingerprint) -> dict[str, Any]:
    return {"name": print_.name, "sha256": print_.sha256, "size_bytes": print_.size_bytes, "path": print_.path}


def _encode_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "account": attempt.account,
        "sent_at": _write_time(attempt.sent_at),
        "ended_at": _write_time(attempt.ended_at),
        "verdict": attempt.verdict,
        "status_code": attempt.status_code,
        "detail": attempt.detail,
    }


def _decode_attempt(data: Mapping[str, Any]) -> Attempt:
    return Attempt(
        account=data["account"],
        sent_at=datetime.fromisoformat(data["sent_at"]),
        ended_at=_read_time(data["ended_at"]),
        verdict=data["verdict"],
        status_code=data["status_code"],
        detail=data["detail"],
    )


def _encode_outcome(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, VoiceInfo):
        return {"voice": _plain(outcome.model_dump())}
    return {"error": type(outcome).__name__, "facts": _plain(vars(outcome))}


def _plain(value: Any) -> Any:
    """
    Return a remote's data without the numbers that JSON does not have: they say nothing, but would spoil the rest.

    Pydantic's own JSON form is not used, as it cannot write a name in unknown data that is no valid Unicode.
    """
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _decode_outcome(data: Mapping[str, Any]) -> Outcome:
    if "voice" in data:
        return VoiceInfo.model_validate(data["voice"])
    cls = getattr(_errors, data["error"], None)
    if not (isinstance(cls, type) and issubclass(cls, CloneError)):
        # Written by a newer version. The root says the least; what else can be said of it is in its facts.
        cls = CloneError
    return restore_error(cls, data["facts"]["message"], data["facts"])


def _write_time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _read_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
