"""The schedule: random histories against a slow obvious twin, the pace of a lane, and what a decision costs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from useapi_voice._errors import AccountUnavailable, VoiceSlotsFull
from useapi_voice._jobs import Job, JobState, Step, advance
from useapi_voice._models import CloneRequest
from useapi_voice._replies import Refused, Scope
from useapi_voice._schedule import (
    ANY_ACCOUNT,
    LONGEST_PACE_WAIT_S,
    LONGEST_UNREACHABLE_WAIT_S,
    LOOKAHEAD,
    MOST_STAGED,
    MOST_SUCCESSES_TO_RAISE,
    SUCCESSES_TO_FORGET,
    SUCCESSES_TO_RAISE,
    JobHeap,
    Lane,
    Schedule,
    Send,
    Stage,
)

REQUESTS = {name: CloneRequest(voice_name=name, language_tag="English", samples=["a.mp3"]) for name in "abcdefgh"}
OUT = Refused(AccountUnavailable, Scope.ACCOUNT, "out of order", 596)
FULL = Refused(VoiceSlotsFull, Scope.SLOTS, "no slot", 400, 2600010)
FOREVER = float("inf")


def request_named(name: str) -> CloneRequest:
    """Return a request of this voice name."""
    if name not in REQUESTS:
        REQUESTS[name] = CloneRequest(voice_name=name, language_tag="English", samples=["a.mp3"])
    return REQUESTS[name]


def make_job(seq: int, *, name: str | None = None, priority: int = 0, pinned: str | None = None) -> Job:
    """Make a waiting job, with a voice name of its own by default."""
    return Job(f"j{seq}", None, request_named(name or f"v{seq}"), priority, seq, pinned, account=pinned)


def urgency(job: Job) -> tuple[int, int]:
    """Say what goes first, without the job's own idea of it."""
    return (-job.priority, job.seq)


class Harness:
    """Does what the queue does with a schedule, at once and without a remote."""

    def __init__(
        self, accounts: Iterable[str] = "A", *, cap: int = 2, waits: bool = False, uploads: bool = False
    ) -> None:
        self.schedule = Schedule(cap, waits_when_closed=waits)
        for account in accounts:
            self.schedule.admit(account)
        self.uploads = uploads
        """Whether uploading takes time; if not, whatever is staged is ready at once."""
        self.now_t = 0.0
        self.seq = 0

    def add(self, **facts: Any) -> Job:
        """Take in a job."""
        self.seq += 1
        job = make_job(self.seq, **facts)
        self.schedule.add(job)
        return job

    def turn(self) -> list[Stage | Send]:
        """Start what can be started, and return what that was."""
        actions: list[Stage | Send] = []
        for action in self.schedule.assign(self.now_t):
            actions.append(action)
            if isinstance(action, Send):
                advance(action.job, Step.SEND)
                continue
            if action.moved:
                advance(action.job, Step.UNSTAGE)
            advance(action.job, Step.STAGE)
            if not self.uploads:
                self.uploaded(action.job)
        return actions

    def sent(self) -> list[Job]:
        """Take a turn, and return the jobs that were sent."""
        return [action.job for action in self.turn() if isinstance(action, Send)]

    def uploaded(self, job: Job) -> None:
        """Let its samples be up."""
        advance(job, Step.STAGED)
        self.schedule.staged(job)

    def requeue(self, job: Job, account: str) -> None:
        """Take a job that was sent back."""
        advance(job, Step.REQUEUE)
        job.account = job.pinned
        self.schedule.add(job)
        self.schedule.free_place(job, account)

    def finish(self, job: Job) -> None:
        """Let it have its voice."""
        account = job.account or ANY_ACCOUNT
        advance(job, Step.CLONE)
        self.schedule.succeeded(account)
        self.schedule.free_place(job, account)

    def close(self, account: str, reason: Refused) -> list[Job]:
        """Take an account out, and end what nobody can serve."""
        for job in self.schedule.close_lane(account, reason, self.now_t + 300):
            advance(job, Step.UNSTAGE)
            self.schedule.unstage(job)
        return self.settle_orphans()

    def settle_orphans(self) -> list[Job]:
        """End what nobody can serve."""
        orphans = self.schedule.orphans()
        for job, _ in orphans:
            self.end(job, Step.REFUSE)
        return [job for job, _ in orphans]

    def end(self, job: Job, step: Step) -> None:
        """End a job that was not sent."""
        was = job.state
        advance(job, step)
        self.schedule.remove(job, was)


# --- the slow obvious twin --------------------------------------------------------------------------------------------


