"""
The promise over HTTP: requests that arrive too early wait, and are answered in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import Clock

from tsrv import AsyncModule, Closed, QueuingWrapper, State
from tsrv.resources import makeRoot
from tsrv.web.site import Site

from .websupport import Peer, answersIn, asynchronous, errorsIn, logged, serving

SAY = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"


class Numbered:
    """
    A module that starts when the test says so, and whose result is a number that grows
    with every call.
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
    A site in memory whose module is being initialised, and its clients.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.module = Numbered()
        self.wrapper = QueuingWrapper(self.module, clock, **options)
        self.site = Site(makeRoot(self.wrapper.proxy), clock)
        self.wrapper.initialize().addErrback(lambda failure: failure.trap(Closed))
        self.peers: list[Peer] = []

    def ask(self, count: int) -> None:
        """
        Make requests, each on a new connection.
        """
        for _ in range(count):
            self.peers.append(Peer(self.site, self.clock))
            self.peers[-1].send(SAY)

    def finishStart(self) -> None:
        self.module.starting.callback(None)
        self.clock.pump([0] * 10)


@pytest.fixture
def starting(clock: Clock) -> Iterator[Callable[..., Starting]]:
    """
    Make sites; nothing is logged as an error.
    """
    started: list[Starting] = []

    def start(**options: Any) -> Starting:
        started.append(Starting(clock, **options))
        return started[-1]

    with logged() as events:
        yield start
        for each in started:
            for peer in each.peers:
                peer.leave()
            each.wrapper.close()
            clock.advance(0)
    assert errorsIn(events) == []


@asynchronous
async def test_400_requests_during_the_start_are_all_answered() -> None:
    """
    On real connections, all requests that arrive before the module is ready wait, and
    each is carried out once.
    """
    from twisted.internet import reactor

    class Counting:
        calls = 0
        allArrived: Deferred[None] = Deferred()

        def tellMeSomething(self) -> Deferred[str]:
            answer: Deferred[str] = wrapper.proxy.tellMeSomething()
            self.calls += 1
            if self.calls == 400:
                self.allArrived.callback(None)
            return answer

    module, counting = Numbered(), Counting()
    wrapper = QueuingWrapper(module, reactor)
    initialized = wrapper.initialize()
    with logged() as events:
        async with serving(Site(makeRoot(counting), reactor)) as served:
            wires = [await served.connect(SAY) for _ in range(400)]
            await counting.allArrived
            assert (wrapper.pending, module.calls) == (400, 0)
            module.starting.callback(None)
            received = await gatherResults(
                [wire.whenReceived(b"number") for wire in wires]
            )
        await initialized
        await wrapper.close()
    answers = [answer for each in received for answer in answersIn(each)]
    assert [answer.status for answer in answers] == [200] * 400
    assert {answer.body for answer in answers} == {
        b"I say: number %d" % n for n in range(1, 401)
    }
    assert errorsIn(events) == []


def test_waiting_requests_are_answered_in_the_order_of_their_arrival(
    starting: Any,
) -> None:
    """
    On one connection, the first request waits in the queue, and the others wait behind
    it in the connection.
    """
    server = starting()
    server.ask(50)
    server.peers[0].send(SAY * 700)
    assert (server.wrapper.pending, server.module.calls) == (50, 0)
    server.finishStart()
    assert (server.wrapper.state, server.module.calls) == (State.READY, 750)
    first, *others = [
        [int(answer.body.split()[-1]) for answer in peer.answers]
        for peer in server.peers
    ]
    assert len(first) == 701
    assert first == sorted(first)
    assert others == sorted(others)


def test_the_call_of_a_client_that_leaves_is_never_started(starting: Any) -> None:
    """
    The call of a client that disconnects is never started; it counts as cancelled, and
    makes room in the queue.
    """
    server = starting(limit=3)
    server.ask(3)
    left = server.peers.pop(1)
    left.leave()
    assert (server.wrapper.pending, server.wrapper.stats.cancelled) == (2, 1)
    server.ask(1)
    server.finishStart()
    bodies = [answer.body for peer in server.peers for answer in peer.answers]
    assert bodies == [b"I say: number %d" % n for n in (1, 2, 3)]
    assert left.received == b""


def test_a_full_queue_refuses_the_rest(starting: Any) -> None:
    """
    If the queue is full, a client is refused, and learns when to retry.
    """
    server = starting(limit=10)
    server.ask(50)
    assert (server.wrapper.pending, server.wrapper.stats.rejected) == (10, 40)
    server.finishStart()
    answers = [answer for peer in server.peers for answer in peer.answers]
    assert [answer.status for answer in answers] == [200] * 10 + [503] * 40
    for answer in answers[10:]:
        assert answer.headers["retry-after"] == "1"
        assert b"Too many requests are waiting" in answer.body


def test_closing_the_module_answers_the_waiting_requests(starting: Any) -> None:
    """
    A waiting request is answered with the reason, and its connection is not simply
    closed.
    """
    server = starting()
    server.ask(5)
    server.wrapper.close()
    for peer in server.peers:
        (answer,) = peer.answers
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert b"The service is shutting down" in answer.body


def test_a_module_without_a_wrapper_shows_the_problem(clock: Clock) -> None:
    """
    A resource works with a bare module, too, and then fails before the module is ready.
    """
    module = AsyncModule(clock, 0.0)
    root = makeRoot(module)
    peer = Peer(Site(root, clock), clock)
    peer.send(SAY)
    module.initialize()
    clock.advance(0)
    peer.send(SAY)
    clock.advance(0)
    early, late = peer.answers
    for answer in (early, late):
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert early.status == 500
    assert early.body == b"Error:I don't have anything to say right now"
    assert late.status == 200
    assert late.body.startswith(b"I say: Current time is: ")
    peer.leave()
