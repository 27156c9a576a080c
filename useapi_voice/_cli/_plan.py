"""`useapi-voice plan`: what a clone would do and take, without doing it; asks the remote, and spends nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from .._client import VoiceClient
from .._errors import ApiError, AuthenticationError, SubscriptionError
from .._pictures import TYPICAL_CLONE_S
from ._check import Known, SampleFacts, Samples, check
from ._clone import tell_faults
from ._connect import connected, rehearsal, store_of
from ._exit import ExitCode
from ._kept import Row as Kept
from ._kept import rows_if_any
from ._manifest import Manifest, ManifestInvalid, Row, read
from ._text import count, put, put_json, put_table, say, shown, span


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    source: Path
    language: str | None = None
    account: str | None = None
    store: Path | None = None
    max_parallel: int = 2
    sandbox: bool = False
    json: bool = False


@dataclass(slots=True)
class Share:
    """
    What one account would do.

    Attributes:
        free_slots: As the remote says; `None` where it does not.
    """

    account: str | None
    voices: int = 0
    uploads: int = 0
    free_slots: int | None = None
    time_s: float = 0.0
    paths: set[str] = field(default_factory=set)


async def run(plan: Plan) -> ExitCode:
    """Check everything, and tell what a clone would do."""
    manifest = read(plan.source, language=plan.language, account=plan.account)
    async with AsyncExitStack() as stack:
        remote = await stack.enter_async_context(rehearsal(wanted=plan.sandbox, max_parallel=plan.max_parallel))
        store = store_of(plan.source, plan.store, remote, stack)
        try:
            known, samples = await check(manifest, remote)
        except ManifestInvalid as error:
            if plan.json:
                tell_faults(error)
            raise
        kept = await rows_if_any(store)
        done = {row["key"] for row in kept if row["state"] == "cloned"}
        rows = [row for row in manifest.rows if row.key not in done]
        clone_s = measured_s(kept)
        shares = share_out(rows, known, plan.max_parallel, clone_s or TYPICAL_CLONE_S)
        async with connected(remote) as client:
            for share in shares:
                share.free_slots = await free_slots(client, share.account)
    short = _missing_slots(shares)
    _tell(plan, manifest, rows, samples, shares, clone_s, short)
    return ExitCode.REFUSED if short else ExitCode.OK


def measured_s(kept: Sequence[Kept]) -> float | None:
    """Return how long a clone took in the middle, as a store remembers; `None` if it remembers none."""
    took = sorted(
        (datetime.fromisoformat(attempt["ended_at"]) - datetime.fromisoformat(attempt["sent_at"])).total_seconds()
        for row in kept
        for attempt in row["history"]
        if attempt["verdict"] == "cloned"
    )
    return took[len(took) // 2] if took else None


def share_out(rows: Sequence[Row], known: Known, places: int, clone_s: float) -> list[Share]:
    """Give each voice to its account, or to the one that has the least to do: about what the queue will do."""
    shares = {name: Share(name) for name in known.usable}
    anywhere = list(shares.values()) or [shares.setdefault("", Share(None))]
    for row in sorted(rows, key=lambda row: row.request.account is None):
        wanted = row.request.account
        share = (
            min(anywhere, key=lambda one: one.voices) if wanted is None else shares.setdefault(wanted, Share(wanted))
        )
        share.voices += 1
        share.paths.update(str(sample.path) for sample in row.request.samples)
    for share in shares.values():
        share.uploads = len(share.paths)
        share.time_s = -(-share.voices // places) * clone_s
    return [share for share in shares.values() if share.voices or share.account]


async def free_slots(client: VoiceClient, account: str | None) -> int | None:
    """Ask how many voices still fit; `None` where the remote does not tell."""
    try:
        return (await client.slots(account)).free
    except (AuthenticationError, SubscriptionError):
        raise
    except ApiError:
        return None


def _missing_slots(shares: Sequence[Share]) -> int:
    """Count the voices that have no slot, as far as the remote tells."""
    if any(share.free_slots is None for share in shares):
        return 0
    return max(0, sum(share.voices for share in shares) - sum(share.free_slots or 0 for share in shares))


def _tell(
    plan: Plan,
    manifest: Manifest,
    rows: Sequence[Row],
    samples: Samples,
    shares: Sequence[Share],
    clone_s: float | None,
    short: int,
) -> None:
    used = {str(sample.path) for row in rows for sample in row.request.samples}
    facts = [samples.good[path] for path in used]
    if plan.json:
        _tell_json(manifest, rows, facts, shares, clone_s, short)
        return
    there = len(manifest.rows) - len(rows)
    already = f" ({there:,} of them are there already)" if there else ""
    put(f"{shown(manifest.source)}: {count(len(manifest.rows), 'voice')}{already}, and nothing is wrong with it.")
    size_mb = sum(fact.size_bytes for fact in facts) / 1e6
    length = span(sum(fact.duration_s for fact in facts))
    put(f"To make: {count(len(rows), 'voice')} of {count(len(facts), 'recording')} ({length}, {size_mb:.1f} MB).")
    for note in manifest.notes:
        put(f"Note: {note}.")
    put_table(("account", "voices", "uploads", "free slots", "time"), [_cells(share) for share in shares])
    basis = "as measured" if clone_s else "as the vendor says"
    each = span(clone_s or TYPICAL_CLONE_S)
    put(f"About {span(_longest_s(shares))} in all, at {each} a clone ({basis}). Nothing was spent.")
    if short:
        remedy = "delete voices (useapi-voice voices delete), or add an account at useapi.net"
        say(f"There is no slot for {count(short, 'voice')}: {remedy}.")


def _tell_json(
    manifest: Manifest,
    rows: Sequence[Row],
    facts: Sequence[SampleFacts],
    shares: Sequence[Share],
    clone_s: float | None,
    short: int,
) -> None:
    of_each = [{key: value for key, value in asdict(share).items() if key != "paths"} for share in shares]
    put_json(
        {
            "voices": len(manifest.rows),
            "to_make": len(rows),
            "recordings": len(facts),
            "size_bytes": sum(fact.size_bytes for fact in facts),
            "languages": dict(Counter(row.request.language_tag for row in rows)),
            "clone_s": clone_s or TYPICAL_CLONE_S,
            "time_s": _longest_s(shares),
            "without_slot": short,
            "accounts": of_each,
        }
    )


def _cells(share: Share) -> tuple[object, ...]:
    free = "not told" if share.free_slots is None else share.free_slots
    return (share.account or "the account", share.voices, share.uploads, free, span(share.time_s))


def _longest_s(shares: Sequence[Share]) -> float:
    return max((share.time_s for share in shares), default=0.0)
