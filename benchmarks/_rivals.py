"""
What a user would write without this library, once for all benchmarks: bare httpx, and a way to hold two places.

All of them are handed what they need: the accounts are known, timeouts and pool are raised (httpx's own would fail),
and where samples are shared they remember what they have uploaded. `Insist` is how they try again, if they do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import aiometer
import httpx


class Place(Protocol):
    """Where a server is."""

    base_url: str
    token: str


@dataclass(frozen=True, slots=True)
class Work:
    """
    What each contender does.

    Attributes:
        accounts: Where.
        samples: One for each voice that is to be made.
        is_shared: Whether they are all the same.
    """

    accounts: list[str]
    samples: list[bytes]
    is_shared: bool = False

    def dealt(self) -> Iterator[tuple[int, str, bytes]]:
        """Yield number, account and sample of each voice, accounts in turn."""
        return zip(itertools.count(), itertools.cycle(self.accounts), self.samples)


def work_of(clones: int, accounts: list[str], sample: bytes, *, is_shared: bool = False) -> Work:
    """Make work from one sample; distinct ones differ in an ID3v1 tag at their end, which no player hears."""
    samples = [sample if is_shared else sample + b"TAG" + f"{number:<125}".encode() for number in range(clones)]
    return Work(accounts, samples, is_shared)


Insist = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Carries out what it is given, once or more often; raises if that was in vain."""


async def once(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """No second try."""
    return await attempt()


def bare(server: Place) -> httpx.AsyncClient:
    """The httpx client that the rivals use."""
    return httpx.AsyncClient(
        base_url=server.base_url,
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=120,
        limits=httpx.Limits(max_connections=None),
    )


@dataclass(slots=True)
class Hands:
    """One voice on bare httpx."""

    client: httpx.AsyncClient
    insist: Insist
    is_shared: bool
    _uploaded: dict[str, asyncio.Future[str]] = field(default_factory=dict)

    async def upload(self, account: str, sample: bytes) -> str:
        """Upload a sample, or remember where it is."""
        if not self.is_shared:
            return await self._upload(account, sample)
        if account not in self._uploaded:
            self._uploaded[account] = asyncio.ensure_future(self._upload(account, sample))
        return await self._uploaded[account]

    async def _upload(self, account: str, sample: bytes) -> str:
        answer = await self.client.post(
            "/audio/upload-sample/", params={"account": account}, content=sample, headers={"Content-Type": "audio/mpeg"}
        )
        answer.raise_for_status()
        return str(answer.json()["fileID"])

    async def clone(self, account: str, number: int, file_id: str) -> None:
        """Clone a voice."""
        body = {"account": account, "voice_name": f"v{number}", "language_tag": "English", "files": file_id}
        answer = await self.client.post("/audio/clone-voice", json=body)
        answer.raise_for_status()
        assert answer.json()["voice_id"]

    async def both(self, account: str, number: int, sample: bytes) -> None:
        """Upload, then clone."""
        await self.clone(account, number, await self.upload(account, sample))


async def _succeeds(attempt: Awaitable[Any]) -> bool:
    try:
        await attempt
    except httpx.HTTPError:
        return False
    return True


async def serial_loop(hands: Hands, work: Work) -> int:
    """The vendor's own way: one after the other."""
    made = 0
    for number, account, sample in work.dealt():
        made += await _succeeds(hands.insist(partial(hands.both, account, number, sample)))
    return made


async def gather_inside(hands: Hands, work: Work) -> int:
    """`asyncio.gather` with a `Semaphore(2)` per account around upload and clone."""
    gates = {account: asyncio.Semaphore(2) for account in work.accounts}

    async def one(number: int, account: str, sample: bytes) -> bool:
        async with gates[account]:
            return await _succeeds(hands.insist(partial(hands.both, account, number, sample)))

    return sum(await asyncio.gather(*(one(*job) for job in work.dealt())))


async def gather_outside(hands: Hands, work: Work) -> int:
    """As above, but the upload goes before the semaphore: all samples at once, and held in memory by the queue."""
    gates = {account: asyncio.Semaphore(2) for account in work.accounts}

    async def one(number: int, account: str, sample: bytes) -> None:
        file_id = await hands.insist(partial(hands.upload, account, sample))
        async with gates[account]:
            await hands.insist(partial(hands.clone, account, number, file_id))

    return sum(await asyncio.gather(*(_succeeds(one(*job)) for job in work.dealt())))


async def with_aiometer(hands: Hands, work: Work) -> int:
    """`aiometer.run_all` with `max_at_once=2`, one run per account."""
    by_account: dict[str, list[Callable[[], Awaitable[bool]]]] = {account: [] for account in work.accounts}

    async def one(number: int, account: str, sample: bytes) -> bool:
        return await _succeeds(hands.insist(partial(hands.both, account, number, sample)))

    for number, account, sample in work.dealt():
        by_account[account].append(partial(one, number, account, sample))
    made = await asyncio.gather(*(aiometer.run_all(jobs, max_at_once=2) for jobs in by_account.values()))
    return sum(map(sum, made))


async def queue_and_workers(hands: Hands, work: Work) -> int:
    """One `asyncio.Queue` with two workers for each account, which share the work."""
    queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    for job in enumerate(work.samples):
        queue.put_nowait(job)

    async def serve(account: str) -> int:
        made = 0
        while not queue.empty():
            number, sample = queue.get_nowait()
            made += await _succeeds(hands.insist(partial(hands.both, account, number, sample)))
        return made

    return sum(await asyncio.gather(*(serve(account) for account in work.accounts for _ in range(2))))


RIVALS: dict[str, Callable[[Hands, Work], Awaitable[int]]] = {
    "gather + semaphore": gather_inside,
    "gather, uploads ahead": gather_outside,
    "aiometer": with_aiometer,
    "asyncio.Queue, 2 workers": queue_and_workers,
    "serial loop": serial_loop,
}


async def run_rival(name: str, server: Place, work: Work, insist: Insist = once) -> int:
    """Have a rival do the work; return how many voices it believes it made."""
    async with bare(server) as client:
        return await RIVALS[name](Hands(client, insist, work.is_shared), work)
