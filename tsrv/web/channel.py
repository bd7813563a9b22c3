"""
One HTTP/1.1 connection.

A channel reads requests, gives them to a twisted.web site one after the other, and
writes the responses. It is to a L{Request} what Twisted's own channels are: Twisted
makes the same calls for HTTP/2 (C{twisted.web._http2.H2Stream}). So every resource
works with it. What is well-formed is decided in L{tsrv.web.framing}.

A connection is always in one L{Phase}. Each phase has a deadline, and defines what
happens to received data:

  - They are a request, or a part of one: IDLE, READING_HEAD, READING_BODY.
  - They are kept, up to 64 KiB: ANSWERING; QUEUED, until it is the turn of the next
    request; BLOCKED, until the client has read its responses. If more arrive, the
    transport is paused, so that the client slows down. But only a transport that is
    read tells that its client has left. So if a response takes longer than a second,
    further data are discarded, and the connection ends with the response.
  - They are discarded: CLOSING; LINGERING, in which a client that may still be sending
    has time to read the response. If the connection was closed at once, the data on
    their way would reset it, and the client might lose the response.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

from twisted.internet.interfaces import (
    IAddress,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from twisted.web.server import Request
from zope.interface import implementer

from .connections import NEVER, TICK_SECONDS, Connections
from .framing import ChunkedBody, Head, Refusal
from .problems import HTTPError
from .requestid import requestIdFor, withRequestId

__all__ = ["Channel", "Phase"]

_log = Logger("tsrv.web")

_LINGER_SECONDS: Final = 2.0
"""
Time for a refused client to read the response before its connection is aborted.
"""

_FIRST_REQUEST_SECONDS: Final = 1.0
"""
Time for a request that is on its way when the site is stopped.
"""

_MAX_AHEAD: Final = 64 * 1024
"""
Bytes that a client may send ahead of the response that it waits for.
"""

_SEND_BUFFER_BYTES: Final = 64 * 1024
"""
Length of the send buffer of Twisted's transports.
"""

_PAUSE_SECONDS: Final = 1.0
"""
Time for which a connection with too many such bytes is not read.
"""

_MIN_BYTES_PER_SECOND: Final = 1024
"""
Rate at which clients have to send and to read.
"""

_SLOW_START_SECONDS: Final = 5.0
"""
Age of a body from which on its rate is checked.
"""

_REFUSALS: Final = {
    HTTPStatus.BAD_REQUEST: "The request cannot be understood",
    HTTPStatus.REQUEST_TIMEOUT: "The request took too long to arrive",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too long",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The request line is too long",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The headers are too long",
    HTTPStatus.SERVICE_UNAVAILABLE: "Too much is waiting already",
}


_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)+")


class Phase(Enum):
    """
    What a connection is doing.
    """

    IDLE = auto()
    READING_HEAD = auto()
    READING_BODY = auto()
    ANSWERING = auto()
    QUEUED = auto()
    BLOCKED = auto()
    CLOSING = auto()
    LINGERING = auto()


@implementer(IPushProducer)
class Channel(Protocol):
    """
    One connection. L{Connections} makes it, a site sets its attributes, requests use
    it.

    @ivar phase: What the connection is doing.
    @ivar deadline: The tick at which that has taken too long.
    """

    site: Any
    requestFactory: Any
    timeOut: float | None
    transport: Any

    phase = Phase.IDLE
    deadline = NEVER

    _request: Request | None = None
    _head: Head | None = None
    _chunks: ChunkedBody | None = None
    _missingBytes = _bodyBytes = _bodyLimit = _begunAt = _expires = 0
    _wasUsed = False
    _isPersistent = True
    # Received, and not handled yet; how much of it is counted.
    _received = b""
    _keptBytes = 0
    _hasDiscarded = False
    _isPaused = False
    # Written during a call of the request: it becomes one write.
    _written: list[bytes] | None = None
    _unsentBytes = 0
    _isBlocked = False
    _producer: Any = None
    _isPulled = False

    def __init__(self, connections: Connections) -> None:
        """
        @param connections: The connections of the site.
        """
        self._connections = connections

    # The transport's side.

    def connectionMade(self) -> None:
        """
        Join the connections of the site.
        """
        transport = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self._learnAddresses()
        transport.registerProducer(self, True)
        self._connections.opened(self)
        self._waitForRequest()
        if self._connections.stopping:
            self.stop()

    def dataReceived(self, data: bytes) -> None:
        """
        Read a request, or keep or discard the data.
        """
        if self.phase in _READING:
            if not self._wasUsed:
                # A PROXY protocol endpoint knows the client only now.
                self._learnAddresses()
            self._received += data
            self._read()
        elif self.phase in _KEEPING and self._isPersistent:
            self._received += data
            self._limitKept()
        else:
            self._hasDiscarded = True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        End the request, and leave the connections of the site.
        """
        self.phase = Phase.CLOSING
        self._received = b""
        self._countKept()
        self._forgetBody()
        request, self._request = self._request, None
        if request is not None:
            request.connectionLost(reason)
        self._connections.closed(self)

    def pauseProducing(self) -> None:
        """
        Stop writing: the send buffer is full.
        """
        self._isBlocked = True
        self._unsentBytes = max(self._unsentBytes, _SEND_BUFFER_BYTES)
        self.deadline = self._readingDeadline()
        if self._producer is not None:
            self._producer.pauseProducing()
        elif self.phase in (Phase.IDLE, Phase.QUEUED):
            self.phase = Phase.BLOCKED

    def resumeProducing(self) -> None:
        """
        Continue: the send buffer is empty.
        """
        self._isBlocked = False
        self._unsentBytes = 0
        if self.phase is Phase.BLOCKED:
            self._waitForRequest()
        elif self.phase is Phase.ANSWERING:
            self._setAnsweringDeadline()
        if self._producer is not None:
            self._producer.resumeProducing()
            if self._isPulled and self._unsentBytes:
                self.deadline = self._readingDeadline()

    def stopProducing(self) -> None:
        """
        Stop for good: the connection is lost.
        """
        if self._producer is not None:
            self._producer.stopProducing()

    # The side of the connections.

    @property
    def isBusy(self) -> bool:
        """
        Whether a request is in progress.
        """
        return self.phase is Phase.READING_BODY or self.phase is Phase.ANSWERING

    def startNext(self) -> None:
        """
        Start the request that was sent ahead.
        """
        if self.phase is Phase.QUEUED:
            self.phase = Phase.IDLE
            self.deadline = self._connections.after(self.timeOut)
            self._countKept()
            self._read()
            if self._connections.stopping:
                self.stop()
            if self._isPaused and len(self._received) <= _MAX_AHEAD // 2:
                self._resumeReading()

    def deadlineReached(self) -> None:
        """
        End what takes too long.
        """
        phase, self.deadline = self.phase, NEVER
        if phase is Phase.READING_BODY:
            self._checkProgress()
        elif phase is Phase.READING_HEAD and not self._connections.stopping:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT)
        elif phase is Phase.IDLE or phase is Phase.READING_HEAD:
            self.loseConnection()
        elif phase is Phase.ANSWERING and self._isPaused and not self._isBlocked:
            self._closeAfterResponse()
        else:
            self.abort()

    def stop(self) -> None:
        """
        Close the connection after the request in progress.
        """
        if self.isBusy:
            self._closeAfterResponse()
        elif self.phase is Phase.IDLE and self._wasUsed:
            self.loseConnection()
        elif self.phase is Phase.IDLE or self.phase is Phase.READING_HEAD:
            # A request, or a part of it, may be on its way.
            grace = self._connections.after(_FIRST_REQUEST_SECONDS)
            self.deadline = min(self.deadline, grace)

    def abort(self) -> None:
        """
        Close the connection without sending what is written.
        """
        self.transport.abortConnection()

    # The side of the request.

    def getPeer(self) -> IAddress:
        """
        @return: The address of the client.
        """
        return self._peer

    def getHost(self) -> IAddress:
        """
        @return: The address of the server.
        """
        return self._host

    def isSecure(self) -> bool:
        """
        @return: Whether the connection uses TLS.
        """
        return ISSLTransport(self.transport, None) is not None

    def writeHeaders(
        self,
        version: bytes,
        code: bytes,
        reason: bytes,
        headers: Headers,
        rest: bytes | None = None,
    ) -> None:
        """
        Write the head of a response.

        @param rest: The last headers with the length of the body, and the body.
        """
        if self._isPersistent:
            if version == b"HTTP/1.0":
                self._keepAlive(rest is not None or int(code) in NO_BODY_CODES, headers)
            elif headers.hasHeader(b"Connection"):
                tokens = b",".join(headers.getRawHeaders(b"Connection", ())).lower()
                self._isPersistent = b"close" not in re.split(rb"[\s,]+", tokens)
        lines = [b"%b %b %b" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            for value in values:
                lines.append(b"%b: %b" % (name, value))
        lines.append(b"\r\n" if rest is None else rest)
        self.write(b"\r\n".join(lines))

    def write(self, data: bytes) -> None:
        """
        Write a part of a response.
        """
        if isinstance(data, str):  # type: ignore[unreachable]
            raise TypeError("a response is written in bytes")
        if self._written is not None:
            self._written.append(data)
        else:
            self._unsentBytes += len(data)
            self.transport.write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Write parts of a response.
        """
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Let a producer write a response.

        @raise RuntimeError: There is one already.
        """
        if self._producer is not None:
            raise RuntimeError(f"cannot register {producer}: {self._producer} is")
        self.flush()
        self._producer, self._isPulled = producer, not streaming
        if not streaming:
            self._register(False)
        elif self._isBlocked:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """
        End the producer's response.
        """
        self._producer = None
        if self._isPulled:
            self._isPulled = False
            self._register(True)
            if self.phase is Phase.ANSWERING:
                self._setAnsweringDeadline()

    def requestDone(self, request: Request) -> None:
        """
        Continue with the next request.
        """
        self._request = None
        if not self._isPersistent:
            self.loseConnection()
        elif self.phase is Phase.ANSWERING:
            self._waitForRequest()
            if self._isBlocked:
                self.phase, self.deadline = Phase.BLOCKED, self._readingDeadline()

    def loseConnection(self) -> None:
        """
        Close the connection when all is sent.
        """
        self.flush()
        if self.phase in _ENDING:
            return
        if self._hasDiscarded:
            self._linger()
            return
        self.phase, self.deadline = Phase.CLOSING, self._readingDeadline()
        # A transport calls a paused producer before it closes.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # A request calls it if its form is malformed.
        self.refuse(HTTPStatus.BAD_REQUEST)

    # Reading.

    def _learnAddresses(self) -> None:
        self._peer: IAddress = self.transport.getPeer()
        self._host: IAddress = self.transport.getHost()

    def _waitForRequest(self) -> None:
        if self._received:
            self.phase, self.deadline = Phase.QUEUED, NEVER
            self._connections.startLater(self)
        else:
            self.phase = Phase.IDLE
            self.deadline = self._connections.after(self.timeOut)

    def _read(self) -> None:
        try:
            if self.phase is Phase.READING_BODY:
                self._readBody()
            else:
                self._readHead()
        except Refusal as refusal:
            self.refuse(refusal.status)

    def _readHead(self) -> None:
        connections = self._connections
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
            if not connections.stopping:
                self.deadline = connections.after(connections.requestTimeout)

    def _beginBody(self, head: Head) -> None:
        connections = self._connections
        self._begunAt = connections.tick
        self._expires = self.deadline
        if self.phase is Phase.IDLE:
            self._expires = connections.after(connections.requestTimeout)
        self._bodyBytes = 0
        self._bodyLimit = connections.bodyLimit(self.site, head.target)
        self._checkRoom(head.length or 0)
        self._chunks = ChunkedBody() if head.length is None else None
        self._missingBytes = head.length or 0
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
        data, rest = self._received, None
        if self._chunks is not None:
            data, rest = self._chunks.decode(data)
        else:
            if len(data) >= self._missingBytes:
                data, rest = data[: self._missingBytes], data[self._missingBytes :]
            self._missingBytes -= len(data)
        self._checkRoom(len(data))
        self._received = rest or b""
        self._bodyBytes += len(data)
        self._connections.count(self._peer, len(data))
        assert self._request is not None
        self._request.handleContentChunk(data)
        if rest is not None:
            self._forgetBody()
            self._answer()

    def _checkRoom(self, length: int) -> None:
        if self._bodyBytes + length > self._bodyLimit:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if not self._connections.hasRoom(self._peer, length, self._bodyLimit):
            self._connections.warn(self._peer)
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE)

    def _checkProgress(self) -> None:
        connections = self._connections
        self.deadline = connections.tick + 1
        age = (connections.tick - self._begunAt) * TICK_SECONDS
        if (
            connections.tick >= self._expires
            or self._bodyBytes < (age - _SLOW_START_SECONDS) * _MIN_BYTES_PER_SECOND
        ):
            self.refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _forgetBody(self) -> None:
        if self._bodyBytes:
            self._connections.count(self._peer, -self._bodyBytes)
            self._bodyBytes = 0
        self._chunks = None

    def _makeRequest(self, head: Head) -> Request:
        self._wasUsed = True
        request: Request = self.requestFactory(self)
        self._request = request
        request.requestHeaders = head.headers
        request.parseCookies()
        request.gotLength(head.length)
        self._isPersistent = head.isPersistent and not self._connections.stopping
        if not self._isPersistent:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return request

    # Answering.

    def _answer(self) -> None:
        request, head, self._head = self._request, self._head, None
        assert request is not None
        assert head is not None
        self.phase, self.deadline = Phase.ANSWERING, NEVER
        if not self._isBlocked:
            self._unsentBytes = 0
        self._written = []
        try:
            request.requestReceived(head.method, head.target, head.version)
            self.flush()
        except Exception:
            _log.failure("A request failed")
            self.abort()
        if self._received:
            self._limitKept()

    def flush(self) -> None:
        """
        Write what is held back.
        """
        written, self._written = self._written, None
        if written:
            self.write(b"".join(written))

    def _limitKept(self) -> None:
        self._countKept()
        hasRoom = self._connections.hasRoom(self._peer)
        if not hasRoom and self.phase is Phase.ANSWERING:
            self._closeAfterResponse()
        elif not (self._isPaused or (hasRoom and len(self._received) <= _MAX_AHEAD)):
            self._isPaused = True
            self.transport.pauseProducing()
            if self.phase is Phase.ANSWERING:
                self._setAnsweringDeadline()

    def _countKept(self) -> None:
        """
        Count received data that wait for a response to be written.
        """
        kept = len(self._received) if self.phase in _KEEPING else 0
        if kept != self._keptBytes:
            self._connections.count(self._peer, kept - self._keptBytes, inMemory=True)
            self._keptBytes = kept

    def _keepAlive(self, hasEnd: bool, headers: Headers) -> None:
        # An old client finds the end of a body by its length, or when it is closed.
        self._isPersistent = (
            hasEnd or headers.hasHeader(b"Content-Length")
        ) and not headers.hasHeader(b"Connection")
        if self._isPersistent:
            headers.setRawHeaders(b"Connection", [b"keep-alive"])

    def _setAnsweringDeadline(self) -> None:
        if self._isBlocked:
            self.deadline = self._readingDeadline()
        elif self._isPaused:
            self.deadline = self._connections.after(_PAUSE_SECONDS)
        else:
            self.deadline = NEVER

    def _readingDeadline(self) -> int:
        connections = self._connections
        seconds = self._unsentBytes / _MIN_BYTES_PER_SECOND
        return connections.after(connections.requestTimeout + seconds)

    def _register(self, streaming: bool) -> None:
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, streaming)

    # Ending.

    def _closeAfterResponse(self) -> None:
        self._isPersistent = False
        if self._request is not None:
            self._request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        if self._received and self.phase is Phase.ANSWERING:
            self._hasDiscarded = True
            self._received = b""
            self._countKept()
        self._resumeReading()

    def _resumeReading(self) -> None:
        if self._isPaused:
            self._isPaused = False
            self.transport.resumeProducing()

    def refuse(self, status: HTTPStatus) -> None:
        """
        Respond to a request that will not be read to its end; close the connection.

        @param status: The status of the response.
        """
        if self.phase in _ENDING:
            return
        head, request = self._head, self._request
        if head is not None:
            known, method = head.headers, head.method
        else:
            known = self._connections.parser.salvage(self._received)
            method = self._received[:5].strip()
        if request is not None and request.content is not None:
            request.content.close()
        requestId = requestIdFor(known)
        extra = [(b"X-Request-ID", requestId.encode("ascii"))]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            extra.append((b"Retry-After", b"1"))
        error = HTTPError(_REFUSALS[status], status, extra)
        response = error.toResponse(known.getRawHeaders(b"Accept"), requestId)
        lines = [
            b"HTTP/1.1 %d %b" % (status, status.phrase.encode("ascii")),
            b"Connection: close",
            b"Content-Type: " + response.contentType,
            b"Content-Length: %d" % len(response.body),
            *(b"%b: %b" % header for header in response.headers),
            b"\r\n",
        ]
        self.write(b"\r\n".join(lines))
        if method != b"HEAD":
            self.write(response.body)
        report = getattr(self.site, "requestRefused", None)
        if report is not None:
            with withRequestId(requestId):
                report(self._peer, status, requestId)
        self._linger()

    def _linger(self) -> None:
        self.flush()
        self.phase = Phase.LINGERING
        self.deadline = self._connections.after(_LINGER_SECONDS)
        self._received = b""
        self._countKept()
        self._forgetBody()
        self.transport.unregisterProducer()
        self._resumeReading()
        if self.isSecure():
            # Closing one direction below TLS would cut off what is not encrypted yet;
            # and TLS ends only after the client has confirmed it.
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()


_READING: Final = (Phase.IDLE, Phase.READING_HEAD, Phase.READING_BODY)
_KEEPING: Final = (Phase.ANSWERING, Phase.QUEUED, Phase.BLOCKED)
_ENDING: Final = (Phase.CLOSING, Phase.LINGERING)
