"""
Deferreds that can be awaited in a coroutine of Twisted and in a task of asyncio.

Both drive a coroutine, and wait for the object that it yields: Twisted for a Deferred,
a task for a future. A L{Pending} cannot know which of them drives it: a task may run
Twisted's code, and Twisted may run a task's. So while an asyncio loop is running, a
L{Pending} yields an L{Awaited}, for which both can wait.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

__all__ = ["Awaited", "Pending", "fired", "isCancelledWith", "runningLoop"]


def runningLoop() -> AbstractEventLoop | None:
    """
    @return: The asyncio loop that is running in this thread; L{None} without one.
    """
    return asyncio._get_running_loop()


class Pending(Deferred[Any]):
    """
    A Deferred that tsrv hands out. It replaces the coroutine that an asynchronous
    method returns, so C{asyncio.create_task()} accepts it as a coroutine, too.
    """

    _runs: Sequence[_Run] = ()

    def __await__(self) -> Generator[Deferred[Any], None, Any]:
        if self.called and not self.paused:
            return self.read()
        waited = self.waited()
        yield waited
        return waited.read()

    def asFuture(self, loop: AbstractEventLoop) -> Future[Any]:
        """
        @return: A future with the same result. Cancelling it cancels this at once.
        """
        return _CallFuture(self, loop)

    def waited(self) -> Pending | Awaited:
        """
        @return: The object that a coroutine yields to wait for this Deferred.
        """
        loop = runningLoop()
        # Without a loop, yielding this Deferred itself works, too, and costs less.
        return self if loop is None else Awaited(self, loop)

    def read(self) -> Any:
        """
        @return: The result.
        @raise BaseException: The error.
        """
        result: Any = self.result
        if isinstance(result, Failure):
            # This raises the error, which then counts as handled.
            next(super().__await__())
        return result

    # Methods of a coroutine.

    def send(self, value: object) -> Any:
        """
        Make a step.
        """
        run = self._findRun()
        if run is None:
            run = _Run(self.__await__(), self._findTask())
            self._runs = [*self._runs, run]
        return self._step(run, run.steps.send, value)

    def throw(self, *error: Any) -> Any:
        """
        Raise an error, and make a step.
        """
        run = self._findRun()
        if run is not None:
            return self._step(run, run.steps.throw, *error)
        # The task is cancelled before its first step. This step cancels the call.
        with suppress(BaseException):
            first = self.send(None)
            if isCancelledWith(first, error[0]):
                return first
        raise error[0]

    def close(self) -> None:
        """
        Make no further step.
        """
        run = self._findRun()
        if run is not None:
            self._step(run, run.steps.close)
            self._end(run)

    def _findTask(self) -> object:
        loop = runningLoop()
        task = None if loop is None else asyncio.current_task(loop)
        return task if task is not None and task.get_coro() is self else None

    def _findRun(self) -> _Run | None:
        task = self._findTask()
        for run in self._runs:
            # Twisted makes the next step once the awaited Deferred has fired.
            if run.task is task and (task is not None or run.awaited.called):
                return run
        return None

    def _step(self, run: _Run, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            run.awaited = step(*arguments)
        except BaseException:
            self._end(run)
            raise
        return run.awaited

    def _end(self, run: _Run) -> None:
        self._runs = [each for each in self._runs if each is not run]


class _Run:
    """
    One run of a L{Pending} as a coroutine.
    """

    awaited: Any = None

    def __init__(self, steps: Generator[Any, Any, Any], task: object) -> None:
        """
        @param task: The task that runs it; L{None} if Twisted does.
        """
        self.steps = steps
        self.task = task


def isCancelledWith(awaited: Any, error: object) -> bool:
    """
    Cancel the Deferred that a task waits for, if an error cancels the task.

    @return: Whether it was cancelled. The task then waits until it has fired.
    """
    if not isinstance(error, asyncio.CancelledError):
        return False
    return bool(hasattr(awaited, "cancel") and awaited.cancel(*error.args))


def fired(result: object = None) -> Pending:
    """
    @return: A L{Pending} that has fired with a result, or failed with an error.
    """
    pending = Pending()
    pending.callback(Failure(result) if isinstance(result, BaseException) else result)
    return pending


class _CallFuture(Future[Any]):
    """
    A future that cancels its Deferred at once. C{Deferred.asFuture()} cancels it a turn
    later, when the call may have been started.
    """

    def __init__(self, deferred: Deferred[Any], loop: AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._deferred: Deferred[Any] | None = deferred
        deferred.addCallbacks(self._succeed, self._fail)

    def cancel(self, msg: Any = None) -> bool:
        deferred = self._deferred
        if not super().cancel(msg):
            return False
        if deferred is not None:
            deferred.cancel()
        return True

    def _succeed(self, result: object) -> None:
        self._deferred = None
        if not self.done():
            self.set_result(result)

    def _fail(self, failure: Failure) -> None:
        self._deferred = None
        error: Any = failure.value
        if isinstance(error, StopIteration):
            # A coroutine converts this error, too; a future does not accept it.
            error = RuntimeError("a call raised StopIteration")
            error.__cause__ = failure.value
        if not self.done():
            self.set_exception(error)


class Awaited(Deferred[Any]):
    """
    A coroutine yields this object to wait for another Deferred. For Twisted it is a
    Deferred: the coroutine goes on as soon as the other one fires. For an asyncio task
    it is a future, since it has a future's methods: the task goes on in its next turn.

    The other Deferred keeps its result. This object keeps a copy, since later callbacks
    of the other one may change the result before a task goes on.
    """

    _asyncio_future_blocking = True
    _hasFired = False
    _isFiring = False
    _isCancelled = False
    _message: tuple[object, ...] = ()
    _value: Any = None
    _wake: Callable[[], object] | None = None

    def __init__(self, awaited: Deferred[Any], loop: AbstractEventLoop) -> None:
        """
        @param awaited: The other Deferred, which has not fired.
        @param loop: The loop that is running.
        """
        super().__init__()
        self._awaited = awaited
        self._loop = loop
        awaited.addBoth(self._fired)

    def __str__(self) -> str:
        return f"<Awaited: {self._awaited}>"

    __repr__ = __str__

    def _fired(self, value: object) -> object:
        self._value = value
        self._hasFired = self._isFiring = True
        # The callable refers to this object: break the cycle.
        wake, self._wake = self._wake, None
        if wake is None:
            self.callback(None)
        else:
            wake()
        self._isFiring = False
        return value

    def read(self) -> Any:
        """
        @return: The result of the other Deferred.
        @raise BaseException: The error of the other Deferred.
        """
        value = self._value
        if isinstance(value, Failure):
            if self._isFiring:
                # The other Deferred's callbacks are running, and pass the failure on.
                self._soon(self._handle)
            else:
                self._handle()
            value.raiseException()
        return value

    def _handle(self) -> None:
        if getattr(self._awaited, "result", None) is self._value:
            with suppress(BaseException):
                next(self._awaited.__await__())

    # Methods of a future.

    def _readInTask(self) -> object:
        # The attribute refers to this object: break the cycle.
        del self.result
        try:
            return self.read()
        except CancelledError:
            if self._isCancelled:
                raise asyncio.CancelledError(*self._message) from None
            raise

    def get_loop(self) -> AbstractEventLoop:
        """
        @return: The loop in which this can be awaited.
        """
        return self._loop

    def add_done_callback(
        self, wake: Callable[[Any], object], *, context: Context
    ) -> None:
        """
        Have a task woken when this fires.
        """
        # A Deferred keeps its result in this attribute, but only the task waits here.
        self.result = self._readInTask
        wakeSoon = partial(self._soon, wake, self, context=context)
        if self._hasFired:
            wakeSoon()
        else:
            self._wake = wakeSoon

    def _soon(self, *call: Any, **options: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon(*call, **options)

    def cancel(self, msg: object = None) -> bool:  # type: ignore[override]
        """
        Cancel the other Deferred.

        @param msg: The message of the task's C{CancelledError}.
        @return: Whether the other Deferred had not fired before.
        """
        if self._hasFired:
            return False
        self._isCancelled = True
        self._message = () if msg is None else (msg,)
        self._awaited.cancel()
        return True
