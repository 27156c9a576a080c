"""
What the tests of the whole client share: a client on a sandbox in virtual time, and what is asked of both afterwards.

The truth is the server's: voices, clones and their overlap are read from the sandbox, and requests are counted on the
wire between the two, never from what the client says of itself.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar

import httpx
import trio
from trio.testing import MockClock

from useapi_voice import TERMINAL_STATES, CloneError, CloneJob, CloneRequest, Event, VoiceClient
from useapi_voice.sandbox import Sandbox

T = TypeVar("T")

ENDINGS = frozenset(state.value for state in TERMINAL_STATES)


def virtually(main: Callable[..., Awaitable[T]], *args: object, seed: int = 0) -> T:
    """
    Run `main` on a clock that jumps to the next deadline whenever all tasks wait.

    Trio runs the tasks of one moment in an order that it throws dice for; `seed` makes them fall the same way again.
    """
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio._core._run._r.seed(seed)
    return trio.run(main, *args, clock=MockClock(autojump_threshold=0))


@cache
def wav(duration_s: float = 10.5, tone: int = 128) -> bytes:
    """Make a WAV of 8000 bytes a second; another `tone` makes another content."""
    data = bytes([tone]) * int(duration_s * 8000)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    chunk = b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(form) + len(chunk)) + b"WAVE" + form + chunk


class Wire(httpx.AsyncBaseTransport):
    """The wire to a sandbox: counts clone requests by voice name, and whatever is open on it."""

    def __init__(self, sandbox: Sandbox, *, date_shift_s: float = 0.0) -> None:
        self._inner = sandbox.transport()
        self._date_shift = timedelta(seconds=date_shift_s)
        self.posts: Counter[str] = Counter()
        self.order: list[str] = []
        self.open_now = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("clone-voice"):
            name = json.loads(await request.aread())["voice_name"]
            self.posts[name] += 1
            self.order.append(name)
        self.open_now += 1
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException:
            self.open_now -= 1
            raise
        if self._date_shift:
            shown = parsedate_to_datetime(response.headers["date"]) + self._date_shift
            response.headers["date"] = format_datetime(shown, usegmt=True)
        response.stream = _Counted(response.stream, self)
        return response


class _Counted(httpx.AsyncByteStream):
    def __init__(self, inner: Any, wire: Wire) -> None:
        self._inner, self._wire, self._is_open = inner, wire, True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield chunk

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._wire.open_now -= 1


@dataclass
class World:
    """A client, its sandbox, and the wire between them."""

    sandbox: Sandbox
    wire: Wire
    client: VoiceClient
    files: dict[str, str]
    events: list[Event] = field(default_factory=list)

    def request(self, name: str, account: str | None = None, **more: Any) -> CloneRequest:
        """Make a request with an uploaded file, of the first account by default; cheap."""
        files = [self.files[account or self.sandbox.accounts[0]]]
        return CloneRequest(voice_name=name, language_tag="English", files=files, **more)

    def sampled(self, name: str, account: str | None = None, tone: int = 128) -> CloneRequest:
        """Make a request whose sample must go up first, to any account by default."""
        return CloneRequest(voice_name=name, language_tag="English", samples=[wav(tone=tone)], account=account)

    def voices(self, name: str) -> list[str]:
        """Return the ids of the voices of this name at the server."""
        return [voice.voice_id for voice in self.sandbox.voices() if voice.voice_name == name]

    def endings(self) -> Counter[str]:
        """Count the endings that were told, by job."""
        return Counter(event.job_id or "" for event in self.events if event.kind in ENDINGS)

    def check_cap(self) -> None:
        """The server never saw more than two clones of an account at once, nor had to refuse one."""
        assert max(self.sandbox.max_parallel_seen.values()) <= 2
        assert not self.sandbox.breaches


@asynccontextmanager
async def a_world(
    sandbox: Sandbox, *, api: str = "audio", date_shift_s: float = 0.0, **settings: Any
) -> AsyncIterator[World]:
    """
    Open a client on a sandbox; its events are all there when the block has ended.

    `date_shift_s` is by how much the `Date` of a proxy in front is ahead of the clock that `create_time` comes from.
    """
    sandbox.now()
    wire = Wire(sandbox, date_shift_s=date_shift_s)
    files = {account: sandbox.add_sample(b"sample", account) for account in sandbox.accounts}
    async with httpx.AsyncClient(transport=wire) as http:
        client = VoiceClient(sandbox.token, base_url=sandbox.base_url, http_client=http, api=api, **settings)
        world = World(sandbox, wire, client, files)
        async with client:
            stream = client.events()
            yield world
        world.events = [event async for event in stream]


async def how_it_ended(job: CloneJob) -> str:
    """Wait for a job, and return `cloned` or the name of its error."""
    try:
        await job
    except CloneError as error:
        return type(error).__name__
    return "cloned"
