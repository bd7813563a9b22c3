"""
The common part of all session stores: merging, damage, sweeping.

The store keeps its sessions in a database that responds when the test says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from tsrv.databases import (
    DatabaseUnavailable,
    IDatabase,
    Statement,
    UniqueViolated,
)
from tsrv.errors import OutcomeUnknown
from tsrv.sessions import (
    Changes,
    Limits,
    MemorySessionStore,
    SessionError,
    SessionsUnavailable,
    SessionTooLarge,
    SQLSessionStore,
    StoredSession,
    keyOf,
    makeIdentifier,
    schemaOf,
)

from .support import Result, Trouble, resultOf
from .websupport import logged, textsOf

MINUTE = 60.0

SWEEP = 990.0
"""
Maximum time between two sweeps, in seconds.
"""


@implementer(IDatabase)
class LateDatabase:
    """
    A database in memory. While it is late, the test decides when it responds.

    @ivar asked: The names of all calls that use it, in order.
    """

    initialized = True

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for step in schemaOf().versions["sqlite"][0]:
            self.connection.execute(step)
        self.asked: list[str] = []
        self.late = False
        self.opening: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()
        self._waiting: list[tuple[Deferred[Any], Statement, tuple[Any, ...]]] = []

    def initialize(self) -> Deferred[None]:
        joined: Deferred[None] = Deferred()
        self.opening.addCallback(lambda _: joined.callback(None))
        return joined

    def whenLost(self) -> Deferred[None]:
        return self.lost

    def whenIdle(self) -> Deferred[None]:
        return succeed(None)

    def close(self) -> Deferred[None]:
        self.asked.append("close")
        return succeed(None)

    def read(self, statement: Statement, *parameters: Any) -> Deferred[Any]:
        return self._ask("read", statement, parameters)

    def write(self, statement: Statement, *parameters: Any) -> Deferred[Any]:
        return self._ask("write", statement, parameters)

    def _ask(
        self, name: str, statement: Statement, parameters: tuple[Any, ...]
    ) -> Deferred[Any]:
        self.asked.append(name)
        answer: Deferred[Any] = Deferred(self._forget)
        self._waiting.append((answer, statement, parameters))
        if not self.late:
            self.answer(last=True)
        return answer

    def _forget(self, answer: Deferred[Any]) -> None:
        self._waiting = [each for each in self._waiting if each[0] is not answer]

    def answer(self, error: Exception | None = None, *, last: bool = False) -> None:
        """
        Carry out the first queued call, or the last one, and end it; or fail it.
        """
        answer, statement, parameters = self._waiting.pop(-1 if last else 0)
        try:
            if error is not None:
                raise error
            rows = self.connection.execute(statement.sql, parameters).fetchall()
        except sqlite3.IntegrityError:
            answer.errback(UniqueViolated("the key exists"))
        except Exception as error:
            answer.errback(error)
        else:
            answer.callback(rows)

    def answerAll(self) -> None:
        while self._waiting:
            self.answer()

    def damage(self, sql: str, *parameters: Any) -> None:
        self.connection.execute(sql, parameters)


@pytest.fixture
def database() -> Iterator[LateDatabase]:
    """
    The database of the store.
    """
    database = LateDatabase()
    yield database
    database.connection.close()


@pytest.fixture
def store(clock: Clock, database: LateDatabase) -> Iterator[SQLSessionStore]:
    """
    A store that is initialised, with sessions of at most 200 bytes.
    """
    store = SQLSessionStore(clock, database, limits=Limits(size=200), owned=False)
    store.initialize()
    yield store
    store.close()


@pytest.fixture
def one(store: SQLSessionStore, database: LateDatabase) -> str:
    """
    The identifier of a session in the store; from then on, the database is late.
    """
    identifier = makeIdentifier()
    store.create(identifier, {})
    database.late = True
    database.asked.clear()
    return identifier


def add(
    store: SQLSessionStore, identifier: str, known: StoredSession | None = None
) -> Result:
    """
    Add 1 to a counter.
    """
    return resultOf(store.set(identifier, Changes(added={"n": 1}), known))


def current(store: SQLSessionStore, database: LateDatabase, identifier: str) -> Any:
    """
    @return: The current data of the session.
    """
    found = resultOf(store.get(identifier))
    if found.pending:
        database.answer(last=True)
    database.asked.pop()
    return found.value


# Lifetimes.


@pytest.mark.parametrize("isSQL", [False, True])
def test_a_session_expires_by_the_time_of_day(
    clock: Clock, database: LateDatabase, isSQL: bool
) -> None:
    """
    A session expires by the time of day, so that servers that share a store agree,
    whatever their timers count.
    """
    day = Clock()

    def seconds() -> float:
        return clock.seconds()

    seconds.timeOfDay = day.seconds  # type: ignore[attr-defined]
    reactor = SimpleNamespace(seconds=seconds, callLater=clock.callLater)
    limits = Limits(MINUTE, 10 * MINUTE)
    store: SQLSessionStore | MemorySessionStore = (
        SQLSessionStore(reactor, database, limits=limits, owned=False)
        if isSQL
        else MemorySessionStore(reactor, limits)
    )
    store.initialize()
    one, other = makeIdentifier(), makeIdentifier()
    for identifier in (one, other):
        store.create(identifier, {})
    clock.advance(5 * MINUTE)
    day.advance(0.6 * MINUTE)
    assert resultOf(store.touch(one)).value is True
    day.advance(0.6 * MINUTE)
    assert resultOf(store.length()).value == 1
    assert resultOf(store.get(other)).value is None
    found = resultOf(store.set(one, Changes())).value
    assert found.expires == 2.2 * MINUTE
    assert resultOf(store.cleanup()).value == 1
    store.close()


# Renewed identifiers.


def test_a_renewed_identifier_is_remembered_before_it_becomes_invalid(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    A renewed identifier is remembered before it becomes invalid, so it is never
    unknown. If the store is lost between the two steps, nothing changes, and the caller
    gets an error.
    """
    renewing = resultOf(store.renew(one, makeIdentifier(), Changes({"a": 1})))
    database.answer()
    database.answer(OutcomeUnknown("write"))
    assert isinstance(renewing.error, SessionsUnavailable)
    assert current(store, database, one).data == {}
    renewing = resultOf(store.renew(one, makeIdentifier(), Changes({"a": 1})))
    database.answer()
    database.answer()
    remembered = resultOf(store.wasRenewed(one))
    database.answer(last=True)
    assert remembered.value is True
    assert current(store, database, one).data == {}
    database.answerAll()
    assert renewing.value.data == {"a": 1}
    assert current(store, database, one) is None


