"""
A request on a site of tsrv: it has an id, its body is kept in memory within the
site's limits, and its errors are problem details.
"""

from __future__ import annotations

from http import HTTPStatus
from io import BytesIO
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from .requestid import currentRequestId, requestIdOf
from .responses import respond

__all__ = ["Body", "SiteRequest"]


class Body(BytesIO):
    """
    The body of a request. Its length counts in the site's C{bodyBytes} until it is
    closed.
    """

    def __init__(self, site: Any) -> None:
        """
        @param site: The L{Site<tsrv.web.site.Site>}.
        """
        super().__init__()
        self._site = site

    def close(self) -> None:
        """
        Release the memory.
        """
        if not self.closed:
            self._site.bodyBytes -= self.getbuffer().nbytes
        super().close()


class SiteRequest(Request):
    """
    A request.

    @ivar requestId: The id of the request.
    """

    _log = Logger()

    channel: Any
    site: Any

    requestId: str | None = None

    def process(self) -> None:
        """
        Find the resource, and let it answer.
        """
        token = currentRequestId.set(requestIdOf(self))
        try:
            super().process()
        finally:
            currentRequestId.reset(token)

    def processingFailed(self, reason: Failure) -> Failure:
        """
        Answer with an error that no L{respond} has seen: the lookup of the resource
        failed, or a resource of another kind.
        """
        if self.finished or self.channel is None:
            self._log.failure("After the end of the response", failure=reason)
        else:
            # maybeDeferred() makes a failed Deferred of a Failure.
            respond(self, lambda _: reason)
        return reason

    def handleContentChunk(self, data: bytes) -> None:
        """
        Take a part of the body. The length of a chunked body is not known before.
        """
        content = self.content
        assert content is not None
        site = self.channel.site
        if content.closed:
            # The request has been refused; this is the rest of its body.
            return
        if content.tell() + len(data) > site.maxBodyBytes:
            self.channel.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif site.bodyBytes + len(data) > site.maxTotalBodyBytes:
            self.channel.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            site.bodyBytes += len(data)
            super().handleContentChunk(data)
