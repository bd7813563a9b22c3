"""
All session stores pass the tests in L{tsrv.testing}. Further tests are for stores in a
database.
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
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

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
from tsrv.sessions.redis import RedisSessionStore
from tsrv.testing import SessionStoreTests, SharedSessionStoreTests

from .databases import Database as Server
from .databases import PostgreSQL, errorOf
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .processes import ROOT
from .redis_server import Redis, Timed
from .redis_server import redis as redis
from .support import resultOf
from .websupport import asynchronous

MAX_SECONDS = 60.0
"""
Maximum time of a test, in seconds.
"""

MINUTE = 60.0

DAMAGE = Statement("UPDATE sessions SET data = ? WHERE key = ?")


def limited(test: Callable[..., Any]) -> Callable[..., Any]:
    """
    Run a method on the real reactor, with a time limit.
    """

    @wraps(test)
    async def run(self: Any) -> None:
        from twisted.internet import reactor

        running: Deferred[Any] = Deferred.fromCoroutine(test(self))
        clock: Any = reactor
        await running.addTimeout(MAX_SECONDS, clock)

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
        store.rows[key] = ("[]", *store.rows[key][1:])


class InDatabase(SharedSessionStoreTests):
    """
    Stores in a database.
    """

    url = ""

    async def makeStore(self, limits: Limits, clock: Clock) -> ISessionStore:
        self.database = makeDatabase(self.url)
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


class TestRedis(SharedSessionStoreTests, decorate=limited):
    """
    The store in Redis.
    """

    expiresByItself = True

    @pytest.fixture(autouse=True)
    def prepared(self, redis: Redis) -> None:
        self.redis = redis

    async def makeStore(self, limits: Limits, clock: Clock) -> Any:
        return RedisSessionStore(Timed(clock), self.redis.url, limits=limits)

    async def damage(self, store: Any, identifier: str) -> None:
        key = keyOf(identifier)
        assert key is not None
        self.redis.ask("HSET", f"tsrv:session:{key.hex()}", "d", '{"cut')


# Stores in databases.


def makeDatabase(url: str, table: str = "sessions") -> Database:
    """
    @return: A database for sessions that was not initialised.
    """
    from twisted.internet import reactor

    settings = Settings(statementTimeout=30.0)
    return Database(reactor, url, [schemaOf(table)], settings)


@asynccontextmanager
async def using(
    url: str, clock: Clock, table: str = "sessions", limits: Limits | None = None
) -> AsyncIterator[tuple[SQLSessionStore, Database]]:
    """
    Use a store in a database.
    """
    database = makeDatabase(url, table)
    store = SQLSessionStore(clock, database, table, limits)
    await store.initialize()
    try:
        yield store, database
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """
    The path of an SQLite file that does not exist.
    """
    return tmp_path / "sessions.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, path: Path) -> str:
    """
    The URL of a database, of each kind.
    """
    if request.param == "sqlite":
        return f"sqlite:{path}"
    server: Server = request.getfixturevalue("database")
    return server.url


@asynchronous
async def test_no_identifier_is_in_the_file(path: Path, clock: Clock) -> None:
    """
    The file contains the keys, but not the identifiers.
    """
    identifiers = [makeIdentifier() for _ in range(20)]
    async with using(f"sqlite:{path}", clock) as (store, _):
        for identifier in identifiers:
            await store.create(identifier, {"name": "Ada"})
            await store.set(identifier, Changes({"page": 1}))
        files = [each.read_bytes() for each in path.parent.iterdir()]
    files += [each.read_bytes() for each in path.parent.iterdir()]
    for identifier in identifiers:
        key = keyOf(identifier) or b""
        assert not any(identifier.encode() in data for data in files)
        assert any(key in data for data in files)


@asynchronous
async def test_expired_sessions_are_found_by_an_index(
    database: Server, path: Path, clock: Clock
) -> None:
    """
    A sweep does not read sessions that have not expired.
    """
    seen: list[str] = []
    async with using(f"sqlite:{path}", clock) as (_, sqlite):
        spy: Any = Spy(sqlite, seen)
        sweeper = SQLSessionStore(clock, spy, owned=False)
        await sweeper.initialize()
        await sweeper.cleanup()
        await sweeper.close()
    (statement,) = seen
    with closing(sqlite3.connect(path)) as connection:
        parameters = [1] * statement.count("?")
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        steps = [row[3] for row in plan]
    assert any("sessions_expires (expires<?)" in step for step in steps), steps
    assert any("PRIMARY KEY (key=?)" in step for step in steps), steps
    assert not any(step.startswith("SCAN") for step in steps), steps
    async with using(database.url, clock):
        pass
    await database.ask(
        "insert into sessions select sha256(i::text::bytea), '{}', 1, 0, i "
        "from generate_series(1, 50000) as i"
    )
    await database.ask("analyze sessions")
    for value in ("1000", "100", "1000"):
        statement = statement.replace("?", value, 1)
    rows = await database.ask(f"explain {statement}")
    text = "\n".join(row[0] for row in rows)
    assert "Index Scan using sessions_expires" in text, text
    assert "Seq Scan" not in text, text


class Spy:
    """
    A database that records the statements that change something.
    """

    def __init__(self, database: Database, seen: list[str]) -> None:
        self._database = database
        self._seen = seen

    def write(self, statement: Statement, *parameters: Any) -> Deferred[Any]:
        self._seen.append(statement.sql)
        return self._database.write(statement, *parameters)


@pytest.mark.parametrize(
    "name",
    ["", "a b", 'a"', "a;b", "1a", "a.b", "a\n", "\u00e4", "a" * 56, "pg_class"],
)
def test_a_table_needs_a_plain_name(clock: Clock, name: str) -> None:
    """
    A table name that is not plain, or that the database reserves, is refused at once.
    """
    for make in (
        schemaOf,
        lambda name: SQLSessionStore(clock, makeDatabase("sqlite:x"), name),
        lambda name: SQLiteSessionStore(clock, "sessions.db", name),
        lambda name: PostgreSQLSessionStore(clock, "postgresql://host/db", name),
    ):
        with pytest.raises(ValueError, match="name of a table") as caught:
            make(name)
        assert len(name) < 3 or name not in str(caught.value)


@asynchronous
async def test_a_store_can_be_made_from_a_url(
    path: Path, database: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A store that is made from a URL makes its own database.
    """
    from twisted.internet import reactor

    monkeypatch.chdir(path.parent)
    for store in (
        SQLiteSessionStore(reactor),
        SQLiteSessionStore(reactor, str(path), "visits", Limits(60.0)),
        PostgreSQLSessionStore(reactor, database.url),
        PostgreSQLSessionStore(reactor, database.url, "visits"),
    ):
        await store.initialize()
        identifier = makeIdentifier()
        made = await store.create(identifier, {"a": 1})
        assert await store.get(identifier) == made
        await store.close()
    for table in ("sessions", "visits"):
        sql = f"SELECT count(*) FROM {table}"  # noqa: S608
        assert await database.ask(sql) == [(1,)]
        with closing(sqlite3.connect("sessions.db")) as connection:
            assert connection.execute(sql).fetchall() == [(1,)]


