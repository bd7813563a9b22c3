"""
Pings: calls that find out whether a module still works.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .foreign import callWithin
from .options import checkArguments

__all__ = ["Ping"]


class Ping:
    """
    Pings a module while it is ready. Each ping begins one interval after the end of
    the last one, or when L{now} is called, and must end within one interval.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        ping: Callable[[], object],
        interval: float,
        failed: Callable[[BaseException], object],
    ) -> None:
        """
        @param failed: Called with the error of a ping; no further ping follows.
        """
        checkArguments("ping", ping, 0)
        self._reactor = reactor
        self._ping = ping
        self._interval = interval
        self._failed = failed
        self._context = copy_context()
        # Callables for the success of the next ping, and of the one in progress.
        self._asking: list[Callable[[], object]] = []
        self._asked: list[Callable[[], object]] = []
        # Whether the next ping does not wait for the end of the interval.
        self._isUrgent = False
        self._timer: IDelayedCall | None = None
        # The ping in progress; while it is being called, a mark in its place.
        self._current: object = None

    def start(self) -> None:
        """
        Begin the first interval.
        """
        self._timer = self._reactor.callLater(self._interval, self._begin)

    def now(self, succeeded: Callable[[], object] | None) -> bool:
        """
        Begin a ping in the next turn of the reactor; or after the ping in progress,
        which began too early to prove anything.

        @param succeeded: Called when the ping has succeeded, if given. It runs no
            foreign code.
        @return: Whether pings are being sent.
        """
        if self._timer is None and self._current is None:
            return False
        if succeeded is not None:
            self._asking.append(succeeded)
        if not self._isUrgent:
            self._isUrgent = True
            if self._timer is not None:
                self._timer.reset(0)
        return True

    def stop(self) -> None:
        """
        Cancel the ping in progress, and send no further one.
        """
        current = self.detach()
        if current is not None:
            current.cancel()

    def detach(self) -> Deferred[Any] | None:
        """
        Send no further ping, and do not wait for the ping in progress.

        @return: The ping in progress. Cancelling it runs foreign code.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._isUrgent = False
        self._asking = []
        self._asked = []
        current, self._current = self._current, None
        return current if isinstance(current, Deferred) else None

    def _begin(self) -> None:
        self._timer = None
        self._isUrgent = False
        # The module may be closed or lost while it is being called.
        current = self._current = object()
        self._asked, self._asking = self._asking, []
        # A timer of asyncio may run in the context of a request.
        ended = self._context.copy().run(
            callWithin, self._interval, self._reactor, self._ping, "ping"
        )
        if current is not self._current:
            ended.cancel()
            return
        self._current = ended
        ended.addCallback(self._ended, ended)

    def _ended(self, error: BaseException | None, ping: Deferred[Any]) -> None:
        if ping is not self._current:
            return
        self._current = None
        if error is not None:
            self._failed(error)
            return
        self.start()
        if self._isUrgent and self._timer is not None:
            self._timer.reset(0)
        asked, self._asked = self._asked, []
        for succeeded in asked:
            succeeded()
