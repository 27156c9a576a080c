"""
Traces and metrics of a client, through the OpenTelemetry API: `async with instrument(client): ...`.

It reads the client's events, so that a client which is not instrumented pays nothing for it. Only the API is used
(extra `otel`); without an SDK its calls do nothing. Names are this library's own, under `useapi_voice`, as the semantic
conventions have none for this; `error.type` is theirs.

Spans, a tree per job: `clone job` from the submit to the end, with `upload`, `clone` (one per request that left) and
`reconcile` below it. Metrics:

    useapi_voice.jobs               counter        jobs that ended, by `useapi_voice.job.state` and `error.type`
    useapi_voice.job.wait           histogram, s   from the submit to the first request
    useapi_voice.clone.duration     histogram, s   from a request to its answer, or to the loss of it
    useapi_voice.throttled          counter        gates shut, by account
    useapi_voice.queue.depth        gauge          jobs that wait
    useapi_voice.in_progress        gauge          clones in progress, by account
    useapi_voice.gate               gauge, s       until an account's gate opens, by account
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import anyio

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.trace import Span, Status, StatusCode, Tracer
except ModuleNotFoundError as _error:  # pragma: no cover - the tests have it; the wheel session tries without
    raise ModuleNotFoundError(
        f"useapi_voice.otel needs {_error.name}: pip install 'useapi-voice[otel]'", name=_error.name
    ) from _error

from ._client import VoiceClient
from ._jobs import TERMINAL_STATES, Event, JobState
from ._version import __version__

_WAITING: Final = (JobState.QUEUED, JobState.UPLOADING, JobState.READY)
_PHASES: Final = {"uploading": "upload", "sent": "clone", "in_doubt": "reconcile"}
_ENDINGS: Final = frozenset(state.value for state in TERMINAL_STATES) | {"left"}


@dataclass(slots=True)
class _Trace:
    """One job's spans."""

    span: Span
    queued_at: datetime
    phase: Span | None = None
    phase_name: str = ""
    phase_at: datetime | None = None
    was_sent: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)


