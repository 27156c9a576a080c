"""`useapi-voice doctor`: is everything there that a clone needs? Each finding with its remedy; nothing is spent."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Final

from .._client import VoiceClient
from .._errors import ApiError, ServerError, UseapiVoiceError
from .._models import Account
from .._version import __version__
from ._connect import Remote, base_url, check_environment, connected
from ._exit import CliError, ExitCode, code_of, explain, remedy_of, worst
from ._plan import free_slots
from ._text import count, names, put, put_json, shown

_BROKEN: Final = "post the account anew at useapi.net (POST accounts); every call for it is refused until then"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that was looked at.

    Attributes:
        level: `ok`, `warning` or `error`.
        code: What it makes of the exit code.
    """

    subject: str
    level: str
    message: str
    remedy: str = ""
    code: ExitCode = ExitCode.OK


def _ok(subject: str, message: str) -> Finding:
    return Finding(subject, "ok", message)


def _error(subject: str, error: Exception) -> Finding:
    message = explain(error) if isinstance(error, CliError) else str(error)
    return Finding(subject, "error", message, remedy_of(error), code_of(error))


async def run(json: bool) -> ExitCode:  # noqa: FBT001 - handed on by position, as anyio does
    """Look at everything, and tell each finding as soon as it is known."""
    codes: list[ExitCode] = []
    async for finding in _examine():
        codes.append(finding.code)
        if json:
            put_json({**asdict(finding), "code": finding.code.value})
        else:
            _put(finding)
    if not json:
        put("All is well." if worst(codes) is ExitCode.OK else "Mend the errors above, the first one first.")
    return worst(codes)


def _put(finding: Finding) -> None:
    mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}[finding.level]
    put(f"{mark}  {finding.subject}: {shown(finding.message, 400)}")
    if finding.remedy:
        put(f"         -> {finding.remedy}")


async def _examine() -> AsyncIterator[Finding]:
    yield _ok("versions", f"useapi-voice {__version__}, Python {platform.python_version()}, {platform.system()}")
    try:
        check_environment()
        yield _ok("token", "USEAPI_TOKEN is set")
        async with connected(Remote()) as client:
            async for finding in _ask(client):
                yield finding
    except CliError as error:
        yield _error("token", error)
    except UseapiVoiceError as error:
        # Made of the environment: USEAPI_BASE_URL, USEAPI_VOICE_API.
        yield _error("settings", error)


async def _ask(client: VoiceClient) -> AsyncIterator[Finding]:
    try:
        accounts = await client.accounts()
    except ServerError as error:
        yield _error("reachability", error)
        return
    except ApiError as error:
        yield _error("accounts", error)
        return
    yield _ok("reachability", f"{shown(base_url())} answers, and takes the token")
    usable = [account for account in accounts if account.usable]
    for account in accounts:
        yield _of_account(account, others=bool(usable))
    if not usable:
        remedy = "add a MiniMax account with audio at useapi.net, and look again"
        yield Finding("accounts", "error", "none of the accounts can clone", remedy, ExitCode.REFUSED)
        return
    yield await _of_languages(client, usable[0].account)
    for account in usable:
        yield await _of_slots(client, account.account)


def _of_account(account: Account, *, others: bool) -> Finding:
    subject = f"account {shown(account.account)}"
    if account.error is not None:
        code = ExitCode.OK if others else ExitCode.REFUSED
        return Finding(subject, "warning" if others else "error", f"is out of order: {account.error}", _BROKEN, code)
    if account.support_audio is False:
        return Finding(subject, "warning", "has no audio", "subscribe it to audio at MiniMax, or leave it for video")
    return _ok(subject, "is in order")


async def _of_languages(client: VoiceClient, account: str) -> Finding:
    try:
        languages = (await client.config(account)).languages
    except ApiError as error:
        return _error("endpoints", error)
    generation = client.statistics().generation
    message = f"the {generation} endpoints answer; {count(len(languages), 'language')}: {names(languages, 8)}"
    return _ok("endpoints", message)


async def _of_slots(client: VoiceClient, account: str) -> Finding:
    subject = f"slots of {shown(account)}"
    try:
        free = await free_slots(client, account)
        voices = sum([1 async for _ in client.voices(account=account)])
    except ApiError as error:
        return _error(subject, error)
    there = f"{count(voices, 'cloned voice')} there"
    if free is None:
        return _ok(subject, f"not told; {there}")
    if not free:
        remedy = "delete a voice (useapi-voice voices delete), or add an account"
        return Finding(subject, "warning", f"none is free; {there}", remedy)
    return _ok(subject, f"{count(free, 'slot')} free, as far as the remote knows; {there}")
