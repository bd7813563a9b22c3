"""
An exception becomes a response.

Errors are problem details (RFC 9457) with the additional member C{error}, which
clients of simpler servers read. Browsers get a page, and clients that prefer
text get lines of text. Of an unexpected exception a client sees only the id of
the request, which finds the exception in the log, unless the site is in
development mode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from math import ceil, isfinite
from string import Template
from traceback import format_exception
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest

from ..errors import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    Unavailable,
)
from .accept import preferredType
from .message import Response
from .requestid import requestIdOf

__all__ = [
    "HTTPError",
    "KnownErrors",
    "MethodNotAllowed",
    "NotFound",
    "Problem",
    "problemOf",
]

_log = Logger()

KnownErrors: TypeAlias = Mapping[type[BaseException], tuple[HTTPStatus, str]]
"""
The response to an application's own errors: exception type to status and text.

The entry of the most derived type applies. The text is all that clients see. The
exception itself is logged as a warning, unless the status is 409: a conflict
between two clients is normal, while the request's validation should have found
any other error.
"""

_OFFERED: Final = [
    "text/html",
    "text/plain",
    "application/json",
    "application/problem+json",
]
"""
Media types of errors; the last one is for clients that do not care.
"""

_PAGE: Final = Template("""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto;
    padding: 0 1rem; }
h1 { font-size: 1.5rem; }
pre { overflow-x: auto; font-size: .8rem; }
small { opacity: .7; }
</style>
<h1>$detail</h1>
$more<p><small>$title &middot; request $requestId</small></p>
""")

_PAGE_POLICY: Final = (
    b"Content-Security-Policy",
    b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
)

_UNAVAILABLE: Final[Mapping[type[Unavailable], str]] = {
    QueueFull: "Too many requests are waiting already",
    QueueTimeout: "The service did not become ready in time",
    InitializationFailed: "The service could not be started",
    Closed: "The service is shutting down",
}


class HTTPError(Exception):
    """
    An error whose message is meant for clients.

    @ivar status: The status of the response.
    @ivar text: Replaces the message for clients that prefer text.
    @ivar headers: Headers of the response.
    @ivar members: Further members of the problem, as JSON can express them.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    text: str | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    members: Mapping[str, object] = MappingProxyType({})


class NotFound(HTTPError):
    """
    The route does not exist.
    """

    status = HTTPStatus.NOT_FOUND
    text = "Not found"

    def __init__(self) -> None:
        super().__init__("Route not found")


class MethodNotAllowed(HTTPError):
    """
    The route does not support the method.
    """

    status = HTTPStatus.METHOD_NOT_ALLOWED

    def __init__(self, allowed: Sequence[str]) -> None:
        """
        @param allowed: The methods that the route supports.
        """
        names = ", ".join(allowed)
        super().__init__(f"Method not allowed, only {names}")
        self.headers = [(b"Allow", names.encode("ascii"))]


