"""
The rate of requests for C{/users}.

It is compared with Express and better-sqlite3 (C{benchmarks/peers/}) on the same table,
and with tsrv without a wrapper in front of the database.

Each server is a process of its own, and so is the load. The servers take turns; the
median of the ratios of consecutive rounds counts.

Both sides use a write-ahead log in SQLite. tsrv waits until the disk confirms each
transaction (C{synchronous=FULL}). better-sqlite3 does not (C{NORMAL}): its acknowledged
writes survive a crash of the process, but not of the machine. At the end the script
kills the servers, and checks that no acknowledged write is missing.

The comparison with Express needs C{(cd benchmarks/peers/express && npm install)}.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import Child
from benchmarks.support.servers import EXPRESS, Server, hasExpress

_SIZES = {
    "requests": Size(6_000, 20, "requests in one round"),
    "connections": Size(64, 4, "connections that are kept busy"),
    "rounds": Size(10, 1, "rounds with each set of servers"),
    "servers": Size(2, 1, "sets of servers"),
}


class _Side:
    """
    One kind of server.

    @ivar rates: For each kind of request, the requests per second in each round.
    @ivar costs: The server's processor time for a request, in microseconds.
    """

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {"get": [], "post": []}
        self.costs: dict[str, list[float]] = {"get": [], "post": []}

    def ask(
        self, kind: str, load: Child, server: Server, connections: int, requests: int
    ) -> None:
        """
        Measure one round.
        """
        before = server.cpu
        answer = load.request(kind, server.port, connections, requests)
        self.costs[kind].append((server.cpu - before) / requests * 1e6)
        self.rates[kind].append(requests / answer["seconds"])
        server.acknowledged += requests * (kind == "post")


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    names = ["tsrv", "direct"]
    if hasExpress():
        names.append("express")
    elif sizes["requests"] == _SIZES["requests"].full:
        print(
            f"No comparison with Express: (cd {EXPRESS} && npm install)",
            file=sys.stderr,
        )
    connections, requests = sizes["connections"], sizes["requests"]
    sides = {name: _Side() for name in names}
    for _ in range(sizes["servers"]):
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory()))
            load = stack.enter_context(Child("benchmarks.support.load"))
            servers = {
                name: stack.enter_context(Server(name, directory)) for name in names
            }
            for server in servers.values():
                load.request("post", server.port, connections, requests)
                server.acknowledged += requests
                load.request("get", server.port, connections, requests)
            order = list(names)
            for _ in range(sizes["rounds"]):
                for kind in ("get", "post"):
                    for name in order:
                        arguments = (load, servers[name], connections, requests)
                        sides[name].ask(kind, *arguments)
                order.reverse()
            for server in servers.values():
                server.kill()
                server.check()
    figures = []
    for name, against, kinds, bound in (
        ("express", "Express 5, better-sqlite3", ("get", "post"), 1.0),
        ("direct", "tsrv without wrappers", ("get", "post"), 0.97),
    ):
        for kind in kinds if name in sides else ():
            what = "`GET /users/3`" if kind == "get" else "`POST /users`"
            figures += _compare(what, against, sides["tsrv"], sides[name], kind, bound)
    return figures


def _compare(
    what: str, against: str, ours: _Side, theirs: _Side, kind: str, bound: float
) -> list[Figure]:
    rates = (ours.rates[kind], theirs.rates[kind])
    return [
        Figure(
            what,
            against,
            median(rates[0]),
            median(rates[1]),
            "requests/s",
            Target(bound, atLeast=True),
            [a / b for a, b in zip(*rates, strict=True)],
        ),
        Figure(
            "(processor time of one request)",
            against,
            median(ours.costs[kind]) or 1.0,
            median(theirs.costs[kind]) or 1.0,
            "µs",
        ),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