class Twin:
    """
    Knows where each job is, and decides by looking at all of them each time.

    What a lane's gate and limit are it takes from the schedule: those have tests of their own.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.where: dict[Job, tuple[str, str | None]] = {}

    def at(self, kind: str, lane: Lane) -> list[Job]:
        """Return the jobs of one kind in a lane."""
        return [job for job, place in self.where.items() if place == (kind, lane.account)]

    def names(self, lane: Lane) -> set[str]:
        """Return the voice names that are in progress; nameless ones count everywhere, and all of them there."""
        lanes = [lane, *(x for x in self.schedule.lanes.values() if ANY_ACCOUNT in {x.account, lane.account})]
        return {job.request.voice_name for x in lanes for job in self.at("place", x)}

    def occupied(self, lane: Lane) -> int:
        """Count the places in use; a nameless one counts against all."""
        own = len(self.at("place", lane))
        others = [len(self.at("place", x)) for x in self.schedule.lanes.values() if x is not lane]
        if lane.account == ANY_ACCOUNT:
            return own + max(others, default=0)
        nameless = self.schedule.lanes.get(ANY_ACCOUNT)
        return own + (len(self.at("place", nameless)) if nameless else 0)

    def staged(self, lane: Lane) -> list[Job]:
        """Return the jobs that are staged in a lane, in the order in which that happened."""
        return self.at("uploading", lane) + self.at("ready", lane)

    def can_start(self, lane: Lane, now_t: float) -> bool:
        """Whether account and gate are open."""
        return lane.closed_by is None and lane.gate_t <= now_t

    def can_send(self, lane: Lane, now_t: float) -> bool:
        """Whether one more may go."""
        return self.can_start(lane, now_t) and self.occupied(lane) < lane.limit

    def sendable(self, lane: Lane) -> list[Job]:
        """Return the jobs that are ready, and whose names are free."""
        return [job for job in self.at("ready", lane) if job.request.voice_name not in self.names(lane)]

    def has_room(self, lane: Lane) -> bool:
        """Whether it may stage one more: those that its names in progress block, or one another, count as one."""
        room = max(0, lane.limit - self.occupied(lane)) + LOOKAHEAD
        staged = self.staged(lane)
        if len(staged) < room:
            return True
        useful = {job.request.voice_name for job in staged} - self.names(lane)
        return len(staged) < MOST_STAGED and len(useful) < room

    def work(self, lane: Lane) -> list[Job]:
        """Return the waiting jobs that a lane may take."""
        return [
            job
            for job, place in self.where.items()
            if place[0] == "waiting" and (job.pinned == lane.account or (job.pinned is None and lane.serves_pool))
        ]

    def expect(self, now_t: float) -> Stage | Send | None:
        """Say what must happen next."""
        lanes = list(self.schedule.lanes.values())
        for lane in lanes:
            if self.can_send(lane, now_t) and (ready := self.sendable(lane)):
                return Send(min(ready, key=urgency), lane.account)
        takers = [lane for lane in lanes if self.can_start(lane, now_t) and self.work(lane) and self.has_room(lane)]
        if takers:
            best = min(takers, key=lambda lane: len(self.at("place", lane)) + len(self.staged(lane)))
            return Stage(min(self.work(best), key=urgency), best.account)
        return self.expect_move(lanes, now_t)

    def expect_move(self, lanes: Sequence[Lane], now_t: float) -> Stage | None:
        """Say what must move, if anything must."""
        for taker in lanes:
            if not taker.serves_pool or self.staged(taker) or not self.can_send(taker, now_t):
                continue
            donors = []
            for donor in lanes:
                stuck = [
                    job
                    for job in self.staged(donor)
                    if job.pinned is None
                    and (not self.can_send(donor, now_t) or job.request.voice_name in self.names(donor))
                    and job.request.voice_name not in self.names(taker)
                ]
                donors.append(stuck)
            most = max(donors, key=len)
            if most:
                return Stage(max(most, key=urgency), taker.account, moved=True)
        return None


ACCOUNTS = ("A", "B", "C")


class Histories(RuleBasedStateMachine):
    """All that can happen to a schedule, in any order."""

    pins: ClassVar[tuple[str | None, ...]] = (None, None, "A", "B", "D")
    served: ClassVar[tuple[str, ...]] = ACCOUNTS

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness((), uploads=True)
        self.twin = Twin(self.harness.schedule)
        self.jobs: list[Job] = []

    @property
    def schedule(self) -> Schedule:
        """The schedule that is tried."""
        return self.harness.schedule

    @initialize(cap=st.sampled_from([1, 2]), waits=st.booleans(), count=st.integers(0, 3))
    def start(self, cap: int, waits: bool, count: int) -> None:
        """Begin with some accounts, perhaps with none that is known yet."""
        self.harness = Harness(self.served[:count], cap=cap, waits=waits, uploads=True)
        self.twin = Twin(self.schedule)

    def of(self, *states: JobState) -> list[Job]:
        """Return the jobs in these states."""
        return [job for job in self.jobs if job.state in states]

    def in_places(self) -> list[tuple[str, Job]]:
        """Return what occupies places."""
        return [(lane.account, job) for lane in self.schedule.lanes.values() for job in lane.places.values()]

    def turn(self) -> None:
        """Start what can be started, and compare each step with the twin's."""
        for action in self.schedule.assign(self.harness.now_t):
            assert action == self.twin.expect(self.harness.now_t)
            job = action.job
            if isinstance(action, Send):
                lane = self.schedule.lanes[action.account]
                assert self.twin.occupied(lane) < lane.limit <= lane.cap
                self.twin.where[job] = ("place", action.account)
                advance(job, Step.SEND)
                continue
            assert job.account == action.account
            if action.moved:
                advance(job, Step.UNSTAGE)
            advance(job, Step.STAGE)
            del self.twin.where[job]
            self.twin.where[job] = ("uploading", action.account)
            if job.seq % 3 == 0:  # its samples are up already
                self.mark_uploaded(job)
        if not self.schedule.is_paused:
            assert self.twin.expect(self.harness.now_t) is None

    def mark_uploaded(self, job: Job) -> None:
        """Let its samples be up."""
        self.harness.uploaded(job)
        account = job.account
        del self.twin.where[job]
        self.twin.where[job] = ("ready", account)

    def wait_again(self, job: Job) -> None:
        """Note that a job waits again."""
        self.twin.where[job] = ("waiting", None)

    @rule(
        pin=st.integers(0, 4),
        names=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
    )
    def add(self, pin: int, names: list[str], priority: int) -> None:
        """A batch arrives."""
        for name in names:
            job = self.harness.add(name=name, priority=priority, pinned=self.pins[pin])
            self.jobs.append(job)
            self.wait_again(job)
        self.settle_orphans()
        self.turn()

    @rule(index=st.integers(0, 2))
    def admit(self, index: int) -> None:
        """An account is found."""
        if index < len(self.served):
            self.schedule.admit(self.served[index])
            self.turn()

    def settle_orphans(self) -> None:
        """End what no account can serve, each with a reason, and leave nothing that none can serve."""
        for job in self.harness.settle_orphans():
            lanes = [lane for lane in self.schedule.lanes.values() if lane.serves_pool or lane.account == job.pinned]
            able = [lane for lane in lanes if job.pinned in {None, lane.account} and lane.closed_by is None]
            assert not able
            del self.twin.where[job]
        assert self.schedule.orphans() == []

    @precondition(lambda self: self.of(JobState.UPLOADING))
    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        """Samples are up."""
        self.mark_uploaded(data.draw(st.sampled_from(self.of(JobState.UPLOADING))))
        self.turn()

    @precondition(lambda self: self.of(JobState.UPLOADING))
    @rule(data=st.data(), is_pace=st.booleans())
    def fail_upload(self, data: st.DataObject, is_pace: bool) -> None:
        """An upload fails: the job waits again, behind a gate."""
        job = data.draw(st.sampled_from(self.of(JobState.UPLOADING)))
        account = job.account or ANY_ACCOUNT
        advance(job, Step.UNSTAGE)
        self.schedule.unstage(job)
        assert job.account == job.pinned
        self.wait_again(job)
        if is_pace:
            self.schedule.slow_down(account, 3.0, self.harness.now_t)
        else:
            self.schedule.back_off(account, self.harness.now_t)
        self.turn()

    @precondition(lambda self: self.in_places())
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        """A clone is done; its job may have ended before."""
        account, job = data.draw(st.sampled_from(self.in_places()))
        if not job.is_settled:
            advance(job, Step.CLONE)
        self.schedule.succeeded(account)
        self.schedule.free_place(job, account)
        del self.twin.where[job]
        self.turn()

    @precondition(lambda self: self.of(JobState.SENT, JobState.IN_DOUBT))
    @rule(
        data=st.data(), wait_s=st.sampled_from([None, 0.0, 0.5, 30.0]), reason=st.sampled_from(["pace", "lost", "out"])
    )
    def come_back(self, data: st.DataObject, wait_s: float | None, reason: str) -> None:
        """A clone made nothing, and its job waits again: 429, out of reach, or proven absent."""
        job = data.draw(st.sampled_from(self.of(JobState.SENT, JobState.IN_DOUBT)))
        account = job.account or ANY_ACCOUNT
        if reason == "pace":
            told_t = self.schedule.slow_down(account, wait_s, self.harness.now_t)
            assert told_t == self.schedule.lanes[account].gate_t >= self.harness.now_t + (wait_s or 0.0)
        elif reason == "out":
            assert self.schedule.back_off(account, self.harness.now_t) > self.harness.now_t
        self.harness.requeue(job, account)
        self.wait_again(job)
        self.turn()

    @precondition(lambda self: self.of(JobState.SENT))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """An answer is lost: the place stays occupied."""
        advance(data.draw(st.sampled_from(self.of(JobState.SENT))), Step.LOSE)
        self.turn()

    @precondition(lambda self: self.of(JobState.SENT, JobState.IN_DOUBT))
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """A deadline passes with a clone in progress: the job ends, the place stays occupied."""
        advance(data.draw(st.sampled_from(self.of(JobState.SENT, JobState.IN_DOUBT))), Step.EXPIRE)
        self.turn()

    @precondition(lambda self: self.of(JobState.QUEUED, JobState.UPLOADING, JobState.READY))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A job is cancelled that was not sent."""
        job = data.draw(st.sampled_from(self.of(JobState.QUEUED, JobState.UPLOADING, JobState.READY)))
        self.harness.end(job, Step.CANCEL)
        del self.twin.where[job]
        self.turn()

    @rule(account=st.sampled_from(ACCOUNTS), is_full=st.booleans())
    def close(self, account: str, is_full: bool) -> None:
        """An account is taken out: nothing stays staged there."""
        if account not in self.schedule.lanes:
            return
        for job in self.schedule.close_lane(account, FULL if is_full else OUT, self.harness.now_t + 50):
            advance(job, Step.UNSTAGE)
            self.schedule.unstage(job)
            self.wait_again(job)
        assert self.schedule.lanes[account].staged == 0
        self.settle_orphans()
        self.turn()

    @rule(account=st.sampled_from(ACCOUNTS))
    def open(self, account: str) -> None:
        """An account is in order again."""
        if account in self.schedule.lanes:
            was_closed = self.schedule.lanes[account].closed_by is not None
            assert self.schedule.open_lane(account) is was_closed
            self.turn()

    @rule(is_paused=st.booleans())
    def drain(self, is_paused: bool) -> None:
        """While draining, nothing is started."""
        self.schedule.is_paused = is_paused
        self.turn()

    @rule(seconds=st.sampled_from([0.1, 1.0, 30.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes, at most to the moment that the schedule says is the next to matter."""
        wake_t = self.schedule.wake_at(self.harness.now_t)
        for lane in self.schedule.lanes_to_look_at(self.harness.now_t):
            assert lane.closed_by is not None
            lane.look_again_t = FOREVER
        self.turn()
        if wake_t > self.harness.now_t + seconds:
            # Nothing happens by itself before the time that was told.
            self.harness.now_t += seconds
            assert self.twin.expect(self.harness.now_t) is None or self.schedule.is_paused
        else:
            self.harness.now_t = max(wake_t, self.harness.now_t)
        self.turn()

    @invariant()
    def places_are_kept(self) -> None:
        """Never more than the cap in progress at an account, and never two of one voice name."""
        for lane in self.schedule.lanes.values():
            assert self.twin.occupied(lane) <= lane.cap
            names = [job.request.voice_name for job in lane.places.values()]
            assert len(names) == len(set(names)) == len(lane.names)
            assert 1 <= lane.limit <= lane.cap

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """Each job is in exactly one place, and that is the twin's; the counts are right."""
        found: Counter[Job] = Counter()
        for lane in self.schedule.lanes.values():
            assert set(lane.uploading.values()) == set(self.twin.at("uploading", lane))
            assert set(lane.ready.values()) == set(self.twin.at("ready", lane))
            assert set(lane.places.values()) == set(self.twin.at("place", lane))
            found.update(lane.waiting)
            found.update([*lane.uploading.values(), *lane.ready.values(), *lane.places.values()])
            assert (
                len(lane.waiting)
                == len(list(lane.waiting))
                == len([j for j in lane.waiting if j.pinned == lane.account])
            )
            assert lane.load == len(lane.places) + lane.staged
        found.update(self.schedule.pool)
        assert len(self.schedule.pool) == len(list(self.schedule.pool))
        assert set(found) == set(self.twin.where)
        assert set(found.values()) <= {1}
        assert all(job.is_settled for job in self.jobs if job not in found)

    @invariant()
    def nothing_idles(self) -> None:
        """No free place at an open account stays empty while a job is ready for it, or waits with nothing staged."""
        if self.schedule.is_paused:
            return
        for lane in self.schedule.lanes.values():
            if self.twin.can_send(lane, self.harness.now_t):
                assert not self.twin.sendable(lane)
                assert lane.staged or not self.twin.work(lane)


