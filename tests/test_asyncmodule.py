"""
C{AsyncModule}, the clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from tsrv import AsyncModule, IAsyncModule, NotInitialized
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


def test_it_needs_ten_seconds(clock: Clock) -> None:
    """
    By default the clock takes ten seconds to start, and says how many are left.
    """
    module = AsyncModule(clock)
    verifyObject(IAsyncModule, module)
    verifyObject(IPredictable, module)
    assert module.secondsUntilInitialized() is None
    result = resultOf(module.initialize())
    clock.advance(4)
    assert module.secondsUntilInitialized() == 6
    clock.advance(5.5)
    assert (result.pending, module.initialized) == (True, False)
    clock.advance(0.5)
    assert (result.value, module.initialized) == (None, True)
    assert module.secondsUntilInitialized() is None
    assert resultOf(module.initialize()).value is None


def test_it_tells_the_local_time_with_its_offset(clock: Clock, berlin: None) -> None:
    """
    The clock tells the local time with its offset from UTC.
    """
    module = AsyncModule(clock, 0)
    module.initialize()
    clock.advance(86400)
    result = resultOf(module.tellMeSomething())
    clock.advance(0)
    assert result.value == "Current time is: 1970-01-02 01:00:00+01:00"


def test_it_answers_in_the_next_turn(clock: Clock) -> None:
    """
    The clock never answers at once; the time of the answer decides whether the clock is
    ready.
    """
    module = AsyncModule(clock, 0)
    early = resultOf(module.tellMeSomething())
    assert early.pending
    clock.advance(0)
    assert isinstance(early.error, NotInitialized)
    assert str(early.error) == "I don't have anything to say right now"
    module.initialize()
    justInTime = resultOf(module.tellMeSomething())
    clock.advance(0)
    assert justInTime.value.startswith("Current time is: ")


def test_cancelled_question(clock: Clock) -> None:
    """
    A cancelled question leaves no timer behind.
    """
    question = AsyncModule(clock).tellMeSomething()
    result = resultOf(question)
    question.cancel()
    assert isinstance(result.error, CancelledError)


def test_callers_share_one_start(clock: Clock) -> None:
    """
    A second caller joins the start, and keeps waiting if the first one gives up.
    """
    module = AsyncModule(clock, 10)
    first = module.initialize()
    result = resultOf(first)
    clock.advance(6)
    second, third = resultOf(module.initialize()), resultOf(module.initialize())
    first.cancel()
    assert isinstance(result.error, CancelledError)
    clock.advance(4)
    assert (second.value, third.value) == (None, None)


def test_the_last_caller_gives_up(clock: Clock) -> None:
    """
    If the last caller gives up, the start is cancelled; the next start takes the full
    time.
    """
    module = AsyncModule(clock, 10)
    start = module.initialize()
    result = resultOf(start)
    clock.advance(9)
    start.cancel()
    assert isinstance(result.error, CancelledError)
    clock.advance(10)
    assert not module.initialized
    again = resultOf(module.initialize())
    clock.advance(9)
    assert again.pending
    clock.advance(1)
    assert again.value is None


def test_one_callback_cancels_another(clock: Clock) -> None:
    """
    A caller whose Deferred is cancelled in another caller's callback gets only
    CancelledError.
    """
    module = AsyncModule(clock, 10)
    first, second = module.initialize(), module.initialize()
    result = resultOf(second)
    first.addCallback(lambda _: second.cancel())
    clock.advance(10)
    assert isinstance(result.error, CancelledError)


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
def test_impossible_delay(clock: Clock, delay: float) -> None:
    """
    A delay that is too long for a timer is refused.
    """
    with pytest.raises(ValueError, match="delay must be a number of seconds"):
        AsyncModule(clock, delay)
