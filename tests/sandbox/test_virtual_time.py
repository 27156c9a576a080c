"""Clones over time and planned faults, through the in-process skin, in virtual time."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx
import pytest

from useapi_voice.sandbox import Fault, Sandbox

from .tools import Caller, calling, example, shape, wav

pytestmark = pytest.mark.anyio

LOST = (httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Run every test here in virtual time."""
    return virtual_time


async def lost(caller: Caller, voice_name: str = "Ann") -> str:
    """Clone, and give the name of the error that came instead of an answer."""
    try:
        await caller.clone(voice_name)
    except LOST as error:
        return type(error).__name__
    raise AssertionError("the clone was answered")


# -- the life of a clone


async def test_a_clone_takes_its_time() -> None:
    """The answer comes exactly at the clone's end; the voice exists and the place is free from then on."""
    sandbox = Sandbox(clone_s=20)
    async with calling(sandbox) as caller, anyio.create_task_group() as tasks:
        tasks.start_soon(caller.clone)
        await anyio.sleep(19.9)
        account = sandbox.accounts[0]
        assert (sandbox.in_progress(account), sandbox.voices(account), sandbox.clones[0].reply) == (1, (), "pending")
        assert sandbox.clones[0].ended_at is None
        assert sandbox.busy_s(account) == pytest.approx(19.9)
        await anyio.sleep(0.2)
        assert (sandbox.in_progress(), len(sandbox.voices(account))) == (0, 1)
    record = sandbox.clones[0]
    assert (record.begun_at, record.ends_at, record.ended_at, record.reply) == (0, 20, 20, "200")
    assert sandbox.voices()[0].made_at == 20
    assert sandbox.busy_s(account) == 20


async def test_a_clone_goes_on_after_its_client_has_left() -> None:
    """A client that gives up frees nothing: the clone keeps its place to its end and makes its voice."""
    sandbox = Sandbox(clone_s=20)
    async with calling(sandbox, timeout_s=5) as caller:
        assert await lost(caller) == "ReadTimeout"
        assert sandbox.now() == 5
        assert (sandbox.in_progress(), sandbox.clones[0].reply) == (1, "left")
        await anyio.sleep(14.9)
        assert await caller.cloned() == []
        await anyio.sleep(0.1)
        assert await caller.cloned() == ["Ann"]


async def test_a_cancelled_client_changes_nothing() -> None:
    """Cancellation of the call leaves the clone alone."""
    sandbox = Sandbox(clone_s=20)
    async with calling(sandbox) as caller:
        with anyio.move_on_after(1):
            await caller.clone()
        assert (sandbox.in_progress(), sandbox.clones[0].reply) == (1, "left")


@pytest.mark.parametrize("over_cap", ["429", "400", "allow"])
async def test_the_cap_is_measured_at_the_server(over_cap: Any) -> None:
    """A third clone on one account is a breach, refused or not; other accounts have places of their own."""
    sandbox = Sandbox(accounts=["a", "b"], over_cap=over_cap)
    statuses: list[int] = []

    async with calling(sandbox) as caller:

        async def clone(account: str) -> None:
            statuses.append((await caller.clone(f"on {account}", on=account)).status_code)

        async with anyio.create_task_group() as tasks:
            for account in "aabba":
                tasks.start_soon(clone, account)
                await anyio.sleep(1)
    accepted = over_cap == "allow"
    breach = sandbox.breaches[0]
    assert len(sandbox.breaches) == 1
    assert (breach.account, breach.voice_name, breach.at, breach.in_progress) == ("a", "on a", 4, 2)
    assert breach.accepted is accepted
    assert sorted(statuses) == ([200] * 5 if accepted else sorted([200] * 4 + [int(over_cap)]))
    assert sandbox.max_parallel_seen == {"a": 3 if accepted else 2, "b": 2}
    assert len(sandbox.clones) == 5 if accepted else 4


