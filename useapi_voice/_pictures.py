"""Pictures of the queue, for those who watch it: counts by state, lanes, places in line, estimates. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ._jobs import OCCUPYING_STATES, Job, JobState
from ._schedule import Lane

TYPICAL_CLONE_S: Final = 20.0
"""What a clone typically takes [D Q26]; the first guess behind `eta_s`, before any was measured."""
NEWEST_WEIGHT: Final = 0.2
"""How much the newest clone counts in the mean."""


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """
    A picture of one account's lane.

    Attributes:
        account: Its name, or `None` for the lane of jobs whose account nobody could name.
        limit: Clones that may be in progress at once, at present.
        in_progress: Clones that occupy a place.
        staged: Jobs whose samples are up, or going up.
        waiting: Pinned jobs behind them.
        gate_s: Seconds until something may be sent again; 0 when the gate is open.
        closed_by: Why the account takes nothing at all, or `None`.
    """

    account: str | None
    limit: int
    in_progress: int
    staged: int
    waiting: int
    gate_s: float
    closed_by: str | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """
    A picture of the queue.

    Attributes:
        jobs: Jobs by state; those that have ended are counted since the client was opened.
        pooled: Waiting jobs that any account may serve.
        lanes: By account.
        uploads: Samples uploaded since the client was opened.
        generation: The generation of endpoints in use: `audio` or `speech`.
        mean_clone_s: How long a clone takes at present, in seconds; `None` before the first.
    """

    jobs: dict[JobState, int]
    pooled: int
    lanes: tuple[LaneStatistics, ...]
    uploads: int
    generation: str
    mean_clone_s: float | None


class Pace:
    """How long clones take at present, and so how long a backlog will."""

    def __init__(self) -> None:
        self.mean_clone_s: float | None = None

    def note(self, clone_s: float) -> None:
        """Count in one more clone."""
        mean_s = clone_s if self.mean_clone_s is None else self.mean_clone_s
        self.mean_clone_s = mean_s + NEWEST_WEIGHT * (clone_s - mean_s)

    def backlog_s(self, count: int, lanes: Iterable[Lane]) -> float | None:
        """Seconds until the last of `count` jobs will have ended; `None` while no lane takes any."""
        places = sum(lane.limit for lane in lanes if lane.closed_by is None)
        if not places:
            return None
        return -(-count // places) * (self.mean_clone_s or TYPICAL_CLONE_S)


def picture_of_lane(lane: Lane, now_t: float) -> LaneStatistics:
    """Return a lane's picture at loop time `now_t`."""
    return LaneStatistics(
        account=lane.account or None,
        limit=lane.limit,
        in_progress=len(lane.places),
        staged=lane.staged,
        waiting=len(lane.waiting),
        gate_s=max(0.0, lane.gate_t - now_t),
        closed_by=lane.closed_by.detail if lane.closed_by else None,
    )


def count_states(ended: Mapping[JobState, int], jobs: Iterable[Job]) -> dict[JobState, int]:
    """Count jobs by state: those that have ended, and those at hand."""
    return dict(Counter(ended) + Counter(job.state for job in jobs))


def position_of(job: Job, jobs: Collection[Job]) -> int | None:
    """Count the jobs that go before this one; `None` once it was sent, or has ended."""
    if job.is_settled or job.state in OCCUPYING_STATES:
        return None
    return sum(
        1
        for other in jobs
        if other < job
        and other.state not in OCCUPYING_STATES
        and (other.pinned == job.pinned or None in {other.pinned, job.pinned})
    )
