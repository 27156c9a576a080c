"""`_server`: the loopback skin over real sockets, on both backends."""

from __future__ import annotations

# What is raised where a block ends can only be shown with the block inside `raises`.
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest

from useapi_voice.sandbox import Fault, Sandbox, sample_paths

from .tools import calling, wav

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every test here on both backends."""
    return str(request.param)


@asynccontextmanager
async def raw(sandbox: Sandbox) -> AsyncIterator[anyio.abc.SocketStream]:
    """Connect to the server without an HTTP client."""
    port = httpx.URL(sandbox.base_url).port
    assert port is not None
    with anyio.fail_after(5):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            yield stream


def head(sandbox: Sandbox, request_line: str, *more: str) -> bytes:
    """Write the head of a request with the right token."""
    lines = [f"{request_line} HTTP/1.1", "Host: sandbox", f"Authorization: Bearer {sandbox.token}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def until(stream: anyio.abc.SocketStream, end: bytes) -> bytes:
    """Receive until the data end so."""
    data = b""
    while not data.endswith(end):
        data += await stream.receive()
    return data


async def rest(stream: anyio.abc.SocketStream) -> bytes:
    """Receive until the server closes."""
    data = b""
    while True:
        try:
            data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data


RESET = struct.pack("ii", 1, 0)
SCHEDULER = "GET /v1/minimax/scheduler/"


async def over(sandbox: Sandbox) -> None:
    """Wait until no clone is in progress."""
    with anyio.fail_after(5):
        while sandbox.in_progress():
            await anyio.sleep(0.005)


async def test_the_whole_way_over_loopback() -> None:
    """Upload, clone, list and delete work over real connections, with the fields and bytes intact."""
    async with Sandbox(clone_s=0.02, upload_s=0.01) as sandbox, calling(sandbox, in_process=False) as caller:
        assert sandbox.base_url.startswith("http://127.0.0.1:")
        files = [
            (await caller.upload(path.read_bytes(), content_type=kind)).json()["fileID"]
            for path, kind in zip(sample_paths(), ("audio/mpeg", "audio/mpeg", "audio/wav"), strict=True)
        ]
        assert [upload.size_bytes for upload in sandbox.uploads] == [path.stat().st_size for path in sample_paths()]
        reply = await caller.clone("Zoë", files=",".join(files))
        assert reply.headers["content-type"].startswith("application/json")
        assert await caller.cloned() == ["Zoë"]
        assert (await caller.delete(voice_id=reply.json()["voice_id"])).status_code == 200
        assert (await caller.get("audio/config/")).status_code == 200
        assert (await caller.http.head("accounts")).status_code == 405
    assert sandbox.voices() == ()
    assert (sandbox.count("clone-voice"), sandbox.breaches) == (1, ())


async def test_connections_are_kept_and_requests_may_be_piped() -> None:
    """Requests sent at once on one connection are answered in order, also while an earlier one still waits."""
    async with Sandbox(upload_s=0.05, check_audio=False) as sandbox, raw(sandbox) as stream:
        upload = head(sandbox, "POST /v1/minimax/audio/upload-sample/", "Content-Type: audio/wav", "Content-Length: 1")
        await stream.send(upload + b"x")
        await anyio.sleep(0.02)
        await stream.send(head(sandbox, SCHEDULER) + head(sandbox, "GET /v1/minimax/nothing", "Connection: close"))
        data = await rest(stream)
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"200", b"404"]
    assert data.index(b"fileID") < data.index(b"[]") < data.index(b"Not found")


async def test_chunked_bodies_and_expect() -> None:
    """A chunked body is put together, and a client that asks first is told to go on."""
    async with Sandbox() as sandbox, raw(sandbox) as stream:
        content = wav(11)
        more = ("Content-Type: audio/wav", "Transfer-Encoding: chunked", "Expect: 100-continue")
        await stream.send(head(sandbox, "POST /v1/minimax/speech/upload-sample/", *more))
        assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        for at in range(0, len(content), 30_000):
            piece = content[at : at + 30_000]
            await stream.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await stream.send(b"0\r\n\r\n")
        assert b"fileID" in await until(stream, b"}")
    assert sandbox.uploads[0].size_bytes == len(content)


async def test_http_1_0_connections_are_closed_after_the_answer() -> None:
    """A client of HTTP/1.0 is answered and then let go."""
    async with Sandbox() as sandbox, raw(sandbox) as stream:
        await stream.send(head(sandbox, SCHEDULER).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await rest(stream)).endswith(b"[]")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, b"HTTP/1.1 431"),
    ],
)
async def test_what_is_not_http(data: bytes, answer: bytes) -> None:
    """A client that speaks no proper HTTP gets a 4xx and a closed connection; the server goes on."""
    async with Sandbox() as sandbox:
        async with raw(sandbox) as stream:
            await stream.send(data)
            assert (await rest(stream)).startswith(answer)
        async with calling(sandbox, in_process=False) as caller:
            assert (await caller.get("accounts")).is_success


async def test_a_second_request_that_breaks_the_rules_mid_answer() -> None:
    """Nonsense after a good request is refused after that one's answer."""
    async with Sandbox() as sandbox, raw(sandbox) as stream:
        await stream.send(head(sandbox, SCHEDULER) + b"nonsense\r\n\r\n")
        data = await rest(stream)
    assert data.index(b"[]") < data.index(b"HTTP/1.1 400")


