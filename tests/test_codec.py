"""What a store writes of a job, and what comes of it again: all of it, as plain JSON, and nothing that is secret."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import a_job, a_voice, facts, requeue, send

from useapi_voice import CloneRequest, VoiceInfo, _errors
from useapi_voice._errors import CloneError, DeadlineExceeded, StoreError
from useapi_voice._jobs import OCCUPYING_STATES, TERMINAL_STATES, Attempt, Fingerprint, Job, JobState, Outcome
from useapi_voice.stores import codec
from useapi_voice.stores.codec import Row, decode, digest_of, encode, export, voice_ids_of

ENDED_AT = datetime(2026, 11, 22, 11, 0, tzinfo=UTC)

text = st.text(max_size=8) | st.just("\ud800 alone")
maybe_text = st.none() | text
names = st.text(min_size=1, max_size=8)
moments = st.datetimes(timezones=st.just(UTC))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
fingerprints = st.builds(
    Fingerprint, text.filter(bool), st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0), maybe_text
)
attempts = st.builds(Attempt, maybe_text, moments, st.none() | moments, text, st.none() | st.integers(100, 599), text)
unknown_fields = st.dictionaries(names.map("x{}".format), plain, max_size=3)
known_fields = st.fixed_dictionaries(
    {"voice_id": names},
    optional={
        "voice_name": maybe_text,
        "tag_list": st.lists(text, max_size=3),
        "create_time": st.floats(allow_nan=False, allow_infinity=False),
        "collected": st.booleans(),
        "voice_status": st.integers(0, 9),
        "account": maybe_text,
    },
)
voices = st.builds(lambda known, unknown: VoiceInfo.model_validate({**unknown, **known}), known_fields, unknown_fields)

few = settings(max_examples=60, deadline=None, derandomize=True)


def error_classes(root: type[CloneError] = CloneError) -> list[type[CloneError]]:
    """List the errors that a job can end with."""
    return [root, *(cls for child in root.__subclasses__() for cls in error_classes(child))]


@st.composite
def errors(draw: st.DrawFn) -> CloneError:
    """Draw an error of any class, with any facts."""
    cls = draw(st.sampled_from(error_classes()))
    own: dict[str, Any] = {"clock": draw(text)} if cls is DeadlineExceeded else {}
    return cls(
        draw(text),
        **own,
        job_id=draw(maybe_text),
        account=draw(maybe_text),
        voice_name=draw(maybe_text),
        attempts=draw(st.integers(0, 9)),
        status_code=draw(st.none() | st.integers(100, 599)),
        code=draw(st.none() | st.integers() | text),
        voice_may_exist=draw(st.booleans()),
        safe_to_retry=draw(st.booleans()),
        retry_after_s=draw(st.none() | st.floats(0, 1e6)),
        docs_url=draw(maybe_text),
    )


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Draw a job with any values in the fields that a store keeps."""
    prints = draw(st.lists(fingerprints, max_size=3))
    request = CloneRequest(
        voice_name=draw(text),
        language_tag=draw(text),
        samples=[b"kept by the store" if p.path is None else p.path for p in prints],
        files=draw(st.lists(text, max_size=2)),
        account=draw(maybe_text),
        need_noise_reduction=draw(st.booleans()),
    )
    return Job(
        id=draw(text),
        key=draw(maybe_text),
        request=request,
        priority=draw(st.integers()),
        seq=draw(st.integers(1)),
        pinned=draw(maybe_text),
        state=draw(st.sampled_from([*OCCUPYING_STATES, *TERMINAL_STATES, JobState.QUEUED])),
        account=draw(maybe_text),
        attempts=draw(st.integers(0, 9)),
        history=tuple(draw(st.lists(attempts, max_size=3))),
        queue_deadline_at=draw(st.none() | moments),
        deadline_at=draw(st.none() | moments),
        fingerprints=tuple(prints),
        absences=draw(st.integers(0, 9)),
        cancelling=draw(st.sampled_from([None, "keep", "delete"])),
        surplus=tuple(draw(st.lists(voices, max_size=2))),
    )


def locate(sha256: str) -> str:
    """Say where copies are kept."""
    return f"/spool/{sha256}"


@few
@given(jobs(), st.none() | voices | errors())
def test_whatever_is_in_a_job_comes_back(job: Job, outcome: Outcome | None) -> None:
    """All that a store keeps of a job, and how it ended, is the same after writing and reading."""
    row = encode(job, outcome=outcome, settled_at=ENDED_AT)
    job.outcome = outcome
    again = decode(row, locate)
    assert facts(again) == facts(job)
    assert [sample.path for sample in again.request.samples] == [
        locate(print_.sha256) if print_.path is None else print_.path for print_ in job.fingerprints
    ]
    assert [sample.name for sample in again.request.samples] == [print_.name for print_ in job.fingerprints]


