"""
Twisted's site with limits, a log, counts of requests, and a graceful stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from io import BytesIO
from types import MappingProxyType
from typing import Any, Final, TypedDict

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site as TwistedSite
from twisted.web.server import version

from ..asyncmodule import ReactorTime
from .connections import Connections
from .framing import Head
from .origin import Proxies
from .problems import KnownErrors, escaped
from .request import Body, SiteRequest
from .requestid import requestIdOf
from .responses import AsyncResource
from .traffic import Traffic

__all__ = ["Site", "SiteOptions"]

_log = Logger("tsrv.access")

_REFUSED: Final = (
    '{client} "{method} {uri} {protocol}" {status} "{referrer}" "{userAgent}"'
)

_ENDED: Final = _REFUSED + " {length} bytes in {seconds:.3f} s"

_DEFAULTS: Final = {
    b"Server": b"Server: " + version,
    b"X-Content-Type-Options": b"X-Content-Type-Options: nosniff",
    # With no-referrer, browsers send no usable Origin with a form either.
    b"Referrer-Policy": b"Referrer-Policy: same-origin",
}

_MISSING: Final = (b"-",)


class SiteOptions(TypedDict, total=False):
    """
    The keyword arguments of L{Site}, for functions that pass them on.
    """

    accessLog: bool
    keepAlive: float
    requestTimeout: float
    maxBodyBytes: int
    maxTotalBodyBytes: int
    parsePOSTFormSubmission: bool
    development: bool
    proxies: Proxies | None
    traffic: Traffic | None
    knownErrors: KnownErrors
    hstsSeconds: float


class Site(TwistedSite):
    """
    A L{twisted.web.server.Site} with limits on the time and the memory of clients. It
    finishes requests in progress when it stops. Bodies of requests stay in memory. Use
    it like Twisted's site, and stop it after its port::

        site = Site(root, reactor)
        port = reactor.listenTCP(8000, site)
        ...
        await port.stopListening()
        await site.stop(25.0)
        site.abort()

    @ivar connections: The connections.
    @ivar traffic: Counts the requests.
    """

    noisy = False
    requestFactory = SiteRequest

    def __init__(
        self,
        resource: IResource | Resource,
        reactor: ReactorTime,
        *,
        accessLog: bool = False,
        keepAlive: float = 75.0,
        requestTimeout: float = 30.0,
        maxBodyBytes: int = 64 * 1024,
        maxTotalBodyBytes: int = 64 * 1024 * 1024,
        parsePOSTFormSubmission: bool = True,
        development: bool = False,
        proxies: Proxies | None = None,
        traffic: Traffic | None = None,
        knownErrors: KnownErrors = MappingProxyType({}),
        hstsSeconds: float = 0,
    ) -> None:
        """
        @param resource: The root of the site.
        @param reactor: Provides the time.
        @param accessLog: Whether to log every request.
        @param keepAlive: Time after which an idle connection is closed, in seconds.
            Make it longer than the idle time of a load balancer in front, which would
            otherwise send requests to connections that the site is just closing.
        @param requestTimeout: Time for a request to arrive, in seconds; see
            L{Connections}.
        @param maxBodyBytes: Maximum length of a body; see L{Connections}.
        @param maxTotalBodyBytes: Maximum length of all bodies in memory together; see
            L{Connections}.
        @param parsePOSTFormSubmission: Whether the fields of form posts become
            C{request.args}, as twisted.web does it.
        @param development: Whether clients see the tracebacks of errors.
        @param proxies: The trusted proxies, whose headers name the clients of requests;
            by default none.
        @param traffic: Counts the requests; several sites may share it. By default,
            the site makes its own.
        @param knownErrors: The responses to the application's own errors.
        @param hstsSeconds: Time in seconds for which browsers use TLS alone, on all
            ports of this host, after a response over TLS
            (C{Strict-Transport-Security}). 0: the header is not sent.
        """
        super().__init__(resource, timeout=keepAlive, reactor=reactor)
        self.parsesForms = parsePOSTFormSubmission
        if isinstance(resource, AsyncResource):
            resource.setRoute("/")
        self.connections = Connections(
            reactor,
            requestTimeout=requestTimeout,
            maxBodyBytes=maxBodyBytes,
            maxTotalBodyBytes=maxTotalBodyBytes,
        )
        self.protocol: Any = self.connections
        self.development = development
        self.proxies = proxies or Proxies()
        self.knownErrors = knownErrors
        self.traffic = traffic or Traffic(reactor)
        self._accessLog = accessLog
        self._hstsSeconds = hstsSeconds

    def getContentFile(self, length: int | None) -> BytesIO:
        """
        Make a file in memory for the body of a request.

        @param length: The length of the body; L{None} if it is unknown.
        @return: The file.
        """
        return BytesIO() if length == 0 else Body(self.connections)

    def startFactory(self) -> None:
        """
        Begin to listen, without the timer that Twisted would start for its log.
        """

    def defaultHeaders(
        self, peer: IAddress, headers: Headers, isTLS: bool
    ) -> Mapping[bytes, bytes]:
        """
        Return the headers of every response, some of which protect browsers. A response
        may set such a header to another value.

        @param peer: The client, or its proxy.
        @param headers: The headers of the request.
        @param isTLS: Whether the connection uses TLS.
        @return: Each header as a line, by its name.
        """
        seconds = self._hstsSeconds
        if not seconds or not self.proxies.usesTLS(peer, headers, isTLS):
            return _DEFAULTS
        line = b"Strict-Transport-Security: max-age=%d" % seconds
        return {**_DEFAULTS, b"Strict-Transport-Security": line}

    def log(self, request: Request) -> None:
        """
        Count a request whose response is complete, and log it.

        @param request: The request.
        """
        assert isinstance(request, SiteRequest)
        self.requestEnded(request, request.code)

    def requestEnded(self, request: SiteRequest, status: int | str) -> None:
        """
        Count and log a request whose response is complete or whose connection is lost.

        @param request: The request.
        @param status: See L{Traffic.requestEnded}.
        """
        seconds = self.traffic.requestEnded(
            request.route, request.method, status, request.startTime
        )
        if self._accessLog:
            parts = (request.method, request.uri, request.clientproto)
            self._logLine(
                _ENDED,
                request.getClientAddress(),
                parts,
                status,
                request.requestHeaders,
                requestIdOf(request),
                length=request.sentLength,
                seconds=round(seconds, 6),
            )

    def requestRefused(
        self,
        peer: IAddress,
        status: HTTPStatus,
        requestId: str,
        headers: Headers,
        head: Head | None,
    ) -> None:
        """
        Count and log a request that the site has refused, so it reached no resource.

        @param peer: The client, or its proxy.
        @param status: The status of the response.
        @param requestId: The id of the request.
        @param headers: The headers of the request, as far as they have arrived.
        @param head: The head of the request, if it is complete.
        """
        self.traffic.requestRefused(status)
        if self._accessLog:
            parts = (head.method, head.target, head.version) if head else (b"-",) * 3
            self._logLine(_REFUSED, peer, parts, int(status), headers, requestId)

    def acceptableProtocols(self) -> list[bytes]:
        """
        Offer only HTTP/1.1 under TLS. Twisted would offer HTTP/2 if C{h2} is installed.
        """
        return [b"http/1.1"]

    def announceStop(self) -> None:
        """
        Close each connection after its next response; see L{Connections.announceStop}.
        """
        self.connections.announceStop()

    def stop(self, timeout: float) -> Deferred[int]:
        """
        Finish the requests in progress; see L{Connections.stop}.

        @param timeout: Time limit in seconds.
        @return: A Deferred of the number of requests that are still in progress.
        """
        return self.connections.stop(timeout)

    def abort(self) -> None:
        """
        Abort the open connections.
        """
        self.connections.abort()

    def _logLine(
        self,
        text: str,
        peer: IAddress,
        parts: tuple[bytes, bytes, bytes],
        status: int | str,
        headers: Headers,
        requestId: str,
        **more: float,
    ) -> None:
        method, uri, protocol = map(escaped, parts)
        referrer, userAgent = (
            escaped(headers.getRawHeaders(name, _MISSING)[0])
            for name in (b"Referer", b"User-Agent")
        )
        _log.info(
            text,
            client=self.proxies.clientOf(peer, headers) or "unix",
            method=method,
            uri=uri,
            protocol=protocol,
            status=status,
            referrer=referrer,
            userAgent=userAgent,
            requestId=requestId,
            **more,
        )
