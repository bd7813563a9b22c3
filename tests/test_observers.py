"""
Those who are told of each change of state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv import (
    Closed,
    InitializationFailed,
    QueuingWrapper,
    State,
)
from tsrv.queuing.observers import Observers

from .support import Module, Refused, Trouble, ready, resultOf, wrap


def watch(wrapper: QueuingWrapper[Module]) -> list[State]:
    """
    @return: The states that an observer sees, one for each time it is told.
    """
    seen: list[State] = []
    wrapper.addObserver(lambda: seen.append(wrapper.state))
    return seen


def test_each_change_of_state_is_told(clock: Clock) -> None:
    """
    Who shows the state of a module has to hear of all that it goes through,
    once each, without asking all the time.
    """
    module, wrapper, proxy = wrap(clock, fatal=Refused)
    seen = watch(wrapper)
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Trouble())
    clock.advance(1)
    module.attempts[-1].callback(None)
    module.watches[-1].callback(None)
    clock.advance(1)
    module.attempts[-1].errback(Refused())
    resultOf(wrapper.initialize())
    resultOf(proxy.write(1))
    wrapper.fail(Trouble())
    wrapper.close()
    module.closings[-1].callback(None)
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


def test_an_attempt_that_ends_at_once_is_told_as_its_end(clock: Clock) -> None:
    """
    When something is told the state has been reached: nobody is told of an
    attempt that is over by then.
    """
    wrapper = QueuingWrapper(Module(), clock, initialize=lambda: None)
    seen = watch(wrapper)
    wrapper.initialize()
    assert seen == [State.DRAINING, State.READY]


def test_a_loss_that_no_attempt_follows_is_told_as_its_end(clock: Clock) -> None:
    """
    A loss after which nothing is tried again is a failure.
    """
    module, wrapper, _ = wrap(clock, retryPolicy=lambda _: 1 / 0)
    ready(module, wrapper)
    seen = watch(wrapper)
    module.watches[-1].errback(Trouble())
    assert seen == [State.FAILED]


def test_all_that_belongs_to_a_change_has_been_done(clock: Clock) -> None:
    """
    What an observer sees must be true: who waits has been told, and calls go
    where they go in that state.
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


def test_a_failure_is_told_when_all_others_have_heard_of_it(clock: Clock) -> None:
    """
    Who sees that a module has failed need not expect more from its queue, nor
    from those who wait for it.
    """
    _, wrapper, proxy = wrap(clock)
    call, waiting = resultOf(proxy.write(1)), resultOf(wrapper.whenInitialized())
    seen: list[tuple[int, bool, bool]] = []
    wrapper.addObserver(
        lambda: seen.append((wrapper.pending, call.pending, waiting.pending))
    )
    wrapper.fail(Trouble())
    assert seen == [(0, False, False)]


def test_since_is_when_the_state_was_entered(clock: Clock) -> None:
    """
    For how long a module has been unready is the first question of all.
    """
    clock.advance(7)
    module, wrapper, proxy = wrap(clock)
    assert wrapper.since == 7.0
    clock.advance(1)
    resultOf(wrapper.initialize())
    assert wrapper.since == 8.0
    clock.advance(1)
    resultOf(proxy.write(1))
    assert wrapper.since == 8.0
    module.attempts[-1].callback(None)
    assert wrapper.since == 9.0


def test_oldest_is_the_age_of_what_waits_longest(clock: Clock) -> None:
    """
    A queue whose oldest command is old is one that does not move, however
    short it is.
    """
    module, wrapper, proxy = wrap(clock)
    assert wrapper.oldest is None
    first = proxy.write(1)
    first.addErrback(lambda _: None)
    clock.advance(2)
    resultOf(proxy.write(2))
    clock.advance(1)
    assert wrapper.oldest == 3.0
    first.cancel()
    assert wrapper.oldest == 1.0
    ready(module, wrapper)
    assert wrapper.oldest is None


