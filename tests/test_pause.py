"""
pause() and resume(): the calls of a healthy module are held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv import Closed, OutcomeUnknown, QueueTimeout, QueuingWrapper, State
from tsrv.queuing.history import Pause

from .support import (
    Module,
    Trouble,
    inState,
    lose,
    ready,
    recover,
    resultOf,
    shut,
    wrap,
)


@pytest.mark.parametrize("settles", [True, False])
def test_calls_wait_until_the_module_is_resumed(clock: Clock, settles: bool) -> None:
    """
    While the module is paused, calls are queued; resume() starts them in order, before
    later calls.
    """
    module, wrapper, proxy = inState(clock, State.READY, settles=settles)
    paused = resultOf(wrapper.pause())
    assert (wrapper.state, wrapper.paused, paused.value) == (State.PAUSED, True, None)
    results = [resultOf(proxy.write(number)) for number in range(3)]
    assert (module.calls, wrapper.pending) == ([], 3)
    wrapper.resume()
    assert (wrapper.state, wrapper.paused) == (State.READY, False)
    results.append(resultOf(proxy.write(3)))
    assert [what for _, what in module.calls] == [0, 1, 2, 3]
    for answer in module.answers:
        answer.callback("done")
    assert [each.value for each in results] == ["done"] * 4


def test_queued_calls_expire_as_ever(clock: Clock) -> None:
    """
    A queued call of a paused module expires as usual.
    """
    _, wrapper, proxy = inState(clock, State.PAUSED, timeout=5.0)
    result = resultOf(proxy.write(1))
    clock.advance(5)
    assert isinstance(result.error, QueueTimeout)
    assert result.error.state is State.PAUSED
    shut(wrapper)


# Holders.


def test_each_holder_holds(clock: Clock) -> None:
    """
    The module is paused until each holder has resumed it; a holder that pauses twice
    resumes once.
    """
    _, wrapper, _ = inState(clock, State.READY)
    for by in (None, "backup", "backup", 3):
        wrapper.pause(by)
        assert wrapper.isPausedBy(by)
    for by in (None, "backup"):
        wrapper.resume(by)
        assert not wrapper.isPausedBy(by)
        assert (wrapper.state, wrapper.paused) == (State.PAUSED, True)
    wrapper.resume(3)
    assert (wrapper.state, wrapper.paused) == (State.READY, False)


@pytest.mark.parametrize("state", State)
def test_resume_without_a_pause_has_no_effect(clock: Clock, state: State) -> None:
    """
    resume() by somebody who did not pause has no effect.
    """
    _, wrapper, _ = inState(clock, state)
    wrapper.resume("somebody else")
    assert wrapper.state is state
    assert wrapper.paused is (state is State.PAUSED)
    shut(wrapper)


def test_pausing(clock: Clock) -> None:
    """
    C{async with wrapper.pausing()} waits for calls in progress, and resumes at the end;
    nested pauses do not affect each other.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    resultOf(proxy.write(1))
    steps: list[Deferred[None]] = [Deferred(), Deferred()]
    seen: list[str] = []

    async def work(name: str, step: Deferred[None]) -> None:
        async with wrapper.pausing():
            seen.append(name)
            await step

    results = [
        resultOf(Deferred.fromCoroutine(work(name, step)))
        for name, step in zip("ab", steps, strict=True)
    ]
    assert (wrapper.state, seen) == (State.PAUSED, [])
    module.answers[0].callback(None)
    assert seen == ["a", "b"]
    steps[1].callback(None)
    assert (results[1].value, wrapper.state) == (None, State.PAUSED)
    steps[0].errback(Trouble("in the body"))
    assert str(results[0].error) == "in the body"
    assert (wrapper.state, wrapper.paused) == (State.READY, False)


