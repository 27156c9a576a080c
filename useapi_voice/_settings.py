"""The queue's settings, as numbers; `VoiceClient` documents and checks them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Times end in `_s` and are seconds; `None` means no limit."""

    max_parallel: int
    clone_timeout_s: float
    settle_after_s: float
    queue_timeout_s: float | None
    deadline_s: float | None
    max_pending: int | None
    max_resends: int
    unreachable_after_s: float
    look_again_after_s: float
    wait_when_blocked: bool
    close_grace_s: float
    keep_s: float
    resume: bool
