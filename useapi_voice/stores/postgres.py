"""
The store of a fleet, on PostgreSQL: many processes on many hosts, one cap for each account.

    submit ─▶ jobs ─▶ claim ─▶ the queue of some process ─▶ sent ─▶ outcome ─▶ whoever waits, wherever
                        ▲                                    │
              a turn, from PgQueuer            the fence: on record before the request leaves

PgQueuer's entries are *turns*, not jobs: the right to occupy one of an account's places, at most as many as the cap.
Its unique index keeps two processes from one seat, its lease outlives the longest call, and whoever finds a turn whose
holder is gone keeps the same seat and sees to what was sent on it. `_turns` takes turns; this room keeps the jobs.

One task writes, in the order in which it was told, and commits all that is there at once. While the database is away,
those who wait for a promise are told so, and what is owed is kept for when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from .. import _errors
from .._errors import ApiError, ConfigurationError, StoreError
from .._jobs import OCCUPYING_STATES, CancelChoice, Job, JobState, Outcome
from .._recovery import voice_key
from .._replies import Refused, Scope
from . import Desk, Gate, KeyTaken, Ledger, Recovered, codec
from . import _fleet_sql as sql
from ._schema import AWAY, check_schema, migrate
from ._turns import Turns
from .codec import Row

logger: logging.Logger = logging.getLogger("useapi_voice")

Connection = Any
"""asyncpg's, or what its pool lends: the package is typed, but not so that both are one."""

LEASE_MARGIN_S: Final = 30.0
"""By how much the lease of a turn outlives the longest call, and the longest doubt."""
CONNECT_S: Final = 10
QUERY_S: Final = 20
"""How long one query may take before its connection counts as lost."""
OWED_S: Final = 600.0
"""For how long an ending is kept from its waiters while the database is away; then it is told all the same."""
CLOSE_S: Final = 10.0
"""How long closing waits for the database to take what is owed."""
UPLOAD_LEASE_S: Final = 60.0
"""How long other replicas wait for one that uploads a content that they need as well."""
LOOK_FOR_UPLOAD_S: Final = 0.2
SAMPLE_GRACE_S: Final = 60.0
"""How long a sample that no job needs is left alone: somebody may be about to add a job with it."""
CLOCKS_AGREE_S: Final = 0.05
"""Clocks that differ by less count as one."""
KNOWN_KEYS: Final = 10_000
"""Jobs of this process that `find_nowait` knows by key."""
MOST_AT_ONCE: Final = 200
PAGE_ROWS: Final = 250


class Address:
    """Where the database is. Its URL holds a password, and is shown nowhere."""

    __slots__ = ("_url", "where")

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            parts = urlsplit(url)
            self.where: str = f"{parts.hostname or 'the local host'}:{parts.port or 5432}{parts.path}"
        except ValueError:
            raise ConfigurationError("store is no URL: postgresql://user:password@host/database") from None

    def __repr__(self) -> str:
        return f"<PostgreSQL at {self.where}>"

    async def connect(self) -> Any:
        """Open a connection of its own."""
        return await asyncpg.connect(
            self._url, timeout=CONNECT_S, command_timeout=QUERY_S, server_settings={"application_name": "useapi_voice"}
        )

    async def pool(self) -> Any:
        """Open a pool."""
        return await asyncpg.create_pool(
            self._url,
            min_size=1,
            max_size=6,
            timeout=CONNECT_S,
            command_timeout=QUERY_S,
            server_settings={"application_name": "useapi_voice"},
        )

    def explain(self, what: str, error: BaseException) -> StoreError:
        """Say what failed and what to do."""
        if isinstance(error, StoreError):
            return error
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
            remedy = "check the user, the password and the database of its URL"
        elif isinstance(error, asyncpg.InsufficientPrivilegeError):
            remedy = "its user lacks a privilege; let one who may make schemas run `useapi-voice fleet init`"
        elif isinstance(error, asyncpg.InvalidSQLStatementNameError | asyncpg.DuplicatePreparedStatementError):
            remedy = "a PgBouncer in transaction mode does not do: connect to PostgreSQL itself, or in session mode"
        elif isinstance(error, AWAY):
            remedy = "is PostgreSQL running, and can it be reached from here?"
        else:
            remedy = "this was not expected"
        return StoreError(f"the database at {self.where} cannot be used: {what} failed ({reason}); {remedy}")


