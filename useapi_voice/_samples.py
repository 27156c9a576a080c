"""
Where samples' bytes are read: inspecting them, keeping one-shot streams, and handing out chunks anew for every attempt.

All blocking work runs in worker threads, a few at a time. This is the only room that knows aiofiles, which needs
asyncio itself: files are read through anyio elsewhere, and `bytes` samples touch neither. What audio is, and how long
it may play, is `_audio`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Generic, NamedTuple, Protocol, Self, TypeVar, cast

import aiofiles
import anyio
import anyio.to_thread

from ._audio import AudioFacts, judge, measure
from ._errors import Fault, SampleChanged
from ._models import Sample

T = TypeVar("T")

CHUNK_BYTES: Final = 128 * 1024
_INLINE_BYTES: Final = 256 * 1024
_MEASURED_AT_ONCE: Final = 4
_REMEMBERED_PATHS: Final = 1024
_CLOSE_WITHIN_S: Final = 5.0
_LARGEST_SPOOL_BYTES: Final = 512 * 1024 * 1024  # a minute of 192 kHz float in eight channels is 370 MB

_PATH_REMEDY: Final = "check the path; a relative one starts at the working directory of the process"
_FRESH_REMEDY: Final = "pass a fresh file object, a path or bytes"


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """
    A sample found good.

    Attributes:
        name: What messages call it.
        size_bytes: Its exact size.
        duration_s: How long it plays.
        content_type: `audio/mpeg` or `audio/wav`, by content.
        source: Where its bytes are; shared by all that inspected the same thing.
    """

    name: str
    size_bytes: int
    duration_s: float
    content_type: str
    source: Source

    @property
    def path(self) -> str | None:
        """The file that holds the bytes (the user's own, or the book's copy of a stream); `None` for `bytes`."""
        return self.source.path

    async def digest(self) -> str:
        """
        Return the SHA-256 of the content in hex, worked out once.

        Raises:
            SampleChanged: The file is no longer what was inspected.
        """
        return await self.source.digest()

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """
        Open the sample anew and yield it in chunks of up to `CHUNK_BYTES`, `size_bytes` in all.

        Wrap it in `contextlib.aclosing`, so that the file is closed too when the reader stops half way.

        Raises:
            SampleChanged: The file is no longer what was inspected; the last chunk has then not been yielded.
        """
        return self.source.chunks()


class SampleBook:
    """
    Inspects samples and remembers them: a file or an object shared by 300 requests is read once. Owned by one client.

    Each `Inspected` that `inspect` returns is one hold on its bytes; `retain` adds a hold and `release` gives one up.
    The copy of a stream is deleted with its last hold. All methods are for one event loop.

    Args:
        directory: Where copies of streams are kept (made with mode 0700 if missing); by default a private temporary
            directory, made when it is first needed.
        largest_bytes: Streams are read no further than this.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, largest_bytes: int = _LARGEST_SPOOL_BYTES
    ) -> None:
        self._spool = _Spool(None if directory is None else os.fspath(directory), largest_bytes)
        self._limiter: anyio.CapacityLimiter | None = None
        self._paths: dict[_Place, _Once[_Measured | _Trouble]] = {}
        # An entry lives as long as any `Inspected` of these bytes, and holds them: an id is never reused under it.
        self._contents: weakref.WeakValueDictionary[int, _BytesSource] = weakref.WeakValueDictionary()
        self._streams: dict[int, _Stream] = {}
        self._holds: dict[str, int] = {}
        self._stream_of: dict[str, _Stream] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def inspect(self, sample: Sample, field: str) -> Inspected | Fault:
        """
        Find out whether a sample is there, readable, MP3 or WAV, and 10 to 60 s long.

        Args:
            sample: A stream is copied from where it stands when first seen, and put back there if it can seek.
            field: Where the sample stands in the request, as in `samples[0]`.

        Returns:
            The sample with one hold on it, or what is wrong with it.

        Cancel-safe: a cancelled caller holds nothing, and others who wait for the same sample are not disturbed.
        """
        return (await self.inspect_all([(sample, field)]))[0]

    async def inspect_all(self, samples: Sequence[tuple[Sample, str]]) -> list[Inspected | Fault]:
        """
        Inspect the samples of a batch, each with its field, as `inspect` does; the answers come in their order.

        All paths are looked at in one visit to a worker thread, so that a batch of thousands that share a few files
        costs microseconds a sample. Cancel-safe: a cancelled caller holds nothing.
        """
        if self._closed:
            raise RuntimeError("this SampleBook is closed; inspect samples before the client closes")
        paths = {sample.path for sample, _ in samples if sample.path is not None}
        places = await self._in_thread(_look_at_all, paths) if paths else {}
        answers: list[Inspected | Fault] = []
        try:
            for sample, field in samples:
                answers.append(await self._inspect(sample, field, places))
        except BaseException:
            for answer in answers:
                if isinstance(answer, Inspected):
                    self.release(answer)
            raise
        return answers

    async def _inspect(self, sample: Sample, field: str, places: Mapping[str, _Place | _Trouble]) -> Inspected | Fault:
        found: _Measured | _Trouble
        if sample.content is not None:
            found = await self._measure_bytes(sample.content)
        elif sample.path is not None:
            found = await self._measure_place(places[sample.path])
        else:
            found = await self._measure_stream(cast("BinaryIO", sample.stream))
        name = _shown(sample.name)
        if isinstance(found, _Trouble):
            return Fault(field, f"{name} {found.predicate}", found.remedy)
        fault = judge(found.facts, field, name)
        if fault is not None:
            return fault
        facts = cast("AudioFacts", found.facts)  # anything else is a fault
        inspected = Inspected(sample.name, found.source.size_bytes, facts.duration_s, facts.content_type, found.source)
        self.retain(inspected)
        return inspected

    async def copy(self, inspected: Inspected, path: str) -> None:
        """
        Write the content to `path`, whole and durable or not at all; a file that is there already is left alone.

        Raises:
            SampleChanged: The sample is no longer what was inspected.
            OSError: It cannot be written, as for a full disk.
        """
        if await self._in_thread(_touch_if_there, path):
            return
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        try:
            async with contextlib.aclosing(inspected.chunks()) as chunks, await anyio.open_file(partial, "xb") as file:
                async for chunk in chunks:
                    await file.write(chunk)
                await file.flush()
                await self._in_thread(os.fsync, file.wrapped.fileno())
            await self._in_thread(Path(partial).replace, path)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._in_thread(_unlink_if_there, partial)
            raise

    def retain(self, inspected: Inspected) -> None:
        """Add a hold on the bytes of a sample."""
        if inspected.path in self._stream_of:
            self._holds[inspected.path] = self._holds.get(inspected.path, 0) + 1

    def release(self, inspected: Inspected) -> None:
        """Give up one hold; with the last, the copy of a stream is deleted (one quick system call, made here)."""
        path = inspected.path
        if path not in self._holds:
            return
        self._holds[path] -= 1
        if self._holds[path] > 0:
            return
        del self._holds[path]
        stream = self._stream_of.pop(path)
        stream.spend()
        if stream.can_repeat:
            self._forget(stream)
        self._spool.delete(path)

    async def aclose(self, *, keep_held: bool = False) -> None:
        """
        Delete the copies of streams, and the temporary directory if it is our own.

        Args:
            keep_held: Leave copies that are still held, for a store whose jobs outlive this process.
        """
        self._closed = True
        kept = set(self._holds) if keep_held else set[str]()
        with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True):
            await anyio.to_thread.run_sync(self._spool.close, kept, abandon_on_cancel=True)
        self._streams.clear()
        self._stream_of.clear()
        self._holds.clear()

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        # Abandoned on cancellation: a pipe that nobody writes to must not keep a client from closing.
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_MEASURED_AT_ONCE)
        return await anyio.to_thread.run_sync(work, *args, limiter=self._limiter, abandon_on_cancel=True)

    async def _measure_bytes(self, content: bytes) -> _Measured:
        source = self._contents.get(id(content))
        if source is None:
            source = _BytesSource(content)
            self._contents[id(content)] = source
        return _Measured(source, await source.facts.get(partial(self._measure_content, source.content)))

    async def _measure_content(self, content: bytes) -> AudioFacts | str:
        if len(content) <= _INLINE_BYTES:
            return _measure_content(content)
        return await self._in_thread(_measure_content, content)

    async def _measure_place(self, place: _Place | _Trouble) -> _Measured | _Trouble:
        if isinstance(place, _Trouble):
            return place
        once = self._paths.pop(place, None) or _Once[_Measured | _Trouble]()
        self._paths[place] = once  # at the end: the first is the one not asked for the longest
        if len(self._paths) > _REMEMBERED_PATHS:
            del self._paths[next(iter(self._paths))]
        found = await once.get(lambda: self._in_thread(_measure_file, *place))
        if isinstance(found, _Trouble):
            # What could not be read now may be readable later without a change to the file (permissions, a lost mount).
            self._paths.pop(place, None)
        return found

    async def _measure_stream(self, file: BinaryIO) -> _Measured | _Trouble:
        while True:
            stream = self._streams.get(id(file))
            if stream is None or not stream.is_of(file):
                stream = self._streams[id(file)] = _Stream(file, self._lose)
            once = stream.measured
            found = await once.get(partial(self._in_thread, stream.copy, file, self._spool))
            if stream.measured is once:  # or the last hold was given up while this one waited
                break
        if stream.copy_path is not None:
            self._stream_of[stream.copy_path] = stream
        elif stream.can_repeat:
            # Rewound or rewritten by its owner, it may be good next time.
            self._forget(stream)
        return found

    def _forget(self, stream: _Stream) -> None:
        if self._streams.get(stream.key) is stream:
            del self._streams[stream.key]

    def _lose(self, stream: _Stream) -> None:
        # The caller's object is no more. Nobody is inspecting it, then, and a copy that nobody holds is of no use.
        self._forget(stream)
        if stream.copy_path is not None and stream.copy_path not in self._holds:
            self._stream_of.pop(stream.copy_path, None)
            self._spool.delete(stream.copy_path)


