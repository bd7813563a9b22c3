"""
What PostgreSQL is asked, and what becomes of it when the server is not there,
refuses, dies, or does not answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults

from tsrv.databases import (
    ConstraintViolated,
    Database,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)
from tsrv.databases.postgresql import PostgreSQL
from tsrv.demo.users import (
    SCHEMA,
    NewUser,
    UserPatch,
    Users,
)
from tsrv.errors import OutcomeUnknown

from .databases import PostgreSQL as Server
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .databases import postgresql as postgresql
from .networks import blackHole, relaying
from .support import resultOf
from .websupport import asynchronous

SLEEP = Statement("SELECT 1 FROM pg_sleep(?)")
ADD = Statement("INSERT INTO users (name, email) VALUES ('x', ?)")
COUNT = Statement("SELECT count(*) FROM users")


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[PostgreSQL]:
    """
    A database that is open, and leaves nothing when it is closed.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    before = set(reactor.getReaders())
    engine = PostgreSQL(reactor, url, [SCHEMA], Settings(**settings))
    try:
        await engine.open()
        yield engine
    finally:
        await engine.close()
    assert set(reactor.getReaders()) - before == set()
    assert reactor.getWriters() == []


async def errorOf(deferred: Deferred[Any]) -> BaseException:
    """
    @return: What a Deferred fails with.
    """
    ((success, result),) = await DeferredList([deferred], consumeErrors=True)
    assert not success, result
    error: BaseException = result.value
    return error


# What is asked.


@asynchronous
async def test_users_are_written_and_read(database: Any) -> None:
    """
    Numbers, texts and what is left out reach the columns that they are for.
    """
    async with opened(database.url) as engine:
        users = Users(engine)  # type: ignore[arg-type]
        made = await users.create(NewUser("a", "e"))
        assert await users.get(made.user.id) == made
        changed = await users.change(made.user.id, UserPatch(name="b"))
        assert changed is not None
        assert (changed.user.name, changed.user.email, changed.version) == ("b", "e", 2)
        assert await users.change(made.user.id, UserPatch(name="c"), 1) is None
        assert await users.page(0, 10) == [changed.user]
        assert await users.delete(made.user.id, 2)
        assert await users.get(made.user.id) is None


@asynchronous
async def test_each_type_comes_back_as_it_was_sent(database: Any) -> None:
    """
    What is written is what is read, at the limits too.
    """
    statement = Statement("SELECT ?, ?, ?, ?, CAST(? AS text)")
    sent = (2**63 - 1, -1.5e300, b"\0\xff", "\u20ac'\"", None)
    async with opened(database.url) as engine:
        assert await engine.read(statement, *sent) == [sent]


@pytest.mark.parametrize("parameter", ["a\0b", "\ud800", object(), 2**63])
@asynchronous
async def test_what_cannot_be_sent_is_an_error(database: Any, parameter: Any) -> None:
    """
    A text that would be cut short, or a number too large, is not written.
    """
    async with opened(database.url) as engine:
        error = await errorOf(engine.read(Statement("SELECT ?"), parameter))
        assert type(error) is DatabaseError


@asynchronous
async def test_errors_are_told_by_their_code(database: Any) -> None:
    """
    Who writes what is there already must know that from the SQLSTATE; what was
    to be written is not repeated.
    """
    async with opened(database.url) as engine:
        await engine.write(ADD, "secret")
        error = await errorOf(engine.write(ADD, "secret"))
        assert isinstance(error, UniqueViolated)
        assert error.code == "23505"
        assert "secret" not in str(error)
        error = await errorOf(engine.write(ADD, None))
        assert isinstance(error, ConstraintViolated)
        assert not isinstance(error, UniqueViolated)
        assert error.code == "23502"
        error = await errorOf(engine.read(Statement("SELECT nonsense")))
        assert isinstance(error, DatabaseError)
        assert error.code == "42703"
        assert await engine.read(COUNT) == [(1,)]


@asynchronous
async def test_many_at_once_share_a_few_connections(database: Any) -> None:
    """
    No more connections than allowed, and every call is answered.
    """
    async with opened(database.url, connections=3) as engine:
        await gatherResults([engine.write(ADD, str(n)) for n in range(64)])
        assert await engine.read(COUNT) == [(64,)]
        assert (await database.server.clients())[database.name] == 3


@asynchronous
async def test_one_too_many_is_refused_at_once(database: Any) -> None:
    """
    What waits is bounded.
    """
    async with opened(database.url, connections=1, limit=1) as engine:
        first, second = engine.read(COUNT), engine.read(COUNT)
        error = await errorOf(engine.read(COUNT))
        assert isinstance(error, DatabaseUnavailable)
        assert await first == await second == [(0,)]


