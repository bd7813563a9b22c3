"""
Mistakes of widely used systems like this one. Each test is named after the mistake that
it prevents, and its docstring names the systems that make it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tsrv import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
    jitteredBackoff,
)

from .support import (
    Module,
    Refused,
    Trouble,
    inState,
    lose,
    ready,
    recover,
    resultOf,
    shut,
    wrap,
)


def test_no_call_overtakes_the_queue_during_the_drain(clock: Clock) -> None:
    """
    Mongoose, and the source's own code, clear a flag first and drain on the next
    tick.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    proxy.write(1)
    proxy.write(2)
    ready(module, wrapper)
    assert wrapper.state is State.DRAINING
    proxy.write(3)
    for number in range(2):
        module.answers[number].callback(None)
        clock.advance(0)
    assert [what for _, what in module.calls] == [1, 2, 3]


def test_no_call_runs_after_its_caller_gave_up(clock: Clock) -> None:
    """
    In ioredis the write reaches the server even after C{commandTimeout}.
    """
    module, wrapper, proxy = wrap(clock, timeout=1.0)
    expired = resultOf(proxy.write("expired"))
    clock.advance(1)
    cancelled = proxy.write("cancelled")
    result = resultOf(cancelled)
    cancelled.cancel()
    ready(module, wrapper)
    assert isinstance(expired.error, QueueTimeout)
    assert isinstance(result.error, CancelledError)
    assert module.calls == []


def test_the_true_cause_is_not_lost(clock: Clock) -> None:
    """
    Mongoose reports only "timed out", minutes after the password was refused.
    """
    module, _, proxy = inState(clock, State.INITIALIZING, timeout=5.0)
    module.attempts[-1].errback(Trouble("connection refused"))
    timedOut = resultOf(proxy.write(1))
    clock.advance(5)
    assert str(timedOut.error.__cause__) == "connection refused"
    fatal = resultOf(proxy.write(2))
    module.attempts[-1].errback(Refused("password refused"))
    assert isinstance(fatal.error, InitializationFailed)
    assert str(fatal.error.__cause__) == "password refused"


