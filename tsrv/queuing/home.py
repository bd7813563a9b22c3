"""
The check that a wrapper is used in the right place: in the thread of the reactor, or
in the thread of its asyncio loop.
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
    The place in which a wrapper may be used. Test C{holder.ioThread != here()} first,
    and call C{check()} if it is true: the test is fast, while finding the running loop
    takes longer than queuing a call.

    @ivar holder: Its C{ioThread} is the thread of the wrapper.
    @ivar here: Returns the thread of the caller.
    @ivar check: Raises in the wrong place. Takes the name of the called function.
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
