"""
The common part of all kinds of databases: connections that are opened once and lost
or closed once, and the calls that wait for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger

from ..errors import OutcomeUnknown
from ..failures import Failures
from ..queuing.waiters import Waiters
from .interface import (
    ConstraintViolated,
    DatabaseUnavailable,
    Row,
    Settings,
    Statement,
)

__all__ = ["Call", "Engine", "Queue"]

MAX_WAITERS: Final = 10_000
"""
Maximum number of callers that wait for the database to be lost, idle or closed.
"""

_SETTLED: Final[Deferred[list[Row]]] = succeed([])


class Call:
    """
    A statement that a caller waits for.

    @ivar answer: The Deferred of the caller; once settled, another fired Deferred.
    @ivar queue: The queue in which the call waits to be started.
    @ivar outcome: The rows, or the error.
    @ivar isSent: Whether the statement may have reached the database.
    @ivar interruptions: Number of connections that were lost during the statement.
    """

    __slots__ = (
        "_context",
        "_failed",
        "answer",
        "interruptions",
        "isSent",
        "isWrite",
        "outcome",
        "parameters",
        "queue",
        "statement",
    )

    def __init__(
        self,
        statement: Statement,
        parameters: Sequence[object],
        isWrite: bool,
        failed: Callable[[Exception], None],
    ) -> None:
        """
        @param failed: Called with the error if the call fails, in the context of
            the caller.
        """
        self._failed = failed
        # The context has the id of the request.
        self._context = copy_context()
        self.statement = statement
        self.parameters = parameters
        self.isWrite = isWrite
        self.isSent = False
        self.interruptions = 0
        self.queue: Queue | None = None
        self.outcome: list[Row] | Exception = []
        self.answer: Deferred[list[Row]] = Deferred(self._cancelled)

    def _cancelled(self, answer: Deferred[list[Row]]) -> None:
        if self.queue is not None:
            self.queue.pop(self, None)

    @property
    def hasFailed(self) -> bool:
        """
        Whether the outcome is an error.
        """
        return isinstance(self.outcome, Exception)

    def settle(self) -> None:
        """
        Fire the answer with the outcome, unless the caller has cancelled the call.
        """
        # This breaks the cycle through the canceller, to spare the garbage collector.
        answer, self.answer = self.answer, _SETTLED
        if isinstance(self.outcome, Exception):
            # A failure counts even if the caller has cancelled the call.
            if answer is not _SETTLED:
                self._context.run(self._failed, self.outcome)
            if not answer.called:
                answer.errback(self.outcome)
        elif not answer.called:
            answer.callback(self.outcome)

    def fail(self, error: Exception) -> None:
        """
        Settle the call with an error.
        """
        self.outcome = error
        self.settle()


Queue = OrderedDict[Call, float]
"""
The calls that wait, in order; each with its deadline.
"""


class Engine(ABC):
    """
    One kind of database, from opening to loss or close.

    @ivar refusal: Why the engine accepts no calls; empty while it accepts them.
    @ivar isOver: Whether the database was lost or closed.
    @ivar queues: The calls that wait to be started.
    @ivar predecessor: The previous engine, if the database was lost.
    """

    log = Logger("tsrv.databases")

    def __init__(self, reactor: Any, settings: Settings, failures: Failures) -> None:
        self.reactor = reactor
        self.settings = settings
        self.failures = failures
        self.refusal = "the database is not open"
        self.isOver = False
        self._lossReason = ""
        self.queues: list[Queue] = []
        self.predecessor: Engine | None = None
        self._losses = Waiters(MAX_WAITERS, "for the database to be lost")
        self._closings = Waiters(MAX_WAITERS, "for the database to close")
        self._idlings = Waiters(MAX_WAITERS, "for the calls in progress")

    @abstractmethod
    async def connect(self) -> None:
        """
        Connect, and bring the tables up to date.
        """

    @abstractmethod
    def accept(self, call: Call) -> None:
        """
        Start a call, or put it into a queue.
        """

    @abstractmethod
    def stop(self) -> None:
        """
        Close the idle connections now, the others when their calls have finished.
        """

    @abstractmethod
    def isClosed(self) -> bool:
        """
        Return whether all connections are closed.
        """

    @abstractmethod
    def isIdle(self) -> bool:
        """
        Return whether no call waits, and no statement is in progress.
        """

    async def open(self) -> None:
        """
        Connect, and accept calls from then on.

        @raise tsrv.databases.DatabaseRefused: No retry will help.
        @raise DatabaseUnavailable: A retry may help.
        """
        try:
            await self.connect()
        except CancelledError:
            self.end("the initialisation was cancelled")
            raise
        except Exception:
            await self.close()
            raise
        self.refusal = ""

    def ask(
        self, statement: Statement, parameters: Sequence[object], isWrite: bool
    ) -> Deferred[list[Row]]:
        """
        Carry out a statement, or fail at once if the engine accepts no calls or too
        many calls wait.
        """
        call = Call(statement, parameters, isWrite, self.noteFailure)
        answer = call.answer
        waiting = 0
        for queue in self.queues:
            waiting += len(queue)
        if self.refusal:
            call.fail(DatabaseUnavailable(self.refusal))
        elif waiting >= self.settings.limit:
            text = f"{self.settings.limit} statements wait already"
            call.fail(DatabaseUnavailable(text, "queue_full"))
        else:
            self.accept(call)
        return answer

    def noteFailure(self, error: Exception) -> None:
        """
        Count a failed call, unless it violates a constraint. A call that fails because
        the database was lost counts only if its outcome is unknown.
        """
        if isinstance(error, OutcomeUnknown):
            self.failures.add("outcome_unknown", error)
            return
        code = getattr(error, "code", "")
        if code and not self.isOver and not isinstance(error, ConstraintViolated):
            self.failures.add(code, error)

    @property
    def isLost(self) -> bool:
        """
        Whether the database was lost.
        """
        return bool(self._lossReason)

    def whenLost(self) -> Deferred[None]:
        """
        Return a Deferred that fires when the database is closed, and fails with the
        reason when it is lost.
        """
        lost = self._losses.wait()
        if self.isOver:
            self._fireLosses()
        return lost

    def close(self) -> Deferred[None]:
        """
        Return a Deferred that fires when all connections are closed.
        """
        self.end("the database was closed")
        closing = self._closings.wait()
        self.checkClosed()
        return closing

    def lose(self, reason: str) -> None:
        """
        End the engine, because only new connections can help.
        """
        if not self.isOver:
            self._lossReason = reason or "the database was lost"
            self.end("the database was lost")

    def end(self, refusal: str) -> None:
        """
        Refuse further calls, and fail the calls that wait.
        """
        if not self.isOver:
            self.isOver = True
            self.refusal = refusal
            self.stop()
            self._fireLosses()
            self.failQueued()
            self.checkIdle()
            self.checkClosed()

    def _fireLosses(self) -> None:
        if self._lossReason:
            self._losses.fail(lambda: DatabaseUnavailable(self._lossReason))
        else:
            self._losses.succeed()

    def failQueued(self) -> None:
        """
        Fail the calls that wait.
        """
        for queue in self.queues:
            while queue:
                call, _ = queue.popitem(last=False)
                call.fail(DatabaseUnavailable(self.refusal))

    def checkClosed(self) -> None:
        """
        Settle C{close()} if all connections are closed.
        """
        if self.isOver and self.isClosed():
            self._closings.succeed()

    def whenIdle(self) -> Deferred[None]:
        """
        Return a Deferred that fires when the calls in progress have ended.
        """
        return self._idlings.wait()

    def checkIdle(self) -> None:
        """
        Settle C{whenIdle()} if no call is in progress.
        """
        if self._idlings and self.isIdle():
            self._idlings.succeed()
