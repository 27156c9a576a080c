"""What is told before it costs anything: every fault of every request, in one error, with nothing sent or kept."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness import TOKEN, Heard, Say, ask, in_process, over_loopback, serving, virtual, wav

from useapi_voice import (
    AuthenticationError,
    CloneRequest,
    QueueClosed,
    RequestInvalid,
    Sample,
    SampleRejected,
    StoreError,
    SubscriptionError,
    VoiceClient,
)
from useapi_voice.sandbox import Fault, Sandbox


def nothing_but_questions(sandbox: Sandbox) -> bool:
    """Whether the server heard of no sample and no clone."""
    return not sandbox.uploads and not sandbox.clones and set(sandbox.requests) <= {"accounts", "audio/config"}


def faulty(tmp_path: Path) -> dict[str, tuple[CloneRequest, str]]:
    """Return one request for each fault, with what is said of it."""
    text = tmp_path / "notes.mp3"
    text.write_text("Dear diary, " * 1000)
    empty = tmp_path / "empty.wav"
    empty.touch()
    return {
        "eleven samples": (ask(samples=[wav()] * 11), "samples: 11 are given (give at most 10)"),
        "eleven files": (ask(files=[f"f{n}" for n in range(11)]), "files: 11 are given (give at most 10)"),
        "long name": (ask("n" * 31), "voice_name: 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn' has 31 characters"),
        "no name": (ask(" "), "voice_name: is empty"),
        "no samples": (ask(samples=[]), "samples: no sample is given"),
        "both": (ask(samples=[wav()], files=["f"]), "samples: samples and files are both given"),
        "missing": (ask(samples=[tmp_path / "gone.mp3"]), "samples[0]: gone.mp3 does not exist"),
        "directory": (ask(samples=[tmp_path]), "is a directory"),
        "empty": (ask(samples=[empty]), "samples[0]: empty.wav"),
        "9 s": (ask(samples=[wav(9)]), "samples[0]: 72044 bytes plays for 9 s"),
        "61 s": (ask(samples=[wav(61)]), "samples[0]: 488044 bytes plays for 61 s"),
        "text": (ask(samples=[text]), "samples[0]: notes.mp3"),
        "language": (ask(language_tag="Englsh"), "did you mean 'English'"),
        "no language": (ask(language_tag=""), "language_tag: is empty"),
        "no fileID": (ask(files=["a", " "]), "files[1]: ' ' is not a fileID"),
        "two accounts": (
            ask(files=["user:1-minimax:a-file:1", "user:1-minimax:b-file:2"]),
            "files: belong to several accounts: a, b",
        ),
        "other account": (ask(files=["user:1-minimax:a-file:1"], account="b"), "account: 'b' is given, but"),
        "no account": (ask(account=" "), "account: is empty"),
    }


NAMES = [
    "eleven samples",
    "eleven files",
    "long name",
    "no name",
    "no samples",
    "both",
    "missing",
    "directory",
    "empty",
    "9 s",
    "61 s",
    "text",
    "language",
    "no language",
    "no fileID",
    "two accounts",
    "other account",
    "no account",
]


@pytest.mark.parametrize("name", NAMES)
async def test_each_fault_has_one_sentence(name: str, tmp_path: Path) -> None:
    """A single fault is told in one line that names its place and a remedy; nothing was sent and nothing kept."""
    request, says = faulty(tmp_path)[name]
    sandbox = Sandbox()
    async with in_process(sandbox) as client:
        with pytest.raises(RequestInvalid) as raised:
            await client.submit(request)
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)
        assert raised.value.faults[0].remedy
        assert len(raised.value.faults) == 1
        assert client.statistics().jobs == {}
    assert nothing_but_questions(sandbox)


def test_every_fault_is_tried(tmp_path: Path) -> None:
    """The table above and its names agree."""
    assert list(faulty(tmp_path)) == NAMES


async def test_all_faults_of_all_requests_come_at_once(tmp_path: Path) -> None:
    """A batch is rejected whole, by one error that names every fault with its place."""
    bad = ask("x" * 31, language_tag="Klingon", samples=[wav(9), tmp_path / "gone.mp3", wav()])
    sandbox = Sandbox(accounts=["a"])
    async with over_loopback(sandbox) as client:
        with pytest.raises(RequestInvalid) as raised:
            await client.submit_many([ask("Good"), bad, ask("Good too"), ask(" ")])
        assert [fault.field for fault in raised.value.faults] == [
            "requests[1].voice_name",
            "requests[1].language_tag",
            "requests[1].samples[0]",
            "requests[1].samples[1]",
            "requests[3].voice_name",
        ]
        assert str(raised.value).startswith("5 faults:\n- requests[1].voice_name: ")
        assert not isinstance(raised.value, SampleRejected)
        assert client.statistics().jobs == {}
        await anyio.sleep(0.05)
    assert nothing_but_questions(sandbox)


async def test_faults_of_samples_alone_are_sample_rejected() -> None:
    """Where all faults lie in samples the error says so by its class."""
    async with in_process(Sandbox()) as client:
        with pytest.raises(SampleRejected):
            await client.submit_many([ask(samples=[wav(9)]), ask(samples=[wav(61), wav()])])


@pytest.mark.parametrize(("arguments", "says"), [
    ({"samples": [7]}, r"samples\[0\]"),
    ({"samples": 7}, "samples"),
    ({"need_noise_reduction": "perhaps"}, "need_noise_reduction"),
    ({"voice_name": None}, "voice_name"),
    ({"files": [1]}, r"files\[0\]"),
])  # fmt: skip
def test_wrong_types_are_faults_too(arguments: dict[str, Any], says: str) -> None:
    """What is not even of the right type is told when the request is made."""
    with pytest.raises(RequestInvalid, match=says):
        CloneRequest(**{"voice_name": "A", "language_tag": "English", "samples": [wav()]} | arguments)


async def test_a_wav_from_a_pipe_is_good() -> None:
    """A WAV whose sizes were never filled in (0xFFFFFFFF) is measured by what is there, and cloned."""
    sandbox = Sandbox(clone_s=0.01)
    read_fd, write_fd = os.pipe()
    content = wav(10.5, size=0xFFFFFFFF)

    async def fill() -> None:
        def write() -> None:
            with os.fdopen(write_fd, "wb") as pipe:
                pipe.write(content)

        await anyio.to_thread.run_sync(write)

    async with over_loopback(sandbox) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(fill)
        with os.fdopen(read_fd, "rb") as pipe:
            voice = await client.clone(ask(samples=[pipe]))
        assert voice.voice_name == "Ann"
    assert sandbox.uploads[0].size_bytes == len(content)


async def test_copies_of_streams_live_as_long_as_their_jobs() -> None:
    """A one-shot stream is copied when it is accepted; the copy goes with the job's end, or the rejection."""

    class Once(io.BytesIO):
        def seekable(self) -> bool:
            return False

    sandbox = Sandbox(clone_s=0.05)
    async with over_loopback(sandbox) as client:
        book = client._queue._intake._book
        with pytest.raises(RequestInvalid):
            await client.submit(ask("n" * 31, samples=[Once(wav())]))
        assert book._holds == {}
        first, second = Once(wav()), Once(wav(tone=1))
        job = await client.submit(ask(samples=[first, second]))
        assert len(book._holds) == 2
        copies = [Path(path) for path in book._holds]
        await job
        assert book._holds == {}
        assert not any(copy.exists() for copy in copies)


