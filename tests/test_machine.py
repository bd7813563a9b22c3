"""
The wrapper under whatever may happen to it, in any order and from any callback.

L{Machine} makes random steps: callers make calls and cancel them, the module succeeds,
fails, hangs and is lost, the wrapper is closed. Each step may also be I{planned}, to
happen in the next callback that the wrapper runs. The machine notes all that it sees,
and checks after each step that every call ends once, in order, with its result or
the true reason, and that nothing runs after its caller gave up.

The number of random programs is C{TSRV_EXAMPLES}.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from tsrv import (
    Closed,
    IllegalTransition,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
)

from .support import Failures, Refused, Trouble

caller: ContextVar[int | None] = ContextVar("caller", default=None)

METHODS = ["read", "write", "compute", "count", "fail"]
DEFERRED_METHODS = ["read", "write", "compute"]

PLANS = ["submit", "cancel", "lose", "initialize", "wait", "close", "fail"]
PLANS += ["submit", "lose", "initialize"]

READY = (State.DRAINING, State.READY)
REFUSING = (State.FAILED, State.CLOSING, State.CLOSED)
CAN_FAIL = (State.NEW, State.INITIALIZING, State.RETRYING, State.LOST)
NOT_READY = (*CAN_FAIL, State.FAILED)

SECONDS_PER_CALL = 0.002
"""
How long a drained call keeps the reactor, in seconds.
"""


class Abandoned(Exception):
    """
    The reason of fail().
    """


@dataclass(eq=False)
class Call:
    """
    One call, and all that was seen of it.

    @ivar queued: Whether it went through the queue.
    @ivar since: The time at which it began to wait.
    @ivar fired: The results of its Deferred.
    @ivar gaveUp: Whether its caller cancelled it.
    @ivar rejected: Whether it had to fail at once.
    @ivar runs: The times that the module was called for it.
    """

    number: int
    method: str
    queued: bool
    since: float
    deferred: Deferred[Any] | None = None
    fired: list[Any] = field(default_factory=list)
    gaveUp: bool = False
    rejected: bool = False
    runs: list[Run] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.fired)


@dataclass(eq=False)
class Run:
    """
    One time that the module was called. Every third call takes its time when it is
    cancelled.

    @ivar losses: The number of losses before.
    @ivar answer: The module's Deferred, if the method returns one.
    @ivar late: Fires when a call that was cancelled ends.
    """

    call: Call
    losses: int
    answer: Deferred[Any] | None = None
    late: Deferred[Any] = field(default_factory=Deferred)

    @property
    def open(self) -> bool:
        if self.answer is None:
            return False
        return not self.answer.called or (
            isinstance(self.answer.result, Deferred) and not self.late.called
        )

    def begin(self) -> Deferred[Any]:
        self.answer = Deferred()
        self.answer.addErrback(self.cancelled)
        return self.answer

    def end(self, error: Exception | None) -> None:
        assert self.answer is not None
        open_ = self.late if self.answer.called else self.answer
        if error is None:
            open_.callback(("done", self.call.number, self.call.runs.index(self)))
        else:
            open_.errback(error)

    def cancelled(self, failure: Failure) -> Any:
        if self.call.number % 3 or not failure.check(CancelledError):
            return failure
        return self.late


class Modelled:
    """
    The module: it reports each step to the machine.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def initialize(self) -> Deferred[None]:
        return self._machine.initializing()

    def whenLost(self) -> Deferred[None]:
        return self._machine.watching()

    def close(self) -> Deferred[None]:
        return self._machine.closing()

    def read(self, number: int) -> Deferred[Any]:
        return self._machine.run(number).begin()

    def write(self, number: int) -> Deferred[Any]:
        return self._machine.run(number).begin()

    async def compute(self, number: int) -> Any:
        return await self._machine.run(number).begin()

    def count(self, number: int) -> object:
        self._machine.run(number)
        return ("counted", number)

    def fail(self, number: int) -> object:
        self._machine.run(number)
        raise Trouble(number)


