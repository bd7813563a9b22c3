"""
PostgreSQL, over a few connections that the reactor watches.

L{connect} is for programs that want psycopg itself: it returns a psycopg connection
that waits on the reactor. L{PostgreSQL} is the database behind
L{IDatabase<tsrv.databases.IDatabase>}: a small pool of such connections.

The pool treats its connections as one. When one of them is lost, or the server does
not answer in time, the database is lost: queued calls fail, no more are accepted,
and calls in progress on other connections may finish in their time.
L{Database<tsrv.databases.Database>} then opens a new pool.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Any, Final

import psycopg
from psycopg import AsyncRawCursor, errors
from psycopg.rows import TupleRow
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..queuing.waiters import Waiters
from .connecting import connect
from .interface import (
    DatabaseError,
    DatabaseRefused,
    Row,
    Schema,
    Settings,
    Statement,
)
from .pooledconnection import Call, PooledConnection
from .schema import CREATE, VERSIONS, stepsTo
from .sqlstate import errorOf, refusalOf, unavailable
from .twistedpsycopg import Connection

__all__ = ["Connection", "PostgreSQL", "connect"]

_log = Logger("tsrv.databases")

SCHEMA_LOCK: Final = 0x74737276
"""
The number of the advisory lock that processes hold while they update the schema.
"""

GRACE_SECONDS: Final = 1.0
"""
How much longer than the server the client waits for the end of a statement.
"""

MAX_TIMEOUT_MILLISECONDS: Final = 2**31 - 1

MAX_WAITERS: Final = 10_000
"""
Maximum number of callers that wait for the database to be lost or closed.
"""

DEFAULTS: Final = {
    "application_name": "tsrv",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    # After a failover the server that accepts writes is the right one.
    "target_session_attrs": "read-write",
}

_SESSION: Final = (
    "SELECT set_config('statement_timeout', $1, false), "
    "set_config('idle_in_transaction_session_timeout', $1, false)"
)


class PostgreSQL:
    """
    A pool of connections to one server.
    """

    stuck = 0

    def __init__(
        self, reactor: Any, url: str, schemas: Sequence[Schema], settings: Settings
    ) -> None:
        """
        @param reactor: Provides time and threads, and watches sockets.
        @param url: Where the database is.
        @param schemas: The tables that have to exist.
        @param settings: How the database is used.
        """
        self._reactor = reactor
        self._url = url
        self._schemas = schemas
        self._settings = settings
        self._limit = settings.statementTimeout + GRACE_SECONDS
        # Why no calls are accepted; empty while they are.
        self._refusal = "the database is not connected"
        self._ended = False
        self._connections: set[PooledConnection] = set()
        self._idle: deque[PooledConnection] = deque()
        self._additional: set[Deferred[PooledConnection]] = set()
        self._noAdditionalUntil = 0.0
        self._serving = 0
        # Each with the time until which it may wait.
        self._queue: OrderedDict[Call, float] = OrderedDict()
        self._losses = Waiters(MAX_WAITERS, "for the database to be lost")
        self._closings = Waiters(MAX_WAITERS, "for the database to close")
        self._timer: IDelayedCall | None = None

    # Opening.

    def open(self) -> Deferred[None]:
        """
        Connect, and bring the schema up to date.
        """
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        try:
            pooled = await self._connect(self._updateSchema)
        except BaseException:
            self._end("the database could not be opened")
            raise
        self._refusal = ""
        self._adopt(pooled)
        self._watch()

    async def _connect(
        self, prepare: Callable[[Connection[TupleRow]], Awaitable[None]] | None = None
    ) -> PooledConnection:
        timeout = self._settings.connectTimeout
        until = self._reactor.seconds() + timeout
        try:
            connection = await connect(
                self._reactor,
                self._url,
                timeout=timeout,
                defaults=DEFAULTS,
                client_encoding="UTF8",
            )
        except psycopg.Error as error:
            raise refusalOf(error) from None
        connection.cancelTimeout = 0.0
        connection.cursor_factory = AsyncRawCursor
        limit = int(self._settings.statementTimeout * 1000)
        milliseconds = str(min(limit, MAX_TIMEOUT_MILLISECONDS))
        try:
            await connection.set_autocommit(True)
            left = until - self._reactor.seconds()
            await self._ask(connection, left, _SESSION, milliseconds)
            if prepare is not None:
                await prepare(connection)
        except BaseException:
            connection.abort("the connection could not be set up")
            raise
        return PooledConnection(connection)

    async def _ask(
        self, connection: Connection[TupleRow], limit: float, sql: str, *parameters: Any
    ) -> list[Row]:
        """
        Carry out a statement on a connection that is not in the pool yet.
        """
        executing = Deferred.fromCoroutine(connection.execute(sql, parameters or None))
        try:
            cursor = await executing.addTimeout(max(limit, 0.0), self._reactor)
            return [] if cursor.description is None else await cursor.fetchall()
        except TimedOut:
            raise unavailable("PostgreSQL does not answer in time") from None
        except psycopg.Error as error:
            if error.pgresult is None or not error.sqlstate:
                raise unavailable(str(error)) from None
            raise errorOf(error.pgresult) from None

    async def _updateSchema(self, connection: Connection[TupleRow]) -> None:
        async def ask(sql: str, *parameters: object) -> list[Row]:
            return await self._ask(connection, self._limit, sql, *parameters)

        try:
            try:
                versions = await ask(VERSIONS.numbered)
            except DatabaseError as error:
                if error.code != errors.UndefinedTable.sqlstate:
                    raise
                versions = []
            if not stepsTo(self._schemas, "postgresql", versions):
                return
            await ask("BEGIN")
            await ask(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")
            await ask(CREATE.numbered)
            versions = await ask(VERSIONS.numbered)
            for step, parameters in stepsTo(self._schemas, "postgresql", versions):
                await ask(step.numbered, *parameters)
            await ask("COMMIT")
        except DatabaseRefused:
            raise
        except DatabaseError as error:
            reason = f"the tables cannot be brought up to date: {error}"
            if error.code in ("42501", "3F000"):
                reason += ": let the user make tables: GRANT CREATE ON SCHEMA"
            raise DatabaseRefused(reason, error.code) from None

    # Calls.

    def read(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes nothing.
        """
        return self._submit(Call(statement.numbered, parameters, False))

    def write(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement as a transaction.
        """
        return self._submit(Call(statement.numbered, parameters, True))

    def _submit(self, call: Call) -> Deferred[list[Row]]:
        answer = call.answer
        assert answer is not None
        if self._refusal:
            call.settle(unavailable(self._refusal))
        elif self._idle:
            self._start(self._idle.pop(), call, self._limit)
        elif len(self._queue) >= self._settings.limit:
            call.settle(unavailable(f"{self._settings.limit} statements wait already"))
        else:
            self._queue[call] = self._reactor.seconds() + self._limit
            call.onCancel = self._queue.pop
            self._openAdditional()
        return answer

    def _takeQueued(self) -> Call:
        call, _ = self._queue.popitem(last=False)
        call.onCancel = None
        return call

    def _start(self, pooled: PooledConnection, call: Call, limit: float) -> None:
        self._serving += 1
        pooled.call = call
        pooled.deadline = self._reactor.seconds() + limit
        Deferred.fromCoroutine(self._serve(pooled, call))

    async def _serve(self, pooled: PooledConnection, first: Call) -> None:
        """
        Carry out a call, and then those in the queue.
        """
        call: Call | None = first
        while call is not None:
            outcome = await pooled.carryOut(call)
            finished, call = call, self._next(pooled)
            # Its callbacks find the connection in use, or free.
            finished.settle(outcome)
        self._serving -= 1
        self._checkClosed()

    def _next(self, pooled: PooledConnection) -> Call | None:
        """
        @return: What a connection carries out after a call.
        """
        now = pooled.lastAnswer = self._reactor.seconds()
        pooled.call = None
        if pooled not in self._connections:
            return None
        if self._ended:
            self._discard(pooled)
            return None
        if self._queue:
            pooled.call = self._takeQueued()
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
        Open one more connection, if that may help.
        """
        opening = len(self._additional)
        if (
            len(self._connections) + opening >= self._settings.connections
            or opening >= len(self._queue)
            or self._reactor.seconds() < self._noAdditionalUntil
        ):
            return
        additional = Deferred.fromCoroutine(self._connect())
        self._additional.add(additional)

        def opened(result: PooledConnection | Failure) -> PooledConnection | Failure:
            self._additional.discard(additional)
            return result

        additional.addBoth(opened).addCallbacks(self._adopt, self._noAdditional)

    def _noAdditional(self, failure: Failure) -> None:
        if not self._ended:
            # The open connections are enough for a while. They notice by themselves
            # if something is wrong with them too.
            timeout = self._settings.connectTimeout
            self._noAdditionalUntil = self._reactor.seconds() + timeout
            _log.warn(
                "Cannot open one more connection: {reason}", reason=str(failure.value)
            )

    def _discard(self, pooled: PooledConnection) -> None:
        self._connections.discard(pooled)
        pooled.connection.abort("the pool closed the connection")

    def _connectionLost(self, pooled: PooledConnection) -> None:
        if pooled not in self._connections:
            # The pool closed it.
            return
        self._connections.discard(pooled)
        if pooled in self._idle:
            self._idle.remove(pooled)
        if not self._ended:
            _log.warn(
                "Lost the database: {reason}", reason=pooled.connection.lossReason
            )
            self._end("the database was lost")

    # The end.

    def _end(self, reason: str) -> None:
        """
        Accept no more calls, and keep only the connections in use.
        """
        if self._ended:
            return
        self._ended = True
        self._refusal = reason
        queue, self._queue = self._queue, OrderedDict()
        self._losses.succeed()
        # Their callbacks may cancel others.
        for call in list(queue):
            call.onCancel = None
            call.settle(unavailable(reason))
        for additional in list(self._additional):
            additional.cancel()
        self._idle.clear()
        for pooled in list(self._connections):
            if pooled.call is None:
                self._discard(pooled)
        self._checkClosed()

    def _checkClosed(self) -> None:
        if self._ended and not self._connections and not self._serving:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._closings.succeed()

    def whenLost(self) -> Deferred[None]:
        """
        @return: A Deferred that fires when the database is lost or closed.
        """
        return succeed(None) if self._ended else self._losses.wait()

    def close(self) -> Deferred[None]:
        """
        Close all connections, those in use when their calls have finished.
        """
        self._end("the database was closed")
        closing = self._closings.wait()
        self._checkClosed()
        return closing

    # Time.

    def _watch(self) -> None:
        """
        Enforce the time limits, and check that an idle server still answers.
        """
        self._timer = None
        now: float = self._reactor.seconds()
        for pooled in list(self._connections):
            if pooled.call is not None and now >= pooled.deadline:
                pooled.connection.abort("PostgreSQL did not answer in time")
        # Otherwise the last in a long queue would wait for all the others.
        while self._queue and now >= next(iter(self._queue.values())):
            reason = f"no connection to PostgreSQL was free for {self._limit:.3g} s"
            self._takeQueued().settle(unavailable(reason))
        if self._ended and not self._connections:
            return
        quiet = self._settings.connectTimeout
        last = max((each.lastAnswer for each in self._connections), default=now)
        if now - last >= quiet:
            last = now
            if self._idle:
                # Each in turn: the one used longest ago is at the left.
                check = Call("SELECT 1", (), False)
                assert check.answer is not None
                check.answer.addErrback(lambda _: None)
                self._start(self._idle.popleft(), check, quiet)
        times = [each.deadline for each in self._connections if each.call is not None]
        times += islice(self._queue.values(), 1)
        # A call that starts later has its deadline after that.
        times += [now + quiet, now + self._limit, last + quiet]
        self._timer = self._reactor.callLater(max(min(times) - now, 0.0), self._watch)
