"""
Servers and clients for tests: in memory, and on the loopback interface. The clients
send exactly the bytes that a test gives them.
"""

from __future__ import annotations

import warnings
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import wraps
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.address import IPv4Address
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
)
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    eventAsText,
    globalLogPublisher,
)
from twisted.logger import capturedLogs as logged
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request
from twisted.web.server import Site as TwistedSite
from zope.interface import implementer

with warnings.catch_warnings():
    # Twisted uses a deprecated name of its own.
    warnings.simplefilter("ignore", DeprecationWarning)
    from twisted.web.static import Data, File

from tsrv.resources import KNOWN_ERRORS
from tsrv.web.connections import Connections
from tsrv.web.requestid import addRequestId
from tsrv.web.responses import AsyncResource, Response, text
from tsrv.web.site import Site

__all__ = [
    "Answer",
    "Data",
    "Echo",
    "File",
    "Peer",
    "Plain",
    "Rendered",
    "Served",
    "Teller",
    "Turns",
    "Wire",
    "answersIn",
    "answersTo",
    "ask",
    "asynchronous",
    "errorsIn",
    "leaveAll",
    "logged",
    "passTime",
    "plainSite",
    "reservedPort",
    "serving",
    "textsOf",
    "written",
]

_Test = TypeVar("_Test", bound=Callable[..., Coroutine[Any, Any, None]])

_TEST_TIMEOUT_SECONDS = 180.0


def asynchronous(test: _Test) -> _Test:
    """
    Run a test on the real reactor, with a time limit.
    """

    @wraps(test)
    async def run(**fixtures: Any) -> None:
        from twisted.internet import reactor

        running = Deferred.fromCoroutine(test(**fixtures))
        await running.addTimeout(_TEST_TIMEOUT_SECONDS, cast(Any, reactor))

    return cast(_Test, pytest_twisted.ensureDeferred(run))


class Teller:
    """
    A module whose steps the test decides.

    @ivar starting: The Deferred of C{initialize()}.
    @ivar answers: The Deferreds of the calls, in order.
    """

    def __init__(self) -> None:
        self.starting: Deferred[None] = Deferred()
        self.answers: list[Deferred[str]] = []

    def initialize(self) -> Deferred[None]:
        return self.starting

    def tellMeSomething(self) -> Deferred[str]:
        answer: Deferred[str] = Deferred()
        self.answers.append(answer)
        return answer


class Rendered(AsyncResource):
    """
    A resource that answers GET with a function, at every path.
    """

    isLeaf = True

    def __init__(self, render: Callable[[Request], Any]) -> None:
        super().__init__()
        self._render = render

    def render_GET(self, request: Request) -> Any:
        return self._render(request)


class Plain(Resource):
    """
    A resource of twisted.web that answers with a function, at every path.
    """

    isLeaf = True

    def __init__(self, render: Callable[[Request], Any]) -> None:
        super().__init__()
        self._render = render

    def render(self, request: Request) -> Any:
        return self._render(request)


