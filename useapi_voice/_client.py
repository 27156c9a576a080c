"""`VoiceClient`: builds the parts, opens and closes them in order, and is the library's public face."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from enum import Enum
from types import ModuleType, TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
import anyio.lowlevel
import httpx

from . import _endpoints, _replies
from ._arguments import Arguments
from ._endpoints import Generation
from ._errors import (
    ConfigurationError,
    Fault,
    QueueClosed,
    RequestInvalid,
    SampleChanged,
    ServerError,
    UseapiVoiceError,
    request_invalid,
)
from ._events import CloneJob, EventStream, in_order_of_completion
from ._jobs import JobState
from ._models import (
    Account,
    AccountLoad,
    CloneRequest,
    Sample,
    SampleSource,
    UploadedSample,
    VoiceConfig,
    VoiceInfo,
    VoiceSlots,
    account_of,
)
from ._pictures import Statistics
from ._queue import CloneQueue
from ._roster import Roster
from ._samples import SampleBook
from ._settings import Settings
from ._transport import GenerationChoice, Secret, Transport, check_base_url, check_token
from ._witness import list_voices
from .stores import JobStore
from .stores.memory import MemoryStore

logger = logging.getLogger("useapi_voice")

T = TypeVar("T")

DEFAULT_BASE_URL: Final = "https://api.useapi.net/v1/minimax"
DELETE_GRACE_S: Final = 15.0
"""How long leaving `temporary_voice` tries to delete the voice, whatever else is going on."""


class _State(Enum):
    NEW = "has not been entered: use `async with VoiceClient(...) as client:`"
    OPEN = "is open already: enter it once, and share it between tasks"
    CLOSED = "is closed: make a new VoiceClient"


class VoiceClient:
    """
    Clones voices, at most two at a time per account, however many are asked for at once.

        async with VoiceClient() as client:
            voice = await client.clone(
                CloneRequest(voice_name="Doctor Who", language_tag="English", samples=["who-1.mp3"])
            )

    One client serves any number of tasks of one event loop. Make one per set of accounts: two clients do not know of
    each other's clones, and their caps would add up. It is entered once; every method raises `ConfigurationError`
    before that and in another event loop, and `QueueClosed` after it was left.

    Args:
        token: The useapi.net token, whole; `USEAPI_TOKEN` by default.
        base_url: `USEAPI_BASE_URL` by default, else `https://api.useapi.net/v1/minimax`. Plain http only to loopback.
        api: Generation of endpoints: `"audio"` (December 2024, marked decommissioned), `"speech"` (August 2026), or
            `"auto"`: audio, until its routes prove to be gone. `USEAPI_VOICE_API` by default, else `"auto"`.
        accounts: Names of the accounts to use; by default those that the remote lists, asked when first needed.
        max_parallel: Clones in progress per account, 1 or 2: the remote takes no more [D C24 to C26].
        store: Where jobs are kept: `None` for this process's memory, or the path of an SQLite file, which has one owner
            at a time. What `submit` returned then survives the process, and the next client of the file goes on with
            it.
            `postgresql://user:password@host/database` is a fleet: any number of processes on any number of hosts
            share the jobs, and each account's cap (extra `postgres`).
        sample_directory: In a fleet, a directory on a disk that all its hosts share, where samples are kept while jobs
            need them, instead of in the database. All processes must name the same; it belongs to this fleet alone.
        resume: Whether entering goes on with the jobs that the store holds; `False` only to look at them. Places that
            their requests may still occupy are left to them in either case.
        work: In a fleet, whether this client works on jobs, or only submits them and waits for what others make.
        http_client: Your own `httpx.AsyncClient` (proxy, certificates, HTTP/2). It is neither changed nor closed. Its
            connection pool should hold at least `max_parallel` connections per account and a few more.
        clone_timeout_s: Seconds that one clone request may take; the remote says up to 60 [D].
        settle_after_s: Seconds after which the remote is surely done with a clone whose answer was lost, and lists its
            voice if it made one: the longest clone (60 [D]) and the list's lag together must fit. Until then the clone
            occupies its place, and only after that do lists without the voice prove that there is none.
        queue_timeout_s: Seconds that a job may wait before its first request leaves; no limit by default.
        deadline_s: Seconds for all of a job; no limit by default. When it passes with a request in progress, the job
            ends as `DeadlineExceeded` with `voice_may_exist`; the request keeps its place until the truth is known.
        max_pending: Jobs that may wait; one more is `QueueFull`. No limit by default.
        max_resends: How often a clone may go again after it was proven that its lost attempt made nothing.
        unreachable_after_s: Seconds for which a job tries to reach a remote that cannot be connected to.
        look_again_after_s: Seconds between looks at an account that is out of order (596, 412) or has no slot.
        wait_when_blocked: Whether jobs that no account can serve (all out of order, or without slots) wait for one,
            instead of ending as `AccountUnavailable` or `VoiceSlotsFull`.
        close_grace_s: Seconds that leaving the client waits for clones in progress (5 at most when its body failed).
        keep_s: Seconds for which a job that has ended is remembered: in memory by its key, in a store whole.

    Raises:
        ConfigurationError: Names all arguments that are wrong, a missing token among them. Nothing is sent by making a
            client.
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        base_url: str | None = None,
        api: str | None = None,
        accounts: Sequence[str] | None = None,
        max_parallel: int = 2,
        store: str | os.PathLike[str] | None = None,
        sample_directory: str | os.PathLike[str] | None = None,
        resume: bool = True,
        work: bool = True,
        http_client: httpx.AsyncClient | None = None,
        clone_timeout_s: float = 120.0,
        settle_after_s: float = 75.0,
        queue_timeout_s: float | None = None,
        deadline_s: float | None = None,
        max_pending: int | None = None,
        max_resends: int = 2,
        unreachable_after_s: float = 30.0,
        look_again_after_s: float = 300.0,
        wait_when_blocked: bool = False,
        close_grace_s: float = 25.0,
        keep_s: float = 30 * 24 * 3600.0,
    ) -> None:
        # First, as a report with locals asks a client that was refused half way for its repr.
        self._state, self._base_url = _State.NEW, "unchecked"
        self._secret = Secret(os.environ.get("USEAPI_TOKEN") if token is None else token)
        token = None  # so that no traceback with locals shows it
        given = Arguments()
        given.taken(lambda: check_token(self._secret), self._secret)
        variable, url = _first("USEAPI_BASE_URL", base_url, DEFAULT_BASE_URL)
        checked_url = given.taken(lambda: check_base_url(url), self._base_url, variable=variable)
        variable, generation = _first("USEAPI_VOICE_API", api, "auto")
        self._choice = given.taken(
            lambda: GenerationChoice.of(generation), GenerationChoice.of("auto"), variable=variable
        )
        self._accounts = given.taken(lambda: _check_accounts(accounts), None)
        self._store = given.taken(lambda: _check_store(store), None)
        self._sample_directory = given.taken(lambda: _check_sample_directory(sample_directory, self._store), None)
        store = None  # a URL holds a password
        self._http_client = given.taken(lambda: _check_http_client(http_client), None)
        self._settings = Settings(
            max_parallel=given.one_of("max_parallel", max_parallel, (1, 2), ": the remote takes no more"),
            clone_timeout_s=given.seconds("clone_timeout_s", clone_timeout_s),
            settle_after_s=given.seconds("settle_after_s", settle_after_s),
            queue_timeout_s=given.seconds("queue_timeout_s", queue_timeout_s, may_be_none=True),
            deadline_s=given.seconds("deadline_s", deadline_s, may_be_none=True),
            max_pending=given.whole("max_pending", max_pending, least=1, may_be_none=True),
            max_resends=given.whole("max_resends", max_resends, least=0),
            unreachable_after_s=given.seconds("unreachable_after_s", unreachable_after_s, may_be_zero=True),
            look_again_after_s=given.seconds("look_again_after_s", look_again_after_s),
            wait_when_blocked=given.one_of("wait_when_blocked", wait_when_blocked, (True, False)),
            close_grace_s=given.seconds("close_grace_s", close_grace_s, may_be_zero=True),
            keep_s=given.seconds("keep_s", keep_s, may_be_zero=True),
            resume=given.one_of("resume", resume, (True, False)),
        )
        self._work = given.one_of("work", work, (True, False)) and resume
        given.raise_if_wrong()
        self._base_url = checked_url
        self._life: AbstractAsyncContextManager[None] | None = None
        self._loop: object = None

    def __repr__(self) -> str:
        return f"<VoiceClient {self._base_url} {self._state.name.lower()}>"

    # --- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._state is not _State.NEW:
            raise ConfigurationError(f"this VoiceClient {self._state.value}")
        self._state = _State.OPEN
        self._loop = anyio.lowlevel.current_token()
        self._life = self._live()
        try:
            await self._life.__aenter__()
        except BaseException:
            self._state = _State.CLOSED
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        assert self._life is not None  # noqa: S101 - entered, or Python would not call this
        try:
            return await self._life.__aexit__(exc_type, exc, tb)
        finally:
            self._state = _State.CLOSED

    @asynccontextmanager
    async def _live(self) -> AsyncGenerator[None, None]:
        transport = Transport(self._secret, self._base_url, self._choice, self._http_client, self._on_switch)
        book = SampleBook()
        store = self._open_store()
        self._transport = transport
        self._kept = store
        self._roster = Roster(transport, self._accounts)
        self._queue = CloneQueue(transport, book, self._roster, store, self._settings)
        try:
            with _alone():
                async with self._queue.open():
                    yield
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await store.aclose()
                finally:
                    # After the store, which announces the last endings; readers must learn of the end in any case.
                    self._queue.registry.hub.close()
                await book.aclose()
                await transport.aclose()

    def _open_store(self) -> JobStore:
        if isinstance(self._store, _Url):
            settings = self._settings
            fleet: JobStore = _fleet_module().PostgresStore(
                self._store.reveal(),
                keep_s=settings.keep_s,
                clone_timeout_s=settings.clone_timeout_s,
                settle_after_s=settings.settle_after_s,
                accounts=self._accounts,
                max_parallel=settings.max_parallel,
                sample_directory=self._sample_directory,
                work=self._work,
            )
            return fleet
        return _open_store(self._store, self._settings.keep_s)

    def _on_switch(self, generation: Generation) -> None:
        self._queue.registry.tell_of_client("generation", generation=generation.name)

    def _open_queue(self) -> CloneQueue:
        if self._state is not _State.OPEN:
            error = QueueClosed if self._state is _State.CLOSED else ConfigurationError
            raise error(f"this VoiceClient {self._state.value}")
        if anyio.lowlevel.current_token() != self._loop:
            raise ConfigurationError("this VoiceClient belongs to another event loop: make one in each loop")
        return self._queue

    async def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        return await self._open_queue().run_owned(work)

    # --- cloning -----------------------------------------------------------------------------------------------------

    async def clone(self, request: CloneRequest) -> VoiceInfo:
        """
        Clone one voice, and wait for it. The same as `await (await client.submit(request))`.

        Raises:
            RequestInvalid: The request has faults; nothing was sent.
            CloneError: There is no voice; the leaf says why, and whether to try again.
            QueueClosed: The client is closed.
            QueueFull: `max_pending` jobs wait already.

        Cancelling the wait does not cancel the clone: use `submit` and `CloneJob.cancel` for that.
        """
        return await (await self.submit(request))

    async def submit(
        self,
        request: CloneRequest,
        *,
        key: str | None = None,
        priority: int = 0,
        queue_timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> CloneJob:
        """
        Accept one request into the queue.

        Args:
            request: The voice to make.
            key: Your own name for it. The same key with the same request gives the same job, whatever became of it;
                with another request it is an error.
            priority: A whole number. Higher goes first; equals go first in, first out.
            queue_timeout_s: Seconds that it may wait before its first request leaves; the client's by default.
            deadline_s: Seconds for all of it; the client's by default.

        Returns:
            The job, accepted: await it for the voice.

        Raises:
            RequestInvalid: All faults of the request, or the key belongs to another; nothing was sent or kept.
            ConfigurationError: The client is not open here, or an argument is not what it must be.
            SampleRejected: The same, where all faults lie in samples.
            AuthenticationError: The remote was asked for its languages, and refused the token.
            QueueClosed: The client is closed, closing or draining.
            QueueFull: `max_pending` jobs wait already.
            StoreError: The store could not keep it.

        Cancelled before it returns, no job exists.
        """
        jobs = await self.submit_many(
            [request],
            keys=None if key is None else [key],
            priority=priority,
            queue_timeout_s=queue_timeout_s,
            deadline_s=deadline_s,
        )
        return jobs[0]

    async def submit_many(
        self,
        requests: Iterable[CloneRequest],
        *,
        keys: Sequence[str | None] | None = None,
        priority: int = 0,
        queue_timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> list[CloneJob]:
        """
        Accept requests into the queue: all of them, or none.

        Args:
            requests: The voices to make.
            keys: A key for each, in order; see `submit`.
            priority: Of all of them.
            queue_timeout_s: Of each of them.
            deadline_s: Of each of them.

        Returns:
            Their jobs, in order.

        Raises:
            RequestInvalid: All faults of all requests, each with its place in the batch; nothing was sent or kept.
            ConfigurationError: See `submit`, as for the others.
            AuthenticationError: See `submit`.
            QueueClosed: See `submit`.
            QueueFull: See `submit`.
            StoreError: See `submit`.
        """
        queue = self._open_queue()
        requests = _check_requests(requests)
        keys = [None] * len(requests) if keys is None else _check_keys(keys, len(requests))
        given = Arguments()
        given.whole("priority", priority)
        given.seconds("queue_timeout_s", queue_timeout_s, may_be_none=True)
        given.seconds("deadline_s", deadline_s, may_be_none=True)
        given.raise_if_wrong()
        settings = self._settings
        return await queue.submit(
            requests,
            keys=keys,
            priority=priority,
            queue_timeout_s=settings.queue_timeout_s if queue_timeout_s is None else queue_timeout_s,
            deadline_s=settings.deadline_s if deadline_s is None else deadline_s,
        )

    def as_completed(self, jobs: Iterable[CloneJob]) -> AsyncIterator[CloneJob]:
        """
        Yield each job once it has ended, in the order in which they end; await it then for its voice or error.

        Raises:
            ConfigurationError: What was given is no list of jobs.

        Left early or cancelled, it leaves the jobs as they are.
        """
        return in_order_of_completion(jobs)

    def job(self, key: str) -> CloneJob | None:
        """Return the job of this key, or `None`: with a store, also one of an earlier life, ended or not."""
        return self._open_queue().find(key)

    async def find(self, key: str) -> CloneJob | None:
        """
        Return the job of this key, or `None`. In a fleet it is found whichever process submitted it, where `job` knows
        only those of this client.

        Raises:
            StoreError: The store cannot be read.
        """
        return await self._open_queue().look_up(key)

    async def jobs(self, state: JobState | str | None = None, *, key: str | None = None) -> AsyncIterator[CloneJob]:
        """
        Yield jobs, in the order in which they were submitted: with a store all that it holds, else those of this client
        that have not ended or have a key.

        Args:
            state: Only those in this state.
            key: Only the one of this key.

        Raises:
            ConfigurationError: There is no such state.
            StoreError: The store cannot be read.
        """
        queue = self._open_queue()
        if state is not None and state not in list(JobState):
            raise ConfigurationError(f"state must be one of {', '.join(JobState)}, not {state!r}")
        wanted = None if state is None else JobState(state)
        if key is not None:
            job = queue.find(key)
            if job is not None and wanted in {None, job.state}:
                yield job
            return
        async with aclosing(queue.jobs(wanted)) as jobs:
            async for job in jobs:
                yield job

    async def forget(self, job: CloneJob) -> bool:
        """
        Forget a job that has ended, and its key with it.

        Returns:
            Whether it was known, and had ended.

        Raises:
            StoreError: The store cannot be written.
        """
        return await self._open_queue().forget(job._job)

    async def export(self) -> AsyncIterator[dict[str, Any]]:
        """
        Yield the jobs of the store with their histories, as plain data for `json.dumps`; nothing without a store.

        Raises:
            StoreError: The store cannot be read.
        """
        self._open_queue()
        async with aclosing(self._kept.export()) as rows:
            async for row in rows:
                yield row

    async def drain(self, timeout_s: float | None = None) -> tuple[CloneJob, ...]:
        """
        Start nothing new, and wait for the clones in progress.

        Args:
            timeout_s: Seconds to wait at the most.

        Returns:
            The jobs that are left: those that were not sent, and those still in progress. They end when the client is
            left; nothing can be submitted after a drain.
        """
        return await self._open_queue().drain(timeout_s)

    # --- watching ----------------------------------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """Return a frozen picture of the queue."""
        return self._open_queue().statistics()

    def events(self) -> EventStream:
        """Return the stream of what happens from now on, to jobs and accounts; it ends when the client is left."""
        return self._open_queue().registry.hub.subscribe()

    # --- the other endpoints -----------------------------------------------------------------------------------------

    async def upload_sample(self, sample: Sample | SampleSource, account: str | None = None) -> UploadedSample:
        """
        Upload a sample, unless this client uploaded the same content to this account before.

        Args:
            sample: A path, `bytes`, a binary file object or a `Sample`: mp3 or wav, 10 to 60 s.
            account: Where to; needed with several accounts [D U24, U26].

        Returns:
            Its `file_id`, for `CloneRequest.files`.

        Raises:
            SampleRejected: It is not fit; nothing was sent.
            ApiError: The remote would not take it.

        Cancelling the wait does not stop the upload.
        """
        wrapped = sample if isinstance(sample, Sample) else Sample(sample)
        try:
            return await self._call(lambda: self._queue.uploads.upload(wrapped, account or "", "samples[0]"))
        except SampleChanged as error:
            fault = Fault("samples[0]", str(error), "upload it again when nobody writes to it any more")
        raise request_invalid([fault])

    async def config(self, account: str | None = None) -> VoiceConfig:
        """
        Return the languages and tags that the remote knows [D K25].

        Args:
            account: As this account sees them; by default as the first that is in order does.

        Raises:
            ApiError: It would not say.
        """
        if account is None:
            known = await self._call(self._roster.all)
            account = next((found.account for found in known if found.usable), None)
        return _replies.read_config(await self._ask(lambda generation: _endpoints.config(generation, account)))

    async def accounts(self) -> tuple[Account, ...]:
        """
        Return the upstream accounts of this token, broken ones included [D A25].

        Raises:
            ApiError: The remote would not say.
        """
        return await self._call(self._roster.fetch)

    async def loads(self) -> tuple[AccountLoad, ...]:
        """
        Return what the accounts are doing [D H25, JS-S]; whether clones count in it is undocumented.

        Raises:
            ApiError: The remote would not say.
        """
        return _replies.read_loads(await self._ask(lambda generation: _endpoints.scheduler_available()))

    async def slots(self, account: str | None = None) -> VoiceSlots:
        """
        Return how many voice slots an account uses [D Q26]; only the speech generation can tell, and only as advice.

        Raises:
            ApiError: The remote would not say.
        """
        return _replies.read_slots(await self._ask(lambda generation: _endpoints.equity(account)))

    async def voices(
        self,
        cloned: bool = True,  # noqa: FBT001, FBT002 - the public face is fixed
        *,
        account: str | None = None,
        tag_list: Sequence[str] = (),
    ) -> AsyncIterator[VoiceInfo]:
        """
        Yield voices, over all pages.

        Args:
            cloned: Cloned voices, or the built-in ones (600 and more).
            account: Of which account; all that are known by default, one after the other.
            tag_list: Tags that the voices must bear, matched exactly; an unknown tag is ignored by the remote [D V26].

        Raises:
            ApiError: A page could not be had; the list is incomplete then.
        """
        self._open_queue()
        names: list[str | None] = [account]
        if account is None:
            known = await self._call(self._roster.all)
            names = [found.account for found in known if found.usable] or [None]
            # The built-in voices are the same for all [I], but with several accounts one must be named [D V24].
            names = names if cloned else names[:1]
        for name in names:
            listed = await self._call(lambda name=name: self._list(name, cloned=cloned, tag_list=tag_list))  # type: ignore[misc]
            for voice in listed:
                yield voice

    async def _list(self, account: str | None, *, cloned: bool, tag_list: Sequence[str]) -> list[VoiceInfo]:
        async with aclosing(list_voices(self._transport, account, cloned=cloned, tag_list=tag_list)) as listed:  # type: ignore[type-var]
            return [voice async for voice in listed]

    async def delete_voice(self, voice_id: str, account: str | None = None) -> None:
        """
        Delete a cloned voice. One that does not exist counts as deleted [D X24, X26].

        Args:
            voice_id: As a clone or a list gave it.
            account: Its account; read from the id where it is wrapped.

        Raises:
            ConfigurationError: The id is empty, or no id.
            ApiError: The remote would not.
        """
        if not _is_name(voice_id):
            raise ConfigurationError(f"voice_id must be that of a voice, as its VoiceInfo gave it, not {voice_id!r}")
        owner = account or account_of(voice_id)
        await self._call(lambda: self._queue.delete(voice_id, owner))

    @asynccontextmanager
    async def temporary_voice(self, request: CloneRequest) -> AsyncGenerator[VoiceInfo, None]:
        """
        Clone a voice for the length of a block: it is deleted on the way out, also when the block fails or is
        cancelled.

        Raises:
            CloneError: As `clone` does.
            ApiError: The voice could not be deleted; it still exists. Raised only where the block itself did not fail.
        """
        voice = await self.clone(request)
        try:
            yield voice
        except BaseException:
            with anyio.move_on_after(DELETE_GRACE_S, shield=True):
                await self._delete_quietly(voice)
            raise
        with anyio.move_on_after(DELETE_GRACE_S, shield=True) as grace:
            await self.delete_voice(voice.voice_id, voice.account)
        if grace.cancelled_caught:
            message = f"voice {voice.voice_id} was not deleted within {DELETE_GRACE_S:g} s, and may still exist"
            raise ServerError(message, account=voice.account, voice_name=voice.voice_name, safe_to_retry=True)

    async def _delete_quietly(self, voice: VoiceInfo) -> None:
        try:
            await self.delete_voice(voice.voice_id, voice.account)
        except UseapiVoiceError:
            logger.warning("temporary voice %s could not be deleted", voice.voice_id)

    async def prune(self, prefix: str, *, account: str | None = None, dry_run: bool = True) -> tuple[VoiceInfo, ...]:
        """
        Delete the cloned voices whose names begin with `prefix`.

        Args:
            prefix: At least one character.
            account: Of which account; all by default.
            dry_run: Only tell which they are.

        Returns:
            The voices that were, or would be, deleted.

        Raises:
            ConfigurationError: The prefix is empty.
            ApiError: The voices could not be listed (nothing was deleted), or one could not be deleted.
        """
        if not prefix:
            raise ConfigurationError("prune needs a prefix: an empty one would delete every cloned voice")
        found = [v async for v in self.voices(account=account) if (v.voice_name or "").startswith(prefix)]
        if not dry_run:
            for voice in found:
                await self.delete_voice(voice.voice_id, voice.account)
        return tuple(found)

    async def _ask(self, build: Callable[[Generation], _endpoints.Call]) -> object:
        return await self._call(lambda: self._transport.ask(build))


def _check_requests(requests: Iterable[CloneRequest]) -> list[CloneRequest]:
    if isinstance(requests, CloneRequest):  # of pydantic, and so iterable: over its fields
        raise ConfigurationError("submit_many takes several requests: submit_many([request]), or submit(request)")
    if not hasattr(requests, "__iter__"):
        raise ConfigurationError(f"submit_many takes a list of CloneRequests, not {type(requests).__name__}")
    requests = list(requests)
    for request in requests:
        if not isinstance(request, CloneRequest):  # pyright: ignore[reportUnnecessaryIsInstance] - not all are typed
            raise ConfigurationError(f"submit takes a CloneRequest, not {type(request).__name__}")
    return requests


def _check_keys(keys: Sequence[str | None], count: int) -> list[str | None]:
    if isinstance(keys, str) or not hasattr(keys, "__iter__"):
        raise ConfigurationError(f"keys must be a list with a key for each request, not {type(keys).__name__}")
    keys = list(keys)
    if len(keys) != count:
        raise ConfigurationError(f"{len(keys)} keys for {count} requests: give one for each, or none")
    faults = [
        Fault("key", f"{key!r} is no name", "give a key of one or more printable characters")
        for key in keys
        if key is not None and not (_is_name(key) and key.isprintable())
    ]
    if faults:
        raise RequestInvalid(faults)
    return keys


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _first(variable: str, given: str | None, default: str) -> tuple[str | None, str]:
    """Return what counts of an argument, a variable of the environment and a default, and that variable if it does."""
    if given:
        return None, given
    named = os.environ.get(variable)
    return (variable, named) if named else (None, default)


def _check_accounts(accounts: Sequence[str] | None) -> tuple[str, ...] | None:
    if accounts is None:
        return None
    if isinstance(accounts, str):
        raise ConfigurationError(f"accounts must be a list of names: accounts=[{accounts!r}]")
    # As not all callers are typed: anything may be here.
    names: tuple[Any, ...] = tuple(accounts) if hasattr(accounts, "__iter__") else (accounts,)
    if not all(isinstance(name, str) for name in names):
        raise ConfigurationError("accounts must be a list of names, each a str: accounts=['...']")
    if not names or not all(name.strip() for name in names):
        raise ConfigurationError("accounts must name at least one account, and none may be empty; or leave it out")
    return tuple(dict.fromkeys(names))


def _check_http_client(http_client: httpx.AsyncClient | None) -> httpx.AsyncClient | None:
    if not isinstance(http_client, httpx.AsyncClient | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"http_client must be an httpx.AsyncClient, not {type(http_client).__name__}")
    return http_client


class _Url:
    """Of a database; it holds a password, and is shown nowhere."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "<URL of a database>"

    def reveal(self) -> str:
        return self._text


def _fleet_module() -> ModuleType:
    try:
        from .stores import postgres
    except ModuleNotFoundError as error:
        if error.name not in {"asyncpg", "pgqueuer"}:
            raise
        message = "the fleet store needs its extra: pip install 'useapi-voice[postgres]'"
        raise ConfigurationError(message) from None
    return postgres


def _check_store(store: str | os.PathLike[str] | None) -> str | _Url | None:
    if store is None:
        return None
    if not isinstance(store, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"store must be the path of a file or a postgresql:// URL, not {type(store).__name__}")
    path = os.fsdecode(store)
    scheme, is_url, _ = path.partition("://")
    if is_url and scheme.lower() in {"postgresql", "postgres"}:
        _fleet_module()
        return _Url(path)
    if is_url:
        # What follows the scheme may be a password.
        raise ConfigurationError(f"store must be the path of a file or a postgresql:// URL, and not one of {scheme}")
    if path == ":memory:":
        raise ConfigurationError("store names no file: to keep jobs in memory, leave it out")
    if not path:
        raise ConfigurationError("store is empty: give the path of a file, or leave it out")
    return path


def _check_sample_directory(directory: str | os.PathLike[str] | None, store: str | _Url | None) -> str | None:
    if directory is None:
        return None
    if not isinstance(store, _Url):
        raise ConfigurationError(
            "sample_directory is where the processes of a fleet share their samples: give it with "
            "store='postgresql://...', or leave it out"
        )
    path = os.fspath(directory)
    if not path:
        raise ConfigurationError("sample_directory is empty: give a path, or leave it out")
    return path


def _open_store(store: str | None, keep_s: float) -> JobStore:
    if store is None:
        return MemoryStore()
    # Imported here because most services need no file.
    from .stores.sqlite import SqliteStore

    return SqliteStore(store, keep_s=keep_s)


@contextmanager
def _alone() -> Generator[None, None, None]:
    """Let an error out as itself where a task group wrapped it alone, so that `except` around `async with` works."""
    try:
        yield
    except BaseExceptionGroup as group:
        error, *others = group.exceptions
        if others:
            raise
        # One level only: what is inside may be a group of the user's own.
        raise error from error.__cause__
