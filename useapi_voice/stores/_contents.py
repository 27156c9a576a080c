"""
Where the contents of samples are while jobs need them: in the database, or in a directory that all hosts share.

A content is put there before the jobs that need it are added, once per hash, and its row is touched with them. A sweep
drops what nobody has touched for a while and no job needs. It holds the rows of what it drops, so an `add` on another
host either is seen by it, or finds the row gone and puts the content there again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from .._errors import ConfigurationError, StoreError
from .._jobs import Fingerprint
from . import _fleet_sql as sql
from ._database import Connection, Database
from ._spool import sync_directory, unlink

T = TypeVar("T")

ROW_GRACE_S: Final = 60.0
"""How long a content that no job needs is left alone: somebody may be about to add a job with it."""
FILE_GRACE_S: Final = 300.0
"""The same for a file: from when its content was submitted last, which may be minutes before its job is added."""
ORPHAN_GRACE_S: Final = 3600.0
"""How long a file of which the database knows nothing is left alone."""
SCAN_EVERY_S: Final = 3600.0
"""Between two looks for such files."""
MARK: Final = "useapi-voice.mark"
"""The file in a shared directory that says whose it is."""
IN_DATABASE: Final = "database"
IN_DIRECTORY: Final = "directory"

_FILE_NAME: Final = re.compile(r"[0-9a-f]{64}(\..+)?")
"""A content, or one that is being written."""


class Contents(Protocol):
    """What the store asks of either place."""

    spool_directory: str
    """Where a content is copied to when it is submitted, under its hash."""

    async def agree(self, settings: Mapping[str, Any]) -> str:
        """Return where the fleet's samples are from now on. Raises `ConfigurationError`: not where this process has
        them.
        """
        ...

    def locate(self, sha256: str) -> str:
        """Return where a content is read, or would be."""
        ...

    async def put(self, sizes: Mapping[str, int]) -> None:
        """See that these, which were copied to the spool directory, are there for all. Raises `StoreError`."""

    def adding(self, shas: Iterable[str]) -> AbstractContextManager[None]:
        """Around all that adds jobs which need these."""
        ...

    async def fetch(self, holder: str, fingerprints: Sequence[Fingerprint], account: str) -> None:
        """Bring here what of these is not uploaded yet, until `let_go` of this holder. Raises `StoreError`."""

    def let_go(self, holder: str) -> None:
        """Nobody here needs what was fetched for this one."""

    async def sweep(self) -> None:
        """Drop what no job needs. Raises `StoreError`."""

    async def aclose(self) -> None:
        """Let go of all that is this process's alone."""


