"""
The conditions that must hold after each step, and at the end.
"""

from __future__ import annotations

import gc
from typing import cast

from twisted.internet.defer import CancelledError
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from tests.support import Trouble
from tsrv import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    State,
)

from .calls import READY, RUNS, Call, Hostile, Options
from .steps import Steps
from .world import PING_INTERVAL

__all__ = ["Checks"]


class Checks(Steps):
    """
    A world that is checked.
    """

    def __init__(self, options: Options) -> None:
        # Thus all objects of an example are young, and collecting them is fast.
        gc.disable()
        self.unhandled: list[str] = []
        self.observeLog: ILogObserver = cast(ILogObserver, self.logged)
        globalLogPublisher.addObserver(self.observeLog)
        super().__init__(options)

    def logged(self, event: LogEvent) -> None:
        """
        Check that only planned failures are logged.
        """
        failure = event.get("log_failure")
        if failure is None:
            return
        expected = failure.check(Hostile) or "whenLost" in str(failure.value)
        if "twisted" in event.get("log_namespace", ""):
            # Nobody has handled the error. Python notices that when it collects the
            # garbage.
            self.unhandled.append(f"unhandled: {failure.value!r}")
        else:
            self.check(expected, f"logged {failure.value!r}")

    def checkAll(self) -> None:
        self.clock.endTurn()
        assert not self.problems, self.problems
        assert self.losses >= self.expectedLosses
        if self.options.kind != "pinged":
            assert self.losses == self.expectedLosses
        for each in (
            self.everyChangeOfStateWasNotified,
            self.readyMeansInitialized,
            self.pausedMeansHeld,
            self.onlyNecessaryTimersExist,
            self.nothingIsStuck,
            self.everyAttemptGivenUpWasCancelled,
            self.theCountersAgree,
            self.noCallWaitsTooLong,
            self.theOldestCallIsTheOneThatWaitsLongest,
            self.theHistoryIsComplete,
            self.everyWaitWasObserved,
            self.everyCallEndsOnceWithTheTrueReason,
            self.theModulesOwnDeferredKeepsItsResult,
            self.slotsAreTakenByAttempts,
            self.pingsAreSent,
        ):
            each()

    def everyChangeOfStateWasNotified(self) -> None:
        if not self.isWaitingForItsTurn():
            assert self.notified == (self.wrapper.state, self.wrapper.since)

    def readyMeansInitialized(self) -> None:
        if self.wrapper.state in READY:
            assert self.succeeded
            assert not self.stale, "no watch for a loss is pending"

    def pausedMeansHeld(self) -> None:
        state, held = self.wrapper.state, bool(self.holds)
        assert held or state is not State.PAUSED
        assert not held or state not in RUNS
        if state not in (State.CLOSING, State.CLOSED):
            assert self.wrapper.paused == held

    def onlyNecessaryTimersExist(self) -> None:
        state, clock = self.wrapper.state, self.clock
        retrying = state in (State.RETRYING, State.LOST)
        scheduled = self.wrapper.retryAfter() is not None
        assert scheduled == retrying or (retrying and self.isClosing())
        if state is State.READY:
            later = [call for call in clock.calls if call.getTime() > clock.rightNow]
            assert len(later) <= (self.options.kind == "pinged")

    def nothingIsStuck(self) -> None:
        """
        Check that work that must continue has a timer, or waits for somebody.
        """
        wrapper = self.wrapper
        if not self.clock.isIdle:
            return
        running = self.inProgress()
        if wrapper.state in READY:
            assert all(fired for _, fired in self.waiters), "a waiter is not notified"
        if wrapper.state is State.DRAINING:
            limit = self.options.concurrency
            assert wrapper.pending
            assert limit is not None
            assert len(running) + self.ambiguous() >= limit
        for call in running:
            if call.tracked:
                assert call.runs[-1].losses == self.losses, "a lost call never ends"
        if wrapper.state is State.PAUSED and not running and not self.ambiguous():
            idle = not any(idle.open for idle in self.idles)
            for _, fired, by in self.pausers:
                assert fired or by not in self.holds or not idle

    def everyAttemptGivenUpWasCancelled(self) -> None:
        for attempt in self.attempts:
            if attempt.open and not attempt.cancelled:
                assert self.wrapper.state is State.INITIALIZING
                assert attempt.number == self.begun

    def theCountersAgree(self) -> None:
        wrapper, waiting, unclear = self.wrapper, self.waiting(), self.ambiguous()
        stats = wrapper.stats
        assert stats.submitted == (
            stats.started
            + stats.rejected
            + stats.expired
            + stats.cancelled
            + stats.failed
            + stats.pending
        )
        assert len(waiting) <= stats.pending <= len(waiting) + unclear
        assert stats.pending == wrapper.pending
        assert stats.submitted == sum(call.queued for call in self.calls)
        assert stats.rejected == sum(call.rejected for call in self.calls)
        assert self.cancelled <= stats.cancelled <= self.cancelled + unclear
        ends = [call.fired[0] for call in self.calls if call.ended]
        types = [end.type for end in ends if isinstance(end, Failure)]
        expired, failed = types.count(QueueTimeout), 0
        failed = sum(map(types.count, (Closed, InitializationFailed, QueueFull)))
        failed -= stats.rejected
        assert expired <= stats.expired <= expired + unclear
        assert failed <= stats.failed <= failed + unclear
        unknown = types.count(OutcomeUnknown)
        assert unknown <= stats.unknown <= unknown + unclear
        running = len(self.inProgress())
        assert running <= wrapper.inProgress <= running + unclear

    def noCallWaitsTooLong(self) -> None:
        timeout, clock = self.options.timeout, self.clock
        if timeout is not None and self.wrapper.state is not State.CLOSING:
            late = clock.rightNow - timeout
            if clock.isIdle:
                assert all(call.since > late - 0.1 for call in self.waiting())

    def theOldestCallIsTheOneThatWaitsLongest(self) -> None:
        since = [call.since for call in self.waiting()]
        if self.ambiguous():
            return
        margin = 1.0 if self.options.tick else 1e-6
        oldest, now = self.wrapper.oldest, self.clock.rightNow
        if oldest is not None:
            assert oldest <= now - min(since) + margin
        if self.clock.isIdle:
            # No slice of work is pending that will end some of them.
            assert (oldest is None) == (not since)
            assert oldest is None or oldest >= now - min(since) - margin

    def theHistoryIsComplete(self) -> None:
        state, history = self.wrapper.state, self.wrapper.history
        attempts, losses = list(history.attempts), list(history.losses)
        assert history.attempts.count == self.begun
        assert len(attempts) == min(self.begun, 25)
        assert len(losses) == min(self.losses, 25)
        open_ = [attempt for attempt in attempts if attempt.ended is None]
        if self.isWaitingForItsTurn():
            assert open_ == []
        else:
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
        pauses = list(history.pauses)
        assert history.pauses.count == self.pauses
        assert all(pause.ended is not None for pause in pauses[:-1])
        assert any(pause.ended is None for pause in pauses) == self.wrapper.paused

    def everyWaitWasObserved(self) -> None:
        stats, histogram = self.wrapper.stats, self.wrapper.history.queueSeconds
        # A call that was started, and queued again at a loss, was queued twice.
        count = self.queuedTwice + (
            stats.started + stats.expired + stats.cancelled + stats.failed
        )
        assert abs(sum(histogram.counts) - count) <= self.ambiguous()
        assert histogram.total >= 0

    def everyCallEndsOnceWithTheTrueReason(self) -> None:
        for call in self.calls:
            assert len(call.fired) <= 1
            for result in call.fired:
                self.checkResult(call, result)

    def checkResult(self, call: Call, result: object) -> None:
        if call.usurped:
            return
        if not isinstance(result, Failure):
            if call.method == "shared" and result is None:
                assert not call.tracked
                assert self.sharedFailsLate()
                return
            assert result in (call.runs[-1].done, ("shared",))
            assert (call.method == "shared") == (result == ("shared",))
            return
        error, last = result.value, call.runs[-1] if call.runs else None
        if isinstance(error, (Trouble, Hostile, CancelledError)) and last is not None:
            # A loss explains the failure of a call that is safe to run twice.
            explained = self.replays(call) and last.losses < call.endLosses
            assert call.gaveUp or not explained
        if isinstance(error, QueueFull):
            assert last is None
        elif isinstance(error, QueueTimeout):
            assert self.options.timeout is not None
            assert error.waited >= self.options.timeout - 1e-6
            if error.state is State.NEW:
                assert "initialize()" in str(error)
                assert "0 attempts" not in str(error)
        elif isinstance(error, Closed):
            assert self.wrapper.state in (State.CLOSING, State.CLOSED)
        elif isinstance(error, InitializationFailed):
            assert self.isForGood(error.__cause__)
        elif isinstance(error, AttributeError):
            assert call.method == "extra"
            assert self.vanished
            assert "'extra'" in str(error)
        elif isinstance(error, CancelledError):
            dropped = last is not None and last.dropped
            assert call.gaveUp or call.method == "shared" or dropped
        elif isinstance(error, OutcomeUnknown):
            assert last is not None
            assert call.tracked
            lost = last.losses < self.losses
            assert lost or self.wrapper.state in (State.CLOSING, State.CLOSED)
            assert call.method not in ("count", "fail")
        else:
            assert isinstance(error, (Hostile, Trouble))
            if last is None:
                # Looking up the method has failed.
                assert isinstance(error, Hostile)
                assert self.lookRaised
            else:
                raised = error is last.raised or call.gaveUp
                assert isinstance(error, Trouble) or raised

    def theModulesOwnDeferredKeepsItsResult(self) -> None:
        if not self.shared.called:
            return
        result: object = self.shared.result
        if isinstance(result, Failure):
            result = result.value
        # A failure that somebody waited for is handled.
        failed = isinstance(result, CancelledError) or self.sharedFailsLate()
        assert result is self.sharedResult or failed

    def sharedFailsLate(self) -> bool:
        """
        @return: Whether the module's own Deferred has failed late.
        """
        isLate = self.options.shared == "pending"
        return isLate and self.shared.result is None

    def slotsAreTakenByAttempts(self) -> None:
        slots = self.slots
        if slots is None or not self.clock.isIdle:
            # A slot is given back in the next turn.
            return
        waiting = self.isWaitingForItsTurn()
        taken = self.wrapper.state is State.INITIALIZING and not waiting
        assert slots.limit - slots.tokens == self.slotsTaken + taken
        assert len(slots.waiting) == (waiting and not self.isClosing())

    def pingsAreSent(self) -> None:
        if self.options.kind != "pinged" or self.wrapper.state is not State.READY:
            return
        now, last = self.clock.rightNow, self.wrapper.since
        pings = [ping for ping in self.pings if ping.since > last]
        if pings:
            assert not pings[-1].failed, "a failed ping is not a loss"
            last = pings[-1].since
        assert now - last <= 2 * PING_INTERVAL + 0.1 or not self.clock.isIdle

    # The end.

    def finish(self) -> None:
        """
        Close the wrapper: everything must end.
        """
        self.plans.clear()
        self.lookPlans.clear()
        self.fireShared(False)
        self.finishTheDrain()
        self.closeEverything()
        self.checkAll()

    def forget(self) -> None:
        """
        Drop references. An unhandled error is reported when nothing refers to its
        Deferred.
        """
        self.plans.clear()
        self.shared.addErrback(lambda _: None)
        for kept in (self.calls, self.waiters, self.closers, self.pausers):
            kept.clear()
        for more in (self.attempts, self.closings, self.pings, self.idles):
            more.clear()
        self.contexts.clear()
        self.watch = self.watchAnswer = None
        gc.collect(0)
        gc.enable()
        globalLogPublisher.removeObserver(self.observeLog)

    def finishTheDrain(self) -> None:
        self.endPauses()
        # End everything that a pause waits for.
        while self.wrapper.state is State.PAUSED and self.holds:
            self.endRuns()
            self.answerTasks(self.idles, None)
            self.clock.advance(0)
        turns = 0
        while self.wrapper.state is State.DRAINING:
            before = self.wrapper.pending
            self.endRuns()
            self.clock.advance(0)
            # The failure of a call may wait for the second of two pings.
            turns = turns + 1 if self.wrapper.pending == before else 0
            assert turns < 5, "the drain does not move"
        if self.wrapper.state is State.READY:
            self.clock.advance(0)
            assert len(self.clock.calls) == (self.options.kind == "pinged")

    def endRuns(self) -> None:
        for _ in self.openRuns():
            self.endRun(0, None)
        # They may have failed, which is explained by the end of a ping.
        self.answerTasks(self.pings, None)

    def closeEverything(self) -> None:
        self.closeWrapper()
        self.clock.advance(0)
        for attempt in self.attempts:
            if attempt.cleaning and not attempt.late.called:
                attempt.late.callback(None)
            elif attempt.open:
                attempt.deferred.callback(None)
        # The module need not respond: closing has a time limit, after which the outcome
        # of calls in progress is unknown.
        self.clock.pump([0, 3.1, 0, 0])
        assert self.wrapper.state is State.CLOSED
        assert self.wrapper.pending == 0
        for call in self.calls:
            if not call.ended:
                # This is the module's own Deferred, which the wrapper never knew.
                assert not call.tracked
                call.runs[-1].end(None)
        for idle in self.idles:
            if idle.open:
                idle.deferred.callback(None)
        assert all(call.ended for call in self.calls)
        pausers = [(deferred, fired) for deferred, fired, _ in self.pausers]
        for _, fired in [*self.waiters, *self.closers, *pausers]:
            assert len(fired) == 1
        assert all(done.called for done, _ in self.contexts)
        assert self.clock.calls == []
        # A module that was never initialised is not closed.
        assert bool(self.closings) == (self.begun > 0)
        assert self.slots is None or not self.slots.waiting
