"""
The promise over real HTTP: requests that come too early wait, and are answered in
order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed

from tsrv import AsyncModule, Closed, QueuingWrapper, State
from tsrv.resources import makeRoot
from tsrv.web.site import Site

from .websupport import (
    Answer,
    Served,
    Wire,
    answersIn,
    asynchronous,
    errorsIn,
    logged,
    serving,
)

SAY = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"

SAY_LAST = b"GET /say HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


class Numbered:
    """
    A module that starts when the test says so, and says a number that grows with
    every call.
    """

    def __init__(self) -> None:
        self.starting: Deferred[None] = Deferred()
        self.calls = 0

    def initialize(self) -> Deferred[None]:
        return self.starting

    def tellMeSomething(self) -> Deferred[str]:
        self.calls += 1
        return succeed(f"number {self.calls}")


class Starting:
    """
    A server whose module is being initialised. It stands between the resource and
    the proxy, and counts the calls that have C{arrived} and C{ended}.
    """

    def __init__(self, **options: Any) -> None:
        from twisted.internet import reactor

        self.module = Numbered()
        self.wrapper = QueuingWrapper(self.module, reactor, **options)
        self.site = Site(makeRoot(self), reactor)
        self._counts = {"arrived": 0, "ended": 0}
        self._waiting: list[tuple[str, int, Deferred[None]]] = []
        self.wrapper.initialize().addErrback(lambda failure: failure.trap(Closed))

    def tellMeSomething(self) -> Deferred[str]:
        answer = self.wrapper.proxy.tellMeSomething()
        self._count("arrived")
        return answer.addBoth(self._ended)

    def when(self, what: str, count: int) -> Deferred[None]:
        """
        @return: A Deferred that fires when so many calls have C{arrived} or
            C{ended}.
        """
        deferred: Deferred[None] = Deferred()
        self._waiting.append((what, count, deferred))
        self._fireWaiting()
        return deferred

    def _ended(self, result: Any) -> Any:
        self._count("ended")
        return result

    def _count(self, what: str) -> None:
        self._counts[what] += 1
        self._fireWaiting()

    def _fireWaiting(self) -> None:
        for what, count, deferred in self._waiting:
            if self._counts[what] >= count and not deferred.called:
                deferred.callback(None)


@asynccontextmanager
async def starting(**options: Any) -> AsyncIterator[tuple[Starting, Served]]:
    """
    Listen, with a module that is being initialised; nothing is logged as an error.
    """
    server = Starting(**options)
    with logged() as events:
        async with serving(server.site) as served:
            yield server, served
        await server.wrapper.close()
    assert errorsIn(events) == []


async def connect(served: Served, server: Starting, count: int) -> list[Wire]:
    """
    Make requests on connections of their own, one after the other.
    """
    wires = []
    for n in range(count):
        wires.append(await served.connect(SAY_LAST))
        await server.when("arrived", n + 1)
    return wires


async def answersTo(wires: Iterable[Wire]) -> list[Answer]:
    """
    @return: The responses, when the connections are closed.
    """
    received = await gatherResults([wire.whenClosed() for wire in wires])
    return [answer for each in received for answer in answersIn(each)]


@asynchronous
async def test_400_requests_during_the_start_are_all_answered() -> None:
    """
    Requests that come before the module is ready wait, and are carried out in the
    order of their arrival.
    """
    async with starting() as (server, served):
        wires = await connect(served, server, 400)
        assert (server.wrapper.pending, server.module.calls) == (400, 0)
        server.module.starting.callback(None)
        answers = await answersTo(wires)
        assert [(answer.status, answer.body) for answer in answers] == [
            (200, b"I say: number %d" % n) for n in range(1, 401)
        ]
        assert server.wrapper.state is State.READY
        assert server.wrapper.stats.started == 400


@asynchronous
async def test_one_pipelined_connection_is_answered_in_order() -> None:
    """
    The first request waits in the queue, and the others behind it in the
    connection.
    """
    async with starting() as (server, served):
        wire = await served.connect(SAY * 700)
        await server.when("arrived", 1)
        assert server.wrapper.pending == 1
        server.module.starting.callback(None)
        received = await wire.whenReceived(b"I say: number 700")
        assert [answer.body for answer in answersIn(received)] == [
            b"I say: number %d" % n for n in range(1, 701)
        ]


@asynchronous
async def test_the_call_of_a_client_that_leaves_is_never_started() -> None:
    """
    It is counted as cancelled, and makes room in the queue.
    """
    async with starting(limit=3) as (server, served):
        wires = await connect(served, server, 3)
        left = wires.pop(1)
        left.leave()
        await server.when("ended", 1)
        assert (server.wrapper.pending, server.wrapper.stats.cancelled) == (2, 1)
        wires.append(await served.connect(SAY_LAST))
        await server.when("arrived", 4)
        server.module.starting.callback(None)
        bodies = [answer.body for answer in await answersTo(wires)]
        assert bodies == [b"I say: number %d" % n for n in (1, 2, 3)]
        assert server.module.calls == 3
        assert left.received == b""


@asynchronous
async def test_a_full_queue_refuses_the_rest() -> None:
    """
    A refused client learns when to come back.
    """
    async with starting(limit=10) as (server, served):
        wires = await connect(served, server, 50)
        await server.when("ended", 40)
        assert server.wrapper.pending == 10
        server.module.starting.callback(None)
        answers = await answersTo(wires)
        assert [answer.status for answer in answers] == [200] * 10 + [503] * 40
        for answer in answers:
            refused = answer.status == 503
            assert (answer.headers.get("retry-after") == "1") is refused
            assert (b"Too many requests are waiting" in answer.body) is refused
        assert server.wrapper.stats.rejected == 40


@asynchronous
async def test_closing_the_module_answers_the_waiting_requests() -> None:
    """
    A waiting request ends with the reason, not with a closed connection.
    """
    async with starting() as (server, served):
        wires = await connect(served, server, 5)
        await server.wrapper.close()
        for answer in await answersTo(wires):
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert b"The service is shutting down" in answer.body


@asynchronous
async def test_a_module_without_a_wrapper_shows_the_problem() -> None:
    """
    A resource works with a bare module too, and then fails before it is ready.
    """
    from twisted.internet import reactor

    module = AsyncModule(reactor, 0.0)
    async with serving(Site(makeRoot(module), reactor)) as served:
        (answer,) = await answersTo([await served.connect(SAY_LAST)])
        assert answer.status == 500
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.body == b"Error:I don't have anything to say right now"
        await module.initialize()
        (answer,) = await answersTo([await served.connect(SAY_LAST)])
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.body.startswith(b"I say: Current time is: ")
