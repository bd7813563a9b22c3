"""
Clients made for asyncio, in programs that run on Twisted's asyncio reactor. The caller
is a task, or a coroutine of Twisted.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import deferLater

from tsrv import Closed, InitializationFailed, OutcomeUnknown, QueuingWrapper, State
from tsrv.queuing.tasks import runCoroutine

from .loops import asFuture, settle
from .processes import run
from .support import Trouble

# A reactor has no public way to close the sockets that wake it up.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"
    ),
]

current: ContextVar[str] = ContextVar("current", default="nobody")

_Test = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture
def reactor() -> Iterator[Any]:
    """
    A reactor of its own for this test.
    """
    loop = asyncio.new_event_loop()
    yield AsyncioSelectorReactor(loop)
    loop.close()


def onReactor(test: _Test) -> Callable[..., None]:
    """
    Run a test in a task of its own reactor. No other task and no delayed call may be
    left when the test ends.
    """

    @wraps(test)
    def runIt(reactor: Any, **fixtures: Any) -> None:
        tasks: list[asyncio.Task[None]] = []

        async def main() -> None:
            try:
                async with asyncio.timeout(60):
                    await test(reactor, **fixtures)
                await settle()
                assert asyncio.all_tasks() == {asyncio.current_task()}
                assert reactor.getDelayedCalls() == []
            finally:
                reactor.stop()

        def begin() -> None:
            tasks.append(asyncio.get_running_loop().create_task(main()))

        # The loop runs only after the start of the reactor.
        reactor.callLater(0, begin)
        reactor.run(installSignalHandlers=False)
        tasks[0].result()

    return runIt


class Client:
    """
    A client with methods of every kind, whose steps the test decides.

    @ivar starts: The numbers of the calls, in the order of their starts.
    @ivar outcome: Ends the next attempts.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closing: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """
        Let attempts succeed.
        """
        if not self.outcome.done():
            self.outcome.set_result(None)

    async def initialize(self) -> None:
        async with asyncio.timeout(60):
            await asyncio.shield(self.outcome)
        self.lost = asyncio.get_running_loop().create_future()

    def whenLost(self) -> Awaitable[None]:
        return self.lost

    async def close(self) -> None:
        if self.closing is not None:
            await self.closing

    def plain(self, number: int) -> int:
        self.starts.append(number)
        return number

    def deferred(self, number: int) -> Deferred[int]:
        self.starts.append(number)
        fires: Deferred[int] = Deferred()
        asyncio.get_running_loop().call_soon(fires.callback, number)
        return fires

    def fired(self, number: int) -> Deferred[int]:
        self.starts.append(number)
        return succeed(number)

    async def coroutine(self, number: int) -> int:
        self.starts.append(number)
        await asyncio.sleep(0)
        return number

    async def mixed(self, number: int) -> int:
        self.starts.append(number)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        return await succeed(number) + await asyncio.sleep(0, 0)

    def future(self, number: int) -> Awaitable[int]:
        self.starts.append(number)
        return asyncio.ensure_future(asyncio.sleep(0, number))

    def gathered(self, number: int) -> Awaitable[object]:
        self.starts.append(number)
        return asyncio.gather(asyncio.sleep(0, number))

    async def fail(self, number: int) -> None:
        self.starts.append(number)
        await asyncio.sleep(0)
        raise Trouble(str(number))

    async def never(self, number: int) -> None:
        self.starts.append(number)
        await asyncio.get_running_loop().create_future()


KINDS = ["plain", "deferred", "fired", "coroutine", "mixed", "future"]


def wrap(reactor: Any, **options: Any) -> tuple[Any, QueuingWrapper[Any]]:
    """
    @return: A client, and its wrapper.
    """
    client = Client()
    options.setdefault("retryPolicy", lambda _: 0.0)
    return client, QueuingWrapper(client, reactor, alwaysDeferred=True, **options)


# Ways to await a call.


async def inTask(result: Any) -> Any:
    """
    Await in the task of the test.
    """
    return await result


async def inTwisted(result: Any) -> Any:
    """
    Await in a coroutine that Twisted drives.
    """
    return await asFuture(Deferred.fromCoroutine(inTask(result)))


