"""
The interfaces of an asynchronously initialised module, and a minimal example: a clock
that takes some time to start.

A module knows nothing of queues or wrappers. Its C{initialize()} returns a Deferred,
and its other methods fail until this Deferred has fired.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from math import isfinite
from typing import TypeAlias, Union

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock, deferLater
from zope.interface import Attribute, Interface, implementer

__all__ = [
    "AsyncModule",
    "IAsyncModule",
    "ICountsFailures",
    "IHasNote",
    "IPredictable",
    "ISettlesCalls",
    "NotInitialized",
    "ReactorTime",
    "State",
    "timeOfDay",
]

ReactorTime: TypeAlias = Union[IReactorTime, Clock]  # noqa: UP007
"""
The provider of the time: a reactor, or a C{Clock} in a test. (Some type checkers do not
know that a C{Clock} is an C{IReactorTime}.)
"""


class NotInitialized(Exception):
    """
    The module was used before it was initialised.
    """


class IAsyncModule(Interface):
    """
    A module that cannot work before it is initialised. tsrv accepts any object with
    these methods, whether it declares the interface or not.

    A method may return a Deferred, a coroutine, an asyncio future or any other
    awaitable: tsrv waits for it. It does not wait for an awaitable that is also a
    context manager: the caller gets this object. A method may return one Deferred
    several times, since the Deferred keeps its result. During its initialisation a
    module must not call its own proxy: the call would wait for the initialisation.

    Three more methods are optional:

      - C{close()} releases the resources of the module. It must work after an
        initialisation that failed or was cancelled, too.
      - C{whenLost()} is called after each successful initialisation, and returns a new
        Deferred that fires, with or without an error, when the module stops working.
        It should fire before the calls in progress fail. The reverse order works, too,
        within one turn of the reactor.
      - C{whenIdle()} returns a new Deferred that fires when all calls in progress have
        ended.
    """

    initialized: bool = Attribute("Whether the module can work now.")

    def initialize() -> Deferred[None]:
        """
        Make the module ready to work. After a failed attempt, and after a loss that
        C{whenLost()} has reported, this is called again without a C{close()} before.

        @return: A Deferred that fires when the module is ready, or fails with the
            reason why it is not. Cancelling it cancels the attempt.
        """


class IPredictable(Interface):
    """
    A module that knows how long its initialisation takes. C{retryAfter} of its wrapper
    and of its errors is this time.
    """

    def secondsUntilInitialized() -> float | None:
        """
        Return the remaining seconds of the initialisation in progress; L{None} while
        the module is not being initialised, or if the duration is unknown.
        """


class ISettlesCalls(Interface):
    """
    A module that promises to end each of its calls, if necessary with an error, even
    if it is lost or closed during the call. The interface has no methods: declaring it
    is enough. A wrapper then does not track calls that are made while the module is
    ready, and they cost what direct calls cost (C{async def}: a Deferred more); except
    for methods in C{replay}, and under Twisted's asyncio reactor.
    """


class IHasNote(Interface):
    """
    A module that may have a note for the operator while it is ready.
    """

    def note() -> str | None:
        """
        Return a few words for the status page and the report of the start-up, or
        L{None}. They must contain no secrets.
        """


class ICountsFailures(Interface):
    """
    A module that counts failed calls while it is ready, for the metrics.
    """

    failures: Mapping[str, int] = Attribute(
        "The number of failures by code, such as an SQLSTATE. The numbers only grow, "
        "and the number of codes must be bounded: L{tsrv.failures.Failures} does both."
    )


class State(Enum):
    """
    The states of a wrapper, and what happens to a call in each of them:

      - C{NEW}: C{initialize()} was not called yet. Calls are queued.
      - C{INITIALIZING}: An attempt is in progress, or waits for its turn. Calls are
        queued.
      - C{RETRYING}: An attempt failed, and the next one is scheduled. Calls are queued.
      - C{DRAINING}: The module is ready, and the queued calls are being started. Calls
        are queued behind them.
      - C{READY}: The queue is empty. Calls go straight to the module.
      - C{PAUSED}: The module is ready, but C{pause()} was called. Calls are queued.
      - C{LOST}: The module was ready and stopped working, or was reset. Calls are
        queued.
      - C{FAILED}: No retry will help. Calls fail at once with C{InitializationFailed}.
      - C{CLOSING}, C{CLOSED}: C{close()} was called. Calls fail at once with C{Closed}.
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


def timeOfDay(clock: ReactorTime) -> float:
    """
    Return the time of day, in seconds since 1970 in UTC. The C{seconds()} of a reactor
    may differ from it after the system's clock was set, see L{tsrv.server.steadytime};
    those of an asyncio loop always do.

    @param clock: The reactor; or a clock of a test, which is its own time of day.
    """
    ofReactor = getattr(clock.seconds, "timeOfDay", clock.seconds)
    seconds: float = getattr(clock, "timeOfDay", ofReactor)()
    return seconds


@implementer(IAsyncModule, IPredictable)
class AsyncModule:
    """
    An example of a module: a clock that takes some time to start.

    @ivar initialized: Whether the clock is ready.
    """

    def __init__(self, reactor: ReactorTime, delay: float = 10.0) -> None:
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
        Start the clock. Several callers share one start; cancelling one of their
        Deferreds does not affect the others. When all are cancelled, so is the start,
        and the next call begins a new one.

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
        Return the remaining seconds of the start; L{None} while the clock is not
        starting.
        """
        if self._start is None:
            return None
        return max(0.0, self._start.getTime() - self._reactor.seconds())

    def tellMeSomething(self) -> Deferred[str]:
        """
        Tell the time, in the next turn of the reactor.

        @return: A Deferred that fires with C{"Current time is: "} and the local time
            with its offset from UTC. It fails with L{NotInitialized} if the clock is
            not ready in the next turn.
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
            # The callback of one caller may have cancelled another caller's Deferred.
            if not each.called:
                each.callback(None)

    def _giveUp(self, waiting: Deferred[None]) -> None:
        self._waiting.pop(waiting, None)
        if not self._waiting and self._start is not None:
            self._start.cancel()
            self._start = None
