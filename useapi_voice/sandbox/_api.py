"""
The contract as rules: one wire request in, one `Plan` out (when to answer, what, and how to deliver it); it sleeps
never and owns no socket.

Order of judgement: token, route, generation, parameters, the state of the account, the parallel cap, planned faults. So
a fault strikes only requests that would have been served. Marks in brackets give level and source of a fact, as in
`_shapes`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Literal
from urllib.parse import unquote

from . import _audio
from . import _shapes as shapes
from ._faults import Fault, FaultBook
from ._shapes import Reply
from ._wire import (
    WHOLE,
    Delivery,
    Plan,
    Refusal,
    WireRequest,
    read_flag,
    read_number,
    read_parameters,
    read_query,
    read_text,
    refuse,
)
from ._world import FILE_ID, VOICE_ID, Account, Clone, CloneOrder, Generation, Seconds, World, draw_s

BASE_PATH = "/v1/minimax"
GENERATIONS: tuple[Generation, ...] = ("audio", "speech")
UPLOAD_TYPES: Mapping[str, _audio.AudioKind] = {"audio/mpeg": "mp3", "audio/wav": "wav", "audio/wave": "wav"}
OTHER = "other"
"""The name under which requests to no known route are counted."""

_UNLIMITED_TOTAL = 1000
_NAME_LENGTH = 30
_FILES = 10
_SAMPLE_S = (10.0, 60.0)
# An encoder pads; a recording of exactly 60 s must not be refused for its last frame.
_SLACK_S = 0.15

OverCap = Literal["429", "400", "allow"]
Retired = Literal["404", "405", "410", "error"]
ReplyShape = Literal["flat", "wrapped"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of the contract's rules; `Sandbox` documents each."""

    token: str
    upload_s: Seconds
    over_cap: OverCap
    generations: frozenset[Generation]
    only: frozenset[str] | None
    retired: Retired
    languages: tuple[str, ...]
    check_audio: bool
    list_lag_s: float
    clock_skew_s: float
    unique_names: bool
    system_voices: int
    page_size: int
    page_clones: bool
    mixed_list: bool
    equity_offset: int
    reply_shape: ReplyShape
    strict_account_param: bool
    clone_needs_account: bool


@dataclass(slots=True)
class _Call:
    """A request, other than a clone, that has passed all checks: how to carry it out and for which account."""

    perform: Callable[[], Reply]
    account: str | None = None
    takes_s: float = 0.0
    reads_only: bool = True


@dataclass(frozen=True, slots=True)
class _Route:
    endpoint: str
    method: str
    names: frozenset[str]
    generation: Generation | None
    handler: Callable[[Api, WireRequest, Generation], _Call | CloneOrder]


