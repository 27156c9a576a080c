"""
The whole client against random lives: submits, faults, cancels, deadlines, drains and closes, judged by the server's
record.

A program is a short list of steps. Hypothesis draws small ones and shrinks what breaks; dice draw the many. Each runs
in one trio run in virtual time, so that days pass in seconds. What must hold is written as a slow, obvious twin: the
overlap of clones is counted again from their times, voices are counted by name, and where nothing disturbs, the second
at which each job ends is worked out on paper.

`USEAPI_VOICE_CLONES` sets how many clones are made in all; the default is what fits into about a minute of one core,
and `nox -s million` makes a million.
"""

from __future__ import annotations

import heapq
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import World, a_world, virtually

from useapi_voice import CloneError, CloneJob, JobState, QueueClosed, UseapiVoiceError, VoiceInfo
from useapi_voice.sandbox import Fault, Sandbox

# httpx leaves its own generators to the collector where a body is given up half way; trio says so, asyncio does not.
pytestmark = [pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"), pytest.mark.slow]

CLONES = int(os.environ.get("USEAPI_VOICE_CLONES", "100_000"))
CHUNKS = 20
JOBS_IN_A_PROGRAM = 250
SETTLE_AFTER_S = 75.0

# Faults that prove nothing come made or not made, as the sandbox's dice fall; refusals are true ones.
CLONE_FAULTS = {
    "500": lambda: Fault.status(500, made=None),
    "502 late": lambda: Fault.status(502, made=None, at="end"),
    "503": lambda: Fault.status(503, headers={"retry-after": "9"}, made=None),
    "520 page": lambda: Fault.html(520, made=None),
    "drop": lambda: Fault.drop(made=None),
    "drop late": lambda: Fault.drop(made=None, at="end"),
    "reset": lambda: Fault.drop(made=None, reset=True),
    "hang": lambda: Fault.hang(made=None),
    "truncate": lambda: Fault.truncate(made=None),
    "drip": lambda: Fault.drip(1.0, made=None, piece_bytes=64),
    "bad JSON": lambda: Fault.bad_json(made=None),
    "no voice_id": lambda: Fault.status(200, {"ok": True}, made=None, at="end"),
    "1000": lambda: Fault.base_resp(1000, made=None),
    "1013": lambda: Fault.base_resp(1013, made=None),
    "408": lambda: Fault.status(408, made=None),
    "1002": lambda: Fault.base_resp(1002),
    "1026": lambda: Fault.base_resp(1026),
    "2013": lambda: Fault.base_resp(2013),
    "429": lambda: Fault.rate_limited(),
    "429 for 3 s": lambda: Fault.rate_limited(3),
    "429 by date": lambda: Fault.rate_limited(3, "date"),
    "422": lambda: Fault.moderated(),
    "400": lambda: Fault.status(400),
    "delay": lambda: Fault.delay(30.0),
}
LIST_FAULTS = {
    "500": lambda: Fault.status(500),
    "drop": lambda: Fault.drop(made=False),
    "truncate": lambda: Fault.truncate(),
    "404": lambda: Fault.status(404),
    "429": lambda: Fault.rate_limited(4),
}
UPLOAD_FAULTS = {
    "500": lambda: Fault.status(500),
    "429": lambda: Fault.rate_limited(4),
    "drop": lambda: Fault.drop(made=None),
}
DELETE_FAULTS = {
    "500": lambda: Fault.status(500),
    "400": lambda: Fault.status(400),
    "drop": lambda: Fault.drop(made=None),
}
FAULTS = {
    "clone-voice": CLONE_FAULTS,
    "voices": LIST_FAULTS,
    "upload-sample": UPLOAD_FAULTS,
    "delete-voice": DELETE_FAULTS,
}


@dataclass(frozen=True)
class Submit:
    """Submit `count` jobs, one by one or as a batch; `pick` chooses among what the fields allow."""

    count: int
    pick: int = 0
    batch: bool = True
    shape: Literal["files", "samples", "same name", "mixed"] = "files"
    priority: int = 0
    deadline_s: float | None = None
    queue_timeout_s: float | None = None
    keyed: bool = False


@dataclass(frozen=True)
class Cancel:
    """Cancel about one in `one_in` of the jobs there are."""

    one_in: int
    pick: int
    voice: Literal["keep", "delete"]


@dataclass(frozen=True)
class Wait:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True)
class Watch:
    """Start tasks that wait for jobs, and cancel half of them later."""

    one_in: int
    pick: int


