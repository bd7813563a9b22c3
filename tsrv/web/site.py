"""
A site that refuses what is too long, and that can be stopped without breaking
off what it is answering.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from io import BytesIO
from types import MappingProxyType
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, combinedLogFormatter, datetimeToLogString
from twisted.web.http import Request as HTTPRequest
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Request
from twisted.web.server import Site as TwistedSite

from .body import Body
from .problems import KnownErrors, Problem
from .request import (
    CountedSiteRequest,
    SiteRequest,
)
from .requestid import (
    identified,
    idFor,
    idOf,
)
from .responses import AsyncResource
from .traffic import Traffic

__all__ = ["Site"]

_LINGER: Final = 2.0
"""
How long a client that was refused may take to notice, in seconds.
"""

_PATIENCE: Final = 1.0
"""
How long a connection on which nothing has been asked yet is kept while the
site is being stopped, in seconds.
"""


_MOST_AHEAD: Final = 64 * 1024
"""
How many bytes a client may send ahead of the response that it waits for.

Twisted stops reading after a quarter of it, and then does not see that a client
leaves. Much more would be much to keep for each of many clients, and much to
read in one turn once the response is there.
"""

_ABSOLUTE: Final = re.compile(rb"\Ahttps?://[^/?]+/?", re.IGNORECASE)
"""
What stands before the path where a client asks as it would ask a proxy.
"""

_REFUSALS: Final = {
    HTTPStatus.BAD_REQUEST: "The request cannot be understood",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too long",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The request line is too long",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The headers are too long",
    HTTPStatus.SERVICE_UNAVAILABLE: "Too much is waiting already",
}
"""
Why a request is not read to its end.
"""


class _Channel(HTTPChannel):
    """
    One connection.
    """

    site: Site
    transport: ITCPTransport

    # Not set before a request line is understood, and deleted after a request.
    _command = b""

    _asked = False
    _begun = False
    _refused = False
    _ahead = 0
    _overrun = False
    _lastCall: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """
        @see: L{HTTPChannel.connectionMade}
        """
        super().connectionMade()
        self.site.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        @see: L{HTTPChannel.connectionLost}
        """
        self._cancelLastCall()
        self._keepAhead(0)
        super().connectionLost(reason)
        self.site.closed(self)

    def loseConnection(self) -> None:
        """
        @see: L{HTTPChannel.loseConnection}
        """
        if self._overrun:
            self._linger()
        else:
            super().loseConnection()

    def rawDataReceived(self, data: bytes) -> None:
        """
        Take a part of a body, or keep what is sent ahead of a response.

        To stop reading, as Twisted does when that is too much, would be to
        leave it unnoticed if the client leaves. So it is read and thrown away,
        and the client is told to come back with it.
        """
        if not self._handlingRequest:
            super().rawDataReceived(data)
        elif self.persistent:
            self._dataBuffer.append(data)
            self._keepAhead(self._ahead + len(data))
            self._boundAhead()

    def _finishRequestBody(self, data: bytes) -> None:
        """
        Keep what came with the end of a body.
        """
        self._keepAhead(len(data))
        super()._finishRequestBody(data)
        # What is answered at once leaves nothing ahead.
        self._boundAhead()

    def _boundAhead(self) -> None:
        """
        Throw away what is sent ahead of a response, if it is too much.
        """
        site = self.site
        if self._ahead > _MOST_AHEAD or (
            self._ahead and site.contents > site.mostContents
        ):
            self._overrun = True
            self._makeLast()
            self._dataBuffer.clear()
            self._keepAhead(0)

    def _keepAhead(self, length: int) -> None:
        """
        Count what is sent ahead of a response.

        @param length: How many bytes of it there are now.
        """
        self.site.contents += length - self._ahead
        self._ahead = length

    def headerReceived(self, line: bytes) -> bool:
        """
        Take a header; of some that are wrong Twisted does not know yet.
        """
        try:
            valid: bool = super().headerReceived(line)
        except ValueError:
            # A length that has more digits than Python likes to read.
            self._respondToBadRequestAndDisconnect()
            return False
        return valid

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        A line is longer than any need be: tell, before the connection closes.
        """
        self.refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            if self.requests and not self._handlingRequest
            else HTTPStatus.REQUEST_URI_TOO_LONG
        )

    def allHeadersReceived(self) -> None:
        """
        Refuse a request of which it is known by now that it is wrong, and a
        body that is announced to be too long, or longer than there is room for,
        before it is sent.
        """
        self._asked = self._begun = True
        understood = self._path.startswith(b"/")
        if not understood:
            self._path = _ABSOLUTE.sub(b"/", self._path, count=1)
            understood = self._path.startswith(b"/") or self._path == b"*"
        hosts = self.requests[-1].requestHeaders.getRawHeaders(b"Host", [])
        if (
            not understood
            or len(hosts) > 1
            or (not hosts and self._version == b"HTTP/1.1")
        ):
            self.refuse(HTTPStatus.BAD_REQUEST)
        elif self.length is not None and self.length > self.site.mostContent:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif self.length and self.length > self.site.mostContents - self.site.contents:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            super().allHeadersReceived()

    def requestDone(self, request: Request) -> None:
        """
        @see: L{HTTPChannel.requestDone}
        """
        self._begun = False
        if self._ahead:
            # It is read now.
            self._keepAhead(0)
        super().requestDone(request)

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """
        While the site is being stopped every response is the last one.
        """
        if self.site.stopping:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
            return False
        persistent: bool = super().checkPersistence(request, version)
        return persistent

    def refuse(self, status: HTTPStatus) -> None:
        """
        Answer a request that will not be read to its end.
        """
        if self._refused:
            # Of what was received together with it, more may be wrong.
            return
        self._refused = True
        known = Headers()
        if self.requests and not self._handlingRequest:
            request = self.requests[-1]
            known = request.requestHeaders
            if request.content is not None:
                request.content.close()
        accept = known.getRawHeaders(b"Accept")
        problem = Problem(status, _REFUSALS[status], requestId=idFor(known))
        sent = problem.encode(b",".join(accept) if accept else None)
        headers = Headers(
            {
                b"Connection": [b"close"],
                b"Content-Type": [sent.contentType],
                b"Content-Length": [b"%d" % len(sent.body)],
                b"Vary": [b"Accept"],
                b"X-Request-ID": [problem.requestId.encode("ascii")],
            }
        )
        for name, value in sent.headers:
            headers.addRawHeader(name, value)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.setRawHeaders(b"Retry-After", [b"1"])
        reason = status.phrase.encode("ascii")
        self.writeHeaders(b"HTTP/1.1", b"%d" % status, reason, headers)
        if self._command != b"HEAD":
            self.write(sent.body)
        with identified(problem.requestId):
            self.site.refused(self.transport.getPeer(), status, problem.requestId)
        self._linger()

    def _linger(self) -> None:
        """
        Send what is written, and nothing more.

        To close a connection on which data are still coming in would reset it,
        and then the client might never see the response. So they are read, for
        a while, and thrown away.
        """
        for method in (
            "dataReceived",
            "lineReceived",
            "rawDataReceived",
            "allContentReceived",
        ):
            setattr(self, method, _throwAway)
        self.setTimeout(None)
        self._cancelLastCall()
        if self.isSecure():
            # To close one direction alone would cut off what is not encrypted
            # yet; and the end of TLS has to be confirmed anyway.
            super().loseConnection()
        else:
            # Nothing waits for a producer then.
            cast(Any, self._networkProducer).unregisterProducer()
            self.transport.loseWriteConnection()
        self._lastCall = self.callLater(_LINGER, self.transport.abortConnection)

    def _cancelLastCall(self) -> None:
        if self._lastCall is not None and self._lastCall.active():
            self._lastCall.cancel()

    def _makeLast(self) -> None:
        """
        After the request in progress there will be no other.
        """
        self.persistent = False
        for request in self.requests:
            if not request.startedWriting:
                request.responseHeaders.setRawHeaders(b"Connection", [b"close"])

    def _respondToBadRequestAndDisconnect(self) -> None:
        """
        What cannot be understood is refused in the same way; if the name of
        this method changes, in Twisted's own.
        """
        self.refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            if self._receivedHeaderSize > self.totalHeadersSize
            or self._receivedHeaderCount > self.maxHeaders
            else HTTPStatus.BAD_REQUEST
        )

    def stop(self) -> None:
        """
        Let the request in progress be the last one.
        """
        if self._lastCall is not None:
            # It ends soon.
            return
        if self._begun:
            self._makeLast()
        elif self._asked and not self.requests:
            self.loseConnection()
        else:
            # A request may be on its way, or a part of it.
            self._lastCall = self.callLater(_PATIENCE, self._loseIfIdle)

    def _loseIfIdle(self) -> None:
        if not self._begun:
            self.loseConnection()


def _throwAway(*data: object) -> None:
    """
    Take no notice.
    """


class Site(TwistedSite):
    """
    A L{twisted.web.server.Site} that can be stopped in good order.

    Bodies are kept in memory, so that no disk is filled by who likes to; how
    long one may be is limited.

    @ivar mostContent: How many bytes the body of a request may have.
    @ivar mostContents: How many bytes those of all requests together may have.
    @ivar contents: How many they have, with what is sent ahead of responses.
    @ivar development: Whether clients are shown where errors come from.
    @ivar stopping: Whether the site is being stopped.
    @ivar accepted: How many connections there have been.
    @ivar traffic: Counts the requests, if they are to be counted.
    """

    _log = Logger()

    noisy = False
    protocol = _Channel  # type: ignore[assignment]
    requestFactory = SiteRequest

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        *,
        accessLog: bool = False,
        mostContent: int = 64 * 1024,
        mostContents: int = 64 * 1024 * 1024,
        development: bool = False,
        traffic: Traffic | None = None,
        knownErrors: KnownErrors = MappingProxyType({}),
    ) -> None:
        """
        @param resource: The root.
        @param reactor: Provides the time.
        @param accessLog: Whether to log every request.
        @param mostContent: How many bytes the body of a request may have. A
            request that is held keeps its body until somebody reads it, so
            that of ten thousand of them each byte counts.
        @param mostContents: How many bytes those of all requests together may
            have; a request for which there is no room is answered with 503.
        @param development: Whether clients are shown where errors come from.
        @param traffic: Counts the requests; several sites may have the same.
        @param knownErrors: Status and text for the application's own errors.
        """
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        if traffic is not None:
            self.requestFactory = CountedSiteRequest
        if isinstance(resource, AsyncResource):
            resource.place("/")
        self.mostContent = mostContent
        self.mostContents = mostContents
        self.contents = 0
        self.development = development
        self.knownErrors = knownErrors
        self.traffic = traffic
        self.stopping = False
        self.accepted = 0
        self._accessLog = accessLog
        self._channels: set[_Channel] = set()
        self._empty: list[Deferred[None]] = []

    def getContentFile(self, length: int | None) -> BytesIO:
        """
        @param length: The length of a body, if it is known before.
        @return: Where to put it.
        """
        # Most requests have none, and there is nothing to count then.
        return BytesIO() if length == 0 else Body(self)

    def startFactory(self) -> None:
        """
        Begin to listen: nothing need be done, and no timer started, for a log.
        """

    def log(self, request: HTTPRequest) -> None:
        """
        @see: L{twisted.web.http.HTTPFactory.log}
        """
        if self.traffic is not None:
            assert isinstance(request, CountedSiteRequest)
            self.traffic.ended(
                request.route, request.method, request.code, request.begun
            )
        if self._accessLog:
            line = combinedLogFormatter(self._now(), request)
            requestId = idOf(request)
            self._log.info("{line} {requestId}", line=line, requestId=requestId)

    def refused(self, peer: IAddress, status: HTTPStatus, requestId: str) -> None:
        """
        A request was not read to its end; of what there was of it, nothing is
        logged.

        @param peer: Who made it.
        @param status: The status of the response.
        @param requestId: What the client was told to ask for.
        """
        if self.traffic is not None:
            self.traffic.refused(status)
        if self._accessLog:
            host = getattr(peer, "host", "-")
            self._log.info(
                "{line} {requestId}",
                line=f'"{host}" - - {self._now()} "-" {status:d} - "-" "-"',
                requestId=requestId,
            )

    def acceptableProtocols(self) -> list[bytes]:
        """
        What clients are offered under TLS; with some packages installed Twisted
        would offer HTTP/2, which the connections of this site do not speak.
        """
        return [b"http/1.1"]

    def opened(self, channel: _Channel) -> None:
        """
        There is one more connection.
        """
        self.accepted += 1
        self._channels.add(channel)
        if self.stopping:
            channel.stop()

    def closed(self, channel: _Channel) -> None:
        """
        There is one connection less.
        """
        self._channels.discard(channel)
        if not self._channels:
            empty, self._empty = self._empty, []
            for each in empty:
                each.callback(None)

    def stop(self, timeout: float) -> Deferred[int]:
        """
        Answer what has been asked, but nothing more, and close the connections
        as they become idle.

        @param timeout: For how long to wait, in seconds.
        @return: A Deferred that fires when there are no more connections, or
            the time is up, or it is cancelled, with the number of those that
            are left.
        """
        self.stopping = True
        for channel in list(self._channels):
            channel.stop()
        if not self._channels:
            return succeed(0)
        empty: Deferred[None] = Deferred(self._empty.remove)
        self._empty.append(empty)
        empty.addTimeout(timeout, self.reactor)
        # It does not matter whose patience ends.
        empty.addErrback(lambda failure: failure.trap(DeferredTimeout, CancelledError))
        return empty.addCallback(lambda _: len(self._channels))

    def abort(self) -> None:
        """
        Break off what is left.
        """
        for channel in list(self._channels):
            channel.transport.abortConnection()

    def _now(self) -> str:
        now: str = datetimeToLogString(self.reactor.seconds())
        return now
