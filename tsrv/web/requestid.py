"""
The id of a request, which its response and its log lines share.

A client may choose the id of its request; otherwise the site chooses one. The id is
in the context while the site handles the request. Twisted's coroutines and tsrv's
queues keep the context, so log lines of later work for the request have the id, too.
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
The id of the request that the current code works for; L{None} if it works for none.
"""

_HEADER: Final = b"X-Request-ID"

_VALID: Final = re.compile(rb"[A-Za-z0-9._~+/=:-]{1,128}")
"""
The ids that clients may choose: one word that fits on a log line.
"""

_processId: Final = token_hex(8)
_numbers: Final = count(1)


def requestIdFor(headers: Headers) -> str:
    """
    Choose the id of a new request.

    @param headers: The headers of the request.
    @return: The client's id if it is valid, otherwise a new id.
    """
    sent = headers.getRawHeaders(_HEADER)
    if sent is not None and len(sent) == 1 and _VALID.fullmatch(sent[0]):
        return sent[0].decode("ascii")
    return f"{_processId}{next(_numbers):08x}"


def requestIdOf(request: Any) -> str:
    """
    Return the id of a request. A request without an id gets one, and so does its
    response.

    @param request: A request on any site.
    @return: The id.
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
    Make an id current: log events inside this context get the id.

    @param requestId: The id.
    @return: The context manager.
    """
    token = currentRequestId.set(requestId)
    try:
        yield
    finally:
        currentRequestId.reset(token)


def addRequestId(event: LogEvent) -> None:
    """
    Add the id of the current request to a log event: as the field C{requestId}, and to
    C{log_system}, which log lines show. This is an observer; register it before the
    observers that write the log::

        globalLogPublisher.addObserver(addRequestId)
        globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])

    @param event: The event, which keeps an id that it already has.
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