async def asItsFuture(result: Any) -> Any:
    """
    Await in a task, through C{asFuture()}.
    """
    return await result.asFuture(asyncio.get_running_loop())


async def inAnotherModule(result: Any) -> Any:
    """
    Await in the coroutine of a module.
    """
    return await asFuture(runCoroutine(inTask(result)))


everywhere = pytest.mark.parametrize(
    "wait", [inTask, inTwisted, asItsFuture, inAnotherModule]
)


async def reach(client: Any, wrapper: QueuingWrapper[Any], state: State) -> None:
    """
    Bring a wrapper into a state.
    """
    if state is State.NEW:
        return
    begun = wrapper.initialize()
    begun.addErrback(lambda _: None)
    if state is State.RETRYING:
        client.outcome.set_exception(Trouble("attempt"))
        await settle()
        client.outcome = asyncio.get_running_loop().create_future()
    elif state is State.FAILED:
        wrapper.fail(Trouble("given up"))
    elif state is not State.INITIALIZING:
        client.begin()
        await begun
        await settle()
    if state is State.PAUSED:
        wrapper.pause()
    elif state is State.LOST:
        client.outcome = asyncio.get_running_loop().create_future()
        client.lost.set_result(None)
        await settle()
    elif state in (State.CLOSING, State.CLOSED):
        if state is State.CLOSING:
            client.closing = asyncio.get_running_loop().create_future()
        wrapper.close()
        await settle()


async def goOn(client: Any, wrapper: QueuingWrapper[Any]) -> None:
    """
    Let the queued calls run.
    """
    if wrapper.state is State.NEW:
        wrapper.initialize()
    client.begin()
    if wrapper.state in (State.RETRYING, State.LOST):
        wrapper.reset(Trouble("not later"))
    wrapper.resume()


async def shut(client: Any, wrapper: QueuingWrapper[Any]) -> None:
    """
    Close a wrapper, and everything that the test has begun.
    """
    if client.closing is not None:
        client.closing.set_result(None)
    await wrapper.close()
    client.outcome.cancel()


refused = {
    State.FAILED: InitializationFailed,
    State.CLOSING: Closed,
    State.CLOSED: Closed,
}


@everywhere
@pytest.mark.parametrize(
    "state", [each for each in State if each is not State.DRAINING]
)
@onReactor
async def test_a_call_is_awaited_in_every_state(
    reactor: Any, state: State, wait: Callable[[Any], Awaitable[Any]]
) -> None:
    """
    A call can be awaited in every state, by a task or a coroutine of Twisted, whatever
    the method returns: the caller gets the result, or the reason.
    """
    for kind in [*KINDS, "gathered", "fail"]:
        client, wrapper = wrap(reactor, retryPolicy=lambda _: 60.0)
        await reach(client, wrapper, state)
        assert wrapper.state is state
        waiting = asyncio.ensure_future(wait(getattr(wrapper.proxy, kind)(7)))
        await settle()
        if state in refused:
            with pytest.raises(refused[state]):
                await waiting
            assert client.starts == []
        else:
            await goOn(client, wrapper)
            if kind == "fail":
                with pytest.raises(Trouble, match="7"):
                    await waiting
            else:
                assert await waiting == ([7] if kind == "gathered" else 7)
            assert client.starts == [7]
        await shut(client, wrapper)


@pytest.mark.parametrize("replay", [(), KINDS])
@onReactor
async def test_calls_start_in_order(reactor: Any, replay: list[str]) -> None:
    """
    Calls of every kind of method start in the order in which they were made: before the
    drain, during it (also by the module itself) and afterwards.
    """
    client, wrapper = wrap(reactor, replay=replay)
    calls: list[Any] = []
    numbers = count()

    def call() -> None:
        for kind in KINDS:
            calls.append(getattr(wrapper.proxy, kind)(next(numbers)))

    original = client.coroutine

    async def coroutine(number: int) -> Any:
        if number < 20:
            call()
        return await original(number)

    client.coroutine = coroutine
    call()

    def callAgain(result: object) -> object:
        call()
        return result

    calls[0].addCallback(callAgain)
    wrapper.initialize()
    call()
    client.begin()
    for _ in range(20):
        await asyncio.sleep(0)
        call()
    assert wrapper.state is State.READY
    results = await asyncio.gather(*calls)
    while len(results) < len(calls):
        results += await asyncio.gather(*calls[len(results) :])
    assert sorted(results) == list(range(len(calls)))
    assert client.starts == list(range(len(calls)))
    await shut(client, wrapper)


