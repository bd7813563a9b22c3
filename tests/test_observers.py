"""
Observers, and what they see.
"""

from __future__ import annotations

import asyncio

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv import QueuingWrapper, State
from tsrv.queuing.observers import Observers

from .support import (
    Module,
    Refused,
    Trouble,
    lose,
    ready,
    recover,
    resultOf,
    shut,
    wrap,
)


def watch(wrapper: QueuingWrapper[Module]) -> list[State]:
    """
    @return: The states that an observer sees, one for each notification.
    """
    seen: list[State] = []
    wrapper.addObserver(lambda: seen.append(wrapper.state))
    return seen


def test_each_change_of_state_is_notified(clock: Clock) -> None:
    """
    Observers are notified once of each change of state; C{since} is the time of the
    change.
    """
    module, wrapper, proxy = wrap(clock, fatal=Refused)
    seen = watch(wrapper)
    clock.advance(1)
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Trouble())
    assert wrapper.since == 1.0
    recover(clock, module)
    assert wrapper.since == 2.0
    lose(module)
    clock.advance(1)
    module.attempts[-1].errback(Refused())
    resultOf(wrapper.initialize())
    resultOf(proxy.write(1))
    wrapper.fail(Trouble())
    shut(wrapper)
    assert seen == [
        State.INITIALIZING,
        State.RETRYING,
        State.INITIALIZING,
        State.DRAINING,
        State.READY,
        State.LOST,
        State.INITIALIZING,
        State.FAILED,
        State.INITIALIZING,
        State.FAILED,
        State.CLOSING,
        State.CLOSED,
    ]


def test_an_attempt_that_ends_at_once_is_not_notified(clock: Clock) -> None:
    """
    Observers never see a state that is over when they are notified.
    """
    _, wrapper, _ = wrap(clock, initialize=lambda: None)
    seen = watch(wrapper)
    wrapper.initialize()
    assert seen == [State.DRAINING, State.READY]


def test_all_that_belongs_to_a_change_has_been_done(clock: Clock) -> None:
    """
    When observers are notified, waiters have been notified, and calls are treated as in
    the new state.
    """
    module, wrapper, proxy = wrap(clock)
    waiting = resultOf(wrapper.initialize())
    seen: list[tuple[State, bool, object]] = []

    def look() -> None:
        answer = proxy.count(1) if wrapper.state is State.READY else None
        seen.append((wrapper.state, waiting.pending, answer))

    wrapper.addObserver(look)
    module.attempts[-1].callback(None)
    assert seen == [(State.DRAINING, False, None), (State.READY, False, 1)]


def test_a_failure_is_notified_after_calls_and_waiters(clock: Clock) -> None:
    """
    When observers see FAILED, queued calls and waiters have failed.
    """
    _, wrapper, proxy = wrap(clock)
    call, waiting = resultOf(proxy.write(1)), resultOf(wrapper.whenInitialized())
    seen: list[tuple[int, bool, bool]] = []
    wrapper.addObserver(
        lambda: seen.append((wrapper.pending, call.pending, waiting.pending))
    )
    wrapper.fail(Trouble())
    assert seen == [(0, False, False)]


def test_oldest(clock: Clock) -> None:
    """
    C{oldest} is the age of the call that was queued first.
    """
    module, wrapper, proxy = wrap(clock)
    assert wrapper.oldest is None
    first = proxy.write(1)
    resultOf(first)
    clock.advance(2)
    resultOf(proxy.write(2))
    clock.advance(1)
    assert wrapper.oldest == 3.0
    first.cancel()
    assert wrapper.oldest == 1.0
    clock.rightNow = 1.5
    assert wrapper.oldest == 0.0
    ready(module, wrapper)
    assert wrapper.oldest is None


def test_registering_observers(clock: Clock) -> None:
    """
    Registering an observer twice has no effect, nor has unregistering an unknown
    one.
    """
    module, wrapper, _ = wrap(clock)
    seen: list[State] = []

    def look() -> None:
        seen.append(wrapper.state)

    wrapper.removeObserver(look)
    wrapper.addObserver(look)
    wrapper.addObserver(look)
    resultOf(wrapper.initialize())
    wrapper.removeObserver(look)
    module.attempts[-1].callback(None)
    assert seen == [State.INITIALIZING]


def test_observers_change_during_a_notification() -> None:
    """
    An observer that another one removes is not notified; an observer that another one
    adds is notified from the next change on.
    """
    observers: Observers[[str]] = Observers()
    seen: list[str] = []

    def first(news: str) -> None:
        seen.append(f"first {news}")
        observers.remove(second)
        observers.add(third)

    def second(news: str) -> None:
        seen.append(f"second {news}")

    def third(news: str) -> None:
        seen.append(f"third {news}")

    observers.add(first)
    observers.add(second)
    observers.notify("a")
    observers.notify("b")
    assert seen == ["first a", "first b", "third b"]


@pytest.mark.parametrize("error", [Trouble, SystemExit, asyncio.CancelledError])
def test_an_observer_that_raises(
    clock: Clock, loggedFailures: list[LogEvent], error: type[BaseException]
) -> None:
    """
    The error of an observer is logged, and affects neither callers nor other observers.
    """
    module, wrapper, proxy = wrap(clock)

    def broken() -> None:
        raise error()

    wrapper.addObserver(broken)
    seen = watch(wrapper)
    call = resultOf(proxy.write(1))
    waiting = resultOf(wrapper.initialize())
    module.attempts[-1].callback(None)
    module.answers[-1].callback(1)
    assert (waiting.value, call.value, wrapper.state) == (None, 1, State.READY)
    assert seen == [State.INITIALIZING, State.DRAINING, State.READY]
    assert [event["observer"] for event in loggedFailures] == [broken] * 3
    assert all(event["log_namespace"] == "tsrv.wrapper" for event in loggedFailures)
    assert all(event["log_failure"].check(error) for event in loggedFailures)
    loggedFailures.clear()
