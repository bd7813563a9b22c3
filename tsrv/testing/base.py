"""
Helpers, and the base of all tests of a store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ..sessions import (
    Changes,
    ISessionStore,
    Limits,
    SessionError,
    StoredSession,
    makeIdentifier,
)

__all__ = ["BEGIN", "BaseTests", "create", "errorOf", "isUnknown", "outcomesOf", "read"]

BEGIN: Final = 1_700_000_000.0
"""
Time at which each test begins, in seconds since the epoch.
"""

RENEWED_TICKS: Final = 5
"""
Time for which a store remembers that an identifier was renewed, in ticks.
"""


async def outcomesOf(deferreds: Iterable[Deferred[Any]]) -> list[Any]:
    """
    @return: The result of each Deferred, or its error.
    """
    outcomes = await DeferredList(list(deferreds), consumeErrors=True)
    return [
        result.value if isinstance(result, Failure) else result
        for _, result in outcomes
    ]


async def errorOf(
    deferred: Deferred[Any], expected: type[Exception] = SessionError
) -> Exception:
    """
    @return: The error of a Deferred, which must fail with it.
    """
    (error,) = await outcomesOf([deferred])
    assert isinstance(error, expected), f"{error!r} is not a {expected.__name__}"
    return error


async def create(store: ISessionStore, **data: Any) -> str:
    """
    @return: The identifier of a new session.
    """
    identifier = makeIdentifier()
    await store.create(identifier, data)
    return identifier


async def read(store: ISessionStore, identifier: str) -> StoredSession:
    """
    @return: A session, which must exist.
    """
    session = await store.get(identifier)
    assert session is not None, "the session does not exist"
    return session


async def isUnknown(
    store: ISessionStore, identifier: str, known: StoredSession
) -> None:
    """
    Check that no call finds or creates a session.
    """
    changes = Changes({"a": 1}, frozenset({"b"}), {"c": 1})
    assert await store.get(identifier) is None
    assert await store.set(identifier, changes) is None
    assert await store.set(identifier, changes, known) is None
    assert await store.renew(identifier, makeIdentifier(), changes) is None
    assert await store.touch(identifier) is False
    assert await store.destroy(identifier) is False


class BaseTests:
    """
    The methods that the author of a store implements, and the fixtures of the tests;
    see L{tsrv.testing.SessionStoreTests}.
    """

    tick: ClassVar[float] = 10.0

    expiresByItself: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        decorate: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
        **others: Any,
    ) -> None:
        """
        @param decorate: Applied to each test, see L{tsrv.testing}.
        """
        super().__init_subclass__(**others)
        if decorate is not None:
            for name in dir(cls):
                if name.startswith("test_"):
                    setattr(cls, name, decorate(getattr(cls, name)))

    async def makeStore(self, limits: Limits, clock: Clock) -> ISessionStore:
        """
        Make a store without sessions; do not initialise it. Each test closes the
        stores that it has initialised.

        @param limits: Lifetimes and maximum size of its sessions.
        @param clock: Provides the time.
        @return: The store.
        """
        raise NotImplementedError

    async def damage(self, store: ISessionStore, identifier: str) -> None:
        """
        Change the stored data of a session so that the store cannot read them.

        @param store: The store.
        @param identifier: The identifier of the session.
        """
        raise NotImplementedError

    async def letPass(self, clock: Clock, seconds: float) -> None:
        """
        Let time pass.

        @param clock: Provides the time.
        @param seconds: The time that passes.
        """
        clock.advance(seconds)

    @asynccontextmanager
    async def using(
        self, idle: float | None = 10, absolute: float | None = 30, size: int = 4096
    ) -> AsyncIterator[tuple[ISessionStore, Callable[[float], Any]]]:
        """
        Use a store, and check that it leaves no timer.

        @param idle: The idle limit, in ticks.
        @param absolute: The absolute limit, in ticks.
        @return: The store, and a function that lets a number of ticks pass.
        """
        limits = Limits(
            None if idle is None else idle * self.tick,
            None if absolute is None else absolute * self.tick,
            size,
            RENEWED_TICKS * self.tick,
        )
        async with self.usingSeveral(1, limits) as (clock, (store,)):
            yield store, lambda ticks: self.letPass(clock, ticks * self.tick)
        left = clock.getDelayedCalls()
        assert not left, f"the store has left {left}"

    @asynccontextmanager
    async def usingSeveral(
        self, count: int, limits: Limits
    ) -> AsyncIterator[tuple[Clock, list[ISessionStore]]]:
        """
        Use several stores with the same clock.
        """
        clock = Clock()
        clock.advance(BEGIN)
        stores = [await self.makeStore(limits, clock) for _ in range(count)]
        try:
            for store in stores:
                await store.initialize()
            yield clock, stores
        finally:
            for store in stores:
                await store.close()
