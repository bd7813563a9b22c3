"""
Controls a measured server, by lines on its standard input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from twisted.web.server import Site

from benchmarks.support.processes import MAX_PROCESS_SECONDS

__all__ = ["QuietSite", "obey", "serve"]

Command = Callable[[str, list[str]], Deferred[Any] | None]


class QuietSite(Site):
    """
    A plain site without an access log.
    """

    def log(self, request: object) -> None:
        """
        Write nothing.
        """


class _Control(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(
        self, reactor: Any, command: Command, report: Callable[[], dict[str, Any]]
    ) -> None:
        self._reactor = reactor
        self._command = command
        self._report = report

    def lineReceived(self, line: bytes) -> None:
        word, *arguments = line.decode().split()
        done = maybeDeferred(self._command, word, arguments)
        done.addCallback(self._send).addErrback(self._failed)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _send(self, result: object) -> None:
        self.sendLine(json.dumps(self._report()).encode())

    def _failed(self, failure: Failure) -> None:
        failure.printTraceback()
        self._reactor.stop()


def obey(reactor: Any, report: Callable[[], dict[str, Any]], command: Command) -> None:
    """
    Carry out the commands on the standard input, until it is closed.

    @param reactor: The reactor.
    @param report: Returns the report that is sent after each command.
    @param command: Carries out a command, given its name and its arguments.
    """
    StandardIO(_Control(reactor, command, report))


def serve(
    reactor: Any,
    site: Site,
    report: Callable[[], dict[str, Any]],
    command: Command = lambda word, arguments: None,
) -> None:
    """
    Serve a site on a free port of the loopback interface, until the standard
    input is closed or the time limit is reached.

    @param reactor: The reactor.
    @param site: The site.
    @param report: Returns the report that is sent after each command, with the port.
    @param command: Carries out a command, given its name and its arguments.
    """
    port = reactor.listenTCP(0, site, backlog=1024, interface="127.0.0.1")
    number = port.getHost().port
    obey(reactor, lambda: {"port": number, **report()}, command)
    reactor.callLater(MAX_PROCESS_SECONDS, reactor.stop)
    reactor.run()
