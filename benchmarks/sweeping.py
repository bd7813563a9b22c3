"""
What many sessions in SQLite cost, and what it costs others to be rid of them.

A table of a million sessions, of which half have ended, is compared with one of
ten thousand, and with one of a hundred thousand: how much room each session takes
on the disk, and how much memory the process of the server takes once some of them
have been visited.

Then those that have ended are removed, while somebody asks C{/say} now and then of
the same process: that is compared, by what 99 of 100 answers take at most, with
C{/say} before and after that. Server and who asks are processes of their own.
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

from benchmarks._measure import Figure, Size, Target, run
from benchmarks._processes import Child
from benchmarks._swept import identifierOf
from benchmarks.writing import _share

_SIZES = {
    "sessions": Size(1_000_000, 400, "sessions in the end"),
    "visits": Size(2_000, 20, "of them that are visited"),
    "requests": Size(1_000, 20, "requests to /say in one round"),
    "rate": Size(200, 200, "of them in a second"),
}

_STEPS: Final = (100, 10, 1)
"""
What parts of the sessions there are at first, later, and in the end: one in so
many.
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
    @return: Sessions with these numbers. Those with an even one have ended.
    """
    random = Random(first)  # noqa: S311
    now = time()
    for number in range(first, following):
        key = sha256(identifierOf(number).encode("ascii")).digest()
        apart = random.uniform(600, 3600) * (1 if number % 2 else -1)
        yield key, _DATA % (number % 100), now - 4 * 3600, now + apart


def _fill(path: Path, first: int, following: int) -> int:
    """
    Write sessions into the table, past the server, which does not run.

    @return: The bytes that the file has then.
    """
    with closing(sqlite3.connect(path)) as database:
        # It may be lost with the machine, and what is changed fits into memory.
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA cache_size = -{400 * 1024}")
        with database:
            database.executemany(_INSERT, _rows(first, following))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def _visit(server: Child, sessions: int, visits: int) -> int:
    """
    Visit some sessions that have not ended.

    @return: The bytes of memory that the server has then.
    """
    random = Random(sessions)  # noqa: S311
    numbers = random.sample(range(1, sessions, 2), min(visits, sessions // 2))
    memory: int = server.tell("visit", *numbers)["memory"]
    return memory


class _Answers:
    """
    How long C{/say} took.

    @ivar alone: With nothing else to do, in seconds.
    @ivar meanwhile: While sessions were removed.
    """

    def __init__(self, prober: Child, port: int, sizes: Mapping[str, int]) -> None:
        """
        @param prober: Who asks.
        @param port: Of whom.
        @param sizes: How much of everything.
        """
        self.alone: list[float] = []
        self.meanwhile: list[float] = []
        self._prober = prober
        self._port = port
        self._requests = sizes["requests"]
        self._rate = sizes["rate"]

    def ask(self) -> None:
        """
        Ask for one round, when there is nothing else to do.
        """
        self.alone += self._taken(self._requests)

    def askWhileCleaning(self, server: Child) -> dict[str, float]:
        """
        Ask until all sessions that have ended are removed. What was asked for
        partly afterwards does not count, unless there is nothing else.

        @return: What the server reports then.
        """
        report = server.tell("clean")
        while report["removed"] is None or not self.meanwhile:
            # About a second.
            taken = self._taken(min(self._rate, self._requests))
            report = server.tell("report")
            if report["removed"] is None or not self.meanwhile:
                self.meanwhile += taken
        return report

    def _taken(self, requests: int) -> list[float]:
        arguments = ("probe", self._port, requests, self._rate)
        taken: list[float] = self._prober.tell(*arguments)["taken"]
        return taken


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    @param sizes: How much of everything.
    @return: What was measured.
    """
    counts = [max(sizes["sessions"] // part, 2) for part in _STEPS]
    rooms: list[float] = []
    memories: list[int] = []
    with ExitStack() as stack:
        path = Path(stack.enter_context(TemporaryDirectory())) / "sessions.db"
        with Child("benchmarks._swept", str(path)) as server:
            # It makes the table.
            server.tell("wait")
        for before, count in zip([0, *counts], counts, strict=False):
            rooms.append(_fill(path, before, count) / count)
            with Child("benchmarks._swept", str(path)) as server:
                server.tell("wait")
                memories.append(_visit(server, count, sizes["visits"]))
        prober = stack.enter_context(Child("benchmarks._clients"))
        server = stack.enter_context(Child("benchmarks._swept", str(path)))
        idle = server.tell("wait")
        answers = _Answers(prober, idle["port"], sizes)
        answers.ask()
        report = answers.askWhileCleaning(server)
        answers.ask()
    ended = (counts[-1] + 1) // 2
    if report["removed"] != ended:
        raise RuntimeError(f"{report['removed']} of {ended} sessions were removed")
    figures = []
    for what, unit, values in (
        ("one of {:,} sessions on the disk", "bytes", rooms),
        ("memory of a process with {:,} sessions", "kB", [m / 1e3 for m in memories]),
    ):
        for count, value in zip(counts[1:], values[1:], strict=True):
            against = f"with {counts[0]:,}"
            figures.append(
                Figure(what.format(count), against, value, values[0], unit, Target(1.2))
            )
    removing = f"`/say` while {ended:,} sessions are removed"
    for share, name in ((0.99, "99th percentile"), (0.5, "median")):
        figures.append(
            Figure(
                f"{removing}: {name}",
                "alone",
                _share(answers.meanwhile, share),
                _share(answers.alone, share),
                "ms",
                Target(2.0) if share == 0.99 else None,
            )
        )
    figures.append(
        Figure(
            f"(memory after that, which took {report['seconds']:.3g} s)",
            "before",
            report["memory"] / 1e3,
            idle["memory"] / 1e3,
            "kB",
        )
    )
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
