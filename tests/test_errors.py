"""
An exception becomes a response: clients learn what concerns them, the log
learns the rest.
"""

from __future__ import annotations

import json
from html import unescape
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import LogEvent, eventAsText
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request

from tsrv import (
    AsyncModule,
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
    Unavailable,
)
from tsrv.databases import ConstraintViolated, UniqueViolated
from tsrv.resources import makeRoot
from tsrv.web.metrics import Traffic
from tsrv.web.problems import (
    HTTPError,
    Problem,
)
from tsrv.web.responses import (
    AsyncResource,
    Response,
)
from tsrv.web.site import Site

from .support import Refused, Trouble
from .websupport import Answer, Peer, Teller, ask, logged, textsOf

SAY = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"


class Failing(AsyncResource):
    """
    A resource that fails.
    """

    isLeaf = True

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def render_GET(self, request: Request) -> Response:
        raise self._error


class Known(HTTPError):
    """
    An error that somebody makes for clients to see.
    """


def problemIn(answer: Answer) -> dict[str, Any]:
    """
    @return: The members of the problem that was answered.
    """
    assert answer.headers["content-type"] == "application/problem+json"
    members: dict[str, Any] = json.loads(answer.body)
    assert members["status"] == answer.status
    return members


# What clients prefer.

BROWSER = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,"
    "image/webp,*/*;q=0.8"
)

PROBLEM = [
    "*/*",
    "*",
    "application/json",
    "application/problem+json",
    "application/*",
    "application/json, text/plain, */*",
    "text/plain;q=0",
    "text/plain;q=0, */*",
    "text/plain;q=0.1, */*;q=0.5",
    "",
    " ",
    ",",
    "text",
    "/",
    ";q=1",
    "text/plain/more",
    "text/plain, ;",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "text/plain" + ";x=y" * 1000,
]

TEXT = [
    "text/plain",
    "TEXT/Plain",
    "text/plain;q=0.1",
    "text/plain; charset=utf-8",
    "text/*",
    "text/plain, */*;q=0.1",
    "application/problem+json;q=0, application/json;q=0, text/*",
    "application/problem+json;q=0, application/json ; q=0.0, */*",
    "text/html;q=0.1, text/plain;q=0.2",
    "application/json;q=0.4, text/plain;q=0.5",
]


def test_who_says_nothing_gets_a_problem() -> None:
    """
    The whole of it, as RFC 9457 and the clients of the source read it.
    """
    answer = ask(makeRoot(Teller()), "/nowhere")
    members = problemIn(answer)
    assert members.pop("requestId") == answer.headers["x-request-id"]
    assert members == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "Route not found",
        "error": "Route not found",
    }
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize("accept", PROBLEM, ids=lambda accept: accept[:40])
def test_who_does_not_prefer_text_gets_a_problem(accept: str) -> None:
    """
    An Accept header that makes no sense, or that is too long to be read, is no
    reason to fail, least of all while telling of an error.
    """
    headers = {"Accept": accept.encode("latin-1")}
    answer = ask(makeRoot(Teller()), "/nowhere", headers=headers)
    assert answer.status == 404
    assert problemIn(answer)["error"] == "Route not found"


@pytest.mark.parametrize("accept", TEXT)
def test_who_prefers_text_gets_the_sentence_alone(accept: str) -> None:
    """
    The wire string of the source, for people with a terminal.
    """
    answer = ask(makeRoot(Teller()), "/nowhere", headers={"Accept": accept})
    assert answer.status == 404
    assert answer.body == b"Not found"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    "accept", ["text/html", BROWSER, "text/html, text/plain;q=0.2", "TEXT/HTML;q=0.9"]
)
def test_a_browser_gets_a_page(accept: str) -> None:
    """
    Who follows a dead link is not shown a bracket.
    """
    answer = ask(makeRoot(Teller()), "/nowhere", headers={"Accept": accept})
    assert answer.status == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = answer.body.decode()
    assert page.startswith("<!DOCTYPE html>")
    assert "<h1>Route not found</h1>" in page
    assert f"404 Not Found &middot; request {answer.headers['x-request-id']}" in page
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert answer.headers["vary"] == "Accept"


