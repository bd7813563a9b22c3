"""
Cancellers that raise, as C{self.transport.abortConnection()} does before there is a
transport: the error is logged, and the work continues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv import Closed, InitializationFailed, OutcomeUnknown, QueuingWrapper, State

from .support import Module, Trouble, inState, lose, ready, recover, resultOf, wrap


def abort(deferred: Deferred[Any]) -> None:
    """
    Raise in place of cancelling.
    """
    raise Trouble("no transport")


class Unstoppable(Module):
    """
    A module whose Deferreds cannot be cancelled.
    """

    def initialize(self) -> Deferred[None]:
        return self._kept(self.attempts)

    def whenLost(self) -> Deferred[None]:
        return self._kept(self.watches)

    def close(self) -> Deferred[None]:
        return self._kept(self.closings)

    def _later(self, name: str, what: object) -> Deferred[Any]:
        self.calls.append((name, what))
        return self._kept(self.answers)

    def _kept(self, where: list[Deferred[Any]]) -> Deferred[Any]:
        where.append(Deferred(abort))
        return where[-1]


def unstoppable(clock: Clock, **options: Any) -> tuple[Unstoppable, Any, Any]:
    """
    @return: Such a module, its wrapper, and its proxy.
    """
    module = Unstoppable()
    wrapper = QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0, **options)
    return module, wrapper, wrapper.proxy


def logged(events: list[LogEvent], times: int = 1) -> bool:
    """
    @return: Whether only a canceller's error was logged, so many times.
    """
    types = [event["log_failure"].type for event in events]
    events.clear()
    return types == [Trouble] * times


@pytest.mark.parametrize("late", ["silent", "succeeds", "fails"])
@pytest.mark.parametrize("how", ["close", "fail", "attemptTimeout"])
def test_an_attempt_is_given_up(
    clock: Clock, loggedFailures: list[LogEvent], how: str, late: str
) -> None:
    """
    An attempt can be given up although its canceller raises, whatever its result is
    later.
    """
    module, wrapper, proxy = unstoppable(clock, attemptTimeout=5.0)
    call, asked = resultOf(proxy.write(1)), resultOf(wrapper.initialize())
    if how == "close":
        closed = resultOf(wrapper.close())
        module.closings[0].callback(None)
        assert (closed.value, wrapper.state) == (None, State.CLOSED)
        assert isinstance(call.error, Closed)
        assert isinstance(asked.error, Closed)
    elif how == "fail":
        wrapper.fail(Trouble("given up"))
        assert wrapper.state is State.FAILED
        assert isinstance(call.error, InitializationFailed)
        assert isinstance(asked.error, InitializationFailed)
    else:
        clock.advance(5)
        assert (wrapper.state, wrapper.retryAfter()) == (State.RETRYING, 1.0)
        assert isinstance(wrapper.lastError, TimeoutError)
    assert logged(loggedFailures)
    state = wrapper.state
    if late == "succeeds":
        module.attempts[0].callback(None)
    elif late == "fails":
        module.attempts[0].errback(Trouble("too late"))
    assert wrapper.state is state
    if how == "attemptTimeout":
        recover(clock, module)
        assert (wrapper.state, asked.value) == (State.READY, None)
        module.answers[0].callback("done")
        assert call.value == "done"


@pytest.mark.parametrize("how", ["close", "fail"])
def test_an_attempt_is_given_up_while_it_begins(
    clock: Clock, loggedFailures: list[LogEvent], how: str
) -> None:
    """
    The module may close or fail the wrapper in initialize(), and return a Deferred that
    cannot be cancelled.
    """

    def initialize() -> Deferred[None]:
        if how == "close":
            wrapper.close()
        else:
            wrapper.fail(Trouble("given up"))
        return Deferred(abort)

    _, wrapper, _ = wrap(clock, initialize=initialize, close=lambda: None)
    asked = resultOf(wrapper.initialize())
    assert wrapper.state is (State.CLOSED if how == "close" else State.FAILED)
    assert not asked.pending
    assert logged(loggedFailures)


def test_the_closing_is_given_up(clock: Clock, loggedFailures: list[LogEvent]) -> None:
    """
    C{close()} fails with C{TimeoutError} after C{closeTimeout}, and calls in progress
    end.
    """
    module, wrapper, proxy = unstoppable(clock, closeTimeout=3.0)
    call = resultOf(proxy.write(1))
    ready(module, wrapper)
    closed = resultOf(wrapper.close())
    clock.advance(3)
    assert isinstance(closed.error, TimeoutError)
    assert isinstance(call.error, OutcomeUnknown)
    assert wrapper.state is State.CLOSED
    assert logged(loggedFailures)
    module.closings[0].errback(Trouble("too late"))


@pytest.mark.parametrize("method", ["write", "read"])
@pytest.mark.parametrize("queued", [True, False])
def test_a_call_in_progress_is_given_up(
    clock: Clock, loggedFailures: list[LogEvent], method: str, queued: bool
) -> None:
    """
    A cancelled call ends with C{CancelledError}; its caller sees no other error, and a
    late result is ignored.
    """
    module, wrapper, proxy = unstoppable(clock, replay=["read"])
    if not queued:
        ready(module, wrapper)
    call = getattr(proxy, method)(1)
    result = resultOf(call)
    ready(module, wrapper)
    call.cancel()
    assert isinstance(result.error, CancelledError)
    assert logged(loggedFailures)
    module.answers[0].errback(Trouble("too late"))
    lose(module)
    recover(clock, module)
    assert module.calls == [(method, 1)]


@pytest.mark.parametrize("method", ["write", "read"])
@pytest.mark.parametrize("then", ["cancelled", "lost", "closed"])
def test_a_call_is_given_up_while_the_module_is_called(
    clock: Clock, loggedFailures: list[LogEvent], method: str, then: str
) -> None:
    """
    A call that ends, or is queued again, while its method runs leaves behind a Deferred
    that cannot be cancelled; the drain continues.
    """

    class Acting(Unstoppable):
        act: Callable[[], object] | None = None

        def _later(self, name: str, what: object) -> Deferred[Any]:
            act, self.act = self.act, None
            if act is not None:
                act()
            return super()._later(name, what)

    module = Acting()
    wrapper = QueuingWrapper(module, clock, replay=["read"], retryPolicy=lambda _: 1.0)
    call = getattr(wrapper.proxy, method)(1)
    result, other = resultOf(call), resultOf(wrapper.proxy.count(2))
    if then == "cancelled":
        module.act = call.cancel
    elif then == "lost":
        module.act = lambda: lose(module)
    else:
        module.act = wrapper.close
    ready(module, wrapper)
    if then == "cancelled":
        assert isinstance(result.error, CancelledError)
        assert other.value == 2
        assert logged(loggedFailures)
    elif then == "lost":
        recover(clock, module)
        assert other.value == 2
        module.answers[-1].callback("done")
        if method == "read":
            assert result.value == "done"
        else:
            assert isinstance(result.error, OutcomeUnknown)
    else:
        module.closings[0].callback(None)
        assert isinstance(result.error, OutcomeUnknown)
        assert isinstance(other.error, Closed)
    loggedFailures.clear()


def test_a_watch_that_cannot_be_cancelled(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    A Deferred of whenLost() that cannot be cancelled does not stop the closing.
    """
    module, wrapper, _ = unstoppable(clock)
    ready(module, wrapper)
    closed = resultOf(wrapper.close())
    module.closings[0].callback(None)
    assert (closed.value, wrapper.state) == (None, State.CLOSED)
    loggedFailures.clear()


