"""
What a queue does with its jobs where nobody shares them: they are all here, and wait in its own schedule.

`_fleet_floor` is the same for a queue that shares its jobs with a fleet; the rest of the queue does not know which of
the two it stands on.
"""

from __future__ import annotations

from collections.abc import Collection

from ._jobs import CancelChoice, Job
from ._replies import Refused
from ._schedule import Schedule
from .stores import JobStore


class Floor:
    """
    Where the jobs are that wait.

    Args:
        schedule: Of this queue.
        store: Keeps them.
    """

    late_after_s: float = float("inf")
    """A request that has not left so long after its intent was recorded must not: its place may be another's."""
    finds_accounts: bool = True
    """Whether this queue asks which accounts there are; a fleet's are on record."""

    def __init__(self, schedule: Schedule, store: JobStore) -> None:
        self._schedule = schedule
        self._store = store

    # --- jobs --------------------------------------------------------------------------------------------------------

    @property
    def elsewhere(self) -> Collection[Job]:
        """Jobs that have handles here, and that this process does not work on."""
        return ()

    def expect(self, job: Job) -> Job:
        """Be ready for a job that the store is about to have; return the job that its news will come to."""
        return job

    def expect_no_more(self, job: Job) -> None:
        """The store did not take it after all."""

    def follow(self, job: Job) -> bool:
        """Have a job that was merely listed hear of its end; return whether it will."""
        del job
        return False

    def unstage(self, job: Job) -> None:
        """A job whose samples were up, or going up, waits again."""
        self._schedule.unstage(job)

    def put_back(self, job: Job) -> None:
        """A job that was sent waits again, in its old order."""
        job.account = job.pinned
        self._schedule.add(job)
        self._store.changed(job)

    def put_back_waiting(self, account: str) -> None:
        """This account takes nothing now: what waits for it here waits for it elsewhere."""

    def release(self, job: Job) -> None:
        """A job that was not sent ended for its waiters here, but not for the store."""

    def gone(self, job: Job) -> None:
        """This process has no more to do for it."""

    def freed(self, job: Job) -> None:
        """The remote is done with its request."""

    def leave_all(self) -> None:
        """This process closes: nobody here will hear of the jobs that are elsewhere."""

    def cancel_elsewhere(self, job: Job, voice: CancelChoice) -> bool:
        """Ask for the end of a job that is elsewhere; return whether it is."""
        del job, voice
        return False

    # --- accounts ----------------------------------------------------------------------------------------------------

    def can_move(self, job: Job, now_t: float) -> bool:
        """Whether another account could serve it now."""
        return job.pinned is None and any(
            lane.serves_pool and lane.is_open(now_t) for lane in self._schedule.lanes.values()
        )

    def orphans(self) -> list[tuple[Job, Refused]]:
        """Return the waiting jobs that no account can serve, with the reason."""
        return self._schedule.orphans()

    def was_refused(self, refused: Refused) -> None:
        """The token was."""

    async def refresh_ledger(self, account: str) -> None:
        """Learn whose voices the account has, as far as others know."""
