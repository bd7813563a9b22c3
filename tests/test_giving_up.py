"""
Callers that give up, and queues that do it for them: cancelling, time limits,
and the limit of the queue.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tsrv import (
    AsyncModule,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
)

from .support import Module, Refused, Trouble, ready, resultOf, wrap


def test_cancelled_while_waiting(clock: Clock) -> None:
    """
    It never runs, and those around it do.
    """
    module, wrapper, proxy = wrap(clock)
    calls = [proxy.write(number) for number in range(3)]
    results = [resultOf(call) for call in calls]
    calls[1].cancel()
    assert isinstance(results[1].error, CancelledError)
    assert (wrapper.pending, wrapper.stats.cancelled) == (2, 1)
    ready(module, wrapper)
    assert module.calls == [("write", 0), ("write", 2)]


def test_cancelled_twice(clock: Clock) -> None:
    """
    The second time changes nothing.
    """
    _, wrapper, proxy = wrap(clock)
    call = proxy.write(1)
    result = resultOf(call)
    call.cancel()
    call.cancel()
    assert isinstance(result.error, CancelledError)
    assert wrapper.stats.cancelled == 1


def test_cancelled_in_progress(clock: Clock) -> None:
    """
    A command that was drained reaches the module's own Deferred: the module
    can stop its work, and its answer is what the caller sees.
    """
    cancelled: list[Deferred[Any]] = []

    class Stoppable(Module):
        def write(self, what: object) -> Deferred[Any]:
            return Deferred(cancelled.append)

    module = Stoppable()
    wrapper = QueuingWrapper(module, clock)
    call = wrapper.proxy.write(1)
    result = resultOf(call)
    ready(module, wrapper)
    call.cancel()
    assert len(cancelled) == 1
    assert isinstance(result.error, CancelledError)
    assert wrapper.stats.started == 1
    assert wrapper.stats.cancelled == 0


def test_cancelled_when_ready(clock: Clock) -> None:
    """
    The Deferred of a direct call is the module's own, and that of a call that
    may be replayed reaches it.
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


def test_a_module_that_ignores_being_cancelled(clock: Clock) -> None:
    """
    What the module answers all the same is the answer.
    """
    module, wrapper, proxy = wrap(clock)
    call = proxy.write(1)
    result = resultOf(call)
    ready(module, wrapper)
    module.answers[0].addErrback(lambda _: "done all the same")
    call.cancel()
    assert result.fired[0].check(CancelledError)