class NamelessHistories(Histories):
    """The same where some jobs' account cannot be told: their lane counts against all others."""

    pins = (None, "", "", "A", "B")
    served = ("A", "B", ANY_ACCOUNT)


class OneAccount(Histories):
    """The same with nothing but one account, so that its order is looked at closely."""

    pins = (None, "A", None, "A", None)
    served = ("A",)


STEPS = settings(derandomize=True, deadline=None, max_examples=150, stateful_step_count=40)
TestHistories = pytest.mark.slow(Histories.TestCase)  # many histories
TestHistories.settings = STEPS
TestNamelessHistories = pytest.mark.slow(NamelessHistories.TestCase)
TestNamelessHistories.settings = STEPS
TestOneAccount = pytest.mark.slow(OneAccount.TestCase)
TestOneAccount.settings = STEPS


# --- order and places -------------------------------------------------------------------------------------------------


def test_first_in_first_out_within_an_account() -> None:
    """Jobs of one priority leave an account in the order in which they came."""
    harness = Harness(cap=1)
    jobs = [harness.add() for _ in range(20)]
    order = []
    while sent := harness.sent():
        order += sent
        for job in sent:
            harness.finish(job)
    assert order == jobs


def test_the_more_urgent_of_those_ready_goes_first() -> None:
    """A job that came later with a higher priority overtakes all but what goes next at once."""
    harness = Harness(cap=1)
    jobs = [harness.add() for _ in range(4)]
    order = harness.sent()
    urgent = harness.add(priority=1)
    for _ in range(4):
        harness.finish(order[-1])
        order += harness.sent()
    # Two were staged ahead; once the first of them was sent, the urgent one was staged beside the second.
    assert order == [jobs[0], jobs[1], urgent, jobs[2], jobs[3]]


