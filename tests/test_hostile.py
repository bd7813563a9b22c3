"""
Modules, policies and errors that do not behave.
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
    Closed,
    InitializationFailed,
    NotInitialized,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
)
from tsrv.asyncmodule import IPredictable

from .support import Module, Refused, Trouble, ready, resultOf, wrap

# What is called in the middle of a change of state may close the wrapper.


def closedAndQuiet(clock: Clock, module: Module, wrapper: Any) -> None:
    """
    The wrapper is closed, refuses, and has left nothing behind.
    """
    for closing in module.closings:
        if not closing.called:
            closing.callback(None)
    clock.advance(0)
    assert wrapper.state is State.CLOSED
    assert isinstance(resultOf(wrapper.proxy.write(0)).error, Closed)
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_policy_that_closes(clock: Clock, lost: bool) -> None:
    """
    "Enough attempts, shut down" is a policy; the wrapper must not come back to
    life behind it.
    """

    def policy(attempts: int) -> float:
        wrapper.close()
        return 1.0

    module, wrapper, proxy = wrap(clock, timeout=None, retryPolicy=policy)
    result = resultOf(wrapper.initialize())
    if lost:
        module.attempts[0].callback(None)
        module.watches[0].callback(None)
    else:
        module.attempts[0].errback(Trouble())
        assert isinstance(result.error, Closed)
    assert resultOf(proxy.write(1)).error
    closedAndQuiet(clock, module, wrapper)


def test_watching_that_closes(clock: Clock) -> None:
    """
    So must it not when the module finds that it is not wanted.
    """
    module = Module()

    def whenLost() -> Deferred[None]:
        wrapper.close()
        return module.whenLost()

    wrapper = QueuingWrapper(module, clock, whenLost=whenLost)
    result = resultOf(wrapper.initialize())
    module.attempts[0].callback(None)
    assert isinstance(result.error, Closed)
    closedAndQuiet(clock, module, wrapper)


def test_an_attempt_that_closes_when_it_is_given_up(clock: Clock) -> None:
    """
    The same of what runs when an attempt is cancelled.
    """
    module = Module()

    def giveUp(attempt: object) -> None:
        wrapper.close()

    attempt: Deferred[None] = Deferred(giveUp)
    wrapper = QueuingWrapper(
        module, clock, initialize=lambda: attempt, attemptTimeout=1.0
    )
    resultOf(wrapper.initialize())
    clock.advance(1)
    closedAndQuiet(clock, module, wrapper)


def test_lost_when_its_methods_are_looked_up(clock: Clock) -> None:
    """
    A descriptor that touches the connection may find that it is gone: nobody
    is told that the module is ready, and the proxy goes on queuing.
    """

    class Touchy(Module):
        touched = 0

        @property
        def _gone(self) -> bool:
            return len(self.watches) == 1

        def __getattribute__(self, name: str) -> Any:
            if name == "write" and self._gone and not self.watches[0].called:
                self.watches[0].callback(None)
            return super().__getattribute__(name)

    for early in (True, False):
        module = Touchy()
        wrapper = QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0)
        if early:
            resultOf(wrapper.proxy.write(1))
        result = resultOf(wrapper.initialize())
        module.attempts[0].callback(None)
        assert wrapper.state is State.LOST
        assert result.pending is early
        resultOf(wrapper.proxy.write(2))
        clock.advance(1)
        module.attempts[1].callback(None)
        assert wrapper.state is State.READY
        assert [what for _, what in module.calls] == ([1, 2] if early else [2])


def test_methods_that_are_found_while_others_are_looked_up(clock: Clock) -> None:
    """
    A module that uses its own proxy when it is asked for a method.
    """

    class Curious(Module):
        def __getattribute__(self, name: str) -> Any:
            if name == "write":
                proxy = super().__getattribute__("proxy")
                if proxy is not None:
                    _ = proxy.read
            return super().__getattribute__(name)

    module = Curious()
    module.proxy = None  # type: ignore[attr-defined]
    wrapper = QueuingWrapper(module, clock)
    result = resultOf(wrapper.proxy.write(1))
    module.proxy = wrapper.proxy  # type: ignore[attr-defined]
    ready(module, wrapper)
    module.answers[0].callback("done")
    assert (result.value, wrapper.state) == ("done", State.READY)


# Errors.


class Unspeakable(Exception):
    """
    An error that cannot be printed.
    """

    def __str__(self) -> str:
        raise Trouble("no words")


def test_an_error_that_cannot_be_printed(clock: Clock) -> None:
    """
    The log is not worth a module that is never tried again.
    """
    module, wrapper, _ = wrap(clock)
    resultOf(wrapper.initialize())
    module.attempts[0].errback(Unspeakable())
    clock.advance(1)
    module.attempts[1].callback(None)
    module.watches[0].errback(Unspeakable())
    assert wrapper.state is State.LOST
    clock.advance(1)
    module.attempts[2].callback(None)
    assert wrapper.state is State.READY


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), KeyboardInterrupt(), Trouble()]
)
def test_errors_of_any_kind(clock: Clock, error: BaseException) -> None:
    """
    Under the reactor of asyncio its own kind of being cancelled is no
    C{Exception}; nobody is left waiting for that.
    """

    async def closing() -> None:
        raise error

    watches: list[Any] = [error, Deferred[None]()]

    def whenLost() -> Any:
        watch = watches.pop(0)
        if isinstance(watch, BaseException):
            raise watch
        return watch

    module = Module()
    wrapper = QueuingWrapper(
        module, clock, close=closing, whenLost=whenLost, retryPolicy=lambda _: 1.0
    )
    running = resultOf(wrapper.proxy.write(1))
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


def test_close_that_does_not_let_itself_be_cancelled(clock: Clock) -> None:
    """
    A time limit that only asks is none.
    """
    module = Module()

    def closing() -> Deferred[None]:
        end = module.close()
        end.addErrback(lambda _: Deferred())
        return end

    wrapper = QueuingWrapper(module, clock, close=closing, closeTimeout=3.0)
    running = resultOf(wrapper.proxy.write(1))
    ready(module, wrapper)
    closed = resultOf(wrapper.close())
    clock.advance(3)
    assert isinstance(closed.error, TimeoutError)
    assert isinstance(running.error, OutcomeUnknown)
    assert wrapper.state is State.CLOSED


def test_close_that_answers_at_once(clock: Clock) -> None:
    """
    A module that is closed at once needs no time limit.
    """
    module, wrapper, _ = wrap(clock, close=lambda: None)
    ready(module, wrapper)
    assert resultOf(wrapper.close()).value is None
    assert clock.getDelayedCalls() == []
    assert module.closings == []


def test_a_time_limit_may_be_fatal(clock: Clock) -> None:
    """
    Whoever says that it is no use to try again after a time-out is believed.
    """
    _, wrapper, _ = wrap(clock, attemptTimeout=1.0, fatal=TimeoutError)
    result = resultOf(wrapper.initialize())
    clock.advance(1)
    assert isinstance(result.error, InitializationFailed)
    assert isinstance(result.error.__cause__, TimeoutError)


def test_the_last_word_of_a_policy_is_a_reason(clock: Clock) -> None:
    """
    A module that was lost without a reason, and is not tried again because the
    policy says so: then that is the reason.
    """
    error = Trouble("that was it")

    def policy(attempts: int) -> float:
        raise error

    module, wrapper, proxy = wrap(clock, retryPolicy=policy)
    ready(module, wrapper)
    module.watches[0].callback(None)
    assert resultOf(proxy.write(1)).error.__cause__ is error


def test_close_in_the_errback_of_a_failure_that_was_held_back(clock: Clock) -> None:
    """
    The failures of the others are known as well, and are told.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"], close=lambda: None)
    ready(module, wrapper)
    first, second = proxy.read(1), proxy.read(2)
    first.addErrback(lambda _: wrapper.close())
    result = resultOf(second)
    for answer in module.answers:
        answer.errback(Trouble("its own"))
    clock.advance(0)
    assert wrapper.state is State.CLOSED
    assert isinstance(result.error, Trouble)


