"""
Whatever clients send, they get one clear response, other clients are not disturbed,
limits hold, and the site stops gracefully.
"""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from http import HTTPStatus
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers
from twisted.web.server import Request
from zope.interface import directlyProvides

from tsrv.web.origin import Proxies
from tsrv.web.responses import Response
from tsrv.web.site import Site

from .channels import Echoing
from .support import resultOf
from .websupport import (
    Echo,
    Peer,
    Plain,
    Rendered,
    answersIn,
    asynchronous,
    errorsIn,
    logged,
    passTime,
    serving,
    textsOf,
)

MAX_BODY = 1000

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

HELD = GET.replace(b" / ", b" /held ")

HOST = b"Host: test"

CHUNKED = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(length: int, *headers: bytes, path: bytes = b"/") -> bytes:
    """
    @return: A request, up to its body.
    """
    lines = [b"POST %s HTTP/1.1" % path, b"Host: test", b"Content-Length: %d" % length]
    return b"\r\n".join([*lines, *headers, b"", b""])


def whole(length: int, path: bytes = b"/held") -> bytes:
    """
    @return: A request with its body.
    """
    return post(length, path=path) + b"x" * length


def chunk(data: bytes = b"") -> bytes:
    """
    @return: A chunk of a body; an empty one is the last.
    """
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.fixture
def served(clock: Clock) -> Iterator[Echoing]:
    """
    A site with low limits.
    """
    served = Echoing(clock, maxBodyBytes=MAX_BODY)
    yield served
    served.leave()


def statuses(peer: Peer) -> list[int]:
    """
    @return: The statuses of the responses.
    """
    return [answer.status for answer in peer.answers]


def isLast(peer: Peer) -> bool:
    """
    @return: Whether the only response is 200 and closes the connection.
    """
    (answer,) = peer.answers
    return (answer.status, answer.headers.get("connection")) == (200, "close")


# Refusals.

END = b"\r\n\r\n"

LINE = b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n"

DIGITS = GET[:-2] + b"Content-Length: " + b"1" * 5000 + b"\r\n"

LONG = chunk(b"x" * (MAX_BODY + 1))

FIELD = b"--limit\r\nContent-Disposition: form-data; name*=utf-8''a\r\n\r\n1\r\n"

FORM = post(len(FIELD), b"Content-Type: multipart/form-data; boundary=limit") + FIELD


