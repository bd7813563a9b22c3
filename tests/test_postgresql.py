"""
Calls to PostgreSQL while its server is down, refuses connections, dies, or is silent.
"""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from struct import pack
from typing import Any

import psycopg
import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from tsrv import QueuingWrapper, databases
from tsrv.databases import (
    ConstraintViolated,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)
from tsrv.errors import OutcomeUnknown

from .databases import Database, PostgreSQL, errorOf, opened, watchedSockets
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .databases import pooler as pooler
from .networks import Relay, blackHole, relaying
from .services import pause
from .websupport import asynchronous, errorsIn, logged, textsOf

MAKE = "CREATE TABLE things (name TEXT)"
SCHEMA = Schema("things", {"postgresql": [[MAKE]]})

ONE = Statement("SELECT 1")
SLEEP = Statement("SELECT 1 FROM pg_sleep(?)")
ADD = Statement("INSERT INTO things VALUES (?)")
ADD_SLOWLY = Statement("INSERT INTO things SELECT pg_sleep(?)::text")
COUNT = Statement("SELECT count(*) FROM things")
ASLEEP = "query LIKE 'SELECT 1 FROM pg_sleep%%'"
ADDING = "query LIKE 'INSERT%%'"


def module(url: str, **settings: Any) -> databases.Database:
    """
    A database that was not initialised.
    """
    from twisted.internet import reactor

    return databases.Database(reactor, url, [SCHEMA], Settings(**settings))


@asynccontextmanager
async def relayed(
    database: Database, **settings: Any
) -> AsyncIterator[tuple[databases.Database, Relay]]:
    """
    An initialised database behind a network that the test can break.
    """
    server = database.server
    async with relaying(server.port) as relay:
        url = server.urlFor(database=database.name, port=relay.port)
        async with opened(url, [SCHEMA], **settings) as module:
            yield module, relay


async def inProgress(
    module: databases.Database, server: PostgreSQL
) -> tuple[Deferred[Any], Deferred[Any]]:
    """
    @return: A read and a write that the server is executing.
    """
    calls = module.read(SLEEP, 60.0), module.write(ADD_SLOWLY, 60.0)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    while await server.ask(asleep) != [(2,)]:
        pass
    return calls


# Statements.


@asynchronous
async def test_the_number_of_connections_is_bounded(database: Database) -> None:
    """
    A connection is opened only if it is needed; sequential calls need one.
    """
    async with opened(database.url, [SCHEMA], connections=3) as module:
        for _ in range(5):
            await module.read(ONE)
        assert await database.countConnections() == [(1,)]
        await gatherResults([module.write(ADD, str(number)) for number in range(64)])
        assert await module.read(COUNT) == [(64,)]
        assert await database.countConnections() == [(3,)]


@asynchronous
async def test_a_call_does_not_wait_for_a_connection_for_ever(
    database: Database,
) -> None:
    """
    A queued call has a time limit, also if many calls are before it.
    """
    settings = {"connections": 1, "statementTimeout": 0.3}
    async with opened(database.url, [SCHEMA], **settings) as module:
        busy = [module.read(SLEEP, 30.0) for _ in range(15)]
        errors = [await errorOf(each) for each in busy]
        assert {type(error) for error in errors} == {DatabaseUnavailable}
        assert getattr(errors[0], "code", "") == "57014"
        assert "no connection to PostgreSQL was free for 1.3 s" in str(errors[-1])
        assert await module.read(COUNT) == [(0,)]


@pytest.mark.parametrize("seconds", [31_536_000.0, inf])
@asynchronous
async def test_a_long_time_limit_is_accepted(
    database: Database, seconds: float
) -> None:
    """
    A time limit above PostgreSQL's own maximum of 25 days is accepted, and so is none.
    """
    async with opened(database.url, statementTimeout=seconds) as module:
        assert await module.read(ONE) == [(1,)]


