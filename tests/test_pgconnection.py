"""
What becomes of a connection to PostgreSQL at moments that no real server can be
brought to at will.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from errno import EMFILE
from socket import socketpair
from typing import Any

import psycopg
import pytest
from psycopg import pq
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from tsrv.databases import (
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Settings,
    Statement,
)
from tsrv.databases.pgcall import (
    Call,
    errorOf,
)
from tsrv.databases.pgconnect import (
    _placeOf,
    _Receiver,
    _refusal,
    _tellCodes,
    connect,
)
from tsrv.databases.pgconnection import Connection
from tsrv.databases.postgresql import PostgreSQL
from tsrv.errors import OutcomeUnknown

from .databases import PostgreSQL as Server
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .databases import postgresql as postgresql
from .networks import Relay, relaying
from .support import Result, resultOf
from .test_postgresql import errorOf as failureOf
from .test_postgresql import opened
from .websupport import asynchronous, errorsIn, logged, textsOf

SLEEP = Statement("SELECT 1 FROM pg_sleep(?)")
ONE = Statement("SELECT 1")


def theReactor() -> Any:
    """
    @return: The real one.
    """
    from twisted.internet import reactor

    return reactor


class Broken:
    """
    What stands for libpq: it does what the test says.

    @ivar sent: What it was asked to send, in order.
    @ivar fails: The name of what fails now.
    @ivar left: How much could not be sent yet.
    """

    transaction_status = pq.TransactionStatus.IDLE

    error_message = b"it broke"

    def __init__(self) -> None:
        self._ends = socketpair()
        self.socket = self._ends[0].fileno()
        self.sent: list[str] = []
        self.fails = ""
        self.left = 0
        self.results: list[Any] = []
        self.finished = 0

    def _do(self, name: str) -> None:
        if name == self.fails:
            raise psycopg.OperationalError("no")

    def consume_input(self) -> None:
        self._do("consume")

    def is_busy(self) -> bool:
        return False

    def get_result(self) -> Any:
        return self.results.pop(0) if self.results else None

    def notifies(self) -> None:
        return None

    def flush(self) -> int:
        self._do("flush")
        return self.left

    def send_query_params(self, *query: object) -> None:
        self._do("send")
        self.sent.append("whole")

    def send_query_prepared(self, *query: object) -> None:
        self._do("send")
        self.sent.append("prepared")

    def send_prepare(self, *query: object) -> None:
        self._do("prepare")
        self.sent.append("prepare")

    def finish(self) -> None:
        self.finished += 1

    def close(self) -> None:
        """
        End for good.
        """
        for end in self._ends:
            end.close()


class Said:
    """
    A part of an answer.

    @ivar status: What it is.
    """

    def __init__(self, status: pq.ExecStatus, code: bytes | None = None) -> None:
        """
        @param code: The SQLSTATE, if it is an error.
        """
        self.status = status
        self._code = code

    def error_field(self, field: pq.DiagnosticField) -> bytes | None:
        """
        @return: Something that is known of the error.
        """
        return self._code if field == pq.DiagnosticField.SQLSTATE else None


DONE = Said(pq.ExecStatus.COMMAND_OK)


class Owner:
    """
    Who has the connection, and is told what happens.
    """

    def __init__(self) -> None:
        self.told: list[str] = []

    def freed(self, connection: Connection) -> None:
        self.told.append("freed")

    def broke(self, connection: Connection, reason: str) -> None:
        self.told.append(f"broke: {reason}")

    def dropped(self, connection: Connection) -> None:
        self.told.append("dropped")

    def settled(self) -> None:
        self.told.append("settled")


class Bench:
    """
    A connection to what the test controls.
    """

    def __init__(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.libpq = Broken()
        self.owner = Owner()
        self.connection = Connection(self.reactor, self.libpq, self.owner)  # type: ignore[arg-type]

    def ask(self, kind: Any = "write", *, prepared: bool = True) -> Result:
        """
        Carry out a statement.
        """
        call = Call(kind, "SELECT 1", (), prepared)
        answer = call.answer
        assert answer is not None
        self.connection.carryOut(call, 1.0)
        return resultOf(answer)

    def isWatched(self) -> bool:
        """
        @return: Whether the reactor looks after it.
        """
        return self.connection in self.reactor.getReaders()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """
    A connection; it is closed afterwards.
    """
    bench = Bench()
    yield bench
    bench.connection.close()
    bench.connection.close()
    assert bench.libpq.finished == 1
    assert not bench.isWatched()
    assert bench.connection not in bench.reactor.getWriters()
    bench.libpq.close()


@pytest.mark.parametrize(
    ("fails", "prepared", "kind"),
    [
        # Nothing has been sent, and so nothing was carried out.
        ("consume", True, DatabaseUnavailable),
        ("prepare", True, DatabaseUnavailable),
        ("flush", True, DatabaseUnavailable),
        # A part of it may have been.
        ("send", False, OutcomeUnknown),
        ("flush", False, OutcomeUnknown),
    ],
)
def test_what_breaks_while_it_is_sent_says_whether_it_was(
    fails: str, prepared: bool, kind: type[Exception], bench: Bench
) -> None:
    """
    A write that may have reached the server must not be told to be safe to
    repeat; one that cannot have, should.
    """
    bench.libpq.fails = fails
    asked = bench.ask(prepared=prepared)
    assert type(asked.error) is kind
    assert bench.owner.told == ["broke: it broke", "settled"]


def test_what_does_not_fit_into_the_socket_is_sent_later(bench: Bench) -> None:
    """
    The reactor says when there is room again.
    """
    bench.libpq.left = 1
    asked = bench.ask(prepared=False)
    assert bench.connection in bench.reactor.getWriters()
    bench.connection.doWrite()
    assert bench.connection in bench.reactor.getWriters()
    bench.libpq.left = 0
    bench.connection.doWrite()
    assert bench.connection not in bench.reactor.getWriters()
    bench.libpq.fails = "flush"
    bench.connection.doWrite()
    assert isinstance(asked.error, OutcomeUnknown)


@pytest.mark.parametrize("how", ["consume", "pipeline", "lost"])
def test_an_answer_that_breaks_off_is_the_end(how: str, bench: Bench) -> None:
    """
    Whatever comes after it is not an answer to anything.
    """
    asked = bench.ask("read", prepared=False)
    if how == "consume":
        bench.libpq.fails = "consume"
        bench.connection.doRead()
    elif how == "pipeline":
        bench.libpq.results.append(Said(pq.ExecStatus.PIPELINE_SYNC))
        bench.connection.doRead()
    else:
        bench.connection.connectionLost(Failure(ConnectionResetError()))
        # It may be told so twice.
        bench.connection.connectionLost(Failure(ConnectionResetError()))
    assert type(asked.error) is DatabaseUnavailable
    assert bench.owner.told == ["broke: it broke", "settled"]


@pytest.mark.parametrize(
    ("code", "completed", "kind"),
    [
        # The server has rolled it back, and then ended the connection.
        (b"57P01", False, DatabaseUnavailable),
        # It had committed before.
        (b"57P01", True, OutcomeUnknown),
        # A pooler has lost the server.
        (b"08P01", False, OutcomeUnknown),
        (b"08006", False, OutcomeUnknown),
        (b"40003", False, OutcomeUnknown),
    ],
)
def test_what_ends_with_the_connection_is_unknown_if_it_is(
    code: bytes, completed: bool, kind: type[Exception], bench: Bench
) -> None:
    """
    Who is told that a write was not carried out will do it again.
    """
    asked = bench.ask(prepared=False)
    bench.libpq.results += [DONE] if completed else []
    bench.libpq.results.append(Said(pq.ExecStatus.FATAL_ERROR, code))
    bench.libpq.is_busy = lambda: not bench.libpq.results  # type: ignore[method-assign]
    bench.connection.doRead()
    assert asked.pending
    bench.libpq.fails = "consume"
    bench.connection.doRead()
    assert type(asked.error) is kind
    assert bench.owner.told == ["broke: it broke", "settled"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (b"40001", DatabaseUnavailable),
        (b"08P01", DatabaseError),
        (b"08007", OutcomeUnknown),
        (b"40003", OutcomeUnknown),
    ],
)
def test_what_the_server_does_not_know_nobody_knows(
    code: bytes, kind: type[Exception], bench: Bench
) -> None:
    """
    Even a server that goes on may have asked another one.
    """
    asked = bench.ask(prepared=False)
    bench.libpq.results.append(Said(pq.ExecStatus.FATAL_ERROR, code))
    bench.connection.doRead()
    assert type(asked.error) is kind
    assert bench.owner.told == ["freed", "settled"]


@pytest.mark.parametrize("how", ["copy", "transaction"])
def test_a_statement_that_leaves_something_open_is_rolled_back(
    how: str, bench: Bench
) -> None:
    """
    Else whatever follows on that connection is not what it seems to be; the
    other connections have nothing to do with it.
    """
    asked = bench.ask(prepared=False)
    if how == "copy":
        bench.libpq.results.append(Said(pq.ExecStatus.COPY_OUT))
    else:
        bench.libpq.results.append(DONE)
        bench.libpq.transaction_status = pq.TransactionStatus.INTRANS
    bench.connection.doRead()
    assert type(asked.error) is DatabaseError
    assert bench.owner.told == ["dropped", "settled"]
    assert bench.libpq.finished == 1


def test_what_is_told_to_everybody_is_thrown_away(bench: Bench) -> None:
    """
    A connection on which nothing is asked is not lost because somebody speaks.
    """
    notices = [object(), None]
    bench.libpq.notifies = lambda: notices.pop(0)  # type: ignore[method-assign,assignment]
    bench.connection.doRead()
    assert notices == []
    assert bench.owner.told == []


def test_only_so_many_statements_are_prepared(bench: Bench) -> None:
    """
    The server keeps each of them.
    """
    bench.connection._prepared.update(b"%d" % number for number in range(100))
    asked = bench.ask()
    assert bench.libpq.sent == ["whole"]
    bench.connection.doRead()
    assert asked.value == []


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_prepared_is_sent_then(fails: bool, bench: Bench) -> None:
    """
    If the connection breaks between the two, it is not known what the server
    has got.
    """
    asked = bench.ask()
    bench.libpq.fails = "send" if fails else ""
    bench.connection.doRead()
    if fails:
        assert isinstance(asked.error, OutcomeUnknown)
    else:
        assert bench.libpq.sent == ["prepare", "prepared"]
        bench.connection.doRead()
        assert asked.value == []


def test_what_was_given_up_while_it_was_prepared_is_not_sent(bench: Bench) -> None:
    """
    Nothing runs after its caller gave up.
    """
    call = Call("write", "SELECT 1", (), True)
    answer = call.answer
    assert answer is not None
    answer.addErrback(lambda _: None)
    bench.connection.carryOut(call, 1.0)
    answer.cancel()
    bench.connection.doRead()
    assert bench.libpq.sent == ["prepare"]
    assert bench.owner.told == ["freed", "settled"]


def test_an_idle_connection_may_be_given_up(bench: Bench) -> None:
    """
    Nobody waits for anything then.
    """
    bench.connection.giveUp("too late")
    assert bench.owner.told == ["broke: too late", "settled"]


# What errors mean.


def test_a_code_that_nobody_knows_is_an_error() -> None:
    """
    Functions of the database may raise what they like.
    """
    error = errorOf("ZZ999", "no")
    assert type(error) is DatabaseError
    assert str(error) == "PostgreSQL answered with error (ZZ999): no"


class Refusing:
    """
    A connection that could not be made.
    """

    needs_password = False
    pgconn_ptr = 0

    def __init__(self, message: bytes) -> None:
        self.error_message = message


def test_a_refusal_with_another_code_is_no_reason_to_give_up() -> None:
    """
    Only of some it is known that no retry helps.
    """
    pgconn: Any = Refusing(
        b'connection to server at "127.0.0.1", port 1 failed: FATAL:  XX000: oh\n'
    )
    error = _refusal("u@h:1/n", pgconn, "127.0.0.1")
    assert type(error) is DatabaseUnavailable


def test_options_that_the_server_does_not_know_are_a_mistake() -> None:
    """
    To try them again and again helps nobody.
    """
    pgconn: Any = Refusing(
        b'connection to server at "127.0.0.1", port 1 failed: FATAL:  42704: oh\n'
    )
    error = _refusal("u@h:1/n", pgconn, "127.0.0.1")
    assert type(error) is DatabaseRefused
    assert "check the options" in str(error)


def test_no_reason_is_no_reason_to_give_up() -> None:
    """
    So it is where there are too many open files.
    """
    pgconn: Any = Refusing(b"")
    error = _refusal("u@h:1/n", pgconn, "127.0.0.1")
    assert type(error) is DatabaseUnavailable


def test_without_codes_every_refusal_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Another build of libpq may not let them be asked for; then it is tried again.
    """
    pgconn: Any = Refusing(b"")
    assert sys.modules[Refusing.__module__].__file__ == __file__
    _tellCodes(pgconn)


