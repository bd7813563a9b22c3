"""
The cost of a start-up, without the work of its modules: adding, starting and closing.

The modules are ready at once, have up to three random needs, and are added in random
order. The total cost is divided by the number of modules and needs; if the quotient
does not grow with the number of modules, the cost is linear. The comparison is a loop
that initialises and closes the same wrappers, in a suitable order.

The processor time of the best round counts. The garbage collector is off, because its
cost depends on the rest of the program.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from random import Random
from time import process_time

from twisted.internet.task import Clock
from twisted.logger import globalLogBeginner

from benchmarks.support.measure import Figure, Module, Size, Target, run
from tsrv import (
    QueuingWrapper,
    Startup,
)

_SIZES = {
    "few": Size(100, 5, "modules of a small program"),
    "some": Size(1_000, 10, "modules of a large program"),
    "many": Size(10_000, 20, "modules of a huge program"),
    "rounds": Size(5, 1, "rounds for each program"),
}

_NEEDS = 3


class _Graph:
    """
    A random graph without a cycle.

    @ivar needs: The needs of each module; a module precedes its dependents.
    @ivar shuffled: The names of the modules in random order.
    @ivar size: The number of modules and needs.
    """

    def __init__(self, modules: int) -> None:
        random = Random(modules)  # noqa: S311
        names = [f"module-{number}" for number in range(modules)]
        self.needs = {
            name: random.sample(names[:place], min(place, random.randint(0, _NEEDS)))
            for place, name in enumerate(names)
        }
        self.shuffled = random.sample(names, len(names))
        self.size = modules + sum(map(len, self.needs.values()))


def _turn(clock: Clock) -> None:
    """
    Run everything that is scheduled for the next turn of the reactor.
    """
    while clock.getDelayedCalls():
        clock.advance(0)


def _startup(graph: _Graph) -> None:
    clock = Clock()
    startup = Startup(clock)
    for name in graph.shuffled:
        startup.add(name, Module(), needs=graph.needs[name])
    startup.startService()
    _turn(clock)
    if not startup.ready:
        raise RuntimeError("not ready")
    startup.stopService()
    _turn(clock)


def _loop(graph: _Graph) -> None:
    clock = Clock()
    wrappers = {
        name: QueuingWrapper(Module(), clock, name=name) for name in graph.needs
    }
    for wrapper in wrappers.values():
        wrapper.initialize()
    for name in reversed(wrappers):
        wrappers[name].close()


def _cost(act: Callable[[_Graph], None], graph: _Graph, rounds: int) -> float:
    """
    Return the microseconds for one module or need.
    """
    best = float("inf")
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        try:
            begun = process_time()
            act(graph)
            best = min(best, process_time() - begun)
        finally:
            gc.enable()
    return best / graph.size * 1e6


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    figures = []
    least: float | None = None
    for name in ("few", "some", "many"):
        graph = _Graph(sizes[name])
        ours = _cost(_startup, graph, sizes["rounds"])
        theirs = _cost(_loop, graph, sizes["rounds"])
        what = f"start-up of {sizes[name]:,} modules: each module or need"
        figures.append(Figure(what, "the wrappers in a loop", ours, theirs, "µs"))
        if least is None:
            least = ours
        else:
            figures.append(
                Figure(
                    what,
                    f"start-up of {sizes['few']:,} modules",
                    ours,
                    least,
                    "µs",
                    Target(1.5),
                )
            )
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
