"""
The record of each call, and the parts of foreign code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.support import Trouble
from tsrv import State

__all__ = [
    "CAN_FAIL",
    "NOT_READY",
    "READY",
    "REFUSING",
    "RUNS",
    "Abandoned",
    "Attempt",
    "Call",
    "Eventual",
    "Hostile",
    "Options",
    "Run",
    "Task",
    "Turns",
    "waitFor",
]

RUNS: Final = (State.DRAINING, State.READY)
READY: Final = (*RUNS, State.PAUSED)
REFUSING: Final = (State.FAILED, State.CLOSING, State.CLOSED)
CAN_FAIL: Final = (State.NEW, State.INITIALIZING, State.RETRYING, State.LOST)
NOT_READY: Final = (*CAN_FAIL, State.FAILED)

# Maximum time of one turn of the reactor, in seconds: for drained calls, each of which
# takes 2 ms, and for anything else.
MAX_WORK_SECONDS: Final = 0.006
MAX_TURN_SECONDS: Final = 0.02


# Methods whose Deferred is awaited: a canceller that raises there confuses Twisted.
AWAITED: Final = ("compute", "plain", "eventual")


class Abandoned(Exception):
    """
    The reason that fail() and reset() are given.
    """


class Hostile(BaseException):
    """
    An error that C{except Exception} does not catch, like C{asyncio.CancelledError}.
    """


class Eventual:
    """
    An awaitable that is neither a Deferred nor a coroutine.
    """

    def __init__(self, deferred: Deferred[Any]) -> None:
        self._deferred = deferred

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._deferred.__await__()


async def waitFor(awaitable: Awaitable[Any]) -> Any:
    """
    @return: The result of an awaitable.
    """
    return await awaitable


class Turns(Clock):
    """
    A clock that measures each turn of the reactor.

    @ivar tick: The time that looking at the clock takes, in seconds.
    @ivar plans: The number of plans that were carried out in this turn: each may take
        as long as a turn.
    @ivar allowed: The time that this turn may take in addition.
    @ivar tooLong: Called when a turn takes too long.
    """

    def __init__(self, tick: float, tooLong: Callable[[str], None]) -> None:
        super().__init__()
        self.tick = tick
        self.plans = 0
        self.allowed = 0.0
        self.tooLong = tooLong
        self._used = self._worked = 0.0

    def seconds(self) -> float:
        """
        Read the clock, which may take time.
        """
        self.rightNow += self.tick
        self._used += self.tick
        return self.rightNow

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002
        *args: object,
        **kw: object,
    ) -> IDelayedCall:
        return super().callLater(delay, self._call, callable, args, kw)

    def begin(self) -> None:
        """
        Begin a turn.
        """
        self.endTurn()
        self.plans = 0
        self.allowed = 0.0
        self._used = self._worked = 0.0

    def work(self, seconds: float) -> None:
        """
        Block the reactor for a while, as a drained call does.
        """
        if self._worked >= MAX_WORK_SECONDS * (1 + self.plans):
            self.tooLong("one slice of the drain is too long")
        self._worked += seconds
        self.rightNow += seconds

    @property
    def isIdle(self) -> bool:
        """
        Whether no delayed call is due.
        """
        return all(call.getTime() > self.rightNow for call in self.calls)

    def endTurn(self) -> None:
        """
        Check the duration of the turn.
        """
        if self._used > MAX_TURN_SECONDS * (1 + self.plans) + self.allowed:
            self.tooLong("one turn of the reactor is too long")

    def _call(self, function: Callable[..., object], args: Any, keywords: Any) -> None:
        self.begin()
        function(*args, **keywords)


@dataclass(eq=False)
class Call:
    """
    The record of one call.

    @ivar queued: Whether it went through the queue.
    @ivar tracked: Whether the wrapper promises that it ends.
    @ivar since: The time at which the call was queued.
    @ivar fired: The results of its Deferred.
    @ivar endLosses: The number of losses before it ended.
    @ivar gaveUp: Whether its caller cancelled it.
    @ivar usurped: Whether its caller fired the Deferred itself.
    @ivar nested: Whether the call was made while another one was being made, or the
        reverse: then neither is first.
    @ivar rejected: Whether it had to fail at once.
    @ivar runs: The runs of the module's method for this call.
    """

    number: int
    method: str
    queued: bool
    tracked: bool
    since: float
    deferred: Deferred[Any] | None = None
    fired: list[Any] = field(default_factory=list)
    gaveUp: bool = False
    usurped: bool = False
    endLosses: int = 0
    nested: bool = False
    rejected: bool = False
    runs: list[Run] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.fired)


@dataclass(eq=False)
class Run:
    """
    One run of a module's method.

    @ivar losses: The number of losses before.
    @ivar raised: The error that the method raised.
    @ivar cancel: Chooses how the module cancels the call, and helps it.
    @ivar answer: The module's Deferred, if the method returns one.
    @ivar cleaning: Whether it is cleaning up.
    @ivar answered: Whether the module has returned its result.
    @ivar dropped: Whether the module has cancelled the run of its own accord.
    """

    call: Call
    losses: int
    cancel: Callable[[], str]
    answer: Deferred[Any] | None = None
    raised: BaseException | None = None
    cleaning: bool = False
    answered: bool = False
    dropped: bool = False

    def __post_init__(self) -> None:
        self.late: Deferred[Any] = Deferred(self.hurry)

    @property
    def open(self) -> bool:
        return self.answer is not None and not self.answered

    @property
    def done(self) -> tuple[str, int, int]:
        return ("done", self.call.number, self.call.runs.index(self))

    def begin(self) -> Deferred[Any]:
        self.answer = Deferred(self.cancelled)
        self.answer.addErrback(self.cleanUp)
        return self.answer

    def end(self, error: BaseException | None) -> None:
        """
        The module ends the run.
        """
        assert self.answer is not None
        self.answered = True
        open_ = self.late if self.cleaning else self.answer
        if error is None:
            open_.callback(self.done)
        else:
            open_.errback(error)

    def cancelled(self, answer: Deferred[Any]) -> None:
        """
        The canceller of the module's Deferred.
        """
        try:
            how = self.cancel()
        except Hostile:
            how = "raise"
        if how == "raise" and self.call.method not in AWAITED:
            raise Hostile("canceller")
        if self.answered or answer.called:
            return
        if how == "slow":
            self.cleaning = True
            return
        self.answered = True
        if how in ("other", "raise"):
            answer.errback(Trouble("gave up"))
        elif how == "result":
            answer.callback(self.done)

    def hurry(self, late: Deferred[Any]) -> None:
        """
        The canceller of the cleanup.
        """
        self.answered = True

    def cleanUp(self, failure: Failure) -> Any:
        """
        Clean up as a coroutine does that awaits something in C{except CancelledError}.
        """
        if self.cleaning and failure.check(CancelledError):
            return self.late
        return failure


@dataclass(eq=False)
class Attempt:
    """
    The record of one attempt.

    @ivar cancelled: Whether the attempt was given up.
    @ivar awaited: Whether the attempt is awaited.
    @ivar late: Fires when an attempt that was given up has cleaned up.
    """

    number: int
    deferred: Deferred[Any]
    cancelled: bool = False
    cleaning: bool = False
    awaited: bool = False
    late: Deferred[Any] = field(default_factory=Deferred)

    def cleanUp(self, failure: Failure) -> Any:
        return self.late if self.cleaning else failure

    @property
    def open(self) -> bool:
        return not self.deferred.called


@dataclass(frozen=True)
class Options:
    """
    The random properties of a world.

    @ivar kind: The kind of the module: C{"steady"} (it cannot be lost),
        C{"tracked"} (the same with C{settles=False}), C{"losable"}, C{"pinged"},
        C{"interface"} or C{"settles"} (it ends its calls itself), or C{"nested"}
        (the same, but it is another wrapper's proxy).
    @ivar tick: The time that reading the clock takes, in seconds.
    """

    kind: str = "losable"
    replay: tuple[str, ...] = ("read",)
    alwaysDeferred: bool = False
    lazy: bool | str = False
    whenIdle: bool = False
    slots: int | None = None
    limit: int = 100
    timeout: float | None = None
    concurrency: int | None = None
    attemptTimeout: float | None = None
    tick: float = 0.0
    shared: str = "pending"


@dataclass(eq=False)
class Task:
    """
    One close(), ping or whenIdle() of the module.
    """

    since: float
    state: State
    deferred: Deferred[Any]
    over: bool = False
    failed: bool = False
    awaited: bool = False

    @property
    def open(self) -> bool:
        return not self.deferred.called and not self.over
