"""Planned misbehaviour: what a `Fault` is, and which rule strikes which request; it carries nothing out."""

from __future__ import annotations

# `made` is the first thing a reader asks of a fault, and `Fault.drop(True)` is how a test says it.
# ruff: noqa: FBT001, FBT002
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from typing import Literal

from . import _shapes as shapes
from ._shapes import Reply

At = Literal["start", "end"]
FaultKind = Literal["status", "rate_limited", "drop", "hang", "truncate", "drip", "account_error", "delay"]
RetryForm = Literal["seconds", "date", "body"]

_HTML = (
    "<!DOCTYPE html><html><head><title>{code}: Web server is returning an unknown error</title></head>"
    "<body><h1>Error {code}</h1><p>Ray ID: 8c0ffee000000000</p></body></html>"
)


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return "Unknown error"


@dataclass(frozen=True, slots=True)
class Fault:
    """
    One way to misbehave; make it with a class method, and plan it with `Sandbox.fail`.

    `made` says whether the work is done all the same: for a clone, whether the voice exists once its time is over; for
    an upload or a delete, whether the sample was stored or the voice deleted; for a read it means nothing. None lets
    the sandbox's dice decide, half and half. `at` says when the client learns of it: "start" at once, "end" when the
    work would have ended.

    For a clone: `made=False` at the "start" means that it is never begun and takes no place; every other combination
    begins it, and it holds its place until its end, whatever the client was told.
    """

    kind: FaultKind
    made: bool | None = False
    at: At = "start"
    code: int = 0
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    form: RetryForm | None = None
    reset: bool = False
    interval_s: float = 0.0
    piece_bytes: int = 1

    @classmethod
    def status(
        cls,
        code: int,
        body: Mapping[str, object] | str | bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        made: bool | None = False,
        at: At = "start",
    ) -> Fault:
        """
        Answer with any status.

        Args:
            code: HTTP status.
            body: A mapping is sent as JSON, text or bytes as they are; None gives `{"error": phrase, "code": code}`.
            headers: Headers to add; a `content-type` here replaces that of the body.
            made: Whether the work is done all the same.
            at: When the answer comes.
        """
        if body is None:
            body = {"error": _phrase(code), "code": code}
        if isinstance(body, Mapping):
            content, content_type = shapes.dumps(body).encode(), shapes.JSON_TYPE
        else:
            content, content_type = body.encode() if isinstance(body, str) else body, "text/plain; charset=utf-8"
        given = tuple((name.lower(), value) for name, value in (headers or {}).items())
        if not any(name == "content-type" for name, _ in given):
            given = (("content-type", content_type), *given)
        return cls("status", made=made, at=at, code=code, body=content, headers=given)

    @classmethod
    def rate_limited(cls, seconds: float | None = None, form: RetryForm | None = None) -> Fault:
        """
        Answer 429 at once; the request is not accepted and takes no place [I; that 429 occurs: D JS-S].

        Args:
            seconds: How long to wait; None gives no hint at all.
            form: Where the hint stands: "seconds" or "date" in `Retry-After`, "body" as ISO time in `retryAfter` [S
                AE]; None means "seconds".
        """
        if form is not None and seconds is None:
            raise ValueError(f"Fault.rate_limited(form={form!r}) needs seconds to write there")
        return cls("rate_limited", code=429, seconds=seconds, form=form)

    @classmethod
    def drop(cls, made: bool | None, at: At = "start", *, reset: bool = False) -> Fault:
        """
        Close the connection without an answer.

        Args:
            made: Whether the work is done all the same; a clone goes on to its own end after a drop at the "start".
            at: When the connection goes.
            reset: Reset it (the client sees a read error) rather than close it (it sees that the server disconnected).
        """
        return cls("drop", made=made, at=at, reset=reset)

    @classmethod
    def hang(cls, made: bool | None) -> Fault:
        """
        Never answer while the client waits.

        A clone runs on to its end, holds its place until then, and makes a voice if `made`.
        """
        return cls("hang", made=made, at="end")

    @classmethod
    def truncate(cls, made: bool | None = True) -> Fault:
        """
        Announce the whole body, send about half of it, then close.

        Not `made`, it is half of an upstream error in place of a voice.
        """
        return cls("truncate", made=made, at="end")

    @classmethod
    def drip(cls, interval_s: float, made: bool | None = True, *, piece_bytes: int = 1) -> Fault:
        """
        Send the body in pieces of `piece_bytes`, `interval_s` seconds apart.

        Each read succeeds, and the whole takes long.
        """
        return cls("drip", made=made, at="end", interval_s=interval_s, piece_bytes=piece_bytes)

    @classmethod
    def html(cls, code: int = 520, made: bool | None = False, *, at: At = "start") -> Fault:
        """Answer with a page of HTML as a proxy in front of the API does [I]."""
        return cls.status(
            code, _HTML.format(code=code), headers={"content-type": "text/html; charset=UTF-8"}, made=made, at=at
        )

    @classmethod
    def bad_json(cls, made: bool | None) -> Fault:
        """Answer 200 at the end with a body that is complete on the wire but no JSON."""
        return cls.status(200, b'{"voice_id":"user:', headers={"content-type": shapes.JSON_TYPE}, made=made, at="end")

    @classmethod
    def base_resp(cls, code: int, msg: str = "unknown error", *, made: bool | None = False) -> Fault:
        """Answer 200 at the end with an upstream code in `base_resp` [I; codes U MM-E]."""
        return cls.status(200, shapes.base_resp(code, msg), made=made, at="end")

    @classmethod
    def slots_full(cls, status: int = 400) -> Fault:
        """
        Refuse with 2600010 at the end, after the work [D C26, Q26].

        Status and place of the number are guesses [I].
        """
        body = {"error": "Voice clone slots exceeded", "code": shapes.SLOTS_FULL_CODE}
        return cls.status(status, body, made=False, at="end")

    @classmethod
    def account_error(cls) -> Fault:
        """Answer 596 [D U26], for this and every later call of that account until `Sandbox.repair`."""
        return cls("account_error", code=596)

    @classmethod
    def no_subscription(cls) -> Fault:
        """Answer 412: the account has no audio subscription [D JS-S for speech/create; I for clones]."""
        return cls.status(412, {"error": "Account has no audio subscription", "code": 412})

    @classmethod
    def moderated(cls, at: At = "start") -> Fault:
        """Answer 422: the content was moderated [D JS-S for speech/create; I for clones]."""
        return cls.status(422, {"error": "Text was moderated", "code": 422}, at=at)

    @classmethod
    def delay(cls, seconds: float) -> Fault:
        """Hold the right answer back for so many seconds; the work itself is not slower."""
        return cls("delay", made=True, at="end", seconds=seconds)

    def reply(self, wall: datetime) -> Reply:
        """Write the fault's own answer; `wall` is the server's clock, needed where a moment is named."""
        if self.kind == "account_error":
            return shapes.error_reply(596, shapes.PENDING_ERROR)
        if self.kind == "rate_limited":
            return _rate_limited_reply(self.seconds, self.form or "seconds", wall)
        if self.kind == "status":
            return Reply(self.code, self.body, self.headers)
        # A truncated or dripping answer for work that was not done: an upstream error is what there is to send.
        return shapes.json_reply(200, shapes.base_resp(1000, "unknown error"))


