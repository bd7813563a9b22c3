"""
madeBy(): clients that a function makes, and that exist only once they have connected.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock

from tsrv import NotInitialized, QueuingWrapper, State, madeBy

from .support import Trouble, resultOf


class Client:
    """
    A client that is connected as soon as it exists.
    """

    version = 1

    def __init__(self, number: int) -> None:
        self.number = number
        self.isClosed = False
        self.lost: Deferred[None] = Deferred()

    @property
    def peer(self) -> str:
        return f"server of {self.number}"

    def read(self, key: str) -> Deferred[str]:
        return succeed(f"{key} of {self.number}")

    def whenLost(self) -> Deferred[None]:
        return self.lost

    def close(self) -> None:
        self.isClosed = True


class Factory:
    """
    Makes clients when the test says so, even for a cancelled attempt.
    """

    def __init__(self) -> None:
        self.made: list[Deferred[Client]] = []
        self.clients: list[Client] = []

    async def __call__(self) -> Client:
        number = len(self.made)
        self.made.append(Deferred())
        try:
            return await self.made[number]
        except CancelledError:
            self.made[number] = Deferred()
            return await self.made[number]

    def finish(self, number: int = -1) -> Client:
        client = Client(len(self.clients))
        self.clients.append(client)
        self.made[number].callback(client)
        return client


@pytest.fixture
def factory() -> Factory:
    """
    A factory of clients.
    """
    return Factory()


def wrapped(
    clock: Clock, factory: Callable[[], Any], **options: Any
) -> QueuingWrapper[Client]:
    """
    @return: The wrapper of a client.
    """
    module = madeBy(factory, Client)
    return QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0, **options)


def test_calls_wait_for_the_first_client(clock: Clock, factory: Factory) -> None:
    """
    The proxy has the methods of the clients before the first client exists, and its
    properties afterwards. Closing the wrapper closes the client.
    """
    wrapper = wrapped(clock, factory)
    proxy = wrapper.proxy
    call = resultOf(proxy.read("a"))
    assert str(signature(proxy.read)) == "(key: 'str') -> 'Deferred[str]'"
    assert isinstance(proxy, Client)
    assert wrapper.name == "Client"
    for name in ("write", "peer", "version"):
        with pytest.raises(AttributeError):
            getattr(proxy, name)
    wrapper.initialize()
    assert call.pending
    client = factory.finish()
    assert (call.value, proxy.peer, proxy.version) == ("a of 0", "server of 0", 1)
    with pytest.raises(AttributeError):
        _ = proxy.write  # type: ignore[attr-defined]
    wrapper.close()
    assert (client.isClosed, wrapper.state) == (True, State.CLOSED)


def test_each_attempt_makes_a_client(clock: Clock, factory: Factory) -> None:
    """
    After a failure, and after a loss, another client is made; the lost one is closed
    first. Calls go to the current client.
    """
    wrapper = wrapped(clock, factory)
    wrapper.initialize()
    factory.made[0].errback(Trouble("refused"))
    clock.advance(1)
    first = factory.finish()
    assert resultOf(wrapper.proxy.read("a")).value == "a of 0"
    first.lost.callback(None)
    call = resultOf(wrapper.proxy.read("b"))
    clock.advance(1)
    assert first.isClosed
    assert call.pending
    factory.finish()
    assert call.value == "b of 1"
    assert resultOf(wrapper.proxy.read("c")).value == "c of 1"
    wrapper.close()


@pytest.mark.parametrize("then", ["closed", "another attempt"])
def test_a_client_that_nobody_needs(clock: Clock, factory: Factory, then: str) -> None:
    """
    If an attempt was given up and makes a client nevertheless, the client is closed.
    """
    wrapper = wrapped(clock, factory, attemptTimeout=5.0)
    wrapper.initialize()
    if then == "closed":
        wrapper.close()
        assert factory.finish().isClosed
        return
    clock.advance(5)
    clock.advance(1)
    needed = factory.finish(1)
    assert factory.finish(0).isClosed
    assert (needed.isClosed, wrapper.state) == (False, State.READY)
    assert resultOf(wrapper.proxy.read("a")).value == "a of 0"
    wrapper.close()


@pytest.mark.parametrize("isAsync", [False, True])
def test_ways_to_make_and_to_close(clock: Clock, isAsync: bool) -> None:
    """
    The function may return the client itself or an awaitable. A client may have no
    close(), or a method with another name.
    """
    closed: list[object] = []

    class Plain:
        def ask(self) -> str:
            return "answer"

    async def make() -> Plain:
        return Plain()

    async def close(client: Plain) -> None:
        closed.append(client)

    module = madeBy(make, Plain, close) if isAsync else madeBy(Plain, Plain)
    wrapper = QueuingWrapper(module, clock)
    wrapper.initialize()
    assert wrapper.proxy.ask() == "answer"
    wrapper.close()
    assert len(closed) == isAsync
    assert wrapper.state is State.CLOSED


def test_the_module_without_a_client(factory: Factory) -> None:
    """
    A method that is taken from the module itself goes to the current client. Without a
    client it raises an error that says so.
    """
    module: Any = madeBy(factory, Client)
    read = module.read
    with pytest.raises(NotInitialized, match=r"read\(\) needs a client"):
        read("a")
    resultOf(Deferred.fromCoroutine(module.initialize()))
    factory.finish()
    assert resultOf(read("a")).value == "a of 0"
    with pytest.raises(AttributeError, match="private"):
        _ = module._lost
    assert "Client made by" in repr(module)