def test_a_name_is_resolved_to_each_address_once() -> None:
    """
    A resolver may say it twice, and may say it too late.
    """
    receiver = _Receiver()
    for _ in range(2):
        receiver.addressResolved(IPv4Address("TCP", "192.0.2.1", 0))
    found = resultOf(receiver.done)
    for _ in range(2):
        receiver.resolutionComplete()
    assert found.value == ["192.0.2.1"]


class Resolver:
    """
    A resolver that does not answer.
    """

    def resolveHostName(self, receiver: Any, name: str, *more: object, **k: Any) -> Any:
        return receiver


def test_a_resolver_that_does_not_answer_is_given_up(clock: Clock) -> None:
    """
    It counts as a part of connecting.
    """
    reactor: Any = clock
    reactor.nameResolver = Resolver()
    url = "postgresql://u:hush@db.test/n"
    connecting = resultOf(Deferred.fromCoroutine(connect(reactor, url, 2.0)))
    clock.advance(2)
    assert isinstance(connecting.error, DatabaseUnavailable)
    assert "could not be connected to in 2 s" in str(connecting.error)
    assert "hush" not in str(connecting.error)


# The real thing.


@asynchronous
async def test_the_second_address_is_tried_too(
    database: Any, ownPostgresql: Server
) -> None:
    """
    One of several servers may be down.
    """
    url = database.url.replace("127.0.0.1", f"127.0.0.1:{ownPostgresql.port},127.0.0.1")
    async with opened(url) as engine:
        assert await engine.read(ONE) == [(1,)]


