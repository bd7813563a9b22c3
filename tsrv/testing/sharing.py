"""
Tests of stores that share their sessions.
"""

from __future__ import annotations

from ..sessions import Changes, Limits, SessionError, StoredSession, makeIdentifier
from .base import BaseTests, create, errorOf, isUnknown, outcomesOf, read

__all__ = ["SharingTests"]


class SharingTests(BaseTests):
    """
    Several stores with the same sessions.
    """

    async def test_a_session_of_one_store_is_found_by_the_others(self) -> None:
        """
        Several processes see the same sessions.
        """
        async with self.usingSeveral(2, Limits()) as (_, (one, two)):
            identifier = await create(one, a=1)
            known = await read(two, identifier)
            await two.set(identifier, Changes({"b": 2}), known)
            assert (await read(one, identifier)).data == {"a": 1, "b": 2}
            await errorOf(two.create(identifier, {}))
            assert await one.destroy(identifier) is True
            await isUnknown(two, identifier, known)
            assert await one.length() == 0

    async def test_a_renewal_is_known_to_all_stores(self) -> None:
        """
        Of several renewals at once, one gives the session its new identifier. At any
        time, the old identifier is either valid or remembered as renewed.
        """
        async with self.usingSeveral(3, Limits()) as (_, stores):
            identifier = await create(stores[0], a=1)
            new = [makeIdentifier() for _ in stores]
            renewing = [
                store.renew(identifier, each, Changes({"owner": each}))
                for store, each in zip(stores, new, strict=True)
            ]
            while await stores[0].get(identifier) is not None:
                pass
            assert await stores[0].wasRenewed(identifier) is True
            outcomes = await outcomesOf(renewing)
            (made,) = [each for each in outcomes if each is not None]
            assert isinstance(made, StoredSession), made
            for store in stores:
                assert await store.wasRenewed(identifier) is True
                assert await store.get(identifier) is None
                assert (await read(store, made.data["owner"])).data == made.data
                assert await store.length() == 1

    async def test_changes_by_several_stores_are_merged(self) -> None:
        """
        A change based on an old version keeps the changes of other stores. Each
        addition gets a number of its own.
        """
        async with self.usingSeveral(5, Limits()) as (_, stores):
            identifier = await create(stores[0], a=1, b=2)
            known = await read(stores[0], identifier)
            changed = await outcomesOf(
                store.set(identifier, Changes({f"m{s}{n}": n}, added={"n": 1}), known)
                for n in range(8)
                for s, store in enumerate(stores)
            )
            removing = Changes(removed=frozenset({"a"}))
            await outcomesOf(store.set(identifier, removing, known) for store in stores)
            counted = [session.counted["n"] for session in changed]
            assert sorted(counted) == list(range(1, 41))
            members = {f"m{s}{n}": n for n in range(8) for s in range(5)}
            expected = {"b": 2, "n": 40, **members}
            assert (await read(stores[0], identifier)).data == expected

    async def test_only_one_of_several_stores_creates_a_session(self) -> None:
        """
        Of simultaneous creations with one identifier, all but one fail.
        """
        async with self.usingSeveral(4, Limits()) as (_, stores):
            identifier = makeIdentifier()
            outcomes = await outcomesOf(
                store.create(identifier, {"n": n}) for n, store in enumerate(stores)
            )
            (made,) = [each for each in outcomes if isinstance(each, StoredSession)]
            assert sum(isinstance(each, SessionError) for each in outcomes) == 3
            for store in stores:
                assert (await read(store, identifier)).data == made.data
