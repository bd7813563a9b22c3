"""
Whatever happens, in whatever order, and from whatever callback: every call
ends once, in order, with its result or with the true reason, and nothing runs
after its caller gave up.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, settings
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
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
)
from tsrv.wrapper import IllegalTransition

from .support import Failures, Refused, Trouble

caller: ContextVar[int | None] = ContextVar("caller", default=None)

METHODS = ["read", "write", "compute", "count", "fail"]

PLANS = [
    "submit",
    "submit",
    "cancel",
    "lose",
    "lose",
    "initialize",
    "initialize",
    "wait",
    "close",
    "fail",
]

LATER = ["read", "write", "compute"]

CAN_FAIL = [State.NEW, State.INITIALIZING, State.RETRYING, State.LOST]


class Abandoned(Exception):
    """
    Why the initialisation is given up from outside.
    """


@dataclass(eq=False)
class Call:
    """
    One call, and all that was seen of it.
    """

    number: int
    method: str
    queued: bool
    since: float
    deferred: Deferred[Any] | None = None
    fired: list[Any] = field(default_factory=list)
    gaveUp: bool = False
    refused: bool = False
    runs: list[Run] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """
        Whether its Deferred has fired.
        """
        return bool(self.fired)

    @property
    def failed(self) -> bool:
        """
        Whether it has ended with an error.
        """
        return self.ended and isinstance(self.fired[0], Failure)


@dataclass(eq=False)
class Run:
    """
    One time that the module was called.
    """

    call: Call
    losses: int
    answer: Deferred[Any] | None = None
    late: Deferred[Any] = field(default_factory=Deferred)

    @property
    def open(self) -> bool:
        """
        Whether the module has not answered, or not after it was cancelled.
        """
        if self.answer is None:
            return False
        return not self.answer.called or (
            isinstance(self.answer.result, Deferred) and not self.late.called
        )

    def end(self, error: Exception | None) -> None:
        """
        Let the module answer.
        """
        assert self.answer is not None
        open_ = self.late if self.answer.called else self.answer
        if error is None:
            open_.callback(("done", self.call.number, self.call.runs.index(self)))
        else:
            open_.errback(error)

    def cancelled(self, failure: Failure) -> Any:
        """
        Some calls take their time when they are cancelled.
        """
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
        return self._machine.runLater(number)

    def write(self, number: int) -> Deferred[Any]:
        return self._machine.runLater(number)

    async def compute(self, number: int) -> Any:
        return await self._machine.runLater(number)

    def count(self, number: int) -> object:
        self._machine.run(number)
        return ("counted", number)

    def fail(self, number: int) -> object:
        self._machine.run(number)
        raise Trouble(number)


class Machine(RuleBasedStateMachine):
    """
    The wrapper, whatever may happen to it, and what must hold.
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
        self.module = Modelled(self)
        self.wrapper = QueuingWrapper(
            self.module,
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
        self.taken = {name: getattr(self.wrapper.proxy, name) for name in METHODS}
        self.calls: list[Call] = []
        self.waiters: list[tuple[Deferred[None], list[Any]]] = []
        self.closers: list[tuple[Deferred[None], list[Any]]] = []
        self.attempts: list[Deferred[None]] = []
        self.late: list[Deferred[None]] = []
        self.watches: list[Deferred[None]] = []
        self.closings: list[Deferred[None]] = []
        self.plans: deque[Callable[[], None]] = deque()
        self.next: str = "later"
        self.losses = 0
        self.again = 0
        self.begun = 0
        self.cancelling = 0
        self.told = (self.wrapper.state, self.wrapper.since)
        self.lastStarted: dict[int, int] = {}
        self.failures = Failures()
        self.problems: list[str] = []
        self.cancelled = 0
        self.succeeded = False
        self.fatals = 0
        self.busy = 0.0
        self.competing = False
        globalLogPublisher.addObserver(self.failures)
        self.wrapper.addObserver(self.observe)

    def check(self, holds: bool, what: str) -> None:
        """
        Note what does not hold: an exception here might be caught by what is
        being tested.
        """
        if not holds:
            self.problems.append(what)

    # The observer's side.

    def observe(self) -> None:
        """
        The state has changed: what is to be seen now must fit together.
        """
        wrapper = self.wrapper
        state, stats = wrapper.state, wrapper.stats
        self.told = (state, wrapper.since)
        waiting = [c for c in self.calls if not c.ended and self.isWaiting(c)]
        self.check(
            stats.pending == wrapper.pending == len(waiting),
            f"an observer sees {stats.pending} of {len(waiting)} waiting",
        )
        self.check(
            stats.submitted == sum(call.queued for call in self.calls),
            f"an observer sees {stats.submitted} calls",
        )
        self.check(
            wrapper.oldest is None or wrapper.pending > 0,
            "an observer sees the age of nothing",
        )
        self.check(
            (wrapper.retryAfter() is not None)
            == (state in (State.RETRYING, State.LOST)),
            f"an observer sees an attempt scheduled in state {state}",
        )
        self.check(
            state not in (State.DRAINING, State.READY)
            or (self.succeeded and wrapper.lastError is None),
            "an observer sees a module ready that is not",
        )
        self.check(
            state is not State.FAILED
            or isinstance(wrapper.lastError, (Refused, Abandoned)),
            f"an observer sees a failure because of {wrapper.lastError!r}",
        )
        self.reenter()

    # The module's side.

    def initializing(self) -> Deferred[None]:
        self.succeeded = False
        self.begun += 1
        number = self.begun
        self.reenter()
        how, self.next = self.next, "later"
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
        attempt: Deferred[None] = Deferred(self.cancelAttempt)
        answer = attempt
        if how == "stubborn":
            # When it is cancelled it takes its time, and then succeeds.
            late: Deferred[None] = Deferred()
            self.late.append(late)
            attempt.addErrback(lambda why: late if why.check(CancelledError) else why)
            answer = Deferred()
            answer.callback(None)
            answer.addCallback(lambda _: attempt)
        self.attempts.append(attempt)
        return answer

    def cancelAttempt(self, attempt: Deferred[None]) -> None:
        """
        Nobody waits for an attempt any more.
        """
        self.cancelling += 1
        self.reenter()
        self.cancelling -= 1

    def policy(self, attempts: int) -> float:
        self.reenter()
        return float(attempts)

    def watching(self) -> Deferred[None]:
        self.reenter()
        watch: Deferred[None] = Deferred()
        self.watches.append(watch)
        return watch

    def closing(self) -> Deferred[None]:
        self.reenter()
        closing: Deferred[None] = Deferred()
        self.closings.append(closing)
        if len(self.calls) % 2:
            # It does not let itself be cancelled.
            closing.addErrback(
                lambda why: Deferred() if why.check(CancelledError) else why
            )
        return closing

    def run(self, number: int) -> Run:
        """
        The module is called.
        """
        call = self.calls[number]
        self.check(not call.gaveUp, f"call {number} runs after its caller gave up")
        self.check(not call.ended, f"call {number} runs after it has ended")
        self.check(caller.get() == number, f"call {number} lost its context")
        self.check(
            self.wrapper.state in (State.DRAINING, State.READY),
            f"call {number} runs in state {self.wrapper.state}",
        )
        if call.method != "read":
            self.check(not call.runs, f"call {number} runs twice")
        last = self.lastStarted.get(self.losses, -1)
        self.check(last < number, f"call {number} runs after {last}")
        self.lastStarted[self.losses] = number
        waiting = [
            other.number
            for other in self.calls[:number]
            if not other.ended and self.isWaiting(other)
        ]
        self.check(not waiting, f"call {number} overtakes {waiting}")
        run = Run(call, self.losses)
        call.runs.append(run)
        if self.wrapper.state is State.DRAINING:
            self.work()
        if self.concurrency is not None and self.wrapper.state is State.DRAINING:
            self.check(
                self.inProgress() <= self.concurrency,
                f"call {number} is one too many in progress",
            )
        self.reenter()
        return run

    def work(self) -> None:
        """
        Keep the reactor for 2 ms, as does each drained command; there is other
        work to do.
        """
        self.check(self.busy < 0.006, "one slice goes on and on")
        self.busy += 0.002
        self.clock.rightNow += 0.002
        if not self.competing:
            self.competing = True
            self.clock.callLater(0, self.compete)

    def compete(self) -> None:
        """
        Other work gets its turn.
        """
        self.competing = False
        self.busy = 0.0

    def runLater(self, number: int) -> Deferred[Any]:
        run = self.run(number)
        run.answer = Deferred()
        run.answer.addErrback(run.cancelled)
        return run.answer

    def inProgress(self) -> int:
        return sum(
            1
            for call in self.calls
            for run in call.runs
            if run.losses == self.losses and not call.ended
        )

    def isInProgress(self, call: Call) -> bool:
        """
        Whether the module is at work on a call for which somebody waits.
        """
        return (
            not call.ended
            and not call.gaveUp
            and bool(call.runs)
            and call.runs[-1].losses == self.losses
        )

    def isWaiting(self, call: Call) -> bool:
        """
        Whether a call that has not ended is in the queue.
        """
        if not call.runs:
            return True
        return (
            call.method == "read"
            and not call.gaveUp
            and call.runs[-1].losses < self.losses
        )

    # The callers' side.

    def reenter(self) -> None:
        """
        Do in this callback what is planned for the next one.
        """
        if self.plans:
            try:
                self.plans.popleft()()
            except Exception as error:
                self.check(False, f"calling back raised {error!r}")

    def submit(self, method: str, taken: bool = False) -> None:
        """
        Make a call.
        """
        number = len(self.calls)
        wrapper = self.wrapper
        state = wrapper.state
        token = caller.set(number)
        call = Call(
            number,
            method,
            queued=state is not State.READY,
            since=self.clock.seconds(),
        )
        self.calls.append(call)
        pending = wrapper.pending
        function = self.taken[method] if taken else getattr(wrapper.proxy, method)
        try:
            answer = function(number)
        except Trouble as error:
            answer = fail(error)
            self.check(not call.queued, f"call {number} raises in state {state}")
        finally:
            caller.reset(token)
        if not isinstance(answer, Deferred):
            self.check(not call.queued, f"call {number} answers no Deferred")
            answer = succeed(answer)
        call.deferred = answer
        if call.queued:
            refused = state in (State.FAILED, State.CLOSING, State.CLOSED)
            full = pending >= self.limit
            if refused and self.cancelling:
                # What waits has not been refused yet, but soon will be.
                refused = answer.called
            self.check(
                answer.called == (refused or full),
                f"call {number} in state {state} with {pending} pending",
            )
            call.refused = refused or full
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
        """
        Give up one of the calls that have not ended.
        """
        open_ = [call for call in self.calls if call.deferred and not call.ended]
        if open_:
            call = open_[which % len(open_)]
            assert call.deferred is not None
            if self.isWaiting(call):
                self.cancelled += 1
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

    def shut(self) -> None:
        fired: list[Any] = []
        deferred = self.wrapper.close()
        self.closers.append((deferred, fired))

        def closed(result: object) -> None:
            fired.append(result)
            self.reenter()

        deferred.addBoth(closed)

    def abandon(self) -> None:
        """
        Give the initialisation up, be it in progress or not.
        """
        wrapper = self.wrapper
        legal = wrapper.state in CAN_FAIL
        planned = bool(self.plans)
        before = (wrapper.state, wrapper.since, wrapper.lastError, wrapper.stats)
        reason = Abandoned()
        self.fatals += legal
        try:
            wrapper.fail(reason)
        except IllegalTransition:
            after = (wrapper.state, wrapper.since, wrapper.lastError, wrapper.stats)
            self.check(not legal, f"cannot fail in state {before[0]}")
            self.check(before == after, "what cannot fail has changed")
        else:
            self.check(legal, f"can fail in state {before[0]}")
            if not planned:
                self.check(
                    wrapper.state is State.FAILED and wrapper.lastError is reason,
                    f"has not failed, but is {wrapper.state}",
                )

    def loseModule(self, error: Exception | None) -> None:
        """
        The module is lost, if it is ready.
        """
        ready = self.wrapper.state in (State.DRAINING, State.READY)
        if self.watches and not self.watches[-1].called:
            if ready:
                for call in self.calls:
                    if call.method == "read" and self.isInProgress(call):
                        # It is put back, and begins to wait anew.
                        self.again += call.queued
                        call.queued = True
                        call.since = self.clock.seconds()
                self.losses += 1
            watch = self.watches[-1]
            if error is None:
                watch.callback(None)
            else:
                watch.errback(error)

    def answerRun(self, which: int, error: Exception | None) -> None:
        """
        The module answers one of its calls, be it late.
        """
        runs = [run for call in self.calls for run in call.runs if run.open]
        if runs:
            runs[which % len(runs)].end(error)

    # What may happen.

    @rule(method=st.sampled_from(METHODS), taken=st.booleans())
    def makeCall(self, method: str, taken: bool) -> None:
        # A method that was taken when the module was not ready works at any
        # time; only one of these is taken here.
        self.submit(method, taken)

    @rule(many=st.integers(2, 6), method=st.sampled_from(LATER))
    def makeCalls(self, many: int, method: str) -> None:
        for _ in range(many):
            self.submit(method)

    @precondition(lambda self: self.notReady())
    @rule()
    def comeUp(self) -> None:
        """
        The module becomes ready, whatever that takes.
        """
        self.next = "later"
        self.wait(start=True)
        self.clock.advance(self.wrapper.retryAfter() or 0)
        self.answerAttempt(None)

    @precondition(lambda self: any(not call.ended for call in self.calls))
    @rule(which=st.integers(0, 9))
    def giveUp(self, which: int) -> None:
        self.cancelCall(which)

    def notReady(self) -> bool:
        return self.wrapper.state in (
            State.NEW,
            State.INITIALIZING,
            State.RETRYING,
            State.LOST,
            State.FAILED,
        )

    def isReady(self) -> bool:
        return self.wrapper.state in (State.DRAINING, State.READY)

    @precondition(lambda self: self.notReady())
    @rule()
    def initializeIt(self) -> None:
        self.wait(start=True)

    @precondition(lambda self: self.notReady())
    @rule()
    def waitForIt(self) -> None:
        self.wait(start=False)

    @precondition(lambda self: self.wrapper.state in CAN_FAIL)
    @rule(twice=st.booleans())
    def abandonIt(self, twice: bool) -> None:
        self.abandon()
        if twice:
            # It has failed by now, unless something else was planned.
            self.abandon()

    @precondition(lambda self: self.notReady())
    @rule(
        overdue=st.booleans(),
        whats=st.lists(st.sampled_from(["fail", "initialize", "submit"]), max_size=2),
    )
    def beginAnewWhileAnAttemptEnds(self, overdue: bool, whats: list[str]) -> None:
        """
        The module that is cancelled, the policy that is asked, and who hears
        of the failure, may have it given up and begun again.
        """
        self.plans.clear()
        self.next = "later"
        self.wait(start=True)
        self.clock.advance(self.wrapper.retryAfter() or 0)
        for what in ["fail", "initialize", *whats]:
            self.plan(what, "read", 0)
        if overdue:
            self.clock.advance(2.0)
        else:
            self.answerAttempt(Trouble)

    @precondition(lambda self: any(not fired for _, fired in self.waiters))
    @rule(which=st.integers(0, 9))
    def stopWaiting(self, which: int) -> None:
        open_ = [deferred for deferred, fired in self.waiters if not fired]
        attempts = [attempt for attempt in self.attempts if not attempt.called]
        planned = bool(self.plans)
        open_[which % len(open_)].cancel()
        assert planned or not any(attempt.called for attempt in attempts)

    @precondition(lambda self: self.next == "later")
    @rule(how=st.sampled_from(["later", "succeed", "raise", "refuse", "stubborn"]))
    def nextAttempt(self, how: str) -> None:
        self.next = how

    @precondition(lambda self: any(not attempt.called for attempt in self.attempts))
    @rule(error=st.sampled_from([None, None, None, Trouble, Refused]))
    def answerAttempt(self, error: type[Exception] | None) -> None:
        open_ = [attempt for attempt in self.attempts if not attempt.called]
        if open_ and error is None:
            self.succeeded = True
            open_[-1].callback(None)
        elif open_ and error is not None:
            reason = error("later")
            self.fatals += error is Refused
            current = self.wrapper.state is State.INITIALIZING
            planned = bool(self.plans)
            open_[-1].errback(reason)
            if current and not planned:
                assert self.wrapper.lastError is reason

    @precondition(lambda self: self.notReady() and not self.plans)
    @rule()
    def abandonAnAttemptThatSucceedsLate(self) -> None:
        self.next = "stubborn"
        self.wait(start=True)
        self.clock.advance(self.wrapper.retryAfter() or 0)
        self.clock.advance(2.0)
        self.clock.advance(self.wrapper.retryAfter() or 0)
        self.answerLate()

    @precondition(lambda self: any(not late.called for late in self.late))
    @rule()
    def answerLate(self) -> None:
        for late in self.late:
            if not late.called:
                late.callback(None)

    @precondition(lambda self: any(run for call in self.calls for run in call.runs))
    @rule(which=st.integers(0, 9), error=st.sampled_from([None, None, Trouble]))
    def answerCall(self, which: int, error: type[Exception] | None) -> None:
        self.answerRun(which, None if error is None else error("answer"))

    @precondition(lambda self: self.isReady())
    @rule(error=st.sampled_from([None, Trouble]))
    def lose(self, error: type[Exception] | None) -> None:
        self.loseModule(None if error is None else error("loss"))

    @precondition(lambda self: self.isReady())
    @rule(error=st.sampled_from([None, Trouble]))
    def loseAfterFailures(self, error: type[Exception] | None) -> None:
        """
        As many clients do: first all that is in progress fails, and then the
        loss is reported.
        """
        again = [
            call
            for call in self.calls
            if call.method == "read" and self.isInProgress(call)
        ]
        planned = bool(self.plans)
        for _ in range(len(self.calls)):
            self.answerRun(0, Trouble("connection lost"))
        self.loseModule(None if error is None else error("loss"))
        if not planned:
            assert not any(call.ended for call in again)

    @rule(seconds=st.sampled_from([0, 0, 0.5, 1, 2, 7]))
    def passTime(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: len(self.calls) > 12)
    @rule()
    def closeIt(self) -> None:
        # Not too early: not much happens after it.
        self.shut()

    @precondition(lambda self: any(not closing.called for closing in self.closings))
    @rule(error=st.sampled_from([None, Trouble]))
    def answerClosing(self, error: type[Exception] | None) -> None:
        for closing in self.closings:
            if not closing.called:
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

    @precondition(lambda self: self.notReady())
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
        Whatever is planned happens in the callbacks of a drain, or of the end
        of all hope.
        """
        self.plans.clear()
        self.next = "later"
        self.wait(start=True)
        self.clock.advance(self.wrapper.retryAfter() or 0)
        for method in methods:
            self.submit(method)
        for what in whats:
            self.plan(what, methods[0], which)
        self.answerAttempt(error)

    def plan(self, what: str, method: str, which: int) -> None:
        self.plans.append(
            {
                "submit": lambda: self.submit(method),
                "cancel": lambda: self.cancelCall(which),
                "lose": lambda: self.loseModule(None),
                "initialize": lambda: self.wait(start=True),
                "wait": lambda: self.wait(start=False),
                "close": self.shut,
                "fail": self.abandon,
            }[what]
        )

    # What must hold.

    @invariant()
    def nothingWentWrong(self) -> None:
        assert self.problems == []
        assert self.failures.all == []

    @invariant()
    def timersAreThoseThatAreNeeded(self) -> None:
        state = self.wrapper.state
        assert (self.wrapper.retryAfter() is not None) == (
            state in (State.RETRYING, State.LOST)
        )
        if state is State.READY:
            now = self.clock.seconds()
            assert all(call.getTime() <= now for call in self.clock.getDelayedCalls())

    @invariant()
    def readyMeansInitialized(self) -> None:
        if self.wrapper.state in (State.DRAINING, State.READY):
            assert self.succeeded

    @invariant()
    def theCountersAgree(self) -> None:
        stats = self.wrapper.stats
        assert stats.submitted == (
            stats.started
            + stats.rejected
            + stats.expired
            + stats.cancelled
            + stats.failed
            + stats.pending
        )
        waiting = [c for c in self.calls if not c.ended and self.isWaiting(c)]
        if self.timeout is not None and self.wrapper.state is not State.CLOSING:
            late = self.clock.seconds() - self.timeout
            # Work in progress may have moved the clock since.
            assert all(call.since > late - 0.1 for call in waiting)
        assert stats.pending == self.wrapper.pending == len(waiting)
        assert stats.submitted == sum(call.queued for call in self.calls)
        assert stats.rejected == sum(call.refused for call in self.calls)
        assert stats.cancelled == self.cancelled
        ends = [c.fired[0].type for c in self.calls if c.ended and c.failed]
        assert stats.expired == ends.count(QueueTimeout)
        refused = ends.count(Closed) + ends.count(InitializationFailed)
        full = ends.count(QueueFull)
        assert stats.failed == refused + full - stats.rejected

    @invariant()
    def theHistoryIsComplete(self) -> None:
        state, history = self.wrapper.state, self.wrapper.history
        attempts, losses = list(history.attempts), list(history.losses)
        assert history.attempts.count == self.begun
        assert history.losses.count == self.losses
        assert len(attempts) == min(self.begun, 25)
        assert len(losses) == min(self.losses, 25)
        open_ = [attempt for attempt in attempts if attempt.ended is None]
        if state is State.INITIALIZING:
            assert open_ == attempts[-1:]
        else:
            assert open_ == []
        assert sum(history.attemptSeconds.counts) == self.begun - len(open_)
        unhealed = [loss for loss in losses if loss.recovered is None]
        assert unhealed in ([], losses[-1:])
        if state in (State.DRAINING, State.READY):
            assert unhealed == []
            assert history.becameReady is not None
        elif state not in (State.CLOSING, State.CLOSED):
            assert unhealed == losses[-1:]
            assert (history.becameReady is not None) == bool(losses)

    @invariant()
    def allThatLeftTheQueueWasObserved(self) -> None:
        stats, histogram = self.wrapper.stats, self.wrapper.history.queueSeconds
        # Who was started, and put back at a loss, has left it twice.
        assert sum(histogram.counts) == self.again + (
            stats.started + stats.expired + stats.cancelled + stats.failed
        )
        assert histogram.total >= 0

    @invariant()
    def theOldestIsTheOneThatWaitsLongest(self) -> None:
        since = [c.since for c in self.calls if not c.ended and self.isWaiting(c)]
        oldest = self.wrapper.oldest
        if not self.wrapper._queue._endings:
            # Nothing that waits is about to be ended.
            assert (oldest is None) == (not since)
        if oldest is not None:
            assert oldest <= self.clock.seconds() - min(since) + 1e-6
            if not self.wrapper._queue._endings:
                assert oldest >= self.clock.seconds() - min(since) - 1e-6

    @invariant()
    def everyChangeOfStateWasTold(self) -> None:
        assert self.told == (self.wrapper.state, self.wrapper.since)

    @invariant()
    def nobodyIsForgottenOrRemembered(self) -> None:
        waiting = [deferred for deferred, fired in self.waiters if not fired]
        assert len(self.wrapper._waiters) == len(waiting)

    @invariant()
    def everyEndHasItsReason(self) -> None:
        for call in self.calls:
            assert len(call.fired) <= 1
            for result in call.fired:
                self.checkReason(call, result)

    def checkReason(self, call: Call, result: object) -> None:
        if not isinstance(result, Failure):
            last = len(call.runs) - 1
            assert result in (
                ("done", call.number, last),
                ("counted", call.number),
            )
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
        elif isinstance(error, OutcomeUnknown):
            assert call.runs
        elif isinstance(error, CancelledError):
            assert call.gaveUp
        else:
            assert isinstance(error, Trouble)
            assert call.runs

    def teardown(self) -> None:
        if not hasattr(self, "clock"):
            return
        try:
            self.plans.clear()
            while self.wrapper.state is State.DRAINING:
                # What is being drained comes to an end by itself.
                before = self.wrapper.pending
                for _ in range(len(self.calls)):
                    self.answerRun(0, None)
                self.clock.advance(0)
                assert self.wrapper.pending < max(before, 1)
            if self.wrapper.state is State.READY:
                # All that is left to do has a turn of its own.
                self.clock.advance(0)
                assert self.clock.getDelayedCalls() == []
            self.shut()
            self.clock.advance(0)
            self.answerLate()
            for attempt in self.attempts:
                if not attempt.called:
                    attempt.callback(None)
            # The module need not answer: its closing has a time limit, and
            # then what it was at work on has no known outcome.
            self.clock.pump([0, 3.0, 0, 0])
            assert self.wrapper.state is State.CLOSED
            for call in self.calls:
                if not call.ended:
                    # The module's own Deferred, that tsrv never had in hand.
                    assert not call.queued
                    assert call.method != "read"
                    (run,) = call.runs
                    run.end(None)
            assert all(call.ended for call in self.calls)
            assert all(fired for _, fired in self.waiters)
            assert all(fired for _, fired in self.closers)
            assert self.clock.getDelayedCalls() == []
            # What was never asked for is not closed.
            assert bool(self.closings) == (self.begun > 0)
            self.theCountersAgree()
            self.theHistoryIsComplete()
            self.allThatLeftTheQueueWasObserved()
            self.everyChangeOfStateWasTold()
            self.everyEndHasItsReason()
            # An error that nobody handled is found when nobody can any more.
            for kept in (self.calls, self.waiters, self.closers, self.attempts):
                kept.clear()
            for each in (self.late, self.watches, self.closings):
                each.clear()
            gc.collect()
            self.nothingWentWrong()
        finally:
            globalLogPublisher.removeObserver(self.failures)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=int(os.environ.get("TSRV_EXAMPLES", "150")),
    stateful_step_count=40,
    deadline=None,
    derandomize="TSRV_EXAMPLES" not in os.environ,
    database=None,
    phases=[Phase.generate] if "TSRV_NOSHRINK" in os.environ else list(Phase),
    suppress_health_check=list(HealthCheck),
)
