"""
Tests of how a store opens and closes, and how sessions end.
"""

from __future__ import annotations

from typing import Any, Final
from unittest import SkipTest

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
    RENEWED_TICKS,
    BaseTests,
    create,
    errorOf,
    isUnknown,
    outcomesOf,
    read,
)

__all__ = ["LifetimeTests"]

MAX_POLLS: Final = 1_000
"""
Maximum number of checks for work that a store finishes after its result.
"""

_ADD = Changes(added={"n": 1})


def _callAll(store: ISessionStore, identifier: str) -> list[Deferred[Any]]:
    return [
        store.get(identifier),
        store.set(identifier, _ADD),
        store.set(identifier, _ADD),
        store.renew(identifier, makeIdentifier(), _ADD),
        store.wasRenewed(identifier),
        store.create(makeIdentifier(), {}),
        store.touch(identifier),
        store.destroy(identifier),
        store.all(),
        store.length(),
        store.cleanup(),
    ]


class LifetimeTests(BaseTests):
    """
    Initialisation, expiry, removal, cancellation.
    """

    async def test_it_works_between_initialize_and_close(self) -> None:
        """
        At other times, every call fails. Both methods can be called repeatedly.
        """
        store = await self.makeStore(Limits(), Clock())
        verifyObject(ISessionStore, store)
        identifier, ready = makeIdentifier(), []
        for _ in range(2):
            ready.append(store.initialized)
            for error in await outcomesOf(_callAll(store, identifier)):
                assert isinstance(error, NotInitialized | Unavailable), error
            await store.initialize()
            identifier = await create(store, name="Ada")
            await store.initialize()
            ready.append(store.initialized)
            assert (await read(store, identifier)).data == {"name": "Ada"}
            assert await outcomesOf([store.close(), store.close()]) == [None, None]
            await store.close()
        assert ready == [False, True] * 2

    async def test_a_close_is_reported(self) -> None:
        """
        C{whenLost()} fires when the store is closed, unless the caller has cancelled
        it. Calls in progress finish.
        """
        async with self.using() as (store, _):
            lost, cancelled = store.whenLost(), store.whenLost()
            cancelled.cancel()
            await errorOf(cancelled, CancelledError)
            calls = _callAll(store, await create(store))
            assert not lost.called
            await store.close()
            await lost
            await store.whenLost()
            for outcome in await outcomesOf(calls):
                assert not isinstance(outcome, Exception) or isinstance(
                    outcome, NotInitialized | Unavailable | OutcomeUnknown
                ), repr(outcome)

    async def test_a_store_may_report_that_it_is_idle(self) -> None:
        """
        C{whenIdle()} fires at once if no call is in progress, otherwise when all
        calls have ended, also by a close. Each caller can cancel.
        """
        async with self.using() as (store, _):
            whenIdle = getattr(store, "whenIdle", None)
            if whenIdle is None:
                raise SkipTest("the store has no whenIdle()")
            identifier = await create(store)
            assert whenIdle().called
            for isClosing in (False, True):
                calls = _callAll(store, identifier)
                given, idle = whenIdle(), whenIdle()
                given.cancel()
                idle.addCallback(lambda _, calls=calls: [c.called for c in calls])
                if isClosing:
                    await store.close()
                assert await idle == [True] * len(calls)
                await outcomesOf([given, *calls])
            assert whenIdle().called

    async def test_a_destroyed_session_stays_destroyed(self) -> None:
        """
        A late change does not restore a session. Other sessions stay.
        """
        async with self.using() as (store, _):
            identifier, other = await create(store, user="Ada"), await create(store)
            known = await read(store, identifier)
            before = [store.set(identifier, _ADD, known) for _ in range(5)]
            destroying = store.destroy(identifier)
            after = [store.set(identifier, _ADD, known) for _ in range(5)]
            assert await destroying is True
            await outcomesOf([*before, *after, store.touch(identifier)])
            await isUnknown(store, identifier, known)
            assert (await read(store, other)).data == {}
            assert await store.length() == 1

    async def test_a_renewed_identifier_is_remembered_for_a_while(self) -> None:
        """
        The store remembers it also after further renewals, and after the session was
        destroyed. The identifier gives no access, and is not listed as a session.
        """
        async with self.using() as (store, letPass):
            first, other = await create(store, a=1), await create(store)
            known = await read(store, first)
            second, third = makeIdentifier(), makeIdentifier()
            assert await store.wasRenewed(first) is False
            await store.renew(first, second, _ADD)
            await letPass(RENEWED_TICKS / 2)
            await store.renew(second, third, _ADD)
            assert await store.renew(makeIdentifier(), first, _ADD) is None
            for identifier, isRenewed in (
                (first, True),
                (second, True),
                (third, False),
                (other, False),
                (makeIdentifier(), False),
                ("malformed", False),
            ):
                assert await store.wasRenewed(identifier) is isRenewed
            await isUnknown(store, first, known)
            keys = sorted(keyOf(each) or b"" for each in (third, other))
            assert [key for key, _ in await store.all()] == keys
            assert await store.length() == 2
            await store.destroy(third)
            assert await store.wasRenewed(second) is True
            await letPass(RENEWED_TICKS / 2 + 0.5)
            assert await store.wasRenewed(first) is False
            assert await store.wasRenewed(second) is True
            assert await store.cleanup() == 0
            assert await store.clear() == 1
            fresh = await create(store)
            await store.renew(fresh, makeIdentifier(), _ADD)
            assert await store.clear() == 1

    async def test_a_session_expires(self) -> None:
        """
        C{touch()} and C{set()} restart the idle time, C{get()} does not. A session
        always expires after the absolute limit.
        """
        async with self.using() as (store, letPass):
            unused, touched, changed = [await create(store) for _ in range(3)]
            known = await read(store, unused)
            await letPass(8)
            assert await store.get(unused) == known
            for n in range(4):
                assert await store.touch(touched) is True
                assert await store.set(changed, Changes({"a": n})) is not None
                await letPass(5.4)
                assert await store.get(unused) is None
            used = await read(store, touched)
            assert abs(used.expires - used.created - 30 * self.tick) < 0.01
            await letPass(1)
            for identifier in (unused, touched, changed):
                await isUnknown(store, identifier, used)
            assert await store.length() == 0
            assert not await store.all()

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
                made = await read(store, identifier)
                assert abs(made.expires - made.created - seconds) < 0.01
                await letPass(3)
                assert await store.touch(identifier) is True
                used = await read(store, identifier)
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
            made = await read(store, identifier)
            for _ in range(4):
                await letPass(0.5)
                assert await store.touch(identifier) is True
            assert await store.get(identifier) == made
            await letPass(5)
            assert await store.touch(identifier) is True
            used = await read(store, identifier)
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
        After C{clear()} the store is empty, and can be used.
        """
        async with self.using() as (store, _):
            identifiers = [await create(store) for _ in range(5)]
            assert await store.clear() == 5
            assert await store.length() == await store.clear() == 0
            assert await store.set(identifiers[0], _ADD) is None
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
        Its visitor gets a new session, other sessions are not affected, and C{all()}
        lists the sessions after it.
        """
        async with self.using() as (store, _):
            made = {keyOf(each): each for each in [await create(store) for _ in "abc"]}
            first, second, third = [made[key] for key, _ in await store.all()]
            await self.damage(store, first)
            assert [key for key, _ in await store.all(limit=1)] == [keyOf(second)]
            await self._waitForLength(store, 2)
            assert (await store.create(first, {"n": 3})).data == {"n": 3}
            await self.damage(store, first)
            assert await store.get(first) is None
            await self.damage(store, second)
            assert await store.set(second, Changes({"a": 1})) is None
            await self._waitForLength(store, 1)
            assert await store.touch(second) is False
            assert (await read(store, third)).data == {}

    async def _waitForLength(self, store: ISessionStore, expected: int) -> None:
        for _ in range(MAX_POLLS):
            if await store.length() == expected:
                return
            # Removals that began earlier finish before this one.
            await store.destroy(makeIdentifier())
        raise AssertionError(f"there are not {expected} sessions")

    async def test_every_call_can_be_cancelled(self) -> None:
        """
        A cancelled call fires once, and other calls are not affected.
        """
        async with self.using() as (store, _):
            identifier, other = await create(store), await create(store)
            known = await read(store, identifier)
            kept = [store.set(identifier, _ADD) for _ in range(2)]
            cancelled: list[Deferred[Any]] = [
                store.set(identifier, Changes(added={"m": 1}), known),
                store.set(identifier, Changes(added={"m": 1})),
                *_callAll(store, other),
            ]
            kept += [store.set(identifier, _ADD) for _ in range(2)]
            for call in cancelled:
                call.cancel()
            outcomes = await outcomesOf(cancelled)
            for outcome in outcomes:
                assert not isinstance(outcome, Exception) or isinstance(
                    outcome, CancelledError
                ), repr(outcome)
            counted = [session.counted["n"] for session in await outcomesOf(kept)]
            assert sorted(counted) == [1, 2, 3, 4]
            data = (await read(store, identifier)).data
            done = sum(isinstance(each, StoredSession) for each in outcomes[:2])
            assert data.pop("n") == 4
            assert done <= data.pop("m", 0) <= 2
            assert not data
