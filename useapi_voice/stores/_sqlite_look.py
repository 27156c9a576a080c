"""
Looks at an SQLite file that another process may be at work on: changes nothing, takes nothing, waits for nobody.

The owner holds its file alone, so that nobody else can so much as read it through SQLite. What is looked at is a copy
of the file and its log. Taken while the owner writes, it is whole all the same, because of how the log works:

1. A page changes in the file only after its new content, and the commit that it is a part of, are in the log.
2. The log only grows, until all of it is in the file; then it begins anew, with another header.

So a log that is copied after the file, and whose header is the one that it had before, holds every page that the file
may have in halves; SQLite lays it over the copy as after a power loss, up to the last commit that is whole.
Source: https://www.sqlite.org/fileformat2.html#the_write_ahead_log, seen November 2026.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from typing import Any, Final

from .._errors import StoreError
from . import codec
from ._spool import Spool
from ._sqlite_file import PAGE, File, read_row

_LOG_HEADER_BYTES: Final = 32
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_WITHIN_S: Final = 20.0
"""How long to try again where the log began anew in the middle of a copy; it does so every thousand pages or more."""
_PAUSE_S: Final = 0.02
"""Between two tries."""


def look(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    Return all jobs of a file as they were at one of its last commits, as `SqliteStore.export` yields them.

    Blocks for as long as it takes to copy the file. Not for a process that has the file open as its owner: closing any
    descriptor of it would let go of the locks by which it is owned.

    Raises:
        StoreError: It is not there, damaged, or of another program, or there is no room for a copy; the message says
            what to do.
    """
    file = File(os.path.realpath(os.fsdecode(path)), 0, Spool(""))
    try:
        with _folder(file.path) as folder:
            copy = os.path.join(folder, "copy.db")  # noqa: PTH118 - paths are strings here
            has_log = _copy(file.path, copy)
            with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                if file.check(connection, has_log=has_log) == 0:
                    return []
                return [codec.export(read_row(values)) for values in connection.execute(PAGE, (0, -1))]
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {file.path}: name the one that the jobs are in") from error
    except Exception as error:
        # Not only the disk's and SQLite's: a row that makes no sense may raise anything.
        raise file.explain("looking at it", error) from error


def _folder(path: str) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="useapi-voice-")
    except OSError as error:
        raise _no_room(path) from error


def _no_room(path: str) -> StoreError:
    return StoreError(f"there is no room for a copy of {path} to look at: set TMPDIR to a folder that has some")


def _copy(path: str, copy: str) -> bool:
    """Copy a file and its log, as they were at one moment; return whether there is a log."""
    until_t = time.monotonic() + _WITHIN_S
    while True:
        before = _state(path)
        _copy_one(path, copy)
        has_log = _copy_log(f"{path}-wal", f"{copy}-wal")
        if _state(path) == before:
            return has_log
        if time.monotonic() >= until_t:
            raise StoreError(f"{path} changes too fast to be looked at: try again")
        time.sleep(_PAUSE_S)


def _copy_log(log: str, copy: str) -> bool:
    try:
        _copy_one(log, copy)
    except FileNotFoundError:
        if os.path.exists(copy):  # noqa: PTH110 - of an earlier try
            os.unlink(copy)  # noqa: PTH108
        return False
    return True


def _copy_one(path: str, copy: str) -> None:
    with open(path, "rb") as source:  # noqa: PTH123
        try:
            with open(copy, "wb") as target:  # noqa: PTH123
                shutil.copyfileobj(source, target, 1024 * 1024)
        except OSError as error:
            if error.errno in _FULL:
                raise _no_room(path) from error
            raise


def _state(path: str) -> object:
    """Return what tells whether the log began anew: its header, or, while it is empty, when the file was written."""
    try:
        with open(f"{path}-wal", "rb") as log:  # noqa: PTH123
            header = log.read(_LOG_HEADER_BYTES)
    except FileNotFoundError:
        header = None
    if header:
        return header
    status = os.stat(path)  # noqa: PTH116
    return header, status.st_size, status.st_mtime_ns
