"""`useapi-voice demo`: real audio, real HTTP and a batch of clones, by default against the built-in sandbox."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .._client import VoiceClient
from .._errors import CloneError
from .._events import CloneJob
from .._models import CloneRequest, VoiceInfo
from ..sandbox import Sandbox, sample_paths
from ._connect import check_environment
from ._exit import ExitCode, code_of, worst

LANGUAGES = ("English", "Spanish", "French", "German")


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    clones: int
    accounts: int
    clone_s: float
    live: bool


@dataclass(slots=True)
class _Result:
    voices: list[tuple[float, VoiceInfo]]
    failures: list[CloneError]
    took_s: float


async def run(plan: Plan) -> ExitCode:
    """Run the demo."""
    console = Console()
    result = _Result([], [], 0.0)
    if plan.live:
        check_environment()
        console.print(f"On the real API: {plan.clones} real voices, each in a slot of your accounts.")
        async with VoiceClient() as client:
            await _clone_all(result, client, plan, console)
        _print_voices(result, console)
    else:
        async with Sandbox(accounts=plan.accounts, clone_s=plan.clone_s) as sandbox:
            console.print(f"The sandbox serves the API at {sandbox.base_url}; nothing leaves this machine.")
            async with VoiceClient(sandbox.token, base_url=sandbox.base_url) as client:
                await _clone_all(result, client, plan, console)
        _print_voices(result, console)
        _print_truth(sandbox, plan, result, console)
    return worst(code_of(error) for error in result.failures)


def _requests(plan: Plan) -> list[CloneRequest]:
    paths = sample_paths()
    return [
        CloneRequest(
            voice_name=f"Demo voice {number + 1}",
            language_tag=LANGUAGES[number % len(LANGUAGES)],
            samples=[paths[number % len(paths)]],
        )
        for number in range(plan.clones)
    ]


async def _clone_all(result: _Result, client: VoiceClient, plan: Plan, console: Console) -> None:
    started = time.perf_counter()
    async with _progress(client, plan.clones, console) as finished:
        jobs = await client.submit_many(_requests(plan))
        async for job in client.as_completed(jobs):
            result.took_s = time.perf_counter() - started
            await _collect(job, result)
            finished()


async def _collect(job: CloneJob, result: _Result) -> None:
    try:
        result.voices.append((result.took_s, await job))
    except CloneError as error:
        result.failures.append(error)


class _Meter:
    """The progress display: one bar for the batch, and a line of what each account is doing."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("voices", total=total, lanes="")

    def __call__(self) -> None:
        self._progress.advance(self._task)

    def show(self, client: VoiceClient) -> None:
        lanes = [
            f"…{(lane.account or 'account')[-4:]} {lane.in_progress}/{lane.limit}" for lane in client.statistics().lanes
        ]
        self._progress.update(self._task, lanes="  ".join(lanes))


@asynccontextmanager
async def _progress(client: VoiceClient, total: int, console: Console) -> AsyncGenerator[_Meter, None]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[lanes]}"),
    )
    with Progress(*columns, console=console) as progress:
        meter = _Meter(progress, total)
        async with client.events() as events, anyio.create_task_group() as tasks:

            async def follow() -> None:
                async for _ in events:
                    meter.show(client)

            tasks.start_soon(follow)
            try:
                yield meter
            finally:
                tasks.cancel_scope.cancel()


def _print_voices(result: _Result, console: Console) -> None:
    table = Table("voice_id", "voice_name", "language", "account", "after")
    for at_s, voice in result.voices:
        row = (
            voice.voice_id.rsplit(":", 1)[-1],
            voice.voice_name,
            ", ".join(voice.tag_list),
            voice.account,
            f"{at_s:.1f} s",
        )
        table.add_row(*(cell or "" for cell in row))
    console.print(table)
    for error in result.failures:
        console.print(f"{error.voice_name}: {type(error).__name__}: {error}", markup=False)


def _print_truth(sandbox: Sandbox, plan: Plan, result: _Result, console: Console) -> None:
    table = Table("account", "voices", "most clones at once", title="As the server counted")
    for account, most in sandbox.max_parallel_seen.items():
        table.add_row(account, str(len(sandbox.voices(account))), str(most))
    console.print(table)
    ideal_s = math.ceil(plan.clones / (2 * plan.accounts)) * plan.clone_s
    console.print(
        f"{len(result.voices)} voices in {result.took_s:.2f} s; the places alone allow no less than {ideal_s:.2f} s: "
        f"{ideal_s / result.took_s:.0%} of the ideal. Cap breaches at the server: {len(sandbox.breaches)}."
    )
