"""
useapi_voice: an asyncio client for voice cloning through useapi.net, with the clone queue built in.

Start with `VoiceClient`; the README has a first voice, a batch and a service.
"""

from ._client import VoiceClient
from ._endpoints import GenerationName
from ._errors import (
    AccountUnavailable,
    ApiError,
    AuthenticationError,
    CloneCancelled,
    CloneError,
    CloneOutcomeUnknown,
    CloneRefused,
    ConfigurationError,
    ContentRejected,
    DeadlineExceeded,
    Fault,
    QueueClosed,
    QueueFull,
    RateLimited,
    RequestInvalid,
    SampleRejected,
    ServerError,
    StoreError,
    SubscriptionError,
    UnexpectedReply,
    UseapiVoiceError,
    VoiceSlotsFull,
)
from ._events import CloneJob, EventStream
from ._jobs import TERMINAL_STATES, Attempt, Event, JobState
from ._models import (
    Account,
    AccountLoad,
    CloneRequest,
    Sample,
    UploadedSample,
    VoiceConfig,
    VoiceInfo,
    VoiceSlots,
)
from ._pictures import LaneStatistics, Statistics
from ._version import __version__

__all__ = [
    "TERMINAL_STATES",
    "Account",
    "AccountLoad",
    "AccountUnavailable",
    "ApiError",
    "Attempt",
    "AuthenticationError",
    "CloneCancelled",
    "CloneError",
    "CloneJob",
    "CloneOutcomeUnknown",
    "CloneRefused",
    "CloneRequest",
    "ConfigurationError",
    "ContentRejected",
    "DeadlineExceeded",
    "Event",
    "EventStream",
    "Fault",
    "GenerationName",
    "JobState",
    "LaneStatistics",
    "QueueClosed",
    "QueueFull",
    "RateLimited",
    "RequestInvalid",
    "Sample",
    "SampleRejected",
    "ServerError",
    "Statistics",
    "StoreError",
    "SubscriptionError",
    "UnexpectedReply",
    "UploadedSample",
    "UseapiVoiceError",
    "VoiceClient",
    "VoiceConfig",
    "VoiceInfo",
    "VoiceSlots",
    "VoiceSlotsFull",
    "__version__",
]


def _adopt() -> None:
    """Let errors and reprs name what users import, not the rooms behind it."""
    for name in __all__:
        if isinstance(globals()[name], type):
            globals()[name].__module__ = __name__


_adopt()
