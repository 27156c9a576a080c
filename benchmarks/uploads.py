"""
Samples on their way: throughput beside bare httpx streaming the same files, peak memory, inspecting, hashing, dedup.

The server runs in a process of its own, reads what comes and counts. Ours does more than the rivals do: each sample is
inspected (format and length, from its bytes), hashed, and checked for changes while it is read. Memory is measured in
processes of their own, whose jobs have samples of 10 MB each (sparse files: they cost no disk).

    python benchmarks/uploads.py [--size quick] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiofiles
import httpx
from _common import Measured, Row, a_minute_of_mp3, machine, measured, parser, report, row, show
from _rivals import bare
from _server import MeasuringServer, measuring_server

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice._models import Sample
from useapi_voice._samples import Inspected, SampleBook

MB = 1_000_000
RIVALS_CHUNK_BYTES = 64 * 1024
AT_ONCE = 6
"""Uploads at once where many files go up: two for each of three accounts, for all contenders."""
MEMORY_FILE_BYTES = 10 * MB


@dataclass(frozen=True, slots=True)
class Size:
    """How much of each: repeats, megabytes of single files, a number of small files, and jobs for the memory."""

    repeats: int
    files_mb: tuple[int, ...]
    small: int
    jobs: int


SIZES = {
    "smoke": Size(1, (1,), 6, 4),
    "quick": Size(5, (1, 10, 60), 200, 100),
    "full": Size(7, (1, 10, 60), 1_000, 1_000),
}


# --- files --------------------------------------------------------------------------------------------------------


def write_wav(path: Path, size_bytes: int, number: int = 0) -> Path:
    """Write a minute of silence in so many bytes (16 bit, mono, at whatever rate that makes); each number differs."""
    data_bytes = size_bytes - 44 & ~1
    rate = data_bytes // 2 // 60 + 1
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    head = struct.pack("<4sI4s", b"RIFF", data_bytes + 36, b"WAVE") + form + struct.pack("<4sI", b"data", data_bytes)
    with path.open("wb") as file:
        file.write(head + struct.pack("<Q", number))
        file.truncate(44 + data_bytes)
    return path


def write_mp3(path: Path, kbit_s: int = 64, number: int = 0) -> Path:
    """Write a minute of mp3."""
    path.write_bytes(a_minute_of_mp3(kbit_s, number))
    return path


# --- the contenders -----------------------------------------------------------------------------------------------

Upload = Callable[[Path, str], Awaitable[None]]
"""Brings one file to one account."""


async def read_in_chunks(path: Path) -> AsyncGenerator[bytes, None]:
    """The async generator that httpx's documentation asks for, over aiofiles."""
    async with aiofiles.open(path, "rb") as file:
        while chunk := await file.read(RIVALS_CHUNK_BYTES):
            yield chunk


async def streamed(client: httpx.AsyncClient, path: Path, account: str) -> None:
    """Bare httpx, streaming."""
    size_bytes = path.stat().st_size  # noqa: ASYNC240 - microseconds, and what a user writes
    answer = await client.post(
        "/audio/upload-sample/",
        params={"account": account},
        content=read_in_chunks(path),
        headers={"Content-Type": "audio/wav", "Content-Length": str(size_bytes)},
    )
    assert answer.json()["fileID"]


async def read_whole(client: httpx.AsyncClient, path: Path, account: str) -> None:
    """Bare httpx, the whole file in memory."""
    answer = await client.post(
        "/audio/upload-sample/",
        params={"account": account},
        content=await asyncio.to_thread(path.read_bytes),
        headers={"Content-Type": "audio/wav"},
    )
    assert answer.json()["fileID"]