class _Once(Generic[T]):
    """Runs one piece of work at most once at a time and keeps its result; a cancelled runner leaves it to a waiter."""

    __slots__ = ("_running", "_value")

    def __init__(self, value: T | None = None) -> None:
        self._value = value
        self._running: anyio.Event | None = None

    async def get(self, work: Callable[[], Awaitable[T]]) -> T:
        while self._value is None:
            if self._running is not None:
                await self._running.wait()
                continue
            running = self._running = anyio.Event()
            try:
                self._value = await work()
            finally:
                self._running = None
                running.set()
        return self._value


# What is known of a sample, whatever the request it stands in ------------------------------------------------------


class _Stamp(NamedTuple):
    """What tells one state of a file from another."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


class _Trouble(NamedTuple):
    """Why a sample cannot be measured, to follow its name; and what to do about it."""

    predicate: str
    remedy: str


class _Measured(NamedTuple):
    source: Source
    facts: AudioFacts | str


class Source(Protocol):
    """The bytes of a sample, wherever they are."""

    @property
    def path(self) -> str | None: ...

    @property
    def size_bytes(self) -> int: ...

    async def digest(self) -> str: ...

    def chunks(self) -> AsyncGenerator[bytes, None]: ...


class _BytesSource:
    __slots__ = ("__weakref__", "_digest", "content", "facts", "path", "size_bytes")

    def __init__(self, content: bytes) -> None:
        self.path: str | None = None
        self.content = content
        self.size_bytes = len(content)
        # The facts only: what refers back to its owner would keep the content alive until the cycle is collected.
        self.facts: _Once[AudioFacts | str] = _Once()
        self._digest: _Once[str] = _Once()

    async def digest(self) -> str:
        return await self._digest.get(self._hash)

    async def _hash(self) -> str:
        if self.size_bytes <= _INLINE_BYTES:
            return hashlib.sha256(self.content).hexdigest()
        return await anyio.to_thread.run_sync(lambda: hashlib.sha256(self.content).hexdigest())

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for offset in range(0, self.size_bytes, CHUNK_BYTES):
            yield self.content[offset : offset + CHUNK_BYTES]


class _FileSource:
    __slots__ = ("_digest", "_stamp", "path")

    def __init__(self, path: str, stamp: _Stamp) -> None:
        self.path = path
        self._stamp = stamp
        self._digest: _Once[str] = _Once()

    @property
    def size_bytes(self) -> int:
        return self._stamp.size_bytes

    async def digest(self) -> str:
        return await self._digest.get(lambda: anyio.to_thread.run_sync(self._hash))

    def _hash(self) -> str:
        with _missing_is_change(self.path), Path(self.path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._check()
        return digest

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        left_bytes = self.size_bytes
        with _missing_is_change(self.path):
            async with _opened(self.path) as file:
                await anyio.to_thread.run_sync(self._check)
                while left_bytes > 0:
                    chunk = await file.read(min(CHUNK_BYTES, left_bytes))
                    left_bytes -= len(chunk)
                    if not chunk or left_bytes == 0:
                        # Before the last chunk: a changed file must not leave as a complete upload.
                        await anyio.to_thread.run_sync(self._check, left_bytes)
                    yield chunk

    def _check(self, missing_bytes: int = 0) -> None:
        with _missing_is_change(self.path):
            if missing_bytes or _stamp(Path(self.path).stat()) != self._stamp:
                raise SampleChanged(f"{_shown(self.path)} has changed since it was inspected")


@contextlib.contextmanager
def _missing_is_change(path: str) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise SampleChanged(f"{_shown(path)} can no longer be read: {error.strerror or error}") from error


class _Reader(Protocol):
    async def read(self, size: int, /) -> bytes: ...


@contextlib.asynccontextmanager
async def _opened(path: str) -> AsyncGenerator[_Reader, None]:
    """Open a file for reading, with aiofiles on asyncio; closed on every way out, also if cancelled while it opens."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        async with await anyio.open_file(path, "rb") as elsewhere:
            yield elsewhere
        return
    # A cancelled `aiofiles.open` would leave a file that its thread opens a moment later to nobody.
    opening = asyncio.ensure_future(_open_with_aiofiles(path))
    try:
        file = await asyncio.shield(opening)
    except asyncio.CancelledError:
        with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True), contextlib.suppress(OSError):
            await (await opening).close()
        raise
    try:
        yield file
    finally:
        with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True):
            await file.close()


