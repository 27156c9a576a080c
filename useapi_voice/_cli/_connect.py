"""Opens the client that a command needs: the real remote or a rehearsal, with a store or without."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from .._client import DEFAULT_BASE_URL, VoiceClient
from .._errors import ConfigurationError
from .._transport import Secret, _is_loopback, check_token
from ..sandbox import Fault, Sandbox
from ._exit import CliError, ExitCode
from ._text import shown

REHEARSAL_CLONE_S: Final = 2.0
CLONE_TIMEOUT_S: Final = 120.0
"""How long a clone request may take: the client's own default, named here because Ctrl-C tells it."""
SETTLE_AFTER_S: Final = 75.0
"""Likewise: how long after its request a clone whose answer was lost is looked for."""
KEEP_S: Final = 100 * 365 * 24 * 3600.0
"""Ended jobs stay in the store until somebody forgets them: forgotten, a voice would be made and paid for twice."""


@dataclass(frozen=True, slots=True)
class Remote:
    """
    Where to send.

    Attributes:
        sandbox: The embedded one, which lives as long as the `remote` block; `None` for what the environment names.
        max_parallel: Clones in progress per account.
    """

    sandbox: Sandbox | None = None
    max_parallel: int = 2


@asynccontextmanager
async def rehearsal(*, wanted: bool, max_parallel: int = 2) -> AsyncGenerator[Remote, None]:
    """Open an embedded sandbox around the body if it is wanted."""
    if not wanted:
        yield Remote(max_parallel=max_parallel)
        return
    async with Sandbox(accounts=2, clone_s=REHEARSAL_CLONE_S, slots=None) as sandbox:
        yield Remote(sandbox, max_parallel)


def misbehave(sandbox: Sandbox) -> None:
    """Plan some of everything that goes wrong in a long batch, by the sandbox's dice."""
    sandbox.fail("clone-voice", Fault.rate_limited(4), times=None, probability=0.06)
    sandbox.fail("clone-voice", Fault.drop(made=None), times=None, probability=0.05)
    sandbox.fail("clone-voice", Fault.html(made=None), times=None, probability=0.03)
    sandbox.fail("clone-voice", Fault.moderated(), times=None, probability=0.03)
    sandbox.fail("upload-sample", Fault.status(503), times=None, probability=0.03)


@asynccontextmanager
async def connected(
    remote: Remote, *, store: Path | None = None, resume: bool = True
) -> AsyncGenerator[VoiceClient, None]:
    """
    Open a client.

    Args:
        remote: Where to send.
        store: Its file; in memory by default.
        resume: Whether to go on with what the store holds.

    Raises:
        CliError: There is no token.
    """
    sandbox = remote.sandbox
    options: dict[str, Any] = {
        "max_parallel": remote.max_parallel,
        "clone_timeout_s": CLONE_TIMEOUT_S,
        "settle_after_s": SETTLE_AFTER_S,
        "close_grace_s": 0.0,
        "keep_s": KEEP_S,
    }
    if store is not None:
        options |= {"store": str(store), "resume": resume}
    if sandbox is not None:
        options |= {"base_url": sandbox.base_url, "settle_after_s": 3 * REHEARSAL_CLONE_S}
    check_environment(is_rehearsal=sandbox is not None)
    async with VoiceClient(None if sandbox is None else sandbox.token, **options) as client:
        yield client


def check_environment(*, is_rehearsal: bool = False) -> None:
    """
    Check that there is a token.

    Raises:
        CliError: There is none, or it cannot be one.
    """
    if is_rehearsal:
        return
    try:
        check_token(Secret(os.environ.get("USEAPI_TOKEN")))
    except ConfigurationError as error:
        what = "The token in USEAPI_TOKEN cannot be one" if os.environ.get("USEAPI_TOKEN") else "There is no token"
        remedy = "set USEAPI_TOKEN to the token of your useapi.net account, whole (user:…)"
        hint = "a rehearsal, clone --sandbox, needs none. Nothing was sent."
        raise CliError(ExitCode.AUTHENTICATION, f"{what}: {remedy}; {hint}") from error


def base_url() -> str:
    """Return where the environment says that the API is."""
    return os.environ.get("USEAPI_BASE_URL") or DEFAULT_BASE_URL


def is_local() -> bool:
    """Whether that is on this machine: a rehearsal, then."""
    try:
        return _is_loopback(httpx.URL(base_url()).host)
    except httpx.InvalidURL:
        return False


def store_of(source: Path, wanted: Path | None, remote: Remote, stack: AsyncExitStack) -> Path:
    """
    Return the file that keeps the jobs of a manifest or folder.

    A rehearsal never shares one with the real thing: voices that only a sandbox has would count as made.

    Raises:
        CliError: A rehearsal was told to use a given store, or there is no folder for it.
    """
    if remote.sandbox is not None:
        if wanted is not None:
            message = "--sandbox keeps its jobs in a temporary store, so that a rehearsal never mixes with the real"
            raise CliError(ExitCode.USAGE, f"{message} thing: leave out --store, or --sandbox.")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="useapi-voice-"))
        return Path(folder) / "rehearsal.db"
    if wanted is not None:
        if not wanted.parent.is_dir():
            raise CliError(ExitCode.USAGE, f"There is no folder {shown(wanted.parent)} for the store: make it first.")
        return wanted
    ending = ".rehearsal.db" if is_local() else ".db"
    return source / f".useapi-voice{ending}" if source.is_dir() else source.with_name(source.name + ending)