async def all_of(files: list[Path], accounts: list[str], upload: Upload, at_once: int) -> None:
    """Upload every file, so many at once."""
    left = list(enumerate(files))

    async def work() -> None:
        while left:
            number, path = left.pop()
            await upload(path, accounts[number % len(accounts)])

    await asyncio.gather(*(work() for _ in range(at_once)))


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds on the clock and of the processor."""

    seconds: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """What goes up, and how many at once; `warm` goes up before the clock starts."""

    files: list[Path]
    at_once: int
    warm: Path


async def timed(load: Load, accounts: list[str], upload: Upload) -> Took:
    await upload(load.warm, accounts[0])
    start, cpu = time.perf_counter(), time.process_time()
    await all_of(load.files, accounts, upload, load.at_once)
    return Took(time.perf_counter() - start, time.process_time() - cpu)


async def by_httpx(
    server: MeasuringServer, load: Load, how: Callable[[httpx.AsyncClient, Path, str], Awaitable[None]]
) -> Took:
    async with bare(server) as client:
        return await timed(load, server.accounts, partial(how, client))


async def by_us(server: MeasuringServer, load: Load) -> Took:
    async with VoiceClient(server.token, base_url=server.base_url, api="audio") as client:

        async def upload(path: Path, account: str) -> None:
            assert (await client.upload_sample(path, account=account)).file_id

        return await timed(load, server.accounts, upload)


def throughput(
    server: MeasuringServer, load: Load, what: str, repeats: int, *, at_most: float | None = None
) -> list[Row]:
    """Megabytes a second and CPU, in turns."""
    contenders: dict[str, Callable[[], Awaitable[Took]]] = {
        "ours": partial(by_us, server, load),
        "httpx, streamed by 64 kB": partial(by_httpx, server, load, streamed),
        "httpx, whole file in memory": partial(by_httpx, server, load, read_whole),
    }
    runs: dict[str, list[Took]] = {name: [] for name in contenders}
    for _ in range(repeats):
        server.reset(0.0, 0.0)
        for name, contender in contenders.items():
            runs[name].append(asyncio.run(_await(contender)))
        assert server.figures().uploads == len(contenders) * (len(load.files) + 1)
    size_mb = sum(path.stat().st_size for path in load.files) / MB
    rates = {name: measured((size_mb / run.seconds for run in took), "MB/s") for name, took in runs.items()}
    cpus = {name: measured((run.cpu_s / size_mb * 1e3 for run in took), "ms/MB") for name, took in runs.items()}
    ours, streaming, whole = contenders
    return [
        row(f"upload of {what}", rates[ours], (streaming, rates[streaming])),
        row(f"upload of {what}", rates[ours], (whole, rates[whole])),
        row(f"upload of {what}, CPU", cpus[ours], (streaming, cpus[streaming]), at_most=at_most),
        row(f"upload of {what}, CPU", cpus[ours], (whole, cpus[whole])),
    ]


async def _await(work: Callable[[], Awaitable[Took]]) -> Took:
    return await work()


# --- inspecting and hashing ---------------------------------------------------------------------------------------


async def inspect_s(path: Path) -> tuple[float, float]:
    """CPU seconds to inspect a file, and to hash it."""
    async with SampleBook() as book:
        start = time.process_time()
        found = await book.inspect(Sample(path), "samples[0]")
        inspected = time.process_time()
        assert isinstance(found, Inspected), found
        await found.digest()
        return inspected - start, time.process_time() - inspected


def hash_s(content: bytes) -> float:
    """CPU seconds of the hash alone."""
    start = time.process_time()
    hashlib.sha256(content).hexdigest()
    return time.process_time() - start


def looking(folder: Path, repeats: int) -> list[Row]:
    """What it costs to look into a sample, and to hash it, beside a bare SHA-256 of content that is in memory."""
    files = {
        "60 s mp3, 64 kbit/s": write_mp3(folder / "look-64.mp3"),
        "60 s mp3, 320 kbit/s": write_mp3(folder / "look-320.mp3", 320),
        "60 s wav, 10 MB": write_wav(folder / "look.wav", 10 * MB),
    }
    rows = []
    for name, path in files.items():
        content = path.read_bytes()
        runs = [(asyncio.run(inspect_s(path)), hash_s(content)) for _ in range(repeats + 1)][1:]
        bare_hash = ("SHA-256 of the same in memory", measured((run[1] for run in runs), "ms", 1e3))
        rows += [
            row(f"inspecting a {name}, CPU", measured((run[0][0] for run in runs), "ms", 1e3)),
            row(f"hashing a {name}, CPU", measured((run[0][1] for run in runs), "ms", 1e3), bare_hash),
        ]
    return rows


# --- memory and dedup, in processes of their own ------------------------------------------------------------------


async def clone_all(base_url: str, token: str, folder: Path, jobs: int, *, shared: bool) -> None:
    """Clone so many voices, each from a sample of 10 MB of its own, or all from the same."""
    async with VoiceClient(token, base_url=base_url, api="audio") as client:
        requests = [
            CloneRequest(
                voice_name=f"v{number}", language_tag="English", samples=[folder / f"{0 if shared else number}.wav"]
            )
            for number in range(jobs)
        ]
        for job in await client.submit_many(requests):
            assert (await job).voice_id


async def clone_by_gather(base_url: str, token: str, folder: Path, jobs: int) -> None:
    """What is written first: every sample is read, then a semaphore is waited for."""
    account = "335577991122334455"
    gate = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(
        base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=120
    ) as client:

        async def one(number: int) -> None:
            content = await asyncio.to_thread((folder / f"{number}.wav").read_bytes)
            async with gate:
                uploaded = await client.post("/audio/upload-sample/", params={"account": account}, content=content)
                body = {"account": account, "voice_name": f"v{number}", "files": uploaded.json()["fileID"]}
                assert (await client.post("/audio/clone-voice", json=body)).json()["voice_id"]

        await asyncio.gather(*(one(number) for number in range(jobs)))


def in_child(server: MeasuringServer, folder: Path, jobs: int, how: str) -> dict[str, float]:
    """Run this file for one measurement of memory."""
    command = [sys.executable, __file__, "--child", server.base_url, server.token, str(folder), str(jobs), how]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def peak_bytes() -> int:
    """The most that this process occupied so far; `ru_maxrss` would count the parent's, where the system has better."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(base_url: str, token: str, folder: str, jobs: str, how: str) -> None:
    """Clone, and print by how much memory grew at its highest, in bytes."""
    warm = Path(folder)
    asyncio.run(clone_all(base_url, token, warm, 1, shared=True))
    if how == "traced":
        tracemalloc.start()
    before = peak_bytes()
    start = time.perf_counter()
    if how == "gather":
        asyncio.run(clone_by_gather(base_url, token, warm, int(jobs)))
    else:
        asyncio.run(clone_all(base_url, token, warm, int(jobs), shared=how == "shared"))
    grown = peak_bytes() - before
    traced = tracemalloc.get_traced_memory()[1] if how == "traced" else 0
    print(json.dumps({"seconds": time.perf_counter() - start, "rss": grown, "traced": traced}))


