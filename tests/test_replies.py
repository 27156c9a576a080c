"""The interpreter of replies: the contract's tables row by row, every recorded body, and junk of all kinds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from useapi_voice import _replies
from useapi_voice._errors import (
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
from useapi_voice._replies import (
    FOR_EVER_S,
    Done,
    NoReply,
    NotSent,
    Refused,
    Reply,
    Scope,
    Unknown,
    Verdict,
    error_from,
    interpret,
    read_accounts,
    read_config,
    read_loads,
    read_slots,
    read_upload,
    read_voice,
    read_voice_page,
    refused_from,
    route_is_gone,
    server_time,
)

NOW = datetime(2026, 8, 24, 12, 0, 0, tzinfo=UTC)
RECORDED = Path(__file__).parent / "recorded"
INDEX: Mapping[str, Mapping[str, Any]] = json.loads((RECORDED / "_index.json").read_bytes())
JSON = {"content-type": "application/json"}
HTML = {"content-type": "text/html; charset=UTF-8"}
PAGE = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head></html>"
VOICE = {"voice_id": "user:1-minimax:A-voice:7", "voice_name": "Zo\u00eb"}


def reply(status: int, body: object = b"", headers: Mapping[str, str] = JSON) -> Reply:
    """Make a reply; whatever is not bytes becomes JSON."""
    return Reply(status, headers, body if isinstance(body, bytes) else json.dumps(body).encode(), NOW)


def base(code: object, **more: object) -> dict[str, object]:
    """Make an upstream envelope."""
    return {"base_resp": {"status_code": code, "status_msg": "words"}, **more}


def refusal(status: int, body: object, headers: Mapping[str, str] = JSON) -> Refused:
    """Interpret what must be a refusal."""
    verdict = interpret(reply(status, body, headers))
    assert isinstance(verdict, Refused), verdict
    return verdict


def unknown(status: int, body: object, headers: Mapping[str, str] = JSON) -> Unknown:
    """Interpret what must be ambiguous."""
    verdict = interpret(reply(status, body, headers))
    assert isinstance(verdict, Unknown), verdict
    return verdict


# --- the contract's section 6 -----------------------------------------------------------------------------------------

Expected = type[Done] | type[Unknown] | tuple[type[ApiError], Scope]
SECTION_6: list[tuple[str, Reply | NoReply, Expected]] = [
    ("200 with voice_id: done", reply(200, VOICE), Done),
    ("200 with voice_id, wrapped: done", reply(200, {"voice_info": VOICE, "base_resp": {}}), Done),
    ("200 with voice_id and status_code 0: done", reply(200, base(0, voice_info=VOICE)), Done),
    ("200 with voice_id and input_sensitive: done", reply(200, {"voice_info": VOICE, "input_sensitive": True}), Done),
    ("200 with voice_id and a null error: done", reply(200, {**VOICE, "error": None}), Done),
    ("200 with voice_id and base_resp 2013: ambiguous", reply(200, base(2013, **VOICE)), Unknown),
    ("200 with voice_id and base_resp 1002: ambiguous", reply(200, base(1002, **VOICE)), Unknown),
    ("200 with voice_id and base_resp 4711: ambiguous", reply(200, base(4711, **VOICE)), Unknown),
    ("200 with non-zero base_resp: by upstream code", reply(200, base(2013)), (ApiError, Scope.REQUEST)),
    ("200 with unknown base_resp: ambiguous", reply(200, base(4711)), Unknown),
    ("200 with input_sensitive: ambiguous", reply(200, {"input_sensitive": True, "base_resp": {}}), Unknown),
    ("200 with error: ambiguous", reply(200, {"error": "who knows"}), Unknown),
    ("200 with HTML: ambiguous", reply(200, PAGE, HTML), Unknown),
    ("200 not JSON: ambiguous", reply(200, b"OK"), Unknown),
    ("200 truncated: ambiguous", reply(200, b'{"voice_id": "use'), Unknown),
    ("200 not UTF-8: ambiguous", reply(200, b'{"voice_name": "Zo\xeb", "voice_id": "1"}'), Unknown),
    ("200 nested too deeply: ambiguous", reply(200, b"[" * 100_000), Unknown),
    ("400 {error, code}: refused", reply(400, {"error": "bad", "code": 400}), (ApiError, Scope.REQUEST)),
    ("400 {error}: refused", reply(400, {"error": "Parameter voice_name is required"}), (ApiError, Scope.REQUEST)),
    ("400 error as object: refused", reply(400, {"error": {"code": 400, "message": "m"}}), (ApiError, Scope.REQUEST)),
    ("400 without a body: refused", reply(400), (ApiError, Scope.REQUEST)),
    ("401: token", reply(401, {"error": "Unauthorized"}), (AuthenticationError, Scope.TOKEN)),
    ("402: subscription", reply(402, {"error": "expired", "code": 402}), (SubscriptionError, Scope.TOKEN)),
    ("403: resource of another user", reply(403, {"error": "user:9999"}), (ApiError, Scope.REQUEST)),
    ("404: unknown account", reply(404, {"error": "account x not found"}), (ApiError, Scope.REQUEST)),
    ("412: account without credits", reply(412, {"error": "none"}), (AccountUnavailable, Scope.ACCOUNT)),
    ("422: moderated", reply(422, {"error": "moderated"}), (ContentRejected, Scope.REQUEST)),
    ("429: wait", reply(429, {"error": "Too many requests"}), (RateLimited, Scope.PACE)),
    ("500: ambiguous", reply(500, {"error": "Login failed", "code": 500}), Unknown),
    ("502: ambiguous", reply(502, {"error": "Bad Gateway", "code": 502}), Unknown),
    ("503: ambiguous", reply(503, {"error": "Service Unavailable"}), Unknown),
    ("504: ambiguous", reply(504, {"error": "Gateway Timeout"}), Unknown),
    *((f"{status}: ambiguous", reply(status, b"error code: 520"), Unknown) for status in range(520, 528)),
    ("HTML 400: ambiguous", reply(400, PAGE, HTML), Unknown),
    ("HTML 403: ambiguous", reply(403, PAGE, HTML), Unknown),
    ("HTML 412: ambiguous", reply(412, PAGE, HTML), Unknown),
    ("HTML 422 by its looks: ambiguous", reply(422, b"\xef\xbb\xbf\n " + PAGE, {}), Unknown),
    ("HTML 502: ambiguous", reply(502, PAGE, HTML), Unknown),
    ("HTML 520: ambiguous", reply(520, b"<HTML>", {}), Unknown),
    ("HTML 401: token all the same", reply(401, PAGE, HTML), (AuthenticationError, Scope.TOKEN)),
    ("HTML 404: no such route", reply(404, PAGE, HTML), (UnexpectedReply, Scope.REQUEST)),
    ("HTML 413: never accepted", reply(413, PAGE, HTML), (UnexpectedReply, Scope.REQUEST)),
    ("HTML 429: not accepted", reply(429, PAGE, HTML), (RateLimited, Scope.PACE)),
    ("596 as status", reply(596, {"error": "pending"}), (AccountUnavailable, Scope.ACCOUNT)),
    ("596 with a string code", reply(596, {"error": "x", "code": "LOST"}), (AccountUnavailable, Scope.ACCOUNT)),
    ("596 as code", reply(400, {"error": "x", "code": 596}), (AccountUnavailable, Scope.ACCOUNT)),
    ("596 as code in text", reply(500, {"error": "x", "code": "596"}), (AccountUnavailable, Scope.ACCOUNT)),
    ("596 in an error object", reply(400, {"error": {"code": 596}}), (AccountUnavailable, Scope.ACCOUNT)),
    *(
        (f"2600010: slots, {where}, HTTP {status}", reply(status, body), (VoiceSlotsFull, Scope.SLOTS))
        for status in (400, 412, 429, 500)
        for where, body in {
            "as code": {"error": "Voice clone slots exceeded", "code": 2600010},
            "as text code": {"error": "full", "code": "2600010"},
            "in the error's words": {"error": "upstream said 2600010, sorry"},
            "in an error object": {"error": {"details": [{"reason": "E2600010"}]}},
            "in base_resp": base(2600010),
            "in no JSON": b"code=2600010;",
        }.items()
    ),
    ("200 with base_resp 2600010: slots", reply(200, base(2600010)), (VoiceSlotsFull, Scope.SLOTS)),
    ("200 with error 2600010: slots", reply(200, {"error": "no: 2600010!"}), (VoiceSlotsFull, Scope.SLOTS)),
    ("200 with 1000 but words of 2600010", reply(200, {**base(1000), "x": 2600010}), (VoiceSlotsFull, Scope.SLOTS)),
    ("a longer number is not 2600010", reply(400, {"error": "12600010 and 26000101"}), (ApiError, Scope.REQUEST)),
    ("read timeout, reset or broken body after sending", NoReply(was_sent=True, reason="reset", status=200), Unknown),
    # Outside the table: the reading that cannot cost a voice.
    ("408: ambiguous", reply(408, {"error": "slow"}), Unknown),
    ("499: ambiguous", reply(499), Unknown),
    ("100: ambiguous", reply(100), Unknown),
    ("302: nothing was carried out", reply(302, PAGE, HTML), (UnexpectedReply, Scope.REQUEST)),
    ("405: no such route", reply(405), (UnexpectedReply, Scope.REQUEST)),
    ("409: nobody documents it", reply(409, {"error": "?"}), (UnexpectedReply, Scope.REQUEST)),
]


@pytest.mark.parametrize(("row", "answer", "expected"), SECTION_6, ids=[row for row, _, _ in SECTION_6])
def test_section_6(row: str, answer: Reply | NoReply, expected: Expected) -> None:
    """Each answer of the contract's section 6 gives the verdict that its row documents."""
    verdict = interpret(answer)
    if isinstance(expected, tuple):
        assert isinstance(verdict, Refused)
        assert (verdict.error, verdict.scope) == expected
        assert isinstance(answer, Reply)
        assert verdict.status_code == answer.status
        assert verdict.safe_to_retry is (verdict.scope in {Scope.PACE, Scope.ACCOUNT, Scope.SLOTS})
        assert verdict.detail
        if verdict.error is VoiceSlotsFull:
            assert verdict.code == 2600010
    else:
        assert type(verdict) is expected


