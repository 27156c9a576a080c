"""
What to do about a clone whose answer was lost: look for its voice, adopt it, or prove that there is none. Pure.

There is no job id and no idempotency key, so the only witness is the account's list of cloned voices. A voice that was
not there before, bears the job's name, is claimed by no other job and is not older than the attempt can only be this
job's, because a lane never has two clones of one name in progress. The list may lag and a clone may take up to a
minute, so absence is proven only by complete lists that still lack the voice: two of them, a pause apart, both no
earlier than `settle_after_s` after the request left. What cannot be proven is said to be unknown.

    Waiting ──▶ Looking ──▶ Waiting ...
                   ├──▶ Found
                   ├──▶ Absent
                   └──▶ Unclear
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ._models import VoiceInfo, name_key

LOOKS_AT: Final = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
"""When to look, in parts of `settle_after_s` since the request left: with 75 s at 7.5, 15, 22.5 ... 75 s."""
PAUSE_PART: Final = 1 / 15
"""The pause between two looks after that, in parts of `settle_after_s`: 5 s."""
LOOKS_TO_PROVE: Final = 2
"""Complete lists without the voice, asked for after `settle_after_s`, before it counts as absent: one may be stale."""
FAILURES_TO_GIVE_UP: Final = 4
"""Lists in a row that could not be had, after `settle_after_s`, before the outcome stays unknown."""
CLOCK_TOLERANCE_S: Final = 3.0
"""The server's `Date` has whole seconds, and our measure of its clock includes the network's delay."""
BLIND_CLOCK_TOLERANCE_S: Final = 60.0
"""The same where the server never sent a `Date`."""

SURELY_OLDER_S: Final = 24 * 3600.0
"""How much older a namesake must be to be another's, where the voices before are not known: clocks differ by zones."""
EARLIEST_MS: Final = 1e12
"""September 2001: a `create_time` before that is none."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """
    What is known of an attempt.

    Attributes:
        voice_name: The name that was sent.
        sent_t: Loop time at which the request left.
        sent_at_ms: The same in epoch milliseconds, by the server's clock as far as it is known.
        clock_tolerance_s: How far that may be off.
        has_baseline: Whether the voices that were there before are known.
        settle_after_s: After how many seconds the remote is surely done with it.
        looks: Complete lists so far that lacked the voice.
        proofs: Those among them that were asked for when the remote was surely done.
        failures: Lists in a row that could not be had, since the remote was surely done.
    """

    voice_name: str
    sent_t: float
    sent_at_ms: float
    clock_tolerance_s: float
    has_baseline: bool
    settle_after_s: float
    looks: int = 0
    proofs: int = 0
    failures: int = 0

    @property
    def settles_t(self) -> float:
        """Loop time from which the remote is surely done."""
        return self.sent_t + self.settle_after_s


@dataclass(frozen=True, slots=True)
class Listing:
    """
    The account's cloned voices.

    Attributes:
        voices: All of them.
        asked_t: Loop time at which the list was asked for.
        names_without_id: Of rows that have no id: of voices in the making, perhaps.
    """

    voices: Sequence[VoiceInfo]
    asked_t: float
    names_without_id: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ListingFailed:
    """
    The list could not be had.

    Attributes:
        reason: Why, in the remote's words.
        is_final: Whether asking again is pointless: the remote refuses, rather than fails, to answer.
    """

    reason: str
    is_final: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """Wait until `until_t` (loop time), then look."""

    evidence: Evidence
    until_t: float

    def next(self) -> Looking:
        """The time has come."""
        return Looking(self.evidence)


@dataclass(frozen=True, slots=True)
class Looking:
    """List the account's cloned voices."""

    evidence: Evidence

    def next(self, seen: Listing | ListingFailed, claimed: Collection[str], now_t: float) -> State:
        """
        Judge what was seen.

        Args:
            seen: The list, or why there is none.
            claimed: `voice_key`s of voices that were there before, or belong to other jobs.
            now_t: Loop time.
        """
        if isinstance(seen, ListingFailed):
            return self._after_failure(seen, now_t)
        found = candidates(seen.voices, self.evidence, claimed)
        if found and _is_proven_new(found[0], self.evidence):
            return Found(found[0], tuple(found[1:]))
        if found:
            doubt = f"a voice named {self.evidence.voice_name!r} has no create_time, and may have been there before"
            return self._after_failure(ListingFailed(doubt, is_final=False), now_t)
        alike = _named_alike(seen.voices, self.evidence, claimed)
        if any(self.evidence.has_baseline or not _is_older(voice, self.evidence, SURELY_OLDER_S) for voice in alike):
            # It is nobody's and may be new, but its create_time is too early: the remote's clocks disagree, or it is
            # late, or a stranger's. Not surely ours, so not adopted; not surely another's, so no proof either.
            doubt = f"a voice named {self.evidence.voice_name!r} may be new, but seems older than this request"
            return self._after_failure(ListingFailed(doubt, is_final=False), now_t)
        if name_key(self.evidence.voice_name) in map(name_key, seen.names_without_id):
            doubt = f"a voice named {self.evidence.voice_name!r} is listed, but has no voice_id"
            return self._after_failure(ListingFailed(doubt, is_final=False), now_t)
        proofs = self.evidence.proofs + (seen.asked_t >= self.evidence.settles_t)
        evidence = replace(self.evidence, looks=self.evidence.looks + 1, proofs=proofs, failures=0)
        if evidence.proofs >= LOOKS_TO_PROVE:
            return Absent(evidence)
        return Waiting(evidence, _next_look_t(evidence, now_t))

    def _after_failure(self, seen: ListingFailed, now_t: float) -> State:
        failures = self.evidence.failures + (now_t >= self.evidence.settles_t)
        evidence = replace(self.evidence, failures=failures)
        if seen.is_final or evidence.failures >= FAILURES_TO_GIVE_UP:
            return Unclear(evidence, seen.reason)
        return Waiting(evidence, _next_look_t(evidence, now_t))


