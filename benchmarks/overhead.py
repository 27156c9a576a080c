"""
What the queue costs: CPU per clone, microseconds and bytes per job, one decision, and what an import costs.

Each figure stands beside what it is measured against, in the same run and in turns with it: a bare httpx POST of the
same body, the in-process primitives that a user would take, the import of the libraries that are needed anyway. CPU
time wherever it is the measure, because seconds are noisy; medians of the repeats, with the least and the most.

    python benchmarks/overhead.py [--size quick] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiometer
import anyio
import httpx
from _common import (
    ACCOUNT,
    Instantly,
    Measured,
    Row,
    Server,
    machine,
    measured,
    parser,
    report,
    row,
    sandbox_process,
    show,
)

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice._jobs import Job, JobState, Step, advance
from useapi_voice._schedule import Schedule, Stage
from useapi_voice.sandbox import Sandbox

BODY = {"language_tag": "English", "need_noise_reduction": True, "account": ACCOUNT}


@dataclass(frozen=True, slots=True)
class Size:
    """How much of each."""

    repeats: int
    clones: int
    trivial: int
    submits: tuple[int, ...]
    backlogs: tuple[int, ...]
    imports: int


SIZES = {
    "smoke": Size(1, 10, 200, (100, 200), (10, 100), 1),
    "quick": Size(5, 200, 5_000, (1_000, 10_000, 100_000), (10, 1_000, 100_000), 7),
    "full": Size(7, 400, 10_000, (1_000, 10_000, 100_000, 1_000_000), (10, 1_000, 100_000, 1_000_000), 15),
}


def a_request(number: int, file_id: str) -> CloneRequest:
    """A request that needs no upload."""
    return CloneRequest(voice_name=f"v{number}", language_tag="English", files=[file_id], account=ACCOUNT)


# --- CPU per clone ------------------------------------------------------------------------------------------------


async def bare_posts(client: httpx.AsyncClient, base_url: str, file_id: str, clones: int) -> float:
    """Clone on bare httpx, two workers: CPU seconds per clone."""

    async def work(numbers: range) -> None:
        for number in numbers:
            body = {**BODY, "files": file_id, "voice_name": f"v{number}"}
            answer = await client.post(f"{base_url}/audio/clone-voice", json=body)
            assert answer.json()["voice_id"]

    await asyncio.gather(work(range(5)), work(range(5)))
    start = time.process_time()
    await asyncio.gather(work(range(0, clones, 2)), work(range(1, clones, 2)))
    return (time.process_time() - start) / clones


async def our_clones(client: VoiceClient, file_id: str, clones: int) -> float:
    """The same through the queue, from `submit_many` to the last `await`."""
    for job in await client.submit_many([a_request(-number - 1, file_id) for number in range(10)]):
        await job
    start = time.process_time()
    for job in await client.submit_many([a_request(number, file_id) for number in range(clones)]):
        assert (await job).voice_id
    return (time.process_time() - start) / clones


async def bare_over_http(server: Server, file_id: str, clones: int) -> float:
    headers = {"Authorization": f"Bearer {server.token}"}
    async with httpx.AsyncClient(headers=headers, timeout=120) as client:
        return await bare_posts(client, server.base_url, file_id, clones)


async def ours_over_http(server: Server, file_id: str, clones: int) -> float:
    async with VoiceClient(server.token, base_url=server.base_url, api="audio") as client:
        return await our_clones(client, file_id, clones)


def cpu_per_clone(size: Size, repeats: int) -> list[Row]:
    """CPU per clone over loopback HTTP, bare and ours in turns."""
    bare, ours = [], []
    with sandbox_process(accounts=[ACCOUNT], clone_s=0.001) as server:
        file_id = server.ask("sandbox.add_sample()")
        for _ in range(repeats):
            bare.append(asyncio.run(bare_over_http(server, file_id, size.clones)))
            ours.append(asyncio.run(ours_over_http(server, file_id, size.clones)))
    beside = ("bare httpx POST of the same body", measured(bare, "ms", 1e3))
    return [row("CPU per clone, over HTTP", measured(ours, "ms", 1e3), beside, at_most=1.5)]


# --- the queue alone, beside in-process primitives ----------------------------------------------------------------


async def bare_in_process(clones: int) -> float:
    async with httpx.AsyncClient(transport=Instantly(), headers={"Authorization": "Bearer t"}) as client:
        return await bare_posts(client, "http://127.0.0.1", "f", clones)


async def ours_in_process(clones: int) -> float:
    async with (
        httpx.AsyncClient(transport=Instantly()) as http,
        VoiceClient("user:1-token", base_url="http://127.0.0.1", api="audio", http_client=http) as client,
    ):
        return await our_clones(client, "f", clones)


async def queue_and_workers(trivial: int) -> None:
    """`asyncio.Queue` with two workers and futures."""
    queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
    futures = [asyncio.get_running_loop().create_future() for _ in range(trivial)]
    for future in futures:
        queue.put_nowait(future)

    async def work() -> None:
        while not queue.empty():
            (await queue.get()).set_result(None)
            await asyncio.sleep(0)

    await asyncio.gather(work(), work())
    for future in futures:
        await future


async def priority_queue_and_workers(trivial: int) -> None:
    """`asyncio.PriorityQueue` with two workers and futures."""
    queue: asyncio.PriorityQueue[tuple[int, int, asyncio.Future[None]]] = asyncio.PriorityQueue()
    futures = [asyncio.get_running_loop().create_future() for _ in range(trivial)]
    for number, future in enumerate(futures):
        queue.put_nowait((0, number, future))

    async def work() -> None:
        while not queue.empty():
            (await queue.get())[2].set_result(None)
            await asyncio.sleep(0)

    await asyncio.gather(work(), work())
    for future in futures:
        await future


async def stream_and_workers(trivial: int) -> None:
    """An anyio memory stream with two workers."""
    send, receive = anyio.create_memory_object_stream[int](trivial)

    async def work() -> None:
        async for _ in receive:
            await asyncio.sleep(0)

    with send:
        for number in range(trivial):
            send.send_nowait(number)
    with receive:
        await asyncio.gather(work(), work())


async def semaphore_and_tasks(trivial: int) -> None:
    """`asyncio.Semaphore(2)` and a task per job."""
    gate = asyncio.Semaphore(2)

    async def one() -> None:
        async with gate:
            await asyncio.sleep(0)

    await asyncio.gather(*(one() for _ in range(trivial)))


async def by_aiometer(trivial: int) -> None:
    """`aiometer.run_all` with two at once."""
    await aiometer.run_all([partial(asyncio.sleep, 0)] * trivial, max_at_once=2)


PRIMITIVES: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {
    "asyncio.Queue, 2 workers, futures": queue_and_workers,
    "asyncio.PriorityQueue, 2 workers, futures": priority_queue_and_workers,
    "anyio memory stream, 2 workers": stream_and_workers,
    "asyncio.Semaphore(2), a task per job": semaphore_and_tasks,
    "aiometer.run_all, 2 at once": by_aiometer,
}


def cpu_s(work: Callable[[int], Coroutine[Any, Any, None]], jobs: int) -> float:
    """CPU seconds per job."""
    start = time.process_time()
    asyncio.run(work(jobs))
    return (time.process_time() - start) / jobs


def queue_per_job(size: Size, repeats: int) -> list[Row]:
    """What the queue adds to the POST itself, beside primitives that know neither accounts, pauses nor lost answers."""
    bare, ours, added = [], [], []
    for _ in range(repeats):
        bare.append(asyncio.run(bare_in_process(size.clones)))
        ours.append(asyncio.run(ours_in_process(size.clones)))
        added.append(ours[-1] - bare[-1])
    all_of_it = ("bare httpx, same answer", measured(bare, "µs", 1e6))
    rows = [row("CPU per clone, answered at once in process", measured(ours, "µs", 1e6), all_of_it)]
    queue = measured(added, "µs", 1e6)
    for name, work in PRIMITIVES.items():
        trivial = measured([cpu_s(work, size.trivial) for _ in range(repeats)], "µs", 1e6)
        rows.append(row("what the queue adds to a POST", queue, (f"a trivial job, {name}", trivial)))
    return rows


# --- submitting ---------------------------------------------------------------------------------------------------


def rss_bytes() -> int:
    """What this process occupies now, where the system says so; 0 elsewhere."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


