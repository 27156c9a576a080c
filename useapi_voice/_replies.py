"""
The one interpreter of replies: status, headers and body in; done, refused, not sent or unknown out.

Nothing else in the library knows what an answer means. A verdict says whose fault a refusal was (`Scope`) and what it
proves: `Refused` and `NotSent` prove that a clone made nothing, `Unknown` proves nothing. Where the documentation is
silent (the status list of speech/clone-voice was not readable), the reading that cannot cost a voice is taken.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, TypeVar, assert_never

from pydantic import BaseModel, ValidationError

from ._errors import (
    AccountUnavailable,
    ApiError,
    AuthenticationError,
    ContentRejected,
    RateLimited,
    ServerError,
    SubscriptionError,
    UnexpectedReply,
    VoiceSlotsFull,
)
from ._models import Account, AccountLoad, UploadedSample, VoiceConfig, VoiceInfo, VoicePage, VoiceSlots

SLOTS_FULL_CODE: Final = 2600010
"""[D C26] for the number; its HTTP status and its place in the body were not readable, so it is looked for anywhere."""
PACE_WAIT_S: Final = 20.0
"""Seconds to wait after a 429 without advice, as the vendor's own clients do [D JS-S, JS-V]."""
FOR_EVER_S: Final = 10 * 365 * 24 * 3600.0
"""What a longer `Retry-After` counts as: ten years from now is a date still, and ten thousand are not."""
ACCOUNT_ERROR_STATUS: Final = 596
"""[D U26, X26, Q26]: outside the registered range; a client that retries unknown 5xx would knock on a closed door."""