async def test_the_cap_may_change() -> None:
    """The cap can be set anew for one account or all; clones in progress go on."""
    sandbox = Sandbox(accounts=["a", "b"])
    statuses: list[int] = []

    async def clone(caller: Caller, on: str) -> None:
        statuses.append((await caller.clone(on=on)).status_code)

    async with calling(sandbox) as caller, anyio.create_task_group() as tasks:
        for on in "aab":
            tasks.start_soon(clone, caller, on)
        await anyio.sleep(1)
        sandbox.set_max_parallel(1)
        await clone(caller, "b")
        sandbox.set_max_parallel(3, "a")
        await clone(caller, "a")
        with pytest.raises(ValueError, match="max_parallel=0"):
            sandbox.set_max_parallel(0)
    assert statuses == [429, 200, 200, 200, 200]
    assert [(breach.account, breach.in_progress) for breach in sandbox.breaches] == [("b", 1)]


async def test_a_place_is_free_at_the_very_end_of_a_clone() -> None:
    """One after the other, without a pause, never breaches a cap of one."""
    sandbox = Sandbox(clone_s=0.1, max_parallel=1)
    async with calling(sandbox) as caller:
        for index in range(50):
            assert (await caller.clone(f"v{index}")).is_success
    assert sandbox.breaches == ()
    assert sandbox.now() == pytest.approx(5)


async def test_thousands_of_clones_cost_no_time() -> None:
    """Two places that never idle make n voices in n / 2 clone times, and the statistics add up."""
    sandbox = Sandbox(clone_s=20)
    async with calling(sandbox) as caller, anyio.create_task_group() as tasks:
        file_id = sandbox.add_sample()

        async def run(lane: int) -> None:
            for index in range(250):
                await caller.clone(f"{lane}-{index}", files=file_id)

        tasks.start_soon(run, 0)
        tasks.start_soon(run, 1)
    account = sandbox.accounts[0]
    seen = sandbox.statistics()
    assert seen.now_s == 5000
    assert (seen.clones_begun, seen.clones_made, seen.clones_in_progress, seen.voices) == (500, 500, 0, 500)
    assert (seen.uploads, seen.breaches, seen.requests) == (1, 0, {"audio/clone-voice": 500})
    assert (seen.busy_s, seen.max_parallel_seen) == ({account: 10_000}, {account: 2})


async def test_durations_are_drawn_or_called() -> None:
    """A range is drawn from the seeded dice, the same each time; a callable is asked with the name."""

    async def lengths(clone_s: Any, seed: int = 0) -> list[float]:
        sandbox = Sandbox(clone_s=clone_s, seed=seed)
        async with calling(sandbox) as caller:
            for name in ("Ann", "Bo", "Cid", "Dee"):
                await caller.clone(name)
        return [clone.ends_at - clone.begun_at for clone in sandbox.clones]

    drawn = await lengths((10, 30))
    assert all(10 <= length_s <= 30 for length_s in drawn)
    assert statistics.stdev(drawn) > 0.1
    assert await lengths((10, 30)) == pytest.approx(drawn)
    assert await lengths((10, 30), seed=1) != pytest.approx(drawn)
    assert await lengths(lambda name: len(name) - 2.5) == [0.5, 0, 0.5, 0.5]


async def test_uploads_may_take_time() -> None:
    """An upload is answered and stored after `upload_s`; one whose client left is not stored."""
    sandbox = Sandbox(upload_s=lambda account: 3)
    async with calling(sandbox, timeout_s=2) as caller:
        with pytest.raises(httpx.ReadTimeout):
            await caller.upload(wav(11))
    async with calling(sandbox) as caller:
        assert (await caller.upload(wav(11))).is_success
    assert [upload.at for upload in sandbox.uploads] == [5]


async def test_a_full_account_refuses_at_the_end() -> None:
    """Without a free slot the refusal comes after the work, with 2600010, and a delete makes room."""
    sandbox = Sandbox(clone_s=20, slots=1)
    voice = sandbox.add_voice("old")
    async with calling(sandbox) as caller:
        reply = await caller.clone()
        assert (reply.status_code, reply.json()) == (400, example("speech_clone_voice.slot_full.2600010"))
        assert sandbox.now() == 20
        assert (sandbox.clones[0].made, sandbox.clones[0].reply) == (False, "400")
        await caller.delete(voice_id=voice.voice_id)
        assert (await caller.clone()).is_success