def start(target: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """
    @return: A request without a body.
    """
    return b"GET " + target + b" " + version + b"\r\nHost: test\r\n\r\n"


def fields(*lines: bytes) -> bytes:
    """
    @return: A request with these header fields, and no others.
    """
    return b"".join(b"%s\r\n" % line for line in (b"GET / HTTP/1.1", *lines, b""))


REFUSED: dict[str, tuple[int, bytes]] = {
    "request line": (414, LINE),
    "request line without an end": (414, b"x" * 20_000),
    "request line of a megabyte": (414, b"GET /" + b"x" * 1_000_000),
    "header": (431, fields(b"X: " + b"x" * 20_000)),
    "header without an end": (431, fields(HOST)[:-2] + b"X: " + b"x" * 20_000),
    "many headers": (431, fields(*[b"X: y"] * 501)),
    "large headers": (431, fields(*[b"X: " + b"y" * 500] * 2000)),
    "continued header": (431, fields(b"X: y", *[b" y"] * 20_000)),
    "announced body": (413, post(MAX_BODY + 1)),
    "announced body that arrives": (413, whole(MAX_BODY * 1000)),
    "announced body of any size": (413, post(10**18)),
    "body after asking": (413, post(MAX_BODY + 1, b"Expect: 100-continue")),
    "one long chunk": (413, CHUNKED + LONG + chunk()),
    "one endless chunk": (413, CHUNKED + b"fffffff\r\n" + b"x" * MAX_BODY * 1000),
    "many chunks": (413, CHUNKED + chunk(b"x" * 100) * 11 + chunk()),
    "several long chunks": (413, CHUNKED + LONG * 3 + chunk(b"x") + chunk()),
    "no request": (400, b"How do you do?\r\n\r\n"),
    "no version": (400, b"GET /\r\nHost: test\r\n\r\n"),
    "wrong version": (400, start(b"/", b"HTTP/2.0")),
    "no path": (400, start(b"")),
    "space in the path": (400, start(b"/a b")),
    "control character": (400, start(b"/\x00")),
    "TLS": (400, bytes.fromhex("16030100c8010000c40303") + b"\r\n"),
    "header without a colon": (400, fields(b"Host", b"X: y")),
    "folded header": (400, fields(b"Host:", b" test")),
    "last header without a colon": (400, fields(b"Host")),
    "header without a name": (400, fields(b": test")),
    "space before the colon": (400, fields(b"Host : test")),
    "NUL in a header": (400, fields(b"Host: \x00", b"X: y")),
    "length that is not a number": (400, fields(HOST, b"Content-Length: 1x")),
    "negative length": (400, fields(HOST, b"Content-Length: -1")),
    "length of many digits": (400, DIGITS + b"\r\n"),
    "length of many digits before others": (400, DIGITS + b"X: y\r\n\r\n"),
    "no host": (400, fields(b"X: y")),
    "two hosts": (400, fields(HOST, b"Host: other")),
    "two hosts of HTTP/1.0": (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    "path without a slash": (400, start(b"x")),
    "URL without a host": (400, start(b"http:///x")),
    "other URL": (400, start(b"ftp://x/")),
    "URL with something before": (400, start(b"ahttp://x/")),
    "authority": (400, b"CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n"),
    "star without OPTIONS": (400, start(b"*")),
    "two lengths": (400, fields(HOST, *[b"Content-Length: 1"] * 2) + b"x"),
    "length and chunks": (400, CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n" + chunk()),
    "no encoding": (400, fields(HOST, b"Transfer-Encoding: identity")),
    "unknown encoding": (400, fields(HOST, b"Transfer-Encoding: gzip")),
    "method with odd letters": (400, b"G\xc3\x89T" + GET[3:]),
    "method of other bytes": (400, b"\xff\xfe" + GET[3:]),
    "method with NUL": (400, b"GE\x00T" + GET[3:]),
    "method that is not a token": (400, b"G(T" + GET[3:]),
    "length of a chunk": (400, CHUNKED + b"no\r\nx\r\n0\r\n\r\n"),
    "negative length of a chunk": (400, CHUNKED + b"-1\r\nx\r\n0\r\n\r\n"),
    "end of a chunk": (400, CHUNKED + b"1\r\nxy\r\n0\r\n\r\n"),
    "endless length of a chunk": (400, CHUNKED + b"1" * 2000),
    "encoded name in a form": (400, FORM),
    "bad request before an endless line": (400, b"nonsense\r\n" + b"x" * 20_000),
    "bad request before good ones": (400, b"nonsense\r\n\r\n" + GET * 3),
}

# Servers that read these requests differently take a body for a request.
REFUSED |= {
    repr(line): (400, fields(HOST, line) + b"x")
    for line in (
        b"Content-Length: ",
        b"Content-Length: +1",
        b"Content-Length: 0x1",
        b"Content-Length: 1 1",
        b"Content-Length: 1, 1",
        b"Content-Length: \xc2\xb2",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"X Y: z",
        b"X\xe9: z",
        b"X: a\rY: b",
        b"X: a\nY: b",
    )
}
REFUSED |= {
    f"chunk {length!r}": (400, CHUNKED + length + b"\r\nx\r\n0\r\n\r\n")
    for length in (b"", b"1 ", b"+1", b"0x1", b"1_0", b"1;a=\x00")
}
REFUSED |= {
    f"{line!r}": (400, line + b"\r\nHost: test\r\n\r\n")
    for line in (
        b"GET  / HTTP/1.1",
        b"GET\t/\tHTTP/1.1",
        b"GET / http/1.1",
        b"GET / HTTP/0.9",
        b"GET / HTTP/1.2",
        b"GET / HTTP/1.10",
        b"GET /\xc3\xa9 HTTP/1.1",
        b"GET / HTTP/1.1\r\n X: y",
    )
}

REFUSALS = [pytest.param(*each, id=name) for name, each in REFUSED.items()]


@pytest.mark.parametrize(("status", "data"), REFUSALS)
@pytest.mark.parametrize("size", [7, 333, 2_000_000])
def test_a_wrong_request_is_refused_once_and_clearly(
    status: int, data: bytes, size: int, served: Echoing
) -> None:
    """
    A malformed request gets one response with a problem, however the network cuts it.
    The connection ends, and no resource sees the request.
    """
    end = min(len(data), 20_000 * size)
    peer = served.connect(
        *(data[n : n + size] for n in range(0, end, size)), stays=True
    )
    (answer,) = peer.answers
    assert answer.status == json.loads(answer.body)["status"] == status
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/problem+json"
    assert served.echo.asked == []
    assert peer.transport.writeClosed
    assert not peer.closed


@pytest.mark.parametrize(
    "name",
    [
        "request line of a megabyte",
        "large headers",
        "announced body that arrives",
        "one endless chunk",
        "bad request before good ones",
    ],
)
@asynchronous
async def test_a_refused_client_receives_the_response(name: str) -> None:
    """
    On a real connection a refused client receives the problem even while it is still
    sending; other clients are served.
    """
    from twisted.internet import reactor

    status, data = REFUSED[name]
    with logged() as events:
        async with serving(Site(Echo(), reactor, maxBodyBytes=MAX_BODY)) as served:
            wire = await served.connect(data)
            received = await wire.whenReceived(b"}")
            assert [answer.status for answer in answersIn(received)] == [status]
            await (await served.connect(GET)).whenReceived(b"GET / b''")
            assert wire.received == received
    assert errorsIn(events) == []


@pytest.mark.parametrize("name", ["announced body", "two hosts", "one long chunk"])
def test_a_refusal_of_head_has_no_body(name: str, served: Echoing) -> None:
    """
    The refusal of HEAD has no body, which would be taken for another response; the
    refusal of the request behind it has one.
    """
    status, data = REFUSED[name]
    peer = served.connect(b"HEAD" + data[data.index(b" ") :])
    (answer,) = answersIn(peer.received, bodies=False)
    assert answer.status == status
    assert int(answer.headers["content-length"]) > 0
    other = served.connect(b"HEAD" + GET[3:])
    before = len(other.received)
    other.send(b"nonsense\r\n")
    (answer,) = answersIn(other.received[before:])
    assert json.loads(answer.body)["status"] == 400


def test_a_refused_client_that_stays_is_cut_off(served: Echoing, clock: Clock) -> None:
    """
    Data from a refused client are discarded for two seconds, then its connection is
    aborted.
    """
    peer = served.connect(post(MAX_BODY + 1), stays=True)
    for _ in range(20):
        assert not peer.closed
        clock.advance(0.1)
        peer.send(GET)
    passTime(clock, 1)
    assert peer.closed
    assert peer.transport.aborted
    assert len(peer.answers) == 1
    assert served.echo.asked == []


def test_a_refusal_is_sent_before_tls_ends(served: Echoing) -> None:
    """
    A refusal is sent before TLS ends, since closing one direction below TLS would cut
    off unencrypted data.
    """
    peer = served.connect()
    directlyProvides(peer.transport, ISSLTransport)
    peer.send(post(MAX_BODY + 1))
    assert statuses(peer) == [413]
    assert not peer.transport.writeClosed
    assert peer.closed


# Bodies and pipelined data share one bound.


def test_a_body_of_an_odd_type_is_not_a_form(served: Echoing) -> None:
    """
    A body of an unusual type is not parsed as a form: its resource reads it.
    """
    for kind in (b"\x85", b"text/\x85plain"):
        head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n"
        peer = served.connect(head + b"Content-Type: " + kind + b"\r\n\r\nabc")
        assert peer.answers[0].body == b"POST / b'abc'"


def test_a_long_body_does_not_reach_the_disk(served: Echoing) -> None:
    """
    A long body stays in memory, within a bound; Twisted would write it to a file,
    without a limit for a request.
    """
    served.site.connections.maxBodyBytes = 1_000_000
    peer = served.connect(whole(500_000, b"/"))
    peer.send(CHUNKED + chunk(b"x" * 500_000) + chunk())
    assert statuses(peer) == [200] * 2
    assert [isinstance(each, BytesIO) for each in served.echo.contents] == [True] * 2
    # Ten thousand waiting requests keep their bodies in memory.
    assert Site(Echo(), Clock()).connections.maxBodyBytes == 64 * 1024


def test_all_bodies_together_have_a_bound(served: Echoing) -> None:
    """
    A body beyond the bound gets 503, before it is sent if its length is known. A
    request that was answered or abandoned makes room.
    """
    site = served.site
    site.connections.maxTotalBodyBytes = 100
    chunked = CHUNKED.replace(b" / ", b" /held ")
    served.connect(whole(60))
    refused = served.connect(chunked + chunk(b"x" * 40))
    assert site.connections.bodyBytes == 100
    refused.send(chunk(b"x"))
    (answer,) = refused.answers
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert answer.headers["retry-after"] == "1"
    message = "Too many request bodies are waiting already"
    assert json.loads(answer.body)["error"] == message
    asking = served.connect(post(41, b"Expect: 100-continue"))
    assert (statuses(asking), site.connections.bodyBytes) == ([503], 60)
    leaving = served.connect(chunked + chunk(b"x" * 40) + chunk())
    assert site.connections.bodyBytes == 100
    served.release()
    assert site.connections.bodyBytes == 40
    leaving.leave()
    assert site.connections.bodyBytes == 0


@pytest.mark.parametrize("segments", [[b"", GET[:20], GET[20:] + b"x" * 90], [GET * 5]])
def test_pipelined_data_count_in_the_bound(
    segments: list[bytes], served: Echoing
) -> None:
    """
    Pipelined data beyond the bound are discarded, even if they arrive with the end of a
    body; the request before them is answered.
    """
    served.site.connections.maxTotalBodyBytes = 200
    peer = served.connect(whole(90) + segments[0])
    for number, segment in enumerate(segments[1:]):
        assert served.site.connections.bodyBytes == 90 + 20 * number
        peer.send(segment)
    assert served.site.connections.bodyBytes == 90
    served.release()
    assert isLast(peer)
    assert served.site.connections.bodyBytes == 0


def test_requests_that_do_not_wait_need_no_room(served: Echoing) -> None:
    """
    Requests in one segment, and bodies one after another, need no room together.
    """
    served.site.connections.maxTotalBodyBytes = 160
    peer = served.connect(whole(90, b"/") + GET * 5 + whole(80) + post(80))
    served.release()
    peer.send(b"x" * 80)
    assert statuses(peer) == [200] * 8
    assert served.site.connections.bodyBytes == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 60))))
