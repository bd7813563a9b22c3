"""
A limit on new sessions: for each client, and for all clients together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final

from twisted.web.server import Request

from ..asyncmodule import ReactorTime
from ..web.origin import addressOf, peerOf
from ..web.problems import HTTPError, retryAfter

__all__ = ["Quota", "TooMany"]

MAX_PEERS: Final = 10_000
"""
Maximum number of clients in a window. Beyond it, the window forgets the first one.
"""


class TooMany(HTTPError):
    """
    A client, or all clients together, have created too many sessions (429).
    """

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, seconds: float) -> None:
        """
        @param seconds: Seconds after which the client may try again.
        """
        super().__init__("Too many requests, try again later")
        self.headers = [retryAfter(seconds)]


class Quota:
    """
    Limits the number of new sessions, for each client and in total, in windows of a
    fixed length.
    """

    def __init__(
        self,
        clock: ReactorTime,
        perPeer: int,
        total: int,
        seconds: float,
        peerOf: Callable[[Request], str] = peerOf,
    ) -> None:
        """
        @param clock: Provides the time.
        @param perPeer: Maximum number of new sessions in a window for one client. An
            IPv6 network of 64 bits is one client.
        @param total: Maximum number in a window for all clients together.
        @param seconds: The length of a window, in seconds.
        @param peerOf: Returns the IP address of the client of a request, such as
            L{Proxies.peerOf<tsrv.web.origin.Proxies.peerOf>} behind a proxy.
        """
        self._clock, self._seconds, self._peerOf = clock, seconds, peerOf
        self._perPeer, self._total = perPeer, total
        self._begin, self._all = clock.seconds(), 0
        self._peers: Counter[bytes] = Counter()

    def count(self, request: Request) -> Callable[[], None]:
        """
        Count a new session.

        @param request: The request that creates the session.
        @return: A function that takes the count back; call it if the session was not
            stored.
        @raise TooMany: The limit is reached, and the session is not counted.
        """
        now = self._clock.seconds()
        # A clock may be set back.
        if not 0 <= now - self._begin < self._seconds:
            self._begin, self._all, self._peers = now, 0, Counter()
        address = addressOf(self._peerOf(request))
        # All 4 bytes of an IPv4 address, the network of an IPv6 address.
        peer = b"" if address is None else address.packed[:8]
        if self._peers[peer] >= self._perPeer or self._all >= self._total:
            raise TooMany(self._begin + self._seconds - now)
        self._all += 1
        self._peers[peer] += 1
        if len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        return partial(self._uncount, peer, self._peers)

    def _uncount(self, peer: bytes, peers: Counter[bytes]) -> None:
        # Each window has a table of its own.
        if peers is self._peers and peers[peer]:
            peers[peer] -= 1
            self._all -= 1
