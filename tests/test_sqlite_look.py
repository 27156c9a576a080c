"""Looking at a file that another process owns: whole at every moment, and without a trace."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from stored import a_job, keyed, send

from useapi_voice._errors import StoreError
from useapi_voice.stores import _sqlite_look
from useapi_voice.stores._sqlite_look import look
from useapi_voice.stores.sqlite import SqliteStore

KEEP_S = 24 * 3600.0

# Batches of five, one for each line that it reads, of which a look must see all or none; the log begins anew every few
# of them. Asked for it, it says how many jobs there are; it closes the file in order when nobody speaks to it any more.
OWNER = """
    import sys, anyio
    sys.path.insert(0, {here!r})
    from stored import a_job
    from useapi_voice.stores.sqlite import SqliteStore

    async def main():
        store = SqliteStore({path!r}, keep_s=1000)
        await store.open()
        store._file._connection.execute("PRAGMA wal_autocheckpoint = 8")
        count = 0
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            if line == "write\\n":
                await store.add([a_job(count + number) for number in range(1, 6)])
                count += 5
            else:
                print(count, flush=True)
        await store.aclose()

    anyio.run(main)
"""


class Owner:
    """Another process that owns the file, and writes to it when told to."""

    def __init__(self, path: Path) -> None:
        code = textwrap.dedent(OWNER).format(here=str(Path(__file__).parent), path=str(path))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)

    def write(self, batches: int) -> None:
        """Let it add so many batches, and do not wait for them."""
        assert self.process.stdin is not None
        self.process.stdin.write("write\n" * batches)
        self.process.stdin.flush()

    def count(self) -> int:
        """Return how many jobs there are when it has done what it was told."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("count\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def leave(self) -> int:
        """Let it close the file, and return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


@contextmanager
def an_owner(path: Path) -> Generator[Owner]:
    """Run an owner of the file, which has fifteen jobs already, and kill it if it is still there in the end."""
    owner = Owner(path)
    try:
        owner.write(3)
        assert owner.count() == 15
        yield owner
    finally:
        owner.process.kill()
        owner.process.wait()
        for pipe in (owner.process.stdin, owner.process.stdout):
            assert pipe is not None
            pipe.close()


async def keep(path: Path, *jobs: Any) -> None:
    """Make a file that holds these, closed in order."""
    store = SqliteStore(path, keep_s=KEEP_S)
    await store.open()
    await store.add(jobs)
    await store.aclose()


def content_of(directory: Path) -> dict[str, str]:
    """Return what is there, by name and content."""
    return {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest() for entry in directory.iterdir() if entry.is_file()
    }


@pytest.mark.slow
def test_every_look_at_an_owner_at_work_is_whole(tmp_path: Path) -> None:
    """While another process commits and its log begins anew, a look sees whole batches, in order, and never fewer."""
    path = tmp_path / "jobs.db"
    with an_owner(path) as owner:
        seen = [15]
        for _ in range(30):
            owner.write(20)
            seqs = [int(row["request"]["voice_name"].removeprefix("voice ")) for row in look(path)]
            assert seqs == list(range(1, len(seqs) + 1))
            assert len(seqs) % 5 == 0
            seen.append(len(seqs))
        assert seen == sorted(seen)
        assert owner.count() == len(look(path)) == 15 + 30 * 100
        assert owner.leave() == 0  # who was looked at is none the worse: it still has its file, and closes it in order
    assert len(look(path)) == 15 + 30 * 100


async def test_a_look_leaves_no_trace(tmp_path: Path) -> None:
    """Neither the file nor its folder is changed, though an owner would write to both; it need not be writable."""
    path = tmp_path / "jobs.db"
    await keep(path, keyed(a_job(1), "one"), send(a_job(2)))
    Path(f"{path}.samples").rmdir()
    path.chmod(0o400)
    before = content_of(tmp_path)
    rows = look(path)
    assert [(row["key"], row["state"]) for row in rows] == [("one", "queued"), (None, "sent")]
    assert content_of(tmp_path) == before
    assert not Path(f"{path}.samples").exists()


async def test_what_a_killed_owner_left(tmp_path: Path) -> None:
    """The log of a process that was killed is read along, and its loss is told."""
    path = tmp_path / "jobs.db"
    with an_owner(path):
        pass
    left = content_of(tmp_path)
    assert len(look(path)) == 15
    assert content_of(tmp_path) == left
    Path(f"{path}-wal").unlink()
    with pytest.raises(StoreError, match=r"its log .*jobs\.db-wal is missing"):
        look(path)


def test_files_that_hold_no_jobs(tmp_path: Path) -> None:
    """An empty file has no jobs; what is not there, of another program, or no database is told as an owner tells it."""
    path = tmp_path / "jobs.db"
    with pytest.raises(StoreError, match=r"there is no file .*jobs\.db"):
        look(path)
    path.touch()
    assert look(path) == []
    path.write_bytes(b"junk" * 5000)
    with pytest.raises(StoreError, match="is no database"):
        look(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE other (x)")
    with pytest.raises(StoreError, match="is a database of another program"):
        look(path)


async def test_damage_is_told_with_the_files_own_name(tmp_path: Path) -> None:
    """Pages of noise, and a job that makes no sense, are told; no message names the copy."""
    path = tmp_path / "jobs.db"
    await keep(path, *(a_job(seq) for seq in range(1, 200)))
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + os.urandom(16384) + whole[24576:])
    with pytest.raises(StoreError, match=r"jobs\.db is damaged: restore a copy") as told:
        look(path)
    assert "copy.db" not in told.value.message
    path.write_bytes(whole)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE jobs SET payload = 'nonsense' WHERE seq = 7")
        connection.commit()
    with pytest.raises(StoreError, match=r"jobs\.db cannot be used: looking at it failed"):
        look(path)


async def test_no_room_for_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full temporary folder, or none, is told with the way around it; any other trouble stays what it is."""
    path = tmp_path / "jobs.db"
    await keep(path, a_job(1))

    def refuse(number: int) -> Any:
        def copy(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return copy

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", refuse(errno.ENOSPC))
        with pytest.raises(StoreError, match=r"there is no room for a copy of .*jobs\.db .*: set TMPDIR"):
            look(path)
        patch.setattr(shutil, "copyfileobj", refuse(errno.EIO))
        with pytest.raises(StoreError, match="looking at it failed"):
            look(path)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", refuse(errno.ENOENT))
        with pytest.raises(StoreError, match="set TMPDIR"):
            look(path)


async def test_a_log_that_begins_anew_is_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the log changed under the copy, it is made once more; and not without end."""
    path = tmp_path / "jobs.db"
    await keep(path, a_job(1))
    log = Path(f"{path}-wal")
    log.write_bytes(b"")  # as in the middle of an owner's life
    copies = itertools.count(1)
    copy_one = _sqlite_look._copy_one

    def restless(source: str, copy: str) -> None:
        copy_one(source, copy)
        if source == str(log) and next(copies) == 1:
            os.utime(path, ns=(1, 1))
            log.unlink()  # its owner closed the file

    with monkeypatch.context() as patch:
        patch.setattr(_sqlite_look, "_copy_one", restless)
        assert [row["state"] for row in look(path)] == ["queued"]
    assert next(copies) == 2
    moments = itertools.count()
    monkeypatch.setattr(_sqlite_look, "_state", lambda path: next(moments))
    monkeypatch.setattr(_sqlite_look, "_WITHIN_S", 0)
    with pytest.raises(StoreError, match="changes too fast to be looked at"):
        look(path)
