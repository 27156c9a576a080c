"""
What the remote can be asked about clones whose answers were lost: it lists voices, and knows whose they are.

It keeps, by account, the voices that were there before this client's first clone (the baseline) and those that belong
to jobs (claimed). The decisions are made in `_recovery`; this drives them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, assert_never

import anyio

from . import _endpoints, _recovery, _replies
from ._errors import ApiError, UnexpectedReply
from ._models import VoiceInfo, VoicePage
from ._recovery import Absent, Evidence, Found, Listing, ListingFailed, Looking, Unclear, Waiting, voice_key
from ._schedule import ANY_ACCOUNT
from ._transport import Transport
from .stores import JobStore, Ledger

MOST_PAGES: Final = 1_000
BASELINE_TIMEOUT_S: Final = 15.0


@dataclass(slots=True)
class _Ledger:
    """What is known of one account's voices."""

    claimed: set[str] = field(default_factory=set)
    has_baseline: bool = False
    is_asked: bool = False
    answered: anyio.Event = field(default_factory=anyio.Event)


class Witness:
    """
    Finds out what became of a clone.

    Args:
        transport: For listing voices.
        store: Keeps baselines from one life of the process to the next.
    """

    def __init__(self, transport: Transport, store: JobStore) -> None:
        self._transport = transport
        self._store = store
        self._ledgers: dict[str, _Ledger] = {}
        self._nameless: set[str] = set()
        """Voices of jobs whose account nobody could name."""

    def claim(self, account: str, voice: VoiceInfo) -> None:
        """Note that this voice belongs to a job."""
        key = voice_key(voice.voice_id)
        # As in the schedule: an account without a name may be any of the others, so their jobs' voices are one lot.
        if account == ANY_ACCOUNT:
            self._nameless.add(key)
        for name in list(self._ledgers) if account == ANY_ACCOUNT else (account, ANY_ACCOUNT):
            self._ledger(name).claimed.add(key)

    def resume(self, account: str, baseline: Collection[str] | None) -> None:
        """
        Take over an account that has jobs in doubt from an earlier life.

        Its baseline is the one of that life, or none: a list made now may hold their voices.
        """
        ledger = self._ledger(account)
        ledger.is_asked = True
        ledger.has_baseline = baseline is not None
        ledger.claimed |= set(baseline or ())
        ledger.answered.set()

    def replace(self, account: str, known: Ledger) -> None:
        """
        Know of this account what its fleet has on record, and nothing else.

        A list that this process made may hold the voice of an attempt that another replica left in doubt.
        """
        ledger = self._ledger(account)
        ledger.is_asked = True
        ledger.claimed, ledger.has_baseline = set(known.taken), known.has_baseline
        ledger.answered.set()

    async def take_baseline(self, account: str) -> None:
        """
        Note which voices the account has, once, before its first clone is sent. Waits if another task is at it.

        An account that cannot be listed has no baseline; then only a voice's `create_time` can prove that it is new.
        """
        ledger = self._ledger(account)
        if not ledger.is_asked:
            ledger.is_asked = True
            try:
                with anyio.move_on_after(BASELINE_TIMEOUT_S):
                    voices = await self._list(account)
                    if ledger.answered.is_set():
                        return  # replaced meanwhile
                    ledger.claimed |= {voice_key(voice.voice_id) for voice in voices}
                    ledger.has_baseline = True
                    self._store.keep_baseline(account, ledger.claimed)
            except ApiError:
                pass
            finally:
                ledger.answered.set()
        if not ledger.answered.is_set():
            await ledger.answered.wait()

    def evidence(
        self,
        account: str,
        voice_name: str,
        sent_t: float,
        sent_at: datetime,
        settle_after_s: float,
        earlier_s: float = 0.0,
    ) -> Evidence:
        """Put together what is known of an attempt; a voice may be from an attempt of the job `earlier_s` before it."""
        epoch_s = self._transport.server_epoch_s
        blind = epoch_s is None
        return Evidence(
            voice_name=voice_name,
            sent_t=sent_t,
            sent_at_ms=((sent_at.timestamp() if epoch_s is None else epoch_s + sent_t) - earlier_s) * 1000,
            clock_tolerance_s=_recovery.BLIND_CLOCK_TOLERANCE_S if blind else _recovery.CLOCK_TOLERANCE_S,
            has_baseline=self._ledger(account).has_baseline,
            settle_after_s=settle_after_s,
        )

    async def find(self, account: str, evidence: Evidence) -> AsyncGenerator[Looking | Found | Absent | Unclear, None]:
        """
        Look for an attempt's voice until it is found, proven absent, or cannot be told.

        Yields:
            `Looking` before each look, and the conclusion as the last item.
        """
        state: _recovery.State = _recovery.begin(evidence, anyio.current_time())
        while True:
            match state:
                case Waiting():
                    await anyio.sleep_until(state.until_t)
                    state = state.next()
                case Looking():
                    yield state
                    seen = await self._look(account)
                    # Read at each look: `replace` puts another set in its place.
                    state = state.next(seen, self._ledger(account).claimed, anyio.current_time())
                case Found() | Absent() | Unclear():
                    yield state
                    return
                case _:  # pragma: no cover - a state that nobody wrote is a type error
                    assert_never(state)

    async def _look(self, account: str) -> Listing | ListingFailed:
        asked_t = anyio.current_time()
        try:
            without_id: list[str] = []
            return Listing(await self._list(account, without_id), asked_t, without_id)
        except ApiError as error:
            refuses = not error.safe_to_retry and not isinstance(error, UnexpectedReply)
            return ListingFailed(str(error), is_final=refuses)

    async def _list(self, account: str, without_id: list[str] | None = None) -> list[VoiceInfo]:
        # The drivers above have a rhythm of their own, so the transport need not repeat.
        voices = list_voices(self._transport, account or None, cloned=True, tries=1, without_id=without_id)
        return [voice async for voice in voices]

    def _ledger(self, account: str) -> _Ledger:
        ledger = self._ledgers.get(account)
        if ledger is None:
            ledger = self._ledgers[account] = _Ledger(set(self._nameless))
        return ledger


