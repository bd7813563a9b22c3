"""
A coroutine, or a Deferred, becomes a response; whoever leaves is not waited
for; and nothing is written twice, or to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.web.http_headers import InvalidHeaderName
from twisted.web.resource import Resource
from twisted.web.server import Request

from tsrv import QueuingWrapper
from tsrv.resources import makeRoot
from tsrv.web.problems import HTTPError
from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)
from tsrv.web.site import Site

from .support import Trouble, resultOf
from .websupport import Answer, Peer, Teller, answersIn, ask, errorsIn, logged, textsOf

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


class Rendered(AsyncResource):
    """
    A resource that answers GET with what the test says.
    """

    isLeaf = True

    def __init__(self, render: Callable[[Request], Any]) -> None:
        super().__init__()
        self._render = render

    def render_GET(self, request: Request) -> Any:
        return self._render(request)


class Writable(AsyncResource):
    """
    A resource without GET.
    """

    isLeaf = True

    async def render_POST(self, request: Request) -> Response:
        assert request.content is not None
        return text(f"{len(request.content.read())} bytes")


def connect(render: Callable[[Request], Any], clock: Clock) -> Peer:
    """
    Make a connection to a site of one resource.
    """
    return Peer(Site(Rendered(render), clock), clock)


def hang(clock: Clock) -> tuple[Peer, Deferred[Response]]:
    """
    Ask for something that is answered later.
    """
    answer: Deferred[Response] = Deferred()
    peer = connect(lambda request: answer, clock)
    peer.send(GET)
    return peer, answer


async def coroutine(request: Request) -> Response:
    """
    Answer with a coroutine.
    """
    return text(await succeed("fine"))


@pytest.mark.parametrize(
    "render",
    [coroutine, lambda request: succeed(text("fine")), lambda request: text("fine")],
    ids=["coroutine", "Deferred", "plain"],
)
def test_what_a_method_answers_becomes_the_response(
    render: Callable[[Request], Any],
) -> None:
    """
    Resources are written without a word about NOT_DONE_YET.
    """
    answer = ask(Rendered(render))
    assert (answer.status, answer.body) == (200, b"fine")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_response_is_sent_when_it_is_there() -> None:
    """
    A Deferred that fires later is what all this is for.
    """
    later: Deferred[Response] = Deferred()
    stub: Any = StubTreq(Rendered(lambda request: later))
    asked = resultOf(stub.get("http://test/"))
    stub.flush()
    assert asked.pending
    later.callback(text("fine"))
    stub.flush()
    assert asked.value.code == 200
    assert resultOf(stub.content(asked.value)).value == b"fine"


def test_content_length_counts_bytes() -> None:
    """
    One letter of a text can be several bytes.
    """
    answer = ask(Rendered(lambda request: text("Zürich")))
    assert answer.headers["content-length"] == "7"
    assert answer.body == "Zürich".encode()


def test_a_body_known_whole_is_not_chunked(clock: Clock) -> None:
    """
    A length lets clients reuse the connection, and tell a whole body from half
    of one.
    """
    peer = connect(coroutine, clock)
    peer.send(GET)
    (answer,) = peer.answers
    assert answer.headers["content-length"] == "4"
    assert "transfer-encoding" not in answer.headers
    peer.leave()


def test_status_and_headers_are_those_of_the_response() -> None:
    """
    A resource says more than a body; of a header that may be repeated, every
    line is kept.
    """
    response = Response(
        b"{}", b"application/json", 201, [(b"Link", b"<a>"), (b"Link", b"<b>")]
    )
    answer = ask(Rendered(lambda request: response))
    assert answer.status == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["link"] == "<a>, <b>"


def test_no_content_has_no_headers_of_a_body(clock: Clock) -> None:
    """
    204 with a Content-Length is not legal, and confuses proxies.
    """
    peer = connect(lambda request: Response(b"", b"text/plain", 204), clock)
    peer.send(GET)
    (answer,) = peer.answers
    assert answer.status == 204
    assert not {"content-length", "content-type"} & set(answer.headers)
    peer.leave()


# HEAD, and methods that are not known.


def without(answer: Answer, *names: str) -> dict[str, str]:
    """
    @return: The headers without some of them.
    """
    return {key: value for key, value in answer.headers.items() if key not in names}


@pytest.mark.parametrize("path", [b"/say", b"/elsewhere"])
def test_head_is_get_without_the_body(path: bytes, clock: Clock) -> None:
    """
    HEAD is asked to learn the headers; a body after them would be taken for
    the next response.
    """
    teller = Teller()
    peer = Peer(Site(makeRoot(teller), clock), clock)
    received = []
    for method in (b"GET", b"HEAD"):
        before = len(peer.received)
        peer.send(method + b" " + path + b" HTTP/1.1\r\nHost: test\r\n\r\n")
        for each in teller.answers:
            if not each.called:
                each.callback("Something")
        data = peer.received[before:]
        received += answersIn(data, bodies=method == b"GET")
    got, headed = received
    assert got.body
    assert headed.status == got.status
    changing = ("date", "x-request-id")
    assert without(headed, *changing) == without(got, *changing)
    peer.leave()


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW", "get", "G!~", "_"]
)
def test_other_methods_are_refused_with_what_is_allowed(
    method: str, clock: Clock
) -> None:
    """
    405 without Allow leaves the client guessing, and a method that nobody
    heard of is no reason for another status.
    """
    teller = Teller()
    peer = Peer(Site(makeRoot(teller), clock), clock)
    peer.send(method.encode() + b" /say HTTP/1.1\r\nHost: test\r\n\r\n")
    (answer,) = peer.answers
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert b"Method not allowed, only GET, HEAD" in answer.body
    assert teller.answers == []
    peer.leave()


@pytest.mark.parametrize("method", ["GET", "HEAD", "BREW"])
def test_head_needs_get(method: str) -> None:
    """
    Every twisted.web resource has a render_HEAD, which fails where there is no
    render_GET.
    """
    answer = ask(Writable(), method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"


def test_a_resource_reads_the_body() -> None:
    """
    What was sent is there when the method is called.
    """
    assert ask(Writable(), method="POST", data=b"12345").body == b"5 bytes"


@pytest.mark.parametrize("method", [b"G\xc3\x89T", b"\xff\xfe", b"GE\x00T", b"G(T"])
def test_a_method_that_is_no_token_is_a_bad_request(
    method: bytes, clock: Clock
) -> None:
    """
    Odd bytes must not reach the lookup of a method by its name.
    """
    peer = connect(coroutine, clock)
    peer.send(method + b" / HTTP/1.1\r\nHost: test\r\n\r\n")
    assert [answer.status for answer in peer.answers] == [400]
    assert peer.transport.writeClosed
    peer.leave()


# Clients that leave.


def test_a_client_that_leaves_cancels_what_is_done_for_it(clock: Clock) -> None:
    """
    Nobody works for a client that is gone, and nobody is told that it left.
    """
    with logged() as events:
        peer, answer = hang(clock)
        peer.leave()
    assert answer.called
    # Not even where all is logged: it says nothing.
    assert events == []
    assert peer.received == b""


def test_a_client_that_leaves_takes_its_command_with_it(clock: Clock) -> None:
    """
    A command whose caller has given up must never run.
    """
    teller = Teller()
    wrapper = QueuingWrapper(teller, clock)
    initialized = resultOf(wrapper.initialize())
    site = Site(makeRoot(wrapper.proxy), clock)
    peer = Peer(site, clock)
    with logged() as events:
        peer.send(b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n")
        assert wrapper.pending == 1
        peer.leave()
    assert (wrapper.pending, wrapper.stats.cancelled) == (0, 1)
    assert errorsIn(events) == []
    teller.starting.callback(None)
    assert initialized.value is None
    assert teller.answers == []


def test_a_client_that_leaves_during_the_call_is_not_served(clock: Clock) -> None:
    """
    The connection can be lost while the resource is being asked; what it is
    about to begin is cancelled too.
    """
    answer: Deferred[Response] = Deferred()
    peers: list[Peer] = []

    def render(request: Request) -> Deferred[Response]:
        peers[0].leave()
        return answer

    peers.append(connect(render, clock))
    with logged() as events:
        peers[0].send(GET)
    assert answer.called
    assert errorsIn(events) == []


def test_an_answer_for_a_client_that_left_is_thrown_away(clock: Clock) -> None:
    """
    To cancel is a request; a module may answer all the same, and to write to a
    request that is over raises.
    """
    answer: Deferred[Response] = Deferred(lambda it: it.callback(text("late")))
    peer = connect(lambda request: answer, clock)
    peer.send(GET)
    with logged() as events:
        peer.leave()
    assert events == []
    assert peer.received == b""


def test_an_error_for_a_client_that_left_is_no_news(clock: Clock) -> None:
    """
    A module that ends a cancelled call with an error of its own does not fill
    the log with the comings and goings of clients.
    """
    answer: Deferred[Response] = Deferred(lambda it: it.errback(Trouble("cut off")))
    peer = connect(lambda request: answer, clock)
    peer.send(GET)
    with logged() as events:
        peer.leave()
    assert errorsIn(events) == []
    assert textsOf(events) == ["After the client left: Trouble: cut off"]


# Responses that have begun.


async def breakOff(request: Request) -> Response:
    """
    Begin to write a response, and fail.
    """
    request.write(b"Once upon a time")
    await succeed(None)
    raise Trouble("there was")


def test_an_error_after_the_response_has_begun_aborts_the_connection(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    The status is out, and a second response into the body of the first would
    be taken for a part of it; only the end of the connection tells the client.
    """
    peer = connect(breakOff, clock)
    peer.send(GET)
    assert peer.transport.aborted
    assert peer.closed
    assert peer.received.count(b"HTTP/1.1") == 1
    assert b"there was" not in peer.received
    (event,) = loggedFailures
    assert event["log_failure"].check(Trouble)
    loggedFailures.clear()


