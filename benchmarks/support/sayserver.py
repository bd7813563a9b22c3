"""
A server with C{/say}: of tsrv, with or without metrics, or with the least code for the
same response on twisted.web.

Usage: sayserver tsrv|counted|bare|quiet
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import process_time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from twisted.web.server import Site as TwistedSite

from benchmarks.support.control import QuietSite, serve
from benchmarks.support.processes import MAX_PROCESS_SECONDS, residentBytes
from tsrv import AsyncModule, Startup
from tsrv.resources import makeRoot
from tsrv.web.metrics import Metrics
from tsrv.web.site import Site
from tsrv.web.traffic import Traffic

__all__: list[str] = []


class _BareResource(Resource):
    """
    Responds with the text of the clock. Until the clock is ready, requests wait in a
    list.
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

    def clockReady(self, result: object) -> None:
        """
        Respond to the requests that wait.
        """
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback(None)


def _main(kind: str) -> None:
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    clock = AsyncModule(reactor, 0)
    site: TwistedSite
    initialize: Callable[[], Deferred[None]]
    held: Callable[[], int]
    if kind in ("tsrv", "counted"):
        startup = Startup(reactor)
        wrapper = startup.add(
            "clock", clock, limit=1_000_000, queueTimeout=MAX_PROCESS_SECONDS
        )
        root: Resource = makeRoot(wrapper.proxy)
        traffic = Traffic(reactor) if kind == "counted" else None
        root.putChild(b"metrics", Metrics(startup, traffic))
        site = Site(root, reactor, traffic=traffic)

        def initialize() -> Deferred[None]:
            startup.startService()
            return startup.whenReady()

        def held() -> int:
            return wrapper.pending
    else:
        bare = _BareResource(clock)
        root = Resource()
        root.putChild(b"say", bare)
        site = (TwistedSite if kind == "bare" else QuietSite)(root)

        def initialize() -> Deferred[None]:
            return clock.initialize().addCallback(bare.clockReady)

        def held() -> int:
            return len(bare.waiting)

    def report() -> dict[str, Any]:
        return {"held": held(), "cpu": process_time(), "memory": residentBytes()}

    def carryOut(command: str, arguments: list[str]) -> Deferred[Any] | None:
        return initialize() if command == "ready" else None

    serve(reactor, site, report, carryOut)


if __name__ == "__main__":
    _main(sys.argv[1])
