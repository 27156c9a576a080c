"""Submits a batch, shows it, stops it when told to, and sums it up: what `clone` and `jobs retry` have in common."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from .._client import VoiceClient
from .._errors import (
    AuthenticationError,
    CloneError,
    Fault,
    RequestInvalid,
    ServerError,
    SubscriptionError,
)
from .._events import CloneJob
from .._jobs import Event
from .._models import VoiceInfo
from ._connect import CLONE_TIMEOUT_S
from ._exit import ExitCode, code_of, remedy_of, worst
from ._manifest import ManifestInvalid, Row, RowFault
from ._progress import Board, Item, Painter, painter_of
from ._text import console, count, put_json, say, shown, span

FAILURES_SHOWN: Final = 10
_PLACE: Final = re.compile(r"requests\[(\d+)\]\.?")


@dataclass(frozen=True, slots=True)
class Style:
    """How to show a batch."""

    quiet: bool = False
    json: bool = False


LOUD: Final = Style()


@dataclass(slots=True)
class Batch:
    """
    What is under way.

    Attributes:
        notes: What is worth saying about it at the start.
    """

    items: list[Item]
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """How a batch ended: each item with its voice, its error, or neither."""

    voices: list[tuple[Item, VoiceInfo]] = field(default_factory=list)
    failures: list[tuple[Item, CloneError]] = field(default_factory=list)
    left: list[Item] = field(default_factory=list)
    stopped_by: str = ""
    took_s: float = 0.0

    @property
    def code(self) -> ExitCode:
        """The exit code that this comes to."""
        stopped = ExitCode.INTERRUPTED if self.stopped_by == "interrupt" else ExitCode.OK
        return worst([stopped, *(code_of(error) for _, error in self.failures)])


# --- submitting ----------------------------------------------------------------------------------------------------


async def enlist(client: VoiceClient, rows: Sequence[Row], source: Path) -> Batch:
    """
    Submit rows; those that an earlier run knew are found again, and what failed for a passing reason goes once more.

    Raises:
        ManifestInvalid: A row is not what it was under the same key.
    """
    jobs = await _submit(client, rows, source)
    batch = Batch([])
    again: list[int] = []
    earlier = 0
    for index, job in enumerate(jobs):
        if job.done():
            earlier += 1
            if _may_pass(await _ending(job)):
                again.append(index)
    for index in again:
        await client.forget(jobs[index])
    for index, job in zip(again, await _submit(client, [rows[index] for index in again], source), strict=True):
        jobs[index] = job
    batch.items = [Item(job, row.where, row.line) for job, row in zip(jobs, rows, strict=True)]
    if earlier > len(again):
        batch.notes.append(f"{count(earlier - len(again), 'job')} ended in an earlier run")
    if again:
        what = f"{count(len(again), 'job')} that failed for a reason that may have passed"
        batch.notes.append(f"{what} {'goes' if len(again) == 1 else 'go'} again")
    others = [Item(job) async for job in _others(client, {item.job.id for item in batch.items})]
    if others:
        batch.notes.append(f"going on too: {count(len(others), 'job')} of the store, not in {shown(source)}")
    batch.items += others
    return batch


async def _submit(client: VoiceClient, rows: Sequence[Row], source: Path) -> list[CloneJob]:
    if not rows:
        return []
    try:
        return await client.submit_many([row.request for row in rows], keys=[row.key for row in rows])
    except RequestInvalid as error:
        faults = [_placed(fault, rows) for fault in error.faults]
    raise ManifestInvalid(source, faults)


def _placed(fault: Fault, rows: Sequence[Row]) -> RowFault:
    """Find the row of a fault: by its place in the batch, or by the key that it quotes."""
    found = _PLACE.match(fault.field)
    row = rows[int(found[1])] if found else next((row for row in rows if repr(row.key) in fault.message), rows[0])
    name = _PLACE.sub("", fault.field)
    if name == "key":
        message = f"{shown(row.key)!r} is in the store with another request: the row, or a recording, was changed"
        remedy = "give the changed row a key of its own, or forget the old one: useapi-voice jobs forget"
        return RowFault(row.line, row.where, Fault(name, message, remedy))
    return RowFault(row.line, row.where, Fault(name, shown(fault.message, 200), shown(fault.remedy, 200)))


async def _ending(job: CloneJob) -> VoiceInfo | CloneError:
    try:
        return await job
    except CloneError as error:
        return error


def _may_pass(outcome: VoiceInfo | CloneError) -> bool:
    """Whether an ending says nothing against the request itself, and nothing can have come of it."""
    if isinstance(outcome, VoiceInfo) or outcome.voice_may_exist:
        return False
    return outcome.safe_to_retry or isinstance(outcome, AuthenticationError | SubscriptionError | ServerError)


async def _others(client: VoiceClient, known: set[str]) -> AsyncIterator[CloneJob]:
    async for job in client.jobs():
        if job.id not in known and not job.done():
            yield job


# --- under way -----------------------------------------------------------------------------------------------------


async def follow(
    client: VoiceClient, batch: Batch, title: str, style: Style, *, fail_fast: bool = False, again: str
) -> Tally:
    """
    Show a batch until it has ended, or was stopped: by Ctrl-C once, twice, or by the first failure.

    Args:
        client: Where it is under way.
        batch: The jobs.
        title: What it is called.
        style: How to show it.
        fail_fast: Whether the first failure stops it.
        again: What resumes it, in words.
    """
    # No await in between: what the board counts is exactly what no event will tell.
    stream = client.events()
    board = Board(title, {item.job.id: item for item in batch.items}, client.statistics)
    painter = painter_of(board, quiet=style.quiet, json=style.json, console=console(stderr=True))
    tally = Tally()
    ended_before = {item.job.id for item in batch.items if item.job.done()}
    async with stream, anyio.create_task_group() as tasks:
        brake = _Brake(client, board, painter, tasks, tally, again)
        with painter:
            if not style.quiet:
                for note in batch.notes:
                    painter.note(note)
            tasks.start_soon(_show, stream, board, painter)
            tasks.start_soon(_tick, painter)
            tasks.start_soon(_listen, brake)
            async for job in client.as_completed([item.job for item in batch.items]):
                if fail_fast and job.id not in ended_before and isinstance(await _ending(job), CloneError):
                    brake.pull("failure")
            # Events of the last endings may still be on their way to the painter.
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    await _sum_up(tally, batch, board)
    return tally


async def _show(events: AsyncIterator[Event], board: Board, painter: Painter) -> None:
    async for event in events:
        board.take(event)
        painter.event(event)


async def _tick(painter: Painter) -> None:
    while True:
        await anyio.sleep(painter.every_s)
        painter.tick()


@dataclass(slots=True)
class _Brake:
    """Stops a batch: first gently, then at once."""

    client: VoiceClient
    board: Board
    painter: Painter
    tasks: TaskGroup
    tally: Tally
    again: str

    def pull(self, reason: str) -> None:
        """Start nothing new; pulled twice, wait for nothing either."""
        if self.tally.stopped_by:
            if reason == "interrupt":
                self.painter.note("Stopped at once; what was in progress is looked for first by the next run.")
                self.tally.stopped_by = "interrupt"
                self.tasks.cancel_scope.cancel()
            return
        self.tally.stopped_by = reason
        self.painter.note(self._farewell("Stopping" if reason == "interrupt" else "Stopping at the first failure"))
        self.board.stopping = "stopping"
        self.tasks.start_soon(self._drain)

    def _farewell(self, head: str) -> str:
        youngest_s = self.board.youngest_s
        if youngest_s is None:
            return f"{head}. {self.again}"
        most_s = max(1.0, CLONE_TIMEOUT_S - youngest_s)
        mean_s = self.client.statistics().mean_clone_s
        usual = f", likely {span(max(1.0, mean_s - youngest_s))}" if mean_s and not self.board.is_looking else ""
        what = f"waiting for {count(self.board.in_flight, 'clone')} in progress, {span(most_s)} at most{usual}"
        return f"{head}: {what}; Ctrl-C stops at once. {self.again}"

    async def _drain(self) -> None:
        await self.client.drain()
        # What ended just now is shown before the end.
        await anyio.sleep(0.05)
        self.tasks.cancel_scope.cancel()


async def _listen(brake: _Brake) -> None:
    with _signals() as arriving:
        async for _ in arriving:
            brake.pull("interrupt")


@contextmanager
def _signals() -> Generator[AsyncIterator[signal.Signals], None, None]:
    """Receive Ctrl-C and its like; where a platform cannot, Ctrl-C ends the process at once, which is as safe."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))
        except NotImplementedError:
            yield _nothing()


