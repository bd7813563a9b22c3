"""
A small document that is fetched over HTTP, and of which nothing is left open.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

__all__ = ["Body", "Client", "HTTPClient", "Source", "Unusable", "kindOf", "parse"]

_UNSEEN: Final = re.compile(r"[\x00-\x20\x7f]")


class Unusable(Exception):
    """
    What was answered is of no use. The message says why, and repeats nothing of
    it.
    """


@dataclass(frozen=True)
class Source:
    """
    Where a document is. What it looks like has no secret in it.

    @ivar url: What is asked for.
    @ivar user: Who asks, and with which password, if that is to be said.
    @ivar shown: The URL for people.
    """

    url: str
    user: tuple[str, str] | None
    shown: str

    @classmethod
    def parse(cls, url: str) -> Source:
        """
        @raise ValueError: It is no URL for HTTP. The message does not repeat it.
        """
        try:
            split = urlsplit(url)
            known = split.scheme in ("http", "https") and bool(split.hostname)
            # To look for the port is to have it checked.
            known = known and split.port != 0 and not _UNSEEN.search(url)
        except ValueError:
            known = False
        if not known:
            raise ValueError("it has to be http://HOST:PORT/PATH or https://…")
        userinfo, at, host = split.netloc.rpartition("@")
        name, _, password = userinfo.partition(":")
        return cls(
            urlunsplit((split.scheme, host, split.path or "/", split.query, "")),
            (unquote(name), unquote(password)) if at else None,
            urlunsplit((split.scheme, host, split.path, "", "")),
        )


class Body(TwistedProtocol):
    """
    Collects a body, up to a limit.

    @ivar whole: A Deferred of the body; it fails with L{Unusable} if it is too
        long, and if it breaks off.
    """

    def __init__(self, limit: int) -> None:
        """
        @param limit: How many bytes it may have.
        """
        self.whole: Deferred[bytes] = Deferred(lambda _: self._pieces.clear())
        self._limit = limit
        self._pieces: list[bytes] = []
        self._length = 0

    def dataReceived(self, data: bytes) -> None:
        """
        @see: L{TwistedProtocol.dataReceived}
        """
        self._length += len(data)
        if self._length <= self._limit:
            self._pieces.append(data)
        elif not self.whole.called:
            self._pieces.clear()
            self.whole.errback(Unusable(f"sent more than {self._limit} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        @see: L{TwistedProtocol.connectionLost}
        """
        from twisted.web.client import ResponseDone

        if self.whole.called:
            return
        if reason.check(ResponseDone):
            self.whole.callback(b"".join(self._pieces))
        else:
            self.whole.errback(reason)


class Client(Protocol):
    """
    Asks one question at a time.
    """

    def get(self, url: str, **options: Any) -> Deferred[Any]:
        """
        @see: L{treq.client.HTTPClient.get}
        """

    def abort(self) -> None:
        """
        End the connection of the latest question, if there still is one.
        """


@implementer(IAgent, IAgentEndpointFactory)
class HTTPClient:
    """
    A client that keeps no connection, and accepts nothing that is compressed: of
    that nobody knows how long it is.
    """

    def __init__(self, reactor: Any, timeout: float) -> None:
        """
        @param reactor: Provides connections.
        @param timeout: How long it may take to make one, in seconds.
        """
        from treq.client import HTTPClient as Treq
        from twisted.web.client import Agent, BrowserLikePolicyForHTTPS

        self._reactor = reactor
        self._timeout = timeout
        self._policy = BrowserLikePolicyForHTTPS()
        self._agent = Agent.usingEndpointFactory(reactor, self)
        self._treq = Treq(self)
        self._transport: Any = None

    def get(self, url: str, **options: Any) -> Deferred[Any]:
        """
        @see: L{Client.get}
        """
        answer: Deferred[Any] = self._treq.get(url, **options)
        return answer

    def abort(self) -> None:
        """
        @see: L{Client.abort}
        """
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abortConnection()

    def request(
        self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None
    ) -> Deferred[Any]:
        """
        @see: L{twisted.web.iweb.IAgent.request}
        """
        headers = headers.copy()
        headers.setRawHeaders(b"Accept-Encoding", [b"identity"])
        answer: Deferred[Any] = self._agent.request(method, uri, headers, bodyProducer)
        return answer.addCallback(_checkEncoding)

    def endpointForURI(self, uri: Any) -> Any:
        """
        @see: L{twisted.web.iweb.IAgentEndpointFactory.endpointForURI}
        """
        from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS

        endpoint: Any = HostnameEndpoint(
            self._reactor, uri.host, uri.port, timeout=self._timeout
        )
        if uri.scheme == b"https":
            creator = self._policy.creatorForNetloc(uri.host, uri.port)
            endpoint = wrapClientTLS(creator, endpoint)
        return _Endpoint(endpoint, self._connected)

    def _connected(self, protocol: Any) -> Any:
        self._transport = protocol.transport
        return protocol


def _checkEncoding(response: Any) -> Any:
    encodings = response.headers.getRawHeaders(b"Content-Encoding", [])
    if any(each.strip().lower() not in (b"", b"identity") for each in encodings):
        raise Unusable("sent a body that is compressed")
    return response


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """
    An endpoint that says to which transport it has led, and writes no lines into
    the log.
    """

    def __init__(self, endpoint: Any, connected: Any) -> None:
        self._endpoint = endpoint
        self._connectedTo = connected

    def connect(self, protocolFactory: Any) -> Any:
        """
        @see: L{IStreamClientEndpoint.connect}
        """
        protocolFactory.noisy = False
        return self._endpoint.connect(protocolFactory).addCallback(self._connectedTo)


def parse(data: bytes) -> dict[str, Any]:
    """
    @param data: A document.
    @return: The JSON object that it is.
    @raise Unusable: It is none.
    """
    try:
        found = json.loads(data)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Unusable(f"sent what is no JSON at {where}") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(f"sent what is no JSON ({kindOf(error)})") from None
    if not isinstance(found, dict):
        raise Unusable("sent JSON that is no object")
    return found


def kindOf(error: Exception) -> str:
    """
    @return: What an error is, with the first of what it was caused by.
    """
    reasons = getattr(error, "reasons", None)
    if reasons:
        error = reasons[0].value
    return type(error).__name__