class _Recorder:
    """Turns events into spans and measurements."""

    def __init__(self, client: VoiceClient, tracer: Tracer, meter: Meter) -> None:
        self._client = client
        self._tracer = tracer
        self._traces: dict[str, _Trace] = {}
        self._picture = client.statistics()
        self._jobs = meter.create_counter("useapi_voice.jobs", "{job}", "Jobs that ended")
        self._wait = meter.create_histogram("useapi_voice.job.wait", "s", "From the submit to the first request")
        self._duration = meter.create_histogram("useapi_voice.clone.duration", "s", "From a request to its answer")
        self._throttled = meter.create_counter("useapi_voice.throttled", "{gate}", "Gates shut")
        meter.create_observable_gauge("useapi_voice.queue.depth", [self._depth], "{job}", "Jobs that wait")
        meter.create_observable_gauge("useapi_voice.in_progress", [self._in_progress], "{clone}", "Clones in progress")
        meter.create_observable_gauge("useapi_voice.gate", [self._gates], "s", "Until the account's gate opens")

    def note(self, event: Event) -> None:
        """Record one event."""
        if event.job_id is not None:
            self._note_job(event, event.job_id)
        elif event.kind == "gate_shut":
            self._throttled.add(1, {"useapi_voice.account": event.account or ""})

    def close(self) -> None:
        """End the spans of jobs that nobody will hear of."""
        for traced in self._traces.values():
            if traced.phase is not None:
                traced.phase.end()
            traced.span.end()
        self._traces.clear()

    def _note_job(self, event: Event, job_id: str) -> None:
        traced = self._traces.get(job_id)
        if traced is None:
            if event.kind in _ENDINGS or event.kind == "late_voice":
                return
            traced = self._traces[job_id] = self._begin(event, job_id)
        if event.kind in _PHASES or event.kind in _ENDINGS or event.kind in {"queued", "ready"}:
            self._end_phase(traced, event)
        if event.kind in _PHASES:
            self._begin_phase(traced, event)
        elif event.kind in _ENDINGS:
            self._end(self._traces.pop(job_id), event)
        else:
            traced.span.add_event(event.kind, _plain(event.detail), _ns(event.at))

    def _begin(self, event: Event, job_id: str) -> _Trace:
        attributes = {"useapi_voice.job.id": job_id, "useapi_voice.voice_name": event.voice_name or ""}
        span = self._tracer.start_span("clone job", attributes=attributes, start_time=_ns(event.at))
        return _Trace(span, event.at)

    def _begin_phase(self, traced: _Trace, event: Event) -> None:
        traced.phase_name, traced.phase_at = _PHASES[event.kind], event.at
        traced.phase = self._tracer.start_span(
            traced.phase_name,
            context=trace.set_span_in_context(traced.span),
            attributes={"useapi_voice.account": event.account or ""},
            start_time=_ns(event.at),
        )
        if event.kind == "sent" and not traced.was_sent:
            traced.was_sent = True
            self._wait.record((event.at - traced.queued_at).total_seconds())

    def _end_phase(self, traced: _Trace, event: Event) -> None:
        if traced.phase is None or traced.phase_at is None:
            return
        if traced.phase_name == "clone":
            self._duration.record((event.at - traced.phase_at).total_seconds(), {"useapi_voice.outcome": event.kind})
        traced.phase.end(_ns(event.at))
        traced.phase = None

    def _end(self, traced: _Trace, event: Event) -> None:
        attributes = {"useapi_voice.job.state": event.kind}
        error = event.detail.get("error")
        if error is not None:
            attributes["error.type"] = str(error)
            traced.span.set_status(Status(StatusCode.ERROR, str(event.detail.get("reason", ""))))
        traced.span.set_attributes({**attributes, "useapi_voice.account": event.account or ""})
        traced.span.end(_ns(event.at))
        self._jobs.add(1, attributes)

    def _depth(self, options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(sum(self._picture.jobs.get(state, 0) for state in _WAITING))

    def _in_progress(self, options: CallbackOptions) -> Iterable[Observation]:
        for lane in self._picture.lanes:
            yield Observation(lane.in_progress, {"useapi_voice.account": lane.account or ""})

    def _gates(self, options: CallbackOptions) -> Iterable[Observation]:
        for lane in self._picture.lanes:
            yield Observation(lane.gate_s, {"useapi_voice.account": lane.account or ""})

    def look(self) -> None:
        """Take the picture that the gauges show: a metrics reader asks from a thread of its own, where no client is."""
        self._picture = self._client.statistics()


@asynccontextmanager
async def instrument(
    client: VoiceClient, *, tracer: Tracer | None = None, meter: Meter | None = None, look_every_s: float = 5.0
) -> AsyncGenerator[None, None]:
    """
    Record what the client does, for the length of the block.

    Args:
        client: An open client.
        tracer: By default that of the global tracer provider.
        meter: By default that of the global meter provider.
        look_every_s: Seconds between two looks at the client for the gauges.

    Raises:
        ConfigurationError: The client is not open in this event loop.
        QueueClosed: It is closed.

    Cancelled or left, it ends the spans that are open, and changes nothing in the client.
    """
    recorder = _Recorder(
        client,
        tracer or trace.get_tracer("useapi_voice", __version__),
        meter or metrics.get_meter("useapi_voice", __version__),
    )
    events = client.events()

    async def follow() -> None:
        async for event in events:
            recorder.note(event)

    looking = anyio.CancelScope()

    async def look() -> None:
        with looking:
            while True:
                await anyio.sleep(look_every_s)
                recorder.look()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow, name="useapi_voice telemetry")
        tasks.start_soon(look, name="useapi_voice gauges")
        try:
            yield
        finally:
            # What was said before the end is still recorded.
            await events.aclose()
            looking.cancel()
    recorder.close()


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000_000)


def _plain(detail: Any) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str | int | float | bool) else str(value) for name, value in detail.items()
    }