@dataclass(frozen=True, slots=True)
class Reply:
    """
    What came back.

    Attributes:
        status: HTTP status.
        headers: With lower-case names.
        body: As received, whole.
        received_at: When, by this machine's clock (aware, UTC).
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    received_at: datetime


@dataclass(frozen=True, slots=True)
class NoReply:
    """
    Nothing came back, or not all of it.

    Attributes:
        was_sent: Whether any part of the request may have reached the remote.
        reason: What happened, in a few words.
        status: The status line, where that much arrived.
    """

    was_sent: bool
    reason: str
    status: int | None = None


Answer = Reply | NoReply


class Scope(StrEnum):
    """Whose refusal it is: what else will be refused for the same reason."""

    REQUEST = "request"
    """This request alone."""
    PACE = "pace"
    """Not accepted at this moment; the same request may go again after a wait."""
    ACCOUNT = "account"
    """Every call for this account."""
    SLOTS = "slots"
    """Every further clone on this account, until a voice is deleted."""
    TOKEN = "token"  # noqa: S105 - a name, not a secret
    """Every call of this client."""


@dataclass(frozen=True, slots=True)
class Done:
    """Success, with the decoded JSON body."""

    payload: Any
    status_code: int = 200


@dataclass(frozen=True, slots=True)
class Refused:
    """The remote said no; nothing was made."""

    error: type[ApiError]
    scope: Scope
    detail: str
    status_code: int | None = None
    code: int | str | None = None
    retry_after_s: float | None = None

    @property
    def safe_to_retry(self) -> bool:
        """Whether the same request may succeed later, or elsewhere."""
        return self.scope in {Scope.PACE, Scope.ACCOUNT, Scope.SLOTS}


@dataclass(frozen=True, slots=True)
class NotSent:
    """The request never reached the remote; nothing happened there."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """
    The remote may or may not have done it.

    Attributes:
        if_absent: What the answer means where the voice proves absent, if it means more than "try again".
        resends: How often a clone may go again at the most after it proved absent, or `None` for the usual number.
    """

    detail: str
    status_code: int | None = None
    code: int | str | None = None
    retry_after_s: float | None = None
    if_absent: Refused | None = None
    resends: int | None = None


Verdict = Done | Refused | NotSent | Unknown

M = TypeVar("M", bound=BaseModel)


# --- upstream codes ---------------------------------------------------------------------------------------------------
# [U MM-E]: the developer platform's codes; the consumer site used here may have others. A code that is not in this
# table decides nothing. Ambiguous ones (`None`) are answered like a lost connection.
_R, _P, _A = Scope.REQUEST, Scope.PACE, Scope.ACCOUNT
_UPSTREAM: Final[Mapping[int, tuple[type[ApiError], Scope] | None]] = {
    1000: None,  # "unknown error"; one public report turned out to be a bad sample
    1001: None,  # request timeout
    1002: (RateLimited, _P),
    1004: (AccountUnavailable, _A),  # upstream login expired
    1008: (AccountUnavailable, _A),  # insufficient balance
    1013: None,  # internal service error
    1024: None,  # internal error
    1026: (ContentRejected, _R),
    1027: (ContentRejected, _R),
    1033: None,  # system or database error
    1039: (RateLimited, _P),
    1041: (RateLimited, _P),
    1042: (ContentRejected, _R),  # too many invisible characters
    1043: (ApiError, _R),  # sample failed the similarity check
    1044: (ApiError, _R),
    2013: (ApiError, _R),  # invalid parameters
    20132: (ApiError, _R),  # invalid samples or voice_id
    2037: (ApiError, _R),  # sample too short or too long
    2038: (AccountUnavailable, _A),  # no cloning permission
    2039: (ApiError, _R),
    2042: (ApiError, _R),
    2045: (RateLimited, _P),  # traffic grew too fast
    2048: (ApiError, _R),
    2049: (AccountUnavailable, _A),  # upstream key
    2054: (ApiError, _R),
    2056: (AccountUnavailable, _A),  # usage limit, resets within hours
    SLOTS_FULL_CODE: (VoiceSlotsFull, Scope.SLOTS),
}
_BAD_SAMPLE_CODE: Final = 1000
STALE_FILE_CODE: Final = 20132

_STATUS: Final[Mapping[int, tuple[type[ApiError], Scope]]] = {
    401: (AuthenticationError, Scope.TOKEN),
    402: (SubscriptionError, Scope.TOKEN),
    412: (AccountUnavailable, _A),  # no audio subscription or credits [D JS-S for speech/create; I for clone]
    422: (ContentRejected, _R),
    429: (RateLimited, _P),  # "not accepted" is [I]
    ACCOUNT_ERROR_STATUS: (AccountUnavailable, _A),
}
_DOCUMENTED_REFUSALS: Final = frozenset({400, 403, 404})
_AMBIGUOUS_4XX: Final = frozenset({408, 499})  # a proxy's word for "it took too long": the work may go on behind it
_SURE_4XX: Final = frozenset({401, 404, 405, 410, 413, 429})  # refusals whoever sends them, HTML page or not
_SUCCESS: Final = range(200, 300)
_REDIRECTS: Final = range(300, 400)

_SLOTS_FULL = re.compile(rb"(?<!\d)%d(?!\d)" % SLOTS_FULL_CODE)
_CODE_IN_TEXT = re.compile(r"(?:^\W*|(?:code|status|error)\W{1,3}|\()(\d{4,7})(?!\d)", re.IGNORECASE)
_GONE = re.compile(r"decommission|discontinued|retired|no longer (?:available|supported)|end.of.life", re.IGNORECASE)
_OF_ACCOUNT = re.compile(r"account(?!\s*=)", re.IGNORECASE)  # not where the query of the call is merely quoted
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONGEST_DETAIL = 300


def interpret(answer: Answer, *, needs_json: bool = True) -> Verdict:
    """
    Decide what an answer to any call means.

    The order matters: a voice-slot refusal wherever it hides, then what the envelope says, then the status.

    Args:
        answer: What came back, if anything did.
        needs_json: Whether success without JSON is none; the body of delete-voice's 200 is not documented [X24, X26].
    """
    if isinstance(answer, NoReply):
        return Unknown(answer.reason, answer.status) if answer.was_sent else NotSent(answer.reason)
    payload = _decode(answer.body)
    if answer.status in _SUCCESS:
        if payload is None and not needs_json and not _is_html(answer):
            return Done(None, answer.status)
        return _interpret_success(answer, payload)
    return _interpret_failure(answer, payload)


def _interpret_success(reply: Reply, payload: Any) -> Verdict:
    if payload is None and reply.body.strip() not in {b"", b"null"}:
        return Unknown(f"the answer is not JSON: {_snippet(reply.body)}", reply.status)
    envelope = payload if isinstance(payload, dict) else {}
    is_clean = _base_code(envelope) in {None, 0}
    if _holds_voice(envelope):
        # A refusal that comes with a voice is believed only if the voice proves absent.
        return Done(payload, reply.status) if is_clean else _contradiction(reply, envelope)
    has_failed = not is_clean or bool(envelope.get("error"))
    code = SLOTS_FULL_CODE if has_failed and _SLOTS_FULL.search(reply.body) else _known_code(envelope)
    if code is not None:
        return _by_upstream_code(reply, envelope, code)
    if has_failed:
        return Unknown(_detail(reply, envelope), reply.status, _base_code(envelope) or _code(envelope))
    if envelope.get("input_sensitive") is True:
        refused = Refused(ContentRejected, Scope.REQUEST, "the input was moderated", reply.status)
        return Unknown(
            "the input was flagged as sensitive, and there is no voice", reply.status, if_absent=refused, resends=0
        )
    return Done(payload, reply.status)


def _contradiction(reply: Reply, envelope: Mapping[str, Any]) -> Unknown:
    code = _known_code(envelope)
    verdict = None if code is None else _by_upstream_code(reply, envelope, code)
    refused = verdict if isinstance(verdict, Refused) and verdict.scope is not Scope.PACE else None
    resends = None if refused is None else 0
    return Unknown(_detail(reply, envelope), reply.status, _base_code(envelope), if_absent=refused, resends=resends)


def _interpret_failure(reply: Reply, payload: Any) -> Verdict:
    envelope = payload if isinstance(payload, dict) else {}
    if _SLOTS_FULL.search(reply.body):
        return _by_upstream_code(reply, envelope, SLOTS_FULL_CODE)
    status = reply.status
    if _code(envelope) == ACCOUNT_ERROR_STATUS:
        status = ACCOUNT_ERROR_STATUS
    if status in _STATUS and not (_is_html(reply) and status not in _SURE_4XX):
        return _refusal(reply, envelope, *_STATUS[status])
    code = _known_code(envelope)
    if code is not None:
        return _by_upstream_code(reply, envelope, code)
    if _is_ambiguous(reply):
        return Unknown(_detail(reply, envelope), reply.status, _code(envelope), _retry_after_s(reply, envelope))
    documented = status in _DOCUMENTED_REFUSALS and not _is_html(reply)
    return _refusal(reply, envelope, ApiError if documented else UnexpectedReply, Scope.REQUEST)


def _is_ambiguous(reply: Reply) -> bool:
    if reply.status in _REDIRECTS or reply.status in _SURE_4XX:
        # A redirect that nobody follows has carried out nothing.
        return False
    return reply.status >= 500 or reply.status < 200 or reply.status in _AMBIGUOUS_4XX or _is_html(reply)


def _by_upstream_code(reply: Reply, envelope: Mapping[str, Any], code: int) -> Verdict:
    meaning = _UPSTREAM[code]
    if meaning is not None:
        return _refusal(reply, envelope, *meaning, code=code)
    detail = _detail(reply, envelope)
    if code != _BAD_SAMPLE_CODE:
        return Unknown(detail, reply.status, code)
    if_absent = Refused(ApiError, Scope.REQUEST, f"{detail}; the samples may be at fault", reply.status, code)
    return Unknown(detail, reply.status, code, if_absent=if_absent, resends=1)


def _refusal(
    reply: Reply, envelope: Mapping[str, Any], error: type[ApiError], scope: Scope, *, code: int | None = None
) -> Refused:
    return Refused(
        error,
        scope,
        _detail(reply, envelope),
        reply.status,
        _code(envelope) if code is None else code,
        _retry_after_s(reply, envelope),
    )


# --- reading the envelope ---------------------------------------------------------------------------------------------


def _decode(body: bytes) -> Any:
    try:
        text = body.decode(json.detect_encoding(body))
        payload = json.loads(text)
        if _SURROGATE.search(text):
            # What cannot be encoded again could be neither stored nor printed.
            payload = json.loads(json.dumps(payload, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    else:
        return payload


def _is_html(reply: Reply) -> bool:
    if "html" in reply.headers.get("content-type", "").lower():
        return True
    return reply.body[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html"))


def _holds_voice(envelope: Mapping[str, Any]) -> bool:
    inner = envelope.get("voice_info")
    return bool(envelope.get("voice_id") or (isinstance(inner, dict) and inner.get("voice_id")))


def _base_code(envelope: Mapping[str, Any]) -> int | None:
    base = envelope.get("base_resp")
    return _as_int(base.get("status_code")) if isinstance(base, dict) else None


def _as_int(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16 else None


def _code(envelope: Mapping[str, Any]) -> int | str | None:
    """The remote's own code as it gave it: a number, or a string such as `REFRESH_FAILED` [S]."""
    error = envelope.get("error")
    for source in (envelope, error if isinstance(error, dict) else {}):
        value = source.get("code")
        if isinstance(value, int | str) and not isinstance(value, bool):
            number = _as_int(value)
            return value if number is None else number
    return None


