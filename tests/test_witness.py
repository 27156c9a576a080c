"""What the witness finds out: baselines, pages, and what became of a clone whose answer was lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import anyio
import httpx
import pytest
from harness import TOKEN, Heard, Say, serving, virtual

from useapi_voice import ServerError, UnexpectedReply, VoiceInfo, _witness
from useapi_voice._recovery import Absent, Evidence, Found, Looking, Unclear
from useapi_voice._schedule import ANY_ACCOUNT
from useapi_voice._transport import GenerationChoice, Secret, Transport
from useapi_voice._witness import BASELINE_TIMEOUT_S, Witness, list_voices
from useapi_voice.sandbox import Fault, Sandbox
from useapi_voice.stores import Ledger
from useapi_voice.stores.memory import MemoryStore

NOW = datetime(2026, 8, 24, 12, tzinfo=UTC)


@asynccontextmanager
async def looking(sandbox: Sandbox, api: str = "audio") -> AsyncIterator[tuple[Witness, Transport]]:
    """Give a witness on a sandbox in process."""
    sandbox.now()
    async with httpx.AsyncClient(transport=sandbox.transport()) as http:
        transport = Transport(Secret(TOKEN), sandbox.base_url, GenerationChoice.of(api), http)
        yield Witness(transport, MemoryStore()), transport


@asynccontextmanager
async def listing(pages: list[Any]) -> AsyncIterator[tuple[Transport, list[Heard]]]:
    """Give a transport to a server that hands out these pages, the last one again and again."""
    heard: list[Heard] = []

    async def handler(request: Heard) -> Say:
        heard.append(request)
        return Say(body=pages[min(len(heard), len(pages)) - 1])

    async with serving(handler) as base_url:
        transport = Transport(Secret(TOKEN), base_url, GenerationChoice.of("speech"))
        try:
            yield transport, heard
        finally:
            await transport.aclose()


def page(*ids: str, more: bool | None = None) -> dict[str, Any]:
    """Write a page of the voice list."""
    return {"voice_list": [{"voice_id": name} for name in ids]} | ({} if more is None else {"has_more": more})


def evidence_of(witness: Witness, account: str, name: str = "Ann") -> Evidence:
    """Put together the evidence of an attempt that left just now."""
    return witness.evidence(account, name, anyio.current_time(), datetime.now(UTC), 75.0)


async def conclude(witness: Witness, account: str, evidence: Evidence) -> tuple[list[Looking], Any]:
    """Look until it is known, and return the looks and the conclusion."""
    async with aclosing(witness.find(account, evidence)) as states:
        *looks, end = [state async for state in states]
    return looks, end


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_all_pages_are_read() -> None:
    """While `has_more` is true the next page is asked for; each voice comes once, with its account."""
    async with listing([page("1", "2", more=True), page("3", more=True), page("4", more=False)]) as (transport, heard):
        voices = [voice async for voice in list_voices(transport, "a", cloned=True, tag_list=["English", "Male"])]
    assert [(voice.voice_id, voice.account) for voice in voices] == [(id_, "a") for id_ in "1234"]
    queries = [parse_qs(request.query) for request in heard]
    assert [query.get("page") for query in queries] == [None, ["1"], ["2"]]
    assert {(*query["is_system"], *query["tag_list"], *query["account"]) for query in queries} == {
        ("false", "English,Male", "a")
    }


async def test_a_page_that_comes_twice_is_no_end() -> None:
    """Pages that count from 1 bring the first one twice; nothing is doubled, and nothing missed."""
    async with listing([page("1", more=True), page("1", more=True), page("2", more=False)]) as (transport, heard):
        voices = [voice.voice_id async for voice in list_voices(transport, None, cloned=False)]
    assert voices == ["1", "2"]
    assert parse_qs(heard[0].query) == {"is_system": ["true"]}


async def test_a_list_that_never_ends_is_an_error() -> None:
    """A server that says `has_more` for ever is not believed; the list would be incomplete."""
    async with listing([page("1", more=True)]) as (transport, heard):
        with pytest.raises(UnexpectedReply, match="has_more") as raised:
            _ = [voice async for voice in list_voices(transport, "a", cloned=True)]
    assert (raised.value.safe_to_retry, raised.value.account, len(heard)) == (True, "a", 3)


async def test_there_is_a_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that always has something new is followed for a thousand pages, not for ever."""
    monkeypatch.setattr(_witness, "MOST_PAGES", 3)
    async with listing([page("1", more=True), page("2", more=True), page("3", more=True)]) as (transport, heard):
        with pytest.raises(UnexpectedReply, match="has_more"):
            _ = [voice async for voice in list_voices(transport, "a", cloned=True)]
    assert len(heard) == 3