def test_a_later_renewal_is_remembered_from_then_on(
    clock: Clock, store: SQLSessionStore, database: LateDatabase
) -> None:
    """
    A renewal is remembered from its own time on, also after an earlier renewal that was
    remembered but failed.
    """
    identifier = makeIdentifier()
    store.create(identifier, {})
    database.late = True
    failing = resultOf(store.renew(identifier, makeIdentifier(), Changes()))
    database.answer()
    database.answer()
    database.answer(SessionsUnavailable("lost"))
    assert isinstance(failing.error, SessionsUnavailable)
    database.late = False
    clock.advance(MINUTE)
    store.renew(identifier, makeIdentifier(), Changes())
    assert resultOf(store.wasRenewed(identifier)).value is True
    clock.advance(MINUTE)
    assert resultOf(store.wasRenewed(identifier)).value is False


def test_the_remembered_identifiers_are_bounded(clock: Clock) -> None:
    """
    At most 10,000 renewed identifiers are remembered in each minute, so a client that
    logs in repeatedly does not fill the store. Sweeps remove them, and do not count
    them.
    """
    store = MemorySessionStore(clock)
    store.initialize()
    identifiers = [makeIdentifier() for _ in range(10_003)]
    store.create(identifiers[0], {})
    for old, new in pairwise(identifiers[:-1]):
        store.renew(old, new, Changes())
    remembered = [
        resultOf(store.wasRenewed(each)).value for each in identifiers[9_998:]
    ]
    assert remembered == [True, True, False, False, False]
    assert len(store.rows) == 10_001
    clock.advance(MINUTE)
    with logged() as events:
        assert resultOf(store.cleanup()).pending
        clock.pump([1.0] * 11)
    assert textsOf(events) == []
    assert len(store.rows) == 1
    store.renew(identifiers[-2], identifiers[-1], Changes())
    assert resultOf(store.wasRenewed(identifiers[-2])).value is True
    store.close()


# Changes that are merged.


