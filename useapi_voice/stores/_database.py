"""The way to a fleet's database: where it is, connections that are lent, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from .._errors import ConfigurationError, StoreError

Connection = Any
"""asyncpg's, or what its pool lends: the package is typed, but not so that both are one."""

CONNECT_S: Final = 10
QUERY_S: Final = 20
"""How long one query may take before its connection counts as lost."""
CLOSE_S: Final = 2.0
MOST_CONNECTIONS: Final = 6

AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    asyncpg.TooManyConnectionsError,
)
"""What is raised while the database cannot be reached, or takes no connections, whatever was asked of it."""


def is_away(error: BaseException) -> bool:
    """Whether the fault is the connection's, not that of what was asked: the driver says both with one class."""
    return isinstance(error, AWAY) and not isinstance(error, ValueError)


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
        """Open a connection of its own."""
        return await asyncpg.connect(self._url, timeout=CONNECT_S, **_SETTINGS)

    async def pool(self) -> Any:
        """Open a pool."""
        return await asyncpg.create_pool(
            self._url, min_size=1, max_size=MOST_CONNECTIONS, timeout=CONNECT_S, **_SETTINGS
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
        elif is_away(error):
            remedy = "is PostgreSQL running, and can it be reached from here?"
        else:
            remedy = "this was not expected"
        return StoreError(f"the database at {self.where} cannot be used: {what} failed ({reason}); {remedy}")


_SETTINGS: Final[dict[str, Any]] = {
    "command_timeout": QUERY_S,
    "server_settings": {"application_name": "useapi_voice"},
}


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
        """Connect. Raises the driver's errors."""
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
