"""
Modules, policies and errors that misbehave.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import re
import weakref
from collections.abc import Callable
from functools import partial, wraps
from typing import Any
from xmlrpc.client import ServerProxy

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer

from tsrv import (
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    Startup,
    State,
)
from tsrv.asyncmodule import IPredictable

from .support import Empty, Module, Trouble, lose, ready, recover, resultOf, shut, wrap


class Looked:
    """
    A descriptor that notifies the module when it is read.
    """

    def __get__(self, instance: Any, owner: type) -> object:
        if instance is not None:
            instance.look("descriptor")
        return 42


class Looking(Module):
    """
    A module that calls a function when its attributes are looked up.

    @ivar look: Called with the place of the lookup.
    """

    look: Callable[[str], object] = bool
    described = Looked()

    def __dir__(self) -> list[str]:
        self.look("__dir__")
        return [*super().__dir__()]


class Watchful(Looking):
    """
    A module that also notices which methods are looked up.
    """

    def __getattribute__(self, name: str) -> Any:
        if name == "write":
            object.__getattribute__(self, "look")("__getattribute__")
        return super().__getattribute__(name)


@pytest.mark.parametrize("where", ["__dir__", "__getattribute__", "descriptor"])
@pytest.mark.parametrize("act", ["lost", "closed", "failed", "reset", "paused"])
@pytest.mark.parametrize("used", ["", "write", "read", "compute"])
def test_the_module_goes_away_while_it_is_looked_at(
    clock: Clock, where: str, act: str, used: str
) -> None:
    """
    If the module is lost or closed while its names and methods are looked up, nobody
    learns that it is ready, and the proxy keeps queuing or refusing calls.
    """
    module = Watchful() if where == "__getattribute__" else Looking()
    wrapper = QueuingWrapper(
        module, clock, replay=["read"], retryPolicy=lambda _: 1.0, timeout=None
    )
    early = resultOf(getattr(wrapper.proxy, used)(0)) if used else None
    asked = resultOf(wrapper.initialize())
    done: list[str] = []

    def look(here: str) -> None:
        if here != where or done or not module.watches:
            return
        done.append(here)
        if act == "lost":
            lose(module)
        elif act == "closed":
            wrapper.close()
        elif act == "paused":
            resultOf(wrapper.pause())
        else:
            if act == "reset":
                wrapper.reset(Trouble("rotated"))
            else:
                lose(module)
                wrapper.fail(Trouble("for good"))

    module.look = look
    module.attempts[0].callback(None)
    assert done == [where]
    expected = {
        "lost": State.LOST,
        "closed": State.CLOSING,
        "failed": State.FAILED,
        "reset": State.LOST,
        "paused": State.PAUSED,
    }
    assert wrapper.state is expected[act]
    calls = len(module.calls)
    results = [
        resultOf(getattr(wrapper.proxy, name)(1))
        for name in ("write", "read", "compute", "count")
    ]
    assert len(module.calls) == calls
    if act in ("closed", "failed"):
        assert not any(each.pending for each in results)
        for closing in module.closings:
            closing.callback(None)
    else:
        assert wrapper.pending >= 4
        if act == "lost":
            recover(clock, module)
        elif act == "reset":
            module.closings[0].callback(None)
            module.attempts[1].callback(None)
        else:
            wrapper.resume()
        assert wrapper.state is State.READY
        assert len(module.calls) >= 4
        assert asked.value is None
    shut(wrapper)
    assert early is None or not early.pending
    clock.advance(0)


@pytest.mark.parametrize("where", ["__dir__", "__getattribute__", "descriptor"])
@pytest.mark.parametrize("isPaused", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_a_call_while_the_module_is_looked_at(
    clock: Clock, where: str, isPaused: bool, used: bool
) -> None:
    """
    A call during the lookup of names runs in its turn, and waiters learn that the
    module is ready, also after a short pause.
    """
    module = Watchful() if where == "__getattribute__" else Looking()
    wrapper = QueuingWrapper(module, clock)
    asked = resultOf(wrapper.initialize())
    if used:
        resultOf(wrapper.proxy.write(0))
    calls: list[object] = []

    def look(here: str) -> None:
        if here == where and not calls and module.watches:
            calls.append(1)
            resultOf(wrapper.proxy.count(1))
            if isPaused:
                resultOf(wrapper.pause())
                wrapper.resume()

    module.look = look
    module.attempts[0].callback(None)
    clock.advance(0)
    assert (wrapper.state, asked.value) == (State.READY, None)
    resultOf(wrapper.proxy.read(2))
    assert [what for _, what in module.calls] == [0, 1, 2][not used :]


def test_the_module_becomes_ready_while_a_method_is_looked_up(clock: Clock) -> None:
    """
    If the module becomes ready while a method is looked up, the method works, and a
    later lookup finds the module's own.
    """
    module = Watchful()
    wrapper = QueuingWrapper(module, clock, settles=True)
    wrapper.initialize()

    def look(_: object) -> None:
        if not module.attempts[0].called:
            module.attempts[0].callback(None)

    module.look = look
    kept = wrapper.proxy.write
    assert wrapper.state is State.READY
    resultOf(kept(1))
    assert module.calls == [("write", 1)]
    assert wrapper.proxy.write == module.write


def test_the_module_is_lost_while_a_made_up_method_is_looked_up(clock: Clock) -> None:
    """
    If the module is lost while a dynamic method is looked up, a call of that method is
    queued.
    """

    class Inventing(Module):
        def __getattr__(self, name: str) -> Any:
            if self.watches and not self.watches[-1].called:
                lose(self)
            return self.count

    module = Inventing()
    wrapper: Any = QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0)
    ready(module, wrapper)
    call = resultOf(wrapper.proxy.invented(1))
    assert (wrapper.state, wrapper.pending, module.calls) == (State.LOST, 1, [])
    vars(module)["invented"] = module.count
    recover(clock, module)
    assert call.value == 1


# Errors.


class Unspeakable(Exception):
    """
    An error that cannot be printed.
    """

    def __str__(self) -> str:
        raise Trouble("no words")


class Unplaced(Exception):
    """
    An error whose type does not say in which module it was defined.
    """

    __module__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [Unspeakable, Unplaced])
def test_an_error_that_cannot_be_printed(clock: Clock, kind: type[Exception]) -> None:
    """
    An error that cannot be described does not stop the retries.
    """
    module, wrapper, _ = wrap(clock)
    resultOf(wrapper.initialize())
    module.attempts[0].errback(kind())
    clock.advance(1)
    module.attempts[1].callback(None)
    module.watches[0].errback(kind())
    assert wrapper.state is State.LOST
    clock.advance(1)
    module.attempts[2].callback(None)
    assert wrapper.state is State.READY


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), KeyboardInterrupt(), Trouble()]
)
def test_errors_of_any_kind(clock: Clock, error: BaseException) -> None:
    """
    Every call ends, also after an error that is not an C{Exception}.
    """

    async def closing() -> None:
        raise error

    watches: list[Any] = [error, Deferred[None]()]

    def whenLost() -> Any:
        watch = watches.pop(0)
        if isinstance(watch, BaseException):
            raise watch
        return watch

    module, wrapper, proxy = wrap(clock, close=closing, whenLost=whenLost)
    running = resultOf(proxy.write(1))
    resultOf(wrapper.initialize())
    module.attempts[0].callback(None)
    assert (wrapper.state, wrapper.lastError) == (State.RETRYING, error)
    clock.advance(1)
    module.attempts[1].callback(None)
    with capturedLogs() as logged:
        closed = resultOf(wrapper.close())
    assert closed.error is error
    assert isinstance(running.error, OutcomeUnknown)
    assert "failed to close" in logged[-1]["log_format"]


def test_a_module_that_ignores_cancellations(clock: Clock) -> None:
    """
    The time limit of C{close()} holds although the module ignores cancellation. Then
    each call ends, a cancelled one with C{CancelledError}.
    """

    class Stubborn(Module):
        def write(self, what: object) -> Deferred[Any]:
            return super().write(what).addErrback(lambda _: Deferred())

        def close(self) -> Deferred[None]:
            return super().close().addErrback(lambda _: Deferred())

    module = Stubborn()
    wrapper = QueuingWrapper(module, clock, closeTimeout=3.0)
    call = wrapper.proxy.write(1)
    cancelled, running = resultOf(call), resultOf(wrapper.proxy.write(2))
    ready(module, wrapper)
    call.cancel()
    closed = resultOf(wrapper.close())
    clock.advance(3)
    assert isinstance(closed.error, TimeoutError)
    assert isinstance(cancelled.error, CancelledError)
    assert isinstance(running.error, OutcomeUnknown)
    assert wrapper.state is State.CLOSED


def test_a_timeout_may_be_fatal(clock: Clock) -> None:
    """
    With C{fatal=TimeoutError}, a timeout of an attempt is fatal.
    """
    _, wrapper, _ = wrap(clock, attemptTimeout=1.0, fatal=TimeoutError)
    result = resultOf(wrapper.initialize())
    clock.advance(1)
    assert isinstance(result.error, InitializationFailed)
    assert isinstance(result.error.__cause__, TimeoutError)


def test_the_error_of_a_policy_is_the_reason(clock: Clock) -> None:
    """
    If a module was lost without a reason, and the retry policy raises, the error of the
    policy is the reason.
    """
    error = Trouble("no more retries")

    def policy(attempts: int) -> float:
        raise error

    module, wrapper, proxy = wrap(clock, retryPolicy=policy)
    ready(module, wrapper)
    module.watches[0].callback(None)
    assert resultOf(proxy.write(1)).error.__cause__ is error


@implementer(IPredictable)
class Oracle(Module):
    """
    A module that says how long its initialisation takes.
    """

    says: Any = None

    def secondsUntilInitialized(self) -> float | None:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("says", "seconds"),
    [
        (Trouble(), None),
        ("soon", None),
        (-5.0, 0.0),
        (None, None),
        (float("inf"), None),
        (float("nan"), None),
        (10**400, None),
    ],
)
def test_predictions_that_make_no_sense(
    clock: Clock, says: object, seconds: float | None
) -> None:
    """
    An invalid prediction does not replace the error that it was made for.
    """
    module = Oracle()
    module.says = says
    wrapper = QueuingWrapper(module, clock, limit=1, timeout=1.0)
    resultOf(wrapper.initialize())
    assert wrapper.retryAfter() == seconds
    late, full = resultOf(wrapper.proxy.write(1)), resultOf(wrapper.proxy.write(2))
    clock.advance(1)
    assert isinstance(full.error, QueueFull)
    assert isinstance(late.error, QueueTimeout)
    stats = wrapper.stats
    assert (stats.submitted, stats.rejected, stats.expired) == (2, 1, 1)


# Methods.


class Nameless:
    """
    A callable object without a name.
    """

    @property
    def __name__(self) -> str:
        raise Trouble("none")

    def __call__(self) -> str:
        return "called"


class Awaitable:
    """
    An object that is called like a coroutine function.
    """

    async def __call__(self) -> str:
        return "called"


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Decorate a function.
    """

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