def test_connect_failure_before_the_request_is_sent() -> None:
    """Where nothing left, nothing happened."""
    assert interpret(NoReply(was_sent=False, reason="refused")) == NotSent("refused")


def test_lost_answer_keeps_its_status_line() -> None:
    """A status that arrived without its body is told, and proves nothing."""
    assert interpret(NoReply(was_sent=True, reason="cut", status=200)) == Unknown("cut", 200)


def test_done_has_the_decoded_body() -> None:
    """Success brings its payload and status, an empty body included [D X24: body not shown]."""
    assert interpret(reply(201, {"audioId": "a"})) == Done({"audioId": "a"}, 201)
    for body in (b"", b" \n", b" null\n"):
        assert interpret(reply(200, body)) == Done(None)
    assert interpret(reply(200, [1])) == Done([1])


def test_moderated_without_a_voice_is_not_asked_again() -> None:
    """`input_sensitive` without a voice: a look first; then it is the content's fault, without another clone."""
    verdict = unknown(200, {"input_sensitive": True})
    assert verdict.if_absent == Refused(ContentRejected, Scope.REQUEST, "the input was moderated", 200)
    assert verdict.resends == 0


def test_a_voice_beside_a_refusal_is_looked_for() -> None:
    """Where an answer says both, a look decides, and the refusal stands only if there is no voice."""
    verdict = unknown(200, base(2013, **VOICE))
    assert verdict.if_absent is not None
    assert (verdict.if_absent.error, verdict.code, verdict.resends) == (ApiError, 2013, 0)
    paced = unknown(200, base(1002, **VOICE))
    assert (paced.if_absent, paced.resends) == (None, None)
    assert unknown(200, base(1000, **VOICE)).if_absent is None


