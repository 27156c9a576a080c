"""
The token stays in: whatever is done and whatever fails, it is in no log, repr, event, pickle or traceback with locals.

The client talks to a real server on loopback here, so that the logs of httpx and httpcore are searched as well.
"""

from __future__ import annotations

import logging
import pickle
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import httpx
import pytest
from worlds import wav

from useapi_voice import (
    CloneError,
    CloneRequest,
    ConfigurationError,
    UseapiVoiceError,
    VoiceClient,
    _transport,
)
from useapi_voice.sandbox import Fault, Sandbox

SECRET = "b7QxZv93LmTqK0yWc5Ns2RfHd8"
TOKEN = f"user:4242-{SECRET}"
FAULTS: dict[str, Callable[[], Fault]] = {
    "500": lambda: Fault.status(500),
    "page": lambda: Fault.html(520),
    "drop": lambda: Fault.drop(made=False),
    "reset": lambda: Fault.drop(made=True, reset=True),
    "truncate": lambda: Fault.truncate(),
    "hang": lambda: Fault.hang(made=False),
    "bad JSON": lambda: Fault.bad_json(made=False),
    "429": lambda: Fault.rate_limited(0.01),
    "596": lambda: Fault.account_error(),
    "401": lambda: Fault.status(401),
    "402": lambda: Fault.status(402),
    "400": lambda: Fault.status(400),
    "404": lambda: Fault.status(404),
    "422": lambda: Fault.moderated(),
    "2600010": lambda: Fault.slots_full(),
    "redirect": lambda: Fault.status(302, headers={"location": "https://elsewhere.invalid/"}),
}
ENDPOINTS = ["clone-voice", "voices", "upload-sample", "accounts", "config", "delete-voice"]


class Search:
    """Everything that could be seen, as text."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def see(self, what: str, *things: object) -> None:
        """Keep all that can be read of these."""
        for thing in things:
            self.seen += [(f"repr of {what}", repr(thing)), (f"str of {what}", str(thing))]
            if isinstance(thing, BaseException):
                told = traceback.TracebackException.from_exception(thing, capture_locals=True)
                self.seen.append((f"traceback of {what}", "".join(told.format())))
            with suppress(TypeError, AttributeError, pickle.PicklingError):
                self.seen.append((f"pickle of {what}", pickle.dumps(thing).decode("latin-1")))

    def check(self) -> None:
        """Fail if the token is anywhere, and name the place, not the token."""
        assert len(self.seen) > 10
        assert [what for what, text in self.seen if SECRET in text] == []


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Capture all loggers at DEBUG."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "useapi_voice", "asyncio", "hpack", "anyio"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


def logged(caplog: pytest.LogCaptureFixture, search: Search) -> None:
    """Search the records: message, arguments and exceptions."""
    for record in caplog.records:
        search.see(f"record of {record.name}", record.getMessage(), record.args, record.exc_text)
        if record.exc_info and record.exc_info[1] is not None:
            search.see(f"exception logged by {record.name}", record.exc_info[1])
    caplog.clear()


async def try_all(client: VoiceClient, search: Search) -> None:
    """Use every method of a client, whatever comes of it."""

    async def attempt(what: str, work: Callable[[], Any]) -> Any:
        try:
            with anyio.fail_after(20):
                result = await work()
        except (UseapiVoiceError, TimeoutError) as error:
            search.see(f"error of {what}", error)
            return None
        search.see(f"result of {what}", result)
        return result

    async def voices() -> list[object]:
        return [voice async for voice in client.voices()]

    request = CloneRequest(voice_name="Ann", language_tag="English", samples=[wav()])
    job = await attempt("submit", lambda: client.submit(request, key="a key", deadline_s=15))
    with suppress(UseapiVoiceError):
        search.see("a job under way", await client.submit(request, key="another"))
    if job is not None:
        voice = await attempt("job", job.result)
        search.see("job", job, job.history, job.surplus, job.request)
        if voice is not None:
            await attempt("delete_voice", lambda: client.delete_voice(voice.voice_id))
    await attempt("upload_sample", lambda: client.upload_sample(wav(tone=7)))
    await attempt("config", client.config)
    await attempt("accounts", client.accounts)
    await attempt("loads", client.loads)
    await attempt("slots", client.slots)
    await attempt("voices", voices)
    await attempt("prune", lambda: client.prune("nobody"))
    await attempt(
        "bad request", lambda: client.submit(CloneRequest(voice_name="", language_tag="", samples=["no.mp3"]))
    )
    await attempt(
        "other request, same key", lambda: client.submit(request.model_copy(update={"account": "x"}), key="a key")
    )
    search.see("statistics", client.statistics())
    search.see("client", client, vars(client))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between tries, which are real time here."""
    pause = _transport._pause_before_retry

    def shortened(*args: Any, **options: Any) -> float | None:
        wait_s = pause(*args, **options)
        return None if wait_s is None else min(wait_s, 0.01)

    monkeypatch.setattr(_transport, "_pause_before_retry", shortened)


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(("fault", "own_http_client"), [(None, True), *((fault, False) for fault in (None, *FAULTS))])
async def test_the_token_is_nowhere(
    fault: str | None, own_http_client: bool, everything_logged: pytest.LogCaptureFixture
) -> None:
    """No method and no failure shows the token, in whatever is logged, raised, returned, told or pickled."""
    search = Search()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with Sandbox(clone_s=0.01, token=TOKEN) as sandbox:
            if fault is not None:
                # Other calls than a clone's are waited for half a minute; they hang no differently.
                for endpoint in ENDPOINTS if fault != "hang" else ENDPOINTS[:1]:
                    sandbox.fail(endpoint, FAULTS[fault](), times=2)
            http = httpx.AsyncClient() if own_http_client else None
            async with VoiceClient(
                TOKEN,
                base_url=sandbox.base_url,
                http_client=http,
                clone_timeout_s=0.3,
                settle_after_s=0.3,
                close_grace_s=2,
            ) as client:
                stream = client.events()
                await try_all(client, search)
            search.see("events", [event async for event in stream])
            search.see("closed client", client)
            with pytest.raises(UseapiVoiceError) as closed:
                await client.config()
            search.see("use after close", closed.value)
            if http is not None:
                await http.aclose()
    search.see("warnings", *(str(warning.message) for warning in warned))
    logged(everything_logged, search)
    search.check()


