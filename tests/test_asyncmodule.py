"""
The clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from tsrv import (
    AsyncModule,
    IAsyncModule,
    NotInitialized,
)
from tsrv.asyncmodule import IPredictable

from .support import resultOf


@pytest.fixture
def berlin() -> Iterator[None]:
    """
    A time zone whose offset is not zero.
    """
    before = os.environ.get("TZ")
    os.environ["TZ"] = "CET-1"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_interfaces(clock: Clock) -> None:
    """
    The clock is what it says it is.
    """
    module = AsyncModule(clock)
    verifyObject(IAsyncModule, module)
    verifyObject(IPredictable, module)


def test_it_needs_ten_seconds(clock: Clock) -> None:
    """
    The default is long enough to see what happens meanwhile.
    """
    module = AsyncModule(clock)
    result = resultOf(module.initialize())
    clock.advance(9.999)
    assert (result.pending, module.initialized) == (True, False)
    clock.advance(0.001)
    assert (result.value, module.initialized) == (None, True)


def test_it_tells_the_local_time_with_its_offset(clock: Clock, berlin: None) -> None:
    """
    A time without its offset is one that nobody can compare.
    """
    module = AsyncModule(clock, 0)
    module.initialize()
    clock.advance(86400)
    result = resultOf(module.tellMeSomething())
    clock.advance(0)
    assert result.value == "Current time is: 1970-01-02 01:00:00+01:00"


def test_it_is_always_asynchronous(clock: Clock) -> None:
    """
    Who calls back at once on some days and later on others makes two programs
    of one.
    """
    module = AsyncModule(clock, 0)
    early = resultOf(module.tellMeSomething())
    assert early.pending
    clock.advance(0)
    assert isinstance(early.error, NotInitialized)
    assert str(early.error) == "I don't have anything to say right now"
    module.initialize()
    clock.advance(0)
    late = resultOf(module.tellMeSomething())
    assert late.pending
    clock.advance(0)
    assert late.value.startswith("Current time is: ")


def test_what_counts_is_when_it_answers(clock: Clock) -> None:
    """
    Asked just before it is ready, it answers: it looks when it is its turn.
    """
    module = AsyncModule(clock, 0)
    module.initialize()
    result = resultOf(module.tellMeSomething())
    clock.advance(0)
    assert result.value.startswith("Current time is: ")


def test_cancelled_question(clock: Clock) -> None:
    """
    Who does not want the answer any more leaves no timer behind.
    """
    question = AsyncModule(clock).tellMeSomething()
    result = resultOf(question)
    question.cancel()
    assert isinstance(result.error, CancelledError)


def test_initialized_twice_at_once(clock: Clock) -> None:
    """
    Two callers share one start, and it takes no longer for that.
    """
    module = AsyncModule(clock, 10)
    first = resultOf(module.initialize())
    clock.advance(6)
    second = resultOf(module.initialize())
    clock.advance(4)
    assert (first.value, second.value) == (None, None)


def test_initialized_again(clock: Clock) -> None:
    """
    What is ready need not be started again.
    """
    module = AsyncModule(clock, 10)
    module.initialize()
    clock.advance(10)
    assert resultOf(module.initialize()).value is None
    assert module.initialized


def test_one_of_two_gives_up(clock: Clock) -> None:
    """
    The impatience of one caller is not the business of the other.
    """
    module = AsyncModule(clock, 10)
    first, second = module.initialize(), module.initialize()
    given, other = resultOf(first), resultOf(second)
    first.cancel()
    assert isinstance(given.error, CancelledError)
    clock.advance(10)
    assert other.value is None


def test_the_last_one_gives_up(clock: Clock) -> None:
    """
    A start that nobody waits for does not go on; the next one is a whole one.
    """
    module = AsyncModule(clock, 10)
    start = module.initialize()
    given = resultOf(start)
    clock.advance(9)
    start.cancel()
    assert isinstance(given.error, CancelledError)
    clock.advance(10)
    assert not module.initialized
    again = resultOf(module.initialize())
    clock.advance(9)
    assert again.pending
    clock.advance(1)
    assert again.value is None


def test_one_callback_cancels_another(clock: Clock) -> None:
    """
    The second caller is cancelled while the first is being told: it hears of
    one thing only.
    """
    module = AsyncModule(clock, 10)
    first, second = module.initialize(), module.initialize()
    result = resultOf(second)
    first.addCallback(lambda _: second.cancel())
    clock.advance(10)
    assert isinstance(result.error, CancelledError)


def test_how_long_it_will_take(clock: Clock) -> None:
    """
    Who is asked to come back later should be told when.
    """
    module = AsyncModule(clock, 10)
    assert module.secondsUntilInitialized() is None
    module.initialize()
    clock.advance(4)
    assert module.secondsUntilInitialized() == 6
    clock.advance(6)
    assert module.secondsUntilInitialized() is None


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
def test_impossible_delay(clock: Clock, delay: float) -> None:
    """
    A delay that no timer can wait for is refused at once, and not when it is
    too late to see who asked for it.
    """
    with pytest.raises(ValueError, match="delay must be a number of seconds"):
        AsyncModule(clock, delay)
