"""
Who goes next, and where: waiting jobs, lanes and their places in; assignments out. Pure: the time is passed in.

An account has a *lane*: its pinned jobs in order, a gate, a limit, and one or two *places*, which are the clones that
may be in progress at the remote at once. Jobs that are not pinned wait in a pool, and are given to a lane only when it
has room for them: an account is chosen as late as its samples' upload allows.

A lane *stages* a few jobs ahead of its places (their samples go up while others clone), and *sends* the most urgent one
that is ready when a place is free. The rules:

1. First by priority, then first in, first out; except that a place never stays empty for a job still uploading.
2. Never more sent jobs than the lane's limit, and never two of one voice name: were both in doubt, nobody could say
   whose voice it is that turns up.
3. A lane that has nothing left takes a staged, unpinned job from one that has no place for it.

`assign` is called at every change, and is the only thing that decides. Its cost does not grow with the backlog.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ._jobs import Job, JobState
from ._models import name_key
from ._replies import PACE_WAIT_S, Refused, Scope

ANY_ACCOUNT: Final = ""
"""The lane of jobs whose account nobody could name: with a single account the remote needs none [D C24, U24]."""
LOOKAHEAD: Final = 2
"""Jobs staged ahead of a lane's free places."""
MOST_STAGED: Final = 12
"""Jobs staged at the most, where voice names that are in progress block some of them."""
SUCCESSES_TO_RAISE: Final = 3
"""Successes in a row, at the lower limit, before a lane that was told to slow down tries two at once again."""
MOST_SUCCESSES_TO_RAISE: Final = 48
SUCCESSES_TO_FORGET: Final = 20
"""Successes in a row, two at once, after which earlier refusals no longer make the lane slower to raise."""
LONGEST_PACE_WAIT_S: Final = 300.0
"""Longest wait after a 429 without advice: `PACE_WAIT_S`, doubled each time it happens again."""
UNREACHABLE_WAIT_S: Final = 0.5
LONGEST_UNREACHABLE_WAIT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Stage:
    """
    Upload this job's samples to this account, unless they are there.

    Attributes:
        moved: Whether it was staged at another account until now.
    """

    job: Job
    account: str
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Send this job's clone request to this account: it occupies a place from now on."""

    job: Job
    account: str


class JobHeap:
    """
    Waiting jobs in order of urgency, from which a job leaves at no cost by ceasing to wait.

    Jobs mostly come in the order in which they will go: those stand in a row, which gives the next one at the same cost
    however long it is. Only a job that is more urgent than the last of the row goes into a heap, whose levels a large
    backlog would pay for, one cache miss after the other.
    """

    __slots__ = ("_heap", "_live", "_row")

    def __init__(self) -> None:
        self._row: deque[Job] = deque()
        self._heap: list[Job] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def __iter__(self) -> Iterator[Job]:
        return (job for jobs in (self._row, self._heap) for job in jobs if job.is_waiting)

    def push(self, job: Job) -> None:
        """Add a queued job."""
        if not self._row or self._row[-1] < job:
            self._row.append(job)
        else:
            heapq.heappush(self._heap, job)
        self._live += 1

    def peek(self) -> Job | None:
        """Return the most urgent job that still waits."""
        while self._row and not self._row[0].is_waiting:
            self._row.popleft()
        while self._heap and not self._heap[0].is_waiting:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap_is_next() else self._row[0] if self._row else None

    def pop(self) -> Job:
        """Take the job that `peek` returned."""
        self._live -= 1
        return heapq.heappop(self._heap) if self._heap_is_next() else self._row.popleft()

    def _heap_is_next(self) -> bool:
        return bool(self._heap) and (not self._row or self._heap[0] < self._row[0])

    def discard(self, job: Job) -> None:
        """Take out a job that goes on waiting elsewhere. For short heaps: its cost grows with them."""
        if job in self._row:
            self._row.remove(job)
        else:
            self._heap.remove(job)
            heapq.heapify(self._heap)
        self._live -= 1

    def forget(self) -> None:
        """Count one job less: it no longer waits. Sweeps when the dead outnumber the living."""
        self._live -= 1
        if len(self._row) + len(self._heap) > 64 + 2 * self._live:
            self._row = deque(job for job in self._row if job.is_waiting)
            self._heap = [job for job in self._heap if job.is_waiting]
            heapq.heapify(self._heap)


