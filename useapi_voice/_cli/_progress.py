"""What people and programs see of a batch while it runs: one board of facts, painted live, in lines or as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .._events import CloneJob
from .._jobs import OCCUPYING_STATES, TERMINAL_STATES, Event, JobState
from .._pictures import TYPICAL_CLONE_S, LaneStatistics, Statistics
from ._connect import SETTLE_AFTER_S
from ._text import count, put_json, say, shown, span

LINE_EVERY_S: Final = 30.0
LIVE_EVERY_S: Final = 0.2
NAMES_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Item:
    """
    One job of a batch.

    Attributes:
        where: Its place in the manifest; empty where it comes from the store alone.
        line: Of the manifest, or 0.
    """

    job: CloneJob
    where: str = ""
    line: int = 0

    @property
    def label(self) -> str:
        """Its name as it is shown, with its place if it has one."""
        name = shown(self.job.request.voice_name, 40)
        return f"{shown(self.where)} {name}" if self.where and name not in self.where else shown(self.where) or name


@dataclass(slots=True)
class _InFlight:
    name: str
    account: str | None
    since: datetime
    is_looking: bool = False


@dataclass(slots=True)
class Board:
    """
    The facts: fed with events, asked by painters.

    Attributes:
        items: By job id.
        statistics: Asks the client.
        measured_s: What a clone took in earlier runs; `None` if there were none.
        stopping: What is said while the batch is being stopped; empty while it is not.
    """

    title: str
    items: Mapping[str, Item]
    statistics: Callable[[], Statistics]
    done: int = 0
    failed: int = 0
    stopping: str = ""
    measured_s: float | None = None
    started_t: float = field(default_factory=time.monotonic)
    _in_flight: dict[str, _InFlight] = field(default_factory=dict)
    _reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._count()
        took = [took_s for item in self.items.values() if (took_s := _took_s(item.job)) is not None]
        self.measured_s = median(took) if took else None

    def _count(self) -> None:
        """Look at all jobs, as they are at this moment."""
        self.done = self.failed = 0
        self._in_flight.clear()
        for job in (item.job for item in self.items.values()):
            self.done += job.done() and job.state is JobState.CLONED
            self.failed += job.done() and job.state is not JobState.CLONED
            if job.state in OCCUPYING_STATES and job.history:
                # Of an earlier run, most likely, and looked for by this one.
                is_looking = job.state is JobState.IN_DOUBT
                found = _InFlight(shown(job.request.voice_name, 24), job.account, job.history[-1].sent_at, is_looking)
                self._in_flight[job.id] = found

    @property
    def total(self) -> int:
        """All jobs."""
        return len(self.items)

    @property
    def waiting(self) -> int:
        """Jobs that have neither ended nor are in flight."""
        return max(0, self.total - self.done - self.failed - len(self._in_flight))

    @property
    def elapsed_s(self) -> float:
        """Since the batch began."""
        return time.monotonic() - self.started_t

    @property
    def youngest_s(self) -> float | None:
        """How long the latest of the clones in flight has taken so far; `None` if there is none."""
        return min((_age_s(one.since) for one in self._in_flight.values()), default=None)

    @property
    def is_looking(self) -> bool:
        """Whether any of them lost its answer, so that nobody can say how long it will take."""
        return any(one.is_looking for one in self._in_flight.values())

    @property
    def in_flight(self) -> int:
        """Clones that were sent, and have not ended."""
        return len(self._in_flight)

    def take(self, event: Event) -> None:
        """Take note of what happened."""
        if event.job_id is not None and event.job_id in self.items:
            self._take_of_job(event, event.job_id)
        elif event.kind == "missed":
            self._count()
        elif event.kind in {"gate_shut", "account_out", "slots_full"}:
            told = event.detail.get("reason") or "too many requests"
            self._reasons[event.account or ""] = shown(told, 60)

    def _take_of_job(self, event: Event, job_id: str) -> None:
        if event.kind == JobState.SENT:
            name = shown(event.voice_name or "", 24)
            self._in_flight[job_id] = _InFlight(name, event.account, event.at)
        elif event.kind == JobState.IN_DOUBT:
            if job_id in self._in_flight:
                self._in_flight[job_id].is_looking = True
        elif event.kind in TERMINAL_STATES:
            self._in_flight.pop(job_id, None)
            self.done += event.kind == JobState.CLONED
            self.failed += event.kind != JobState.CLONED
        elif event.kind == JobState.QUEUED:
            self._in_flight.pop(job_id, None)

    def eta_s(self, statistics: Statistics) -> float | None:
        """Estimate when all will have ended, from what clones took so far; `None` if nothing can go."""
        places = sum(lane.limit for lane in statistics.lanes if lane.closed_by is None)
        if not places:
            return None
        left = self.total - self.done - self.failed
        clone_s = statistics.mean_clone_s or self.measured_s or TYPICAL_CLONE_S
        # A lost answer is looked for until it is certain that there is none.
        looking_s = [SETTLE_AFTER_S - _age_s(one.since) for one in self._in_flight.values() if one.is_looking]
        return max(-(-left // places) * clone_s, *looking_s, 0.0)

    def outlook(self) -> str:
        """Say in a few words when it will be over."""
        if self.stopping:
            return self.stopping
        statistics = self.statistics()
        eta_s = self.eta_s(statistics)
        if eta_s is None:
            return "asking for the accounts" if not statistics.lanes else "no account can go on"
        is_guess = not (statistics.mean_clone_s or self.measured_s)
        return f"about {span(eta_s)} left" + (" (a guess, until one is measured)" if is_guess else "")

    def lanes(self) -> list[tuple[LaneStatistics, str, str]]:
        """Return each account with what is in flight and why it waits."""
        told: list[tuple[LaneStatistics, str, str]] = []
        for lane in self.statistics().lanes:
            flying = [one for one in self._in_flight.values() if (one.account or None) == lane.account]
            told.append((lane, _flying(flying, lane.in_progress), self._why(lane)))
        return told

    def _why(self, lane: LaneStatistics) -> str:
        reason = self._reasons.get(lane.account or "", "")
        if lane.closed_by is not None:
            return f"closed: {shown(lane.closed_by, 60)}"
        if lane.gate_s > 0:
            return f"waits {span(lane.gate_s)}: {reason}"
        return ""


def _age_s(since: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - since).total_seconds())


def _took_s(job: CloneJob) -> float | None:
    """How long the clone took that made its voice, where its answer came."""
    last = job.history[-1] if job.history else None
    if last is None or last.verdict != "cloned" or last.ended_at is None:
        return None
    return (last.ended_at - last.sent_at).total_seconds()


def _flying(flying: Sequence[_InFlight], places: int) -> str:
    told = [
        f"{one.name} {round(_age_s(one.since))} s" + (" (answer lost)" if one.is_looking else "")
        for one in flying[:NAMES_SHOWN]
    ]
    if len(flying) > NAMES_SHOWN:
        told.append(f"{len(flying) - NAMES_SHOWN} more")
    if places > len(flying):
        told.append(f"{places - len(flying)} being prepared or seen out")
    return " · ".join(told)


class Painter(Protocol):
    """Shows a board."""

    every_s: float
    """How often it wants to be told that time has passed."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def event(self, event: Event) -> None:
        """Something happened; the board knows of it already."""

    def tick(self) -> None:
        """Time has passed."""

    def note(self, text: str) -> None:
        """Say this to people."""


