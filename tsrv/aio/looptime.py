"""
The time of an asyncio loop, with the interface that tsrv needs.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, BaseEventLoop, TimerHandle
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from threading import get_ident
from time import monotonic, time
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from ..queuing.awaiting import runningLoop

__all__ = ["LoopTime"]


@implementer(IDelayedCall)
class _Timer:
    """
    A call in the future. The interface explains the methods.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        context: Context,
        time: float,
        call: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._context = context
        self._call: Callable[[], object] | None = call
        self._cancelled = False
        self._schedule(time)

    def _schedule(self, time: float) -> None:
        self._time = time
        self._handle: TimerHandle = self._loop.call_at(
            time, self._run, context=self._context
        )

    def _run(self) -> None:
        call, self._call = self._call, None
        assert call is not None
        call()

    def _check(self) -> None:
        if self._cancelled:
            raise AlreadyCancelled
        if self._call is None:
            raise AlreadyCalled

    def getTime(self) -> float:
        return self._time

    def cancel(self) -> None:
        self._check()
        self._cancelled = True
        self._call = None
        self._handle.cancel()

    def delay(self, secondsLater: float) -> None:
        self._check()
        self._handle.cancel()
        self._schedule(self._time + secondsLater)

    def reset(self, secondsFromNow: float) -> None:
        self._check()
        self._handle.cancel()
        self._schedule(self._loop.time() + secondsFromNow)

    def active(self) -> bool:
        return self._call is not None


@implementer(IReactorTime)
class LoopTime:
    """
    Schedules calls on a loop: the loop that runs when this is made or first used.

    @cvar isNative: Whether callers are asyncio tasks.
    @cvar timeOfDay: Returns the seconds since 1970 in UTC.
    @ivar ioThread: The thread of the loop; set once a loop is known.
    @ivar seconds: Returns the time of a monotonic clock, in seconds.
    """

    isNative = True
    timeOfDay = staticmethod(time)
    ioThread: int | None = None
    _loop: AbstractEventLoop | None = None

    def __init__(self) -> None:
        self._context = copy_context()
        # Most loops use this clock, too; calling it directly is faster.
        self.seconds: Callable[[], float] = monotonic
        self.checkLoop("LoopTime")

    def checkLoop(self, what: str) -> None:
        """
        @param what: The name of the called function.
        @raise RuntimeError: Another loop is running, or the loop is no longer running.
        """
        running = runningLoop()
        if self._loop is None and running is not None:
            self._loop = running
            self.ioThread = get_ident()
            if type(running).time is not BaseEventLoop.time:
                self.seconds = running.time
        elif running is not self._loop:
            raise RuntimeError(
                f"{what}() was called outside of the event loop in which the wrapper "
                "was used first: use loop.call_soon_threadsafe() or a new wrapper"
            )

    def callLater(
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002 - the interface says so
        *args: object,
        **kwargs: object,
    ) -> IDelayedCall:
        """
        Make a call later.

        @param delay: The delay in seconds.
        @raise RuntimeError: The loop is not running.
        """
        self.checkLoop("callLater")
        loop = self._loop
        if loop is None:
            raise RuntimeError("tsrv.aio needs a running event loop of asyncio")
        call = partial(callable, *args, **kwargs)
        # The call does not run in the context of the code that schedules it.
        context = self._context.copy()
        return _Timer(loop, context, loop.time() + delay, call)

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """
        @raise NotImplementedError: An asyncio loop does not list its calls.
        """
        raise NotImplementedError