def test_a_job_still_uploading_does_not_keep_a_place_empty() -> None:
    """Rule 1's exception: what is ready goes, although something more urgent is still uploading."""
    harness = Harness(cap=1, uploads=True)
    first, second = harness.add(), harness.add()
    harness.turn()
    harness.uploaded(second)
    assert harness.sent() == [second]
    harness.uploaded(first)
    assert harness.sent() == []


@pytest.mark.parametrize("other_spelling", ["Zoë x", " Zoë x ", "Zoë  x", "Zoe\u0308 x", "Zoë\u00a0x"])
def test_two_of_one_name_are_never_in_progress_at_one_account(other_spelling: str) -> None:
    """Rule 2: the second waits, and another may go before it; names are one that a list may spell alike."""
    harness = Harness()
    first, second, other = harness.add(name="Zoë x"), harness.add(name=other_spelling), harness.add(name="y")
    assert harness.sent() == [first, other]
    harness.finish(other)
    assert harness.sent() == []
    harness.finish(first)
    assert harness.sent() == [second]


def test_a_name_is_free_only_when_no_place_has_it() -> None:
    """Requests of an earlier life may share a name; the name is taken until the last of them is done."""
    harness = Harness()
    old = [make_job(100, name="x"), make_job(101, name="x")]
    for job in old:
        harness.schedule.occupy(job, "A")
    harness.schedule.free_place(old[0], "A")
    harness.schedule.free_place(old[0], "A")
    harness.add(name="x")
    assert harness.sent() == []
    harness.schedule.free_place(old[1], "A")
    assert len(harness.sent()) == 1


