"""Samples to the remote: once per account and content, whole every time, and shared by all that need them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from harness import (
    TOKEN,
    HangUp,
    Heard,
    Say,
    ask,
    closed_port,
    error_of,
    in_process,
    over_loopback,
    serving,
    virtual,
    wav,
)

from useapi_voice import (
    AccountUnavailable,
    CloneRefused,
    RateLimited,
    Sample,
    SampleRejected,
    ServerError,
    StoreError,
    UnexpectedReply,
    VoiceClient,
)
from useapi_voice._errors import RequestInvalid, SampleChanged
from useapi_voice._jobs import Fingerprint
from useapi_voice._samples import SampleBook
from useapi_voice._transport import GenerationChoice, Secret, Transport
from useapi_voice._uploads import Uploads
from useapi_voice.sandbox import Fault, Sandbox, sample_paths
from useapi_voice.stores.memory import MemoryStore


@asynccontextmanager
async def uploading(sandbox: Sandbox) -> AsyncIterator[Uploads]:
    """Give uploads to a sandbox in process."""
    sandbox.now()
    async with httpx.AsyncClient(transport=sandbox.transport()) as http, SampleBook() as book:
        transport = Transport(Secret(TOKEN), sandbox.base_url, GenerationChoice.of("audio"), http)
        yield Uploads(transport, book, MemoryStore())


def sha256(content: bytes) -> str:
    """Return the digest of a content."""
    return hashlib.sha256(content).hexdigest()


@virtual
async def test_a_content_goes_up_once_per_account() -> None:
    """Many jobs with the same content, in however many objects, cause one upload per account."""
    sandbox = Sandbox(accounts=["a", "b"], upload_s=2)
    async with uploading(sandbox) as uploads:
        found: list[tuple[str, ...]] = []

        async def ensure(account: str) -> None:
            found.append(await uploads.ensure([Sample(bytes(wav())), Sample(bytes(bytearray(wav())))], account))

        async with anyio.create_task_group() as tasks:
            for index in range(20):
                tasks.start_soon(ensure, "ab"[index % 2])
    assert sorted(upload.account for upload in sandbox.uploads) == ["a", "b"]
    assert {sha for one in sandbox.uploads for sha in [one.sha256]} == {sha256(wav())}
    assert len(set(found)) == 2
    assert all(first == second for first, second in found)
    assert uploads.count == 2


@virtual
async def test_a_store_that_cannot_be_read_harms_no_job() -> None:
    """What it might have known goes up once more, and once only; the client and its jobs go on."""

    class Unreadable(MemoryStore):
        async def file_id(self, account: str, sha256: str) -> str | None:
            raise StoreError("the disk fails")

    sandbox = Sandbox(accounts=["a"])
    sandbox.now()
    async with httpx.AsyncClient(transport=sandbox.transport()) as http, SampleBook() as book:
        uploads = Uploads(
            Transport(Secret(TOKEN), sandbox.base_url, GenerationChoice.of("audio"), http), book, Unreadable()
        )
        known = (Fingerprint("wav", sha256(wav()), len(wav()), None),)
        found = [await uploads.ensure([Sample(wav())], "a", known) for _ in range(3)]
    assert found == [(sandbox.uploads[0].file_id,)] * 3
    assert len(sandbox.uploads) == 1


@virtual
async def test_an_upload_that_fails_is_tried_anew_by_the_next() -> None:
    """Those who wait for an upload that fails do not fail with it: the next one tries; the error is one job's."""
    sandbox = Sandbox(accounts=["a"], upload_s=2)
    sandbox.fail("upload-sample", Fault.status(400, at="end"))
    async with uploading(sandbox) as uploads:
        ends: list[str] = []

        async def ensure() -> None:
            try:
                ends.append(*await uploads.ensure([Sample(wav())], "a"))
            except CloneRefused as error:
                ends.append(type(error).__name__)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ensure)
    assert ends == ["ApiError", sandbox.uploads[0].file_id, sandbox.uploads[0].file_id]


@virtual
async def test_a_cancelled_uploader_leaves_the_upload_to_a_waiter() -> None:
    """The flight of a cancelled task is taken over by whoever waits for it."""
    sandbox = Sandbox(accounts=["a"], upload_s=10)
    async with uploading(sandbox) as uploads, anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def doomed() -> None:
            with first:
                await uploads.ensure([Sample(wav())], "a")

        tasks.start_soon(doomed)
        await anyio.sleep(1)
        tasks.start_soon(uploads.ensure, [Sample(wav())], "a")
        await anyio.sleep(1)
        first.cancel()
        with anyio.fail_after(30):
            while uploads.count == 0:
                await anyio.sleep(1)


@virtual
async def test_forgotten_samples_go_up_again() -> None:
    """Where the remote has lost a sample, only that one on that account goes up once more."""
    sandbox = Sandbox(accounts=["a", "b"])
    async with uploading(sandbox) as uploads:
        samples = [Sample(wav()), Sample(wav(tone=1))]
        first, second = await uploads.ensure(samples, "a")
        on_b = await uploads.ensure(samples, "b")
        uploads.forget([first, *on_b], "a")
        again = await uploads.ensure(samples, "a")
        assert again[0] != first
        assert again[1] == second
        assert await uploads.ensure(samples, "b") == on_b


