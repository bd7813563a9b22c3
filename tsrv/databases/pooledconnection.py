"""
Statements on one connection of the pool.

This does what a cursor of psycopg does, with two differences. It knows whether a
statement may have reached the server when the connection breaks. And the name of a
prepared statement is made from its text, so that a pooler such as PgBouncer, which
lends one connection to several clients, cannot confuse two statements.
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

from .interface import DatabaseError, OutcomeUnknown, Row
from .sqlstate import READ_ONLY, UNKNOWN_OUTCOME, errorOf, unavailable
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

_TUPLES: Final = pq.ExecStatus.TUPLES_OK
_FATAL: Final = pq.ExecStatus.FATAL_ERROR

Results = list[pq.abc.PGresult]


class Call:
    """
    A statement that a caller waits for.

    @ivar answer: The Deferred of the caller; L{None} once it has fired.
    @ivar isSent: Whether the statement may have reached the server.
    @ivar onCancel: Called with the call if the caller gives up while it is queued.
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
        return unavailable(reason)


class PooledConnection:
    """
    A connection that carries out one call at a time.

    @ivar call: The call in progress.
    @ivar deadline: When the call in progress has taken too long, in seconds.
    @ivar lastAnswer: When the server answered last, in seconds.
    """

    def __init__(self, connection: Connection[Any]) -> None:
        """
        @param connection: A connection in autocommit mode that nobody else uses.
        """
        self.connection = connection
        self.call: Call | None = None
        self.deadline = 0.0
        self.lastAnswer = 0.0
        # psycopg takes the smallest type that a number fits into, and a statement
        # would be prepared for each of them.
        connection.adapters.register_dumper(int, Int8Dumper)
        self._transformer = Transformer(connection)
        self._prepared: set[bytes] = set()
        self._canPrepare = True

    async def carryOut(self, call: Call) -> list[Row] | Exception:
        """
        Carry out a call. Afterwards the connection is closed, or free.

        @return: The rows, or the error for the caller.
        """
        connection = self.connection
        try:
            results = await connection.wait(self._execute(call))
            if connection.closed:
                connection.abort(connection.pgconn.get_error_message())
            return self._outcome(call, results)
        except Exception as error:
            if connection.closed:
                return call.interrupted(f"the connection was lost: {error}")
            if call.isSent and call.isWrite:
                # psycopg cannot convert a column of an answer.
                return OutcomeUnknown("write")
            # psycopg cannot convert a parameter; its message may repeat it.
            code = getattr(error, "sqlstate", None) or "22000"
            reason = type(error).__name__
            return DatabaseError(f"cannot carry out: {call.sql}: {reason}", code)

    def _execute(self, call: Call) -> PQGen[Results]:
        results: Results = yield from self._send(call)
        if self._canPrepare and _codeOf(results) in _NOT_PREPARED:
            self._canPrepare = False
            self._prepared.clear()
            results = yield from self._send(call)
        return results

    def _send(self, call: Call) -> PQGen[Results]:
        pgconn, transformer = self.connection.pgconn, self._transformer
        results: Results
        count = len(call.parameters)
        if count > MAX_PARAMETERS:
            raise psycopg.DataError("too many parameters")
        values = transformer.dump_sequence(call.parameters, [PyFormat.AUTO] * count)
        types, formats = transformer.types, transformer.formats
        # If the server has closed the connection, nothing has been sent.
        pgconn.consume_input()
        name = _nameOf(call.sql, types)
        hasRoom = self._canPrepare and len(self._prepared) < MAX_PREPARED_STATEMENTS
        if hasRoom and name not in self._prepared:
            pgconn.send_prepare(name, call.sql.encode(), types)
            results = yield from generators.execute(pgconn)
            if _codeOf(results) is not None:
                return results
            self._prepared.add(name)
        if call.answer is None:
            # The caller gave up.
            return []
        call.isSent = True
        if name in self._prepared:
            pgconn.send_query_prepared(name, values, formats)
        else:
            pgconn.send_query_params(call.sql.encode(), values, types, formats)
        results = yield from generators.execute(pgconn)
        return results

    def _outcome(self, call: Call, results: Results) -> list[Row] | Exception:
        connection = self.connection
        rows: list[Row] = []
        for result in results:
            if result.status == _TUPLES:
                self._transformer.set_pgresult(result)
                rows = self._transformer.load_rows(0, result.ntuples, tuple)
            elif result.status == _FATAL:
                error = errorOf(result)
                isUnknown = error.code in UNKNOWN_OUTCOME
                if connection.closed:
                    # A pooler may have lost its server, or the statement had been
                    # committed before.
                    isPooler = not error.code or error.code.startswith("08")
                    isUnknown = isUnknown or isPooler or result is not results[0]
                if error.code == READ_ONLY:
                    connection.abort("the server accepts no writes")
                return call.interrupted(str(error)) if isUnknown else error
        if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            # COPY, or a transaction that is left open: the server rolls it back.
            connection.abort(f"not a statement of its own: {call.sql}")
            return DatabaseError(connection.lossReason, "0A000")
        return rows


def _codeOf(results: Results) -> bytes | None:
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
