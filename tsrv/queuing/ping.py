"""
Pings: calls that find out whether a module still works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .foreign import callWithin
from .options import checkArguments, checkInterval

__all__ = ["Ping"]


class Ping:
    """
    Pings a module while it is ready. Each ping begins one interval after the end of
    the one before, and has to end within another.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        ping: Callable[[], object],
        interval: float,
        failed: Callable[[BaseException], object],
    ) -> None:
        """
        @param failed: Called with the error of a ping; no further one follows.
        """
        checkArguments("ping", ping, 0)
        checkInterval("pingInterval", interval)
        self._reactor = reactor
        self._ping = ping
        self._interval = interval
        self._failed = failed
        self._timer: IDelayedCall | None = None
        # The ping in progress; while it is being called, a mark in its place.
        self._current: object = None

    def start(self) -> None:
        """
        Begin the first interval.
        """
        self._timer = self._reactor.callLater(self._interval, self._begin)

    def stop(self) -> None:
        """
        Cancel the ping in progress, and send no other.
        """
        current = self.detach()
        if current is not None:
            current.cancel()

    def detach(self) -> Deferred[Any] | None:
        """
        Send no other ping, and do not wait for the one in progress.

        @return: The one in progress. To cancel it runs foreign code.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        current, self._current = self._current, None
        return current if isinstance(current, Deferred) else None

    def _begin(self) -> None:
        self._timer = None
        # The module may be closed or lost while it is being called.
        current = self._current = object()
        ended = callWithin(self._interval, self._reactor, self._ping, "ping")
        if current is not self._current:
            ended.cancel()
            return
        self._current = ended
        ended.addCallback(self._ended, ended)

    def _ended(self, error: BaseException | None, ping: Deferred[Any]) -> None:
        if ping is not self._current:
            return
        self._current = None
        if error is None:
            self.start()
        else:
            self._failed(error)
