"""Which accounts there are: those that the user named, or those that the remote lists, asked once when first needed."""

from __future__ import annotations

import anyio

from . import _endpoints, _replies
from ._errors import ApiError, AuthenticationError, RateLimited, ServerError, SubscriptionError
from ._models import Account
from ._transport import Transport


class Roster:
    """
    The accounts of this client.

    Args:
        transport: To ask with.
        named: Accounts that the user named; then nothing is asked.
    """

    def __init__(self, transport: Transport, named: tuple[str, ...] | None) -> None:
        self._transport = transport
        self._known = None if named is None else tuple(Account(account=name) for name in named)
        self._lock = anyio.Lock()

    @property
    def known(self) -> tuple[Account, ...] | None:
        """The accounts, or `None` while nobody has asked."""
        return self._known

    async def fetch(self) -> tuple[Account, ...]:
        """
        Ask the remote, whatever is known.

        Raises:
            ApiError: It would not say.
        """
        return _replies.read_accounts(await self._transport.ask(lambda generation: _endpoints.accounts()))

    async def all(self) -> tuple[Account, ...]:
        """
        Return the accounts, asking the remote once; empty where it serves no such list.

        Raises:
            AuthenticationError: 401.
            SubscriptionError: 402.
            RateLimited: 429, again and again.
            ServerError: It cannot be reached, or fails.
        """
        async with self._lock:
            if self._known is None:
                try:
                    self._known = await self.fetch()
                except (AuthenticationError, SubscriptionError, RateLimited, ServerError):
                    raise
                except ApiError:
                    # A server that offers nothing but clone-voice has no such list; with one account none is needed.
                    self._known = ()
        return self._known
