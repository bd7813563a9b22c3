"""
The behaviour of every kind of database.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    gatherResults,
    succeed,
)
from zope.interface.verify import verifyObject

from tsrv.asyncmodule import NotInitialized
from tsrv.databases import (
    ConstraintViolated,
    Database,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    IDatabase,
    Schema,
    Statement,
    UniqueViolated,
)

from .databases import database as database
from .databases import errorOf, opened
from .support import resultOf
from .websupport import asynchronous


def schema(part: str, *versions: list[str]) -> Schema:
    """
    A schema with the same steps for every kind.
    """
    return Schema(part, {"sqlite": versions, "postgresql": versions})


MAKE = "CREATE TABLE things (name VARCHAR(9) UNIQUE NOT NULL, size INTEGER)"
SCHEMA = schema("things", [MAKE])

ADD = Statement("INSERT INTO things (name, size) VALUES (?, ?)")
RETURNING = Statement("INSERT INTO things (name) VALUES (?) RETURNING name, size")
NAMES = Statement("SELECT name FROM things ORDER BY name")
COUNT = Statement("SELECT count(*) FROM things")
ONE = Statement("SELECT 1")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """
    The URL of an empty database of each kind.
    """
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/things.db"
    found: str = request.getfixturevalue("database").url
    return found


@asynchronous
async def test_it_is_a_database(url: str) -> None:
    """
    Every kind of database provides the same interface.
    """
    async with opened(url) as database:
        assert verifyObject(IDatabase, database)


@asynchronous
async def test_a_write_is_read(url: str) -> None:
    """
    A write returns the rows of RETURNING, and no rows without it.
    """
    async with opened(url, [SCHEMA]) as database:
        assert await database.write(ADD, "a", 1) == []
        assert await database.write(RETURNING, "b") == [("b", None)]
        assert await database.read(NAMES) == [("a",), ("b",)]


@asynchronous
async def test_each_type_is_read_as_it_was_written(url: str) -> None:
    """
    Each type is read as it was written, also at its limits.
    """
    sent = (2**63 - 1, -(2**63), -1.5e300, b"\0\xff", "\u20ac'\"", None)
    types = ("BIGINT", "BIGINT", "REAL", "BLOB", "TEXT", "TEXT")
    if url.startswith("postgresql"):
        types = ("BIGINT", "BIGINT", "DOUBLE PRECISION", "BYTEA", "TEXT", "TEXT")
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(types))
    typed = schema("typed", [f"CREATE TABLE typed ({columns})"])
    async with opened(url, [typed]) as database:
        await database.write(
            Statement("INSERT INTO typed VALUES (?, ?, ?, ?, ?, ?)"), *sent
        )
        assert await database.read(Statement("SELECT * FROM typed")) == [sent]


@pytest.mark.parametrize("parameters", [("\ud800",), (object(),), (2**63,), ()])
@asynchronous
async def test_parameters_that_cannot_be_sent_are_an_error(
    url: str, parameters: tuple[Any, ...]
) -> None:
    """
    A parameter that cannot be sent is an error: nothing is written, and the database
    remains usable.
    """
    sized = Statement("INSERT INTO things (name, size) VALUES ('a', ?)")
    async with opened(url, [SCHEMA], connections=1) as database:
        assert type(await errorOf(database.write(sized, *parameters))) is DatabaseError
        assert not database.whenLost().called
        assert await database.read(COUNT) == [(0,)]


@asynchronous
async def test_a_violated_constraint_has_its_own_type(url: str) -> None:
    """
    A violated constraint has its own type of error, whose message does not repeat the
    value.
    """
    async with opened(url, [SCHEMA]) as database:
        await database.write(ADD, "secret", 1)
        error = await errorOf(database.write(ADD, "secret", 2))
        assert isinstance(error, UniqueViolated)
        assert error.code
        assert "secret" not in str(error)
        error = await errorOf(database.write(ADD, None, 3))
        assert type(error) is ConstraintViolated
        error = await errorOf(database.read(Statement("SELECT nonsense")))
        assert type(error) is DatabaseError
        assert await database.read(COUNT) == [(1,)]


@asynchronous
async def test_many_calls_share_a_few_connections(url: str) -> None:
    """
    Many calls share a few connections, and each call gets its own result.
    """
    async with opened(url, [SCHEMA], connections=3) as database:
        names = [f"{number:03}" for number in range(64)]
        rows = await gatherResults([database.write(RETURNING, each) for each in names])
        assert rows == [[(each, None)] for each in names]
        same = Statement("SELECT name FROM things WHERE name = ?")
        rows = await gatherResults([database.read(same, each) for each in names])
        assert rows == [[(each,)] for each in names]


@asynchronous
async def test_one_call_too_many_fails_at_once(url: str) -> None:
    """
    One call too many fails at once, and queued calls run. A cancelled call leaves the
    queue.
    """
    async with opened(url, [SCHEMA], connections=1, limit=2) as database:
        busy = database.read(COUNT)
        for _ in range(8):
            given = database.read(COUNT)
            given.cancel()
            assert isinstance(await errorOf(given), CancelledError)
        assert await busy == [(0,)]
        calls = [database.read(COUNT) for _ in range(8)]
        errors = [await errorOf(each) for each in calls[3:]]
        assert {type(each) for each in errors} == {DatabaseUnavailable}
        assert await calls[0] == await calls[1] == [(0,)]
        await DeferredList([calls[2]], consumeErrors=True)


@asynchronous
async def test_a_cancelled_call_is_never_started(url: str) -> None:
    """
    A cancelled call is never started, also if the callback of another call cancels it.
    """
    async with opened(url, [SCHEMA], connections=1) as database:
        first = database.write(ADD, "first", 1)
        waits = database.write(ADD, "waits", 2)
        later = database.write(ADD, "later", 3)
        first.addCallback(lambda _: later.cancel())
        waits.cancel()
        assert isinstance(await errorOf(waits), CancelledError)
        assert isinstance(await errorOf(later), CancelledError)
        await first
        assert ("waits",) not in await database.read(NAMES)


@asynchronous
async def test_an_answer_may_use_the_database(url: str) -> None:
    """
    A callback of a call may start another call, close the database, or raise.
    """
    async with opened(url, [SCHEMA], connections=1) as database:
        rows = database.write(ADD, "a", 1).addCallback(lambda _: database.read(NAMES))
        assert await rows == [("a",)]
        raising = database.read(ONE).addCallback(lambda _: 1 / 0)
        behind = database.read(ONE)
        assert isinstance(await errorOf(raising), ZeroDivisionError)
        assert await behind == [(1,)]
        await database.read(ONE).addCallback(lambda _: database.close())


@asynchronous
async def test_a_statement_that_takes_too_long_fails(url: str) -> None:
    """
    A statement that takes too long fails and is not carried out, and the database
    remains usable.
    """
    endless = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
        "INSERT INTO things (name, size) SELECT 'a', count(*) FROM n"
    )
    async with opened(url, [SCHEMA], statementTimeout=0.3) as database:
        error = await errorOf(database.write(Statement(endless)))
        assert isinstance(error, DatabaseUnavailable)
        assert error.retryAfter is not None
        assert await database.read(COUNT) == [(0,)]


# The schema.


@asynchronous
async def test_only_missing_steps_are_made(url: str) -> None:
    """
    A newer program adds only the missing steps; an older program refuses the newer
    tables.
    """
    more = "ALTER TABLE things ADD COLUMN colour VARCHAR(9)"
    newer = schema("things", [MAKE], [more])
    async with opened(url, [SCHEMA]) as database:
        await database.write(ADD, "a", 1)
    for _ in range(2):
        async with opened(url, [newer]) as database:
            colours = await database.read(Statement("SELECT colour FROM things"))
            assert colours == [(None,)]
    with pytest.raises(DatabaseRefused, match="version 2, made by a newer program"):
        async with opened(url, [SCHEMA]):
            pass


@asynchronous
async def test_several_that_start_at_once_make_the_tables_once(url: str) -> None:
    """
    If several programs start at once, one makes the tables, and the others wait for it.
    """
    from twisted.internet import reactor

    several = [Database(reactor, url, [SCHEMA]) for _ in range(6)]
    await gatherResults([each.initialize() for each in several])
    versions = Statement("SELECT part, version FROM tsrv_schema")
    assert await several[0].read(versions) == [("things", 1)]
    await gatherResults([each.close() for each in several])


@asynchronous
async def test_a_step_that_fails_changes_nothing(url: str) -> None:
    """
    A failed step of the schema changes nothing and is not retried; the message names
    the reason.
    """
    bad = schema("bad", [MAKE, "nonsense"])
    with pytest.raises(DatabaseRefused, match="nonsense"):
        async with opened(url, [bad]):
            pass
    async with opened(url, [SCHEMA]) as database:
        assert await database.read(COUNT) == [(0,)]


@asynchronous
async def test_a_table_that_changes_is_read_in_its_new_form(url: str) -> None:
    """
    A prepared statement works after its table has changed.
    """
    everything = Statement("SELECT * FROM things WHERE name = ?")
    async with opened(url, [SCHEMA], connections=1) as database:
        await database.write(ADD, "a", 1)
        assert await database.read(everything, "a") == [("a", 1)]
        await database.write(Statement("ALTER TABLE things ADD COLUMN more INTEGER"))
        assert await database.read(everything, "a") == [("a", 1, None)]
        assert await database.read(everything, "a") == [("a", 1, None)]


# Opening and closing.


@asynchronous
async def test_it_is_used_between_initialising_and_closing(url: str) -> None:
    """
    A database can be initialised and closed repeatedly, and keeps its rows.
    """
    from twisted.internet import reactor

    database = Database(reactor, url, [SCHEMA])
    for early in (database.read(COUNT), database.write(ADD, "a", 1)):
        assert isinstance(resultOf(early).error, NotInitialized)
    assert database.whenLost().called
    await database.close()
    for number in range(2):
        first = database.initialize()
        second = database.initialize()
        assert isinstance(await errorOf(second), DatabaseUnavailable)
        await first
        await database.initialize()
        assert database.initialized
        await database.write(ADD, str(number), 1)
        lost, given = database.whenLost(), database.whenLost()
        given.cancel()
        assert isinstance(await errorOf(given), CancelledError)
        await database.close()
        await lost
        await database.close()
        assert not database.initialized
    async with opened(url) as again:
        assert await again.read(COUNT) == [(2,)]


@asynchronous
async def test_closing_ends_every_call(url: str) -> None:
    """
    Closing finishes calls in progress; queued calls fail without being started.
    """
    async with opened(url, [SCHEMA], connections=1) as database:
        calls = [database.write(ADD, str(number), 1) for number in range(9)]
        outcomes = DeferredList(calls, consumeErrors=True)
        await database.close()
        assert outcomes.called
        results: list[tuple[bool, Any]] = await outcomes
        written = [name for name, (success, _) in enumerate(results) if success]
        failures = [value for success, value in results if not success]
        assert {failure.type for failure in failures} == {DatabaseUnavailable}
    async with opened(url) as database:
        assert await database.read(NAMES) == [(str(name),) for name in written]


@asynchronous
async def test_it_is_idle_when_no_call_is_in_progress(url: str) -> None:
    """
    A database is idle when its queued calls have ended, and the calls that their
    callbacks make. Each waiter can give up.
    """
    from twisted.internet import reactor

    unused = Database(reactor, url, [SCHEMA])
    await unused.whenIdle()
    async with opened(url, [SCHEMA], connections=1) as database:
        await database.whenIdle()
        calls: list[Deferred[Any]] = [
            database.write(ADD, str(number), number) for number in range(40)
        ]
        calls += [database.read(NAMES) for _ in range(40)]
        counts = [each.addCallback(lambda _: database.read(COUNT)) for each in calls]
        given, idle = database.whenIdle(), database.whenIdle()
        given.cancel()
        assert isinstance(await errorOf(given), CancelledError)
        assert not idle.called
        await idle
        assert [each for each in counts if not each.called] == []
        assert await database.read(COUNT) == [(40,)]


@pytest.mark.parametrize("sent", [False, True])
@asynchronous
async def test_it_is_idle_when_all_calls_were_cancelled(url: str, sent: bool) -> None:
    """
    If all calls were cancelled, a statement that has begun is still waited for.
    """
    async with opened(url, [SCHEMA], connections=1) as database:
        if sent:
            await database.read(COUNT)
        calls = [database.read(COUNT), database.write(ADD, "a", 1), database.read(ONE)]
        idle = database.whenIdle()
        for each in calls:
            each.cancel()
        await DeferredList(calls, consumeErrors=True)
        await idle
        assert await database.read(COUNT) in ([(0,)], [(1,)])


@asynchronous
async def test_it_is_idle_when_it_is_closed(url: str) -> None:
    """
    A closed database is idle, since all its calls have ended.
    """
    async with opened(url, [SCHEMA], connections=1) as database:
        calls = [database.write(ADD, str(number), 1) for number in range(9)]
        outcomes = DeferredList(calls, consumeErrors=True)
        ended: list[bool] = []
        idle = database.whenIdle()
        idle.addCallback(lambda _: ended.append(outcomes.called))
        await database.close()
        await idle
        assert ended == [True]
        await database.whenIdle()


@pytest.mark.parametrize("how", ["close", "cancel"])
@asynchronous
async def test_initialising_can_be_given_up(url: str, how: str) -> None:
    """
    An initialisation that is given up leaves nothing behind, and the database can be
    initialised afterwards.
    """
    from twisted.internet import reactor

    database = Database(reactor, url, [SCHEMA])
    opening = database.initialize()
    if how == "close":
        await database.close()
    else:
        opening.cancel()
    assert isinstance(await errorOf(opening), CancelledError | DatabaseUnavailable)
    assert not database.initialized
    await database.initialize()
    await database.close()


@pytest.mark.parametrize("value", [None, 5432, ["sqlite:the.db"]])
def test_a_url_that_is_no_text_is_refused(value: Any) -> None:
    """
    A function may return a setting from the network, which may be any JSON.
    """
    database = Database(object(), lambda: succeed(value), [SCHEMA])
    assert isinstance(resultOf(database.initialize()).error, DatabaseRefused)


@asynchronous
async def test_its_url_may_change(url: str) -> None:
    """
    Each attempt uses the current URL: a replaced password is not used again.
    """
    from twisted.internet import reactor

    urls: list[str | Deferred[str]] = ["mysql://u:hush@h/n", Deferred(), url]
    database = Database(reactor, lambda: urls.pop(0), [SCHEMA])
    error = await errorOf(database.initialize())
    assert isinstance(error, DatabaseRefused)
    assert "hush" not in str(error)
    late = urls[0]
    opening = database.initialize()
    assert not opening.called
    assert isinstance(late, Deferred)
    late.callback(url)
    await opening
    await database.close()
    await database.initialize()
    await database.close()


def test_closing_gives_up_waiting_for_the_url() -> None:
    """
    Closing gives up waiting for the URL, and nothing connects afterwards.
    """
    waiting: Deferred[str] = Deferred()
    database = Database(object(), lambda: waiting, [SCHEMA])
    opening = resultOf(database.initialize())
    closing: Callable[[], object] = database.close
    closing()
    assert isinstance(opening.error, CancelledError)
    assert not database.initialized


@asynchronous
async def test_waiting_for_the_end_can_be_given_up(url: str) -> None:
    """
    Cancelling a waiter fails only its own Deferred, and the database closes.
    """
    async with opened(url, [SCHEMA], connections=1) as database:
        call = database.read(COUNT)
        given, closing = database.close(), database.close()
        assert not given.called
        given.cancel()
        assert isinstance(await errorOf(given), CancelledError)
        await closing
        await DeferredList([call], consumeErrors=True)


def test_every_kind_has_as_many_versions_of_a_schema() -> None:
    """
    A version of a schema means the same for each kind of database.
    """
    with pytest.raises(ValueError, match="things: every kind of database must have"):
        Schema("things", {"sqlite": [[MAKE]], "postgresql": []})
