"""
What callers hold.
"""

from __future__ import annotations

from functools import cached_property
from inspect import signature
from typing import Any, assert_type

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tsrv import (
    AsyncModule,
    IAsyncModule,
    NotInitialized,
    QueuingWrapper,
    State,
)
from tsrv.asyncmodule import IPredictable

from .support import Trouble, ready, resultOf, wrap


def test_types(clock: Clock) -> None:
    """
    A type checker sees the module, and callers need not learn another type.
    """
    wrapper = QueuingWrapper(AsyncModule(clock), clock)
    assert_type(wrapper, QueuingWrapper[AsyncModule])
    assert_type(wrapper.proxy, AsyncModule)
    say = wrapper.proxy.tellMeSomething()
    assert_type(say, Deferred[str])
    assert isinstance(wrapper.proxy, AsyncModule)
    assert IAsyncModule.providedBy(wrapper.proxy)
    assert IPredictable.providedBy(wrapper.proxy)
    say.addErrback(lambda _: None)
    say.cancel()


def test_ready_methods_are_the_module_s_own(clock: Clock) -> None:
    """
    Once the module is ready there is nothing in between: the methods are the
    same objects, found in the proxy itself.
    """
    module, wrapper, proxy = wrap(clock)
    ready(module, wrapper)
    assert proxy.write == module.write
    assert vars(proxy)["write"] == module.write
    assert "__getattr__" not in dir(object.__getattribute__(proxy, "__class__"))


def test_method_taken_before(clock: Clock) -> None:
    """
    A method that was taken early, as in a table of callbacks, queues, passes
    and refuses as its time demands.
    """
    module, wrapper, proxy = wrap(clock)
    write = proxy.write
    resultOf(write(1))
    assert wrapper.pending == 1
    ready(module, wrapper)
    write(2)
    assert module.calls == [("write", 1), ("write", 2)]
    module.watches[-1].callback(None)
    write(3).addErrback(lambda _: None)
    assert wrapper.pending == 1
    wrapper.close()
    module.closings[-1].callback(None)
    assert resultOf(write(4)).error.args == ("Module is closed",)
    clock.advance(0)


def test_methods_of_a_module_that_makes_them_up(clock: Clock) -> None:
    """
    A client whose methods come from its __getattr__ is wrapped like any other.
    """

    class Client:
        def __init__(self) -> None:
            self.calls: list[tuple[str, Any]] = []

        def connect(self) -> Deferred[None]:
            return succeed(None)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("no"):
                raise AttributeError(name)
            if name == "answer":
                return 42

            def call(what: object) -> Deferred[object]:
                self.calls.append((name, what))
                return succeed(what)

            return call

    client = Client()
    wrapper = QueuingWrapper(client, clock, initialize=client.connect)
    proxy = wrapper.proxy
    queued = resultOf(proxy.lookUp(1))
    wrapper.initialize()
    assert queued.value == 1
    assert resultOf(proxy.lookUp(2)).value == 2
    assert resultOf(proxy.somethingElse(3)).value == 3
    assert client.calls == [("lookUp", 1), ("lookUp", 2), ("somethingElse", 3)]
    assert proxy.calls is client.calls
    assert proxy.answer == 42
    with pytest.raises(AttributeError):
        proxy.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="private"):
        proxy._secret  # noqa: B018


def test_private_names(clock: Clock) -> None:
    """
    What the module keeps for itself is not for those who hold the proxy.
    """
    module, wrapper, proxy = wrap(clock)
    with pytest.raises(AttributeError, match="'_later' is private"):
        proxy._later  # noqa: B018
    with pytest.raises(AttributeError, match="'__len__' is private"):
        proxy.__len__  # type: ignore[attr-defined] # noqa: B018
    ready(module, wrapper)
    with pytest.raises(AttributeError):
        proxy._later  # noqa: B018


def test_unknown_name(clock: Clock) -> None:
    """
    A slip of the pen is found at once, and not when the module is ready.
    """
    _, _, proxy = wrap(clock)
    with pytest.raises(AttributeError, match="has no attribute 'wirte'"):
        proxy.wirte  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize("name", ["version", "connection", "session"])
def test_plain_attribute_before(clock: Clock, name: str) -> None:
    """
    An attribute cannot wait for the module, and what it has now may be wrong;
    so to read it says so, and does not evaluate a property too early.
    """
    _, _, proxy = wrap(clock)
    with pytest.raises(NotInitialized, match=f"Module.{name} is not a method.*is new"):
        getattr(proxy, name)


