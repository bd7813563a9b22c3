"""
Deferreds that fire together. Each caller that waits for an event gets its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..errors import QueueFull
from .awaiting import Pending, fired
from .foreign import readResult

__all__ = ["Waiters"]


class Waiters:
    """
    Deferreds that fire together. Cancelling one of them takes constant time and
    does not affect the others.
    """

    def __init__(self, limit: int, what: str) -> None:
        """
        @param limit: Maximum number of waiters.
        @param what: The event, for the error if there are too many waiters: C{"for
            the database to close"}.
        """
        self._limit = limit
        self._what = what
        self._waiting: dict[Deferred[Any], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self) -> Deferred[Any]:
        """
        Add a waiter.

        @return: A Deferred that fires with the others; it fails with L{QueueFull}
            if too many are waiting already.
        """
        if len(self._waiting) >= self._limit:
            return fired(QueueFull(f"{self._limit} callers wait {self._what}"))
        waiter = Pending(self._remove)
        self._waiting[waiter] = None
        return waiter

    def takeAll(self) -> Waiters:
        """
        Move all waiters into a new object, to fire them later: a Deferred that
        is handed out in the meantime waits for the next event.
        """
        taken = Waiters(self._limit, self._what)
        taken._waiting, self._waiting = self._waiting, {}
        return taken

    def succeed(self, result: Any = None) -> None:
        """
        Fire all waiters with one result.
        """
        self._fire(lambda: result)

    def fail(self, makeError: Callable[[], BaseException]) -> None:
        """
        Fail all waiters.

        @param makeError: Makes the error of each of them.
        """
        self._fire(lambda: Failure(makeError()))

    def _fire(self, makeResult: Callable[[], Any]) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            # The callback of one waiter may have cancelled another one.
            if not waiter.called:
                result = makeResult()
                waiter.callback(result)
                # The failure is in the log already: do not log it as unhandled.
                if waiter.result is result:
                    readResult(waiter)

    def _remove(self, waiter: Deferred[Any]) -> None:
        self._waiting.pop(waiter, None)
