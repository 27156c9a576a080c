"""
useapi_voice: an asyncio client for voice cloning through useapi.net, with the clone queue built in.

Start with `VoiceClient`; the README has a first voice, a batch and a service.

The rooms behind it are loaded at the first use of a public name: every run of pytest imports this package for its
fixtures, and every `useapi-voice --help`, and neither should pay for a client that it does not open.
"""

from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
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


_ROOMS = ("_errors", "_models", "_jobs", "_endpoints", "_pictures", "_events", "_client")

# To a type checker the names are imported above, and any other is an error.
if not TYPE_CHECKING:  # pragma: no branch - nothing is run where it is true

    def __getattr__(name: str) -> object:
        """Load all public names at the first use of one; let reprs and tracebacks name them as users import them."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from collections import ChainMap
        from importlib import import_module

        rooms = ChainMap(*(vars(import_module(f".{room}", __name__)) for room in _ROOMS))
        for public in set(__all__) - globals().keys():
            value = globals()[public] = rooms[public]
            if isinstance(value, type):
                value.__module__ = __name__
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
