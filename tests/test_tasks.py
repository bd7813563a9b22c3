"""
Coroutines of modules run in tasks while an asyncio loop is running, and what tsrv hands
out can be awaited by whoever drives the coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tsrv.queuing.awaiting import Pending
from tsrv.queuing.tasks import runCoroutine

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
    In one coroutine, in any order, and it stays in one task.
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
    Calls start in the order in which they are made, whatever is called.
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
    Neither at once nor later does the loop hear of it.
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
    The error of a module is that of the call, also if it is meant to end a program.
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
    C{asyncio.timeout()} works around a Deferred, which is cancelled.
    """
    cancelled: list[object] = []

    async def work() -> None:
        async with asyncio.timeout(0.001):
            await Deferred(cancelled.append)

    with pytest.raises(TimeoutError):
        await asFuture(runCoroutine(work()))
    assert len(cancelled) == 1


@onLoop
async def test_cancelling_cancels_the_task() -> None:
    """
    The coroutine learns of it, and its caller gets the error of Twisted.
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
    The call ends when the coroutine has, with what it makes of the cancellation; a
    second one is passed on, too.
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
    The coroutine sees its caller's context at each step, and changes only its own.
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


def test_without_a_loop_twisted_runs_it() -> None:
    """
    A Deferred is awaited, and the result is there as soon as it fires.
    """
    awaited: Deferred[int] = Deferred()

    async def work() -> int:
        return await awaited

    running = runCoroutine(work())
    assert not running.called
    awaited.callback(7)
    assert running.result == 7


# What tsrv hands out.


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


everywhere = pytest.mark.parametrize("wait", [inTask, inTwisted, inModule])


@everywhere
@onLoop
async def test_a_result_is_awaited_everywhere(wait: Any) -> None:
    """
    A result that exists, and one that comes.
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
    Everybody who waits gets it.
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
    A call whose caller is cancelled is given up, and the caller ends as asyncio wants.
    """
    cancelled: list[object] = []
    pending = Pending(cancelled.append)
    waiting = asyncio.create_task(wait(pending))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled == [pending]


@onLoop
async def test_the_tools_of_asyncio_take_it() -> None:
    """
    C{wait_for()}, C{gather()} and C{timeout()} know it as an awaitable.
    """
    loop = asyncio.get_running_loop()
    first, second, third, never = Pending(), Pending(), Pending(), Pending()
    for number, each in enumerate([first, second, third]):
        loop.call_soon(each.callback, number)
    assert await asyncio.wait_for(first, 60) == 0
    assert await asyncio.gather(second, third) == [1, 2]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await never
    assert never.called
