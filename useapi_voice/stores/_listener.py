"""Hears what a fleet tells: one connection that listens, again whenever it is lost, and calls who asked to be told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import asyncpg

from .._errors import StoreError
from . import _fleet_sql as sql
from ._database import AWAY, Database

logger: logging.Logger = logging.getLogger("useapi_voice")

PROBE_S: Final = 15.0
"""Between two questions whether the other end is still there."""
PROBE_ANSWER_S: Final = 5.0
LOOK_S: Final = 0.1
"""Between two looks whether the connection is still there."""
LONGEST_PAUSE_S: Final = 5.0

Told = Callable[[str], None]


class Listener:
    """
    The ear of a process.

    Args:
        database: Whose notifications.
        on_return: What to call when it listens again, after a time in which notifications were lost.
    """

    def __init__(self, database: Database, on_return: Callable[[], None]) -> None:
        self._database = database
        self._on_return = on_return
        self._told: dict[str, list[Told]] = {sql.CHANNEL: [], sql.TURNS_CHANNEL: []}
        self._connection: Any = None

    def subscribe(self, channel: str, told: Told) -> None:
        """Have `told` called with each notification of one of our channels."""
        self._told[channel].append(told)

    def unsubscribe(self, channel: str, told: Told) -> None:
        """Have it called no more."""
        if told in self._told[channel]:
            self._told[channel].remove(told)

    def pretend(self, channel: str, told: str) -> None:
        """Tell as if this had been heard."""
        for listener in tuple(self._told[channel]):
            listener(told)

    async def start(self) -> None:
        """Listen. Raises `StoreError`."""
        self._connection = await self._listen()

    async def keep(self) -> None:
        """Listen again whenever the connection is lost, for ever."""
        pause_s = LOOK_S
        probed_t = asyncio.get_running_loop().time()
        while True:
            if asyncio.get_running_loop().time() - probed_t > PROBE_S:
                await self._probe()
                probed_t = asyncio.get_running_loop().time()
            if self._connection.is_closed():
                try:
                    self._connection = await self._listen()
                except StoreError as error:
                    logger.warning("%s", error)
                    pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                else:
                    pause_s = LOOK_S
                    self._on_return()
            await asyncio.sleep(pause_s)

    async def _probe(self) -> None:
        """Let go of a connection whose other end is gone without a word: one that only listens would never know."""
        try:
            await self._connection.execute("SELECT", timeout=PROBE_ANSWER_S)
        except (asyncpg.PostgresError, *AWAY):
            self._connection.terminate()

    def stop(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.terminate()

    async def _listen(self) -> Any:
        try:
            connection = await self._database.address.connect()
            for channel in self._told:
                await connection.add_listener(channel, self._hear)
        except (asyncpg.PostgresError, *AWAY) as error:
            raise self._database.address.explain("listening", error) from None
        return connection

    def _hear(self, _connection: Any, _pid: int, channel: str, told: str) -> None:
        self.pretend(channel, told)
