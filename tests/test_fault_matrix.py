"""
Every fault that the remote is known or feared to have, against what must come of it; the table is written out by hand.

`made` is the server's truth: whether a voice comes of the struck request all the same. A row that is `None` for one of
the two has no such case: a remote that says no and makes a voice all the same is beyond any client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import anyio
import pytest
from worlds import a_world, how_it_ended, virtually

from useapi_voice import AuthenticationError, CloneError, CloneOutcomeUnknown, SubscriptionError
from useapi_voice.sandbox import Fault, Sandbox

VICTIM = "victim"

# httpx leaves its own generators to the collector where a body is given up half way; trio says so, asyncio does not.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


@dataclass(frozen=True)
class Row:
    """
    A fault that strikes the victim's clone request once.

    Each outcome is how the victim ends, how many clone requests it took, and how many voices of its name there are
    then.
    """

    fault: Callable[[bool], Fault]
    made: tuple[str, int, int] | None
    not_made: tuple[str, int, int] | None
    elsewhere: tuple[str, int, int] | None = None
    """With two more accounts to go to, where that makes a difference."""
    others: str = "cloned"
    """How the jobs end that wait behind it on the same account."""


ADOPTED = ("cloned", 1, 1)
RESENT = ("cloned", 2, 1)
NO_VOICE_ID = {"voice_name": VICTIM, "voice_status": 2}

IN_DOUBT = {
    **{f"{code}": (lambda made, code=code: Fault.status(code, made=made)) for code in (500, 502, 503, 504, 408)},
    **{f"{code} late": (lambda made, code=code: Fault.status(code, made=made, at="end")) for code in (500, 502, 504)},
    "520 page": lambda made: Fault.html(520, made),
    "524 page late": lambda made: Fault.html(524, made, at="end"),
    "200 page": lambda made: Fault.html(200, made, at="end"),
    "drop at start": lambda made: Fault.drop(made),
    "drop at end": lambda made: Fault.drop(made, "end"),
    "reset at start": lambda made: Fault.drop(made, reset=True),
    "reset at end": lambda made: Fault.drop(made, "end", reset=True),
    "hang": Fault.hang,
    "truncate": Fault.truncate,
    "slow drip": lambda made: Fault.drip(5.0, made),
    "stalled drip": lambda made: Fault.drip(500.0, made),
    "bad JSON": Fault.bad_json,
    "no voice_id": lambda made: Fault.status(200, NO_VOICE_ID, made=made, at="end"),
    "empty object": lambda made: Fault.status(200, {}, made=made, at="end"),
    "empty body": lambda made: Fault.status(200, b"", made=made, at="end"),
    "unknown base_resp": lambda made: Fault.base_resp(4711, "what?", made=made),
    **{
        f"base_resp {code}": (lambda made, code=code: Fault.base_resp(code, made=made))
        for code in (1001, 1013, 1024, 1033)
    },
    "base_resp 1000": lambda made: Fault.base_resp(1000, made=made),
}
PACE = {
    "429": lambda made: Fault.rate_limited(),
    "429 in seconds": lambda made: Fault.rate_limited(7, "seconds"),
    "429 with a date": lambda made: Fault.rate_limited(7, "date"),
    "429 in the body": lambda made: Fault.rate_limited(7, "body"),
    "base_resp 1002": lambda made: Fault.base_resp(1002, "rate limit"),
}
ROWS = {
    **{name: Row(fault, ADOPTED, RESENT) for name, fault in IN_DOUBT.items()},
    "quick drip": Row(lambda made: Fault.drip(0.01, made), ADOPTED, RESENT),
    **{name: Row(fault, None, RESENT) for name, fault in PACE.items()},
    "596": Row(lambda made: Fault.account_error(), None, ("AccountUnavailable", 1, 0), RESENT, "AccountUnavailable"),
    "412": Row(lambda made: Fault.no_subscription(), None, ("AccountUnavailable", 1, 0), RESENT, "AccountUnavailable"),
    "2600010": Row(lambda made: Fault.slots_full(), None, ("VoiceSlotsFull", 1, 0), RESENT, "VoiceSlotsFull"),
    "2600010 in a 412": Row(
        lambda made: Fault.slots_full(412), None, ("VoiceSlotsFull", 1, 0), RESENT, "VoiceSlotsFull"
    ),
    "422": Row(lambda made: Fault.moderated(), None, ("ContentRejected", 1, 0)),
    "422 late": Row(lambda made: Fault.moderated("end"), None, ("ContentRejected", 1, 0)),
    "base_resp 1026": Row(lambda made: Fault.base_resp(1026), None, ("ContentRejected", 1, 0)),
    "base_resp 2013": Row(lambda made: Fault.base_resp(2013), None, ("ApiError", 1, 0)),
    "401": Row(lambda made: Fault.status(401), None, ("AuthenticationError", 1, 0), others="AuthenticationError"),
    "402": Row(lambda made: Fault.status(402), None, ("SubscriptionError", 1, 0), others="SubscriptionError"),
    **{
        f"{code}": Row(lambda made, code=code: Fault.status(code), None, ("ApiError", 1, 0)) for code in (400, 403, 404)
    },
    **{
        f"{code}": Row(lambda made, code=code: Fault.status(code), None, ("UnexpectedReply", 1, 0))
        for code in (405, 410, 413)
    },
    "redirect": Row(
        lambda made: Fault.status(307, headers={"location": "https://elsewhere.invalid/"}),
        None,
        ("UnexpectedReply", 1, 0),
    ),
}
CASES = [
    (name, made)
    for name, row in ROWS.items()
    for made, expected in ((True, row.made), (False, row.not_made))
    if expected is not None
]


@pytest.mark.parametrize("accounts", [1, 3])
@pytest.mark.parametrize("api", ["audio", "speech"])
@pytest.mark.parametrize(
    ("name", "made"), CASES, ids=[f"{name}-{'made' if made else 'not made'}" for name, made in CASES]
)
def test_a_fault_of_clone_voice(name: str, made: bool, api: str, accounts: int) -> None:
    """Whatever strikes one clone, it ends as the table says, nothing is made twice, and the cap holds."""
    row = ROWS[name]
    expected = row.made if made else row.not_made
    assert expected is not None
    if accounts > 1:
        expected = row.elsewhere or expected

    async def main() -> None:
        sandbox = Sandbox(accounts=accounts)
        async with a_world(sandbox, api=api) as world:
            sandbox.fail("clone-voice", row.fault(made), voice_name=VICTIM)
            requests = [world.sampled(VICTIM), *(world.sampled(f"other {i}") for i in range(3 * accounts))]
            jobs = await world.client.submit_many(requests)
            with anyio.fail_after(3600):
                endings = [await how_it_ended(job) for job in jobs]
            # What holds a place may outlast its job.
            await anyio.sleep(200)
            stats = world.client.statistics()
            assert sum(lane.in_progress for lane in stats.lanes) == 0
        assert (endings[0], world.wire.posts[VICTIM], len(world.voices(VICTIM))) == expected
        world.check_cap()
        assert world.endings() == {job.id: 1 for job in jobs}
        for job, ending in zip(jobs[1:], endings[1:], strict=True):
            if job.attempts and ending == "cloned":
                assert world.voices(job.request.voice_name) == [(await job).voice_id]
                # An account that is out of order may have refused it first, with the victim.
                assert world.wire.posts[job.request.voice_name] == 1 or name == "596"
            else:
                assert not world.voices(job.request.voice_name)
        if accounts == 1:
            # Those that left before the refusal came are not called back.
            told = {ending for job, ending in zip(jobs[1:], endings[1:], strict=True) if not job.attempts}
            assert told == ({row.others} - {"cloned"})
        elif row.others not in {"AuthenticationError", "SubscriptionError"}:
            assert set(endings[1:]) == {"cloned"}
        if endings[0] == "cloned":
            assert world.voices(VICTIM) == [(await jobs[0]).voice_id]
        else:
            error = await _error_of(jobs[0])
            assert not error.voice_may_exist

    virtually(main)


async def _error_of(job: object) -> CloneError:
    with pytest.raises(CloneError) as caught:
        await job  # type: ignore[misc]
    return caught.value


# --- a fault that does not go away ------------------------------------------------------------------------------------

PERSISTENT = {
    "500": (lambda: Fault.status(500), ("ServerError", 3, 0)),
    "drop at start": (lambda: Fault.drop(made=False), ("ServerError", 3, 0)),
    "drop at end": (lambda: Fault.drop(made=False, at="end"), ("ServerError", 3, 0)),
    "base_resp 1000": (lambda: Fault.base_resp(1000), ("ApiError", 2, 0)),
    "base_resp 1013": (lambda: Fault.base_resp(1013), ("ServerError", 3, 0)),
    "500, made": (lambda: Fault.status(500, made=True), ADOPTED),
    "drop, made": (lambda: Fault.drop(made=True), ADOPTED),
    "truncate": (lambda: Fault.truncate(), ADOPTED),
}


@pytest.mark.parametrize("api", ["audio", "speech"])
@pytest.mark.parametrize("name", PERSISTENT)
def test_a_fault_that_stays(name: str, api: str) -> None:
    """A clone that fails every time is given up after so many proven failures, and one that was made is adopted."""
    fault, expected = PERSISTENT[name]

    async def main() -> None:
        sandbox = Sandbox()
        async with a_world(sandbox, api=api) as world:
            sandbox.fail("clone-voice", fault(), voice_name=VICTIM, times=None)
            jobs = await world.client.submit_many([world.request(VICTIM), world.request("a"), world.request("b")])
            with anyio.fail_after(3600):
                endings = [await how_it_ended(job) for job in jobs]
        assert (endings[0], world.wire.posts[VICTIM], len(world.voices(VICTIM))) == expected
        assert endings[1:] == ["cloned", "cloned"]
        world.check_cap()

    virtually(main)


# --- faults of the list, while a lost clone is looked for
# --------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """
    What is wrong with the list of voices, and what comes of a clone whose answer was lost.

    The first list that a client asks for is its baseline, so `nth=2` is the first look.
    """

    made: tuple[str, int, int]
    not_made: tuple[str, int, int]
    fault: Fault | None = None
    nth: int = 1
    times: int | None = 1
    older: int = 0
    older_s: float = 300.0
    sandbox: tuple[tuple[str, object], ...] = ()
    client: tuple[tuple[str, object], ...] = ()


LOST_FOR_EVER = ("CloneOutcomeUnknown", 1, 1), ("CloneOutcomeUnknown", 1, 0)
LISTINGS = {
    "all well": Listing(ADOPTED, RESENT),
    "500 once": Listing(ADOPTED, RESENT, Fault.status(500), nth=2),
    "500 at first": Listing(ADOPTED, RESENT, Fault.status(500), nth=2, times=5),
    "500 beyond settle_after_s": Listing(ADOPTED, RESENT, Fault.status(500), nth=2, times=8),
    "500 until it is too late": Listing(*LOST_FOR_EVER, Fault.status(500), nth=2, times=10),
    "500 for ever": Listing(*LOST_FOR_EVER, Fault.status(500), nth=2, times=None),
    "500 always": Listing(*LOST_FOR_EVER, Fault.status(500), times=None),
    "500 for the baseline": Listing(ADOPTED, RESENT, Fault.status(500)),
    "drop once": Listing(ADOPTED, RESENT, Fault.drop(made=False), nth=2),
    "truncate at first": Listing(ADOPTED, RESENT, Fault.truncate(), nth=2, times=3),
    "hang for the baseline": Listing(ADOPTED, RESENT, Fault.hang(made=False)),
    "hang once": Listing(ADOPTED, RESENT, Fault.hang(made=False), nth=2),
    "hang for ever": Listing(*LOST_FOR_EVER, Fault.hang(made=False), nth=2, times=None),
    "bad JSON at first": Listing(ADOPTED, RESENT, Fault.bad_json(made=False), nth=2, times=3),
    "no voice_list": Listing(*LOST_FOR_EVER, Fault.status(200, {}), nth=2, times=None),
    "404 for ever": Listing(*LOST_FOR_EVER, Fault.status(404), nth=2, times=None),
    "404 always": Listing(*LOST_FOR_EVER, Fault.status(404), times=None),
    "403 for ever": Listing(*LOST_FOR_EVER, Fault.status(403), nth=2, times=None),
    "429 at first": Listing(ADOPTED, RESENT, Fault.rate_limited(30), nth=2, times=3),
    "596": Listing(*LOST_FOR_EVER, Fault.account_error(), nth=2),
    "empty once": Listing(ADOPTED, RESENT, Fault.status(200, {"voice_list": []}), nth=2, times=3),
    "lags by 10 s": Listing(ADOPTED, RESENT, sandbox=(("list_lag_s", 10.0),)),
    "lags by 60 s": Listing(ADOPTED, RESENT, sandbox=(("list_lag_s", 60.0), ("clone_s", 10.0))),
    "lags by 100 s, and is waited for": Listing(
        ADOPTED, RESENT, sandbox=(("list_lag_s", 100.0),), client=(("settle_after_s", 150.0),)
    ),
    # The limit of all this, stated: what shows itself only after `settle_after_s` is taken for absent.
    "lags by more than settle_after_s": Listing(("cloned", 2, 2), RESENT, sandbox=(("list_lag_s", 100.0),)),
    "paged": Listing(ADOPTED, RESENT, older=7, sandbox=(("page_size", 2),)),
    "holds older voices of that name": Listing(ADOPTED, RESENT, older=3),
    "the same, a day old, without a baseline": Listing(ADOPTED, RESENT, Fault.status(500), older=3, older_s=90_000.0),
    # Nobody saw them before, and that they are older rests on two clocks: no proof of absence.
    "the same, just made, without a baseline": Listing(ADOPTED, LOST_FOR_EVER[1], Fault.status(500), older=3),
    "clock ahead": Listing(ADOPTED, RESENT, older=1, sandbox=(("clock_skew_s", 600.0),)),
    "clock behind": Listing(ADOPTED, RESENT, older=1, sandbox=(("clock_skew_s", -600.0),)),
    "clock behind, no baseline": Listing(
        ADOPTED, RESENT, Fault.status(500), older=1, older_s=90_000.0, sandbox=(("clock_skew_s", -600.0),)
    ),
}


@pytest.mark.parametrize("api", ["audio", "speech"])
@pytest.mark.parametrize("made", [True, False], ids=["made", "not made"])
@pytest.mark.parametrize("name", LISTINGS)
def test_a_fault_of_the_list(name: str, made: bool, api: str) -> None:
    """A lost clone is adopted where the list shows it, sent again where a list proves its absence, else unknown."""
    row = LISTINGS[name]

    async def main() -> None:
        sandbox = Sandbox(**dict(row.sandbox))  # type: ignore[arg-type]
        older = [sandbox.add_voice(VICTIM).voice_id for _ in range(row.older)]
        if older:
            await anyio.sleep(row.older_s)
        async with a_world(sandbox, api=api, **dict(row.client)) as world:
            if row.fault is not None:
                sandbox.fail("voices", row.fault, nth=row.nth, times=row.times)
            sandbox.fail("clone-voice", Fault.drop(made=made), voice_name=VICTIM)
            job = await world.client.submit(world.request(VICTIM))
            with anyio.fail_after(3600):
                ending = await how_it_ended(job)
            await anyio.sleep(200)
            assert world.client.statistics().lanes[0].in_progress == 0
        found = [voice_id for voice_id in world.voices(VICTIM) if voice_id not in older]
        expected = row.made if made else row.not_made
        assert (ending, world.wire.posts[VICTIM], len(found)) == expected
        assert len(world.voices(VICTIM)) == len(found) + len(older), "an older voice was touched"
        world.check_cap()
        assert world.endings() == {job.id: 1}
        if ending == "cloned":
            assert (await job).voice_id in found
        else:
            error = await _error_of(job)
            assert isinstance(error, CloneOutcomeUnknown)
            assert error.voice_may_exist
            assert not error.safe_to_retry

    virtually(main)


# --- what looks like absence, and is none
# -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date_shift_s", "expected"),
    [(-30.0, ADOPTED), (0.0, ADOPTED), (15.0, ADOPTED), (60.0, LOST_FOR_EVER[0])],
)
def test_a_proxy_whose_clock_is_not_the_voices_clock(date_shift_s: float, expected: tuple[str, int, int]) -> None:
    """A `Date` that runs ahead of `create_time` makes a new voice look old; that is doubt, never proof of absence."""

    async def main() -> None:
        sandbox = Sandbox()
        async with a_world(sandbox, date_shift_s=date_shift_s) as world:
            sandbox.fail("clone-voice", Fault.drop(made=True))
            with anyio.fail_after(3600):
                ending = await how_it_ended(await world.client.submit(world.request(VICTIM)))
        assert (ending, world.wire.posts[VICTIM], len(world.voices(VICTIM))) == expected

    virtually(main)


@pytest.mark.parametrize("date_shift_s", [60.0, 3600.0, 12 * 3600.0])
def test_the_same_without_a_baseline(date_shift_s: float) -> None:
    """Then the voice that seems old may be one that was there before, and yet it is no proof that there is no other."""

    async def main() -> None:
        sandbox = Sandbox()
        async with a_world(sandbox, date_shift_s=date_shift_s) as world:
            sandbox.fail("voices", Fault.status(500))
            sandbox.fail("clone-voice", Fault.drop(made=True))
            ending = await how_it_ended(await world.client.submit(world.request(VICTIM)))
        assert (ending, world.wire.posts[VICTIM], len(world.voices(VICTIM))) == LOST_FOR_EVER[0]

    virtually(main)


def test_a_voice_that_showed_itself_late_stops_the_resending() -> None:
    """Taken for absent and sent again, a clone whose first voice then shows itself is adopted, not sent once more."""

    async def main() -> None:
        # The first voice is made at 20 s and listed at 85 s; the second request leaves at 80 s, and makes nothing.
        sandbox = Sandbox(list_lag_s=65)
        async with a_world(sandbox) as world:
            sandbox.fail("clone-voice", Fault.drop(made=True))
            sandbox.fail("clone-voice", Fault.drop(made=False))
            with anyio.fail_after(3600):
                voice = await (await world.client.submit(world.request(VICTIM)))
        assert (world.wire.posts[VICTIM], world.voices(VICTIM)) == (2, [voice.voice_id])

    virtually(main)


def test_jobs_of_one_name_lose_their_answers_one_after_the_other() -> None:
    """Jobs of one name, equal but for blanks, each get a voice of their own though every answer is lost."""

    async def main() -> None:
        sandbox = Sandbox()
        async with a_world(sandbox) as world:
            sandbox.fail("clone-voice", Fault.drop(made=True), times=None)
            jobs = await world.client.submit_many([world.request(name) for name in ("Ann", "Ann ", " Ann", "Ann")])
            with anyio.fail_after(3600):
                ids = {(await job).voice_id for job in jobs}
        assert len(ids) == 4
        assert ids == {voice.voice_id for voice in sandbox.voices()}
        assert world.wire.posts.total() == 4
        world.check_cap()

    virtually(main)


def test_one_stale_list_at_the_wrong_moment_is_no_proof() -> None:
    """A list that is empty once, when it decides, as from a replica that lags, does not make a second voice."""

    async def main() -> None:
        # Listed from 70 s on; the looks are at 7.5, 15, 22.5, 33.75, 45, 60 and 75 s, after the baseline.
        sandbox = Sandbox(clone_s=60, list_lag_s=10)
        async with a_world(sandbox) as world:
            sandbox.fail("clone-voice", Fault.drop(made=True))
            sandbox.fail("voices", Fault.status(200, {"voice_list": []}), nth=8)
            with anyio.fail_after(3600):
                ending = await how_it_ended(await world.client.submit(world.request(VICTIM)))
        assert (ending, len(world.voices(VICTIM))) == ("cloned", 1)

    virtually(main)


def test_a_resent_clone_whose_name_is_taken_says_that_a_voice_may_exist() -> None:
    """Where names are unique, the refusal of a second request for being taken is itself a sign of the first one."""

    async def main() -> None:
        sandbox = Sandbox(list_lag_s=100, unique_names=True)
        async with a_world(sandbox) as world:
            sandbox.fail("clone-voice", Fault.drop(made=True))
            job = await world.client.submit(world.request(VICTIM))
            with anyio.fail_after(3600):
                ending = await how_it_ended(job)
            assert len(world.voices(VICTIM)) == 1
            if ending != "cloned":
                assert (await _error_of(job)).voice_may_exist

    virtually(main)


# --- faults of uploads and of accounts
# ----------------------------------------------------------------------------------

UPLOADS = {
    "500": (lambda: Fault.status(500), 1, "cloned"),
    "503": (lambda: Fault.status(503, headers={"retry-after": "5"}), 1, "cloned"),
    "520 page": (lambda: Fault.html(520), 1, "cloned"),
    "drop": (lambda: Fault.drop(made=False), 1, "cloned"),
    "drop, stored": (lambda: Fault.drop(made=True, at="end"), 1, "cloned"),
    "hang": (lambda: Fault.hang(made=False), 1, "cloned"),
    "truncate": (lambda: Fault.truncate(), 1, "cloned"),
    "bad JSON": (lambda: Fault.bad_json(made=True), 1, "cloned"),
    "429": (lambda: Fault.rate_limited(30), 1, "cloned"),
    "429 without advice": (lambda: Fault.rate_limited(), 1, "cloned"),
    "500 for ever": (lambda: Fault.status(500), None, "ServerError"),
    "drop for ever": (lambda: Fault.drop(made=False), None, "ServerError"),
    "no fileID": (lambda: Fault.status(200, {"ossPath": "x"}), None, "UnexpectedReply"),
    "400": (lambda: Fault.status(400, {"error": "Sample is not fit", "code": 400}), 1, "ApiError"),
    "400 about a file": (lambda: Fault.status(400, {"error": "Uploaded file is not fit", "code": 400}), 1, "ApiError"),
    "404 about a file": (lambda: Fault.status(404, {"error": "No such file", "code": 404}), 1, "ApiError"),
    "20132": (lambda: Fault.status(400, {"error": "invalid samples", "code": 20132}), 1, "ApiError"),
    "422": (lambda: Fault.moderated(), 1, "ContentRejected"),
    "401": (lambda: Fault.status(401), 1, "AuthenticationError"),
    "402": (lambda: Fault.status(402), 1, "SubscriptionError"),
    "596": (lambda: Fault.account_error(), 1, "AccountUnavailable"),
    "412": (lambda: Fault.no_subscription(), 1, "AccountUnavailable"),
    "2600010": (lambda: Fault.slots_full(), 1, "VoiceSlotsFull"),
}


@pytest.mark.parametrize("accounts", [1, 3])
@pytest.mark.parametrize("api", ["audio", "speech"])
@pytest.mark.parametrize("name", UPLOADS)
def test_a_fault_of_upload_sample(name: str, api: str, accounts: int) -> None:
    """A fault of an upload costs no clone: it is repeated, or refuses the job, or sends it to another account."""
    fault, times, expected = UPLOADS[name]
    if accounts > 1 and expected in {"AccountUnavailable", "VoiceSlotsFull"}:
        expected = "cloned"

    async def main() -> None:
        sandbox = Sandbox(accounts=accounts)
        async with a_world(sandbox, api=api) as world:
            sandbox.fail("upload-sample", fault(), times=times)
            job = await world.client.submit(world.sampled(VICTIM))
            with anyio.fail_after(3600):
                ending = await how_it_ended(job)
            # The client is whole: another job, with other samples, goes its way.
            if times is not None and ending not in {"AccountUnavailable", "VoiceSlotsFull"}:
                with anyio.fail_after(3600):
                    assert await how_it_ended(await world.client.submit(world.sampled("next", tone=129))) == "cloned"
        made = int(expected == "cloned")
        assert (ending, world.wire.posts[VICTIM], len(world.voices(VICTIM))) == (expected, made, made)
        assert world.endings()[job.id] == 1
        world.check_cap()

    virtually(main)


ACCOUNTS = {
    "500 once": (lambda: Fault.status(500), 1, "cloned"),
    "hang once": (lambda: Fault.hang(made=False), 1, "cloned"),
    "drop once": (lambda: Fault.drop(made=False), 1, "cloned"),
    "429 once": (lambda: Fault.rate_limited(5), 1, "cloned"),
    "500 for ever": (lambda: Fault.status(500), None, "ServerError"),
    "404": (lambda: Fault.status(404), None, "cloned"),
    "empty": (lambda: Fault.status(200, {}), None, "cloned"),
    "no object": (lambda: Fault.status(200, b"[]"), None, "cloned"),
    "no audio": (
        lambda: Fault.status(200, {"a": {"account": "a", "supportAudio": False}}),
        None,
        "AccountUnavailable",
    ),
    "broken": (lambda: Fault.status(200, {"a": {"account": "a", "error": "log in"}}), None, "AccountUnavailable"),
    "401": (lambda: Fault.status(401), 1, "AuthenticationError"),
    "402": (lambda: Fault.status(402), 1, "SubscriptionError"),
}


@pytest.mark.parametrize("api", ["audio", "speech"])
@pytest.mark.parametrize("name", ACCOUNTS)
def test_a_fault_of_accounts(name: str, api: str) -> None:
    """Where the accounts cannot be listed, a single account is used unnamed, or the jobs are told why not."""
    fault, times, expected = ACCOUNTS[name]

    async def main() -> None:
        sandbox = Sandbox()
        async with a_world(sandbox, api=api) as world:
            sandbox.fail("accounts", fault(), times=times)
            with anyio.fail_after(3600):
                try:
                    ending = await how_it_ended(await world.client.submit(world.sampled(VICTIM)))
                except (AuthenticationError, SubscriptionError) as error:
                    ending = type(error).__name__
        made = int(expected == "cloned")
        assert (ending, world.wire.posts[VICTIM], len(world.voices(VICTIM))) == (expected, made, made)

    virtually(main)
