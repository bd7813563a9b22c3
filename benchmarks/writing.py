"""
The latency of C{/say} while other clients create users.

One connection sends requests for C{/say} at random times: alone, while 64 other
connections create users as fast as they can, and while they request C{/say} instead.
The 99th percentiles are compared. Server, writers and prober are processes of their
own; the machine may have fewer processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.support.measure import Figure, Size, Target, percentile, run
from benchmarks.support.processes import Child
from benchmarks.support.servers import Server

_SIZES = {
    "requests": Size(600, 20, "requests to /say in one round"),
    "rate": Size(200, 200, "requests per second"),
    "connections": Size(64, 4, "busy connections"),
    "writes": Size(25_000, 20, "writes in one round; three times as many reads"),
    "rounds": Size(5, 1, "rounds"),
}


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    kinds = ("", "post", "say")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        load = stack.enter_context(Child("benchmarks.support.load"))
        prober = stack.enter_context(Child("benchmarks.support.load"))
        server = stack.enter_context(Server("tsrv", directory))
        for _ in range(sizes["rounds"]):
            for kind in kinds:
                if kind:
                    # Both kinds last as long as the probe.
                    count = max(sizes["writes"], sizes["connections"])
                    count *= 1 if kind == "post" else 3
                    load.send(kind, server.port, sizes["connections"], count)
                probed = prober.request(
                    "probe", server.port, sizes["requests"], sizes["rate"]
                )
                seconds[kind] += probed["seconds"]
                if kind:
                    load.receive()
                server.acknowledged += count if kind == "post" else 0
        server.kill()
        server.check()
    figures = []
    writing = f"`/say` while {sizes['connections']} connections create users"
    others = (("say", "while they request `/say`", 1.0), ("", "alone", 2.0))
    for other, against, bound in others:
        for share, name in ((0.99, "99th percentile"), (0.5, "median")):
            figures.append(
                Figure(
                    f"{writing}: {name}",
                    against,
                    percentile(seconds["post"], share),
                    percentile(seconds[other], share),
                    "ms",
                    Target(bound) if share == 0.99 else None,
                )
            )
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
