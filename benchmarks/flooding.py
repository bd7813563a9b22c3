"""
The harm that a few clients can do to a server, and the cost of many idle clients.

Some clients send 64 KiB of pipelined requests for C{/metrics}, read the responses,
and begin again. Meanwhile another client measures the latency of C{/livez}. A response
that is missing at the end counts with the time that the client has waited for it.

Other clients send 64 KiB of pipelined requests for C{/users}, a page of a thousand
users, and read nothing. The script measures the peak memory of the server for each of
these clients.

Thousands of clients connect and do nothing. Then each sends one request. The script
measures the memory of one connection, before and after this request.

The comparison is a plain L{twisted.web.server.Site} with the same resources, without an
access log. The script kills that server before it has answered all requests; later its
latency and its memory would be worse.

Each measurement has a new process for each server, and for the load.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from benchmarks.support.measure import Figure, Size, Target, percentile, run
from benchmarks.support.processes import Child, raiseFileLimit

_SIZES = {
    "floods": Size(12, 2, "connections that flood the server"),
    "silent": Size(50, 2, "connections that read nothing"),
    "idle": Size(5_000, 20, "idle connections"),
    "seconds": Size(8, 1, "seconds of a flood"),
    "silence": Size(12, 2, "seconds for which clients read nothing"),
    "rate": Size(50, 50, "requests for /livez in a second"),
    "users": Size(1_000, 10, "users in the response that nobody reads"),
}

# This many fit into the backlog of a server.
_BURST = 500

_KINDS = ("tsrv", "plain")

_POLL_SECONDS = 0.05


@contextmanager
def _serving(kind: str, users: int) -> Iterator[tuple[Child, int, Child]]:
    """
    Run a server and a load.

    @return: The server, its port, and the load.
    """
    with (
        TemporaryDirectory() as directory,
        Child("benchmarks.support.floodload") as load,
        Child(
            "benchmarks.support.floodedserver", kind, f"sqlite:{directory}/users.db"
        ) as server,
    ):
        port = server.request("create", users)["port"]
        yield server, port, load
        # A flooded server may not notice that it should exit.
        server.kill()


def _latencies(kind: str, sizes: Mapping[str, int]) -> list[float]:
    """
    Return the seconds that each response for C{/livez} took during a flood.
    """
    seconds = sizes["seconds"]
    with (
        _serving(kind, 1) as (_, port, load),
        Child("benchmarks.support.floodload") as watcher,
    ):
        # The last request may be a second late.
        load.send("flood", port, sizes["floods"], seconds + 1)
        watched = watcher.request("watch", port, sizes["rate"], seconds)
        answered = load.receive()["answered"]
        times: list[float] = watched["seconds"]
        # A plain site computes the responses to all clients before it sends any.
        if not answered and max(times) < 1:
            raise RuntimeError("the server answers, but not the clients that flood")
        return times


def _memoryOfSilent(kind: str, sizes: Mapping[str, int]) -> float:
    """
    Return the bytes for one client that reads nothing.
    """
    with _serving(kind, sizes["users"]) as (server, port, load):
        # The first request pays for what all requests share.
        load.request("open", port, 1)
        before = most = server.residentBytes
        load.request("ignore", port, sizes["silent"])
        end = monotonic() + sizes["silence"]
        while monotonic() < end:
            sleep(_POLL_SECONDS)
            most = max(most, server.residentBytes)
        if not load.request("peek")["begun"]:
            raise RuntimeError("the server has answered none of the clients")
        return max(1, most - before) / sizes["silent"]


def _memoryOfIdle(kind: str, connections: int) -> tuple[float, float]:
    """
    Return the bytes for one idle connection, before and after its first request.
    """
    with _serving(kind, 1) as (server, port, load):
        load.request("open", port, 1)
        load.request("use")
        before = server.residentBytes
        for opened in range(0, connections, _BURST):
            load.request("open", port, min(_BURST, connections - opened))
        fresh = server.residentBytes - before
        load.request("use")
        used = server.residentBytes - before
        return max(1, fresh) / connections, max(1, used) / connections


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    idle = max(1, raiseFileLimit(sizes["idle"]))
    if idle < sizes["idle"]:
        print(
            f"Only {idle:,} of {sizes['idle']:,} connections: the limit of open files "
            "is too low",
            file=sys.stderr,
        )
    figures = []

    def compare(
        what: str, sides: Sequence[float], unit: str, bound: float | None
    ) -> None:
        target = None if bound is None else Target(bound, unit)
        against = "a plain `Site`, without an access log"
        ours, theirs = sides
        figures.append(Figure(what, against, ours, theirs, unit, target))

    times = [_latencies(kind, sizes) for kind in _KINDS]
    flood = f"`/livez` while {sizes['floods']} clients flood"
    for what, share, bound in (
        ("longest", 1.0, 100),
        ("99th percentile", 0.99, 100),
        ("median", 0.5, None),
    ):
        latencies = [percentile(each, share) for each in times]
        compare(f"{flood}: {what}", latencies, "ms", bound)

    silent = [_memoryOfSilent(kind, sizes) / 1e3 for kind in _KINDS]
    what = f"{sizes['silent']} clients that read nothing: memory of one"
    compare(what, silent, "KB", 2_000)

    memory = [_memoryOfIdle(kind, idle) for kind in _KINDS]
    for what, place in (
        (f"{idle:,} idle connections: memory of one", 0),
        (f"{idle:,} idle connections after a request: memory of one", 1),
    ):
        compare(what, [each[place] for each in memory], "bytes", 2_500)
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
