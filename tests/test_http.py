"""
What the whole promises, over real HTTP: requests that come too early are held,
and answered in order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed

from tsrv import (
    AsyncModule,
    Closed,
    QueuingWrapper,
    State,
)
from tsrv.resources import makeRoot
from tsrv.web.site import Site

from .websupport import (
    Served,
    allowFiles,
    answersIn,
    asynchronous,
    errorsIn,
    logged,
    serving,
)

SAY = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"


class Numbered:
    """
    A module that starts when the test says so, and that says a number which
    grows with every call.

    @ivar calls: How often it was called.
    """

    def __init__(self) -> None:
        self.starting: Deferred[None] = Deferred()
        self.calls = 0

    def initialize(self) -> Deferred[None]:
        return self.starting

    def tellMeSomething(self) -> Deferred[str]:
        self.calls += 1
        return succeed(f"number {self.calls}")


class Watched:
    """
    What stands between the resource and the proxy, to tell the test what has
    arrived and what has ended.
    """

    def __init__(self, speaker: Any) -> None:
        self._speaker = speaker
        self._counts = {"arrived": 0, "ended": 0}
        self._waiting: list[tuple[str, int, Deferred[None]]] = []

    def tellMeSomething(self) -> Deferred[str]:
        answer: Deferred[str] = self._speaker.tellMeSomething()
        self._count("arrived")
        return answer.addBoth(self._ended)

    def when(self, what: str, count: int) -> Deferred[None]:
        """
        @return: A Deferred that fires when so many calls have C{arrived} or
            C{ended}.
        """
        deferred: Deferred[None] = Deferred()
        self._waiting.append((what, count, deferred))
        self._look()
        return deferred

    def _ended(self, result: Any) -> Any:
        self._count("ended")
        return result

    def _count(self, what: str) -> None:
        self._counts[what] += 1
        self._look()

    def _look(self) -> None:
        for each in list(self._waiting):
            what, count, deferred = each
            if self._counts[what] >= count:
                self._waiting.remove(each)
                deferred.callback(None)


class Starting:
    """
    A server whose module is being initialised.
    """

    def __init__(self, **options: Any) -> None:
        from twisted.internet import reactor

        self.module = Numbered()
        self.wrapper = QueuingWrapper(self.module, reactor, **options)
        self.speaker = Watched(self.wrapper.proxy)
        self.site = Site(makeRoot(self.speaker), reactor)
        self.initialized = self.wrapper.initialize()


@asynccontextmanager
async def starting(**options: Any) -> AsyncIterator[tuple[Starting, Served]]:
    """
    Listen, with a module that is being initialised.
    """
    server = Starting(**options)
    server.initialized.addErrback(lambda failure: failure.trap(Closed))
    async with serving(server.site) as served:
        yield server, served
    await server.wrapper.close()


async def say(served: Served) -> tuple[int, str, str | None]:
    """
    Ask.

    @return: The status, the body, and when to try again.
    """
    response = await served.client.get(f"{served.url}/say")
    body = await response.text()
    (retryAfter,) = response.headers.getRawHeaders("Retry-After", [None])
    return response.code, body, retryAfter


@asynchronous
async def test_500_requests_during_the_start_are_all_answered() -> None:
    """
    The promise: nobody who came too early is refused, or forgotten.
    """
    allowFiles(2000)
    async with starting() as (server, served):
        asked = [Deferred.fromCoroutine(say(served)) for _ in range(500)]
        await server.speaker.when("arrived", 500)
        assert server.wrapper.pending == 500
        assert server.module.calls == 0
        server.module.starting.callback(None)
        answers = await gatherResults(asked)
        assert {status for status, _, _ in answers} == {200}
        # Each of them got an answer of its own.
        assert {body for _, body, _ in answers} == {
            f"I say: number {n}" for n in range(1, 501)
        }
        assert server.wrapper.state is State.READY
        assert server.wrapper.stats.started == 500


@asynchronous
async def test_requests_are_carried_out_in_order_of_arrival() -> None:
    """
    Who came first is served first.
    """
    async with starting() as (server, served):
        wires = []
        for n in range(20):
            wires.append(await served.connect(SAY))
            await server.speaker.when("arrived", n + 1)
        server.module.starting.callback(None)
        for n, wire in enumerate(wires, 1):
            await wire.whenReceived(b"I say: number %d" % n)


@asynchronous
async def test_one_pipelined_connection_is_answered_in_order() -> None:
    """
    Its first request waits in the queue, the others behind it in the
    connection; not even the step from waiting to ready mixes them up.
    """
    async with starting() as (server, served):
        wire = await served.connect(SAY * 700)
        await server.speaker.when("arrived", 1)
        assert server.wrapper.pending == 1
        server.module.starting.callback(None)
        received = await wire.whenReceived(b"I say: number 700")
        assert [answer.body for answer in answersIn(received)] == [
            b"I say: number %d" % n for n in range(1, 701)
        ]


@asynchronous
async def test_a_client_that_leaves_during_the_start_leaves_no_trace() -> None:
    """
    A command whose caller has given up must never run; it is counted, it makes
    room for others, and is no error.
    """
    with logged() as events:
        async with starting(limit=3) as (server, served):
            wires = []
            for n in range(3):
                wires.append(await served.connect(SAY))
                await server.speaker.when("arrived", n + 1)
            wires[1].leave()
            await server.speaker.when("ended", 1)
            assert server.wrapper.pending == 2
            assert server.wrapper.stats.cancelled == 1
            # There is room for another one.
            wires.append(await served.connect(SAY))
            await server.speaker.when("arrived", 4)
            server.module.starting.callback(None)
            for n, wire in enumerate([wires[0], wires[2], wires[3]], 1):
                await wire.whenReceived(b"I say: number %d" % n)
            assert server.module.calls == 3
            assert wires[1].received == b""
    assert errorsIn(events) == []


@asynchronous
async def test_a_pipeliner_that_leaves_during_the_start_leaves_no_trace() -> None:
    """
    What a client sends ahead of the response must not hide that it has left:
    a stop would wait for nobody.
    """
    async with starting() as (server, served):
        wire = await served.connect(SAY * 700)
        wire.finish()
        await server.speaker.when("ended", 1)
        assert server.wrapper.stats.cancelled == 1
        server.module.starting.callback(None)
        assert server.module.calls == 0
        await wire.whenClosed()
        assert await served.site.stop(30) == 0


@asynchronous
async def test_a_response_that_nobody_waits_for_any_more_is_given_up() -> None:
    """
    treq's own way to give up, a timeout or a cancellation, reaches the queue.
    """
    async with starting() as (server, served):
        asked = served.client.get(f"{served.url}/say")
        await server.speaker.when("arrived", 1)
        asked.cancel()
        asked.addErrback(lambda failure: None)
        await server.speaker.when("ended", 1)
        assert server.wrapper.pending == 0
        server.module.starting.callback(None)
        assert server.module.calls == 0


@asynchronous
async def test_a_full_queue_refuses_the_rest() -> None:
    """
    A queue without a bound takes the whole process with it; who is refused is
    told when to come back.
    """
    async with starting(limit=10) as (server, served):
        asked = [Deferred.fromCoroutine(say(served)) for _ in range(50)]
        await server.speaker.when("ended", 40)
        assert server.wrapper.pending == 10
        server.module.starting.callback(None)
        answers = await gatherResults(asked)
        served200 = [answer for answer in answers if answer[0] == 200]
        refused = [answer for answer in answers if answer[0] == 503]
        assert (len(served200), len(refused)) == (10, 40)
        assert {retryAfter for _, _, retryAfter in refused} == {"1"}
        assert all("Too many requests are waiting" in body for _, body, _ in refused)
        assert all(retryAfter is None for _, _, retryAfter in served200)
        assert server.wrapper.stats.rejected == 40


@asynchronous
async def test_who_waits_when_the_module_is_closed_is_told_so() -> None:
    """
    A held request ends with an error that says why, and not with a connection
    that is cut.
    """
    async with starting() as (server, served):
        asked = [Deferred.fromCoroutine(say(served)) for _ in range(5)]
        await server.speaker.when("arrived", 5)
        await server.wrapper.close()
        for status, body, retryAfter in await gatherResults(asked):
            assert (status, retryAfter) == (503, "1")
            assert "The service is shutting down" in body


@asynchronous
async def test_a_module_without_a_wrapper_shows_the_problem() -> None:
    """
    What tsrv is for is seen best where it is missing; and a resource works
    with a bare module as with a wrapped one.
    """
    from twisted.internet import reactor

    module = AsyncModule(reactor, 0.0)
    async with serving(Site(makeRoot(module), reactor)) as served:
        response = await served.client.get(f"{served.url}/say")
        assert response.code == 500
        assert response.headers.getRawHeaders("Content-Type") == [
            "text/plain; charset=utf-8"
        ]
        body = await response.text()
        assert body == "Error:I don't have anything to say right now"
        await module.initialize()
        status, body, _ = await say(served)
        assert status == 200
        assert body.startswith("I say: Current time is: ")


@asynchronous
async def test_the_clock_is_asked_over_http_while_it_starts() -> None:
    """
    The parts as the server has them: the real clock, wrapped, and the real
    time.
    """
    from twisted.internet import reactor

    wrapper = QueuingWrapper(AsyncModule(reactor, 0.05), reactor)
    initialized = wrapper.initialize()
    async with serving(Site(makeRoot(wrapper.proxy), reactor)) as served:
        asked = [Deferred.fromCoroutine(say(served)) for _ in range(20)]
        for status, body, _ in await gatherResults(asked):
            assert status == 200
            assert body.startswith("I say: Current time is: ")
        await initialized
    await wrapper.close()
