"""
Works through jobs on the seats that turns gave: one job a seat, the next as soon as the remote is done with the last.

A turn goes on for as long as there are jobs, so that a freed place costs one claim. It ends when none is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .._errors import StoreError
from .._jobs import Job
from . import Desk, Ledger
from . import _fleet_sql as sql
from ._claims import LONGEST_WAIT_S, Claim, claim

if TYPE_CHECKING:
    from .postgres import PostgresStore

logger: logging.Logger = logging.getLogger("useapi_voice")

LINGER_S: Final = 1.0
"""How long a turn waits for a job before it ends: the next job then finds somebody ready."""
AHEAD: Final = 2
"""Jobs whose samples go up while others clone."""
LOOK_AGAIN_S: Final = 0.5
"""Between two tries while the database is away, or a sample cannot be had."""


@dataclass(slots=True, eq=False)
class Work:
    """
    One time that this process works on a job; a job that was handed back may be claimed here again at once.

    Attributes:
        in_progress: Whether its request has left, and the remote may be at it.
        free_seat: Has its seat freed, on record.
        away: When it has left, and the remote is done with its request.
    """

    in_progress: bool
    free_seat: Callable[[], None]
    away: asyncio.Event = field(default_factory=asyncio.Event)
    _has_left: bool = False
    _is_free: bool = False

    def was_freed(self) -> None:
        """The remote is done with its request."""
        self.in_progress = False
        self._check()

    def frees_seat(self) -> bool:
        """Whether its seat is free when its ending is written now."""
        self._is_free = not self.in_progress
        return self._is_free

    def was_handed_back(self) -> None:
        """It is anybody's, on record; its seat is free with that."""
        self._is_free = True
        self.has_left()

    def has_left(self) -> None:
        """It has ended, on record, or was handed back."""
        self._has_left = True
        self._check()

    def _check(self) -> None:
        if self._has_left and not self.in_progress:
            if not self._is_free:
                self.free_seat()
            self.away.set()


class Seats:
    """
    The seats on which one process works.

    Args:
        store: Of this process.
        desk: What its queue can be asked.
        on_leaving: What to call when a turn ends.
    """

    def __init__(self, store: PostgresStore, desk: Desk, on_leaving: Callable[[], None]) -> None:
        self._store = store
        self._desk = desk
        self._on_leaving = on_leaving
        self._work: dict[str, Work] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def has_work(self) -> bool:
        """Whether this process works on anything."""
        return bool(self._work)

    def work_on(self, job_id: str) -> Work | None:
        """Return the work of this process on this job."""
        return self._work.get(job_id)

    def rouse(self) -> None:
        """Wake the turns that linger: there may be a job."""
        self._wake.set()
        self._wake = asyncio.Event()

    def stop(self) -> None:
        """Let go of all seats. Jobs in doubt keep theirs, for whoever takes the next turn of each."""
        self._stopping.set()
        self._wake.set()

    async def aclose(self) -> None:
        """Prepare nothing any more."""
        tasks = list(self._preparing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def occupy(self, account: str, seat: int) -> None:
        """Work through the account's jobs on this seat, until there are none."""
        lingers = True
        while not self._stopping.is_set():
            wake = self._wake
            found = await self._claim_patiently(account, seat)
            if found.job is not None:
                lingers = True
                await self._see_through(found, found.job, account)
            elif found.wait_s > LONGEST_WAIT_S or not lingers:
                break
            else:
                lingers = found.wait_s > 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(found.wait_s or LINGER_S):
                        await wake.wait()
                        lingers = True
        self._on_leaving()

    async def _see_through(self, found: Claim, job: Job, account: str) -> None:
        work = Work(found.sent_ago_s is not None, lambda: self._store.free_seat(job.id))
        self._work[job.id] = work
        holder = f"{job.id} on a seat"
        try:
            ledger: Ledger | None = None
            if found.sent_ago_s is None:
                await self._store.fetch_samples(job, account, holder)
            else:
                ledger = await self._patiently(lambda: self._store.ledger(account))
            if self._stopping.is_set():
                return
            self._desk.adopt(job, account, sent_ago_s=found.sent_ago_s, ledger=ledger)
            self._look_ahead(account, serves_pool=found.serves_pool)
            await self._until_stopping(work.away)
        except StoreError as error:
            # Not begun: the next look at this seat finds it, and lets go of it.
            logger.warning("job %s must wait: %s", job.id, error)
            await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            self._store.let_go_samples(holder)
            if not self._stopping.is_set() and self._work[job.id] is work:
                del self._work[job.id]

    async def _until_stopping(self, event: asyncio.Event) -> None:
        waits = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._stopping.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _look_ahead(self, account: str, *, serves_pool: bool) -> None:
        if account not in self._preparing:
            task = asyncio.create_task(self._prepare(account, serves_pool=serves_pool), name="useapi_voice prepare")
            self._preparing[account] = task
            task.add_done_callback(lambda _: self._preparing.pop(account))

    async def _prepare(self, account: str, *, serves_pool: bool) -> None:
        """Upload the samples of the next jobs while others clone."""
        try:
            async with self._store.database.reading("looking ahead") as connection:
                rows = await connection.fetch(sql.PEEK, account, serves_pool, AHEAD)
            for row in rows:
                job = self._store.decode(row)
                if job.fingerprints:
                    await self._prepare_one(job, account)
        except StoreError as error:
            logger.debug("nothing is prepared: %s", error)

    async def _prepare_one(self, job: Job, account: str) -> None:
        holder = f"{job.id} ahead of its turn at {account}"
        try:
            await self._store.fetch_samples(job, account, holder)
            await self._desk.prepare(job, account)
        finally:
            self._store.let_go_samples(holder)

    # --- claims ------------------------------------------------------------------------------------------------------

    async def _claim_patiently(self, account: str, seat: int) -> Claim:
        try:
            found: Claim = await self._patiently(lambda: claim(self._store, self._desk, account, seat, self._work))
        except StoreError:
            return Claim(wait_s=float("inf"))
        return found

    async def _patiently(self, look: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await look()
            except StoreError as error:
                if self._stopping.is_set():
                    raise
                logger.debug("a look must wait: %s", error)
                await asyncio.sleep(LOOK_AGAIN_S)
