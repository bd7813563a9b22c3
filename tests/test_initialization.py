"""
Attempts, retries and backoff.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from tsrv import (
    AsyncModule,
    InitializationFailed,
    QueuingWrapper,
    State,
    jitteredBackoff,
)

from .support import (
    Refused,
    Trouble,
    inState,
    lose,
    messageOf,
    ready,
    recover,
    resultOf,
    shut,
    wrap,
)


def test_initialize(clock: Clock) -> None:
    """
    initialize() and whenInitialized() fire when the module is ready; whenInitialized()
    does not start an attempt.
    """
    wrapper = QueuingWrapper(AsyncModule(clock, 10), clock)
    waiting = resultOf(wrapper.whenInitialized())
    assert (wrapper.state, wrapper.attempts) == (State.NEW, 0)
    result = resultOf(wrapper.initialize())
    assert (wrapper.state, wrapper.attempts) == (State.INITIALIZING, 1)
    clock.advance(10)
    assert (result.value, waiting.value, wrapper.state) == (None, None, State.READY)
    assert resultOf(wrapper.whenInitialized()).value is None
    assert resultOf(wrapper.initialize()).value is None


def test_transient_failure(clock: Clock) -> None:
    """
    After a failure the next attempt begins after the delay of the policy, and waiters
    keep waiting.
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
    module.attempts[-1].callback(None)
    assert (result.value, wrapper.lastError) == (None, None)
    assert asked == [1, 2, 3]


def raising() -> None:
    """
    Raise an error.
    """
    raise Trouble("raised")


async def coroutine(error: Exception | None = None) -> None:
    """
    Raise an error, if there is one.
    """
    await succeed(None)
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("initialize", "state"),
    [
        (lambda: fail(Trouble("a Deferred")), State.RETRYING),
        (raising, State.RETRYING),
        (lambda: coroutine(Trouble("a coroutine")), State.RETRYING),
        (lambda: None, State.READY),
        (lambda: succeed(1), State.READY),
        (coroutine, State.READY),
    ],
)
def test_ways_to_end(
    clock: Clock, initialize: Callable[[], object], state: State
) -> None:
    """
    An attempt may end by a Deferred, by returning or raising, or by a coroutine.
    """
    _, wrapper, _ = wrap(clock, initialize=initialize)
    result = resultOf(wrapper.initialize())
    assert (wrapper.state, result.pending) == (state, state is State.RETRYING)
    assert isinstance(wrapper.lastError, Trouble) is result.pending
    shut(wrapper)


def test_fatal_failure(clock: Clock) -> None:
    """
    A fatal error fails queued calls, waiters and later calls, and is their cause.
    """
    module, wrapper, proxy = wrap(clock, fatal=Refused, name="the users")
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
        assert str(result.error) == "the users failed for good"
    stats = wrapper.stats
    assert (stats.failed, stats.rejected, module.calls) == (1, 1, [])


def test_the_cause_is_that_of_the_attempt_that_failed(clock: Clock) -> None:
    """
    Every queued call gets the cause of its own attempt, even if the next attempt begins
    before all calls have failed.
    """
    module, wrapper, proxy = inState(clock, State.INITIALIZING)
    results = []
    for number in range(9):
        call = proxy.write(number)
        results.append(resultOf(call))
        call.addBoth(lambda _: setattr(clock, "rightNow", clock.rightNow + 0.002))
    cause = Refused()
    module.attempts[-1].errback(cause)
    assert results[-1].pending
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Refused("another"))
    clock.pump([0, 0, 0])
    assert all(each.error.__cause__ is cause for each in results)


def test_attempt_that_hangs(clock: Clock) -> None:
    """
    An attempt is cancelled after attemptTimeout, and the next one follows.
    """
    module, wrapper, _ = wrap(clock, attemptTimeout=5.0)
    resultOf(wrapper.initialize())
    clock.advance(5)
    assert (module.attempts[0].called, wrapper.state) == (True, State.RETRYING)
    assert str(wrapper.lastError) == "initialize() did not end within 5 s"
    clock.advance(1)
    module.attempts[1].callback(None)
    assert (wrapper.state, clock.getDelayedCalls()) == (State.READY, [])


