"""
Every request to a site is counted once, under a bounded number of names.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request
from twisted.web.util import DeferredResource

from tsrv.web.responses import AsyncResource, Response
from tsrv.web.site import Site
from tsrv.web.traffic import Traffic

from .support import Trouble
from .websupport import Echo, Peer, asynchronous, logged, serving


class Pages(Echo):
    """
    A resource some of whose methods fail.
    """

    isLeaf = True

    def render_POST(self, request: Request) -> Response:
        raise Trouble("Not so")

    async def render_PUT(self, request: Request) -> Response:
        request.write(b"begun")
        raise Trouble("Not so")


class Users(AsyncResource):
    """
    A resource with a child for each user.
    """

    def getChild(self, path: bytes, request: Request) -> Resource:
        user = AsyncResource()
        user.route = "/users/{id}"
        user.putChild(b"posts", Pages())
        return user


class Plain(Resource):
    """
    A resource of twisted.web.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return b"plain"


class Counted:
    """
    A site that counts, and a client in memory.
    """

    def __init__(self, reactor: Any, root: IResource | None = None) -> None:
        self.traffic = Traffic(reactor)
        self.pages = Pages()
        self.root = AsyncResource()
        self.root.putChild(b"pages", self.pages)
        self.root.putChild(b"users", Users())
        self.root.putChild(b"plain", Plain())
        self.site = Site(
            root or self.root, reactor, maxBodyBytes=1000, traffic=self.traffic
        )

    @property
    def ended(self) -> dict[tuple[str, str, str], int]:
        """
        Numbers of ended requests, by route, method and status.
        """
        return {
            (route, method, status): sum(histogram.counts)
            for route, method, status, histogram in self.traffic.durations()
        }

    @property
    def seconds(self) -> float:
        """
        The sum of all durations.
        """
        return sum(histogram.total for *_, histogram in self.traffic.durations())


def req(path: bytes, method: bytes = b"GET", more: bytes = b"") -> bytes:
    """
    @return: A request.
    """
    return method + b" " + path + b" HTTP/1.1\r\nHost: test\r\n" + more + b"\r\n"


@pytest.mark.parametrize(
    ("data", "ended"),
    [
        (req(b"/pages"), ("/pages", "GET", "200")),
        (req(b"/pages?x=1"), ("/pages", "GET", "200")),
        (req(b"/pages", b"HEAD"), ("/pages", "HEAD", "200")),
        (req(b"/pages", b"DELETE"), ("/pages", "DELETE", "405")),
        (req(b"/pages", b"POST"), ("/pages", "POST", "500")),
        (req(b"/pages", b"BREW"), ("/pages", "OTHER", "405")),
        (req(b"/pages", b"get"), ("/pages", "OTHER", "405")),
        (req(b"/pages", b"OTHER"), ("/pages", "OTHER", "405")),
        (req(b"/plain"), ("(other)", "GET", "200")),
        (req(b"/plain", b"HEAD"), ("(other)", "HEAD", "200")),
        (req(b"/"), ("(unknown)", "GET", "404")),
        (req(b"/pagesss"), ("(unknown)", "GET", "404")),
        (req(b"/a/b/c", b"POST"), ("(unknown)", "POST", "404")),
        (req(b"/users"), ("/users", "GET", "404")),
        (req(b"/users/1"), ("/users/{id}", "GET", "404")),
        (req(b"/users/%ff/posts"), ("/users/{id}/posts", "GET", "200")),
        (req(b"/users/2/other"), ("(unknown)", "GET", "404")),
        (req(b"*", b"OPTIONS"), ("(other)", "OPTIONS", "200")),
    ],
)
def test_a_request_is_counted_by_its_resource(
    data: bytes,
    ended: tuple[str, str, str],
    clock: Clock,
    loggedFailures: list[LogEvent],
) -> None:
    """
    The route is a pattern, independent of the path; the method is one of a few.
    """
    counted = Counted(clock)
    peer = Peer(counted.site, clock)
    peer.send(data * 2)
    peer.leave()
    assert counted.ended == {ended: 2}
    assert (counted.traffic.inProgress, counted.traffic.refusals) == (0, {})
    loggedFailures.clear()


def test_a_request_is_in_progress_until_it_is_answered(clock: Clock) -> None:
    """
    The duration is the time from the call of the resource to the response.
    """
    counted = Counted(clock)
    held, traffic = counted.pages.held, counted.traffic
    peers = [Peer(counted.site, clock) for _ in range(3)]
    for peer in peers:
        # A pipelined request has not begun.
        peer.send(req(b"/pages/held") * 2)
    assert (traffic.inProgress, counted.ended) == (3, {})
    clock.advance(7)
    held[1].callback(None)
    clock.advance(0)
    assert (traffic.inProgress, counted.seconds) == (3, 7)
    assert counted.ended == {("/pages", "GET", "200"): 1}
    # A client that disconnects has seen no status.
    clock.advance(3)
    for peer in peers:
        peer.leave()
    assert all(each.called for each in held)
    assert (traffic.inProgress, counted.seconds) == (0, 7 + 10 + 3 + 10)
    assert counted.ended["/pages", "GET", "gone"] == 3


