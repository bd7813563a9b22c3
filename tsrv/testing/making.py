"""
What a store is, and how sessions are made in it and found.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from ..asyncmodule import NotInitialized
from ..errors import OutcomeUnknown, Unavailable
from ..sessions import (
    Changes,
    ISessionStore,
    Limits,
    SessionError,
    StoredSession,
    keyOf,
    makeIdentifier,
)
from .base import (
    BEGIN,
    DAY,
    Base,
    dataOf,
    make,
    outcomeOf,
    outcomesOf,
    refused,
    sessionOf,
)

__all__ = ["Making"]

_IMPOSSIBLE: Final = (
    "",
    "x" * 42,
    "x" * 44,
    "x" * 100_000,
    "x" * 42 + "!",
    "x" * 42 + "\n",
    "x" * 43 + "\n",
    "x" * 42 + "\0",
    "x" * 42 + "é",
    "x" * 42 + "\u0661",
    "x" * 42 + "\ud800",
    "\udfff" * 43,
    "' OR 1=1 --",
)
"""
What no session can have for an identifier.
"""


class Making(Base):
    """
    A store, and what is made in it.
    """

    async def test_it_is_a_store(self) -> None:
        """
        Whoever is given it relies on all that is in the interface.
        """
        async with self._using() as (store, _):
            verifyObject(ISessionStore, store)

    async def test_it_is_asked_only_between_initialisation_and_close(self) -> None:
        """
        A wrapper's queue is for what comes before; what comes behind it fails.
        """
        store = await self.makeStore(Limits(), Clock())
        states = [store.initialized]
        await self._fails(store)
        await store.initialize()
        states.append(store.initialized)
        identifier = await make(store)
        await store.close()
        states.append(store.initialized)
        await self._fails(store, identifier)
        assert states == [False, True, False]

    async def _fails(
        self, store: ISessionStore, identifier: str = makeIdentifier()
    ) -> None:
        outcomes = await outcomesOf(
            [
                store.get(identifier),
                store.set(identifier, Changes({"a": 1})),
                store.create(makeIdentifier(), {}),
                store.touch(identifier),
                store.destroy(identifier),
                store.all(),
                store.length(),
                store.clear(),
                store.cleanup(),
            ]
        )
        for outcome in outcomes:
            assert isinstance(outcome, NotInitialized | Unavailable), outcome

    async def test_it_can_be_initialised_again(self) -> None:
        """
        Nobody need know whether somebody else has done so.
        """
        async with self._using() as (store, _):
            identifier = await make(store, name="Ada")
            await store.initialize()
            assert await dataOf(store, identifier) == {"name": "Ada"}

    async def test_it_can_be_closed_again_and_at_any_time(self) -> None:
        """
        Who closes in two ways, or before it was of use, must not be punished.
        """
        unused = await self.makeStore(Limits(), Clock())
        await unused.close()
        async with self._using() as (store, _):
            await outcomesOf([store.close(), store.close()])
            await store.close()

    async def test_it_tells_when_it_is_closed(self) -> None:
        """
        A wrapper waits for that, to queue what comes afterwards.
        """
        async with self._using() as (store, _):
            lost, given = store.whenLost(), store.whenLost()
            assert not lost.called
            given.cancel()
            assert isinstance(await outcomeOf(given), CancelledError)
            assert not lost.called
            await store.close()
            await lost
            await store.whenLost()

    async def test_what_is_under_way_when_it_is_closed_is_answered(self) -> None:
        """
        Somebody waits for each of these answers, and must not for ever.
        """
        async with self._using() as (store, _):
            identifier = await make(store)
            answers: list[Deferred[Any]] = [
                store.get(identifier),
                store.set(identifier, Changes(added={"n": 1})),
                store.set(identifier, Changes(added={"n": 1})),
                store.touch(identifier),
                store.all(),
                store.clear(),
                store.cleanup(),
            ]
            await store.close()
            for outcome in await outcomesOf(answers):
                assert not isinstance(outcome, Exception) or isinstance(
                    outcome, NotInitialized | Unavailable | OutcomeUnknown
                ), repr(outcome)

    async def test_what_was_made_is_found(self) -> None:
        """
        That is what a store is for; the rest is about what can go wrong.
        """
        async with self._using() as (store, _):
            identifier = makeIdentifier()
            made = await store.create(identifier, {"name": "Ada"})
            found = await sessionOf(store, identifier)
            assert found == made
            assert found.data == {"name": "Ada"}
            assert abs(found.expires - found.created - 10 * self.tick) < 0.01

    async def test_every_value_that_json_has_comes_back(self) -> None:
        """
        Databases have their own ideas of text, of numbers, and of zero bytes.
        """
        data = {
            "": None,
            "texts": ["", "\0", "é\n\u2028", "\U0001f600", "'\"\\;--", "\x7f\ufffe"],
            "numbers": [0, -1, 2**53 + 1, 2**64, 0.1, -1e-300, 1e300],
            "rest": [True, False, {}, [], {"a": {"b": [{}]}}],
            "sp ace.$\0": 1,
        }
        async with self._using() as (store, _):
            identifier = await make(store)
            await store.set(identifier, Changes(data))
            other = makeIdentifier()
            await store.create(other, data)
            assert repr(await dataOf(store, identifier)) == repr(data)
            assert repr(await dataOf(store, other)) == repr(data)

    async def test_an_answer_is_what_is_stored(self) -> None:
        """
        JSON makes lists of tuples and texts of numbers: who goes on with an answer
        must have what the next request finds.
        """
        data: dict[Any, Any] = {"pair": (1, 2), 3: "three"}
        stored = {"pair": [1, 2], "3": "three"}
        async with self._using() as (store, _):
            identifier = makeIdentifier()
            made = await store.create(identifier, MappingProxyType(data))
            assert made.data == stored
            changed = await store.set(identifier, Changes({"more": (4,)}))
            assert changed is not None
            assert changed.data == {**stored, "more": [4]}
            assert await sessionOf(store, identifier) == changed

    async def test_what_is_answered_is_the_callers_own(self) -> None:
        """
        What a request does to what it was given must not reach others before it
        is stored.
        """
        data: dict[str, Any] = {"list": [1]}
        changes = Changes({"more": [1]})
        async with self._using() as (store, _):
            identifier = makeIdentifier()
            made = await store.create(identifier, data)
            both = await outcomesOf([store.set(identifier, changes) for _ in range(2)])
            found = await sessionOf(store, identifier)
            for each in (made, *both, found):
                each.data["list"].append("other")
            for each in (*both, found):
                each.data["more"].append("other")
            assert data == {"list": [1]}
            assert changes.assigned == {"more": [1]}
            expected = {"list": [1], "more": [1]}
            assert await dataOf(store, identifier) == expected
            known = await sessionOf(store, identifier)
            changed = await store.set(identifier, Changes(added={"n": 1}), known)
            assert changed is not None
            changed.data["list"].append("other")
            assert known.data == expected

    async def test_a_session_is_made_once(self) -> None:
        """
        One that is there is somebody's: to make it anew would end that, or give
        him another's.
        """
        async with self._using() as (store, _):
            identifier = await make(store, owner="Ada")
            await refused(store.create(identifier, {"owner": "Eve"}))
            assert await dataOf(store, identifier) == {"owner": "Ada"}
            other = makeIdentifier()
            outcomes = await outcomesOf(
                [store.create(other, {"owner": number}) for number in range(8)]
            )
            (made,) = [each for each in outcomes if isinstance(each, StoredSession)]
            assert await dataOf(store, other) == made.data
            assert sum(isinstance(each, SessionError) for each in outcomes) == 7

    async def test_an_unknown_identifier_is_never_adopted(self) -> None:
        """
        Whoever could choose one could put it into somebody else's browser and
        wait until that one logs in.
        """
        async with self._using() as (store, _):
            for _ in range(100):
                await self._isUnknown(store, makeIdentifier())
            assert await store.length() == 0

    async def test_an_impossible_identifier_is_an_unknown_one(self) -> None:
        """
        Cookies bring everything: that must break nothing, and store nothing.
        """
        async with self._using() as (store, _):
            for identifier in _IMPOSSIBLE:
                await self._isUnknown(store, identifier)
                error = await refused(store.create(identifier, {}))
                assert not identifier or identifier not in str(error)
            assert await store.length() == 0

    async def _isUnknown(self, store: ISessionStore, identifier: str) -> None:
        change = Changes({"a": 1}, frozenset({"b"}), {"c": 1})
        known = StoredSession({"a": 1}, BEGIN, BEGIN + DAY, 1)
        assert await store.get(identifier) is None
        assert await store.set(identifier, change) is None
        assert await store.set(identifier, change, known) is None
        assert await store.touch(identifier) is False
        assert await store.destroy(identifier) is False

    async def test_keys_are_kept_and_not_identifiers(self) -> None:
        """
        Whoever reads what is stored must not be able to log in with it.
        """
        async with self._using() as (store, _):
            identifier = await make(store, name="Ada")
            session = await sessionOf(store, identifier)
            entries = await store.all()
            assert list(entries) == [(keyOf(identifier), session)]
            assert identifier not in repr(entries)
            # What is stored is no identifier, whichever way it is written.
            for text in (entries[0][0].hex(), entries[0][0].decode("latin-1")):
                assert await store.get(text) is None
