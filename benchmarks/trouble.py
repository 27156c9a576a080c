"""
The same batch with trouble: 5 % 429 (`Retry-After` 1 s), 2 % lost answers, one account of three out of order.

The rivals retry blindly, as their users do: up to five times on a refusal or a broken connection, after what
`Retry-After` says or a second. What counts is what the server has at the end: voices that are missing, voices that were
made (and are paid for) twice, and requests beyond the two that an account takes at once.

    python benchmarks/trouble.py [--clones 120] [--clone-s 0.2] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from _common import Server, machine, report, sandbox_process, table
from throughput import Work, bare, both, distinct

from useapi_voice import CloneError, CloneRequest, VoiceClient
from useapi_voice.sandbox import sample_paths

TRIES = 5
RETRIED = {408, 429, 500, 502, 503, 504, 596}
"""What a retrying transport takes as worth another try."""


async def this_library(server: Server, work: Work) -> int:
    """`submit_many`, and await; returns how many voices were reported."""
    reported = 0
    async with VoiceClient(server.token, base_url=server.base_url, api="audio", settle_after_s=2.0) as client:
        requests = [
            CloneRequest(voice_name=f"v{i}", language_tag="English", samples=[sample])
            for i, sample in enumerate(work.samples)
        ]
        for job in await client.submit_many(requests):
            try:
                await job
            except CloneError:
                continue
            reported += 1
    return reported


async def insist(attempt: Callable[[], Awaitable[None]]) -> bool:
    """Try again, as most retry helpers do."""
    for _ in range(TRIES):
        try:
            await attempt()
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in RETRIED:
                return False
            await asyncio.sleep(float(error.response.headers.get("retry-after", 1)))
        except httpx.TransportError:
            await asyncio.sleep(1)
        else:
            return True
    return False


async def gather_and_semaphore(server: Server, work: Work) -> int:
    """`asyncio.gather`, a `Semaphore(2)` per account, and blind retries."""
    gates = {account: asyncio.Semaphore(2) for account in work.accounts}
    async with bare(server) as client:

        async def one(number: int, account: str, sample: bytes) -> bool:
            async with gates[account]:
                return await insist(lambda: both(client, account, number, sample))

        jobs = zip(itertools.count(), itertools.cycle(work.accounts), work.samples)
        return sum(await asyncio.gather(*(one(*job) for job in jobs)))


async def queue_and_workers(server: Server, work: Work) -> int:
    """`asyncio.Queue` with two workers per account, which share the work, and blind retries."""
    queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    for job in enumerate(work.samples):
        queue.put_nowait(job)
    made = 0
    async with bare(server) as client:

        async def serve(account: str) -> None:
            nonlocal made
            while not queue.empty():
                number, sample = queue.get_nowait()
                is_made = await insist(lambda: both(client, account, number, sample))  # noqa: B023 - awaited at once
                made += is_made

        await asyncio.gather(*(serve(account) for account in work.accounts for _ in range(2)))
    return made


CONTENDERS = {
    "useapi_voice": this_library,
    "gather + Semaphore(2), retries": gather_and_semaphore,
    "asyncio.Queue, 2 workers an account, retries": queue_and_workers,
}
PLANT = """[
    sandbox.fail("clone-voice", F.rate_limited(1, "seconds"), probability=0.05, times=None),
    sandbox.fail("clone-voice", F.drop(made=True, at="end"), probability=0.02, times=None),
    sandbox.break_account(sandbox.accounts[-1]),
] and None"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=int, default=120)
    parser.add_argument("--clone-s", type=float, default=0.2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    base = next(path for path in sample_paths() if path.suffix == ".mp3").read_bytes()
    rows = []
    for name, contender in CONTENDERS.items():
        with sandbox_process(accounts=3, clone_s=options.clone_s, seed=7) as server:
            server.ask(PLANT.replace("F.", "__import__('useapi_voice.sandbox').sandbox.Fault."))
            accounts = list(server.ask("sandbox.accounts"))
            work = Work(options.clones, accounts, [distinct(base, number) for number in range(options.clones)])
            start = time.perf_counter()
            reported = asyncio.run(contender(server, work))
            took_s = time.perf_counter() - start
            time.sleep(options.clone_s)  # what runs on at the server after its client has given up
            voices = Counter(server.ask("[voice.voice_name for voice in sandbox.voices()]"))
            breaches = server.ask("len(sandbox.breaches)")
        doubled = sum(count - 1 for count in voices.values())
        rows.append((name, reported, len(voices), options.clones - len(voices), doubled, breaches, f"{took_s:.1f}"))
    print(f"{options.clones} clones, 3 accounts of which one is out of order, clone {options.clone_s} s. {machine()}\n")
    headers = ("", "reported", "voices", "missing", "doubled", "breaches", "makespan s")
    print(table(headers, rows))
    report("trouble", {"rows": [list(map(str, row)) for row in rows]})


if __name__ == "__main__":
    main()