@example([(1, 6, 38), (0, 0, 25), (0, 6, 42)])
def test_no_byte_is_forgotten_or_counted_twice(
    steps: list[tuple[int, int, int]],
) -> None:
    """
    Whatever clients do, the count stays within the bound and returns to zero.
    """
    served = Echoing(clock := Clock())
    site = served.site
    site.connections.maxBodyBytes, site.connections.maxTotalBodyBytes = 50, 300
    peers = [served.connect() for _ in range(3)]
    for number, action, size in steps:
        sent = [
            post(size, path=b"/held"),
            b"x" * size,
            CHUNKED + chunk(b"x" * max(size, 1)),
            chunk(),
            whole(size, b"/held/read"),
            # The second request is sent ahead of the response to the first one.
            whole(size) * 2,
        ]
        if action < len(sent):
            peers[number].send(sent[action])
        elif action == 7:
            peers[number].leave()
            peers[number] = served.connect()
        elif served.echo.held:
            served.release()
        assert 0 <= site.connections.bodyBytes <= site.connections.maxTotalBodyBytes
    for peer in served.peers:
        peer.leave()
    clock.advance(10)
    assert site.connections.bodyBytes == 0


# Unusual valid requests.

GREETING = GET[:-2] + b"Content-Length: 5\r\n\r\nhello"