def test_nothing_of_an_error_is_taken_for_a_part_of_the_page() -> None:
    """
    Some module may make an error of what a client has sent.
    """
    error = Known("<script>alert(1)</script>")
    answer = ask(Failing(error), "/", headers={"Accept": "text/html"})
    assert b"<script" not in answer.body
    assert b"&lt;script&gt;" in answer.body


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "text/html"])
def test_an_error_is_taken_for_nothing_else_than_it_says(accept: str) -> None:
    """
    A browser that guesses might run it.
    """
    answer = ask(makeRoot(Teller()), "/nowhere", headers={"Accept": accept})
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_accept_may_have_several_lines() -> None:
    """
    A header in two lines means the same as in one.
    """
    accept = ["text/plain", "application/json;q=0.5"]
    answer = ask(makeRoot(Teller()), "/nowhere", headers={"Accept": accept})
    assert answer.body == b"Not found"


@given(st.binary(max_size=2000) | st.text("aeilnptx/*;,=q.01\" '\\").map(str.encode))
@example(b"text/plain;q=nan")
@example(b"text/plain;q=1e999, */*;q=-1")
def test_no_accept_header_breaks_an_error(accept: bytes) -> None:
    """
    What is said about an error must not depend on luck with a parser that is
    not ours.
    """
    problem = Problem(HTTPError.status, "Sorry")
    sent = problem.respond([accept])
    if sent.contentType.startswith(b"text/plain"):
        assert sent.body == b"Sorry"
    elif sent.contentType.startswith(b"text/html"):
        assert b"<h1>Sorry</h1>" in sent.body
    else:
        assert json.loads(sent.body)["error"] == "Sorry"


# Errors that nobody expected.


class PasswordLeaked(Exception):
    """
    An error of which nothing must be seen outside.
    """


