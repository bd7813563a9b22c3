"""
Where a wrapper may be used: in the thread of the reactor, or in that of its loop of
asyncio.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any, NamedTuple

from twisted.python import threadable

from .foreign import checkThread

__all__ = ["Home", "homeOf"]


class Home(NamedTuple):
    """
    The place in which a wrapper may be used. C{holder.ioThread != here()} is fast, and
    false there; otherwise C{check()} has to be called. It sees more: to ask for the
    running loop takes longer than to queue a call.

    @ivar holder: Has what C{here} returns at home, as C{ioThread}.
    @ivar here: Returns the thread of the caller.
    @ivar check: Takes the name of what was called.
    """

    holder: Any
    here: Callable[[], object]
    check: Callable[[str], None]


def homeOf(reactor: Any) -> Home:
    """
    @param reactor: The reactor, or the time of a loop.
    """
    if getattr(reactor, "isNative", False):
        return Home(reactor, get_ident, reactor.checkLoop)
    return Home(threadable, get_ident, checkThread)
