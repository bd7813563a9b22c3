"""
One connection: Twisted's HTTP/1.1 channel, hardened.

L{HTTPChannel} lacks three things: one clear response to a request that is malformed or
too long, sent so that the client receives it; limits for bodies and pipelined requests
that do not hide that a client has left; a graceful end.

Twisted offers no public way to some of this, so this module, and no other, relies on
private parts of L{HTTPChannel}:

  - C{_respondToBadRequestAndDisconnect} would close the connection after a bare
    status line.
  - C{_finishRequestBody} takes the data that follow a body in the same segment;
    nothing else reports them.
  - C{_handlingRequest} says whether received data are pipelined, and C{_dataBuffer}
    holds these. Twisted stops reading after 16 KiB of them, and then does not notice
    that the client disconnects.
  - C{_command}, C{_path}, C{_version}, C{_receivedHeaderSize} and
    C{_receivedHeaderCount} describe a request whose headers are being read.
  - C{_networkProducer} is unregistered before one direction is closed; while it is
    paused, the transport would not send the rest.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final, cast

from twisted.internet.interfaces import IDelayedCall, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from .problems import HTTPError
from .requestid import requestIdFor, withRequestId

__all__ = ["Channel"]

_LINGER_SECONDS: Final = 2.0
"""
Time for a refused client to read the response before its connection is aborted.
"""

_FIRST_REQUEST_SECONDS: Final = 1.0
"""
Time for a request that is on its way when the site is stopped.
"""

_MAX_PIPELINED_BYTES: Final = 64 * 1024
"""
Bytes that a client may send ahead of the response that it waits for. They wait in
memory, and are handled in one turn of the reactor once the response is sent.
"""

_SCHEME_AND_HOST: Final = re.compile(rb"\Ahttps?://[^/?]+/?", re.IGNORECASE)
"""
Scheme and host of a request that is addressed as to a proxy.
"""

_REFUSALS: Final = {
    HTTPStatus.BAD_REQUEST: "The request cannot be understood",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too long",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The request line is too long",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The headers are too long",
    HTTPStatus.SERVICE_UNAVAILABLE: "Too much is waiting already",
}


class Channel(HTTPChannel):
    """
    One connection of a L{Site<tsrv.web.site.Site>}.
    """

    site: Any
    transport: ITCPTransport

    # Twisted sets it with a request line, and deletes it after the request.
    _command = b""

    _hasReadHeaders = False
    _requestInProgress = False
    _refused = False
    _pipelinedBytes = 0
    _pipelineOverflowed = False
    _closeTimer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """
        Join the connections of the site.
        """
        super().connectionMade()
        self.site.connectionOpened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        End the requests, and leave the connections of the site.
        """
        self._cancelCloseTimer()
        self._setPipelinedBytes(0)
        super().connectionLost(reason)
        self.site.connectionClosed(self)

    def loseConnection(self) -> None:
        """
        Close the connection when all is sent.
        """
        if self._pipelineOverflowed:
            self._linger()
        else:
            super().loseConnection()

    def rawDataReceived(self, data: bytes) -> None:
        """
        Take a part of a body, or keep pipelined data. If these are too many they are
        read and discarded: only a connection that is read tells that its client has
        left.
        """
        if not self._handlingRequest:
            super().rawDataReceived(data)
        elif self.persistent:
            self._dataBuffer.append(data)
            self._setPipelinedBytes(self._pipelinedBytes + len(data))
            self._limitPipelinedBytes()

    def _finishRequestBody(self, data: bytes) -> None:
        # If the request is answered at once, the data are pipelined no longer.
        self._setPipelinedBytes(len(data))
        super()._finishRequestBody(data)
        self._limitPipelinedBytes()

    def _limitPipelinedBytes(self) -> None:
        site = self.site
        if self._pipelinedBytes > _MAX_PIPELINED_BYTES or (
            self._pipelinedBytes and site.bodyBytes > site.maxTotalBodyBytes
        ):
            self._pipelineOverflowed = True
            self._closeAfterResponse()
            self._dataBuffer.clear()
            self._setPipelinedBytes(0)

    def _setPipelinedBytes(self, length: int) -> None:
        self.site.bodyBytes += length - self._pipelinedBytes
        self._pipelinedBytes = length

    def headerReceived(self, line: bytes) -> bool:
        """
        Take a header.
        """
        try:
            valid: bool = super().headerReceived(line)
        except ValueError:
            # A Content-Length with more digits than int() reads.
            self.refuse(HTTPStatus.BAD_REQUEST)
            return False
        return valid

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        Refuse a line that is too long.
        """
        self.refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            if self.requests
            else HTTPStatus.REQUEST_URI_TOO_LONG
        )

    def allHeadersReceived(self) -> None:
        """
        Refuse a request that is wrong, or whose body will be too long, before the
        body is sent.
        """
        self._hasReadHeaders = self._requestInProgress = True
        if not self._path.startswith(b"/"):
            self._path = _SCHEME_AND_HOST.sub(b"/", self._path, count=1)
        isServer = self._path == b"*" and self._command == b"OPTIONS"
        hosts = self.requests[-1].requestHeaders.getRawHeaders(b"Host", [])
        site = self.site
        if (
            not (self._path.startswith(b"/") or isServer)
            or len(hosts) > 1
            or (not hosts and self._version == b"HTTP/1.1")
        ):
            self.refuse(HTTPStatus.BAD_REQUEST)
        elif self.length is not None and self.length > site.maxBodyBytes:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif self.length and self.length > site.maxTotalBodyBytes - site.bodyBytes:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            super().allHeadersReceived()

    def requestDone(self, request: Request) -> None:
        """
        Continue with the pipelined data.
        """
        self._requestInProgress = False
        if self._pipelinedBytes:
            self._setPipelinedBytes(0)
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
        Respond to a request that will not be read to its end; close the connection.

        @param status: The status of the response.
        """
        if self._refused:
            # The rest of a received segment may be wrong, too.
            return
        self._refused = True
        known = Headers()
        if self.requests:
            request = self.requests[-1]
            known = request.requestHeaders
            if request.content is not None:
                request.content.close()
        requestId = requestIdFor(known)
        extra = [
            (b"Connection", b"close"),
            (b"X-Request-ID", requestId.encode("ascii")),
        ]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            extra.append((b"Retry-After", b"1"))
        error = HTTPError(_REFUSALS[status], status, extra)
        response = error.toResponse(known.getRawHeaders(b"Accept"), requestId)
        headers = Headers({b"Content-Type": [response.contentType]})
        headers.addRawHeader(b"Content-Length", b"%d" % len(response.body))
        for name, value in response.headers:
            headers.addRawHeader(name, value)
        reason = status.phrase.encode("ascii")
        self.writeHeaders(b"HTTP/1.1", b"%d" % status, reason, headers)
        if self._command != b"HEAD":
            self.write(response.body)
        with withRequestId(requestId):
            self.site.requestRefused(self.transport.getPeer(), status, requestId)
        self._linger()

    def _linger(self) -> None:
        """
        Send what is written, and discard what is received until the client closes.
        Closing a connection on which data are arriving would reset it, and the client
        might never see the response.
        """
        for received in ("data", "line", "rawData", "allContent"):
            setattr(self, f"{received}Received", _discard)
        self._cancelCloseTimer()
        if self.isSecure():
            # Closing one direction below TLS would cut off what is not encrypted yet;
            # and TLS ends only after the client has confirmed it.
            super().loseConnection()
        else:
            cast(Any, self._networkProducer).unregisterProducer()
            self.transport.loseWriteConnection()
        self._closeTimer = self.callLater(
            _LINGER_SECONDS, self.transport.abortConnection
        )

    def _cancelCloseTimer(self) -> None:
        if self._closeTimer is not None and self._closeTimer.active():
            self._closeTimer.cancel()

    def _closeAfterResponse(self) -> None:
        self.persistent = False
        for request in self.requests:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            if self._receivedHeaderSize > self.totalHeadersSize
            or self._receivedHeaderCount > self.maxHeaders
            else HTTPStatus.BAD_REQUEST
        )

    def stop(self) -> None:
        """
        Close the connection after the request in progress.
        """
        if self._closeTimer is not None:
            # The connection is about to close.
            return
        if self._requestInProgress:
            self._closeAfterResponse()
        elif self._hasReadHeaders and not self.requests:
            self.loseConnection()
        else:
            # A request, or a part of it, may be on its way.
            self._closeTimer = self.callLater(_FIRST_REQUEST_SECONDS, self._closeIfIdle)

    def _closeIfIdle(self) -> None:
        if not self._requestInProgress:
            self.loseConnection()


def _discard(*data: object) -> None:
    pass
