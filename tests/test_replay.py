"""
Calls that are safe to run twice, of modules that settle their calls and of modules that
do not: they are repeated if they fail because of a loss, unless their callers gave them
up.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock

from tsrv import QueuingWrapper

from .support import Module, Trouble, lose, ready, recover, resultOf, wrap


class Replayed(Module):
    """
    A ready module with calls that are safe to run twice, and its wrapper.
    """

    def __init__(self, clock: Clock, settles: bool) -> None:
        super().__init__()
        self.wrapper = QueuingWrapper(
            self,
            clock,
            replay=["read", "now", "slowly"],
            retryPolicy=lambda attempts: 1.0,
            settles=settles,
        )
        self.proxy: Any = self.wrapper.proxy
        ready(self, self.wrapper)

    def now(self, what: object) -> object:
        if isinstance(what, Exception):
            raise what
        return what

    async def slowly(self, what: object) -> object:
        try:
            return await self._later("slowly", what)
        except CancelledError:
            await self._later("cleanUp", what)
            raise

    def answer(self, *numbers: int) -> None:
        for number in numbers:
            self.answers[number].callback("done")

    def failCalls(self, *numbers: int) -> None:
        for number in numbers:
            self.answers[number].errback(Trouble("gone"))

    @property
    def numbers(self) -> list[object]:
        return [what for _, what in self.calls]


@pytest.fixture(params=["settles", "does not settle"])
def module(request: pytest.FixtureRequest, clock: Clock) -> Replayed:
    """
    A ready module, which settles its calls or does not.
    """
    return Replayed(clock, request.param == "settles")


def test_whatever_a_method_returns(module: Replayed) -> None:
    """
    A method that returns a Deferred or a coroutine gives a Deferred; a plain value is
    returned as it is.
    """
    calls = [module.proxy.read(1), module.proxy.slowly(2)]
    module.answer(0, 1)
    assert [resultOf(each).value for each in calls] == ["done", "done"]
    assert module.proxy.now(3) == 3


def test_a_failure_without_a_loss_stands(module: Replayed, clock: Clock) -> None:
    """
    A call fails with its own error if no loss is reported within one turn.
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
    module: Replayed, clock: Clock, first: str
) -> None:
    """
    Calls that fail before or after the loss are repeated in order, before later calls.
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


@pytest.mark.parametrize("isLost", [True, False])
def test_a_call_that_fails_at_once(
    module: Replayed, clock: Clock, isLost: bool
) -> None:
    """
    A call that raises, or returns a Deferred that has already failed, is repeated if a
    loss is reported within one turn.
    """
    answers: list[Any] = [Trouble("gone"), fail(Trouble("gone")), "done", "done"]

    def now(what: object) -> object:
        module.calls.append(("now", what))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    lose(module)
    module.now = now  # type: ignore[method-assign]
    recover(clock, module)
    calls = [resultOf(module.proxy.now(number)) for number in range(2)]
    if isLost:
        lose(module)
        recover(clock, module)
        assert [each.value for each in calls] == ["done"] * 2
        assert module.numbers == [0, 1, 0, 1]
    else:
        clock.advance(0)
        assert [str(each.error) for each in calls] == ["gone"] * 2


def test_the_order_when_others_are_given_up(clock: Clock) -> None:
    """
    A call whose method discovers the loss is repeated behind earlier calls, even if the
    last of the earlier calls has left the queue.
    """
    module = Replayed(clock, False)
    own = module.read

    def read(what: object) -> Deferred[Any]:
        answer = own(what)
        if what == 2 and module.numbers.count(2) == 1:
            lose(module)
            calls[1].cancel()
        return answer

    lose(module)
    module.read = read  # type: ignore[method-assign]
    recover(clock, module)
    calls = [module.proxy.read(number) for number in range(2)]
    calls.append(module.proxy.read(2))
    results = [resultOf(each) for each in calls]
    results.append(resultOf(module.proxy.read(3)))
    recover(clock, module)
    assert module.numbers[3:] == [0, 2, 3]
    module.answer(3, 4, 5)
    assert not any(each.pending for each in results)


# Calls that their callers give up.


def abort(deferred: Deferred[Any]) -> None:
    """
    Cancel in the way of C{endpoint.connect()}.
    """
    deferred.errback(Trouble("aborted"))


@pytest.mark.parametrize("moment", ["before", "after", "queued again"])
@pytest.mark.parametrize("canceller", [None, abort])
def test_a_cancelled_call_is_not_made_again(
    module: Replayed, clock: Clock, moment: str, canceller: Any
) -> None:
    """
    A call that is cancelled before the loss, after it, or while it is queued again, is
    not repeated, whatever error its canceller uses.
    """
    own = module.answers

    def read(what: object) -> Deferred[Any]:
        module.calls.append(("read", what))
        own.append(Deferred(canceller))
        return own[-1]

    lose(module)
    module.read = read  # type: ignore[method-assign]
    recover(clock, module)
    call = module.proxy.read(1)
    result = resultOf(call)
    if moment == "before":
        call.cancel()
        assert not result.pending
    lose(module)
    if moment == "queued again":
        module.failCalls(0)
        assert module.wrapper.pending == 1
    call.cancel()
    if moment == "before" and canceller is abort:
        assert str(result.error) == "aborted"
    else:
        assert isinstance(result.error, CancelledError)
    assert (module.wrapper.pending, module.wrapper.inProgress) == (0, 0)
    recover(clock, module)
    assert module.numbers == [1]


@pytest.mark.parametrize("canceller", [None, abort])
def test_a_canceller_that_discovers_the_loss(
    module: Replayed, clock: Clock, canceller: Any
) -> None:
    """
    A canceller may report the loss before it ends the call.
    """

    def discover(deferred: Deferred[Any]) -> None:
        lose(module)
        if canceller is not None:
            canceller(deferred)

    def read(what: object) -> Deferred[Any]:
        module.calls.append(("read", what))
        return Deferred(discover)

    lose(module)
    module.read = read  # type: ignore[method-assign]
    recover(clock, module)
    call = module.proxy.read(1)
    result = resultOf(call)
    call.cancel()
    clock.advance(0)
    if canceller is None:
        assert isinstance(result.error, CancelledError)
    else:
        assert str(result.error) == "aborted"
    recover(clock, module)
    assert (module.numbers, module.wrapper.pending) == ([1], 0)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("ending", ["succeeds", "fails", "later", "never"])
def test_a_coroutine_that_cleans_up(
    module: Replayed, clock: Clock, moment: str, ending: str
) -> None:
    """
    A cancelled coroutine may await a cleanup during a loss: its call is not repeated,
    however the cleanup ends.
    """
    call = module.proxy.slowly(1)
    result = resultOf(call)
    if moment == "before":
        call.cancel()
        assert module.calls[-1] == ("cleanUp", 1)
        lose(module)
    else:
        lose(module)
        call.cancel()
    if ending == "succeeds" and len(module.answers) == 2:
        module.answer(1)
    elif ending == "fails" and len(module.answers) == 2:
        module.failCalls(1)
    clock.advance(0)
    if moment == "before" and ending == "fails":
        assert str(result.error) == "gone"
    else:
        assert isinstance(result.error, CancelledError)
    recover(clock, module)
    assert [each for each in module.calls if each[0] == "slowly"] == [("slowly", 1)]
    if ending == "later" and len(module.answers) == 2:
        module.failCalls(1)
    assert (module.wrapper.pending, module.wrapper.inProgress) == (0, 0)


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_wrapper_of_a_wrappers_proxy(
    module: Replayed, clock: Clock, outer: bool, moment: str
) -> None:
    """
    A call through two wrappers that is given up is not repeated, either.
    """
    watches: list[Deferred[None]] = []

    def whenLost() -> Deferred[None]:
        watches.append(Deferred())
        return watches[-1]

    around = QueuingWrapper(
        module.proxy,
        clock,
        replay=["read"],
        retryPolicy=lambda _: 1.0,
        whenLost=whenLost,
        settles=outer,
    )
    around.initialize()
    call: Any = around.proxy.read(1)
    result = resultOf(call)
    if moment == "before":
        call.cancel()
    lose(module)
    watches[0].callback(None)
    call.cancel()
    assert isinstance(result.error, CancelledError)
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert module.numbers == [1]
    assert (around.pending, around.inProgress) == (0, 0)
    assert (module.wrapper.pending, module.wrapper.inProgress) == (0, 0)


@pytest.mark.parametrize("first", ["cancels", "loss"])
@pytest.mark.parametrize("method", ["read", "slowly"])
def test_a_module_that_cancels_its_calls_at_a_loss(
    module: Replayed, clock: Clock, first: str, method: str
) -> None:
    """
    Calls that the module itself cancels are repeated, since their callers did not give
    them up.
    """
    result = resultOf(getattr(module.proxy, method)(1))
    if first == "loss":
        lose(module)
    module.answers[0].cancel()
    if method == "slowly":
        module.failCalls(1)
    if first == "cancels":
        lose(module)
    assert (result.pending, module.wrapper.pending) == (True, 1)
    recover(clock, module)
    assert module.calls[-1] == (method, 1)
    module.answer(-1)
    assert result.value == "done"


@pytest.mark.parametrize("concurrency", [1, 2, 3])
@pytest.mark.parametrize("answered", [0, 1, 2])
def test_lost_again_while_calls_are_made_again(
    clock: Clock, concurrency: int, answered: int
) -> None:
    """
    If the module is lost again before all calls of the last loss have been repeated,
    their order stays the same.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"], concurrency=concurrency)
    ready(module, wrapper)
    results = [resultOf(proxy.read(number)) for number in range(5)]
    lose(module)
    results += [resultOf(proxy.read(number)) for number in range(5, 7)]
    for losses in range(3):
        begun = len(module.answers)
        recover(clock, module)
        for number in range(answered):
            module.answers[begun + number].callback("done")
            clock.advance(0)
        again = [what for _, what in module.calls[begun:]]
        first = losses * answered
        assert again == list(range(first, min(7, first + answered + concurrency)))
        lose(module)
    recover(clock, module)
    while any(not each.called for each in module.answers[-concurrency:]):
        for answer in module.answers:
            if not answer.called:
                answer.callback("done")
        clock.advance(0)
    assert [each.value for each in results] == ["done"] * 7
