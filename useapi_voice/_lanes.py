"""
Which accounts serve: admitted once the remote has named them, taken out when they refuse all, and looked at again.

What is decided of an account is told to the schedule, to the store and to whoever listens; what becomes of the jobs
that it refused is `_refusals`' business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio

from . import _endpoints, _replies
from ._clocks import Clocks
from ._errors import ApiError, AuthenticationError, RateLimited, ServerError, SubscriptionError
from ._models import Account
from ._outcomes import broken, refusal
from ._registry import Registry
from ._replies import Refused, Scope
from ._roster import Roster
from ._schedule import ANY_ACCOUNT, Schedule
from ._settings import Settings
from ._transport import Transport
from .stores import JobStore

logger = logging.getLogger("useapi_voice")

ROSTER_PAUSE_S: Final = 1.0
"""Between two rounds of asking which accounts there are, where the remote cannot be reached."""
LONGEST_LOOK_S: Final = 10 * 365 * 24 * 3600.0
"""What a store is told where nobody will look at an account again of his own accord."""


class Lanes:
    """
    The accounts, and whether each is in order.

    Args:
        schedule: Has a lane for each.
        registry: Has the jobs that nobody can serve when all are out.
        store: Remembers what is out, and until when.
        roster: Knows which there are.
        transport: To look whether one is in order again.
        clocks: The time.
        settings: The queue's.
        start: Starts a task of the queue's: its work, and its name.
        turn: Starts all jobs that can be started now.
    """

    def __init__(
        self,
        schedule: Schedule,
        registry: Registry,
        store: JobStore,
        roster: Roster,
        transport: Transport,
        clocks: Clocks,
        settings: Settings,
        *,
        start: Callable[..., None],
        turn: Callable[[], None],
    ) -> None:
        self._schedule = schedule
        self._registry = registry
        self._store = store
        self._roster = roster
        self._transport = transport
        self._clocks = clocks
        self._settings = settings
        self._start = start
        self._turn = turn
        self._is_asked = False

    # --- which there are ---------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Have the accounts admitted, once, now that a job needs one that any will do for."""
        if self._registry.floor.finds_accounts and not self._is_asked:
            self._is_asked = True
            self._start(self._admit, name="useapi_voice accounts")

    async def _admit(self) -> None:
        """Let the accounts that there are serve the jobs that any may serve."""
        accounts = await self._wait_for_roster()
        if accounts is None:
            self._is_asked = False
            return
        for job in self._schedule.pool:
            job.not_sent_since_t = None
        for account in accounts:
            if account.support_audio is not False:
                self._schedule.admit(account.account)
            if account.error is not None:
                self.close(account.account, broken(account.error))
        if not accounts:
            self._schedule.admit(ANY_ACCOUNT)
        elif not any(account.support_audio is not False for account in accounts):
            self._refuse_pool(broken("no account of this token supports audio"))
            self._is_asked = False
        self._registry.refuse_orphans()
        self._turn()

    async def _wait_for_roster(self) -> tuple[Account, ...] | None:
        """Return the accounts; `None` when the token was refused, or nobody waits for them any more."""
        while True:
            try:
                return await self._roster.all()
            except (AuthenticationError, SubscriptionError) as error:
                self._registry.refuse_waiting(_replies.refused_from(error))
                return None
            except ApiError as error:
                self._lose_patience(error)
                if not self._schedule.pool:
                    return None
                await anyio.sleep(ROSTER_PAUSE_S)

    def _lose_patience(self, error: ApiError) -> None:
        """The accounts could not be had: end the jobs that have waited for them long enough."""
        now_t = self._clocks.now()
        for job in sorted(self._schedule.pool):
            since_t = now_t if job.not_sent_since_t is None else job.not_sent_since_t
            job.not_sent_since_t = since_t
            if now_t - since_t >= self._settings.unreachable_after_s:
                self._registry.settle(job, refusal(job, _replies.refused_from(error), safe_to_retry=True))

    def _refuse_pool(self, refused: Refused) -> None:
        for job in sorted(self._schedule.pool):
            self._registry.settle(job, refusal(job, refused))

    # --- in and out --------------------------------------------------------------------------------------------------

    def close(self, account: str, refused: Refused) -> None:
        """This account refuses everything, or every clone: its jobs move on, or end."""
        slots = refused.scope is Scope.SLOTS
        can_look = not slots or self._transport.generation.has_equity
        look_t = self._clocks.now() + self._settings.look_again_after_s if can_look else float("inf")
        if self.take_out(account, refused, look_t):
            look_s = max(0.0, min(look_t - self._clocks.now(), LONGEST_LOOK_S))
            self._store.closed(account, refused, look_s)
        self._registry.refuse_orphans()

    def take_out(self, account: str, refused: Refused, look_t: float) -> bool:
        """Close a lane here, and return whether that is news: else the other place met the same wall."""
        is_news = self._schedule.lane(account).closed_by is None
        for job in self._schedule.close_lane(account, refused, look_t):
            self._registry.unstage(job)
        self._registry.floor.put_back_waiting(account)
        if is_news:
            kind = "slots_full" if refused.scope is Scope.SLOTS else "account_out"
            self._registry.tell_of_lane(kind, account, reason=refused.detail)
        return is_news

    def reopen(self, account: str | None, *, only_slots: bool = False, is_told: bool = False) -> None:
        """
        Take an account in again, after a look or a delete, or as another process of a fleet did.

        A delete whose account nobody named may have freed a slot on any.
        """
        if account is None and only_slots:
            for name in list(self._schedule.lanes):
                self.reopen(name, only_slots=True, is_told=is_told)
            return
        lane = self._schedule.lanes.get(account or ANY_ACCOUNT)
        if lane is None or lane.closed_by is None or (only_slots and lane.closed_by.scope is not Scope.SLOTS):
            return
        kind = "slots_free" if lane.closed_by.scope is Scope.SLOTS else "account_back"
        self._schedule.open_lane(lane.account)
        if not is_told:
            self._store.opened(lane.account)
        self._registry.tell_of_lane(kind, lane.account)
        self._turn()

    def look_at_closed(self, now_t: float) -> None:
        """Start a look at each account whose time for one has come."""
        for lane in self._schedule.lanes_to_look_at(now_t):
            lane.look_again_t = float("inf")
            if lane.closed_by is not None:
                name = f"useapi_voice look at {lane.account or 'the account'}"
                self._start(self._look_again, lane.account, lane.closed_by.scope, name=name)

    async def _look_again(self, account: str, scope: Scope) -> None:
        """Ask whether a closed account is in order again."""
        try:
            if await (self._has_slot(account) if scope is Scope.SLOTS else self.is_in_order(account)):
                self.reopen(account)
                return
        except ApiError as error:
            logger.debug("account %s could not be looked at: %s", account, type(error).__name__)
        lane = self._schedule.lane(account)
        lane.look_again_t = self._clocks.now() + self._settings.look_again_after_s
        self._turn()

    async def is_in_order(self, account: str) -> bool:
        """Return what the remote says of an account; of the nameless one, whether any is. Raises `ApiError`."""
        try:
            found = {known.account: known.usable for known in await self._roster.fetch()}
        except (AuthenticationError, SubscriptionError, RateLimited, ServerError):
            raise
        except ApiError:
            # It serves no such list, so only a clone can tell.
            return True
        return found.get(account, False) if account != ANY_ACCOUNT else not found or any(found.values())

    async def _has_slot(self, account: str) -> bool:
        payload = await self._transport.ask(lambda generation: _endpoints.equity(account or None))
        return bool(_replies.read_slots(payload).free)

    # --- their pace --------------------------------------------------------------------------------------------------

    def slow_down(self, account: str, retry_after_s: float | None, now_t: float) -> float:
        """Shut the gate after a 429, for all jobs of the account; return the loop time until which."""
        gate_t = self._schedule.slow_down(account, retry_after_s, now_t)
        limit = self._schedule.lanes[account].limit
        self._registry.tell_of_lane("gate_shut", account, wait_s=gate_t - now_t, limit=limit)
        self._store.pause(account, datetime.now(UTC) + timedelta(seconds=gate_t - now_t))
        self._store.limited(account, limit)
        return gate_t

    def pause(self, account: str, wait_s: float) -> None:
        """Send nothing to this account for a while: a failing remote asks for patience."""
        self._schedule.pause(account, self._clocks.now() + wait_s)
        self._registry.tell_of_lane("gate_shut", account, wait_s=wait_s)
        self._store.pause(account, datetime.now(UTC) + timedelta(seconds=wait_s))

    def back_off(self, account: str, reason: str) -> None:
        """Send nothing for a little, longer each time: nothing gets through to it from here."""
        now_t = self._clocks.now()
        gate_t = self._schedule.back_off(account, now_t)
        self._registry.tell_of_lane("gate_shut", account, wait_s=gate_t - now_t, reason=reason)

    def succeeded(self, account: str) -> None:
        """Note an accepted clone: a lane that was told to slow down may try one more at once."""
        if self._schedule.succeeded(account):
            limit = self._schedule.lanes[account].limit
            self._registry.tell_of_lane("limit", account, limit=limit)
            self._store.limited(account, limit)