@dataclass(frozen=True)
class Break:
    """Break an account (596) for some seconds; nobody waits for it."""

    account: int
    seconds: float


@dataclass(frozen=True)
class Leave:
    """Leave the client, drained or not or cancelled; the next step finds a new one, once the server is done."""

    how: Literal["close", "drain", "cancel"]
    grace_s: float = 5.0


Step = Submit | Cancel | Wait | Watch | Break | Leave


@dataclass(frozen=True)
class Program:
    """A life of a client, or of several one after the other, on one sandbox."""

    steps: tuple[Step, ...]
    faults: tuple[tuple[str, str, float], ...] = ()
    """Endpoint, name of the fault, probability."""
    seed: int = 0
    accounts: int = 1
    api: Literal["audio", "speech"] = "audio"
    clone_s: tuple[float, float] = (5.0, 50.0)
    list_lag_s: float = 0.0
    clock_skew_s: float = 0.0
    slots: int | None = None
    max_parallel: int = 2
    clone_timeout_s: float = 120.0

    @property
    def is_calm(self) -> bool:
        """Whether nothing disturbs, so that every ending can be worked out on paper."""
        undisturbed = not self.faults and self.slots is None and self.clone_timeout_s > self.clone_s[1]
        return undisturbed and all(
            isinstance(step, Wait | Watch)
            or (
                isinstance(step, Submit)
                and step.shape == "files"
                and not (step.deadline_s or step.queue_timeout_s or step.priority)
            )
            for step in self.steps
        )


@dataclass
class Known:
    """What the twin knows of a job."""

    job: CloneJob
    name: str
    account: str | None
    submitted_t: float
    seq: int
    cancelled: str | None = None


