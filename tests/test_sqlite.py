"""What is the SQLite store's own: one owner, one fsync for many, and every way in which a file or a disk can fail."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from harness import both
from stored import ACCOUNTS, a_job, a_voice, facts, keyed, send

from useapi_voice._errors import CloneCancelled, StoreError
from useapi_voice._jobs import Job, JobState, advance, ending_of
from useapi_voice.stores import KeyTaken, Recovered, _spool, _sqlite_file, sqlite
from useapi_voice.stores.sqlite import SqliteStore

KEEP_S = 24 * 3600.0
NORTH, SOUTH = ACCOUNTS
NOBODY = 65534
SHA, OTHER_SHA = "a" * 64, "b" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file that is not there yet."""
    return tmp_path / "jobs.db"


@asynccontextmanager
async def life(path: Path, keep_s: float = KEEP_S) -> AsyncIterator[tuple[SqliteStore, Recovered]]:
    """Open a store, and close it in order."""
    store = SqliteStore(path, keep_s=keep_s)
    recovered = await store.open()
    try:
        yield store, recovered
    finally:
        await store.aclose()


async def refusal(path: Path) -> str:
    """Return why a file cannot be opened."""
    with pytest.raises(StoreError) as caught:
        async with life(path):
            pass
    assert str(path) in str(caught.value)
    return str(caught.value)


def settle(store: SqliteStore, job: Job, announce: Callable[[], None]) -> None:
    """Tell the store that a job has its voice."""
    if job.state is JobState.QUEUED:
        send(job)
    advance(job, ending_of(a_voice(job.seq)))
    store.settled(job, a_voice(job.seq), announce)


def connection_of(store: SqliteStore) -> sqlite3.Connection:
    """Return the store's own connection, to plant faults in it; no other can be had while the store is open."""
    connection = store._file._connection
    assert connection is not None
    return connection


def snapshot(directory: Path) -> dict[str, bytes]:
    """Return all files there and their contents."""
    return {entry.name: entry.read_bytes() for entry in directory.iterdir() if entry.is_file()}


def spool_file(store: SqliteStore, sha256: str, age_s: float = 0.0) -> Path:
    """Put a copy into the store's directory, as if so long ago."""
    assert store.spool_directory is not None
    copy = Path(store.spool_directory) / sha256
    copy.write_bytes(b"sample")
    os.utime(copy, (time.time() - age_s,) * 2)
    return copy


def spooled_job(seq: int, content: bytes = b"content") -> Job:
    """Make a job whose sample exists in the store's directory only."""
    job = a_job(seq, sample=content)
    (print_,) = job.fingerprints
    assert print_.path is None
    return job


def sha_of(job: Job) -> str:
    """Return the hash of a job's only sample."""
    (print_,) = job.fingerprints
    return print_.sha256


# --- death ------------------------------------------------------------------------------------------------------------

CHILD = """
    import sys
    sys.path[:0] = [{here!r}]
    import anyio
    from stored import a_job, a_voice, keyed, send
    from useapi_voice.stores.sqlite import SqliteStore

    async def main():
        store = SqliteStore({path!r}, keep_s=3600)
        await store.open()
        seq = 0
        while True:
            seq += 1
            await store.add([keyed(a_job(seq), f"key {{seq}}"), a_job(seq + 10_000)])
            print("added", seq, flush=True)
            if seq % 2:
                job = a_job(seq + 20_000)
                await store.add([job])
                await store.sent(send(job))
                print("sent", job.seq, flush=True)

    anyio.run(main)
"""


