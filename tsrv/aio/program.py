"""
The modules of a program that runs on asyncio.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from twisted.python.failure import Failure

from ..errors import Unavailable
from ..startup import GraphError, Status
from ..startup import Startup as _Startup
from .log import logWithLogging
from .looptime import LoopTime

__all__ = ["Startup"]


class Startup(_Startup):
    """
    L{tsrv.Startup} on the running loop::

        program = Startup()
        greeter = program.add("greeter", Greeter()).proxy
        async with program:  # initialises the modules, and closes them at the end
            print(await greeter.greet("Ada"))  # queued until the greeter is ready

    Modules may also be added in the body of C{async with}, before its first C{await}.
    When a required module fails for good, the body is cancelled, and C{async with}
    raises L{StartupFailed<tsrv.StartupFailed>}. In the lifespan of an ASGI application,
    the task belongs to the framework: pass C{stayUp=True}, and report L{missing}.
    """

    def __init__(
        self,
        *,
        replacements: Mapping[str, object] | None = None,
        stayUp: bool = False,
        stopProgram: Callable[[int], object] | None = None,
        concurrency: int | None = None,
    ) -> None:
        """
        @param replacements: Fakes that replace modules in tests, by name.
        @param stayUp: Whether the program keeps running when a required module has
            failed for good.
        @param stopProgram: Takes an exit status; called in place of cancelling the body
            of C{async with}.
        @param concurrency: Maximum number of modules that are initialised at the same
            time; L{None} for no limit.
        """
        logWithLogging()
        super().__init__(
            LoopTime(),
            replacements=replacements,
            stayUp=stayUp,
            stopProgram=self._cancel if stopProgram is None else stopProgram,
            concurrency=concurrency,
        )
        self._task: Task[Any] | None = None
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        if self.status is Status.NEW:
            self._task = asyncio.current_task()
            if not self.wrappers:
                asyncio.get_running_loop().call_soon(self._start)
                return self
        self.startService()
        return self

    async def __aexit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> None:
        task, self._task = self._task, None
        if self._failure is None or task is None:
            await self.stopService()
            return
        if not isinstance(error, asyncio.CancelledError):
            # The cancellation may not have arrived yet.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        try:
            await self.stopService()
        finally:
            isCancelled = task.uncancel() > 0
        if isCancelled and error is None:
            # Other code has cancelled the task, too.
            raise asyncio.CancelledError
        if not isCancelled and (error is None or _isConsequence(error)):
            raise self._failure

    def _start(self) -> None:
        if self._task is None:
            return
        try:
            self.startService()
        except GraphError as error:
            self._failure = error
            self._task.cancel()

    def _cancel(self, status: int) -> None:
        if self._task is not None:
            self.whenReady().addErrback(self._failed)
            self._task.cancel()

    def _failed(self, failure: Failure) -> None:
        self._failure = failure.value


def _isConsequence(error: BaseException) -> bool:
    # True for CancelledError and Unavailable, and for groups of only such errors.
    group = BaseExceptionGroup("", [error])
    return group.split((asyncio.CancelledError, Unavailable))[1] is None