@dataclass
class Life:
    """One program under way."""

    program: Program
    sandbox: Sandbox
    known: list[Known] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    ended_t: dict[str, float] = field(default_factory=dict)
    posts: Counter[str] = field(default_factory=Counter)
    refused_submits: int = 0
    waiters: int = 0
    waiters_done: int = 0

    # --- carrying out -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        steps = list(self.program.steps)
        while steps:
            await self._one_client(steps)
            # A place is surely free after this; only then may another client, which knows nothing of it, come.
            await anyio.sleep(SETTLE_AFTER_S + 130)
        self.judge()

    async def _one_client(self, steps: list[Step]) -> None:
        program = self.program
        leave = next((step for step in steps if isinstance(step, Leave)), Leave("close"))
        with anyio.CancelScope() as scope:
            async with (
                anyio.create_task_group() as tasks,
                a_world(
                    self.sandbox,
                    api=program.api,
                    max_parallel=program.max_parallel,
                    clone_timeout_s=program.clone_timeout_s,
                    settle_after_s=SETTLE_AFTER_S,
                    close_grace_s=leave.grace_s,
                ) as world,
            ):
                stream = world.client.events()
                if program.is_calm:
                    # Only the twin wants to know when.
                    tasks.start_soon(self._listen, stream)
                rules = [
                    self.sandbox.fail(on, FAULTS[on][name](), times=None, probability=chance)
                    for on, name, chance in program.faults
                ]
                mine = len(self.known)
                left: Leave | None = None
                while steps and left is None:
                    step = steps.pop(0)
                    if isinstance(step, Leave):
                        left = step
                    else:
                        await self._carry_out(step, world, tasks, mine)
                if left is None:
                    # Nothing starves: all settle, in a time that the number of jobs bounds.
                    with anyio.fail_after(20_000 + 1_000 * len(self.known)):
                        for known in self.known[mine:]:
                            await known.job.wait()
                elif left.how == "drain":
                    await world.client.drain(left.grace_s)
                for rule in rules:
                    rule.remove()
                self.posts += world.wire.posts
                if left is not None and left.how == "cancel":
                    scope.cancel()
                    await anyio.sleep(0)
        # What nobody has listened to yet.
        await self._listen(stream)
        assert all(known.job.done() for known in self.known), "a job was left behind"
        assert self.waiters == self.waiters_done, "a waiter never learned"
        assert world.wire.open_now == 0, "a connection was left open"

    async def _listen(self, stream: Any) -> None:
        async for event in stream:
            assert event.kind != "missed"
            if event.kind in {"cloned", "refused", "unknown", "expired", "cancelled"}:
                self.told[event.job_id] += 1
                self.ended_t[event.job_id] = anyio.current_time()

    async def _carry_out(self, step: Step, world: World, tasks: Any, mine: int) -> None:
        match step:
            case Submit():
                await self._submit(step, world)
            case Cancel():
                dice = random.Random(step.pick)
                for known in self.known[mine:]:
                    if not dice.randrange(step.one_in):
                        if not known.job.done():
                            known.cancelled = step.voice
                        known.job.cancel(voice=step.voice)
            case Wait():
                await anyio.sleep(step.seconds)
            case Watch():
                dice = random.Random(step.pick)
                for known in self.known[mine:]:
                    if not dice.randrange(step.one_in):
                        self.waiters += 1
                        tasks.start_soon(self._watch, known.job, dice.choice([None, dice.uniform(0, 60)]))
            case Break():
                account = self.sandbox.accounts[step.account % len(self.sandbox.accounts)]
                self.sandbox.break_account(account)
                tasks.start_soon(self._repair, account, step.seconds)

    async def _repair(self, account: str, seconds: float) -> None:
        try:
            await anyio.sleep(seconds)
        finally:
            self.sandbox.repair(account)

    async def _watch(self, job: CloneJob, patience_s: float | None) -> None:
        try:
            with anyio.move_on_after(patience_s), suppress(CloneError):
                voice = await job
                assert job.state is JobState.CLONED
                assert isinstance(voice, VoiceInfo)
        finally:
            self.waiters_done += 1

    async def _submit(self, step: Submit, world: World) -> None:
        dice = random.Random(step.pick)
        accounts = self.sandbox.accounts
        requests = []
        for index in range(step.count):
            shape = dice.choice(["files", "samples", "same name"]) if step.shape == "mixed" else step.shape
            name = f"same {dice.randrange(3)}{' ' * dice.randrange(2)}" if shape == "same name" else ""
            name = name or f"v {len(self.known) + index}"
            account = dice.choice(accounts)
            requests.append(
                world.request(name, account) if shape != "samples" else world.sampled(name, tone=dice.randrange(3))
            )
        keys = [f"key {len(self.known) + index}" for index in range(step.count)] if step.keyed else None
        clocks = {"priority": step.priority, "deadline_s": step.deadline_s, "queue_timeout_s": step.queue_timeout_s}
        submitted_t = anyio.current_time()
        jobs: list[CloneJob] = []
        try:
            if step.batch:
                jobs = await world.client.submit_many(requests, keys=keys, **clocks)
            else:
                for index, request in enumerate(requests):
                    key = keys[index] if keys else None
                    # Every other one in no hurry, so that somebody waits for the place of one that has run out of time.
                    own = clocks if index % 2 == 0 else {"priority": step.priority}
                    jobs.append(await world.client.submit(request, key=key, **own))
            if keys:
                again = await world.client.submit_many(requests, keys=keys)
                assert [job.id for job in again] == [job.id for job in jobs]
        except QueueClosed:
            self.refused_submits += 1
        for job, request in zip(jobs, requests, strict=False):
            account = request.pinned_account
            self.known.append(Known(job, request.voice_name, account, submitted_t, len(self.known)))

    # --- judging ------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Hold the client to the server's record."""
        sandbox = self.sandbox
        clones = sandbox.clones
        assert not sandbox.breaches
        for account in sandbox.accounts:
            spans = [(c.begun_at, c.ends_at) for c in clones if c.account == account]
            assert most_at_once(spans) <= self.program.max_parallel
        assert all(count == 1 for count in self.told.values())
        assert len(self.told) == len(self.known)

        ours = defaultdict(list)
        for known in self.known:
            ours[known.name.strip()].append(known)
        made = Counter(clone.voice_id and clone.voice_name.strip() for clone in clones if clone.made)
        there = defaultdict(set)
        for voice in sandbox.voices():
            there[voice.voice_name.strip()].add(voice.voice_id)
        reported: dict[str, Known] = {}
        for name, jobs in ours.items():
            # Never two voices for one job.
            assert made[name] <= len(jobs), (name, [known.job.history for known in jobs])
            may_exist = 0
            for known in jobs:
                outcome = outcome_of(known.job)
                if isinstance(outcome, VoiceInfo):
                    assert outcome.voice_id not in reported, "one voice was given to two jobs"
                    reported[outcome.voice_id] = known
                    assert outcome.voice_id in there[name], "a job reports a voice that is not there"
                    assert outcome.voice_name == known.name
                elif outcome.voice_may_exist:
                    may_exist += 1
                    assert not outcome.safe_to_retry
            unreported = len(there[name]) - sum(known.job.state is JobState.CLONED for known in jobs)
            assert unreported <= may_exist, (name, "a voice that nobody was told of")
        assert all(name in ours for name in there)
        if self.program.is_calm:
            self._judge_by_twin()

    def _judge_by_twin(self) -> None:
        """Where nothing disturbs: every job has its voice, in order, at the second that the twin says."""
        took = {clone.voice_name: clone.ends_at - clone.begun_at for clone in self.sandbox.clones}
        places = {account: [0.0] * self.program.max_parallel for account in self.sandbox.accounts}
        begun = {clone.voice_name: clone.begun_at for clone in self.sandbox.clones}
        for known in self.known:
            assert known.job.state is JobState.CLONED, outcome_of(known.job)
            free = places[known.account or ""]
            start_t = max(known.submitted_t, heapq.heappop(free))
            heapq.heappush(free, start_t + took[known.name])
            assert begun[known.name] == pytest.approx(start_t, abs=1e-3), known
            assert self.ended_t[known.job.id] == pytest.approx(start_t + took[known.name], abs=1e-3)
        assert self.posts == Counter(known.name for known in self.known)


