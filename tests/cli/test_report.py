"""The report: one page that needs no network, trusts no name, and shows what occupied each place."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from useapi_voice._cli import _results
from useapi_voice._cli._report import page
from useapi_voice._cli._timeline import bars_of, sittings_of
from useapi_voice.sandbox import Fault, Sandbox

from .conftest import Cli
from .test_clone import THREE

Write = Callable[..., Path]
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EVIL = "\"><script>alert(1)</script>'&\x1b[2J"
VOID = {"meta", "link", "input", "br", "hr"}


class Page(HTMLParser):
    """Reads a page: every tag is closed, and what is in it can be asked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """Return the attributes of every such tag."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


def attempt(
    start_s: float, end_s: float | None, verdict: str, account: str | None = "mine", **more: Any
) -> dict[str, Any]:
    """Make an attempt as a store exports it."""
    at = NOW + timedelta(seconds=start_s)
    ended = None if end_s is None else (NOW + timedelta(seconds=end_s)).isoformat()
    told = {"status_code": None, "detail": "", **more}
    return {"account": account, "sent_at": at.isoformat(), "ended_at": ended, "verdict": verdict, **told}


def row(name: str, state: str, *history: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Make a job as a store exports it."""
    request = {"voice_name": name, "language_tag": "English", "samples": [], "files": []}
    basis = {"id": name, "key": name, "state": state, "account": "mine", "request": request}
    rest = {"attempts": len(history), "history": [*history], "surplus": [], "outcome": None, "settled_at": None}
    return {**basis, **rest, **more}


def voice(name: str, **more: Any) -> dict[str, Any]:
    """Make the outcome of a voice."""
    return {"voice": {"voice_id": f"id of {name}", "voice_name": name, "tag_list": ["English"], **more}}


def failure(error: str, **facts: Any) -> dict[str, Any]:
    """Make the outcome of a failure."""
    return {"error": error, "facts": {"message": "went wrong", **facts}}


def test_report_of_a_batch(cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """A store becomes a page with a player for every voice and a card for every failure."""
    sandbox.fail("clone-voice", Fault.moderated(), voice_name="Bea")
    path = manifest(THREE)
    cli("clone", path)

    result = cli("report", path, "-o", tmp_path / "page.html")

    assert result.exit_code == 0
    assert f"A report on 3 jobs is in {tmp_path / 'page.html'}." in result.stderr
    text = (tmp_path / "page.html").read_text()
    found = Page(text)
    assert len(found.all("audio", preload="none")) == 2
    assert "voices.csv (rehearsal)" in text
    assert "Text was moderated" in text
    assert sandbox.token not in text


def test_report_to_what_is_no_plain_file(cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """A link goes on pointing where it did, and a pipe stays a pipe: neither is replaced by a file."""
    path = manifest(THREE)
    cli("clone", path)
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)  # so that a writer finds a reader
    assert cli("report", path, "-o", tmp_path / "pipe").exit_code == 0
    piped = os.read(pipe, 15)
    os.close(pipe)

    assert cli("report", path, "-o", tmp_path / "link.html").exit_code == 0
    assert piped.lower() == b"<!doctype html>"
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").read_text().startswith("<!")


def test_report_that_cannot_be_written(cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path) -> None:
    """A page goes into a folder that is there, and never over its own store."""
    path = manifest(THREE)
    cli("clone", path)
    store = tmp_path / "voices.csv.rehearsal.db"

    for out, words in ((tmp_path / "no" / "x.html", "in a folder that exists"), (store, "is the store itself")):
        result = cli("report", store, "--out", out)

        assert result.exit_code == 2
        assert words in result.stderr
    assert store.read_bytes().startswith(b"SQLite")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EPIPE])
