"""
Deadlines: a request must arrive in time, and an idle connection is closed.
"""

from __future__ import annotations

from functools import partial

import pytest
from twisted.internet.task import Clock

from .channels import (
    GET,
    KIB,
    REQUEST_SECONDS,
    Echoing,
    chunk,
    chunked,
    get,
    post,
    pump,
    secondsUntil,
    statuses,
)
from .websupport import Peer

# The time for a request.


@pytest.mark.parametrize(
    ("data", "interval"),
    [
        (b"G" + b"E" * 1000, 5.0),
        (GET[:-2] + b"X: y\r\n" * 1000, 2.0),
        (GET[:-2] + b"X: " + b"y" * 1000, 0.25),
    ],
    ids=["method", "headers", "fast"],
)
def test_a_head_that_trickles_is_refused(
    data: bytes, interval: float, served: Echoing, clock: Clock
) -> None:
    """
    The whole request has 30 seconds from its first byte, however often data arrive.
    """
    peer = served.connect()
    pump(clock, 20)
    sent = 0

    def trickle() -> bool:
        nonlocal sent
        while sent * interval <= clock.seconds() - 20:
            peer.send(data[sent : sent + 1])
            sent += 1
        return bool(peer.received)

    seconds = secondsUntil(clock, trickle)
    assert REQUEST_SECONDS <= seconds <= REQUEST_SECONDS + 1
    (answer,) = peer.answers
    assert answer.status == 408
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/problem+json"
    assert served.echo.asked == []
    assert secondsUntil(clock, lambda: peer.closed) <= 3


def test_head_and_body_share_the_time(served: Echoing, clock: Clock) -> None:
    """
    Head and body share the time limit.
    """
    peer = served.connect(b"POST / HTTP/1.1\r\n")
    pump(clock, 25)
    peer.send(post(64 * KIB)[17:] + b"x" * 30 * KIB)
    seconds = secondsUntil(clock, lambda: bool(peer.received))
    assert 5 <= seconds <= 6
    assert statuses(peer) == [408]


def test_each_request_has_its_own_time(served: Echoing, clock: Clock) -> None:
    """
    The time of a pipelined request begins with the response before it.
    """
    peer = served.connect(get("/held") + GET[:10])
    pump(clock, 100)
    served.release()
    pump(clock, 20)
    assert statuses(peer) == [200]
    peer.send(GET[10:])
    assert statuses(peer) == [200, 200]
    peer.send(GET[:10])
    pump(clock, 25)
    assert statuses(peer) == [200, 200]
    peer.send(GET[10:] + get("/held") + GET[:10])
    served.release()
    seconds = secondsUntil(clock, lambda: len(peer.answers) == 5)
    assert REQUEST_SECONDS <= seconds <= REQUEST_SECONDS + 1
    assert statuses(peer)[-1] == 408


@pytest.mark.parametrize("option", [1.0, 5.0, 120.0])
def test_the_time_for_a_request_can_be_set(option: float, clock: Clock) -> None:
    """
    The time for a request can be set, and holds for the head and the body.
    """
    served = Echoing(clock, requestTimeout=option)
    peers = [served.connect(GET[:-2])]
    if option <= 5:
        peers.append(served.connect(post(100) + b"x"))
    seconds = secondsUntil(clock, lambda: bool(peers[0].received))
    assert option <= seconds <= option + 1
    assert [statuses(peer) for peer in peers] == [[408]] * len(peers)
    served.leave()


# Idle connections.


@pytest.mark.parametrize("sent", [b"", b"\r\n", GET, GET + b"\r\n", GET + b"\r\n" * 5])
def test_an_idle_connection_is_closed(
    sent: bytes, served: Echoing, clock: Clock
) -> None:
    """
    An idle connection is closed after a minute, without a response. Empty lines do not
    count as a request.
    """
    peer = served.connect(sent)
    before = peer.received
    seconds = secondsUntil(clock, lambda: peer.closed)
    assert 75 <= seconds <= 76
    assert peer.received == before
    assert not peer.transport.aborted


def test_empty_lines_do_not_keep_a_connection(served: Echoing, clock: Clock) -> None:
    """
    A client that only sends empty lines is idle.
    """
    peer = served.connect(GET)

    def trickle() -> bool:
        if not clock.seconds() % 1 and not peer.closed:
            peer.send(b"\r\n")
        return peer.closed

    assert 75 <= secondsUntil(clock, trickle) <= 76
    assert statuses(peer) == [200]


def test_a_request_after_an_empty_line_has_its_time(
    served: Echoing, clock: Clock
) -> None:
    """
    The time of a request after empty lines begins with the request.
    """
    peer = served.connect(GET + b"\r\n")
    pump(clock, 50)
    peer.send(GET[:10])
    pump(clock, 25)
    peer.send(GET[10:])
    assert statuses(peer) == [200, 200]


