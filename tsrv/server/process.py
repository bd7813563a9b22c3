"""
The process of a server: its signals, open files, garbage collection and log.
"""

from __future__ import annotations

import atexit
import gc
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from twisted.logger import ILogObserver, Logger, globalLogPublisher

from .isolation import isolateCallbacks

__all__ = ["handleSignals", "prepareProcess"]

_log = Logger("tsrv.server")

GARBAGE_THRESHOLD: Final = 50_000
"""
Number of new objects after which the garbage collector runs. A request leaves no
cycles behind; with Python's default, collecting takes a twentieth of its time.
"""


def prepareProcess(reactor: Any) -> None:
    """
    Allow as many connections as the system permits, collect garbage rarely, put the
    ids of requests into the log and nowhere else, and count there what cannot be
    accepted. Call it before the log begins.

    @param reactor: The reactor.
    """
    from ..web.requestid import addRequestId
    from .shortage import Shortage

    gc.set_threshold(GARBAGE_THRESHOLD)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Some systems have a lower limit that they do not report.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    shortage = Shortage(reactor)
    # They come before the observers that write the log.
    for observer in (shortage, addRequestId):
        globalLogPublisher.addObserver(cast(ILogObserver, observer))
    reactor.addSystemEventTrigger("after", "shutdown", shortage.flush)
    isolateCallbacks(reactor)


def handleSignals(
    reactor: Any, announceStop: Callable[[], None], stopNow: Callable[[], None]
) -> None:
    """
    Make SIGTERM a regular shutdown with exit status 0; with the reactor's own
    handler, C{twistd} ends as if a signal had killed it. SIGINT keeps the reactor's
    handler.

    @param reactor: The reactor; it is running.
    @param announceStop: Called at the first signal, before the reactor is stopped.
    @param stopNow: Called at each further signal.
    """
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        # The reactor was started without signal handlers.
        return
    interrupted: Any = signal.getsignal(signal.SIGINT)
    stopping = False

    def stop(name: str, stopReactor: Callable[[], None]) -> None:
        nonlocal stopping
        if stopping:
            stopNow()
        else:
            stopping = True
            _log.info("Stopping because of {signal}", signal=name)
            announceStop()
            stopReactor()

    # A signal handler may interrupt anything, so it only schedules a call.
    def terminate(*caught: object) -> None:
        reactor.callFromThread(stop, "SIGTERM", reactor.stop)

    def interrupt(*caught: object) -> None:
        reactor.callFromThread(stop, "SIGINT", partial(interrupted, *caught))

    signal.signal(signal.SIGTERM, terminate)
    # Python gives up its handlers before it ends, but leaves ignored signals ignored.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    if callable(interrupted):
        # A shell lets its background programs ignore SIGINT.
        signal.signal(signal.SIGINT, interrupt)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
