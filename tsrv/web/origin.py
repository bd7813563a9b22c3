"""
The origin of a request: its client, its transport, and the site that sent it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from hmac import compare_digest
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from .problems import HTTPError

__all__ = [
    "CrossSite",
    "Proxies",
    "addressOf",
    "checkOrigin",
    "isLocal",
    "peerOf",
]

MAX_PROXIES: Final = 32
"""
Maximum number of proxies in front of the server.
"""

# Methods that change nothing (RFC 9110, 9.2.1).
_SAFE: Final = frozenset([b"GET", b"HEAD", b"OPTIONS", b"TRACE"])

# A host and an optional port.
_AUTHORITY: Final = re.compile(
    rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~%!$&'()*+,;=-]{1,255})"
    rb"(?::([0-9]{1,5}))?"
)

_FORWARDED: Final = (b"X-Forwarded-Proto", b"X-Forwarded-For", b"Forwarded")

_PORTS: Final = {b"http": 80, b"https": 443}

# Some proxies write an address in brackets, or with a port.
_HOP: Final = re.compile(r"\A\[(.*)\](?::[0-9]+)?\Z|\A([0-9.]+):[0-9]+\Z")


_FOREIGN: Final = "The request was made by another site"


class CrossSite(HTTPError):
    """
    Another site may have made this request, with the cookies of a visitor (403).
    """

    status = HTTPStatus.FORBIDDEN


@lru_cache(1024)
def addressOf(text: str) -> IPv4Address | IPv6Address | None:
    """
    Parse an IP address. An IPv4-mapped IPv6 address becomes an IPv4 address.

    @param text: The address.
    @return: The address; L{None} if the text is something else.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def peerOf(request: Request) -> str:
    """
    Find the IP address at the other end of the connection, which may be a proxy.

    @param request: A request on this connection.
    @return: The address; empty for a UNIX socket.
    """
    host: str = getattr(request.getClientAddress(), "host", "")
    return host


def isLocal(request: Request) -> bool:
    """
    Find out whether a browser on this machine made a request, without a proxy, to a
    name that always means this machine. Other names do not count, because another site
    may let its name point to this machine.

    @param request: The request.
    @return: Whether the request is local.
    """
    peer, headers = addressOf(peerOf(request)), request.requestHeaders
    if peer is None or not peer.is_loopback or any(map(headers.hasHeader, _FORWARDED)):
        return False
    hosts = headers.getRawHeaders(b"Host", [])
    return len(hosts) == 1 and _isLocalName(hosts[0])


@lru_cache(256)
def _isLocalName(authority: bytes) -> bool:
    match = _AUTHORITY.fullmatch(authority)
    host = match[1].decode("ascii").lower() if match else ""
    address = addressOf(host.strip("[]"))
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback


class Proxies:
    """
    The proxies whose C{X-Forwarded-Proto} and C{X-Forwarded-For} the server trusts.
    """

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        """
        @param trusted: Addresses or networks of the proxies, such as C{192.0.2.7} or
            C{fd00::/8}; C{unix} for all clients of a UNIX socket.
        @raise ValueError: An item is not an address, a network or C{unix}.
        """
        if isinstance(trusted, str):
            raise ValueError("trusted proxies must be a list of texts, not one text")
        self._trustsNobody = not trusted
        self._trustsUNIX = "unix" in trusted
        try:
            self._networks = [ip_network(each) for each in trusted if each != "unix"]
        except ValueError as error:
            raise ValueError(f"invalid trusted proxy: {error}") from None

    def isSecure(self, request: Request) -> bool:
        """
        Find out whether the client of a request used TLS; see L{usesTLS}.

        @param request: The request.
        @return: Whether the client used TLS.
        """
        peer, headers = request.getClientAddress(), request.requestHeaders
        return self.usesTLS(peer, headers, bool(request.isSecure()))

    def usesTLS(self, peer: IAddress, headers: Headers, isTLS: bool) -> bool:
        """
        Find out whether a client used TLS. A trusted proxy reports it in a header;
        otherwise the connection to this server decides.

        @param peer: The address at the other end of the connection.
        @param headers: The headers of the request.
        @param isTLS: Whether the connection uses TLS.
        @return: Whether the client used TLS.
        """
        if self._trustsNobody:
            return isTLS
        forwarded = headers.getRawHeaders(b"X-Forwarded-Proto")
        if forwarded and self._isTrusted(peer):
            # Behind several proxies, each hop must use TLS.
            hops = b",".join(forwarded).split(b",")
            return all(hop.strip(b" \t").lower() == b"https" for hop in hops)
        return isTLS

    def peerOf(self, request: Request) -> str:
        """
        Find the IP address of the client of a request; see L{clientOf}.

        @param request: The request.
        @return: The address; empty for a UNIX socket.
        """
        return self.clientOf(request.getClientAddress(), request.requestHeaders)

    def clientOf(self, peer: IAddress, headers: Headers) -> str:
        """
        Find the IP address of a client: the last address in the headers of the trusted
        proxies that does not belong to a trusted proxy.

        @param peer: The address at the other end of the connection.
        @param headers: The headers of the request.
        @return: The address; empty for a UNIX socket.
        """
        client: str = getattr(peer, "host", "")
        forwarded = headers.getRawHeaders(b"X-Forwarded-For")
        if not forwarded or not self._isTrusted(peer):
            return client
        # Each proxy appends an address to the received header, which may be forged.
        hops = b",".join(forwarded).decode("latin-1").rsplit(",", MAX_PROXIES)
        for hop in reversed(hops):
            address = addressOf(_HOP.sub(r"\1\2", hop.strip(" \t")))
            # A zone may be any text, and only its own machine understands it.
            if address is None or "%" in hop:
                break
            client = str(address)
            if not self._includes(address):
                break
        return client

    def _isTrusted(self, peer: IAddress) -> bool:
        if isinstance(peer, UNIXAddress):
            return self._trustsUNIX
        address = addressOf(getattr(peer, "host", ""))
        return address is not None and self._includes(address)

    def _includes(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def checkOrigin(request: Request, isSecure: bool, token: str | None = None) -> None:
    """
    Refuse a request that another site may have made in a visitor's browser (CSRF).

    Requests with safe methods pass. In other requests, C{Sec-Fetch-Site} and C{Origin}
    must name this site or its user, as far as the browser sends these headers. A client
    that sends neither must send the token of its session as C{X-CSRF-Token}.

    @param request: The request.
    @param isSecure: Whether the client used TLS, see L{Proxies.isSecure}.
    @param token: The token of the client's session, if it has one; see
        C{tsrv.sessions.Session.token}.
    @raise CrossSite: Another site may have made the request.
    """
    if request.method in _SAFE:
        return
    headers = request.requestHeaders
    sites = headers.getRawHeaders(b"Sec-Fetch-Site")
    origins = headers.getRawHeaders(b"Origin")
    if sites is None and origins is None:
        tokens = headers.getRawHeaders(b"X-CSRF-Token", [])
        if token and len(tokens) == 1 and compare_digest(tokens[0], token.encode()):
            return
        raise CrossSite(
            "The request does not say which site has made it: send Origin, or the "
            "token of the session as X-CSRF-Token"
        )
    if sites is not None:
        if sites not in ([b"same-origin"], [b"none"]):
            raise CrossSite(_FOREIGN)
        # With the Referrer-Policy no-referrer, a page sends no origin to its own site.
        if origins in (None, [b"null"]):
            return
    scheme = b"https://" if isSecure else b"http://"
    hosts = headers.getRawHeaders(b"Host", [])
    own = _originOf([scheme + host for host in hosts])
    if own is None or _originOf(origins or ()) != own:
        raise CrossSite(_FOREIGN)


def _originOf(texts: Sequence[bytes]) -> tuple[bytes, bytes, int] | None:
    if len(texts) != 1:
        return None
    scheme, _, authority = texts[0].partition(b"://")
    match = _AUTHORITY.fullmatch(authority)
    if scheme not in _PORTS or match is None:
        return None
    return scheme, match[1].lower(), int(match[2] or _PORTS[scheme])
