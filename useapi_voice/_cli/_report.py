"""`useapi-voice report`: a store as one page to look at, which needs no network and trusts no name."""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

from .. import _errors
from .._errors import CloneError, restore_error
from .._jobs import TERMINAL_STATES, JobState
from .._version import __version__
from ._exit import CliError, ExitCode, remedy_of
from ._kept import Row, find_store, rows_of
from ._results import write_whole
from ._text import count, say, shown, span
from ._timeline import Bar, Lane, Sitting, bars_of, sittings_of

VERDICTS: Final = {
    "cloned": "cloned",
    "adopted": "answer lost, voice found",
    "absent": "answer lost, nothing made",
    "unknown": "answer lost, outcome unknown",
    "not_accepted": "not accepted (429)",
    "refused": "refused",
    "not_sent": "never left",
    "in_progress": "in progress",
}
_LEFT_SHOWN: Final = 100
_WIDEST_PX: Final = 30_000
_NARROWEST_PX: Final = 640


async def run(store: Path, out: Path) -> ExitCode:
    """Write the page."""
    found = find_store(store)
    _check_out(out, found)
    rows = await rows_of(found)
    write_whole(out, page(rows, found, datetime.now(UTC)))
    say(f"A report on {count(len(rows), 'job')} is in {shown(out)}.")
    return ExitCode.OK


def _check_out(out: Path, store: Path) -> None:
    if not out.parent.is_dir() or out.is_dir():
        remedy = "give a file in a folder that exists"
        raise CliError(ExitCode.USAGE, f"The page cannot be written to {shown(out)}: {remedy}.")
    if out.exists() and out.samefile(store):
        raise CliError(ExitCode.USAGE, f"{shown(out)} is the store itself: give another name for the page.")


def page(rows: Sequence[Row], store: Path, now: datetime) -> str:
    """Return the whole page."""
    source = files("useapi_voice._cli").joinpath("_report.html").read_text(encoding="utf-8")
    script = source.split("<script>", 1)[1].split("</script>", 1)[0]
    sittings = sittings_of(bars_of(rows, now))
    cloned = [row for row in rows if row["state"] == JobState.CLONED]
    failed = [row for row in rows if row["state"] in TERMINAL_STATES and row["state"] != JobState.CLONED]
    left = [row for row in rows if row["state"] not in TERMINAL_STATES]
    return Template(source).substitute(
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=_e(_title(store)),
        store=_e(store.name),
        made_at=_moment(now),
        version=_e(__version__),
        tiles=_tiles(rows, cloned, failed, left, sittings),
        timeline=_timeline(sittings),
        throughput=_throughput(sittings),
        failures=_failures(failed),
        left=_left(left),
        voices=_voices(cloned),
        failed_count=f"{len(failed):,}",
        voice_count=f"{len(cloned):,}",
    )


def _title(store: Path) -> str:
    """Name what was cloned, as far as the store's own name tells."""
    name = store.name.removesuffix(".db")
    bare = name.removesuffix(".rehearsal")
    what = store.absolute().parent.name if bare == ".useapi-voice" else bare
    return f"{what} (rehearsal)" if bare != name else what


def _e(text: object, most: int = 300) -> str:
    return escape(shown(text, most))


def _moment(moment: datetime | str | None) -> str:
    if moment is None:
        return ""
    when = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    when = when.astimezone(UTC)
    return f'<time datetime="{when.isoformat()}">{when:%d %b %Y, %H:%M:%S}</time>'


# --- figures -------------------------------------------------------------------------------------------------------


def _tiles(
    rows: Sequence[Row], cloned: Sequence[Row], failed: Sequence[Row], left: Sequence[Row], sittings: Sequence[Sitting]
) -> str:
    bars = [bar for sitting in sittings for lane in sitting.lanes for place in lane.places for bar in place]
    took = [(bar.end - bar.start).total_seconds() for bar in bars if bar.verdict == "cloned"]
    verdicts = Counter(bar.verdict for bar in bars)
    lost = verdicts["adopted"] + verdicts["absent"] + verdicts["unknown"]
    tiles = [
        ("Voices made", f"{len(cloned):,}", f"of {count(len(rows), 'job')}", "good" if cloned else ""),
        ("Without a voice", f"{len(failed):,}", _states(failed), "bad" if failed else ""),
        ("Not ended", f"{len(left):,}", "waiting or in progress" if left else "nothing is left", ""),
        (
            "A clone takes",
            span(statistics.median(took)) if took else "?",
            f"at most {span(max(took))}" if took else "none was measured",
            "",
        ),
        (
            "Time at work",
            span(sum(sitting.span_s for sitting in sittings)),
            f"in {count(len(sittings), 'sitting')}",
            "",
        ),
        ("Lost answers", f"{lost:,}", f"{verdicts['adopted']:,} found again", ""),
        ("Asked to wait", f"{verdicts['not_accepted']:,}", "times, by 429", ""),
    ]
    return "\n".join(
        f'<li class="tile {kind} {"long" if len(value) > 8 else ""}">'
        f'<span class="label">{_e(label)}</span><strong>{_e(value)}</strong><span class="hint">{_e(hint)}</span></li>'
        for label, value, hint, kind in tiles
    )


