"""
A coroutine or a Deferred becomes a response; the work for a client that disconnects is
cancelled; nothing is written twice or after the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.web.http_headers import InvalidHeaderName
from twisted.web.resource import Resource
from twisted.web.server import Request

from tsrv.resources import makeRoot
from tsrv.web.problems import HTTPError
from tsrv.web.responses import AsyncResource, Response, text
from tsrv.web.site import Site

from .support import Trouble, resultOf
from .websupport import Answer, Peer, Rendered, Teller, answersIn, ask, logged, textsOf

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


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
    Make a request to a resource whose GET is a function.
    """
    peer = Peer(Site(Rendered(render), clock), clock)
    peer.send(GET)
    return peer


async def coroutine(request: Request) -> Response:
    """
    Respond with a coroutine.
    """
    return text(await succeed("Zürich"))


@pytest.mark.parametrize(
    "render",
    [coroutine, lambda request: succeed(text("Zürich")), lambda _: text("Zürich")],
    ids=["coroutine", "Deferred", "plain"],
)
def test_the_result_of_a_method_becomes_the_response(
    render: Callable[[Request], Any],
) -> None:
    """
    A method returns a L{Response}, or a coroutine or Deferred of one; the length is the
    number of bytes.
    """
    answer = ask(Rendered(render))
    assert (answer.status, answer.body) == (200, "Zürich".encode())
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-length"] == "7"
    assert "transfer-encoding" not in answer.headers


def test_a_response_has_a_status_and_headers() -> None:
    """
    Each line of a repeated header is sent. A 204 has no headers of a body, which would
    be illegal, and confuse proxies.
    """
    links = [(b"Link", b"<a>"), (b"Link", b"<b>")]
    answer = ask(Rendered(lambda _: Response(b"{}", b"application/json", 201, links)))
    assert answer.status == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["link"] == "<a>, <b>"
    empty = ask(Rendered(lambda _: Response(b"", b"text/plain", 204)))
    assert empty.status == 204
    assert not {"content-length", "content-type"} & set(empty.headers)


@pytest.mark.parametrize("lineBreak", [b"\r\n", b"\n", b"\r"])
def test_a_content_type_cannot_add_a_header(lineBreak: bytes) -> None:
    """
    Line breaks in the type of a response become spaces, as in all headers: the type may
    be the one that a client once sent.
    """
    contentType = b"text/plain" + lineBreak + b"X-Forged: yes"
    answer = ask(Rendered(lambda _: Response(b"", contentType)))
    assert answer.headers["content-type"] == "text/plain X-Forged: yes"


# Methods.


