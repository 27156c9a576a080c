"""The store that keeps nothing beyond the process: jobs live in the queue, and are gone with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from .._jobs import Job, JobState, Outcome
from .._replies import Refused
from . import Recovered


class MemoryStore:
    """A full member of the family that has nothing to do: the queue itself knows all that is asked."""

    is_durable: bool = False
    spool_directory: str | None = None
    is_shared: bool = False

    async def open(self) -> Recovered:
        """There was no earlier life."""
        return Recovered()

    async def add(self, jobs: Sequence[Job]) -> None:
        """The queue has them."""

    async def sent(self, job: Job) -> None:
        """The queue knows."""

    def changed(self, job: Job) -> None:
        """The queue knows."""

    def settled(self, job: Job, outcome: Outcome, announce: Callable[[], None]) -> None:
        """Nothing to wait for."""
        announce()

    async def find(self, key: str) -> Job | None:
        """The queue would have found it."""
        return None

    def find_nowait(self, key: str) -> Job | None:
        """The queue would have found it."""
        return None

    async def jobs(self, state: JobState | None) -> AsyncGenerator[Job, None]:
        """None but those that the queue has."""
        return
        yield  # pragma: no cover - makes this a generator

    async def forget(self, job_id: str) -> bool:
        """It is forgotten already."""
        return False

    async def export(self) -> AsyncGenerator[dict[str, Any], None]:
        """Nothing was kept."""
        return
        yield  # pragma: no cover - makes this a generator

    async def file_id(self, account: str, sha256: str) -> str | None:
        """The client's own memory was asked before."""
        return None

    def uploaded(self, account: str, sha256: str, file_id: str) -> None:
        """The client remembers."""

    def forget_uploads(self, account: str, file_ids: Collection[str]) -> None:
        """The client has forgotten."""

    def keep_baseline(self, account: str, voice_keys: Collection[str]) -> None:
        """The client remembers."""

    def pause(self, account: str, until: datetime) -> None:
        """The lane's gate remembers."""

    def limited(self, account: str, limit: int) -> None:
        """The lane remembers."""

    def closed(self, account: str, refused: Refused, look_again_s: float) -> None:
        """The lane remembers."""

    def opened(self, account: str) -> None:
        """The lane knows."""

    def upload_failed(self, account: str, sha256: str) -> None:
        """Nobody else wants to upload it."""

    async def aclose(self) -> None:
        """Nothing to let go of."""