@asynchronous
async def test_a_call_cancelled_in_progress_keeps_its_place(database: Database) -> None:
    """
    A statement that was sent is carried out although its call was cancelled, and the
    result is dropped. A call that is cancelled while its statement is being prepared is
    not sent.
    """
    async with opened(database.url, [SCHEMA], connections=1) as module:
        for name in ("not sent", "sent"):
            given = module.write(ADD, name)
            given.cancel()
            assert isinstance(await errorOf(given), CancelledError)
            await module.read(ONE)
        names = Statement("SELECT name FROM things")
        assert await module.read(names) == [("sent",)]


@asynchronous
async def test_statements_are_prepared_as_long_as_that_helps(
    database: Database,
) -> None:
    """
    At most 100 statements are prepared, and a statement that a pooler has lost is not
    prepared again.
    """
    prepared = Statement("SELECT count(*) FROM pg_prepared_statements")
    async with opened(database.url, [SCHEMA], connections=1) as module:
        for number in range(120):
            assert await module.read(Statement(f"SELECT {number}")) == [(number,)]
        assert await module.read(prepared) == [(100,)]
        await module.read(Statement("DEALLOCATE ALL"))
        assert await module.read(Statement("SELECT 7")) == [(7,)]
        assert await module.read(prepared) == [(0,)]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("40001", DatabaseUnavailable),
        ("08P01", DatabaseError),
        ("ZZ999", DatabaseError),
        ("08007", OutcomeUnknown),
        ("40003", OutcomeUnknown),
    ],
)
@asynchronous
async def test_the_sqlstate_says_whether_to_try_again(
    database: Database, code: str, kind: type[Exception]
) -> None:
    """
    The SQLSTATE decides whether to retry. After some of them, the outcome is unknown.
    """
    await database.ask(
        "CREATE FUNCTION fail(code text) RETURNS int LANGUAGE plpgsql AS "
        "'BEGIN RAISE EXCEPTION USING ERRCODE = code, MESSAGE = ''why''; END'"
    )
    async with opened(database.url) as module:
        error = await errorOf(module.write(Statement("SELECT fail(?)"), code))
        assert type(error) is kind
        assert kind is OutcomeUnknown or f"({code}): why" in str(error)
        assert await module.read(ONE) == [(1,)]


