"""
A request, on a site of tsrv: with a name, a limit for its body, and errors that
are like all others.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from .problems import MethodNotAllowed
from .requestid import (
    currentId,
    name,
)
from .responses import (
    Response,
    respond,
)
from .traffic import CountedRequest

__all__ = ["CountedSiteRequest", "SiteRequest"]


class SiteRequest(Request):
    """
    A request whose body has a limit.

    @ivar requestId: What it is called in the log.
    """

    _log = Logger()

    channel: Any
    site: Any

    requestId: str | None = None

    def process(self) -> None:
        """
        @see: L{Request.process}
        """
        token = currentId.set(name(self))
        try:
            super().process()
        finally:
            currentId.reset(token)

    def processingFailed(self, reason: Failure) -> Failure:
        """
        Tell of an error outside of all that tells of errors: of one in looking
        for a resource, or in a resource of Twisted's own kind.
        """
        if self.finished or self.channel is None:
            self._log.failure("After the end of the response", failure=reason)
        else:
            # A Deferred that has failed is made of it.
            respond(self, lambda _: reason)
        return reason

    def _handleStar(self) -> None:
        """
        Answer what is asked about the server itself; if the name of this method
        changes, all of it as Twisted does.
        """
        if self.method == b"OPTIONS":
            super()._handleStar()
        else:
            respond(self, _onlyOptions)

    def handleContentChunk(self, data: bytes) -> None:
        """
        Take a part of the body; of a chunked one the length is not known
        before.
        """
        content = self.content
        assert content is not None
        site = self.channel.site
        if content.closed:
            # It was refused, and this is the rest.
            return
        if content.tell() + len(data) > site.mostContent:
            self.channel.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif site.contents + len(data) > site.mostContents:
            self.channel.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            super().handleContentChunk(data)


class CountedSiteRequest(CountedRequest, SiteRequest):
    """
    The same, counted.
    """


def _onlyOptions(request: Request) -> Response:
    raise MethodNotAllowed(["OPTIONS"])
