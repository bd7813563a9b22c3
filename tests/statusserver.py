"""
A server with a status page, controlled by commands on its standard input, one in a
line: C{start} or C{announceStop}; or C{succeed}, C{fail}, C{lose}, C{pause}, C{resume}
or C{call}, and the name of a module. The server exits at the end of its standard input.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from tsrv.web.site import Site
from tsrv.web.status import Status

from .operated import Program

__all__: list[str] = []


class _Control(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(self, program: Program) -> None:
        self._program = program

    def lineReceived(self, line: bytes) -> None:
        command, *names = line.decode().split(maxsplit=1)
        if command == "call":
            proxy = self._program.startup.wrappers[names[0]].proxy
            proxy.read("something").addErrback(lambda failure: None)
        else:
            getattr(self._program, command)(*names)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        with suppress(ReactorNotRunning):
            self._program.clock.stop()


def _main(port: int, names: list[str]) -> None:
    """
    @param port: The port on the loopback interface.
    @param names: The names of further modules.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    program = Program(reactor)
    program.add("configuration")
    program.add("clock")
    program.add("database", "configuration")
    program.add("users", "database")
    program.add("sessions", restartWith=["database"], after=["clock"], required=False)
    program.add("mail", lazy=True)
    for name in names:
        program.add(name)
    links = [("/say", "/say")]
    status = Status(program.startup, reactor, links=links, controls=True)
    reactor.listenTCP(port, Site(status, reactor), interface="127.0.0.1")
    StandardIO(_Control(program))
    reactor.callWhenRunning(print, "listening", flush=True)
    reactor.run()


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
