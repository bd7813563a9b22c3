"""
A request on a site of tsrv: it has an id, its body is kept in memory within the
site's limits, and its errors are problem details.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.internet.error import ConnectionAborted
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from .connections import Connections
from .requestid import currentRequestId, requestIdOf
from .responses import NO_ROUTE, AsyncResource, respond
from .traffic import Traffic

__all__ = ["Body", "SiteRequest"]

_log = Logger("tsrv.web")


class Body(BytesIO):
    """
    The body of a request. Its length counts in C{bodyBytes} of the site's connections
    until it is closed.
    """

    def __init__(self, connections: Connections) -> None:
        """
        @param connections: The connections of the site.
        """
        super().__init__()
        self._connections = connections

    def write(self, data: Any) -> int:
        """
        Add a part.
        """
        self._connections.bodyBytes += len(data)
        return super().write(data)

    def close(self) -> None:
        """
        Release the memory.
        """
        if not self.closed:
            self._connections.bodyBytes -= self.getbuffer().nbytes
        super().close()


class SiteRequest(Request):
    """
    A request.

    It is in progress from the call of its resource until the site logs its response,
    or its connection is lost.

    @ivar requestId: The id of the request.
    @ivar route: The route of its resource.
    @ivar startTime: Start of its progress, in seconds; L{None} before, and if the site
        does not count.
    """

    channel: Any
    site: Any

    requestId: str | None = None
    route = NO_ROUTE
    startTime: float | None = None

    def process(self) -> None:
        """
        Find the resource, and let it answer.
        """
        # A context manager would cost a tenth of the time of a small request.
        token = currentRequestId.set(requestIdOf(self))
        try:
            super().process()
        finally:
            currentRequestId.reset(token)

    def render(self, resrc: object) -> None:
        """
        Begin to count, and let the resource answer.
        """
        if isinstance(resrc, AsyncResource):
            self.route = resrc.route
        traffic: Traffic | None = self.site.traffic
        # A resource may delegate to another one, so this may be the second call; and
        # the client may have left while the resource was looked up.
        if traffic is not None and self.startTime is None and self.channel is not None:
            traffic.inProgress += 1
            self.startTime = traffic.seconds()
        super().render(resrc)

    def connectionLost(self, reason: Failure) -> None:
        """
        Count a request that was not answered.
        """
        if self.startTime is not None:
            status = "aborted" if reason.check(ConnectionAborted) else "gone"
            traffic: Traffic = self.site.traffic
            traffic.requestEnded(self.route, self.method, status, self.startTime)
        super().connectionLost(reason)

    def processingFailed(self, reason: Failure) -> Failure:
        """
        Answer with an error that no L{respond} has seen: the lookup of the resource
        failed, or a resource of another kind.
        """
        if self.finished or self.channel is None:
            _log.failure("After the end of the response", failure=reason)
        else:
            # maybeDeferred() makes a failed Deferred of a Failure.
            respond(self, lambda _: reason)
        return reason
