"""
Statements on one connection of the pool.

This does what a cursor of psycopg does, for one statement at a time, with two
differences. It knows whether a statement may have reached the server when the
connection breaks. And the name of a prepared statement depends on its text: a
pooler such as PgBouncer, which gives one connection to several clients, cannot
confuse two statements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import psycopg
from psycopg import generators, pq
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.numeric import Int8Dumper
from twisted.internet.defer import Deferred

from .interface import DatabaseError, DatabaseUnavailable, OutcomeUnknown, Row
from .sqlstate import RETRY_AFTER_SECONDS, UNKNOWN, errorOf
from .twistedpsycopg import Connection

__all__ = ["Call", "PooledConnection"]

MAX_PREPARED_STATEMENTS: Final = 100
"""
Maximum number of statements prepared on one connection; others are sent in full.
"""

MAX_PARAMETERS: Final = 65_535
"""
Maximum number of parameters that the protocol can count.
"""

_NOT_PREPARED: Final = (b"0A000", b"26000", b"42P05")
"""
The SQLSTATEs for a prepared statement that is gone, no longer fits the tables, or
was prepared by another client of a pooler. The statement was not carried out.
"""

_IDLE: Final = pq.TransactionStatus.IDLE
_TUPLES: Final = pq.ExecStatus.TUPLES_OK
_FATAL: Final = pq.ExecStatus.FATAL_ERROR
_COPIES: Final = (
    pq.ExecStatus.COPY_IN,
    pq.ExecStatus.COPY_OUT,
    pq.ExecStatus.COPY_BOTH,
)


class Call:
    """
    A statement that a caller waits for.

    @ivar answer: The Deferred of the caller; L{None} once it has fired.
    @ivar isSent: Whether the statement may have reached the server.
    @ivar onCancel: Called with the call when the caller gives up while the call is
        queued.
    """

    __slots__ = ("answer", "isSent", "isWrite", "onCancel", "parameters", "sql")

    def __init__(self, sql: str, parameters: tuple[object, ...], isWrite: bool) -> None:
        """
        @param sql: The statement, with numbered parameters.
        """
        self.sql = sql
        self.parameters = parameters
        self.isWrite = isWrite
        self.isSent = False
        self.onCancel: Callable[[Call], object] | None = None
        self.answer: Deferred[list[Row]] | None = Deferred(self._cancelled)

    def _cancelled(self, answer: Deferred[list[Row]]) -> None:
        self.answer = None
        if self.onCancel is not None:
            self.onCancel(self)

    def settle(self, outcome: list[Row] | Exception) -> None:
        """
        Fire the answer, unless the caller has given up.
        """
        answer, self.answer = self.answer, None
        if answer is None:
            return
        if isinstance(outcome, Exception):
            answer.errback(outcome)
        else:
            answer.callback(outcome)

    def interrupted(self, reason: str) -> Exception:
        """
        @return: The error for a call that gets no answer from the server.
        """
        if self.isSent and self.isWrite:
            return OutcomeUnknown("write")
        return DatabaseUnavailable(reason, RETRY_AFTER_SECONDS)


class PooledConnection:
    """
    A connection that carries out one call at a time.

    @ivar call: The call in progress.
    @ivar deadline: The time, in seconds, when that has taken too long.
    @ivar lastAnswer: The time, in seconds, of the server's last answer.
    @ivar isSpoiled: Whether a call has left the connection in a state in which no
        other call may use it.
    """

    def __init__(self, connection: Connection[Any]) -> None:
        """
        @param connection: A connection in autocommit mode that nobody else uses.
        """
        self.connection = connection
        self.call: Call | None = None
        self.deadline = 0.0
        self.lastAnswer = 0.0
        self.isSpoiled = False
        # psycopg takes the smallest type that a number fits into, and a statement
        # would be prepared for each of them.
        connection.adapters.register_dumper(int, Int8Dumper)
        self._transformer = Transformer(connection)
        self._prepared: set[bytes] = set()
        self._canPrepare = True

    async def carryOut(self, call: Call) -> list[Row] | Exception:
        """
        Carry out a call.

        @return: The rows, or the error for the caller.
        """
        connection = self.connection
        try:
            results = await connection.wait(self._execute(call))
            if connection.closed:
                # The server said why before it closed the connection.
                connection.abort(connection.pgconn.get_error_message())
            return self._outcome(call, results)
        except Exception as error:
            if connection.closed:
                return call.interrupted(f"the connection was lost: {error}")
            if call.isSent and call.isWrite:
                return OutcomeUnknown("write")
            # psycopg cannot convert a parameter, or a column.
            kind = error.sqlstate if isinstance(error, psycopg.Error) else None
            return DatabaseError(
                f"cannot carry out: {call.sql}: {type(error).__name__}", kind or "22000"
            )

    def _execute(self, call: Call) -> PQGen[list[pq.abc.PGresult]]:
        results: list[pq.abc.PGresult] = yield from self._send(call)
        if self._canPrepare and _codeOf(results) in _NOT_PREPARED:
            self._canPrepare = False
            self._prepared.clear()
            results = yield from self._send(call)
        return results

    def _send(self, call: Call) -> PQGen[list[pq.abc.PGresult]]:
        pgconn = self.connection.pgconn
        transformer = self._transformer
        results: list[pq.abc.PGresult]
        parameters = call.parameters
        if len(parameters) > MAX_PARAMETERS:
            raise psycopg.DataError("too many parameters")
        values = transformer.dump_sequence(
            parameters, [PyFormat.AUTO] * len(parameters)
        )
        types, formats = transformer.types, transformer.formats
        # If the connection has ended by now, nothing has been sent.
        pgconn.consume_input()
        name = _nameOf(call.sql, types)
        isPrepared = name in self._prepared
        if (
            not isPrepared
            and self._canPrepare
            and len(self._prepared) < MAX_PREPARED_STATEMENTS
        ):
            pgconn.send_prepare(name, call.sql.encode(), types)
            results = yield from generators.execute(pgconn)
            if _codeOf(results) is not None:
                return results
            self._prepared.add(name)
            isPrepared = True
        if call.answer is None:
            # Given up in the meantime.
            return []
        call.isSent = True
        if isPrepared:
            pgconn.send_query_prepared(name, values, formats)
        else:
            pgconn.send_query_params(call.sql.encode(), values, types, formats)
        results = yield from generators.execute(pgconn)
        return results

    def _outcome(
        self, call: Call, results: list[pq.abc.PGresult]
    ) -> list[Row] | Exception:
        connection = self.connection
        rows: list[Row] = []
        for number, result in enumerate(results):
            if result.status == _TUPLES:
                self._transformer.set_pgresult(result)
                rows = self._transformer.load_rows(0, result.ntuples, tuple)
            elif result.status == _FATAL:
                error = errorOf(result)
                isUnknown = error.code in UNKNOWN or not error.code
                if connection.closed:
                    # A pooler may have lost its server; or the server had
                    # committed before.
                    isUnknown = isUnknown or error.code.startswith("08") or number > 0
                return call.interrupted(str(error)) if isUnknown else error
            elif result.status in _COPIES:
                return self._spoiled(call, "COPY has no answer")
        if connection.pgconn.transaction_status != _IDLE and not connection.closed:
            return self._spoiled(call, "transactions are begun for each statement")
        return rows

    def _spoiled(self, call: Call, reason: str) -> DatabaseError:
        self.isSpoiled = True
        return DatabaseError(f"cannot carry out: {call.sql}: {reason}", "0A000")


def _codeOf(results: list[pq.abc.PGresult]) -> bytes | None:
    """
    @return: The SQLSTATE, if there was an error.
    """
    for result in results:
        if result.status == _FATAL:
            return result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    return None


@lru_cache(1024)
def _nameOf(sql: str, types: tuple[int, ...]) -> bytes:
    return b"tsrv_" + sha256(f"{types} {sql}".encode()).hexdigest()[:32].encode()
