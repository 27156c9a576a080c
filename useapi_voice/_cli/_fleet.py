"""`useapi-voice fleet`: make the schema, look at a fleet, and change its settings; needs no token."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .._errors import ConfigurationError
from ._exit import EPILOG, CliError, Debug, ExitCode, run
from ._options import JsonOption
from ._text import count, put, put_json, put_table, span

if TYPE_CHECKING:
    from ..stores._database import Address

VARIABLE: Final = "USEAPI_VOICE_STORE"

fleet_app = typer.Typer(
    help="Look after a fleet: many processes that share one PostgreSQL database.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
accounts_app = typer.Typer(help="See and change a fleet's accounts and cap.", epilog=EPILOG, no_args_is_help=True)
fleet_app.add_typer(accounts_app, name="accounts")

# A password on a command line is seen by every user of the machine.
Url = Annotated[
    str,
    typer.Option("--store", envvar=VARIABLE, help="postgresql://user:password@host/database; better in the variable."),
]


@fleet_app.command("init", epilog=EPILOG)
def init(store: Url = "", debug: Debug = False) -> None:  # noqa: FBT002 - Typer reads a flag from it
    """Make the schema, or bring it up to date; needs the right to create one, which a replica then does not."""
    run(_init, store, debug=debug)


@fleet_app.command("status", epilog=EPILOG)
def status(store: Url = "", json: JsonOption = False, debug: Debug = False) -> None:  # noqa: FBT002 - as above
    """Show the depth of the queue, the accounts, who holds which seat, and the replicas."""
    run(_status, store, json, debug=debug)


@accounts_app.command("list", epilog=EPILOG)
def accounts_list(store: Url = "", json: JsonOption = False, debug: Debug = False) -> None:  # noqa: FBT002 - as above
    """List the fleet's accounts in order, with their cap."""
    run(_list, store, json, debug=debug)


@accounts_app.command("set", epilog=EPILOG)
def accounts_set(
    names: Annotated[list[str] | None, typer.Argument(help="All accounts, in order.", show_default=False)] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, max=2, help="Clones per account.")] = None,
    store: Url = "",
    debug: Debug = False,  # noqa: FBT002 - as above
) -> None:
    """Change the accounts or the cap; refused while any clone is in progress. Restart the replicas with the same."""
    run(_set, store, tuple(names or ()), max_parallel, debug=debug)


@asynccontextmanager
async def _connected(url: str, *, makes: bool = False, changes: bool = False) -> AsyncGenerator[Any, None]:
    if not url.startswith(("postgresql://", "postgres://")):
        message = f"No fleet is named: set {VARIABLE} to postgresql://user:password@host/database."
        raise CliError(ExitCode.USAGE, message)
    try:
        import asyncpg

        from ..stores._database import Address, check_sessions
        from ..stores._schema import check_schema
    except ModuleNotFoundError:
        raise ConfigurationError("a fleet needs its extra: pip install 'useapi-voice[postgres]'") from None
    address: Address = Address(url)
    try:
        if makes or changes:
            # Who only looks may do so on a standby, or through any pooler.
            await check_sessions(address)
        connection = await address.connect()
        try:
            if not await check_schema(connection) and not makes:
                message = "The database has no schema of this version: run useapi-voice fleet init."
                raise CliError(ExitCode.USAGE, message)
            yield connection
        finally:
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise address.explain("looking at the fleet", error) from None


async def _init(url: str) -> ExitCode:
    async with _connected(url, makes=True) as connection:
        from ..stores._schema import migrate, upgrade_turns

        await migrate(connection)
        await upgrade_turns(connection)
    put("The schema useapi_voice is up to date.")
    return ExitCode.OK


