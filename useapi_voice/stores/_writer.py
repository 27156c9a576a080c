"""
Writes what a process has to tell its fleet: one task, in the order in which it was told, all that is there at once.

Who asked waits for the commit, and is told if there is none. A note is owed while the database is away: it is kept,
in its place, for when the database is back, and with it the announcement that follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from .._errors import StoreError
from ._database import AWAY, Connection, Database

logger: logging.Logger = logging.getLogger("useapi_voice")

OWED_S: Final = 600.0
"""For how long an ending is kept from its waiters while the database is away; then it is told all the same."""
CLOSE_S: Final = 10.0
"""How long closing waits for the database to take what is owed."""
MOST_AT_ONCE: Final = 200
AGAIN_S: Final = 0.05
LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True, eq=False)
class Op:
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


class Writer:
    """
    The one task of a process that writes.

    Args:
        database: Where to.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._inbox: deque[Op] = deque()
        self._news = asyncio.Event()
        self._one_by_one = 0
        """How many of the inbox are written alone, as one of them is not to be written at all."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to write, and return the task that does."""
        self._task = asyncio.create_task(self._write(), name="useapi_voice store")
        return self._task

    async def close(self) -> None:
        """Write what is pending, within `CLOSE_S`, and make the announcements that are due in any case; once."""
        task, self._task = self._task, None
        if task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    while self._inbox and not task.done():
                        self._news.set()
                        await asyncio.sleep(0.002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        while self._inbox:
            op = self._inbox.popleft()
            if op.reply is not None and not op.reply.done():
                op.reply.set_exception(StoreError("the store is closed"))
            if op.announce is not None:
                op.announce()  # which may have more to note, and to announce

    # --- what is told ------------------------------------------------------------------------------------------------

    def note(
        self, what: str, run: Callable[[Connection], Awaitable[Any]], announce: Callable[[], None] | None = None
    ) -> None:
        """Write this when its turn comes, and then call `announce`; after `OWED_S` in any case."""
        until_t = float("inf") if announce is None else asyncio.get_running_loop().time() + OWED_S
        self._put(Op(what, run, announce=announce, owed_until_t=until_t))

    async def ask(self, what: str, run: Callable[[Connection], Awaitable[Any]]) -> Any:
        """Write this, and return what `run` returned when it is kept. Raises `StoreError`: then it is not."""
        if self._task is None:
            raise StoreError(f"{what} failed: the store is not open")
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(Op(what, run, reply))
        return await reply

    async def flush(self) -> None:
        """Wait until all that was told before is kept, or raise `StoreError`."""
        if self._inbox:
            await self.ask("writing what is pending", _nothing)

    def _put(self, op: Op) -> None:
        self._inbox.append(op)
        self._news.set()

    # --- the task ----------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        pause_s = 0.0
        while True:
            self._news.clear()
            if not self._inbox:
                await self._news.wait()
                continue
            most = 1 if self._one_by_one else MOST_AT_ONCE
            batch = [self._inbox[index] for index in range(min(most, len(self._inbox)))]
            try:
                async with self._database.borrow() as connection, connection.transaction():
                    results = [await op.run(connection) for op in batch]
            except AWAY as error:
                # Who waits is told; the notes before and after are kept, in their order.
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s or 0.1)
                explain = self._database.address.explain
                self._fail(explain(batch[0].what, error))
                self._give_up_waiting()
                logger.warning("%s", explain(f"keeping {len(self._inbox)} notes", error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._news.wait()
            except asyncpg.TransactionRollbackError as error:
                # Two waited for each other, and this one gave way.
                logger.debug("writing again: %s", error)
                await asyncio.sleep(random.uniform(0, AGAIN_S))
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

    def _refuse(self, op: Op, error: Exception) -> None:
        told = self._database.address.explain(op.what, error)
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
        for op in tuple(self._inbox):
            if op.announce is not None and op.owed_until_t < now_t:
                announce, op.announce = op.announce, None
                announce()  # which may have more to note


async def _nothing(connection: Connection) -> None:
    """Write nothing: what was told before is kept when this is reached."""
