"""
Callers that fire the Deferreds of their calls, and foreign code that raises during the
drain: the error is logged, and the other calls continue.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs

from tsrv import Closed, QueueTimeout, QueuingWrapper, State

from .support import Module, Trouble, lose, messageOf, ready, recover, resultOf, wrap


def fire(call: Deferred[Any], failing: bool) -> None:
    """
    Fire a Deferred.
    """
    if failing:
        call.errback(Trouble("mine"))
    else:
        call.callback("mine")


@pytest.mark.parametrize("failing", [True, False])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("end", ["drained", "closed", "failed", "expired", "cancelled"])
def test_a_queued_call_is_fired(
    clock: Clock, loggedFailures: list[LogEvent], failing: bool, which: int, end: str
) -> None:
    """
    A queued call that its caller fires is given up: it is never started. The other
    calls end as usual.
    """
    module, wrapper, proxy = wrap(clock, timeout=5.0)
    calls = [proxy.write(number) for number in range(3)]
    results = [resultOf(each) for each in calls]
    fire(calls[which], failing)
    others = [each for number, each in enumerate(results) if number != which]
    if end == "drained":
        ready(module, wrapper)
        started = [what for _, what in module.calls]
        assert started == [number for number in range(3) if number != which]
        for answer in module.answers:
            answer.callback("done")
        assert [each.value for each in others] == ["done"] * 2
        assert wrapper.state is State.READY
        assert wrapper.stats.started == 2
    elif end == "closed":
        assert resultOf(wrapper.close()).value is None
        assert all(isinstance(each.error, Closed) for each in others)
    elif end == "failed":
        wrapper.fail(Trouble("for good"))
        assert not any(each.pending for each in others)
    elif end == "expired":
        clock.advance(5)
        assert all(isinstance(each.error, QueueTimeout) for each in others)
    else:
        for call in calls:
            call.cancel()
        assert all(isinstance(each.error, CancelledError) for each in others)
        ready(module, wrapper)
        assert (wrapper.state, module.calls) == (State.READY, [])
    mine = results[which].error if failing else results[which].value
    assert str(mine) == "mine"
    assert wrapper.pending == 0
    assert wrapper.stats.submitted == 3
    loggedFailures.clear()


@pytest.mark.parametrize("failing", [True, False])
@pytest.mark.parametrize("method", ["write", "read"])
@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize("end", ["answered", "failed", "lost", "closed"])
def test_a_call_in_progress_is_fired(
    clock: Clock,
    loggedFailures: list[LogEvent],
    failing: bool,
    method: str,
    queued: bool,
    end: str,
) -> None:
    """
    A call in progress that its caller fires has ended: it is not repeated, and other
    calls end with their own results.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    if not queued:
        ready(module, wrapper)
    calls = [getattr(proxy, method)(number) for number in range(2)]
    results = [resultOf(each) for each in calls]
    ready(module, wrapper)
    fire(calls[0], failing)
    if end == "answered":
        module.answers[0].callback("done")
    elif end == "failed":
        module.answers[0].errback(Trouble("its own"))
        clock.advance(0)
    elif end == "lost":
        lose(module)
        assert wrapper.pending == (method == "read")
        recover(clock, module)
        again = [0, 1, 1] if method == "read" else [0, 1]
        assert [what for _, what in module.calls] == again
    else:
        closed = resultOf(wrapper.close())
        module.closings[0].callback(None)
        assert closed.value is None
    if end in ("answered", "failed"):
        module.answers[1].callback("done")
        assert results[1].value == "done"
        assert wrapper.state is State.READY
    elif end == "lost" and method == "read":
        module.answers[-1].callback("done")
        assert results[1].value == "done"
    assert not results[1].pending
    mine = results[0].error if failing else results[0].value
    assert str(mine) == "mine"
    loggedFailures.clear()


@pytest.mark.parametrize("queued", [True, False])
def test_firing_a_call_is_logged(clock: Clock, queued: bool) -> None:
    """
    If a call was fired by its caller, the log says so at the time when the call would
    have ended.
    """
    module, wrapper, proxy = wrap(clock)
    if not queued:
        ready(module, wrapper)
    call = proxy.write(1)
    call.callback("mine")
    with capturedLogs() as logged:
        ready(module, wrapper)
        for answer in module.answers:
            answer.callback("done")
    assert [messageOf(event) for event in logged] == [
        "the caller of write() has fired its Deferred, so the result is lost"
    ]


@pytest.mark.parametrize("concurrency", [None, 1])
def test_a_call_is_fired_during_the_drain(
    clock: Clock, loggedFailures: list[LogEvent], concurrency: int | None
) -> None:
    """
    The drain continues when the callback of one call fires the calls behind it.
    """
    module, wrapper, proxy = wrap(clock, concurrency=concurrency)
    calls: list[Any] = [proxy.count(number) for number in range(4)]
    calls[0].addCallback(lambda _: (calls[1].callback(0), calls[3].callback(0)))
    results = [resultOf(each) for each in calls]
    ready(module, wrapper)
    clock.pump([0, 0])
    assert [each.value for each in results[1:]] == [0, 2, 0]
    assert [what for _, what in module.calls] == [0, 2]
    assert (wrapper.state, wrapper.pending) == (State.READY, 0)
    loggedFailures.clear()


def test_the_last_queued_call_is_fired(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    A queued call that is fired does not wait for calls in progress.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    running, fired = resultOf(proxy.write(1)), proxy.write(2)
    fired.callback("mine")
    ready(module, wrapper)
    clock.advance(0)
    assert (wrapper.state, wrapper.pending) == (State.READY, 0)
    module.answers[0].callback("done")
    assert running.value == "done"
    loggedFailures.clear()


# Foreign code that raises.


@pytest.mark.parametrize("error", [Trouble, SystemExit, GeneratorExit])
@pytest.mark.parametrize("where", ["callback", "observer", "canceller", "method"])
def test_whatever_raises_does_not_stop_the_drain(
    clock: Clock,
    loggedFailures: list[LogEvent],
    error: type[BaseException],
    where: str,
) -> None:
    """
    Foreign code that raises does not stop the drain: the calls behind it run, in order.
    """

    def explode(*_: object) -> Any:
        raise error

    class Exploding(Module):
        def write(self, what: object) -> Deferred[Any]:
            super().write(what)
            if where == "method" and what == 0:
                explode()
            return Deferred(explode if where == "canceller" else None)

    module = Exploding()
    wrapper = QueuingWrapper(module, clock, concurrency=2)
    calls = [wrapper.proxy.write(0), wrapper.proxy.count(1), wrapper.proxy.count(2)]
    first: Any = calls[0]
    second: Any = calls[1]
    if where == "callback":
        second.addCallback(explode).addErrback(lambda _: None)
    elif where == "canceller":
        second.addCallback(lambda _: first.cancel())
    elif where == "observer":
        wrapper.addObserver(explode)
    first.addErrback(lambda _: None)
    ready(module, wrapper)
    clock.pump([0, 0])
    assert [what for _, what in module.calls] == [0, 1, 2]
    assert wrapper.state is State.READY
    first.cancel()
    loggedFailures.clear()