async def test_a_known_key_gives_its_stream_up_once() -> None:
    """Of two requests of one batch that share a stream and a key, one job is made, and its copy is kept for it."""

    class Once(io.BytesIO):
        def seekable(self) -> bool:
            return False

    sandbox = Sandbox(clone_s=0.01)
    stream = Once(wav())
    async with over_loopback(sandbox) as client:
        request = ask(samples=[stream])
        other = ask("Ben", samples=[stream])
        with pytest.raises(RequestInvalid, match="belongs to another request"):
            await client.submit_many([request, request, other, ask("Cid", samples=[stream])], keys=["k", "k", "b", "k"])
        assert client._queue._intake._book._holds == {}
        fresh = Once(wav())
        jobs = await client.submit_many([ask(samples=[fresh]), ask(samples=[fresh])], keys=["k", "k"])
        assert jobs[0].id == jobs[1].id
        assert list(client._queue._intake._book._holds.values()) == [1]
        await jobs[0]


# --- languages --------------------------------------------------------------------------------------------------------


async def test_near_languages_are_offered() -> None:
    """A misspelt language is told with the nearest ones; one that is like none, with what there is."""
    async with in_process(Sandbox()) as client:
        for tag, says in {
            "english": "did you mean 'English'?)",
            "en": "did you mean 'English'?)",
            "en-US": "did you mean 'English'?)",
            "Englsh": "did you mean 'English'?)",
            "chinese": "did you mean 'Chinese (Mandarin)'",
            "Xhosa!": "it knows Arabic, Chinese (Mandarin), English",
        }.items():
            with pytest.raises(RequestInvalid) as raised:
                await client.submit(ask(language_tag=tag))
            assert f"the remote knows no language {tag!r} ({says}" in str(raised.value)