@asynchronous
async def test_a_constraint_checked_at_the_end_is_an_error(database: Database) -> None:
    """
    A constraint that is checked at the end of the transaction is an error: a write has
    succeeded only when its transaction is committed.
    """
    await database.ask("CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    async with opened(database.url) as module:
        error = await errorOf(
            module.write(Statement("INSERT INTO late VALUES (1), (1)"))
        )
        assert isinstance(error, ConstraintViolated)


@pytest.mark.parametrize("sql", ["COPY (SELECT 1) TO STDOUT", "BEGIN"])
@asynchronous
async def test_an_incomplete_statement_loses_the_database(
    database: Database, sql: str
) -> None:
    """
    An incomplete statement, such as BEGIN or COPY, loses the database, so that the next
    call does not find an open transaction.
    """
    async with opened(database.url, connections=1) as module:
        error = await errorOf(module.write(Statement(sql)))
        assert type(error) is DatabaseError
        assert not module.initialized
        await module.initialize()
        assert await module.read(ONE) == [(1,)]


@asynchronous
async def test_too_many_parameters_are_an_error(database: Database) -> None:
    """
    Too many parameters are an error, since the protocol counts them in 16 bits.
    """
    async with opened(database.url) as module:
        assert type(await errorOf(module.read(ONE, *[1] * 70_000))) is DatabaseError
        assert await module.read(ONE) == [(1,)]


@asynchronous
async def test_an_answer_that_cannot_be_read_is_an_error(database: Database) -> None:
    """
    If the rows of a write cannot be converted, the write was carried out, and its call
    fails.
    """
    async with opened(database.url, [SCHEMA]) as module:
        sql = "INSERT INTO things VALUES ('a') RETURNING date '20000-01-01'"
        assert isinstance(await errorOf(module.write(Statement(sql))), OutcomeUnknown)
        error = await errorOf(module.read(Statement("SELECT date '20000-01-01'")))
        assert type(error) is DatabaseError
        assert await module.read(COUNT) == [(1,)]


# The schema.


@asynchronous
async def test_missing_rights_to_make_tables_are_explained(
    database: Database,
) -> None:
    """
    A user who may not create tables gets a message that says what to do. This is the
    default since PostgreSQL 15.
    """
    await database.ask("CREATE ROLE nomaker LOGIN PASSWORD 'p'")
    try:
        url = database.server.urlFor("nomaker", "p", database.name)
        error = await errorOf(module(url).initialize())
    finally:
        await database.ask("DROP ROLE nomaker")
    assert isinstance(error, DatabaseRefused)
    assert "GRANT CREATE ON SCHEMA" in str(error)


@asynchronous
async def test_rights_that_are_lost_may_come_back(database: Database) -> None:
    """
    While rights are missing, the log names them, and failed calls are not logged as
    programming errors. The rights may be restored.
    """
    await database.ask("CREATE ROLE owner LOGIN PASSWORD 'owner'")
    await database.ask("GRANT ALL ON SCHEMA public TO owner")
    url = database.server.urlFor("owner", "owner", database.name)
    try:
        async with opened(url, [SCHEMA]) as module:
            await database.ask("REVOKE ALL ON things FROM owner")
            error = await errorOf(module.write(ADD, "a"))
            assert isinstance(error, DatabaseUnavailable)
            assert module.failures == {"42501": 1}
            await database.ask("GRANT ALL ON things TO owner")
            assert await module.write(ADD, "a") == []
    finally:
        await database.ask("DROP OWNED BY owner; DROP ROLE owner")


@asynchronous
async def test_a_version_table_of_another_program_is_refused(
    database: Database,
) -> None:
    """
    A version table of another program is refused, and not changed.
    """
    await database.ask("CREATE TABLE tsrv_schema (x INT)")
    error = await errorOf(module(database.url).initialize())
    assert isinstance(error, DatabaseRefused)
    assert "cannot be brought up to date: PostgreSQL answered with Undefined" in str(
        error
    )


@pytest.mark.parametrize("how", ["cancel", "close", "silence", "cut"])
@asynchronous
async def test_updating_the_schema_may_be_interrupted(
    database: Database, how: str
) -> None:
    """
    An update of the schema that the caller or the network interrupts leaves nothing
    behind.
    """
    server = database.server
    async with (
        relaying(server.port) as relay,
        opened(database.url, [SCHEMA], statementTimeout=30.0) as holder,
    ):
        await holder.read(
            Statement("WITH a AS (SELECT pg_advisory_lock(7)) SELECT 1 FROM a")
        )
        await database.ask("ALTER TABLE tsrv_schema RENAME TO hidden")
        await database.ask(
            "CREATE VIEW tsrv_schema AS SELECT part, version FROM hidden "
            "WHERE pg_advisory_lock(7) IS NOT NULL"
        )
        url = server.urlFor(database=database.name, port=relay.port)
        late = module(url, statementTimeout=0.3)
        opening = late.initialize()
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not await database.ask(waiting) and not opening.called:
            pass
        if how == "cancel":
            opening.cancel()
        elif how == "close":
            await late.close()
        elif how == "cut":
            await relay.cut()
        else:
            relay.silence()
        assert isinstance(await errorOf(opening), CancelledError | DatabaseUnavailable)
        await late.close()
        relay.resume()


# Connecting.


@pytest.mark.parametrize(
    ("change", "options", "code", "advice"),
    [
        ({"password": "hidden"}, "", "28P01", "check the password"),
        ({"password": None}, "", "28P01", "the URL of the database has none"),
        ({"database": "nowhere"}, "", "3D000", "create the database"),
        ({}, "?sslmode=hidden", "", "check the options"),
        ({}, "?host=al..example", "", "the name of the host is invalid"),
    ],
)
@asynchronous
async def test_a_refusal_says_what_to_do(
    database: Database, change: dict[str, Any], options: str, code: str, advice: str
) -> None:
    """
    A refusal is not retried; the message says what to do, and repeats neither password
    nor options.
    """
    url = database.server.urlFor(**change) + options
    error = await errorOf(module(url).initialize())
    assert isinstance(error, DatabaseRefused)
    assert error.code == code
    assert advice in str(error)
    assert "hidden" not in str(error)


@pytest.mark.parametrize("left", [0, 1])
@asynchronous
async def test_too_many_open_files_are_unavailable(
    database: Database, left: int
) -> None:
    """
    Too many open files is a temporary error, since clients may have opened them.
    """
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    opening = module(database.url)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, old[1]))
    try:
        error = await errorOf(opening.initialize())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert isinstance(error, DatabaseUnavailable)


