"""
How sessions are changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from ..sessions import (
    Changes,
    SessionError,
    SessionTooLarge,
    makeIdentifier,
)
from .base import (
    Base,
    dataOf,
    make,
    outcomesOf,
    refused,
    sessionOf,
)

__all__ = ["Changing"]


def _endless() -> dict[str, Any]:
    data: dict[str, Any] = {}
    data["self"] = data
    return data


_NO_JSON: Final[Sequence[Callable[[], object]]] = (
    object,
    lambda: b"bytes",
    lambda: {1, 2},
    lambda: float("nan"),
    lambda: float("-inf"),
    lambda: "\ud800",
    lambda: {("a", "b"): 1},
    _endless,
)
"""
What makes a value that JSON does not have.
"""


class Changing(Base):
    """
    What becomes of changes.
    """

    async def test_a_change_is_made_to_what_is_there(self) -> None:
        """
        What a change does not name stays; and each is counted.
        """
        async with self._using() as (store, _):
            identifier = await make(store, a=1, b=2, n=5, text="no number", yes=True)
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

    async def test_concurrent_changes_of_different_members_are_all_there(self) -> None:
        """
        To write the whole session instead loses all but one of them, silently.
        """
        async with self._using() as (store, _):
            identifier = await make(store, old="old", other="other")
            known = await sessionOf(store, identifier)
            names = [f"n{number}" for number in range(20)]
            await outcomesOf(
                [store.set(identifier, Changes({name: name}), known) for name in names]
                + [store.set(identifier, Changes(removed=frozenset({"old"})), known)]
            )
            expected = {"other": "other", **{name: name for name in names}}
            assert await dataOf(store, identifier) == expected

    async def test_of_changes_of_the_same_member_the_later_one_wins(self) -> None:
        """
        That is what is promised, and what who clicks twice expects.
        """
        async with self._using() as (store, _):
            identifier = await make(store, page=0)
            known = await sessionOf(store, identifier)
            await outcomesOf(
                [
                    store.set(identifier, Changes({"page": number}), known)
                    for number in range(1, 10)
                ]
            )
            assert await dataOf(store, identifier) == {"page": 9}

    async def test_what_is_known_may_be_out_of_date(self) -> None:
        """
        A slow request has a session as it was; what others have done since must
        not be undone.
        """
        async with self._using() as (store, _):
            identifier = await make(store, a=1, n=1)
            known = await sessionOf(store, identifier)
            await store.set(identifier, Changes({"b": 2}, added={"n": 1}), known)
            changed = await store.set(
                identifier, Changes({"c": 3}, added={"n": 1}), known
            )
            assert changed is not None
            assert changed.data == {"a": 1, "b": 2, "c": 3, "n": 3}
            assert changed.counted == {"n": 3}
            assert await dataOf(store, identifier) == changed.data

    async def test_no_count_is_lost(self) -> None:
        """
        Of 32 requests at a time each is counted, and each gets a number of its
        own.
        """
        async with self._using() as (store, _):
            identifier = await make(store)
            answers = await outcomesOf(
                [store.set(identifier, Changes(added={"n": 1})) for _ in range(32)]
            )
            counted = [answer.counted["n"] for answer in answers]
            assert sorted(counted) == list(range(1, 33))
            assert await dataOf(store, identifier) == {"n": 32}

    async def test_who_cannot_be_stored_fails_alone(self) -> None:
        """
        What comes together may be written together, but one visitor's request
        must not spoil another one.
        """
        async with self._using(size=100) as (store, _):
            identifier = await make(store)
            outcomes = await outcomesOf(
                [
                    store.set(identifier, Changes(added={"n": 1})),
                    store.set(identifier, Changes({"text": "x" * 101})),
                    store.set(identifier, Changes(added={"n": 1})),
                    store.set(identifier, Changes({"text": object()})),
                    store.set(identifier, Changes(added={"n": float("inf")})),
                    store.set(identifier, Changes(added={"n": 1})),
                ]
            )
            counted = [outcomes[number].counted["n"] for number in (0, 2, 5)]
            assert sorted(counted) == [1, 2, 3]
            assert isinstance(outcomes[1], SessionTooLarge)
            assert isinstance(outcomes[3], SessionError)
            assert isinstance(outcomes[4], SessionError)
            assert await dataOf(store, identifier) == {"n": 3}

    async def test_a_number_may_become_too_large(self) -> None:
        """
        Numbers in JSON have no bound, and those of the processor have one.
        """
        async with self._using() as (store, _):
            identifier = await make(store, whole=10**400, real=1.7e308)
            outcomes = await outcomesOf(
                [
                    store.set(identifier, Changes(added={"whole": 0.5})),
                    store.set(identifier, Changes(added={"real": 1.7e308})),
                    store.set(identifier, Changes(added={"n": 1})),
                ]
            )
            assert isinstance(outcomes[0], SessionError)
            assert isinstance(outcomes[1], SessionError)
            assert outcomes[2].counted == {"n": 1}

    async def test_a_session_has_only_so_many_bytes(self) -> None:
        """
        Visitors decide what is in it, and there are many of them.
        """
        async with self._using(size=100) as (store, _):
            fits = {"a": "é" * 46}
            identifier = await make(store, **fits)
            large = {"a": "é" * 46 + "x"}
            error = await refused(store.create(makeIdentifier(), large))
            assert isinstance(error, SessionTooLarge)
            error = await refused(store.set(identifier, Changes(large)))
            assert isinstance(error, SessionTooLarge)
            assert await dataOf(store, identifier) == fits
            assert await store.length() == 1

    async def test_what_is_no_json_is_refused(self) -> None:
        """
        It would come back as something else, or not at all.
        """
        async with self._using() as (store, _):
            identifier = await make(store, a=1)
            for makeValue in _NO_JSON:
                await refused(store.create(makeIdentifier(), {"a": makeValue()}))
                await refused(store.set(identifier, Changes({"a": makeValue()})))
            assert await dataOf(store, identifier) == {"a": 1}
            assert await store.length() == 1

    async def test_a_session_gets_another_identifier(self) -> None:
        """
        Who logs in must have one that nobody has known before; the one of before
        is of no use, and its session is not there twice.
        """
        async with self._using() as (store, _):
            old, new = await make(store, a=1, b=1, n=1), makeIdentifier()
            renewed = await store.renew(
                old, new, Changes({"a": 2}, frozenset({"b"}), {"n": 1})
            )
            assert renewed is not None
            assert renewed.data == {"a": 2, "n": 2}
            assert renewed == await sessionOf(store, new)
            assert await store.get(old) is None
            assert await store.set(old, Changes({"c": 1})) is None
            assert not await store.destroy(old)
            assert await store.length() == 1

    async def test_its_life_begins_anew_then(self) -> None:
        """
        The time for which somebody stays logged in is counted from when he did so.
        """
        async with self._using() as (store, letPass):
            old, new = await make(store), makeIdentifier()
            before = await sessionOf(store, old)
            await letPass(1.0)
            renewed = await store.renew(old, new, Changes())
            assert renewed is not None
            assert renewed.created > before.created
            assert renewed.expires > before.expires

    async def test_what_is_no_session_gets_no_other_identifier(self) -> None:
        """
        One that has ended is not brought back by who was about to log in.
        """
        async with self._using() as (store, _):
            ended = await make(store, a=1)
            await store.destroy(ended)
            for identifier in (ended, makeIdentifier(), "none"):
                renewed = await store.renew(identifier, makeIdentifier(), Changes())
                assert renewed is None
            assert await store.length() == 0
            kept = await make(store, a=1)
            await refused(store.renew(kept, "none", Changes()))
            await refused(store.renew(kept, makeIdentifier(), Changes({"a": {1}})))
            assert await dataOf(store, kept) == {"a": 1}

    async def test_of_many_who_renew_a_session_one_does(self) -> None:
        """
        Else each who logs in twice at once has two sessions; and what others
        change meanwhile is in the one that there is, or they know that it is not.
        """
        async with self._using() as (store, _):
            old = await make(store, n=0)
            added = [store.set(old, Changes(added={"n": 1})) for _ in range(5)]
            renewing = [store.renew(old, makeIdentifier(), Changes()) for _ in range(5)]
            counted = [each for each in await outcomesOf(added) if each is not None]
            renewed = [each for each in await outcomesOf(renewing) if each is not None]
            assert len(renewed) == 1
            assert renewed[0].data == {"n": len(counted)}
            assert await store.length() == 1
