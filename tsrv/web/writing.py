"""
The writing half of a connection: a request calls it to respond, and the transport
calls it when the send buffer is full or empty.

A channel has the methods of Twisted's own channels that a
L{Request<twisted.web.http.Request>} calls. Twisted makes the same calls for HTTP/2
(C{twisted.web._http2.H2Stream}), so every resource works with this channel.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from zope.interface import implementer

from .supervisor import NEVER, Supervisor

with suppress(ImportError):
    # Windows has neither of the two modules.
    from fcntl import ioctl
    from termios import TIOCOUTQ

__all__ = ["MIN_BYTES_PER_SECOND", "Phase", "Writer"]

_log = Logger("tsrv.web")

MIN_BYTES_PER_SECOND: Final = 1024
"""
Minimum rate at which clients must send and read.
"""

_SEND_BUFFER_BYTES: Final = 64 * 1024
"""
Length of the send buffer of Twisted's transports.
"""

_PAUSE_SECONDS: Final = 1.0
"""
Maximum time for which a channel does not read a client that has sent too much ahead.
"""


class Phase(Enum):
    """
    The state of a connection.
    """

    IDLE = auto()
    READING_HEAD = auto()
    READING_BODY = auto()
    ANSWERING = auto()
    QUEUED = auto()
    BLOCKED = auto()
    CLOSING = auto()
    LINGERING = auto()


def _unreadBytes(transport: Any) -> int | None:
    """
    @return: Number of bytes that the operating system has not delivered; L{None} if the
        number is unknown. A transport reports only when its own buffer is empty.
    """
    try:
        count = ioctl(transport.fileno(), TIOCOUTQ, bytes(4))
    except (AttributeError, NameError, OSError, ValueError):
        return None
    return int.from_bytes(count, sys.byteorder)


@implementer(IPushProducer)
class Writer(Protocol):
    """
    Writes the responses of one connection.

    @ivar connections: The connections of the site.
    @ivar phase: The state of the connection.
    @ivar deadline: The tick at which the time limit of the phase expires.
    @ivar defaults: The headers that a response gets unless it sets them itself.
    @ivar isPersistent: Whether the connection stays open after the response.
    @ivar isPaused: Whether the transport is paused.
    @ivar isBlocked: Whether the send buffer is full.
    """

    transport: Any

    phase = Phase.IDLE
    deadline = NEVER
    defaults: Mapping[bytes, bytes] = MappingProxyType({})
    isPersistent = True
    isPaused = False
    isBlocked = False

    # Data written during a call of the request; they become one write.
    _written: list[bytes] | None = None
    _unsentBytes = 0
    # Number of them that the client's system has not read; only while the site stops.
    _unreadBytes: int | None = None
    _producer: Any = None
    _isPulled = False

    def __init__(self, connections: Supervisor) -> None:
        """
        @param connections: The connections of the site.
        """
        self.connections = connections

    def pauseProducing(self) -> None:
        """
        Stop writing: the send buffer is full.
        """
        self.isBlocked = True
        self._unsentBytes = max(self._unsentBytes, _SEND_BUFFER_BYTES)
        if self.phase in (Phase.IDLE, Phase.QUEUED):
            self.phase = Phase.BLOCKED
        if self.phase in (Phase.ANSWERING, Phase.BLOCKED):
            self.deadline = self.readingDeadline()
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """
        Continue: the send buffer is empty.
        """
        self.isBlocked = False
        self._unsentBytes = 0
        if self._producer is not None:
            self._producer.resumeProducing()
        if self.phase is Phase.ANSWERING:
            self.setAnsweringDeadline()

    def stopProducing(self) -> None:
        """
        Stop for good: the connection is lost.
        """
        if self._producer is not None:
            try:
                self._producer.stopProducing()
            except BaseException:
                # Twisted would not close the socket.
                _log.failure("A producer raised an error when its client disconnected")

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
        return ISSLTransport.providedBy(self.transport)

    def learnAddresses(self) -> None:
        """
        Ask the transport for the addresses of both ends.
        """
        self._peer: IAddress = self.transport.getPeer()
        self._host: IAddress = self.transport.getHost()

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

        @param rest: The last headers, which give the length of the body, and the body;
            L{None} if the body follows in calls of L{write}.
        """
        if self.isPersistent:
            if version == b"HTTP/1.0":
                self._keepAlive(rest is not None or int(code) in NO_BODY_CODES, headers)
            elif headers.hasHeader(b"Connection"):
                tokens = b",".join(headers.getRawHeaders(b"Connection", ())).lower()
                self.isPersistent = b"close" not in re.split(rb"[\s,]+", tokens)
        defaults = self.defaults
        lines = [b"%b %b %b" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            if name in defaults:
                defaults = {each: defaults[each] for each in defaults if each != name}
            for value in values:
                lines.append(b"%b: %b" % (name, value))
        lines += defaults.values()
        lines.append(b"\r\n" if rest is None else rest)
        self.write(b"\r\n".join(lines))

    def write(self, data: bytes) -> None:
        """
        Write a part of a response.
        """
        if isinstance(data, str):  # type: ignore[unreachable]
            raise TypeError("a response must be bytes")
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

        @param producer: The producer.
        @param streaming: Whether it is a push producer.
        @raise RuntimeError: The response has a producer already.
        """
        if self._producer is not None:
            raise RuntimeError(f"cannot register {producer} besides {self._producer}")
        self.flush()
        self._producer, self._isPulled = producer, not streaming
        if not streaming:
            self._register(False)
        elif self.isBlocked:
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
                self.setAnsweringDeadline()

    def collect(self) -> None:
        """
        Hold back written data until L{flush}.
        """
        if not self.isBlocked:
            self._unsentBytes = 0
        self._written = []

    def flush(self) -> None:
        """
        Write the data that were held back.
        """
        written, self._written = self._written, None
        if written:
            self.write(b"".join(written))

    def _keepAlive(self, hasEnd: bool, headers: Headers) -> None:
        # An HTTP/1.0 client needs a length, or the body ends with the connection.
        self.isPersistent = (
            hasEnd or headers.hasHeader(b"Content-Length")
        ) and not headers.hasHeader(b"Connection")
        if self.isPersistent:
            headers.setRawHeaders(b"Connection", [b"keep-alive"])

    @property
    def isUnread(self) -> bool:
        """
        Whether the response continues only when the client has read more of it.
        """
        return self.isBlocked or (self._isPulled and self._unsentBytes > 0)

    def setAnsweringDeadline(self) -> None:
        """
        Set the deadline of a response.
        """
        if self.isUnread:
            self.deadline = self.readingDeadline()
        elif self.isPaused:
            self.deadline = self.connections.after(_PAUSE_SECONDS)
        else:
            self.deadline = NEVER

    def resumeReading(self) -> None:
        """
        Read from the client again.
        """
        if self.isPaused:
            self.isPaused = False
            self.transport.resumeProducing()

    def readingDeadline(self) -> int:
        """
        @return: The tick by which the client must have read the written data.
        """
        connections = self.connections
        if connections.stopping:
            self._unreadBytes = _unreadBytes(self.transport)
        seconds = self._unsentBytes / MIN_BYTES_PER_SECOND
        return connections.patience(connections.requestTimeout + seconds)

    def isReadDuringStop(self) -> bool:
        """
        @return: Whether the site is being stopped, and the client has read something
            since the deadline was set.
        """
        return self.connections.stopping and (
            _unreadBytes(self.transport) != self._unreadBytes
        )

    def _register(self, streaming: bool) -> None:
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, streaming)