@pytest.mark.parametrize(
    "data", [b"", b"GET /pages HT", req(b"/pages", b"POST", b"Content-Length: 3\r\n")]
)
def test_half_a_request_does_not_count(data: bytes, clock: Clock) -> None:
    """
    An incomplete request is neither counted as ended nor in progress.
    """
    counted = Counted(clock)
    peer = Peer(counted.site, clock)
    peer.send(data)
    assert counted.traffic.inProgress == 0
    peer.leave()
    assert counted.traffic.inProgress == 0
    assert (counted.ended, counted.traffic.refusals) == ({}, {})


@pytest.mark.parametrize("leaves", [True, False])
def test_a_failed_lookup_is_never_in_progress(
    leaves: bool, clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    A request is not in progress if the lookup of its resource fails, or the client
    disconnects meanwhile.
    """
    peers: list[Peer] = []

    class Lookup(AsyncResource):
        def getChild(self, path: bytes, request: Request) -> Resource:
            if leaves:
                peers[0].leave()
                return Pages()
            raise Trouble("Lost")

    counted = Counted(clock, Lookup())
    peers.append(Peer(counted.site, clock))
    peers[0].send(req(b"/x"))
    assert counted.traffic.inProgress == 0
    if not leaves:
        assert counted.ended == {("(other)", "GET", "500"): 1}
    peers[0].leave()
    clock.advance(0)
    loggedFailures.clear()


def test_a_resource_that_delegates_is_counted_once(clock: Clock) -> None:
    """
    If a resource delegates to another one, the request counts once, for the last one.
    """
    counted = Counted(clock)
    later: Deferred[IResource] = Deferred()
    counted.root.putChild(b"later", DeferredResource(later))
    peer = Peer(counted.site, clock)
    peer.send(req(b"/later"))
    assert counted.traffic.inProgress == 1
    later.callback(counted.pages)
    assert counted.traffic.inProgress == 0
    assert counted.ended == {("/pages", "GET", "200"): 1}
    peer.leave()


CHUNKED = req(b"/pages", b"POST", b"Transfer-Encoding: chunked\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n" + req(b"/pages"), 400),
        (req(b"/pages", b"POST", b"Content-Length: 1001\r\n"), 413),
        (CHUNKED + b"fff\r\n" + b"x" * 0xFFF, 413),
        (req(b"/" + b"x" * 20_000), 414),
        (req(b"/pages", b"GET", b"X: " + b"x" * 20_000 + b"\r\n"), 431),
    ],
)
def test_refusals_are_counted_apart(data: bytes, status: int, clock: Clock) -> None:
    """
    A refused request reaches no resource, and is counted apart; the request before it
    counts as usual.
    """
    counted = Counted(clock)
    peer = Peer(counted.site, clock)
    peer.send(req(b"/pages/held") + data)
    assert (counted.traffic.inProgress, counted.traffic.refusals) == (1, {})
    counted.pages.held[0].callback(None)
    clock.advance(0)
    assert (counted.traffic.inProgress, counted.traffic.refusals) == (0, {status: 1})
    assert counted.ended == {("/pages", "GET", "200"): 1}
    peer.leave()


@asynchronous
async def test_an_aborted_response_is_not_its_clients_doing(
    loggedFailures: list[LogEvent],
) -> None:
    """
    A response that fails halfway, and a response that a stop aborts, count as
    C{aborted}.
    """
    from twisted.internet import reactor

    counted = Counted(reactor)
    with logged():
        async with serving(counted.site) as served:
            broken = await served.connect(req(b"/pages", b"PUT"))
            await broken.whenClosed()
            stopped = await served.connect(req(b"/pages/held"))
            await counted.pages.whenHeld
            counted.site.abort()
            await stopped.whenClosed()
    assert counted.traffic.inProgress == 0
    assert counted.ended == {
        ("/pages", "PUT", "aborted"): 1,
        ("/pages", "GET", "aborted"): 1,
    }
    loggedFailures.clear()


def test_routes_are_bounded(clock: Clock) -> None:
    """
    Beyond the bound, new routes count as C{(other)}, in case a resource uses paths as
    routes; known routes are still counted.
    """

    class Careless(AsyncResource):
        def getChild(self, path: bytes, request: Request) -> Resource:
            child = Pages()
            child.route = path.decode()
            return child

    counted = Counted(clock, Careless())
    peer = Peer(counted.site, clock)
    peer.send(req(b"/r0", b"BREW"))
    for n in range(2999):
        peer.send(req(b"/r%d" % n))
    assert len(counted.ended) == 2001
    assert counted.ended["(other)", "GET", "200"] == 1000
    peer.send(req(b"/r0") + req(b"/r0", b"BREW"))
    assert counted.ended["r0", "GET", "200"] == 2
    assert counted.ended["r0", "OTHER", "405"] == 2
    peer.leave()
