"""
The time of an asyncio loop, as tsrv takes it.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

__all__ = ["LoopTime"]


@implementer(IDelayedCall)
class _Timer:
    """
    A call in the future.
    """

    def __init__(self, time: float, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call
        self._cancelled = False
        self._schedule(time)

    def _schedule(self, time: float) -> None:
        self._time = time
        loop = asyncio.get_running_loop()
        self._handle: TimerHandle = loop.call_later(time - monotonic(), self._run)

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
        """
        @return: The time of the call.
        """
        return self._time

    def cancel(self) -> None:
        """
        Do not make the call.

        @raise AlreadyCalled: It was made.
        @raise AlreadyCancelled: It was cancelled.
        """
        self._check()
        self._cancelled = True
        self._call = None
        self._handle.cancel()

    def delay(self, secondsLater: float) -> None:
        """
        Make the call later.

        @param secondsLater: The further delay in seconds.
        """
        self._check()
        self._handle.cancel()
        self._schedule(self._time + secondsLater)

    def reset(self, secondsFromNow: float) -> None:
        """
        Make the call at another time.

        @param secondsFromNow: The delay in seconds.
        """
        self._check()
        self._handle.cancel()
        self._schedule(monotonic() + secondsFromNow)

    def active(self) -> bool:
        """
        @return: Whether the call is still to be made.
        """
        return self._call is not None


@implementer(IReactorTime)
class LoopTime:
    """
    Schedules calls with the loop that is running.

    @cvar isNative: Whether callers are tasks of asyncio.
    """

    isNative = True

    def seconds(self) -> float:
        """
        @return: The time in seconds, of a clock that is never set.
        """
        return monotonic()

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
        @raise RuntimeError: No loop is running.
        """
        return _Timer(monotonic() + delay, partial(callable, *args, **kwargs))

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """
        @raise NotImplementedError: A loop does not say.
        """
        raise NotImplementedError
