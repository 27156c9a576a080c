"""The queue's alarm clock: what is to happen at which time of the event loop, and the task that sees to it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import anyio
import anyio.lowlevel


class Clocks:
    """Rings what is due. Nothing is taken back: an action looks for itself whether it still has a point."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = anyio.current_time
        """The event loop's time, in seconds."""
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._wake_t = float("inf")
        self._alarm: anyio.Event | None = None

    def set(self) -> None:
        """Read the running event loop's time from now on, even where no task is: in a callback, a signal handler."""
        self.now = anyio.lowlevel.current_token().backend_class.current_time

    def ring_at(self, t: float, action: Callable[[], object]) -> None:
        """Call `action` at this time, or soon after it."""
        heapq.heappush(self._due, (t, next(self._numbers), action))
        self.wake_by(t)

    def wake_by(self, t: float) -> None:
        """Wake at this time at the latest, for the sake of whoever is called on waking."""
        if t < self._wake_t:
            self._wake_t = t
            if self._alarm is not None:
                self._alarm.set()

    async def keep(self, on_wake: Callable[[float], None]) -> None:
        """Ring for ever; on each waking call `on_wake` with the time, after what was due."""
        while True:
            self._wake_t, self._alarm = float("inf"), None
            now_t = self.now()
            while self._due and self._due[0][0] <= now_t:
                _, _, action = heapq.heappop(self._due)
                action()
            on_wake(now_t)
            if self._due:
                self.wake_by(self._due[0][0])
            # Set up after all that, which asks for wake-ups itself: heard now, they would make this loop spin.
            self._alarm = anyio.Event()
            with anyio.move_on_after(self._wake_t - self.now()):
                await self._alarm.wait()
