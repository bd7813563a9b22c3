"""
Deferreds that can be awaited in a coroutine of Twisted and in a task of asyncio.

Both drive a coroutine, and wait for what it yields: Twisted for a Deferred, a task for
a future. Nobody knows which one is driving: a task may run Twisted's code, and the
other way round. So while an asyncio loop is running, a L{Pending} yields an L{Awaited},
which either of them can wait for.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

__all__ = ["Awaited", "Pending", "runningLoop"]


def runningLoop() -> AbstractEventLoop | None:
    """
    @return: The asyncio loop that is running in this thread; L{None} without one.
    """
    return asyncio._get_running_loop()


class Pending(Deferred[Any]):
    """
    A Deferred that tsrv hands out.
    """

    def __await__(self) -> Generator[Deferred[Any], None, Any]:
        while not self.called or self.paused:
            # Without a loop, this Deferred is as good and costs less.
            yield self if asyncio._get_running_loop() is None else Awaited(self)
        result: Any = self.result
        if isinstance(result, Failure):
            # This raises the error.
            return (yield from super().__await__())
        return result


class Awaited(Deferred[Any]):
    """
    What a coroutine yields while it waits for another Deferred. Twisted takes it for a
    Deferred, and a task of asyncio for a future, since it looks for what a future has.
    """

    _asyncio_future_blocking = True

    def __init__(self, awaited: Deferred[Any]) -> None:
        """
        @param awaited: The other Deferred; it keeps its result.
        """
        super().__init__()
        self._awaited = awaited
        self._read = _succeed
        awaited.addBoth(self._fired)

    def _fired(self, result: object) -> object:
        # The other Deferred has its result only when its callbacks have run.
        asyncio.get_running_loop().call_soon(self._fire)
        return result

    def _fire(self) -> None:
        # A task calls result(), and that is where a Deferred has its result.
        self.callback(self._read)

    def get_loop(self) -> AbstractEventLoop:
        """
        @return: The loop that is running.
        """
        return asyncio.get_running_loop()

    def add_done_callback(
        self, wake: Callable[[Any], object], *, context: Context
    ) -> None:
        """
        Have a task woken when this fires.
        """
        self.addBoth(lambda _: context.run(wake, self))

    def cancel(self, msg: object = None) -> bool:  # type: ignore[override]
        """
        Cancel the other Deferred.

        @param msg: What a task gives to a future, and nobody needs.
        @return: Whether this has not fired before.
        """
        if self.called:
            return False
        self._read = _failCancelled
        # Its error is that of the task now.
        self._awaited.addErrback(lambda failure: failure.trap(CancelledError))
        self._awaited.cancel()
        return True


def _succeed() -> None: ...


def _failCancelled() -> None:
    raise asyncio.CancelledError
