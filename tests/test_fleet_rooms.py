"""The rooms of the fleet store, each alone, where what it depends on can be brought into any state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from fleets import Bench
from stored import a_job

from useapi_voice import ConfigurationError, StoreError
from useapi_voice._errors import ApiError, VoiceSlotsFull
from useapi_voice._jobs import Job
from useapi_voice._replies import Refused, Scope
from useapi_voice.stores import Gate, _listener, _replica, _seats, _turns, _writer
from useapi_voice.stores import _fleet_sql as sql
from useapi_voice.stores._claims import Claim
from useapi_voice.stores._database import Address, Database
from useapi_voice.stores._listener import Listener
from useapi_voice.stores._seats import Seats
from useapi_voice.stores._turns import Turns
from useapi_voice.stores._writer import Writer
from useapi_voice.stores.postgres import _check_loop, decode_refused, encode_refused

LOST = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
ADDRESS = Address("postgresql://ann:hunter2@db.example:5433/fleet")


class Table:
    """A database whose commits fail as planned: `None` goes well, an error is raised in place of the commit's word."""

    def __init__(self, *plan: Exception | None) -> None:
        self.address = ADDRESS
        self.plan = list(plan)
        self.kept: list[Any] = []
        self.commits: list[list[Any]] = []
        self._pending: list[Any] = []

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Table]:
        yield self

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        self._pending = []
        yield
        error = self.plan.pop(0) if self.plan else None
        if error is not None:
            raise error
        self.kept += self._pending
        self.commits.append(self._pending)

    def put(self, item: Any) -> Callable[[Any], Any]:
        """Return what writes this, or fails if it is an error."""

        async def run(table: Table) -> Any:
            if isinstance(item, Exception):
                raise item
            table._pending.append(item)
            return item

        return run


@asynccontextmanager
async def writing(table: Table) -> AsyncIterator[Writer]:
    """Run a writer on it."""
    writer = Writer(table)  # type: ignore[arg-type]
    task = writer.start()
    try:
        yield writer
        assert not task.done()
    finally:
        await writer.close()


# --- the writer -------------------------------------------------------------------------------------------------------


async def test_all_that_is_there_is_one_commit() -> None:
    """In the order in which it was told, and each is answered for itself."""
    table, told = Table(), []
    async with writing(table) as writer:
        writer.note("a", table.put("a"), lambda: told.append("a"))
        assert await writer.ask("b", table.put("b")) == "b"
        await writer.flush()
    assert (table.commits, told) == ([["a", "b"]], ["a"])


async def test_who_asks_while_the_database_is_away_is_told_and_notes_are_owed() -> None:
    """What was asked does not happen later; what was noted does, in its order, and is announced then."""
    table, told = Table(LOST), []
    async with writing(table) as writer:
        writer.note("a", table.put("a"), lambda: told.append("a"))
        with pytest.raises(StoreError, match=r"b failed|a failed"):
            await writer.ask("b", table.put("b"))
        assert told == []
        writer.note("c", table.put("c"), lambda: told.append("c"))
        await writer.flush()
    assert (table.kept, told) == (["a", "c"], ["a", "c"])