def test_changes_of_a_session_that_is_being_written_are_written_together(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    Twenty changes of one session take two writes, and each caller gets its own number.
    """
    results = [add(store, one) for _ in range(20)]
    assert database.asked == ["read"]
    database.answerAll()
    assert database.asked == ["read", "write"] * 2
    assert [result.value.counted["n"] for result in results] == list(range(1, 21))
    assert {result.value.version for result in results[1:]} == {3}


def test_sessions_do_not_wait_for_each_other(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    A slow write of one session does not delay another session.
    """
    other = makeIdentifier()
    waiting = add(store, one)
    resultOf(store.create(other, {}))
    database.answer(last=True)
    done = add(store, other)
    database.answer(last=True)
    database.answer(last=True)
    assert done.value.data == {"n": 1}
    assert waiting.pending
    database.answerAll()
    assert waiting.value.data == {"n": 1}


def test_a_known_session_is_not_read_again(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    A session that a request has read is saved with one statement.
    """
    known = current(store, database, one)
    changed = resultOf(store.set(one, Changes({"a": 1}), known))
    database.answerAll()
    assert changed.value.data == {"a": 1}
    assert database.asked == ["write"]


def test_the_latest_known_version_is_used(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    If several changes are written together, the most recent version that one of them
    knows is used.
    """
    old = current(store, database, one)
    new = add(store, one, old)
    database.answerAll()
    first = add(store, one, new.value)
    for known in (old, new.value, None, old):
        store.set(one, Changes({"a": 1}), known)
    database.answer(Trouble("passing"))
    assert isinstance(first.error, Trouble)
    database.asked.clear()
    database.answerAll()
    assert database.asked == []
    assert current(store, database, one).data == {"n": 1, "a": 1}


def test_changes_are_applied_again_when_another_process_was_faster(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    If another process has changed the session, it is read again, and the changes are
    applied again.
    """
    result = add(store, one)
    database.answer()
    database.damage('UPDATE sessions SET version = 9, data = \'{"n":5,"b":1}\'')
    database.answerAll()
    assert result.value.data == {"n": 6, "b": 1}
    assert result.value.counted == {"n": 6}
    assert database.asked == ["read", "write", "read", "write"]


@pytest.mark.parametrize("renewing", [False, True])
def test_a_session_that_others_always_change_first_is_given_up(
    store: SQLSessionStore, database: LateDatabase, one: str, renewing: bool
) -> None:
    """
    If other processes change the session first 100 times, the change fails, and nothing
    is written.
    """
    changing = (
        resultOf(store.renew(one, makeIdentifier(), Changes({"a": 1})))
        if renewing
        else add(store, one)
    )
    while changing.pending:
        database.answer()
        if changing.pending and database.asked[-1] == "write":
            database.damage("UPDATE sessions SET version = version + 1")
    assert isinstance(changing.error, SessionsUnavailable)
    expected = ["read", "write"] * 100
    if renewing:
        # The first write remembers the identifier.
        expected.insert(1, "write")
    assert database.asked == expected
    assert current(store, database, one).data == {}


def test_a_change_that_is_too_large_writes_nothing(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    A change that is too large writes nothing. The session is read first, since there
    may be room by now.
    """
    large = Changes({"a": "x" * 200})
    for known in (current(store, database, one), None):
        changing = resultOf(store.set(one, large, known))
        database.answerAll()
        assert isinstance(changing.error, SessionTooLarge)
    assert database.asked == ["read", "read"]


def test_the_size_is_that_of_the_session_as_it_is_now(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    The size is computed from the current session: a change that was too large for an
    old version may fit, and the reverse.
    """
    database.damage("UPDATE sessions SET data = ?", f'{{"a":"{"x" * 100}"}}')
    known = current(store, database, one)
    first = add(store, one, known)
    fitsNow = resultOf(store.set(one, Changes({"b": "y" * 100}), known))
    fitted = resultOf(store.set(one, Changes({"c": "z" * 82}), known))
    database.answer()
    database.damage('UPDATE sessions SET data = \'{"a":""}\', version = 7')
    database.answerAll()
    assert first.value.counted == {"n": 1}
    assert isinstance(fitsNow.value, StoredSession)
    assert isinstance(fitted.error, SessionTooLarge)


def test_a_session_may_be_destroyed_between_two_attempts(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    If the session is destroyed between two attempts, every change finds no session,
    whatever its earlier error.
    """
    known = current(store, database, one)
    first = add(store, one, known)
    large = resultOf(store.set(one, Changes({"a": "x" * 200}), known))
    fits = resultOf(store.set(one, Changes({"a": 1}), known))
    database.answer()
    database.damage("DELETE FROM sessions")
    database.answerAll()
    assert first.value.data == {"n": 1}
    assert (large.value, fits.value) == (None, None)


def test_many_changes_are_written_in_parts(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    Applying a thousand changes does not block the reactor.
    """
    results = [add(store, one) for _ in range(1001)]
    for _ in range(4):
        database.answer()
    assert 1 < sum(not result.pending for result in results) <= 101
    database.answerAll()
    assert [each.value.counted["n"] for each in results] == list(range(1, 1002))


def test_a_callback_may_change_the_session_again(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    A change that a callback makes is applied after the changes that already wait.
    """
    seen: list[Any] = []

    def again(session: Any) -> None:
        seen.append(session.counted["n"])
        if session.counted["n"] < 5:
            store.set(one, Changes(added={"n": 1})).addCallback(again)

    store.set(one, Changes(added={"n": 1})).addCallback(again)
    add(store, one)
    database.answerAll()
    assert seen == [1, 3, 4, 5]
    assert current(store, database, one).data == {"n": 5}


def test_changes_know_whether_there_are_any() -> None:
    """
    Changes are false if they are empty, so a request that only reads has nothing to
    store.
    """
    assert not Changes()
    assert Changes({"a": None})
    assert Changes(removed=frozenset({"a"}))
    assert Changes(added={"a": 0})


# Failures.


def test_a_failure_concerns_only_the_changes_that_were_written(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    Each change fails with the error of its own write.
    """
    first = add(store, one)
    others = [add(store, one) for _ in range(3)]
    database.answer()
    database.answer(OutcomeUnknown("set"))
    assert isinstance(first.error, OutcomeUnknown)
    database.answer(Trouble("gone"))
    assert all(isinstance(other.error, Trouble) for other in others)
    last = add(store, one)
    database.answerAll()
    assert last.value.data == {"n": 1}


def test_the_number_of_waiting_changes_is_limited(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    One change too many fails at once. If every write fails, all waiting changes fail,
    without recursion.
    """
    results = [add(store, one) for _ in range(10_001)]
    assert isinstance(add(store, one).error, SessionsUnavailable)
    assert results[-1].pending
    while results[-1].pending:
        database.answer(Trouble("gone"))
    assert all(isinstance(result.error, Trouble) for result in results)


def test_deep_nesting_is_refused(clock: Clock) -> None:
    """
    Deeply nested data are refused, since a process with a smaller stack could not read
    them; wide data are accepted.
    """
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    store = MemorySessionStore(clock)
    store.initialize()
    creating = resultOf(store.create(makeIdentifier(), {"a": deep}))
    assert isinstance(creating.error, SessionError)
    wide = resultOf(store.create(makeIdentifier(), {"a": [[{"b": 1}]] * 150}))
    assert wide.value.version == 1
    store.close()


# Cancellation.


def test_a_waiting_change_can_be_cancelled(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    A waiting change that is cancelled is never written.
    """
    first = add(store, one)
    cancelled = store.set(one, Changes({"cancelled": 1}))
    result = resultOf(cancelled)
    last = add(store, one)
    cancelled.cancel()
    assert isinstance(result.error, CancelledError)
    database.answerAll()
    assert first.value.data == {"n": 1}
    assert last.value.data == {"n": 2}


@pytest.mark.parametrize("isKnown", [False, True])
def test_the_only_change_in_progress_can_be_cancelled(
    store: SQLSessionStore, database: LateDatabase, one: str, isKnown: bool
) -> None:
    """
    Cancelling the only change in progress cancels its statement, and the next change
    begins.
    """
    known = current(store, database, one) if isKnown else None
    cancelled = store.set(one, Changes({"cancelled": 1}), known)
    result = resultOf(cancelled)
    last = add(store, one)
    cancelled.cancel()
    assert isinstance(result.error, CancelledError)
    database.answerAll()
    assert last.value.data == {"n": 1}


def test_one_of_several_changes_in_progress_can_be_cancelled(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    Cancelling one of several changes in progress does not affect the others; its caller
    gets CancelledError.
    """
    add(store, one)
    cancelled = store.set(one, Changes(added={"n": 1}))
    result = resultOf(cancelled)
    last = add(store, one)
    database.answer()
    database.answer()
    cancelled.cancel()
    assert isinstance(result.error, CancelledError)
    database.answerAll()
    assert last.value.data == {"n": 3}
    cancelled.cancel()


# Damage.


@pytest.mark.parametrize("text", ["[]", '"\\ud800', "[" * 100_000, b"\xff", 7, ""])
def test_damage_is_logged_without_the_identifier(
    store: SQLSessionStore, database: LateDatabase, one: str, text: object
) -> None:
    """
    A damaged row is removed. The log has the beginning of its key, and no identifier.
    """
    database.damage("UPDATE sessions SET data = ?", text)
    with logged() as events:
        assert current(store, database, one) is None
    key = keyOf(one)
    assert key is not None
    assert textsOf(events) == [f"Removing a damaged session: {key.hex()[:12]}"]
    database.answerAll()
    assert not database.connection.execute("SELECT * FROM sessions").fetchall()


def test_damage_that_cannot_be_removed_is_logged(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    The caller gets its result before the damaged row is removed; a failed removal is
    logged.
    """
    database.damage("UPDATE sessions SET data = ''")
    with logged() as events:
        found = resultOf(store.get(one))
        database.answer()
        assert found.value is None
        database.answer(Trouble("the disk is full"))
    text = "Cannot remove a damaged session: Trouble: the disk is full"
    assert textsOf(events)[1] == text


def test_damage_that_was_repaired_is_not_removed(
    store: SQLSessionStore, database: LateDatabase, one: str
) -> None:
    """
    A damaged row is removed only in the version that was read.
    """
    database.damage("UPDATE sessions SET data = ''")
    found = resultOf(store.get(one))
    database.answer()
    assert found.value is None
    database.damage("UPDATE sessions SET data = '{}', version = version + 1")
    database.answerAll()
    assert current(store, database, one).data == {}


# Removing and sweeping.


def fill(database: LateDatabase, count: int, expires: float = 0.0) -> None:
    """
    Insert sessions.
    """
    database.connection.executemany(
        "INSERT INTO sessions VALUES (?, '{}', 1, 0, ?)",
        [(number.to_bytes(32), expires) for number in range(count)],
    )


def test_many_sessions_are_removed_in_parts(
    clock: Clock, store: SQLSessionStore, database: LateDatabase
) -> None:
    """
    After each part, the sweep pauses for as long as the part took, and at most a
    second.
    """
    fill(database, 2999)
    database.late = True
    result = resultOf(store.cleanup())
    idle = resultOf(store.whenIdle())
    clock.advance(0.25)
    database.answer()
    assert idle.pending
    clock.advance(0.24)
    assert database.asked == ["write"]
    clock.advance(0.02)
    assert database.asked == ["write"] * 2
    clock.advance(30)
    database.answer()
    clock.advance(1)
    assert database.asked == ["write"] * 3
    database.answer()
    assert result.value == 2999
    assert idle.value is None


def test_removing_can_be_cancelled(
    clock: Clock, store: SQLSessionStore, database: LateDatabase
) -> None:
    """
    Cancelling the removal stops it after the current part.
    """
    fill(database, 2000)
    cleaning = store.cleanup()
    result = resultOf(cleaning)
    cleaning.cancel()
    assert isinstance(result.error, CancelledError)
    clock.advance(2)
    assert database.asked == ["write"]


def test_removing_ends_at_a_close(
    store: SQLSessionStore, clock: Clock, database: LateDatabase
) -> None:
    """
    A close ends the removal: its caller gets an error, and no timer is left.
    """
    fill(database, 2000, 10 * MINUTE)
    result = resultOf(store.clear())
    store.close()
    assert isinstance(result.error, SessionsUnavailable)
    assert clock.getDelayedCalls() == []


def test_expired_sessions_are_removed_every_15_minutes(
    clock: Clock, store: SQLSessionStore, database: LateDatabase
) -> None:
    """
    Sweeps run about every 15 minutes, at random, so that servers that were started
    together do not sweep together.
    """
    for count in range(10):
        assert len(database.asked) == count
        clock.advance(809)
        assert len(database.asked) == count
        clock.advance(181)
        # Later sweeps are scheduled relative to the first start of the timer.
        store.close()
        store.initialize()


def test_a_sweep_is_logged_if_it_has_removed_something(
    clock: Clock, store: SQLSessionStore, database: LateDatabase
) -> None:
    """
    A sweep that has removed expired sessions is logged with their number.
    """
    fill(database, 1007)
    with logged() as events:
        clock.advance(SWEEP)
        clock.advance(1)
        clock.advance(SWEEP)
    assert textsOf(events) == ["Removed 1007 expired sessions"]


def test_a_sweep_that_fails_is_logged_and_repeated(
    clock: Clock, store: SQLSessionStore, database: LateDatabase
) -> None:
    """
    A failed sweep is logged, and the next one follows after the usual interval, but not
    while another one runs.
    """
    database.late = True
    clock.advance(SWEEP)
    clock.advance(4 * SWEEP)
    assert database.asked == ["write"]
    with logged() as events:
        database.answer(Trouble("the disk is full"))
    assert textsOf(events) == [
        "Cannot remove expired sessions: Trouble: the disk is full"
    ]
    clock.advance(SWEEP)
    assert len(database.asked) == 2


@pytest.mark.parametrize("isPausing", [True, False])
def test_a_sweep_ends_at_a_close(
    clock: Clock, store: SQLSessionStore, database: LateDatabase, isPausing: bool
) -> None:
    """
    A close ends a sweep, which is not logged as a failure; no timer is left.
    """
    fill(database, 2000)
    database.late = True
    clock.advance(SWEEP)
    if isPausing:
        clock.advance(0.5)
        database.answer()
    with logged() as events:
        store.close()
        store.close()
        if not isPausing:
            database.answer()
        assert clock.getDelayedCalls() == []
        clock.advance(4 * SWEEP)
    assert textsOf(events) == []
    assert database.asked == ["write"]


# The database of the store.


def test_a_shared_database_is_neither_initialised_nor_closed(
    store: SQLSessionStore, database: LateDatabase
) -> None:
    """
    A shared database is neither initialised nor closed by the store. Its loss is not
    the loss of the store, which can be closed alone.
    """
    lost = resultOf(store.whenLost())
    database.late = True
    reading = resultOf(store.get(makeIdentifier()))
    database.answer(SessionsUnavailable("gone"))
    assert isinstance(reading.error, SessionsUnavailable)
    assert lost.pending
    assert resultOf(store.close()).value is None
    assert not store.initialized
    assert lost.value is None
    assert database.asked == ["read"]


def test_simultaneous_initialisations_start_one_sweep(
    clock: Clock, database: LateDatabase
) -> None:
    """
    Simultaneous initialisations start one sweep. A cancelled one does not initialise
    the store. A loss, whose reason the store passes on, ends the sweep.
    """
    store = SQLSessionStore(clock, database)
    cancelled = store.initialize()
    result = resultOf(cancelled)
    cancelled.cancel()
    assert isinstance(result.error, CancelledError)
    results = [resultOf(store.initialize()) for _ in range(2)]
    assert not store.initialized
    database.opening.callback(None)
    assert [result.value for result in results] == [None, None]
    assert len(clock.getDelayedCalls()) == 1
    assert resultOf(store.initialize()).value is None
    assert len(clock.getDelayedCalls()) == 1
    lost = resultOf(store.whenLost())
    reason = DatabaseUnavailable("connection refused")
    database.lost.errback(reason)
    assert lost.error is reason
    assert not store.initialized
    assert clock.getDelayedCalls() == []


def test_a_use_that_is_written_late_does_not_shorten_a_session(
    store: SQLSessionStore, database: LateDatabase, one: str, clock: Clock
) -> None:
    """
    A late write of a use does not shorten the session: it does not replace a later use
    by another process.
    """
    slow = Clock()
    behind = SQLSessionStore(slow, database, owned=False)
    behind.initialize()
    slow.advance(5 * MINUTE)
    early = resultOf(behind.touch(one))
    database.answer()
    clock.advance(10 * MINUTE)
    late = resultOf(store.touch(one))
    database.answer(last=True)
    database.answer(last=True)
    assert late.value is True
    database.answerAll()
    assert early.value is True
    assert current(store, database, one).expires == 40 * MINUTE
    behind.close()


# The store in memory.


def test_the_size_of_a_store_in_memory_is_limited(clock: Clock) -> None:
    """
    A store in memory has a maximum size. While it is closed it keeps its sessions,
    until they expire.
    """
    store = MemorySessionStore(clock, limit=3)
    store.initialize()
    identifiers = [makeIdentifier() for _ in range(3)]
    for identifier in identifiers:
        store.create(identifier, {"a": 1})
    store.close()
    store.initialize()
    assert resultOf(store.get(identifiers[0])).value.data == {"a": 1}
    error = resultOf(store.create(makeIdentifier(), {})).error
    assert isinstance(error, SessionsUnavailable)
    assert "3 sessions" in str(error)
    clock.advance(31 * MINUTE)
    assert resultOf(store.length()).value == 0
    assert resultOf(store.create(makeIdentifier(), {})).value.data == {}
    store.close()