# Giving up.


@everywhere
@onReactor
async def test_a_queued_call_of_a_cancelled_task_is_never_started(
    reactor: Any, wait: Callable[[Any], Awaitable[Any]]
) -> None:
    """
    A queued call of a cancelled task leaves the queue at once, and is never started.
    """
    client, wrapper = wrap(reactor)
    waiting = asyncio.ensure_future(wait(wrapper.proxy.coroutine(1)))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert wrapper.pending == 0
    await goOn(client, wrapper)
    assert await wrapper.proxy.coroutine(2) == 2
    assert client.starts == [2]
    await shut(client, wrapper)


@everywhere
@pytest.mark.parametrize("isQueued", [True, False])
@onReactor
async def test_a_cancelled_caller_cancels_the_task_of_the_module(
    reactor: Any, isQueued: bool, wait: Callable[[Any], Awaitable[Any]]
) -> None:
    """
    Cancelling a caller cancels the task of the module. A task that calls the proxy
    waits until the module has cleaned up.
    """
    client, wrapper = wrap(reactor)
    steps: list[str] = []
    cleanedUp = asyncio.Event()

    async def never(_: int) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            steps.append("cancelled")
            await deferLater(reactor, 0.001)
            steps.append("cleaned up")
            cleanedUp.set()
            raise

    client.never = never
    if not isQueued:
        await reach(client, wrapper, State.READY)
    waiting = asyncio.ensure_future(wait(wrapper.proxy.never(1)))
    await goOn(client, wrapper)
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if wait is not inTask:
        # A future does not wait for the cleanup.
        await cleanedUp.wait()
    assert steps == ["cancelled", "cleaned up"]
    await shut(client, wrapper)


@onReactor
async def test_closing_cancels_the_tasks_that_nobody_waits_for(reactor: Any) -> None:
    """
    Closing cancels tasks of the module that nobody waits for; their calls end with
    C{OutcomeUnknown}.
    """
    client, wrapper = wrap(reactor)
    await reach(client, wrapper, State.READY)
    call = wrapper.proxy.never(1)
    await wrapper.close()
    with pytest.raises(OutcomeUnknown):
        await call


@onReactor
async def test_a_lost_call_leaves_no_task(reactor: Any) -> None:
    """
    A lost call leaves no task behind, since a client whose connection is dead may never
    end its calls.
    """
    client, wrapper = wrap(reactor)
    await reach(client, wrapper, State.READY)
    call = wrapper.proxy.never(1)
    client.lost.set_result(None)
    with pytest.raises(OutcomeUnknown):
        await call
    await settle()
    assert "never" not in str(asyncio.all_tasks())
    await shut(client, wrapper)


@onReactor
async def test_a_watch_that_is_a_coroutine_ends_with_the_module(reactor: Any) -> None:
    """
    A C{whenLost()} coroutine is cancelled when its module is closed, by a reset or for
    good.
    """
    client, wrapper = wrap(reactor)
    watches: list[str] = []

    async def whenLost() -> None:
        watches.append("begun")
        try:
            await client.lost
        finally:
            watches.append("ended")

    client.whenLost = whenLost
    wrapper = QueuingWrapper(client, reactor)
    await reach(client, wrapper, State.READY)
    wrapper.reset(Trouble("new password"))
    await settle()
    assert wrapper.state is State.READY
    assert sorted(watches) == ["begun", "begun", "ended"]
    await shut(client, wrapper)
    await settle()
    assert sorted(watches) == ["begun", "begun", "ended", "ended"]


@onReactor
async def test_a_waiting_task_can_be_shown(reactor: Any) -> None:
    """
    A debugger that lists the tasks sees what each of them waits for.
    """
    client, wrapper = wrap(reactor)
    waiting = asyncio.ensure_future(wrapper.proxy.plain(1))
    await settle()
    assert "Command" in repr(waiting)
    await goOn(client, wrapper)
    await waiting
    await shut(client, wrapper)


# Many calls, and nested calls.