class Client:
    """
    A module with methods of many kinds.
    """

    nameless = Nameless()

    def __init__(self) -> None:
        self.begun = 0
        self.awaitable = Awaitable()
        self.start = partial(self.initialize)

    def initialize(self) -> None:
        self.begun += 1

    @classmethod
    def close(cls) -> None:
        pass

    def leave(self) -> None:
        pass

    quit = leave

    @decorated
    async def slow(self) -> str:
        return "called"

    @wraps(slow)
    def fast(self) -> Deferred[str]:
        return succeed("called")

    @staticmethod
    def static() -> str:
        return "called"

    def recursive(self) -> str:
        return "called"

    recursive.__wrapped__ = recursive  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["slow", "awaitable", "fast", "nameless", "static", "recursive"]
)
def test_methods_of_any_kind(clock: Clock, name: str) -> None:
    """
    A decorated coroutine function, or a callable object, returns a Deferred in READY,
    too. A callable without a name, or with a circular C{__wrapped__}, can be called.
    """
    wrapper: Any = QueuingWrapper(Client(), clock)
    early = resultOf(getattr(wrapper.proxy, name)())
    wrapper.initialize()
    late = getattr(wrapper.proxy, name)()
    assert isinstance(late, Deferred) == (name in ("slow", "awaitable", "fast"))
    late = resultOf(late).value if isinstance(late, Deferred) else late
    assert (early.value, late) == ("called", "called")


