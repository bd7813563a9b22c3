"""
psycopg's documented operations on Twisted's reactor, with a real server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any, cast

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.pq import ConnStatus, PGconn, TransactionStatus
from psycopg.rows import TupleRow, dict_row
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ConnectionLost
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tsrv.databases.postgresql import Connection, connect

from .databases import Database, PostgreSQL, errorOf, watchedSockets
from .databases import database as database
from .databases import postgresql as postgresql
from .networks import blackHole, relaying, unanswered
from .websupport import asynchronous, reservedPort

SLEEP = "SELECT pg_sleep(60)"


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Connection[TupleRow]]:
    """
    A connection that leaves nothing behind after a close.
    """
    from twisted.internet import reactor

    connection = await connect(reactor, url, **options)
    try:
        yield connection
    finally:
        await connection.close()
    assert watchedSockets() == []


def started(work: Awaitable[Any]) -> Deferred[Any]:
    """
    Start a coroutine.
    """
    return Deferred.fromCoroutine(work)  # type: ignore[arg-type]


async def untilBusy(database: Database) -> None:
    """
    Wait until the server executes the long query.
    """
    busy = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = %s"
    while not await database.ask(busy, SLEEP):
        pass


@asynchronous
async def test_a_cursor_reads_what_a_transaction_wrote(database: Database) -> None:
    """
    A cursor reads the rows of a committed transaction; a failed transaction is rolled
    back.
    """
    async with connected(database.url) as connection:
        await connection.execute("CREATE TABLE t (n int, s text)")
        await connection.commit()

        async def fail() -> None:
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (1, 'lost')")
                await connection.execute("SELECT 1 / 0")

        with pytest.raises(errors.DivisionByZero):
            await fail()
        async with connection.transaction(), connection.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO t VALUES (%s, %s)", [(2, "a"), (3, "b")]
            )
        async with connection.cursor(row_factory=dict_row) as rows:
            await rows.execute("SELECT * FROM t ORDER BY n")
            assert await rows.fetchall() == [{"n": 2, "s": "a"}, {"n": 3, "s": "b"}]
    assert await database.ask("SELECT count(*) FROM t") == [(2,)]


@asynchronous
async def test_operations_of_one_connection_take_turns(database: Database) -> None:
    """
    Coroutines may share a connection: each gets its own result.
    """
    async with connected(database.url, application_name="turns") as connection:
        work = [started(connection.execute("SELECT %s", (n,))) for n in range(20)]
        cursors = await gatherResults(work)
        assert [await each.fetchone() for each in cursors] == [(n,) for n in range(20)]


@asynchronous
async def test_a_pipeline_sends_many_queries_at_once(database: Database) -> None:
    """
    The results of a pipeline arrive in order, even if they exceed the buffer of the
    socket.
    """
    async with connected(database.url) as connection:
        text = "x" * 100_000
        async with connection.pipeline():
            cursors = [
                await connection.execute("SELECT %s, %s", (n, text)) for n in range(50)
            ]
        assert [await each.fetchone() for each in cursors] == [
            (n, text) for n in range(50)
        ]


@asynchronous
async def test_a_server_cursor_and_a_stream_read_in_parts(database: Database) -> None:
    """
    Rows that were not fetched yet stay in the socket.
    """
    series = "SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n"
    async with connected(database.url) as connection:
        async with connection.cursor("parts") as cursor:
            await cursor.execute("SELECT * FROM generate_series(1, 10)")
            assert len(await cursor.fetchmany(4)) == 4
            assert len(await cursor.fetchall()) == 6
        async with connection.cursor() as streaming:
            seen = 0
            async for number, _ in streaming.stream(series):
                seen += 1
                assert number == seen
                if seen % 5000 == 0:
                    await database.ask("SELECT 1")
        assert seen == 20_000


@asynchronous
async def test_a_stream_may_be_left_early(database: Database) -> None:
    """
    C{aclosing} ends the query of a stream, and the connection remains usable.
    """
    series = "SELECT n, repeat('x', 1000) FROM generate_series(1, 1000000) n"
    async with connected(database.url) as connection:
        await connection.set_autocommit(True)
        # psycopg declares this as an iterator, although it is a generator.
        rows: Any = connection.cursor().stream(series)
        async with aclosing(rows):
            async for number, _ in rows:
                assert number == 1
                break
        assert await (await connection.execute("SELECT 'next'")).fetchone() == ("next",)


@asynchronous
async def test_copy_writes_and_reads(database: Database) -> None:
    """
    COPY works in both directions with more data than the buffer of a socket holds.
    """
    async with connected(database.url) as connection:
        await connection.execute("CREATE TABLE t (s text)")
        async with connection.cursor() as cursor:
            async with cursor.copy("COPY t FROM STDIN") as copy:
                for _ in range(100):
                    await copy.write_row(("x" * 100_000,))
            size = 0
            async with cursor.copy("COPY t TO STDOUT") as copy:
                async for data in copy:
                    size += len(data)
        assert size == 100 * 100_001

        async def fail() -> None:
            async with connection.cursor() as cursor:
                await cursor.execute("CREATE TABLE n (n int)")
                async with cursor.copy("COPY n FROM STDIN") as copy:
                    for _ in range(1000):
                        await copy.write("not a number\n" * 1000)

        with pytest.raises(errors.InvalidTextRepresentation):
            await fail()


@asynchronous
async def test_notifications_arrive(database: Database) -> None:
    """
    Notifications are reported while they are awaited; notifications that arrived
    between two operations are reported first.
    """
    async with connected(database.url) as connection:
        await connection.set_autocommit(True)
        await connection.execute("LISTEN news")
        await database.ask(
            "SELECT pg_notify('news', n::text) FROM generate_series(1,3) n"
        )
        found = [each.payload async for each in connection.notifies(stop_after=3)]
        assert found == ["1", "2", "3"]
        later = started(anext(connection.notifies()))
        await database.ask("NOTIFY news, 'late'")
        assert (await later).payload == "late"
        for timeout in (0, 0.01):
            assert [each async for each in connection.notifies(timeout=timeout)] == []


async def sendNews(database: Database, *payloads: int) -> None:
    """
    Send notifications, and give the reactor a turn to read them.
    """
    from twisted.internet import reactor

    for payload in payloads:
        await database.ask("SELECT pg_notify('news', %s)", str(payload))
    await deferLater(cast(Any, reactor), 0)


@asynchronous
async def test_a_slow_consumer_misses_no_notification(database: Database) -> None:
    """
    Notifications that arrive while an earlier one is handled are not lost.
    """
    found = []
    async with connected(database.url) as connection:
        await connection.set_autocommit(True)
        await connection.execute("LISTEN news")
        await sendNews(database, 0)
        async for each in connection.notifies(stop_after=10):
            found.append(int(each.payload))
            if found[-1] % 3 == 0 and found[-1] < 9:
                await sendNews(database, *(found[-1] + n for n in (1, 2, 3)))
    assert found == list(range(10))


@asynchronous
async def test_a_consumer_may_stop_before_the_end(database: Database) -> None:
    """
    A consumer may stop early: later notifications are kept for the next one, and a loss
    is noticed.
    """
    async with connected(database.url) as connection:
        await connection.set_autocommit(True)
        await connection.execute("LISTEN news")
        await sendNews(database, 0)
        async for each in connection.notifies():
            assert each.payload == "0"
            await sendNews(database, 1, 2)
            break
        await sendNews(database, 3)
        found = [each.payload async for each in connection.notifies(stop_after=3)]
        assert found == ["1", "2", "3"]
        await sendNews(database, 4)
        async for _ in connection.notifies():
            await sendNews(database, 5)
            break
        lost = connection.whenLost()
        await database.endConnections()
        await lost
        assert connection.broken


@asynchronous
async def test_a_notify_handler_may_raise(
    database: Database, loggedFailures: list[Any]
) -> None:
    """
    The error of a notify handler is logged, and the connection remains usable.
    """
    async with connected(database.url) as connection:
        await connection.set_autocommit(True)
        called: Deferred[None] = Deferred()

        def handle(notification: psycopg.Notify) -> None:
            called.callback(None)
            raise ZeroDivisionError

        connection.add_notify_handler(handle)
        await connection.execute("LISTEN news")
        await database.ask("NOTIFY news")
        await called
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
    assert loggedFailures.pop()["log_failure"].check(ZeroDivisionError)


@pytest.mark.parametrize("busy", [False, True])
@asynchronous
async def test_the_reactor_may_report_the_loss(database: Database, busy: bool) -> None:
    """
    A broken socket that is not readable is a loss, which the reactor reports.
    """
    async with connected(database.url) as connection:
        lost = connection.whenLost()
        query = started(connection.execute(SLEEP))
        if busy:
            await untilBusy(database)
        else:
            query.cancel()
            await errorOf(query)
        (socket,) = watchedSockets()
        end = f"SELECT pg_terminate_backend({connection.info.backend_pid}, 30000)"
        database.server.askNow(end)
        socket.connectionLost(Failure(ConnectionLost()))
        await lost
        if busy:
            await errorOf(query)


@asynchronous
async def test_many_idle_notifications_stay_in_the_socket(database: Database) -> None:
    """
    The memory for notifications without a consumer is bounded, and none is lost.
    """
    count = 30_000
    seen: list[str] = []
    async with connected(database.url) as connection:
        await connection.set_autocommit(True)
        connection.add_notify_handler(lambda each: seen.append(each.payload))
        await connection.execute("LISTEN news")
        await database.ask(
            "SELECT pg_notify('news', n::text) FROM generate_series(1, %s) n", count
        )
        while len(seen) < 10_000:
            await database.ask("SELECT 1")
        for _ in range(3):
            await database.ask("SELECT 1")
        assert len(seen) < 15_000
        await connection.execute("SELECT 1")
        assert seen == [str(number) for number in range(1, count + 1)]


@pytest.mark.parametrize("late", [False, True])
@asynchronous
async def test_a_cancelled_query_leaves_the_connection_usable(
    database: Database, late: bool
) -> None:
    """
    A cancelled query is cancelled on the server. The next query gets its own result,
    even if the cancelled one had just finished.
    """
    async with connected(database.url) as connection:
        await connection.set_autocommit(True)
        if late:
            query = started(connection.execute("SELECT 'late'"))
        else:
            query = started(connection.execute(SLEEP))
            await untilBusy(database)
        query.cancel()
        assert isinstance(await errorOf(query), CancelledError)
        assert not connection.closed
        assert await (await connection.execute("SELECT 'next'")).fetchone() == ("next",)
        active = "SELECT 1 FROM pg_stat_activity WHERE query = %s AND state = 'active'"
        assert await database.ask(active, SLEEP) == []


@asynchronous
async def test_a_cancelled_query_is_not_started_later(database: Database) -> None:
    """
    A query that is cancelled while psycopg begins the transaction, or sends the query,
    is not carried out.
    """
    await database.ask("CREATE TABLE t (s text)")
    async with connected(database.url) as connection:
        query = started(connection.execute("INSERT INTO t VALUES ('a')"))
        query.cancel()
        assert isinstance(await errorOf(query), CancelledError)
        rows = await connection.execute("SELECT count(*) FROM t")
        assert await rows.fetchone() == (0,)
        await connection.rollback()
        await connection.set_autocommit(True)
        large = ("x" * 50_000_000,)
        query = started(connection.execute("INSERT INTO t VALUES (%s)", large))
        query.cancel()
        assert isinstance(await errorOf(query), CancelledError)
        assert connection.closed
    assert await database.ask("SELECT count(*) FROM t") == [(0,)]


@asynchronous
async def test_a_cancelled_pipeline_closes_the_connection(database: Database) -> None:
    """
    Cancelling a pipeline closes the connection, since its results belong to several
    cursors.
    """
    async with connected(database.url) as connection:

        async def work() -> None:
            async with connection.pipeline():
                await connection.execute("SELECT 1")
                cursor = await connection.execute(SLEEP)
                await cursor.fetchone()

        working = started(work())
        await untilBusy(database)
        working.cancel()
        assert isinstance(await errorOf(working), CancelledError | psycopg.Error)
        assert connection.closed


@asynchronous
async def test_a_cancelled_copy_closes_the_connection(database: Database) -> None:
    """
    Cancelling a COPY closes the connection, so that nothing else is taken for data, or
    for the end of the data.
    """
    await database.ask("CREATE TABLE t (s text)")
    slow = "COPY (SELECT pg_sleep(60)) TO STDOUT"

    async def read(connection: Connection[Any]) -> None:
        async with connection.cursor().copy(slow) as copy:
            await copy.read()

    async def write(connection: Connection[Any]) -> None:
        async with connection.cursor().copy("COPY t FROM STDIN") as copy:
            for _ in range(1000):
                await copy.write(b"x" * 1_000_000)

    for work in (read, write):
        async with connected(database.url) as connection:
            copying = started(work(connection))
            pid = connection.info.backend_pid
            busy = (
                "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND query LIKE 'COPY%%'"
            )
            while not await database.ask(busy, pid):
                pass
            copying.cancel()
            assert isinstance(await errorOf(copying), CancelledError)
            assert connection.closed
    assert await database.ask("SELECT * FROM t") == []


@asynchronous
async def test_a_cancelled_transaction_is_rolled_back(database: Database) -> None:
    """
    Cancelling a coroutine rolls back its transaction.
    """
    await database.ask("CREATE TABLE t (n int)")
    async with connected(database.url) as connection:

        async def work() -> None:
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (1)")
                await connection.execute(SLEEP)

        working = started(work())
        await untilBusy(database)
        working.cancel()
        assert isinstance(await errorOf(working), CancelledError)
        assert connection.info.transaction_status == TransactionStatus.IDLE
    assert await database.ask("SELECT * FROM t") == []


@pytest.mark.parametrize("how", ["silent", "twice", "at once"])
@asynchronous
async def test_a_query_that_cannot_be_cancelled_closes_the_connection(
    database: Database, how: str
) -> None:
    """
    If a query cannot be cancelled, the connection is closed, so that a late result is
    not taken for the result of another query.
    """
    async with relaying(database.server.port) as relay:
        url = database.server.urlFor(database=database.name, port=relay.port)
        async with connected(url) as connection:
            connection.cancelTimeout = {"silent": 0.05, "twice": 60, "at once": 0}[how]
            lost = connection.whenLost()
            query = started(connection.execute(SLEEP))
            await untilBusy(database)
            if how != "at once":
                relay.silence()
            query.cancel()
            if how == "twice":
                query.cancel()
            assert isinstance(await errorOf(query), CancelledError)
            await lost
            await connection.whenLost()
            assert connection.closed
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
            # Cancelling on a closed connection has no effect, as in psycopg.
            await connection.cancel_safe()
            relay.resume()


@asynchronous
async def test_a_cancel_request_has_a_time_limit(database: Database) -> None:
    """
    C{cancel_safe} has a time limit, also on a silent network.
    """
    async with relaying(database.server.port) as relay:
        url = database.server.urlFor(database=database.name, port=relay.port)
        async with connected(url) as connection:
            relay.silence()
            with pytest.raises(errors.CancellationTimeout):
                await connection.cancel_safe(timeout=0.05)
            relay.resume()


@asynchronous
async def test_a_lost_connection_fails_the_query(database: Database) -> None:
    """
    C{whenLost()} fires before the query fails; afterwards the connection is closed.
    """
    async with connected(database.url) as connection:
        order: list[str] = []
        query = started(connection.execute(SLEEP))
        connection.whenLost().addCallback(lambda _: order.append("lost"))
        query.addErrback(lambda failure: order.append(type(failure.value).__name__))
        await untilBusy(database)
        await database.endConnections()
        await query
        assert order in (["lost", "AdminShutdown"], ["lost", "OperationalError"])
        assert connection.broken


@asynchronous
async def test_a_reset_connection_is_noticed_in_any_state(database: Database) -> None:
    """
    A reset is noticed whether the connection reads, writes or is idle.
    """
    work: list[Callable[[Connection[Any]], Awaitable[object]]] = [
        lambda connection: connection.execute(SLEEP),
        lambda connection: connection.execute("SELECT %s", ("x" * 50_000_000,)),
        lambda connection: connection.whenLost(),
    ]
    for each in work:
        async with relaying(database.server.port) as relay:
            url = database.server.urlFor(database=database.name, port=relay.port)
            async with connected(url) as connection:
                lost = connection.whenLost()
                working = started(_awaited(each(connection)))
                relay.silence()
                await relay.cut()
                await lost
                assert connection.lossReason
                working.addErrback(lambda failure: failure.trap(psycopg.Error))
                await working


async def _awaited(work: Awaitable[object]) -> None:
    await work


@asynchronous
async def test_closing_fails_the_query(database: Database) -> None:
    """
    Closing fails the query in progress, and may be repeated.
    """
    async with connected(database.url) as connection:
        query = started(connection.execute(SLEEP))
        await untilBusy(database)
        await connection.close()
        assert isinstance(await errorOf(query), psycopg.OperationalError)
        await connection.close()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")


@asynchronous
async def test_a_loss_fails_all_queries_that_wait(database: Database) -> None:
    """
    However many queries wait for their turn, all of them fail with the connection.
    """
    async with connected(database.url) as connection:
        queries = [started(connection.execute(SLEEP)) for _ in range(1_000)]
        await untilBusy(database)
        connection.abort("cable cut")
        for query in queries:
            assert isinstance(await errorOf(query), psycopg.OperationalError)


# Connecting.


@asynchronous
async def test_without_a_free_descriptor_the_connection_is_closed(
    database: Database,
) -> None:
    """
    Without a free file descriptor, the connection is closed at once, and not only by
    the garbage collector.
    """
    from twisted.internet import reactor

    pgconn = PGconn.connect(database.url.encode())
    limits = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Connection(reactor, pgconn)
    finally:
        setrlimit(RLIMIT_NOFILE, limits)
    assert pgconn.status == ConnStatus.BAD


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"user": "nobody", "password": "hidden"}, errors.InvalidPassword),
        ({"database": "nowhere"}, errors.InvalidCatalogName),
    ],
)
@asynchronous
async def test_a_refused_connection_raises_the_error_of_its_sqlstate(
    postgresql: PostgreSQL, change: dict[str, Any], kind: type[psycopg.Error]
) -> None:
    """
    A refused connection raises the error of its SQLSTATE, which psycopg's own
    C{connect} does not.
    """
    from twisted.internet import reactor

    with pytest.raises(kind) as raised:
        await connect(reactor, postgresql.urlFor(**change))
    assert raised.value.sqlstate == kind.sqlstate
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@127.0.0.1/n?sslmode=hidden",
        "postgresql://u@127.0.0.1/n?hidden=1",
        "postgresql://u@127.0.0.1/n?port=1,2",
        "postgresql://u@127.0.0.1/n?sslrootcert=/hidden",
        "postgresql://u@/n?service=hidden",
        "postgresql://u@127.0.0.1/n?application_name=\ud800hidden",
    ],
)
@asynchronous
async def test_wrong_parameters_are_not_repeated(url: str) -> None:
    """
    An error does not repeat wrong parameters, since one of them may be a misplaced
    password.
    """
    from twisted.internet import reactor

    with pytest.raises(psycopg.ProgrammingError) as raised:
        await connect(reactor, url)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hidden@127.0.0.1:1/n",
        "postgresql://u:hidden@[::1]:1/n",
        "postgresql://u:hidden@localhost:1/n",
        "postgresql://u:hidden@127.0.0.1:1,127.0.0.1:2/n?load_balance_hosts=random",
        "postgresql://u:hidden@/n?host=/nowhere",
        "postgresql://u:hidden@nowhere.invalid/n",
    ],
)
@asynchronous
async def test_a_server_that_is_down_raises_an_operational_error(url: str) -> None:
    """
    A server that is down raises an OperationalError, also if its name has no address.
    """
    from twisted.internet import reactor

    with pytest.raises(psycopg.OperationalError) as raised:
        await connect(reactor, url)
    assert raised.value.sqlstate is None
    assert "hidden" not in str(raised.value)


@asynchronous
async def test_a_server_that_does_not_answer_leaves_time_for_the_others(
    database: Database,
) -> None:
    """
    Each address has its share of the time limit.
    """
    from twisted.internet import reactor

    with reservedPort() as down, unanswered() as silent:
        async with blackHole() as hole:
            ports = f"127.0.0.1:{down},127.0.0.1:{silent},127.0.0.1:{hole.port}"
            url = database.url.replace("127.0.0.1", f"{ports},127.0.0.1")
            async with connected(url, timeout=1.2) as connection:
                assert connection.info.port == database.server.port
            with pytest.raises(errors.ConnectionTimeout, match="does not answer"):
                await connect(
                    reactor, f"postgresql://u@127.0.0.1:{hole.port}/n", timeout=0.05
                )


@asynchronous
async def test_a_refusal_is_reported_rather_than_a_server_that_is_down(
    database: Database,
) -> None:
    """
    The error of a server that refuses a wrong password is not hidden by another server
    that is down.
    """
    from twisted.internet import reactor

    with reservedPort() as down:
        ports = f"127.0.0.1:{database.server.port},127.0.0.1:{down}"
        url = f"postgresql://postgres:wrong@{ports}/n"
        with pytest.raises(errors.InvalidPassword):
            await connect(reactor, url)


@asynchronous
async def test_connecting_can_be_cancelled() -> None:
    """
    A cancelled attempt to connect leaves nothing behind.
    """
    from twisted.internet import reactor

    async with blackHole() as hole:
        url = f"postgresql://u@127.0.0.1:{hole.port}/n"
        connecting = started(connect(reactor, url))
        await hole.whenAccepted(1)
        connecting.cancel()
        assert isinstance(await errorOf(connecting), CancelledError)
        assert watchedSockets() == []


class NoThreads:
    """
    A thread pool whose threads are all busy.
    """

    def callInThreadWithCallback(self, *call: object) -> None:
        """
        Do nothing.
        """


@asynchronous
async def test_resolving_a_name_has_a_time_limit() -> None:
    """
    Resolving a name does not block the reactor, and counts towards the time limit for
    connecting.
    """
    from twisted.internet import reactor as theReactor

    real: Any = theReactor

    class Reactor:
        callLater = real.callLater
        seconds = real.seconds

        def getThreadPool(self) -> NoThreads:
            return NoThreads()

    with pytest.raises(errors.ConnectionTimeout, match="name was not resolved in time"):
        await connect(Reactor(), "postgresql://u@db.invalid/n", timeout=0.01)


@asynchronous
async def test_messages_are_as_short_as_those_of_psycopg(database: Database) -> None:
    """
    Only the messages of refused connections contain the SQLSTATE.
    """
    async with connected(database.url) as connection:
        with pytest.raises(errors.UndefinedTable) as raised:
            await connection.execute(sql.SQL("TABLE {}").format(sql.Identifier("no")))
        assert "LOCATION" not in str(raised.value)
