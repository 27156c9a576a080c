"""Jobs: the table of their steps, the drawing of it, and what a job knows of itself."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from useapi_voice import _jobs
from useapi_voice._errors import (
    CloneCancelled,
    CloneError,
    CloneOutcomeUnknown,
    CloneRefused,
    DeadlineExceeded,
    RateLimited,
)
from useapi_voice._jobs import (
    OCCUPYING_STATES,
    TERMINAL_STATES,
    TRANSITIONS,
    Attempt,
    Event,
    IllegalStep,
    Job,
    JobState,
    Outcome,
    Step,
    advance,
    ending_of,
)
from useapi_voice._models import CloneRequest, VoiceInfo

REQUEST = CloneRequest(voice_name="Zoë", language_tag="English", samples=["a.mp3"])


def make_job(seq: int = 1, *, priority: int = 0, state: JobState = JobState.QUEUED) -> Job:
    """Make a job."""
    return Job(f"j{seq}", None, REQUEST, priority, seq, None, state)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("step", Step)
def test_every_step_from_every_state(state: JobState, step: Step) -> None:
    """A step of the table leads to its state; any other raises and changes nothing."""
    job = make_job(state=state)
    before = dataclasses.astuple(dataclasses.replace(job, state=JobState.QUEUED))
    target = TRANSITIONS[state].get(step)
    if target is None:
        with pytest.raises(IllegalStep, match=f"^{step} from {state}$"):
            advance(job, step)
        assert job.state is state
    else:
        assert advance(job, step) is job.state is target
    assert dataclasses.astuple(dataclasses.replace(job, state=JobState.QUEUED)) == before


@pytest.mark.slow  # many examples
@given(st.lists(st.sampled_from(Step), max_size=30))
@settings(derandomize=True, deadline=None)
def test_a_job_ends_once_and_for_good(steps: list[Step]) -> None:
    """Whatever is tried with a job, it is sent only when ready, and never leaves an ending."""
    job = make_job()
    for step in steps:
        was = job.state
        try:
            advance(job, step)
        except IllegalStep:
            assert job.state is was
            continue
        assert was not in TERMINAL_STATES
        assert (job.state is JobState.SENT) == (step is Step.SEND)
        assert was is JobState.READY or step is not Step.SEND
        assert was in OCCUPYING_STATES or job.state not in {JobState.CLONED, JobState.UNKNOWN}


def test_table_names_every_state() -> None:
    """No state is forgotten, every ending is final, and every state can be reached."""
    assert set(TRANSITIONS) == set(JobState)
    assert {state for state in JobState if not TRANSITIONS[state]} == TERMINAL_STATES
    assert {state for row in TRANSITIONS.values() for state in row.values()} == set(JobState)
    with pytest.raises(TypeError):
        TRANSITIONS[JobState.QUEUED] = {}  # type: ignore[index]


def test_drawing_agrees_with_table() -> None:
    """The drawing names every state, and its arrows and sentences are the table's."""
    drawing = (_jobs.__doc__ or "").split("\n\n")
    picture = "\n".join(part for part in drawing if part.startswith("    "))
    assert {state for state in JobState if re.search(rf"\b{state}\b", picture)} == set(JobState)
    first = next(line for line in picture.splitlines() if "──▶" in line)
    for source, step, target in re.findall(r"(?=\b(\w+) ──(\w+)──▶ (\w+))", first):
        assert TRANSITIONS[JobState(source)][Step(step)] is JobState(target)
    assert len(re.findall("──▶", first)) == 4
    others = set(re.findall(r"─(staged|unstage|requeue)─", picture))
    assert others == {"staged", "unstage", "requeue"}
    assert TRANSITIONS[JobState.QUEUED][Step.STAGED] is JobState.READY
    for state in (JobState.UPLOADING, JobState.READY):
        assert TRANSITIONS[state][Step.UNSTAGE] is JobState.QUEUED
    for state in OCCUPYING_STATES:
        assert TRANSITIONS[state][Step.REQUEUE] is JobState.QUEUED
    always, late = re.findall(r": ([\w, ]+)\.", picture)
    for state in set(JobState) - TERMINAL_STATES:
        endings = set(TRANSITIONS[state].values()) & TERMINAL_STATES
        told = always if state not in OCCUPYING_STATES else f"{always}, {late}"
        assert endings == {JobState(name) for name in told.split(", ")}


@pytest.mark.parametrize(
    ("outcome", "step"),
    [
        (VoiceInfo(voice_id="v"), Step.CLONE),
        (CloneOutcomeUnknown("?"), Step.GIVE_UP),
        (CloneCancelled("no"), Step.CANCEL),
        (DeadlineExceeded("late", clock="deadline_s"), Step.EXPIRE),
        (CloneRefused("no"), Step.REFUSE),
        (RateLimited("no"), Step.REFUSE),
        (CloneError("no"), Step.REFUSE),
    ],
)
def test_outcome_gives_the_ending(outcome: Outcome, step: Step) -> None:
    """Every outcome has its ending, and a job in doubt can take any of them."""
    assert ending_of(outcome) is step
    assert advance(make_job(state=JobState.IN_DOUBT), step) in TERMINAL_STATES


def test_order_is_urgency() -> None:
    """Higher priority goes first; equals go in the order in which they came."""
    low, first, second, high = make_job(1, priority=-1), make_job(2), make_job(3), make_job(4, priority=5)
    assert sorted([second, low, high, first]) == [high, first, second, low]


def test_job_knows_whether_it_ended_and_was_sent() -> None:
    """The two questions that the queue asks most often."""
    job = make_job()
    assert not job.is_settled
    assert not job.was_sent
    assert job.is_waiting
    job.attempts = 1
    job.state = JobState.EXPIRED
    assert job.is_settled
    assert job.was_sent
    assert not job.is_waiting


def test_a_job_left_to_another_life_neither_waits_nor_goes_on() -> None:
    """An outcome without an ending: this process is done with the job, the store is not."""
    job = make_job()
    job.outcome = CloneCancelled("left to the store")
    assert job.is_settled
    assert not job.is_waiting
    assert job.state is JobState.QUEUED


def test_watchers_come_and_go() -> None:
    """A watcher is kept until it leaves, and one that is unknown may leave as well."""
    job = make_job()
    calls: list[int] = []

    def watcher() -> None:
        calls.append(1)

    job.unwatch(watcher)
    job.watch(watcher)
    job.watch(calls.clear)
    assert job.watchers == [watcher, calls.clear]
    job.unwatch(watcher)
    job.unwatch(watcher)
    assert job.watchers == [calls.clear]


def test_jobs_are_told_apart_by_identity() -> None:
    """Two jobs are never equal, so that a set of jobs keeps both."""
    assert len({make_job(), make_job()}) == 2


def test_attempts_and_events_are_values() -> None:
    """What leaves the library about a job is frozen, and has sensible defaults."""
    at = datetime(2026, 8, 24, tzinfo=UTC)
    assert Attempt("a", at) == Attempt("a", at, None, "", None, "")
    assert Event("queued", at) == Event("queued", at, None, None, None, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        Event("queued", at).kind = "sent"  # type: ignore[misc]