@asynchronous
async def test_what_was_given_up_while_it_waited_is_not_run(database: Any) -> None:
    """
    Nothing runs after its caller gave up, and nothing is answered twice.
    """
    async with opened(database.url, connections=1) as engine:
        sent = engine.write(ADD, "sent")
        waits = engine.write(ADD, "waits")
        waits.cancel()
        assert isinstance(await errorOf(waits), CancelledError)
        await sent
        given = engine.write(ADD, "given up")
        given.cancel()
        assert isinstance(await errorOf(given), CancelledError)
        assert await engine.read(COUNT) == [(2,)]


@asynchronous
async def test_nobody_waits_for_a_connection_for_ever(database: Any) -> None:
    """
    Where all are kept busy, who comes last would wait for all the others.
    """
    settings = {"connections": 1, "statementTimeout": 0.2}
    async with opened(database.url, **settings) as engine:
        busy = [engine.read(SLEEP, 30.0) for _ in range(8)]
        errors = [await errorOf(busy.pop(0))]
        # Who comes later waits longer.
        busy.append(engine.read(SLEEP, 30.0))
        errors += [await errorOf(each) for each in busy]
        assert {type(error) for error in errors} == {DatabaseUnavailable}
        assert "no connection to PostgreSQL was free for 1.2 s" in str(errors[-2])
        assert await engine.read(COUNT) == [(0,)]


@asynchronous
async def test_the_server_ends_a_statement_that_takes_too_long(database: Any) -> None:
    """
    The server's own limit acts first: the connection stays, and the statement
    was not carried out.
    """
    async with opened(database.url, statementTimeout=0.05) as engine:
        error = await errorOf(engine.write(SLEEP, 10.0))
        assert isinstance(error, DatabaseUnavailable)
        assert error.code == "57014"
        assert await engine.read(COUNT) == [(0,)]


@asynchronous
async def test_a_table_that_was_changed_is_read_all_the_same(database: Any) -> None:
    """
    A statement that was prepared for the table as it was is sent anew.
    """
    statement = Statement("SELECT * FROM users WHERE id > ?")
    async with opened(database.url, connections=1) as engine:
        await engine.write(ADD, "a")
        assert len((await engine.read(statement, 0))[0]) == 4
        await database.ask("ALTER TABLE users ADD COLUMN more TEXT")
        assert len((await engine.read(statement, 0))[0]) == 5


# Tables.


@asynchronous
async def test_ten_that_start_at_once_make_the_tables_once(database: Any) -> None:
    """
    Several processes start on an empty database at the same time.
    """
    from twisted.internet import reactor

    engines = [
        PostgreSQL(reactor, database.url, [SCHEMA], Settings()) for _ in "0" * 10
    ]
    await gatherResults([engine.open() for engine in engines])
    await gatherResults([engine.close() for engine in engines])
    assert await database.ask("SELECT part, version FROM tsrv_schema") == [("users", 1)]


@asynchronous
async def test_tables_that_cannot_be_made_are_refused(database: Any) -> None:
    """
    No retry makes a step right that is wrong.
    """
    from twisted.internet import reactor

    schema = Schema("bad", sqlite=[["x"]], postgresql=[["nonsense"]])
    engine = PostgreSQL(reactor, database.url, [schema], Settings())
    assert isinstance(await errorOf(engine.open()), DatabaseRefused)
    assert await database.ask("SELECT to_regclass('tsrv_schema')") == [(None,)]
    await engine.close()


@asynchronous
async def test_a_user_who_may_make_no_tables_is_told_what_to_do(database: Any) -> None:
    """
    Since version 15 of PostgreSQL this is what most meet first.
    """
    from twisted.internet import reactor

    await database.ask("CREATE ROLE nomaker LOGIN PASSWORD 'p'")
    try:
        url = database.server.urlFor("nomaker", "p", database.name)
        error = await errorOf(PostgreSQL(reactor, url, [SCHEMA], Settings()).open())
    finally:
        await database.ask("DROP ROLE nomaker")
    assert isinstance(error, DatabaseRefused)
    assert "GRANT" in str(error)


# Servers that cannot be had.


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"password": "hidden"}, "28P01"),
        ({"password": None}, "28P01"),
        ({"user": "nobody", "password": "hidden"}, "28P01"),
        ({"database": "nowhere"}, "3D000"),
    ],
)
@asynchronous
async def test_a_refusal_is_told_with_what_to_do(
    postgresql: Server, change: dict[str, Any], code: str
) -> None:
    """
    No retry cures these, and none of them shows the password.
    """
    from twisted.internet import reactor

    engine = PostgreSQL(reactor, postgresql.urlFor(**change), [], Settings())
    error = await errorOf(engine.open())
    assert isinstance(error, DatabaseRefused)
    assert error.code == code
    assert "hidden" not in str(error)
    assert "URL" in str(error)


