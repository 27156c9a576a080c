"""
A server that costs next to nothing, for benchmarks that measure what the client costs.

The sandbox checks every parameter, keeps a world and can misbehave, which takes it a good part of a millisecond a
request: where hundreds of clones a second meet two cores, its work would be the figure. This one knows five requests
(upload-sample, clone-voice, accounts, voices, config), answers from prepared bytes after a fixed service time kept by
the loop's timers, and takes tens of microseconds for each. It refuses nothing; it counts, by account: clones in
progress, seconds in which a place was busy, clones beyond the two that an account takes, voices by name, uploads, and
how long a place that became free stayed free (the hand-over). Where misbehaviour matters (`trouble.py`), the sandbox
is the server.

The busy seconds of a clone are from its request read whole to its answer written, whatever the timers make of
`clone_s`: a late timer is this server's fault, not an idle place.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing as mp
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from multiprocessing.connection import Connection
from urllib.parse import parse_qsl, urlsplit

PLACES = 2
"""Clones that an account takes at once."""
TOKEN = "user:1-measured"
_VOICE = (
    '{"voice_id":"user:1-minimax:%s-audio:%d","parent_voice_id":"0","voice_name":%s,"tag_list":["English"],'
    '"file_id":"391001112223336","cover_url":"https://cdn.hailuoai.video/made-up/cover/1.png",'
    '"create_time":%d,"update_time":%d,"collected":false,"voice_status":2,'
    '"sample_audio":"https://cdn.hailuoai.video/made-up/sample/1.mp3","uniq_id":"moss_audio_1","group_id":"%s"}'
)
_UPLOADED = '{"ossPath":"https://cdn.hailuoai.video/made-up/1.mp3","fileID":"user:1-minimax:%s-file:%d"}'
_ACCOUNT = '"%s":{"account":"%s","maxJobs":1,"supportVideo":false,"supportChat":false,"supportAudio":true}'
_CONFIG = '{"t2a_lang_tag_list":[{"tag":"English"}]}'
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nDate: %s\r\nContent-Length: %d\r\n\r\n%s"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Figures:
    """
    What the server counted since it was last reset, over all accounts.

    Attributes:
        clones: Clones that were answered.
        names: How many different voice names they had.
        uploads: Samples that were uploaded.
        breaches: Clones that began while their account's two places were taken.
        busy_s: Seconds in which a place was busy, added up over the places.
        first_t: When the first clone began (`time.monotonic`, which all processes of a machine share).
        last_t: When the last answer was written.
        handovers_s: For each place that was taken again, how long it had been free.
    """

    clones: int
    names: int
    uploads: int
    breaches: int
    busy_s: float
    first_t: float
    last_t: float
    handovers_s: list[float]


@dataclass(slots=True)
class _Account:
    in_progress: int = 0
    breaches: int = 0
    busy_s: float = 0.0
    first_t: float = float("inf")
    last_t: float = float("-inf")
    freed: deque[float] = field(default_factory=deque)
    handovers_s: list[float] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    uploads: int = 0

    def begin(self, now_t: float) -> None:
        self.breaches += self.in_progress >= PLACES
        self.in_progress += 1
        self.first_t = min(self.first_t, now_t)
        if self.freed:
            self.handovers_s.append(now_t - self.freed.popleft())

    def end(self, began_t: float, now_t: float, name: str) -> None:
        self.in_progress -= 1
        self.busy_s += now_t - began_t
        self.last_t = now_t
        self.freed.append(now_t)
        self.names[name] += 1


class _World:
    """The accounts, and what is done at them."""

    def __init__(self, accounts: list[str], clone_s: float, upload_s: float) -> None:
        self.names = accounts
        self.clone_s = clone_s
        self.upload_s = upload_s
        self.ids = 0
        self.date = b""
        self.dated_t = float("-inf")
        self.accounts_body = f"{{{','.join(_ACCOUNT % (name, name) for name in accounts)}}}".encode()
        self.reset()

    def reset(self) -> None:
        self.accounts = {name: _Account() for name in self.names}

    def set_times(self, clone_s: float, upload_s: float) -> None:
        self.clone_s, self.upload_s = clone_s, upload_s

    def figures(self) -> Figures:
        accounts = self.accounts.values()
        return Figures(
            clones=sum(account.names.total() for account in accounts),
            names=len({name for account in accounts for name in account.names}),
            uploads=sum(account.uploads for account in accounts),
            breaches=sum(account.breaches for account in accounts),
            busy_s=sum(account.busy_s for account in accounts),
            first_t=min(account.first_t for account in accounts),
            last_t=max(account.last_t for account in accounts),
            handovers_s=sorted(handover_s for account in accounts for handover_s in account.handovers_s),
        )

    def next_id(self) -> int:
        self.ids += 1
        return self.ids

    def answer(self, body: bytes, now_t: float) -> bytes:
        if now_t - self.dated_t > 1:
            self.date, self.dated_t = formatdate(usegmt=True).encode(), now_t
        return _OK % (self.date, len(body), body)


class _Connection(asyncio.Protocol):
    """One keep-alive connection: reads a request, answers it in time, reads the next."""

    def __init__(self, world: _World, loop: asyncio.AbstractEventLoop) -> None:
        self._world = world
        self._loop = loop
        self._transport: asyncio.Transport
        self._head = bytearray()
        self._target = ""
        self._rest = -1
        """Bytes of the body that have not come yet; negative while the head is being read."""
        self._keeps_body = False
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._rest < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data = bytes(self._head[end + 4 :])
            self._read_head(bytes(self._head[:end]))
            self._head.clear()
        self._rest -= len(data)
        if self._keeps_body:
            self._body += data
        if self._rest <= 0:
            self._rest = -1
            body = bytes(self._body)
            self._body.clear()
            self._serve(body)

    def _read_head(self, head: bytes) -> None:
        lowered = head.lower()
        at = lowered.find(b"\r\ncontent-length:")
        self._rest = 0 if at < 0 else int(lowered[at + 17 :].split(b"\r\n", 1)[0])
        self._target = head.split(b" ", 2)[1].decode()
        self._keeps_body = "clone-voice" in self._target

    def _serve(self, body: bytes) -> None:
        world, now_t = self._world, self._loop.time()
        path, query = urlsplit(self._target)[2:4]
        endpoint = path.rstrip("/").rsplit("/", 1)[-1]
        if endpoint == "clone-voice":
            asked = json.loads(body)
            account, name = asked["account"], asked["voice_name"]
            world.accounts[account].begin(now_t)
            self._loop.call_at(now_t + world.clone_s, self._cloned, account, name, now_t)
        elif endpoint == "upload-sample":
            account = dict(parse_qsl(query))["account"]
            self._loop.call_at(now_t + world.upload_s, self._uploaded, account)
        elif endpoint == "accounts":
            self._write(world.accounts_body, now_t)
        elif endpoint == "voices":
            self._write(b'{"voice_list":[]}', now_t)
        elif endpoint == "config":
            self._write(_CONFIG.encode(), now_t)
        else:
            self._transport.write(_NOT_FOUND)

    def _cloned(self, account: str, name: str, began_t: float) -> None:
        made_ms = int(time.time() * 1000)
        voice = _VOICE % (account, self._world.next_id(), json.dumps(name), made_ms, made_ms, account)
        now_t = self._loop.time()
        self._write(voice.encode(), now_t)
        self._world.accounts[account].end(began_t, now_t, name)

    def _uploaded(self, account: str) -> None:
        self._world.accounts[account].uploads += 1
        self._write((_UPLOADED % (account, self._world.next_id())).encode(), self._loop.time())

    def _write(self, body: bytes, now_t: float) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._world.answer(body, now_t))


@dataclass(frozen=True, slots=True)
class MeasuringServer:
    """The server elsewhere: where it is, and how to ask it what it counted."""

    base_url: str
    token: str
    accounts: list[str]
    _pipe: Connection

    def reset(self, clone_s: float, upload_s: float) -> None:
        """Count from nothing, with these service times in seconds."""
        self._pipe.send((clone_s, upload_s))
        assert self._pipe.recv()

    def figures(self) -> Figures:
        """Ask what was counted since the last reset."""
        self._pipe.send(None)
        figures = self._pipe.recv()
        assert isinstance(figures, Figures)
        return figures


@contextmanager
def measuring_server(accounts: int) -> Generator[MeasuringServer, None, None]:
    """Run the server in a process of its own, so that its work is not counted as the client's."""
    names = [str(335577991122334455 + number) for number in range(accounts)]
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, names), daemon=True)
    process.start()
    theirs.close()
    try:
        yield MeasuringServer(ours.recv(), TOKEN, names, ours)
    finally:
        ours.close()
        process.join(5)
        process.terminate()


def _run(pipe: Connection, names: list[str]) -> None:
    asyncio.run(_serve_until_closed(pipe, names))


async def _serve_until_closed(pipe: Connection, names: list[str]) -> None:
    loop = asyncio.get_running_loop()
    world = _World(names, 0.2, 0.0)
    closed = asyncio.Event()
    # A rival that uploads everything at once opens a connection for each.
    server = await loop.create_server(partial(_Connection, world, loop), "127.0.0.1", 0, backlog=4096)
    host, port = server.sockets[0].getsockname()
    loop.add_reader(pipe.fileno(), _answer_asker, pipe, world, closed.set)
    pipe.send(f"http://{host}:{port}/v1/minimax")
    await closed.wait()
    server.close()


def _answer_asker(pipe: Connection, world: _World, close: Callable[[], None]) -> None:
    try:
        asked = pipe.recv()
    except EOFError:
        close()
        return
    if asked is None:
        pipe.send(world.figures())
    else:
        world.reset()
        world.set_times(*asked)
        pipe.send(True)