async def test_the_list_may_lag() -> None:
    """A fresh voice is listed only `list_lag_s` after it was made, though equity counts it at once."""
    sandbox = Sandbox(clone_s=20, list_lag_s=5)
    async with calling(sandbox) as caller:
        await caller.clone()
        await anyio.sleep(4.9)
        assert await caller.cloned() == []
        assert (await caller.get("speech/equity")).json()["used"] == 1
        await anyio.sleep(0.2)
        assert await caller.cloned() == ["Ann"]


async def test_wall_clock_is_epoch_plus_virtual_time() -> None:
    """`create_time` and Date move with the loop's clock."""
    epoch = datetime(2026, 8, 24, tzinfo=UTC)
    sandbox = Sandbox(clone_s=90, epoch=epoch)
    async with calling(sandbox) as caller:
        reply = await caller.clone()
    assert reply.json()["create_time"] == (epoch + timedelta(seconds=90)).timestamp() * 1000
    assert reply.json()["update_time"] == reply.json()["create_time"] + 1
    assert parsedate_to_datetime(reply.headers["date"]) == epoch + timedelta(seconds=90)


async def test_a_default_epoch_is_the_real_time_of_the_first_look() -> None:
    """Without an epoch the wall clock starts at the real time, moved by the skew."""
    async with calling(Sandbox(clock_skew_s=7200)) as caller:
        date = parsedate_to_datetime((await caller.get("accounts")).headers["date"])
    assert abs((date - datetime.now(UTC)).total_seconds() - 7200) < 30


# -- faults of clones


@pytest.mark.parametrize(
    ("fault", "answered_s", "begun", "made", "reply"),
    [
        (Fault.status(500), 0, False, False, None),
        (Fault.status(502, at="end"), 20, True, False, "502"),
        (Fault.status(504, made=True), 0, True, True, "504"),
        (Fault.status(504, made=True, at="end"), 20, True, True, "504"),
        (Fault.html(), 0, False, False, None),
        (Fault.html(524, made=True, at="end"), 20, True, True, "524"),
        (Fault.bad_json(made=True), 20, True, True, "200"),
        (Fault.bad_json(made=False), 20, True, False, "200"),
        (Fault.base_resp(1000), 20, True, False, "200"),
        (Fault.base_resp(1001, "request timeout", made=True), 20, True, True, "200"),
        (Fault.slots_full(), 20, True, False, "400"),
        (Fault.slots_full(412), 20, True, False, "412"),
        (Fault.no_subscription(), 0, False, False, None),
        (Fault.moderated(), 0, False, False, None),
        (Fault.moderated(at="end"), 20, True, False, "422"),
        (Fault.rate_limited(), 0, False, False, None),
        (Fault.account_error(), 0, False, False, None),
        (Fault.delay(5), 25, True, True, "200"),
    ],
)
async def test_answers_gone_wrong(fault: Fault, answered_s: float, begun: bool, made: bool, reply: str | None) -> None:
    """Each fault answers when it says, and its clone is begun and makes its voice or not as it says."""
    sandbox = Sandbox(clone_s=20)
    handle = sandbox.fail("clone-voice", fault)
    async with calling(sandbox) as caller:
        got = await caller.clone()
        assert sandbox.now() == answered_s
        assert sandbox.in_progress() == (1 if begun and answered_s == 0 else 0)
        await anyio.sleep(20)
    assert got.status_code == (int(reply) if reply else fault.code)
    assert (handle.hits, handle.active) == (1, False)
    assert [(clone.made, clone.reply) for clone in sandbox.clones] == ([(made, reply)] if begun else [])
    assert len(sandbox.voices()) == made