@pytest.mark.parametrize("how", ["resume", "lose", "close"])
def test_the_waiting_for_idleness_is_given_up(
    clock: Clock, loggedFailures: list[LogEvent], how: str
) -> None:
    """
    A Deferred of whenIdle() that cannot be cancelled stops neither a resume nor a loss
    nor a close.
    """
    module, wrapper, proxy = unstoppable(clock, whenIdle=lambda: Deferred(abort))
    ready(module, wrapper)
    paused = resultOf(wrapper.pause())
    if how == "resume":
        wrapper.resume()
        assert isinstance(paused.error, CancelledError)
        resultOf(proxy.write(1))
        assert (wrapper.state, module.calls) == (State.READY, [("write", 1)])
    elif how == "lose":
        lose(module)
        assert paused.value is None
        recover(clock, module)
        assert wrapper.state is State.PAUSED
    else:
        closed = resultOf(wrapper.close())
        module.closings[0].callback(None)
        assert isinstance(paused.error, Closed)
        assert closed.value is None
    loggedFailures.clear()


def test_a_callback_gives_up_another_call(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    A callback that cancels another call does not get the error of the other canceller.
    """
    module, wrapper, proxy = unstoppable(clock)
    first, second = proxy.write(1), proxy.write(2)
    first.addCallback(lambda _: second.cancel())
    results = [resultOf(first), resultOf(second), resultOf(proxy.write(3))]
    ready(module, wrapper)
    module.answers[0].callback("done")
    assert results[0].value is None
    assert isinstance(results[1].error, CancelledError)
    module.answers[2].callback("done")
    assert results[2].value == "done"
    assert logged(loggedFailures)


def test_a_coroutine_that_cannot_be_cancelled(clock: Clock) -> None:
    """
    A coroutine is given up although it awaits a Deferred that cannot be cancelled.
    """

    async def initialize() -> None:
        await Deferred(abort)

    _, wrapper, _ = inState(clock, State.NEW, initialize=initialize, close=bool)
    asked = resultOf(wrapper.initialize())
    assert resultOf(wrapper.close()).value is None
    assert isinstance(asked.error, Closed)
    assert wrapper.state is State.CLOSED
