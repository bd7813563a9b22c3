"""
Whatever clients send, they get a clear answer, others are not disturbed, and
the site can be stopped in good order.
"""

from __future__ import annotations

import gc
import json
import weakref
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.web.server import Request
from zope.interface import directlyProvides

from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)
from tsrv.web.site import Site

from .support import resultOf
from .websupport import (
    Peer,
    Served,
    answersIn,
    asynchronous,
    errorsIn,
    logged,
    serving,
    textsOf,
)

MOST = 1000

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

HELD = GET.replace(b" / ", b" /held ")

CHUNKED = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(length: int, *headers: bytes) -> bytes:
    """
    @return: A request, up to its body.
    """
    lines = [b"POST / HTTP/1.1", b"Host: test", b"Content-Length: %d" % length]
    return b"\r\n".join([*lines, *headers, b"", b""])


def chunk(data: bytes) -> bytes:
    """
    @return: A chunk of a body.
    """
    return b"%x\r\n%s\r\n" % (len(data), data)


class Echo(AsyncResource):
    """
    A resource that answers with what it was asked: at once, or when the test
    says so.

    @ivar asked: The requests, as they were seen.
    @ivar held: Those under C{/held} that are to be answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.held: list[Deferred[None]] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def getChild(self, path: bytes, request: Request) -> Echo:
        return self

    async def render_GET(self, request: Request) -> Response:
        content = request.content
        assert content is not None
        method, uri = request.method.decode(), request.uri.decode("latin-1")
        seen = f"{method} {uri} {content.read()!r}"
        self.asked.append(seen)
        if request.uri.startswith(b"/held"):
            held: Deferred[None] = Deferred()
            self.held.append(held)
            self._look()
            await held
        elif request.uri == b"/begun":
            request.write(b"begun")
            held = Deferred()
            self.held.append(held)
            await held
        return text(seen)

    def render_POST(self, request: Request) -> Any:
        return self.render_GET(request)

    def whenHeld(self, count: int) -> Deferred[None]:
        """
        @return: A Deferred that fires when so many requests are held.
        """
        deferred: Deferred[None] = Deferred()
        self._waiting.append((count, deferred))
        self._look()
        return deferred

    def _look(self) -> None:
        for each in list(self._waiting):
            count, deferred = each
            if len(self.held) >= count:
                self._waiting.remove(each)
                deferred.callback(None)


def makeSite(clock: Clock, *, accessLog: bool = False) -> tuple[Echo, Site]:
    """
    Make a site whose time the test controls.
    """
    echo = Echo()
    return echo, Site(echo, clock, accessLog=accessLog, maxBodyBytes=MOST)


async def check(served: Served) -> None:
    """
    The site still answers others.
    """
    wire = await served.connect(GET)
    await wire.whenReceived(b"GET / b''")


# What is too long, or wrong. After each of these the site is as before.

LINE = b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n"

OLD = b"GET / HTTP/1.0\r\n\r\n"

DIGITS = GET[:-2] + b"Content-Length: " + b"1" * 5000 + b"\r\n"

WRONG: list[tuple[str, bytes, int]] = [
    ("request line", LINE, 414),
    ("request line without an end", b"x" * 20_000, 414),
    ("request line of a megabyte", b"GET /" + b"x" * 1_000_000, 414),
    (
        "header",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        431,
    ),
    (
        "header without an end",
        b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 20_000,
        431,
    ),
    (
        "many headers",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 501 + b"\r\n",
        431,
    ),
    (
        "much in headers",
        b"GET / HTTP/1.1\r\n" + (b"X: " + b"y" * 500 + b"\r\n") * 2000 + b"\r\n",
        431,
    ),
    (
        "continued header",
        b"GET / HTTP/1.1\r\nX: y\r\n" + b" y\r\n" * 20_000 + b"\r\n",
        431,
    ),
    ("announced body", post(MOST + 1), 413),
    ("announced body that comes", post(MOST * 1000) + b"x" * MOST * 1000, 413),
    ("announced body of any size", post(10**30), 413),
    ("body after asking", post(MOST + 1, b"Expect: 100-continue"), 413),
    ("one long chunk", CHUNKED + chunk(b"x" * (MOST + 1)) + chunk(b""), 413),
    ("one endless chunk", CHUNKED + b"fffffff\r\n" + b"x" * MOST * 1000, 413),
    ("many chunks", CHUNKED + chunk(b"x" * 100) * 11 + chunk(b""), 413),
    (
        "several long chunks",
        CHUNKED + chunk(b"x" * (MOST + 1)) * 3 + chunk(b"x") + chunk(b""),
        413,
    ),
    ("long and wrong chunks", CHUNKED + chunk(b"x" * (MOST + 1)) + b"no\r\n", 413),
    ("empty request line", b"\r\n\r\n", 400),
    ("no request", b"How do you do?\r\n\r\n", 400),
    ("no version", b"GET /\r\nHost: test\r\n\r\n", 400),
    ("wrong version", b"GET / HTTP/2.0\r\nHost: test\r\n\r\n", 400),
    ("no path", b"GET  HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    ("space in the path", b"GET /a b HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    ("control character", b"GET /\x00 HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    ("TLS", bytes.fromhex("16030100c8010000c40303") + b"\r\n", 400),
    ("header without a colon", b"GET / HTTP/1.1\r\nHost\r\nX: y\r\n\r\n", 400),
    ("last header without a colon", b"GET / HTTP/1.1\r\nHost\r\n\r\n", 400),
    ("header without a name", b"GET / HTTP/1.1\r\n: test\r\n\r\n", 400),
    ("space before the colon", b"GET / HTTP/1.1\r\nHost : test\r\n\r\n", 400),
    ("NUL in a header", b"GET / HTTP/1.1\r\nHost: \x00\r\nX: y\r\n\r\n", 400),
    ("length that is no number", GET[:-2] + b"Content-Length: 1x\r\n\r\n", 400),
    ("negative length", GET[:-2] + b"Content-Length: -1\r\n\r\n", 400),
    ("length of many digits", DIGITS + b"\r\n", 400),
    ("length of many digits before others", DIGITS + b"X: y\r\n\r\n", 400),
    ("no host", b"GET / HTTP/1.1\r\nX: y\r\n\r\n", 400),
    ("two hosts", GET[:-2] + b"Host: other\r\n\r\n", 400),
    ("two hosts of HTTP/1.0", OLD[:-2] + b"Host: a\r\nHost: b\r\n\r\n", 400),
    ("path without a slash", b"GET x HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    ("URL of no host", b"GET http:///x HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    ("other URL", b"GET ftp://x/ HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    ("URL with something before", b"GET ahttp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("authority", b"CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    ("a star that is not OPTIONS", GET.replace(b"/ ", b"* ", 1), 400),
    ("two lengths", GET[:-2] + b"Content-Length: 1\r\n" * 2 + b"\r\nx", 400),
    ("length and chunks", CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n", 400),
    ("unknown encoding", GET[:-2] + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    ("length of a chunk", CHUNKED + b"no\r\nx\r\n0\r\n\r\n", 400),
    ("negative length of a chunk", CHUNKED + b"-1\r\nx\r\n0\r\n\r\n", 400),
    ("end of a chunk", CHUNKED + b"1\r\nxy\r\n0\r\n\r\n", 400),
    ("endless length of a chunk", CHUNKED + b"1" * 2000, 400),
    (
        "bad request before an endless line",
        b"nonsense\r\n" + b"x" * 20_000,
        400,
    ),
    (
        "bad request before good ones",
        b"nonsense\r\n\r\n" + GET * 3,
        400,
    ),
]


@pytest.mark.parametrize(
    ("data", "status"),
    [pytest.param(data, status, id=name) for name, data, status in WRONG],
)
@asynchronous
async def test_what_is_wrong_is_refused_once_and_clearly(
    data: bytes, status: int
) -> None:
    """
    A client that is just cut off learns nothing; one that gets two answers, or
    an answer to what is left of a refused request, learns the wrong thing.
    """
    from twisted.internet import reactor

    echo = Echo()
    with logged() as events:
        async with serving(Site(echo, reactor, maxBodyBytes=MOST)) as served:
            wire = await served.connect(data)
            received = await wire.whenReceived(b"}")
            (answer,) = answersIn(received)
            assert answer.status == status
            assert answer.headers["connection"] == "close"
            assert answer.headers["content-type"] == "application/problem+json"
            assert json.loads(answer.body)["status"] == status
            assert echo.asked == []
            await check(served)
            assert wire.received == received
    assert errorsIn(events) == []


@pytest.mark.parametrize(
    ("data", "status"),
    [pytest.param(data, status, id=name) for name, data, status in WRONG],
)
def test_what_is_wrong_is_refused_however_it_arrives(
    data: bytes, status: int, clock: Clock
) -> None:
    """
    The network cuts what is sent into pieces as it likes.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    for start in range(0, len(data), 333):
        peer.send(data[start : start + 333])
    assert [answer.status for answer in peer.answers] == [status]
    assert echo.asked == []
    assert peer.transport.writeClosed
    assert not peer.closed
    peer.leave()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (post(MOST + 1), 413),
        (GET[:-2] + b"Content-Length: x\r\n\r\n", 400),
        (CHUNKED + chunk(b"x" * (MOST + 1)), 413),
    ],
)
def test_a_refusal_of_head_has_no_body(data: bytes, status: int, clock: Clock) -> None:
    """
    What follows the headers would be taken for another response.
    """
    peer = Peer(makeSite(clock)[1], clock)
    peer.send(b"HEAD" + data[data.index(b" ") :])
    (answer,) = answersIn(peer.received, bodies=False)
    assert answer.status == status
    assert int(answer.headers["content-length"]) > 0
    peer.leave()


