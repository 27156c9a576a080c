"""
The store of a fleet, on PostgreSQL: many processes on many hosts, one cap for each account.

    submit ─▶ jobs ─▶ claim ─▶ the queue of some process ─▶ sent ─▶ outcome ─▶ whoever waits, wherever
                        ▲                                    │
              a turn, from PgQueuer            the fence: on record before the request leaves

PgQueuer's entries are *turns*, not jobs: the right to occupy one of an account's places, at most as many as the cap.
Its unique index keeps two processes from one seat, its lease outlives the longest call, and whoever finds a turn whose
holder is gone keeps the same seat and sees to what was sent on it. `_turns` takes turns; this room keeps the jobs.

Others do the rest: `_database` connects, `_writer` writes, `_replica` hears and polls, `_claims` finds a job for a
seat, `_seats` works on it.
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
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg

from .. import _errors
from .._errors import ApiError, ConfigurationError, StoreError
from .._jobs import OCCUPYING_STATES, CancelChoice, Job, JobState, Outcome
from .._models import name_key
from .._recovery import voice_key
from .._replies import Refused, Scope
from . import Desk, Gate, KeyTaken, Ledger, Recovered, codec
from . import _fleet_sql as sql
from ._database import AWAY, Address, Connection, Database
from ._replica import Replica
from ._schema import check_schema, migrate
from ._seats import Seats
from ._writer import Writer
from .codec import Row

logger: logging.Logger = logging.getLogger("useapi_voice")

LEASE_MARGIN_S: Final = 30.0
"""By how much the lease of a turn outlives the longest call, and the longest doubt."""
UPLOAD_LEASE_S: Final = 60.0
"""How long other replicas wait for one that uploads a content that they need as well."""
LOOK_FOR_UPLOAD_S: Final = 0.2
SAMPLE_GRACE_S: Final = 60.0
"""How long a sample that no job needs is left alone: somebody may be about to add a job with it."""
CLOCKS_AGREE_S: Final = 0.05
"""Clocks that differ by less count as one."""
KNOWN_KEYS: Final = 10_000
"""Jobs of this process that `find_nowait` knows by key."""
PAGE_ROWS: Final = 250


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
        self.database: Database = Database(url if isinstance(url, Address) else Address(url))
        self.replica_id: str = uuid.uuid4().hex
        self.lease_s: float = max(clone_timeout_s, settle_after_s) + LEASE_MARGIN_S
        self.settle_after_s = settle_after_s
        self.cap = max_parallel
        self.works = work
        self._keep_s = keep_s
        self._named = None if accounts is None else list(accounts)
        self._desk: Desk | None = None
        self._writer = Writer(self.database)
        self._writing: asyncio.Task[None] | None = None
        self._replica: Replica | None = None
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
        return f"PostgresStore({self.database.address!r})"

    # --- life --------------------------------------------------------------------------------------------------------

    def attach(self, desk: Desk) -> None:
        """Work for this queue from `open` on."""
        self._desk = desk

    @property
    def owner(self) -> str | None:
        """Who claims jobs here; nobody, where there is no queue."""
        return None if self._desk is None else self.replica_id

    @property
    def _seats(self) -> Seats | None:
        return None if self._replica is None else self._replica.seats

    async def open(self) -> Recovered:
        """
        Connect, look after the schema, and agree on the settings; then, with a queue attached, take part.

        Raises:
            StoreError: The database cannot be used.
            ConfigurationError: The fleet has another cap, or other accounts.
        """
        _check_loop()
        try:
            await self.database.open()
            await self._prepare()
            recovered = await self._recover()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, StoreError | ConfigurationError):
                raise
            if isinstance(error, (asyncpg.PostgresError, ValueError, *AWAY)):
                raise self.database.address.explain("opening it", error) from None
            raise
        self._writing = self._writer.start()
        if self._desk is not None:
            self._replica = Replica(self, self._desk)
            try:
                await self._replica.start()
            except BaseException:
                await self.aclose()
                raise
        return recovered

    async def _prepare(self) -> None:
        async with self.database.borrow() as connection:
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
        async with self.database.borrow() as connection:
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
        assert self._writing is not None  # noqa: S101 - open
        tasks = {self._writing} | (self._replica.tasks if self._replica is not None else set())
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                await task
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Leave the fleet: finish turns, write what is pending, make the announcements that are due; once."""
        replica, self._replica = self._replica, None
        if replica is not None:
            await replica.stop()
        await self._writer.close()
        await self.database.close()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def flush(self) -> None:
        """Wait until all that was told before is kept, or raise `StoreError`."""
        await self._writer.flush()

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> None:
        """
        Keep these queued jobs and their samples, all or none, and see that there are turns for them.

        Raises:
            KeyTaken: A key is taken.
            StoreError: None was kept, as far as is known.

        Cancelled before it returns, it takes them back; one that another replica has claimed by then is cancelled.
        Likewise when the answer of the commit was lost, but for those with a key: submitted again, they are one job.
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
            if self._replica is not None:
                await self._replica.make_turns(connection, len(jobs))
                await connection.execute(sql.NOTIFY, sql.CHANNEL, "w:")

        async def insert_or_say(connection: Connection) -> None:
            try:
                await insert(connection)
            except asyncpg.UniqueViolationError as error:
                raise KeyTaken(f"nothing was kept: two jobs have one key ({error})") from None

        try:
            await self._writer.ask(f"keeping {len(jobs)} jobs", insert_or_say)
        except KeyTaken:
            raise
        except StoreError:
            self._take_back([job.id for job in jobs if job.key is None])
            raise
        except BaseException:
            self._take_back([job.id for job in jobs])
            raise
        for job in jobs:
            self._know(codec.encode(job))

    def _take_back(self, ids: Sequence[str]) -> None:
        """Have those jobs not be, if they are, and nobody has begun with them."""

        async def take_back(connection: Connection) -> None:
            await connection.execute(sql.TAKE_BACK, ids)
            await connection.execute(sql.ASK_TO_CANCEL, ids, "keep")

        if ids:
            self._writer.note(f"taking back {len(ids)} jobs", take_back)

    async def _contents(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Return where the contents are that travel with these jobs, by hash."""
        spool = self.spool_directory or ""
        shas = {print_.sha256 for job in jobs for print_ in job.fingerprints if print_.path is None}
        return {sha256: os.path.join(spool, sha256) for sha256 in shas}  # noqa: PTH118 - a path costs more than its name

    def _added(self, job: Job, now: datetime) -> tuple[Any, ...]:
        row = codec.encode(job)
        shas = [print_.sha256 for print_ in job.fingerprints if print_.path is None]
        ends = [None if at is None else (at - now).total_seconds() for at in (job.queue_deadline_at, job.deadline_at)]
        name = name_key(row.voice_name)
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

        await self._writer.ask(f"keeping that job {row.id} is sent", write)
        if asyncio.get_running_loop().time() - began_t > self.lease_s / 3:
            # This process slept, or was stopped: somebody may have its seat before the request would get there.
            raise StoreError(f"keeping that job {row.id} is sent took too long to go on")
        if self._replica is not None:
            self._replica.seats.was_sent(job.id)
        self._know(row)

    def changed(self, job: Job) -> None:
        """Note the job's present state, unless it is another replica's by now."""
        row, owner, attempts = codec.encode(job), self.owner, job.attempts
        self._writer.note(
            f"keeping job {row.id}", lambda c: c.execute(sql.CHANGED, row.id, owner, *_state(row), attempts)
        )
        self._know(row)

    def settled(self, job: Job, outcome: Outcome, announce: Callable[[], None]) -> None:
        """Keep how the job ended, then call `announce`; after `OWED_S` in any case."""
        row = codec.encode(job, outcome=outcome, settled_at=datetime.now(UTC))
        owner, attempts, seats = self.owner, job.attempts, self._seats

        async def write(connection: Connection) -> None:
            # The remote may still be at work for a job whose time is up: then its place is not free.
            is_over = seats is None or seats.is_over(job.id)
            values = (*_state(row), attempts, row.voice_id, is_over)
            if not await connection.fetchval(sql.SETTLED, row.id, owner, *values):
                logger.info("job %s is another replica's by now, or was forgotten", row.id)

        def announced() -> None:
            if seats is not None:
                seats.has_left(job.id)
            announce()

        self._writer.note(f"keeping how job {row.id} ended", write, announced)
        self._know(row)

    def handed_back(self, job: Job) -> None:
        """Note that the job waits again, for anybody."""
        row, owner, attempts, seats = codec.encode(job), self.owner, job.attempts, self._seats

        async def write(connection: Connection) -> None:
            await connection.execute(sql.HAND_BACK, row.id, owner, row.payload, attempts)
            await connection.execute(sql.NOTIFY, sql.CHANNEL, "w:")

        left = None if seats is None else lambda: seats.has_left(job.id)
        self._writer.note(f"handing job {row.id} back", write, left)

    def freed(self, job: Job) -> None:
        """Note that the remote is done with its request."""
        if self._replica is not None:
            self._replica.seats.was_freed(job.id)

    def free_seat(self, job_id: str) -> None:
        """Note that the place of a job that had ended before is free."""
        self._writer.note("freeing a place", lambda c: c.execute(sql.FREE_SEAT, job_id, self.owner))

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
                row = await self._writer.ask(f"cancelling job {job_id}", write)
            except StoreError as error:
                logger.warning("job %s is not cancelled: %s", job_id, error)
                return
            if row is not None and self._desk is not None:
                self._desk.end(self.decode_claimed(row), "cancelled")

        if self._replica is not None:
            self._replica.spawn(ask(), "useapi_voice cancel")

    async def find(self, key: str) -> Job | None:
        """Return the job of this key. Raises `StoreError`."""
        await self.flush()
        async with self.database.reading("looking up a key") as connection:
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
            async with self.database.reading("listing jobs") as connection:
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
        done = await self._writer.ask(f"forgetting job {job_id}", lambda c: c.fetchval(sql.FORGET, job_id))
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
        if row["sent_at"] is not None and job.history:
            # The clock of who sent it may be off, and a voice is judged by when its request left.
            job.history = (*job.history[:-1], replace(job.history[-1], sent_at=row["sent_at"]))
        return job

    async def fetch_samples(self, job: Job, account: str) -> None:
        """Copy the contents that this job needs, and that are not uploaded yet, to where the queue reads them."""
        async with self._fetching:
            for print_ in job.fingerprints:
                path = self.locate(print_.sha256)
                if print_.path is not None or os.path.exists(path):  # noqa: PTH110, ASYNC240 - one look
                    continue
                async with self.database.reading("reading a sample") as connection:
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
                async with self.database.reading("looking for an upload") as connection:
                    file_id: str | None = await connection.fetchval(sql.FILE_ID, account, sha256)
                    if file_id is not None:
                        return file_id
                    if self._desk is None:
                        return None
                    mine = (account, sha256, self.replica_id, UPLOAD_LEASE_S)
                    if await connection.fetchval(sql.CLAIM_UPLOAD, *mine):
                        return None
            except StoreError as error:
                # Uploaded once more, it does no harm.
                logger.debug("an upload is not known: %s", error)
                return None
            await asyncio.sleep(LOOK_FOR_UPLOAD_S)

    def uploaded(self, account: str, sha256: str, file_id: str) -> None:
        """Note an upload."""
        self._writer.note("keeping an upload", lambda c: c.execute(sql.UPLOADED, account, sha256, file_id))

    def upload_failed(self, account: str, sha256: str) -> None:
        """Let others try."""
        mine = (account, sha256, self.replica_id)
        self._writer.note("giving up an upload", lambda c: c.execute(sql.UPLOAD_FAILED, *mine))

    def forget_uploads(self, account: str, file_ids: Collection[str]) -> None:
        """Forget uploads."""
        names = list(file_ids)
        self._writer.note("forgetting uploads", lambda c: c.execute(sql.FORGET_UPLOADS, account, names))

    def keep_baseline(self, account: str, voice_keys: Collection[str]) -> None:
        """Keep a baseline, unless a clone of the account is in progress: then another's is on record."""
        keys = sorted(voice_keys)
        self._writer.note("keeping a baseline", lambda c: c.execute(sql.KEEP_BASELINE, account, keys))

    async def ledger(self, account: str) -> Ledger:
        """Return whose voices the account has. Raises `StoreError`."""
        await self.flush()
        async with self.database.reading("reading a baseline") as connection:
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
        self._writer.note("keeping a pause", lambda c: c.execute(sql.PAUSE, account, moment))

    def limited(self, account: str, limit: int) -> None:
        """Share the limit."""
        self._writer.note("keeping a limit", lambda c: c.execute(sql.LIMITED, account, limit))

    def closed(self, account: str, refused: Refused, look_again_s: float) -> None:
        """Share that the account is out."""
        values = (account, encode_refused(refused), look_again_s)
        self._writer.note("keeping that an account is out", lambda c: c.execute(sql.CLOSED, *values))

    def opened(self, account: str) -> None:
        """Share that it is back."""
        self._writer.note("keeping that an account is back", lambda c: c.execute(sql.OPENED, account))

    async def gates(self) -> dict[str, Gate]:
        """Return what the fleet knows of its accounts. Raises `StoreError`."""
        await self.flush()
        async with self.database.reading("reading the accounts") as connection:
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

        await self._writer.ask("keeping the accounts", write)

    async def has_accounts(self) -> bool:
        """Whether the fleet knows its accounts. Raises `StoreError`."""
        async with self.database.reading("reading the settings") as connection:
            return (await connection.fetchrow(sql.READ_SETTINGS))["accounts"] is not None

    async def tidy(self) -> None:
        """Drop what is too old, and samples that no job needs."""
        async with self.database.reading("tidying up") as connection:
            await connection.execute(sql.LET_GO)
            await connection.execute(sql.DROP_OLD, self._keep_s)
            await connection.execute(sql.DROP_SAMPLES, SAMPLE_GRACE_S)
            await connection.execute(sql.DROP_REPLICAS)
            await connection.execute(sql.DROP_LOG)

    async def seen(self) -> None:
        """Say that this replica lives."""
        async with self.database.reading("signing in") as connection:
            who = (socket.gethostname(), os.getpid(), self.works)
            await connection.execute(sql.SEEN, self.replica_id, *who, self.lease_s)

    async def left(self) -> None:
        """Say that it is gone."""
        with contextlib.suppress(StoreError):
            async with self.database.reading("signing out") as connection:
                await connection.execute(sql.LEFT, self.replica_id)
                await connection.execute(sql.DROP_UPLOADING, self.replica_id)


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