def test_plain_attribute_when_ready(clock: Clock) -> None:
    """
    When the module is ready its attributes are read from it, each time anew.
    """

    class Connection:
        session = "open"

    module, wrapper, proxy = wrap(clock)
    ready(module, wrapper)
    assert proxy.version == 1
    module.version = 2
    assert proxy.version == 2
    with pytest.raises(AttributeError):
        proxy.session  # noqa: B018
    module.connection = Connection
    assert proxy.session == "open"
    module.watches[-1].callback(None)
    with pytest.raises(NotInitialized):
        proxy.version  # noqa: B018
    wrapper.close()
    module.closings[-1].callback(None)


def test_announced_attribute(clock: Clock) -> None:
    """
    An attribute that the class announces, and that gets its value later, is
    known before and readable after; the same for one that is worked out once.
    """

    class Late:
        found: int

        def __init__(self) -> None:
            self.evaluated = 0

        @cached_property
        def once(self) -> int:
            self.evaluated += 1
            return self.evaluated

        def initialize(self) -> None:
            pass

    module = Late()
    wrapper = QueuingWrapper(module, clock)
    for name in ("found", "once"):
        with pytest.raises(NotInitialized):
            getattr(wrapper.proxy, name)
    wrapper.initialize()
    with pytest.raises(AttributeError):
        wrapper.proxy.found  # noqa: B018
    module.found = 7
    assert (wrapper.proxy.found, wrapper.proxy.once) == (7, 1)


def test_classes_are_no_methods(clock: Clock) -> None:
    """
    To catch C{client.Error} must not queue a call of it.
    """

    class Client:
        Error = Trouble

        def initialize(self) -> None:
            pass

    wrapper = QueuingWrapper(Client(), clock)
    with pytest.raises(NotInitialized):
        wrapper.proxy.Error  # noqa: B018
    wrapper.initialize()
    assert wrapper.proxy.Error is Trouble


def test_setting_and_deleting(clock: Clock) -> None:
    """
    To set an attribute of the proxy would be to set it nowhere.
    """
    module, wrapper, proxy = wrap(clock)
    for _ in range(2):
        with pytest.raises(AttributeError, match="'version' cannot be set here"):
            proxy.version = 2
        with pytest.raises(AttributeError, match="'version' cannot be deleted here"):
            del proxy.version
        ready(module, wrapper)
    assert module.version == 1


def test_dir(clock: Clock) -> None:
    """
    C{dir()}, and so every shell's completion, shows what can be used now.
    """
    module, wrapper, proxy = wrap(clock)
    methods = ["close", "compute", "count", "fail", "initialize", "read", "write"]
    assert dir(proxy) == methods
    ready(module, wrapper)
    assert set(dir(proxy)) == {
        *methods,
        "answers",
        "attempts",
        "calls",
        "closings",
        "connection",
        "session",
        "version",
        "watches",
    }


def test_repr(clock: Clock) -> None:
    """
    A proxy in a log or at a prompt says what it is, and in what state.
    """
    module, wrapper, proxy = wrap(clock)
    assert repr(proxy) == "<proxy of Module: new>"
    proxy.write(1)
    wrapper.initialize()
    assert repr(proxy) == "<proxy of Module: initializing, 1 waiting>"
    assert repr(wrapper) == "<QueuingWrapper of Module: initializing, 1 waiting>"
    module.attempts[-1].callback(None)
    assert repr(proxy) == "<proxy of Module: ready>"
    assert wrapper.module is module


def test_queuing_methods_introduce_themselves(clock: Clock) -> None:
    """
    C{help()} and signatures are those of the module's own method.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    for _ in range(2):
        for name in ("read", "write", "compute"):
            method = getattr(proxy, name)
            assert method.__doc__ == getattr(module, name).__doc__
            assert signature(method) == signature(getattr(module, name))
        ready(module, wrapper)


def test_coroutine_methods(clock: Clock) -> None:
    """
    A method that is C{async def} answers a Deferred, before and after.
    """
    module, wrapper, proxy = wrap(clock)
    before = proxy.compute(1)
    ready(module, wrapper)
    after = proxy.compute(2)
    results = []
    for each in (before, after):
        assert isinstance(each, Deferred)
        results.append(resultOf(each))
    for answer in module.answers:
        answer.callback("done")
    assert [result.value for result in results] == ["done", "done"]


def test_a_coroutine_from_an_ordinary_method(clock: Clock) -> None:
    """
    Whoever forgot that a helper is C{async def} gets a Deferred all the same.
    """

    class Client:
        def initialize(self) -> None:
            pass

        def find(self, what: str) -> Any:
            return self._find(what)

        async def _find(self, what: str) -> str:
            return what

    wrapper = QueuingWrapper(Client(), clock)
    found = resultOf(wrapper.proxy.find("it"))
    wrapper.initialize()
    assert found.value == "it"


def test_a_method_that_raises_ends_only_its_own_call(clock: Clock) -> None:
    """
    One bad command does not keep those behind it from running.
    """
    module, wrapper, proxy = wrap(clock)
    results = [
        resultOf(each)  # type: ignore[arg-type]
        for each in (proxy.fail(1), proxy.count(2), proxy.write(3))
    ]
    ready(module, wrapper)
    module.answers[0].callback("done")
    assert isinstance(results[0].error, Trouble)
    assert [each.value for each in results[1:]] == [2, "done"]
    assert wrapper.state is State.READY


def test_keywords(clock: Clock) -> None:
    """
    Commands carry keywords as well as plain arguments.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    results = [resultOf(proxy.write(what=1))]
    ready(module, wrapper)
    results.append(resultOf(proxy.read(what=2)))
    module.watches[-1].callback(None)
    module.answers[0].callback("written")
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert module.calls == [("write", 1), ("read", 2), ("read", 2)]
    module.answers[2].callback("read")
    assert [each.value for each in results] == ["written", "read"]


