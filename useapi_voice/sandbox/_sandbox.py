"""
`Sandbox`: the settings, the two skins and the truth the server keeps, in one object; rules and
state live below it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Self, TypedDict, Unpack

import anyio

from ._api import (
    BASE_PATH,
    ENDPOINTS,
    GENERATIONS,
    SHORT_NAMES,
    Api,
    OverCap,
    ReplyShape,
    Retired,
    Rules,
    utc_now,
)
from ._faults import Fault, FaultRule
from ._server import listen, serve_listener
from ._transport import SandboxTransport
from ._world import (
    Account,
    Breach,
    CloneRecord,
    Generation,
    IdForm,
    SandboxStatistics,
    Seconds,
    UploadRecord,
    VoiceRecord,
    World,
)

LANGUAGES = (
    "English",
    "Chinese (Mandarin)",
    "Spanish",
    "French",
    "German",
    "Italian",
    "Portuguese",
    "Japanese",
    "Korean",
    "Arabic",
)
TOKEN = "user:4242-sandboxtoken000000000000000000000"  # noqa: S105 - made up; it opens nothing but a sandbox
_FIRST_ACCOUNT = 335577991122334455


class SandboxOptions(TypedDict, total=False):
    """The settings of `Sandbox`, for functions that pass them on."""

    accounts: int | Sequence[str]
    clone_s: Seconds
    upload_s: Seconds
    max_parallel: int
    over_cap: OverCap
    slots: int | None
    generations: Collection[Generation]
    only: Collection[str] | None
    retired: Retired
    token: str
    languages: Sequence[str]
    check_audio: bool
    seed: int
    list_lag_s: float
    clock_skew_s: float
    unique_names: bool
    system_voices: int
    page_size: int
    page_clones: bool
    mixed_list: bool
    equity_offset: int
    id_form: IdForm | None
    reply_shape: ReplyShape
    strict_account_param: bool
    clone_needs_account: bool
    without_audio: Collection[str]
    epoch: datetime | None


class Sandbox:
    """
    The useapi.net MiniMax voice API in a box: one world, reached in process or over a loopback server.

    `async with Sandbox(...) as sandbox:` serves at `sandbox.base_url` until the block ends; an exception of the block
    comes out as itself, and an exception inside the server is raised at the end of the block.
    `Sandbox(...).transport()` reaches the same world without a server or a block, in virtual time too. A sandbox
    belongs to one event loop, and its time begins when that loop first looks at it.

    The marks in brackets give the level and source of a fact: D documented, S documented for a sibling API, I inferred.
    """

    def __init__(
        self,
        *,
        accounts: int | Sequence[str] = 1,
        clone_s: Seconds = 20.0,
        upload_s: Seconds = 0.0,
        max_parallel: int = 2,
        over_cap: OverCap = "429",
        slots: int | None = None,
        generations: Collection[Generation] = GENERATIONS,
        only: Collection[str] | None = None,
        retired: Retired = "404",
        token: str = TOKEN,
        languages: Sequence[str] = LANGUAGES,
        check_audio: bool = True,
        seed: int = 0,
        list_lag_s: float = 0.0,
        clock_skew_s: float = 0.0,
        unique_names: bool = False,
        system_voices: int = 12,
        page_size: int = 500,
        page_clones: bool = True,
        mixed_list: bool = False,
        equity_offset: int = 0,
        id_form: IdForm | None = None,
        reply_shape: ReplyShape = "flat",
        strict_account_param: bool = True,
        clone_needs_account: bool = False,
        without_audio: Collection[str] = (),
        epoch: datetime | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """
        Describe the server; nothing is opened before `async with`.

        Args:
            accounts: Names of the configured accounts, or how many to make up (18 digits each).
            clone_s: Seconds a clone takes: a number, a (low, high) range drawn from the dice, or a callable of the
                voice name [D Q26: about 20, C26: up to 60].
            upload_s: Seconds an upload takes to be answered, in the same forms; a callable gets the account.
            max_parallel: Clones an account takes at a time [D C26: "one or two"; per account I].
            over_cap: What a clone request above that gets: "429" or "400" and no place, or "allow". Each is recorded as
                a breach. Undocumented [I].
            slots: Voice slots of each account; None is no limit. A full account refuses at the end of a clone [D Q26],
                with 2600010 [D C26].
            generations: Which of "audio" and "speech" are offered.
            only: Offer only these endpoints, by full name such as "audio/clone-voice"; any other answers 404. None
                offers all.
            retired: What a generation that is not offered answers: 404, 405, 410, or "error", a 400 that says
                decommissioned. Undocumented [I].
            token: The API token, `user:<number>-<string>`; the number goes into ids.
            languages: Valid values of `language_tag`.
            check_audio: Whether an upload must be audio by its content, fit its content type, and last 10 to 60 s [D
                U24, U26].
            seed: Seed of the sandbox's dice.
            list_lag_s: Seconds from the making of a voice until the list shows it [I].
            clock_skew_s: Seconds by which the server's clock (`Date`, `create_time`) is ahead of the real one; negative
                is behind.
            unique_names: Whether a name already in use on the account, by a voice or a clone in progress, is refused
                with 400 [I].
            system_voices: How many built-in voices there are.
            page_size: Voices on a page when the request does not say [D V24: 500].
            page_clones: Whether speech/voices lists clones by pages [I]; audio/voices lists them all at once [D V25a].
            mixed_list: Whether a list without `is_system` shows clones after the built-in voices [D JS-S, against V26].
            equity_offset: Added to `used` of speech/equity, which is advisory and may exceed `total` [D C26].
            id_form: Tag in ids of cloned voices: "audio" [D C25b], "voice" [D X26], "bare" digits [D C24]; None follows
                the generation of the clone.
            reply_shape: Body of audio/clone-voice: "flat" [D C25b] or "wrapped" [D C24].
            strict_account_param: Whether speech/clone-voice refuses `account`, as speech/delete-voice does [D X26; I
                for the clone].
            clone_needs_account: Whether audio/clone-voice requires `account` with several accounts [D C24, C25b;
                dropped in C25c].
            without_audio: Accounts without an audio subscription: 412 for uploads and clones [I].
            epoch: Wall clock at the start, an aware datetime; None is the real time then. Wall time is this plus the
                event loop's elapsed time.
            host: Address the server binds.
            port: Port the server binds; 0 is any free one.

        Raises:
            ValueError: A setting makes no sense; the message names it.
        """
        names = (
            tuple(str(_FIRST_ACCOUNT + index) for index in range(accounts))
            if isinstance(accounts, int)
            else tuple(accounts)
        )
        _check_settings(names, max_parallel, languages, generations, only, without_audio, epoch)
        user = re.match(r"user:(\d+)-", token)
        self.token = token
        """The API token that this server takes."""
        self._epoch_given = epoch is not None
        start = epoch if epoch is not None else utc_now()
        self._world = World(
            accounts=names,
            without_audio=without_audio,
            user_id=user[1] if user else "4242",
            dice=random.Random(seed),
            clone_s=clone_s,
            max_parallel=max_parallel,
            slots=slots,
            id_form=id_form,
            epoch_ms=(start.timestamp() + clock_skew_s) * 1000,
        )
        rules = Rules(
            token=token,
            upload_s=upload_s,
            over_cap=over_cap,
            generations=frozenset(generations),
            only=None if only is None else frozenset(only),
            retired=retired,
            languages=tuple(languages),
            check_audio=check_audio,
            list_lag_s=list_lag_s,
            clock_skew_s=clock_skew_s,
            unique_names=unique_names,
            system_voices=system_voices,
            page_size=page_size,
            page_clones=page_clones,
            mixed_list=mixed_list,
            equity_offset=equity_offset,
            reply_shape=reply_shape,
            strict_account_param=strict_account_param,
            clone_needs_account=clone_needs_account,
        )
        self._api = Api(self._world, rules, start)
        self._host, self._port = host, port
        self._base_url = f"https://sandbox.invalid{BASE_PATH}"
        self._start_t: float | None = None
        self._errors: list[Exception] = []
        self._running: AbstractAsyncContextManager[None] | None = None

    # -- skins

    @property
    def api(self) -> Api:
        """The rules, for skins."""
        return self._api

    @property
    def base_url(self) -> str:
        """
        Where the API is.

        Before the server runs, it is a made-up address that only `transport()` answers.
        """
        return self._base_url

    def transport(self) -> SandboxTransport:
        """Give an httpx transport to this world, for `httpx.AsyncClient(transport=..., base_url=sandbox.base_url)`."""
        return SandboxTransport(self)

    async def __aenter__(self) -> Self:
        """Start the loopback server; a sandbox is opened once."""
        if self._running is not None:
            raise RuntimeError("This Sandbox has been opened before; make a new one, a sandbox is opened once.")
        self._running = self._serving()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """
        Stop the server and close all its connections.

        Raises what went wrong inside it, unless the block has failed itself.
        """
        if self._running is None:
            raise RuntimeError("This Sandbox was never opened; use `async with Sandbox(...) as sandbox:`.")
        return await self._running.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None, None]:
        self.now()
        listener = listen(self._host, self._port)
        host, port = listener.getsockname()[:2]
        self._base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}{BASE_PATH}"
        body_error: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve_listener, listener, self, self._errors.append, name="sandbox server")
                try:
                    yield
                except BaseException as error:
                    body_error = error
                    raise
                finally:
                    self.now()
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The caller's own exception comes out as itself, whatever the task group has wrapped around it; a block
            # that was only cancelled, because the server broke, has none.
            if body_error is None or isinstance(body_error, anyio.get_cancelled_exc_class()):
                body_error = _only(group)
        if body_error is not None:
            raise body_error
        self.check()

    def check(self) -> None:
        """
        Raise what went wrong inside the server so far, and forget it.

        One exception comes as itself, several as an `ExceptionGroup`.
        """
        errors, self._errors[:] = list(self._errors), []
        if len(errors) > 1:
            raise ExceptionGroup("several requests failed inside the sandbox", errors)
        if errors:
            raise errors[0]

    # -- time

    def now(self) -> float:
        """
        Give seconds since the sandbox started, and let everything happen that is due.

        Outside an event loop it is the time last seen.
        """
        try:
            loop_t = anyio.current_time()
        except RuntimeError:  # no event loop: sandboxes are looked at after their loop has ended
            return self._world.t
        if self._start_t is None:
            self._start_t = loop_t
            if not self._epoch_given:
                self._set_epoch(utc_now())
        return self._world.advance(loop_t - self._start_t)

    def _set_epoch(self, epoch: datetime) -> None:
        self._api.epoch = epoch
        self._world.epoch_ms = (epoch.timestamp() + self._api.rules.clock_skew_s) * 1000

    # -- what the server knows

    @property
    def accounts(self) -> tuple[str, ...]:
        """The names of the configured accounts."""
        return tuple(self._world.accounts)

    def voices(self, account: str | None = None) -> tuple[VoiceRecord, ...]:
        """Give the cloned voices that exist now, oldest first, of one account or of all."""
        self.now()
        names = self._world.accounts if account is None else (self._account(account).name,)
        return tuple(voice for name in names for voice in self._world.accounts[name].voices.values())

    @property
    def clones(self) -> tuple[CloneRecord, ...]:
        """Every clone begun so far, in the order of their beginnings."""
        self.now()
        return tuple(clone.record() for clone in self._world.clones)

    @property
    def uploads(self) -> tuple[UploadRecord, ...]:
        """Every stored sample, in the order in which they were stored."""
        return tuple(self._world.samples.values())

    @property
    def breaches(self) -> tuple[Breach, ...]:
        """Every clone request that came while its account was full: what a client that keeps the cap never causes."""
        return tuple(self._world.breaches)

    @property
    def max_parallel_seen(self) -> dict[str, int]:
        """
        For each account, the most clones that were in progress at once.

        Refused requests do not count; see `breaches`.
        """
        return {account.name: account.max_parallel_seen for account in self._world.accounts.values()}

    def in_progress(self, account: str | None = None) -> int:
        """Count the clones in progress now, of one account or of all."""
        self.now()
        if account is not None:
            return len(self._account(account).running)
        return sum(len(one.running) for one in self._world.accounts.values())

    def busy_s(self, account: str) -> float:
        """Give the place-seconds used so far: the sum over all clones of the time each was in progress."""
        return self._account(account).busy_s(self.now())

    @property
    def requests(self) -> Counter[str]:
        """
        Requests by endpoint, such as "audio/clone-voice", whatever they were answered.

        Unknown routes are "other".
        """
        return Counter(self._api.requests)

    def count(self, endpoint: str) -> int:
        """
        Count the requests to an endpoint.

        It is a full name, or a name without generation, such as "clone-voice", for both.
        """
        return sum(
            number
            for name, number in self._api.requests.items()
            if name == endpoint or _without_generation(name) == endpoint
        )

    def statistics(self) -> SandboxStatistics:
        """Give a frozen summary."""
        self.now()
        return self._world.statistics(self._api.requests)

    def __repr__(self) -> str:
        """Say where it is and what is in it, without the token."""
        world = self._world
        return (
            f"<Sandbox {self._base_url} accounts={len(world.accounts)} clones={len(world.clones)} "
            f"requests={self._api.requests.total()} breaches={len(world.breaches)}>"
        )

    # -- what a test may do to it

    def fail(
        self,
        on: str,
        fault: Fault,
        *,
        account: str | None = None,
        voice_name: str | None = None,
        nth: int | None = None,
        times: int | None = 1,
        probability: float | None = None,
    ) -> FaultRule:
        """
        Plan a fault.

        Args:
            on: Endpoint: a full name such as "speech/voices", a name for both generations such as "clone-voice", or "*"
                for all.
            fault: What happens.
            account: Only requests that concern this account.
            voice_name: Only clones of this name.
            nth: Only from the nth such request on (1 is the first), counted from now; with `times=1` exactly the nth.
            times: How many requests it strikes; None is all.
            probability: Strike each with this probability, 0 to 1, by the sandbox's dice.

        Returns:
            The rule: `hits` counts, `remove()` ends it. Only requests that would be served are counted and struck; the
            oldest rule goes first.

        Raises:
            ValueError: There is no such endpoint or account, or a number makes no sense.
        """
        if on != "*" and on not in SHORT_NAMES:
            raise ValueError(f"on={on!r} is no endpoint; use '*' or one of {sorted(SHORT_NAMES)}")
        if account is not None:
            self._account(account)
        if (nth is not None and nth < 1) or (times is not None and times < 1):
            raise ValueError(f"nth={nth} and times={times} must be at least 1 or None")
        if probability is not None and not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} must be from 0 to 1")
        rule = FaultRule(on, fault, account, voice_name, nth, times, probability)
        self._api.faults.add(rule)
        return rule

    def set_max_parallel(self, max_parallel: int, account: str | None = None) -> None:
        """
        Change the cap of an account, or of all: "one or two" [D C26] may be either, and may change.

        Clones in progress go on; only requests from now on are measured by it.
        """
        _check_max_parallel(max_parallel)
        for name in self._world.accounts if account is None else (account,):
            self._account(name).max_parallel = max_parallel

    def break_account(self, account: str, error: str = "Session rejected, update the account") -> None:
        """Break an account: 596 for every call of it, and `error` in GET accounts, until `repair`."""
        self._account(account).error = error

    def repair(self, account: str) -> None:
        """Repair an account, as POST accounts would."""
        self._account(account).error = None

    def add_sample(self, content: bytes = b"", account: str | None = None) -> str:
        """
        Store a sample, unchecked, as if it had been uploaded before, and give its fileID.

        No account means the first.
        """
        self.now()
        name = self._first(account)
        sha256 = hashlib.sha256(content).hexdigest()
        sample = self._world.add_sample(
            name, sha256=sha256, size_bytes=len(content), content_type="audio/mpeg", duration_s=None
        )
        return sample.file_id

    def add_voice(
        self,
        voice_name: str,
        account: str | None = None,
        *,
        language_tag: str = "English",
        generation: Generation = "audio",
    ) -> VoiceRecord:
        """Put a cloned voice on an account as if it had been made before; no account means the first."""
        self.now()
        return self._world.add_voice(self._first(account), voice_name, language_tag, (), generation)

    def _first(self, account: str | None) -> str:
        return next(iter(self._world.accounts)) if account is None else self._account(account).name

    def _account(self, name: str) -> Account:
        account = self._world.accounts.get(name)
        if account is None:
            raise ValueError(f"account {name!r} is not configured; there are {', '.join(self._world.accounts)}")
        return account


async def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    on_ready: Callable[[Sandbox], None] | None = None,
    **options: Unpack[SandboxOptions],
) -> None:
    """
    Serve a sandbox until cancelled.

    Args:
        host: Address to bind.
        port: Port to bind; 0 is any free one, see `base_url`.
        on_ready: Called once with the sandbox when it takes connections.
        options: The other settings of `Sandbox`.

    Cancelled, it closes all connections. An exception inside a request ends only that request's connection and is
    raised when the server stops.
    """
    async with Sandbox(host=host, port=port, **options) as sandbox:
        if on_ready is not None:
            on_ready(sandbox)
        await anyio.sleep_forever()


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _without_generation(endpoint: str) -> str:
    generation, _, name = endpoint.partition("/")
    return name if generation in GENERATIONS else endpoint


def _check_max_parallel(max_parallel: int) -> None:
    if max_parallel < 1:
        raise ValueError(f"max_parallel={max_parallel} must be at least 1")


def _check_settings(
    names: tuple[str, ...],
    max_parallel: int,
    languages: Sequence[str],
    generations: Iterable[str],
    only: Collection[str] | None,
    without_audio: Iterable[str],
    epoch: datetime | None,
) -> None:
    if not names or len(set(names)) < len(names) or any(not name or "/" in name or ":" in name for name in names):
        raise ValueError(f"accounts={names!r} must name at least one account, each once, without '/' and ':'")
    _check_max_parallel(max_parallel)
    if not languages:
        raise ValueError("languages must not be empty")
    known: Mapping[str, Collection[str]] = {"generations": GENERATIONS, "only": ENDPOINTS, "without_audio": names}
    for setting, values in (("generations", generations), ("only", only or ()), ("without_audio", without_audio)):
        unknown = sorted(set(values) - set(known[setting]))
        if unknown:
            raise ValueError(f"{setting} has unknown {unknown}; there are {sorted(known[setting])}")
    if epoch is not None and epoch.tzinfo is None:
        raise ValueError("epoch must be an aware datetime, such as datetime(2026, 1, 1, tzinfo=UTC)")