def test_an_earlier_life_occupies_places() -> None:
    """A request that may still be under way at the remote takes a place of an account that nobody asked for yet."""
    harness = Harness(())
    harness.schedule.occupy(make_job(100), "B")
    harness.schedule.admit("B")
    harness.add()
    harness.add()
    assert len(harness.sent()) == 1


def test_pool_jobs_are_spread_over_the_lanes() -> None:
    """Jobs for any account go to the least loaded one, as late as can be."""
    harness = Harness("ABC")
    for _ in range(30):
        harness.add()
    harness.turn()
    loads = {lane.account: (len(lane.places), lane.staged) for lane in harness.schedule.lanes.values()}
    assert loads == dict.fromkeys("ABC", (2, LOOKAHEAD))
    assert len(harness.schedule.pool) == 30 - 12


def test_pinned_jobs_and_the_pool_share_a_lane_by_urgency() -> None:
    """A lane takes the more urgent of its own and of the pool; a lane made for a pin leaves the pool alone."""
    harness = Harness("A", cap=1)
    pooled, pinned, elsewhere = harness.add(), harness.add(pinned="A"), harness.add(pinned="B")
    assert harness.sent() == [pooled, elsewhere]
    harness.finish(pooled)
    harness.finish(elsewhere)
    assert harness.sent() == [pinned]
    harness.add()
    harness.turn()
    assert harness.schedule.lanes["B"].load == 0


def test_a_nameless_lane_counts_against_all() -> None:
    """Where an account cannot be told, its clones may be on any account, and any account's clones on its own."""
    harness = Harness("AB")
    for pin in ("", "A", "B"):
        for _ in range(3):
            harness.add(pinned=pin)
    assert [job.pinned for job in harness.sent()] == ["A", "B", ""]
    assert harness.sent() == []
    nameless, in_a = (next(iter(harness.schedule.lanes[account].places.values())) for account in ("", "A"))
    harness.finish(in_a)
    assert [job.pinned for job in harness.sent()] == ["A"]
    harness.finish(nameless)
    assert [job.pinned for job in harness.sent()] == ["A", "B"]
    assert harness.sent() == []


# --- rule 3 -----------------------------------------------------------------------------------------------------------


def test_an_idle_lane_takes_a_staged_job_from_a_full_one() -> None:
    """The least urgent staged job moves, and only as long as it has a reason."""
    harness = Harness("A")
    jobs = [harness.add() for _ in range(4)]
    harness.turn()
    harness.schedule.admit("B")
    moves = harness.turn()
    assert moves == [
        Stage(jobs[3], "B", moved=True),
        Send(jobs[3], "B"),
        Stage(jobs[2], "B", moved=True),
        Send(jobs[2], "B"),
    ]
    assert harness.turn() == []


def test_pinned_jobs_never_move() -> None:
    """A pinned job stays, however idle the others are."""
    harness = Harness("AB")
    for _ in range(4):
        harness.add(pinned="A")
    harness.turn()
    assert harness.turn() == []
    assert harness.schedule.lanes["B"].load == 0


def test_a_job_moves_away_from_its_name() -> None:
    """A job whose name is in progress at one account moves to an idle one that does not have that name."""
    harness = Harness("A")
    for _ in range(3):
        harness.add(name="x")
    assert len(harness.sent()) == 1
    harness.schedule.admit("B")
    assert [type(action) for action in harness.turn()] == [Stage, Send]
    assert harness.turn() == []
    assert {lane.account: (len(lane.places), lane.staged) for lane in harness.schedule.lanes.values()} == {
        "A": (1, 1),
        "B": (1, 0),
    }
    harness.schedule.admit("C")
    assert [type(action) for action in harness.turn()] == [Stage, Send]


