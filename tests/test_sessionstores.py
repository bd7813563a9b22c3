"""
All stores of sessions do what a store has to do, and those in a database some
more.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    fail,
    gatherResults,
    succeed,
)
from twisted.internet.task import Clock, deferLater

from tsrv.asyncmodule import NotInitialized
from tsrv.databases import (
    ConstraintViolated,
    Database,
    DatabaseRefused,
    Settings,
    Statement,
)
from tsrv.errors import Unavailable
from tsrv.sessions import (
    Changes,
    ISessionStore,
    Limits,
    MemorySessionStore,
    PostgreSQLSessionStore,
    SQLiteSessionStore,
    SQLSessionStore,
    StoredSession,
    keyOf,
    makeIdentifier,
    schemaOf,
)
from tsrv.sessions.store import checkTable
from tsrv.testing import (
    SessionStoreTests,
    SharedSessionStoreTests,
)

from .databases import Database as Server
from .databases import PostgreSQL
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .processes import ROOT
from .support import resultOf
from .websupport import asynchronous, logged, textsOf

_LONG = 60.0
"""
No test takes so long, in seconds.
"""

MINUTE = 60.0

DAMAGE = Statement("UPDATE sessions SET data = ? WHERE key = ?")

FILL = Statement(
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
    "INSERT INTO sessions SELECT CAST(i AS BLOB), '{}', 1, 0, ? FROM n"
)


def limited(test: Callable[..., Any]) -> Callable[..., Any]:
    """
    Run a method on the real reactor, as L{asynchronous} does with a function.
    """

    @wraps(test)
    async def run(self: Any) -> None:
        from twisted.internet import reactor

        running: Deferred[Any] = Deferred.fromCoroutine(test(self))
        clock: Any = reactor
        await running.addTimeout(_LONG, clock)

    marked: Callable[..., Any] = pytest_twisted.ensureDeferred(run)
    return marked


class TestMemory(SessionStoreTests, decorate=limited):
    """
    The store in memory.
    """

    async def makeStore(self, limits: Limits, clock: Clock) -> ISessionStore:
        return MemorySessionStore(clock, limits)

    async def damage(self, store: Any, identifier: str) -> None:
        key = keyOf(identifier)
        _, *others = store._rows[key]
        store._rows[key] = ("[]", *others)


class InDatabase(SharedSessionStoreTests):
    """
    The stores in a database.
    """

    url = ""

    async def makeStore(self, limits: Limits, clock: Clock) -> ISessionStore:
        from twisted.internet import reactor

        self.database = Database(
            reactor, self.url, [schemaOf()], Settings(statementTimeout=30.0)
        )
        return SQLSessionStore(clock, self.database, limits=limits)

    async def damage(self, store: Any, identifier: str) -> None:
        await self.database.write(DAMAGE, '{"cut', keyOf(identifier))


class TestSQLite(InDatabase, decorate=limited):
    """
    The store in SQLite.
    """

    @pytest.fixture(autouse=True)
    def prepared(self, tmp_path: Path) -> None:
        self.url = f"sqlite:{tmp_path / 'sessions.db'}"


class TestPostgreSQL(InDatabase, decorate=limited):
    """
    The store in PostgreSQL.
    """

    @pytest.fixture(autouse=True)
    def prepared(self, database: Server) -> None:
        self.url = database.url


# What is special to databases.


def makeStore(url: str, clock: Clock, **options: Any) -> SQLSessionStore:
    """
    @return: A store, not initialised, in a database of its own.
    """
    from twisted.internet import reactor

    table = options.get("table", "sessions")
    made = Database(reactor, url, [schemaOf(table)], Settings(statementTimeout=30.0))
    return SQLSessionStore(clock, made, random=lambda: 0.5, **options)


@asynccontextmanager
async def using(url: str, clock: Clock, **options: Any) -> AsyncIterator[Any]:
    """
    Use a store.
    """
    store = makeStore(url, clock, **options)
    await store.initialize()
    try:
        yield store
    finally:
        await store.close()


async def until(condition: Callable[[], bool], clock: Clock) -> None:
    """
    Wait for what threads do, while time passes.
    """
    from twisted.internet import reactor

    while not condition():
        await deferLater(reactor, 0.001)
        clock.advance(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """
    Where a file may be made.
    """
    return tmp_path / "sessions.db"


@asynchronous
async def test_no_identifier_is_in_the_file(path: Path, clock: Clock) -> None:
    """
    Whoever gets hold of a copy must not be able to log in.
    """
    identifiers = [makeIdentifier() for _ in range(20)]
    async with using(f"sqlite:{path}", clock) as store:
        for identifier in identifiers:
            await store.create(identifier, {"name": "Ada"})
            await store.set(identifier, Changes({"page": 1}))
            await store.touch(identifier)
        files = {each: each.read_bytes() for each in path.parent.iterdir()}
    files |= {each: each.read_bytes() for each in path.parent.iterdir()}
    for identifier in identifiers:
        key = keyOf(identifier) or b""
        assert not any(identifier.encode() in data for data in files.values())
        assert any(key in data for data in files.values())


@asynchronous
async def test_sqlite_finds_what_has_ended_by_an_index(
    path: Path, clock: Clock
) -> None:
    """
    To look through a million sessions every 15 minutes holds up all that is
    written meanwhile.
    """
    async with using(f"sqlite:{path}", clock, table="visits") as store:
        statement = store._sql.removeEnded.sql
    with closing(sqlite3.connect(path)) as connection:
        count = statement.count("?")
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [1] * count)
        steps = [row[3] for row in plan]
    assert any("visits_expires (expires<?)" in step for step in steps), steps
    assert any("PRIMARY KEY (key=?)" in step for step in steps), steps
    assert not any(step.startswith("SCAN") for step in steps), steps


@asynchronous
async def test_postgresql_finds_what_has_ended_by_an_index(
    database: Server, clock: Clock
) -> None:
    """
    The same, of a planner that knows how many sessions there are.
    """
    async with using(database.url, clock) as store:
        statement = store._sql.removeEnded.sql
    await database.ask(
        "insert into sessions select sha256(i::text::bytea), '{}', 1, 0, i "
        "from generate_series(1, 50000) as i"
    )
    await database.ask("analyze sessions")
    for value in ("1000", "100", "1000")[: statement.count("?")]:
        statement = statement.replace("?", value, 1)
    plan = "\n".join(row[0] for row in await database.ask(f"explain {statement}"))
    assert "Index Scan using sessions_expires" in plan, plan
    assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        'a"',
        "a;drop table users",
        "1a",
        "a.b",
        "a-b",
        "a\n",
        "\u00e4",
        "a" * 56,
        "a" * 100_000,
    ],
)
def test_a_table_name_that_is_no_identifier_is_refused(clock: Clock, name: str) -> None:
    """
    It becomes part of statements, and may come from a URL. What is wrong with it
    is to be found when the server starts.
    """
    for make in (
        checkTable,
        schemaOf,
        lambda name: makeStore("sqlite:x", clock, table=name),
    ):
        with pytest.raises(ValueError, match="name of a table") as caught:
            make(name)
        assert name == "" or name not in str(caught.value)


@asynchronous
async def test_a_store_can_be_made_of_where_it_is(
    path: Path, database: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Who has no other use for a database need not know how one is made.
    """
    from twisted.internet import reactor

    monkeypatch.chdir(path.parent)
    for store, table in (
        (SQLiteSessionStore(reactor), "sessions"),
        (SQLiteSessionStore(reactor, str(path), "visits", Limits(60.0)), "visits"),
        (PostgreSQLSessionStore(reactor, database.url), "sessions"),
        (PostgreSQLSessionStore(reactor, database.url, "visits"), "visits"),
    ):
        await store.initialize()
        identifier = makeIdentifier()
        made = await store.create(identifier, {"table": table})
        assert await store.get(identifier) == made
        statement = Statement(f"SELECT data FROM {table}")  # noqa: S608
        (row,) = await store._database.read(statement)
        assert row == (f'{{"table":"{table}"}}'.encode(),)
        await store.close()
    assert (path.parent / "sessions.db").exists()