class InDatabase:
    """
    Contents as rows.

    Args:
        database: The fleet's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Of this process alone. What is submitted here and what is worked on here are apart, as they come and go.
        self._directory = tempfile.mkdtemp(prefix="useapi-voice-")
        self.spool_directory: str = _join(self._directory, "submitted")
        self._fetched = _join(self._directory, "fetched")
        for directory in (self.spool_directory, self._fetched):
            Path(directory).mkdir()
        self._adding: Counter[str] = Counter()
        """How many are being added that need it, by hash."""
        self._holders: dict[str, set[str]] = {}
        self._fetching = asyncio.Lock()

    async def agree(self, settings: Mapping[str, Any]) -> str:
        if settings["samples_in"] == IN_DIRECTORY:
            raise ConfigurationError(
                "the fleet keeps its samples in a directory that all its hosts share, and this client was given none: "
                "pass sample_directory, the same in all processes"
            )
        return IN_DATABASE

    def locate(self, sha256: str) -> str:
        return _join(self._fetched, sha256)

    async def put(self, sizes: Mapping[str, int]) -> None:
        async with self._database.reading("keeping samples") as connection:
            there = {row["sha256"] for row in await connection.fetch(sql.WHICH_SAMPLES, list(sizes))}
            for sha256 in sorted(sizes.keys() - there):
                # One at a time, each on record at once: many of them are more than fits into memory, or into the time
                # for which the clones of this process could wait.
                path = Path(self.spool_directory, sha256)
                content = await _on_disk("a sample cannot be kept: submit it again", path.read_bytes)
                await connection.execute(sql.ADD_SAMPLE, sha256, len(content), content)

    @contextmanager
    def adding(self, shas: Iterable[str]) -> Generator[None, None, None]:
        added = list(shas)
        self._adding.update(added)
        try:
            yield
        finally:
            self._adding.subtract(added)
            for sha256 in added:
                # With the last of those who add it, as all of them have it in the database by now, or have failed.
                if not self._adding[sha256]:
                    del self._adding[sha256]
                    unlink(_join(self.spool_directory, sha256))

    async def fetch(self, holder: str, fingerprints: Sequence[Fingerprint], account: str) -> None:
        async with self._fetching:
            for sha256 in sorted({print_.sha256 for print_ in fingerprints if print_.path is None}):
                holders = self._holders.setdefault(sha256, set())
                holders.add(holder)
                path = self.locate(sha256)
                if await asyncio.to_thread(os.path.exists, path):
                    continue
                async with self._database.reading("reading a sample") as connection:
                    if await connection.fetchval(sql.FILE_ID, account, sha256):
                        continue
                    content = await connection.fetchval(sql.SAMPLE, sha256)
                if content is not None:
                    await _on_disk("a sample cannot be copied", _write_whole, path, content)

    def let_go(self, holder: str) -> None:
        for sha256 in [sha256 for sha256, holders in self._holders.items() if holder in holders]:
            self._holders[sha256].discard(holder)
            if not self._holders[sha256]:
                del self._holders[sha256]
                unlink(self.locate(sha256))

    async def sweep(self) -> None:
        async with self._database.reading("dropping samples") as connection, connection.transaction():
            await _drop_rows(connection, lambda shas: shas)

    async def aclose(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)


class InDirectory:
    """
    Contents as files of a directory that all hosts share, with a row for each, which has no content.

    Args:
        database: The fleet's.
        directory: It must be there; it belongs to one fleet.

    Raises:
        ConfigurationError: It is not there.
    """

    def __init__(self, database: Database, directory: str) -> None:
        self._database = database
        self.spool_directory: str = os.path.abspath(directory)  # noqa: PTH100 - paths are strings here
        if not Path(directory).is_dir():
            raise ConfigurationError(
                f"sample_directory={directory!r} is no directory: make it, on a disk that all hosts of the fleet share"
            )
        self._scan_t = float("-inf")

    async def agree(self, settings: Mapping[str, Any]) -> str:
        where, samples_in = self.spool_directory, settings["samples_in"]
        if samples_in == IN_DATABASE:
            raise ConfigurationError(
                f"sample_directory={where!r}, but the fleet keeps its samples in the database: leave it out, or stop "
                "all replicas, run `useapi-voice fleet samples reset`, and start them with it"
            )
        try:
            mark = await asyncio.to_thread(_read_mark, where)
            if mark is None and samples_in is None:
                await asyncio.to_thread(_write_whole, _join(where, MARK), settings["mark"].encode())
                return IN_DIRECTORY
        except OSError as error:
            raise ConfigurationError(f"sample_directory={where!r} cannot be used: {error.strerror}") from None
        if mark is None:
            raise ConfigurationError(
                f"sample_directory={where!r} is not the directory that the fleet shares: it has no {MARK}. Give all "
                "processes the same, and see that it is mounted on this host"
            )
        if mark != settings["mark"]:
            raise ConfigurationError(
                f"sample_directory={where!r} belongs to another fleet, as its {MARK} says: give each its own; or, if "
                "that fleet is gone, delete this file"
            )
        return IN_DIRECTORY

    def locate(self, sha256: str) -> str:
        return _join(self.spool_directory, sha256)

    async def put(self, sizes: Mapping[str, int]) -> None:
        # The rows first: from then on no sweep takes the files, which are looked at after that.
        async with self._database.reading("keeping samples") as connection:
            await connection.executemany(
                sql.ADD_SAMPLE, [(sha256, size, None) for sha256, size in sorted(sizes.items())]
            )
        found = await _on_disk("a sample cannot be kept", self._sizes, list(sizes))
        for sha256, size in found.items():
            if size != sizes[sha256]:
                problem = "is gone" if size is None else f"is damaged: it has {size} bytes, not {sizes[sha256]}"
                raise StoreError(f"the copy of a sample, {self.locate(sha256)}, {problem}; delete it, and submit again")

    def _sizes(self, shas: Iterable[str]) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for sha256 in shas:
            found[sha256] = None
            with contextlib.suppress(FileNotFoundError):
                found[sha256] = os.stat(self.locate(sha256)).st_size  # noqa: PTH116 - paths are strings here
        sync_directory(self.spool_directory)
        return found

    def adding(self, shas: Iterable[str]) -> AbstractContextManager[None]:
        return nullcontext()

    async def fetch(self, holder: str, fingerprints: Sequence[Fingerprint], account: str) -> None:
        """Read in place."""

    def let_go(self, holder: str) -> None:
        pass

    async def sweep(self) -> None:
        async with self._database.reading("dropping samples") as connection:
            async with connection.transaction():
                await _drop_rows(connection, self._old_ones, self._unlink_all)
            now_t = asyncio.get_running_loop().time()
            if now_t - self._scan_t >= SCAN_EVERY_S:
                self._scan_t = now_t
                await self._drop_orphans(connection)

    async def _drop_orphans(self, connection: Connection) -> None:
        """Drop files of which the database knows nothing: of processes that died between the copy and the job."""
        names = await _on_disk("samples cannot be swept", self._scan)
        unknown = [row["name"] for row in await connection.fetch(sql.UNKNOWN_SAMPLES, names)]
        async with connection.transaction():
            # Whoever is about to add one of these waits now, or is waited for.
            held = [row["sha256"] for row in await connection.fetch(sql.HOLD_UNKNOWN, unknown)]
            old = await _on_disk("samples cannot be swept", self._old_ones, held)
            await _on_disk("samples cannot be swept", self._unlink_all, old)
            await connection.execute(sql.LET_GO_UNKNOWN, held)

    def _scan(self) -> list[str]:
        """Return the contents that are old; what was never written to the end is deleted."""
        found: list[str] = []
        now = self._now()
        with os.scandir(self.spool_directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if _FILE_NAME.fullmatch(entry.name) and now - entry.stat().st_mtime >= ORPHAN_GRACE_S:
                        if "." in entry.name:
                            unlink(entry.path)
                        else:
                            found.append(entry.name)
        return found

    def _old_ones(self, shas: Sequence[str]) -> list[str]:
        """Leave out those whose file was submitted lately; a file that is gone is as old as can be."""
        now = self._now()
        found: list[str] = []
        for sha256 in shas:
            try:
                is_old = now - os.stat(self.locate(sha256)).st_mtime >= FILE_GRACE_S  # noqa: PTH116 - as above
            except FileNotFoundError:
                is_old = True
            if is_old:
                found.append(sha256)
        return found

    def _now(self) -> float:
        """The time by the clock that dates the files, which is nobody's here."""
        mark = _join(self.spool_directory, MARK)
        os.utime(mark)
        return os.stat(mark).st_mtime  # noqa: PTH116 - as above

    def _unlink_all(self, shas: Iterable[str]) -> None:
        for sha256 in shas:
            unlink(self.locate(sha256))

    async def aclose(self) -> None:
        pass