class Echo(AsyncResource):
    """
    A resource that echoes a request: at once, or under C{/held} when the test says so.
    Under C{/held/read} the body is released before, and under C{/held/begun} the
    response has begun.

    @ivar asked: Method, target and body of each request.
    @ivar held: Fire them to respond.
    @ivar contents: The bodies.
    @ivar whenHeld: Fires with the first held request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.held: list[Deferred[None]] = []
        self.contents: list[object] = []
        self.whenHeld: Deferred[None] = Deferred()

    def getChild(self, path: bytes, request: Request) -> Echo:
        return self

    async def render_GET(self, request: Request) -> Response:
        content = request.content
        assert content is not None
        self.contents.append(content)
        method, uri = request.method.decode(), request.uri.decode("latin-1")
        seen = f"{method} {uri} {content.read()!r}"
        self.asked.append(seen)
        if uri == "/held/read":
            content.close()
        if uri == "/held/begun":
            request.write(b"begun")
        if "/held" in uri:
            held: Deferred[None] = Deferred()
            self.held.append(held)
            if not self.whenHeld.called:
                self.whenHeld.callback(None)
            await held
        return text(seen)

    def render_POST(self, request: Request) -> Any:
        return self.render_GET(request)


def plainSite(
    resource: IResource, reactor: Any, **options: Any
) -> tuple[TwistedSite, Connections]:
    """
    @param options: Options of the connections.
    @return: A site of twisted.web, and its connections.
    """
    site = TwistedSite(resource, reactor=reactor)
    connections = Connections(reactor, **options)
    site.protocol = connections  # type: ignore[assignment]
    return site, connections


@contextmanager
def reservedPort() -> Iterator[int]:
    """
    Reserve a free TCP port of the loopback interface. A server may bind to it, but no
    other program gets it by chance.
    """
    with socket() as reserving:
        reserving.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        reserving.bind(("127.0.0.1", 0))
        yield reserving.getsockname()[1]


def errorsIn(events: Iterable[LogEvent]) -> list[LogEvent]:
    """
    @return: The warnings and errors.
    """
    return [event for event in events if event["log_level"] >= LogLevel.warn]


def textsOf(events: Iterable[LogEvent]) -> list[str]:
    """
    @return: The text of each event.
    """
    return [
        eventAsText(event, includeTimestamp=False, includeSystem=False)
        for event in events
    ]


def passTime(clock: Clock, seconds: float) -> None:
    """
    Let time pass in steps, as a reactor does.
    """
    clock.pump([0.5] * round(2 * seconds))


@dataclass(frozen=True)
class Answer:
    """
    A response as a client sees it.

    @ivar headers: The headers, by their names in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def answersIn(data: bytes, *, bodies: bool = True) -> list[Answer]:
    """
    @param data: Whole responses.
    @param bodies: Whether the responses have bodies; responses to HEAD do not.
    """
    answers = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, head
        statusLine, *lines = head.decode("ascii").split("\r\n")
        status = int(statusLine.split(" ")[1])
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            before = headers.get(name.lower())
            headers[name.lower()] = value if before is None else f"{before}, {value}"
        length = 0
        body = None
        if bodies and status >= 200:
            length = int(headers.get("content-length", 0))
            if headers.get("transfer-encoding") == "chunked":
                body, data = _dechunked(data)
        assert len(data) >= length, data
        answers.append(Answer(status, headers, data[:length] if body is None else body))
        data = data[length:]
    return answers


def _dechunked(data: bytes) -> tuple[bytes, bytes]:
    """
    @return: A chunked body, and what follows it.
    """
    body = b""
    while True:
        digits, end, data = data.partition(b"\r\n")
        assert end, digits
        length = int(digits, 16)
        chunk, data = data[:length], data[length:]
        assert data.startswith(b"\r\n"), data
        body, data = body + chunk, data[2:]
        if not chunk:
            return body, data


class Turns(Clock):
    """
    A clock whose calls the test runs turn by turn, as a reactor does.
    """

    def spend(self, seconds: float) -> None:
        """
        Let time pass during a call; calls that become due wait for the next turn.
        """
        self.rightNow += seconds

    def turn(self) -> None:
        """
        Run the calls that are due, but not the calls that they schedule.
        """
        now = self.seconds()
        calls = [each for each in self.getDelayedCalls() if each.getTime() <= now]
        for call in cast(list[DelayedCall], calls):
            if call.active():
                function, arguments, options = call.func, call.args, call.kw
                call.cancel()
                function(*arguments, **options)