def test_a_refusal_after_head_has_a_body(clock: Clock) -> None:
    """
    What was asked before says nothing of what cannot be understood.
    """
    peer = Peer(makeSite(clock)[1], clock)
    peer.send(b"HEAD" + GET[3:])
    before = len(peer.received)
    peer.send(b"nonsense\r\n")
    (answer,) = answersIn(peer.received[before:])
    assert (answer.status, json.loads(answer.body)["status"]) == (400, 400)
    peer.leave()


def test_a_refused_client_that_stays_is_cut_off(clock: Clock) -> None:
    """
    What it still sends is thrown away, but not for ever.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(post(MOST + 1))
    for _ in range(19):
        clock.advance(0.1)
        peer.send(GET)
    assert not peer.closed
    clock.advance(0.1)
    assert peer.closed
    assert peer.transport.aborted
    assert len(peer.answers) == 1
    assert echo.asked == []


def test_a_refusal_is_sent_before_tls_ends(clock: Clock) -> None:
    """
    To close one direction below TLS would cut off what has not been encrypted.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    directlyProvides(peer.transport, ISSLTransport)
    peer.send(post(MOST + 1))
    assert [answer.status for answer in peer.answers] == [413]
    assert not peer.transport.writeClosed
    assert peer.closed


def test_the_limits_themselves_are_allowed(clock: Clock) -> None:
    """
    A limit is the most that is allowed, not the least that is refused.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    body = b"x" * MOST
    peer.send(post(MOST) + body)
    peer.send(CHUNKED + chunk(b"x" * (MOST - 1)) + chunk(b"x") + chunk(b""))
    peer.send(b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 499 + b"\r\n")
    peer.send(b"GET /" + b"x" * 16_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    assert [answer.status for answer in peer.answers] == [200] * 4
    assert echo.asked[:2] == [f"POST / {body!r}"] * 2
    peer.leave()


def test_a_long_body_does_not_reach_the_disk(clock: Clock) -> None:
    """
    Twisted writes long bodies to files, and the disk has no limit for each
    request.
    """
    contents: list[object] = []

    class Keep(Echo):
        def render_POST(self, request: Request) -> Response:
            contents.append(request.content)
            return text("kept")

    peer = Peer(Site(Keep(), clock, maxBodyBytes=1_000_000), clock)
    peer.send(post(500_000) + b"x" * 500_000)
    peer.send(CHUNKED + chunk(b"x" * 500_000) + chunk(b""))
    assert [answer.body for answer in peer.answers] == [b"kept"] * 2
    assert all(isinstance(content, BytesIO) for content in contents)
    assert len(contents) == 2
    peer.leave()


class Holds(AsyncResource):
    """
    A resource that answers when it is told to, and may let go of a body before.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Deferred[Response]] = []

    def render_POST(self, request: Request) -> Deferred[Response]:
        if request.path == b"/read":
            assert request.content is not None
            request.content.close()
        self.held.append(Deferred())
        return self.held[-1]