@dataclass(slots=True, eq=False)
class Lane:
    """
    One account: its jobs in order, its gate, its limit.

    Attributes:
        account: Its name, or `ANY_ACCOUNT`.
        cap: Most clones in progress at once, 1 or 2.
        limit: The same, at present: lower while the remote says that it is too fast.
        serves_pool: Whether it takes jobs that are not pinned; a lane made for a pinned job does not.
        waiting: Pinned jobs that nothing was done for yet.
        uploading: Jobs whose samples are going up, by id.
        ready: Jobs whose samples are up, by id.
        places: Jobs that the remote may be at work for, by id; not all of them need be unsettled.
        names: The voice names among them.
        gate_t: Loop time until which nothing may be sent.
        closed_by: Why the account takes nothing at all (596, 412, no slot), or `None`.
        look_again_t: Loop time at which to ask whether that is over.
    """

    account: str
    cap: int
    limit: int
    serves_pool: bool = False
    waiting: JobHeap = field(default_factory=JobHeap)
    uploading: dict[str, Job] = field(default_factory=dict)
    ready: dict[str, Job] = field(default_factory=dict)
    places: dict[str, Job] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    gate_t: float = 0.0
    closed_by: Refused | None = None
    look_again_t: float = float("inf")
    pace_wait_s: float = PACE_WAIT_S
    unreachable_wait_s: float = UNREACHABLE_WAIT_S
    successes: int = 0
    successes_to_raise: int = SUCCESSES_TO_RAISE

    @property
    def staged(self) -> int:
        """Jobs that are uploading or ready."""
        return len(self.uploading) + len(self.ready)

    @property
    def load(self) -> int:
        """Jobs that this lane has taken on."""
        return len(self.places) + self.staged

    def is_open(self, now_t: float) -> bool:
        """Whether anything may be started here now."""
        return self.closed_by is None and self.gate_t <= now_t


