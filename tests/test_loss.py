"""
Losses: modules that were ready and stopped working.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs

from tsrv import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueuingWrapper,
    State,
)

from .support import (
    Module,
    Trouble,
    lose,
    messageOf,
    ready,
    recover,
    resultOf,
    shut,
    wrap,
)


def numbers(module: Module) -> list[object]:
    """
    @return: The arguments of all calls.
    """
    return [what for _, what in module.calls]


def test_loss(clock: Clock) -> None:
    """
    After a loss calls are queued, the module is initialised again, and the queued
    calls run.
    """
    module, wrapper, proxy = wrap(clock)
    ready(module, wrapper)
    with capturedLogs() as logged:
        lose(module, Trouble("connection lost"))
    assert (wrapper.state, wrapper.retryAfter()) == (State.LOST, 1.0)
    assert isinstance(wrapper.lastError, Trouble)
    assert messageOf(logged[0]) == (
        "Module: lost (Trouble: connection lost); retry in 1.0 s"
    )
    call, waiting = resultOf(proxy.write(1)), resultOf(wrapper.whenInitialized())
    again = resultOf(wrapper.initialize())
    clock.advance(1)
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[-1].callback(None)
    module.answers[-1].callback("done")
    assert (call.value, waiting.value, again.value) == ("done", None, None)
    assert (wrapper.state, wrapper.lastError) == (State.READY, None)


# Calls that must not run twice.


@pytest.mark.parametrize("error", [None, Trouble("cut off")])
def test_an_answer_after_the_loss(clock: Clock, error: Exception | None) -> None:
    """
    The module may still end a call until the next turn of the reactor.
    """
    module, wrapper, proxy = wrap(clock)
    result = resultOf(proxy.write(1))
    ready(module, wrapper)
    lose(module)
    if error is None:
        module.answers[0].callback("done")
        assert result.value == "done"
    else:
        module.answers[0].errback(error)
        assert result.error is error
    recover(clock, module)


# Calls that are safe to run twice.


def test_replay(clock: Clock) -> None:
    """
    Calls in progress that are safe to run twice are repeated before later calls,
    whether they had been queued or not.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    results = [resultOf(proxy.read(1))]
    ready(module, wrapper)
    results += [resultOf(proxy.read(2)), resultOf(proxy.read(3))]
    module.answers[1].callback("second")
    stats = wrapper.stats
    assert (stats.submitted, stats.started) == (1, 1)
    lose(module)
    results.append(resultOf(proxy.read(4)))
    stats = wrapper.stats
    assert (stats.submitted, stats.started, stats.pending) == (3, 0, 3)
    recover(clock, module)
    assert numbers(module) == [1, 2, 3, 1, 3, 4]
    for answer in module.answers[3:]:
        answer.callback("again")
    assert [each.value for each in results] == ["again", "second", "again", "again"]
    stats = wrapper.stats
    assert (stats.submitted, stats.started, stats.pending) == (3, 3, 0)


@pytest.mark.parametrize("when", ["queued again", "running again"])
def test_late_answer_to_the_first_run(clock: Clock, when: str) -> None:
    """
    A repeated call ends with the result of its second run.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    result = resultOf(proxy.read(1))
    ready(module, wrapper)
    lose(module)
    if when == "queued again":
        module.answers[0].callback("first")
    recover(clock, module)
    if when == "running again":
        module.answers[0].callback("first")
    assert result.pending
    module.answers[1].callback("second")
    assert result.value == "second"


def test_calls_fail_before_the_loss_is_reported(clock: Clock) -> None:
    """
    Calls that fail before the module reports the loss are repeated.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    results = [resultOf(proxy.read(1))]
    ready(module, wrapper)
    results.append(resultOf(proxy.read(2)))
    for answer in module.answers:
        answer.errback(Trouble("connection lost"))
    lose(module, Trouble("connection lost"))
    assert all(each.pending for each in results)
    recover(clock, module)
    for answer in module.answers[2:]:
        answer.callback("done")
    assert [each.value for each in results] == ["done", "done"]


