"""
Closing.
"""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from tsrv import Closed, OutcomeUnknown, QueuingWrapper, State

from .support import Trouble, inState, lose, ready, resultOf, wrap

BEFORE_CLOSING = [each for each in State if each not in (State.CLOSING, State.CLOSED)]


@pytest.mark.parametrize("state", BEFORE_CLOSING)
@pytest.mark.parametrize("settles", [True, False])
def test_close_in_every_state(clock: Clock, state: State, settles: bool) -> None:
    """
    In every state, closing ends the attempt, queued calls and waiters, closes a module
    that was ever initialised, refuses later calls, and leaves no timer.
    """
    module, wrapper, proxy = inState(clock, state, attemptTimeout=9.0, settles=settles)
    isQueuing = state not in (State.READY, State.FAILED)
    call = resultOf(proxy.write("queued")) if isQueuing else None
    waiter = resultOf(wrapper.whenInitialized())
    calls = list(module.calls)
    first, second = resultOf(wrapper.close()), resultOf(wrapper.close())
    if call is not None:
        assert isinstance(call.error, Closed)
    if state in (State.NEW, State.INITIALIZING, State.RETRYING, State.LOST):
        assert isinstance(waiter.error, Closed)
    assert all(attempt.called for attempt in module.attempts)
    if state is State.NEW:
        assert module.closings == []
    else:
        assert (wrapper.state, first.pending) == (State.CLOSING, True)
        assert isinstance(resultOf(proxy.write(0)).error, Closed)
        (closing,) = module.closings
        closing.callback(None)
    assert (first.value, second.value) == (None, None)
    assert (wrapper.state, wrapper.pending) == (State.CLOSED, 0)
    assert resultOf(wrapper.close()).value is None
    for late in (proxy.write(0), wrapper.initialize(), wrapper.whenInitialized()):
        error = resultOf(late).error
        assert isinstance(error, Closed)
        assert str(error) == "Module is closed"
    assert module.calls == calls


def test_calls_in_progress_end_as_the_module_ends_them(clock: Clock) -> None:
    """
    While the module closes, a call in progress may end with the module's own result.
    """
    module, wrapper, proxy = wrap(clock)
    result = resultOf(proxy.write(1))
    ready(module, wrapper)
    closed = resultOf(wrapper.close())
    assert result.pending
    module.answers[0].errback(Trouble("closed"))
    module.closings[0].callback(None)
    assert isinstance(result.error, Trouble)
    assert closed.value is None


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("lost", [False, True])
def test_calls_that_the_module_does_not_answer(
    clock: Clock, method: str, lost: bool
) -> None:
    """
    If the closed module has not ended a call in progress, the outcome of the call is
    unknown; a call that was queued again at a loss gets Closed.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    result = resultOf(getattr(proxy, method)(1))
    ready(module, wrapper)
    if lost:
        lose(module)
    wrapper.close()
    module.closings[0].callback(None)
    queuedAgain = lost and method == "read"
    assert isinstance(result.error, Closed if queuedAgain else OutcomeUnknown)
    module.answers[0].callback("too late")


def test_close_while_a_failure_is_in_doubt(clock: Clock) -> None:
    """
    A failure that a loss might have explained stands when the wrapper is closed.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    result = resultOf(proxy.read(1))
    module.answers[0].errback(Trouble("its own"))
    wrapper.close()
    module.closings[0].callback(None)
    assert isinstance(result.error, Trouble)


def test_close_that_fails(clock: Clock) -> None:
    """
    If closing the module fails, everyone who waits for it gets the error, and the
    wrapper is closed.
    """
    module, wrapper, _ = inState(clock, State.READY)
    results = [resultOf(wrapper.close()) for _ in range(2)]
    module.closings[0].errback(Trouble("disk full"))
    assert [str(each.error) for each in results] == ["disk full", "disk full"]
    assert wrapper.state is State.CLOSED
    assert resultOf(wrapper.close()).value is None


def test_close_that_hangs(clock: Clock) -> None:
    """
    After closeTimeout, closing the module is given up, and calls in progress end.
    """
    module, wrapper, proxy = wrap(clock, closeTimeout=3.0)
    result = resultOf(proxy.write(1))
    ready(module, wrapper)
    closed = resultOf(wrapper.close())
    clock.advance(3)
    assert isinstance(closed.error, TimeoutError)
    assert isinstance(result.error, OutcomeUnknown)
    assert (module.closings[0].called, wrapper.state) == (True, State.CLOSED)


def test_close_without_a_time_limit(clock: Clock) -> None:
    """
    With closeTimeout=None closing has no time limit.
    """
    module, wrapper, _ = inState(clock, State.READY, closeTimeout=None)
    closed = resultOf(wrapper.close())
    clock.advance(10**6)
    assert closed.pending
    module.closings[0].callback(None)
    assert closed.value is None


def test_cancelling_the_waiting_does_not_cancel_the_closing(clock: Clock) -> None:
    """
    Cancelling close() affects neither the closing nor other callers.
    """
    module, wrapper, _ = inState(clock, State.READY)
    first = wrapper.close()
    results = [resultOf(first), resultOf(wrapper.close())]
    first.cancel()
    assert isinstance(results[0].error, CancelledError)
    module.closings[0].callback(None)
    assert results[1].value is None


def test_module_without_close(clock: Clock) -> None:
    """
    A module without close() is closed at once.
    """

    class Simple:
        def initialize(self) -> None:
            pass

    wrapper = QueuingWrapper(Simple(), clock)
    wrapper.initialize()
    assert resultOf(wrapper.close()).value is None
    assert wrapper.state is State.CLOSED
