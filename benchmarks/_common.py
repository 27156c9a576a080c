"""
What the benchmarks share: a sandbox in a process of its own, machine facts, rows, and a table.

Every benchmark takes `--size smoke/quick/full`, `--repeats N` and `--json FILE` (see `parser`), prints its rows with
`show`, and keeps them with `report(name, {"rows": rows, ...})`. A row says what was measured, our figure, what it is
measured against, and the goal if there is one (see `Row`); rows where another wins are left in. `python benchmarks`
runs them all, each in a process of its own, and lays the rows of all of them out as one table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import platform
import statistics
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypedDict

import anyio
import httpx

ACCOUNT = "335577991122334455"


class Row(TypedDict):
    """
    One line of a result, and of the JSON that is kept.

    Attributes:
        what: What was measured, as a reader without the code understands it.
        ours: Our figure with its unit and spread: `1.42 ms (1.38 to 1.61)`.
        beside: What it is measured against, and that figure; "" where it stands alone.
        value: Our figure as a number, in the unit that `ours` names.
        ratio: Ours divided by what it stands beside, or `None`.
        goal: "at most 1.5" (of the ratio, where there is one, else of the value), or "".
        met: Whether the goal is met; `None` without a goal.
    """

    what: str
    ours: str
    beside: str
    value: float
    ratio: float | None
    goal: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One thing measured several times, in one unit: printed as the median, with the least and the most."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """The median of the repeats."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if len(set(self.values)) == 1:
            return f"{digits(self.median)}{unit}"
        return f"{digits(self.median)}{unit} ({digits(min(self.values))} to {digits(max(self.values))})"


def measured(values: Iterable[float], unit: str, scale: float = 1.0) -> Measured:
    """Take repeats as one figure; `scale` brings them to the unit: `measured(seconds, "ms", 1e3)`."""
    return Measured(tuple(value * scale for value in values), unit)


def digits(value: float) -> str:
    """Write a number with three significant digits, or whole."""
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.095 and abs(value) < 10 else f"{value:.3g}"


def row(
    what: str,
    ours: Measured,
    beside: tuple[str, Measured] | None = None,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Row:
    """Make a row; a goal is one of the ratio where there is something beside, else one of the value."""
    ratio = ours.median / beside[1].median if beside is not None and beside[1].median else None
    held = ours.median if ratio is None else ratio
    goals = [f"{word} {bound:g}" for word, bound in (("at least", at_least), ("at most", at_most)) if bound is not None]
    met = (at_most is None or held <= at_most) and (at_least is None or held >= at_least)
    return Row(
        what=what,
        ours=str(ours),
        beside="" if beside is None else f"{beside[0]}: {beside[1]}",
        value=ours.median,
        ratio=ratio,
        goal=", ".join(goals),
        met=met if goals else None,
    )


def show(rows: Iterable[Row]) -> str:
    """Lay out rows as a Markdown table."""
    verdicts = {True: "yes", False: "NO", None: ""}
    return table(
        ("what", "useapi_voice", "beside", "ratio", "goal", "met"),
        [
            (
                each["what"],
                each["ours"],
                each["beside"],
                "" if each["ratio"] is None else f"{each['ratio']:.2f}",
                each["goal"],
                verdicts[each["met"]],
            )
            for each in rows
        ],
    )


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of a benchmark, with the options that all of them have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--size",
        choices=("smoke", "quick", "full"),
        default="quick",
        help="smoke: whether it starts, in seconds; quick: a minute or two (the default); full: what the README shows",
    )
    made.add_argument("--repeats", type=int, help="how often each thing is measured; the size says, if not given")
    made.add_argument("--json", type=Path, help="keep the rows and figures in this file")
    return made


@dataclass(frozen=True, slots=True)
class Server:
    """A sandbox elsewhere: where it is, and how to ask it for the truth."""

    base_url: str
    token: str
    _pipe: Connection

    def ask(self, question: str) -> Any:
        """Evaluate an expression over the `sandbox` in its own process: `len(sandbox.breaches)`."""
        self._pipe.send(question)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def sandbox_process(**options: Any) -> Generator[Server, None, None]:
    """Run a sandbox in its own process, so that its work is not counted as the client's."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, options), daemon=True)
    process.start()
    theirs.close()
    try:
        base_url, token = ours.recv()
        yield Server(base_url, token, ours)
    finally:
        ours.close()
        process.join(5)
        process.terminate()


def _serve(pipe: Connection, options: dict[str, Any]) -> None:
    from useapi_voice.sandbox import Sandbox  # by the server alone

    async def main() -> None:
        async with Sandbox(**options) as sandbox:
            pipe.send((sandbox.base_url, sandbox.token))
            while True:
                try:
                    question = await anyio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True)
                except EOFError:
                    return
                try:
                    pipe.send(eval(question, {"sandbox": sandbox}))
                except Exception as error:  # noqa: BLE001 - the asker raises it
                    pipe.send(error)

    anyio.run(main)


class Instantly(httpx.AsyncBaseTransport):
    """
    A remote in this process that answers clones at once, so that what is left is the client's own work.

    Args:
        gate: Answers wait until this is set.
    """

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self._gate = gate
        self._made = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make a voice; serve nothing else."""
        await asyncio.sleep(0)
        if not request.url.path.endswith("/clone-voice"):
            return httpx.Response(404, json={"error": "not served"})
        if self._gate is not None:
            await self._gate.wait()
        self._made += 1
        body = b'{"voice_id":"user:1-minimax:%s-audio:%d","voice_name":"v"}' % (ACCOUNT.encode(), self._made)
        return httpx.Response(200, content=body, headers={"content-type": "application/json"})


def a_minute_of_mp3(kbit_s: int = 64, number: int = 0) -> bytes:
    """Make a minute of MP3 frames (MPEG-1 layer III, 44.1 kHz, constant rate), different by its number."""
    index = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320).index(kbit_s)
    frame = bytes((0xFF, 0xFB, index << 4, 0xC4)).ljust(144_000 * kbit_s // 44_100, b"\0")
    return frame * (60 * 44_100 // 1152) + b"TAG" + f"{number:<125}".encode()


def machine() -> str:
    """Say what this was measured on."""
    names = ("httpx", "anyio", "pydantic")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"CPython {platform.python_version()}, {os.cpu_count()} cores{load}; {libraries}"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    cells = [list(map(str, headers)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def report(name: str, results: dict[str, Any]) -> None:
    """Keep the figures as JSON too, where `--json FILE` asks for it."""
    if "--json" in sys.argv:
        path = sys.argv[sys.argv.index("--json") + 1]
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - one line
            json.dump({"benchmark": name, "machine": machine(), **results}, file, indent=1)
