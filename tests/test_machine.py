"""
The wrapper under random events, in any order and from any callback.

L{Machine} makes random steps: callers make calls, cancel them and fire them, the module
succeeds, fails, hangs, is lost and misbehaves, the wrapper is paused, reset and
closed. Each step may also be I{planned}, to happen in the next callback that the
wrapper runs, or when it looks up the next attribute. The world notes all that it sees,
and checks after each step that every call ends once, in order, with its result or the
true reason, and that nothing runs after its caller gave up (L{tests.machine.checks}).

The number of random programs is C{TSRV_EXAMPLES}.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.logger import LogEvent

from tsrv import State

from .machine.calls import CAN_FAIL, NOT_READY, READY, Hostile, Options
from .machine.checks import Checks
from .machine.crowd import EVENTS, sufferWithACrowd
from .machine.steps import HOLDERS, METHODS, PLANS
from .support import Refused, Trouble

CANCELLERS = ["silent", "raise", "other", "slow", "result", "discover"]
KINDS = ["steady", "tracked", "losable", "losable", "pinged"]
KINDS += ["interface", "settles", "nested"]

which = st.integers(0, 9)
methods = st.sampled_from(METHODS)
holders = st.sampled_from(HOLDERS)
errors = st.sampled_from([None, None, None, Trouble, Refused, Hostile])

options = st.builds(
    Options,
    kind=st.sampled_from(KINDS),
    replay=st.sampled_from(
        [("read",), ("read",), ("read", "compute", "eventual"), ("read", "count"), ()]
    ),
    alwaysDeferred=st.sampled_from([False, False, True]),
    lazy=st.sampled_from([False, False, False, True, "callable"]),
    whenIdle=st.sampled_from([False, False, True]),
    slots=st.sampled_from([None, None, 1, 2]),
    limit=st.sampled_from([1, 3, 100, 100, 100]),
    timeout=st.sampled_from([None, 1.0, 5.0]),
    concurrency=st.sampled_from([None, None, 1, 2]),
    attemptTimeout=st.sampled_from([None, 2.0]),
    tick=st.sampled_from([0.0, 0.0, 0.0, 0.0005]),
    shared=st.sampled_from(["pending", "succeeded", "failed"]),
)


class Machine(RuleBasedStateMachine):
    """
    One wrapper, with its callers and its module.
    """

    right = True
    crowded = False

    @initialize(options=options)
    def setUp(self, options: Options) -> None:
        self.world = Checks(options)

    def step(self) -> Checks:
        self.world.clock.begin()
        self.world.disturbed = False
        return self.world

    # Preconditions.

    def isReady(self) -> bool:
        return self.world.wrapper.state in READY

    def isNotReady(self) -> bool:
        return self.world.wrapper.state in NOT_READY

    def isOpen(self) -> bool:
        return not self.world.isClosed()

    def hasOpenCalls(self) -> bool:
        return any(not call.ended for call in self.world.calls)

    # Calls.

    @rule(method=methods, kept=st.booleans())
    def makeCall(self, method: str, kept: bool) -> None:
        self.step().submit(method, kept)

    @precondition(isReady)
    @rule(
        method=methods,
        what=st.sampled_from(["lose", "lose", "reset", "submit", "pause", "raise"]),
        which=which,
    )
    def makeCallWithAPlan(self, method: str, what: str, which: int) -> None:
        """
        Make a call, and apply an event while the method runs.
        """
        world = self.step()
        world.plans.clear()
        world.plan(what, "read", which)
        world.submit(method)
        if world.settles:
            world.settleCalls("error")

    @rule(many=st.integers(2, 6), method=methods)
    def makeCalls(self, many: int, method: str) -> None:
        for _ in range(many):
            self.step().submit(method)

    @precondition(hasOpenCalls)
    @rule(which=which, how=st.sampled_from(CANCELLERS))
    def giveUpACall(self, which: int, how: str) -> None:
        self.step().cancelACall(which, how)

    @precondition(hasOpenCalls)
    @rule(which=which, failing=st.booleans())
    def fireACall(self, which: int, failing: bool) -> None:
        self.step().usurp(which, failing)

    @precondition(lambda self: any(call.runs for call in self.world.calls))
    @rule(which=which, error=errors)
    def answerCall(self, which: int, error: type[BaseException] | None) -> None:
        self.step().endRun(which, None if error is None else Trouble("answer"))

    @precondition(lambda self: not self.world.shared.called)
    @rule(failing=st.booleans())
    def answerSharedCalls(self, failing: bool) -> None:
        self.step().fireShared(failing)

    # Attempts.

    @precondition(isNotReady)
    @rule(start=st.booleans())
    def waitForTheModule(self, start: bool) -> None:
        self.step().wait(start)

    @precondition(lambda self: any(not fired for _, fired in self.world.waiters))
    @rule(which=which)
    def fireAWaiter(self, which: int) -> None:
        """
        Fire the Deferred of initialize(), close() or pause() from outside.
        """
        self.step().usurpAWaiter(which)

    @precondition(lambda self: any(not fired for _, fired in self.world.waiters))
    @rule(which=which)
    def stopWaiting(self, which: int) -> None:
        world = self.step()
        open_ = [deferred for deferred, fired in world.waiters if not fired]
        cancelled = [attempt.cancelled for attempt in world.attempts]
        planned = bool(world.plans)
        open_[which % len(open_)].cancel()
        now = [attempt.cancelled for attempt in world.attempts]
        assert planned or now == cancelled

    @precondition(isOpen)
    @rule(methods=st.lists(methods, max_size=3))
    def becomeReady(self, methods: list[str]) -> None:
        world = self.step()
        world.beginAttempt()
        world.answerAttempt(None)
        for method in methods:
            self.step().submit(method)

    @rule(
        attempt=st.sampled_from(
            ["later", "succeed", "raise", "hostile", "refuse", "eventual", "coroutine"]
        ),
        watch=st.sampled_from(
            ["later", "later", "raise", "plain", "same", "lost", "eventual"]
        ),
        task=st.sampled_from(
            ["later", "raise", "plain", "fail", "succeed", "eventual"]
        ),
        extra=st.booleans(),
    )
    def chooseWhatTheModuleDoesNext(
        self, attempt: str, watch: str, task: str, extra: bool
    ) -> None:
        world = self.step()
        if world.module.hasExtra() is not extra:
            world.toggleExtra()
        world.nextAttempt, world.nextWatch = attempt, watch
        world.nextClosing = world.nextPing = world.nextIdle = task

    @precondition(lambda self: any(attempt.open for attempt in self.world.attempts))
    @rule(error=errors)
    def answerAttempt(self, error: type[BaseException] | None) -> None:
        self.step().answerAttempt(None if error is None else error("later"))

    @precondition(isOpen)
    @rule(
        how=st.sampled_from(["raise", "other", "succeed", "slow", "discover"]),
        what=st.sampled_from(["fail", "time", "reset", "close"]),
    )
    def giveUpAnAttempt(self, how: str, what: str) -> None:
        world = self.step()
        world.beginAttempt()
        world.attemptCanceller = how
        if what == "time":
            world.clock.advance(2.0)
        elif what == "reset":
            world.reset()
        elif what == "close" and len(world.calls) > 25:
            world.closeWrapper()
        elif world.wrapper.state in CAN_FAIL:
            world.failWrapper()

    # Losses.

    @precondition(isReady)
    @rule(
        error=st.sampled_from([None, Trouble]),
        calls=st.sampled_from(["none", "error", "cancel", "cancel", "result"]),
        first=st.booleans(),
        read=st.booleans(),
    )
    def lose(
        self, error: type[Exception] | None, calls: str, first: bool, read: bool
    ) -> None:
        """
        Lose the module. Many clients end all calls in progress first, or afterwards.
        """
        world = self.step()
        if calls == "none" and world.settles:
            calls = "error"
        if read:
            world.submit("read")
        repeated = [call for call in world.inProgress() if world.replays(call)]
        repeated = [call for call in repeated if not (call.gaveUp or call.ended)]
        lost, planned = world.canBeLost(), bool(world.plans)
        if first and calls != "none":
            world.settleCalls(calls)
        world.loseModule(None if error is None else error("loss"))
        if first and lost and not planned and calls != "result":
            # The loss explains their failures.
            assert not any(call.ended for call in repeated)
        if not first and calls != "none":
            world.settleCalls(calls)

    @precondition(isReady)
    @rule(
        watch=st.sampled_from(
            ["same", "same", "lost", "raise", "plain", "eventual", "later"]
        ),
        methods=st.lists(methods, max_size=2),
    )
    def recover(self, watch: str, methods: list[str]) -> None:
        """
        Lose the module, and let it become ready again.
        """
        world = self.step()
        world.loseModule(None)
        if world.settles:
            world.settleCalls("error")
        world.beginAttempt()
        world.nextWatch = watch
        world.answerAttempt(None)
        for method in methods:
            world.submit(method)

    @precondition(isOpen)
    @rule(
        method=st.sampled_from(["read", "read", "compute", "write"]),
        how=st.sampled_from(CANCELLERS),
        late=st.booleans(),
        result=st.sampled_from(["none", "error", "cancel", "result"]),
    )
    def loseWhileACallIsGivenUp(
        self, method: str, how: str, late: bool, result: str
    ) -> None:
        world = self.step()
        if not self.isReady() or world.holds:
            world.beginAttempt()
            world.answerAttempt(None)
        before = len(world.calls)
        world.submit(method)
        world.submit("read")
        self.step()
        if late:
            world.loseModule(None)
        if before < len(world.calls) and not world.calls[before].ended:
            world.cancelTheCall(world.calls[before], how)
        if not late:
            world.loseModule(None)
        if result != "none" or world.settles:
            world.settleCalls("error" if result == "none" else result)

    @precondition(isOpen)
    @rule(seconds=st.sampled_from([0.3, 0.6, 0.9]))
    def loseWhileOthersWait(self, seconds: float) -> None:
        """
        Lose the module while calls are queued: a call that is queued again expires
        later than calls that were queued before.
        """
        world = self.step()
        timeout = world.options.timeout or 1.0
        world.plans.clear()
        world.beginAttempt()
        for method in ["read", "read", "write", "read"]:
            world.submit(method)
        world.answerAttempt(None)
        world.clock.advance(timeout * seconds)
        self.step()
        world.loseModule(None)
        if world.settles:
            world.settleCalls("error")
        world.clock.advance(timeout * (1 - seconds) + 0.01)

    @precondition(isOpen)
    @rule(
        then=st.sampled_from(["give up", "give up", "lose", "close", "fire", "nothing"])
    )
    def drainSlowly(self, then: str) -> None:
        """
        Drain while calls are in progress.
        """
        world = self.step()
        world.beginAttempt()
        for method in ["write", "read", "write", "compute"]:
            world.submit(method)
        world.answerAttempt(None)
        self.step()
        waiting = [each for each in world.waiting() if each.deferred is not None]
        if then == "lose":
            world.loseModule(None)
        elif then == "close" and len(world.calls) > 25:
            world.closeWrapper()
        for call in waiting:
            if then == "give up" and world.isWaiting(call):
                self.step().cancelTheCall(call, "silent")
            elif then == "fire":
                self.step().usurpTheCall(call, False)

    @precondition(lambda self: self.world.wrapper.state is State.NEW)
    @rule(method=methods)
    def waitInVain(self, method: str) -> None:
        """
        Let calls wait for a module that nobody initialises.
        """
        self.step().submit(method)
        self.step().clock.advance((self.world.options.timeout or 0) + 0.1)

    @precondition(isOpen)
    @rule(method=methods)
    def removeAMethodWhileACallWaits(self, method: str) -> None:
        world = self.step()
        world.beginAttempt()
        if not world.module.hasExtra():
            world.toggleExtra()
        world.submit(method)
        world.submit("extra")
        world.toggleExtra()
        world.answerAttempt(None)

    @precondition(lambda self: self.isNotReady() and len(self.world.calls) < 4)
    @rule(
        many=st.sampled_from([20, 60, 100]),
        method=st.sampled_from(["read", "write"]),
        what=st.sampled_from(["lose", "reset", "close"]),
    )
    def loseManyCalls(self, many: int, method: str, what: str) -> None:
        world = self.step()
        world.beginAttempt()
        world.answerAttempt(None)
        for _ in range(many):
            self.step().submit(method)
        world = self.step()
        if what == "lose":
            world.loseModule(None)
        elif what == "reset" and self.isReady():
            world.reset()
        elif what == "close":
            world.closeWrapper()

    @precondition(lambda self: self.world.options.tick and not self.crowded)
    @rule(
        method=st.sampled_from(["read", "read", "write"]), event=st.sampled_from(EVENTS)
    )
    def sufferWithACrowd(self, method: str, event: str) -> None:
        # Once is enough, since this step takes long.
        self.crowded = True
        sufferWithACrowd(method, event)

    # Pauses, resets, pings.

    @precondition(lambda self: len(self.world.holds) < 2)
    @rule(
        by=st.sampled_from([*HOLDERS, "context"]), methods=st.lists(methods, max_size=3)
    )
    def pause(self, by: object, methods: list[str]) -> None:
        if by == "context":
            self.step().enterPause()
        else:
            self.step().pause(by)
        for method in methods:
            self.step().submit(method)

    @precondition(lambda self: bool(self.world.holds))
    @rule(which=which, all=st.booleans())
    def resume(self, which: int, all: bool) -> None:  # noqa: A002
        world = self.step()
        if all:
            world.endPauses()
        elif which % 2:
            world.leavePause(which)
        else:
            world.resume(HOLDERS[which % 3])

    @precondition(lambda self: bool(self.world.pausers))
    @rule(which=which)
    def stopWaitingForAPause(self, which: int) -> None:
        pausers = self.step().pausers
        pausers[which % len(pausers)][0].cancel()

    @precondition(lambda self: bool(self.world.idles))
    @rule(error=errors)
    def answerWhenIdle(self, error: type[BaseException] | None) -> None:
        self.step().answerTasks(self.world.idles, error)

    @rule(methods=st.lists(methods, max_size=3))
    def reset(self, methods: list[str]) -> None:
        for method in methods:
            self.step().submit(method)
        self.step().reset()

    @precondition(lambda self: bool(self.world.pings))
    @rule(error=errors)
    def answerPing(self, error: type[BaseException] | None) -> None:
        self.step().answerTasks(self.world.pings, error)

    @precondition(lambda self: self.world.slots and not self.world.slotsTaken)
    @rule()
    def takeASlot(self) -> None:
        if self.world.slots is not None and self.world.slots.tokens:
            self.step().takeSlot()

    @precondition(lambda self: self.world.slotsTaken)
    @rule()
    def giveASlotBack(self) -> None:
        self.step().releaseSlot()

    # The end of the module, and time.

    @precondition(lambda self: self.world.wrapper.state in CAN_FAIL)
    @rule(twice=st.booleans())
    def giveUpTheModule(self, twice: bool) -> None:
        for _ in range(1 + twice):
            self.step().failWrapper()

    @rule(seconds=st.sampled_from([0, 0, 0.5, 1, 2, 7]))
    def passTime(self, seconds: float) -> None:
        self.step().clock.advance(seconds)

    @precondition(lambda self: len(self.world.calls) > 25)
    @rule(methods=st.lists(methods, min_size=1, max_size=3))
    def close(self, methods: list[str]) -> None:
        # Not too early, since little happens afterwards.
        self.step().closeWrapper()
        for method in methods:
            self.step().submit(method)

    @precondition(lambda self: any(each.open for each in self.world.closings))
    @rule(error=errors)
    def answerClosing(self, error: type[BaseException] | None) -> None:
        self.step().answerTasks(self.world.closings, error)

    @precondition(lambda self: len(self.world.calls) % 4 == 3)
    @rule(method=methods)
    def callFromAnotherThread(self, method: str) -> None:
        self.step().callFromThread(method)

    # Plans.

    @precondition(lambda self: len(self.world.plans) < 3)
    @rule(what=st.sampled_from(PLANS), method=methods, which=which)
    def planForTheNextCallback(self, what: str, method: str, which: int) -> None:
        self.step().plan(what, method, which)

    @precondition(isOpen)
    @rule(
        what=st.sampled_from(
            ["lose", "lose", "close", "reset", "raise", "pause", "submit", "cancel"]
        ),
        before=st.integers(0, 3),
        methods=st.lists(methods, max_size=2),
        late=st.lists(methods, max_size=3),
    )
    def lookUpWithPlans(
        self, what: str, before: int, methods: list[str], late: list[str]
    ) -> None:
        """
        Apply any event while the wrapper looks up the module's attributes.
        """
        world = self.step()
        if what == "raise" and (
            world.tracked or world.options.replay or world.options.alwaysDeferred
        ):
            # Until the next loss, the proxy has the module's own method.
            what = "lose"
        world.lookRaised = world.lookRaised or what == "raise"
        world.beginAttempt()
        for method in methods:
            world.submit(method)
        for _ in range(before):
            world.lookPlans.append(lambda: None)
        world.plan(what, "read", before, look=True)
        world.answerAttempt(None)
        world.lookPlans.clear()
        for method in late:
            world.submit(method)

    @precondition(isOpen)
    @rule(
        overdue=st.booleans(),
        whats=st.lists(st.sampled_from(["fail", "initialize", "submit"]), max_size=2),
    )
    def beginAgainWhileAnAttemptEnds(self, overdue: bool, whats: list[str]) -> None:
        """
        Fail and initialise the wrapper again from the canceller, the policy, and
        callbacks of a failure.
        """
        world = self.step()
        world.plans.clear()
        world.beginAttempt()
        for what in ["fail", "initialize", *whats]:
            world.plan(what, "read", 0)
        if overdue:
            world.clock.advance(2.0)
        else:
            world.answerAttempt(Trouble("attempt"))

    @precondition(isOpen)
    @rule(
        methods=st.lists(methods, min_size=1, max_size=4),
        whats=st.lists(st.sampled_from([*PLANS, "close"]), min_size=1, max_size=3),
        which=which,
        error=st.sampled_from([None, None, None, Refused]),
        watch=st.sampled_from(["later", "later", "lost", "eventual", "same"]),
    )
    def answerAttemptWithPlans(
        self,
        methods: list[str],
        whats: list[str],
        which: int,
        error: type[Exception] | None,
        watch: str,
    ) -> None:
        """
        Apply any event in the callbacks of a drain, or of a fatal failure.
        """
        world = self.step()
        world.plans.clear()
        world.beginAttempt()
        for method in methods:
            world.submit(method)
        for what in whats:
            world.plan(what, methods[0], which)
        world.nextWatch = watch
        world.answerAttempt(None if error is None else error("attempt"))

    @invariant()
    def everythingIsRight(self) -> None:
        self.right = False
        self.world.checkAll()
        self.right = True

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if self.right:
                self.world.finish()
        finally:
            self.world.forget()
        assert not self.world.unhandled, self.world.unhandled


def test_the_promise_is_kept(loggedFailures: list[LogEvent]) -> None:
    """
    Every call ends exactly once, in order, with its result or the true reason.
    """
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(os.environ.get("TSRV_EXAMPLES", "200")),
            stateful_step_count=40,
            deadline=None,
            derandomize="TSRV_EXAMPLES" not in os.environ,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    # The world has checked each of them.
    loggedFailures.clear()
