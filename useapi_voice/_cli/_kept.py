"""Reads a store without a token: finds its file, and returns its jobs as plain data, even while a clone runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from ..stores._sqlite_look import look
from ..stores.sqlite import SqliteStore
from ._connect import KEEP_S, is_local
from ._exit import CliError, ExitCode
from ._text import shown

Row = Mapping[str, Any]
_SHORTEST_ID: Final = 6
_MAGIC: Final = b"SQLite format 3\0"


def find_store(path: Path) -> Path:
    """
    Return the store that is meant: the file itself, or the one beside a manifest or in a folder.

    Raises:
        CliError: There is none.
    """
    if path.is_file() and _is_store(path):
        return path
    endings = [".rehearsal.db", ".db"] if is_local() else [".db", ".rehearsal.db"]
    for ending in endings:
        beside = path / f".useapi-voice{ending}" if path.is_dir() else path.with_name(path.name + ending)
        if beside.is_file():
            return beside
    what = "no store" if path.exists() else "no file"
    remedy = "give the store of an earlier clone, or the manifest or folder that it was for"
    raise CliError(ExitCode.USAGE, f"There is {what} at {shown(path)}: {remedy}.")


def _is_store(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[SqliteStore, None]:
    """Open a store to change it: nobody else may have it open."""
    store = SqliteStore(str(find_store(path)), keep_s=KEEP_S)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def rows_of(path: Path) -> list[Row]:
    """Return all jobs of a store, in the order in which they were submitted, without disturbing its owner."""
    return list(await anyio.to_thread.run_sync(look, find_store(path)))


async def rows_if_any(path: Path) -> list[Row]:
    """Return the same, or nothing where there is no store yet."""
    return await rows_of(path) if await anyio.Path(path).exists() else []


def pick(rows: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    """
    Return the jobs that are meant: by key, by id, or by its first characters.

    Raises:
        CliError: One of them is not there, or could be several.
    """
    found: list[Row] = []
    for name in wanted:
        fits = [row for row in rows if name in {row["key"], row["id"]}]
        if not fits and len(name) >= _SHORTEST_ID:
            fits = [row for row in rows if row["id"].startswith(name)]
        if len(fits) != 1:
            what = f"{len(fits)} jobs fit" if fits else "No job has the key or id"
            raise CliError(ExitCode.USAGE, f"{what} {shown(name)!r}: useapi-voice jobs list shows them.")
        found += fits
    return found
