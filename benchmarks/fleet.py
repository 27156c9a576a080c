"""
What a fleet costs, and what it keeps: hand-over time, cost per job, and the server's own count under stress and kills.

Workers are processes of their own, as are the sandbox and the submitter. Hand-over is from the server's record: the
k-th clone's beginning less the end of the clone two before it, on an account that is never out of work. Commits are
PostgreSQL's own count. Needs a server: `USEAPI_VOICE_TEST_POSTGRES`, one on loopback, or one that can be started; the
one that is killed is always its own.

A claim is one transaction of a worker, as `_claims` makes it, and is taken back each time; `all of one name` is the
case in which all that waits has the name of a voice that is in progress there, so that there is nothing to be had.

    python benchmarks/fleet.py [--jobs 240] [--clone-s 0.2] [--quick] [--json FILE]
    python benchmarks/fleet.py --claims [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import httpx
from _common import Server, machine, report, sandbox_process, table

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice._jobs import Job
from useapi_voice.stores import Desk, codec
from useapi_voice.stores import _fleet_sql as sql
from useapi_voice.stores._claims import claim
from useapi_voice.stores.postgres import PostgresStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from clusters import Cluster, a_cluster, why_no_cluster
from fleets import a_database, busiest, run_sql, server, workers
from harness import wav

SHORT: dict[str, Any] = {"clone_timeout_s": 3.0, "settle_after_s": 2.0}
CHILD: dict[str, Any] = {**SHORT, "lease_margin_s": 0.5}


def hand_overs(clones: list[tuple[str, float, float]]) -> list[float]:
    """From place freed to next clone begun, in seconds, over all accounts."""
    found: list[float] = []
    for account in {account for account, _, _ in clones}:
        begins = sorted(begun for name, begun, _ in clones if name == account)
        ends = sorted(ended for name, _, ended in clones if name == account)
        found += [begun - ended for begun, ended in zip(begins[2:], ends, strict=False)]
    return found


def verdict(sandbox: Server, names: list[str]) -> tuple[int, int, int]:
    """Return breaches, voices lost, and voices doubled, as the server counts them."""
    made = Counter(sandbox.ask("[voice.voice_name for voice in sandbox.voices()]"))
    lost = sum(made[name] == 0 for name in names)
    return sandbox.ask("len(sandbox.breaches)"), lost, sum(max(0, made[name] - 1) for name in names)


def requests(names: list[str]) -> list[CloneRequest]:
    return [CloneRequest(voice_name=name, language_tag="English", samples=[wav()]) for name in names]


async def saturated(url: str, sandbox: Server, processes: int, jobs: int) -> dict[str, Any]:
    options = {"token": sandbox.token, "base_url": sandbox.base_url, "store": url}
    names = [f"voice {number}" for number in range(jobs)]
    async with VoiceClient(**options, **SHORT, work=False) as api:
        with workers(processes, **options, **CHILD) as running:
            await api.clone(requests(["warm"])[0])
            commits = run_sql(url, "SELECT xact_commit AS n FROM pg_stat_database WHERE datname = current_database()")
            cpu = [sum(os_times(worker.process.pid)) for worker in running]
            began = time.perf_counter()
            handles = await api.submit_many(requests(names))
            accepted_s = time.perf_counter() - began
            for handle in handles:
                await handle
            wall_s = time.perf_counter() - began
            cpu_s = sum(sum(os_times(worker.process.pid)) for worker in running) - sum(cpu)
    after = run_sql(url, "SELECT xact_commit AS n FROM pg_stat_database WHERE datname = current_database()")
    clones = sandbox.ask("[(c.account, c.begun_at, c.ended_at) for c in sandbox.clones if c.voice_name != 'warm']")
    times = sorted(hand_overs(clones))
    return {
        "accepted_ms": 1000 * accepted_s / jobs,
        "wall_s": wall_s,
        "p50_ms": 1000 * statistics.median(times),
        "p99_ms": 1000 * times[int(0.99 * (len(times) - 1))],
        "cpu_ms": 1000 * cpu_s / jobs,
        "commits": (after[0][0]["n"] - commits[0][0]["n"]) / jobs,
        "verdict": verdict(sandbox, names),
    }


def os_times(pid: int) -> tuple[float, float]:
    """User and system seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