@dataclass(frozen=True)
class Problem:
    """
    An error as clients see it.

    @ivar status: The status of the response.
    @ivar detail: One sentence for people.
    @ivar text: Replaces the sentence for clients that prefer text.
    @ivar headers: Headers of the response.
    @ivar requestId: The id of the request.
    @ivar members: Further members.
    @ivar traceback: The traceback, in development mode.
    """

    status: HTTPStatus
    detail: str
    text: str | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    requestId: str = ""
    members: Mapping[str, object] = field(default_factory=dict)
    traceback: str | None = None

    def respond(self, accept: Sequence[bytes] | None) -> Response:
        """
        @param accept: The C{Accept} headers of the request.
        @return: The response, in the form that the client prefers.
        """
        headers = [(b"Vary", b"Accept"), (b"X-Content-Type-Options", b"nosniff")]
        preferred = preferredType(b",".join(accept or ()), _OFFERED)
        if preferred == "text/plain":
            body, contentType = self._asText(), "text/plain; charset=utf-8"
        elif preferred == "text/html":
            body, contentType = self._asPage(), "text/html; charset=utf-8"
            headers.append(_PAGE_POLICY)
        else:
            body, contentType = self._asJSON(), "application/problem+json"
        return Response(
            body.encode("utf-8", "backslashreplace"),
            contentType.encode("ascii"),
            self.status,
            [*headers, *self.headers],
        )

    def _asJSON(self) -> str:
        members: dict[str, object] = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "requestId": self.requestId,
            "error": self.detail,
            **self.members,
        }
        if self.traceback is not None:
            members["traceback"] = self.traceback.splitlines()
        return json.dumps(members)

    def _asText(self) -> str:
        lines = [self.text or self.detail]
        if self.text is None:
            lines += self._parts()
            if self.requestId:
                lines.append(f"(request {self.requestId})")
        if self.traceback is not None:
            lines += ["", self.traceback]
        return "\n".join(lines)

    def _asPage(self) -> str:
        more = ""
        if parts := self._parts():
            items = "".join(f"<li>{escape(part)}</li>\n" for part in parts)
            more += f"<ul>\n{items}</ul>\n"
        if self.traceback is not None:
            more += f"<pre>{escape(self.traceback)}</pre>\n"
        return _PAGE.substitute(
            title=escape(f"{self.status:d} {self.status.phrase}"),
            detail=escape(self.detail),
            more=more,
            requestId=escape(self.requestId),
        )

    def _parts(self) -> list[str]:
        """
        @return: What is wrong with each part of the request.
        """
        lines = []
        errors: Any = self.members.get("errors", ())
        for each in errors:
            where = each.get("pointer") or each.get("parameter")
            lines.append(f"{where}: {each['detail']}" if where else each["detail"])
        return lines


def problemOf(failure: Failure, request: IRequest) -> Problem:
    """
    Find out what a client is told about an error; log the error if it is unexpected.

    @param failure: The error.
    @param request: The request that has failed.
    @return: The problem.
    """
    error, requestId = failure.value, requestIdOf(request)
    if isinstance(error, HTTPError):
        return Problem(
            error.status,
            str(error),
            error.text,
            error.headers,
            requestId,
            error.members,
        )
    site = getattr(request, "site", None)
    knownErrors: KnownErrors = getattr(site, "knownErrors", {})
    for errorType in type(error).__mro__:
        if errorType in knownErrors:
            status, detail = knownErrors[errorType]
            if status != HTTPStatus.CONFLICT:
                _log.warn(
                    "Request {requestId} was refused: {reason}",
                    requestId=requestId,
                    reason=error,
                )
            return Problem(status, detail, requestId=requestId)
    status, text = HTTPStatus.SERVICE_UNAVAILABLE, None
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, Unavailable):
        detail = _UNAVAILABLE.get(type(error), "The service is not available")
        headers = [(b"Retry-After", b"%d" % _retryAfterSeconds(error))]
    elif isinstance(error, OutcomeUnknown):
        # No Retry-After: the work may have been done, and would be done twice.
        detail = "The request was interrupted: it may have been carried out, or not"
    else:
        status, detail = HTTPStatus.INTERNAL_SERVER_ERROR, "Internal server error"
        text = f"{detail} (request {requestId})"
        _log.failure(
            "Request {requestId} failed: {method} {uri}",
            failure=failure,
            requestId=requestId,
            method=_escaped(request.method),
            uri=_escaped(request.uri),
        )
    traceback = _tracebackOf(failure) if getattr(site, "development", False) else None
    return Problem(status, detail, text, headers, requestId, traceback=traceback)


def _retryAfterSeconds(error: Unavailable) -> int:
    seconds = error.retryAfter
    if seconds is None or not isfinite(seconds):
        return 1
    return max(1, ceil(seconds))


def _tracebackOf(failure: Failure) -> str:
    """
    @return: The traceback of an error, with its causes.
    """
    error = failure.value
    assert error is not None
    text = "".join(format_exception(error))
    if error.__traceback__ is None and failure.frames:
        # The failure was cleaned; only its own copy of the frames is left.
        text += f"\n{failure.getTraceback()}"
    return text


def _escaped(value: bytes) -> str:
    """
    @return: What a client sent, without characters that could forge a log line.
    """
    return repr(value)[2:-1]