@asynccontextmanager
async def few(database: Any) -> AsyncIterator[str]:
    """
    @return: The URL for a role that may have one connection alone.
    """
    await database.ask("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 1")
    await database.ask("GRANT ALL ON SCHEMA public TO few")
    try:
        yield database.server.urlFor("few", "few", database.name)
    finally:
        await database.ask("DROP OWNED BY few")
        await database.ask("DROP ROLE few")


@asynchronous
async def test_with_too_few_connections_those_there_are_have_to_do(
    database: Any,
) -> None:
    """
    A server that allows no more of them is not lost.
    """
    async with few(database) as url, opened(url, connections=3) as engine:
        several = [engine.read(SLEEP, 0.05) for _ in range(3)]
        for each in several:
            assert await each == [(1,)]
        assert not engine.whenLost().called


@asynchronous
async def test_a_connection_that_cannot_be_used_is_closed(database: Any) -> None:
    """
    It was made, but its first statement is refused.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    function = "FUNCTION pg_catalog.set_config(text, text, boolean)"
    before = set(reactor.getReaders())
    await database.ask(f"REVOKE EXECUTE ON {function} FROM PUBLIC")
    async with few(database) as url:
        engine = PostgreSQL(reactor, url, [], Settings())
        error = await failureOf(engine.open())
        assert isinstance(error, DatabaseError)
        assert error.code == "42501"
        await engine.close()
    assert set(reactor.getReaders()) - before == set()


@asynchronous
async def test_a_long_time_limit_is_one(database: Any) -> None:
    """
    Who wants none says a year; PostgreSQL knows no more than a month.
    """
    async with opened(database.url, statementTimeout=31_536_000.0) as engine:
        assert await engine.read(ONE) == [(1,)]


@asynchronous
async def test_who_is_busy_is_not_asked_whether_it_is_there(database: Any) -> None:
    """
    What it is busy with has a limit of its own.
    """
    async with opened(database.url, connections=1, connectTimeout=0.2) as engine:
        lost = engine.whenLost()
        assert await engine.read(SLEEP, 0.7) == [(1,)]
        assert not lost.called


@asynccontextmanager
async def relayed(database: Any) -> AsyncIterator[tuple[PostgreSQL, Relay]]:
    """
    A database behind a network that may fail.
    """
    from twisted.internet import reactor

    server = database.server
    async with relaying(server.port) as relay:
        url = server.urlFor(database=database.name, port=relay.port)
        settings = Settings(connections=2, statementTimeout=0.4)
        engine = PostgreSQL(reactor, url, [], settings)
        yield engine, relay
        await engine.close()


@asynchronous
async def test_those_that_are_there_do_where_one_more_is_refused(
    database: Any,
) -> None:
    """
    Nothing is wrong with them, whatever is wrong with one more: a password that
    was changed, or too many open files.
    """
    async with relayed(database) as (engine, relay):
        await engine.open()
        await relay.refuse()
        with logged() as events:
            both = [engine.read(SLEEP, 0.05) for _ in range(2)]
            assert await both[0] == [(1,)]
            assert await both[1] == [(1,)]
            assert await engine.read(ONE) == [(1,)]
        (text,) = textsOf(errorsIn(events))
        assert text.startswith("Cannot use one more connection: connection to ")
        assert not engine.whenLost().called


@asynchronous
async def test_a_statement_may_cost_the_only_connection(database: Any) -> None:
    """
    Those that wait have another one made for them.
    """
    async with opened(database.url, connections=1) as engine:
        wrong = engine.read(Statement("COPY (SELECT 1) TO STDOUT"))
        behind = engine.read(ONE)
        error = await failureOf(wrong)
        assert type(error) is DatabaseError
        assert await behind == [(1,)]
        error = await failureOf(engine.write(Statement("BEGIN")))
        assert type(error) is DatabaseError
        assert await engine.read(ONE) == [(1,)]
        assert not engine.whenLost().called


@asynchronous
async def test_the_only_connection_that_cannot_be_replaced_is_a_loss(
    database: Any,
) -> None:
    """
    Then there is none, and somebody has to try again and again.
    """
    server = database.server
    async with relaying(server.port) as relay:
        url = server.urlFor(database=database.name, port=relay.port)
        engine = PostgreSQL(theReactor(), url, [], Settings(connections=1))
        await engine.open()
        wrong = engine.read(Statement("COPY (SELECT 1) TO STDOUT"))
        behind = engine.read(ONE)
        await relay.refuse()
        assert type(await failureOf(wrong)) is DatabaseError
        assert isinstance(await failureOf(behind), DatabaseUnavailable)
        await engine.whenLost()
        await engine.close()


def test_a_place_is_one_that_can_be_copied() -> None:
    """
    An address with colons has brackets around it in a URL too.
    """
    parameters = {"user": "u", "host": "", "hostaddr": "::1", "port": "5432"}
    assert _placeOf(parameters) == "u@[::1]:5432/u"


@asynchronous
async def test_parameters_that_do_not_fit_are_an_error(database: Any) -> None:
    """
    And no reason to be connected anew.
    """
    async with opened(database.url) as engine:
        for parameters in ((), (1,) * 70_000):
            error = await failureOf(engine.read(SLEEP, *parameters))
            assert type(error) is DatabaseError
        assert not engine.whenLost().called


@asynchronous
async def test_no_more_open_files_is_no_reason_to_give_up(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Clients may have taken them all, and will give them back.
    """
    full = OSError(EMFILE, "Too many open files")

    def refuse(fd: int) -> int:
        raise full

    monkeypatch.setattr(os, "dup", refuse)
    engine = PostgreSQL(theReactor(), database.url, [], Settings())
    error = await failureOf(engine.open())
    assert type(error) is DatabaseUnavailable
    assert "Too many open files" in str(error)


