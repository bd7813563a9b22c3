"""
fail(): the initialisation is given up from outside, or by foreign code that it calls.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs
from twisted.python.failure import Failure

from tsrv import (
    Closed,
    IllegalTransition,
    InitializationFailed,
    QueueTimeout,
    State,
)

from .support import (
    Refused,
    Result,
    Trouble,
    inState,
    messageOf,
    resultOf,
    shut,
    wrap,
)

CAN_FAIL = [State.NEW, State.INITIALIZING, State.RETRYING, State.LOST]


@pytest.mark.parametrize("state", CAN_FAIL)
def test_everybody_gets_the_reason(clock: Clock, state: State) -> None:
    """
    After fail(), queued calls, waiters and later calls get InitializationFailed with
    the reason as its cause. No call runs, and no timer is left.
    """
    module, wrapper, proxy = inState(clock, state, attemptTimeout=9.0)
    attempts = len(module.attempts)
    results = [resultOf(proxy.write("queued")), resultOf(wrapper.whenInitialized())]
    reason = Refused("the backend is missing")
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
        "Module: failed for good (Refused: the backend is missing)"
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
    with pytest.raises(IllegalTransition, match=r"fail\(\) of Module"):
        wrapper.fail(Trouble())
    assert (wrapper.since, wrapper.lastError, wrapper.stats) == before
    assert (wrapper.state, seen) == (state, [])
    shut(wrapper)


@pytest.mark.parametrize("state", CAN_FAIL)
def test_initialized_again(clock: Clock, state: State) -> None:
    """
    After fail() the wrapper may be initialised again.
    """
    module, wrapper, proxy = inState(clock, state)
    wrapper.fail(Trouble())
    asked, call = resultOf(wrapper.initialize()), resultOf(proxy.write(1))
    assert (wrapper.state, wrapper.attempts) == (State.INITIALIZING, 1)
    assert wrapper.lastError is None
    module.attempts[-1].callback(None)
    module.answers[-1].callback("done")
    assert (asked.value, call.value) == (None, "done")


# The canceller of an attempt.


@pytest.mark.parametrize("where", ["initialize", "canceller", "policy", "whenLost"])
@pytest.mark.parametrize("how", ["fails", "closes", "begins again"])
@pytest.mark.parametrize("isRaising", [False, True])
def test_foreign_code_gives_up(
    clock: Clock,
    loggedFailures: list[LogEvent],
    where: str,
    how: str,
    isRaising: bool,
) -> None:
    """
    The module, its canceller and the retry policy may fail, close or initialise the
    wrapper while the wrapper calls them, and then raise an error; the attempt in
    progress has no effect.
    """
    reason = Trouble("given up")
    attempts: list[Deferred[None]] = []
    losses: list[Deferred[None]] = []
    once = iter([where])

    def act(here: str) -> None:
        if here == where and next(once, None):
            if how == "closes":
                wrapper.close()
            else:
                wrapper.fail(reason)
            if how == "begins again":
                again.append(resultOf(wrapper.initialize()))
            if isRaising:
                raise Trouble("raised")

    def initialize() -> Deferred[None]:
        act("initialize")
        attempts.append(Deferred(lambda _: act("canceller")))
        return attempts[-1]

    def policy(number: int) -> float:
        act("policy")
        return 1.0

    def whenLost() -> Deferred[None]:
        act("whenLost")
        losses.append(Deferred())
        return losses[-1]

    _, wrapper, _ = wrap(
        clock,
        initialize=initialize,
        whenLost=whenLost,
        retryPolicy=policy,
        attemptTimeout=5.0,
    )
    again: list[Result] = []
    first = resultOf(wrapper.initialize())
    if where == "whenLost":
        attempts[0].callback(None)
    elif where != "initialize":
        clock.advance(5)
    if how == "closes":
        assert isinstance(first.error, Closed)
    else:
        assert first.error.__cause__ is reason
    if how == "begins again":
        # An attempt that cannot be cancelled is still pending.
        [each for each in attempts if not each.called][-1].callback(None)
        assert (again[0].value, wrapper.state) == (None, State.READY)
    shut(wrapper)
    # Nobody waits for these Deferreds any more, so nobody has to handle their errors.
    for lost in losses:
        lost.errback(Trouble("cut off"))
    # The error of a canceller is logged.
    assert len(loggedFailures) == (isRaising and where == "canceller")
    loggedFailures.clear()


@pytest.mark.parametrize("how", ["close", "initialize"])
def test_a_canceller_acts_when_the_wrapper_fails(clock: Clock, how: str) -> None:
    """
    If the canceller of the attempt closes or initialises the wrapper during fail(),
    this takes effect last.
    """
    attempts: list[Deferred[None]] = []

    def cancel(_: object) -> None:
        if len(attempts) == 1:
            resultOf(wrapper.close() if how == "close" else wrapper.initialize())

    def initialize() -> Deferred[None]:
        attempts.append(Deferred(cancel))
        return attempts[-1]

    _, wrapper, proxy = wrap(clock, initialize=initialize, close=bool)
    call, asked = resultOf(proxy.write(1)), resultOf(wrapper.initialize())
    wrapper.fail(Trouble("given up"))
    if how == "close":
        assert wrapper.state is State.CLOSED
        assert isinstance(call.error, Closed)
        assert isinstance(asked.error, Closed)
    else:
        assert (wrapper.state, len(attempts)) == (State.INITIALIZING, 2)
        attempts[1].callback(None)
        assert wrapper.state is State.READY
        assert not asked.pending
        shut(wrapper)


# Reasons.


@pytest.mark.parametrize("act", ["fail", "reset"])
@pytest.mark.parametrize("reason", ["rotated", Trouble, None, 1, Failure])
def test_a_reason_that_is_not_an_exception(clock: Clock, act: str, reason: Any) -> None:
    """
    fail() and reset() raise TypeError, and change nothing, if the reason is not an
    exception.
    """
    module, wrapper, proxy = inState(clock, State.INITIALIZING)
    call = resultOf(proxy.write(1))
    with pytest.raises(TypeError, match="must be an exception"):
        getattr(wrapper, act)(reason)
    assert (wrapper.state, wrapper.lastError) == (State.INITIALIZING, None)
    module.attempts[0].callback(None)
    module.answers[0].callback("done")
    assert call.value == "done"
    shut(wrapper)


@pytest.mark.parametrize("act", ["fail", "reset"])
def test_a_reason_that_is_a_failure(clock: Clock, act: str) -> None:
    """
    The reason may be the failure that an errback gets; its error counts.
    """
    _, wrapper, proxy = inState(clock, State.LOST, timeout=5.0)
    call = resultOf(proxy.write(1))
    reason = Trouble("no password")
    Deferred.fromCoroutine(_raise(reason)).addErrback(getattr(wrapper, act))
    clock.advance(5)
    assert (wrapper.lastError, call.error.__cause__) == (reason, reason)
    shut(wrapper)


async def _raise(error: Exception) -> None:
    raise error


class Unprintable:
    """
    A reason that raises when it is printed.
    """

    def __str__(self) -> str:
        raise Trouble("printed")

    __repr__ = __str__


UNPRINTABLE = Unprintable()


@pytest.mark.parametrize(
    "reason", ["cut off", Trouble, UNPRINTABLE], ids=["string", "class", "unprintable"]
)
@pytest.mark.parametrize("where", ["initialize", "whenLost", "ping", "close"])
@pytest.mark.parametrize("end", ["expire", "fail", "close"])
def test_a_foreign_reason_that_is_not_an_exception(
    clock: Clock, reason: Any, where: str, end: str
) -> None:
    """
    A Deferred of the module may fail with any object, for example a string. Queued
    calls then get an error that contains it.
    """
    pings: list[Deferred[None]] = []

    def ping() -> Deferred[None]:
        pings.append(Deferred())
        return pings[-1]

    module, wrapper, proxy = wrap(
        clock, timeout=5.0, retryPolicy=lambda _: 60.0, ping=ping, pingInterval=2.0
    )
    asked = resultOf(wrapper.initialize())
    if where == "initialize":
        module.attempts[0].errback(reason)
    else:
        module.attempts[0].callback(None)
        assert asked.value is None
    if where == "whenLost":
        module.watches[0].errback(reason)
    elif where == "ping":
        clock.advance(2)
        pings[0].errback(reason)
    elif where == "close":
        wrapper.reset(Trouble("rotated"))
        module.closings[0].errback(reason)
    calls = [resultOf(proxy.write(number)) for number in range(2)]
    if where != "close":
        assert isinstance(wrapper.lastError, BaseException)
        text = "cannot be printed" if reason is UNPRINTABLE else str(reason)
        assert text in str(wrapper.lastError)
        entries = [*wrapper.history.attempts, *wrapper.history.losses]
        assert text in str([each.error for each in entries])
    if end == "expire":
        clock.advance(5)
        for call in calls:
            assert isinstance(call.error, QueueTimeout)
            assert call.error.__cause__ is wrapper.lastError
    elif end == "fail":
        wrapper.fail(Refused("given up"))
        assert [type(each.error) for each in calls] == [InitializationFailed] * 2
    shut(wrapper)
    assert not any(each.pending for each in calls)
    assert not asked.pending
    assert clock.getDelayedCalls() == []
