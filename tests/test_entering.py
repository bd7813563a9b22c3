"""
Calls that are entered or iterated: C{async with proxy.transaction()} and
C{async for row in proxy.rows()} work in every state.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from tsrv import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
)

from .support import Module, Result, Trouble, lose, ready, recover, resultOf, shut


class Store(Module):
    """
    A module with transactions and rows.

    @ivar events: The events of both, in order.
    @ivar step: Called at each event, and awaited.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.step: Callable[[], Deferred[Any]] = lambda: succeed(None)

    @asynccontextmanager
    async def transaction(self, name: str = "t") -> AsyncIterator[str]:
        await self.step()
        self.events.append(f"begin {name}")
        try:
            yield name
        except Trouble:
            self.events.append(f"roll back {name}")
            raise
        except GeneratorExit:
            self.events.append(f"abandon {name}")
            raise
        else:
            self.events.append(f"commit {name}")

    async def rows(self, number: int = 3) -> AsyncIterator[int]:
        await self.step()
        try:
            for each in range(number):
                yield each
        finally:
            self.events.append("closed")

    @asynccontextmanager
    async def forgiving(self) -> AsyncIterator[None]:
        with suppress(Trouble):
            yield

    def lateTransaction(self) -> Deferred[Any]:
        return self.step().addCallback(lambda _: self.transaction("late"))

    def lateRows(self) -> Deferred[Any]:
        return self.step().addCallback(lambda _: self.rows())

    def both(self) -> Any:
        return Both(self)

    def lateBoth(self) -> Deferred[Any]:
        return self.step().addCallback(lambda _: Both(self))

    def plainRows(self) -> Any:
        return Cursor()

    def cursor(self) -> Deferred[Any]:
        return self.step().addCallback(lambda _: list("abc"))

    def nothing(self) -> Deferred[Any]:
        return self.step()


WAYS = ["new", "initializing", "ready", "lost", "paused", "always"]


QUEUED = [each for each in WAYS if each not in ("ready", "always")]
ways = pytest.mark.parametrize("way", WAYS)
queued = pytest.mark.parametrize("way", QUEUED)


def waysOf(method: str, late: str) -> pytest.MarkDecorator:
    """
    Call both methods in each state. The Deferred of the second method fires with the
    object that the first one returns; it can be entered or iterated only if the call is
    queued.
    """
    cases = [*((way, method) for way in WAYS), *((way, late) for way in QUEUED)]
    return pytest.mark.parametrize(("way", "method"), cases)


def store(clock: Clock, way: str) -> tuple[Store, Any, Any]:
    """
    @return: A store, its wrapper and its proxy, in a state.
    """
    module = Store()
    wrapper = QueuingWrapper(
        module, clock, retryPolicy=lambda _: 1.0, alwaysDeferred=way == "always"
    )
    if way == "initializing":
        resultOf(wrapper.initialize())
    elif way != "new":
        ready(module, wrapper)
    if way == "lost":
        lose(module)
    elif way == "paused":
        resultOf(wrapper.pause())
    return module, wrapper, wrapper.proxy


def makeReady(clock: Clock, module: Store, wrapper: Any, way: str) -> None:
    """
    Let the module take calls.
    """
    if way == "lost":
        recover(clock, module)
    elif way == "paused":
        wrapper.resume()
    else:
        ready(module, wrapper)
    assert wrapper.state is State.READY


def start(work: Any) -> Result:
    """
    @return: The result of a coroutine.
    """
    return resultOf(Deferred.fromCoroutine(work))


