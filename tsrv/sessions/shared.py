"""
The state that the sessions of one site share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from twisted.internet.interfaces import IReactorTime

from .cookies import Cookies
from .quota import Quota
from .store import ISessionStore, Limits

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
        self._since: dict[str, float] = {}

    def add(self, identifier: str) -> None:
        """
        Remember an identifier, and forget the oldest one if there are too many.
        """
        self._since[identifier] = self._clock.seconds()
        if len(self._since) > MAX_RETIRED_IDS:
            del self._since[next(iter(self._since))]

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