async def _open_with_aiofiles(path: str) -> Any:
    return await aiofiles.open(path, "rb")


# Blocking work: all below runs in worker threads --------------------------------------------------------------------


class _Place(NamedTuple):
    path: str
    stamp: _Stamp


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _look_at_all(paths: Iterable[str]) -> dict[str, _Place | _Trouble]:
    return {path: _look_at(path) for path in paths}


def _look_at(path: str) -> _Place | _Trouble:
    try:
        # What a relative path means must not change with the working directory; links are followed at each opening.
        place = os.path.abspath(path)  # noqa: PTH100
        status = Path(place).stat()
    except (FileNotFoundError, NotADirectoryError):
        return _Trouble("does not exist", _PATH_REMEDY)
    except ValueError:
        return _Trouble("is no path", "a str is always a path: pass content as bytes")
    except OSError as error:
        too_long = error.errno == errno.ENAMETOOLONG
        remedy = "a str is always a path: pass content as bytes" if too_long else _PATH_REMEDY
        return _Trouble(f"cannot be read: {_reason(error)}", remedy)
    if stat.S_ISDIR(status.st_mode):
        return _Trouble("is a directory", "name the files in it one by one")
    if not stat.S_ISREG(status.st_mode):
        return _Trouble("is not a regular file", "open it, and pass the open file object")
    return _Place(place, _stamp(status))