async def test_clients_that_leave() -> None:
    """A client may go before, during and after its request; only a clone in progress remembers it."""
    async with Sandbox(clone_s=0.25) as sandbox:
        async with raw(sandbox):
            pass
        async with raw(sandbox) as stream:
            await stream.send(b"GET /v1/min")
        with socket.create_connection(("127.0.0.1", httpx.URL(sandbox.base_url).port or 0)) as sock:
            sock.sendall(b"GET /v1/min")
            await anyio.sleep(0.01)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        async with raw(sandbox) as stream:
            await stream.send(head(sandbox, "POST /v1/minimax/audio/clone-voice", "Content-Length: 100") + b"{")
        async with calling(sandbox, timeout_s=0.05, in_process=False) as caller:
            with pytest.raises(httpx.ReadTimeout):
                await caller.clone()
        await anyio.sleep(0.02)
        assert (sandbox.clones[0].reply, sandbox.in_progress()) == ("left", 1)
        await over(sandbox)
        assert len(sandbox.voices()) == 1


async def test_a_client_that_resets_while_it_waits() -> None:
    """A reset during the wait is a client that has left."""
    async with Sandbox(clone_s=0.05) as sandbox:
        sandbox.fail("scheduler", Fault.hang(made=True))
        with socket.create_connection(("127.0.0.1", httpx.URL(sandbox.base_url).port or 0)) as sock:
            sock.sendall(head(sandbox, SCHEDULER))
            while not sandbox.count("scheduler"):
                await anyio.sleep(0.005)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await anyio.sleep(0.02)
        async with calling(sandbox, in_process=False) as caller:
            assert (await caller.get("scheduler")).is_success


@pytest.mark.parametrize(
    ("fault", "error", "made"),
    [
        (Fault.drop(made=True), httpx.RemoteProtocolError, True),
        (Fault.drop(made=True, reset=True), httpx.ReadError, True),
        (Fault.drop(made=False, at="end"), httpx.RemoteProtocolError, False),
        (Fault.truncate(), httpx.RemoteProtocolError, True),
        (Fault.hang(made=False), httpx.ReadTimeout, False),
        (Fault.drip(1), httpx.ReadTimeout, True),
    ],
)
async def test_lost_answers_over_loopback(fault: Fault, error: type[Exception], made: bool) -> None:
    """Each way to lose an answer looks to httpx as in process, and later requests are served."""
    timeout_s = 0.15 if error is httpx.ReadTimeout else 5.0
    async with Sandbox(clone_s=0.02) as sandbox, calling(sandbox, timeout_s=timeout_s, in_process=False) as caller:
        sandbox.fail("clone-voice", fault)
        with pytest.raises(error):
            await caller.clone()
        await over(sandbox)
        assert len(await caller.cloned()) == made


async def test_other_faults_over_loopback() -> None:
    """A dripping answer arrives, a status without a name and a page of HTML pass, and 429 carries its header."""
    async with Sandbox(clone_s=0) as sandbox, calling(sandbox, in_process=False) as caller:
        sandbox.fail("clone-voice", Fault.drip(0.001, piece_bytes=100))
        assert (await caller.clone()).is_success
        sandbox.fail("clone-voice", Fault.html(520))
        assert (await caller.clone()).text.startswith("<!DOCTYPE")
        sandbox.fail("clone-voice", Fault.status(503, b""))
        assert (await caller.clone()).content == b""
        sandbox.fail("clone-voice", Fault.rate_limited(3))
        assert (await caller.clone()).headers["retry-after"] == "3"
        sandbox.break_account(sandbox.accounts[0])
        assert (await caller.clone()).status_code == 596


