"""Fixtures for the sandbox's own tests: the backend, and a trio clock that jumps."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio unless a module says otherwise."""
    return "asyncio"


@pytest.fixture
def virtual_time() -> tuple[str, dict[str, Any]]:
    """Give a backend in which sleeping costs nothing; a module takes it by overriding `anyio_backend`."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}
