"""
Modules that promise to answer all their calls: those that are safe to run twice are
passed directly, and made again if they fail because of a loss.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from tsrv import Closed, QueueTimeout, QueuingWrapper, State
from tsrv.asyncmodule import ISettlesCalls

from .support import Module, Trouble, lose, ready, recover, resultOf


@implementer(ISettlesCalls)
class Settling(Module):
    """
    A module that answers all its calls.
    """

    def now(self, what: object) -> object:
        """
        Answer at once.
        """
        if isinstance(what, Exception):
            raise what
        return what

    async def slowly(self, what: object) -> object:
        """
        Answer with a coroutine.
        """
        return await self.read(what)


class Wrapped:
    """
    Such a module, with its wrapper, and ready.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.module = Settling()
        self.wrapper = QueuingWrapper(
            self.module,
            clock,
            replay=["read", "now", "slowly"],
            retryPolicy=lambda attempts: 1.0,
        )
        self.proxy: Any = self.wrapper.proxy
        ready(self.module, self.wrapper)

    def lose(self) -> None:
        lose(self.module)
        assert self.wrapper.state is State.LOST

    def recover(self) -> None:
        recover(self.clock, self.module)
        assert self.wrapper.state is State.READY

    def answer(self, *numbers: int) -> None:
        for number in numbers:
            self.module.answers[number].callback("done")

    def fail(self, *numbers: int) -> None:
        for number in numbers:
            self.module.answers[number].errback(Trouble("gone"))

    @property
    def numbers(self) -> list[object]:
        return [what for _, what in self.module.calls]


@pytest.fixture
def wrapped(clock: Clock) -> Wrapped:
    """
    A module that is ready.
    """
    return Wrapped(clock)


def test_a_successful_call_is_the_modules_own(wrapped: Wrapped) -> None:
    """
    A call returns the module's own Deferred; a value and a coroutine become
    Deferreds.
    """
    call = wrapped.proxy.read(1)
    assert call is wrapped.module.answers[0]
    slowly, now = wrapped.proxy.slowly(2), wrapped.proxy.now(3)
    wrapped.answer(0, 1)
    results = [resultOf(each).value for each in (call, slowly, now)]
    assert results == ["done", "done", 3]


def test_a_failure_without_a_loss_stands(wrapped: Wrapped, clock: Clock) -> None:
    """
    A call fails with its own error when no loss is reported within a turn.
    """
    call = resultOf(wrapped.proxy.read(1))
    raised = resultOf(wrapped.proxy.now(Trouble("at once")))
    wrapped.fail(0)
    assert call.pending
    clock.advance(0)
    assert [str(each.error) for each in (call, raised)] == ["gone", "at once"]
    assert wrapped.numbers == [1]


@pytest.mark.parametrize("first", ["failures", "loss"])
def test_calls_that_fail_around_a_loss_are_made_again(
    wrapped: Wrapped, first: str
) -> None:
    """
    Calls that fail before or after the loss are made again, in order, before
    later calls.
    """
    calls = [resultOf(wrapped.proxy.read(number)) for number in range(3)]
    if first == "failures":
        wrapped.fail(0, 1, 2)
    wrapped.lose()
    calls.append(resultOf(wrapped.proxy.read(3)))
    if first == "loss":
        wrapped.fail(0, 1, 2)
    assert wrapped.wrapper.pending == 4
    wrapped.recover()
    assert wrapped.numbers == [0, 1, 2, 0, 1, 2, 3]
    wrapped.answer(3, 4, 5, 6)
    assert [each.value for each in calls] == ["done"] * 4


def test_a_call_that_fails_while_others_expire(wrapped: Wrapped, clock: Clock) -> None:
    """
    A call that fails while others of the same loss expire is queued again, and has
    all its time.
    """
    first, second, third = (wrapped.proxy.read(number) for number in range(3))
    result = resultOf(third)
    wrapped.lose()
    wrapped.fail(0, 1)
    first.addErrback(lambda _: wrapped.fail(2))
    clock.advance(1)
    clock.advance(29)
    assert isinstance(resultOf(second).error, QueueTimeout)
    assert (result.pending, wrapped.wrapper.pending) == (True, 1)
    wrapped.module.attempts[-1].callback(None)
    wrapped.answer(3)
    assert result.value == "done"


