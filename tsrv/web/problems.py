"""
Turns an exception into a response.

Errors are problem details (RFC 9457) with the additional member C{error}, which
clients of simpler servers read. Browsers get a page, and clients that prefer
text get lines of text. If an exception is unexpected, a client sees only the id of
the request, which leads to the exception in the log. In development mode, the client
also sees the traceback.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from ..queuing.history import explain
from .accept import preferredType
from .message import Response
from .requestid import requestIdOf

__all__ = ["HTTPError", "KnownErrors", "escaped", "responseTo", "retryAfter"]

_log = Logger("tsrv.web")

KnownErrors: TypeAlias = Mapping[type[BaseException], tuple[HTTPStatus, str]]
"""
The responses to an application's own errors: for each type of exception, the status and
the text::

    {NameTaken: (HTTPStatus.CONFLICT, "Resource already exists")}

The entry of the most derived type applies. Clients see only the text. The exception
itself is logged as a warning, unless the status is 409: conflicts between clients are
normal, while the validation of the request should have found any other error.
"""

MAX_LOGGED_BYTES: Final = 1_000
"""
Maximum length of a value from a client in the log.
"""

_HTML: Final = b"text/html; charset=utf-8"
_TEXT: Final = b"text/plain; charset=utf-8"
_JSON: Final = b"application/problem+json"

# Clients without a preference get the last type.
_OFFERED: Final = [
    "text/html",
    "text/plain",
    "application/json",
    "application/problem+json",
]

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
    An error whose message is meant for clients::

        raise HTTPError("User not found", HTTPStatus.NOT_FOUND)

    Subclasses may set the status and the other attributes for all their errors.

    @ivar status: The status of the response.
    @ivar text: Replaces the message for clients that prefer text.
    @ivar headers: Names and values of further headers of the response.
    @ivar members: Further members of the problem, whose values JSON can express. Each
        item of C{errors} has a C{detail}, and a C{pointer} or C{parameter}.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    text: str | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    members: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        detail: str = "",
        status: int | None = None,
        headers: Sequence[tuple[bytes, bytes]] | None = None,
        text: str | None = None,
    ) -> None:
        """
        @param detail: The message: one sentence for the people who use the client.
        @param status: The status of the response; L{None}: the status of the class.
        @param headers: Names and values of further headers; L{None}: the headers of the
            class.
        @param text: Replaces the message for clients that prefer text; L{None}: the
            text of the class.
        @raise ValueError: C{status} is not an HTTP status.
        """
        super().__init__(detail)
        self.status = self.status if status is None else HTTPStatus(status)
        self.headers = headers or self.headers
        self.text = text or self.text

    def toResponse(
        self, accept: Sequence[bytes] | None, requestId: str, traceback: str = ""
    ) -> Response:
        """
        Make the response in the form that the client prefers.

        @param accept: The values of C{Accept}; L{None} if the request has no such
            header.
        @param requestId: The id of the request.
        @param traceback: The traceback; empty except in development mode.
        @return: The response.
        """
        headers = [(b"Vary", b"Accept")]
        preferred = preferredType(accept, _OFFERED)
        if preferred == "text/plain":
            body, contentType = self._asText(requestId, traceback), _TEXT
        elif preferred == "text/html":
            body, contentType = self._asPage(requestId, traceback), _HTML
            headers.append(_PAGE_POLICY)
        else:
            body, contentType = self._asJSON(requestId, traceback), _JSON
        encoded = body.encode("utf-8", "backslashreplace")
        return Response(encoded, contentType, self.status, [*headers, *self.headers])

    def _asJSON(self, requestId: str, traceback: str) -> str:
        detail = str(self)
        members: dict[str, object] = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": detail,
            "requestId": requestId,
            "error": detail,
            **self.members,
        }
        if traceback:
            members["traceback"] = traceback.splitlines()
        return json.dumps(members)

    def _asText(self, requestId: str, traceback: str) -> str:
        text = self.text
        if text is None:
            lines = [str(self), *self._parts(), f"(request {requestId})"]
            text = "".join(f"{line}\n" for line in lines)
        return f"{text.rstrip()}\n\n{traceback}" if traceback else text

    def _asPage(self, requestId: str, traceback: str) -> str:
        more = ""
        if parts := self._parts():
            items = "".join(f"<li>{escape(part)}</li>\n" for part in parts)
            more += f"<ul>\n{items}</ul>\n"
        if traceback:
            more += f"<pre>{escape(traceback)}</pre>\n"
        return _PAGE.substitute(
            title=escape(f"{self.status:d} {self.status.phrase}"),
            detail=escape(str(self)),
            more=more,
            requestId=escape(requestId),
        )

    def _parts(self) -> list[str]:
        lines = []
        for each in self.members.get("errors", ()):
            where = each.get("pointer") or each.get("parameter")
            lines.append(f"{where}: {each['detail']}" if where else each["detail"])
        return lines


def responseTo(failure: Failure, request: IRequest) -> Response:
    """
    Make the response to an error, and log the error if it is unexpected. An error of
    tsrv such as C{QueueTimeout} becomes 503; an unknown error becomes 500.

    @param failure: The error.
    @param request: The request that has failed.
    @return: The response.
    """
    error, requestId = failure.value, requestIdOf(request)
    accept = request.requestHeaders.getRawHeaders(b"Accept")
    if isinstance(error, HTTPError):
        return error.toResponse(accept, requestId)
    site = getattr(request, "site", None)
    knownErrors: KnownErrors = getattr(site, "knownErrors", {})
    for errorType in type(error).__mro__:
        if errorType in knownErrors:
            status, detail = knownErrors[errorType]
            if status != HTTPStatus.CONFLICT:
                _log.warn(
                    "Request {requestId} was refused: {error}",
                    requestId=requestId,
                    error=explain(error),
                )
            return HTTPError(detail, status).toResponse(accept, requestId)
    if isinstance(error, Unavailable):
        detail = _UNAVAILABLE.get(type(error), "The service is not available")
        headers = [retryAfter(error.retryAfter)]
        public = HTTPError(detail, HTTPStatus.SERVICE_UNAVAILABLE, headers)
    elif isinstance(error, OutcomeUnknown):
        # No Retry-After: a retry could do the work a second time.
        detail = "The request was interrupted: it may have been carried out, or not"
        public = HTTPError(detail, HTTPStatus.SERVICE_UNAVAILABLE)
    else:
        detail = "Internal server error"
        public = HTTPError(detail, text=f"{detail} (request {requestId})")
        _log.failure(
            "Request {requestId} failed: {method} {uri}",
            failure=failure,
            requestId=requestId,
            method=escaped(request.method),
            uri=escaped(request.uri),
        )
    traceback = _tracebackOf(failure) if getattr(site, "development", False) else ""
    return public.toResponse(accept, requestId, traceback)


def retryAfter(seconds: float | None) -> tuple[bytes, bytes]:
    """
    Make the header C{Retry-After}: whole seconds, at least 1.

    @param seconds: Time after which a retry makes sense; L{None} or infinite if it is
        unknown.
    """
    if seconds is None or not isfinite(seconds):
        seconds = 0.0
    return b"Retry-After", b"%d" % max(1, ceil(seconds))


def _tracebackOf(failure: Failure) -> str:
    error = failure.value
    assert error is not None
    text = "".join(format_exception(error))
    if error.__traceback__ is None and failure.frames:
        # The failure has been cleaned; only its own copy of the frames is left.
        text += f"\n{failure.getTraceback()}"
    return text


def escaped(value: bytes) -> str:
    """
    Return a value from a client as text for a log line. Control characters and
    quotation marks are escaped, so a client cannot forge log lines.

    @param value: The value, of which the first 1,000 bytes are used.
    """
    plain = value[:MAX_LOGGED_BYTES].decode("latin-1").encode("unicode_escape")
    return plain.decode("ascii").replace('"', '\\"')