def _states(rows: Sequence[Row]) -> str:
    found = Counter(str(row["state"]) for row in rows)
    return ", ".join(f"{number:,} {state}" for state, number in found.most_common()) or "none"


# --- the timeline --------------------------------------------------------------------------------------------------


def _timeline(sittings: Sequence[Sitting]) -> str:
    if not sittings:
        return '<p class="empty">No clone request has left yet.</p>'
    used = {bar.verdict for sitting in sittings for lane in sitting.lanes for place in lane.places for bar in place}
    legend = "".join(
        f'<li><i class="bar {name}"></i>{_e(words)}</li>' for name, words in VERDICTS.items() if name in used
    )
    if any(lane.waits for sitting in sittings for lane in sitting.lanes):
        legend += '<li><i class="wait"></i>asked to wait</li>'
    return f'<ul class="legend">{legend}</ul>' + "".join(
        _sitting(number, sitting, len(sittings)) for number, sitting in enumerate(sittings, 1)
    )


def _sitting(number: int, sitting: Sitting, of: int) -> str:
    name = f"Sitting {number}" if of > 1 else "All of it in one sitting"
    head = f"<h3>{name}: {_moment(sitting.start)}, {_e(span(sitting.span_s))}</h3>"
    lanes = "".join(_lane(sitting, lane) for lane in sitting.lanes)
    # Wide enough that the usual bar can be seen and touched; what is wider than the screen scrolls.
    lengths = [
        (bar.end - bar.start).total_seconds() for lane in sitting.lanes for place in lane.places for bar in place
    ]
    usual_s = max(0.1, statistics.median(lengths))
    width_px = min(_WIDEST_PX, max(_NARROWEST_PX, round(14 * sitting.span_s / usual_s)))
    label = f"{name}: what occupied each place; arrow keys go from one clone to the next"
    return (
        f'{head}<div class="scroll" tabindex="0" role="group" aria-label="{_e(label)}">'
        f'<div class="chart" style="min-width:{width_px}px">{_axis(sitting, width_px)}{lanes}</div></div>'
        '<p class="told" aria-live="polite">Point at a bar, tap it, or use the arrow keys.</p>'
    )


def _axis(sitting: Sitting, width_px: int) -> str:
    wanted = min(60, width_px // 90)
    step_s = next(
        (
            nice
            for nice in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)
            if sitting.span_s / nice <= wanted
        ),
        7 * 86400,
    )
    marks = range(0, int(sitting.span_s) + 1, step_s)
    return (
        '<div class="axis" aria-hidden="true">'
        + "".join(
            f'<span style="left:{100 * at / sitting.span_s:.3f}%">{_e(span(at)) if at else "0"}</span>' for at in marks
        )
        + "</div>"
    )


def _lane(sitting: Sitting, lane: Lane) -> str:
    share = lane.busy_s / (sitting.span_s * max(1, len(lane.places)))
    bars = sum(len(place) for place in lane.places)
    head = (
        f'<p class="lane"><b>{_e(lane.account)}</b> {count(bars, "request")}, '
        f"{count(len(lane.places), 'place')}, {min(1.0, share):.0%} in use</p>"
    )
    places = "".join(
        f'<div class="place">{"".join(_bar(sitting, bar) for bar in place)}</div>' for place in lane.places
    )
    waits = "".join(
        f'<i class="wait" style="{_where(sitting, wait.start, wait.end)}" '
        f'title="{_e(f"asked to wait, {span((wait.end - wait.start).total_seconds())}: {wait.why}")}"></i>'
        for wait in lane.waits
    )
    return head + places + (f'<div class="place thin">{waits}</div>' if waits else "")


def _bar(sitting: Sitting, bar: Bar) -> str:
    took = span((bar.end - bar.start).total_seconds())
    status = f" ({bar.status_code})" if bar.status_code else ""
    told = f"{bar.name}: {VERDICTS.get(bar.verdict, bar.verdict)}{status}, {bar.start:%H:%M:%S}, {took}"
    told += f": {bar.detail}" if bar.detail else ""
    kind = bar.verdict if bar.verdict in VERDICTS else "unknown"
    return f'<i class="bar {kind}" style="{_where(sitting, bar.start, bar.end)}" title="{_e(told)}"></i>'


def _where(sitting: Sitting, start: datetime, end: datetime) -> str:
    left = sitting.at(start)
    return f"left:{left:.3f}%;width:{max(0.0, sitting.at(end) - left):.3f}%"


# --- throughput ----------------------------------------------------------------------------------------------------


def _throughput(sittings: Sequence[Sitting]) -> str:
    if not any(sum(sitting.made) for sitting in sittings):
        return '<p class="empty">No voice was made yet.</p>'
    return "".join(
        _rate(number, sitting, len(sittings)) for number, sitting in enumerate(sittings, 1) if sum(sitting.made)
    )


