"""
The end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tsrv import (
    Closed,
    OutcomeUnknown,
    QueuingWrapper,
    State,
)

from .support import Module, Refused, Trouble, ready, resultOf, wrap

Wrapped = tuple[Module, QueuingWrapper[Module]]


def new(clock: Clock) -> Wrapped:
    """
    Nothing has happened.
    """
    module, wrapper, _ = wrap(clock)
    return module, wrapper


def initializing(clock: Clock) -> Wrapped:
    """
    An attempt is in progress.
    """
    module, wrapper, _ = wrap(clock, attemptTimeout=9.0)
    resultOf(wrapper.initialize())
    return module, wrapper


def retrying(clock: Clock) -> Wrapped:
    """
    An attempt has failed.
    """
    module, wrapper = initializing(clock)
    module.attempts[-1].errback(Trouble())
    return module, wrapper


def draining(clock: Clock) -> Wrapped:
    """
    The module is ready, but there is more to do than it may do.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    for number in range(2):
        resultOf(proxy.write(number))
    ready(module, wrapper)
    return module, wrapper


def readied(clock: Clock) -> Wrapped:
    """
    The module is ready.
    """
    module, wrapper, _ = wrap(clock)
    ready(module, wrapper)
    return module, wrapper


def lost(clock: Clock) -> Wrapped:
    """
    The module was ready.
    """
    module, wrapper = readied(clock)
    module.watches[-1].callback(None)
    return module, wrapper


def failed(clock: Clock) -> Wrapped:
    """
    The module will not be ready.
    """
    module, wrapper, _ = wrap(clock, fatal=[Refused])
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Refused())
    return module, wrapper


STATES = {
    State.NEW: new,
    State.INITIALIZING: initializing,
    State.RETRYING: retrying,
    State.DRAINING: draining,
    State.READY: readied,
    State.LOST: lost,
    State.FAILED: failed,
}


@pytest.mark.parametrize(("state", "arrange"), STATES.items())
def test_close_in_every_state(
    clock: Clock, state: State, arrange: Callable[[Clock], Wrapped]
) -> None:
    """
    Closing is right at any time: what waits ends, the module is closed once if
    it was ever touched, later calls are refused, and no timer is left.
    """
    module, wrapper = arrange(clock)
    assert wrapper.state is state
    holding = state not in (State.READY, State.FAILED)
    call = resultOf(wrapper.proxy.write("held")) if holding else None
    waiter = resultOf(wrapper.whenInitialized())
    calls = list(module.calls)
    first, second = resultOf(wrapper.close()), resultOf(wrapper.close())
    if call is not None:
        assert isinstance(call.error, Closed)
    if state in (State.NEW, State.INITIALIZING, State.RETRYING, State.LOST):
        assert isinstance(waiter.error, Closed)
    if state is State.NEW:
        assert module.closings == []
    else:
        assert (wrapper.state, first.pending) == (State.CLOSING, True)
        (closing,) = module.closings
        assert isinstance(resultOf(wrapper.proxy.write(0)).error, Closed)
        closing.callback(None)
    assert (first.value, second.value) == (None, None)
    assert (wrapper.state, wrapper.pending) == (State.CLOSED, 0)
    assert resultOf(wrapper.close()).value is None
    for late in (
        resultOf(wrapper.proxy.write(0)),
        resultOf(wrapper.initialize()),
        resultOf(wrapper.whenInitialized()),
    ):
        assert isinstance(late.error, Closed)
        assert str(late.error) == "Module is closed"
    assert module.calls == calls


def test_close_gives_up_the_attempt(clock: Clock) -> None:
    """
    An attempt in progress is cancelled, and what it has to say is not heard.
    """
    module, wrapper = initializing(clock)
    wrapper.close()
    assert module.attempts[0].called
    module.closings[0].callback(None)
    assert wrapper.state is State.CLOSED


def test_what_is_in_progress_is_ended_by_the_module(clock: Clock) -> None:
    """
    Closing the module usually ends what it is at work on; that end counts.
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
def test_what_the_module_leaves_unanswered(clock: Clock, method: str) -> None:
    """
    What it does not end itself is ended when it is closed: nobody waits for
    ever.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    result = resultOf(getattr(proxy, method)(1))
    ready(module, wrapper)
    wrapper.close()
    assert result.pending
    module.closings[0].callback(None)
    assert isinstance(result.error, OutcomeUnknown)
    module.answers[0].callback("too late")