@virtual
async def test_429_is_left_to_the_lane() -> None:
    """An upload that comes too fast raises at once: the account's gate is not this room's to shut."""
    sandbox = Sandbox(accounts=["a"])
    sandbox.fail("upload-sample", Fault.rate_limited(50))
    async with uploading(sandbox) as uploads:
        with pytest.raises(RateLimited) as raised:
            await uploads.ensure([Sample(wav())], "a")
        assert anyio.current_time() < 1
    assert raised.value.retry_after_s == pytest.approx(50)
    assert raised.value.account == "a"


async def test_a_sample_that_is_gone_is_a_fault_of_its_place(tmp_path: Path) -> None:
    """The error says which of the samples it is; nothing of it is sent."""
    sandbox = Sandbox(accounts=["a"])
    async with uploading(sandbox) as uploads:
        with pytest.raises(SampleRejected, match=r"samples\[1\]: gone.wav does not exist"):
            await uploads.ensure([Sample(wav()), Sample(tmp_path / "gone.wav")], "a")
    assert len(sandbox.uploads) == 1


async def test_an_answer_without_a_file_id_is_an_error() -> None:
    """Success without a fileID is of no use to anybody, and is not remembered as an upload."""

    async def handler(_: Heard) -> Say:
        return Say(200, {"ossPath": "x"})

    async with serving(handler) as base_url, VoiceClient(TOKEN, base_url=base_url) as client:
        for _ in range(2):
            with pytest.raises(UnexpectedReply, match="no fileID"):
                await client.upload_sample(wav())


@pytest.mark.slow  # backoffs of the upload
@pytest.mark.parametrize("source", ["path", "bytes", "stream"])
async def test_every_try_sends_the_whole_content(source: str, tmp_path: Path) -> None:
    """Dropped and failing uploads are repeated with all bytes, whatever the source; the server compares digests."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav(59))
    seen: list[str] = []

    async def handler(heard: Heard) -> Say:
        if "upload" not in heard.path:
            return Say(404)
        seen.append(sha256(heard.body))
        if len(seen) == 1:
            raise HangUp
        return Say(502) if len(seen) == 2 else Say(200, {"fileID": "f"})

    with path.open("rb") as stream:
        sample: Any = {"path": path, "bytes": wav(59), "stream": stream}[source]
        async with serving(handler) as base_url, VoiceClient(TOKEN, base_url=base_url) as client:
            assert (await client.upload_sample(sample)).file_id == "f"
    assert seen == [sha256(wav(59))] * 3


async def test_what_a_user_uploads_the_queue_knows() -> None:
    """A sample that went up by `upload_sample` does not go up again for a clone on that account."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    async with in_process(sandbox) as client:
        uploaded = await client.upload_sample(wav(), "a")
        await client.clone(ask(account="a"))
        assert client.statistics().uploads == 1
    assert [one.file_id for one in sandbox.uploads] == [uploaded.file_id]
    assert uploaded.account == "a"


async def test_upload_sample_rejects_before_it_sends(tmp_path: Path) -> None:
    """What is no sample is told as `SampleRejected`; the server hears nothing."""
    sandbox = Sandbox()
    async with over_loopback(sandbox) as client:
        for source in (tmp_path / "gone.mp3", b"text", wav(9), wav(61)):
            with pytest.raises(SampleRejected):
                await client.upload_sample(source)
        assert sandbox.requests.total() == 0


async def test_upload_sample_of_a_file_that_changes(tmp_path: Path) -> None:
    """A file that changes while it goes up is rejected as a sample, and the token is in no frame of the traceback."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav(59))
    went = anyio.Event()

    async def handler(heard: Heard) -> Say:
        raise HangUp

    async with serving(handler) as base_url, VoiceClient(TOKEN, base_url=base_url) as client:
        original = client._queue.uploads._book.inspect

        async def inspect_and_change(sample: Sample, field: str) -> Any:
            found = await original(sample, field)
            os.utime(path, ns=(1, 1))
            went.set()
            return found

        client._queue.uploads._book.inspect = inspect_and_change  # type: ignore[method-assign]
        with pytest.raises(SampleRejected, match="has changed since it was inspected") as raised:
            await client.upload_sample(path)
    assert raised.value.__cause__ is raised.value.__context__ is None


async def test_a_sample_that_changes_while_it_waits_fails_its_job_alone(tmp_path: Path) -> None:
    """Between submit and upload a file is rewritten: that job is refused and says so, the others are cloned."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    path = tmp_path / "a.wav"
    path.write_bytes(wav())
    async with over_loopback(sandbox) as client:
        jobs = await client.submit_many([ask("Bad", samples=[path]), *(ask(f"{n}", tone=n) for n in range(4))])
        path.write_bytes(b"no audio any more")
        error = await error_of(jobs[0])
        for job in jobs[1:]:
            await job
    assert isinstance(error, CloneRefused)
    assert "no longer what was submitted" in str(error)
    assert (error.voice_may_exist, error.safe_to_retry, error.attempts) == (False, False, 0)


