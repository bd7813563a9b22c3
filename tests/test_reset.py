"""
reset(): the module is closed and initialised again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs

from tsrv import (
    Closed,
    IllegalTransition,
    InitializationFailed,
    QueuingWrapper,
    State,
)
from tsrv.queuing.history import Loss

from .support import (
    Module,
    Refused,
    Trouble,
    inState,
    lose,
    messageOf,
    ready,
    resultOf,
    shut,
    wrap,
)

WORKING = [State.READY, State.DRAINING, State.PAUSED]


@pytest.mark.parametrize("state", WORKING)
def test_a_working_module(clock: Clock, state: State) -> None:
    """
    A working module counts as lost with the reason, is closed, and is then initialised
    at once; calls are queued meanwhile.
    """
    module, wrapper, proxy = inState(clock, state)
    reason = Trouble("rotated")
    clock.advance(7)
    wrapper.reset(reason)
    assert (wrapper.state, wrapper.lastError) == (State.LOST, reason)
    assert wrapper.retryAfter() is None
    assert list(wrapper.history.losses) == [
        Loss(7.0, None, "Trouble", "Trouble: rotated")
    ]
    call, asked = resultOf(proxy.write("late")), resultOf(wrapper.initialize())
    assert (len(module.closings), len(module.attempts)) == (1, 1)
    clock.advance(2)
    assert (wrapper.state, asked.pending, call.pending) == (State.LOST, True, True)
    module.closings[0].callback(None)
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[1].callback(None)
    assert asked.value is None
    assert [each.recovered for each in wrapper.history.losses] == [9.0]
    if state is State.PAUSED:
        assert wrapper.state is State.PAUSED
        wrapper.resume()
    clock.advance(0)
    if state is State.DRAINING:
        module.answers[-1].callback(None)
        clock.advance(0)
    assert (wrapper.state, module.calls[-1]) == (State.READY, ("write", "late"))
    module.answers[-1].callback("done")
    assert call.value == "done"
    shut(wrapper)


def test_a_second_failure_follows_the_policy(clock: Clock) -> None:
    """
    The attempt after a reset has no delay; the retry policy decides about further ones.
    """
    module, wrapper, _ = inState(clock, State.READY)
    wrapper.reset(Trouble("rotated"))
    module.closings[0].callback(None)
    module.attempts[1].errback(Trouble("refused"))
    assert (wrapper.state, wrapper.retryAfter()) == (State.RETRYING, 1.0)
    clock.advance(1)
    module.attempts[2].callback(None)
    assert wrapper.state is State.READY


def test_an_attempt_in_progress(clock: Clock) -> None:
    """
    A reset during an attempt cancels it: the module is closed, and the next attempt
    begins at once.
    """
    module, wrapper, proxy = inState(clock, State.INITIALIZING, attemptTimeout=5.0)
    call, asked = resultOf(proxy.write(1)), resultOf(wrapper.initialize())
    wrapper.reset(Trouble("rotated"))
    assert (wrapper.state, module.attempts[0].called) == (State.RETRYING, True)
    assert wrapper.retryAfter() is None
    assert str(wrapper.lastError) == "rotated"
    assert wrapper.history.losses.count == 0
    clock.advance(6)
    assert (len(module.attempts), asked.pending) == (1, True)
    module.closings[0].callback(None)
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[1].callback(None)
    module.answers[0].callback("done")
    assert (call.value, asked.value) == ("done", None)


@pytest.mark.parametrize("state", [State.RETRYING, State.LOST])
def test_a_delay(clock: Clock, state: State) -> None:
    """
    A reset during a delay begins the next attempt at once; nothing is closed.
    """
    module, wrapper, _ = inState(clock, state, retryPolicy=lambda _: 60.0)
    attempts = len(module.attempts)
    wrapper.reset(Trouble("rotated"))
    assert (wrapper.state, str(wrapper.lastError)) == (State.INITIALIZING, "rotated")
    assert (len(module.attempts), module.closings) == (attempts + 1, [])
    module.attempts[-1].callback(None)
    assert (wrapper.state, clock.getDelayedCalls()) == (State.READY, [])


@pytest.mark.parametrize(
    "state", [State.NEW, State.FAILED, State.CLOSING, State.CLOSED]
)
def test_a_reset_that_makes_no_sense(clock: Clock, state: State) -> None:
    """
    In other states reset() raises IllegalTransition and changes nothing.
    """
    module, wrapper, _ = inState(clock, state)
    before = (wrapper.since, wrapper.lastError, wrapper.stats)
    closings = len(module.closings)
    clock.advance(1)
    with pytest.raises(IllegalTransition):
        wrapper.reset(Trouble("rotated"))
    assert (wrapper.since, wrapper.lastError, wrapper.stats) == before
    assert (wrapper.state, len(module.closings)) == (state, closings)
    shut(wrapper)


# The closing.


@pytest.mark.parametrize("state", [State.READY, State.INITIALIZING])
@pytest.mark.parametrize("how", ["fails", "hangs", "raises", "none"])
def test_a_closing_that_does_not_work(
    clock: Clock, loggedFailures: list[LogEvent], state: State, how: str
) -> None:
    """
    The next attempt begins when the closing fails, or after closeTimeout. If the module
    has no close(), the attempt begins at once.
    """
    closings: list[Deferred[None]] = []

    def close() -> Deferred[None]:
        if how == "raises":
            raise Trouble("disk full")
        closings.append(Deferred())
        return closings[-1]

    options: dict[str, Any] = {"close": close, "closeTimeout": 3.0}
    if how == "none":
        options["close"] = bool
    module, wrapper, _ = inState(clock, state, **options)
    wrapper.reset(Trouble("rotated"))
    if how in ("fails", "hangs"):
        assert len(module.attempts) == 1
    if how == "fails":
        closings[0].errback(Trouble("disk full"))
    elif how == "hangs":
        clock.advance(3)
        assert closings[0].called
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[1].callback(None)
    assert wrapper.state is State.READY
    loggedFailures.clear()


@pytest.mark.parametrize("state", [State.READY, State.INITIALIZING])
def test_closed_during_a_reset(clock: Clock, state: State) -> None:
    """
    close() during a reset waits for the closing in progress, and does not close the
    module again.
    """
    module, wrapper, proxy = inState(clock, state)
    wrapper.reset(Trouble("rotated"))
    call = resultOf(proxy.write(1))
    closed = resultOf(wrapper.close())
    assert isinstance(call.error, Closed)
    assert (wrapper.state, closed.pending) == (State.CLOSING, True)
    (closing,) = module.closings
    closing.callback(None)
    assert (wrapper.state, closed.value) == (State.CLOSED, None)
    assert (len(module.closings), len(module.attempts)) == (1, 1)


def test_closed_during_a_reset_that_hangs(clock: Clock) -> None:
    """
    If the closing in progress hangs, close() ends after closeTimeout.
    """
    module, wrapper, _ = inState(clock, State.READY, closeTimeout=3.0)
    wrapper.reset(Trouble("rotated"))
    clock.advance(2)
    closed = resultOf(wrapper.close())
    clock.advance(3)
    assert isinstance(closed.error, TimeoutError)
    assert (wrapper.state, len(module.closings)) == (State.CLOSED, 1)


def test_failed_during_a_reset(clock: Clock) -> None:
    """
    fail() ends the reset: no further attempt follows, even after the module was closed.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    wrapper.reset(Trouble("rotated"))
    call = resultOf(proxy.write(1))
    wrapper.fail(Refused("given up"))
    assert isinstance(call.error, InitializationFailed)
    assert wrapper.state is State.FAILED
    module.closings[0].callback(None)
    assert (wrapper.state, len(module.attempts)) == (State.FAILED, 1)