@dataclass(slots=True, eq=False)
class _Op:
    """
    One thing to write.

    Attributes:
        what: For messages.
        run: Writes it, in a transaction, and again if that fails, so it changes nothing else.
        reply: For one who waits, who is told if it fails; without it what fails is owed.
        announce: What to call once it is kept, or owed for too long.
        owed_until_t: When that is.
    """

    what: str
    run: Callable[[Connection], Awaitable[Any]]
    reply: asyncio.Future[Any] | None = None
    announce: Callable[[], None] | None = None
    owed_until_t: float = float("inf")


class PostgresStore:
    """
    Keeps the jobs of a fleet; see `JobStore` and `SharedStore` for what each method promises.

    Args:
        url: `postgresql://...`; what stands behind `?` (`sslmode` and so on) is the driver's.
        keep_s: Seconds for which jobs that have ended are kept.
        clone_timeout_s: See `VoiceClient`; the lease of a turn is longer.
        settle_after_s: Likewise.
        accounts: Names of the accounts, in order, or `None` for those that the fleet has, or finds.
        max_parallel: Places of each.
        work: Whether this process takes jobs, or only submits them and waits.

    Without a queue attached it is a store like any other, and holds nobody up.
    """

    is_durable: bool = True
    is_shared: bool = True
    spool_directory: str | None

    def __init__(
        self,
        url: str | Address,
        *,
        keep_s: float,
        clone_timeout_s: float = 120.0,
        settle_after_s: float = 75.0,
        accounts: Sequence[str] | None = None,
        max_parallel: int = 2,
        work: bool = True,
    ) -> None:
        self.address: Address = url if isinstance(url, Address) else Address(url)
        self.replica: str = uuid.uuid4().hex
        self.lease_s: float = max(clone_timeout_s, settle_after_s) + LEASE_MARGIN_S
        self.settle_after_s = settle_after_s
        self.cap = max_parallel
        self.works = work
        self._keep_s = keep_s
        self._named = None if accounts is None else list(accounts)
        self._desk: Desk | None = None
        self._pool: Any = None
        self._inbox: deque[_Op] = deque()
        self._news = asyncio.Event()
        self._one_by_one = 0
        self._writer: asyncio.Task[None] | None = None
        self._turns: Turns | None = None
        self._offset = timedelta(0)
        self._known: OrderedDict[str, Row] = OrderedDict()
        # Of this process alone. What is submitted here and what is worked on here are apart, so that a file that was
        # looked at is never put there again.
        self._directory = tempfile.mkdtemp(prefix="useapi-voice-")
        self.spool_directory = os.path.join(self._directory, "submitted")  # noqa: PTH118 - paths are strings here
        self._fetched = os.path.join(self._directory, "fetched")  # noqa: PTH118 - as above
        for directory in (self.spool_directory, self._fetched):
            Path(directory).mkdir()
        self._fetching = asyncio.Lock()

    def __repr__(self) -> str:
        return f"PostgresStore({self.address!r})"

    # --- life --------------------------------------------------------------------------------------------------------

    def attach(self, desk: Desk) -> None:
        """Work for this queue from `open` on."""
        self._desk = desk

    @property
    def owner(self) -> str | None:
        """Who claims jobs here; nobody, where there is no queue."""
        return None if self._desk is None else self.replica

    async def open(self) -> Recovered:
        """
        Connect, look after the schema, and agree on the settings; then, with a queue attached, take part.

        Raises:
            StoreError: The database cannot be used.
            ConfigurationError: The fleet has another cap, or other accounts.
        """
        _check_loop()
        try:
            self._pool = await self.address.pool()
            await self._prepare()
            recovered = await self._recover()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, StoreError | ConfigurationError):
                raise
            if isinstance(error, (asyncpg.PostgresError, ValueError, *AWAY)):
                raise self.address.explain("opening it", error) from None
            raise
        self._writer = asyncio.create_task(self._write(), name="useapi_voice store")
        if self._desk is not None:
            self._turns = Turns(self, self._desk)
            try:
                await self._turns.start()
            except BaseException:
                await self.aclose()
                raise
        return recovered

    async def _prepare(self) -> None:
        async with self._pool.acquire() as connection:
            if not await check_schema(connection):
                await migrate(connection)
            async with connection.transaction():
                settings = await connection.fetchrow(sql.SETTINGS)
                await self._agree(connection, settings["cap"], settings["accounts"])
            now = await connection.fetchval("SELECT now()")
        offset = now - datetime.now(UTC)
        self._offset = offset if abs(offset.total_seconds()) > CLOCKS_AGREE_S else timedelta(0)

    async def _agree(self, connection: Connection, cap: int | None, accounts: Sequence[str] | None) -> None:
        remedy = "use the same in all processes, or change the fleet's with `useapi-voice fleet accounts set`"
        if cap is None:
            await connection.execute(sql.SET_CAP, self.cap)
        elif cap != self.cap:
            raise ConfigurationError(f"max_parallel={self.cap}, but the fleet has {cap}: {remedy}")
        if self._named is None:
            return
        if accounts is None:
            await set_accounts(connection, self._named)
        elif list(accounts) != self._named:
            raise ConfigurationError(f"accounts={self._named!r}, but the fleet has {list(accounts)!r}: {remedy}")

    async def _recover(self) -> Recovered:
        async with self._pool.acquire() as connection:
            if self._desk is not None:
                return Recovered()
            rows = await connection.fetch(sql.UNSETTLED)
            jobs = [self.decode(row) for row in rows]
            ledgers = {
                account: await self._ledger(connection, account)
                for account in sorted({job.account for job in jobs if job.account and job.state in OCCUPYING_STATES})
            }
            return Recovered(
                jobs=jobs,
                last_seq=await connection.fetchval(sql.LAST_NUMBER),
                pauses={
                    row["account"]: row["pause_until"] - self._offset for row in await connection.fetch(sql.PAUSES)
                },
                baselines={name: ledger.taken for name, ledger in ledgers.items() if ledger.has_baseline},
            )

    async def watch(self) -> None:
        """Wait for ever; raise what a task of ours died of."""
        assert self._writer is not None  # noqa: S101 - open
        tasks = {self._writer} | (self._turns.tasks if self._turns is not None else set())
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                await task
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Leave the fleet: finish turns, write what is pending, make the announcements that are due; once."""
        turns, self._turns = self._turns, None
        if turns is not None:
            await turns.stop()
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    while self._inbox and not writer.done():
                        self._news.set()
                        await asyncio.sleep(0.002)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        for op in [op for op in self._inbox if op.reply is None]:
            if op.announce is not None:
                op.announce()
        self._fail(StoreError("the store is closed"))
        self._inbox.clear()
        pool, self._pool = self._pool, None
        if pool is not None:
            with contextlib.suppress(*AWAY):
                async with asyncio.timeout(2):
                    await pool.close()
            pool.terminate()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _put(self, op: _Op) -> None:
        self._inbox.append(op)
        self._news.set()

    async def _ask(self, what: str, run: Callable[[Connection], Awaitable[Any]]) -> Any:
        if self._writer is None:
            raise StoreError(f"{what} failed: the store is not open")
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(_Op(what, run, reply))
        return await reply

    async def flush(self) -> None:
        """Wait until all that was told before is kept, or raise `StoreError`."""
        if self._inbox:
            await self._ask("writing what is pending", _nothing)

    async def _write(self) -> None:
        """Keep what is told, in order, all that is there in one transaction."""
        pause_s = 0.0
        while True:
            self._news.clear()
            if not self._inbox:
                await self._news.wait()
                continue
            most = 1 if self._one_by_one else MOST_AT_ONCE
            batch = [self._inbox[index] for index in range(min(most, len(self._inbox)))]
            try:
                async with self._pool.acquire(timeout=CONNECT_S) as connection, connection.transaction():
                    results = [await op.run(connection) for op in batch]
            except AWAY as error:
                # Who waits is told; the notes before and after are kept, in their order.
                pause_s = min(5.0, 2 * pause_s or 0.1)
                self._fail(self.address.explain(batch[0].what, error))
                self._give_up_waiting()
                logger.warning("%s", self.address.explain(f"keeping {len(self._inbox)} notes", error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._news.wait()
            except Exception as error:  # noqa: BLE001 - told to who waits, or to the log
                if len(batch) > 1:
                    self._one_by_one = len(batch)
                    continue
                self._inbox.popleft()
                self._one_by_one = max(0, self._one_by_one - 1)
                self._refuse(batch[0], error)
            else:
                pause_s = 0.0
                self._one_by_one = max(0, self._one_by_one - len(batch))
                for op, result in zip(batch, results, strict=True):
                    self._inbox.popleft()
                    if op.reply is not None and not op.reply.done():
                        op.reply.set_result(result)
                    if op.announce is not None:
                        op.announce()

    def _refuse(self, op: _Op, error: Exception) -> None:
        told = self.address.explain(op.what, error)
        if op.reply is None:
            logger.error("%s", told)
        elif not op.reply.done():
            op.reply.set_exception(told)
        if op.announce is not None:
            op.announce()

    def _fail(self, error: StoreError) -> None:
        """Tell all who wait; what they asked for is not to happen any more."""
        for op in [op for op in self._inbox if op.reply is not None]:
            self._inbox.remove(op)
            if op.reply is not None and not op.reply.done():
                op.reply.set_exception(StoreError(error.message))

    def _give_up_waiting(self) -> None:
        now_t = asyncio.get_running_loop().time()
        for op in self._inbox:
            if op.announce is not None and op.owed_until_t < now_t:
                op.announce()
                op.announce = None

    @asynccontextmanager
    async def reading(self, what: str) -> AsyncGenerator[Connection, None]:
        """Borrow a connection; what goes wrong with it comes out as `StoreError`."""
        if self._pool is None:
            raise StoreError(f"{what} failed: the store is not open")
        try:
            async with self._pool.acquire(timeout=CONNECT_S) as connection:
                yield connection
        except (asyncpg.PostgresError, *AWAY) as error:
            raise self.address.explain(what, error) from None

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> None:
        """
        Keep these queued jobs and their samples, all or none, and see that there are turns for them.

        Raises:
            KeyTaken: A key is taken.
            StoreError: None was kept.

        Cancelled before it returns, it takes them back; one that another replica has claimed by then is cancelled.
        """
        if not jobs:
            return
        contents = await self._contents(jobs)

        async def insert(connection: Connection) -> None:
            if self._desk is not None:
                numbers = await connection.fetch(sql.NUMBERS, len(jobs))
                for job, (number,) in zip(jobs, numbers, strict=True):
                    job.seq = number
            else:
                await connection.execute(sql.ADVANCE_NUMBERS, max(job.seq for job in jobs))
            for sha256, path in contents.items():
                if not await connection.fetchval(sql.TOUCH_SAMPLE, sha256):
                    content = await asyncio.to_thread(Path(path).read_bytes)
                    await connection.execute(sql.ADD_SAMPLE, sha256, content)
            for account in sorted({job.pinned for job in jobs if job.pinned is not None}):
                await connection.execute(sql.KNOW_ACCOUNT, account)
            now = datetime.now(UTC)
            await connection.executemany(sql.ADD, [self._added(job, now) for job in jobs])
            if self._turns is not None:
                await self._turns.make_turns(connection, len(jobs))
                await connection.execute(sql.NOTIFY, sql.CHANNEL, "w:")

        async def insert_or_say(connection: Connection) -> None:
            try:
                await insert(connection)
            except asyncpg.UniqueViolationError as error:
                raise KeyTaken(f"nothing was kept: two jobs have one key ({error})") from None

        try:
            await self._ask(f"keeping {len(jobs)} jobs", insert_or_say)
        except StoreError:
            raise
        except BaseException:
            ids = [job.id for job in jobs]

            async def take_back(connection: Connection) -> None:
                await connection.execute(sql.TAKE_BACK, ids)
                await connection.execute(sql.ASK_TO_CANCEL, ids, "keep")

            self._put(_Op(f"taking back {len(ids)} jobs", take_back))
            raise
        for job in jobs:
            self._know(codec.encode(job))

    async def _contents(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Return where the contents are that travel with these jobs, by hash."""
        spool = self.spool_directory or ""
        shas = {print_.sha256 for job in jobs for print_ in job.fingerprints if print_.path is None}
        return {sha256: os.path.join(spool, sha256) for sha256 in shas}  # noqa: PTH118 - a path costs more than its name

    def _added(self, job: Job, now: datetime) -> tuple[Any, ...]:
        row = codec.encode(job)
        shas = [print_.sha256 for print_ in job.fingerprints if print_.path is None]
        ends = [None if at is None else (at - now).total_seconds() for at in (job.queue_deadline_at, job.deadline_at)]
        name = row.voice_name.strip()
        return (row.id, row.key, row.state.value, row.priority, row.seq, row.account, row.pinned, name, row.payload,
                job.attempts, shas, *ends)  # fmt: skip

    async def sent(self, job: Job) -> None:
        """
        Keep that this job's request is about to leave.

        Raises:
            StoreError: It is not on record, or another replica has taken the job over: the request must not leave.
        """
        row, owner = codec.encode(job), self.owner
        began_t = asyncio.get_running_loop().time()

        async def write(connection: Connection) -> None:
            if not await connection.fetchval(sql.SENT, row.id, owner, *_state(row), job.attempts):
                raise StoreError(f"job {row.id} is another replica's by now")

        await self._ask(f"keeping that job {row.id} is sent", write)
        if asyncio.get_running_loop().time() - began_t > self.lease_s / 3:
            # This process slept, or was stopped: somebody may have its seat before the request would get there.
            raise StoreError(f"keeping that job {row.id} is sent took too long to go on")
        if self._turns is not None:
            self._turns.was_sent(job)
        self._know(row)

    def changed(self, job: Job) -> None:
        """Note the job's present state, unless it is another replica's by now."""
        row, owner, attempts = codec.encode(job), self.owner, job.attempts
        self._put(_Op(f"keeping job {row.id}", lambda c: c.execute(sql.CHANGED, row.id, owner, *_state(row), attempts)))
        self._know(row)

    def settled(self, job: Job, outcome: Outcome, announce: Callable[[], None]) -> None:
        """Keep how the job ended, then call `announce`; after `OWED_S` in any case."""
        row = codec.encode(job, outcome=outcome, settled_at=datetime.now(UTC))
        owner, attempts, turns = self.owner, job.attempts, self._turns

        async def write(connection: Connection) -> None:
            # The remote may still be at work for a job whose time is up: then its place is not free.
            is_over = turns is None or turns.is_over(job.id)
            values = (*_state(row), attempts, row.voice_id, is_over)
            if not await connection.fetchval(sql.SETTLED, row.id, owner, *values):
                logger.info("job %s is another replica's by now, or was forgotten", row.id)

        def announced() -> None:
            if turns is not None:
                turns.has_left(job.id)
            announce()

        until_t = asyncio.get_running_loop().time() + OWED_S
        self._put(_Op(f"keeping how job {row.id} ended", write, announce=announced, owed_until_t=until_t))
        self._know(row)

    def handed_back(self, job: Job) -> None:
        """Note that the job waits again, for anybody."""
        row, owner, attempts, turns = codec.encode(job), self.owner, job.attempts, self._turns

        async def write(connection: Connection) -> None:
            await connection.execute(sql.HAND_BACK, row.id, owner, row.payload, attempts)
            await connection.execute(sql.NOTIFY, sql.CHANNEL, "w:")

        left = None if turns is None else lambda: turns.has_left(job.id)
        self._put(_Op(f"handing job {row.id} back", write, announce=left))

    def freed(self, job: Job) -> None:
        """Note that the remote is done with its request."""
        if self._turns is not None:
            self._turns.was_freed(job.id)

    def free_seat(self, job_id: str) -> None:
        """Note that the place of a job that had ended before is free."""
        self._put(_Op("freeing a place", lambda c: c.execute(sql.FREE_SEAT, job_id, self.owner)))

    def cancel(self, job: Job, voice: CancelChoice) -> None:
        """End the job if nobody has it, else ask who has."""
        job_id, owner = job.id, self.owner

        async def write(connection: Connection) -> Any:
            row = await connection.fetchrow(sql.CLAIM_TO_CANCEL, job_id, owner)
            if row is None:
                await connection.execute(sql.ASK_TO_CANCEL, [job_id], voice)
            return row

        async def ask() -> None:
            try:
                row = await self._ask(f"cancelling job {job_id}", write)
            except StoreError as error:
                logger.warning("job %s is not cancelled: %s", job_id, error)
                return
            if row is not None and self._desk is not None:
                self._desk.end(self.decode_claimed(row), "cancelled")

        if self._turns is not None:
            self._turns.spawn(ask(), "useapi_voice cancel")

    async def find(self, key: str) -> Job | None:
        """Return the job of this key. Raises `StoreError`."""
        await self.flush()
        async with self.reading("looking up a key") as connection:
            row = await connection.fetchrow(sql.BY_KEY, key)
        return None if row is None else self.decode(row)

    def find_nowait(self, key: str) -> Job | None:
        """Return the job of this key if this process had to do with it lately: nobody else can be asked at once."""
        row = self._known.get(key)
        return None if row is None else codec.decode(row, self.locate)

    def know(self, row: Mapping[str, Any]) -> None:
        """Remember what another process told of a job."""
        self._know(to_row(row))

    def _know(self, row: Row) -> None:
        if row.key is not None:
            self._known[row.key] = row
            self._known.move_to_end(row.key)
            if len(self._known) > KNOWN_KEYS:
                self._known.popitem(last=False)

    async def jobs(self, state: JobState | None) -> AsyncGenerator[Job, None]:
        """Yield the jobs of the fleet. Raises `StoreError`."""
        async with contextlib.aclosing(self._rows(state)) as rows:
            async for row in rows:
                yield self.decode(row)

    async def _rows(self, state: JobState | None = None) -> AsyncGenerator[Any, None]:
        await self.flush()
        last = 0
        while True:
            async with self.reading("listing jobs") as connection:
                if state is None:
                    rows = await connection.fetch(sql.PAGE, last, PAGE_ROWS)
                else:
                    rows = await connection.fetch(sql.PAGE_OF_STATE, last, PAGE_ROWS, state.value)
            for row in rows:
                yield row
            if len(rows) < PAGE_ROWS:
                return
            last = rows[-1]["seq"]

    async def forget(self, job_id: str) -> bool:
        """Forget an ended job. Raises `StoreError`."""
        done = await self._ask(f"forgetting job {job_id}", lambda connection: connection.fetchval(sql.FORGET, job_id))
        for key in [key for key, row in self._known.items() if done and row.id == job_id]:
            del self._known[key]
        return bool(done)

    async def export(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the jobs of the fleet as plain data. Raises `StoreError`."""
        async with contextlib.aclosing(self._rows()) as rows:
            async for row in rows:
                yield codec.export(to_row(row))

    def locate(self, sha256: str) -> str:
        """Return where the copy of a content is, or would be."""
        return os.path.join(self._fetched, sha256)  # noqa: PTH118 - see `_contents`

    def decode(self, row: Mapping[str, Any]) -> Job:
        """Read a job. Raises `StoreError` where a newer version wrote it."""
        return codec.decode(to_row(row), self.locate)

    def decode_claimed(self, row: Mapping[str, Any]) -> Job:
        """Read a job to work on: its clocks are the database's."""
        job = self.decode(row)
        now_t, now_at = asyncio.get_running_loop().time(), datetime.now(UTC)
        if row["queue_s"] is not None:
            job.queue_deadline_t, job.queue_deadline_at = (
                now_t + row["queue_s"],
                now_at + timedelta(seconds=row["queue_s"]),
            )
        if row["deadline_s"] is not None:
            job.deadline_t, job.deadline_at = now_t + row["deadline_s"], now_at + timedelta(seconds=row["deadline_s"])
        job.cancelling = job.cancelling or row["cancelling"]
        return job

    async def fetch_samples(self, job: Job, account: str) -> None:
        """Copy the contents that this job needs, and that are not uploaded yet, to where the queue reads them."""
        async with self._fetching:
            for print_ in job.fingerprints:
                path = self.locate(print_.sha256)
                if print_.path is not None or os.path.exists(path):  # noqa: PTH110, ASYNC240 - one look
                    continue
                async with self.reading("reading a sample") as connection:
                    if await connection.fetchval(sql.FILE_ID, account, print_.sha256):
                        continue
                    content = await connection.fetchval(sql.SAMPLE, print_.sha256)
                if content is not None:
                    await asyncio.to_thread(_write_whole, path, content)

    # --- what else the fleet shares ----------------------------------------------------------------------------------

    async def file_id(self, account: str, sha256: str) -> str | None:
        """Return the fileID of this content, waiting for whoever is uploading it; `None`: it is ours to upload."""
        while True:
            try:
                await self.flush()
                async with self.reading("looking for an upload") as connection:
                    file_id: str | None = await connection.fetchval(sql.FILE_ID, account, sha256)
                    if file_id is not None:
                        return file_id
                    if self._desk is None:
                        return None
                    mine = (account, sha256, self.replica, UPLOAD_LEASE_S)
                    if await connection.fetchval(sql.CLAIM_UPLOAD, *mine):
                        return None
            except StoreError as error:
                # Uploaded once more, it does no harm.
                logger.debug("an upload is not known: %s", error)
                return None
            await asyncio.sleep(LOOK_FOR_UPLOAD_S)

    def uploaded(self, account: str, sha256: str, file_id: str) -> None:
        """Note an upload."""
        self._put(_Op("keeping an upload", lambda c: c.execute(sql.UPLOADED, account, sha256, file_id)))

    def upload_failed(self, account: str, sha256: str) -> None:
        """Let others try."""
        self._put(_Op("giving up an upload", lambda c: c.execute(sql.UPLOAD_FAILED, account, sha256, self.replica)))

    def forget_uploads(self, account: str, file_ids: Collection[str]) -> None:
        """Forget uploads."""
        names = list(file_ids)
        self._put(_Op("forgetting uploads", lambda c: c.execute(sql.FORGET_UPLOADS, account, names)))

    def keep_baseline(self, account: str, voice_keys: Collection[str]) -> None:
        """Keep a baseline, unless a clone of the account is in progress: then another's is on record."""
        keys = sorted(voice_keys)
        self._put(_Op("keeping a baseline", lambda c: c.execute(sql.KEEP_BASELINE, account, keys)))

    async def ledger(self, account: str) -> Ledger:
        """Return whose voices the account has. Raises `StoreError`."""
        await self.flush()
        async with self.reading("reading a baseline") as connection:
            return await self._ledger(connection, account)

    async def _ledger(self, connection: Connection, account: str) -> Ledger:
        baseline = await connection.fetchval(sql.BASELINE, account)
        taken: set[str] = set(baseline or ())
        for row in await connection.fetch(sql.TAKEN_VOICES, account):
            if row["voice_id"] is not None:
                taken.add(voice_key(row["voice_id"]))
            if row["payload"] is not None:
                taken |= {voice_key(voice["voice_id"]) for voice in json.loads(row["payload"])["surplus"]}
        return Ledger(frozenset(taken), baseline is not None)

    def pause(self, account: str, until: datetime) -> None:
        """Note that nothing may be sent to this account until then, by the database's clock."""
        moment = until + self._offset
        self._put(_Op("keeping a pause", lambda c: c.execute(sql.PAUSE, account, moment)))

    def limited(self, account: str, limit: int) -> None:
        """Share the limit."""
        self._put(_Op("keeping a limit", lambda c: c.execute(sql.LIMITED, account, limit)))

    def closed(self, account: str, refused: Refused, look_again_s: float) -> None:
        """Share that the account is out."""
        told = encode_refused(refused)
        self._put(_Op("keeping that an account is out", lambda c: c.execute(sql.CLOSED, account, told, look_again_s)))

    def opened(self, account: str) -> None:
        """Share that it is back."""
        self._put(_Op("keeping that an account is back", lambda c: c.execute(sql.OPENED, account)))

    async def gates(self) -> dict[str, Gate]:
        """Return what the fleet knows of its accounts. Raises `StoreError`."""
        await self.flush()
        async with self.reading("reading the accounts") as connection:
            rows = await connection.fetch(sql.ACCOUNTS)
        return {
            row["account"]: Gate(
                wait_s=row["wait_s"],
                limit=self.cap if row["limit_now"] is None else row["limit_now"],
                refused=None if row["closed_by"] is None else decode_refused(row["closed_by"]),
                look_s=row["look_s"] or 0.0,
                serves_pool=row["ordinal"] is not None,
            )
            for row in rows
        }

    async def found_accounts(self, names: Sequence[str]) -> None:
        """Let the fleet have these accounts, unless it has some. Raises `StoreError`."""

        async def write(connection: Connection) -> None:
            settings = await connection.fetchrow(sql.SETTINGS)
            if settings["accounts"] is None:
                await set_accounts(connection, names)

        await self._ask("keeping the accounts", write)

    async def has_accounts(self) -> bool:
        """Whether the fleet knows its accounts. Raises `StoreError`."""
        async with self.reading("reading the settings") as connection:
            return (await connection.fetchrow(sql.READ_SETTINGS))["accounts"] is not None

    async def tidy(self) -> None:
        """Drop what is too old, and samples that no job needs."""
        async with self.reading("tidying up") as connection:
            await connection.execute(sql.LET_GO)
            await connection.execute(sql.DROP_OLD, self._keep_s)
            await connection.execute(sql.DROP_SAMPLES, SAMPLE_GRACE_S)
            await connection.execute(sql.DROP_REPLICAS)
            await connection.execute(sql.DROP_LOG)

    async def seen(self) -> None:
        """Say that this replica lives."""
        async with self.reading("signing in") as connection:
            await connection.execute(sql.SEEN, self.replica, socket.gethostname(), os.getpid(), self.works)

    async def left(self) -> None:
        """Say that it is gone."""
        with contextlib.suppress(StoreError):
            async with self.reading("signing out") as connection:
                await connection.execute(sql.LEFT, self.replica)
                await connection.execute(sql.DROP_UPLOADING, self.replica)


async def set_accounts(connection: Connection, names: Sequence[str]) -> None:
    """Write the fleet's accounts, in order."""
    await connection.execute(sql.SET_ACCOUNTS, list(names))
    await connection.execute(sql.LEAVE_POOL)
    for ordinal, name in enumerate(names):
        await connection.execute(sql.JOIN_POOL, name, ordinal)
    await connection.execute(sql.NOTIFY, sql.CHANNEL, "a:")


def to_row(row: Mapping[str, Any]) -> Row:
    """Read a row of `COLUMNS`."""
    found = Row._make([row[name] for name in Row._fields])
    return found._replace(state=JobState(found.state))


def _state(row: Row) -> tuple[Any, ...]:
    return row.state.value, row.account, row.payload


async def _nothing(connection: Connection) -> None:
    """Write nothing: what was told before is kept when this is reached."""


def encode_refused(refused: Refused) -> str:
    """Write down why an account is out."""
    return json.dumps(
        {
            "error": refused.error.__name__,
            "scope": refused.scope.name,
            "detail": refused.detail,
            "status_code": refused.status_code,
            "code": refused.code,
        }
    )


def decode_refused(text: str) -> Refused:
    """Read it back; an error of a newer version is the root of its kind."""
    facts = json.loads(text)
    cls = getattr(_errors, facts["error"], ApiError)
    return Refused(cls, Scope[facts["scope"]], facts["detail"], facts["status_code"], facts["code"])


def _write_whole(path: str, content: bytes) -> None:
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    Path(partial).write_bytes(content)
    Path(partial).replace(path)


def _check_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError("the fleet store runs on asyncio: its driver knows no other event loop") from None