async def test_a_sample_that_changes_on_an_old_account_does_not_end_a_clone(tmp_path: Path) -> None:
    """A job that has moved on is not ended by what becomes of its upload to the account it has left."""
    sandbox = Sandbox(accounts=["a", "b"], clone_s=0.1)
    async with in_process(sandbox) as client:
        started, change = anyio.Event(), anyio.Event()
        ensure = client._queue.uploads.ensure

        async def slow_on_a(samples: Any, account: str, fingerprints: Any = ()) -> tuple[str, ...]:
            if account == "a":
                started.set()
                await change.wait()
                raise SampleChanged("x.wav has changed")
            return await ensure(samples, account, fingerprints)

        client._queue.uploads.ensure = slow_on_a  # type: ignore[method-assign]
        job = await client.submit(ask())
        await started.wait()
        sandbox.break_account("a")
        pinned = await client.submit(ask("Pin", files=[sandbox.add_sample(account="a")]))
        assert isinstance(await error_of(pinned), AccountUnavailable)
        while job.state != "sent":
            await anyio.sleep(0.001)
        change.set()
        assert (await job).account == "b"


@virtual
async def test_an_upload_that_is_refused_ends_its_job() -> None:
    """A 400 for an upload, whatever its words, is that job's end, and the client's other jobs go on."""
    sandbox = Sandbox(accounts=["a"], clone_s=10)
    sandbox.fail("upload-sample", Fault.status(400, {"error": "Unsupported file format", "code": 400}))
    async with in_process(sandbox) as client:
        error = await error_of(await client.submit(ask("Ann")))
        assert (error.status_code, error.attempts) == (400, 0)
        await client.clone(ask("Ben"))
    assert len(sandbox.clones) == 1


@virtual
async def test_a_cancelled_job_does_not_wait_for_its_upload() -> None:
    """Its end is told at once; what its upload comes to afterwards changes nothing."""
    sandbox = Sandbox(accounts=["a"], clone_s=10, upload_s=5)
    async with in_process(sandbox) as client:
        for fault in (None, Fault.status(400, at="end"), Fault.status(503, at="end")):
            if fault is not None:
                sandbox.fail("upload-sample", fault)
            job = await client.submit(ask(tone=len(sandbox.requests)))
            await anyio.sleep(1)
            assert job.state == "uploading"
            begun_t = anyio.current_time()
            assert await job.cancel() == "cancelled"
            assert anyio.current_time() == begun_t
            await anyio.sleep(100)
        assert client.statistics().lanes[0].staged == 0
    assert sandbox.clones == ()


@virtual
async def test_uploads_that_fail_are_tried_for_a_while() -> None:
    """5xx on uploads ends a job after `unreachable_after_s`, and not while it comes back in time."""
    sandbox = Sandbox(accounts=["a"], clone_s=10)
    rule = sandbox.fail("upload-sample", Fault.status(503), times=None)
    async with in_process(sandbox, unreachable_after_s=30) as client:
        job = await client.submit(ask())
        error = await error_of(job)
        assert isinstance(error, ServerError)
        assert (error.status_code, error.safe_to_retry, error.voice_may_exist) == (503, True, False)
        assert 30 <= anyio.current_time() <= 60
        job = await client.submit(ask("Ben"))
        await anyio.sleep(20)
        rule.remove()
        await job


@virtual
async def test_a_failed_upload_is_forgotten_once_one_got_through() -> None:
    """Patience for a remote out of reach starts anew after a success: a clone's first failure is no end."""
    sandbox = Sandbox(accounts=["a"], clone_s=50)
    sandbox.fail("upload-sample", Fault.status(503), times=5)
    refused: list[float] = []

    class Wire(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("clone-voice") and b"Late" in await request.aread() and not refused:
                refused.append(anyio.current_time())
                raise httpx.ConnectError("refused")
            return await sandbox.transport().handle_async_request(request)

    async with (
        httpx.AsyncClient(transport=Wire()) as http,
        VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http, unreachable_after_s=30) as client,
    ):
        for name in ("Ann", "Ben"):
            await client.submit(ask(name, files=[sandbox.add_sample(account="a")]))
        late = await client.submit(ask("Late"))
        assert (await late).voice_name == "Late"
    assert refused[0] > 45


@pytest.mark.slow  # backoffs of the upload
async def test_a_closed_port_is_told_to_who_uploads() -> None:
    """`upload_sample` on a remote that is not there is `ServerError`, safe to retry."""
    async with VoiceClient(TOKEN, base_url=f"http://127.0.0.1:{closed_port()}") as client:
        with pytest.raises(ServerError, match="cannot be reached") as raised:
            await client.upload_sample(sample_paths()[0])
    assert raised.value.safe_to_retry


def test_a_request_error_is_what_rejections_are() -> None:
    """`except RequestInvalid` catches what a sample is rejected with."""
    assert issubclass(SampleRejected, RequestInvalid)
