"""
Random programs: whatever modules need each other, and whatever happens to them, the
promise holds for the program as a whole.

L{Programs} makes random steps. Attempts succeed, fail or time out, modules are lost,
paused, reset, closed and given up, also by observers, by waiters, and by cancellers of
attempts. L{Watched} records the events of a module in the order of all events of the
program; each property below is stated in those terms.

The number of random programs is C{TSRV_EXAMPLES}.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv import IllegalTransition, QueuingWrapper, Startup, State
from tsrv.startup import Restarted, Skipped, Status

from .support import Module, Refused, Result, Trouble, resultOf

READY = (State.DRAINING, State.READY)
GONE = (State.FAILED, State.CLOSING, State.CLOSED)
TRYING = (State.INITIALIZING, State.RETRYING)
QUIET = (Status.NEW, Status.STOPPING, Status.STOPPED)

HOLDERS = (None, "backup")

# The actions of an operator, an observer or a callback.
ACTS = ["initialize", "fail", "pause", "resume", "reset", "call", "wait", "raise"] * 2
ACTS += ["close", "stop"]


# The fates of a lost module.
ENDS = ["recover", "recover", "nothing", "fail"]


class Hostile(Exception):
    """
    An error of foreign code where no error is expected.
    """


class Watched(Module):
    """
    A module that reports its events to the program.

    @ivar begun: The time at which the last attempt began.
    @ivar lossCounts: The numbers of losses at that time, of the modules that this one
        restarts with.
    @ivar closed: The time of the last close.
    @ivar canceller: Called by the canceller of an attempt.
    """

    def __init__(
        self, programs: Programs, name: str, immediate: bool, canceller: str | None
    ) -> None:
        super().__init__()
        self.programs = programs
        self.name = name
        self.immediate = immediate
        self.canceller = canceller
        self.pings: list[Deferred[None]] = []
        self.begun = self.closed = 0
        self.lossCounts: dict[str, int] = {}

    def initialize(self) -> Deferred[None]:
        self.begun = self.programs.now()
        others = self.programs.relations[self.name].restartWith
        self.lossCounts = {each: self.programs.lossCount(each) for each in others}
        self.programs.checkStart(self.name)
        attempt: Deferred[None] = Deferred(self.cancelled)
        self.attempts.append(attempt)
        if self.immediate:
            attempt.callback(None)
        return attempt

    def cancelled(self, attempt: Deferred[None]) -> None:
        if self.canceller == "raise":
            raise Hostile
        if self.canceller == "succeed":
            attempt.callback(None)
        elif self.canceller is not None:
            self.programs.disturb(self.canceller, self.name)

    def close(self) -> Deferred[None]:
        self.closed = self.programs.now()
        return super().close()

    def ping(self) -> Deferred[None]:
        ping: Deferred[None] = Deferred()
        self.pings.append(ping)
        return ping

    def open(self) -> list[Deferred[None]]:
        """
        Return the Deferreds that have not fired.
        """
        made = (*self.closings, *self.attempts[-1:], *self.pings[-1:])
        return [each for each in made if not each.called]

    def read(self, what: object) -> Deferred[Any]:
        self.programs.checkCall(self.name)
        return super().read(what)


class Relations:
    """
    The relations of one module to others, and its options.
    """

    def __init__(self, data: st.DataObject, earlier: list[str]) -> None:
        def some(of: list[str], least: int, most: int) -> list[str]:
            names = st.lists(st.sampled_from(of), min_size=least, max_size=most)
            return data.draw(names) if of else []

        restarts = data.draw(st.sampled_from([1, 0]))
        self.restartWith = some(earlier, restarts, 2 * restarts)
        self.needs = [*some(earlier, 0, 2), *self.restartWith]
        self.after = some([*earlier, "nobody"], 0, 1)
        self.predecessors = [each for each in self.after if each != "nobody"]
        self.required = data.draw(st.booleans())
        self.lazy = not data.draw(st.integers(0, 4))
        self.timeout = data.draw(st.sampled_from([None, 3.0]))
        self.ping = "ping" if not data.draw(st.integers(0, 5)) else None


class Programs(RuleBasedStateMachine):
    """
    One program under random events.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = count(1).__next__
        self.clock = Clock()
        self.statuses: list[int] = []
        self.modules: dict[str, Watched] = {}
        self.relations: dict[str, Relations] = {}
        self.results: list[Result] = []
        self.calls: list[Result] = []
        self.stopped: Result | None = None
        self.failedOnce = False
        self.wrong: list[str] = []
        self.disturbed = False
        self.plans: list[tuple[str, str]] = []
        # The number of restarts that another loss interrupts.
        self.restartPlans = 0
        # Modules that were started, closed or failed by hand, or called.
        self.byHand: set[str] = set()
        self.closedByHand: set[str] = set()
        self.called: set[str] = set()
        self.holders: dict[str, set[str | None]] = {}
        # Modules that failed before the start.
        self.stale: set[str] = set()
        self.doubtful: set[str] = set()
        self.states: dict[str, State] = {}
        # The times of each loss, and of the recovery from it.
        self.losses: dict[str, int] = {}
        self.lossCounts: dict[str, int] = {}
        self.recoveries: dict[str, int] = {}
        # The time of the last restart of each, and of the loss that requires a restart.
        self.restarts: dict[str, int] = {}
        self.dues: dict[str, int] = {}

    @initialize(data=st.data(), size=st.sampled_from([4, 5, 6, 3, 1]))
    def build(self, data: st.DataObject, size: int) -> None:
        self.slots = data.draw(st.sampled_from([None, None, 1, 2]))
        self.stopRaises = not data.draw(st.integers(0, 4))
        self.startup = Startup(
            self.clock, stopProgram=self.stopProgram, concurrency=self.slots
        )
        self.startup.addObserver(self.look)
        names = [f"m{number}" for number in range(size)]
        # In any order, but without a cycle.
        for number in data.draw(st.permutations(range(size))):
            name = names[number]
            relations = self.relations[name] = Relations(data, names[:number])
            self.holders[name] = set()
            module = self.modules[name] = Watched(
                self,
                name,
                not data.draw(st.integers(0, 3)),
                data.draw(
                    st.sampled_from([None, None, "raise", "succeed", "close", "fail"])
                ),
            )
            self.startup.add(
                name,
                module,
                needs=relations.needs,
                after=relations.after,
                restartWith=relations.restartWith,
                required=relations.required,
                lazy=relations.lazy,
                timeout=relations.timeout,
                ping=relations.ping,
                pingInterval=2.0,
                fatal=Refused,
                retryPolicy=lambda attempts: 1.0,
                closeTimeout=5.0,
                queueTimeout=None,
            )
        self.act("wait", "")
        early = st.sampled_from(["call", "fail", "initialize", "pause"])
        for act in data.draw(st.lists(early, max_size=2)):
            self.act(act, self.pick(data).name)
        self.stale |= {
            name for name in self.modules if self.wrapper(name).state is State.FAILED
        }
        self.startup.startService()

    def stopProgram(self, status: int) -> None:
        self.statuses.append(status)
        if self.stopRaises:
            raise Hostile

    def pick(self, data: st.DataObject) -> Watched:
        return self.modules[data.draw(st.sampled_from(sorted(self.modules)))]

    def wrapper(self, name: str) -> QueuingWrapper[Watched]:
        return self.startup.wrappers[name]

    # Events.

    @rule(data=st.data(), outcome=st.sampled_from(["good", "good", "bad", "worst"]))
    def conclude(self, data: st.DataObject, outcome: str) -> None:
        """
        End an attempt, a ping or a close().
        """
        busy = [each for each in map(Watched.open, self.modules.values()) if each]
        if busy:
            deferred = data.draw(st.sampled_from(data.draw(st.sampled_from(busy))))
            if outcome == "good":
                deferred.callback(None)
            else:
                deferred.errback(Trouble() if outcome == "bad" else Refused())

    @rule(seconds=st.sampled_from([0.0, 1.0]))
    def recover(self, seconds: float) -> None:
        """
        Let everything in progress succeed.
        """
        for module in self.modules.values():
            for each in module.open():
                if not each.called:
                    each.callback(None)
        self.advance(seconds)

    @rule(
        data=st.data(),
        calm=st.booleans(),
        many=st.integers(1, 3),
        end=st.sampled_from(ENDS),
    )
    def lose(self, data: st.DataObject, calm: bool, many: int, end: str) -> None:
        """
        Lose modules that are ready, preferably modules that others restart with:
        perhaps when everything was ready, and perhaps to recover soon or to be given
        up.
        """
        for _ in range(3 * calm):
            self.recover(1.0)
        for _ in range(many):
            names = [n for n in self.modules if self.wrapper(n).state in READY]
            named = [n for n in names if self.restarting(n)] or names
            if named:
                name = data.draw(st.sampled_from(named))
                self.loseOne(name)
                for other in self.restarting(name):
                    self.call(other)
                if end == "fail":
                    self.act("fail", name)
        if end == "recover":
            for _ in range(3):
                self.recover(1.0)

    def loseOne(self, name: str) -> None:
        for watch in self.modules[name].watches[-1:]:
            if not watch.called:
                watch.callback(None)

    def restarting(self, name: str) -> list[str]:
        """
        Return the names of the modules that restart with a given one.
        """
        return [n for n, each in self.relations.items() if name in each.restartWith]

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for _ in self.modules:
            # Slots of attempts that have ended become free one turn later.
            self.clock.advance(0)
        self.checkSlotsAreUsed()

    @rule(data=st.data(), act=st.sampled_from(ACTS))
    def doByHand(self, data: st.DataObject, act: str) -> None:
        if act not in ("raise", "stop", "close"):
            self.act(act, self.pick(data).name)

    @rule(data=st.data(), act=st.sampled_from(ACTS))
    def planForObserver(self, data: st.DataObject, act: str) -> None:
        self.plans.append((act, self.pick(data).name))

    @rule(many=st.integers(1, 3))
    def planForRestart(self, many: int) -> None:
        self.restartPlans += many

    @rule(data=st.data(), act=st.sampled_from([*ACTS, *["initialize"] * 4]))
    def planForWaiter(self, data: st.DataObject, act: str) -> None:
        name = self.pick(data).name

        def react(result: Any) -> Any:
            if act != "raise":
                self.disturb(act, name)
            return result

        self.results.append(resultOf(self.startup.whenReady().addBoth(react)))

    @precondition(lambda self: self.stopped is None and self.clock.seconds() > 5)
    @rule()
    def stop(self) -> None:
        self.stopped = resultOf(self.startup.stopService())

    def disturb(self, act: str, name: str) -> None:
        """
        Interrupt an event with another one.
        """
        self.disturbed = True
        self.act(act, name)

    def act(self, act: str, name: str) -> None:
        """
        Apply an action to a module, or to the program.
        """
        startup = self.startup
        holder = HOLDERS[len(name + act) % 2]
        try:
            if act == "initialize":
                # Preferably a failed one.
                states = {each: self.wrapper(each).state for each in self.modules}
                failed = [n for n, state in states.items() if state is State.FAILED]
                name = next(iter(failed), name)
                self.byHand.add(name)
                self.results.append(resultOf(self.wrapper(name).initialize()))
            elif act == "fail":
                self.wrapper(name).fail(Trouble())
            elif act == "close":
                self.closedByHand.add(name)
                self.results.append(resultOf(self.wrapper(name).close()))
            elif act == "pause":
                if self.wrapper(name).state not in (State.CLOSING, State.CLOSED):
                    self.holders[name].add(holder)
                self.results.append(resultOf(startup.pause(name, by=holder)))
            elif act == "resume":
                self.holders[name].discard(holder)
                startup.resume(name, by=holder)
            elif act == "reset":
                startup.reset(name, Trouble())
            elif act == "call":
                self.call(name)
            elif act == "wait":
                self.results.append(resultOf(startup.whenReady()))
            elif act == "stop":
                startup.announceStop()
            elif act == "lose":
                # A module that this one restarts with, perhaps during its restart.
                for each in self.relations[name].restartWith:
                    self.loseOne(each)
            else:
                raise Hostile
        except IllegalTransition:
            pass

    def call(self, name: str) -> None:
        # Preferably a lazy one that was never called.
        new = [n for n in self.modules if self.wrapper(n).state is State.NEW]
        lazy = [n for n in new if self.relations[n].lazy and n not in self.called]
        wrapper = self.wrapper(next(iter(lazy), name))
        if wrapper.state is State.NEW:
            self.called.add(next(iter(lazy), name))
        if wrapper.state is not State.READY:
            self.calls.append(resultOf(wrapper.proxy.read(len(self.calls))))

    # Properties that must hold at an event.

    def checkStart(self, name: str) -> None:
        """
        Check that a module is initialised only when the modules that it needs are
        ready, and the modules that it starts after have settled; a lazy one only after
        a call.
        """
        wrapper, relations = self.wrapper(name), self.relations[name]
        if name in self.states or name in self.byHand:
            return
        self.states[name] = wrapper.state
        for need in relations.needs:
            if not self.isAvailable(need):
                self.wrong.append(f"{name} was initialised before {need}")
        for other in relations.predecessors:
            if not (self.isAvailable(other) or self.wrapper(other).state in GONE):
                self.wrong.append(f"{name} was initialised before {other}")
        if relations.lazy and name not in self.called:
            self.wrong.append(f"{name} was initialised without a call")
        if self.startup.report()["began"] is None or not self.startup.running:
            self.wrong.append(f"{name} was initialised at the wrong time")

    def lossCount(self, name: str) -> int:
        return self.wrapper(name).history.losses.count

    def checkCall(self, name: str) -> None:
        """
        Check that a module that restarts with another one is closed and initialised
        after the loss, before it gets a call.
        """
        if not self.isRunning():
            return
        module = self.modules[name]
        due = self.dues.get(name, 0)
        if module.closed < due or module.begun < due:
            self.wrong.append(f"{name} was called before its restart")
        for other in self.relations[name].restartWith:
            if module.lossCounts[other] < self.lossCount(other):
                self.wrong.append(f"{name} was called with what it lost")

    def look(self, name: str) -> None:
        """
        Record a change of a module's state. Then an observer carries out the plan.
        """
        if name:
            self.checkChange(name)
            self.checkReport(self.startup.reportModule(name))
        elif self.startup.status is Status.FAILED:
            self.failedOnce = True
        self.act("wait", "")
        if name and self.losses.get(name, 0) and self.restartPlans:
            wrapper = self.wrapper(name)
            if wrapper.state is State.LOST and type(wrapper.lastError) is Restarted:
                self.restartPlans -= 1
                self.disturb("lose", name)
        elif self.plans:
            self.disturb(*self.plans.pop())

    def checkChange(self, name: str) -> None:
        wrapper = self.wrapper(name)
        state = wrapper.state
        if state is State.INITIALIZING:
            self.checkStart(name)
        before, self.states[name] = self.states.get(name), state
        if state is not State.FAILED:
            self.stale.discard(name)
        if state in GONE:
            # Modules that need it may fail with it.
            self.doubtful |= {
                each for each in self.stale if name in self.relations[each].needs
            }
        error = wrapper.lastError
        hasFailed = state is State.FAILED and before is not state
        if hasFailed and isinstance(error, TimeoutError):
            self.checkTimeout(name)
        if state in (State.CLOSING, State.CLOSED):
            self.holders[name].clear()
        if state is State.CLOSING and before is not state:
            self.checkClose(name)
        lossCount = wrapper.history.losses.count
        if lossCount > self.lossCounts.get(name, 0):
            self.lossCounts[name] = lossCount
            self.checkLoss(name)
        if state in READY:
            self.recoveries[name] = self.now()
            lost = any(map(self.isLost, self.relations[name].restartWith))
            if lost and self.isRunning() and name not in self.byHand:
                self.wrong.append(f"{name} is ready without what it restarts with")

    def checkTimeout(self, name: str) -> None:
        """
        Check that a time limit begins with the first attempt, and ends with the
        program.
        """
        limit, attempts = (
            self.relations[name].timeout,
            self.wrapper(name).history.attempts,
        )
        first = next(iter(attempts), None)
        if limit and (first is None or self.clock.seconds() - first.begun < limit):
            self.wrong.append(f"{name} had no time")
        if not self.isRunning():
            self.wrong.append(f"{name} timed out in the shutdown")

    def checkClose(self, name: str) -> None:
        """
        Check that a module is closed after all modules that wait for it at the start,
        unless it was never initialised.
        """
        if self.stopped is None or name in self.closedByHand:
            return
        if not self.modules[name].attempts:
            return
        for other, relations in self.relations.items():
            waits = name in (*relations.needs, *relations.predecessors)
            if waits and self.wrapper(other).state is not State.CLOSED:
                self.wrong.append(f"{name} was closed before {other}")

    def checkLoss(self, name: str) -> None:
        """
        Check that a module is restarted only after a loss of a module that it restarts
        with.
        """
        self.losses[name] = now = self.now()
        error = list(self.wrapper(name).history.losses)[-1].kind
        if error == Restarted.__name__:
            others = self.relations[name].restartWith
            last = max((self.losses.get(each, 0) for each in others), default=0)
            if last <= self.restarts.get(name, 0):
                self.wrong.append(f"{name} was restarted without a reason")
            if any(map(self.isLost, others)) and not self.disturbed:
                self.wrong.append(f"{name} was restarted too early")
            self.restarts[name] = now
        else:
            # The module has nothing left to close.
            self.dues.pop(name, None)
        if not self.isRunning():
            return
        reached = [name]
        for each in reached:
            for other in self.restarting(each):
                state = self.wrapper(other).state
                if state is State.PAUSED:
                    self.dues[other] = now
                if state in READY and not self.disturbed:
                    self.wrong.append(f"{other} is not held at a loss of {name}")
                if state not in (State.NEW, *GONE) and other not in reached:
                    reached.append(other)

    def checkReport(self, report: Any) -> None:
        """
        Check that an observer sees a consistent report.
        """
        name, status = report["name"], report["status"]
        wrapper = self.wrapper(name)
        if (report["reason"] is None) != (wrapper.state in READY):
            self.wrong.append(f"{name}: {report['reason']}")
        if report["paused"] != wrapper.paused:
            self.wrong.append(f"{name}: paused is {report['paused']}")
        if status == "lazy" and (name in self.called or not self.relations[name].lazy):
            self.wrong.append(f"{name} is {status}")
        if (status == "skipped") != (
            wrapper.state is State.FAILED and isinstance(wrapper.lastError, Skipped)
        ):
            self.wrong.append(f"{name} is {status}")

    # Properties that must hold after each step.

    def isRunning(self) -> bool:
        """
        Whether the start-up has begun, and the shutdown has not.
        """
        return bool(self.startup.running)

    def isAvailable(self, name: str) -> bool:
        """
        Whether a module keeps nobody waiting.
        """
        wrapper = self.wrapper(name)
        wasReady = wrapper.history.becameReady is not None
        isUnused = self.relations[name].lazy and not wasReady
        return wrapper.state in READY or (isUnused and not self.hasFailed(name))

    def hasFailed(self, name: str) -> bool:
        return self.wrapper(name).state in GONE and name not in self.stale

    def isLost(self, name: str) -> bool:
        """
        Whether a module has not recovered from its last loss, but may do so.
        """
        isOver = self.losses.get(name, 0) <= self.recoveries.get(name, 0)
        return not (isOver or self.hasFailed(name))

    def isHeld(self, name: str) -> bool:
        """
        Whether the calls of a module are held until another one has recovered.
        """
        others = self.relations[name].restartWith
        return self.wrapper(name).paused and any(
            self.isLost(each) or self.isHeld(each) for each in others
        )

    def attempting(self) -> list[str]:
        """
        Return the names of the modules with an attempt in progress.
        """
        names = []
        for name in self.modules:
            attempts = list(self.wrapper(name).history.attempts)
            if attempts and attempts[-1].ended is None:
                names.append(name)
        return names

    def checkSlotsAreUsed(self) -> None:
        """
        Check that no module waits for its attempt while a slot is free.
        """
        attempting = self.attempting()
        waiting = [
            name
            for name, module in self.modules.items()
            if self.wrapper(name).state is State.INITIALIZING
            and name not in attempting
            and all(closing.called for closing in module.closings)
        ]
        assert not waiting or len(attempting) == self.slots

    @invariant()
    def nothingWentWrong(self) -> None:
        """
        Check that no check failed inside a callback, where an error would count as an
        error of a module.
        """
        assert self.wrong == [], self.wrong
        self.disturbed = False

    @invariant()
    def theReportIsRight(self) -> None:
        """
        Check that the report is consistent.
        """
        for each in self.startup.report()["modules"]:
            self.checkReport(each)
        assert self.wrong == [], self.wrong

    @invariant()
    def fewAttemptsAreMade(self) -> None:
        """
        Check that at most as many attempts are in progress as the program allows.
        """
        assert self.slots is None or len(self.attempting()) <= self.slots

    @invariant()
    def theStatusIsRight(self) -> None:
        startup, required = self.startup, self.relations
        if self.stale & self.doubtful:
            return
        missing = [name for name in self.modules if not self.isAvailable(name)]
        optional = [name for name in missing if not required[name].required]
        missing = [name for name in missing if required[name].required]
        failed = [name for name in missing if self.hasFailed(name)]
        assert startup.missing() == [n for n in startup.wrappers if n in missing]
        if startup.status in QUIET:
            return
        if failed:
            expected = [Status.FAILED]
        elif missing:
            expected = [Status.STARTING, Status.UNREADY]
        else:
            expected = [Status.DEGRADED if optional else Status.READY]
        assert startup.status in expected
        assert startup.ready is (not missing)
        assert bool(self.statuses) is self.failedOnce

    @invariant()
    def nothingWaitsInVain(self) -> None:
        """
        Check that every module is started, waits for another module that is starting,
        or is skipped because of a failed one.
        """
        if self.startup.status is Status.NEW or not self.isRunning():
            return
        for name, relations in self.relations.items():
            wrapper = self.wrapper(name)
            missing = [each for each in relations.needs if not self.isAvailable(each)]
            unsettled = [
                each
                for each in relations.predecessors
                if not (self.isAvailable(each) or self.hasFailed(each))
            ]
            if wrapper.state is State.NEW and not self.stale & self.doubtful:
                assert missing or unsettled or name not in self.called | self.eager
                assert not any(map(self.hasFailed, missing))
            elif wrapper.state is State.FAILED:
                isSkipped = isinstance(wrapper.lastError, Skipped)
                assert missing or unsettled or not isSkipped

    @property
    def eager(self) -> set[str]:
        return {name for name, each in self.relations.items() if not each.lazy}

    @invariant()
    def nothingIsHeldInVain(self) -> None:
        """
        Check that the calls of a module are held exactly as long as somebody pauses it,
        or a module that it restarts with has not recovered.
        """
        for name in self.relations:
            wrapper = self.wrapper(name)
            if wrapper.state in (State.CLOSING, State.CLOSED):
                continue
            if self.holders[name]:
                assert wrapper.paused
            elif self.isRunning():
                assert wrapper.paused is self.isHeld(name)
            assert not (wrapper.paused and wrapper.state in READY)

    @invariant()
    def timeIsLimited(self) -> None:
        """
        Check that the attempts of a module with a time limit do not take longer than
        that.
        """
        if not self.isRunning():
            return
        for name, relations in self.relations.items():
            wrapper = self.wrapper(name)
            attempts = list(wrapper.history.attempts)
            wasReady = wrapper.history.becameReady is not None
            isLimited = attempts and not wasReady and name not in self.byHand
            if relations.timeout and isLimited and wrapper.state in TRYING:
                assert self.clock.seconds() - attempts[0].begun < relations.timeout

    def teardown(self) -> None:
        """
        Stop the program: every module is closed, every Deferred has fired, and no timer
        is left.
        """
        if not self.modules:
            return
        self.plans.clear()
        self.restartPlans = 0
        self.stopped = resultOf(self.startup.stopService())
        for _ in range(3 * len(self.modules) + 3):
            self.clock.advance(5)
        assert not self.stopped.pending
        assert self.startup.status is Status.STOPPED
        for result in self.results:
            assert not result.pending
        for name, module in self.modules.items():
            assert self.wrapper(name).state is State.CLOSED
            assert module.closed > module.begun or not module.attempts
        for call in self.calls:
            assert not call.pending
        assert self.clock.getDelayedCalls() == []
        assert self.wrong == [], self.wrong


Programs.TestCase.settings = settings(
    max_examples=int(os.environ.get("TSRV_EXAMPLES", "100")),
    stateful_step_count=40,
    deadline=None,
    derandomize="TSRV_EXAMPLES" not in os.environ,
    database=None,
)


@pytest.fixture
def hostileFailuresAreLogged(loggedFailures: list[LogEvent]) -> Iterator[None]:
    """
    Check that only errors of foreign code are logged.
    """
    yield
    loggedFailures[:] = [
        event for event in loggedFailures if not event["log_failure"].check(Hostile)
    ]


TestPrograms = pytest.mark.usefixtures("hostileFailuresAreLogged")(Programs.TestCase)