def test_given_up_in_progress_then_closed(clock: Clock) -> None:
    """
    Who gave up is told so, also if the module never confirms it.
    """

    class Slow(Module):
        def write(self, what: object) -> Deferred[Any]:
            return super().write(what).addErrback(lambda _: Deferred())

    module = Slow()
    wrapper = QueuingWrapper(module, clock)
    call = wrapper.proxy.write(1)
    result = resultOf(call)
    ready(module, wrapper)
    call.cancel()
    wrapper.close()
    module.closings[0].callback(None)
    assert isinstance(result.error, CancelledError)


@implementer(IPredictable)
class Oracle(Module):
    """
    A module that says how long it will take.
    """

    says: Any = None

    def secondsUntilInitialized(self) -> float | None:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("says", "seconds"), [(Trouble(), None), ("soon", None), (-5.0, 0.0), (None, None)]
)
def test_predictions_that_make_no_sense(
    clock: Clock, says: object, seconds: float | None
) -> None:
    """
    An error does not get lost because nobody knows when to come back.
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


def test_a_client_that_makes_up_everything(clock: Clock) -> None:
    """
    The standard library has one whose methods answer any question about
    themselves with another method.
    """
    client = ServerProxy("http://localhost")
    wrapper = QueuingWrapper(client, clock, initialize=lambda: None)
    call: Any = wrapper.proxy.add(1, 2)
    result = resultOf(call)
    assert result.pending
    call.cancel()
    client("close")()


def test_a_method_without_a_name(clock: Clock) -> None:
    """
    A callable object that cannot be asked for its name can be called.
    """

    class Nameless:
        @property
        def __name__(self) -> str:
            raise Trouble("none")

        def __call__(self) -> str:
            return "called"

    class Client:
        find = Nameless()

        def initialize(self) -> None:
            pass

    wrapper: Any = QueuingWrapper(Client(), clock)
    result = resultOf(wrapper.proxy.find())
    wrapper.initialize()
    assert result.value == "called"


def test_names_of_what_initializes(clock: Clock) -> None:
    """
    Who initialises or closes by the proxy means the wrapper, however these
    methods are made.
    """

    class Client:
        begun = 0

        @staticmethod
        def initialize() -> None:
            Client.begun += 1

        @classmethod
        def close(cls) -> None:
            pass

        def inner(self) -> str:
            return "another"

    wrapper: Any = QueuingWrapper(Client(), clock)
    assert wrapper.proxy.initialize == wrapper.initialize
    assert wrapper.proxy.close == wrapper.close
    result = resultOf(wrapper.proxy.inner())
    wrapper.proxy.initialize()
    assert (result.value, Client.begun) == ("another", 1)


def test_names_of_what_was_given(clock: Clock) -> None:
    """
    The same for methods with other names, and with several.
    """

    class Client:
        def __init__(self) -> None:
            self.start = partial(self._begin, 1)

        def _begin(self, times: int) -> None:
            pass

        def leave(self) -> None:
            pass

        quit = leave

    client = Client()
    wrapper: Any = QueuingWrapper(
        client, clock, initialize=client.start, close=client.quit
    )
    assert wrapper.proxy.start == wrapper.initialize
    assert wrapper.proxy.leave == wrapper.proxy.quit == wrapper.close


def test_attributes_that_only_have_such_a_name(clock: Clock) -> None:
    """
    The price at which the market closed closes no module.
    """

    class Market:
        close = 19.5

        def initialize(self) -> None:
            pass

    wrapper = QueuingWrapper(Market(), clock)
    wrapper.initialize()
    assert wrapper.proxy.close == 19.5
    assert resultOf(wrapper.close()).value is None


def test_a_listing_that_fails(clock: Clock) -> None:
    """
    A module that cannot be listed, or has names that are none, is ready all
    the same.
    """

    class Unlisted(Module):
        def __dir__(self) -> list[str]:
            raise Trouble("no list")

    module = Unlisted()
    vars(module)[3] = "three"  # type: ignore[index]
    wrapper = QueuingWrapper(module, clock)
    ready(module, wrapper)
    assert wrapper.proxy.write == module.write
    odd = Module()
    vars(odd)[3] = "three"  # type: ignore[index]
    oddly = QueuingWrapper(odd, clock)
    ready(odd, oddly)
    assert oddly.proxy.write == odd.write


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    A decorator as there are many.
    """

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