def test_no_call_is_left_pending_after_close(clock: Clock) -> None:
    """
    aio-pika and txredisapi leave calls pending; Mongoose does for ten seconds.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    running, queued = resultOf(proxy.write(1)), resultOf(proxy.write(2))
    ready(module, wrapper)
    shut(wrapper)
    assert isinstance(queued.error, Closed)
    assert isinstance(running.error, OutcomeUnknown)


def test_no_queue_is_unbounded(clock: Clock) -> None:
    """
    ioredis, aio-pika, Mongoose, and the waiters of ClientService have no bound.
    """
    _, wrapper, proxy = wrap(clock)
    calls = [resultOf(proxy.write(number)) for number in range(10_001)]
    assert isinstance(calls[-1].error, QueueFull)
    waiters = [resultOf(wrapper.whenInitialized()) for _ in range(10_001)]
    assert isinstance(waiters[-1].error, QueueFull)
    assert str(waiters[-1].error) == "10000 callers wait for Module to become ready"
    assert (wrapper.pending, wrapper.stats.rejected) == (10_000, 1)
    wrapper.close()
    clock.pump([0] * 1000)
    assert all(not each.pending for each in [*calls, *waiters])


def test_no_cancelled_waiter_takes_up_a_place(clock: Clock) -> None:
    """
    ClientService and txredisapi keep cancelled waiters in their lists.
    """
    _, wrapper, proxy = wrap(clock, limit=10_000)
    for _ in range(10_001):
        for waiter in (proxy.write(1), wrapper.whenInitialized()):
            result = resultOf(waiter)
            assert result.pending
            waiter.cancel()
    assert wrapper.pending == 0


def test_callbacks_may_call_back(clock: Clock) -> None:
    """
    ClientService does not allow it, since Automat does not.
    """
    module, wrapper, proxy = wrap(clock)

    def useEverything(result: object) -> object:
        resultOf(proxy.write("again"))
        resultOf(wrapper.initialize())
        resultOf(wrapper.whenInitialized())
        assert wrapper.stats.started
        return wrapper.close()

    call = proxy.write(1)
    call.addCallback(useEverything)
    result = resultOf(call)
    ready(module, wrapper)
    module.answers[0].callback(None)
    module.closings[0].callback(None)
    assert result.value is None


def test_the_queue_is_not_flushed_at_once(clock: Clock) -> None:
    """
    Mongoose, ioredis and txredisapi flush at once: the reactor stalls, and the backend
    breaks down.
    """
    module, wrapper, proxy = wrap(clock, concurrency=10)
    for number in range(100):
        resultOf(proxy.write(number))
    ready(module, wrapper)
    clock.pump([0] * 40)
    assert len(module.calls) == 10
    shut(wrapper)


def test_no_call_in_progress_is_silently_sent_again(clock: Clock) -> None:
    """
    ioredis does so by default. In tsrv, a call that the lost module does not end has an
    unknown outcome.
    """
    module, wrapper, proxy = wrap(clock)
    result = resultOf(proxy.write("100 to Alice"))
    ready(module, wrapper)
    lose(module)
    assert result.pending
    clock.advance(0)
    assert isinstance(result.error, OutcomeUnknown)
    assert result.error.method == "write"
    recover(clock, module)
    module.answers[0].callback("too late")
    assert module.calls == [("write", "100 to Alice")]
    assert wrapper.stats.started == 1


@pytest.mark.parametrize("error", [None, Refused()])
def test_the_late_result_of_one_attempt_is_not_that_of_the_next(
    clock: Clock, error: Exception | None
) -> None:
    """
    In ioredis the late success of attempt 1 makes attempt 2 ready.
    """
    late: Deferred[None] = Deferred()

    class Stubborn(Module):
        def initialize(self) -> Deferred[None]:
            attempt = super().initialize()
            if len(self.attempts) == 1:
                attempt.addErrback(lambda _: late)
            return attempt

    module = Stubborn()
    wrapper = QueuingWrapper(
        module, clock, attemptTimeout=5.0, retryPolicy=lambda _: 1.0, fatal=Refused
    )
    result = resultOf(wrapper.initialize())
    clock.pump([5, 1])
    if error is None:
        late.callback(None)
    else:
        late.errback(error)
    assert (wrapper.state, result.pending) == (State.INITIALIZING, True)
    assert module.watches == []
    module.attempts[1].callback(None)
    assert (wrapper.state, result.value) == (State.READY, None)


def test_not_all_clients_retry_together() -> None:
    """
    ClientService adds a jitter of one second to a delay of a minute, which spreads
    nothing.
    """
    chances = iter(number / 100 for number in range(100))
    policy = jitteredBackoff(random=lambda: next(chances))
    delays = [policy(20) for _ in range(100)]
    assert len(set(delays)) == 100
    assert (max(delays), min(delays)) == (30.0, pytest.approx(15.15))


def test_the_first_caller_does_not_cancel_for_all(clock: Clock) -> None:
    """
    Any system that gives the same Deferred to several callers makes this mistake.
    """
    module, wrapper, _ = wrap(clock)
    asked = [wrapper.initialize() for _ in range(3)]
    results = [resultOf(each) for each in asked]
    asked[0].cancel()
    asked[1].addCallback(lambda _: asked[2].cancel())
    assert isinstance(results[0].error, CancelledError)
    assert (len(module.attempts), module.attempts[0].called) == (1, False)
    module.attempts[0].callback(None)
    assert results[1].value is None
    assert isinstance(results[2].error, CancelledError)


def test_the_context_is_not_lost_between_queuing_and_running(clock: Clock) -> None:
    """
    Any queue that ignores contextvars makes this mistake.
    """
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[tuple[str, str]] = []

    class Traced(Module):
        def initialize(self) -> Deferred[None]:
            request.set("initialize")
            return super().initialize()

        def _later(self, name: str, what: object) -> Deferred[Any]:
            seen.append((name, request.get()))
            return super()._later(name, what)

    module = Traced()
    wrapper = QueuingWrapper(
        module, clock, replay=["read"], retryPolicy=lambda attempts: 1.0
    )
    for name in ("a", "b"):
        token = request.set(name)
        wrapper.proxy.write(1)
        resultOf(wrapper.proxy.compute(2))
        wrapper.proxy.read(3)
        request.reset(token)
    ready(module, wrapper)
    methods = ("write", "compute", "read")
    assert seen == [(each, name) for name in ("a", "b") for each in methods]
    for answer in module.answers[:2] + module.answers[3:5]:
        answer.callback(None)
    lose(module)
    recover(clock, module)
    assert seen[6:] == [("read", "a"), ("read", "b")]
    request.set("c")
    resultOf(wrapper.proxy.compute(4))
    wrapper.proxy.read(5)
    assert seen[8:] == [("compute", "c"), ("read", "c")]