class Api:
    """The routes and rules over one `World`."""

    def __init__(self, world: World, rules: Rules, epoch: datetime) -> None:
        self.world = world
        self.rules = rules
        self.epoch = epoch
        self.requests: Counter[str] = Counter()
        self.faults: FaultBook = FaultBook()
        self._bearer = f"Bearer {rules.token}"
        self._date: tuple[int, bytes] = (-1, b"")
        self._system = shapes.system_voices(rules.system_voices, rules.languages)
        self._tags = frozenset(tag for tags, _ in self._system for tag in tags) | frozenset(rules.languages)
        # The same sample goes up again and again in a benchmark; measuring it once is enough.
        self._measured: OrderedDict[str, _audio.Audio | None] = OrderedDict()

    # -- what a skin calls

    def handle(self, request: WireRequest, t: float) -> Plan:
        """Judge one request at time `t`, seconds since the sandbox started."""
        t = self.world.advance(t)
        route = _find(unquote(request.path))
        self.requests[route.endpoint if route else OTHER] += 1
        try:
            if request.headers.get("authorization") != self._bearer:
                raise refuse(401, "Unauthorized")
            if route is None:
                raise refuse(404, "Not found")
            self._check_offered(route, request.method)
            call = route.handler(self, request, route.generation or "speech")
            if isinstance(call, CloneOrder):
                self._check_cap(call)
        except Refusal as no:
            reply = no.reply if request.method != "HEAD" else Reply(no.reply.status, b"")
            return Plan(t, lambda _: reply)
        voice_name = call.voice_name if isinstance(call, CloneOrder) else None
        fault = self.faults.strike(route.names, call.account, voice_name, self.world.dice)
        if fault is not None and fault.kind == "account_error" and call.account is not None:
            self.world.accounts[call.account].error = shapes.PENDING_ERROR
        if isinstance(call, CloneOrder):
            return self._clone_plan(call, fault, t)
        return self._plain_plan(call, fault, t)

    def wall(self) -> datetime:
        """Give the server's clock now."""
        return self.epoch + timedelta(seconds=self.world.t + self.rules.clock_skew_s)

    def headers(self, reply: Reply) -> list[tuple[bytes, bytes]]:
        """Give all headers of a reply as bytes, Date and Content-Length among them."""
        wall = self.wall()
        second = int(wall.timestamp())
        if second != self._date[0]:
            self._date = (second, format_datetime(wall, usegmt=True).encode())
        return [
            (b"date", self._date[1]),
            (b"content-length", str(len(reply.body)).encode()),
            *((name.encode(), value.encode()) for name, value in reply.headers),
        ]

    # -- plans

    def _plain_plan(self, call: _Call, fault: Fault | None, t: float) -> Plan:
        end_t = t + call.takes_s
        if fault is None or fault.kind == "delay":
            held_s = 0.0 if fault is None else fault.seconds or 0.0
            return Plan(end_t + held_s, lambda _: call.perform())
        made = bool(fault.made) or call.reads_only
        if fault.kind == "hang":
            if made:
                call.perform()
            return Plan(math.inf, lambda _: fault.reply(self.wall()))

        def decide(t: float) -> Reply:
            self.world.advance(t)
            done = call.perform() if made else None
            return done if done is not None and fault.kind in ("truncate", "drip") else fault.reply(self.wall())

        return Plan(t if fault.at == "start" else end_t, decide, _delivery(fault))

    def _clone_plan(self, order: CloneOrder, fault: Fault | None, t: float) -> Plan:
        if fault is not None and fault.at == "start" and not fault.made:
            # Never begun: it takes no place.
            return Plan(t, lambda _: fault.reply(self.wall()), _delivery(fault))
        clone = self.world.begin_clone(order, will_make=fault is None or bool(fault.made))
        until_t = clone.end_t
        if fault is not None and fault.kind == "hang":
            clone.reply, until_t = "hang", math.inf
        elif fault is not None and fault.kind == "delay":
            until_t += fault.seconds or 0.0
        elif fault is not None and fault.at == "start":
            until_t = t
        delivery = WHOLE if fault is None else _delivery(fault)

        def decide(t: float) -> Reply:
            # A loop may wake a sleeper a hair too early; the clone's end has come all the same.
            self.world.advance(max(t, until_t))
            reply = self._clone_reply(clone, fault)
            clone.reply = str(reply.status) if delivery.kind == "whole" else delivery.kind
            return reply

        def left() -> None:
            if clone.reply == "pending":
                clone.reply = "left"

        return Plan(until_t, decide, delivery, left)

    def _clone_reply(self, clone: Clone, fault: Fault | None) -> Reply:
        if fault is not None and (fault.kind not in ("truncate", "drip", "delay") or not fault.made):
            return fault.reply(self.wall())
        if clone.slots_full or clone.voice is None:
            return Fault.slots_full().reply(self.wall())
        text = clone.voice.text
        # Wrapped in December 2024 [D C24], flat from January 2025 [D C25b]; flat for speech [I].
        if clone.order.generation == "audio" and self.rules.reply_shape == "wrapped":
            text = shapes.wrapped_clone(text)
        return Reply(200, text.encode())

    def _check_cap(self, order: CloneOrder) -> None:
        """
        Keep the cap of "one or two parallel tasks" [D C26].

        That it is one per account, and how it answers, is a guess [I].
        """
        account = self.world.accounts[order.account]
        if len(account.running) < account.max_parallel:
            return
        over = self.rules.over_cap
        self.world.breach(account, order.voice_name, accepted=over == "allow")
        if over != "allow":
            raise refuse(int(over), "Too many requests")

    # -- routing

    def _check_offered(self, route: _Route, method: str) -> None:
        rules = self.rules
        if route.generation is not None and route.generation not in rules.generations:
            raise self._retired(route)
        if rules.only is not None and route.endpoint not in rules.only:
            raise refuse(404, "Not found")
        if method != route.method:
            raise Refusal(shapes.error_reply(405, "Method not allowed", headers=[("allow", route.method)]))

    def _retired(self, route: _Route) -> Refusal:
        """Answer for a generation that is not offered; what the remote says is not documented."""
        other = "speech" if route.generation == "audio" else "audio"
        if self.rules.retired == "error":
            return refuse(400, f"Endpoint {route.endpoint} was decommissioned, use {other}/* endpoints")
        status = int(self.rules.retired)
        return refuse(status, {404: "Not found", 405: "Method not allowed", 410: "Gone"}[status])

    # -- parameters

    def _account(self, given: object) -> Account:
        """Pick the account: optional with one configured, required with several [D U24, U26, V26, X24, Q26]."""
        accounts = self.world.accounts
        if given is None or given == "":
            if len(accounts) != 1:
                raise refuse(400, "Parameter account is required")
            account = next(iter(accounts.values()))
        elif not isinstance(given, str):
            raise refuse(400, "Parameter account must be a string")
        else:
            account = self._known(given)
        if account.error is not None:
            # 596 blocks every call for the account until it is posted again [D U26, X26, Q26].
            raise refuse(596, shapes.PENDING_ERROR)
        return account

    def _known(self, name: str) -> Account:
        account = self.world.accounts.get(name)
        if account is None:
            raise refuse(404, f"MiniMax account {name} not found")  # [S]
        return account

    def _audio_account(self, given: object) -> Account:
        account = self._account(given)
        if not account.audio:
            raise refuse(412, "Account has no audio subscription")  # [D JS-S for speech/create; I here]
        return account

    # -- endpoints

    def upload_sample(self, request: WireRequest, generation: Generation) -> _Call:
        """POST upload-sample: raw bytes, three content types, 10 to 60 s [D U24, U26]."""
        account = self._audio_account(read_query(request).get("account"))
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        kind = UPLOAD_TYPES.get(content_type)
        if kind is None:
            raise refuse(400, f"Header Content-Type must be one of {', '.join(UPLOAD_TYPES)}")
        if not request.body:
            raise refuse(400, "Request body is empty, audio expected")
        digest = hashlib.sha256(request.body).hexdigest()
        duration_s = self._check_sample(request.body, digest, kind) if self.rules.check_audio else None
        size_bytes = len(request.body)

        def perform() -> Reply:
            sample = self.world.add_sample(
                account.name, sha256=digest, size_bytes=size_bytes, content_type=content_type, duration_s=duration_s
            )
            number = sample.file_id.rpartition(":")[2]
            return shapes.json_reply(200, {"ossPath": f"{shapes.CDN}/upload/{number}.{kind}", "fileID": sample.file_id})

        takes_s = draw_s(self.rules.upload_s, account.name, self.world.dice)
        return _Call(perform, account.name, takes_s=takes_s, reads_only=False)

    def _check_sample(self, body: bytes, digest: str, kind: _audio.AudioKind) -> float:
        if digest in self._measured:
            self._measured.move_to_end(digest)
        else:
            self._measured[digest] = _audio.inspect(body)
            if len(self._measured) > 256:
                self._measured.popitem(last=False)
        audio = self._measured[digest]
        if audio is None or audio.kind != kind:
            raise refuse(400, f"Request body is not {kind} audio")
        if not _SAMPLE_S[0] - _SLACK_S <= audio.duration_s <= _SAMPLE_S[1] + _SLACK_S:
            raise refuse(400, f"Audio sample must be 10 to 60 seconds long, got {audio.duration_s:.1f}")
        return audio.duration_s

    def clone_voice(self, request: WireRequest, generation: Generation) -> CloneOrder:
        """POST clone-voice: synchronous, up to 60 s [D C24..C26]."""
        params = read_parameters(request)
        if generation == "speech" and self.rules.strict_account_param and "account" in params:
            # Documented for speech/delete-voice [D X26]; the clone page lists no account [I].
            raise refuse(400, "Parameter account not supported")
        if generation == "audio" and self.rules.clone_needs_account and len(self.world.accounts) > 1:
            self._account(
                params.get("account")
            )  # required on the page until January 2025 [D C24, C25b], dropped later [D C25c]
        voice_name = read_text(params, "voice_name")
        if len(voice_name) > _NAME_LENGTH:
            raise refuse(400, f"Parameter voice_name is longer than {_NAME_LENGTH} characters")
        language_tag = read_text(params, "language_tag")
        if language_tag not in self.rules.languages:
            raise refuse(400, f"Parameter language_tag has unknown value {language_tag}")
        noise = read_flag(params.get("need_noise_reduction", True), "need_noise_reduction")
        files = tuple(read_text(params, "files").split(","))
        account = self._audio_account(self._account_of(files))
        given = params.get("account")
        if given and given != account.name:
            raise refuse(400, f"Parameter account does not agree with files of account {account.name}")
        if self.rules.unique_names and voice_name in account.names:
            raise refuse(400, f"Parameter voice_name {voice_name} is already in use")  # [I]
        return CloneOrder(account.name, voice_name, language_tag, files, noise, generation)

    def _account_of(self, files: tuple[str, ...]) -> str:
        """Read the account from the wrapped ids [I], and see that each is a known sample of it."""
        if len(files) > _FILES:
            raise refuse(400, f"Parameter files names more than {_FILES} files")
        names: set[str] = set()
        for file_id in files:
            form = FILE_ID.fullmatch(file_id)
            if form is None:
                raise refuse(400, f"Parameter files has malformed value {file_id}")
            if form[1] != self.world.user_id:
                raise Refusal(
                    shapes.json_reply(403, {"error": f"Unauthorized access to user:{form[1]} detected"})
                )  # [S]
            names.add(self._known(form[2]).name)
            if file_id not in self.world.samples:
                raise refuse(400, f"Parameter files has unknown value {file_id}")
        if len(names) > 1:
            raise refuse(400, "Parameter files mixes samples of several accounts")  # [I]
        return names.pop()

    def voices(self, request: WireRequest, generation: Generation) -> _Call:
        """
        GET voices: built-in, or with `is_system=false` cloned [D V25a].

        For speech the parameter is carried over [I].
        """
        query = read_query(request)
        account = self._account(query.get("account"))
        is_system = read_flag(query.get("is_system", "true"), "is_system")
        page = read_number(query, "page", 1)
        page_size = read_number(query, "page_size", self.rules.page_size)
        # An unknown tag is ignored, which silently widens the result [D V26].
        tags = frozenset(query.get("tag_list", "").split(",")) & self._tags

        def perform() -> Reply:
            texts: list[str] = []
            if is_system:
                texts = [text for have, text in self._system if tags <= frozenset(have)]
            if not is_system or (self.rules.mixed_list and "is_system" not in query):
                listed = self.world.listed(account.name, self.rules.list_lag_s)
                texts += [voice.text for voice in listed if tags <= {voice.language_tag}]
            if not is_system and generation == "audio":
                return Reply(200, shapes.voice_list(texts, {}))  # all at once, pages ignored [D V25a]
            total = len(texts)
            end = total
            if is_system or self.rules.page_clones:
                end = page * page_size
                texts = texts[end - page_size : end]
            return Reply(200, shapes.voice_list(texts, {"total": total, "has_more": end < total}))

        return _Call(perform, account.name)

    def delete_voice(self, request: WireRequest, generation: Generation) -> _Call:
        """
        POST delete-voice: 200 for unknown voices too [D X24, X26].

        The body of that 200 is not documented; here it is an empty object [I].
        """
        params = read_parameters(request)
        if generation == "speech" and "account" in params:
            raise refuse(400, "Parameter account not supported")  # [D X26]
        voice_id = read_text(params, "voice_id")
        form = VOICE_ID.fullmatch(voice_id)
        if generation == "audio":
            account: Account | None = self._account(params.get("account"))
        elif form is not None:
            account = self._account(form[2])
        else:
            # A bare id names no account; the voice may be on any.
            account = next((one for one in self.world.accounts.values() if voice_id in one.voices), None)
        name = None if account is None else account.name

        def perform() -> Reply:
            if name is not None:
                self.world.delete_voice(name, voice_id)
            return shapes.json_reply(200, {})

        return _Call(perform, name, reads_only=False)

    def config(self, request: WireRequest, generation: Generation) -> _Call:
        account = self._account(read_query(request).get("account"))
        return _Call(lambda: shapes.json_reply(200, shapes.config(self.rules.languages)), account.name)

    def equity(self, request: WireRequest, generation: Generation) -> _Call:
        """GET equity: `used` is advisory and may exceed `total` [D C26, Q26]."""
        account = self._account(read_query(request).get("account"))
        total = _UNLIMITED_TOTAL if self.world.slots is None else self.world.slots

        def perform() -> Reply:
            used = max(0, len(account.voices) + self.rules.equity_offset)
            return shapes.json_reply(200, shapes.equity(used, total))

        return _Call(perform, account.name)

    def accounts(self, request: WireRequest, generation: Generation) -> _Call:
        def perform() -> Reply:
            return shapes.json_reply(200, {one.name: self._account_fields(one) for one in self.world.accounts.values()})

        return _Call(perform)

    def one_account(self, request: WireRequest, generation: Generation) -> _Call:
        account = self._known(unquote(request.path).rstrip("/").rpartition("/")[2])
        return _Call(lambda: shapes.json_reply(200, self._account_fields(account)), account.name)

    def _account_fields(self, account: Account) -> dict[str, object]:
        return shapes.account(account.name, self.epoch, audio=account.audio, error=account.error)

    def scheduler(self, request: WireRequest, generation: Generation) -> _Call:
        """GET scheduler: running video jobs [D H25]; this world has none."""
        return _Call(lambda: shapes.json_reply(200, []))

    def scheduler_available(self, request: WireRequest, generation: Generation) -> _Call:
        """GET scheduler/available [D H25, JS-S]; that a running clone counts in `executingAudio` is a guess [I]."""

        def perform() -> Reply:
            available = [
                {"account": one.name, "maxJobs": 1, "executing": 0, "available": 1, "executingAudio": len(one.running)}
                for one in self.world.accounts.values()
            ]
            return shapes.json_reply(200, {"executing": [], "available": available})

        return _Call(perform)


