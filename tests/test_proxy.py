"""
The proxy: the object that callers hold in place of the module.
"""

from __future__ import annotations

from functools import cached_property
from inspect import signature
from typing import Any, assert_type

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tsrv import AsyncModule, IAsyncModule, NotInitialized, QueuingWrapper, State
from tsrv.asyncmodule import IPredictable

from .support import Trouble, inState, lose, ready, recover, resultOf, shut, wrap


def test_types(clock: Clock) -> None:
    """
    The proxy has the type and the interfaces of its module.
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


def test_methods_of_a_ready_module_are_its_own(clock: Clock) -> None:
    """
    In READY the proxy's methods are the module's own bound methods, found without
    __getattr__, if the module settles its calls.
    """
    module, _, proxy = inState(clock, State.READY, settles=True)
    assert proxy.write == module.write
    assert vars(proxy)["write"] == module.write
    assert "__getattr__" not in dir(object.__getattribute__(proxy, "__class__"))


@pytest.mark.parametrize("method", ["write", "read", "compute"])
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("settles", [True, False])
def test_a_method_that_was_kept(
    clock: Clock, method: str, early: bool, settles: bool
) -> None:
    """
    A method taken from the proxy queues, passes or refuses each call as the state
    demands. Only the own method of a ready module that settles its calls bypasses the
    wrapper.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"], settles=settles)
    kept = getattr(proxy, method)
    resultOf(kept(1))
    assert wrapper.pending == 1
    ready(module, wrapper)
    if not early and not (settles and method == "write"):
        kept = getattr(proxy, method)
    resultOf(kept(2))
    assert module.calls == [(method, 1), (method, 2)]
    module.answers[0].callback(None)
    module.answers[1].callback(None)
    lose(module)
    resultOf(kept(3))
    assert wrapper.pending == 1
    shut(wrapper)
    assert resultOf(kept(4)).error.args == ("Module is closed",)
    clock.advance(0)


@pytest.mark.parametrize("method", ["write", "read", "compute", "count"])
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("alwaysDeferred", [True, False])
def test_a_method_that_was_kept_and_replaced(
    clock: Clock, method: str, early: bool, alwaysDeferred: bool
) -> None:
    """
    A method taken from the proxy calls the method of the latest initialisation, and not
    the method of an earlier connection.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"], alwaysDeferred=alwaysDeferred)
    kept = getattr(proxy, method)
    ready(module, wrapper)
    if not early:
        kept = getattr(proxy, method)
    own = getattr(module, method)
    setattr(module, method, lambda what: own(f"new {what}"))
    lose(module)
    recover(clock, module)
    calls = [kept(1), getattr(proxy, method)(2)]
    assert module.calls == [(method, "new 1"), (method, "new 2")]
    for call in calls:
        if isinstance(call, Deferred):
            resultOf(call)
    shut(wrapper)
    clock.advance(0)


@pytest.mark.parametrize("isReady", [True, False])
def test_the_proxy_of_a_proxy(clock: Clock, isReady: bool) -> None:
    """
    A wrapper of a proxy has the name, the type and the interfaces of the module, and
    other proxies are not affected.
    """

    def wrapped() -> QueuingWrapper[AsyncModule]:
        return QueuingWrapper(AsyncModule(clock, delay=0), clock)

    inner = wrapped()
    outer = QueuingWrapper(inner.proxy, clock, initialize=inner.initialize)
    outermost = QueuingWrapper(outer.proxy, clock, initialize=outer.initialize)
    if isReady:
        outermost.initialize()
        clock.advance(0)
    for wrapper in (inner, outer, outermost, wrapped()):
        assert wrapper.name == "AsyncModule"
        assert repr(wrapper.proxy).startswith("<proxy of AsyncModule: ")
        assert isinstance(wrapper.proxy, AsyncModule)
        assert IAsyncModule.providedBy(wrapper.proxy)


def test_a_module_with_dynamic_attributes(clock: Clock) -> None:
    """
    Methods that a module creates in __getattr__ are proxied like others.
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


def test_names_that_are_not_proxied(clock: Clock) -> None:
    """
    Private and unknown names raise AttributeError at once.
    """
    module, wrapper, proxy = wrap(clock)
    with pytest.raises(AttributeError, match="'_later' is private"):
        getattr(proxy, "_later")  # noqa: B009
    with pytest.raises(AttributeError, match="'__len__' is private"):
        getattr(proxy, "__len__")  # noqa: B009
    with pytest.raises(AttributeError, match=r"no attribute 'wirte' \(it is new\)"):
        getattr(proxy, "wirte")  # noqa: B009
    ready(module, wrapper)
    with pytest.raises(AttributeError):
        getattr(proxy, "_later")  # noqa: B009


@pytest.mark.parametrize("name", ["version", "connection", "session"])
def test_a_plain_attribute_of_a_module_that_is_not_ready(
    clock: Clock, name: str
) -> None:
    """
    Reading an attribute that is not a method raises NotInitialized, and does not
    evaluate a property.
    """
    _, _, proxy = wrap(clock)
    with pytest.raises(NotInitialized, match=f"Module.{name} is not a method.*is new"):
        getattr(proxy, name)
    assert not hasattr(proxy, name)