def test_initializing_by_the_proxy_means_the_wrapper(clock: Clock) -> None:
    """
    Calling initialize() through the proxy initialises the wrapper. The same holds for
    closing, for methods with other names, and for methods with several names.
    """
    client: Any = Client()
    wrapper: Any = QueuingWrapper(client, clock)
    assert wrapper.proxy.initialize == wrapper.initialize
    assert wrapper.proxy.close == wrapper.close
    wrapper.proxy.initialize()
    assert client.begun == 1
    other: Any = QueuingWrapper(
        client, clock, initialize=client.start, close=client.quit
    )
    assert other.proxy.start == other.initialize
    assert other.proxy.leave == other.proxy.quit == other.close


def test_an_attribute_may_be_called_close(clock: Clock) -> None:
    """
    An attribute C{close} that is not callable does not close the module.
    """

    class Market:
        close = 19.5

        def initialize(self) -> None:
            pass

    wrapper = QueuingWrapper(Market(), clock)
    wrapper.initialize()
    assert wrapper.proxy.close == 19.5
    assert resultOf(wrapper.close()).value is None


@pytest.mark.parametrize("settles", [None, True, False])
def test_a_client_that_invents_everything(clock: Clock, settles: bool | None) -> None:
    """
    An object that has a method for every name can be wrapped, and its methods may be
    named in C{replay}.
    """

    class Client(ServerProxy):
        # zope.interface remembers classes that it knows.
        pass

    client = Client("http://localhost")
    attempts: list[Deferred[None]] = []

    def connect() -> Deferred[None]:
        attempts.append(Deferred())
        return attempts[-1]

    options: Any = {"initialize": connect, "replay": ["add"], "settles": settles}
    wrapper = QueuingWrapper(client, clock, timeout=5.0, **options)
    resultOf(wrapper.initialize())
    call: Any = wrapper.proxy.add(1, 2)
    result = resultOf(call)
    clock.advance(5)
    assert isinstance(result.error, QueueTimeout)
    client("close")()