@waysOf("transaction", "lateTransaction")
@pytest.mark.parametrize("isReady", [True, False])
@pytest.mark.parametrize("isFailing", [True, False])
def test_async_with(
    clock: Clock, way: str, method: str, isReady: bool, isFailing: bool
) -> None:
    """
    The body runs when the module is ready, with the value of the manager; the manager
    learns how the body ended.
    """
    module, wrapper, proxy = store(clock, way)

    async def work() -> str:
        async with getattr(proxy, method)() as name:
            module.events.append(f"body {name}")
            if isFailing:
                raise Trouble("in the body")
        return "done"

    result = start(work())
    if way not in ("ready", "always"):
        assert (result.pending, module.events) == (True, [])
    makeReady(clock, module, wrapper, way)
    name = "late" if method == "lateTransaction" else "t"
    end = "roll back" if isFailing else "commit"
    assert module.events == [f"begin {name}", f"body {name}", f"{end} {name}"]
    if isFailing:
        assert str(result.error) == "in the body"
    else:
        assert result.value == "done"
    assert wrapper.inProgress == 0


@ways
@pytest.mark.parametrize("error", [Trouble("forgiven"), ValueError("not forgiven")])
def test_a_manager_that_suppresses_errors(
    clock: Clock, way: str, error: Exception
) -> None:
    """
    The manager gets the error of the body, and decides whether to suppress it.
    """
    module, wrapper, proxy = store(clock, way)

    async def work() -> str:
        async with proxy.forgiving():
            raise error
        return "done"

    result = start(work())
    makeReady(clock, module, wrapper, way)
    if isinstance(error, Trouble):
        assert result.value == "done"
    else:
        assert result.error is error


@waysOf("rows", "lateRows")
def test_async_for(clock: Clock, way: str, method: str) -> None:
    """
    The loop begins when the module is ready.
    """
    module, wrapper, proxy = store(clock, way)

    async def work() -> list[int]:
        return [each async for each in getattr(proxy, method)()]

    result = start(work())
    makeReady(clock, module, wrapper, way)
    assert result.value == [0, 1, 2]
    assert module.events == ["closed"]


@ways
def test_leaving_a_loop(clock: Clock, way: str) -> None:
    """
    Leaving the loop in C{aclosing()} closes the module's iterator.
    """
    module, wrapper, proxy = store(clock, way)

    async def work() -> int:
        async with aclosing(proxy.rows()) as rows:
            async for each in rows:
                if each == 1:
                    break
        return int(each)

    result = start(work())
    makeReady(clock, module, wrapper, way)
    assert result.value == 1
    assert module.events == ["closed"]


@ways
@pytest.mark.parametrize("isEntered", [True, False])
def test_a_loop_that_raises(clock: Clock, way: str, isEntered: bool) -> None:
    """
    An error in the body of the loop is raised, and closes the iterator.
    """
    module, wrapper, proxy = store(clock, way)

    async def work() -> None:
        async with aclosing(proxy.rows()) as rows:
            if not isEntered:
                raise Trouble("in the body")
            async for _ in rows:
                raise Trouble("in the body")

    result = start(work())
    makeReady(clock, module, wrapper, way)
    assert str(result.error) == "in the body"
    assert module.events == (["closed"] if isEntered else [])


async def enter(call: Any) -> None:
    """
    Enter a call.
    """
    async with call:
        raise AssertionError("must not be reached")


async def collect(call: Any) -> list[object]:
    """
    @return: All that a call yields.
    """
    return [each async for each in call]


async def iterate(call: Any) -> None:
    """
    Iterate over a call.
    """
    async for _ in call:
        raise AssertionError("must not be reached")


uses = pytest.mark.parametrize("use", [enter, iterate])


@queued
@uses
def test_a_call_that_is_refused(
    clock: Clock, way: str, use: Callable[..., Any]
) -> None:
    """
    A call that cannot be made raises its error where it is entered or iterated.
    """
    module, wrapper, proxy = store(clock, way)
    result = start(use(proxy.transaction() if use is enter else proxy.rows()))
    wrapper.close()
    assert isinstance(result.error, Closed)
    late = start(use(proxy.transaction() if use is enter else proxy.rows()))
    assert isinstance(late.error, Closed)
    assert module.events == []
    shut(wrapper)