@pytest.mark.parametrize("end", ["cancelled", "closed", "whenIdle fails"])
def test_pausing_that_does_not_begin(clock: Clock, end: str) -> None:
    """
    The module is resumed even if the body is never reached.
    """
    waits: list[Deferred[None]] = []

    def whenIdle() -> Deferred[None]:
        waits.append(Deferred())
        return waits[-1]

    module, wrapper, proxy = inState(clock, State.READY, whenIdle=whenIdle)

    async def work() -> None:
        async with wrapper.pausing():
            raise AssertionError("must not be reached")

    working = Deferred.fromCoroutine(work())
    result = resultOf(working)
    if end == "cancelled":
        working.cancel()
        assert isinstance(result.error, CancelledError)
    elif end == "closed":
        wrapper.close()
        module.closings[0].callback(None)
        assert isinstance(result.error, Closed)
    else:
        waits[0].errback(Trouble("no idea"))
        assert not result.pending
    assert wrapper.paused is False
    if end == "cancelled":
        assert wrapper.state is State.READY
        assert module.calls == []
        resultOf(proxy.write(1))
        assert module.calls == [("write", 1)]


# Waiting for the calls in progress.


@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize("how", ["answered", "failed", "cancelled", "lost"])
def test_the_calls_in_progress(clock: Clock, queued: bool, how: str) -> None:
    """
    The Deferred of pause() fires when the last call in progress has ended, however it
    ends.
    """
    module, wrapper, proxy = wrap(clock)
    if not queued:
        ready(module, wrapper)
    calls = [proxy.write(number) for number in range(2)]
    results = [resultOf(each) for each in calls]
    ready(module, wrapper)
    paused = resultOf(wrapper.pause())
    assert (wrapper.inProgress, paused.pending) == (2, True)
    module.answers[1].callback("done")
    assert (wrapper.inProgress, paused.pending) == (1, True)
    if how == "answered":
        module.answers[0].callback("done")
    elif how == "failed":
        module.answers[0].errback(Trouble())
    elif how == "cancelled":
        calls[0].cancel()
    else:
        lose(module)
        clock.advance(0)
        assert isinstance(results[0].error, OutcomeUnknown)
    assert (wrapper.inProgress, paused.value) == (0, None)
    assert results[0].pending is False
    shut(wrapper)


@pytest.mark.parametrize("own", [True, False])
def test_a_module_that_counts_its_calls(clock: Clock, own: bool) -> None:
    """
    pause() also waits for the module's whenIdle(). It is called after calls have begun
    to queue, and is not proxied.
    """

    class Counting(Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle: list[Deferred[None]] = []

        def whenIdle(self) -> Deferred[None]:
            assert wrapper.state is State.PAUSED
            self.idle.append(Deferred())
            return self.idle[-1]

        def other(self) -> Deferred[None]:
            return self.whenIdle()

    module = Counting()
    options: dict[str, Any] = {} if own else {"whenIdle": module.other}
    wrapper = QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0, **options)
    for _ in range(2):
        with pytest.raises(AttributeError):
            getattr(wrapper.proxy, "whenIdle" if own else "other")
        ready(module, wrapper)
    resultOf(wrapper.proxy.write(1))
    paused = resultOf(wrapper.pause())
    module.answers[0].callback(None)
    assert paused.pending
    for idle in module.idle:
        idle.callback(None)
    assert paused.value is None
    shut(wrapper)


@pytest.mark.parametrize("reason", ["busy", Trouble])
def test_whenIdle_that_fails_without_an_exception(clock: Clock, reason: Any) -> None:
    """
    If whenIdle() fails with something that is not an exception, such as a string,
    waiters get an exception.
    """
    idle: list[Deferred[None]] = []

    def whenIdle() -> Deferred[None]:
        idle.append(Deferred())
        return idle[-1]

    async def pausing() -> None:
        async with wrapper.pausing():
            raise AssertionError("must not be reached")

    _, wrapper, _ = inState(clock, State.READY, whenIdle=whenIdle)
    result = resultOf(Deferred.fromCoroutine(pausing()))
    idle[0].errback(reason)
    assert type(result.error) is RuntimeError
    assert str(reason) in str(result.error)
    assert wrapper.state is State.READY
    shut(wrapper)


