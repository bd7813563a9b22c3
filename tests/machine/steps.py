"""
The steps of callers and operators: everything that may be done to a wrapper from
outside.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import isawaitable
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python import threadable
from twisted.python.failure import Failure

from tests.support import Trouble
from tsrv import (
    Closed,
    IllegalTransition,
    InitializationFailed,
    QueueTimeout,
    State,
)

from .calls import (
    CAN_FAIL,
    READY,
    REFUSING,
    RUNS,
    Abandoned,
    Call,
    Hostile,
    Options,
    Task,
    waitFor,
)
from .world import World, caller

__all__ = ["HOLDERS", "METHODS", "PLANS", "Steps"]

METHODS = ["read", "write", "compute", "plain", "eventual", "shared", "count", "fail"]
METHODS += ["extra", "read", "write"]

HOLDERS = [None, 0, 1]

PLANS = ["submit", "cancel", "lose", "initialize", "wait", "close", "fail"]
PLANS += ["submit", "lose", "initialize", "raise", "raise", "look", "usurp"]
PLANS += ["pause", "resume", "reset", "pausing"]


def ignoreHostile(failure: Failure) -> None:
    """
    Ignore an error that a callback raised as planned.
    """
    failure.trap(Hostile)


class Steps(World):
    """
    The callers' side of the world.
    """

    def __init__(self, options: Options) -> None:
        self.kept: dict[str, Callable[[int], Any]] = {}
        self.waiters: list[tuple[Deferred[None], list[Any]]] = []
        self.closers: list[tuple[Deferred[None], list[Any]]] = []
        self.pausers: list[tuple[Deferred[None], list[Any], object]] = []
        self.contexts: list[tuple[Deferred[None], Deferred[None]]] = []
        self.cancelled = 0
        self.disturbed = self.lookRaised = False
        super().__init__(options)

    # Calls.

    def submit(self, method: str, kept: bool = False) -> None:
        wrapper = self.wrapper
        function = self.kept.get(method) if kept else None
        if function is None:
            function = self.lookUp(method)
            if function is None:
                return
        state, pending, losses = wrapper.state, wrapper.pending, self.losses
        number = len(self.calls)
        queued = state is not State.READY
        tracked = queued or self.tracked or method in self.options.replay
        converted = method == "compute" and self.options.kind != "nested"
        if tracked or converted:
            # Methods that were taken before the module was ready are correct at any
            # time, and so are methods whose calls are tracked.
            self.kept.setdefault(method, function)
        call = Call(number, method, queued, tracked, self.clock.rightNow)
        for outer in self.calls:
            if outer.deferred is None and not outer.queued:
                outer.nested = call.nested = True
        self.calls.append(call)
        token = caller.set(number)
        try:
            answer = function(number)
        except (Trouble, Hostile, AttributeError) as error:
            answer = fail(error)
            self.check(not queued, f"call {number} raises {error!r} in state {state}")
            self.check(not self.options.alwaysDeferred, f"call {number} raises")
        finally:
            caller.reset(token)
        if not isinstance(answer, Deferred):
            certain = queued or self.options.alwaysDeferred or method == "compute"
            certain = certain or (tracked and isawaitable(answer))
            self.check(not certain, f"call {number} returns {answer!r} in {state}")
            if isawaitable(answer):
                answer = Deferred.fromCoroutine(waitFor(answer))
            else:
                answer = succeed(answer)
        call.deferred = answer
        if self.isWaiting(call) and not (queued or answer.called):
            # The module was lost while it was being called.
            call.queued = True
            call.since = self.clock.rightNow
        if queued and not call.runs and losses == self.losses:
            refused = state in REFUSING
            if refused and self.cancellingAttempts:
                # Queued calls have not been refused yet, but soon will be.
                refused = answer.called
            call.rejected = refused or pending >= self.options.limit
            self.check(
                answer.called == call.rejected or state is State.NEW,
                f"call {number} in state {state} with {pending} pending",
            )
            lazy = state is State.NEW and not call.rejected
            if lazy and self.options.lazy == "callable":
                self.check(self.asked == 1, "the first call does not initialise")
            elif lazy and self.options.lazy:
                self.check(wrapper.state is not state, "a call does not initialise")
        if answer is self.shared:
            # This is the module's own Deferred: leave it alone.
            answer.addBoth(self.seen, call)
        else:
            answer.addBoth(self.ended, call).addErrback(ignoreHostile)

    def lookUp(self, method: str) -> Callable[[int], Any] | None:
        """
        @return: The method of the proxy, or L{None}.
        """
        try:
            function: Callable[[int], Any] = getattr(self.wrapper.proxy, method)
        except AttributeError as error:
            # A module that cannot be listed has the names of its class.
            gone = method == "extra" and (self.vanished or self.lookRaised)
            self.check(gone, f"looking up {method} raised {error!r}")
            return None
        except Hostile:
            return None
        return function

    def ended(self, result: object, call: Call) -> None:
        call.endLosses = self.losses
        call.fired.append(result)
        if isinstance(result, Failure) and result.check(Closed, InitializationFailed):
            # The module was closed while it was being called: it was queued again.
            call.queued = True
        if isinstance(result, Failure) and result.check(QueueTimeout):
            assert result.value is not None
            self.check(
                result.value.__cause__ is self.wrapper.lastError,
                f"call {call.number} lost the cause of its timeout",
            )
        self.reenter()

    def seen(self, result: Any, call: Call) -> Any:
        call.endLosses = self.losses
        call.fired.append(result)
        return result

    def openCall(self, which: int) -> Call | None:
        open_ = [call for call in self.calls if call.deferred and not call.ended]
        return open_[which % len(open_)] if open_ else None

    def cancelACall(self, which: int, how: str = "silent") -> None:
        call = self.openCall(which)
        if call is not None:
            self.cancelTheCall(call, how)

    def cancelTheCall(self, call: Call, how: str) -> None:
        assert call.deferred is not None
        self.cancelled += self.isWaiting(call)
        call.gaveUp = True
        self.callCanceller = how
        try:
            call.deferred.cancel()
        except Hostile:
            self.check(bool(call.runs), "cancelling a queued call raises")
        finally:
            self.callCanceller = "silent"

    def usurp(self, which: int, failing: bool = False) -> None:
        """
        A caller fires the Deferred of its own call.
        """
        call = self.openCall(which)
        if call is not None:
            self.usurpTheCall(call, failing)

    def usurpTheCall(self, call: Call, failing: bool) -> None:
        if call.ended or not call.tracked or call.deferred is self.shared:
            return
        assert call.deferred is not None
        call.usurped = True
        if failing:
            call.deferred.errback(Trouble("usurped"))
        else:
            call.deferred.callback(("usurped", call.number))

    def callFromThread(self, method: str) -> None:
        """
        Check that a call in another thread is refused, and changes nothing.
        """
        function = self.lookUp(method)
        state = self.wrapper.state
        tracked = self.tracked or method in self.options.replay
        if function is None or (state is State.READY and not tracked):
            return
        errors: list[BaseException] = []

        def make() -> None:
            try:
                function(-1)
            except BaseException as error:
                errors.append(error)

        before = self.wrapper.stats
        threadable.registerAsIOThread()
        thread = Thread(target=make)
        thread.start()
        thread.join()
        assert self.wrapper.stats == before
        assert [type(error) for error in errors] == [RuntimeError]
        assert "callFromThread" in str(errors[0])

    # Waiting.

    def wait(self, start: bool) -> None:
        fired: list[Any] = []
        wrapper = self.wrapper
        old = wrapper.lastError if wrapper.state is State.FAILED and start else None
        deferred = wrapper.initialize() if start else wrapper.whenInitialized()
        self.waiters.append((deferred, fired))

        def initialized(result: object) -> None:
            fired.append(result)
            if not isinstance(result, Failure):
                self.check(
                    wrapper.state in READY or self.disturbed,
                    f"a waiter learns that the module is ready in {wrapper.state}",
                )
            elif result.check(InitializationFailed):
                assert result.value is not None
                cause = result.value.__cause__
                self.check(
                    old is None or cause is not old, "a waiter gets an old failure"
                )
            self.disturbed = self.disturbed or bool(self.plans)
            self.reenter()

        deferred.addBoth(initialized).addErrback(ignoreHostile)

    def usurpAWaiter(self, which: int) -> None:
        """
        Somebody fires the Deferred of initialize(), close() or pause().
        """
        pausers = [(deferred, fired) for deferred, fired, _ in self.pausers]
        waiters = [*self.waiters, *self.closers, *pausers]
        open_ = [deferred for deferred, fired in waiters if not fired]
        if open_:
            self.disturbed = True
            open_[which % len(open_)].errback(Trouble("usurped"))

    def closeWrapper(self) -> None:
        fired: list[Any] = []
        deferred = self.wrapper.close()
        self.closers.append((deferred, fired))

        def closed(result: object) -> None:
            fired.append(result)
            self.reenter()

        deferred.addBoth(closed).addErrback(ignoreHostile)

    def failWrapper(self) -> None:
        wrapper, reason = self.wrapper, Abandoned()

        def seen() -> tuple[object, ...]:
            return wrapper.state, wrapper.since, wrapper.lastError, wrapper.stats

        before, planned = seen(), bool(self.plans)
        legal = wrapper.state in CAN_FAIL
        try:
            wrapper.fail(reason)
        except IllegalTransition:
            self.check(not legal, f"cannot fail in state {before[0]}")
            self.check(before == seen(), "an illegal fail() has changed something")
        else:
            self.check(legal, f"can fail in state {before[0]}")
            failed = wrapper.state is State.FAILED and wrapper.lastError is reason
            self.check(planned or failed, f"has not failed, but is {wrapper.state}")

    # Pauses and resets.

    def pause(self, by: object) -> None:
        wrapper = self.wrapper
        state, planned = wrapper.state, bool(self.plans or self.lookPlans)
        isFirst = not wrapper.paused
        self.hold(by)
        idles, losses = len(self.idles), self.losses
        # Another pause may have called whenIdle() already.
        asks = self.options.whenIdle and state in RUNS and isFirst and not planned
        fired: list[Any] = []
        deferred = wrapper.pause(by)
        self.pausers.append((deferred, fired, by))
        if state in RUNS:
            # Others may have paused the wrapper while it looked at the methods.
            isPaused = wrapper.state is State.PAUSED or self.clock.plans > 0
            self.check(planned or isPaused, f"pause() leads to {wrapper.state}")

        def paused(result: object) -> None:
            fired.append(result)
            if not isinstance(result, Failure) and by in self.holds:
                self.check(
                    not self.isBusy() or wrapper.state is not State.PAUSED,
                    f"pause() does not wait for {len(self.inProgress())} calls",
                )
                asked = self.idles[idles:]
                self.check(
                    bool(asked) or not asks or losses != self.losses,
                    "pause() does not call whenIdle()",
                )
                open_ = [idle for idle in asked if idle.open]
                self.check(
                    not open_ or wrapper.state is not State.PAUSED,
                    "pause() does not wait for whenIdle()",
                )
            self.reenter()

        deferred.addBoth(paused).addErrback(ignoreHostile)

    def hold(self, by: object) -> None:
        wrapper = self.wrapper
        if not wrapper.paused and wrapper.state not in (State.CLOSING, State.CLOSED):
            self.pauses += 1
        self.holds.add(by)

    def resume(self, by: object) -> None:
        self.holds.discard(by)
        planned = bool(self.plans or self.lookPlans)
        self.wrapper.resume(by)
        self.check(
            planned or bool(self.holds) or self.wrapper.state is not State.PAUSED,
            "resume() does not end the pause",
        )

    def enterPause(self) -> None:
        """
        Pause the wrapper for the duration of an C{async with}.
        """
        gate: Deferred[None] = Deferred()
        holder = object()
        entered = False

        async def body() -> None:
            nonlocal entered
            async with self.wrapper.pausing():
                entered = True
                if gate.called:
                    self.holds.discard(holder)
                try:
                    self.reenter()
                    await gate
                finally:
                    self.holds.discard(holder)

        def leave(_: object) -> None:
            # The hold ends before anything else learns of the pause.
            if entered:
                self.holds.discard(holder)

        self.hold(holder)
        gate.addBoth(leave)
        done: Deferred[None] = Deferred.fromCoroutine(body())
        done.addErrback(lambda _: self.holds.discard(holder))
        self.contexts.append((done, gate))

    def leavePause(self, which: int) -> None:
        open_ = [gate for _, gate in self.contexts if not gate.called]
        if open_:
            open_[which % len(open_)].callback(None)

    def endPauses(self) -> None:
        """
        End each pause that does not wait for calls.
        """
        for by in HOLDERS:
            if by in self.holds:
                self.clock.begin()
                self.resume(by)
        for _, gate in self.contexts:
            if not gate.called:
                self.clock.begin()
                gate.callback(None)

    def isClosed(self) -> bool:
        return self.wrapper.state in (State.CLOSING, State.CLOSED)

    def isBusy(self) -> bool:
        """
        @return: Whether the wrapper knows of a call in progress.
        """
        # A call that is being made is not known yet.
        return any(not call.usurped and call.deferred for call in self.inProgress())

    def reset(self) -> None:
        wrapper, reason = self.wrapper, Abandoned("reset")
        state, losses = wrapper.state, self.losses
        closings = len(self.closings)
        begun, planned = self.begun, bool(self.plans or self.lookPlans)
        illegal = state is State.NEW or state in REFUSING
        lost = state in READY
        self.expectedLosses += lost
        try:
            wrapper.reset(reason)
        except IllegalTransition:
            self.check(illegal, f"cannot reset in state {state}")
        else:
            self.check(not illegal, f"can reset in state {state}")
            self.check(not lost or self.losses > losses, "reset() is not a loss")
            closed = len(self.closings) > closings or planned
            self.check(closed or not lost, "reset() does not close the module")
            again = self.begun > begun or self.isClosing() or self.isWaitingForItsTurn()
            # Inside a callback, the interrupted code continues first.
            again = again or self.clock.plans > 0
            self.check(planned or again, f"reset() in {state} begins no attempt")

    # Others.

    def answerTasks(self, tasks: list[Task], error: type[BaseException] | None) -> None:
        """
        End each close(), ping or whenIdle() in progress.
        """
        for task in tasks:
            if not task.open:
                continue
            if error is None:
                task.deferred.callback(None)
            else:
                task.failed = True
                task.deferred.errback(error("task"))

    def toggleExtra(self) -> None:
        """
        Remove a method of the module, or add it again.
        """
        if self.module.toggleExtra():
            self.vanished = True

    def lookAtNames(self) -> None:
        names = dir(self.wrapper.proxy)
        self.check("write" in names, "the proxy has no names")
        for name in ("read", "eventual", "extra"):
            self.lookUp(name)

    def answerAttempt(self, error: BaseException | None) -> None:
        self.clock.begin()
        open_ = [attempt for attempt in self.attempts if attempt.open]
        if not open_:
            return
        attempt, wrapper = open_[-1], self.wrapper
        current = attempt.number == self.begun and not attempt.cancelled
        if error is None:
            self.succeeded = self.succeeded or current
            attempt.deferred.callback(None)
            return
        current = current and wrapper.state is State.INITIALIZING
        planned = bool(self.plans)
        attempt.deferred.errback(error)
        self.check(
            planned or not current or wrapper.lastError is error,
            f"the error of the attempt is {wrapper.lastError!r}",
        )

    def beginAttempt(self) -> None:
        """
        Begin an attempt, whatever was planned.
        """
        self.nextAttempt = self.nextClosing = self.nextWatch = "later"
        self.endPauses()
        self.clock.begin()
        if self.wrapper.state in READY:
            self.reset()
        for closing in self.closings:
            if closing.open:
                self.clock.begin()
                closing.deferred.callback(None)
        while self.slotsTaken:
            self.releaseSlot()
        self.wait(start=True)
        self.clock.advance(self.wrapper.retryAfter() or 0)

    def takeSlot(self) -> None:
        """
        Let another wrapper take a slot.
        """
        assert self.slots is not None
        self.slots.acquire()
        self.slotsTaken += 1

    def releaseSlot(self) -> None:
        assert self.slots is not None
        self.slotsTaken -= 1
        self.slots.release()

    def plan(self, what: str, method: str, which: int, look: bool = False) -> None:
        how = ["silent", "raise", "other", "slow", "result", "discover"][which % 6]
        plans = self.lookPlans if look else self.plans
        plans.append(
            {
                "submit": lambda: self.submit(method),
                "cancel": lambda: self.cancelACall(which, how),
                "usurp": lambda: self.usurp(which, which % 2 == 0),
                "lose": lambda: self.loseModule(None),
                "initialize": lambda: self.wait(start=True),
                "wait": lambda: self.wait(start=False),
                "close": self.closeWrapper,
                "fail": self.failWrapper,
                "raise": self.misbehave,
                "look": self.lookAtNames,
                "pause": lambda: self.pause(which % 2),
                "resume": lambda: self.resume(which % 2),
                "reset": self.reset,
                "pausing": self.enterPause,
            }[what]
        )

    def misbehave(self) -> None:
        raise Hostile("callback")
