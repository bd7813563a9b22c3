"""
Counts requests, by route, method and outcome, with their durations.

The counts are plain numbers in a bounded number of histograms, whatever clients
send. Reading the counts computes everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..asyncmodule import ReactorTime
from ..queuing.histogram import Histogram
from .responses import NO_ROUTE

__all__ = ["Traffic"]

_METHODS: Final = frozenset(
    b"CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT TRACE".split()
)
"""
Methods with counts of their own: RFC 9110, and PATCH.
"""

_MAX_HISTOGRAMS: Final = 2000
"""
Maximum number of histograms; at this limit, new routes are counted as L{NO_ROUTE}.
"""


class Traffic:
    """
    Counts the requests to one or several sites.

    @ivar inProgress: Number of requests in progress.
    @ivar refusals: Numbers of requests that the sites have refused, so they reached no
        resource, by the status of the response.
    """

    def __init__(self, reactor: ReactorTime) -> None:
        """
        @param reactor: Provides the time.
        """
        self.inProgress = 0
        self.refusals: dict[int, int] = {}
        self._reactor = reactor
        self._histograms: dict[tuple[str, bytes, int | str], Histogram] = {}

    def seconds(self) -> float:
        """
        Return the time of the reactor, in seconds.
        """
        # The reactor's method may be replaced later, so look it up each time.
        return self._reactor.seconds()

    def requestEnded(
        self, route: str, method: bytes, status: int | str, startTime: float | None
    ) -> float:
        """
        Count a request whose response is complete or whose connection is lost.

        @param route: The route of the resource.
        @param method: The method of the request, as the client sent it.
        @param status: The status of the response; C{"gone"} if the client disconnected
            before its end, C{"aborted"} if the server did.
        @param startTime: Time at which the request began to be in progress, in seconds;
            L{None} if it never was.
        @return: The duration, in seconds.
        """
        taken = 0.0
        if startTime is not None:
            self.inProgress -= 1
            taken = self.seconds() - startTime
        try:
            histogram = self._histograms[route, method, status]
        except KeyError:
            histogram = self._addHistogram(route, method, status)
        histogram.observe(taken)
        return taken

    def requestRefused(self, status: int) -> None:
        """
        Count a request that a site has refused, so it reached no resource.

        @param status: The status of the response.
        """
        self.refusals[status] = self.refusals.get(status, 0) + 1

    def durations(self) -> Iterator[tuple[str, str, str, Histogram]]:
        """
        Return the counts and durations of requests that reached a resource.

        @return: Route, method, status, and a histogram of durations in seconds.
        """
        for (route, method, status), histogram in self._histograms.items():
            yield route, method.decode("ascii"), str(status), histogram

    def _addHistogram(self, route: str, method: bytes, status: int | str) -> Histogram:
        if method not in _METHODS:
            method = b"OTHER"
        key = (route, method, status)
        if key not in self._histograms and len(self._histograms) >= _MAX_HISTOGRAMS:
            # Probably a resource uses paths from clients as routes.
            key = (NO_ROUTE, method, status)
        return self._histograms.setdefault(key, Histogram())
