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

from .support import Failures, Refused, Trouble

caller: ContextVar[int | None] = ContextVar("caller", default=None)

METHODS = ["read", "write", "compute", "count", "fail"]

LATER = ["read", "write", "compute"]


@dataclass(eq=False)
class Call:
    """
    One call, and all that was seen of it.
    """

    number: int
    method: str
    queued: bool
    since: float
    losses: int
    deferred: Deferred[Any]
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
        limit=st.sampled_from([0, 1, 3, 100]),
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
            retryPolicy=lambda attempts: float(attempts),
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
        self.lastStarted: dict[int, int] = {}
        self.failures = Failures()
        self.problems: list[str] = []
        self.cancelled = 0
        globalLogPublisher.addObserver(self.failures)

    def check(self, holds: bool, what: str) -> None:
        """
        Note what does not hold: an exception here might be caught by what is
        being tested.
        """
        if not holds:
            self.problems.append(what)

    # The module's side.

    def initializing(self) -> Deferred[None]:
        self.reenter()
        how, self.next = self.next, "later"
        if how == "raise":
            raise Trouble("at once")
        if how == "refuse":
            return fail(Refused("at once"))
        if how == "succeed":
            return succeed(None)
        attempt: Deferred[None] = Deferred()
        answer = attempt
        if how == "stubborn":
            # When it is cancelled it takes its time, and then succeeds.
            late: Deferred[None] = Deferred()
            self.late.append(late)
            answer = Deferred()
            answer.callback(None)
            answer.addCallback(lambda _: attempt)
            attempt.addErrback(lambda _: late)
        self.attempts.append(attempt)
        return answer

    def watching(self) -> Deferred[None]:
        watch: Deferred[None] = Deferred()
        self.watches.append(watch)
        return watch

    def closing(self) -> Deferred[None]:
        self.reenter()
        closing: Deferred[None] = Deferred()
        self.closings.append(closing)
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
        if self.concurrency is not None and self.wrapper.state is State.DRAINING:
            self.check(
                self.inProgress() <= self.concurrency,
                f"call {number} is one too many in progress",
            )
        self.reenter()
        return run

    def runLater(self, number: int) -> Deferred[Any]:
        run = self.run(number)
        run.answer = Deferred()
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
            self.plans.popleft()()

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
            losses=self.losses,
            deferred=Deferred(),
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
            self.check(
                answer.called == (refused or full),
                f"call {number} in state {state} with {pending} pending",
            )
            call.refused = refused or full
        answer.addBoth(self.ended, call)

    def ended(self, result: object, call: Call) -> None:
        call.fired.append(result)
        self.reenter()

    def cancelCall(self, which: int) -> None:
        """
        Give up one of the calls that have not ended.
        """
        open_ = [call for call in self.calls if not call.ended]
        if open_:
            call = open_[which % len(open_)]
            if self.isWaiting(call):
                self.cancelled += 1
            call.gaveUp = True
            call.deferred.cancel()

    def wait(self, start: bool) -> None:
        fired: list[Any] = []
        wrapper = self.wrapper
        deferred = wrapper.initialize() if start else wrapper.whenInitialized()
        self.waiters.append((deferred, fired))

        def initialized(result: object) -> None:
            fired.append(result)
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

    def loseModule(self, error: Exception | None) -> None:
        """
        The module is lost, if it is ready.
        """
        ready = self.wrapper.state in (State.DRAINING, State.READY)
        if self.watches and not self.watches[-1].called:
            if ready:
                for call in self.calls:
                    if call.method == "read" and self.isInProgress(call):
                        # It is put back.
                        call.queued = True
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
        runs = [
            run
            for call in self.calls
            for run in call.runs
            if run.answer is not None and not run.answer.called
        ]
        if runs:
            run = runs[which % len(runs)]
            assert run.answer is not None
            if error is None:
                run.answer.callback(("done", run.call.number))
            else:
                run.answer.errback(error)

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

    @rule(which=st.integers(0, 9))
    def giveUp(self, which: int) -> None:
        self.cancelCall(which)

    @rule()
    def initializeIt(self) -> None:
        self.wait(start=True)

    @rule()
    def waitForIt(self) -> None:
        self.wait(start=False)

    @rule(which=st.integers(0, 9))
    def stopWaiting(self, which: int) -> None:
        open_ = [deferred for deferred, fired in self.waiters if not fired]
        if open_:
            open_[which % len(open_)].cancel()

    @rule(how=st.sampled_from(["later", "succeed", "raise", "refuse", "stubborn"]))
    def nextAttempt(self, how: str) -> None:
        self.next = how

    @rule(error=st.sampled_from([None, None, None, Trouble, Refused]))
    def answerAttempt(self, error: type[Exception] | None) -> None:
        open_ = [attempt for attempt in self.attempts if not attempt.called]
        if open_:
            if error is None:
                open_[-1].callback(None)
            else:
                open_[-1].errback(error("later"))

    @rule()
    def answerLate(self) -> None:
        for late in self.late:
            if not late.called:
                late.callback(None)

    @rule(which=st.integers(0, 9), error=st.sampled_from([None, None, Trouble]))
    def answerCall(self, which: int, error: type[Exception] | None) -> None:
        self.answerRun(which, None if error is None else error("answer"))

    @rule(error=st.sampled_from([None, Trouble]))
    def lose(self, error: type[Exception] | None) -> None:
        self.loseModule(None if error is None else error("loss"))

    @rule(error=st.sampled_from([None, Trouble]))
    def loseAfterFailures(self, error: type[Exception] | None) -> None:
        """
        As many clients do: first all that is in progress fails, and then the
        loss is reported.
        """
        for _ in range(len(self.calls)):
            self.answerRun(0, Trouble("connection lost"))
        self.loseModule(None if error is None else error("loss"))

    @rule(seconds=st.sampled_from([0, 0, 0.5, 1, 2, 7]))
    def passTime(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.calls)
    @rule(delay=st.integers(0, 8))
    def closeIt(self, delay: int) -> None:
        # Not too often: not much happens after it.
        if delay == 0:
            self.shut()

    @rule(error=st.sampled_from([None, Trouble]))
    def answerClosing(self, error: type[Exception] | None) -> None:
        for closing in self.closings:
            if not closing.called:
                if error is None:
                    closing.callback(None)
                else:
                    closing.errback(error("closing"))

    @rule(
        what=st.sampled_from(
            ["submit", "submit", "cancel", "lose", "initialize", "wait", "close"]
        ),
        method=st.sampled_from(METHODS),
        which=st.integers(0, 9),
    )
    def planForTheNextCallback(self, what: str, method: str, which: int) -> None:
        self.plans.append(
            {
                "submit": lambda: self.submit(method),
                "cancel": lambda: self.cancelCall(which),
                "lose": lambda: self.loseModule(None),
                "initialize": lambda: self.wait(start=True),
                "wait": lambda: self.wait(start=False),
                "close": self.shut,
            }[what]
        )

    # What must hold.

    @invariant()
    def nothingWentWrong(self) -> None:
        assert self.problems == []
        assert self.failures.all == []

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
    def everyEndHasItsReason(self) -> None:
        for call in self.calls:
            assert len(call.fired) <= 1
            for result in call.fired:
                self.checkReason(call, result)

    def checkReason(self, call: Call, result: object) -> None:
        if not isinstance(result, Failure):
            assert result in (("done", call.number), ("counted", call.number))
            assert call.runs
            return
        error = result.value
        if isinstance(error, QueueFull):
            assert not call.runs
        elif isinstance(error, QueueTimeout):
            assert self.timeout is not None
            assert error.waited >= self.timeout
        elif isinstance(error, Closed):
            assert self.wrapper.state in (State.CLOSING, State.CLOSED)
        elif isinstance(error, InitializationFailed):
            assert isinstance(error.__cause__, Refused)
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
                    assert run.answer is not None
                    run.answer.callback(("done", call.number))
            assert all(call.ended for call in self.calls)
            assert all(fired for _, fired in self.waiters)
            assert all(fired for _, fired in self.closers)
            assert self.clock.getDelayedCalls() == []
            self.theCountersAgree()
            self.everyEndHasItsReason()
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