def _delivery(fault: Fault) -> Delivery:
    if fault.kind == "drop":
        return Delivery("reset" if fault.reset else "drop")
    if fault.kind == "truncate":
        return Delivery("truncate")
    if fault.kind == "drip":
        return Delivery("drip", fault.interval_s, fault.piece_bytes)
    return WHOLE


_Handler = Callable[[Api, WireRequest, Generation], _Call | CloneOrder]

# Each generation is a row of names; where the two differ, the handler is told which one it serves.
_VOICE_ENDPOINTS: tuple[tuple[str, str, tuple[Generation, ...], _Handler], ...] = (
    ("upload-sample", "POST", GENERATIONS, Api.upload_sample),
    ("clone-voice", "POST", GENERATIONS, Api.clone_voice),
    ("voices", "GET", GENERATIONS, Api.voices),
    ("delete-voice", "POST", GENERATIONS, Api.delete_voice),
    ("config", "GET", GENERATIONS, Api.config),
    ("equity", "GET", ("speech",), Api.equity),
)
_SHARED_ENDPOINTS: tuple[tuple[str, _Handler], ...] = (
    ("accounts", Api.accounts),
    ("accounts/{account}", Api.one_account),
    ("scheduler", Api.scheduler),
    ("scheduler/available", Api.scheduler_available),
)