CHUNKS = GET[:-2] + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"

LONGEST = chunk(b"x" * (MAX_BODY - 1)) + chunk(b"x") + chunk()

ACCEPTED: dict[str, tuple[bytes, list[str]]] = {
    "URL": (start(b"http://test/say"), ["GET /say b''"]),
    "long URL": (
        start(b"HTTPS://u@test:80/say?a=http://b"),
        ["GET /say?a=http://b b''"],
    ),
    "URL without a path": (start(b"http://test"), ["GET / b''"]),
    "URL with a query alone": (start(b"http://test?a=b"), ["GET /?a=b b''"]),
    "URL with two slashes": (start(b"http://test//say"), ["GET //say b''"]),
    "path like a URL": (start(b"/http://test/say"), ["GET /http://test/say b''"]),
    "about the server": (b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n", []),
    "HTTP/1.0 without a host": (b"GET /old HTTP/1.0\r\n\r\n", ["GET /old b''"]),
    "line before a request": (b"\r\n" + GET, ["GET / b''"]),
    "body on GET": (GREETING + GET, ["GET / b'hello'", "GET / b''"]),
    "chunks on GET": (CHUNKS + GET, ["GET / b'hello'", "GET / b''"]),
    "length with zeros": (fields(HOST, b"Content-Length: 001") + b"x", ["GET / b'x'"]),
    "extended chunk": (CHUNKED + b"1;a=b\r\nx\r\n0\r\n\r\n", ["POST / b'x'"]),
    "trailer": (CHUNKED + b"0\r\nX: y\r\n\r\n", ["POST / b''"]),
    "longest body": (whole(MAX_BODY, b"/"), [f"POST / {b'x' * MAX_BODY!r}"]),
    "longest chunks": (CHUNKED + LONGEST, [f"POST / {b'x' * MAX_BODY!r}"]),
    "most headers": (fields(HOST, *[b"X: y"] * 499), ["GET / b''"]),
    "long path": (start(b"/" + b"x" * 16_000), [f"GET /{'x' * 16_000} b''"]),
}


@pytest.mark.parametrize(
    ("data", "asked"), [pytest.param(*each, id=name) for name, each in ACCEPTED.items()]
)
@pytest.mark.parametrize("size", [7, 100_000])
def test_an_unusual_request_is_answered(
    data: bytes, asked: list[str], size: int, served: Echoing
) -> None:
    """
    A valid request may have an absolute URL, a body with any method, an old version, or
    the maximum size, however it arrives.
    """
    peer = served.connect(*(data[n : n + size] for n in range(0, len(data), size)))
    assert statuses(peer) == [200] * max(1, len(asked))
    assert served.echo.asked == asked
    assert peer.closed is (b"HTTP/1.0" in data)


def test_http_2_is_not_offered(
    served: Echoing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    TLS clients are offered only HTTP/1.1, even if Twisted could speak HTTP/2.
    """
    monkeypatch.setattr("twisted.web.http.H2_ENABLED", True)
    assert served.site.acceptableProtocols() == [b"http/1.1"]


def test_a_client_that_asks_before_sending_a_body_may_go_on(served: Echoing) -> None:
    """
    C{Expect: 100-continue} is answered with 100.
    """
    peer = served.connect(post(3, b"Expect: 100-continue"))
    assert statuses(peer) == [100]
    peer.send(b"abc")
    assert served.echo.asked == ["POST / b'abc'"]
    assert statuses(peer) == [100, 200]


# Pipelining.


def test_pipelined_requests_are_answered_in_order(served: Echoing) -> None:
    """
    The next request starts after the response to the one before; a refusal has its
    turn, too.
    """
    paths = [b"/held/%d" % n if n % 3 == 0 else b"/%d" % n for n in range(20)]
    requests = b"".join(start(path) for path in paths)
    peer = served.connect(requests + b"nonsense\r\n\r\n" + GET)
    for n in range(7):
        assert len(served.echo.asked) == 3 * n + 1
        served.release()
    *answers, refusal = peer.answers
    assert [answer.body.split()[1] for answer in answers] == paths
    assert refusal.status == 400


@pytest.mark.parametrize("size", [1, 100, 10_000, 1_000_000])
def test_too_many_pipelined_data_are_discarded(
    size: int, served: Echoing, clock: Clock
) -> None:
    """
    A client that pipelines more than 64 KiB gets the response to the request in
    progress, and then its connection ends.
    """
    data = GET * 3000
    segments = [data[n : n + size] for n in range(0, len(data), size)]
    peer = served.connect(HELD, *segments, stays=True)
    passTime(clock, 2)
    # An unread connection does not show that its client has disconnected.
    assert peer.transport.producerState == "producing"
    assert served.site.connections.bodyBytes == 0
    served.release()
    peer.send(GET)
    assert isLast(peer)
    assert peer.transport.writeClosed
    # The transport would not send the rest of a long response to a paused producer.
    assert peer.transport.producer is None
    assert served.echo.asked == ["GET /held b''"]
    assert not peer.closed
    passTime(clock, 3)
    assert peer.closed
    assert peer.transport.aborted


def test_each_response_makes_room(served: Echoing) -> None:
    """
    The limit holds for the data that wait now, and not for the total.
    """
    peer = served.connect(HELD, *[GET] * 1000)
    assert peer.transport.producerState == "producing"
    for _ in range(100):
        peer.send(HELD + GET * 100)
        served.release()
    assert len(peer.answers) == 1000 + 100 * 101 - 100
    assert not peer.transport.writeClosed


def test_nothing_is_kept_behind_the_last_request(served: Echoing) -> None:
    """
    Data behind C{Connection: close} are discarded, and do not reset the connection.
    """
    data = HELD[:-2] + b"Connection: close\r\n\r\n" + GET
    peer = served.connect(data, stays=True)
    peer.send(GET * 1000)
    served.release()
    assert len(peer.answers) == 1
    assert served.site.connections.bodyBytes == 0
    assert peer.transport.writeClosed
    assert not peer.closed


@asynchronous
async def test_a_pipelining_client_that_disconnects_is_noticed() -> None:
    """
    If a client has sent too much and then disconnects, the work for it is cancelled.
    """
    from twisted.internet import reactor

    echo = Echo()
    async with serving(Site(echo, reactor)) as served:
        wire = await served.connect(HELD)
        await echo.whenHeld
        cancelled = resultOf(echo.held[0])
        wire.send(GET * 30_000)
        wire.finish()
        await wire.whenClosed()
        assert await served.site.stop(30) == 0
        assert not cancelled.pending
        assert len(echo.asked) == 1


# Connections that are lost, or idle.

HALF = [
    b"",
    b"GET /sa",
    b"GET / HTTP/1.1\r\nHo",
    post(100) + b"half",
    CHUNKED + b"5\r\nha",
    CHUNKED + b"5\r\nhello\r\n",
    HELD + b"GET / HT",
]


@pytest.mark.parametrize("data", [*HALF, GET, LINE, post(MAX_BODY + 1)])
def test_a_connection_that_ended_is_forgotten(data: bytes, served: Echoing) -> None:
    """
    An incomplete request is never carried out, and a held one is cancelled. Without an
    access log nothing is logged, and no object of the connection stays in memory.
    """
    with logged() as events:
        served.connect(data)
        peer = served.peers.pop()
        channel = weakref.ref(peer.channel)
        peer.leave()
    del peer
    assert events == []
    assert all(held.called for held in served.echo.held)
    assert len(served.echo.asked) == data.startswith((GET, HELD))
    served.echo.held.clear()
    gc.collect()
    assert channel() is None


def test_an_idle_connection_is_closed_after_75_seconds(
    served: Echoing, clock: Clock
) -> None:
    """
    A connection without a request is closed after 75 seconds, an incomplete request
    after 30 seconds. A client that waits for its response has no time limit.
    """
    waiting = served.connect(HELD)
    idle = [served.connect(), served.connect(b"GET / HT"), served.connect(GET)]
    passTime(clock, 30)
    assert statuses(idle[1]) == []
    passTime(clock, 1)
    assert statuses(idle[1]) == [408]
    passTime(clock, 44)
    assert [peer.closed for peer in idle] == [False, True, False]
    passTime(clock, 1)
    assert [peer.closed for peer in idle] == [True] * 3
    passTime(clock, 3600)
    served.release()
    assert statuses(waiting) == [200]


def test_the_time_for_idle_connections_can_be_set(clock: Clock) -> None:
    """
    The option closes idle connections after its time; a client that sends a request in
    time keeps its connection.
    """
    served = Echoing(clock, keepAlive=3)
    idle, used = served.connect(GET), served.connect(GET)
    passTime(clock, 3)
    used.send(GET)
    assert [peer.closed for peer in (idle, used)] == [False, False]
    passTime(clock, 1)
    assert [peer.closed for peer in (idle, used)] == [True, False]
    served.leave()


# Stopping.


@pytest.mark.parametrize(
    ("before", "after", "seconds", "expected"),
    [
        # A client that has already connected has one second for its request.
        (GET, b"", 1, [200]),
        (b"", b"", 1, []),
        (GET[:-2], b"", 1, [503]),
        (GET + GET[:-2], b"", 1, [200, 503]),
        (b"", GET, 0, [200]),
        (GET[:-2], b"\r\n", 0, [200]),
        (LINE, b"", 0, [414]),
        (b"", LINE, 0, [414]),
        (HELD + GET * 3000, b"", 0, [200]),
    ],
    ids=range(9),
)
def test_a_stop_closes_connections_in_time(
    before: bytes,
    after: bytes,
    seconds: int,
    expected: list[int],
    served: Echoing,
    clock: Clock,
) -> None:
    """
    At a stop, connections close after the time limit for their clients; no timer is
    left.
    """
    peer = served.connect(before)
    stopped = resultOf(served.site.stop(30))
    peer.send(after)
    while served.echo.held:
        served.release()
    if seconds:
        passTime(clock, seconds)
        assert not peer.closed
        passTime(clock, 1)
    assert peer.closed
    assert statuses(peer) == expected
    assert stopped.value == 0
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("before", "after"),
    [(HELD + GET, b""), (start(b"/held/begun"), b""), (b"", HELD)],
    ids=["pipelined", "begun", "on its way"],
)
def test_requests_in_progress_are_the_last_ones(
    before: bytes, after: bytes, served: Echoing, clock: Clock
) -> None:
    """
    A request in progress is answered, with C{Connection: close} if its response has not
    begun; pipelined requests behind it do not begin.
    """
    peer = served.connect(before)
    stopped = resultOf(served.site.stop(30))
    peer.send(after)
    passTime(clock, 29)
    assert not peer.closed
    with logged() as events:
        served.release()
    assert errorsIn(events) == []
    assert b"GET /held" in peer.received
    assert (b"Connection: close" in peer.received) == (b"begun" not in before)
    passTime(clock, 3)
    assert peer.closed
    assert len(served.echo.asked) == 1
    assert stopped.value == 0


def test_a_connection_after_the_stop_has_a_second(
    served: Echoing, clock: Clock
) -> None:
    """
    A connection that the operating system has accepted before the stop may arrive late,
    and has one second.
    """
    assert resultOf(served.site.stop(30)).value == 0
    late, idle = served.connect(GET), served.connect()
    assert isLast(late)
    assert late.closed
    passTime(clock, 1)
    assert not idle.closed
    passTime(clock, 1)
    assert idle.closed


def test_the_timeout_ends_the_stop(served: Echoing, clock: Clock) -> None:
    """
    At its timeout the stop returns the number of open connections, which can then be
    aborted.
    """
    peers = [served.connect(HELD) for _ in range(3)]
    held = list(served.echo.held)
    stopped = resultOf(served.site.stop(30))
    served.release()
    clock.advance(29)
    assert stopped.pending
    clock.advance(1)
    assert stopped.value == 2
    served.site.abort()
    assert [peer.closed for peer in peers] == [True] * 3
    assert [peer.transport.aborted for peer in peers] == [False, True, True]
    assert all(each.called for each in held)


def test_a_stop_may_be_cancelled_and_repeated(served: Echoing, clock: Clock) -> None:
    """
    A cancelled stop fires with the number of requests in progress. The next stop waits
    again, and connections get no new time limit.
    """
    idle, busy = served.connect(), served.connect(HELD)
    stopping = served.site.stop(30)
    cancelled = resultOf(stopping)
    passTime(clock, 1)
    stopping.cancel()
    assert cancelled.value == 1
    stopped = resultOf(served.site.stop(30))
    passTime(clock, 1)
    assert idle.closed
    served.release()
    assert busy.closed
    assert stopped.value == 0


# Headers that protect a browser.


class Pages(Echo):
    """
    Responses of all kinds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.putChild(b"plain", Plain(lambda request: b"plain"))
        self.putChild(b"own", Rendered(self.own))

    def own(self, request: Request) -> Response:
        """
        Set the headers of this response.
        """
        headers = [(b"Referrer-Policy", b"no-referrer"), (b"Server", b"mine")]
        request.setHeader("strict-transport-security", "max-age=1")
        return Response(b"", b"text/plain", headers=headers)


FORWARDED = b"X-Forwarded-Proto: "


@pytest.mark.parametrize(
    ("trusted", "forwarded", "secure", "isTLS"),
    [
        ([], b"", False, False),
        ([], b"", True, True),
        ([], b"https", False, False),
        (["192.0.2.1"], b"https", False, True),
        (["192.0.2.1"], b"http", True, False),
    ],
    ids=["plain", "TLS", "stranger", "proxy with TLS", "proxy without"],
)
@pytest.mark.parametrize(
    "data",
    [
        GET,
        b"HEAD" + GET[3:],
        b"DELETE" + GET[3:],
        GET.replace(b" / ", b" /plain "),
        GET.replace(b" / ", b" /held/begun "),
        b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n",
        GET[:-2] + b"Host: again\r\n\r\n",
    ],
    ids=["ours", "HEAD", "problem", "twisted", "begun", "*", "refused"],
)
def test_every_response_protects_its_browser(
    data: bytes,
    trusted: list[str],
    forwarded: bytes,
    secure: bool,
    isTLS: bool,
    clock: Clock,
) -> None:
    """
    Browsers do not guess types, do not send the referrer to other sites, and use only
    TLS after a response over TLS. Each header appears once.
    """
    site = Site(Pages(), clock, proxies=Proxies(trusted), hstsSeconds=60)
    peer = Peer(site, clock)
    if secure:
        directlyProvides(peer.transport, ISSLTransport)
    end = data.index(b"\r\n") + 2
    more = FORWARDED + forwarded + b"\r\n" if forwarded else b""
    peer.send(data[:end] + more + data[end:])
    (answer,) = answersIn(peer.received.partition(b"\r\n\r\n")[0] + END, bodies=False)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    strict = answer.headers.get("strict-transport-security")
    assert strict == ("max-age=60" if isTLS else None)
    peer.leave()


def test_a_resource_may_set_these_headers_itself(clock: Clock) -> None:
    """
    A header that a resource sets replaces the site's own, and appears once.
    """
    peer = Peer(Site(Pages(), clock, hstsSeconds=60), clock)
    directlyProvides(peer.transport, ISSLTransport)
    for _ in range(2):
        peer.send(GET.replace(b" / ", b" /own "))
        headers = peer.answers[-1].headers
        assert headers["strict-transport-security"] == "max-age=1"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["server"] == "mine"
    peer.send(GET)
    headers = peer.answers[-1].headers
    assert headers["strict-transport-security"] == "max-age=60"
    assert headers["server"].startswith("TwistedWeb/")
    peer.leave()


def test_strict_transport_is_a_decision_of_the_operator(clock: Clock) -> None:
    """
    By default a site sends no Strict-Transport-Security, which would affect the other
    ports of its host.
    """
    peer = Peer(Site(Pages(), clock), clock)
    directlyProvides(peer.transport, ISSLTransport)
    peer.send(GET)
    assert "strict-transport-security" not in peer.answers[0].headers
    peer.leave()


# The access log.


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            b'GET /" HTTP/1.1\r\nHost: test\r\nUser-Agent: {curl}\x85\r\n\r\n',
            r'"GET /\" HTTP/1.1" 200 "-" "{curl}\x85" 10 bytes in 0.000 s',
        ),
        (
            b"PUT" + GET[3:-2] + b"Referer: http://test/\r\n\r\n",
            '"PUT / HTTP/1.1" 405 "http://test/" "-" 217 bytes in 0.000 s',
        ),
        (b"nonsense\r\n", '"- - -" 400 "-" "-"'),
        (post(MAX_BODY + 1), '"POST / HTTP/1.1" 413 "-" "-"'),
        (LINE, '"- - -" 414 "-" "-"'),
    ],
    ids=["answered", "problem", "400", "413", "414"],
)
def test_the_access_log_has_a_line_for_each_request(
    data: bytes, line: str, clock: Clock
) -> None:
    """
    Refused requests have a line, too, and so has a request after listening has stopped.
    No request can cause a second line. The id is a field of the event, as in every
    event of the request.
    """
    site = Site(Echo(), clock, accessLog=True, maxBodyBytes=MAX_BODY)
    site.doStart()
    peer = Peer(site, clock)
    site.doStop()
    with logged() as events:
        peer.send(data)
    requestId = peer.answers[0].headers["x-request-id"]
    assert [event["requestId"] for event in events] == [requestId]
    assert textsOf(events) == [f"192.0.2.1 {line}"]
    peer.leave()


