"""
A network with a delay: a TCP proxy that forwards all data some milliseconds later.

    python -m benchmarks.support.delayingproxy --port=8000 --milliseconds=4

The answer to each command on the standard input is the port of the proxy.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from benchmarks.support.control import serve

__all__: list[str] = []


class _Network(Factory):
    """
    Connects each client with a server.
    """

    noisy = False

    def __init__(self, reactor: Any, port: int, delay: float) -> None:
        self._reactor = reactor
        self._delay = delay
        self._server = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        self._underWay: deque[tuple[float, Callable[[], object]]] = deque()

    def buildProtocol(self, addr: object) -> _End:
        client, server = _End(self), _End(self)
        client.other, server.other = server, client
        connectProtocol(self._server, server).addErrback(lambda _: client.abort())
        return client

    def later(self, act: Callable[[], object]) -> None:
        """
        Call a function after the delay. All functions share one timer, so that a flood
        takes little longer.
        """
        self._underWay.append((self._reactor.seconds() + self._delay, act))
        if len(self._underWay) == 1:
            self._reactor.callLater(self._delay, self._arrive)

    def _arrive(self) -> None:
        now = self._reactor.seconds()
        while self._underWay and self._underWay[0][0] <= now:
            self._underWay[0][1]()
            self._underWay.popleft()
        if self._underWay:
            self._reactor.callLater(self._underWay[0][0] - now, self._arrive)


class _End(Protocol):
    """
    One of two connected ends.

    @ivar other: The other end.
    """

    transport: Any
    other: _End

    def __init__(self, network: _Network) -> None:
        self._network = network
        # Data that was written before the connection was made.
        self._early: list[bytes] = []

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.writeSequence(self._early)

    def dataReceived(self, data: bytes) -> None:
        self._network.later(partial(self.other.write, data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        isDone = reason.check(ConnectionDone) is not None
        self._network.later(self.other.close if isDone else self.other.abort)

    def write(self, data: bytes) -> None:
        if self.connected:
            self.transport.write(data)
        else:
            self._early.append(data)

    def close(self) -> None:
        if self.connected:
            self.transport.loseConnection()

    def abort(self) -> None:
        if self.connected:
            self.transport.abortConnection()


def _main() -> None:
    from twisted.internet import reactor

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--milliseconds", type=float, required=True)
    options = parser.parse_args()
    network: Any = _Network(reactor, options.port, options.milliseconds / 1e3)
    serve(reactor, network, dict)


if __name__ == "__main__":
    _main()
