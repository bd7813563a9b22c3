"""
tsrv.aio under random events: the promise holds for tasks, too.

L{Machine} makes random steps on a loop whose time stands still. Callers are tasks: they
await calls, with time limits and in groups, and are cancelled at any moment. The
coroutines of the module hang, fail, await when they are cancelled, or refuse to be
cancelled; the module is lost, reset, paused and closed. Several steps may be made in
one turn of the loop, so that they meet unfinished work. It checks that every call ends,
in order, with its result or the true reason, that nothing runs after its caller gave
up, and that no task, timer or unhandled error is left on the loop.
L{tests.test_machine} checks everything that does not depend on the loop, such as
counters and reports.

The number of random programs is C{TSRV_EXAMPLES}.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

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
from twisted.internet.defer import CancelledError

from tsrv import (
    Closed,
    IllegalTransition,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    State,
)
from tsrv.aio import QueuingWrapper

from .support import Refused, Trouble
from .turning import TurningLoop

READY = (State.DRAINING, State.READY, State.PAUSED)
RUNS = (State.DRAINING, State.READY)

METHODS = ["read", "write", "plain", "future", "quick", "limited"]
WAYS = ["task", "task", "deadline", "group"]
DEADLINE_SECONDS = 2.0
CLOSE_TIMEOUT_SECONDS = 3.0

caller: ContextVar[int | None] = ContextVar("caller", default=None)


@dataclass(eq=False)
class Run:
    """
    One run of a module's method.
    """

    losses: int
    ending: asyncio.Future[None]
    isOver: bool = False


@dataclass(eq=False)
class Call:
    """
    One call, and the task that awaits it.

    @ivar gaveUp: Whether the task was cancelled.
    @ivar madeAt: The time of the call, when it was made.
    """

    number: int
    method: str
    way: str
    task: asyncio.Task[Any] | None = None
    gaveUp: bool = False
    madeAt: float | None = None
    runs: list[Run] = field(default_factory=list)


class Module:
    """
    A module whose coroutines obey the world.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    async def initialize(self) -> None:
        async with asyncio.timeout(60):
            await self.world.wait("attempts")

    async def close(self) -> None:
        async with asyncio.timeout(60):
            await self.world.wait("closings")

    async def read(self, number: int) -> Any:
        return await self.world.run(number)

    async def write(self, number: int) -> Any:
        return await self.world.run(number)

    def plain(self, number: int) -> Coroutine[Any, Any, Any]:
        return self.world.run(number)

    def future(self, number: int) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.world.goOn(self.world.begin(number), number))

    async def quick(self, number: int) -> Any:
        run = self.world.begin(number)
        run.isOver = True
        return number

    async def limited(self, number: int) -> Any:
        run = self.world.begin(number)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.world.goOn(run, number))
        return task.result()


class Losable(Module):
    """
    A module that also reports its loss.
    """

    async def whenLost(self) -> None:
        await self.world.lost.wait()


