"""
Modules that were ready and are no longer.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from tsrv import (
    InitializationFailed,
    OutcomeUnknown,
    QueuingWrapper,
    State,
)

from .support import Module, Trouble, ready, resultOf, wrap


def test_loss(clock: Clock) -> None:
    """
    Calls are held again, the module is initialised again after a while, and
    what was held runs.
    """
    module, wrapper, proxy = wrap(clock)
    ready(module, wrapper)
    with capturedLogs() as logged:
        module.watches[-1].errback(Trouble("connection lost"))
    assert (wrapper.state, wrapper.retryAfter()) == (State.LOST, 1.0)
    assert isinstance(wrapper.lastError, Trouble)
    assert logged[0]["log_format"].format(**logged[0]) == (
        "Module was lost, next attempt in 1.0 s: Trouble: connection lost"
    )
    call, waiting = resultOf(proxy.write(1)), resultOf(wrapper.whenInitialized())
    again = resultOf(wrapper.initialize())
    clock.advance(1)
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[-1].callback(None)
    module.answers[-1].callback("done")
    assert (call.value, waiting.value, again.value) == ("done", None, None)
    assert (wrapper.state, wrapper.lastError) == (State.READY, None)


def test_loss_without_a_reason(clock: Clock) -> None:
    """
    A module may just say that it is gone.
    """
    module, wrapper, _ = wrap(clock)
    ready(module, wrapper)
    with capturedLogs() as logged:
        module.watches[-1].callback(None)
    assert (wrapper.state, wrapper.lastError) == (State.LOST, None)
    assert logged[0]["log_format"].format(**logged[0]).endswith("no reason given")
    clock.advance(1)
    module.attempts[-1].callback(None)


def test_in_progress_when_lost(clock: Clock) -> None:
    """
    A command that the module was at work on, and that it never answers, has no
    known outcome; it is not run again.
    """
    module, wrapper, proxy = wrap(clock)
    result = resultOf(proxy.write(1))
    ready(module, wrapper)
    module.watches[-1].callback(None)
    assert result.pending
    clock.advance(0)
    assert isinstance(result.error, OutcomeUnknown)
    assert result.error.method == "write"
    clock.advance(1)
    module.attempts[-1].callback(None)
    module.answers[0].callback("too late")
    assert module.calls == [("write", 1)]
    assert wrapper.stats.started == 1


@pytest.mark.parametrize("error", [None, Trouble("cut off")])
def test_its_own_end_comes_first(clock: Clock, error: Exception | None) -> None:
    """
    What the module itself says of a command in the same turn, before or after
    it reports the loss, is worth more than not to know.
    """
    module, wrapper, proxy = wrap(clock)
    result = resultOf(proxy.write(1))
    ready(module, wrapper)
    module.watches[-1].callback(None)
    if error is None:
        module.answers[0].callback("done")
        assert result.value == "done"
    else:
        module.answers[0].errback(error)
        assert result.error is error
    clock.advance(1)
    module.attempts[-1].callback(None)


def test_cancelled_in_its_last_turn(clock: Clock) -> None:
    """
    Who gives up a command whose outcome is about to be unknown is told just
    that he gave up.
    """
    module, wrapper, proxy = wrap(clock)
    call = proxy.write(1)
    result = resultOf(call)
    ready(module, wrapper)
    module.watches[-1].callback(None)
    call.cancel()
    assert isinstance(result.error, CancelledError)
    clock.advance(1)
    module.attempts[-1].callback(None)


def test_replay(clock: Clock) -> None:
    """
    A command that may run twice is run again, before all that came after it;
    whether it was drained or called while the module was ready.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    first = resultOf(proxy.read(1))
    ready(module, wrapper)
    second, third = resultOf(proxy.read(2)), resultOf(proxy.read(3))
    module.answers[1].callback("second")
    stats = wrapper.stats
    assert (stats.submitted, stats.started) == (1, 1)
    module.watches[-1].callback(None)
    fourth = resultOf(proxy.read(4))
    stats = wrapper.stats
    assert (stats.submitted, stats.started, stats.pending) == (3, 0, 3)
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert [what for _, what in module.calls] == [1, 2, 3, 1, 3, 4]
    for answer in module.answers[3:]:
        answer.callback("again")
    assert [each.value for each in (first, second, third, fourth)] == [
        "again",
        "second",
        "again",
        "again",
    ]
    stats = wrapper.stats
    assert (stats.submitted, stats.started, stats.pending) == (3, 3, 0)


