"""
Reads what to clone from a table (CSV, JSON Lines) or a folder: rows with their places in it, and all faults at once.

Knows no client and opens no sample: whether samples are fit is `_check`'s business. Every fault names its line.
"""

from __future__ import annotations

import csv
import difflib
import errno
import glob
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .._errors import Fault
from .._models import CloneRequest, Sample
from ._exit import CliError, ExitCode
from ._text import count, names, shown

COLUMNS: Final = ("voice_name", "language_tag", "samples", "account", "need_noise_reduction", "key")
LARGEST_BYTES: Final = 32 * 1024 * 1024
"""200,000 lines of 160 characters; what is larger is no manifest."""
FAULTS_SHOWN: Final = 50
SUFFIXES: Final = frozenset({".mp3", ".wav"})
_OTHER_AUDIO: Final = frozenset(
    {".aac", ".aif", ".aiff", ".amr", ".flac", ".m4a", ".m4b", ".mp2", ".mp4", ".ogg", ".oga", ".opus", ".webm", ".wma"}
)
_JSON_SUFFIXES: Final = frozenset({".jsonl", ".ndjson", ".json"})
_TABLE_REMEDY: Final = "save it as CSV with UTF-8, or as JSON Lines"
_TRUE: Final = frozenset({"true", "yes", "y", "1", "on"})
_FALSE: Final = frozenset({"false", "no", "n", "0", "off"})
_DIGITS: Final = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Row:
    """
    One voice to be made.

    Attributes:
        line: Of the manifest, 1 for the first; 0 in a folder.
        where: Its place as it is shown: `voices.csv:7`, `recordings/alice`.
        key: What names its job in the store, on every run.
    """

    line: int
    where: str
    key: str
    request: CloneRequest


@dataclass(frozen=True, slots=True)
class RowFault:
    """One thing that is wrong, and where."""

    line: int
    where: str
    fault: Fault


@dataclass(slots=True)
class Manifest:
    """
    What was read.

    Attributes:
        folder: What relative paths start from.
        notes: What was left out, in words.
    """

    source: Path
    folder: Path
    rows: list[Row] = field(default_factory=list)
    faults: list[RowFault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def blame(self, line: int, where: str, name: str, message: str, remedy: str) -> None:
        """Note a fault."""
        self.faults.append(RowFault(line, where, Fault(name, message, remedy)))


class ManifestInvalid(CliError):
    """A manifest has faults; nothing was sent."""

    def __init__(self, source: Path, faults: Sequence[RowFault]) -> None:
        self.faults = tuple(faults)
        lines = _grouped(self.faults)
        more = [f"  ... and {len(lines) - FAULTS_SHOWN:,} more like these (--json shows all)"]
        shown_lines = lines[:FAULTS_SHOWN] + (more if len(lines) > FAULTS_SHOWN else [])
        head = f"{shown(source)} has {count(len(self.faults), 'fault')}; nothing was sent."
        super().__init__(ExitCode.USAGE, "\n".join([head, *shown_lines]))


def _grouped(faults: Iterable[RowFault]) -> list[str]:
    """Say each fault once, with all the places that have it: one wrong language is one message, not five thousand."""
    places: dict[Fault, list[RowFault]] = {}
    for one in faults:
        places.setdefault(one.fault, []).append(one)
    lines: list[str] = []
    for fault, found in places.items():
        others = [str(other.line) if other.line else shown(other.where) for other in found[1:]]
        noun = "line" if found[0].line else "place"
        also = f"; likewise in {noun if len(others) == 1 else noun + 's'} {names(others, 8)}" if others else ""
        # Not cut again: the message was made safe when it was made.
        lines.append(f"  {shown(found[0].where, 200)}: {fault}{also}")
    return lines


def read(source: Path, *, language: str | None = None, account: str | None = None) -> Manifest:
    """
    Read a manifest or a folder.

    Args:
        source: Which.
        language: Of voices that name none; needed for a folder.
        account: Of voices that name none.

    Returns:
        Its rows and its faults; a row that has faults is left out where it could not be built.

    Raises:
        CliError: There is nothing to read.
    """
    try:
        is_folder = source.is_dir()
        content = b"" if is_folder else _read_bytes(source)
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        message = f"{shown(source)} {reason}. Give a manifest (CSV or JSON Lines) or a folder of recordings."
        raise CliError(ExitCode.USAGE, message) from error
    if is_folder:
        manifest = _read_folder(source, language or "", account)
        _blame_missing_language(manifest, language)
    else:
        manifest = Manifest(source, source.parent)
        _read_table(manifest, content, language, account)
    if not manifest.rows and not manifest.faults:
        what = "no recording (mp3 or wav) in it" if is_folder else "no row in it"
        manifest.blame(0, source.name or str(source), "rows", f"there is {what}", "nothing to clone")
    _blame_duplicates(manifest)
    manifest.faults.sort(key=lambda fault: fault.line)
    return manifest


def _read_bytes(source: Path) -> bytes:
    with source.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST_BYTES // 2**20} MiB, which no manifest is")
    return content


# --- folders -------------------------------------------------------------------------------------------------------


def _read_folder(source: Path, language: str, account: str | None) -> Manifest:
    manifest = Manifest(source, source)
    others: list[str] = []
    for entry in sorted(source.iterdir(), key=_natural):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files = _recordings(manifest, entry, others)
            if files:
                _add(manifest, 0, f"{source.name}/{entry.name}", entry.name, language, files, account)
        elif _is_recording(manifest, entry, others):
            _add(manifest, 0, f"{source.name}/{entry.name}", entry.stem, language, [entry], account)
    if others:
        manifest.notes.append(f"left out, being neither mp3 nor wav: {names(others)}")
    return manifest


def _recordings(manifest: Manifest, folder: Path, others: list[str]) -> list[Path]:
    found = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=_natural)
    return [entry for entry in found if not entry.is_dir() and _is_recording(manifest, entry, others)]