def test_a_response_that_cannot_be_written_aborts_the_connection(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    A body of the wrong type is found out only after the headers are sent.
    """
    response = Response("not bytes", b"text/plain")  # type: ignore[arg-type]
    peer = connect(lambda request: response, clock)
    peer.send(GET)
    assert peer.transport.aborted
    assert peer.closed
    (event,) = loggedFailures
    assert event["log_failure"].check(TypeError)
    loggedFailures.clear()


def test_an_error_that_cannot_be_written_aborts_the_connection(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    An error with a header that is none must not leave the client waiting.
    """
    error = HTTPError("with a strange header")
    error.headers = [(b"no name", b"value")]
    peer = connect(lambda request: fail(error), clock)
    peer.send(GET)
    assert peer.transport.aborted
    assert peer.closed
    (event,) = loggedFailures
    assert event["log_failure"].check(InvalidHeaderName)
    loggedFailures.clear()


def test_who_left_a_response_that_has_begun_is_not_an_error(clock: Clock) -> None:
    """
    A client may leave in the middle of a response as it may before.
    """
    more: Deferred[None] = Deferred()

    async def render(request: Request) -> Response:
        request.write(b"Once upon a time")
        await more
        raise AssertionError("The wait has been cancelled")

    peer = connect(render, clock)
    peer.send(GET)
    with logged() as events:
        peer.leave()
    assert more.called
    assert events == []


def test_an_answer_that_is_no_response_is_an_error(
    loggedFailures: list[LogEvent],
) -> None:
    """
    A resource that forgot to answer is a fault like any other, and not a
    request without an end.
    """
    assert ask(Rendered(lambda request: None)).status == 500
    assert len(loggedFailures) == 1
    loggedFailures.clear()


# Routes.


def test_every_resource_knows_the_route_that_it_is_found_at(clock: Clock) -> None:
    """
    In whichever order a tree is put together, what is counted by route has the
    whole of it.
    """
    root, api, users, late, index = (AsyncResource() for _ in range(5))
    api.putChild(b"users", users)
    root.putChild(b"api", api)
    root.putChild(b"", index)
    Site(root, clock)
    api.putChild(b"l\xc3\xa4te\xff", late)
    routes = [each.route for each in (root, api, users, late, index)]
    assert routes == ["/", "/api", "/api/users", "/api/läte\\xff", "/"]


def test_a_route_of_its_own_is_kept(clock: Clock) -> None:
    """
    A resource with a part that varies knows best what to call it; and what is
    put under it follows.
    """

    class User(AsyncResource):
        route = "/users/{id}"

    root, user, posts = AsyncResource(), User(), AsyncResource()
    user.putChild(b"posts", posts)
    root.putChild(b"somebody", user)
    Site(root, clock)
    assert (user.route, posts.route) == ("/users/{id}", "/users/{id}/posts")


def test_a_resource_in_several_places_has_the_first_route(clock: Clock) -> None:
    """
    One that is put under itself is no reason to look for its route for ever,
    and one that is shared has one name.
    """
    root, shared = AsyncResource(), AsyncResource()
    root.putChild(b"self", root)
    root.putChild(b"a", shared)
    root.putChild(b"b", shared)
    Site(root, clock)
    Site(shared, clock)
    assert (root.route, shared.route) == ("/", "/a")


def test_what_is_put_under_no_resource_of_ours_has_no_route(clock: Clock) -> None:
    """
    It must not be taken for the root.
    """
    root, plain, child = AsyncResource(), Resource(), AsyncResource()
    plain.putChild(b"child", child)
    root.putChild(b"plain", plain)
    Site(root, clock)
    assert child.route == "(other)"


@pytest.mark.parametrize(
    "path", ["/", "/says", "/say/", "/say/more", "/a/b/c", "/say%2Fmore", "/%ff", "//"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_there_is_nothing_where_nothing_is(path: str, method: str) -> None:
    """
    Whatever the path or the method, an unknown route is 404, and no call is
    made.
    """
    teller = Teller()
    answer = ask(makeRoot(teller), path, method)
    assert answer.status == 404
    assert teller.answers == []


def test_say_passes_on_what_the_module_says(clock: Clock) -> None:
    """
    The wire string of the source.
    """
    teller = Teller()
    peer = Peer(Site(makeRoot(teller), clock), clock)
    peer.send(b"GET /say?loud=yes HTTP/1.1\r\nHost: test\r\n\r\n")
    teller.answers[0].callback("Current time is: late")
    (answer,) = peer.answers
    assert (answer.status, answer.body) == (200, b"I say: Current time is: late")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    peer.leave()
