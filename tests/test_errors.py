"""
An exception becomes a response: clients get a message that is meant for them, and the
log gets the details.
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
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    State,
    Unavailable,
)
from tsrv.databases import ConstraintViolated, UniqueViolated
from tsrv.resources import makeRoot
from tsrv.web.problems import HTTPError
from tsrv.web.responses import AsyncResource, Response
from tsrv.web.site import Site

from .support import Refused, Trouble
from .websupport import (
    Answer,
    Peer,
    Rendered,
    Teller,
    answersTo,
    ask,
    logged,
    textsOf,
)


class Known(HTTPError):
    """
    An error whose message is meant for clients.
    """


def failing(error: Exception) -> AsyncResource:
    """
    @return: A resource that fails.
    """

    async def render(request: Request) -> Response:
        raise error

    return Rendered(render)


def problemIn(answer: Answer) -> dict[str, Any]:
    """
    @return: The members of the problem.
    """
    assert answer.headers["content-type"] == "application/problem+json"
    members: dict[str, Any] = json.loads(answer.body)
    assert members["status"] == answer.status
    return members


def get(path: bytes = b"/", accept: bytes = b"*/*") -> bytes:
    """
    @return: A request with the id C{mine}.
    """
    lines = [b"GET %s HTTP/1.1" % path, b"Host: test", b"X-Request-ID: mine"]
    return b"\r\n".join([*lines, b"Accept: " + accept, b"", b""])


def inEachForm(error: Exception, **options: bool) -> list[Answer]:
    """
    @return: The error as a problem, as text and as a page.
    """
    accepts = (b"*/*", b"text/plain", b"text/html")
    data = b"".join(get(accept=each) for each in accepts)
    return answersTo(failing(error), data, **options)


# The form that a client prefers.

BROWSER = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,"
    "image/webp,*/*;q=0.8"
)

JSON = [
    None,
    "*/*",
    "*",
    "application/json",
    "application/problem+json",
    "application/*",
    "application/json, text/plain, */*",
    "text/plain;q=0",
    "text/plain;q=0, */*",
    "text/plain;q=0.1, */*;q=0.5",
    "text/*;q=0.1, text/plain;q=0, text/html;q=0",
    "image/png",
    "",
    " ",
    ",",
    "text",
    "/",
    ";q=1",
    "text/plain/more",
    "text/plain, ;",
    b"\xe9",
    "text/plain" + ";x=y" * 1000,
]

TEXT = [
    "text/plain",
    "TEXT/Plain",
    "text/plain;q=0.1",
    "text/plain; charset=utf-8",
    "text/*",
    "text/plain, */*;q=0.1",
    "text/*, text/html;q=0",
    "application/problem+json;q=0, application/json;q=0, text/*",
    "application/problem+json;q=0, application/json ; q=0.0, */*",
    "text/html;q=0.1, text/plain;q=0.2",
    "text/html;q=0.9, text/plain;q=x",
    "application/json;q=0.4, text/plain;q=0.5",
    ["text/plain", "application/json;q=0.5"],
]

HTML = [
    "text/html",
    BROWSER,
    "text/html, text/plain;q=0.2",
    "TEXT/HTML;q=0.9",
    "text/*;q=0.3, text/html;q=0.7",
]


@pytest.mark.parametrize("accept", [*JSON, *TEXT, *HTML])
def test_an_error_has_the_form_that_the_client_prefers(
    accept: str | bytes | list[str] | None,
) -> None:
    """
    The default form is a problem with the members of RFC 9457, C{error} and
    C{requestId}, also for a malformed or too long Accept header.
    """
    headers = {} if accept is None else {"Accept": accept}
    answer = ask(makeRoot(Teller()), "/nowhere", headers=headers)
    assert answer.status == 404
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["x-content-type-options"] == "nosniff"
    requestId = answer.headers["x-request-id"]
    body = answer.body.decode()
    if accept in JSON:
        assert problemIn(answer) == {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "Route not found",
            "error": "Route not found",
            "requestId": requestId,
        }
    elif accept in TEXT:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert body == "Not found"
    else:
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert body.startswith("<!DOCTYPE html>")
        assert "<h1>Route not found</h1>" in body
        assert f"404 Not Found &middot; request {requestId}" in body
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")


@given(st.binary(max_size=2000) | st.text("aeilnptx/*;,=q.01\" '\\").map(str.encode))
@example(b"text/plain;q=nan")
@example(b"text/plain;q=1e999, */*;q=-1")
def test_no_accept_header_breaks_an_error(accept: bytes) -> None:
    """
    A client gets the message of the error whatever Accept header it sends.
    """
    assert b"Sorry" in Known("Sorry").toResponse([accept], "mine").body


# Unexpected errors.


@pytest.mark.parametrize("accept", ["*/*", "text/plain"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_only_the_log_has_the_details_of_an_unexpected_error(
    method: str, accept: str, loggedFailures: list[LogEvent]
) -> None:
    """
    The response to an unexpected error has a fixed text and an id; an operator finds
    the traceback by the id.
    """
    resource = failing(Trouble("hunter2"))
    answer = ask(resource, "/?a=1", method, {"Accept": accept})
    assert answer.status == 500
    event = loggedFailures.pop()
    requestId = answer.headers["x-request-id"]
    assert event["requestId"] == requestId
    seen = repr(answer)
    for secret in ("hunter2", "Trouble", "Traceback", "test_errors"):
        assert secret not in seen
    if method == "GET" and accept == "*/*":
        assert problemIn(answer)["error"] == "Internal server error"
        assert problemIn(answer)["requestId"] == requestId
    elif method == "GET":
        assert answer.body.decode() == f"Internal server error (request {requestId})"
    written = eventAsText(event)
    assert f"Request {requestId} failed: {method} /?a=1" in written
    assert "Traceback" in written
    assert "hunter2" in written


def test_a_failed_lookup_is_an_unexpected_error(loggedFailures: list[LogEvent]) -> None:
    """
    A failed lookup is an unexpected error like any other, and has an id.
    """

    class Lost(AsyncResource):
        def getChild(self, path: bytes, request: Request) -> Resource:
            raise Trouble("hunter2")

    answer = ask(Lost(), "/a", headers={"X-Request-ID": "mine"})
    members = problemIn(answer)
    assert (members["status"], members["requestId"]) == (500, "mine")
    assert members["error"] == "Internal server error"
    assert b"hunter2" not in answer.body
    assert "Request mine failed: GET /a" in eventAsText(loggedFailures.pop())


class Hasty(Resource):
    """
    A resource of twisted.web that fails after it has responded, or after the client has
    disconnected.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> int:
        if request.path == b"/gone":
            request.channel.connectionLost(Failure(ConnectionDone()))
        else:
            request.write(b"done")
        if request.path == b"/finished":
            request.finish()
        raise Trouble("too late")


