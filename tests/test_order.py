"""
The order in which calls start, and the slices in which a queue is drained.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tsrv import QueuingWrapper, State

from .support import Module, ready, resultOf, wrap


class Busy:
    """
    A module each of whose calls blocks for a while.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.calls: list[int] = []
        self.watches: list[Deferred[None]] = []
        self._clock = clock
        self._seconds = seconds

    def initialize(self) -> None:
        pass

    def whenLost(self) -> Deferred[None]:
        self.watches.append(Deferred())
        return self.watches[-1]

    def work(self, number: int) -> None:
        self.calls.append(number)
        self._clock.rightNow += self._seconds


def busy(
    clock: Clock, seconds: float, calls: int
) -> tuple[Busy, QueuingWrapper[Busy], Callable[[int], Any]]:
    """
    @return: A busy module, its wrapper, and its method, with a number of queued calls.
    """
    module = Busy(clock, seconds)
    wrapper = QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0)
    for number in range(calls):
        wrapper.proxy.work(number)
    return module, wrapper, wrapper.proxy.work


def numbers(module: Module) -> list[object]:
    """
    @return: The arguments of all calls.
    """
    return [what for _, what in module.calls]


def test_calls_start_in_order(clock: Clock) -> None:
    """
    Calls of different methods start in the order in which they were made.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    for number in range(0, 9, 3):
        proxy.write(number)
        proxy.read(number + 1)
        proxy.count(number + 2)
    ready(module, wrapper)
    assert numbers(module) == list(range(9))


def test_a_clock_that_is_set_back_ends_the_slice(clock: Clock) -> None:
    """
    A slice ends when the clock is set back.
    """
    module, wrapper, _ = busy(clock, -3600.0, 3)
    wrapper.initialize()
    assert module.calls == [0]
    clock.pump([0, 0])
    assert (module.calls, wrapper.state) == ([0, 1, 2], State.READY)


def compete(
    clock: Clock, counter: Callable[[], int], end: int, after: float = 0.0
) -> list[int]:
    """
    @return: The values of a counter that counts turns of the reactor, after some
        seconds and at the end.
    """
    turns = [counter()]

    def turn() -> None:
        turns.append(counter())
        if counter() < end:
            clock.callLater(0, turn)

    clock.callLater(after, turn)
    return turns


def test_a_long_drain_is_sliced(clock: Clock) -> None:
    """
    No slice of the drain takes much longer than 5 ms.
    """
    module, wrapper, _ = busy(clock, 0.001, 100)
    turns = compete(clock, lambda: len(module.calls), 100)
    wrapper.initialize()
    while len(module.calls) < 100:
        clock.advance(0)
    clock.advance(0)
    assert max(b - a for a, b in pairwise(turns)) <= 6
    assert len(turns) >= 16


@pytest.mark.parametrize("how", ["closed", "expired"])
def test_ending_a_long_queue_is_sliced(clock: Clock, how: str) -> None:
    """
    Refusing many calls, or letting them expire, is sliced.
    """
    _, wrapper, proxy = wrap(clock, timeout=5.0)
    ends: list[object] = []

    def take(failure: object) -> None:
        ends.append(failure)
        clock.rightNow += 0.002

    for number in range(12):
        proxy.write(number).addErrback(take)
    after = 5.0 if how == "expired" else 0.0
    if how == "closed":
        wrapper.close()
        assert len(ends) <= 6
    turns = compete(clock, lambda: len(ends), 12, after)
    clock.pump([after, 0, 0, 0])
    assert max(b - a for a, b in pairwise(turns)) <= 3
    stats = wrapper.stats
    assert (stats.pending, stats.expired + stats.failed) == (0, 12)


def test_very_many_calls_expire(clock: Clock) -> None:
    """
    All calls expire on time, even if one timer call cannot examine the whole queue.
    """
    _, wrapper, proxy = wrap(clock, timeout=5.0, limit=20_000)
    for number in range(12_000):
        resultOf(proxy.write(number))
    clock.advance(5.0)
    assert (wrapper.pending, wrapper.stats.expired) == (0, 12_000)


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_concurrency(clock: Clock, concurrency: int) -> None:
    """
    During the drain at most C{concurrency} calls are in progress, and each result
    starts another one.
    """
    module, wrapper, proxy = wrap(clock, concurrency=concurrency)
    for number in range(6):
        proxy.write(number)
    ready(module, wrapper)
    assert wrapper.state is State.DRAINING
    for answered in range(6 - concurrency):
        assert len(module.calls) == answered + concurrency
        module.answers[answered].callback(None)
        clock.advance(0)
    assert wrapper.state is State.READY
    assert numbers(module) == list(range(6))


def test_cancelling_a_call_in_progress_continues_the_drain(clock: Clock) -> None:
    """
    Cancelling a call in progress starts the next one.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    call = proxy.write(1)
    results = [resultOf(call), resultOf(proxy.write(2))]
    ready(module, wrapper)
    call.cancel()
    clock.advance(0)
    assert wrapper.state is State.READY
    assert [each.pending for each in results] == [False, True]
    assert numbers(module) == [1, 2]


@pytest.mark.parametrize("how", ["cancelled", "timed out", "expired"])
@pytest.mark.parametrize("isAnswered", [True, False])
def test_the_last_queued_call_is_given_up(
    clock: Clock, how: str, isAnswered: bool
) -> None:
    """
    The drain ends when no call is queued any more, even if calls are in progress.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1, timeout=5.0)
    running = resultOf(proxy.write(1))
    last = [proxy.write(number) for number in (2, 3)]
    ready(module, wrapper)
    if how == "timed out":
        for call in last:
            call.addTimeout(2, clock)
    for call in last:
        resultOf(call)
    if how == "cancelled":
        for call in last:
            call.cancel()
        clock.advance(0)
    else:
        clock.advance(2 if how == "timed out" else 5)
        clock.advance(0)
    assert (wrapper.state, wrapper.pending) == (State.READY, 0)
    if isAnswered:
        module.answers[0].callback("done")
        assert running.value == "done"
    resultOf(proxy.write(4))
    assert numbers(module) == [1, 4]
