"""
How a signed request reaches the network: over connections of our own, a small pool for each account, or over a caller's
httpx client.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Generator
from functools import lru_cache
from typing import Final, Protocol
from urllib.request import getproxies

import httpx

LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=2.0)
"""
The lanes are the limit, not the pool: a pool smaller than them would answer with PoolTimeout. Connections are not kept
idle for long: one that the other side closed meanwhile costs a clone its answer. A place that is handed on takes its
connection along at once, however long clones take.
"""

DELIVERY_S: Final = 30.0
"""
How long this host tries to deliver what the other side does not acknowledge.

By itself it tries for a quarter of an hour, also after the connection was given up: where the network is away for a
minute, a clone request would arrive when its place has long been another's. What a proxy, or a caller's client, holds
back is out of our hands.
"""
_DELIVERY: Final = (
    [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * DELIVERY_S))]
    if hasattr(socket, "TCP_USER_TIMEOUT")  # Linux has it
    else []
)


class Signer(Protocol):
    """Puts a token into requests, and shows it to nobody."""

    def sign(self, request: httpx.Request) -> None:
        """Put the token into this request's Authorization header."""


class Line(Protocol):
    """What requests of one account go over."""

    def build(
        self,
        method: str,
        url: str,
        params: tuple[tuple[str, str], ...],
        content: bytes | AsyncIterator[bytes] | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """Put a request together. Raises whatever it meets; nothing was sent then."""
        ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Sign it and send it; return its answer with the body unread. Redirects are not followed."""
        ...

    async def aclose(self) -> None:
        """Close its connections."""


class ClientLine:
    """An httpx client: a caller's, which is neither changed nor closed, or our own where a proxy is to be minded."""

    def __init__(self, client: httpx.AsyncClient, signer: Signer) -> None:
        self._client = client
        self._auth = _Auth(signer)

    def build(
        self,
        method: str,
        url: str,
        params: tuple[tuple[str, str], ...],
        content: bytes | AsyncIterator[bytes] | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """See `Line`; what the client adds to every request is added."""
        return self._client.build_request(
            method, url, params=params or None, content=content, headers=headers, timeout=timeout
        )

    async def send(self, request: httpx.Request) -> httpx.Response:
        """See `Line`."""
        return await self._client.send(request, stream=True, auth=self._auth, follow_redirects=False)

    async def aclose(self) -> None:
        """Close it; not to be asked of a caller's."""
        await self._client.aclose()


class PoolLine:
    """
    A pool of connections, without the client around it.

    What a client adds (cookies, redirects, hooks, its own headers) is nothing to this API, and costs a quarter of a
    request's time; a place is idle meanwhile.
    """

    def __init__(self, verify: ssl.SSLContext, signer: Signer) -> None:
        self._transport = httpx.AsyncHTTPTransport(verify=verify, limits=LIMITS, socket_options=_DELIVERY)
        self._signer = signer

    def build(
        self,
        method: str,
        url: str,
        params: tuple[tuple[str, str], ...],
        content: bytes | AsyncIterator[bytes] | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """See `Line`."""
        return httpx.Request(
            method,
            _url(url, params),
            content=content,
            headers={"Accept-Encoding": "gzip, deflate", **headers},
            extensions={"timeout": timeout.as_dict()},
        )

    async def send(self, request: httpx.Request) -> httpx.Response:
        """See `Line`."""
        self._signer.sign(request)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._transport.aclose()


class _Auth(httpx.Auth):
    """Signs each request on its own, so that a caller's client is never changed, nor its own `auth` used."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        self._signer.sign(request)
        yield request


class OwnLines:
    """
    A line of our own for each account, made when it is first needed.

    At every request httpcore's pool looks at all of its connections for each of them: one pool for thirty accounts
    spends ten milliseconds on that, and places stay free meanwhile. A pool of a handful spends nothing.
    """

    def __init__(self, base_url: str, signer: Signer) -> None:
        self._signer = signer
        self._make: Callable[[ssl.SSLContext], Line] = self._pool
        if not base_url.startswith("https:"):
            # Plain http is for loopback alone: a proxy that the environment names would see the token. Nor has it any
            # use for the certificates of the world, which take a while to read.
            self._verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        else:
            self._verify = httpx.create_ssl_context()
            if getproxies():
                # Which of them a host goes through, if any, is for httpx to say.
                self._make = self._client
        self._lines: dict[str | None, Line] = {}
        self._is_closed = False

    def of(self, account: str | None) -> Line:
        """
        Return the line for calls that concern this account.

        Raises:
            RuntimeError: They are closed.
        """
        if self._is_closed:
            raise RuntimeError("the transport is closed")
        line = self._lines.get(account)
        if line is None:
            line = self._lines[account] = self._make(self._verify)
        return line

    def _pool(self, verify: ssl.SSLContext) -> PoolLine:
        return PoolLine(verify, self._signer)

    def _client(self, verify: ssl.SSLContext) -> ClientLine:
        return ClientLine(httpx.AsyncClient(verify=verify, limits=LIMITS), self._signer)

    async def aclose(self) -> None:
        """Close them all."""
        self._is_closed = True
        for line in self._lines.values():
            await line.aclose()


@lru_cache(maxsize=256)  # a handful for each account, and parsing one takes longer than the rest of a request's making
def _url(url: str, params: tuple[tuple[str, str], ...]) -> httpx.URL:
    return httpx.URL(url, params=params) if params else httpx.URL(url)


def headers_of(response: httpx.Response) -> dict[str, str]:
    """Return the headers by their names in lower case; one that comes twice is joined, as its norm has it."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers.raw:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