def outcome_of(job: CloneJob) -> VoiceInfo | CloneError:
    """Return how a job that has ended did."""
    outcome = job._job.outcome
    assert outcome is not None
    return outcome


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """Count the most spans that overlap; one that ends when another begins does not."""
    most = now = 0
    for _, change in sorted(moment for begin, end in spans for moment in ((begin, 1), (end, -1)) if end > begin):
        now += change
        most = max(most, now)
    return most


def execute(program: Program) -> Life:
    """Run a program, judge it, and return its life."""

    async def main() -> Life:
        sandbox = Sandbox(
            accounts=program.accounts,
            clone_s=program.clone_s,
            list_lag_s=program.list_lag_s,
            clock_skew_s=program.clock_skew_s,
            slots=program.slots,
            seed=program.seed,
        )
        life = Life(program, sandbox)
        await life.run()
        return life

    return virtually(main, seed=program.seed)


# --- programs drawn by hypothesis: small, and shrunk where they fail
# -----------------------------------------------------

picks = st.integers(0, 2**16)
clocks = st.sampled_from([None, None, None, 10.0, 60.0, 200.0])
submits = st.builds(
    Submit,
    count=st.integers(1, 20),
    pick=picks,
    batch=st.booleans(),
    shape=st.sampled_from(["files", "samples", "same name", "mixed"]),
    priority=st.integers(0, 2),
    deadline_s=clocks,
    queue_timeout_s=clocks,
    keyed=st.booleans(),
)
steps = st.one_of(
    submits,
    submits,
    st.builds(Cancel, one_in=st.integers(1, 4), pick=picks, voice=st.sampled_from(["keep", "delete"])),
    st.builds(Wait, seconds=st.sampled_from([0.0, 1.0, 7.5, 20.0, 75.0, 300.0])),
    st.builds(Watch, one_in=st.integers(1, 3), pick=picks),
    st.builds(Break, account=st.integers(0, 2), seconds=st.sampled_from([5.0, 100.0, 900.0])),
    st.builds(
        Leave, how=st.sampled_from(["close", "drain", "cancel"]), grace_s=st.sampled_from([0.0, 5.0, 60.0, 300.0])
    ),
)
fault_rules = st.sampled_from([(on, name) for on, named in FAULTS.items() for name in named]).flatmap(
    lambda found: st.sampled_from([0.05, 0.3, 0.6]).map(lambda chance: (*found, chance))
)
wild = st.builds(
    Program,
    steps=st.lists(steps, min_size=2, max_size=10).map(tuple),
    faults=st.lists(fault_rules, max_size=6).map(tuple),
    seed=st.integers(0, 2**16),
    accounts=st.integers(1, 3),
    api=st.sampled_from(["audio", "speech"]),
    clone_s=st.sampled_from([(5.0, 50.0), (20.0, 20.0), (0.0, 1.0), (55.0, 60.0)]),
    list_lag_s=st.sampled_from([0.0, 10.0]),
    clock_skew_s=st.sampled_from([0.0, 600.0, -600.0]),
    slots=st.sampled_from([None, None, 4]),
    max_parallel=st.integers(1, 2),
    clone_timeout_s=st.sampled_from([30.0, 120.0]),
)
calm = st.builds(
    Program,
    steps=st.lists(
        st.one_of(
            st.builds(Submit, count=st.integers(1, 20), pick=picks, batch=st.booleans(), keyed=st.booleans()),
            st.builds(Wait, seconds=st.sampled_from([0.0, 1.0, 20.0, 300.0])),
            st.builds(Watch, one_in=st.integers(1, 3), pick=picks),
        ),
        min_size=1,
        max_size=6,
    ).map(tuple),
    seed=st.integers(0, 2**16),
    accounts=st.integers(1, 3),
    api=st.sampled_from(["audio", "speech"]),
    max_parallel=st.integers(1, 2),
)
programs = st.one_of(wild, wild, wild, calm)


