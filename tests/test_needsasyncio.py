"""
A module that needs asyncio fails under other reactors at its first attempt, with one
clear error.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
import redis.asyncio
from twisted.internet.defer import Deferred, succeed
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import Clock

from tsrv import InitializationFailed, QueuingWrapper, Startup, State
from tsrv.queuing.needsasyncio import NeedsAsyncio

from .processes import run
from .support import Trouble, resultOf

# The loop that is made and never runs, and its pending work.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is no current event loop"),
    pytest.mark.filterwarnings("ignore:.*was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def noLoop() -> Any:
    """
    Close the loop that asyncio creates on demand.
    """
    yield
    policy = asyncio.get_event_loop_policy()
    loop = getattr(getattr(policy, "_local", None), "_loop", None)
    if loop is not None:
        loop.close()
    asyncio.set_event_loop(None)


async def _awaitFuture() -> None:
    await asyncio.new_event_loop().create_future()


async def _limitTime() -> None:
    async with asyncio.timeout(1):
        pass


async def _waitInQueue() -> None:
    await asyncio.Queue[None]().get()


async def _group() -> None:
    async with asyncio.TaskGroup():
        pass


async def _createTask() -> None:
    asyncio.get_running_loop().create_task(anyio.sleep(1))


def _createTaskAtOnce() -> None:
    asyncio.get_running_loop()


async def _wrapError() -> None:
    try:
        await anyio.sleep(1)
    except Exception as error:
        raise ConnectionError("cannot connect") from error


async def _awaitDeferredFirst() -> None:
    await succeed(None)
    await asyncio.sleep(1)


async def _connectToRedis() -> None:
    await redis.asyncio.Redis().ping()


async def _connectToPostgreSQL() -> None:
    await asyncpg.connect("postgresql://127.0.0.1:1/")


everyNeed = pytest.mark.parametrize(
    "need",
    [
        _awaitFuture,
        _limitTime,
        _waitInQueue,
        _group,
        _createTask,
        _createTaskAtOnce,
        _wrapError,
        _awaitDeferredFirst,
        _connectToRedis,
        _connectToPostgreSQL,
    ],
)


class Module:
    """
    A module whose methods are given.
    """

    def __init__(self, **methods: Callable[[], object]) -> None:
        for name, method in methods.items():
            setattr(self, name, method)

    def initialize(self) -> object: ...


@everyNeed
def test_initialize_fails_at_the_first_attempt(
    need: Callable[[], object], clock: Clock
) -> None:
    """
    Queued calls and waiters get one error, whose cause says how to run the program.
    """
    wrapper = QueuingWrapper(Module(), clock, initialize=need)
    failed = resultOf(wrapper.initialize())
    assert isinstance(failed.error, InitializationFailed)
    assert isinstance(failed.error.__cause__, NeedsAsyncio)
    assert "twistd --reactor=asyncio" in str(failed.error.__cause__)
    assert wrapper.state is State.FAILED
    assert wrapper.history.attempts.count == 1


@everyNeed
def test_a_call_fails_with_the_same_error(
    need: Callable[[], Awaitable[None]], clock: Clock
) -> None:
    """
    A call that needs asyncio fails with the same error, queued or not, if only calls
    need it.
    """
    if need is _createTaskAtOnce:
        pytest.skip("an error of a plain method is raised for its caller")
    module: Any = Module(get=need)
    wrapper = QueuingWrapper[Any](module, clock)
    early = resultOf(wrapper.proxy.get())
    wrapper.initialize()
    late = resultOf(wrapper.proxy.get())
    assert isinstance(early.error, NeedsAsyncio)
    assert isinstance(late.error, NeedsAsyncio)
    assert wrapper.state is State.READY


@everyNeed
def test_a_watch_fails_the_attempt(need: Callable[[], object], clock: Clock) -> None:
    """
    If whenLost() needs asyncio, the attempt fails, and the module is never ready.
    """
    wrapper = QueuingWrapper(Module(), clock, whenLost=need)
    failed = resultOf(wrapper.initialize())
    assert isinstance(failed.error, InitializationFailed)
    assert isinstance(wrapper.lastError, NeedsAsyncio)
    assert wrapper.history.losses.count == 0


def test_a_watch_that_fails_later_is_not_begun_again(clock: Clock) -> None:
    """
    If a C{whenLost()} coroutine needs asyncio only after a Deferred has fired, the
    module fails and is not initialised again.
    """
    first: Deferred[None] = Deferred()

    async def whenLost() -> None:
        await first
        await asyncio.sleep(1)

    wrapper = QueuingWrapper(Module(), clock, whenLost=whenLost)
    wrapper.initialize()
    first.callback(None)
    assert wrapper.state is State.FAILED
    assert isinstance(wrapper.lastError, NeedsAsyncio)


@everyNeed
def test_a_ping_fails_the_module(need: Callable[[], object], clock: Clock) -> None:
    """
    If ping() needs asyncio, the module is closed, and not initialised again.
    """
    closed: list[bool] = []
    module = Module(close=lambda: closed.append(True))
    wrapper = QueuingWrapper(module, clock, ping=need, pingInterval=1.0)
    wrapper.initialize()
    clock.advance(1)
    assert wrapper.state is State.FAILED
    assert isinstance(wrapper.lastError, NeedsAsyncio)
    assert closed == [True]
    assert clock.getDelayedCalls() == []


@everyNeed
def test_closing_fails_with_the_same_error(
    need: Callable[[], object], clock: Clock
) -> None:
    """
    If close() needs asyncio it fails with the same error, and the wrapper is closed.
    """
    wrapper = QueuingWrapper(Module(), clock, close=need)
    wrapper.initialize()
    assert isinstance(resultOf(wrapper.close()).error, NeedsAsyncio)
    assert wrapper.state is State.CLOSED


def _probe() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # This client falls back to another way without asyncio.
        raise ConnectionRefusedError("refused") from None


def _probeLoudly() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConnectionRefusedError("refused")  # noqa: B904


class _OwnError(RuntimeError): ...


class _Unprintable(RuntimeError):
    def __str__(self) -> str:
        raise Trouble("unprintable")


def _fails(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _circle() -> None:
    error = Trouble("its own cause")
    error.__cause__ = error
    raise error


@pytest.mark.parametrize(
    "initialize",
    [
        _probe,
        _probeLoudly,
        _circle,
        _fails(RuntimeError("no running event loop in the broker")),
        _fails(RuntimeError("broker: no running event loop")),
        _fails(_OwnError("no running event loop")),
        _fails(ValueError("await wasn't used with future")),
        _fails(_Unprintable()),
    ],
)
def test_other_errors_are_retried(
    initialize: Callable[[], object], clock: Clock
) -> None:
    """
    A similar error, and the error of a module that can do without a loop, are retried.
    """
    wrapper = QueuingWrapper(Module(), clock, initialize=initialize)
    wrapper.initialize().addErrback(lambda _: None)
    assert wrapper.state is State.RETRYING
    wrapper.close()


def test_a_future_that_nothing_can_finish_is_refused() -> None:
    """
    A future under a reactor that is not asyncio's is refused: without the error, the
    test would hang.
    """
    reactor: Any = EPollReactor()
    made: list[Any] = []

    def initialize() -> object:
        made.append(asyncio.new_event_loop().create_future())
        return made[0]

    wrapper = QueuingWrapper(Module(), reactor, initialize=initialize)
    failed = resultOf(wrapper.initialize())
    assert isinstance(failed.error, InitializationFailed)
    assert isinstance(wrapper.lastError, NeedsAsyncio)
    assert made[0].cancelled()


def test_a_start_up_stops_the_program(clock: Clock) -> None:
    """
    A start-up stops the program with status 1, and does not retry the module.
    """
    statuses: list[int] = []
    startup = Startup(clock, stopProgram=statuses.append)
    startup.add("client", Module(initialize=_awaitFuture))
    startup.startService()
    clock.advance(0)
    assert statuses == [1]
    startup.stopService()


PROGRAM = """
import asyncio
from twisted.application.service import Application
from tsrv import Startup
from twisted.internet import reactor

class Client:
    async def initialize(self):
        await asyncio.sleep(1)

startup = Startup(reactor)
startup.add("client", Client())
application = Application("program")
startup.setServiceParent(application)
"""


def test_a_program_ends_with_one_line(tmp_path: Path) -> None:
    """
    Under C{twistd} the program exits with status 1, and the log says once what to do.
    """
    (tmp_path / "program.py").write_text(PROGRAM)
    output = run(
        Path(sys.executable).parent / "twistd",
        "-ny",
        tmp_path / "program.py",
        "--rundir",
        tmp_path,
        status=1,
    )
    lines = [line for line in output.splitlines() if "asyncio" in line]
    assert len(lines) == 1, output
    assert "this module needs asyncio" in lines[0]
    assert "twistd --reactor=asyncio" in lines[0]
    assert "Traceback" not in output
