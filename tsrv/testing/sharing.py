"""
What stores of several processes do with the sessions that they share.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.task import Clock

from ..sessions import (
    Changes,
    ISessionStore,
    Limits,
    SessionError,
    StoredSession,
    makeIdentifier,
)
from .base import (
    BEGIN,
    Base,
    dataOf,
    make,
    outcomesOf,
    refused,
    sessionOf,
)

__all__ = ["Sharing"]


class Sharing(Base):
    """
    What several stores do that have the same sessions.
    """

    @asynccontextmanager
    async def _usingSeveral(self, count: int) -> AsyncIterator[list[ISessionStore]]:
        clock = Clock()
        clock.advance(BEGIN)
        limits = Limits(10 * self.tick, 30 * self.tick)
        stores: list[ISessionStore] = []
        try:
            for _ in range(count):
                store = await self.makeStore(limits, clock)
                stores.append(store)
                await store.initialize()
            yield stores
        finally:
            for store in stores:
                await store.close()

    async def test_what_one_has_stored_the_others_find(self) -> None:
        """
        The next request of a visitor goes to another process.
        """
        async with self._usingSeveral(2) as (one, two):
            identifier = await make(one, a=1)
            known = await sessionOf(two, identifier)
            await two.set(identifier, Changes({"b": 2}), known)
            assert await dataOf(one, identifier) == {"a": 1, "b": 2}
            await refused(two.create(identifier, {}))
            assert await one.destroy(identifier) is True
            assert await two.get(identifier) is None
            assert await two.set(identifier, Changes({"c": 3}), known) is None
            assert await one.length() == 0

    async def test_changes_by_several_come_together(self) -> None:
        """
        What one process has read may be out of date when it writes.
        """
        async with self._usingSeveral(2) as (one, two):
            identifier = await make(one, a=1, b=2)
            known = await sessionOf(one, identifier)
            for number in range(10):
                changes = Changes({f"one{number}": 1}), Changes({f"two{number}": 2})
                await outcomesOf(
                    [
                        one.set(identifier, changes[0], known),
                        two.set(identifier, changes[1], known),
                        two.set(identifier, Changes(removed=frozenset({"a"}))),
                    ]
                )
            data = await dataOf(one, identifier)
            assert data.pop("b") == 2
            names = [f"{name}{n}" for name in ("one", "two") for n in range(10)]
            assert sorted(data) == sorted(names)

    async def test_no_count_is_lost_between_several(self) -> None:
        """
        Requests of one visitor at a time go to different processes, and each gets
        a number of its own.
        """
        async with self._usingSeveral(5) as stores:
            identifier = await make(stores[0])
            answers = await outcomesOf(
                [
                    store.set(identifier, Changes(added={"n": 1}))
                    for _ in range(8)
                    for store in stores
                ]
            )
            counted = [answer.counted["n"] for answer in answers]
            assert sorted(counted) == list(range(1, 41))
            assert await dataOf(stores[-1], identifier) == {"n": 40}

    async def test_only_one_of_several_makes_a_session(self) -> None:
        """
        Two who made the same one would each have a visitor of their own in it.
        """
        async with self._usingSeveral(4) as stores:
            identifier = makeIdentifier()
            outcomes = await outcomesOf(
                [store.create(identifier, {"n": n}) for n, store in enumerate(stores)]
            )
            (made,) = [each for each in outcomes if isinstance(each, StoredSession)]
            assert sum(isinstance(each, SessionError) for each in outcomes) == 3
            for store in stores:
                assert await dataOf(store, identifier) == made.data