def test_replay_goes_before_what_was_waiting(clock: Clock) -> None:
    """
    Lost in the middle of a drain: what was in progress comes before what was
    not.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"], concurrency=2)
    for number in range(4):
        proxy.read(number)
    ready(module, wrapper)
    module.watches[-1].callback(None)
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert [what for _, what in module.calls] == [0, 1, 0, 1]
    module.answers[2].callback(None)
    module.answers[3].callback(None)
    clock.advance(0)
    assert [what for _, what in module.calls] == [0, 1, 0, 1, 2, 3]


def test_late_answer_to_a_run_that_was_lost(clock: Clock) -> None:
    """
    Two runs of one command are two answers; only that of the second counts.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    result = resultOf(proxy.read(1))
    ready(module, wrapper)
    module.watches[-1].callback(None)
    module.answers[0].callback("while it waits")
    assert result.pending
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert result.pending
    module.answers[1].callback("second")
    assert result.value == "second"


def test_late_answer_while_it_runs_again(clock: Clock) -> None:
    """
    The same when the first run answers while the second is in progress.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    result = resultOf(proxy.read(1))
    ready(module, wrapper)
    module.watches[-1].callback(None)
    clock.advance(1)
    module.attempts[-1].callback(None)
    module.answers[0].callback("first")
    assert result.pending
    module.answers[1].callback("second")
    assert result.value == "second"


def test_calls_fail_before_the_loss_is_reported(clock: Clock) -> None:
    """
    Most clients fail what is in progress first, and report the loss then: a
    command that may run twice is run again all the same.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    drained = resultOf(proxy.read(1))
    ready(module, wrapper)
    direct = resultOf(proxy.read(2))
    for answer in module.answers:
        answer.errback(Trouble("connection lost"))
    module.watches[-1].errback(Trouble("connection lost"))
    assert (drained.pending, direct.pending, wrapper.pending) == (True, True, 2)
    clock.advance(1)
    module.attempts[-1].callback(None)
    for answer in module.answers[2:]:
        answer.callback("done")
    assert (drained.value, direct.value) == ("done", "done")


def test_a_failure_that_no_loss_explains(clock: Clock) -> None:
    """
    An ordinary error of a command that may run twice is its answer, one turn
    of the reactor later.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    results = [resultOf(proxy.read(number)) for number in range(2)]
    for answer in module.answers:
        answer.errback(Trouble("not found"))
    assert all(each.pending for each in results)
    clock.advance(0)
    assert [str(each.error) for each in results] == ["not found", "not found"]
    assert wrapper.state is State.READY


def test_a_failure_when_nothing_can_be_lost(clock: Clock) -> None:
    """
    A module that never reports a loss is not waited for.
    """

    class Steady:
        def initialize(self) -> None:
            pass

        def read(self) -> None:
            raise Trouble("at once")

    wrapper = QueuingWrapper(Steady(), clock, replay=["read"])
    wrapper.initialize()
    read: Any = wrapper.proxy.read
    assert isinstance(resultOf(read()).error, Trouble)


def test_given_up_while_its_failure_is_in_doubt(clock: Clock) -> None:
    """
    In the turn in which it is not known yet whether the failure was a loss,
    the caller may give up: then it is not run again.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    call = proxy.read(1)
    result = resultOf(call)
    module.answers[0].errback(Trouble())
    call.cancel()
    assert isinstance(result.error, CancelledError)
    module.watches[-1].callback(None)
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert len(module.calls) == 1