def test_a_call_that_fails_after_the_recovery_is_made_again_at_once(
    wrapped: Wrapped,
) -> None:
    """
    A call of before the loss that fails after the recovery is made again.
    """
    call = resultOf(wrapped.proxy.read(1))
    wrapped.lose()
    wrapped.recover()
    wrapped.fail(0)
    assert wrapped.numbers == [1, 1]
    wrapped.answer(1)
    assert call.value == "done"


@pytest.mark.parametrize("moment", ["before", "after", "queued again"])
def test_a_cancelled_call_is_not_made_again(wrapped: Wrapped, moment: str) -> None:
    """
    A call that is cancelled before the loss, after it, or while it is queued
    again, is not made again.
    """
    call = wrapped.proxy.read(1)
    result = resultOf(call)
    if moment == "before":
        call.cancel()
    wrapped.lose()
    if moment == "queued again":
        wrapped.fail(0)
        assert wrapped.wrapper.pending == 1
    call.cancel()
    assert isinstance(result.error, CancelledError)
    assert wrapped.wrapper.pending == 0
    wrapped.recover()
    assert wrapped.numbers == [1]


@pytest.mark.parametrize("how", ["closed", "given up"])
def test_a_call_that_fails_when_nothing_will_run_again(
    wrapped: Wrapped, how: str
) -> None:
    """
    A call fails with the module's own error when the wrapper is closed, or has
    given the module up.
    """
    call = resultOf(wrapped.proxy.read(1))
    if how == "closed":
        wrapped.wrapper.close()
    else:
        wrapped.lose()
        wrapped.wrapper.fail(Trouble("for good"))
    wrapped.fail(0)
    assert str(call.error) == "gone"
    if how == "closed":
        wrapped.module.closings[0].callback(None)


def test_a_call_that_is_queued_again_ends_with_the_wrapper(wrapped: Wrapped) -> None:
    """
    A call that is queued again gets Closed when the wrapper is closed.
    """
    call = resultOf(wrapped.proxy.read(1))
    wrapped.lose()
    wrapped.fail(0)
    wrapped.wrapper.close()
    wrapped.module.closings[0].callback(None)
    assert isinstance(call.error, Closed)
    assert isinstance(resultOf(wrapped.proxy.read(2)).error, Closed)


def test_each_call_keeps_its_context(wrapped: Wrapped) -> None:
    """
    A call that is made again runs in the context of its caller.
    """
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    seen: list[str] = []
    own = wrapped.module.read

    def read(what: object) -> Deferred[Any]:
        seen.append(variable.get())
        return own(what)

    wrapped.lose()
    wrapped.module.read = read  # type: ignore[method-assign]
    wrapped.recover()
    token = variable.set("mine")
    calls = [resultOf(wrapped.proxy.read(number)) for number in range(2)]
    variable.reset(token)
    wrapped.fail(0)
    wrapped.lose()
    wrapped.recover()
    wrapped.fail(1)
    assert seen == ["mine"] * 4
    wrapped.answer(2, 3)
    assert [each.value for each in calls] == ["done", "done"]


@pytest.mark.parametrize("moduleType", [Module, Settling])
@pytest.mark.parametrize("method", ["read", "compute"])
def test_a_method_that_was_kept_queues_after_a_loss(
    clock: Clock, moduleType: type[Module], method: str
) -> None:
    """
    A method taken from the proxy while the module is ready queues after a loss.
    """
    module = moduleType()
    wrapper = QueuingWrapper(
        module, clock, replay=["read"], retryPolicy=lambda attempts: 1.0
    )
    ready(module, wrapper)
    kept = getattr(wrapper.proxy, method)
    lose(module)
    call = resultOf(kept(1))
    assert (wrapper.pending, module.calls) == (1, [])
    recover(clock, module)
    module.answers[0].callback("done")
    assert call.value == "done"
