"""
The world behind the API: accounts, samples, voices, and clones in progress; no await, no clock, no dice but those
passed in.

Time is `t`, seconds since the sandbox started, passed in by whoever looks. A clone is a fact with a begin and an end:
nothing runs while it lasts, and `advance(t)` commits all whose end has come. That is why a clone goes on after its
client has left, with no task behind it.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal
from uuid import UUID

from . import _shapes as shapes

Generation = Literal["audio", "speech"]
IdForm = Literal["audio", "voice", "bare"]
Seconds = float | tuple[float, float] | Callable[[str], float]

FILE_ID = re.compile(r"user:(\d+)-minimax:([^:]+)-file:(\d+)")
VOICE_ID = re.compile(r"user:(\d+)-minimax:([^:]+)-(?:audio|voice):(\d+)")


@dataclass(frozen=True)
class VoiceRecord:
    """
    A cloned voice that exists on an account.

    `made_at` is in seconds since the sandbox started, `create_time` in epoch milliseconds of the server's clock, as the
    wire has it.
    """

    voice_id: str
    voice_name: str
    account: str
    language_tag: str
    files: tuple[str, ...]
    generation: Generation
    made_at: float
    create_time: int
    uniq_id: str

    def fields(self) -> dict[str, object]:
        """Give the voice as the wire has it [D C24, C25b]."""
        return shapes.voice(
            voice_id=self.voice_id,
            voice_name=self.voice_name,
            tag_list=[self.language_tag],
            file_id=self.files[0].rpartition(":")[2] if self.files else "",
            create_time=self.create_time,
            uniq_id=self.uniq_id,
            group_id=self.account,
            cover=self.uniq_id,
            sample=self.voice_id.rpartition(":")[2],
        )

    @cached_property
    def text(self) -> str:
        """The same as JSON, encoded once, since a list of voices is asked for again and again."""
        return shapes.dumps(self.fields())


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """
    One stored sample; equal contents are stored twice, under two ids, and `sha256` shows it.

    `at` is in seconds since the sandbox started; `duration_s` is None where the content was not inspected.
    """

    file_id: str
    account: str
    sha256: str
    size_bytes: int
    content_type: str
    duration_s: float | None
    at: float


@dataclass(frozen=True, slots=True)
class CloneRecord:
    """
    One clone that was begun at the server; a request that was refused at once is none.

    `begun_at`, `ends_at` and `ended_at` are in seconds since the sandbox started; `ended_at` is None while it runs.
    `reply` is what the client was
    given: "pending" so far, a status such as "200", "drop", "reset", "hang", "truncate", "drip", or "left" when it had
    gone before the answer.
    """

    account: str
    voice_name: str
    language_tag: str
    files: tuple[str, ...]
    need_noise_reduction: bool
    generation: Generation
    begun_at: float
    ends_at: float
    ended_at: float | None
    made: bool
    voice_id: str | None
    reply: str


@dataclass(frozen=True, slots=True)
class Breach:
    """
    A clone request that arrived while its account had as many in progress as the cap allows.

    `at` is in seconds since the sandbox started; `in_progress` does not count the request itself; `accepted` tells
    whether it was begun.
    """

    account: str
    voice_name: str
    at: float
    in_progress: int
    accepted: bool


@dataclass(frozen=True, slots=True)
class SandboxStatistics:
    """A frozen summary of what the server has seen; times in seconds since the sandbox started."""

    now_s: float
    requests: Mapping[str, int]
    uploads: int
    clones_begun: int
    clones_in_progress: int
    clones_made: int
    voices: int
    breaches: int
    max_parallel_seen: Mapping[str, int]
    busy_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CloneOrder:
    """What a valid clone request asks for."""

    account: str
    voice_name: str
    language_tag: str
    files: tuple[str, ...]
    need_noise_reduction: bool
    generation: Generation


@dataclass(slots=True, eq=False)
class Clone:
    """A clone as the world keeps it; `CloneRecord` is its public, frozen picture."""

    order: CloneOrder
    begun_t: float
    end_t: float
    will_make: bool
    ended: bool = False
    slots_full: bool = False
    voice: VoiceRecord | None = None
    reply: str = "pending"

    def record(self) -> CloneRecord:
        order = self.order
        return CloneRecord(
            order.account,
            order.voice_name,
            order.language_tag,
            order.files,
            order.need_noise_reduction,
            order.generation,
            self.begun_t,
            self.end_t,
            self.end_t if self.ended else None,
            self.voice is not None,
            None if self.voice is None else self.voice.voice_id,
            self.reply,
        )


@dataclass(slots=True, eq=False)
class Account:
    """One upstream account: its samples, voices (oldest first), and the clones in progress."""

    name: str
    audio: bool
    max_parallel: int
    error: str | None = None
    voices: dict[str, VoiceRecord] = field(default_factory=dict[str, VoiceRecord])
    names: Counter[str] = field(default_factory=Counter[str])
    running: set[Clone] = field(default_factory=set[Clone])
    max_parallel_seen: int = 0
    ended_busy_s: float = 0.0

    def busy_s(self, t: float) -> float:
        return self.ended_busy_s + sum(t - clone.begun_t for clone in self.running)


def draw_s(seconds: Seconds, name: str, dice: random.Random) -> float:
    """Turn a number, a (low, high) range, or a callable of a name into seconds."""
    if callable(seconds):
        return seconds(name)
    if isinstance(seconds, tuple):
        return dice.uniform(*seconds)
    return seconds


class World:
    """
    All state, and the only code that changes it.

    The cost of a look is that of the clones that have just ended, whatever the number of voices, samples or requests so
    far.
    """

    def __init__(
        self,
        *,
        accounts: Sequence[str],
        without_audio: Iterable[str],
        user_id: str,
        dice: random.Random,
        clone_s: Seconds,
        max_parallel: int,
        slots: int | None,
        id_form: IdForm | None,
        epoch_ms: float,
    ) -> None:
        lacking = frozenset(without_audio)
        self.accounts: dict[str, Account] = {
            name: Account(name, name not in lacking, max_parallel) for name in accounts
        }
        self.user_id = user_id
        self.dice = dice
        self.slots = slots
        self.epoch_ms = epoch_ms
        self.t: float = 0.0
        self.samples: dict[str, UploadRecord] = {}
        self.clones: list[Clone] = []
        self.breaches: list[Breach] = []
        self.made_total: int = 0
        self._clone_s = clone_s
        self._id_form = id_form
        # Numbers as long as those in the contract's examples; even steps keep them apart from each other.
        self._next_file = 391001112223334
        self._next_voice = 391550001112223
        self._by_end: list[tuple[float, int, Clone]] = []

    def advance(self, t: float) -> float:
        """
        Commit every clone whose end has come, and give the world's time.

        Time never goes back: a loop may wake a sleeper a hair too early, and whoever has seen a clone's end must go on
        seeing it.
        """
        self.t = max(self.t, t)
        while self._by_end and self._by_end[0][0] <= self.t:
            self._end(heapq.heappop(self._by_end)[2])
        return self.t

    def begin_clone(self, order: CloneOrder, *, will_make: bool = True) -> Clone:
        """Begin a clone now; it holds a place of its account until its end, whatever becomes of the client."""
        account = self.accounts[order.account]
        end_t = self.t + max(0.0, draw_s(self._clone_s, order.voice_name, self.dice))
        clone = Clone(order, self.t, end_t, will_make)
        self.clones.append(clone)
        heapq.heappush(self._by_end, (end_t, len(self.clones), clone))
        account.running.add(clone)
        account.names[order.voice_name] += 1
        account.max_parallel_seen = max(account.max_parallel_seen, len(account.running))
        return clone

    def _end(self, clone: Clone) -> None:
        account = self.accounts[clone.order.account]
        account.running.discard(clone)
        account.ended_busy_s += clone.end_t - clone.begun_t
        clone.ended = True
        # The refusal comes only here, after the work is done [D Q26].
        clone.slots_full = clone.will_make and self.slots is not None and len(account.voices) >= self.slots
        if clone.will_make and not clone.slots_full:
            order = clone.order
            clone.voice = self._make(
                order.account, order.voice_name, order.language_tag, order.files, order.generation, clone.end_t
            )
            self.made_total += 1
        else:
            self._forget_name(account, clone.order.voice_name)

    def add_voice(
        self, account: str, voice_name: str, language_tag: str, files: tuple[str, ...], generation: Generation
    ) -> VoiceRecord:
        """Put a voice on an account as if it had been there before."""
        self.accounts[account].names[voice_name] += 1
        return self._make(account, voice_name, language_tag, files, generation, self.t)

    def _make(
        self, account: str, voice_name: str, language_tag: str, files: tuple[str, ...], generation: Generation, t: float
    ) -> VoiceRecord:
        self._next_voice += 2
        form = self._id_form or ("audio" if generation == "audio" else "voice")
        number = str(self._next_voice)
        voice = VoiceRecord(
            voice_id=number if form == "bare" else f"user:{self.user_id}-minimax:{account}-{form}:{number}",
            voice_name=voice_name,
            account=account,
            language_tag=language_tag,
            files=files,
            generation=generation,
            made_at=t,
            create_time=round(self.epoch_ms + t * 1000),
            uniq_id=f"moss_audio_{UUID(int=self.dice.getrandbits(128), version=4)}",
        )
        self.accounts[account].voices[voice.voice_id] = voice
        return voice

    def delete_voice(self, account: str, voice_id: str) -> bool:
        """Delete a voice if it is there, and say whether it was."""
        voice = self.accounts[account].voices.pop(voice_id, None)
        if voice is None:
            return False
        self._forget_name(self.accounts[account], voice.voice_name)
        return True

    @staticmethod
    def _forget_name(account: Account, voice_name: str) -> None:
        account.names[voice_name] -= 1
        if not account.names[voice_name]:
            del account.names[voice_name]

    def add_sample(
        self, account: str, *, sha256: str, size_bytes: int, content_type: str, duration_s: float | None
    ) -> UploadRecord:
        """Store a sample under an id of its own."""
        self._next_file += 2
        file_id = f"user:{self.user_id}-minimax:{account}-file:{self._next_file}"
        sample = UploadRecord(file_id, account, sha256, size_bytes, content_type, duration_s, self.t)
        self.samples[file_id] = sample
        return sample

    def breach(self, account: Account, voice_name: str, *, accepted: bool) -> None:
        self.breaches.append(Breach(account.name, voice_name, self.t, len(account.running), accepted))

    def listed(self, account: str, lag_s: float) -> Iterator[VoiceRecord]:
        """Give the voices that the list shows, oldest first: those made at least `lag_s` seconds ago."""
        return (voice for voice in self.accounts[account].voices.values() if voice.made_at + lag_s <= self.t)

    def statistics(self, requests: Mapping[str, int]) -> SandboxStatistics:
        accounts = self.accounts.values()
        return SandboxStatistics(
            now_s=self.t,
            requests=MappingProxyType(dict(requests)),
            uploads=len(self.samples),
            clones_begun=len(self.clones),
            clones_in_progress=sum(len(account.running) for account in accounts),
            clones_made=self.made_total,
            voices=sum(len(account.voices) for account in accounts),
            breaches=len(self.breaches),
            max_parallel_seen=MappingProxyType({account.name: account.max_parallel_seen for account in accounts}),
            busy_s=MappingProxyType({account.name: account.busy_s(self.t) for account in accounts}),
        )
