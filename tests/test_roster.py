"""Which accounts there are: named, asked for once, or none where the remote has no such list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from harness import TOKEN, Heard, Say, ask, closed_port, error_of, in_process, serving, virtual

from useapi_voice import (
    Account,
    AccountUnavailable,
    AuthenticationError,
    RateLimited,
    ServerError,
    SubscriptionError,
    VoiceClient,
)
from useapi_voice._roster import Roster
from useapi_voice._transport import GenerationChoice, Secret, Transport
from useapi_voice.sandbox import Fault, Sandbox


@asynccontextmanager
async def roster_of(sandbox: Sandbox, *named: str) -> AsyncIterator[Roster]:
    """Give the roster of a sandbox in process."""
    sandbox.now()
    async with httpx.AsyncClient(transport=sandbox.transport()) as http:
        transport = Transport(Secret(TOKEN), sandbox.base_url, GenerationChoice.of("auto"), http)
        yield Roster(transport, named or None)


async def test_named_accounts_need_no_asking() -> None:
    """What the user named is used as it is."""
    sandbox = Sandbox()
    async with roster_of(sandbox, "x", "y") as roster:
        assert roster.known == await roster.all() == (Account(account="x"), Account(account="y"))
    assert sandbox.requests.total() == 0


@virtual
async def test_the_list_is_asked_for_once() -> None:
    """However many ask at once; and the login that the remote lists is not kept."""
    sandbox = Sandbox(accounts=["a", "b"], without_audio=["b"])
    async with roster_of(sandbox) as roster:
        assert roster.known is None
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(roster.all)
        assert sandbox.count("accounts") == 1
        assert [(one.account, one.usable) for one in await roster.all()] == [("a", True), ("b", False)]
        assert "jwt" not in repr(roster.known)
        sandbox.break_account("a", "login expired")
        assert [one.error for one in await roster.fetch()] == ["login expired", None]


@virtual
@pytest.mark.parametrize("fault", [Fault.status(404), Fault.status(400), Fault.status(200, [])])  # type: ignore[arg-type]
async def test_no_list_is_no_accounts(fault: Fault) -> None:
    """A server that offers nothing but clone-voice has no such list, and is not asked again."""
    sandbox = Sandbox()
    sandbox.fail("accounts", fault)
    async with roster_of(sandbox) as roster:
        assert await roster.all() == roster.known == ()
        assert await roster.all() == ()
    assert sandbox.count("accounts") == 1


@virtual
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.status(401), AuthenticationError),
        (Fault.status(402), SubscriptionError),
        (Fault.rate_limited(900), RateLimited),
        (Fault.status(500), ServerError),
        (Fault.html(524), ServerError),
    ],
)
async def test_a_list_that_fails_is_no_answer(fault: Fault, error: type[Exception]) -> None:
    """A token that is refused, and a remote that fails, say nothing of accounts: the next to ask asks anew."""
    sandbox = Sandbox()
    rule = sandbox.fail("accounts", fault, times=None)
    async with roster_of(sandbox) as roster:
        with pytest.raises(error):
            await roster.all()
        assert roster.known is None
        rule.remove()
        assert len(await roster.all()) == 1


@virtual
async def test_a_remote_out_of_reach_is_waited_for() -> None:
    """Jobs that any account may serve wait `unreachable_after_s` for the list; back in time, they are cloned."""
    sandbox = Sandbox(clone_s=10)
    down = True

    class Wire(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if down:
                raise httpx.ConnectError("refused")
            return await sandbox.transport().handle_async_request(request)

    async with (
        httpx.AsyncClient(transport=Wire()) as http,
        VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http, unreachable_after_s=30) as client,
    ):
        lost = await client.submit(ask("Lost"))
        submitted_t = anyio.current_time()
        await anyio.sleep(20)
        kept = await client.submit(ask("Kept"))
        error = await error_of(lost)
        assert isinstance(error, ServerError)
        assert (error.safe_to_retry, error.voice_may_exist, error.attempts) == (True, False, 0)
        assert 30 <= anyio.current_time() - submitted_t < 45
        down = False
        assert (await kept).voice_name == "Kept"
        assert sandbox.count("accounts") == 1


@virtual
async def test_after_all_patience_is_lost_the_next_job_asks_anew() -> None:
    """A client whose jobs all ended for want of the list asks for it again with its next job."""
    sandbox = Sandbox(clone_s=10)
    rule = sandbox.fail("accounts", Fault.status(500), times=None)
    async with in_process(sandbox, unreachable_after_s=5) as client:
        assert isinstance(await error_of(await client.submit(ask())), ServerError)
        hits = rule.hits
        await anyio.sleep(100)
        assert rule.hits == hits
        rule.remove()
        await client.clone(ask())


@pytest.mark.slow  # a real socket, refused again and again
async def test_a_closed_port_ends_in_server_error() -> None:
    """Nothing listens: every job is told after `unreachable_after_s`, whether its account is known or not."""
    base_url = f"http://127.0.0.1:{closed_port()}"
    async with VoiceClient(TOKEN, base_url=base_url, accounts=["a"], unreachable_after_s=0.3) as client:
        jobs = [
            await client.submit(ask(name, files=[fid])) for name, fid in (("A", "f"), ("B", "user:1-minimax:a-file:1"))
        ]
        for job in jobs:
            error = await error_of(job)
            assert isinstance(error, ServerError)
            assert (error.safe_to_retry, error.attempts, error.status_code) == (True, 0, None)
            assert "Connect" in str(error)


@virtual
async def test_a_refused_token_stops_everything() -> None:
    """401 for the list ends all that waits, and the next job asks again: the operator may have mended it."""
    sandbox = Sandbox(clone_s=10)
    async with in_process(sandbox) as client:
        client._queue._intake._languages = frozenset()
        sandbox.fail("accounts", Fault.status(401))
        for error in [await error_of(job) for job in await client.submit_many([ask("A"), ask("B")])]:
            assert isinstance(error, AuthenticationError)
            assert not error.safe_to_retry
        await client.clone(ask("C"))


@virtual
async def test_accounts_without_audio_are_not_used() -> None:
    """Where no account supports audio, jobs end as `AccountUnavailable`; where one does, it serves all of them."""
    sandbox = Sandbox(accounts=["a", "b"], without_audio=["a", "b"])
    async with in_process(sandbox) as client:
        error = await error_of(await client.submit(ask()))
        assert isinstance(error, AccountUnavailable)
        assert "supports audio" in str(error)
        assert isinstance(await error_of(await client.submit(ask())), AccountUnavailable)
    sandbox = Sandbox(accounts=["a", "b"], without_audio=["a"], clone_s=5)
    async with in_process(sandbox) as client:
        assert {(await job).account for job in await client.submit_many([ask("A"), ask("B"), ask("C")])} == {"b"}


async def test_an_account_row_that_makes_no_sense_spoils_nothing() -> None:
    """Rows that are no accounts are left out; the client goes on with the others."""
    rows: dict[str, Any] = {"a": {"account": 7, "supportAudio": "?", "error": None}, "": {}, "b": "text", "c": {}}

    async def handler(heard: Heard) -> Say:
        return Say(200, rows)

    async with serving(handler) as base_url, VoiceClient(TOKEN, base_url=base_url) as client:
        assert [one.account for one in await client.accounts()] == ["a", "c"]
