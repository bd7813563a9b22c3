"""
Every request that is made to a site is counted once, by names of which clients
cannot make more.
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

from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)
from tsrv.web.site import Site
from tsrv.web.traffic import Traffic

from .support import Trouble
from .websupport import Peer, asynchronous, logged, serving

MOST = 1000


class Pages(AsyncResource):
    """
    A resource that answers at once, later, or not at all.

    @ivar held: What the requests under it wait for.
    @ivar asked: Fires when the first one waits.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Deferred[Any]] = []
        self.asked: Deferred[None] = Deferred()

    def render_GET(self, request: Request) -> Any:
        if not request.postpath:
            return text("fine")
        held: Deferred[Any] = Deferred()
        self.held.append(held)
        if not self.asked.called:
            self.asked.callback(None)
        return held.addCallback(lambda _: text("late"))

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
    A resource of somebody else.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return b"plain"


class Leaver(AsyncResource):
    """
    A resource whose client leaves while it is looked for.
    """

    def __init__(self, peers: list[Peer]) -> None:
        super().__init__()
        self._peers = peers

    def getChild(self, path: bytes, request: Request) -> Resource:
        self._peers[0].leave()
        return Pages()


class Broken(AsyncResource):
    """
    A resource whose children cannot be found.
    """

    def getChild(self, path: bytes, request: Request) -> Resource:
        raise Trouble("Lost")


def serve(clock: Clock) -> tuple[Traffic, Pages, AsyncResource, Site]:
    """
    Make a site that counts.
    """
    traffic = Traffic(clock)
    root = AsyncResource()
    pages = Pages()
    root.putChild(b"pages", pages)
    root.putChild(b"users", Users())
    root.putChild(b"plain", Plain())
    return traffic, pages, root, Site(root, clock, maxBodyBytes=MOST, traffic=traffic)


def req(path: bytes, method: bytes = b"GET", more: bytes = b"") -> bytes:
    """
    @return: A request.
    """
    return method + b" " + path + b" HTTP/1.1\r\nHost: test\r\n" + more + b"\r\n"


def seen(traffic: Traffic) -> dict[tuple[str, str, str], int]:
    """
    @return: How many requests have ended, by route, method and status.
    """
    return {
        (route, method, status): sum(histogram.counts)
        for route, method, status, histogram in traffic.durations()
    }


@pytest.mark.parametrize(
    ("data", "ended"),
    [
        (req(b"/pages"), ("/pages", "GET", "200")),
        (req(b"/pages?x=1"), ("/pages", "GET", "200")),
        (req(b"/pages", b"HEAD"), ("/pages", "HEAD", "200")),
        (req(b"/pages", b"DELETE"), ("/pages", "DELETE", "405")),
        (req(b"/pages", b"BREW"), ("/pages", "OTHER", "405")),
        (req(b"/pages", b"get"), ("/pages", "OTHER", "405")),
        (req(b"/pages", b"OTHER"), ("/pages", "OTHER", "405")),
        (req(b"/plain"), ("(other)", "GET", "200")),
        (req(b"/plain", b"HEAD"), ("(other)", "HEAD", "200")),
        (req(b"/"), ("(unknown)", "GET", "404")),
        (req(b"/pagesss"), ("(unknown)", "GET", "404")),
        (req(b"/a/b/c", b"POST"), ("(unknown)", "POST", "404")),
        (req(b"/users"), ("/users", "GET", "405")),
        (req(b"/users/1"), ("/users/{id}", "GET", "405")),
        (req(b"/users/%ff/posts"), ("/users/{id}/posts", "GET", "200")),
        (req(b"/users/2/other"), ("(unknown)", "GET", "404")),
        (req(b"*", b"OPTIONS"), ("(other)", "OPTIONS", "200")),
    ],
)
def test_a_request_is_counted_by_what_answers_it(
    data: bytes, ended: tuple[str, str, str], clock: Clock
) -> None:
    """
    The route is a pattern, whatever the path; the method is one of a few.
    """
    traffic, _, _, site = serve(clock)
    peer = Peer(site, clock)
    peer.send(data * 2)
    assert seen(traffic) == {ended: 2}
    assert (traffic.inProgress, traffic.refusals) == (0, {})
    peer.leave()
    assert seen(traffic) == {ended: 2}
    assert traffic.inProgress == 0