@pytest.mark.parametrize(
    "policy", [lambda _: 1 / 0, lambda _: -1.0, lambda _: float("nan"), lambda _: "1"]
)
def test_policy_that_makes_no_sense(
    clock: Clock, policy: Callable[[int], float]
) -> None:
    """
    A policy that raises, or returns anything but seconds, ends the attempts; the cause
    is the module's own error.
    """
    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    result = resultOf(wrapper.initialize())
    with capturedLogs() as logged:
        module.attempts[-1].errback(Trouble("the cause"))
    assert isinstance(result.error, InitializationFailed)
    assert isinstance(result.error.__cause__, Trouble)
    assert "Module: the retry policy ends the attempts" in messageOf(logged[0])


def test_default_policy(clock: Clock) -> None:
    """
    By default the second attempt follows within half a second.
    """
    _, wrapper, _ = inState(clock, State.RETRYING, retryPolicy=None)
    delay = wrapper.retryAfter()
    assert delay is not None
    assert 0.25 <= delay <= 0.5
    shut(wrapper)


def test_log(clock: Clock) -> None:
    """
    The log has a line for each failure, with its reason and the next attempt, and for
    the recovery. A first attempt that succeeds at once has no line.
    """
    module, wrapper, proxy = wrap(clock, name="the users")
    with capturedLogs() as logged:
        ready(module, wrapper)
        clock.advance(60)
        lose(module, Trouble("cut off"))
        resultOf(proxy.write(1))
        clock.advance(1)
        module.attempts[-1].errback(Trouble("refused"))
        recover(clock, module)
        lose(module)
        recover(clock, module)
        resultOf(wrapper.close())
        module.closings[0].errback(Trouble("disk full"))
    assert [messageOf(event) for event in logged] == [
        "the users: lost (Trouble: cut off); retry in 1.0 s",
        "the users: attempt 2 failed (Trouble: refused); retry in 1.0 s",
        "the users: recovered after 2.0 s, 2 attempts, 1 call queued",
        "the users: lost (no reason given); retry in 1.0 s",
        "the users: recovered after 1.0 s, 1 attempt, 0 calls queued",
        "the users: failed to close (Trouble: disk full)",
    ]
    assert {event["log_namespace"] for event in logged} == {"tsrv.wrapper"}


def test_log_of_a_failure_for_good(clock: Clock) -> None:
    """
    A fatal failure has one line. An attempt after a failed one has a line when it
    succeeds.
    """
    module, wrapper, _ = wrap(clock, fatal=[Refused], name="the users")
    resultOf(wrapper.initialize())
    with capturedLogs() as logged:
        module.attempts[-1].errback(Trouble("refused"))
        clock.advance(1)
        module.attempts[-1].errback(Refused("wrong password"))
        resultOf(wrapper.initialize())
        module.attempts[-1].errback(Trouble("refused"))
        recover(clock, module)
    assert [messageOf(event) for event in logged] == [
        "the users: attempt 1 failed (Trouble: refused); retry in 1.0 s",
        "the users: failed for good (Refused: wrong password)",
        "the users: attempt 3 failed (Trouble: refused); retry in 1.0 s",
        "the users: ready after 1.0 s, 2 attempts, 0 calls queued",
    ]
    levels = [LogLevel.warn, LogLevel.error, LogLevel.warn, LogLevel.info]
    assert [event["log_level"] for event in logged] == levels


def test_backoff_grows_up_to_its_limit() -> None:
    """
    Delays grow by the factor up to the maximum, after any number of attempts.
    """
    policy = jitteredBackoff(1.0, 10.0, 2.0, jitter=0)
    delays = [policy(attempts) for attempts in (0, 1, 2, 3, 4, 10**6)]
    assert delays == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


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
    A backoff that never waits, or that shrinks, is refused.
    """
    with pytest.raises(ValueError, match=message):
        jitteredBackoff(**options)  # type: ignore[arg-type]
