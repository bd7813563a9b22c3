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

from tsrv import QueuingWrapper
from tsrv.asyncmodule import ISettlesCalls

from .support import Module, Trouble, lose, ready, recover, resultOf


@implementer(ISettlesCalls)
class Settling(Module):
    """
    A module that answers all its calls, with its wrapper, and ready.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.wrapper = QueuingWrapper(
            self,
            clock,
            replay=["read", "now", "slowly"],
            retryPolicy=lambda attempts: 1.0,
        )
        self.proxy: Any = self.wrapper.proxy
        ready(self, self.wrapper)

    def now(self, what: object) -> object:
        if isinstance(what, Exception):
            raise what
        return what

    async def slowly(self, what: object) -> object:
        return await self.read(what)

    def answer(self, *numbers: int) -> None:
        for number in numbers:
            self.answers[number].callback("done")

    def failCalls(self, *numbers: int) -> None:
        for number in numbers:
            self.answers[number].errback(Trouble("gone"))

    @property
    def numbers(self) -> list[object]:
        return [what for _, what in self.calls]


@pytest.fixture
def module(clock: Clock) -> Settling:
    """
    A module that is ready.
    """
    return Settling(clock)


def test_a_successful_call_is_the_modules_own(module: Settling) -> None:
    """
    A call ends with the module's result; a value is returned as it is.
    """
    calls = [resultOf(module.proxy.read(1)), resultOf(module.proxy.slowly(2))]
    module.answer(0, 1)
    assert [each.value for each in calls] == ["done", "done"]
    assert module.proxy.now(3) == 3


def test_a_failure_without_a_loss_stands(module: Settling, clock: Clock) -> None:
    """
    A call fails with its own error when no loss is reported within a turn.
    """
    call = resultOf(module.proxy.read(1))
    raised = resultOf(module.proxy.now(Trouble("at once")))
    module.failCalls(0)
    assert call.pending
    clock.advance(0)
    assert [str(each.error) for each in (call, raised)] == ["gone", "at once"]
    assert module.numbers == [1]


@pytest.mark.parametrize("first", ["failures", "loss"])
def test_calls_that_fail_around_a_loss_are_made_again(
    module: Settling, clock: Clock, first: str
) -> None:
    """
    Calls that fail before or after the loss are made again, in order, before
    later calls.
    """
    calls = [resultOf(module.proxy.read(number)) for number in range(3)]
    if first == "failures":
        module.failCalls(0, 1, 2)
    lose(module)
    calls.append(resultOf(module.proxy.read(3)))
    if first == "loss":
        module.failCalls(0, 1, 2)
    assert module.wrapper.pending == 4
    recover(clock, module)
    assert module.numbers == [0, 1, 2, 0, 1, 2, 3]
    module.answer(3, 4, 5, 6)
    assert [each.value for each in calls] == ["done"] * 4


@pytest.mark.parametrize("failing", [True, False])
def test_a_call_of_before_the_loss_ends_after_the_recovery(
    module: Settling, clock: Clock, failing: bool
) -> None:
    """
    A call that fails after the recovery is made again at once; a result counts.
    """
    call = resultOf(module.proxy.read(1))
    lose(module)
    recover(clock, module)
    if failing:
        module.failCalls(0)
        assert module.numbers == [1, 1]
    module.answer(-1)
    assert call.value == "done"


@pytest.mark.parametrize("moment", ["before", "after", "queued again"])
def test_a_cancelled_call_is_not_made_again(
    module: Settling, clock: Clock, moment: str
) -> None:
    """
    A call that is cancelled before the loss, after it, or while it is queued
    again, is not made again.
    """
    call = module.proxy.read(1)
    result = resultOf(call)
    if moment == "before":
        call.cancel()
    lose(module)
    if moment == "queued again":
        module.failCalls(0)
        assert module.wrapper.pending == 1
    call.cancel()
    assert isinstance(result.error, CancelledError)
    assert module.wrapper.pending == 0
    recover(clock, module)
    assert module.numbers == [1]


def test_each_call_keeps_its_context(module: Settling, clock: Clock) -> None:
    """
    A call that is made again runs in the context of its caller.
    """
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    seen: list[str] = []
    own = module.read

    def read(what: object) -> Deferred[Any]:
        seen.append(variable.get())
        return own(what)

    lose(module)
    module.read = read  # type: ignore[method-assign]
    recover(clock, module)
    token = variable.set("mine")
    calls = [resultOf(module.proxy.read(number)) for number in range(2)]
    variable.reset(token)
    module.failCalls(0)
    lose(module)
    recover(clock, module)
    module.failCalls(1)
    assert seen == ["mine"] * 4
    module.answer(2, 3)
    assert [each.value for each in calls] == ["done", "done"]


@pytest.mark.parametrize("method", ["read", "slowly"])
def test_a_method_that_was_kept_queues_after_a_loss(
    module: Settling, clock: Clock, method: str
) -> None:
    """
    A method taken from the proxy while the module is ready queues after a loss.
    """
    kept = getattr(module.proxy, method)
    lose(module)
    call = resultOf(kept(1))
    assert (module.wrapper.pending, module.calls) == (1, [])
    recover(clock, module)
    module.answer(0)
    assert call.value == "done"
