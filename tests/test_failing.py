"""
fail(): the initialisation is given up from outside.

Every foreign callable that the wrapper calls may be the one that gives up, closes or
begins again: the module, its cancellers, the retry policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from tsrv import (
    Closed,
    IllegalTransition,
    InitializationFailed,
    OutcomeUnknown,
    QueuingWrapper,
    State,
)

from .support import (
    Module,
    Refused,
    Result,
    Trouble,
    inState,
    lose,
    messageOf,
    ready,
    resultOf,
    shut,
    wrap,
)

CAN_FAIL = [State.NEW, State.INITIALIZING, State.RETRYING, State.LOST]


@pytest.mark.parametrize("state", CAN_FAIL)
def test_everybody_gets_the_reason(clock: Clock, state: State) -> None:
    """
    After fail() queued calls, waiters and later calls get InitializationFailed with
    the reason as its cause, nothing runs, and no timer is left.
    """
    module, wrapper, proxy = inState(clock, state, attemptTimeout=9.0)
    attempts = len(module.attempts)
    results = [resultOf(proxy.write("queued")), resultOf(wrapper.whenInitialized())]
    reason = Refused("what it needs is not there")
    with capturedLogs() as logged:
        wrapper.fail(reason)
    assert clock.getDelayedCalls() == []
    assert (wrapper.state, wrapper.lastError) == (State.FAILED, reason)
    assert (wrapper.retryAfter(), wrapper.oldest) == (None, None)
    results += [resultOf(proxy.write("late")), resultOf(wrapper.whenInitialized())]
    for result in results:
        assert isinstance(result.error, InitializationFailed)
        assert result.error.__cause__ is reason
    assert all(attempt.called for attempt in module.attempts)
    clock.advance(60)
    assert (len(module.attempts), module.calls) == (attempts, [])
    assert [messageOf(event) for event in logged] == [
        "Module: failed for good (Refused: what it needs is not there)"
    ]


@pytest.mark.parametrize("state", [each for each in State if each not in CAN_FAIL])
def test_fail_is_illegal_in_other_states(clock: Clock, state: State) -> None:
    """
    fail() raises IllegalTransition and changes nothing when the module is ready, has
    failed or is closed.
    """
    _, wrapper, _ = inState(clock, state)
    seen: list[State] = []
    wrapper.addObserver(lambda: seen.append(wrapper.state))
    before = (wrapper.since, wrapper.lastError, wrapper.stats)
    clock.advance(1)
    with pytest.raises(IllegalTransition, match="FAIL_FOR_GOOD"):
        wrapper.fail(Trouble())
    assert (wrapper.since, wrapper.lastError, wrapper.stats) == before
    assert (wrapper.state, seen) == (state, [])
    shut(wrapper)


@pytest.mark.parametrize("state", CAN_FAIL)
def test_initialized_again(clock: Clock, state: State) -> None:
    """
    After fail() the wrapper may be initialised as if nothing had been.
    """
    module, wrapper, proxy = inState(clock, state)
    wrapper.fail(Trouble())
    asked, call = resultOf(wrapper.initialize()), resultOf(proxy.write(1))
    assert (wrapper.state, wrapper.attempts) == (State.INITIALIZING, 1)
    assert wrapper.lastError is None
    module.attempts[-1].callback(None)
    module.answers[-1].callback("done")
    assert (asked.value, call.value) == (None, "done")


def test_calls_after_a_loss(clock: Clock) -> None:
    """
    A call that is queued again fails with the reason; a call whose outcome is
    unknown gets OutcomeUnknown all the same.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    results = [resultOf(proxy.read(1)), resultOf(proxy.write(2))]
    ready(module, wrapper)
    lose(module)
    reason = Trouble()
    wrapper.fail(reason)
    assert isinstance(results[0].error, InitializationFailed)
    assert results[0].error.__cause__ is reason
    assert results[1].pending
    clock.advance(0)
    assert isinstance(results[1].error, OutcomeUnknown)
    assert module.calls == [("read", 1), ("write", 2)]


@pytest.mark.parametrize("state", CAN_FAIL)
def test_closed_after_it_was_given_up(clock: Clock, state: State) -> None:
    """
    After fail() the module is closed if there ever was an attempt.
    """
    module, wrapper, _ = inState(clock, state)
    wrapper.fail(Trouble())
    closed = resultOf(wrapper.close())
    if state is State.NEW:
        assert module.closings == []
    else:
        (closing,) = module.closings
        closing.callback(None)
    assert (closed.value, wrapper.state) == (None, State.CLOSED)


@pytest.mark.parametrize("where", ["initialize", "whenLost"])
def test_the_module_gives_up(clock: Clock, where: str) -> None:
    """
    A module may call fail() while it is initialised, or asked for losses: its
    attempt is no success.
    """
    reason = Trouble("no such host")

    class Hopeless(Module):
        def initialize(self) -> Deferred[None]:
            if where == "initialize":
                wrapper.fail(reason)
            return super().initialize()

        def whenLost(self) -> Deferred[None]:
            wrapper.fail(reason)
            return super().whenLost()

    module = Hopeless()
    wrapper = QueuingWrapper(module, clock)
    result = resultOf(wrapper.initialize())
    if where == "whenLost":
        module.attempts[0].callback(None)
    assert isinstance(result.error, InitializationFailed)
    assert result.error.__cause__ is reason
    assert (wrapper.state, module.attempts[0].called) == (State.FAILED, True)
    assert [each.kind for each in wrapper.history.attempts] == ["CancelledError"]


