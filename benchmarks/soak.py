"""
Does it hold for hours: clones over real sockets, a tenth of them struck by faults, callers cancelled at random.

The sandbox runs in a process of its own and keeps the truth: clones and voices by name, and requests above the cap.
Jobs come in waves; between waves all is quiet, and memory, tasks and connections are counted. Prints what was lost (a
voice that nobody was told of, or one that was reported and is not there), doubled (two voices for one job) and breaches
(three at once), and ends with status 1 unless all of that is 0 and nothing has grown. Times are scaled: a clone takes
0.02 to 0.05 s, and an answer that was lost is looked for during 1.5 s in place of 75 s.

    python benchmarks/soak.py [--clones 3000] [--accounts 3] [--waves 10] [--fault-rate 0.1] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import time
import tracemalloc
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from _common import Server, machine, report, sandbox_process, table

from useapi_voice import CloneError, CloneJob, CloneRequest, JobState, VoiceClient

FAULT = "__import__('useapi_voice.sandbox', fromlist=['Fault']).Fault"
CLONE_FAULTS = (
    "status(500, made=None)",
    "status(502, made=None, at='end')",
    "status(503, headers={'retry-after': '1'}, made=None)",
    "status(504, made=None, at='end')",
    "status(408, made=None)",
    "html(520, made=None)",
    "drop(None)",
    "drop(None, 'end')",
    "drop(None, reset=True)",
    "drop(None, 'end', reset=True)",
    "hang(None)",
    "truncate(None)",
    "drip(0.001, None, piece_bytes=64)",
    "bad_json(None)",
    "status(200, {'ok': True}, made=None, at='end')",
    "base_resp(1000, made=None)",
    "base_resp(1001, made=None)",
    "base_resp(1013, made=None)",
    "base_resp(1026)",
    "base_resp(2013)",
    "rate_limited(1)",
    "rate_limited(1, 'date')",
    "rate_limited(0.2, 'body')",
    "moderated('end')",
    "status(400)",
    "delay(0.1)",
)
SIDE_FAULTS = ("status(500)", "drop(False)", "truncate()", "rate_limited(0.2, 'body')")
BYTES_A_CLONE = 2_000
"""What may be left of each clone in the second half: the claim on its voice, and the noise of the allocator."""


@dataclass
class Told:
    """What the client said, and what was seen of it between waves."""

    endings: Counter[str] = field(default_factory=Counter)
    reported: dict[str, str] = field(default_factory=dict)
    """Voice ids by name."""
    may_exist: set[str] = field(default_factory=set)
    unsettled: int = 0
    cancelled_callers: int = 0
    traced: list[int] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)


async def soak(server: Server, options: argparse.Namespace) -> Told:
    told = Told()
    dice = random.Random(options.seed)
    files: dict[str, str] = {
        name: server.ask(f"sandbox.add_sample(b'x', {name!r})") for name in server.ask("sandbox.accounts")
    }
    tasks_before = len(asyncio.all_tasks())
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with (
        httpx.AsyncClient(limits=limits) as http,
        VoiceClient(
            server.token,
            base_url=server.base_url,
            http_client=http,
            clone_timeout_s=0.6,
            settle_after_s=options.settle_after_s,
            keep_s=1.0,
        ) as client,
    ):
        for wave in range(options.waves):
            first = wave * options.clones // options.waves
            last = (wave + 1) * options.clones // options.waves
            names = [f"voice {number}" for number in range(first, last)]
            requests = [
                CloneRequest(voice_name=name, language_tag="English", files=[dice.choice(list(files.values()))])
                for name in names
            ]
            await run_wave(client, requests, dice, told)
            # A job may have ended before its place is free.
            while any(lane.in_progress for lane in client.statistics().lanes):  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
            gc.collect()
            told.traced.append(tracemalloc.get_traced_memory()[0])
            told.rss.append(rss_bytes())
            told.tasks.append(len(asyncio.all_tasks()))
            told.connections.append(busy_connections(http))
            print(f"  wave {wave + 1}/{options.waves}: {last} jobs, {told.traced[-1] / 1e6:.2f} MB traced", flush=True)
    told.tasks.append(len(asyncio.all_tasks()) - tasks_before)
    return told


async def run_wave(client: VoiceClient, requests: list[CloneRequest], dice: random.Random, told: Told) -> None:
    jobs = []
    for request in requests:
        deadline_s = 20.0 if dice.random() < 0.02 else None
        jobs.append(await client.submit(request, deadline_s=deadline_s, key=request.voice_name))
    callers = [asyncio.create_task(call(job)) for job in jobs]
    soon_s = 0.02 * len(jobs)
    for job, caller in zip(jobs, callers, strict=True):
        chance = dice.random()
        if chance < 0.1:
            asyncio.get_running_loop().call_later(dice.uniform(0, soon_s), caller.cancel)
        elif chance < 0.13:
            voice = "keep" if chance < 0.115 else "delete"
            asyncio.get_running_loop().call_later(
                dice.uniform(0, soon_s), lambda job=job, voice=voice: job.cancel(voice=voice)
            )
    for caller in callers:
        with suppress(asyncio.CancelledError):
            await caller
    told.cancelled_callers += sum(caller.cancelled() for caller in callers)
    for job in jobs:
        try:
            async with asyncio.timeout(120):
                await job.wait()
        except TimeoutError:
            told.unsettled += 1
            continue
        told.endings[job.state.value] += 1
        try:
            told.reported[job.request.voice_name] = (await job).voice_id
        except CloneError as error:
            if error.voice_may_exist:
                told.may_exist.add(job.request.voice_name)


async def call(job: CloneJob) -> None:
    with suppress(CloneError):
        await job
        assert job.state is JobState.CLONED


def rss_bytes() -> int:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def busy_connections(http: httpx.AsyncClient) -> int:
    pool = http._transport._pool  # type: ignore[attr-defined]
    return sum(not (connection.is_idle() or connection.is_closed()) for connection in pool.connections)


def judge(server: Server, told: Told, options: argparse.Namespace) -> dict[str, int]:
    """Hold what the client said against what the server has."""
    there: dict[str, list[str]] = {}
    for name, voice_id in server.ask("[(v.voice_name, v.voice_id) for v in sandbox.voices()]"):
        there.setdefault(name, []).append(voice_id)
    made = Counter(server.ask("[c.voice_name for c in sandbox.clones if c.made]"))
    untold = [name for name in there if name not in told.reported and name not in told.may_exist]
    missing = [name for name, voice_id in told.reported.items() if voice_id not in there.get(name, [])]
    half = len(told.traced) // 2
    grown = told.traced[-1] - told.traced[half - 1]
    allowed = BYTES_A_CLONE * options.clones * (len(told.traced) - half) // len(told.traced)
    return {
        "lost": len(untold) + len(missing) + told.unsettled,
        "doubled": sum(count > 1 for count in made.values()) + (len(told.reported) - len(set(told.reported.values()))),
        "breaches": server.ask("len(sandbox.breaches)")
        + sum(most > 2 for most in server.ask("list(sandbox.max_parallel_seen.values())")),
        "memory grown, bytes above what is allowed": max(0, grown - allowed),
        "tasks left": max(0, told.tasks[-1]) + max(0, told.tasks[-2] - told.tasks[0]),
        "connections left busy": told.connections[-1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--clones", type=int, default=3000)
    parser.add_argument("--accounts", type=int, default=3)
    parser.add_argument("--waves", type=int, default=10, help="at least 2")
    parser.add_argument("--fault-rate", type=float, default=0.1)
    parser.add_argument("--settle-after-s", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    tracemalloc.start()
    print(machine())
    start = time.perf_counter()
    with sandbox_process(accounts=options.accounts, clone_s=(0.02, 0.05), seed=options.seed) as server:
        for faults, endpoint, rate in (
            (CLONE_FAULTS, "clone-voice", options.fault_rate),
            (SIDE_FAULTS, "voices", options.fault_rate / 2),
            (SIDE_FAULTS, "delete-voice", options.fault_rate / 2),
        ):
            for fault in faults:
                chance = rate / len(faults)
                server.ask(f"sandbox.fail({endpoint!r}, {FAULT}.{fault}, times=None, probability={chance}) and None")
        told = asyncio.run(soak(server, options))
        time.sleep(options.settle_after_s)
        faults_met = server.ask("sum(c.reply != '200' for c in sandbox.clones)")
        posts = server.ask("sandbox.count('clone-voice')")
        findings = judge(server, told, options)
    took_s = time.perf_counter() - start
    half = len(told.rss) // 2
    facts = {
        "jobs": options.clones,
        "seconds": round(took_s),
        "clone requests": posts,
        "begun, and not answered with 200": faults_met,
        "ended": ", ".join(f"{count} {state}" for state, count in sorted(told.endings.items())),
        "callers cancelled": told.cancelled_callers,
        "traced MB, half way and at the end": f"{told.traced[half - 1] / 1e6:.2f}, {told.traced[-1] / 1e6:.2f}",
        "RSS MB, half way and at the end": f"{told.rss[half - 1] / 1e6:.0f}, {told.rss[-1] / 1e6:.0f}",
        "tasks between waves": f"{min(told.tasks[:-1])} to {max(told.tasks[:-1])}",
    }
    print()
    print(table(("what", "figure"), [*facts.items(), *findings.items()]))
    report("soak", {**facts, **findings})
    return int(any(findings.values()))


if __name__ == "__main__":
    sys.exit(main())