class _Transport(StringTransport):
    """
    A transport in memory that closes in the next turn.

    It behaves like Twisted's transports. Unread data wait in a send buffer; a full
    buffer pauses the producer, an empty one resumes it. While the protocol has paused
    the transport, received data wait.

    @ivar isRead: Whether the client reads.
    @ivar stays: Whether the client stays when the server has closed its direction.
    @ivar unsent: The send buffer.
    """

    SEND_BUFFER_BYTES = 64 * 1024

    aborted = False
    closed = False
    writeClosed = False
    stays = False
    producer: Any = None
    protocol: Any

    def __init__(self, clock: Clock, peer: IAddress, isRead: bool = True) -> None:
        super().__init__(peerAddress=peer, lenient=True)
        self.isRead = isRead
        self.unsent = b""
        self._clock = clock
        self._producerPaused = False
        self._arriving: list[Callable[[], object]] = []

    def write(self, data: bytes) -> None:
        if self.closed or self.writeClosed or not data:
            return
        self.unsent += data
        if self.isRead:
            self.send()
            return
        isFull = len(self.unsent) > self.SEND_BUFFER_BYTES
        if isFull and self.producer is not None and self.streaming:
            self._producerPaused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def send(self, length: int | None = None) -> None:
        """
        Send the content of the buffer.

        @param length: Maximum number of bytes.
        """
        length = len(self.unsent) if length is None else length
        super().write(self.unsent[:length])
        self.unsent = self.unsent[length:]
        if not self.unsent:
            if self.producer is not None and not self.streaming:
                # It would write in this call.
                self._clock.callLater(0, self._drained)
            else:
                self._drained()

    def _seeEnd(self) -> None:
        if self.writeClosed and not self.stays:
            self._clock.callLater(0, self.close)

    def _drained(self) -> None:
        if self.closed or self.unsent:
            return
        self._seeEnd()
        if self.producer is not None and (not self.streaming or self._producerPaused):
            self._producerPaused = False
            self.producer.resumeProducing()
        elif self.disconnecting:
            self._clock.callLater(0, self.close)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None
        if self.disconnecting and not self.unsent:
            self._clock.callLater(0, self.close)

    def arrive(self, event: Callable[[], object]) -> None:
        """
        Deliver data from the client.
        """
        self._arriving.append(event)
        self._deliver()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if self._arriving:
            self._clock.callLater(0, self._deliver)

    def _deliver(self) -> None:
        while self._arriving and self.producerState == "producing":
            self._arriving.pop(0)()

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            if not self.unsent and not self._producerPaused:
                self._clock.callLater(0, self.close)

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True
        self._clock.callLater(0, self.close)

    def loseWriteConnection(self) -> None:
        self.writeClosed = True
        if not self.unsent:
            self._seeEnd()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._arriving.clear()
            if self.producer is not None:
                self.producer.stopProducing()
                self.producer = None
            self.protocol.connectionLost(Failure(ConnectionDone()))


_peers: WeakKeyDictionary[Clock, list[Peer]] = WeakKeyDictionary()


def leaveAll(clock: Clock) -> None:
    """
    Disconnect all clients of a test.
    """
    for peer in _peers.get(clock, [])[:]:
        peer.leave()


class Peer:
    """
    The client's end of a connection in memory, on a site whose clock the test
    controls.

    @ivar channel: The server's end.
    @ivar transport: The transport between them.
    """

    def __init__(
        self,
        site: TwistedSite,
        clock: Clock,
        host: str = "192.0.2.1",
        *,
        isReading: bool = True,
        stays: bool = False,
    ) -> None:
        """
        @param isReading: Whether the client reads everything; otherwise, it reads only
            when L{read} is called.
        @param stays: Whether the client stays when the server has closed its direction
            of the connection.
        """
        self._clock = clock
        _peers.setdefault(clock, []).append(self)
        address = IPv4Address("TCP", host, 54321)
        self.channel: Any = site.buildProtocol(address)
        self.transport = _Transport(clock, address, isReading)
        self.transport.protocol = self.channel
        self.transport.stays = stays
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """
        Send data, and give requests behind the first one their turn.
        """
        self.arrive(data)
        self._clock.advance(0)

    def arrive(self, data: bytes) -> None:
        """
        Send data, which arrive in this turn.
        """
        if data:
            self.transport.arrive(lambda: self.channel.dataReceived(data))

    def read(self, length: int | None = None) -> None:
        """
        Read the data that wait for a client that does not read, or a part of them.
        """
        self.transport.send(length)

    def finish(self) -> None:
        """
        Disconnect. The server notices this when it has received everything.
        """
        self.transport.arrive(self.transport.close)

    def leave(self) -> None:
        """
        Disconnect, and let the server notice it at once.
        """
        self.transport.close()
        peers = _peers[self._clock]
        if self in peers:
            peers.remove(self)

    @property
    def closed(self) -> bool:
        self._clock.advance(0)
        return self.transport.closed

    @property
    def received(self) -> bytes:
        """
        The received bytes, after the calls that are due have run.
        """
        self._clock.advance(0)
        return cast(bytes, self.transport.value())

    @property
    def answers(self) -> list[Answer]:
        return answersIn(self.received)


