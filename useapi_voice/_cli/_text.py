"""Words for people: names made safe to print, numbers with their units, and the two output streams. Knows no client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

LONGEST_SHOWN: Final = 80
LONGEST_PATH: Final = 1000


def shown(text: object, most: int | None = None) -> str:
    """Return text of a user's or the remote's on one line, without what could steer a terminal, and not endless."""
    if most is None:
        # Half a path is of no use to anybody.
        most = LONGEST_PATH if isinstance(text, Path) else LONGEST_SHOWN
    # Cut first: a cell may hold megabytes.
    raw = str(text)
    cut = raw if len(raw) <= most else raw[: most - 1] + "…"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)


def paragraph(text: object) -> str:
    """Return a message of several lines with each line made safe."""
    return "\n".join(shown(line, 2000) for line in str(text).splitlines())


def count(number: int, noun: str, nouns: str = "") -> str:
    """Return `1 voice`, `2 voices`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def span(seconds: float) -> str:
    """Return a length of time in the two largest units that it has."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 and whole != seconds else f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def names(items: Iterable[str], most: int = 5) -> str:
    """Return a list in words, cut after `most`."""
    found = [shown(item, 60) for item in items]
    rest = len(found) - most
    return ", ".join(found[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def say(text: str) -> None:
    """Write for people: on standard error, so that standard output stays with results."""
    typer.echo(text, err=True)


def put(text: str) -> None:
    """Write a result on standard output."""
    typer.echo(text)


def put_json(data: Any) -> None:
    """Write one line of JSON on standard output, at once."""
    typer.echo(json.dumps(data, ensure_ascii=False, default=str))
    sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes no markup from data."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def put_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table on standard output: drawn on a terminal, tab-separated where another program reads it."""
    out = console()
    if not out.is_terminal:
        for cells in (columns, *rows):
            put("\t".join(shown(cell, 1000) for cell in cells))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for cells in rows:
        table.add_row(*(Text(shown(cell, 1000)) for cell in cells))
    out.print(table)


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask, unless the answer was given; nobody being there to ask counts as no."""
    return yes or (sys.stdin.isatty() and typer.confirm(question, err=True))