async def _nothing() -> AsyncIterator[signal.Signals]:
    return
    yield  # makes this a generator


async def _sum_up(tally: Tally, batch: Batch, board: Board) -> None:
    tally.took_s = board.elapsed_s
    for item in batch.items:
        if not item.job.done():
            tally.left.append(item)
            continue
        outcome = await _ending(item.job)
        if isinstance(outcome, VoiceInfo):
            tally.voices.append((item, outcome))
        else:
            tally.failures.append((item, outcome))


# --- afterwards ----------------------------------------------------------------------------------------------------


def tell(tally: Tally, style: Style, *, store: Path | None, again: str) -> None:
    """Say how it ended: in words, or as JSON."""
    if style.json:
        _tell_json(tally)
        return
    if not style.quiet or tally.failures or tally.left:
        total = len(tally.voices) + len(tally.failures) + len(tally.left)
        parts = [f"{len(tally.voices):,} of {count(total, 'voice')} are there" if total > 1 else _one(tally)]
        parts += [f"{len(tally.failures):,} failed"] if tally.failures and total > 1 else []
        parts += [f"{len(tally.left):,} are left"] if tally.left and total > 1 else []
        say(f"{', '.join(parts)} (after {span(tally.took_s)}).")
    _tell_failures(tally.failures)
    if tally.left:
        say(again)
    if store is not None and not style.quiet:
        say(f"All of it is in {shown(store)}: see useapi-voice jobs list, and useapi-voice report.")


