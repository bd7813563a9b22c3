"""
A server to be watched: the status page of a program whose modules come and go,
or the least that twisted.web needs to tell as much to as many.

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

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from twisted.web.server import Site as TwistedSite

from benchmarks._processes import LONGEST
from tsrv.startup import Startup
from tsrv.web.responses import AsyncResource
from tsrv.web.site import Site
from tsrv.web.status import putStatus

__all__: list[str] = []

_PAGE = 4096

_PER_MODULE = 1200
"""
As many bytes are told of each module that has changed.
"""


class _Fickle:
    """
    A module that is lost, and found again, when it is told to.
    """

    def __init__(self) -> None:
        self._found: Deferred[None] | None = None
        self._lost: Deferred[None] = Deferred()
        self._ever = False

    def initialize(self) -> Deferred[None]:
        """
        Be ready the first time; then wait to be found.
        """
        if not self._ever:
            self._ever = True
            return succeed(None)
        self._found = Deferred()
        return self._found

    def whenLost(self) -> Deferred[None]:
        """
        Wait to be lost.
        """
        self._lost = Deferred()
        return self._lost

    def ask(self) -> Deferred[None]:
        """
        Answer at once.
        """
        return succeed(None)

    def change(self) -> None:
        """
        Be lost, or found.
        """
        if self._found is None:
            self._lost.callback(None)
        else:
            found, self._found = self._found, None
            found.callback(None)


class _Plain(Resource):
    """
    Streams that are written everything at once, and that nobody looks after.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def render_GET(self, request: Request) -> int:
        request.setHeader(b"Content-Type", b"text/event-stream")
        request.write(b"data: 0\n\n")
        self._requests.append(request)
        return NOT_DONE_YET

    def tell(self, changed: int) -> None:
        """
        Tell everybody that so many modules have changed.
        """
        event = b"data: " + b"x" * (_PER_MODULE * changed) + b"\n\n"
        for request in self._requests:
            request.write(event)


class _Control(LineOnlyReceiver):
    """
    What the server is told.
    """

    delimiter = b"\n"

    def __init__(
        self,
        reactor: Any,
        port: int,
        viewers: Callable[[], int],
        change: Callable[[int], None],
    ) -> None:
        """
        @param reactor: The reactor.
        @param port: The port of the server.
        @param viewers: How many watch.
        @param change: Changes so many modules.
        """
        self._port = port
        self._viewers = viewers
        self._change = change
        self._reactor = reactor
        self._loop: LoopingCall | None = None

    def lineReceived(self, line: bytes) -> None:
        """
        C{change}, and how many modules at once, how many times in a second;
        C{report}: nothing more than to report.
        """
        word, *rest = line.split()
        if word == b"change":
            count, rate = map(int, rest)
            self._loop = LoopingCall(self._change, count)
            self._loop.start(1 / rate)
        report = {
            "port": self._port,
            "viewers": self._viewers(),
            "cpu": process_time(),
            "memory": _residentSize(),
        }
        self.sendLine(json.dumps(report).encode())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Nobody measures any more.
        """
        with suppress(ReactorNotRunning):
            self._reactor.stop()


def _residentSize() -> int:
    """
    @return: The bytes of memory that this process occupies; 0 where the system
        does not tell.
    """
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def _main(side: str, count: int) -> None:
    """
    @param side: Which of the servers to be.
    @param count: How many modules there are.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    site: TwistedSite
    if side == "tsrv":
        startup = Startup(reactor)
        modules = [_Fickle() for _ in range(count)]
        proxies = [
            startup.add(f"module-{number}", each, retryPolicy=lambda attempts: 0).proxy
            for number, each in enumerate(modules)
        ]
        root = AsyncResource()
        page = putStatus(root, startup, reactor, most=100_000)
        page.start()
        startup.startService()
        site = Site(root, reactor)
        last = -1

        def change(changed: int) -> None:
            nonlocal last
            for _ in range(changed):
                last = (last + 1) % count
                modules[last].change()
                # Where it is lost, this is held.
                proxies[last].ask().addErrback(lambda failure: None)

        def viewers() -> int:
            return len(page.viewers)
    else:
        plain = _Plain()
        site = TwistedSite(plain)
        change, viewers = plain.tell, plain.__len__

    port = reactor.listenTCP(0, site, backlog=1024, interface="127.0.0.1")
    StandardIO(_Control(reactor, port.getHost().port, viewers, change))
    reactor.callLater(LONGEST, reactor.stop)
    reactor.run()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