@pytest.mark.parametrize(
    "bad",
    [
        asyncpg.UniqueViolationError("taken"),
        # The driver's word for a value that it cannot encode is a class that also means a lost connection.
        type("DataError", (asyncpg.InterfaceError, ValueError), {})("invalid input for query argument $1"),
    ],
)
async def test_what_cannot_be_written_is_refused_alone(bad: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """One that is at fault itself holds up nobody, and is not tried again."""
    table, told = Table(), []
    async with writing(table) as writer:
        writer.note("a", table.put("a"), lambda: told.append("a"))
        writer.note("bad", table.put(bad), lambda: told.append("bad"))
        with pytest.raises(StoreError, match=r"ask failed .*not expected"):
            await writer.ask("ask", table.put(bad))
        assert await writer.ask("z", table.put("z")) == "z"
    assert (table.kept, told) == (["a", "z"], ["a", "bad"])
    assert "bad failed" in caplog.text


async def test_a_deadlock_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told of it."""
    monkeypatch.setattr(_writer, "AGAIN_S", 0.0)
    table = Table(asyncpg.DeadlockDetectedError("deadlock detected"), asyncpg.DeadlockDetectedError("again"))
    async with writing(table) as writer:
        writer.note("a", table.put("a"))
        assert await writer.ask("b", table.put("b")) == "b"
    assert table.commits == [["a", "b"]]


async def test_an_ending_is_not_kept_from_its_waiters_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so long it is announced though it is not on record, once; and it is written when it can be."""
    monkeypatch.setattr(_writer, "OWED_S", -1.0)
    table, told = Table(LOST, LOST), []
    async with writing(table) as writer:
        writer.note("end", table.put("end"), lambda: told.append("end"))
        writer.note("note", table.put("note"))
        while not told:
            await asyncio.sleep(0)
        assert table.kept == []
        writer.note("more", table.put("more"))
        await flushed(writer)
    assert (table.kept, told) == (["end", "note", "more"], ["end"])


async def flushed(writer: Writer) -> None:
    """Wait until all is written, however often the database is away."""
    while True:
        try:
            await writer.flush()
        except StoreError:
            continue
        else:
            return


async def test_a_cancelled_asker_is_not_answered() -> None:
    """Whoever stopped waiting is of no interest any more, be it kept, refused or lost."""
    for end in (None, LOST, asyncpg.UniqueViolationError("taken")):
        table = Table(end)
        async with writing(table) as writer:
            task = asyncio.create_task(writer.ask("a", table.put("a")))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            writer.note("b", table.put("b"))
            await flushed(writer)
        assert "b" in table.kept


async def test_a_closed_writer_announces_at_once() -> None:
    """Before it was opened, and after it was closed, nobody waits in vain."""
    table, told = Table(), []
    writer = Writer(table)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="not open"):
        await writer.ask("a", table.put("a"))
    writer.note("a", table.put("a"), lambda: told.append("a"))
    writer.note("b", table.put("b"))
    await writer.close()
    assert (told, table.kept) == (["a"], [])


async def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the database does not take in time is announced all the same, and whoever asked is told."""
    monkeypatch.setattr(_writer, "CLOSE_S", 0.0)
    hangs, told = asyncio.Event(), []

    async def hang(_: Any) -> None:
        await hangs.wait()

    writer = Writer(Table())  # type: ignore[arg-type]
    writer.start()
    writer.note("a", hang, lambda: told.append("a"))
    ask = asyncio.create_task(writer.ask("b", hang))
    await asyncio.sleep(0)
    await writer.close()
    with pytest.raises(StoreError, match="the store is closed"):
        await ask
    assert told == ["a"]


# --- the way to the database ------------------------------------------------------------------------------------------


def test_what_is_no_url_is_no_store() -> None:
    """It says what it should look like."""
    with pytest.raises(ConfigurationError, match="postgresql://user"):
        Address("postgresql://[::1/fleet")


async def test_a_closed_database_lends_nothing() -> None:
    """Nor does it mind being closed twice."""
    database = Database(ADDRESS)
    await database.close()
    with pytest.raises(StoreError, match="is not open"):
        async with database.reading("looking"):
            pass


def test_the_fleet_store_needs_asyncio() -> None:
    """Its driver knows no other event loop."""
    with pytest.raises(ConfigurationError, match="asyncio"):
        _check_loop()


def test_a_refusal_of_a_newer_version_is_the_root_of_its_kind() -> None:
    """What is known of it is kept."""
    refused = Refused(VoiceSlotsFull, Scope.SLOTS, "full", 400, 2600010)
    assert decode_refused(encode_refused(refused)) == refused
    newer = decode_refused(encode_refused(refused).replace("VoiceSlotsFull", "VoiceQuotaSpent"))
    assert (newer.error, newer.code) == (ApiError, 2600010)


# --- listening --------------------------------------------------------------------------------------------------------


class Wire:
    """A connection to listen with."""

    def __init__(self) -> None:
        self.is_cut = False
        self.hears: dict[str, Any] = {}

    async def add_listener(self, channel: str, hear: Any) -> None:
        self.hears[channel] = hear

    def is_closed(self) -> bool:
        return self.is_cut

    def terminate(self) -> None:
        self.is_cut = True


class Exchange:
    """Gives connections, one after the other, or raises."""

    def __init__(self, *wires: Wire | Exception) -> None:
        self.address = self
        self.where = "db.example"
        self.wires = list(wires)
        self.given: list[Wire] = []

    async def connect(self) -> Wire:
        wire = self.wires.pop(0)
        if isinstance(wire, Exception):
            raise wire
        self.given.append(wire)
        return wire

    def explain(self, what: str, error: BaseException) -> StoreError:
        return ADDRESS.explain(what, error)


@asynccontextmanager
async def listening(exchange: Exchange, on_return: Callable[[], None] = lambda: None) -> AsyncIterator[Listener]:
    """Listen, and keep doing so."""
    listener = Listener(exchange, on_return)  # type: ignore[arg-type]
    await listener.start()
    task = asyncio.create_task(listener.keep())
    try:
        yield listener
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listener.stop()


async def test_a_lost_listener_is_replaced_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often that fails; what was subscribed to stays so."""
    monkeypatch.setattr(_listener, "LOOK_S", 0.0)
    exchange, returned, heard = Exchange(Wire(), OSError("no"), LOST, Wire()), asyncio.Event(), []
    async with listening(exchange, returned.set) as listener:
        listener.subscribe(sql.CHANNEL, heard.append)
        exchange.given[0].terminate()
        await returned.wait()
        exchange.given[1].hears[sql.CHANNEL](None, 1, sql.CHANNEL, "w:")
        listener.unsubscribe(sql.CHANNEL, heard.append)
        listener.unsubscribe(sql.CHANNEL, heard.append)
        listener.pretend(sql.CHANNEL, "w:")
    assert heard == ["w:"]
    assert exchange.given[1].is_cut