def _known_code(envelope: Mapping[str, Any]) -> int | None:
    return next((code for code in _candidate_codes(envelope) if code in _UPSTREAM), None)


def _candidate_codes(envelope: Mapping[str, Any]) -> Iterator[int | None]:
    yield _base_code(envelope)
    code = _code(envelope)
    yield code if isinstance(code, int) else None
    yield from (int(found) for found in _CODE_IN_TEXT.findall(_error_text(envelope)))


def _error_text(envelope: Mapping[str, Any]) -> str:
    error = envelope.get("error")
    if isinstance(error, dict):
        error = error.get("message") or error.get("status") or error
    if not error:
        base = envelope.get("base_resp")
        error = base.get("status_msg") if isinstance(base, dict) else None
    try:
        return error if isinstance(error, str) else json.dumps(error) if error else ""
    except RecursionError:  # nested as deeply as could just be read
        return ""


def _detail(reply: Reply, envelope: Mapping[str, Any]) -> str:
    text = _error_text(envelope)
    if text:
        return text[:_LONGEST_DETAIL]
    if _is_html(reply):
        return f"HTTP {reply.status} with an HTML page, perhaps from a proxy"
    return f"HTTP {reply.status}" + (f": {_snippet(reply.body)}" if reply.body else " without a body")


