"""
The state that the sessions of one site share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.interfaces import IReactorTime

from ..asyncmodule import NotInitialized, timeOfDay
from .basestore import BaseStore
from .cookies import Cookies
from .quota import Quota
from .store import ISessionStore, Limits, StoredSession

__all__ = ["Shared"]


@dataclass(eq=False)
class Shared:
    """
    The parts of a site that each of its sessions uses.

    @ivar limits: The limits of the store. L{None} until they are needed: a store behind
        a wrapper has readable attributes only while it is ready.
    """

    clock: IReactorTime
    store: ISessionStore | BaseStore
    cookies: Cookies
    limits: Limits | None
    quota: Quota | None

    def isWorthTouching(self, known: StoredSession) -> bool:
        """
        Return whether a use of a session is worth a call of the store.

        @param known: The session as it was found.
        """
        if self.limits is None:
            try:
                self.limits = cast(Any, self.store).limits or Limits()
            except NotInitialized:
                # The store is behind a wrapper, and lost. It decides by itself.
                return True
            except AttributeError:
                self.limits = Limits()
        now = timeOfDay(self.clock)
        return self.limits.isWorthAWrite(known.created, known.expires, now)