# --- turns ------------------------------------------------------------------------------------------------------------


class Ear:
    """A listener that hears nothing by itself."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.subscribed: list[Any] = []

    def subscribe(self, channel: str, told: Any) -> None:
        self.subscribed.append((channel, told))

    def unsubscribe(self, channel: str, told: Any) -> None:
        if (channel, told) in self.subscribed:
            self.subscribed.remove((channel, told))

    def pretend(self, channel: str, told: str) -> None:
        self.told.append((channel, told))


def some_turns(database: Any, ear: Ear) -> Turns:
    """Make turns of an engine that does what the test says."""

    async def work(account: str, seat: int) -> None: ...

    return Turns(database, ear, work, cap=2, lease_s=10.0, poll_s=1.0)  # type: ignore[arg-type]


async def test_an_engine_that_gives_up_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same accounts, and without what its predecessor listened to."""
    monkeypatch.setattr(_turns, "SHORTEST_PAUSE_S", 0.0)
    ear, runs = Ear(), []
    turns = some_turns(Table(), ear)

    async def run(manager: Any, **_: Any) -> None:
        runs.append(sorted(manager.entrypoint_registry))
        turns.serve("south")
        turns.serve("south")
        await manager.queries.driver.add_listener(sql.TURNS_CHANNEL, print)
        if len(runs) == 1:
            raise RuntimeError("the heartbeats failed")
        await manager.queries.driver.remove_listener(sql.TURNS_CHANNEL, print)
        turns.stop()
        assert manager.shutdown.is_set()

    monkeypatch.setattr(_turns.QueueManager, "run", run)
    turns.serve("north")
    await turns.run()
    assert runs == [["useapi_voice:north"], ["useapi_voice:north", "useapi_voice:south"]]
    assert ear.subscribed == []
    assert "the heartbeats failed" in caplog.text
    turns.stop()
    turns.look()
    assert [channel for channel, _ in ear.told] == [sql.TURNS_CHANNEL]


