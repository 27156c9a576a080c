"""
Places kept busy: this library beside what a user would write without it, and the physical limit, over a matrix of work.

The server (`_server.py`) runs in a process of its own and counts how long each account's two places were busy. What is
printed is that, divided by places x time: once from the first clone's begin to the last one's end, and once over the
whole makespan, so that looking up accounts, listing voices and the first uploads count against whoever needs them. The
hand-over is how long a place that became free stayed free, at the server. Contenders run one after the other in one
process, after a warm-up; repeats go round all of them, and the median is printed with the spread. Ratios of one row
compare; seconds of two rows do not: 30 accounts with clones of 0.05 s are 1,200 a second, more than httpx can do.

The physical limit is not a queue: prepared bytes over raw asyncio streams, two loops for each account.

    python benchmarks/throughput.py [--quick | --full] [--only SUBSTRING] [--contender NAME]... [--json FILE]

By default ends within about seven minutes, with `--quick` within one; `--full` is the whole matrix but for rows whose
ideal is above a minute, and takes hours.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from _common import machine, report, table
from _rivals import RIVALS, Work, run_rival, work_of
from _server import PLACES, MeasuringServer, measuring_server

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice.sandbox import sample_paths

OURS, LIMIT, SERIAL, AHEAD = "useapi_voice", "physical limit", "serial loop", "gather, uploads ahead"
CONTENDERS = (LIMIT, OURS, *(name for name in RIVALS if name != SERIAL))
MOST_AHEAD = 300
"""More uploads at once than these cost httpcore's pool minutes, as it looks at all connections for each: left out."""
LONGEST_ROW_S = 60.0
"""A row of `--full` whose ideal takes longer is left out: six contenders at 1,500 s each tell nothing new."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work."""

    clones: int
    accounts: int
    clone_s: float
    upload_share: float
    is_shared: bool = False
    repeats: int = 1

    @property
    def ideal_s(self) -> float:
        """What the places allow if none is ever idle."""
        return math.ceil(self.clones / (PLACES * self.accounts)) * self.clone_s

    def __str__(self) -> str:
        accounts = f"{self.accounts} account{'s' if self.accounts > 1 else ''}"
        samples = "shared" if self.is_shared else "distinct"
        return f"{self.clones} x {self.clone_s:g} s, {accounts}, upload {self.upload_share:.0%}, {samples}"


CHOSEN = (
    Row(300, 3, 0.2, 0.1),
    Row(300, 10, 0.2, 0.1, repeats=2),
    Row(300, 10, 0.2, 0.0, repeats=2),
    Row(300, 10, 0.2, 0.5),
    Row(300, 10, 0.2, 0.1, is_shared=True),
    Row(3000, 30, 0.2, 0.1),
    Row(300, 30, 1.0, 0.1),
    Row(300, 1, 0.05, 0.1),
    Row(300, 10, 0.05, 0.1, repeats=2),
    Row(900, 30, 0.05, 0.1),
)
"""Every value of every dimension, in about seven minutes; a single run is hundreds of hand-overs."""
QUICK = (Row(300, 10, 0.2, 0.1), Row(300, 10, 0.05, 0.0), Row(600, 30, 0.2, 0.0))


def whole_matrix() -> list[Row]:
    """Every combination that ends in time."""
    dimensions = itertools.product((300, 3000), (1, 3, 10, 30), (0.05, 0.2, 1.0), (0.0, 0.1, 0.5), (False, True))
    return [row for row in itertools.starmap(Row, dimensions) if row.ideal_s <= LONGEST_ROW_S]


@dataclass(frozen=True, slots=True)
class Run:
    """
    What one contender did with one row.

    Attributes:
        busy: Share of places x time in which a place was busy, by the server's count; the time is from the first
            clone's begin to the last one's end.
        whole: The same over the whole makespan.
        makespan_s: Wall clock, from before the client is opened to after it is closed.
        cpu_ms: The client's processor time for each clone, uploads included.
        handover_p50_ms: How long a place stayed free, the median.
        handover_p99_ms: And the 99th percentile.
    """

    busy: float
    whole: float
    makespan_s: float
    cpu_ms: float
    handover_p50_ms: float
    handover_p99_ms: float


