"""
Takes turns: PgQueuer says when this process may occupy a place of an account, and this room finds a job for it.

A turn goes on for as long as there are jobs, so that a freed place costs one claim. It ends when none is left, and is
made anew by whoever submits the next, or by the poll, which every replica makes every few seconds and which repairs
whatever a lost notification, a lost connection or a lost process left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.core.qm import QueueManager
from pgqueuer.core.tm import TaskManager
from pgqueuer.domain.models import Job as Turn
from pgqueuer.domain.types import Channel
from pgqueuer.ports.driver import Driver, NotifyCallback

from .._errors import StoreError
from .._jobs import OCCUPYING_STATES, Job, JobState
from . import Desk, Ledger
from . import _fleet_sql as sql
from ._schema import AWAY, queries

if TYPE_CHECKING:
    from .postgres import PostgresStore

logger = logging.getLogger("useapi_voice")

POLL_S: Final = 2.0
"""Between two polls of a replica; what notifications bring comes at once."""
TIDY_EVERY: Final = 30
"""Polls between two sweeps, and between two looks whether the jobs that somebody waits for are there at all."""
GATHER_S: Final = 0.05
"""For how long notifications are gathered before they are acted on."""
LINGER_S: Final = 1.0
"""How long a turn waits for a job before it ends: the next job then finds somebody ready."""
LONGEST_WAIT_S: Final = 5.0
"""How long a turn waits for a gate; a gate that is shut for longer makes a turn anew when it opens."""
AHEAD: Final = 2
"""Jobs whose samples go up while others clone."""
OVERLAP_S: Final = 15.0
"""By how much the looks for endings overlap: a transaction may be as long in committing."""
LISTEN_CHECK_S: Final = 5.0
STOP_S: Final = 5.0


@dataclass(slots=True)
class _Work:
    """A job that this process works on; `away` when it has left, and the remote is done with its request."""

    in_progress: bool
    has_left: bool = False
    away: asyncio.Event = field(default_factory=asyncio.Event)

    is_free: bool = False
    """Whether its ending was written with its place."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a look for a job brought: one, or for how many seconds there is none to be had."""

    job: Job | None = None
    sent_ago_s: float | None = None
    wait_s: float = 0.0
    serves_pool: bool = False