@queued
@uses
@pytest.mark.parametrize("isStarted", [True, False])
def test_a_call_that_is_cancelled(
    clock: Clock, way: str, use: Callable[..., Any], isStarted: bool
) -> None:
    """
    Cancelling the coroutine that waits for a call cancels the call.
    """
    module, wrapper, proxy = store(clock, way)
    step: Deferred[Any] = Deferred()
    module.step = lambda: step
    call = proxy.lateTransaction() if use is enter else proxy.lateRows()
    work = Deferred.fromCoroutine(use(call))
    result = resultOf(work)
    if isStarted:
        makeReady(clock, module, wrapper, way)
        assert wrapper.inProgress == 1
    work.cancel()
    assert isinstance(result.error, CancelledError)
    assert (wrapper.pending, wrapper.inProgress, step.called) == (0, 0, isStarted)
    if not isStarted:
        makeReady(clock, module, wrapper, way)
    assert module.events == []


@queued
@uses
def test_a_call_that_fails(clock: Clock, way: str, use: Callable[..., Any]) -> None:
    """
    The module's own error is raised where the call is entered or iterated.
    """
    module, wrapper, proxy = store(clock, way)
    module.step = lambda: fail(Trouble("no disk"))
    if use is enter:
        calls = [proxy.transaction(), proxy.lateTransaction()]
    else:
        calls = [proxy.rows(), proxy.lateRows()]
    results = [start(use(each)) for each in calls]
    makeReady(clock, module, wrapper, way)
    assert [str(each.error) for each in results] == ["no disk", "no disk"]


@uses
@pytest.mark.parametrize("end", ["loss", "close"])
def test_a_tracked_call_that_gets_lost(
    clock: Clock, use: Callable[..., Any], end: str
) -> None:
    """
    A tracked call can be entered and iterated, too, and its outcome may be unknown.
    """
    module, wrapper, proxy = store(clock, "ready")
    step: Deferred[Any] = Deferred()
    module.step = lambda: step
    call = proxy.lateTransaction() if use is enter else proxy.lateRows()
    result = start(use(call))
    if end == "loss":
        lose(module)
        recover(clock, module)
    else:
        resultOf(wrapper.close())
        module.closings[0].callback(None)
    assert isinstance(result.error, OutcomeUnknown)
    step.callback(None)
    assert module.events == []


@pytest.mark.parametrize("isTracked", [True, False])
def test_a_call_that_is_answered_later(clock: Clock, isTracked: bool) -> None:
    """
    A call in progress is entered or iterated when the module has ended it.
    """
    module, wrapper, proxy = store(clock, "ready" if isTracked else "new")
    steps: list[Deferred[Any]] = [Deferred(), Deferred(), succeed(None)]
    module.step = lambda: steps.pop(0)
    waiting = steps[:2]
    transaction, rows = proxy.lateTransaction(), proxy.lateRows()

    async def work() -> list[int]:
        async with transaction:
            return [each async for each in rows]

    result = start(work())
    ready(module, wrapper)
    steps.append(succeed(None))
    for step in waiting:
        assert result.pending
        step.callback(None)
    assert result.value == [0, 1, 2]
    assert module.events == ["begin late", "closed", "commit late"]


@pytest.mark.parametrize(
    ("method", "use"),
    [("cursor", enter), ("nothing", enter), ("nothing", iterate)],
)
def test_what_cannot_be_entered(
    clock: Clock, method: str, use: Callable[..., Any]
) -> None:
    """
    Entering any other result raises Python's usual error.
    """
    module, wrapper, proxy = store(clock, "new")
    result = start(use(getattr(proxy, method)()))
    ready(module, wrapper)
    assert isinstance(result.error, TypeError | AttributeError)


@queued
def test_a_second_loop(clock: Clock, way: str) -> None:
    """
    A call can be iterated once, like an asynchronous generator, and closed any number
    of times.
    """
    module, wrapper, proxy = store(clock, way)
    rows: Any = proxy.rows()

    async def work() -> list[list[int]]:
        loops = [[each async for each in rows], [each async for each in rows]]
        await rows.aclose()
        await rows.aclose()
        return loops

    result = start(work())
    makeReady(clock, module, wrapper, way)
    assert result.value == [[0, 1, 2], []]


