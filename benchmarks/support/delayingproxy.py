"""
A network with a delay: a TCP proxy that hands everything on some milliseconds later.

    python -m benchmarks.support.delayingproxy --port=8000 --milliseconds=4

Each command on the standard input is answered with the port of the proxy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from benchmarks.support.control import serve

__all__: list[str] = []


class _End(Protocol):
    """
    One of two connected ends.

    @ivar other: The transport of the other end.
    """

    transport: Any

    def __init__(self, reactor: Any, delay: float) -> None:
        self.other: Deferred[Any] = Deferred()
        self._reactor = reactor
        self._delay = delay

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self._later(lambda transport: transport.write(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ConnectionDone):
            self._later(lambda transport: transport.loseConnection())
        else:
            self._later(lambda transport: transport.abortConnection())

    def _later(self, act: Callable[[Any], object]) -> None:
        def tell(transport: Any) -> Any:
            act(transport)
            return transport

        self._reactor.callLater(self._delay, self.other.addCallback, tell)


class _Network(Factory):
    """
    Connects each client with a server.
    """

    noisy = False

    def __init__(self, reactor: Any, port: int, delay: float) -> None:
        self._reactor = reactor
        self._delay = delay
        self._server = HostnameEndpoint(reactor, "127.0.0.1", port)

    def buildProtocol(self, addr: object) -> _End:
        client, server = (_End(self._reactor, self._delay) for _ in range(2))

        def connected(_: object) -> None:
            client.other.callback(server.transport)
            server.other.callback(client.transport)

        connectProtocol(self._server, server).addCallbacks(
            connected, lambda _: client.transport.abortConnection()
        )
        return client


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
