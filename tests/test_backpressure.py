"""
Responses are written as fast as their clients read, and no faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from .channels import (
    GET,
    KIB,
    REQUEST_SECONDS,
    Echoing,
    Server,
    bodies,
    get,
    post,
    pump,
    request,
    secondsUntil,
    statuses,
)
from .resources import ResourceUsage
from .support import Trouble, resultOf
from .websupport import (
    File,
    Peer,
    Plain,
    asynchronous,
    plainSite,
    serving,
)

SEND_BUFFER = 64 * KIB

EXPECT = b"Expect: 100-continue\r\n\r\n"


# Producers.


@implementer(IPushProducer)
class Push:
    """
    A producer that records the calls to it.
    """

    def __init__(self, request: Request) -> None:
        self.told: list[str] = []
        request.registerProducer(self, True)

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


@implementer(IPullProducer)
class Pull:
    """
    A producer of pieces that finishes the response with the last one.

    @ivar left: The number of remaining pieces.
    """

    def __init__(self, request: Request, count: int, size: int = 10_000) -> None:
        self.left = count
        self.stopped = False
        self._size = size
        self._request = request
        request.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if self.left:
            self.left -= 1
            self._request.write(b"x" * self._size)
        else:
            self._request.unregisterProducer()
            self._request.finish()

    def stopProducing(self) -> None:
        self.stopped = True


def test_a_push_producer_writes_as_fast_as_the_client_reads(server: Server) -> None:
    """
    A push producer is paused when the send buffer is full, resumed when it is empty,
    and never called once it is unregistered.
    """
    peer = server.connect(get("/held") + get("/next"), isReading=False)
    (held,) = server.requests
    producer = Push(held)
    for _ in range(2):
        held.write(b"x" * 60_000)
        assert producer.told == []
        held.write(b"x" * 10_000)
        assert producer.told == ["pause"]
        peer.read(60_000)
        assert producer.told == ["pause"]
        peer.read()
        assert producer.told == ["pause", "resume"]
        producer.told.clear()
    held.unregisterProducer()
    held.write(b"x" * 100_000)
    peer.read()
    held.finish()
    assert producer.told == []
    peer.read()
    server.clock.advance(0)
    peer.read()
    assert [len(body) for body in bodies(peer)] == [240_000, 10]


def test_a_producer_that_is_registered_late_does_not_add_to_a_full_buffer(
    server: Server,
) -> None:
    """
    A producer that is registered while the send buffer is full is paused at once.
    """
    peer = server.connect(get("/held"), isReading=False)
    (held,) = server.requests
    held.write(b"x" * 100_000)
    producer = Push(held)
    assert producer.told == ["pause"]
    peer.read()
    assert producer.told == ["pause", "resume"]


@pytest.mark.parametrize("count", [0, 1, 100])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_pull_producer_is_asked_until_it_ends(
    count: int, version: str, server: Server
) -> None:
    """
    A pull producer is asked until it finishes the response itself; the next request
    starts after that.
    """

    def pull(request: Request) -> object:
        request.setHeader("Content-Length", str(count * 10_000))
        Pull(request, count)
        return NOT_DONE_YET

    server.act = pull
    line = "Connection: keep-alive"
    data = get("/act", line, version=version) + get("/next", line, version=version)
    peer = server.connect(data)
    assert [len(body) for body in bodies(peer)] == [count * 10_000, 10]
    assert not peer.closed


def test_a_pull_producer_writes_as_fast_as_the_client_reads(server: Server) -> None:
    """
    If a client does not read, a bounded part of the response is in memory.
    """
    pulled: list[Pull] = []

    def pull(request: Request) -> object:
        pulled.append(Pull(request, 100))
        return NOT_DONE_YET

    server.act = pull
    peer = server.connect(get("/act") + get("/next"), isReading=False)
    for _ in range(100):
        server.clock.advance(0)
        assert len(peer.transport.unsent) <= 64 * 1024 + 11_000
    (producer,) = pulled
    assert producer.left >= 92
    while peer.transport.unsent:
        assert len(peer.transport.unsent) <= 64 * 1024 + 11_000
        peer.read()
        server.clock.advance(0)
    assert bodies(peer) == [b"x" * 1_000_000, b"seen /next"]


def test_a_pull_producer_takes_turns(server: Server, clock: Clock) -> None:
    """
    A long response to a fast client does not keep other clients waiting.
    """

    class Endless(Pull):
        def resumeProducing(self) -> None:
            super().resumeProducing()
            if self.left == 50:
                seen.append(len(other.answers))

    seen: list[int] = []

    def pull(request: Request) -> object:
        clock.callLater(0, lambda: other.send(get("/other")))
        Endless(request, 100)
        return NOT_DONE_YET

    server.act = pull
    other = server.connect()
    server.connect(get("/act"))
    clock.advance(0)
    assert len(other.answers) == 1


@pytest.mark.parametrize("streaming", [True, False])
def test_a_producer_is_stopped_when_its_client_leaves(
    streaming: bool, server: Server
) -> None:
    """
    When the client disconnects, its producer is stopped once, and the request ends with
    an error.
    """
    producers: list[Any] = []

    def produce(request: Request) -> object:
        producers.append(Push(request) if streaming else Pull(request, 1000))
        return NOT_DONE_YET

    server.act = produce
    peer = server.connect(get("/act"), isReading=False)
    peer.leave()
    (producer,) = producers
    assert producer.told == ["stop"] if streaming else producer.stopped
    assert server.endOf(0) is not None


@pytest.mark.parametrize("error", [Trouble, SystemExit])
def test_an_error_of_a_producer_keeps_no_connection_open(
    error: type[BaseException], server: Server, loggedFailures: list[LogEvent]
) -> None:
    """
    If a producer raises an error when its client disconnects, the error is logged, and
    the connection is closed as always.
    """

    class Unstoppable(Push):
        def stopProducing(self) -> None:
            raise error("unstoppable")

    peer = server.connect(get("/held"))
    Unstoppable(server.requests[0])
    peer.leave()
    assert loggedFailures.pop()["log_failure"].check(error)
    assert server.endOf(0) is not None
    assert resultOf(server.connections.stop(10)).value == 0


def test_a_second_producer_is_refused(server: Server) -> None:
    """
    A second producer is refused, as everywhere in Twisted.
    """
    peer = server.connect(get("/held"))
    Push(server.requests[0])
    with pytest.raises((RuntimeError, ValueError)):
        Push(server.requests[0])
    server.requests[0].unregisterProducer()
    Push(server.requests[0])
    peer.leave()


@pytest.mark.parametrize("streaming", [True, False])
def test_a_response_may_finish_with_its_producer_registered(
    streaming: bool, server: Server, loggedFailures: list[LogEvent]
) -> None:
    """
    If a response finishes with its producer registered, Twisted logs the mistake. The
    producer is not called again, and the next request may have one.
    """

    class Ending(Pull):
        def resumeProducing(self) -> None:
            self._request.write(b"x")
            self._request.finish()
            asked.append(1)

    asked: list[int] = []
    producers: list[Any] = []

    def produce(request: Request) -> object:
        if streaming:
            producers.append(Push(request))
            request.write(b"x")
            request.finish()
        else:
            producers.append(Ending(request, 1))
        return NOT_DONE_YET

    server.act = produce
    peer = server.connect(get("/act") + get("/act") + get("/next"))
    assert bodies(peer) == [b"x", b"x", b"seen /next"]
    assert len(producers) == 2
    if streaming:
        assert all("resume" not in producer.told for producer in producers)
    else:
        assert len(asked) == 2
    assert len(loggedFailures) == 2
    loggedFailures.clear()


# Clients that do not read.

LONG = b"x" * 10_000


class Unread(Echoing):
    """
    A plain site whose responses take 10,000 bytes.

    @ivar started: Number of requests.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(clock)
        self.started = 0
        self.site, self.connections = plainSite(  # type: ignore[assignment]
            Plain(self._render), clock, **options
        )

    def _render(self, request: Request) -> bytes:
        self.started += 1
        return LONG


