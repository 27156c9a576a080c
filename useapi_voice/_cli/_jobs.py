"""`useapi-voice jobs`: what a store holds; what failed goes again, and what is over can be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._client import VoiceClient
from .._errors import CloneError, Fault
from .._events import CloneJob
from .._jobs import TERMINAL_STATES, JobState
from .._samples import SampleBook
from ._batch import LOUD, Batch, Style, Tally, _ending, _others, follow, tell
from ._connect import Remote, connected
from ._exit import CliError, ExitCode
from ._kept import Row, find_store, opened, pick, rows_of
from ._progress import Item
from ._text import confirmed, count, names, put, put_json, put_table, say, shown

_FAILED = TERMINAL_STATES - {JobState.CLONED}


async def list_all(path: Path, state: JobState | None, json: bool) -> ExitCode:  # noqa: FBT001 - as anyio calls it
    """List the jobs of a store."""
    rows = [row for row in await rows_of(path) if state in {None, row["state"]}]
    if json:
        for row in rows:
            put_json(row)
        return ExitCode.OK
    cells = [
        (row["id"][:8], row["key"] or "", row["request"]["voice_name"], row["state"], row["attempts"], _ended_as(row))
        for row in rows
    ]
    put_table(("job", "key", "voice_name", "state", "attempts", "voice_id or error"), cells)
    return ExitCode.OK


def _ended_as(row: Row) -> str:
    outcome: dict[str, Any] = row["outcome"] or {}
    if "voice" in outcome:
        return str(outcome["voice"]["voice_id"])
    return shown(f"{outcome['error']}: {outcome['facts']['message']}", 100) if outcome else ""


async def show(path: Path, wanted: str, json: bool) -> ExitCode:  # noqa: FBT001 - as anyio calls it
    """Show one job with its history."""
    (row,) = pick(await rows_of(path), [wanted])
    if json:
        put_json(row)
        return ExitCode.OK
    request = row["request"]
    sources = [sample["path"] or sample["name"] for sample in request["samples"]] or request["files"]
    facts = {
        "job": row["id"],
        "key": row["key"],
        "voice_name": request["voice_name"],
        "language_tag": request["language_tag"],
        "samples": names(sources, 10),
        "account": row["account"],
        "state": row["state"],
        "ended": row["settled_at"],
        "outcome": _ended_as(row),
    }
    for name, value in facts.items():
        if value:
            put(f"{name:<13} {shown(value, 1000)}")
    for number, attempt in enumerate(row["history"], 1):
        detail = f": {attempt['detail']}" if attempt["detail"] else ""
        what = f"{attempt['verdict'] or 'in progress'} ({attempt['status_code'] or 'no answer'}){detail}"
        put(shown(f"attempt {number}     {attempt['sent_at']} on {attempt['account']}: {what}", 1000))
    return ExitCode.OK


async def forget(path: Path, wanted: Sequence[str], yes: bool) -> ExitCode:  # noqa: FBT001 - as anyio calls it
    """Forget jobs that have ended."""
    async with opened(path) as store:
        found = pick([row async for row in store.export()], list(dict.fromkeys(wanted)))
        for row in found:
            if row["state"] not in TERMINAL_STATES:
                message = f"{shown(row['key'] or row['id'])} has not ended, so it cannot be forgotten"
                raise CliError(ExitCode.USAGE, f"{message}: run the clone to its end first. Nothing was forgotten.")
        cloned = [row for row in found if row["state"] == JobState.CLONED]
        question = f"{count(len(cloned), 'voice')} would be cloned, and paid for, once more by the next clone. Forget?"
        if cloned and not confirmed(question, yes=yes):
            say(f"Nothing was forgotten: {count(len(cloned), 'job')} made a voice; --yes forgets them all the same.")
            return ExitCode.OK
        for row in found:
            await store.forget(row["id"])
    say(f"Forgot {count(len(found), 'job')}.")
    return ExitCode.OK


# --- once more -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retry:
    """What was asked for."""

    store: Path
    wanted: tuple[str, ...] = ()
    unknown: bool = False
    max_parallel: int = 2
    style: Style = LOUD


async def retry(plan: Retry) -> ExitCode:
    """Submit what ended without a voice once more, under the same key."""
    store = find_store(plan.store)
    if plan.wanted:
        pick(await rows_of(store), plan.wanted)
    again = "useapi-voice jobs retry, or the clone that made the store, goes on."
    async with connected(Remote(max_parallel=plan.max_parallel), store=store) as client:
        batch, gone = await _resubmit(client, plan)
        for text in gone:
            say(text)
        if not batch.items:
            say(f"Nothing to retry in {shown(store)}.")
            return ExitCode.REFUSED if gone else ExitCode.OK
        tally: Tally = await follow(client, batch, f"Retrying {store.name}", plan.style, again=again)
    tell(tally, plan.style, store=store, again=again)
    return ExitCode.REFUSED if gone and tally.code is ExitCode.OK else tally.code


async def _resubmit(client: VoiceClient, plan: Retry) -> tuple[Batch, list[str]]:
    batch = Batch([])
    gone: list[str] = []
    unknown = 0
    async with SampleBook() as book:
        for job in [job async for job in client.jobs() if job.state in _FAILED and job.done()]:
            if plan.wanted and not _is_wanted(job, plan.wanted):
                continue
            outcome = await _ending(job)
            if isinstance(outcome, CloneError) and outcome.voice_may_exist and not plan.unknown:
                unknown += 1
                continue
            trouble = await _what_is_gone(job, book)
            if trouble:
                gone.append(f"{shown(job.request.voice_name)} is left as it is: {shown(trouble, 300)}.")
                continue
            # One by one: should this process end in between, no more than one failed job is lost.
            await client.forget(job)
            batch.items.append(Item(await client.submit(job.request, key=job.key)))
    if unknown:
        batch.notes.append(
            f"{count(unknown, 'job')} left alone: a voice may exist. Look for it (useapi-voice voices list); "
            "--unknown tries them too"
        )
    batch.items += [Item(job) async for job in _others(client, {item.job.id for item in batch.items})]
    if not batch.items:
        for note in batch.notes:
            say(f"{note}.")
    return batch, gone


def _is_wanted(job: CloneJob, wanted: Sequence[str]) -> bool:
    return any(name in {job.key, job.id} or job.id.startswith(name) for name in wanted)


async def _what_is_gone(job: CloneJob, book: SampleBook) -> str:
    """Say why a job cannot go again; empty where it can."""
    if any(mark.path is None for mark in job._job.fingerprints):
        return "its samples were handed in by a program, and are not kept once a job has ended: submit it there"
    answers = await book.inspect_all([(sample, "samples") for sample in job.request.samples])
    fault = next((answer for answer in answers if isinstance(answer, Fault)), None)
    return "" if fault is None else f"{fault.message}: put it back, and try again"
