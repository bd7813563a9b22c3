"""
lazy: the first call initialises the module.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest
from twisted.internet.defer import fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv import Closed, InitializationFailed, QueueFull, QueuingWrapper, State

from .support import Module, Refused, Trouble, resultOf, shut, wrap


@pytest.mark.parametrize("method", ["write", "read", "compute", "count"])
def test_the_first_call_initializes_the_module(clock: Clock, method: str) -> None:
    """
    Before the first call nothing begins; then the module is initialised once, and all
    calls run in order.
    """
    module, wrapper, proxy = wrap(clock, lazy=True, replay=["read"])
    asked = resultOf(wrapper.whenInitialized())
    assert (wrapper.state, module.attempts, asked.pending) == (State.NEW, [], True)
    first = resultOf(getattr(proxy, method)(1))
    assert wrapper.state is State.INITIALIZING
    second = resultOf(proxy.count(2))
    (attempt,) = module.attempts
    attempt.callback(None)
    for answer in module.answers:
        answer.callback(1)
    assert module.calls == [(method, 1), ("count", 2)]
    assert (first.value, second.value, asked.value) == (1, 2, None)


def test_a_module_that_is_ready_at_once(clock: Clock) -> None:
    """
    If the module is ready at once, the first call runs before it returns, and still
    returns a Deferred.
    """
    module, wrapper, proxy = wrap(clock, lazy=True, initialize=lambda: None)
    call: Any = proxy.count(1)
    assert (wrapper.state, resultOf(call).value) == (State.READY, 1)
    assert proxy.count(2) == 2
    assert [what for _, what in module.calls] == [1, 2]


@pytest.mark.parametrize("how", ["raises", "fails"])
def test_a_module_that_fails_at_once(clock: Clock, how: str) -> None:
    """
    If the module fails at once, the first call gets the failure like any queued call.
    Nothing is raised, and no unhandled error is left.
    """

    def initialize() -> Any:
        if how == "raises":
            raise Refused("no")
        return fail(Refused("no"))

    _, wrapper, proxy = wrap(clock, lazy=True, initialize=initialize, fatal=Refused)
    result = resultOf(proxy.write(1))
    assert isinstance(result.error, InitializationFailed)
    assert wrapper.state is State.FAILED
    assert isinstance(resultOf(proxy.write(2)).error, InitializationFailed)
    assert wrapper.attempts == 1


def test_a_transient_failure(clock: Clock) -> None:
    """
    After a failure a lazy module is initialised again, like any other.
    """
    module, wrapper, proxy = wrap(clock, lazy=True)
    result = resultOf(proxy.write(1))
    module.attempts[0].errback(Trouble())
    clock.advance(1)
    module.attempts[1].callback(None)
    module.answers[0].callback("done")
    assert (result.value, wrapper.state) == ("done", State.READY)


def test_initialized_by_hand(clock: Clock) -> None:
    """
    A lazy module may be initialised before its first call.
    """
    module, wrapper, proxy = wrap(clock, lazy=True)
    wrapper.initialize()
    resultOf(proxy.write(1))
    (attempt,) = module.attempts
    attempt.callback(None)
    assert module.calls == [("write", 1)]


@pytest.mark.parametrize("isCalled", [True, False])
def test_the_context_of_the_initialisation(clock: Clock, isCalled: bool) -> None:
    """
    The module is initialised in the context in which its wrapper was made, and not in
    the context of the first caller. The call itself runs in the context of its caller.
    """
    name: ContextVar[str] = ContextVar("name", default="none")
    seen: list[str] = []

    async def initialize() -> None:
        seen.append(name.get())
        name.set("module")

    def ask() -> Any:
        return wrapper.initialize()

    name.set("server")
    lazy = ask if isCalled else True
    module, wrapper, proxy = wrap(clock, initialize=initialize, lazy=lazy)
    module.count = lambda what: seen.append(name.get())  # type: ignore[method-assign]
    name.set("first request")
    resultOf(proxy.count(1))
    assert name.get() == "first request"
    name.set("second request")
    proxy.count(2)
    assert seen == ["server", "first request", "second request"]


def test_looking_at_the_proxy_is_not_a_call(clock: Clock) -> None:
    """
    Looking up a method initialises nothing.
    """
    _, wrapper, proxy = wrap(clock, lazy=True)
    kept = proxy.write
    dir(proxy)
    repr(proxy)
    assert wrapper.state is State.NEW
    resultOf(kept(1))
    assert wrapper.state is State.INITIALIZING
    shut(wrapper)


def test_closed_before_the_first_call(clock: Clock) -> None:
    """
    A module that was never used is not closed, and a call after close() does not
    initialise it.
    """
    module, wrapper, proxy = wrap(clock, lazy=True)
    assert resultOf(wrapper.close()).value is None
    assert isinstance(resultOf(proxy.write(1)).error, Closed)
    assert (module.attempts, module.closings) == ([], [])


def test_failed_before_the_first_call(clock: Clock) -> None:
    """
    A call after fail() gets the reason, and initialises nothing.
    """
    module, wrapper, proxy = wrap(clock, lazy=True)
    wrapper.fail(Trouble("no"))
    assert isinstance(resultOf(proxy.write(1)).error, InitializationFailed)
    assert module.attempts == []


def test_a_first_call_that_is_rejected(clock: Clock) -> None:
    """
    If limit=0 refuses the first call, it still initialises the module for the next one.
    """
    module, wrapper, proxy = wrap(clock, lazy=True, limit=0)
    assert isinstance(resultOf(proxy.write(1)).error, QueueFull)
    assert wrapper.state is State.INITIALIZING
    module.attempts[0].callback(None)
    assert proxy.count(2) == 2


def test_paused_before_the_first_call(clock: Clock) -> None:
    """
    A pause does not keep the first call from initialising the module.
    """
    module, wrapper, proxy = wrap(clock, lazy=True)
    wrapper.pause()
    resultOf(proxy.write(1))
    module.attempts[0].callback(None)
    assert (wrapper.state, module.calls) == (State.PAUSED, [])
    wrapper.resume()
    assert module.calls == [("write", 1)]


@pytest.mark.parametrize("returned", [None, succeed(1), fail(Trouble("no"))])
def test_somebody_else_initializes_the_module(
    clock: Clock, loggedFailures: list[LogEvent], returned: Any
) -> None:
    """
    A callable is called once, at the first queued call, and may initialise the module
    at any later time.
    """
    asked: list[int] = []

    def ask() -> Any:
        asked.append(wrapper.pending)
        return returned

    module, wrapper, proxy = wrap(clock, lazy=ask)
    results = [resultOf(proxy.write(number)) for number in range(3)]
    assert (asked, wrapper.state, wrapper.pending) == ([1], State.NEW, 3)
    wrapper.initialize()
    module.attempts[0].callback(None)
    assert [what for _, what in module.calls] == [0, 1, 2]
    assert all(each.pending for each in results)
    assert len(asked) == 1
    shut(wrapper)
    if returned is not None:
        returned.addErrback(lambda _: None)
    loggedFailures.clear()


@pytest.mark.parametrize("error", [Trouble, SystemExit])
def test_a_callable_that_raises(
    clock: Clock, loggedFailures: list[LogEvent], error: type[BaseException]
) -> None:
    """
    An error of the callable is logged; the call stays queued.
    """

    def ask() -> None:
        raise error

    module, wrapper, proxy = wrap(clock, lazy=ask)
    resultOf(proxy.write(1))
    assert wrapper.pending == 1
    assert [each["log_failure"].type for each in loggedFailures] == [error]
    loggedFailures.clear()
    wrapper.initialize()
    module.attempts[0].callback(None)
    assert module.calls == [("write", 1)]


@pytest.mark.parametrize("act", ["initialize", "close", "fail", "call"])
def test_what_the_callable_may_do(clock: Clock, act: str) -> None:
    """
    The callable may initialise, close or fail the wrapper, or call it.
    """

    def ask() -> None:
        if act == "initialize":
            wrapper.initialize()
        elif act == "close":
            wrapper.close()
        elif act == "fail":
            wrapper.fail(Trouble("no"))
        else:
            results.append(resultOf(wrapper.proxy.write(2)))

    module = Module()
    wrapper = QueuingWrapper(module, clock, lazy=ask)
    results = []
    results.append(resultOf(wrapper.proxy.write(1)))
    if act == "call":
        assert (wrapper.state, wrapper.pending) == (State.NEW, 2)
        wrapper.initialize()
    if act in ("call", "initialize"):
        module.attempts[0].callback(None)
        assert module.calls[0] == ("write", 1)
        shut(wrapper)
    assert not any(each.pending for each in results)