# --- the contract's section 6.1 ---------------------------------------------------------------------------------------

AMBIGUOUS = "yes, reconcile"
SECTION_6_1: dict[int, tuple[type[ApiError], Scope] | None] = {
    1000: None,
    1001: None,
    1002: (RateLimited, Scope.PACE),
    1004: (AccountUnavailable, Scope.ACCOUNT),
    1008: (AccountUnavailable, Scope.ACCOUNT),
    1013: None,
    1024: None,
    1026: (ContentRejected, Scope.REQUEST),
    1027: (ContentRejected, Scope.REQUEST),
    1033: None,
    1039: (RateLimited, Scope.PACE),
    1041: (RateLimited, Scope.PACE),
    1042: (ContentRejected, Scope.REQUEST),
    1043: (ApiError, Scope.REQUEST),
    1044: (ApiError, Scope.REQUEST),
    2013: (ApiError, Scope.REQUEST),
    20132: (ApiError, Scope.REQUEST),
    2037: (ApiError, Scope.REQUEST),
    2038: (AccountUnavailable, Scope.ACCOUNT),
    2039: (ApiError, Scope.REQUEST),
    2042: (ApiError, Scope.REQUEST),
    2045: (RateLimited, Scope.PACE),
    2048: (ApiError, Scope.REQUEST),
    2049: (AccountUnavailable, Scope.ACCOUNT),
    2054: (ApiError, Scope.REQUEST),
    2056: (AccountUnavailable, Scope.ACCOUNT),
    2600010: (VoiceSlotsFull, Scope.SLOTS),
}
PLACES: dict[str, Callable[[int], Reply]] = {
    "200 base_resp": lambda code: reply(200, base(code)),
    "200 base_resp as text": lambda code: reply(200, base(str(code))),
    "400 base_resp": lambda code: reply(400, base(code)),
    "400 code": lambda code: reply(400, {"error": "x", "code": code}),
    "400 code as text": lambda code: reply(400, {"error": "x", "code": str(code)}),
    "400 code in an object": lambda code: reply(400, {"error": {"message": "x", "code": code}}),
    "500 error text": lambda code: reply(500, {"error": f"MiniMax error code: {code}, sorry"}),
    "500 error text, in brackets": lambda code: reply(500, {"error": f"it failed ({code})"}),
    "500 error text, in front": lambda code: reply(500, {"error": f"[{code}] it failed"}),
    "500 error object text": lambda code: reply(500, {"error": {"message": f"status={code}"}}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("code", SECTION_6_1)
def test_section_6_1(code: int, place: str) -> None:
    """Each upstream code has its documented meaning, wherever it stands and in whichever type it comes."""
    verdict = interpret(PLACES[place](code))
    meaning = SECTION_6_1[code]
    if meaning is None:
        assert isinstance(verdict, Unknown)
    else:
        assert isinstance(verdict, Refused)
        assert (verdict.error, verdict.scope) == meaning
    assert verdict.code == code


def test_the_table_has_no_other_codes() -> None:
    """The table in the code is the contract's, no more and no less; 0 and no code are success."""
    assert set(_replies._UPSTREAM) == set(SECTION_6_1)
    for code in (0, "0", None):
        assert isinstance(interpret(reply(200, base(code))), Done)


def test_unknown_error_1000_is_tried_once_more() -> None:
    """1000: at most once more, then the samples may be at fault; the other ambiguous codes say nothing of a fault."""
    verdict = unknown(200, base(1000))
    assert verdict.resends == 1
    assert verdict.if_absent is not None
    assert (verdict.if_absent.error, verdict.if_absent.scope) == (ApiError, Scope.REQUEST)
    assert "samples may be at fault" in verdict.if_absent.detail
    other = unknown(500, {"error": "busy (1013)"})
    assert (other.resends, other.if_absent) == (None, None)


@pytest.mark.parametrize(
    "text",
    ["at 20137 Hz", "in 2026-08-24T14:31:15.000Z", "code 12345678", "error code 9999", "name (10020)", "no digits"],
)
def test_numbers_in_words_that_are_no_codes(text: str) -> None:
    """A number that is not written as a code, or that nobody lists, decides nothing."""
    verdict = refusal(400, {"error": text})
    assert (verdict.error, verdict.scope, verdict.detail) == (ApiError, Scope.REQUEST, text)


@pytest.mark.parametrize("code", [True, 1002.0, [1002], {"a": 1002}, None, "", "1002x", "\u00b2", "9" * 20])
def test_codes_of_strange_types(code: object) -> None:
    """What is neither a number nor digits is no known code, in either place."""
    assert refusal(400, {"error": "x", "code": code}).scope is Scope.REQUEST
    assert isinstance(interpret(reply(200, base(code))), Done | Unknown)


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        ({"error": "x", "code": 400}, 400),
        ({"error": "x", "code": "400"}, 400),
        ({"error": "x", "code": "REFRESH_FAILED"}, "REFRESH_FAILED"),
        ({"error": {"code": 7}}, 7),
        ({"error": {"code": 7}, "code": 8}, 8),
        ({"error": "x"}, None),
    ],
)
def test_the_remotes_own_code_is_kept(envelope: dict[str, Any], code: object) -> None:
    """A code is kept as it came, digits as a number."""
    assert refusal(400, envelope).code == code


