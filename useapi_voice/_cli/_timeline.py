"""What occupied each account's places, and when: attempts as bars, waits between them, voices over time. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

SITTING_GAP_S: Final = 120.0
"""Nothing under way anywhere for longer than this: somebody had stopped, and what follows is another sitting."""
LONGEST_ATTEMPT_S: Final = 200.0
"""What an attempt without an end is drawn as, at the most: by then the remote is done with it."""
BUCKETS: Final = 48
_NICE_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True, slots=True)
class Bar:
    """
    One clone request.

    Attributes:
        verdict: As in `Attempt`; `in_progress` where there is none.
    """

    name: str
    account: str
    start: datetime
    end: datetime
    verdict: str
    status_code: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A stretch in which an account was asked to wait."""

    start: datetime
    end: datetime
    why: str


@dataclass(slots=True)
class Lane:
    """One account in one sitting: its places, each with its bars in order, and its waits."""

    account: str
    places: list[list[Bar]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)

    @property
    def busy_s(self) -> float:
        """Place-seconds used."""
        return sum((bar.end - bar.start).total_seconds() for place in self.places for bar in place)


@dataclass(slots=True)
class Sitting:
    """A stretch of work without a long break."""

    start: datetime
    end: datetime
    lanes: list[Lane]
    bucket_s: float
    made: list[int]
    """Voices made in each `bucket_s`."""

    @property
    def span_s(self) -> float:
        """How long it was; never nothing, as it is divided by."""
        return max(1.0, (self.end - self.start).total_seconds())

    def at(self, moment: datetime) -> float:
        """Where a moment lies in it, in percent."""
        return 100 * (moment - self.start).total_seconds() / self.span_s


def bars_of(rows: Iterable[Mapping[str, Any]], now: datetime) -> list[Bar]:
    """Return every attempt of these jobs, by their beginnings."""
    bars: list[Bar] = []
    for row in rows:
        for attempt in row["history"]:
            start = datetime.fromisoformat(attempt["sent_at"])
            end = datetime.fromisoformat(attempt["ended_at"]) if attempt["ended_at"] else None
            bars.append(
                Bar(
                    row["request"]["voice_name"],
                    attempt["account"] or "the account",
                    start,
                    # A clock may have been set back in between.
                    max(start, end or min(now, start + timedelta(seconds=LONGEST_ATTEMPT_S))),
                    attempt["verdict"] or "in_progress",
                    attempt["status_code"],
                    attempt["detail"],
                )
            )
    return sorted(bars, key=lambda bar: bar.start)


def sittings_of(bars: Sequence[Bar]) -> list[Sitting]:
    """Divide bars, by their beginnings, wherever nothing was under way for long."""
    groups: list[list[Bar]] = []
    end: datetime | None = None
    for bar in bars:
        if end is None or (bar.start - end).total_seconds() > SITTING_GAP_S:
            groups.append([])
            end = bar.end
        groups[-1].append(bar)
        end = max(end, bar.end)
    return [_sitting(group) for group in groups]


def _sitting(bars: Sequence[Bar]) -> Sitting:
    start, end = bars[0].start, max(bar.end for bar in bars)
    by_account: dict[str, list[Bar]] = {}
    for bar in bars:
        by_account.setdefault(bar.account, []).append(bar)
    lanes = [_lane(account, found, end) for account, found in sorted(by_account.items())]
    span_s = max(1.0, (end - start).total_seconds())
    bucket_s = next((nice for nice in _NICE_S if span_s / nice <= BUCKETS), float(_NICE_S[-1]))
    made = [0] * math.ceil(span_s / bucket_s)
    for bar in bars:
        if bar.verdict in {"cloned", "adopted"}:
            made[min(len(made) - 1, int((bar.end - start).total_seconds() / bucket_s))] += 1
    return Sitting(start, end, lanes, bucket_s, made)


def _lane(account: str, bars: Sequence[Bar], end: datetime) -> Lane:
    """Put each bar on the first place that is free: which one it was is nobody's business, how many were is."""
    lane = Lane(account)
    free: list[int] = []
    busy: list[tuple[datetime, int]] = []
    for index, bar in enumerate(bars):
        while busy and busy[0][0] <= bar.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            free.append(len(lane.places))
            lane.places.append([])
        place = heapq.heappop(free)
        lane.places[place].append(bar)
        heapq.heappush(busy, (bar.end, place))
        if bar.verdict == "not_accepted":
            # The store keeps no gates; but nothing was sent from the refusal to the next request.
            until = next((later.start for later in bars[index + 1 :] if later.start >= bar.end), end)
            lane.waits.append(Wait(bar.end, until, bar.detail or f"status {bar.status_code}"))
    return lane