async def stressed(url: str, sandbox: Server, jobs: int) -> tuple[int, int, int]:
    options = {"token": sandbox.token, "base_url": sandbox.base_url, "store": url}
    names = [f"voice {number}" for number in range(jobs)]
    async with VoiceClient(**options, **SHORT, work=False) as api:
        with workers(4, **options, **CHILD, poll_s=0.1):
            handles = [await api.submit(request, priority=n) for n, request in enumerate(requests(names))]
            for handle in handles:
                await handle
    return verdict(sandbox, names)


async def killed(url: str, sandbox: Server, jobs: int, kills: int) -> tuple[int, int, int]:
    options = {"token": sandbox.token, "base_url": sandbox.base_url, "store": url}
    names = [f"voice {number}" for number in range(jobs)]
    async with VoiceClient(**options, **SHORT, work=False) as api:
        with workers(2 + kills, **options, **CHILD, poll_s=0.3) as running:
            handles = await api.submit_many(requests(names))
            for _ in range(kills):
                lost = await busiest(url, running)
                lost.signal(signal.SIGKILL)
                lost.process.wait()
            for handle in handles:
                await handle
    return verdict(sandbox, names)


async def until(sandbox: Server, question: str) -> None:
    while not sandbox.ask(question):  # noqa: ASYNC110 - another process tells nobody
        await asyncio.sleep(0.02)


async def without_a_database(cluster: Cluster, sandbox: Server, jobs: int, kills: int) -> tuple[int, int, int]:
    """Kill PostgreSQL in the middle of clones, and have it back when they have ended."""
    options = {"token": sandbox.token, "base_url": sandbox.base_url, "store": cluster.url()}
    names = [f"voice {number}" for number in range(jobs)]
    async with VoiceClient(**options, **SHORT, work=False) as api:
        with workers(2, **options, **CHILD, poll_s=0.3):
            handles = await api.submit_many(requests(names))
            for _ in range(kills):
                await until(sandbox, "sandbox.in_progress() > 0")
                cluster.kill()
                await until(sandbox, "sandbox.in_progress() == 0")
                cluster.start()
            for handle in handles:
                await handle
    return verdict(sandbox, names)


BACKLOGS = (100, 10_000, 100_000)
WAITING = """
    INSERT INTO useapi_voice.jobs (seq, id, state, priority, account, pinned, voice_name, payload, attempts, shas)
    SELECT seq, md5(seq::text), 'queued', seq % 5, {pinned}, {pinned}, {name}, $1, 0, '{{}}'
    FROM generate_series(1, $2::int) seq
"""
ENDED = """
    INSERT INTO useapi_voice.jobs
        (seq, id, state, priority, account, voice_name, payload, attempts, shas, settled_at, voice_id)
    SELECT 10000000 + seq, md5('ended' || seq), 'cloned', 0, 'north', 'Eve', $1, 1, '{}', now() - interval '1 day', seq
    FROM generate_series(1, $2::int) seq
"""
SEATED = """
    INSERT INTO useapi_voice.jobs
        (seq, id, state, priority, account, voice_name, payload, attempts, shas, owner, seat, sent_at)
    VALUES (99999999, 'seated', 'sent', 0, 'north', 'Ann', $1, 1, '{}', 'another', 0, now())
"""
KINDS = {
    "unpinned": ("NULL", "'voice ' || seq", 0),
    "pinned": ("'north'", "'voice ' || seq", 0),
    "pinned to another": ("'south'", "'voice ' || seq", 0),
    "unpinned, 100,000 ended": ("NULL", "'voice ' || seq", 100_000),
    "all of one name": ("NULL", "'Ann'", 0),
}


async def claiming(url: str, kind: str, backlog: int) -> dict[str, float]:
    """Return the median milliseconds of a claim, and of making the turns that are missing."""
    pinned, name, ended = KINDS[kind]
    job = Job("x", None, CloneRequest(voice_name="Ann", language_tag="English", files=["file"]), 0, 1, None)
    payload = codec.encode(job).payload
    store = PostgresStore(url, keep_s=3600.0, accounts=["north", "south"])
    await store.open()
    times: dict[str, list[float]] = {"claim_ms": [], "turns_ms": []}
    try:
        async with store.database.borrow() as connection:
            await connection.execute(WAITING.format(pinned=pinned, name=name), payload, backlog)
            await connection.execute(ENDED, payload, ended)
            await connection.execute(SEATED, payload)
            for _ in range(30):
                began = time.perf_counter()
                claimed = await claim(store, cast("Desk", Idle()), "north", 1, {"seated"})
                times["claim_ms"].append(1000 * (time.perf_counter() - began))
                if claimed.job is not None:
                    await connection.execute(sql.RELEASE, claimed.job.id)
                began = time.perf_counter()
                await connection.fetch(sql.MISSING_TURNS, 2, 1000)
                times["turns_ms"].append(1000 * (time.perf_counter() - began))
    finally:
        await store.aclose()
    return {name: statistics.median(found) for name, found in times.items()}