@settings(
    max_examples=max(100, min(2000, CLONES // 500)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(programs)
def test_any_life_keeps_the_promises(program: Program) -> None:
    """Whatever is done to it, the client loses no voice, makes none twice, and never has too many in progress."""
    execute(program)


# --- programs drawn by dice: the many ---------------------------------------------------------------------------------


def a_long_program(seed: int, jobs: int) -> Program:
    """Draw a program of so many jobs, most of them cheap ones."""
    dice = random.Random(seed)
    steps: list[Step] = []
    left = jobs
    kind = dice.choices(["calm", "fair", "stormy"], [60, 37, 3])[0]
    calm = kind == "calm"
    while left:
        count = min(left, dice.randint(1, 80))
        left -= count
        if calm:
            steps += [Submit(count, dice.randrange(2**16), batch=dice.random() < 0.8), Wait(dice.uniform(0, 400))]
            continue
        shape = dice.choices(["files", "samples", "same name", "mixed"], [12, 2, 1, 1 if kind == "fair" else 8])[0]
        clock = dice.choice([None, None, None, None, 30.0, 2000.0])
        batch = clock != 30.0 and dice.random() < 0.8
        steps.append(
            Submit(
                count,
                dice.randrange(2**16),
                batch,
                shape,
                dice.randrange(2),
                clock,
                keyed=dice.random() < 0.1,
            )  # type: ignore[arg-type]
        )
        if dice.random() < 0.5:
            steps.append(Wait(dice.uniform(0, 500)))
        if dice.random() < 0.2:
            steps.append(Watch(dice.randint(2, 10), dice.randrange(2**16)))
        if dice.random() < 0.2:
            steps.append(Cancel(dice.randint(5, 30), dice.randrange(2**16), dice.choice(["keep", "delete"])))  # type: ignore[arg-type]
        if dice.random() < 0.03:
            steps.append(Leave(dice.choice(["close", "drain", "cancel"]), dice.choice([0.0, 60.0])))  # type: ignore[arg-type]
    chance = {"calm": 0.0, "fair": 0.005, "stormy": 0.06}[kind]
    faults = [] if calm else [("clone-voice", name, chance) for name in dice.sample(list(CLONE_FAULTS), 8)]
    if kind == "stormy":
        faults += [("voices", name, 0.1) for name in dice.sample(list(LIST_FAULTS), 2)]
        faults += [(on, dice.choice(list(FAULTS[on])), 0.1) for on in ("upload-sample", "delete-voice")]
    return Program(
        tuple(steps),
        tuple(faults),
        seed=seed,
        accounts=dice.randint(1, 4),
        api=dice.choice(["audio", "speech"]),  # type: ignore[arg-type]
        list_lag_s=dice.choice([0.0, 0.0, 10.0]),
        clock_skew_s=dice.choice([0.0, 600.0, -600.0]),
    )


@pytest.mark.timeout(0 if CLONES > 100_000 else 300)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_many_clones(chunk: int) -> None:
    """Of a great many clones none is lost, none is made twice, and never are there too many at once."""
    clones, seed = 0, chunk * 1_000_000
    while clones < CLONES // CHUNKS:
        life = execute(a_long_program(seed, JOBS_IN_A_PROGRAM))
        clones += len(life.sandbox.clones)
        seed += 1
    assert clones


def test_the_judge_sees_what_is_wrong() -> None:
    """The count of overlapping spans, on which the rest stands, counts right."""
    assert most_at_once([(0, 20), (0, 20), (20, 40)]) == 2
    assert most_at_once([(0, 20), (5, 20), (19, 40)]) == 3
    assert most_at_once([]) == 0
    assert issubclass(CloneError, UseapiVoiceError)
