"""
Finds a job for a seat: first what lies there, which somebody sent or left; then, where there is room, one that waits.

Whoever claims for an account holds its row, so that the look at its names and places and the claim are one step.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .._jobs import OCCUPYING_STATES, Job, JobState
from . import Desk
from . import _fleet_sql as sql
from ._database import Connection

if TYPE_CHECKING:
    from .postgres import PostgresStore

logger: logging.Logger = logging.getLogger("useapi_voice")

BUSY_S: Final = 2.0
"""How long a turn waits for a seat on which this very process is still at work, for a turn that it lost."""
LONGEST_WAIT_S: Final = 5.0
"""How long a turn waits for a gate; a gate that is shut for longer makes a turn anew when it opens."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a look for a job brought: one, or for how many seconds there is none to be had."""

    job: Job | None = None
    sent_ago_s: float | None = None
    wait_s: float = 0.0
    serves_pool: bool = False


async def claim(store: PostgresStore, desk: Desk, account: str, seat: int, here: Collection[str]) -> Claim:
    """
    Find a job for this seat.

    Args:
        store: Of this process.
        desk: Likewise.
        account: Whose seat.
        seat: Which.
        here: Ids of the jobs that this process works on.

    Raises:
        StoreError: The database cannot be used.
    """
    async with store.database.reading("claiming a job") as connection, connection.transaction():
        lock = (sql.LOCK_GATE, account) if account else (sql.LOCK_ALL_GATES,)
        gates = await connection.fetch(*lock)
        left = await connection.fetchrow(sql.ON_SEAT, account, seat)
        if left is not None and left["id"] in here:
            return Claim(wait_s=BUSY_S)
        if left is not None and (found := await _inherit(store, connection, left, seat)) is not None:
            return found
        if not desk.is_taking:
            return Claim(wait_s=float("inf"))
        orphan = await connection.fetchrow(sql.ORPHAN, account, seat, list(here))
        if orphan is not None and (found := await _inherit(store, connection, orphan, seat)) is not None:
            return found
        gate = next((row for row in gates if row["account"] == account), None)
        if gate is None or gate["is_closed"]:
            return Claim(wait_s=float("inf"))
        if (wait_s := max(gate["wait_s"], desk.gate_s(account))) > 0:
            return Claim(wait_s=wait_s)
        if not await _has_room(store, connection, gate, [row["account"] for row in gates]):
            return Claim()
        row = await connection.fetchrow(sql.CLAIM, account, seat, store.owner, gate["serves_pool"])
        return Claim() if row is None else Claim(store.decode_claimed(row), serves_pool=gate["serves_pool"])


async def _inherit(store: PostgresStore, connection: Connection, left: Any, seat: int) -> Claim | None:
    """Deal with what lies on the seat; `None` when it is free then."""
    if JobState(left["state"]) in OCCUPYING_STATES:
        await connection.execute(sql.TAKE_OVER, left["id"], store.owner, seat)
        logger.info("job %s was left in doubt: this process looks for its voice", left["id"])
        return Claim(store.decode_claimed(left), sent_ago_s=max(0.0, left["sent_ago_s"] or 0.0))
    if left["settled_at"] is None:
        # Claimed, and never sent.
        await connection.execute(sql.RELEASE, left["id"])
    else:
        # It ended early, perhaps with its request still in progress, and its owner may be gone.
        rest_s = store.settle_after_s - (left["sent_ago_s"] or float("inf"))
        if left["owner"] != store.owner and rest_s > 0:
            return Claim(wait_s=min(rest_s, LONGEST_WAIT_S))
        await connection.execute(sql.CLEAR_SEAT, left["id"])
    return None


async def _has_room(store: PostgresStore, connection: Connection, gate: Any, accounts: Sequence[str]) -> bool:
    """Whether the account has a place free; the others are those whose places count as its own."""
    # The nameless account may be any of the others: with it all of them are here, and it is with each of them.
    occupied = {row["account"]: row["count"] for row in await connection.fetch(sql.OCCUPIED, accounts)}
    own = occupied.pop(gate["account"], 0)
    others = max(occupied.values(), default=0)
    limit = store.cap if gate["limit_now"] is None else min(gate["limit_now"], store.cap)
    return int(own) + int(others) < limit
