"""
One connection on a plain site of twisted.web: its requests, its responses, and its end.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import AlreadyCalledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.web.server import NOT_DONE_YET, Request

from tsrv.web.site import Site

from .channels import (
    KIB,
    Server,
    bodies,
    get,
    pump,
    request,
)
from .support import Trouble, resultOf
from .websupport import (
    Answer,
    Peer,
    Plain,
    Rendered,
    answersIn,
    asynchronous,
    plainSite,
    serving,
)

MAX_AHEAD = 64 * KIB

CLOSE = "Connection: close"


# The order of requests.


def test_a_thousand_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """
    A thousand pipelined requests of mixed methods are answered in order, with and
    without bodies, however the network cuts them.
    """
    data, expected = b"", []
    for number in range(1000):
        path = f"/{number}"
        data += [
            get(path),
            request("POST", path, "Content-Length: 3", body=b"abc"),
            request(
                "PUT", path, "Transfer-Encoding: chunked", body=b"1\r\nx\r\n0\r\n\r\n"
            ),
            request("DELETE", path),
            request("OPTIONS", path),
        ][number % 5]
        expected.append(b"seen " + path.encode())
    peer = server.connect(*(data[n : n + 1001] for n in range(0, len(data), 1001)))
    assert bodies(peer) == expected
    assert not peer.closed


def test_a_request_starts_when_the_one_before_is_answered(server: Server) -> None:
    """
    The requests of one connection are in progress one at a time.
    """
    peer = server.connect(get("/held/1") + get("/held/2") + get("/3"))
    assert server.paths == ["/held/1"]
    server.answer(0, b"1")
    assert bodies(peer) == [b"1"]
    assert server.paths == ["/held/1", "/held/2"]
    server.answer(1, b"2")
    assert bodies(peer) == [b"1", b"2", b"seen /3"]


# Expect: 100-continue.


@pytest.mark.parametrize("expectation", ["100-continue", "100-Continue"])
@pytest.mark.parametrize(
    ("length", "body"),
    [("Content-Length: 3", b"abc"), ("Transfer-Encoding: chunked", b"0\r\n\r\n")],
)
def test_a_client_may_send_a_body_that_is_wanted(
    expectation: str, length: str, body: bytes, server: Server
) -> None:
    """
    A client that waits with its body gets a 100.
    """
    peer = server.connect(request("POST", "/", length, f"Expect: {expectation}"))
    assert peer.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.send(body)
    assert [answer.status for answer in peer.answers] == [100, 200]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/", "Expect: 100-continue"), 200),
        (request("POST", "/", "Content-Length: 0", "Expect: 100-continue"), 200),
        (request("POST", "/", "Content-Length: 65537", "Expect: 100-continue"), 413),
        (request("POST", "/", "Content-Length: x", "Expect: 100-continue"), 400),
    ],
    ids=["no body", "empty body", "too long", "wrong"],
)
def test_a_client_gets_no_100_for_a_body_that_is_not_wanted(
    data: bytes, status: int, server: Server
) -> None:
    """
    A client gets no 100 if no body will follow, nor before a refusal.
    """
    assert [answer.status for answer in server.connect(data).answers] == [status]


def test_an_old_client_gets_no_100(server: Server) -> None:
    """
    A client of HTTP/1.0 gets no 100, which it would take for the response.
    """
    lines = ("Content-Length: 3", "Expect: 100-continue")
    peer = server.connect(request("POST", "/", *lines, version="1.0"))
    assert peer.received == b""
    peer.send(b"abc")
    assert bodies(peer) == [b"seen /"]


def test_a_pipelining_client_gets_its_100_in_order(server: Server) -> None:
    """
    The 100 for a request follows the response to the one before.
    """
    lines = ("Content-Length: 3", "Expect: 100-continue")
    peer = server.connect(get("/held") + request("POST", "/", *lines))
    assert peer.received == b""
    server.answer(0)
    assert [answer.status for answer in peer.answers] == [200, 100]
    peer.send(b"abc")
    assert [answer.status for answer in peer.answers] == [200, 100, 200]


# HEAD, HTTP/1.0, Connection.


def written(request: Request) -> object:
    """
    Respond without a length.
    """
    request.write(b"some")
    request.write(b"thing")
    request.finish()
    return NOT_DONE_YET


def test_a_response_to_head_has_no_body(server: Server) -> None:
    """
    A response to HEAD has no body, whether the resource gives a length or not.
    """
    server.act = written
    peer = server.connect(
        request("HEAD", "/length") + request("HEAD", "/act") + get("/next")
    )
    head, other, rest = peer.received.split(b"\r\n\r\n", 2)
    assert b"content-length: 12" in head.lower()
    assert b"chunked" not in other.lower()
    (answer,) = answersIn(rest)
    assert answer.body == b"seen /next"


def test_a_response_without_a_length_is_chunked(server: Server) -> None:
    """
    A response without a length is chunked, so that the connection can be used again.
    """
    server.act = written
    peer = server.connect(get("/act") + get("/next"))
    assert bodies(peer) == [b"something", b"seen /next"]
    assert peer.answers[0].headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_no_chunks(status: int, server: Server) -> None:
    """
    A body that a resource writes for a status without a body is dropped.
    """

    def empty(request: Request) -> object:
        request.setResponseCode(status)
        return written(request)

    server.act = empty
    peer = server.connect(get("/act") + get("/next"))
    assert bodies(peer) == [b"", b"seen /next"]
    assert "transfer-encoding" not in peer.answers[0].headers


@pytest.mark.parametrize(
    "lines", [["Connection: keep-alive"], ["Connection: Keep-Alive"]]
)
def test_an_old_client_may_keep_its_connection(
    lines: list[str], server: Server
) -> None:
    """
    A client of HTTP/1.0 keeps its connection with C{Connection: keep-alive}, if the
    response has a length.
    """
    peer = server.connect(*[get(f"/{n}", *lines, version="1.0") for n in range(2)])
    assert bodies(peer) == [b"seen /0", b"seen /1"]
    assert [answer.headers["connection"].lower() for answer in peer.answers] == [
        "keep-alive"
    ] * 2
    assert not peer.closed
    peer.send(get("/2", version="1.0"))
    assert bodies(peer)[2:] == [b"seen /2"]
    assert peer.closed


@pytest.mark.parametrize("lines", [[], ["Connection: keep-alive"]])
def test_the_end_of_a_connection_is_the_end_of_an_old_response(
    lines: list[str], server: Server
) -> None:
    """
    HTTP/1.0 has no chunks, so the end of the connection is the end of a response
    without a length.
    """
    server.act = written
    peer = server.connect(get("/act", *lines, version="1.0") + get("/next"))
    head, _, body = peer.received.partition(b"\r\n\r\n")
    assert body == b"something"
    assert b"chunked" not in head.lower()
    assert b"keep-alive" not in head.lower()
    assert peer.closed
    assert server.paths == ["/act"]


@pytest.mark.parametrize(
    "lines",
    [
        ["Connection: close"],
        ["connection:close"],
        ["Connection: Close"],
        ["Connection: \tCLOSE "],
        ["Connection: keep-alive, close"],
        ["Connection: close, keep-alive"],
        ["Connection: x,close"],
        ["Connection: ,close,"],
        ["Connection: keep-alive", "Connection: close"],
        ["Connection: close", "Connection: keep-alive"],
    ],
)
def test_a_client_may_end_its_connection(lines: list[str], server: Server) -> None:
    """
    C{close} counts anywhere in the list of options. The response repeats it, and
    requests behind it are discarded.
    """
    peer = server.connect(get("/1", *lines) + get("/2"))
    (answer,) = peer.answers
    assert answer.headers["connection"].lower() == "close"
    assert peer.closed
    assert server.paths == ["/1"]


@pytest.mark.parametrize(
    "line",
    [
        "Connection: closed",
        "Connection: x-close",
        "Connection: ",
        "Connection: keep-alive",
        "X-Connection: close",
    ],
)
def test_other_options_do_not_end_a_connection(line: str, server: Server) -> None:
    """
    Other options do not end a connection of HTTP/1.1.
    """
    peer = server.connect(get("/1", line) + get("/2"))
    assert bodies(peer) == [b"seen /1", b"seen /2"]
    assert not peer.closed


def test_a_resource_may_end_the_connection(server: Server) -> None:
    """
    A response with C{Connection: close} is the last one.
    """

    def last(request: Request) -> bytes:
        request.setHeader("Connection", "close")
        return b"last"

    server.act = last
    peer = server.connect(get("/act") + get("/next"))
    assert bodies(peer) == [b"last"]
    assert peer.closed


# Targets, and upgrades.


@pytest.mark.parametrize(
    ("target", "host", "uri"),
    [
        ("http://other/x", "other", "/x"),
        ("HTTP://Other:81/x?y=z", "other:81", "/x?y=z"),
        ("https://other", "other", "/"),
        ("http://[::1]:81/", "[::1]:81", "/"),
    ],
)
def test_the_host_of_a_url_replaces_the_header(
    target: str, host: str, uri: str, server: Server
) -> None:
    """
    The host of an absolute URL replaces the header.
    """
    server.connect(get(target))
    (seen,) = server.requests
    assert (seen.getHeader("Host") or "").lower() == host
    assert seen.uri.decode() == uri
    values = seen.requestHeaders.getRawHeaders("Host")
    assert values is not None
    assert len(values) == 1


@pytest.mark.parametrize(
    "lines",
    [
        ["Connection: Upgrade", "Upgrade: websocket"],
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"],
        ["Connection: upgrade, keep-alive", "Upgrade: TLS/1.2"],
        ["Upgrade: websocket"],
    ],
)
@pytest.mark.parametrize("hasBody", [False, True])
def test_a_request_to_upgrade_is_answered_plainly(
    lines: list[str], hasBody: bool, server: Server
) -> None:
    """
    The server ignores a request to upgrade: it answers with HTTP/1.1, and the following
    data are the next request.
    """
    first = get("/1", *lines)
    if hasBody:
        first = request("POST", "/1", *lines, "Content-Length: 5", body=b"GET /")
    peer = server.connect(first + get("/2"))
    assert [answer.status for answer in peer.answers] == [200, 200]
    assert bodies(peer) == [b"seen /1", b"seen /2"]
    assert not peer.closed


# Data that arrive ahead of a response.

AHEAD = [get(f"/{n}/{'x' * 900}") for n in range(100)]


def test_a_client_that_sends_too_much_ahead_is_slowed_down(
    server: Server, clock: Clock
) -> None:
    """
    Beyond 64 KiB the connection is not read. If the request before is answered within a
    second, nothing is lost.
    """
    peer = server.connect(get("/held"), *AHEAD)
    assert peer.transport.producerState == "paused"
    assert server.connections.bodyBytes <= MAX_AHEAD + len(AHEAD[0])
    clock.advance(0.25)
    server.answer(0)
    assert len(peer.answers) == 101
    assert bodies(peer)[1:] == [b"seen " + path.encode() for path in server.paths[1:]]
    assert server.connections.bodyBytes == 0
    assert peer.transport.producerState == "producing"
    assert not peer.closed


def test_what_is_sent_ahead_is_discarded_when_a_request_takes_long(
    server: Server, clock: Clock
) -> None:
    """
    After about a second the connection is read again, so that a client that disconnects
    is noticed. The response to the request in progress is then the last one.
    """
    peer = server.connect(get("/held"), *AHEAD, stays=True)
    pump(clock, 2.5)
    assert peer.transport.producerState == "producing"
    assert server.connections.bodyBytes == 0
    peer.send(get("/more") * 1000)
    assert peer.transport.producerState == "producing"
    assert server.connections.bodyBytes == 0
    server.answer(0)
    (answer,) = peer.answers
    assert answer.headers["connection"] == "close"
    assert server.paths == ["/held"]
    # Data that arrive after a close would reset the connection.
    assert peer.transport.writeClosed
    assert not peer.closed
    pump(clock, 3.5)
    assert peer.closed


def test_a_slow_client_reads_its_response_although_it_has_sent_too_much(
    server: Server, clock: Clock
) -> None:
    """
    A slow client that has sent too much reads its whole response before the connection
    is closed.
    """
    peer = server.connect(get("/held"), b"x" * 100_000, isReading=False)
    pump(clock, 3)
    server.answer(0, b"x" * 1_000_000)
    pump(clock, 20)
    peer.read(500_000)
    assert not peer.closed
    peer.read()
    assert bodies(peer) == [b"x" * 1_000_000]


def test_a_little_that_is_sent_ahead_is_kept(server: Server, clock: Clock) -> None:
    """
    Up to 64 KiB are kept for as long as the request takes.
    """
    peer = server.connect(get("/held"), *AHEAD[:60])
    pump(clock, 100)
    assert peer.transport.producerState == "producing"
    server.answer(0)
    assert len(peer.answers) == 61


@pytest.mark.parametrize(
    ("count", "seconds"), [(0, 0), (1, 0), (60, 0), (100, 2.5)], ids=range(4)
)
def test_a_client_that_disconnects_is_noticed(
    count: int, seconds: float, server: Server, clock: Clock
) -> None:
    """
    When a client disconnects, its request in progress ends at once, whatever the client
    has sent ahead; or within two seconds, if the connection is not read at the moment.
    """
    peer = server.connect(get("/held"), *AHEAD[:count])
    peer.finish()
    pump(clock, seconds)
    assert peer.closed
    assert server.endOf(0) is not None
    assert server.connections.bodyBytes == 0


def test_a_client_that_disconnects_is_noticed_behind_another_response(
    server: Server, clock: Clock
) -> None:
    """
    If the connection is not read because of one response, it is read again while the
    next request takes long.
    """
    peer = server.connect(get("/held"), get("/held"), *AHEAD)
    assert peer.transport.producerState == "paused"
    server.answer(0)
    clock.advance(0)
    assert server.paths == ["/held", "/held"]
    assert peer.transport.producerState == "paused"
    peer.finish()
    pump(clock, 2.5)
    assert peer.closed
    assert server.endOf(1) is not None


def test_a_client_that_disconnects_is_noticed_after_data_were_discarded(
    server: Server, clock: Clock
) -> None:
    """
    After data were discarded, the connection is always read.
    """
    peer = server.connect(get("/held"), *AHEAD)
    pump(clock, 2.5)
    peer.send(b"x" * 200_000)
    peer.finish()
    assert peer.closed
    assert server.endOf(0) is not None


def test_nothing_is_kept_behind_the_last_request(server: Server) -> None:
    """
    Data behind C{Connection: close} are discarded at once.
    """
    peer = server.connect(get("/held", CLOSE), *AHEAD)
    assert server.connections.bodyBytes == 0
    assert peer.transport.producerState == "producing"
    server.answer(0)
    assert bodies(peer) == [b"held"]
    assert server.paths == ["/held"]


# Connections that a resource ends.


@pytest.mark.parametrize("later", [False, True])
def test_a_resource_may_close_the_connection(later: bool, server: Server) -> None:
    """
    A resource may close the connection: written data are sent, the request ends with an
    error, and nothing behind it starts.
    """

    def begin(request: Request) -> object:
        request.setHeader("Content-Length", "100")
        request.write(b"begun")
        if not later:
            request.loseConnection()
        return NOT_DONE_YET

    server.act = begin
    peer = server.connect(get("/act") + get("/next"))
    if later:
        assert not peer.closed
        server.requests[0].loseConnection()
    assert peer.received.endswith(b"begun")
    assert peer.closed
    assert not peer.transport.aborted
    assert server.endOf(0) is not None
    assert server.paths == ["/act"]


def abort(request: Request) -> None:
    """
    Abort the connection of a request.
    """
    transport: Any = request.transport
    transport.abortConnection()


@pytest.mark.parametrize("later", [False, True])
def test_a_resource_may_abort_the_connection(later: bool, server: Server) -> None:
    """
    A resource may abort the connection: the request ends with an error, and nothing
    behind it starts.
    """

    def begin(request: Request) -> object:
        if not later:
            abort(request)
        return NOT_DONE_YET

    server.act = begin
    peer = server.connect(get("/act") + get("/next"))
    if later:
        abort(server.requests[0])
    assert peer.closed
    assert peer.transport.aborted
    assert server.endOf(0) is not None
    assert server.paths == ["/act"]


@pytest.mark.parametrize("action", ["loseConnection", "abort", "leave"])
def test_a_response_may_be_finished_after_the_end_of_its_connection(
    action: str, server: Server
) -> None:
    """
    A resource may write on after its connection has ended, whatever has ended it.
    """

    def end(request: Request) -> object:
        if action == "loseConnection":
            request.loseConnection()
        elif action == "abort":
            abort(request)
        else:
            peer.leave()
            assert request.channel is None
            return NOT_DONE_YET
        request.write(b"late")
        request.finish()
        return NOT_DONE_YET

    server.act = end
    peer = server.connect()
    peer.send(get("/act") + get("/next"))
    assert peer.closed
    assert server.paths == ["/act"]


def test_an_empty_write_sends_the_head(server: Server) -> None:
    """
    An empty write sends the head, so that clients of a stream learn at once that it has
    begun.
    """

    def begin(request: Request) -> object:
        request.setHeader("Content-Type", "text/event-stream")
        request.write(b"")
        return NOT_DONE_YET

    server.act = begin
    peer = server.connect(get("/act"))
    assert peer.received.endswith(b"\r\n\r\n")
    assert b"text/event-stream" in peer.received
    server.requests[0].write(b"data: 1\n\n")
    assert b"data: 1\n\n" in peer.received
    server.requests[0].finish()
    assert bodies(peer) == [b"data: 1\n\n"]


def test_each_write_is_sent_at_once(server: Server) -> None:
    """
    Each write is sent at once, and does not wait for the end of the response.
    """
    peer = server.connect(get("/held"))
    (held,) = server.requests
    for number in range(3):
        held.write(b"part %d" % number)
        assert b"part %d" % number in peer.received
    held.finish()
    assert bodies(peer) == [b"part 0part 1part 2"]


def test_a_response_may_come_before_its_body_is_read(server: Server) -> None:
    """
    A resource may respond before it reads the body.
    """
    seen: list[bytes] = []

    def read(request: Request) -> bytes:
        assert request.content is not None
        seen.append(request.content.read())
        return b""

    server.act = read
    server.connect(
        request("POST", "/act", "Content-Length: 5", body=b"hello"),
        request("POST", "/act", "Transfer-Encoding: chunked", body=b"2;a=b\r\nhe\r\n"),
        b"3\r\nllo\r\n0\r\nX: y\r\n\r\n",
        get("/act"),
    )
    assert seen == [b"hello", b"hello", b""]


# Errors.


def test_an_error_before_the_response_does_not_end_the_connection(
    server: Server, loggedFailures: list[LogEvent]
) -> None:
    """
    After an error in a resource, a plain site answers with 500, and the connection
    continues.
    """

    def fail(request: Request) -> object:
        raise Trouble

    server.act = fail
    peer = server.connect(get("/act") + get("/next"))
    assert [answer.status for answer in peer.answers] == [500, 200]
    (event,) = loggedFailures
    loggedFailures.clear()
    assert event["log_failure"].check(Trouble)


def test_an_error_after_the_head_breaks_the_response_off(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    An error after the head aborts the connection, so that a part of a response is not
    taken for the whole. Nothing behind it starts, and other connections are not
    affected.
    """
    seen: list[bytes] = []

    async def render(request: Request) -> object:
        seen.append(request.uri)
        request.setHeader("Content-Length", "100")
        request.write(b"half")
        raise Trouble

    site = Site(Rendered(render), clock)
    peer, other = Peer(site, clock), Peer(site, clock)
    peer.send(get("/1") + get("/2"))
    assert peer.closed
    assert peer.transport.aborted
    assert seen == [b"/1"]
    assert not other.closed
    (event,) = loggedFailures
    loggedFailures.clear()
    assert event["log_failure"].check(Trouble)
    other.leave()