@pytest.mark.parametrize("isRaised", [True, False])
def test_whenIdle_that_fails(
    clock: Clock, loggedFailures: list[LogEvent], isRaised: bool
) -> None:
    """
    If whenIdle() fails, the module is still paused. pause() fails with the error, and
    resume() works.
    """

    def whenIdle() -> Deferred[None]:
        if isRaised:
            raise Trouble("no idea")
        return fail(Trouble("no idea"))

    module, wrapper, proxy = inState(clock, State.READY, whenIdle=whenIdle)
    paused = resultOf(wrapper.pause())
    assert str(paused.error) == "no idea"
    assert wrapper.state is State.PAUSED
    resultOf(proxy.write(1))
    wrapper.resume()
    assert (wrapper.state, module.calls) == (State.READY, [("write", 1)])
    loggedFailures.clear()


@pytest.mark.parametrize("end", ["loss", "reset", "close"])
def test_whenIdle_that_never_fires(clock: Clock, end: str) -> None:
    """
    A loss, a reset and a close end the wait for whenIdle().
    """
    module, wrapper, _ = inState(clock, State.READY, whenIdle=Deferred)
    paused = resultOf(wrapper.pause())
    if end == "loss":
        lose(module)
        assert paused.value is None
    elif end == "reset":
        wrapper.reset(Trouble("rotated"))
        assert paused.value is None
    shut(wrapper)
    assert end != "close" or isinstance(paused.error, Closed)


@pytest.mark.parametrize("state", [State.NEW, State.INITIALIZING, State.LOST])
def test_whenIdle_of_a_module_that_is_not_ready(clock: Clock, state: State) -> None:
    """
    whenIdle() is not called while the module is not ready.
    """
    asked: list[int] = []
    _, wrapper, _ = inState(clock, state, whenIdle=lambda: asked.append(1))
    assert resultOf(wrapper.pause()).value is None
    assert asked == []
    shut(wrapper)


def test_cancelling_the_waiting(clock: Clock) -> None:
    """
    Cancelling pause() affects neither the pause nor other waiters.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    resultOf(proxy.write(1))
    first = wrapper.pause("first")
    results = [resultOf(first), resultOf(wrapper.pause("second"))]
    first.cancel()
    assert isinstance(results[0].error, CancelledError)
    assert wrapper.state is State.PAUSED
    module.answers[0].callback(None)
    assert results[1].value is None
    wrapper.resume("second")
    assert wrapper.state is State.PAUSED
    wrapper.resume("first")
    assert wrapper.state is State.READY


def test_resumed_while_somebody_waits(clock: Clock) -> None:
    """
    resume() ends the wait for calls in progress.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    resultOf(proxy.write(1))
    paused = resultOf(wrapper.pause())
    wrapper.resume()
    assert isinstance(paused.error, CancelledError)
    module.answers[0].callback(None)
    assert wrapper.state is State.READY


@pytest.mark.parametrize("holders", [1, 2, 3])
@pytest.mark.parametrize("isWaiting", [True, False])
def test_paused_again_when_the_pause_ends(
    clock: Clock, holders: int, isWaiting: bool
) -> None:
    """
    A caller who pauses the module again when the pause ends holds it: no call runs
    until the last of these callers resumes it.
    """
    idle: list[Deferred[Any]] = []
    again: list[object] = []

    def pauseAgain(failure: Any = None) -> None:
        again.append(object())
        resultOf(wrapper.pause(again[-1]))

    def ask() -> Deferred[Any]:
        # The canceller of a pending whenIdle() runs first.
        first = not idle
        idle.append(Deferred(lambda _: pauseAgain() if first else None))
        return idle[-1]

    options: dict[str, Any] = {} if isWaiting else {"whenIdle": ask}
    module, wrapper, proxy = inState(clock, State.READY, **options)
    if isWaiting:
        resultOf(proxy.write(0))
    for holder in range(holders):
        wrapper.pause(holder).addErrback(pauseAgain)
    for holder in range(holders):
        resultOf(proxy.count(holder))
        assert (wrapper.state, again) == (State.PAUSED, [])
        wrapper.resume(holder)
    assert len(again) == holders + (not isWaiting)
    for each in again:
        assert (wrapper.state, wrapper.paused) == (State.PAUSED, True)
        assert (wrapper.pending, module.calls) == (holders, module.calls[:isWaiting])
        wrapper.resume(each)
    assert (wrapper.state, wrapper.paused, wrapper.pending) == (State.READY, False, 0)
    assert [each.ended is None for each in wrapper.history.pauses] == [False] * 2
    shut(wrapper)
    clock.advance(0)


