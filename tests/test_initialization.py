"""
Attempts: one at a time, again after a while, and not for ever.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs

from tsrv import (
    AsyncModule,
    Closed,
    InitializationFailed,
    QueueFull,
    QueuingWrapper,
    State,
    jitteredBackoff,
)

from .support import Module, Refused, Trouble, ready, resultOf, wrap


def test_initialize(clock: Clock) -> None:
    """
    The plain case: asked, waited for, ready.
    """
    wrapper = QueuingWrapper(AsyncModule(clock, 10), clock)
    assert wrapper.state is State.NEW
    waiting = resultOf(wrapper.whenInitialized())
    result = resultOf(wrapper.initialize())
    assert wrapper.state is State.INITIALIZING
    assert wrapper.attempts == 1
    clock.advance(10)
    assert (result.value, waiting.value, wrapper.state) == (None, None, State.READY)
    assert resultOf(wrapper.whenInitialized()).value is None
    assert resultOf(wrapper.initialize()).value is None


def test_waiting_does_not_initialize(clock: Clock) -> None:
    """
    Who only wants to know does not start anything.
    """
    module, wrapper, _ = wrap(clock)
    waiting = resultOf(wrapper.whenInitialized())
    assert (module.attempts, wrapper.state) == ([], State.NEW)
    ready(module, wrapper)
    assert waiting.value is None


def test_single_flight(clock: Clock) -> None:
    """
    However many ask, the module is initialised once, and one of them who gives
    up, be it the first, does so for himself.
    """
    module, wrapper, _ = wrap(clock)
    asked = [wrapper.initialize() for _ in range(3)]
    results = [resultOf(each) for each in asked]
    asked[0].cancel()
    assert isinstance(results[0].error, CancelledError)
    assert len(module.attempts) == 1
    assert not module.attempts[0].called
    module.attempts[0].callback(None)
    assert [each.value for each in results[1:]] == [None, None]


def test_cancelled_waiters_are_forgotten(clock: Clock) -> None:
    """
    A health check that waits for a second, every second, must not fill the
    memory.
    """
    _, wrapper, _ = wrap(clock)
    for _ in range(20_000):
        waiting = wrapper.whenInitialized()
        waiting.addErrback(lambda _: None)
        waiting.cancel()
    assert isinstance(wrapper.whenInitialized(), Deferred)
    assert len(wrapper._waiters) == 1


def test_waiters_have_a_limit(clock: Clock) -> None:
    """
    Waiting for the module is a queue too.
    """
    module, wrapper, _ = wrap(clock, limit=1)
    waiting = [resultOf(wrapper.whenInitialized()) for _ in range(10_000)]
    one = resultOf(wrapper.initialize())
    assert isinstance(one.error, QueueFull)
    assert str(one.error) == "10000 wait already for Module to become ready"
    module.attempts[-1].callback(None)
    assert all(each.value is None for each in waiting)


def test_one_waiter_cancels_another(clock: Clock) -> None:
    """
    The second is cancelled while the first is being told: it hears of one
    thing only.
    """
    module, wrapper, _ = wrap(clock)
    first, second = wrapper.whenInitialized(), wrapper.whenInitialized()
    result = resultOf(second)
    first.addCallback(lambda _: second.cancel())
    ready(module, wrapper)
    assert isinstance(result.error, CancelledError)


def test_transient_failure(clock: Clock) -> None:
    """
    It is tried again, after as long as the policy says, and nobody who waits
    hears of it.
    """
    asked: list[int] = []

    def policy(attempts: int) -> float:
        asked.append(attempts)
        return 2.0**attempts

    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    result = resultOf(wrapper.initialize())
    for attempts, delay in ((1, 2.0), (2, 4.0), (3, 8.0)):
        module.attempts[-1].errback(Trouble(attempts))
        assert (wrapper.state, wrapper.attempts) == (State.RETRYING, attempts)
        assert isinstance(wrapper.lastError, Trouble)
        assert wrapper.retryAfter() == delay
        clock.advance(delay - 0.5)
        assert (len(module.attempts), wrapper.retryAfter()) == (attempts, 0.5)
        clock.advance(0.5)
        assert len(module.attempts) == attempts + 1
        assert wrapper.state is State.INITIALIZING
    module.attempts[-1].callback(None)
    assert (result.value, wrapper.lastError) == (None, None)
    assert asked == [1, 2, 3]


@pytest.mark.parametrize(
    "initialize",
    [
        lambda: fail(Trouble("a Deferred")),
        lambda: raising(Trouble("raised")),
        lambda: coroutine(Trouble("a coroutine")),
    ],
)
def test_ways_to_fail(clock: Clock, initialize: Callable[[], object]) -> None:
    """
    In whichever way a module reports that it has failed, it is heard.
    """
    wrapper = QueuingWrapper(
        Module(), clock, initialize=initialize, retryPolicy=lambda _: 1.0
    )
    result = resultOf(wrapper.initialize())
    assert (wrapper.state, result.pending) == (State.RETRYING, True)
    assert isinstance(wrapper.lastError, Trouble)
    wrapper.close().addErrback(lambda _: None)
    clock.advance(10)


def raising(error: Exception) -> None:
    """
    Raise an error.
    """
    raise error


async def coroutine(error: Exception | None) -> None:
    """
    Raise an error, if there is one, later.
    """
    await succeed(None)
    if error is not None:
        raise error


@pytest.mark.parametrize(
    "initialize", [lambda: None, lambda: succeed(1), lambda: coroutine(None)]
)
def test_ways_to_succeed(clock: Clock, initialize: Callable[[], object]) -> None:
    """
    In whichever way a module reports success, be it at once, it is ready.
    """
    wrapper = QueuingWrapper(Module(), clock, initialize=initialize)
    assert resultOf(wrapper.initialize()).value is None
    assert wrapper.state is State.READY


def test_fatal_failure(clock: Clock) -> None:
    """
    What no retry will cure is told at once to everyone who waits, with its
    cause, and to everyone who comes later.
    """
    module, wrapper, proxy = wrap(clock, fatal=Refused)
    call, asked, waiting = (
        resultOf(proxy.write(1)),
        resultOf(wrapper.initialize()),
        resultOf(wrapper.whenInitialized()),
    )
    cause = Refused("wrong password")
    module.attempts[-1].errback(cause)
    assert (wrapper.state, clock.getDelayedCalls()) == (State.FAILED, [])
    late = resultOf(proxy.write(2)), resultOf(wrapper.whenInitialized())
    for result in (call, asked, waiting, *late):
        assert isinstance(result.error, InitializationFailed)
        assert result.error.__cause__ is cause
        assert str(result.error) == "Module failed to initialize, for good"
    stats = wrapper.stats
    assert (stats.failed, stats.rejected, module.calls) == (1, 1, [])


def test_initialized_again_after_a_fatal_failure(clock: Clock) -> None:
    """
    Somebody may have cured what no retry would: it begins anew, and calls are
    held again.
    """
    module, wrapper, proxy = wrap(clock, fatal=[Refused])
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Refused())
    asked, call = resultOf(wrapper.initialize()), resultOf(proxy.write(1))
    assert (wrapper.state, wrapper.attempts, wrapper.lastError) == (
        State.INITIALIZING,
        1,
        None,
    )
    module.attempts[-1].callback(None)
    module.answers[-1].callback("done")
    assert (asked.value, call.value) == (None, "done")


def test_initialized_again_from_the_errback(clock: Clock) -> None:
    """
    The errback of a call is a place to try again; who waits since then waits
    for the new attempt, and does not get the end of the old one.
    """
    module, wrapper, proxy = wrap(clock, fatal=[Refused])
    again: list[object] = []
    call = proxy.write(1)
    call.addErrback(lambda _: again.append(resultOf(wrapper.initialize())))
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Refused())
    assert wrapper.state is State.INITIALIZING
    module.attempts[-1].callback(None)
    (result,) = again
    assert result.value is None  # type: ignore[attr-defined]


def test_the_cause_is_that_of_the_attempt_that_failed(clock: Clock) -> None:
    """
    When many have to be told, and it is tried again before all have been, the
    last of them still hears why I{his} attempt failed.
    """
    module, wrapper, proxy = wrap(clock, fatal=[Refused])
    results = []
    for number in range(9):
        call = proxy.write(number)
        results.append(resultOf(call))
        call.addBoth(lambda _: setattr(clock, "rightNow", clock.rightNow + 0.002))
    resultOf(wrapper.initialize())
    cause = Refused()
    module.attempts[-1].errback(cause)
    assert results[-1].pending
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Refused("another"))
    clock.pump([0, 0, 0])
    assert all(each.error.__cause__ is cause for each in results)


def test_attempt_that_hangs(clock: Clock) -> None:
    """
    An attempt without an answer is given up after a while, cancelled, and made
    again.
    """
    module, wrapper, _ = wrap(clock, attemptTimeout=5.0)
    resultOf(wrapper.initialize())
    clock.advance(5)
    assert module.attempts[0].called
    assert wrapper.state is State.RETRYING
    assert str(wrapper.lastError) == "no answer within 5 seconds"
    clock.advance(1)
    module.attempts[1].callback(None)
    assert (wrapper.state, clock.getDelayedCalls()) == (State.READY, [])


def wrapStubborn(
    clock: Clock, late: Deferred[None]
) -> tuple[Module, QueuingWrapper[Module]]:
    """
    Wrap a module whose first attempt, when it is cancelled, ends as C{late}
    does.
    """
    module = Module()

    def initialize() -> Deferred[None]:
        attempt = module.initialize()
        if len(module.attempts) == 1:
            attempt.addErrback(lambda _: late)
        return attempt

    return module, QueuingWrapper(
        module,
        clock,
        initialize=initialize,
        attemptTimeout=5.0,
        retryPolicy=lambda _: 1.0,
        fatal=[Refused],
    )


def test_late_success_of_an_abandoned_attempt(clock: Clock) -> None:
    """
    An attempt that was given up, and that succeeds all the same later, says
    nothing about the one that is being made now.
    """
    late: Deferred[None] = Deferred()
    module, wrapper = wrapStubborn(clock, late)
    result = resultOf(wrapper.initialize())
    wrapper.proxy.write(1)
    clock.pump([5, 1])
    late.callback(None)
    assert (wrapper.state, result.pending) == (State.INITIALIZING, True)
    assert module.calls == []
    module.attempts[1].callback(None)
    assert (wrapper.state, result.value) == (State.READY, None)


def test_late_failure_of_an_abandoned_attempt(clock: Clock) -> None:
    """
    Nor does its failure.
    """
    late: Deferred[None] = Deferred()
    module, wrapper = wrapStubborn(clock, late)
    resultOf(wrapper.initialize())
    clock.pump([5, 1])
    module.attempts[1].callback(None)
    late.errback(Refused())
    assert wrapper.state is State.READY


def test_closed_from_its_own_initialize(clock: Clock) -> None:
    """
    A module that finds, while it is being initialised, that the program has to
    end, may say so.
    """
    module = Module()
    closed: list[object] = []

    def initialize() -> Deferred[None]:
        closed.append(wrapper.close())
        return module.initialize()

    wrapper = QueuingWrapper(module, clock, initialize=initialize)
    result = resultOf(wrapper.initialize())
    assert isinstance(result.error, Closed)
    assert module.attempts[0].called
    module.closings[0].callback(None)
    assert wrapper.state is State.CLOSED


@pytest.mark.parametrize(
    "policy", [lambda _: 1 / 0, lambda _: -1.0, lambda _: float("nan"), lambda _: "1"]
)
def test_policy_that_makes_no_sense(
    clock: Clock, policy: Callable[[int], float]
) -> None:
    """
    A policy that raises, or answers no number of seconds, ends the attempts
    instead of the program; the cause is the module's own error all the same.
    """
    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    result = resultOf(wrapper.initialize())
    with capturedLogs() as logged:
        module.attempts[-1].errback(Trouble("the cause"))
    assert isinstance(result.error, InitializationFailed)
    assert isinstance(result.error.__cause__, Trouble)
    assert "retry policy of Module" in logged[0]["log_format"].format(**logged[0])


def test_policies_of_twisted(clock: Clock) -> None:
    """
    What ClientService takes is taken here.
    """
    policy = backoffPolicy(initialDelay=3.0, factor=1.0, jitter=lambda: 0.0)
    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Trouble())
    assert wrapper.retryAfter() == 3.0
    clock.advance(3)
    assert wrapper.state is State.INITIALIZING
    wrapper.close()
    module.closings[-1].callback(None)


def test_default_policy(clock: Clock) -> None:
    """
    Without any policy it is tried again soon, and less often later.
    """
    module, wrapper, _ = wrap(clock, retryPolicy=None)
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Trouble())
    delay = wrapper.retryAfter()
    assert delay is not None
    assert 0.25 <= delay <= 0.5
    wrapper.close()
    module.closings[-1].callback(None)


def test_log(clock: Clock) -> None:
    """
    Who reads the log sees each failure, why, and when it is tried again.
    """
    module, wrapper, _ = wrap(clock, fatal=[Refused])
    resultOf(wrapper.initialize())
    with capturedLogs() as logged:
        module.attempts[-1].errback(Trouble("refused"))
        clock.advance(1)
        module.attempts[-1].errback(Refused("wrong password"))
    assert [line(event) for event in logged] == [
        "Module failed to initialize (attempt 1), next attempt in 1.0 s: "
        "Trouble: refused",
        "Module failed to initialize, and will not be tried again: "
        "Refused: wrong password",
    ]
    assert [event["log_level"] for event in logged] == [LogLevel.warn, LogLevel.error]


def line(event: LogEvent) -> str:
    """
    @return: What the log says.
    """
    text: str = event["log_format"].format(**event)
    return text


def test_backoff_grows_up_to_its_limit() -> None:
    """
    Each delay is longer than the one before, until they are long enough; also
    after more attempts than a float can count.
    """
    policy = jitteredBackoff(1.0, 10.0, 2.0, jitter=0)
    delays = [policy(attempts) for attempts in (0, 1, 2, 3, 4, 10**6)]
    assert delays == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_backoff_spreads_in_proportion() -> None:
    """
    The longer the delay the more of it is chance, so that many clients that
    have waited long do not come back together.
    """
    low = jitteredBackoff(1.0, 64.0, 2.0, jitter=0.5, random=lambda: 1.0)
    high = jitteredBackoff(1.0, 64.0, 2.0, jitter=0.5, random=lambda: 0.0)
    spreads = [high(attempts) - low(attempts) for attempts in (0, 2, 6)]
    assert spreads == [0.5, 2.0, 32.0]
    assert high(6) == 64.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initialDelay": 0}, "initialDelay"),
        ({"initialDelay": 2, "maxDelay": 1}, "initialDelay"),
        ({"factor": 0.5}, "factor"),
        ({"jitter": 1.5}, "jitter"),
        ({"jitter": -0.5}, "jitter"),
    ],
)
def test_backoff_that_makes_no_sense(options: dict[str, float], message: str) -> None:
    """
    A backoff that never waits, or shrinks, is no backoff.
    """
    with pytest.raises(ValueError, match=message):
        jitteredBackoff(**options)  # type: ignore[arg-type]