async def list_voices(
    transport: Transport,
    account: str | None,
    *,
    cloned: bool,
    tag_list: Iterable[str] = (),
    tries: int = 4,
    without_id: list[str] | None = None,
) -> AsyncIterator[VoiceInfo]:
    """
    Yield an account's voices, all pages of them.

    Whether pages count from 0 or from 1 is undocumented, so a page that repeats the last one is no end; two that bring
    nothing new are. Cloned voices are told from built-in ones by `is_system=false` alone. The names of rows that have
    no id are added to `without_id`.

    Raises:
        ApiError: The list, or the rest of it, could not be had. What was yielded before is then incomplete.
    """
    known: set[str] = set()
    barren = 0
    for page_number in range(MOST_PAGES):
        page = await _page(
            transport, account, cloned=cloned, tag_list=tuple(tag_list), page=page_number or None, tries=tries
        )
        if without_id is not None:
            without_id += page.names_without_id
        fresh = [voice for voice in page.voice_list if voice.voice_id not in known]
        for voice in fresh:
            known.add(voice.voice_id)
            yield voice.on(account)
        barren = 0 if fresh else barren + 1
        if not page.has_more:
            return
        if barren == 2:
            break
    raise UnexpectedReply("the voice list says has_more, but there is no more", account=account, safe_to_retry=True)


async def _page(
    transport: Transport, account: str | None, *, cloned: bool, tag_list: tuple[str, ...], page: int | None, tries: int
) -> VoicePage:
    payload = await transport.ask(
        lambda generation: _endpoints.voices(generation, account, cloned=cloned, tag_list=tag_list, page=page),
        tries=tries,
    )
    return _replies.read_voice_page(payload)
