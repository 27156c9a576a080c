"""Looks after the fleet's schema: ours by version, PgQueuer's by its own account, one replica at a time."""

from __future__ import annotations

from typing import Any

from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder, QuerySchedulerBuilder
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.domain.settings import DBSettings, Durability
from pgqueuer.domain.types import Channel
from pgqueuer.ports.driver import Driver

from .._errors import StoreError
from . import _fleet_sql as sql


def queue_settings() -> DBSettings:
    """Name PgQueuer's tables, all of them, so that its environment variables change nothing here."""
    return DBSettings(
        prefix="",
        db_schema=sql.SCHEMA,
        channel=Channel(sql.TURNS_CHANNEL),
        function="fn_pgqueuer_changed",
        statistics_table="pgqueuer_statistics",
        queue_status_type="pgqueuer_status",
        queue_table="pgqueuer",
        queue_table_log="pgqueuer_log",
        trigger="tg_pgqueuer_changed",
        schedules_table="pgqueuer_schedules",
        durability=Durability.durable,
    )


def queries(driver: Driver) -> Queries:
    """Return PgQueuer's queries over its tables of ours."""
    settings = queue_settings()
    return Queries(
        driver,
        qbe=QueryBuilderEnvironment(settings),
        qbq=QueryQueueBuilder(settings),
        qbs=QuerySchedulerBuilder(settings),
    )


async def check_schema(connection: Any) -> bool:
    """
    Return whether the schema is there and as new as this version.

    Raises:
        StoreError: A newer version made it.
    """
    if not await connection.fetchval(sql.HAS_SCHEMA):
        return False
    version = await connection.fetchval(sql.VERSION)
    if version is not None and version > len(sql.MIGRATIONS):
        raise StoreError(
            f"the fleet's schema was made by a newer version of useapi_voice (schema {version}, this one knows "
            f"{len(sql.MIGRATIONS)}): upgrade"
        )
    return bool(version == len(sql.MIGRATIONS))


async def migrate(connection: Any) -> None:
    """Make the schema, or bring it up to date. Raises the driver's errors; nothing was changed then."""
    turns = queries(AsyncpgDriver(connection))
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", sql.MIGRATION_LOCK)
        if await check_schema(connection):
            return
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {sql.SCHEMA}")
        version = 0
        if await connection.fetchval(sql.HAS_SCHEMA):
            version = await connection.fetchval(sql.VERSION) or 0
        for statements in sql.MIGRATIONS[version:]:
            for statement in statements:
                await connection.execute(statement)
        if not await turns.schema_is_installed():
            await turns.install(create_schema=False)
        await connection.execute(sql.SET_VERSION, len(sql.MIGRATIONS))


async def upgrade_turns(connection: Any) -> None:
    """Bring PgQueuer's own tables up to date with the version that is installed; its steps share no transaction."""
    await queries(AsyncpgDriver(connection)).apply_upgrade()