def test_initialized_again_during_a_closing(clock: Clock) -> None:
    """
    initialize() after fail() waits for the closing in progress.
    """
    module, wrapper, _ = inState(clock, State.READY)
    wrapper.reset(Trouble("rotated"))
    wrapper.fail(Refused("given up"))
    asked = resultOf(wrapper.initialize())
    for closing in module.closings:
        closing.callback(None)
    assert len(module.attempts) == 2
    module.attempts[1].callback(None)
    assert (asked.value, wrapper.state) == (None, State.READY)


@pytest.mark.parametrize("state", [State.READY, State.INITIALIZING])
def test_reset_during_a_reset(clock: Clock, state: State) -> None:
    """
    A second reset during the closing does not close the module again.
    """
    module, wrapper, _ = inState(clock, state)
    wrapper.reset(Trouble("rotated"))
    now = wrapper.state
    wrapper.reset(Trouble("again"))
    assert (wrapper.state, len(module.attempts)) == (now, 1)
    (closing,) = module.closings
    closing.callback(None)
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[1].callback(None)
    assert wrapper.state is State.READY


@pytest.mark.parametrize("where", ["pause", "canceller"])
@pytest.mark.parametrize("isClosing", [True, False])
def test_a_reset_within_a_reset(clock: Clock, where: str, isClosing: bool) -> None:
    """
    The module is closed once before it is initialised again, even if foreign code
    resets it in the middle of the reset.
    """
    once = iter([True])
    steps: list[str] = []
    closing: Deferred[None] = Deferred()

    def again(_: object) -> None:
        if next(once, False):
            wrapper.reset(Trouble("again"))

    def initialize() -> Any:
        steps.append("initialize")
        return Deferred(again) if where == "canceller" else None

    def close() -> Any:
        steps.append("close")
        return closing if isClosing else None

    _, wrapper, proxy = wrap(clock, initialize=initialize, close=close, replay=["read"])
    resultOf(wrapper.initialize())
    if where == "pause":
        resultOf(proxy.read(1))
        wrapper.pause().addCallback(again)
    wrapper.reset(Trouble("rotated"))
    if isClosing:
        assert steps == ["initialize", "close"]
        closing.callback(None)
    assert steps == ["initialize", "close", "initialize"]
    steps.clear()
    resultOf(wrapper.close())
    assert (steps, wrapper.state) == (["close"], State.CLOSED)
    clock.advance(0)