def test_a_place_where_no_store_can_be_is_refused(clock: Clock) -> None:
    """
    What is wrong with an option is to be found when the server starts, and must
    not be repeated where it can be read: it may have a password in it.
    """
    makers: list[Callable[[], object]] = [
        lambda: SQLiteSessionStore(clock, ""),
        lambda: SQLiteSessionStore(clock, ":memory:"),
        lambda: SQLiteSessionStore(clock, "sessions.db", "no table"),
        lambda: PostgreSQLSessionStore(clock, "sqlite:secret"),
        lambda: PostgreSQLSessionStore(clock, "secret"),
        lambda: PostgreSQLSessionStore(clock, "postgresql://a:secret#@host/db"),
        lambda: PostgreSQLSessionStore(clock, "postgresql://host/db", "no table"),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"database|sessions|table") as caught:
            make()
        assert "secret" not in str(caught.value)


@asynchronous
async def test_a_name_of_a_table_may_mean_something(
    database: Server, path: Path, clock: Clock
) -> None:
    """
    Whoever chooses it need not know all words of a language; those that a database
    keeps for itself are refused at once.
    """
    for url in (database.url, f"sqlite:{path}"):
        async with using(url, clock, table="order") as store:
            await store.create(makeIdentifier(), {})
            assert await store.cleanup() == 0
            assert await store.length() == 1
    for table in ("sqlite_master", "pg_class", "tsrv_schema"):
        with pytest.raises(ValueError, match="name of a table"):
            SQLiteSessionStore(clock, "sessions.db", table)