@virtual
@pytest.mark.parametrize("fault", [
    Fault.status(404), Fault.status(500), Fault.hang(made=False), Fault.status(200, {"voice_tag_language": []}),
    Fault.rate_limited(),
])  # fmt: skip
async def test_a_remote_that_does_not_say_its_languages(fault: Fault) -> None:
    """It is asked once, for ten seconds at the most; then whatever the user says is let through."""
    sandbox = Sandbox(clone_s=10)
    sandbox.fail("config", fault, times=None)
    async with in_process(sandbox) as client:
        await client.submit(ask(language_tag="English"))
        assert anyio.current_time() <= 10
        await client.submit(ask("Ben", language_tag="English"))
    assert sandbox.requests["audio/config"] == 1


@virtual
@pytest.mark.parametrize(("status", "error"), [(401, AuthenticationError), (402, SubscriptionError)])
@pytest.mark.parametrize("endpoint", ["accounts", "config"])
async def test_a_refused_token_is_told_at_once(status: int, error: type[Exception], endpoint: str) -> None:
    """Where the question for languages shows that nothing will work, the submit says so, and nothing is kept."""
    sandbox = Sandbox(clone_s=1)
    rule = sandbox.fail(endpoint, Fault.status(status), times=None)
    async with in_process(sandbox) as client:
        for _ in range(2):
            with pytest.raises(error):
                await client.submit(ask())
        assert client.statistics().jobs == {}
        rule.remove()
        await client.clone(ask())


@virtual
async def test_languages_are_asked_for_once_by_all() -> None:
    """Many first submits at once cause one question, of an account that is in order."""
    sandbox = Sandbox(accounts=["a", "b", "c"], clone_s=1, without_audio=["b"])
    sandbox.break_account("a")
    async with in_process(sandbox) as client:
        async with anyio.create_task_group() as tasks:
            for n in range(20):
                tasks.start_soon(client.submit, ask(f"v{n}"))
        assert (sandbox.count("config"), sandbox.count("accounts")) == (1, 1)


async def test_no_requests_ask_nothing() -> None:
    """An empty batch is no reason to ask, and no error."""
    sandbox = Sandbox()
    async with in_process(sandbox) as client:
        assert await client.submit_many([]) == []
    assert sandbox.requests.total() == 0


