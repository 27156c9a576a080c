"""
The in-process skin: an httpx transport over the world, without sockets, on any anyio backend and in virtual time; it
decides nothing.

It keeps what a real transport would keep for it: the read timeout of the request, the errors of a lost connection, and
a body that comes in pieces.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Protocol

import anyio
import anyio.lowlevel
import httpx

from ._api import Api
from ._shapes import Reply
from ._wire import Delivery, Plan, WireRequest

DISCONNECTED = "Server disconnected without sending a response."


class HasApi(Protocol):
    """What a skin needs of a sandbox."""

    @property
    def api(self) -> Api: ...

    def now(self) -> float: ...


class SandboxTransport(httpx.AsyncBaseTransport):
    """
    An httpx transport whose other end is a `Sandbox`; make it with `Sandbox.transport()`.

    It honours the `read` timeout of each request and needs no closing. The host of a request is ignored, its path is
    not.
    """

    def __init__(self, sandbox: HasApi) -> None:
        self._sandbox = sandbox

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Answer one request as the API does.

        Raises `httpx.ReadTimeout`, `ReadError` or `RemoteProtocolError` as a socket would.
        """
        body = await request.aread()
        headers = {name.lower(): value for name, value in request.headers.items()}
        url = request.url
        wire = WireRequest(request.method, url.raw_path.partition(b"?")[0].decode(), url.query.decode(), headers, body)
        # What a socket's round trip would give other tasks: a chance to run.
        await anyio.lowlevel.checkpoint()
        plan = self._sandbox.api.handle(wire, self._sandbox.now())
        timeout_s = _read_timeout_s(request)
        try:
            await self._wait(plan, timeout_s)
        except BaseException:
            plan.left()
            raise
        reply = plan.decide(self._sandbox.now())
        if plan.delivery.kind == "drop":
            raise httpx.RemoteProtocolError(DISCONNECTED)
        if plan.delivery.kind == "reset":
            raise httpx.ReadError("Connection reset by the sandbox.")
        return httpx.Response(
            reply.status,
            headers=self._sandbox.api.headers(reply),
            stream=_Body(reply, plan.delivery, timeout_s),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": b""},
        )

    async def _wait(self, plan: Plan, timeout_s: float) -> None:
        wait_s = plan.until_t - self._sandbox.now()
        if wait_s > timeout_s:
            await anyio.sleep(timeout_s)
            raise httpx.ReadTimeout("The sandbox has not answered in time.")
        if wait_s > 0:
            await anyio.sleep(wait_s)


def _read_timeout_s(request: httpx.Request) -> float:
    timeout_s = request.extensions.get("timeout", {}).get("read")
    return math.inf if timeout_s is None else float(timeout_s)


class _Body(httpx.AsyncByteStream):
    """A body as it comes over a connection: whole, in pieces, or cut off."""

    def __init__(self, reply: Reply, delivery: Delivery, timeout_s: float) -> None:
        self._body = reply.body
        self._delivery = delivery
        self._timeout_s = timeout_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body, delivery = self._body, self._delivery
        if delivery.kind == "truncate":
            cut = len(body) // 2
            yield body[:cut]
            raise httpx.RemoteProtocolError(
                "peer closed connection without sending complete message body "
                f"(received {cut} bytes, expected {len(body)})"
            )
        if delivery.kind == "whole":
            yield body
            return
        for at in range(0, len(body), delivery.piece_bytes):
            if delivery.interval_s > self._timeout_s:
                await anyio.sleep(self._timeout_s)
                raise httpx.ReadTimeout("The sandbox has not sent the next piece in time.")
            await anyio.sleep(delivery.interval_s)
            yield body[at : at + delivery.piece_bytes]
