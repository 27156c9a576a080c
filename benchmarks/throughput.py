"""
Places kept busy: 300 clones over three accounts, uploads needed, beside what a user would write without this library.

The sandbox runs in a process of its own, takes 0.2 s for a clone, and counts at its end how busy each place was. The
ideal is `ceil(n / places) * clone_s`: what the places allow if none is ever idle. Rivals run in the same process, after
one warm-up each, one after the other, `--repeats` times.

    python benchmarks/throughput.py [--clones 300] [--accounts 3] [--clone-s 0.2] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiometer
import httpx
from _common import Server, machine, report, sandbox_process, table

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice.sandbox import sample_paths


@dataclass(frozen=True, slots=True)
class Work:
    """What each contender does: `clones` voices, each from a sample of its own content, over `accounts`."""

    clones: int
    accounts: list[str]
    samples: list[bytes]


def distinct(sample: bytes, number: int) -> bytes:
    """A sample whose content nobody else has: a trailing ID3v1 tag with a number, which no player hears."""
    return sample + b"TAG" + f"{number:<125}".encode()


# --- the contenders -----------------------------------------------------------------------------------------------


async def this_library(server: Server, work: Work) -> None:
    """`submit_many`, and await."""
    async with VoiceClient(server.token, base_url=server.base_url, api="audio") as client:
        requests = [
            CloneRequest(voice_name=f"v{i}", language_tag="English", samples=[sample])
            for i, sample in enumerate(work.samples)
        ]
        for job in await client.submit_many(requests):
            await job


def bare(server: Server, **options: object) -> httpx.AsyncClient:
    """The httpx client that the rivals use; its timeout and pool are raised, or it would fail."""
    return httpx.AsyncClient(
        base_url=server.base_url,
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=120,
        limits=httpx.Limits(max_connections=None),
        **options,
    )


async def upload(client: httpx.AsyncClient, account: str, sample: bytes) -> str:
    """Upload on bare httpx."""
    answer = await client.post(
        "/audio/upload-sample/", params={"account": account}, content=sample, headers={"Content-Type": "audio/mpeg"}
    )
    answer.raise_for_status()
    return str(answer.json()["fileID"])


async def clone(client: httpx.AsyncClient, account: str, name: str, file_id: str) -> None:
    """Clone on bare httpx."""
    body = {"account": account, "voice_name": name, "language_tag": "English", "files": file_id}
    answer = await client.post("/audio/clone-voice", json=body)
    answer.raise_for_status()
    assert answer.json()["voice_id"]


async def both(client: httpx.AsyncClient, account: str, number: int, sample: bytes) -> None:
    """Upload, then clone."""
    await clone(client, account, f"v{number}", await upload(client, account, sample))


async def serial_loop(server: Server, work: Work) -> None:
    """The vendor's own way: one after the other."""
    async with bare(server) as client:
        for number, (account, sample) in enumerate(zip(itertools.cycle(work.accounts), work.samples)):
            await both(client, account, number, sample)


async def gather_and_semaphore(server: Server, work: Work) -> None:
    """`asyncio.gather` with a `Semaphore(2)` per account around upload and clone."""
    gates = {account: asyncio.Semaphore(2) for account in work.accounts}

    async def one(number: int, account: str, sample: bytes) -> None:
        async with gates[account]:
            await both(client, account, number, sample)

    async with bare(server) as client:
        jobs = zip(itertools.count(), itertools.cycle(work.accounts), work.samples)
        await asyncio.gather(*(one(*job) for job in jobs))


async def with_aiometer(server: Server, work: Work) -> None:
    """`aiometer.run_all` with `max_at_once=2`, one run per account."""
    async with bare(server) as client:
        by_account: dict[str, list[Callable[[], Awaitable[None]]]] = {account: [] for account in work.accounts}
        for number, (account, sample) in enumerate(zip(itertools.cycle(work.accounts), work.samples)):
            by_account[account].append(partial(both, client, account, number, sample))
        await asyncio.gather(*(aiometer.run_all(jobs, max_at_once=2) for jobs in by_account.values()))


CONTENDERS = {
    "useapi_voice": this_library,
    "gather + Semaphore(2), bare httpx": gather_and_semaphore,
    "aiometer, bare httpx": with_aiometer,
    "serial loop, bare httpx": serial_loop,
}


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure each contender; the server counts."""
    base = next(path for path in sample_paths() if path.suffix == ".mp3").read_bytes()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    busy: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for repeat in range(options.repeats):
        for name, contender in CONTENDERS.items():
            if contender is serial_loop and repeat:
                continue  # a minute each, and nothing to learn from the second
            with sandbox_process(
                accounts=options.accounts, clone_s=options.clone_s, upload_s=options.upload_s
            ) as server:
                accounts = list(server.ask("sandbox.accounts"))
                warm = Work(6, accounts, [distinct(base, -number - 1) for number in range(6)])
                asyncio.run(contender(server, warm))
                before = server.ask("sum(sandbox.busy_s(a) for a in sandbox.accounts)")
                work = Work(options.clones, accounts, [distinct(base, number) for number in range(options.clones)])
                start = time.perf_counter()
                asyncio.run(contender(server, work))
                took = time.perf_counter() - start
                assert server.ask("len(sandbox.voices())") == options.clones + 6
                assert server.ask("len(sandbox.breaches)") == 0
                busy_s = server.ask("sum(sandbox.busy_s(a) for a in sandbox.accounts)") - before
                seconds[name].append(took)
                busy[name].append(busy_s / (2 * len(accounts) * took))
    return {
        name: {"makespan_s": statistics.median(seconds[name]), "busy": statistics.median(busy[name])} for name in busy
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=int, default=300)
    parser.add_argument("--accounts", type=int, default=3)
    parser.add_argument("--clone-s", type=float, default=0.2)
    parser.add_argument("--upload-s", type=float, default=0.02)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = run(options)
    ideal_s = math.ceil(options.clones / (2 * options.accounts)) * options.clone_s
    ours = results["useapi_voice"]["makespan_s"]
    print(
        f"{options.clones} clones, {options.accounts} accounts, clone {options.clone_s} s, upload {options.upload_s} s;"
    )
    print(f"medians of {options.repeats}. {machine()}\n")
    rows = [("ideal: places never idle", f"{ideal_s:.2f}", "100 %", "100 %", f"{ideal_s / ours:.2f}")]
    rows += [
        (
            name,
            f"{row['makespan_s']:.2f}",
            f"{ideal_s / row['makespan_s']:.1%}",
            f"{row['busy']:.1%}",
            f"{row['makespan_s'] / ours:.2f}",
        )
        for name, row in results.items()
    ]
    print(table(("", "makespan s", "of the ideal", "places busy (server)", "time, ours = 1"), rows))
    report("throughput", {"options": {**vars(options), "json": None}, "results": results})


if __name__ == "__main__":
    main()
