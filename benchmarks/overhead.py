"""
What the queue costs: CPU per clone, microseconds and bytes per job, cost of one decision, import time.

Each figure stands beside what it is measured against, in the same run: a bare httpx POST of the same body, the
in-process primitives that a user would take, the import of the libraries that are needed anyway. Medians of
`--repeats`; CPU time where it is the measure, because seconds are noisy.

    python benchmarks/overhead.py [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from _common import Server, machine, report, sandbox_process, table

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice._jobs import Job, JobState, Step, advance
from useapi_voice._schedule import Schedule, Stage
from useapi_voice.sandbox import Sandbox

CLONES = 400
BACKLOGS = (10, 100, 1_000, 10_000, 100_000)
SUBMITS = (1_000, 10_000, 100_000)
ACCOUNT = "335577991122334455"


def a_request(number: int, file_id: str) -> CloneRequest:
    """A request that needs no upload."""
    return CloneRequest(voice_name=f"v{number}", language_tag="English", files=[file_id])


# --- CPU per clone, over real HTTP --------------------------------------------------------------------------------


async def bare_posts(server: Server, file_id: str) -> float:
    """Clone on bare httpx, two workers: CPU seconds per clone."""
    body = {"language_tag": "English", "files": file_id, "need_noise_reduction": True, "account": ACCOUNT}
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {server.token}"}, timeout=120) as client:

        async def work(numbers: range) -> None:
            for number in numbers:
                answer = await client.post(
                    f"{server.base_url}/audio/clone-voice", json={**body, "voice_name": f"v{number}"}
                )
                assert answer.json()["voice_id"]

        await asyncio.gather(work(range(10)), work(range(10)))
        start = time.process_time()
        await asyncio.gather(work(range(0, CLONES, 2)), work(range(1, CLONES, 2)))
        return (time.process_time() - start) / CLONES


async def our_clones(server: Server, file_id: str) -> float:
    """The same through the queue."""
    async with VoiceClient(server.token, base_url=server.base_url, api="audio") as client:
        for job in await client.submit_many([a_request(-number - 1, file_id) for number in range(20)]):
            await job
        start = time.process_time()
        for job in await client.submit_many([a_request(number, file_id) for number in range(CLONES)]):
            await job
        return (time.process_time() - start) / CLONES


def cpu_per_clone(repeats: int) -> tuple[float, float]:
    """CPU per clone, bare and ours, in turns."""
    bare, ours = [], []
    with sandbox_process(accounts=[ACCOUNT], clone_s=0.001) as server:
        file_id = server.ask("sandbox.add_sample()")
        for _ in range(repeats):
            bare.append(asyncio.run(bare_posts(server, file_id)))
            ours.append(asyncio.run(our_clones(server, file_id)))
    return statistics.median(bare), statistics.median(ours)


# --- per job, in process ------------------------------------------------------------------------------------------


async def per_job(count: int) -> tuple[float, float]:
    """Submit `count` jobs that wait behind a busy account: CPU seconds for all, and bytes for each."""
    sandbox = Sandbox(accounts=[ACCOUNT], clone_s=3600)
    file_id = sandbox.add_sample()
    async with (
        httpx.AsyncClient(transport=sandbox.transport()) as http,
        VoiceClient(
            sandbox.token, base_url=sandbox.base_url, api="audio", http_client=http, close_grace_s=0.001
        ) as client,
    ):
        await client.submit_many([a_request(-1, file_id), a_request(-2, file_id)])
        requests = [a_request(number, file_id) for number in range(count)]
        gc.collect()
        start = time.process_time()
        jobs = await client.submit_many(requests)
        took_s = time.process_time() - start
        assert len(jobs) == count
        del jobs, requests
    async with httpx.AsyncClient(transport=Sandbox(accounts=[ACCOUNT], clone_s=3600).transport()) as http:
        async with VoiceClient(
            sandbox.token, base_url=sandbox.base_url, api="audio", http_client=http, close_grace_s=0.001
        ) as client:
            await client.config()
            gc.collect()
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            kept = await client.submit_many(a_request(number, file_id) for number in range(min(count, 20_000)))
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            size = (after - before) / len(kept)
    return took_s, size


def decision_us(backlog: int) -> float:
    """Microseconds of one decision with `backlog` jobs waiting: a place is freed, the next job is staged and sent."""
    schedule = Schedule(2)
    schedule.admit(ACCOUNT)
    request = a_request(0, "f")
    for number in range(backlog + 64):
        job = Job(str(number), None, request.model_copy(update={"voice_name": f"v{number}"}), 0, number, None)
        schedule.add(job)

    def turn() -> None:
        for action in schedule.assign(0.0):
            if isinstance(action, Stage):
                advance(action.job, Step.STAGED)
                schedule.staged(action.job)
            else:
                advance(action.job, Step.SEND)

    turn()
    rounds = 50
    start = time.perf_counter()
    for _ in range(rounds):
        done = next(iter(schedule.lanes[ACCOUNT].places.values()))
        done.state = JobState.CLONED
        schedule.free_place(done, ACCOUNT)
        turn()
    return (time.perf_counter() - start) / rounds * 1e6


# --- in-process primitives, 10,000 trivial jobs at two at once ------------------------------------------------------

TRIVIAL = 10_000


async def queue_and_workers() -> None:
    """`asyncio.Queue` with two workers and futures."""
    queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
    futures = [asyncio.get_running_loop().create_future() for _ in range(TRIVIAL)]
    for future in futures:
        queue.put_nowait(future)

    async def work() -> None:
        while not queue.empty():
            (await queue.get()).set_result(None)
            await asyncio.sleep(0)

    await asyncio.gather(work(), work())
    for future in futures:
        await future


async def semaphore_and_tasks() -> None:
    """`asyncio.Semaphore(2)` and a task per job."""
    gate = asyncio.Semaphore(2)

    async def one() -> None:
        async with gate:
            await asyncio.sleep(0)

    await asyncio.gather(*(one() for _ in range(TRIVIAL)))


def microseconds(work: Callable[[], Awaitable[None]], repeats: int) -> float:
    """Microseconds per trivial job."""
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        asyncio.run(work())  # type: ignore[arg-type]
        took.append(time.perf_counter() - start)
    return statistics.median(took) / TRIVIAL * 1e6


# --- imports ------------------------------------------------------------------------------------------------------


def import_ms(statement: str, repeats: int) -> float:
    """CPU milliseconds that a statement takes in an interpreter of its own, compiled beforehand."""
    code = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
        for _ in range(repeats + 1)
    ]
    return statistics.median(float(run.stdout) for run in runs[1:]) * 1e3


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{machine()}; medians of {options.repeats}\n")

    bare, ours = cpu_per_clone(options.repeats)
    rows: list[tuple[object, ...]] = [
        ("CPU per clone, bare httpx POST", f"{bare * 1e3:.2f} ms", "1.00"),
        ("CPU per clone, useapi_voice", f"{ours * 1e3:.2f} ms", f"{ours / bare:.2f}"),
    ]
    submits = {count: asyncio.run(per_job(count)) for count in SUBMITS}
    queue_us = microseconds(queue_and_workers, options.repeats)
    gate_us = microseconds(semaphore_and_tasks, options.repeats)
    rows += [
        ("a trivial job: asyncio.Queue, two workers, futures", f"{queue_us:.1f} µs", "1.00"),
        ("a trivial job: asyncio.Semaphore, a task each", f"{gate_us:.1f} µs", f"{gate_us / queue_us:.2f}"),
    ]
    for count, (took_s, _) in submits.items():
        each_us = took_s / count * 1e6
        rows.append(
            (f"submit_many of {count:,}: {took_s:.2f} s; a job", f"{each_us:.1f} µs", f"{each_us / queue_us:.2f}")
        )
    rows.append(("memory of a waiting job, its request included", f"{submits[SUBMITS[-1]][1]:.0f} B", ""))
    decisions = {
        backlog: statistics.median(decision_us(backlog) for _ in range(options.repeats)) for backlog in BACKLOGS
    }
    for backlog, each_us in decisions.items():
        rows.append((f"one decision with {backlog:,} waiting", f"{each_us:.1f} µs", f"{each_us / decisions[10]:.2f}"))
    imports = {
        what: import_ms(what, options.repeats)
        for what in ("import httpx, pydantic", "import httpx; from pydantic import BaseModel", "import useapi_voice")
    }
    first = next(iter(imports.values()))
    rows += [(what, f"{took_ms:.0f} ms", f"{took_ms / first:.2f}") for what, took_ms in imports.items()]
    print(table(("", "median", "ratio to the first of its kind"), rows))
    report("overhead", {"rows": [list(map(str, row)) for row in rows]})


if __name__ == "__main__":
    main()
