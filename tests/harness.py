"""
What the tests of the doing rooms share: loops whose time jumps, audio of any length, clients on a sandbox, and a server
of a few lines that answers whatever a test wants.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import struct
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import h11
import httpx
import pytest

from useapi_voice import CloneError, CloneJob, CloneRequest, Event, VoiceClient
from useapi_voice.sandbox import Sandbox

TOKEN = "user:4242-sandboxtoken000000000000000000000"

both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
virtual = pytest.mark.parametrize("anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True)
virtually_asyncio = pytest.mark.parametrize("anyio_backend", ["virtual asyncio"], indirect=True)


# --- virtual time -----------------------------------------------------------------------------------------------------


class _JumpingSelector(selectors.DefaultSelector):
    jumped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self.jumped_s += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """
    An asyncio loop that never waits: where all tasks do, its clock jumps to the next deadline. In process only (M2): a
    thread or a socket that takes its time makes it jump falsely.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the seconds jumped so far."""
        return self._jumping.jumped_s


# --- audio ------------------------------------------------------------------------------------------------------------


@cache
def wav(duration_s: float = 12.0, tone: int = 128, size: int | None = None) -> bytes:
    """Make a WAV of 8000 bytes a second; another `tone` is another content, `size` stands in place of its true size."""
    data = bytes([tone]) * int(duration_s * 8000)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    chunk = b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(form) + len(chunk) if size is None else size) + b"WAVE" + form + chunk


# --- clients ----------------------------------------------------------------------------------------------------------


def ask(name: str = "Ann", *, tone: int = 128, **more: Any) -> CloneRequest:
    """Make a good request, with a sample of its own `tone` unless `files` are given."""
    if "files" not in more:
        more.setdefault("samples", [wav(tone=tone)])
    return CloneRequest(voice_name=name, language_tag=more.pop("language_tag", "English"), **more)


@asynccontextmanager
async def in_process(sandbox: Sandbox, **settings: Any) -> AsyncIterator[VoiceClient]:
    """Open a client on the sandbox's in-process transport."""
    sandbox.now()
    async with (
        httpx.AsyncClient(transport=sandbox.transport()) as http,
        VoiceClient(sandbox.token, base_url=sandbox.base_url, http_client=http, **settings) as client,
    ):
        yield client


@asynccontextmanager
async def over_loopback(sandbox: Sandbox, **settings: Any) -> AsyncIterator[VoiceClient]:
    """Serve the sandbox on loopback, and open a client with an httpx client of its own."""
    async with sandbox, VoiceClient(sandbox.token, base_url=sandbox.base_url, **settings) as client:
        yield client


async def error_of(job: CloneJob) -> CloneError:
    """Wait for a job that must fail, and return its error."""
    with pytest.raises(CloneError) as raised:
        await job
    return raised.value


@dataclass
class Diary:
    """The events of a client, as they come."""

    events: list[Event] = field(default_factory=list)

    def kinds(self) -> list[str]:
        """Return the kinds of all events."""
        return [event.kind for event in self.events]

    def of(self, kind: str) -> list[Event]:
        """Return the events of one kind."""
        return [event for event in self.events if event.kind == kind]


@asynccontextmanager
async def diary(client: VoiceClient) -> AsyncIterator[Diary]:
    """Write down what happens within the block."""
    found = Diary()
    stream = client.events()

    async def read() -> None:
        async for event in stream:
            found.events.append(event)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        yield found
        await stream.aclose()


# --- a server of a few lines ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """One request as a server hears it."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def fields(self) -> Any:
        """Return its JSON body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Say:
    """One answer: `body` is JSON, unless it is bytes."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()


class HangUp(Exception):
    """Raised by a handler: close the connection without an answer."""


Handler = Callable[[Heard], Awaitable[Say]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve on loopback, every answer by `handler`, and give the base URL."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, lambda stream: _serve(stream, handler))
        try:
            yield f"http://127.0.0.1:{port}/v1/minimax"
        finally:
            tasks.cancel_scope.cancel()


async def _serve(stream: anyio.abc.SocketStream, handler: Handler) -> None:
    wire = h11.Connection(h11.SERVER)
    async with stream:
        try:
            while (heard := await _hear(stream, wire)) is not None:
                said = await handler(heard)
                body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
                headers = [("content-length", str(len(body))), ("content-type", "application/json"), *said.headers]
                data = wire.send(h11.Response(status_code=said.status, headers=headers))
                await stream.send(data + wire.send(h11.Data(data=body)))
                wire.send(h11.EndOfMessage())
                if wire.our_state is not h11.DONE:
                    return
                wire.start_next_cycle()
        except (HangUp, anyio.BrokenResourceError):
            return


async def _hear(stream: anyio.abc.SocketStream, wire: h11.Connection) -> Heard | None:
    head: h11.Request | None = None
    body = b""
    while True:
        event = wire.next_event()
        if event is h11.NEED_DATA:
            try:
                wire.receive_data(await stream.receive())
            except anyio.EndOfStream:
                return None
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            path, _, query = head.target.decode().partition("?")
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return Heard(head.method.decode(), path.removeprefix("/v1/minimax"), query, headers, body)
        else:
            return None


def shown(error: BaseException) -> str:
    """Return what a report with locals shows of an error, its causes and contexts, but for the tests' own frames."""
    parts = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None:
            continue
        parts += [repr(one), str(one), repr(one.__dict__)]
        frames = [frame for frame, _ in traceback.walk_tb(one.__traceback__)]
        parts += [repr(frame.f_locals) for frame in frames if "tests" not in Path(frame.f_code.co_filename).parts]
        todo += [one.__cause__, one.__context__]
    return "\n".join(parts)


def closed_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