def test_the_access_log_has_durations(clock: Clock) -> None:
    """
    The duration is the time that the request was in progress, even if the client
    disconnects first.
    """
    served = Echoing(clock, accessLog=True)
    first, _ = served.connect(HELD), served.connect(HELD)
    clock.advance(1.5)
    with logged() as events:
        first.leave()
        served.echo.held[1].callback(None)
    served.leave()
    assert textsOf(events) == [
        '192.0.2.1 "GET /held HTTP/1.1" gone "-" "-" 0 bytes in 1.500 s',
        '192.0.2.1 "GET /held HTTP/1.1" 200 "-" "-" 13 bytes in 1.500 s',
    ]


@pytest.mark.parametrize("more", [b"", HOST + b"\r\n"], ids=["answered", "refused"])
@pytest.mark.parametrize(
    ("trusted", "client"), [([], "192.0.2.1"), (["192.0.2.1"], "203.0.113.9")]
)
def test_the_access_log_knows_clients_behind_a_proxy(
    more: bytes, trusted: list[str], client: str, clock: Clock
) -> None:
    """
    Behind a trusted proxy, the address in the access log is the address of the client.
    """
    site = Site(Echo(), clock, accessLog=True, proxies=Proxies(trusted))
    peer = Peer(site, clock)
    with logged() as events:
        peer.send(GET[:-2] + b"X-Forwarded-For: 203.0.113.9\r\n" + more + b"\r\n")
    (line,) = textsOf(events)
    assert line.startswith(f"{client} ")
    peer.leave()


def test_a_client_of_a_unix_socket_has_no_address(clock: Clock) -> None:
    """
    The access log shows a client of a UNIX socket as such.
    """
    site = Site(Echo(), clock, accessLog=True)
    with logged() as events:
        site.requestRefused(
            UNIXAddress("/run/s"), HTTPStatus.BAD_REQUEST, "mine", Headers(), None
        )
    assert textsOf(events) == ['unix "- - -" 400 "-" "-"']
