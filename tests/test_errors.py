"""The error tree: its drawing, its facts, and that they survive pickling, copying and other processes."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import useapi_voice
from useapi_voice import _errors
from useapi_voice._errors import (
    ApiError,
    CloneError,
    CloneOutcomeUnknown,
    CloneRefused,
    ConfigurationError,
    DeadlineExceeded,
    Fault,
    QueueClosed,
    QueueFull,
    RequestInvalid,
    SampleRejected,
    StoreError,
    UseapiVoiceError,
    VoiceSlotsFull,
    request_invalid,
)

NAME = Fault("voice_name", "is empty", "give one")
SAMPLE = Fault("samples[0]", "is too short", "give 10 to 60 s")
FACTS = {
    "job_id": "j1",
    "account": "a1",
    "voice_name": "Zoë",
    "attempts": 2,
    "status_code": 596,
    "code": "REFRESH_FAILED",
    "voice_may_exist": True,
    "safe_to_retry": True,
    "retry_after_s": 1.5,
    "docs_url": "https://example.invalid/page",
}


def descendants(cls: type[UseapiVoiceError]) -> Iterator[type[UseapiVoiceError]]:
    """Yield a class and all that derive from it."""
    yield cls
    for child in cls.__subclasses__():
        yield from descendants(child)


# Those of other rooms, such as a store's KeyTaken, never leave the library.
CLASSES = tuple(cls for cls in descendants(UseapiVoiceError) if cls.__module__ == "useapi_voice")


def build(cls: type[UseapiVoiceError]) -> UseapiVoiceError:
    """Make an error with every fact that its class has."""
    if issubclass(cls, RequestInvalid):
        return cls([NAME, SAMPLE])
    if issubclass(cls, DeadlineExceeded):
        return cls("too late", clock="deadline_s", **FACTS)
    if issubclass(cls, CloneError):
        return cls("no voice", **FACTS)  # type: ignore[arg-type]
    if issubclass(cls, QueueFull):
        return cls("full", max_pending=3, eta_s=2.5)
    return cls("wrong")


def raise_it(error: UseapiVoiceError) -> None:
    """Raise, in whatever process this runs."""
    raise error


def assert_same(one: BaseException, other: BaseException) -> None:
    """Check that nothing of an error was lost."""
    assert type(one) is type(other)
    assert vars(one) == vars(other)
    assert one.args == other.args
    assert str(one) == str(other)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_whole(cls: type[UseapiVoiceError], protocol: int) -> None:
    """Every error comes out of a pickle with all its facts, in every protocol."""
    error = build(cls)
    assert_same(pickle.loads(pickle.dumps(error, protocol)), error)


@pytest.mark.parametrize("cls", CLASSES)
def test_copies_whole(cls: type[UseapiVoiceError]) -> None:
    """A copy is another object with the same facts, notes included."""
    error = build(cls)
    error.add_note("seen twice")
    for other in (copy.copy(error), copy.deepcopy(error)):
        assert other is not error
        assert_same(other, error)


@pytest.mark.slow  # starts an interpreter
def test_leaves_other_processes_whole() -> None:
    """An error raised in a worker process arrives with all its facts."""
    errors = [build(cls) for cls in CLASSES]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for error, future in [(error, pool.submit(raise_it, error)) for error in errors]:
            arrived = future.exception(timeout=50)
            assert arrived is not None
            assert_same(arrived, error)


def test_drawing_agrees_with_classes() -> None:
    """The tree in the module's docstring has every class, below its parent, and no other."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (_errors.__doc__ or "").splitlines():
        found = re.fullmatch(r"    ([│├└─ ]*)(\w+)(?:  .*)?", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1] if depth else "Exception"
    assert parents == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}


def test_every_class_is_public_and_documented() -> None:
    """Each class can be imported from the package, and says when it is raised."""
    for cls in CLASSES:
        assert getattr(useapi_voice, cls.__name__) is cls
        assert cls.__doc__


def test_default_facts_are_cautious() -> None:
    """Without facts an error knows nothing, and does not invite a retry."""
    facts = dict(vars(CloneRefused("no")))
    assert facts.pop("docs_url").endswith("/post-minimax-speech-clone-voice")
    assert facts == {
        "message": "no",
        "job_id": None,
        "account": None,
        "voice_name": None,
        "attempts": 0,
        "status_code": None,
        "code": None,
        "voice_may_exist": False,
        "safe_to_retry": False,
        "retry_after_s": None,
    }


@pytest.mark.parametrize(
    ("cls", "page"),
    [
        (CloneError, ""),
        (ApiError, "/post-minimax-speech-clone-voice"),
        (VoiceSlotsFull, "/get-minimax-speech-equity"),
        (CloneOutcomeUnknown, "/get-minimax-speech-voices"),
    ],
)
def test_points_to_its_page(cls: type[CloneError], page: str) -> None:
    """`docs_url` is the page of the remote's documentation that speaks of the case, unless another is given."""
    assert cls("no").docs_url == _errors.DOCS_URL + page
    assert cls("no", docs_url="https://example.invalid").docs_url == "https://example.invalid"


def test_faults_in_one_sentence_or_a_list() -> None:
    """One fault is the message; several are listed under their number."""
    assert str(RequestInvalid([NAME])) == "voice_name: is empty (give one)"
    assert str(RequestInvalid((NAME, SAMPLE))) == f"2 faults:\n- {NAME}\n- {SAMPLE}"
    assert RequestInvalid([NAME, SAMPLE]).faults == (NAME, SAMPLE)


@pytest.mark.parametrize(
    ("faults", "cls"),
    [
        ([SAMPLE], SampleRejected),
        ([Fault("requests[3].samples[1]", "is cut", "mend it"), SAMPLE], SampleRejected),
        ([NAME], RequestInvalid),
        ([SAMPLE, NAME], RequestInvalid),
        ([Fault("samples", "none is given", "give one")], RequestInvalid),
    ],
)
def test_most_specific_class_for_faults(faults: list[Fault], cls: type[RequestInvalid]) -> None:
    """Only where every fault lies in a sample is it `SampleRejected`."""
    assert type(request_invalid(faults)) is cls


@pytest.mark.parametrize("cls", [ConfigurationError, QueueClosed, StoreError])
def test_plain_errors_carry_their_message(cls: type[UseapiVoiceError]) -> None:
    """The errors without facts still have their message as an attribute."""
    assert cls("what to do").message == str(cls("what to do")) == "what to do"
