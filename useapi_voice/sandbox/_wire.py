"""
What crosses the wall between a skin and the rules: a request that has been read, a plan for its answer, and the reading
of parameters.
"""

from __future__ import annotations

import email.policy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from typing import Any, Literal, cast
from urllib.parse import parse_qsl

from . import _shapes as shapes
from ._shapes import Reply


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One HTTP request as a skin has read it; header names are lower case, `query` has no question mark."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


DeliveryKind = Literal["whole", "drop", "reset", "truncate", "drip"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a skin hands over an answer; the numbers are for "drip"."""

    kind: DeliveryKind = "whole"
    interval_s: float = 0.0
    piece_bytes: int = 1


WHOLE = Delivery()


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What a skin has to do: wait until `until_t` (infinity: for ever), call `decide` with the time it then is, and
    deliver the reply.

    When the client goes away during the wait, `left` is called in place of `decide`.
    """

    until_t: float
    decide: Callable[[float], Reply]
    delivery: Delivery = WHOLE
    left: Callable[[], None] = _nothing


class Refusal(Exception):
    """A rule says no; it carries the answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def refuse(status: int, message: str) -> Refusal:
    return Refusal(shapes.error_reply(status, message))


def read_query(request: WireRequest) -> dict[str, str]:
    return dict(parse_qsl(request.query, keep_blank_values=True))


def read_parameters(request: WireRequest) -> dict[str, object]:
    """Read a body of JSON or multipart/form-data [D C24, C26, X26]."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json":
        try:
            value = json.loads(request.body)
        except ValueError:
            raise refuse(400, "Request body is not valid JSON") from None
        if not isinstance(value, dict):
            raise refuse(400, "Request body must be a JSON object")
        return {name: item for name, item in cast(dict[str, Any], value).items() if item is not None}
    if media_type == "multipart/form-data":
        return _form(content_type, request.body)
    raise refuse(400, "Header Content-Type must be application/json or multipart/form-data")


def _form(content_type: str, body: bytes) -> dict[str, object]:
    head = f"MIME-Version: 1.0\r\nContent-Type: {content_type}\r\n\r\n".encode()
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    if not message.is_multipart():
        raise refuse(400, "Request body is not valid multipart/form-data")
    fields: dict[str, object] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = content.decode("utf-8", "replace")
    return fields


def read_text(params: Mapping[str, object], name: str) -> str:
    value = params.get(name)
    if value is None or value == "":
        raise refuse(400, f"Parameter {name} is required")
    if not isinstance(value, str):
        raise refuse(400, f"Parameter {name} must be a string")
    return value


def read_flag(value: object, name: str) -> bool:
    """Read a boolean; forms and queries can only spell it."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise refuse(400, f"Parameter {name} must be true or false")


def read_number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise refuse(400, f"Parameter {name} must be a positive number")
    return int(text)