@pytest.mark.parametrize("path", [b"/say", b"/elsewhere"])
def test_head_is_get_without_the_body(path: bytes, clock: Clock) -> None:
    """
    The response to HEAD has the headers of GET, and no body, which would be taken for
    the next response.
    """

    def withoutBody(answer: Answer) -> tuple[int, dict[str, str]]:
        headers = {**answer.headers, "date": "", "x-request-id": ""}
        return answer.status, headers

    teller = Teller()
    peer = Peer(Site(makeRoot(teller), clock), clock)
    received = []
    for method in (b"GET", b"HEAD"):
        before = len(peer.received)
        peer.send(method + b" " + path + GET[5:])
        while teller.answers:
            teller.answers.pop().callback("Something")
        received += answersIn(peer.received[before:], bodies=method == b"GET")
    assert received[0].body
    assert withoutBody(received[0]) == withoutBody(received[1])
    peer.leave()


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW", "get", "G!~", "_"]
)
def test_other_methods_are_refused_with_what_is_allowed(method: str) -> None:
    """
    A method without C{render_METHOD} gets 405 with Allow, and no call is made.
    """
    teller = Teller()
    answer = ask(makeRoot(teller), "/say", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert b"Method not allowed, only GET, HEAD" in answer.body
    assert teller.answers == []


def test_a_resource_may_have_other_methods_than_get() -> None:
    """
    A resource may have a method other than GET; the method gets the whole body. Without
    C{render_GET}, GET and HEAD are refused, although C{twisted.web} gives every
    resource a C{render_HEAD}.
    """
    assert ask(Writable(), method="POST", data=b"12345").body == b"5 bytes"
    for method in ("GET", "HEAD", "BREW"):
        answer = ask(Writable(), method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_resource_without_methods_is_not_found(method: str) -> None:
    """
    A resource that has only children is an unknown route: no method is allowed that a
    405 could name.
    """
    root = AsyncResource()
    root.putChild(b"api", AsyncResource())
    assert ask(root, "/api", method).status == 404


# Clients that disconnect.


@pytest.mark.parametrize(
    ("canceller", "expected"),
    [
        (None, []),
        (lambda answer: answer.callback(text("late")), []),
        (
            lambda answer: answer.errback(Trouble("cut off")),
            ["After the client disconnected: Trouble: cut off"],
        ),
    ],
    ids=["cancelled", "answers", "fails"],
)
@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_leaves_cancels_the_work_for_it(
    canceller: Callable[[Deferred[Response]], None] | None,
    expected: list[str],
    begun: bool,
    clock: Clock,
) -> None:
    """
    A client that disconnects cancels the work for it. A late result is discarded; a
    late error is logged only for debugging.
    """
    answer: Deferred[Response] = Deferred(canceller)

    def render(request: Request) -> Deferred[Response]:
        if begun:
            request.write(b"begun")
        return answer

    peer = connect(render, clock)
    before = peer.received
    with logged() as events:
        peer.leave()
    assert answer.called
    assert textsOf(events) == expected
    assert {event["log_level"].name for event in events} <= {"debug"}
    assert peer.received == before


def test_a_client_that_leaves_during_the_method_cancels_its_result(
    clock: Clock,
) -> None:
    """
    The result of a method is cancelled if the client disconnects while the method runs.
    """
    answer: Deferred[Response] = Deferred()

    def render(request: Request) -> Deferred[Response]:
        peer.leave()
        return answer

    peer = Peer(Site(Rendered(render), clock), clock)
    with logged() as events:
        peer.send(GET)
    assert answer.called
    assert events == []


@pytest.mark.parametrize("error", [Trouble, SystemExit])
def test_an_error_of_a_canceller_keeps_no_connection_open(
    error: type[BaseException], clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    If a canceller raises an error when the client disconnects, the error is logged, and
    the site does not wait for the connection when it stops.
    """

    def cancel(_: object) -> None:
        raise error("uncancellable")

    site = Site(Rendered(lambda _: Deferred(cancel)), clock)
    peer = Peer(site, clock)
    peer.send(GET)
    peer.leave()
    assert loggedFailures.pop()["log_failure"].check(error)
    assert resultOf(site.stop(10)).value == 0
    assert site.traffic.inProgress == 0


# Faults of a resource.


async def breakOff(request: Request) -> Response:
    """
    Begin to write a response, and fail.
    """
    request.write(b"Once upon a time")
    await succeed(None)
    raise Trouble("there was")


def strangely(request: Request) -> Deferred[Response]:
    """
    Fail with an error that has a header without a valid name.
    """
    error = HTTPError("with a strange header")
    error.headers = [(b"no name", b"value")]
    return fail(error)


class Unspeakable(HTTPError):
    """
    An error whose message ends the program.
    """

    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("render", "error"),
    [
        (breakOff, Trouble),
        (lambda _: Response("not bytes", b"text/plain"), TypeError),  # type: ignore[arg-type]
        (strangely, InvalidHeaderName),
        (lambda _: fail(Unspeakable()), SystemExit),
    ],
)
def test_a_response_that_cannot_be_finished_aborts_the_connection(
    render: Callable[[Request], Any],
    error: type[BaseException],
    clock: Clock,
    loggedFailures: list[LogEvent],
) -> None:
    """
    A response that cannot be finished is aborted: a second response in its body would
    be taken for a part of it.
    """
    peer = connect(render, clock)
    assert peer.transport.aborted
    assert peer.closed
    assert peer.received.count(b"HTTP/1.1") <= 1
    assert b"there was" not in peer.received
    assert loggedFailures.pop()["log_failure"].check(error)


def test_a_result_that_is_no_response_is_an_error(
    loggedFailures: list[LogEvent],
) -> None:
    """
    A method that forgets to return a response is an error like any other.
    """
    assert ask(Rendered(lambda request: None)).status == 500
    assert loggedFailures.pop()["log_failure"].check(AttributeError)


# Routes.


def test_every_resource_knows_its_route(clock: Clock) -> None:
    """
    The first place of a resource in the tree is its route, in whatever order the tree
    is built. A resource keeps its own route, and has none below a resource of another
    kind.
    """
    routes = {
        name: AsyncResource()
        for name in (
            *("/", "/api", "/api/users", "/api/l\xe4te\\xff", "/index"),
            *("/users/{id}", "/users/{id}/posts", "(other)"),
        )
    }
    root, api, users, late, index, user, posts, below = routes.values()
    plain = Resource()
    plain.putChild(b"below", below)
    user.route = "/users/{id}"
    user.putChild(b"posts", posts)
    api.putChild(b"users", users)
    root.putChild(b"self", root)
    root.putChild(b"api", api)
    root.putChild(b"index", index)
    root.putChild(b"", index)
    root.putChild(b"somebody", user)
    root.putChild(b"plain", plain)
    Site(root, clock)
    Site(api, clock)
    api.putChild(b"l\xc3\xa4te\xff", late)
    assert [each.route for each in routes.values()] == list(routes)


@pytest.mark.parametrize(
    "path", ["/", "/says", "/say/", "/say/more", "/a/b/c", "/say%2Fmore", "/%ff", "//"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_route_is_not_found(path: str, method: str) -> None:
    """
    An unknown path is not found, whatever the method, and no call is made.
    """
    teller = Teller()
    assert ask(makeRoot(teller), path, method).status == 404
    assert teller.answers == []