def test_an_error_of_a_request_does_not_stop_the_others(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    An error in a request class ends its connection; pipelined requests of other clients
    continue.
    """

    class Wrong(Request):
        def process(self) -> None:
            if self.uri == b"/wrong":
                raise Trouble
            super().process()

    server = Server(clock)
    server.site.requestFactory = Wrong
    others = [server.connect(get("/held") + get("/next") * 3) for _ in range(4)]
    wrong = server.connect(get("/held") + get("/wrong") + get("/next"))
    others += [server.connect(get("/held") + get("/next") * 3) for _ in range(4)]
    try:
        for number in range(9):
            server.answer(number)
        clock.advance(0)
    except Trouble:
        # The errors that a real reactor would log.
        clock.advance(0)
    assert [len(peer.answers) for peer in others] == [4] * 8
    pump(clock, 70)
    assert wrong.closed
    assert server.paths.count("/wrong") == 0
    for peer in others:
        peer.leave()
    loggedFailures.clear()


# notifyFinish().


@pytest.mark.parametrize("isHeld", [False, True])
def test_a_request_learns_that_it_is_answered(isHeld: bool, server: Server) -> None:
    """
    C{notifyFinish} fires with L{None} when the response is written; the later end of
    the connection changes nothing.
    """
    peer = server.connect(get("/held" if isHeld else "/"))
    if isHeld:
        assert server.ended == [[]]
        server.answer(0)
    assert server.ended == [[None]]
    peer.leave()
    assert server.ended == [[None]]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("ahead", [b"", get("/next"), b"GET /ne"])
@pytest.mark.parametrize("how", ["leave", "abort", "stop"])
def test_a_request_learns_that_its_client_has_left(
    begun: bool, ahead: bytes, how: str, server: Server
) -> None:
    """
    C{notifyFinish} fires with the reason when the client disconnects, or the connection
    is aborted. Later writes are discarded.
    """
    peer = server.connect(get("/held") + ahead)
    (held,) = server.requests
    if begun:
        held.write(b"begun")
    if how == "leave":
        peer.leave()
    else:
        if how == "stop":
            resultOf(server.connections.stop(10))
        server.connections.abort()
    assert peer.closed
    assert server.endOf(0) is not None
    held.write(b"late")
    assert server.paths == ["/held"]
    pump(server.clock, 11)


@pytest.mark.parametrize("ahead", [b"", get("/first")])
def test_an_error_of_a_limit_aborts_the_connection(
    ahead: bytes, clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    If a resource cannot say how long a body may be, the connection is aborted: nobody
    knows where the next request begins.
    """

    class Unlimited(Plain):
        @property
        def maxBodyBytes(self) -> int:
            raise Trouble("no limit")

    site, connections = plainSite(Unlimited(lambda request: b"seen"), clock)
    peer = Peer(site, clock)
    peer.send(ahead + request("POST", "/", "Content-Length: 5", body=b"12345"))
    assert peer.transport.aborted
    assert peer.closed
    assert loggedFailures.pop()["log_failure"].check(Trouble)
    assert connections.inProgress == 0


def test_an_error_at_the_end_of_a_request_keeps_no_connection_open(
    server: Server,
) -> None:
    """
    If a program has fired the Deferred of C{notifyFinish} itself, Twisted raises an
    error when the client disconnects. The connection is closed as always.
    """
    peer = server.connect(get("/held"))
    server.requests[0].notifyFinish().callback(None)
    with pytest.raises(AlreadyCalledError):
        peer.leave()
    assert resultOf(server.connections.stop(10)).value == 0


@asynchronous
async def test_a_client_that_closes_its_direction_has_left() -> None:
    """
    On a real connection, a client that closes its sending side cancels its request,
    since it may have disconnected.
    """
    from twisted.internet import reactor

    ended: Deferred[object] = Deferred()
    whenHeld: Deferred[None] = Deferred()

    def hold(request: Request) -> object:
        request.notifyFinish().addErrback(lambda end: ended.callback(end.type))
        whenHeld.callback(None)
        return NOT_DONE_YET

    site, _ = plainSite(Plain(hold), reactor)
    async with serving(site) as served:
        wire = await served.connect(get("/held"))
        await whenHeld
        transport: Any = wire.transport
        transport.loseWriteConnection()
        assert await ended is ConnectionDone
        await wire.whenClosed()


@asynchronous
async def test_a_client_that_leaves_while_it_is_not_read_is_noticed() -> None:
    """
    On a real connection, a client that has sent too much ahead is noticed when it
    disconnects, although it is not read for a second.
    """
    from twisted.internet import reactor

    ended: Deferred[object] = Deferred()
    whenHeld: Deferred[None] = Deferred()

    def hold(request: Request) -> object:
        request.notifyFinish().addErrback(lambda end: ended.callback(end.type))
        whenHeld.callback(None)
        return NOT_DONE_YET

    site, connections = plainSite(Plain(hold), reactor)
    async with serving(site) as served:
        wire = await served.connect(get("/held"))
        await whenHeld
        wire.send(get("/next") * 30_000)
        wire.finish()
        await ended
        await wire.whenClosed()
        assert connections.bodyBytes == 0


def test_answers_are_read_as_they_are() -> None:
    """
    The parser of these tests reads chunks.
    """
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    headers = {"transfer-encoding": "chunked"}
    assert answersIn(data * 2) == [Answer(200, headers, b"ab")] * 2
