"""
Calls that are given up by their callers or by the queue: cancellation, timeouts,
limits.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import Clock

from tsrv import AsyncModule, QueueFull, QueueTimeout, QueuingWrapper, State

from .support import Module, Refused, Trouble, ready, resultOf, shut, wrap

# Cancelling.


@pytest.mark.parametrize("handled", [False, True])
@pytest.mark.parametrize("queued", [False, True])
def test_cancelled_in_progress(clock: Clock, handled: bool, queued: bool) -> None:
    """
    Cancelling a call in progress cancels the module's own Deferred; the module may end
    it with a result of its own.
    """

    class Stoppable(Module):
        def write(self, what: object) -> Deferred[Any]:
            answer = super().write(what)
            return answer.addErrback(lambda _: "done") if handled else answer

    module = Stoppable()
    wrapper = QueuingWrapper(module, clock)
    if not queued:
        ready(module, wrapper)
    call = wrapper.proxy.write(1)
    result = resultOf(call)
    ready(module, wrapper)
    call.cancel()
    assert module.answers[0].called
    assert result.value == "done" if handled else result.error
    assert (wrapper.stats.started, wrapper.stats.cancelled) == (queued, 0)


def test_cancelled_when_ready(clock: Clock) -> None:
    """
    Cancelling a call of a ready module cancels the module's own Deferred.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    for call in (proxy.write(1), proxy.read(2), proxy.compute(3)):
        assert isinstance(call, Deferred)
        result = resultOf(call)
        call.cancel()
        assert isinstance(result.error, CancelledError)
    assert all(answer.called for answer in module.answers)
    clock.advance(0)


def test_cancelled_after_the_end(clock: Clock) -> None:
    """
    Cancelling a call whose callback has returned a Deferred cancels that Deferred.
    """
    module, wrapper, proxy = wrap(clock)
    further: Deferred[None] = Deferred()
    call = proxy.count(1)
    assert isinstance(call, Deferred)
    call.addCallback(lambda _: further)
    ready(module, wrapper)
    result = resultOf(call)
    call.cancel()
    assert further.called
    assert isinstance(result.error, CancelledError)


@pytest.mark.parametrize("method", ["read", "write", "count"])
def test_cancelled_while_the_module_is_called(clock: Clock, method: str) -> None:
    """
    A call that is cancelled while the module is being called ends at once, and the
    Deferred that the module returns is cancelled.
    """

    class Cancelling(Module):
        def _later(self, name: str, what: object) -> Deferred[Any]:
            call.cancel()
            return super()._later(name, what)

        def count(self, what: object) -> object:
            call.cancel()
            return super().count(what)

    module = Cancelling()
    wrapper = QueuingWrapper(module, clock, replay=["read"])
    call = getattr(wrapper.proxy, method)(1)
    result = resultOf(call)
    ready(module, wrapper)
    assert isinstance(result.error, CancelledError)
    assert all(answer.called for answer in module.answers)
    assert wrapper.stats.started == 1


def test_a_cancelled_call_lets_go_of_its_arguments(clock: Clock) -> None:
    """
    A cancelled call releases its arguments at once.
    """

    class Big:
        pass

    _, wrapper, proxy = wrap(clock)
    big = Big()
    gone = weakref.ref(big)
    call = proxy.write(big)
    resultOf(proxy.write(2))
    resultOf(call)
    del big
    call.cancel()
    assert gone() is None
    shut(wrapper)


# Limits.


def test_limit(clock: Clock) -> None:
    """
    One call too many fails at once; a call that is given up makes room for another one.
    """
    module, wrapper, proxy = wrap(clock, limit=2)
    calls = [proxy.write(number) for number in range(2)]
    resultOf(calls[0])
    full = resultOf(proxy.write(2))
    assert isinstance(full.error, QueueFull)
    assert str(full.error) == "the queue of Module is full (limit 2)"
    assert wrapper.stats.rejected == 1
    calls[0].cancel()
    proxy.write(3)
    ready(module, wrapper)
    assert module.calls == [("write", 1), ("write", 3)]


def test_limit_of_zero(clock: Clock) -> None:
    """
    A wrapper with limit=0 queues nothing, and passes calls on in READY.
    """
    module, wrapper, proxy = wrap(clock, limit=0)
    assert isinstance(resultOf(proxy.write(0)).error, QueueFull)
    ready(module, wrapper)
    proxy.write(1)
    assert module.calls == [("write", 1)]


# Timeouts.


def test_timeout(clock: Clock) -> None:
    """
    A call that is not started in time is never started, and fails with everything that
    is known about the reason.
    """
    module, wrapper, proxy = wrap(clock, timeout=3.0, name="the users")
    wrapper.initialize()
    clock.advance(1)
    result = resultOf(proxy.write(1))
    module.attempts[-1].errback(Trouble("no password"))
    clock.advance(2)
    module.attempts[-1].errback(Trouble("wrong password"))
    assert result.pending
    clock.advance(1)
    error = result.error
    assert isinstance(error, QueueTimeout)
    assert (error.waited, error.state, error.attempts) == (3.0, State.RETRYING, 2)
    assert str(error.__cause__) == "wrong password"
    assert str(error) == (
        "waited 3.0 s for the users, which is retrying after 2 attempts (Trouble)"
    )
    assert wrapper.stats.expired == 1
    module.attempts[-1].callback(None)
    assert (module.calls, wrapper.state) == ([], State.READY)