@pytest.fixture
def unread(clock: Clock) -> Iterator[Unread]:
    """
    Such a site, whose clients disconnect after the test.
    """
    unread = Unread(clock)
    yield unread
    unread.leave()
    assert unread.connections.bodyBytes == 0


def test_no_request_starts_while_the_send_buffer_is_full(
    unread: Unread, clock: Clock
) -> None:
    """
    Pipelined requests wait while the send buffer is full, until the client has read it.
    """
    peer = unread.connect(*[GET * 10] * 10, isReading=False)
    for _ in range(10):
        pump(clock, 1)
        assert unread.started <= 7
        assert len(peer.transport.unsent) <= SEND_BUFFER + 11_000
    full = len(peer.transport.unsent)
    assert full > SEND_BUFFER
    before = unread.started
    peer.send(GET)
    peer.read(full - 1)
    pump(clock, 1)
    assert unread.started == before
    rounds = 0
    while peer.transport.unsent:
        peer.read()
        clock.advance(0)
        rounds += 1
        assert unread.started <= before + 7 * rounds
    assert statuses(peer) == [200] * 101
    assert unread.started == 101


def test_a_client_that_reads_nothing_has_no_more_time_for_a_body(
    server: Server, clock: Clock
) -> None:
    """
    The deadline of a body holds also if the send buffer becomes full meanwhile.
    """
    peer = server.connect(get("/held"), isReading=False)
    server.answer(0, LONG)
    head = len(peer.transport.unsent) - len(LONG)
    peer.read()
    peer.send(get("/held"))
    server.answer(1, b"x" * (SEND_BUFFER - head - 5))
    assert not peer.channel.isBlocked
    peer.send(post(3, "/held").replace(b"\r\n\r\n", b"\r\n" + EXPECT))
    assert peer.channel.isBlocked
    peer.send(b"x")
    pump(clock, 6.5)
    peer.read()
    assert b"HTTP/1.1 408 " in peer.received


