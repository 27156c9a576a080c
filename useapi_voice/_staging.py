"""Samples go up while others clone: a staged job is uploading, then ready, and then has only its place to wait for."""

from __future__ import annotations

from collections.abc import Callable

from . import _replies
from ._errors import ApiError, CloneRefused, RequestInvalid, SampleChanged, ServerError
from ._jobs import Job, JobState, Step, advance
from ._outcomes import facts_of
from ._refusals import Refusals
from ._registry import Registry
from ._replies import Scope
from ._schedule import Schedule, Stage
from ._uploads import Uploads


class Staging:
    """
    Gets jobs ready.

    Args:
        schedule: Says which.
        registry: Settles those that cannot be made ready.
        refusals: Act where the remote would not take a sample.
        uploads: Send samples.
        start: Starts a task of the queue's: its work, and its name.
        turn: Starts all jobs that can be started now.
    """

    def __init__(
        self,
        schedule: Schedule,
        registry: Registry,
        refusals: Refusals,
        uploads: Uploads,
        *,
        start: Callable[..., None],
        turn: Callable[[], None],
    ) -> None:
        self._schedule = schedule
        self._registry = registry
        self._refusals = refusals
        self._uploads = uploads
        self._start = start
        self._turn = turn

    def begin(self, action: Stage) -> None:
        """Carry out what the schedule decided."""
        job = action.job
        if action.moved:
            advance(job, Step.UNSTAGE)
        if job.request.files:
            job.files = job.request.files
            advance(job, Step.STAGED)
            self._schedule.staged(job)
            return
        advance(job, Step.STAGE)
        self._registry.tell(job, "uploading")
        self._start(self._upload, job, action.account, name=f"useapi_voice upload {job.id}")

    async def _upload(self, job: Job, account: str) -> None:
        try:
            files = await self._uploads.ensure(job.request.samples, account, job.fingerprints)
        except (RequestInvalid, SampleChanged) as error:
            if self._is_staging(job, account):
                message = f"a sample is no longer what was submitted: {error}"
                self._registry.settle(job, CloneRefused(message, **facts_of(job)))
        except ApiError as error:
            if self._is_staging(job, account):
                self._could_not_upload(job, account, error)
        else:
            # It may have moved to another account, or ended, while its samples went up here.
            if self._is_staging(job, account):
                self._is_ready(job, files)
        self._turn()

    def _is_staging(self, job: Job, account: str) -> bool:
        """Whether its upload to this account still matters: it may have moved to another, or ended, meanwhile."""
        return job.state is JobState.UPLOADING and job.account == account and not job.is_settled

    def _is_ready(self, job: Job, files: tuple[str, ...]) -> None:
        job.files = files
        if not job.history or job.history[-1].verdict != "not_sent":
            # It was its uploads that did not get through, and now they have.
            job.not_sent_since_t = None
        advance(job, Step.STAGED)
        self._schedule.staged(job)
        self._registry.tell(job, "ready")

    def _could_not_upload(self, job: Job, account: str, error: ApiError) -> None:
        if isinstance(error, ServerError):
            self._registry.unstage(job)
            self._refusals.wait_for_remote(job, account, error)
            return
        refused = _replies.refused_from(error)
        if refused.scope in {Scope.PACE, Scope.ACCOUNT, Scope.SLOTS}:
            self._registry.unstage(job)
        self._refusals.apply(job, account, refused)