@dataclass(frozen=True, slots=True)
class Found:
    """The job's voice, and others that fit as well: those are reported, never deleted unasked."""

    voice: VoiceInfo
    others: tuple[VoiceInfo, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no such voice: the attempt made nothing."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Unclear:
    """The remote could not be asked."""

    evidence: Evidence
    reason: str


State = Waiting | Looking | Found | Absent | Unclear


def begin(evidence: Evidence, now_t: float) -> Waiting:
    """Start to look: soon, as the voice may be there already, but not before the remote can have made one."""
    pause_s = evidence.settle_after_s * PAUSE_PART
    earliest_t = evidence.sent_t + LOOKS_AT[0] * evidence.settle_after_s
    return Waiting(evidence, max(earliest_t, now_t + pause_s / 5))


def _next_look_t(evidence: Evidence, now_t: float) -> float:
    pause_s = evidence.settle_after_s * PAUSE_PART
    moments = (evidence.sent_t + part * evidence.settle_after_s for part in LOOKS_AT)
    return next((moment for moment in moments if moment > now_t + pause_s / 5), now_t + pause_s)


def voice_key(voice_id: str) -> str:
    """
    Return what two spellings of one voice's id share: what follows the last colon.

    Whether the list spells an id as the clone's answer did (`-audio:`, `-voice:`, bare) is undocumented.
    """
    return voice_id.rsplit(":", 1)[-1]


def candidates(voices: Sequence[VoiceInfo], evidence: Evidence, claimed: Collection[str]) -> list[VoiceInfo]:
    """Return the voices that can only be this attempt's, newest first."""
    alike = _named_alike(voices, evidence, claimed)
    # By key: a list that names one voice twice must not make a surplus of it.
    fitting = {voice_key(voice.voice_id): voice for voice in alike if not _is_older(voice, evidence)}
    return sorted(fitting.values(), key=lambda voice: voice.create_time or 0.0, reverse=True)


def _named_alike(voices: Sequence[VoiceInfo], evidence: Evidence, claimed: Collection[str]) -> list[VoiceInfo]:
    name = name_key(evidence.voice_name)
    return [
        voice
        for voice in voices
        if name_key(voice.voice_name or "") == name and voice_key(voice.voice_id) not in claimed
    ]


def _is_older(voice: VoiceInfo, evidence: Evidence, by_s: float = 0.0) -> bool:
    if not _tells_age(voice):
        return False
    return (voice.create_time or 0.0) < evidence.sent_at_ms - (evidence.clock_tolerance_s + by_s) * 1000


def _is_proven_new(voice: VoiceInfo, evidence: Evidence) -> bool:
    return evidence.has_baseline or _tells_age(voice)


def _tells_age(voice: VoiceInfo) -> bool:
    # The remote writes 0 for a time that is not set; and what would be a date before the remote was is none either, say
    # seconds where milliseconds are documented.
    return voice.create_time is not None and voice.create_time >= EARLIEST_MS