def test_an_idle_client_that_reads_nothing_is_no_obstacle_to_a_stop(
    server: Server, clock: Clock
) -> None:
    """
    At a stop, the connection of an idle client that reads nothing closes a moment after
    the client has read the rest.
    """
    peer = server.connect(get("/held"), isReading=False)
    server.answer(0, b"x" * 2 * SEND_BUFFER)
    assert peer.channel.isBlocked
    resultOf(server.connections.stop(60))
    pump(clock, 1)
    peer.read()
    assert secondsUntil(clock, lambda: peer.closed) <= 1.5
    assert not peer.transport.aborted


def test_a_client_that_sends_ahead_and_reads_nothing_is_aborted(
    server: Server, clock: Clock
) -> None:
    """
    The deadline for reading holds also if the connection was paused because the client
    sent too much ahead.
    """

    def pull(request: Request) -> object:
        Pull(request, 1000)
        return NOT_DONE_YET

    server.act = pull
    peer = server.connect(get("/act") + GET * 5000, isReading=False)
    assert secondsUntil(clock, lambda: peer.closed) <= REQUEST_SECONDS + 15


def test_no_request_starts_behind_a_long_response_that_came_late(
    server: Server,
) -> None:
    """
    No request starts behind a response that fills the send buffer, also if its request
    was held.
    """
    peer = server.connect(get("/held") + get("/next"), isReading=False)
    server.answer(0, b"x" * 100_000)
    pump(server.clock, 5)
    assert server.paths == ["/held"]
    peer.read()
    server.clock.advance(0)
    assert server.paths == ["/held", "/next"]


def test_the_last_response_is_sent_before_its_connection_closes(
    server: Server,
) -> None:
    """
    The connection closes after its last response was read, also if that response has
    filled the send buffer.
    """
    peer = server.connect(get("/held", "Connection: close"), isReading=False)
    server.answer(0, b"x" * 100_000)
    assert not peer.closed
    peer.read()
    assert bodies(peer) == [b"x" * 100_000]
    assert peer.closed
    assert not peer.transport.aborted


def test_a_request_that_arrives_while_the_send_buffer_is_full_waits(
    unread: Unread, clock: Clock
) -> None:
    """
    A request that arrives while the send buffer is full waits, even if its client reads
    nothing between requests.
    """
    peer = unread.connect(isReading=False)
    for _ in range(20):
        peer.send(GET)
        clock.advance(0)
    assert unread.started == 7
    peer.read()
    clock.advance(0)
    assert unread.started == 14


def test_what_a_client_sends_while_it_does_not_read_is_bounded(
    unread: Unread, clock: Clock
) -> None:
    """
    A connection is not read beyond 64 KiB while its client does not read.
    """
    peer = unread.connect(*[GET * 300] * 100, isReading=False)
    pump(clock, 10)
    assert unread.connections.bodyBytes <= 64 * KIB + 300 * len(GET)
    assert not peer.closed


def test_a_client_that_reads_nothing_is_aborted(unread: Unread, clock: Clock) -> None:
    """
    A client that reads nothing is aborted after 30 seconds, and about one more for each
    unread KiB.
    """
    peer = unread.connect(GET * 10, isReading=False)
    clock.advance(0)
    longest = REQUEST_SECONDS + len(peer.transport.unsent) / KIB
    seconds = secondsUntil(clock, lambda: peer.closed)
    assert REQUEST_SECONDS + SEND_BUFFER / KIB <= seconds <= longest + 1.5
    assert peer.transport.aborted


def test_a_client_that_reads_slowly_is_served(unread: Unread, clock: Clock) -> None:
    """
    A client that reads slowly is served: each time that it has read everything, its
    time begins again.
    """
    peer = unread.connect(GET * 70, isReading=False)
    for _ in range(10):
        pump(clock, 80)
        assert not peer.closed
        peer.read()
        clock.advance(0)
    assert statuses(peer) == [200] * 70
    assert unread.started == 70


@pytest.mark.parametrize(
    "request_", [get("/", "Connection: close"), b"nonsense\r\n\r\n"]
)
def test_the_last_response_has_a_deadline_too(
    request_: bytes, unread: Unread, clock: Clock
) -> None:
    """
    A connection that closes when everything is sent does not wait for ever.
    """
    peer = unread.connect(GET * 6 + request_, isReading=False)
    clock.advance(0)
    assert peer.transport.unsent
    seconds = secondsUntil(clock, lambda: peer.closed)
    assert 1 <= seconds <= REQUEST_SECONDS + 70 + 2
    assert peer.transport.aborted