def _rate_limited_reply(seconds: float | None, form: RetryForm, wall: datetime) -> Reply:
    body: dict[str, object] = {"error": "Too many requests", "code": 429}
    headers: list[tuple[str, str]] = []
    if seconds is not None:
        # Whole seconds are all a header can say; rounding up never tells a client to come too early.
        until = wall + timedelta(seconds=seconds)
        if form == "seconds":
            headers.append(("retry-after", str(math.ceil(seconds))))
        elif form == "date":
            if until.microsecond:
                until = until.replace(microsecond=0) + timedelta(seconds=1)
            headers.append(("retry-after", format_datetime(until, usegmt=True)))
        else:
            body["retryAfter"] = shapes.iso_z(until)
    return shapes.json_reply(429, body, headers)


@dataclass(slots=True, eq=False)
class FaultRule:
    """
    A planned fault, as `Sandbox.fail` returns it.

    `hits` counts the requests it has struck so far. `remove()` ends it; a rule that has struck `times` times ends by
    itself.
    """

    on: str
    fault: Fault
    account: str | None = None
    voice_name: str | None = None
    nth: int | None = None
    times: int | None = 1
    probability: float | None = None
    hits: int = 0
    _seen: int = field(default=0, repr=False)
    _removed: bool = field(default=False, repr=False)

    def remove(self) -> None:
        """End the rule; calling it again does nothing."""
        self._removed = True

    @property
    def active(self) -> bool:
        """Whether the rule may still strike."""
        return not self._removed and (self.times is None or self.hits < self.times)

    def strikes(self, names: Iterable[str], account: str | None, voice_name: str | None, dice: random.Random) -> bool:
        """Count one request and say whether the rule strikes it."""
        if self.on != "*" and self.on not in names:
            return False
        if self.account is not None and self.account != account:
            return False
        if self.voice_name is not None and self.voice_name != voice_name:
            return False
        self._seen += 1
        if self.nth is not None and self._seen < self.nth:
            return False
        return self.probability is None or dice.random() < self.probability


class FaultBook:
    """All rules in the order in which they were planned; the first that strikes a request wins it."""

    def __init__(self) -> None:
        self._rules: list[FaultRule] = []

    def add(self, rule: FaultRule) -> None:
        self._rules.append(rule)

    def strike(
        self, names: Iterable[str], account: str | None, voice_name: str | None, dice: random.Random
    ) -> Fault | None:
        """Give the fault of the rule that strikes, its `made` decided, or None; forget ended rules on the way."""
        if not self._rules:
            return None
        self._rules = [rule for rule in self._rules if rule.active]
        hit: FaultRule | None = None
        for rule in self._rules:
            # Every rule counts the request for its own `nth`, though only one may have it.
            if rule.strikes(names, account, voice_name, dice) and hit is None:
                hit = rule
        if hit is None:
            return None
        hit.hits += 1
        return hit.fault if hit.fault.made is not None else replace(hit.fault, made=dice.random() < 0.5)