async def test_a_slow_reader_is_waited_for() -> None:
    """An answer larger than the socket's buffers is sent as the client takes it."""
    big = b"x" * 8_000_000
    async with Sandbox() as sandbox, raw(sandbox) as stream:
        sandbox.fail("scheduler", Fault.status(200, big))
        await stream.send(head(sandbox, SCHEDULER, "Connection: close"))
        await anyio.sleep(0.05)
        assert (await rest(stream)).endswith(b"\r\n\r\n" + big)


async def test_errors_inside_the_server_are_raised_at_the_end() -> None:
    """A bug, here of a callable setting, closes the connection, and comes out where the block ends."""

    def clone_s(voice_name: str) -> float:
        raise LookupError(voice_name)

    with pytest.raises(LookupError, match="Ann"):
        async with Sandbox(clone_s=clone_s) as sandbox, calling(sandbox, in_process=False) as caller:
            with pytest.raises(httpx.RemoteProtocolError):
                await caller.clone()
    with pytest.raises(ExceptionGroup, match="several") as caught:
        async with Sandbox(clone_s=clone_s) as sandbox, calling(sandbox, in_process=False) as caller:
            for _ in range(2):
                with pytest.raises(httpx.RemoteProtocolError):
                    await caller.clone()
    assert len(caught.value.exceptions) == 2
    sandbox.check()


async def test_the_blocks_own_exception_comes_first() -> None:
    """An exception of the block comes out as itself, though the server has one to tell too."""
    with pytest.raises(ZeroDivisionError) as caught:
        async with Sandbox(clone_s=lambda name: 1 / 0) as sandbox, calling(sandbox, in_process=False) as caller:
            with pytest.raises(httpx.RemoteProtocolError):
                await caller.clone()
            raise ZeroDivisionError("mine")
    assert str(caught.value) == "mine"
    with pytest.raises(ZeroDivisionError):
        sandbox.check()


async def test_groups_of_the_block_are_left_alone() -> None:
    """A group that the block raises comes out as it was."""
    group = ExceptionGroup("mine", [ValueError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with Sandbox():
            raise group
    assert caught.value is group


async def test_cancellation_passes_through() -> None:
    """A cancelled block ends, and the server with it."""
    with anyio.move_on_after(0.02) as scope:
        async with Sandbox():
            await anyio.sleep(5)
    assert scope.cancelled_caught


async def test_the_server_stops_with_the_block() -> None:
    """After the block nobody listens, waiting requests are over, and what was seen can still be read."""
    async with Sandbox(clone_s=0.05) as sandbox, raw(sandbox) as stream:
        sandbox.fail("scheduler", Fault.hang(made=True))
        await stream.send(head(sandbox, SCHEDULER))
        await anyio.sleep(0.02)
    with pytest.raises(OSError, match=r"."):
        await anyio.connect_tcp("127.0.0.1", httpx.URL(sandbox.base_url).port or 0)
    assert sandbox.count("scheduler") == 1


async def test_a_failing_listener_is_no_secret() -> None:
    """When the server itself breaks, the block is cancelled and the server's exception comes out."""
    from useapi_voice.sandbox import _server

    def broken(*args: Any) -> None:
        raise OSError("no more files")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no more files"):
        patch.setattr(_server, "_accept", broken)
        async with Sandbox() as sandbox:
            with socket.create_connection(("127.0.0.1", httpx.URL(sandbox.base_url).port or 0)):
                await anyio.sleep(5)


async def test_a_port_that_is_taken() -> None:
    """A port in use is an error at once, and the listening address can be chosen."""
    async with Sandbox(host="::1") as sandbox:
        assert sandbox.base_url.startswith("http://[::1]:")
        with pytest.raises(OSError, match=r"[Aa]ddress"):
            async with Sandbox(host="::1", port=httpx.URL(sandbox.base_url).port or 0):
                raise AssertionError("two servers on one port")