def test_moves_do_not_ping_pong() -> None:
    """Two accounts whose gates shut in turn pass a job on once for each shutting, and never for nothing."""
    harness = Harness("AB", uploads=True)
    job = harness.add()
    harness.turn()
    moves = 0
    for round_number in range(10):
        account = job.account or ""
        harness.schedule.slow_down(account, 5.0, harness.now_t)
        for _ in range(5):
            moves += len(harness.turn())
        assert moves == round_number + 1
        harness.now_t += 10
    assert harness.turn() == []


def test_all_gates_shut_moves_nothing() -> None:
    """With nowhere to go, a staged job stays where its samples are."""
    harness = Harness("AB", uploads=True)
    job = harness.add()
    harness.turn()
    for account in "AB":
        harness.schedule.slow_down(account, 5.0, 0.0)
    assert harness.turn() == []
    assert job.account == "A"


# --- pace -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told_s", [0.001, 1.0, 7.5, 3600.0])
def test_the_gate_is_shut_exactly_as_long_as_told(told_s: float) -> None:
    """Not a moment earlier, nor later, and for all the account's jobs."""
    harness = Harness()
    harness.add()
    harness.now_t = 100.0
    assert harness.schedule.slow_down("A", told_s, 100.0) == 100.0 + told_s
    assert harness.schedule.wake_at(100.0) == 100.0 + told_s
    harness.now_t = 100.0 + told_s * 0.999
    assert harness.turn() == []
    harness.now_t = 100.0 + told_s
    assert len(harness.sent()) == 1


def test_without_advice_the_wait_is_20_s_and_grows() -> None:
    """20 s [D JS-S], doubled each time up to five minutes, and 20 s again after a success."""
    schedule = Harness().schedule
    now_t = 0.0
    waits = []
    for _ in range(6):
        gate_t = schedule.slow_down("A", None, now_t)
        waits.append(gate_t - now_t)
        now_t = gate_t
    assert waits == [20, 40, 80, 160, 300, LONGEST_PACE_WAIT_S]
    schedule.succeeded("A")
    assert schedule.slow_down("A", None, now_t) == now_t + 20


def test_told_to_go_on_at_once_is_no_storm() -> None:
    """`Retry-After: 0`, or a date that has passed, is taken at its word only so often."""
    schedule = Harness().schedule
    now_t = 0.0
    waits = []
    for _ in range(7):
        gate_t = schedule.slow_down("A", 0.0, now_t)
        waits.append(gate_t - now_t)
        now_t = gate_t
    assert waits == [0.5, 1, 2, 4, 8, 15, LONGEST_UNREACHABLE_WAIT_S]
    assert schedule.lanes["A"].limit == 1


def test_two_refusals_at_once_are_one() -> None:
    """The other place meets the same wall: the longest wait counts, and nothing grows twice."""
    schedule = Harness().schedule
    assert schedule.slow_down("A", None, 0.0) == 20
    assert schedule.slow_down("A", None, 1.0) == 20
    assert schedule.slow_down("A", 5.0, 2.0) == 20
    assert schedule.slow_down("A", 30.0, 3.0) == 33
    assert schedule.slow_down("A", 0.0, 4.0) == 33
    assert schedule.lanes["A"].successes_to_raise == SUCCESSES_TO_RAISE
    assert schedule.slow_down("A", None, 33.0) == 73


def test_backing_off_grows_and_ends_with_a_success() -> None:
    """Out of reach: half a second, doubled up to 15 s; a gate that is shut already stays."""
    schedule = Harness().schedule
    now_t = 0.0
    waits = []
    for _ in range(7):
        gate_t = schedule.back_off("A", now_t)
        assert schedule.back_off("A", now_t) == gate_t
        waits.append(gate_t - now_t)
        now_t = gate_t
    assert waits == [0.5, 1, 2, 4, 8, 15, LONGEST_UNREACHABLE_WAIT_S]
    schedule.succeeded("A")
    assert schedule.back_off("A", now_t) == now_t + 0.5


def test_the_limit_drops_to_one_and_creeps_back() -> None:
    """After a 429 one at a time, until three in a row have succeeded; refused again, twice as many are needed."""
    harness = Harness()
    for _ in range(3):
        harness.add()
    first, second = harness.sent()
    harness.schedule.slow_down("A", 5.0, 0.0)
    harness.requeue(second, "A")
    harness.now_t = 5.0
    assert harness.sent() == []
    harness.finish(first)
    assert harness.sent() == [second]
    assert [harness.schedule.succeeded("A") for _ in range(3)] == [False, True, False]
    assert harness.schedule.lanes["A"].limit == 2
    assert len(harness.sent()) == 1


