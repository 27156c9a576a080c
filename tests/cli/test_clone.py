"""`clone` and `jobs retry`: from a manifest or a folder to voices, again and again, stopped and resumed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from useapi_voice import CloneRequest, VoiceClient
from useapi_voice._cli import _batch, _clone, _connect, _results
from useapi_voice.sandbox import Fault, Sandbox

from .conftest import MP3, Cli, MakeSandbox, json_lines

Write = Callable[..., Path]
HEAD = "voice_name,language_tag,samples\n"
THREE = HEAD + "Ada,English,a.mp3\nBea,French,a.mp3;b.mp3\nCid,German,*.wav\n"


def names(sandbox: Sandbox) -> list[str]:
    """Return the names of all voices at the server."""
    return sorted(voice.voice_name for voice in sandbox.voices())


# --- to the end ----------------------------------------------------------------------------------------------------


def test_manifest_is_cloned(cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """Every row becomes a voice; plain lines say so, and where everything is."""
    result = cli("clone", manifest(THREE))

    assert result.exit_code == 0
    assert names(sandbox) == ["Ada", "Bea", "Cid"]
    assert "[3/3] voices.csv:" in result.stderr
    assert "3 of 3 voices are there (after " in result.stderr
    assert result.stdout == ""
    assert (tmp_path / "voices.csv.rehearsal.db").is_file()
    assert not sandbox.breaches


def test_same_command_again_makes_nothing_twice(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """What is there is there: the second run answers at once, and adds what is new."""
    cli("clone", manifest(THREE))
    again = cli("clone", manifest(THREE + "Dan,English,b.mp3\n"))

    assert again.exit_code == 0
    assert names(sandbox) == ["Ada", "Bea", "Cid", "Dan"]
    assert "3 jobs ended in an earlier run" in again.stderr
    assert "4 of 4 voices are there" in again.stderr
    assert sandbox.count("clone-voice") == 4


def test_changed_row_is_told_with_its_line(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A row that is not what it was under its key is a fault, in batches of one and of many."""
    cli("clone", manifest(THREE))
    for text in (THREE.replace("Bea,French", "Bea,German"), HEAD + "\nBea,German,a.mp3;b.mp3\n"):
        result = cli("clone", manifest(text))

        assert result.exit_code == 2
        assert "voices.csv:3: key: 'Bea' is in the store with another request" in result.stderr
    assert sandbox.count("clone-voice") == 3


