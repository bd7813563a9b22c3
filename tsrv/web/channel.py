"""
One HTTP/1.1 connection.

A channel reads requests, and passes them to a twisted.web site one after the other.
L{tsrv.web.framing} decides whether a request is well-formed; L{tsrv.web.writing} has
the methods that a request calls to respond.

A connection is always in one L{Phase}. Each phase has a deadline, and defines how the
channel treats received data:

  - Read a request: IDLE, READING_HEAD, READING_BODY.
  - Keep the data, up to 64 KiB: ANSWERING; QUEUED, until the next request has its turn;
    BLOCKED, until the client has read its responses. If more data arrive, the channel
    pauses the transport, so that the client slows down. But a paused transport does
    not notice that the client disconnects. So if a response takes longer than a second,
    the channel discards further data, and closes the connection after the response.
  - Discard the data: CLOSING; LINGERING, in which a client that may still be sending
    has time to read the response. If the channel closed the connection at once, data
    in transit would reset it, and the client might lose the response.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final

from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from .framing import Head, Refusal
from .incoming import IncomingBody
from .refusals import refusal
from .requestid import requestIdFor, withRequestId
from .supervisor import GRACE_TICKS, NEVER
from .writing import Phase, Writer

__all__ = ["Channel"]

_log = Logger("tsrv.web")

_LINGER_SECONDS: Final = 2.0
"""
Time for a refused client to read the response before its connection is aborted.
"""

_MAX_AHEAD: Final = 64 * 1024
"""
Maximum number of bytes that a client may send before it gets its response.
"""

_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)+")

_READING: Final = (Phase.IDLE, Phase.READING_HEAD, Phase.READING_BODY)
_KEEPING: Final = (Phase.ANSWERING, Phase.QUEUED, Phase.BLOCKED)
_BUSY: Final = (Phase.READING_BODY, Phase.ANSWERING, Phase.BLOCKED, Phase.CLOSING)
_ENDING: Final = (Phase.CLOSING, Phase.LINGERING)


class Channel(Writer):
    """
    One connection. L{Connections} makes the channel, a site sets its attributes, and
    requests use it.
    """

    site: Any
    requestFactory: Any
    timeOut: float | None

    _request: Request | None = None
    _head: Head | None = None
    _body: IncomingBody | None = None
    _wasUsed = False
    # Received data that are not handled yet, and their counted length.
    _received = b""
    _keptBytes = 0
    # Whether the client may still be sending data, which are discarded.
    _lingers = False

    # The transport's side.

    def connectionMade(self) -> None:
        """
        Join the connections of the site.
        """
        transport = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self.learnAddresses()
        transport.registerProducer(self, True)
        self.connections.opened(self)
        self._waitForRequest()

    def dataReceived(self, data: bytes) -> None:
        """
        Read a request, or keep or discard the data.
        """
        if self.phase in _READING:
            if not self._wasUsed:
                # An endpoint for the PROXY protocol does not know the client earlier.
                self.learnAddresses()
            self._received += data
            self._read()
        elif self.phase in _KEEPING and self.isPersistent:
            self._received += data
            self._limitKept()
        else:
            self._lingers = True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        End the request, and leave the connections of the site.
        """
        self.phase = Phase.CLOSING
        self._received = b""
        self._countKept()
        self._forgetBody()
        request, self._request = self._request, None
        try:
            if request is not None:
                request.connectionLost(reason)
        finally:
            self.connections.closed(self)

    def resumeProducing(self) -> None:
        """
        Continue: the send buffer is empty.
        """
        super().resumeProducing()
        if self.phase is Phase.BLOCKED:
            self._waitForRequest()

    # The side of the supervisor.

    @property
    def isBusy(self) -> bool:
        """
        Whether a request is in progress, or a response is not completely sent.
        """
        return self.phase in _BUSY

    def startNext(self) -> None:
        """
        Start the next request, which the client has sent ahead.
        """
        if self.phase is Phase.QUEUED:
            self._becomeIdle()
            self._countKept()
            self._read()
            if self.isPaused and len(self._received) <= _MAX_AHEAD // 2:
                self.resumeReading()

    def deadlineReached(self) -> None:
        """
        End the phase that takes too long.
        """
        phase, self.deadline = self.phase, NEVER
        if self._body is not None and not self._body.isLate:
            self.deadline = self.connections.tick + 1
        elif phase in (Phase.READING_HEAD, Phase.READING_BODY):
            status = HTTPStatus.REQUEST_TIMEOUT
            if self.connections.stopping:
                status = HTTPStatus.SERVICE_UNAVAILABLE
            self.refuse(status)
        elif phase is Phase.IDLE:
            self.loseConnection()
        elif phase is Phase.ANSWERING and self.isPaused and not self.isUnread:
            self._closeAfterResponse()
        elif phase is not Phase.LINGERING and self.isReadDuringStop():
            self.deadline = self.readingDeadline()
        else:
            self.abort()

    def announceStop(self) -> None:
        """
        Make the response in progress the last one, unless its head is already written.
        """
        if self._request is not None and not self._request.startedWriting:
            self._closeAfterResponse()

    def stop(self, announcedAt: int) -> None:
        """
        Give the client L{GRACE_TICKS} to finish its current step. The response in
        progress is already the last one.

        @param announcedAt: The tick at which the grace of an idle client began.
        """
        phase, connections = self.phase, self.connections
        graceEnd = connections.tick + GRACE_TICKS
        if phase is Phase.IDLE:
            idleTicks = connections.after(self.timeOut) - self.deadline
            graceEnd -= min(idleTicks, connections.tick - announcedAt)
        if phase in (Phase.IDLE, Phase.READING_HEAD, Phase.LINGERING):
            self.deadline = min(self.deadline, graceEnd)
            if self.deadline <= connections.tick:
                self.deadlineReached()
        elif self._body is not None:
            self._body.startGrace()
        elif phase is Phase.ANSWERING:
            self.setAnsweringDeadline()
        elif phase in (Phase.BLOCKED, Phase.CLOSING):
            self.deadline = self.readingDeadline()

    def abort(self) -> None:
        """
        Close the connection without sending the written data.
        """
        self.transport.abortConnection()

    def requestDone(self, request: Request) -> None:
        """
        Continue with the next request.
        """
        self._request = None
        if not self.isPersistent:
            # A client that pipelines cannot know yet that this is the last response.
            self._lingers = self._lingers or self.connections.announced
            self.loseConnection()
        elif self.phase is Phase.ANSWERING:
            self._waitForRequest()
            if self.isBlocked:
                self.phase, self.deadline = Phase.BLOCKED, self.readingDeadline()

    def loseConnection(self) -> None:
        """
        Close the connection when all written data are sent.
        """
        self.flush()
        if self.phase in _ENDING:
            return
        if self._lingers:
            self._linger()
            return
        self.phase, self.deadline = Phase.CLOSING, self.readingDeadline()
        # Before it closes, a transport would call a paused producer.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # A request calls this method if its form is malformed.
        self.refuse(HTTPStatus.BAD_REQUEST)

    # Reading.

    def _waitForRequest(self) -> None:
        if self._received:
            self.phase, self.deadline = Phase.QUEUED, NEVER
            self.connections.startLater(self)
        else:
            self._becomeIdle()

    def _becomeIdle(self) -> None:
        self.phase = Phase.IDLE
        self.deadline = self.connections.patience(self.timeOut)

    def _read(self) -> None:
        try:
            if self.phase is Phase.READING_BODY:
                self._readBody()
            else:
                self._readHead()
        except Refusal as refusal:
            self.refuse(refusal.status)
        except Exception:
            _log.failure("A request failed")
            self.abort()

    def _readHead(self) -> None:
        connections = self.connections
        data = self._received
        if data.startswith(b"\r\n"):
            data = self._received = _EMPTY_LINES.sub(b"", data, count=1)
        end = data.find(b"\r\n\r\n") + 4
        if end >= 4:
            self._head = head = connections.parser.parse(data[:end])
            self._received = data[end:]
            if head.length == 0:
                self._makeRequest(head)
                self._answer()
            else:
                self._beginBody(head)
            return
        if data in (b"", b"\r"):
            return
        connections.parser.check(data)
        if self.phase is Phase.IDLE:
            self.phase = Phase.READING_HEAD
            self.deadline = connections.patience(connections.requestTimeout)

    def _beginBody(self, head: Head) -> None:
        connections, end = self.connections, self.deadline
        if self.phase is Phase.IDLE or connections.stopping:
            end = connections.after(connections.requestTimeout)
        limit = connections.bodyLimit(self.site, head.target)
        self._body = IncomingBody(connections, self._peer, head.length, limit, end)
        request = self._makeRequest(head)
        self.phase, self.deadline = Phase.READING_BODY, connections.tick + 1
        if self._received:
            self._readBody()
        elif (
            head.version == b"HTTP/1.1"
            and (request.getHeader(b"Expect") or b"").lower() == b"100-continue"
        ):
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _readBody(self) -> None:
        assert self._body is not None
        data, rest = self._body.decode(self._received)
        self._received = rest or b""
        assert self._request is not None
        self._request.handleContentChunk(data)
        if rest is not None:
            self._forgetBody()
            self._answer()

    def _forgetBody(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.forget()

    def _makeRequest(self, head: Head) -> Request:
        self._wasUsed = True
        request: Request = self.requestFactory(self)
        self._request = request
        request.requestHeaders = head.headers
        self._findDefaults(head.headers)
        request.parseCookies()
        request.gotLength(head.length)
        self.isPersistent = head.isPersistent and not self.connections.announced
        if not self.isPersistent:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return request

    def _findDefaults(self, headers: Headers) -> None:
        # Only sites of tsrv have default headers.
        find = getattr(self.site, "defaultHeaders", None)
        if find is not None:
            self.defaults = find(self._peer, headers, self.isSecure())

    # Answering.

    def _answer(self) -> None:
        request, head, self._head = self._request, self._head, None
        assert request is not None
        assert head is not None
        self.phase, self.deadline = Phase.ANSWERING, NEVER
        self.collect()
        request.requestReceived(head.method, head.target, head.version)
        self.flush()
        if self._received:
            self._limitKept()

    def _limitKept(self) -> None:
        self._countKept()
        hasRoom = self.connections.hasRoom(self._peer)
        if not hasRoom and self.phase is Phase.ANSWERING:
            self._closeAfterResponse()
            return
        if not (self.isPaused or (hasRoom and len(self._received) <= _MAX_AHEAD)):
            self.isPaused = True
            self.transport.pauseProducing()
        if self.isPaused and self.phase is Phase.ANSWERING:
            self.setAnsweringDeadline()

    def _countKept(self) -> None:
        """
        Count received data that wait for the end of a response.
        """
        kept = len(self._received) if self.phase in _KEEPING else 0
        if kept != self._keptBytes:
            self.connections.count(self._peer, kept - self._keptBytes, inMemory=True)
            self._keptBytes = kept

    # Ending.

    def _closeAfterResponse(self) -> None:
        self.isPersistent = False
        if self._request is not None:
            self._request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        if self._received and self.phase is Phase.ANSWERING:
            self._lingers = True
            self._received = b""
            self._countKept()
        self.resumeReading()
        if self.phase is Phase.ANSWERING:
            self.setAnsweringDeadline()

    def refuse(self, status: HTTPStatus) -> None:
        """
        Refuse a request that has not reached a resource, and close the connection.

        @param status: The status of the response.
        """
        if self.phase in _ENDING:
            return
        head, request = self._head, self._request
        if head is not None:
            known, method = head.headers, head.method
        else:
            known = self.connections.parser.salvage(self._received)
            method = self._received[:5].strip()
        if request is not None and request.content is not None:
            request.content.close()
        requestId = requestIdFor(known)
        self._findDefaults(known)
        stopping, lines = self.connections.stopping, self.defaults.values()
        top, body = refusal(status, known, requestId, stopping, lines)
        self.write(top if method == b"HEAD" else top + body)
        report = getattr(self.site, "requestRefused", None)
        if report is not None:
            with withRequestId(requestId):
                report(self._peer, status, requestId, known, head)
        self._linger()

    def _linger(self) -> None:
        self.flush()
        self.phase = Phase.LINGERING
        self.deadline = self.connections.patience(_LINGER_SECONDS)
        if self.isBlocked:
            # No event reports that a long response is sent.
            self.phase, self.deadline = Phase.CLOSING, self.readingDeadline()
        self._received = b""
        self._countKept()
        self._forgetBody()
        self.transport.unregisterProducer()
        self.resumeReading()
        if self.isSecure():
            # Closing one direction below TLS would lose data that are not encrypted
            # yet; and TLS closes only after the client has confirmed it.
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
