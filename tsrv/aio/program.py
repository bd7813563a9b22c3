"""
The modules of a program that runs on asyncio.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from twisted.python.failure import Failure

from ..startup import Startup as _Startup
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
        try:
            await self.stopService()
        except asyncio.CancelledError as cancelled:
            if self._failure is None:
                raise
            # It was on its way when the body ended.
            error = cancelled
            await self.stopService()
        if self._failure is None or not isinstance(error, asyncio.CancelledError):
            return
        if task is not None and not task.uncancel():
            raise self._failure

    def _cancel(self, status: int) -> None:
        if self._task is not None:
            self.whenReady().addErrback(self._failed)
            self._task.cancel()

    def _failed(self, failure: Failure) -> None:
        self._failure = failure.value
