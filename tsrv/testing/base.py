"""
What the tests of a store of sessions need.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ..sessions import (
    ISessionStore,
    Limits,
    SessionError,
    StoredSession,
    makeIdentifier,
)

__all__ = [
    "BEGIN",
    "DAY",
    "Base",
    "dataOf",
    "isLeft",
    "make",
    "outcomeOf",
    "outcomesOf",
    "refused",
    "sessionOf",
]

BEGIN: Final = 1_700_000_000.0
"""
When tests begin, in seconds of the epoch.
"""

_POLLS: Final = 1_000
"""
How often something is looked at that a store does after its answer.
"""

DAY: Final = 24 * 3600.0


async def outcomeOf(answer: Deferred[Any]) -> Any:
    """
    @return: What a Deferred fires with; its error, if it fails.
    """
    try:
        return await answer
    except Exception as error:
        return error


async def outcomesOf(answers: Sequence[Deferred[Any]]) -> list[Any]:
    """
    @return: What each of several Deferreds fires with, or its error.
    """
    fired = await DeferredList(answers, consumeErrors=True)
    return [
        result.value if isinstance(result, Failure) else result for _, result in fired
    ]


async def refused(answer: Deferred[Any]) -> Any:
    """
    @return: The L{SessionError} that a Deferred has to fail with.
    """
    error = await outcomeOf(answer)
    assert isinstance(error, SessionError), f"{error!r} is no SessionError"
    return error


async def dataOf(store: ISessionStore, identifier: str) -> dict[str, Any]:
    """
    @return: What is in a session that has to be there.
    """
    return (await sessionOf(store, identifier)).data


async def sessionOf(store: ISessionStore, identifier: str) -> StoredSession:
    """
    Return a session that exists.
    """
    session = await store.get(identifier)
    assert session is not None, "the session is not there"
    return session


async def make(store: ISessionStore, **data: Any) -> str:
    """
    Make a session.

    @return: Its identifier.
    """
    identifier = makeIdentifier()
    await store.create(identifier, data)
    return identifier


async def isLeft(store: ISessionStore, count: int) -> None:
    """
    Wait until only so many sessions are there.
    """
    for _ in range(_POLLS):
        if await store.length() == count:
            return
        # This takes as long as what is waited for.
        await store.destroy(makeIdentifier())
    raise AssertionError(f"there are not {count} sessions")


class Base:
    """
    What every L{ISessionStore} does.

    @cvar tick: The seconds by which tests count: sessions last some 10 to 30 of
        these, and the tests wait for about 100. A store that goes by real time
        makes it small.
    @cvar removesByItself: Whether sessions that end are gone at once, so that a
        cleanup finds none.
    """

    tick: ClassVar[float] = 10.0

    removesByItself: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        decorate: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
        **others: Any,
    ) -> None:
        """
        @param decorate: What makes of a coroutine function what is run as a
            test.
        """
        super().__init_subclass__(**others)
        if decorate is not None:
            for name in dir(cls):
                if name.startswith("test_"):
                    setattr(cls, name, decorate(getattr(cls, name)))

    async def makeStore(self, limits: Limits, clock: Clock) -> ISessionStore:
        """
        Make a store that is not initialised yet. Each test closes what it has
        initialised.

        @param limits: How long its sessions live, and how large they may be.
        @param clock: What the time is, for a store that can be told.
        @return: The store, with no sessions in it.
        """
        raise NotImplementedError

    async def damage(self, store: ISessionStore, identifier: str) -> None:
        """
        Make what a store keeps of a session such that it cannot be read.
        """
        raise NotImplementedError

    async def letPass(self, clock: Clock, seconds: float) -> None:
        """
        Let time pass. A store that goes by real time waits that long.
        """
        clock.advance(seconds)

    @asynccontextmanager
    async def _using(
        self,
        idle: float | None = 10,
        absolute: float | None = 30,
        size: int = 4096,
    ) -> AsyncIterator[tuple[ISessionStore, Callable[[float], Any]]]:
        """
        Use a store, and look what it leaves behind.

        @param idle: The idle limit, in ticks.
        @param absolute: The absolute limit, in ticks.
        @return: The store, and what lets so many ticks pass.
        """
        clock = Clock()
        clock.advance(BEGIN)
        limits = Limits(
            None if idle is None else idle * self.tick,
            None if absolute is None else absolute * self.tick,
            size,
        )
        store = await self.makeStore(limits, clock)
        await store.initialize()
        try:
            yield store, lambda ticks: self.letPass(clock, ticks * self.tick)
        finally:
            await store.close()
        left = clock.getDelayedCalls()
        assert not left, f"the store has left {left} behind"