async def test_an_account_is_read_from_the_id() -> None:
    """Where no account was named, a wrapped id tells it."""
    async with listing([page("user:1-minimax:7-audio:9")]) as (transport, _):
        assert [voice.account async for voice in list_voices(transport, None, cloned=True)] == ["7"]


# --- the baseline -----------------------------------------------------------------------------------------------------


@virtual
async def test_the_baseline_is_taken_once() -> None:
    """However many clones start at once, the account is listed once, and all of them wait for that."""
    sandbox = Sandbox()
    sandbox.add_voice("Ann")
    sandbox.fail("voices", Fault.delay(3))
    async with looking(sandbox) as (witness, _):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(witness.take_baseline, sandbox.accounts[0])
        assert anyio.current_time() >= 3
        evidence = evidence_of(witness, sandbox.accounts[0])
    assert (sandbox.count("voices"), evidence.has_baseline) == (1, True)


@virtual
@pytest.mark.parametrize("fault", [Fault.status(400), Fault.status(500), Fault.hang(made=False)])
async def test_no_baseline_is_no_reason_to_wait(fault: Fault) -> None:
    """An account that cannot be listed has none, and its clones go on within seconds."""
    sandbox = Sandbox()
    sandbox.fail("voices", fault)
    async with looking(sandbox) as (witness, _):
        await witness.take_baseline(sandbox.accounts[0])
        assert anyio.current_time() <= BASELINE_TIMEOUT_S
        await witness.take_baseline(sandbox.accounts[0])
        assert not evidence_of(witness, sandbox.accounts[0]).has_baseline


@virtual
async def test_a_cancelled_baseline_holds_up_nobody() -> None:
    """Where the task that lists is cancelled, those who wait for it go on."""
    sandbox = Sandbox()
    sandbox.fail("voices", Fault.hang(made=False), times=None)
    async with looking(sandbox) as (witness, _), anyio.create_task_group() as tasks:
        with anyio.move_on_after(1):
            tasks.start_soon(anyio.sleep, 0)
            async with anyio.create_task_group() as inner:
                inner.start_soon(witness.take_baseline, sandbox.accounts[0])
        await witness.take_baseline(sandbox.accounts[0])
        assert anyio.current_time() == pytest.approx(1)


@virtual
async def test_what_the_fleet_knows_goes_before_a_list_of_our_own() -> None:
    """A baseline that is replaced while it is being taken stays replaced, and looks under way go by the new one."""
    sandbox = Sandbox()
    account = sandbox.accounts[0]
    sandbox.fail("voices", Fault.delay(3), times=1)
    async with looking(sandbox) as (witness, _), anyio.create_task_group() as tasks:
        mine = sandbox.add_voice("Ann")
        tasks.start_soon(witness.take_baseline, account)
        await anyio.sleep(1)
        evidence = evidence_of(witness, account)
        ends: list[Any] = []

        async def look() -> None:
            ends.append((await conclude(witness, account, evidence))[1])

        tasks.start_soon(look)
        await anyio.sleep(1)
        witness.replace(account, Ledger(taken=frozenset(), has_baseline=False))
        await witness.take_baseline(account)
        witness.claim(account, VoiceInfo(voice_id=mine.voice_id))
        await anyio.sleep(100)
        assert [type(end) for end in ends] == [Absent]
        assert not evidence_of(witness, account).has_baseline


# --- the clock --------------------------------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("skew_s", [-7200.0, 0.0, 7200.0])
async def test_the_moment_of_sending_is_told_by_the_servers_clock(skew_s: float) -> None:
    """However wrong one of the clocks is, `create_time` is compared with the clock that wrote it."""
    sandbox = Sandbox(epoch=NOW, clock_skew_s=skew_s)
    async with looking(sandbox) as (witness, transport):
        blind = witness.evidence("a", "Ann", anyio.current_time(), NOW, 75.0)
        await anyio.sleep(100)
        _ = [voice async for voice in list_voices(transport, sandbox.accounts[0], cloned=True)]
        evidence = witness.evidence("a", "Ann", anyio.current_time(), NOW + timedelta(seconds=5000), 75.0)
    theirs = (NOW + timedelta(seconds=100 + skew_s)).timestamp()
    assert blind.sent_at_ms == pytest.approx(NOW.timestamp() * 1000)
    assert blind.clock_tolerance_s > evidence.clock_tolerance_s
    assert evidence.sent_at_ms == pytest.approx(theirs * 1000, abs=1500)


