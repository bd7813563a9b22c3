"""
Opens and closes the ports of a site.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    maybeDeferred,
)
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..queuing.foreign import cancelForeign
from .endpoints import listenProblem, parseEndpoint

if TYPE_CHECKING:
    # The import needs an extra, but parsing the options does not.
    from ..web.site import Site

__all__ = ["Listener"]

_log = Logger("tsrv.server")

MAX_LAST_CONNECTIONS: Final = 1_000
"""
Maximum number of connections that a port accepts when it closes.
"""


class Listener:
    """
    A site and the ports on which it listens.

    @ivar site: The site.
    """

    def __init__(self, site: Site, endpoints: Iterable[str], reactor: Any) -> None:
        """
        @param site: The site.
        @param endpoints: The endpoints, as
            L{serverFromString<twisted.internet.endpoints.serverFromString>} takes them.
        @param reactor: The reactor.
        @raise ValueError: An endpoint is invalid; the message says why.
        """
        self.site = site
        self._endpoints = [(text, parseEndpoint(text, reactor)) for text in endpoints]
        self._opening: list[Deferred[None]] = []
        self._ports: list[tuple[str, IListeningPort]] = []
        self._failure: Failure | None = None
        self._isListening = False

    @property
    def urls(self) -> list[str]:
        """
        The URLs of the open ports.
        """
        return [_urlOf(text, port.getHost()) for text, port in self._ports]

    def listen(self) -> None:
        """
        Open all ports. A second call has no effect.

        @raise ValueError: An endpoint cannot be used; the message says why.
        """
        endpoints, self._endpoints = self._endpoints, []
        for text, endpoint in endpoints:
            opening = maybeDeferred(endpoint.listen, self.site)
            self._opening.append(
                opening.addCallbacks(self._opened, self._failed, callbackArgs=(text,))
            )
            if self._failure is not None:
                raise ValueError(listenProblem(text, self._failure.value))
        self._isListening = True

    def _opened(self, port: IListeningPort, text: str) -> None:
        self._ports.append((text, port))

    def _failed(self, failure: Failure) -> None:
        if not self._isListening:
            self._failure = failure
        elif not failure.check(CancelledError):
            _log.failure("Cannot listen", failure)

    async def close(self) -> None:
        """
        Close all ports, and stop opening the remaining ones.
        """
        opening, self._opening = self._opening, []
        for each in opening:
            cancelForeign(each)
        ports, self._ports = self._ports, []
        closing = [maybeDeferred(self._closePort, port) for _, port in ports]
        await DeferredList(closing, consumeErrors=True)

    def _closePort(self, port: IListeningPort) -> object:
        if not isinstance(port, Port):
            return port.stopListening()
        # stopListening() closes the socket one turn after it has stopped accepting.
        # The kernel accepts connections in this turn, and resets them at the end.
        port.stopReading()
        for _ in range(MAX_LAST_CONNECTIONS):
            before = self.site.connections.accepted
            port.doRead()
            if self.site.connections.accepted == before:
                break
        port.socket.close()
        port.connectionLost(Failure(ConnectionDone()))
        return None


def _urlOf(endpoint: str, address: Any) -> str:
    scheme = "https" if endpoint.startswith(("ssl:", "tls:")) else "http"
    host = getattr(address, "host", None)
    if host is None:
        # A UNIX socket.
        return endpoint
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "localhost"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}/"