def _is_recording(manifest: Manifest, entry: Path, others: list[str]) -> bool:
    suffix = entry.suffix.lower()
    if suffix in SUFFIXES:
        return True
    relative = entry.relative_to(manifest.source).as_posix()
    if suffix in _OTHER_AUDIO:
        # Left out in silence, somebody's voice would be missing at the end.
        where = f"{manifest.source.name}/{relative}"
        manifest.blame(0, where, "samples", f"{suffix} is not taken", "convert it to mp3 or wav, or move it away")
    else:
        others.append(relative)
    return False


def _add(
    manifest: Manifest, line: int, where: str, name: str, language: str, files: Sequence[Path], account: str | None
) -> None:
    samples = [Sample(file, name=file.relative_to(manifest.source).as_posix()) for file in files]
    request = CloneRequest(voice_name=name, language_tag=language, samples=samples, account=account)
    manifest.rows.append(Row(line, where, name, request))


def _blame_missing_language(manifest: Manifest, language: str | None) -> None:
    if not language and manifest.rows:
        remedy = "give --language, such as --language English"
        manifest.blame(0, manifest.source.name, "language_tag", "a folder does not say its language", remedy)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort `take 2` before `take 10`."""
    parts = _DIGITS.split(path.name.casefold())
    return [(1, int(part), "") if index % 2 else (0, 0, part) for index, part in enumerate(parts)]


# --- tables --------------------------------------------------------------------------------------------------------


def _read_table(manifest: Manifest, content: bytes, language: str | None, account: str | None) -> None:
    text = _decode(manifest, content)
    if text is None:
        return
    is_json = manifest.source.suffix.lower() in _JSON_SUFFIXES or text.lstrip().startswith(("{", "["))
    for line, cells in _json_rows(manifest, text) if is_json else _csv_rows(manifest, text, language):
        _build(manifest, line, cells, language, account)


def _decode(manifest: Manifest, content: bytes) -> str | None:
    """Return the text, or note why it is none."""
    name = manifest.source.name
    is_utf_16 = content[:2] in {b"\xff\xfe", b"\xfe\xff"}
    is_frame = content[:1] == b"\xff" and content[1:2] >= b"\xe0" and not is_utf_16
    if content[:3] == b"ID3" or is_frame or (content[:4] == b"RIFF" and content[8:12] == b"WAVE"):
        manifest.blame(1, f"{name}:1", "file", "it is a recording", "give the folder that it is in, or a manifest")
        return None
    encoding = "utf-16" if is_utf_16 else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = f"byte 0x{content[error.start]:02X}"
        manifest.blame(line, f"{name}:{line}", "file", f"it is not UTF-8 text ({byte})", _TABLE_REMEDY)
        return None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        manifest.blame(line, f"{name}:{line}", "file", "it is not text (it has NUL bytes)", _TABLE_REMEDY)
        return None
    return text


def _csv_rows(manifest: Manifest, text: str, language: str | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    name = manifest.source.name
    lines = _Counted(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=_delimiter(text), strict=True, skipinitialspace=True)
    header: list[str] | None = None
    while True:
        line = lines.number + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            manifest.blame(line, f"{name}:{line}", "row", _csv_trouble(error), "a quote inside quotes is written twice")
            return
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(manifest, line, cells, language)
            if header is None:
                return
        elif len(cells) > len(header):
            message = f"{count(len(cells), 'cell')} stand under {count(len(header), 'column')}"
            manifest.blame(line, f"{name}:{line}", "row", message, 'put a cell with a comma in quotes: "Smith, Jane"')
        else:
            yield line, dict(zip(header, cells, strict=False))


class _Counted:
    """Lines, counted as they are read: a row may stretch over several."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        return line


