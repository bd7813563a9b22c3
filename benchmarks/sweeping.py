"""
The cost of many sessions in SQLite, and of removing expired ones.

Tables of a hundred thousand and of a million sessions, half of them expired, are
compared with a table of ten thousand: the size of a session on the disk, and the
memory of the server after some sessions were visited.

Then the server removes the expired sessions, while one connection sends requests for
C{/say} at random times. The 99th percentile of the latency is compared with the one
without the removal. Server and prober are processes of their own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import time
from typing import Final

from benchmarks.support.measure import Figure, Size, Target, percentile, run
from benchmarks.support.processes import Child
from benchmarks.support.sessionserver import identifierOf

_SIZES = {
    "sessions": Size(1_000_000, 400, "sessions"),
    "visits": Size(2_000, 20, "visited sessions"),
    "requests": Size(1_000, 20, "requests to /say in one round"),
    "rate": Size(200, 200, "requests per second"),
}

_SERVER: Final = "benchmarks.support.sessionserver"

_STEPS: Final = (100, 10, 1)
"""
Divisors of the number of sessions: at first, later, and at the end.
"""

_DATA: Final = (
    '{"name":"Ada Lovelace","visits":%d,'
    '"token":"sZ3q0Pz5vO0R3m0mC7iXq2cKkYx9H4tJ8uWb1eNfLgA"}'
)

_INSERT: Final = (
    "INSERT INTO sessions (key, data, version, created, expires) VALUES (?, ?, 1, ?, ?)"
)


def _rows(first: int, following: int) -> Iterator[tuple[object, ...]]:
    """
    Return rows of sessions. The sessions with even numbers have expired.
    """
    random = Random(first)  # noqa: S311
    now = time()
    for number in range(first, following):
        key = sha256(identifierOf(number).encode("ascii")).digest()
        apart = random.uniform(600, 3600) * (1 if number % 2 else -1)
        yield key, _DATA % (number % 100), now - 4 * 3600, now + apart


def _fill(path: Path, first: int, following: int) -> int:
    """
    Write sessions into the table while the server does not run.

    @return: The size of the file, in bytes.
    """
    with closing(sqlite3.connect(path)) as database:
        # This needs no durability, and all changes fit into memory.
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA cache_size = -{400 * 1024}")
        with database:
            database.executemany(_INSERT, _rows(first, following))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def _visit(server: Child, sessions: int, visits: int) -> int:
    """
    Visit some sessions that have not expired.

    @return: The memory of the server, in bytes.
    """
    random = Random(sessions)  # noqa: S311
    numbers = random.sample(range(1, sessions, 2), min(visits, sessions // 2))
    memory: int = server.request("visit", *numbers)["memory"]
    return memory


class _Latencies:
    """
    The latencies of C{/say}, in seconds.

    @ivar alone: Without other work.
    @ivar meanwhile: While sessions were removed.
    """

    def __init__(self, prober: Child, port: int, sizes: Mapping[str, int]) -> None:
        """
        @param prober: The process that sends the requests.
        @param port: The port of the server.
        @param sizes: The sizes.
        """
        self.alone: list[float] = []
        self.meanwhile: list[float] = []
        self._prober = prober
        self._port = port
        self._requests = sizes["requests"]
        self._rate = sizes["rate"]

    def probe(self) -> None:
        """
        Measure one round without other work.
        """
        self.alone += self._secondsOf(self._requests)

    def probeWhileCleaning(self, server: Child) -> dict[str, float]:
        """
        Measure until all expired sessions are removed. A round that ends
        afterwards does not count, unless it is the only one.

        @return: The last report of the server.
        """
        report = server.request("clean")
        while report["removed"] is None or not self.meanwhile:
            # About a second.
            seconds = self._secondsOf(min(self._rate, self._requests))
            report = server.request("report")
            if report["removed"] is None or not self.meanwhile:
                self.meanwhile += seconds
        return report

    def _secondsOf(self, requests: int) -> list[float]:
        arguments = ("probe", self._port, requests, self._rate)
        seconds: list[float] = self._prober.request(*arguments)["seconds"]
        return seconds


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    counts = [max(sizes["sessions"] // part, 2) for part in _STEPS]
    fileSizes: list[float] = []
    memories: list[int] = []
    with ExitStack() as stack:
        path = Path(stack.enter_context(TemporaryDirectory())) / "sessions.db"
        with Child(_SERVER, str(path)) as server:
            # The server creates the table.
            server.request("wait")
        for before, count in zip([0, *counts], counts, strict=False):
            fileSizes.append(_fill(path, before, count) / count)
            with Child(_SERVER, str(path)) as server:
                server.request("wait")
                memories.append(_visit(server, count, sizes["visits"]))
        prober = stack.enter_context(Child("benchmarks.support.load"))
        server = stack.enter_context(Child(_SERVER, str(path)))
        idle = server.request("wait")
        latencies = _Latencies(prober, idle["port"], sizes)
        latencies.probe()
        report = latencies.probeWhileCleaning(server)
        latencies.probe()
    ended = (counts[-1] + 1) // 2
    if report["removed"] != ended:
        raise RuntimeError(f"{report['removed']} of {ended} sessions were removed")
    figures = []
    for what, unit, values in (
        ("one of {:,} sessions on the disk", "bytes", fileSizes),
        ("memory of a process with {:,} sessions", "kB", [m / 1e3 for m in memories]),
    ):
        for count, value in zip(counts[1:], values[1:], strict=True):
            against = f"a table of {counts[0]:,}"
            figures.append(
                Figure(what.format(count), against, value, values[0], unit, Target(1.2))
            )
    removing = f"`/say` while {ended:,} sessions are removed"
    for share, name in ((0.99, "99th percentile"), (0.5, "median")):
        figures.append(
            Figure(
                f"{removing}: {name}",
                "alone",
                percentile(latencies.meanwhile, share),
                percentile(latencies.alone, share),
                "ms",
                Target(2.0) if share == 0.99 else None,
            )
        )
    figures.append(
        Figure(
            f"(memory after the removal, which took {report['seconds']:.3g} s)",
            "before",
            report["memory"] / 1e3,
            idle["memory"] / 1e3,
            "kB",
        )
    )
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
