"""
The SQLite file: its schema and what leads to it, all queries by name, what may be wrong with it, and what to do then.

Its connection belongs to whoever holds `lock`: the store's thread while it writes, the event loop's for a look-up that
cannot wait. Nothing here knows tasks.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from .._errors import StoreError
from .._jobs import OCCUPYING_STATES, Job, JobState
from .._recovery import voice_key
from . import Recovered, codec
from ._spool import Spool, unlink
from .codec import Row

logger = logging.getLogger("useapi_voice")

T = TypeVar("T")
Connection = sqlite3.Connection

APPLICATION_ID: Final = 0x75735631
"""What marks a file as ours, in the database's own header: `usV1`."""
LOCK_WAIT_S: Final = 1.0
"""How long opening waits for another owner to let go: as long as a process takes to close, and no longer."""
DROPPED_AT_ONCE: Final = 5_000
"""How many old jobs one look drops at the most, so that none who waits for a commit waits long."""

# One connection is opened at a time: POSIX drops all locks that a process has on a file when it closes any descriptor
# of it, so that a file that was just made here must not be opened there before its descriptor is closed again.
_OPENING = threading.Lock()

# --- the schema ------------------------------------------------------------------------------------------------------

# `seq` is the row's own number, so that rows lie in the order of submission; AUTOINCREMENT remembers the highest ever
# given when its row is dropped. `payload` is `codec`'s; what stands beside it is looked up. Times are ISO 8601 in UTC
# with microseconds, which sort as text. `is_closed` is 0 while somebody has the file open, in the file itself too, not
# only in its log: see `File.check`.
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
ADD: Final = f"INSERT INTO jobs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own names
# All of a job that can change, by its number, the cheapest way to a row. One that was forgotten stays so, and one that
# has ended: what is noted of it after that is a voice that came late.
UPDATE: Final = """
    UPDATE jobs SET state = ?, account = ?, pinned = ?, payload = ?, sent_at = ?,
        settled_at = coalesce(?, settled_at), voice_id = coalesce(?, voice_id)
    WHERE seq = ? AND id = ?
"""
# A job that was added for somebody who did not wait for it.
TAKE_BACK: Final = "DELETE FROM jobs WHERE seq = ? AND id = ?"
# One that has ended, by the name that callers know.
FORGET: Final = "DELETE FROM jobs WHERE id = ? AND settled_at IS NOT NULL"
# Some of those that ended too long ago.
_DROP: Final = "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE settled_at < ? LIMIT ?)"
# All that have not ended, as they were submitted: the index has them side by side, in this order.
_UNSETTLED: Final = f"SELECT {_COLUMNS} FROM jobs WHERE settled_at IS NULL ORDER BY seq"  # noqa: S608 - our own names
# One page of a listing, from where the last one stopped.
PAGE: Final = f"SELECT {_COLUMNS} FROM jobs WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - our own names
# The job of a key.
FIND: Final = f"SELECT {_COLUMNS} FROM jobs WHERE key = ?"  # noqa: S608 - our own names
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
FILE_ID: Final = "SELECT file_id FROM uploads WHERE account = ? AND sha256 = ?"
UPLOADED: Final = "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)"
FORGET_UPLOAD: Final = "DELETE FROM uploads WHERE account = ? AND file_id = ?"

# A baseline is replaced as a whole, and one without voices is one as well: its row has an empty key.
CLEAR_BASELINE: Final = "DELETE FROM baselines WHERE account = ?"
ADD_BASELINE: Final = "INSERT OR IGNORE INTO baselines VALUES (?, ?)"
_BASELINE: Final = "SELECT voice_key FROM baselines WHERE account = ?"

PAUSE: Final = "INSERT OR REPLACE INTO pauses VALUES (?, ?)"
# Pauses that are over are dropped when the file is opened.
_DROP_PAUSES: Final = "DELETE FROM pauses WHERE until_at <= ?"
_PAUSES: Final = "SELECT account, until_at FROM pauses"

_MARK_OPEN: Final = "UPDATE life SET is_closed = 0"
_MARK_CLOSED: Final = "UPDATE life SET is_closed = 1"
_IS_CLOSED: Final = "SELECT is_closed FROM life"

# --- the file --------------------------------------------------------------------------------------------------------


