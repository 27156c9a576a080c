"""A loopback sandbox in a thread of its own, the command line in this process, and recordings to clone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from typer.testing import CliRunner, Result

from useapi_voice._cli import app
from useapi_voice.sandbox import Sandbox, sample_paths

Cli = Callable[..., Result]
MakeSandbox = Callable[..., Sandbox]
MP3, OTHER_MP3, WAV = sorted(sample_paths(), key=lambda path: (path.suffix, path.name))


@contextmanager
def served(**options: Any) -> Generator[Sandbox, None, None]:
    """Serve a sandbox in a thread, as another machine would."""
    with start_blocking_portal() as portal:
        running: AbstractContextManager[Sandbox] = portal.wrap_async_context_manager(Sandbox(**options))
        with running as sandbox:
            yield sandbox


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of whoever runs the tests: neither a token nor a terminal."""
    for name in ("USEAPI_TOKEN", "USEAPI_BASE_URL", "USEAPI_VOICE_API", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def sandbox_of(monkeypatch: pytest.MonkeyPatch) -> Generator[MakeSandbox, None, None]:
    """Return a function that serves a sandbox, and points the environment at it."""
    with ExitStack() as stack:

        def make(**options: Any) -> Sandbox:
            sandbox = stack.enter_context(served(**{"clone_s": 0.02, **options}))
            monkeypatch.setenv("USEAPI_TOKEN", sandbox.token)
            monkeypatch.setenv("USEAPI_BASE_URL", sandbox.base_url)
            return sandbox

        yield make


@pytest.fixture
def sandbox(sandbox_of: MakeSandbox) -> Sandbox:
    """Serve a sandbox with two accounts."""
    return sandbox_of(accounts=2)


@pytest.fixture
def cli() -> Cli:
    """Return a function that runs a command in this process."""

    def invoke(*args: object) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        assert "user:4242-" not in result.output.replace("user:4242-minimax", "")
        return result

    return invoke


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of recordings: two voices of one, and one of two."""
    home = tmp_path / "recordings"
    (home / "Both").mkdir(parents=True)
    shutil.copy(MP3, home / "Ada.mp3")
    shutil.copy(WAV, home / "Emil.WAV")
    shutil.copy(MP3, home / "Both" / "take 10.mp3")
    shutil.copy(WAV, home / "Both" / "take 2.wav")
    return home


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a manifest beside three recordings, `a.mp3`, `b.mp3` and `c.wav`."""
    for name, source in (("a.mp3", MP3), ("b.mp3", OTHER_MP3), ("c.wav", WAV)):
        shutil.copy(source, tmp_path / name)

    def write(content: str | bytes, name: str = "voices.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def json_lines(text: str) -> list[dict[str, Any]]:
    """Read lines of JSON."""
    return [json.loads(line) for line in text.splitlines()]