# --- the contenders that are no rivals --------------------------------------------------------------------------------


async def this_library(server: MeasuringServer, work: Work) -> int:
    """`submit_many`, and await."""
    async with VoiceClient(server.token, base_url=server.base_url, api="audio") as client:
        requests = [
            CloneRequest(voice_name=f"v{number}", language_tag="English", samples=[sample])
            for number, sample in enumerate(work.samples)
        ]
        return len([await job for job in await client.submit_many(requests)])


async def physical_limit(server: MeasuringServer, work: Work) -> int:
    """Write prepared bytes, read until the answer is there, again."""
    url = urlsplit(server.base_url)
    port = url.port
    assert port is not None

    async def exchange(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes) -> None:
        reader, writer = streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.rsplit(b"Content-Length: ", 1)[1]))

    async def loop_over(requests: list[bytes], before: Iterable[asyncio.Semaphore], after: asyncio.Semaphore) -> None:
        streams = await asyncio.open_connection("127.0.0.1", port)
        while requests:
            request = requests.pop()
            for gate in before:
                await gate.acquire()
            await exchange(streams, request)
            after.release()
        streams[1].close()
        await streams[1].wait_closed()

    loops = []
    for account in work.accounts:
        jobs = [(number, sample) for number, to, sample in work.dealt() if to == account]
        clones = [_prepared_clone(url.path, account, number) for number, _ in reversed(jobs)]
        samples = [sample for _, sample in reversed(jobs)]
        uploads = [_prepared_upload(url.path, account, sample) for sample in samples[: 1 if work.is_shared else None]]
        done = asyncio.Semaphore(0)
        # One upload serves all clones where they share it.
        uploaded = asyncio.Semaphore(len(clones) - 1 if work.is_shared else 0)
        loops += [loop_over(uploads, (), uploaded) for _ in range(PLACES)]
        loops += [loop_over(clones, (uploaded,), done) for _ in range(PLACES)]
    await asyncio.gather(*loops)
    return len(work.samples)


def _prepared_clone(base: str, account: str, number: int) -> bytes:
    body = f'{{"account":"{account}","voice_name":"v{number}","language_tag":"English","files":"user:1-file:1"}}'
    head = f"POST {base}/audio/clone-voice HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def _prepared_upload(base: str, account: str, sample: bytes) -> bytes:
    head = (
        f"POST {base}/audio/upload-sample/?account={account} HTTP/1.1\r\n"
        f"Host: localhost\r\nContent-Type: audio/mpeg\r\nContent-Length: {len(sample)}\r\n\r\n"
    )
    return head.encode() + sample


# --- measuring --------------------------------------------------------------------------------------------------------


async def contend(name: str, server: MeasuringServer, work: Work) -> int:
    """Have a contender do the work; return how many voices it reports."""
    if name == OURS:
        return await this_library(server, work)
    if name == LIMIT:
        return await physical_limit(server, work)
    return await run_rival(name, server, work)


def measure(name: str, server: MeasuringServer, row: Row, sample: bytes) -> Run:
    """Run one contender over one row, and check what it did."""
    work = work_of(row.clones, server.accounts, sample, is_shared=row.is_shared)
    server.reset(row.clone_s, row.clone_s * row.upload_share)
    gc.collect()
    start_s, cpu_s = time.perf_counter(), time.process_time()
    reported = asyncio.run(contend(name, server, work))
    makespan_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
    figures = server.figures()
    assert reported == figures.clones == figures.names == row.clones, f"{name}: {reported} of {row.clones}"
    assert figures.breaches == 0, f"{name}: {figures.breaches} breaches"
    places = PLACES * row.accounts
    handovers_s = figures.handovers_s
    return Run(
        busy=figures.busy_s / (places * (figures.last_t - figures.first_t)),
        whole=figures.busy_s / (places * makespan_s),
        makespan_s=makespan_s,
        cpu_ms=cpu_s / row.clones * 1000,
        handover_p50_ms=statistics.median(handovers_s) * 1000,
        handover_p99_ms=handovers_s[math.ceil(len(handovers_s) * 0.99) - 1] * 1000,
    )