@pytest.mark.parametrize("act", ["close", "reset", "lose", "resume", "call"])
def test_what_a_caller_may_do_when_the_pause_ends(clock: Clock, act: str) -> None:
    """
    A callback of a pause that ends may do anything else, too: no call overtakes
    another, and each ends once.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    results = [resultOf(proxy.write(0))]

    def ended(_: object) -> None:
        if act == "close":
            wrapper.close()
        elif act == "reset":
            wrapper.reset(Trouble("rotated"))
        elif act == "lose":
            lose(module)
        elif act == "resume":
            resultOf(wrapper.pause("again"))
            wrapper.resume("again")
        else:
            results.append(resultOf(proxy.count(2)))

    wrapper.pause().addErrback(ended)
    results.append(resultOf(proxy.count(1)))
    wrapper.resume()
    expected = {"close": State.CLOSING, "reset": State.LOST, "lose": State.LOST}
    assert wrapper.state is expected.get(act, State.READY)
    if wrapper.state is State.READY:
        queued = [1, 2] if act == "call" else [1]
        assert [what for _, what in module.calls] == [0, *queued]
    shut(wrapper)
    clock.advance(0)
    assert not any(each.pending for each in results)


@pytest.mark.parametrize("end", ["answered", "lost"])
@pytest.mark.parametrize("act", ["resume", "close", "reset", "pause"])
def test_what_waiters_may_do(clock: Clock, end: str, act: str) -> None:
    """
    A callback of pause() may do anything to the wrapper, also at a loss: every call
    ends once.
    """
    module, wrapper, proxy = inState(clock, State.READY, replay=["read"])
    results = [resultOf(proxy.read(1)), resultOf(proxy.read(2))]
    paused = wrapper.pause()
    results.append(resultOf(proxy.count(3)))

    def idle(_: object) -> None:
        if act == "resume":
            wrapper.resume()
        elif act == "close":
            resultOf(wrapper.close())
        elif act == "pause":
            resultOf(wrapper.pause("another"))
        else:
            wrapper.reset(Trouble("rotated"))

    waiting = resultOf(paused.addCallback(idle))
    if end == "lost":
        lose(module)
    else:
        for answer in module.answers:
            answer.callback("done")
    assert waiting.value is None
    if act != "close":
        for closing in module.closings:
            closing.callback(None)
        if wrapper.state is State.LOST:
            clock.advance(1)
        if wrapper.state is State.INITIALIZING:
            module.attempts[-1].callback(None)
        wrapper.resume()
        wrapper.resume("another")
        assert wrapper.state is State.READY
        again = [1, 2] if end == "lost" else []
        assert [what for _, what in module.calls] == [1, 2, *again, 3]
    shut(wrapper)
    assert not any(each.pending for each in results)


# Other states.


@pytest.mark.parametrize(
    "state", [State.NEW, State.INITIALIZING, State.RETRYING, State.LOST, State.FAILED]
)
def test_a_module_that_is_not_ready(clock: Clock, state: State) -> None:
    """
    A pause takes effect when the module becomes ready: waiters are notified, and queued
    calls wait until the module is resumed.
    """
    module, wrapper, proxy = inState(clock, state)
    paused = resultOf(wrapper.pause())
    assert (wrapper.state, wrapper.paused, paused.value) == (state, True, None)
    asked = resultOf(wrapper.initialize())
    call = resultOf(proxy.write(1))
    if state in (State.RETRYING, State.LOST):
        clock.advance(1)
    module.attempts[-1].callback(None)
    assert (wrapper.state, asked.value) == (State.PAUSED, None)
    assert resultOf(wrapper.whenInitialized()).value is None
    assert (module.calls, call.pending) == ([], True)
    wrapper.resume()
    assert (wrapper.state, module.calls) == (State.READY, [("write", 1)])


@pytest.mark.parametrize(
    "state", [State.NEW, State.INITIALIZING, State.RETRYING, State.LOST]
)
def test_resumed_before_the_module_is_ready(clock: Clock, state: State) -> None:
    """
    A pause that has ended before the module is ready has no effect.
    """
    module, wrapper, proxy = inState(clock, state)
    resultOf(wrapper.pause())
    wrapper.resume()
    assert (wrapper.state, wrapper.paused) == (state, False)
    resultOf(wrapper.initialize())
    resultOf(proxy.write(1))
    if state in (State.RETRYING, State.LOST):
        clock.advance(1)
    module.attempts[-1].callback(None)
    assert (wrapper.state, module.calls) == (State.READY, [("write", 1)])


def test_paused_during_the_drain(clock: Clock) -> None:
    """
    A pause stops the drain, and resume() continues it.
    """
    module, wrapper, _ = inState(clock, State.DRAINING)
    paused = resultOf(wrapper.pause())
    assert (wrapper.state, paused.pending) == (State.PAUSED, True)
    module.answers[0].callback(None)
    clock.advance(0)
    assert (len(module.calls), paused.value) == (1, None)
    wrapper.resume()
    clock.advance(0)
    assert (wrapper.state, len(module.calls)) == (State.READY, 2)


@pytest.mark.parametrize("where", ["method", "callback", "observer"])
def test_paused_by_what_the_drain_calls(clock: Clock, where: str) -> None:
    """
    If a drained call pauses the module, the calls behind it wait, in order.
    """
    once = iter([where])

    def pause(here: str) -> None:
        if here == where and next(once, None):
            wrapper.pause()

    class Pausing(Module):
        def count(self, what: object) -> object:
            if what == 1:
                pause("method")
            return super().count(what)

    module = Pausing()
    wrapper = QueuingWrapper(module, clock)
    calls: list[Any] = [wrapper.proxy.count(number) for number in range(4)]
    calls[1].addCallback(lambda _: pause("callback"))
    wrapper.addObserver(
        lambda: pause("observer") if wrapper.state is State.DRAINING else None
    )
    ready(module, wrapper)
    assert wrapper.state is State.PAUSED
    assert len(module.calls) == (0 if where == "observer" else 2)
    resultOf(wrapper.proxy.count(4))
    wrapper.resume()
    assert wrapper.state is State.READY
    assert [what for _, what in module.calls] == list(range(5))


def test_a_loss_while_paused(clock: Clock) -> None:
    """
    A paused module that is lost is initialised as usual, and is paused again when it is
    ready.
    """
    module, wrapper, proxy = inState(clock, State.PAUSED)
    call = resultOf(proxy.write(1))
    lose(module, Trouble("cut off"))
    assert (wrapper.state, wrapper.paused) == (State.LOST, True)
    recover(clock, module)
    assert (wrapper.state, module.calls) == (State.PAUSED, [])
    wrapper.resume()
    module.answers[0].callback("done")
    assert call.value == "done"


def test_resumed_while_lost(clock: Clock) -> None:
    """
    A module that is resumed while it is lost drains its queue after the recovery.
    """
    module, wrapper, proxy = inState(clock, State.PAUSED)
    resultOf(proxy.write(1))
    lose(module)
    wrapper.resume()
    assert wrapper.state is State.LOST
    recover(clock, module)
    assert (wrapper.state, module.calls) == (State.READY, [("write", 1)])


def test_calls_that_are_made_again_wait(clock: Clock) -> None:
    """
    Calls in progress that are safe to run twice are repeated after resume(), before the
    queued calls.
    """
    module, wrapper, proxy = inState(clock, State.READY, replay=["read"])
    resultOf(proxy.read(1))
    paused = resultOf(wrapper.pause())
    resultOf(proxy.write(2))
    lose(module)
    recover(clock, module)
    assert (wrapper.state, len(module.calls), paused.value) == (State.PAUSED, 1, None)
    wrapper.resume()
    assert module.calls == [("read", 1), ("read", 1), ("write", 2)]
    shut(wrapper)


@pytest.mark.parametrize("isWaiting", [True, False])
def test_closed_while_paused(clock: Clock, isWaiting: bool) -> None:
    """
    close() ends a pause: queued calls, and waiters for calls in progress, get Closed.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    if isWaiting:
        resultOf(proxy.write(1))
    paused = resultOf(wrapper.pause())
    call = resultOf(proxy.write(2))
    wrapper.close()
    assert isinstance(call.error, Closed)
    module.closings[0].callback(None)
    assert wrapper.state is State.CLOSED
    if isWaiting:
        assert isinstance(paused.error, Closed)
    else:
        assert paused.value is None


