"""
One `Call` in, one answer out, over one httpx client; no error of httpx leaves this room.

Failures come back as values: `NoReply` says whether anything may have reached the remote, which is all that matters to
a clone. It also keeps tracebacks of httpcore, whose locals hold the header with the token, from ever reaching a user's
log.

Requests must run in tasks that the library owns and are bounded by httpx's own timeouts: a caller's cancellation that
reached httpx would leave connections behind that nobody owns (httpcore issue 1093).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import httpx

from ._endpoints import AUDIO, SPEECH, Call, Generation
from ._errors import ConfigurationError, SampleChanged
from ._replies import (
    PACE_WAIT_S,
    Answer,
    Done,
    NoReply,
    NotSent,
    Refused,
    Reply,
    Scope,
    Unknown,
    error_from,
    interpret,
    route_is_gone,
    server_time,
)
from ._version import __version__
from ._wire import ClientLine, Line, OwnLines, headers_of

logger = logging.getLogger("useapi_voice")

CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 30.0
"""For every call but a clone: reads, deletes, and each stretch of an upload."""
LARGEST_REPLY_BYTES: Final = 16 * 1024 * 1024
"""600 built-in voices take about 500 kB; what is larger is not this API."""
LONGEST_WAIT_S: Final = 60.0
GRACE_S: Final = 5.0
"""How much later than httpx's own timeouts the outermost bound acts; it is for replies that come drop by drop."""


class HeldBack(Exception):
    """Raised by whoever is asked whether a request may leave: it must not, and nothing of it has left."""


_NOT_SENT = (
    HeldBack,
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


class Secret:
    """A token that cannot be printed, formatted or pickled by accident."""

    __slots__ = ("_kind", "_value")

    def __init__(self, value: str | None) -> None:
        self._value = value.strip() if isinstance(value, str) else ""
        self._kind = type(value).__name__

    def __repr__(self) -> str:
        return "Secret(…)"

    def fault(self) -> str | None:
        """Say what is wrong with the token, without quoting it."""
        if self._kind not in {"str", "NoneType"}:
            return f"token must be a str, not {self._kind}"
        if not self._value:
            return "no token: pass token=… or set USEAPI_TOKEN (see https://useapi.net/docs/start-here)"
        if self._value.lower().startswith("bearer "):
            return "the token begins with 'Bearer ': give what follows it, as the client adds that word itself"
        if not (self._value.isascii() and self._value.isprintable()) or " " in self._value:
            return "the token has characters that cannot stand in a header: copy it again, whole"
        return None

    def __reduce__(self) -> Any:
        raise TypeError("the token is not to be pickled; build the client anew from USEAPI_TOKEN")

    def sign(self, request: httpx.Request) -> None:
        """Put the token into this request's Authorization header."""
        request.headers["Authorization"] = f"Bearer {self._value}"


def check_token(secret: Secret) -> Secret:
    """
    Return the token if it can be used; it comes wrapped, so that it is no local of any frame that an error passes.

    Raises:
        ConfigurationError: There is none, or it cannot stand in a header. The message does not quote it.
    """
    fault = secret.fault()
    if fault is not None:
        raise ConfigurationError(fault)
    return secret


def check_base_url(base_url: str) -> str:
    """
    Return the base URL without a slash at its end.

    Raises:
        ConfigurationError: It is not an http(s) URL, is plain http to another machine, or holds credentials or a query.
    """
    try:
        url = httpx.URL(base_url)
    except TypeError:
        raise ConfigurationError(f"base_url must be a str, not {type(base_url).__name__}") from None
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"base_url is not a URL: {error}") from None
    if url.userinfo or url.query or url.fragment:
        raise ConfigurationError(
            "base_url must not hold credentials, a query or a fragment: give scheme, host and path"
        )
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigurationError(f"base_url must begin with https:// and name a host, not {base_url!r}")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise ConfigurationError(f"plain http would send the token to {url.host} unprotected: use https://")
    return str(url).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(slots=True)
class GenerationChoice:
    """
    Which generation of endpoints this client talks to; with `api="auto"` it changes at most once.

    Attributes:
        current: The one in use.
        is_settled: Whether it stays: chosen by the user, proven by a success, or changed once.
    """

    current: Generation
    is_settled: bool

    @classmethod
    def of(cls, api: str) -> GenerationChoice:
        """
        Read the `api` argument.

        Raises:
            ConfigurationError: It is not `auto`, `audio` or `speech`.
        """
        match api:
            case "auto":
                return cls(AUDIO, is_settled=False)
            case "audio":
                return cls(AUDIO, is_settled=True)
            case "speech":
                return cls(SPEECH, is_settled=True)
            case _:
                raise ConfigurationError(f'api must be "auto", "audio" or "speech", not {api!r}')


