"""
Methods that return awaitables: tsrv awaits them in every state.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Generator, Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tsrv import QueuingWrapper, State

from .support import Module, Trouble, inState, lose, resultOf, shut


class Awaitable:
    """
    An object that can be awaited.
    """

    def __init__(self, deferred: Deferred[Any]) -> None:
        self._deferred = deferred

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._deferred.__await__())


class Manager(Awaitable):
    """
    An awaitable that is also a context manager, as C{asyncpg.create_pool()} returns.
    """

    async def __aenter__(self) -> Any:
        return await self

    async def __aexit__(self, *_: object) -> None:
        pass


def coroutine(deferred: Deferred[Any]) -> Any:
    """
    @return: A coroutine, from a function that is not C{async}.
    """

    async def wait() -> Any:
        return await deferred

    return wait()


@types.coroutine
def generator(deferred: Deferred[Any]) -> Generator[Any, Any, Any]:
    """
    @return: A generator-based coroutine.
    """
    return (yield from deferred.__await__())


class Special(Deferred[Any]):
    """
    A subclass of Deferred.
    """


def special(deferred: Deferred[Any]) -> Special:
    """
    @return: A Deferred of that subclass.
    """
    made = Special()
    deferred.chainDeferred(made)
    return made


Make = Callable[[Deferred[Any]], Any]
KINDS: list[Make] = [Awaitable, coroutine, generator, special]
kinds = pytest.mark.parametrize("make", KINDS)
# Results of the life cycle are awaited, even if they are context managers.
lifecycleKinds = pytest.mark.parametrize("make", [*KINDS, Manager])


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """
    An event loop of asyncio.
    """
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def future(loop: asyncio.AbstractEventLoop, error: Exception | None) -> Any:
    """
    @return: A future with a result.
    """
    made = loop.create_future()
    if error is None:
        made.set_result("done")
    else:
        made.set_exception(error)
    return made


# The life cycle.


@lifecycleKinds
@pytest.mark.parametrize("error", [None, Trouble("refused")])
def test_initialize(clock: Clock, make: Make, error: Exception | None) -> None:
    """
    The module is ready when the awaitable of C{initialize()} has ended.
    """
    wait: Deferred[Any] = Deferred()
    module, wrapper, proxy = inState(clock, State.NEW, initialize=lambda: make(wait))
    call = resultOf(proxy.write(1))
    asked = resultOf(wrapper.initialize())
    assert (wrapper.state, module.calls) == (State.INITIALIZING, [])
    if error is None:
        wait.callback(None)
        assert (wrapper.state, asked.value) == (State.READY, None)
        assert module.calls == [("write", 1)]
    else:
        wait.errback(error)
        assert (wrapper.state, wrapper.lastError) == (State.RETRYING, error)
        assert (asked.pending, call.pending) == (True, True)
        shut(wrapper)


@lifecycleKinds
@pytest.mark.parametrize("error", [None, Trouble("cut off")])
def test_whenLost(clock: Clock, make: Make, error: Exception | None) -> None:
    """
    The module is lost when the awaitable of C{whenLost()} ends.
    """
    watches: list[Deferred[Any]] = []

    def whenLost() -> Any:
        watches.append(Deferred())
        return make(watches[-1])

    module, wrapper, _ = inState(clock, State.READY, whenLost=whenLost)
    if error is None:
        watches[0].callback(None)
    else:
        watches[0].errback(error)
    assert (wrapper.state, wrapper.lastError) == (State.LOST, error)
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert wrapper.state is State.READY


@lifecycleKinds
@pytest.mark.parametrize("error", [None, Trouble("disk full")])
def test_close(clock: Clock, make: Make, error: Exception | None) -> None:
    """
    The wrapper is closed when the awaitable of C{close()} has ended.
    """
    wait: Deferred[Any] = Deferred()
    _, wrapper, _ = inState(clock, State.READY, close=lambda: make(wait))
    closed = resultOf(wrapper.close())
    assert (wrapper.state, closed.pending) == (State.CLOSING, True)
    if error is None:
        wait.callback(None)
        assert closed.value is None
    else:
        wait.errback(error)
        assert closed.error is error
    assert wrapper.state is State.CLOSED


@lifecycleKinds
def test_whenIdle(clock: Clock, make: Make) -> None:
    """
    pause() waits for the awaitable of C{whenIdle()}.
    """
    wait: Deferred[Any] = Deferred()
    _, wrapper, _ = inState(clock, State.READY, whenIdle=lambda: make(wait))
    paused = resultOf(wrapper.pause())
    assert paused.pending
    wait.callback(None)
    assert paused.value is None


@lifecycleKinds
@pytest.mark.parametrize("error", [None, Trouble("no pong")])
def test_ping(clock: Clock, make: Make, error: Exception | None) -> None:
    """
    A ping ends when the awaitable of C{ping()} ends.
    """
    pings: list[Deferred[Any]] = []

    def ping() -> Any:
        pings.append(Deferred())
        return make(pings[-1])

    _, wrapper, _ = inState(clock, State.READY, ping=ping, pingInterval=5.0)
    clock.advance(5)
    assert (len(pings), wrapper.state) == (1, State.READY)
    if error is None:
        pings[0].callback("pong")
        assert wrapper.state is State.READY
    else:
        pings[0].errback(error)
        assert (wrapper.state, wrapper.lastError) == (State.LOST, error)
    shut(wrapper)


@pytest.mark.parametrize("name", ["initialize", "whenLost", "close", "whenIdle"])
def test_a_future(clock: Clock, loop: asyncio.AbstractEventLoop, name: str) -> None:
    """
    Each method of the life cycle may return an C{asyncio.Future}.
    """
    pending: Any = loop.create_future()
    module, wrapper, _ = inState(clock, State.NEW, **{name: lambda: pending})
    asked = resultOf(wrapper.initialize())
    if name == "initialize":
        assert wrapper.state is State.INITIALIZING
    else:
        module.attempts[0].callback(None)
        assert (wrapper.state, asked.value) == (State.READY, None)
    ended = resultOf(wrapper.pause() if name == "whenIdle" else wrapper.close())
    if name in ("close", "whenIdle"):
        assert ended.pending
    pending.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    for closing in module.closings:
        closing.callback(None)
    assert not ended.pending


# Calls.


class Returning(Module):
    """
    A module that returns what the test says.
    """

    returned: Callable[[], Any]

    def once(self) -> Any:
        return self.returned()

    def twice(self) -> Any:
        return self.returned()


def returning(
    clock: Clock, returned: Callable[[], Any], **options: Any
) -> tuple[Returning, Any]:
    """
    @return: A module that returns what the test says, and its wrapper.
    """
    module = Returning()
    module.returned = returned
    wrapper = QueuingWrapper(
        module, clock, replay=["twice"], retryPolicy=lambda _: 1.0, **options
    )
    return module, wrapper


@kinds
@pytest.mark.parametrize("method", ["once", "twice"])
@pytest.mark.parametrize("isReady", [True, False])
@pytest.mark.parametrize("error", [None, Trouble("broken")])
def test_a_call(
    clock: Clock, make: Make, method: str, isReady: bool, error: Exception | None
) -> None:
    """
    A call gets the result of the awaitable that the method returned, queued or not.
    """
    wait: Deferred[Any] = Deferred()
    module, wrapper = returning(clock, lambda: make(wait))
    if isReady:
        wrapper.initialize()
        module.attempts[0].callback(None)
    call = resultOf(getattr(wrapper.proxy, method)())
    if not isReady:
        wrapper.initialize()
        module.attempts[0].callback(None)
    assert (call.pending, wrapper.inProgress) == (True, 1)
    if error is None:
        wait.callback("done")
        assert call.value == "done"
    else:
        wait.errback(error)
        clock.advance(0)
        assert call.error is error
    assert wrapper.inProgress == 0


@pytest.mark.parametrize("method", ["once", "twice"])
@pytest.mark.parametrize("isReady", [True, False])
@pytest.mark.parametrize("error", [None, Trouble("broken")])
def test_a_call_that_returns_a_future(
    clock: Clock,
    loop: asyncio.AbstractEventLoop,
    method: str,
    isReady: bool,
    error: Exception | None,
) -> None:
    """
    tsrv awaits an C{asyncio.Future}, too.
    """
    made = future(loop, error)
    module, wrapper = returning(clock, lambda: made)
    if isReady:
        wrapper.initialize()
        module.attempts[0].callback(None)
    call = resultOf(getattr(wrapper.proxy, method)())
    if not isReady:
        wrapper.initialize()
        module.attempts[0].callback(None)
    loop.run_until_complete(asyncio.sleep(0))
    clock.advance(0)
    assert (call.value if error is None else call.error) == (error or "done")


@kinds
def test_a_call_that_is_lost_or_cancelled(clock: Clock, make: Make) -> None:
    """
    An awaitable is cancelled with its call, and tracked like a Deferred.
    """
    waits: list[Deferred[Any]] = []

    def returned() -> Any:
        waits.append(Deferred())
        return make(waits[-1])

    module, wrapper = returning(clock, returned)
    wrapper.initialize()
    module.attempts[0].callback(None)
    given, lost = wrapper.proxy.once(), wrapper.proxy.twice()
    results = [resultOf(given), resultOf(lost)]
    given.cancel()
    assert not results[0].pending
    if make is not special:
        assert waits[0].called
    lose(module)
    clock.advance(1)
    module.attempts[1].callback(None)
    waits[2].callback("again")
    assert results[1].value == "again"


class Asked:
    """
    An object that claims to have every attribute.
    """

    def __getattr__(self, name: str) -> Any:
        return self


def count() -> Generator[int, None, None]:
    """
    An ordinary generator.
    """
    yield 1


@pytest.mark.parametrize(
    "value", [None, 0, "text", Asked(), MagicMock(), count(), [succeed(1)], Trouble()]
)
def test_a_plain_value(clock: Clock, value: object) -> None:
    """
    A value that is not awaitable is the result, in every state.
    """
    module, wrapper = returning(clock, lambda: value)
    queued = resultOf(wrapper.proxy.once())
    wrapper.initialize()
    module.attempts[0].callback(None)
    assert queued.fired[0] is value
    assert wrapper.proxy.once() is value


async def use(call: Any, isAwaited: bool) -> Any:
    """
    @return: The result of a call, and what that result gives when it is awaited or
        entered in turn.
    """
    made = await call
    return made, await made if isAwaited else None


@pytest.mark.parametrize("kind", [Awaitable, Manager])
@pytest.mark.parametrize("make", ["fired", "later", "coroutine"])
@pytest.mark.parametrize("way", ["queued", "ready", "always"])
@pytest.mark.parametrize("method", ["once", "twice"])
def test_a_result_that_can_be_awaited(
    clock: Clock, kind: Callable[..., Any], make: str, way: str, method: str
) -> None:
    """
    tsrv awaits what a method returns, but not the result of that: a caller who awaits
    the call once gets the object itself, in every state.
    """
    result, later = kind(succeed("done")), Deferred[Any]()

    def returned() -> Any:
        if make == "fired":
            return succeed(result)
        return coroutine(later) if make == "coroutine" else later

    module, wrapper = returning(clock, returned, alwaysDeferred=way == "always")
    if way == "queued":
        call = getattr(wrapper.proxy, method)()
    wrapper.initialize()
    module.attempts[0].callback(None)
    if way != "queued":
        call = getattr(wrapper.proxy, method)()
    used = resultOf(Deferred.fromCoroutine(use(call, isAwaited=True)))
    later.callback(result)
    assert used.value == (result, "done")
    shut(wrapper)


def test_calls_of_a_module_that_cannot_be_lost(clock: Clock) -> None:
    """
    A queued call of a plain method waits for its coroutine. In READY the proxy has the
    module's own method.
    """

    class Simple:
        def initialize(self) -> None:
            pass

        def get(self) -> Any:
            return coroutine(succeed("done"))

    wrapper = QueuingWrapper(Simple(), clock)
    queued = resultOf(wrapper.proxy.get())
    wrapper.initialize()
    assert queued.value == "done"
    assert resultOf(Deferred.fromCoroutine(wrapper.proxy.get())).value == "done"
    always = QueuingWrapper(Simple(), clock, alwaysDeferred=True)
    always.initialize()
    assert resultOf(always.proxy.get()).value == "done"


def test_a_coroutine_that_fails_is_handled(clock: Clock) -> None:
    """
    An unneeded coroutine is closed, and its error is dropped.
    """
    wait: Deferred[Any] = fail(Trouble("refused"))

    def initialize() -> Any:
        wrapper.close()
        return coroutine(wait)

    _, wrapper, _ = inState(clock, State.NEW, initialize=initialize, close=bool)
    resultOf(wrapper.initialize())
    assert wrapper.state is State.CLOSED
