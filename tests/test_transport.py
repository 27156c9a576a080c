"""What leaves and what comes back: one call in, one value out, whatever the wire does."""

from __future__ import annotations

import copy
import gc
import io
import json
import logging
import pickle
import socket
import traceback
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from harness import TOKEN, HangUp, Heard, Say, both, closed_port, serving, shown, virtual, virtually_asyncio

from useapi_voice import AuthenticationError, ConfigurationError, RateLimited, ServerError, UseapiVoiceError, _wire
from useapi_voice import _transport as room
from useapi_voice._endpoints import AUDIO, SPEECH, Call, Generation, accounts, config, equity
from useapi_voice._errors import SampleChanged
from useapi_voice._replies import NoReply, Reply
from useapi_voice._transport import (
    LARGEST_REPLY_BYTES,
    Body,
    GenerationChoice,
    Secret,
    Transport,
    check_base_url,
    check_token,
)
from useapi_voice._wire import PoolLine
from useapi_voice.sandbox import Fault, Sandbox

PING = Call("ping", "GET", "/ping")
POST = Call("post", "POST", "/post", body={"a": "b"})


@asynccontextmanager
async def transport(
    base_url: str, api: str = "auto", http_client: httpx.AsyncClient | None = None, **more: Any
) -> AsyncIterator[Transport]:
    """Open a transport."""
    made = Transport(check_token(Secret(TOKEN)), base_url, GenerationChoice.of(api), http_client, **more)
    try:
        yield made
    finally:
        await made.aclose()


@asynccontextmanager
async def talking(answer: Callable[[Heard], Say], api: str = "auto") -> AsyncIterator[tuple[Transport, list[Heard]]]:
    """Open a transport to a server that answers by `answer`, and list what it hears."""
    heard: list[Heard] = []

    async def handler(request: Heard) -> Say:
        heard.append(request)
        return answer(request)

    async with serving(handler) as base_url, transport(base_url, api) as made:
        yield made, heard


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", [None, "", "  ", "user:1-ä", "two words", "user:1-a\nb", "user:1-\x00", 7, b"user:1-a"]
)
def test_a_token_that_cannot_be_used_is_refused_without_being_quoted(token: Any) -> None:
    """The message says what to do; neither it nor a traceback with all locals shows the token."""
    with pytest.raises(ConfigurationError, match="token") as raised:
        check_token(Secret(token))
    if isinstance(token, str) and token.strip():
        assert token not in shown(raised.value)
        assert repr(token)[1:-1] not in shown(raised.value)


def test_a_token_is_trimmed() -> None:
    """A newline at the end of a pasted token is no part of it."""
    request = httpx.Request("GET", "https://example.com")
    check_token(Secret(f" {TOKEN}\n")).sign(request)
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_secret_stays_in() -> None:
    """It cannot be printed, formatted, pickled or copied by accident."""
    secret = Secret(TOKEN)
    assert TOKEN not in f"{secret} {secret!r} {[secret]}"
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not to be pickled"):
            act(secret)


@pytest.mark.parametrize(
    ("base_url", "kept"),
    [
        ("https://api.useapi.net/v1/minimax", "https://api.useapi.net/v1/minimax"),
        ("https://api.useapi.net/v1/minimax//", "https://api.useapi.net/v1/minimax"),
        ("http://127.0.0.1:80/x", "http://127.0.0.1/x"),
        ("http://127.9.9.9:8000", "http://127.9.9.9:8000"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://api.localhost", "http://api.localhost"),
    ],
)
def test_good_base_urls(base_url: str, kept: str) -> None:
    """Https to anywhere, plain http to this machine only; a slash at the end goes."""
    assert check_base_url(base_url) == kept


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        ("http://example.com", "plain http would send the token to example.com"),
        ("http://10.0.0.1", "plain http"),
        ("http://localhost.example.com", "plain http"),
        ("ftp://example.com", "must begin with https://"),
        ("api.useapi.net", "must begin with https://"),
        ("https://", "must begin with https://"),
        ("", "must begin with https://"),
        ("https://user:secret@example.com", "must not hold credentials"),
        ("https://example.com?a=b", "must not hold credentials, a query"),
        ("https://example.com#a", "must not hold credentials, a query or a fragment"),
        ("https://exa mple.com:port", "is not a URL"),
        (7, "must be a str, not int"),
    ],
)
def test_bad_base_urls(base_url: Any, says: str) -> None:
    """Each is refused with one sentence, which does not quote credentials."""
    with pytest.raises(ConfigurationError, match=says) as raised:
        check_base_url(base_url)
    assert "secret" not in str(raised.value)