@pytest.mark.parametrize(
    "damage",
    [
        "data = x'7bff7d'",
        "data = '{\"a\": 1e999}'",
        "data = '{\"a\": NaN}'",
        "data = 7",
        "expires = 'abc'",
        "created = 'x'",
        "version = 'z'",
    ],
)
@asynchronous
async def test_what_sqlite_lets_be_written_is_damage(
    path: Path, clock: Clock, damage: str
) -> None:
    """
    It is absent for all who ask, whatever is wrong with it, and gone after that.
    """
    async with using(f"sqlite:{path}", clock) as store:
        identifier = makeIdentifier()
        await store.create(identifier, {"a": 1})
        connection = sqlite3.connect(path)
        connection.execute(f"UPDATE sessions SET {damage}")  # noqa: S608
        connection.commit()
        connection.close()
        assert list(await store.all()) == []
        assert await store.get(identifier) is None
        # What was written before has been written when this is.
        await store.destroy(makeIdentifier())
        assert await store.length() == 0


class Ticking(Clock):
    """
    A clock that goes on whenever somebody looks at it.
    """

    def seconds(self) -> float:
        self.rightNow += 0.001
        return super().seconds()


@asynchronous
async def test_uses_at_the_same_time_are_one_write(path: Path) -> None:
    """
    A page has many parts, which are asked for together.
    """
    clock = Ticking()
    async with using(f"sqlite:{path}", clock) as store:
        identifier = makeIdentifier()
        await store.create(identifier, {})
        connection = sqlite3.connect(path)
        connection.executescript(
            "CREATE TABLE written (x);"
            "CREATE TRIGGER use AFTER UPDATE ON sessions "
            "BEGIN INSERT INTO written VALUES (1); END;"
        )
        clock.advance(600)
        uses = await gatherResults([store.touch(identifier) for _ in range(10)])
        assert uses == [True] * 10
        ((count,),) = connection.execute("SELECT count(*) FROM written")
        connection.close()
        assert count == 1


