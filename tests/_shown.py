"""
A server with a status page, whose modules do as they are told by lines on its
standard input: C{start}; or C{succeed}, C{fail} or C{lose}, and the name of a
module. It ends when its standard input does.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, succeed
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

EVIL = "<script>alert(1)</script>&\"'"

_MODULES: dict[str, dict[str, Any]] = {
    "configuration": {},
    "clock": {},
    "database": {"needs": ["configuration"]},
    "users": {"needs": ["database"]},
    "sessions": {"needs": ["database"], "required": False},
}


class _Talking(Module):
    """
    One that has something to say.
    """

    def tellMeSomething(self) -> Deferred[str]:
        """
        Say it at once.
        """
        return succeed("all is well")


class _Control(LineOnlyReceiver):
    """
    What the server is told.
    """

    delimiter = b"\n"

    def __init__(
        self, reactor: Any, startup: Startup, modules: dict[str, _Talking]
    ) -> None:
        self._reactor = reactor
        self._startup = startup
        self._modules = modules

    def lineReceived(self, line: bytes) -> None:
        word, _, name = line.decode().partition(" ")
        if word == "start":
            self._startup.startService()
        elif word == "succeed":
            self._modules[name].attempts[-1].callback(None)
        elif word == "fail":
            self._modules[name].attempts[-1].errback(Trouble("not for everybody"))
        else:
            self._modules[name].watches[-1].errback(Trouble("not for everybody"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()


def _main(port: int, names: list[str]) -> None:
    """
    @param port: Where to listen.
    @param names: What further modules are called.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    startup = Startup(reactor)
    modules: dict[str, _Talking] = {}
    for name, options in {**_MODULES, **{name: {} for name in names}}.items():
        modules[name] = _Talking()
        startup.add(name, modules[name], retryPolicy=lambda attempts: 0.4, **options)
    root = makeRoot(startup.wrappers["clock"].proxy)
    addresses = ("/say", "/readyz", "/livez", "/startup", "/metrics")
    page = putStatus(root, startup, reactor, links=[(each, each) for each in addresses])
    page.start()
    site = Site(root, reactor)
    reactor.listenTCP(port, site, interface="127.0.0.1")
    StandardIO(_Control(reactor, startup, modules))

    def stop() -> Deferred[int]:
        page.stop()
        return site.stop(5)

    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.callWhenRunning(print, "listening", flush=True)
    reactor.run()


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