def test_oldest_looks_behind_what_was_put_back(clock: Clock) -> None:
    """
    A command that is to be run again is at the head of the queue, but has not
    waited longest.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"], concurrency=1)
    for what in (1, 2):
        resultOf(proxy.read(what))
    clock.advance(4)
    ready(module, wrapper)
    assert module.calls == [("read", 1)]
    module.watches[-1].callback(None)
    assert wrapper.oldest == 4.0
    wrapper.close()
    module.closings[-1].callback(None)


def test_oldest_where_all_were_put_back(clock: Clock) -> None:
    """
    They wait since the loss, and not since they were called.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    for what in (1, 2):
        resultOf(proxy.read(what))
    clock.advance(4)
    ready(module, wrapper)
    clock.advance(1)
    module.watches[-1].callback(None)
    assert wrapper.oldest == 0.0
    clock.advance(0.5)
    assert wrapper.oldest == 0.5
    wrapper.close()
    module.closings[-1].callback(None)


def test_oldest_on_a_clock_that_was_set_back(clock: Clock) -> None:
    """
    Nothing has been waiting for less than no time.
    """
    clock.advance(10)
    _, wrapper, proxy = wrap(clock, timeout=None)
    resultOf(proxy.write(1))
    clock.rightNow = 5.0
    assert wrapper.oldest == 0.0


@pytest.mark.parametrize(
    "state", [State.INITIALIZING, State.DRAINING, State.READY, State.LOST]
)
def test_an_observer_may_close(clock: Clock, state: State) -> None:
    """
    Whoever decides by what he sees that the program has to end must be able to
    end it there; nothing goes on behind his back.
    """
    module, wrapper, proxy = wrap(clock)
    closes: list[Deferred[None]] = []
    when(wrapper, state, lambda: closes.append(wrapper.close()))
    call, waiting = resultOf(proxy.write(1)), resultOf(wrapper.initialize())
    if state is not State.INITIALIZING:
        module.attempts[-1].callback(None)
        assert waiting.value is None
    if state is State.LOST:
        module.watches[-1].callback(None)
    assert wrapper.state is State.CLOSING
    assert isinstance(resultOf(proxy.write(2)).error, Closed)
    if state in (State.INITIALIZING, State.DRAINING):
        assert module.calls == []
        assert isinstance(call.error, Closed)
    module.closings[-1].callback(None)
    clock.advance(0)
    assert (wrapper.state, call.pending) == (State.CLOSED, False)


def when(
    wrapper: QueuingWrapper[Module], state: State, what: Callable[[], object]
) -> None:
    """
    Do something once, as soon as an observer sees a state.
    """

    def look() -> None:
        if wrapper.state is state:
            wrapper.removeObserver(look)
            what()

    wrapper.addObserver(look)


@pytest.mark.parametrize("state", [State.INITIALIZING, State.RETRYING, State.LOST])
def test_an_observer_may_give_up(clock: Clock, state: State) -> None:
    """
    A program that does not want to wait for a retry says so when it hears of
    the failure; no attempt follows.
    """
    module, wrapper, proxy = wrap(clock)
    reason = Trouble("enough")
    when(wrapper, state, lambda: wrapper.fail(reason))
    waiting = resultOf(wrapper.initialize())
    if state is State.RETRYING:
        module.attempts[-1].errback(Trouble())
    if state is State.LOST:
        module.attempts[-1].callback(None)
        module.watches[-1].callback(None)
    else:
        assert waiting.error.__cause__ is reason
    assert isinstance(resultOf(proxy.write(1)).error, InitializationFailed)
    assert (wrapper.state, clock.getDelayedCalls()) == (State.FAILED, [])


def test_an_observer_may_initialize(clock: Clock) -> None:
    """
    A failure for good may be one only until somebody tries again, be it the
    first who hears of it; each observer then sees how things are.
    """
    module, wrapper, _ = wrap(clock)
    when(wrapper, State.FAILED, lambda: resultOf(wrapper.initialize()))
    seen = watch(wrapper)
    first = resultOf(wrapper.initialize())
    wrapper.fail(Trouble())
    assert isinstance(first.error, InitializationFailed)
    assert (wrapper.state, set(seen)) == (State.INITIALIZING, {State.INITIALIZING})
    module.attempts[-1].callback(None)
    assert wrapper.state is State.READY