def _rate(number: int, sitting: Sitting, of: int) -> str:
    most = max(sitting.made)
    pace = 60 * sum(sitting.made) / sitting.span_s
    label = f"{count(sum(sitting.made), 'voice')}, {pace:.1f} a minute; at most {most} in {span(sitting.bucket_s)}"
    columns = "".join(
        f'<i style="height:{100 * made / most:.1f}%" '
        f'title="{count(made, "voice")} from {span(at * sitting.bucket_s)} on"></i>'
        for at, made in enumerate(sitting.made)
    )
    head = f"<h3>Sitting {number}</h3>" if of > 1 else ""
    return (
        f'{head}<figure><div class="rate" role="img" aria-label="{_e(label)}"><b>{most}</b>{columns}</div>'
        f"<figcaption>{_e(label)}. Each column is {_e(span(sitting.bucket_s))}, of {_e(span(sitting.span_s))} in all."
        "</figcaption></figure>"
    )


# --- jobs ----------------------------------------------------------------------------------------------------------


def _failures(rows: Iterable[Row]) -> str:
    cards = "".join(_failure(row) for row in rows)
    return cards or '<p class="empty">None: every job that has ended has its voice.</p>'


def _failure(row: Row) -> str:
    facts: Mapping[str, Any] = row["outcome"]["facts"]
    kind = str(row["outcome"]["error"])
    cls = getattr(_errors, kind, CloneError)
    remedy = remedy_of(restore_error(cls, str(facts["message"]), facts))
    may_exist = '<span class="chip bad">a voice may exist</span>' if facts.get("voice_may_exist") else ""
    return (
        f'<details class="card"><summary><b>{_e(row["request"]["voice_name"])}</b>'
        f'<span class="chip">{_e(kind)}</span>{may_exist}'
        f'<span class="why">{_e(facts["message"])}</span></summary>'
        f'<p class="remedy">{_e(remedy)}</p>{_history(row)}{_surplus(row)}</details>'
    )


def _history(row: Row) -> str:
    if not row["history"]:
        return "<p>No clone request left for it.</p>"
    cells = "".join(
        f"<tr><td>{_moment(attempt['sent_at'])}</td><td>{_e(_took(attempt))}</td>"
        f"<td>{_e(attempt['account'] or '')}</td>"
        f"<td>{_e(VERDICTS.get(attempt['verdict'] or 'in_progress', attempt['verdict']))}</td>"
        f"<td>{_e(attempt['status_code'] or '')}</td><td>{_e(attempt['detail'])}</td></tr>"
        for attempt in row["history"]
    )
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("sent", "took", "account", "verdict", "status", "detail")
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="group" aria-label="Attempts">{table}</div>'


def _took(attempt: Mapping[str, Any]) -> str:
    if not attempt["ended_at"]:
        return ""
    ended, sent = datetime.fromisoformat(attempt["ended_at"]), datetime.fromisoformat(attempt["sent_at"])
    return span(max(0.0, (ended - sent).total_seconds()))


def _surplus(row: Row) -> str:
    ids = [str(voice["voice_id"]) for voice in row["surplus"]]
    if not ids:
        return ""
    listed = ", ".join(f"<code>{_e(voice_id)}</code>" for voice_id in ids)
    return f'<p class="remedy">Further voices may be its own; look, and delete what is too much: {listed}</p>'


def _left(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    items = "".join(
        f'<li>{_e(row["request"]["voice_name"])} <span class="chip">{_e(row["state"])}</span></li>'
        for row in rows[:_LEFT_SHOWN]
    )
    more = f"<li>and {len(rows) - _LEFT_SHOWN:,} more</li>" if len(rows) > _LEFT_SHOWN else ""
    head = f'<h2 id="left">Not ended <small>{len(rows):,}</small></h2>'
    return f'<section aria-labelledby="left">{head}<ul class="names">{items}{more}</ul></section>'


def _voices(rows: Iterable[Row]) -> str:
    items = "".join(_voice(row) for row in rows)
    return (
        f'<ul class="voices" id="voices-list">{items}</ul>' if items else '<p class="empty">No voice was made yet.</p>'
    )


def _voice(row: Row) -> str:
    voice: Mapping[str, Any] = row["outcome"]["voice"]
    name = voice.get("voice_name") or row["request"]["voice_name"]
    url = "".join(filter(str.isprintable, str(voice.get("sample_audio") or "")))
    # Nothing but the web: whatever else a URL may be, a page must not follow it.
    player = (
        f'<audio controls preload="none" src="{escape(url)}" aria-label="{_e(f"Sample of {name}")}"></audio>'
        if url.startswith(("https://", "http://"))
        else '<span class="hint">the remote gave no sample</span>'
    )
    tags = ", ".join(str(tag) for tag in voice.get("tag_list") or [row["request"]["language_tag"]])
    again = f'<span class="chip">{count(row["attempts"], "request")}</span>' if row["attempts"] > 1 else ""
    return (
        f'<li><div class="who"><b>{_e(name)}</b> <span class="chip">{_e(tags)}</span>{again}'
        f'<span class="hint">{_e(row["account"] or "")}, {_moment(row["settled_at"])}</span>'
        f'<button type="button" class="copy" title="Copy the voice_id"><code>{_e(voice["voice_id"])}</code></button>'
        f"{_surplus(row)}</div>{player}</li>"
    )
