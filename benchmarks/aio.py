"""
The cost of calls in a program on asyncio, through C{tsrv.aio}.

A ready call is compared with the direct call. Queuing a call, and draining and awaiting
many calls, are compared with the same in a program on Twisted. The methods of both
modules are C{async def}. The garbage collector is off.

The memory of a queued call is compared with the same in a program on Twisted, and with
Mongoose and ioredis (quoted; measured with Node 20). C{tracemalloc} counts the bytes.
An awaited call counts together with its task.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Mapping
from time import perf_counter
from types import FunctionType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.threadable import registerAsIOThread

from benchmarks.support.measure import Figure, Size, Target, run
from tsrv import QueuingWrapper as TwistedWrapper
from tsrv.aio import QueuingWrapper

_SIZES = {
    "calls": Size(100_000, 100, "ready calls in one round"),
    "commands": Size(10_000, 10, "queued calls in one round"),
    "rounds": Size(40, 2, "rounds"),
}

_MONGOOSE = 1114
_IOREDIS = 1019


class _Module:
    async def initialize(self) -> None:
        pass

    async def echo(self, what: object) -> object:
        return what

    async def ping(self) -> None:
        pass


async def _callOften(module: Any, number: int) -> float:
    """
    Return the seconds of one call.
    """
    numbers = range(number)
    began = perf_counter()
    for _ in numbers:
        await module.echo(1)
    return (perf_counter() - began) / number


def _queueOften(proxy: Any, number: int) -> tuple[float, list[Any]]:
    """
    Return the seconds of queuing one call, and the calls.
    """
    numbers = range(number)
    began = perf_counter()
    calls = [proxy.echo(1) for _ in numbers]
    return (perf_counter() - began) / number, calls


async def _await(calls: list[Any]) -> None:
    for call in calls:
        await call


async def _queueOnLoop(number: int) -> tuple[float, float]:
    """
    Return the seconds to queue one call, and then to drain and await it.
    """
    wrapper = QueuingWrapper(_Module(), limit=number + 1)
    queuing, calls = _queueOften(wrapper.proxy, number)
    began = perf_counter()
    wrapper.initialize()
    await _await(calls)
    seconds = (perf_counter() - began) / number
    await wrapper.close()
    return queuing, seconds


def _queueOnTwisted(number: int) -> tuple[float, float]:
    """
    Return the same as L{_queueOnLoop}.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    wrapper = TwistedWrapper(_Module(), reactor, limit=number + 1)
    queuing, calls = _queueOften(wrapper.proxy, number)
    began = perf_counter()
    wrapper.initialize()
    done = Deferred.fromCoroutine(_await(calls))
    while not done.called:
        reactor.iterate(0)
    seconds = (perf_counter() - began) / number
    wrapper.close()
    return queuing, seconds


async def _ready(number: int, rounds: int) -> list[float]:
    module = _Module()
    wrapper = QueuingWrapper(module)
    await wrapper.initialize()
    best = [float("inf")] * 2
    # The specialising interpreter treats copies of the code independently.
    targets = [
        (place, each, FunctionType(_callOften.__code__.replace(), globals()))
        for place, each in enumerate([wrapper.proxy, module])
    ]
    for _ in range(rounds):
        for place, each, callOften in targets:
            best[place] = min(best[place], await callOften(each, number))
        targets.reverse()
    await wrapper.close()
    return best


def _bytesOf(queueOne: Callable[[], Any], number: int) -> float:
    """
    Return the bytes that one queued call keeps.
    """
    first = queueOne()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    kept = [queueOne() for _ in range(number)]
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    for call in [first, *kept]:
        # Nobody waits for the call.
        call.addErrback(lambda _: None)
        call.cancel()
    return (after - before) / number


async def _settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def _bytesOfTasks(call: Callable[[], Any], number: int) -> float:
    """
    Return the bytes of a task that awaits what a call returns.
    """

    async def wait() -> None:
        await call()

    kept = [asyncio.ensure_future(wait())]
    await _settle()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    kept = [*kept, *[asyncio.ensure_future(wait()) for _ in range(number)]]
    await _settle()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    for task in kept:
        task.cancel()
    await asyncio.gather(*kept, return_exceptions=True)
    return (after - before) / number


async def _memoryOnLoop(number: int) -> list[float]:
    loop = asyncio.get_running_loop()
    wrapper = QueuingWrapper(_Module(), limit=2 * number + 4)
    proxy = wrapper.proxy
    awaited = await _bytesOfTasks(proxy.ping, number)
    future = await _bytesOfTasks(loop.create_future, number)
    command = _bytesOf(proxy.ping, number)
    await wrapper.close()
    return [command, awaited, future]


def _memoryOnTwisted(number: int) -> list[float]:
    wrapper = TwistedWrapper(_Module(), Clock(), limit=2 * number + 4)
    proxy = wrapper.proxy

    async def wait() -> None:
        await proxy.ping()

    command = _bytesOf(proxy.ping, number)
    return [command, _bytesOf(lambda: Deferred.fromCoroutine(wait()), number)]


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    number, commands, rounds = sizes["calls"], sizes["commands"], sizes["rounds"]
    gc.disable()
    ready, direct = asyncio.run(_ready(number, rounds))
    # As a running reactor does.
    registerAsIOThread()
    pairs = []
    for _ in range(rounds):
        pairs.append((asyncio.run(_queueOnLoop(commands)), _queueOnTwisted(commands)))
        gc.collect()
    gc.enable()
    onLoop, onTwisted = (
        [min(times) * 1e9 for times in zip(*side, strict=True)]
        for side in zip(*pairs, strict=True)
    )
    tracemalloc.start()
    command, awaited, future = asyncio.run(_memoryOnLoop(commands))
    twistedCommand, twistedAwaited = _memoryOnTwisted(commands)
    tracemalloc.stop()
    bytes_ = "bytes"
    against = "the same on Twisted"
    atMost = Target(1.5)
    queued = "memory of a queued call, on asyncio"
    withTask = "memory of a queued call and its task, on asyncio"
    return [
        Figure(
            "ready call of an `async def` method, on asyncio",
            "direct call",
            ready * 1e9,
            direct * 1e9,
            "ns",
            Target(1.15),
        ),
        Figure(
            "queuing one call, on asyncio",
            against,
            onLoop[0],
            onTwisted[0],
            "ns",
            atMost,
        ),
        Figure(
            "draining and awaiting one call, on asyncio",
            against,
            onLoop[1],
            onTwisted[1],
            "ns",
            atMost,
        ),
        Figure(
            queued,
            against,
            command,
            twistedCommand,
            bytes_,
            atMost,
        ),
        Figure(queued, "Mongoose (quoted)", command, _MONGOOSE, bytes_, Target(1)),
        Figure(queued, "ioredis (quoted)", command, _IOREDIS, bytes_, Target(1)),
        Figure(
            withTask,
            "a call and its coroutine on Twisted",
            awaited,
            twistedAwaited,
            bytes_,
            atMost,
        ),
        Figure(withTask, "a task that awaits a future", awaited, future, bytes_),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
