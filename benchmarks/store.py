"""
What durability costs a job: memory, an SQLite file and PostgreSQL side by side, and more of the SQLite file.

Side by side, jobs go through the whole client, whose remote answers at once and in process: `submit_many` of a batch,
`submit` of one after the other, and clones one after the other (accepted, sent, settled) and all at once. Beside stands
the same without a store. PostgreSQL is left out, with the reason, where there is none (`USEAPI_VOICE_TEST_POSTGRES`).

Of the SQLite file: accepting many jobs, one job's way through it, and opening a file after a busy week.
Each measurement is made in a process of its own on a new file, `--repeats` times. Disks differ: a commit waits for one
fsync, so what is sequential and awaited is as fast as the disk syncs, and all else is as fast as this machine computes.
Syncs are counted by strace where there is one; commits by SQLite. Memory is the process's growth, the jobs included.

    python benchmarks/store.py [--size quick] [--jobs N] [--repeats N] [--directory DIR] [--json FILE]
"""

from __future__ import annotations

import asyncio
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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
from _common import ACCOUNT, Instantly, Measured, Row, machine, measured, parser, report, row, show

from useapi_voice import CloneRequest, VoiceClient, VoiceInfo
from useapi_voice._jobs import Attempt, Fingerprint, Job, JobState
from useapi_voice.stores.sqlite import SqliteStore

KEEP_S = 7 * 24 * 3600.0
OPENING_GOAL_S = 2.0

Result = dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """How much of each: repeats, jobs of a batch, jobs one by one, and in a file: jobs, at once, waiting, journeys."""

    repeats: int
    batch: int
    one_by_one: int
    jobs: int
    concurrent: int
    waiting: int
    journeys: int


SIZES = {
    "smoke": Size(1, 50, 5, 200, 20, 20, 5),
    "quick": Size(3, 2_000, 100, 20_000, 2_000, 2_000, 100),
    "full": Size(5, 10_000, 300, 100_000, 5_000, 10_000, 300),
}


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


# --- side by side, through the whole client ---------------------------------------------------------------------------


def client_of(store: str | None, http: httpx.AsyncClient) -> VoiceClient:
    return VoiceClient(
        "user:1-token",
        base_url="http://127.0.0.1",
        api="audio",
        accounts=[ACCOUNT],
        store=store,
        http_client=http,
        close_grace_s=0.001,
    )


def requests(count: int) -> list[CloneRequest]:
    return [
        CloneRequest(voice_name=f"v{n}", language_tag="English", files=["f"], account=ACCOUNT) for n in range(count)
    ]


async def accept(store: str | None, size: Size) -> Result:
    """Submit behind two clones that are not answered: seconds a job, in a batch and one by one."""
    async with httpx.AsyncClient(transport=Instantly(asyncio.Event())) as http, client_of(store, http) as client:
        await client.submit_many(requests(2))
        batch, singles = requests(size.batch), requests(size.one_by_one)
        start = time.perf_counter()
        await client.submit_many(batch)
        accepted = time.perf_counter()
        for request in singles:
            await client.submit(request)
        ended = time.perf_counter()
    return {"batch": (accepted - start) / size.batch, "one": (ended - accepted) / size.one_by_one}


async def carry_out(store: str | None, size: Size) -> Result:
    """Clone one voice after the other, then all at once: seconds a job on the clock, and of this process."""
    async with httpx.AsyncClient(transport=Instantly()) as http, client_of(store, http) as client:
        await client.clone(requests(1)[0])
        start = time.perf_counter()
        for request in requests(size.one_by_one):
            await client.clone(request)
        serial_s = time.perf_counter() - start
        many = requests(5 * size.one_by_one)
        start, cpu = time.perf_counter(), time.process_time()
        for job in await client.submit_many(many):
            await job
        took = time.perf_counter() - start, time.process_time() - cpu
    return {"serial": serial_s / size.one_by_one, "many": took[0] / len(many), "cpu": took[1] / len(many)}


@contextmanager
def place_of(kind: str, directory: str | None) -> Generator[str | None]:
    """Make the store that a client is given: nothing, a new file, or the URL of a new database."""
    if kind == "memory":
        yield None
    elif kind == "SQLite":
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            yield str(Path(scratch) / "jobs.db")
    else:
        from fleets import a_database

        with a_database() as url:
            yield url


def commits_of_one(size: Size) -> float:
    """Count PostgreSQL's commits for one clone, those of the claims and of the heartbeat included."""
    from fleets import a_database, run_sql

    query = "SELECT xact_commit AS n FROM pg_stat_database WHERE datname = current_database()"
    with a_database() as url:
        asyncio.run(carry_out(url, replace(size, one_by_one=1)))
        before = run_sql(url, query)[0][0]["n"]
        asyncio.run(carry_out(url, size))
        return (run_sql(url, query)[0][0]["n"] - before) / (6 * size.one_by_one)