@pytest.mark.parametrize("timeOut", [None, 5, 600])
def test_the_time_for_idle_connections_can_be_set(
    timeOut: int | None, served: Echoing, clock: Clock
) -> None:
    """
    The time for idle connections is Twisted's C{timeOut}; L{None} sets no limit.
    """
    served.site.timeOut = timeOut
    peers = [served.connect(), served.connect(GET)]
    if timeOut is None:
        pump(clock, 2000)
        assert [peer.closed for peer in peers] == [False, False]
    else:
        seconds = secondsUntil(clock, lambda: peers[0].closed)
        assert timeOut <= seconds <= timeOut + 1
        assert peers[1].closed


def test_the_idle_time_begins_with_the_last_response(
    served: Echoing, clock: Clock
) -> None:
    """
    The idle time begins with the last response, however old the connection is.
    """
    peer = served.connect(get("/held"))
    pump(clock, 200)
    served.release()
    for _ in range(5):
        pump(clock, 55)
        assert not peer.closed
        peer.send(GET)
    assert 75 <= secondsUntil(clock, lambda: peer.closed) <= 76


@pytest.mark.parametrize(
    "data", [b"", GET, GET[:-2], post(10), get("/held"), b"nonsense\r\n\r\n"]
)
def test_a_thousand_connections_have_one_timer(
    data: bytes, served: Echoing, clock: Clock
) -> None:
    """
    A thousand connections need one timer, whatever they wait for; no connections need
    none.
    """
    assert clock.getDelayedCalls() == []
    peers = [served.connect(data, stays=True) for _ in range(1000)]
    clock.advance(0)
    assert len(clock.getDelayedCalls()) == 1
    for peer in peers[1:]:
        peer.leave()
    assert len(clock.getDelayedCalls()) == 1
    peers[0].leave()
    assert clock.getDelayedCalls() == []
    served.connect(GET)
    assert len(clock.getDelayedCalls()) == 1


# Bodies.


def hasAnswer(peer: Peer) -> bool:
    """
    @return: Whether a client has received anything.
    """
    return bool(peer.received)


def test_a_body_that_stalls_is_refused(served: Echoing, clock: Clock) -> None:
    """
    After five seconds, a body with less than 1 KiB a second on average is refused, with
    a length or in chunks.
    """
    for head in (post(64 * KIB), chunked()):
        for size in (0, 100, 10 * KIB, 20 * KIB):
            data = b"x" * size
            if head == chunked():
                data = chunk(data) if data else b""
            peer = served.connect(head + data)
            seconds = secondsUntil(clock, partial(hasAnswer, peer))
            # The body is refused after five seconds and the time for its bytes.
            assert 5 <= seconds <= 5 + size / KIB + 1.5
            (answer,) = peer.answers
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert served.connections.bodyBytes == 0
    assert served.echo.asked == []


@pytest.mark.parametrize("isChunked", [False, True])
def test_a_body_that_keeps_the_rate_is_read(
    isChunked: bool, served: Echoing, clock: Clock
) -> None:
    """
    A client that keeps the rate is served if it takes at most 30 seconds.
    """
    peer = served.connect(chunked() if isChunked else post(28 * 1500))
    for _ in range(28):
        clock.advance(0.25)
        peer.send(chunk(b"x" * 1500) if isChunked else b"x" * 1500)
        pump(clock, 0.75)
    if isChunked:
        peer.send(chunk())
    assert statuses(peer) == [200]


@pytest.mark.parametrize("isChunked", [False, True])
def test_a_body_that_keeps_the_rate_has_an_end(
    isChunked: bool, served: Echoing, clock: Clock
) -> None:
    """
    A body that keeps the rate must still arrive within the 30 seconds of its request.
    """
    peer = served.connect(chunked() if isChunked else post(64 * KIB))

    def trickle() -> bool:
        if not peer.received:
            peer.send(chunk(b"x" * 400) if isChunked else b"x" * 400)
        return bool(peer.received)

    assert REQUEST_SECONDS <= secondsUntil(clock, trickle) <= REQUEST_SECONDS + 1
    assert statuses(peer) == [408]


def test_the_overhead_of_chunks_is_not_progress(served: Echoing, clock: Clock) -> None:
    """
    Only data count for the rate, not the overhead of chunks.
    """
    peer = served.connect(chunked())

    def trickle() -> bool:
        if not peer.received:
            peer.send(chunk(b"x") * 80)
        return bool(peer.received)

    assert 5 <= secondsUntil(clock, trickle) <= 9
    assert statuses(peer) == [408]