# --- looking ----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_voice_that_turns_up_is_found() -> None:
    """The first voice of the name that was not there before is the job's."""
    sandbox = Sandbox()
    old = sandbox.add_voice("Ann")
    account = sandbox.accounts[0]
    async with looking(sandbox) as (witness, _):
        await witness.take_baseline(account)
        evidence = evidence_of(witness, account)
        async with anyio.create_task_group() as tasks:

            async def make() -> None:
                await anyio.sleep(18)
                sandbox.add_voice("Ann")

            tasks.start_soon(make)
            looks, end = await conclude(witness, account, evidence)
    assert isinstance(end, Found)
    assert end.voice.voice_id not in {"", old.voice_id}
    assert (len(looks), end.others) == (3, ())


@virtual
async def test_a_claimed_voice_is_another_jobs() -> None:
    """What one job has adopted, no other can."""
    sandbox = Sandbox()
    account = sandbox.accounts[0]
    async with looking(sandbox) as (witness, _):
        await witness.take_baseline(account)
        evidence = evidence_of(witness, account)
        mine = sandbox.add_voice("Ann")
        witness.claim(account, VoiceInfo(voice_id=mine.voice_id))
        _, end = await conclude(witness, account, evidence)
        assert isinstance(end, Absent)
        assert anyio.current_time() >= 75


@virtual
@pytest.mark.parametrize("is_nameless", [True, False])
async def test_a_nameless_account_may_be_any_of_the_others(is_nameless: bool) -> None:
    """What a job of the one has got, no job of the other can; what was merely there when it was listed is no claim."""
    sandbox = Sandbox()
    account = sandbox.accounts[0]
    one, other = (ANY_ACCOUNT, account) if is_nameless else (account, ANY_ACCOUNT)
    async with looking(sandbox) as (witness, _):
        await witness.take_baseline(other)
        evidence = evidence_of(witness, other)
        lost = sandbox.add_voice("Ann")
        await witness.take_baseline(one)
        witness.claim(one, VoiceInfo(voice_id=sandbox.add_voice("Ann").voice_id))
        _, end = await conclude(witness, other, evidence)
        assert isinstance(end, Found)
        assert (end.voice.voice_id, end.others) == (lost.voice_id, ())


@pytest.mark.slow  # real time, as a socket is involved
async def test_a_voice_that_is_listed_before_it_has_an_id_is_not_absent() -> None:
    """It can be neither adopted nor denied; should it never get one, nobody can tell."""
    async with listing([{"voice_list": [{"voice_name": "Ann"}, {"voice_id": "1", "voice_name": "Ada"}]}]) as (
        transport,
        _,
    ):
        witness = Witness(transport, MemoryStore())
        await witness.take_baseline("a")
        evidence = witness.evidence("a", "Ann", anyio.current_time(), datetime.now(UTC), 0.1)
        _, end = await conclude(witness, "a", evidence)
    assert isinstance(end, Unclear)
    assert "has no voice_id" in end.reason


@virtual
async def test_a_list_that_is_refused_is_unclear_at_once() -> None:
    """Asking again is pointless where the remote will not say."""
    sandbox = Sandbox()
    sandbox.fail("voices", Fault.status(403), times=None)
    async with looking(sandbox) as (witness, _):
        looks, end = await conclude(witness, sandbox.accounts[0], evidence_of(witness, sandbox.accounts[0]))
    assert isinstance(end, Unclear)
    assert len(looks) == 1


@virtual
@pytest.mark.parametrize("fault", [Fault.status(502), Fault.rate_limited(), Fault.bad_json(made=False)])
async def test_a_list_that_fails_is_asked_for_again(fault: Fault) -> None:
    """A remote that fails to answer is asked in the rhythm of looking, and counts as neither found nor absent."""
    sandbox = Sandbox()
    account = sandbox.accounts[0]
    async with looking(sandbox) as (witness, _):
        rule = sandbox.fail("voices", fault, times=3)
        evidence = evidence_of(witness, account)
        sandbox.add_voice("Ann")
        looks, end = await conclude(witness, account, evidence)
        assert isinstance(end, Found)
        assert (len(looks), rule.hits) == (4, 3)


@virtual
async def test_a_list_that_always_fails_is_unclear_in_the_end() -> None:
    """Nobody looks for ever."""
    sandbox = Sandbox()
    sandbox.fail("voices", Fault.status(500), times=None)
    async with looking(sandbox) as (witness, _):
        _, end = await conclude(witness, sandbox.accounts[0], evidence_of(witness, sandbox.accounts[0]))
        assert isinstance(end, Unclear)
        assert 75 <= anyio.current_time() <= 150


async def test_the_transport_may_not_repeat_what_the_witness_does() -> None:
    """A failing list is asked for once a look; `voices` for users is asked for four times."""
    async with listing([{"error": "no"}]) as (transport, heard):
        with pytest.raises(ServerError):
            _ = [voice async for voice in list_voices(transport, None, cloned=True, tries=1)]
    assert len(heard) == 1
