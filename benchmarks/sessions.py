"""
The rate of requests for C{/visits}: each finds the session of a visitor, counts a visit
in it, and gets its response when the session is stored.

The rate is compared with Express, express-session and better-sqlite3
(C{benchmarks/peers/}), and with tsrv without wrappers. Each visitor has a connection
and a session, and checks the number of visits in each response.

Each server is a process of its own, and so is the load. The servers take turns; the
median of the ratios of consecutive rounds counts.

Both sides use a write-ahead log in SQLite. tsrv waits until the disk confirms each
transaction (C{synchronous=FULL}). better-sqlite3 does not (C{NORMAL}): its acknowledged
writes survive a crash of the process, but not of the machine. At the end the script
kills the servers, and checks that no acknowledged write is missing.

The comparison needs C{(cd benchmarks/peers/express-session && npm install)}.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import Child
from benchmarks.support.servers import Server, hasExpress

_SIZES = {
    "requests": Size(3_000, 20, "requests in one round"),
    "connections": Size(64, 4, "visitors, each with a connection"),
    "rounds": Size(5, 1, "rounds with each set of servers"),
    "servers": Size(2, 1, "sets of servers"),
}

_EXPRESS: Final = Path(__file__).parent / "peers" / "express-session"

_OURS: Final = "tsrv"

_AGAINST: Final = {
    "express": ("Express 5, express-session, better-sqlite3", 1.0),
    "direct": ("tsrv without wrappers", 0.97),
}
"""
The other sides, and the target of the ratio.
"""


class _Server(Server):
    """
    A server that counts visits, with a database of its own.
    """

    peer = _EXPRESS

    # All visitors have one address.
    options = ("--new-sessions-per-peer=6000",)

    def restart(self) -> None:
        """
        Kill the server, and start it again.
        """
        self.kill()
        self.start()


class _Rates:
    """
    One kind of server.

    @ivar rates: The requests per second in each round.
    @ivar costs: The server's processor time for a request, in microseconds.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.costs: list[float] = []

    def visit(
        self, load: Child, server: _Server, connections: int, requests: int
    ) -> None:
        """
        Measure one round.
        """
        before = server.cpu
        answer = load.request("visit", server.port, connections, requests)
        self.costs.append((server.cpu - before) / requests * 1e6)
        self.rates.append(requests / answer["seconds"])


def _measureSet(
    rates: Mapping[str, _Rates], connections: int, requests: int, rounds: int
) -> None:
    """
    Measure one set of servers.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        load = stack.enter_context(Child("benchmarks.support.load"))
        servers = {
            name: stack.enter_context(_Server(name, directory)) for name in rates
        }
        for server in servers.values():
            load.request("visit", server.port, connections, requests)
        order = list(rates)
        for _ in range(rounds):
            for name in order:
                rates[name].visit(load, servers[name], connections, requests)
            order.reverse()
        for name, server in servers.items():
            server.restart()
            answer = load.request("visit", server.port, connections, connections)
            made = requests * (rounds + 1) + connections
            if sum(answer["visits"]) != made:
                raise RuntimeError(f"{name} was not visited {made} times")


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    names = [_OURS, *_AGAINST]
    if "express" in names and not hasExpress(_EXPRESS):
        names.remove("express")
        if sizes["requests"] == _SIZES["requests"].full:
            print(
                f"No comparison with Express: (cd {_EXPRESS} && npm install)",
                file=sys.stderr,
            )
    connections = sizes["connections"]
    requests = max(sizes["requests"], connections)
    rates = {name: _Rates() for name in names}
    for _ in range(sizes["servers"]):
        _measureSet(rates, connections, requests, sizes["rounds"])
    ours = rates[_OURS]
    figures = []
    for name in names[1:]:
        theirs = rates[name]
        against, bound = _AGAINST[name]
        figures += [
            Figure(
                "`GET /visits`",
                against,
                median(ours.rates),
                median(theirs.rates),
                "requests/s",
                Target(bound, atLeast=True),
                [a / b for a, b in zip(ours.rates, theirs.rates, strict=True)],
            ),
            Figure(
                "(processor time of one request)",
                against,
                median(ours.costs) or 1.0,
                median(theirs.costs) or 1.0,
                "µs",
            ),
        ]
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
