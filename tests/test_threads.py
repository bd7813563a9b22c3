"""
Calls from threads other than the reactor's are refused at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.python import threadable

from tsrv import State

from .support import inState, resultOf, shut


@pytest.fixture(autouse=True)
def thisIsTheReactorsThread() -> Iterator[None]:
    """
    Register this thread as the one that runs the reactor.
    """
    before = threadable.ioThread
    threadable.registerAsIOThread()
    yield
    threadable.ioThread = before


def elsewhere(function: Callable[[], object]) -> BaseException | None:
    """
    Call a function in another thread.

    @return: The error that it raised.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


STATES = [State.NEW, State.INITIALIZING, State.DRAINING, State.LOST, State.PAUSED]


@pytest.mark.parametrize("method", ["write", "read", "compute", "count"])
@pytest.mark.parametrize("state", STATES)
def test_a_call_that_would_be_queued(clock: Clock, state: State, method: str) -> None:
    """
    A call from another thread that would be queued is refused: the error names
    callFromThread, nothing is queued or counted, and calls of the reactor's thread
    continue.
    """
    _, wrapper, proxy = inState(clock, state, replay=["read"])
    kept = getattr(proxy, method)
    before, timers = wrapper.stats, len(clock.getDelayedCalls())
    error = elsewhere(lambda: kept(1))
    assert isinstance(error, RuntimeError)
    assert "callFromThread" in str(error)
    assert wrapper.stats == before
    assert len(clock.getDelayedCalls()) == timers
    resultOf(kept(2))
    assert wrapper.pending == before.pending + 1
    shut(wrapper)


@pytest.mark.parametrize("state", [State.FAILED, State.CLOSING, State.CLOSED])
def test_a_call_that_would_be_refused(clock: Clock, state: State) -> None:
    """
    A call from another thread is refused also in a state that refuses calls, and not
    counted.
    """
    _, wrapper, proxy = inState(clock, state)
    error = elsewhere(lambda: proxy.write(1))
    assert isinstance(error, RuntimeError)
    assert "callFromThread" in str(error)
    assert wrapper.stats.rejected == 0
    shut(wrapper)


def test_a_call_that_would_be_tracked(clock: Clock) -> None:
    """
    A call from another thread is refused if tsrv tracks it.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    error = elsewhere(lambda: proxy.write(1))
    assert isinstance(error, RuntimeError)
    assert "callFromThread" in str(error)
    assert (module.calls, wrapper.inProgress) == ([], 0)


@pytest.mark.parametrize("isRunning", [True, False])
def test_cancelling_a_call(clock: Clock, isRunning: bool) -> None:
    """
    Cancelling a call from another thread is refused, and the call continues.
    """
    module, wrapper, proxy = inState(clock, State.INITIALIZING)
    call = proxy.write(1)
    if isRunning:
        module.attempts[-1].callback(None)
    error = elsewhere(call.cancel)
    assert isinstance(error, RuntimeError)
    assert "callFromThread" in str(error)
    assert not call.called
    assert (wrapper.pending, wrapper.inProgress) == (not isRunning, isRunning)
    if not isRunning:
        module.attempts[-1].callback(None)
    module.answers[0].callback("done")
    assert resultOf(call).value == "done"


@pytest.mark.parametrize(
    "name",
    ["initialize", "close", "pause", "resume", "fail", "reset"],
)
def test_the_wrappers_own_methods(clock: Clock, name: str) -> None:
    """
    Methods that change the state are refused in another thread, and change nothing.
    """
    _, wrapper, _ = inState(clock, State.NEW)
    arguments: list[Any] = [ValueError()] if name in ("fail", "reset") else []
    error = elsewhere(lambda: getattr(wrapper, name)(*arguments))
    assert isinstance(error, RuntimeError)
    assert "callFromThread" in str(error)
    assert (wrapper.state, wrapper.paused) == (State.NEW, False)


def test_without_a_reactor_any_thread_may_call(clock: Clock) -> None:
    """
    Before a reactor has run, tsrv does not know its thread, and any thread may call.
    """
    threadable.ioThread = None
    _, wrapper, proxy = inState(clock, State.NEW, timeout=None)
    assert elsewhere(lambda: resultOf(proxy.write(1))) is None
    assert wrapper.pending == 1