def test_unknown_generation() -> None:
    """`api` is one of three words."""
    with pytest.raises(ConfigurationError, match="'video'"):
        GenerationChoice.of("video")
    assert GenerationChoice.of("audio") == GenerationChoice(AUDIO, is_settled=True)
    assert GenerationChoice.of("speech") == GenerationChoice(SPEECH, is_settled=True)


# --- one call ---------------------------------------------------------------------------------------------------------


@both
async def test_a_call_carries_the_token_and_its_fields() -> None:
    """A call leaves with its method, path, body and token; its answer comes back whole, header names in lower case."""
    answer = Say(201, {"fine": True}, (("X-Thing", "1"), ("Date", "Mon, 24 Aug 2026 10:00:00 GMT")))
    async with talking(lambda _: answer) as (made, heard):
        reply = await made.send(POST)
    assert isinstance(reply, Reply)
    assert (reply.status, json.loads(reply.body), reply.headers["x-thing"]) == (201, {"fine": True}, "1")
    [request] = heard
    assert (request.method, request.path, request.fields) == ("POST", "/post", {"a": "b"})
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("useapi-voice/")


async def test_a_call_without_a_body_sends_none() -> None:
    """A GET has neither a body nor a content type."""
    async with talking(lambda _: Say()) as (made, heard):
        assert isinstance(await made.send(Call("x", "GET", "/x", (("account", "a b"),))), Reply)
    assert heard[0].query == "account=a+b"
    assert "content-type" not in heard[0].headers
    assert heard[0].body == b""


async def test_a_closed_port_proves_that_nothing_was_sent() -> None:
    """A connection that is refused is `NoReply` with `was_sent=False`, and says which host refused it."""
    port = closed_port()
    async with transport(f"http://127.0.0.1:{port}/v1/minimax") as made:
        answer = await made.send(PING)
    assert answer == NoReply(was_sent=False, reason=answer.reason)
    assert "ConnectError" in answer.reason
    assert f"(127.0.0.1:{port})" in answer.reason


async def test_a_connection_that_is_dropped_proves_nothing() -> None:
    """A request that left and got no answer is `NoReply` with `was_sent=True`."""

    async def hang_up(_: Heard) -> Say:
        raise HangUp

    async with serving(hang_up) as base_url, transport(base_url) as made:
        answer = await made.send(PING)
    assert isinstance(answer, NoReply)
    assert answer.was_sent
    assert "RemoteProtocolError" in answer.reason


async def test_a_call_that_cannot_be_written_was_not_sent() -> None:
    """An account name that no URL can hold is an answer like another, not an exception."""
    async with talking(lambda _: Say()) as (made, heard):
        answer = await made.send(Call("x", "GET", "/x", (("account", "\ud800"),)))
    assert isinstance(answer, NoReply)
    assert not answer.was_sent
    assert heard == []


async def test_whatever_a_custom_transport_raises_becomes_a_value() -> None:
    """A caller's own client may raise anything; the call ends as `NoReply` all the same, in words."""

    class Odd(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise KeyError

    async with (
        httpx.AsyncClient(transport=Odd()) as http,
        transport("https://sandbox.invalid", http_client=http) as made,
    ):
        assert await made.send(PING) == NoReply(was_sent=True, reason="KeyError")


async def test_an_endless_answer_is_cut_off() -> None:
    """An answer larger than this API ever gives is not read into memory."""

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for _ in range(LARGEST_REPLY_BYTES // 2**20 + 1):
                yield bytes(2**20)

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Endless())

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http,
        transport("https://sandbox.invalid", http_client=http) as made,
    ):
        reply = await made.send(PING)
    assert isinstance(reply, NoReply)
    assert (reply.was_sent, reply.status) == (True, 200)
    assert "larger than" in reply.reason


