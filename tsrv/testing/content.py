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
    SessionError,
    SessionTooLarge,
    StoredSession,
    keyOf,
    makeIdentifier,
)
from .base import BEGIN, BaseTests, create, errorOf, isUnknown, outcomesOf, read

__all__ = ["ContentTests"]

_MALFORMED: Final = (
    "",
    "x" * 100_000,
    "\udfff" * 43,
    "' OR 1=1 --",
    *("x" * 42 + end for end in ("", "xx", "!", "\n", "x\n", "\0", "\u0661")),
)


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
        C{get()} returns any text and number unchanged.
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
            for identifier in (changed, created):
                assert repr((await read(store, identifier)).data) == repr(data)

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
            assert await read(store, identifier) == created
            changed = await store.set(identifier, Changes({"more": (4,)}))
            assert changed == await read(store, identifier)
            assert changed.data == {**stored, "more": [4]}

    async def test_a_result_belongs_to_the_caller(self) -> None:
        """
        Changing a result, or an argument after a call, does not change the store.
        """
        data: dict[str, Any] = {"list": [1]}
        changes = Changes({"more": [1]})
        async with self.using() as (store, _):
            identifier = makeIdentifier()
            created = await store.create(identifier, data)
            both = await outcomesOf(store.set(identifier, changes) for _ in range(2))
            found = await read(store, identifier)
            known = await read(store, identifier)
            last = await store.set(identifier, Changes(added={"n": 1}), known)
            for each in (created, *both, found, last):
                each.data["list"].append("other")
                each.data["more"] = "other"
            assert data == {"list": [1]}
            assert changes.assigned == {"more": [1]}
            assert known.data == {"list": [1], "more": [1]}
            assert (await read(store, identifier)).data == {**known.data, "n": 1}

    async def test_an_identifier_is_used_once(self) -> None:
        """
        Creating a session never replaces another one.
        """
        async with self.using() as (store, _):
            identifier = makeIdentifier()
            outcomes = await outcomesOf(
                store.create(identifier, {"owner": number}) for number in range(8)
            )
            (created,) = [each for each in outcomes if isinstance(each, StoredSession)]
            assert sum(isinstance(each, SessionError) for each in outcomes) == 7
            await errorOf(store.create(identifier, {"owner": "Eve"}))
            assert (await read(store, identifier)).data == created.data

    async def test_an_unknown_identifier_is_not_adopted(self) -> None:
        """
        Only C{create()} creates a session. It refuses a malformed identifier; no
        error repeats the identifier. A stored key is not an identifier.
        """
        async with self.using() as (store, _):
            known = StoredSession({"a": 1}, BEGIN, BEGIN + 1000 * self.tick, 1)
            kept = await create(store, a=1)
            ((key, session),) = await store.all()
            assert (key, session) == (keyOf(kept), await read(store, kept))
            keys = key.hex(), key.decode("latin-1")
            new = [makeIdentifier() for _ in range(9)]
            for identifier in (*_MALFORMED, *keys, *new):
                await isUnknown(store, identifier, known)
            for identifier in _MALFORMED:
                error = await errorOf(store.create(identifier, {}))
                assert not identifier or identifier not in str(error)
                await errorOf(store.renew(kept, identifier, Changes()))
            assert (await read(store, kept)).data == {"a": 1}
            assert await store.length() == 1

    async def test_a_change_keeps_what_it_does_not_name(self) -> None:
        """
        A change assigns members, removes them, or adds to them; the others stay.
        """
        async with self.using() as (store, _):
            identifier = await create(store, a=1, b=2, n=5, text="text", yes=True)
            before = await read(store, identifier)
            added = {"n": 1.5, "text": 2, "yes": 3, "new": 4}
            changed = await store.set(
                identifier, Changes({"c": 3}, frozenset({"b", "none"}), added)
            )
            found = await read(store, identifier)
            counted = {"n": 6.5, "text": 2, "yes": 3, "new": 4}
            assert found.data == {"a": 1, "c": 3, **counted}
            assert changed == replace(found, counted=counted)
            assert found.version > before.version
            assert found.created == before.created

    async def test_simultaneous_changes_are_merged(self) -> None:
        """
        Changes of different members are all kept, even if they are based on an old
        version. Of two changes to one member, the later wins. Each addition gets a
        number of its own.
        """
        async with self.using() as (store, _):
            identifier = await create(store, old="old", other="other")
            known = await read(store, identifier)
            changed = await outcomesOf(
                store.set(
                    identifier,
                    Changes({f"m{n}": n, "last": n}, frozenset({"old"}), {"n": 1}),
                    known if n % 2 else None,
                )
                for n in range(32)
            )
            assert sorted(each.counted["n"] for each in changed) == list(range(1, 33))
            members = {f"m{n}": n for n in range(32)}
            expected = {"other": "other", "last": 31, "n": 32, **members}
            assert (await read(store, identifier)).data == expected
            late = await store.set(identifier, Changes({"late": 1}), known)
            assert late is not None
            assert late.data == {**expected, "late": 1}

    async def test_a_change_that_cannot_be_stored_fails_alone(self) -> None:
        """
        Changes that are written together with the failed one succeed.
        """
        numbers = {"whole": 10**300, "real": 1.7e308}
        async with self.using(size=500) as (store, _):
            identifier = await create(store, **numbers)
            add = Changes(added={"n": 1})
            bad = [
                Changes({"text": "x" * 501}),
                Changes({"text": object()}),
                Changes(added={"n": float("inf")}),
                Changes(added={"real": 1.7e308}),
                Changes({"whole": 10**400}, added={"whole": 0.5}),
            ]
            outcomes = await outcomesOf(
                store.set(identifier, each) for each in (add, *bad, add)
            )
            assert sorted(outcomes[at].counted["n"] for at in (0, -1)) == [1, 2]
            assert isinstance(outcomes[1], SessionTooLarge)
            assert all(isinstance(each, SessionError) for each in outcomes[1:-1])
            assert (await read(store, identifier)).data == {**numbers, "n": 2}

    async def test_what_cannot_be_stored_is_refused(self) -> None:
        """
        The size limit counts bytes. A store refuses values that it could not return
        unchanged.
        """
        async with self.using(size=100) as (store, _):
            fits = {"a": "é" * 46}
            identifier = await create(store, **fits)
            for value, expected in (
                ("é" * 46 + "x", SessionTooLarge),
                *((makeValue(), SessionError) for makeValue in _NOT_JSON),
            ):
                data = {"a": value}
                renewing = store.renew(identifier, makeIdentifier(), Changes(data))
                await errorOf(renewing, expected)
                await errorOf(store.create(makeIdentifier(), data), expected)
                await errorOf(store.set(identifier, Changes(data)), expected)
            assert (await read(store, identifier)).data == fits
            assert await store.length() == 1

    async def test_a_renewed_session_has_only_its_new_identifier(self) -> None:
        """
        C{renew()} changes the session, replaces its identifier, and restarts its
        lifetime.
        """
        async with self.using() as (store, letPass):
            old, new = await create(store, a=1, b=1, n=1), makeIdentifier()
            before = await read(store, old)
            await letPass(1.0)
            changes = Changes({"a": 2}, frozenset({"b"}), {"n": 1})
            renewed = await store.renew(old, new, changes)
            assert renewed is not None
            assert renewed.data == {"a": 2, "n": 2}
            assert renewed == await read(store, new)
            assert renewed.created > before.created
            assert renewed.expires > before.expires
            await isUnknown(store, old, before)
            assert await store.length() == 1

    async def test_a_session_is_renewed_once(self) -> None:
        """
        Of simultaneous renewals, one succeeds. Its session has all changes whose
        Deferreds fired with a session.
        """
        async with self.using() as (store, _):
            old = await create(store, n=0)
            adding = [store.set(old, Changes(added={"n": 1})) for _ in range(5)]
            renewing = [store.renew(old, makeIdentifier(), Changes()) for _ in range(5)]
            added = [each for each in await outcomesOf(adding) if each is not None]
            renewed = [each for each in await outcomesOf(renewing) if each is not None]
            assert [each.data for each in renewed] == [{"n": len(added)}]
            assert await store.length() == 1
