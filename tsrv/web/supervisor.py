"""
Limits the memory and the time of all connections of one site together.

Fairness: the first request of a connection starts on arrival. Requests that a client
sends ahead of a response wait for their turn in one queue for all connections, and each
turn of the reactor works on the queue for some milliseconds. So a client that sends
thousands of requests ahead slows down only itself.

Time: one timer per site counts ticks, and handles the connections that have reached
their deadlines. So connections need no timers, and setting the clock changes no
deadline.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.logger import Logger
from twisted.web.http import datetimeToString

from ..asyncmodule import ReactorTime
from ..queuing.slices import SlicedWork
from ..queuing.waiters import Waiters
from .framing import HeadParser

__all__ = ["GRACE_TICKS", "NEVER", "TICK_SECONDS", "Supervisor"]

_log = Logger("tsrv.web")

TICK_SECONDS: Final = 0.5

GRACE_TICKS: Final = 3
"""
Time for a client to make progress when the site stops, in ticks: 1 to 1.5 s. A request
that an idle client has just sent needs half a round trip to arrive (around the world,
up to 0.3 s), and Linux sends a lost packet again after 0.2 s or more. HTTP/1.1 has no
way to ask an idle client to stop sending. HAProxy waits likewise
(C{idle-close-on-response}).
"""

NEVER: Final = 2**62
"""
The deadline of a phase without a time limit.
"""

_PEER_SHARE: Final = 0.25
"""
Maximum share of C{maxTotalBodyBytes} for the unfinished bodies of one peer.
"""

_WARNING_SECONDS: Final = 60.0


class _Connection(Protocol):
    deadline: int

    @property
    def isBusy(self) -> bool: ...

    def startNext(self) -> None: ...

    def announceStop(self) -> None: ...

    def deadlineReached(self) -> None: ...

    def stop(self, announcedAt: int) -> None: ...

    def abort(self) -> None: ...


class Supervisor:
    """
    Counts the connections of a site, and enforces their limits.

    @ivar tick: Number of the current tick.
    @ivar parser: Parses the heads of requests.
    """

    def __init__(
        self,
        reactor: ReactorTime,
        *,
        requestTimeout: float = 30.0,
        maxBodyBytes: int = 64 * 1024,
        maxTotalBodyBytes: int = 64 * 1024 * 1024,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param requestTimeout: Time for a request to arrive, head and body, in seconds;
            a slower request gets 408. A client that does not read its response is
            disconnected after the same time and a second for each KiB.
        @param maxBodyBytes: Maximum length of a body; a longer body gets 413. A
            resource with an attribute C{maxBodyBytes} sets another limit, for itself
            and for its children. It must be the root, or be added with C{putChild}.
        @param maxTotalBodyBytes: Maximum of C{bodyBytes}; a request beyond it gets 503.
            So does a request whose peer already uses a quarter of it for unfinished
            bodies.
        """
        self.requestTimeout = requestTimeout
        self.maxBodyBytes = maxBodyBytes
        self.maxTotalBodyBytes = maxTotalBodyBytes
        self.bodyBytes = 0
        self.accepted = 0
        self.announced = False
        self.stopping = False
        self.tick = 0
        self.parser = HeadParser()
        self._reactor = reactor
        self._channels: set[_Connection] = set()
        self._waiting: deque[_Connection] = deque()
        self._work = SlicedWork(reactor, self._startNext)
        self._timer: IDelayedCall | None = None
        self._dateTick = -1
        self._date: list[bytes] = []
        self._peerBytes: dict[str, int] = {}
        self._refusals = self._warnAt = 0
        self._announcedAt = NEVER
        self._untilEmpty = Waiters(1000, "for the connections of a site to close")

    def after(self, seconds: float | None) -> int:
        """
        @param seconds: A time from now; L{None} for no limit.
        @return: The first tick that certainly begins after this time; L{NEVER} for no
            limit.
        """
        if seconds is None:
            return NEVER
        return self.tick + ceil(seconds / TICK_SECONDS) + 1

    def patience(self, seconds: float | None) -> int:
        """
        @param seconds: Time limit for a client.
        @return: The tick at which the limit expires; while the site is stopping, at
            most L{GRACE_TICKS} from now.
        """
        end = self.after(seconds)
        return min(end, self.tick + GRACE_TICKS) if self.stopping else end

    def date(self) -> list[bytes]:
        """
        @return: The value of C{Date} in a response.
        """
        if self._dateTick != self.tick:
            self._dateTick = self.tick
            self._date = [datetimeToString()]
        return self._date

    def opened(self, channel: _Connection) -> None:
        """
        Add a connection.
        """
        self.accepted += 1
        self._channels.add(channel)
        if self._timer is None:
            # The date of the last tick is outdated.
            self.tick += 1
            self._timer = self._reactor.callLater(TICK_SECONDS, self._countTick)

    def closed(self, channel: _Connection) -> None:
        """
        Remove a connection.
        """
        self._channels.discard(channel)
        if not self._channels:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._waiting.clear()
            self._work.stop()
            self._untilEmpty.succeed()

    def startLater(self, channel: _Connection) -> None:
        """
        Queue a connection to start its next request.
        """
        self._waiting.append(channel)
        self._work.soon()

    def bodyLimit(self, site: Any, target: bytes) -> int:
        """
        Find the limit for a body before the lookup of its resource: the last
        C{maxBodyBytes} on the path, among the resources added with C{putChild}.

        @param site: The site.
        @param target: The path.
        @return: The maximum length of the body.
        """
        limit = self.maxBodyBytes
        resource = getattr(site, "resource", None)
        segments = target.partition(b"?")[0].split(b"/")[1:]
        while resource is not None:
            own: int | None = getattr(resource, "maxBodyBytes", None)
            limit = limit if own is None else own
            children = getattr(resource, "children", None)
            if not (segments and isinstance(children, dict)):
                break
            resource = children.get(unquote_to_bytes(segments.pop(0)))
        return limit

    def hasRoom(self, peer: IAddress, length: int = 0, limit: int = 0) -> bool:
        """
        @param length: Number of further bytes of this peer.
        @param limit: The limit for one body.
        @return: Whether the bytes fit into memory.
        """
        used = self._peerBytes.get(getattr(peer, "host", ""), 0)
        share = max(self.maxTotalBodyBytes * _PEER_SHARE, self.maxBodyBytes, limit)
        return (
            self.bodyBytes + length <= self.maxTotalBodyBytes and used + length <= share
        )

    def count(self, peer: IAddress, length: int, inMemory: bool = False) -> None:
        """
        Count bytes of a peer that wait.

        @param length: Number of bytes; negative for bytes that no longer wait.
        @param inMemory: Whether the bytes count in C{bodyBytes}.
        """
        if inMemory:
            self.bodyBytes += length
        if length:
            host = getattr(peer, "host", "")
            if count := self._peerBytes.pop(host, 0) + length:
                self._peerBytes[host] = count

    def warn(self, peer: IAddress) -> None:
        """
        Count a request that does not fit into memory; log at most once a minute.

        @param peer: The client.
        """
        self._refusals += 1
        if self.tick >= self._warnAt:
            _log.warn(
                "No room for bodies: {count} requests refused, the last one from "
                "{peer}; {bytes} of {limit} bytes used",
                count=self._refusals,
                peer=getattr(peer, "host", "a UNIX socket"),
                bytes=self.bodyBytes,
                limit=self.maxTotalBodyBytes,
            )
            self._refusals, self._warnAt = 0, self.after(_WARNING_SECONDS)

    @property
    def inProgress(self) -> int:
        """
        Number of requests in progress.
        """
        return sum(channel.isBusy for channel in self._channels)

    def announceStop(self) -> None:
        """
        Send C{Connection: close} in every response from now on, and close the
        connection after the response. The site still accepts new connections and keeps
        idle ones open. So clients and load balancers, which learn of the stop
        elsewhere, lose no request.
        """
        if not self.announced:
            self.announced, self._announcedAt = True, self.tick
            for channel in list(self._channels):
                channel.announceStop()

    def stop(self, timeout: float) -> Deferred[int]:
        """
        Finish the requests in progress, and close their connections. Other clients have
        1 to 1.5 s (L{GRACE_TICKS}): an idle client for its next request, which gets a
        response; a slow client for the next part of a request, or to read more of a
        response. Close the port first, or new connections keep arriving.

        @param timeout: Time limit in seconds.
        @return: A Deferred of the number of requests that are still in progress. It
            fires after the last connection closes, at the time limit, or on
            cancellation.
        """
        self.announceStop()
        if not self.stopping:
            self.stopping = True
            for channel in list(self._channels):
                channel.stop(self._announcedAt)
        if not self._channels:
            return succeed(0)
        empty = self._untilEmpty.wait()
        empty.addTimeout(timeout, self._reactor)
        empty.addErrback(lambda failure: failure.trap(DeferredTimeout, CancelledError))
        return empty.addCallback(lambda _: self.inProgress)

    def abort(self) -> None:
        """
        Abort the open connections.
        """
        for channel in list(self._channels):
            channel.abort()

    def _countTick(self) -> None:
        self._timer = self._reactor.callLater(TICK_SECONDS, self._countTick)
        self.tick = tick = self.tick + 1
        for channel in [each for each in self._channels if each.deadline <= tick]:
            channel.deadlineReached()

    def _startNext(self) -> bool:
        if not self._waiting:
            return False
        self._waiting.popleft().startNext()
        return True
