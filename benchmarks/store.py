"""
What the SQLite store costs: accepting many jobs, one job's way through it, and opening a file after a busy week.

Each measurement is made in a process of its own on a new file, `--repeats` times. Disks differ: a commit waits for one
fsync, so what is sequential and awaited is as fast as the disk syncs, and all else is as fast as this machine computes.
Syncs are counted by strace where there is one; commits by SQLite. Memory is the process's growth, the jobs included.

    python benchmarks/store.py [--jobs 100000] [--repeats 3] [--directory DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing as mp
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from _common import machine, report, table

from useapi_voice import CloneRequest, VoiceInfo
from useapi_voice._jobs import Attempt, Fingerprint, Job, JobState
from useapi_voice.stores.sqlite import SqliteStore

KEEP_S = 7 * 24 * 3600.0
CONCURRENT = 5_000
WAITING = 10_000
JOURNEYS = 300
OPENING_GOAL_S = 2.0

Result = dict[str, float]


def a_job(seq: int) -> Job:
    """Make a job with one sample in a file, and a key."""
    path = f"/srv/samples/speaker-{seq:06}.mp3"
    request = CloneRequest(voice_name=f"speaker {seq}", language_tag="English", samples=[path])
    prints = (Fingerprint(f"speaker-{seq:06}.mp3", f"{seq:064x}", 400_000, path),)
    return Job(uuid.uuid4().hex, f"order {seq}", request, 0, seq, None, fingerprints=prints)


def send(job: Job) -> Job:
    """Bring a job to where its request is about to leave."""
    job.state, job.account, job.attempts = JobState.SENT, "335577991122334455", 1
    job.history = (Attempt(job.account, datetime.now(UTC)),)
    return job


def finish(job: Job) -> VoiceInfo:
    """Bring a job to its end."""
    job.state = JobState.CLONED
    job.history = (replace(job.history[0], ended_at=datetime.now(UTC), verdict="cloned", status_code=200),)
    return VoiceInfo.model_validate(
        {
            "voice_id": f"user:1-minimax:{job.account}-audio:{job.seq}",
            "voice_name": job.request.voice_name,
            "tag_list": ["English"],
            "cover_url": "https://example.com/cover/0123456789abcdef.png",
            "create_time": 1_737_700_000_000,
            "sample_audio": "https://example.com/sample/0123456789abcdef.mp3",
            "voice_status": 2,
            "account": job.account,
        }
    )


def size_of(path: str) -> int:
    """Return how many bytes a file has."""
    return Path(path).stat().st_size


def rss_bytes() -> int:
    """Return what this process occupies now, where the system says so; 0 elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def commits(store: SqliteStore) -> Generator[list[str]]:
    """Collect the commits that a store makes."""
    connection = store._file._connection
    assert connection is not None
    seen: list[str] = []
    connection.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
    yield seen
    connection.set_trace_callback(None)


# --- the measurements -------------------------------------------------------------------------------------------------


async def submit(path: str, count: int, batch: int) -> Result:
    """Accept `count` jobs, `batch` at a time."""
    store = SqliteStore(path, keep_s=KEEP_S)
    await store.open()
    before = rss_bytes()
    jobs = [a_job(seq) for seq in range(1, count + 1)]
    made = rss_bytes()
    gc.collect()
    start = time.perf_counter()
    for first in range(0, count, batch):
        await store.add(jobs[first : first + batch])
    seconds = time.perf_counter() - start
    grown = rss_bytes()
    await store.aclose()
    return {
        "seconds": seconds,
        "job_bytes": (made - before) / count,
        "store_bytes": (grown - made) / count,
        "file_bytes": size_of(path) / count,
    }


async def submit_at_once(path: str, count: int) -> Result:
    """Accept `count` jobs from as many tasks."""
    store = SqliteStore(path, keep_s=KEEP_S)
    await store.open()
    jobs = [a_job(seq) for seq in range(1, count + 1)]
    with commits(store) as seen:
        start = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(store.add, [job])
        seconds = time.perf_counter() - start
    await store.aclose()
    return {"seconds": seconds, "commits": len(seen)}


async def journeys(path: str, count: int) -> Result:
    """Accept, send and settle one job after the other, each step awaited."""
    store = SqliteStore(path, keep_s=KEEP_S)
    await store.open()
    steps: dict[str, list[float]] = {"add": [], "sent": [], "settled": []}
    with commits(store) as seen:
        for seq in range(1, count + 1):
            job = a_job(seq)
            start = time.perf_counter()
            await store.add([job])
            added = time.perf_counter()
            await store.sent(send(job))
            sent = time.perf_counter()
            announced = anyio.Event()
            store.settled(job, finish(job), announced.set)
            await announced.wait()
            settled = time.perf_counter()
            for name, seconds in (("add", added - start), ("sent", sent - added), ("settled", settled - sent)):
                steps[name].append(seconds)
    await store.aclose()
    return {**{name: statistics.median(values) * 1e6 for name, values in steps.items()}, "commits": len(seen) / count}


