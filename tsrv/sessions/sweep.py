"""
Removes many sessions without blocking other users of the database: in parts, with
pauses. A timer does so for expired sessions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import uniform
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from ..asyncmodule import timeOfDay
from ..queuing.history import explain
from .store import SessionsUnavailable

__all__ = ["Sweeper"]

_log = Logger("tsrv.sessions")

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

    def __init__(
        self,
        reactor: Any,
        removeExpired: Callable[[float, int], Awaitable[tuple[int, bool]]],
        *,
        sweeps: bool,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param removeExpired: Called with a time and a maximum number; removes rows
            that expire by this time; returns the number of sessions among them, and
            whether there may be more rows.
        @param sweeps: Whether to remove expired sessions at intervals.
        """
        self._reactor = reactor
        self._removeExpired = removeExpired
        self._sweeps = sweeps
        self._running = False
        self._timer = LoopingCall(self._sweep)
        self._pauses: set[Deferred[None]] = set()

    def start(self) -> None:
        """
        Allow L{removeAll}, and sweep at intervals from now on.
        """
        self._running = True
        if self._sweeps:
            # A stopped timer may still run its last sweep, so it is not reused.
            self._timer = LoopingCall(self._sweep)
            self._timer.clock = self._reactor
            share = uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
            self._timer.start(INTERVAL_SECONDS * share, now=False)

    def stop(self) -> None:
        """
        Stop sweeping, and any L{removeAll} in progress.
        """
        self._running = False
        if self._timer.running:
            self._timer.stop()
        for pause in list(self._pauses):
            pause.cancel()

    async def removeAll(self, time: float) -> int:
        """
        Remove sessions in parts, with pauses as long as each part took.

        @param time: Sessions that expire by this time are removed.
        @return: The number of removed sessions.
        @raise SessionsUnavailable: The store was closed meanwhile.
        """
        total = 0
        while self._running:
            begun = self._reactor.seconds()
            removed, isMore = await self._removeExpired(time, MAX_REMOVED_TOGETHER)
            total += removed
            if not isMore:
                return total
            taken = self._reactor.seconds() - begun
            await self._pause(min(max(taken, 0.0), MAX_PAUSE_SECONDS))
        raise SessionsUnavailable("the store was closed")

    async def _pause(self, seconds: float) -> None:
        if not self._running:
            return
        pause: Deferred[None] = deferLater(self._reactor, seconds)
        self._pauses.add(pause)
        try:
            await pause
        except CancelledError:
            if self._running:
                raise
        finally:
            self._pauses.remove(pause)

    async def _sweep(self) -> None:
        try:
            removed = await self.removeAll(timeOfDay(self._reactor))
        except Exception as error:
            if self._running:
                _log.warn(
                    "Cannot remove expired sessions: {error}", error=explain(error)
                )
        else:
            if removed:
                _log.info("Removed {count} expired sessions", count=removed)
