"""
Fixtures for the tests of your own code: the sandbox, served over loopback for a test, or for a session.

Installed with the package; nothing happens unless a test asks for a fixture: not even the sandbox is imported, since
every run of pytest loads this. The server runs in a thread with an event loop of its own, so that sync tests and tests
of any async plugin can use it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from .sandbox import Sandbox, SandboxOptions


class _Remote:
    """A `Sandbox` in another thread: methods and properties are carried out over there, in its loop."""

    def __init__(self, sandbox: Sandbox, call: Callable[..., Any]) -> None:
        self._sandbox = sandbox
        self._call = call

    def __getattr__(self, name: str) -> Any:
        value = self._call(getattr, self._sandbox, name)
        if not callable(value):
            return value

        def carry_out(*args: Any, **kwargs: Any) -> Any:
            return self._call(lambda: value(*args, **kwargs))

        return carry_out


@contextmanager
def _served(options: SandboxOptions) -> Generator[Sandbox, None, None]:
    from anyio.from_thread import start_blocking_portal

    from .sandbox import Sandbox

    with (
        start_blocking_portal("asyncio", name="useapi_voice sandbox") as portal,
        portal.wrap_async_context_manager(Sandbox(**options)) as sandbox,
    ):
        # It quacks like one, which is what its users and their type checkers need to know.
        yield cast("Sandbox", _Remote(sandbox, portal.call))


@pytest.fixture(scope="session")
def useapi_sandbox_options() -> SandboxOptions:
    """Settings of the sandboxes: override this fixture to change them. One account, and clones take 10 ms."""
    from .sandbox import SandboxOptions

    return SandboxOptions(accounts=1, clone_s=0.01)


@pytest.fixture
def useapi_sandbox(
    useapi_sandbox_options: SandboxOptions, monkeypatch: pytest.MonkeyPatch
) -> Generator[Sandbox, None, None]:
    """
    Serve a fresh sandbox for one test.

    `USEAPI_BASE_URL` and `USEAPI_TOKEN` point at it, so that a `VoiceClient()` without arguments finds it. Plant faults
    with `useapi_sandbox.fail(...)`, and look at `useapi_sandbox.voices()` afterwards.
    """
    with _served(useapi_sandbox_options) as sandbox:
        monkeypatch.setenv("USEAPI_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("USEAPI_TOKEN", sandbox.token)
        yield sandbox


@pytest.fixture(scope="session")
def useapi_sandbox_session(useapi_sandbox_options: SandboxOptions) -> Generator[Sandbox, None, None]:
    """Serve one sandbox for the whole session; its voices pile up, and the environment is left alone."""
    with _served(useapi_sandbox_options) as sandbox:
        yield sandbox