def _all_routes() -> Iterable[_Route]:
    for name, method, generations, handler in _VOICE_ENDPOINTS:
        for generation in generations:
            endpoint = f"{generation}/{name}"
            yield _Route(endpoint, method, frozenset((endpoint, name)), generation, handler)
    for endpoint, handler in _SHARED_ENDPOINTS:
        yield _Route(endpoint, "GET", frozenset((endpoint,)), None, handler)


def _by_path() -> dict[str, _Route]:
    table: dict[str, _Route] = {}
    for route in _all_routes():
        table[route.endpoint] = route
        # Clone and delete are written without a slash at the end, everything else is taken with and without [D U24,
        # C26, Q26].
        if not route.endpoint.endswith(("clone-voice", "delete-voice")):
            table[route.endpoint + "/"] = route
    return table


_ROUTES = _by_path()
_ONE_ACCOUNT = re.compile(r"accounts/[^/]+/?")


def _find(path: str) -> _Route | None:
    if not path.startswith(BASE_PATH + "/"):
        return None
    rest = path[len(BASE_PATH) + 1 :]
    return _ROUTES.get("accounts/{account}" if _ONE_ACCOUNT.fullmatch(rest) else rest)


ENDPOINTS: frozenset[str] = frozenset(route.endpoint for route in _all_routes())
"""All endpoints by their full names, such as "audio/clone-voice"."""
SHORT_NAMES: frozenset[str] = frozenset(name for route in _all_routes() for name in route.names)
"""The full names and those without a generation, such as "clone-voice"."""


def utc_now() -> datetime:
    return datetime.now(UTC)
