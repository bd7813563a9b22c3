"""
The resources of a server after a long time: memory, files, threads and objects.

Clients request every page of the demo server. Many disconnect in the head of a request,
in its body, before the response, or while they read it. Meanwhile modules are paused,
reset and lost. After each round all clients disconnect, and the script counts the
resources of the process. It compares the medians of the last and the first third of
the rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import Child
from tests.websupport import reservedPort

_SIZES = {
    "seconds": Size(600, 3, "seconds of load, in all rounds together"),
    "rounds": Size(30, 3, "rounds"),
    "clients": Size(32, 8, "clients"),
}


def _soak(sizes: Mapping[str, int]) -> tuple[Counter[str], list[dict[str, Any]]]:
    """
    Return the counted behaviours of clients, and the resources after each round.
    """
    seconds = max(1, sizes["seconds"] // sizes["rounds"])
    kinds = Counter[str]()
    samples = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        port = stack.enter_context(reservedPort())
        words = [f"--listen=tcp:{port}:interface=127.0.0.1:backlog=1024", "--delay=0"]
        words += [f"--database=sqlite:{directory}/soak.db", "--queue-limit=100"]
        words += ["--new-sessions=100000", "--new-sessions-per-peer=100000"]
        words += ["--session-idle=10"]
        server = stack.enter_context(Child("benchmarks.support.soakserver", *words))
        load = stack.enter_context(Child("benchmarks.support.soakload"))
        server.request("rest")
        for _ in range(sizes["rounds"]):
            server.request("work")
            kinds.update(load.request("run", port, seconds, sizes["clients"]))
            samples.append(server.request("rest"))
    return kinds, samples


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    kinds, samples = _soak(sizes)
    left = sum(count for kind, count in kinds.items() if kind.startswith("left "))
    load = f"{kinds.total():,} exchanges, {left:,} with an early disconnect"
    third = max(1, len(samples) // 3)
    figures = []
    for name, unit, divisor, bound in (
        ("memory", "MB", 1e6, 1),
        ("files", "files", 1, 0),
        ("threads", "threads", 1, 0),
        # A history keeps its last episodes, and the reactor some cancelled timers.
        ("objects", "objects", 1, 500),
    ):
        last, first = (
            median(sample[name] for sample in part) / divisor
            for part in (samples[-third:], samples[:third])
        )
        target = Target(bound, unit, isDifference=True)
        figures.append(
            Figure(f"{load}: {name}", "the first third", last, first, unit, target)
        )
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
