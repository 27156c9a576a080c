"""
The public API annotated as a user would write it. Never executed: `mypy` and `pyright` read it, and that is the test.

What must be an error bears a `type: ignore` with its code, which mypy reports once it is no longer needed.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

import useapi_voice
from useapi_voice import (
    TERMINAL_STATES,
    Account,
    AccountLoad,
    AccountUnavailable,
    ApiError,
    Attempt,
    AuthenticationError,
    CloneCancelled,
    CloneError,
    CloneJob,
    CloneOutcomeUnknown,
    CloneRefused,
    CloneRequest,
    ConfigurationError,
    ContentRejected,
    DeadlineExceeded,
    Event,
    EventStream,
    Fault,
    GenerationName,
    JobState,
    LaneStatistics,
    QueueClosed,
    QueueFull,
    RateLimited,
    RequestInvalid,
    Sample,
    SampleRejected,
    ServerError,
    Statistics,
    StoreError,
    SubscriptionError,
    UnexpectedReply,
    UploadedSample,
    UseapiVoiceError,
    VoiceClient,
    VoiceConfig,
    VoiceInfo,
    VoiceSlots,
    VoiceSlotsFull,
)


def requests() -> list[CloneRequest]:
    """Every form in which samples and files may be handed in."""
    names: list[str] = ["a.mp3", "b.wav"]
    return [
        CloneRequest(voice_name="n", language_tag="English", samples="a.mp3"),
        CloneRequest(voice_name="n", language_tag="English", samples=names),
        CloneRequest(voice_name="n", language_tag="English", samples=[Path("a.mp3"), b"RIFF", "c.mp3"]),
        CloneRequest(voice_name="n", language_tag="English", samples=(Sample("a.mp3", name="first"),)),
        CloneRequest(voice_name="n", language_tag="English", samples=io.BytesIO(b"RIFF")),
        CloneRequest(voice_name="n", language_tag="English", files="f1,f2"),
        CloneRequest(voice_name="n", language_tag="English", files=["f1"], account="A", need_noise_reduction=False),
    ]


def wrong_requests() -> None:
    """What a type checker must not let pass."""
    CloneRequest("n", "English")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    CloneRequest(voice_name="n")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    CloneRequest(voice_name="n", language_tag="English", colour=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    CloneRequest(voice_name="n", language_tag="English", samples=[5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    requests()[0].voice_name = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def first_voice() -> VoiceInfo:
    """The README's first example."""
    async with VoiceClient() as client:
        voice: VoiceInfo = await client.clone(requests()[0])
        return voice


async def configured() -> None:
    """Every setting that the design names."""
    async with (
        httpx.AsyncClient() as http_client,
        VoiceClient(
            "user:1-token",
            base_url="https://api.useapi.net/v1/minimax",
            api="auto",
            accounts=["A", "B"],
            max_parallel=1,
            http_client=http_client,
            clone_timeout_s=120,
            settle_after_s=75.0,
        ) as client,
    ):
        await client.drain(timeout_s=10)


async def batch(client: VoiceClient, wanted: Sequence[CloneRequest]) -> list[str]:
    """Submit many, and take them as they finish."""
    jobs: list[CloneJob] = await client.submit_many(wanted)
    found: list[str] = []
    async for job in client.as_completed(jobs):
        try:
            voice = await job
        except CloneOutcomeUnknown as error:
            found.append(error.voice_name or "?")
        except CloneError as error:
            retry: bool = error.safe_to_retry and not error.voice_may_exist
            wait_s: float | None = error.retry_after_s
            found.append(f"{error.job_id} {error.account} {error.status_code} {error.code} {retry} {wait_s}")
        else:
            found.append(voice.voice_id)
    return found


async def one_job(client: VoiceClient, request: CloneRequest) -> None:
    """All that a job tells."""
    job: CloneJob = await client.submit(request, key="k", priority=5, queue_timeout_s=60, deadline_s=600.0)
    state: JobState = job.state
    is_over: bool = state in TERMINAL_STATES
    facts: tuple[str, str | None, str | None, int, int | None, float | None] = (
        job.id,
        job.key,
        job.account,
        job.attempts,
        job.position,
        job.eta_s,
    )
    history: tuple[Attempt, ...] = job.history
    sent_at: datetime = history[0].sent_at
    again: Awaitable[VoiceInfo] = job
    voice: VoiceInfo = await job.result()
    await again
    ended: JobState = await job.cancel(voice="delete")
    asked: Awaitable[JobState] = job.cancel()
    print(is_over, facts, sent_at, voice, ended, asked, client.job("k"))


async def other_calls(client: VoiceClient) -> None:
    """The endpoints around cloning."""
    uploaded: UploadedSample = await client.upload_sample("a.mp3", account="A")
    config: VoiceConfig = await client.config()
    languages: tuple[str, ...] = config.languages
    accounts: tuple[Account, ...] = await client.accounts()
    loads: tuple[AccountLoad, ...] = await client.loads()
    slots: VoiceSlots = await client.slots("A")
    free: int | None = slots.free
    voices: AsyncIterator[VoiceInfo] = client.voices(cloned=True, account="A")
    async for voice in voices:
        created_at: datetime | None = voice.created_at
        extra: dict[str, Any] | None = voice.model_extra
        print(created_at, extra, voice.create_time, voice.tag_list, voice.managed_by_api, voice.account)
        await client.delete_voice(voice.voice_id)
    async with client.temporary_voice(requests()[0]) as passing:
        print(passing.voice_id)
    print(uploaded.file_id, languages, accounts[0].usable, loads, free, await client.prune("demo-"))


async def watching(client: VoiceClient) -> None:
    """Pictures and events."""
    statistics: Statistics = client.statistics()
    jobs: dict[JobState, int] = statistics.jobs
    lanes: tuple[LaneStatistics, ...] = statistics.lanes
    stream: EventStream = client.events()
    async with stream:
        async for event in stream:
            seen: Event = event
            detail: Mapping[str, Any] = seen.detail
            print(seen.kind, seen.at, seen.job_id, detail, jobs, lanes[0].gate_s)


def whose_fault(error: UseapiVoiceError) -> str:
    """The tree, from its leaves up."""
    match error:
        case SampleRejected() | RequestInvalid():
            faults: tuple[Fault, ...] = error.faults
            return faults[0].field
        case AuthenticationError() | SubscriptionError():
            return "token"
        case AccountUnavailable() | VoiceSlotsFull():
            return error.account or "account"
        case RateLimited():
            return f"{error.retry_after_s or 20:.0f}"
        case ContentRejected() | ServerError() | UnexpectedReply():
            return error.docs_url
        case ApiError() | CloneRefused():
            return error.message
        case DeadlineExceeded():
            return error.clock
        case CloneOutcomeUnknown() | CloneCancelled():
            return str(error.voice_may_exist)
        case QueueFull():
            return f"{error.max_pending} {error.eta_s}"
        case ConfigurationError() | QueueClosed() | StoreError():
            return error.message
        case _:
            return useapi_voice.__version__


generation: GenerationName = "speech"
wrong_generation: GenerationName = "video"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