def _csv_trouble(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end of data" in said or "field larger" in said:
        return "a quote is opened here and never closed"
    return f"it cannot be read as CSV: {said}"


def _delimiter(text: str) -> str:
    """Return what divides the columns: some spreadsheets write semicolons or tabs."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    found = {mark: sum(_column(part) in COLUMNS for part in header.split(mark)) for mark in ",;\t"}
    return max(found, key=lambda mark: found[mark])


def _column(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.strip().strip('"').lower())


def _header(manifest: Manifest, line: int, cells: Sequence[str], language: str | None) -> list[str] | None:
    """Check the columns' names; `None` if rows cannot be read with them."""
    where = f"{manifest.source.name}:{line}"
    header = [_column(cell) for cell in cells]
    needed = ["voice_name", "samples"] + (["language_tag"] if language is None else [])
    missing = [column for column in needed if column not in header]
    for column in missing:
        near = difflib.get_close_matches(column, [name for name in header if name not in COLUMNS], n=1)
        remedy = f"is it {shown(near[0])!r}? rename that" if near else f"the columns are {', '.join(COLUMNS)}"
        if column == "language_tag":
            remedy += "; or give --language for all"
        manifest.blame(line, where, "header", f"the column {column} is missing", remedy)
    for column in sorted({name for name in header if name in COLUMNS and header.count(name) > 1}):
        manifest.blame(line, where, "header", f"the column {column} stands there twice", "keep one of them")
    _blame_unknown(manifest, line, [name for name in header if name not in COLUMNS], missing)
    return None if missing else header


def _blame_unknown(manifest: Manifest, line: int, unknown: Sequence[str], explained: Sequence[str] = ()) -> None:
    """A column that is nearly one of ours is a slip; any other is the user's own business."""
    free: list[str] = []
    for name in filter(None, unknown):
        near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.8)
        if not near:
            free.append(name)
        elif near[0] not in explained:
            where = f"{manifest.source.name}:{line}"
            manifest.blame(line, where, "header", f"there is no column {shown(name)!r}", f"did you mean {near[0]!r}?")
    if free and (note := f"columns that mean nothing here: {names(free)}") not in manifest.notes:
        manifest.notes.append(note)


