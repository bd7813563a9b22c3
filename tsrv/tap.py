"""
The entry of C{twistd} and C{twist}: options to service.

Importing it needs no extra: the options report a package that is not installed.
"""

from __future__ import annotations

import os
from typing import Any, cast

from twisted.logger import ILogObserver, Logger, globalLogPublisher

from .server.options import Options
from .server.process import handleSignals, tuneProcess
from .server.server import Server
from .server.systemd import VARIABLES

__all__ = ["Options", "makeService"]

_log = Logger("tsrv.server")


def makeService(options: Options) -> Server:
    """
    Make the server of this process.

    @param options: The options.
    @return: The server, as a service that has not been started.
    """
    from twisted.internet import reactor as theReactor

    from .server.assembly import assemble
    from .server.shortage import Shortage
    from .web.requestid import addRequestId

    reactor: Any = theReactor
    tuneProcess()
    shortage = Shortage(reactor)
    # They come before the observers that write the log.
    for observer in (shortage, addRequestId):
        globalLogPublisher.addObserver(cast(ILogObserver, observer))
    reactor.addSystemEventTrigger("after", "shutdown", shortage.flush)
    if options["development"]:
        _log.warn("DEVELOPMENT: clients are shown tracebacks (--development)")
    # A child process must not speak to systemd in the name of this one.
    names = [name for name in VARIABLES if name in os.environ]
    environment = {name: os.environ.pop(name) for name in names}
    server = assemble(options, reactor, environment)
    reactor.callWhenRunning(handleSignals, reactor, server)
    return server
