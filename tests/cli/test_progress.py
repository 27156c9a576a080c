"""The board and its painters: what is counted, and the words for every kind of event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from useapi_voice import CloneRequest, Event
from useapi_voice._cli import _progress, _text
from useapi_voice._cli._progress import Board, Item, in_words
from useapi_voice._events import CloneJob
from useapi_voice._jobs import Attempt, Job, JobState


def item(name: str, state: JobState = JobState.QUEUED, **more: Any) -> Item:
    """Make an item of a job."""
    request = CloneRequest(voice_name=name, language_tag="English", files=["f"])
    job = Job(name, name, request, 0, 0, None, state=state, **more)
    return Item(CloneJob(job, SimpleNamespace()), f"v.csv:{len(name)}")  # type: ignore[arg-type]


def lane(**more: Any) -> SimpleNamespace:
    """Make a lane's picture."""
    picture = {"account": "mine", "limit": 2, "in_progress": 0, "staged": 0, "waiting": 0, "gate_s": 0.0}
    return SimpleNamespace(**{**picture, "closed_by": None, **more})


def board_of(*items: Item, lanes: tuple[Any, ...] = (), mean_clone_s: float | None = None) -> Board:
    """Make a board."""
    pictures = SimpleNamespace(lanes=lanes, mean_clone_s=mean_clone_s)
    return Board("t", {one.job.id: one for one in items}, lambda: pictures)  # type: ignore[arg-type, return-value]


def event(kind: str, name: str | None = None, account: str | None = "mine", **detail: Any) -> Event:
    """Make an event."""
    return Event(kind, datetime.now(UTC), name, name, account, detail)


def sent(ago_s: float, verdict: str = "", took_s: float | None = None) -> Attempt:
    """Make an attempt."""
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    return Attempt("mine", at, None if took_s is None else at + timedelta(seconds=took_s), verdict)


def test_board_counts() -> None:
    """Jobs are counted once, whatever happens to them, and whatever was missed."""
    ended = item("done", JobState.CLONED, outcome=object(), history=(sent(60, "cloned", 12.0),))
    left = item("left", JobState.IN_DOUBT, account="mine", history=(sent(40),))
    board = board_of(ended, left, item("next"), item("last"), lanes=(lane(in_progress=2),))

    assert (board.done, board.failed, board.in_flight, board.waiting, board.total) == (1, 0, 1, 2, 4)
    assert board.measured_s == 12.0
    assert board.is_looking
    assert board.outlook() == "about 35 s left"
    for kind in ("sent", "in_doubt", "queued"):
        board.take(event(kind, "next"))
    board.take(event("in_doubt", "last"))
    assert (board.in_flight, board.waiting) == (1, 2)
    board.take(event("refused", "next"))
    board.take(event("ready", "last"))
    board.take(event("sent", "somebody else's"))
    assert (board.done, board.failed, board.in_flight, board.waiting) == (1, 1, 1, 1)
    board.take(event("missed", count=3))
    assert (board.done, board.failed, board.in_flight, board.waiting) == (1, 0, 1, 2)


def test_outlook() -> None:
    """What is said of the end depends on what is known."""
    jobs = [item(str(number)) for number in range(5)]

    assert board_of(*jobs).outlook() == "asking for the accounts"
    assert board_of(*jobs, lanes=(lane(closed_by="596"),)).outlook() == "no account can go on"
    assert board_of(*jobs, lanes=(lane(),)).outlook() == "about 1 min left (a guess, until one is measured)"
    assert board_of(*jobs, lanes=(lane(), lane()), mean_clone_s=7.5).outlook() == "about 15 s left"
    board = board_of(*jobs)
    board.stopping = "stopping"
    assert board.outlook() == "stopping"


def test_lanes() -> None:
    """An account shows what is in flight, what else holds its places, and why it waits."""
    jobs = [item(str(number)) for number in range(6)]
    board = board_of(*jobs, lanes=(lane(in_progress=7, gate_s=4.0), lane(account="out", closed_by="596: re-post it")))
    for job in jobs:
        board.take(event("sent", job.job.id))
    board.take(event("gate_shut", reason=None, wait_s=4.0))
    board.take(event("account_out", account="out", reason="x"))
    board.take(event("account_back", account="out"))

    (_, flying, why), (_, nothing, closed) = board.lanes()

    assert flying == "0 0 s · 1 0 s · 2 0 s · 3 0 s · 2 more · 1 being prepared or seen out"
    assert why == "waits 4 s: too many requests"
    assert (nothing, closed) == ("", "closed: 596: re-post it")