@pytest.mark.parametrize(
    ("status", "body", "headers", "detail"),
    [
        (400, {"error": "words"}, JSON, "words"),
        (400, {"error": "x" * 1000}, JSON, "x" * 300),
        (400, {"error": {"message": "deep words", "status": "BAD"}}, JSON, "deep words"),
        (400, {"error": {"status": "BAD"}}, JSON, "BAD"),
        (400, {"error": {"why": 1}}, JSON, '{"why": 1}'),
        (400, {"error": ["a", 1]}, JSON, '["a", 1]'),
        (400, {"error": 5}, JSON, "5"),
        (400, base(7), JSON, "words"),
        (400, {"base_resp": 7}, JSON, "HTTP 400: '{\"base_resp\": 7}'"),
        (400, b"", JSON, "HTTP 400 without a body"),
        (500, PAGE, HTML, "HTTP 500 with an HTML page, perhaps from a proxy"),
        (400, b"\xff\xfe\xfdplain", JSON, "HTTP 400: '\ufffd\ufffd\ufffdplain'"),
        (400, b'{"error": "a\\ud800b"}', JSON, "a?b"),
        (400, b'{"error": "\\ud83d\\ude00"}', JSON, "\U0001f600"),
    ],
)
def test_details_are_short_words(status: int, body: object, headers: Mapping[str, str], detail: str) -> None:
    """What is told of an answer is the remote's own words where there are any, short, and can always be encoded."""
    verdict = interpret(reply(status, body, headers))
    assert isinstance(verdict, Refused | Unknown)
    assert verdict.detail == detail


def test_no_json_at_200_is_quoted() -> None:
    """The beginning of what should have been JSON is in the detail."""
    assert unknown(200, b"<html>" + b"x" * 500).detail.startswith("the answer is not JSON: '<html>xx")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_of_json(encoding: str) -> None:
    """JSON is read in every encoding that its norm ever allowed."""
    assert interpret(reply(200, json.dumps(VOICE, ensure_ascii=False).encode(encoding))) == Done(VOICE)


def test_what_can_be_read_but_not_written_has_no_words() -> None:
    """An error that is nested so deeply that it could only just be read is left without words."""
    deep: list[object] = []
    for _ in range(200_000):
        deep = [deep]
    assert _replies._error_text({"error": deep}) == ""


def test_nesting_never_raises() -> None:
    """An error nested as deeply as can just be read is still interpreted."""
    for depth in (*range(960, 1000), 50_000):
        for inner in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
            answer = reply(400, b'{"error":' + inner + b"}")
            assert refusal(400, answer.body).scope is Scope.REQUEST
            assert not route_is_gone(answer)


# --- how long to wait -------------------------------------------------------------------------------------------------

