"""
Tests of how a store opens and closes, and how sessions end.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from ..asyncmodule import NotInitialized
from ..errors import OutcomeUnknown, Unavailable
from ..sessions import (
    Changes,
    Entry,
    ISessionStore,
    Limits,
    StoredSession,
    keyOf,
    makeIdentifier,
)
from .base import (
    BaseTests,
    create,
    dataOf,
    errorOf,
    outcomesOf,
    sessionOf,
    waitForLength,
)

__all__ = ["LifetimeTests"]


def _callAll(store: ISessionStore, identifier: str) -> list[Deferred[Any]]:
    add = Changes(added={"n": 1})
    return [
        store.get(identifier),
        store.set(identifier, add),
        store.set(identifier, add),
        store.renew(identifier, makeIdentifier(), add),
        store.create(makeIdentifier(), {}),
        store.touch(identifier),
        store.destroy(identifier),
        store.all(),
        store.length(),
        store.clear(),
        store.cleanup(),
    ]


class LifetimeTests(BaseTests):
    """
    Initialisation, expiry, removal, cancellation.
    """

    async def test_it_provides_the_interface(self) -> None:
        """
        A store has everything that the interface declares.
        """
        async with self.using() as (store, _):
            verifyObject(ISessionStore, store)

    async def test_it_works_between_initialize_and_close(self) -> None:
        """
        Before and after that, every call fails.
        """
        store = await self.makeStore(Limits(), Clock())
        identifier = makeIdentifier()
        for _ in range(2):
            self._isInitialized(store, False)
            for error in await outcomesOf(_callAll(store, identifier)):
                assert isinstance(error, NotInitialized | Unavailable), error
            await store.initialize()
            self._isInitialized(store, True)
            identifier = await create(store)
            await store.close()

    def _isInitialized(self, store: ISessionStore, expected: bool) -> None:
        assert store.initialized is expected

    async def test_initialize_and_close_can_be_repeated(self) -> None:
        """
        Initialising an initialised store, and closing one that is not, do nothing.
        """
        unused = await self.makeStore(Limits(), Clock())
        await unused.close()
        async with self.using() as (store, _):
            identifier = await create(store, name="Ada")
            await store.initialize()
            assert await dataOf(store, identifier) == {"name": "Ada"}
            assert await outcomesOf([store.close(), store.close()]) == [None, None]
            await store.close()

    async def test_a_close_is_told(self) -> None:
        """
        C{whenLost()} fires when the store is closed, unless it was cancelled.
        """
        async with self.using() as (store, _):
            lost, cancelled = store.whenLost(), store.whenLost()
            cancelled.cancel()
            await errorOf(cancelled, CancelledError)
            assert not lost.called
            await store.close()
            await lost
            await store.whenLost()

    async def test_calls_in_progress_are_answered_at_a_close(self) -> None:
        """
        No call stays pending.
        """
        async with self.using() as (store, _):
            calls = _callAll(store, await create(store))
            await store.close()
            for outcome in await outcomesOf(calls):
                assert not isinstance(outcome, Exception) or isinstance(
                    outcome, NotInitialized | Unavailable | OutcomeUnknown
                ), repr(outcome)

    async def test_a_destroyed_session_stays_destroyed(self) -> None:
        """
        A late change does not bring a session back, and others are not affected.
        """
        async with self.using() as (store, _):
            identifier, other = await create(store, user="Ada"), await create(store)
            known = await sessionOf(store, identifier)
            assert await store.destroy(identifier) is True
            await self._isGone(store, identifier, known)
            assert await dataOf(store, other) == {}
            assert await store.length() == 1

    async def test_a_session_can_be_destroyed_amid_changes(self) -> None:
        """
        Changes before and after do not bring it back.
        """
        async with self.using() as (store, _):
            identifier = await create(store)
            known = await sessionOf(store, identifier)
            change = Changes(added={"n": 1})
            before = [store.set(identifier, change, known) for _ in range(5)]
            destroying = store.destroy(identifier)
            after = [store.set(identifier, change, known) for _ in range(5)]
            assert await destroying is True
            await outcomesOf([*before, *after, store.touch(identifier)])
            assert await store.get(identifier) is None
            assert await store.length() == 0

    async def _isGone(
        self, store: ISessionStore, identifier: str, known: StoredSession
    ) -> None:
        change = Changes({"a": 1})
        assert await store.get(identifier) is None
        assert await store.set(identifier, change, known) is None
        assert await store.set(identifier, change) is None
        assert await store.renew(identifier, makeIdentifier(), change) is None
        assert await store.touch(identifier) is False
        assert await store.destroy(identifier) is False

    async def test_an_unused_session_expires(self) -> None:
        """
        After the idle limit a session does not exist any more.
        """
        async with self.using() as (store, letPass):
            identifier = await create(store)
            known = await sessionOf(store, identifier)
            await letPass(8)
            assert await store.get(identifier) == known
            await letPass(2.5)
            await self._isGone(store, identifier, known)
            assert await store.length() == 0
            assert not await store.all()

    async def test_a_used_session_expires_later(self) -> None:
        """
        C{touch()} and C{set()} start the idle time anew, C{get()} does not.
        """
        async with self.using() as (store, letPass):
            touched, changed = await create(store), await create(store)
            for _ in range(3):
                await letPass(6)
                assert await store.touch(touched) is True
                assert await store.set(changed, Changes({"a": 1})) is not None
            known = await sessionOf(store, touched)
            await letPass(10.5)
            await self._isGone(store, touched, known)
            assert await store.get(changed) is None

    async def test_every_session_expires(self) -> None:
        """
        After the absolute limit even a session in use does not exist any more.
        """
        async with self.using() as (store, letPass):
            identifier = await create(store)
            for _ in range(5):
                await letPass(5.5)
                assert await store.touch(identifier) is True
                assert await store.set(identifier, Changes({"a": 1})) is not None
            known = await sessionOf(store, identifier)
            assert abs(known.expires - known.created - 30 * self.tick) < 0.01
            await letPass(3)
            await self._isGone(store, identifier, known)

    async def test_each_limit_is_optional(self) -> None:
        """
        Without any limit, a session lives for a day.
        """
        for idle, absolute, seconds in (
            (None, 5, 5 * self.tick),
            (5, None, 5 * self.tick),
            (None, None, 24 * 3600.0),
        ):
            async with self.using(idle, absolute) as (store, letPass):
                identifier = await create(store)
                made = await sessionOf(store, identifier)
                assert abs(made.expires - made.created - seconds) < 0.01
                await letPass(3)
                assert await store.touch(identifier) is True
                used = await sessionOf(store, identifier)
                assert (used.expires > made.expires) is (idle is not None)
                await letPass(3)
                isThere = await store.get(identifier) is not None
                assert isThere is (absolute is None)

    async def test_uses_in_quick_succession_are_written_once(self) -> None:
        """
        A use that hardly changes the expiry is not written.
        """
        async with self.using(idle=100, absolute=None) as (store, letPass):
            identifier = await create(store)
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

    async def test_cleanup_removes_expired_sessions(self) -> None:
        """
        Sessions that have not expired stay.
        """
        async with self.using() as (store, letPass):
            for _ in range(3):
                await create(store)
            await letPass(6)
            later = await create(store)
            await letPass(4.5)
            assert await store.length() == 1
            assert await store.cleanup() == (0 if self.expiresByItself else 3)
            assert await store.cleanup() == 0
            assert await store.get(later) is not None

    async def test_clear_removes_all_sessions(self) -> None:
        """
        After that the store is empty, and can be used.
        """
        async with self.using() as (store, _):
            identifiers = [await create(store) for _ in range(5)]
            assert await store.clear() == 5
            assert await store.length() == 0
            assert await store.clear() == 0
            assert await store.set(identifiers[0], Changes({"a": 1})) is None
            await create(store)
            assert await store.length() == 1

    async def test_sessions_are_listed_in_parts(self) -> None:
        """
        The parts are in the order of the keys, without expired sessions.
        """
        async with self.using() as (store, letPass):
            await create(store, n="expired")
            await letPass(9)
            made = {keyOf(await create(store, n=n)): {"n": n} for n in range(25)}
            await letPass(1.5)
            assert await store.length() == 25
            listed: list[Entry] = []
            while part := await store.all(listed[-1][0] if listed else b"", 10):
                assert len(part) <= 10
                listed.extend(part)
            keys = [key for key, _ in listed]
            assert keys == sorted(keys)
            assert {key: session.data for key, session in listed} == made
            assert list(await store.all()) == listed

    async def test_a_damaged_session_is_absent_and_removed(self) -> None:
        """
        Its visitor gets a new session, and others do not notice.
        """
        async with self.using() as (store, _):
            damaged, other = await create(store, n=1), await create(store, n=2)
            await self.damage(store, damaged)
            assert await store.get(damaged) is None
            await waitForLength(store, 1)
            assert await store.set(damaged, Changes({"a": 1})) is None
            assert await store.touch(damaged) is False
            assert await dataOf(store, other) == {"n": 2}
            assert (await store.create(damaged, {"n": 3})).data == {"n": 3}

    async def test_a_damaged_session_is_neither_changed_nor_listed(self) -> None:
        """
        C{all()} goes on to the sessions after it.
        """
        async with self.using() as (store, _):
            made = {keyOf(each): each for each in [await create(store) for _ in "ab"]}
            first, second = [made[key] for key, _ in await store.all()]
            await self.damage(store, first)
            assert [key for key, _ in await store.all(limit=1)] == [keyOf(second)]
            await waitForLength(store, 1)
            await self.damage(store, second)
            assert await store.set(second, Changes({"a": 1})) is None
            await waitForLength(store, 0)
            assert not await store.all()

    async def test_every_call_can_be_cancelled(self) -> None:
        """
        A cancelled call fires once, and other calls are not affected.
        """
        async with self.using() as (store, _):
            identifier, other, gone = [await create(store) for _ in range(3)]
            known = await sessionOf(store, identifier)
            kept = [store.set(identifier, Changes(added={"n": 1})) for _ in range(2)]
            cancelled: list[Deferred[Any]] = [
                store.set(identifier, Changes(added={"m": 1}), known),
                store.set(identifier, Changes(added={"m": 1})),
                store.set(other, Changes({"a": 1})),
                store.get(identifier),
                store.create(makeIdentifier(), {"a": 1}),
                store.touch(identifier),
                store.all(),
                store.length(),
                store.cleanup(),
                store.destroy(gone),
            ]
            kept += [store.set(identifier, Changes(added={"n": 1})) for _ in range(2)]
            for call in cancelled:
                call.cancel()
            outcomes = await outcomesOf(cancelled)
            for outcome in outcomes:
                assert not isinstance(outcome, Exception) or isinstance(
                    outcome, CancelledError
                ), repr(outcome)
            counted = [session.counted["n"] for session in await outcomesOf(kept)]
            assert sorted(counted) == [1, 2, 3, 4]
            data = await dataOf(store, identifier)
            done = sum(isinstance(each, StoredSession) for each in outcomes[:2])
            assert data.pop("n") == 4
            assert done <= data.pop("m", 0) <= 2
            assert not data
            assert await dataOf(store, other) in ({}, {"a": 1})
