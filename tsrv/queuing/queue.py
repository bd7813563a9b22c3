"""
The commands of one wrapper: held in order, started in order, ended once.

Whatever fires a command may run anybody's code, and that code may call back
into the queue. So no loop that ends commands keeps a place in a chain: each
turn takes the first that is there then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..errors import (
    QueueFull,
    QueueTimeout,
)
from .callables import introduce
from .calls import Calls
from .command import (
    ENDED,
    LEAVING,
    RUNNING,
    UNCERTAIN,
    WAITING,
    Chain,
    Command,
    Method,
)
from .deadlines import Deadlines
from .histogram import Histogram
from .slices import SlicedWork
from .stats import Stats
from .sweeps import Sweeps
from .unsettled import (
    Unsettled,
    unanswered,
)

__all__ = ["CommandQueue"]


class CommandQueue(Calls):
    """
    The commands that wait for a module, and those that it is at work on.

    The queue knows no states. It is told to L{hold} calls, to L{drain} them, to
    L{letPass} or to L{refuse} them.

    @ivar pending: How many commands wait.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        limit: int,
        timeout: float | None,
        concurrency: int | None,
        losable: bool,
        answering: bool,
        waited: Histogram,
        makeQueueFull: Callable[[], QueueFull],
        makeQueueTimeout: Callable[[float], QueueTimeout],
        drained: Callable[[], None],
    ) -> None:
        """
        @param reactor: Provides the time.
        @param limit: How many commands may wait.
        @param timeout: How long a command may wait for its start, in seconds;
            L{None} for any time.
        @param concurrency: How many commands may be in progress while
            draining; L{None} for any number.
        @param losable: Whether the module can tell that it is lost.
        @param answering: Whether it answers each call, whatever becomes of it.
        @param waited: Is told how long each command has waited, in seconds.
        @param makeQueueFull: Says why one more call cannot be held.
        @param makeQueueTimeout: Says why a command was not started within so
            many seconds.
        @param drained: Called when L{drain} has started the last command.
        """
        self.pending = 0
        self._started = 0
        self._rejected = 0
        self._expired = 0
        self._cancelled = 0
        self._failed = 0
        self._reactor = reactor
        self._waited = waited
        self._makeQueueFull = makeQueueFull
        self._makeQueueTimeout = makeQueueTimeout
        self._drained = drained
        self._limit = limit
        self._concurrency = concurrency
        self._losable = losable
        self._answering = answering
        self._losses = 0
        self._returned: Command | None = None

        # While fewer than _room are waiting, one more call is queued without
        # looking at anything else.
        self._room = 0
        self._passing = False
        self._refusal: Callable[[], Exception] | None = None

        self._waiting = Chain()
        self._deadlines = Deadlines(
            reactor, timeout, self._waiting, self._expire, self._nothingWaits
        )
        self._running = Chain()
        self._unsettled = Unsettled(reactor, self.finish, self._sweepUnanswered)
        self._inProgress = 0
        self._sweeps = Sweeps()

        # Since when those waited that were started in this slice: to count them
        # together costs a third of what it costs to count them one by one.
        self._begun: list[Any] = []

        self._draining = False
        self._work = SlicedWork(reactor, self._step, self._sliceEnded)

    @property
    def stats(self) -> Stats:
        """
        The counters, as they are now.
        """
        ends = (
            self._started,
            self._rejected,
            self._expired,
            self._cancelled,
            self._failed,
            self.pending,
        )
        # Each call ends up in one of them, so that the one on the hot path
        # need not be counted twice.
        return Stats(sum(ends), *ends)

    @property
    def oldest(self) -> float | None:
        """
        For how many seconds the oldest command has been waiting, if there is
        one.
        """
        since = self._waiting.oldest()
        return None if since is None else max(0.0, self._reactor.seconds() - since)

    # What the wrapper tells the queue to do.

    def hold(self) -> None:
        """
        From now on, queue the calls.
        """
        self._passing = self._draining = False
        self._refusal = None

    def drain(self) -> None:
        """
        Start the waiting commands, in order, and tell when none is
        left. Calls made meanwhile are queued behind them.
        """
        self._draining = True
        self._work.now()

    def letPass(self) -> None:
        """
        From now on, let calls through to the module at once.
        """
        self._draining = False
        self._passing = True
        self._nothingWaits()

    def refuse(self, makeError: Callable[[], Exception]) -> Deferred[None]:
        """
        Fail all waiting commands, and from now on every call at once.

        @param makeError: Makes the error for each of them.
        @return: A Deferred that fires when the last waiting command has ended.
        """
        self._passing = self._draining = False
        self._refusal = makeError
        self._nothingWaits()

        def end(command: Command) -> None:
            error = makeError()
            self._failed += 1
            self.finish(command, Failure(error))

        return self._sweep(self._waiting.takeAll(), end)

    def interrupt(self) -> None:
        """
        The module is lost: hold the calls again. Commands in progress that may
        be run twice return to the head of the queue in their order. The others
        have until the next turn of the reactor to be answered by the module
        itself, and end with L{OutcomeUnknown} then.
        """
        self.hold()
        again = []
        for command in self._running:
            command.unlink()
            if command.method.replay and command.stage != LEAVING:
                again.append(command)
            else:
                self._unsettled.lost(command)
        self._unsettled.explained()
        self._inProgress = 0
        for command in reversed(again):
            self._putBack(command)
        self._losses += 1
        self._returned = again[-1] if again else None

    def abandon(self) -> Deferred[None]:
        """
        The module is closed: what it has not answered has no known outcome.

        @return: A Deferred that fires when the last command has ended.
        """
        self._unsettled.settleNow()
        return self._sweepUnanswered(self._running.takeAll())

    # Methods, and what callers do.

    def makeMethod(self, name: str, own: Callable[..., Any], replay: bool) -> Method:
        """
        @param name: The name of a method of the module.
        @param own: The module's own, as it is now.
        @param replay: Whether a call in progress at a loss may be run again.
        @return: The method; it can be called, but not run before L{connect}.
        """
        method = Method(name, replay, self)
        method.hold = introduce(self._makeHolder(method), own)
        return method

    def _makeRoom(self) -> bool:
        """
        Make ready for one more command to wait.

        @return: Whether it may.
        """
        if self._passing or self._refusal is not None or self.pending >= self._limit:
            return False
        self._deadlines.watch()
        self._room = self._limit
        return True

    def _nothingWaits(self) -> None:
        """
        The next command that waits is the first one again.
        """
        self._room = 0
        self._deadlines.stop()

    def _reject(self) -> Deferred[Any]:
        self._rejected += 1
        if self._refusal is not None:
            return fail(self._refusal())
        return fail(self._makeQueueFull())

    def cancel(self, command: Command) -> None:
        """
        The caller of a command that has not ended gives up.
        """
        answer = command.answer if command.stage != WAITING else None
        if isinstance(answer, Deferred):
            if command.stage == RUNNING:
                command.stage = LEAVING
            answer.cancel()
            return
        if command.stage == WAITING:
            self._cancelled += 1
        self.finish(command, Failure(CancelledError()))

    # From start to end.

    def _start(self, command: Command) -> None:
        """
        Hand a command to the module.
        """
        command.stage = RUNNING
        command.answer = None
        self._running.append(command)
        self._inProgress += 1
        method, context = command.method, command.context
        if method.replay:
            command.run += 1
        run = command.run
        try:
            if command.keywords is None:
                result = context.run(method.target, *command.arguments)
            else:
                result = context.run(
                    method.target, *command.arguments, **command.keywords
                )
            if type(result) is CoroutineType:
                result = context.run(Deferred.fromCoroutine, result)
        except BaseException:
            # As a Deferred does with whatever its callbacks raise.
            result = Failure()
        if not isinstance(result, Deferred):
            command.answeredRun(result, run)
        elif command.stage == ENDED:
            # The caller gave up while the module was being called.
            result.addErrback(_ignore)
            result.cancel()
        else:
            if command.stage != WAITING:
                command.answer = result
            if method.replay:
                result.addBoth(command.answeredRun, run)
            else:
                result.addBoth(command.answered)

    def answeredRun(self, command: Command, result: object) -> None:
        """
        The module has answered the latest run of a command.
        """
        if command.stage in (RUNNING, LEAVING, UNCERTAIN):
            if (
                command.stage == RUNNING
                and command.method.replay
                and self._losable
                and isinstance(result, Failure)
            ):
                self._unsettled.failed(command, result)
            else:
                self.finish(command, result)

    def finish(self, command: Command, result: object) -> None:
        """
        Let go of all that a command holds, and fire it.
        """
        stage = command.stage
        command.stage = ENDED
        # Who keeps the command must not keep its neighbours, nor the module,
        # nor what it was called with.
        previous, following = command.previous, command.next
        previous.next = following
        following.previous = previous
        del command.previous, command.next, command.context, command.method
        command.answer = None
        command.arguments = ()
        if command.keywords is not None:
            command.keywords = None
        if stage == WAITING:
            assert command.since is not None
            self._waited.observe(self._reactor.seconds() - command.since)
            self.pending -= 1
            if not self.pending:
                self._nothingWaits()
        elif stage != UNCERTAIN:
            self._inProgress -= 1
            if self._draining:
                self._work.soon()
        command.callback(result)

    def _putBack(self, command: Command) -> None:
        """
        Put a command that was in progress at the head of the queue.
        """
        if command.since is not None:
            self._started -= 1
        command.since = self._reactor.seconds()
        command.stage = WAITING
        command.answer = None
        self._waiting.prepend(command)
        self.pending += 1
        self._deadlines.watch()

    # Steps of work.

    def _sweep(self, commands: Chain, end: Callable[[Command], None]) -> Deferred[None]:
        """
        End all commands of a chain.
        """
        swept = self._sweeps.add(commands, end)
        self._work.now()
        return swept

    def _step(self) -> bool:
        """
        End or start one command.

        @return: Whether there was one.
        """
        if self._sweeps.left:
            self._sweeps.step()
            return True
        root = self._waiting.root
        command = root.next
        if (
            not self._draining
            or command is root
            or (self._concurrency is not None and self._inProgress >= self._concurrency)
        ):
            return False
        root.next = following = command.next
        following.previous = root
        self.pending -= 1
        self._started += 1
        self._begun.append(command.since)
        self._start(command)
        return True

    def _sliceEnded(self, more: bool) -> None:
        """
        It is the next turn's, or there is nothing to do now.
        """
        if self._begun:
            now = self._reactor.seconds()
            self._waited.observeAll([now - since for since in self._begun])
            self._begun.clear()
        if not more and self._draining and not self._waiting:
            self._drained()

    def _sweepUnanswered(self, commands: Chain) -> Deferred[None]:
        return self._sweep(
            commands, lambda command: self.finish(command, unanswered(command))
        )

    def _expire(self, late: Sequence[Command]) -> None:
        """
        Some commands have waited too long.
        """
        expired = Chain()
        for command in late:
            command.unlink()
            expired.append(command)
        self._sweep(expired, self._endExpired)

    def _endExpired(self, command: Command) -> None:
        assert command.since is not None
        waited = self._reactor.seconds() - command.since
        error = self._makeQueueTimeout(waited)
        self._expired += 1
        self.finish(command, Failure(error))


def _ignore(failure: Failure) -> None:
    """
    Nobody waits for this any more.
    """
