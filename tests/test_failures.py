"""
Failed calls of a ready module are counted and logged, however many there are.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger

from tsrv.databases import (
    DatabaseUnavailable,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)
from tsrv.failures import MAX_CODES, OTHER, Failures
from tsrv.sessions.sql import SQLiteSessionStore, SQLSessionStore
from tsrv.sessions.store import makeIdentifier
from tsrv.web.requestid import withRequestId

from .databases import Database as Shared
from .databases import database as database
from .databases import errorOf, opened
from .services import serving
from .sqlitelab import connect
from .websupport import asynchronous, logged, textsOf, written


@pytest.fixture
def failures(clock: Clock) -> Failures:
    """
    The failures of a module.
    """
    return Failures(clock, Logger("tsrv.test"), "cache: a call failed")


def test_each_code_is_logged_at_most_every_ten_seconds(
    clock: Clock, failures: Failures
) -> None:
    """
    The first failure of each code is logged at once; later lines have the number of
    failures in between.
    """

    def linesOf(code: str, times: int) -> list[str]:
        with logged() as events:
            for _ in range(times):
                failures.add(code, f"no room ({code})")
        return textsOf(events)

    assert linesOf("FULL", 13) == ["cache: a call failed: no room (FULL)"]
    clock.advance(9)
    assert linesOf("FULL", 1_000) == []
    assert linesOf("BUSY", 1) == ["cache: a call failed: no room (BUSY)"]
    clock.advance(1)
    more = "cache: a call failed: no room (FULL); 1,012 more since the last such line"
    assert linesOf("FULL", 2) == [more]
    clock.advance(10)
    assert "; 1 more since" in linesOf("FULL", 1)[0]
    clock.advance(10)
    assert linesOf("FULL", 1) == ["cache: a call failed: no room (FULL)"]
    assert failures.counts == {"FULL": 1_017, "BUSY": 1}


def test_a_clock_that_is_set_back_does_not_silence_the_log(
    clock: Clock, failures: Failures
) -> None:
    """
    After the clock is set back, the next failure is logged.
    """
    failures.add("FULL", "no room")
    clock.rightNow -= 3600
    with logged() as events:
        failures.add("FULL", "no room")
    assert len(events) == 1


def test_the_number_of_codes_is_bounded(clock: Clock, failures: Failures) -> None:
    """
    A database may raise any code; beyond the bound, further codes count as C{other}.
    """
    with logged() as events:
        for number in range(100):
            failures.add(f"X{number}", "no room")
    assert len(events) == len(failures.counts) == MAX_CODES + 1
    assert failures.counts[OTHER] == 100 - MAX_CODES
    failures.add("X0", "no")
    assert failures.counts["X0"] == 2


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """
    The URL of an empty database of each kind.
    """
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/things.db"
    found: str = request.getfixturevalue("database").url
    return found


Headers: TypeAlias = dict[bytes | str, bytes | str]

ENDLESS = Statement(
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
    "SELECT count(*) FROM n"
)


@asynchronous
async def test_a_failure_has_the_id_of_its_request(url: str) -> None:
    """
    A failure is logged with the id of its request, also if another request used the
    connection before.
    """
    with written() as lines:
        async with opened(url, connections=1, statementTimeout=0.3) as module:
            with withRequestId("first"):
                first = module.read(Statement("SELECT 1"))
            with withRequestId("second"):
                second = module.read(ENDLESS)
            assert await first == [(1,)]
            assert isinstance(await errorOf(second), DatabaseUnavailable)
            assert list(module.failures.values()) == [1]
    (line,) = lines
    assert ",second] database: a statement failed: " in line


@asynchronous
async def test_a_failure_counts_although_the_client_has_left(database: Shared) -> None:
    """
    A failure counts although the client has disconnected, since clients may have less
    patience than the database.
    """
    begun = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'WITH RECURSIVE%'"
    with written() as lines:
        async with opened(database.url, statementTimeout=0.3) as module:
            given = module.read(ENDLESS)
            while not await database.ask(begun):
                pass
            given.cancel()
            await errorOf(given)
            await module.whenIdle()
            assert module.failures == {"57014": 1}
    assert len(lines) == 1


@asynchronous
async def test_a_violated_constraint_is_not_a_failure(url: str) -> None:
    """
    A violated constraint does not count as a failure of the module.
    """
    make = ["CREATE TABLE things (name VARCHAR(9) PRIMARY KEY)"]
    schema = Schema("things", {"sqlite": [make], "postgresql": [make]})
    add = Statement("INSERT INTO things VALUES (?)")
    with written() as lines:
        async with opened(url, [schema]) as module:
            await module.write(add, "a")
            assert isinstance(await errorOf(module.write(add, "a")), UniqueViolated)
            assert module.failures == {}
    assert lines == []


@asynchronous
async def test_a_full_queue_is_a_failure(database: Shared) -> None:
    """
    A statement that fails because the queue is full counts as a failure.
    """
    sleep = Statement("SELECT 1 FROM pg_sleep(?)")
    async with opened(database.url, connections=1, limit=1) as module:
        with written() as lines:
            calls = [module.read(sleep, 0.1) for _ in range(3)]
            assert isinstance(await errorOf(calls[2]), DatabaseUnavailable)
            assert module.failures == {"queue_full": 1}
            await calls[0]
            await calls[1]
    assert len(lines) == 1


@asynchronous
async def test_a_store_shows_the_failures_of_its_own_database(tmp_path: Path) -> None:
    """
    Failures of a shared database are counted by the database alone, and not by the
    store.
    """
    from twisted.internet import reactor

    settings = Settings(statementTimeout=0.1)
    path = tmp_path / "sessions.db"
    store = SQLiteSessionStore(reactor, str(path), settings=settings)
    await store.initialize()
    async with opened(f"sqlite:{path}", statementTimeout=0.1) as shared:
        other = SQLSessionStore(reactor, shared, owned=False)
        await other.initialize()
        with closing(connect(path, isolation_level=None)) as locking:
            locking.execute("BEGIN IMMEDIATE")
            with written() as lines:
                for each in (store, other):
                    await errorOf(each.create(makeIdentifier(), {"a": 1}))
        await other.close()
    assert (store.failures, other.failures) == ({"SQLITE_BUSY": 1}, {})
    assert "sessions: a statement failed: " in lines[0]
    await store.close()


@asynchronous
async def test_an_operator_sees_why_writes_fail(tmp_path: Path) -> None:
    """
    A locked table appears in the log, with the id of the first request, and in the
    metrics.
    """
    path = tmp_path / "users.db"
    words = ("--statement-timeout=0.2", "--connect-timeout=0.2")
    async with serving(tmp_path, f"sqlite:{path}", *words) as service:
        await service.ready()
        with closing(connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(3):
                user = {"name": "Ada", "email": f"{number}@x"}
                id_: Headers = {"X-Request-ID": f"request-{number}"}
                answer = await service.ask("POST", "/users", user, id_)
                assert answer.kind == "not now"
        metrics = (await service.ask("GET", "/metrics")).body
    sample = 'tsrv_module_failures_total{code="SQLITE_BUSY",module="database"} 3.0'
    assert sample in metrics
    (line,) = (line for line in service.process.output.splitlines() if "failed" in line)
    assert "request-0]" in line
    assert "database: a statement failed: " in line
    assert "(SQLITE_BUSY)" in line