@dataclass(frozen=True, slots=True)
class Body:
    """
    A raw request body that can be sent again.

    Attributes:
        chunks: Opens the source anew and yields it.
        size_bytes: Its exact length.
    """

    chunks: Callable[[], AsyncGenerator[bytes, None]]
    size_bytes: int


class Transport:
    """
    Sends calls over one httpx client, its own or the caller's.

    Args:
        secret: The token.
        base_url: From `check_base_url`.
        choice: Which generation to use.
        http_client: A caller's client; it is neither changed nor closed.
        on_switch: Called once, when `api="auto"` goes on with the other generation.
    """

    def __init__(
        self,
        secret: Secret,
        base_url: str,
        choice: GenerationChoice,
        http_client: httpx.AsyncClient | None = None,
        on_switch: Callable[[Generation], None] = lambda generation: None,
    ) -> None:
        self._base_url = base_url
        self._choice = choice
        self._own = OwnLines(base_url, secret) if http_client is None else None
        self._given = None if http_client is None else ClientLine(http_client, secret)
        self._on_switch = on_switch
        self.server_epoch_s: float | None = None
        """What to add to loop time for the remote's clock, in epoch seconds; `None` before its first `Date`."""

    @property
    def generation(self) -> Generation:
        """The generation in use now."""
        return self._choice.current

    async def aclose(self) -> None:
        """Close the connections that are our own."""
        if self._own is not None:
            await self._own.aclose()

    async def route(
        self,
        build: Callable[[Generation], Call],
        *,
        body: Body | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
        on_left: Callable[[], None] = lambda: None,
    ) -> Answer:
        """
        Send a call by the generation in use, and by the next one where its route proves to be gone.

        A route that is gone has done nothing, so this is safe for clone-voice too. If both are gone, the first answer
        is the one that counts. `on_left` is called each time it leaves; see `send`.
        """
        choice = self._choice
        generation = choice.current
        call = build(generation)
        first = await self.send(call, body=body, read_timeout_s=read_timeout_s, on_left=on_left)
        # A route that both generations share, or that only one has, says nothing of this one. And another call may have
        # settled the choice in the meantime, either way.
        if call.generation is not generation or (choice.is_settled and choice.current is generation):
            return first
        if not route_is_gone(first):
            choice.is_settled = choice.is_settled or isinstance(interpret(first), Done)
            return first
        second = await self.send(build(SPEECH), body=body, read_timeout_s=read_timeout_s, on_left=on_left)
        if route_is_gone(second):
            return first
        if isinstance(second, Reply) and not choice.is_settled:
            choice.current, choice.is_settled = SPEECH, True
            logger.warning("the audio endpoints are gone; going on with the speech endpoints")
            self._on_switch(SPEECH)
        return second

    async def ask(
        self,
        build: Callable[[Generation], Call],
        *,
        body: Body | None = None,
        tries: int = 4,
        longest_wait_s: float = LONGEST_WAIT_S,
        waits_out_pace: bool = True,
        needs_json: bool = True,
    ) -> Any:
        """
        Send a call that may be repeated until it succeeds, and return its decoded body.

        Args:
            build: Makes the call; it must be repeatable.
            body: A raw body.
            tries: How often at the most.
            longest_wait_s: A longer `Retry-After` than this is an error, never a shorter wait.
            waits_out_pace: Whether 429 is waited out here, instead of being left to an account's gate.
            needs_json: Whether success without a JSON body is none.

        Raises:
            ApiError: The most specific kind, when the remote refused or kept failing.
        """
        attempt = 1
        while True:
            verdict = interpret(await self.route(build, body=body), needs_json=needs_json)
            if isinstance(verdict, Done):
                return verdict.payload
            wait_s = _pause_before_retry(verdict, attempt, waits_out_pace=waits_out_pace)
            if wait_s is None or attempt >= tries or wait_s > longest_wait_s:
                raise error_from(verdict, account=build(self.generation).account)
            await anyio.sleep(wait_s)
            attempt += 1

    async def send(
        self,
        call: Call,
        *,
        body: Body | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
        on_left: Callable[[], None] = lambda: None,
    ) -> Answer:
        """
        Send one call once. Whatever happens becomes a value, but for cancellation and `SampleChanged`.

        `on_left` is called at once, and again when the request begins to leave, where that can be seen: a caller's
        client may have no connection for it for a long time. It may raise `HeldBack`: then nothing leaves.
        """
        try:
            return await self._send(call, body, read_timeout_s, on_left)
        except SampleChanged as error:
            changed = str(error)
        # Anew: the frames that the error came through have the token among their locals.
        raise SampleChanged(changed)

    async def _send(self, call: Call, body: Body | None, read_timeout_s: float, on_left: Callable[[], None]) -> Answer:
        chunks = None if body is None else body.chunks()
        try:
            line = self._line_of(call.account)
            request = self._build(line, call, chunks, body, read_timeout_s)
        except Exception as error:  # noqa: BLE001 - say a name that cannot be encoded: whatever it is, nothing was sent
            return NoReply(was_sent=False, reason=_in_words(error))
        request.extensions = {**request.extensions, "trace": _Departure(on_left)}
        sent_t = anyio.current_time()
        whole_s = read_timeout_s if body is None else None
        with anyio.move_on_after(None if whole_s is None else whole_s + CONNECT_TIMEOUT_S + GRACE_S):
            try:
                deadline_t = None if whole_s is None else sent_t + whole_s + GRACE_S
                return await self._exchange(line, request, on_left, deadline_t)
            finally:
                if chunks is not None:
                    # httpx leaves an upload that ends early to the garbage collector, and with it the open file.
                    await chunks.aclose()
        return NoReply(was_sent=True, reason=f"no whole answer within {read_timeout_s:g} s")

    def _line_of(self, account: str | None) -> Line:
        if self._own is not None:
            return self._own.of(account)
        assert self._given is not None  # noqa: S101 - there is one or the other
        return self._given

    def _build(
        self,
        line: Line,
        call: Call,
        chunks: AsyncIterator[bytes] | None,
        body: Body | None,
        read_timeout_s: float,
    ) -> httpx.Request:
        headers = {"Accept": "application/json", "User-Agent": f"useapi-voice/{__version__}"}
        content: bytes | AsyncIterator[bytes] | None = chunks
        if body is not None:
            headers |= {"Content-Type": call.content_type or "", "Content-Length": str(body.size_bytes)}
        elif call.body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(call.body).encode()
        # No limit on waiting for a connection: the lanes bound how many there are.
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=read_timeout_s, pool=None)
        return line.build(call.method, self._base_url + call.path, call.params, content, headers, timeout)

    async def _exchange(
        self, line: Line, request: httpx.Request, on_left: Callable[[], None], deadline_t: float | None
    ) -> Answer:
        status: int | None = None
        try:
            on_left()
            response = await line.send(request)
            status, answered_t = response.status_code, anyio.current_time()
            try:
                content = await _read_whole(response, deadline_t)
            finally:
                await response.aclose()
            reply = Reply(status, headers_of(response), content, datetime.now(UTC))
            theirs = server_time(reply)
            if theirs is not None:
                # Against loop time, which nobody sets: our own wall clock may be stepped while a clone is in progress.
                self.server_epoch_s = theirs.timestamp() - answered_t
            return reply
        except SampleChanged:
            # The fault is here, so trying again is pointless.
            raise
        except Exception as error:  # noqa: BLE001 - a custom transport may raise anything, and every path must settle
            # By value, not as a cause: the frames behind it have the token among their locals.
            if isinstance(error, _NOT_SENT):
                return NoReply(was_sent=False, reason=f"{_in_words(error)} ({request.url.netloc.decode()})")
            return NoReply(was_sent=True, reason=_in_words(error), status=status)


