"""
What an asynchronously initialised module is, and the smallest one: a clock
that needs a while before it can tell the time.

A module knows nothing of queues or wrappers. It only has an C{initialize()}
that answers later, and methods that fail until it has.
"""

from __future__ import annotations

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
    "IHasNote",
    "IPredictable",
    "ISettlesCalls",
    "NotInitialized",
    "State",
]


class NotInitialized(Exception):
    """
    The module was asked for something before it was initialised.
    """


class IAsyncModule(Interface):
    """
    A module that has to be initialised before it can work.

    Two more methods are optional. C{close()} releases what the module holds;
    it answers when that is done, and it must do no harm when the
    initialisation has failed or was cancelled. C{whenLost()} is called after
    each successful initialisation and answers a Deferred that fires, with or
    without an error, when the module can work no longer; a module that knows
    of the loss before its calls in progress fail should fire it first.
    """

    initialized: bool = Attribute("Whether the module can work now.")

    def initialize() -> Deferred[None]:
        """
        Make the module ready to work.

        @return: A Deferred that fires when the module is ready, and fails with
            the reason when it cannot become ready. Cancelling it gives the
            attempt up.
        """


class State(Enum):
    """
    Where a wrapper is in the life of its module.
    """

    NEW = "new"
    INITIALIZING = "initializing"
    RETRYING = "retrying"
    DRAINING = "draining"
    READY = "ready"
    LOST = "lost"
    FAILED = "failed"
    CLOSING = "closing"
    CLOSED = "closed"


class IPredictable(Interface):
    """
    A module that knows how long its initialisation is going to take.
    """

    def secondsUntilInitialized() -> float | None:
        """
        @return: The seconds that the initialisation in progress will still
            take, or L{None} when there is none or nobody knows.
        """


class ISettlesCalls(Interface):
    """
    A module that answers each of its calls, with an error if need be, also those
    that are in progress when it is lost or closed. It has nothing to do but to
    say so. What is named in C{replay} then costs nearly nothing.
    """


class IHasNote(Interface):
    """
    A module of which there may be something to know although it is ready.
    """

    def note() -> str | None:
        """
        @return: A few words for everybody who may see the report of the
            start-up, or L{None}.
        """


@implementer(IAsyncModule, IPredictable)
class AsyncModule:
    """
    A clock that takes its time to start.

    @ivar initialized: Whether L{tellMeSomething} has something to say.
    """

    def __init__(self, reactor: IReactorTime, delay: float = 10.0) -> None:
        """
        @param reactor: Provides the time, and the waiting.
        @param delay: How long the initialisation takes, in seconds.
        @raise ValueError: C{delay} is negative or not a finite number.
        """
        if not isfinite(delay) or delay < 0:
            raise ValueError(f"delay must be a number of seconds >= 0, not {delay!r}")
        self.initialized = False
        self._reactor = reactor
        self._delay = delay
        self._starting: IDelayedCall | None = None
        self._waiting: dict[Deferred[None], None] = {}

    def initialize(self) -> Deferred[None]:
        """
        Start the clock.

        Several calls share one start: the second joins the first, and one made
        afterwards is answered at once. Cancelling gives up the waiting of one
        caller; when the last one has given up, so has the clock, and the next
        call begins anew.

        @return: A Deferred that fires with L{None} when the clock is ready.
        """
        if self.initialized:
            return succeed(None)
        if self._starting is None:
            self._starting = self._reactor.callLater(self._delay, self._started)
        waiting: Deferred[None] = Deferred(self._giveUp)
        self._waiting[waiting] = None
        return waiting

    def secondsUntilInitialized(self) -> float | None:
        """
        @see: L{IPredictable.secondsUntilInitialized}
        """
        if self._starting is None:
            return None
        return max(0.0, self._starting.getTime() - self._reactor.seconds())

    def tellMeSomething(self) -> Deferred[str]:
        """
        Tell the time; never before the next turn of the reactor.

        @return: A Deferred that fires with C{Current time is: } and the local
            time with its offset from UTC. It fails with L{NotInitialized} if
            the clock is not ready by the time it is asked.
        """
        return deferLater(self._reactor, 0, self._tell)

    def _tell(self) -> str:
        if not self.initialized:
            raise NotInitialized("I don't have anything to say right now")
        now = datetime.fromtimestamp(self._reactor.seconds()).astimezone()
        return f"Current time is: {now.isoformat(' ', 'seconds')}"

    def _started(self) -> None:
        self._starting = None
        self.initialized = True
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            # The callback of one may have cancelled another.
            if not each.called:
                each.callback(None)

    def _giveUp(self, waiting: Deferred[None]) -> None:
        if waiting not in self._waiting:
            return
        del self._waiting[waiting]
        if not self._waiting and self._starting is not None:
            self._starting.cancel()
            self._starting = None