async def test_the_engine_waits_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat or an ending is not lost with the connection; but who stops does not wait."""
    monkeypatch.setattr(_turns, "SHORTEST_WAIT_S", 0.0)
    plan: list[Any] = [LOST, OSError("no"), [{"n": 1}], "DONE", LOST]
    asked: list[tuple[Any, ...]] = []

    class Line:
        @asynccontextmanager
        async def borrow(self) -> AsyncIterator[Line]:
            yield self

        async def fetch(self, *args: Any) -> Any:
            asked.append(args)
            answer = plan.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        execute = fetch

    stops = False
    driver = _turns._PatientDriver(Line(), Ear(), is_stopping=lambda: stops)  # type: ignore[arg-type]
    async with driver:
        assert await driver.fetch("SELECT", 1) == [{"n": 1}]
        await driver.notify("a channel", "a word")
        assert asked[-1] == (sql.NOTIFY, "a channel", "a word")
        stops = True
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await driver.execute("UPDATE")
        assert not driver.shutdown.is_set()
        assert driver.tm.tasks == set()


# --- seats ------------------------------------------------------------------------------------------------------------


class Shelf:
    """A store of which seats ask little."""

    def __init__(self) -> None:
        self.freed: list[str] = []
        self.let_go: list[str] = []
        self.fetches: list[Exception | None] = []
        self.ledgers: list[Exception | None] = []
        self.database = self
        self.next: list[Any] = []

    def free_seat(self, job_id: str) -> None:
        self.freed.append(job_id)

    async def fetch_samples(self, job: Job, account: str, holder: str) -> None:
        error = self.fetches.pop(0) if self.fetches else None
        if error is not None:
            raise error

    def let_go_samples(self, holder: str) -> None:
        self.let_go.append(holder)

    async def ledger(self, account: str) -> None:
        error = self.ledgers.pop(0) if self.ledgers else None
        if error is not None:
            raise error

    @asynccontextmanager
    async def reading(self, _: str) -> AsyncIterator[Shelf]:
        yield self

    async def fetch(self, *_: Any) -> list[Any]:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def decode(self, row: Any) -> Job:
        return row


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Claim | Exception]]:
    """Give what claims bring, by account; then there is nothing to be had for long."""
    planned: dict[str, list[Claim | Exception]] = {"north": [], "south": []}

    async def claim(_store: Any, _desk: Any, account: str, _seat: int, _here: Any) -> Claim:
        found = planned[account].pop(0) if planned[account] else Claim(wait_s=float("inf"))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(_seats, "claim", claim)
    monkeypatch.setattr(_seats, "LOOK_AGAIN_S", 0.0)
    return planned


def some_seats(shelf: Shelf, bench: Bench, left: list[int] | None = None) -> Seats:
    """Make seats."""
    return Seats(shelf, bench, lambda: None if left is None else left.append(1))  # type: ignore[arg-type]


async def test_a_job_that_is_claimed_again_here_keeps_its_new_seat(claims: dict[str, list[Any]]) -> None:
    """Handed back at one account and claimed at another, before this process hears that it is handed back."""
    shelf, bench, job = Shelf(), Bench(), a_job(1)
    seats = some_seats(shelf, bench)
    claims["north"] = [Claim(job)]
    claims["south"] = [Claim(job)]
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        north = tasks.create_task(seats.occupy("north", 0))
        await bench.until(lambda: len(bench.adopted) == 1)
        first = seats.work_on(job.id)
        assert first is not None
        south = tasks.create_task(seats.occupy("south", 0))
        await bench.until(lambda: len(bench.adopted) == 2)
        second = seats.work_on(job.id)
        assert second is not None
        assert second is not first
        first.was_handed_back()
        await north
        assert not south.done()
        assert seats.work_on(job.id) is second
        assert shelf.freed == []
        second.in_progress = True
        second.was_freed()
        second.has_left()
        await south
    assert seats.work_on(job.id) is None
    assert shelf.freed == [job.id]
    assert not seats.has_work


async def test_a_sample_that_cannot_be_had_leaves_the_job_where_it_is(claims: dict[str, list[Any]]) -> None:
    """The next look at the seat finds it, a moment later."""
    shelf, bench, left = Shelf(), Bench(), []
    shelf.fetches = [StoreError("the disk is full")]
    claims["north"] = [Claim(a_job(1))]
    await some_seats(shelf, bench, left).occupy("north", 0)
    assert (bench.adopted, left, len(shelf.let_go)) == ([], [1], 1)


async def test_a_claim_and_a_ledger_are_asked_for_until_they_come(claims: dict[str, list[Any]]) -> None:
    """Nothing is decided while the database is away; what was sent long ago is looked for with a ledger."""
    shelf, bench, job = Shelf(), Bench(), a_job(1)
    claims["north"] = [StoreError("away"), Claim(job, sent_ago_s=7.0), Claim()]
    shelf.ledgers = [StoreError("away")]
    seats = some_seats(shelf, bench)
    turn = asyncio.create_task(seats.occupy("north", 0))
    await bench.until(lambda: bench.adopted)
    assert bench.adopted[0][2] == 7.0
    work = seats.work_on(job.id)
    assert work is not None
    work.has_left()
    work.was_freed()
    await turn


async def test_a_turn_lingers_and_is_roused(claims: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing it waits a little, once; who rouses it makes it look again."""
    monkeypatch.setattr(_seats, "LINGER_S", 1000.0)
    shelf, bench, job = Shelf(), Bench(), a_job(1)
    seats = some_seats(shelf, bench)
    claims["north"] = [Claim(), Claim(job)]
    turn = asyncio.create_task(seats.occupy("north", 0))
    while len(claims["north"]) == 2:
        await asyncio.sleep(0)
    seats.rouse()
    await bench.until(lambda: bench.adopted)
    monkeypatch.setattr(_seats, "LINGER_S", 0.0)
    claims["north"] = [Claim(), Claim(), Claim(job)]
    work = seats.work_on(job.id)
    assert work is not None
    work.was_handed_back()
    await turn
    assert len(claims["north"]) == 1, "it lingered once"
    claims["north"] = [Claim(wait_s=1000.0)]
    await seats.occupy("north", 0)