@pytest.mark.parametrize("act", ["close", "fail", "begin again", "resume", "lose"])
@pytest.mark.parametrize("isClosing", [True, False])
@pytest.mark.parametrize("isPinged", [True, False])
def test_acts_within_a_reset(
    clock: Clock, act: str, isClosing: bool, isPinged: bool
) -> None:
    """
    Whatever foreign code does in the middle of a reset, or of a loss that a ping
    detects, takes effect. The module is closed once, before it is initialised again.
    """
    steps: list[str] = []
    closing: Deferred[None] = Deferred()
    pings = iter([True])

    def ping() -> None:
        if next(pings, False):
            raise Trouble("no pong")

    def initialize() -> None:
        steps.append("initialize")

    def close() -> Any:
        steps.append("close")
        return closing if isClosing else None

    module, wrapper, proxy = wrap(
        clock,
        initialize=initialize,
        close=close,
        replay=["read"],
        ping=ping,
        pingInterval=5.0,
    )

    def idle(_: object) -> None:
        if act == "close":
            resultOf(wrapper.close())
        elif act == "lose":
            lose(module)
        elif act == "resume":
            wrapper.resume()
        else:
            wrapper.fail(Refused("given up"))
        if act == "begin again":
            resultOf(wrapper.initialize())

    wrapper.initialize()
    call = resultOf(proxy.read(1))
    wrapper.pause().addCallback(idle)
    if isPinged:
        clock.advance(5)
    else:
        wrapper.reset(Trouble("rotated"))
    if isClosing:
        assert steps == ["initialize", "close"]
        closing.callback(None)
    if act in ("close", "fail"):
        assert steps == ["initialize", "close"]
        assert wrapper.state is (State.CLOSED if act == "close" else State.FAILED)
    else:
        assert steps == ["initialize", "close", "initialize"]
        assert wrapper.state is (State.READY if act == "resume" else State.PAUSED)
    resultOf(wrapper.close())
    clock.advance(0)
    assert not call.pending


def test_each_change_is_observed(clock: Clock) -> None:
    """
    Observers are notified of the state after each reset, also if the module is still
    being closed for an earlier one.
    """
    module, wrapper, _ = inState(clock, State.READY)
    seen: list[State] = []
    wrapper.addObserver(lambda: seen.append(wrapper.state))
    wrapper.reset(Trouble("rotated"))
    for _ in range(2):
        wrapper.fail(Refused("given up"))
        resultOf(wrapper.initialize())
        wrapper.reset(Trouble("again"))
    again = [State.FAILED, State.INITIALIZING, State.RETRYING]
    assert seen == [State.LOST, *again, *again]
    (closing,) = module.closings
    closing.callback(None)
    assert seen[-1] is wrapper.state is State.INITIALIZING
    assert (str(wrapper.lastError), len(module.attempts)) == ("again", 2)
    shut(wrapper)