@pytest.mark.parametrize("streaming", [True, False])
def test_a_producer_has_the_deadline_too(streaming: bool, clock: Clock) -> None:
    """
    If the client of a long response reads nothing, its producer is stopped at the
    deadline.
    """

    class Producer:
        stopped = 0

        def __init__(self, request: Request) -> None:
            self._request = request
            request.notifyFinish().addErrback(lambda failure: ended.append(1))
            request.registerProducer(self, streaming)
            if streaming:
                request.write(b"x" * 100_000)

        def resumeProducing(self) -> None:
            self._request.write(LONG)

        def pauseProducing(self) -> None:
            pass

        def stopProducing(self) -> None:
            self.stopped += 1

    ended: list[object] = []
    producers: list[Producer] = []

    def produce(request: Request) -> object:
        producers.append(Producer(request))
        return NOT_DONE_YET

    site, _ = plainSite(Plain(produce), clock)
    peer = Peer(site, clock, isReading=False)
    peer.send(GET)
    clock.advance(0)
    expected = REQUEST_SECONDS + len(peer.transport.unsent) / KIB
    seconds = secondsUntil(clock, lambda: peer.closed)
    assert expected - 1 <= seconds <= expected + 1.5
    assert peer.transport.aborted
    assert [producer.stopped for producer in producers] == [1]
    assert ended == [1]


def test_a_file_is_sent_as_fast_as_its_client_reads(
    clock: Clock, tmp_path: Any
) -> None:
    """
    A client that reads gets the whole file, however slowly; a client that does not read
    is aborted.
    """
    content = bytes(range(256)) * 4000
    (tmp_path / "file").write_bytes(content)
    site, _ = plainSite(File(str(tmp_path)), clock)
    slow, stalled = (
        Peer(site, clock, isReading=False),
        Peer(site, clock, isReading=False),
    )
    for peer in (slow, stalled):
        peer.send(get("/file") + request("HEAD", "/file"))
    for _ in range(2000):
        pump(clock, 1)
        assert len(slow.transport.unsent) <= SEND_BUFFER + 70_000
        slow.read(20_000)
    assert slow.received.count(b"HTTP/1.1 200") == 2
    assert content in slow.received
    assert stalled.transport.aborted
    slow.leave()


def test_a_held_request_needs_no_reader(unread: Unread, clock: Clock) -> None:
    """
    A client that has nothing to read has no deadline.
    """
    held: list[Request] = []

    def hold(request: Request) -> object:
        held.append(request)
        return NOT_DONE_YET

    site, _ = plainSite(Plain(hold), clock)
    peer = Peer(site, clock, isReading=False)
    peer.send(GET)
    pump(clock, 1000)
    assert not peer.closed
    held[0].write(b"begun")
    peer.read()
    pump(clock, 1000)
    assert not peer.closed
    peer.leave()


@asynchronous
async def test_clients_that_read_nothing_take_little_memory() -> None:
    """
    If 30 clients on real connections ask for 100 MB each and read nothing, the process
    grows by at most 2 MB for each.
    """
    from twisted.internet import reactor

    started = 0
    response = b"x" * 50_000

    def render(request: Request) -> bytes:
        nonlocal started
        if request.path == b"/":
            started += 1
        return response if request.path == b"/" else b"alive"

    site, connections = plainSite(Plain(render), reactor)
    async with serving(site) as served:
        other = await served.connect()
        before = ResourceUsage.of()
        for _ in range(30):
            wire = await served.connect()
            transport: Any = wire.transport
            transport.pauseProducing()
            wire.send(GET * 2000)
        settled, last = 0, -1
        while settled < 50:
            other.received = b""
            other.send(get("/other"))
            await other.whenReceived(b"alive")
            settled = settled + 1 if started == last else 0
            last = started
        assert started < 30 * 500
        growth = ResourceUsage.of().grownFrom(before, 30 * 2_000_000)
        assert "memory" not in growth
        assert connections.bodyBytes <= 30 * 130_000


def test_a_stop_ends_a_connection_whose_client_does_not_read(
    unread: Unread, clock: Clock
) -> None:
    """
    A stop does not begin requests that were sent ahead; the connection is closed when
    everything is sent.
    """
    reading, stalled = (unread.connect(GET * 50, isReading=False) for _ in range(2))
    clock.advance(0)
    before = unread.started
    stopped = resultOf(unread.connections.stop(30))
    clock.advance(0)
    reading.read()
    clock.advance(0)
    assert unread.started <= before + 1
    reading.read()
    assert reading.closed
    assert not reading.transport.aborted
    pump(clock, 30)
    assert not stopped.pending
    unread.connections.abort()
    assert stalled.closed
