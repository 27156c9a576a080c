"""The fixtures for users' own tests, used as they would: in sync and async tests, with and without settings."""

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice.sandbox import Fault, Sandbox, SandboxOptions, sample_paths


@pytest.fixture(scope="session")
def useapi_sandbox_options() -> SandboxOptions:
    """Two accounts, and quick clones."""
    return SandboxOptions(accounts=2, clone_s=0.01)


async def clone(name: str) -> str:
    """What a user's code does: nothing but the environment tells it where to go."""
    async with VoiceClient(settle_after_s=0.2) as client:
        sample = sample_paths()[0].read_bytes()
        return (await client.clone(CloneRequest(voice_name=name, language_tag="English", samples=[sample]))).voice_id


async def test_async_code_finds_the_sandbox(useapi_sandbox: Sandbox) -> None:
    """`VoiceClient()` without arguments talks to the sandbox, which shows what was made."""
    voice_id = await clone("Plugged in")

    assert [voice.voice_id for voice in useapi_sandbox.voices()] == [voice_id]
    assert len(useapi_sandbox.accounts) == 2


def test_sync_code_finds_it_too_and_faults_can_be_planted(useapi_sandbox: Sandbox) -> None:
    """A sync test runs its own loop, and a planted fault strikes."""
    rule = useapi_sandbox.fail("clone-voice", Fault.drop(made=True))

    voice_id = anyio.run(clone, "Lost and found")

    assert rule.hits == 1
    assert [voice.voice_id for voice in useapi_sandbox.voices()] == [voice_id]


def test_each_test_has_a_fresh_one(useapi_sandbox: Sandbox, useapi_sandbox_session: Sandbox) -> None:
    """Nothing is left of earlier tests, and the session's sandbox is another one."""
    assert useapi_sandbox.voices() == ()
    assert useapi_sandbox.base_url != useapi_sandbox_session.base_url


def test_the_session_sandbox_lives_on(useapi_sandbox_session: Sandbox) -> None:
    """It serves, and the environment is left alone."""
    useapi_sandbox_session.add_voice("Kept")

    assert [voice.voice_name for voice in useapi_sandbox_session.voices()] == ["Kept"]


def test_nothing_need_be_set(tmp_path: Path) -> None:
    """A project that overrides nothing gets one account whose clones take no time."""
    (tmp_path / "test_theirs.py").write_text(
        "def test_it(useapi_sandbox):\n    assert len(useapi_sandbox.accounts) == 1\n", encoding="utf-8"
    )
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, check=False, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert "1 passed" in told.stdout, told.stdout


def test_a_run_that_uses_none_of_it_loads_no_sandbox() -> None:
    """Every run of pytest where the package is installed imports the plugin, and pays for nothing else."""
    code = (
        "import sys, useapi_voice.pytest_plugin; print('useapi_voice.sandbox' in sys.modules, 'httpx' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert told.split() == ["False", "False"]
