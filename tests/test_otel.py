"""`otel`: spans and metrics of a client, read back through the SDK's in-memory exporters."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import anyio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from useapi_voice import CloneError, CloneJob, CloneRequest, VoiceClient
from useapi_voice.otel import instrument
from useapi_voice.sandbox import Fault, Sandbox, sample_paths


class Telescope:
    """An SDK whose spans and metrics can be looked at."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")
        self.meter = MeterProvider([self._reader]).get_meter("test")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """All that have ended, in that order."""
        return self._exporter.get_finished_spans()

    def metric(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def request_for(name: str) -> CloneRequest:
    """A request with a real sample."""
    return CloneRequest(voice_name=name, language_tag="English", samples=[sample_paths()[0].read_bytes()])


async def ended(job: CloneJob) -> None:
    """Wait for its end, whichever it is."""
    with suppress(CloneError):
        await job


async def test_a_job_is_a_tree_of_spans() -> None:
    """A clone whose answer was lost has an upload, a clone and a reconcile span below its own."""
    telescope = Telescope()
    async with Sandbox(clone_s=0.01) as sandbox:
        sandbox.fail("clone-voice", Fault.drop(made=True), nth=1)
        async with VoiceClient(sandbox.token, base_url=sandbox.base_url, settle_after_s=0.2) as client:
            async with instrument(client, tracer=telescope.tracer, meter=telescope.meter):
                job = await client.submit(request_for("Traced"))
                await job

    *below, root = telescope.spans
    assert root.name == "clone job"
    assert root.attributes is not None
    assert root.attributes["useapi_voice.job.id"] == job.id
    assert [span.name for span in below] == ["upload", "clone", "reconcile"]
    assert root.context is not None
    assert {span.parent.span_id for span in below if span.parent} == {root.context.span_id}
    assert [event.name for event in root.events] != []
    assert [point.value for point in telescope.metric("useapi_voice.jobs")] == [1]
    assert telescope.metric("useapi_voice.job.wait")[0].count == 1
    assert telescope.metric("useapi_voice.clone.duration")[0].count == 1


async def test_a_refusal_is_an_error_span_with_its_type() -> None:
    """A refused job's span has the error's class as `error.type`, and so has the counter."""
    telescope = Telescope()
    async with Sandbox(clone_s=0.01) as sandbox:
        sandbox.fail("clone-voice", Fault.moderated())
        sandbox.fail("clone-voice", Fault.rate_limited(0.01, "seconds"), nth=2)
        async with VoiceClient(sandbox.token, base_url=sandbox.base_url) as client:
            async with instrument(client, tracer=telescope.tracer, meter=telescope.meter, look_every_s=0.01):
                await ended(await client.submit(request_for("Moderated")))
                await ended(await client.submit(request_for("Throttled")))
                await anyio.sleep(0.05)

    roots = [span for span in telescope.spans if span.name == "clone job"]
    assert [(span.attributes or {}).get("error.type") for span in roots] == ["ContentRejected", None]
    assert [point.value for point in telescope.metric("useapi_voice.throttled")] == [1]
    assert [point.value for point in telescope.metric("useapi_voice.in_progress")] == [0]
    assert [point.value for point in telescope.metric("useapi_voice.queue.depth")] == [0]
    assert [point.value for point in telescope.metric("useapi_voice.gate")] == [0]


async def test_news_of_accounts_and_of_jobs_never_seen_is_no_span() -> None:
    """A slower account is counted once, an account that is out not at all; a job that ended before is none of ours."""
    telescope = Telescope()
    async with Sandbox(accounts=2, clone_s=0.05) as sandbox:
        async with VoiceClient(sandbox.token, base_url=sandbox.base_url) as client:
            sandbox.fail("clone-voice", Fault.account_error())
            job = await client.submit(request_for("Early"))
            async with instrument(client, tracer=telescope.tracer, meter=telescope.meter):
                # As when the stream was opened between the job's last two events.
                client._queue.registry.tell(job._job, "late_voice", voice_id="v")
                await job
            assert [span.name for span in telescope.spans].count("clone job") == 1
            assert not telescope.metric("useapi_voice.throttled")


async def test_what_did_not_end_within_the_block_is_closed_with_it() -> None:
    """Jobs that are under way when the block ends, or that ended before it began, leave no open span."""
    telescope = Telescope()
    async with Sandbox(clone_s=0.3) as sandbox:
        async with VoiceClient(sandbox.token, base_url=sandbox.base_url) as client:
            early = await client.submit(request_for("Early"))
            async with instrument(client, tracer=telescope.tracer, meter=telescope.meter):
                jobs = [await client.submit(request_for(f"Late {number}")) for number in range(3)]
                await early
            for job in jobs:
                job.cancel()

    assert [span.name for span in telescope.spans].count("clone job") >= len(jobs)
    assert all(span.end_time is not None for span in telescope.spans)