@pytest.mark.parametrize("isLazy", [True, False])
def test_nobody_has_initialized_the_module(clock: Clock, isLazy: bool) -> None:
    """
    If a call times out and initialize() was never called, the error says so.
    """
    lazy = (lambda: None) if isLazy else False
    _, _, proxy = wrap(clock, timeout=3.0, name="the users", lazy=lazy)
    result = resultOf(proxy.write(1))
    clock.advance(3)
    assert isinstance(result.error, QueueTimeout)
    assert "the users" in str(result.error)
    assert "initialize() was never called" in str(result.error)
    assert (result.error.state, result.error.attempts) == (State.NEW, 0)


def test_a_deadline_for_one_call(clock: Clock) -> None:
    """
    A queued call that is cancelled by a timeout of its own is never started.
    """
    module, wrapper, proxy = wrap(clock)
    short = resultOf(proxy.write(1).addTimeout(2, clock))
    long = resultOf(proxy.write(2).addTimeout(4, clock))
    clock.advance(3)
    assert isinstance(short.error, DeferredTimeoutError)
    assert (wrapper.pending, wrapper.stats.cancelled) == (1, 1)
    ready(module, wrapper)
    assert module.calls == [("write", 2)]
    clock.advance(1)
    assert isinstance(long.error, DeferredTimeoutError)
    assert module.answers[0].called


def test_no_timeout(clock: Clock) -> None:
    """
    With timeout=None a call waits without a time limit, and without a timer.
    """
    module, wrapper, proxy = wrap(clock, timeout=None)
    result = resultOf(proxy.write(1))
    assert clock.getDelayedCalls() == []
    clock.advance(10**9)
    ready(module, wrapper)
    module.answers[0].callback("done")
    assert result.value == "done"


def test_one_timer_for_all(clock: Clock) -> None:
    """
    A thousand queued calls need one timer, and each of them expires at its own
    deadline.
    """
    _, wrapper, proxy = wrap(clock, timeout=5.0)
    for number in range(1000):
        resultOf(proxy.write(number))
        clock.advance(0.001)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(3.9)
    assert wrapper.pending == 1000
    clock.advance(0.6)
    assert 490 < wrapper.pending < 510
    clock.advance(0.6)
    assert wrapper.pending == 0


def test_times_that_cannot_be_told_apart(clock: Clock) -> None:
    """
    A call does not miss its deadline because of rounding errors.
    """
    _, _, proxy = wrap(clock, timeout=0.1)
    clock.advance(1e9 + 0.3)
    result = resultOf(proxy.write(1))
    clock.advance(0.1)
    assert isinstance(result.error, QueueTimeout)


def test_errors_say_when_to_try_again(clock: Clock) -> None:
    """
    Errors have the seconds until the next attempt, if one is scheduled.
    """
    module, wrapper, proxy = wrap(clock, limit=0, retryPolicy=lambda attempts: 8.0)
    errors: list[Any] = [resultOf(proxy.write(1)).error]
    resultOf(wrapper.initialize())
    errors.append(resultOf(proxy.write(1)).error)
    module.attempts[-1].errback(Trouble())
    clock.advance(3)
    errors.append(resultOf(proxy.write(1)).error)
    assert [error.retryAfter for error in errors] == [None, None, 5.0]
    shut(wrapper)


def test_when_a_predictable_module_will_be_ready(clock: Clock) -> None:
    """
    If a module can predict its initialisation, errors have its prediction.
    """
    wrapper = QueuingWrapper(AsyncModule(clock, 10), clock, limit=0)
    assert wrapper.retryAfter() is None
    resultOf(wrapper.initialize())
    clock.advance(4)
    assert wrapper.retryAfter() == 6
    clock.advance(6)
    assert wrapper.retryAfter() is None


# Options.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"limit": -1}, ValueError, "limit must be at least 0"),
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1"),
        ({"timeout": -1}, ValueError, "timeout must be seconds"),
        ({"timeout": float("nan")}, ValueError, "timeout must be seconds"),
        ({"attemptTimeout": float("inf")}, ValueError, "attemptTimeout must be sec"),
        ({"closeTimeout": -0.1}, ValueError, "closeTimeout must be seconds"),
        ({"close": "clsoe"}, TypeError, r"Module has no clsoe\(\)"),
        ({"ping": "version"}, TypeError, "ping must be callable, not 1"),
        ({"pingInterval": 0}, ValueError, "pingInterval must be seconds > 0"),
        ({"pingInterval": "9"}, TypeError, "pingInterval must be seconds"),
        ({"replay": "read"}, TypeError, "replay must be a collection of names"),
        ({"replay": ["raed"]}, ValueError, "Module has no method 'raed'"),
        ({"fatal": [Refused("an instance")]}, TypeError, "fatal must be types"),
    ],
)
def test_options_that_make_no_sense(
    clock: Clock, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """
    An invalid option is refused.
    """
    with pytest.raises(error, match=message):
        wrap(clock, **options)


def test_a_module_that_cannot_be_initialized(clock: Clock) -> None:
    """
    An object without initialize() is refused, and the error names it.
    """
    with pytest.raises(TypeError, match="the users has no initialize"):
        QueuingWrapper(object(), clock, name="the users")