def test_an_observer_may_lose_the_module(clock: Clock) -> None:
    """
    What was ready when the first heard of it may not be so any more for the
    queue behind it: nothing is run on a lost module.
    """
    module, wrapper, proxy = wrap(clock)
    call = resultOf(proxy.write(1))
    when(wrapper, State.DRAINING, lambda: module.watches[-1].callback(None))
    resultOf(wrapper.initialize())
    module.attempts[-1].callback(None)
    assert (wrapper.state, module.calls) == (State.LOST, [])
    clock.advance(1)
    module.attempts[-1].callback(None)
    module.answers[-1].callback("done")
    assert call.value == "done"


def test_an_observer_may_make_calls(clock: Clock) -> None:
    """
    A call from an observer has its place behind those that were made before.
    """
    module, wrapper, proxy = wrap(clock)
    resultOf(proxy.write(1))
    when(wrapper, State.DRAINING, lambda: resultOf(proxy.write(2)))
    ready(module, wrapper)
    assert module.calls == [("write", 1), ("write", 2)]


def test_an_observer_that_was_removed_is_told_no_more(clock: Clock) -> None:
    """
    Who has gone must not be called, nor kept; who was never there may go.
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


def test_one_observer_removes_another(clock: Clock) -> None:
    """
    It counts at once: the other may have been taken apart.
    """
    _, wrapper, _ = wrap(clock)
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        wrapper.removeObserver(second)

    def second() -> None:
        seen.append("second")

    def third() -> None:
        seen.append("third")
        wrapper.removeObserver(third)

    for each in (first, second, third):
        wrapper.addObserver(each)
    resultOf(wrapper.initialize())
    assert seen == ["first", "third"]


def test_who_is_added_by_an_observer_is_told_of_what_comes_next(clock: Clock) -> None:
    """
    One who adds others each time he is told must not go round for ever.
    """
    module, wrapper, _ = wrap(clock)
    seen: list[State] = []
    when(
        wrapper,
        State.INITIALIZING,
        lambda: wrapper.addObserver(lambda: seen.append(wrapper.state)),
    )
    resultOf(wrapper.initialize())
    assert seen == []
    module.attempts[-1].callback(None)
    assert seen == [State.DRAINING, State.READY]


@pytest.mark.parametrize("error", [Trouble, SystemExit, asyncio.CancelledError])
def test_an_observer_that_raises_disturbs_nobody(
    clock: Clock, loggedFailures: list[LogEvent], error: type[BaseException]
) -> None:
    """
    What concerns the one who only looks on must not cost a caller his answer,
    nor another observer the news.
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
    assert all(event["log_failure"].check(error) for event in loggedFailures)
    loggedFailures.clear()


def test_what_is_told_is_handed_on() -> None:
    """
    Observers of several things are told which one it was.
    """
    observers: Observers[[str]] = Observers()
    seen: list[str] = []
    observers.add(seen.append)
    observers.notify("database")
    assert seen == ["database"]


def test_nobody_is_told_while_commands_come_and_go(clock: Clock) -> None:
    """
    A thousand calls are no change of state: what shows the state costs them
    nothing.
    """
    module, wrapper, proxy = wrap(clock)
    ready(module, wrapper)
    module.watches[-1].callback(None)
    seen = watch(wrapper)
    for number in range(1000):
        resultOf(proxy.write(number))
    assert seen == []
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert seen == [State.INITIALIZING, State.DRAINING, State.READY]


def test_a_waiter_that_closes_is_no_reason_to_keep_silent(clock: Clock) -> None:
    """
    Whatever happened in between, an observer sees the last state last.
    """
    module, wrapper, _ = wrap(clock)
    seen = watch(wrapper)
    waiter: Deferred[None] = wrapper.initialize()
    waiter.addCallback(lambda _: wrapper.close())
    module.attempts[-1].callback(None)
    module.closings[-1].callback(None)
    assert seen[0] is State.INITIALIZING
    assert seen[-1] is State.CLOSED
    assert State.READY not in seen
