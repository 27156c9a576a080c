"""What `_samples` does with files, bytes and streams: verdicts, sharing, copies and chunks."""

import asyncio
import gc
import hashlib
import io
import os
import stat
import subprocess
import sys
import tempfile
import threading
import wave
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO, cast

import anyio
import anyio.lowlevel
import pytest

from useapi_voice import _audio, _samples
from useapi_voice._errors import Fault, SampleChanged
from useapi_voice._models import Sample
from useapi_voice._samples import CHUNK_BYTES, Inspected, SampleBook

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each test on both event loops."""
    return cast("str", request.param)


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[SampleBook]:
    """Open a book whose copies are kept in `spool`."""
    async with SampleBook(tmp_path / "spool") as book:
        yield book


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    """Count the measurements by the size of what is measured, and fail on any file left open."""
    counts: Counter[int] = Counter()
    measure = _audio.measure

    def counting(file: BinaryIO, size_bytes: int) -> Any:
        counts[size_bytes] += 1
        return measure(file, size_bytes)

    monkeypatch.setattr(_samples, "measure", counting)
    yield counts
    gc.collect(1)  # a file that nobody closed warns, and warnings are errors


def tone(duration_s: float = 12, rate_hz: int = 8000) -> bytes:
    """Write a WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(os.urandom(int(duration_s * rate_hz) * 2))
    return out.getvalue()


TONE = tone()


def copies(tmp_path: Path) -> list[Path]:
    """List the copies of streams there are."""
    return sorted((tmp_path / "spool").glob("*"))


async def good(book: SampleBook, source: object, name: str | None = None) -> Inspected:
    """Inspect what must be good."""
    found = await book.inspect(Sample(cast("Any", source), name=name), "samples[0]")
    assert isinstance(found, Inspected), found
    return found


async def bad(book: SampleBook, source: object, name: str | None = None) -> Fault:
    """Inspect what must be faulty."""
    found = await book.inspect(Sample(cast("Any", source), name=name), "samples[7]")
    assert isinstance(found, Fault), found
    assert found.field == "samples[7]"
    assert found.remedy
    return found


async def read(sample: Inspected) -> bytes:
    """Read all the chunks of a sample."""
    async with aclosing(sample.chunks()) as chunks:
        return b"".join([chunk async for chunk in chunks])


class OneShot:
    """A stream that cannot seek and gives little at a time, like a socket; it counts who reads beside whom."""

    def __init__(self, content: bytes, gate: threading.Event | None = None) -> None:
        self.left = io.BytesIO(content)
        self.gate = gate
        self.started = threading.Event()
        self.reading = 0
        self.most_reading = 0

    def read(self, size: int) -> bytes:
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        chunk = self.left.read(min(size, 50_000))
        self.reading -= 1
        return chunk


class Slotted:
    """A stream to which no weak reference can be made."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, size: int) -> bytes:
        chunk, self.content = self.content[:size], self.content[size:]
        return chunk


class AsyncFile:
    """What web frameworks give for an upload."""

    async def read(self, size: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        return b"x" * size


class Promising:
    """A stream whose `read` gives an awaitable that is no coroutine."""

    def read(self, size: int) -> "Promising":
        return self

    def __await__(self) -> Iterator[None]:
        yield


class Failing:
    """A stream that fails, with a secret in the error's text."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self, size: int) -> bytes:
        raise self.error


class BadSeek(io.BytesIO):
    """A stream that knows where it stands and cannot go back there."""

    def seek(self, *_: int) -> int:
        raise OSError("no")


# Verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "pathlike", "bytes", "large bytes", "file", "memory", "pipe"])
async def test_every_source_gives_the_same_sample(book: SampleBook, tmp_path: Path, kind: str) -> None:
    """A path, bytes and any binary stream give the same facts, the same digest and, each time anew, the same bytes."""
    content = tone(20, 16000) if kind == "large bytes" else TONE
    path = tmp_path / "who.wav"
    path.write_bytes(content)
    pipe = subprocess.Popen(
        [sys.executable, "-c", f"import shutil,sys; shutil.copyfileobj(open({str(path)!r},'rb'), sys.stdout.buffer)"],
        stdout=subprocess.PIPE,
    )
    with pipe, path.open("rb") as file:
        source = {
            "path": str(path),
            "pathlike": path,
            "bytes": content,
            "large bytes": content,
            "file": file,
            "memory": io.BytesIO(content),
            "pipe": pipe.stdout,
        }[kind]
        sample = await good(book, source, "who")
        assert (sample.name, sample.size_bytes, sample.content_type) == ("who", len(content), "audio/wav")
        assert sample.duration_s == (20 if kind == "large bytes" else 12)
        assert await sample.digest() == await sample.digest() == hashlib.sha256(content).hexdigest()
        assert await read(sample) == await read(sample) == content
        assert (sample.path is None) is ("bytes" in kind)
        pipe.communicate()


