"""
Random programs: whatever modules need each other, and whatever becomes of them,
the promise holds for the program as a whole.
"""

from __future__ import annotations

import os

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

from tsrv import Startup, State
from tsrv.startup import Skipped, Status

from .support import Module, Refused, Result, Trouble, resultOf

READY = (State.DRAINING, State.READY)
GONE = (State.FAILED, State.CLOSING, State.CLOSED)


class Watched(Module):
    """
    A module that checks the program when it is initialised or closed.
    """

    def __init__(self, programs: Programs, name: str, immediate: bool) -> None:
        super().__init__()
        self.immediate = immediate
        self.programs = programs
        self.name = name

    def initialize(self) -> Deferred[None]:
        if not self.attempts:
            self.programs.checkStart(self.name)
        attempt = super().initialize()
        if self.immediate:
            attempt.callback(None)
        return attempt

    def close(self) -> Deferred[None]:
        self.programs.checkClose(self.name)
        return super().close()


class Programs(RuleBasedStateMachine):
    """
    One program under random events.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.statuses: list[int] = []
        self.startup = Startup(self.clock, stopProgram=self.statuses.append)
        self.modules: dict[str, Watched] = {}
        self.needs: dict[str, list[str]] = {}
        self.required: dict[str, bool] = {}
        self.results: list[Result] = []
        self.calls: list[Result] = []
        self.stopped: Result | None = None
        self.failedOnce = False
        self.wrong: list[str] = []
        self.initializedByHand: set[str] = set()
        self.startup.addObserver(self.look)

    @initialize(data=st.data(), size=st.integers(1, 6))
    def build(self, data: st.DataObject, size: int) -> None:
        names = [f"m{number}" for number in range(size)]
        # In any order, but without a cycle.
        for number in data.draw(st.permutations(range(size))):
            name = names[number]
            module = self.modules[name] = Watched(
                self, name, data.draw(st.integers(0, 3)) == 0
            )
            self.needs[name] = data.draw(
                st.lists(st.sampled_from(names[:number]), max_size=3)
                if number
                else st.just([])
            )
            self.required[name] = data.draw(st.booleans())
            self.startup.add(
                name,
                module,
                needs=self.needs[name],
                required=self.required[name],
                timeout=data.draw(st.sampled_from([None, 3.0])),
                fatal=Refused,
                retryPolicy=lambda attempts: 1.0,
                closeTimeout=5.0,
            )
        self.results.append(resultOf(self.startup.whenReady()))
        if data.draw(st.integers(0, 9)):
            self.startup.startService()

    def pick(self, data: st.DataObject) -> Watched:
        return self.modules[data.draw(st.sampled_from(sorted(self.modules)))]

    # What happens.

    @rule(data=st.data(), outcome=st.sampled_from(["good", "good", "bad", "worst"]))
    def conclude(self, data: st.DataObject, outcome: str) -> None:
        for attempt in self.pick(data).attempts[-1:]:
            if not attempt.called:
                if outcome == "good":
                    attempt.callback(None)
                else:
                    attempt.errback(Trouble() if outcome == "bad" else Refused())

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        for watch in self.pick(data).watches[-1:]:
            if not watch.called:
                watch.callback(None)

    @rule(data=st.data(), fails=st.booleans())
    def closed(self, data: st.DataObject, fails: bool) -> None:
        for closing in self.pick(data).closings:
            if not closing.called:
                if fails:
                    closing.errback(Trouble())
                else:
                    closing.callback(None)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        name = self.pick(data).name
        wrapper = self.startup.wrappers[name]
        if wrapper.state is not State.READY:
            self.calls.append(resultOf(wrapper.proxy.read(len(self.calls))))

    @rule()
    def wait(self) -> None:
        self.results.append(resultOf(self.startup.whenReady()))

    @rule(data=st.data())
    def tryByHand(self, data: st.DataObject) -> None:
        name = self.pick(data).name
        self.initializedByHand.add(name)
        resultOf(self.startup.wrappers[name].initialize())

    @precondition(lambda self: self.stopped is None)
    @rule(chance=st.integers(0, 9))
    def announce(self, chance: int) -> None:
        if not chance:
            self.startup.announceStop()

    @precondition(lambda self: self.stopped is None)
    @rule(chance=st.integers(0, 5))
    def stop(self, chance: int) -> None:
        if not chance:
            self.stopped = resultOf(self.startup.stopService())

    # What must hold.

    def isReady(self, name: str) -> bool:
        return self.startup.wrappers[name].state in READY

    def checkStart(self, name: str) -> None:
        """
        A module is initialised when its needs are ready, unless it was initialised by
        hand.
        """
        if name not in self.initializedByHand:
            for need in self.needs[name]:
                if not self.isReady(need):
                    self.wrong.append(f"{name} was initialised before {need}")

    def checkClose(self, name: str) -> None:
        """
        A module is closed after its dependents.
        """
        if self.startup.running or self.startup.report()["began"] is None:
            return
        for other, needs in self.needs.items():
            if name in needs and self.startup.wrappers[other].state is not State.CLOSED:
                self.wrong.append(f"{name} was closed before {other}")

    def look(self, name: str) -> None:
        """
        An observer sees a consistent report.
        """
        if not name and self.startup.status is Status.FAILED:
            self.failedOnce = True
        for module in self.startup.report()["modules"]:
            if (module["reason"] is None) != self.isReady(module["name"]):
                self.wrong.append(f"{module['name']}: {module['reason']}")

    @invariant()
    def nothingWentWrong(self) -> None:
        """
        No check failed inside a callback, where an error would count as that of a
        module.
        """
        assert self.wrong == []

    @invariant()
    def theStatusIsRight(self) -> None:
        startup = self.startup
        states = {name: each.state for name, each in startup.wrappers.items()}
        missing = [n for n in states if self.required[n] and not self.isReady(n)]
        optional = [n for n in states if not self.required[n] and not self.isReady(n)]
        failed = [n for n in missing if states[n] in GONE]
        assert startup.missing() == missing
        if startup.status in (Status.NEW, Status.STOPPING, Status.STOPPED):
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
        Every module is started, waits for one in progress, or is skipped for a failed
        one.
        """
        if self.startup.status in (Status.NEW, Status.STOPPING, Status.STOPPED):
            return
        for name, needs in self.needs.items():
            wrapper = self.startup.wrappers[name]
            if wrapper.state is State.NEW:
                missing = [need for need in needs if not self.isReady(need)]
                assert missing
                assert not any(
                    self.startup.wrappers[need].state in GONE for need in missing
                )
            elif isinstance(wrapper.lastError, Skipped):
                assert wrapper.state is not State.FAILED or not all(
                    self.isReady(need) for need in needs
                )

    def teardown(self) -> None:
        """
        In the end every module is closed, every Deferred has fired, and no timer is
        left.
        """
        stopped = resultOf(self.startup.stopService())
        for _ in range(3 * len(self.modules) + 3):
            self.clock.advance(5)
        assert not stopped.pending
        assert self.startup.status is Status.STOPPED
        for result in self.results:
            assert not result.pending
        for name, module in self.modules.items():
            assert self.startup.wrappers[name].state is State.CLOSED
            assert len(module.closings) == bool(module.attempts)
        for call in self.calls:
            assert not call.pending
        assert self.clock.getDelayedCalls() == []


Programs.TestCase.settings = settings(
    max_examples=int(os.environ.get("TSRV_EXAMPLES", "100")),
    stateful_step_count=40,
    deadline=None,
    derandomize="TSRV_EXAMPLES" not in os.environ,
    database=None,
)
TestPrograms = Programs.TestCase