@pytest.mark.parametrize(
    ("fault", "error", "lost_s", "begun", "made", "reply"),
    [
        (Fault.drop(made=True), "RemoteProtocolError", 0, True, True, "drop"),
        (Fault.drop(made=False), "RemoteProtocolError", 0, False, False, None),
        (Fault.drop(made=True, at="end"), "RemoteProtocolError", 20, True, True, "drop"),
        (Fault.drop(made=False, at="end", reset=True), "ReadError", 20, True, False, "reset"),
        (Fault.hang(made=True), "ReadTimeout", 90, True, True, "hang"),
        (Fault.hang(made=False), "ReadTimeout", 90, True, False, "hang"),
        (Fault.truncate(), "RemoteProtocolError", 20, True, True, "truncate"),
        (Fault.truncate(made=False), "RemoteProtocolError", 20, True, False, "truncate"),
        (Fault.drip(100), "ReadTimeout", 110, True, True, "drip"),
    ],
)
async def test_answers_lost(
    fault: Fault, error: str, lost_s: float, begun: bool, made: bool, reply: str | None
) -> None:
    """Each fault loses the answer as a real connection would, and the clone ends as it says."""
    sandbox = Sandbox(clone_s=20)
    sandbox.fail("audio/clone-voice", fault)
    async with calling(sandbox, timeout_s=90) as caller:
        assert await lost(caller) == error
        assert sandbox.now() == lost_s
        await anyio.sleep(20)
    assert [(clone.made, clone.reply) for clone in sandbox.clones] == ([(made, reply)] if begun else [])
    assert len(sandbox.voices()) == made


async def test_a_hanging_answer_without_a_timeout_waits_for_ever() -> None:
    """A client without a read timeout is held until it gives up by itself."""
    sandbox = Sandbox(clone_s=20)
    sandbox.fail("*", Fault.hang(made=True))
    async with calling(sandbox, timeout_s=None) as caller:
        with anyio.move_on_after(100_000) as scope:
            await caller.clone()
    assert scope.cancelled_caught
    assert len(sandbox.voices()) == 1


