"""
The end of a program that has failed.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import Any

from twisted.internet.error import ReactorNotRunning

__all__ = ["stopWithStatus"]


def stopWithStatus(reactor: Any, status: int) -> None:
    """
    Stop the reactor, with all that belongs to it, and let the process end with
    an exit status, whatever program runs the reactor: C{twistd} has none to
    offer for that.

    @param reactor: The reactor; as soon as it runs, if it does not yet.
    @param status: The exit status.
    """
    atexit.register(_leave, status)
    reactor.callWhenRunning(_stop, reactor)


def _stop(reactor: Any) -> None:
    # It may be stopping already.
    with suppress(ReactorNotRunning):
        reactor.stop()


def _leave(status: int) -> None:
    """
    Python's own way to end has begun, and knows another status by now. So do
    what it would still do, and end at once.
    """
    atexit.unregister(_leave)
    atexit._run_exitfuncs()
    # Where a log has taken the place of the first two, the others are behind it.
    streams: list[Any] = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
    for stream in streams:
        with suppress(Exception):
            stream.flush()
    os._exit(status)
