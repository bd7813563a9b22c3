"""
Of a module that answers all its calls, those that may be run again are watched
for failures alone.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from tsrv import (
    Closed,
    QueuingWrapper,
    State,
)
from tsrv.asyncmodule import ISettlesCalls

from .support import Module, Trouble, resultOf


@implementer(ISettlesCalls)
class Answering(Module):
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


class Watched:
    """
    A module, and its wrapper.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.module = Answering()
        self.wrapper = QueuingWrapper(
            self.module,
            clock,
            replay=["read", "now", "slowly"],
            retryPolicy=lambda attempts: 1.0,
        )
        self.wrapper.initialize()
        self.heal()

    def heal(self) -> None:
        """
        Become ready.
        """
        self.module.attempts[-1].callback(None)
        assert self.wrapper.state is State.READY

    def lose(self) -> None:
        """
        Be lost.
        """
        self.module.watches[-1].callback(None)
        assert self.wrapper.state is State.LOST

    def again(self) -> None:
        """
        Become ready again.
        """
        self.clock.advance(1)
        self.heal()

    @property
    def proxy(self) -> Any:
        """
        What callers use.
        """
        return self.wrapper.proxy

    @property
    def asked(self) -> list[object]:
        """
        What the module was asked for.
        """
        return [what for _, what in self.module.calls]


@pytest.fixture
def watched(clock: Clock) -> Watched:
    """
    A module that is ready.
    """
    return Watched(clock)


def test_what_succeeds_is_the_modules_own(watched: Watched) -> None:
    """
    Nothing stands between a caller and the answer.
    """
    answer = watched.proxy.read(1)
    assert answer is watched.module.answers[0]
    watched.module.answers[0].callback("done")
    assert resultOf(answer).value == "done"
    assert resultOf(watched.proxy.now(2)).value == 2
    slowly = resultOf(watched.proxy.slowly(3))
    watched.module.answers[1].callback("slow")
    assert slowly.value == "slow"


def test_what_fails_while_it_is_ready_fails(watched: Watched, clock: Clock) -> None:
    """
    With its own error, once it is known that no loss is behind it.
    """
    answer = resultOf(watched.proxy.read(1))
    watched.module.answers[0].errback(Trouble("no"))
    assert not answer.fired
    clock.advance(0)
    assert isinstance(answer.error, Trouble)
    raised = resultOf(watched.proxy.now(Trouble("at once")))
    clock.advance(0)
    assert isinstance(raised.error, Trouble)
    assert watched.asked == [1]


def test_what_fails_before_a_loss_is_known_is_made_again(watched: Watched) -> None:
    """
    Many clients fail their calls first, and tell of the loss afterwards.
    """
    answers = [resultOf(watched.proxy.read(number)) for number in range(2)]
    for each in watched.module.answers[:2]:
        each.errback(Trouble("gone"))
    watched.lose()
    assert watched.wrapper.pending == 2
    watched.again()
    assert watched.asked == [0, 1, 0, 1]
    for each in watched.module.answers[2:]:
        each.callback("done")
    assert [answer.value for answer in answers] == ["done", "done"]


def test_what_fails_after_a_loss_is_made_again_before_what_came_later(
    watched: Watched,
) -> None:
    """
    Calls start in the order in which they were made.
    """
    answers = [resultOf(watched.proxy.read(number)) for number in range(3)]
    watched.lose()
    answers.append(resultOf(watched.proxy.read(3)))
    for each in watched.module.answers[:3]:
        each.errback(Trouble("gone"))
    assert watched.wrapper.pending == 4
    watched.again()
    assert watched.asked == [0, 1, 2, 0, 1, 2, 3]
    for each in watched.module.answers[3:]:
        each.callback("done")
    assert [answer.value for answer in answers] == ["done"] * 4


def test_a_method_that_was_kept_queues_after_a_loss(watched: Watched) -> None:
    """
    It was taken while the module was ready, and is called when it is not.
    """
    read = watched.proxy.read
    watched.lose()
    answer = resultOf(read(1))
    assert watched.wrapper.pending == 1
    watched.again()
    watched.module.answers[0].callback("done")
    assert answer.value == "done"