@virtually_asyncio  # on trio, httpx leaves a generator of its own to the collector, which warns
async def test_an_answer_that_drips_is_bounded() -> None:
    """Each piece comes in time, but the whole does not: the call ends a little after its read timeout."""
    sandbox = Sandbox()
    sandbox.fail("accounts", Fault.drip(1.0))
    async with asking(sandbox) as made:
        begun_t = anyio.current_time()
        answer = await made.send(accounts(), read_timeout_s=10.0)
        assert answer == NoReply(was_sent=True, reason="ReplyTooSlow: the answer came too slowly", status=200)
        assert 15 <= anyio.current_time() - begun_t <= 17


@virtual
async def test_the_outermost_bound_ends_what_httpx_does_not() -> None:
    """A server that never answers, behind a client that ignores timeouts, is given up."""

    class Deaf(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await anyio.sleep(10_000)
            raise AssertionError

    async with (
        httpx.AsyncClient(transport=Deaf()) as http,
        transport("https://sandbox.invalid", http_client=http) as made,
    ):
        answer = await made.send(PING, read_timeout_s=20.0)
    assert answer == NoReply(was_sent=True, reason="no whole answer within 20 s")
    assert anyio.current_time() < 1000


async def test_redirects_are_not_followed() -> None:
    """A redirect is an answer; the token goes nowhere else, even with a client that follows redirects by itself."""
    elsewhere: list[Heard] = []

    async def other(request: Heard) -> Say:
        elsewhere.append(request)
        return Say()

    async with serving(other) as target:

        async def redirect(_: Heard) -> Say:
            return Say(307, headers=(("location", f"{target}/ping"),))

        async with (
            serving(redirect) as base_url,
            httpx.AsyncClient(follow_redirects=True) as http,
            transport(base_url, http_client=http) as made,
        ):
            reply = await made.send(POST)
    assert isinstance(reply, Reply)
    assert reply.status == 307
    assert elsewhere == []


async def test_a_clients_own_settings_are_left_alone() -> None:
    """An injected client keeps its headers, auth, timeout and connections; our token stands in our requests only."""
    heard: list[Heard] = []

    async def handler(request: Heard) -> Say:
        heard.append(request)
        return Say()

    async with (
        serving(handler) as base_url,
        httpx.AsyncClient(
            auth=("me", "mine"), headers={"X-Mine": "1", "Authorization": "Basic own"}, timeout=3.0
        ) as http,
    ):
        async with transport(base_url, http_client=http) as made:
            await made.send(PING)
        await http.get(f"{base_url}/own")
        assert not http.is_closed
        assert (http.headers["Authorization"], http.timeout) == ("Basic own", httpx.Timeout(3.0))
        assert isinstance(http.auth, httpx.BasicAuth)
    ours, own = heard
    assert ours.headers["authorization"] == f"Bearer {TOKEN}"
    assert ours.headers["x-mine"] == "1"
    assert own.headers["authorization"].startswith("Basic ")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
async def test_what_the_network_holds_back_is_not_delivered_late() -> None:
    """The system drops a request that it cannot deliver in time: its place may be another's by then."""
    async with Sandbox() as sandbox, transport(sandbox.base_url) as made:
        line = made._own.of(None)  # type: ignore[union-attr]
        url = f"{sandbox.base_url}/accounts"
        answer = await line.send(line.build("GET", url, (), None, {}, httpx.Timeout(5)))
        wire = answer.extensions["network_stream"].get_extra_info("socket")
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * _wire.DELIVERY_S
        await answer.aclose()


async def test_own_connections_are_closed() -> None:
    """What the transport opened it closes; no socket is left to the garbage collector, and none is opened later."""
    async with talking(lambda _: Say()) as (made, heard):
        for account in (None, "1", "1"):
            await made.send(replace(PING, account=account))
        pools = [line._transport._pool for line in made._own._lines.values()]  # type: ignore[union-attr,attr-defined]
        assert [len(pool.connections) for pool in pools] == [1, 1]
    assert [pool.connections for pool in pools] == [[], []]
    late = await made.send(replace(PING, account="2"))
    assert isinstance(late, NoReply)
    assert not late.was_sent
    assert len(heard) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()


async def test_a_proxy_of_the_environment_is_used_for_https(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for a tunnel, and sees no token; a host that the environment exempts goes without it."""
    heard: list[Heard] = []

    async def refuse(request: Heard) -> Say:
        heard.append(request)
        return Say(403)

    async with serving(refuse) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.removesuffix("/v1/minimax"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.2")
        async with transport("https://sandbox.invalid") as made, transport("https://127.0.0.2:1") as exempt:
            answers = [await made.send(PING), await exempt.send(PING)]
    assert [isinstance(answer, NoReply) and answer.was_sent for answer in answers] == [False, False]
    assert [request.method for request in heard] == ["CONNECT"]
    assert TOKEN not in repr(heard)


async def test_https_goes_straight_where_no_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a pool of connections, with no client around it."""
    monkeypatch.setattr("useapi_voice._wire.getproxies", dict)
    async with transport(f"https://127.0.0.1:{closed_port()}") as made:
        answer = await made.send(PING)
        [line] = made._own._lines.values()  # type: ignore[union-attr]
    assert isinstance(answer, NoReply)
    assert not answer.was_sent
    assert isinstance(line, PoolLine)


async def test_a_proxy_of_the_environment_never_sees_a_loopback_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http is for this machine; a proxy elsewhere would read the token."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    async with talking(lambda _: Say()) as (made, heard):
        assert isinstance(await made.send(PING), Reply)
    assert len(heard) == 1


async def test_the_token_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Not even with every logger at its lowest level."""
    caplog.set_level(logging.DEBUG)
    async with talking(lambda _: Say(401, {"error": "Unauthorized"})) as (made, _):
        with pytest.raises(AuthenticationError) as raised:
            await made.ask(lambda _: PING)
    assert TOKEN not in shown(raised.value)
    ours = [record.getMessage() for record in caplog.records if record.name == "useapi_voice"]
    assert TOKEN not in "\n".join(ours)


# --- raw bodies -------------------------------------------------------------------------------------------------------


class Raw:
    """A body whose readings are counted, and that may break."""

    def __init__(self, *chunks: bytes, breaks: bool = False) -> None:
        self.given, self.breaks = chunks, breaks
        self.opened = self.closed = 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        self.opened += 1
        try:
            for chunk in self.given:
                yield chunk
            if self.breaks:
                raise SampleChanged("x.wav has changed")
        finally:
            self.closed += 1

    @property
    def body(self) -> Body:
        return Body(self.chunks, sum(map(len, self.given)) + self.breaks)


UPLOAD = Call("upload", "POST", "/up", content_type="audio/wav")


@pytest.mark.slow  # two backoffs
@both
async def test_a_body_is_sent_whole_every_time() -> None:
    """Each try opens the source anew; a server that drops the first three gets the same bytes the fourth time."""
    raw = Raw(b"abc", b"defg")
    bodies: list[tuple[bytes, str | None]] = []

    async def handler(request: Heard) -> Say:
        bodies.append((request.body, request.headers.get("content-length")))
        if len(bodies) == 1:
            raise HangUp
        return Say(503 if len(bodies) == 2 else 200, {"fileID": "f"})

    async with serving(handler) as base_url, transport(base_url) as made:
        made_of = await made.ask(lambda _: UPLOAD, body=raw.body)
    assert made_of == {"fileID": "f"}
    assert bodies == [(b"abcdefg", "7")] * 3
    assert (raw.opened, raw.closed) == (3, 3)


async def test_a_body_is_closed_when_the_server_answers_early() -> None:
    """A source that was read half way is closed at once, not by the garbage collector."""
    raw = Raw(*[bytes(65536)] * 400)
    async with (
        httpx.AsyncClient(transport=Refuses()) as http,
        transport("https://sandbox.invalid", http_client=http) as made,
    ):
        reply = await made.send(UPLOAD, body=raw.body)
    assert isinstance(reply, Reply)
    assert reply.status == 413
    assert (raw.opened, raw.closed) == (1, 1)


class Refuses(httpx.AsyncBaseTransport):
    """Reads one chunk, and answers."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for _ in request.stream:
            break
        return httpx.Response(413)


async def test_a_changed_sample_is_told_without_the_frames_that_hold_the_token() -> None:
    """`SampleChanged` comes out of a call, as it is no fault of the remote; its traceback has no frame of httpcore."""
    raw = Raw(b"abc", breaks=True)
    async with talking(lambda _: Say()) as (made, heard):
        with pytest.raises(SampleChanged, match="has changed") as raised:
            await made.ask(lambda _: UPLOAD, body=raw.body)
    assert raw.closed == 1
    assert heard == []
    assert TOKEN not in shown(raised.value)
    assert raised.value.__context__ is None
    # Their locals hold the header, for whoever looks deeper than a repr.
    files = [frame.filename for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert not any("httpcore" in file or "httpx" in file for file in files)


# --- asking until it succeeds -----------------------------------------------------------------------------------------


@asynccontextmanager
async def asking(sandbox: Sandbox, api: str = "audio") -> AsyncIterator[Transport]:
    """Open a transport on a sandbox in process."""
    sandbox.now()
    async with (
        httpx.AsyncClient(transport=sandbox.transport()) as http,
        transport(sandbox.base_url, api, http) as made,
    ):
        yield made


@virtual
@pytest.mark.parametrize("form", ["seconds", "date", "body"])
async def test_429_is_waited_out(form: Any) -> None:
    """A call that may be repeated waits exactly as long as it is told, then goes again."""
    sandbox = Sandbox()
    sandbox.fail("accounts", Fault.rate_limited(33, form))
    async with asking(sandbox) as made:
        begun_t = anyio.current_time()
        assert sandbox.accounts[0] in await made.ask(lambda _: accounts())
        # A date has whole seconds, and rounds up.
        assert 33 <= anyio.current_time() - begun_t < 35
    assert sandbox.count("accounts") == 2


@virtual
async def test_429_without_advice_waits_20_s() -> None:
    """So do the vendor's own clients."""
    sandbox = Sandbox()
    sandbox.fail("accounts", Fault.rate_limited())
    async with asking(sandbox) as made:
        begun_t = anyio.current_time()
        await made.ask(lambda _: accounts())
        assert anyio.current_time() - begun_t == pytest.approx(20)


@virtual
async def test_a_wait_that_is_too_long_is_an_error_at_once() -> None:
    """The caller is told `retry_after_s`; nobody waits an hour, and nobody comes too early."""
    sandbox = Sandbox()
    sandbox.fail("accounts", Fault.rate_limited(3600))
    async with asking(sandbox) as made:
        with pytest.raises(RateLimited) as raised:
            await made.ask(lambda _: accounts())
        assert anyio.current_time() < 1
    assert raised.value.retry_after_s == pytest.approx(3600)
    assert raised.value.safe_to_retry


@virtual
async def test_5xx_is_repeated_but_not_for_ever() -> None:
    """Four times at the most, a little later each time, never earlier than told; then `ServerError`."""
    sandbox = Sandbox()
    sandbox.fail("accounts", Fault.status(503, headers={"retry-after": "7"}), times=1)
    sandbox.fail("accounts", Fault.html(502), times=None)
    async with asking(sandbox) as made:
        with pytest.raises(ServerError) as raised:
            await made.ask(lambda _: accounts())
        assert 8 < anyio.current_time() < 14
    assert raised.value.status_code == 502
    assert sandbox.count("accounts") == 4


@virtual
async def test_a_refusal_is_not_repeated() -> None:
    """What was refused once will be refused again."""
    sandbox = Sandbox(accounts=2)
    async with asking(sandbox) as made:
        with pytest.raises(UseapiVoiceError, match="account is required") as raised:
            await made.ask(config)
    assert sandbox.count("config") == 1
    assert raised.value.__context__ is None


# --- two generations --------------------------------------------------------------------------------------------------


GONE = [Say(404), Say(405), Say(410), Say(400, {"error": "audio/config was decommissioned"})]


def only(prefix: str, gone: Say) -> Callable[[Heard], Say]:
    """Serve the paths that begin so."""
    return lambda request: Say(200, {"path": request.path}) if request.path.startswith(prefix) else gone


@pytest.mark.parametrize("gone", GONE)
async def test_auto_goes_on_with_speech(gone: Say, caplog: pytest.LogCaptureFixture) -> None:
    """Where the audio route proves to be gone the speech route is used, from then on, and this is told once."""
    told: list[str] = []
    async with talking(only("/speech", gone)) as (made, heard):
        made._on_switch = lambda generation: told.append(generation.name)
        for _ in range(3):
            assert await made.ask(config) == {"path": "/speech/config/"}
    assert [request.path for request in heard] == ["/audio/config/", *["/speech/config/"] * 3]
    assert told == ["speech"]
    assert caplog.text.count("going on with the speech endpoints") == 1


async def test_both_gone_is_the_first_error() -> None:
    """Where neither is served the first answer counts, and nothing is settled: the server may be mended."""
    async with talking(lambda request: Say(404 if "audio" in request.path else 410, {"error": request.path})) as (
        made,
        _,
    ):
        for _ in range(2):
            with pytest.raises(UseapiVoiceError, match="/audio/config/") as raised:
                await made.ask(config)
            assert raised.value.status_code == 404  # type: ignore[attr-defined]
        assert made.generation is AUDIO


async def test_after_a_success_nothing_is_switched() -> None:
    """One call that succeeded proves that the generation is alive: a 404 after that is only a 404."""
    seen: Counter[str] = Counter()

    def answer(request: Heard) -> Say:
        seen[request.path] += 1
        return Say() if seen[request.path] == 1 else Say(404, {"error": "Not found"})

    async with talking(answer) as (made, heard):
        await made.ask(config)
        with pytest.raises(UseapiVoiceError):
            await made.ask(config)
    assert [request.path for request in heard] == ["/audio/config/"] * 2


@pytest.mark.parametrize("shared", [accounts, equity])
async def test_a_shared_route_proves_nothing_of_a_generation(shared: Callable[[], Call]) -> None:
    """The list of accounts serves both generations, and equity is speech's own: neither settles anything."""
    told = [Say(404), Say(), Say(404), Say()]

    def answer(request: Heard) -> Say:
        if "config" in request.path:
            return Say() if request.path.startswith("/speech") else Say(404)
        return told.pop(0)

    async with talking(answer) as (made, heard):
        with pytest.raises(UseapiVoiceError):
            await made.ask(lambda _: shared())
        assert (len(heard), made.generation) == (1, AUDIO)
        await made.ask(lambda _: shared())
        assert made.generation is AUDIO
        await made.ask(config)
        assert made.generation is SPEECH


@pytest.mark.parametrize("api", ["audio", "speech"])
async def test_a_chosen_generation_stays(api: str) -> None:
    """What the user chose is used, gone or not."""
    async with talking(lambda _: Say(404), api) as (made, heard):
        with pytest.raises(UseapiVoiceError):
            await made.ask(config)
    assert [request.path for request in heard] == [f"/{api}/config/"]


async def test_an_account_that_is_unknown_is_no_route_that_is_gone() -> None:
    """A 404 about an account proves that the route is alive; a server that fails proves nothing."""
    answers = [Say(404, {"error": "MiniMax account 7 not found"}), Say(500), Say(401)]
    async with talking(lambda _: answers.pop(0)) as (made, heard):
        for _ in range(3):
            await made.route(config)
    assert {request.path for request in heard} == {"/audio/config/"}


async def test_a_lost_second_answer_settles_nothing() -> None:
    """If the speech route does not answer, nobody knows whether it is there."""

    async def handler(request: Heard) -> Say:
        if request.path.startswith("/speech"):
            raise HangUp
        return Say(404)

    async with serving(handler) as base_url, transport(base_url) as made:
        assert isinstance(await made.route(config), NoReply)
        assert made.generation is AUDIO


async def test_calls_at_once_switch_once() -> None:
    """Many calls that meet a route that is gone all go on with the other, and one of them tells."""
    told: list[Generation] = []
    async with talking(only("/speech", Say(404))) as (made, heard):
        made._on_switch = told.append
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(made.ask, config)
    assert told == [SPEECH]
    assert Counter(request.path for request in heard) == {"/audio/config/": 20, "/speech/config/": 20}


async def test_a_success_meanwhile_settles_for_the_others() -> None:
    """While one call waits for its 404 another succeeds on the same generation: the 404 is only a 404 then."""
    proceed = anyio.Event()

    async def handler(request: Heard) -> Say:
        if "account=late" in request.query:
            await proceed.wait()
            return Say(404, {"error": "Not found"})
        return Say()

    async with serving(handler) as base_url, transport(base_url) as made, anyio.create_task_group() as tasks:
        answers: list[Any] = []

        async def late() -> None:
            answers.append(await made.route(lambda generation: config(generation, "late")))

        tasks.start_soon(late)
        await made.ask(config)
        proceed.set()
    assert answers[0].status == 404
    assert made.generation is AUDIO


def test_the_room_says_what_it_is_for() -> None:
    """Errors of the transport are made in words without an empty tail."""
    assert room._in_words(httpx.ReadTimeout("")) == "ReadTimeout"
    assert room._in_words(io.UnsupportedOperation("x")) == "UnsupportedOperation: x"
