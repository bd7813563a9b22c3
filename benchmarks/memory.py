"""
The memory of a queued call, with its Deferred, context and deadline.

It is compared with Mongoose and ioredis (quoted; measured with Node 20), and with a
Deferred and a tuple in a deque, in the same run. C{tracemalloc} counts the bytes.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections import deque
from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred

from benchmarks.support.measure import Figure, Module, Size, Target, run
from tsrv import QueuingWrapper

_SIZES = {"commands": Size(100_000, 100, "queued calls")}

_MONGOOSE = 1114
_IOREDIS = 1019


def _bytesOf(queueOne: Callable[[], object], number: int) -> float:
    """
    Return the bytes of one queued call.

    @param queueOne: Queues one call.
    @param number: Number of calls.
    """
    # The first call creates what all calls share.
    queueOne()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(number):
        queueOne()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    return (after - before) / number


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    from twisted.internet import reactor

    number = sizes["commands"]
    module = Module()
    queue: deque[object] = deque()
    tracemalloc.start()
    # One more call for each of the two kinds is not counted.
    wrapper = QueuingWrapper(module, reactor, limit=2 * number + 2)
    proxy = wrapper.proxy
    command = _bytesOf(proxy.ping, number)
    withArgument = _bytesOf(lambda: proxy.echo(number), number)
    least = _bytesOf(lambda: queue.append((Deferred(), module.ping)), number)
    tracemalloc.stop()
    return [
        Figure(
            "memory of a queued call",
            "Mongoose (quoted)",
            command,
            _MONGOOSE,
            "bytes",
            Target(400, "bytes"),
        ),
        Figure(
            "memory of a queued call", "ioredis (quoted)", command, _IOREDIS, "bytes"
        ),
        Figure(
            "memory of a queued call",
            "a Deferred, and a tuple in a deque",
            command,
            least,
            "bytes",
        ),
        Figure(
            "memory of a queued call with an argument",
            "Mongoose (quoted)",
            withArgument,
            _MONGOOSE,
            "bytes",
            Target(400, "bytes"),
        ),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
