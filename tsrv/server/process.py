"""
The process of a server: its signals, open files and garbage collection.
"""

from __future__ import annotations

import gc
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from .server import Server

__all__ = ["handleSignals", "tuneProcess"]

GARBAGE_THRESHOLD: Final = 50_000
"""
Number of new objects after which the garbage collector runs. A request leaves no
cycles behind; with Python's default, collecting takes a twentieth of its time.
"""


def tuneProcess() -> None:
    """
    Allow as many connections as the system permits, and collect garbage rarely.
    """
    gc.set_threshold(GARBAGE_THRESHOLD)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Some systems have a lower limit that they do not report.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def handleSignals(reactor: Any, server: Server) -> None:
    """
    Make SIGTERM a regular shutdown with exit status 0; with the reactor's own
    handler, C{twistd} ends as if a signal had killed it. SIGINT keeps the reactor's
    handler. A second signal ends the wait for requests in progress.

    @param reactor: The reactor; it is running.
    @param server: The server.
    """
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        # The reactor was started without signal handlers.
        return
    interrupted: Any = signal.getsignal(signal.SIGINT)
    stopping = False

    def stop(stopReactor: Callable[[], None]) -> None:
        nonlocal stopping
        if stopping:
            server.skipDrain()
        else:
            stopping = True
            server.announceStop()
            stopReactor()

    # A signal handler may interrupt anything, so it only schedules a call.
    def terminate(*caught: object) -> None:
        reactor.callFromThread(stop, reactor.stop)

    def interrupt(*caught: object) -> None:
        reactor.callFromThread(stop, partial(interrupted, *caught))

    signal.signal(signal.SIGTERM, terminate)
    if callable(interrupted):
        # A shell lets its background programs ignore SIGINT.
        signal.signal(signal.SIGINT, interrupt)
