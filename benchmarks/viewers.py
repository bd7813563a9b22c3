"""
What it costs the server that many watch the status page.

Five hundred viewers read the stream of events while ten modules change in a
second: how much of one core does the server take, and how much memory for each
viewer? Then some watch who never read, while a hundred modules change all the
time: how much is kept for each of them?

It is compared with streams to which every change is written at once, as soon as
it is there, and which ask nobody to read: a list of requests on a plain site of
twisted.web, and nothing to be rendered.

Each server is a process of its own; one process reads all streams.
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

from benchmarks._measure import Figure, Size, Target, run
from benchmarks._processes import LONGEST, Child, raiseFileLimit

_SIZES = {
    "viewers": Size(500, 5, "viewers who read"),
    "rate": Size(10, 10, "changes in a second"),
    "seconds": Size(10, 1, "seconds for which they read"),
    "slow": Size(50, 2, "viewers who never read"),
    "changing": Size(100, 5, "modules that change then, ten times in a second"),
    "wait": Size(10, 1, "seconds for which they don't read"),
}

_SIDES = ("tsrv", "plain")

_REQUEST = b"GET /status/events HTTP/1.1\r\nHost: localhost\r\n\r\n"

# To close resets the connection, so that no port is kept from being used again.
_RESET = struct.pack("ii", 1, 0)


class _Side:
    """
    One kind of server.

    @ivar share: Its processor time in percent of the time that went by.
    @ivar memory: What each viewer takes, in bytes.
    @ivar received: How much each viewer receives in a second, in bytes.
    @ivar slow: What each viewer takes who never reads, in bytes.
    """

    def __init__(self, name: str, sizes: Mapping[str, int]) -> None:
        """
        @param name: What the server calls it.
        @param sizes: How much of everything.
        """
        self._name = name
        self.share, self.memory, self.received = self._measureReaders(sizes)
        self.slow = self._measureSlow(sizes)

    def _measureReaders(self, sizes: Mapping[str, int]) -> tuple[float, float, float]:
        viewers, seconds = sizes["viewers"], sizes["seconds"]
        with Child("benchmarks._viewed", self._name, "10") as server:
            # What the server needs for the first one it needs for all.
            with _watching(server, 1):
                pass
            before = server.tell("change", 1, sizes["rate"])
            with _watching(server, viewers) as watching:
                _read(watching, 1)
                begun = server.tell("report")
                start = monotonic()
                received = _read(watching, seconds)
                took = monotonic() - start
                end = server.tell("report")
            return (
                (end["cpu"] - begun["cpu"]) / took * 100,
                (end["memory"] - before["memory"]) / viewers,
                received / took / viewers,
            )

    def _measureSlow(self, sizes: Mapping[str, int]) -> float:
        slow, changing = sizes["slow"], sizes["changing"]
        with Child("benchmarks._viewed", self._name, str(changing)) as server:
            with _watching(server, 1) as watching:
                before = server.tell("change", changing, 10)
                _read(watching, 1)
            before = server.tell("report")
            with _watching(server, slow):
                _read([], sizes["wait"])
                end = server.tell("report")
        return float(end["memory"] - before["memory"]) / slow


@contextmanager
def _watching(server: Child, viewers: int) -> Iterator[list[socket.socket]]:
    """
    Be so many viewers.
    """
    report = server.tell("report")
    opened = []
    try:
        for _ in range(viewers):
            connection = socket.create_connection(
                ("127.0.0.1", report["port"]), LONGEST
            )
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.sendall(_REQUEST)
            opened.append(connection)
        end = monotonic() + LONGEST
        while report["viewers"] < viewers:
            if monotonic() > end:
                raise TimeoutError("the server does not have the viewers")
            report = server.tell("report")
        yield opened
    finally:
        for connection in opened:
            connection.close()


def _read(connections: list[socket.socket], seconds: float) -> int:
    """
    Read all that there is, for so long.

    @return: How many bytes there were.
    """
    received = 0
    buffer = bytearray(1 << 16)
    end = monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        while (left := end - monotonic()) > 0:
            for key, _ in selector.select(left):
                readable: Any = key.fileobj
                count = readable.recv_into(buffer)
                if not count:
                    raise ConnectionError("the server closed a stream")
                received += count
    return received


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    @param sizes: How much of everything.
    @return: What was measured.
    """
    wanted = sizes["viewers"]
    viewers = max(1, raiseFileLimit(wanted))
    if viewers < wanted:
        print(
            f"Only {viewers:,} of {wanted:,} viewers: no more files may be open",
            file=sys.stderr,
        )
    sizes = {**sizes, "viewers": min(viewers, wanted)}
    tsrv, plain = (_Side(name, sizes) for name in _SIDES)

    def figure(what: str, unit: str, name: str, target: Target | None) -> Figure:
        # Of very few the memory is not to be seen.
        ours, theirs = (max(1.0, getattr(side, name)) for side in (tsrv, plain))
        return Figure(what, "every change to every request", ours, theirs, unit, target)

    count, rate = sizes["viewers"], sizes["rate"]
    return [
        figure(
            f"{count:,} viewers, {rate:,} changes a second: of one core",
            "%",
            "share",
            Target(20, "%"),
        ),
        figure("(received by one viewer)", "bytes/s", "received", None),
        figure("memory of one viewer", "bytes", "memory", Target(64_000, "bytes")),
        figure(
            "memory of one that never reads",
            "bytes",
            "slow",
            Target(256_000, "bytes"),
        ),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
