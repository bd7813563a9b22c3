"""
Pipelined requests are answered in order, and reach the resource as they were sent,
however the network cuts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from string import ascii_letters, digits
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock, deferLater

from tsrv.web.site import Site

from .recorder import Recorder, Seen, answersByMethod, seenBy
from .websupport import Answer, Peer, asynchronous, errorsIn, logged, serving

COUNT = 1000

MAX_TURNS = 10_000


@dataclass(frozen=True)
class Sent:
    """
    A request.

    @ivar body: The body; L{None} for a request without one.
    @ivar chunks: The body in chunks, each with its extension; without chunks, a length
        is sent.
    """

    method: str = "GET"
    target: str = "/"
    version: str = "1.1"
    fields: tuple[tuple[str, bytes], ...] = ()
    body: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    trailers: bytes = b""
    isChunked: bool = False

    @property
    def data(self) -> bytes:
        """
        The bytes of the request.
        """
        lines = [f"{self.method} {self.target} HTTP/{self.version}".encode()]
        lines += [name.encode() + b":" + value for name, value in self.allFields]
        body = self.body or b""
        if self.isChunked:
            body = b"".join(
                b"%x%s\r\n%s\r\n" % (len(data), extension, data)
                for data, extension in self.chunks
            )
            body += b"0\r\n%s\r\n" % self.trailers
        return b"\r\n".join([*lines, b"", body])

    @property
    def allFields(self) -> list[tuple[str, bytes]]:
        """
        The header fields, including the fields of the framing.
        """
        fields = [("Host", b"test"), *self.fields]
        if self.isChunked:
            fields.append(("Transfer-Encoding", b" chunked"))
        elif self.body is not None:
            fields.append(("Content-Length", b" %d" % len(self.body)))
        return fields

    @property
    def uri(self) -> str:
        """
        The target as a resource sees it.
        """
        return self.target.removeprefix("http://test") or "/"

    @property
    def seen(self) -> Seen:
        """
        The request as a resource sees it.
        """
        body = self.body or b""
        if self.isChunked:
            body = b"".join(data for data, _ in self.chunks)
        return self.method, self.uri, body

    @property
    def headers(self) -> dict[bytes, list[bytes]]:
        """
        The header fields that a resource sees, by their names in lower case.
        """
        headers: dict[bytes, list[bytes]] = {}
        for name, value in self.allFields:
            headers.setdefault(name.lower().encode(), []).append(value.strip(b" \t"))
        return headers

    @property
    def isLast(self) -> bool:
        """
        Whether the connection closes after the response.
        """
        tokens = b",".join(self.headers.get(b"connection", [])).lower().split(b",")
        options = [token.strip() for token in tokens]
        if self.version == "1.0":
            return b"keep-alive" not in options
        return b"close" in options


def checkAnswers(sent: list[Sent], answers: list[Answer]) -> None:
    """
    Check that each request has its response, in order. A 100 may precede the response
    to a request that has asked for it.
    """
    answers = list(answers)
    for request in sent:
        answer = answers.pop(0)
        if answer.status == 100:
            assert b"expect" in request.headers
            answer = answers.pop(0)
        assert answer.status == 200
        if request.uri == "*":
            assert answer.body == b""
        else:
            assert seenBy(answer) == request.seen
            assert bool(answer.body) is (request.method != "HEAD")
    assert answers == []


# A thousand requests.


def mixed(padding: int) -> list[Sent]:
    """
    @return: A thousand requests of mixed methods.
    """
    requests = []
    pad = (("X", b"y" * padding),) if padding else ()
    for number in range(COUNT):
        body = b"%d" % number
        path = f"/held/{number}" if number % 7 == 3 else f"/{number}"
        halves = ((body[:1], b""), (body[1:], b";a")) if body[1:] else ((body, b""),)
        requests.append(
            [
                Sent("GET", path, fields=pad),
                Sent("HEAD", path, fields=pad),
                Sent("POST", path, body=body, fields=pad),
                Sent("POST", path, isChunked=True, chunks=halves, fields=pad),
                Sent("PUT", path, body=body, fields=pad),
                Sent("OPTIONS", "*", fields=pad),
                Sent("GET", path, body=body, fields=pad),
                Sent("DELETE", path, fields=pad),
            ][number % 8]
        )
    return requests


@pytest.mark.parametrize("size", [1, 53, 1000, 10_000])
@pytest.mark.parametrize("padding", [0, 200])
def test_a_thousand_requests_are_answered_in_order(
    size: int, padding: int, clock: Clock
) -> None:
    """
    Each request starts after the response to the one before, and the responses have the
    order of the requests, even if more data arrive than are kept.
    """
    requests = mixed(padding)
    methods = [request.method for request in requests]
    seen = [request.seen for request in requests if request.uri != "*"]
    data = b"".join(request.data for request in requests)
    recorder = Recorder()
    site = Site(recorder, clock)
    peer = Peer(site, clock)
    position = 0
    for _ in range(len(data) + MAX_TURNS):
        if len(recorder.seen) == len(seen) and not recorder.held:
            break
        assert len(recorder.held) <= 1
        if position < len(data) and peer.transport.producerState == "producing":
            peer.send(data[position : position + size])
            position += size
        elif recorder.held:
            recorder.held.pop().callback(None)
        clock.advance(0)
    assert recorder.seen == seen
    checkAnswers(requests, answersByMethod(peer.received, methods))
    assert not peer.closed
    peer.leave()
    assert site.connections.bodyBytes == 0


@pytest.mark.parametrize("padding", [0, 200])
@asynchronous
async def test_a_thousand_requests_are_answered_over_a_real_connection(
    padding: int,
) -> None:
    """
    A client that sends everything at once, more than the server keeps, gets every
    response in order.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    requests = mixed(padding)
    recorder = Recorder()
    with logged() as events:
        async with serving(Site(recorder, reactor)) as served:
            wire = await served.connect(b"".join(request.data for request in requests))
            last = wire.whenReceived(b'"/999"')
            while not last.called:
                assert len(recorder.held) <= 1
                if recorder.held:
                    recorder.held.pop().callback(None)
                await deferLater(reactor, 0)
            received = await last
    methods = [request.method for request in requests]
    checkAnswers(requests, answersByMethod(received, methods))
    assert errorsIn(events) == []


