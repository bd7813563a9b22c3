"""
The state that the sessions of one site share.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from .cookies import Cookies
from .quota import Quota
from .store import ISessionStore, Limits, StoredSession

__all__ = ["RetiredIdentifiers", "Shared"]

RETIRED_SECONDS: Final = 60.0
"""
Seconds for which a replaced identifier is remembered.
"""

MAX_RETIRED_IDS: Final = 10_000
"""
Maximum number of remembered identifiers.
"""


class RetiredIdentifiers:
    """
    Identifiers that were replaced a moment ago. Requests that a browser sent before
    it received the new cookie may still arrive with the old one.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._since: OrderedDict[str, float] = OrderedDict()

    def add(self, identifier: str) -> None:
        """
        Remember an identifier, and forget the oldest one if there are too many.
        """
        self._since[identifier] = self._clock.seconds()
        self._since.move_to_end(identifier)
        if len(self._since) > MAX_RETIRED_IDS:
            self._since.popitem(last=False)

    def has(self, identifier: str) -> bool:
        """
        @return: Whether an identifier was replaced a moment ago.
        """
        since = self._since.get(identifier)
        return since is not None and self._clock.seconds() - since < RETIRED_SECONDS


@dataclass(frozen=True)
class Shared:
    """
    The parts of a site that each of its sessions uses.
    """

    clock: IReactorTime
    store: ISessionStore
    cookies: Cookies
    limits: Limits
    quota: Quota | None
    retired: RetiredIdentifiers

    def checkQuota(self, request: Request) -> None:
        """
        Count a new session.

        @raise TooMany: There are too many new sessions.
        """
        if self.quota is not None:
            self.quota.count(request)

    def isWorthTouching(self, session: StoredSession) -> bool:
        """
        @return: Whether a use extends the session by enough to be written.
        """
        now = self.clock.seconds()
        return self.limits.isWorthAWrite(session.created, session.expires, now)
