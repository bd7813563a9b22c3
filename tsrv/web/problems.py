"""
An exception becomes a response.

Errors are problem details (RFC 9457), with one more member, C{error}, which is
what the clients of simpler servers read. A browser gets a page, and who prefers
text gets lines of it. Nothing of an unexpected exception reaches a client
but the name of the request, by which it is found in the log; unless the site is
one for development.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from math import ceil, isfinite
from traceback import format_exception
from types import MappingProxyType
from typing import Any, Final, TypeAlias

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
from .accept import (
    mediaRanges,
    refusedTypes,
)
from .requestid import idOf

__all__ = [
    "Encoded",
    "HTTPError",
    "KnownErrors",
    "MethodNotAllowed",
    "NotFound",
    "Problem",
    "problemOf",
]

_log = Logger()

_JSON: Final = "application/problem+json"
_TEXT: Final = "text/plain"
_HTML: Final = "text/html"

# The last one wins where a client does not care.
_OFFERED: Final = [_HTML, _TEXT, "application/json", _JSON]

_NO_SNIFFING: Final = (b"X-Content-Type-Options", b"nosniff")

_NO_SCRIPTS: Final = (
    b"Content-Security-Policy",
    b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
)

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{status} {title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto;
    padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }}
pre {{ overflow-x: auto; font-size: .8rem; }}
small {{ opacity: .7; }}
</style>
<h1>{detail}</h1>
{more}<p><small>{status} {title} &middot; request {requestId}</small></p>
"""


KnownErrors: TypeAlias = Mapping[type[BaseException], tuple[HTTPStatus, str]]
"""
An application's own errors: the status of the response, and its text.
"""


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
class Encoded:
    """
    An error, as it is sent.

    @ivar contentType: The C{Content-Type} of the body.
    @ivar body: The body.
    @ivar headers: Headers that belong to it.
    """

    contentType: bytes
    body: bytes
    headers: Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Problem:
    """
    An error, as a client sees it.

    @ivar status: The status of the response.
    @ivar detail: One sentence for people.
    @ivar text: The sentence for who prefers text, if it is another one.
    @ivar headers: Headers of the response.
    @ivar requestId: What the request is called in the log.
    @ivar members: Further members.
    @ivar traceback: Where the error comes from, for who develops the server.
    """

    status: HTTPStatus
    detail: str
    text: str | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    requestId: str = ""
    members: Mapping[str, object] = field(default_factory=dict)
    traceback: str | None = None

    def encode(self, accept: bytes | None) -> Encoded:
        """
        @param accept: The request's C{Accept} header.
        @return: What is sent.
        """
        preferred = _preferred(accept)
        if preferred == _TEXT:
            return self._asText()
        if preferred == _HTML:
            return self._asPage()
        members = {
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
        body = json.dumps(members).encode()
        return Encoded(_JSON.encode(), body, [_NO_SNIFFING])

    def _asText(self) -> Encoded:
        lines = [self.text or self.detail]
        if self.text is None:
            lines += self._parts()
            if self.requestId:
                lines.append(f"(request {self.requestId})")
        if self.traceback is not None:
            lines += ["", self.traceback]
        body = "\n".join(lines).encode("utf-8", "backslashreplace")
        return Encoded(b"text/plain; charset=utf-8", body, [_NO_SNIFFING])

    def _parts(self) -> list[str]:
        """
        @return: What is wrong with parts of a request, a line for each.
        """
        lines = []
        errors: Any = self.members.get("errors", ())
        for each in errors:
            where = each.get("pointer") or each.get("parameter")
            lines.append(f"{where}: {each['detail']}" if where else each["detail"])
        return lines

    def _asPage(self) -> Encoded:
        more = ""
        parts = "".join(f"<li>{escape(part)}</li>\n" for part in self._parts())
        if parts:
            more = f"<ul>\n{parts}</ul>\n"
        if self.traceback is not None:
            more += f"<pre>{escape(self.traceback)}</pre>\n"
        page = _PAGE.format(
            status=self.status.value,
            title=escape(self.status.phrase),
            detail=escape(self.detail),
            more=more,
            requestId=escape(self.requestId),
        )
        body = page.encode("utf-8", "backslashreplace")
        headers = [_NO_SNIFFING, _NO_SCRIPTS]
        return Encoded(b"text/html; charset=utf-8", body, headers)


def problemOf(failure: Failure, request: IRequest) -> Problem:
    """
    Say what a client is told of an error; log it if nobody expected it.

    @param failure: What has gone wrong.
    @param request: The request that it went wrong with.
    @return: The problem.
    """
    error, requestId = failure.value, idOf(request)
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
    known: KnownErrors = getattr(site, "knownErrors", {})
    for kind in type(error).__mro__:
        if kind in known:
            status, detail = known[kind]
            if status != HTTPStatus.CONFLICT:
                # The checks of the request should have found the cause.
                _log.warn(
                    "Request {requestId} was refused: {reason}",
                    requestId=requestId,
                    reason=error,
                )
            return Problem(status, detail, requestId=requestId)
    traceback = None
    if getattr(site, "development", False):
        traceback = _tracebackOf(failure)
    if isinstance(error, Unavailable):
        seconds = error.retryAfter
        if seconds is None or not isfinite(seconds):
            # There is no time that could be named.
            seconds = 0
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            _UNAVAILABLE.get(type(error), "The service is not available"),
            headers=[(b"Retry-After", b"%d" % max(1, ceil(seconds)))],
            requestId=requestId,
            traceback=traceback,
        )
    if isinstance(error, OutcomeUnknown):
        # No Retry-After: to try again might do twice what is to be done once.
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The request was interrupted: it may have been carried out, or not",
            requestId=requestId,
            traceback=traceback,
        )
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
        traceback=traceback,
    )


def _tracebackOf(failure: Failure) -> str:
    """
    @return: Where an error comes from, with what it was caused by.
    """
    error = failure.value
    assert error is not None
    text = "".join(format_exception(error))
    if error.__traceback__ is None and failure.frames:
        # It was cleaned, and only the failure remembers.
        text += f"\n{failure.getTraceback()}"
    return text


_UNAVAILABLE: dict[type[Unavailable], str] = {
    QueueFull: "Too many requests are waiting already",
    QueueTimeout: "The service did not become ready in time",
    InitializationFailed: "The service could not be started",
    Closed: "The service is shutting down",
}


def _preferred(accept: bytes | None) -> str:
    """
    @return: Which of what is offered a client likes best.
    """
    ranges = mediaRanges(accept)
    if not ranges:
        return _JSON
    refused = refusedTypes(accept)
    offered = [each for each in _OFFERED if each not in refused]
    try:
        return str(best_match(offered, ",".join(ranges)))
    except MimeTypeParseException:
        return _JSON


def _readable(value: bytes) -> str:
    """
    @return: What a client sent, with nothing in it that could forge a line of
        the log.
    """
    return repr(value)[2:-1]
