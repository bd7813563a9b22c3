"""
A server with a status page, whose modules do what lines on its standard input
say: C{start}; or C{succeed}, C{fail} or C{lose}, and the name of a module. It ends
when its standard input does.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from tsrv.resources import makeRoot
from tsrv.startup import Startup
from tsrv.web.site import Site
from tsrv.web.status import putStatus

from .support import Module, Trouble

__all__: list[str] = []

MODULES: dict[str, dict[str, Any]] = {
    "configuration": {},
    "clock": {},
    "database": {"needs": ["configuration"]},
    "users": {"needs": ["database"]},
    "sessions": {"needs": ["database"], "required": False},
}


class _Speaker(Module):
    """
    A module behind C{/say}.
    """

    def tellMeSomething(self) -> Deferred[Any]:
        """
        Answer when the test says so.
        """
        return self.read("something")


class _Control(LineOnlyReceiver):
    """
    Carries out the commands on standard input.
    """

    delimiter = b"\n"

    def __init__(
        self, reactor: Any, startup: Startup, modules: dict[str, _Speaker]
    ) -> None:
        self._reactor = reactor
        self._startup = startup
        self._modules = modules

    def lineReceived(self, line: bytes) -> None:
        command, _, name = line.decode().partition(" ")
        if command == "start":
            self._startup.startService()
        elif command == "succeed":
            self._modules[name].attempts[-1].callback(None)
        elif command == "fail":
            self._modules[name].attempts[-1].errback(Trouble("a secret"))
        else:
            self._modules[name].watches[-1].errback(Trouble("a secret"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()


def _main(port: int, names: list[str]) -> None:
    """
    @param port: Where to listen.
    @param names: The names of further modules.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    startup = Startup(reactor)
    modules: dict[str, _Speaker] = {}
    for name, options in {**MODULES, **{name: {} for name in names}}.items():
        modules[name] = _Speaker()
        startup.add(name, modules[name], retryPolicy=lambda attempts: 0.4, **options)
    root = makeRoot(startup.wrappers["clock"].proxy)
    addresses = ("/say", "/readyz", "/livez", "/startup", "/metrics")
    putStatus(root, startup, reactor, links=[(each, each) for each in addresses])
    reactor.listenTCP(port, Site(root, reactor), interface="127.0.0.1")
    StandardIO(_Control(reactor, startup, modules))
    reactor.callWhenRunning(print, "listening", flush=True)
    reactor.run()


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