def measure_row(row: Row, contenders: Sequence[str], sample: bytes) -> dict[str, list[Run]]:
    """Run all contenders over one row, as often as it says."""
    able = [name for name in contenders if name != AHEAD or row.clones <= MOST_AHEAD]
    runs: dict[str, list[Run]] = {name: [] for name in able}
    with measuring_server(row.accounts) as server:
        for name in able:
            measure(name, server, Row(4 * row.accounts, row.accounts, 0.01, 0.0), sample)
        for _ in range(row.repeats):
            for name, done in runs.items():
                done.append(measure(name, server, row, sample))
    return runs


def measure_serial(sample: bytes) -> Run:
    """The vendor's own way uses one place of all there are; a small row shows that."""
    with measuring_server(3) as server:
        return measure(SERIAL, server, Row(30, 3, 0.2, 0.1), sample)


# --- printing ---------------------------------------------------------------------------------------------------------


def median(runs: list[Run], figure: str) -> float:
    """The median of one figure."""
    return statistics.median(getattr(run, figure) for run in runs)


def with_spread(runs: list[Run], figure: str) -> str:
    """The median of a share, with the lowest and highest where it was measured more than once."""
    shares = [getattr(run, figure) for run in runs]
    text = f"{statistics.median(shares):.2%}"
    return text if len(shares) == 1 else f"{text} ({min(shares):.1%}-{max(shares):.1%})"


def print_tables(results: dict[Row, dict[str, list[Run]]], contenders: list[str]) -> None:
    """Busy places first, then what explains them."""

    def print_one(title: str, cell: Callable[[list[Run]], str]) -> None:
        print(f"\n{title}:\n")
        rows = [
            (row, *(cell(runs[name]) if name in runs else "-" for name in contenders)) for row, runs in results.items()
        ]
        print(table(("", *contenders), rows), flush=True)

    print_one("Places busy, from the first clone's begin to the last one's end", partial(with_spread, figure="busy"))
    print_one("The same, from before the client is opened to after it is closed", partial(with_spread, figure="whole"))
    print_one(
        "Hand-over of a place, p50 / p99 in ms",
        lambda runs: f"{median(runs, 'handover_p50_ms'):.2f} / {median(runs, 'handover_p99_ms'):.1f}",
    )
    print_one(
        "The client's processor time for each clone, its upload included, in ms",
        lambda runs: f"{median(runs, 'cpu_ms'):.2f}",
    )


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="four short rows")
    size.add_argument("--full", action="store_true", help="the whole matrix")
    parser.add_argument("--only", default="", help="rows whose description has this in it")
    parser.add_argument("--contender", action="append", choices=CONTENDERS, help="these alone")
    parser.add_argument("--repeats", type=int, help="for each row, instead of its own number")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    contenders = options.contender or list(CONTENDERS)
    rows = whole_matrix() if options.full else QUICK if options.quick else CHOSEN
    sample = next(path for path in sample_paths() if path.suffix == ".mp3").read_bytes()
    print(machine(), flush=True)
    results = {}
    for row in rows:
        if options.only in str(row):
            results[row] = measure_row(replace(row, repeats=options.repeats or row.repeats), contenders, sample)
            print(f"{row}: done", flush=True)
    print_tables(results, contenders)
    kept = {str(row): {name: [asdict(run) for run in runs] for name, runs in by.items()} for row, by in results.items()}
    if not options.contender and not options.only:
        serial = measure_serial(sample)
        print(f"\nThe serial loop, 30 x 0.2 s on 3 accounts: {serial.busy:.1%}; it cannot do better at any size.")
        kept[SERIAL] = {SERIAL: [asdict(serial)]}
    report("throughput", {"results": kept})


if __name__ == "__main__":
    main()