def test_a_url_of_something_else_is_refused(clock: Clock) -> None:
    """
    Any other URL is refused, and not repeated, since it may contain a password.
    """
    makers: list[Callable[[], object]] = [
        lambda: SQLiteSessionStore(clock, ""),
        lambda: SQLiteSessionStore(clock, ":memory:"),
        lambda: PostgreSQLSessionStore(clock, "sqlite:secret"),
        lambda: PostgreSQLSessionStore(clock, "secret"),
        lambda: PostgreSQLSessionStore(clock, "postgresql://a:secret#@host/db"),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"database|sessions") as caught:
            make()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("table", ["order", "a" * 55])
@asynchronous
async def test_a_table_may_have_any_plain_name(
    url: str, clock: Clock, table: str
) -> None:
    """
    Keywords and very long names are allowed as table names.
    """
    async with using(url, clock, table) as (store, _):
        await store.create(makeIdentifier(), {})
        assert await store.cleanup() == 0
        assert await store.length() == 1


@pytest.mark.parametrize(
    "damage",
    [
        "data = x'7bff7d'",
        "data = '{\"a\": NaN}'",
        "data = 7",
        "expires = 'abc'",
        "created = 'x'",
        "version = 'z'",
    ],
)
@asynchronous
async def test_any_value_in_sqlite_may_be_damaged(
    path: Path, clock: Clock, damage: str
) -> None:
    """
    SQLite does not check the types of columns: a session with a damaged value is
    absent, and removed.
    """
    async with using(f"sqlite:{path}", clock) as (store, database):
        identifier = makeIdentifier()
        await store.create(identifier, {"a": 1})
        await database.write(Statement(f"UPDATE sessions SET {damage}"))  # noqa: S608
        assert list(await store.all()) == []
        assert await store.get(identifier) is None
        # This write follows the write of the removal.
        await store.destroy(makeIdentifier())
        assert await store.length() == 0


@asynchronous
async def test_sessions_survive_a_restart(url: str, clock: Clock) -> None:
    """
    Another store, and the same store after a close, find the sessions.
    """
    identifier = makeIdentifier()
    async with using(url, clock) as (store, _):
        made = await store.create(identifier, {"name": "Ada"})
    async with using(url, clock) as (store, _):
        assert await store.get(identifier) == made
        await store.close()
        await store.initialize()
        assert await store.get(identifier) == made


