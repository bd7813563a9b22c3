"""
tsrv in programs that run on asyncio: there is no reactor, and tasks make the calls.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.logger import LogEvent

from tsrv import Closed, InitializationFailed, QueueTimeout, State
from tsrv.aio import QueuingWrapper, Startup
from tsrv.aio.looptime import LoopTime
from tsrv.startup import GraphError, StartupFailed, Status

from .loops import onLoop, settle
from .support import Trouble
from .turning import TurningLoop


class Client:
    """
    A client whose steps the test decides.
    """

    def __init__(self) -> None:
        self.starting: asyncio.Future[None] = asyncio.Future()
        self.calls: list[object] = []
        self.closed = False

    async def initialize(self) -> None:
        await self.starting

    async def get(self, key: object) -> object:
        self.calls.append(key)
        await asyncio.sleep(0)
        return key

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True


class AnyModule:
    """
    A module that needs no loop.
    """

    async def initialize(self) -> None: ...

    async def get(self) -> int:
        return 1


def started(client: Client) -> None:
    """
    Let the initialisation succeed.
    """
    client.starting.set_result(None)


# The wrapper.


@onLoop
async def test_calls_wait_and_run_in_order() -> None:
    """
    Calls run in order, whether they are made before the module is ready, during the
    drain, or afterwards.
    """
    client = Client()
    wrapper = QueuingWrapper(client)
    early = [wrapper.proxy.get(each) for each in range(3)]
    ready = wrapper.initialize()
    assert client.calls == []
    started(client)
    await ready
    late = await wrapper.proxy.get("late")
    assert await asyncio.gather(*early) == [0, 1, 2]
    assert client.calls == [0, 1, 2, "late"]
    assert late == "late"
    await wrapper.close()
    assert client.closed


@onLoop
async def test_a_ready_call_is_the_modules_own() -> None:
    """
    In READY the proxy has the module's own methods, so a call costs what a direct call
    costs.
    """
    client = Client()
    wrapper = QueuingWrapper(client)
    started(client)
    await wrapper.initialize()
    assert wrapper.proxy.get == client.get
    await wrapper.close()


@onLoop
async def test_a_module_may_return_deferreds() -> None:
    """
    With C{alwaysDeferred}, a task can await a method that returns a Deferred in every
    state, including READY.
    """

    class Deferring:
        async def initialize(self) -> None: ...

        def get(self) -> Deferred[str]:
            deferred: Deferred[str] = Deferred()
            asyncio.get_running_loop().call_soon(deferred.callback, "got")
            return deferred

    wrapper = QueuingWrapper(Deferring(), alwaysDeferred=True)
    early = wrapper.proxy.get()
    await wrapper.initialize()
    assert [await early, await wrapper.proxy.get()] == ["got", "got"]
    await wrapper.close()


@onLoop
async def test_a_future_of_another_loop_is_refused() -> None:
    """
    A future of another loop is refused as in any task, since nothing would ever finish
    it.
    """
    other = asyncio.new_event_loop()

    class Foreign:
        async def initialize(self) -> None: ...

        def get(self) -> asyncio.Future[None]:
            return other.create_future()

    wrapper = QueuingWrapper(Foreign())
    early = wrapper.proxy.get()
    await wrapper.initialize()
    with pytest.raises(RuntimeError, match="attached to a different loop"):
        await asyncio.wait_for(early, 5)
    await wrapper.close()
    other.close()


@onLoop
async def test_a_cancelled_call_is_never_started() -> None:
    """
    A queued call that its task or a time limit cancels is never started.
    """
    client = Client()
    wrapper = QueuingWrapper(client)
    wrapper.initialize()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await wrapper.proxy.get("limited")
    task = asyncio.ensure_future(wrapper.proxy.get("cancelled"))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    started(client)
    assert await wrapper.proxy.get("kept") == "kept"
    assert client.calls == ["kept"]
    await wrapper.close()


@onLoop
async def test_a_queued_call_ends_with_the_reason() -> None:
    """
    A queued call fails with the reason: it has expired, no retry helps, or the wrapper
    was closed.
    """
    client = Client()
    wrapper = QueuingWrapper(client, timeout=10, fatal=Trouble)
    wrapper.initialize().addErrback(lambda _: None)
    with pytest.raises(QueueTimeout):
        await wrapper.proxy.get("expired")
    client.starting.set_exception(Trouble("wrong password"))
    with pytest.raises(InitializationFailed) as caught:
        await wrapper.proxy.get("refused")
    assert isinstance(caught.value.__cause__, Trouble)
    await wrapper.close()
    with pytest.raises(Closed):
        await wrapper.proxy.get("late")


@onLoop
async def test_attempts_are_repeated() -> None:
    """
    Attempts are repeated with the delays of the retry policy, in the time of the loop.
    """
    attempts = []

    async def initialize() -> None:
        attempts.append(asyncio.current_task())
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        if len(attempts) < 3:
            raise Trouble("not yet")

    wrapper = QueuingWrapper(Client(), initialize=initialize, retryPolicy=lambda _: 1)
    await wrapper.initialize()
    assert len(attempts) == 3
    assert None not in attempts
    await wrapper.close()


@onLoop
async def test_a_lost_module_is_initialised_again() -> None:
    """
    A failed ping is a loss: the module is initialised again, and a read in progress is
    repeated.
    """
    client = Client()
    pings: list[asyncio.Future[None]] = []

    def ping() -> asyncio.Future[None]:
        pings.append(asyncio.Future())
        return pings[-1]

    started(client)
    wrapper = QueuingWrapper(
        client,
        ping=ping,
        pingInterval=30,
        replay=["get"],
        retryPolicy=lambda _: 1,
    )
    await wrapper.initialize()
    while not pings:
        await asyncio.sleep(1)
    call = wrapper.proxy.get("read")
    pings[0].set_exception(Trouble("gone"))
    assert await call == "read"
    assert await wrapper.proxy.get("again") == "again"
    assert wrapper.history.losses.count == 1
    await wrapper.close()


@onLoop
async def test_nothing_waits_for_the_loss_of_a_closed_module() -> None:
    """
    A coroutine that waits for a loss is cancelled when its module is closed, and so is
    the coroutine of an earlier attempt. A future belongs to the module, and is not
    cancelled.
    """
    client = Client()
    started(client)
    future: asyncio.Future[None] = asyncio.Future()
    ended: list[BaseException] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            ended.append(error)
            raise

    answers = iter([wait, wait, lambda: future])

    def whenLost() -> object:
        return next(answers)()

    wrapper = QueuingWrapper(client, whenLost=whenLost)
    await wrapper.initialize()
    for count in range(1, 3):
        wrapper.reset(Trouble())
        await wrapper.initialize()
        await settle()
        assert len(ended) == count
    await wrapper.close()
    assert not future.done()


@onLoop
async def test_a_call_makes_a_task_in_every_state() -> None:
    """
    C{asyncio.create_task()} takes a call in every state. A task that is cancelled
    before its first step gives up its call.
    """
    client = Client()
    wrapper = QueuingWrapper(client)
    ready: asyncio.Task[None]
    ready = asyncio.create_task(wrapper.initialize())  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        queued = tasks.create_task(wrapper.proxy.get("queued"))
        cancelled = tasks.create_task(wrapper.proxy.get("cancelled"))
        cancelled.cancel()
        limited = asyncio.create_task(wrapper.proxy.get("limited"))
        await settle()
        limited.cancel()
        started(client)
        await ready
    await asyncio.create_task(wrapper.initialize())  # type: ignore[arg-type]
    direct = asyncio.create_task(wrapper.proxy.get("direct"))
    assert await asyncio.wait_for(direct, 60) == "direct"
    assert queued.result() == "queued"
    assert cancelled.cancelled()
    assert limited.cancelled()
    assert client.calls == ["queued", "direct"]
    await wrapper.close()


# A program of several modules.


@onLoop
async def test_a_program_runs_in_a_context() -> None:
    """
    Entering a program waits for nothing; calls wait. Leaving it closes the modules,
    dependents first.
    """
    closed: list[str] = []

    class Named(Client):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        async def close(self) -> None:
            closed.append(self.name)

    first, second = Named("first"), Named("second")
    program = Startup()
    program.add("second", second, needs=["first"])
    program.add("first", first)
    async with program as entered:
        assert entered is program
        assert program.status is Status.STARTING
        call = program.wrappers["second"].proxy.get("early")
        started(first)
        started(second)
        await program.whenReady()
        assert await call == "early"
    assert closed == ["second", "first"]
    assert program.status is Status.STOPPED


@onLoop
async def test_a_required_module_that_fails_ends_the_program() -> None:
    """
    A required module that fails for good cancels the body of the C{async with}, and the
    error names the module. The task itself may continue.
    """
    client = Client()
    program = Startup()
    program.add("database", client, fatal=Trouble)
    reached = []

    async def run() -> None:
        async with program:
            client.starting.set_exception(Trouble("wrong password"))
            await asyncio.sleep(60)
            reached.append(True)

    with pytest.raises(StartupFailed, match="database is required") as caught:
        await run()
    assert reached == []
    assert isinstance(caught.value.__cause__, Trouble)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


@onLoop
async def test_a_body_that_ends_at_the_same_time_gets_the_failure() -> None:
    """
    If the body ends at the same moment, its task still gets the error, and the pending
    cancellation does not interrupt the shutdown.
    """
    client = Client()
    program = Startup()
    program.add("database", client, fatal=Trouble)
    with pytest.raises(StartupFailed):
        async with program:
            program.wrappers["database"].fail(Trouble("given up"))
    assert program.status is Status.STOPPED


@onLoop
async def test_the_failure_of_the_program_replaces_those_of_calls() -> None:
    """
    Calls that fail in a C{TaskGroup} because of a failed module are replaced by the
    error of the program.
    """
    client = Client()
    program = Startup()
    proxy = program.add("database", client, fatal=Trouble).proxy

    async def run() -> None:
        async with program, asyncio.TaskGroup() as tasks:
            tasks.create_task(proxy.get("queued"))
            await settle()
            client.starting.set_exception(Trouble("wrong password"))

    with pytest.raises(StartupFailed):
        await run()


@onLoop
async def test_a_failure_is_raised_where_the_body_was_not_cancelled() -> None:
    """
    The failure is raised also if the body is a generator of a framework, whose task
    waits elsewhere and is not the one that was cancelled.
    """
    client = Client()
    program = Startup()
    program.add("database", client, fatal=Trouble)

    async def modules() -> AsyncIterator[None]:
        async with program:
            yield

    context = modules()
    await anext(context)
    client.starting.set_exception(Trouble("wrong password"))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(60)
    with pytest.raises(StartupFailed):
        await anext(context)


@onLoop
async def test_a_cancellation_is_not_lost_beside_a_failure() -> None:
    """
    If a program fails while its task is cancelled, the cancellation is raised. If the
    body raises an error, that error is raised.
    """

    async def run(program: Startup, error: Exception | None) -> None:
        async with program:
            program.wrappers["database"].fail(Trouble("given up"))
            task.cancel()
            if error is not None:
                raise error

    for error, expected in [
        (None, asyncio.CancelledError),
        (Trouble("mine"), Trouble),
    ]:
        program = Startup()
        program.add("database", Client())
        task = asyncio.create_task(run(program, error))
        with pytest.raises(expected):
            await task
        assert program.status is Status.STOPPED


@onLoop
async def test_modules_may_be_added_inside() -> None:
    """
    Modules may be added inside C{async with Startup() as program:}, until the first
    C{await}.
    """
    client = Client()
    started(client)
    async with Startup() as program:
        program.add("cache", Client(), needs=["client"])
        proxy = program.add("client", client).proxy
        assert await proxy.get("inside") == "inside"
        with pytest.raises(RuntimeError, match="'late' was added after"):
            program.add("late", Client())
    assert client.closed
    async with Startup() as program:
        pass
    assert program.status is Status.STOPPED


@onLoop
async def test_a_cycle_of_modules_that_are_added_inside_ends_the_program() -> None:
    """
    A cycle among modules that are added inside ends the program: the C{async with}
    raises the error.
    """

    async def run() -> None:
        async with Startup() as program:
            program.add("first", Client(), needs=["second"])
            program.add("second", Client(), needs=["first"])
            await asyncio.sleep(60)

    with pytest.raises(GraphError, match="first → second"):
        await run()
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


@onLoop
async def test_a_program_is_entered_once() -> None:
    """
    Entering a program a second time is an error, and affects nothing else.
    """
    client = Client()
    started(client)
    program = Startup()
    program.add("database", client)
    async with program:
        with pytest.raises(RuntimeError, match="only once"):
            await program.__aenter__()
        await program.whenReady()
    with pytest.raises(RuntimeError, match="only once"):
        await program.__aenter__()


def test_asyncio_is_needed() -> None:
    """
    Without asyncio, a call that has to wait raises an error.
    """
    with pytest.raises(RuntimeError, match="needs a running event loop"):
        _ = QueuingWrapper(AnyModule()).proxy.get()


@onLoop
async def test_the_error_of_the_body_is_its_own() -> None:
    """
    An error of the body is raised unchanged, and the modules are closed.
    """
    client = Client()
    started(client)
    program = Startup()
    program.add("database", client)

    async def run() -> None:
        async with program:
            await program.whenReady()
            raise Trouble("mine")

    with pytest.raises(Trouble, match="mine"):
        await run()
    assert client.closed


@onLoop
async def test_a_cancelled_program_closes_its_modules() -> None:
    """
    A cancelled program closes its modules. Cancelling its task is not a failure of a
    module.
    """
    client = Client()
    started(client)
    program = Startup()
    program.add("database", client)

    async def run() -> None:
        async with program:
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.closed


@onLoop
async def test_a_program_may_stay_up() -> None:
    """
    A program with C{stayUp} continues after a failure, so that it can report it.
    """
    client = Client()
    program = Startup(stayUp=True)
    program.add("database", client, fatal=Trouble)
    async with program:
        client.starting.set_exception(Trouble("wrong password"))
        await settle()
        assert program.status is Status.FAILED


# Time, log and imports.


@onLoop
async def test_a_report_has_the_date_of_the_start() -> None:
    """
    The report says on which day and at what time the start-up began.
    """
    program = Startup()
    program.add("any", AnyModule())
    earliest = datetime.now(UTC) - timedelta(milliseconds=1)
    async with program:
        latest = datetime.now(UTC)
        began = program.report()["began"]
    assert began is not None
    assert earliest <= datetime.fromisoformat(began) <= latest


@onLoop
async def test_timers_are_those_of_an_interface() -> None:
    """
    A timer can be cancelled and moved until it fires.
    """
    time = LoopTime()
    calls: list[object] = []
    began = time.seconds()
    moved = time.callLater(60, calls.append, "moved")
    cancelled = time.callLater(0, calls.append, "cancelled")
    assert moved.active()
    assert began + 60 <= moved.getTime() <= time.seconds() + 60
    moved.delay(60)
    assert moved.getTime() >= began + 120
    moved.reset(0)
    cancelled.cancel()
    await asyncio.sleep(1)
    assert calls == ["moved"]
    assert not moved.active()
    with pytest.raises(AlreadyCalled):
        moved.cancel()
    with pytest.raises(AlreadyCancelled):
        cancelled.reset(1)


@onLoop
async def test_the_log_goes_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    """
    The log reaches C{logging} with the names of the loggers, the levels, and the
    traceback of a programming error.
    """
    client = Client()
    wrapper = QueuingWrapper(client, name="database", fatal=Trouble)
    wrapper.initialize().addErrback(lambda _: None)
    with caplog.at_level(logging.INFO):
        client.starting.set_exception(Trouble("100% wrong"))
        await settle()
    (record,) = [each for each in caplog.records if each.name == "tsrv.wrapper"]
    assert record.levelname == "ERROR"
    assert "database: failed for good (Trouble: 100% wrong)" in record.getMessage()
    await wrapper.close()
    assert wrapper.state is State.CLOSED


@onLoop
async def test_an_error_that_nobody_awaits_is_logged_once(
    caplog: pytest.LogCaptureFixture, loggedFailures: list[LogEvent]
) -> None:
    """
    An error that nobody awaits is logged once; an error that was awaited, or logged
    before, is not logged again.
    """
    wrapper: Any = QueuingWrapper(Client(), fatal=Trouble, name="database")
    wrapper.initialize()
    for _ in range(2):
        wrapper.proxy.get("queued")
    with pytest.raises(InitializationFailed):
        await asyncio.gather(wrapper.proxy.get("awaited"), failing(wrapper))
    gc.collect()
    records = [each for each in caplog.records if each.exc_info is not None]
    assert [each.getMessage() for each in records] == ["an error was never awaited"] * 2
    assert len(loggedFailures) == 2
    loggedFailures.clear()
    await wrapper.close()


async def failing(wrapper: QueuingWrapper[Client]) -> None:
    """
    Let the initialisation fail for good.
    """
    wrapper.module.starting.set_exception(Trouble("wrong password"))


def test_no_reactor_is_imported() -> None:
    """
    Neither importing nor using C{tsrv.aio} imports a reactor.
    """
    program = """
