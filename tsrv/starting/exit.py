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
    any program that runs the reactor; C{twistd} offers no exit status itself.

    @param reactor: The reactor. If it does not run yet, it is stopped as soon
        as it does.
    @param status: The exit status.
    """
    atexit.register(_exitAtOnce, status)
    reactor.callWhenRunning(_stop, reactor)


def _stop(reactor: Any) -> None:
    # It may be stopping already.
    with suppress(ReactorNotRunning):
        reactor.stop()


def _exitAtOnce(status: int) -> None:
    # The interpreter is exiting with another status. Do what it would still do,
    # then exit with ours.
    atexit.unregister(_exitAtOnce)
    atexit._run_exitfuncs()
    # A log may have replaced sys.stdout and sys.stderr.
    streams: list[Any] = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
    for stream in streams:
        with suppress(Exception):
            stream.flush()
    os._exit(status)
