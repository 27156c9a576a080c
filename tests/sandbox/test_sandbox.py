"""`Sandbox` itself: settings, life and looks; and the door."""

from __future__ import annotations

import ast
import inspect
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

import useapi_voice.sandbox
from useapi_voice.sandbox import LANGUAGES, Fault, Sandbox, SandboxOptions, SandboxTransport, serve

from .tools import calling

pytestmark = pytest.mark.anyio


def test_the_door_is_sorted_and_complete() -> None:
    """`__all__` is sorted, and every name in it exists."""
    names = useapi_voice.sandbox.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert all(hasattr(useapi_voice.sandbox, name) for name in names)


def test_it_imports_nothing_of_ours() -> None:
    """Only the standard library, anyio, httpx and h11 are imported, so client and sandbox share no misunderstanding."""
    folder = Path(useapi_voice.sandbox.__file__).parent
    found = set[str]()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2
                found.add("" if node.level else (node.module or "").partition(".")[0])
    import sys

    assert found - set(sys.stdlib_module_names) == {"", "anyio", "httpx", "h11"}


def test_options_are_those_of_the_constructor() -> None:
    """`SandboxOptions` has every keyword of `Sandbox` but host and port, and the docstring explains each."""
    parameters = inspect.signature(Sandbox).parameters
    assert set(SandboxOptions.__annotations__) == set(parameters) - {"host", "port"}
    assert all(f" {name}: " in (Sandbox.__init__.__doc__ or "") for name in parameters)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"accounts": 0}, "accounts"),
        ({"accounts": ["a", "a"]}, "accounts"),
        ({"accounts": ["a/b"]}, "accounts"),
        ({"max_parallel": 0}, "max_parallel"),
        ({"languages": []}, "languages"),
        ({"generations": ["audio", "video"]}, r"generations has unknown \['video'\]"),
        ({"only": ["clone-voice"]}, "only has unknown"),
        ({"without_audio": ["x"]}, "without_audio"),
        ({"epoch": datetime(2026, 1, 1)}, "epoch"),  # noqa: DTZ001
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    """A wrong setting is told at once, by its name."""
    with pytest.raises(ValueError, match=text):
        Sandbox(**options)


@pytest.mark.parametrize(
    "options",
    [{"on": "clone"}, {"account": "x"}, {"nth": 0}, {"times": 0}, {"probability": 2}, {"probability": -0.1}],
)
def test_rules_that_make_no_sense(options: dict[str, Any]) -> None:
    """A rule for nothing is told at once."""
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        Sandbox().fail(**{"on": "*", "fault": Fault.hang(made=True), **options})
    with pytest.raises(ValueError, match="needs seconds"):
        Fault.rate_limited(form="date")


def test_looks_outside_an_event_loop() -> None:
    """Before and after its loop a sandbox can be looked at and prepared."""
    sandbox = Sandbox(accounts=["a", "b"], token="no user in it")
    assert sandbox.now() == 0
    voice = sandbox.add_voice("Ann", "b", language_tag="German", generation="speech")
    assert voice.voice_id.startswith("user:4242-minimax:b-voice:")
    assert (sandbox.voices("b"), sandbox.voices("a"), sandbox.voices()) == ((voice,), (), (voice,))
    assert voice.fields()["file_id"] == ""
    assert sandbox.add_sample(b"x", account="b").startswith("user:4242-minimax:b-file:")

    async def wait() -> None:
        async with calling(sandbox) as caller:
            await caller.get("accounts")
            await anyio.sleep(0.01)
            sandbox.now()

    anyio.run(wait)
    assert sandbox.now() > 0
    assert sandbox.statistics().now_s == sandbox.now()
    with pytest.raises(ValueError, match="account 'x' is not configured; there are a, b"):
        sandbox.voices("x")


def test_no_secret_in_its_looks() -> None:
    """The repr tells where it is and what it holds, not the token."""
    sandbox = Sandbox()
    assert repr(sandbox) == "<Sandbox https://sandbox.invalid/v1/minimax accounts=1 clones=0 requests=0 breaches=0>"
    assert sandbox.token not in repr(sandbox) + repr(sandbox.transport())


async def test_it_is_opened_once() -> None:
    """A second entry, or an exit without an entry, is refused with a sentence."""
    sandbox = Sandbox()
    with pytest.raises(RuntimeError, match="never opened"):
        await sandbox.__aexit__(None, None, None)
    async with sandbox:
        with pytest.raises(RuntimeError, match="opened once"):
            await sandbox.__aenter__()
    with pytest.raises(RuntimeError, match="opened once"):
        await sandbox.__aenter__()


async def test_two_skins_of_one_world() -> None:
    """What is done in process is seen over loopback."""
    async with Sandbox(clone_s=0) as sandbox:
        assert isinstance(sandbox.transport(), SandboxTransport)
        async with calling(sandbox) as near, calling(sandbox, in_process=False) as far:
            await near.clone("Ann")
            assert await far.cloned() == ["Ann"]


async def test_serve_until_cancelled() -> None:
    """`serve` calls back once it takes connections, and ends with its scope."""
    seen: list[Sandbox] = []
    answered = anyio.Event()

    async def visit() -> None:
        while not seen:
            await anyio.sleep(0.001)
        async with calling(seen[0], in_process=False) as caller:
            assert LANGUAGES[1] in (await caller.get("audio/config", account="b")).text
        answered.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(visit)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:

                async def run() -> None:
                    await serve(on_ready=seen.append, accounts=["a", "b"])

                inner.start_soon(run)
                await answered.wait()
                scope.cancel()
    assert len(seen) == 1
    with anyio.move_on_after(0.01) as quiet:
        await serve()
    assert quiet.cancelled_caught