class Awaitable:
    """
    An object that is called like a coroutine function.
    """

    async def __call__(self) -> str:
        return "called"


def test_coroutines_in_disguise(clock: Clock) -> None:
    """
    Below a decorator, or as an object: also when the module is ready the
    answer is a Deferred.
    """

    class Client:
        def __init__(self) -> None:
            self.awaitable = Awaitable()

        def initialize(self) -> None:
            pass

        @decorated
        async def find(self) -> str:
            return "found"

        async def sometimes(self) -> str:
            return "was a coroutine"

    client = Client()
    wrapper: Any = QueuingWrapper(client, clock)
    early = [resultOf(wrapper.proxy.find()), resultOf(wrapper.proxy.awaitable())]
    wrapper.initialize()
    late = [resultOf(wrapper.proxy.find()), resultOf(wrapper.proxy.awaitable())]
    assert [each.value for each in early] == ["found", "called"]
    assert [each.value for each in late] == ["found", "called"]


def test_a_decorator_that_makes_a_coroutine_function_answer_at_once(
    clock: Clock,
) -> None:
    """
    What is no coroutine is passed on as it is.
    """

    class Client:
        def initialize(self) -> None:
            pass

    async def slow() -> str:
        return "slow"

    @wraps(slow)
    def fast() -> Deferred[str]:
        return succeed("fast")

    client: Any = Client()
    client.find = fast
    wrapper = QueuingWrapper(client, clock)
    wrapper.initialize()
    assert resultOf(wrapper.proxy.find()).value == "fast"


