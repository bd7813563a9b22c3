"""
A request means the same to every server, or it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from tsrv.web.site import Site

from .framings import FRAMINGS, MARKER, Framing
from .recorder import Recorder, Seen, answersByMethod, seenBy
from .websupport import Peer

MARKER_SEEN = ("GET", "/marker", b"")

MAX_CUTS = 300


def splits(data: bytes) -> Iterator[list[bytes]]:
    """
    @return: The data as a whole, in two segments cut at every byte, and byte by
        byte. Long data are cut at the beginning and at the end, and at some places
        between.
    """
    yield [data]
    cuts = list(range(1, len(data)))
    size = 1
    if len(cuts) > MAX_CUTS:
        third = MAX_CUTS // 3
        between = range(third, len(data) - third, len(data) // third)
        cuts = [*cuts[:third], *between, *cuts[-third:]]
        size = len(data) // MAX_CUTS
    for cut in cuts:
        yield [data[:cut], data[cut:]]
    yield [data[start : start + size] for start in range(0, len(data), size)]


class Served:
    """
    A site in memory, for one connection after another.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.recorder = Recorder()
        self.site = Site(self.recorder, self.clock)

    def check(self, framing: Framing, segments: list[bytes]) -> None:
        """
        Send a framing and the marker, and check the responses.
        """
        peer = Peer(self.site, self.clock)
        for segment in segments:
            if not peer.closed:
                peer.send(segment)
        expected = list(framing.seen)
        if not (framing.refusal or framing.closes):
            expected.append(MARKER_SEEN)
        assert self.take() == expected
        answers = answersByMethod(peer.received, [method for method, _, _ in expected])
        if framing.refusal:
            refusal = answers.pop()
            assert refusal.status in framing.refusal
            assert refusal.headers["connection"] == "close"
            assert json.loads(refusal.body)["status"] == refusal.status
        assert [answer.status for answer in answers] == [200] * len(expected)
        assert [seenBy(answer) for answer in answers] == expected
        isEnding = peer.closed or peer.transport.writeClosed
        assert isEnding is bool(framing.refusal or framing.closes)
        peer.leave()
        assert self.site.connections.bodyBytes == 0
        assert self.clock.getDelayedCalls() == []

    def checkOther(self) -> None:
        """
        Check that another client is served.
        """
        other = Peer(self.site, self.clock)
        other.send(MARKER)
        assert self.take() == [MARKER_SEEN]
        assert [answer.status for answer in other.answers] == [200]
        other.leave()

    def take(self) -> list[Seen]:
        """
        @return: The requests that the resource has seen since the last call.
        """
        seen, self.recorder.seen = self.recorder.seen, []
        return seen


@pytest.mark.parametrize(
    "framing", [pytest.param(framing, id=name) for name, framing in FRAMINGS.items()]
)
def test_a_request_means_the_same_however_it_arrives(framing: Framing) -> None:
    """
    An ambiguous request is refused, and nothing behind it is carried out; after an
    unusual one the next request is answered. This does not depend on how the network
    cuts the data, and other connections are not disturbed.
    """
    served = Served()
    for segments in splits(framing.data + MARKER):
        served.check(framing, segments)
    served.checkOther()


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"\x00",
        b"{",
        b"\x16\x03\x01",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: test\n",
        b"GET / HTTP/1.1\r\nHost: test\r\n\n",
        b"GET /\r\n",
        b"GET / HTTP/2.0\r\n",
    ],
)
def test_what_cannot_become_a_request_is_refused_at_once(data: bytes) -> None:
    """
    A client that speaks another protocol, or ends its lines with LF alone, is refused
    at once.
    """
    served = Served()
    peer = Peer(served.site, served.clock)
    peer.send(data)
    assert [answer.status for answer in peer.answers] == [400]
    peer.leave()


def test_the_host_of_a_url_replaces_the_other_one() -> None:
    """
    The host of an absolute URL is the host that a resource sees (RFC 9112, 3.2.2).
    """
    served = Served()
    peer = Peer(served.site, served.clock)
    peer.send(MARKER.replace(b"/marker", b"HTTPS://other:8443/x"))
    assert served.take() == [("GET", "/x", b"")]
    assert served.recorder.headers[0][b"host"] == [b"other:8443"]
    peer.leave()