@pytest.mark.parametrize("state", [State.RETRYING, State.LOST, State.INITIALIZING])
@pytest.mark.parametrize("isClosing", [True, False])
def test_the_reason_of_each_reset(clock: Clock, state: State, isClosing: bool) -> None:
    """
    Each reason is logged, and the latest one is the cause of queued calls that fail.
    """
    start = State.READY if isClosing and state is State.LOST else state
    _, wrapper, proxy = inState(clock, start, timeout=5.0)
    if isClosing:
        wrapper.reset(Trouble("first"))
    call = resultOf(proxy.write(1))
    with capturedLogs() as logged:
        wrapper.reset(Trouble("second"))
    assert [messageOf(each) for each in logged] == ["Module: reset (Trouble: second)"]
    assert str(wrapper.lastError) == "second"
    clock.advance(5)
    assert str(call.error.__cause__) == "second"
    shut(wrapper)


# Late events of the old connection.


@pytest.mark.parametrize("when", ["closing", "initializing", "ready"])
def test_the_loss_of_the_old_connection(clock: Clock, when: str) -> None:
    """
    whenLost() of the connection that was reset is not a further loss.
    """
    module, wrapper, _ = inState(clock, State.READY)
    wrapper.reset(Trouble("rotated"))
    if when == "closing":
        module.watches[0].callback(None)
    module.closings[0].callback(None)
    if when == "initializing":
        module.watches[0].errback(Trouble("closed"))
    module.attempts[1].callback(None)
    if when == "ready":
        module.watches[0].callback(None)
    assert (wrapper.state, wrapper.history.losses.count) == (State.READY, 1)
    lose(module)
    assert wrapper.state is State.LOST
    shut(wrapper)


@pytest.mark.parametrize("queued", [True, False])
def test_a_method_that_resets_its_module_repeatedly(clock: Clock, queued: bool) -> None:
    """
    A method may reset its module each time that it is called. If the module recovers at
    once, the call is made again at once. Cancelling it cancels its last run.
    """

    class Client:
        def __init__(self) -> None:
            self.answers: list[Deferred[int]] = []

        def initialize(self) -> None:
            pass

        def read(self) -> Deferred[int]:
            answer: Deferred[int] = Deferred()
            self.answers.append(answer)
            if len(self.answers) % 3:
                wrapper.reset(Trouble("stale"))
            return answer

    client = Client()
    wrapper = QueuingWrapper(client, clock, replay=["read"])
    if not queued:
        wrapper.initialize()
    answered = resultOf(wrapper.proxy.read())
    wrapper.initialize()
    assert len(client.answers) == 3
    client.answers[2].callback(3)
    assert answered.value == 3
    cancelled = wrapper.proxy.read()
    assert len(client.answers) == 6
    cancelled.cancel()
    assert [each.called for each in client.answers] == [False, False, True] * 2
    assert isinstance(resultOf(cancelled).error, CancelledError)
    assert wrapper.inProgress == 0


@pytest.mark.parametrize("queued", [True, False])
def test_a_coroutine_that_resets_its_module(clock: Clock, queued: bool) -> None:
    """
    A coroutine that resets its module before it awaits anything, and is made again, is
    cancelled.
    """

    class Client:
        def __init__(self) -> None:
            self.answers: list[Deferred[int]] = []

        def initialize(self) -> None:
            pass

        async def read(self) -> int:
            answer: Deferred[int] = Deferred()
            self.answers.append(answer)
            if len(self.answers) == 1:
                wrapper.reset(Trouble("stale"))
            return await answer

    client = Client()
    wrapper = QueuingWrapper(client, clock, replay=["read"])
    if not queued:
        wrapper.initialize()
    call: Any = wrapper.proxy.read()
    wrapper.initialize()
    clock.advance(0)
    assert [each.called for each in client.answers] == [True, False]
    client.answers[1].callback(1)
    assert resultOf(call).value == 1