@pytest.mark.parametrize(
    "arguments",
    [
        {"token": f"{TOKEN} {SECRET}"},
        {"token": f"{TOKEN}\x7f"},
        {"token": f"{TOKEN}é"},
        {"token": TOKEN, "base_url": "http://example.com/v1"},
        {"token": TOKEN, "base_url": "ftp://example.com/v1"},
        {"token": TOKEN, "api": "other"},
        {"token": TOKEN, "max_parallel": 3},
        {"token": TOKEN, "accounts": "one"},
        {"token": TOKEN, "clone_timeout_s": 0},
        {"token": TOKEN, "http_client": "none"},
    ],
    ids=lambda arguments: ", ".join(f"{k}" for k in arguments if k != "token" or len(arguments) == 1),
)
def test_a_client_that_cannot_be_made_shows_nothing(arguments: dict[str, Any]) -> None:
    """An error of the constructor has no token in its frames, not even one that was wrong."""
    search = Search()
    try:
        VoiceClient(**arguments)
    except ConfigurationError as error:
        # This frame knows the token, as a user's own would; what is asked is what the library's show.
        error = error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)
        for at in range(8):
            search.see(f"error {at}", error)
    search.check()


def test_a_token_from_the_environment_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token of the environment is not quoted either."""
    monkeypatch.setenv("USEAPI_TOKEN", f"{TOKEN} {SECRET}")
    search = Search()
    try:
        VoiceClient()
    except ConfigurationError as error:
        for _ in range(8):
            search.see("error", error)
    search.check()


async def test_a_client_does_not_pickle() -> None:
    """Neither an open client nor a closed one can be pickled by accident, token and all."""
    client = VoiceClient(TOKEN)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)) as refused:
        pickle.dumps(client)
    assert SECRET not in str(refused.value)


async def test_a_redirect_does_not_carry_the_token_away() -> None:
    """Whatever a redirect says, no request goes to another host."""
    hosts: set[str] = set()
    sandbox = Sandbox(clone_s=0.0, token=TOKEN)

    async def note(request: httpx.Request) -> None:
        hosts.add(request.url.host)

    for endpoint in ENDPOINTS:
        sandbox.fail(endpoint, FAULTS["redirect"](), times=None)
    async with (
        httpx.AsyncClient(
            transport=sandbox.transport(), follow_redirects=True, event_hooks={"request": [note]}
        ) as http,
        VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http) as client,
    ):
        with suppress(CloneError):
            await client.clone(CloneRequest(voice_name="Ann", language_tag="English", files=[sandbox.add_sample()]))
        with suppress(CloneError):
            await client.config()
    assert hosts == {"sandbox.invalid"}
