"""Models: strict requests with all their faults at once, tolerant replies, and reprs that show no content."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import tracemalloc
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from useapi_voice._errors import RequestInvalid
from useapi_voice._models import (
    Account,
    AccountLoad,
    CloneRequest,
    Sample,
    UploadedSample,
    VoiceConfig,
    VoiceInfo,
    VoicePage,
    VoiceSlots,
    account_of,
)

CONTENT = b"RIFF-secret-content"


def request(**changes: Any) -> CloneRequest:
    """Make a request that is in order but for the changes."""
    return CloneRequest(**{"voice_name": "Zoë", "language_tag": "English", "samples": ["a.mp3"], **changes})


def fields_at_fault(clone_request: CloneRequest) -> list[str]:
    """Return where the faults are."""
    return [fault.field for fault in clone_request.faults()]


# --- samples ----------------------------------------------------------------------------------------------------------


class NamedStream(io.BytesIO):
    name: object = "some/where/x.wav"


class OddPath:
    def __fspath__(self) -> bytes:
        return b"dir/odd.mp3"


@pytest.mark.parametrize(
    ("source", "name", "path", "content"),
    [
        ("dir/a.mp3", "a.mp3", "dir/a.mp3", None),
        ("dir/", "dir/", "dir/", None),
        (Path("dir/a.mp3"), "a.mp3", str(Path("dir/a.mp3")), None),
        (OddPath(), "odd.mp3", "dir/odd.mp3", None),
        (CONTENT, "19 bytes", None, CONTENT),
        (bytearray(CONTENT), "19 bytes", None, CONTENT),
        (memoryview(CONTENT), "19 bytes", None, CONTENT),
    ],
    ids=["str", "str-without-base", "path", "path-of-bytes", "bytes", "bytearray", "memoryview"],
)
def test_sample_forms(source: Any, name: str, path: str | None, content: bytes | None) -> None:
    """A `str` is a path and never content; bytes are content and never a path."""
    sample = Sample(source)
    assert (sample.name, sample.path, sample.content, sample.stream) == (name, path, content, None)
    assert Sample(source, name="mine").name == "mine"
    assert sample == Sample(source)
    assert hash(sample) == hash(Sample(source))


def test_sample_of_a_stream() -> None:
    """A file object is kept as it is, called by its file's base name, or `stream` where it has none."""
    stream = NamedStream(CONTENT)
    sample = Sample(stream)
    assert (sample.name, sample.path, sample.content) == ("x.wav", None, None)
    assert sample.stream is stream
    assert sample == Sample(stream)
    assert sample != Sample(NamedStream(CONTENT))
    assert Sample(io.BytesIO()).name == "stream"
    numbered = NamedStream()
    numbered.name = 3
    assert Sample(numbered).name == "3"
    assert Sample(io.BytesIO(), name="take 1").name == "take 1"


@pytest.mark.parametrize("source", [5, None, ["a.mp3"], object()])
def test_sample_of_nothing_known(source: Any) -> None:
    """What is none of these is told by its type, with the remedy, and without its value."""
    with pytest.raises(RequestInvalid, match=rf"{type(source).__name__} is not a sample \(give a path"):
        Sample(source)


def test_sample_compares_by_source_only() -> None:
    """The name is only what messages call it, and a sample equals nothing else."""
    assert Sample("a.mp3", name="x") == Sample("a.mp3")
    assert Sample("a.mp3") != Sample(b"a.mp3")
    assert Sample("a.mp3") != "a.mp3"


def test_sample_repr_is_its_name() -> None:
    """Neither content nor directories show."""
    assert repr(Sample("home/me/a.mp3")) == "Sample('a.mp3')"
    assert repr(Sample(CONTENT)) == "Sample('19 bytes')"


# --- requests: what may be handed in ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "samples",
    [
        "a.mp3",
        Path("a.mp3"),
        Sample("a.mp3"),
        ["a.mp3"],
        (Path("a.mp3"),),
        [Sample("a.mp3")],
        deque(["a.mp3"]),
        (name for name in ["a.mp3"]),
    ],
    ids=["str", "path", "sample", "list", "tuple", "list-of-samples", "deque", "generator"],
)
def test_forms_of_samples(samples: Any) -> None:
    """One sample or several, in any of their forms, become a tuple of samples."""
    assert request(samples=samples).samples == (Sample("a.mp3"),)


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_forms_of_content(form: Callable[[bytes], Any]) -> None:
    """Content is one sample, alone or in a list, never a sequence of numbers."""
    assert request(samples=form(CONTENT)).samples == request(samples=[form(CONTENT)]).samples == (Sample(CONTENT),)


