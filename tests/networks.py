"""
What the tests of networks need: one that falls silent, breaks or refuses when
the test says so, and servers that never say a word.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from socket import socket
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
)
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from .websupport import reservedPort

__all__ = ["BlackHole", "Relay", "blackHole", "relaying", "unanswered"]


class _Counts:
    """
    Who waits for a number to be reached.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def whenAccepted(self, times: int) -> Deferred[None]:
        """
        @return: A Deferred that fires when so many connections have been
            accepted, from the beginning on.
        """
        deferred: Deferred[None] = Deferred(lambda _: self._waiting.remove(entry))
        entry = (times, deferred)
        self._waiting.append(entry)
        self._look()
        return deferred

    def _count(self) -> None:
        self.accepted += 1
        self._look()

    def _look(self) -> None:
        for entry in list(self._waiting):
            times, deferred = entry
            if times <= self.accepted:
                self._waiting.remove(entry)
                deferred.callback(None)


@implementer(IPushProducer)
class _End(Protocol):
    """
    What the relay holds of a connection: one of the two ends.

    @ivar other: The other one, when there is one.
    @ivar closed: Fires when it is closed.
    """

    transport: Any

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._full = False
        self._held: list[bytes] = []
        self.open = False
        self.other: _End | None = None
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.open = True
        self.transport.setTcpNoDelay(True)
        self._relay._opened(self)

    def dataReceived(self, data: bytes) -> None:
        self._held.append(data)
        self.look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.open = False
        self._relay._closed(self)
        if self.other is not None:
            self.other.look()
        self.closed.callback(None)

    def pauseProducing(self) -> None:
        """
        The other end cannot send as fast as this one receives.
        """
        self._full = True
        self.look()

    def resumeProducing(self) -> None:
        """
        The other end has sent all.
        """
        self._full = False
        self.look()

    def stopProducing(self) -> None:
        """
        The other end is closed: L{look} takes care of it.
        """

    def pair(self, other: _End) -> None:
        """
        Forward to another end.
        """
        self.other = other
        if other.open:
            other.transport.registerProducer(self, True)
        self.look()

    def look(self) -> None:
        """
        Do what there is to do in the present state of the network.
        """
        if self._relay.silent or self.other is None:
            self._read(False)
            return
        self._forward()
        self.other._forward()
        self._read(not self._full)
        if not self.other.open:
            self.finish()

    def finish(self) -> None:
        """
        Close it when all has been sent.
        """
        if self.open:
            # It would be waited for.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def reset(self) -> None:
        """
        Close it at once; its peer receives an RST.
        """
        if self.open:
            self.transport.abortConnection()

    def _forward(self) -> None:
        if self._held and self.other is not None and self.other.open:
            held, self._held = self._held, []
            self.other.transport.write(b"".join(held))

    def _read(self, reading: bool) -> None:
        if self.open:
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()