async def submit(count: int) -> dict[str, float]:
    """Submit so many jobs, which wait behind two clones that take an hour: CPU seconds, and bytes for each."""
    sandbox = Sandbox(accounts=[ACCOUNT], clone_s=3600)
    file_id = sandbox.add_sample()
    async with (
        httpx.AsyncClient(transport=sandbox.transport()) as http,
        VoiceClient(
            sandbox.token, base_url=sandbox.base_url, api="audio", http_client=http, close_grace_s=0.001
        ) as client,
    ):
        await client.submit_many([a_request(-1, file_id), a_request(-2, file_id)])
        gc.collect()
        before = rss_bytes()
        requests = [a_request(number, file_id) for number in range(count)]
        traced = count <= 10_000 and "--traced" in sys.argv
        if traced:
            tracemalloc.start()
        start = time.process_time()
        jobs = await client.submit_many(requests)
        took_s = time.process_time() - start
        result = {"seconds": took_s, "bytes": (rss_bytes() - before) / count}
        if traced:
            result["traced_bytes"] = tracemalloc.get_traced_memory()[0] / count
            tracemalloc.stop()
        assert len(jobs) == count
        return result


def submit_in_child(count: int, *, traced: bool = False) -> dict[str, float]:
    """The same in a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, __file__, "--submit", str(count), *(["--traced"] if traced else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def submitting(size: Size, repeats: int) -> list[Row]:
    """Seconds and bytes, by the number of jobs; the largest only once."""
    rows = []
    first: Measured | None = None
    for count in size.submits:
        runs = [submit_in_child(count) for _ in range(repeats if count <= 10_000 else 1)]
        each = measured([run["seconds"] / count for run in runs], "µs", 1e6)
        # The promise is 100,000 in a second or two.
        goal_s = count / 50_000 if count >= 100_000 else None
        rows.append(row(f"submit_many of {count:,}", measured([run["seconds"] for run in runs], "s"), at_most=goal_s))
        beside = None if first is None else (f"of {size.submits[0]:,}", first)
        # What it grows by is the garbage collector's, which looks through more and more jobs that live on.
        rows.append(row(f"submit_many of {count:,}: CPU a job", each, beside))
        # Where few are submitted, a page more or less is much of each.
        if count >= 10_000:
            size_bytes = measured([run["bytes"] for run in runs], "B")
            rows.append(
                row(f"memory of each of {count:,} waiting jobs, its request included", size_bytes, at_most=1500)
            )
        first = first or each
    return rows


# --- one decision -------------------------------------------------------------------------------------------------


def decision_s(backlog: int, rounds: int = 200) -> float:
    """Seconds of one decision with `backlog` jobs waiting: a place is freed, the next job is staged and sent."""
    schedule = Schedule(2)
    schedule.admit(ACCOUNT)
    request = a_request(0, "f")
    for number in range(backlog + rounds + 10):
        named = request.model_copy(update={"voice_name": f"v{number}"})
        schedule.add(Job(str(number), None, named, 0, number, None))

    def turn() -> None:
        for action in schedule.assign(0.0):
            if isinstance(action, Stage):
                advance(action.job, Step.STAGED)
                schedule.staged(action.job)
            else:
                advance(action.job, Step.SEND)

    turn()
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        done = next(iter(schedule.lanes[ACCOUNT].places.values()))
        done.state = JobState.CLONED
        schedule.free_place(done, ACCOUNT)
        turn()
        took.append(time.perf_counter() - start)
    # Its floor: what it takes when nothing else has the processor.
    return sum(heapq.nsmallest(rounds // 2, took)) / (rounds // 2)


def deciding(size: Size, repeats: int) -> list[Row]:
    """The cost of a decision at each backlog."""
    rows = []
    first: Measured | None = None
    for backlog in size.backlogs:
        each = measured(
            [decision_s(backlog) for _ in range(min(repeats, 3) if backlog > 10**5 else repeats)], "µs", 1e6
        )
        beside = None if first is None else (f"with {size.backlogs[0]}", first)
        rows.append(
            row(f"one decision, {backlog:,} jobs waiting", each, beside, at_most=None if first is None else 1.5)
        )
        first = first or each
    return rows


# --- imports ------------------------------------------------------------------------------------------------------

AS_INSTALLED_BARE = "import sys; [sys.modules.__setitem__(name, None) for name in ('rich', 'click', 'pygments')]; "
"""httpx imports its own command line where it finds these: hidden, so that both sides are as in a bare environment."""
IN_USE = "import anyio, asyncio, aiofiles, httpx; from pydantic import BaseModel, Field"
NEEDED_ANYWAY = {
    "import httpx, pydantic": "import httpx, pydantic",
    "import httpx; from pydantic import BaseModel": "import httpx; from pydantic import BaseModel",
    "asyncio, anyio, aiofiles, httpx and one pydantic model": f"{IN_USE}; type('M', (BaseModel,), {{}})",
}
OURS = ("import useapi_voice", "from useapi_voice import VoiceClient, CloneRequest")


EMPTY_APPLICATION = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


def child_cpu_s(command: list[str], directory: str | None = None) -> float:
    """CPU seconds of a child process, from its start to its end."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True, env=environment, cwd=directory)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def interpreters(statements: list[str], repeats: int) -> dict[str, Measured]:
    """CPU of each statement in new interpreters, in turns, less that of an empty one; a first round compiles."""
    took: dict[str, list[float]] = {statement: [] for statement in ["pass", *statements]}
    for _ in range(repeats + 1):
        for statement, values in took.items():
            values.append(child_cpu_s([sys.executable, "-c", AS_INSTALLED_BARE + statement]))
    nothing = measured(took["pass"][1:], "ms", 1e3).median
    return {
        statement: Measured(tuple(value * 1e3 - nothing for value in values[1:]), "ms")
        for statement, values in took.items()
    }


