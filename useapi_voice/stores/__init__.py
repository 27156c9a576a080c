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

from .._errors import StoreError
from .._jobs import CancelChoice, Job, JobState, Outcome
from .._replies import Refused


class KeyTaken(StoreError):
    """Another job has this key, perhaps one that another process added just now. Internal: `submit` looks again."""


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
    is_shared: bool
    """Whether other processes work on the same jobs at the same time: then it is a `SharedStore`."""

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
        """
        Note the job's present state; of one whose ending was announced, the voices that came late.

        May be lost in a crash: a job found as sent is looked for, never sent again.
        """

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

    def limited(self, account: str, limit: int) -> None:
        """Note how many clones this account may have in progress at once from now on."""

    def closed(self, account: str, refused: Refused, look_again_s: float) -> None:
        """Note that this account takes nothing, why, and in how many seconds to ask whether that is over."""

    def opened(self, account: str) -> None:
        """Note that it takes jobs again."""

    def upload_failed(self, account: str, sha256: str) -> None:
        """The content that `file_id` did not find could not be uploaded: whoever waits for that may try."""

    async def aclose(self) -> None:
        """Write what is pending, and let go of everything."""


@dataclass(frozen=True, slots=True)
class Gate:
    """
    What a fleet knows of an account.

    Attributes:
        wait_s: Seconds until something may be sent again; 0 or less when it may now.
        limit: Clones that may be in progress at once.
        refused: Why it takes nothing, or `None`.
        look_s: Seconds until somebody should ask whether that is over.
        serves_pool: Whether it takes jobs that are not pinned.
    """

    wait_s: float
    limit: int
    refused: Refused | None
    look_s: float
    serves_pool: bool


@dataclass(frozen=True, slots=True)
class Ledger:
    """Keys of the voices of an account that belong to no attempt in doubt, and whether a baseline is among them."""

    taken: frozenset[str]
    has_baseline: bool


class Desk(Protocol):
    """What a shared store asks of the queue of its process. All of it happens on the event loop."""

    @property
    def is_taking(self) -> bool:
        """Whether it takes more jobs to work on."""
        ...

    @property
    def waits_when_blocked(self) -> bool:
        """Whether jobs that no account can serve wait for one, instead of being refused."""
        ...

    async def discover(self) -> Sequence[str]:
        """Return the accounts that there are, however long that takes; `[""]` where nobody can name them."""
        ...

    def adopt(self, job: Job, account: str, *, sent_ago_s: float | None, ledger: Ledger | None) -> None:
        """
        Work on this job at this account until it is settled or handed back.

        With `sent_ago_s`, another replica sent it so long ago and is gone: then find out what became of that.
        """

    def end(self, job: Job, why: str | Refused) -> None:
        """End a job that was not sent: `cancelled`, the clock that ran out, or why no account can serve it."""

    def waits_for(self) -> Sequence[str]:
        """Return the ids of the jobs that somebody here may wait for, and that this process does not work on."""
        ...

    def has_ended(self, job: Job) -> None:
        """Tell who waits for it how this job ended, wherever that was."""

    def was_forgotten(self, job_id: str) -> None:
        """Tell who waits for it that the store no longer has this job."""

    def cancel(self, job_id: str, voice: CancelChoice) -> None:
        """Cancel a job that this process works on, if it still does."""

    def heed(self, account: str, gate: Gate) -> None:
        """Do as the fleet knows of this account."""

    def gate_s(self, account: str) -> float:
        """Return for how many seconds this process should not send to this account."""
        ...

    async def prepare(self, job: Job, account: str) -> None:
        """Upload this job's samples ahead of its turn; whatever fails is left for its turn."""


class SharedStore(JobStore, Protocol):
    """
    A store that many processes share. Attached to a queue, it calls the tune: it decides which job runs where, and the
    queue of each process works on what it is given. Who submits, and who works, need not be the same.
    """

    def attach(self, desk: Desk) -> None:
        """Before `open`: work for this queue. Then `open` returns no jobs, because they are everybody's."""

    async def watch(self) -> None:
        """Return never; raise what a task of the store's own died of, which is a bug."""

    def handed_back(self, job: Job) -> None:
        """This process no longer works on this queued job: it is anybody's, in its old order."""

    def freed(self, job: Job) -> None:
        """The remote is done with the request of this job."""

    def cancel(self, job: Job, voice: CancelChoice) -> None:
        """Cancel a job that this process does not work on."""

    async def ledger(self, account: str) -> Ledger:
        """Return whose voices an account has. Raises `StoreError` where it cannot be read."""
        ...