async def reopen(path: str, finished: int, waiting: int) -> Result:
    """Open a file with so many jobs in it, `finished` of which have ended."""
    store = SqliteStore(path, keep_s=KEEP_S)
    await store.open()
    jobs = [a_job(seq) for seq in range(1, finished + waiting + 1)]
    await store.add(jobs)
    for job in jobs[:finished]:
        store.settled(job, finish(send(job)), lambda: None)
    await store.aclose()
    del jobs
    gc.collect()
    store = SqliteStore(path, keep_s=KEEP_S)
    start = time.perf_counter()
    recovered = await store.open()
    seconds = time.perf_counter() - start
    assert (len(recovered.jobs), recovered.last_seq) == (waiting, finished + waiting)
    start = time.perf_counter()
    connection = store._file._connection
    assert connection is not None
    assert connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    check_s = time.perf_counter() - start
    start = time.perf_counter()
    found = await store.find(f"order {finished // 2}")
    find_s = time.perf_counter() - start
    assert found is not None
    assert found.outcome is not None
    await store.aclose()
    return {"seconds": seconds, "quick_check": check_s, "find_us": find_s * 1e6, "megabytes": size_of(path) / 1e6}


# --- each in a process of its own -------------------------------------------------------------------------------------


def in_process(pipe: Any, work: Callable[[str], Awaitable[Result]], directory: str | None) -> None:
    """Measure on a new file, and send the result."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        pipe.send(anyio.run(work, str(Path(scratch) / "jobs.db")))


def measure(work: Callable[[str], Awaitable[Result]], repeats: int, directory: str | None) -> Result:
    """Measure several times, each in a new process; return the medians."""
    context = mp.get_context("spawn")
    results: list[Result] = []
    for _ in range(repeats):
        ours, theirs = context.Pipe()
        process = context.Process(target=in_process, args=(theirs, work, directory))
        process.start()
        theirs.close()
        results.append(ours.recv())
        process.join()
    return {name: statistics.median(result[name] for result in results) for name in results[0]}


def syncs_per_job(directory: str | None) -> float | None:
    """Count the fsyncs of one job's journey, by strace; `None` where that cannot be had."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    counts = []
    for count in (10, 60):
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            log = Path(scratch) / "log"
            command = [strace, "-f", "-e", "trace=fsync,fdatasync", "-o", str(log), sys.executable, __file__]
            traced = subprocess.run([*command, "--journeys", f"{scratch}/jobs.db", str(count)], check=False)
            if traced.returncode:
                return None
            counts.append(sum("sync(" in line and "resumed" not in line for line in log.read_text().splitlines()))
    return (counts[1] - counts[0]) / 50


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", help="where the files are made: the disk to be measured")
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("--journeys", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.journeys:
        anyio.run(journeys, options.journeys[0], int(options.journeys[1]))
        return

    def medians(work: Callable[..., Awaitable[Result]], *values: int) -> Result:
        return measure(partial(_call, work, values), options.repeats, options.directory)

    count = options.jobs
    whole = medians(submit, count, count)
    batches = medians(submit, count, 1000)
    at_once = medians(submit_at_once, CONCURRENT)
    journey = medians(journeys, JOURNEYS)
    syncs = syncs_per_job(options.directory)
    opened = medians(reopen, count, WAITING)
    assert opened["seconds"] < OPENING_GOAL_S or count != 100_000, "opening is slower than promised"

    def per_job(seconds: float, jobs: int) -> str:
        return f"{seconds / jobs * 1e6:.1f} us a job"

    print(machine())
    print(
        table(
            ["what", "median", ""],
            [
                (f"submit {count} jobs in one batch", f"{whole['seconds']:.2f} s", per_job(whole["seconds"], count)),
                ("... in batches of 1000", f"{batches['seconds']:.2f} s", per_job(batches["seconds"], count)),
                (
                    f"{CONCURRENT} submits at once",
                    f"{at_once['seconds']:.2f} s",
                    f"{per_job(at_once['seconds'], CONCURRENT)}, {at_once['commits']:.0f} commits",
                ),
                *((f"one job, {step}", f"{journey[step]:.0f} us", "") for step in ("add", "sent", "settled")),
                (
                    "one job, all three",
                    f"{sum(journey[step] for step in ('add', 'sent', 'settled')):.0f} us",
                    f"{journey['commits']:.1f} commits, "
                    + ("fsyncs not counted: no strace" if syncs is None else f"{syncs:.1f} fsyncs"),
                ),
                (
                    f"open a file of {count} ended and {WAITING} waiting jobs",
                    f"{opened['seconds']:.2f} s",
                    f"{opened['megabytes']:.0f} MB, {opened['quick_check']:.2f} s of it for the check of the file",
                ),
                ("find an ended job by its key in it", f"{opened['find_us']:.0f} us", ""),
                ("memory for a waiting job", f"{whole['job_bytes']:.0f} B", "of the queue, request and key included"),
                ("... for accepting it in one batch", f"{whole['store_bytes']:.0f} B", "until the batch is kept"),
                ("the file, for a waiting job", f"{whole['file_bytes']:.0f} B", ""),
            ],
        )
    )
    results = {"whole": whole, "batches": batches, "at_once": at_once, "journey": journey, "opened": opened}
    report("store", {**results, "syncs_per_job": syncs})


async def _call(work: Callable[..., Awaitable[Result]], values: tuple[int, ...], path: str) -> Result:
    return await work(path, *values)


if __name__ == "__main__":
    main()
