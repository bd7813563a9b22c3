"""
Coroutines of modules, under Twisted and under asyncio.

Without an asyncio loop, Twisted runs a coroutine. While a loop is running (of Twisted's
asyncio reactor, or under L{tsrv.aio}), a coroutine runs in a task of this loop: it may
await futures, and C{asyncio.timeout()}, C{TaskGroup} and similar functions find their
task. In both cases the coroutine may await Deferreds, and makes its first step at
once, so that calls start in the order in which they were made.

A task can wait only for futures, and makes its first step in a later turn. So a
L{_Steps} object stands between a task and its coroutine: it makes the first step, and
gives the task a future in place of each Deferred.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from .awaiting import Awaited, Pending, isCancelledWith, runningLoop
from .needsasyncio import explain

__all__ = ["TaskResult", "fromFuture", "isOfCoroutine", "runCoroutine"]

# Marks the Deferred of a coroutine that Twisted runs.
_MARK: Final = "_isOfCoroutineOfTsrv"


def runCoroutine(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    """
    Run a coroutine.

    @return: A Deferred that fires with the result of the coroutine: at once, or in a
        later turn of the reactor. Cancelling it cancels the task; the Deferred then
        fires when the coroutine has ended.
    """
    loop = runningLoop()
    if loop is None:
        deferred = Deferred.fromCoroutine(coroutine)
        if not deferred.called or isinstance(deferred.result, Failure):
            deferred.addErrback(explain)
            setattr(deferred, _MARK, True)
        return deferred
    return _Steps(coroutine, loop).begin()


def isOfCoroutine(deferred: object) -> bool:
    """
    @return: Whether L{runCoroutine} made this Deferred, so that nobody else holds it.
    """
    return isinstance(deferred, TaskResult) or hasattr(deferred, _MARK)


def fromFuture(future: Future[Any]) -> Deferred[Any]:
    """
    @return: A Deferred with the result of a future. Cancelling it cancels the future.
    """

    def done(future: Future[Any]) -> None:
        try:
            result = future.result()
        except asyncio.CancelledError:
            result = Failure(CancelledError())
        except BaseException:
            result = Failure()
        # A Deferred that is cancelled has fired at once.
        if not deferred.called:
            deferred.callback(result)

    def cancel(_: object) -> None:
        future.cancel()

    deferred = Pending(cancel)
    future.add_done_callback(done)
    return deferred


class _Steps(Coroutine[Any, Any, None]):
    """
    A task runs this in place of the module's coroutine. The task has no result.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], loop: AbstractEventLoop
    ) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._hasEnded = False
        # The awaitable of the first step, until the task takes it.
        self._first: Any = None
        self._deferred = TaskResult()

    def __getattr__(self, name: str) -> Any:
        # Debuggers and anyio look at the coroutine of a task.
        return getattr(self._coroutine, name)

    def begin(self) -> Deferred[Any]:
        """
        Make the first step.

        @return: A Deferred that fires with the result.
        """
        loop, context = self._loop, copy_context()
        # Not create_task(): the loop's task factory may make tasks that begin at once.
        task = Task(self, loop=loop, context=context)
        current = asyncio.current_task(loop)
        if current is not None:
            asyncio._leave_task(loop, current)
        asyncio._enter_task(loop, task)
        try:
            self._first = context.run(self._step, self._coroutine.send, None)
            self._deferred.task = task
        except StopIteration as end:
            self._deferred.callback(end.value)
        finally:
            asyncio._leave_task(loop, task)
            if current is not None:
                asyncio._enter_task(loop, current)
        return self._deferred

    def send(self, value: None) -> Any:
        if self._hasEnded:
            raise StopIteration
        first, self._first = self._first, None
        return self._stepInTask(self._coroutine.send, value) if first is None else first

    def throw(self, *error: Any) -> Any:
        if self._hasEnded:
            raise StopIteration
        first, self._first = self._first, None
        if first is not None and isCancelledWith(first, error[0]):
            # The task still waits for the awaitable of its first step.
            return first
        return self._stepInTask(self._coroutine.throw, *error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        raise NotImplementedError

    def _stepInTask(self, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._step(step, *arguments)
        except StopIteration as end:
            # The Deferred and the task refer to each other: break the cycle.
            self._deferred.task = None
            # Callbacks of the result do not belong to this task.
            self._loop.call_soon(self._fire, end.value)
            raise StopIteration from None

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """
        @raise StopIteration: The coroutine has ended; its value is a result or failure.
        """
        try:
            awaited = step(*arguments)
        except StopIteration as end:
            result = end.value
            if isinstance(result, Deferred):
                result = Failure(TypeError("a coroutine returned a Deferred"))
        except asyncio.CancelledError:
            result = Failure(CancelledError())
        except BaseException:
            result = Failure()
        else:
            if isinstance(awaited, Deferred) and not isinstance(awaited, Awaited):
                return Awaited(awaited, self._loop)
            return awaited
        self._hasEnded = True
        raise StopIteration(result)

    def _fire(self, result: object) -> None:
        self._deferred.callback(result)


class TaskResult(Pending):
    """
    Fires with the result of a coroutine, also if it is cancelled: a cancelled
    coroutine may still await something, for example in C{finally}.

    @ivar task: The task, until the coroutine has ended.
    """

    task: Task[None] | None = None

    def cancel(self) -> None:
        """
        Cancel the task.
        """
        if self.called:
            super().cancel()
        elif self.task is not None:
            self.task.cancel()
