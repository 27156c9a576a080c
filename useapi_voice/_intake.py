"""Checks requests before anything is sent or stored: every fault of every request, in one error."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import anyio

from . import _endpoints, _replies
from ._errors import (
    ApiError,
    AuthenticationError,
    Fault,
    SampleChanged,
    StoreError,
    SubscriptionError,
    request_invalid,
)
from ._jobs import Fingerprint
from ._models import CloneRequest
from ._roster import Roster
from ._samples import Inspected, SampleBook
from ._transport import Transport

logger = logging.getLogger("useapi_voice")

CONFIG_TIMEOUT_S: Final = 10.0
"""How long to wait for the list of languages, once; a remote that does not say is no reason to refuse."""


@dataclass(slots=True)
class Checked:
    """
    A request that passed.

    Attributes:
        pinned: Its account, `None` where any will do, or `""` where it has one that nobody could name.
        held: Copies of streams, and measures of `bytes`, that must live as long as the job.
        fingerprints: Of its samples, where the store is durable.
    """

    request: CloneRequest
    pinned: str | None
    held: tuple[Inspected, ...] = ()
    fingerprints: tuple[Fingerprint, ...] = ()


class Intake:
    """
    Checks requests.

    Args:
        transport: To ask for the languages.
        book: To inspect samples.
        roster: To name the account whose languages are asked for.
        run_owned: Runs a function in a task of the library's own, where a caller's cancellation cannot reach httpx.
        spool_directory: Where samples that exist nowhere else are copied to; `None` if they need not outlive the
            process.
        travels: Whether other hosts may need them: then all samples are copied, files too.
    """

    def __init__(
        self,
        transport: Transport,
        book: SampleBook,
        roster: Roster,
        run_owned: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]],
        spool_directory: str | None = None,
        *,
        travels: bool = False,
    ) -> None:
        self._transport = transport
        self._book = book
        self._roster = roster
        self._run_owned = run_owned
        self._spool_directory = spool_directory
        self._travels = travels
        self._languages: frozenset[str] | None = None
        self._lock = anyio.Lock()

    async def check(self, requests: Sequence[CloneRequest]) -> list[Checked]:
        """
        Check these requests.

        Raises:
            RequestInvalid: All faults of all of them; `SampleRejected` where all lie in samples.
            AuthenticationError: The remote was asked for its languages, and refused the token.
            SubscriptionError: Likewise, for want of a subscription.
            StoreError: A sample could not be copied to where the store keeps them.
        """
        await self._learn_languages(requests)
        places = [
            (sample, f"{_place(requests, index)}samples[{number}]")
            for index, request in enumerate(requests)
            for number, sample in enumerate(request.samples)
        ]
        inspected = await self._book.inspect_all(places)
        held = [found for found in inspected if isinstance(found, Inspected)]
        try:
            faults = self._faults(requests, inspected)
            if faults:
                raise request_invalid(faults)
            fingerprints = await self._fingerprints(requests, held)
        except BaseException:
            for found in held:
                self._book.release(found)
            raise
        of_each, prints = iter(held), iter(fingerprints)
        return [
            Checked(
                request,
                self._pin(request),
                self._keep(request, [next(of_each) for _ in request.samples]),
                tuple(itertools.islice(prints, len(request.samples))),
            )
            for request in requests
        ]

    async def _fingerprints(
        self, requests: Sequence[CloneRequest], inspected: Sequence[Inspected]
    ) -> list[Fingerprint]:
        """Hash the samples for a durable store, and copy what exists only in this process to where it keeps them."""
        if self._spool_directory is None:
            return []
        prints: list[Fingerprint] = []
        samples = (sample for request in requests for sample in request.samples)
        for sample, found in zip(samples, inspected, strict=True):
            try:
                sha256 = await found.digest()
                keeps_copy = sample.path is None or self._travels
                if keeps_copy:
                    await self._book.copy(found, os.path.join(self._spool_directory, sha256))  # noqa: PTH118
            except SampleChanged as error:
                raise request_invalid([Fault("samples[]", str(error), "submit it again")]) from None
            except OSError as error:
                raise StoreError(f"a sample cannot be kept in {self._spool_directory}: {error.strerror}") from None
            path = None if keeps_copy or sample.path is None else os.path.abspath(sample.path)  # noqa: ASYNC240, PTH100
            prints.append(Fingerprint(sample.name, sha256, found.size_bytes, path))
        return prints

    def _faults(self, requests: Sequence[CloneRequest], inspected: Sequence[Inspected | Fault]) -> list[Fault]:
        of_each = iter(inspected)
        faults: list[Fault] = []
        for index, request in enumerate(requests):
            place = _place(requests, index)
            found = [*request.faults(), *self._language_faults(request.language_tag)]
            faults += [replace(fault, field=place + fault.field) for fault in found] if place else found
            faults += [fault for _ in request.samples if isinstance(fault := next(of_each), Fault)]
        return faults

    def _keep(self, request: CloneRequest, inspected: Sequence[Inspected]) -> tuple[Inspected, ...]:
        """Let go of files, which can be inspected again at no cost; copies of streams must live as long as the job."""
        for sample, found in zip(request.samples, inspected, strict=True):
            if sample.path is not None:
                self._book.release(found)
        return tuple(found for sample, found in zip(request.samples, inspected, strict=True) if sample.path is None)

    def release(self, checked: Iterable[Checked]) -> None:
        """Let go of what these hold."""
        for item in checked:
            for inspected in item.held:
                self._book.release(inspected)

    def _pin(self, request: CloneRequest) -> str | None:
        account = request.pinned_account
        if account or not request.files:
            return account
        known = self._roster.known or ()
        return known[0].account if len(known) == 1 else ""

    # --- languages ---------------------------------------------------------------------------------------------------

    def _language_faults(self, language_tag: str) -> list[Fault]:
        if not self._languages or language_tag in self._languages or not language_tag.strip():
            return []
        near = _near(language_tag, self._languages)
        names = ", ".join(map(repr, near))
        remedy = f"did you mean {names}?" if near else f"it knows {', '.join(sorted(self._languages)[:12])} ..."
        return [Fault("language_tag", f"the remote knows no language {language_tag!r}", remedy)]

    async def _learn_languages(self, requests: Sequence[CloneRequest]) -> None:
        if self._languages is not None or not requests:
            return
        async with self._lock:
            if self._languages is None:
                account = next(filter(None, (request.pinned_account for request in requests)), None)
                await self._run_owned(lambda: self._ask_languages(account))

    async def _ask_languages(self, account: str | None) -> None:
        languages: frozenset[str] = frozenset()
        with anyio.move_on_after(CONFIG_TIMEOUT_S):
            try:
                if account is None:
                    usable = [known.account for known in await self._roster.all() if known.usable]
                    account = usable[0] if usable else None
                payload = await self._transport.ask(lambda generation: _endpoints.config(generation, account), tries=1)
                languages = frozenset(_replies.read_config(payload).languages)
            except (AuthenticationError, SubscriptionError):
                raise
            except ApiError as error:
                logger.debug("languages are not checked: %s", type(error).__name__)
        # Empty where the remote does not say: asked once, whatever came of it.
        self._languages = languages


def _near(wanted: str, languages: Collection[str]) -> list[str]:
    """Return what may be meant: the name in another case alone, else names that begin so (`en`), else similar ones."""
    from difflib import get_close_matches  # the rare case need not cost every start a millisecond

    by_folded = {name.casefold(): name for name in sorted(languages)}
    folded = wanted.strip().casefold()
    if folded in by_folded:
        return [by_folded[folded]]
    begun = [name for name in by_folded if name.startswith(folded.partition("-")[0])]
    near = begun[:3] or get_close_matches(folded, by_folded, n=3, cutoff=0.6)
    return [by_folded[name] for name in near]


def _place(requests: Sequence[CloneRequest], index: int) -> str:
    return f"requests[{index}]." if len(requests) > 1 else ""
