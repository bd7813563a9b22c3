"""
A client for a server that comes up late, goes away, and comes back.

C{EchoClient} is an ordinary Twisted client. It knows nothing of tsrv: options of the
wrapper name its methods that connect, close, and report a lost connection. Run it
with C{python examples/late_echo.py}.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater, react
from twisted.protocols.basic import LineReceiver
from twisted.protocols.wire import Echo
from twisted.python.failure import Failure

from tsrv import QueuingWrapper


class EchoProtocol(LineReceiver):
    """
    Sends lines, and waits for each to come back.
    """

    def __init__(self) -> None:
        self._waiting: list[Deferred[str]] = []
        self.lost: Deferred[None] = Deferred()

    def ask(self, text: str) -> Deferred[str]:
        """
        Send a line.
        """
        answer: Deferred[str] = Deferred()
        self._waiting.append(answer)
        self.sendLine(text.encode())
        return answer

    def lineReceived(self, line: bytes) -> None:
        """
        Pass the line to the first call that waits.
        """
        self._waiting.pop(0).callback(line.decode())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Report the loss first, and then fail the calls that wait.
        """
        self.lost.errback(reason)
        for each in self._waiting:
            each.errback(reason)


class EchoClient:
    """
    An ordinary client, as any package may provide it.
    """

    def __init__(self, endpoint: TCP4ClientEndpoint) -> None:
        self._endpoint = endpoint
        self._protocol = EchoProtocol()

    async def connect(self) -> None:
        """
        Connect to the server.
        """
        self._protocol = EchoProtocol()
        await connectProtocol(self._endpoint, self._protocol)

    def disconnected(self) -> Deferred[None]:
        """
        Return a Deferred that fires when the connection is lost.
        """
        return self._protocol.lost

    def disconnect(self) -> None:
        """
        Disconnect from the server.
        """
        if self._protocol.transport is not None:
            self._protocol.transport.loseConnection()

    def echo(self, text: str) -> Deferred[str]:
        """
        Ask the server to repeat a text.
        """
        return self._protocol.ask(text)


async def main(reactor: Any) -> None:
    """
    Call at once, and start the server later.
    """
    serverEndpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    # Find a free port, and release it.
    port: Any = await serverEndpoint.listen(Factory.forProtocol(Echo))
    number = port.getHost().port
    await port.stopListening()

    client = EchoClient(TCP4ClientEndpoint(reactor, "127.0.0.1", number))
    wrapper = QueuingWrapper(
        client,
        reactor,
        initialize=client.connect,
        whenLost=client.disconnected,
        close=client.disconnect,
        replay=["echo"],
    )
    wrapper.initialize()
    answers = [wrapper.proxy.echo(f"line {count}") for count in range(3)]
    print("asked, and nobody listens:", wrapper)

    await deferLater(reactor, 0.5)
    serverEndpoint = TCP4ServerEndpoint(reactor, number, interface="127.0.0.1")
    port = await serverEndpoint.listen(Factory.forProtocol(Echo))
    print("answered:", await gatherResults(answers))

    client.disconnect()
    await deferLater(reactor, 0.1)
    print("the connection is lost:", wrapper)
    print("answered:", await wrapper.proxy.echo("line 3"))

    await wrapper.close()
    await port.stopListening()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
