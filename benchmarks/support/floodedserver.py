"""
The expensive pages of the demo server, C{/metrics} and C{/users}, and C{/livez}: on a
site of tsrv, or on a plain site without an access log.

Usage: floodedserver tsrv|plain URL
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.web.server import Site as TwistedSite

from benchmarks.support.control import QuietSite, serve
from tsrv import AsyncModule, Startup
from tsrv.databases import Database
from tsrv.demo.users import SCHEMA, NewUser, Users
from tsrv.resources import KNOWN_ERRORS, makeRoot
from tsrv.web.health import Live
from tsrv.web.metrics import Metrics
from tsrv.web.site import Site

__all__: list[str] = []


def _main(kind: str, url: str) -> None:
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    startup = Startup(reactor)
    clock = startup.add("clock", AsyncModule(reactor, 0))
    database = startup.add("database", Database(reactor, url, [SCHEMA]))
    users = Users(database.proxy)
    root = makeRoot(clock.proxy, users)
    root.putChild(b"livez", Live())
    root.putChild(b"metrics", Metrics(startup))
    startup.startService()
    reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)

    def carryOut(command: str, arguments: list[str]) -> Deferred[Any]:
        """
        C{create NUMBER}: create this number of users.
        """
        created = [
            users.create(NewUser(f"User {number}", f"{number}@example.org"))
            for number in range(int(arguments[0]))
        ]
        return gatherResults(created)

    site: TwistedSite
    if kind == "tsrv":
        site = Site(root, reactor, knownErrors=KNOWN_ERRORS)
    else:
        site = QuietSite(root)
    serve(reactor, site, dict, carryOut)


if __name__ == "__main__":
    _main(*sys.argv[1:])