class _Plain:
    """What painters share: no context, nothing shown."""

    every_s = LINE_EVERY_S

    def __init__(self, board: Board) -> None:
        self.board = board

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        """Shown by others."""

    def tick(self) -> None:
        """Shown by others."""

    def note(self, text: str) -> None:
        """Say it plainly."""
        say(text)


class Quiet(_Plain):
    """Shows what must be known, and nothing else."""


class Lines(_Plain):
    """One plain line for everything that matters: for logs and pipes."""

    def event(self, event: Event) -> None:
        """Say it in a line."""
        told = in_words(event, self.board)
        if told:
            say(told)

    def tick(self) -> None:
        """Say how far it is."""
        board = self.board
        say(
            f"{board.done} of {board.total} done, {board.failed} failed, {board.in_flight} in flight, "
            f"{board.waiting} waiting; {board.outlook()}"
        )


class Json(_Plain):
    """Every event as a line of JSON on standard output; what people are told goes to standard error."""

    def event(self, event: Event) -> None:
        """Write it."""
        item = self.board.items.get(event.job_id or "")
        put_json(
            {
                "event": event.kind,
                "at": event.at.isoformat(),
                "job_id": event.job_id,
                "key": item.job.key if item else None,
                "line": (item.line or None) if item else None,
                "voice_name": event.voice_name,
                "account": event.account,
                **event.detail,
            }
        )


