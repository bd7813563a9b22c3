"""
A server to be measured: C{/say} of tsrv, with or without its metrics, or the
least that twisted.web needs to say the same.

It listens on a free port of the loopback interface and is told what to do by
lines on its standard input; it answers each with a line of JSON. It ends when
its standard input does, and of itself when it is too old.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import process_time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from twisted.web.server import Site as TwistedSite

from benchmarks._processes import LONGEST
from tsrv import AsyncModule
from tsrv.resources import makeRoot
from tsrv.startup import Startup
from tsrv.web.metrics import (
    Metrics,
    Traffic,
)
from tsrv.web.site import Site

__all__: list[str] = []

_PAGE = 4096


class _Bare(Resource):
    """
    Says what the clock says, by the shortest way. While the clock is not ready
    it keeps the requests in a list.
    """

    def __init__(self, clock: AsyncModule) -> None:
        super().__init__()
        self.waiting: list[Deferred[None]] = []
        self._clock = clock

    def render_GET(self, request: Request) -> int:
        if self._clock.initialized:
            answer = self._clock.tellMeSomething()
        else:
            ready: Deferred[None] = Deferred()
            self.waiting.append(ready)
            answer = ready.addCallback(lambda _: self._clock.tellMeSomething())

        def write(something: str) -> None:
            body = b"I say: " + something.encode()
            request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
            request.setHeader(b"Content-Length", b"%d" % len(body))
            request.write(body)
            request.finish()

        answer.addCallback(write)
        return NOT_DONE_YET

    def fire(self, _: object) -> None:
        """
        The clock is ready.
        """
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback(None)


class _QuietSite(TwistedSite):
    """
    A plain site that does not write a line for each request.
    """

    def log(self, request: object) -> None:
        """
        Write nothing.
        """


class _Control(LineOnlyReceiver):
    """
    What the server is told.
    """

    delimiter = b"\n"

    def __init__(
        self,
        reactor: Any,
        port: int,
        initialize: Callable[[], Deferred[None]],
        held: Callable[[], int],
    ) -> None:
        """
        @param reactor: The reactor.
        @param port: The port of the server.
        @param initialize: Makes it ready.
        @param held: How many requests it holds.
        """
        self._reactor = reactor
        self._port = port
        self._initialize = initialize
        self._held = held

    def lineReceived(self, line: bytes) -> None:
        """
        C{ready}: become ready. C{report}: nothing more than to report.
        """
        if line == b"ready":
            self._initialize().addCallback(self._report)
        else:
            self._report(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Nobody measures any more.
        """
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _report(self, _: object) -> None:
        report = {
            "port": self._port,
            "held": self._held(),
            "cpu": process_time(),
            "memory": _residentSize(),
        }
        self.sendLine(json.dumps(report).encode())


def _residentSize() -> int:
    """
    @return: The bytes of memory that this process occupies; 0 where the system
        does not tell.
    """
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def _main(side: str) -> None:
    """
    @param side: Which of the servers to be.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    clock = AsyncModule(reactor, 0)
    site: TwistedSite
    if side in ("tsrv", "counted"):
        startup = Startup(reactor)
        wrapper = startup.add("clock", clock, limit=1_000_000, queueTimeout=LONGEST)
        root: Resource = makeRoot(wrapper.proxy)
        traffic = Traffic(reactor) if side == "counted" else None
        root.putChild(b"metrics", Metrics(startup, reactor, traffic))
        site = Site(root, reactor, traffic=traffic)

        def initialize() -> Deferred[None]:
            startup.startService()
            return startup.whenReady()

        def held() -> int:
            return wrapper.pending
    else:
        bare = _Bare(clock)
        root = Resource()
        root.putChild(b"say", bare)
        site = (TwistedSite if side == "bare" else _QuietSite)(root)

        def initialize() -> Deferred[None]:
            return clock.initialize().addCallback(bare.fire)

        def held() -> int:
            return len(bare.waiting)

    port = reactor.listenTCP(0, site, backlog=1024, interface="127.0.0.1")
    StandardIO(_Control(reactor, port.getHost().port, initialize, held))
    reactor.callLater(LONGEST, reactor.stop)
    reactor.run()


if __name__ == "__main__":
    _main(sys.argv[1])
