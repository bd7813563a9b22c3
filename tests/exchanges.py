"""
Single requests for tests, with any peer and headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from zope.interface import directlyProvides

__all__ = ["SOMEBODY", "exchange", "setCookies"]

SOMEBODY = "192.0.2.1"
"""
The address of a remote client.
"""


def exchange(
    *headers: tuple[str, str | bytes],
    peer: str | IAddress = SOMEBODY,
    secure: bool = False,
    method: bytes = b"GET",
) -> Request:
    """
    @param headers: The headers; names may be repeated.
    @param peer: The address of the client.
    @param secure: Whether the client uses TLS.
    @param method: The method.
    @return: A request whose response has not begun.
    """
    if isinstance(peer, str):
        kind: Any = IPv6Address if ":" in peer else IPv4Address
        peer = kind("TCP", peer, 54321)
    transport = StringTransport(peerAddress=peer)
    channel: Any = HTTPChannel()
    channel.makeConnection(transport)
    if secure:
        directlyProvides(transport, ISSLTransport)
    channel.site = Site(Resource(), reactor=Clock())
    request = Request(channel)
    channel.requests.append(request)
    request.method = method
    request.uri, request.clientproto = b"/", b"HTTP/1.1"
    for name, value in headers:
        raw = value if isinstance(value, bytes) else value.encode("ascii")
        request.requestHeaders.addRawHeader(name.encode("ascii"), raw)
    return request


def setCookies(request: Request) -> Sequence[bytes]:
    """
    Send a response.

    @return: The cookies in the response.
    """
    request.setHeader(b"Content-Length", b"0")
    request.write(b"")
    sent: Any = request.transport
    lines = sent.value().split(b"\r\n")
    begin = b"Set-Cookie: "
    return [line.removeprefix(begin) for line in lines if line.startswith(begin)]
