"""What the benchmarks share: a sandbox in a process of its own, machine facts, and a table."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import platform
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

import anyio

from useapi_voice.sandbox import Sandbox


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
