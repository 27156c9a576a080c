"""Exit codes by class, the most severe first, and a paragraph with a remedy for every error."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from useapi_voice import _errors
from useapi_voice._cli import _clone, _exit
from useapi_voice._cli._exit import CODES, CliError, ExitCode, code_of, explain, worst
from useapi_voice._errors import DeadlineExceeded, Fault, QueueFull, RequestInvalid, UseapiVoiceError
from useapi_voice.sandbox import Fault as Misdeed
from useapi_voice.sandbox import Sandbox

from .conftest import Cli, MakeSandbox

Write = Callable[..., Path]
ONE = "voice_name,language_tag,samples\nAda,English,a.mp3\n"

CLASSES = {
    "AuthenticationError": ExitCode.AUTHENTICATION,
    "SubscriptionError": ExitCode.AUTHENTICATION,
    "ServerError": ExitCode.UNREACHABLE,
    "CloneOutcomeUnknown": ExitCode.UNKNOWN,
    "CloneCancelled": ExitCode.REFUSED,
    "CloneRefused": ExitCode.REFUSED,
    "ApiError": ExitCode.REFUSED,
    "AccountUnavailable": ExitCode.REFUSED,
    "VoiceSlotsFull": ExitCode.REFUSED,
    "RateLimited": ExitCode.REFUSED,
    "ContentRejected": ExitCode.REFUSED,
    "UnexpectedReply": ExitCode.REFUSED,
    "ConfigurationError": ExitCode.USAGE,
    "StoreError": ExitCode.USAGE,
    "QueueClosed": ExitCode.USAGE,
    "UseapiVoiceError": ExitCode.UNEXPECTED,
}


@pytest.mark.parametrize("name", CLASSES)
def test_class_has_its_code(name: str) -> None:
    """Every class of error has one exit code."""
    error = getattr(_errors, name)("went wrong")

    assert code_of(error) is CLASSES[name]
    assert explain(error).startswith("went wrong" if name == "StoreError" else "Went wrong")


def test_classes_that_take_more() -> None:
    """Errors with facts of their own have codes too; what may have made a voice is unknown."""
    assert code_of(RequestInvalid([Fault("a", "b", "c")])) is ExitCode.USAGE
    assert code_of(DeadlineExceeded("late", clock="deadline_s")) is ExitCode.REFUSED
    late = DeadlineExceeded("late", clock="deadline_s", voice_may_exist=True)
    assert code_of(late) is ExitCode.UNKNOWN
    assert "Look for the voice" in explain(late)
    assert code_of(QueueFull("full", max_pending=1)) is ExitCode.UNEXPECTED
    assert code_of(ValueError()) is ExitCode.UNEXPECTED
    assert code_of(CliError(ExitCode.UNREACHABLE, "gone")) is ExitCode.UNREACHABLE


def test_remedies() -> None:
    """Every error of a clone ends in what to do about it."""
    for name in [*CLASSES][:12]:
        assert _exit.remedy_of(getattr(_errors, name)("x")), name
    assert _exit.remedy_of(UseapiVoiceError("x")) == ""


def test_most_severe_wins() -> None:
    """Of several codes, the one that needs somebody the most."""
    order = [ExitCode(code) for code in (1, 3, 2, 130, 5, 6, 4, 0)]
    for index, code in enumerate(order):
        assert worst(reversed(order[index:])) is code
    assert worst([]) is ExitCode.OK
    assert set(CODES) == set(ExitCode)


def test_groups_of_one_are_opened() -> None:
    """A task group's wrapping is of no interest; several errors stay together."""
    inner = ValueError("x")

    assert _exit.alone(ExceptionGroup("a", [ExceptionGroup("b", [inner])])) is inner
    both = ExceptionGroup("a", [inner, inner])
    assert _exit.alone(both) is both


def test_reader_that_has_gone() -> None:
    """A closed pipe is nobody's error: it is left to typer, which ends without a word."""

    async def write() -> ExitCode:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        _exit.run(write)


def test_1_unexpected(cli: Cli, manifest: Write, monkeypatch: pytest.MonkeyPatch, capfd: object) -> None:
    """A bug is one paragraph; --debug shows where, and nothing but lines of code."""

    def read(*_: object, **__: object) -> None:
        raise RuntimeError("boom\x1b[2J")

    monkeypatch.setattr(_clone, "read", read)

    result = cli("clone", manifest(ONE))

    assert result.exit_code == 1
    assert result.stderr == (
        "An unexpected error: RuntimeError: boom\\x1b[2J. Run it again with --debug to see where; what was accepted is "
        "kept in the store.\n"
    )


def test_debug_shows_the_traceback(manifest: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """--debug shows the traceback of any error, and never a token."""
    from typer.testing import CliRunner

    from useapi_voice._cli import app

    monkeypatch.setenv("USEAPI_TOKEN", "user:1-secretsecret")
    monkeypatch.setenv("USEAPI_BASE_URL", "http://example.com")

    result = CliRunner().invoke(app, ["clone", str(manifest(ONE)), "--debug"])

    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "ConfigurationError" in result.stderr
    assert "secretsecret" not in result.output


def test_3_authentication(cli: Cli, manifest: Write, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token is told before anything is sent, and not shown."""
    monkeypatch.setenv("USEAPI_TOKEN", "user:1-wrongwrong")

    result = cli("clone", manifest(ONE))

    assert result.exit_code == 3
    assert "Set USEAPI_TOKEN to the token of your useapi.net account, whole" in result.stderr
    assert "wrongwrong" not in result.output
    assert not sandbox.uploads


def test_3_subscription_in_the_middle(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A subscription that ends in the middle ends the batch; the same command goes on when it is renewed."""
    rule = sandbox.fail("clone-voice", Misdeed.status(402), times=None)
    path = manifest(ONE)

    result = cli("clone", path)
    assert result.exit_code == 3
    assert "SubscriptionError (1): Renew the subscription at useapi.net, and run this again." in result.stderr
    rule.remove()
    assert cli("clone", path).exit_code == 0


@pytest.mark.parametrize("misdeed", [Misdeed.moderated(), Misdeed.slots_full(), Misdeed.account_error()])
def test_4_refused(misdeed: Misdeed, cli: Cli, manifest: Write, sandbox_of: MakeSandbox) -> None:
    """A voice that was refused is exit code 4."""
    sandbox_of(accounts=1).fail("clone-voice", misdeed, times=None)

    assert cli("clone", manifest(ONE)).exit_code == 4


@pytest.mark.slow
def test_6_unreachable(cli: Cli, manifest: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote that is not there is told, with where to look; it is tried more than once."""
    monkeypatch.setenv("USEAPI_TOKEN", "user:1-secretsecret")
    monkeypatch.setenv("USEAPI_BASE_URL", "http://127.0.0.1:9/v1")

    result = cli("clone", manifest(ONE))

    assert result.exit_code == 6
    assert "Check the network and USEAPI_BASE_URL (useapi-voice doctor does both)" in result.stderr


def test_events_are_shown_once(manifest: Write, sandbox_of: MakeSandbox) -> None:
    """An account that goes out of order is told by the display, and not by the log as well."""
    sandbox = sandbox_of(accounts=["a", "b"])
    sandbox.fail("clone-voice", Misdeed.account_error(), account="a")

    # In a process of its own, whose log nobody has set up.
    command = [sys.executable, "-m", "useapi_voice", "clone", str(manifest(ONE + "Bea,English,a.mp3\n"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert done.stderr.count("account a") == 1, done.stderr
