"""
The holders of a paused module, and the wait until the module is idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from .foreign import callToEnd, cancelForeign, errorOf
from .history import History
from .running import RunningCommands
from .waiters import Waiters

__all__ = ["Holds"]

# Maximum number of Deferreds that wait for a module to become idle.
MAX_IDLE_WAITERS: Final = 10_000


class Holds:
    """
    The holders of one module. The module is paused while it has at least one.
    """

    def __init__(
        self,
        name: str,
        history: History,
        running: RunningCommands,
        whenIdle: Callable[[], object] | None,
    ) -> None:
        """
        @param running: The calls in progress that tsrv tracks.
        @param whenIdle: Returns a Deferred that fires when the calls that only the
            module knows of have ended.
        """
        self._history = history
        self._running = running
        self._whenIdle = whenIdle
        self._holders: dict[object, None] = {}
        self._waiters = Waiters(MAX_IDLE_WAITERS, f"for {name} to become idle")
        # Identifies the current wait for the module to become idle; None without one.
        self._question: object = None
        self._asked: Deferred[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._holders)

    def __contains__(self, holder: object) -> bool:
        return holder in self._holders

    def add(self, holder: object) -> bool:
        """
        @return: Whether this is the first holder.
        """
        isFirst = not self._holders
        self._holders[holder] = None
        if isFirst:
            self._history.paused()
        return isFirst

    def remove(self, holder: object) -> bool:
        """
        @return: Whether this was the last holder.
        """
        if holder not in self._holders:
            return False
        del self._holders[holder]
        return not self._holders

    def resumed(self) -> None:
        """
        The last holder was removed: fail the waiters.
        """
        self._end(lambda: CancelledError("resumed before the module was idle"))

    def clear(self, makeError: Callable[[], BaseException]) -> None:
        """
        Remove all holders, because the module is closed.
        """
        self._holders.clear()
        self._end(makeError)

    def whenIdle(self, isReady: bool) -> Deferred[None]:
        """
        @param isReady: Whether to call the module's C{whenIdle()}, too.
        @return: A Deferred that fires when no call is in progress.
        """
        waiter = self._waiters.wait()
        if self._question is None:
            self._ask(isReady)
        return waiter

    def moduleLost(self) -> None:
        """
        The module is lost, so it has no calls of its own in progress.
        """
        if self._question is not None:
            self._ask(False)

    def _ask(self, isReady: bool) -> None:
        question = self._question = object()
        previous, self._asked = self._asked, None
        if previous is not None:
            cancelForeign(previous)
        asked = Deferred.fromCoroutine(self._untilIdle(isReady))
        asked.addBoth(self._answered, question)
        # whenIdle() may have fired at once, or resumed the module.
        if self._question is question:
            self._asked = asked

    async def _untilIdle(self, isReady: bool) -> None:
        await self._running.whenIdle()
        if isReady and self._whenIdle is not None:
            error = await callToEnd(self._whenIdle)
            if error is not None:
                raise error

    def _answered(self, result: object, question: object) -> None:
        if question is not self._question:
            return
        self._question = self._asked = None
        waiters = self._waiters.takeAll()
        if isinstance(result, Failure):
            error = errorOf(result)
            waiters.fail(lambda: error)
        else:
            waiters.succeed()

    def _end(self, makeError: Callable[[], BaseException]) -> None:
        self._history.resumed()
        self._question = None
        asked, self._asked = self._asked, None
        waiters = self._waiters.takeAll()
        if asked is not None:
            cancelForeign(asked)
        waiters.fail(makeError)
