"""Writes voices for other programs: JSON Lines or CSV, whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from .._models import VoiceInfo
from ._exit import CliError, ExitCode
from ._text import put, shown

CSV_COLUMNS: Final = (
    "key",
    "voice_name",
    "voice_id",
    "account",
    "tag_list",
    "sample_audio",
    "create_time",
    "uniq_id",
    "group_id",
)


def check_out(out: Path | None, source: Path) -> None:
    """
    Check that results can be written there.

    Raises:
        CliError: They cannot; nothing was sent.
    """
    if out is None or str(out) == "-":
        return
    trouble = ""
    if out.suffix.lower() not in {".jsonl", ".ndjson", ".csv"}:
        trouble = "names neither .jsonl nor .csv: end it in one of them"
    elif not out.parent.is_dir():
        trouble = "is in a folder that does not exist: make it first"
    elif out.is_dir():
        trouble = "is a folder: give the name of a file"
    elif source.exists() and out.exists() and out.samefile(source):
        trouble = "is what is to be read: give another name"
    elif not os.access(out.parent, os.W_OK):
        trouble = "is in a folder that cannot be written: choose another"
    if trouble:
        raise CliError(ExitCode.USAGE, f"--out {shown(out)} {trouble}. Nothing was sent.")


def write_out(out: Path, voices: Iterable[tuple[str | None, VoiceInfo]]) -> None:
    """Write voices with the keys of their jobs; `-` is standard output."""
    rows = [_row(key, voice) for key, voice in voices]
    if str(out) == "-":
        if rows:
            put(_jsonl(rows).rstrip("\n"))
        return
    text = _csv(rows) if out.suffix.lower() == ".csv" else _jsonl(rows)
    write_whole(out, text)


def _row(key: str | None, voice: VoiceInfo) -> dict[str, Any]:
    row = {"key": key, **voice.model_dump(mode="json")}
    # The remote writes whole milliseconds; a point behind them would only puzzle those who read this.
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in row.items()
    }


def write_whole(out: Path, text: str) -> None:
    """
    Write a file under another name first, so that nobody ever reads half of it.

    Through a link, which stays one. What is no file, such as a pipe or a device, is written to as it is: to put a file
    in its place would take it away from all who use it.

    Raises:
        CliError: It cannot be written, for want of room say.
    """
    try:
        if out.exists() and not out.is_file():
            _write(out, text)
        else:
            _replace(out.resolve(), text)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        remedy = "see to that, or give another name, and run this again: all of it is kept in the store"
        raise CliError(ExitCode.USAGE, f"{shown(out)} cannot be written: {error.strerror}; {remedy}.") from error


def _write(out: Path, text: str) -> None:
    with out.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def _replace(out: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(descriptor)
    try:
        _write(Path(name), text)
        # As a file made in the usual way would be; mkstemp's are for their owner alone.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    file = io.StringIO(newline="")
    table: csv.DictWriter[str] = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
    table.writeheader()
    table.writerows({**row, "tag_list": ";".join(row["tag_list"])} for row in rows)
    return file.getvalue()