def test_a_stream_is_one_sample() -> None:
    """A file object is taken as it is, although it could be iterated over."""
    stream = io.BytesIO(CONTENT)
    assert request(samples=stream).samples == request(samples=[stream]).samples == (Sample(stream),)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("f1", ("f1",)),
        ("f1,f2", ("f1", "f2")),
        (" f1 , f2 ", ("f1", "f2")),
        (["f1", "f2"], ("f1", "f2")),
        (("f1",), ("f1",)),
        ([], ()),
    ],
)
def test_forms_of_files(files: Any, expected: tuple[str, ...]) -> None:
    """The remote's own form, one string with commas, is taken apart."""
    assert request(samples=(), files=files).files == expected


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"voice_name": 5}, ["voice_name"]),
        ({"voice_name": None, "language_tag": 1, "account": 2}, ["voice_name", "language_tag", "account"]),
        ({"samples": 5}, ["samples"]),
        ({"samples": {"a": "b"}}, ["samples"]),
        ({"samples": ["a.mp3", 5, None]}, ["samples[1]", "samples[2]"]),
        ({"files": b"f1"}, ["files"]),
        ({"files": ["f1", 2]}, ["files[1]"]),
        ({"need_noise_reduction": "perhaps"}, ["need_noise_reduction"]),
    ],
)
def test_wrong_types_are_named_together(changes: dict[str, Any], fields: list[str]) -> None:
    """Every argument of a wrong type is a fault of one error, which has no other error as its context."""
    with pytest.raises(RequestInvalid) as caught:
        request(**changes)
    assert [fault.field for fault in caught.value.faults] == fields
    assert all(fault.message.startswith(("is no", "are not")) and fault.remedy for fault in caught.value.faults)
    assert caught.value.__context__ is None


def test_wrong_types_do_not_quote_content() -> None:
    """The error for a wrong sample shows nothing of the other samples."""
    with pytest.raises(RequestInvalid) as caught:
        request(samples=[CONTENT, 5], voice_name=7)
    assert "secret" not in f"{caught.value!r}{caught.value}{caught.value.faults}"
    assert caught.value.faults[1].message == "is not a sample"


def test_errors_of_the_whole_are_named_too() -> None:
    """A model that is validated as a whole, not from arguments, fails by name."""
    with pytest.raises(TypeError, match="colour"):
        request(colour="red")
    with pytest.raises(TypeError, match="voice_name"):
        CloneRequest(language_tag="English")  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        CloneRequest.model_validate(5)


def test_request_is_frozen() -> None:
    """A request that was submitted stays what it was."""
    with pytest.raises(ValidationError):
        request().voice_name = "other"  # type: ignore[misc]


def test_requests_compare_by_value() -> None:
    """The same arguments make equal requests with equal hashes; `submit(key=...)` relies on it."""
    assert request() == request(samples=("a.mp3",))
    assert hash(request()) == hash(request())
    assert request(samples=CONTENT) == request(samples=[bytearray(CONTENT)])
    for changes in ({"voice_name": "Zoe"}, {"samples": ["b.mp3"]}, {"account": "A"}, {"need_noise_reduction": False}):
        assert request(**changes) != request()


def test_requests_copy_and_pickle() -> None:
    """Copies and pickles are equal, and do not share what all requests share."""
    original = request(samples=["a.mp3", CONTENT])
    for other in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other == original
    changed = original.model_copy(update={"voice_name": "Ada"})
    assert (changed.voice_name, original.voice_name) == ("Ada", "Zoë")
    assert request().model_fields_set == set(CloneRequest.model_fields)


def test_request_repr_shows_no_content() -> None:
    """Names and numbers show; content does not."""
    shown = repr(request(samples=[CONTENT, "home/a.mp3"], account="A"))
    assert shown == str(request(samples=[CONTENT, "home/a.mp3"], account="A"))
    assert shown == "CloneRequest('Zoë', 'English', samples=[Sample('19 bytes'), Sample('a.mp3')], account='A')"
    assert repr(request(samples=(), files=["f1", "f2"])) == "CloneRequest('Zoë', 'English', 2 files)"


def test_a_waiting_request_is_small() -> None:
    """A request with one path costs some 600 bytes, so that thousands may wait (DESIGN: about a kilobyte a job)."""
    count = 1000
    names = [f"sample-{index}.mp3" for index in range(count)]
    request(samples=names[:1])
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = [CloneRequest(voice_name="Zoë", language_tag="English", samples=(name,)) for name in names]
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(kept) == count
    assert (after - before) / count < 800


# --- requests: their faults -------------------------------------------------------------------------------------------