def test_what_fails_when_it_has_healed_is_made_again_at_once(
    watched: Watched,
) -> None:
    """
    However late the module is with the error.
    """
    answer = resultOf(watched.proxy.read(1))
    watched.lose()
    watched.again()
    watched.module.answers[0].errback(Trouble("gone"))
    assert watched.asked == [1, 1]
    watched.module.answers[1].callback("done")
    assert answer.value == "done"


def test_what_succeeds_after_a_loss_has_succeeded(watched: Watched) -> None:
    """
    An answer is not thrown away to be asked for again.
    """
    answer = resultOf(watched.proxy.read(1))
    watched.lose()
    watched.module.answers[0].callback("done")
    assert answer.value == "done"
    watched.again()
    assert watched.asked == [1]


@pytest.mark.parametrize("moment", ["before", "after", "waiting"])
def test_who_gives_up_gets_nothing_again(watched: Watched, moment: str) -> None:
    """
    Nothing runs after its caller gave up, whenever that was.
    """
    call = watched.proxy.read(1)
    answer = resultOf(call)
    if moment == "before":
        call.cancel()
    watched.lose()
    if moment == "after":
        call.cancel()
    if moment == "waiting":
        watched.module.answers[0].errback(Trouble("gone"))
        assert watched.wrapper.pending == 1
        call.cancel()
    assert isinstance(answer.error, CancelledError)
    assert watched.wrapper.pending == 0
    watched.again()
    assert watched.asked == [1]


def test_what_fails_when_it_is_closed_fails(watched: Watched) -> None:
    """
    With the module's own reason, which is the true one.
    """
    answer = resultOf(watched.proxy.read(1))
    watched.wrapper.close()
    watched.module.answers[0].errback(Trouble("closed"))
    assert isinstance(answer.error, Trouble)
    watched.module.closings[0].callback(None)


def test_what_waits_to_be_made_again_ends_with_the_wrapper(watched: Watched) -> None:
    """
    Like anything else that waits.
    """
    answer = resultOf(watched.proxy.read(1))
    watched.lose()
    watched.module.answers[0].errback(Trouble("gone"))
    watched.wrapper.close()
    watched.module.closings[0].callback(None)
    assert isinstance(answer.error, Closed)
    late = resultOf(watched.proxy.read(2))
    assert isinstance(late.error, Closed)


def test_a_loss_that_is_given_up_is_the_reason(watched: Watched) -> None:
    """
    What fails after the wrapper has given the module up has nobody to run it.
    """
    answer = resultOf(watched.proxy.read(1))
    watched.lose()
    watched.wrapper.fail(Trouble("for good"))
    watched.module.answers[0].errback(Trouble("gone"))
    assert isinstance(answer.error, Trouble)


def test_each_call_keeps_its_context(watched: Watched) -> None:
    """
    The second time as the first.
    """
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    seen: list[str] = []
    own = watched.module.read

    def read(what: object) -> Deferred[Any]:
        seen.append(variable.get())
        return own(what)

    watched.lose()
    watched.module.read = read  # type: ignore[method-assign]
    watched.again()
    token = variable.set("mine")
    answers = [resultOf(watched.proxy.read(number)) for number in range(2)]
    variable.reset(token)
    watched.module.answers[0].errback(Trouble("gone"))
    watched.lose()
    watched.again()
    watched.module.answers[1].errback(Trouble("gone"))
    assert seen == ["mine"] * 4
    for each in watched.module.answers[2:]:
        each.callback("done")
    assert [answer.value for answer in answers] == ["done", "done"]


def test_a_loss_that_is_reported_by_the_call_itself(clock: Clock) -> None:
    """
    A call that finds the module lost, reports the loss and fails is made again.
    """

    class Finding(Answering):
        lost = True

        def read(self, what: object) -> Deferred[Any]:
            if not self.lost:
                return succeed(what)
            self.lost = False
            self.watches[-1].callback(None)
            return fail(Trouble())

    module = Finding()
    wrapper = QueuingWrapper(
        module, clock, replay=["read"], retryPolicy=lambda attempts: 1.0
    )
    wrapper.initialize()
    module.attempts[0].callback(None)
    result = resultOf(wrapper.proxy.read("a"))
    assert result.pending
    clock.advance(1)
    module.attempts[1].callback(None)
    assert result.value == "a"
    wrapper.close()
    module.closings[0].callback(None)
