"""
Tests of how sessions are created, found and changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from ..sessions import (
    Changes,
    ISessionStore,
    SessionError,
    SessionTooLarge,
    StoredSession,
    keyOf,
    makeIdentifier,
)
from .base import (
    BEGIN,
    BaseTests,
    create,
    dataOf,
    errorOf,
    outcomesOf,
    sessionOf,
)

__all__ = ["ContentTests"]

_MALFORMED: Final = (
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
Texts that are not identifiers.
"""


def _endless() -> dict[str, Any]:
    data: dict[str, Any] = {}
    data["self"] = data
    return data


_NOT_JSON: Final[Sequence[Callable[[], object]]] = (
    object,
    lambda: b"bytes",
    lambda: {1, 2},
    lambda: float("nan"),
    lambda: float("-inf"),
    lambda: "\ud800",
    lambda: {("a", "b"): 1},
    _endless,
)


class ContentTests(BaseTests):
    """
    Identifiers, values, changes.
    """

    async def test_every_json_value_is_stored(self) -> None:
        """
        Any text and number comes back as it was.
        """
        data = {
            "": None,
            "texts": ["", "\0", "é\n\u2028", "\U0001f600", "'\"\\;--", "\x7f\ufffe"],
            "numbers": [0, -1, 2**53 + 1, 2**64, 0.1, -1e-300, 1e300],
            "rest": [True, False, {}, [], {"a": {"b": [{}]}}],
            "sp ace.$\0": 1,
        }
        async with self.using() as (store, _):
            changed, created = await create(store), await create(store, **data)
            await store.set(changed, Changes(data))
            assert repr(await dataOf(store, changed)) == repr(data)
            assert repr(await dataOf(store, created)) == repr(data)

    async def test_a_result_shows_what_is_stored(self) -> None:
        """
        A tuple is returned as the list that C{get()} finds.
        """
        data: dict[Any, Any] = {"pair": (1, 2), 3: "three"}
        stored = {"pair": [1, 2], "3": "three"}
        async with self.using() as (store, _):
            identifier = makeIdentifier()
            created = await store.create(identifier, MappingProxyType(data))
            assert created.data == stored
            assert await sessionOf(store, identifier) == created
            changed = await store.set(identifier, Changes({"more": (4,)}))
            assert changed is not None
            assert changed.data == {**stored, "more": [4]}
            assert await sessionOf(store, identifier) == changed

    async def test_a_result_belongs_to_the_caller(self) -> None:
        """
        Modifying a result, or an argument afterwards, changes nothing else.
        """
        data: dict[str, Any] = {"list": [1]}
        changes = Changes({"more": [1]})
        async with self.using() as (store, _):
            identifier = makeIdentifier()
            created = await store.create(identifier, data)
            both = await outcomesOf([store.set(identifier, changes) for _ in range(2)])
            found = await sessionOf(store, identifier)
            for each in (created, *both, found):
                each.data["list"].append("other")
            for each in (*both, found):
                each.data["more"].append("other")
            assert data == {"list": [1]}
            assert changes.assigned == {"more": [1]}
            expected = {"list": [1], "more": [1]}
            known = await sessionOf(store, identifier)
            assert known.data == expected
            changed = await store.set(identifier, Changes(added={"n": 1}), known)
            assert changed is not None
            changed.data["list"].append("other")
            assert known.data == expected

    async def test_an_identifier_is_used_once(self) -> None:
        """
        Creating a session never replaces another one.
        """
        async with self.using() as (store, _):
            identifier = await create(store, owner="Ada")
            await errorOf(store.create(identifier, {"owner": "Eve"}))
            assert await dataOf(store, identifier) == {"owner": "Ada"}
            other = makeIdentifier()
            outcomes = await outcomesOf(
                [store.create(other, {"owner": number}) for number in range(8)]
            )
            (created,) = [each for each in outcomes if isinstance(each, StoredSession)]
            assert await dataOf(store, other) == created.data
            assert sum(isinstance(each, SessionError) for each in outcomes) == 7

    async def test_an_unknown_identifier_is_not_adopted(self) -> None:
        """
        Only C{create()} creates a session.
        """
        async with self.using() as (store, _):
            for _ in range(20):
                await self._isUnknown(store, makeIdentifier())
            assert await store.length() == 0

    async def test_a_malformed_identifier_is_unknown(self) -> None:
        """
        Whatever a cookie contains does no harm, and is not repeated in an error.
        """
        async with self.using() as (store, _):
            kept = await create(store, a=1)
            for identifier in _MALFORMED:
                await self._isUnknown(store, identifier)
                error = await errorOf(store.create(identifier, {}))
                assert not identifier or identifier not in str(error)
            await errorOf(store.renew(kept, "malformed", Changes()))
            assert await dataOf(store, kept) == {"a": 1}
            assert await store.length() == 1

    async def _isUnknown(self, store: ISessionStore, identifier: str) -> None:
        change = Changes({"a": 1}, frozenset({"b"}), {"c": 1})
        known = StoredSession({"a": 1}, BEGIN, BEGIN + 1000 * self.tick, 1)
        assert await store.get(identifier) is None
        assert await store.set(identifier, change) is None
        assert await store.set(identifier, change, known) is None
        assert await store.renew(identifier, makeIdentifier(), change) is None
        assert await store.touch(identifier) is False
        assert await store.destroy(identifier) is False

    async def test_identifiers_are_not_stored(self) -> None:
        """
        A stored key cannot be used as an identifier.
        """
        async with self.using() as (store, _):
            identifier = await create(store, name="Ada")
            ((key, session),) = await store.all()
            assert key == keyOf(identifier)
            assert session == await sessionOf(store, identifier)
            assert identifier not in repr((key, session))
            for text in (key.hex(), key.decode("latin-1")):
                assert await store.get(text) is None

    async def test_a_change_keeps_what_it_does_not_name(self) -> None:
        """
        Members are assigned, removed and added to; the others stay.
        """
        async with self.using() as (store, _):
            identifier = await create(store, a=1, b=2, n=5, text="text", yes=True)
            before = await sessionOf(store, identifier)
            added = {"n": 1.5, "text": 2, "yes": 3, "new": 4}
            changed = await store.set(
                identifier, Changes({"c": 3}, frozenset({"b", "none"}), added)
            )
            found = await sessionOf(store, identifier)
            counted = {"n": 6.5, "text": 2, "yes": 3, "new": 4}
            assert found.data == {"a": 1, "c": 3, **counted}
            assert changed == replace(found, counted=counted)
            assert found.version > before.version
            assert found.created == before.created

    async def test_simultaneous_changes_are_merged(self) -> None:
        """
        Changes of different members are all kept; of the same member, the later one
        wins; and each addition gets a number of its own.
        """
        async with self.using() as (store, _):
            identifier = await create(store, old="old", other="other")
            known = await sessionOf(store, identifier)
            changes = [Changes({f"m{n}": n, "last": n}) for n in range(20)]
            removal = Changes(removed=frozenset({"old"}))
            await outcomesOf(
                [store.set(identifier, each, known) for each in (*changes, removal)]
            )
            added = await outcomesOf(
                [store.set(identifier, Changes(added={"n": 1})) for _ in range(32)]
            )
            assert sorted(each.counted["n"] for each in added) == list(range(1, 33))
            members = {f"m{n}": n for n in range(20)}
            expected = {"other": "other", "last": 19, "n": 32, **members}
            assert await dataOf(store, identifier) == expected

    async def test_a_change_may_be_based_on_an_old_version(self) -> None:
        """
        Changes that others have made since the session was read are kept.
        """
        async with self.using() as (store, _):
            identifier = await create(store, a=1, n=1)
            known = await sessionOf(store, identifier)
            await store.set(identifier, Changes({"b": 2}, added={"n": 1}), known)
            last = Changes({"c": 3}, added={"n": 1})
            changed = await store.set(identifier, last, known)
            assert changed is not None
            assert changed.data == {"a": 1, "b": 2, "c": 3, "n": 3}
            assert changed.counted == {"n": 3}
            assert await dataOf(store, identifier) == changed.data

    async def test_a_change_that_cannot_be_stored_fails_alone(self) -> None:
        """
        Changes that are written with it succeed.
        """
        async with self.using(size=500) as (store, _):
            identifier = await create(store, whole=10**300, real=1.7e308)
            add = Changes(added={"n": 1})
            outcomes = await outcomesOf(
                [
                    store.set(identifier, each)
                    for each in (
                        add,
                        Changes({"text": "x" * 501}),
                        add,
                        Changes({"text": object()}),
                        Changes(added={"n": float("inf")}),
                        Changes(added={"real": 1.7e308}),
                        Changes({"whole": 10**400}, added={"whole": 0.5}),
                        add,
                    )
                ]
            )
            counted = [outcomes[number].counted["n"] for number in (0, 2, 7)]
            assert sorted(counted) == [1, 2, 3]
            assert isinstance(outcomes[1], SessionTooLarge)
            assert all(isinstance(each, SessionError) for each in outcomes[3:7])
            expected = {"whole": 10**300, "real": 1.7e308, "n": 3}
            assert await dataOf(store, identifier) == expected

    async def test_the_size_of_a_session_is_limited(self) -> None:
        """
        The limit counts bytes, and a session that exceeds it is not stored.
        """
        async with self.using(size=100) as (store, _):
            fits, large = {"a": "é" * 46}, {"a": "é" * 46 + "x"}
            identifier = await create(store, **fits)
            creating = store.create(makeIdentifier(), large)
            await errorOf(creating, SessionTooLarge)
            await errorOf(store.set(identifier, Changes(large)), SessionTooLarge)
            renewing = store.renew(identifier, makeIdentifier(), Changes(large))
            await errorOf(renewing, SessionTooLarge)
            assert await dataOf(store, identifier) == fits
            assert await store.length() == 1

    async def test_a_value_that_is_not_json_is_refused(self) -> None:
        """
        Nothing is stored that would come back as something else.
        """
        async with self.using() as (store, _):
            identifier = await create(store, a=1)
            for makeValue in _NOT_JSON:
                data = {"a": makeValue()}
                await errorOf(store.create(makeIdentifier(), data))
                await errorOf(store.set(identifier, Changes(data)))
                renewing = store.renew(identifier, makeIdentifier(), Changes(data))
                await errorOf(renewing)
            assert await dataOf(store, identifier) == {"a": 1}
            assert await store.length() == 1

    async def test_a_renewed_session_has_only_its_new_identifier(self) -> None:
        """
        C{renew()} changes the session, replaces its identifier, and starts its
        lifetime anew.
        """
        async with self.using() as (store, letPass):
            old, new = await create(store, a=1, b=1, n=1), makeIdentifier()
            before = await sessionOf(store, old)
            await letPass(1.0)
            changes = Changes({"a": 2}, frozenset({"b"}), {"n": 1})
            renewed = await store.renew(old, new, changes)
            assert renewed is not None
            assert renewed.data == {"a": 2, "n": 2}
            assert renewed == await sessionOf(store, new)
            assert renewed.created > before.created
            assert renewed.expires > before.expires
            await self._isUnknown(store, old)
            assert await store.length() == 1

    async def test_a_session_is_renewed_once(self) -> None:
        """
        Of simultaneous renewals one succeeds, with all changes that were
        acknowledged.
        """
        async with self.using() as (store, _):
            old = await create(store, n=0)
            adding = [store.set(old, Changes(added={"n": 1})) for _ in range(5)]
            renewing = [store.renew(old, makeIdentifier(), Changes()) for _ in range(5)]
            added = [each for each in await outcomesOf(adding) if each is not None]
            renewed = [each for each in await outcomesOf(renewing) if each is not None]
            assert [each.data for each in renewed] == [{"n": len(added)}]
            assert await store.length() == 1