@asynccontextmanager
async def few(database: Database) -> AsyncIterator[str]:
    """
    @return: The URL of a user who may have one connection.
    """
    await database.ask("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 1")
    try:
        yield database.server.urlFor("few", "few", database.name)
    finally:
        await database.ask("DROP ROLE few")


@asynchronous
async def test_the_server_may_allow_fewer_connections(database: Database) -> None:
    """
    If the server allows fewer connections, the open ones are used, and the database is
    not lost.
    """
    async with few(database) as url, opened(url, connections=3) as module:
        with logged() as events:
            several = [module.read(SLEEP, 0.05) for _ in range(3)]
            assert await gatherResults(several) == [[(1,)]] * 3
        for text in textsOf(errorsIn(events)):
            assert text.startswith("Cannot open one more connection: connection to ")
        assert not module.whenLost().called


@asynchronous
async def test_a_connection_that_cannot_be_set_up_is_closed(
    database: Database,
) -> None:
    """
    If the first statement on a new connection is refused, the connection is closed.
    """
    function = "FUNCTION pg_catalog.set_config(text, text, boolean)"
    await database.ask(f"REVOKE EXECUTE ON {function} FROM PUBLIC")
    try:
        async with few(database) as url:
            error = await errorOf(module(url).initialize())
    finally:
        await database.ask(f"GRANT EXECUTE ON {function} TO PUBLIC")
    assert isinstance(error, DatabaseUnavailable)
    assert error.code == "42501"
    assert watchedSockets() == []


# Poolers.


@asynchronous
async def test_a_pooler_lends_no_limits_to_other_applications(
    database: Database, pooler: str
) -> None:
    """
    Behind PgBouncer, which lends one session on the server to several clients, a time
    limit holds only for its own transaction, and the session is left unchanged.
    """
    session = Statement(
        "SELECT current_setting('statement_timeout'), "
        "current_setting('idle_in_transaction_session_timeout'), "
        "(SELECT count(*) FROM pg_prepared_statements)"
    )
    async with opened(pooler, [SCHEMA], statementTimeout=0.4) as module:
        for name in "abcdefgh":
            await module.write(ADD, name)
        limit, *rest = (await module.read(session))[0]
        assert [limit, *rest] == ["400ms", "0", 0]
        with psycopg.connect(pooler, prepare_threshold=None) as other:
            assert other.execute(session.sql).fetchall() == [("0", "0", 0)]
        error = await errorOf(module.write(ADD_SLOWLY, 60.0))
        assert isinstance(error, DatabaseUnavailable)
        assert error.code == "57014"
        assert await module.read(COUNT) == [(8,)]


