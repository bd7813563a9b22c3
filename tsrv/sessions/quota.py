"""
How often something may be done: by each, and by all together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil, isfinite
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from ..web.origin import (
    addressOf,
    peerOf,
)
from ..web.problems import HTTPError

__all__ = ["Quota", "TooMany"]

_ROUNDING: Final = 1e-3
"""
Which part of a token may be missing, since times are not exact. It is missing
from the next one then.
"""


@dataclass(frozen=True, slots=True)
class _Bucket:
    """
    @ivar tokens: How many tokens there were.
    @ivar at: When that was, in seconds.
    """

    tokens: float
    at: float


class TooMany(HTTPError):
    """
    Somebody, or all together, did something too often.
    """

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, seconds: float) -> None:
        """
        @param seconds: How long to wait.
        """
        super().__init__("Too many requests, try again later")
        self.headers = [(b"Retry-After", b"%d" % max(1, ceil(seconds)))]


class Quota:
    """
    A bucket of tokens for each peer, and one for all together. A full bucket has
    as many as may be taken at once, and an empty one is filled in a fixed time,
    evenly. What is in a bucket is found out when somebody takes of it: there is no
    timer.
    """

    def __init__(
        self,
        clock: IReactorTime,
        perPeer: int,
        total: int,
        seconds: float,
        *,
        mostPeers: int = 10_000,
        peerOf: Callable[[Request], str] = peerOf,
    ) -> None:
        """
        @param clock: Provides the time.
        @param perPeer: How often one peer may do it.
        @param total: How often all may do it together.
        @param seconds: In which time.
        @param mostPeers: How many peers are remembered; then the one that did it
            least recently is forgotten, and the total is what still holds for it.
        @param peerOf: Finds the IP address from which a request comes, see
            L{Proxies.peerOf<tsrv.web.origin.Proxies.peerOf>}.
        @raise ValueError: An option is out of its range.
        """
        for name, count in (
            ("perPeer", perPeer),
            ("total", total),
            ("mostPeers", mostPeers),
        ):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count!r}")
        if not (isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds must be > 0, not {seconds!r}")
        self._clock = clock
        self._seconds = seconds
        self._perPeer = perPeer
        self._total = total
        self._mostPeers = mostPeers
        self._peerOf = peerOf
        self._all = _Bucket(total, clock.seconds())
        self._peers: OrderedDict[bytes, _Bucket] = OrderedDict()

    def admit(self, request: Request) -> None:
        """
        Count something that is done for a request.

        @param request: The request.
        @raise TooMany: It is too often, and was not counted.
        """
        seconds = self.take(self._peerOf(request))
        if seconds is not None:
            raise TooMany(seconds)

    def take(self, peer: str) -> float | None:
        """
        Take a token out of the bucket of a peer, and out of that of all.

        @param peer: The IP address of the peer. Those of one network of 64 bits
            of IPv6, which is what one household has, are one peer; and so is all
            that is no address.
        @return: L{None}; or, if one of the buckets is empty, in which case nothing
            was taken, the seconds after which neither will be.
        """
        now = self._clock.seconds()
        key = _keyOf(peer)
        peers = self._peers
        ofPeer = self._tokensIn(peers.get(key), now, self._perPeer)
        ofAll = self._tokensIn(self._all, now, self._total)
        wait = max((1 - ofPeer) / self._perPeer, (1 - ofAll) / self._total)
        if min(ofPeer, ofAll) < 1 - _ROUNDING:
            return wait * self._seconds
        self._all = _Bucket(ofAll - 1, now)
        peers[key] = _Bucket(ofPeer - 1, now)
        peers.move_to_end(key)
        if len(peers) > self._mostPeers:
            peers.popitem(last=False)
        return None

    def _tokensIn(self, bucket: _Bucket | None, now: float, most: int) -> float:
        """
        @param most: How many a full bucket has.
        @return: How many tokens are in a bucket by now.
        """
        if bucket is None or now < bucket.at:
            # It is new, or the clock was set back, for which nobody is to wait.
            return most
        return min(most, bucket.tokens + (now - bucket.at) * most / self._seconds)


def _keyOf(peer: str) -> bytes:
    """
    @return: What the addresses of one peer have in common: all of one of IPv4, and
        the network of one of IPv6.
    """
    address = addressOf(peer)
    return b"" if address is None else address.packed[:8]