def unfired(deferreds: Iterable[Deferred[None]]) -> list[Deferred[None]]:
    """
    @return: Those Deferreds that have not fired.
    """
    return [each for each in deferreds if not each.called]


class Machine(RuleBasedStateMachine):
    """
    One wrapper, with its callers and its module.
    """

    @initialize(
        limit=st.sampled_from([1, 3, 100, 100]),
        timeout=st.sampled_from([None, 1.0, 5.0]),
        concurrency=st.sampled_from([None, None, 1, 2]),
        attemptTimeout=st.sampled_from([None, 2.0]),
    )
    def setUp(
        self,
        limit: int,
        timeout: float | None,
        concurrency: int | None,
        attemptTimeout: float | None,
    ) -> None:
        self.clock = Clock()
        self.limit = limit
        self.timeout = timeout
        self.concurrency = concurrency
        self.wrapper = QueuingWrapper(
            Modelled(self),
            self.clock,
            limit=limit,
            timeout=timeout,
            concurrency=concurrency,
            attemptTimeout=attemptTimeout,
            closeTimeout=3.0,
            retryPolicy=self.policy,
            fatal=(Refused,),
            replay=["read"],
        )
        # Methods that are taken before the module is ready are right at any time.
        self.kept = {name: getattr(self.wrapper.proxy, name) for name in METHODS}

        # What was seen.
        self.calls: list[Call] = []
        self.waiters: list[tuple[Deferred[None], list[Any]]] = []
        self.closers: list[tuple[Deferred[None], list[Any]]] = []
        self.attempts: list[Deferred[None]] = []
        self.watches: list[Deferred[None]] = []
        self.closings: list[Deferred[None]] = []
        self.problems: list[str] = []
        self.notified = (self.wrapper.state, self.wrapper.since)
        self.losses = 0
        self.begun = 0
        self.fatals = 0
        self.cancelled = 0
        self.queuedTwice = 0
        self.lastStarted: dict[int, int] = {}
        self.succeeded = False
        self.cancellingAttempts = 0
        self.sliceSeconds = 0.0
        self.competing = False

        # What is to happen.
        self.plans: deque[Callable[[], None]] = deque()
        self.nextAttempt = "later"

        self.failures = Failures()
        globalLogPublisher.addObserver(self.failures)
        self.wrapper.addObserver(self.observe)

    def check(self, holds: bool, what: str) -> None:
        # In a callback an exception might be caught by the code under test.
        if not holds:
            self.problems.append(what)

    def reenter(self) -> None:
        """
        A callback: do what is planned for it.
        """
        if self.plans:
            try:
                self.plans.popleft()()
            except Exception as error:
                self.check(False, f"calling back raised {error!r}")

    # The observer.

    def observe(self) -> None:
        wrapper, waiting = self.wrapper, self.waiting()
        state, stats, error = wrapper.state, wrapper.stats, wrapper.lastError
        self.notified = (state, wrapper.since)
        # A call that is just being made may have ended without our seeing it, if the
        # module was lost and given up meanwhile.
        making = any(call.deferred is None and call.runs for call in self.calls)
        self.check(
            making or stats.pending == wrapper.pending == len(waiting),
            f"an observer sees {stats.pending} of {len(waiting)} waiting",
        )
        self.check(
            (wrapper.retryAfter() is not None)
            == (state in (State.RETRYING, State.LOST)),
            f"an observer sees an attempt scheduled in state {state}",
        )
        self.check(
            state not in READY or (self.succeeded and error is None),
            "an observer sees a module ready that is not",
        )
        self.check(
            state is not State.FAILED or isinstance(error, (Refused, Abandoned)),
            f"an observer sees a failure because of {error!r}",
        )
        self.reenter()

    # The module.

    def initializing(self) -> Deferred[None]:
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
        if how == "refuse":
            self.fatals += 1
            return fail(Refused("at once"))
        if how == "succeed":
            return succeed(None)
        self.attempts.append(Deferred(self.cancelAttempt))
        return self.attempts[-1]

    def cancelAttempt(self, attempt: Deferred[None]) -> None:
        self.cancellingAttempts += 1
        self.reenter()
        self.cancellingAttempts -= 1

    def policy(self, attempts: int) -> float:
        self.reenter()
        return float(attempts)

    def watching(self) -> Deferred[None]:
        self.reenter()
        self.watches.append(Deferred())
        return self.watches[-1]

    def closing(self) -> Deferred[None]:
        self.reenter()
        self.closings.append(Deferred())
        return self.closings[-1]

    def run(self, number: int) -> Run:
        """
        The module is called.
        """
        call, state = self.calls[number], self.wrapper.state
        self.check(not call.gaveUp, f"call {number} runs after its caller gave up")
        self.check(not call.ended, f"call {number} runs after it has ended")
        self.check(caller.get() == number, f"call {number} lost its context")
        self.check(state in READY, f"call {number} runs in state {state}")
        self.check(call.method == "read" or not call.runs, f"call {number} runs twice")
        last = self.lastStarted.get(self.losses, -1)
        self.check(last < number, f"call {number} runs after {last}")
        self.lastStarted[self.losses] = number
        overtaken = [each.number for each in self.waiting() if each.number < number]
        self.check(not overtaken, f"call {number} overtakes {overtaken}")
        run = Run(call, self.losses)
        call.runs.append(run)
        if state is State.DRAINING:
            self.work()
            self.check(
                self.concurrency is None or self.inProgress() <= self.concurrency,
                f"call {number} is one too many in progress",
            )
        self.reenter()
        return run

    def work(self) -> None:
        """
        Keep the reactor for a while, in competition with other work.
        """
        self.check(self.sliceSeconds < 0.006, "one slice goes on and on")
        self.sliceSeconds += SECONDS_PER_CALL
        self.clock.rightNow += SECONDS_PER_CALL
        if not self.competing:
            self.competing = True
            self.clock.callLater(0, self.compete)

    def compete(self) -> None:
        self.competing = False
        self.sliceSeconds = 0.0

    # The calls.

    def isWaiting(self, call: Call) -> bool:
        if call.ended or not call.runs:
            return not call.ended
        lost = call.runs[-1].losses < self.losses
        return call.method == "read" and not call.gaveUp and lost

    def waiting(self) -> list[Call]:
        return [call for call in self.calls if self.isWaiting(call)]

    def inProgress(self) -> int:
        return sum(
            run.losses == self.losses and not call.ended
            for call in self.calls
            for run in call.runs
        )

    def isRunning(self, call: Call) -> bool:
        started = bool(call.runs) and call.runs[-1].losses == self.losses
        return started and not call.ended and not call.gaveUp

    # The steps.

    def submit(self, method: str, kept: bool = False) -> None:
        number, wrapper = len(self.calls), self.wrapper
        state, pending = wrapper.state, wrapper.pending
        call = Call(number, method, state is not State.READY, self.clock.seconds())
        self.calls.append(call)
        function = self.kept[method] if kept else getattr(wrapper.proxy, method)
        token = caller.set(number)
        try:
            answer = function(number)
        except Trouble as error:
            answer = fail(error)
            self.check(not call.queued, f"call {number} raises in state {state}")
        finally:
            caller.reset(token)
        if not isinstance(answer, Deferred):
            self.check(not call.queued, f"call {number} returns no Deferred")
            answer = succeed(answer)
        call.deferred = answer
        if call.queued and not call.runs:
            refused = state in REFUSING
            if refused and self.cancellingAttempts:
                # Queued calls have not been refused yet, but soon will be.
                refused = answer.called
            call.rejected = refused or pending >= self.limit
            self.check(
                answer.called == call.rejected,
                f"call {number} in state {state} with {pending} pending",
            )
        answer.addBoth(self.ended, call)

    def ended(self, result: object, call: Call) -> None:
        call.fired.append(result)
        if isinstance(result, Failure) and result.check(QueueTimeout):
            assert result.value is not None
            self.check(
                result.value.__cause__ is self.wrapper.lastError,
                f"call {call.number} lost the cause of its timeout",
            )
        self.reenter()

    def cancelCall(self, which: int) -> None:
        open_ = [call for call in self.calls if call.deferred and not call.ended]
        if open_:
            call = open_[which % len(open_)]
            assert call.deferred is not None
            self.cancelled += self.isWaiting(call)
            call.gaveUp = True
            call.deferred.cancel()

    def wait(self, start: bool) -> None:
        fired: list[Any] = []
        wrapper = self.wrapper
        fatals = self.fatals - (wrapper.state is State.FAILED and not start)
        deferred = wrapper.initialize() if start else wrapper.whenInitialized()
        self.waiters.append((deferred, fired))

        def initialized(result: object) -> None:
            fired.append(result)
            if isinstance(result, Failure) and result.check(InitializationFailed):
                self.check(self.fatals > fatals, "a new waiter gets an old failure")
            self.reenter()

        deferred.addBoth(initialized)

    def closeWrapper(self) -> None:
        fired: list[Any] = []
        deferred = self.wrapper.close()
        self.closers.append((deferred, fired))

        def closed(result: object) -> None:
            fired.append(result)
            self.reenter()

        deferred.addBoth(closed)

    def failWrapper(self) -> None:
        wrapper, reason = self.wrapper, Abandoned()

        def seen() -> tuple[object, ...]:
            return wrapper.state, wrapper.since, wrapper.lastError, wrapper.stats

        before, planned = seen(), bool(self.plans)
        legal = wrapper.state in CAN_FAIL
        self.fatals += legal
        try:
            wrapper.fail(reason)
        except IllegalTransition:
            self.check(not legal, f"cannot fail in state {before[0]}")
            self.check(before == seen(), "an illegal fail() has changed something")
        else:
            self.check(legal, f"can fail in state {before[0]}")
            failed = wrapper.state is State.FAILED and wrapper.lastError is reason
            self.check(planned or failed, f"has not failed, but is {wrapper.state}")

    def loseModule(self, error: Exception | None) -> None:
        if not unfired(self.watches[-1:]):
            return
        if self.wrapper.state in READY:
            for call in self.calls:
                if call.method == "read" and self.isRunning(call):
                    # It is queued again, and begins to wait again.
                    self.queuedTwice += call.queued
                    call.queued = True
                    call.since = self.clock.seconds()
            self.losses += 1
        if error is None:
            self.watches[-1].callback(None)
        else:
            self.watches[-1].errback(error)

    def endRun(self, which: int, error: Exception | None) -> None:
        runs = [run for call in self.calls for run in call.runs if run.open]
        if runs:
            runs[which % len(runs)].end(error)

    def beginAttempt(self) -> None:
        """
        Let an attempt be in progress, whatever was planned.
        """
        self.nextAttempt = "later"
        self.wait(start=True)
        self.clock.advance(self.wrapper.retryAfter() or 0)

    def plan(self, what: str, method: str, which: int) -> None:
        self.plans.append(
            {
                "submit": lambda: self.submit(method),
                "cancel": lambda: self.cancelCall(which),
                "lose": lambda: self.loseModule(None),
                "initialize": lambda: self.wait(start=True),
                "wait": lambda: self.wait(start=False),
                "close": self.closeWrapper,
                "fail": self.failWrapper,
            }[what]
        )

    # The rules.

    def isReady(self) -> bool:
        return self.wrapper.state in READY

    def isNotReady(self) -> bool:
        return self.wrapper.state in NOT_READY

    @rule(method=st.sampled_from(METHODS), kept=st.booleans())
    def makeCall(self, method: str, kept: bool) -> None:
        self.submit(method, kept)

    @rule(many=st.integers(2, 6), method=st.sampled_from(DEFERRED_METHODS))
    def makeCalls(self, many: int, method: str) -> None:
        for _ in range(many):
            self.submit(method)

    @precondition(lambda self: any(not call.ended for call in self.calls))
    @rule(which=st.integers(0, 9))
    def giveUpACall(self, which: int) -> None:
        self.cancelCall(which)

    @precondition(isNotReady)
    @rule(start=st.booleans())
    def waitForTheModule(self, start: bool) -> None:
        self.wait(start)

    @precondition(lambda self: any(not fired for _, fired in self.waiters))
    @rule(which=st.integers(0, 9))
    def stopWaiting(self, which: int) -> None:
        open_ = [deferred for deferred, fired in self.waiters if not fired]
        attempts, planned = unfired(self.attempts), bool(self.plans)
        open_[which % len(open_)].cancel()
        assert planned or unfired(attempts) == attempts

    @precondition(isNotReady)
    @rule()
    def becomeReady(self) -> None:
        self.beginAttempt()
        self.answerAttempt(None)

    @precondition(lambda self: self.nextAttempt == "later")
    @rule(how=st.sampled_from(["later", "succeed", "raise", "refuse"]))
    def chooseNextAttempt(self, how: str) -> None:
        self.nextAttempt = how

    @precondition(lambda self: bool(unfired(self.attempts)))
    @rule(error=st.sampled_from([None, None, None, Trouble, Refused]))
    def answerAttempt(self, error: type[Exception] | None) -> None:
        open_ = unfired(self.attempts)
        if open_ and error is None:
            self.succeeded = True
            open_[-1].callback(None)
        elif open_ and error is not None:
            reason = error("later")
            self.fatals += error is Refused
            current = self.wrapper.state is State.INITIALIZING
            planned = bool(self.plans)
            open_[-1].errback(reason)
            assert planned or not current or self.wrapper.lastError is reason

    @precondition(lambda self: any(call.runs for call in self.calls))
    @rule(which=st.integers(0, 9), error=st.sampled_from([None, None, Trouble]))
    def answerCall(self, which: int, error: type[Exception] | None) -> None:
        self.endRun(which, None if error is None else error("answer"))

    @precondition(isReady)
    @rule(error=st.sampled_from([None, Trouble]), failures=st.booleans())
    def lose(self, error: type[Exception] | None, failures: bool) -> None:
        """
        The module is lost; many clients fail all that is in progress first.
        """
        if failures:
            reads = [call for call in self.calls if call.method == "read"]
            running = [call for call in reads if self.isRunning(call)]
            planned = bool(self.plans)
            for _ in range(len(self.calls)):
                self.endRun(0, Trouble("connection lost"))
        self.loseModule(None if error is None else error("loss"))
        assert not failures or planned or not any(call.ended for call in running)

    @precondition(lambda self: self.wrapper.state in CAN_FAIL)
    @rule(twice=st.booleans())
    def giveUpTheModule(self, twice: bool) -> None:
        for _ in range(1 + twice):
            self.failWrapper()

    @rule(seconds=st.sampled_from([0, 0, 0.5, 1, 2, 7]))
    def passTime(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: len(self.calls) > 12)
    @rule()
    def close(self) -> None:
        # Not too early: not much happens afterwards.
        self.closeWrapper()

    @precondition(lambda self: bool(unfired(self.closings)))
    @rule(error=st.sampled_from([None, Trouble]))
    def answerClosing(self, error: type[Exception] | None) -> None:
        for closing in unfired(self.closings):
            if error is None:
                closing.callback(None)
            else:
                closing.errback(error("closing"))

    @precondition(lambda self: len(self.plans) < 3)
    @rule(
        what=st.sampled_from(PLANS),
        method=st.sampled_from(METHODS),
        which=st.integers(0, 9),
    )
    def planForTheNextCallback(self, what: str, method: str, which: int) -> None:
        self.plan(what, method, which)

    @precondition(isNotReady)
    @rule(
        overdue=st.booleans(),
        whats=st.lists(st.sampled_from(["fail", "initialize", "submit"]), max_size=2),
    )
    def beginAgainWhileAnAttemptEnds(self, overdue: bool, whats: list[str]) -> None:
        """
        The canceller, the policy and those who hear of a failure may give the module
        up and begin again.
        """
        self.plans.clear()
        self.beginAttempt()
        for what in ["fail", "initialize", *whats]:
            self.plan(what, "read", 0)
        if overdue:
            self.clock.advance(2.0)
        else:
            self.answerAttempt(Trouble)

    @precondition(isNotReady)
    @rule(
        methods=st.lists(st.sampled_from(METHODS), min_size=1, max_size=4),
        whats=st.lists(st.sampled_from([*PLANS, "close"]), min_size=1, max_size=3),
        which=st.integers(0, 9),
        error=st.sampled_from([None, None, None, Refused]),
    )
    def answerAttemptWithPlans(
        self,
        methods: list[str],
        whats: list[str],
        which: int,
        error: type[Exception] | None,
    ) -> None:
        """
        Everything may happen in the callbacks of a drain, or of a fatal failure.
        """
        self.plans.clear()
        self.beginAttempt()
        for method in methods:
            self.submit(method)
        for what in whats:
            self.plan(what, methods[0], which)
        self.answerAttempt(error)

    # The invariants.

    @invariant()
    def nothingWentWrong(self) -> None:
        assert self.problems == []
        assert self.failures.all == []

    @invariant()
    def everyChangeOfStateWasNotified(self) -> None:
        assert self.notified == (self.wrapper.state, self.wrapper.since)

    @invariant()
    def readyMeansInitialized(self) -> None:
        assert self.succeeded or not self.isReady()

    @invariant()
    def onlyNecessaryTimersExist(self) -> None:
        state = self.wrapper.state
        retrying = state in (State.RETRYING, State.LOST)
        assert (self.wrapper.retryAfter() is not None) == retrying
        if state is State.READY:
            now = self.clock.seconds()
            assert all(call.getTime() <= now for call in self.clock.getDelayedCalls())

    @invariant()
    def theCountersAgree(self) -> None:
        stats, waiting = self.wrapper.stats, self.waiting()
        assert stats.submitted == (
            stats.started
            + stats.rejected
            + stats.expired
            + stats.cancelled
            + stats.failed
            + stats.pending
        )
        assert stats.pending == self.wrapper.pending == len(waiting)
        assert stats.submitted == sum(call.queued for call in self.calls)
        assert stats.rejected == sum(call.rejected for call in self.calls)
        assert stats.cancelled == self.cancelled
        ends = [call.fired[0] for call in self.calls if call.ended]
        types = [end.type for end in ends if isinstance(end, Failure)]
        assert stats.expired == types.count(QueueTimeout)
        unavailable = sum(map(types.count, (Closed, InitializationFailed, QueueFull)))
        assert stats.failed == unavailable - stats.rejected

    @invariant()
    def noCallWaitsTooLong(self) -> None:
        if self.timeout is not None and self.wrapper.state is not State.CLOSING:
            late = self.clock.seconds() - self.timeout
            # Work in progress may have moved the clock since.
            assert all(call.since > late - 0.1 for call in self.waiting())

    @invariant()
    def theOldestCallIsTheOneThatWaitsLongest(self) -> None:
        since = [call.since for call in self.waiting()]
        oldest, now = self.wrapper.oldest, self.clock.seconds()
        if oldest is not None:
            assert oldest <= now - min(since) + 1e-6
        if all(call.getTime() > now for call in self.clock.getDelayedCalls()):
            # No slice of work is left that will end some of them.
            assert (oldest is None) == (not since)
            assert oldest is None or oldest >= now - min(since) - 1e-6

    @invariant()
    def theHistoryIsComplete(self) -> None:
        state, history = self.wrapper.state, self.wrapper.history
        attempts, losses = list(history.attempts), list(history.losses)
        assert (history.attempts.count, history.losses.count) == (
            self.begun,
            self.losses,
        )
        assert len(attempts) == min(self.begun, 25)
        assert len(losses) == min(self.losses, 25)
        open_ = [attempt for attempt in attempts if attempt.ended is None]
        assert open_ == (attempts[-1:] if state is State.INITIALIZING else [])
        assert sum(history.attemptSeconds.counts) == self.begun - len(open_)
        away = [loss for loss in losses if loss.recovered is None]
        assert away in ([], losses[-1:])
        if state in READY:
            assert away == []
            assert history.becameReady is not None
        elif state not in (State.CLOSING, State.CLOSED):
            assert away == losses[-1:]
            assert (history.becameReady is not None) == bool(losses)

    @invariant()
    def everyWaitWasObserved(self) -> None:
        stats, histogram = self.wrapper.stats, self.wrapper.history.queueSeconds
        # A call that was started, and queued again at a loss, has waited twice.
        assert sum(histogram.counts) == self.queuedTwice + (
            stats.started + stats.expired + stats.cancelled + stats.failed
        )
        assert histogram.total >= 0

    @invariant()
    def everyCallEndsOnceWithTheTrueReason(self) -> None:
        for call in self.calls:
            assert len(call.fired) <= 1
            for result in call.fired:
                self.checkResult(call, result)

    def checkResult(self, call: Call, result: object) -> None:
        if not isinstance(result, Failure):
            done = ("done", call.number, len(call.runs) - 1)
            assert result in (done, ("counted", call.number))
            return
        error = result.value
        if isinstance(error, QueueFull):
            assert not call.runs
        elif isinstance(error, QueueTimeout):
            assert self.timeout is not None
            assert error.waited >= self.timeout - 1e-6
        elif isinstance(error, Closed):
            assert self.wrapper.state in (State.CLOSING, State.CLOSED)
        elif isinstance(error, InitializationFailed):
            assert isinstance(error.__cause__, (Refused, Abandoned))
        elif isinstance(error, CancelledError):
            assert call.gaveUp
        else:
            assert isinstance(error, (OutcomeUnknown, Trouble))
            assert call.runs

    # The end.

    def teardown(self) -> None:
        if not hasattr(self, "clock"):
            return
        try:
            self.plans.clear()
            self.finishTheDrain()
            self.closeEverything()
            for each in (
                self.theCountersAgree,
                self.theHistoryIsComplete,
                self.everyWaitWasObserved,
                self.everyChangeOfStateWasNotified,
                self.everyCallEndsOnceWithTheTrueReason,
            ):
                each()
            # An error that nobody handled is reported when nobody can any more.
            for kept in (self.calls, self.waiters, self.closers):
                kept.clear()
            for deferreds in (self.attempts, self.watches, self.closings):
                deferreds.clear()
            gc.collect()
            self.nothingWentWrong()
        finally:
            globalLogPublisher.removeObserver(self.failures)

    def finishTheDrain(self) -> None:
        while self.wrapper.state is State.DRAINING:
            before = self.wrapper.pending
            for _ in range(len(self.calls)):
                self.endRun(0, None)
            self.clock.advance(0)
            assert self.wrapper.pending < max(before, 1)
        if self.wrapper.state is State.READY:
            self.clock.advance(0)
            assert self.clock.getDelayedCalls() == []

    def closeEverything(self) -> None:
        self.closeWrapper()
        self.clock.advance(0)
        for attempt in unfired(self.attempts):
            attempt.callback(None)
        # The module need not answer: closing has a time limit, and then calls in
        # progress have an unknown outcome.
        self.clock.pump([0, 3.0, 0, 0])
        assert self.wrapper.state is State.CLOSED
        for call in self.calls:
            if not call.ended:
                # It is the module's own Deferred, of which the wrapper never knew.
                assert not call.queued
                assert call.method != "read"
                (run,) = call.runs
                run.end(None)
        assert all(call.ended for call in self.calls)
        assert all(fired for _, fired in [*self.waiters, *self.closers])
        assert self.clock.getDelayedCalls() == []
        # A module that was never initialised is not closed.
        assert bool(self.closings) == (self.begun > 0)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=int(os.environ.get("TSRV_EXAMPLES", "60")),
    stateful_step_count=40,
    deadline=None,
    derandomize="TSRV_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
