"""
The order in which commands start, and how a queue is drained.
"""

from __future__ import annotations

from contextvars import ContextVar
from itertools import pairwise

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tsrv import (
    QueuingWrapper,
    State,
)

from .support import Module, ready, resultOf, wrap


class Busy:
    """
    A module whose every call keeps the reactor for a while.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.calls: list[int] = []
        self._clock = clock
        self._seconds = seconds

    def initialize(self) -> None:
        pass

    def work(self, number: int) -> int:
        self.calls.append(number)
        self._clock.rightNow += self._seconds
        return number


def test_commands_start_in_the_order_of_their_calls(clock: Clock) -> None:
    """
    Whichever methods they are of.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    for number in range(0, 9, 3):
        proxy.write(number)
        proxy.read(number + 1)
        proxy.count(number + 2)
    ready(module, wrapper)
    assert [what for _, what in module.calls] == list(range(9))


def test_call_from_the_callback_of_a_drained_command(clock: Clock) -> None:
    """
    It goes behind all those that have been waiting.
    """
    module, wrapper, proxy = wrap(clock)
    first = proxy.count(1)
    assert isinstance(first, Deferred)
    first.addCallback(lambda _: proxy.write(3))
    proxy.write(2)
    ready(module, wrapper)
    assert [what for _, what in module.calls] == [1, 2, 3]


def test_call_from_the_callback_of_who_waited_for_the_module(clock: Clock) -> None:
    """
    To be told that the module is ready is no right to be served first.
    """
    module, wrapper, proxy = wrap(clock)
    proxy.write(1)
    wrapper.whenInitialized().addCallback(lambda _: proxy.write(2))
    ready(module, wrapper)
    assert [what for _, what in module.calls] == [1, 2]


def test_call_between_two_slices(clock: Clock) -> None:
    """
    The module is ready, and the queue is not empty yet: a call made now must
    not be handed to the module at once.
    """
    module = Busy(clock, 0.004)
    wrapper = QueuingWrapper(module, clock)
    for number in range(5):
        wrapper.proxy.work(number)
    wrapper.initialize()
    assert (module.calls, wrapper.state) == ([0, 1], State.DRAINING)
    wrapper.proxy.work(5)
    assert module.calls == [0, 1]
    clock.pump([0, 0])
    assert (module.calls, wrapper.state) == ([0, 1, 2, 3, 4, 5], State.READY)


def test_call_during_another_initialization(clock: Clock) -> None:
    """
    Calls made after a loss follow those that had not been started before it.
    """
    module = Busy(clock, 0.006)
    lost: Deferred[None] = Deferred()
    losses = [lost, Deferred[None]()]
    wrapper = QueuingWrapper(
        module,
        clock,
        whenLost=lambda: losses.pop(0),
        retryPolicy=lambda attempts: 1.0,
    )
    for number in range(3):
        wrapper.proxy.work(number)
    wrapper.initialize()
    lost.callback(None)
    wrapper.proxy.work(3)
    assert (module.calls, wrapper.state) == ([0], State.LOST)
    clock.pump([1, 0, 0, 0])
    assert (module.calls, wrapper.state) == ([0, 1, 2, 3], State.READY)


def test_other_work_gets_its_turn_however_long_the_queue(clock: Clock) -> None:
    """
    No slice takes much longer than 5 ms, and between two of them everything
    else that the reactor has to do is done.
    """
    module = Busy(clock, 0.001)
    wrapper = QueuingWrapper(module, clock)
    for number in range(100):
        wrapper.proxy.work(number)
    turns: list[int] = []

    def compete() -> None:
        turns.append(len(module.calls))
        if len(module.calls) < 100:
            clock.callLater(0, compete)

    clock.callLater(0, compete)
    wrapper.initialize()
    while wrapper.pending:
        clock.advance(0)
    clock.advance(0)
    assert max(b - a for a, b in pairwise(turns)) <= 6
    assert len(turns) >= 16


def test_a_clock_that_is_set_back(clock: Clock) -> None:
    """
    A slice ends, too, when the time is set back while it lasts.
    """
    module = Busy(clock, -3600.0)
    wrapper = QueuingWrapper(module, clock)
    for number in range(3):
        wrapper.proxy.work(number)
    wrapper.initialize()
    assert module.calls == [0]
    clock.pump([0, 0])
    assert (module.calls, wrapper.state) == ([0, 1, 2], State.READY)


