"""
Coroutines of modules, under Twisted and under asyncio.

Without an asyncio loop, a coroutine runs as Twisted runs it. While a loop is running,
that of Twisted's asyncio reactor or of L{tsrv.aio}, a coroutine runs in a task of this
loop: it may await futures, and C{asyncio.timeout()}, C{TaskGroup} and their kin find
the task that they are in. In both cases it may await Deferreds, and its first step is
made at once, so that calls start in the order in which they were made.

A task can wait for futures alone, and makes its first step in a later turn. So a
L{_Steps} object is between a task and its coroutine: it makes the first step, and gives
the task a future in place of each Deferred.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from .awaiting import Pending, runningLoop

__all__ = ["runCoroutine"]

_CANCELLED: Final = object()


def runCoroutine(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    """
    Run a coroutine.

    @return: A Deferred that fires with its result, in a turn of the reactor of its own
        unless the coroutine ends at once. Cancelling the Deferred cancels the task; the
        Deferred then fires when the coroutine has ended.
    """
    loop = runningLoop()
    if loop is None:
        return Deferred.fromCoroutine(coroutine)
    return _Steps(coroutine, loop).begin()


class _Steps(Coroutine[Any, Any, None]):
    """
    What a task runs in place of a coroutine. The task itself has no result.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], loop: AbstractEventLoop
    ) -> None:
        # They are shown in the representation of the task.
        self.__name__ = getattr(coroutine, "__name__", "")
        self.__qualname__ = getattr(coroutine, "__qualname__", "")
        self._coroutine = coroutine
        self._loop = loop
        self._hasEnded = False
        self._hasFirst = False
        self._first: object = None
        # It fires with the result; a cancelled call waits for it, too.
        self._deferred = Pending(self._cancel)
        self._deferred.addCallback(self._waitAfterCancel)

    def begin(self) -> Deferred[Any]:
        """
        Make the first step.

        @return: A Deferred that fires with the result.
        """
        loop, context = self._loop, copy_context()
        task = self._task = loop.create_task(self, context=context)
        current = asyncio.current_task(loop)
        if current is not None:
            asyncio._leave_task(loop, current)
        asyncio._enter_task(loop, task)
        try:
            self._first = context.run(self._step, self._coroutine.send, None)
            self._hasFirst = True
        except StopIteration as end:
            self._deferred.callback(end.value)
        finally:
            asyncio._leave_task(loop, task)
            if current is not None:
                asyncio._enter_task(loop, current)
        return self._deferred

    def send(self, value: None) -> Any:
        """
        Make a step.
        """
        if self._hasEnded:
            raise StopIteration
        if self._hasFirst:
            self._hasFirst = False
            return self._first
        return self._stepInTask(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """
        Raise an error in the coroutine, and make a step.
        """
        self._hasFirst = False
        return self._stepInTask(self._coroutine.throw, *error)

    def close(self) -> None:
        """
        Close the coroutine.
        """
        self._coroutine.close()

    def __await__(self) -> Any:
        raise NotImplementedError

    def _stepInTask(self, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._step(step, *arguments)
        except StopIteration as end:
            # What waits for the result does not belong to this task.
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
        except asyncio.CancelledError:
            result = Failure(CancelledError())
        except BaseException:
            result = Failure()
        else:
            return self._wait(awaited) if isinstance(awaited, Deferred) else awaited
        self._hasEnded = True
        raise StopIteration(result)

    def _wait(self, deferred: Deferred[Any]) -> Future[None]:
        future = self._loop.create_future()

        def fired(result: object) -> object:
            if not future.done():
                future.set_result(None)
            return result

        def done(future: Future[None]) -> None:
            if future.cancelled():
                deferred.addErrback(lambda failure: failure.trap(CancelledError))
                deferred.cancel()

        future.add_done_callback(done)
        deferred.addBoth(fired)
        # So a future tells the task that it is awaited.
        future._asyncio_future_blocking = True
        return future

    def _fire(self, result: object) -> None:
        self._deferred.callback(result)

    def _cancel(self, deferred: Deferred[Any]) -> None:
        self._task.cancel()
        self._deferred = Pending(self._cancel)
        self._deferred.addCallback(self._waitAfterCancel)
        deferred.callback(_CANCELLED)

    def _waitAfterCancel(self, result: object) -> object:
        return self._deferred if result is _CANCELLED else result
