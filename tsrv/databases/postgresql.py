"""
PostgreSQL, over a few connections that the reactor watches.

L{connect} is for programs that want psycopg itself: it returns a psycopg connection
that waits on the reactor. L{PostgreSQL} is the engine behind
L{Database<tsrv.databases.Database>}: a small pool of such connections.

If the server closes one of several connections, for example because it was idle for
too long, the pool forgets this connection. A call that was about to use it, and a read
in progress, run on another one. The database is lost when the last connection is lost,
the server does not answer in time, or it accepts no writes. Queued and further calls
then fail, and calls in progress on other connections may finish within their time
limits. L{Database<tsrv.databases.Database>} opens a new pool at its next
initialisation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from math import ceil
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..extras import needs

with needs("postgresql"):
    import psycopg
    from psycopg import AsyncRawCursor
    from psycopg.rows import TupleRow

from ..failures import Failures
from .connecting import connect
from .engine import Call, Engine, Queue
from .interface import (
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Row,
    Schema,
    Settings,
    Statement,
)
from .pooledconnection import PooledConnection
from .schema import upgrade
from .sqlstate import IDLE_LIMIT, READ_ONLY, errorOf, refusalOf
from .twistedpsycopg import Connection

__all__ = ["Connection", "PostgreSQL", "connect"]

GRACE_SECONDS: Final = 1.0
"""
Time that the client waits for the end of a statement after the server's limit, in
seconds.
"""

MAX_TIMEOUT_MILLISECONDS: Final = 2**31 - 1

DEFAULTS: Final = {
    "application_name": "tsrv",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    # After a failover, find the server that accepts writes.
    "target_session_attrs": "read-write",
}

_SESSION: Final = Statement(
    "SELECT own, (SELECT setting::int FROM pg_settings "
    "WHERE name = 'idle_session_timeout'), "
    "CASE WHEN own THEN set_config('statement_timeout', ?, false) END, CASE WHEN own "
    "THEN set_config('idle_in_transaction_session_timeout', ?, false) END "
    "FROM (SELECT pg_backend_pid() = ? AS own) AS session"
)
"""
Set the time limits, if the session belongs to this client alone. A pooler lends a
session to other applications, which would get the limits, too. Behind a pooler, the
process identifier that the client knows differs from the one of the session.
"""

_CHECK: Final = Statement("SELECT 1")


class PostgreSQL(Engine):
    """
    A pool of connections to one server.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        schemas: Sequence[Schema],
        settings: Settings,
        failures: Failures,
    ) -> None:
        super().__init__(reactor, settings, failures)
        self._url = url
        self._schemas = schemas
        self._limit = settings.statementTimeout + GRACE_SECONDS
        self._quiet = settings.connectTimeout
        self._connections: set[PooledConnection] = set()
        self._idle: deque[PooledConnection] = deque()
        self._additional: set[Deferred[PooledConnection]] = set()
        self._noAdditionalUntil = 0.0
        self._serving = 0
        self._queue = Queue()
        self.queues = [self._queue]
        self._timer: IDelayedCall | None = None

    async def connect(self) -> None:
        """
        Open the first connection, and bring the tables up to date.
        """
        self._adopt(await self._connect(self._updateSchema))
        self._watch()

    async def _connect(
        self, prepare: Callable[[Connection[TupleRow]], Awaitable[None]] | None = None
    ) -> PooledConnection:
        timeout = self.settings.connectTimeout
        until = self.reactor.seconds() + timeout
        try:
            connection = await connect(
                self.reactor,
                self._url,
                timeout=timeout,
                defaults=DEFAULTS,
                client_encoding="UTF8",
            )
        except psycopg.Error as error:
            raise refusalOf(error) from None
        connection.cancelTimeout = 0.0
        connection.cursor_factory = AsyncRawCursor
        connection.prepare_threshold = None
        limits = [
            str(ceil(min(seconds * 1000, MAX_TIMEOUT_MILLISECONDS)))
            for seconds in (self.settings.statementTimeout, self._limit)
        ]
        try:
            await connection.set_autocommit(True)
            left = until - self.reactor.seconds()
            backend = connection.info.backend_pid
            ((isOwn, idleLimit, *_),) = await self._ask(
                connection, left, _SESSION, *limits, backend
            )
            if idleLimit:
                # Check connections often enough to keep one open.
                self._quiet = min(self._quiet, max(idleLimit / 2000, 0.05))
            if prepare is not None:
                await prepare(connection)
        except BaseException:
            connection.abort("the connection could not be set up")
            raise
        return PooledConnection(connection, None if isOwn else limits[0])

    async def _ask(
        self,
        connection: Connection[TupleRow],
        limit: float,
        statement: Statement,
        *parameters: object,
    ) -> list[Row]:
        """
        Carry out a statement on a connection that is not in the pool yet.
        """
        work = connection.execute(statement.numbered, parameters or None)
        executing = Deferred.fromCoroutine(work)
        try:
            cursor = await executing.addTimeout(max(limit, 0.0), self.reactor)
            return [] if cursor.description is None else await cursor.fetchall()
        except TimedOut:
            raise DatabaseUnavailable("PostgreSQL does not answer in time") from None
        except psycopg.Error as error:
            if error.pgresult is None or not error.sqlstate:
                raise DatabaseUnavailable(str(error)) from None
            raise errorOf(error.pgresult) from None

    async def _updateSchema(self, connection: Connection[TupleRow]) -> None:
        steps = upgrade(self._schemas, "postgresql")
        rows: list[Row] | None = None
        try:
            while True:
                statement, parameters = steps.send(rows)
                rows = await self._ask(connection, self._limit, statement, *parameters)
        except StopIteration:
            return
        except DatabaseRefused:
            raise
        except (DatabaseError, DatabaseUnavailable) as error:
            if error.code != "42501" and isinstance(error, DatabaseUnavailable):
                raise
            reason = f"the tables cannot be brought up to date: {error}"
            if error.code in ("42501", "3F000"):
                reason += ": let the user create tables: GRANT CREATE ON SCHEMA"
            raise DatabaseRefused(reason, error.code) from None

    # Calls.

    def accept(self, call: Call) -> None:
        """
        Start a call on an idle connection, or queue it.
        """
        if self._idle:
            self._start(self._idle.pop(), call, self._limit)
        else:
            self._enqueue(call, self.reactor.seconds() + self._limit)

    def _enqueue(self, call: Call, deadline: float) -> None:
        call.queue = self._queue
        self._queue[call] = deadline
        self._openAdditional()

    def _start(self, pooled: PooledConnection, call: Call, limit: float) -> None:
        self._serving += 1
        pooled.call = call
        pooled.deadline = self.reactor.seconds() + limit
        Deferred.fromCoroutine(self._serve(pooled, call))

    async def _serve(self, pooled: PooledConnection, first: Call) -> None:
        """
        Carry out a call, and then the queued calls.
        """
        call: Call | None = first
        while call is not None:
            call.outcome = await pooled.carryOut(call)
            if call.hasFailed and self._failed(pooled, call):
                break
            finished, call = call, self._next(pooled)
            # Settle the call last: its callbacks may make calls and close the pool.
            finished.settle()
        self._serving -= 1
        self.checkIdle()
        self.checkClosed()

    def _failed(self, pooled: PooledConnection, call: Call) -> bool:
        """
        Decide what the error of a call means for the database.

        @return: Whether the call is carried out again, on another connection.
        """
        error = call.outcome
        if not isinstance(error, DatabaseUnavailable):
            return False
        if error.code == READ_ONLY:
            self.lose("the server accepts no writes")
        if not pooled.connection.closed or self.isOver or call.answer.called:
            return False
        if call.isSent and error.code != IDLE_LIMIT:
            # The statement itself may break its connections: limit the repetitions.
            call.interruptions += 1
            if call.isWrite or call.interruptions > self.settings.connections:
                return False
        call.isSent = False
        if self._idle:
            self._start(self._idle.pop(), call, self._limit)
        else:
            self._enqueue(call, pooled.deadline)
            self._queue.move_to_end(call, last=False)
        return True

    def _next(self, pooled: PooledConnection) -> Call | None:
        """
        @return: The next call of a connection; L{None} if it has none.
        """
        now = pooled.lastAnswer = self.reactor.seconds()
        pooled.call = None
        if pooled not in self._connections:
            return None
        if self.isOver:
            self._discard(pooled)
            return None
        if self._queue:
            pooled.call, _ = self._queue.popitem(last=False)
            pooled.deadline = now + self._limit
        else:
            self._idle.append(pooled)
        return pooled.call

    # Connections.

    def _adopt(self, pooled: PooledConnection) -> None:
        self._connections.add(pooled)
        pooled.connection.whenLost().addCallback(lambda _: self._connectionLost(pooled))
        if (call := self._next(pooled)) is not None:
            self._start(pooled, call, self._limit)

    def _openAdditional(self) -> None:
        """
        Open one more connection for the queued calls, within the limit.
        """
        opening = len(self._additional)
        if (
            len(self._connections) + opening >= self.settings.connections
            or opening >= len(self._queue)
            or self.reactor.seconds() < self._noAdditionalUntil
        ):
            return
        additional = Deferred.fromCoroutine(self._connect())
        self._additional.add(additional)

        def opened(result: PooledConnection | Failure) -> PooledConnection | Failure:
            self._additional.discard(additional)
            return result

        additional.addBoth(opened).addCallbacks(self._adopt, self._noAdditional)

    def _noAdditional(self, failure: Failure) -> None:
        if not self.isOver:
            # The open connections must do for a while. Checks notice if they fail, too.
            timeout = self.settings.connectTimeout
            self._noAdditionalUntil = self.reactor.seconds() + timeout
            self.log.warn(
                "Cannot open one more connection: {error}", error=str(failure.value)
            )

    def _discard(self, pooled: PooledConnection) -> None:
        self._connections.discard(pooled)
        pooled.connection.abort("the pool closed the connection")

    def _connectionLost(self, pooled: PooledConnection) -> None:
        if pooled not in self._connections:
            # The pool itself has closed the connection.
            return
        self._connections.discard(pooled)
        if pooled in self._idle:
            self._idle.remove(pooled)
        if not self._connections:
            self.lose(pooled.connection.lossReason)

    def stop(self) -> None:
        """
        Keep only the connections in use.
        """
        for additional in list(self._additional):
            additional.cancel()
        self._idle.clear()
        for pooled in list(self._connections):
            if pooled.call is None:
                self._discard(pooled)

    def isClosed(self) -> bool:
        """
        Return whether no connection is open, and no call is in progress.
        """
        return not self._connections and not self._serving

    def isIdle(self) -> bool:
        """
        Return whether no connection is in use. A queued call waits for a connection
        in use, so then the queue is empty, too.
        """
        return not self._serving

    def checkClosed(self) -> None:
        """
        Stop the timer, too.
        """
        if self.isOver and self.isClosed() and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().checkClosed()

    # Time.

    def _watch(self) -> None:
        """
        Enforce the time limits, and check that the server still answers.
        """
        self._timer = None
        now: float = self.reactor.seconds()
        for pooled in list(self._connections):
            if pooled.call is not None and now >= pooled.deadline:
                self.lose("PostgreSQL did not answer in time")
                pooled.connection.abort("PostgreSQL did not answer in time")
        # Without a limit, the last call of a long queue would wait for all others.
        while self._queue and now >= next(iter(self._queue.values())):
            reason = f"no connection to PostgreSQL was free for {self._limit:.3g} s"
            call, _ = self._queue.popitem(last=False)
            call.fail(DatabaseUnavailable(reason, "no_free_connection"))
        if self.isOver and not self._connections:
            return
        quiet = self._quiet
        last = max((each.lastAnswer for each in self._connections), default=now)
        if now - last >= quiet:
            last = now
            if self._idle:
                # Check the connections in turn: the least recently used is at the left.
                check = Call(_CHECK, (), False, self.noteFailure)
                check.answer.addErrback(lambda _: None)
                timeout = self.settings.connectTimeout
                self._start(self._idle.popleft(), check, timeout)
        times = [each.deadline for each in self._connections if each.call is not None]
        times += islice(self._queue.values(), 1)
        # Calls that start later have later deadlines.
        times += [now + quiet, now + self._limit, last + quiet]
        self._timer = self.reactor.callLater(max(min(times) - now, 0.0), self._watch)