def test_a_lane_that_is_refused_again_is_slower_to_raise() -> None:
    """Each refusal at the lower limit doubles the successes needed, to a maximum; many successes forget it."""
    schedule = Harness().schedule
    lane = schedule.lanes["A"]
    now_t = 0.0
    needed = []
    for _ in range(7):
        now_t = schedule.slow_down("A", 1.0, now_t)
        needed.append(lane.successes_to_raise)
    assert needed == [3, 6, 12, 24, 48, 48, MOST_SUCCESSES_TO_RAISE]
    for _ in range(MOST_SUCCESSES_TO_RAISE - 1):
        assert not schedule.succeeded("A")
    assert schedule.succeeded("A")
    for _ in range(SUCCESSES_TO_FORGET):
        assert lane.successes_to_raise == MOST_SUCCESSES_TO_RAISE
        assert not schedule.succeeded("A")
    assert lane.successes_to_raise == SUCCESSES_TO_RAISE


def test_a_lane_of_one_place_has_no_lower_limit() -> None:
    """With `max_parallel=1` a refusal shuts the gate, and there is nothing to raise."""
    schedule = Harness(cap=1).schedule
    schedule.slow_down("A", 1.0, 0.0)
    schedule.slow_down("A", 1.0, 2.0)
    assert (schedule.lanes["A"].limit, schedule.lanes["A"].successes_to_raise) == (1, SUCCESSES_TO_RAISE)
    assert not schedule.succeeded("A")


def test_one_accounts_gate_holds_up_no_other() -> None:
    """The jobs of other accounts, and those for any account, go on."""
    harness = Harness("AB", cap=1)
    harness.schedule.slow_down("A", 1000.0, 0.0)
    jobs = [harness.add(pinned="A"), harness.add(pinned="B"), harness.add()]
    assert harness.sent() == [jobs[1]]
    harness.finish(jobs[1])
    assert harness.sent() == [jobs[2]]


# --- accounts that are out --------------------------------------------------------------------------------------------


def test_a_closed_account_hands_its_jobs_on() -> None:
    """Jobs for any account move to others; pinned ones are handed back with the reason."""
    harness = Harness("AB")
    pinned, pooled = harness.add(pinned="A"), harness.add()
    harness.uploads = True
    harness.schedule.slow_down("B", 5.0, 0.0)
    harness.turn()
    assert harness.close("A", OUT) == [pinned]
    harness.now_t = 5.0
    assert [action.account for action in harness.turn()] == ["B"]
    assert pooled.account == "B"


def test_when_every_account_is_out_the_pool_is_handed_back() -> None:
    """The reason that mends itself with one delete is told, where both are true of some."""
    harness = Harness("AB")
    harness.schedule.close_lane("A", OUT, 300)
    job = harness.add()
    assert harness.schedule.orphans() == []
    harness.schedule.close_lane("B", FULL, 200)
    assert harness.schedule.orphans() == [(job, FULL)]
    assert harness.schedule.wake_at(0) == 200
    assert [lane.account for lane in harness.schedule.lanes_to_look_at(250)] == ["B"]
    assert harness.schedule.open_lane("B")
    assert not harness.schedule.open_lane("B")
    assert harness.schedule.orphans() == []
    assert harness.sent() == [job]


def test_orphans_come_in_order() -> None:
    """Jobs that are handed back come by urgency."""
    harness = Harness("A")
    harness.schedule.close_lane("A", OUT, 300)
    jobs = [harness.add(priority=priority, pinned="A") for priority in (0, 2, 1)]
    assert [job for job, _ in harness.schedule.orphans()] == [jobs[1], jobs[2], jobs[0]]


def test_jobs_may_wait_for_a_closed_account() -> None:
    """With `wait_when_blocked` nothing is handed back, and all go on when the account is in order."""
    harness = Harness("A", waits=True)
    jobs = [harness.add(), harness.add(pinned="A")]
    assert harness.close("A", OUT) == []
    assert harness.turn() == []
    harness.schedule.open_lane("A")
    assert harness.sent() == jobs


def test_without_an_account_the_pool_waits() -> None:
    """As long as nobody knows the accounts, jobs for any account wait, and nothing wakes anybody."""
    harness = Harness(())
    harness.add()
    assert harness.turn() == []
    assert harness.schedule.orphans() == []
    assert harness.schedule.wake_at(0) == FOREVER


def test_while_draining_nothing_starts() -> None:
    """A paused schedule assigns nothing, and goes on where it was."""
    harness = Harness()
    harness.add()
    harness.schedule.is_paused = True
    assert harness.turn() == []
    harness.schedule.is_paused = False
    assert len(harness.sent()) == 1


# --- what a decision costs --------------------------------------------------------------------------------------------


class CountedJob(Job):
    """A job that counts how often jobs are compared."""

    __slots__ = ()
    compared: ClassVar[int] = 0

    def __lt__(self, other: Job) -> bool:
        CountedJob.compared += 1
        return super().__lt__(other)


