"""
The modules of a program that runs on asyncio.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from twisted.python.failure import Failure

from ..errors import Unavailable
from ..startup import Startup as _Startup
from ..startup import Status
from .log import logWithLogging
from .looptime import LoopTime

__all__ = ["Startup"]


class Startup(_Startup):
    """
    L{tsrv.Startup} on the loop that is running. The modules are initialised when its
    C{async with} is entered, which does not wait for them, and closed when it is left.
    A required module that fails for good cancels what is in the C{async with}, which
    then raises L{StartupFailed<tsrv.startup.StartupFailed>}.
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
        @param replacements: As for L{tsrv.Startup}, like the others.
        @param stopProgram: Called in place of cancelling what is in the C{async with}.
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
        self.startService()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if self._failure is None or task is None:
            await self.stopService()
            return
        if not isinstance(error, asyncio.CancelledError):
            # It may be on its way.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        try:
            await self.stopService()
        finally:
            isCancelled = task.uncancel() > 0
        if isCancelled and error is None:
            # Somebody else has cancelled the task, too.
            raise asyncio.CancelledError
        if not isCancelled and (error is None or _isConsequence(error)):
            raise self._failure

    def _cancel(self, status: int) -> None:
        if self._task is not None:
            self.whenReady().addErrback(self._failed)
            self._task.cancel()

    def _failed(self, failure: Failure) -> None:
        self._failure = failure.value


def _isConsequence(error: BaseException) -> bool:
    """
    @return: Whether an error says no more than that a task was cancelled, or a module
        is unavailable; or groups such errors.
    """
    group = BaseExceptionGroup("", [error])
    return group.split((asyncio.CancelledError, Unavailable))[1] is None