def file_of(account: str, number: int = 1) -> str:
    """Return a wrapped fileID."""
    return f"user:1-minimax:{account}-file:{number}"


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, []),
        ({"voice_name": "x" * 30}, []),
        ({"voice_name": "é" * 30, "samples": ["a"] * 10}, []),
        ({"samples": (), "files": [file_of("A")], "account": "A"}, []),
        ({"samples": (), "files": ["384001112223334"], "account": "A"}, []),
        ({"voice_name": ""}, ["voice_name"]),
        ({"voice_name": " \t"}, ["voice_name"]),
        ({"voice_name": "x" * 31}, ["voice_name"]),
        ({"voice_name": "\ud800"}, ["voice_name"]),
        ({"language_tag": " "}, ["language_tag"]),
        ({"language_tag": "\udfff"}, ["language_tag"]),
        ({"samples": ()}, ["samples"]),
        ({"samples": ["a"] * 11}, ["samples"]),
        ({"files": ["f"]}, ["samples"]),
        ({"samples": (), "files": ["f"] * 11}, ["files"]),
        ({"samples": (), "files": "f1,,f2,"}, ["files[1]", "files[3]"]),
        ({"samples": (), "files": ["f1,f2", " ", "\ud800"]}, ["files[0]", "files[1]", "files[2]"]),
        ({"account": ""}, ["account"]),
        ({"account": "  "}, ["account"]),
        ({"account": "\ud800"}, ["account"]),
        ({"samples": (), "files": [file_of("A"), file_of("B")]}, ["files"]),
        ({"samples": (), "files": [file_of("A")], "account": "B"}, ["account"]),
    ],
)
def test_each_fault(changes: dict[str, Any], fields: list[str]) -> None:
    """Each limit of the contract is a fault where it is broken, and none where it is just kept."""
    assert fields_at_fault(request(**changes)) == fields


def test_all_faults_at_once() -> None:
    """No fault hides another one."""
    faults = CloneRequest(
        voice_name="x" * 31,
        language_tag="",
        samples=["a.mp3"] * 11,
        files=[file_of("A"), file_of("B"), *[""] * 9],
        account="C",
    ).faults()
    assert [fault.field for fault in faults] == [
        "voice_name",
        "language_tag",
        "samples",
        "samples",
        "files",
        *[f"files[{index}]" for index in range(2, 11)],
        "files",
        "account",
    ]
    assert "31 characters" in faults[0].message
    assert faults[-1].message == "'C' is given, but the files belong to 'A' and 'B'"
    assert fields_at_fault(request(account=" ", samples=(), files=[file_of("A"), file_of("B")])) == ["account", "files"]


@pytest.mark.parametrize(
    ("changes", "pinned"),
    [
        ({}, None),
        ({"account": "A"}, "A"),
        ({"samples": (), "files": ["bare", file_of("B")]}, "B"),
        ({"samples": (), "files": ["bare"]}, None),
        ({"samples": (), "files": [file_of("B")], "account": "A"}, "A"),
    ],
)
def test_pinned_account(changes: dict[str, Any], pinned: str | None) -> None:
    """The account is the one that is named, or else the one that the files tell."""
    assert request(**changes).pinned_account == pinned


@pytest.mark.parametrize(
    ("wrapped_id", "account"),
    [
        ("user:4242-minimax:335577991122334455-file:384001112223334", "335577991122334455"),
        ("user:4242-minimax:335577991122334455-audio:385550001112223", "335577991122334455"),
        ("user:4242-minimax:335577991122334455-voice:391550001112223", "335577991122334455"),
        ("user:1-minimax:my-own-name-file:2", "my-own-name"),
        ("3855500011122233", None),
        ("user:1-minimax:A-video:2", None),
        ("user:1-other:A-file:2", None),
        ("", None),
    ],
)
def test_account_of_an_id(wrapped_id: str, account: str | None) -> None:
    """The documented forms of ids tell their account; any other form tells nothing."""
    assert account_of(wrapped_id) == account


# --- replies ----------------------------------------------------------------------------------------------------------

REPLIES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (VoiceInfo, {"voice_id": "v"}),
    (UploadedSample, {"fileID": "f"}),
    (Account, {"account": "A"}),
    (AccountLoad, {"account": "A"}),
    (VoiceConfig, {}),
    (VoiceSlots, {}),
    (VoicePage, {"voice_list": []}),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow  # many examples