@queued
@pytest.mark.parametrize("isAnswered", [True, False])
def test_a_call_that_is_closed_without_a_loop(
    clock: Clock, way: str, isAnswered: bool
) -> None:
    """
    Closing a call that was never iterated gives it up, or closes its result.
    """
    module, wrapper, proxy = store(clock, way)
    rows: Any = proxy.rows()
    if isAnswered:
        makeReady(clock, module, wrapper, way)
    assert start(rows.aclose()).value is None
    assert wrapper.pending == 0
    assert start(collect(rows)).value == []
    if not isAnswered:
        makeReady(clock, module, wrapper, way)
    assert wrapper.stats.started == isAnswered


class Both:
    """
    An object that can be awaited or entered, as several libraries return.
    """

    def __init__(self, module: Store) -> None:
        self._module = module

    def __await__(self) -> Generator[Any, Any, str]:
        self._module.events.append("awaited")
        yield from succeed(None).__await__()
        return "connection"

    async def __aenter__(self) -> str:
        self._module.events.append("entered")
        return "connection"

    async def __aexit__(self, *_: object) -> None:
        self._module.events.append("left")


@ways
@pytest.mark.parametrize("isEntered", [True, False])
def test_an_object_to_be_awaited_or_entered(
    clock: Clock, way: str, isEntered: bool
) -> None:
    """
    The caller decides whether to await the object or enter it, in every state.
    """
    module, wrapper, proxy = store(clock, way)

    async def work() -> str:
        if isEntered:
            async with proxy.both() as name:
                return str(name)
        return str(await proxy.both())

    result = start(work())
    makeReady(clock, module, wrapper, way)
    assert result.value == "connection"
    assert module.events == (["entered", "left"] if isEntered else ["awaited"])


@ways
def test_with_cannot_wait(clock: Clock, way: str) -> None:
    """
    C{with} raises at once, and the error says what to write instead. The call is given
    up.
    """
    module, wrapper, proxy = store(clock, way)
    step: Deferred[Any] = Deferred()
    module.step = lambda: step
    call = proxy.nothing()
    with pytest.raises(TypeError, match="async with"), call:
        raise AssertionError("must not be reached")
    call.addErrback(lambda _: None)
    call.cancel()
    makeReady(clock, module, wrapper, way)


@ways
def test_a_call_may_be_awaited_and_then_entered(clock: Clock, way: str) -> None:
    """
    A call may be awaited first: its result is the module's own object, which can then
    be entered.
    """
    module, wrapper, proxy = store(clock, way)

    async def work() -> str:
        call = proxy.transaction()
        manager = await call if isinstance(call, Deferred) else call
        async with manager as name:
            return str(name)

    result = start(work())
    makeReady(clock, module, wrapper, way)
    assert result.value == "t"
    assert module.events[0] == "begin t"


