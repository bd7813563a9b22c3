"""
From where a request comes: from whom, over what, and from which site.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from hmac import compare_digest
from http import HTTPStatus
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from twisted.internet.address import IPv4Address as IPv4Peer
from twisted.internet.address import IPv6Address as IPv6Peer
from twisted.internet.address import UNIXAddress
from twisted.web.server import Request

from .problems import HTTPError

__all__ = [
    "CrossSite",
    "Proxies",
    "addressOf",
    "checkOrigin",
    "isForwarded",
    "isLocal",
    "peerOf",
]

_UNIX: Final = "unix"
"""
How a proxy is named that comes over a socket which is a file.
"""

_MOST_HOPS: Final = 32
"""
How many proxies a request may have come through.
"""

_SAFE: Final = frozenset([b"GET", b"HEAD", b"OPTIONS", b"TRACE"])
"""
Methods that change nothing, RFC 9110, 9.2.1.
"""

_AUTHORITY: Final = re.compile(
    rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~%!$&'()*+,;=-]{1,255})"
    rb"(?::([0-9]{1,5}))?"
)
"""
A host, and perhaps a port.
"""

_FORWARDED: Final = (b"X-Forwarded-Proto", b"X-Forwarded-For", b"Forwarded")

_PORTS: Final = {b"http": 80, b"https": 443}

_HOP: Final = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}")
"""
An address with what some proxies write around it.
"""


class CrossSite(HTTPError):
    """
    A request that changes something may have been made by another site, with the
    cookies of somebody who knows nothing of it.
    """

    status = HTTPStatus.FORBIDDEN


@lru_cache(1024)
def addressOf(text: str) -> IPv4Address | IPv6Address | None:
    """
    @param text: An IP address, as text.
    @return: The address; that of IPv4 where it is one written as one of IPv6.
        L{None} if the text is none.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def peerOf(request: Request) -> str:
    """
    @param request: A request.
    @return: The IP address at the other end of its connection, as text; empty if
        it has none, as at a UNIX socket.
    """
    peer = request.getClientAddress()
    return peer.host if isinstance(peer, (IPv4Peer, IPv6Peer)) else ""


def isLocal(request: Request) -> bool:
    """
    @param request: A request.
    @return: Whether it was made on this machine, to what a browser on it takes
        for this machine too: so that no other site can have a name for it.
    """
    peer = addressOf(peerOf(request))
    if peer is None or not peer.is_loopback:
        return False
    hosts = request.requestHeaders.getRawHeaders(b"Host", [])
    if len(hosts) != 1:
        return False
    return _isLocalName(hosts[0])


def isForwarded(request: Request) -> bool:
    """
    @param request: A request.
    @return: Whether a proxy seems to have passed it on, from wherever it was made.
    """
    headers = request.requestHeaders
    return any(headers.hasHeader(name) for name in _FORWARDED)


@lru_cache(256)
def _isLocalName(authority: bytes) -> bool:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return False
    host = match[1].decode("ascii").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = addressOf(host.strip("[]"))
    return address is not None and address.is_loopback


class Proxies:
    """
    The proxies whose word is taken for what they were asked.
    """

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        """
        @param trusted: Their addresses, or networks with nobody else in them, such
            as C{192.0.2.7} or C{fd00::/8}; C{unix} for all that come over a UNIX
            socket.
        @raise ValueError: One of them is something else.
        """
        if isinstance(trusted, str):
            raise ValueError("trusted proxies are a sequence, not one text")
        self._overFiles = _UNIX in trusted
        self._networks = [_networkOf(each) for each in trusted if each != _UNIX]

    def isSecure(self, request: Request) -> bool:
        """
        @param request: A request.
        @return: Whether its client has made it over TLS: to a trusted proxy if
            that says so, otherwise to this server.
        """
        said = request.requestHeaders.getRawHeaders(b"X-Forwarded-Proto")
        if said and self._isTrusted(request):
            # Of several proxies, each has to have been asked over TLS.
            hops = b",".join(said).split(b",")
            return all(hop.strip(b" \t").lower() == b"https" for hop in hops)
        return bool(request.isSecure())

    def peerOf(self, request: Request) -> str:
        """
        @param request: A request.
        @return: The IP address from which it comes, as text: the last one that a
            trusted proxy has named and that is none itself. Empty if there is none.
        """
        peer = peerOf(request)
        said = request.requestHeaders.getRawHeaders(b"X-Forwarded-For")
        if not said or not self._isTrusted(request):
            return peer
        # Each proxy adds one behind what it was sent, which may be invented.
        hops = b",".join(said).decode("latin-1").rsplit(",", _MOST_HOPS)
        for hop in reversed(hops):
            address = addressOf(_bare(hop.strip(" \t")))
            if address is None:
                break
            peer = str(address)
            if not self._includes(address):
                break
        return peer

    def _isTrusted(self, request: Request) -> bool:
        peer = request.getClientAddress()
        if isinstance(peer, UNIXAddress):
            return self._overFiles
        address = addressOf(peerOf(request))
        return address is not None and self._includes(address)

    def _includes(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def checkOrigin(request: Request, isSecure: bool, token: str | None = None) -> None:
    """
    Refuse a request that another site may have had somebody's browser make.

    What cannot change anything passes. Otherwise the browser has to have said that
    the request is the site's own, or its user's; one that says nothing is believed
    if it has sent, as C{X-CSRF-Token}, what only the site's own pages know.

    @param request: The request.
    @param isSecure: Whether its client has made it over TLS, see
        L{Proxies.isSecure}.
    @param token: What its session has given to the site's own pages; L{None} if
        there is no such thing.
    @raise CrossSite: It may have been made by another site.
    """
    if request.method in _SAFE:
        return
    headers = request.requestHeaders
    sites = headers.getRawHeaders(b"Sec-Fetch-Site")
    if sites is not None:
        if sites not in ([b"same-origin"], [b"none"]):
            raise CrossSite("The request was made by another site")
        return
    origins = headers.getRawHeaders(b"Origin")
    if origins is not None:
        own = _ownOrigin(headers.getRawHeaders(b"Host", []), isSecure)
        if own is None or len(origins) != 1 or _originOf(origins[0]) != own:
            raise CrossSite("The request was made by another site")
        return
    tokens = headers.getRawHeaders(b"X-CSRF-Token", [])
    if not token or len(tokens) != 1 or not compare_digest(tokens[0], token.encode()):
        raise CrossSite(
            "The request does not say which site has made it: send Origin, or the "
            "token of the session as X-CSRF-Token"
        )


_Origin = tuple[bytes, bytes, int]


def _ownOrigin(hosts: Sequence[bytes], isSecure: bool) -> _Origin | None:
    """
    @return: The origin that was asked; L{None} if that is not clear.
    """
    if len(hosts) != 1:
        return None
    scheme = b"https" if isSecure else b"http"
    return _originOf(scheme + b"://" + hosts[0])


def _originOf(text: bytes) -> _Origin | None:
    """
    @return: The scheme, host and port of an origin; L{None} if it is none of the
        web, such as C{null}.
    """
    scheme, _, authority = text.partition(b"://")
    port = _PORTS.get(scheme)
    match = _AUTHORITY.fullmatch(authority)
    if port is None or match is None:
        return None
    if match[2] is not None:
        port = int(match[2])
    return scheme, match[1].lower(), port


def _bare(hop: str) -> str:
    """
    @return: An address without a port.
    """
    match = _HOP.fullmatch(hop)
    return hop if match is None else match[1] or match[2] or ""


def _networkOf(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"no trusted proxy: {error}") from None
