"""
The rate of requests for C{/say} when the clock is ready.

It is compared with a bare twisted.web resource, which calls the same clock, and sends
the same response from a callback: on a plain L{twisted.web.server.Site}, which formats
a line of its access log for each request, and on a site without an access log, as in
tsrv. It is also compared with aiohttp on asyncio's own loop, without an access log; its
handler awaits the time for one turn of the loop, too.

Each server is a process of its own, and so is the load. The servers take turns; the
median of the ratios of consecutive rounds counts. The processor time of one request
says the same with less noise.

The comparison with aiohttp needs C{pip install aiohttp}.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from statistics import median

from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import Child

_SIZES = {
    "requests": Size(3_000, 20, "requests in one round"),
    "connections": Size(50, 4, "connections that are kept busy"),
    "rounds": Size(8, 1, "rounds with each set of servers"),
    "servers": Size(3, 1, "sets of servers"),
}

_AIOHTTP = "aiohttp"


class _Side:
    """
    One kind of server.

    @ivar rates: Requests in a second, for each round.
    @ivar costs: The server's processor time for a request, in microseconds.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.costs: list[float] = []

    def ask(self, load: Child, server: Child, connections: int, requests: int) -> None:
        """
        Measure one round.
        """
        before = server.request("report")
        seconds = load.request("say", before["port"], connections, requests)["seconds"]
        after = server.request("report")
        self.rates.append(requests / seconds)
        self.costs.append((after["cpu"] - before["cpu"]) / requests * 1e6)


def _serverOf(name: str) -> Child:
    if name == _AIOHTTP:
        return Child("benchmarks.support.aiohttpserver")
    return Child("benchmarks.support.sayserver", name)


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    names = ["tsrv", "quiet", "bare"]
    if find_spec(_AIOHTTP):
        names.append(_AIOHTTP)
    elif sizes["requests"] == _SIZES["requests"].full:
        print("No comparison with aiohttp: pip install aiohttp", file=sys.stderr)
    connections, requests = sizes["connections"], sizes["requests"]
    sides = {name: _Side() for name in names}
    for _ in range(sizes["servers"]):
        with ExitStack() as stack:
            load = stack.enter_context(Child("benchmarks.support.load"))
            servers = {name: stack.enter_context(_serverOf(name)) for name in names}
            for server in servers.values():
                port = server.request("ready")["port"]
                load.request("say", port, connections, requests)
            order = list(names)
            for _ in range(sizes["rounds"]):
                for name in order:
                    sides[name].ask(load, servers[name], connections, requests)
                order.reverse()
    tsrv = sides["tsrv"]
    figures = []
    for name, against, bound in (
        ("bare", "bare resource on a plain `Site`", 0.95),
        ("quiet", "bare resource, without an access log", 1.3),
        (_AIOHTTP, "aiohttp", 0.7),
    ):
        if name not in sides:
            continue
        other = sides[name]
        figures += [
            Figure(
                "ready `/say`",
                against,
                median(tsrv.rates),
                median(other.rates),
                "requests/s",
                Target(bound, atLeast=True),
                [a / b for a, b in zip(tsrv.rates, other.rates, strict=True)],
            ),
            Figure(
                "(processor time of one request)",
                against,
                median(tsrv.costs),
                median(other.costs),
                "µs",
            ),
        ]
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