@asynchronous
async def test_the_longest_name_of_a_table_is_possible(
    database: Server, path: Path, clock: Clock
) -> None:
    """
    PostgreSQL cuts names off, and that of the index must not become another's.
    """
    for url in (database.url, f"sqlite:{path}"):
        async with using(url, clock, table="a" * 55) as store:
            identifier = makeIdentifier()
            await store.create(identifier, {})
            assert await store.length() == 1


@asynchronous
async def test_tables_of_one_file_have_nothing_to_do_with_each_other(
    path: Path, clock: Clock
) -> None:
    """
    Two sites may have their sessions in the same file.
    """
    identifier = makeIdentifier()
    async with (
        using(f"sqlite:{path}", clock, table="one") as one,
        using(f"sqlite:{path}", clock, table="two") as two,
    ):
        await one.create(identifier, {})
        assert await two.get(identifier) is None
        assert await two.clear() == 0
        assert await one.length() == 1


@asynchronous
async def test_sessions_are_there_when_the_server_starts_again(
    path: Path, database: Server, clock: Clock
) -> None:
    """
    This is what they are kept in a database for.
    """
    for url in (f"sqlite:{path}", database.url):
        identifier = makeIdentifier()
        async with using(url, clock) as store:
            made = await store.create(identifier, {"name": "Ada"})
        async with using(url, clock) as store:
            assert await store.get(identifier) == made
            await store.close()
            await store.initialize()
            assert await store.get(identifier) == made


@asynchronous
async def test_a_sweep_removes_all_that_have_ended_part_by_part(
    path: Path, clock: Clock
) -> None:
    """
    One transaction for all would keep others from writing.
    """
    async with using(f"sqlite:{path}", clock) as store:
        await store._database.write(FILL, 2500, 10 * MINUTE)
        identifier = makeIdentifier()
        await store.create(identifier, {})
        with logged() as events:
            clock.advance(15 * MINUTE)
            await until(lambda: bool(events), clock)
        assert textsOf(events) == ["Removed 2500 sessions that had ended"]
        assert await store.length() == 1
        with closing(sqlite3.connect(path)) as connection:
            ((count,),) = connection.execute("SELECT count(*) FROM sessions")
        assert count == 1


@asynchronous
async def test_a_sweep_that_fails_is_followed_by_another(
    path: Path, clock: Clock
) -> None:
    """
    What was wrong with the database may be right again in 15 minutes.
    """
    async with using(f"sqlite:{path}", clock) as store:
        await store._database.write(FILL, 5, MINUTE)
        rename = "ALTER TABLE {} RENAME TO {}"
        await store._database.write(Statement(rename.format("sessions", "away")))
        with logged() as events:
            clock.advance(15 * MINUTE)
            await until(lambda: bool(events), clock)
            assert "could not be removed" in textsOf(events)[0]
            await store._database.write(Statement(rename.format("away", "sessions")))
            clock.advance(15 * MINUTE)
            await until(lambda: len(events) > 1, clock)
        assert textsOf(events)[1] == "Removed 5 sessions that had ended"


@asynchronous
async def test_nothing_is_swept_after_the_close(path: Path, clock: Clock) -> None:
    """
    It would ask a database that is gone.
    """
    async with using(f"sqlite:{path}", clock) as store:
        await store._database.write(FILL, 2500, 0.0)
        clock.advance(15 * MINUTE)
        with logged() as events:
            await store.close()
            clock.advance(60 * MINUTE)
    assert textsOf(events) == []
    assert clock.getDelayedCalls() == []


