"""
The framing of requests (RFC 9112): their heads, and the ends of their bodies.

llhttp, the parser of Node.js, decides whether a request is well-formed. A proxy in
front of the server may read an ambiguous request differently, and take a part of it
for another request. So this module refuses ambiguous requests, although some servers
accept them: several lengths, transfer codings other than C{chunked}, folded lines, line
ends other than CRLF, odd hosts.

The parser gets whole heads. If a request has no body, the parser expects another head
next; otherwise a new parser replaces it. So all connections share one parser.
"""

from __future__ import annotations

import re
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from twisted.web.http_headers import Headers

from ..extras import needs

with needs("server"):
    from httptools import (
        HttpParserError,
        HttpParserInvalidMethodError,
        HttpParserUpgrade,
        HttpRequestParser,
    )

__all__ = ["MAX_HEAD_BYTES", "ChunkedBody", "Head", "HeadParser", "Refusal"]

MAX_HEAD_BYTES: Final = 16 * 1024
"""
Maximum length of a request line, and of a head.
"""

_MAX_HEADERS: Final = 500

_SHORT_HEAD_BYTES: Final = 2 * _MAX_HEADERS
"""
Length of a head that cannot have too many headers.
"""

_VERSIONS: Final = (b"HTTP/1.1", b"HTTP/1.0")

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_HOST: Final = re.compile(
    rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+[0-9.]*\])?(?::[0-9]{0,5})?"
)

_URL: Final = re.compile(rb"(?i:https?)://(?:[^/?#@]*@)?([^/?#@]+)/?(.*)")

_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class Refusal(Exception):
    """
    A request is not accepted.

    @ivar status: The status of the response.
    """

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


class Head:
    """
    The head of a request.

    @ivar target: The target of the request: a path, or C{*}.
    @ivar version: C{HTTP/1.0} or C{HTTP/1.1}.
    @ivar length: Length of the body in bytes; L{None} if it is chunked.
    @ivar isPersistent: Whether the client may send another request.
    """

    __slots__ = ("headers", "isPersistent", "length", "method", "target", "version")

    length: int | None
    isPersistent: bool

    def __init__(self, requestLine: bytes) -> None:
        """
        @raise Refusal: The line is malformed.
        """
        words = requestLine.split(b" ")
        if len(words) != 3 or words[2] not in _VERSIONS:
            raise Refusal(HTTPStatus.BAD_REQUEST)
        self.method, self.target, self.version = words
        self.headers = Headers()