async def test_who_stops_adopts_nothing_and_leaves_what_is_in_doubt(claims: dict[str, list[Any]]) -> None:
    """Stopped while it fetches or claims, it lets go; what it works on stays on its seat."""
    shelf, bench = Shelf(), Bench()
    seats = some_seats(shelf, bench)
    claims["north"] = [Claim(a_job(1))]
    working = asyncio.create_task(seats.occupy("north", 0))
    await bench.until(lambda: bench.adopted)

    async def fetch_and_stop(*_: Any) -> None:
        seats.stop()

    shelf.fetch_samples = fetch_and_stop  # type: ignore[method-assign]
    claims["south"] = [Claim(a_job(2))]
    await seats.occupy("south", 0)
    await working
    assert len(bench.adopted) == 1
    assert seats.has_work
    claims["south"] = [StoreError("away")]
    with pytest.raises(StoreError):
        await seats._patiently(lambda: _raise(StoreError("away")))
    assert (await seats._claim_patiently("south", 0)).wait_s == float("inf")
    await seats.aclose()


async def _raise(error: Exception) -> None:
    raise error


async def test_samples_go_up_ahead_of_their_turn(claims: dict[str, list[Any]]) -> None:
    """Of the next jobs, those that have any; a failure is left for their turn, and two turns prepare once."""
    shelf, bench = Shelf(), Bench()
    bare, ahead = a_job(2), a_job(3)
    bare.fingerprints = ()
    shelf.next = [bare, ahead]
    seats = some_seats(shelf, bench)
    claims["north"] = [Claim(a_job(1)), Claim(a_job(4))]
    turns = [asyncio.create_task(seats.occupy("north", seat)) for seat in (0, 1)]
    await bench.until(lambda: len(bench.adopted) == 2 and bench.prepared)
    assert bench.prepared == [ahead.id]
    shelf.next = StoreError("away")  # type: ignore[assignment]
    await seats._prepare("south", serves_pool=True)
    seats.stop()
    await asyncio.gather(*turns)
    seats._look_ahead("south", serves_pool=True)
    looking = seats._preparing["south"]
    await seats.aclose()
    assert looking.done()


# --- which jobs nobody can serve --------------------------------------------------------------------------------------

OUT = Refused(ApiError, Scope.ACCOUNT, "out of order", 596)
FULL = Refused(VoiceSlotsFull, Scope.SLOTS, "no slot", 400, 2600010)


def gate(refused: Refused | None, *, serves_pool: bool = True) -> Gate:
    """Make a gate."""
    return Gate(0.0, 2, refused, 0.0, serves_pool)


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ({}, []),
        ({"a": gate(None)}, []),
        ({"a": gate(OUT), "b": gate(None)}, [("a", OUT)]),
        ({"a": gate(OUT), "b": gate(FULL)}, [("a", OUT), ("b", FULL), (None, FULL)]),
        ({"a": gate(OUT, serves_pool=False)}, [("a", OUT)]),
    ],
)
def test_the_pool_is_blocked_where_all_of_it_is(gates: dict[str, Gate], expected: list[Any]) -> None:
    """A full account is said rather than one out of order, as one delete mends it."""
    assert _replica._blocked(gates) == expected