def test_report_that_finds_no_room(
    error: int, cli: Cli, manifest: Write, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told, with what to do, and leaves no half a page; a reader that has gone is left to typer."""
    path = manifest(THREE)
    cli("clone", path)

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(_results, "_write", refuse)
    result = cli("report", path, "-o", tmp_path / "page.html")

    if error == errno.ENOSPC:
        assert result.exit_code == 2
        assert (
            "page.html cannot be written: No space left on device; see to that, or give another name" in result.stderr
        )
    else:
        assert result.exit_code == 1
        assert result.stderr == ""
    assert not [entry.name for entry in tmp_path.iterdir() if "page" in entry.name]


def test_page_needs_no_network() -> None:
    """Nothing is loaded, only our own script may run, and a sample is fetched when somebody plays it."""
    text = page([row("Ada", "cloned", outcome=voice("Ada", sample_audio="https://cdn/a.mp3"))], Path("x.db"), NOW)

    found = Page(text)
    (policy,) = found.all("meta", http_equiv="Content-Security-Policy") or found.all(
        "meta", **{"http-equiv": "Content-Security-Policy"}
    )
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in str(policy["content"])
    assert [link["href"] for link in found.all("link")] == ["data:,"]
    assert not found.all("img")
    assert [player["preload"] for player in found.all("audio")] == ["none"]


def test_page_trusts_no_name() -> None:
    """Names, ids, accounts, messages and URLs are data: none becomes markup, and none is followed but the web's."""
    surplus = [{"voice_id": EVIL}]
    history = attempt(0, 5, "refused", account=EVIL, detail=EVIL)
    rows = [
        row(
            EVIL,
            "cloned",
            history,
            account=EVIL,
            outcome=voice(EVIL, sample_audio="https://x/" + EVIL),
            surplus=surplus,
        ),
        row("Bea", "cloned", outcome=voice("Bea", sample_audio="javascript:alert(1)", voice_id=EVIL)),
        row(EVIL, "refused", history, outcome={"error": EVIL, "facts": {"message": EVIL}}),
        row(EVIL, "queued"),
    ]

    text = page(rows, Path(f"{EVIL.replace('/', '')}.db"), NOW)

    found = Page(text)
    assert len(found.all("script")) == 1
    assert len(found.all("audio")) == 1
    assert "\x1b" not in text
    assert "javascript:" not in text


def test_page_of_nothing() -> None:
    """An empty store is a page too."""
    text = page([], Path("x.db"), NOW)

    Page(text)
    for words in ("No clone request has left yet", "No voice was made yet", "None: every job that has ended"):
        assert words in text


def test_page_of_all_there_is() -> None:
    """Every verdict, every ending, several sittings, and what has not ended."""
    verdicts = ["cloned", "adopted", "absent", "unknown", "not_accepted", "refused", "not_sent", "", "of tomorrow"]
    far = 10_000
    rows = [
        *(row(f"v{n}", "cloned", attempt(n, n + 5, verdict), outcome=voice("x")) for n, verdict in enumerate(verdicts)),
        row("late", "cloned", attempt(far, far + 5, "cloned"), attempt(far + 6, far + 9, "cloned"), outcome=voice("y")),
        row("no name", "cloned", outcome={"voice": {"voice_id": "z", "voice_name": None, "tag_list": []}}),
        row("lost", "unknown", attempt(3, None, ""), outcome=failure("CloneOutcomeUnknown", voice_may_exist=True)),
        row("never sent", "cancelled", outcome=failure("CloneCancelled")),
        row("tomorrow's", "refused", outcome=failure("NotYetInvented")),
        *(row(f"waits {n}", "queued") for n in range(120)),
    ]

    text = page(rows, Path("folder/.useapi-voice.db"), NOW + timedelta(seconds=far))

    Page(text)
    assert "<title>Voices of folder</title>" in text
    assert "Sitting 2" in text
    assert "a voice may exist" in text
    assert "and 20 more" in text
    assert "No clone request left for it" in text
    assert "answer lost, voice found" in text
    assert "asked to wait" in text
    assert "2 requests" in text


def test_page_without_voices_has_no_rate() -> None:
    """A sitting in which nothing was made has a timeline, and no throughput."""
    text = page([row("Bea", "refused", attempt(0, 1, "refused"), outcome=failure("ContentRejected"))], Path("x"), NOW)

    assert "No voice was made yet" in text
    assert "All of it in one sitting" in text


def test_very_long_sitting() -> None:
    """Weeks without a break are drawn too."""
    days = [attempt(n * 100, n * 100 + 100, "cloned") for n in range(60_000)]
    (sitting,) = sittings_of(bars_of([row("x", "cloned", *days)], NOW))

    assert sitting.bucket_s == 86_400
    assert sum(sitting.made) == 60_000
    text = page([row("x", "cloned", attempt(0, 6e6, "cloned"), outcome=voice("x"))], Path("x"), NOW)
    assert "h 00 min" in text


def test_places_and_waits() -> None:
    """Overlapping requests take places of their own, each the first that is free; a 429 is followed by a wait."""
    history = [
        attempt(0, 10, "cloned"),
        attempt(1, 1.1, "not_accepted", status_code=429),
        attempt(11, 20, "cloned"),
        attempt(12, 30, "absent"),
        attempt(21, 21, "not_accepted", detail="slow down"),
    ]
    (sitting,) = sittings_of(bars_of([row("x", "cloned", *history)], NOW))
    (lane,) = sitting.lanes

    assert [[bar.verdict for bar in place] for place in lane.places] == [
        ["cloned", "cloned", "not_accepted"],
        ["not_accepted", "absent"],
    ]
    waits = [(wait.why, (wait.end - wait.start).total_seconds()) for wait in lane.waits]
    assert waits == [("status 429", 9.9), ("slow down", 9.0)]
    assert lane.busy_s == pytest.approx(10 + 0.1 + 9 + 18)


def test_attempt_without_an_end() -> None:
    """What is in progress is drawn up to now, and a clock that was set back makes nothing negative."""
    bars = bars_of([row("x", "sent", attempt(0, None, ""), attempt(5, 3, "cloned"))], NOW + timedelta(seconds=50))

    assert [(bar.end - bar.start).total_seconds() for bar in bars] == [50, 0]
    assert bars[0].verdict == "in_progress"