class File:
    """
    The database; `lock` guards all of it.

    Args:
        path: Where, absolute, links resolved.
        keep_s: Seconds for which jobs that have ended are kept.
        spool: Where copies of samples are kept.
    """

    def __init__(self, path: str, keep_s: float, spool: Spool) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._keep_s = keep_s
        self._spool = spool
        self._connection: Connection | None = None
        self._identity: tuple[int, int] | None = None
        """What the path led to when it was opened."""

    # --- opening and closing -----------------------------------------------------------------------------------------

    def open(self) -> Recovered:
        is_made = False
        try:
            with _OPENING:
                is_made = self._make()
                has_log = os.path.exists(f"{self.path}-wal")  # noqa: PTH110 - paths are strings here
                self._connection = self._connect()
                self._identity = self._identify()
            version = self.check(self._connection, has_log=has_log)
            return self._begin(self._connection, version)
        except BaseException:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if is_made:
                # Nobody else can have written to it: it was made here, or held ever since.
                for name in (self.path, f"{self.path}-wal", f"{self.path}-journal"):
                    unlink(name)
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
        try:
            # Before anything is read: with it, the first look takes hold of the file, alone, until the process ends.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self, connection: Connection, *, has_log: bool) -> int:
        """
        Look before anything is changed; return the version of the schema, 0 for an empty file.

        Args:
            connection: To the file, or to a copy of it.
            has_log: Whether its log is there.
        """
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
        connection.execute(_DROP_PAUSES, (text_of(datetime.now(UTC)),))
        recovered = self._load(connection)
        self._spool.open(recovered.jobs)
        connection.execute(_MARK_OPEN)
        return recovered

    def _load(self, connection: Connection) -> Recovered:
        # Closed even if a job makes no sense: a query that is left open would keep the file from being let go.
        with closing(connection.execute(_UNSETTLED)) as found:
            jobs = [self.decode(read_row(values)) for values in found]
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
            keys |= {voice_key(voice_id) for voice_id in codec.voice_ids_of(read_row(values))}
        return frozenset(keys - {""})

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)  # noqa: PTH116 - paths are strings here
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def close(self) -> None:
        with self.lock:
            if self._connection is None:
                return
            # While the file is held: a later owner's copies are no concern of ours.
            if self._is_in_place():
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
            if not self._is_in_place():
                # SQLite would go on writing to what nobody will ever find, and another owner may have made a new one.
                raise StoreError(
                    f"{self.path} was deleted, moved or replaced while it was open: nothing more is kept. Close the "
                    "client, put the file back together with its log, and open it again"
                )
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

    def _is_in_place(self) -> bool:
        """Whether the path still leads to what was opened."""
        return self._identify() == self._identity

    def tidy(self) -> None:
        """Drop what is too old."""
        try:
            self.transact([lambda connection: self._drop(connection, DROPPED_AT_ONCE)])
        except StoreError:
            return  # whoever has something to keep is told
        except sqlite3.Error as error:
            logger.warning("%s", self.explain("dropping old jobs", error))
        self._spool.sweep()

    def _drop(self, connection: Connection, most: int) -> None:
        connection.execute(_DROP, (text_of(datetime.now(UTC) - timedelta(seconds=self._keep_s)), most))

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
            if error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(self.path)):  # noqa: PTH112, PTH120
                reason = _PROTECTED  # as in /proc, which takes no files
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


def is_of_the_file(error: Exception) -> bool:
    """Whether another operation would have failed as well; otherwise, it is the operation's own fault."""
    return isinstance(error, sqlite3.OperationalError | MemoryError) or type(error) is sqlite3.DatabaseError


# --- rows ------------------------------------------------------------------------------------------------------------


def values_of(row: Row) -> tuple[Any, ...]:
    *found, sent_at, settled_at, voice_id = row
    found[2] = row.state.value
    return (*found, _text_or_none(sent_at), _text_or_none(settled_at), voice_id)


def update(row: Row) -> Callable[[Connection], object]:
    _, _, state, _, _, account, pinned, _, payload, sent_at, settled_at, voice_id = values_of(row)
    values = (state, account, pinned, payload, sent_at, settled_at, voice_id, row.seq, row.id)
    return lambda connection: connection.execute(UPDATE, values)


def read_row(values: Sequence[Any]) -> Row:
    # By position, in the order of `_COLUMNS`, which is that of `Row`.
    row = Row._make(values)
    sent_at, settled_at = _time_or_none(values[9]), _time_or_none(values[10])
    return row._replace(state=JobState(row.state), sent_at=sent_at, settled_at=settled_at)


def text_of(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _text_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else text_of(moment)


def _time_or_none(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