def test_cancelled_after_the_end(clock: Clock) -> None:
    """
    A Deferred that waits for another one in its own callbacks passes the
    cancelling on, as any Deferred does.
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


@pytest.mark.parametrize("method", ["read", "write"])
def test_cancelled_by_the_module_itself(clock: Clock, method: str) -> None:
    """
    A caller that gives up while the module is being called gets no answer from
    it, and what the module has begun is cancelled.
    """

    class Cancelling(Module):
        def _later(self, name: str, what: object) -> Deferred[Any]:
            call.cancel()
            return super()._later(name, what)

    module = Cancelling()
    wrapper = QueuingWrapper(module, clock, replay=["read"])
    call = getattr(wrapper.proxy, method)(1)
    result = resultOf(call)
    ready(module, wrapper)
    assert isinstance(result.error, CancelledError)
    assert module.answers[0].called
    assert wrapper.stats.started == 1


def test_cancelled_by_the_module_that_answers_at_once(clock: Clock) -> None:
    """
    The same of a module that does not answer with a Deferred.
    """

    class Cancelling(Module):
        def count(self, what: object) -> object:
            call.cancel()
            return super().count(what)

    module = Cancelling()
    wrapper = QueuingWrapper(module, clock)
    call: Any = wrapper.proxy.count(1)
    result = resultOf(call)
    ready(module, wrapper)
    assert isinstance(result.error, CancelledError)


def test_cancelling_leaves_nothing_behind(clock: Clock) -> None:
    """
    What a cancelled command held is let go at once, and not when the queue is
    drained some day.
    """

    class Big:
        pass

    _, _wrapper, proxy = wrap(clock)
    proxy.write(0).addErrback(lambda _: None)
    big = Big()
    gone = weakref.ref(big)
    call = proxy.write(big)
    call.addErrback(lambda _: None)
    proxy.write(2).addErrback(lambda _: None)
    del big
    call.cancel()
    assert gone() is None
    clock.advance(30)


def test_who_keeps_a_command_keeps_no_other(clock: Clock) -> None:
    """
    A command that has ended holds on to no neighbour.
    """
    module, wrapper, proxy = wrap(clock)
    first, second = proxy.write(1), proxy.write(2)
    gone = weakref.ref(second)
    ready(module, wrapper)
    for answer in module.answers:
        answer.callback(None)
    del second
    gc.collect()
    assert gone() is None
    assert first.called


def test_limit(clock: Clock) -> None:
    """
    One more than may wait fails at once, and says so; room made by one that
    gives up can be used.
    """
    module, wrapper, proxy = wrap(clock, limit=2)
    calls = [proxy.write(number) for number in range(2)]
    resultOf(calls[0])
    full = resultOf(proxy.write(2))
    assert isinstance(full.error, QueueFull)
    assert str(full.error) == "2 calls are waiting for Module already"
    assert wrapper.stats.rejected == 1
    calls[0].cancel()
    proxy.write(3)
    ready(module, wrapper)
    assert module.calls == [("write", 1), ("write", 3)]


def test_limit_of_nothing(clock: Clock) -> None:
    """
    A wrapper that holds no calls at all can still be initialised.
    """
    module, wrapper, proxy = wrap(clock, limit=0)
    assert isinstance(resultOf(proxy.write(0)).error, QueueFull)
    ready(module, wrapper)
    proxy.write(1)
    assert module.calls == [("write", 1)]


def test_timeout(clock: Clock) -> None:
    """
    A command that is not started in time ends, with all that can be said of
    why, and never runs.
    """
    module, wrapper, proxy = wrap(clock, timeout=3.0)
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
    assert isinstance(error.__cause__, Trouble)
    assert str(error.__cause__) == "wrong password"
    assert str(error) == ("waited 3.0 s for Module, which is retrying after 2 attempts")
    assert wrapper.stats.expired == 1
    module.attempts[-1].callback(None)
    assert (module.calls, wrapper.state) == ([], State.READY)


def test_timeout_of_one_that_nobody_initializes(clock: Clock) -> None:
    """
    To forget to initialise the wrapper is an error that can be read, not a
    program that hangs.
    """
    _, _, proxy = wrap(clock, timeout=3.0)
    result = resultOf(proxy.write(1))
    clock.advance(3)
    assert str(result.error) == "waited 3.0 s for Module, which is new after 0 attempts"
    assert result.error.__cause__ is None


def test_no_timeout(clock: Clock) -> None:
    """
    Who wants to wait for ever may, and there is no timer for it.
    """
    module, wrapper, proxy = wrap(clock, timeout=None)
    result = resultOf(proxy.write(1))
    assert clock.getDelayedCalls() == []
    clock.advance(10**9)
    ready(module, wrapper)
    module.answers[0].callback("done")
    assert result.value == "done"


def test_one_timer(clock: Clock) -> None:
    """
    A thousand commands that wait need one timer.
    """
    _, wrapper, proxy = wrap(clock, timeout=5.0)
    results = []
    for number in range(1000):
        results.append(resultOf(proxy.write(number)))
        clock.advance(0.001)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(3.9)
    assert wrapper.pending == 1000
    clock.advance(0.6)
    assert 490 < wrapper.pending < 510
    clock.advance(0.6)
    assert wrapper.pending == 0
    waited = [result.error.waited for result in results]  # type: ignore[attr-defined]
    assert max(waited) < 5.61


def test_each_command_has_its_own_time(clock: Clock) -> None:
    """
    The timer follows the first that is still waiting.
    """
    _, _, proxy = wrap(clock, timeout=5.0)
    first, second, third = (resultOf(proxy.write(1)) for _ in range(3))
    early = proxy.write(4)
    resultOf(early)
    clock.advance(2)
    late = resultOf(proxy.write(5))
    early.cancel()
    clock.advance(3)
    assert not first.pending
    assert not second.pending
    assert not third.pending
    clock.advance(1.999)
    assert late.pending
    clock.advance(0.001)
    assert not late.pending


def test_the_timer_of_one_that_gave_up(clock: Clock) -> None:
    """
    It was set for the first one; when that one is gone nobody expires early.
    """
    _, _, proxy = wrap(clock, timeout=5.0)
    first = proxy.write(1)
    resultOf(first)
    clock.advance(2)
    second = resultOf(proxy.write(2))
    first.cancel()
    clock.advance(3)
    assert second.pending
    clock.advance(2)
    assert not second.pending


def test_no_timer_when_nothing_waits(clock: Clock) -> None:
    """
    The last one that gives up takes the timer with it, and the next one that
    waits has all its time.
    """
    _, _, proxy = wrap(clock, timeout=5.0)
    call = proxy.write(1)
    resultOf(call)
    clock.advance(4)
    call.cancel()
    assert clock.getDelayedCalls() == []
    result = resultOf(proxy.write(2))
    clock.advance(4.5)
    assert result.pending
    clock.advance(0.5)
    assert not result.pending


def test_timeout_goes_on_while_draining(clock: Clock) -> None:
    """
    A command that waits for its turn behind slow ones has no more patience
    than one that waits for the module.
    """
    module, wrapper, proxy = wrap(clock, timeout=3.0, concurrency=1)
    proxy.write(1)
    result = resultOf(proxy.write(2))
    ready(module, wrapper)
    clock.advance(3)
    assert isinstance(result.error, QueueTimeout)
    assert result.error.state is State.DRAINING
    module.answers[0].callback(None)
    clock.advance(0)
    assert (module.calls, wrapper.state) == ([("write", 1)], State.READY)


def test_the_end_of_one_ends_another(clock: Clock) -> None:
    """
    The errback of a command that expires may give up another that would have
    expired with it: that one ends once.
    """
    _, wrapper, proxy = wrap(clock, timeout=3.0)
    first, second = proxy.write(1), proxy.write(2)
    result = resultOf(second)
    first.addErrback(lambda _: second.cancel())
    clock.advance(3)
    assert isinstance(result.error, CancelledError)
    assert (wrapper.stats.expired, wrapper.stats.cancelled) == (1, 1)


def test_times_that_cannot_be_told_apart(clock: Clock) -> None:
    """
    Numbers that are not exact must not make the timer fire for ever without
    anything being late.
    """
    _, _, proxy = wrap(clock, timeout=0.1)
    clock.advance(1e9 + 0.3)
    result = resultOf(proxy.write(1))
    clock.advance(0.1)
    assert isinstance(result.error, QueueTimeout)


def test_when_to_come_back(clock: Clock) -> None:
    """
    An error says when it is worth trying again, where that is known.
    """
    module, wrapper, proxy = wrap(clock, limit=0, retryPolicy=lambda attempts: 8.0)
    errors = [resultOf(proxy.write(1)).error]
    resultOf(wrapper.initialize())
    errors.append(resultOf(proxy.write(1)).error)
    module.attempts[-1].errback(Trouble())
    clock.advance(3)
    errors.append(resultOf(proxy.write(1)).error)
    assert [error.retryAfter for error in errors] == [None, None, 5.0]  # type: ignore[attr-defined]
    wrapper.close()
    module.closings[-1].callback(None)


def test_when_a_predictable_module_will_be_there(clock: Clock) -> None:
    """
    A module that knows how long it will take is asked.
    """
    wrapper = QueuingWrapper(AsyncModule(clock, 10), clock, limit=0)
    assert wrapper.retryAfter() is None
    resultOf(wrapper.initialize())
    clock.advance(4)
    assert wrapper.retryAfter() == 6
    clock.advance(6)
    assert wrapper.retryAfter() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": -1}, "limit must be at least 0"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout": -1}, "timeout must be seconds"),
        ({"timeout": float("nan")}, "timeout must be seconds"),
        ({"attemptTimeout": float("inf")}, "attemptTimeout must be seconds"),
        ({"closeTimeout": -0.1}, "closeTimeout must be seconds"),
    ],
)
def test_numbers_that_make_no_sense(
    clock: Clock, options: dict[str, float], message: str
) -> None:
    """
    They are refused where they are written, and not when they matter.
    """
    with pytest.raises(ValueError, match=message):
        wrap(clock, **options)


def test_options_that_make_no_sense(clock: Clock) -> None:
    """
    So are a name in place of names, and an object that cannot be initialised.
    """
    with pytest.raises(TypeError, match="replay must be a collection of names"):
        wrap(clock, replay="read")
    with pytest.raises(TypeError, match="object has no initialize"):
        QueuingWrapper(object(), clock)
    with pytest.raises(TypeError, match="fatal"):
        wrap(clock, fatal=[Refused("an instance")])