class HeadParser:
    """
    Parses the heads of requests.
    """

    # httptools prescribes the names of the callbacks.

    def __init__(self) -> None:
        self._parser = HttpRequestParser(self)

    def parse(self, data: bytes) -> Head:
        """
        Parse a head.

        @param data: The head, with the empty line at its end.
        @return: The parsed head.
        @raise Refusal: The head is malformed, ambiguous or too long.
        """
        # The parser would skip a single CR or LF at the start.
        if len(data) > _SHORT_HEAD_BYTES or data[:1] in (b"\r", b"\n"):
            self.check(data)
        head = self._head = Head(data[: data.index(b"\r\n")])
        self._isRead = self._hasNoBody = False
        try:
            self._feed(data)
            if not self._isRead:
                raise Refusal(HTTPStatus.BAD_REQUEST)
            # Before 0.9, httptools ignores an empty Transfer-Encoding.
            if self._hasNoBody and not head.headers.hasHeader(b"Transfer-Encoding"):
                head.length = 0
            else:
                head.length = _bodyLength(head)
            _checkTarget(head)
            if not (self._hasNoBody and head.isPersistent):
                # This parser now expects the body, or no further request.
                self._parser = HttpRequestParser(self)
        except (HttpParserError, Refusal) as error:
            self._parser = HttpRequestParser(self)
            raise Refusal(HTTPStatus.BAD_REQUEST) from error
        return head

    def check(self, data: bytes) -> None:
        """
        Check the beginning of a head.

        @param data: The received part of the head.
        @raise Refusal: The head is malformed or too long, whatever follows.
        """
        line, end, _ = data.partition(b"\r\n")
        if len(line) > MAX_HEAD_BYTES:
            raise Refusal(HTTPStatus.REQUEST_URI_TOO_LONG)
        if end:
            Head(line)
        lines = data.count(b"\n")
        if lines != data.count(b"\r\n") or not _TOKEN.match(data):
            raise Refusal(HTTPStatus.BAD_REQUEST)
        if len(data) > MAX_HEAD_BYTES or lines > _MAX_HEADERS + 2:
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def salvage(self, data: bytes) -> Headers:
        """
        @param data: A head that was refused.
        @return: The headers before the first error.
        """
        self._head = Head(b"GET / HTTP/1.1")
        self._parser = HttpRequestParser(self)
        with suppress(HttpParserError, HttpParserUpgrade):
            self._parser.feed_data(data[: 2 * MAX_HEAD_BYTES])
        self._parser = HttpRequestParser(self)
        return self._head.headers

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            # The parser would leave the body to another protocol.
            self._hasNoBody = False
        except HttpParserInvalidMethodError:
            # The parser knows only registered methods. A resource may have others.
            method = self._head.method
            if not _TOKEN.fullmatch(method):
                raise
            self._parser = HttpRequestParser(self)
            self._feed(b"GET" + data[len(method) :])

    def on_header(self, name: bytes, value: bytes) -> None:
        """
        Add a header to the head.
        """
        self._head.headers.addRawHeader(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """
        Note the end of the head.
        """
        self._isRead = True
        self._head.isPersistent = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        """
        Note the end of a request without a body.
        """
        self._hasNoBody = True


class ChunkedBody:
    """
    Decodes one chunked body. It checks the sizes, extensions and trailers of the
    chunks, and discards the extensions and trailers.
    """

    __slots__ = ("_isComplete", "_length", "_overhead", "_parser", "_pieces")

    def __init__(self) -> None:
        self._isComplete = False
        self._pieces: list[bytes] = []
        self._length = self._overhead = 0
        self._parser = HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)

    def decode(self, data: bytes) -> tuple[bytes, bytes | None]:
        """
        @param data: Received bytes.
        @return: The next part of the body, and the data that follow the body: L{None}
            if the body is not complete.
        @raise Refusal: The data are malformed, or mostly extensions and trailers.
        """
        pieces = self._pieces = []
        rest = None
        begin = 0
        with memoryview(data) as view:
            while begin < len(data) and rest is None:
                # The parser does not report the end of a body; it is the end of a line.
                end = data.find(b"\n", begin) + 1 or len(data)
                try:
                    self._parser.feed_data(view[begin:end])
                except HttpParserError as error:
                    raise Refusal(HTTPStatus.BAD_REQUEST) from error
                begin = end
                if self._isComplete:
                    rest = data[end:]
        part = b"".join(pieces)
        self._length += len(part)
        self._overhead += begin - len(part)
        # A chunk with one byte of the body takes six bytes.
        if self._overhead > MAX_HEAD_BYTES + 5 * self._length:
            raise Refusal(HTTPStatus.BAD_REQUEST)
        return part, rest

    def on_body(self, data: bytes) -> None:
        """
        Add a part of a chunk.
        """
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """
        Note the end of the body.
        """
        self._isComplete = True


def _bodyLength(head: Head) -> int | None:
    codings = head.headers.getRawHeaders(b"Transfer-Encoding", [])
    lengths = head.headers.getRawHeaders(b"Content-Length", [])
    if not codings:
        return int(lengths[0]) if lengths else 0
    if (
        lengths
        or head.version == b"HTTP/1.0"
        or [coding.lower() for coding in codings] != [b"chunked"]
    ):
        raise Refusal(HTTPStatus.BAD_REQUEST)
    return None


def _checkTarget(head: Head) -> None:
    hosts = head.headers.getRawHeaders(b"Host", ())
    if (
        head.method == b"CONNECT"
        or (len(hosts) != 1 and (hosts or head.version == b"HTTP/1.1"))
        or (hosts and not _HOST.fullmatch(hosts[0]))
    ):
        raise Refusal(HTTPStatus.BAD_REQUEST)
    target = head.target
    if target.startswith(b"/") or (target == b"*" and head.method == b"OPTIONS"):
        return
    # The target is a URL, as in requests to a proxy.
    url = _URL.fullmatch(target)
    if url is None or not _HOST.fullmatch(url[1]):
        raise Refusal(HTTPStatus.BAD_REQUEST)
    head.target = b"/" + url[2]
    head.headers.setRawHeaders(b"Host", [url[1]])