def test_a_failure_that_no_loss_explains(clock: Clock) -> None:
    """
    A failure stands if no loss is reported within one turn of the reactor.
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


def test_a_failure_of_a_module_that_reports_no_losses(clock: Clock) -> None:
    """
    A failure stands at once if the module has no whenLost().
    """

    class Steady:
        def initialize(self) -> None:
            pass

        def read(self) -> object:
            raise Trouble("at once")

    wrapper = QueuingWrapper(Steady(), clock, replay=["read"])
    wrapper.initialize()
    assert isinstance(resultOf(wrapper.proxy.read()).error, Trouble)


def test_calls_that_are_made_again_have_all_their_time(clock: Clock) -> None:
    """
    The timeout of a repeated call begins at the loss; later calls keep their deadlines.
    """
    module, wrapper, proxy = wrap(
        clock, replay=["read"], concurrency=1, timeout=4.0, retryPolicy=lambda _: 9.0
    )
    again, behind = resultOf(proxy.read(1)), resultOf(proxy.write(2))
    ready(module, wrapper)
    clock.advance(3)
    lose(module)
    clock.advance(1)
    assert (again.pending, behind.pending) == (True, False)
    clock.advance(2.5)
    assert again.pending
    clock.advance(0.5)
    assert not again.pending
    shut(wrapper)


# Retries, and watching.


def test_flapping(clock: Clock) -> None:
    """
    The delays of a module that is lost as soon as it is ready keep growing, until the
    module has been ready for longer than the last delay.
    """
    module, wrapper, _ = wrap(clock, retryPolicy=lambda attempts: 2.0**attempts)
    ready(module, wrapper)
    for delay in (1.0, 2.0, 4.0):
        lose(module)
        assert wrapper.retryAfter() == delay
        clock.advance(delay)
        module.attempts[-1].callback(None)
    clock.advance(100)
    lose(module)
    assert (wrapper.retryAfter(), wrapper.attempts) == (1.0, 0)
    recover(clock, module)


def test_lost_before_it_is_drained(clock: Clock) -> None:
    """
    A module that is lost as soon as it is ready gets no calls, and nobody learns that
    it was ready.
    """
    losses = [succeed(None), Deferred[None]()]
    module, wrapper, proxy = wrap(clock, whenLost=lambda: losses.pop(0))
    result = resultOf(wrapper.initialize())
    proxy.write(1)
    module.attempts[-1].callback(None)
    assert (wrapper.state, module.calls, result.pending) == (State.LOST, [], True)
    recover(clock, module)
    assert (module.calls, result.value) == ([("write", 1)], None)


def test_watching_that_fails(clock: Clock, loggedFailures: list[LogEvent]) -> None:
    """
    An attempt fails if whenLost() raises, or does not return a Deferred.
    """
    answers: list[Any] = [Trouble("cannot watch"), None, Deferred[None]()]

    def whenLost() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    _, wrapper, _ = wrap(clock, initialize=lambda: None, whenLost=whenLost)
    resultOf(wrapper.initialize())
    assert isinstance(wrapper.lastError, Trouble)
    clock.advance(1)
    assert str(wrapper.lastError) == "whenLost() returned None, not a Deferred"
    assert loggedFailures.pop()["log_failure"].value is wrapper.lastError
    clock.advance(1)
    assert wrapper.state is State.READY


@pytest.mark.parametrize("isFailed", [True, False])
def test_a_watch_that_is_always_the_same(clock: Clock, isFailed: bool) -> None:
    """
    If whenLost() returns the Deferred of the last loss, no attempt can succeed. The
    error explains this, and the module may be initialised by hand.
    """
    watch: Deferred[None] = Deferred()
    module, wrapper, proxy = wrap(clock, whenLost=lambda: watch)
    ready(module, wrapper)
    if isFailed:
        watch.errback(Trouble("cut off"))
    else:
        watch.callback(None)
    assert wrapper.state is State.LOST
    call = resultOf(proxy.write(1))
    recover(clock, module)
    assert wrapper.state is State.FAILED
    assert isinstance(call.error, InitializationFailed)
    assert "it must return a new one for each" in str(call.error.__cause__)
    watch = Deferred()
    resultOf(wrapper.initialize())
    module.attempts[-1].callback(None)
    assert wrapper.state is State.READY


def test_a_watch_that_outlives_a_reset(clock: Clock) -> None:
    """
    After a reset, whenLost() may return a Deferred of an earlier attempt that has not
    fired.
    """
    watch: Deferred[None] = Deferred()
    module, wrapper, _ = wrap(clock, whenLost=lambda: watch)
    ready(module, wrapper)
    wrapper.reset(Trouble("rotated"))
    module.closings[0].callback(None)
    module.attempts[1].callback(None)
    assert wrapper.state is State.READY
    watch.callback(None)
    assert (wrapper.state, wrapper.history.losses.count) == (State.LOST, 2)
    shut(wrapper)


def test_lost_again_and_again_by_new_watches(clock: Clock) -> None:
    """
    A new Deferred that has already fired is a loss like any other.
    """
    module, wrapper, _ = wrap(clock, whenLost=lambda: succeed(None))
    resultOf(wrapper.initialize())
    for losses in range(1, 4):
        module.attempts[-1].callback(None)
        assert wrapper.state is State.LOST
        assert wrapper.history.losses.count == losses
        clock.advance(1)
    shut(wrapper)


@pytest.mark.parametrize("end", ["close", "fail"])
@pytest.mark.parametrize("isLate", [True, False])
def test_a_watch_that_is_not_needed(clock: Clock, end: str, isLate: bool) -> None:
    """
    If whenLost() closes or fails the wrapper, the failure of its result is handled.
    """
    watches: list[Deferred[None]] = []

    def whenLost() -> Deferred[None]:
        if end == "close":
            resultOf(wrapper.close())
        else:
            wrapper.fail(Trouble("given up"))
        watches.append(Deferred() if isLate else fail(Trouble("closed")))
        return watches[-1]

    module, wrapper, _ = wrap(clock, whenLost=whenLost)
    resultOf(wrapper.initialize())
    module.attempts[0].callback(None)
    assert wrapper.state is (State.CLOSING if end == "close" else State.FAILED)
    if isLate and not watches[0].called:
        watches[0].errback(Trouble("closed"))
    shut(wrapper)


def test_watching_with_a_coroutine(clock: Clock) -> None:
    """
    whenLost() may be a coroutine function.
    """
    watches: list[Deferred[None]] = []

    async def whenLost() -> None:
        watches.append(Deferred())
        await watches[-1]

    module, wrapper, _ = wrap(clock, whenLost=whenLost)
    ready(module, wrapper)
    watches[0].callback(None)
    assert wrapper.state is State.LOST
    recover(clock, module)


def test_no_attempt_after_a_loss(clock: Clock) -> None:
    """
    If the policy raises after a loss, queued calls fail, and the loss is their cause.
    """

    def policy(attempts: int) -> float:
        raise Trouble("no more retries")

    module, wrapper, proxy = wrap(clock, replay=["read"], retryPolicy=policy)
    ready(module, wrapper)
    result = resultOf(proxy.read(1))
    cause = Trouble("connection lost")
    lose(module, cause)
    assert wrapper.state is State.FAILED
    assert isinstance(result.error, InitializationFailed)
    assert result.error.__cause__ is cause


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_watch_of_an_attempt_that_was_reset(clock: Clock, moment: str) -> None:
    """
    If whenLost() resets the wrapper and then returns a Deferred that the next attempt
    gets again, that Deferred reports one loss.
    """
    watch: Deferred[None] = Deferred()

    def whenLost() -> Deferred[None]:
        if wrapper.history.attempts.count == 1:
            wrapper.reset(Trouble("from inside"))
            if moment == "before":
                watch.callback(None)
        return watch

    module, wrapper, _ = wrap(clock, whenLost=whenLost, close=None, initialize=None)
    resultOf(wrapper.initialize())
    module.attempts[0].callback(None)
    for closing in module.closings:
        closing.callback(None)
    if moment == "during":
        watch.callback(None)
    module.attempts[-1].callback(None)
    if moment == "after":
        assert wrapper.state is State.READY
        watch.callback(None)
        assert (wrapper.state, wrapper.history.losses.count) == (State.LOST, 1)
    else:
        assert (wrapper.state, wrapper.history.losses.count) == (State.FAILED, 0)
        assert "the Deferred of the last loss" in str(wrapper.lastError)
    shut(wrapper)


@pytest.mark.parametrize("how", ["lost", "closed", "replayed"])
def test_no_coroutine_runs_on(clock: Clock, how: str) -> None:
    """
    A coroutine that has not ended is cancelled when its call ends at a loss or a close,
    or is repeated: nobody needs its result, and it might wait for ever.
    """
    cancelled: list[str] = []

    class Waiting(Module):
        async def compute(self, what: object) -> None:
            try:
                await Deferred()
            except CancelledError:
                cancelled.append(str(what))
                raise

    module = Waiting()
    replay = {"compute"} if how == "replayed" else set()
    wrapper = QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0, replay=replay)
    ready(module, wrapper)
    call = resultOf(wrapper.proxy.compute("a"))
    if how == "closed":
        shut(wrapper)
    else:
        lose(module)
        clock.advance(0)
        if how == "replayed":
            assert (call.pending, wrapper.pending) == (True, 1)
            shut(wrapper)
            assert isinstance(call.error, Closed)
            assert cancelled == ["a"]
            return
        shut(wrapper)
    assert isinstance(call.error, OutcomeUnknown)
    assert cancelled == ["a"]