SKEWED = {"date": "Mon, 24 Aug 2026 11:00:00 GMT"}
WAITS: list[tuple[str, Mapping[str, str], object, float | None]] = [
    ("seconds", {"retry-after": "20"}, None, 20),
    ("fraction", {"retry-after": " 1.5 "}, None, 1.5),
    ("zero", {"retry-after": "0"}, None, 0),
    ("negative", {"retry-after": "-5"}, None, 0),
    ("date", {"retry-after": "Mon, 24 Aug 2026 12:00:30 GMT"}, None, 30),
    ("date without zone", {"retry-after": "Mon, 24 Aug 2026 12:00:30 -0000"}, None, 30),
    ("date by a skewed clock", {"retry-after": "Mon, 24 Aug 2026 11:00:30 GMT", **SKEWED}, None, 30),
    ("date in the past", {"retry-after": "Mon, 24 Aug 2026 11:59:00 GMT"}, None, 0),
    ("date with junk for a clock", {"retry-after": "Mon, 24 Aug 2026 12:00:30 GMT", "date": "soon"}, None, 30),
    ("junk", {"retry-after": "soon"}, None, None),
    ("junk, then body", {"retry-after": "soon"}, "2026-08-24T12:00:07.500Z", 7.5),
    ("infinite", {"retry-after": "inf"}, None, None),
    ("infinite, then body", {"retry-after": "1e999"}, "2026-08-24T12:00:07Z", 7),
    ("not a number", {"retry-after": "nan"}, None, None),
    ("longer than there are dates", {"retry-after": "1e300"}, None, FOR_EVER_S),
    ("the last date of all", {"retry-after": "Fri, 31 Dec 9999 23:59:59 -1200"}, None, FOR_EVER_S),
    ("a zone out of this world", {"retry-after": f"Mon, 20 Nov 1995 19:12:08 +{'9' * 20}"}, None, None),
    ("empty", {"retry-after": ""}, None, None),
    ("header before body", {"retry-after": "3"}, "2026-08-24T12:00:07Z", 3),
    ("body, Z", {}, "2026-08-24T12:00:34.000Z", 34),
    ("body, offset", {}, "2026-08-24T14:00:34+02:00", 34),
    ("body, no zone", {}, "2026-08-24T12:00:34", 34),
    ("body by a skewed clock", SKEWED, "2026-08-24T11:00:34Z", 34),
    ("body in the past", {}, "2026-08-24T11:00:00Z", 0),
    ("body junk", {}, "soon", None),
    ("body number", {}, 20, None),
    ("nothing", {}, None, None),
]


@pytest.mark.parametrize(("name", "headers", "body", "wait_s"), WAITS, ids=[row[0] for row in WAITS])
def test_retry_after(name: str, headers: Mapping[str, str], body: object, wait_s: float | None) -> None:
    """The header in seconds or as a date, else the body's time; dates by the server's own clock; never negative."""
    envelope = {"error": "Too many requests"} | ({} if body is None else {"retryAfter": body})
    assert refusal(429, envelope, JSON | headers).retry_after_s == wait_s


def test_retry_after_of_other_answers() -> None:
    """503 may say how long as well, and so may an upstream refusal for its pace."""
    headers = JSON | {"retry-after": "9"}
    assert unknown(503, {"error": "down"}, headers).retry_after_s == 9
    assert refusal(200, base(1002), headers).retry_after_s == 9
    assert interpret(reply(503, {"error": "down"}, headers)) != interpret(reply(503, {"error": "down"}))


def test_server_time() -> None:
    """The server's clock is read from `Date`, and nothing is made of junk."""
    assert server_time(reply(200, b"", SKEWED)) == NOW - timedelta(hours=1)
    assert server_time(reply(200, b"", {"date": "junk"})) is None
    assert server_time(reply(200, b"", {})) is None


# --- routes that are gone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "is_gone"),
    [
        (reply(404), True),
        (reply(404, PAGE, HTML), True),
        (reply(404, {"error": "Not Found"}), True),
        (reply(404, {"error": "Cannot GET /audio/voices/?account=A"}), True),
        (reply(404, {"error": "MiniMax account 335577991122334455 not found"}), False),
        (reply(404, b"Unknown account", {}), False),
        (reply(405), True),
        (reply(410, {"error": "account?"}), True),
        (reply(400, {"error": "This endpoint has been decommissioned"}), True),
        (reply(403, {"error": {"message": "audio/* was Discontinued"}}), True),
        (reply(400, b"Endpoint retired", {}), True),
        (reply(400, b"<html>no longer available", HTML), False),
        (reply(400, {"error": "no longer supported"}), True),
        (reply(400, {"error": "Parameter voice_name is required"}), False),
        (reply(400, ["decommissioned"]), True),
        (reply(500, {"error": "decommissioned"}), False),
        (reply(503, {"error": "decommissioned"}), False),
        (reply(596, {"error": "account retired"}), False),
        (reply(200, {"error": "decommissioned"}), False),
        (reply(301, b"", {}), False),
        (NoReply(was_sent=True, reason="decommissioned", status=404), False),
        (NoReply(was_sent=False, reason="gone"), False),
    ],
)
def test_route_is_gone(answer: Reply | NoReply, is_gone: bool) -> None:
    """404, 405, 410 or words to that effect prove it; success, 5xx, silence and unknown accounts do not."""
    assert route_is_gone(answer) is is_gone


# --- verdicts as errors -----------------------------------------------------------------------------------------------

REFUSALS = [answer for _, answer, expected in SECTION_6 if isinstance(expected, tuple)]


@pytest.mark.parametrize("answer", REFUSALS)
def test_refusals_become_errors_and_back(answer: Reply) -> None:
    """The error that a refusal is raised as has all its facts, and gives the same refusal again."""
    verdict = interpret(answer)
    assert isinstance(verdict, Refused)
    error = error_from(verdict, account="A")
    assert type(error) is verdict.error
    assert (error.account, error.safe_to_retry, error.voice_may_exist) == ("A", verdict.safe_to_retry, False)
    assert refused_from(error) == verdict


