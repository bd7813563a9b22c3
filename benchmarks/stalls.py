"""
The longest time for which a very long queue blocks the reactor.

A function that runs in every turn of the reactor (C{callLater(0)}) measures the longest
time between two turns. Meanwhile a million queued calls are drained, fail because the
module failed for good or was closed, or expire; or a million calls in progress end
because the module is lost. Each call has a callback. The comparison is a loop that
fires a million Deferreds at once, as most such queues do.

The processor time of the reactor's thread counts, so other processes do not disturb
the measurement.

The garbage collector is on, as in a program. If it was active, a second line has its
longest pause. With a million live calls, a full collection takes long, whatever
triggers it. C{gc.freeze()} exempts the queued calls.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import thread_time
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater, react
from twisted.python.failure import Failure

from benchmarks.support.measure import Figure, Module, Size, Target, run
from tsrv import AsyncModule, OutcomeUnknown, QueuingWrapper, State, Unavailable

_SIZES = {"commands": Size(1_000_000, 100, "calls")}

_TARGET = Target(20, "ms")


class _Ticker:
    """
    Measures the turns of the reactor.

    @ivar longest: The longest time between two turns, in milliseconds.
    @ivar collecting: The longest pause of the garbage collector, in milliseconds.
    """

    def __init__(self, reactor: Any) -> None:
        self.longest = 0.0
        self.collecting = 0.0
        self._reactor = reactor
        self._begun = 0.0

    def start(self) -> None:
        """
        Start measuring.
        """
        gc.callbacks.append(self._collected)
        self._last = thread_time()
        self._call = self._reactor.callLater(0, self._tick)

    def stop(self) -> None:
        """
        Stop measuring.
        """
        # The turn in which the last call ended counts, too.
        self._call.cancel()
        self._tick()
        self._call.cancel()
        gc.callbacks.remove(self._collected)

    def _tick(self) -> None:
        now = thread_time()
        self.longest = max(self.longest, (now - self._last) * 1e3)
        self._last = now
        self._call = self._reactor.callLater(0, self._tick)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        now = thread_time()
        if phase == "start":
            self._begun = now
        else:
            self.collecting = max(self.collecting, (now - self._begun) * 1e3)


class _Callers:
    """
    The callbacks of all calls.

    @ivar done: Fires when all calls have ended.
    """

    def __init__(self, number: int) -> None:
        """
        @param number: Number of calls.
        """
        self.done: Deferred[None] = Deferred()
        self._left = number

    def wait(self, deferred: Deferred[Any]) -> None:
        """
        Wait for one call.
        """
        deferred.addCallbacks(self._answered, self._refused)

    def _answered(self, _: object) -> None:
        self._left -= 1
        if not self._left:
            self.done.callback(None)

    def _refused(self, failure: Failure) -> None:
        failure.trap(Unavailable, OutcomeUnknown)
        self._answered(None)


async def _watched(
    reactor: Any,
    number: int,
    queueOne: Callable[[], Deferred[Any]],
    end: Callable[[], object],
    *,
    freeze: bool = False,
) -> tuple[float, float]:
    """
    Queue calls, and measure how they end.

    @param number: Number of calls.
    @param queueOne: Queues one call.
    @param end: Begins to end all calls.
    @param freeze: Whether queued calls are exempt from garbage collection.
    @return: The longest time between two turns of the reactor, and the longest
        pause of the garbage collector, in milliseconds.
    """
    gc.collect()
    callers = _Callers(number)
    for _ in range(number):
        callers.wait(queueOne())
    gc.collect()
    if freeze:
        gc.freeze()
    ticker = _Ticker(reactor)
    ticker.start()
    end()
    await callers.done
    ticker.stop()
    gc.unfreeze()
    # Let the last slice finish.
    await deferLater(reactor, 0)
    return ticker.longest, ticker.collecting


class _Broken(Module):
    """
    A module that cannot be initialised.
    """

    def initialize(self) -> Deferred[None]:
        """
        Fail at once.
        """
        raise RuntimeError("out of order")


class _Silent(Module):
    """
    A module that answers no call and can be lost.
    """

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def whenLost(self) -> Deferred[None]:
        """
        Return a Deferred that the measurement fires.
        """
        return self.lost

    def ping(self) -> Deferred[None]:
        """
        Return a Deferred that never fires.
        """
        return Deferred()


async def _measure(
    reactor: Any, number: int, report: Callable[[Figure], object]
) -> None:
    def wrap(module: Any, **options: Any) -> QueuingWrapper[Any]:
        return QueuingWrapper(module, reactor, limit=number, **options)

    async def drained() -> tuple[float, float]:
        wrapper = wrap(Module(), timeout=None)
        return await _watched(reactor, number, wrapper.proxy.ping, wrapper.initialize)

    async def drainedLater(freeze: bool) -> tuple[float, float]:
        wrapper = wrap(AsyncModule(reactor, 0), timeout=None)
        say, initialize = wrapper.proxy.tellMeSomething, wrapper.initialize
        return await _watched(reactor, number, say, initialize, freeze=freeze)

    async def failed() -> tuple[float, float]:
        wrapper = wrap(_Broken(), timeout=None, fatal=RuntimeError)
        return await _watched(
            reactor,
            number,
            wrapper.proxy.ping,
            lambda: wrapper.initialize().addErrback(lambda _: None),
        )

    async def closed() -> tuple[float, float]:
        wrapper = wrap(Module(), timeout=None)
        return await _watched(reactor, number, wrapper.proxy.ping, wrapper.close)

    async def expired() -> tuple[float, float]:
        # All calls are overdue in the first turn of the reactor.
        wrapper = wrap(Module(), timeout=0)
        return await _watched(reactor, number, wrapper.proxy.ping, lambda: None)

    async def lost() -> tuple[float, float]:
        module = _Silent()
        wrapper = wrap(module, retryPolicy=lambda _: 3600)
        wrapper.initialize()
        assert wrapper.state is State.READY
        lose = partial(module.lost.callback, None)
        figures = await _watched(reactor, number, wrapper.proxy.ping, lose)
        await wrapper.close()
        return figures

    def atOnce(fire: Callable[[Deferred[Any]], object]) -> Awaitable[Any]:
        queue: list[Deferred[Any]] = []

        def append() -> Deferred[Any]:
            deferred: Deferred[Any] = Deferred()
            queue.append(deferred)
            return deferred

        def fireAll() -> None:
            for deferred in queue:
                fire(deferred)
            queue.clear()

        return _watched(reactor, number, append, fireAll)

    answered, _ = await atOnce(lambda each: succeed(None).chainDeferred(each))
    refused, _ = await atOnce(lambda each: each.errback(Unavailable("at once")))
    for what, measure, theirs in (
        ("drained, answered at once", drained, answered),
        ("drained, answered by the clock", partial(drainedLater, False), answered),
        ("drained after `gc.freeze()`", partial(drainedLater, True), answered),
        ("failed by a fatal error", failed, refused),
        ("failed by `close()`", closed, refused),
        ("expired", expired, refused),
        ("in progress at a loss", lost, refused),
    ):
        longest, collecting = await measure()
        report(
            Figure(
                f"{number:,} calls {what}: longest stall",
                "a loop over all calls",
                longest,
                theirs,
                "ms",
                _TARGET,
            )
        )
        if collecting > 1:
            report(
                Figure(
                    "(of which garbage collector)",
                    "a loop over all calls",
                    collecting,
                    theirs,
                    "ms",
                )
            )


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    from twisted.internet import reactor

    figures: list[Figure] = []

    def main(reactor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(
            _measure(reactor, sizes["commands"], figures.append)
        )

    try:
        react(main, (), reactor)
    except SystemExit as end:
        if end.code:
            raise
    return figures


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