@asynchronous
async def test_a_session_that_is_used_while_it_is_swept_stays(
    database: Server, clock: Clock
) -> None:
    """
    Two servers have two clocks: what has ended for one was just used at the other,
    which has not answered yet.
    """
    from psycopg import connect

    from ._postgresql import inThread

    identifier = makeIdentifier()
    async with using(database.url, clock, limits=Limits(MINUTE, None)) as store:
        await store.create(identifier, {"name": "Ada"})
        clock.advance(2 * MINUTE)
        other = await inThread(lambda: connect(database.url))
        try:
            sql = "update sessions set expires = expires + 600"
            await inThread(lambda: other.execute(sql))
            cleaning = store.cleanup()
            while not await database.ask(
                "select from pg_stat_activity where wait_event_type = 'Lock'"
            ):
                pass
            await inThread(other.commit)
        finally:
            await inThread(other.close)
        assert await cleaning == 0
        assert await store.get(identifier) is not None


@asynchronous
async def test_an_outage_is_told_and_costs_no_session(
    ownPostgresql: PostgreSQL, clock: Clock
) -> None:
    """
    A wrapper queues what comes meanwhile, and initialises the store again.
    """
    await ownPostgresql.start()
    identifier = makeIdentifier()
    async with using(ownPostgresql.url, clock) as store:
        made = await store.create(identifier, {"name": "Ada"})
        lost = store.whenLost()
        await ownPostgresql.kill()
        await lost
        assert not store.initialized
        assert clock.getDelayedCalls() == []
        with pytest.raises((NotInitialized, Unavailable)):
            await store.get(identifier)
        await ownPostgresql.start()
        await store.initialize()
        assert await store.get(identifier) == made
        assert len(clock.getDelayedCalls()) == 1


@asynchronous
async def test_a_database_that_cannot_be_had_is_the_reason(
    tmp_path: Path, clock: Clock
) -> None:
    """
    Who starts the server has to be told what is wrong.
    """
    store = makeStore(f"sqlite:{tmp_path}", clock)
    with pytest.raises(DatabaseRefused):
        await store.initialize()
    assert not store.initialized
    assert clock.getDelayedCalls() == []
    await store.close()


@asynchronous
async def test_a_constraint_that_is_not_the_keys_is_no_session_that_is_there(
    path: Path, clock: Clock
) -> None:
    """
    An administrator may have added one: what it says must not be hidden.
    """
    async with using(f"sqlite:{path}", clock) as store:
        await store._database.write(
            Statement(
                "CREATE TRIGGER few BEFORE INSERT ON sessions BEGIN "
                "SELECT RAISE(ABORT, 'too many'); END"
            )
        )
        with pytest.raises(ConstraintViolated):
            await store.create(makeIdentifier(), {})


class Late:
    """
    A database that writes when the test says so.

    @ivar asked: Fires when it is to write.
    @ivar allowed: Fired by the test.
    """

    def __init__(self, database: Database) -> None:
        self.read = database.read
        self._write = database.write
        self.asked: Deferred[None] = Deferred()
        self.allowed: Deferred[None] = Deferred()

    def write(self, *statement: Any) -> Deferred[Any]:
        self.asked.callback(None)
        return self.allowed.addCallback(lambda _: self._write(*statement))


@asynchronous
async def test_a_use_that_is_written_late_ends_no_session_earlier(
    path: Path, clock: Clock
) -> None:
    """
    Of two servers one may be slow: what it writes must not undo a later use.
    """
    slow = Clock()
    identifier = makeIdentifier()
    async with using(f"sqlite:{path}", clock) as store:
        late: Any = Late(store._database)
        behind = SQLSessionStore(slow, late, owned=False)
        await behind.initialize()
        await store.create(identifier, {})
        slow.advance(5 * MINUTE)
        used = behind.touch(identifier)
        await late.asked
        clock.advance(10 * MINUTE)
        assert await store.touch(identifier) is True
        late.allowed.callback(None)
        assert await used is True
        assert (await store.get(identifier)).expires == 40 * MINUTE
        await behind.close()


