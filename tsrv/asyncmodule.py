"""
The interfaces of an asynchronously initialised module, and a minimal example: a clock
that needs some time before it can tell the time.

A module knows nothing of queues or wrappers. It has an C{initialize()} that
returns a Deferred, and methods that fail until this Deferred has fired.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from math import isfinite

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from zope.interface import Attribute, Interface, implementer

__all__ = [
    "AsyncModule",
    "IAsyncModule",
    "ICountsFailures",
    "IHasNote",
    "IPredictable",
    "ISettlesCalls",
    "NotInitialized",
    "State",
    "timeOfDay",
]


class NotInitialized(Exception):
    """
    The module was used before it was initialised.
    """


class IAsyncModule(Interface):
    """
    A module that cannot work before it is initialised.

    Three more methods are optional. C{close()} releases the resources of the module;
    it may return a Deferred, and must work after an initialisation that failed or was
    cancelled. C{whenLost()} is called after each successful initialisation and returns
    a new Deferred that fires, with or without an error, when the module stops working.
    If possible, it should fire before the calls in progress fail. C{whenIdle()} returns
    a new Deferred that fires when all calls that are in progress have ended.
    """

    initialized: bool = Attribute("Whether the module can work now.")

    def initialize() -> Deferred[None]:
        """
        Make the module ready to work.

        @return: A Deferred that fires when the module is ready, and fails with
            the reason when it cannot become ready. Cancelling it cancels the
            attempt.
        """


class IPredictable(Interface):
    """
    A module that knows how long its initialisation takes.
    """

    def secondsUntilInitialized() -> float | None:
        """
        @return: The remaining seconds of the initialisation in progress; L{None} if
            there is none, or its duration is unknown.
        """


class ISettlesCalls(Interface):
    """
    A module that promises to end each of its calls, if necessary with an error, even
    if it is lost or closed during the call. The interface has no methods: declaring it
    is enough. A wrapper then does not track the calls, and while the module is ready
    they cost what direct calls cost.
    """


class IHasNote(Interface):
    """
    A module that may have a note for the operator, even while it is ready.
    """

    def note() -> str | None:
        """
        @return: A few words for the report of the start-up, or L{None}. The words
            must contain no secrets.
        """


class ICountsFailures(Interface):
    """
    A module that counts its failed calls while it is ready, for the metrics.
    """

    failures: Mapping[str, int] = Attribute(
        "The number of failures by code, which only grows. The number of codes is "
        "bounded: see L{tsrv.failures.Failures}."
    )


class State(Enum):
    """
    The states of a wrapper, which L{tsrv.queuing.states} explains.
    """

    NEW = "new"
    INITIALIZING = "initializing"
    RETRYING = "retrying"
    DRAINING = "draining"
    READY = "ready"
    PAUSED = "paused"
    LOST = "lost"
    FAILED = "failed"
    CLOSING = "closing"
    CLOSED = "closed"


def timeOfDay(clock: IReactorTime) -> float:
    """
    Return the time of day, in seconds since 1970 in UTC. The C{seconds()} of a reactor
    may differ from it after the system's clock was set, see L{tsrv.server.steadytime}.

    @param clock: The reactor; or a clock of a test, which is its own time of day.
    """
    seconds: float = getattr(clock.seconds, "timeOfDay", clock.seconds)()
    return seconds


@implementer(IAsyncModule, IPredictable)
class AsyncModule:
    """
    A clock that takes some time to start.

    @ivar initialized: Whether L{tellMeSomething} can tell the time.
    """

    def __init__(self, reactor: IReactorTime, delay: float = 10.0) -> None:
        """
        @param reactor: Provides the time.
        @param delay: The duration of the initialisation, in seconds.
        @raise ValueError: C{delay} is negative or not a finite number.
        """
        if not isfinite(delay) or delay < 0:
            raise ValueError(f"delay must be a number of seconds >= 0, not {delay!r}")
        self.initialized = False
        self._reactor = reactor
        self._delay = delay
        self._start: IDelayedCall | None = None
        self._waiting: dict[Deferred[None], None] = {}

    def initialize(self) -> Deferred[None]:
        """
        Start the clock.

        Callers share one start. After it, the Deferred fires at once. Cancelling the
        Deferred ends the waiting of one caller; when the last caller cancels, the
        start is cancelled, and the next call begins a new one.

        @return: A Deferred that fires with L{None} when the clock is ready.
        """
        if self.initialized:
            return succeed(None)
        if self._start is None:
            self._start = self._reactor.callLater(self._delay, self._started)
        waiting: Deferred[None] = Deferred(self._giveUp)
        self._waiting[waiting] = None
        return waiting

    def secondsUntilInitialized(self) -> float | None:
        """
        Return the remaining delay in seconds; L{None} while the clock is not starting.
        """
        if self._start is None:
            return None
        return max(0.0, self._start.getTime() - self._reactor.seconds())

    def tellMeSomething(self) -> Deferred[str]:
        """
        Tell the time; never before the next turn of the reactor.

        @return: A Deferred that fires with C{Current time is: } and the local
            time with its offset from UTC. It fails with L{NotInitialized} if
            the clock is not ready in the next turn.
        """
        return deferLater(self._reactor, 0, self._tell)

    def _tell(self) -> str:
        if not self.initialized:
            raise NotInitialized("I don't have anything to say right now")
        now = datetime.fromtimestamp(timeOfDay(self._reactor)).astimezone()
        return f"Current time is: {now.isoformat(' ', 'seconds')}"

    def _started(self) -> None:
        self._start = None
        self.initialized = True
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            # The callback of one caller may have cancelled another one.
            if not each.called:
                each.callback(None)

    def _giveUp(self, waiting: Deferred[None]) -> None:
        self._waiting.pop(waiting, None)
        if not self._waiting and self._start is not None:
            self._start.cancel()
            self._start = None
