"""
The responses to requests that the site refuses, so they reach no resource.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from twisted.web.http_headers import Headers

from .problems import HTTPError

__all__ = ["refusal"]

_REFUSALS: Final = {
    HTTPStatus.BAD_REQUEST: "The request cannot be understood",
    HTTPStatus.REQUEST_TIMEOUT: "The request took too long to arrive",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too long",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The request line is too long",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The headers are too long",
    HTTPStatus.SERVICE_UNAVAILABLE: "Too many request bodies are waiting already",
}


def refusal(
    status: HTTPStatus,
    known: Headers,
    requestId: str,
    stopping: bool,
    lines: Iterable[bytes],
) -> tuple[bytes, bytes]:
    """
    @param status: The status of the response.
    @param known: The headers of the request, as far as they have arrived.
    @param requestId: The id of the request.
    @param stopping: Whether the site is stopping.
    @param lines: The headers of every response, as lines.
    @return: The head and the body of the response.
    """
    reason = _REFUSALS[status]
    extra = [(b"X-Request-ID", requestId.encode("ascii"))]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        extra.append((b"Retry-After", b"1"))
        if stopping:
            reason = "The server is shutting down"
    error = HTTPError(reason, status, extra)
    response = error.toResponse(known.getRawHeaders(b"Accept"), requestId)
    head = [
        b"HTTP/1.1 %d %b" % (status, status.phrase.encode("ascii")),
        b"Connection: close",
        b"Content-Type: " + response.contentType,
        b"Content-Length: %d" % len(response.body),
        *(b"%b: %b" % header for header in response.headers),
        *lines,
        b"\r\n",
    ]
    return b"\r\n".join(head), response.body