def importing(size: Size) -> list[Row]:
    """What the imports cost, beside those of the libraries that are needed anyway."""
    took = interpreters([*NEEDED_ANYWAY.values(), *OURS], size.imports)
    goals = {(OURS[0], "import httpx, pydantic"): 1.15}
    return [
        row(ours, took[ours], (name, took[statement]), at_most=goals.get((ours, name)))
        for ours in OURS
        for name, statement in NEEDED_ANYWAY.items()
    ]


def starting(size: Size) -> list[Row]:
    """What the plugin adds to a run of pytest that does not use it, and what the command line's help costs."""
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nothing.py"]
        runs: dict[str, list[float]] = {"with": [], "without": [], "help": [], "empty": []}
        commands = {
            "with": pytest,
            "without": [*pytest, "-p", "no:useapi_voice"],
            "help": [sys.executable, "-m", "useapi_voice", "--help"],
            "empty": [sys.executable, "-c", EMPTY_APPLICATION, "--help"],
        }
        for _ in range(size.imports + 1):
            for name, command in commands.items():
                runs[name].append(child_cpu_s(command, scratch))
    took = {name: measured(values[1:], "ms", 1e3) for name, values in runs.items()}
    pairs = zip(took["with"].values, took["without"].values, strict=True)
    added = measured((whole - without for whole, without in pairs), "ms")
    return [
        row("an empty run of pytest, our plugin installed", took["with"], ("-p no:useapi_voice", took["without"])),
        row("what our plugin adds to a run of pytest that does not use it", added, at_most=20),
        row("useapi-voice --help", took["help"], ("an empty typer application's --help", took["empty"])),
    ]


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--submit", type=int, help="only submit so many, and print what it took as JSON")
    options.add_argument("--traced", action="store_true", help="count that memory by tracemalloc too")
    asked = options.parse_args()
    if asked.submit:
        print(json.dumps(asyncio.run(submit(asked.submit))))
        return
    size = SIZES[asked.size]
    repeats = asked.repeats or size.repeats
    print(f"{machine()}; medians of {repeats} (imports: {size.imports})\n")
    rows = [
        *cpu_per_clone(size, repeats),
        *queue_per_job(size, repeats),
        *submitting(size, repeats),
        *deciding(size, repeats),
        *importing(size),
        *starting(size),
    ]
    traced = submit_in_child(min(10_000, size.submits[-1]), traced=True)
    memory = Measured((traced["traced_bytes"],), "B")
    rows.append(row("memory that submit_many takes for a waiting job (tracemalloc)", memory, at_most=1024))
    print(show(rows))
    report("overhead", {"rows": rows})


if __name__ == "__main__":
    main()