def _measure_file(path: str, stamp: _Stamp) -> _Measured | _Trouble:
    try:
        with Path(path).open("rb") as file:
            return _Measured(_FileSource(path, stamp), measure(file, stamp.size_bytes))
    except OSError as error:
        return _Trouble(f"cannot be read: {_reason(error)}", _PATH_REMEDY)


def _measure_content(content: bytes) -> AudioFacts | str:
    return measure(io.BytesIO(content), len(content))


def _reason(error: Exception) -> str:
    # The text of a foreign error may hold a signed address or a token; its class and the system's own words cannot.
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _shown(name: str) -> str:
    # It goes into messages and logs, and may be anything: content that was taken for a path, say.
    plain = "".join(character if character.isprintable() else "?" for character in name)
    return plain if len(plain) <= 80 else f"{plain[:40]}...{plain[-37:]}"


class _Stream:
    """
    A caller's file object, copied at most once, and never closed.

    Attributes:
        key: Its id.
        measured: What came of it.
        can_repeat: Whether it was put back to where it stood.
        copy_path: Where its copy is, if it is good.
    """

    __slots__ = ("__weakref__", "_lock", "_outcome", "_ref", "can_repeat", "copy_path", "key", "measured")

    def __init__(self, file: BinaryIO, forget: Callable[[_Stream], None]) -> None:
        self.key = id(file)
        self.measured: _Once[_Measured | _Trouble] = _Once()
        self.can_repeat = False
        self.copy_path: str | None = None
        self._outcome: _Measured | _Trouble | None = None
        # A cancelled caller abandons the thread that reads; who asks next must wait for it, not read beside it.
        self._lock = threading.Lock()
        try:
            self._ref: Callable[[], BinaryIO | None] = weakref.ref(file, lambda _: forget(self))
        except TypeError:
            self._ref = lambda: file

    def is_of(self, file: BinaryIO) -> bool:
        return self._ref() is file

    def spend(self) -> None:
        """Remember that the copy is deleted and the object cannot be read again."""
        self.copy_path = None
        self.measured = _Once(_Trouble("was read already, and cannot be read again", _FRESH_REMEDY))

    def copy(self, file: BinaryIO, spool: _Spool) -> _Measured | _Trouble:
        with self._lock:
            if self._outcome is None:
                self._outcome = self._copy(file, spool)
            return self._outcome

    def _copy(self, file: BinaryIO, spool: _Spool) -> _Measured | _Trouble:
        if isinstance(file, io.TextIOBase):
            return _TEXT
        start = _position(file)
        found, self.copy_path = spool.take(file)
        if start is not None:
            with contextlib.suppress(Exception):
                file.seek(start)
                self.can_repeat = True
        return found


