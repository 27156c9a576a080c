"""
Killed again and again: a batch of clones with uploads and planted faults survives SIGKILL at any instant.

A driver in a process of its own hands a batch to a `VoiceClient` with a store, and is killed and started again until
the batch is done; once a life was told that its jobs are accepted, later ones only look them up. The sandbox runs in
another process and keeps the truth, from which all figures but one are taken:

    forgotten   jobs that were accepted and not found again, by the driver's own account
    lost        jobs without a voice at the server, or told of a voice that is not there
    doubled     jobs with more than one
    breaches    requests above the cap of two clones an account
    repeated    contents uploaded twice to an account, though the first upload was on record or not in flight at a kill
    in flight   the same, where the upload was in flight at the kill: nobody can have known of it

All but the last must be 0. Times are scaled: a clone takes 0.05 to 0.2 s, and is settled 2.5 s after it was sent.

    python benchmarks/kill.py [--kills 200] [--kills-per-batch 20] [--jobs 100] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from _common import Server, machine, report, sandbox_process, table

from useapi_voice import CloneError, CloneRequest, VoiceClient

BIRTH_S = 1.0
"""One kill in five comes so soon after the start, at the most: while the store is opened, or the batch submitted."""
LIFE_S = 1.5
"""The others come so long after the driver has all its jobs, at the most."""
IN_FLIGHT_S = 0.25
"""An upload that the server stored so shortly before a kill may not have been read of by the client."""
LIMIT_S = 120.0
"""How long the last life of a batch may wait for its jobs; then it says which of them are stuck, and in what."""
FAULT = "__import__('useapi_voice.sandbox', fromlist=['Fault']).Fault"
FAULTS = (
    "'clone-voice', {fault}.drop(None), probability=0.04, times=None",
    "'clone-voice', {fault}.drop(None, at='end', reset=True), probability=0.04, times=None",
    "'clone-voice', {fault}.truncate(), probability=0.03, times=None",
    "'clone-voice', {fault}.html(502, made=None, at='end'), probability=0.03, times=None",
    "'clone-voice', {fault}.rate_limited(0.3), probability=0.03, times=None",
    "'clone-voice', {fault}.hang(None), probability=0.01, times=None",
    "'upload-sample', {fault}.rate_limited(0.2), probability=0.03, times=None",
)
"""What the server does to one request in five. No upload loses its answer only: that would be repeated rightly."""

# --- the driver, which is killed --------------------------------------------------------------------------------------


def wav(tone: int) -> bytes:
    """Make a sample of 10.5 s, a content of its own for each of 250 tones."""
    data = bytes([tone]) * 84_000
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    chunk = b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(form) + len(chunk)) + b"WAVE" + form + chunk


def requests(names: list[str], directory: Path) -> list[CloneRequest]:
    """Ask for a voice of each name: from files, `bytes` and open files by turns, many of them of the same content."""
    made = []
    for index, name in enumerate(names):
        tones = [1 + index % 37] if index % 5 else [1 + index % 37, 101 + index % 11]
        samples: list[Any] = []
        for tone in tones:
            path = directory / f"{tone}.wav"
            samples.append((path, wav(tone), path.open("rb"))[(index + tone) % 3])
        made.append(CloneRequest(voice_name=name, language_tag="English", samples=samples))
    return made


async def drive(directory: Path, names: list[str], *, are_accepted: bool) -> None:
    """Submit the batch, or find it again; wait for all of it, and say how each job ended."""
    endings: dict[str, str] = {}
    async with VoiceClient(
        api="audio", store=directory / "jobs.db", clone_timeout_s=1.0, settle_after_s=2.5, max_resends=1000
    ) as client:
        if are_accepted:
            jobs = {name: client.job(name) for name in names}
        else:
            jobs = dict(zip(names, await client.submit_many(requests(names, directory), keys=names), strict=True))
        print("accepted", flush=True)
        with anyio.move_on_after(LIMIT_S):
            for name, job in jobs.items():
                try:
                    endings[name] = "forgotten" if job is None else (await job).voice_id
                except CloneError as error:
                    endings[name] = f"{type(error).__name__}: {error}"
        left = [job for name, job in jobs.items() if job is not None and name not in endings]
        if left:
            waiting = "\n".join(f"{job.key}: {job.state}, {job.account}, {job.attempts} attempts" for job in left)
            print(f"stuck:\n{waiting}\n{client.statistics()}", file=sys.stderr, flush=True)
            os._exit(1)
    print(json.dumps(endings), flush=True)


# --- the killer -------------------------------------------------------------------------------------------------------


@dataclass
class Kill:
    """One death: when, by the sandbox's clock, and which uploads were on record by then."""

    t: float
    on_record: set[tuple[str, str]]