def test_all_bodies_together_have_a_bound(clock: Clock) -> None:
    """
    Ten thousand requests may be held, and each of them may have a long body.
    """
    resource = Holds()
    site = Site(resource, clock, maxTotalBodyBytes=100)
    peers = [Peer(site, clock) for _ in range(3)]
    peers[0].send(post(60) + b"x" * 60)
    peers[1].send(CHUNKED + chunk(b"x" * 40))
    assert site.bodyBytes == 100
    peers[1].send(chunk(b"x"))
    (answer,) = peers[1].answers
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert answer.headers["retry-after"] == "1"
    assert json.loads(answer.body)["error"] == "Too much is waiting already"
    assert site.bodyBytes == 60
    peers[2].send(CHUNKED + chunk(b"x" * 40) + chunk(b""))
    assert site.bodyBytes == 100
    resource.held[0].callback(text("done"))
    assert site.bodyBytes == 40
    peers[2].leave()
    assert site.bodyBytes == 0
    for peer in peers:
        peer.leave()
    clock.advance(10)


def test_a_body_for_which_there_is_no_room_is_not_waited_for(clock: Clock) -> None:
    """
    Who asks whether to send it is told so before.
    """
    site = Site(Holds(), clock, maxTotalBodyBytes=100)
    holding, asking = Peer(site, clock), Peer(site, clock)
    holding.send(post(60) + b"x" * 60)
    asking.send(post(41, b"Expect: 100-continue"))
    (answer,) = asking.answers
    assert (answer.status, site.bodyBytes) == (503, 60)
    holding.leave()
    asking.leave()


