"""
Removing many sessions without blocking everybody else: a part at a time, with
pauses; and the timer that does so for expired sessions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from .store import SessionsUnavailable

__all__ = ["Sweeper"]

MAX_REMOVED_TOGETHER: Final = 1_000
"""
Maximum number of sessions that are removed in one transaction.
"""

MAX_PAUSE_SECONDS: Final = 1.0
"""
Maximum number of seconds between two parts.
"""

INTERVAL_SECONDS: Final = 15 * 60.0
"""
Average number of seconds between two sweeps.
"""

JITTER: Final = 0.1
"""
Share of the interval by which it varies, so that several servers do not sweep at
the same time.
"""


class Sweeper:
    """
    Removes sessions in parts, and expired ones every quarter of an hour.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        removeExpired: Callable[[float, int], Awaitable[int]],
        random: Callable[[], float],
        *,
        sweeps: bool,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param removeExpired: Removes some of the sessions that will have expired at
            a time, at most so many; returns how many.
        @param random: Returns random numbers from 0 to 1.
        @param sweeps: Whether to remove expired sessions at intervals.
        """
        self._reactor = reactor
        self._removeExpired = removeExpired
        self._random = random
        self._sweeps = sweeps
        self._running = False
        self._timer: IDelayedCall | None = None
        self._sweep: Deferred[int] | None = None
        self._pauses: set[Deferred[None]] = set()

    def start(self) -> None:
        """
        Be ready to remove sessions, and sweep from now on.
        """
        self._running = True
        if not self._sweeps:
            return
        seconds = INTERVAL_SECONDS * (1 - JITTER + 2 * JITTER * self._random())
        self._timer = self._reactor.callLater(seconds, self._sweepNow)

    def stop(self) -> None:
        """
        Stop sweeping, and any L{removeAll} in progress.
        """
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sweep is not None:
            self._sweep.cancel()
        for pause in list(self._pauses):
            pause.cancel()

    async def removeAll(self, time: float) -> int:
        """
        Remove sessions in parts, with pauses as long as each part took.

        @param time: The time; sessions that will have expired by then are removed.
        @return: The number of removed sessions.
        """
        total = 0
        while True:
            begun = self._reactor.seconds()
            removed = await self._removeExpired(time, MAX_REMOVED_TOGETHER)
            total += removed
            if removed < MAX_REMOVED_TOGETHER:
                return total
            taken = self._reactor.seconds() - begun
            await self._pause(min(max(taken, 0.0), MAX_PAUSE_SECONDS))

    async def _pause(self, seconds: float) -> None:
        pause: Deferred[None] = deferLater(self._reactor, seconds)
        self._pauses.add(pause)
        try:
            await pause
        except CancelledError:
            if self._running:
                raise
            raise SessionsUnavailable("the store was closed") from None
        finally:
            self._pauses.remove(pause)

    def _sweepNow(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        self._sweep = Deferred.fromCoroutine(self.removeAll(now))
        self._sweep.addBoth(self._sweepEnded)

    def _sweepEnded(self, result: int | Failure) -> None:
        self._sweep = None
        if not self._running:
            return
        if isinstance(result, Failure):
            self._log.warn(
                "Cannot remove expired sessions: {reason}", reason=result.value
            )
        elif result:
            self._log.info("Removed {count} expired sessions", count=result)
        self.start()