class Terminal(_Plain):
    """A panel that stays in place, with failures and closed accounts written above it."""

    every_s = LIVE_EVERY_S

    def __init__(self, board: Board, console: Console) -> None:
        super().__init__(board)
        self._console = console
        # Painted by our own clock: the client may be asked in its own thread only.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        self.tick()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        """Write down what nobody should miss; all else is in the panel."""
        if event.kind not in {JobState.CLONED, JobState.IN_DOUBT, "gate_shut"}:
            told = in_words(event, self.board)
            if told:
                self.note(told)

    def note(self, text: str) -> None:
        """Write it above the panel."""
        self._console.print(Text(text))

    def tick(self) -> None:
        """Paint the panel anew."""
        self._live.update(self._panel(), refresh=True)

    def _panel(self) -> RenderableType:
        board = self.board
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(justify="right", no_wrap=True)
        head.add_row(Text(shown(board.title), style="bold"), Text(f"{span(board.elapsed_s)} · {board.outlook()}"))
        counts = Text.assemble(
            (f"{board.done} of {board.total} done", "green"),
            " · ",
            (f"{board.failed} failed", "red" if board.failed else "dim"),
            f" · {board.in_flight} in flight · {board.waiting} waiting",
        )
        # A bar fills whatever it is given, and ends no line: it goes into a grid of its own.
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=max(1, board.total), completed=board.done + board.failed))
        return Group(head, bar, counts, self._lanes())

    def _lanes(self) -> Table:
        table = Table.grid(padding=(0, 2))
        # Without a least width, a long third column would squeeze the first two to nothing.
        lanes = self.board.lanes()
        table.add_column(no_wrap=True, min_width=max((len(_account(lane.account)) for lane, _, _ in lanes), default=0))
        table.add_column(no_wrap=True, justify="right", min_width=3)
        table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
        for lane, flying, why in lanes:
            told = Text.assemble((flying, ""), " · " if flying and why else "", (why, "yellow"))
            limit = 0 if lane.closed_by else lane.limit
            table.add_row(Text(_account(lane.account)), f"{lane.in_progress}/{limit}", told)
        return table


def painter_of(board: Board, *, quiet: bool, json: bool, console: Console) -> Painter:
    """Choose how to show a board."""
    if json:
        return Json(board)
    if quiet:
        return Quiet(board)
    if console.is_terminal and not console.is_dumb_terminal:
        return Terminal(board, console)
    return Lines(board)


def _account(name: str | None) -> str:
    return shown(name, 24) if name else "the account"


_ENDED_AS: Final = {
    JobState.REFUSED: "refused",
    JobState.UNKNOWN: "outcome unknown",
    JobState.EXPIRED: "out of time",
    JobState.CANCELLED: "cancelled",
}


def in_words(event: Event, board: Board) -> str:
    """Say an event in one line; empty where it is of no interest to people."""
    item = board.items.get(event.job_id or "")
    if item is not None:
        return _job_in_words(event, item, f"[{board.done + board.failed}/{board.total}]")
    account = _account(event.account)
    reason = shown(event.detail.get("reason") or "too many requests", 300)
    match event.kind:
        case "gate_shut":
            return f"account {account}: waits {span(event.detail['wait_s'])}: {reason}"
        case "account_out":
            return f"account {account}: out of order: {reason}"
        case "slots_full":
            return f"account {account}: no room for another voice: {reason}"
        case "account_back" | "slots_free":
            return f"account {account}: takes clones again"
        case "generation":
            return f"going on with the {shown(event.detail['generation'])} endpoints"
        case "missed":
            return f"{count(event.detail['count'], 'event')} came too fast to be shown"
        case _:
            return ""


def _job_in_words(event: Event, item: Item, progress: str) -> str:
    match event.kind:
        case JobState.CLONED:
            took_s = _took_s(item.job)
            took = "" if took_s is None else f" in {span(took_s)}"
            return f"{progress} {item.label}: cloned{took}: {shown(event.detail['voice_id'], 120)}"
        case JobState.REFUSED | JobState.UNKNOWN | JobState.EXPIRED | JobState.CANCELLED:
            reason = shown(event.detail.get("reason", ""), 300)
            return f"{progress} {item.label}: {_ENDED_AS[JobState(event.kind)]}: {reason}"
        case JobState.IN_DOUBT:
            return f"{item.label}: the answer was lost ({shown(event.detail.get('reason', ''))}); looking for the voice"
        case "surplus" | "late_voice":
            return f"{item.label}: more than one voice may be its own; look: useapi-voice voices list"
        case _:
            return ""