class Schedule:
    """
    All lanes and the pool.

    Args:
        max_parallel: Places per account, 1 or 2.
        waits_when_closed: Whether jobs that no account can serve now stay, instead of being handed back to be refused.
    """

    def __init__(self, max_parallel: int, *, waits_when_closed: bool = False) -> None:
        self._cap = max_parallel
        self._waits = waits_when_closed
        self.lanes: dict[str, Lane] = {}
        self.pool = JobHeap()
        self.is_paused = False
        """Draining: nothing new is staged or sent."""

    # --- what changes ------------------------------------------------------------------------------------------------

    def lane(self, account: str) -> Lane:
        """Return the lane of this account, made if need be."""
        lane = self.lanes.get(account)
        if lane is None:
            lane = self.lanes[account] = Lane(account, cap=self._cap, limit=self._cap)
        return lane

    def admit(self, account: str) -> None:
        """Let this account serve the pool."""
        self.lane(account).serves_pool = True

    def add(self, job: Job) -> None:
        """Take a queued job in. Where lanes are closed, ask `orphans` afterwards."""
        self._heap_of(job).push(job)

    def remove(self, job: Job, was: JobState) -> None:
        """Forget a job that left the state `was` for good without being sent."""
        if was is JobState.QUEUED:
            self._heap_of(job).forget()
        else:
            lane = self.lanes[job.account or ANY_ACCOUNT]
            lane.uploading.pop(job.id, None)
            lane.ready.pop(job.id, None)

    def staged(self, job: Job) -> None:
        """Note that its samples are up."""
        lane = self.lanes[job.account or ANY_ACCOUNT]
        del lane.uploading[job.id]
        lane.ready[job.id] = job

    def unstage(self, job: Job) -> None:
        """Put a staged job back among the waiting, in its old order. Its state must be queued again."""
        lane = self.lanes[job.account or ANY_ACCOUNT]
        lane.uploading.pop(job.id, None)
        lane.ready.pop(job.id, None)
        job.account = job.pinned
        self.add(job)

    def free_place(self, job: Job, account: str) -> bool:
        """The remote is done with this job's request; return whether that is news."""
        lane = self.lanes[account]
        if lane.places.pop(job.id, None) is None:
            return False
        lane.names = {_name(other) for other in lane.places.values()}
        return True

    def occupy(self, job: Job, account: str) -> None:
        """A request of this job is under way at this account, perhaps from an earlier life of the process."""
        lane = self.lane(account)
        lane.places[job.id] = job
        lane.names.add(_name(job))

    # --- the lane's pace ---------------------------------------------------------------------------------------------

    def succeeded(self, account: str) -> bool:
        """Note an accepted clone; return whether the lane may try one more at once from now on."""
        lane = self.lanes[account]
        lane.pace_wait_s, lane.unreachable_wait_s = PACE_WAIT_S, UNREACHABLE_WAIT_S
        lane.successes += 1
        if lane.limit == lane.cap:
            if lane.successes >= SUCCESSES_TO_FORGET:
                lane.successes_to_raise = SUCCESSES_TO_RAISE
            return False
        if lane.successes < lane.successes_to_raise:
            return False
        lane.limit, lane.successes = lane.limit + 1, 0
        return True

    def slow_down(self, account: str, retry_after_s: float | None, now_t: float) -> float:
        """
        Shut the gate after a 429, once for all the lane's jobs, and go on with one at a time.

        Returns:
            Loop time until which it is shut: exactly as long as told; without advice 20 s, growing; told 0 s, half a
            second, growing.
        """
        lane = self.lanes[account]
        if retry_after_s == 0:
            # "At once", or a date that has passed: taken at its word for ever, it would be a storm.
            self.back_off(account, now_t)
        elif lane.gate_t <= now_t:  # else the other place met the same wall, which is no news
            if lane.limit < lane.cap:
                lane.successes_to_raise = min(MOST_SUCCESSES_TO_RAISE, 2 * lane.successes_to_raise)
            if retry_after_s is None:
                lane.gate_t = now_t + lane.pace_wait_s
                lane.pace_wait_s = min(LONGEST_PACE_WAIT_S, 2 * lane.pace_wait_s)
        lane.limit, lane.successes = 1, 0
        lane.gate_t = max(lane.gate_t, now_t + (retry_after_s or 0.0))
        return lane.gate_t

    def pause(self, account: str, until_t: float) -> None:
        """Shut the gate until then, and change nothing else."""
        lane = self.lane(account)
        lane.gate_t = max(lane.gate_t, until_t)

    def back_off(self, account: str, now_t: float) -> float:
        """Shut the gate for a little, growing each time: the remote could not be reached."""
        lane = self.lanes[account]
        if lane.gate_t <= now_t:
            lane.gate_t = now_t + lane.unreachable_wait_s
            lane.unreachable_wait_s = min(LONGEST_UNREACHABLE_WAIT_S, 2 * lane.unreachable_wait_s)
        return lane.gate_t

    def movable(self, account: str, now_t: float) -> list[Job]:
        """Return the staged jobs of a lane whose gate is shut that would be served sooner elsewhere."""
        lane = self.lanes[account]
        others = (other for other in self.lanes.values() if other is not lane and other.serves_pool)
        if not any(other.is_open(now_t) for other in others):
            return []
        return [job for jobs in (lane.uploading, lane.ready) for job in jobs.values() if job.pinned is None]

    def close_lane(self, account: str, reason: Refused, look_again_t: float) -> list[Job]:
        """
        Take an account out, because it refuses everything (596, 412) or has no slot.

        Returns:
            Its staged jobs, for the caller to unstage; ask `orphans` after that.
        """
        lane = self.lane(account)
        lane.closed_by, lane.look_again_t = reason, look_again_t
        return [*lane.uploading.values(), *lane.ready.values()]

    def open_lane(self, account: str) -> bool:
        """Take an account in again; return whether it was out."""
        lane = self.lane(account)
        was_closed = lane.closed_by is not None
        lane.closed_by, lane.look_again_t = None, float("inf")
        return was_closed

    def orphans(self) -> list[tuple[Job, Refused]]:
        """Return the waiting jobs that no account can serve now, with the reason; none if they are to wait."""
        if self._waits:
            return []
        orphans = [
            (job, lane.closed_by)
            for lane in self.lanes.values()
            if lane.closed_by is not None
            for job in sorted(lane.waiting)
        ]
        refused = self._why_pool_is_closed()
        if refused is not None:
            orphans += [(job, refused) for job in sorted(self.pool)]
        return orphans

    def _why_pool_is_closed(self) -> Refused | None:
        reasons = [lane.closed_by for lane in self.lanes.values() if lane.serves_pool]
        if not reasons or None in reasons:
            return None
        # A full account mends itself with one delete; say that, where both are true of some.
        return min((reason for reason in reasons if reason), key=lambda reason: reason.scope is not Scope.SLOTS)

    # --- the decision ------------------------------------------------------------------------------------------------

    def assign(self, now_t: float) -> Iterator[Stage | Send]:
        """Yield all that can be started now, each noted before it is yielded. Carry each out, then ask for the next."""
        if self.is_paused:
            return
        for lane in self.lanes.values():
            if lane.ready and len(lane.places) < lane.limit:
                yield from self._send_ready(lane, now_t)
        while (stage := self._next_to_stage(now_t) or self._next_to_move(now_t)) is not None:
            stage.job.account = stage.account
            lane = self.lanes[stage.account]
            lane.uploading[stage.job.id] = stage.job
            yield stage
            yield from self._send_ready(lane, now_t)

    def wake_at(self, now_t: float) -> float:
        """Loop time at which `assign`, or a look at a closed lane, has something to do for no other reason."""
        wake_t = float("inf")
        for lane in self.lanes.values():
            if now_t < lane.gate_t < wake_t:
                wake_t = lane.gate_t
            wake_t = min(wake_t, lane.look_again_t)
        return wake_t

    def lanes_to_look_at(self, now_t: float) -> list[Lane]:
        """Closed lanes whose time has come to be asked about."""
        return [lane for lane in self.lanes.values() if lane.look_again_t <= now_t]

    def _send_ready(self, lane: Lane, now_t: float) -> Iterator[Send]:
        while lane.ready and lane.is_open(now_t) and self._has_free_place(lane):
            names = self._names_in_progress(lane)
            free = [job for job in lane.ready.values() if _name(job) not in names]
            if not free:
                return
            job = min(free)
            del lane.ready[job.id]
            self.occupy(job, lane.account)
            yield Send(job, lane.account)

    def _names_in_progress(self, lane: Lane) -> set[str]:
        # As with `_occupied`: an account without a name may be any of the others.
        nameless = self.lanes.get(ANY_ACCOUNT)
        if nameless is None:
            return lane.names
        if lane is nameless:
            return set().union(*(other.names for other in self.lanes.values()))
        return lane.names | nameless.names

    def _has_free_place(self, lane: Lane) -> bool:
        return self._occupied(lane) < lane.limit

    def _occupied(self, lane: Lane) -> int:
        # Rule 2 where an account has no name: it may be any of the others, so their places count as its own.
        if lane.account == ANY_ACCOUNT:
            return len(lane.places) + max((len(x.places) for x in self.lanes.values() if x is not lane), default=0)
        nameless = self.lanes.get(ANY_ACCOUNT)
        return len(lane.places) + (len(nameless.places) if nameless else 0)

    def _next_to_stage(self, now_t: float) -> Stage | None:
        """The least loaded lane that has room and work, with its most urgent job."""
        has_pool = bool(self.pool)
        best: Lane | None = None
        least = 0
        for lane in self.lanes.values():
            load = len(lane.places) + len(lane.uploading) + len(lane.ready)
            has_work = (has_pool and lane.serves_pool) or bool(lane.waiting)
            if has_work and (best is None or load < least) and lane.is_open(now_t) and self._has_room(lane):
                best, least = lane, load
        if best is None:
            return None
        own = best.waiting.peek()
        pooled = self.pool.peek() if best.serves_pool else None
        heap = self.pool if own is None or (pooled is not None and pooled < own) else best.waiting
        return Stage(heap.pop(), best.account)

    def _has_room(self, lane: Lane) -> bool:
        room = max(0, lane.limit - self._occupied(lane)) + LOOKAHEAD
        if lane.staged < room:
            return True
        # Jobs of one name go one after the other: a few of them at the front must not keep a second place empty.
        names = {_name(job) for jobs in (lane.uploading, lane.ready) for job in jobs.values()}
        return lane.staged < MOST_STAGED and len(names - self._names_in_progress(lane)) < room

    def _next_to_move(self, now_t: float) -> Stage | None:
        """Rule 3: an idle lane, and the least urgent of the staged jobs of the lane that has most without a place."""
        takers = [x for x in self.lanes.values() if x.serves_pool and not x.staged and self._can_send(x, now_t)]
        for taker in takers:
            movable = [(self._movable(lane, taker, now_t), lane) for lane in self.lanes.values() if lane.staged]
            jobs, donor = max(movable, key=lambda row: len(row[0]), default=([], taker))
            if jobs:
                job = max(jobs)
                donor.uploading.pop(job.id, None)
                donor.ready.pop(job.id, None)
                return Stage(job, taker.account, moved=True)
        return None

    def _movable(self, donor: Lane, taker: Lane, now_t: float) -> list[Job]:
        # A job goes only where it can be sent, and so does not come back before anything has changed.
        is_stuck = not self._can_send(donor, now_t)
        blocked, taken = self._names_in_progress(donor), self._names_in_progress(taker)
        return [
            job
            for jobs in (donor.uploading, donor.ready)
            for job in jobs.values()
            if job.pinned is None and (is_stuck or _name(job) in blocked) and _name(job) not in taken
        ]

    def _can_send(self, lane: Lane, now_t: float) -> bool:
        return lane.is_open(now_t) and self._has_free_place(lane)

    def _heap_of(self, job: Job) -> JobHeap:
        return self.pool if job.pinned is None else self.lane(job.pinned).waiting


def _name(job: Job) -> str:
    return name_key(job.request.voice_name)