def test_what_is_sent_ahead_is_kept_within_the_same_bound(clock: Clock) -> None:
    """
    It waits in memory as a body does; and it can be sent again, after the
    response to what came before.
    """
    resource = Holds()
    site = Site(resource, clock, maxTotalBodyBytes=200)
    peer = Peer(site, clock)
    peer.send(post(90) + b"x" * 90)
    peer.send(GET[:20])
    assert site.bodyBytes == 110
    peer.send(GET[20:] + b"x" * 90)
    assert site.bodyBytes == 90
    resource.held[0].callback(text("done"))
    (answer,) = peer.answers
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert site.bodyBytes == 0
    peer.leave()
    clock.advance(10)


def test_what_comes_with_the_end_of_a_body_is_kept_within_it_too(clock: Clock) -> None:
    """
    The network puts together what was sent one after the other.
    """
    resource = Holds()
    site = Site(resource, clock, maxTotalBodyBytes=200)
    peer = Peer(site, clock)
    peer.send(post(90) + b"x" * 90 + GET * 5)
    assert site.bodyBytes == 90
    resource.held[0].callback(text("done"))
    (answer,) = peer.answers
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    peer.leave()
    clock.advance(10)


def test_what_is_answered_at_once_is_not_ahead_of_anything(clock: Clock) -> None:
    """
    There is nothing to keep then, however much came together.
    """
    echo = Echo()
    site = Site(echo, clock, maxTotalBodyBytes=200)
    peer = Peer(site, clock)
    peer.send(post(90) + b"x" * 90 + GET * 5)
    assert [answer.status for answer in peer.answers] == [200] * 6
    assert site.bodyBytes == 0
    peer.leave()


def test_a_body_has_the_room_of_the_one_before(clock: Clock) -> None:
    """
    Who sends one after the other has never two of them here.
    """
    resource = Holds()
    site = Site(resource, clock, maxTotalBodyBytes=160)
    peer = Peer(site, clock)
    peer.send(post(80) + b"x" * 80 + post(80))
    resource.held[0].callback(text("done"))
    peer.send(b"x" * 80)
    assert site.bodyBytes == 80
    resource.held[1].callback(text("done"))
    assert [answer.status for answer in peer.answers] == [200, 200]
    assert site.bodyBytes == 0
    peer.leave()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 60))))
@example([(1, 6, 38), (0, 0, 25), (0, 6, 42)])
def test_no_byte_of_a_body_is_forgotten_or_counted_twice(
    steps: list[tuple[int, int, int]],
) -> None:
    """
    A count that drifts ends in a site that refuses everything, or nothing.
    """
    clock = Clock()
    resource = Holds()
    site = Site(resource, clock, maxBodyBytes=50, maxTotalBodyBytes=300)
    peers = [Peer(site, clock) for _ in range(3)]
    for who, what, size in steps:
        peer = peers[who]
        if what == 0:
            peer.send(post(size))
        elif what == 1:
            peer.send(b"x" * size)
        elif what == 2:
            peer.send(CHUNKED + chunk(b"x" * max(size, 1)))
        elif what == 3:
            peer.send(chunk(b""))
        elif what == 4 and resource.held:
            resource.held.pop(0).callback(text("done"))
        elif what == 5:
            peer.send((post(size) + b"x" * size).replace(b" / ", b" /read "))
        elif what == 6:
            # The second one is sent ahead of the response to the first.
            peer.send((post(size) + b"x" * size) * 2)
        else:
            peer.leave()
            peers[who] = Peer(site, clock)
        assert 0 <= site.bodyBytes <= site.maxTotalBodyBytes
    for peer in peers:
        peer.leave()
    clock.advance(10)
    assert site.bodyBytes == 0


# What is unusual, but right.