def test_what_cannot_be_unwrapped(clock: Clock) -> None:
    """
    A callable that claims to wrap itself is called all the same.
    """

    class Client:
        def initialize(self) -> None:
            pass

        def find(self) -> str:
            return "found"

    Client.find.__wrapped__ = Client.find  # type: ignore[attr-defined]
    wrapper: Any = QueuingWrapper(Client(), clock)
    result = resultOf(wrapper.proxy.find())
    wrapper.initialize()
    assert (result.value, wrapper.proxy.find()) == ("found", "found")


def test_a_coroutine_method_that_was_taken_is_the_latest(clock: Clock) -> None:
    """
    After a loss the module may have a new method in the place of the old one;
    who took the old one gets the new one.
    """

    class Client:
        def __init__(self) -> None:
            self.generation = 0
            self.lost: Deferred[None] = Deferred()

        def initialize(self) -> None:
            self.generation += 1
            self.lost = Deferred()
            generation = self.generation

            async def find() -> int:
                return generation

            self.find = find

        def whenLost(self) -> Deferred[None]:
            return self.lost

    client: Any = Client()
    wrapper = QueuingWrapper(client, clock, retryPolicy=lambda _: 1.0)
    wrapper.initialize()
    taken = wrapper.proxy.find
    client.lost.callback(None)
    clock.advance(1)
    assert resultOf(taken()).value == 2


def test_proxies_stay_where_they_are(clock: Clock) -> None:
    """
    A copy of a proxy would not follow its module.
    """
    module, wrapper, proxy = wrap(clock)
    for _ in range(2):
        for use in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="neither copied nor pickled"):
                use(proxy)
        ready(module, wrapper)


def test_attributes_that_are_asked_for_carefully(clock: Clock) -> None:
    """
    C{hasattr()} and its like do not fail on what cannot be read yet; slots
    that are still empty can be read when they are filled.
    """

    class Slotted:
        __slots__ = ("pool",)

        def initialize(self) -> None:
            self.pool = "open"

    wrapper = QueuingWrapper(Slotted(), clock)
    assert not hasattr(wrapper.proxy, "pool")
    with pytest.raises(NotInitialized, match="pool is not a method"):
        wrapper.proxy.pool  # noqa: B018
    with pytest.raises(AttributeError, match=r"'loop' \(it is new\)"):
        wrapper.proxy.loop  # type: ignore[attr-defined] # noqa: B018
    wrapper.initialize()
    assert wrapper.proxy.pool == "open"


def test_an_ended_command_keeps_no_module(clock: Clock) -> None:
    """
    Who keeps a Deferred keeps neither the module nor what it was called with.
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
        ({"close": "close"}, TypeError, "close must be callable"),
        ({"whenLost": 5}, TypeError, "whenLost must be callable"),
        ({"limit": 2.5}, ValueError, "limit must be"),
        ({"limit": float("nan")}, ValueError, "limit must be"),
        ({"concurrency": 1.5}, ValueError, "concurrency must be"),
        ({"replay": ["raed"]}, ValueError, "Module has no method 'raed'"),
        ({"replay": ["_later"]}, ValueError, "Module has no method '_later'"),
        ({"replay": ["close"]}, ValueError, "Module has no method 'close'"),
    ],
)
def test_options_of_the_wrong_kind(
    clock: Clock, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """
    A slip in an option is found where it is written: a misspelt name in
    C{replay} would show only in the next outage.
    """
    with pytest.raises(error, match=re.escape(message)):
        wrap(clock, **options)


def test_falsy_callables_are_callables(clock: Clock) -> None:
    """
    What is empty can be called.
    """

    class Steps(list[str]):
        def __call__(self) -> None:
            self.append("initialized")

    steps = Steps()
    wrapper = QueuingWrapper(object(), clock, initialize=steps)
    wrapper.initialize()
    assert steps == ["initialized"]


def test_replay_of_a_made_up_method(clock: Clock) -> None:
    """
    A module that makes up its methods may make up these.
    """

    class Client:
        def __getattr__(self, name: str) -> Callable[[], str]:
            return lambda: name

    wrapper = QueuingWrapper(Client(), clock, initialize=lambda: None, replay=["find"])
    wrapper.initialize()
    assert resultOf(wrapper.proxy.find()).value == "find"  # type: ignore[arg-type]


def test_a_fatal_failure_is_told_once(clock: Clock) -> None:
    """
    An errback that closes the wrapper after everything has failed for good
    finds nothing more to fail.
    """
    module, wrapper, proxy = wrap(clock, fatal=[Refused])
    call = proxy.write(1)
    call.addErrback(lambda _: wrapper.close())
    result = resultOf(wrapper.initialize())
    module.attempts[0].errback(Refused())
    assert isinstance(result.error, InitializationFailed)
    closedAndQuiet(clock, module, wrapper)