def test_silence_becomes_an_error_that_may_be_tried_again() -> None:
    """What was not sent, or whose answer was lost, is the server's fault on a call that makes no voice."""
    error = error_from(NotSent("refused"), account="A")
    assert (type(error), error.safe_to_retry, error.status_code) == (ServerError, True, None)
    assert str(error) == "the remote cannot be reached: refused"
    error = error_from(Unknown("cut", 503, "X", 9.0))
    facts = (error.message, error.status_code, error.code, error.retry_after_s, error.safe_to_retry, error.account)
    assert facts == ("cut", 503, "X", 9.0, True, None)


# --- reading payloads -------------------------------------------------------------------------------------------------


def test_both_shapes_of_a_clone() -> None:
    """Flat [D C25b] or wrapped in `voice_info` [D C24]; the one that has a voice_id counts."""
    for payload in (
        VOICE,
        {"voice_info": VOICE, "base_resp": {}},
        {**VOICE, "voice_info": {}},
        {**VOICE, "voice_info": 1},
    ):
        voice = read_voice(payload)
        assert voice is not None
        assert voice.voice_id == VOICE["voice_id"]
    for payload in ({}, {"voice_info": {}}, {"voice_id": ""}, {"voice_id": None}, [], None, "v", 5):
        assert read_voice(payload) is None


