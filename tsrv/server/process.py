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
from typing import Any, Final, cast

from twisted.logger import ILogObserver, Logger, globalLogPublisher

from .isolation import isolateCallbacks

__all__ = ["handleSignals", "prepareProcess"]

_log = Logger("tsrv.server")

GARBAGE_THRESHOLD: Final = 50_000
"""
Number of new objects after which the garbage collector runs. A request leaves no
cycles behind; with Python's default, the collector takes 5 % of the time of a request.
"""


def prepareProcess(reactor: Any) -> None:
    """
    Prepare the process for many connections: raise the soft limit of open files to the
    hard limit, collect garbage rarely, add the ids of requests to the log lines of
    these requests alone, and log refused connections in one line per second.
    L{Server<tsrv.server.Server>} calls this function if it owns the process. Call it
    before the log begins.

    @param reactor: The reactor of the process.
    """
    from ..web.requestid import addRequestId
    from .shortage import Shortage

    gc.set_threshold(GARBAGE_THRESHOLD)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Some systems have a lower limit that they do not report.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    shortage = Shortage(reactor)
    # These observers come before the observers that write the log.
    for observer in (shortage, addRequestId):
        globalLogPublisher.addObserver(cast(ILogObserver, observer))
    reactor.addSystemEventTrigger("after", "shutdown", shortage.flush)
    isolateCallbacks(reactor)


def handleSignals(
    reactor: Any, announceStop: Callable[[], None], stopNow: Callable[[], None]
) -> None:
    """
    Let SIGTERM and SIGINT stop the reactor, with exit status 0. With the reactor's own
    handlers, C{twistd} exits as if a signal had killed it. All other handlers stay: a
    program may have its own, and may run the reactor without handlers.
    L{Server<tsrv.server.Server>} calls this function if it owns the process.

    @param reactor: The reactor; it is running.
    @param announceStop: Called at the first signal, before the reactor is stopped.
    @param stopNow: Called at each further signal.
    """
    stopping = False

    def stop(number: int) -> None:
        nonlocal stopping
        if stopping:
            stopNow()
        else:
            stopping = True
            _log.info(
                "Stopping because of {signal}", signal=signal.Signals(number).name
            )
            announceStop()
            reactor.stop()

    # A signal handler may interrupt anything, so it only schedules a call.
    def handle(number: int, frame: object) -> None:
        reactor.callFromThread(stop, number)

    for each, name in ((signal.SIGTERM, "sigTerm"), (signal.SIGINT, "sigInt")):
        current = signal.getsignal(each)
        if callable(current) and current == getattr(reactor, name, None):
            signal.signal(each, handle)
            # Python removes its handlers before it exits, but keeps ignored signals
            # ignored.
            atexit.register(signal.signal, each, signal.SIG_IGN)
