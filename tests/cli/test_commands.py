"""Every other command: what it says and does, on a loopback sandbox, and what its help says."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import useapi_voice.__main__
from useapi_voice import CloneRequest, VoiceClient, __version__
from useapi_voice._cli import _text
from useapi_voice.sandbox import Fault, Sandbox

from .conftest import MP3, Cli, MakeSandbox, json_lines
from .test_clone import HEAD, THREE, running, wait_for

Write = Callable[..., Path]
COMMANDS = [
    (),
    ("clone",),
    ("plan",),
    ("doctor",),
    ("accounts",),
    ("voices",),
    ("voices", "list"),
    ("voices", "delete"),
    ("voices", "prune"),
    ("jobs",),
    ("jobs", "list"),
    ("jobs", "show"),
    ("jobs", "retry"),
    ("jobs", "forget"),
    ("report",),
    ("demo",),
    ("sandbox",),
]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rich believe in a terminal."""
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: tuple[str, ...], cli: Cli) -> None:
    """Every command says what it does, and lists the exit codes."""
    result = cli(*command, "--help")

    assert result.exit_code == 0
    text = re.sub(r"[\s│]+", " ", result.stdout)
    assert "Usage:" in text
    for code in (
        "0 done",
        "2 bad usage",
        "3 the token",
        "4 some were refused",
        "5 some outcomes",
        "6 the remote",
        "130",
    ):
        assert code in text
    assert "Of several, the first of 1, 3, 2, 130, 5, 6, 4 wins." in text


def test_version_and_completion(cli: Cli) -> None:
    """The version is one line; the shell's completion can be had."""
    assert cli("--version").stdout == f"useapi-voice {__version__}\n"
    assert "--install-completion" in cli("--help").stdout


def test_usage_error(cli: Cli) -> None:
    """What the command line cannot understand is bad usage."""
    assert cli("clone").exit_code == 2
    assert cli("clone", "x", "--max-parallel", 3).exit_code == 2
    assert cli("jobs", "list", "x", "--state", "happy").exit_code == 2