async def test_chunks_are_of_bounded_size(book: SampleBook, tmp_path: Path) -> None:
    """No chunk is larger than `CHUNK_BYTES`, whatever the source."""
    (tmp_path / "a.wav").write_bytes(TONE)
    for source in (TONE, tmp_path / "a.wav"):
        async with aclosing((await good(book, source)).chunks()) as chunks:
            assert [len(chunk) async for chunk in chunks] == [CHUNK_BYTES, len(TONE) - CHUNK_BYTES]


async def test_files_that_cannot_be_samples_are_told(book: SampleBook, tmp_path: Path) -> None:
    """Missing, misplaced, special, empty and unreadable files each get their own words, with the sample's name."""
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "file").write_bytes(TONE)
    os.mkfifo(tmp_path / "fifo")
    said = {
        "missing.mp3": "missing.mp3 does not exist",
        "file/below": "below does not exist",
        "": f"{tmp_path.name} is a directory",
        "fifo": "fifo is not a regular file",
        "empty.mp3": "empty.mp3 is empty, where MP3 or WAV is needed",
        "a\0b": "a?b is no path",
        "x" * 300: f"{'x' * 40}...{'x' * 37} cannot be read: File name too long",
    }
    assert {name: (await bad(book, tmp_path / name)).message for name in said} == said
    for content in ("a\0b", "x" * 300):  # what a caller gets who decoded the content of a file
        assert (await bad(book, content)).remedy == "a str is always a path: pass content as bytes"