@onReactor
async def test_many_calls(reactor: Any) -> None:
    """
    100,000 calls are queued and run, and leave nothing behind.
    """
    client, wrapper = wrap(reactor, limit=100_000, timeout=None)
    calls = [wrapper.proxy.coroutine(each) for each in range(100_000)]
    await goOn(client, wrapper)
    assert [await call for call in calls] == client.starts == list(range(100_000))
    await shut(client, wrapper)


@onReactor
async def test_a_module_calls_its_own_proxy(reactor: Any) -> None:
    """
    A module may call its own proxy, and the proxy of another module: each call runs in
    its own task.
    """
    client, wrapper = wrap(reactor)

    async def mixed(depth: int) -> int:
        async with asyncio.timeout(60):
            return 0 if depth == 0 else 1 + await wrapper.proxy.mixed(depth - 1)

    client.mixed = mixed
    await goOn(client, wrapper)
    assert await wrapper.proxy.mixed(100) == 100
    await shut(client, wrapper)


# Contexts.


@onReactor
async def test_nothing_but_a_call_has_the_context_of_its_caller(reactor: Any) -> None:
    """
    Only a call runs in the context of its caller. Attempts and pings do not, even if a
    request causes them, and neither do the calls of others.
    """
    client, wrapper = wrap(reactor)
    seen: dict[str, set[str]] = {"attempt": set(), "ping": set()}
    pinged = asyncio.Event()
    lost: Deferred[None] = Deferred()

    async def initialize() -> None:
        seen["attempt"].add(current.get())
        await asyncio.sleep(0)
        seen["attempt"].add(current.get())
        if client.outcome.done():
            raise Trouble("again")

    async def ping() -> None:
        seen["ping"].add(current.get())
        await asyncio.sleep(0)
        seen["ping"].add(current.get())
        pinged.set()

    async def coroutine(number: int) -> str:
        await asyncio.sleep(0)
        reactor.callLater(0.001, int)
        await deferLater(reactor, 0.001).asFuture(asyncio.get_running_loop())
        return current.get()

    async def request(name: str) -> None:
        current.set(name)
        reactor.callLater(0.001, int)
        for _ in range(3):
            assert await wrapper.proxy.coroutine(0) == name
            assert current.get() == name

    client.coroutine = coroutine
    wrapper = QueuingWrapper(
        client,
        reactor,
        initialize=initialize,
        ping=ping,
        pingInterval=0.1,
        whenLost=lambda: lost,
        lazy=True,
    )
    async with asyncio.TaskGroup() as group:
        for each in range(10):
            group.create_task(request(f"task {each}"))
    await asFuture(
        gatherResults(
            Deferred.fromCoroutine(request(f"coroutine {each}")) for each in range(10)
        )
    )
    await pinged.wait()
    assert seen == {"attempt": {"nobody"}, "ping": {"nobody"}}
    await shut(client, wrapper)


# Programs.


PROGRAM = """
import asyncio
from twisted.application.service import Application
from twisted.internet import reactor
from tsrv import Startup

class Client:
    async def initialize(self):
        async with asyncio.timeout(60):
            await asyncio.sleep(0.01)
        print("initialized")

    async def get(self):
        return asyncio.current_task().get_name()

    async def whenLost(self):
        await asyncio.get_running_loop().create_future()

    async def close(self):
        await asyncio.sleep(0.01)
        print("closed")

startup = Startup(reactor)
client = startup.add("client", Client()).proxy

async def use():
    print("got", await client.get())
    reactor.stop()

from twisted.internet.defer import Deferred
Deferred.fromCoroutine(use())
application = Application("program")
startup.setServiceParent(application)
"""


def test_a_service_may_be_started_before_the_loop_runs(tmp_path: Path) -> None:
    """
    A service may be started before the loop runs, as C{twistd} does. Everything is
    closed before the reactor stops.
    """
    (tmp_path / "program.py").write_text(PROGRAM)
    twistd = Path(sys.executable).parent / "twistd"
    words: list[str | Path] = ["-ny", tmp_path / "program.py", "--rundir", tmp_path]
    output = run(twistd, "--reactor=asyncio", *words)
    said = [each for each in ("initialized", "got Task-", "closed") if each in output]
    assert said == ["initialized", "got Task-", "closed"]
    assert "Traceback" not in output
    assert "destroyed" not in output