@pytest.mark.slow  # starts an interpreter
def test_module_runs_as_the_command() -> None:
    """`python -m useapi_voice` is `useapi-voice`."""
    done = subprocess.run(
        [sys.executable, "-m", "useapi_voice", "--version"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, f"useapi-voice {__version__}\n")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its extra, the command line says which command installs it; any other absence is a bug, and shows."""
    for name in [name for name in sys.modules if name.startswith("useapi_voice._cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(SystemExit, match=r"needs (typer|rich).*: pip install 'useapi-voice\[cli\]'"):
        useapi_voice.__main__.main()


def test_other_missing_module_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that no extra brings is not explained away."""
    monkeypatch.delitem(sys.modules, "useapi_voice._cli")
    monkeypatch.delitem(sys.modules, "useapi_voice._cli._fleet")
    monkeypatch.setitem(sys.modules, "useapi_voice._cli._fleet", None)

    with pytest.raises(ImportError):
        useapi_voice.__main__.main()


# --- plan ----------------------------------------------------------------------------------------------------------


def test_plan(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A plan counts voices, uploads, slots and time for each account, and spends nothing."""
    result = cli("plan", manifest(THREE.replace("samples", "samples,mood").replace(".mp3\n", ".mp3,x\n")))

    assert result.exit_code == 0
    assert "3 voices, and nothing is wrong with it." in result.stdout
    assert re.search(r"To make: 3 voices of 3 recordings \(\d+ s, 0\.2 MB\)\.", result.stdout)
    assert "Note: columns that mean nothing here: mood." in result.stdout
    rows = [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]
    assert rows[0] == ["account", "voices", "uploads", "free slots", "time"]
    assert [row[1:] for row in rows[1:]] == [["2", "2", "1000", "20 s"], ["1", "2", "1000", "20 s"]]
    assert "About 20 s in all, at 20 s a clone (as the vendor says). Nothing was spent." in result.stdout
    assert not sandbox.uploads
    assert not sandbox.clones


def test_plan_knows_what_is_there(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """What the store has is not made again, and clones take what they took."""
    cli("clone", manifest(THREE))
    result = cli("plan", manifest(THREE + "Dan,English,a.mp3\n"))

    assert "4 voices (3 of them are there already)" in result.stdout
    assert "To make: 1 voice of 1 recording " in result.stdout
    assert "(as measured)" in result.stdout


def test_plan_of_what_is_done(cli: Cli, manifest: Write, sandbox_of: MakeSandbox) -> None:
    """With nothing left there is nothing to do, whatever the remote tells."""
    sandbox = sandbox_of(only=["audio/clone-voice", "audio/upload-sample"])
    cli("clone", manifest(HEAD + "Ada,English,a.mp3\n"))

    result = cli("plan", manifest(HEAD + "Ada,English,a.mp3\n"))

    assert result.exit_code == 0
    assert "To make: 0 voices" in result.stdout
    assert sandbox.count("clone-voice") == 1


def test_plan_json(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """--json is one object."""
    (plan,) = json_lines(cli("plan", manifest(THREE), "--json").stdout)

    assert (plan["voices"], plan["to_make"], plan["recordings"], plan["without_slot"]) == (3, 3, 3, 0)
    assert plan["languages"] == {"English": 1, "French": 1, "German": 1}
    assert [share["voices"] for share in plan["accounts"]] == [2, 1]


def test_plan_with_too_few_slots(cli: Cli, manifest: Write, sandbox_of: MakeSandbox) -> None:
    """Fewer slots than voices is told before it costs anything."""
    sandbox_of(accounts=2, slots=1)

    result = cli("plan", manifest(THREE))

    assert result.exit_code == 4
    assert "There is no slot for 1 voice: delete voices" in result.stderr


def test_plan_for_named_accounts(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """Rows with an account stay with it; a broken one is planned for where it is named."""
    broken = sandbox.accounts[1]
    sandbox.break_account(broken)

    (plan,) = json_lines(cli("plan", manifest(THREE), "--account", broken, "--json").stdout)

    shares = {share["account"]: share for share in plan["accounts"]}
    assert shares[broken]["voices"] == 3
    assert shares[broken]["free_slots"] is None


def test_plan_where_nothing_is_told(cli: Cli, manifest: Write, sandbox_of: MakeSandbox) -> None:
    """A server that lists neither accounts nor slots is planned for as one account."""
    sandbox_of(only=["audio/clone-voice", "audio/upload-sample"])

    result = cli("plan", manifest(HEAD + "Ada,Klingon,a.mp3\n"))

    assert result.exit_code == 0
    assert "the account\t1\t1\tnot told\t20 s" in result.stdout


def test_plan_stops_where_the_token_does(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A subscription that ends in between is no missing answer."""
    sandbox.fail("equity", Fault.status(402))

    assert cli("plan", manifest(THREE)).exit_code == 3


@pytest.mark.usefixtures("terminal")
def test_plan_on_a_terminal(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """On a terminal tables are drawn."""
    result = cli("plan", manifest(THREE))

    assert "free slots" in result.stdout
    assert "\t" not in result.stdout


# --- doctor --------------------------------------------------------------------------------------------------------


def test_doctor(cli: Cli, sandbox: Sandbox) -> None:
    """All being well is said, finding by finding."""
    result = cli("doctor")

    assert result.exit_code == 0
    assert "All is well." in result.stdout
    for subject in ("versions", "token", "reachability", "endpoints", f"account {sandbox.accounts[0]}"):
        assert f"ok       {subject}: " in result.stdout
    assert "the audio endpoints answer; 10 languages: English" in result.stdout
    assert "1,000 slots free, as far as the remote knows; 0 cloned voices there" in result.stdout


def test_doctor_json(cli: Cli, sandbox_of: MakeSandbox) -> None:
    """--json is a line a finding; the speech endpoints are found out."""
    sandbox_of(generations=["speech"])

    findings = {line["subject"]: line for line in json_lines(cli("doctor", "--json").stdout)}

    assert findings["endpoints"]["message"].startswith("the speech endpoints answer")
    assert {finding["level"] for finding in findings.values()} == {"ok"}


@pytest.mark.parametrize(
    ("token", "words"), [(None, "There is no token: set USEAPI_TOKEN"), ("user: 1", "cannot be one: set USEAPI_TOKEN")]
)
def test_doctor_without_a_token(token: str | None, words: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, or one that cannot be one, ends the examination, with a remedy."""
    if token:
        monkeypatch.setenv("USEAPI_TOKEN", token)

    result = cli("doctor")

    assert result.exit_code == 3
    assert words in result.stdout
    assert "Mend the errors above" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"USEAPI_TOKEN": "user:1-wrong"}, 3, "ERROR    accounts: "),
        ({"USEAPI_BASE_URL": "http://127.0.0.1:9/v1"}, 6, "ERROR    reachability: "),
        ({"USEAPI_BASE_URL": "http://example.com/v1"}, 2, "ERROR    settings: plain http would send the token"),
        ({"USEAPI_VOICE_API": "video"}, 2, "ERROR    settings: "),
    ],
)
def test_doctor_with_wrong_settings(
    settings: dict[str, str], code: int, words: str, cli: Cli, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that cannot work are told by name; a remote that is not there is asked more than once."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    result = cli("doctor")

    assert result.exit_code == code
    assert words in result.stdout


def test_doctor_with_sick_accounts(cli: Cli, sandbox_of: MakeSandbox) -> None:
    """Accounts out of order are warnings as long as one is left, and an error otherwise."""
    sandbox = sandbox_of(accounts=3, slots=0)
    first, second, third = sandbox.accounts
    sandbox.break_account(first, "Session rejected")
    sandbox.fail("audio/config", Fault.status(400))
    sandbox.fail("audio/voices", Fault.status(400), account=third)

    result = cli("doctor")

    assert f"WARNING  account {first}: is out of order: Session rejected" in result.stdout
    assert f"WARNING  slots of {second}: none is free; 0 cloned voices there" in result.stdout
    assert "ERROR    endpoints: " in result.stdout
    assert f"ERROR    slots of {third}: " in result.stdout
    for account in (second, third):
        sandbox.break_account(account)
    assert "ERROR    accounts: none of the accounts can clone" in cli("doctor").stdout
    assert cli("doctor").exit_code == 4


def test_doctor_with_accounts_without_audio(cli: Cli, sandbox_of: MakeSandbox) -> None:
    """An account without audio is a warning; slots that are not told are no fault."""
    sandbox = sandbox_of(accounts=["mine", "other"], without_audio=["other"])
    sandbox.fail("equity", Fault.status(404), times=None)

    result = cli("doctor")

    assert "WARNING  account other: has no audio" in result.stdout
    assert "ok       slots of mine: not told; 0 cloned voices there" in result.stdout


# --- voices and accounts -------------------------------------------------------------------------------------------


def test_accounts(cli: Cli, sandbox_of: MakeSandbox) -> None:
    """Accounts are listed with their state and free slots."""
    sandbox = sandbox_of(accounts=["mine", "broken", "silent"], without_audio=["silent"], slots=4)
    sandbox.break_account("broken", "Session rejected")

    rows = [line.split("\t") for line in cli("accounts").stdout.splitlines()]
    assert rows == [
        ["account", "state", "free slots"],
        ["mine", "in order", "4"],
        ["broken", "out of order: Session rejected", "not told"],
        ["silent", "has no audio", "not told"],
    ]
    assert json_lines(cli("accounts", "--json").stdout)[0] == {
        "account": "mine",
        "usable": True,
        "error": None,
        "free_slots": 4,
    }


def test_voices_list(cli: Cli, sandbox: Sandbox) -> None:
    """Cloned voices are listed, of all accounts or of one; built-in ones on demand."""
    sandbox.add_voice("Ada")
    sandbox.add_voice("Bea", sandbox.accounts[1])

    assert [line.split("\t")[1] for line in cli("voices", "list").stdout.splitlines()] == ["voice_name", "Ada", "Bea"]
    mine = cli("voices", "list", "--account", sandbox.accounts[1], "--json")
    assert [voice["voice_name"] for voice in json_lines(mine.stdout)] == ["Bea"]
    assert len(json_lines(cli("voices", "list", "--system", "--json").stdout)) == 12


def test_voices_delete(cli: Cli, sandbox: Sandbox) -> None:
    """Voices are deleted by id, or by a name that only one has; a slip deletes nothing."""
    ada, bea, *_ = (sandbox.add_voice(name) for name in ("Ada", "Bea", "Cid", "Cid"))

    unsure = cli("voices", "delete", "Ada")
    assert unsure.exit_code == 0
    assert "Nothing was deleted; --yes deletes 1 voice: Ada." in unsure.stderr
    for name, words in (("Cid", "2 voices are called 'Cid'"), ("Eva", "no cloned voice with the id or name 'Eva'")):
        slip = cli("voices", "delete", "Ada", name, "--yes")
        assert slip.exit_code == 2
        assert words in slip.stderr
    assert len(sandbox.voices()) == 4
    done = cli("voices", "delete", ada.voice_id, "Bea", "-y")
    assert done.exit_code == 0
    assert f"Deleted Bea ({bea.voice_id})." in done.stderr
    assert [voice.voice_name for voice in sandbox.voices()] == ["Cid", "Cid"]


def test_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the question is asked; elsewhere the answer is no."""
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return True

    monkeypatch.setattr(_text.typer, "confirm", confirm)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert not _text.confirmed("Sure?", yes=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert _text.confirmed("Sure?", yes=False)
    assert asked == ["Sure?"]


def test_voices_prune(cli: Cli, sandbox: Sandbox) -> None:
    """Pruning shows what it would delete, and deletes it when told."""
    for name in ("test 1", "test 2", "Ada"):
        sandbox.add_voice(name)

    assert "No cloned voice has a name that begins with 'x'" in cli("voices", "prune", "x").stderr
    shown = cli("voices", "prune", "test ")
    assert "Nothing was deleted; --yes deletes 2 voices: test 1, test 2." in shown.stderr
    assert len(sandbox.voices()) == 3
    assert "Deleted 2 voices." in cli("voices", "prune", "test ", "--yes").stderr
    assert [voice.voice_name for voice in sandbox.voices()] == ["Ada"]
    assert cli("voices", "prune", "").exit_code == 2


# --- jobs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(cli: Cli, manifest: Write, sandbox: Sandbox) -> Path:
    """Return a manifest whose store has two voices and a failure."""
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Bea")
    path = manifest(THREE)
    assert cli("clone", path).exit_code == 4
    return path


def test_jobs_list(cli: Cli, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are listed without a token, all or those in a state."""
    monkeypatch.delenv("USEAPI_TOKEN")

    rows = [line.split("\t") for line in cli("jobs", "list", kept).stdout.splitlines()]
    assert [row[1:4] for row in rows[1:]] == [
        ["Ada", "Ada", "cloned"],
        ["Bea", "Bea", "refused"],
        ["Cid", "Cid", "cloned"],
    ]
    assert rows[1][5].startswith("user:")
    assert rows[2][5] == "ContentRejected: Text was moderated"
    (job,) = json_lines(cli("jobs", "list", kept, "--state", "refused", "--json").stdout)
    assert job["key"] == "Bea"


def test_jobs_show(cli: Cli, kept: Path) -> None:
    """One job is shown with its attempts: by key, by id, or by the id's beginning."""
    result = cli("jobs", "show", kept, "Bea")

    assert result.exit_code == 0
    assert re.search(r"samples +.*a\.mp3, .*b\.mp3", result.stdout)
    assert re.search(r"attempt 1 .* refused \(422\): Text was moderated", result.stdout)
    job = json_lines(cli("jobs", "show", kept, "Bea", "--json").stdout)[0]
    assert cli("jobs", "show", kept, job["id"][:8]).stdout == result.stdout
    for name in ("Nobody", "Be"):
        missing = cli("jobs", "show", kept, name)
        assert missing.exit_code == 2
        assert missing.stderr == f"No job has the key or id '{name}': useapi-voice jobs list shows them.\n"


def test_jobs_show_of_one_that_has_not_ended(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    """A job without key, voice and answer shows what there is."""

    async def fill() -> None:
        async with VoiceClient(store=tmp_path / "kept.db", close_grace_s=0) as client:
            await client.submit(CloneRequest(voice_name="Ada", language_tag="English", samples=[MP3]))
            while not sandbox.clones:
                await anyio.sleep(0.01)

    sandbox.fail("clone-voice", Fault.hang(made=True))
    anyio.run(fill)
    store = tmp_path / "kept.db"

    (job,) = json_lines(cli("jobs", "list", store, "--json").stdout)
    assert cli("jobs", "list", store).stdout.splitlines()[1].startswith(f"{job['id'][:8]}\t\tAda\tsent\t1")
    assert "in progress (no answer)" in cli("jobs", "show", store, job["id"]).stdout
    forget = cli("jobs", "forget", store, job["id"], "--yes")
    assert forget.exit_code == 2
    assert "has not ended, so it cannot be forgotten" in forget.stderr


def test_jobs_forget(cli: Cli, kept: Path, sandbox: Sandbox) -> None:
    """A failure is forgotten at once; a voice that was made only when told, as it would be made twice."""
    unsure = cli("jobs", "forget", kept, "Ada", "Bea")
    assert "Nothing was forgotten: 1 job made a voice" in unsure.stderr
    assert cli("jobs", "forget", kept, "Bea").stderr == "Forgot 1 job.\n"
    assert cli("jobs", "forget", kept, "Ada", "-y").exit_code == 0
    assert [job["key"] for job in json_lines(cli("jobs", "list", kept, "--json").stdout)] == ["Cid"]
    assert cli("clone", kept).exit_code == 0
    assert len(sandbox.voices()) == 4


def test_jobs_of_no_store(cli: Cli, tmp_path: Path) -> None:
    """A store that is not there is bad usage, and is not made."""
    (tmp_path / "some.txt").touch()
    for name in ("nowhere", "some.txt", "."):
        result = cli("jobs", "list", tmp_path / name)

        assert result.exit_code == 2
        assert "give the store of an earlier clone, or the manifest or folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["some.txt"]


OWNER = """
import sys, anyio
from useapi_voice.stores.sqlite import SqliteStore

async def own():
    store = SqliteStore(sys.argv[1], keep_s=1e9)
    await store.open()
    print("mine", flush=True)
    sys.stdin.read()
    await store.aclose()

anyio.run(own)
"""


def test_jobs_of_a_store_in_use(cli: Cli, kept: Path, tmp_path: Path) -> None:
    """While a clone runs, all can be looked at; what would change its store is refused, and says why."""
    command = [sys.executable, "-c", OWNER, f"{kept}.rehearsal.db"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"

        jobs = json_lines(cli("jobs", "list", kept, "--json").stdout)
        shown = cli("jobs", "show", kept, "Bea")
        report = cli("report", kept, "-o", tmp_path / "report.html")
        refused = cli("jobs", "forget", kept, "Bea")

    assert owner.returncode == 0
    assert [job["key"] for job in jobs] == ["Ada", "Bea", "Cid"]
    assert "voice_name    Bea" in shown.stdout
    assert report.exit_code == 0
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"{kept}.rehearsal.db has another owner")
    assert refused.stderr.endswith(
        "try again when it has ended. Until then, jobs list, jobs show and report look at it without disturbing it.\n"
    )


@pytest.mark.usefixtures("terminal")
def test_tables_take_no_markup(cli: Cli, sandbox: Sandbox) -> None:
    """Names are shown as they are: no markup, and nothing that steers a terminal."""
    sandbox.add_voice("[red]Ada[/red] \x1b[2J")

    assert "[red]Ada[/red] \\x1b[2J" in cli("voices", "list").stdout


# --- demo and sandbox ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo(cli: Cli) -> None:
    """The demo clones on the sandbox, and shows the server's own count; its display takes a moment."""
    result = cli("demo", "--clones", 4, "--accounts", 1, "--clone-s", 0.1)

    assert result.exit_code == 0
    assert "Demo voice 4" in result.stdout
    assert "Cap breaches at the server: 0." in result.stdout


def test_live_demo(cli: Cli, sandbox: Sandbox) -> None:
    """--live uses what the environment names, and tells failures by their class."""
    sandbox.fail("clone-voice", Fault.moderated())

    result = cli("demo", "--live", "--clones", 2)

    assert result.exit_code == 4
    assert len(sandbox.voices()) == 1
    assert "ContentRejected: Text was moderated" in result.stdout


def test_live_demo_without_token(cli: Cli) -> None:
    """--live needs a token."""
    assert cli("demo", "--live").exit_code == 3


@pytest.mark.slow
@pytest.mark.parametrize("faults", [(), ("--faults",)])
def test_sandbox_command(faults: tuple[str, ...], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox serves until Ctrl-C, in words that can be pasted into a shell; its own process takes a second."""
    said = tmp_path / "said"
    with running("sandbox", "--clone-s", 0, "--slots", 3, *faults, errors=said) as child:
        wait_for(lambda: "Ctrl-C" in said.read_text(), "it serves")
        for name, value in re.findall(r"^export (\w+)=(.+)$", said.read_text(), re.MULTILINE):
            monkeypatch.setenv(name, value)
        assert "3" in cli("accounts").stdout
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 0

    assert said.read_text().endswith("Sandbox stopped.\n")


def test_sandbox_on_a_port_that_is_taken(cli: Cli, sandbox: Sandbox) -> None:
    """A port that cannot be had is told."""
    port = re.search(r":(\d+)/", sandbox.base_url)
    assert port

    result = cli("sandbox", "--port", port[1])

    assert result.exit_code == 2
    assert f"Cannot listen on 127.0.0.1 port {port[1]}" in result.stderr


@pytest.mark.slow
def test_reader_that_goes_away(sandbox: Sandbox) -> None:
    """A pipe that is closed, as `head` does, ends a command without a word; that needs a process of its own."""
    for number in range(300):
        sandbox.add_voice(f"A voice with a name {number}"[:30])
    command = [sys.executable, "-m", "useapi_voice", "voices", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(20) == 1
