"""
Sessions that have ended are removed from time to time, a part at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..asyncmodule import NotInitialized
from .store import SessionsUnavailable

__all__ = ["Sweeper"]

_PART: Final = 1_000
"""
How many sessions are removed at a time.
"""

_LONGEST: Final = 1.0
"""
The most seconds between two parts.
"""

_SWEEP: Final = 15 * 60.0
_JITTER: Final = 0.1
"""
After how many seconds what has ended is removed, and by what share of that it may
be more or less: several servers need not do it at the same time.
"""


class Sweeper:
    """
    What removes sessions. How that is done is left to two methods.

    @ivar initialized: Whether it can be asked.
    """

    _log = Logger()

    initialized = False

    def __init__(self, reactor: Any, random: Callable[[], float]) -> None:
        """
        @param reactor: Provides the time.
        @param random: The source of chance: answers numbers from 0 to 1.
        """
        self._reactor = reactor
        self._random = random
        self._sweep: IDelayedCall | None = None
        self._sweeping: Deferred[int] | None = None
        self._pauses: set[Deferred[None]] = set()

    def _removeEnded(self, most: int) -> Deferred[int]:
        """
        Remove some that have ended.

        @return: A Deferred of how many; fewer than C{most} if there are no more.
        """
        raise NotImplementedError

    def _removeSome(self, most: int) -> Deferred[int]:
        """
        Remove some, whatever they are.

        @return: As that of L{_removeEnded}.
        """
        raise NotImplementedError

    def clear(self) -> Deferred[int]:
        """
        @see: L{ISessionStore.clear<tsrv.sessions.ISessionStore.clear>}
        """
        if not self.initialized:
            return self._notYet()
        return Deferred.fromCoroutine(self._removeAll(self._removeSome))

    def cleanup(self) -> Deferred[int]:
        """
        @see: L{ISessionStore.cleanup<tsrv.sessions.ISessionStore.cleanup>}
        """
        if not self.initialized:
            return self._notYet()
        return Deferred.fromCoroutine(self._removeAll(self._removeEnded))

    async def _removeAll(self, remove: Callable[[int], Deferred[int]]) -> int:
        """
        Remove a part at a time, and leave others as much time in between.
        """
        total = 0
        while True:
            begun = self._reactor.seconds()
            removed = await remove(_PART)
            total += removed
            if removed < _PART:
                return total
            taken = self._reactor.seconds() - begun
            await self._pause(min(max(taken, 0.0), _LONGEST))

    async def _pause(self, seconds: float) -> None:
        pause: Deferred[None] = deferLater(self._reactor, seconds)
        self._pauses.add(pause)
        try:
            await pause
        except CancelledError:
            if self.initialized:
                raise
            raise SessionsUnavailable("the sessions have been closed") from None
        finally:
            self._pauses.remove(pause)

    def _notYet(self) -> Deferred[Any]:
        return fail(NotInitialized("The sessions cannot be asked yet"))

    # Sweeping.

    def _begin(self) -> None:
        """
        It can be asked from now on.
        """
        self.initialized = True
        self._sweepLater()

    def _end(self) -> None:
        """
        It cannot be asked any more.
        """
        self.initialized = False
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if self._sweeping is not None:
            self._sweeping.cancel()
        for pause in list(self._pauses):
            pause.cancel()

    def _sweepLater(self) -> None:
        seconds = _SWEEP * (1 - _JITTER + 2 * _JITTER * self._random())
        self._sweep = self._reactor.callLater(seconds, self._sweepNow)

    def _sweepNow(self) -> None:
        self._sweep = None
        self._sweeping = self.cleanup()
        self._sweeping.addBoth(self._swept)

    def _swept(self, result: int | Failure) -> None:
        self._sweeping = None
        if isinstance(result, Failure):
            if self.initialized:
                self._log.warn(
                    "Sessions that have ended could not be removed: {reason}",
                    reason=result.value,
                )
        elif result:
            self._log.info("Removed {count} sessions that had ended", count=result)
        if self.initialized:
            self._sweepLater()