class World:
    """
    One wrapper on a loop, and a record of all events.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        self.loop = TurningLoop()
        self.problems: list[str] = []
        self.calls: list[Call] = []
        self.waits: dict[str, list[asyncio.Future[None]]] = {
            "attempts": [],
            "closings": [],
            "pings": [],
        }
        self.waiters: list[asyncio.Task[Any]] = []
        self.lastStarted: dict[int, int] = {}
        self.onCancel = "raise"
        self.timeout: float | None = options["timeout"]
        self.kind = kind

        def make() -> None:
            self.lost = asyncio.Event()
            more: dict[str, Any] = {}
            if kind == "pinged":
                more |= {"ping": lambda: self.wait("pings"), "pingInterval": 1.5}
            self.wrapper: QueuingWrapper[Any] = QueuingWrapper(
                Losable(self) if kind == "losable" else Module(self),
                replay=["read"],
                fatal=Refused,
                closeTimeout=CLOSE_TIMEOUT_SECONDS,
                retryPolicy=float,
                **more,
                **options,
            )

        self.loop.turn(make)

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(what)

    @property
    def losses(self) -> int:
        return self.wrapper.history.losses.count

    # The module's side.

    async def wait(self, what: str) -> None:
        self.check(asyncio.current_task() is not None, f"no task: {what}")
        self.check(caller.get() is None, f"the context of a call in {what}")
        if what == "attempts":
            self.lost = asyncio.Event()
        future = self.loop.create_future()
        self.waits[what].append(future)
        await future

    def end(self, what: str, error: type[Exception] | None) -> None:
        for future in self.waits[what]:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error(what))

    def begin(self, number: int) -> Run:
        """
        Begin a run of a method.
        """
        call, wrapper = self.calls[number], self.wrapper
        self.check(not call.gaveUp, f"call {number} starts after its caller gave up")
        self.check(caller.get() == number, f"call {number} lost its context")
        self.check(wrapper.state in RUNS, f"call {number} starts in {wrapper.state}")
        again = not call.runs or (
            call.method == "read" and call.runs[-1].losses < self.losses
        )
        self.check(again, f"call {number} runs twice")
        if call.madeAt is not None and call.way == "deadline":
            late = self.loop.time() - call.madeAt - DEADLINE_SECONDS
            self.check(late <= 0, f"call {number} starts {late} s after its deadline")
        last = self.lastStarted.get(self.losses, -1)
        self.check(last < number, f"call {number} starts after {last}")
        self.lastStarted[self.losses] = number
        run = Run(self.losses, self.loop.create_future())
        call.runs.append(run)
        return run

    async def run(self, number: int) -> Any:
        return await self.goOn(self.begin(number), number)

    async def goOn(self, run: Run, number: int) -> Any:
        self.check(asyncio.current_task() is not None, f"no task: call {number}")
        try:
            await run.ending
        except asyncio.CancelledError:
            how = self.onCancel
            if how == "slow":
                await asyncio.sleep(0.5)
            elif how == "fail":
                raise Trouble("cancelled") from None
            elif how == "refuse":
                return number
            raise
        finally:
            run.isOver = True
        return number

    # The callers' side.

    async def make(self, call: Call) -> Any:
        call.number = len(self.calls)
        self.calls.append(call)
        caller.set(call.number)
        call.madeAt = self.loop.time()
        method = getattr(self.wrapper.proxy, call.method)
        if call.way == "deadline":
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await method(call.number)
        return await method(call.number)

    def submit(self, method: str, way: str) -> None:
        call = Call(-1, method, "task" if way == "group" else way)
        if way != "group":
            call.task = self.loop.create_task(self.make(call))
            self.waiters.append(call.task)
            return
        sibling = Call(-1, "write", "sibling")

        async def together() -> None:
            async with asyncio.TaskGroup() as tasks:
                call.way = "sibling"
                call.task = tasks.create_task(self.make(call))
                sibling.task = tasks.create_task(self.make(sibling))

        self.waiters.append(self.loop.create_task(together()))

    def cancel(self, which: int) -> None:
        open_ = [task for task in self.waiters if not task.done()]
        if open_:
            task = open_[which % len(open_)]
            for call in self.calls:
                if call.task is task:
                    call.gaveUp = True
            task.cancel()

    def endCall(self, which: int, error: type[Exception] | None) -> None:
        runs = [run for call in self.calls for run in call.runs]
        open_ = [run for run in runs if not run.ending.done() and not run.isOver]
        if open_:
            ending = open_[which % len(open_)].ending
            if error is None:
                ending.set_result(None)
            else:
                ending.set_exception(error("call"))

    def operate(self, what: str) -> None:
        wrapper = self.wrapper
        operations: dict[str, Callable[[], Any]] = {
            "initialize": wrapper.initialize,
            "close": wrapper.close,
            "pause": wrapper.pause,
            "resume": wrapper.resume,
            "reset": lambda: wrapper.reset(Trouble("reset")),
            "fail": lambda: wrapper.fail(Trouble("given up")),
        }

        async def wait() -> None:
            waiter = operations[what]()
            if waiter is not None:
                await waiter

        self.waiters.append(self.loop.create_task(wait()))

    def act(self, act: tuple[Any, ...]) -> None:
        """
        Make one step.
        """
        name, *arguments = act
        if name == "lose":
            self.lost.set()
        elif name == "onCancel":
            (self.onCancel,) = arguments
        else:
            getattr(self, name)(*arguments)

    # The conditions that must hold.

    def checkAll(self) -> None:
        assert not self.problems, self.problems
        assert not self.loop.problems, self.loop.problems
        for task in self.waiters:
            if task.done() and not task.cancelled():
                self.checkEnd(task)
        for call in self.calls:
            if call.task is not None and call.task.done():
                self.checkCall(call, call.task)

    def checkEnd(self, task: asyncio.Task[Any]) -> None:
        """
        Check that everything that was awaited has ended with an error that tsrv or the
        test knows.
        """
        error = task.exception()
        for each in [] if error is None else leaves(error):
            assert isinstance(
                each,
                CancelledError
                | Closed
                | IllegalTransition
                | InitializationFailed
                | OutcomeUnknown
                | QueueFull
                | QueueTimeout
                | Refused
                | TimeoutError
                | Trouble,
            ), repr(each)

    def checkCall(self, call: Call, task: asyncio.Task[Any]) -> None:
        last = call.runs[-1] if call.runs else None
        # TaskGroup of the module has wrapped its error in a group.
        isGrouped = call.method == "limited" and last is not None
        if task.cancelled():
            assert call.gaveUp or call.way == "sibling"
            return
        error = task.exception()
        if error is not None and isGrouped:
            (error,) = leaves(error)
        if error is None:
            assert task.result() == call.number
            assert last is not None
            assert last.isOver
        elif isinstance(error, TimeoutError):
            assert call.way == "deadline"
            assert call.madeAt is not None
            assert self.loop.time() >= call.madeAt + DEADLINE_SECONDS
        elif isinstance(error, QueueTimeout):
            assert self.timeout is not None
            assert error.waited >= self.timeout - 1e-6
        elif isinstance(error, OutcomeUnknown):
            assert last is not None
            lost = last.losses < self.losses
            assert lost or self.wrapper.state in (State.CLOSING, State.CLOSED)
        elif isinstance(error, InitializationFailed):
            assert isinstance(error.__cause__, Refused | Trouble)
        elif isinstance(error, Trouble):
            assert last is not None
            assert last.isOver
        else:
            assert isinstance(error, QueueFull | Closed)

    def finish(self) -> None:
        """
        Close the wrapper: everything must end, and nothing be left.
        """
        self.loop.turn(lambda: self.operate("close"))
        self.loop.turn(lambda: self.end("closings", None))
        self.loop.advance(CLOSE_TIMEOUT_SECONDS + 1)
        assert self.wrapper.state is State.CLOSED
        assert self.wrapper.pending == 0
        # End the runs that only their callers await.
        self.onCancel = "raise"
        for _ in self.calls:
            self.loop.turn(lambda: self.endCall(0, None))
        self.loop.advance(1)
        self.checkAll()
        assert all(task.done() for task in self.waiters)
        left = asyncio.all_tasks(self.loop)
        assert not left, left
        assert self.loop.isEmpty

    def forget(self) -> None:
        """
        Drop references. An unhandled error is reported when nothing refers to its
        Deferred.
        """
        for task in self.waiters:
            if task.done() and not task.cancelled():
                task.exception()
        self.calls.clear()
        self.waiters.clear()
        self.waits.clear()
        gc.collect(1)
        self.loop.turn()
        self.loop.close()
        assert not self.loop.problems, self.loop.problems


def leaves(error: BaseException) -> list[BaseException]:
    """
    @return: The errors in an exception group, and in its nested groups.
    """
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in leaves(each)]


which = st.integers(0, 5)
errors = st.sampled_from([None, None, Trouble])

acts = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(METHODS), st.sampled_from(WAYS)),
    st.tuples(st.just("submit"), st.sampled_from(METHODS), st.sampled_from(WAYS)),
    st.tuples(st.just("cancel"), which),
    st.tuples(st.just("endCall"), which, errors),
    st.tuples(
        st.just("operate"),
        st.sampled_from(["initialize", "initialize", "pause", "resume", "reset"]),
    ),
    st.tuples(st.just("end"), st.just("attempts"), errors),
    st.tuples(st.just("end"), st.sampled_from(["closings", "pings"]), errors),
    st.tuples(st.just("lose")),
    st.tuples(
        st.just("onCancel"), st.sampled_from(["raise", "slow", "fail", "refuse"])
    ),
)


class Machine(RuleBasedStateMachine):
    """
    One wrapper on a loop.
    """

    @initialize(
        kind=st.sampled_from(["steady", "losable", "losable", "pinged"]),
        limit=st.sampled_from([2, 100]),
        timeout=st.sampled_from([None, 5.0]),
        concurrency=st.sampled_from([None, 2]),
        attemptTimeout=st.sampled_from([None, 2.0]),
        alwaysDeferred=st.booleans(),
    )
    def setUp(self, kind: str, **options: Any) -> None:
        self.world = World(kind, **options)

    @rule(many=st.lists(acts, min_size=1, max_size=5))
    def actInOneTurn(self, many: list[tuple[Any, ...]]) -> None:
        def turn() -> None:
            for act in many:
                self.world.act(act)

        self.world.loop.turn(turn)

    @rule(many=st.lists(acts, min_size=1, max_size=4))
    def actInTurns(self, many: list[tuple[Any, ...]]) -> None:
        for act in many:
            self.world.loop.turn(partial(self.world.act, act))

    @rule(
        early=st.lists(st.sampled_from(METHODS), max_size=3),
        many=st.lists(acts, max_size=3),
    )
    def becomeReady(self, early: list[str], many: list[tuple[Any, ...]]) -> None:
        world = self.world
        world.loop.turn(lambda: world.operate("initialize"))
        world.loop.turn(lambda: world.operate("resume"))
        for method in early:
            world.loop.turn(partial(world.submit, method, "task"))

        def turn() -> None:
            world.end("attempts", None)
            for act in many:
                world.act(act)

        world.loop.turn(turn)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 6.0]))
    def passTime(self, seconds: float) -> None:
        self.world.loop.advance(seconds)

    @precondition(lambda self: len(self.world.calls) > 8)
    @rule(what=st.sampled_from(["close", "fail"]))
    def endEarly(self, what: str) -> None:
        self.world.loop.turn(lambda: self.world.operate(what))

    @invariant()
    def everythingIsRight(self) -> None:
        self.world.checkAll()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            world = self.world
            try:
                world.finish()
            finally:
                world.forget()


def test_the_promise_is_kept_on_asyncio() -> None:
    """
    Every call ends exactly once, in order, with its result or the true reason, and
    leaves nothing on the loop.
    """
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(os.environ.get("TSRV_EXAMPLES", "300")),
            stateful_step_count=30,
            deadline=None,
            derandomize="TSRV_EXAMPLES" not in os.environ,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
