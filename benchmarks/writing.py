"""
For how long C{/say} is waited while users are being written.

Somebody asks C{/say} now and then, on one connection: alone, and while 64 other
connections write users as fast as they are answered. The two are compared by what
99 of 100 answers take at most. Server, writers and who asks are processes of their
own. As there are more of them than this may have processors, it is shown as well
what the answers take while 64 connections ask the same C{/say} as fast as they
are answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks._measure import Figure, Size, Target, run
from benchmarks._processes import Child
from benchmarks._users import Server

_SIZES = {
    "requests": Size(600, 20, "requests to /say in one round"),
    "rate": Size(200, 200, "of them in a second"),
    "connections": Size(64, 4, "connections that are kept busy meanwhile"),
    "writes": Size(25_000, 20, "what they ask for in one round"),
    "rounds": Size(5, 1, "rounds"),
}


def _share(taken: list[float], share: float) -> float:
    """
    @return: What that share of the answers took at most, in milliseconds.
    """
    return sorted(taken)[int(share * (len(taken) - 1))] * 1e3


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    @param sizes: How much of everything.
    @return: What was measured.
    """
    kinds = ("", "post", "say")
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        load = stack.enter_context(Child("benchmarks._clients"))
        prober = stack.enter_context(Child("benchmarks._clients"))
        server = stack.enter_context(Server("tsrv", directory))
        for _ in range(sizes["rounds"]):
            for kind in kinds:
                if kind:
                    count = max(sizes["writes"], sizes["connections"])
                    load.begin(kind, server.port, sizes["connections"], count)
                asked = prober.tell(
                    "probe", server.port, sizes["requests"], sizes["rate"]
                )
                taken[kind] += asked["taken"]
                if kind:
                    load.answer()
                server.made += count if kind == "post" else 0
        server.kill()
        server.check()
    figures = []
    for kind, meanwhile in (("post", "writing users"), ("say", "asking `/say`")):
        for share, name in ((0.99, "99th percentile"), (0.5, "median")):
            target = Target(2.0) if (kind, share) == ("post", 0.99) else None
            figures.append(
                Figure(
                    f"`/say` while {sizes['connections']} are {meanwhile}: {name}",
                    "alone",
                    _share(taken[kind], share),
                    _share(taken[""], share),
                    "ms",
                    target,
                )
            )
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