def test_plain_attributes_of_a_ready_module(clock: Clock) -> None:
    """
    In READY attributes are read from the module, each time again.
    """

    class Connection:
        session = "open"

    module, wrapper, proxy = inState(clock, State.READY)
    assert proxy.version == 1
    module.version = 2
    assert proxy.version == 2
    with pytest.raises(AttributeError):
        proxy.session  # noqa: B018
    module.connection = Connection
    assert proxy.session == "open"
    lose(module)
    with pytest.raises(NotInitialized):
        proxy.version  # noqa: B018
    shut(wrapper)


def test_attributes_that_exist_later(clock: Clock) -> None:
    """
    Annotated attributes and cached properties are known before they have a value, and
    are evaluated when they are read.
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


def test_classes_are_not_methods(clock: Clock) -> None:
    """
    A class that is an attribute of the module is not called through the queue.
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
    Attributes of the proxy can be neither set nor deleted.
    """
    module, wrapper, proxy = wrap(clock)
    for _ in range(2):
        with pytest.raises(AttributeError, match="'version' cannot be set on a proxy"):
            proxy.version = 2
        with pytest.raises(
            AttributeError, match="'version' cannot be deleted from a proxy"
        ):
            del proxy.version
        ready(module, wrapper)
    assert module.version == 1


def test_dir(clock: Clock) -> None:
    """
    dir() lists the names that can be used now: methods always, attributes in READY.
    """
    module, wrapper, proxy = wrap(clock)
    methods = ["close", "compute", "count", "fail", "initialize", "read", "write"]
    assert dir(proxy) == methods
    ready(module, wrapper)
    attributes = {name for name in vars(module) if not name.startswith("_")}
    assert set(dir(proxy)) == {*methods, *attributes, "session", "version"}


def test_repr(clock: Clock) -> None:
    """
    The proxy and the wrapper show the name of the module, its state and the number of
    queued calls.
    """
    module, wrapper, proxy = wrap(clock, name="the users")
    assert repr(proxy) == "<proxy of Module: new>"
    proxy.write(1)
    wrapper.initialize()
    assert repr(proxy) == "<proxy of Module: initializing, 1 queued>"
    assert repr(wrapper) == "<QueuingWrapper of the users: initializing, 1 queued>"
    module.attempts[-1].callback(None)
    assert repr(proxy) == "<proxy of Module: ready>"
    assert wrapper.module is module


def test_signatures(clock: Clock) -> None:
    """
    The proxy's methods have the documentation and the signature of the module's
    methods.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    for _ in range(2):
        for name in ("read", "write", "compute"):
            method = getattr(proxy, name)
            assert method.__doc__ == getattr(module, name).__doc__
            assert signature(method) == signature(getattr(module, name))
        ready(module, wrapper)


def test_keywords(clock: Clock) -> None:
    """
    Queued calls keep their keyword arguments, also when they are repeated.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    results = [resultOf(proxy.write(what=1))]
    ready(module, wrapper)
    results.append(resultOf(proxy.read(what=2)))
    lose(module)
    module.answers[0].callback("written")
    recover(clock, module)
    assert module.calls == [("write", 1), ("read", 2), ("read", 2)]
    module.answers[2].callback("read")
    assert [each.value for each in results] == ["written", "read"]


def test_initialize_and_close_are_the_wrappers(clock: Clock) -> None:
    """
    initialize() and close() of the proxy are the wrapper's; whenLost() is not proxied.
    """
    module, wrapper, proxy = wrap(clock)
    for _ in range(2):
        assert proxy.initialize == wrapper.initialize
        assert proxy.close == wrapper.close
        with pytest.raises(AttributeError):
            proxy.whenLost  # noqa: B018
        ready(module, wrapper)


@pytest.mark.parametrize("areNames", [False, True])
def test_other_names_for_the_life_cycle(clock: Clock, areNames: bool) -> None:
    """
    Methods that are given as initialize=, close= and whenLost=, or named there, are
    replaced under their own names, and an unrelated close() is proxied.
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
        initialize="connect" if areNames else client.connect,
        close="disconnect" if areNames else client.disconnect,
        whenLost="dropped" if areNames else client.dropped,
    )
    proxy: Any = wrapper.proxy
    assert proxy.connect == wrapper.initialize
    assert proxy.disconnect == wrapper.close
    with pytest.raises(AttributeError, match="belongs to the wrapper"):
        wrapper.proxy.dropped  # noqa: B018
    closed = resultOf(proxy.close(3))
    proxy.connect()
    assert closed.value == 3


def test_an_attribute_that_cannot_be_read_now(clock: Clock) -> None:
    """
    A descriptor that raises affects only its readers.
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


def test_methods_that_the_initialisation_changes(clock: Clock) -> None:
    """
    Queued calls run the methods that the module has when it is ready. A method that no
    longer exists fails its calls.
    """

    class Client:
        def __init__(self) -> None:
            self.vanishing: Any = lambda *arguments, **keywords: "early"
            self.find: Any = lambda: "nothing"

        def initialize(self) -> None:
            del self.vanishing
            self.find = lambda: "something"

    wrapper = QueuingWrapper(Client(), clock)
    kept = wrapper.proxy.vanishing
    vanished = [resultOf(kept()), resultOf(kept(1)), resultOf(kept(1, two=2))]
    found = resultOf(wrapper.proxy.find())
    wrapper.initialize()
    for each in vanished:
        assert isinstance(each.error, AttributeError)
        assert "'vanishing'" in str(each.error)
    assert isinstance(resultOf(kept(1)).error, AttributeError)
    assert found.value == wrapper.proxy.find() == "something"
