"""
The store in one SQLite file: one owner, one thread that owns the connection, one commit for all that is pending.

    PATH            the database; made with mode 0600, as is its log
    PATH-wal        SQLite's write-ahead log: a part of the database, gone only after it was closed in order
    PATH.samples    copies of samples that exist nowhere else, each named by its hash; mode 0700

A call leaves an operation in the thread's inbox, and waits for its word where the contract promises something. The
thread takes all that is there, writes it in one transaction, which costs one fsync, and brings the news to the event
loop in one hop. Operations are kept in the order in which they were told, always: where one cannot be kept because the
file cannot be written, none that was told after it is kept before it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import re
import sqlite3
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.lowlevel

from .._errors import StoreError
from .._jobs import OCCUPYING_STATES, Fingerprint, Job, JobState, Outcome
from .._recovery import voice_key
from . import Recovered, codec
from .codec import Row

logger = logging.getLogger("useapi_voice")

T = TypeVar("T")
Connection = sqlite3.Connection

APPLICATION_ID: Final = 0x75735631
"""What marks a file as ours, in the database's own header: `usV1`."""
LOCK_WAIT_S: Final = 1.0
"""How long opening waits for another owner to let go: as long as a process takes to close, and no longer."""
TIDY_EVERY_S: Final = 60.0
"""How often the thread looks after itself: drops what is too old, and tries again to write what it owes."""
DROPPED_AT_ONCE: Final = 5_000
"""How many old jobs one look drops at the most, so that none who waits for a commit waits long."""
COPY_GRACE_S: Final = 300.0
"""How long a copy that no job needs is left alone: whoever put it there, or found it, may be about to add its job."""
PAGE_ROWS: Final = 250
"""How many jobs a listing reads at a time, in one visit to the thread."""

# One connection is opened at a time: POSIX drops all locks that a process has on a file when it closes any descriptor
# of it, so that a file that was just made here must not be opened there before its descriptor is closed again.
_OPENING = threading.Lock()

# --- the schema ------------------------------------------------------------------------------------------------------

