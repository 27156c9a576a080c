"""Finds all that is wrong with a manifest before anything is sent: rows, samples, languages and accounts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .._client import VoiceClient
from .._errors import ApiError, AuthenticationError, Fault, ServerError, SubscriptionError, UseapiVoiceError
from .._models import Account, Sample
from .._samples import _PATH_REMEDY, SampleBook
from ._connect import Remote, connected
from ._exit import CliError
from ._manifest import Manifest, ManifestInvalid, Row, RowFault
from ._text import names, shown

AT_ONCE: Final = 256
"""Samples inspected in one go: what is kept of each is two numbers, however many there are."""


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What is known of a file that is fit."""

    duration_s: float
    size_bytes: int


@dataclass(slots=True)
class Known:
    """
    What the remote said.

    Attributes:
        accounts: Empty where it does not tell.
        languages: Empty where it does not tell.
    """

    accounts: tuple[Account, ...] = ()
    languages: tuple[str, ...] = ()
    generation: str = ""

    @property
    def usable(self) -> tuple[str, ...]:
        """The accounts that can clone."""
        return tuple(account.account for account in self.accounts if account.usable)


@dataclass(slots=True)
class Samples:
    """What inspection found, by path: facts of the good ones, and what is wrong with the others."""

    good: dict[str, SampleFacts] = field(default_factory=dict)
    bad: dict[str, Fault] = field(default_factory=dict)


async def check(manifest: Manifest, remote: Remote) -> tuple[Known, Samples]:
    """
    Check a manifest, and tell what was learned on the way.

    Raises:
        ManifestInvalid: All faults, of all rows; nothing was sent but questions.
        CliError: There is no token.
        UseapiVoiceError: The remote could not be asked; faults that were found by then go first.
    """
    faults = [*manifest.faults, *_request_faults(manifest.rows)]
    samples = await inspect(manifest.rows)
    faults += _sample_faults(manifest, samples)
    known = Known()
    try:
        async with connected(remote) as client:
            known = await learn(client)
        faults += [*_language_faults(manifest.rows, known), *_account_faults(manifest.rows, known)]
    except (UseapiVoiceError, CliError):
        if not faults:
            raise
    if faults:
        raise ManifestInvalid(manifest.source, sorted(faults, key=lambda fault: fault.line))
    return known, samples


def _request_faults(rows: Iterable[Row]) -> list[RowFault]:
    # That a folder does not say its language is one fault, and noted already.
    return [
        RowFault(row.line, row.where, _safe(fault))
        for row in rows
        for fault in row.request.faults()
        if row.line or fault.field != "language_tag" or row.request.language_tag
    ]


def _safe(fault: Fault) -> Fault:
    return replace(fault, message=shown(fault.message, 200), remedy=shown(fault.remedy, 200))


async def inspect(rows: Sequence[Row]) -> Samples:
    """Look at every file once, a few hundred at a time."""
    by_path = {sample.path: sample for row in rows for sample in row.request.samples if sample.path is not None}
    waiting: list[tuple[Sample, str]] = [(sample, "samples") for sample in by_path.values()]
    found = Samples()
    async with SampleBook() as book:
        for start in range(0, len(waiting), AT_ONCE):
            some = waiting[start : start + AT_ONCE]
            for (sample, _), answer in zip(some, await book.inspect_all(some), strict=True):
                path = str(sample.path)
                if isinstance(answer, Fault):
                    found.bad[path] = answer
                else:
                    found.good[path] = SampleFacts(answer.duration_s, answer.size_bytes)
    return found


def _sample_faults(manifest: Manifest, samples: Samples) -> list[RowFault]:
    faults: list[RowFault] = []
    for row in manifest.rows:
        for sample in row.request.samples:
            fault = samples.bad.get(str(sample.path))
            if fault is None:
                continue
            if fault.remedy == _PATH_REMEDY and row.line:
                # In a manifest, paths start elsewhere than in a program.
                remedy = f"check the path; a relative one starts at the folder of {shown(manifest.source.name)}"
                fault = replace(fault, remedy=remedy)
            faults.append(RowFault(row.line, row.where, _safe(fault)))
    return faults


async def learn(client: VoiceClient) -> Known:
    """
    Ask which accounts and languages there are; a remote that does not tell is no reason to refuse.

    Raises:
        AuthenticationError, SubscriptionError, ServerError: Nothing would work.
    """
    known = Known()
    try:
        known.accounts = await client.accounts()
        asked = next(iter(known.usable), None)
        known.languages = (await client.config(asked)).languages
    except (AuthenticationError, SubscriptionError, ServerError):
        raise
    except ApiError:
        pass
    known.generation = client.statistics().generation
    return known


def _language_faults(rows: Iterable[Row], known: Known) -> list[RowFault]:
    faults: dict[str, Fault] = {}
    if not known.languages:
        return []
    for tag in {row.request.language_tag for row in rows} - set(known.languages):
        if tag.strip():
            faults[tag] = Fault("language_tag", f"there is no language {shown(tag)!r}", _nearest(tag, known.languages))
    wrong = [row for row in rows if row.request.language_tag in faults]
    return [RowFault(row.line, row.where, faults[row.request.language_tag]) for row in wrong]


def _account_faults(rows: Iterable[Row], known: Known) -> list[RowFault]:
    there = [account.account for account in known.accounts]
    if not there:
        return []
    faults: list[RowFault] = []
    for row in rows:
        wanted = row.request.account
        if wanted is not None and wanted not in there:
            fault = Fault("account", f"there is no account {shown(wanted)!r}", _nearest(wanted, there))
            faults.append(RowFault(row.line, row.where, fault))
    return faults


def _nearest(wanted: str, there: Sequence[str]) -> str:
    by_folded = {name.casefold(): name for name in there}
    same = [wanted.casefold()] if wanted.casefold() in by_folded else []
    near = same or difflib.get_close_matches(wanted.casefold(), by_folded, n=3)
    if near:
        return f"did you mean {' or '.join(repr(shown(by_folded[name])) for name in near)}?"
    return f"there are {names(sorted(there), 8)}"
