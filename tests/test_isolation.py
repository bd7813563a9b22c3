"""
Timers, connections and attempts that a request causes do not carry its id, under every
reactor.
"""

from __future__ import annotations

import sys
from asyncio import new_event_loop
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from tsrv import QueuingWrapper
from tsrv.server.isolation import isolateCallbacks
from tsrv.web.requestid import currentRequestId, withRequestId

from .processes import run
from .support import Trouble, resultOf


class Noting(Protocol):
    """
    One end of a connection, which records the id in its context.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    transport: Any

    def connectionMade(self) -> None:
        self._note("connected")

    def dataReceived(self, data: bytes) -> None:
        self._note("received")

    def resumeProducing(self) -> None:
        self._note("resumed")
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def pauseProducing(self) -> None: ...

    def stopProducing(self) -> None: ...

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._note("disconnected")


@pytest.fixture(params=["epoll", "asyncio"])
def reactor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """
    A reactor of its own for this test.
    """
    if request.param == "epoll":
        yield EPollReactor()
        return
    loop = new_event_loop()
    yield AsyncioSelectorReactor(loop)
    loop.close()


# A reactor has no public way to close the sockets that wake it up.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"
)
def test_timers_and_connections_of_a_request_have_no_id(reactor: Any) -> None:
    """
    A timer and a connection that a request makes run without its id, and so do timers
    of others. A coroutine that waits for a timer keeps the id.
    """
    ids: dict[str, set[str | None]] = {}

    def note(name: str) -> None:
        ids.setdefault(name, set()).add(currentRequestId.get())
        if name == "end":
            reactor.stop()

    async def handle() -> None:
        await deferLater(reactor, 0.01)
        note("coroutine")

    async def begin() -> None:
        postponed = reactor.callLater(60, note, "postponed")
        servers: list[Noting] = []

        def accept() -> Noting:
            servers.append(Noting(note))
            return servers[-1]

        factory = Factory.forProtocol(accept)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        # From here on a socket's callback is running, as in a real request.
        client = await connectProtocol(endpoint, Noting(note))
        with withRequestId("mine"):
            note("request")
            Deferred.fromCoroutine(handle())
            reactor.callLater(0, note, "timer")
            postponed.reset(0.02)
            connectProtocol(endpoint, Noting(note))
            # Both ends live in this process.
            server = servers[0].transport
            server.pauseProducing()
            server.resumeProducing()
            client.transport.registerProducer(client, True)
            client.transport.write(b"x" * 1_000_000)
        reactor.callLater(0.2, note, "end")

    isolateCallbacks(reactor)
    reactor.callLater(0.01, lambda: Deferred.fromCoroutine(begin()))
    reactor.callLater(10, reactor.stop)
    reactor.run(installSignalHandlers=False)
    assert ids.pop("request") == ids.pop("coroutine") == {"mine"}
    assert len(ids) == 7
    assert set().union(*ids.values()) == {None}


PROGRAM = """
import asyncio
from twisted.internet.asyncioreactor import install
install()
from twisted.internet import reactor
from tsrv.server.process import prepareProcess
from tsrv.web.requestid import currentRequestId, withRequestId

def begin():
    with withRequestId("mine"):
        reactor.callLater(0, end)

def end():
    print("id:", currentRequestId.get())
    reactor.stop()

def beginInCallback():
    asyncio.get_running_loop().call_soon(begin)

prepareProcess(reactor)
reactor.callWhenRunning(reactor.callLater, 0.01, beginInCallback)
reactor.run()
"""


def test_a_server_isolates_the_callbacks_of_its_process() -> None:
    """
    A server that owns its process keeps the ids out of asyncio's callbacks.
    """
    assert "id: None" in run(sys.executable, "-c", PROGRAM)


class Starting:
    """
    A module that records the id in the context of its initialisation.
    """

    def __init__(self) -> None:
        self.ids: list[str | None] = []

    async def initialize(self) -> None:
        self.ids.append(currentRequestId.get())

    def whoAsks(self) -> str | None:
        return currentRequestId.get()


def test_attempts_that_a_request_causes_have_no_id(clock: Clock) -> None:
    """
    An attempt belongs to all callers, so it has no id, whether a request begins it,
    makes the first call, or resets the module. Each call has the id of its request.
    """
    eager, lazy = Starting(), Starting()
    wrapper = QueuingWrapper(eager, clock)
    first = QueuingWrapper(lazy, clock, lazy=True)
    with withRequestId("mine"):
        early = resultOf(maybeDeferred(wrapper.proxy.whoAsks))
        wrapper.initialize()
        called = resultOf(maybeDeferred(first.proxy.whoAsks))
        clock.pump([0, 0])
        wrapper.reset(Trouble("planned"))
    clock.pump([0, 0])
    assert (early.value, called.value) == ("mine", "mine")
    assert eager.ids == [None, None]
    assert lazy.ids == [None]