def test_failing_a_long_queue_is_sliced_too(clock: Clock) -> None:
    """
    What is true of running commands is true of refusing them: the errbacks of
    a million callers are a lot of work.
    """
    _, wrapper, proxy = wrap(clock)
    ends = []

    def take(failure: object) -> None:
        ends.append(failure)
        clock.rightNow += 0.002

    for number in range(10):
        proxy.write(number).addErrback(take)
    closed = resultOf(wrapper.close())
    assert 0 < len(ends) < 10
    assert wrapper.pending == 10 - len(ends)
    clock.pump([0, 0, 0, 0])
    assert (len(ends), wrapper.pending, closed.value) == (10, 0, None)


def test_expiring_a_long_queue_is_sliced_too(clock: Clock) -> None:
    """
    A queue whose time is up all at once does not keep the reactor either.
    """
    _, wrapper, proxy = wrap(clock, timeout=5.0)
    ends: list[object] = []

    def take(failure: object) -> None:
        ends.append(failure)
        clock.rightNow += 0.002

    for number in range(12):
        proxy.write(number).addErrback(take)
    counts = []

    def compete() -> None:
        counts.append(len(ends))
        if len(ends) < 12:
            clock.callLater(0, compete)

    clock.callLater(5.0, compete)
    clock.advance(5.0)
    clock.pump([0, 0, 0, 0])
    assert max(b - a for a, b in pairwise([0, *counts])) <= 3
    assert (len(ends), wrapper.pending, wrapper.stats.expired) == (12, 0, 12)


def test_more_expire_than_are_looked_through_at_once(clock: Clock) -> None:
    """
    To look through a long queue takes its time, too.
    """
    _, wrapper, proxy = wrap(clock, timeout=5.0, limit=20_000)
    for number in range(12_000):
        resultOf(proxy.write(number))
    clock.advance(5.0)
    assert (wrapper.pending, wrapper.stats.expired) == (0, 12_000)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_concurrency(clock: Clock, most: int) -> None:
    """
    A backend that has just come back is not run over: no more commands than
    allowed are in progress at any time, and each answer makes room for one.
    """
    module, wrapper, proxy = wrap(clock, concurrency=most)
    for number in range(6):
        proxy.write(number)
    ready_ = resultOf(wrapper.initialize())
    module.attempts[-1].callback(None)
    assert (ready_.value, wrapper.state) == (None, State.DRAINING)
    for answered in range(6 - most):
        assert len(module.calls) == answered + most
        module.answers[answered].callback(None)
        clock.advance(0)
    assert wrapper.state is State.READY
    assert [what for _, what in module.calls] == list(range(6))


def test_concurrency_does_not_count_what_has_failed_at_once(clock: Clock) -> None:
    """
    A call that is over when the module returns takes up no place.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    for number in range(3):
        resultOf(proxy.fail(number))  # type: ignore[arg-type]
        proxy.count(number)
    ready(module, wrapper)
    assert (len(module.calls), wrapper.state) == (6, State.READY)


def test_cancelling_makes_room(clock: Clock) -> None:
    """
    A command in progress whose caller gives up lets the next one start.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    first = proxy.write(1)
    result = resultOf(first)
    proxy.write(2)
    ready(module, wrapper)
    first.cancel()
    clock.advance(0)
    assert not result.pending
    assert module.calls == [("write", 1), ("write", 2)]


def test_context(clock: Clock) -> None:
    """
    What a caller has noted for its log or its trace is there when its command
    runs, and not what another one has noted, nor the module.
    """
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    class Traced:
        def initialize(self) -> None:
            request.set("initialize")

        def work(self) -> None:
            seen.append(request.get())
            request.set("changed")

        async def compute(self) -> None:
            seen.append(request.get())

        def read(self) -> None:
            seen.append(request.get())

    wrapper = QueuingWrapper(Traced(), clock, replay=["read"])
    for name in ("a", "b"):
        token = request.set(name)
        wrapper.proxy.work()
        resultOf(wrapper.proxy.compute())  # type: ignore[arg-type]
        wrapper.proxy.read()
        request.reset(token)
    wrapper.initialize()
    assert seen == ["a", "a", "a", "b", "b", "b"]
    request.set("c")
    resultOf(wrapper.proxy.compute())  # type: ignore[arg-type]
    wrapper.proxy.read()
    assert seen[6:] == ["c", "c"]


def test_the_context_stays_with_a_command_that_is_run_again(clock: Clock) -> None:
    """
    Also the second run of a replayed command belongs to its caller.
    """
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    class Traced(Module):
        def read(self, what: object) -> Deferred[object]:
            seen.append(request.get())
            return super().read(what)

    module = Traced()
    wrapper = QueuingWrapper(
        module, clock, replay=["read"], retryPolicy=lambda attempts: 1.0
    )
    ready(module, wrapper)
    token = request.set("a")
    wrapper.proxy.read(1)
    request.reset(token)
    module.watches[-1].callback(None)
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert seen == ["a", "a"]
