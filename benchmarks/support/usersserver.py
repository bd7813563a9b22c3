"""
The users and visitors of the demo server on one database, which can be paused.

Usage: usersserver URL
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred

from benchmarks.support.control import serve
from tsrv import AsyncModule, Startup
from tsrv.databases import Database
from tsrv.demo.users import SCHEMA, Users
from tsrv.queuing.retry import jitteredBackoff
from tsrv.resources import KNOWN_ERRORS, makeRoot
from tsrv.sessions import Cookies, Sessions, SQLSessionStore, schemaOf
from tsrv.web.site import Site

__all__: list[str] = []

# Longest delay between two attempts to connect, in seconds, as in the server.
_MAX_RETRY_SECONDS = 4.0


def _main(url: str) -> None:
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    startup = Startup(reactor)
    clock = startup.add("clock", AsyncModule(reactor, 0))
    database = startup.add(
        "database",
        Database(reactor, url, [SCHEMA, schemaOf()]),
        replay=["read"],
        retryPolicy=jitteredBackoff(maxDelay=_MAX_RETRY_SECONDS),
    ).proxy
    store = startup.add(
        "sessions",
        SQLSessionStore(reactor, database, owned=False),
        needs=["database"],
    )
    sessions = Sessions(reactor, store.proxy, Cookies(reactor))
    root = makeRoot(clock.proxy, Users(database), sessions)
    startup.startService()
    reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)

    def carryOut(command: str, arguments: list[str]) -> Deferred[Any] | None:
        """
        C{wait}: wait until all modules are ready; C{pause} or C{resume}: pause or
        resume the database.
        """
        if command == "wait":
            return startup.whenReady()
        if command == "pause":
            return startup.pause("database")
        startup.resume("database")
        return None

    site = Site(root, reactor, knownErrors=KNOWN_ERRORS)
    serve(reactor, site, dict, carryOut)


if __name__ == "__main__":
    _main(sys.argv[1])
