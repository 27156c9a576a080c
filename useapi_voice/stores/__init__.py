"""
What keeps jobs: the contract between the library's state machine and a store. The docstrings are the law.

The queue owns the state machine; a store only keeps what it is told. Three calls are promises: when `add` returns, the
jobs are accepted; when `sent` returns, the intent to send is on record, so that whoever comes back after a crash looks
for a voice before sending again; and `settled` announces an ending only when it is on record. All else may be lost in a
crash, because it can be found out again. What a store was told earlier, it keeps no later than what it is told now.

A job found as `queued` was not sent, or is proven to have made nothing. One found as `sent` or `in_doubt` may have made
a voice: it occupies its place, and is looked for. A store keeps wall-clock times (aware, UTC), because a loop's clock
ends with its process; it keeps no token, and nothing that only this process could read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from .._jobs import Job, JobState, Outcome


@dataclass(frozen=True, slots=True)
class Recovered:
    """
    What an earlier life left behind.

    Attributes:
        jobs: All that had not ended, in the order of their `seq`.
        last_seq: The highest `seq` ever given.
        pauses: Accounts that asked for patience, with the time until which.
        baselines: For accounts that have jobs in progress or in doubt: keys of the voices that cannot be theirs,
            because they were there before (`keep_baseline`) or belong to jobs that have ended. An account whose
            baseline was never kept is left out.
    """

    jobs: Sequence[Job] = ()
    last_seq: int = 0
    pauses: Mapping[str, datetime] = field(default_factory=dict)
    baselines: Mapping[str, frozenset[str]] = field(default_factory=dict)


class JobStore(Protocol):
    """Keeps jobs. All methods are called from the client's event loop, and no other."""

    is_durable: bool
    """Whether jobs outlive the process. If so, those that have not ended when the client closes are left to it."""
    spool_directory: str | None
    """Where copies of samples that exist nowhere else are kept, each named by its hash; `None` if they need not be."""

    async def open(self) -> Recovered:
        """
        Take hold of the store, alone.

        Raises:
            StoreError: It is another's, damaged, written by a newer version, or cannot be written; the message says
                what to do. Nothing was changed.
        """
        ...

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def add(self, jobs: Sequence[Job]) -> None:
        """
        Keep these queued jobs, all or none; they are accepted when this returns. No two may have one key.

        Raises:
            StoreError: None of them was kept.

        Cancelled before it returns, it takes back what it kept (which a crash just then may prevent).
        """

    async def sent(self, job: Job) -> None:
        """
        Keep that this job's request is about to leave for `job.account`. The request leaves after this returns.

        Raises:
            StoreError: It is not on record, so the request must not leave.

        Cancelled before it returns, it may be on record.
        """

    def changed(self, job: Job) -> None:
        """Note the job's present state. May be lost in a crash: a job found as sent is looked for, never sent again."""

    def settled(self, job: Job, outcome: Outcome, announce: Callable[[], None]) -> None:
        """
        Keep how the job ended, then call `announce` on the event loop, once.

        Where it cannot be kept, `announce` is called all the same, as the ending is true; the store tries again with
        what it is told next.
        """

    async def find(self, key: str) -> Job | None:
        """Return the job of this key, ended or not. Raises `StoreError` where the store cannot be read."""

    def find_nowait(self, key: str) -> Job | None:
        """Return the job of this key, without waiting for anything but the look-up itself."""

    def jobs(self, state: JobState | None) -> AsyncGenerator[Job, None]:
        """Yield all jobs, or those in this state, in the order of their `seq`. Raises as `find` does."""
        ...

    async def forget(self, job_id: str) -> bool:
        """Forget a job that has ended; return whether there was one. Raises `StoreError` where it cannot."""
        ...

    def export(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield all jobs with their histories, as plain data. Raises as `find` does."""
        ...

    # --- what else outlives a process --------------------------------------------------------------------------------

    async def file_id(self, account: str, sha256: str) -> str | None:
        """Return the fileID of this content on this account, if it is known to be there."""

    def uploaded(self, account: str, sha256: str, file_id: str) -> None:
        """Note that this content is on this account."""

    def forget_uploads(self, account: str, file_ids: Collection[str]) -> None:
        """The remote no longer knows these."""

    def keep_baseline(self, account: str, voice_keys: Collection[str]) -> None:
        """Note which voices the account had before its next request leaves; replaces what was noted before."""

    def pause(self, account: str, until: datetime) -> None:
        """Note that nothing may be sent to this account until then."""

    async def aclose(self) -> None:
        """Write what is pending, and let go of everything."""
