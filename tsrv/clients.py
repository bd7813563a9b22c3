"""
Modules for clients that are made by a function.

C{asyncpg.create_pool()}, C{aio_pika.connect()} and similar functions return a connected
client, which cannot connect again. A queue needs an object that exists before the first
client, and remains when a new client replaces it. L{madeBy} returns such an object:
each initialisation makes a client, and the object has the methods of the present one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable, isfunction
from types import MethodType
from typing import Any, TypeVar, cast

from .asyncmodule import NotInitialized
from .queuing.module import copySignature

__all__ = ["madeBy"]

_Client = TypeVar("_Client")


def madeBy(
    make: Callable[[], _Client | Awaitable[_Client]],
    kind: type[_Client],
    close: Callable[[_Client], object] | None = None,
) -> _Client:
    """
    Return a module for clients that are made by a function::

        connect = partial(asyncpg.create_pool, url)
        pool = madeBy(connect, asyncpg.Pool, close=asyncpg.Pool.terminate)
        wrapper = QueuingWrapper(pool, reactor, ping=partial(pool.fetchval, "SELECT 1"))

    The module has the public methods and attributes of the present client. While there
    is no client, it has the methods of C{kind}, which raise L{NotInitialized} unless a
    wrapper queues their calls. So the module's methods can be options of its wrapper.

    @param make: Makes a client, at each attempt. It may return an awaitable.
    @param kind: The type of the clients.
    @param close: Takes a client and closes it; by default the client's C{close()}, if
        it has one. A client is closed before the next one is made, so C{close} must end
        also when the server is down, unless the wrapper has an C{attemptTimeout}.
    @return: The module, with the type of its clients. It has C{initialize()} and
        C{close()}, and C{whenLost()} and C{whenIdle()} if C{kind} has them.
    """
    return cast(_Client, _Made(make, kind, close or _close))


def _close(client: Any) -> object:
    return client.close() if hasattr(client, "close") else None


class _Made:
    """
    A module that makes its clients. C{__getattr__} finds the attributes of the client.
    """

    def __init__(
        self,
        make: Callable[[], object],
        kind: type,
        close: Callable[[Any], object],
    ) -> None:
        self._make = make
        self._kind = kind
        self._closeClient = close
        self._client: Any = None
        self._attempt: object = None
        self._methods: dict[str, Callable[..., Any]] = {}
        for name in ("whenLost", "whenIdle"):
            if hasattr(kind, name):
                setattr(self, name, getattr(self, name))

    # The proxy and error messages read this.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._kind

    def __repr__(self) -> str:
        return f"<{self._kind.__name__} made by {self._make!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private to the client")
        if self._client is not None:
            return getattr(self._client, name)
        if name not in self._methods:
            method = getattr(self._kind, name)
            if not callable(method):
                raise AttributeError(f"{name!r} needs a client, but none is connected")
            self._methods[name] = self._forward(name, method)
        return self._methods[name]

    def _forward(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object, **keywords: object) -> object:
            if self._client is None:
                raise NotInitialized(f"{name}() needs a client, but none is connected")
            return getattr(self._client, name)(*arguments, **keywords)

        own = MethodType(method, self) if isfunction(method) else method
        return copySignature(call, own)

    async def initialize(self) -> None:
        """
        Close the present client, and make a new one.
        """
        await self.close()
        attempt = self._attempt = object()
        client = self._make()
        if isawaitable(client):
            client = await client
        if attempt is not self._attempt:
            # This attempt was cancelled, but the function has made a client anyway.
            await _end(self._closeClient(client))
            return
        self._client = client

    async def close(self) -> None:
        self._attempt = None
        client, self._client = self._client, None
        if client is not None:
            await _end(self._closeClient(client))


async def _end(result: object) -> None:
    if isawaitable(result):
        await result