def test_the_life_of_the_module_is_the_wrapper_s(clock: Clock) -> None:
    """
    Who initialises or closes the proxy means the whole: the module's own
    C{initialize()} must not run behind the wrapper's back, nor queue behind
    itself.
    """
    module, wrapper, proxy = wrap(clock)
    for _ in range(2):
        assert proxy.initialize == wrapper.initialize
        assert proxy.close == wrapper.close
        with pytest.raises(AttributeError):
            proxy.whenLost  # noqa: B018
        ready(module, wrapper)


def test_the_life_of_a_third_party_client(clock: Clock) -> None:
    """
    The same holds when these methods have other names; and a method that only
    happens to be called C{close} is one like any other.
    """

    class Client:
        def connect(self) -> None:
            pass

        def disconnect(self) -> None:
            pass

        def dropped(self) -> Deferred[None]:
            return Deferred()

        def close(self, window: int) -> int:
            return window

    client = Client()
    wrapper = QueuingWrapper(
        client,
        clock,
        initialize=client.connect,
        close=client.disconnect,
        whenLost=client.dropped,
    )
    proxy: Any = wrapper.proxy
    assert proxy.connect == wrapper.initialize
    assert proxy.disconnect == wrapper.close
    with pytest.raises(AttributeError, match="belongs to the wrapper"):
        wrapper.proxy.dropped  # noqa: B018
    close: Any = wrapper.proxy.close
    closed = resultOf(close(3))
    proxy.connect()
    assert closed.value == 3


def test_an_attribute_that_cannot_be_read_now(clock: Clock) -> None:
    """
    A descriptor that raises keeps neither C{dir()} nor the module from being
    ready; who reads it gets its own error.
    """

    class Raising:
        def __get__(self, instance: object, owner: type) -> object:
            raise Trouble("not now")

    class Client:
        broken = Raising()

        def initialize(self) -> None:
            pass

    wrapper = QueuingWrapper(Client(), clock)
    assert dir(wrapper.proxy) == ["initialize"]
    wrapper.initialize()
    assert wrapper.state is State.READY
    with pytest.raises(Trouble):
        wrapper.proxy.broken  # noqa: B018


def test_a_method_that_vanishes(clock: Clock) -> None:
    """
    A method that initialising has taken away fails the calls of it that wait,
    and nothing else.
    """

    class Client:
        def __init__(self) -> None:
            self.early = lambda: "early"

        def initialize(self) -> None:
            del self.early

        def late(self) -> str:
            return "late"

    wrapper = QueuingWrapper(Client(), clock)
    early = resultOf(wrapper.proxy.early())  # type: ignore[arg-type]
    late = resultOf(wrapper.proxy.late())  # type: ignore[arg-type]
    wrapper.initialize()
    assert isinstance(early.error, AttributeError)
    assert late.value == "late"


def test_a_method_that_initialising_replaces(clock: Clock) -> None:
    """
    What runs is the method that the module has when it is ready.
    """

    class Client:
        def __init__(self) -> None:
            self.find = lambda: "nothing"

        def initialize(self) -> None:
            self.find = lambda: "something"

    wrapper = QueuingWrapper(Client(), clock)
    found = resultOf(wrapper.proxy.find())  # type: ignore[arg-type]
    wrapper.initialize()
    assert found.value == "something"
    assert wrapper.proxy.find() == "something"


def test_a_method_first_met_while_draining(clock: Clock) -> None:
    """
    A callback of a drained command may be the first to use a method at all.
    """
    module, wrapper, proxy = wrap(clock)
    counted = proxy.count(1).addCallback(  # type: ignore[attr-defined]
        lambda _: proxy.write(2)
    )
    result = resultOf(counted)
    ready(module, wrapper)
    module.answers[0].callback("done")
    assert result.value == "done"
    assert module.calls == [("count", 1), ("write", 2)]