@pytest.mark.parametrize("queued", [True, False])
def test_calls_that_are_safe_to_run_twice(clock: Clock, queued: bool) -> None:
    """
    Calls that are safe to run twice are repeated, before later calls.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    if not queued:
        ready(module, wrapper)
    call = resultOf(proxy.read(1))
    ready(module, wrapper)
    wrapper.reset(Trouble("rotated"))
    proxy.count(2)
    module.answers[0].errback(Trouble("closed"))
    module.closings[0].callback(None)
    module.attempts[1].callback(None)
    assert module.calls == [("read", 1), ("read", 1), ("count", 2)]
    module.answers[1].callback("done")
    assert call.value == "done"


@pytest.mark.parametrize("where", ["observer", "method", "close", "callback"])
def test_reset_by_what_the_wrapper_calls(clock: Clock, where: str) -> None:
    """
    An observer, the module, and callbacks may reset the wrapper.
    """
    once = iter([where])

    def act(here: str) -> None:
        if here == where and next(once, None):
            wrapper.reset(Trouble("rotated"))

    class Acting(Module):
        def count(self, what: object) -> object:
            act("method")
            return super().count(what)

        def close(self) -> Any:
            act("close")
            super().close()

    module = Acting()
    wrapper = QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0)
    calls: list[Any] = [wrapper.proxy.count(number) for number in range(3)]
    calls[0].addCallback(lambda _: act("callback"))
    results = [resultOf(each) for each in calls]
    wrapper.addObserver(
        lambda: act("observer") if wrapper.state is State.DRAINING else None
    )
    ready(module, wrapper)
    if where == "close":
        wrapper.reset(Trouble("first"))
    for attempt in module.attempts[1:]:
        attempt.callback(None)
    clock.pump([0, 0])
    assert wrapper.state is State.READY
    assert not any(each.pending for each in results)
    started = [what for _, what in module.calls]
    assert started == sorted(started)  # type: ignore[type-var]


@pytest.mark.parametrize("isLost", [True, False])
def test_reset_by_the_retry_policy(clock: Clock, isLost: bool) -> None:
    """
    The retry policy may reset the wrapper, which begins an attempt at once.
    """
    once = iter([True])

    def policy(attempts: int) -> float:
        if next(once, False):
            wrapper.reset(Trouble("at once"))
        return 60.0

    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    if isLost:
        ready(module, wrapper)
        lose(module)
    else:
        resultOf(wrapper.initialize())
        module.attempts[0].errback(Trouble("refused"))
        module.closings[0].callback(None)
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[1].callback(None)
    assert (wrapper.state, clock.getDelayedCalls()) == (State.READY, [])


@pytest.mark.parametrize("act", ["close", "fail", "reset"])
def test_a_canceller_acts_during_a_reset(clock: Clock, act: str) -> None:
    """
    The canceller of the cancelled attempt may close, fail or reset the wrapper.
    """
    once = iter([True])

    def cancel(_: object) -> None:
        if not next(once, False):
            return
        if act == "close":
            resultOf(wrapper.close())
        elif act == "fail":
            wrapper.fail(Refused("given up"))
        else:
            wrapper.reset(Trouble("again"))

    attempts: list[Deferred[None]] = []

    def initialize() -> Deferred[None]:
        attempts.append(Deferred(cancel))
        return attempts[-1]

    module, wrapper, _ = wrap(clock, initialize=initialize)
    asked = resultOf(wrapper.initialize())
    wrapper.reset(Trouble("rotated"))
    for closing in module.closings:
        closing.callback(None)
    if act == "fail":
        assert wrapper.state is State.FAILED
        assert isinstance(asked.error, InitializationFailed)
    elif act == "close":
        assert (wrapper.state, len(module.closings)) == (State.CLOSED, 1)
    else:
        attempts[-1].callback(None)
        assert (wrapper.state, len(attempts)) == (State.READY, 2)
    shut(wrapper)


@pytest.mark.parametrize("observe", [State.LOST, State.INITIALIZING])
@pytest.mark.parametrize("act", ["close", "fail", "pause"])
def test_an_observer_acts_during_a_reset(
    clock: Clock, observe: State, act: str
) -> None:
    """
    Everything that an observer does during a reset takes effect.
    """
    module, wrapper, _ = inState(clock, State.READY)
    acts: dict[str, Callable[[], object]] = {
        "close": wrapper.close,
        "fail": lambda: wrapper.fail(Trouble("given up")),
        "pause": wrapper.pause,
    }

    def look() -> None:
        if wrapper.state is observe:
            wrapper.removeObserver(look)
            acts[act]()

    wrapper.addObserver(look)
    wrapper.reset(Trouble("rotated"))
    for closing in module.closings:
        closing.callback(None)
    if act == "pause":
        module.attempts[-1].callback(None)
        assert wrapper.state is State.PAUSED
    elif act == "fail":
        assert wrapper.state is State.FAILED
    else:
        for closing in module.closings:
            if not closing.called:
                closing.callback(None)
        assert wrapper.state is State.CLOSED
    shut(wrapper)
