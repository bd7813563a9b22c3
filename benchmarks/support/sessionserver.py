"""
A server with C{/say} and a store of sessions in SQLite, in one process.

Usage: sessionserver PATH
"""

from __future__ import annotations

import sys
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred

from benchmarks.support.control import serve
from benchmarks.support.processes import residentBytes
from tsrv import AsyncModule, Startup
from tsrv.databases import Database
from tsrv.resources import makeRoot
from tsrv.sessions import Changes, SQLSessionStore, schemaOf
from tsrv.web.site import Site

__all__ = ["identifierOf"]

CONCURRENT_VISITORS: Final = 64
"""
Number of visitors that visit at the same time.
"""


def identifierOf(number: int) -> str:
    """
    Return the identifier of a session, which is predictable.
    """
    return f"{number:043d}"


class _Commands:
    """
    The commands of the server.
    """

    def __init__(
        self, reactor: Any, ready: Deferred[None], store: SQLSessionStore
    ) -> None:
        self._reactor = reactor
        self._ready = ready
        self._store = store
        self._removed: int | None = None
        self._seconds = 0.0

    def __call__(self, command: str, arguments: list[str]) -> Deferred[Any] | None:
        """
        C{wait}: wait until the store is ready; C{visit NUMBER...}: count a visit in
        these sessions; C{clean}: begin to remove expired sessions; C{report}: report.
        """
        if command == "wait":
            return self._ready
        if command == "visit":
            numbers = list(map(int, arguments))
            visitors = [
                ensureDeferred(self._visit(numbers[start::CONCURRENT_VISITORS]))
                for start in range(CONCURRENT_VISITORS)
            ]
            return DeferredList(visitors, fireOnOneErrback=True, consumeErrors=True)
        if command == "clean":
            begun = self._reactor.seconds()
            self._store.cleanup().addCallback(self._cleaned, begun)
        return None

    def report(self) -> dict[str, Any]:
        """
        Return the report that follows each command.
        """
        return {
            "memory": residentBytes(),
            "removed": self._removed,
            "seconds": self._seconds,
        }

    async def _visit(self, numbers: list[int]) -> None:
        for number in numbers:
            identifier = identifierOf(number)
            found = await self._store.get(identifier)
            changes = Changes(added={"visits": 1})
            if await self._store.set(identifier, changes, found) is None:
                raise LookupError(f"session {number} does not exist")

    def _cleaned(self, removed: int, begun: float) -> None:
        self._removed = removed
        self._seconds = self._reactor.seconds() - begun


def _main(path: str) -> None:
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    database = Database(reactor, f"sqlite:{path}", [schemaOf()])
    store = SQLSessionStore(reactor, database)
    startup = Startup(reactor)
    clock = startup.add("clock", AsyncModule(reactor, 0))
    startup.add("sessions", store)
    startup.startService()
    reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)
    commands = _Commands(reactor, startup.whenReady(), store)
    serve(reactor, Site(makeRoot(clock.proxy), reactor), commands.report, commands)


if __name__ == "__main__":
    _main(sys.argv[1])
