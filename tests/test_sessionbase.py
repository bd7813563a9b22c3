"""
What all stores of sessions have in common, beside a store that answers when the
test says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from tsrv.asyncmodule import NotInitialized
from tsrv.errors import OutcomeUnknown
from tsrv.sessions import (
    Changes,
    Limits,
    MemorySessionStore,
    SessionError,
    SessionsUnavailable,
    SessionTooLarge,
    StoredSession,
    keyOf,
    makeIdentifier,
)
from tsrv.sessions.basestore import (
    BaseStore,
    Row,
)
from tsrv.sessions.store import decode

from .support import Result, Trouble, resultOf
from .websupport import logged, textsOf

MINUTE = 60.0


class Held(MemorySessionStore):
    """
    A store in memory whose answers are there when the test says so.

    @ivar asked: The names of what was asked for, in order.
    @ivar held: What is asked for and not answered: what does it, and its Deferred.
    @ivar holds: Whether anything is held.
    """

    def __init__(self, clock: Clock, limits: Limits | None = None) -> None:
        super().__init__(clock, limits, random=lambda: 0.5)
        self.asked: list[str] = []
        self.held: list[tuple[Any, Deferred[Any]]] = []
        self.holds = True

    def _later(self, name: str, do: Any) -> Deferred[Any]:
        self.asked.append(name)
        if not self.holds:
            answer: Deferred[Any] = do()
            return answer
        later: Deferred[Any] = Deferred(
            lambda _: self.held.remove(
                next(each for each in self.held if each[1] is later)
            )
        )
        self.held.append((do, later))
        return later

    def _read(self, key: bytes) -> Deferred[Row | None]:
        return self._later("read", lambda: super(Held, self)._read(key))

    def _update(
        self, key: bytes, text: str, ends: float, version: int
    ) -> Deferred[bool]:
        def update() -> Deferred[bool]:
            return super(Held, self)._update(key, text, ends, version)

        return self._later("update", update)

    def answer(self, error: Exception | None = None) -> None:
        """
        Do the first thing that was asked for, and answer it; or fail.
        """
        do, later = self.held.pop(0)
        if error is not None:
            later.errback(error)
        else:
            do().chainDeferred(later)

    def answerAll(self) -> None:
        """
        Do what was asked for, and what is asked for then.
        """
        while self.held:
            self.answer()


@pytest.fixture
def store(clock: Clock) -> Iterator[Held]:
    """
    A store that is initialised.
    """
    store = Held(clock)
    store.initialize()
    yield store
    store.close()


@pytest.fixture
def one(store: Held) -> str:
    """
    The identifier of a session in it.
    """
    identifier = makeIdentifier()
    store.create(identifier, {})
    return identifier


def dataOf(store: Held, identifier: str) -> dict[str, Any]:
    """
    @return: What is kept.
    """
    key = keyOf(identifier)
    assert key is not None
    data = decode(store._rows[key][0])
    assert data is not None
    return data


def add(store: Held, identifier: str, name: str = "n") -> Result:
    """
    Add 1 to a counter.
    """
    return resultOf(store.set(identifier, Changes(added={name: 1})))


# Changes that come together.


def test_what_comes_while_a_session_is_written_is_written_together(
    store: Held, one: str
) -> None:
    """
    A page asks for many things at once: each of them would be a transaction, and
    most of these would find that another was faster.
    """
    results = [add(store, one) for _ in range(20)]
    assert store.asked == ["read"]
    store.answerAll()
    assert store.asked == ["read", "update"] * 2
    assert [result.value.counted["n"] for result in results] == list(range(1, 21))
    assert {result.value.version for result in results[1:]} == {3}


def test_sessions_do_not_wait_for_each_other(store: Held, one: str) -> None:
    """
    One that is slow must not hold up the visitors of all others.
    """
    other = makeIdentifier()
    store.create(other, {})
    waiting, done = add(store, one), add(store, other)
    store.held.append(store.held.pop(0))
    store.answer()
    store.held.append(store.held.pop(0))
    store.answer()
    assert done.value.data == {"n": 1}
    assert waiting.pending
    store.answerAll()
    assert waiting.value.data == {"n": 1}


def test_what_is_known_is_not_read_again(store: Held, one: str) -> None:
    """
    A request that has looked at its session saves it with one statement.
    """
    known = resultOf(store.get(one))
    store.answer()
    changed = resultOf(store.set(one, Changes({"a": 1}), known.value))
    store.answer()
    assert changed.value.data == {"a": 1}
    assert store.asked == ["read", "update"]


def test_of_what_several_know_the_latest_is_taken(store: Held, one: str) -> None:
    """
    It is the one that may still be right.
    """
    store.holds = False
    old: Any = resultOf(store.get(one)).value
    new: Any = add(store, one).value
    store.holds = True
    failing = add(store, one)
    for known in (old, new, None, old):
        store.set(one, Changes({"a": 1}), known)
    store.answer(Trouble("passing"))
    assert isinstance(failing.error, Trouble)
    del store.asked[:-1]
    store.answerAll()
    assert store.asked == ["update"]
    assert dataOf(store, one) == {"n": 1, "a": 1}


def test_another_process_may_be_faster(store: Held, one: str) -> None:
    """
    Then what was done to the session is done to what is there now.
    """
    result = add(store, one)
    store.answer()
    store.holds = False
    other: Any = MemorySessionStore._read(store, keyOf(one) or b"")
    _, *times = resultOf(other).value
    store._rows[keyOf(one) or b""] = ('{"n":5,"b":1}', *times[:2], 2)
    store.holds = True
    store.answerAll()
    assert result.value.data == {"n": 6, "b": 1}
    assert result.value.counted == {"n": 6}
    assert store.asked == ["read", "update", "read", "update"]


def test_a_session_that_others_always_change_first_is_given_up(
    clock: Clock,
) -> None:
    """
    A loop without an end would ask the database for ever.
    """

    class Behind(Held):
        def _update(self, *ignored: Any) -> Deferred[bool]:
            self.asked.append("update")
            return succeed(False)

    store = Behind(clock)
    store.holds = False
    store.initialize()
    identifier = makeIdentifier()
    store.create(identifier, {})
    assert isinstance(add(store, identifier).error, SessionsUnavailable)
    assert store.asked == ["read", "update"] * 100
    assert store._writing == {}
    store.close()


def test_what_is_too_large_does_not_spoil_what_it_came_with(
    clock: Clock,
) -> None:
    """
    They come from different requests; only one of these asks for too much.
    """
    store = Held(clock, Limits(size=30))
    store.initialize()
    identifier = makeIdentifier()
    store.create(identifier, {})
    first = add(store, identifier)
    before = add(store, identifier)
    large = resultOf(
        store.set(identifier, Changes({"large": "x" * 30}, added={"n": 1}))
    )
    behind = add(store, identifier)
    store.answerAll()
    assert isinstance(large.error, SessionTooLarge)
    counted = [each.value.counted["n"] for each in (first, before, behind)]
    assert counted == [1, 2, 3]
    assert dataOf(store, identifier) == {"n": 3}
    assert store.asked == ["read", "update"] * 2
    store.close()


def test_what_is_too_large_is_not_written_at_all(clock: Clock) -> None:
    """
    There is nothing to write.
    """
    store = Held(clock, Limits(size=30))
    store.initialize()
    identifier = makeIdentifier()
    store.create(identifier, {})
    known = StoredSession({}, 0.0, MINUTE, 1)
    store.holds = False
    for each in (known, None):
        large = resultOf(store.set(identifier, Changes({"large": "x" * 30}), each))
        assert isinstance(large.error, SessionTooLarge)
    assert "update" not in store.asked
    store.close()


def test_whether_it_is_too_large_is_seen_from_what_is_there(clock: Clock) -> None:
    """
    Somebody else may have made room, or ended the session, since it was read.
    """
    store = Held(clock, Limits(size=30))
    store.holds = False
    store.initialize()
    identifier = makeIdentifier()
    known = resultOf(store.create(identifier, {"a": "x" * 20})).value
    store.set(identifier, Changes({"a": ""}))
    changes = Changes({"b": "x" * 10})
    changed = resultOf(store.set(identifier, changes, known))
    assert changed.value.data == {"a": "", "b": "x" * 10}
    store.destroy(identifier)
    assert resultOf(store.set(identifier, changes, known)).value is None
    store.close()


def test_what_was_too_large_once_need_not_be_so_for_ever(clock: Clock) -> None:
    """
    What a change has come to the first time is forgotten when it is tried again.
    """
    store = Held(clock, Limits(size=30))
    store.initialize()
    identifier = makeIdentifier()
    known = resultOf(store.create(identifier, {"a": "x" * 10})).value
    first = add(store, identifier)
    changes = Changes({"b": "x" * 15})
    large = resultOf(store.set(identifier, changes, known))
    fits = resultOf(store.set(identifier, Changes({"c": 1}), known))
    store.answer()
    store.answer()
    assert first.value is not None
    # The others are under way, with what was known before.
    store._rows[keyOf(identifier) or b""] = ('{"a":""}', 0.0, MINUTE, 7)
    store.answerAll()
    assert isinstance(large.value, StoredSession)
    assert isinstance(fits.error, SessionTooLarge)
    store.close()


def test_a_session_may_end_between_two_tries(store: Held, one: str) -> None:
    """
    Then there is none, whatever was wrong with the change before.
    """
    known = resultOf(store.get(one))
    store.answer()
    first = add(store, one)
    large = resultOf(store.set(one, Changes({"a": "x" * 70_000}), known.value))
    fits = resultOf(store.set(one, Changes({"a": 1}), known.value))
    store.answer()
    store.answer()
    store.destroy(one)
    store.answerAll()
    assert first.value.data == {"n": 1}
    assert large.value is None
    assert fits.value is None


def test_many_changes_do_not_hold_up_the_reactor(store: Held, one: str) -> None:
    """
    Each has to be seen to fit, and gets a copy: of what comes together only a
    part is written at a time.
    """
    results = [add(store, one) for _ in range(1001)]
    store.answer()
    store.answer()
    assert not results[0].pending
    store.answer()
    store.answer()
    done = sum(not result.pending for result in results)
    assert 1 < done <= 101
    store.answerAll()
    counted = [result.value.counted["n"] for result in results]
    assert counted == list(range(1, 1002))
    assert store._writing == {}


def test_changes_made_by_who_was_answered_come_last(store: Held, one: str) -> None:
    """
    Who calls back from an answer must find all in order, and nothing twice.
    """
    seen: list[Any] = []

    def again(session: Any) -> None:
        seen.append(session.counted["n"])
        if session.counted["n"] < 5:
            store.set(one, Changes(added={"n": 1})).addCallback(again)

    store.set(one, Changes(added={"n": 1})).addCallback(again)
    add(store, one)
    store.answerAll()
    assert seen == [1, 3, 4, 5]
    assert dataOf(store, one) == {"n": 5}
    assert store._writing == {}


def test_changes_know_whether_there_are_any() -> None:
    """
    A request that has only looked has nothing to store.
    """
    assert not Changes()
    assert Changes({"a": None})
    assert Changes(removed=frozenset({"a"}))
    assert Changes(added={"a": 0})


# What goes wrong.


def test_a_failure_ends_those_that_are_under_way_and_no_others(
    store: Held, one: str
) -> None:
    """
    What was not asked for yet may well succeed.
    """
    first = add(store, one)
    others = [add(store, one) for _ in range(3)]
    store.answer()
    store.answer(OutcomeUnknown("gone"))
    assert isinstance(first.error, OutcomeUnknown)
    store.answer(Trouble("gone"))
    assert all(isinstance(other.error, Trouble) for other in others)
    assert store._writing == {}
    last = add(store, one)
    store.answerAll()
    assert last.value.data == {"n": 1}


def test_only_so_many_changes_wait_for_one_session(store: Held, one: str) -> None:
    """
    The database may be slow, and its visitors impatient.
    """
    results = [add(store, one) for _ in range(10_001)]
    refused = add(store, one)
    assert isinstance(refused.error, SessionsUnavailable)
    assert results[-1].pending
    other = makeIdentifier()
    store.create(other, {})
    waiting = add(store, other)
    store.answerAll()
    assert results[-1].value.counted == {"n": 10_001}
    assert waiting.value.counted == {"n": 1}


def test_all_that_wait_are_answered_when_each_attempt_fails_at_once(
    store: Held, one: str
) -> None:
    """
    That is so when the database is gone: however many they are, none may be
    forgotten, and the stack must not grow with them.
    """
    results = [add(store, one) for _ in range(10_001)]

    def gone() -> Deferred[Any]:
        return fail(Trouble("gone"))

    store.holds = False
    store._read = lambda key: gone()  # type: ignore[method-assign]
    store.answer(Trouble("gone"))
    assert all(isinstance(result.error, Trouble) for result in results)
    assert store._writing == {}


def test_a_store_that_is_not_ready_says_so(clock: Clock) -> None:
    """
    A wrapper knows by that error that it has asked too early.
    """
    store = MemorySessionStore(clock)
    assert isinstance(resultOf(store.get("x")).error, NotInitialized)


# What is given up.


def test_a_change_that_waits_can_be_given_up(store: Held, one: str) -> None:
    """
    It has not begun, so it is not done.
    """
    first = add(store, one)
    given = store.set(one, Changes({"given": 1}))
    result = resultOf(given)
    last = add(store, one)
    given.cancel()
    assert isinstance(result.error, CancelledError)
    store.answerAll()
    assert first.value.data == {"n": 1}
    assert last.value.data == {"n": 2}


def test_the_only_change_under_way_can_be_given_up(store: Held, one: str) -> None:
    """
    What it has asked for is given up too, and the next one begins.
    """
    given = store.set(one, Changes({"given": 1}))
    result = resultOf(given)
    last = add(store, one)
    given.cancel()
    assert isinstance(result.error, CancelledError)
    assert len(store.held) == 1
    store.answerAll()
    assert last.value.data == {"n": 1}


def test_of_several_under_way_one_can_be_given_up(store: Held, one: str) -> None:
    """
    Its caller hears no more of it; the others are written as they would be.
    """
    add(store, one)
    given = store.set(one, Changes(added={"n": 1}))
    result = resultOf(given)
    last = add(store, one)
    store.answer()
    store.answer()
    given.cancel()
    assert isinstance(result.error, CancelledError)
    store.answerAll()
    assert last.value.data == {"n": 3}
    given.cancel()


def test_all_that_wait_can_be_given_up(store: Held, one: str) -> None:
    """
    Nothing is asked for then.
    """
    first = store.set(one, Changes(added={"n": 1}))
    waiting = [store.set(one, Changes(added={"n": 1})) for _ in range(3)]
    results = [resultOf(each) for each in waiting]

    def giveUp(session: object) -> None:
        for each in waiting:
            each.cancel()

    first.addCallback(giveUp)
    store.answerAll()
    assert all(isinstance(result.error, CancelledError) for result in results)
    assert store.asked == ["read", "update"]
    assert store._writing == {}
    assert dataOf(store, one) == {"n": 1}


def test_what_was_answered_can_be_given_up_without_harm(store: Held, one: str) -> None:
    """
    Timeouts come late.
    """
    first = store.set(one, Changes(added={"n": 1}))
    store.answerAll()
    waiting = store.set(one, Changes(added={"n": 1}))
    first.cancel()
    store.answerAll()
    assert resultOf(waiting).value.data == {"n": 2}


# What is damaged.


def test_damage_is_logged_without_the_identifier(store: Held, one: str) -> None:
    """
    Somebody has to know; but who reads the log must not be able to log in.
    """
    key = keyOf(one) or b""
    store._rows[key] = ('{"a":', *store._rows[key][1:])
    with logged() as events:
        result = resultOf(store.get(one))
        store.answer()
    assert result.value is None
    (text,) = textsOf(events)
    assert text == f"Removed a session that is damaged: {key.hex()[:12]}"
    assert key not in store._rows


def test_damage_that_cannot_be_removed_is_logged(clock: Clock) -> None:
    """
    Who has asked has his answer; but that something is wrong is to be seen.
    """

    class Stuck(MemorySessionStore):
        def _delete(self, key: bytes, version: int | None = None) -> Deferred[bool]:
            return fail(Trouble("the disk is full"))

    store = Stuck(clock)
    store.initialize()
    identifier = makeIdentifier()
    store.create(identifier, {})
    key = keyOf(identifier) or b""
    for text in ("[]", '"\\ud800', "[" * 100_000, b"\xff"):
        store._rows[key] = (text, *store._rows[key][1:])
        with logged() as events:
            assert resultOf(store.get(identifier)).value is None
        assert "the disk is full" in textsOf(events)[-1]
    store.close()


def test_a_list_goes_on_behind_a_part_that_is_all_damaged(clock: Clock) -> None:
    """
    An empty answer means that there are no more.
    """
    store = MemorySessionStore(clock)
    store.initialize()
    for _ in range(5):
        store.create(makeIdentifier(), {})
    *damaged, last = sorted(store._rows)
    for key in damaged:
        store._rows[key] = ("", *store._rows[key][1:])
    ((key, _),) = resultOf(store.all(limit=2)).value
    assert key == last
    assert resultOf(store.length()).value == 1
    store.close()


# Removing.


class Parts(MemorySessionStore):
    """
    A store whose removals are answered by the test.

    @ivar asked: How many were to be removed at most, each time.
    @ivar removals: The Deferreds of that.
    """

    def __init__(self, clock: Clock, random: float = 0.5) -> None:
        super().__init__(clock, random=lambda: random)
        self.asked: list[int] = []
        self.removals: list[Deferred[int]] = []

    def _removeEnded(self, most: int) -> Deferred[int]:
        self.asked.append(most)
        self.removals.append(Deferred())
        return self.removals[-1]

    def _removeSome(self, most: int) -> Deferred[int]:
        return self._removeEnded(most)


@pytest.fixture
def parts(clock: Clock) -> Iterator[Parts]:
    """
    Such a store, which is initialised.
    """
    store = Parts(clock)
    store.initialize()
    yield store
    store.close()


def test_many_are_removed_part_by_part(clock: Clock, parts: Parts) -> None:
    """
    Others want to write too: after each part they have as much time as it took,
    but not more than a second.
    """
    result = resultOf(parts.cleanup())
    assert parts.asked == [1000]
    clock.advance(0.25)
    parts.removals[0].callback(1000)
    clock.advance(0.24)
    assert len(parts.asked) == 1
    clock.advance(0.02)
    assert len(parts.asked) == 2
    clock.advance(30)
    parts.removals[1].callback(1000)
    clock.advance(1)
    assert len(parts.asked) == 3
    parts.removals[2].callback(999)
    assert result.value == 2999


def test_removing_can_be_given_up(clock: Clock, parts: Parts) -> None:
    """
    It may take long; who has asked for it may go.
    """
    answers = [parts.cleanup(), parts.clear()]
    results = [resultOf(answer) for answer in answers]
    for removal, answer in zip(parts.removals, answers, strict=True):
        removal.callback(1000)
        answer.cancel()
    assert all(isinstance(result.error, CancelledError) for result in results)
    clock.advance(2)
    assert len(parts.asked) == 2


def test_removing_ends_with_the_store(clock: Clock, parts: Parts) -> None:
    """
    After the close nothing is asked for any more, no timer is left, and who has
    asked hears why.
    """
    results = [resultOf(parts.cleanup()), resultOf(parts.clear())]
    for removal in parts.removals:
        removal.callback(1000)
    parts.close()
    assert all(isinstance(result.error, SessionsUnavailable) for result in results)
    assert clock.getDelayedCalls() == []


# Sweeping.


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 13.5), (0.5, 15.0), (1.0, 16.5)])
def test_what_has_ended_is_removed_every_15_minutes(
    clock: Clock, random: float, seconds: float
) -> None:
    """
    Nobody asks for it any more. Servers that were started together do not do so
    at the same time.
    """
    store = Parts(clock, random)
    store.initialize()
    for count in range(1, 4):
        clock.advance(seconds * MINUTE - 1)
        assert len(store.asked) == count - 1
        clock.advance(1.001)
        assert len(store.asked) == count
        store.removals[-1].callback(0)
    store.close()


def test_what_a_sweep_has_removed_is_logged(clock: Clock, parts: Parts) -> None:
    """
    Whoever wonders where the rows went, or why the disk was busy, finds it.
    """
    with logged() as events:
        clock.advance(15 * MINUTE)
        parts.removals[0].callback(1000)
        clock.advance(1)
        parts.removals[1].callback(7)
        clock.advance(15 * MINUTE)
        parts.removals[2].callback(0)
    assert textsOf(events) == ["Removed 1007 sessions that had ended"]


def test_a_sweep_that_fails_is_logged_and_not_the_last_one(
    clock: Clock, parts: Parts
) -> None:
    """
    A disk is full for an hour; the sessions have to be removed afterwards.
    """
    with logged() as events:
        clock.advance(15 * MINUTE)
        parts.removals[0].errback(Trouble("the disk is full"))
    (text,) = textsOf(events)
    assert text.endswith("could not be removed: the disk is full")
    clock.advance(15 * MINUTE)
    assert len(parts.asked) == 2


def test_one_sweep_follows_the_other(clock: Clock, parts: Parts) -> None:
    """
    One that takes long must not meet the next.
    """
    clock.advance(15 * MINUTE)
    clock.advance(60 * MINUTE)
    assert len(parts.asked) == 1


@pytest.mark.parametrize("answered", [True, False])
def test_a_sweep_ends_with_the_store(
    clock: Clock, parts: Parts, answered: bool
) -> None:
    """
    Neither is it done any more, nor does it look as if something had gone wrong.
    """
    clock.advance(15 * MINUTE)
    if answered:
        parts.removals[0].callback(1000)
    with logged() as events:
        parts.close()
        parts.close()
        # What was asked for was given up, so it cannot begin another one.
        assert parts.removals[0].called
        clock.advance(60 * MINUTE)
    assert textsOf(events) == []
    assert len(parts.asked) == 1
    assert clock.getDelayedCalls() == []


def test_there_is_one_sweep_however_often_it_is_initialised(
    clock: Clock, parts: Parts
) -> None:
    """
    A wrapper initialises it again after each loss.
    """
    parts.initialize()
    parts.close()
    parts.initialize()
    assert len(clock.getDelayedCalls()) == 1


# In memory.


def test_a_store_in_memory_has_a_bound(clock: Clock) -> None:
    """
    Everybody may make sessions, and the memory is shared with all else.
    """
    store = MemorySessionStore(clock, most=3)
    store.initialize()
    for _ in range(3):
        store.create(makeIdentifier(), {})
    error = resultOf(store.create(makeIdentifier(), {})).error
    assert isinstance(error, SessionsUnavailable)
    assert "3 sessions" in str(error)
    clock.advance(31 * MINUTE)
    assert resultOf(store.length()).value == 0
    assert resultOf(store.create(makeIdentifier(), {})).value.data == {}
    store.close()


def test_a_store_in_memory_remembers_when_it_is_initialised_again(
    clock: Clock,
) -> None:
    """
    Tests of what comes after an outage need what was there before.
    """
    store = MemorySessionStore(clock)
    store.initialize()
    identifier = makeIdentifier()
    store.create(identifier, {"a": 1})
    watched: list[str] = []
    first = store.whenLost()
    second = store.whenLost()
    first.addCallback(lambda _: second.cancel())
    second.addBoth(lambda _: watched.append("second"))
    store.close()
    assert watched == ["second"]
    store.initialize()
    assert resultOf(store.get(identifier)).value.data == {"a": 1}
    store.close()


def test_a_store_in_memory_removes_only_the_version_it_has_seen(clock: Clock) -> None:
    """
    What is found to be damaged may have been replaced since.
    """
    store = MemorySessionStore(clock)
    store.initialize()
    identifier = makeIdentifier()
    store.create(identifier, {})
    key = keyOf(identifier) or b""
    assert resultOf(store._delete(key, 2)).value is False
    assert resultOf(store._delete(key, 1)).value is True
    store.close()


def test_what_a_store_is_has_to_be_said(clock: Clock) -> None:
    """
    The author of another one is told what he has left out, and does not find out
    when it matters.
    """
    store = BaseStore(clock)
    calls: Sequence[tuple[Any, ...]] = (
        (store._read, b""),
        (store._insert, b"", "", 0.0, 0.0),
        (store._update, b"", "", 0.0, 1),
        (store._move, b"", b"", "", 0.0, 0.0, 1),
        (store._prolong, b""),
        (store._delete, b""),
        (store._count,),
        (store._removeEnded, 1),
        (store._removeSome, 1),
        (store._list, b"", 1),
    )
    for method, *arguments in calls:
        with pytest.raises(NotImplementedError):
            method(*arguments)


def test_a_change_of_what_is_known_may_fail(store: Held, one: str) -> None:
    """
    What comes behind it is carried out all the same.
    """
    known = resultOf(store.get(one))
    store.answerAll()
    failing = resultOf(store.set(one, Changes({"a": 1}), known.value))
    behind = add(store, one)
    store.answer(SessionsUnavailable("not now"))
    store.answerAll()
    assert isinstance(failing.error, SessionsUnavailable)
    assert behind.value.data == {"n": 1}
    assert store._writing == {}


def test_a_session_is_renewed_only_as_it_was_seen(clock: Clock) -> None:
    """
    Where others are always faster, it is said some day; and not before it can be.
    """
    store = MemorySessionStore(clock)
    early = resultOf(store.renew("a", makeIdentifier(), Changes()))
    assert isinstance(early.error, NotInitialized)
    store.initialize()
    identifier = makeIdentifier()
    store.create(identifier, {})
    key, newKey = keyOf(identifier), keyOf(makeIdentifier())
    assert key is not None
    assert newKey is not None
    assert resultOf(store._move(key, newKey, "{}", 0.0, 1.0, 99)).value is False
    store._move = lambda *_: succeed(False)  # type: ignore[method-assign]
    late = resultOf(store.renew(identifier, makeIdentifier(), Changes()))
    assert isinstance(late.error, SessionsUnavailable)
    assert resultOf(store.get(identifier)).value is not None
    store.close()


def test_what_is_nested_too_deeply_is_not_taken(clock: Clock) -> None:
    """
    Whoever reads it may have less room than who has written it, and would take it
    for damaged. That there is much in it does not matter.
    """
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    store = MemorySessionStore(clock)
    store.initialize()
    refused = resultOf(store.create(makeIdentifier(), {"a": deep}))
    assert isinstance(refused.error, SessionError)
    wide = resultOf(store.create(makeIdentifier(), {"a": [[{"b": 1}]] * 150}))
    assert wide.value.version == 1
    store.close()