@virtual
async def test_a_cancelled_submit_leaves_nothing() -> None:
    """Cancelled before it returns, no job exists; the question that it caused is answered for the next."""
    sandbox = Sandbox(clone_s=1)
    sandbox.fail("config", Fault.delay(3))
    async with in_process(sandbox) as client:
        with anyio.move_on_after(1) as scope:
            await client.submit(ask())
        assert scope.cancelled_caught
        assert client.statistics().jobs == {}
        await client.clone(ask())


@virtual
async def test_closing_during_a_submit() -> None:
    """A submit that is asking when the client is left ends as `QueueClosed`, and leaves no job."""
    sandbox = Sandbox(clone_s=1)
    sandbox.fail("config", Fault.delay(3))
    raised: list[Exception] = []

    async def submit(client: VoiceClient) -> None:
        try:
            await client.submit(ask())
        except QueueClosed as error:
            raised.append(error)

    async with anyio.create_task_group() as tasks, in_process(sandbox, close_grace_s=0) as client:
        tasks.start_soon(submit, client)
        await anyio.sleep(1)
    assert len(raised) == 1


# --- accounts ---------------------------------------------------------------------------------------------------------


async def test_files_of_one_known_account_are_pinned_to_it() -> None:
    """FileIDs that name no account belong to the only one, where there is but one."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    async with in_process(sandbox, accounts=["a"]) as client:
        assert client._queue._intake._pin(ask(files=["opaque"])) == "a"
        assert client._queue._intake._pin(ask(files=["user:1-minimax:z-file:1"])) == "z"
        assert client._queue._intake._pin(ask(account="y")) == "y"
        assert client._queue._intake._pin(ask()) is None


async def test_the_server_is_not_asked_who_owns_files() -> None:
    """Files that name their account need no list of accounts."""
    heard: list[str] = []

    async def handler(request: Heard) -> Say:
        heard.append(f"{request.path}?{request.query}")
        return Say(200, {"voice_id": "v"}) if "clone" in request.path else Say(404)

    async with serving(handler) as base_url, VoiceClient(TOKEN, base_url=base_url, api="audio") as client:
        voice = await client.clone(ask(files="user:1-minimax:7-file:1,user:1-minimax:7-file:2"))
        assert (voice.voice_id, voice.account) == ("v", "7")
    assert sorted(set(heard)) == [
        "/audio/clone-voice?", "/audio/config/?account=7", "/audio/voices/?account=7&is_system=false",
    ]  # fmt: skip


def test_a_str_is_a_path() -> None:
    """A string is never sent as content."""
    [sample] = ask(samples=["who-1.mp3"]).samples
    assert sample == Sample(Path("who-1.mp3"))
    assert sample.content is None


# --- with a store that outlives the process ---------------------------------------------------------------------------


async def test_a_sample_that_changes_while_it_is_accepted(tmp_path: Path) -> None:
    """Between its inspection and its hash a file is rewritten: it is rejected, and nothing is kept."""
    path = tmp_path / "s.wav"
    path.write_bytes(wav())
    async with in_process(Sandbox(), store=tmp_path / "q.db") as client:
        book = client._queue._intake._book
        inspect_all = book.inspect_all

        async def inspect_and_change(samples: Any) -> Any:
            found = await inspect_all(samples)
            os.utime(path, ns=(1, 1))
            return found

        book.inspect_all = inspect_and_change  # type: ignore[method-assign]
        with pytest.raises(SampleRejected, match="has changed"):
            await client.submit(ask(samples=[path]))
        assert client.statistics().jobs == {}


async def test_a_sample_that_cannot_be_kept(tmp_path: Path) -> None:
    """Where the copies of samples cannot be written the job is not accepted, and the error names the directory."""
    async with in_process(Sandbox(), store=tmp_path / "q.db") as client:
        intake = client._queue._intake
        (tmp_path / "file").touch()
        intake._spool_directory = str(tmp_path / "file" / "spool")
        with pytest.raises(StoreError, match="cannot be kept in"):
            await client.submit(ask())
        assert client.statistics().jobs == {}
