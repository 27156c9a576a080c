"""The README's examples run as they stand, against the sandbox."""

import re
import shutil
import sys
from pathlib import Path

import anyio
import httpx
import pytest

from useapi_voice.sandbox import Sandbox, sample_paths

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
PROGRAMS = [example for example in EXAMPLES if "asyncio.run" in example]
SERVICE = next(example for example in EXAMPLES if "FastAPI" in example)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the examples name."""
    mp3, *_, wav = sorted(sample_paths(), key=lambda path: path.suffix)
    shutil.copy(mp3, tmp_path / "who-1.mp3")
    shutil.copy(wav, tmp_path / "who-2.wav")
    (tmp_path / "recordings").mkdir()
    for number in range(4):
        shutil.copy(mp3, tmp_path / "recordings" / f"voice {number}.mp3")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("example", PROGRAMS, ids=["first voice", "batch", "restarts", "sandbox"])
async def test_example_runs(example: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example that runs by itself does so, with warnings as errors; it starts an interpreter of its own."""
    async with Sandbox(accounts=2, clone_s=0.05) as sandbox:
        monkeypatch.setenv("USEAPI_TOKEN", sandbox.token)
        monkeypatch.setenv("USEAPI_BASE_URL", sandbox.base_url)
        done = await anyio.run_process([sys.executable, "-W", "error", "-c", example], cwd=folder, check=False)

        assert (done.returncode, done.stderr.decode()) == (0, "")
    if "Fault" not in example:
        assert sandbox.voices()


async def test_service_example_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The FastAPI example makes a voice of an uploaded sample, and tells the faults of a bad one."""
    async with Sandbox(clone_s=0.01) as sandbox:
        monkeypatch.setenv("USEAPI_TOKEN", sandbox.token)
        monkeypatch.setenv("USEAPI_BASE_URL", sandbox.base_url)
        scope: dict[str, object] = {}
        exec(SERVICE, scope)
        app = scope["app"]
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with (
            app.router.lifespan_context(app),  # type: ignore[attr-defined]
            httpx.AsyncClient(transport=transport, base_url="http://testserver") as visitor,
        ):
            content = sample_paths()[0].read_bytes()
            good = await visitor.post("/voices", data={"name": "Visitor"}, files={"sample": content})
            bad = await visitor.post("/voices", data={"name": "x" * 31}, files={"sample": b"no audio"})

        assert good.json() == {"voice_id": sandbox.voices()[0].voice_id}
        assert bad.status_code == 422
        assert len(bad.json()["detail"]) == 2


def test_commands_are_marked() -> None:
    """The two commands stand where `.ci/run` looks for them."""
    text = README.read_text(encoding="utf-8")

    assert text.index("<!-- the demo -->") < text.index("<!-- the tests -->")


def test_example_folder_is_complete() -> None:
    """Every example but the service, and the test of a user's own, is a program of its own."""
    assert len(PROGRAMS) == len(EXAMPLES) - 2