READERS: list[Callable[[Any], object]] = [
    read_upload,
    read_voice_page,
    read_config,
    read_accounts,
    read_slots,
    read_loads,
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("payload", [None, [], "x", 5, True], ids=repr)
def test_readers_refuse_what_is_no_object(reader: Callable[[Any], object], payload: object) -> None:
    """A success in a shape that nobody documents is told as such."""
    with pytest.raises(UnexpectedReply, match="answered with success, but with no ") as caught:
        reader(payload)
    assert caught.value.status_code == 200
    assert caught.value.__context__ is None


def test_readers_skip_rows_that_they_cannot_read() -> None:
    """One strange row spoils nothing: rows without the one needed field are left out."""
    rows = [None, 5, {}, {"voice_id": None}, {"voice_name": "Ann"}, {"voice_name": 5}, VOICE]
    page = read_voice_page({"voice_list": rows, "has_more": "junk", "x": 1})
    assert page.names_without_id == ("Ann",)
    assert [voice.voice_id for voice in page.voice_list] == [VOICE["voice_id"]]
    assert (page.has_more, page.model_extra) == (None, {"x": 1})
    accounts = read_accounts({"": {}, "A": {"account": None, "jwt": {"token": "t"}}, "B": 5, "C": {"account": "D"}})
    assert [(account.account, account.model_extra) for account in accounts] == [("A", {}), ("C", {})]
    loads = read_loads({"available": [None, {}, {"account": True}, {"account": [1]}, {"account": 7, "executing": "?"}]})
    assert [(load.account, load.executing, load.executing_audio) for load in loads] == [("7", None, 0)]
    config = read_config(
        {"voice_tag_language": [None, {}, {"tag_name": None}, {"tag_name": "X"}], "t2a_emotion": "junk"}
    )
    assert (config.languages, config.emotions, config.accents) == (("X",), (), ())
    with pytest.raises(UnexpectedReply, match="no voice_list"):
        read_voice_page({"voices": []})
    with pytest.raises(UnexpectedReply, match="no fileID"):
        read_upload({"fileID": ""})
    with pytest.raises(UnexpectedReply, match="no list"):
        read_loads({"available": {}})


# --- the recorded bodies ----------------------------------------------------------------------------------------------


def read_names(payload: Any) -> list[str | None]:
    """Read the names in a list of voices."""
    return [voice.voice_name for voice in read_voice_page(payload).voice_list]


def read_id(payload: Any) -> str:
    """Read the id of a clone."""
    voice = read_voice(payload)
    assert voice is not None
    assert voice.tag_list == ("English",)
    assert voice.voice_status == 2
    assert voice.created_at is not None
    return voice.voice_id


def read_limits(payload: Any) -> list[tuple[str, bool, bool | None]]:
    """Read who can clone."""
    return [(account.account, account.usable, account.support_audio) for account in read_accounts(payload)]


LANGUAGES = ("English", "Chinese (Mandarin)", "Italian")
GOOD: dict[str, tuple[Callable[[Any], object], object]] = {
    "account.200.json": (lambda payload: payload["account"], "335577991122334455"),
    "account_post.201.json": (lambda payload: payload["account"], "335577991122334455"),
    "account_v2.200.json": (lambda payload: payload["subscriptionIsActive"], True),
    "accounts.200.json": (read_limits, [("335577991122334455", True, True), ("335577991122339900", False, True)]),
    "audio_clone_voice.200.2024-12-27.json": (read_id, "3855500011122233"),
    "audio_clone_voice.200.2025-01-24.json": (
        read_id,
        "user:4242-minimax:335577991122334455-audio:385550001112223",
    ),
    "audio_config.200.json": (lambda payload: read_config(payload).languages, LANGUAGES),
    "audio_item.200.json": (lambda payload: payload["audio_url"][-4:], ".mp3"),
    "audio_list.200.json": (lambda payload: len(payload["audio_list"]), 1),
    "audio_upload_sample.200.json": (
        lambda payload: read_upload(payload).file_id,
        "user:4242-minimax:335577991122334455-file:384001112223334",
    ),
    "audio_voices.200.cloned.2025-01-12.json": (read_names, ["Northern Narrator"]),
    "audio_voices.200.cloned.2025-01-24.json": (read_names, ["Northern Narrator", "Southern Narrator"]),
    "audio_voices.200.cloned.empty.json": (read_names, []),
    "audio_voices.200.system.json": (read_names, ["Diligent Leader"]),
    "scheduler.200.json": (len, 1),
    "scheduler_available.200.2025-03-17.json": (
        lambda payload: [(load.account, load.executing_audio, load.available) for load in read_loads(payload)],
        [("335577991122334455", 0, 2)],
    ),
    "scheduler_available.200.2026-08.json": (
        lambda payload: [(load.account, load.executing_audio, load.max_jobs) for load in read_loads(payload)],
        [("335577991122334455", 2, 1), ("335577991122339900", 0, 1)],
    ),
    "speech_audio.200.completed.json": (lambda payload: payload["statusFinal"], True),
    "speech_audio.200.in_progress.json": (lambda payload: payload["statusFinal"], False),
    "speech_clone_voice.200.json": (read_id, "user:4242-minimax:335577991122334455-voice:391550001112223"),
    "speech_config.200.json": (lambda payload: read_config(payload).languages, LANGUAGES),
    "speech_create.201.json": (
        lambda payload: payload["audioId"],
        "user:4242-minimax:335577991122334455-audio:392000111222333",
    ),
    "speech_equity.200.full.json": (lambda payload: read_slots(payload).free, 0),
    "speech_equity.200.json": (lambda payload: read_slots(payload).free, 2),
    "speech_equity.200.over.json": (lambda payload: read_slots(payload).free, 0),
    "speech_upload_sample.200.json": (
        lambda payload: read_upload(payload).file_id,
        "user:4242-minimax:335577991122334455-file:391001112223334",
    ),
    "speech_voices.200.cloned.empty.json": (read_names, []),
    "speech_voices.200.cloned.json": (read_names, ["Northern Narrator k7", "Southern Narrator p2"]),
    "speech_voices.200.system.json": (read_names, ["Calm Woman"]),
}
BAD: dict[str, tuple[type[ApiError], Scope, int | str | None, str]] = {
    "audio_clone_voice.400.2024-12-27.json": (ApiError, Scope.REQUEST, None, "Parameter voice_name is required"),
    "audio_clone_voice.401.2024-12-27.json": (AuthenticationError, Scope.TOKEN, None, "Unauthorized"),
    "error.400.json": (ApiError, Scope.REQUEST, 400, "Parameter language_tag is required"),
    "error.401.json": (AuthenticationError, Scope.TOKEN, 401, "Unauthorized"),
    "error.402.json": (SubscriptionError, Scope.TOKEN, 402, "Account has no subscription or subscription expired"),
    "error.403.json": (ApiError, Scope.REQUEST, None, "Unauthorized access to user:9999 detected"),
    "error.404.json": (ApiError, Scope.REQUEST, 404, "MiniMax account 335577991122334455 not found"),
    "error.412.json": (AccountUnavailable, Scope.ACCOUNT, 412, "Account has no audio subscription"),
    "error.422.json": (ContentRejected, Scope.REQUEST, 422, "Text was moderated"),
    "error.429.json": (RateLimited, Scope.PACE, 429, "Too many requests"),
    "error.429.minimal.json": (RateLimited, Scope.PACE, 429, "Too many requests"),
    "error.596.json": (AccountUnavailable, Scope.ACCOUNT, 596, "Your minimax account has pending error."),
    "error.596.string_code.json": (AccountUnavailable, Scope.ACCOUNT, "REFRESH_FAILED", "Session refresh failed"),
    "error.object.400.json": (ApiError, Scope.REQUEST, 400, "Request contains an invalid argument."),
    "speech_audio.200.failed.json": (ContentRejected, Scope.REQUEST, 1027, "output new_sensitive"),
    "speech_clone_voice.slot_full.2600010.json": (VoiceSlotsFull, Scope.SLOTS, 2600010, "Voice clone slots exceeded"),
    "speech_delete_voice.400.account_param.json": (ApiError, Scope.REQUEST, 400, "Parameter account not supported"),
    "upstream_base_resp.1002.json": (RateLimited, Scope.PACE, 1002, "rate limit"),
    "upstream_base_resp.2013.json": (ApiError, Scope.REQUEST, 2013, "invalid params"),
    "upstream_base_resp.2037.json": (ApiError, Scope.REQUEST, 2037, "voice duration too short"),
    "upstream_input_sensitive.json": (ContentRejected, Scope.REQUEST, 1026, "input new_sensitive"),
}
OPEN: dict[str, tuple[int, str]] = {
    "error.500.json": (500, "Login failed: invalid credentials"),
    "error.502.json": (502, "Bad Gateway"),
    "error.503.json": (503, "Service Unavailable"),
    "error.504.json": (504, "Gateway Timeout"),
    "upstream_base_resp.1000.json": (1000, "unknown error"),
    "upstream_base_resp.1001.json": (1001, "request timeout"),
}


def recorded(name: str) -> Reply:
    """Play a recorded body with its recorded status."""
    return reply(INDEX[name]["http_status"], (RECORDED / name).read_bytes())


def test_every_recorded_body_is_looked_at() -> None:
    """The index, the files and the tables below name the same bodies, each once."""
    names = [*GOOD, *BAD, *OPEN]
    assert sorted(names) == sorted(INDEX)
    assert sorted(names) == sorted(path.name for path in RECORDED.glob("*.json") if path.name != "_index.json")


@pytest.mark.parametrize("name", GOOD)
def test_recorded_success(name: str) -> None:
    """Every recorded success is one, and its values are read."""
    reader, value = GOOD[name]
    verdict = interpret(recorded(name))
    assert isinstance(verdict, Done)
    assert verdict.status_code == INDEX[name]["http_status"]
    assert reader(verdict.payload) == value


@pytest.mark.parametrize("name", BAD)
def test_recorded_refusal(name: str) -> None:
    """Every recorded refusal is one, with its scope, code and words, and no route that is gone."""
    error, scope, code, detail = BAD[name]
    answer = recorded(name)
    verdict = interpret(answer)
    assert isinstance(verdict, Refused)
    assert (verdict.error, verdict.scope, verdict.code) == (error, scope, code)
    assert verdict.detail.startswith(detail)
    assert not route_is_gone(answer)
    expected_s = (datetime(2026, 8, 24, 12, 34, 56, tzinfo=UTC) - NOW).total_seconds()
    assert verdict.retry_after_s == (expected_s if name == "error.429.json" else None)


@pytest.mark.parametrize("name", OPEN)
def test_recorded_ambiguity(name: str) -> None:
    """Every recorded answer that proves nothing is said to be unknown."""
    verdict = interpret(recorded(name))
    assert isinstance(verdict, Unknown)
    assert (verdict.code, verdict.detail) == OPEN[name]
    assert not route_is_gone(recorded(name))


def test_recorded_jwt_is_dropped() -> None:
    """What `accounts` holds of the upstream login does not get past the reader."""
    payload = json.loads((RECORDED / "accounts.200.json").read_bytes())
    assert "jwt" in next(iter(payload.values()))
    assert all("jwt" not in (account.model_extra or {}) for account in read_accounts(payload))


# --- junk -------------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    sorted({"error", "code", "base_resp", "status_code", "status_msg", "message", "retryAfter", "input_sensitive"})
) | st.sampled_from(
    sorted({"voice_info", "voice_id", "voice_list", "available", "account", "fileID", "voice_tag_language", "tag_name"})
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([0, 596, 1000, 1002, 2013, 2600010, 10**400, "2600010", "1002", "decommissioned", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "date", "content-type"]),
    st.text(st.characters(), max_size=12)
    | st.sampled_from(["20", "-1", "nan", "text/html", "Mon, 24 Aug 2026 12:00:30 GMT", "Mon, 24 Aug 2026 -99999999"]),
)
STATUSES = st.sampled_from(
    [200, 201, 204, 302, 400, 401, 402, 403, 404, 412, 422, 429, 500, 502, 520, 596]
) | st.integers(100, 599)