@pytest.mark.parametrize("lost", [True, False])
def test_the_policy_gives_up(clock: Clock, lost: bool) -> None:
    """
    A policy that calls fail() ends the attempts, whatever delay it returns.
    """
    reason = Trouble("enough")

    def policy(attempts: int) -> float:
        wrapper.fail(reason)
        return 1.0

    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    result = resultOf(wrapper.initialize())
    if lost:
        module.attempts[-1].callback(None)
        lose(module)
    else:
        module.attempts[-1].errback(Trouble("an attempt"))
        assert result.error.__cause__ is reason
    assert (wrapper.state, wrapper.lastError) == (State.FAILED, reason)
    assert clock.getDelayedCalls() == []


# The canceller of an attempt.


def ignore(result: object) -> None:
    """
    Ignore a result.
    """


class Cancellable(Module):
    """
    A module whose first attempt does something when it is cancelled.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__()
        self.wrapper = QueuingWrapper(self, clock, retryPolicy=lambda _: 1.0, **options)
        self.onCancel: Callable[[], object] = bool

    def initialize(self) -> Deferred[None]:
        if self.attempts:
            return super().initialize()
        attempt: Deferred[None] = Deferred(lambda _: ignore(self.onCancel()))
        self.attempts.append(attempt)
        return attempt


def giveUp(clock: Clock, module: Cancellable, overdue: bool) -> None:
    """
    Have the attempt in progress cancelled.
    """
    if overdue:
        clock.advance(5)
    else:
        module.wrapper.fail(Trouble("the first"))


def test_the_canceller_asks_why(clock: Clock) -> None:
    """
    A canceller that asks gets the reason that was given to fail().
    """
    module = Cancellable(clock)
    asked: list[Result] = []
    module.onCancel = lambda: asked.append(resultOf(module.wrapper.whenInitialized()))
    resultOf(module.wrapper.initialize())
    reason = Trouble("mine")
    module.wrapper.fail(reason)
    assert asked[0].error.__cause__ is reason


@pytest.mark.parametrize("overdue", [False, True])
def test_the_canceller_closes(clock: Clock, overdue: bool) -> None:
    """
    A wrapper that the canceller closes is closed, and has not failed.
    """
    module = Cancellable(clock, attemptTimeout=5.0, fatal=TimeoutError)
    wrapper = module.wrapper
    module.onCancel = wrapper.close
    results = [resultOf(wrapper.initialize()), resultOf(wrapper.proxy.write(1))]
    giveUp(clock, module, overdue)
    results.append(resultOf(wrapper.proxy.write(2)))
    for result in results:
        assert isinstance(result.error, Closed)
    assert wrapper.state is State.CLOSING
    module.closings[-1].callback(None)


@pytest.mark.parametrize("overdue", [False, True])
def test_the_canceller_begins_again(clock: Clock, overdue: bool) -> None:
    """
    If the canceller begins another attempt, that attempt is the only one, and
    those who wait from then on wait for it.
    """
    module = Cancellable(clock, attemptTimeout=5.0)
    wrapper = module.wrapper
    again: list[Result] = []

    def cancelled() -> None:
        if overdue:
            wrapper.fail(Trouble())
        again.append(resultOf(wrapper.initialize()))

    module.onCancel = cancelled
    first, call = resultOf(wrapper.initialize()), resultOf(wrapper.proxy.write(1))
    giveUp(clock, module, overdue)
    assert (wrapper.state, wrapper.lastError) == (State.INITIALIZING, None)
    assert (len(module.attempts), wrapper.retryAfter()) == (2, None)
    module.attempts[1].callback(None)
    assert again[0].value is None
    if overdue:
        assert isinstance(first.error, InitializationFailed)
        assert isinstance(call.error, InitializationFailed)
    else:
        module.answers[0].callback("done")
        assert (first.value, call.value) == (None, "done")


@pytest.mark.parametrize("fatal", [(), TimeoutError])
def test_the_canceller_of_an_overdue_attempt_gives_up(
    clock: Clock, fatal: type[BaseException] | tuple[()]
) -> None:
    """
    If the canceller of an overdue attempt calls fail(), that is the reason, and not
    the timeout.
    """
    reason = Trouble("mine")
    module = Cancellable(clock, attemptTimeout=5.0, fatal=fatal)
    module.onCancel = lambda: module.wrapper.fail(reason)
    result = resultOf(module.wrapper.initialize())
    clock.advance(5)
    assert (module.wrapper.state, module.wrapper.lastError) == (State.FAILED, reason)
    assert result.error.__cause__ is reason
    assert clock.getDelayedCalls() == []
