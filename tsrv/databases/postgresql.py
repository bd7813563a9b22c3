"""
PostgreSQL, over a few connections that the reactor watches.

There are no threads: what psycopg calls libpq never waits for its socket. All
connections are one: when one of them breaks, or a server does not answer in
time, the database is lost, and is connected to anew. What is in progress on the
others then still has its time to finish.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, Literal

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..queuing.waiters import Waiters
from .interface import (
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Row,
    Schema,
    Settings,
    Statement,
)
from .pgcall import (
    LATER,
    Call,
)
from .pgconnect import connect
from .pgconnection import Connection
from .schema import (
    CREATE,
    VERSIONS,
    stepsTo,
)

__all__ = ["PostgreSQL"]

_LOCK: Final = 0x74737276
"""
The number under which those who bring the schema up to date wait for each
other.
"""

_SESSION: Final = (
    "SELECT set_config('statement_timeout', $1, false), "
    "set_config('idle_in_transaction_session_timeout', $1, false)"
)

_NO_TABLE: Final = "42P01"

_GRACE: Final = 1.0
"""
How much longer than the server we wait for it to end a statement, in seconds.
"""

_MOST: Final = 10_000

_CLOSED: Final = "the database was closed"
_LOST: Final = "the database was lost"


class PostgreSQL:
    """
    The database of a server.
    """

    _log = Logger()

    stuck = 0

    def __init__(
        self, reactor: Any, url: str, schemas: Sequence[Schema], settings: Settings
    ) -> None:
        """
        @param reactor: Provides time, addresses, and the watching of sockets.
        @param url: Where the database is, as libpq has it.
        @param schemas: The tables that have to be there.
        @param settings: How it is used.
        """
        self._reactor = reactor
        self._url = url
        self._schemas = schemas
        self._settings = settings
        self._limit = settings.statementTimeout + _GRACE
        self._over = "the database is not connected"
        self._ended = False
        self._opening: Deferred[None] | None = None
        self._connections: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._extra: set[Deferred[Connection]] = set()
        self._rest = 0.0
        self._settling = 0
        # Each with the time until which it waits.
        self._waiting: OrderedDict[Call, float] = OrderedDict()
        self._watches = Waiters(_MOST, "for the database to be lost")
        self._closings = Waiters(_MOST, "for the database to be closed")
        self._timer: IDelayedCall | None = None

    # Opening it.

    def open(self) -> Deferred[None]:
        """
        @see: L{Engine.open<tsrv.databases.Engine.open>}
        """
        if self._ended:
            return fail(DatabaseUnavailable(self._over, LATER))
        opening = Deferred.fromCoroutine(self._open())
        if not opening.called:
            self._opening = opening
        return opening

    async def _open(self) -> None:
        try:
            connection = await self._connect()
            try:
                await self._bringUpToDate(connection)
            except BaseException:
                connection.close()
                raise
        except BaseException as error:
            self._opening = None
            if self._ended and isinstance(error, CancelledError):
                raise DatabaseUnavailable(self._over, LATER) from None
            self._end("the database could not be opened")
            raise
        self._opening = None
        self._over = ""
        self._adopt(connection)
        self._watch()

    def _adopt(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.freed(connection)
        self.settled()

    async def _connect(self) -> Connection:
        """
        @return: A connection on which statements can be carried out.
        """
        limit = self._settings.connectTimeout
        until = self._reactor.seconds() + limit
        pgconn = await connect(self._reactor, self._url, limit)
        try:
            connection = Connection(self._reactor, pgconn, self)
        except OSError as error:
            pgconn.finish()
            raise DatabaseUnavailable(
                f"a connection to PostgreSQL cannot be used: {error.strerror}", LATER
            ) from None
        # The server counts in milliseconds, and not beyond a month.
        time = str(min(int(self._settings.statementTimeout * 1000), 2**31 - 1))
        try:
            await self._ask(connection, until - self._reactor.seconds(), _SESSION, time)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _ask(
        self, connection: Connection, limit: float, sql: str, *parameters: object
    ) -> list[Row]:
        """
        Carry out a statement before others do, within so many seconds.
        """
        asking = connection.ask(sql, *parameters)
        try:
            return await asking.addTimeout(max(limit, 0.0), self._reactor)
        except TimedOut:
            raise DatabaseUnavailable(
                "PostgreSQL does not answer in time", LATER
            ) from None

    async def _bringUpToDate(self, connection: Connection) -> None:
        async def ask(sql: str, *parameters: object) -> list[Row]:
            return await self._ask(connection, self._limit, sql, *parameters)

        try:
            try:
                versions = await ask(VERSIONS.numbered)
            except DatabaseError as error:
                if error.code != _NO_TABLE:
                    raise
                versions = []
            if not stepsTo(self._schemas, "postgresql", versions):
                return
            await ask("BEGIN")
            await ask(f"SELECT pg_advisory_xact_lock({_LOCK})")
            await ask(CREATE.numbered)
            versions = await ask(VERSIONS.numbered)
            for step, parameters in stepsTo(self._schemas, "postgresql", versions):
                await ask(step.numbered, *parameters)
            await ask("COMMIT")
        except DatabaseRefused:
            raise
        except DatabaseError as error:
            advice = (
                ": let the user make tables: GRANT CREATE ON SCHEMA"
                if error.code in ("42501", "3F000")
                else ""
            )
            raise DatabaseRefused(
                f"the tables cannot be brought up to date: {error}{advice}",
                error.code,
            ) from None

    # Using it.

    def read(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        @see: L{IDatabase.read<tsrv.databases.IDatabase.read>}
        """
        return self._submit("read", statement, parameters)

    def write(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        @see: L{IDatabase.write<tsrv.databases.IDatabase.write>}
        """
        return self._submit("write", statement, parameters)

    def _submit(
        self,
        kind: Literal["read", "write"],
        statement: Statement,
        parameters: tuple[object, ...],
    ) -> Deferred[list[Row]]:
        if self._over:
            return fail(DatabaseUnavailable(self._over, LATER))
        try:
            call = Call(kind, statement.numbered, parameters, True)
        except DatabaseError:
            return fail()
        answer = call.answer
        assert answer is not None
        if self._idle:
            self._idle.pop().carryOut(call, self._limit)
        elif len(self._waiting) >= self._settings.limit:
            call.settle(
                DatabaseUnavailable(
                    f"{self._settings.limit} statements wait already", LATER
                )
            )
        else:
            self._waiting[call] = self._reactor.seconds() + self._limit
            call.leave = self._leave
            self._openAnother()
        return answer

    def _leave(self, call: Call) -> None:
        self._waiting.pop(call, None)

    def _openAnother(self) -> None:
        """
        Have one more connection, if that may help.
        """
        if (
            len(self._connections) + len(self._extra) >= self._settings.connections
            or len(self._extra) >= len(self._waiting)
            or (self._connections and self._reactor.seconds() < self._rest)
        ):
            return
        opening = Deferred.fromCoroutine(self._connect())
        self._extra.add(opening)

        def opened(result: Connection | Failure) -> Connection | Failure:
            self._extra.discard(opening)
            return result

        opening.addBoth(opened).addCallbacks(self._adopt, self._notMore)

    def _notMore(self, reason: Failure) -> None:
        """
        An additional connection could not be had.
        """
        if self._ended:
            return
        error = reason.value
        if self._connections:
            # Those that are there have to do, for a while. If something is wrong
            # with them too, they find out by themselves.
            self._rest = self._reactor.seconds() + self._settings.connectTimeout
            self._log.warn(
                "Cannot use one more connection: {reason}", reason=str(error)
            )
        else:
            self._lose(str(error))

    def freed(self, connection: Connection) -> None:
        """
        Have a connection carry out what has waited longest.
        """
        self._settling += 1
        if connection not in self._connections:
            # It is being opened.
            return
        if self._ended:
            self._drop(connection)
        elif self._waiting:
            call, _ = self._waiting.popitem(last=False)
            call.leave = None
            connection.carryOut(call, self._limit)
        else:
            self._idle.append(connection)

    def dropped(self, connection: Connection) -> None:
        """
        A connection is gone, and nothing is wrong with the others.
        """
        self._settling += 1
        self._connections.discard(connection)
        if self._waiting:
            self._openAnother()

    # Losing it.

    def broke(self, connection: Connection, reason: str) -> None:
        """
        A connection is gone.
        """
        self._settling += 1
        if connection in self._connections:
            self._connections.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._lose(reason)

    def settled(self) -> None:
        """
        What a connection was busy with has been answered.
        """
        self._settling -= 1
        self._look()

    def _lose(self, reason: str) -> None:
        if not self._ended:
            self._log.warn("Lost the database: {reason}", reason=reason)
            self._end(_LOST)

    def _end(self, why: str) -> None:
        """
        Take no more statements, and keep only the connections that are busy.
        """
        if self._ended:
            return
        self._ended = True
        self._over = why
        # Whoever is told may do anything; those who ask now are refused.
        waiting, self._waiting = self._waiting, OrderedDict()
        self._watches.succeed()
        for call in waiting:
            call.leave = None
            call.settle(DatabaseUnavailable(why, LATER))
        for extra in list(self._extra):
            extra.cancel()
        self._idle.clear()
        for connection in list(self._connections):
            if connection.call is None:
                self._drop(connection)
        self._look()

    def _drop(self, connection: Connection) -> None:
        self._connections.discard(connection)
        connection.close()
        self._look()

    def _look(self) -> None:
        """
        See whether everything has ended.
        """
        if self._ended and not self._connections and not self._settling:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._closings.succeed()

    def whenLost(self) -> Deferred[None]:
        """
        @see: L{IDatabase.whenLost<tsrv.databases.IDatabase.whenLost>}
        """
        return succeed(None) if self._ended else self._watches.wait()

    def close(self) -> Deferred[None]:
        """
        @see: L{IDatabase.close<tsrv.databases.IDatabase.close>}
        """
        self._end(_CLOSED)
        if self._opening is not None:
            self._opening.cancel()
        if not self._connections and not self._settling:
            return succeed(None)
        return self._closings.wait()

    # Watching it.

    def _expire(self, now: float) -> None:
        """
        End those that have waited for a connection as long as one statement may
        take: else who comes last waits for all the others.
        """
        while self._waiting:
            call, until = next(iter(self._waiting.items()))
            if now < until:
                break
            del self._waiting[call]
            call.leave = None
            reason = f"no connection to PostgreSQL was free for {self._limit:.3g} s"
            call.settle(DatabaseUnavailable(reason, LATER))

    def _watch(self) -> None:
        """
        See whether those that are asked answer in time, and whether a server
        that nobody asks is still there.
        """
        self._timer = None
        now: float = self._reactor.seconds()
        quiet = self._settings.connectTimeout
        for connection in list(self._connections):
            if connection.call is not None and now >= connection.until:
                connection.giveUp(
                    f"PostgreSQL did not answer in {connection.limit:.3g} s"
                )
        self._expire(now)
        if self._ended and not self._connections:
            return
        life = max((each.life for each in self._connections), default=now)
        if now - life >= quiet:
            # When all are busy their own limits tell.
            life = now
            if self._idle:
                # Each in turn: what was used longest ago is at the left.
                check = Call("check", "SELECT 1")
                check.answer = None
                self._idle.popleft().carryOut(check, quiet)
        following = [each.until for each in self._connections if each.call is not None]
        following += islice(self._waiting.values(), 1)
        # A statement that begins later has its end after that.
        step = min(quiet, self._limit)
        following.append(min(now + step, life + quiet))
        self._timer = self._reactor.callLater(
            max(min(following) - now, 0.0), self._watch
        )
