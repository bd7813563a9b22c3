"""
The world of one wrapper: its module, the plans for the next callbacks, and a record of
all events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredSemaphore, fail, succeed
from twisted.logger import LogEvent

from tests.support import Refused, Trouble
from tsrv import QueuingWrapper, State

from .calls import (
    READY,
    RUNS,
    Abandoned,
    Attempt,
    Call,
    Eventual,
    Hostile,
    Options,
    Run,
    Task,
    Turns,
    waitFor,
)
from .modules import Losable, Modelled, Settling

__all__ = ["CLOSE_TIMEOUT", "PING_INTERVAL", "World", "caller"]

caller: ContextVar[int | None] = ContextVar("caller", default=None)

SECONDS_PER_CALL: Final = 0.002
"""
Time for which a drained call blocks the reactor, in seconds.
"""

CLOSE_TIMEOUT: Final = 3.0
PING_INTERVAL: Final = 1.5


class World:
    """
    The module's side of the world.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.problems: list[str] = []
        self.clock = Turns(options.tick, lambda what: self.check(False, what))

        # The record.
        self.calls: list[Call] = []
        self.attempts: list[Attempt] = []
        self.watch: Deferred[None] | None = None
        self.watchAnswer: object = None
        self.stale = False
        self.closings: list[Task] = []
        self.pings: list[Task] = []
        self.idles: list[Task] = []
        self.failures: list[LogEvent] = []
        self.seenLosses = 0
        self.expectedLosses = 0
        self.begun = 0
        self.queuedTwice = 0
        self.lastStarted: dict[int, int] = {}
        self.succeeded = False
        self.vanished = False
        self.policyRaised = False
        self.cancellingAttempts = 0
        self.cancellingCalls = 0
        self.asked = 0
        self.holds: set[object] = set()
        self.pauses = 0

        # The plans.
        self.plans: deque[Callable[[], None]] = deque()
        self.lookPlans: deque[Callable[[], None]] = deque()
        self.nextAttempt = self.nextWatch = self.nextClosing = "later"
        self.nextPing = "succeed"
        self.nextIdle = "later"
        self.attemptCanceller = self.callCanceller = "silent"
        self.nextLazy = "initialize"
        self.sharedResult: object = ("shared",)
        self.shared: Deferred[Any] = Deferred()
        if options.shared != "pending":
            self.fireShared(options.shared == "failed")

        self.slots = DeferredSemaphore(options.slots) if options.slots else None
        self.slotsTaken = 0
        kind = options.kind
        self.losable = kind in ("losable", "interface", "settles", "nested")
        self.settles = kind in ("interface", "settles", "nested")
        self.tracked = kind in ("tracked", "losable", "pinged")
        self.module = self.makeModule()
        self.wrapper = self.makeWrapper()
        self.notified = (self.wrapper.state, self.wrapper.since)
        self.wrapper.addObserver(self.observe)

    def makeModule(self) -> Any:
        kind = self.options.kind
        if kind == "interface":
            return Settling(self)
        if kind in ("losable", "settles"):
            return Losable(self)
        return Modelled(self)

    def makeWrapper(self) -> QueuingWrapper[Any]:
        options = self.options
        kind, module = options.kind, self.module
        more: dict[str, Any] = {}
        if kind == "nested":
            inner = QueuingWrapper(
                module, self.clock, initialize=lambda: None, close=lambda: None
            )
            inner.initialize()
            module = inner.proxy
            more["initialize"] = self.initializing
            more["close"] = self.closing
            more["whenLost"] = self.watching
        if kind in ("nested", "settles"):
            more["settles"] = True
        if kind == "tracked":
            more["settles"] = False
        if kind == "pinged":
            more["ping"] = self.pinging
            more["pingInterval"] = PING_INTERVAL
        if options.whenIdle:
            more["whenIdle"] = self.idling
        if options.slots:
            more["attemptSlots"] = self.slots
        more["lazy"] = self.askedFor if options.lazy == "callable" else options.lazy
        more["alwaysDeferred"] = options.alwaysDeferred
        return QueuingWrapper(
            module,
            self.clock,
            limit=options.limit,
            timeout=options.timeout,
            concurrency=options.concurrency,
            attemptTimeout=options.attemptTimeout,
            closeTimeout=CLOSE_TIMEOUT,
            retryPolicy=self.policy,
            fatal=(Refused,),
            replay=options.replay,
            **more,
        )

    def trouble(self, text: str) -> Trouble:
        return Trouble(text)

    def check(self, holds: bool, what: str) -> None:
        # The code under test might catch an exception that is raised in a callback.
        if not holds:
            self.problems.append(what)

    # Callbacks.

    def reenter(self) -> None:
        """
        Carry out the plan for a callback.

        @raise Hostile: The plan says so.
        """
        self.noticeLosses()
        if self.plans:
            self.carryOut(self.plans.popleft())

    def misbehaveUnless(self, awaited: bool) -> None:
        """
        Carry out the plan for a canceller. It does not raise if a coroutine awaits the
        Deferred, since that confuses Twisted.
        """
        try:
            self.reenter()
        except Hostile:
            if not awaited:
                raise

    def look(self) -> None:
        """
        Carry out the plan for the lookup of an attribute.
        """
        if self.lookPlans:
            self.carryOut(self.lookPlans.popleft())

    def carryOut(self, plan: Callable[[], None]) -> None:
        self.clock.plans += 1
        try:
            plan()
        except Hostile:
            raise
        except BaseException as error:
            self.check(False, f"calling back raised {error!r}")

    def observe(self) -> None:
        wrapper = self.wrapper
        state, error = wrapper.state, wrapper.lastError
        self.notified = (state, wrapper.since)
        waiting = [call for call in self.waiting() if not call.runs]
        # A call that is being made may have ended unseen, if the module was lost or
        # closed meanwhile.
        making = any(call.deferred is None for call in self.calls)
        pending = wrapper.stats.pending
        self.check(
            making or pending == wrapper.pending >= len(waiting) - self.ambiguous(),
            f"an observer sees {pending} of {len(waiting)} waiting",
        )
        self.check(
            wrapper.retryAfter() is None or state in (State.RETRYING, State.LOST),
            f"an observer sees an attempt scheduled in state {state}",
        )
        self.check(
            state not in READY or (self.succeeded and error is None),
            "an observer sees READY although the module is not ready",
        )
        self.check(
            state is not State.FAILED or self.isForGood(error),
            f"an observer sees a failure because of {error!r}",
        )
        self.reenter()

    def isForGood(self, error: BaseException | None) -> bool:
        """
        @return: Whether no retry helps against an error.
        """
        stale = "must return a new one" in str(error)
        return self.policyRaised or stale or isinstance(error, (Refused, Abandoned))

    # The module is initialised, watched and closed.

    def initializing(self) -> Any:
        state = self.wrapper.state
        self.check(state is State.INITIALIZING, f"initialize() is called in {state}")
        self.check(not self.isClosing(), "initialize() is called during close()")
        self.succeeded = False
        self.begun += 1
        number = self.begun
        self.reenter()
        how, self.nextAttempt = self.nextAttempt, "later"
        if number == self.begun:
            # No other attempt has begun in that callback.
            self.succeeded = how == "succeed"
        if how == "raise":
            raise Trouble("at once")
        if how == "hostile":
            raise Hostile("attempt")
        if how == "refuse":
            return fail(Refused("at once"))
        if how == "succeed":
            return succeed(None)
        attempt = Attempt(number, Deferred(lambda _: self.cancelAttempt(attempt)))
        attempt.deferred.addErrback(attempt.cleanUp)
        self.attempts.append(attempt)
        attempt.awaited = how in ("eventual", "coroutine")
        if how == "eventual":
            return Eventual(attempt.deferred)
        if how == "coroutine":
            return waitFor(attempt.deferred)
        return attempt.deferred

    def cancelAttempt(self, attempt: Attempt) -> None:
        """
        The canceller of an attempt.
        """
        attempt.cancelled = True
        self.cancellingAttempts += 1
        try:
            self.misbehaveUnless(attempt.awaited)
            how, self.attemptCanceller = self.attemptCanceller, "silent"
            if how == "discover":
                self.loseModule(None)
            elif how == "raise" and not attempt.awaited:
                raise Hostile("canceller")
            elif how == "slow":
                attempt.cleaning = True
            elif how == "other" and attempt.open:
                attempt.deferred.errback(Trouble("given up"))
            elif how == "succeed" and attempt.open:
                attempt.deferred.callback(None)
        finally:
            self.cancellingAttempts -= 1

    def policy(self, attempts: int) -> float:
        try:
            self.reenter()
        except Hostile:
            self.policyRaised = True
            raise
        return float(attempts)

    def watching(self) -> Any:
        number, last, self.watch = self.begun, self.watch, None
        self.stale = False
        self.reenter()
        how, self.nextWatch = self.nextWatch, "later"
        if how == "raise":
            raise Hostile("watch")
        if how == "plain":
            return 5
        if how == "same" and last is not None and last.called:
            # This is a mistake in the module, and not a loss.
            self.watch = last
            self.stale = True
            return self.watchAnswer
        if how == "lost":
            # A reset may have begun another attempt, which waits for its slot.
            current = self.wrapper.state is State.INITIALIZING
            current = current and not self.isWaitingForItsTurn()
            self.expectedLosses += current and number == self.begun
            return fail(Trouble("lost already"))
        self.watch = Deferred()
        self.watchAnswer = Eventual(self.watch) if how == "eventual" else self.watch
        return self.watchAnswer

    def closing(self) -> Any:
        self.noticeLosses()
        state = self.wrapper.state
        away = state not in READY and state is not State.INITIALIZING
        away = away or self.isWaitingForItsTurn()
        self.check(away, f"close() is called in {state}")
        closing = self.begin(self.closings)
        if self.settles:
            self.settleCalls("error")
        how, self.nextClosing = self.nextClosing, "later"
        try:
            self.reenter()
        except Hostile:
            how = "raise"
        return self.answerTask(closing, how)

    def isClosing(self) -> bool:
        """
        @return: Whether close() is in progress.
        """
        now = self.clock.rightNow
        return any(
            each.open and now < each.since + CLOSE_TIMEOUT for each in self.closings
        )

    def isWaitingForItsTurn(self) -> bool:
        """
        @return: Whether an attempt waits for a slot, or for close().
        """
        attempts = list(self.wrapper.history.attempts)
        begun = bool(attempts) and attempts[-1].ended is None
        return self.wrapper.state is State.INITIALIZING and not begun

    def pinging(self) -> Any:
        state = self.wrapper.state
        self.check(state in READY, f"pinged in state {state}")
        ping = self.begin(self.pings)
        try:
            self.reenter()
        except Hostile:
            self.nextPing = "raise"
        how, self.nextPing = self.nextPing, "succeed"
        return self.answerTask(ping, how)

    def idling(self) -> Any:
        idle = self.begin(self.idles)
        how, self.nextIdle = self.nextIdle, "later"
        try:
            self.reenter()
        except Hostile:
            how = "raise"
        return self.answerTask(idle, how)

    def begin(self, tasks: list[Task]) -> Task:
        def cancelled(deferred: Deferred[Any]) -> None:
            task.over = True
            self.misbehaveUnless(task.awaited)

        task = Task(self.clock.rightNow, self.wrapper.state, Deferred(cancelled))
        tasks.append(task)
        return task

    def answerTask(self, task: Task, how: str) -> Any:
        task.awaited = how == "eventual"
        task.over = how in ("raise", "plain", "fail")
        task.failed = how in ("raise", "fail")
        if how == "raise":
            raise Hostile("task")
        if how == "plain":
            return None
        if how == "fail":
            return fail(Trouble("task"))
        if how == "succeed":
            task.deferred.callback(None)
        return Eventual(task.deferred) if how == "eventual" else task.deferred

    def askedFor(self) -> None:
        """
        The callable that the first call of a lazy module calls.
        """
        self.asked += 1
        self.check(self.asked == 1, "the lazy module is initialised twice")
        self.reenter()
        if self.nextLazy == "initialize":
            self.wrapper.initialize().addErrback(lambda _: None)
        elif self.nextLazy == "raise":
            raise Hostile("lazy")

    # The module is called, and lost.

    def run(self, number: int) -> Run:
        """
        Run a method of the module.
        """
        self.check(number >= 0, "a call from another thread runs")
        call, state = self.calls[number], self.wrapper.state
        self.check(not call.gaveUp, f"call {number} runs after its caller gave up")
        self.check(not call.ended, f"call {number} runs after it has ended")
        self.check(caller.get() == number, f"call {number} lost its context")
        held = self.wrapper.paused
        self.check(state in RUNS and not held, f"call {number} runs in {state}")
        self.check(
            not call.runs
            or (self.replays(call) and call.runs[-1].losses < self.losses),
            f"call {number} runs twice",
        )
        if not call.nested:
            last = self.lastStarted.get(self.losses, -1)
            self.check(last < number, f"call {number} runs after {last}")
            self.lastStarted[self.losses] = number
            earlier = (each for each in self.waiting() if each.number < number)
            overtaken = [each.number for each in earlier if not each.nested]
            self.check(not overtaken, f"call {number} overtakes {overtaken}")
        run = Run(call, self.losses, self.cancelCall)
        call.runs.append(run)
        if state is State.DRAINING:
            self.clock.work(SECONDS_PER_CALL)
            limit = self.options.concurrency
            self.check(
                limit is None or len(self.inProgress()) <= limit,
                f"call {number} is one too many in progress",
            )
        try:
            self.reenter()
        except Hostile as error:
            run.raised = error
            raise
        return run

    def cancelCall(self) -> str:
        """
        The canceller of a call.
        """
        self.cancellingCalls += 1
        how, self.callCanceller = self.callCanceller, "silent"
        try:
            self.reenter()
            if how == "discover":
                self.loseModule(None)
                return "other"
            return how
        finally:
            self.cancellingCalls -= 1

    def endRun(self, which: int, error: BaseException | None) -> None:
        runs = self.openRuns()
        if runs:
            runs[which % len(runs)].end(error)

    def openRuns(self) -> list[Run]:
        return [run for call in self.calls for run in call.runs if run.open]

    def settleCalls(self, how: str) -> None:
        """
        The module keeps its promise to end its calls itself.
        """
        for run in self.openRuns():
            if not run.open:
                continue
            if how == "cancel" and not run.cleaning:
                assert run.answer is not None
                run.dropped = True
                with suppress(Hostile):
                    run.answer.cancel()
            else:
                run.end(None if how == "result" else Trouble("connection lost"))

    def fireShared(self, failing: bool) -> None:
        """
        Fire the Deferred that many calls return.
        """
        if not self.shared.called:
            if failing:
                self.sharedResult = Trouble("shared")
                self.shared.errback(self.sharedResult)
            else:
                self.shared.callback(self.sharedResult)

    def loseModule(self, error: Exception | None) -> None:
        """
        The module reports its loss.
        """
        watch = self.watch
        if watch is None or not self.canBeLost():
            return
        before, lost = self.losses, self.wrapper.state in READY
        self.expectedLosses += lost
        if error is None:
            watch.callback(None)
        else:
            watch.errback(error)
        self.check(self.losses - before >= lost, "a loss goes unnoticed")

    # Queries.

    def canBeLost(self) -> bool:
        """
        @return: Whether the module can report a loss now.
        """
        return self.watch is not None and not self.watch.called

    @property
    def losses(self) -> int:
        """
        The number of losses.
        """
        self.noticeLosses()
        return self.seenLosses

    def noticeLosses(self) -> None:
        """
        Mark the calls that are repeated because of a loss.
        """
        losses = self.wrapper.history.losses.count
        if losses == self.seenLosses:
            return
        before, self.seenLosses = self.seenLosses, losses
        # After a loss, thousands of calls are checked at once.
        self.clock.allowed += 2 * len(self.calls) * self.clock.tick
        for call in self.calls:
            if (
                call.runs
                and call.runs[-1].losses == before
                and self.replays(call)
                and not (call.ended or call.gaveUp)
                and (call.queued or call.deferred)
            ):
                # The call is queued again, and its wait begins again.
                self.queuedTwice += call.queued
                call.queued = True
                call.since = self.clock.rightNow

    def replays(self, call: Call) -> bool:
        return call.method in self.options.replay

    def isWaiting(self, call: Call) -> bool:
        if call.ended or not call.runs:
            return not call.ended
        lost = call.runs[-1].losses < self.losses
        return self.replays(call) and not call.gaveUp and lost

    def waiting(self) -> list[Call]:
        return [call for call in self.calls if self.isWaiting(call)]

    def inProgress(self) -> list[Call]:
        """
        Return the calls in progress that the wrapper knows.
        """
        return [
            call
            for call in self.calls
            if call.runs
            and (call.tracked or call.queued)
            and not (call.ended or self.isWaiting(call))
        ]

    def ambiguous(self) -> int:
        """
        Return the number of calls whose Deferreds were fired by their callers: each
        call still counts somewhere.
        """
        return sum(call.usurped for call in self.calls)