def test_given_up_while_in_doubt_and_nothing_follows(clock: Clock) -> None:
    """
    What was given up is over when the doubt is.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    call = proxy.read(1)
    result = resultOf(call)
    module.answers[0].errback(Trouble())
    call.cancel()
    clock.advance(0)
    assert isinstance(result.error, CancelledError)
    assert wrapper.state is State.READY


def test_lost_in_the_errback_of_a_failure_in_doubt(clock: Clock) -> None:
    """
    The errback of the first failure that stands brings the module down: the
    second is run again.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    first, second = proxy.read(1), proxy.read(2)
    first.addErrback(lambda _: module.watches[-1].callback(None))
    result = resultOf(second)
    for answer in module.answers:
        answer.errback(Trouble())
    clock.advance(0)
    assert (wrapper.state, wrapper.pending) == (State.LOST, 1)
    clock.advance(1)
    module.attempts[-1].callback(None)
    module.answers[-1].callback("done")
    assert result.value == "done"


def test_given_up_in_progress_then_lost(clock: Clock) -> None:
    """
    A command whose caller has given up is not run again, even if the module
    has not noticed yet.
    """

    class Slow(Module):
        def read(self, what: object) -> Deferred[Any]:
            answer = super().read(what)
            answer.addErrback(lambda _: Deferred())
            return answer

    module = Slow()
    wrapper = QueuingWrapper(
        module, clock, replay=["read"], retryPolicy=lambda attempts: 1.0
    )
    ready(module, wrapper)
    call = wrapper.proxy.read(1)
    result = resultOf(call)
    call.cancel()
    assert result.pending
    module.watches[-1].callback(None)
    clock.advance(0)
    assert isinstance(result.error, CancelledError)
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert len(module.calls) == 1


def test_replayed_commands_have_all_their_time(clock: Clock) -> None:
    """
    A command that is put back waits for its start anew, and those behind it
    still expire when their own time is up.
    """
    module, wrapper, proxy = wrap(
        clock, replay=["read"], concurrency=1, timeout=4.0, retryPolicy=lambda _: 9.0
    )
    again, behind = resultOf(proxy.read(1)), resultOf(proxy.write(2))
    ready(module, wrapper)
    clock.advance(3)
    module.watches[-1].callback(None)
    clock.advance(1)
    assert (again.pending, behind.pending) == (True, False)
    clock.advance(2.5)
    assert again.pending
    clock.advance(0.5)
    assert not again.pending
    wrapper.close()
    module.closings[-1].callback(None)