async def test_a_file_that_may_not_be_read_is_looked_at_again(
    book: SampleBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused opening is told, and not remembered: the next request may be luckier."""
    (tmp_path / "a.wav").write_bytes(TONE)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert (await bad(book, tmp_path / "a.wav")).message == "a.wav cannot be read: Permission denied"
    await good(book, tmp_path / "a.wav")


@pytest.mark.parametrize("wrap", [lambda content: content, io.BytesIO], ids=["bytes", "stream"])
async def test_content_is_judged(book: SampleBook, tmp_path: Path, wrap: Callable[[bytes], object]) -> None:
    """Too short, too long and other formats are faults of content, of any source, and leave no copy behind."""
    said = {
        "plays for 5 s": tone(5),
        "plays for 61 s": tone(61),
        "looks like Ogg": b"OggS" + bytes(100),
        "looks like text": b"who.mp3",
    }
    for words, content in said.items():
        assert (await bad(book, wrap(content), "who.mp3")).message.startswith(f"who.mp3 {words}, where")
    assert copies(tmp_path) == []


@pytest.mark.parametrize(
    ("stream", "words", "remedy"),
    [
        (lambda: io.StringIO("text"), "is open in text mode", '"rb"'),
        (lambda: OneShot(b""), "has nothing left to read", "seek(0)"),
        (AsyncFile, "is an asynchronous file object", "the file it wraps"),
        (Promising, "is an asynchronous file object", "the file it wraps"),
        (lambda: Failing(ValueError("token=secret")), "cannot be read: ValueError", "fresh"),
        (lambda: Failing(OSError(5, "Input/output error", "secret")), "cannot be read: Input/output error", "fresh"),
    ],
)
async def test_streams_that_cannot_be_read_are_told(
    book: SampleBook, tmp_path: Path, stream: Callable[[], object], words: str, remedy: str
) -> None:
    """Text, spent, asynchronous and failing streams are told with a remedy, and without the text of foreign errors."""
    fault = await bad(book, stream(), "who")
    assert fault.message == f"who {words}"
    assert remedy in fault.remedy
    assert copies(tmp_path) == []


@pytest.mark.parametrize(
    ("chunk", "words"), [("text", "is open in text mode"), (None, "yields NoneType where bytes are needed")]
)
async def test_streams_that_do_not_yield_bytes_are_told(book: SampleBook, chunk: object, words: str) -> None:
    """A `read` that gives text, or `None` (a raw stream that does not block), is refused."""

    class Odd:
        def read(self, size: int) -> object:
            return chunk

    assert (await bad(book, Odd(), "who")).message == f"who {words}"


async def test_an_endless_stream_is_given_up(tmp_path: Path) -> None:
    """A stream is read no further than the book allows, and its copy is deleted."""
    async with SampleBook(tmp_path / "spool", largest_bytes=100_000) as book:
        assert (await bad(book, io.BytesIO(TONE), "who")).message == "who does not end within 100000 bytes"
        assert copies(tmp_path) == []


async def test_a_spool_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A copy that cannot be made is the machine's fault and is told as such, without a file left."""
    (tmp_path / "spool").touch()
    async with SampleBook(tmp_path / "spool") as book:
        fault = await bad(book, io.BytesIO(TONE), "who")
        assert fault.message == "who cannot be copied to a temporary file: File exists"


async def test_a_copy_that_cannot_be_finished_is_deleted(
    book: SampleBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up while a stream is copied is told, and the half copy goes."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_samples, "_measure_file", full)
    fault = await bad(book, io.BytesIO(TONE), "who")
    assert fault.message == "who cannot be copied to a temporary file: No space left on device"
    assert copies(tmp_path) == []


# Sharing ------------------------------------------------------------------------------------------------------------


async def inspect_many(book: SampleBook, source: object, times: int) -> list[Inspected]:
    """Inspect one thing in many tasks at once."""
    found: list[Inspected] = []

    async def one() -> None:
        found.append(await good(book, source))

    async with anyio.create_task_group() as group:
        for _ in range(times):
            group.start_soon(one)
    return found


@pytest.mark.parametrize("kind", ["path", "bytes", "memory", "one shot", "slotted"])
async def test_what_many_share_is_measured_once(
    book: SampleBook, tmp_path: Path, measured: Counter[int], kind: str
) -> None:
    """300 requests at once for one sample cost one measurement, one copy and one source."""
    path = tmp_path / "who.wav"
    path.write_bytes(TONE)
    source: object = {
        "path": path,
        "bytes": TONE,
        "memory": io.BytesIO(TONE),
        "one shot": OneShot(TONE),
        "slotted": Slotted(TONE),
    }[kind]
    samples = await inspect_many(book, source, 300)
    assert len(samples) == 300
    assert measured == {len(TONE): 1}
    assert len({id(sample.source) for sample in samples}) == 1
    assert len(copies(tmp_path)) == (0 if kind in ("path", "bytes") else 1)
    assert await read(samples[-1]) == TONE


async def test_a_batch_is_inspected_in_one_go(
    book: SampleBook, tmp_path: Path, measured: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch looks at each of its files once, and its answers stand in the order of its samples."""
    path = tmp_path / "who.wav"
    path.write_bytes(TONE)
    looked: list[str] = []
    look_at = _samples._look_at

    def counting(path: str) -> Any:
        looked.append(path)
        return look_at(path)

    monkeypatch.setattr(_samples, "_look_at", counting)
    sources: list[Any] = [path, b"text", tmp_path / "missing", TONE, path]
    batch = [(Sample(source), f"samples[{index}]") for index, source in enumerate(sources * 100)]
    answers = await book.inspect_all(batch)
    assert [isinstance(answer, Inspected) for answer in answers] == [True, False, False, True, True] * 100
    assert [answer.field for answer in answers[:3] if isinstance(answer, Fault)] == ["samples[1]", "samples[2]"]
    assert sorted(looked) == sorted([str(path), str(tmp_path / "missing")])
    assert measured[len(TONE)] == 2


async def test_a_cancelled_batch_holds_nothing(book: SampleBook, tmp_path: Path) -> None:
    """When a batch is cancelled half way, the copies already made for it are let go of."""
    gate = threading.Event()
    first, faulty, slow = OneShot(TONE), OneShot(b"text"), OneShot(TONE, gate)
    batch = [(Sample(cast("BinaryIO", stream)), "samples[0]") for stream in (first, faulty, slow)]
    async with anyio.create_task_group() as group:
        group.start_soon(book.inspect_all, batch)
        while not slow.started.is_set():
            await anyio.sleep(0.001)
        assert len(copies(tmp_path)) == 2
        group.cancel_scope.cancel()
    assert len(copies(tmp_path)) == 1
    entry = book._streams[id(slow)]
    gate.set()
    while entry._outcome is None:
        await anyio.sleep(0.001)


async def test_a_changed_file_is_measured_anew(book: SampleBook, tmp_path: Path, measured: Counter[int]) -> None:
    """What is remembered of a file holds for its size and time only."""
    path = tmp_path / "who.wav"
    path.write_bytes(TONE)
    await good(book, path)
    path.write_bytes(tone(20))
    assert (await good(book, path)).duration_s == 20
    assert measured.total() == 2


async def test_only_so_many_files_are_remembered(
    book: SampleBook, tmp_path: Path, measured: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long-lived service does not collect facts for ever: the files not asked for the longest are forgotten."""
    monkeypatch.setattr(_samples, "_REMEMBERED_PATHS", 2)
    for name in "abacb":
        (tmp_path / name).exists() or (tmp_path / name).write_bytes(TONE)
        await good(book, tmp_path / name)
    assert measured.total() == 4  # 'a' is remembered, 'b' forgotten for 'c'


async def test_bytes_are_not_kept_alive(book: SampleBook) -> None:
    """The book forgets bytes with the last `Inspected` of them, without waiting for the garbage collector."""
    gc.disable()
    try:
        sample = await good(book, bytes(bytearray(TONE)))
        assert len(book._contents) == 1
        del sample
        await anyio.lowlevel.checkpoint()
        assert len(book._contents) == 0
    finally:
        gc.enable()


async def test_a_cancelled_inspection_disturbs_nobody(book: SampleBook, measured: Counter[int]) -> None:
    """When the reader of a stream is cancelled, who waits gets it whole, and it is never read twice at once."""
    gate = threading.Event()
    stream = OneShot(TONE, gate)
    found: list[Inspected] = []

    async def wait() -> None:
        found.append(await good(book, stream))

    async with anyio.create_task_group() as waiters:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(good, book, stream)
                while not stream.started.is_set():
                    await anyio.sleep(0.001)
                waiters.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        gate.set()
    assert await read(found[0]) == TONE
    assert stream.most_reading == 1
    assert measured.total() == 1


# Streams and their copies -------------------------------------------------------------------------------------------


async def test_a_stream_is_read_from_where_it_stands_and_put_back(book: SampleBook) -> None:
    """A seekable stream is neither closed nor moved, and what lies before its position is not part of the sample."""
    stream = io.BytesIO(b"before" + TONE)
    stream.seek(6)
    assert await read(await good(book, stream)) == TONE
    assert stream.tell() == 6
    assert not stream.closed


async def test_a_rewound_stream_is_read_again(book: SampleBook) -> None:
    """A fault of a stream that was put back is not remembered: rewound, it may be good."""
    stream = io.BytesIO(TONE)
    stream.seek(0, io.SEEK_END)
    assert "rewind" in (await bad(book, stream)).remedy
    stream.seek(0)
    await good(book, stream)


async def test_a_fault_of_a_one_shot_stream_is_remembered(book: SampleBook) -> None:
    """A stream that was too short is still too short when asked again, and not 'empty'."""
    stream = OneShot(tone(5))
    assert (await bad(book, stream)).message == (await bad(book, stream)).message


async def test_a_copy_goes_with_its_last_hold(book: SampleBook, tmp_path: Path) -> None:
    """Each inspection is a hold, `retain` adds one, and the last `release` deletes the copy; more do nothing."""
    stream = io.BytesIO(TONE)
    first, second = await good(book, stream), await good(book, stream)
    book.retain(second)
    for _ in range(2):
        book.release(first)
        assert len(copies(tmp_path)) == 1
    book.release(second)
    assert copies(tmp_path) == []
    book.release(second)
    with pytest.raises(SampleChanged, match="can no longer be read: No such file"):
        await read(first)
    again = await good(book, stream)
    assert await read(again) == TONE


async def test_files_and_bytes_need_no_holds(book: SampleBook, tmp_path: Path) -> None:
    """The user's own file is never deleted, however often it is released."""
    path = tmp_path / "who.wav"
    path.write_bytes(TONE)
    for source in (path, TONE):
        sample = await good(book, source)
        book.retain(sample)
        for _ in range(3):
            book.release(sample)
        assert await read(sample) == TONE


@pytest.mark.parametrize("stream", [OneShot(TONE), BadSeek(TONE)])
async def test_a_spent_stream_is_told(book: SampleBook, stream: object) -> None:
    """A stream that could not be put back is refused once its copy is gone, rather than read from its end."""
    fresh = OneShot(TONE) if isinstance(stream, OneShot) else BadSeek(TONE)
    book.release(await good(book, fresh))
    fault = await bad(book, fresh, "who")
    assert fault.message == "who was read already, and cannot be read again"


async def test_a_copy_released_while_another_waits_is_made_anew(book: SampleBook) -> None:
    """Who waited for a copy that its first reader gave up at once gets a copy of its own."""
    gate = threading.Event()

    class Gated(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert gate.wait(10)
            return super().read(size)

    stream = Gated(TONE)
    found: list[Inspected] = []

    async def first() -> None:
        book.release(await good(book, stream))

    async def second() -> None:
        found.append(await good(book, stream))

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(second)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert await read(found[0]) == TONE


async def test_a_lost_stream_leaves_no_copy(book: SampleBook, tmp_path: Path) -> None:
    """A copy that nobody holds goes with the object it was made of; a held one stays."""
    stream = OneShot(TONE)
    sample = await good(book, stream)
    del stream
    gc.collect()
    assert await read(sample) == TONE
    book.release(sample)
    assert copies(tmp_path) == []

    stream = OneShot(TONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "retain", lambda _: None)  # as if cancelled just before
        await good(book, stream)
    assert len(copies(tmp_path)) == 1
    del stream
    while copies(tmp_path):
        # The worker thread that read it may hold it for a moment more.
        gc.collect()
        await anyio.sleep(0.001)


async def test_a_copy_is_whole_or_not_there(book: SampleBook, tmp_path: Path) -> None:
    """Where it cannot be written, or its source has changed by then, nothing is left of it."""
    path = tmp_path / "sample.wav"
    path.write_bytes(TONE)
    sample = await good(book, path)
    with pytest.raises(FileNotFoundError):
        await book.copy(sample, str(tmp_path / "nowhere" / "copy"))
    path.write_bytes(tone(20))
    with pytest.raises(SampleChanged):
        await book.copy(sample, str(tmp_path / "copy"))
    assert [found.name for found in tmp_path.iterdir() if found.is_file()] == ["sample.wav"]


async def test_a_recycled_identity_is_not_believed(book: SampleBook) -> None:
    """Another object at the address of a lost one is another stream."""
    one, other = io.BytesIO(TONE), io.BytesIO(tone(20))
    await good(book, one)
    book._streams[id(other)] = book._streams[id(one)]
    assert (await good(book, other)).duration_s == 20
    del one
    gc.collect()
    assert (await good(book, other)).duration_s == 20


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
async def test_copies_are_private(book: SampleBook, tmp_path: Path) -> None:
    """Nobody but their owner may look at copies or at their directory."""
    await good(book, io.BytesIO(TONE))
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    assert stat.S_IMODE(copies(tmp_path)[0].stat().st_mode) == 0o600


async def test_closing_removes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The book's own directory goes when it closes, held copies and all; then it says that it is closed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with SampleBook() as book:
        await good(book, io.BytesIO(TONE))
        assert len(list(tmp_path.glob("useapi_voice-*/sample-*"))) == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="closed"):
        await book.inspect(Sample(TONE), "samples[0]")


async def test_closing_may_leave_what_is_held(tmp_path: Path) -> None:
    """For a store that outlives the process, held copies stay, and only these."""
    book = SampleBook(tmp_path / "spool")
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "other").touch()
    held = await good(book, io.BytesIO(TONE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "retain", lambda _: None)
        one_shot = OneShot(TONE)
        await good(book, one_shot)
    await book.aclose(keep_held=True)
    assert sorted(path.name for path in copies(tmp_path)) == sorted(["other", Path(held.path or "").name])


async def test_a_stream_still_being_read_when_the_book_closes_leaves_nothing(tmp_path: Path) -> None:
    """The thread of a cancelled inspection cleans up behind itself, and starts no copy in a closed book."""
    gate = threading.Event()
    stream = OneShot(TONE, gate)
    book = SampleBook(tmp_path / "spool")
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(good, book, stream)
            while not stream.started.is_set():
                await anyio.sleep(0.001)
            scope.cancel()
    entry = book._streams[id(stream)]
    await book.aclose()
    gate.set()
    while entry._outcome is None:
        await anyio.sleep(0.001)
    assert copies(tmp_path) == []
    assert "cannot be copied" in str(book._spool.take(io.BytesIO(TONE))[0])


# Chunks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["longer", "shorter", "touched", "replaced", "deleted"])
async def test_a_changed_file_is_not_sent(book: SampleBook, tmp_path: Path, change: str) -> None:
    """A file changed since it was inspected raises before anything of it is yielded, and has no digest."""
    path = tmp_path / "who.wav"
    path.write_bytes(TONE)
    sample = await good(book, path)
    match change:
        case "longer":
            path.write_bytes(TONE + b"x")
        case "shorter":
            path.write_bytes(TONE[:-1])
        case "touched":
            os.utime(path, ns=(1, 1))
        case "replaced":
            (tmp_path / "new").write_bytes(TONE)
            (tmp_path / "new").replace(path)
        case _:
            path.unlink()
    with pytest.raises(SampleChanged):
        await anext(sample.chunks())
    with pytest.raises(SampleChanged):
        await sample.digest()


@pytest.mark.parametrize("content", [TONE + b"x", TONE[: CHUNK_BYTES + 1], TONE[:CHUNK_BYTES], bytes(len(TONE))])
async def test_a_file_that_changes_on_the_way_does_not_leave_whole(
    book: SampleBook, tmp_path: Path, content: bytes
) -> None:
    """A file that changes between two chunks raises before the last of them, so that no upload of it can complete."""
    path = tmp_path / "who.wav"
    path.write_bytes(TONE)
    os.utime(path, ns=(1, 1))
    sample = await good(book, path)
    sent: list[bytes] = []

    async def send() -> None:
        async with aclosing(sample.chunks()) as chunks:
            async for chunk in chunks:
                sent.append(chunk)
                path.write_bytes(content)

    with pytest.raises(SampleChanged):
        await send()
    assert 0 < sum(map(len, sent)) < sample.size_bytes


async def test_an_abandoned_reader_leaves_no_file_open(book: SampleBook, tmp_path: Path) -> None:
    """A reader that stops half way, or is cancelled, closes the file behind it."""
    path = tmp_path / "who.wav"
    path.write_bytes(TONE)
    sample = await good(book, path)
    async with aclosing(sample.chunks()) as chunks:
        assert await anext(chunks)
    with anyio.CancelScope() as scope:
        async with aclosing(sample.chunks()) as chunks:
            async for _ in chunks:
                scope.cancel()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await read(sample)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("exists", [True, False])
async def test_a_reader_cancelled_while_the_file_opens_closes_it(
    book: SampleBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """A bare asyncio cancellation during the opening waits for the file and closes it; the cancellation goes on."""
    path = tmp_path / "who.wav"
    path.write_bytes(TONE)
    sample = await good(book, path)
    opened: list[Any] = []
    inside, gate = asyncio.Event(), asyncio.Event()
    really_open = _samples._open_with_aiofiles

    async def slow(path: str) -> Any:
        inside.set()
        await gate.wait()
        opened.append(await really_open(path))
        return opened[0]

    monkeypatch.setattr(_samples, "_open_with_aiofiles", slow)
    if not exists:
        path.unlink()
    task = asyncio.ensure_future(read(sample))
    await inside.wait()
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [file.closed for file in opened] == ([True] if exists else [])


async def test_a_cancelled_digest_is_worked_out_by_the_next(book: SampleBook) -> None:
    """Cancelling one who asks for a digest spoils it for nobody."""
    content = tone(20, 16000)
    sample = await good(book, content)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await sample.digest()
    assert await sample.digest() == hashlib.sha256(content).hexdigest()


async def test_a_relative_path_keeps_its_meaning(
    book: SampleBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is taken from the working directory at inspection, and from no later one."""
    (tmp_path / "who.wav").write_bytes(TONE)
    monkeypatch.chdir(tmp_path)
    sample = await good(book, "who.wav")
    monkeypatch.chdir("/")
    assert sample.path == str(tmp_path / "who.wav")
    assert await read(sample) == TONE
