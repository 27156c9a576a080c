"""
Takes turns: PgQueuer says when this process may occupy a place of an account. Another engine would replace this room.

A turn is the right to one seat of an account: PgQueuer's unique index gives each seat to one turn, its lease keeps the
seat for longer than the longest call, and whoever finds a turn whose holder is gone gets the same seat. What is done
with a turn is `work`'s to say; when that returns, the turn is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Self

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.core.qm import QueueManager
from pgqueuer.core.tm import TaskManager
from pgqueuer.domain.models import Job as Turn
from pgqueuer.domain.types import Channel
from pgqueuer.ports.driver import Driver, NotifyCallback

from .._errors import StoreError
from . import _fleet_sql as sql
from ._database import AWAY, Connection, Database
from ._listener import Listener
from ._schema import queries

logger: logging.Logger = logging.getLogger("useapi_voice")

SHORTEST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
"""Between two starts of an engine that gives up."""

SHORTEST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 2.0
"""Between two tries of one query of the engine while the database is away."""

_TABLE_CHANGED: Final = (
    '{"channel":"useapi_voice_turns","sent_at":"2026-01-01T00:00:00+00:00","type":"table_changed_event",'
    '"operation":"insert","table":"pgqueuer"}'
)
"""What has PgQueuer look at its table, after a time in which nothing was heard."""


async def make_turns(connection: Connection, cap: int, most: int) -> None:
    """Make the turns that are missing, at most so many, in the transaction of this connection."""
    found = await connection.fetch(sql.MISSING_TURNS, cap, most)
    # In one order everywhere: two who make the same turns wait for each other's.
    rows = sorted((row["account"], row["number"]) for row in found)
    if rows:
        names = [f"{sql.TURN_PREFIX}{account}" for account, _ in rows]
        keys: list[str | None] = [f"{sql.TURN_PREFIX}{account}:{number}" for account, number in rows]
        await queries(AsyncpgDriver(connection)).enqueue(
            names, [None] * len(rows), [0] * len(rows), dedupe_key=keys, on_conflict="skip"
        )


class Turns:
    """
    The turns that one process takes.

    Args:
        database: Where they are kept.
        listener: Hears of new ones.
        work: Does what is to be done at an account on a seat of it, and returns.
        cap: Seats of each account.
        lease_s: For how long a turn stays with a process that says nothing.
        poll_s: Between two looks for turns of which nothing was heard.
    """

    def __init__(
        self,
        database: Database,
        listener: Listener,
        work: Callable[[str, int], Awaitable[None]],
        *,
        cap: int,
        lease_s: float,
        poll_s: float,
    ) -> None:
        self._database = database
        self._listener = listener
        self._work = work
        self._cap = cap
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._manager: QueueManager | None = None
        self._accounts: dict[str, None] = {}
        self._is_stopping = False

    def serve(self, account: str) -> None:
        """Take turns at this account too, from now on."""
        self._accounts[account] = None
        if self._manager is not None:
            self._register(self._manager, account)

    def stop(self) -> None:
        """Take no more; `run` returns when all work has."""
        self._is_stopping = True
        if self._manager is not None:
            self._manager.shutdown.set()

    async def run(self) -> None:
        """Run PgQueuer, again if it gives up, until `stop`."""
        pause_s = SHORTEST_PAUSE_S
        while not self._is_stopping:
            driver = _PatientDriver(self._database, self._listener, is_stopping=lambda: self._is_stopping)
            self._manager = manager = QueueManager(queries(driver), Channel(sql.TURNS_CHANNEL))
            try:
                for account in self._accounts:
                    self._register(manager, account)
                await manager.run(
                    dequeue_timeout=timedelta(seconds=self._poll_s),
                    batch_size=1,
                    heartbeat_timeout=timedelta(seconds=self._lease_s),
                )
            except (StoreError, asyncpg.PostgresError, RuntimeError, *AWAY) as error:
                explained = self._database.address.explain("it", error)
                logger.warning("turns are taken again in %g s: %s", pause_s, explained)
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            finally:
                self._manager = None
                driver.forget_listeners()

    def look(self) -> None:
        """Look for turns now: something was not heard."""
        self._listener.pretend(sql.TURNS_CHANNEL, _TABLE_CHANGED)

    def _register(self, manager: QueueManager, account: str) -> None:
        name = f"{sql.TURN_PREFIX}{account}"
        if name not in manager.entrypoint_registry:
            manager.entrypoint(name, concurrency_limit=self._cap, accepts_context=False)(self._take)

    async def _take(self, turn: Turn) -> None:
        assert turn.slot is not None  # noqa: S101 - every entrypoint of ours has a limit
        await self._work(turn.entrypoint.removeprefix(sql.TURN_PREFIX), turn.slot)


class _PatientDriver(Driver):
    """
    PgQueuer's way to the database: over our connections, waiting while it is away.

    So a lost connection costs neither the heartbeats nor the endings of turns, which PgQueuer itself would lose, and
    with each of them a seat for as long as its lease.
    """

    def __init__(self, database: Database, listener: Listener, is_stopping: Callable[[], bool]) -> None:
        self._database = database
        self._listener = listener
        self._is_stopping = is_stopping
        self._callbacks: list[tuple[str, NotifyCallback]] = []
        self._shutdown = asyncio.Event()

    async def _patiently(self, run: Callable[[Connection], Awaitable[Any]]) -> Any:
        pause_s = SHORTEST_WAIT_S
        while True:
            try:
                async with self._database.borrow() as connection:
                    return await run(connection)
            except AWAY:
                if self._is_stopping():
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_WAIT_S, 2 * pause_s)

    async def fetch(self, query: str, *args: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._patiently(lambda connection: connection.fetch(query, *args))]

    async def execute(self, query: str, *args: Any) -> str:
        status: str = await self._patiently(lambda connection: connection.execute(query, *args))
        return status

    async def notify(self, channel: str, payload: str) -> None:
        await self.execute(sql.NOTIFY, channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        self._callbacks.append((channel, callback))
        self._listener.subscribe(channel, callback)

    async def remove_listener(self, channel: str, callback: NotifyCallback) -> None:
        self._listener.unsubscribe(channel, callback)

    def forget_listeners(self) -> None:
        """Of an engine that gave up without a word."""
        for channel, callback in self._callbacks:
            self._listener.unsubscribe(channel, callback)

    @property
    def shutdown(self) -> asyncio.Event:
        return self._shutdown

    @property
    def tm(self) -> TaskManager:
        return TaskManager()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...
