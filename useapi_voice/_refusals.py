"""Nothing was made: whose refusal it is, what that means for the account, and whether the job goes on or ends."""

from __future__ import annotations

from typing import Final

from . import _replies
from ._clocks import Clocks
from ._errors import ApiError
from ._jobs import OCCUPYING_STATES, Job, JobState
from ._lanes import Lanes
from ._outcomes import out_of_time, refusal
from ._registry import Registry
from ._replies import STALE_FILE_CODE, Refused, Scope
from ._schedule import Schedule
from ._settings import Settings
from ._uploads import Uploads

LONG_WAIT_S: Final = 2.0
"""A gate that is shut for longer than this lets the staged jobs behind it go to other accounts."""


class Refusals:
    """
    What becomes of a job that the remote refused, or could not be asked for.

    Args:
        schedule: Knows the gates.
        registry: Puts jobs back, and settles them.
        lanes: The accounts.
        uploads: Forget what the remote has lost.
        clocks: The time.
        settings: The queue's.
    """

    def __init__(
        self,
        schedule: Schedule,
        registry: Registry,
        lanes: Lanes,
        uploads: Uploads,
        clocks: Clocks,
        settings: Settings,
    ) -> None:
        self._schedule = schedule
        self._registry = registry
        self._lanes = lanes
        self._uploads = uploads
        self._clocks = clocks
        self._settings = settings

    def apply(self, job: Job, account: str, refused: Refused) -> None:
        """Act on whose refusal it is, then let the job go on, or end it."""
        job.not_sent_since_t = None
        match refused.scope:
            case Scope.PACE:
                self._slow_down(job, account, refused)
            case Scope.ACCOUNT | Scope.SLOTS:
                # First back among the waiting, so that closing the lane finds it there.
                self._registry.requeue(job)
                self._lanes.close(account, refused)
            case Scope.TOKEN:
                if job.state in OCCUPYING_STATES:
                    # Back among the waiting, all of which end, or are left to the store.
                    self._registry.requeue(job)
                self._registry.refuse_waiting(refused)
            case Scope.REQUEST:  # pragma: no branch - there are no others
                if self._can_upload_again(job, account, refused):
                    self._registry.requeue(job)
                else:
                    self._registry.settle(job, refusal(job, refused))

    def _slow_down(self, job: Job, account: str, refused: Refused) -> None:
        now_t = self._clocks.now()
        gate_t = self._lanes.slow_down(account, refused.retry_after_s, now_t)
        wait_s = gate_t - now_t
        is_wanted = not job.is_settled and job.cancelling is None
        is_too_late = is_wanted and job.deadline_t is not None and gate_t > job.deadline_t
        if is_too_late and not self._registry.floor.can_move(job, now_t):
            message = f"the remote asks for {wait_s:.0f} s of patience, which is more than its deadline leaves"
            self._registry.settle(job, out_of_time(job, "deadline_s", message, retry_after_s=wait_s))
            return
        self._registry.requeue(job)
        if wait_s > LONG_WAIT_S:
            for staged in self._schedule.movable(account, now_t):
                self._registry.unstage(staged)

    def _can_upload_again(self, job: Job, account: str, refused: Refused) -> bool:
        """Whether the remote may merely have lost its samples, which are uploaded once more then."""
        says_so = refused.code == STALE_FILE_CODE or (
            refused.status_code in {400, 404} and "file" in refused.detail.lower()
        )
        was_sent = job.state is JobState.SENT  # a refused upload is no word on samples that are there
        if not says_so or not was_sent or job.uploads_forgotten or not job.request.samples:
            return False
        job.uploads_forgotten = True
        self._uploads.forget(job.files, account)
        return True

    def wait_for_remote(self, job: Job, account: str, error: ApiError) -> None:
        """It cannot be reached: go again after a little, for as long as that has a point."""
        now_t = self._clocks.now()
        since_t = now_t if job.not_sent_since_t is None else job.not_sent_since_t
        job.not_sent_since_t = since_t
        self._lanes.back_off(account, error.message)
        if now_t - since_t >= self._settings.unreachable_after_s:
            self._registry.settle(job, refusal(job, _replies.refused_from(error), safe_to_retry=True))
        else:
            self._registry.requeue(job)
