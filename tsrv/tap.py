"""
The entry point of C{twistd} and C{twist}: makes a service from options.

Importing this module needs no extra: the options report a missing package.
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
    Make the server of this process.

    @param options: The options.
    @return: The server, as a service that has not been started.
    """
    from twisted.internet import reactor as theReactor

    from .server.assembly import assemble

    reactor: Any = theReactor
    if options["development"]:
        _log.warn("DEVELOPMENT: clients are shown tracebacks (--development)")
    return assemble(options, reactor)
