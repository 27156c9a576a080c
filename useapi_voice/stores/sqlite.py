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
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

from .._errors import StoreError
from .._jobs import Job, JobState, Outcome
from .._replies import Refused
from . import KeyTaken, Recovered, codec
from . import _sqlite_file as queries
from ._spool import Spool, spooled
from ._sqlite_file import Connection, File, is_of_the_file, read_row, text_of, update, values_of
from .codec import Row

logger: logging.Logger = logging.getLogger("useapi_voice")

T = TypeVar("T")

TIDY_EVERY_S: Final = 60.0
"""How often the thread looks after itself: drops what is too old, and tries again to write what it owes."""
PAGE_ROWS: Final = 250
"""How many jobs a listing reads at a time, in one visit to the thread."""

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
    is_shared: bool = False
    spool_directory: str | None

    def __init__(self, path: str | os.PathLike[str], *, keep_s: float) -> None:
        # Resolved as SQLite does it, so that its log is looked for where it is; and so that a change of the working
        # directory changes nothing.
        self._path = os.path.realpath(os.fsdecode(path))
        self.spool_directory = f"{self._path}.samples"
        self._spool = Spool(self.spool_directory)
        self._file = File(self._path, keep_s, self._spool)
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
            StoreError: None was kept: the file cannot be written, or a copy of a sample is not there.
            KeyTaken: None was kept: a key is taken.

        Cancelled before it returns, it takes them back, so that there are no jobs of which their owner does not know;
        after a crash just then there may be.
        """
        # Nobody changes them while this waits, so they are written down in the thread, and not all at once.
        held = [(job.seq, shas) for job in jobs if (shas := spooled(job.fingerprints))]

        def insert(connection: Connection) -> None:
            self._spool.check(sha for _, shas in held for sha in shas)
            try:
                connection.executemany(queries.ADD, (values_of(codec.encode(job)) for job in jobs))
            except sqlite3.IntegrityError as error:
                if "jobs.key" in str(error):
                    raise KeyTaken("nothing was kept: two jobs have one key, or one of that key is kept") from None
                raise

        def hold() -> None:
            for seq, shas in held:
                self._spool.hold(seq, shas)

        try:
            await self._ask(f"keeping {len(jobs)} jobs", insert, then=hold)
        except StoreError:
            raise
        except BaseException:
            self._put(
                _Op(
                    f"taking back {len(jobs)} jobs",
                    lambda connection: connection.executemany(queries.TAKE_BACK, [(job.seq, job.id) for job in jobs]),
                    then=lambda: self._let_go(held),
                )
            )
            raise

    def _let_go(self, held: Iterable[tuple[int, Collection[str]]]) -> None:
        for seq, shas in held:
            self._spool.let_go(seq, shas)

    async def sent(self, job: Job) -> None:
        """
        Keep that this job's request is about to leave.

        Raises:
            StoreError: It is not on record.

        Cancelled before it returns, it may be on record all the same: whoever comes back looks for a voice in vain.
        """
        row = codec.encode(job)
        await self._ask(f"keeping that job {job.id} is sent", update(row), row=row)

    def changed(self, job: Job) -> None:
        """Note the job's present state."""
        row = codec.encode(job)
        self._put(_Op(f"keeping job {job.id}", update(row), row=row))

    def settled(self, job: Job, outcome: Outcome, announce: Callable[[], None]) -> None:
        """Keep how the job ended, then call `announce`; at once if it cannot be kept."""
        row = codec.encode(job, outcome=outcome, settled_at=datetime.now(UTC))
        held = [(job.seq, spooled(job.fingerprints))]
        self._put(
            _Op(
                f"keeping how job {job.id} ended",
                update(row),
                announce=announce,
                then=lambda: self._let_go(held),
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
        found = connection.execute(queries.FIND, (key,)).fetchone()
        return None if found is None else self._file.decode(read_row(found))

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
        rows = [read_row(values) for values in connection.execute(queries.PAGE, (last_seq, PAGE_ROWS))]
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
            f"forgetting job {job_id}", lambda connection: connection.execute(queries.FORGET, (job_id,)).rowcount
        )
        return count > 0

    # --- what else outlives a process --------------------------------------------------------------------------------

    async def file_id(self, account: str, sha256: str) -> str | None:
        """Return the fileID of this content on this account, if it is known. Raises as `find` does."""
        found = await self._look(
            "looking up an upload", lambda connection: connection.execute(queries.FILE_ID, (account, sha256)).fetchone()
        )
        return None if found is None else str(found[0])

    def uploaded(self, account: str, sha256: str, file_id: str) -> None:
        """Note that this content is on this account."""
        values = (account, sha256, file_id)
        self._put(_Op("keeping an upload", lambda connection: connection.execute(queries.UPLOADED, values)))

    def forget_uploads(self, account: str, file_ids: Collection[str]) -> None:
        """The remote no longer knows these."""
        values = [(account, file_id) for file_id in file_ids]
        self._put(_Op("forgetting uploads", lambda connection: connection.executemany(queries.FORGET_UPLOAD, values)))

    def keep_baseline(self, account: str, voice_keys: Collection[str]) -> None:
        """Note which voices the account had before its next request leaves; replaces what was noted before."""
        values = [(account, voice_key) for voice_key in ("", *voice_keys)]

        def replace(connection: Connection) -> None:
            connection.execute(queries.CLEAR_BASELINE, (account,))
            connection.executemany(queries.ADD_BASELINE, values)

        self._put(_Op(f"keeping the voices of account {account}", replace))

    def pause(self, account: str, until: datetime) -> None:
        """Note that nothing may be sent to this account until then."""
        values = (account, text_of(until))
        self._put(
            _Op(f"keeping a pause of account {account}", lambda connection: connection.execute(queries.PAUSE, values))
        )

    def limited(self, account: str, limit: int) -> None:
        """A later life finds out for itself how fast it may go."""

    def closed(self, account: str, refused: Refused, look_again_s: float) -> None:
        """A later life finds out for itself."""

    def opened(self, account: str) -> None:
        """A later life finds out for itself."""

    def upload_failed(self, account: str, sha256: str) -> None:
        """Nobody else wants to upload it."""

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

    def __init__(self, file: File) -> None:
        self._file = file
        self._inbox: queue.SimpleQueue[_Op | None] = queue.SimpleQueue()
        self._owed: list[_Op] = []
        self._told_count = 0
        """How many were owed when that was last logged: again when they have doubled, not at every try."""
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
            owed, self._owed, self._trouble = self._owed, [], None
            self._do([*owed, *ops])
            if self._trouble is not None:
                if len(self._owed) >= max(1, 2 * self._told_count):
                    self._told_count = len(self._owed)
                    trouble = self._file.explain("writing it", self._trouble)
                    logger.error("%d notes are not on record, and will be tried again: %s", len(self._owed), trouble)
            elif owed:
                self._told_count = 0
                logger.warning("%d notes that could not be kept before are on record now", len(owed))
        news: deque[Callable[[], None]] = deque()
        for op in ops:
            if op.reply is not None:
                news.append(op.reply.deliver)
            if op.announce is not None:
                news.append(op.announce)
        return news

    def _do(self, ops: Sequence[_Op]) -> None:
        """
        Do these in one commit; should that fail, find out by halves which of them is to blame.

        Look-ups are part of it, in their turn: each sees what was told before it, and nothing that was told later.
        """
        if self._trouble is not None or not any(op.is_write for op in ops):
            for op in ops:
                if op.is_write and self._trouble is not None:
                    self._fail(op, self._trouble)
                else:
                    self._look_up(op)
            return
        try:
            results = self._file.transact([op.run for op in ops])
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must be told
            if len(ops) > 1:
                middle = len(ops) // 2
                self._do(ops[:middle])
                self._do(ops[middle:])
            else:
                self._fail(ops[0], error)
            return
        for op, result in zip(ops, results, strict=True):
            if op.reply is not None:
                op.reply.value = result
            if op.then is not None:
                op.then()

    def _look_up(self, op: _Op) -> None:
        assert op.reply is not None  # noqa: S101 - nobody looks for nobody
        try:
            op.reply.value = self._file.read(op.run)
        except Exception as error:  # noqa: BLE001 - as for writes
            self._fail(op, error)

    def _fail(self, op: _Op, error: Exception) -> None:
        if op.reply is not None:
            op.reply.error = self._file.explain(op.what, error)
        elif is_of_the_file(error):
            # It cannot be written just now; and what was told later must not be kept before this.
            self._owed.append(op)
            self._trouble = error
        else:
            logger.error("%s, nor ever will be", self._file.explain(op.what, error))

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
