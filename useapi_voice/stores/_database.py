"""The way to a fleet's database: where it is, connections that are lent, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from .._errors import ConfigurationError, StoreError
from . import _fleet_sql as sql

Connection = Any
"""asyncpg's, or what its pool lends: the package is typed, but not so that both are one."""

CONNECT_S: Final = 10
QUERY_S: Final = 20
"""How long one query may take before its connection counts as lost."""
CLOSE_S: Final = 2.0
CHECK_S: Final = 5.0
"""How long the first notification may take."""
LOOK_S: Final = 0.1
MOST_CONNECTIONS: Final = 6
IDLE_S: Final = 30
"""How long the server keeps a transaction whose client says nothing: it holds locks that others wait for."""

AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""
What is raised while the database cannot be reached, or can take nothing, whatever was asked of it: its disk is full, it
is a standby by now, it shuts down.
"""
NO_SESSION: Final = (
    "a PgBouncer in transaction or statement mode does not do: connect to PostgreSQL itself, or in session mode"
)


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

    async def connect(self) -> Connection:
        """Open a connection of its own, on which nothing is prepared by name."""
        return await asyncpg.connect(self._url, timeout=CONNECT_S, statement_cache_size=0, **_SETTINGS)

    async def pool(self) -> Any:
        """Open a pool."""
        return await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=MOST_CONNECTIONS,
            timeout=CONNECT_S,
            init=_limit,
            reset=_keep,
            **_SETTINGS,
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
            remedy = NO_SESSION
        elif "statement pooling mode" in reason:
            # It says so, and closes the connection.
            remedy = NO_SESSION
        elif isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            remedy = "it takes no changes: is it a standby, or set to read only because its disk is nearly full?"
        elif isinstance(error, asyncpg.InsufficientResourcesError | asyncpg.PostgresSystemError):
            remedy = "PostgreSQL lacks disk, memory or connections"
        elif isinstance(error, ssl.SSLError):
            remedy = "check its certificate, and sslmode and sslrootcert of its URL"
        elif isinstance(error, TimeoutError):
            remedy = "can it be reached from here, and has it, or a pooler in between, a connection left?"
        elif isinstance(error, AWAY):
            remedy = "is PostgreSQL running, and can it be reached from here?"
        else:
            remedy = "this was not expected"
        return StoreError(f"the database at {self.where} cannot be used: {what} failed ({reason}); {remedy}")


_SETTINGS: Final[dict[str, Any]] = {
    "command_timeout": QUERY_S,
    "server_settings": {"application_name": "useapi_voice"},
}


async def _limit(connection: Connection) -> None:
    # Not as a setting of the connection's start: a PgBouncer refuses those that it does not know.
    await connection.execute(f"SET idle_in_transaction_session_timeout = {1000 * IDLE_S:.0f}")


async def _keep(_connection: Connection) -> None:
    """Leave it as it is: nobody here changes a session, and the limit above is to stay."""


class Database:
    """
    Lends connections of one pool.

    Args:
        address: Where it is.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._pool: Any = None

    async def open(self) -> None:
        """
        Connect.

        Raises:
            StoreError: Connections are no sessions: see `check_sessions`. Nothing was changed.

        The driver's errors come through.
        """
        await check_sessions(self.address)
        self._pool = await self.address.pool()

    async def close(self) -> None:
        """Let go of all connections, those that are lent as well; once."""
        pool, self._pool = self._pool, None
        if pool is not None:
            with contextlib.suppress(*AWAY):
                async with asyncio.timeout(CLOSE_S):
                    await pool.close()
            pool.terminate()

    @asynccontextmanager
    async def borrow(self) -> AsyncGenerator[Connection, None]:
        """Borrow a connection, and let the driver's errors through. Raises `StoreError` when it is not open."""
        if self._pool is None:
            raise StoreError(f"the database at {self.address.where} is not open")
        async with self._pool.acquire(timeout=CONNECT_S) as connection:
            yield connection

    @asynccontextmanager
    async def reading(self, what: str) -> AsyncGenerator[Connection, None]:
        """Borrow a connection; what goes wrong with it comes out as `StoreError`, which says what failed."""
        try:
            async with self.borrow() as connection:
                yield connection
        except (asyncpg.PostgresError, *AWAY) as error:
            raise self.address.explain(what, error) from None


async def check_sessions(address: Address) -> None:
    """
    See that a connection keeps its session between two transactions: notifications and prepared statements need it.

    One connection listens, another notifies it. That it hears is proof: a pooler that lends sessions for a transaction
    has lent it none while it waits, so there nothing can reach it. That it hears nothing for long is proof enough; and
    where the other is lent the very session that listens, which is the rule with few clients, nobody need wait.

    Raises:
        StoreError: It does not.

    The driver's errors come through. Nothing is prepared by name, as a name may be another's in a session that is
    lent, and nothing is left behind but the ear of a session, on a channel of which nobody will hear again.
    """
    channel = f"{sql.CHANNEL}_{uuid.uuid4().hex}"
    heard = asyncio.Event()

    def hear(*_: Any) -> None:
        heard.set()

    async with _connected(address) as ear, _connected(address) as mouth:
        async with ear.transaction():
            await ear.add_listener(channel, hear)
            session = await ear.fetchval(sql.SESSION)
        await mouth.execute(f"NOTIFY {channel}")
        until_t = asyncio.get_running_loop().time() + CHECK_S
        while not heard.is_set() and asyncio.get_running_loop().time() < until_t:
            async with mouth.transaction():
                if await mouth.fetchval(sql.SESSION) == session:
                    break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await heard.wait()
    if not heard.is_set():
        raise StoreError(f"notifications of the database at {address.where} do not arrive: {NO_SESSION}")


@asynccontextmanager
async def _connected(address: Address) -> AsyncGenerator[Connection, None]:
    connection = await address.connect()
    try:
        yield connection
    finally:
        connection.terminate()