def test_errors_are_counted_as_what_the_client_sees(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    An error that nobody expected is a 500, and ends the request like any other.
    """
    traffic, _, _, site = serve(clock)
    peer = Peer(site, clock)
    peer.send(req(b"/pages", b"POST"))
    assert seen(traffic) == {("/pages", "POST", "500"): 1}
    assert traffic.inProgress == 0
    peer.leave()
    loggedFailures.clear()


def test_a_resource_that_cannot_be_found_is_counted(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    Twisted answers where looking for a resource fails; what never began must
    not be taken off those in progress.
    """
    traffic = Traffic(clock)
    peer = Peer(Site(Broken(), clock, traffic=traffic), clock)
    peer.send(req(b"/x"))
    assert seen(traffic) == {("(other)", "GET", "500"): 1}
    assert traffic.inProgress == 0
    peer.leave()
    loggedFailures.clear()


def test_a_request_is_in_progress_until_it_is_answered(clock: Clock) -> None:
    """
    The gauge is what shows that requests are held, and the histogram for how
    long they were.
    """
    traffic, pages, _, site = serve(clock)
    peers = [Peer(site, clock) for _ in range(3)]
    for peer in peers:
        peer.send(req(b"/pages/held"))
    assert (traffic.inProgress, seen(traffic)) == (3, {})
    clock.advance(7)
    pages.held[1].callback(None)
    assert (traffic.inProgress, seen(traffic)) == (2, {("/pages", "GET", "200"): 1})
    ((*_, histogram),) = traffic.durations()
    assert histogram.total == 7
    for held in (pages.held[0], pages.held[2]):
        held.callback(None)
    assert (traffic.inProgress, histogram.total) == (0, 21)
    for peer in peers:
        peer.leave()


def test_pipelined_requests_are_in_progress_one_by_one(clock: Clock) -> None:
    """
    Of what a client sends ahead nothing has begun.
    """
    traffic, pages, _, site = serve(clock)
    peer = Peer(site, clock)
    peer.send(req(b"/pages/held") * 3)
    for n in range(3):
        assert traffic.inProgress == 1
        assert sum(seen(traffic).values()) == n
        pages.held[n].callback(None)
    assert traffic.inProgress == 0
    peer.send(req(b"/pages/held") * 3)
    peer.leave()
    assert traffic.inProgress == 0
    assert seen(traffic) == {
        ("/pages", "GET", "200"): 3,
        ("/pages", "GET", "gone"): 1,
    }


def test_a_client_that_leaves_is_counted_as_gone(clock: Clock) -> None:
    """
    It has seen no status, so none is made up; and nobody is in progress for
    ever because its client left.
    """
    traffic, pages, _, site = serve(clock)
    peer = Peer(site, clock)
    peer.send(req(b"/pages/held"))
    clock.advance(3)
    peer.leave()
    assert pages.held[0].called
    assert (traffic.inProgress, seen(traffic)) == (0, {("/pages", "GET", "gone"): 1})
    ((*_, histogram),) = traffic.durations()
    assert histogram.total == 3


@pytest.mark.parametrize(
    "data", [b"", b"GET /pages HT", req(b"/pages", b"POST", b"Content-Length: 3\r\n")]
)
def test_half_a_request_does_not_count(data: bytes, clock: Clock) -> None:
    """
    What never was a request is not one that was answered, or one in progress.
    """
    traffic, _, _, site = serve(clock)
    peer = Peer(site, clock)
    peer.send(data)
    assert traffic.inProgress == 0
    peer.leave()
    assert (traffic.inProgress, seen(traffic), traffic.refusals) == (0, {}, {})


def test_who_leaves_while_the_resource_is_looked_for_is_not_in_progress(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    Nothing would ever end what begins after its connection.
    """
    traffic = Traffic(clock)
    peers: list[Peer] = []
    peers.append(Peer(Site(Leaver(peers), clock, traffic=traffic), clock))
    peers[0].send(req(b"/x"))
    assert traffic.inProgress == 0
    assert peers[0].closed
    loggedFailures.clear()


def test_a_resource_that_leaves_it_to_another_is_counted_once(clock: Clock) -> None:
    """
    A request that is rendered twice is one request, of the resource that
    answers it in the end.
    """
    traffic, pages, root, site = serve(clock)
    later: Deferred[IResource] = Deferred()
    root.putChild(b"later", DeferredResource(later))
    peer = Peer(site, clock)
    peer.send(req(b"/later"))
    assert traffic.inProgress == 1
    later.callback(pages)
    assert (traffic.inProgress, seen(traffic)) == (0, {("/pages", "GET", "200"): 1})
    peer.leave()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n" + req(b"/pages"), 400),
        (req(b"/pages", b"POST", b"Content-Length: 1001\r\n"), 413),
        (
            req(b"/pages", b"POST", b"Transfer-Encoding: chunked\r\n")
            + b"fff\r\n"
            + b"x" * 0xFFF,
            413,
        ),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n", 414),
        (req(b"/pages", b"GET", b"X: " + b"x" * 20_000 + b"\r\n"), 431),
    ],
)
def test_what_is_refused_is_counted_apart(
    data: bytes, status: int, clock: Clock
) -> None:
    """
    It never reached a resource; but who is refused should be seen somewhere.
    """
    traffic, _, _, site = serve(clock)
    for n in (1, 2):
        peer = Peer(site, clock)
        peer.send(data)
        peer.leave()
        assert traffic.refusals == {status: n}
    assert (traffic.inProgress, seen(traffic)) == (0, {})


def test_a_refusal_behind_a_request_in_progress_counts_both(clock: Clock) -> None:
    """
    One connection can have one of each.
    """
    traffic, pages, _, site = serve(clock)
    peer = Peer(site, clock)
    peer.send(req(b"/pages/held") + b"nonsense\r\n\r\n")
    assert (traffic.inProgress, traffic.refusals) == (1, {})
    pages.held[0].callback(None)
    assert (traffic.inProgress, traffic.refusals) == (0, {400: 1})
    assert seen(traffic) == {("/pages", "GET", "200"): 1}
    peer.leave()


@asynchronous
async def test_a_response_that_is_broken_off_is_not_its_clients_doing(
    loggedFailures: list[LogEvent],
) -> None:
    """
    Who looks for faults needs to know which side ended it: a resource that
    failed in the middle, a stop that did not wait, or the client.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    traffic, pages, _, site = serve(reactor)
    with logged():
        async with serving(site) as served:
            broken = await served.connect(req(b"/pages", b"PUT"))
            await broken.whenClosed()
            assert seen(traffic) == {("/pages", "PUT", "aborted"): 1}
            loggedFailures.clear()
            stopped = await served.connect(req(b"/pages/held"))
            await pages.asked
            site.abort()
            await stopped.whenClosed()
            left = await served.connect(req(b"/pages"))
            await left.whenReceived(b"fine")
    assert traffic.inProgress == 0
    assert seen(traffic) == {
        ("/pages", "PUT", "aborted"): 1,
        ("/pages", "GET", "aborted"): 1,
        ("/pages", "GET", "200"): 1,
    }


def test_methods_that_clients_make_up_are_one(clock: Clock) -> None:
    """
    Each name costs memory here and in every Prometheus; a client could send as
    many as it likes.
    """
    traffic, _, _, site = serve(clock)
    peer = Peer(site, clock)
    for n in range(100):
        peer.send(req(b"/pages", b"M%d" % n) + req(b"/%d" % n))
    assert seen(traffic) == {
        ("/pages", "OTHER", "405"): 100,
        ("(unknown)", "GET", "404"): 100,
    }
    peer.leave()


def test_routes_that_are_no_patterns_are_bounded(clock: Clock) -> None:
    """
    A resource that takes the path for its route would keep a histogram for
    whatever clients send.
    """

    class Careless(AsyncResource):
        def getChild(self, path: bytes, request: Request) -> Resource:
            child = Pages()
            child.route = path.decode()
            return child

    traffic = Traffic(clock)
    peer = Peer(Site(Careless(), clock, traffic=traffic), clock)
    peer.send(req(b"/r0", b"BREW"))
    for n in range(2999):
        peer.send(req(b"/r%d" % n))
    ended = seen(traffic)
    assert len(ended) == 2001
    assert ended["(other)", "GET", "200"] == 1000
    # Those that are known stay what they are.
    peer.send(req(b"/r0") + req(b"/r0", b"BREW"))
    assert seen(traffic)["r0", "GET", "200"] == 2
    assert seen(traffic)["r0", "OTHER", "405"] == 2
    peer.leave()


def test_two_sites_may_count_together(clock: Clock) -> None:
    """
    A program can have one endpoint for everybody and another for operations.
    """
    traffic, _, _, site = serve(clock)
    other = Site(AsyncResource(), clock, traffic=traffic)
    for each in (site, other):
        peer = Peer(each, clock)
        peer.send(req(b"/pages"))
        peer.leave()
    assert seen(traffic) == {
        ("/pages", "GET", "200"): 1,
        ("(unknown)", "GET", "404"): 1,
    }


def test_a_root_of_another_kind_is_counted(clock: Clock) -> None:
    """
    A site serves whatever twisted.web can, be it known by a route or not.
    """
    traffic = Traffic(clock)
    peer = Peer(Site(Plain(), clock, traffic=traffic), clock)
    peer.send(req(b"/x"))
    assert seen(traffic) == {("(other)", "GET", "200"): 1}
    peer.leave()


def test_who_does_not_count_has_nothing_to_do_with_it(clock: Clock) -> None:
    """
    Without a Traffic requests are of the class that they have always been.
    """
    site = Site(AsyncResource(), clock)
    assert not hasattr(site.requestFactory, "startTime")
    peer = Peer(site, clock)
    peer.send(req(b"/x"))
    assert [answer.status for answer in peer.answers] == [404]
    peer.leave()
