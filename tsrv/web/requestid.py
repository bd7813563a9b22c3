"""
The id by which a request is found again: in its response and in the log.

A client may choose the id of its request; otherwise the site does. While a
request is handled its id is in the context. Twisted's coroutines and tsrv's
queues keep the context, so later work for the request is logged with its id, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from secrets import token_hex
from typing import Any, Final

from twisted.logger import LogEvent
from twisted.web.http_headers import Headers

__all__ = [
    "addRequestId",
    "currentRequestId",
    "requestIdFor",
    "requestIdOf",
    "withRequestId",
]

currentRequestId: Final[ContextVar[str | None]] = ContextVar("requestId", default=None)
"""
The id of the request that is being handled.
"""

_HEADER: Final = b"X-Request-ID"

_VALID: Final = re.compile(rb"[A-Za-z0-9._~+/=:-]{1,128}")
"""
Ids that clients may choose: one word on one line of a log.
"""

_processId: Final = token_hex(8)
_numbers: Final = count(1)


def requestIdFor(headers: Headers) -> str:
    """
    Choose the id of a new request.

    @param headers: The headers of the request.
    @return: The client's id if it has sent a valid one, otherwise a new one.
    """
    sent = headers.getRawHeaders(_HEADER)
    if sent is not None and len(sent) == 1 and _VALID.fullmatch(sent[0]):
        return sent[0].decode("ascii")
    return f"{_processId}{next(_numbers):08x}"


def requestIdOf(request: Any) -> str:
    """
    @param request: A request on any site.
    @return: The id of the request. If it has none it gets one, which is sent with
        its response.
    """
    requestId: str | None = getattr(request, "requestId", None)
    if requestId is None:
        requestId = requestIdFor(request.requestHeaders)
        request.requestId = requestId
        request.responseHeaders.setRawHeaders(_HEADER, [requestId.encode("ascii")])
    return requestId


@contextmanager
def withRequestId(requestId: str) -> Iterator[None]:
    """
    Handle a request: inside this context what is logged has its id.
    """
    token = currentRequestId.set(requestId)
    try:
        yield
    finally:
        currentRequestId.reset(token)


def addRequestId(event: LogEvent) -> None:
    """
    Add the current request's id to a log event: as the member C{requestId}, and
    to the C{log_system} that log lines show. This observer comes before the writers.

    @param event: The event; an id that it already has is kept.
    """
    requestId = event.get("requestId") or currentRequestId.get()
    if requestId is None:
        return
    event["requestId"] = requestId
    system = event.get("log_system")
    if system is None:
        level = event.get("log_level")
        levelName = "-" if level is None else level.name
        system = f"{event.get('log_namespace', '-')}#{levelName}"
    event["log_system"] = f"{system},{requestId}"