def answersTo(resource: IResource, data: bytes, **options: Any) -> list[Answer]:
    """
    Send requests to a site in memory, and disconnect.

    @param options: Options of the site.
    """
    clock = Clock()
    peer = Peer(Site(resource, clock, **options), clock)
    peer.send(data)
    peer.leave()
    return answersIn(peer.received, bodies=not data.startswith(b"HEAD"))


def ask(
    resource: IResource,
    path: str = "/",
    method: str = "GET",
    headers: Mapping[str, str | bytes | list[str]] | None = None,
    data: bytes | None = None,
) -> Answer:
    """
    Make one request to a resource in memory.
    """
    lines = [f"{method} {path} HTTP/1.1".encode()]
    fields: dict[str, Any] = {"Host": "test", **(headers or {})}
    if data is not None:
        fields["Content-Length"] = str(len(data))
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            encoded = value if isinstance(value, bytes) else value.encode()
            lines.append(name.encode() + b": " + encoded)
    raw = b"\r\n".join([*lines, b"", data or b""])
    options: Any = {"maxBodyBytes": 2**20, "knownErrors": KNOWN_ERRORS}
    (answer,) = answersTo(resource, raw, **options)
    return answer


class Wire(Protocol):
    """
    The client's end of a real connection.

    @ivar received: The received bytes.
    @ivar closed: Whether the connection is closed.
    """

    def __init__(self) -> None:
        self.received = b""
        self.closed = False
        self._waiting: list[tuple[Callable[[], bool], Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._fireWaiting()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self._fireWaiting()

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def leave(self) -> None:
        if not self.closed:
            cast(Any, self.transport).abortConnection()

    def finish(self) -> None:
        """
        Close the connection when everything is sent.
        """
        cast(Any, self.transport).loseConnection()

    def whenReceived(self, expected: bytes) -> Deferred[bytes]:
        """
        @return: A Deferred that fires with the received bytes, and fails if the
            connection is closed first.
        """
        return self._when(lambda: expected in self.received)

    def whenClosed(self) -> Deferred[bytes]:
        return self._when(lambda: self.closed)

    def _when(self, condition: Callable[[], bool]) -> Deferred[bytes]:
        deferred: Deferred[bytes] = Deferred()
        self._waiting.append((condition, deferred))
        self._fireWaiting()
        return deferred

    def _fireWaiting(self) -> None:
        for each in list(self._waiting):
            condition, deferred = each
            if condition():
                self._waiting.remove(each)
                deferred.callback(self.received)
            elif self.closed:
                self._waiting.remove(each)
                deferred.errback(AssertionError(f"closed after {self.received!r}"))


@dataclass
class Served:
    """
    A site that listens on the loopback interface.
    """

    site: Any
    port: int
    wires: list[Wire]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self, *data: bytes) -> Wire:
        from twisted.internet import reactor

        endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", self.port)
        wire: Wire = await connectProtocol(endpoint, Wire())
        self.wires.append(wire)
        for each in data:
            wire.send(each)
        return wire


@asynccontextmanager
async def serving(site: TwistedSite, port: int = 0) -> AsyncIterator[Served]:
    """
    Listen on a port of the loopback interface, by default on any free one; close all
    connections at the end.

    @param site: A site whose protocol is L{Connections}, such as ours.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    endpoint = TCP4ServerEndpoint(reactor, port, backlog=1024, interface="127.0.0.1")
    listening = await endpoint.listen(site)
    served = Served(site, listening.getHost().port, [])
    try:
        yield served
    finally:
        await listening.stopListening()
        closed = [wire.whenClosed() for wire in served.wires]
        for wire in served.wires:
            wire.leave()
        await gatherResults(closed)
        connections = cast(Any, site.protocol)
        connections.abort()
        await connections.stop(60)
        # Aborted transports end in the next turn.
        await deferLater(reactor, 0)


@contextmanager
def written() -> Iterator[list[str]]:
    """
    The warnings and errors of each request, as the server writes them.
    """
    lines: list[str] = []

    @implementer(ILogObserver)
    def write(event: LogEvent) -> None:
        addRequestId(event)
        if event["log_level"] >= LogLevel.warn:
            lines.append(eventAsText(event, includeTimestamp=False))

    globalLogPublisher.addObserver(write)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(write)
