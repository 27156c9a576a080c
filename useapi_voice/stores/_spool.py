"""Copies of samples that exist nowhere else: which are needed, and when the rest goes. On a store's own thread only."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Final

from .._errors import StoreError
from .._jobs import Fingerprint, Job

COPY_GRACE_S: Final = 300.0
"""How long a copy that no job needs is left alone: whoever put it there, or found it, may be about to add its job."""

_COPY_NAME = re.compile(r"[0-9a-f]{64}(\..+)?")
"""A copy, or one that is being made."""


class Spool:
    """
    Which copies are needed; the rest goes, `COPY_GRACE_S` after it was needed last, or was put there.

    On the store's thread only, so that none is dropped between the check of `add` and its commit.

    Args:
        directory: Where they are; made with mode 0700 when it is opened.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._needed: defaultdict[str, set[int]] = defaultdict(set)
        """The numbers of the jobs that need it, by hash."""

    def path(self, sha256: str) -> str:
        return os.path.join(self._directory, sha256)  # noqa: PTH118 - a Path costs 1 kB a sample

    def open(self, jobs: Iterable[Job]) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)  # noqa: PTH103 - paths are strings here
        for job in jobs:
            self.hold(job.seq, spooled(job.fingerprints))

    def check(self, shas: Iterable[str]) -> None:
        """Raise `StoreError` unless these are there, for good."""
        is_empty = True
        for sha256 in shas:
            is_empty = False
            if not os.path.exists(self.path(sha256)):  # noqa: PTH110 - as above
                raise StoreError(f"the copy of a sample, {self.path(sha256)}, is gone: submit it again")
        if not is_empty:
            sync_directory(self._directory)

    def hold(self, seq: int, shas: Collection[str]) -> None:
        for sha256 in shas:
            self._needed[sha256].add(seq)

    def let_go(self, seq: int, shas: Collection[str]) -> None:
        for sha256 in shas:
            holders = self._needed[sha256]
            holders.discard(seq)
            if not holders:
                del self._needed[sha256]
                with contextlib.suppress(OSError):
                    os.utime(self.path(sha256))

    def sweep(self, grace_s: float | None = None) -> None:
        """Delete copies that no job needs and nobody touched for so long; what else lies there is not ours."""
        grace_s = COPY_GRACE_S if grace_s is None else grace_s
        now = time.time()
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                is_copy = _COPY_NAME.fullmatch(entry.name) and entry.name not in self._needed
                if is_copy and (not grace_s or now - entry.stat().st_mtime >= grace_s):
                    unlink(entry.path)


def spooled(fingerprints: Iterable[Fingerprint]) -> tuple[str, ...]:
    return tuple(print_.sha256 for print_ in fingerprints if print_.path is None)


def unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108 - as above


def sync_directory(path: str) -> None:
    """Make the names in it durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