def _snippet(body: bytes) -> str:
    return repr(body[:80].decode("utf-8", "replace"))


def _retry_after_s(reply: Reply, envelope: Mapping[str, Any]) -> float | None:
    """
    Seconds to wait: the header in seconds or as a date, else the body's ISO time [S], else `None`.

    Dates are read against the server's own `Date`, where it sends one: its clock need not be ours, and we must never be
    earlier than told.
    """
    header = reply.headers.get("retry-after", "").strip()
    try:
        wait_s = float(header)
    except ValueError:
        wait_s = math.nan
    if math.isfinite(wait_s):
        return min(FOR_EVER_S, max(0.0, wait_s))
    until = _http_date(header) or _iso_time(envelope.get("retryAfter"))
    now = server_time(reply) or reply.received_at
    return None if until is None else min(FOR_EVER_S, max(0.0, (until - now).total_seconds()))


def server_time(reply: Reply) -> datetime | None:
    """The remote's clock when it answered, in whole seconds, from its `Date` header."""
    return _http_date(reply.headers.get("date", ""))


@lru_cache(maxsize=8)  # the `Date` of all answers within a second is the same text
def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _iso_time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# --- what callers do with a verdict -----------------------------------------------------------------------------------


def route_is_gone(answer: Answer) -> bool:
    """
    Whether the answer proves that this generation's route is not served any more, and so that nothing was done.

    Status 404, 405 or 410, or an error that says so. What a decommissioned route answers is undocumented; a 404 about
    an unknown *account* [S] proves the opposite, that the route is alive.
    """
    if isinstance(answer, NoReply) or answer.status < 400:
        return False
    payload = _decode(answer.body)
    plain = "" if _is_html(answer) else answer.body[:_LONGEST_DETAIL].decode(errors="replace")
    text = _error_text(payload) if isinstance(payload, dict) else plain
    if answer.status == 404 and _OF_ACCOUNT.search(text):
        return False
    return answer.status in {404, 405, 410} or (answer.status < 500 and bool(_GONE.search(text)))


def error_from(verdict: Refused | NotSent | Unknown, *, account: str | None = None) -> ApiError:
    """Build the error that a call which is not a clone raises for this verdict."""
    match verdict:
        case Refused():
            return verdict.error(
                verdict.detail,
                account=account,
                status_code=verdict.status_code,
                code=verdict.code,
                safe_to_retry=verdict.safe_to_retry,
                retry_after_s=verdict.retry_after_s,
            )
        case NotSent():
            return ServerError(f"the remote cannot be reached: {verdict.detail}", account=account, safe_to_retry=True)
        case Unknown():
            return ServerError(
                verdict.detail,
                account=account,
                status_code=verdict.status_code,
                code=verdict.code,
                safe_to_retry=True,
                retry_after_s=verdict.retry_after_s,
            )
        case _:  # pragma: no cover - a verdict that nobody wrote is a type error
            assert_never(verdict)