@asynchronous
async def test_a_pooler_changes_no_answer(database: Database, pooler: str) -> None:
    """
    Results and errors behind a pooler are the same as on a direct connection. A write
    has its own transaction.
    """
    make = "CREATE TABLE late (name TEXT UNIQUE DEFERRABLE INITIALLY DEFERRED)"
    late = Schema("late", {"postgresql": [[make]]})
    async with opened(pooler, [late]) as module:
        add = Statement("INSERT INTO late VALUES (?) RETURNING name")
        assert await module.write(add, "a") == [("a",)]
        assert isinstance(await errorOf(module.write(add, "a")), UniqueViolated)
        for sql in ("SELECT nonsense", "COPY late FROM STDIN", "COPY late TO STDOUT"):
            assert type(await errorOf(module.write(Statement(sql)))) is DatabaseError
            await module.initialize()
        read = module.read(SLEEP, 60.0)
        while not await database.ask(f"SELECT 1 FROM pg_stat_activity WHERE {ASLEEP}"):  # noqa: S608
            pass
        await database.endConnections(ASLEEP)
        assert isinstance(await errorOf(read), DatabaseUnavailable)
        await module.initialize()
        assert await module.read(Statement("SELECT * FROM late")) == [("a",)]


# Losses.


@asynchronous
async def test_a_killed_server_is_noticed_before_calls_fail(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    When the server is killed, reads may be repeated, the outcome of a write is unknown,
    and queued calls were not started. Calls that are made during the loss are refused.
    """
    await ownPostgresql.start()
    async with opened(ownPostgresql.url, [SCHEMA], connections=2) as module:
        events: list[str] = []
        read, write = await inProgress(module, ownPostgresql)
        queued = module.write(ADD, "queued")
        early = module.whenLost().addErrback(lambda _: module.read(ONE))
        calls: list[Deferred[Any]] = [early, read, write, queued]
        for deferred in calls:
            deferred.addBoth(lambda result: events.append(result.type.__name__))
        idle = module.whenIdle()
        await ownPostgresql.kill()
        await gatherResults(calls)
        await idle
        # The connection of the write may have been the first to end.
        events.remove("OutcomeUnknown")
        assert events[0] in ("NotInitialized", "DatabaseUnavailable")
        assert events[1:] == ["DatabaseUnavailable", "DatabaseUnavailable"]


@asynchronous
async def test_an_idle_connection_that_ends_is_a_loss(database: Database) -> None:
    """
    The end of an idle connection is a loss, each time, and leaves no file open.
    """

    async def once() -> int:
        async with opened(database.url) as module:
            lost = module.whenLost()
            await database.endConnections()
            error = await errorOf(lost)
            assert isinstance(error, DatabaseUnavailable)
            assert "connection" in str(error)
            assert not module.initialized
        return len(os.listdir("/proc/self/fd"))

    await once()
    assert len({await once() for _ in range(10)}) == 1


PID = Statement("SELECT pg_backend_pid()")


@asynchronous
async def test_a_connection_that_ends_beside_others_is_not_a_loss(
    database: Database,
) -> None:
    """
    If an idle connection ends beside others, a call that was about to use it runs on
    another one.
    """
    async with opened(database.url, [SCHEMA], connections=2) as module:
        lost = module.whenLost()
        await gatherResults([module.read(SLEEP, 0.05) for _ in range(2)])
        (next_,) = await module.read(PID)
        # Nothing reads the end of the connection before the call does.
        database.server.askNow("SELECT pg_terminate_backend(%s, 30000)", *next_)
        assert await module.write(ADD, "a") == []
        assert await database.countConnections() == [(1,)]
        await gatherResults([module.read(SLEEP, 0.05) for _ in range(2)])
        assert await database.countConnections() == [(2,)]
        assert not lost.called
        assert module.failures == {}


@asynchronous
async def test_a_limit_for_idle_connections_closes_all_but_one(
    database: Database,
) -> None:
    """
    If the server closes idle connections, one is kept: the database pings it in time.
    """
    role = await database.ask("SELECT current_user")
    await database.ask(f"ALTER ROLE {role[0][0]} SET idle_session_timeout = 3000")
    try:
        async with opened(database.url, connections=3) as module:
            lost = module.whenLost()
            await gatherResults([module.read(SLEEP, 0.05) for _ in range(3)])
            await database.server.ask("SELECT pg_sleep(4.5)")
            while (await database.countConnections())[0][0] > 1:
                assert not lost.called
            assert await database.countConnections() == [(1,)]
            assert not lost.called
    finally:
        await database.ask(f"ALTER ROLE {role[0][0]} RESET idle_session_timeout")


@asynchronous
async def test_a_read_in_progress_on_a_connection_that_ends_is_made_again(
    database: Database,
) -> None:
    """
    If a connection ends, the read in progress on it is repeated, and other calls
    continue. A write that the server has ended is not repeated, and was not carried
    out.
    """
    await database.ask("CREATE SEQUENCE n")
    # Only the first run is slow.
    sleep = "pg_sleep(CASE WHEN n = 1 THEN 60 ELSE 0 END)"
    again = f"SELECT n, {sleep} FROM (SELECT nextval('n') AS n OFFSET 0)"  # noqa: S608
    async with opened(database.url, [SCHEMA], connections=3) as module:
        lost = module.whenLost()
        other, write = await inProgress(module, database.server)
        read = module.read(Statement(again))
        while not await database.ask("SELECT 1 FROM n WHERE is_called"):
            pass
        await database.endConnections(f"{ADDING} OR query LIKE 'SELECT n, %%'")
        error = await errorOf(write)
        assert isinstance(error, DatabaseUnavailable)
        assert error.code == "57P01"
        ((number, _),) = await read
        assert number == 2
        assert not lost.called
        assert module.failures == {"57P01": 1}
        other.cancel()
        await errorOf(other)


@asynchronous
async def test_a_read_that_ends_connections_is_given_up(database: Database) -> None:
    """
    A read that ends its connections is given up after as many connections as exist, and
    other calls continue.
    """
    async with opened(database.url, [SCHEMA], connections=2) as module:
        lost = module.whenLost()
        await gatherResults([module.read(SLEEP, 0.05) for _ in range(2)])
        write = module.write(ADD_SLOWLY, 60.0)
        ending = Statement("SELECT pg_terminate_backend(pg_backend_pid())")
        error = await errorOf(module.read(ending))
        assert isinstance(error, DatabaseUnavailable)
        assert error.code == "57P01"
        assert not write.called
        assert not lost.called
        write.cancel()
        await errorOf(write)


@asynchronous
async def test_calls_on_other_connections_may_finish_after_a_loss(
    database: Database,
) -> None:
    """
    Calls on other connections may finish after a loss. Closing waits for the read, also
    if the database was initialised again; C{whenIdle()} waits for all calls.
    """
    async with opened(database.url, [SCHEMA], connections=2) as module:
        lost = module.whenLost()
        await gatherResults([module.read(SLEEP, 0.05) for _ in range(2)])
        read = module.read(SLEEP, 60.0)
        await module.read(Statement("SET default_transaction_read_only = on"))
        await errorOf(module.write(ADD, "a"))
        assert isinstance(await errorOf(lost), DatabaseUnavailable)
        await module.initialize()
        assert await module.read(ONE) == [(1,)]
        await pause(0)
        ended: list[bool] = []
        idle = module.whenIdle()
        later = module.read(Statement("SELECT pg_sleep(0.2)::text"))
        idle.addCallback(lambda _: ended.extend([read.called, later.called]))
        closing = module.close()
        assert not closing.called
        assert not read.called
        await database.server.ask(
            f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {ASLEEP}"  # noqa: S608
            " AND pid <> pg_backend_pid()"
        )
        assert isinstance(await errorOf(read), DatabaseUnavailable)
        await idle
        assert ended == [True, True]
        await closing


@pytest.mark.parametrize("when", ["before", "during", "after"])
@asynchronous
async def test_a_read_given_up_around_a_loss_is_not_made_again(
    database: Database, when: str
) -> None:
    """
    A read that was cancelled around a loss is not repeated; a wrapper repeats the other
    reads.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    await database.ask("CREATE SEQUENCE given; CREATE SEQUENCE kept")
    async with relaying(database.server.port) as relay:
        url = database.server.urlFor(database=database.name, port=relay.port)
        wrapper = QueuingWrapper(
            module(url, connections=2),
            reactor,
            replay=["read"],
            retryPolicy=lambda attempts: 0.01,
        )
        await wrapper.initialize()
        await givenUpAroundALoss(database, wrapper, relay, when)
        await wrapper.close()


async def givenUpAroundALoss(
    database: Database, wrapper: QueuingWrapper[Any], relay: Relay, when: str
) -> None:
    """
    Make two reads, cancel the first one, and lose the database.
    """
    await gatherResults([wrapper.proxy.read(SLEEP, 0.05) for _ in range(2)])
    # Only the first run is slow.
    sleep = "pg_sleep(CASE WHEN n = 1 THEN 8 ELSE 0 END)"
    sleepOnce = f"SELECT n, {sleep} FROM (SELECT nextval(?) AS n OFFSET 0)"  # noqa: S608
    reads = [
        wrapper.proxy.read(Statement(sleepOnce), name) for name in ("given", "kept")
    ]
    given = reads[0]
    ended: list[Any] = []
    given.addErrback(lambda failure: ended.append(failure.value))
    asleep = "state = 'active' AND query LIKE 'SELECT n, %%'"
    count = f"SELECT 1 FROM pg_stat_activity WHERE {asleep} AND pid <> pg_backend_pid()"  # noqa: S608
    while len(await database.ask(count)) < 2:
        pass
    if when == "before":
        given.cancel()
    elif when == "during":
        wrapper.addObserver(given.cancel)
    await relay.refuse()
    await relay.cut()
    while not wrapper.history.losses.count:
        await pause(0.001)
    given.cancel()
    await relay.accept()
    assert (await reads[1])[0][0] == 2
    assert [type(error) for error in ended] == [CancelledError]
    assert await database.ask("SELECT last_value FROM given") == [(1,)]


@asynchronous
async def test_a_silent_network_is_noticed_while_idle(database: Database) -> None:
    """
    A silent network shows no end of a connection, so idle connections are pinged. A
    busy connection is not.
    """
    async with relayed(database, connectTimeout=0.5, connections=1) as (module, relay):
        lost = module.whenLost()
        assert await module.read(SLEEP, 1.1) == [(1,)]
        assert not lost.called
        relay.silence()
        assert str(await errorOf(lost)) == "PostgreSQL did not answer in time"


@asynchronous
async def test_a_silent_network_is_noticed_by_its_calls(database: Database) -> None:
    """
    If the network falls silent, the outcome of a write is unknown; a write that waits
    to be prepared was not sent.
    """
    settings = {"statementTimeout": 0.3, "connections": 2}
    async with relayed(database, **settings) as (module, relay):
        await gatherResults([module.write(ADD, "prepared") for _ in range(2)])
        relay.silence()
        sent, read = module.write(ADD, "a"), module.write(ADD_SLOWLY, 0.0)
        assert isinstance(await errorOf(sent), OutcomeUnknown)
        assert isinstance(await errorOf(read), DatabaseUnavailable)


@asynchronous
async def test_closing_gives_up_opening_one_more_connection(
    database: Database,
) -> None:
    """
    Closing gives up opening a further connection; calls in progress finish.
    """
    async with relayed(database, connections=2) as (module, relay):
        relay.silence()
        both = [module.read(ONE) for _ in range(2)]
        await relay.whenAccepted(2)
        closing = module.close()
        assert isinstance(await errorOf(both[1]), DatabaseUnavailable)
        relay.resume()
        assert await both[0] == [(1,)]
        await closing


@asynchronous
async def test_a_server_that_accepts_no_writes_is_lost(database: Database) -> None:
    """
    A server that accepts no writes is lost: after a failover another server accepts
    them.
    """
    async with opened(database.url, [SCHEMA], connections=1) as module:
        lost = module.whenLost()
        await module.read(Statement("SET default_transaction_read_only = on"))
        error = await errorOf(module.write(ADD, "a"))
        assert isinstance(error, DatabaseUnavailable)
        assert error.code == "25006"
        assert str(await errorOf(lost)) == "the server accepts no writes"


def message(kind: bytes, body: bytes = b"") -> bytes:
    """
    @return: A message of PostgreSQL's protocol.
    """
    return kind + pack("!I", len(body) + 4) + body


def error(code: bytes) -> bytes:
    """
    @return: An error message with which a server ends a connection.
    """
    return message(b"E", b"SFATAL\0VFATAL\0C" + code + b"\0Mthe end\0\0")


READY = message(b"Z", b"I")
PREPARED = message(b"1") + READY
COMPLETE = message(b"1") + message(b"2") + message(b"n") + message(b"C", b"SELECT 0\0")

BOOLEAN = b"own\0" + pack("!IhIhih", 0, 0, 16, 1, -1, 0)
NUMBER = b"limit\0" + pack("!IhIhih", 0, 0, 23, 4, -1, 0)
ROW = message(b"T", pack("!H", 2) + BOOLEAN + NUMBER) + message(
    b"D", pack("!HIcIc", 2, 1, b"t", 1, b"0")
)

OPENING = [
    message(b"R", pack("!I", 0)) + READY,
    message(b"1") + message(b"2") + ROW + message(b"C", b"SELECT 1\0") + READY,
    message(b"C", b"SELECT 0\0") + READY,
]


class Scripted(Protocol):
    """
    A server that sends what a test says, and then ends the connection.
    """

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._received = b""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self._received += data
        # Data from libpq end with a Sync, or are a text.
        if self._received.endswith((message(b"S"), b"\0")):
            self._received = b""
            self.transport.write(self._answers.pop(0))
            if not self._answers:
                self.transport.loseConnection()


@asynccontextmanager
async def scripted(answers: list[bytes]) -> AsyncIterator[str]:
    """
    @return: The URL of a server that sends what a test says.
    """
    from twisted.internet import reactor

    factory = Factory.forProtocol(lambda: Scripted(list(answers)))
    factory.noisy = False
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    port = await endpoint.listen(factory)
    options = "sslmode=disable&target_session_attrs=any"
    yield f"postgresql://u@127.0.0.1:{port.getHost().port}/n?{options}"
    await port.stopListening()


@asynchronous
async def test_a_server_that_is_starting_up_is_unavailable() -> None:
    """
    A server that is starting up is as unavailable as one that is down, or does not
    respond.
    """
    async with scripted([error(b"57P03")]) as url:
        refused = await errorOf(module(url).initialize())
        assert isinstance(refused, DatabaseUnavailable)
        assert refused.code == "57P03"
    assert isinstance(await errorOf(module(url).initialize()), DatabaseUnavailable)
    async with blackHole() as hole:
        silent = module(f"postgresql://u@127.0.0.1:{hole.port}/n", connectTimeout=0.05)
        assert isinstance(await errorOf(silent.initialize()), DatabaseUnavailable)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([b""], DatabaseUnavailable),
        ([PREPARED, b""], OutcomeUnknown),
        ([PREPARED, error(b"57P01")], DatabaseUnavailable),
        # The statement was carried out, and perhaps committed.
        ([PREPARED, COMPLETE + error(b"57P01")], OutcomeUnknown),
        # A pooler has lost the server.
        ([PREPARED, error(b"08006")], OutcomeUnknown),
        ([PREPARED, error(b"08P01")], OutcomeUnknown),
    ],
)
@asynchronous
async def test_the_end_of_a_connection_says_what_is_known(
    answers: list[bytes], kind: type[Exception]
) -> None:
    """
    If a connection ends, a write that may have been carried out has an unknown outcome,
    and not a failure.
    """
    async with scripted([*OPENING, *answers]) as url, opened(url) as module:
        lost = module.whenLost()
        assert type(await errorOf(module.write(ONE))) is kind
        assert isinstance(await errorOf(lost), DatabaseUnavailable)
