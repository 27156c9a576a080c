"""
The same batch with trouble: 5 % 429 (`Retry-After` 1 s), 2 % lost answers, one account of three out of order.

The rivals (`_rivals.py`) retry blindly, as their users do: up to five times on a refusal or a broken connection, after
what `Retry-After` says or a second. What counts is what the server has at the end: voices that are missing, voices that
were made (and are paid for) twice, and requests beyond the two that an account takes at once. The server is the
sandbox, in a process of its own: here its faults matter, not its speed. The rivals run side by side, each with a
sandbox of its own, as they do little but wait; this library runs alone.

    python benchmarks/trouble.py [--quick] [--clones 120] [--clone-s 0.2] [--repeats 2] [--json FILE]

Ends within three minutes, with `--quick` within half a one.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import httpx
from _common import Server, machine, report, sandbox_process, table
from _rivals import RIVALS, Work, run_rival, work_of

from useapi_voice import CloneError, CloneRequest, VoiceClient
from useapi_voice.sandbox import sample_paths

OURS, SERIAL = "useapi_voice", "serial loop"
TRIES = 5
RETRIED = {408, 429, 500, 502, 503, 504, 596}
"""What a retrying transport takes as worth another try."""
SETTLE_AFTER_S = 2.0
"""Ten times what a clone takes here; the library's default, 75 s, is little more than the longest clone."""


@dataclass(frozen=True, slots=True)
class Tally:
    """
    What one contender did.

    Attributes:
        reported: Voices that it says it made.
        voices: Different voices that the server has.
        missing: Voices that it has not.
        doubled: Voices that it has beyond the first of a name.
        unreported: Voices that it has, paid for, and that the contender says it could not make.
        breaches: Clones that came while two were in progress.
        makespan_s: Wall clock.
    """

    reported: int
    voices: int
    missing: int
    doubled: int
    unreported: int
    breaches: int
    makespan_s: float


async def this_library(server: Server, work: Work) -> int:
    """`submit_many`, and await; returns how many voices were reported."""
    reported = 0
    async with VoiceClient(
        server.token, base_url=server.base_url, api="audio", settle_after_s=SETTLE_AFTER_S
    ) as client:
        requests = [
            CloneRequest(voice_name=f"v{number}", language_tag="English", samples=[sample])
            for number, sample in enumerate(work.samples)
        ]
        for job in await client.submit_many(requests):
            try:
                await job
            except CloneError:
                continue
            reported += 1
    return reported


async def insist(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Try again, as most retry helpers do; the last error is raised."""
    for tries_left in reversed(range(TRIES)):
        try:
            return await attempt()
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in RETRIED or not tries_left:
                raise
            await asyncio.sleep(float(error.response.headers.get("retry-after", 1)))
        except httpx.TransportError:
            if not tries_left:
                raise
            await asyncio.sleep(1)
    return None


def contend(name: str, server: Server, work: Work) -> int:
    """Have a contender do the work; return how many voices it reports."""
    if name == OURS:
        return asyncio.run(this_library(server, work))
    return asyncio.run(run_rival(name, server, work, insist))


PLANT = """[
    sandbox.fail("clone-voice", F.rate_limited(1, "seconds"), probability=0.05, times=None),
    sandbox.fail("clone-voice", F.drop(made=True, at="end"), probability=0.02, times=None),
    sandbox.break_account(sandbox.accounts[-1]),
] and None"""


def measure(name: str, clones: int, clone_s: float, sample: bytes, seed: int) -> Tally:
    """Let one contender meet the trouble; the seed is the dice of the server."""
    with sandbox_process(accounts=3, clone_s=clone_s, seed=seed) as server:
        server.ask(PLANT.replace("F.", "__import__('useapi_voice.sandbox').sandbox.Fault."))
        work = work_of(clones, list(server.ask("sandbox.accounts")), sample)
        start_s = time.perf_counter()
        reported = contend(name, server, work)
        makespan_s = time.perf_counter() - start_s
        time.sleep(clone_s)  # what runs on at the server after its client has given up
        voices = Counter(server.ask("[voice.voice_name for voice in sandbox.voices()]"))
        return Tally(
            reported=reported,
            voices=len(voices),
            missing=clones - len(voices),
            doubled=voices.total() - len(voices),
            unreported=max(0, len(voices) - reported),
            breaches=server.ask("len(sandbox.breaches)"),
            makespan_s=makespan_s,
        )


def measure_all(sizes: dict[str, int], clone_s: float, sample: bytes, seed: int) -> dict[str, Tally]:
    """This library alone, then all rivals at once."""
    ours = measure(OURS, sizes[OURS], clone_s, sample, seed)
    with ThreadPoolExecutor(len(RIVALS)) as threads:
        running = {name: threads.submit(measure, name, sizes[name], clone_s, sample, seed) for name in RIVALS}
        return {OURS: ours} | {name: tally.result() for name, tally in running.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 clones, once")
    parser.add_argument("--clones", type=int)
    parser.add_argument("--clone-s", type=float, default=0.2)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = options.clones or (30 if options.quick else 120)
    repeats = options.repeats or (1 if options.quick else 2)
    sample = next(path for path in sample_paths() if path.suffix == ".mp3").read_bytes()
    # The serial loop waits out every refusal with nothing else to do: it gets a quarter of the work.
    sizes = {name: count // 4 if name == SERIAL else count for name in (OURS, *RIVALS)}
    runs = [measure_all(sizes, options.clone_s, sample, seed) for seed in range(1, repeats + 1)]
    print(f"{count} clones ({sizes[SERIAL]} for the {SERIAL}), 3 accounts of which one is out of order,")
    print(f"clone {options.clone_s} s; means of {repeats} runs with seeds of their own. {machine()}\n")
    names = [field.name for field in fields(Tally)]
    rows = [
        (name, *(f"{statistics.mean(getattr(run[name], column) for run in runs):.3g}" for column in names))
        for name in sizes
    ]
    print(table(("", *names), rows))
    report("trouble", {"runs": [{name: asdict(tally) for name, tally in run.items()} for run in runs]})


if __name__ == "__main__":
    main()