@pytest.mark.parametrize("path", [b"/finished", b"/gone", b"/begun"])
def test_an_error_that_is_too_late_is_logged(
    path: bytes, clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    An error that is too late is logged. No second response is sent, and an incomplete
    one is aborted.
    """
    peer = Peer(Site(Hasty(), clock), clock)
    peer.send(get(path))
    assert loggedFailures.pop()["log_failure"].check(Trouble)
    assert peer.received.count(b"HTTP/1.1") == (path != b"/gone")
    assert peer.transport.aborted is (path == b"/begun")
    peer.leave()
    clock.advance(0)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (b"/\x1b[2J", ""),
        (b"/%0a%0dForged", "/%0a%0dForged"),
        (b"/\x85Forged", r"/\x85Forged"),
        (b"/\\n", r"/\\n"),
        (b"/{requestId.__class__}", "/{requestId.__class__}"),
        (b"/'\"", "/'\\\""),
        (b"/" + b"\xff" * 2_000, "/" + r"\xff" * 999),
    ],
    ids=range(7),
)
def test_no_request_forges_a_line_of_the_log(
    uri: bytes, shown: str, loggedFailures: list[LogEvent]
) -> None:
    """
    A request cannot forge a line of the log: control characters are refused or escaped,
    and long values are truncated.
    """
    (answer,) = answersTo(failing(Trouble("no")), get(uri))
    if answer.status == 500:
        written = eventAsText(loggedFailures.pop(), includeTimestamp=False)
        first, *rest = written.splitlines()
        assert first.endswith(f"GET {shown}")
        assert first.isascii()
        assert first.isprintable()
        assert "Forged" not in "".join(rest)
    else:
        assert answer.status == 400


# Development.


def caused(error: Exception) -> Exception:
    """
    @return: The error, with a cause.
    """
    error.__cause__ = Trouble("<far>")
    return error


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (caused(Trouble("<near>")), ["<near>", "<far>"]),
        (caused(QueueTimeout("late", None, 1, State.NEW, 2)), ["late", "<far>"]),
        (OutcomeUnknown("write"), ["OutcomeUnknown"]),
    ],
    ids=["unexpected", "unavailable", "unknown"],
)
@pytest.mark.parametrize("development", [True, False])
def test_development_shows_tracebacks(
    error: Exception,
    seen: list[str],
    development: bool,
    loggedFailures: list[LogEvent],
) -> None:
    """
    In development mode every form has the escaped traceback with its causes; otherwise
    nothing of it is shown.
    """
    problem, plain, page = inEachForm(error, development=development)
    for text in (
        "\n".join(problemIn(problem).get("traceback", [])),
        plain.body.decode(),
        unescape(page.body.decode()),
    ):
        assert [each in text for each in seen] == [development] * len(seen)
    assert b"<far>" not in page.body
    loggedFailures.clear()


@pytest.mark.parametrize("raised", [False, True])
def test_a_failure_remembers_the_traceback(
    raised: bool, loggedFailures: list[LogEvent]
) -> None:
    """
    An exception without a traceback, because it was never raised or because a Deferred
    has cleaned it, is still shown with its cause.
    """

    def render(request: Request) -> Deferred[Response]:
        error = caused(Trouble("near"))
        failure = Failure(error)
        if raised:
            try:
                raise error
            except Trouble:
                failure = Failure()
        error.__traceback__ = None
        return fail(failure)

    (answer,) = answersTo(Rendered(render), get(), development=True)
    shown = "\n".join(problemIn(answer)["traceback"])
    assert shown.count("Trouble: near") == 1 + raised
    assert shown.count("in render") == raised
    assert "far" in shown
    loggedFailures.clear()


# Errors of the application.


class SpecialViolated(UniqueViolated):
    """
    A more derived error.
    """


@pytest.mark.parametrize(
    ("kind", "status", "sentence"),
    [
        (UniqueViolated, 409, "Resource already exists"),
        (SpecialViolated, 409, "Resource already exists"),
        (ConstraintViolated, 400, "Database constraint violation"),
    ],
)
def test_a_known_error_has_its_own_response(
    kind: type[ConstraintViolated], status: int, sentence: str
) -> None:
    """
    The entry of the most derived type applies. Clients see only its text; the exception
    is logged as a warning, except for conflicts.
    """
    with logged() as events:
        answer = ask(failing(kind("users.email", "23505")))
    assert answer.status == status
    assert problemIn(answer)["error"] == sentence
    assert b"users" not in answer.body
    requestId = answer.headers["x-request-id"]
    warning = f"Request {requestId} was refused: users.email"
    assert textsOf(events) == ([] if status == 409 else [warning])


def test_an_error_for_clients_reaches_them_unchanged() -> None:
    """
    The message and members of an error for clients reach the client in any script; the
    error is neither logged nor shown with a traceback.
    """
    sentence = '"Zürich" <b>, \N{SNOWMAN}'
    error = Known(sentence)
    error.status = HTTPStatus.IM_A_TEAPOT
    error.members = {"kettles": ["red", "blue"], "litres": 0}
    problem, plain, page = inEachForm(error, development=True)
    members = problemIn(problem)
    assert (members["error"], members["detail"]) == (sentence, sentence)
    assert (members["kettles"], members["litres"]) == (["red", "blue"], 0)
    assert "traceback" not in members
    assert (plain.status, plain.body.decode()) == (418, f"{sentence}\n(request mine)\n")
    assert "&quot;Zürich&quot; &lt;b&gt;" in page.body.decode()
    # Errors of one class share no state.
    assert "kettles" not in problemIn(ask(failing(Known("Another"))))


def test_an_error_lists_the_parts_that_are_wrong() -> None:
    """
    The member C{errors} has a line for each part, also in text and on the page.
    """
    error = Known("Invalid user")
    errors = [
        {"pointer": "/name", "detail": "must be <shorter>"},
        {"pointer": "", "detail": "must be an object"},
        {"parameter": "limit", "detail": "must be a number"},
    ]
    error.members = {"errors": errors}
    problem, plain, page = inEachForm(error)
    assert problemIn(problem)["errors"] == errors
    assert plain.body.decode().splitlines() == [
        "Invalid user",
        "/name: must be <shorter>",
        "must be an object",
        "limit: must be a number",
        "(request mine)",
    ]
    parts = "<li>/name: must be &lt;shorter&gt;</li>\n<li>must be an object</li>"
    assert parts in page.body.decode()


# Unavailable.

INTERRUPTED = "The request was interrupted: it may have been carried out, or not"

TIMEOUT = QueueTimeout("waited", 2.5, 30.0, State.RETRYING, 4)


@pytest.mark.parametrize(
    ("error", "sentence", "seconds"),
    [
        (QueueFull("full", 7.0), "Too many requests are waiting already", "7"),
        (TIMEOUT, "The service did not become ready in time", "3"),
        (InitializationFailed("refused"), "The service could not be started", "1"),
        (Closed("closed"), "The service is shutting down", "1"),
        (Unavailable("own", 0.0), "The service is not available", "1"),
        (Unavailable("own", 0.001), "The service is not available", "1"),
        (Unavailable("own", 1.0), "The service is not available", "1"),
        (Unavailable("own", 1.001), "The service is not available", "2"),
        (Unavailable("own", 86400.5), "The service is not available", "86401"),
        (Unavailable("own", float("inf")), "The service is not available", "1"),
        (Unavailable("own", float("nan")), "The service is not available", "1"),
        (Unavailable("own", -5.0), "The service is not available", "1"),
        # A repeated request might have its effect twice.
        (OutcomeUnknown("write"), INTERRUPTED, None),
    ],
    ids=repr,
)
def test_unavailable_says_when_to_retry(
    error: Exception, sentence: str, seconds: str | None
) -> None:
    """
    Retry-After is rounded up, and at least a second. Clients see neither the message,
    which names the module, nor the cause.
    """
    error.__cause__ = Refused("password hunter2 refused")
    answer = ask(failing(error))
    assert answer.status == 503
    assert answer.headers.get("retry-after") == seconds
    assert problemIn(answer)["error"] == sentence
    assert str(error) not in repr(answer).replace(sentence, "")
    assert "hunter2" not in repr(answer)
