"""
The part that one process takes in a fleet: it hears what is told, polls for what was not heard, and works on its seats.

The poll, which every replica makes every few seconds, repairs whatever a lost notification, a lost connection or a
lost process left behind: endings that nobody heard of, jobs whose time is up or that nobody can serve, missing turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from .._errors import StoreError
from .._replies import Refused, Scope
from . import Desk, Gate
from . import _fleet_sql as sql
from ._database import Connection
from ._listener import Listener
from ._seats import Seats
from ._turns import Turns, make_turns

if TYPE_CHECKING:
    from .postgres import PostgresStore

logger: logging.Logger = logging.getLogger("useapi_voice")

POLL_S: Final = 2.0
"""Between two polls of a replica; what notifications bring comes at once."""
TIDY_EVERY: Final = 30
"""Polls between two sweeps, and between two looks whether the jobs that somebody waits for are there at all."""
GATHER_S: Final = 0.05
"""For how long notifications are gathered before they are acted on."""
OVERLAP_S: Final = 15.0
"""By how much the looks for endings overlap: a transaction may be as long in committing."""
STOP_S: Final = 5.0
"""How long stopping waits for turns to be handed back."""
MOST_TURNS: Final = 1_000
ENDED_AT_ONCE: Final = 200
"""Jobs that are claimed in order to end them."""


class Replica:
    """
    One process of a fleet.

    Args:
        store: Of this process.
        desk: What its queue can be asked.
    """

    def __init__(self, store: PostgresStore, desk: Desk) -> None:
        self._store = store
        self._desk = desk
        self.tasks: set[asyncio.Task[None]] = set()
        """Those that never end, unless they die of a bug."""
        self._side: set[asyncio.Task[None]] = set()
        self._listener = Listener(store.database, self._has_returned)
        self.seats = Seats(store, desk, self._look_for_turns_soon)
        self._turns = Turns(
            store.database, self._listener, self.seats.occupy, cap=store.cap, lease_s=store.lease_s, poll_s=POLL_S
        )
        self._turns_task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._ended: set[str] = set()
        self._wants_cancels = False
        self._wants_accounts = True
        self._wants_turns = True
        self._wants_look = False
        self._polls = 0

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """
        Sign in, and begin.

        Raises:
            StoreError: Notifications do not arrive, or the database cannot be used.
        """
        await self._store.seen()
        await self._listener.start()
        self._listener.subscribe(sql.CHANNEL, self._hear)
        self._start(self._listener.keep(), "useapi_voice listener")
        self._start(self._act(), "useapi_voice news")
        self._start(self._poll(), "useapi_voice poll")
        if self._store.works:
            self._turns_task = asyncio.create_task(self._take_turns(), name="useapi_voice turns")
            self.tasks.add(self._turns_task)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.add(asyncio.create_task(work, name=name))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something on the side."""
        task = asyncio.create_task(work, name=name)
        self._side.add(task)
        task.add_done_callback(self._side.discard)

    async def stop(self) -> None:
        """Let go of all turns and sign out. Jobs in doubt keep their seats, for whoever takes the next turn of each."""
        self.seats.stop()
        self._turns.stop()
        if self._turns_task is not None:
            await asyncio.wait({self._turns_task}, timeout=STOP_S)
        everything = {*self.tasks, *self._side}
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, self.seats.aclose(), return_exceptions=True)
        await self._store.left()
        self._listener.stop()

    # --- turns -------------------------------------------------------------------------------------------------------

    async def make_turns(self, connection: Connection, most: int) -> None:
        """Make the turns that are missing, at most so many, in the transaction of this connection."""
        await make_turns(connection, self._store.cap, most)

    async def _take_turns(self) -> None:
        # So that the engine's first look is at all of them; else the poll has it look again.
        with contextlib.suppress(StoreError):
            for account in await self._store.gates():
                self._turns.serve(account)
        await self._turns.run()

    async def _ensure_turns(self) -> None:
        if self._store.works and self._desk.is_taking:
            async with self._store.database.reading("making turns") as connection, connection.transaction():
                await self.make_turns(connection, MOST_TURNS)

    def _look_for_turns(self) -> None:
        self._wants_turns = True
        self._news.set()

    def _look_for_turns_soon(self) -> None:
        # Whoever submitted just now saw the turn that ends, and made none: look once more when it is gone.
        asyncio.get_running_loop().call_later(2 * GATHER_S, self._look_for_turns)

    # --- what is heard -----------------------------------------------------------------------------------------------

    def _hear(self, told: str) -> None:
        kind, _, name = told.partition(":")
        match kind:
            case "o":
                self.look_for(name)
            case "c":
                self._wants_cancels = True
            case "a":
                self._wants_accounts = self._wants_turns = True
            case "w":
                self._wants_turns = True
                self.seats.rouse()
            case _:
                # Of a newer version.
                return
        self._news.set()

    def look_for(self, job_id: str) -> None:
        """Look whether this job has ended."""
        self._ended.add(job_id)
        self._news.set()

    def _has_returned(self) -> None:
        """The listener is back: nobody knows what it missed."""
        self._wants_look = self._wants_cancels = self._wants_accounts = self._wants_turns = True
        self._news.set()
        self.seats.rouse()
        self._turns.look()

    async def _act(self) -> None:
        """Do what notifications ask for, many at a time."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._act_once()
            except StoreError as error:
                # The poll looks at all the rest every time.
                self._wants_look = True
                logger.debug("news must wait: %s", error)
                await asyncio.sleep(GATHER_S)
            if self._wants_turns:
                await asyncio.sleep(GATHER_S * random.uniform(0.5, 1.5))
                self._wants_turns = False
                with contextlib.suppress(StoreError):
                    await self._ensure_turns()

    async def _act_once(self) -> None:
        ended, self._ended = self._ended, set()
        await self._look_for_endings(ended)
        if self._wants_cancels:
            self._wants_cancels = False
            await self._heed_cancels()
        if self._wants_accounts and self._store.works:
            self._wants_accounts = False
            await self._heed_accounts()

    async def _look_for_endings(self, ids: set[str]) -> None:
        wanted = list(ids.intersection(self._desk.waits_for()))
        if wanted:
            async with self._store.database.reading("reading how jobs ended") as connection:
                rows = await connection.fetch(sql.ENDED, wanted)
            for row in rows:
                self._store.know(row)
                self._desk.has_ended(self._store.decode(row))

    async def _heed_cancels(self) -> None:
        if self.seats.has_work:
            async with self._store.database.reading("reading what is cancelled") as connection:
                rows = await connection.fetch(sql.CANCELLING, self._store.owner)
            for row in rows:
                if self.seats.work_on(row["id"]) is not None:
                    self._desk.cancel(row["id"], row["cancelling"])

    async def _heed_accounts(self) -> None:
        for account, gate in (await self._store.gates()).items():
            self._desk.heed(account, gate)
            self._turns.serve(account)
            if 0 < gate.wait_s < float("inf"):
                asyncio.get_running_loop().call_later(gate.wait_s + 0.01, self._look_for_turns)

    # --- the poll ----------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        if self._store.works:
            await self._find_accounts()
        while True:
            self._polls += 1
            try:
                await self._poll_once()
            except StoreError as error:
                logger.debug("the poll must wait: %s", error)
            await asyncio.sleep(POLL_S * random.uniform(0.8, 1.2))

    async def _find_accounts(self) -> None:
        while True:
            try:
                if await self._store.has_accounts():
                    return
                await self._store.found_accounts(await self._desk.discover())
            except StoreError as error:
                logger.debug("the accounts must wait: %s", error)
                await asyncio.sleep(POLL_S)

    async def _poll_once(self) -> None:
        await self._store.seen()
        if self._polls % TIDY_EVERY == 0:
            self._wants_look = True
        if self._wants_look:
            self._wants_look = False
            try:
                await self._look_for_all()
            except StoreError:
                self._wants_look = True
                raise
        else:
            await self._look_for_late_endings()
        await self._end_expired()
        await self._heed_cancels()
        if self._store.works:
            await self._heed_accounts()
            await self._end_blocked()
            await self._ensure_turns()
        if self._polls % TIDY_EVERY == 1:
            await self._store.tidy()

    async def _look_for_all(self) -> None:
        """Look for all jobs that somebody waits for: how they ended, and whether they are there at all."""
        await self._look_for_endings(set(self._desk.waits_for()))
        waits = [job_id for job_id in self._desk.waits_for() if not self._store.is_adding(job_id)]
        if waits:
            await self._store.flush()
            async with self._store.database.reading("looking for jobs") as connection:
                gone = [row["wanted"] for row in await connection.fetch(sql.GONE, waits)]
            for job_id in gone:
                self._desk.was_forgotten(job_id)

    async def _look_for_late_endings(self) -> None:
        if self._desk.waits_for():
            async with self._store.database.reading("looking for endings") as connection:
                rows = await connection.fetch(sql.ENDED_SINCE, OVERLAP_S)
            await self._look_for_endings({row["id"] for row in rows})

    async def _claim_to_end(self, query: str, *args: Any) -> AsyncGenerator[Any, None]:
        """Yield all jobs that are to end without being sent, as many at a time as are ended with one commit."""
        while True:
            async with self._store.database.reading("looking for jobs that are to end") as connection:
                rows = await connection.fetch(query, self._store.owner, ENDED_AT_ONCE, *args)
            for row in rows:
                yield row
            if len(rows) < ENDED_AT_ONCE:
                return
            await self._store.flush()

    async def _end_expired(self) -> None:
        async with aclosing(self._claim_to_end(sql.CLAIM_EXPIRED)) as rows:
            async for row in rows:
                is_deadline = row["deadline_s"] is not None and row["deadline_s"] <= 0
                self._desk.end(self._store.decode_claimed(row), "deadline_s" if is_deadline else "queue_timeout_s")

    async def _end_blocked(self) -> None:
        """Refuse the jobs that no account can serve, unless they are to wait."""
        if self._desk.waits_when_blocked or not self._desk.is_taking:
            return
        for pinned, refused in _blocked(await self._store.gates()):
            query = (sql.CLAIM_BLOCKED_POOL,) if pinned is None else (sql.CLAIM_BLOCKED, pinned)
            async with aclosing(self._claim_to_end(*query)) as rows:
                async for row in rows:
                    self._desk.end(self._store.decode_claimed(row), refused)


def _blocked(gates: dict[str, Gate]) -> list[tuple[str | None, Refused]]:
    """Return which jobs nobody can serve, by the account that they are pinned to, and why."""
    found: list[tuple[str | None, Refused]] = [
        (account, gate.refused) for account, gate in gates.items() if gate.refused is not None
    ]
    pool = [gate.refused for gate in gates.values() if gate.serves_pool]
    reasons = [refused for refused in pool if refused is not None]
    if reasons and len(reasons) == len(pool):
        # A full account mends itself with one delete; say that, where both are true of some.
        found.append((None, min(reasons, key=lambda refused: refused.scope is not Scope.SLOTS)))
    return found
