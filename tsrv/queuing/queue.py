"""
The queue: it keeps calls until their module is ready, starts them in order, and ends
each of them once.

The queue does not know the states. The wrapper orders it to queue calls, start them,
pass them to the module, or refuse them. The queue guarantees:

  - Order: calls start in the order in which they were made. A call that is made while
    the queue is drained goes to the end of the queue.
  - Bounds: at most C{limit} calls are queued, each for at most C{timeout} seconds.
  - Fairness: work on many commands is done in slices (L{SlicedWork}), so that a long
    queue does not block the reactor.

Ending a command may run foreign code, which may call back into the queue. So a loop
that ends commands never keeps a position in a list: each step takes the command that is
first at that moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..errors import OutcomeUnknown, QueueFull, QueueTimeout
from .answer import Answer
from .command import NOT_QUEUED, WAITING, Command, CommandList, Method
from .foreign import cancelForeign
from .histogram import Histogram
from .home import homeOf
from .options import checkCount, checkSeconds
from .running import RunningCommands
from .slices import SlicedWork
from .stats import Stats

__all__ = ["CommandQueue"]

# Maximum number of commands that one timer call takes out of the queue.
MAX_EXPIRED_AT_ONCE: Final = 5000

# Two times that differ by less than this count as the same.
TIME_RESOLUTION_SECONDS: Final = 1e-6


class CommandQueue:
    """
    The queued calls of one module.

    @ivar pending: The number of queued calls.
    @ivar passing: Whether calls are passed to the module directly.
    @ivar running: The commands in progress.
    @ivar home: The thread or loop in which calls may be made.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        limit: int,
        timeout: float | None,
        concurrency: int | None,
        losable: bool,
        lossReason: Callable[[], BaseException | None],
        suspect: Callable[..., bool] | None,
        waited: Histogram,
        makeQueueFull: Callable[[], QueueFull],
        makeQueueTimeout: Callable[[float], QueueTimeout],
        makeOutcomeUnknown: Callable[[str, BaseException | None], OutcomeUnknown],
        drained: Callable[[], None],
    ) -> None:
        """
        L{QueuingWrapper<tsrv.QueuingWrapper>} explains the options.

        @param losable: Whether the module can report a loss.
        @param lossReason: Returns the reason of the last loss.
        @param waited: Records the time of each command in the queue, in seconds.
        @param makeQueueTimeout: Takes the time in the queue, in seconds.
        @param makeOutcomeUnknown: Takes the method's name and the reason of the loss.
        @param drained: Called when L{drain} has started the last command.
        """
        checkSeconds("timeout", timeout)
        if concurrency is not None:
            checkCount("concurrency", concurrency, 1)
        self.pending = 0
        self.passing = False
        self.home = homeOf(reactor)
        self.running = RunningCommands(
            reactor,
            losable=losable,
            lossReason=lossReason,
            suspect=suspect,
            makeOutcomeUnknown=makeOutcomeUnknown,
            queueAgain=self.putBack,
            endAll=self._endAll,
            ended=None if concurrency is None else self.drainSoon,
        )
        self._reactor = reactor
        self._limit = limit
        self._timeout = timeout
        self._concurrency = concurrency
        self._waited = waited
        self._makeQueueFull = makeQueueFull
        self._makeQueueTimeout = makeQueueTimeout
        self._drained = drained
        self._stats = Stats()
        # Commands that were in progress at a loss. They start before all others.
        self._again = CommandList()
        self._waiting = CommandList()
        self._lastPutBack: Command | None = None
        self._lostSince = 0.0
        self._draining = False
        self._refusal: Callable[[], Exception] | None = None
        # While fewer calls than this are queued, the next one is queued without
        # further checks.
        self._room = 0
        self._deadline: IDelayedCall | None = None
        self._endings: deque[
            tuple[CommandList, Callable[[Command], None], Deferred[None]]
        ] = deque()
        # The histogram counts these together at the end of a slice, in a third of the
        # time of counting them one by one.
        self._startedSince: list[Any] = []
        self._work = SlicedWork(reactor, self._step, self._sliceEnded)

    @property
    def stats(self) -> Stats:
        """
        A copy of the counters.
        """
        return replace(self._stats, pending=self.pending, unknown=self.running.unknown)

    @property
    def oldest(self) -> float | None:
        """
        The age of the oldest queued call, in seconds; L{None} if no call is queued.
        """
        command = self._longestWaiting()
        if command is None:
            return None
        return max(0.0, self._reactor.seconds() - command.since)

    # Orders of the wrapper.

    def queueCalls(self) -> None:
        """
        From now on, queue calls.
        """
        self.passing = self._draining = False
        self._refusal = None

    def drain(self) -> None:
        """
        Start the queued calls in order, and call C{drained} after the last one. Calls
        that are made in the meantime are queued behind them.
        """
        self._draining = True
        self._work.now()

    def drainSoon(self) -> None:
        """
        Continue the drain in the next turn of the reactor.
        """
        if self._draining:
            self._work.soon()

    def passCalls(self) -> None:
        """
        From now on, pass calls to the module directly.
        """
        self._draining = False
        self.passing = True
        self._nothingWaits()

    def refuseCalls(self, makeError: Callable[[], Exception]) -> Deferred[None]:
        """
        Fail all queued calls, and from now on every call at once.

        @param makeError: Makes the error of each of them.
        @return: A Deferred that fires when the last queued call has ended.
        """
        self.passing = self._draining = False
        self._refusal = makeError
        self._lastPutBack = None
        self._nothingWaits()

        def end(command: Command) -> None:
            error = makeError()
            self._stats.failed += 1
            self._endWaiting(command, Failure(error))

        self._endAll(self._again.takeAll(), end)
        return self._endAll(self._waiting.takeAll(), end)

    def interrupt(self, reason: BaseException | None) -> None:
        """
        The module is lost: queue calls again. Calls in progress that are safe to run
        twice go to the front of the queue.
        """
        self.queueCalls()
        if not self.running.interrupting:
            self._lastPutBack = None
        self._lostSince = self._reactor.seconds()
        self.running.interrupt(reason)

    # Calls enter and leave the queue.

    def makeEnqueue(self, method: Method) -> Callable[..., Any]:
        """
        @return: A callable that queues a call of the method, passes it to the module,
            or refuses it, depending on the state.
        """
        # Every queued call runs this code, so everything is written out.
        root = self._waiting.root
        holder, here, check = self.home

        def enqueue(*arguments: object, **keywords: object) -> object:
            if holder.ioThread != here():
                check(method.name)
            pending = self.pending
            if pending >= self._room and not self._makeRoom():
                if self.passing:
                    return method.direct(*arguments, **keywords)
                return self._reject()
            command = Command()
            command.method = method
            command.arguments = arguments
            if keywords:
                command.keywords = keywords
            command.context = copy_context()
            command.since = self._seconds()
            last = root.previous
            command.previous = last
            command.next = root
            last.next = root.previous = command
            self.pending = pending + 1
            return command

        return enqueue

    def putBack(self, command: Command) -> None:
        """
        Queue a command that was in progress at a loss: behind the other commands that
        were in progress, before all that were queued.
        """
        # The method may still be running in the context, and so nothing else can.
        command.context = command.context.copy()
        if self.passing:
            # The module was lost, and has recovered, during the call of its method.
            self.running.start(command)
            return
        if command.since != NOT_QUEUED:
            self._stats.started -= 1
        command.since = self._lostSince
        command.stage = WAITING
        before = self._lastPutBack
        if before is None or before.stage != WAITING:
            before = self._again.root
        self._again.add(command, before)
        self._lastPutBack = command
        self.pending += 1
        if self._refusal is not None:
            self._stats.failed += 1
            self._endWaiting(command, Failure(self._refusal()))
            return
        self._watchDeadline()

    def cancel(self, command: Command) -> None:
        """
        The caller cancels a command that has not ended.
        """
        if command.stage == WAITING:
            # If the module is a wrapper's proxy, its call is queued there, too.
            answer = command.answer if command.run else None
            self._stats.cancelled += 1
            self._endWaiting(command, Failure(CancelledError()))
            if isinstance(answer, Deferred):
                cancelForeign(answer)
        else:
            self.running.cancel(command)

    def _makeRoom(self) -> bool:
        if self.passing or self._refusal or self.pending >= self._limit:
            return False
        self._watchDeadline()
        self._room = self._limit
        # Looking it up takes longer. A server replaces this method when it starts.
        self._seconds = self._reactor.seconds
        return True

    def _reject(self) -> Answer:
        self._stats.rejected += 1
        answer = Answer()
        answer.errback(
            self._makeQueueFull() if self._refusal is None else self._refusal()
        )
        return answer

    def _endWaiting(self, command: Command, result: object) -> None:
        self._waited.observe(self._reactor.seconds() - command.since)
        self._leaves(command)
        self.pending -= 1
        if not self.pending:
            self._nothingWaits()
            self.drainSoon()
        command.end(result)

    def _leaves(self, command: Command) -> None:
        # putBack() adds behind this command, which must be in the list.
        if command is self._lastPutBack:
            before = command.previous
            self._lastPutBack = None if before is self._again.root else before

    def _nothingWaits(self) -> None:
        self._room = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # Work in slices.

    def _endAll(
        self, commands: CommandList, end: Callable[[Command], None]
    ) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._endings.append((commands, end, done))
        if len(self._endings) == 1:
            self._work.now()
        return done

    def _step(self) -> bool:
        if self._endings:
            commands, end, done = self._endings[0]
            if commands:
                end(commands.root.next)
            else:
                self._endings.popleft()
                done.callback(None)
            return True
        root = self._again.root if self._again else self._waiting.root
        command = root.next
        if not self._draining or command is root:
            return False
        if command.called:
            # The caller has fired the command itself.
            self._stats.cancelled += 1
            self._endWaiting(command, None)
            return True
        if self._concurrency is not None and self.running.count >= self._concurrency:
            return False
        root.next = following = command.next
        following.previous = root
        self.pending -= 1
        self._stats.started += 1
        self._startedSince.append(command.since)
        self.running.start(command)
        return True

    def _sliceEnded(self, more: bool) -> None:
        if self._lastPutBack is not None and self._lastPutBack.stage != WAITING:
            self._lastPutBack = None
        if self._startedSince:
            now = self._reactor.seconds()
            self._waited.observeAll([now - since for since in self._startedSince])
            self._startedSince.clear()
        if not more and self._draining and not (self._again or self._waiting):
            self._drained()

    # Deadlines. All calls have the same timeout, so one timer is enough: the first in
    # the queue expires first. Commands that were put back wait since their loss.
    # Commands of a later loss are in front, so the last of the list expires first.

    def _longestWaiting(self) -> Command | None:
        again, waiting = self._again.root.previous, self._waiting.root.next
        if not self._again:
            return waiting if self._waiting else None
        if not self._waiting or again.since <= waiting.since:
            return again
        return waiting

    def _watchDeadline(self) -> None:
        if self._deadline is None and self._timeout is not None:
            self._deadline = self._reactor.callLater(self._timeout, self._expire)

    def _expire(self) -> None:
        assert self._timeout is not None
        self._deadline = None
        late = CommandList()
        nextDelay: float | None = None
        now = self._reactor.seconds()
        for count in range(MAX_EXPIRED_AT_ONCE + 1):
            command = self._longestWaiting()
            if command is None:
                break
            left = command.since + self._timeout - now
            if left > TIME_RESOLUTION_SECONDS or count == MAX_EXPIRED_AT_ONCE:
                nextDelay = max(0.0, left)
                break
            self._leaves(command)
            command.unlink()
            late.add(command)
        if nextDelay is None:
            self._nothingWaits()
        else:
            self._deadline = self._reactor.callLater(nextDelay, self._expire)
        if late:
            self._endAll(late, self._endExpired)

    def _endExpired(self, command: Command) -> None:
        error = self._makeQueueTimeout(self._reactor.seconds() - command.since)
        self._stats.expired += 1
        self._endWaiting(command, Failure(error))