@pytest.mark.parametrize("made", [True, False])
async def test_a_dripping_answer_arrives_in_the_end(made: bool) -> None:
    """Pieces that come in time make a whole answer: the voice, or an upstream error where none was made."""
    sandbox = Sandbox(clone_s=20)
    sandbox.fail("clone-voice", Fault.drip(1, made, piece_bytes=100))
    async with calling(sandbox, timeout_s=30) as caller:
        reply = await caller.clone()
    assert sandbox.now() == 20 + -(-len(reply.content) // 100)
    assert ("voice_id" in reply.json()) is made
    if not made:
        assert reply.json() == example("upstream_base_resp.1000")


async def test_a_full_account_shows_through_a_fault() -> None:
    """A clone that a fault would have made still needs a slot."""
    sandbox = Sandbox(clone_s=20, slots=0)
    sandbox.fail("clone-voice", Fault.delay(1))
    sandbox.fail("clone-voice", Fault.drop(made=True))
    async with calling(sandbox) as caller:
        assert (await caller.clone()).json()["code"] == 2600010
        assert await lost(caller) == "RemoteProtocolError"
        await anyio.sleep(20)
    assert sandbox.voices() == ()


async def test_a_dropped_clone_counts_in_the_cap() -> None:
    """What a client cannot see still holds a place, until its end."""
    sandbox = Sandbox(clone_s=20, max_parallel=1)
    sandbox.fail("clone-voice", Fault.drop(made=False, at="end"))
    async with calling(sandbox, timeout_s=10) as caller:
        assert await lost(caller) == "ReadTimeout"
        assert (await caller.clone()).status_code == 429
        await anyio.sleep(10)
        await lost(caller)
    assert [(breach.at, breach.in_progress) for breach in sandbox.breaches] == [(10, 1)]


@pytest.mark.parametrize(
    ("fault", "header", "in_body"),
    [
        (Fault.rate_limited(), None, None),
        (Fault.rate_limited(20), "20", None),
        (Fault.rate_limited(0.2, "seconds"), "1", None),
        (Fault.rate_limited(20, "date"), "Mon, 24 Aug 2026 00:00:20 GMT", None),
        (Fault.rate_limited(19.5, "date"), "Mon, 24 Aug 2026 00:00:20 GMT", None),
        (Fault.rate_limited(20.25, "body"), None, "2026-08-24T00:00:20.250Z"),
    ],
)
async def test_forms_of_retry_after(fault: Fault, header: str | None, in_body: str | None) -> None:
    """The hint of a 429 stands where it was asked for, never earlier than meant."""
    sandbox = Sandbox(epoch=datetime(2026, 8, 24, tzinfo=UTC))
    sandbox.fail("clone-voice", fault)
    async with calling(sandbox) as caller:
        reply = await caller.clone()
    assert reply.status_code == 429
    assert reply.headers.get("retry-after") == header
    assert reply.json().get("retryAfter") == in_body
    assert shape(reply.json()) == shape(example("error.429" if in_body else "error.429.minimal"))


async def test_bodies_of_refusals() -> None:
    """The named faults have the bodies of the examples."""
    sandbox = Sandbox(clone_s=0)
    wanted = {
        "error.412": Fault.no_subscription(),
        "error.422": Fault.moderated(),
        "upstream_base_resp.1000": Fault.base_resp(1000),
        "upstream_input_sensitive": Fault.base_resp(1026, "input new_sensitive"),
    }
    async with calling(sandbox) as caller:
        for name, fault in wanted.items():
            sandbox.fail("clone-voice", fault)
            assert (await caller.clone()).json() == example(name)
        sandbox.fail("clone-voice", Fault.html(523))
        page = await caller.clone()
        assert page.text.startswith("<!DOCTYPE html>")
        assert page.headers["content-type"].startswith("text/html")
        sandbox.fail("clone-voice", Fault.bad_json(made=False))
        with pytest.raises(ValueError, match="Unterminated"):
            (await caller.clone()).json()


async def test_free_forms_of_a_status() -> None:
    """A status may have any body and headers; without a body it is the usual error."""
    sandbox = Sandbox()
    async with calling(sandbox) as caller:
        for fault, text, content_type in (
            (Fault.status(503, headers={"Retry-After": "7"}), '{"error":"Service Unavailable","code":503}', "json"),
            (Fault.status(599), '{"error":"Unknown error","code":599}', "json"),
            (Fault.status(503, "busy"), "busy", "text/plain"),
            (Fault.status(503, b"{}", headers={"Content-Type": "application/json"}), "{}", "application/json"),
            (Fault.status(503, {"a": 1}), '{"a":1}', "json"),
        ):
            sandbox.fail("config", fault)
            reply = await caller.get("audio/config")
            assert reply.text == text
            assert content_type in reply.headers["content-type"]
            assert reply.headers.get("retry-after") == ("7" if fault.headers[-1] == ("retry-after", "7") else None)


# -- faults of other endpoints


@pytest.mark.parametrize("made", [True, False])
async def test_lost_uploads_and_deletes(made: bool) -> None:
    """For an upload or a delete `made` says whether it was done."""
    sandbox = Sandbox(upload_s=1)
    voice = sandbox.add_voice("Ann")
    async with calling(sandbox, timeout_s=10) as caller:
        sandbox.fail("upload-sample", Fault.drop(made, at="end"))
        with pytest.raises(httpx.RemoteProtocolError):
            await caller.upload()
        assert (len(sandbox.uploads), sandbox.now()) == (made, 1)
        sandbox.fail("upload-sample", Fault.hang(made))
        with pytest.raises(httpx.ReadTimeout):
            await caller.upload()
        assert (len(sandbox.uploads), sandbox.now()) == (2 * made, 11)
        sandbox.fail("upload-sample", Fault.truncate(made))
        with pytest.raises(httpx.RemoteProtocolError):
            await caller.upload()
        assert len(sandbox.uploads) == 3 * made
        sandbox.fail("delete-voice", Fault.status(502, made=made))
        assert (await caller.delete(voice_id=voice.voice_id)).status_code == 502
        assert len(sandbox.voices()) == (not made)


async def test_faults_of_reads() -> None:
    """A read may fail, hang, drip or be late; `made` means nothing to it."""
    sandbox = Sandbox()
    async with calling(sandbox, timeout_s=10) as caller:
        sandbox.fail("accounts", Fault.drip(0.1, made=False, piece_bytes=500))
        assert shape((await caller.get("accounts")).json()) == {sandbox.accounts[0]: shape(example("account.200"))}
        sandbox.fail("accounts", Fault.account_error())
        assert (await caller.get("accounts")).status_code == 596
        sandbox.fail("voices", Fault.hang(made=False))
        with pytest.raises(httpx.ReadTimeout):
            await caller.get("audio/voices")
        before_s = sandbox.now()
        sandbox.fail("scheduler", Fault.delay(3))
        assert (await caller.get("scheduler")).is_success
        assert sandbox.now() - before_s == 3


async def test_an_account_error_lasts() -> None:
    """596 strikes one account, on every later call of it, shows in GET accounts, and ends with a repair."""
    sandbox = Sandbox(accounts=["a", "b"], clone_s=1)
    sandbox.fail("clone-voice", Fault.account_error(), account="b")
    async with calling(sandbox) as caller:
        assert (await caller.clone(on="a")).status_code == 200
        assert (await caller.clone(on="b")).json() == example("error.596")
        assert (await caller.upload(account="b")).status_code == 596
        assert (await caller.get("audio/config", account="b")).status_code == 596
        shown = (await caller.get("accounts")).json()
        assert ["error" in shown[name] for name in "ab"] == [False, True]
        sandbox.repair("b")
        assert (await caller.clone(on="b")).status_code == 200


# -- which requests a rule strikes


async def test_rules_choose_their_requests() -> None:
    """A rule may ask for account, name, the nth request and how often; the oldest that fits goes first."""
    sandbox = Sandbox(accounts=["a", "b"], clone_s=0)
    sandbox.fail("clone-voice", Fault.status(500), account="b")
    sandbox.fail("clone-voice", Fault.status(501), voice_name="Bo", times=None)
    sandbox.fail("clone-voice", Fault.status(502), nth=3)
    sandbox.fail("clone-voice", Fault.status(503), nth=5, times=2)
    async with calling(sandbox) as caller:

        async def status(name: str, on: str = "a") -> int:
            return (await caller.clone(name, on=on)).status_code

        assert [await status("Bo", "b"), await status("Bo"), await status("Al")] == [500, 501, 502]
        assert [await status("Bo", "b"), await status("Al")] == [501, 503]
        assert [await status("Al"), await status("Al"), await status("Bo")] == [503, 200, 501]


async def test_rules_end_and_are_removed() -> None:
    """`times=None` strikes for ever, until removed; removal is idempotent."""
    sandbox = Sandbox()
    other = sandbox.fail("config", Fault.status(500))
    rule = sandbox.fail("*", Fault.status(500), times=None)
    async with calling(sandbox) as caller:
        assert [(await caller.get("accounts")).status_code for _ in range(3)] == [500] * 3
        assert (rule.hits, rule.active) == (3, True)
        rule.remove()
        rule.remove()
        assert (await caller.get("accounts")).status_code == 200
    assert (rule.hits, rule.active) == (3, False)
    assert (other.hits, other.active) == (0, True)


async def test_rules_by_probability() -> None:
    """Dice decide, and the same seed decides the same."""

    async def statuses() -> list[int]:
        sandbox = Sandbox(seed=7)
        sandbox.fail("scheduler", Fault.status(500), probability=0.3, times=None)
        async with calling(sandbox) as caller:
            return [(await caller.get("scheduler")).status_code for _ in range(200)]

    found = await statuses()
    assert 30 < found.count(500) < 90
    assert await statuses() == found


async def test_dice_may_decide_whether_it_was_made() -> None:
    """`made=None` makes about half of the voices."""
    sandbox = Sandbox(clone_s=0)
    sandbox.fail("clone-voice", Fault.drop(made=None), times=None)
    async with calling(sandbox) as caller:
        for _ in range(100):
            await lost(caller)
    assert 25 < len(sandbox.voices()) < 75


async def test_refused_requests_are_not_struck() -> None:
    """A rule neither strikes nor counts requests that the API refuses by itself."""
    sandbox = Sandbox(clone_s=0)
    rule = sandbox.fail("clone-voice", Fault.drop(made=True), nth=2)
    async with calling(sandbox) as caller:
        assert (await caller.clone(language_tag="x")).status_code == 400
        assert (await caller.clone()).status_code == 200
        assert (await caller.clone(voice_name="")).status_code == 400
        assert rule.hits == 0
        await lost(caller)
    assert rule.hits == 1