def _one(tally: Tally) -> str:
    return "The voice is there" if tally.voices else "The voice failed" if tally.failures else "The voice is left"


def _tell_failures(failures: Sequence[tuple[Item, CloneError]]) -> None:
    """Say each remedy once, over all that it is for."""
    by_remedy: dict[tuple[str, str], list[tuple[Item, CloneError]]] = {}
    for item, error in failures:
        by_remedy.setdefault((type(error).__name__, remedy_of(error)), []).append((item, error))
    for (name, remedy), found in by_remedy.items():
        say(f"{name} ({len(found):,}): {remedy}")
        for item, error in found[:FAILURES_SHOWN]:
            say(f"  {item.label}: {shown(error, 300)}")
        if len(found) > FAILURES_SHOWN:
            say(f"  ... and {len(found) - FAILURES_SHOWN:,} more")


def _tell_json(tally: Tally) -> None:
    for item, voice in tally.voices:
        put_json({**_named(item), "voice": voice.model_dump(mode="json")})
    for item, error in tally.failures:
        facts = {"type": type(error).__name__, "remedy": remedy_of(error), **error.__dict__}
        put_json({**_named(item), "error": facts})
    for item in tally.left:
        put_json(_named(item))
    put_json(
        {
            "event": "end",
            "cloned": len(tally.voices),
            "failed": len(tally.failures),
            "left": len(tally.left),
            "stopped_by": tally.stopped_by or None,
            "took_s": round(tally.took_s, 3),
            "exit_code": tally.code.value,
        }
    )


def _named(item: Item) -> dict[str, object]:
    job = item.job
    return {
        "event": "result",
        "key": job.key,
        "line": item.line or None,
        "voice_name": job.request.voice_name,
        "state": job.state.value,
        "job_id": job.id,
    }
