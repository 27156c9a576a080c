"""The queue's settings, as numbers; `VoiceClient` documents and checks them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Times end in `_s` and are seconds; `None` means no limit."""

    max_parallel: int = 2
    clone_timeout_s: float = 120.0
    settle_after_s: float = 75.0
    queue_timeout_s: float | None = None
    deadline_s: float | None = None
    max_pending: int | None = None
    max_resends: int = 2
    unreachable_after_s: float = 30.0
    look_again_after_s: float = 300.0
    wait_when_blocked: bool = False
    close_grace_s: float = 25.0
    keep_s: float = 24 * 3600.0
    resume: bool = True
