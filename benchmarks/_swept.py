"""
A server to be measured: C{/say} of tsrv beside a store of sessions in SQLite, in
one process.

It listens on a free port of the loopback interface and is told what to do by
lines on its standard input; it answers each with a line of JSON. It ends when
its standard input does, and of itself when it is too old.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from benchmarks._processes import LONGEST
from benchmarks._server import _residentSize
from tsrv import AsyncModule
from tsrv.databases import Database
from tsrv.resources import makeRoot
from tsrv.sessions import (
    Changes,
    SQLSessionStore,
    schemaOf,
)
from tsrv.startup import Startup
from tsrv.web.site import Site

__all__ = ["identifierOf"]

_TOGETHER: Final = 64
"""
How many visitors come at a time.
"""


def identifierOf(number: int) -> str:
    """
    @param number: Which session is meant.
    @return: An identifier of it, from which others can be guessed.
    """
    return f"{number:043d}"


class _Control(LineOnlyReceiver):
    """
    What the server is told.
    """

    delimiter = b"\n"

    def __init__(
        self, reactor: Any, port: int, ready: Deferred[None], store: SQLSessionStore
    ) -> None:
        """
        @param reactor: The reactor.
        @param port: The port of the server.
        @param ready: Fires when the store can be asked.
        @param store: The sessions.
        """
        self._reactor = reactor
        self._port = port
        self._ready = ready
        self._store = store
        self._removed: int | None = None
        self._seconds = 0.0

    def lineReceived(self, line: bytes) -> None:
        """
        C{wait}: until the store can be asked. C{visit NUMBER...}: add 1 to the
        visits of these sessions. C{clean}: begin to remove what has ended.
        C{report}: nothing more than to report.
        """
        word, *rest = line.split()
        if word == b"wait":
            self._answerAfter(self._ready)
        elif word == b"visit":
            self._answerAfter(self._visitAll(list(map(int, rest))))
        else:
            if word == b"clean":
                self._clean().addErrback(self._end)
            self._report(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Nobody measures any more.
        """
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _answerAfter(self, done: Deferred[Any]) -> None:
        done.addCallback(self._report).addErrback(self._end)

    def _end(self, failure: Failure) -> None:
        failure.printTraceback()
        self._reactor.stop()

    def _visitAll(self, numbers: list[int]) -> Deferred[Any]:
        everyone = [
            ensureDeferred(self._visit(numbers[place::_TOGETHER]))
            for place in range(_TOGETHER)
        ]
        return DeferredList(everyone, fireOnOneErrback=True, consumeErrors=True)

    async def _visit(self, numbers: list[int]) -> None:
        for number in numbers:
            identifier = identifierOf(number)
            found = await self._store.get(identifier)
            changes = Changes(added={"visits": 1})
            if await self._store.set(identifier, changes, found) is None:
                raise LookupError(f"session {number} is not there")

    def _clean(self) -> Deferred[None]:
        begun = self._reactor.seconds()

        def cleaned(removed: int) -> None:
            self._removed = removed
            self._seconds = self._reactor.seconds() - begun

        return self._store.cleanup().addCallback(cleaned)

    def _report(self, _: object) -> None:
        report = {
            "port": self._port,
            "memory": _residentSize(),
            "removed": self._removed,
            "seconds": self._seconds,
        }
        self.sendLine(json.dumps(report).encode())


def _main(path: str) -> None:
    """
    @param path: Where the database is.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    database = Database(reactor, f"sqlite:{path}", [schemaOf()])
    store = SQLSessionStore(reactor, database)
    startup = Startup(reactor)
    clock = startup.add("clock", AsyncModule(reactor, 0))
    startup.add("sessions", store)
    site = Site(makeRoot(clock.proxy), reactor)
    port = reactor.listenTCP(0, site, backlog=1024, interface="127.0.0.1")
    startup.startService()
    ready = startup.whenReady()
    StandardIO(_Control(reactor, port.getHost().port, ready, store))
    reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)
    reactor.callLater(LONGEST, reactor.stop)
    reactor.run()


if __name__ == "__main__":
    _main(sys.argv[1])
