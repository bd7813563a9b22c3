"""
A site with limits that can be stopped without breaking off responses.
"""

from __future__ import annotations

from http import HTTPStatus
from io import BytesIO
from types import MappingProxyType

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from twisted.web.http import Request, combinedLogFormatter, datetimeToLogString
from twisted.web.resource import IResource
from twisted.web.server import Site as TwistedSite

from ..queuing.waiters import Waiters
from .channel import Channel
from .problems import KnownErrors
from .request import Body, SiteRequest
from .requestid import requestIdOf
from .responses import AsyncResource
from .traffic import Traffic

__all__ = ["Site"]

_log = Logger("tsrv.web")


class Site(TwistedSite):
    """
    A L{twisted.web.server.Site} with limits and a graceful stop. Bodies are kept in
    memory, never on disk.

    @ivar bodyBytes: Current length of all bodies and pipelined data.
    @ivar stopping: Whether the site is being stopped.
    @ivar connectionsAccepted: Number of connections since the start.
    """

    noisy = False
    protocol = Channel  # type: ignore[assignment]
    requestFactory = SiteRequest

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        *,
        accessLog: bool = False,
        maxBodyBytes: int = 64 * 1024,
        maxTotalBodyBytes: int = 64 * 1024 * 1024,
        development: bool = False,
        traffic: Traffic | None = None,
        knownErrors: KnownErrors = MappingProxyType({}),
    ) -> None:
        """
        @param resource: The root.
        @param reactor: Provides the time.
        @param accessLog: Whether to log every request.
        @param maxBodyBytes: Maximum length of a request's body; a longer one is
            answered with 413. A request that waits keeps its body, so with ten
            thousand of them each byte counts.
        @param maxTotalBodyBytes: Maximum length of all bodies and pipelined data; a
            request beyond it is answered with 503.
        @param development: Whether clients see the tracebacks of errors.
        @param traffic: Counts the requests; several sites may share it.
        @param knownErrors: The responses to the application's own errors.
        """
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        if isinstance(resource, AsyncResource):
            resource.setRoute("/")
        self.maxBodyBytes = maxBodyBytes
        self.maxTotalBodyBytes = maxTotalBodyBytes
        self.bodyBytes = 0
        self.development = development
        self.knownErrors = knownErrors
        self.traffic = traffic
        self.stopping = False
        self.connectionsAccepted = 0
        self._accessLog = accessLog
        self._channels: set[Channel] = set()
        self._untilEmpty = Waiters(1000, "for the connections of a site to close")

    def getContentFile(self, length: int | None) -> BytesIO:
        """
        @param length: The length of a body; L{None} if it is unknown.
        @return: A file in memory for the body.
        """
        return BytesIO() if length == 0 else Body(self)

    def startFactory(self) -> None:
        """
        Begin to listen. Twisted would start a timer for its log.
        """

    def log(self, request: Request) -> None:
        """
        Count a response that has been written, and log it.
        """
        if self.traffic is not None:
            assert isinstance(request, SiteRequest)
            self.traffic.requestEnded(
                request.route, request.method, request.code, request.startTime
            )
        if self._accessLog:
            now = datetimeToLogString(self.reactor.seconds())
            self._logLine(combinedLogFormatter(now, request), requestIdOf(request))

    def requestRefused(
        self, peer: IAddress, status: HTTPStatus, requestId: str
    ) -> None:
        """
        Count and log a request that was not read to its end.

        @param peer: The client.
        @param status: The status of the response.
        @param requestId: The id of the request.
        """
        if self.traffic is not None:
            self.traffic.requestRefused(status)
        if self._accessLog:
            host = getattr(peer, "host", "-")
            now = datetimeToLogString(self.reactor.seconds())
            self._logLine(f'"{host}" - - {now} "-" {status:d} - "-" "-"', requestId)

    def acceptableProtocols(self) -> list[bytes]:
        """
        Offer HTTP/1.1 under TLS. Twisted would offer HTTP/2 if C{h2} is installed,
        which L{Channel} does not speak.
        """
        return [b"http/1.1"]

    def connectionOpened(self, channel: Channel) -> None:
        """
        Add a connection.
        """
        self.connectionsAccepted += 1
        self._channels.add(channel)
        if self.stopping:
            channel.stop()

    def connectionClosed(self, channel: Channel) -> None:
        """
        Remove a connection.
        """
        self._channels.discard(channel)
        if not self._channels:
            self._untilEmpty.succeed()

    def stop(self, timeout: float) -> Deferred[int]:
        """
        Finish the requests in progress, begin no others, and close the connections as
        they become idle. Close the port before, or new connections keep arriving.

        @param timeout: Time limit in seconds.
        @return: A Deferred that fires with the number of requests in progress: when all
            connections are closed, after the time limit, or when it is cancelled.
        """
        self.stopping = True
        for channel in list(self._channels):
            channel.stop()
        if not self._channels:
            return succeed(0)
        empty = self._untilEmpty.wait()
        empty.addTimeout(timeout, self.reactor)
        empty.addErrback(lambda failure: failure.trap(DeferredTimeout, CancelledError))
        return empty.addCallback(
            lambda _: sum(len(channel.requests) for channel in self._channels)
        )

    def abort(self) -> None:
        """
        Abort the open connections.
        """
        for channel in list(self._channels):
            channel.transport.abortConnection()

    def _logLine(self, line: str, requestId: str) -> None:
        _log.info("{line} {requestId}", line=line, requestId=requestId)
