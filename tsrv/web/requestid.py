"""
By which name a request is found again: in its response, and in the log.

Each request has one, its client's own if there is one that makes sense. While a
request is worked on, it is in the context; and since Twisted's coroutines and
tsrv's queues keep the context, it is there too for what is done later.
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

__all__ = ["addRequestId", "currentId", "idFor", "idOf", "identified", "name"]

currentId: Final[ContextVar[str | None]] = ContextVar("requestId", default=None)
"""
The name of the request that is being worked on.
"""

_HEADER: Final = b"X-Request-ID"

_WELL_FORMED: Final = re.compile(rb"[A-Za-z0-9._~+/=:-]{1,128}")
"""
What a client may call its request: nothing that could end a line, or be taken
for more than one word, and nothing longer than what others make.
"""

# Two processes, or two lives of one, do not say the same.
_begin: Final = token_hex(8)
_numbers: Final = count(1)


def idFor(headers: Headers) -> str:
    """
    @param headers: The headers of a request.
    @return: What it is called from now on.
    """
    named = headers.getRawHeaders(_HEADER)
    if named is not None and len(named) == 1 and _WELL_FORMED.fullmatch(named[0]):
        return named[0].decode("ascii")
    return f"{_begin}{next(_numbers):08x}"


def idOf(request: Any) -> str:
    """
    @param request: A request, on whatever site.
    @return: What it is called.
    """
    requestId: str | None = getattr(request, "requestId", None)
    return name(request) if requestId is None else requestId


def name(request: Any) -> str:
    """
    @param request: A request that has no name yet.
    @return: What it is called from now on, and what its response says.
    """
    requestId = idFor(request.requestHeaders)
    request.requestId = requestId
    request.responseHeaders.setRawHeaders(_HEADER, [requestId.encode("ascii")])
    return requestId


@contextmanager
def identified(requestId: str) -> Iterator[None]:
    """
    Work on a request.

    @param requestId: What it is called.
    """
    token = currentId.set(requestId)
    try:
        yield
    finally:
        currentId.reset(token)


def addRequestId(event: LogEvent) -> None:
    """
    Add to what is logged the name of the request for which it is, both as the
    member C{requestId} and where a line of the log has what it comes from. As an
    observer it has to be asked before those that write.

    @param event: What is logged.
    """
    requestId = currentId.get()
    if requestId is None or "requestId" in event:
        requestId = event.get("requestId")
        if requestId is None:
            return
    event["requestId"] = requestId
    system = event.get("log_system")
    if system is None:
        level = event.get("log_level")
        name = "-" if level is None else level.name
        system = f"{event.get('log_namespace', '-')}#{name}"
    event["log_system"] = f"{system},{requestId}"