async def _drop_rows(
    connection: Connection,
    choose: Callable[[Sequence[str]], Sequence[str]],
    drop_files: Callable[[Iterable[str]], None] | None = None,
) -> None:
    """In a transaction: hold what seems to be needed no more, look again, and drop it."""
    # Two looks, as the first may be older than the last commit of a job that needs one of these; none can follow.
    found = [row["sha256"] for row in await connection.fetch(sql.OLD_SAMPLES, ROW_GRACE_S)]
    chosen = await _on_disk("samples cannot be swept", choose, found)
    dropped = [row["sha256"] for row in await connection.fetch(sql.DROP_SAMPLES, chosen)]
    if drop_files is not None:
        await _on_disk("samples cannot be swept", drop_files, dropped)


async def _on_disk(problem: str, work: Callable[..., T], *args: Any) -> T:
    """Do something with files in a thread; what goes wrong with them comes out as `StoreError`."""
    try:
        return await asyncio.to_thread(work, *args)
    except OSError as error:
        raise StoreError(f"{problem} ({error.strerror}: {error.filename})") from None


def _join(directory: str, name: str) -> str:
    return os.path.join(directory, name)  # noqa: PTH118 - a path costs more than its name


def _read_mark(directory: str) -> str | None:
    try:
        return Path(directory, MARK).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _write_whole(path: str, content: bytes) -> None:
    """Write a file whole and durable, or not at all."""
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        with Path(partial).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        unlink(partial)
        raise
    sync_directory(os.path.dirname(path))  # noqa: PTH120 - paths are strings here