@pytest.mark.parametrize("state", [State.CLOSING, State.CLOSED])
def test_paused_after_the_close(clock: Clock, state: State) -> None:
    """
    After the close, pause() fails with Closed, and resume() has no effect.
    """
    _, wrapper, _ = inState(clock, state)
    assert isinstance(resultOf(wrapper.pause()).error, Closed)
    wrapper.resume()
    assert (wrapper.state, wrapper.paused) == (state, False)
    shut(wrapper)


def test_failing_while_paused(clock: Clock) -> None:
    """
    A pause outlasts a fatal failure.
    """
    module, wrapper, proxy = inState(clock, State.NEW)
    wrapper.pause()
    wrapper.fail(Trouble("for good"))
    assert (wrapper.state, wrapper.paused) == (State.FAILED, True)
    resultOf(wrapper.initialize())
    module.attempts[-1].callback(None)
    assert wrapper.state is State.PAUSED
    proxy.write(1)
    wrapper.resume()
    assert module.calls == [("write", 1)]


def test_a_kept_method_queues_while_paused(clock: Clock) -> None:
    """
    A tracked method that was taken from the proxy in READY queues during a pause.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    kept = proxy.write
    wrapper.pause()
    resultOf(kept(1))
    assert (module.calls, wrapper.pending) == ([], 1)
    wrapper.resume()
    assert module.calls == [("write", 1)]


# Observers and history.


def test_observers_and_history(clock: Clock) -> None:
    """
    Each change of state notifies observers, and the history has each pause.
    """
    module, wrapper, _ = inState(clock, State.READY)
    seen: list[tuple[State, bool]] = []
    wrapper.addObserver(lambda: seen.append((wrapper.state, wrapper.paused)))
    clock.advance(10)
    wrapper.pause()
    wrapper.pause("again")
    assert list(wrapper.history.pauses) == [Pause(10.0, None)]
    clock.advance(2)
    wrapper.resume()
    wrapper.resume("again")
    assert list(wrapper.history.pauses) == [Pause(10.0, 12.0)]
    wrapper.pause()
    clock.advance(3)
    lose(module)
    assert list(wrapper.history.pauses)[1].begun == 12.0
    assert seen[:4] == [
        (State.PAUSED, True),
        (State.DRAINING, False),
        (State.READY, False),
        (State.PAUSED, True),
    ]
    shut(wrapper)
    assert wrapper.history.pauses.count == 2
    assert all(each.ended is not None for each in wrapper.history.pauses)


@pytest.mark.parametrize("act", ["resume", "close", "lose", "reset"])
def test_an_observer_acts_on_a_pause(clock: Clock, act: str) -> None:
    """
    An observer may resume, close or reset the wrapper when it sees PAUSED.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    acts: dict[str, Callable[[], object]] = {
        "resume": wrapper.resume,
        "close": wrapper.close,
        "lose": lambda: lose(module),
        "reset": lambda: wrapper.reset(Trouble("rotated")),
    }

    def observe() -> None:
        if wrapper.state is State.PAUSED:
            wrapper.removeObserver(observe)
            acts[act]()

    wrapper.addObserver(observe)
    paused = resultOf(wrapper.pause())
    expected = {
        "resume": State.READY,
        "close": State.CLOSING,
        "lose": State.LOST,
        "reset": State.LOST,
    }
    assert wrapper.state is expected[act]
    assert not paused.pending
    resultOf(proxy.write(1))
    shut(wrapper)