@pytest.mark.parametrize("accept", ["*/*", "text/plain"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_unexpected_error_is_told_to_the_log_alone(
    method: str, accept: str, loggedFailures: list[LogEvent]
) -> None:
    """
    An exception may hold anything, so clients see nothing of it but an id; who
    runs the server finds by it the traceback.
    """
    answer = ask(
        Failing(PasswordLeaked("hunter2")), "/?a=1", method, {"Accept": accept}
    )
    assert answer.status == 500
    (event,) = loggedFailures
    loggedFailures.clear()
    requestId = event["requestId"]
    seen = repr(answer)
    for secret in ("hunter2", "PasswordLeaked", "Traceback", "test_errors"):
        assert secret not in seen
    if method == "GET":
        assert "Internal server error" in seen
        assert requestId in seen
    written = eventAsText(event)
    assert f"Request {requestId} failed: {method} /?a=1" in written
    assert "Traceback" in written
    assert "hunter2" in written
    assert "render_GET" in written


def test_an_unexpected_error_as_a_problem(loggedFailures: list[LogEvent]) -> None:
    """
    The wire string of the source, in its place.
    """
    members = problemIn(ask(Failing(PasswordLeaked("hunter2"))))
    assert members["error"] == members["detail"] == "Internal server error"
    assert members["requestId"] == loggedFailures.pop()["requestId"]


def test_each_request_has_an_id_of_its_own(loggedFailures: list[LogEvent]) -> None:
    """
    By an id that repeats itself nothing is found.
    """
    resource = Failing(Trouble("again"))
    ids = {problemIn(ask(resource))["requestId"] for _ in range(3)}
    assert len(ids) == 3
    assert ids == {event["requestId"] for event in loggedFailures}
    loggedFailures.clear()


class Lost(AsyncResource):
    """
    A resource that fails to find another.
    """

    def getChild(self, path: bytes, request: Request) -> Lost:
        raise PasswordLeaked("hunter2")


@pytest.mark.parametrize("counted", [True, False])
def test_to_fail_to_find_a_resource_is_an_error_as_any_other(
    counted: bool, clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    Twisted has a page of its own for it, without a name for the request.
    """
    traffic = Traffic(clock) if counted else None
    peer = Peer(Site(Lost(), clock, traffic=traffic), clock)
    peer.send(b"GET /a HTTP/1.1\r\nHost: test\r\nX-Request-ID: mine\r\n\r\n")
    (answer,) = peer.answers
    members = problemIn(answer)
    assert (members["status"], members["requestId"]) == (500, "mine")
    assert members["error"] == "Internal server error"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert b"hunter2" not in peer.received
    assert "Request mine failed: GET /a" in eventAsText(loggedFailures.pop())
    peer.leave()


class Hasty(Resource):
    """
    A resource of Twisted's kind that fails when it has answered, or lets the
    client leave meanwhile.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> int:
        if request.path == b"/gone":
            # As it is for a client that leaves just then.
            request.channel.connectionLost(Failure(ConnectionDone()))
        else:
            request.write(b"done")
        if request.path == b"/finished":
            request.finish()
        raise Trouble("too late")


@pytest.mark.parametrize("path", [b"/finished", b"/gone", b"/begun"])
def test_an_error_that_is_too_late_is_logged_all_the_same(
    path: bytes, clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    There is nobody left to be told of it, or no way to.
    """
    peer = Peer(Site(Hasty(), clock), clock)
    peer.send(b"GET " + path + b" HTTP/1.1\r\nHost: test\r\nX-Request-ID: mine\r\n\r\n")
    (event,) = loggedFailures
    assert isinstance(event["log_failure"].value, Trouble)
    loggedFailures.clear()
    assert peer.received.count(b"HTTP/1.1") == (path != b"/gone")
    assert peer.transport.aborted is (path == b"/begun")
    peer.leave()
    clock.advance(0)


@pytest.mark.parametrize(
    "uri",
    [
        b"/\x1b[2J",
        b"/%0a%0dForged",
        b"/\x85Forged",
        b"/{log_failure}",
        b"/{requestId.__class__}",
        b"/'\"",
    ],
)
def test_no_request_forges_a_line_of_the_log(
    uri: bytes, clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    Who can write lines into the log can hide in it, or blame others; some of
    these characters are refused before, none may come through.
    """
    peer = Peer(Site(Failing(Trouble("no")), clock), clock)
    peer.send(b"GET " + uri + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    (answer,) = peer.answers
    if answer.status == 500:
        written = eventAsText(loggedFailures.pop(), includeTimestamp=False)
        first, *rest = written.splitlines()
        assert first.endswith(f"GET {repr(uri)[2:-1]}")
        assert first.isascii()
        assert first.isprintable()
        assert "Forged" not in "".join(rest)
    else:
        assert answer.status == 400
    peer.leave()


# Development.


class Caused(AsyncResource):
    """
    A resource that fails, far away.
    """

    isLeaf = True

    async def render_GET(self, request: Request) -> Response:
        if request.path == b"/unavailable":
            raise QueueTimeout("late", None, 1, State.RETRYING, 2) from Trouble("<far>")
        if request.path == b"/unknown":
            raise OutcomeUnknown("write")
        raise Trouble("<near>") from Trouble("<far>")


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        (b"/", ["<near>", "<far>"]),
        (b"/unavailable", ["late", "<far>"]),
        (b"/unknown", ["OutcomeUnknown"]),
    ],
)
@pytest.mark.parametrize("development", [True, False])
def test_where_an_error_comes_from_is_shown_to_who_develops(
    path: bytes,
    seen: list[str],
    development: bool,
    clock: Clock,
    loggedFailures: list[LogEvent],
) -> None:
    """
    It saves a look into the log; and nobody else is shown any of it.
    """
    peer = Peer(Site(Caused(), clock, development=development), clock)
    for accept in (b"*/*", b"text/plain", b"text/html"):
        peer.send(
            b"GET "
            + path
            + b" HTTP/1.1\r\nHost: test\r\nAccept: "
            + accept
            + b"\r\n\r\n"
        )
    problem, plain, page = peer.answers
    members = problemIn(problem)
    shown = [
        "\n".join(members.get("traceback", [])),
        plain.body.decode(),
        unescape(page.body.decode()),
    ]
    for text in shown:
        for each in seen:
            assert (each in text) is development
    assert (b"&lt;far&gt;" in page.body) is (development and path != b"/unknown")
    assert b"<far>" not in page.body
    loggedFailures.clear()
    peer.leave()


class Cleaned(AsyncResource):
    """
    A resource that answers with an error of which Python has forgotten where it
    was raised, or that never was.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> Deferred[Response]:
        if request.path == b"/never":
            error = Trouble("near")
            error.__cause__ = Trouble("far")
            return fail(error)
        try:
            self._raise()
        except Trouble as error:
            failure = Failure()
            # As cleanFailure() does, which pytest-twisted keeps from doing it.
            error.__traceback__ = None
        return fail(failure)

    def _raise(self) -> None:
        raise Trouble("near") from Trouble("far")


@pytest.mark.parametrize(
    ("path", "times"), [(b"/never", [1, 1, 0]), (b"/cleaned", [2, 1, 1])]
)
def test_a_failure_remembers_where_an_error_comes_from(
    path: bytes, times: list[int], clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    Deferreds forget it to save memory, and the cause is what matters most.
    """
    peer = Peer(Site(Cleaned(), clock, development=True), clock)
    peer.send(b"GET " + path + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    (answer,) = peer.answers
    shown = "\n".join(problemIn(answer)["traceback"])
    seen = [
        shown.count(each) for each in ("Trouble: near", "Trouble: far", "in _raise")
    ]
    assert seen == times
    loggedFailures.clear()
    peer.leave()


def test_what_was_sent_wrongly_has_no_traceback(clock: Clock) -> None:
    """
    Not even for who develops: it comes from nowhere but the client.
    """
    peer = Peer(Site(AsyncResource(), clock, development=True), clock)
    peer.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    (answer,) = peer.answers
    assert "traceback" not in problemIn(answer)
    peer.leave()


# Errors that clients are to know of.


@pytest.mark.parametrize(
    ("unique", "status", "sentence"),
    [
        (True, 409, "Resource already exists"),
        (False, 400, "Database constraint violation"),
    ],
)
def test_a_constraint_is_told_without_its_name(
    unique: bool, status: int, sentence: str
) -> None:
    """
    The wire strings of the source; the database's own words name columns.
    """
    with logged() as events:
        kind = UniqueViolated if unique else ConstraintViolated
        answer = ask(Failing(kind("users.email", "23505")))
    assert answer.status == status
    assert problemIn(answer)["error"] == sentence
    assert b"users" not in answer.body
    # Who runs the server has no other way to learn which it was.
    assert textsOf(events) == (
        []
        if unique
        else [f"Request {answer.headers['x-request-id']} was refused: users.email"]
    )


def test_an_error_for_clients_says_what_it_says() -> None:
    """
    An error that was made for clients is not logged, and is not hidden from
    them.
    """
    error = Known("The kettle is empty")
    error.status = HTTPStatus.IM_A_TEAPOT
    assert problemIn(ask(Failing(error)))["error"] == "The kettle is empty"
    answer = ask(Failing(error), headers={"Accept": "text/plain"})
    said = f"The kettle is empty\n(request {answer.headers['x-request-id']})"
    assert (answer.status, answer.body) == (418, said.encode())


def test_what_is_said_may_be_any_text() -> None:
    """
    Sentences are made of letters, and quotes must not break out of JSON.
    """
    sentence = '"Zürich", \N{SNOWMAN}\n'
    assert problemIn(ask(Failing(Known(sentence))))["error"] == sentence
    answer = ask(Failing(Known(sentence)), headers={"Accept": "text/plain"})
    assert answer.body.startswith(sentence.encode())


def test_an_error_for_clients_may_have_more_to_tell() -> None:
    """
    What programs read has members of its own.
    """
    error = Known("Two kettles are empty")
    error.members = {"kettles": ["red", "blue"], "litres": 0}
    members = problemIn(ask(Failing(error)))
    assert members["kettles"] == ["red", "blue"]
    assert members["litres"] == 0
    assert members["error"] == members["detail"] == "Two kettles are empty"
    answer = ask(Failing(error), headers={"Accept": "text/plain"})
    assert answer.body.startswith(b"Two kettles are empty\n(request ")


def test_people_are_told_what_is_wrong_too() -> None:
    """
    That something in what was sent is wrong helps nobody who is not told what.
    """
    error = Known("The user is not as it has to be")
    error.members = {
        "errors": [
            {"pointer": "/name", "detail": "has to be <there>"},
            {"pointer": "", "detail": "has other members"},
            {"parameter": "limit", "detail": "has to be a number"},
        ]
    }
    answer = ask(Failing(error), headers={"Accept": "text/plain"})
    assert answer.body.decode().splitlines() == [
        "The user is not as it has to be",
        "/name: has to be <there>",
        "has other members",
        "limit: has to be a number",
        f"(request {answer.headers['x-request-id']})",
    ]
    page = ask(Failing(error), headers={"Accept": "text/html"}).body.decode()
    assert "<li>/name: has to be &lt;there&gt;</li>\n<li>has other members</li>" in page


def test_what_one_error_has_to_tell_is_not_told_of_another() -> None:
    """
    All errors share what a class has by default.
    """
    error = Known("One")
    error.members = {"kettle": "red"}
    assert "kettle" in problemIn(ask(Failing(error)))
    assert "kettle" not in problemIn(ask(Failing(Known("Another"))))


# Unavailable.

TIMEOUT = QueueTimeout("waited", 2.5, 30.0, State.RETRYING, 4)


@pytest.mark.parametrize(
    ("error", "sentence", "seconds"),
    [
        (QueueFull("full", 7.0), "Too many requests are waiting already", "7"),
        (TIMEOUT, "The service did not become ready in time", "3"),
        (InitializationFailed("bad"), "The service could not be started", "1"),
        (Closed("closed"), "The service is shutting down", "1"),
        (Unavailable("own", 0.0), "The service is not available", "1"),
        (Unavailable("own", 0.001), "The service is not available", "1"),
        (Unavailable("own", 1.0), "The service is not available", "1"),
        (Unavailable("own", 1.001), "The service is not available", "2"),
        (Unavailable("own", 86400.5), "The service is not available", "86401"),
        (Unavailable("own", float("inf")), "The service is not available", "1"),
        (Unavailable("own", float("nan")), "The service is not available", "1"),
        (Unavailable("own", -5.0), "The service is not available", "1"),
    ],
    ids=repr,
)
def test_unavailable_says_when_to_come_back(
    error: Unavailable, sentence: str, seconds: str
) -> None:
    """
    A Retry-After of 0, or one that is rounded down, invites clients to hammer.
    """
    answer = ask(Failing(error))
    assert answer.status == 503
    assert answer.headers["retry-after"] == seconds
    assert problemIn(answer)["error"] == sentence


def test_unavailable_tells_nothing_of_the_module() -> None:
    """
    Its message names classes, and its cause may hold a password: neither is
    for clients.
    """
    error = InitializationFailed("PostgreSQL failed to initialize")
    error.__cause__ = Refused("password hunter2 refused")
    answer = repr(ask(Failing(error)))
    assert "PostgreSQL" not in answer
    assert "hunter2" not in answer


def test_outcome_unknown_does_not_ask_to_come_back() -> None:
    """
    To try again may do twice what was to be done once.
    """
    answer = ask(Failing(OutcomeUnknown("write")))
    assert answer.status == 503
    assert "retry-after" not in answer.headers
    assert "may have been carried out" in problemIn(answer)["error"]


def test_a_full_queue_says_how_long_the_start_will_take(clock: Clock) -> None:
    """
    Where the start-up time that is left is known, clients need not guess.
    """
    wrapper = QueuingWrapper(AsyncModule(clock, 10.0), clock, limit=0)
    initialized = wrapper.initialize()
    root = makeRoot(wrapper.proxy)
    assert ask(root, "/say").headers["retry-after"] == "10"
    clock.advance(6.5)
    assert ask(root, "/say").headers["retry-after"] == "4"
    clock.advance(3.4)
    assert ask(root, "/say").headers["retry-after"] == "1"
    clock.advance(1)
    assert initialized.called


def test_a_full_queue_says_when_the_next_attempt_is(clock: Clock) -> None:
    """
    While the module is retried, it is the delay before the next attempt that
    is worth waiting for.
    """
    attempts: list[Deferred[None]] = []

    def initialize() -> Deferred[None]:
        attempts.append(Deferred())
        return attempts[-1]

    wrapper = QueuingWrapper(
        Teller(), clock, limit=0, retryPolicy=lambda n: 20.0, initialize=initialize
    )
    wrapper.initialize().addErrback(lambda failure: failure.trap(Closed))
    attempts[0].errback(Failure(Trouble("not yet")))
    root = makeRoot(wrapper.proxy)
    assert ask(root, "/say").headers["retry-after"] == "20"
    clock.advance(7.75)
    assert ask(root, "/say").headers["retry-after"] == "13"
    wrapper.close()
    assert problemIn(ask(root, "/say"))["error"] == "The service is shutting down"


def test_a_request_that_waited_too_long_is_told_so(clock: Clock) -> None:
    """
    A held request ends with an error that says why, and not with silence.
    """
    wrapper = QueuingWrapper(AsyncModule(clock, 60.0), clock, timeout=30.0)
    wrapper.initialize().addErrback(lambda failure: failure.trap(Closed))
    peer = Peer(Site(makeRoot(wrapper.proxy), clock), clock)
    peer.send(SAY)
    clock.advance(29)
    assert peer.received == b""
    clock.advance(1)
    (answer,) = peer.answers
    assert answer.status == 503
    assert answer.headers["retry-after"] == "30"
    assert problemIn(answer)["error"] == "The service did not become ready in time"
    wrapper.close()
    peer.leave()
