"""
The exit status of a program that has failed.
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
    Stop the reactor, and end the process with an exit status. This works under
    any program that runs the reactor; C{twistd} itself has no such function.

    @param reactor: The reactor. If it is not running yet, it stops as soon as it runs.
    @param status: The exit status.
    """
    reactor.callWhenRunning(_stop, reactor, status)


def _stop(reactor: Any, status: int) -> None:
    # Only now: the clock or reactor of a test must not change the status of all tests.
    atexit.register(_exitAtOnce, status)
    # The reactor may be stopping already.
    with suppress(ReactorNotRunning):
        reactor.stop()


def _exitAtOnce(status: int) -> None:
    # The interpreter is exiting with another status. Do its remaining work, then exit
    # with our status.
    atexit.unregister(_exitAtOnce)
    atexit._run_exitfuncs()
    # A log may have replaced sys.stdout and sys.stderr.
    streams: list[Any] = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
    for stream in streams:
        with suppress(Exception):
            stream.flush()
    os._exit(status)
