"""
The entry point of C{twistd} and C{twist}: makes the demo server from its options.

Importing this module needs no extra. The options report a missing package.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from .server import Server
from .server.options import Options

__all__ = ["Options", "makeService"]

_log = Logger("tsrv.server")


def makeService(options: Options) -> Server:
    """
    Make the demo server, on the installed reactor.

    @param options: The parsed options of the command line.
    @return: The server: a service that has not been started.
    """
    from twisted.internet import reactor as theReactor

    from .server.assembly import assemble

    reactor: Any = theReactor
    if options["development"]:
        _log.warn("DEVELOPMENT: clients are shown tracebacks (--development)")
    return assemble(options, reactor)