# Any requests.

METHODS = st.sampled_from(
    ["DELETE", "MKCOL", "M-SEARCH", "OPTIONS", "PATCH", "PUT", "SOURCE", "TRACE"]
)

TOKENS = st.text(ascii_letters + digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=8)

NAMES = TOKENS.map("X-".__add__) | st.sampled_from(
    ["Accept", "content-type", "USER-AGENT", "Cookie", "X", "Upgrade", "TE", "Via"]
)

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))

VALUES = st.text(
    VISIBLE + " \t" + "".join(map(chr, range(0x80, 0x100))), max_size=20
).map(lambda text: text.encode("latin-1"))

FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=4)

PATHS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["/", "/held", "/held/", "//", "/a/../"]),
        st.text(ascii_letters + digits + "/-._~!$&'()*+,;=:@%?", max_size=12),
    ),
)

TARGETS = PATHS | st.sampled_from(["http://test", "http://test/x?y"])

QUOTED = st.text(ascii_letters + digits + " \t;,=:/[]", max_size=8).map(
    lambda text: f'"{text}"'
)

EXTENSIONS = st.lists(
    st.builds(
        lambda name, value: f";{name}{value}".encode(),
        TOKENS,
        st.just("") | (TOKENS | QUOTED).map("=".__add__),
    ),
    max_size=3,
).map(b"".join)

BODIES = st.binary(max_size=50) | st.sampled_from(
    [b"0\r\n\r\n", b"\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n"]
)

CHUNKS = st.lists(st.tuples(BODIES.filter(bool), EXTENSIONS), max_size=4).map(tuple)

TRAILERS = FIELDS.map(
    lambda fields: b"".join(name.encode() + b":" + v + b"\r\n" for name, v in fields)
)

EXPECTATIONS = st.sampled_from([b"100-continue", b" 100-Continue "])

CONNECTIONS = st.sampled_from(
    [b"keep-alive"] * 8 + [b"Keep-Alive, TE", b"upgrade", b"close", b"x ,Close"]
)


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """
    Make a valid request.
    """
    version = draw(st.sampled_from(["1.1"] * 5 + ["1.0"]))
    method = draw(st.sampled_from(["GET", "HEAD", "POST"]) | METHODS)
    target = draw(TARGETS)
    if method == "OPTIONS" and draw(st.booleans()):
        target = "*"
    fields = draw(FIELDS)
    if version == "1.0" or draw(st.integers(0, 4)) == 0:
        fields.append(("Connection", draw(CONNECTIONS)))
    framing = draw(st.sampled_from(["none", "length", "chunks"]))
    if framing == "none":
        return Sent(method, target, version, tuple(fields))
    if version == "1.1" and draw(st.booleans()):
        fields.append(("Expect", draw(EXPECTATIONS)))
    if framing == "length" or version == "1.0":
        return Sent(method, target, version, tuple(fields), draw(BODIES))
    return Sent(
        method,
        target,
        version,
        tuple(fields),
        isChunked=True,
        chunks=draw(CHUNKS),
        trailers=draw(TRAILERS),
    )


@settings(max_examples=300)
@given(
    st.lists(requests(), min_size=1, max_size=8),
    st.lists(st.integers(0, 2000), max_size=20) | st.just(list(range(2000))),
    st.booleans(),
)
def test_a_resource_sees_what_was_sent(
    sent: list[Sent], cuts: list[int], isEager: bool
) -> None:
    """
    For any valid requests, however the network cuts them, a resource sees the method,
    the target, the header fields and the body of each. Each request has its response,
    in order, up to the last one of the connection.
    """
    data = b"".join(request.data for request in sent)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    count = next((n for n, each in enumerate(sent, 1) if each.isLast), len(sent))
    expected = sent[:count]
    seen = [request for request in expected if request.uri != "*"]
    clock, recorder = Clock(), Recorder()
    peer = Peer(Site(recorder, clock), clock)

    def release() -> None:
        while recorder.held:
            recorder.held.pop().callback(None)
            clock.advance(0)

    for start, end in pairwise(places):
        if peer.closed:
            break
        peer.send(data[start:end])
        if isEager:
            release()
    clock.advance(0)
    release()
    assert recorder.seen == [request.seen for request in seen]
    assert recorder.headers == [request.headers for request in seen]
    methods = [request.method for request in expected]
    checkAnswers(expected, answersByMethod(peer.received, methods))
    # If data followed the last request, the connection is closed in two steps.
    assert (peer.closed or peer.transport.writeClosed) is expected[-1].isLast
    peer.leave()
    assert clock.getDelayedCalls() == []