@contextmanager
def a_child(path: Path) -> Generator[subprocess.Popen[str]]:
    """Run another process that adds and sends jobs without end, and says what it has done."""
    here = str(Path(__file__).parent)
    code = textwrap.dedent(CHILD).format(here=here, path=str(path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("words", [1, 4, 25])
async def test_what_was_promised_survives_the_process(path: Path, words: int) -> None:
    """After SIGKILL at any time, all that was said to be added or sent is there: each batch whole, each send a send."""
    with a_child(path) as child:
        assert child.stdout is not None
        told = [child.stdout.readline().split() for _ in range(words)]
        child.send_signal(signal.SIGKILL)
        told += [line.split() for line in child.stdout if line.endswith("\n")]
    async with life(path) as (_, recovered):
        found = {job.seq: job.state for job in recovered.jobs}
    for word, seq in told:
        if word == "sent":
            assert found.pop(int(seq)) is JobState.SENT
        else:
            assert (found.pop(int(seq)), found.pop(int(seq) + 10_000)) == (JobState.QUEUED, JobState.QUEUED)
    # What was not told, because the process died meanwhile, is there whole or not at all: one operation at the most.
    assert len(found) in {0, 1, 2}


@pytest.mark.slow
async def test_a_file_has_one_owner_until_that_is_dead(path: Path) -> None:
    """Another process is refused, with a word about who it may be and what to use instead; SIGKILL lets go."""
    with a_child(path) as child:
        assert child.stdout is not None
        child.stdout.readline()
        message = await refusal(path)
        assert "another owner" in message
        assert 'store="postgresql://' in message
        child.send_signal(signal.SIGKILL)
        child.wait()
    async with life(path) as (_, recovered):
        assert recovered.jobs


@both
async def test_a_file_has_one_owner_in_a_process_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second client of the same process is refused, whatever it calls the file, and the first is none the worse."""
    monkeypatch.setattr(_sqlite_file, "LOCK_WAIT_S", 0.01)
    async with life(path) as (store, _):
        await store.add([a_job(1)])
        for _round in range(2):
            assert "another VoiceClient of this process" in await refusal(path)
        alias = path.with_name("alias.db")
        alias.symlink_to(path)
        with pytest.raises(StoreError, match="another owner"):
            await SqliteStore(alias, keep_s=KEEP_S).open()
        # POSIX would drop the lock with any descriptor of the file that this process closes: it must not have.
        look = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT 1 FROM jobs').fetchone()"
        outsider = subprocess.run([sys.executable, "-c", look, path], capture_output=True, text=True, check=False)
        assert "locked" in outsider.stderr
        await store.add([a_job(2)])
    async with life(path) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == [1, 2]


# --- commits ----------------------------------------------------------------------------------------------------------


@contextmanager
def commits(store: SqliteStore) -> Generator[list[str]]:
    """Collect the commits that a store makes."""
    seen: list[str] = []
    connection = connection_of(store)
    connection.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
    yield seen
    connection.set_trace_callback(None)


@both
async def test_many_callers_share_a_commit(path: Path) -> None:
    """What is told while a commit is being made goes into one other, however much it is."""
    async with life(path) as (store, _):
        with commits(store) as seen:
            async with anyio.create_task_group() as tasks:
                with store._file.lock:  # a commit that takes its time
                    for seq in range(1, 501):
                        tasks.start_soon(store.add, [a_job(seq)])
                    await wait_all_tasks_blocked()
            assert len(seen) <= 2
        with commits(store) as seen:
            await store.add([a_job(seq) for seq in range(1001, 3001)])
            assert len(seen) == 1


async def test_a_jobs_journey_is_three_commits(path: Path) -> None:
    """Accepted, sent and settled: one each, with all that is noted on the way."""
    async with life(path) as (store, _):
        with commits(store) as seen:
            job, settled = a_job(1), anyio.Event()
            await store.add([job])
            store.uploaded(SOUTH, SHA, "file")
            store.keep_baseline(SOUTH, {"1", "2"})
            await store.sent(send(job))
            settle(store, job, settled.set)
            await settled.wait()
            assert len(seen) <= 5  # notes may be taken alone, if the thread is quicker than the next line
        await store.aclose()
        with pytest.raises(StoreError, match="not open"):
            await store.add([a_job(2)])


@both
async def test_one_bad_operation_fails_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a group that cannot be committed as a whole, each operation is judged by itself."""
    refused: list[int] = []

    async def add(store: SqliteStore, job: Job) -> None:
        try:
            await store.add([job])
        except StoreError:
            refused.append(job.seq)

    announced: list[str] = []
    async with life(path) as (store, _):
        done = keyed(a_job(1), "taken")
        await store.add([done])
        async with anyio.create_task_group() as tasks:
            with store._file.lock:
                for seq in range(2, 40):
                    tasks.start_soon(add, store, keyed(a_job(seq), "taken" if seq % 10 == 5 else f"key {seq}"))
                await wait_all_tasks_blocked()
                store.uploaded(NORTH, SHA, "no text \ud800")
                settle(store, done, lambda: announced.append("settled"))
                store.uploaded(NORTH, OTHER_SHA, "file")
        assert await store.file_id(NORTH, SHA) is None
        assert await store.file_id(NORTH, OTHER_SHA) == "file"
    assert sorted(refused) == [5, 15, 25, 35]
    assert announced == ["settled"]
    assert ["nor ever will be" in record.message for record in caplog.records] == [True]
    async with life(path) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == [seq for seq in range(2, 40) if seq % 10 != 5]


@both
async def test_a_look_up_sees_what_was_told_before_it(path: Path) -> None:
    """And nothing that was told later, though both are done in one commit; or a job would be found before its owner."""
    found: list[bool] = []

    async def look(store: SqliteStore) -> None:
        found.append(await store.find("key") is not None)

    async with life(path) as (store, _):
        with commits(store) as seen:
            async with anyio.create_task_group() as tasks:
                with store._file.lock:
                    store.uploaded(NORTH, SHA, "file")  # so that the thread is busy with something
                    time.sleep(0.02)
                    tasks.start_soon(look, store)
                    await wait_all_tasks_blocked()
                    tasks.start_soon(store.add, [keyed(a_job(1), "key")])
                    await wait_all_tasks_blocked()
                    tasks.start_soon(look, store)
                    await wait_all_tasks_blocked()
        assert sorted(found) == [False, True]
        assert len(seen) <= 2
        with pytest.raises(StoreError):
            await store.add([keyed(a_job(2), "key")])


async def test_a_look_up_that_fails_harms_no_other(path: Path) -> None:
    """A job that makes no sense fails whoever asks for it; what is kept in the same commit is kept."""
    async with life(path) as (store, _):
        await store.add([keyed(a_job(1), "odd")])
        connection_of(store).execute("UPDATE jobs SET payload = '[]'")
        refused: list[str] = []

        async def look() -> None:
            try:
                await store.find("odd")
            except StoreError as error:
                refused.append(str(error))

        async with anyio.create_task_group() as tasks:
            with store._file.lock:
                for seq in range(2, 12):
                    tasks.start_soon(store.add, [keyed(a_job(seq), f"key {seq}")])
                    if seq == 6:
                        tasks.start_soon(look)
                await wait_all_tasks_blocked()
        assert len(refused) == 1
        assert ".recover" in refused[0]
        assert [await store.find(f"key {seq}") is not None for seq in range(2, 12)] == [True] * 10
        connection_of(store).execute("DELETE FROM jobs WHERE key = 'odd'")


async def test_what_makes_no_sense_is_refused(path: Path) -> None:
    """A job that cannot be written down is refused with the reason, and the store goes on."""
    async with life(path) as (store, _):
        job = a_job(1)
        job.fingerprints = ()
        with pytest.raises(StoreError, match="1 samples, but 0 fingerprints"):
            await store.add([job])
        await store.add([a_job(2)])
        with pytest.raises(StoreError, match=r"jobs\.seq") as caught:
            await store.add([a_job(2)])
        assert not isinstance(caught.value, KeyTaken)


@both
async def test_a_bad_announcement_harms_no_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that raises is logged; those after it, and all who wait, are told all the same."""

    def raises() -> None:
        raise RuntimeError("a bug elsewhere")

    told: list[int] = []
    async with life(path) as (store, _):
        jobs = [a_job(seq) for seq in (1, 2, 3)]
        await store.add(jobs)
        for job in jobs:
            settle(store, job, raises if job.seq == 2 else lambda seq=job.seq: told.append(seq))
        await store.add([a_job(4)])
    assert told == [1, 3]
    assert [record.message for record in caplog.records] == ["an announcement failed"]


# --- a store that is not open -----------------------------------------------------------------------------------------


async def test_a_closed_store_promises_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Promises and look-ups are refused; an ending is true all the same, and announced."""
    store = SqliteStore(path, keep_s=KEEP_S)
    told: list[str] = []
    settle(store, a_job(1), lambda: told.append("settled"))
    store.changed(a_job(1))
    for refused in (store.add([a_job(1)]), store.sent(a_job(1)), store.find("key"), store.forget("id")):
        with pytest.raises(StoreError, match="not open"):
            await refused
    with pytest.raises(StoreError, match="not open"):
        store.find_nowait("key")
    assert told == ["settled"]
    assert len(caplog.records) == 2
    assert repr(store) == f"SqliteStore({str(path)!r})"


async def test_a_cancelled_opening_lets_go_of_the_file(path: Path) -> None:
    """Whoever gives up opening leaves nothing behind that keeps others out."""
    for _ in range(3):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await SqliteStore(path, keep_s=KEEP_S).open()
        assert scope.cancelled_caught
    async with life(path):
        pass


def test_a_store_outlived_by_its_thread_lets_go_of_the_file(path: Path) -> None:
    """Where the event loop ended without closing the store, the thread ends with the next thing there is to say."""
    store = SqliteStore(path, keep_s=KEEP_S)
    job = a_job(1)

    async def main() -> None:
        await store.open()
        await store.add([job])

    async def look() -> list[Job]:
        async with life(path) as (_, recovered):
            return list(recovered.jobs)

    asyncio.run(main())
    settle(store, job, lambda: None)
    for thread in threading.enumerate():
        if thread.name.startswith("useapi_voice"):
            thread.join(10)
    assert asyncio.run(look()) == []
    with pytest.raises(StoreError, match="is closed"):
        store.find_nowait("key")


def test_a_path_means_the_same_from_everywhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path starts where the store was made; spaces, accents, question marks and percent signs are names."""
    odd = path.with_name("jö bs?mode=ro&x#%41.db")
    monkeypatch.chdir(path.parent)
    store = SqliteStore(odd.name, keep_s=KEEP_S)

    async def main() -> None:
        monkeypatch.chdir("/")
        await store.open()
        await store.add([a_job(1)])
        await store.aclose()

    asyncio.run(main())
    assert {entry.name for entry in path.parent.iterdir()} == {odd.name, f"{odd.name}.samples"}


# --- files that are not as they should be -----------------------------------------------------------------------------


async def test_only_their_owner_can_read_jobs(path: Path) -> None:
    """The file, its log and the directory of copies are nobody else's, whatever the umask; there are no others."""
    old = os.umask(0)
    try:
        async with life(path) as (store, _):
            await store.add([a_job(1)])
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert modes == {"jobs.db": 0o600, "jobs.db-wal": 0o600, "jobs.db.samples": 0o700}
    assert {entry.name for entry in path.parent.iterdir()} == {"jobs.db", "jobs.db.samples"}


async def test_an_empty_file_is_a_new_one(path: Path) -> None:
    """As a temporary file is made: it is taken, and closed to others."""
    path.touch(0o666)
    async with life(path) as (store, recovered):
        assert recovered == Recovered(jobs=[])
        await store.add([a_job(1)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_a_database_of_another_program_is_left_alone(path: Path, mode: str) -> None:
    """It is refused, and not a byte of it is changed."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(f"PRAGMA journal_mode = {mode}")
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = snapshot(path.parent)
    assert "another program" in await refusal(path)
    assert snapshot(path.parent) == before
    assert [entry.name for entry in path.parent.iterdir()] == ["jobs.db"]


@pytest.mark.parametrize("content", [b"garbage" * 2000, b"xy", b"SQLite format 3\0" + b"\xff" * 5000])
async def test_garbage_is_left_alone(path: Path, content: bytes) -> None:
    """A file that is no database is refused, and not a byte of it is changed."""
    path.write_bytes(content)
    message = await refusal(path)
    assert "no database" in message or "damaged" in message
    assert snapshot(path.parent) == {"jobs.db": content}


async def filled(path: Path, count: int = 300) -> list[Job]:
    """Make a file with jobs in it."""
    jobs = [a_job(seq) for seq in range(1, count + 1)]
    async with life(path) as (store, _):
        await store.add(jobs)
    return jobs


@pytest.mark.parametrize("how", ["a page overwritten", "the end cut off", "the middle of it zeroed"])
async def test_damage_is_found_on_opening(path: Path, how: str) -> None:
    """A file that lost a part is refused with what can be done, before any job of it is worked on."""
    await filled(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    if how == "a page overwritten":
        content[middle : middle + 4096] = os.urandom(4096)
    elif how == "the end cut off":
        del content[middle:]
    else:
        content[middle : middle + 8192] = bytes(8192)
    path.write_bytes(content)
    before = snapshot(path.parent)
    message = await refusal(path)
    assert ".recover" in message
    assert snapshot(path.parent) == before


async def test_a_job_that_makes_no_sense_is_damage(path: Path) -> None:
    """Where the database is whole but a job in it is not, opening says which, and changes nothing."""
    job = (await filled(path, 3))[1]
    edit(path, "UPDATE jobs SET payload = '{\"v\":1}' WHERE seq = 2")
    before = snapshot(path.parent)
    message = await refusal(path)
    assert job.id in message
    assert ".recover" in message
    assert snapshot(path.parent) == before


async def test_a_job_of_a_newer_version_is_not_guessed_at(path: Path) -> None:
    """A payload that this version cannot know is refused as such, not as damage."""
    await filled(path, 3)
    edit(path, "UPDATE jobs SET payload = replace(payload, '{\"v\":1', '{\"v\":2') WHERE seq = 2")
    with pytest.raises(StoreError, match="newer version"):
        await SqliteStore(path, keep_s=KEEP_S).open()


def edit(path: Path, *statements: str) -> None:
    """Change a file behind the store's back, as an operator would."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


async def crash(path: Path, count: int = 5) -> None:
    """Leave a file as a killed process would: a copy of it is taken while it is open."""
    with tempfile.TemporaryDirectory() as directory:
        original = Path(directory) / path.name
        async with life(original) as (store, _):
            await store.add([a_job(seq) for seq in range(1, count + 1)])
            for suffix in ("", "-wal"):
                content = Path(f"{original}{suffix}").read_bytes()
                Path(f"{path}{suffix}").write_bytes(content)


async def test_a_crash_leaves_all_in_the_log(path: Path) -> None:
    """What was promised is read from the log that the dead process left."""
    await crash(path)
    async with life(path) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == [1, 2, 3, 4, 5]


async def test_a_log_that_is_missing_after_a_crash_is_missed(path: Path) -> None:
    """Without it, jobs that were sent would be found waiting: nothing is opened until somebody says to go on."""
    await crash(path)
    log = Path(f"{path}-wal")
    log.rename(path.with_name("elsewhere"))
    for _ in range(2):
        message = await refusal(path)
        assert "Put it back" in message
        assert str(log) in message
    path.with_name("elsewhere").rename(log)
    async with life(path) as (_, recovered):
        assert len(recovered.jobs) == 5
    await crash(path)
    log.unlink()
    log.touch()
    async with life(path) as (_, recovered):
        assert list(recovered.jobs) == []


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
async def test_a_log_that_breaks_off_is_read_as_far_as_it_goes(path: Path, cut: float) -> None:
    """Half a commit is none: what was promised before it is there."""
    with tempfile.TemporaryDirectory() as directory:
        original = Path(directory) / path.name
        async with life(original) as (store, _):
            for seq in range(1, 21):
                await store.add([a_job(seq), a_job(seq + 100)])
            path.write_bytes(original.read_bytes())
            log = Path(f"{original}-wal").read_bytes()
    Path(f"{path}-wal").write_bytes(log[: int(len(log) * cut)])
    async with life(path) as (_, recovered):
        count = len(recovered.jobs) // 2
        assert 0 < count < 21
        assert {job.seq for job in recovered.jobs} == {*range(1, count + 1), *range(101, count + 101)}


# --- versions of the schema -------------------------------------------------------------------------------------------


async def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    """It is left as it is, and the message says to upgrade."""
    await filled(path, 3)
    edit(path, "PRAGMA user_version = 2")
    before = snapshot(path.parent)
    message = await refusal(path)
    assert "upgrade" in message
    assert "schema 2" in message
    assert snapshot(path.parent) == before


async def test_a_file_of_an_older_version_is_brought_forward(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is taken once, from wherever the file stands, and the jobs in it are kept."""
    jobs = await filled(path, 3)
    first = _sqlite_file.MIGRATIONS
    second = ("ALTER TABLE jobs ADD COLUMN tenant TEXT", "UPDATE jobs SET tenant = 'one'")
    third = ("CREATE TABLE tenants (name TEXT)", "INSERT INTO tenants SELECT DISTINCT tenant FROM jobs")
    monkeypatch.setattr(_sqlite_file, "MIGRATIONS", (*first, second, third))
    for _ in range(2):
        async with life(path) as (store, recovered):
            assert [facts(job) for job in recovered.jobs] == [facts(job) for job in jobs]
            connection = connection_of(store)
            assert connection.execute("SELECT name FROM tenants").fetchall() == [("one",)]
            assert connection.execute("PRAGMA user_version").fetchone() == (3,)


async def test_a_file_of_version_0_becomes_one_of_this(path: Path) -> None:
    """One that was marked as ours and never filled, as a crash during the very first opening could leave it."""
    edit(path, f"PRAGMA application_id = {_sqlite_file.APPLICATION_ID}")
    await filled(path, 3)
    async with life(path) as (_, recovered):
        assert len(recovered.jobs) == 3


async def test_a_step_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration is taken whole or not at all, and the file stays good for the version that wrote it."""
    await filled(path, 3)
    before = dump(path)
    with monkeypatch.context() as patch:
        bad = ("CREATE TABLE tenants (name TEXT)", "INSERT INTO nowhere VALUES (1)")
        patch.setattr(_sqlite_file, "MIGRATIONS", (*_sqlite_file.MIGRATIONS, bad))
        assert "no such table: nowhere" in await refusal(path)
    assert dump(path) == before
    async with life(path) as (_, recovered):
        assert len(recovered.jobs) == 3


def dump(path: Path) -> list[str]:
    """Return all that is in a database."""
    connection = sqlite3.connect(path)
    try:
        return [*connection.iterdump(), *map(str, connection.execute("PRAGMA user_version"))]
    finally:
        connection.close()


# --- disks and permissions --------------------------------------------------------------------------------------------


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Give a directory that others than its owner can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextmanager
def as_nobody() -> Generator[None]:
    """Give up root's rights for a while: permissions mean nothing to it. Others have none to give up."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


needs_posix = pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")


@needs_posix
async def test_a_file_that_cannot_be_written_is_refused(open_directory: Path) -> None:
    """A read-only file is not opened for reading instead: it is refused, and left as it is."""
    path = open_directory / "jobs.db"
    await filled(path, 3)
    open_directory.chmod(0o777)
    path.chmod(0o444)
    before = snapshot(open_directory)
    with as_nobody():
        message = await refusal(path)
    assert "permissions" in message
    assert snapshot(open_directory) == before


@needs_posix
async def test_a_directory_that_cannot_be_written_is_refused(open_directory: Path) -> None:
    """Where no file can be made, neither a new store nor the log of an old one, the message names the directory."""
    path = open_directory / "jobs.db"
    with as_nobody():
        assert str(open_directory) in await refusal(path)
    await filled(path, 3)
    path.chmod(0o666)
    open_directory.chmod(0o555)
    before = snapshot(open_directory)
    with as_nobody():
        message = await refusal(path)
    assert "permissions" in message
    assert snapshot(open_directory) == before


async def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    """A directory that is missing, one that is a file, and a file that is a directory: each with its remedy."""
    missing = tmp_path / "missing" / "jobs.db"
    assert f"there is no directory {missing.parent}" in await refusal(missing)
    (tmp_path / "file").touch()
    assert "is no directory" in await refusal(tmp_path / "file" / "jobs.db")
    if Path("/proc").is_dir():  # a directory that takes no files, and says so as if it were not there
        assert "check the permissions of the file and of /proc" in await refusal(Path("/proc/jobs.db"))
    assert "cannot be written" in await refusal(tmp_path)
    name = "x" * 300
    assert "cannot be used" in await refusal(tmp_path / name)


@contextmanager
def no_room(store: SqliteStore) -> Generator[None]:
    """Let a store's file grow no further: SQLite says `database or disk is full`, as on a full disk."""
    connection = connection_of(store)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    yield
    connection.execute("PRAGMA max_page_count = 1000000")


def long_job(seq: int) -> Job:
    """Make a job that needs pages of its own."""
    job = a_job(seq)
    job.request = job.request.model_copy(update={"files": ("x" * 50_000,)})
    return job


@both
async def test_on_a_full_disk_nothing_is_promised(path: Path) -> None:
    """`add` and `sent` are refused with a remedy and leave nothing; when there is room again, all goes on."""
    async with life(path) as (store, _):
        small, large = a_job(1), long_job(2)
        await store.add([small])
        with no_room(store):
            with pytest.raises(StoreError, match=r"disk is full: make room.*keeping 2 jobs"):
                await store.add([a_job(3), large])
            small.request = large.request
            with pytest.raises(StoreError, match="disk is full"):
                await store.sent(send(small))
        small.state, small.history, small.attempts = JobState.QUEUED, (), 0
        await store.add([large])
    async with life(path) as (_, recovered):
        assert [(job.seq, job.state) for job in recovered.jobs] == [(1, JobState.QUEUED), (2, JobState.QUEUED)]


@both
async def test_an_ending_that_cannot_be_kept_is_told_and_kept_later(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk it is announced all the same, found as it is, and written in its order once there is room."""
    async with life(path) as (store, _):
        done, sent, waits = keyed(a_job(1), "done"), a_job(2), keyed(a_job(3), "waits")
        await store.add([done, sent, waits])
        await store.sent(send(done))
        with no_room(store):
            done.request = long_job(1).request
            settled = anyio.Event()
            settle(store, done, settled.set)
            store.uploaded(SOUTH, SHA, "file")
            await settled.wait()
            assert ["not on record" in record.message for record in caplog.records][:1] == [True]
            # What is told later would have found room, but is not kept before what was told earlier.
            with pytest.raises(StoreError, match="disk is full"):
                await store.sent(send(sent))
            for found in (await store.find("done"), store.find_nowait("done")):
                assert found is not None
                assert (found.state, found.outcome) == (JobState.CLONED, a_voice(1))
            waiting = await store.find("waits")
            assert waiting is not None
            assert waiting.id == waits.id
            async with aclosing(store.jobs(JobState.CLONED)) as jobs:
                assert [job.seq async for job in jobs] == [1]
            assert connection_of(store).execute("SELECT state FROM jobs").fetchall() == [
                ("sent",),
                ("queued",),
                ("queued",),
            ]
        await store.sent(sent)
        assert "are on record now" in caplog.records[-1].message
        assert await store.file_id(SOUTH, SHA) == "file"
    async with life(path) as (_, recovered):
        assert [(job.seq, job.state) for job in recovered.jobs] == [(2, JobState.SENT), (3, JobState.QUEUED)]


async def test_what_is_owed_is_tried_again_without_being_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is told nothing more writes what it owes all the same, when it next looks after itself."""
    monkeypatch.setattr(sqlite, "TIDY_EVERY_S", 0.02)
    async with life(path) as (store, _):
        job = a_job(1)
        await store.add([job])
        settled = anyio.Event()
        with no_room(store):
            job.request = long_job(1).request
            settle(store, job, settled.set)
            await settled.wait()
        with anyio.fail_after(10):
            while "are on record now" not in caplog.text:
                await anyio.sleep(0.01)


async def test_a_disk_that_stays_full_does_not_flood_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That notes are owed is logged at once, and again when they have doubled; so hours of it are a page of log."""
    async with life(path) as (store, _):
        await store.add([a_job(1)])
        with no_room(store):
            for number in range(1, 101):
                store.uploaded(SOUTH, f"{number:064x}", "f" * 100_000)
                with pytest.raises(StoreError):
                    await store.sent(a_job(1))
        told = [record.args for record in caplog.records if "not on record" in record.message]
        counts = [args[0] for args in told if isinstance(args, tuple)]
        assert counts == [1, 2, 4, 8, 16, 32, 64]
        caplog.clear()
        await store.file_id(SOUTH, SHA)
        await store.add([a_job(2)])
        assert [record.message for record in caplog.records] == [
            "100 notes that could not be kept before are on record now"
        ]


async def test_what_is_still_owed_at_the_end_is_named(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Closing on a full disk says what is lost; the file is whole, and has the job as it was."""
    store = SqliteStore(path, keep_s=KEEP_S)
    await store.open()
    jobs = [a_job(seq) for seq in range(1, 13)]
    await store.add(jobs)
    for job in jobs:
        await store.sent(send(job))
    told: list[int] = []
    pages = connection_of(store).execute("PRAGMA page_count").fetchone()[0]
    connection_of(store).execute(f"PRAGMA max_page_count = {pages}")
    for job in jobs:
        job.request = long_job(job.seq).request
        settle(store, job, lambda seq=job.seq: told.append(seq))
    await store.aclose()
    assert told == list(range(1, 13))
    assert caplog.records[-1].message.startswith(f"12 notes are lost: keeping how job {jobs[0].id} ended, ")
    assert caplog.records[-1].message.endswith(", ...")
    async with life(path) as (_, recovered):
        assert {job.state for job in recovered.jobs} == {JobState.SENT}


async def test_what_is_owed_is_named_in_full_where_it_is_little(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One note that is lost is one name in the log."""
    store = SqliteStore(path, keep_s=KEEP_S)
    await store.open()
    job = a_job(1)
    await store.add([job])
    connection_of(store).execute("PRAGMA query_only = ON")
    settle(store, job, lambda: None)
    await store.aclose()
    lost = [record.message for record in caplog.records if "lost" in record.message]
    assert lost == [f"1 notes are lost: keeping how job {job.id} ended"]
    assert "log is left" in caplog.records[-1].message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one megabyte, where that is allowed."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a disk is not allowed here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


async def test_a_disk_that_is_really_full(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was promised until the disk was full is there; endings go on being told; room makes all good again."""
    path = small_disk / "jobs.db"
    kept: list[Job] = []
    told: list[int] = []
    async with life(path) as (store, _):
        with pytest.raises(StoreError, match="disk is full"):
            while True:
                job = a_job(len(kept) + 1)
                await store.add([job])
                kept.append(job)
        for job in kept:
            settle(store, job, lambda seq=job.seq: told.append(seq))
        with pytest.raises(StoreError, match="disk is full"):
            await store.add([a_job(10_000 + seq) for seq in range(1000)])
    assert told == [job.seq for job in kept]
    assert "not on record" in caplog.text
    assert len(kept) > 10
    caplog.clear()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    async with life(path) as (store, recovered):
        assert {job.seq for job in recovered.jobs} <= {job.seq for job in kept}
        await store.add([a_job(20_000)])
    assert not caplog.records


async def test_a_new_store_on_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    """A file that could not be filled is not left behind to puzzle the next who looks."""
    (small_disk / "filler").write_bytes(bytes(1024 * 1024 - 4096))
    assert "disk is full" in await refusal(small_disk / "jobs.db")
    assert [entry.name for entry in small_disk.iterdir() if entry.is_file()] == ["filler"]


async def test_a_disk_that_is_read_only(small_disk: Path) -> None:
    """It is refused, with or without a file on it."""
    await filled(small_disk / "old.db", 3)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name in ("old.db", "new.db"):
        assert "read-only" in await refusal(small_disk / name)


class Planted(sqlite3.Connection):
    """A connection on which statements that contain `struck` fail, as on a disk that fails."""

    struck: str = "no statement"

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Fail, or do it."""
        if self.struck in sql:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return super().execute(sql, *values)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Planted]]:
    """Give the kind of connection that stores are opened with meanwhile."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Planted, **options))
    yield Planted
    Planted.struck = "no statement"


@pytest.mark.parametrize(
    "struck", ["locking_mode", "sqlite_master", "quick_check", "synchronous", "jobs", "checkpoint"]
)
async def test_a_disk_that_fails_on_opening(path: Path, planted: type[Planted], struck: str) -> None:
    """Whatever fails, opening says so, a new file is not left behind, and the file is free for the next."""
    planted.struck = struck
    assert "the disk fails" in await refusal(path)
    assert snapshot(path.parent) == {}
    planted.struck = "no statement"
    await filled(path, 3)
    planted.struck = struck
    await refusal(path)
    planted.struck = "no statement"
    async with life(path) as (_, recovered):
        assert len(recovered.jobs) == 3


async def test_a_commit_that_fails_promises_nothing(path: Path, planted: type[Planted]) -> None:
    """A fsync that fails is a promise that is not made."""
    async with life(path) as (store, _):
        planted.struck = "COMMIT"
        with pytest.raises(StoreError, match="the disk fails"):
            await store.add([a_job(1)])
        planted.struck = "no statement"
        await store.add([a_job(2)])
    async with life(path) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == [2]


async def test_a_file_that_cannot_be_read_says_so(path: Path, planted: type[Planted]) -> None:
    """Every look-up raises with the reason."""
    async with life(path) as (store, _):
        planted.struck = "SELECT"
        with pytest.raises(StoreError, match="looking up a key failed"):
            await store.find("key")
        with pytest.raises(StoreError, match="looking up a key failed"):
            store.find_nowait("key")
        with pytest.raises(StoreError, match="looking up an upload failed"):
            await store.file_id(NORTH, SHA)
        with pytest.raises(StoreError, match="listing jobs failed"):
            async with aclosing(store.jobs(None)) as jobs:
                async for _job in jobs:
                    pass
        planted.struck = "no statement"
        assert await store.find("key") is None


# --- time -------------------------------------------------------------------------------------------------------------


async def ended(store: SqliteStore, job: Job) -> None:
    """Let a job end, and wait until that is on record."""
    announced = anyio.Event()
    advance(job, ending_of(CloneCancelled("unwanted")))
    store.settled(job, CloneCancelled("unwanted"), announced.set)
    await announced.wait()


async def test_jobs_that_ended_long_ago_are_dropped_on_opening(path: Path) -> None:
    """Those that have not ended stay whatever their age, and no number is given twice."""
    async with life(path) as (store, _):
        await store.add([keyed(a_job(seq), f"key {seq}") for seq in (1, 2)])
        job = keyed(a_job(3), "key 3")
        await store.add([job])
        await ended(store, job)
    async with life(path, keep_s=60.0) as (store, _):
        assert await store.find("key 3") is not None
    async with life(path, keep_s=0.0) as (store, recovered):
        assert await store.find("key 3") is None
        assert [job.seq for job in recovered.jobs] == [1, 2]
        assert recovered.last_seq == 3


async def test_jobs_that_ended_long_ago_are_dropped_now_and_then(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs for weeks does not keep all of them, nor copies that nobody needs any more."""
    monkeypatch.setattr(sqlite, "TIDY_EVERY_S", 0.02)
    monkeypatch.setattr(_sqlite_file, "DROPPED_AT_ONCE", 2)
    async with life(path, keep_s=0.0) as (store, _):
        copy = spool_file(store, SHA, age_s=_spool.COPY_GRACE_S + 1)
        jobs = [keyed(a_job(seq), f"key {seq}") for seq in range(1, 6)]
        await store.add([*jobs, keyed(a_job(6), "waits")])
        for job in jobs:
            await ended(store, job)
        with anyio.fail_after(10):
            while any([await store.find(f"key {seq}") for seq in range(1, 6)]) or copy.exists():
                await anyio.sleep(0.01)
        assert await store.find("waits") is not None


async def test_failing_to_drop_is_no_reason_to_stop(
    path: Path, planted: type[Planted], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and tried again another time."""
    monkeypatch.setattr(sqlite, "TIDY_EVERY_S", 0.02)
    async with life(path) as (store, _):
        planted.struck = "DELETE FROM jobs"
        with anyio.fail_after(10):
            while "dropping old jobs failed" not in caplog.text:
                await anyio.sleep(0.01)
        planted.struck = "no statement"
        await store.add([a_job(1)])
    caplog.clear()


# --- copies of samples ------------------------------------------------------------------------------------------------


@both
async def test_a_copy_lives_as_long_as_a_job_needs_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs may share one: it goes when both have ended, not before, and is found by both in the next life."""
    monkeypatch.setattr(_spool, "COPY_GRACE_S", 0.0)
    first, second = spooled_job(1), spooled_job(2)
    second.fingerprints = first.fingerprints
    async with life(path) as (store, _):
        copy = spool_file(store, sha_of(first))
        await store.add([first])
        await store.add([second])
        await ended(store, first)
        store._file.tidy()
        assert copy.exists()
    async with life(path) as (store, recovered):
        assert [sample.path for job in recovered.jobs for sample in job.request.samples] == [str(copy)]
        await ended(store, second)
        store._file.tidy()
        assert not copy.exists()


async def test_a_copy_that_is_no_longer_needed_may_be_needed_again(path: Path) -> None:
    """For a while it is left, since somebody may have found it there and be about to add a job; then it goes."""
    async with life(path) as (store, _):
        first, second = spooled_job(1), spooled_job(2)
        second.fingerprints = first.fingerprints
        copy = spool_file(store, sha_of(first), age_s=10_000)
        await store.add([first])
        await ended(store, first)
        store._file.tidy()
        assert copy.exists()
        await store.add([second])
        await ended(store, second)
        os.utime(copy, (0, 0))
        store._file.tidy()
        assert not copy.exists()


async def test_a_job_is_not_accepted_without_its_copy(path: Path) -> None:
    """Where the copy is gone, whoever submits is told to do it again, and nothing was kept."""
    async with life(path) as (store, _):
        job = spooled_job(1)
        with pytest.raises(StoreError, match="submit it again"):
            await store.add([a_job(2), job])
        spool_file(store, sha_of(job))
        await store.add([job])
    async with life(path) as (_, recovered):
        assert [job.seq for job in recovered.jobs] == [1]


async def test_a_job_taken_back_lets_go_of_its_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled submit leaves no copy behind for ever."""
    monkeypatch.setattr(_spool, "COPY_GRACE_S", 0.0)
    async with life(path) as (store, _):
        job = spooled_job(1)
        copy = spool_file(store, sha_of(job))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.add([job])
        await store.find("any")
        assert not store._spool._needed
        store._file.tidy()
        assert not copy.exists()


async def test_copies_that_nobody_needs_go_on_opening_and_closing(path: Path) -> None:
    """Those of crashed submits, whole or not; needed ones stay, and what is not a copy is not touched."""
    async with life(path) as (store, _):
        job = spooled_job(1)
        needed = spool_file(store, sha_of(job))
        await store.add([job])
        assert store.spool_directory is not None
        directory = Path(store.spool_directory)
        orphan = spool_file(store, OTHER_SHA)
    assert not orphan.exists()
    for name in (OTHER_SHA, f"{OTHER_SHA}.0123abc.partial", f"{sha_of(job)}.0123abc.partial", "notes.txt", "sample-1"):
        (directory / name).write_bytes(b"x")
    (directory / f"{'c' * 64}").mkdir()
    async with life(path):
        left = {entry.name for entry in directory.iterdir()}
        assert left == {needed.name, "notes.txt", "sample-1", "c" * 64}


async def test_a_directory_that_was_deleted_under_a_store(path: Path) -> None:
    """Nothing but the jobs whose copies were in it is harmed."""
    async with life(path) as (store, _):
        job = spooled_job(1)
        copy = spool_file(store, sha_of(job))
        await store.add([job])
        copy.unlink()
        copy.parent.rmdir()
        await ended(store, job)
        store._file.tidy()
        await store.add([a_job(2)])
        with pytest.raises(StoreError, match="submit it again"):
            await store.add([spooled_job(3)])


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_a_file_that_was_taken_away_promises_nothing(path: Path, is_replaced: bool) -> None:
    """What only an unlinked file would have is not accepted, nor sent; a new file of that name is another's."""
    async with life(path) as (store, _):
        await store.add([a_job(1)])
        path.unlink()
        if is_replaced:
            async with life(path) as (other, _):
                await other.add([a_job(7)])
        with pytest.raises(StoreError, match="deleted, moved or replaced"):
            await store.add([a_job(2)])
        with pytest.raises(StoreError, match="deleted, moved or replaced"):
            await store.sent(send(a_job(1)))
        store._file.tidy()  # which has nothing to tell anybody
    if is_replaced:
        async with life(path) as (other, _):
            assert [job.seq async for job in other.jobs(None)] == [7]


async def test_a_name_that_cannot_be_made_durable_is_no_obstacle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems cannot sync a directory; the copy is there all the same."""
    async with life(path) as (store, _):
        job = spooled_job(1)
        spool_file(store, sha_of(job))

        def refuse(descriptor: int) -> None:
            raise PermissionError

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            await store.add([job])
        assert hashlib.sha256(b"").hexdigest() != sha_of(job)


async def test_where_copies_cannot_be_kept_nothing_is_opened(path: Path) -> None:
    """A file in the place of the directory is refused before any job is accepted."""
    path.with_name("jobs.db.samples").touch()
    message = await refusal(path)
    assert "jobs.db.samples" in message
    assert not path.exists()