# `seq` is the row's own number, so that rows lie in the order of submission; AUTOINCREMENT remembers the highest ever
# given when its row is dropped. `payload` is `codec`'s; what stands beside it is looked up. Times are ISO 8601 in UTC
# with microseconds, which sort as text. `is_closed` is 0 while somebody has the file open, in the file itself too, not
# only in its log: see `_check_log`.
_TO_VERSION_1: Final = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        key TEXT UNIQUE,
        state TEXT NOT NULL,
        priority INTEGER NOT NULL,
        account TEXT,
        pinned TEXT,
        voice_name TEXT NOT NULL,
        payload TEXT NOT NULL,
        sent_at TEXT,
        settled_at TEXT,
        voice_id TEXT
    )
    """,
    "CREATE INDEX jobs_by_end ON jobs (settled_at)",
    """
    CREATE TABLE uploads (
        account TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        file_id TEXT NOT NULL,
        PRIMARY KEY (account, sha256)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE baselines (
        account TEXT NOT NULL,
        voice_key TEXT NOT NULL,
        PRIMARY KEY (account, voice_key)
    ) WITHOUT ROWID
    """,
    "CREATE TABLE pauses (account TEXT PRIMARY KEY, until_at TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE life (is_closed INTEGER NOT NULL)",
    "INSERT INTO life VALUES (0)",
)
MIGRATIONS: tuple[Sequence[str], ...] = (_TO_VERSION_1,)
"""What leads from each version to the next: `PRAGMA user_version` counts the steps taken. Only ever added to."""

# --- queries ---------------------------------------------------------------------------------------------------------

_COLUMNS: Final = "id, key, state, priority, seq, account, pinned, voice_name, payload, sent_at, settled_at, voice_id"
# A new job; a second one of its key, its id or its number is refused by the table.
_ADD: Final = f"INSERT INTO jobs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own names
# All of a job that can change, by its number, the cheapest way to a row. One that was forgotten stays so.
_UPDATE: Final = """
    UPDATE jobs SET state = ?, account = ?, pinned = ?, payload = ?, sent_at = ?, settled_at = ?, voice_id = ?
    WHERE seq = ? AND id = ?
"""
# A job that was added for somebody who did not wait for it.
_TAKE_BACK: Final = "DELETE FROM jobs WHERE seq = ? AND id = ?"
# One that has ended, by the name that callers know.
_FORGET: Final = "DELETE FROM jobs WHERE id = ? AND settled_at IS NOT NULL"
# Some of those that ended too long ago.
_DROP: Final = "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE settled_at < ? LIMIT ?)"
# All that have not ended, as they were submitted: the index has them side by side, in this order.
_UNSETTLED: Final = f"SELECT {_COLUMNS} FROM jobs WHERE settled_at IS NULL ORDER BY seq"  # noqa: S608 - our own names
# One page of a listing, from where the last one stopped.
_PAGE: Final = f"SELECT {_COLUMNS} FROM jobs WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - our own names
# The job of a key.
_FIND: Final = f"SELECT {_COLUMNS} FROM jobs WHERE key = ?"  # noqa: S608 - our own names
# The voices of the jobs that have ended on one account.
_VOICES: Final = "SELECT voice_id FROM jobs WHERE settled_at IS NOT NULL AND account = ? AND voice_id IS NOT NULL"
# And the jobs among them to which more than one voice was found; their JSON is read for the others.
_SURPLUS: Final = f"""
    SELECT {_COLUMNS} FROM jobs
    WHERE settled_at IS NOT NULL AND account = ? AND instr(payload, '"surplus":[]') = 0
"""  # noqa: S608 - our own names
# The highest number ever given; none before the first.
_LAST_SEQ: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'jobs'"

# What is where at the remote.
_FILE_ID: Final = "SELECT file_id FROM uploads WHERE account = ? AND sha256 = ?"
_UPLOADED: Final = "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)"
_FORGET_UPLOAD: Final = "DELETE FROM uploads WHERE account = ? AND file_id = ?"

# A baseline is replaced as a whole, and one without voices is one as well: its row has an empty key.
_CLEAR_BASELINE: Final = "DELETE FROM baselines WHERE account = ?"
_ADD_BASELINE: Final = "INSERT OR IGNORE INTO baselines VALUES (?, ?)"
_BASELINE: Final = "SELECT voice_key FROM baselines WHERE account = ?"

_PAUSE: Final = "INSERT OR REPLACE INTO pauses VALUES (?, ?)"
# Pauses that are over are dropped when the file is opened.
_DROP_PAUSES: Final = "DELETE FROM pauses WHERE until_at <= ?"
_PAUSES: Final = "SELECT account, until_at FROM pauses"

_MARK_OPEN: Final = "UPDATE life SET is_closed = 0"
_MARK_CLOSED: Final = "UPDATE life SET is_closed = 1"
_IS_CLOSED: Final = "SELECT is_closed FROM life"

# --- operations ------------------------------------------------------------------------------------------------------


class _Reply:
    """What the thread answers to one who waits."""

    __slots__ = ("_arrived", "error", "value")

    def __init__(self) -> None:
        self._arrived = anyio.Event()
        self.error: StoreError | None = None
        self.value: Any = None

    def deliver(self) -> None:
        """On the event loop."""
        self._arrived.set()

    async def wait(self) -> Any:
        await self._arrived.wait()
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(slots=True, eq=False)
class _Op:
    """
    One thing for the thread to do.

    Attributes:
        what: For messages: `keeping 3 jobs`.
        run: Does it. A write runs in a transaction, again if that is rolled back, so it changes nothing else.
        is_write: Whether it needs one.
        reply: For one who waits, who is told if it fails; without it, what fails is owed, and tried again.
        announce: What to call on the event loop once it is kept, or owed.
        then: What else is to be done once it is kept; on the thread.
        row: The job, where this writes one.
    """

    what: str
    run: Callable[[Connection], Any]
    is_write: bool = True
    reply: _Reply | None = None
    announce: Callable[[], None] | None = None
    then: Callable[[], None] | None = None
    row: Row | None = None


class SqliteStore:
    """
    Keeps jobs in a file, for one client at a time; see `JobStore` for what each method promises.

    Args:
        path: Where; the file is made if it is missing, its directory must be there. It belongs on a local disk.
        keep_s: Seconds for which jobs that have ended are kept.
    """

    is_durable: bool = True
    spool_directory: str | None

    def __init__(self, path: str | os.PathLike[str], *, keep_s: float) -> None:
        # Resolved as SQLite does it, so that its log is looked for where it is; and so that a change of the working
        # directory changes nothing.
        self._path = os.path.realpath(os.fsdecode(path))
        self.spool_directory = f"{self._path}.samples"
        self._spool = _Spool(self.spool_directory)
        self._file = _File(self._path, keep_s, self._spool)
        self._thread = _Thread(self._file)
        self._is_open = False

    def __repr__(self) -> str:
        return f"SqliteStore({self._path!r})"

    # --- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> Recovered:
        """
        Take hold of the file until `aclose`, or until the process ends in whatever way.

        Raises:
            StoreError: It cannot be had; the message says why and what to do. Nothing was changed.
        """
        self._is_open = True
        try:
            return await self._thread.start()
        except BaseException:
            # A caller that was cancelled meanwhile must not leave a file behind that nobody else can open.
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def aclose(self) -> None:
        """Write what is pending, make the announcements that are due, and let go of the file; once."""
        if self._is_open:
            self._is_open = False
            self._thread.stop()
        await self._thread.wait_stopped()

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> None:
        """
        Keep these queued jobs, all or none.

        Raises:
            StoreError: None was kept: the file cannot be written, a key is taken, or a copy of a sample is not there.

        Cancelled before it returns, it takes them back, so that there are no jobs of which their owner does not know;
        after a crash just then there may be.
        """
        # Nobody changes them while this waits, so they are written down in the thread, and not all at once.
        spooled = [(job.seq, shas) for job in jobs if (shas := _spooled(job.fingerprints))]

        def insert(connection: Connection) -> None:
            self._spool.check(sha for _, shas in spooled for sha in shas)
            try:
                connection.executemany(_ADD, (_values(codec.encode(job)) for job in jobs))
            except sqlite3.IntegrityError as error:
                raise StoreError(f"nothing was kept: two jobs have one key, or one is kept already ({error})") from None

        def hold() -> None:
            for seq, shas in spooled:
                self._spool.hold(seq, shas)

        try:
            await self._ask(f"keeping {len(jobs)} jobs", insert, then=hold)
        except StoreError:
            raise
        except BaseException:
            self._put(
                _Op(
                    f"taking back {len(jobs)} jobs",
                    lambda connection: connection.executemany(_TAKE_BACK, [(job.seq, job.id) for job in jobs]),
                    then=lambda: self._let_go(spooled),
                )
            )
            raise

    def _let_go(self, spooled: Iterable[tuple[int, Collection[str]]]) -> None:
        for seq, shas in spooled:
            self._spool.let_go(seq, shas)

    async def sent(self, job: Job) -> None:
        """
        Keep that this job's request is about to leave.

        Raises:
            StoreError: It is not on record.

        Cancelled before it returns, it may be on record all the same: whoever comes back looks for a voice in vain.
        """
        row = codec.encode(job)
        await self._ask(f"keeping that job {job.id} is sent", _update(row), row=row)

    def changed(self, job: Job) -> None:
        """Note the job's present state."""
        row = codec.encode(job)
        self._put(_Op(f"keeping job {job.id}", _update(row), row=row))

    def settled(self, job: Job, outcome: Outcome, announce: Callable[[], None]) -> None:
        """Keep how the job ended, then call `announce`; at once if it cannot be kept."""
        row = codec.encode(job, outcome=outcome, settled_at=datetime.now(UTC))
        spooled = [(job.seq, _spooled(job.fingerprints))]
        self._put(
            _Op(
                f"keeping how job {job.id} ended",
                _update(row),
                announce=announce,
                then=lambda: self._let_go(spooled),
                row=row,
            )
        )

    async def find(self, key: str) -> Job | None:
        """
        Return the job of this key, ended or not.

        Raises:
            StoreError: The file cannot be read.
        """
        found: Job | None = await self._look("looking up a key", lambda connection: self._find(connection, key))
        return found

    def find_nowait(self, key: str) -> Job | None:
        """
        Return the job of this key; waits for a commit that is being made, if any.

        Raises:
            StoreError: The file cannot be read.
        """
        if not self._is_open:
            raise self._not_open("looking up a key")
        try:
            return self._file.read(lambda connection: self._find(connection, key))
        except sqlite3.Error as error:
            raise self._file.explain("looking up a key", error) from error

    def _find(self, connection: Connection, key: str) -> Job | None:
        for row in self._thread.owed_rows().values():
            if row.key == key:
                return self._file.decode(row)
        found = connection.execute(_FIND, (key,)).fetchone()
        return None if found is None else self._file.decode(_row(found))

    async def jobs(self, state: JobState | None) -> AsyncGenerator[Job, None]:
        """
        Yield all jobs, or those in this state, in the order of their `seq`; those added meanwhile may be among them.

        Raises:
            StoreError: The file cannot be read.
        """

        def convert(row: Row) -> Job | None:
            return self._file.decode(row) if state in {None, row.state} else None

        async with aclosing(self._list(convert)) as jobs:
            async for job in jobs:
                yield job

    async def export(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield all jobs as plain data, in the order of their `seq`. Raises as `jobs` does."""
        async with aclosing(self._list(codec.export)) as records:
            async for record in records:
                yield record

    async def _list(self, convert: Callable[[Row], T | None]) -> AsyncGenerator[T, None]:
        """Yield what `convert` makes of the jobs and does not leave out, page by page."""
        last_seq: int | None = 0
        while last_seq is not None:
            last_seq, page = await self._look("listing jobs", partial(self._page, last_seq, convert))
            for item in page:
                yield item

    def _page(
        self, last_seq: int, convert: Callable[[Row], T | None], connection: Connection
    ) -> tuple[int | None, list[T]]:
        """Return the number from where the next page goes on, if there may be one, and this one."""
        newer = self._thread.owed_rows()
        rows = [_row(values) for values in connection.execute(_PAGE, (last_seq, PAGE_ROWS))]
        items = [item for row in rows if (item := convert(newer.get(row.id, row))) is not None]
        return (rows[-1].seq if len(rows) == PAGE_ROWS else None), items

    async def forget(self, job_id: str) -> bool:
        """
        Forget a job that has ended; return whether there was one.

        Raises:
            StoreError: It could not be forgotten.

        Cancelled before it returns, it may be forgotten all the same.
        """
        # Its hold on copies was given up when it ended.
        count: int = await self._ask(
            f"forgetting job {job_id}", lambda connection: connection.execute(_FORGET, (job_id,)).rowcount
        )
        return count > 0

    # --- what else outlives a process --------------------------------------------------------------------------------

    async def file_id(self, account: str, sha256: str) -> str | None:
        """Return the fileID of this content on this account, if it is known. Raises as `find` does."""
        found = await self._look(
            "looking up an upload", lambda connection: connection.execute(_FILE_ID, (account, sha256)).fetchone()
        )
        return None if found is None else str(found[0])

    def uploaded(self, account: str, sha256: str, file_id: str) -> None:
        """Note that this content is on this account."""
        values = (account, sha256, file_id)
        self._put(_Op("keeping an upload", lambda connection: connection.execute(_UPLOADED, values)))

    def forget_uploads(self, account: str, file_ids: Collection[str]) -> None:
        """The remote no longer knows these."""
        values = [(account, file_id) for file_id in file_ids]
        self._put(_Op("forgetting uploads", lambda connection: connection.executemany(_FORGET_UPLOAD, values)))

    def keep_baseline(self, account: str, voice_keys: Collection[str]) -> None:
        """Note which voices the account had before its next request leaves; replaces what was noted before."""
        values = [(account, voice_key) for voice_key in ("", *voice_keys)]

        def replace(connection: Connection) -> None:
            connection.execute(_CLEAR_BASELINE, (account,))
            connection.executemany(_ADD_BASELINE, values)

        self._put(_Op(f"keeping the voices of account {account}", replace))

    def pause(self, account: str, until: datetime) -> None:
        """Note that nothing may be sent to this account until then."""
        values = (account, _text(until))
        self._put(_Op(f"keeping a pause of account {account}", lambda connection: connection.execute(_PAUSE, values)))

    # --- to the thread -----------------------------------------------------------------------------------------------

    async def _ask(
        self,
        what: str,
        run: Callable[[Connection], Any],
        *,
        then: Callable[[], None] | None = None,
        row: Row | None = None,
    ) -> Any:
        reply = _Reply()
        self._put(_Op(what, run, reply=reply, then=then, row=row))
        return await reply.wait()

    async def _look(self, what: str, run: Callable[[Connection], Any]) -> Any:
        reply = _Reply()
        self._put(_Op(what, run, is_write=False, reply=reply))
        return await reply.wait()

    def _put(self, op: _Op) -> None:
        if self._is_open:
            self._thread.put(op)
        elif op.reply is not None:
            raise self._not_open(op.what)
        else:
            logger.error("%s failed: %r is not open", op.what, self)
            if op.announce is not None:
                op.announce()

    def _not_open(self, what: str) -> StoreError:
        return StoreError(f"{what} failed: {self!r} is not open")


# --- the thread ------------------------------------------------------------------------------------------------------


class _Thread:
    """
    Runs operations, all that are pending at once, and brings the news to the event loop.

    A daemon: a program that ends without closing its client must not wait for it. What was promised is on record.
    """

    def __init__(self, file: _File) -> None:
        self._file = file
        self._inbox: queue.SimpleQueue[_Op | None] = queue.SimpleQueue()
        self._owed: list[_Op] = []
        """What could not be kept yet, in order. Guarded by the file's lock, as the event loop's thread reads it too."""
        self._trouble: Exception | None = None
        """Why not; of the present round."""
        self._stopped: anyio.Event | None = None
        self._token: anyio.lowlevel.EventLoopToken | None = None

    # --- on the event loop -------------------------------------------------------------------------------------------

    async def start(self) -> Recovered:
        reply = _Reply()
        self._stopped = anyio.Event()
        self._token = anyio.lowlevel.current_token()
        name = f"useapi_voice {self._file.path}"
        threading.Thread(target=self._run, args=(reply, self._stopped), name=name, daemon=True).start()
        recovered: Recovered = await reply.wait()
        return recovered

    def put(self, op: _Op) -> None:
        self._inbox.put(op)

    def stop(self) -> None:
        """Nothing may be put after this."""
        self._inbox.put(None)

    async def wait_stopped(self) -> None:
        if self._stopped is not None:
            await self._stopped.wait()

    # --- on either, with the file's lock -----------------------------------------------------------------------------

    def owed_rows(self) -> dict[str, Row]:
        """Return the jobs that the file has in an older state than was told, by id."""
        return {op.row.id: op.row for op in self._owed if op.row is not None}

    # --- on the thread -----------------------------------------------------------------------------------------------

    def _run(self, reply: _Reply, stopped: anyio.Event) -> None:
        is_last = False
        try:
            reply.value = self._file.open()
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must be told
            reply.error = self._file.explain("opening it", error)
            is_last = True
        news = deque([reply.deliver])
        tidy_t = time.monotonic() + TIDY_EVERY_S
        while self._tell(news) and not is_last:
            ops, is_last = self._take(max(0.0, tidy_t - time.monotonic()))
            news = self._work(ops)
            if time.monotonic() >= tidy_t:
                self._file.tidy()
                tidy_t = time.monotonic() + TIDY_EVERY_S
        self._close()
        self._tell(deque([stopped.set]))

    def _take(self, timeout_s: float) -> tuple[list[_Op], bool]:
        """Wait for something to do, and take all there is, and whether it is the last."""
        ops: list[_Op] = []
        with contextlib.suppress(queue.Empty):
            op = self._inbox.get(timeout=timeout_s)
            while op is not None:
                ops.append(op)
                op = self._inbox.get_nowait()
            return ops, True
        return ops, False

    def _work(self, ops: Sequence[_Op]) -> deque[Callable[[], None]]:
        """Do these, and return what is to be called on the event loop, in their order."""
        with self._file.lock:
            self._write([op for op in ops if op.is_write])
        news: deque[Callable[[], None]] = deque()
        for op in ops:
            if not op.is_write:
                self._read(op)
            if op.reply is not None:
                news.append(op.reply.deliver)
            if op.announce is not None:
                news.append(op.announce)
        return news

    def _write(self, ops: Sequence[_Op]) -> None:
        owed, self._owed, self._trouble = self._owed, [], None
        if owed or ops:
            self._keep([*owed, *ops])
        if self._trouble is not None:
            trouble = self._file.explain("writing it", self._trouble)
            logger.error("%d notes are not on record, and will be tried again: %s", len(self._owed), trouble)
        elif owed:
            logger.warning("%d notes that could not be kept before are on record now", len(owed))

    def _keep(self, ops: Sequence[_Op]) -> None:
        """Keep these in one commit; should that fail, find out by halves which of them is to blame."""
        if self._trouble is not None:
            for op in ops:
                self._fail(op, self._trouble)
            return
        try:
            results = self._file.transact([op.run for op in ops])
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must be told
            if len(ops) > 1:
                middle = len(ops) // 2
                self._keep(ops[:middle])
                self._keep(ops[middle:])
            else:
                self._fail(ops[0], error)
            return
        for op, result in zip(ops, results, strict=True):
            if op.reply is not None:
                op.reply.value = result
            if op.then is not None:
                op.then()

    def _fail(self, op: _Op, error: Exception) -> None:
        if op.reply is not None:
            op.reply.error = self._file.explain(op.what, error)
        elif _is_of_the_file(error):
            # It cannot be written just now; and what was told later must not be kept before this.
            self._owed.append(op)
            self._trouble = error
        else:
            logger.error("%s, nor ever will be", self._file.explain(op.what, error))

    def _read(self, op: _Op) -> None:
        assert op.reply is not None  # noqa: S101 - nobody reads for nobody
        try:
            op.reply.value = self._file.read(op.run)
        except Exception as error:  # noqa: BLE001 - as for writes
            op.reply.error = self._file.explain(op.what, error)

    def _close(self) -> None:
        if self._owed:
            whats = [op.what for op in self._owed]
            self._owed = []
            logger.error("%d notes are lost: %s%s", len(whats), ", ".join(whats[:10]), ", ..." if whats[10:] else "")
        self._file.close()

    def _tell(self, news: deque[Callable[[], None]]) -> bool:
        """Call these on the event loop; return whether there is one still."""
        while news:
            try:
                anyio.from_thread.run_sync(_call_all, news, token=self._token)
            except anyio.RunFinishedError:
                return False
            except BaseException:
                # That is the last one called; the others are none the worse for it.
                logger.exception("an announcement failed")
        return True


def _call_all(calls: deque[Callable[[], None]]) -> None:
    while calls:
        calls.popleft()()


def _is_of_the_file(error: Exception) -> bool:
    """Whether another operation would have failed as well; otherwise, it is the operation's own fault."""
    return isinstance(error, sqlite3.OperationalError | MemoryError) or type(error) is sqlite3.DatabaseError


# --- the file --------------------------------------------------------------------------------------------------------


class _File:
    """
    The database.

    `lock` guards all of it: the thread holds it while it writes, the event loop's for a look-up that cannot wait.
    """

    def __init__(self, path: str, keep_s: float, spool: _Spool) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._keep_s = keep_s
        self._spool = spool
        self._connection: Connection | None = None

    # --- opening and closing -----------------------------------------------------------------------------------------

    def open(self) -> Recovered:
        is_made = False
        try:
            with _OPENING:
                is_made = self._make()
                has_log = os.path.exists(f"{self.path}-wal")  # noqa: PTH110 - paths are strings here
                self._connection = self._connect()
            version = self._check(self._connection, has_log=has_log)
            return self._begin(self._connection, version)
        except BaseException:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if is_made:
                # Nobody else can have written to it: it was made here, or held ever since.
                for name in (self.path, f"{self.path}-wal", f"{self.path}-journal"):
                    _unlink(name)
            raise

    def _make(self) -> bool:
        """Make an empty file that only its owner can read, if there is none; return whether there was none."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.close(descriptor)
        return True

    def _connect(self) -> Connection:
        connection = sqlite3.connect(
            f"{Path(self.path).as_uri()}?mode=rw",
            uri=True,
            timeout=LOCK_WAIT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        # Before anything is read: with it, the first look takes hold of the file, alone, until the process has ended.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: Connection, *, has_log: bool) -> int:
        """Look before anything is changed; return the version of the schema, 0 for an empty file."""
        application_id = _one(connection, "PRAGMA application_id")
        version = int(_one(connection, "PRAGMA user_version"))
        is_empty = (application_id, version, _one(connection, "SELECT count(*) FROM sqlite_master")) == (0, 0, 0)
        if application_id != APPLICATION_ID and not is_empty:
            raise StoreError(f"{self.path} is a database of another program: name another file")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} was written by a newer version of useapi_voice (schema {version}, this one knows "
                f"{len(MIGRATIONS)}): upgrade, or name another file"
            )
        finding = _one(connection, "PRAGMA quick_check(1)")
        if finding != "ok":
            raise StoreError(f"{self.path} {_DAMAGED.format(path=self.path)}: {finding}")
        if version > 0 and not has_log and not _one(connection, _IS_CLOSED):
            # Its log is gone with the last that was kept: jobs that it has as waiting may have been sent.
            raise StoreError(
                f"{self.path} was not closed in order, and its log {self.path}-wal is missing: what was kept last is "
                "in there. Put it back, if it was moved or not copied along. If there is none, because another "
                "program opened the file since and closed it in order, or to go on with what is left (jobs may be "
                "missing, or be cloned twice), make an empty file of that name"
            )
        return version

    def _begin(self, connection: Connection, version: int) -> Recovered:
        if version == 0:
            os.chmod(self.path, 0o600)  # noqa: PTH101 - an empty file may have been there before
        connection.execute("PRAGMA cache_size = -16000")  # 16 MB, so that a large batch fits
        connection.execute("PRAGMA journal_mode = WAL")
        # Each commit is on the disk before it is reported: FULL, and on macOS past the drive's own cache.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute(f"PRAGMA journal_size_limit = {16 * 1024 * 1024}")
        (recovered,) = self.transact([lambda connection: self._migrate_and_load(connection, version)])
        try:
            # So that the file itself says that it is open, should its log be lost.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            self.close()
            raise
        self._spool.sweep(0)
        return cast("Recovered", recovered)

    def _migrate_and_load(self, connection: Connection, version: int) -> Recovered:
        """All that opening writes, in one transaction; if any of it fails, nothing was changed."""
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        self._drop(connection, -1)
        connection.execute(_DROP_PAUSES, (_text(datetime.now(UTC)),))
        recovered = self._load(connection)
        self._spool.open(recovered.jobs)
        connection.execute(_MARK_OPEN)
        return recovered

    def _load(self, connection: Connection) -> Recovered:
        # Closed even if a job makes no sense: a query that is left open would keep the file from being let go.
        with closing(connection.execute(_UNSETTLED)) as found:
            jobs = [self.decode(_row(values)) for values in found]
        last_seq = connection.execute(_LAST_SEQ).fetchone()
        accounts = {job.account for job in jobs if job.state in OCCUPYING_STATES and job.account is not None}
        baselines = {account: self._baseline(connection, account) for account in sorted(accounts)}
        return Recovered(
            jobs=jobs,
            last_seq=0 if last_seq is None else last_seq[0],
            pauses={account: datetime.fromisoformat(until) for account, until in connection.execute(_PAUSES)},
            baselines={account: keys for account, keys in baselines.items() if keys is not None},
        )

    def _baseline(self, connection: Connection, account: str) -> frozenset[str] | None:
        keys = {key for (key,) in connection.execute(_BASELINE, (account,))}
        if not keys:
            return None
        keys |= {voice_key(voice_id) for (voice_id,) in connection.execute(_VOICES, (account,))}
        for values in connection.execute(_SURPLUS, (account,)):
            keys |= {voice_key(voice_id) for voice_id in codec.voice_ids_of(_row(values))}
        return frozenset(keys - {""})

    def close(self) -> None:
        with self.lock:
            if self._connection is None:
                return
            # While the file is held: a later owner's copies are no concern of ours.
            self._spool.sweep(0)
            # The log is merged first, so that there is room in it for the last note, even on a full disk.
            for query in ("PRAGMA wal_checkpoint(TRUNCATE)", _MARK_CLOSED):
                try:
                    self._connection.execute(query).fetchone()
                except sqlite3.Error as error:
                    logger.warning("%s; its log is left for the next owner", self.explain("closing it", error))
            self._connection.close()
            self._connection = None

    # --- work --------------------------------------------------------------------------------------------------------

    def transact(self, runs: Sequence[Callable[[Connection], Any]]) -> list[Any]:
        """Run these in one transaction, and return their results; if one fails, or the commit does, none was run."""
        with self.lock:
            connection = self._held()
            connection.execute("BEGIN IMMEDIATE")
            try:
                results = [run(connection) for run in runs]
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has done so itself where the disk is to blame.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return results

    def read(self, run: Callable[[Connection], T]) -> T:
        with self.lock:
            return run(self._held())

    def tidy(self) -> None:
        """Drop what is too old."""
        try:
            self.transact([lambda connection: self._drop(connection, DROPPED_AT_ONCE)])
        except sqlite3.Error as error:
            logger.warning("%s", self.explain("dropping old jobs", error))
        self._spool.sweep(COPY_GRACE_S)

    def _drop(self, connection: Connection, most: int) -> None:
        connection.execute(_DROP, (_text(datetime.now(UTC) - timedelta(seconds=self._keep_s)), most))

    def decode(self, row: Row) -> Job:
        try:
            return codec.decode(row, self._spool.path)
        except StoreError:
            raise
        except Exception as error:
            why = f"job {row.id} makes no sense ({type(error).__name__})"
            raise StoreError(f"{self.path} {_DAMAGED.format(path=self.path)}: {why}") from error

    def _held(self) -> Connection:
        if self._connection is None:
            raise StoreError(f"{self.path} is closed")
        return self._connection

    # --- what went wrong ---------------------------------------------------------------------------------------------

    def explain(self, what: str, error: Exception) -> StoreError:
        """Say what failed, why, and what to do."""
        if isinstance(error, StoreError):
            return error
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", 0)
            reason = _REASONS.get(code) or _REASONS.get(code & 0xFF, "")
        elif isinstance(error, OSError):
            reason = _SYSTEM_REASONS.get(error.errno or 0, "")
        else:
            reason = ""
        reason = reason.format(path=self.path, directory=os.path.dirname(self.path))  # noqa: PTH120
        told = StoreError(f"{self.path} {reason or 'cannot be used'}: {what} failed ({error})")
        told.__cause__ = error
        return told


_DAMAGED: Final = "is damaged: restore a copy, or save what can be read with `sqlite3 {path} .recover`"
_FULL: Final = "cannot be written, as the disk is full: make room, then try again"
_PROTECTED: Final = (
    "cannot be written: check the permissions of the file and of {directory}, and that the disk is not read-only"
)
_OWNED: Final = (
    "has another owner, perhaps another VoiceClient of this process, or a process that is still running: a file takes "
    'one at a time. Close it, or, for several processes, use the fleet store: store="postgresql://..."'
)
_REASONS: Final = {
    sqlite3.SQLITE_BUSY: _OWNED,
    sqlite3.SQLITE_CANTOPEN: _PROTECTED,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR_LOCK: f"{_PROTECTED}, and is a local one",
    sqlite3.SQLITE_IOERR: "cannot be read or written, as the disk fails: is it full, or gone?",
    sqlite3.SQLITE_NOTADB: "is no database: name another file, or move this one away",
    sqlite3.SQLITE_READONLY: _PROTECTED,
}
"""By SQLite's result code, in full or the primary one."""
_SYSTEM_REASONS: Final = {
    errno.EACCES: _PROTECTED,
    errno.ENOENT: "cannot be made, as there is no directory {directory}: make it first",
    errno.ENOSPC: _FULL,
    errno.ENOTDIR: "cannot be made, as {directory} is no directory: name another file",
    errno.EROFS: _PROTECTED,
}


def _one(connection: Connection, query: str) -> Any:
    return connection.execute(query).fetchone()[0]


# --- copies of samples -----------------------------------------------------------------------------------------------

_COPY_NAME = re.compile(r"[0-9a-f]{64}(\..+)?")
"""A copy, or one that is being made."""


class _Spool:
    """
    Which copies are needed; the rest goes, `COPY_GRACE_S` after it was needed last, or was put there.

    On the thread only, so that none is dropped between the check of `add` and its commit.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._needed: defaultdict[str, set[int]] = defaultdict(set)
        """The numbers of the jobs that need it, by hash."""

    def path(self, sha256: str) -> str:
        return os.path.join(self._directory, sha256)  # noqa: PTH118 - a Path costs 1 kB a sample

    def open(self, jobs: Iterable[Job]) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)  # noqa: PTH103 - paths are strings here
        for job in jobs:
            self.hold(job.seq, _spooled(job.fingerprints))

    def check(self, shas: Iterable[str]) -> None:
        """Raise `StoreError` unless these are there, for good."""
        is_empty = True
        for sha256 in shas:
            is_empty = False
            if not os.path.exists(self.path(sha256)):  # noqa: PTH110 - as above
                raise StoreError(f"the copy of a sample, {self.path(sha256)}, is gone: submit it again")
        if not is_empty:
            _sync_directory(self._directory)

    def hold(self, seq: int, shas: Collection[str]) -> None:
        for sha256 in shas:
            self._needed[sha256].add(seq)

    def let_go(self, seq: int, shas: Collection[str]) -> None:
        for sha256 in shas:
            holders = self._needed[sha256]
            holders.discard(seq)
            if not holders:
                del self._needed[sha256]
                with contextlib.suppress(OSError):
                    os.utime(self.path(sha256))

    def sweep(self, grace_s: float) -> None:
        """Delete copies that no job needs and nobody touched for so long; what else lies there is not ours."""
        now = time.time()
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                is_copy = _COPY_NAME.fullmatch(entry.name) and entry.name not in self._needed
                if is_copy and (not grace_s or now - entry.stat().st_mtime >= grace_s):
                    _unlink(entry.path)


def _spooled(fingerprints: Iterable[Fingerprint]) -> tuple[str, ...]:
    return tuple(print_.sha256 for print_ in fingerprints if print_.path is None)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108 - as above


def _sync_directory(path: str) -> None:
    """Make the names in it durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- rows ------------------------------------------------------------------------------------------------------------


def _values(row: Row) -> tuple[Any, ...]:
    *found, sent_at, settled_at, voice_id = row
    found[2] = row.state.value
    return (*found, _text_or_none(sent_at), _text_or_none(settled_at), voice_id)


def _update(row: Row) -> Callable[[Connection], object]:
    _, _, state, _, _, account, pinned, _, payload, sent_at, settled_at, voice_id = _values(row)
    values = (state, account, pinned, payload, sent_at, settled_at, voice_id, row.seq, row.id)
    return lambda connection: connection.execute(_UPDATE, values)


def _row(values: Sequence[Any]) -> Row:
    # By position, in the order of `_COLUMNS`, which is that of `Row`.
    row = Row._make(values)
    sent_at, settled_at = _time_or_none(values[9]), _time_or_none(values[10])
    return row._replace(state=JobState(row.state), sent_at=sent_at, settled_at=settled_at)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _text_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else _text(moment)


def _time_or_none(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
