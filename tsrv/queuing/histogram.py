"""
Durations, counted as Prometheus counts them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

__all__ = ["SECONDS", "Histogram"]

# Bounds for durations from a millisecond to five minutes, in seconds.
SECONDS: Final = (
    *(0.001, 0.005, 0.025, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)


class Histogram:
    """
    Counts values in buckets.

    @ivar bounds: The largest value of each bucket but the last, in ascending order.
    @ivar counts: The number of values in each bucket. The last bucket is for values
        above the last bound.
    @ivar total: The sum of all values.
    """

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """
        Count one value.
        """
        # A clock that was set back must not make the sum smaller.
        if value < 0:
            value = 0.0
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observeAll(self, values: Iterable[float]) -> None:
        """
        Count many values. This is faster than counting them one by one.
        """
        ordered = sorted(values)
        below = bisect_left(ordered, 0.0)
        ordered[:below] = [0.0] * below
        counted = 0
        for number, bound in enumerate(self.bounds):
            upTo = bisect_right(ordered, bound, counted)
            self.counts[number] += upTo - counted
            counted = upTo
        self.counts[-1] += len(ordered) - counted
        self.total += sum(ordered)
