"""
The cost of holding requests until the clock is ready.

The load sends ten thousand requests, each on a connection of its own, to a server that
is not ready. The script measures the memory of one request, and the time to answer all
once the server is ready. The comparison is a bare resource that keeps a Deferred for
each request in a list, and fires them all when the clock is ready.

Each round has a new process for each server, and for the load.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from statistics import median
from time import monotonic, sleep
from typing import Any

from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import MAX_PROCESS_SECONDS, Child, raiseFileLimit

_SIZES = {
    "requests": Size(10_000, 20, "held requests"),
    "rounds": Size(5, 1, "rounds"),
}

# This many fit into the backlog of a busy server.
_BURST = 500


class _Side:
    """
    One kind of server.

    @ivar memory: The memory of one request, in bytes, for each round.
    @ivar times: The time to answer all requests, in milliseconds.
    @ivar costs: The processor time of the server to answer them, in milliseconds.
    """

    def __init__(self, name: str) -> None:
        """
        @param name: The argument of the server.
        """
        self._name = name
        self.memory: list[float] = []
        self.times: list[float] = []
        self.costs: list[float] = []

    def measure(self, requests: int) -> None:
        """
        Measure one round.

        @param requests: Number of held requests.
        """
        with (
            Child("benchmarks.support.load") as load,
            Child("benchmarks.support.sayserver", self._name) as server,
        ):
            # The first request pays for what all requests share.
            before = _holdMore(load, server, 1)
            after = before
            while after["held"] < requests:
                after = _holdMore(load, server, min(_BURST, requests - after["held"]))
            taken = after["memory"] - before["memory"]
            self.memory.append(taken / (after["held"] - before["held"]))

            begun = monotonic()
            server.send("ready")
            last = load.request("collect")["last"]
            self.times.append((last - begun) * 1e3)
            server.receive()
            end = server.request("report")
            self.costs.append((end["cpu"] - after["cpu"]) * 1e3)


def _holdMore(load: Child, server: Child, more: int) -> dict[str, Any]:
    """
    Send further requests.

    @return: The report of the server when it holds them.
    """
    report = server.request("report")
    held = load.request("hold", report["port"], more)["held"]
    end = monotonic() + MAX_PROCESS_SECONDS
    while report["held"] < held:
        if monotonic() > end:
            raise TimeoutError(f"the server does not hold {held} requests")
        sleep(0.005)
        report = server.request("report")
    return report


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    wanted = sizes["requests"]
    requests = max(2, raiseFileLimit(wanted))
    if requests < wanted:
        print(
            f"Only {requests:,} of {wanted:,} requests: the limit of open files is too "
            "low",
            file=sys.stderr,
        )
    tsrv, bare = sides = [_Side("tsrv"), _Side("quiet")]
    for _ in range(sizes["rounds"]):
        for side in sides:
            side.measure(requests)
        sides.reverse()

    def figure(what: str, unit: str, attribute: str, target: Target | None) -> Figure:
        ours, theirs = getattr(tsrv, attribute), getattr(bare, attribute)
        return Figure(
            what,
            "bare resource, a list of Deferreds",
            median(ours),
            median(theirs),
            unit,
            target,
            [a / b for a, b in zip(ours, theirs, strict=True)],
        )

    return [
        figure(
            f"{requests:,} held requests: memory of one",
            "bytes",
            "memory",
            Target(0.8),
        ),
        figure(
            f"{requests:,} held requests: time to answer all",
            "ms",
            "times",
            Target(0.7),
        ),
        figure("(processor time to answer all)", "ms", "costs", None),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