@dataclass
class Batch:
    """One batch: its server, its directory, and what became of it so far."""

    server: Server
    directory: Path
    names: list[str]
    dice: random.Random
    kills: list[Kill] = field(default_factory=list)
    lives: int = 0
    killed_before_acceptance: int = 0
    are_accepted: bool = False
    endings: dict[str, str] | None = None

    def live(self, *, is_last: bool) -> None:
        """Run the driver, and kill it at some instant unless it is done by then, or this is the last life."""
        self.lives += 1
        command = [sys.executable, __file__, "--drive", str(self.directory), *self.names]
        if self.are_accepted:
            command.insert(2, "--accepted")
        environment = {**os.environ, "USEAPI_BASE_URL": self.server.base_url, "USEAPI_TOKEN": self.server.token}
        with (
            open(self.directory / "out", "w+", encoding="utf-8") as out,  # noqa: PTH123
            subprocess.Popen(command, stdout=out, env=environment) as driver,
        ):
            is_birth = self.dice.random() < 0.2
            while not is_last and not is_birth and driver.poll() is None and not os.fstat(out.fileno()).st_size:
                time.sleep(0.002)
            try:
                status = driver.wait(
                    LIMIT_S + 30.0 if is_last else self.dice.uniform(0, BIRTH_S if is_birth else LIFE_S)
                )
            except subprocess.TimeoutExpired:
                driver.kill()
                driver.wait()
                assert not is_last, "the driver hangs"
                now: float = self.server.ask("sandbox.now()")
                self.kills.append(Kill(now, self.uploads_on_record()))
            else:
                assert status == 0, f"the driver ended with status {status}"
            out.seek(0)
            lines = out.read().splitlines()
        self.killed_before_acceptance += not self.are_accepted and "accepted" not in lines
        self.are_accepted = self.are_accepted or "accepted" in lines
        if len(lines) == 2 and lines[1].endswith("}"):
            self.endings = json.loads(lines[1])

    def uploads_on_record(self) -> set[tuple[str, str]]:
        """Read what the dead driver left, from a copy: the original is for the next life to recover."""
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("jobs.db", "jobs.db-wal"):
                if (self.directory / name).exists():
                    shutil.copy(self.directory / name, scratch)
            with closing(sqlite3.connect(Path(scratch) / "jobs.db")) as connection:
                try:
                    return set(connection.execute("SELECT account, sha256 FROM uploads"))
                except sqlite3.OperationalError:  # it died before there was a table
                    return set()

    def figures(self) -> Counter[str]:
        """Ask the server what there is, and compare."""
        assert self.endings is not None
        voices = defaultdict(set)
        for name, voice_id in self.server.ask("[(voice.voice_name, voice.voice_id) for voice in sandbox.voices()]"):
            voices[name].add(voice_id)
        uploads = self.server.ask("[(upload.account, upload.sha256, upload.at) for upload in sandbox.uploads]")
        found: Counter[str] = Counter(kills=len(self.kills), lives=self.lives, uploads=len(uploads))
        found["before acceptance"] = self.killed_before_acceptance
        found["forgotten"] = sum(ending == "forgotten" for ending in self.endings.values())
        found["breaches"] = self.server.ask("len(sandbox.breaches)")
        found["breaches"] += sum(
            most > 2 for most in self.server.ask("dict(sandbox.max_parallel_seen)").values()
        )  # none without a breach, unless the server miscounts
        for name in self.names:
            found["jobs"] += 1
            found["doubled"] += len(voices[name]) > 1
            if self.endings[name] not in voices[name]:
                found["lost"] += 1
                print(f"{name} ended as {self.endings[name]}; the server has {voices[name]}", file=sys.stderr)
        first_at: dict[tuple[str, str], float] = {}
        for account, sha256, at in uploads:
            pair = account, sha256
            if pair in first_at:
                found["in flight" if self.is_excusable(pair, first_at[pair], at) else "repeated"] += 1
            first_at[pair] = at
        return found

    def is_excusable(self, pair: tuple[str, str], first_at: float, again_at: float) -> bool:
        """Whether a kill came so shortly after the first upload that the client need not have read of it."""
        between = [kill for kill in self.kills if first_at - IN_FLIGHT_S <= kill.t <= again_at]
        return any(kill.t - first_at <= IN_FLIGHT_S for kill in between) and not any(
            pair in kill.on_record for kill in between
        )


def run_batch(number: int, jobs: int, kills: int, dice: random.Random) -> Counter[str]:
    """Run one batch to its end, killing it so many times on the way, or until it is done."""
    names = [f"batch {number} job {index}" for index in range(jobs)]
    options = {"accounts": 2, "clone_s": (0.05, 0.2), "seed": dice.randrange(1 << 30)}
    with tempfile.TemporaryDirectory() as scratch, sandbox_process(**options) as server:
        directory = Path(scratch)
        for tone in range(1, 120):
            (directory / f"{tone}.wav").write_bytes(wav(tone))
        for fault in FAULTS:
            server.ask(f"sandbox.fail({fault.format(fault=FAULT)}) and None")
        batch = Batch(server, directory, names, dice)
        while len(batch.kills) < kills and batch.endings is None:
            batch.live(is_last=False)
        if batch.endings is None:
            batch.live(is_last=True)
        return batch.figures()


MUST_BE_NONE = ("forgotten", "lost", "doubled", "breaches", "repeated")


def main() -> None:
    """Kill, count, and end with status 1 unless all is well."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-batch", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=100, help="jobs of a batch")
    parser.add_argument("--seed", type=int, default=0, help="of the instants, and of the sandbox's dice")
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("--accepted", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--drive", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        directory, *names = options.drive
        anyio.run(lambda: drive(Path(directory), names, are_accepted=options.accepted))
        return
    dice = random.Random(options.seed)
    total: Counter[str] = Counter()
    start = time.perf_counter()
    number = 0
    while total["kills"] < options.kills:
        number += 1
        total += run_batch(number, options.jobs, min(options.kills_per_batch, options.kills - total["kills"]), dice)
    seconds = time.perf_counter() - start
    print(machine())
    what = ("kills", "before acceptance", "jobs", "uploads", *MUST_BE_NONE, "in flight")
    print(table(["figure", "count"], [(name, total[name]) for name in what]))
    print(f"{number} batches, {total['lives']} lives, {seconds:.0f} s")
    report("kill", {"seconds": seconds, "batches": number, **{name: total[name] for name in what}})
    if any(total[name] for name in MUST_BE_NONE):
        sys.exit(1)


if __name__ == "__main__":
    main()
