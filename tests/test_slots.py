"""
attemptSlots: wrappers that share slots limit their simultaneous attempts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.task import Clock

from tsrv import State

from .support import Module, Refused, Trouble, lose, resultOf, shut, wrap


class Fleet:
    """
    Wrappers that share slots, all of which were asked to initialise.
    """

    def __init__(self, clock: Clock, number: int, slots: int, **options: Any) -> None:
        self.slots = DeferredSemaphore(slots)
        self.wrapped = [
            wrap(clock, attemptSlots=self.slots, fatal=Refused, **options)
            for _ in range(number)
        ]
        self.modules: list[Module] = [module for module, _, _ in self.wrapped]
        self.wrappers = [wrapper for _, wrapper, _ in self.wrapped]
        self.asked = [resultOf(wrapper.initialize()) for wrapper in self.wrappers]

    @property
    def attempts(self) -> list[int]:
        """
        The number of attempts of each module.
        """
        return [len(module.attempts) for module in self.modules]


def test_attempts_take_turns(clock: Clock) -> None:
    """
    At most as many attempts are in progress as there are slots, and the others begin in
    order. A waiting attempt is not counted, and its time limit has not begun.
    """
    fleet = Fleet(clock, 4, 2)
    assert fleet.attempts == [1, 1, 0, 0]
    assert all(each.state is State.INITIALIZING for each in fleet.wrappers)
    third = fleet.wrappers[2]
    assert (third.attempts, third.history.attempts.count) == (0, 0)
    clock.advance(3)
    fleet.modules[1].attempts[0].callback(None)
    clock.advance(0)
    assert fleet.attempts == [1, 1, 1, 0]
    assert (third.attempts, third.history.attempts.count) == (1, 1)
    (attempt,) = third.history.attempts
    assert attempt.begun == 3.0
    fleet.modules[0].attempts[0].callback(None)
    clock.advance(0)
    assert fleet.attempts == [1, 1, 1, 1]
    for module in fleet.modules[2:]:
        module.attempts[0].callback(None)
    assert all(each.value is None for each in fleet.asked)
    assert all(each.state is State.READY for each in fleet.wrappers)
    clock.advance(0)
    assert fleet.slots.tokens == 2


def endings() -> dict[str, Callable[[Clock, Fleet], object]]:
    """
    @return: The ways in which the attempt of the first wrapper may end.
    """
    return {
        "success": lambda _, fleet: fleet.modules[0].attempts[0].callback(None),
        "failure": lambda _, fleet: fleet.modules[0].attempts[0].errback(Trouble()),
        "fatal": lambda _, fleet: fleet.modules[0].attempts[0].errback(Refused()),
        "timeout": lambda clock, _: clock.advance(5),
        "close": lambda _, fleet: fleet.wrappers[0].close(),
        "fail": lambda _, fleet: fleet.wrappers[0].fail(Trouble()),
        "reset": lambda _, fleet: fleet.wrappers[0].reset(Trouble()),
    }


@pytest.mark.parametrize("how", endings())
def test_a_slot_is_released(clock: Clock, how: str) -> None:
    """
    When an attempt ends, in whatever way, the next one begins; its slot is released
    once.
    """
    fleet = Fleet(clock, 2, 1, attemptTimeout=5.0)
    assert fleet.attempts == [1, 0]
    endings()[how](clock, fleet)
    clock.advance(0)
    assert fleet.attempts[1] == 1
    assert fleet.slots.tokens == 0
    fleet.modules[1].attempts[0].callback(None)
    assert fleet.wrappers[1].state is State.READY
    for wrapper in fleet.wrappers:
        shut(wrapper)
    clock.advance(0)
    assert fleet.slots.tokens == 1


@pytest.mark.parametrize("how", ["whenLost fails", "initialize raises", "at once"])
def test_a_slot_is_released_at_once(clock: Clock, how: str) -> None:
    """
    The slot is released at once if whenLost() or initialize() raises, or if the module
    is ready at once.
    """

    def explode() -> Any:
        raise Trouble

    ways: dict[str, dict[str, Any]] = {
        "whenLost fails": {"initialize": bool, "whenLost": explode},
        "initialize raises": {"initialize": explode},
        "at once": {"initialize": bool, "whenLost": Deferred},
    }
    fleet = Fleet(clock, 3, 1, close=bool, **ways[how])
    clock.pump([0, 0, 0])
    assert [each.history.attempts.count for each in fleet.wrappers] == [1, 1, 1]
    assert fleet.slots.tokens == 1
    for wrapper in fleet.wrappers:
        shut(wrapper)


@pytest.mark.parametrize("how", ["close", "fail", "reset"])
def test_given_up_while_waiting(clock: Clock, how: str) -> None:
    """
    A wrapper that is closed, fails or is reset while it waits for a slot leaves the
    queue. The slot goes to others, and initialize() is not called.
    """
    fleet = Fleet(clock, 3, 1)
    second = fleet.wrappers[1]
    if how == "close":
        second.close()
        assert second.state is State.CLOSED
        assert not fleet.asked[1].pending
    elif how == "fail":
        second.fail(Trouble("given up"))
        assert second.state is State.FAILED
    else:
        second.reset(Trouble("rotated"))
        assert second.history.losses.count == 0
    assert fleet.modules[1].closings == []
    fleet.modules[0].attempts[0].callback(None)
    clock.advance(0)
    assert fleet.attempts[2] == 1
    assert fleet.attempts[1] == 0
    fleet.modules[2].attempts[0].callback(None)
    clock.advance(0)
    if how == "reset":
        assert fleet.attempts[1] == 1
        fleet.modules[1].attempts[0].callback(None)
        assert second.state is State.READY
        clock.advance(0)
    assert fleet.slots.tokens == 1
    for wrapper in fleet.wrappers:
        shut(wrapper)


def test_the_timeout_begins_with_the_attempt(clock: Clock) -> None:
    """
    The time limit of an attempt does not include the wait for its slot.
    """
    fleet = Fleet(clock, 2, 1, attemptTimeout=5.0)
    clock.advance(4)
    fleet.modules[0].attempts[0].callback(None)
    clock.advance(0)
    clock.advance(4)
    assert fleet.wrappers[1].state is State.INITIALIZING
    clock.advance(1)
    assert fleet.wrappers[1].state is State.RETRYING
    assert fleet.wrappers[1].history.attemptSeconds.total == 5.0
    for wrapper in fleet.wrappers:
        shut(wrapper)
    clock.advance(0)


def test_observers_see_the_attempt_begin(clock: Clock) -> None:
    """
    Observers are notified when the attempt begins to wait for its slot, and when it
    begins.
    """
    slots = DeferredSemaphore(1)
    slots.acquire()
    module, wrapper, _ = wrap(clock, attemptSlots=slots)
    seen: list[tuple[State, int]] = []
    wrapper.addObserver(lambda: seen.append((wrapper.state, wrapper.attempts)))
    resultOf(wrapper.initialize())
    assert seen == [(State.INITIALIZING, 0)]
    slots.release()
    assert seen[1:] == [(State.INITIALIZING, 1)]
    module.attempts[0].callback(None)
    assert [state for state, _ in seen[-2:]] == [State.DRAINING, State.READY]
    clock.advance(0)


def test_retries_wait_for_a_slot(clock: Clock) -> None:
    """
    Retries and attempts after a loss wait for a slot, too, behind attempts that have
    waited longer.
    """
    fleet = Fleet(clock, 2, 1)
    fleet.modules[0].attempts[0].errback(Trouble())
    clock.advance(1)
    assert fleet.attempts == [1, 1]
    assert fleet.wrappers[0].state is State.INITIALIZING
    fleet.modules[1].attempts[0].callback(None)
    clock.advance(0)
    assert fleet.attempts == [2, 1]
    lose(fleet.modules[1])
    clock.advance(1)
    assert fleet.attempts == [2, 1]
    assert fleet.wrappers[1].state is State.INITIALIZING
    fleet.modules[0].attempts[1].callback(None)
    clock.advance(0)
    assert fleet.attempts == [2, 2]
    fleet.modules[1].attempts[1].callback(None)
    clock.advance(0)
    assert all(each.state is State.READY for each in fleet.wrappers)


def test_calls_are_queued_and_expire(clock: Clock) -> None:
    """
    While an attempt waits for its slot, calls are queued and expire as usual.
    """
    fleet = Fleet(clock, 2, 1, timeout=3.0)
    _, wrapper, proxy = fleet.wrapped[1]
    result = resultOf(proxy.write(1))
    clock.advance(3)
    assert not result.pending
    kept = resultOf(proxy.write(2))
    for module in fleet.modules:
        module.attempts[0].callback(None)
        clock.advance(0)
    assert (fleet.modules[1].calls, kept.pending) == ([("write", 2)], True)
    assert wrapper.stats.expired == 1
    for each in fleet.wrappers:
        shut(each)
