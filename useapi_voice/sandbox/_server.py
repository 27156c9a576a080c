"""
The loopback skin: HTTP/1.1 with h11 over plain non-blocking sockets, so that a connection can be closed, reset, cut or
starved at will.

Sockets rather than anyio's streams, because only a socket can be reset: a stream says a polite goodbye first. Faults of
a client are its own affair (400 or a closed connection); an exception of ours is handed to `on_error`, which the owner
must look at.
"""

from __future__ import annotations

import math
import socket
import struct
import sys
from collections.abc import Callable

import anyio
import anyio.abc
import h11

from ._shapes import Reply
from ._transport import HasApi
from ._wire import Delivery, Plan, WireRequest

_CHUNK = 65536
# SO_LINGER on, 0 s: closing sends a reset. Windows has shorts in that structure.
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class _ClientGone(Exception):
    """The client has closed or reset its connection."""


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes any free one."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def serve_listener(listener: socket.socket, sandbox: HasApi, on_error: Callable[[Exception], None]) -> None:
    """Accept and serve connections until cancelled; then everything is closed."""
    with listener:
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(listener)
                _accept(listener, tasks, sandbox, on_error)


def _accept(
    listener: socket.socket, tasks: anyio.abc.TaskGroup, sandbox: HasApi, on_error: Callable[[Exception], None]
) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tasks.start_soon(_serve, _Connection(sock, sandbox), on_error, name="sandbox connection")


async def _serve(connection: _Connection, on_error: Callable[[Exception], None]) -> None:
    with connection.sock:
        try:
            await connection.run()
        except OSError:
            pass  # the client has reset its connection, which is its own affair
        except Exception as error:  # noqa: BLE001 - a bug of ours must reach the owner, not end as a silent close
            on_error(error)


class _Connection:
    """One connection and the requests on it, one after the other."""

    def __init__(self, sock: socket.socket, sandbox: HasApi) -> None:
        self.sock = sock
        self._sandbox = sandbox
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        while True:
            try:
                request = await self._next_request()
            except h11.RemoteProtocolError as error:
                await self._complain(error)
                return
            if request is None:
                return
            plan = self._sandbox.api.handle(request, self._sandbox.now())
            if not await self._wait(plan):
                return
            reply = plan.decide(self._sandbox.now())
            if not await self._deliver(reply, plan.delivery):
                return
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _next_request(self) -> WireRequest | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._send(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
                self._http.receive_data(await self._receive())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _wire_request(head, bytes(body))
            else:
                return None

    async def _wait(self, plan: Plan) -> bool:
        """Wait for the plan's moment and watch the client meanwhile; False when it has left."""
        wait_s = plan.until_t - self._sandbox.now()
        if wait_s <= 0:
            return True
        try:
            # Whatever else the client sends is the next request and must wait for this answer.
            with anyio.move_on_after(wait_s if wait_s < math.inf else None):
                while data := await self._receive():
                    self._http.receive_data(data)
                raise _ClientGone
        except (_ClientGone, OSError):
            plan.left()
            return False
        return True

    async def _deliver(self, reply: Reply, delivery: Delivery) -> bool:
        """Hand the answer over; False when the connection must not be used again."""
        if delivery.kind == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if delivery.kind in ("drop", "reset"):
            return False
        head = self._http.send(h11.Response(status_code=reply.status, headers=self._sandbox.api.headers(reply)))
        body = self._http.send(h11.Data(data=reply.body)) if reply.body else b""
        if delivery.kind == "truncate":
            await self._send(head + body[: len(body) // 2])
            return False
        if delivery.kind == "whole":
            await self._send(head + body)
        else:
            await self._send(head)
            for at in range(0, len(body), delivery.piece_bytes):
                await anyio.sleep(delivery.interval_s)
                await self._send(body[at : at + delivery.piece_bytes])
        self._http.send(h11.EndOfMessage())
        return True

    async def _complain(self, error: h11.RemoteProtocolError) -> None:
        headers = [("content-length", "0"), ("connection", "close")]
        await self._send(self._http.send(h11.Response(status_code=error.error_status_hint, headers=headers)))

    async def _receive(self) -> bytes:
        while True:
            await anyio.wait_readable(self.sock)
            try:
                return self.sock.recv(_CHUNK)
            except BlockingIOError:  # pragma: no cover - a wake-up with nothing to read, which the kernel may give
                continue

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self.sock)


def _wire_request(head: h11.Request, body: bytes) -> WireRequest:
    path, _, query = head.target.decode("ascii").partition("?")
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    return WireRequest(head.method.decode("ascii"), path, query, headers, body)
