"""
An exception becomes a response.

Errors are problem details (RFC 9457), with one more member, C{error}, which is
what the clients of simpler servers read. Who prefers text gets the sentence
alone. Nothing of an unexpected exception reaches a client but an id, by which
it is found in the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from math import ceil
from types import MappingProxyType
from uuid import uuid4

from mimeparse import MimeTypeParseException, best_match
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest

from ..wrapper import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    Unavailable,
)
from ._accept import mediaRanges

__all__ = [
    "HTTPError",
    "MethodNotAllowed",
    "NotFound",
    "Problem",
    "problemOf",
]

_log = Logger()

_JSON = "application/problem+json"
_TEXT = "text/plain"

# The last one wins where a client does not care.
_OFFERED = [_TEXT, "application/json", _JSON]


class HTTPError(Exception):
    """
    An error that the client is to know of.

    @ivar status: The status of the response.
    @ivar text: What is said in place of the exception's message to who prefers
        text.
    @ivar headers: Headers of the response.
    @ivar members: What else there is to be told, as members of the problem, in
        what JSON can express.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    text: str | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    members: Mapping[str, object] = MappingProxyType({})


class NotFound(HTTPError):
    """
    There is no such route.
    """

    status = HTTPStatus.NOT_FOUND
    text = "Not found"

    def __init__(self) -> None:
        super().__init__("Route not found")


class MethodNotAllowed(HTTPError):
    """
    The route exists, but not with this method.
    """

    status = HTTPStatus.METHOD_NOT_ALLOWED

    def __init__(self, allowed: Sequence[str]) -> None:
        """
        @param allowed: The methods that the route knows.
        """
        listed = ", ".join(allowed)
        super().__init__(f"Method not allowed, only {listed}")
        self.headers = [(b"Allow", listed.encode("ascii"))]


@dataclass(frozen=True)
class Problem:
    """
    An error, as a client sees it.

    @ivar status: The status of the response.
    @ivar detail: One sentence for people.
    @ivar text: The sentence for who prefers text, if it is another one.
    @ivar headers: Headers of the response.
    @ivar requestId: By what the request is found in the access log, if there is
        one, and in any case if the error is logged.
    @ivar members: Further members.
    """

    status: HTTPStatus
    detail: str
    text: str | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    requestId: str = field(default_factory=lambda: uuid4().hex)
    members: Mapping[str, object] = field(default_factory=dict)

    def encode(self, accept: bytes | None) -> tuple[bytes, bytes]:
        """
        @param accept: The request's C{Accept} header.
        @return: The content type and the body.
        """
        if _prefersText(accept):
            return b"text/plain; charset=utf-8", (self.text or self.detail).encode()
        members = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "requestId": self.requestId,
            "error": self.detail,
            **self.members,
        }
        return _JSON.encode(), json.dumps(members).encode()


def problemOf(failure: Failure, request: IRequest) -> Problem:
    """
    Say what a client is told of an error; log it if nobody expected it.

    @param failure: What has gone wrong.
    @param request: The request that it went wrong with.
    @return: The problem.
    """
    error = failure.value
    if isinstance(error, HTTPError):
        return Problem(
            error.status,
            str(error),
            error.text,
            error.headers,
            members=error.members,
        )
    if isinstance(error, Unavailable):
        seconds = max(1, ceil(error.retryAfter or 0))
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            _UNAVAILABLE.get(type(error), "The service is not available"),
            headers=[(b"Retry-After", b"%d" % seconds)],
        )
    if isinstance(error, OutcomeUnknown):
        # No Retry-After: to try again might do twice what is to be done once.
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The request was interrupted: it may have been carried out, or not",
        )
    requestId = uuid4().hex
    _log.failure(
        "Request {requestId} failed: {method} {uri}",
        failure=failure,
        requestId=requestId,
        method=_readable(request.method),
        uri=_readable(request.uri),
    )
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Internal server error",
        text=f"Internal server error (request {requestId})",
        requestId=requestId,
    )


_UNAVAILABLE: dict[type[Unavailable], str] = {
    QueueFull: "Too many requests are waiting already",
    QueueTimeout: "The service did not become ready in time",
    InitializationFailed: "The service could not be started",
    Closed: "The service is shutting down",
}


def _prefersText(accept: bytes | None) -> bool:
    ranges = mediaRanges(accept)
    if not ranges:
        return False
    try:
        return bool(best_match(_OFFERED, ",".join(ranges)) == _TEXT)
    except MimeTypeParseException:
        return False


def _readable(value: bytes) -> str:
    """
    @return: What a client sent, with nothing in it that could forge a line of
        the log.
    """
    return repr(value)[2:-1]
