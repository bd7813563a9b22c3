"""
A site in memory for the tests of connections, and the requests of its clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request

from tsrv.web.connections import Connections
from tsrv.web.site import Site

from .websupport import Echo, Peer, Plain, plainSite

__all__ = [
    "GET",
    "KIB",
    "REQUEST_SECONDS",
    "Echoing",
    "Server",
    "bodies",
    "chunk",
    "chunked",
    "get",
    "post",
    "pump",
    "request",
    "secondsUntil",
    "statuses",
]

KIB = 1024

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

REQUEST_SECONDS = 30
"""
Time for a request to arrive, by default.
"""


def get(target: str = "/", *lines: str, version: str = "1.1") -> bytes:
    """
    @return: A request without a body.
    """
    return request("GET", target, *lines, version=version)


def request(
    method: str, target: str = "/", *lines: str, version: str = "1.1", body: bytes = b""
) -> bytes:
    """
    @return: A request.
    """
    host = [] if version == "1.0" else ["Host: test"]
    head = [f"{method} {target} HTTP/{version}", *host, *lines, "", ""]
    return "\r\n".join(head).encode() + body


def post(length: int, target: str = "/") -> bytes:
    """
    @return: A request, up to its body.
    """
    return request("POST", target, f"Content-Length: {length}")


def chunked(target: str = "/") -> bytes:
    """
    @return: The head of a request with a chunked body.
    """
    return request("POST", target, "Transfer-Encoding: chunked")


def chunk(data: bytes = b"") -> bytes:
    """
    @return: A chunk; an empty one is the last.
    """
    return b"%x\r\n%s\r\n" % (len(data), data)


def statuses(peer: Peer) -> list[int]:
    """
    @return: The statuses of the responses.
    """
    return [answer.status for answer in peer.answers]


def bodies(peer: Peer) -> list[bytes]:
    """
    @return: The bodies of the responses.
    """
    return [answer.body for answer in peer.answers]


def pump(clock: Clock, seconds: float) -> None:
    """
    Let time pass.
    """
    clock.pump([0.25] * round(seconds * 4))


def secondsUntil(
    clock: Clock, condition: Callable[[], bool], most: int = 1000
) -> float:
    """
    Let time pass.

    @return: The seconds until a condition is true.
    """
    for quarters in range(most * 4):
        if condition():
            return quarters / 4
        clock.advance(0.25)
    raise AssertionError("the condition never holds")


class Server:
    """
    A plain site in memory. The test answers C{/held...}; L{act} answers C{/act...}; the
    site answers other paths at once.

    @ivar requests: All requests.
    @ivar ended: The results of C{notifyFinish} for each request: L{None}, or an error.
    @ivar act: Answers C{/act...}.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.requests: list[Request] = []
        self.ended: list[list[object]] = []
        self.act: Callable[[Request], Any] = lambda request: b""
        self.peers: list[Peer] = []
        self.clock = clock
        self.site, self.connections = plainSite(Plain(self._render), clock, **options)

    @property
    def paths(self) -> list[str]:
        return [each.uri.decode() for each in self.requests]

    def connect(self, *data: bytes, **options: Any) -> Peer:
        peer = Peer(self.site, self.clock, **options)
        self.peers.append(peer)
        for each in data:
            peer.send(each)
        self.clock.advance(0)
        return peer

    def answer(self, number: int, body: bytes = b"held") -> None:
        """
        Respond to a held request.
        """
        self.requests[number].setHeader("Content-Length", str(len(body)))
        self.requests[number].write(body)
        self.requests[number].finish()

    def endOf(self, number: int) -> type | None:
        """
        @return: The type of the error with which a request ended; L{None} if the
            request was answered.
        """
        (end,) = self.ended[number]
        return end.type if isinstance(end, Failure) else None

    def _render(self, request: Request) -> Any:
        ends: list[object] = []
        self.requests.append(request)
        self.ended.append(ends)
        request.notifyFinish().addBoth(ends.append)
        if request.path.startswith(b"/held"):
            return NOT_DONE_YET
        if request.path.startswith(b"/act"):
            return self.act(request)
        return b"seen " + request.uri


class Echoing:
    """
    A site of tsrv in memory whose resource echoes requests.

    @ivar echo: The root resource.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.echo = Echo()
        self.site = Site(self.echo, clock, **options)
        self.connections: Connections = self.site.connections
        self.peers: list[Peer] = []

    def connect(self, *data: bytes, **options: Any) -> Peer:
        peer = Peer(self.site, self.clock, **options)
        self.peers.append(peer)
        for each in data:
            peer.send(each)
        return peer

    def release(self) -> None:
        """
        Respond to the oldest held request.
        """
        self.clock.advance(0)
        self.echo.held.pop(0).callback(None)
        self.clock.advance(0)

    def leave(self) -> None:
        """
        Disconnect all clients.
        """
        for peer in self.peers:
            peer.leave()
        self.clock.advance(0)


@pytest.fixture
def served(clock: Clock) -> Iterator[Echoing]:
    """
    A site that has released everything when its clients have disconnected.
    """
    served = Echoing(clock)
    yield served
    served.leave()
    assert served.connections.bodyBytes == 0


@pytest.fixture
def server(clock: Clock) -> Iterator[Server]:
    """
    A server that has released everything when all clients have disconnected.
    """
    server = Server(clock)
    yield server
    for peer in server.peers:
        peer.leave()
    clock.advance(0)
    assert server.connections.bodyBytes == 0
    assert all(len(ends) == 1 for ends in server.ended)