@asynchronous
async def test_what_was_damaged_is_not_removed_when_it_is_something_else(
    path: Path, clock: Clock
) -> None:
    """
    An administrator may have put it right meanwhile.
    """
    identifier = makeIdentifier()
    async with using(f"sqlite:{path}", clock) as store:
        late: Any = Late(store._database)
        behind = SQLSessionStore(clock, late, owned=False)
        await behind.initialize()
        await store.create(identifier, {"a": 1})
        await store._database.write(DAMAGE, '{"cut', keyOf(identifier))
        assert await behind.get(identifier) is None
        await late.asked
        right = Statement("UPDATE sessions SET data = '{}', version = version + 1")
        await store._database.write(right)
        late.allowed.callback(None)
        await late.allowed
        assert (await store.get(identifier)).data == {}
        await behind.close()


class Shared:
    """
    A database that others use too, and that does as the test says.

    @ivar asked: What was asked of it.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.opening: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def initialize(self) -> Deferred[None]:
        self.asked.append("initialize")
        joined: Deferred[None] = Deferred()
        self.opening.addCallback(lambda _: joined.callback(None))
        return joined

    def whenLost(self) -> Deferred[None]:
        self.asked.append("whenLost")
        return self.lost

    def close(self) -> Deferred[None]:
        self.asked.append("close")
        return succeed(None)

    def read(self, *statement: object) -> Deferred[Any]:
        return fail(Unavailable("it is gone"))


def test_somebody_elses_database_is_left_alone(clock: Clock) -> None:
    """
    The users are in it too: it is not up to the sessions when it is opened and
    closed. That it is gone is seen with each call.
    """
    shared: Any = Shared()
    store = SQLSessionStore(clock, shared, owned=False)
    assert resultOf(store.initialize()).value is None
    assert store.initialized
    lost = resultOf(store.whenLost())
    assert isinstance(resultOf(store.get(makeIdentifier())).error, Unavailable)
    assert resultOf(store.close()).value is None
    assert resultOf(store.close()).value is None
    assert not store.initialized
    assert lost.pending
    assert shared.asked == []


def test_two_who_initialise_it_at_a_time_have_one_sweep(clock: Clock) -> None:
    """
    A database may let the second join the first.
    """
    shared: Any = Shared()
    store = SQLSessionStore(clock, shared)
    results = [resultOf(store.initialize()) for _ in range(2)]
    shared.opening.callback(None)
    assert [result.value for result in results] == [None, None]
    assert len(clock.getDelayedCalls()) == 1
    shared.lost.callback(None)
    assert not store.initialized
    assert clock.getDelayedCalls() == []


def test_an_initialisation_can_be_given_up(clock: Clock) -> None:
    """
    A wrapper does so when it is closed meanwhile.
    """
    shared: Any = Shared()
    store = SQLSessionStore(clock, shared)
    opening = store.initialize()
    result = resultOf(opening)
    opening.cancel()
    assert isinstance(result.error, CancelledError)
    assert not store.initialized


# The tests themselves.

TRIAL = """
from twisted.trial.unittest import TestCase
from tsrv.sessions import MemorySessionStore, keyOf
from tsrv.testing import SessionStoreTests

class MemoryTests(SessionStoreTests, TestCase):
    async def makeStore(self, limits, clock):
        return MemorySessionStore(clock, limits)

    async def damage(self, store, identifier):
        key = keyOf(identifier)
        store._rows[key] = ("[]", *store._rows[key][1:])
