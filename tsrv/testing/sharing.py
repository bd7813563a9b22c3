"""
Tests of stores that share their sessions.
"""

from __future__ import annotations

from ..sessions import Changes, SessionError, StoredSession, makeIdentifier
from .base import BaseTests, create, dataOf, errorOf, outcomesOf, sessionOf

__all__ = ["SharingTests"]


class SharingTests(BaseTests):
    """
    Several stores with the same sessions.
    """

    async def test_a_session_of_one_store_is_found_by_the_others(self) -> None:
        """
        Several processes see the same sessions.
        """
        async with self.usingSeveral(2) as (_, (one, two)):
            identifier = await create(one, a=1)
            known = await sessionOf(two, identifier)
            await two.set(identifier, Changes({"b": 2}), known)
            assert await dataOf(one, identifier) == {"a": 1, "b": 2}
            await errorOf(two.create(identifier, {}))
            assert await one.destroy(identifier) is True
            assert await two.get(identifier) is None
            assert await two.set(identifier, Changes({"c": 3}), known) is None
            assert await one.length() == 0

    async def test_changes_by_several_stores_are_merged(self) -> None:
        """
        A store that has read an old version does not undo the changes of others.
        """
        async with self.usingSeveral(2) as (_, (one, two)):
            identifier = await create(one, a=1, b=2)
            known = await sessionOf(one, identifier)
            for number in range(10):
                await outcomesOf(
                    [
                        one.set(identifier, Changes({f"one{number}": 1}), known),
                        two.set(identifier, Changes({f"two{number}": 1}), known),
                        two.set(identifier, Changes(removed=frozenset({"a"}))),
                    ]
                )
            names = [f"{name}{n}" for name in ("one", "two") for n in range(10)]
            expected = {"b": 2, **dict.fromkeys(names, 1)}
            assert await dataOf(one, identifier) == expected

    async def test_each_addition_is_counted_once_between_stores(self) -> None:
        """
        Simultaneous additions in several processes each get a number of their own.
        """
        async with self.usingSeveral(5) as (_, stores):
            identifier = await create(stores[0])
            added = await outcomesOf(
                [
                    store.set(identifier, Changes(added={"n": 1}))
                    for _ in range(8)
                    for store in stores
                ]
            )
            counted = [session.counted["n"] for session in added]
            assert sorted(counted) == list(range(1, 41))
            assert await dataOf(stores[-1], identifier) == {"n": 40}

    async def test_only_one_of_several_stores_creates_a_session(self) -> None:
        """
        Of simultaneous creations with one identifier, all but one fail.
        """
        async with self.usingSeveral(4) as (_, stores):
            identifier = makeIdentifier()
            outcomes = await outcomesOf(
                [store.create(identifier, {"n": n}) for n, store in enumerate(stores)]
            )
            (made,) = [each for each in outcomes if isinstance(each, StoredSession)]
            assert sum(isinstance(each, SessionError) for each in outcomes) == 3
            for store in stores:
                assert await dataOf(store, identifier) == made.data
