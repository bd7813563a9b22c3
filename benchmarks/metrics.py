"""
The cost of the metrics.

The server counts requests for C{/say}, and a scraper requests C{/metrics} once in each
round, about once a second. The comparison is the same server without metrics.

Each server is a process of its own, and so are the load and the scraper. The servers
take turns; the median of the ratios of consecutive rounds counts. The processor time
of one request, with its share of the scrape, says the same with less noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median

from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import Child

_SIZES = {
    "requests": Size(15_000, 20, "requests in one round"),
    "connections": Size(50, 4, "connections that are kept busy"),
    "rounds": Size(8, 1, "rounds with each pair of servers"),
    "servers": Size(3, 1, "pairs of servers"),
}

_SIDES = ("counted", "tsrv")


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    connections, requests = sizes["connections"], sizes["requests"]
    rates: dict[str, list[float]] = {side: [] for side in _SIDES}
    costs: dict[str, list[float]] = {side: [] for side in _SIDES}
    for _ in range(sizes["servers"]):
        with ExitStack() as stack:
            load = stack.enter_context(Child("benchmarks.support.load"))
            scraper = stack.enter_context(Child("benchmarks.support.load"))
            servers = {
                side: stack.enter_context(Child("benchmarks.support.sayserver", side))
                for side in _SIDES
            }
            for server in servers.values():
                port = server.request("ready")["port"]
                load.request("say", port, connections, requests)
            order = list(_SIDES)
            for _ in range(sizes["rounds"]):
                for side in order:
                    before = servers[side].request("report")
                    load.send("say", before["port"], connections, requests)
                    if side == "counted":
                        scraper.request("scrape", before["port"])
                    seconds = load.receive()["seconds"]
                    after = servers[side].request("report")
                    rates[side].append(requests / seconds)
                    costs[side].append((after["cpu"] - before["cpu"]) / requests * 1e6)
                order.reverse()
    return [
        Figure(
            "ready `/say` with metrics and a scraper",
            "the same server without metrics",
            median(rates["counted"]),
            median(rates["tsrv"]),
            "requests/s",
            Target(0.95, atLeast=True),
            [a / b for a, b in zip(rates["counted"], rates["tsrv"], strict=True)],
        ),
        Figure(
            "(processor time of one request)",
            "the same server without metrics",
            median(costs["counted"]),
            median(costs["tsrv"]),
            "µs",
            pairs=[a / b for a, b in zip(costs["counted"], costs["tsrv"], strict=True)],
        ),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
