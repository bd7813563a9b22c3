"""
All connections of a site together: no client can keep others waiting, exhaust the
memory, or hold room that it does not use.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.web.server import Request

from tsrv.web.responses import AsyncResource, Response, text
from tsrv.web.site import Site

from .channels import (
    GET,
    KIB,
    Echoing,
    Server,
    chunk,
    chunked,
    get,
    post,
    pump,
    request,
    secondsUntil,
    statuses,
)
from .support import resultOf
from .websupport import (
    Echo,
    Peer,
    Plain,
    Rendered,
    Turns,
    Wire,
    asynchronous,
    logged,
    plainSite,
    serving,
    textsOf,
)

# Fairness between connections.


class Flood:
    """
    A site each of whose requests takes a millisecond, and clients that send many
    requests ahead.

    @ivar started: The clients of the started requests, in order.
    """

    SECONDS = 0.001

    def __init__(self, count: int) -> None:
        self.clock = Turns()
        self.started: list[str] = []
        site, self.connections = plainSite(Plain(self._render), self.clock)
        self.floods = [Peer(site, self.clock, f"192.0.2.{n}") for n in range(count)]
        self.other = Peer(site, self.clock, "192.0.2.200")
        for peer in self.floods:
            peer.arrive(GET * (64 * KIB // len(GET)))

    def leave(self) -> None:
        for peer in [*self.floods, self.other]:
            peer.leave()
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []

    def turn(self) -> int:
        """
        @return: The number of requests that were started in one turn of the reactor.
        """
        before = len(self.started)
        self.clock.turn()
        return len(self.started) - before

    def _render(self, request: Request) -> bytes:
        self.started.append(request.getClientAddress().host)
        self.clock.spend(self.SECONDS)
        return b"done"


def test_a_flood_of_pipelined_requests_takes_some_milliseconds_of_a_turn() -> None:
    """
    One turn of the reactor starts pipelined requests for at most 10 ms, however many
    connections send them, so that other clients are served in between.
    """
    flood = Flood(12)
    assert len(flood.started) == 12
    for number in range(1, 21):
        assert 1 <= flood.turn() <= 11
        flood.other.arrive(GET)
        assert flood.started.count("192.0.2.200") == number
    flood.leave()


def test_pipelining_clients_take_turns() -> None:
    """
    Pipelining clients take turns: a client with two requests does not wait for all
    requests of another one.
    """
    flood = Flood(12)
    for _ in range(30):
        flood.turn()
    counts = [flood.started.count(f"192.0.2.{n}") for n in range(12)]
    assert min(counts) >= 2
    assert max(counts) <= min(counts) + 2
    flood.leave()


def test_every_pipelined_request_has_its_turn() -> None:
    """
    Every request of a flood is answered in the end.
    """
    flood = Flood(2)
    count = 64 * KIB // len(GET)
    while flood.turn():
        pass
    assert len(flood.started) == 2 * count
    assert all(len(peer.answers) == count for peer in flood.floods)
    flood.leave()


def test_the_requests_of_clients_that_have_left_have_no_turn() -> None:
    """
    Requests of a client that has disconnected are not carried out.
    """
    flood = Flood(3)
    flood.turn()
    for peer in flood.floods[1:]:
        peer.leave()
    before = flood.started.count("192.0.2.1")
    flood.turn()
    flood.turn()
    assert flood.started.count("192.0.2.1") == before
    assert flood.connections.bodyBytes <= 64 * KIB
    flood.leave()
    assert flood.connections.bodyBytes == 0


@asynchronous
async def test_a_flood_does_not_keep_others_waiting() -> None:
    """
    On real connections, another client is served while thousands of pipelined requests
    wait.
    """
    from twisted.internet import reactor

    started = 0

    def work(request: Request) -> bytes:
        nonlocal started
        if request.path == b"/livez":
            return b"alive"
        started += 1
        end = perf_counter() + 0.001
        while perf_counter() < end:
            pass
        return b"done"

    site, _ = plainSite(Plain(work), reactor)
    async with serving(site) as served:
        other = await served.connect()
        wires = [await served.connect(GET * 2000) for _ in range(12)]
        for wire in wires:
            await wire.whenReceived(b"done")
        for _ in range(3):
            before = started
            other.received = b""
            other.send(get("/livez"))
            await other.whenReceived(b"alive")
            # Each turn of the reactor starts about ten; the first one may start twelve.
            assert started - before <= 150
        assert started <= 1000


@pytest.mark.parametrize(
    "data",
    [
        GET,
        get("/", "Connection: close"),
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        get("/", "Connection: Upgrade", "Upgrade: websocket"),
        get("/", "Connection: Upgrade", "Upgrade: h2c", "Content-Length: 5"),
        request("HEAD", "/"),
        request("BREW", "/"),
        post(10),
        post(10) + b"x" * 10,
        chunked(),
        chunked() + chunk(b"x") + chunk(),
        chunked() + b"no",
        GET[:-2],
        GET[:-2] + b"X y\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"x" * 100_000,
    ],
    ids=range(19),
)
def test_what_one_client_sends_changes_nothing_for_the_next(
    data: bytes, served: Echoing
) -> None:
    """
    A new connection is not affected by the state in which an earlier one has left its
    parser.
    """
    served.connect(data)
    for _ in range(2):
        asked = len(served.echo.asked)
        assert statuses(served.connect(GET)) == [200]
        other = served.connect(post(3) + b"abc" + GET)
        assert statuses(other) == [200, 200]
        assert served.echo.asked[asked:] == ["GET / b''", "POST / b'abc'", "GET / b''"]


# Room for bodies.


def test_one_peer_cannot_take_the_room_for_all_bodies(clock: Clock) -> None:
    """
    The unfinished bodies of one host take at most a quarter of the room. Beyond that
    the host gets 503, and others are served.
    """
    served = Echoing(clock, maxBodyBytes=1000, maxTotalBodyBytes=4000)
    for size in (600, 401):
        served.connect(post(size) + b"x" * (size - 1), host="192.0.2.1")
    refused = served.connect(chunked(), host="192.0.2.1")
    assert refused.received == b""
    refused.send(chunk(b"xx"))
    (answer,) = refused.answers
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert answer.headers["retry-after"] == "1"
    others = [
        served.connect(post(900) + b"x" * 899, host=f"192.0.2.{n}") for n in (2, 3)
    ]
    assert served.connections.bodyBytes == 999 + 2 * 899
    # A request that needs no room is served, also for the same host.
    assert statuses(served.connect(GET, host="192.0.2.1")) == [200]
    for other in others:
        other.send(b"x")
        assert statuses(other) == [200]
    served.leave()
    assert served.connections.bodyBytes == 0


@pytest.mark.parametrize("how", ["finish", "leave", "time"])
def test_a_peer_gets_its_room_back(how: str, clock: Clock) -> None:
    """
    A host gets its room back when its bodies have arrived, when it disconnects, or when
    it is refused.
    """
    served = Echoing(clock, maxBodyBytes=1000, maxTotalBodyBytes=4000)
    first = [served.connect(post(500) + b"x" * 499) for _ in range(2)]
    assert statuses(served.connect(post(100))) == [503]
    for peer in first:
        if how == "finish":
            peer.send(b"x")
        elif how == "leave":
            peer.leave()
    if how == "time":
        pump(clock, 7)
        assert [statuses(peer) for peer in first] == [[408]] * 2
    assert statuses(served.connect(post(900) + b"x" * 900)) == [200]
    served.leave()


def test_bodies_that_have_arrived_do_not_count_for_the_peer(clock: Clock) -> None:
    """
    Bodies that have arrived do not count for their host: behind a proxy all clients
    have one address, and their waiting requests share the whole room.
    """
    served = Echoing(clock, maxBodyBytes=1000, maxTotalBodyBytes=4000)
    for _ in range(4):
        served.connect(post(900, "/held") + b"x" * 900)
    assert served.connections.bodyBytes == 3600
    assert statuses(served.connect(post(500) + b"x" * 500)) == [503]
    assert statuses(served.connect(post(400) + b"x" * 400)) == [200]
    served.leave()
    assert served.connections.bodyBytes == 0


def test_refusals_for_lack_of_room_are_logged_once(clock: Clock) -> None:
    """
    Repeated refusals for lack of room have one line in the log.
    """
    served = Echoing(clock, maxBodyBytes=1000, maxTotalBodyBytes=4000)
    for _ in range(2):
        served.connect(post(400) + b"x" * 399)
    with logged() as events:
        for _ in range(15):
            served.connect(post(500))
            clock.advance(0.25)
    assert all(statuses(peer) == [503] for peer in served.peers[2:])
    lines = [line for line in textsOf(events) if "odies" in line]
    assert len(lines) == 1
    assert "192.0.2.1" in lines[0]
    served.leave()


class Bounded(AsyncResource):
    """
    A resource with a limit for its body.
    """

    def __init__(self, bound: int | None = None) -> None:
        super().__init__()
        self.maxBodyBytes = bound

    def render_POST(self, request: Request) -> Response:
        assert request.content is not None
        return text(f"read {len(request.content.read())}")


class Open(Bounded):
    """
    A resource that makes its children.
    """

    def getChild(self, path: bytes, request: Request) -> Bounded:
        return Bounded()


@pytest.mark.parametrize("isChunked", [False, True])
@pytest.mark.parametrize(
    ("target", "bound"),
    [
        ("/", 100),
        ("/users", 10),
        ("/users?x=/uploads", 10),
        ("/us%65rs", 10),
        ("http://test/users", 10),
        ("http://test:80/users?x", 10),
        ("/users/3", 10),
        ("/users/3/4", 10),
        ("/uploads", 1000),
        ("/uploads/small", 5),
        ("/other", 100),
    ],
)
def test_a_route_has_its_own_bound(
    target: str, bound: int, isChunked: bool, clock: Clock
) -> None:
    """
    The deepest static resource on the path that has a limit counts. A longer body is
    refused before it is read, if its length is known.
    """
    root = Bounded(100)
    root.putChild(b"users", Open(10))
    root.putChild(b"other", Bounded())
    uploads = Bounded(1000)
    uploads.putChild(b"small", Bounded(5))
    root.putChild(b"uploads", uploads)
    site = Site(root, clock, maxBodyBytes=50)
    fits, exceeds, asks = (Peer(site, clock) for _ in range(3))
    if isChunked:
        fits.send(chunked(target) + chunk(b"x" * bound) + chunk())
        exceeds.send(chunked(target) + chunk(b"x" * bound) + b"1\r\nx")
    else:
        fits.send(post(bound, target) + b"x" * bound)
        exceeds.send(post(bound + 1, target))
        lines = (f"Content-Length: {bound + 1}", "Expect: 100-continue")
        asks.send(request("POST", target, *lines))
        assert statuses(asks) == [413]
    assert statuses(fits) != [413]
    assert statuses(exceeds) == [413]
    for peer in (fits, exceeds, asks):
        peer.leave()
    assert site.connections.bodyBytes == 0


def test_a_site_of_other_resources_has_its_bound(clock: Clock) -> None:
    """
    Resources of twisted.web have no limits of their own: the limit of the site counts.
    """
    site, _ = plainSite(Plain(lambda request: b"read"), clock, maxBodyBytes=50)
    peers = [Peer(site, clock) for _ in range(4)]
    peers[0].send(post(50, "/a/b") + b"x" * 50)
    peers[1].send(post(51, "/a/b"))
    peers[2].send(chunked() + chunk(b"x" * 50) + chunk())
    peers[3].send(chunked() + chunk(b"x" * 51))
    assert [statuses(peer) for peer in peers] == [[200], [413], [200], [413]]
    for peer in peers:
        peer.leave()


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 13), st.integers(0, 120)), max_size=40
)


@settings(max_examples=300)
@given(STEPS)
def test_every_byte_is_given_back(steps: list[tuple[int, int, int]]) -> None:
    """
    The count of bytes in memory is within its bound at all times, and zero in the end,
    whatever clients do and whenever requests are answered. No timer is left.
    """
    clock = Clock()
    served = Echoing(clock, maxBodyBytes=100, maxTotalBodyBytes=800)
    connections = served.connections
    peers = [served.connect(host=f"192.0.2.{n % 2}") for n in range(4)]
    for number, action, size in steps:
        peer = peers[number]
        data = b"x" * size
        sent = [
            post(size, "/held") + data[:50],
            data,
            chunked("/held") + chunk(data) if data else chunked(),
            chunk(data),
            post(size) + data,
            (post(size, "/held") + data) * 2,
            get("/held/begun") + get("/held/read"),
            b"GET / HTTP/1.1\r\nHo",
            get("/held", "Expect: 100-continue", "Content-Length: 9") + GET * size,
        ]
        if action < len(sent):
            peer.send(sent[action])
        elif action == 9:
            peer.leave()
            peers[number] = served.connect(isReading=size % 3 > 0)
        elif action == 10:
            peer.finish()
        elif action == 11:
            pump(clock, size / 8)
        elif action == 12:
            peer.read(size * 100)
        elif served.echo.held:
            served.release()
        clock.advance(0)
        assert 0 <= connections.bodyBytes <= connections.maxTotalBodyBytes + 2000
    while served.echo.held:
        served.release()
    served.leave()
    assert connections.bodyBytes == 0
    assert clock.getDelayedCalls() == []
    # All the room is free again.
    for number in range(2):
        last = served.connect(post(100) + b"x" * 99, host=f"192.0.2.{number}")
        second = served.connect(post(99) + b"x" * 98, host=f"192.0.2.{number}")
        assert last.received == second.received == b""
    served.leave()


# Stopping.


def test_an_announced_stop_closes_each_connection_after_its_response(
    served: Echoing, clock: Clock
) -> None:
    """
    After a stop was announced, new and idle connections are still served, with
    C{Connection: close}. An idle connection stays open until its next request.
    """
    idle, busy, reading, queued = (
        served.connect(data) for data in (GET, get("/held"), post(2), b"")
    )
    queued.arrive(GET * 3)
    served.site.announceStop()
    new, unused = served.connect(GET), served.connect()
    pump(clock, 4)
    assert not any(peer.closed for peer in (idle, busy, reading, unused))
    assert served.connections.inProgress == 2
    idle.send(GET)
    reading.send(b"xx")
    unused.send(get("/", "Connection: keep-alive", version="1.0"))
    served.release()
    clock.advance(0)
    for peer in (idle, busy, reading, new, unused):
        assert peer.closed
        assert peer.answers[-1].status == 200
        assert peer.answers[-1].headers["connection"] == "close"
    assert statuses(idle) == [200, 200]
    assert statuses(queued) == [200, 200]
    assert served.connections.inProgress == 0


def test_a_response_that_has_begun_is_not_the_last_one(served: Echoing) -> None:
    """
    The client of a response that had begun before does not know of the stop, so its
    next request is answered, too.
    """
    peer = served.connect(get("/held/begun"))
    served.site.announceStop()
    served.release()
    assert not peer.closed
    peer.send(GET)
    assert peer.closed
    assert peer.answers[-1].headers["connection"] == "close"


STATES: dict[str, tuple[list[bytes], float, int]] = {
    # The data that are sent, the seconds until the connection is closed, and the
    # responses.
    "fresh": ([], 1, 0),
    "used": ([GET], 1, 1),
    "reading a head": ([GET[:-2]], 2, 1),
    "reading the next head": ([GET, GET[:10]], 2, 2),
    "before the turn of the next head": ([GET + GET[:10]], 3, 2),
    "before the turn of an empty line": ([GET + b"\r\n"], 1, 1),
    "lingering": ([b"nonsense\r\n\r\n"], 1, 1),
    "closing": ([get("/", "Connection: close")], 0, 1),
}


@pytest.mark.parametrize("name", STATES)
def test_a_stop_closes_idle_connections(
    name: str, served: Echoing, clock: Clock
) -> None:
    """
    A stop closes connections without a request in progress within seconds: one moment
    for a request, and another one for the client to close its sending side after a
    response.
    """
    sent, seconds, count = STATES[name]
    peer = served.connect(stays=True)
    for data in sent:
        peer.arrive(data)
    stopped = resultOf(served.connections.stop(30))
    assert served.connections.stopping
    taken = secondsUntil(clock, lambda: peer.closed)
    assert seconds - 1 < taken <= seconds + 1
    assert stopped.value == 0
    assert len(peer.answers) == count
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        (post(10) + b"x" * 5, b"x" * 5),
        (chunked() + chunk(b"x" * 5), chunk()),
        (get("/held"), b""),
        (get("/held") + GET, b""),
        (get("/held/begun"), b""),
    ],
    ids=["body", "chunks", "held", "pipelined", "begun"],
)
def test_a_stop_waits_for_requests_in_progress(
    data: bytes, rest: bytes, served: Echoing, clock: Clock
) -> None:
    """
    A stop waits for requests in progress, also for one whose body is arriving. Its
    response is the last one.
    """
    peer = served.connect(data)
    stopped = resultOf(served.connections.stop(30))
    pump(clock, 1 if rest else 20)
    assert not peer.closed
    assert stopped.pending
    if rest:
        peer.send(rest)
    else:
        served.release()
    assert peer.received.count(b"HTTP/1.1 200") == 1
    assert b"begun" in data or peer.answers[0].headers["connection"] == "close"
    # A client that has sent more data has time to read the response, and a client that
    # does not know of the stop has time for a request.
    isLast = not (data.endswith(GET) or b"begun" in data)
    assert secondsUntil(clock, lambda: peer.closed) <= (0 if isLast else 3)
    assert stopped.value == 0


@pytest.mark.parametrize("announced", [0, 0.5, 5])
def test_an_idle_client_has_a_moment_for_its_next_request(
    announced: float, served: Echoing, clock: Clock
) -> None:
    """
    At a stop, none of 60 clients whose requests are on their way loses its request.
    Other connections are closed after a second, or at once if the stop was announced
    before.
    """
    peers = [served.connect(GET) for _ in range(60)]
    silent = served.connect(GET)
    served.connections.announceStop()
    pump(clock, announced)
    late = served.connect()
    stopped = resultOf(served.connections.stop(30))
    if announced < 1:
        pump(clock, 0.25)
        for peer in peers:
            peer.send(GET)
            assert statuses(peer) == [200, 200]
            assert peer.answers[1].headers["connection"] == "close"
            assert peer.closed
    taken = secondsUntil(clock, lambda: silent.closed)
    assert max(0.75 - announced, 0) <= taken <= max(1.5 - announced, 0)
    # A client that has connected meanwhile has its own moment.
    assert late.closed == (announced == 0)
    assert secondsUntil(clock, lambda: late.closed) + taken <= 1.5
    assert stopped.value == 0


def test_what_follows_the_last_response_does_not_reset_it(
    served: Echoing, clock: Clock
) -> None:
    """
    Data behind the last response do not reset the connection: a pipelining client
    learns of the stop from that response, and may send more until then. Those requests
    are not carried out.
    """
    peer = served.connect(GET, stays=True)
    stopped = resultOf(served.connections.stop(30))
    for _ in range(3):
        peer.send(GET)
    assert statuses(peer) == [200, 200]
    assert len(served.echo.asked) == 2
    assert peer.transport.writeClosed
    assert not peer.closed
    assert secondsUntil(clock, lambda: peer.closed) <= 1.5
    assert stopped.value == 0


def test_an_upload_that_stalls_holds_a_stop_for_a_moment(
    served: Echoing, clock: Clock
) -> None:
    """
    At a stop, a stalled upload is answered with 503, which says that it was not carried
    out; an upload that continues is read to its end.
    """
    heads = [post(20), chunked(), post(20), post(20_000)]
    stalled, chunks, late, slow = (served.connect(head) for head in heads)
    pump(clock, 4)
    stopped = resultOf(served.connections.stop(30))
    late.send(b"x")
    for _ in range(20):
        slow.send(b"x" * 1000)
        pump(clock, 0.5)
    for peer in (stalled, chunks, late):
        (answer,) = peer.answers
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert b"The server is shutting down" in answer.body
        assert peer.closed
    assert statuses(slow) == [200]
    assert len(served.echo.asked) == 1
    assert stopped.value == 0


def test_a_stalled_upload_delays_a_stop_by_seconds(
    served: Echoing, clock: Clock
) -> None:
    """
    A stalled upload delays a stop by seconds: one moment to continue, and another one
    to read the response.
    """
    served.connect(post(20) + b"x", stays=True)
    stopped = resultOf(served.connections.stop(30))
    assert secondsUntil(clock, lambda: not stopped.pending) <= 3
    assert stopped.value == 0


@pytest.mark.parametrize(
    "data",
    [get("/held"), get("/held", "Connection: close"), GET * 3000, get("/held") + GET],
    ids=range(4),
)
def test_a_client_that_does_not_read_holds_a_stop_for_a_moment(
    data: bytes, server: Server, clock: Clock
) -> None:
    """
    At a stop, a client that does not read its response has a moment; if the system
    cannot tell whether the client reads, it has none.
    """
    peer = server.connect(data, isReading=False)
    if b"held" in data:
        server.answer(0, b"x" * 1_000_000)
    stopped = resultOf(server.connections.stop(30))
    assert server.connections.inProgress == 1
    assert secondsUntil(clock, lambda: peer.closed) <= 2
    assert peer.transport.aborted
    assert stopped.value == 0


def test_a_response_during_a_stop_that_is_not_read_has_a_moment(
    server: Server, clock: Clock
) -> None:
    """
    A response that ends during a stop has a moment from then on.
    """
    peer = server.connect(get("/held"), isReading=False)
    stopped = resultOf(server.connections.stop(30))
    pump(clock, 20)
    server.answer(0, b"x" * 1_000_000)
    assert 1 <= secondsUntil(clock, lambda: peer.closed) <= 2
    assert stopped.value == 0


@asynchronous
async def test_a_slow_download_is_sent_to_its_end_during_a_stop() -> None:
    """
    A client that continues to read a complete response holds the stop; a client that
    does not read is aborted.
    """
    from twisted.internet import reactor

    length, clock = 20_000_000, Clock()
    site, connections = plainSite(Plain(lambda request: b"x" * length), clock)
    async with serving(site) as served:
        wires = [await served.connect(GET) for _ in range(2)]
        for wire in wires:
            await wire.whenReceived(b"x")
            wire.transport.pauseProducing()  # type: ignore[union-attr]
        slow, stalled = wires
        stopped = resultOf(connections.stop(60))
        while connections.inProgress:
            wanted = min(len(slow.received) + 2_000_000, length)
            slow.transport.resumeProducing()  # type: ignore[union-attr]
            while len(slow.received) < wanted:
                await deferLater(reactor, 0)
            slow.transport.pauseProducing()  # type: ignore[union-attr]
            pump(clock, 0.5)
        slow.transport.resumeProducing()  # type: ignore[union-attr]
        await slow.whenReceived(b"x" * length)
        pump(clock, 2)
        while stopped.pending:
            await deferLater(reactor, 0)
        assert stopped.value == 0
        stalled.transport.resumeProducing()  # type: ignore[union-attr]
        assert len(await stalled.whenClosed()) < length


def test_a_paused_client_is_answered_during_a_stop(
    served: Echoing, clock: Clock
) -> None:
    """
    A client whose connection was paused because it sent too much ahead is answered
    during a stop, within the full time of the stop.
    """
    peer = served.connect(get("/held") + GET * 5000)
    stopped = resultOf(served.connections.stop(30))
    pump(clock, 20)
    served.release()
    assert statuses(peer) == [200]
    assert secondsUntil(clock, lambda: peer.closed) <= 3
    assert stopped.value == 0


def test_the_queue_of_pipelined_requests_ends_with_the_stop() -> None:
    """
    A stop does not begin pipelined requests that wait for their turn.
    """
    flood = Flood(3)
    flood.turn()
    before = len(flood.started)
    stopped = resultOf(flood.connections.stop(30))
    pump(flood.clock, 4)
    assert len(flood.started) <= before + 3
    assert stopped.value == 0
    assert all(peer.closed for peer in flood.floods)
    flood.leave()


@pytest.mark.parametrize(
    ("data", "isReading"),
    [
        (b"", True),
        (GET, True),
        (GET[:-2], True),
        (post(10) + b"x", True),
        (get("/held") + GET, True),
        (get("/held") + GET * 5000, True),
        (b"nonsense\r\n\r\n", True),
        (get("/", "Connection: close"), False),
        (GET * 3000, False),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("isStopping", [False, True])
def test_all_connections_can_be_aborted(
    data: bytes, isReading: bool, isStopping: bool, served: Echoing, clock: Clock
) -> None:
    """
    All connections can be aborted in every state, and their memory is released.
    """
    peer = served.connect(data, isReading=isReading)
    if isStopping:
        stopped = resultOf(served.connections.stop(30))
    served.connections.abort()
    assert peer.closed
    assert served.connections.bodyBytes == 0
    assert all(held.called for held in served.echo.held)
    if isStopping:
        assert stopped.value == 0
    assert clock.getDelayedCalls() == []


def test_connections_are_counted(served: Echoing) -> None:
    """
    Connections are counted from the start.
    """
    for _ in range(3):
        served.connect(GET).leave()
    assert served.connections.accepted == 3


@asynchronous
async def test_a_stop_is_graceful_over_real_connections() -> None:
    """
    On real connections, a stop closes idle clients, and answers a held request first.
    """
    from twisted.internet import reactor

    echo = Echo()
    site = Site(echo, reactor)
    async with serving(site) as served:
        idle: Wire = await served.connect(GET)
        await idle.whenReceived(b"GET / b''")
        busy = await served.connect(get("/held"))
        await echo.whenHeld
        stopping: Deferred[int] = site.connections.stop(30)
        await idle.whenClosed()
        assert not busy.closed
        echo.held[0].callback(None)
        assert b"/held" in await busy.whenClosed()
        assert await stopping == 0


def test_a_site_may_be_stopped_from_within_a_request(clock: Clock) -> None:
    """
    If a resource stops its own site, the response is sent, and then the connection is
    closed.
    """
    results: list[Any] = []

    def stop(request: Request) -> Response:
        results.append(resultOf(site.connections.stop(5)))
        return text("stopping")

    site = Site(Rendered(stop), clock)
    peer = Peer(site, clock)
    peer.send(GET + GET)
    assert statuses(peer) == [200]
    pump(clock, 3)
    assert peer.closed
    assert [result.value for result in results] == [0]