@pytest.mark.parametrize(
    ("happened", "words"),
    [
        (event("cloned", "Ada", voice_id="v1"), "[0/1] v.csv:3 Ada: cloned in 12 s: v1"),
        (event("unknown", "Ada", reason="lost"), "[0/1] v.csv:3 Ada: outcome unknown: lost"),
        (event("expired", "Ada", reason="late"), "[0/1] v.csv:3 Ada: out of time: late"),
        (event("cancelled", "Ada"), "[0/1] v.csv:3 Ada: cancelled: "),
        (event("in_doubt", "Ada", reason="cut"), "v.csv:3 Ada: the answer was lost (cut); looking for the voice"),
        (event("surplus", "Ada"), "v.csv:3 Ada: more than one voice may be its own; look: useapi-voice voices list"),
        (event("sent", "Ada"), ""),
        (event("gate_shut", wait_s=20.0), "account mine: waits 20 s: too many requests"),
        (event("account_out", account=None, reason="596"), "account the account: out of order: 596"),
        (event("slots_full", reason="2600010"), "account mine: no room for another voice: 2600010"),
        (event("slots_free"), "account mine: takes clones again"),
        (event("generation", generation="speech"), "going on with the speech endpoints"),
        (event("missed", count=2), "2 events came too fast to be shown"),
        (event("limit", limit=2), ""),
    ],
    ids=lambda value: value.kind if isinstance(value, Event) else "",
)
def test_events_in_words(happened: Event, words: str) -> None:
    """Every kind of event has its line, or none."""
    assert in_words(happened, board_of(item("Ada", history=(sent(20, "cloned", 12.0),)))) == words


def test_voice_found_again_has_no_time() -> None:
    """Only an answer tells how long a clone took."""
    board = board_of(item("Ada", history=(sent(20, "adopted", 12.0),)))

    assert in_words(event("cloned", "Ada", voice_id="v1"), board) == "[0/1] v.csv:3 Ada: cloned: v1"
    assert in_words(event("cloned", "Ada", voice_id="v1"), board_of(item("Ada"))).endswith("Ada: cloned: v1")


def test_choice_of_painter() -> None:
    """JSON before quiet, a panel on a terminal that can move its cursor, and lines elsewhere."""
    board = board_of()

    def chosen(*, quiet: bool = False, json: bool = False, dumb: bool = False, terminal: bool = True) -> str:
        console: Any = SimpleNamespace(is_terminal=terminal, is_dumb_terminal=dumb)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_progress, "Terminal", lambda *_: SimpleNamespace(__name__="panel"))
            painter = _progress.painter_of(board, quiet=quiet, json=json, console=console)
        return "panel" if isinstance(painter, SimpleNamespace) else type(painter).__name__

    assert chosen() == "panel"
    assert chosen(dumb=True) == chosen(terminal=False) == "Lines"
    assert chosen(quiet=True) == "Quiet"
    assert chosen(quiet=True, json=True) == "Json"


def test_labels() -> None:
    """A place that holds the name is enough."""
    job = item("Ada").job

    assert Item(job).label == "Ada"
    assert Item(job, "v.csv:2", 2).label == "v.csv:2 Ada"
    assert Item(job, "folder/Ada.mp3").label == "folder/Ada.mp3"


def test_words() -> None:
    """Lengths of time, numbers and names as people say them."""
    assert [_text.span(s) for s in (0.04, 0.5, 9.94, 10.4, 60, 61, 3599.6, 3600, 86_400)] == [
        "0.0 s",
        "0.5 s",
        "9.9 s",
        "10 s",
        "1 min",
        "1 min 01 s",
        "1 h 00 min",
        "1 h 00 min",
        "24 h 00 min",
    ]
    assert _text.count(1, "voice") == "1 voice"
    assert _text.count(1234, "voice") == "1,234 voices"
    assert _text.names(["a", "b", "c"], 2) == "a, b and 1 more"
    assert _text.shown("x" * 100) == "x" * 79 + "…"
    assert _text.paragraph("a\nb\x07") == "a\nb\\x07"
