"""
The error tree: whose fault it was, whether a voice may exist, and whether to try again.

    UseapiVoiceError
    ├── ConfigurationError         the client was built or used wrongly
    ├── RequestInvalid             a request has faults; nothing was sent or stored
    │   └── SampleRejected         every one of the faults lies in a sample
    ├── CloneError                 how a job can end without a voice: all that `await job` raises
    │   ├── CloneRefused           the remote said no, and made nothing
    │   │   └── ApiError           ... in an answer of the API; also raised by every other call
    │   │       ├── AuthenticationError   401: the token
    │   │       ├── SubscriptionError     402: the useapi.net subscription
    │   │       ├── AccountUnavailable    596, 412: the upstream account
    │   │       ├── VoiceSlotsFull        2600010: no room for another voice
    │   │       ├── RateLimited           429: not accepted, wait
    │   │       ├── ContentRejected       422: moderated
    │   │       ├── ServerError           5xx, timeouts, lost connections
    │   │       └── UnexpectedReply       an answer that nobody documents
    │   ├── CloneOutcomeUnknown    the remote could not be asked: a voice may exist
    │   ├── CloneCancelled         `job.cancel()`, or the client closed first
    │   └── DeadlineExceeded       one of the named clocks ran out
    ├── QueueClosed                the client takes no more work
    ├── QueueFull                  `max_pending` jobs wait already
    └── StoreError                 the store cannot keep what it was given

An `ApiError` is a `CloneRefused` because both say one thing of a clone: the remote answered, and no voice was made.
Raised by a call that is not a clone, its clone fields (`job_id`, `voice_name`) are `None`.

Facts are attributes, never prose to parse; every error pickles whole, and none can hold the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

DOCS_URL = "https://useapi.net/docs/api-minimax-v1"


@dataclass(frozen=True, slots=True)
class Fault:
    """
    One thing that is wrong with a request.

    Attributes:
        field: Where: `voice_name`, `samples[1]`, or `requests[3].samples[1]` within a batch.
        message: What is wrong, in one clause.
        remedy: What to do about it.
    """

    field: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message} ({self.remedy})"


class UseapiVoiceError(Exception):
    """The root: `except UseapiVoiceError` catches all that this library raises on purpose."""

    message: str

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own protocol replays `args` only and drops keyword facts: errors of other SDKs do not unpickle.
        return restore_error, (type(self), self.message, dict(self.__dict__))


ErrorT = TypeVar("ErrorT", bound=UseapiVoiceError)


def restore_error(cls: type[ErrorT], message: str, facts: Mapping[str, Any]) -> ErrorT:
    """Build an error from its class, message and attributes: for pickles and stores."""
    error = cls.__new__(cls, message)
    error.__dict__.update(facts)
    return error


class ConfigurationError(UseapiVoiceError):
    """The client was built or used wrongly; the message names the remedy. Nothing was sent."""


class RequestInvalid(UseapiVoiceError):
    """
    A request, or a batch of them, has faults. Nothing was sent and nothing was stored.

    Attributes:
        faults: All the faults of all the requests, in order.
    """

    faults: tuple[Fault, ...]

    def __init__(self, faults: tuple[Fault, ...] | list[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(_sentence(self.faults))


class SampleRejected(RequestInvalid):
    """Every fault lies in a sample: missing, unreadable, not mp3 or wav, or not 10 to 60 s long."""


def request_invalid(faults: list[Fault]) -> RequestInvalid:
    """Build the most specific error for these faults."""
    only_samples = all("samples[" in fault.field for fault in faults)
    return SampleRejected(faults) if only_samples else RequestInvalid(faults)


def _sentence(faults: tuple[Fault, ...]) -> str:
    if len(faults) == 1:
        return str(faults[0])
    return f"{len(faults)} faults:\n" + "\n".join(f"- {fault}" for fault in faults)


class CloneError(UseapiVoiceError):
    """
    A clone job ended without a voice.

    Attributes:
        job_id: The job's id, or `None` outside a job.
        account: The account it was meant for or sent to, where known.
        voice_name: The name that was asked for.
        attempts: How many clone requests left this machine for the job.
        status_code: HTTP status of the answer behind this, or `None` where there was none.
        code: The remote's own code (`596`, `2600010`, `"REFRESH_FAILED"`), where it gave one.
        voice_may_exist: Whether the account may hold a voice that this job made (and a slot that it uses).
        safe_to_retry: Whether asking again, as it is, can neither make a second voice nor meet the same refusal for
            the same reason (perhaps after `retry_after_s`, or on another account).
        retry_after_s: Seconds to wait before that, where the remote said so.
        docs_url: The page of the remote's documentation that speaks of this.
    """

    docs_page: ClassVar[str] = ""

    job_id: str | None
    account: str | None
    voice_name: str | None
    attempts: int
    status_code: int | None
    code: int | str | None
    voice_may_exist: bool
    safe_to_retry: bool
    retry_after_s: float | None
    docs_url: str

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        account: str | None = None,
        voice_name: str | None = None,
        attempts: int = 0,
        status_code: int | None = None,
        code: int | str | None = None,
        voice_may_exist: bool = False,
        safe_to_retry: bool = False,
        retry_after_s: float | None = None,
        docs_url: str | None = None,
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.account = account
        self.voice_name = voice_name
        self.attempts = attempts
        self.status_code = status_code
        self.code = code
        self.voice_may_exist = voice_may_exist
        self.safe_to_retry = safe_to_retry
        self.retry_after_s = retry_after_s
        self.docs_url = docs_url or (f"{DOCS_URL}/{self.docs_page}" if self.docs_page else DOCS_URL)


class CloneRefused(CloneError):
    """The remote refused, and made nothing."""

    docs_page = "post-minimax-speech-clone-voice"


class ApiError(CloneRefused):
    """The API answered, and not with success; the leaves say whose fault it was."""


class AuthenticationError(ApiError):
    """401: the token is missing, wrong or withdrawn. Nothing will work until the operator mends it."""


class SubscriptionError(ApiError):
    """402: the useapi.net subscription is missing or has expired ([S] in the contract: a sibling API's page)."""


class AccountUnavailable(ApiError):
    """596, 412 and kin: the upstream account is out of order; another account may do."""

    docs_page = "post-minimax-accounts-account"


class VoiceSlotsFull(ApiError):
    """Upstream 2600010: the account has no free slot for another voice; delete one, or use another account."""

    docs_page = "get-minimax-speech-equity"


class RateLimited(ApiError):
    """429: not accepted; `retry_after_s` says how long to wait."""


class ContentRejected(ApiError):
    """422, upstream 1026 and kin: the content was moderated; the same content will be refused again."""


class ServerError(ApiError):
    """5xx, a timeout or a lost connection, on a call that makes no voice, or where none was made for certain."""


class UnexpectedReply(ApiError):
    """An answer in a shape or with a status that nothing documents."""


class CloneOutcomeUnknown(CloneError):
    """
    The clone's answer was lost, and the remote could not be asked whether it was made.

    `voice_may_exist` is true and `safe_to_retry` false: look into the account's cloned voices for `voice_name` first.
    """

    docs_page = "get-minimax-speech-voices"


class CloneCancelled(CloneError):
    """The job was cancelled, or the client closed before its turn came; `voice_may_exist` tells what is known."""


class DeadlineExceeded(CloneError):
    """
    A clock of the job ran out.

    Attributes:
        clock: Which one: `queue_timeout_s`, or `deadline_s`.
    """

    clock: str

    def __init__(self, message: str, *, clock: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.clock = clock


class QueueClosed(UseapiVoiceError):
    """The client is closed, closing or draining, and takes no more work."""


class QueueFull(UseapiVoiceError):
    """
    `max_pending` jobs wait already; nothing was accepted.

    Attributes:
        max_pending: The limit.
        eta_s: Seconds until the backlog is worked off at the present pace, where that is known.
    """

    max_pending: int
    eta_s: float | None

    def __init__(self, message: str, *, max_pending: int, eta_s: float | None = None) -> None:
        super().__init__(message)
        self.max_pending = max_pending
        self.eta_s = eta_s


class StoreError(UseapiVoiceError):
    """The store cannot keep what it was given, or cannot be opened; nothing was accepted."""


class SampleChanged(Exception):
    """A sample is no longer what was inspected: changed, cut or deleted. Internal."""