class Relay(_Counts):
    """
    A network between clients and a server on the loopback interface.

    While it is silent nothing passes in either direction, not even the end of a
    connection, and connections stay as they are; new ones are accepted, but do
    not reach the server. The system goes on to acknowledge what is received, as
    far as its buffers go: only who waits for an answer can notice it, not the
    keep-alive of TCP.

    @ivar port: The port that clients connect to. It stays its own.
    @ivar target: That of the server; it may be changed for new connections.
    @ivar accepted: How many connections have been accepted.
    @ivar silent: Whether it is silent.
    """

    def __init__(self, port: int, target: int) -> None:
        super().__init__()
        self.port = port
        self.target = target
        self.silent = False
        self._ends: set[_End] = set()
        self._waiters: set[_End] = set()
        self._connecting: set[Deferred[Any]] = set()
        self._listening: Any = None

    @property
    def connections(self) -> int:
        """
        How many clients are connected, as far as it can tell.
        """
        return sum(not isinstance(end, _Far) for end in self._ends)

    async def accept(self) -> None:
        """
        Accept connections. Does nothing when it does.
        """
        if self._listening is None:
            factory: Any = Factory.forProtocol(cast(Any, lambda: _End(self)))
            factory.noisy = False
            self._listening = await _listen(self.port, factory)

    async def refuse(self) -> None:
        """
        Refuse new connections; those that are there stay. Does nothing when it
        does.
        """
        if self._listening is not None:
            listening, self._listening = self._listening, None
            await listening.stopListening()

    def silence(self) -> None:
        """
        Let nothing pass.
        """
        self.silent = True
        self._lookAll()

    def resume(self) -> None:
        """
        Let everything pass, also what was sent in the meantime.
        """
        self.silent = False
        self._lookAll()
        waiters, self._waiters = self._waiters, set()
        for end in waiters:
            self._reach(end)

    async def cut(self, *, reset: bool = True) -> None:
        """
        Close all connections that there are, on both sides.

        @param reset: Whether at once, by RST, rather than by FIN when all has
            been sent.
        """
        for connecting in list(self._connecting):
            connecting.cancel()
        ends = list(self._ends)
        for end in ends:
            if reset:
                end.reset()
            else:
                end.finish()
        await gatherResults([end.closed for end in ends])

    def _lookAll(self) -> None:
        for end in list(self._ends):
            end.look()

    def _opened(self, end: _End) -> None:
        self._ends.add(end)
        if isinstance(end, _Far):
            return
        end.look()
        if self.silent:
            self._waiters.add(end)
        else:
            self._reach(end)
        self._count()

    def _closed(self, end: _End) -> None:
        self._ends.discard(end)
        self._waiters.discard(end)

    def _reach(self, end: _End) -> None:
        """
        Connect to the server for a client.
        """
        from twisted.internet import reactor

        endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", self.target)
        far = _Far(self)
        connecting = connectProtocol(endpoint, far)
        self._connecting.add(connecting)

        def connected(_: object) -> None:
            self._connecting.discard(connecting)
            end.pair(far)
            far.pair(end)

        def failed(_: Failure) -> None:
            self._connecting.discard(connecting)
            end.reset()

        connecting.addCallbacks(connected, failed)


class _Far(_End):
    """
    The end at the server.
    """


class _Mute(Protocol):
    """
    A connection on which nothing is read or written.
    """

    transport: Any

    def __init__(self, hole: BlackHole) -> None:
        self._hole = hole
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.pauseProducing()
        self._hole._opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(None)


class BlackHole(_Counts):
    """
    A server that accepts connections, and neither reads nor writes. It does not
    notice, then, that a client has gone.

    @ivar port: Its port.
    @ivar accepted: How many connections it has accepted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        self._mutes: list[_Mute] = []

    def _opened(self, mute: _Mute) -> None:
        self._mutes.append(mute)
        self._count()

    async def _cut(self) -> None:
        for mute in self._mutes:
            mute.transport.abortConnection()
        await gatherResults([mute.closed for mute in self._mutes])


async def _listen(port: int, factory: Any) -> Any:
    from twisted.internet import reactor

    endpoint = TCP4ServerEndpoint(
        cast(Any, reactor), port, backlog=1024, interface="127.0.0.1"
    )
    return await endpoint.listen(factory)


async def _turn() -> None:
    """
    Let the transports of connections that were reset end.
    """
    from twisted.internet import reactor

    await deferLater(cast(Any, reactor), 0, lambda: None)


@asynccontextmanager
async def relaying(target: int) -> AsyncIterator[Relay]:
    """
    Put a network in front of a server; no connection is left behind.

    @param target: The port of the server.
    """
    with reservedPort() as port:
        relay = Relay(port, target)
        await relay.accept()
        try:
            yield relay
        finally:
            await relay.refuse()
            await relay.cut()
            await _turn()


@asynccontextmanager
async def blackHole() -> AsyncIterator[BlackHole]:
    """
    Listen on a free port, and never answer; no connection is left behind.
    """
    hole = BlackHole()
    factory: Any = Factory.forProtocol(cast(Any, lambda: _Mute(hole)))
    factory.noisy = False
    listening = await _listen(0, factory)
    hole.port = listening.getHost().port
    try:
        yield hole
    finally:
        await listening.stopListening()
        await hole._cut()
        await _turn()


@contextmanager
def unanswered() -> Iterator[int]:
    """
    @return: A port to which a connection is neither made nor refused, as if its
        packets were dropped: its queue is full.
    """
    with ExitStack() as stack:
        listening = stack.enter_context(socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
