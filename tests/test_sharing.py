"""
Modules that return the same Deferred several times: each caller gets its result, and
the Deferred keeps it for the module.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tsrv import QueuingWrapper, State

from .support import Module, Trouble, lose, ready, recover, resultOf, shut

SETTINGS = {"colour": "blue"}


class Sharing(Module):
    """
    A module that returns one Deferred to all callers.
    """

    def __init__(self, settings: Deferred[Any]) -> None:
        super().__init__()
        self.settings = settings

    def read(self, what: object) -> Deferred[Any]:
        self.calls.append(("read", what))
        return self.settings

    def write(self, what: object) -> Deferred[Any]:
        self.calls.append(("write", what))
        return self.settings

    async def compute(self, what: object) -> Any:
        self.calls.append(("compute", what))
        return await self.settings


def sharing(
    clock: Clock, settings: Deferred[Any]
) -> tuple[Sharing, QueuingWrapper[Any], Any]:
    """
    @return: Such a module, its wrapper, and its proxy.
    """
    module = Sharing(settings)
    wrapper = QueuingWrapper(module, clock, replay=["read"], retryPolicy=lambda _: 1.0)
    return module, wrapper, wrapper.proxy


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("isPending", [True, False])
def test_queued_calls_share_a_result(
    clock: Clock, method: str, isPending: bool
) -> None:
    """
    Each queued caller gets the result, and so does the module afterwards.
    """
    settings: Deferred[Any] = Deferred() if isPending else succeed(SETTINGS)
    module, wrapper, proxy = sharing(clock, settings)
    calls = [resultOf(getattr(proxy, method)(number)) for number in range(3)]
    ready(module, wrapper)
    if isPending:
        settings.callback(SETTINGS)
    assert [each.value for each in calls] == [SETTINGS] * 3
    assert len(module.calls) == 3
    assert resultOf(module.settings).value == SETTINGS


@pytest.mark.parametrize("method", ["read", "write"])
def test_ready_calls_share_a_result_that_comes_later(clock: Clock, method: str) -> None:
    """
    Each caller of a module that can be lost gets the result, and so does the module
    afterwards.
    """
    settings: Deferred[Any] = Deferred()
    module, wrapper, proxy = sharing(clock, settings)
    ready(module, wrapper)
    calls = [resultOf(getattr(proxy, method)(number)) for number in range(3)]
    settings.callback(SETTINGS)
    assert [each.value for each in calls] == [SETTINGS] * 3
    assert resultOf(module.settings).value == SETTINGS


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("isPending", [True, False])
@pytest.mark.parametrize("isReady", [True, False])
def test_calls_share_a_failure(
    clock: Clock, method: str, isPending: bool, isReady: bool
) -> None:
    """
    Each caller gets the failure, and nobody else has to handle it.
    """
    settings: Deferred[Any] = Deferred() if isPending else fail(Trouble("no file"))
    module, wrapper, proxy = sharing(clock, settings)
    if isReady:
        ready(module, wrapper)
    calls = []
    for number in range(1 if isReady and not isPending else 3):
        calls.append(resultOf(getattr(proxy, method)(number)))
    ready(module, wrapper)
    if isPending:
        settings.errback(Trouble("no file"))
    clock.advance(0)
    assert [str(each.error) for each in calls] == ["no file"] * len(calls)


def test_a_failure_is_shared_with_later_calls(clock: Clock) -> None:
    """
    If a queued call gets a Deferred whose failure another call has already got, it
    fails, too.
    """
    module, wrapper, proxy = sharing(clock, Deferred())
    ready(module, wrapper)
    first = resultOf(proxy.write(1))
    module.settings.errback(Trouble("no file"))
    assert str(first.error) == "no file"
    lose(module)
    second = resultOf(proxy.write(2))
    recover(clock, module)
    assert str(second.error) == "no file"


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("number", [2, 50])
def test_many_failures_are_shared_with_later_calls(
    clock: Clock, method: str, number: int
) -> None:
    """
    No failure is forgotten because of another one, whatever the order in which their
    Deferreds are returned.
    """
    module, wrapper, proxy = sharing(clock, Deferred())
    shared: list[Deferred[Any]] = [Deferred() for _ in range(number)]
    setattr(module, method, lambda what: shared[what])
    first = [resultOf(getattr(proxy, method)(each)) for each in range(number)]
    ready(module, wrapper)
    for each in reversed(range(number)):
        shared[each].errback(Trouble(f"no {each}"))
    clock.advance(0)
    wrapper.pause()
    later = [resultOf(getattr(proxy, method)(each)) for each in range(number)]
    wrapper.resume()
    clock.advance(0)
    errors = [f"no {each}" for each in range(number)]
    assert [str(each.error) for each in first] == errors
    assert [str(each.error) for each in later] == errors


@pytest.mark.parametrize("name", ["initialize", "whenLost", "ping", "whenIdle"])
def test_a_failure_is_shared_by_a_call_and_the_life_cycle(
    clock: Clock, name: str
) -> None:
    """
    If a call gets a Deferred whose failure the wrapper itself has already got, it
    fails, too.
    """
    shared: Deferred[Any] = Deferred()
    returned = iter([shared])
    options: dict[str, Any] = {name: lambda: next(returned, None)}
    if name == "whenLost":
        options[name] = lambda: next(returned, Deferred())
    module = Sharing(shared)
    wrapper = QueuingWrapper(
        module, clock, retryPolicy=lambda _: 1.0, pingInterval=5.0, **options
    )
    wrapper.initialize()
    if name != "initialize":
        module.attempts[0].callback(None)
    clock.advance(5 if name == "ping" else 0)
    if name == "whenIdle":
        resultOf(wrapper.pause())
    shared.errback(Trouble("no file"))
    call = resultOf(wrapper.proxy.write(1))
    for closing in module.closings:
        closing.callback(None)
    if name == "whenIdle":
        wrapper.resume()
    elif wrapper.state is not State.INITIALIZING:
        clock.advance(1)
    for attempt in module.attempts:
        if not attempt.called:
            attempt.callback(None)
    clock.advance(0)
    assert str(call.error) == "no file"
    shut(wrapper)


def test_a_failure_is_shared_by_two_modules(clock: Clock) -> None:
    """
    If two modules return the same failed Deferred, calls of both fail.
    """
    shared: Deferred[Any] = Deferred()
    both = [sharing(clock, shared) for _ in range(2)]
    for module, wrapper, _ in both:
        ready(module, wrapper)
    first = [resultOf(proxy.write(1)) for _, _, proxy in both]
    shared.errback(Trouble("no file"))
    for _, wrapper, _ in both:
        resultOf(wrapper.pause())
    later = [resultOf(proxy.write(2)) for _, _, proxy in both]
    for _, wrapper, _ in both:
        wrapper.resume()
    assert [str(each.error) for each in [*first, *later]] == ["no file"] * 4


def test_a_ping_that_returns_its_last_failure_again(clock: Clock) -> None:
    """
    A ping that returns the same failed Deferred again fails again.
    """
    pong: Deferred[Any] = Deferred()
    wrapper = QueuingWrapper(
        Module(),
        clock,
        initialize=bool,
        close=bool,
        ping=lambda: pong,
        pingInterval=5.0,
    )
    wrapper.initialize()
    clock.advance(5)
    pong.errback(Trouble("no pong"))
    for losses in (1, 2, 3):
        assert (wrapper.state, wrapper.history.losses.count) == (State.READY, losses)
        clock.advance(5)
    resultOf(wrapper.close())


def test_a_failure_is_remembered_no_longer_than_its_deferred(clock: Clock) -> None:
    """
    The failure of a Deferred that the module has released is not kept, although its
    traceback refers to the Deferred.
    """

    class Shown(Trouble):
        pass

    def fail(deferred: Deferred[Any]) -> None:
        try:
            raise Shown("no file")
        except Shown:
            deferred.errback()

    module, wrapper, proxy = sharing(clock, Deferred())
    call = resultOf(proxy.write(1))
    ready(module, wrapper)
    fail(module.settings)
    assert str(call.error) == "no file"
    gone = weakref.ref(call.error)
    call.fired.clear()
    module.settings = succeed(SETTINGS)
    gc.collect()
    assert gone() is None


def test_replayed_calls_share_a_result(clock: Clock) -> None:
    """
    Repeated calls get the shared result, and so does the module.
    """
    module, wrapper, proxy = sharing(clock, Deferred())
    calls = [resultOf(proxy.read(1))]
    ready(module, wrapper)
    calls.append(resultOf(proxy.read(2)))
    lose(module)
    module.settings.callback("of the old connection")
    assert resultOf(module.settings).value == "of the old connection"
    module.settings = succeed(SETTINGS)
    recover(clock, module)
    assert [each.value for each in calls] == [SETTINGS] * 2
    assert resultOf(module.settings).value == SETTINGS


@pytest.mark.parametrize("isPending", [True, False])
def test_the_initialisation_is_shared(clock: Clock, isPending: bool) -> None:
    """
    C{initialize()} may return a Deferred whose result the module needs.
    """
    connected: Deferred[Any] = Deferred() if isPending else succeed("connection")

    class Client:
        def initialize(self) -> Deferred[Any]:
            return connected

        async def use(self) -> Any:
            return await connected

        async def again(self) -> Any:
            return await connected

    wrapper = QueuingWrapper(Client(), clock)
    calls: list[Any] = [wrapper.proxy.use(), wrapper.proxy.again()]
    results = [resultOf(each) for each in calls]
    wrapper.initialize()
    if isPending:
        connected.callback("connection")
    assert [each.value for each in results] == ["connection"] * 2
    assert resultOf(connected).value == "connection"


@pytest.mark.parametrize("name", ["whenLost", "close"])
@pytest.mark.parametrize("isFailed", [True, False])
def test_the_end_is_shared(clock: Clock, name: str, isFailed: bool) -> None:
    """
    The module keeps the result of a Deferred that C{whenLost()} or C{close()} returns;
    its failure is handled.
    """
    end: Deferred[Any] = Deferred()
    options: dict[str, Callable[[], Any]] = {"close": bool, name: lambda: end}
    module = Module()
    wrapper = QueuingWrapper(
        module,
        clock,
        retryPolicy=lambda _: 1.0,
        **options,  # type: ignore[arg-type]
    )
    ready(module, wrapper)
    closed = resultOf(wrapper.close()) if name == "close" else None
    if isFailed:
        end.errback(Trouble("cut off"))
    else:
        end.callback("the reason")
    if closed is not None:
        assert str(closed.error if isFailed else closed.value) in ("cut off", "None")
        assert wrapper.state is State.CLOSED
    else:
        assert wrapper.state is State.LOST
        assert resultOf(wrapper.close()).value is None
    if not isFailed:
        assert resultOf(end).value == "the reason"


def test_a_tracked_call_gets_a_failure_that_came_before(clock: Clock) -> None:
    """
    A tracked call that gets an already failed Deferred fails with its error.
    """
    module = Sharing(Deferred())
    wrapper = QueuingWrapper(module, clock)
    ready(module, wrapper)
    first, error = resultOf(wrapper.proxy.write(1)), Trouble("too late")
    module.settings.errback(error)
    assert [first.error, resultOf(wrapper.proxy.write(2)).error] == [error, error]
    shut(wrapper)
