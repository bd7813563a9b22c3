"""
Networks that fall silent, break or refuse connections when a test says so, and servers
that never answer.
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

__all__ = ["Relay", "blackHole", "relaying", "unanswered"]


@implementer(IPushProducer)
class _End(Protocol):
    """
    One of the relay's two connections for a client.

    @ivar closed: Fires when the connection is closed.
    """

    transport: Any

    def __init__(self, relay: Relay, isClient: bool) -> None:
        self.isClient = isClient
        self.isOpen = False
        self.closed: Deferred[None] = Deferred()
        self._relay = relay
        self._other: _End | None = None
        self._isFull = False
        self._received: list[bytes] = []

    def connectionMade(self) -> None:
        self.isOpen = True
        self.transport.setTcpNoDelay(True)
        self._relay.opened(self)

    def dataReceived(self, data: bytes) -> None:
        self._received.append(data)
        self.update()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.isOpen = False
        self._relay.lost(self)
        if self._other is not None:
            self._other.update()
        self.closed.callback(None)

    def pauseProducing(self) -> None:
        self._isFull = True
        self.update()

    def resumeProducing(self) -> None:
        self._isFull = False
        self.update()

    def stopProducing(self) -> None:
        pass

    def pair(self, other: _End) -> None:
        """
        Forward data to the other end.
        """
        self._other = other
        if other.isOpen:
            other.transport.registerProducer(self, True)
        self.update()

    def update(self) -> None:
        """
        Apply the state of the network.
        """
        if self._relay.silent or self._other is None:
            self._read(False)
            return
        self.forward()
        self._other.forward()
        self._read(not self._isFull)
        if not self._other.isOpen and self.isOpen:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def forward(self) -> None:
        """
        Send received data to the other end, if that is open.
        """
        if self._received and self._other is not None and self._other.isOpen:
            received, self._received = self._received, []
            self._other.transport.write(b"".join(received))

    def reset(self) -> None:
        """
        Close the connection at once, with an RST.
        """
        if self.isOpen:
            self.transport.abortConnection()

    def _read(self, reading: bool) -> None:
        if self.isOpen:
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()


class Relay:
    """
    A network between clients and a server on the loopback interface.

    While the network is silent nothing passes in either direction, not even the end of
    a connection. New connections are accepted, but do not reach the server. The system
    acknowledges what it receives, so TCP's keep-alive does not notice.

    @ivar target: The port of the server.
    @ivar port: The port for clients.
    @ivar silent: Whether it is silent.
    """

    def __init__(self, target: int, port: int) -> None:
        self.target = target
        self.port = port
        self.silent = False
        self._listening: Any = None
        self._accepted = 0
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self._ends: set[_End] = set()
        self._unconnected: set[_End] = set()
        self._connecting: set[Deferred[Any]] = set()

    @property
    def connections(self) -> int:
        """
        The number of connected clients.
        """
        return sum(end.isClient for end in self._ends)

    def whenAccepted(self, count: int) -> Deferred[None]:
        """
        @return: A Deferred that fires when this many connections have been accepted.
        """
        deferred: Deferred[None] = Deferred()
        self._waiting.append((count, deferred))
        self._fire()
        return deferred

    def _fire(self) -> None:
        for entry in list(self._waiting):
            if entry[0] <= self._accepted:
                self._waiting.remove(entry)
                entry[1].callback(None)

    async def accept(self) -> None:
        """
        Accept connections, on the same port as before.
        """
        from twisted.internet import reactor

        factory: Any = Factory.forProtocol(cast(Any, lambda: _End(self, True)))
        factory.noisy = False
        endpoint = TCP4ServerEndpoint(
            cast(Any, reactor), self.port, backlog=1024, interface="127.0.0.1"
        )
        self._listening = await endpoint.listen(factory)

    async def refuse(self) -> None:
        """
        Refuse new connections; open connections stay open.
        """
        if self._listening is not None:
            listening, self._listening = self._listening, None
            await listening.stopListening()

    def silence(self) -> None:
        """
        Let nothing pass.
        """
        self.silent = True
        self._update()

    def resume(self) -> None:
        """
        Let everything pass, including the data that were sent in the meantime.
        """
        self.silent = False
        self._update()
        unconnected, self._unconnected = self._unconnected, set()
        for end in unconnected:
            self._connect(end)

    async def cut(self) -> None:
        """
        Reset all connections, on both sides.
        """
        for connecting in list(self._connecting):
            connecting.cancel()
        ends = list(self._ends)
        for end in ends:
            end.reset()
        await gatherResults([end.closed for end in ends])

    def opened(self, end: _End) -> None:
        """
        Register a new connection.
        """
        self._ends.add(end)
        if not end.isClient:
            return
        end.update()
        if self.silent:
            self._unconnected.add(end)
        else:
            self._connect(end)
        self._accepted += 1
        self._fire()

    def lost(self, end: _End) -> None:
        """
        Forget a connection.
        """
        self._ends.discard(end)
        self._unconnected.discard(end)

    def _update(self) -> None:
        for end in list(self._ends):
            end.update()

    def _connect(self, end: _End) -> None:
        from twisted.internet import reactor

        endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", self.target)
        far = _End(self, False)
        connecting = connectProtocol(endpoint, far)
        self._connecting.add(connecting)

        def finished(result: Any) -> None:
            self._connecting.discard(connecting)
            if isinstance(result, Failure):
                end.reset()
            else:
                end.pair(far)
                far.pair(end)

        connecting.addBoth(finished)


@asynccontextmanager
async def relaying(target: int) -> AsyncIterator[Relay]:
    """
    Put a network in front of a server.

    @param target: The port of the server.
    """
    from twisted.internet import reactor

    with reservedPort() as port:
        relay = Relay(target, port)
        await relay.accept()
        try:
            yield relay
        finally:
            await relay.refuse()
            await relay.cut()
            # Give the other ends time to notice.
            await deferLater(cast(Any, reactor), 0, lambda: None)


@asynccontextmanager
async def blackHole() -> AsyncIterator[Relay]:
    """
    A server that accepts connections, and neither reads nor writes.
    """
    async with relaying(0) as hole:
        hole.silence()
        yield hole


@contextmanager
def unanswered() -> Iterator[int]:
    """
    @return: A port on which a connection is neither made nor refused, as if packets
        were dropped, because its queue is full.
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
