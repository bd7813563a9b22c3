"""
The body of a request while it arrives: its framing, its limits and its progress.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from twisted.internet.interfaces import IAddress

from .framing import ChunkedBody, Refusal
from .supervisor import GRACE_TICKS, TICK_SECONDS, Supervisor
from .writing import MIN_BYTES_PER_SECOND

__all__ = ["IncomingBody"]

_SLOW_START_SECONDS: Final = 5.0
"""
Minimum age of a body whose rate is checked.
"""


class IncomingBody:
    """
    Separates one body from the received data, and checks its limits.
    """

    def __init__(
        self,
        connections: Supervisor,
        peer: IAddress,
        length: int | None,
        limit: int,
        end: int,
    ) -> None:
        """
        @param connections: The connections of the site.
        @param peer: The client.
        @param length: The length of the body; L{None} if it is chunked.
        @param limit: Maximum length of the body.
        @param end: The tick by which the body must have arrived.
        @raise Refusal: The body is too long, or does not fit into memory.
        """
        self._connections = connections
        self._peer = peer
        self._limit = limit
        self._end = end
        self._begunAt = self._heardAt = connections.tick
        self._bytes = 0
        self._missingBytes = length or 0
        self._checkRoom(self._missingBytes)
        self._chunks = ChunkedBody() if length is None else None

    def decode(self, data: bytes) -> tuple[bytes, bytes | None]:
        """
        @param data: The received data.
        @return: The next part of the body, and the data that follow the body: L{None}
            if the body is not complete.
        @raise Refusal: The data are malformed, too long or do not fit into memory.
        """
        rest = None
        if self._chunks is not None:
            data, rest = self._chunks.decode(data)
        else:
            if len(data) >= self._missingBytes:
                data, rest = data[: self._missingBytes], data[self._missingBytes :]
            self._missingBytes -= len(data)
        self._checkRoom(len(data))
        self._bytes += len(data)
        self._heardAt = self._connections.tick
        self._connections.count(self._peer, len(data))
        return data, rest

    def startGrace(self) -> None:
        """
        Let L{GRACE_TICKS} without progress begin now, because the site is stopping.
        """
        self._heardAt = self._connections.tick

    @property
    def isLate(self) -> bool:
        """
        Whether the body takes too long, is too slow, or makes no progress while the
        site is stopping.
        """
        tick = self._connections.tick
        age = (tick - self._begunAt) * TICK_SECONDS
        return (
            tick >= self._end
            or self._bytes < (age - _SLOW_START_SECONDS) * MIN_BYTES_PER_SECOND
            or (self._connections.stopping and tick >= self._heardAt + GRACE_TICKS)
        )

    def forget(self) -> None:
        """
        Remove the body from the count of unfinished bodies.
        """
        self._connections.count(self._peer, -self._bytes)

    def _checkRoom(self, length: int) -> None:
        if self._bytes + length > self._limit:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if not self._connections.hasRoom(self._peer, length, self._limit):
            self._connections.warn(self._peer)
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE)
