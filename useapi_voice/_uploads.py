"""Samples to the remote: each content goes up once per account, however many jobs need it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from . import _endpoints, _replies
from ._errors import Fault, SampleChanged, StoreError, request_invalid
from ._jobs import Fingerprint
from ._models import Sample, UploadedSample
from ._samples import Inspected, SampleBook
from ._transport import Body, Transport
from .stores import JobStore

logger = logging.getLogger("useapi_voice")


@dataclass(slots=True)
class _Flight:
    """One upload: under way until `landed`, then with its result."""

    landed: anyio.Event = field(default_factory=anyio.Event)
    uploaded: UploadedSample | None = None


class Uploads:
    """
    Uploads samples, and remembers what is where.

    Args:
        transport: To upload with.
        book: To read samples with.
        store: Remembers what is where from one life of the process to the next.
    """

    def __init__(self, transport: Transport, book: SampleBook, store: JobStore) -> None:
        self._transport = transport
        self._book = book
        self._store = store
        self._flights: dict[tuple[str, str], _Flight] = {}
        self.count = 0
        """Uploads that were made."""

    async def ensure(
        self, samples: Sequence[Sample], account: str, fingerprints: Sequence[Fingerprint] = ()
    ) -> tuple[str, ...]:
        """
        Return the fileIDs of these samples on this account, in order, uploading what is not there yet.

        Args:
            samples: Where they are.
            account: Where to.
            fingerprints: What they were when they were accepted, where that is known: then other content is refused,
                and a sample that was uploaded before need not be there any more.

        Raises:
            RequestInvalid: A sample cannot be read any more; nothing of it was sent.
            SampleChanged: It is not what was accepted.
            ApiError: The remote would not take it.
        """
        file_ids = []
        for index, sample in enumerate(samples):
            known = fingerprints[index] if fingerprints else None
            file_id = None if known is None else await self._remembered(account, known.sha256)
            if file_id is None:
                expected = None if known is None else known.sha256
                file_id = (await self.upload(sample, account, f"samples[{index}]", expected)).file_id
            file_ids.append(file_id)
        return tuple(file_ids)

    async def _remembered(self, account: str, sha256: str) -> str | None:
        flight = self._flights.get((account, sha256))
        if flight is not None and flight.uploaded is not None:
            return flight.uploaded.file_id
        return await self._ask_store(account, sha256)

    async def _ask_store(self, account: str, sha256: str) -> str | None:
        try:
            return await self._store.file_id(account, sha256)
        except StoreError as error:
            # At the worst it goes up once more; a store that fails is no reason for a job to.
            logger.warning("whether a sample is on account %s already cannot be looked up: %s", account, error)
            return None

    async def upload(
        self, sample: Sample, account: str, field_name: str, expected_sha256: str | None = None
    ) -> UploadedSample:
        """Return one sample as it is on this account, uploading it if it is not. Raises as `ensure` does."""
        inspected = await self._book.inspect(sample, field_name)
        if isinstance(inspected, Fault):
            raise request_invalid([inspected])
        try:
            sha256 = await inspected.digest()
            if expected_sha256 not in {None, sha256}:
                raise SampleChanged(f"{sample.name} has other content than when it was submitted")
            return await self._upload_once(inspected, account, sha256)
        finally:
            self._book.release(inspected)

    async def _upload_once(self, inspected: Inspected, account: str, sha256: str) -> UploadedSample:
        key = (account, sha256)
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.uploaded is not None:
                return flight.uploaded
        flight = self._flights[key] = _Flight()
        try:
            file_id = await self._ask_store(account, sha256)
            if file_id is None:
                flight.uploaded = uploaded = await self._send(inspected, account)
                self._store.uploaded(account, sha256, uploaded.file_id)
            else:
                known = {"fileID": file_id, "account": account or None}
                flight.uploaded = uploaded = UploadedSample.model_validate(known)
            return uploaded
        finally:
            # One that failed is forgotten, so that the next to ask tries again.
            if flight.uploaded is None:
                del self._flights[key]
                self._store.upload_failed(account, sha256)
            flight.landed.set()

    def forget(self, file_ids: Sequence[str], account: str) -> None:
        """The remote no longer knows these: upload them again when next needed."""
        gone = [
            key
            for key, flight in self._flights.items()
            if key[0] == account and flight.uploaded is not None and flight.uploaded.file_id in file_ids
        ]
        for key in gone:
            del self._flights[key]
        self._store.forget_uploads(account, file_ids)

    async def _send(self, inspected: Inspected, account: str) -> UploadedSample:
        payload = await self._transport.ask(
            lambda generation: _endpoints.upload_sample(generation, account or None, inspected.content_type),
            body=Body(inspected.chunks, inspected.size_bytes),
            # 429 shuts the whole lane's gate, which is not for this room to do.
            waits_out_pace=False,
        )
        self.count += 1
        return _replies.read_upload(payload).model_copy(update={"account": account or None})
