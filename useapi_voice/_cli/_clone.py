"""`useapi-voice clone`: a manifest or a folder of recordings, all the way to voices."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ._batch import LOUD, Style, Tally, enlist, follow, tell
from ._check import check
from ._connect import Remote, connected, rehearsal, store_of
from ._exit import ExitCode
from ._manifest import Manifest, ManifestInvalid, read
from ._results import check_out, write_out
from ._text import count, put_json, say, shown


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    source: Path
    language: str | None = None
    account: str | None = None
    store: Path | None = None
    out: Path | None = None
    max_parallel: int = 2
    sandbox: bool = False
    fail_fast: bool = False
    style: Style = LOUD


async def run(plan: Plan) -> ExitCode:
    """Check everything, clone what is not there yet, and say how it went."""
    check_out(plan.out, plan.source)
    manifest = read(plan.source, language=plan.language, account=plan.account)
    async with AsyncExitStack() as stack:
        remote = await stack.enter_async_context(rehearsal(wanted=plan.sandbox, max_parallel=plan.max_parallel))
        store = store_of(plan.source, plan.store, remote, stack)
        try:
            await check(manifest, remote)
            tally = await _clone(plan, manifest, remote, store)
        except ManifestInvalid as error:
            if plan.style.json:
                tell_faults(error)
            raise
    kept = None if plan.sandbox else store
    tell(tally, plan.style, store=kept, again=_again(plan))
    if plan.out is None:
        return tally.code
    # After all is told: should there be no room for the file, that is then the last that is said.
    write_out(plan.out, [(item.job.key, voice) for item, voice in tally.voices])
    if not plan.style.quiet and str(plan.out) != "-":
        say(f"{count(len(tally.voices), 'voice')} written to {shown(plan.out)}.")
    return tally.code


async def _clone(plan: Plan, manifest: Manifest, remote: Remote, store: Path) -> Tally:
    if not plan.style.quiet:
        for note in manifest.notes:
            say(f"{shown(plan.source)}: {note}")
        if plan.sandbox:
            say("A rehearsal: the embedded sandbox answers, and nothing leaves this machine.")
    async with connected(remote, store=store) as client:
        batch = await enlist(client, manifest.rows, plan.source)
        title = f"Cloning {plan.source.name or plan.source}" + (" (rehearsal)" if plan.sandbox else "")
        return await follow(client, batch, title, plan.style, fail_fast=plan.fail_fast, again=_again(plan))


def _again(plan: Plan) -> str:
    return "It was a rehearsal: nothing is kept." if plan.sandbox else "The same command goes on where it stopped."


def tell_faults(error: ManifestInvalid) -> None:
    """Write every fault as a line of JSON."""
    for fault in error.faults:
        put_json({"event": "fault", "line": fault.line or None, "where": fault.where, **asdict(fault.fault)})