_TEXT: Final = _Trouble("is open in text mode", 'open it in binary mode: open(path, "rb")')


def _touch_if_there(path: str) -> bool:
    """A copy that is needed again is young again, lest it be swept away as one that nobody needs."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _unlink_if_there(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - paths are strings here


def _position(file: BinaryIO) -> int | None:
    try:
        return file.tell() if file.seekable() else None
    except Exception:  # noqa: BLE001 - a caller's object may raise anything, or know neither method
        return None


class _Spool:
    """Copies of streams, in files that only their owner can read."""

    def __init__(self, directory: str | None, largest_bytes: int) -> None:
        self._lock = threading.Lock()  # guards all fields: copies are made in several threads at once
        self._directory = directory
        self._own_directory: str | None = None
        self._largest_bytes = largest_bytes
        self._paths: set[str] = set()
        self._closed = False

    def take(self, file: BinaryIO) -> tuple[_Measured | _Trouble, str | None]:
        """Copy a stream from where it stands and measure the copy; return its path too if it is good and kept."""
        path = None
        found: _Measured | _Trouble
        try:
            descriptor, path = self._create()
            with os.fdopen(descriptor, "wb") as copy:
                trouble = self._fill(copy, file)
            found = trouble or _measure_file(path, _stamp(Path(path).stat()))
        except OSError as error:
            found = _Trouble(
                f"cannot be copied to a temporary file: {_reason(error)}", "make room there, or pass a path or bytes"
            )
        if path is None:
            return found, None
        if isinstance(found, _Measured) and judge(found.facts, "", "") is None and not self._closed:
            return found, path
        self.delete(path)
        return found, None

    def _create(self) -> tuple[int, str]:
        with self._lock:
            if self._closed:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            if self._directory is None:
                self._directory = self._own_directory = tempfile.mkdtemp(prefix="useapi_voice-")
            else:
                Path(self._directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, path = tempfile.mkstemp(prefix="sample-", dir=self._directory)
            path = os.path.abspath(path)  # noqa: PTH100 - as a path given by the user would be
            self._paths.add(path)
            return descriptor, path

    def _fill(self, copy: BinaryIO, file: BinaryIO) -> _Trouble | None:
        read = cast("Callable[[int], object]", file.read)
        size_bytes = 0
        while True:
            try:
                chunk = read(CHUNK_BYTES)
            except Exception as error:  # noqa: BLE001 - a caller's object may raise anything
                return _Trouble(f"cannot be read: {_reason(error)}", _FRESH_REMEDY)
            if not isinstance(chunk, bytes | bytearray | memoryview):
                return _not_bytes(chunk)
            if not chunk:
                break
            size_bytes += len(chunk)
            if size_bytes > self._largest_bytes:
                return _Trouble(f"does not end within {self._largest_bytes} bytes", "pass one sample of 10 to 60 s")
            copy.write(chunk)
        if size_bytes == 0:
            return _Trouble("has nothing left to read", f"rewind it with seek(0), or {_FRESH_REMEDY}")
        return None

    def delete(self, path: str) -> None:
        with contextlib.suppress(OSError):
            Path(path).unlink()
        self._paths.discard(path)

    def close(self, kept: set[str]) -> None:
        with self._lock:
            self._closed = True
            for path in self._paths - kept:
                self.delete(path)
            if self._own_directory is not None and not kept:
                shutil.rmtree(self._own_directory, ignore_errors=True)


def _not_bytes(chunk: object) -> _Trouble:
    if isinstance(chunk, str):
        return _TEXT
    if isinstance(chunk, Awaitable):
        if isinstance(chunk, Coroutine):
            chunk.close()  # or it complains that it was never awaited
        return _Trouble("is an asynchronous file object", "pass the file it wraps, a path or bytes")
    return _Trouble(f"yields {type(chunk).__name__} where bytes are needed", _FRESH_REMEDY)