@pytest.mark.parametrize(("model", "needed"), REPLIES, ids=lambda value: getattr(value, "__name__", ""))
@given(data=st.data())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_no_optional_field_can_spoil_a_reply(
    model: type[BaseModel], needed: dict[str, Any], data: st.DataObject
) -> None:
    """Whatever stands in an optional field, the reply is read, the needed field kept and nothing raised."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    optional = data.draw(st.dictionaries(st.sampled_from([*names, "unheard_of", "model_config"]), ANYTHING))
    reply = model.model_validate({**optional, **needed})
    for name, value in needed.items():
        assert reply.model_dump(by_alias=True)[name] == (tuple(value) if value == [] else value)
    repr(reply)
    if isinstance(reply, VoiceInfo):
        assert reply.created_at is None or reply.created_at.tzinfo is UTC
        assert reply.updated_at is None or reply.updated_at.tzinfo is UTC
    if isinstance(reply, VoiceSlots):
        assert reply.free is None or reply.free >= 0


@pytest.mark.parametrize(("model", "needed"), REPLIES[:4], ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("value", [None, "", [], {}, True], ids=repr)
def test_the_one_needed_field_is_needed(model: type[BaseModel], needed: dict[str, Any], value: object) -> None:
    """Without the one field that a caller needs there is no reply."""
    with pytest.raises(ValidationError):
        model.model_validate(dict.fromkeys(needed, value))


def test_unknown_fields_are_kept() -> None:
    """What the documentation does not name is kept in `model_extra`, nested voices included."""
    voice = VoiceInfo.model_validate({"voice_id": "v", "tag_items": [{"category": 1}], "description": "deep"})
    assert voice.model_extra == {"tag_items": [{"category": 1}], "description": "deep"}
    assert VoiceSlots.model_validate({"srt_download": False}).model_extra == {"srt_download": False}


def test_numbers_may_come_as_text_and_text_as_numbers() -> None:
    """Ids that come as numbers and times that come as text are still read."""
    voice = VoiceInfo.model_validate({"voice_id": 385, "create_time": "1737723905123", "voice_status": "2"})
    assert (voice.voice_id, voice.create_time, voice.voice_status) == ("385", 1737723905123, 2)


@pytest.mark.parametrize(
    ("create_time", "created_at"),
    [
        (1737723905123, datetime(2025, 1, 24, 13, 5, 5, 123000, UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (-1000, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (None, None),
        (1e300, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_times_are_aware(create_time: float | None, created_at: datetime | None) -> None:
    """Epoch milliseconds become aware UTC datetimes; what is no time becomes none."""
    voice = VoiceInfo.model_validate({"voice_id": "v", "create_time": create_time, "update_time": create_time})
    assert voice.created_at == voice.updated_at == created_at


def test_a_time_that_is_no_number_is_no_time() -> None:
    """NaN compares with nothing, so it must not reach the search for a voice."""
    assert VoiceInfo(voice_id="v", create_time=float("nan")).create_time is None


def test_voice_learns_its_account() -> None:
    """A voice gets the account it was made on, or that its id tells; it is a new object."""
    wrapped = VoiceInfo(voice_id="user:1-minimax:A-voice:2")
    assert (wrapped.on("B").account, wrapped.on(None).account, wrapped.account) == ("B", "A", None)
    assert VoiceInfo(voice_id="2").on(None).account is None


@pytest.mark.parametrize(
    ("row", "usable"),
    [
        ({}, True),
        ({"supportAudio": True}, True),
        ({"supportAudio": False}, False),
        ({"supportAudio": "who knows"}, True),
        ({"error": "Login failed"}, False),
        ({"error": {"code": 596, "message": "pending"}}, False),
        ({"error": {"code": 596}}, False),
        ({"error": 596}, False),
        ({"error": ["REFRESH_FAILED"]}, False),
        ({"error": None}, True),
        ({"error": ""}, True),
        ({"error": {}}, True),
    ],
)
def test_usable_accounts(row: dict[str, Any], usable: bool) -> None:
    """An account clones unless audio is ruled out or it bears an error, in whatever form that comes."""
    account = Account.model_validate({"account": "A", **row})
    assert account.usable is usable
    assert account.error is None or isinstance(account.error, str)


def test_error_of_an_account_is_its_message() -> None:
    """An error that comes as an object [S] is told by its message, or else whole."""
    assert Account.model_validate({"account": "A", "error": {"message": "pending"}}).error == "pending"
    assert Account.model_validate({"account": "A", "error": {"code": 596}}).error == "{'code': 596}"


@pytest.mark.parametrize(
    ("used", "total", "free"), [(1, 3, 2), (3, 3, 0), (4, 3, 0), (None, 3, None), (1, None, None), (1, "inf", None)]
)
def test_free_slots(used: object, total: object, free: int | None) -> None:
    """`used` may exceed `total` [D C26], and what is not told is not guessed."""
    assert VoiceSlots.model_validate({"used": used, "total": total}).free == free
