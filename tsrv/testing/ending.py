"""
How sessions end, and what else can happen to them.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from ..sessions import (
    Changes,
    Entry,
    ISessionStore,
    StoredSession,
    keyOf,
    makeIdentifier,
)
from .base import (
    DAY,
    Base,
    dataOf,
    isLeft,
    make,
    outcomesOf,
    sessionOf,
)

__all__ = ["Ending"]


class Ending(Base):
    """
    Limits, lists, damage, and what is given up.
    """

    async def test_a_destroyed_session_stays_so(self) -> None:
        """
        A slow request that still holds it would log its visitor in again.
        """
        async with self._using() as (store, _):
            identifier = await make(store, user="Ada")
            other = await make(store, user="Bob")
            known = await sessionOf(store, identifier)
            assert await store.destroy(identifier) is True
            assert await store.get(identifier) is None
            change = Changes({"user": "Ada"}, added={"n": 1})
            assert await store.set(identifier, change, known) is None
            assert await store.set(identifier, change) is None
            assert await store.touch(identifier) is False
            assert await store.get(identifier) is None
            assert await store.destroy(identifier) is False
            assert await dataOf(store, other) == {"user": "Bob"}
            assert await store.length() == 1

    async def test_a_session_is_destroyed_amid_changes(self) -> None:
        """
        Whatever overtakes what, after the logout nothing is there.
        """
        async with self._using() as (store, _):
            identifier = await make(store)
            known = await sessionOf(store, identifier)
            change = Changes(added={"n": 1})
            before = [store.set(identifier, change, known) for _ in range(5)]
            destroyed = store.destroy(identifier)
            behind = [store.set(identifier, change, known) for _ in range(5)]
            used = store.touch(identifier)
            assert await destroyed is True
            await outcomesOf([*before, *behind, used])
            assert await store.get(identifier) is None
            assert await store.length() == 0

    async def test_an_unused_session_ends(self) -> None:
        """
        Who goes away without logging out must not stay logged in.
        """
        async with self._using() as (store, letPass):
            identifier = await make(store)
            known = await sessionOf(store, identifier)
            await letPass(8)
            assert await store.get(identifier) == known
            await letPass(2.5)
            await self._hasEnded(store, identifier, known)

    async def _hasEnded(
        self, store: ISessionStore, identifier: str, known: StoredSession
    ) -> None:
        change = Changes({"a": 1})
        assert await store.get(identifier) is None
        assert await store.set(identifier, change, known) is None
        assert await store.set(identifier, change) is None
        assert await store.touch(identifier) is False
        assert await store.destroy(identifier) is False
        assert await store.length() == 0
        assert not await store.all()

    async def test_a_used_session_ends_later(self) -> None:
        """
        Nobody is logged out in the middle of his work.
        """
        async with self._using() as (store, letPass):
            touched, changed = await make(store), await make(store)
            for _ in range(3):
                await letPass(6)
                assert await store.touch(touched) is True
                assert await store.set(changed, Changes({"a": 1})) is not None
            known = await sessionOf(store, touched)
            await letPass(10.5)
            await self._hasEnded(store, touched, known)
            assert await store.get(changed) is None

    async def test_every_session_ends(self) -> None:
        """
        One that was stolen is of use only so long, however busy the thief is.
        """
        async with self._using() as (store, letPass):
            identifier = await make(store)
            for _ in range(5):
                await letPass(5.5)
                assert await store.touch(identifier) is True
                assert await store.set(identifier, Changes({"a": 1})) is not None
            known = await sessionOf(store, identifier)
            assert abs(known.expires - known.created - 30 * self.tick) < 0.01
            await letPass(3)
            await self._hasEnded(store, identifier, known)

    async def test_either_limit_may_be_left_out(self) -> None:
        """
        With one of them, that holds; with none, sessions last for a day.
        """
        for idle, absolute, seconds in (
            (None, 5, 5 * self.tick),
            (5, None, 5 * self.tick),
            (None, None, DAY),
        ):
            async with self._using(idle, absolute) as (store, letPass):
                identifier = await make(store)
                made = await sessionOf(store, identifier)
                assert abs(made.expires - made.created - seconds) < 0.01
                await letPass(3)
                assert await store.touch(identifier) is True
                used = await sessionOf(store, identifier)
                assert (used.expires > made.expires) is (idle is not None)
                await letPass(3)
                is_there = await store.get(identifier) is not None
                assert is_there is (absolute is None)

    async def test_uses_that_follow_each_other_closely_are_written_once(self) -> None:
        """
        Most requests only look: each would cost a write.
        """
        async with self._using(idle=100, absolute=None) as (store, letPass):
            identifier = await make(store)
            made = await sessionOf(store, identifier)
            for _ in range(4):
                await letPass(0.5)
                assert await store.touch(identifier) is True
            assert await store.get(identifier) == made
            await letPass(5)
            assert await store.touch(identifier) is True
            used = await sessionOf(store, identifier)
            assert used.expires >= made.expires + 7 * self.tick
            await store.touch(identifier)
            assert await store.get(identifier) == used

    async def test_all_that_have_ended_are_removed(self) -> None:
        """
        Nobody asks for them any more: they would stay for ever.
        """
        async with self._using() as (store, letPass):
            for _ in range(3):
                await make(store)
            await letPass(6)
            later = await make(store)
            await letPass(4.5)
            assert await store.length() == 1
            expected = 0 if self.removesByItself else 3
            assert await store.cleanup() == expected
            assert await store.cleanup() == 0
            assert await store.get(later) is not None

    async def test_all_are_ended_at_once(self) -> None:
        """
        That is what has to be done when a secret became known.
        """
        async with self._using() as (store, _):
            identifiers = [await make(store) for _ in range(5)]
            assert await store.clear() == 5
            assert await store.length() == 0
            assert await store.clear() == 0
            assert await store.set(identifiers[0], Changes({"a": 1})) is None
            await make(store)
            assert await store.length() == 1

    async def test_sessions_are_listed_part_by_part(self) -> None:
        """
        There may be a million: nobody is to have all of them at a time.
        """
        async with self._using() as (store, letPass):
            await make(store, n="ended")
            await letPass(9)
            made = {keyOf(await make(store, n=n)): {"n": n} for n in range(25)}
            await letPass(1.5)
            assert await store.length() == 25
            listed: list[Entry] = []
            after = b""
            while part := await store.all(after, 10):
                assert len(part) <= 10
                listed.extend(part)
                after = part[-1][0]
            keys = [key for key, _ in listed]
            assert keys == sorted(keys)
            assert {key: session.data for key, session in listed} == made
            assert list(await store.all()) == listed

    async def test_a_damaged_session_is_absent_and_removed(self) -> None:
        """
        It would fail with every request of its visitor, who cannot help it.
        """
        async with self._using() as (store, _):
            damaged, other = await make(store, n=1), await make(store, n=2)
            await self.damage(store, damaged)
            assert await store.get(damaged) is None
            await isLeft(store, 1)
            assert await store.set(damaged, Changes({"a": 1})) is None
            assert await store.touch(damaged) is False
            assert await dataOf(store, other) == {"n": 2}
            assert (await store.create(damaged, {"n": 3})).data == {"n": 3}

    async def test_a_damaged_session_is_not_changed_and_not_listed(self) -> None:
        """
        Not only who looks for a session comes upon it.
        """
        async with self._using() as (store, _):
            made = {keyOf(each): each for each in [await make(store) for _ in range(2)]}
            first, second = [made[key] for key, _ in await store.all()]
            await self.damage(store, first)
            entries = await store.all(limit=1)
            assert [key for key, _ in entries] == [keyOf(second)]
            await isLeft(store, 1)
            await self.damage(store, second)
            assert await store.set(second, Changes({"a": 1})) is None
            await isLeft(store, 0)
            assert not await store.all()

    async def test_every_answer_can_be_given_up(self) -> None:
        """
        Clients go away. What was given up was done or was not, fires once, and
        nothing else is harmed.
        """
        async with self._using() as (store, _):
            identifier, other, gone = [await make(store) for _ in range(3)]
            known = await sessionOf(store, identifier)
            created = makeIdentifier()
            kept = [store.set(identifier, Changes(added={"n": 1})) for _ in range(2)]
            given: list[Deferred[Any]] = [
                store.set(identifier, Changes(added={"m": 1}), known),
                store.set(identifier, Changes(added={"m": 1})),
                store.set(other, Changes({"a": 1})),
                store.get(identifier),
                store.create(created, {"a": 1}),
                store.touch(identifier),
                store.all(),
                store.length(),
                store.cleanup(),
                store.destroy(gone),
            ]
            kept += [store.set(identifier, Changes(added={"n": 1})) for _ in range(2)]
            for answer in given:
                answer.cancel()
            outcomes = await outcomesOf(given)
            for outcome in outcomes:
                assert not isinstance(outcome, Exception) or isinstance(
                    outcome, CancelledError
                ), repr(outcome)
            counted = [answer.counted["n"] for answer in await outcomesOf(kept)]
            assert sorted(counted) == [1, 2, 3, 4]
            data = await dataOf(store, identifier)
            done = sum(isinstance(each, StoredSession) for each in outcomes[:2])
            assert data.pop("n") == 4
            assert done <= data.pop("m", 0) <= 2
            assert not data
            assert await dataOf(store, other) in ({}, {"a": 1})