# The ways in which a call ends without a result, and the error that its caller gets.
ENDS: dict[str, type[BaseException]] = {
    "expires": QueueTimeout,
    "is refused": InitializationFailed,
    "is closed": Closed,
    "is rejected": QueueFull,
    "is cancelled": CancelledError,
    "fails": Trouble,
    "is lost": OutcomeUnknown,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("body", ["iterates", "raises", "returns"])
def test_aclosing_a_call_that_ends_otherwise(clock: Clock, end: str, body: str) -> None:
    """
    The loop raises the reason why the call ended. Without a loop the reason is dropped,
    and C{aclosing()} raises only the error of its body.
    """
    module = Store()
    step: Deferred[Any] = Deferred()
    module.step = lambda: step
    wrapper = QueuingWrapper(
        module, clock, timeout=5.0, limit=0 if end == "is rejected" else 1
    )
    waiting: Deferred[Any] = Deferred()

    async def use() -> None:
        async with aclosing(proxy.lateRows()) as rows:
            if body == "iterates":
                async for _ in rows:
                    raise AssertionError("must not be reached")
            with suppress(CancelledError):
                await waiting
            if body == "raises":
                raise ValueError("in the body")

    proxy: Any = wrapper.proxy
    work = Deferred.fromCoroutine(use())
    result = resultOf(work)
    if end == "expires":
        clock.advance(5)
    elif end == "is refused":
        wrapper.fail(Trouble("no"))
    elif end == "is cancelled":
        work.cancel()
    elif end in ("fails", "is lost"):
        ready(module, wrapper)
        if end == "fails":
            step.errback(Trouble("no disk"))
        else:
            lose(module)
            clock.advance(0)
    shut(wrapper)
    if not waiting.called:
        waiting.callback(None)
    if body == "iterates":
        assert type(result.error) is ENDS[end]
    elif body == "raises":
        assert str(result.error) == "in the body"
    else:
        assert result.value is None
    assert (wrapper.pending, wrapper.inProgress, module.events) == (0, 0, [])
    clock.advance(0)


@pytest.mark.parametrize("end", ["is refused", "is closed", "is rejected", "expires"])
@pytest.mark.parametrize("isEntered", [True, False])
def test_an_object_of_a_call_that_is_refused(
    clock: Clock, end: str, isEntered: bool
) -> None:
    """
    If a call is refused, awaiting it and entering it both raise the reason.
    """
    module = Store()
    wrapper = QueuingWrapper(
        module,
        clock,
        timeout=5.0,
        limit=0 if end == "is rejected" else 1,
        alwaysDeferred=True,
    )

    async def use() -> None:
        if isEntered:
            async with proxy.both():
                raise AssertionError("must not be reached")
        await proxy.both()

    proxy: Any = wrapper.proxy
    results = [start(use())]
    if end == "expires":
        clock.advance(5)
    elif end == "is refused":
        wrapper.fail(Trouble("no"))
        results.append(start(use()))
    shut(wrapper)
    if end == "is closed":
        results.append(start(use()))
    assert [type(each.error) for each in results] == [ENDS[end]] * len(results)
    assert module.events == []


@ways
@pytest.mark.parametrize("isTracked", [True, False])
@pytest.mark.parametrize("method", ["both", "lateBoth"])
def test_an_object_through_two_wrappers(
    clock: Clock, way: str, isTracked: bool, method: str
) -> None:
    """
    A wrapper of a proxy passes the object on unchanged, and the call has ended: the
    caller may await the object, enter it or ignore it. The result of a Deferred is not
    awaited.
    """
    module, inner, _ = store(clock, way)
    outer = QueuingWrapper(
        inner.proxy,
        clock,
        initialize=inner.whenInitialized,
        settles=False if isTracked else None,
    )
    proxy: Any = outer.proxy
    outer.initialize()
    calls = [getattr(proxy, method)() for _ in range(3)]

    async def use() -> list[str]:
        async with calls[0] if method == "both" else await calls[0] as name:
            made = await calls[1]
            return [name, made if method == "both" else await made]

    result = start(use())
    makeReady(clock, module, inner, way)
    assert result.value == ["connection", "connection"]
    assert module.events == ["entered", "awaited", "left"]
    assert (inner.inProgress, outer.inProgress, outer.pending) == (0, 0, 0)
    resultOf(outer.close())
    shut(inner)


class Cursor:
    """
    An iterator that cannot be closed.
    """

    def __init__(self) -> None:
        self._left = iter(range(3))

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        for each in self._left:
            return each
        raise StopAsyncIteration


@queued
@pytest.mark.parametrize("number", [0, 2, 9])
def test_an_iterator_that_cannot_be_closed(clock: Clock, way: str, number: int) -> None:
    """
    C{aclosing()} works with any iterator, wherever its loop is left.
    """
    module, wrapper, proxy = store(clock, way)
    seen: list[int] = []

    async def work() -> None:
        async with aclosing(proxy.plainRows()) as rows:
            await proxy.nothing()
            while len(seen) < number:
                try:
                    seen.append(await anext(rows))
                except StopAsyncIteration:
                    break

    result = start(work())
    makeReady(clock, module, wrapper, way)
    assert result.value is None
    assert seen == list(range(min(number, 3)))