@pytest.mark.parametrize(
    "options",
    ["sslmode=hidden", "hidden=1", "port=1,2", "sslrootcert=/hidden", "service=hidden"],
)
@asynchronous
async def test_an_option_that_is_none_is_refused_and_not_repeated(options: str) -> None:
    """
    A password in the wrong place must not end up in a log.
    """
    from twisted.internet import reactor

    host = "" if options.startswith("service") else "127.0.0.1"
    url = f"postgresql://u@{host}/n?{options}"
    error = await errorOf(PostgreSQL(reactor, url, [], Settings()).open())
    assert isinstance(error, DatabaseRefused)
    assert "hidden" not in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hidden@127.0.0.1:1/n",
        "postgresql://u:hidden@localhost:1/n",
        "postgresql://u:hidden@127.0.0.1:1,127.0.0.1:2/n?load_balance_hosts=random",
        "postgresql://u:hidden@/n?host=/nowhere",
        "postgresql://u:hidden@nowhere.invalid/n",
    ],
)
@asynchronous
async def test_a_server_that_is_not_there_may_come(url: str) -> None:
    """
    A refused connection passes, wherever it was refused.
    """
    from twisted.internet import reactor

    error = await errorOf(PostgreSQL(reactor, url, [], Settings()).open())
    assert isinstance(error, DatabaseUnavailable)
    assert "hidden" not in str(error)


@asynchronous
async def test_a_server_that_never_answers_is_given_up() -> None:
    """
    The limit for connecting acts, and the socket is closed.
    """
    from twisted.internet import reactor

    async with blackHole() as hole:
        url = f"postgresql://u@127.0.0.1:{hole.port}/n"
        settings = Settings(connectTimeout=0.1)
        error = await errorOf(PostgreSQL(reactor, url, [], settings).open())
        assert isinstance(error, DatabaseUnavailable)


@asynchronous
async def test_a_server_that_is_starting_up_is_waited_for(
    ownPostgresql: Server,
) -> None:
    """
    It is told by its SQLSTATE, which libpq shows only on request.
    """
    from twisted.internet import reactor

    await ownPostgresql.startHeld()
    engine = PostgreSQL(reactor, ownPostgresql.url, [], Settings())
    error = await errorOf(engine.open())
    assert isinstance(error, DatabaseUnavailable)
    assert error.code == "57P03"
    assert isinstance(await errorOf(engine.open()), DatabaseUnavailable)


# Losses.


async def inFlight(
    engine: PostgreSQL | Database,
) -> tuple[Deferred[Any], Deferred[Any]]:
    """
    @return: A read and a write, each of which the server is busy with.
    """
    write = Statement("INSERT INTO users (name, email) SELECT '', pg_sleep(?)::text")
    # Prepared before, both are sent at once.
    await gatherResults([engine.read(SLEEP, 0.05), engine.write(write, 0.05)])
    return engine.read(SLEEP, 60.0), engine.write(write, 60.0)


@asynchronous
async def test_a_server_that_is_killed_is_noticed_before_calls_fail(
    ownPostgresql: Server,
) -> None:
    """
    Of a read that was in flight it is known that it changed nothing; of a write
    nobody knows; and what waited has not begun.
    """
    await ownPostgresql.start()
    async with opened(ownPostgresql.url, connections=2) as engine:
        events: list[object] = []
        read, write = await inFlight(engine)
        waits = engine.write(ADD, "waits")
        for deferred in (engine.whenLost(), read, write, waits):
            deferred.addBoth(lambda result: events.append(getattr(result, "value", 0)))
        await ownPostgresql.kill()
        await engine.close()
        assert events[0] == 0
        kinds = sorted(type(event).__name__ for event in events[1:])
        assert kinds == ["DatabaseUnavailable", "DatabaseUnavailable", "OutcomeUnknown"]
        assert isinstance(await errorOf(engine.read(COUNT)), DatabaseUnavailable)


@asynchronous
async def test_an_idle_connection_that_ends_is_noticed_at_once(database: Any) -> None:
    """
    A loss is a loss although nothing was asked.
    """
    async with opened(database.url) as engine:
        lost = engine.whenLost()
        await database.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await lost
        await engine.whenLost()