def _json_rows(manifest: Manifest, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    name = manifest.source.name
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            cells = json.loads(content)
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            remedy = 'write one object a line: {"voice_name": …}, without brackets around them'
            manifest.blame(line, f"{name}:{line}", "row", f"it is not JSON ({said.lower()}{column})", remedy)
            if content.lstrip().startswith("["):
                return  # an array over many lines: each would be a fault of its own
            continue
        if not isinstance(cells, dict):
            remedy = 'write one object a line: {"voice_name": …}'
            manifest.blame(line, f"{name}:{line}", "row", f"it is {_kind(cells)}, not an object", remedy)
            continue
        _blame_unknown(manifest, line, [key for key in cells if key not in COLUMNS])
        yield line, cells


def _kind(value: object) -> str:
    kinds: dict[type, str] = {list: "a list", dict: "an object", str: "a text", bool: "true or false", int: "a number"}
    return kinds.get(type(value), "null" if value is None else "a number")


# --- rows ----------------------------------------------------------------------------------------------------------


def _build(manifest: Manifest, line: int, cells: Mapping[str, Any], language: str | None, account: str | None) -> None:
    """Make a row of these cells, or note what is wrong with them."""
    where = f"{manifest.source.name}:{line}"
    before = len(manifest.faults)

    def text(column: str) -> str:
        value = cells.get(column)
        if value is None or isinstance(value, str):
            return (value or "").strip()
        if isinstance(value, int | float) and not isinstance(value, bool):
            # 2024 is a fine name, and JSON writers that see one write a number.
            return str(value)
        manifest.blame(line, where, column, f"{_kind(value)} is not a text", "put it in quotes")
        return ""

    name, key = text("voice_name"), text("key")
    tag, own_account = text("language_tag") or language or "", text("account") or account
    reduction = _boolean(manifest, line, where, cells.get("need_noise_reduction"))
    samples = _samples(manifest, line, where, cells.get("samples"))
    if len(manifest.faults) > before:
        return
    request = CloneRequest(
        voice_name=name, language_tag=tag, samples=samples, account=own_account, need_noise_reduction=reduction
    )
    manifest.rows.append(Row(line, where, key or name, request))


def _boolean(manifest: Manifest, line: int, where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = "" if value is None else str(value).strip().lower()
    if word and word not in _TRUE | _FALSE:
        manifest.blame(
            line, where, "need_noise_reduction", f"{shown(word)!r} is neither true nor false", "write true or false"
        )
    return word not in _FALSE


def _samples(manifest: Manifest, line: int, where: str, value: object) -> list[Sample]:
    if isinstance(value, str) or value is None:
        written = [part.strip() for part in (value or "").split(";")]
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        written = [part.strip() for part in value]
    else:
        remedy = 'write "one.mp3;two.wav" or ["one.mp3", "two.wav"]'
        manifest.blame(line, where, "samples", f"{_kind(value)} cannot name samples", remedy)
        return []
    samples: list[Sample] = []
    for part in filter(None, written):
        found = _expand(manifest.folder, part)
        if not found:
            remedy = f"check it; it starts at the folder of {shown(manifest.source.name)}"
            manifest.blame(line, where, "samples", f"no file matches {shown(part)!r}", remedy)
        samples += found
    return samples


def _expand(folder: Path, written: str) -> list[Sample]:
    """Return the sample that is written, or those that it matches."""
    path = folder / os.path.expanduser(written)  # noqa: PTH111 - Path("~x") is also a name that a file may have
    if not glob.has_magic(written) or os.path.lexists(path):
        return [Sample(path, name=written)]
    pattern = os.path.join(glob.escape(str(folder)), os.path.expanduser(written))  # noqa: PTH111, PTH118 - a pattern
    found = sorted((Path(match) for match in glob.iglob(pattern, recursive=True)), key=_natural)  # noqa: PTH207 - as above
    return [Sample(match, name=os.path.relpath(match, folder)) for match in found if not match.is_dir()]


def _blame_duplicates(manifest: Manifest) -> None:
    """One key is one voice; two rows that share it would silently be one."""
    first: dict[str, Row] = {}
    for row in manifest.rows:
        earlier = first.setdefault(row.key, row)
        if earlier is row or not row.key:
            continue
        at = f"line {earlier.line}" if earlier.line else shown(earlier.where)
        is_named = row.key != row.request.voice_name or earlier.key != earlier.request.voice_name
        remedy = "give each a key of its own in the column key, or remove one"
        if not row.line:
            remedy = "rename one, or put both into one sub-folder, as samples of one voice"
        name = "key" if is_named else "voice_name"
        manifest.blame(row.line, row.where, name, f"{shown(row.key)!r} is taken by {at}", remedy)