@few
@given(jobs(), st.none() | voices | errors())
def test_what_is_exported_is_plain_json(job: Job, outcome: Outcome | None) -> None:
    """An export survives a strict JSON writer, and says who, what and how it ended."""
    record = export(encode(job, outcome=outcome, settled_at=ENDED_AT))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["id"], record["state"], record["settled_at"]) == (job.id, job.state.value, ENDED_AT.isoformat())
    assert len(record["history"]) == len(job.history)
    assert ("v" in record, record["outcome"] is None) == (False, outcome is None)


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_every_error_comes_back_as_itself(cls: type[CloneError]) -> None:
    """An error keeps its class, its words and its facts, those that only its class has included."""
    more = {"clock": "deadline_s"} if cls is DeadlineExceeded else {}
    error = cls("why", job_id="j", account="north", status_code=500, voice_may_exist=True, **more)
    again = decode(encode(send(a_job(1)), outcome=error), locate).outcome
    assert type(again) is cls
    assert (str(again), vars(again)) == ("why", vars(error))


@pytest.mark.parametrize("name", ["FromTheFuture", "StoreError", "DOCS_URL"])
def test_an_error_that_nobody_here_knows_is_still_an_error(name: str) -> None:
    """A class of a newer version, or a name that is no clone error, is read as the root, with all facts."""
    row = encode(a_job(1), outcome=CloneError("why", account="north", voice_may_exist=True))
    row = row._replace(payload=row.payload.replace('"CloneError"', f'"{name}"'))
    again = decode(row, locate).outcome
    assert isinstance(again, CloneError)
    assert (type(again), again.account, again.voice_may_exist) == (CloneError, "north", True)


@pytest.mark.parametrize("read", [lambda row: decode(row, locate), export], ids=["decode", "export"])
def test_what_a_newer_version_wrote_is_refused(read: Any) -> None:
    """A payload of a later format is not guessed at."""
    row = encode(a_job(1))
    row = row._replace(payload=row.payload.replace('{"v":1', '{"v":2'))
    with pytest.raises(StoreError, match="newer version"):
        read(row)


@pytest.mark.parametrize("state", [JobState.UPLOADING, JobState.READY])
def test_what_was_being_prepared_is_found_waiting(state: JobState) -> None:
    """Preparations end with the process that made them."""
    job = a_job(1)
    job.state = state
    assert encode(job).state is JobState.QUEUED


def test_only_a_job_in_progress_has_a_time_of_sending() -> None:
    """The look-up column is set while an attempt may be in progress, and empty before and after."""
    job = a_job(1)
    assert encode(job).sent_at is None
    assert encode(send(job)).sent_at == job.history[-1].sent_at
    assert encode(requeue(job)).sent_at is None


def test_a_job_whose_samples_nobody_could_find_again_is_not_written() -> None:
    """A sample without a fingerprint would be lost without a word."""
    job = a_job(1)
    job.fingerprints = ()
    with pytest.raises(ValueError, match="1 samples, but 0 fingerprints"):
        encode(job)


def test_numbers_that_json_does_not_have_are_left_out() -> None:
    """An error or a voice with NaN in it is written all the same."""
    error = CloneError("wait", retry_after_s=float("nan"))
    read = decode(encode(a_job(1), outcome=error), locate).outcome
    assert isinstance(read, CloneError)
    assert read.retry_after_s is None
    voice = VoiceInfo.model_validate({"voice_id": "v", "odd": float("inf")})
    assert decode(encode(a_job(1), outcome=voice), locate).outcome == voice.model_copy(update={"odd": None})


def test_all_voices_of_a_job_are_named() -> None:
    """The voice that it ended with, and those that fit it as well."""
    job = a_job(1)
    job.surplus = (a_voice(2), a_voice(3))
    ids = [a_voice(number).voice_id for number in (1, 2, 3)]
    assert voice_ids_of(encode(job, outcome=a_voice(1))) == ids
    assert voice_ids_of(encode(job)) == ids[1:]


def test_two_requests_are_the_same_by_value_and_content() -> None:
    """Where a sample lies and what it is called is not part of a request; all else is."""
    request = a_job(1).request
    print_ = Fingerprint("a.mp3", "a" * 64, 10, "/a.mp3")
    digest = digest_of(request, (print_,))
    assert digest == digest_of(request, (Fingerprint("b", "a" * 64, 10, None),))
    assert digest != digest_of(request, (Fingerprint("a.mp3", "b" * 64, 10, "/a.mp3"),))
    for change in ({"voice_name": "x"}, {"language_tag": "x"}, {"account": "x"}, {"need_noise_reduction": False}):
        other = CloneRequest(**{"voice_name": request.voice_name, "language_tag": request.language_tag, **change})
        assert digest_of(other, (print_,)) != digest


def test_nothing_is_written_that_a_secret_could_hide_in() -> None:
    """A new field of what is written is a decision; contents of samples are never among them."""
    job = send(a_job(1, sample=b"content of a sample"))
    row = encode(job, outcome=_errors.ServerError("why"))
    payload = json.loads(row.payload)
    assert set(payload) == {
        "v",
        "request",
        "attempts",
        "absences",
        "history",
        "cancelling",
        "queue_deadline_at",
        "deadline_at",
        "surplus",
        "outcome",
    }
    request = {"voice_name", "language_tag", "files", "account", "need_noise_reduction", "samples"}
    assert set(payload["request"]) == request
    assert set(payload["request"]["samples"][0]) == {"name", "sha256", "size_bytes", "path"}
    assert set(payload["outcome"]["facts"]) == {"message", *_errors.CloneError.__init__.__kwdefaults__}
    assert Row._fields == tuple(codec.Row._fields)
    assert "content of a sample" not in str(row)