@asynchronous
async def test_closing_gives_one_more_connection_up(database: Any) -> None:
    """
    Wherever it has come to, nothing of it is left.
    """
    async with relayed(database) as (engine, relay):
        await engine.open()
        relay.silence()
        both = [engine.read(ONE) for _ in range(2)]
        await relay.whenAccepted(2)
        closing = engine.close()
        relay.resume()
        await closing
        assert isinstance(await failureOf(both[1]), DatabaseUnavailable)
        await both[0]


@pytest.mark.parametrize("how", ["cancel", "silence", "cut"])
@asynchronous
async def test_bringing_the_tables_up_to_date_may_be_given_up(
    database: Any, how: str
) -> None:
    """
    By who waits, and when the server does not answer; nothing is left of it.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    server = database.server
    before = set(reactor.getReaders())
    async with relaying(server.port) as relay:
        async with opened(database.url):
            # The tables are there.
            pass
        holder = PostgreSQL(reactor, database.url, [], Settings(statementTimeout=30))
        await holder.open()
        lock = "WITH a AS (SELECT pg_advisory_lock(7)) SELECT 1 FROM a"
        await holder.read(Statement(lock))
        url = server.urlFor(database=database.name, port=relay.port)
        await database.ask("ALTER TABLE tsrv_schema RENAME TO hidden")
        await database.ask(
            "CREATE VIEW tsrv_schema AS SELECT part, version FROM hidden "
            "WHERE pg_advisory_lock(7) IS NOT NULL"
        )
        settings = Settings(statementTimeout=0.4)
        engine = PostgreSQL(reactor, url, [], settings)
        opening = engine.open()
        waiting = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        )
        while (await database.ask(waiting))[0][0] == 0 and not opening.called:
            pass
        if how == "cancel":
            opening.cancel()
        elif how == "cut":
            await relay.cut()
        else:
            relay.silence()
        await failureOf(opening)
        await engine.close()
        await holder.close()
        relay.resume()
    assert set(reactor.getReaders()) - before == set()


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("(x INT)", "cannot be brought up to date: PostgreSQL answered with Undefined"),
        ("(part TEXT, version INT)", "made by a newer tsrv"),
    ],
)
@asynchronous
async def test_tables_of_somebody_else_are_left_alone(
    database: Any, table: str, why: str
) -> None:
    """
    What is not ours, or not ours any more, is refused as it is.
    """
    from twisted.internet import reactor

    await database.ask(f"CREATE TABLE tsrv_schema {table}")
    if "part" in table:
        await database.ask("INSERT INTO tsrv_schema VALUES ('users', 99)")
    from tsrv.demo.users import SCHEMA

    engine = PostgreSQL(reactor, database.url, [SCHEMA], Settings())
    error = await failureOf(engine.open())
    assert isinstance(error, DatabaseRefused)
    assert why in str(error)
    await engine.close()