class Idle:
    """The desk of a queue that would take anything."""

    is_taking = True

    def gate_s(self, account: str) -> float:
        """Return for how long it sends nothing there."""
        return 0.0


async def submitting(url: str, count: int) -> float:
    """Return the seconds that submitting so many jobs of one sample takes; nobody works, and nothing is sent."""
    names = [f"voice {number}" for number in range(count)]
    offline = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(404)))
    async with (
        offline,
        VoiceClient("user:1-token", store=url, accounts=["north"], work=False, http_client=offline) as client,
    ):
        sample = wav()
        asked = [CloneRequest(voice_name=name, language_tag="English", samples=[sample]) for name in names]
        began = time.perf_counter()
        assert len(await client.submit_many(asked)) == count
        return time.perf_counter() - began


def claims() -> None:
    """Print what a claim costs where so many jobs wait."""
    rows: list[Any] = []
    results: dict[str, Any] = {}
    for kind in KINDS:
        found = []
        for backlog in BACKLOGS:
            with a_database() as url:
                found.append(asyncio.run(claiming(url, kind, backlog)))
        results[kind] = dict(zip(map(str, BACKLOGS), found, strict=True))
        rows.append((kind, *(f"{one['claim_ms']:.1f} / {one['turns_ms']:.1f}" for one in found)))
    print(table(("what waits", *(f"{backlog:,} waiting" for backlog in BACKLOGS)), rows))
    print("claim / look for missing turns, ms, median of 30")
    with a_database() as url:
        seconds = asyncio.run(submitting(url, 10_000))
    print(f"submit_many of 10,000 jobs: {seconds:.1f} s")
    report("fleet claims", {"claims": results, "submit_10000_s": seconds})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=240)
    parser.add_argument("--clone-s", type=float, default=0.2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--claims", action="store_true")
    parser.add_argument("--json")
    wanted = parser.parse_args()
    if server()[0] is None:
        sys.exit(server()[1])
    print(machine())
    if wanted.claims:
        claims()
        return
    rows: list[Any] = []
    results: dict[str, Any] = {}
    for processes, accounts in [(1, 1), (4, 1), (4, 4)] if wanted.quick else [
        (1, 1), (2, 1), (4, 1), (8, 1), (1, 4), (4, 4), (4, 16)
    ]:  # fmt: skip
        jobs = min(wanted.jobs, 30 * accounts)
        with a_database() as url, sandbox_process(accounts=accounts, clone_s=wanted.clone_s) as sandbox:
            found = asyncio.run(saturated(url, sandbox, processes, jobs))
        results[f"{processes}x{accounts}"] = found
        ideal_s = -(-jobs // (2 * accounts)) * wanted.clone_s
        figures = [f"{found[name]:.1f}" for name in ("p50_ms", "p99_ms", "accepted_ms", "cpu_ms", "commits")]
        rows.append((processes, accounts, jobs, f"{found['wall_s']:.2f}/{ideal_s:.2f}", *figures, found["verdict"]))
    heads = ("processes", "accounts", "jobs", "wall/ideal s", "hand-over p50 ms", "p99 ms", "submit ms", "CPU ms/job",
             "commits/job", "breaches, lost, doubled")  # fmt: skip
    print(table(heads, rows))
    runs: list[tuple[object, ...]] = []
    with a_database() as url, sandbox_process(accounts=1, clone_s=0.01) as sandbox:
        runs.append(("cap stress, 4 workers, each job more urgent", 300, asyncio.run(stressed(url, sandbox, 300))))
    with a_database() as url, sandbox_process(accounts=4, clone_s=1.0) as sandbox:
        runs.append(("3 workers of 5 killed in mid-call", 60, asyncio.run(killed(url, sandbox, 60, 3))))
    if why := why_no_cluster():
        print(f"PostgreSQL is not killed: {why}")
    else:
        with a_cluster() as cluster, sandbox_process(accounts=4, clone_s=1.0) as sandbox:
            found = asyncio.run(without_a_database(cluster, sandbox, 60, 5))
            runs.append(("PostgreSQL killed 5 times in mid-call, 2 workers", 60, found))
    print(table(("run", "jobs", "breaches, lost, doubled"), runs))
    report("fleet", {"saturated": results, "runs": runs})


if __name__ == "__main__":
    main()