def test_close_while_failures_are_in_doubt(clock: Clock) -> None:
    """
    A failure that was held back for a turn is told before the end, and leaves
    no timer.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    result = resultOf(proxy.read(1))
    module.answers[0].errback(Trouble("its own"))
    wrapper.close()
    module.closings[0].callback(None)
    assert isinstance(result.error, Trouble)


def test_close_after_a_loss(clock: Clock) -> None:
    """
    What a loss has left without an answer is told before the end, too.
    """
    module, wrapper, proxy = wrap(clock)
    result = resultOf(proxy.write(1))
    ready(module, wrapper)
    module.watches[-1].callback(None)
    wrapper.close()
    module.closings[0].callback(None)
    assert isinstance(result.error, OutcomeUnknown)


def test_close_that_fails(clock: Clock) -> None:
    """
    Everyone who waits for the end hears why it was not a good one; it is the
    end all the same.
    """
    module, wrapper = readied(clock)
    first, second = resultOf(wrapper.close()), resultOf(wrapper.close())
    module.closings[0].errback(Trouble("disk full"))
    assert isinstance(first.error, Trouble)
    assert isinstance(second.error, Trouble)
    assert wrapper.state is State.CLOSED
    assert resultOf(wrapper.close()).value is None


def test_close_that_hangs(clock: Clock) -> None:
    """
    A module that does not come to its end is left behind after a while.
    """
    module, wrapper, proxy = wrap(clock, closeTimeout=3.0)
    result = resultOf(proxy.write(1))
    ready(module, wrapper)
    closed = resultOf(wrapper.close())
    clock.advance(3)
    assert isinstance(closed.error, TimeoutError)
    assert isinstance(result.error, OutcomeUnknown)
    assert module.closings[0].called
    assert wrapper.state is State.CLOSED


def test_close_without_a_time_limit(clock: Clock) -> None:
    """
    Unless it may take any time.
    """
    module, wrapper, _ = wrap(clock, closeTimeout=None)
    ready(module, wrapper)
    closed = resultOf(wrapper.close())
    clock.advance(10**6)
    assert closed.pending
    module.closings[0].callback(None)
    assert closed.value is None


def test_waiting_for_the_end_can_be_given_up(clock: Clock) -> None:
    """
    The others wait on, and the module is closed.
    """
    module, wrapper = readied(clock)
    first = wrapper.close()
    results = [resultOf(first), resultOf(wrapper.close())]
    first.cancel()
    assert isinstance(results[0].error, CancelledError)
    module.closings[0].callback(None)
    assert results[1].value is None


def test_module_without_close(clock: Clock) -> None:
    """
    A module that holds nothing needs no closing.
    """

    class Simple:
        def initialize(self) -> None:
            pass

    wrapper = QueuingWrapper(Simple(), clock)
    wrapper.initialize()
    assert resultOf(wrapper.close()).value is None
    assert wrapper.state is State.CLOSED


def test_close_from_the_callback_of_a_drained_command(clock: Clock) -> None:
    """
    The rest of the queue is refused and does not run.
    """
    module, wrapper, proxy = wrap(clock)
    first = proxy.count(1)
    assert isinstance(first, Deferred)
    first.addCallback(lambda _: wrapper.close())
    second = resultOf(proxy.write(2))
    ready(module, wrapper)
    assert isinstance(second.error, Closed)
    assert (module.calls, wrapper.state) == ([("count", 1)], State.CLOSING)
    module.closings[0].callback(None)


def test_close_from_the_callback_of_a_waiter(clock: Clock) -> None:
    """
    The module is ready, and nobody wants it any more: nothing is run.
    """
    module, wrapper, proxy = wrap(clock)
    call = resultOf(proxy.write(1))
    wrapper.whenInitialized().addCallback(lambda _: wrapper.close())
    ready(module, wrapper)
    assert isinstance(call.error, Closed)
    assert module.calls == []
    module.closings[0].callback(None)


def test_close_from_the_errback_of_a_refused_command(clock: Clock) -> None:
    """
    To close once more while what waited is being told of it is to wait for the
    same end.
    """
    module, wrapper, proxy = wrap(clock)
    again: list[object] = []
    proxy.write(1).addErrback(lambda _: again.append(resultOf(wrapper.close())))
    resultOf(wrapper.initialize())
    closed = resultOf(wrapper.close())
    module.closings[0].callback(None)
    (result,) = again
    assert (closed.value, result.value) == (None, None)  # type: ignore[attr-defined]


def test_call_from_the_errback_of_a_refused_command(clock: Clock) -> None:
    """
    Who tries again in his errback is refused again, and does not keep the
    wrapper from closing.
    """
    _, wrapper, proxy = wrap(clock)
    again: list[object] = []
    proxy.write(1).addErrback(lambda _: again.append(resultOf(proxy.write(2)).error))
    wrapper.close()
    assert isinstance(again[0], Closed)
    assert wrapper.state is State.CLOSED