@asynchronous
async def test_http_1_0_is_answered_and_closed() -> None:
    """
    An old client waits for the end of the connection, and would wait for ever.
    """
    from twisted.internet import reactor

    async with serving(Site(Echo(), reactor)) as served:
        wire = await served.connect(b"GET /old HTTP/1.0\r\n\r\n")
        (answer,) = answersIn(await wire.whenClosed())
        assert (answer.status, answer.body) == (200, b"GET /old b''")
        await check(served)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://test/say", "/say"),
        (b"HTTPS://user@test:8000/say?a=http://b/c", "/say?a=http://b/c"),
        (b"http://test", "/"),
        (b"http://test?a=b", "/?a=b"),
        (b"http://test//say", "//say"),
        (b"/http://test/say", "/http://test/say"),
    ],
)
def test_a_url_is_taken_for_its_path(target: bytes, path: str, clock: Clock) -> None:
    """
    Every server has to understand what is asked in the way that proxies are.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(b"GET " + target + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    assert [answer.status for answer in peer.answers] == [200]
    assert echo.asked == [f"GET {path} b''"]
    peer.leave()


def test_the_server_itself_may_be_asked_about(clock: Clock) -> None:
    """
    The one target that is neither a path nor a URL.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    peer.send(b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
    assert [answer.status for answer in peer.answers] == [200]
    peer.leave()


def test_http_2_is_not_offered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where a package that Twisted needs for it happens to be installed, a client
    would be promised what its connection does not speak.
    """
    monkeypatch.setattr("twisted.web.http.H2_ENABLED", True)
    assert makeSite(clock)[1].acceptableProtocols() == [b"http/1.1"]


@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nabc", CHUNKED[-30:] + b"3\r\nabc\r\n0\r\n\r\n"]
)
def test_a_body_on_get_is_not_taken_for_a_request(body: bytes, clock: Clock) -> None:
    """
    Bytes of a body that are read as the next request let one client speak with
    the voice of another.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(GET[:-2] + body + GET)
    assert echo.asked == ["GET / b'abc'", "GET / b''"]
    assert [answer.status for answer in peer.answers] == [200, 200]
    peer.leave()


def test_who_asks_before_sending_a_body_is_told_to_go_on(clock: Clock) -> None:
    """
    Without the interim response such a client would hold back what the site
    waits for.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(post(3, b"Expect: 100-continue"))
    assert [answer.status for answer in peer.answers] == [100]
    peer.send(b"abc")
    assert echo.asked == ["POST / b'abc'"]
    assert [answer.status for answer in peer.answers] == [100, 200]
    peer.leave()


@asynchronous
async def test_pipelined_requests_are_answered_in_order() -> None:
    """
    Responses carry no names: only their order tells which is which.
    """
    from twisted.internet import reactor

    echo = Echo()
    async with serving(Site(echo, reactor)) as served:
        requests = [
            b"GET /held/%d HTTP/1.1\r\nHost: test\r\n\r\n" % n
            if n % 3 == 0
            else b"GET /%d HTTP/1.1\r\nHost: test\r\n\r\n" % n
            for n in range(20)
        ]
        wire = await served.connect(b"".join(requests))
        for n in range(7):
            await echo.whenHeld(n + 1)
            assert f"/{3 * n + 1} " not in " ".join(echo.asked)
            echo.held[n].callback(None)
        received = await wire.whenReceived(b"GET /19 b''")
        numbers = [
            answer.body.split()[1].rpartition(b"/")[2] for answer in answersIn(received)
        ]
        assert numbers == [b"%d" % n for n in range(20)]


def test_bad_after_good_requests_are_refused_in_their_turn(clock: Clock) -> None:
    """
    A refusal must not overtake the response to what was asked before.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(
        b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n" + GET + b"nonsense\r\n\r\n" + GET
    )
    assert peer.received == b""
    echo.held[0].callback(None)
    assert [answer.status for answer in peer.answers] == [200, 200, 400]
    assert len(echo.asked) == 2
    peer.leave()


# Clients that send ahead of the response.


def test_much_that_is_sent_ahead_is_kept(clock: Clock) -> None:
    """
    A connection that is not read does not tell that its client has left.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(HELD)
    for _ in range(1000):
        peer.send(GET)
    assert peer.transport.producerState == "producing"
    echo.held[0].callback(None)
    assert [answer.status for answer in peer.answers] == [200] * 1001
    peer.leave()


@pytest.mark.parametrize("size", [1, 100, 10_000, 1_000_000])
def test_too_much_that_is_sent_ahead_is_thrown_away(size: int, clock: Clock) -> None:
    """
    It is bounded what one client may have kept for it; it is told that its
    connection ends, and gets the response that it waits for whole.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(HELD)
    data = GET * 3000
    for start in range(0, len(data), size):
        peer.send(data[start : start + size])
    assert peer.transport.producerState == "producing"
    assert sum(map(len, peer.channel._dataBuffer)) == 0
    echo.held[0].callback(None)
    peer.send(GET)
    (answer,) = peer.answers
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert peer.transport.writeClosed
    # For one that has paused, a long response would not be sent to its end.
    assert peer.transport.producer is None
    assert not peer.closed
    assert echo.asked == ["GET /held b''"]
    clock.advance(2)
    assert peer.closed
    assert peer.transport.aborted


def test_what_is_sent_ahead_of_a_body_counts(clock: Clock) -> None:
    """
    What comes with the end of a body is kept like all the rest.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(post(3).replace(b" / ", b" /held ") + b"ab")
    peer.send(b"c" + GET * 2000)
    peer.send(GET * 100)
    assert len(b"".join(peer.channel._dataBuffer)) == len(GET * 2100)
    peer.send(GET * 500)
    assert peer.channel._dataBuffer == []
    echo.held[0].callback(None)
    assert [answer.headers["connection"] for answer in peer.answers] == ["close"]
    assert len(echo.asked) == 1
    peer.leave()


def test_each_response_makes_room(clock: Clock) -> None:
    """
    What counts is what waits now, not what was ever sent.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(HELD)
    for n in range(100):
        peer.send(GET * 100 + HELD)
        echo.held[n].callback(None)
    assert len(peer.answers) == 100 * 101
    assert not peer.transport.writeClosed
    peer.leave()


def test_nothing_is_kept_behind_the_last_request(clock: Clock) -> None:
    """
    It would never be read.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(HELD[:-2] + b"Connection: close\r\n\r\n" + GET)
    peer.send(GET)
    assert peer.channel._dataBuffer == []
    echo.held[0].callback(None)
    assert len(peer.answers) == 1
    assert peer.closed


def test_a_stop_leaves_alone_who_sent_too_much(clock: Clock) -> None:
    """
    The connection ends anyway, and as soon as the client has noticed.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(HELD + GET * 3000)
    stopped = resultOf(site.stop(30))
    echo.held[0].callback(None)
    assert not peer.closed
    peer.leave()
    assert stopped.value == 0
    assert len(peer.answers) == 1
    assert clock.getDelayedCalls() == []


@asynchronous
async def test_who_sends_too_much_and_leaves_is_noticed() -> None:
    """
    What is done for a client that is gone is done for nobody, and holds up
    every stop; the end of a connection comes after all that was sent.
    """
    from twisted.internet import reactor

    echo = Echo()
    async with serving(Site(echo, reactor)) as served:
        wire = await served.connect(HELD)
        await echo.whenHeld(1)
        gone = resultOf(echo.held[0])
        wire.send(GET * 30_000)
        wire.finish()
        await wire.whenClosed()
        assert await served.site.stop(30) == 0
        assert not gone.pending
        assert len(echo.asked) == 1


# Connections that are dropped halfway.


HALF = [
    b"",
    b"GET /sa",
    b"GET / HTTP/1.1\r\nHo",
    post(100) + b"half",
    CHUNKED + b"5\r\nha",
    CHUNKED + b"5\r\nhello\r\n",
    b"GET /held HTTP/1.1\r\nHost: test\r\n\r\nGET / HT",
]


@pytest.mark.parametrize("data", HALF)
@asynchronous
async def test_a_connection_that_is_dropped_is_no_matter(data: bytes) -> None:
    """
    Half a request is never carried out, and is not worth a word in the log.
    """
    from twisted.internet import reactor

    echo = Echo()
    site = Site(echo, reactor)
    with logged() as events:
        async with serving(site) as served:
            wire = await served.connect(data)
            held = data.startswith(b"GET /held")
            if held:
                await echo.whenHeld(1)
            wire.leave()
            await check(served)
            if not held:
                assert echo.asked == ["GET / b''"]
    assert errorsIn(events) == []
    assert all(held.called for held in echo.held)


@pytest.mark.parametrize("data", [*HALF, GET, LINE, post(MOST + 1)])
def test_a_connection_that_ended_is_forgotten(data: bytes, clock: Clock) -> None:
    """
    A server that runs for months must not remember every client it had.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(data)
    # To cancel it would leave a traceback in the first lines of the log, which
    # Twisted keeps.
    for held in echo.held:
        held.callback(None)
    channel = weakref.ref(peer.channel)
    peer.leave()
    del peer
    gc.collect()
    assert channel() is None


def test_an_idle_connection_is_closed_in_time(clock: Clock) -> None:
    """
    Connections on which nothing happens would add up.
    """
    site = makeSite(clock)[1]
    peers = [Peer(site, clock) for _ in range(3)]
    peers[1].send(b"GET / HT")
    peers[2].send(GET)
    clock.advance(59)
    assert [peer.closed for peer in peers] == [False] * 3
    clock.advance(1)
    assert [peer.closed for peer in peers] == [True] * 3


def test_a_request_that_is_held_is_not_idle(clock: Clock) -> None:
    """
    Who waits for a slow start must not be cut off by the limit for idle
    connections.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
    clock.pump([60] * 60)
    echo.held[0].callback(None)
    assert [answer.status for answer in peer.answers] == [200]
    peer.leave()


# Stopping.


def test_to_stop_without_connections_takes_no_time(clock: Clock) -> None:
    """
    There is nothing to wait for.
    """
    site = makeSite(clock)[1]
    assert resultOf(site.stop(30)).value == 0


def test_idle_connections_are_closed_at_once(clock: Clock) -> None:
    """
    A client that keeps its connection for later is not worth waiting for.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    peer.send(GET)
    stopped = resultOf(site.stop(30))
    assert peer.closed
    assert stopped.value == 0


def test_requests_in_progress_are_the_last_ones(clock: Clock) -> None:
    """
    What has been asked is answered, and the client is told that the connection
    ends with it.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
    stopped = resultOf(site.stop(30))
    clock.advance(29)
    assert not peer.closed
    echo.held[0].callback(None)
    (answer,) = peer.answers
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert peer.closed
    assert stopped.value == 0


def test_pipelined_requests_behind_the_last_one_are_not_begun(clock: Clock) -> None:
    """
    After C{Connection: close} nothing may follow, so what would be done for it
    would be done for nobody.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n" + GET)
    stopped = resultOf(site.stop(30))
    echo.held[0].callback(None)
    assert peer.closed
    assert echo.asked == ["GET /held b''"]
    assert stopped.value == 0


def test_a_response_that_has_begun_is_let_end(clock: Clock) -> None:
    """
    Its headers are out, and cannot be changed; the connection ends with it all
    the same.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(b"GET /begun HTTP/1.1\r\nHost: test\r\n\r\n")
    stopped = resultOf(site.stop(30))
    with logged() as events:
        echo.held[0].callback(None)
    assert errorsIn(events) == []
    assert b"GET /begun" in peer.received
    assert b"Connection: close" not in peer.received
    assert peer.closed
    assert stopped.value == 0


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n"], ids=["nothing", "half"])
def test_a_request_on_its_way_is_answered(sent: bytes, clock: Clock) -> None:
    """
    A client that has just connected, before listening stopped, is served.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    peer.send(sent)
    stopped = resultOf(site.stop(30))
    clock.advance(0.9)
    assert not peer.closed
    peer.send(GET.removeprefix(sent))
    (answer,) = peer.answers
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert peer.closed
    assert stopped.value == 0


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "next"])
def test_half_a_request_keeps_nobody_waiting_for_long(
    before: bytes, clock: Clock
) -> None:
    """
    Who sends a part of a request and then nothing more is no reason to wait for
    as long as for one that is being answered.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    peer.send(before + b"GET / HTTP/1.1\r\nHost: test\r\n")
    stopped = resultOf(site.stop(30))
    clock.advance(0.9)
    assert not peer.closed
    clock.advance(0.1)
    assert peer.closed
    assert len(peer.answers) == bool(before)
    assert stopped.value == 0


def test_a_request_that_takes_longer_than_the_moment_is_answered(
    clock: Clock,
) -> None:
    """
    The moment is for the request to come, not for the response.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    stopped = resultOf(site.stop(30))
    peer.send(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
    clock.advance(10)
    assert not peer.closed
    echo.held[0].callback(None)
    assert [answer.status for answer in peer.answers] == [200]
    assert peer.closed
    assert stopped.value == 0


def test_a_connection_on_which_nothing_is_asked_gets_a_moment(clock: Clock) -> None:
    """
    Browsers open connections in advance, and would hold up every stop.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    stopped = resultOf(site.stop(30))
    clock.advance(0.9)
    assert not peer.closed
    clock.advance(0.1)
    assert peer.closed
    assert stopped.value == 0


def test_a_connection_that_comes_too_late_gets_a_moment(clock: Clock) -> None:
    """
    What the operating system had accepted already, may arrive after the stop.
    """
    site = makeSite(clock)[1]
    assert resultOf(site.stop(30)).value == 0
    late, idle = Peer(site, clock), Peer(site, clock)
    late.send(GET)
    (answer,) = late.answers
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert late.closed
    clock.advance(1)
    assert idle.closed


def test_time_that_is_up_ends_the_stop(clock: Clock) -> None:
    """
    A stop that waits for the slowest client never ends; who stops is told how
    many are left, and can break them off.
    """
    echo, site = makeSite(clock)
    peers = [Peer(site, clock) for _ in range(3)]
    for peer in peers:
        peer.send(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
    stopped = resultOf(site.stop(30))
    echo.held[0].callback(None)
    clock.advance(29)
    assert stopped.pending
    clock.advance(1)
    assert stopped.value == 2
    site.abort()
    assert [peer.closed for peer in peers] == [True] * 3
    assert [peer.transport.aborted for peer in peers] == [False, True, True]
    assert all(held.called for held in echo.held)


def test_a_stop_can_be_hurried(clock: Clock) -> None:
    """
    Who does not want to wait any longer cancels.
    """
    echo, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
    stopping = site.stop(30)
    stopped = resultOf(stopping)
    stopping.cancel()
    assert stopped.value == 1
    # What was cancelled is not fired later.
    echo.held[0].callback(None)
    assert peer.closed


def test_to_stop_twice_is_to_wait_twice(clock: Clock) -> None:
    """
    The server waits once more after it has answered what was held; by that
    no connection gets a second moment, and no timer is left.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    first = resultOf(site.stop(0.5))
    clock.advance(0.5)
    assert first.value == 1
    second = resultOf(site.stop(2))
    clock.advance(0.5)
    assert peer.closed
    assert second.value == 0


def test_a_refused_client_does_not_get_a_second_moment(clock: Clock) -> None:
    """
    It is being got rid of already, and has been answered.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    peer.send(LINE)
    clock.advance(1.5)
    stopped = resultOf(site.stop(30))
    clock.advance(0.5)
    assert peer.closed
    assert stopped.value == 0
    assert len(peer.answers) == 1


def test_a_client_that_is_refused_while_stopping_leaves_no_timer(clock: Clock) -> None:
    """
    The moment that it had for a request is over with the refusal.
    """
    site = makeSite(clock)[1]
    peer = Peer(site, clock)
    stopped = resultOf(site.stop(30))
    peer.send(LINE)
    peer.leave()
    assert stopped.value == 0
    assert clock.getDelayedCalls() == []


@asynchronous
async def test_a_site_that_listens_is_stopped_in_good_order() -> None:
    """
    All of it at once, over real connections.
    """
    from twisted.internet import reactor

    echo = Echo()
    site = Site(echo, reactor)
    async with serving(site) as served:
        idle = await served.connect(GET)
        await idle.whenReceived(b"GET / b''")
        busy = [
            await served.connect(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n"),
            await served.connect(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n"),
        ]
        await echo.whenHeld(2)
        stopped = site.stop(30)
        await idle.whenClosed()
        for held in echo.held:
            held.callback(None)
        for received in await gatherResults([wire.whenClosed() for wire in busy]):
            (answer,) = answersIn(received)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await stopped == 0


# The log.


def test_nothing_is_logged_of_a_request_unless_asked_for(clock: Clock) -> None:
    """
    An access log is for who wants one.
    """
    site = makeSite(clock)[1]
    with logged() as events:
        peer = Peer(site, clock)
        peer.send(GET)
        peer.leave()
    assert events == []


def test_the_access_log_has_a_line_for_each_request(clock: Clock) -> None:
    """
    In the format that every tool for such logs reads; nothing that a client
    sends makes a second line of it.
    """
    site = makeSite(clock, accessLog=True)[1]
    clock.advance(1_000_000_000)
    with logged() as events:
        peer = Peer(site, clock)
        peer.send(
            b'GET /"\x85 HTTP/1.1\r\nHost: test\r\nUser-Agent: {curl}\x0b\r\n\r\n'
        )
    (answer,) = peer.answers
    assert textsOf(events) == [
        '"192.0.2.1" - - [09/Sep/2001:01:46:40 +0000] '
        '"GET /\\"\\x85 HTTP/1.1" 200 12 "-" "{curl}\\x0b" '
        + answer.headers["x-request-id"]
    ]
    peer.leave()


def test_requests_that_end_after_listening_stopped_are_logged(clock: Clock) -> None:
    """
    Twisted closes its log with the port, while requests are still in progress.
    """
    echo, site = makeSite(clock, accessLog=True)
    site.doStart()
    peer = Peer(site, clock)
    peer.send(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
    site.doStop()
    with logged() as events:
        echo.held[0].callback(None)
    assert len(textsOf(events)) == 1
    peer.leave()


def test_the_access_log_has_the_ids_of_problems(clock: Clock) -> None:
    """
    Who is told an id will ask for it.
    """
    with logged() as events:
        peer = Peer(Site(AsyncResource(), clock, accessLog=True), clock)
        peer.send(GET)
        peer.send(b"GET /{x} HTTP/1.1\r\nHost: test\r\n\r\n")
    ids = [json.loads(answer.body)["requestId"] for answer in peer.answers]
    lines = textsOf(events)
    assert [line.rpartition(" ")[2] for line in lines] == ids
    assert all('" 404 ' in line for line in lines)
    peer.leave()


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"nonsense\r\n", 400), (post(MOST + 1), 413), (LINE, 414)],
)
def test_the_access_log_has_what_was_refused(
    data: bytes, status: int, clock: Clock
) -> None:
    """
    Who is refused is seen nowhere else; in the format of all other lines.
    """
    site = makeSite(clock, accessLog=True)[1]
    clock.advance(1_000_000_000)
    with logged() as events:
        peer = Peer(site, clock)
        peer.send(data)
    (answer,) = peer.answers
    requestId = json.loads(answer.body)["requestId"]
    assert textsOf(events) == [
        f'"192.0.2.1" - - [09/Sep/2001:01:46:40 +0000] "-" {status} - "-" "-" '
        f"{requestId}"
    ]
    peer.leave()


def test_a_refusal_is_not_logged_unless_asked_for(clock: Clock) -> None:
    """
    Nobody should be able to fill the log of who does not want one.
    """
    site = makeSite(clock)[1]
    with logged() as events:
        peer = Peer(site, clock)
        peer.send(LINE)
        peer.leave()
    assert events == []


def test_a_held_request_keeps_little(clock: Clock) -> None:
    """
    Of ten thousand requests that are held, each keeps its body.
    """
    assert Site(Echo(), clock).maxBodyBytes == 64 * 1024