def memory(server: MeasuringServer, folder: Path, size: Size) -> list[Row]:
    """Peak memory by the number of jobs, beside what reading everything ahead costs."""
    for number in range(size.jobs):
        write_wav(folder / f"{number}.wav", MEMORY_FILE_BYTES, number)
    server.reset(0.0, 0.0)
    many = Measured((in_child(server, folder, size.jobs, "distinct")["rss"] / MB,), "MB")
    traced = Measured((in_child(server, folder, size.jobs, "traced")["traced"] / MB,), "MB")
    # The rival with the few jobs where the many would not fit: it holds them all.
    held = min(size.jobs, 100)
    gathered = in_child(server, folder, held, "gather")["rss"] / MB
    what = f"{size.jobs:,} jobs of 10 MB samples: peak"
    return [
        row(f"{what} growth (RSS)", many, at_most=64),
        row(f"{what} allocated (tracemalloc)", traced, at_most=32),
        row(f"{what} growth (RSS)", many, (f"gather, {held} such samples read ahead", Measured((gathered,), "MB"))),
    ]


def dedup(server: MeasuringServer, folder: Path, size: Size) -> list[Row]:
    """How often one content goes up, whatever number of jobs use it on three accounts."""
    server.reset(0.0, 0.0)
    in_child(server, folder, size.jobs, "shared")
    # One more is the child's own warm-up, in another client.
    uploads = Measured((server.figures().uploads - 1,), "uploads")
    rival = ("as many as a job each", Measured((size.jobs,), "uploads"))
    what = f"{size.jobs:,} jobs of one content on {len(server.accounts)} accounts"
    return [row(f"{what}", uploads, rival, at_most=len(server.accounts) / size.jobs)]


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--child", nargs=5, help="one measurement of memory, for this benchmark itself")
    asked = options.parse_args()
    if asked.child:
        child(*asked.child)
        return
    size = SIZES[asked.size]
    repeats = asked.repeats or size.repeats
    print(f"{machine()}; medians of {repeats}\n")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, measuring_server(3) as server:
        folder = Path(scratch)
        warm = write_mp3(folder / "warm.mp3", number=10**6)
        for size_mb in size.files_mb:
            count = max(1, size.files_mb[-1] // size_mb // 3)
            files = [write_wav(folder / f"{size_mb}-mb-{number}.wav", size_mb * MB, number) for number in range(count)]
            what = f"{count} wav of {size_mb} MB, one after the other"
            # Of a small one the calls are the cost, not the bytes.
            at_most = 1.5 if size_mb >= 10 else None
            rows += throughput(server, Load(files, 1, warm), what, repeats, at_most=at_most)
        files = [write_mp3(folder / f"small-{number}.mp3", number=number) for number in range(size.small)]
        what = f"{size.small:,} mp3 of 60 s, 0.5 MB, {AT_ONCE} at once"
        rows += throughput(server, Load(files, AT_ONCE, warm), what, repeats)
        rows += looking(folder, repeats)
        rows += memory(server, folder, size)
        rows += dedup(server, folder, size)
    print(show(rows))
    report("uploads", {"rows": rows})


if __name__ == "__main__":
    main()
