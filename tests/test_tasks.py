"""
Coroutines of modules run in tasks while an asyncio loop is running, and tasks and
coroutines of Twisted can await the results of tsrv.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from inspect import CORO_SUSPENDED, getcoroutinestate
from typing import Any, cast

import anyio
import pytest
from twisted.internet.defer import CancelledError, Deferred

from tsrv.queuing.awaiting import Pending
from tsrv.queuing.tasks import fromFuture, runCoroutine

from .loops import asFuture, onLoop, settle
from .support import Trouble

current: ContextVar[str] = ContextVar("current", default="nobody")


def fired(result: object) -> Deferred[Any]:
    """
    @return: A Deferred that fires in a later turn of the loop.
    """
    deferred: Deferred[Any] = Deferred()
    asyncio.get_running_loop().call_soon(deferred.callback, result)
    return deferred


# Coroutines.


@onLoop
async def test_a_coroutine_may_await_futures_and_deferreds() -> None:
    """
    A coroutine may await futures and Deferreds in any order, and stays in one task.
    """
    tasks = []

    async def work() -> list[object]:
        tasks.append(asyncio.current_task())
        results: list[object] = [await fired(1)]
        tasks.append(asyncio.current_task())
        results.append(await asyncio.sleep(0, 2))
        async with asyncio.TaskGroup() as group:
            child = group.create_task(asyncio.sleep(0, 3))
        results += [child.result(), await fired(4)]
        tasks.append(asyncio.current_task())
        return results

    assert await asFuture(runCoroutine(work())) == [1, 2, 3, 4]
    assert len(set(tasks)) == 1
    assert tasks[0] not in (None, asyncio.current_task())


@onLoop
async def test_the_first_step_is_made_at_once() -> None:
    """
    The first step runs at once, so calls start in the order in which they are made,
    whatever their methods are.
    """
    steps: list[str] = []

    async def work(name: str) -> str:
        assert asyncio.current_task() is not None
        steps.append(name)
        return name

    first = runCoroutine(work("first"))
    steps.append("second")
    third = runCoroutine(work("third"))
    assert steps == ["first", "second", "third"]
    assert (first.result, third.result) == ("first", "third")
    await settle()


@onLoop
async def test_an_error_ends_the_deferred_and_is_not_reported_twice() -> None:
    """
    An error fails the Deferred, and is never reported to the loop.
    """
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, each: heard.append(each))

    async def atOnce() -> None:
        raise Trouble("at once")

    async def later() -> None:
        await asyncio.sleep(0)
        raise Trouble("later")

    for work in (atOnce, later):
        with pytest.raises(Trouble):
            await asFuture(runCoroutine(work()))
    await settle()
    assert heard == []


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
@onLoop
async def test_no_error_stops_the_loop(error: type[BaseException]) -> None:
    """
    An error of a module fails its call, and does not stop the loop, even if it is
    SystemExit, KeyboardInterrupt or GeneratorExit.
    """

    async def work() -> None:
        await asyncio.sleep(0)
        raise error

    caught = []
    runCoroutine(work()).addErrback(lambda failure: caught.append(failure.type))
    await settle()
    assert caught == [error]


@onLoop
async def test_a_time_limit_cancels_what_is_awaited() -> None:
    """
    C{asyncio.timeout()} cancels a Deferred that is awaited inside it.
    """
    cancelled: list[object] = []

    async def work() -> None:
        async with asyncio.timeout(10):
            await Deferred(cancelled.append)

    with pytest.raises(TimeoutError):
        await asFuture(runCoroutine(work()))
    assert len(cancelled) == 1


@onLoop
async def test_cancelling_cancels_the_task() -> None:
    """
    Cancelling the Deferred cancels the task: the coroutine gets asyncio's error, and
    the caller the error of Twisted.
    """
    learnt = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            learnt.append(True)
            raise

    running = runCoroutine(work())
    ended: list[object] = []
    running.addErrback(lambda failure: ended.append(failure.type))
    running.cancel()
    await settle()
    assert learnt == [True]
    assert ended == [CancelledError]


@onLoop
async def test_a_cancelled_coroutine_is_waited_for() -> None:
    """
    A cancelled call ends when its coroutine has ended, with the coroutine's result. A
    second cancellation is passed on, too.
    """

    async def work() -> str:
        for each in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                last = each
        return f"cleaned up {last}"

    running = runCoroutine(work())
    running.cancel()
    await settle()
    ended: list[object] = []
    running.addCallback(ended.append)
    assert ended == []
    running.cancel()
    await settle()
    assert ended == ["cleaned up 1"]


@onLoop
async def test_a_task_keeps_the_context_of_its_call() -> None:
    """
    A coroutine has its caller's context at each step, and its changes affect only
    itself.
    """
    seen = []

    async def work() -> None:
        seen.append(current.get())
        current.set("module")
        await asyncio.sleep(0)
        seen.append(current.get())

    current.set("caller")
    running = runCoroutine(work())
    current.set("other")
    await asFuture(running)
    assert seen == ["caller", "module"]
    assert current.get() == "other"


@onLoop
async def test_a_first_step_that_cancels_its_task_cancels_what_it_awaits() -> None:
    """
    If the first step cancels its own task, the awaited C{gather()} is cancelled with
    its children, as in any task.
    """
    child: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.gather(child)

    with pytest.raises(CancelledError):
        await asFuture(runCoroutine(work()))
    assert child.cancelled()


@onLoop
async def test_the_result_of_a_first_step_is_kept() -> None:
    """
    The result of the first step is kept, even if the coroutine has cancelled its own
    task.
    """

    async def work() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "done"

    assert await asFuture(runCoroutine(work())) == "done"


class Odd:
    """
    An awaitable that yields an odd object.
    """

    def __init__(self, *yields: object) -> None:
        self._yields = yields

    def __await__(self) -> Any:
        yield from self._yields


async def awaitOdd(odd: Any) -> None:
    """
    Await the odd object.
    """
    await odd


async def returnDeferred() -> Any:
    """
    Return a Deferred where an C{await} is missing.
    """
    return Deferred[None]()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: awaitOdd(Odd(5)), RuntimeError),
        (lambda: awaitOdd(Odd(None, object())), RuntimeError),
        (lambda: awaitOdd(Odd(None, None, "odd")), RuntimeError),
        (lambda: awaitOdd(None), TypeError),
        (returnDeferred, TypeError),
    ],
)
@onLoop
async def test_odd_coroutines_end_with_an_error(
    make: Callable[[], Any], error: type[Exception]
) -> None:
    """
    A call does not stay pending if its module awaits something invalid: it fails.
    """
    with pytest.raises(error):
        await asFuture(runCoroutine(make()))


@onLoop
async def test_a_cancellation_that_was_taken_back_leaves_no_trace() -> None:
    """
    C{uncancel()} works in a module as in any task.
    """

    async def work() -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            counts = [task.cancelling(), task.uncancel()]
        await asyncio.sleep(0)
        return counts

    assert await asFuture(runCoroutine(work())) == [1, 0]


@pytest.mark.parametrize("wait", [asyncio.Event().wait, Deferred, Pending])
@onLoop
async def test_anyio_works_in_a_module(wait: Callable[[], Awaitable[Any]]) -> None:
    """
    anyio works in a module: a cancel scope recognises its own cancellation, and a task
    group cancels the coroutine around it.
    """

    async def fail() -> None:
        await anyio.sleep(0)
        raise Trouble("in a child")

    async def work() -> str:
        with anyio.move_on_after(0.001) as scope:
            await wait()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await wait()
        return "not reached"

    with pytest.raises(ExceptionGroup) as raised:
        await asFuture(runCoroutine(work()))
    assert raised.group_contains(Trouble)


@onLoop
async def test_a_task_shows_the_coroutine_of_the_module() -> None:
    """
    A debugger that lists the tasks shows the coroutine of the module.
    """
    tasks = []

    async def working() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)

    running = runCoroutine(working())
    (task,) = tasks
    assert task is not None
    assert "working" in repr(task)
    assert [frame.f_code.co_name for frame in task.get_stack()] == ["working"]
    assert getcoroutinestate(cast(Any, task.get_coro())) == CORO_SUSPENDED
    await asFuture(running)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs eager tasks")
@onLoop
async def test_tasks_may_begin_at_once() -> None:
    """
    With C{asyncio.eager_task_factory}, each step still runs once.
    """
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
    steps: list[int] = []

    async def work() -> str:
        for each in range(3):
            steps.append(each)
            await asyncio.sleep(0)
        return "done"

    assert await asFuture(runCoroutine(work())) == "done"
    assert steps == [0, 1, 2]


@onLoop
async def test_the_error_of_a_shared_deferred_reaches_a_coroutine() -> None:
    """
    A coroutine gets the error of a Deferred, even if another callback handles the error
    before the coroutine continues.
    """
    shared: Deferred[None] = Deferred()

    async def work() -> None:
        await shared

    running = runCoroutine(work())
    shared.addErrback(lambda _: None)
    shared.errback(Trouble("shared"))
    with pytest.raises(Trouble, match="shared"):
        await asFuture(running)


@onLoop
async def test_a_call_inside_a_call_has_a_task_of_its_own() -> None:
    """
    If a module calls itself, or another module, each call runs in its own task.
    """
    tasks = []

    async def work(depth: int) -> int:
        before = asyncio.current_task()
        tasks.append(before)
        deeper = 0 if depth == 0 else await runCoroutine(work(depth - 1))
        assert asyncio.current_task() is before
        return 1 + int(deeper)

    assert await asFuture(runCoroutine(work(50))) == 51
    assert len(set(tasks)) == 51


@onLoop
async def test_a_future_is_waited_for_without_a_task() -> None:
    """
    A future is awaited without a task: cancelling the Deferred cancels the future once,
    and no error reaches the loop.
    """
    loop = asyncio.get_running_loop()
    heard: list[Any] = []
    loop.set_exception_handler(lambda _, each: heard.append(each))
    given, failing, cancelled = (loop.create_future() for _ in range(3))
    waiting = [fromFuture(each) for each in (given, failing, cancelled)]
    assert len(asyncio.all_tasks()) == 1
    given.set_result("given")
    failing.set_exception(Trouble("failing"))
    waiting[2].cancel()
    assert cancelled.cancelled()
    assert await waiting[0] == "given"
    with pytest.raises(Trouble):
        await waiting[1]
    with pytest.raises(CancelledError):
        await waiting[2]
    another = fromFuture(loop.create_task(asyncio.sleep(60)))
    for each in asyncio.all_tasks() - {asyncio.current_task()}:
        each.cancel()
    with pytest.raises(CancelledError):
        await another
    await settle()
    assert heard == []


def test_without_a_loop_twisted_runs_it() -> None:
    """
    Without a loop, Twisted drives the coroutine: it continues as soon as the awaited
    Deferred fires.
    """
    awaited: Deferred[int] = Deferred()

    async def work() -> int:
        return await awaited

    running = runCoroutine(work())
    assert not running.called
    awaited.callback(7)
    assert running.result == 7


# Results of tsrv.


async def inTask(awaitable: Awaitable[Any]) -> Any:
    """
    Await in the task of the test.
    """
    return await awaitable


async def inTwisted(awaitable: Awaitable[Any]) -> Any:
    """
    Await in a coroutine that Twisted drives, inside of the task.
    """

    async def work() -> Any:
        return await awaitable

    return await asFuture(Deferred.fromCoroutine(work()))


async def inModule(awaitable: Awaitable[Any]) -> Any:
    """
    Await in the coroutine of a module.
    """
    return await asFuture(runCoroutine(inTask(awaitable)))


async def asTask(awaitable: Any) -> Any:
    """
    Await in another task, which runs the result as a coroutine.
    """
    return await asyncio.create_task(awaitable)


async def asTwisted(awaitable: Any) -> Any:
    """
    Await in a coroutine of Twisted, which runs the result as a coroutine.
    """
    return await asFuture(Deferred.fromCoroutine(awaitable))


everywhere = pytest.mark.parametrize(
    "wait", [inTask, inTwisted, inModule, asTask, asTwisted]
)


@everywhere
@onLoop
async def test_a_result_is_awaited_everywhere(wait: Any) -> None:
    """
    A result can be awaited everywhere, before and after it exists.
    """
    loop = asyncio.get_running_loop()
    before, after = Pending(), Pending()
    before.callback(1)
    loop.call_soon(after.callback, 2)
    assert [await wait(before), await wait(after)] == [1, 2]


@everywhere
@onLoop
async def test_an_error_is_awaited_everywhere(wait: Any) -> None:
    """
    An error is raised wherever the result is awaited.
    """
    pending = Pending()
    asyncio.get_running_loop().call_soon(pending.errback, Trouble("awaited"))
    waits = [asyncio.create_task(wait(pending)) for _ in range(3)]
    for each in waits:
        with pytest.raises(Trouble, match="awaited"):
            await each
    with pytest.raises(Trouble, match="awaited"):
        await wait(pending)


@everywhere
@onLoop
async def test_a_cancelled_task_cancels_what_it_awaits(wait: Any) -> None:
    """
    Cancelling a task gives up the call that it awaits, and the task ends as cancelled.
    """
    cancelled: list[object] = []
    pending = Pending(cancelled.append)
    waiting = asyncio.create_task(wait(pending))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled == [pending]


@everywhere
@onLoop
async def test_a_call_that_another_cancels_fails(wait: Any) -> None:
    """
    If one waiter cancels a call, every other waiter gets the error of Twisted, and is
    not cancelled.
    """
    pending = Pending()
    waits = [asyncio.create_task(wait(pending)) for _ in range(2)]
    await settle()
    waits[0].cancel()
    with pytest.raises(CancelledError):
        await waits[1]
    assert waits[0].cancelled()


@onLoop
async def test_a_coroutine_of_twisted_goes_on_at_once() -> None:
    """
    A coroutine of Twisted continues as soon as the Deferred fires, also while a loop is
    running; an awaited error counts as handled.
    """
    result, error = Pending(), Pending()

    async def work() -> str:
        with pytest.raises(Trouble):
            await error
        return str(await result)

    running = Deferred.fromCoroutine(work())
    error.errback(Trouble("awaited"))
    result.callback("result")
    assert running.result == "result"


@onLoop
async def test_a_cancelled_coroutine_of_twisted_gets_the_error() -> None:
    """
    A cancelled coroutine of Twisted gets the error of Twisted from its C{await}, with a
    loop or without.
    """
    learnt = []

    async def work() -> None:
        try:
            await Pending()
        except CancelledError:
            learnt.append(True)
            raise

    running = Deferred.fromCoroutine(work())
    running.cancel()
    with pytest.raises(CancelledError):
        await asFuture(running)
    assert learnt == [True]


@onLoop
async def test_a_cancellation_that_comes_after_the_result_is_not_lost() -> None:
    """
    If a task is cancelled in the turn in which its call ends, it is cancelled.
    """
    pending = Pending()
    waiting = asyncio.create_task(inTask(pending))
    await settle()
    pending.callback("result")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@everywhere
@onLoop
async def test_a_result_is_the_one_that_was_waited_for(wait: Any) -> None:
    """
    A waiter gets the original result, even if callbacks are added later.
    """
    pending = Pending()
    waiting = asyncio.create_task(wait(pending))
    await settle()
    pending.addCallback(lambda _: "changed")
    pending.callback("original")
    assert await waiting == "original"


def test_a_loop_may_be_closed_before_the_result() -> None:
    """
    If a loop is closed before the result exists, other waiters still get the result.
    """
    pending = Pending()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(inTask(pending))
    loop.run_until_complete(settle())
    loop.close()
    pending.callback("late")
    assert pending.result == "late"
    waiting.get_coro().close()
    # The object reports to the handler of its loop that it was not awaited.
    loop.set_exception_handler(lambda *_: None)


@onLoop
async def test_a_cancelled_future_cancels_at_once() -> None:
    """
    Cancelling a future gives up its call at once, so the call cannot start later.
    """
    cancelled: list[object] = []
    pending = Pending(cancelled.append)
    future = pending.asFuture(asyncio.get_running_loop())
    assert future.cancel()
    assert cancelled == [pending]
    assert not future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future


@onLoop
async def test_a_future_fails_with_any_error() -> None:
    """
    A future can fail with any error; StopIteration, which futures refuse, becomes a
    RuntimeError.
    """
    pending = Pending()
    future = pending.asFuture(asyncio.get_running_loop())
    pending.errback(StopIteration("odd"))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await future


@everywhere
@onLoop
async def test_awaiting_leaves_no_cycles(wait: Any) -> None:
    """
    Awaiting leaves no reference cycles, so a program with many calls needs no garbage
    collection.
    """

    async def work() -> int:
        pending = Pending()
        asyncio.get_running_loop().call_soon(pending.callback, 1)
        return int(await wait(pending))

    await work()
    gc.collect()
    gc.disable()
    try:
        assert await asyncio.create_task(work()) == 1
        await settle()
        assert gc.collect() == 0
    finally:
        gc.enable()


@onLoop
async def test_the_tools_of_asyncio_take_it() -> None:
    """
    C{wait_for()}, C{gather()}, C{timeout()} and anyio take the result as an awaitable.
    """
    loop = asyncio.get_running_loop()
    first, second, third, never = Pending(), Pending(), Pending(), Pending()
    for number, each in enumerate([first, second, third]):
        loop.call_soon(each.callback, number)
    assert await asyncio.wait_for(first, 60) == 0
    assert await asyncio.gather(second, third) == [1, 2]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await never
    assert never.called
    with anyio.move_on_after(0.001) as scope:
        await Pending()
    assert scope.cancelled_caught


@onLoop
async def test_a_task_that_makes_no_step_gives_up_its_call() -> None:
    """
    A task that is cancelled before its first step gives up its call, which is not
    started later.
    """
    pending, failed = Pending(), Pending()
    failed.errback(Trouble("awaited by nobody"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pending, 0)
    assert pending.called
    for each in (Pending(), failed):
        task = asyncio.create_task(cast(Any, each))
        task.cancel("no need")
        with pytest.raises(asyncio.CancelledError, match="no need"):
            await task


def test_without_a_loop_twisted_runs_it_as_a_coroutine() -> None:
    """
    C{Deferred.fromCoroutine()} takes the call of an C{async def} method.
    """
    pending = Pending()
    runs = [Deferred.fromCoroutine(cast(Any, pending)) for _ in range(2)]
    assert not any(run.called for run in runs)
    pending.callback(7)
    assert runs[0].result == 7
    assert runs[1].called
