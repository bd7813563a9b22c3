"""
Timers that do not depend on the system's clock.

Twisted's reactors read the system's clock. If the clock is set back by an hour, every
timer waits an hour longer; if it is set forward, every time limit expires
(U{https://github.com/twisted/twisted/issues/2424}). L{SteadyTime} replaces the
reactor's method C{seconds}, for which Twisted has no public way. The new method starts
at the time of day and then counts steadily. L{timeOfDay<tsrv.asyncmodule.timeOfDay>}
still returns the time of day.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic as systemMonotonic
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ..asyncmodule import timeOfDay

__all__ = ["SteadyTime"]

_log = Logger("tsrv.server")

CHECK_SECONDS: Final = 1.0

MIN_STEP_SECONDS: Final = 1.0
"""
Smallest logged step of the system's clock; NTP makes smaller corrections gradually.
"""

SILENT_SECONDS: Final = 60.0
"""
Minimum time between two warnings.
"""


class SteadyTime(Service):
    """
    Makes the time of a reactor steady permanently, and logs each step of the system's
    clock while the service runs. L{Server<tsrv.server.Server>} has this service if it
    owns the process. In other programs, add it to the application::

        SteadyTime(reactor).setServiceParent(application)

    A reactor in memory, such as C{Clock}, keeps its own time.
    """

    def __init__(
        self, reactor: Any, monotonic: Callable[[], float] = systemMonotonic
    ) -> None:
        """
        @param reactor: The reactor. The service replaces its method C{seconds}.
        @param monotonic: Returns the seconds of a clock that nobody can set.
        """
        self._reactor = reactor
        self._monotonic = monotonic
        self._ahead = 0.0
        self._timer: IDelayedCall | None = None

    def startService(self) -> None:
        """
        Make the time steady, and begin to watch the system's clock.
        """
        super().startService()
        if not isinstance(self._reactor, ReactorBase):
            return
        if not hasattr(self._reactor.seconds, "timeOfDay"):
            self._replace(self._reactor)
        self._ahead = self._difference()
        self._timer = self._reactor.callLater(CHECK_SECONDS, self._check)

    def stopService(self) -> None:
        """
        Stop watching the clock.
        """
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _replace(self, reactor: Any) -> None:
        monotonic = self._monotonic
        offset: float = reactor.seconds() - monotonic()

        def seconds() -> float:
            return monotonic() + offset

        vars(seconds)["timeOfDay"] = reactor.seconds
        reactor.seconds = seconds

    def _difference(self) -> float:
        now: float = self._reactor.seconds()
        return timeOfDay(self._reactor) - now

    def _check(self) -> None:
        before, self._ahead = self._ahead, self._difference()
        step = self._ahead - before
        delay = CHECK_SECONDS
        if abs(step) >= MIN_STEP_SECONDS:
            delay = SILENT_SECONDS
            # The steady clock stops while the machine is suspended.
            how = "set back" if step < 0 else "set forward, or the machine slept,"
            _log.warn(
                "The system clock was "
                + how
                + " by {seconds:.1f} s; timers keep their delays",
                seconds=abs(step),
            )
        self._timer = self._reactor.callLater(delay, self._check)