def cost_of_ten_turns(backlog: int, *, pinned: str | None, rising: bool = False) -> tuple[int, int]:
    """Count the calls and the comparisons of ten clones that end and are followed by the next."""
    harness = Harness("ABC")
    requests = [request_named(name) for name in "abcdefgh"]
    for seq in range(backlog):
        priority = seq if rising else 0
        harness.schedule.add(CountedJob(f"j{seq}", None, requests[seq % 8], priority, seq, pinned, account=pinned))
    harness.turn()
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    CountedJob.compared = 0
    before = sys.getprofile()
    for _ in range(10):
        harness.finish(next(iter(harness.schedule.lanes["A"].places.values())))
        sys.setprofile(count)
        try:
            list(harness.turn())
        finally:
            sys.setprofile(before)
    return calls, CountedJob.compared


@pytest.mark.slow  # makes 100,000 jobs
@pytest.mark.parametrize("pinned", [None, "A"])
def test_a_decision_costs_the_same_for_any_backlog(pinned: str | None) -> None:
    """From 1,000 to 100,000 waiting jobs, neither calls nor comparisons grow."""
    small, large = (cost_of_ten_turns(backlog, pinned=pinned) for backlog in (1_000, 100_000))
    assert small[0] > 50
    assert large == small


def cost_of_endings(backlog: int) -> float:
    """Count the calls for each of the waiting jobs that half of a backlog cancels."""
    harness = Harness("A")
    jobs = [harness.add(name="a") for _ in range(backlog)]
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for job in jobs[::2]:
            advance(job, Step.CANCEL)
            harness.schedule.remove(job, JobState.QUEUED)
    finally:
        sys.setprofile(before)
    return calls / len(jobs[::2])


@pytest.mark.slow  # makes thousands of jobs
def test_an_ending_among_the_waiting_costs_the_same_for_any_backlog() -> None:
    """Whoever cancels one of very many jobs looks at none of the others, or at each but now and then."""
    small, large = cost_of_endings(400), cost_of_endings(4_000)
    assert small > 3
    assert large < 1.5 * small


@pytest.mark.slow  # makes 100,000 jobs
def test_where_each_job_is_more_urgent_than_all_before_it_the_cost_grows_like_a_heaps_depth() -> None:
    """The worst that can be asked of the order: still no more than some levels of a heap."""
    small, large = (cost_of_ten_turns(backlog, pinned=None, rising=True) for backlog in (1_000, 100_000))
    assert small[1] > 50
    assert large[0] < 2 * small[0]
    assert large[1] < 2.5 * small[1]


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "push", "pop", "end", "discard"]), st.integers(-2, 2), st.integers(0, 50))
    )
)
def test_waiting_jobs_leave_in_the_order_of_their_urgency(steps: list[tuple[str, int, int]]) -> None:
    """In whatever order they come, also in one that was given back; and it knows how many there are."""
    heap, waiting = JobHeap(), list[Job]()
    for number, (step, priority, which) in enumerate(steps):
        if step == "push" or not waiting:
            waiting.append(make_job(1000 - which if which % 5 == 0 else number, name="x", priority=priority))
            heap.push(waiting[-1])
        elif step == "pop":
            first = min(waiting, key=urgency)
            assert heap.peek() in {job for job in waiting if urgency(job) == urgency(first)}
            waiting.remove(heap.pop())
        elif step == "end":
            advance(waiting.pop(which % len(waiting)), Step.CANCEL)
            heap.forget()
        else:
            heap.discard(waiting.pop(which % len(waiting)))
        assert len(heap) == len(waiting)
        assert set(heap) == set(waiting)
    while (job := heap.peek()) is not None:
        assert urgency(job) == min(map(urgency, waiting))
        waiting.remove(heap.pop())
    assert not waiting


def test_a_cancelled_job_is_passed_over() -> None:
    """A job that no longer waits is not returned, although it is still in the heap."""
    harness = Harness()
    first, second = harness.add(), harness.add()
    harness.end(first, Step.CANCEL)
    assert harness.schedule.pool.peek() is second
    assert list(harness.schedule.pool) == [second]
    assert harness.sent() == [second]


def test_an_unstaged_job_forgets_its_account() -> None:
    """A job that was staged somewhere and waits again may go anywhere; a pinned one keeps its account."""
    harness = Harness("A", uploads=True)
    jobs = [harness.add(), harness.add(pinned="A")]
    harness.turn()
    assert [job.account for job in jobs] == ["A", "A"]
    for job in jobs:
        advance(job, Step.UNSTAGE)
        harness.schedule.unstage(job)
    assert [job.account for job in jobs] == [None, "A"]
    assert harness.schedule.lanes["A"].staged == 0


def test_cancelled_jobs_are_swept_out() -> None:
    """The heap's memory follows the number of living jobs, and the dead are never returned."""
    heap = JobHeap()
    jobs = [make_job(seq, name="x") for seq in range(1000)]
    for job in jobs[::2] + jobs[1::2]:  # half of them in their order, half of them later than they are due
        heap.push(job)
    assert len(heap._row) == len(heap._heap) + 2
    for job in jobs[:-1]:
        advance(job, Step.CANCEL)
        heap.forget()
    assert len(heap) == 1
    assert len(heap._row) + len(heap._heap) <= 66
    assert heap.peek() is jobs[-1]
    assert list(heap) == [jobs[-1]]
    assert heap.pop() is jobs[-1]
    assert (len(heap), heap.peek()) == (0, None)
