"""Hands bytes on between two sockets: a host's own loopback for what is elsewhere, and a wire that can be cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from enum import Enum

DELIVERY_S = 1.0
"""Shorter than the time for which tests keep a place; see `useapi_voice._wire`."""
TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)


class Fate(Enum):
    """What becomes of a connection when a client has sent something."""

    GOES_ON = "goes on"
    LOSES_THE_ANSWER = "loses the answer"
    """It arrives; then the connection ends."""
    FALLS_SILENT = "falls silent"
    """Nothing arrives any more, either way, and nobody is told."""


Watch = Callable[[bytes], Fate]


@asynccontextmanager
async def relay(host: str, port: int, watch: Watch = lambda data: Fate.GOES_ON) -> AsyncGenerator[int, None]:
    """Listen on a port of this host's loopback, and hand on what comes."""
    tasks: set[asyncio.Task[None]] = set()

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        with suppress(OSError):
            async with asyncio.timeout(DELIVERY_S):
                answers, there = await asyncio.open_connection(host, port)
            # It stands for a client that reaches that host itself, and such a one gives up delivering in good time.
            there.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(1000 * DELIVERY_S))
            await asyncio.gather(*_pumps((reader, writer), (answers, there), watch))
        for end in (writer, there):
            if end is not None:
                end.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(hand_on(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1")
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _pumps(
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    watch: Watch,
) -> tuple[Coroutine[None, None, None], Coroutine[None, None, None]]:
    fate = Fate.GOES_ON

    def sent(data: bytes) -> Fate:
        nonlocal fate
        fate = watch(data) if fate is Fate.GOES_ON else fate
        return Fate.GOES_ON if fate is Fate.LOSES_THE_ANSWER else fate

    return _pump(client[0], server[1], sent), _pump(server[0], client[1], lambda data: fate)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, judge: Watch) -> None:
    try:
        while data := await reader.read(65536):
            match judge(data):
                case Fate.LOSES_THE_ANSWER:
                    break
                case Fate.GOES_ON:
                    writer.write(data)
                    await writer.drain()
                case Fate.FALLS_SILENT:
                    pass
    except OSError:
        pass
    finally:
        writer.close()