def refused_from(error: ApiError) -> Refused:
    """Return the refusal that `error_from` made this error of."""
    scopes: Mapping[type[ApiError], Scope] = {
        RateLimited: Scope.PACE,
        AccountUnavailable: Scope.ACCOUNT,
        VoiceSlotsFull: Scope.SLOTS,
        AuthenticationError: Scope.TOKEN,
        SubscriptionError: Scope.TOKEN,
    }
    scope = scopes.get(type(error), Scope.REQUEST)
    return Refused(type(error), scope, error.message, error.status_code, error.code, error.retry_after_s)


def _read(model: type[M], row: Any) -> M | None:
    try:
        return model.model_validate(row)
    except ValidationError:
        return None


def read_voice(payload: Any) -> VoiceInfo | None:
    """Read a clone's answer in either documented shape, flat [D C25b] or wrapped in `voice_info` [D C24]."""
    wrapped = payload.get("voice_info") if isinstance(payload, dict) else None
    return _read(VoiceInfo, wrapped) or _read(VoiceInfo, payload)


def read_upload(payload: Any) -> UploadedSample:
    """Read the answer of upload-sample [D U24, U26]."""
    uploaded = _read(UploadedSample, payload)
    if uploaded is None:
        raise _unexpected("upload-sample", "no fileID")
    return uploaded


def read_voice_page(payload: Any) -> VoicePage:
    """Read one page of voices; of rows without a `voice_id` only names are kept, a list without rows is refused."""
    rows = payload.get("voice_list") if isinstance(payload, dict) else None
    if not isinstance(rows, list):
        raise _unexpected("voices", "no voice_list")
    read = [(row, read_voice(row)) for row in rows]
    known = [voice for _, voice in read if voice]
    # What is being made may be listed before it has an id, for all that is known: then it is not absent.
    unknown = [
        row["voice_name"] for row, voice in read if voice is None and isinstance(row, dict) and "voice_name" in row
    ]
    names = [name for name in unknown if isinstance(name, str)]
    return VoicePage.model_validate({**payload, "voice_list": known, "names_without_id": names})


def read_config(payload: Any) -> VoiceConfig:
    """Read the answer of config [D K25]."""
    if not isinstance(payload, dict):
        raise _unexpected("config", "no object")
    return VoiceConfig(
        languages=_tag_names(payload, "voice_tag_language", "tag_name"),
        accents=_tag_names(payload, "voice_tag_accent", "tag_name"),
        ages=_tag_names(payload, "voice_tag_age", "tag_name"),
        genders=_tag_names(payload, "voice_tag_gender", "tag_name"),
        emotions=_tag_names(payload, "t2a_emotion", "value"),
    )


def _tag_names(payload: Mapping[str, Any], field_name: str, name: str) -> tuple[str, ...]:
    rows = payload.get(field_name)
    if not isinstance(rows, list):
        return ()
    return tuple(str(row[name]) for row in rows if isinstance(row, dict) and row.get(name))


def read_accounts(payload: Any) -> tuple[Account, ...]:
    """Read the answer of accounts: an object keyed by account, and the key counts [D A25]; `jwt` is dropped."""
    if not isinstance(payload, dict):
        raise _unexpected("accounts", "no object")
    rows = [
        {**{field: value for field, value in row.items() if field != "jwt"}, "account": name}
        for name, row in payload.items()
        if isinstance(row, dict)
    ]
    return tuple(account for row in rows if (account := _read(Account, row)))


def read_slots(payload: Any) -> VoiceSlots:
    """Read the answer of equity [D Q26]."""
    if not isinstance(payload, dict):
        raise _unexpected("equity", "no object")
    return VoiceSlots.model_validate(payload)


def read_loads(payload: Any) -> tuple[AccountLoad, ...]:
    """Read the answer of scheduler/available [D H25, JS-S]."""
    rows = payload.get("available") if isinstance(payload, dict) else None
    if not isinstance(rows, list):
        raise _unexpected("scheduler/available", "no list")
    return tuple(load for row in rows if (load := _read(AccountLoad, row)))


def _unexpected(name: str, what: str) -> UnexpectedReply:
    return UnexpectedReply(f"{name} answered with success, but with {what}", status_code=200)
