"""
Fixtures of all test modules: the event loop a test runs on, virtual time, and an environment that says nothing.

A test is asyncio's unless it is marked otherwise, by a mark of `harness`: `both`, `virtual` or `virtually_asyncio`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from harness import JumpingLoop
from trio.testing import MockClock


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Give the event loop: real ones by their names, those whose time jumps as `virtual asyncio` and `virtual trio`."""
    match getattr(request, "param", "asyncio"):
        case "virtual asyncio":
            return "asyncio", {"loop_factory": JumpingLoop}
        case "virtual trio":
            return "trio", {"clock": MockClock(autojump_threshold=0)}
        case name:
            return name


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings and proxies of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("USEAPI_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
