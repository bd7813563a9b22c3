"""
The cost of queuing a call, and of draining it.

Queuing is compared with the least code that can run a call later: it creates a
Deferred, and appends it with the call to a deque. Draining is compared with taking the
call from the deque, calling the module, and chaining its Deferred. The garbage
collector is off, because its cost depends on the rest of the program.

The least code has no contexts, deadlines, limit or cancellation, and lets no other work
run. It is inline. The script also measures it in a function that takes any arguments,
as the method of a proxy must.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Mapping
from timeit import Timer
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.threadable import registerAsIOThread

from benchmarks.support.measure import Figure, Module, Size, Target, leastOf, run
from tsrv import (
    QueuingWrapper,
    State,
)

_SIZES = {
    "commands": Size(10_000, 10, "queued calls in one round"),
    "rounds": Size(60, 2, "rounds"),
}

_QUEUE = "proxy.echo(1)"
_APPEND = "deferred = Deferred(); queue.append((deferred, echo, 1))"
_CALL = "call(1)"
_DRAIN = """\
wrapper.initialize()
while wrapper.state is not READY:
    turn()
"""
_POP = """\
while queue:
    deferred, method, argument = queue.popleft()
    method(argument).chainDeferred(deferred)
"""


class _Fixture:
    """
    The objects of the measured code, new in each round.
    """

    def __init__(self, reactor: Any, commands: int) -> None:
        """
        @param reactor: The reactor; it is not running.
        @param commands: Number of calls to drain.
        """
        self._reactor = reactor
        self._commands = commands
        self.names: dict[str, object] = {
            "Deferred": Deferred,
            "READY": State.READY,
            "turn": lambda: reactor.iterate(0),
            "clear": self.clear,
            "fill": self.fill,
        }

    def clear(self) -> None:
        """
        Begin with an empty queue of each kind.
        """
        for deadline in self._reactor.getDelayedCalls():
            deadline.cancel()
        module = Module()
        wrapper = QueuingWrapper(module, self._reactor, limit=10**9)
        queue: deque[object] = deque()
        echo = module.echo

        def enqueue(*arguments: object, **keywords: object) -> Deferred[object]:
            deferred: Deferred[object] = Deferred()
            queue.append((deferred, echo, arguments, keywords))
            return deferred

        self.names.update(
            call=enqueue, echo=echo, wrapper=wrapper, proxy=wrapper.proxy, queue=queue
        )
        gc.collect()

    def fill(self, statement: str) -> None:
        """
        Fill a queue with calls.

        @param statement: Queues one call.
        """
        self.clear()
        code: Callable[[int], float] = Timer(statement, globals=self.names).timeit
        code(self._commands)


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    from twisted.internet import reactor

    # As a running reactor does.
    registerAsIOThread()
    number, rounds = sizes["commands"], sizes["rounds"]
    fixture = _Fixture(reactor, number)
    names = fixture.names
    queue, call, append = leastOf(
        [
            Timer(_QUEUE, "clear()", globals=names),
            Timer(_CALL, "clear()", globals=names),
            Timer(_APPEND, "clear()", globals=names),
        ],
        number,
        rounds,
    )
    drain, pop = leastOf(
        [
            Timer(_DRAIN, f"fill({_QUEUE!r})", globals=names),
            Timer(_POP, f"fill({_APPEND!r})", globals=names),
        ],
        1,
        rounds,
    )
    fixture.clear()
    return [
        Figure(
            "queuing one call",
            "a Deferred, and a tuple in a deque",
            queue,
            append,
            "ns",
            Target(2.5),
        ),
        Figure(
            "queuing one call",
            "the same in a function",
            queue,
            call,
            "ns",
        ),
        Figure(
            "draining one call",
            "calling the module, and `chainDeferred`",
            drain / number,
            pop / number,
            "ns",
            Target(1.5),
        ),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