@asynchronous
async def test_a_session_that_is_used_during_a_sweep_stays(
    database: Server, clock: Clock
) -> None:
    """
    A sweep waits for a transaction that uses a session, and checks the session again.
    """
    from psycopg import connect

    from .postgresql_server import inThread

    identifier = makeIdentifier()
    async with using(database.url, clock, limits=Limits(MINUTE, None)) as (store, _):
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
async def test_a_loss_of_the_database_is_reported(
    ownPostgresql: PostgreSQL, clock: Clock
) -> None:
    """
    A loss of the database is reported. The store can then be initialised again, and has
    lost no session.
    """
    await ownPostgresql.start()
    identifier = makeIdentifier()
    async with using(ownPostgresql.url, clock) as (store, _):
        made = await store.create(identifier, {"name": "Ada"})
        lost = store.whenLost()
        await ownPostgresql.kill()
        assert isinstance(await errorOf(lost), Unavailable)
        assert not store.initialized
        assert clock.getDelayedCalls() == []
        with pytest.raises((NotInitialized, Unavailable)):
            await store.get(identifier)
        await ownPostgresql.start()
        await store.initialize()
        assert await store.get(identifier) == made
        assert len(clock.getDelayedCalls()) == 1


@asynchronous
async def test_a_database_that_cannot_be_opened_is_the_reason(
    tmp_path: Path, clock: Clock
) -> None:
    """
    If the database cannot be opened, the initialisation fails with its error.
    """
    store = SQLSessionStore(clock, makeDatabase(f"sqlite:{tmp_path}"))
    with pytest.raises(DatabaseRefused):
        await store.initialize()
    assert not store.initialized
    assert clock.getDelayedCalls() == []
    await store.close()


@asynchronous
async def test_only_an_existing_key_means_an_existing_session(
    path: Path, clock: Clock
) -> None:
    """
    Only a violated key means that the session exists; the error of another constraint
    is passed on.
    """
    async with using(f"sqlite:{path}", clock) as (store, database):
        await database.write(
            Statement(
                "CREATE TRIGGER few BEFORE INSERT ON sessions BEGIN "
                "SELECT RAISE(ABORT, 'too many'); END"
            )
        )
        with pytest.raises(ConstraintViolated):
            await store.create(makeIdentifier(), {})


# The tests of tsrv.testing themselves.

TRIAL = """
from twisted.trial.unittest import TestCase
from tsrv.sessions import MemorySessionStore, keyOf
from tsrv.testing import SessionStoreTests

class MemoryTests(SessionStoreTests, TestCase):
    async def makeStore(self, limits, clock):
        return MemorySessionStore(clock, limits)

    async def damage(self, store, identifier):
        key = keyOf(identifier)
        store.rows[key] = ("[]", *store.rows[key][1:])
"""

ALONE = """
import sys
import tsrv.testing
found = {"pytest", "twisted.trial", "twisted.internet.reactor"} & set(sys.modules)
assert not found, found
"""


def run(*arguments: str, cwd: Path = ROOT) -> str:
    """
    @return: The output of a Python that exits with 0.
    """
    ended = subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_tests_run_with_trial(tmp_path: Path) -> None:
    """
    The tests also run with trial: an author needs neither pytest nor a decorator.
    """
    (tmp_path / "test_memory_with_trial.py").write_text(TRIAL)
    output = run("-m", "twisted.trial", "test_memory_with_trial", cwd=tmp_path)
    names = [name for name in dir(SessionStoreTests) if name.startswith("test_")]
    assert len(names) > 20
    assert f"PASSED (successes={len(names)})" in output


def test_the_tests_import_no_test_runner() -> None:
    """
    Importing the tests imports no test runner, so it does no harm in production.
    """
    run("-c", ALONE)


class Resurrecting(MemorySessionStore):
    """
    A store with a fault: it writes a session that was destroyed, as express-session
    does.
    """

    def set(self, identifier: str, changes: Changes, known: Any = None) -> Any:
        if known is not None:
            key = keyOf(identifier) or b""
            self.rows[key] = (b"{}", known.created, known.expires, known.version)
        return super().set(identifier, changes, known)


class Immortal(MemorySessionStore):
    """
    A store with a fault: sessions never expire.
    """

    def get(self, identifier: str) -> Deferred[StoredSession | None]:
        key = keyOf(identifier) or b""
        if key in self.rows:
            data, created, _, version = self.rows[key]
            self.rows[key] = (data, created, 1e12, version)
        return super().get(identifier)


class Untidy(MemorySessionStore):
    """
    A store with a fault: a timer is left behind.
    """

    def __init__(self, clock: Clock, limits: Limits) -> None:
        super().__init__(clock, limits)
        clock.callLater(1, int)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Resurrecting, "a_destroyed_session_stays_destroyed"),
        (Immortal, "a_session_expires"),
        (Untidy, "every_json_value_is_stored"),
    ],
)
def test_the_tests_find_faults(kind: Any, name: str) -> None:
    """
    The tests fail for a store with a known fault.
    """

    class Tests(TestMemory):
        async def makeStore(self, limits: Limits, clock: Clock) -> ISessionStore:
            store: ISessionStore = kind(clock, limits)
            return store

    test = getattr(SessionStoreTests, f"test_{name}")
    answer: Deferred[Any] = Deferred.fromCoroutine(test(Tests()))
    assert isinstance(resultOf(answer).error, AssertionError)