async def _status(url: str, json: bool) -> ExitCode:  # noqa: FBT001 - as `run` hands it on
    async with _connected(url) as connection:
        from ..stores import _fleet_sql as sql

        # All of one moment.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = {
                name: [dict(row) for row in await connection.fetch(query)]
                for name, query in {
                    "jobs": sql.DEPTH,
                    "accounts": sql.ACCOUNTS,
                    "seats": sql.HELD_SEATS,
                    "replicas": sql.REPLICAS,
                }.items()
            }
    if json:
        put_json(found)
        return ExitCode.OK
    put_table(("state", "account", "jobs"), [(r["state"], r["pinned"] or "any", r["count"]) for r in found["jobs"]])
    put_table(
        ("account", "in the pool", "limit", "waits", "out because"),
        [
            (r["account"] or "(only)", "yes" if r["ordinal"] is not None else "no", r["limit_now"] or "", _wait(r),
             r["closed_by"] or "")
            for r in found["accounts"]
        ],
    )  # fmt: skip
    _put_replicas(found["replicas"], found["seats"])
    return ExitCode.OK


def _put_replicas(replicas: Sequence[dict[str, Any]], seats: Sequence[dict[str, Any]]) -> None:
    """Show who holds which seat; then, in words, which replicas are lost and what becomes of their seats."""
    who = {row["id"]: f"{row['host']}:{row['pid']}{' (lost)' if row['is_lost'] else ''}" for row in replicas}
    put_table(
        ("account", "seat", "state", "since", "voice", "held by"),
        [
            (r["account"] or "(only)", r["seat"], r["state"], _since(r["sent_ago_s"]), r["voice_name"],
             who.get(r["owner"], "a replica that is gone"))
            for r in seats
        ],
    )  # fmt: skip
    put_table(
        ("replica", "works", "up", "seats", "seen"),
        [
            (who[r["id"]], "yes" if r["works"] else "no", span(r["up_s"]), r["seats"], f"{r['seen_ago_s']:.0f} s ago")
            for r in replicas
        ],
    )
    for row in replicas:
        if row["is_lost"]:
            kept_s = [seat["kept_s"] or 0.0 for seat in seats if seat["owner"] == row["id"]]
            put(f"{row['host']}:{row['pid']} is lost: not seen for {span(row['seen_ago_s'])}; {_kept(kept_s)}.")


def _kept(kept_s: Sequence[float]) -> str:
    if not kept_s:
        return "it holds no seat"
    return (
        f"{count(len(kept_s), 'seat')} kept for {span(max(kept_s))} more, "
        "then another replica looks for the voices before anything is sent on them"
    )


def _wait(row: dict[str, Any]) -> str:
    return f"{row['wait_s']:.0f} s" if row["wait_s"] > 0 else ""


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"


async def _list(url: str, json: bool) -> ExitCode:  # noqa: FBT001 - as `run` hands it on
    async with _connected(url) as connection:
        from ..stores import _fleet_sql as sql

        settings = await connection.fetchrow(sql.READ_SETTINGS)
    if json:
        put_json({"max_parallel": settings["cap"], "accounts": settings["accounts"]})
    else:
        put(f"# {settings['cap']} clones at a time on each of:")
        for name in settings["accounts"] or ():
            put(name or "(only)")
    return ExitCode.OK


async def _set(url: str, names: Sequence[str], max_parallel: int | None) -> ExitCode:
    if not names and max_parallel is None:
        raise CliError(ExitCode.USAGE, "Name the accounts, or give --max-parallel.")
    async with _connected(url, changes=True) as connection:
        from ..stores import _fleet_sql as sql
        from ..stores.postgres import set_accounts

        async with connection.transaction():
            await connection.fetchrow(sql.SETTINGS)
            # Nobody claims while these are held.
            await connection.fetch(sql.LOCK_ALL_GATES)
            held = await connection.fetch(sql.HELD_SEATS)
            if held:
                message = f"{len(held)} places are occupied: stop the workers, wait for their clones, and try again."
                raise CliError(ExitCode.USAGE, message)
            if max_parallel is not None:
                await connection.execute(sql.SET_CAP, max_parallel)
            if names:
                await set_accounts(connection, names)
    put("Changed. Start all replicas with the same settings.")
    return ExitCode.OK