def test_fault_of_the_library_is_told_with_its_line(
    cli: Cli, manifest: Write, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the library finds out, say a file that vanished since the check, is placed too."""
    path = manifest(THREE)
    whole = _clone.check

    async def check(*args: object) -> object:
        known = await whole(*args)  # type: ignore[arg-type]
        (path.parent / "b.mp3").unlink()
        return known

    monkeypatch.setattr(_clone, "check", check)

    result = cli("clone", path, "--json")

    assert result.exit_code == 2
    (fault,) = json_lines(result.stdout)
    assert (fault["event"], fault["line"], fault["field"]) == ("fault", 3, "samples[1]")
    assert not sandbox.uploads


def test_folder_is_cloned(cli: Cli, folder: Path, sandbox: Sandbox) -> None:
    """Each recording and each sub-folder becomes a voice; the store lies in the folder, and is no recording."""
    (folder / "notes.txt").touch()
    result = cli("clone", folder, "--language", "English", "--max-parallel", 1)

    assert result.exit_code == 0
    assert names(sandbox) == ["Ada", "Both", "Emil"]
    assert "left out, being neither mp3 nor wav: notes.txt" in result.stderr
    assert "recordings/Both: cloned" in result.stderr
    assert set(sandbox.max_parallel_seen.values()) == {1}
    assert (folder / ".useapi-voice.rehearsal.db").is_file()
    assert cli("clone", folder, "--language", "English").exit_code == 0


def test_account_option(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """Rows that name no account use the given one."""
    account = sandbox.accounts[1]

    assert cli("clone", manifest(THREE), "--account", account).exit_code == 0
    assert {voice.account for voice in sandbox.voices()} == {account}


def test_one_voice(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A single voice is said as one."""
    assert "The voice is there (after" in cli("clone", manifest(HEAD + "Ada,English,a.mp3\n")).stderr


def test_one_voice_that_fails(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A single failure is said as one."""
    sandbox.fail("clone-voice", Fault.moderated())

    assert "The voice failed (after" in cli("clone", manifest(HEAD + "Ada,English,a.mp3\n")).stderr


def test_quiet(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """--quiet says nothing where nothing is wrong."""
    result = cli("clone", manifest(THREE), "--quiet")

    assert (result.exit_code, result.output) == (0, "")


def test_quiet_with_a_failure(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """--quiet says what went wrong."""
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Bea")

    result = cli("clone", manifest(THREE), "--quiet")

    assert result.stderr.splitlines()[1:] == [
        "ContentRejected (1): Use other samples, or another name; the same content will be refused again.",
        "  voices.csv:3 Bea: Text was moderated",
    ]


def test_json(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """--json writes every event, a result for each row with its line and key, and the end."""
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Bea")

    result = cli("clone", manifest(THREE), "--json")

    lines = json_lines(result.stdout)
    results = {line["voice_name"]: line for line in lines if line["event"] == "result"}
    assert {name: line["line"] for name, line in results.items()} == {"Ada": 2, "Bea": 3, "Cid": 4}
    assert results["Ada"]["voice"]["voice_id"].startswith("user:")
    assert results["Bea"]["error"]["type"] == "ContentRejected"
    assert results["Bea"]["error"]["remedy"]
    assert lines[-1]["event"] == "end"
    assert (lines[-1]["cloned"], lines[-1]["failed"], lines[-1]["left"], lines[-1]["exit_code"]) == (2, 1, 0, 4)
    sent = [line for line in lines if line["event"] == "sent"]
    assert {line["key"] for line in sent} == {"Ada", "Bea", "Cid"}
    assert "mended" not in result.stderr


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_out(suffix: str, cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """--out writes the voices, those of earlier runs included, with the keys of their rows."""
    out = tmp_path / f"out.{suffix}"
    cli("clone", manifest(THREE))
    result = cli("clone", manifest(THREE), "-o", out)

    assert f"3 voices written to {out}." in result.stderr
    text = out.read_text()
    rows = json_lines(text) if suffix == "jsonl" else list(csv.DictReader(text.splitlines()))
    assert {row["key"]: row["voice_id"] for row in rows} == {v.voice_name: v.voice_id for v in sandbox.voices()}
    assert str(rows[0]["create_time"]).isdigit()
    assert out.stat().st_mode & 0o777 == 0o666 & ~_mask()


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_out_to_standard_output(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A dash writes JSON Lines to standard output, and nothing if there is no voice."""
    result = cli("clone", manifest(THREE), "--out", "-")

    assert {line["voice_name"] for line in json_lines(result.stdout)} == {"Ada", "Bea", "Cid"}

    sandbox.fail("clone-voice", Fault.moderated())
    assert cli("clone", manifest(HEAD + "Eve,English,a.mp3\n", "other.csv"), "--out", "-").stdout == ""


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("voices.txt", "names neither .jsonl nor .csv"),
        ("nowhere/voices.csv", "is in a folder that does not exist"),
        ("folder.csv", "is a folder"),
        ("voices.csv", "is what is to be read"),
    ],
)
def test_out_that_cannot_be(out: str, words: str, cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """Where results cannot go is told before anything is sent."""
    (tmp_path / "folder.csv").mkdir()

    result = cli("clone", manifest(THREE), "--out", tmp_path / out)

    assert result.exit_code == 2
    assert words in result.stderr
    assert not sandbox.requests


def test_out_in_a_folder_that_cannot_be_written(
    cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that takes no file is told before, and a disk that fails leaves no half of a file."""
    path = manifest(THREE)
    with monkeypatch.context() as patch:
        patch.setattr(_results, "os", SimpleNamespace(access=lambda *_: False, W_OK=os.W_OK))
        assert "a folder that cannot be written" in cli("clone", path, "--out", tmp_path / "o.csv").stderr

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    result = cli("clone", path, "--out", tmp_path / "o.csv")

    assert result.exit_code == 2
    assert "3 voices" in result.stderr
    assert "o.csv cannot be written: No space left on device; see to that" in result.stderr
    assert [found.name for found in tmp_path.glob(".o.csv*")] == []


def test_rehearsal(cli: Cli, manifest: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--sandbox needs no token, keeps nothing, and never touches a store of the real thing."""
    monkeypatch.setattr(_connect, "REHEARSAL_CLONE_S", 0.02)

    result = cli("clone", manifest(THREE), "--sandbox")

    assert result.exit_code == 0
    assert "A rehearsal" in result.stderr
    assert list(tmp_path.glob("*.db")) == []
    mixed = cli("clone", manifest(THREE), "--sandbox", "--store", tmp_path / "real.db")
    assert mixed.exit_code == 2
    assert "leave out --store, or --sandbox" in mixed.stderr


def test_store_option(cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """A store may lie anywhere that exists."""
    assert cli("clone", manifest(THREE), "--store", tmp_path / "kept.db").exit_code == 0
    assert (tmp_path / "kept.db").is_file()

    result = cli("clone", manifest(THREE), "--store", tmp_path / "nowhere" / "kept.db")
    assert result.exit_code == 2
    assert "There is no folder" in result.stderr


def test_store_that_is_none(cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """A file that is no store is refused, and left as it is."""
    (tmp_path / "kept.db").write_text("my diary")

    result = cli("clone", manifest(THREE), "--store", tmp_path / "kept.db")

    assert result.exit_code == 2
    assert (tmp_path / "kept.db").read_text() == "my diary"
    assert not sandbox.uploads


def test_stores_of_rehearsals_are_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a server on this machine, the default store is another than against the real one."""
    source, real = tmp_path / "v.csv", _connect.Remote()
    stack = AsyncExitStack()

    assert _connect.store_of(source, None, real, stack).name == "v.csv.db"
    assert _connect.store_of(tmp_path, None, real, stack).name == ".useapi-voice.db"
    monkeypatch.setenv("USEAPI_BASE_URL", "http://127.0.0.1:1/v1")
    assert _connect.store_of(source, None, real, stack).name == "v.csv.rehearsal.db"
    monkeypatch.setenv("USEAPI_BASE_URL", "http://host:port")
    assert _connect.store_of(source, None, real, stack).name == "v.csv.db"


# --- failures ------------------------------------------------------------------------------------------------------


def test_passing_failure_goes_again_by_itself(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """What an account was to blame for is tried again by the same command; what was refused is not."""
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Bea")
    sandbox.fail("clone-voice", Fault.no_subscription(), voice_name="Cid", times=2)
    path = manifest(THREE)

    assert "AccountUnavailable (1): Post the account anew" in cli("clone", path).stderr
    again = cli("clone", path)

    assert again.exit_code == 4
    assert "1 job that failed for a reason that may have passed goes again" in again.stderr
    assert names(sandbox) == ["Ada", "Cid"]


def test_many_failures_are_cut(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """One remedy is said once, over no more failures than one reads."""
    sandbox.fail("clone-voice", Fault.moderated(), times=None)

    result = cli("clone", manifest(HEAD + "".join(f"Voice {n},English,a.mp3\n" for n in range(13))))

    assert "ContentRejected (13): Use other samples" in result.stderr
    assert "  ... and 3 more" in result.stderr


def test_fail_fast(cli: Cli, manifest: Write, sandbox_of: MakeSandbox) -> None:
    """--fail-fast stops at the first failure; the same command goes on with the rest."""
    sandbox = sandbox_of(clone_s=0.3)
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Voice 0")
    path = manifest(HEAD + "".join(f"Voice {n},English,a.mp3\n" for n in range(8)))

    result = cli("clone", path, "--fail-fast", "--max-parallel", 1)

    assert result.exit_code == 4
    assert "Stopping at the first failure" in result.stderr
    assert "are left" in result.stderr
    assert len(sandbox.voices()) < 7
    assert cli("clone", path, "--fail-fast").exit_code == 4
    assert len(sandbox.voices()) == 7


def test_jobs_of_the_store_that_the_manifest_lacks_go_on_too(
    cli: Cli, manifest: Write, sandbox_of: MakeSandbox
) -> None:
    """A row that was removed after it was accepted is still a job."""
    sandbox = sandbox_of(clone_s=0.2)
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Voice 0")
    text = HEAD + "".join(f"Voice {n},English,a.mp3\n" for n in range(8))
    cli("clone", manifest(text), "--fail-fast", "--max-parallel", 1)

    result = cli("clone", manifest(HEAD + "New,English,b.mp3\n"))

    assert result.exit_code == 0
    assert "of the store, not in" in result.stderr
    assert len(sandbox.voices()) == 8


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lost answer be looked for no longer than a second."""
    monkeypatch.setattr(_connect, "SETTLE_AFTER_S", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_unknown_outcome_and_retry(cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """An unknown outcome is exit code 5; only --unknown tries it again, as it may cost twice."""
    sandbox.fail("clone-voice", Fault.drop(made=False), voice_name="Bea")
    listing = sandbox.fail("voices", Fault.status(403), nth=3, times=None)
    path = manifest(THREE)

    result = cli("clone", path)

    assert result.exit_code == 5
    assert "voices.csv:3 Bea: the answer was lost" in result.stderr
    assert "outcome unknown" in result.stderr
    assert "Look for the voice (useapi-voice voices list)" in result.stderr
    listing.remove()
    assert cli("clone", path).exit_code == 5
    kept = cli("jobs", "retry", path)
    assert kept.exit_code == 0
    assert "1 job left alone: a voice may exist" in kept.stderr
    assert cli("jobs", "retry", path, "Bea", "--unknown").exit_code == 0
    assert names(sandbox) == ["Ada", "Bea", "Cid"]


def test_retry(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """What was refused goes again under its key, all of it or what is named."""
    for name in ("Ada", "Bea"):
        sandbox.fail("clone-voice", Fault.moderated(), voice_name=name)
    path = manifest(THREE)
    cli("clone", path)

    assert cli("jobs", "retry", path, "Ada").exit_code == 0
    assert names(sandbox) == ["Ada", "Cid"]
    result = cli("jobs", "retry", path, "--json")
    assert json_lines(result.stdout)[-1]["cloned"] == 1
    assert cli("clone", path).exit_code == 0
    assert "Nothing to retry" in cli("jobs", "retry", path).stderr
    assert sandbox.count("clone-voice") == 5


def test_retry_needs_the_recordings(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A job whose recording is gone is left as it is, beside those that go; it is not forgotten."""
    for name in ("Ada", "Cid"):
        sandbox.fail("clone-voice", Fault.moderated(), voice_name=name)
    path = manifest(THREE)
    cli("clone", path)
    (path.parent / "c.wav").unlink()

    result = cli("jobs", "retry", path)

    assert result.exit_code == 4
    assert "Cid is left as it is: c.wav does not exist: put it back" in result.stderr
    assert names(sandbox) == ["Ada", "Bea"]
    again = cli("jobs", "retry", path)
    assert again.exit_code == 4
    assert "Nothing to retry" in again.stderr


def test_retry_of_content_that_only_the_store_has(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    """What a program handed in as bytes is gone when its job has ended; the job is left as it is."""
    sandbox.fail("clone-voice", Fault.moderated())

    async def fill() -> None:
        async with VoiceClient(store=tmp_path / "kept.db") as client:
            request = CloneRequest(voice_name="Ada", language_tag="English", samples=[MP3.read_bytes()])
            await (await client.submit(request, key="ada")).wait()

    anyio.run(fill)

    result = cli("jobs", "retry", tmp_path / "kept.db")

    assert result.exit_code == 4
    assert "Ada is left as it is: its samples were handed in by a program" in result.stderr


# --- the terminal --------------------------------------------------------------------------------------------------


def test_panel(cli: Cli, manifest: Write, sandbox_of: MakeSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a panel shows the accounts, what is in flight, gates and why, and failures above it."""
    sandbox = sandbox_of(accounts=2, clone_s=0.5)
    sandbox.fail("clone-voice", Fault.rate_limited(1))
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Voice 3")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")

    result = cli("clone", manifest(HEAD + "".join(f"Voice {n},English,a.mp3\n" for n in range(6))))

    assert result.exit_code == 4
    assert "Cloning voices.csv" in result.stderr
    assert sandbox.accounts[0] in result.stderr
    assert "in flight" in result.stderr
    assert "waits" in result.stderr
    assert "too many requests" in result.stderr
    assert "Voice 3: refused: Text was moderated" in result.stderr


def test_lines_tell_how_far_it_is(
    cli: Cli, manifest: Write, sandbox_of: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no terminal, a line now and then says how far it is."""
    sandbox_of(clone_s=0.4)
    monkeypatch.setattr(_batch.painter_of.__globals__["Lines"], "every_s", 0.1)

    result = cli("clone", manifest(THREE))

    assert " done, 0 failed, " in result.stderr
    assert "about " in result.stderr


# --- stopping ------------------------------------------------------------------------------------------------------


@contextmanager
def running(*args: object, errors: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "useapi_voice", *map(str, args)]
    with errors.open("wb") as file, subprocess.Popen(command, stderr=file, stdout=file) as child:
        try:
            yield child
        except BaseException as error:
            error.add_note(f"it said: {errors.read_text()}")
            raise
        finally:
            child.kill()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until it is so."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, f"never: {what}"
        time.sleep(0.02)


EIGHT = HEAD + "".join(f"Voice {n},English,a.mp3\n" for n in range(8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_stopped_once(kind: signal.Signals, cli: Cli, manifest: Write, sandbox_of: MakeSandbox, tmp_path: Path) -> None:
    """Ctrl-C once lets the clones in progress end, says how long, and the same command does the rest."""
    sandbox = sandbox_of(clone_s=1.0)
    path, errors = manifest(EIGHT), tmp_path / "errors"

    with running("clone", path, "-o", tmp_path / "o.csv", errors=errors) as child:
        wait_for(lambda: sandbox.in_progress() == 2, "two clones in progress")
        child.send_signal(kind)
        assert child.wait(20) == 130

    told = errors.read_text()
    assert "Stopping: waiting for 2 clones in progress, " in told
    assert "Ctrl-C stops at once" in told
    assert "2 of 8 voices are there, 6 are left" in told
    assert "The same command goes on where it stopped." in told
    assert len(sandbox.voices()) == 2
    assert "2 voices written to" in told
    assert cli("clone", path).exit_code == 0
    assert len(sandbox.voices()) == 8
    assert sandbox.count("clone-voice") == 8


@pytest.mark.slow
def test_stopped_twice(cli: Cli, manifest: Write, sandbox_of: MakeSandbox, tmp_path: Path) -> None:
    """Ctrl-C twice stops at once; what was in progress is found by the next run, and not made twice."""
    takes_s = [2.5]
    sandbox = sandbox_of(clone_s=lambda *_: takes_s[-1])
    path, errors = manifest(EIGHT), tmp_path / "errors"

    with running("clone", path, errors=errors) as child:
        wait_for(lambda: sandbox.in_progress() == 2, "two clones in progress")
        child.send_signal(signal.SIGINT)
        wait_for(lambda: "Stopping" in errors.read_text(), "it says that it stops")
        began_s = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
        assert time.monotonic() - began_s < 2.0

    assert "Stopped at once" in errors.read_text()
    assert "0 of 8 voices are there, 8 are left" in errors.read_text()
    takes_s.append(0.05)
    again = cli("clone", path)
    assert again.exit_code == 0
    assert len(sandbox.voices()) == 8
    assert sandbox.count("clone-voice") == 8
    assert not sandbox.breaches


@pytest.mark.slow
def test_stopped_before_the_batch(manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """Ctrl-C while the remote is still being asked ends the command in one word."""
    sandbox.fail("accounts", Fault.hang(made=False), times=None)
    errors = tmp_path / "errors"

    with running("clone", manifest(EIGHT), errors=errors) as child:
        wait_for(lambda: sandbox.count("accounts"), "it asks")
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130

    assert errors.read_text() == "Interrupted.\n"


def test_stopped_with_nothing_in_progress(
    cli: Cli, manifest: Write, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is in progress, there is nothing to wait for."""
    sandbox.fail("upload-sample", Fault.hang(made=False), times=None)
    whole = _batch._listen

    async def listen(brake: _batch._Brake) -> None:
        brake.pull("interrupt")
        await whole(brake)

    monkeypatch.setattr(_batch, "_listen", listen)

    result = cli("clone", manifest(HEAD + "Ada,English,a.mp3\n"))

    assert result.exit_code == 130
    assert "Stopping. The same command goes on" in result.stderr
    assert "The voice is left" in result.stderr


def test_json_of_what_is_left(cli: Cli, manifest: Write, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not reached has a result too, without voice and without error."""

    async def listen(brake: _batch._Brake) -> None:
        brake.pull("interrupt")
        brake.pull("failure")
        brake.pull("interrupt")

    sandbox.fail("upload-sample", Fault.hang(made=False), times=None)
    monkeypatch.setattr(_batch, "_listen", listen)

    lines = json_lines(cli("clone", manifest(THREE), "--json").stdout)

    left = [line for line in lines if line["event"] == "result"]
    assert {line["state"] for line in left} <= {"queued", "uploading", "ready"}
    assert all("voice" not in line and "error" not in line for line in left)
    assert lines[-1]["stopped_by"] == "interrupt"


def test_platform_without_signal_receivers(
    cli: Cli, manifest: Write, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where signals cannot be received, a batch runs all the same."""

    def receive(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(_batch.anyio, "open_signal_receiver", receive)

    assert cli("clone", manifest(THREE)).exit_code == 0


def test_both_ways_of_writing_a_store(cli: Cli, folder: Path, sandbox: Sandbox) -> None:
    """A folder's store is found by the folder, and by its own name."""
    cli("clone", folder, "--language", "English")

    assert cli("jobs", "list", folder).stdout == cli("jobs", "list", folder / ".useapi-voice.rehearsal.db").stdout
    shutil.move(folder / ".useapi-voice.rehearsal.db", folder / ".useapi-voice.db")
    assert "Ada" in cli("jobs", "list", folder).stdout
    assert json.loads(cli("jobs", "list", folder, "--json").stdout.splitlines()[0])["state"] == "cloned"