import asyncio, sys
from tsrv.aio import QueuingWrapper, Startup

class Module:
    async def initialize(self): await asyncio.sleep(0)
    async def get(self): return 1

async def main():
    async with Startup() as program:
        pass
    wrapper = QueuingWrapper(Module())
    call = wrapper.proxy.get()
    await wrapper.initialize()
    assert await call == 1
    await wrapper.close()

asyncio.run(main())
assert not [name for name in sys.modules if name.endswith("reactor")], sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603


def test_a_module_may_be_wrapped_before_the_loop_runs() -> None:
    """
    A module may be wrapped before the loop runs, as programs do at import. A call needs
    the loop, and its error says so.
    """

    wrapper: Any = QueuingWrapper(AnyModule())

    async def main() -> None:
        await wrapper.initialize()
        assert await wrapper.proxy.get() == 1
        await wrapper.close()

    asyncio.run(main())


def test_a_wrapper_belongs_to_one_loop() -> None:
    """
    A wrapper belongs to one loop: using it in another thread, under a later loop or
    without a loop is an error, and changes nothing. For calls, only the thread is
    checked.
    """
    wrapper: Any = None

    async def make() -> None:
        nonlocal wrapper
        wrapper = QueuingWrapper(Client())
        wrapper.proxy.get("queued")
        with pytest.raises(RuntimeError, match="call_soon_threadsafe"):
            await asyncio.to_thread(wrapper.proxy.get, "thread")

    async def use() -> None:
        for use in (wrapper.pause, wrapper.reset, wrapper.fail):
            with pytest.raises(RuntimeError, match="outside of the event loop"):
                use(Trouble())

    asyncio.run(make())
    asyncio.run(use())
    with pytest.raises(RuntimeError, match=r"initialize\(\) was called outside"):
        wrapper.initialize()
    assert (wrapper.state, wrapper.pending) == (State.NEW, 1)


def test_time_is_that_of_the_loop() -> None:
    """
    Time is the time of the loop, also if the loop has a clock of its own.
    """
    loop = TurningLoop()

    async def expire() -> float:
        wrapper = QueuingWrapper(Client(), timeout=10)
        with pytest.raises(QueueTimeout) as caught:
            await wrapper.proxy.get("expired")
        await wrapper.close()
        return caught.value.waited

    task = loop.create_task(expire())
    loop.advance(9.9)
    assert not task.done()
    loop.advance(0.1)
    assert task.result() == 10
    assert loop.isEmpty
    loop.close()