"""

ALONE = """
import sys
import tsrv.testing
found = {"pytest", "twisted.trial", "twisted.internet.reactor"} & set(sys.modules)
assert not found, found
"""


def run(*arguments: str, cwd: Path = ROOT) -> str:
    """
    @return: What a Python says that ends well.
    """
    ended = subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=_LONG,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_tests_run_with_trial_too(tmp_path: Path) -> None:
    """
    Not every author of a store uses pytest.
    """
    (tmp_path / "test_memory_with_trial.py").write_text(TRIAL)
    said = run("-m", "twisted.trial", "test_memory_with_trial", cwd=tmp_path)
    names = [name for name in dir(SessionStoreTests) if name.startswith("test_")]
    assert len(names) > 25
    assert f"PASSED (successes={len(names)})" in said


def test_the_tests_need_no_runner_of_tests() -> None:
    """
    A package that is imported in production may well import them.
    """
    run("-c", ALONE)


def test_a_store_has_to_be_made_and_damaged_by_its_author(clock: Clock) -> None:
    """
    Who forgets that is told so.
    """
    tests: Any = SessionStoreTests()
    for hook in (tests.makeStore(Limits(), clock), tests.damage(None, "")):
        answer: Deferred[Any] = Deferred.fromCoroutine(hook)
        assert isinstance(resultOf(answer).error, NotImplementedError)


class Resurrecting(MemorySessionStore):
    """
    A fault that express-session has.
    """

    def _update(self, key: bytes, text: str, *others: Any) -> Deferred[bool]:
        ends, version = others
        self._rows[key] = (text, self._reactor.seconds(), ends, version + 1)
        return succeed(True)


class Adopting(MemorySessionStore):
    """
    A store that makes what it is asked for.
    """

    def get(self, identifier: str) -> Deferred[StoredSession | None]:
        self.create(identifier, {}).addErrback(lambda _: None)
        return super().get(identifier)


class Plain(MemorySessionStore):
    """
    A store whose keys are not hashes.
    """

    def all(self, *part: Any, **others: Any) -> Deferred[Any]:
        plain = super().all(*part, **others)
        return plain.addCallback(lambda found: [(b"x" * 43, each) for _, each in found])


class Keeping(MemorySessionStore):
    """
    A store that never gets rid of what is damaged.
    """

    def _delete(self, key: bytes, version: int | None = None) -> Deferred[bool]:
        return succeed(False)


class Immortal(MemorySessionStore):
    """
    A store that forgets when sessions end.
    """

    def _alive(self, key: bytes) -> Any:
        return self._rows.get(key)


class Eager(MemorySessionStore):
    """
    A store that writes each use.
    """

    def _prolong(self, key: bytes) -> Deferred[bool]:
        row = self._alive(key)
        if row is not None:
            ends = self.limits.expiry(row[1], self._reactor.seconds())
            self._rows[key] = (*row[:2], ends, row[3])
        return succeed(row is not None)


class Untidy(MemorySessionStore):
    """
    A store that leaves a timer behind.
    """

    def close(self) -> Deferred[None]:
        self._reactor.callLater(1, int)
        return super().close()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Resurrecting, "a_destroyed_session_stays_so"),
        (Resurrecting, "what_is_known_may_be_out_of_date"),
        (Adopting, "an_unknown_identifier_is_never_adopted"),
        (Plain, "keys_are_kept_and_not_identifiers"),
        (Keeping, "a_damaged_session_is_absent_and_removed"),
        (Keeping, "a_destroyed_session_stays_so"),
        (Immortal, "an_unused_session_ends"),
        (Immortal, "every_session_ends"),
        (Eager, "uses_that_follow_each_other_closely_are_written_once"),
        (Untidy, "it_is_a_store"),
    ],
)
def test_the_tests_find_what_is_wrong(kind: Any, name: str) -> None:
    """
    Tests that pass whatever the store does would be worse than none.
    """

    class Tests(TestMemory):
        async def makeStore(self, limits: Limits, clock: Clock) -> ISessionStore:
            store: ISessionStore = kind(clock, limits)
            return store

    test = getattr(SessionStoreTests, f"test_{name}")
    answer: Deferred[Any] = Deferred.fromCoroutine(test(Tests()))
    assert isinstance(resultOf(answer).error, AssertionError)