@asynchronous
async def test_what_the_server_ended_by_itself_was_not_carried_out(
    database: Any,
) -> None:
    """
    With a word of the server the outcome is known; the others may finish.
    """
    async with opened(database.url, connections=2) as engine:
        _, write = await inFlight(engine)
        await database.server.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE 'INSERT%%' AND pid <> pg_backend_pid()"
        )
        error = await errorOf(write)
        assert isinstance(error, DatabaseUnavailable)
        assert error.code == "57P01"
        await database.server.ask(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE 'SELECT 1 FROM pg_sleep%%' AND pid <> pg_backend_pid()"
        )
        assert isinstance(await errorOf(_), DatabaseUnavailable)


@asynchronous
async def test_closing_waits_for_what_was_before_a_loss(database: Any) -> None:
    """
    A statement that has still its time to finish is not left behind.
    """
    from twisted.internet import reactor

    module = Database(reactor, database.url, [SCHEMA], Settings(connections=2))
    await module.initialize()
    lost = module.whenLost()
    read, write = await inFlight(module)
    await database.server.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE query LIKE 'INSERT%%' AND pid <> pg_backend_pid()"
    )
    await errorOf(write)
    await lost
    await module.initialize()
    closing = module.close()
    assert not closing.called
    assert not read.called
    await database.server.ask(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
        "WHERE query LIKE 'SELECT 1 FROM pg_sleep%%' AND pid <> pg_backend_pid()"
    )
    assert isinstance(await errorOf(read), DatabaseUnavailable)
    await closing


@asynchronous
async def test_a_silent_network_is_noticed_while_nothing_is_asked(
    database: Any,
) -> None:
    """
    Without packets there is no end of a connection to notice.
    """
    async with relaying(database.server.port) as relay:
        url = database.server.urlFor(database=database.name, port=relay.port)
        async with opened(url, connectTimeout=0.2) as engine:
            relay.silence()
            await engine.whenLost()


@asynchronous
async def test_a_silent_network_is_noticed_by_who_waits_for_an_answer(
    database: Any,
) -> None:
    """
    The client's own limit ends what the server cannot end any more.
    """
    async with relaying(database.server.port) as relay:
        url = database.server.urlFor(database=database.name, port=relay.port)
        async with opened(url, statementTimeout=0.1) as engine:
            relay.silence()
            read, write = engine.read(COUNT), engine.write(ADD, "a")
            unavailable = await errorOf(read)
            assert isinstance(unavailable, DatabaseUnavailable)
            assert isinstance(await errorOf(write), DatabaseUnavailable)


@asynchronous
async def test_a_write_without_an_answer_has_an_unknown_outcome(database: Any) -> None:
    """
    It was sent; whether it arrived nobody knows.
    """
    async with relaying(database.server.port) as relay:
        url = database.server.urlFor(database=database.name, port=relay.port)
        async with opened(url, statementTimeout=0.1, connections=1) as engine:
            await engine.write(ADD, "prepared")
            relay.silence()
            assert isinstance(await errorOf(engine.write(ADD, "a")), OutcomeUnknown)


@asynchronous
async def test_a_server_that_cannot_be_written_to_is_lost(database: Any) -> None:
    """
    After a failover the other server is to be looked for.
    """
    async with opened(database.url, connections=1) as engine:
        await engine.read(Statement("SET default_transaction_read_only = on"))
        error = await errorOf(engine.write(ADD, "a"))
        assert isinstance(error, DatabaseUnavailable)
        assert error.code == "25006"
        await engine.whenLost()


@asynchronous
async def test_losses_leave_no_file_behind(database: Any) -> None:
    """
    A server that restarts again and again must not use up what the process has.
    """
    from os import listdir

    async def once() -> int:
        async with opened(database.url) as engine:
            await database.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await engine.whenLost()
        return len(listdir("/proc/self/fd"))

    await once()
    assert len({await once() for _ in range(20)}) == 1


# Closing.


@asynchronous
async def test_closing_lets_what_was_sent_finish(database: Any) -> None:
    """
    What waits ends at once, what was sent by its answer; twice is once.
    """
    async with opened(database.url, connections=1) as engine:
        sent = engine.read(SLEEP, 0.05)
        waits = resultOf(engine.write(ADD, "a"))
        closed = engine.close()
        assert isinstance(waits.error, DatabaseUnavailable)
        assert not closed.called
        assert await sent == [(1,)]
        await closed
        await engine.close()


@asynchronous
async def test_closing_ends_an_attempt_to_connect() -> None:
    """
    It may be closed at any time; whoever opens it is told.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    async with blackHole() as hole:
        url = f"postgresql://u@127.0.0.1:{hole.port}/n"
        for isClosed in (True, False):
            engine = PostgreSQL(reactor, url, [], Settings())
            opening = engine.open()
            await hole.whenAccepted(1)
            if isClosed:
                await engine.close()
            else:
                opening.cancel()
            await errorOf(opening)
            await engine.close()
        assert reactor.getWriters() == []