def test_guard_taken_before_the_loss(clock: Clock) -> None:
    """
    The methods that need a guard anyway, those that may run twice and those
    that are C{async def}, queue after a loss even if they were taken before.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    read, compute = proxy.read, proxy.compute
    module.watches[-1].callback(None)
    read(1)
    resultOf(compute(2))  # type: ignore[arg-type]
    assert (wrapper.pending, module.calls) == (2, [])
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert module.calls == [("read", 1), ("compute", 2)]


def test_flapping(clock: Clock) -> None:
    """
    A module that is lost as soon as it is ready does not send the wrapper into
    a tight loop: the delays go on growing. When it has been ready for longer
    than the last delay they begin anew.
    """
    module, wrapper, _ = wrap(clock, retryPolicy=lambda attempts: 2.0**attempts)
    ready(module, wrapper)
    for delay in (1.0, 2.0, 4.0):
        module.watches[-1].callback(None)
        assert wrapper.retryAfter() == delay
        clock.advance(delay)
        module.attempts[-1].callback(None)
    clock.advance(100)
    module.watches[-1].callback(None)
    assert (wrapper.retryAfter(), wrapper.attempts) == (1.0, 0)
    clock.advance(1)
    module.attempts[-1].callback(None)


def test_lost_before_it_is_drained(clock: Clock) -> None:
    """
    A module that is lost already when it says that it is ready gets no
    commands, and nobody is told that it is ready.
    """
    module = Module()
    losses = [succeed(None), Deferred[None]()]
    wrapper = QueuingWrapper(
        module,
        clock,
        whenLost=lambda: losses.pop(0),
        retryPolicy=lambda attempts: 1.0,
    )
    result = resultOf(wrapper.initialize())
    wrapper.proxy.write(1)
    module.attempts[-1].callback(None)
    assert (wrapper.state, module.calls, result.pending) == (State.LOST, [], True)
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert (module.calls, result.value) == ([("write", 1)], None)


@pytest.mark.parametrize("method", ["read", "write", "compute"])
def test_lost_while_the_module_is_being_called(clock: Clock, method: str) -> None:
    """
    Many a module finds out that it is lost by being used.
    """

    class Brittle(Module):
        def _later(self, name: str, what: object) -> Deferred[Any]:
            answer = super()._later(name, what)
            if len(self.calls) == 1:
                self.watches[-1].callback(None)
            return answer

    module = Brittle()
    wrapper = QueuingWrapper(
        module, clock, replay=["read"], retryPolicy=lambda attempts: 1.0
    )
    result = resultOf(getattr(wrapper.proxy, method)(1))
    second = resultOf(wrapper.proxy.write(2))
    ready(module, wrapper)
    assert (wrapper.state, len(module.calls)) == (State.LOST, 1)
    clock.advance(1)
    module.attempts[-1].callback(None)
    for answer in module.answers[1:]:
        answer.callback("done")
    assert second.value == "done"
    if method == "read":
        assert result.value == "done"
    else:
        assert isinstance(result.error, OutcomeUnknown)


def test_watching_that_fails(clock: Clock) -> None:
    """
    A module that cannot be watched is not ready: one that raises, or answers
    nothing to wait for.
    """
    answers: list[Any] = [Trouble("cannot watch"), None, Deferred[None]()]

    def whenLost() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    wrapper = QueuingWrapper(
        Module(),
        clock,
        initialize=lambda: None,
        whenLost=whenLost,
        retryPolicy=lambda attempts: 1.0,
    )
    resultOf(wrapper.initialize())
    assert isinstance(wrapper.lastError, Trouble)
    clock.advance(1)
    assert str(wrapper.lastError) == "whenLost() answered None, not a Deferred"
    clock.advance(1)
    assert wrapper.state is State.READY


def test_watching_with_a_coroutine(clock: Clock) -> None:
    """
    C{whenLost()} may be C{async def}.
    """
    module = Module()

    async def whenLost() -> None:
        await module.whenLost()

    wrapper = QueuingWrapper(
        module, clock, whenLost=whenLost, retryPolicy=lambda attempts: 1.0
    )
    ready(module, wrapper)
    module.watches[-1].callback(None)
    assert wrapper.state is State.LOST
    clock.advance(1)
    module.attempts[-1].callback(None)


def test_no_attempt_after_a_loss(clock: Clock) -> None:
    """
    A policy may say that a loss is the end; then everyone is told, with the
    reason of the loss.
    """

    def policy(attempts: int) -> float:
        raise Trouble("that was it")

    module, wrapper, proxy = wrap(clock, replay=["read"], retryPolicy=policy)
    ready(module, wrapper)
    result = resultOf(proxy.read(1))
    cause = Trouble("connection lost")
    module.watches[-1].errback(cause)
    assert wrapper.state is State.FAILED
    assert isinstance(result.error, InitializationFailed)
    assert result.error.__cause__ is cause


def test_loss_of_an_earlier_time(clock: Clock) -> None:
    """
    A module that reports the loss of an earlier connection late, or twice in
    two ways, does not lose the present one.
    """
    module, wrapper, _ = wrap(clock)
    ready(module, wrapper)
    first = module.watches[-1]
    wrapper.close()
    first.errback(Trouble("because it was closed"))
    module.closings[-1].callback(None)
    assert wrapper.state is State.CLOSED
