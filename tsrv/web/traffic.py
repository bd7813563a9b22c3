"""
How many requests there were, how they ended, and how long they took.

What is counted is kept as plain numbers, by names of which there are only so
many, whatever clients send; who wants to see them asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.server import Request

from ..queuing.histogram import Histogram
from .responses import (
    OTHER,
    AsyncResource,
)

__all__ = ["CountedRequest", "Traffic"]

_METHODS: Final = frozenset(
    (
        b"CONNECT",
        b"DELETE",
        b"GET",
        b"HEAD",
        b"OPTIONS",
        b"PATCH",
        b"POST",
        b"PUT",
        b"TRACE",
    )
)
"""
The methods that are called by their names: those of RFC 9110, and PATCH.
"""

_MOST: Final = 2000
"""
How many histograms are kept, before those of routes that are new become one.
"""

_Key = tuple[str, bytes, int | str]


class Traffic:
    """
    What became of the requests that were made to one or several sites.

    @ivar inProgress: How many requests have been received, but not answered.
    @ivar seconds: Tells the time, in seconds.
    @ivar refusals: How many requests were not read to their end, by the status
        of the response.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        """
        @param reactor: Provides the time.
        """
        self.inProgress = 0
        self.refusals: dict[int, int] = {}
        self.seconds = reactor.seconds
        self._durations: dict[_Key, Histogram] = {}

    def ended(
        self, route: str, method: bytes, status: int | str, begun: float | None
    ) -> None:
        """
        A request has been answered, or its connection has been lost.

        @param route: The route that it was made to.
        @param method: Its method, as the client sent it.
        @param status: The status of the response; or C{"gone"}, if the client
            left before the end of it, or C{"aborted"}, if it was broken off.
        @param begun: The time at which it began, in seconds; L{None} if it has
            only just begun, and so is not in progress.
        """
        taken = 0.0
        if begun is not None:
            self.inProgress -= 1
            taken = self.seconds() - begun
        try:
            histogram = self._durations[route, method, status]
        except KeyError:
            histogram = self._histogram(route, method, status)
        histogram.observe(taken)

    def refused(self, status: int) -> None:
        """
        A request was not read to its end, and so never began.

        @param status: The status of the response.
        """
        self.refusals[status] = self.refusals.get(status, 0) + 1

    def durations(self) -> Iterator[tuple[str, str, str, Histogram]]:
        """
        @return: The routes, methods and statuses that there were, each with how
            long the requests took, in seconds.
        """
        for (route, method, status), histogram in self._durations.items():
            yield route, method.decode("ascii"), str(status), histogram

    def _histogram(self, route: str, method: bytes, status: int | str) -> Histogram:
        """
        Find the histogram of what is seen for the first time, or has a name
        that is not kept.
        """
        if method not in _METHODS:
            method = b"OTHER"
        key = (route, method, status)
        if key not in self._durations and len(self._durations) >= _MOST:
            # A resource takes for its route what clients send.
            key = (OTHER, method, status)
        return self._durations.setdefault(key, Histogram())


class CountedRequest(Request):
    """
    A request that is counted, on a site that has a L{Traffic}.

    It begins when the resource is found that is to answer it. Then it ends in
    one of two ways: the site logs that the response has been written, or the
    connection is lost.

    @ivar begun: The time at which it began, in seconds; L{None} before.
    @ivar route: The route of the resource.
    """

    begun: float | None = None
    route = OTHER

    channel: Any
    site: Any

    def render(self, resrc: object) -> None:
        """
        @see: L{twisted.web.server.Request.render}
        """
        if isinstance(resrc, AsyncResource):
            self.route = resrc.route
        # One resource may leave it to another; and a client may have left while
        # the resource was looked for.
        if self.begun is None and self.channel is not None:
            traffic: Traffic = self.site.traffic
            traffic.inProgress += 1
            self.begun = traffic.seconds()
        super().render(resrc)

    def connectionLost(self, reason: Failure) -> None:
        """
        @see: L{twisted.web.http.Request.connectionLost}
        """
        if self.begun is not None:
            status = "aborted" if reason.check(ConnectionAborted) else "gone"
            traffic: Traffic = self.site.traffic
            traffic.ended(self.route, self.method, status, self.begun)
        super().connectionLost(reason)