class Turns:
    """
    The part that one process takes in a fleet.

    Args:
        store: Of this process.
        desk: What its queue can be asked.
    """

    def __init__(self, store: PostgresStore, desk: Desk) -> None:
        self._store = store
        self._desk = desk
        self.tasks: set[asyncio.Task[None]] = set()
        self._side: set[asyncio.Task[None]] = set()
        self._work: dict[str, _Work] = {}
        self._listeners: dict[str, list[Callable[[str], None]]] = {}
        self._connection: Any = None
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._ended: set[str] = set()
        self._asked: set[str] = set()
        self._wants_accounts = True
        self._wants_turns = True
        self._wants_look = False
        self._is_stopping = False
        self._stopping = asyncio.Event()
        self._manager: QueueManager | None = None
        self._preparing: set[str] = set()
        self._polls = 0

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """
        Sign in, and begin.

        Raises:
            StoreError: Notifications do not arrive.
        """
        await self._store.seen()
        self._connection = await self._listen()
        await self._check_listening()
        self._start(self._keep_listening(), "useapi_voice listener")
        self._start(self._act(), "useapi_voice news")
        self._start(self._poll(), "useapi_voice poll")
        if self._store.works:
            self._start(self._take_turns(), "useapi_voice turns")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.add(asyncio.create_task(work, name=name))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something on the side."""
        task = asyncio.create_task(work, name=name)
        self._side.add(task)
        task.add_done_callback(self._side.discard)

    async def stop(self) -> None:
        """Let go of all turns and sign out. Jobs in doubt keep their seats, for whoever takes the next turn of each."""
        self._is_stopping = True
        self._stopping.set()
        self._wake.set()
        if self._manager is not None:
            self._manager.shutdown.set()
        named = {task.get_name(): task for task in self.tasks}
        turns = named.pop("useapi_voice turns", None)
        if turns is not None:
            await asyncio.wait({turns}, timeout=STOP_S)
        everything = {*self.tasks, *self._side}
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        await self._store.left()
        if self._connection is not None:
            self._connection.terminate()

    # --- notifications -----------------------------------------------------------------------------------------------

    async def _listen(self) -> Any:
        try:
            connection = await self._store.address.connect()
            for channel in (sql.CHANNEL, sql.TURNS_CHANNEL):
                await connection.add_listener(channel, self._hear)
        except (asyncpg.PostgresError, *AWAY) as error:
            raise self._store.address.explain("listening", error) from None
        return connection

    async def _check_listening(self) -> None:
        heard = asyncio.Event()
        self._listeners.setdefault(sql.CHANNEL, []).append(lambda told: heard.set() if told == "p:" else None)
        async with self._store.reading("notifying") as connection:
            await connection.execute(sql.NOTIFY, sql.CHANNEL, "p:")
        try:
            async with asyncio.timeout(LISTEN_CHECK_S):
                await heard.wait()
        except TimeoutError:
            raise StoreError(
                f"notifications of the database at {self._store.address.where} do not arrive: is a PgBouncer in "
                "transaction mode in between? Connect to PostgreSQL itself, or in session mode"
            ) from None
        finally:
            del self._listeners[sql.CHANNEL]

    def _hear(self, _connection: Any, _pid: int, channel: str, told: str) -> None:
        for listener in self._listeners.get(channel, ()):
            listener(told)
        if channel != sql.CHANNEL:
            return
        kind, _, name = told.partition(":")
        match kind:
            case "o":
                self._ended.add(name)
            case "c":
                self._asked.add(name)
            case "a":
                self._wants_accounts = self._wants_turns = True
            case "w":
                self._wants_turns = True
                self._rouse()
            case _:
                pass
        self._news.set()

    def _rouse(self) -> None:
        """Wake the turns that linger."""
        self._wake.set()
        self._wake = asyncio.Event()

    async def _keep_listening(self) -> None:
        """Listen again whenever the connection is lost; what was missed meanwhile, the poll finds."""
        pause_s = 0.1
        while True:
            if self._connection is None or self._connection.is_closed():
                try:
                    self._connection = await self._listen()
                except StoreError as error:
                    logger.warning("%s", error)
                    pause_s = min(5.0, 2 * pause_s)
                else:
                    pause_s = 0.1
                    self._wants_look = self._wants_accounts = self._wants_turns = True
                    self._news.set()
                    self._rouse()
                    for listener in self._listeners.get(sql.TURNS_CHANNEL, ()):
                        listener(_TABLE_CHANGED)
            await asyncio.sleep(pause_s)

    async def _act(self) -> None:
        """Do what notifications ask for, many at a time."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._act_once()
            except StoreError as error:
                logger.debug("news must wait: %s", error)
                await asyncio.sleep(GATHER_S)
            if self._wants_turns:
                await asyncio.sleep(GATHER_S * random.uniform(0.5, 1.5))
                self._wants_turns = False
                with contextlib.suppress(StoreError):
                    await self._ensure_turns()

    async def _act_once(self) -> None:
        ended, self._ended = self._ended, set()
        if ended:
            await self._look_for_endings(ended)
        if self._asked:
            self._asked = set()
            await self._heed_cancels()
        if self._wants_accounts and self._store.works:
            self._wants_accounts = False
            await self._heed_accounts()

    async def _look_for_endings(self, ids: set[str]) -> None:
        wanted = list(ids.intersection(self._desk.waits_for()))
        if wanted:
            async with self._store.reading("reading how jobs ended") as connection:
                rows = await connection.fetch(sql.ENDED, wanted)
            for row in rows:
                self._store.know(row)
                self._desk.has_ended(self._store.decode(row))

    async def _heed_cancels(self) -> None:
        if self._work:
            async with self._store.reading("reading what is cancelled") as connection:
                rows = await connection.fetch(sql.CANCELLING, self._store.owner)
            for row in rows:
                if row["id"] in self._work:
                    self._desk.cancel(row["id"], row["cancelling"])

    async def _heed_accounts(self) -> None:
        for account, gate in (await self._store.gates()).items():
            self._desk.heed(account, gate)
            if self._manager is not None:
                self._register(account)
            if 0 < gate.wait_s < float("inf"):
                asyncio.get_running_loop().call_later(gate.wait_s + 0.01, self._look_for_turns)

    def _look_for_turns(self) -> None:
        self._wants_turns = True
        self._news.set()

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
        is_long = self._wants_look or self._polls % TIDY_EVERY == 0
        self._wants_look = False
        await self._catch_up(is_long=is_long)
        await self._end_expired()
        await self._heed_cancels()
        if self._store.works:
            await self._heed_accounts()
            await self._end_blocked()
            await self._ensure_turns()
        if self._polls % TIDY_EVERY == 1:
            await self._store.tidy()

    async def _catch_up(self, *, is_long: bool) -> None:
        waits = self._desk.waits_for()
        if not waits:
            return
        if is_long:
            await self._look_for_endings(set(waits))
            waits = self._desk.waits_for()
            await self._store.flush()
            async with self._store.reading("looking for jobs") as connection:
                gone = [row["wanted"] for row in await connection.fetch(sql.GONE, list(waits))]
            for job_id in gone:
                self._desk.was_forgotten(job_id)
        else:
            async with self._store.reading("looking for endings") as connection:
                rows = await connection.fetch(sql.ENDED_SINCE, OVERLAP_S)
            await self._look_for_endings({row["id"] for row in rows})

    async def _end_expired(self) -> None:
        async with self._store.reading("looking for jobs out of time") as connection:
            rows = await connection.fetch(sql.CLAIM_EXPIRED, self._store.owner)
        for row in rows:
            self._desk.end(
                self._store.decode_claimed(row),
                "deadline_s" if row["deadline_s"] is not None and row["deadline_s"] <= 0 else "queue_timeout_s",
            )

    async def _end_blocked(self) -> None:
        """Refuse the jobs that no account can serve, unless they are to wait."""
        if self._desk.waits_when_blocked or not self._desk.is_taking:
            return
        gates = await self._store.gates()
        out = {account: gate.refused for account, gate in gates.items() if gate.refused is not None}
        pool = [gate for gate in gates.values() if gate.serves_pool]
        blocked: list[tuple[str | None, Any]] = list(out.items())
        if pool and all(gate.refused is not None for gate in pool):
            # A full account mends itself with one delete; say that, where both are true of some.
            blocked.append(
                (None, min((gate.refused for gate in pool if gate.refused), key=lambda x: x.scope.name != "SLOTS"))
            )
        for pinned, refused in blocked:
            async with self._store.reading("looking for jobs that nobody can serve") as connection:
                rows = await connection.fetch(sql.CLAIM_BLOCKED, self._store.owner, pinned)
            for row in rows:
                self._desk.end(self._store.decode_claimed(row), refused)

    # --- turns -------------------------------------------------------------------------------------------------------

    async def make_turns(self, connection: Any, most: int) -> None:
        """Make the turns that are missing, at most so many, in the transaction of this connection."""
        rows = await connection.fetch(sql.MISSING_TURNS, self._store.cap, most)
        if rows:
            names = [f"{sql.TURN_PREFIX}{row['account']}" for row in rows]
            keys = [f"{name}:{row['number']}" for name, row in zip(names, rows, strict=True)]
            await queries(AsyncpgDriver(connection)).enqueue(
                names, [None] * len(rows), [0] * len(rows), dedupe_key=list(keys), on_conflict="skip"
            )

    async def _ensure_turns(self) -> None:
        if self._store.works and self._desk.is_taking:
            async with self._store.reading("making turns") as connection, connection.transaction():
                await self.make_turns(connection, 1_000)

    async def _take_turns(self) -> None:
        """Run PgQueuer, again if it gives up."""
        pause_s = 0.5
        while not self._is_stopping:
            driver = _PatientDriver(self)
            self._manager = manager = QueueManager(queries(driver), Channel(sql.TURNS_CHANNEL))
            try:
                for account in await self._store.gates():
                    self._register(account)
                await manager.run(
                    dequeue_timeout=timedelta(seconds=POLL_S),
                    batch_size=1,
                    heartbeat_timeout=timedelta(seconds=self._store.lease_s),
                )
            except (StoreError, asyncpg.PostgresError, RuntimeError, *AWAY) as error:
                logger.warning("turns are taken again in %g s: %s", pause_s, self._store.address.explain("it", error))
                await asyncio.sleep(pause_s)
                pause_s = min(30.0, 2 * pause_s)
            finally:
                self._manager = None
                self._listeners.pop(sql.TURNS_CHANNEL, None)

    def _register(self, account: str) -> None:
        manager = self._manager
        name = f"{sql.TURN_PREFIX}{account}"
        if manager is not None and name not in manager.entrypoint_registry:
            manager.entrypoint(name, concurrency_limit=self._store.cap, accepts_context=False)(self._take)

    async def _take(self, turn: Turn) -> None:
        """Work through the account's jobs on the seat of this turn."""
        account, seat = turn.entrypoint.removeprefix(sql.TURN_PREFIX), turn.slot
        assert seat is not None  # noqa: S101 - every entrypoint of ours has a limit
        lingers = True
        while not self._is_stopping:
            wake = self._wake
            claim = await self._claim_patiently(account, seat)
            if claim.job is not None:
                lingers = True
                await self._see_through(claim, account)
            elif claim.wait_s > LONGEST_WAIT_S or not lingers:
                break
            else:
                lingers = claim.wait_s > 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(claim.wait_s or LINGER_S):
                        await wake.wait()
                        lingers = True
        # Whoever submitted just now saw this turn, and made none: look once more when it is gone.
        asyncio.get_running_loop().call_later(2 * GATHER_S, self._look_for_turns)

    async def _see_through(self, claim: _Claim, account: str) -> None:
        job = claim.job
        assert job is not None  # noqa: S101 - the caller looked
        work = self._work[job.id] = _Work(in_progress=claim.sent_ago_s is not None)
        try:
            ledger: Ledger | None = None
            if claim.sent_ago_s is None:
                await self._store.fetch_samples(job, account)
            else:
                ledger = await self._patiently(lambda: self._store.ledger(account))
            if self._is_stopping:
                return
            self._desk.adopt(job, account, sent_ago_s=claim.sent_ago_s, ledger=ledger)
            if account not in self._preparing:
                self.spawn(self._prepare(account, serves_pool=claim.serves_pool), "useapi_voice prepare")
            await self._until_stopping(work.away)
        except StoreError as error:
            # Not begun: the next look at this seat finds it, and lets go of it.
            logger.debug("job %s must wait: %s", job.id, error)
        finally:
            if not self._is_stopping:
                del self._work[job.id]

    async def _until_stopping(self, event: asyncio.Event) -> None:
        waits = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._stopping.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _prepare(self, account: str, *, serves_pool: bool) -> None:
        """Upload the samples of the next jobs while others clone."""
        self._preparing.add(account)
        try:
            async with self._store.reading("looking ahead") as connection:
                rows = await connection.fetch(sql.PEEK, account, serves_pool, AHEAD)
            for row in rows:
                job = self._store.decode(row)
                if job.fingerprints:
                    await self._store.fetch_samples(job, account)
                    await self._desk.prepare(job, account)
        except StoreError as error:
            logger.debug("nothing is prepared: %s", error)
        finally:
            self._preparing.discard(account)

    # --- what the queue says of jobs ---------------------------------------------------------------------------------

    def was_sent(self, job: Job) -> None:
        """Its request is about to leave."""
        if job.id in self._work:
            self._work[job.id].in_progress = True

    def was_freed(self, job_id: str) -> None:
        """The remote is done with its request."""
        if job_id in self._work:
            self._work[job_id].in_progress = False
            self._check(job_id)

    def has_left(self, job_id: str) -> None:
        """It has ended, or was handed back, and that is on record."""
        if job_id in self._work:
            self._work[job_id].has_left = True
            self._check(job_id)

    def is_over(self, job_id: str) -> bool:
        """Whether its place is free when its ending is written now."""
        work = self._work.get(job_id)
        if work is None:
            return True
        work.is_free = not work.in_progress
        return work.is_free

    def _check(self, job_id: str) -> None:
        work = self._work[job_id]
        if work.has_left and not work.in_progress:
            if not work.is_free:
                self._store.free_seat(job_id)
            work.away.set()

    # --- claims ------------------------------------------------------------------------------------------------------

    async def _patiently(self, look: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await look()
            except StoreError as error:
                if self._is_stopping:
                    raise
                logger.debug("a look must wait: %s", error)
                await asyncio.sleep(0.5)

    async def _claim_patiently(self, account: str, seat: int) -> _Claim:
        try:
            claim: _Claim = await self._patiently(lambda: self._claim(account, seat))
        except StoreError:
            return _Claim(wait_s=float("inf"))
        return claim

    async def _claim(self, account: str, seat: int) -> _Claim:
        """Look at the seat first: what somebody left on it comes before anything new."""
        async with self._store.reading("claiming a job") as connection, connection.transaction():
            gates = await connection.fetch(
                sql.LOCK_GATE if account else sql.LOCK_ALL_GATES, *([account] if account else [])
            )
            left = await connection.fetchrow(sql.ON_SEAT, account, seat)
            if left is not None and left["id"] not in self._work:
                claim = await self._inherit(connection, left, seat)
                if claim is not None:
                    return claim
            elif left is not None:
                return _Claim(wait_s=POLL_S)
            if not self._desk.is_taking:
                return _Claim(wait_s=float("inf"))
            orphan = await connection.fetchrow(sql.ORPHAN, account, seat, list(self._work))
            if orphan is not None and (claim := await self._inherit(connection, orphan, seat)) is not None:
                return claim
            gate = next((row for row in gates if row["account"] == account), None)
            if gate is None or gate["is_closed"]:
                return _Claim(wait_s=float("inf"))
            if (wait_s := max(gate["wait_s"], self._desk.gate_s(account))) > 0:
                return _Claim(wait_s=wait_s)
            if not await self._has_room(
                connection, account, gate, has_nameless=any(not row["account"] for row in gates)
            ):
                return _Claim()
            row = await connection.fetchrow(sql.CLAIM, account, seat, self._store.owner, gate["serves_pool"])
            if row is None:
                return _Claim()
            return _Claim(self._store.decode_claimed(row), serves_pool=gate["serves_pool"])

    async def _inherit(self, connection: Any, left: Any, seat: int) -> _Claim | None:
        """Deal with what lies on the seat; `None` when it is free then."""
        if JobState(left["state"]) in OCCUPYING_STATES:
            await connection.execute(sql.TAKE_OVER, left["id"], self._store.owner, seat)
            logger.info("job %s was left in doubt: this process looks for its voice", left["id"])
            return _Claim(self._store.decode_claimed(left), sent_ago_s=max(0.0, left["sent_ago_s"] or 0.0))
        if left["settled_at"] is None:
            # Claimed, and never sent.
            await connection.execute(sql.RELEASE, left["id"])
        else:
            # It ended early, perhaps with its request still in progress, and its owner may be gone.
            rest_s = self._store.settle_after_s - (left["sent_ago_s"] or float("inf"))
            if left["owner"] != self._store.owner and rest_s > 0:
                return _Claim(wait_s=min(rest_s, LONGEST_WAIT_S))
            await connection.execute(sql.CLEAR_SEAT, left["id"])
        return None

    async def _has_room(self, connection: Any, account: str, gate: Any, *, has_nameless: bool) -> bool:
        occupied = {row["account"]: row["count"] for row in await connection.fetch(sql.OCCUPIED)}
        own = occupied.pop(account, 0)
        # The nameless account may be any of the others, so their places count as its own.
        others = max(occupied.values(), default=0) if not account else occupied.get("", 0) if has_nameless else 0
        limit = self._store.cap if gate["limit_now"] is None else min(gate["limit_now"], self._store.cap)
        return int(own) + int(others) < limit


_TABLE_CHANGED: Final = (
    '{"channel":"useapi_voice_turns","sent_at":"2026-01-01T00:00:00+00:00","type":"table_changed_event",'
    '"operation":"insert","table":"pgqueuer"}'
)
"""What has PgQueuer look at its table, after a time in which nothing was heard."""


class _PatientDriver(Driver):
    """
    PgQueuer's way to the database: over our connections, waiting while it is away.

    So a lost connection costs neither the heartbeats nor the endings of turns, which PgQueuer itself would lose, and
    with each of them a seat for as long as its lease.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._shutdown = asyncio.Event()

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Any, None]:
        async with self._turns._store._pool.acquire(timeout=10) as connection:
            yield connection

    async def _patiently(self, run: Callable[[Any], Awaitable[Any]]) -> Any:
        pause_s = 0.05
        while True:
            try:
                async with self._connection() as connection:
                    return await run(connection)
            except AWAY:
                if self._turns._is_stopping:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2.0, 2 * pause_s)

    async def fetch(self, query: str, *args: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._patiently(lambda connection: connection.fetch(query, *args))]

    async def execute(self, query: str, *args: Any) -> str:
        status: str = await self._patiently(lambda connection: connection.execute(query, *args))
        return status

    async def notify(self, channel: str, payload: str) -> None:
        await self.execute(sql.NOTIFY, channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        self._turns._listeners.setdefault(channel, []).append(callback)

    async def remove_listener(self, channel: str, callback: NotifyCallback) -> None:
        self._turns._listeners.get(channel, []).remove(callback)

    @property
    def shutdown(self) -> asyncio.Event:
        return self._shutdown

    @property
    def tm(self) -> TaskManager:
        return TaskManager()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...