SIDE_BY_SIDE = (
    ("submit_many of {batch:,}: a job", "batch", "µs", 1e6),
    ("submit, one after the other: a job", "one", "µs", 1e6),
    ("clone, one after the other, answered at once: a job", "serial", "ms", 1e3),
    ("{many:,} clones, answered at once: a job", "many", "ms", 1e3),
    ("{many:,} clones, answered at once: CPU of this process a job", "cpu", "ms", 1e3),
)


def side_by_side(size: Size, repeats: int, directory: str | None) -> list[Row]:
    """Memory, SQLite and PostgreSQL, in turns."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from fleets import server

    kinds = ["memory", "SQLite", "PostgreSQL"]
    if server()[0] is None:
        kinds.remove("PostgreSQL")
        print(f"PostgreSQL is left out: {server()[1]}\n")
    runs: dict[str, list[Result]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            result: Result = {}
            for work in (accept, carry_out):
                with place_of(kind, directory) as store:
                    result |= asyncio.run(work(store, size))
            runs[kind].append(result)
    rows = []
    for what, name, unit, scale in SIDE_BY_SIDE:
        of = {kind: measured((result[name] for result in runs[kind]), unit, scale) for kind in kinds}
        said = what.format(batch=size.batch, many=5 * size.one_by_one)
        rows += [row(f"{kind}: {said}", of[kind], ("memory", of["memory"])) for kind in kinds[1:]]
    if "PostgreSQL" in kinds:
        rows.append(
            row("PostgreSQL: commits of a clone, from accepted to settled", Measured((commits_of_one(size),), ""))
        )
    return rows


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


def of_the_file(size: Size, repeats: int, directory: str | None) -> list[Row]:
    """The SQLite store alone."""

    def medians(work: Callable[..., Awaitable[Result]], *values: int) -> Result:
        return measure(partial(_call, work, values), repeats, directory)

    def alone(what: str, value: float, unit: str, *, at_most: float | None = None) -> Row:
        return row(f"SQLite store: {what}", Measured((value,), unit), at_most=at_most)

    count = size.jobs
    whole = medians(submit, count, count)
    batches = medians(submit, count, 1000)
    at_once = medians(submit_at_once, size.concurrent)
    journey = medians(journeys, size.journeys)
    syncs = syncs_per_job(directory)
    opened = medians(reopen, count, size.waiting)
    rows = [
        alone(f"add of {count:,} in one batch: a job", whole["seconds"] / count * 1e6, "µs"),
        alone("... in batches of 1,000: a job", batches["seconds"] / count * 1e6, "µs"),
        alone(f"{size.concurrent:,} adds at once: a job", at_once["seconds"] / size.concurrent * 1e6, "µs"),
        alone(f"commits of {size.concurrent:,} adds at once", at_once["commits"], ""),
        *(alone(f"one job, {step}", journey[step], "µs") for step in ("add", "sent", "settled")),
        alone("commits of one job, all three", journey["commits"], ""),
        alone(f"open a file of {count:,} ended and {size.waiting:,} waiting jobs", opened["seconds"], "s",
              at_most=OPENING_GOAL_S),
        alone("... of it for the check of the file", opened["quick_check"], "s"),
        alone("... megabytes of that file", opened["megabytes"], "MB"),
        alone("find an ended job by its key in it", opened["find_us"], "µs"),
        alone("memory of a waiting job of the queue, request and key included", whole["job_bytes"], "B"),
        alone("memory for accepting it in one batch, until that is kept", whole["store_bytes"], "B"),
        alone("bytes in the file for a waiting job", whole["file_bytes"], "B"),
    ]  # fmt: skip
    if syncs is None:
        print("fsyncs are not counted: no strace\n")
    else:
        rows.append(alone("fsyncs of one job, all three", syncs, ""))
    return rows


def main() -> None:
    """Measure, and print."""
    options = parser(__doc__)
    options.add_argument("--jobs", type=int, help="jobs in the SQLite file")
    options.add_argument("--directory", help="where the files are made: the disk to be measured")
    options.add_argument("--journeys", nargs=2, help="one measurement under strace, for this benchmark itself")
    asked = options.parse_args()
    if asked.journeys:
        anyio.run(journeys, asked.journeys[0], int(asked.journeys[1]))
        return
    size = SIZES[asked.size]
    if asked.jobs:
        size = replace(size, jobs=asked.jobs)
    repeats = asked.repeats or size.repeats
    print(f"{machine()}; medians of {repeats}\n")
    rows = [*side_by_side(size, repeats, asked.directory), *of_the_file(size, repeats, asked.directory)]
    print(show(rows))
    report("store", {"rows": rows})


async def _call(work: Callable[..., Awaitable[Result]], values: tuple[int, ...], path: str) -> Result:
    return await work(path, *values)


if __name__ == "__main__":
    main()
