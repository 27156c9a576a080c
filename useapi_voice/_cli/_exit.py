"""How a command ends: exit codes by class, and one plain paragraph with a remedy for every error."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated, Final, NoReturn, TypeVarTuple

import anyio
import typer

from .._errors import (
    AccountUnavailable,
    ApiError,
    AuthenticationError,
    CloneCancelled,
    CloneError,
    CloneOutcomeUnknown,
    ConfigurationError,
    ContentRejected,
    DeadlineExceeded,
    QueueClosed,
    RateLimited,
    RequestInvalid,
    ServerError,
    StoreError,
    SubscriptionError,
    UnexpectedReply,
    UseapiVoiceError,
    VoiceSlotsFull,
)
from ._text import paragraph, say

Ts = TypeVarTuple("Ts")


class ExitCode(IntEnum):
    """What a command's exit says; `CODES` says it in words."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    AUTHENTICATION = 3
    REFUSED = 4
    UNKNOWN = 5
    UNREACHABLE = 6
    INTERRUPTED = 130


CODES: Final = {
    ExitCode.OK: "done; every voice is there",
    ExitCode.UNEXPECTED: "an unexpected error: --debug shows where",
    ExitCode.USAGE: "bad usage, a bad manifest, or a file or store that cannot be used",
    ExitCode.AUTHENTICATION: "the token or the subscription",
    ExitCode.REFUSED: "some were refused",
    ExitCode.UNKNOWN: "some outcomes are unknown: a voice may exist",
    ExitCode.UNREACHABLE: "the remote could not be reached, or failed",
    ExitCode.INTERRUPTED: "interrupted; the same command goes on",
}
_SEVERITY: Final = (
    ExitCode.UNEXPECTED,
    ExitCode.AUTHENTICATION,
    ExitCode.USAGE,
    ExitCode.INTERRUPTED,
    ExitCode.UNKNOWN,
    ExitCode.UNREACHABLE,
    ExitCode.REFUSED,
    ExitCode.OK,
)
EPILOG: Final = (
    "Exit codes:\n\n"
    + "".join(f"- **{code.value}** {words}\n" for code, words in CODES.items())
    + "\nOf several, the first of "
    + ", ".join(str(code.value) for code in _SEVERITY[:-1])
    + " wins."
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class CliError(Exception):
    """An error with its exit code; the message is a paragraph that ends in a remedy."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """Return the most severe of these, `OK` where there are none."""
    return min(codes, key=_SEVERITY.index, default=ExitCode.OK)


def code_of(error: BaseException) -> ExitCode:
    """Return the exit code of an error's class."""
    match error:
        case CliError():
            return error.code
        case AuthenticationError() | SubscriptionError():
            return ExitCode.AUTHENTICATION
        case ServerError():
            return ExitCode.UNREACHABLE
        case CloneOutcomeUnknown():
            return ExitCode.UNKNOWN
        case CloneError():
            return ExitCode.UNKNOWN if error.voice_may_exist else ExitCode.REFUSED
        case ConfigurationError() | RequestInvalid() | StoreError() | QueueClosed():
            return ExitCode.USAGE
        case _:
            return ExitCode.UNEXPECTED


def remedy_of(error: BaseException) -> str:
    """Return what to do about an error, in one sentence; empty where its message says it."""
    match error:
        case AuthenticationError():
            return "Set USEAPI_TOKEN to the token of your useapi.net account, whole (user:…), and run this again."
        case SubscriptionError():
            return "Renew the subscription at useapi.net, and run this again."
        case VoiceSlotsFull():
            return "Delete a voice (useapi-voice voices delete) or add an account at useapi.net, and run this again."
        case AccountUnavailable():
            return "Post the account anew at useapi.net (its page says why), or add another, and run this again."
        case ContentRejected():
            return "Use other samples, or another name; the same content will be refused again."
        case RateLimited():
            return "Wait a little, and run this again."
        case ServerError():
            return "Check the network and USEAPI_BASE_URL (useapi-voice doctor does both), and run this again."
        case UnexpectedReply():
            return "Check USEAPI_BASE_URL: what answers there may not be this API (useapi-voice doctor)."
        case CloneOutcomeUnknown() | CloneError(voice_may_exist=True):
            return (
                "Look for the voice (useapi-voice voices list); if it is not there: useapi-voice jobs retry --unknown."
            )
        case StoreError() if "another owner" in error.message:
            return (
                "A clone that is still running has its store to itself: try again when it has ended. Until then, jobs "
                "list, jobs show and report look at it without disturbing it."
            )
        case CloneCancelled() | DeadlineExceeded():
            return "Run this again."
        case ApiError():
            return "Mend what the message names; then useapi-voice jobs retry."
        case CloneError():
            return "Mend the sample; then useapi-voice jobs retry."
        case _:
            return ""


def explain(error: BaseException) -> str:
    """Return an error as a plain paragraph that ends in its remedy."""
    if isinstance(error, CliError | UseapiVoiceError):
        message, remedy = paragraph(error), remedy_of(error)
    else:
        message = paragraph(f"An unexpected error: {type(error).__name__}: {error}")
        remedy = "Run it again with --debug to see where; what was accepted is kept in the store."
    if isinstance(error, UseapiVoiceError) and not isinstance(error, StoreError):
        # These begin small, as clauses do; those of stores, and our own, may begin with a name.
        message = message[:1].upper() + message[1:]
    separator = "" if not remedy else " " if message.endswith((".", "!", "?", ":")) else ". "
    return f"{message}{separator}{remedy}"


def alone(error: BaseException) -> BaseException:
    """Return the one error inside groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@contextmanager
def _events_unlogged() -> Generator[None, None, None]:
    """Leave out the log's lines of events: commands show those themselves. All else that is a warning is printed."""
    events = logging.getLogger("useapi_voice.events")
    was_propagating, events.propagate = events.propagate, False
    silence = logging.NullHandler()
    events.addHandler(silence)
    try:
        yield
    finally:
        events.propagate = was_propagating
        events.removeHandler(silence)


def run(work: Callable[[*Ts], Awaitable[ExitCode]], *args: *Ts, debug: bool = False, stopped: str = "") -> NoReturn:
    """
    Run a command to its end, and exit: the only way out of all of them.

    Args:
        work: The command.
        args: What it is given.
        debug: Whether to show the traceback of an error.
        stopped: What to say when Ctrl-C is how it is meant to end.
    """
    try:
        with _events_unlogged():
            code = anyio.run(work, *args)
    except KeyboardInterrupt:
        say(stopped or "Interrupted.")
        code = ExitCode.OK if stopped else ExitCode.INTERRUPTED
    except Exception as caught:
        if isinstance(caught, OSError) and caught.errno == errno.EPIPE:
            # Whoever read our output has gone, as `head` does: typer ends quietly.
            raise
        error = alone(caught)
        if debug:
            say("".join(traceback.format_exception(caught)))
        say(explain(error))
        code = code_of(error)
    raise typer.Exit(code)
