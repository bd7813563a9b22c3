"""
Requests whose framing is ambiguous, invalid or unusual, and the correct behaviour of a
server (RFC 9110 and RFC 9112).

Two servers in a chain that read the framing of a request differently take a body for a
request, or a request for a body. So a server refuses every ambiguous request. Each
framing is followed by a marker, a plain request: after a refusal it never reaches a
resource, and after an accepted request it is the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from .recorder import Seen

__all__ = ["FRAMINGS", "MARKER", "Framing"]

MARKER: Final = b"GET /marker HTTP/1.1\r\nHost: test\r\n\r\n"
"""
The request behind each framing.
"""


@dataclass(frozen=True)
class Framing:
    """
    The data that a client sends, and the correct behaviour of the server.

    @ivar data: The data before the marker.
    @ivar seen: The requests that reach a resource.
    @ivar refusal: The possible statuses of the refusal; empty if the marker is
        answered, or if the connection closes after the last response.
    @ivar closes: Whether the last answered request ends the connection.
    """

    data: bytes
    seen: tuple[Seen, ...] = ()
    refusal: tuple[int, ...] = ()
    closes: bool = False


FRAMINGS: Final[dict[str, Framing]] = {}
"""
The framings, by their names.
"""

_HOST = b"Host: test"

_HELLO: tuple[Seen, ...] = (("POST", "/", b"hello"),)

_X: tuple[Seen, ...] = (("POST", "/", b"x"),)

_GET: tuple[Seen, ...] = (("GET", "/", b""),)

_INNER = MARKER.replace(b"marker", b"inner")


def _get(*lines: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    """
    @return: A request with a Host and these lines.
    """
    return b"\r\n".join([start, _HOST, *lines, b"", b""])


def _hosted(*lines: bytes) -> bytes:
    """
    @return: A request with these lines and no other Host.
    """
    return b"\r\n".join([b"GET / HTTP/1.1", *lines, b"", b""])


def _post(*lines: bytes, body: bytes = b"") -> bytes:
    return _get(*lines, start=b"POST / HTTP/1.1") + body


def _chunked(body: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", body=body)


def _chunks(data: bytes) -> bytes:
    """
    @return: The data in one chunk, followed by the last chunk.
    """
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)


def _refused(
    group: str, framings: dict[str, bytes] | Iterator[tuple[str, bytes]], *status: int
) -> None:
    """
    Add framings that are refused, with 400 unless another status is given.
    """
    for name, data in dict(framings).items():
        assert f"{group}: {name}" not in FRAMINGS
        FRAMINGS[f"{group}: {name}"] = Framing(data, refusal=status or (400,))


def _accepted(group: str, framings: dict[str, tuple[bytes, tuple[Seen, ...]]]) -> None:
    """
    Add framings that are answered, and the marker after them.
    """
    for name, (data, seen) in framings.items():
        assert f"{group}: {name}" not in FRAMINGS
        FRAMINGS[f"{group}: {name}"] = Framing(data, seen)


def _each(
    values: list[bytes], make: Callable[[bytes], bytes]
) -> Iterator[tuple[str, bytes]]:
    """
    @return: A framing for each value, named after it.
    """
    return ((repr(value)[1:], make(value)) for value in values)


_CHUNKS = _chunks(b"x")

# The values of a list share lines. One on each would make the file twice as long.
# fmt: off

# Length and chunks at once. A body in one reading is a request in the other.

_LENGTH = b"Content-Length: %d"

_ENCODING = b"Transfer-Encoding: chunked"

_refused(
    "two framings",
    {
        "CL.TE": _post(
            _LENGTH % (5 + len(_INNER)), _ENCODING, body=b"0\r\n\r\n" + _INNER
        ),
        "TE.CL": _post(_ENCODING, _LENGTH % 4, body=_chunks(_INNER)),
        "CL.TE on GET": _get(_LENGTH % 5, _ENCODING) + b"0\r\n\r\n",
        "length that agrees with the chunks": _post(_LENGTH % 11, _ENCODING) + _CHUNKS,
        "length of nothing": _post(_LENGTH % 0, _ENCODING) + b"0\r\n\r\n",
        "other fields between": _post(_ENCODING, b"X: y", b"A: b", _LENGTH % 4)
        + _CHUNKS,
        "lower case": _post(_LENGTH.lower() % 4, _ENCODING.lower()) + _CHUNKS,
        "identity and length": _post(b"Transfer-Encoding: identity", _LENGTH % 1)
        + b"x",
        "unknown and length": _post(b"Transfer-Encoding: x", _LENGTH % 1) + b"x",
        "no encoding and length": _post(b"Transfer-Encoding:", _LENGTH % 1) + b"x",
        "HTTP/1.0 with chunks": _get(_ENCODING, start=b"POST / HTTP/1.0") + _CHUNKS,
        "HTTP/1.0 with both": _get(_ENCODING, _LENGTH % 4, start=b"POST / HTTP/1.0")
        + _CHUNKS,
        "HTTP/1.0 with chunks that stays": _get(
            _ENCODING, b"Connection: keep-alive", start=b"POST / HTTP/1.0"
        )
        + _CHUNKS,
    },
)

# Encodings other than a single "chunked".

_refused(
    "encoding",
    _each(
        [
            b"", b"identity", b"x", b"gzip", b"chunked, identity", b"identity, chunked",
            b"chunked, gzip", b"chunked,", b",chunked", b", chunked", b"chunked, ,",
            b"chunked;q=1", b"chunked; a=b", b'"chunked"', b"'chunked'",
            b"chunked chunked", b"chunked\x00", b"\x00chunked", b"chunked\x0b",
            b"chunked\x0c", b"chunked\x1f", b"chunked\x7f", b"chunked\xa0",
            b"\xa0chunked", b"chun\x00ked", b"chun\xe2\x84\xaaed", b"chunke\xc4\x8f",
            b"chunk", b"chunkedd", b"chunked\r\n\tidentity", b"\r\n chunked",
            b"\r\n\tchunked", b"\nchunked", b"\rchunked", b"chunked\r", b"chunked\n",
            b"identity\r\nTransfer-Encoding: chunked",
            b"chunked\r\nTransfer-Encoding: identity",
            b"gzip\r\nTransfer-Encoding: chunked", b"x\r\nTransfer-Encoding: x",
            b"chunked\r\nX: y\r\ntransfer-encoding: chunked",
            b"chunked\r\nTransfer-Encoding:",
        ],
        lambda value: _post(b"Transfer-Encoding: " + value, body=_CHUNKS),
    ),
)

_refused(
    "name of the encoding",
    _each(
        [
            b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked",
            b" Transfer-Encoding: chunked", b"\tTransfer-Encoding: chunked",
            b"\x00Transfer-Encoding: chunked", b"Transfer-Encoding\x00: chunked",
            b"Transfer-Encoding\x0b: chunked", b"Transfer-Encoding\xa0: chunked",
            b"Transfer Encoding: chunked", b"Transfer-Encoding chunked",
            b"Transfer-Encoding\r\n: chunked", b"Transfer-\r\n Encoding: chunked",
            b"Transfer-Encoding\n: chunked", b"X: y\nTransfer-Encoding: chunked",
            b"X: y\rTransfer-Encoding: chunked",
            b"X: y\r\n\x00\r\nTransfer-Encoding: chunked",
            b"X:\nTransfer-Encoding: chunked", b"\nTransfer-Encoding: chunked",
            b"\rTransfer-Encoding: chunked", b"{Transfer-Encoding: chunked",
        ],
        lambda line: _post(line, body=_CHUNKS),
    ),
)

_accepted(
    "encoding",
    {
        "upper case": (_post(b"TRANSFER-ENCODING: CHUNKED", body=_CHUNKS), _X),
        "mixed case": (_post(b"transfer-Encoding: chUNKed", body=_CHUNKS), _X),
        "no space": (_post(b"Transfer-Encoding:chunked", body=_CHUNKS), _X),
        "spaces around": (
            _post(b"Transfer-Encoding: \t  chunked  ", body=_CHUNKS),
            _X,
        ),
        "similar name": (_post(b"Transfer_Encoding: chunked"), (("POST", "/", b""),)),
        "similar name of the length": (
            _post(b"Content_Length: 5", b"XContent-Length: 5", b"Content-Length-: 5"),
            (("POST", "/", b""),),
        ),
        "TE alone": (_post(b"TE: chunked", b"Content-Length: 1", body=b"x"), _X),
        "Content-Encoding alone": (
            _post(b"Content-Encoding: chunked", b"Content-Length: 1", body=b"x"),
            _X,
        ),
        "chunks on HEAD": (
            _get(_ENCODING, start=b"HEAD / HTTP/1.1") + _CHUNKS,
            (("HEAD", "/", b"x"),),
        ),
        "chunks on DELETE": (
            _get(_ENCODING, start=b"DELETE / HTTP/1.1") + _CHUNKS,
            (("DELETE", "/", b"x"),),
        ),
    },
)

# Lengths.

_refused(
    "length",
    _each(
        [
            b"1,", b",1", b"1,1", b"1, 2", b"1;", b"1\x00", b"\x001", b"\x0b1",
            b"1\x0c", b"1\xa0", b"-0", b"+0", b"- 1", b"--1", b"1-", b"0x0", b"x1",
            b"1x", b"0b1", b"1h", b"1.0", b"1e0", b"1_0", b"'1'", b'"1"', b"\xd9\xa1",
            b"\xb9", b"one", b"NaN", b"\r\n 1", b"1\r\n\t", b"1\r\n 0", b"\n1", b"\r1",
            b"1\r", b"1\n", b"1\r\nContent-Length: 2", b"2\r\nContent-Length: 1",
            b"0\r\nContent-Length: 1", b"1\r\nX: y\r\ncontent-length: 1",
            b"1\r\nContent-Length:", b"1\r\nContent-Length: x",
            b"1\r\nContent-Length: -1",
        ],
        lambda value: _post(b"Content-Length: " + value, body=b"x"),
    ),
)

_refused(
    "name of the length",
    _each(
        [
            b"Content-Length : 1", b"Content-Length\t: 1", b" Content-Length: 1",
            b"\tContent-Length: 1", b"Content-Length\x00: 1", b"\x00Content-Length: 1",
            b"Content Length: 1", b"Content-Length 1", b"X: y\nContent-Length: 1",
            b"X: y\rContent-Length: 1", b"X: y\r\n \r\nContent-Length: 1",
        ],
        lambda line: _post(line, body=b"x"),
    ),
)

# Numbers that are 1 if truncated to 64 or 32 bits.
_refused(
    "length that wraps",
    _each(
        [b"18446744073709551617", b"4294967297", b"9223372036854775809"],
        lambda value: _post(b"Content-Length: " + value, body=b"x"),
    ),
    400,
    413,
)

_accepted(
    "length",
    {
        # Before 0.8, httptools refuses a tab behind the number.
        "spaces around": (_post(b"Content-Length: \t 1  ", body=b"x"), _X),
        "no space": (_post(b"Content-Length:1", body=b"x"), _X),
        "many zeros": (
            _post(b"Content-Length: " + b"0" * 19 + b"1", body=b"x"),
            _X,
        ),
        "zero": (_post(b"Content-Length: 0"), (("POST", "/", b""),)),
        "zeros": (_post(b"Content-Length: 000"), (("POST", "/", b""),)),
        "a request as body": (
            _post(b"Content-Length: %d" % len(_INNER), body=_INNER),
            (("POST", "/", _INNER),),
        ),
        "a request as body of GET": (
            _get(b"Content-Length: %d" % len(_INNER)) + _INNER,
            (("GET", "/", _INNER),),
        ),
        "a request as body of HEAD": (
            _get(b"Content-Length: %d" % len(_INNER), start=b"HEAD / HTTP/1.1")
            + _INNER,
            (("HEAD", "/", _INNER),),
        ),
        "chunks as body": (
            _post(b"Content-Length: %d" % len(_CHUNKS), body=_CHUNKS),
            (("POST", "/", _CHUNKS),),
        ),
        "a request in chunks": (
            _chunked(_chunks(_INNER)),
            (("POST", "/", _INNER),),
        ),
        "end of line behind the body": (
            _post(b"Content-Length: 1", body=b"x\r\n"),
            _X,
        ),
        "no framing": (_post(), (("POST", "/", b""),)),
        "two ends of line behind the body": (
            _post(b"Content-Length: 1", body=b"x\r\n\r\n"), _X
        ),
        "two ends of line before the request": (b"\r\n\r\n" + _get(), _GET),
    },
)

FRAMINGS["length: a byte too many"] = Framing(
    # The byte belongs to the method of the next request.
    _post(b"Content-Length: 1", body=b"x("), _X, (400, 501)
)
FRAMINGS["length: bare LF behind the body"] = Framing(
    _post(b"Content-Length: 1", body=b"x\n"), _X, (400, 501)
)

# Ends of lines, and folded lines.

_refused(
    "end of line",
    {
        "LF after the request line": b"GET / HTTP/1.1\nHost: test\r\n\r\n",
        "CR after the request line": b"GET / HTTP/1.1\rHost: test\r\n\r\n",
        "LF after a field": b"GET / HTTP/1.1\r\nHost: test\nX: y\r\n\r\n",
        "LF after the last field": b"GET / HTTP/1.1\r\nHost: test\n\r\n",
        "LF after the fields": b"GET / HTTP/1.1\r\nHost: test\r\n\n",
        "CR after the fields": b"GET / HTTP/1.1\r\nHost: test\r\n\r",
        "LF everywhere": b"GET / HTTP/1.1\nHost: test\n\n",
        "CR everywhere": b"GET / HTTP/1.1\rHost: test\r\r",
        "LF CR everywhere": b"GET / HTTP/1.1\n\rHost: test\n\r\n\r",
        "CR CR LF after the request line": b"GET / HTTP/1.1\r\r\nHost: test\r\n\r\n",
        "CR CR LF after a field": _get(b"X: y\r", b"A: b"),
        "CR CR LF after the last field": _get(b"X: y\r"),
        "CR CR LF after the fields": b"GET / HTTP/1.1\r\nHost: test\r\n\r\r\n",
        "CR CR LF CR LF": b"GET / HTTP/1.1\r\nHost: test\r\r\n\r\n",
        "LF in the target": _get(start=b"GET /\n HTTP/1.1"),
        "CR in the target": _get(start=b"GET /\r HTTP/1.1"),
        "LF before the request": b"\n" + _get(),
        "CR before the request": b"\r" + _get(),
        "CR CR LF before the request": b"\r\r\n" + _get(),
        "LF in a name": _get(b"X\nY: z"),
        "CR in a name": _get(b"X\rY: z"),
        "CR before the colon": _get(b"X\r: y"),
        "CR after the colon": _get(b"X:\r y"),
        "CR CR in a value": _get(b"X: y\r\rz"),
        "request behind LF LF": _get(b"X: y\n\nGET /inner HTTP/1.1", b"A: b"),
        "request behind CR CR": _get(b"X: y\r\rGET /inner HTTP/1.1", b"A: b"),
        "request behind LF CR LF": _get(b"X: y\n\r\nGET /inner HTTP/1.1", b"A: b"),
        "unicode line separator in a name": _get(b"X\xe2\x80\xa8Y: z"),
        "NEL in a name": _get(b"X\x85Y: z"),
    },
)

_refused(
    "folded line",
    {
        "space": _get(b"X: y", b" z"),
        "tab": _get(b"X: y", b"\tz"),
        "only a space": _get(b"X: y", b" "),
        "only a tab": _get(b"X: y", b"\t"),
        "of an empty value": _get(b"X:", b" z"),
        "like a field": _get(b"X: y", b" Content-Length: 5"),
        "many": _get(b"X: y", *[b" z"] * 20),
        "in the Host": _hosted(b"Host:", b" test"),
        "behind the Host": _hosted(b"Host: test", b" .example"),
        "before the fields": _hosted(b" Host: test"),
        "space before the end": b"GET / HTTP/1.1\r\nHost: test\r\n \r\n\r\n",
        "after the request line": b"GET / HTTP/1.1\r\n \r\nHost: test\r\n\r\n",
    },
)

# Names and values.

_refused(
    "name",
    _each(
        [b"X%cY" % char for char in b'"(),/;<=>?@[\\]{}\x00\x01\x0b\x1f\x7f\x80\xff']
        + [
            b"", b" ", b"\t", b"X ", b"X\t", b" X", b"\x0bX", b"X\x00",
            b"\xef\xbb\xbfX",
        ],
        lambda name: _get(name + b": y"),
    ),
)

_refused(
    "value",
    _each(
        [b"%c" % char for char in b"\x00\x01\x02\x07\x08\x0b\x0c\x0e\x1a\x1b\x1f\x7f"]
        + [b"\x00y", b"y\x00", b"y\x00z", b"y\x0b", b"\x0cy"],
        lambda value: _get(b"X: " + value),
    ),
)

_refused(
    "field without a colon",
    {
        "word": _get(b"X"),
        "words": _get(b"X y"),
        "request line": _get(b"GET /inner HTTP/1.1"),
        "after others": _get(b"X: y", b"A"),
    },
)

_accepted(
    "field",
    {
        "no value": (_get(b"X:", b"Y: ", b"Z: \t "), _GET),
        "no space": (_get(b"X:y"), _GET),
        "many spaces": (_get(b"X:" + b" \t" * 500 + b"y" + b"\t " * 500), _GET),
        "tab in a value": (_get(b"X: y\tz"), _GET),
        "colons": (_get(b"X: :y::z:"), _GET),
        "two colons": (_get(b"X:: y"), _GET),
        "bytes of Latin-1 and UTF-8": (_get(b"X: \xe9 \xc3\xa9 \x80\xff"), _GET),
        "odd letters in a name": (_get(b"!#$%&'*+-.^_`|~09aZ: y"), _GET),
        "request as a value": (_get(b"X: GET /inner HTTP/1.1"), _GET),
        "the same name often": (_get(*[b"X: y"] * 50), _GET),
    },
)

# Request lines.

_refused(
    "request line",
    _each(
        [
            b" GET / HTTP/1.1", b"\tGET / HTTP/1.1", b"\x00GET / HTTP/1.1",
            b"\xef\xbb\xbfGET / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET / HTTP/1.1\t",
            b"GET /  HTTP/1.1", b"GET /\tHTTP/1.1", b"GET\x0b/ HTTP/1.1",
            b"GET\x0c/ HTTP/1.1", b"GET\xa0/ HTTP/1.1", b"GET /\xa0HTTP/1.1",
            b"GET / x HTTP/1.1", b"GET / HTTP/1.1 HTTP/1.1", b"GET / HTTP/1.1 x",
            b"GET", b"GET ", b"GET /", b"GET / ", b"GET HTTP/1.1", b"/ HTTP/1.1",
            b" / HTTP/1.1", b": x",
        ],
        lambda start: _get(start=start),
    ),
)

_refused(
    "method",
    _each(
        [b"GET,", b"G:T", b'"GET"', b"GET\x00", b"G\x01T", b"G\x7fT", b"G@T", b"[GET"],
        lambda method: _get(start=method + b" / HTTP/1.1"),
    ),
    400,
    501,
)

# Methods are case-sensitive, and a resource may have its own.
_accepted(
    "unknown method",
    {
        method: (_get(start=method.encode() + b" / HTTP/1.1"), ((method, "/", b""),))
        for method in ("get", "GETT", "XGET", "BREW", "X" * 100, "!#$%&'*+-.^_`|~")
    },
)

_refused(
    "version",
    _each(
        [
            b"", b"HTTP", b"HTTP/", b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/11",
            b"HTTP/1.1.1", b"HTTP/01.1", b"HTTP/1.01", b"HTTP/1,1", b"HTTP/1 .1",
            b"HTTP/ 1.1", b"HTTP /1.1", b"HTTP/+1.1", b"HTTP/-1.1", b"HTTP/1.x",
            b"HTTP/1.1x", b"HTTP/1.1\x00", b"HTTP/1.1\x0b", b"HTTP/1.3", b"HTTP/0.0",
            b"HTTP/1.9", b"HTTP/2.0", b"HTTP/2", b"HTTP/3.0", b"HTTP/9.9", b"Http/1.1",
            b"hTTP/1.1", b"HTTPS/1.1", b"XHTTP/1.1", b"HTP/1.1", b"ICE/1.0",
            b"RTSP/1.0", b"HTTP\\1.1", b"HTTP/1\xb71", b"HTTP/\xef\xbc\x91.1",
        ],
        lambda version: _get(start=b"GET / " + version),
    ),
)

_refused(
    "other protocols",
    {
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/2 with a host": _get(start=b"PRI * HTTP/2.0"),
        "RTSP": _get(start=b"DESCRIBE / RTSP/1.0"),
        "ICE": _get(start=b"SOURCE / ICE/1.0"),
        "HTTP/0.9": b"GET /\r\n",
        "FTP": b"USER test\r\nPASS test\r\n\r\n",
        "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "PROXY": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + _get(),
        "a response": b"HTTP/1.1 200 OK\r\nHost: test\r\n\r\n",
    },
    400,
    501,
)

_refused(
    "target",
    _each(
        [
            b"?x", b"#x", b"./x", b"../x", b"x/y", b"\\x", b"*", b"*/", b"test",
            b"test:80", b":80", b"http:", b"http:/", b"http:x", b"http:/x", b"http://",
            b"http:///", b"http://?x", b"http//test/", b"://test/", b"ftp://test/",
            b"ws://test/", b"file:///etc/passwd", b"javascript:x", b"http://te st/",
            b"http://te\x00st/", b"http://te\xe9st/", b"http://test:x/", b"/\x00",
            b"/\x01", b"/\x1f", b"/\x7f", b"/\x80", b"/\xff", b"/?\x00", b"/?\xe9",
            b"/a\x0bb", b"/a\tb",
        ],
        lambda target: _get(start=b"GET " + target + b" HTTP/1.1"),
    ),
)

_refused(
    "target of another kind",
    {
        "CONNECT with a path": _get(start=b"CONNECT / HTTP/1.1"),
        "CONNECT with a length": _get(
            b"Content-Length: 1", start=b"CONNECT test:80 HTTP/1.1"
        )
        + b"x",
        "OPTIONS of an authority": _get(start=b"OPTIONS test:80 HTTP/1.1"),
        "OPTIONS of two stars": _get(start=b"OPTIONS ** HTTP/1.1"),
        "POST of a star": _get(start=b"POST * HTTP/1.1"),
        "PUT of an authority": _get(start=b"PUT test:80 HTTP/1.1"),
    },
)

_accepted(
    "target",
    {
        repr(target)[1:]: (
            _get(start=b"GET " + target + b" HTTP/1.1"),
            (("GET", target.decode(), b""),),
        )
        for target in (
            b"//", b"//test/x", b"/../x", b"/./", b"/?", b"/?a?b=c&d", b"/;a=b",
            b"/:80", b"/@x", b"/*", b"/%00%0d%0a%20%2f", b"/%", b"/%zz",
            b"/a=b!$'(),*+",
        )
    },
)

_accepted(
    "absolute target",
    {
        "path": (_get(start=b"GET http://test/x HTTP/1.1"), (("GET", "/x", b""),)),
        "https": (_get(start=b"GET https://test/x HTTP/1.1"), (("GET", "/x", b""),)),
        "mixed case": (
            _get(start=b"GET hTTp://TEST/x HTTP/1.1"),
            (("GET", "/x", b""),),
        ),
        "port": (_get(start=b"GET http://test:8080/x HTTP/1.1"), (("GET", "/x", b""),)),
        "address": (_get(start=b"GET http://[::1]/x HTTP/1.1"), (("GET", "/x", b""),)),
        "body": (
            _get(b"Content-Length: 1", start=b"POST http://test/ HTTP/1.1") + b"x",
            _X,
        ),
    },
)

# Upgrades are not offered, so these are plain requests.

_UPGRADE = (b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")

_WEBSOCKET = (
    b"Connection: keep-alive, Upgrade", b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)

_accepted(
    "upgrade",
    {
        "websocket": (_get(*_WEBSOCKET), _GET),
        "websocket with a length": (
            _post(*_WEBSOCKET, b"Content-Length: 5", body=b"hello"),
            _HELLO,
        ),
        "h2c": (_get(*_UPGRADE), _GET),
        "h2c with a length": (
            _post(*_UPGRADE, b"Content-Length: 5", body=b"hello"),
            _HELLO,
        ),
        "h2c with chunks": (_post(*_UPGRADE, _ENCODING, body=_CHUNKS), _X),
        "h2c with a request as body": (
            _post(*_UPGRADE, b"Content-Length: %d" % len(_INNER), body=_INNER),
            (("POST", "/", _INNER),),
        ),
        "h2c on GET with a length": (
            _get(*_UPGRADE, b"Content-Length: 5") + b"hello",
            (("GET", "/", b"hello"),),
        ),
        "Upgrade alone": (
            _post(b"Upgrade: h2c", b"Content-Length: 5", body=b"hello"),
            _HELLO,
        ),
        "Connection alone": (
            _post(b"Connection: Upgrade", b"Content-Length: 5", body=b"hello"),
            _HELLO,
        ),
        "TLS": (_get(b"Connection: Upgrade", b"Upgrade: TLS/1.2"), _GET),
        "unknown method": (
            _get(*_UPGRADE, b"Content-Length: 1", start=b"BREW / HTTP/1.1") + b"x",
            (("BREW", "/", b"x"),),
        ),
        "HTTP/1.0 with a length": (
            _get(
                b"Connection: Upgrade, keep-alive", b"Upgrade: h2c",
                b"Content-Length: 1", start=b"POST / HTTP/1.0",
            ) + b"x",
            _X,
        ),
    },
)

_refused(
    "upgrade",
    {
        "h2c with two framings": _post(*_UPGRADE, _ENCODING, _LENGTH % 4) + _CHUNKS,
        "h2c with a wrong length": _post(*_UPGRADE, b"Content-Length: x"),
        "CONNECT": _get(*_UPGRADE, start=b"CONNECT / HTTP/1.1"),
        "h2c with an odd host": _hosted(b"Host: test/", *_UPGRADE),
        "h2c with an odd encoding": _post(*_UPGRADE, b"Transfer-Encoding: x, chunked"),
        "websocket with a wrong chunk": _post(*_WEBSOCKET, _ENCODING, body=b"g\r\n"),
    },
)

# Hosts.

_refused(
    "host",
    _each(
        [
            b"te st", b"test test", b"te\tst", b"test,other", b"test, other",
            b"test, test", b",test", b"test,", b"test/", b"test/path", b"/test",
            b"http://test", b"//test", b"test?x", b"test#x", b"test\\x", b"user@test",
            b"user:word@test", b"@test", b"test@", b"test:x", b"test:80x", b"test:-80",
            b"test:+80", b"test: 80", b"test :80", b"test:80:80", b"test::80",
            b"test:0x50", b"te\x00st", b"te\x01st", b"te\x7fst", b"te\x80st",
            b"te\xe9st", b"te\xc3\xa9st", b'"test"', b"<test>", b"te^st", b"te`st",
            b"te{st}", b"te|st", b"[::1", b"::1", b"[::1]x", b"[::1]:x", b"[test]",
            b"[]", b"x[::1]", b"test\r\nHost: test", b"test\r\nhost: other",
            b"test\r\nX: y\r\nHOST: test", b"test\r\nHost:", b"\r\nHost: test",
        ],
        lambda value: _hosted(b"Host: " + value),
    ),
)

_refused(
    "no host",
    {
        "no fields": b"GET / HTTP/1.1\r\n\r\n",
        "other fields": _hosted(b"X: y", b"Hosts: test", b"X-Host: test"),
        "absolute target": _hosted(b"X: y").replace(b" / ", b" http://test/ "),
        "OPTIONS": b"OPTIONS * HTTP/1.1\r\n\r\n",
        "a length": _hosted(b"Content-Length: 1") + b"x",
    },
)

_accepted(
    "host",
    {
        repr(value)[1:]: (_hosted(b"Host: " + value), _GET)
        for value in (
            b"TEST", b"test:80", b"test:", b"test.example.", b"te-st.te_st",
            b"xn--tst-qla.example", b"192.0.2.1", b"192.0.2.1:8080", b"[::1]",
            b"[::1]:8080", b"[2001:db8::192.0.2.1]", b"\t test \t",
        )
    },
)

# Chunks.

_refused(
    "size of a chunk",
    _each(
        [
            b" 1", b"\t1", b"1\t", b"1 1", b"\r\n1", b"\n1", b"\r1", b"1\r", b"1\r\n",
            b"1\n", b"g", b"1g", b"1h", b"0X1", b"x1", b"1x", b"#1", b"'1'", b"-0",
            b"+0", b"--1", b"1.0", b"1,0", b"1:", b"1:a=b", b"1_", b"_1", b"1\x00",
            b"\x001", b"1\x0b", b"1\xa0", b"\xd9\xa1", b"\xef\xbc\x91", b"\xb9",
        ],
        lambda size: _chunked(size + b"\r\nx\r\n0\r\n\r\n"),
    ),
)

_refused(
    "size of a chunk that wraps",
    _each(
        [b"100000001", b"8000000000000001", b"10000000000000001", b"f" * 16, b"f" * 17],
        lambda size: _chunked(size + b"\r\nx\r\n0\r\n\r\n" + b"x" * 100_000),
    ),
    400,
    413,
)

_refused(
    "end of a chunk",
    {
        "LF after the size": _chunked(b"1\nx\r\n0\r\n\r\n"),
        "CR after the size": _chunked(b"1\rx\r\n0\r\n\r\n"),
        "CR CR LF after the size": _chunked(b"1\r\r\nx\r\n0\r\n\r\n"),
        "LF LF after the size": _chunked(b"1\n\nx\r\n0\r\n\r\n"),
        "LF after the data": _chunked(b"1\r\nx\n0\r\n\r\n"),
        "CR after the data": _chunked(b"1\r\nx\r0\r\n\r\n"),
        "CR CR LF after the data": _chunked(b"1\r\nx\r\r\n0\r\n\r\n"),
        "nothing after the data": _chunked(b"1\r\nx0\r\n\r\n"),
        "two bytes after the data": _chunked(b"1\r\nxyz0\r\n\r\n"),
        "space after the data": _chunked(b"1\r\nx \r\n0\r\n\r\n"),
        "a byte missing": _chunked(b"2\r\nx\r\n0\r\n\r\n"),
        "empty line after the chunk": _chunked(b"1\r\nx\r\n\r\n0\r\n\r\n"),
        "LF everywhere": _chunked(b"1\nx\n0\n\n"),
        "no last chunk": _chunked(b"1\r\nx\r\n\r\n"),
        "no last chunk and no empty line": _chunked(b"1\r\nx\r\n"),
    },
)

_refused(
    "end of the chunks",
    _each(
        [
            b"0\r\n\n", b"0\n\r\n", b"0\n\n", b"0\r\r", b"0\r\n\r", b"0\r\n\r\r\n",
            b"0\r\r\n\r\n", b"0\r\n", b"0\r\n \r\n\r\n", b"0\r\nx\r\n", b"0 \r\n\r\n",
            b"0\t\r\n\r\n", b"00x\r\n\r\n", b"0\x00\r\n\r\n", b"0\r\n\x00\r\n",
            b"\r\n\r\n",
        ],
        lambda end: _chunked(b"1\r\nx\r\n" + end),
    ),
)

_refused(
    "extension of a chunk",
    _each(
        [
            b" ;a=b", b";a=b\x00", b";a\x00", b";a=\x01", b";a=\x7f", b";a=b\n",
            b";a\n", b";\n", b";a=b\nx", b";a\rb", b";a=b\r", b";a=\rb", b';a="b\n"',
            b';a="b\r"', b';a="\x00"', b";a=b\n1\nx",
        ],
        lambda extension: _chunked(b"1" + extension + b"\r\nx\r\n0\r\n\r\n"),
    ),
)

_refused(
    "extension of the last chunk",
    _each(
        [b";a\n", b";a=b\n", b";a\r", b";\x00", b";a=\n\r\nx", b" ;a"],
        lambda extension: _chunked(b"1\r\nx\r\n0" + extension + b"\r\n\r\n"),
    ),
)

_refused(
    "overlong chunks",
    {
        "extension": _chunked(b"1;a=" + b"b" * 100_000 + b"\r\nx\r\n0\r\n\r\n"),
        "name of an extension": _chunked(
            b"1;" + b"b" * 100_000 + b"\r\nx\r\n0\r\n\r\n"
        ),
        "endless extension": _chunked(b"1;a=" + b"b" * 100_000),
        "extension of the last chunk": _chunked(
            b"1\r\nx\r\n0;a=" + b"b" * 100_000 + b"\r\n\r\n"
        ),
        "many extensions": _chunked(b"1" + b";a=b" * 25_000 + b"\r\nx\r\n0\r\n\r\n"),
        "extensions of many chunks": _chunked(
            (b"1;a=" + b"b" * 500 + b"\r\nx\r\n") * 200 + b"0\r\n\r\n"
        ),
        "zeros": _chunked(b"0" * 100_000 + b"1\r\nx\r\n0\r\n\r\n"),
        "endless zeros": _chunked(b"0" * 100_000),
        "trailer": _chunked(b"0\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"),
        "endless trailer": _chunked(b"0\r\nX: " + b"y" * 100_000),
        "name of a trailer": _chunked(b"0\r\n" + b"X" * 100_000 + b": y\r\n\r\n"),
        "many trailers": _chunked(b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n"),
    },
    400,
    413,
    431,
)

_refused(
    "trailer",
    _each(
        [
            b"X", b"X y", b": y", b" X: y", b"\tX: y", b"X : y", b"X\t: y", b"X Y: z",
            b"X\x00: y", b"X: y\x00", b"X: \x01", b"X: \x7f", b"X: y\n", b"X: y\nZ: a",
            b"X: y\rZ: a", b"X: y\r", b"X\n: y", b"X: y\r\n z", b"X: y\r\n\tz",
            b"X: y\r\n ", b"X: y\n\n", b"X: y\n\nGET /inner HTTP/1.1", b"X: y\r\nZ",
            b"\xff: y", b"Content-Length: 5", b"Transfer-Encoding: chunked",
        ],
        lambda trailer: _chunked(b"1\r\nx\r\n0\r\n" + trailer + b"\r\n\r\n"),
    ),
)

_accepted(
    "chunks",
    {
        repr(body)[1:]: (_chunked(body), (("POST", "/", seen),))
        for body, seen in {
            b"0\r\n\r\n": b"",
            b"000\r\n\r\n": b"",
            b"01\r\nx\r\n0\r\n\r\n": b"x",
            b"0000000000000001\r\nx\r\n0\r\n\r\n": b"x",
            b"a\r\n0123456789\r\n0\r\n\r\n": b"0123456789",
            b"A\r\n0123456789\r\n0\r\n\r\n": b"0123456789",
            b"0b\r\n0\r\n\r\n0\r\n\r\nx\r\n0\r\n\r\n": b"0\r\n\r\n0\r\n\r\nx",
            b"2\r\n\r\n\r\n0\r\n\r\n": b"\r\n",
            b"1\r\n\n\r\n1\r\n\r\r\n0\r\n\r\n": b"\n\r",
            b"1\r\nx\r\n1\r\ny\r\n1\r\nz\r\n0\r\n\r\n": b"xyz",
            b"1;a\r\nx\r\n0\r\n\r\n": b"x",
            b"1;a=b;c;d=e\r\nx\r\n0;f=g\r\n\r\n": b"x",
            b'1;a="b c;=,"\r\nx\r\n0\r\n\r\n': b"x",
            b"0\r\nX:\r\n\r\n": b"",
            b"0\r\nX: y\r\nX: z\r\nA:b\r\n\r\n": b"",
            b"1\r\nx\r\n0\r\nX: GET /inner HTTP/1.1\r\n\r\n": b"x",
        }.items()
    },
)

# The last request of a connection: everything behind it is discarded.

for _name, _data in {
    "close": _get(b"Connection: close"),
    "close in upper case": _get(b"CONNECTION: CLOSE"),
    "close in a list": _get(b"Connection: x, close"),
    "close in a list without spaces": _get(b"Connection: close,x"),
    "close among others": _get(b"Connection: x", b"Connection: close"),
    "close and keep-alive": _get(b"Connection: keep-alive, close"),
    "close before keep-alive": _get(b"Connection: close", b"Connection: keep-alive"),
    "HTTP/1.0": _get(start=b"GET / HTTP/1.0"),
    "HTTP/1.0 without a host": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/1.0 and close": _get(b"Connection: close", start=b"GET / HTTP/1.0"),
    "HTTP/1.0 with a similar word": _get(
        b"Connection: keep-alives", start=b"GET / HTTP/1.0"
    ),
}.items():
    FRAMINGS[f"last request: {_name}"] = Framing(_data, _GET, closes=True)

FRAMINGS["last request: close with a length"] = Framing(
    _post(b"Connection: close", b"Content-Length: 5", body=b"hello"),
    _HELLO,
    closes=True,
)
FRAMINGS["last request: close with chunks"] = Framing(
    _post(b"Connection: close", _ENCODING, body=_CHUNKS), _X, closes=True
)
FRAMINGS["last request: nonsense behind close"] = Framing(
    _get(b"Connection: close") + b"\x00nonsense\r\n\r\n", _GET, closes=True
)

_accepted(
    "stays",
    {
        "keep-alive": (_get(b"Connection: keep-alive"), _GET),
        "similar word": (_get(b"Connection: closes, xclose"), _GET),
        "word in quotes": (_get(b'Connection: "close"'), _GET),
        "close in another field": (_get(b"X-Connection: close"), _GET),
        "HTTP/1.0 with keep-alive": (
            _get(b"Connection: keep-alive", start=b"GET / HTTP/1.0"),
            _GET,
        ),
        "HTTP/1.0 with keep-alive and a length": (
            _get(
                b"Connection: Keep-Alive",
                b"Content-Length: 5",
                start=b"POST / HTTP/1.0",
            )
            + b"hello",
            _HELLO,
        ),
        "fields of the connection": (
            _post(b"Connection: Content-Length, Host", b"Content-Length: 1", body=b"x"),
            _X,
        ),
    },
)