def check(answer: Reply) -> None:
    """Interpret an answer by every means, and check what holds of any."""
    verdict: Verdict = interpret(answer)
    route_is_gone(answer)
    if isinstance(verdict, Done):
        assert 200 <= answer.status < 300
        read_voice(verdict.payload)
        for reader in READERS:
            with suppress(UnexpectedReply):
                repr(reader(verdict.payload))
    else:
        assert isinstance(verdict, Refused | Unknown)
        verdict.detail.encode()
        assert len(verdict.detail) < 600
        assert verdict.retry_after_s is None or 0 <= verdict.retry_after_s < float("inf")
        error_from(verdict)
        for value in dataclasses.astuple(verdict):
            repr(value)


@pytest.mark.slow  # many examples
@given(STATUSES, HEADERS, VALUES, st.booleans())
@settings(derandomize=True, deadline=None, max_examples=400)
def test_weird_json_never_raises(status: int, headers: dict[str, str], value: object, is_ascii: bool) -> None:
    """Any JSON at any status gives a verdict, and the readers read it or say that they cannot."""
    body = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    check(Reply(status, headers, body, NOW))


@pytest.mark.slow  # many examples
@given(STATUSES, HEADERS, st.binary(max_size=60))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_bytes_never_raise(status: int, headers: dict[str, str], body: bytes) -> None:
    """Any bytes at any status give a verdict."""
    check(Reply(status, headers, body, NOW))


@pytest.mark.parametrize("name", [*GOOD, *BAD, *OPEN])
def test_truncated_bodies_never_raise(name: str) -> None:
    """A recorded body cut at any place gives a verdict, and a clone that was cut is never done."""
    whole = recorded(name)
    for end in range(1, len(whole.body.rstrip()), 7):
        cut = dataclasses.replace(whole, body=whole.body[:end])
        check(cut)
        if whole.status == 200:
            assert isinstance(interpret(cut), Unknown)


@given(VALUES)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_what_is_read_can_be_encoded(value: object) -> None:
    """Lone surrogates, which can be neither stored nor printed, do not get past the decoder."""
    verdict = interpret(reply(200, {"voice_list": [{"voice_id": "v", "more": value}], "x": value}))
    if isinstance(verdict, Done):
        json.dumps(verdict.payload, ensure_ascii=False).encode()
