"""
A request means the same to every reader, or it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from tsrv.web.site import Site

from .framings import FRAMINGS, MARKER, Framing
from .recorder import Recorder, answersByMethod, seenBy
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


def check(framing: Framing, segments: list[bytes]) -> None:
    """
    Send a framing and the marker to a site in memory, and check what becomes of them.
    """
    clock, recorder = Clock(), Recorder()
    site = Site(recorder, clock)
    peer = Peer(site, clock)
    for segment in segments:
        if not peer.closed:
            peer.send(segment)
    isClosed = peer.closed
    expected = list(framing.seen)
    if not (framing.refusal or framing.closes):
        expected.append(MARKER_SEEN)
    assert recorder.seen == expected
    answers = answersByMethod(peer.received, [method for method, _, _ in expected])
    if framing.refusal:
        refusal = answers.pop()
        assert refusal.status in framing.refusal
        assert refusal.headers["connection"] == "close"
        assert json.loads(refusal.body)["status"] == refusal.status
        assert peer.transport.writeClosed
    else:
        assert not peer.transport.writeClosed
        assert isClosed is framing.closes
    assert [answer.status for answer in answers] == [200] * len(expected)
    assert [seenBy(answer) for answer in answers] == expected
    peer.leave()
    assert site.bodyBytes == 0
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    "framing", [pytest.param(framing, id=name) for name, framing in FRAMINGS.items()]
)
def test_a_request_means_the_same_however_it_arrives(framing: Framing) -> None:
    """
    A request that can be read in two ways is refused, and nothing behind it is carried
    out; after an unusual one the next request is answered. It does not matter where
    the network cuts them.
    """
    for segments in splits(framing.data + MARKER):
        check(framing, segments)