class _Departure:
    """Learns from httpcore what becomes of a request, and tells when the first of it is written."""

    __slots__ = ("_on_left",)

    def __init__(self, on_left: Callable[[], None]) -> None:
        self._on_left = on_left

    async def __call__(self, name: str, info: Mapping[str, Any]) -> None:
        if name.endswith("send_request_headers.started"):
            self._on_left()


class _ReplyTooLarge(Exception):
    pass


class _ReplyTooSlow(Exception):
    pass


async def _read_whole(response: httpx.Response, deadline_t: float | None) -> bytes:
    content = bytearray()
    async with aclosing(response.aiter_bytes()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            content += chunk
            if len(content) > LARGEST_REPLY_BYTES:
                raise _ReplyTooLarge(f"the answer is larger than {LARGEST_REPLY_BYTES} bytes")
            if deadline_t is not None and anyio.current_time() > deadline_t:
                raise _ReplyTooSlow("the answer came too slowly")
    return bytes(content)


def _in_words(error: Exception) -> str:
    name = type(error).__name__.lstrip("_")
    return f"{name}: {error}" if str(error) else name


def _pause_before_retry(verdict: Refused | NotSent | Unknown, attempt: int, *, waits_out_pace: bool) -> float | None:
    """Seconds to wait before a repeatable call goes again, or `None` where that is pointless."""
    if isinstance(verdict, Refused):
        if verdict.scope is not Scope.PACE or not waits_out_pace:
            return None
        return PACE_WAIT_S if verdict.retry_after_s is None else verdict.retry_after_s
    backoff_s: float = min(8.0, 0.25 * 2**attempt) * random.uniform(0.75, 1.25)
    told_s = verdict.retry_after_s if isinstance(verdict, Unknown) else None
    return backoff_s if told_s is None else max(backoff_s, told_s)