def test_a_client_that_invents_everything_restarts(clock: Clock) -> None:
    """
    An object that has a method for every name can be a module that restarts.
    """

    class Client(ServerProxy):
        pass

    client = Client("http://localhost")
    startup = Startup(clock)
    startup.add("database", Empty())
    startup.add("client", client, initialize=lambda: None, restartWith=["database"])
    startup.startService()
    assert startup.ready
    resultOf(startup.stopService())
    client("close")()


class Unlisted(Module):
    """
    A module whose attributes cannot be listed.
    """

    def __dir__(self) -> list[str]:
        raise Trouble("no list")


def test_a_listing_that_fails(clock: Clock) -> None:
    """
    A module whose attributes cannot be listed, and which has odd names, becomes ready.
    """
    module = Unlisted()
    vars(module)[3] = "three"  # type: ignore[index]
    wrapper = QueuingWrapper(module, clock, settles=True)
    ready(module, wrapper)
    assert wrapper.proxy.write == module.write


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_proxy_cannot_be_copied(clock: Clock, use: Callable[[object], Any]) -> None:
    """
    A proxy cannot be copied, since the copy would not follow its module.
    """
    module, wrapper, proxy = wrap(clock)
    for _ in range(2):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            use(proxy)
        ready(module, wrapper)


def test_an_ended_call_keeps_no_module(clock: Clock) -> None:
    """
    A stored Deferred keeps neither the module nor the arguments alive.
    """

    class Big:
        pass

    module, wrapper, proxy = wrap(clock)
    big = Big()
    call = proxy.write(what=big)
    ready(module, wrapper)
    module.answers[0].callback("done")
    gone = [weakref.ref(each) for each in (big, module, wrapper)]
    del big, module, wrapper, proxy
    gc.collect()
    assert [each() for each in gone] == [None, None, None]
    assert call.result == "done"


# Options.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"retryPolicy": 5}, TypeError, "retryPolicy must be callable"),
        ({"initialize": 5}, TypeError, "initialize must be callable"),
        ({"close": "version"}, TypeError, "close must be callable"),
        ({"whenLost": 5}, TypeError, "whenLost must be callable"),
        ({"limit": 2.5}, ValueError, "limit must be"),
        ({"limit": float("nan")}, ValueError, "limit must be"),
        ({"concurrency": 1.5}, ValueError, "concurrency must be"),
        ({"replay": ["_later"]}, ValueError, "Module has no method '_later'"),
        ({"replay": ["close"]}, ValueError, "Module has no method 'close'"),
    ],
)
def test_options_of_the_wrong_kind(
    clock: Clock, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """
    An option of the wrong type is reported when the wrapper is made.
    """
    with pytest.raises(error, match=re.escape(message)):
        wrap(clock, **options)
