"""
Statements on one connection of the pool.

L{PooledConnection} does the work of a psycopg cursor, with two differences. It knows
whether a statement may have reached the server when the connection breaks. Behind a
pooler such as PgBouncer, which lends one server connection to several clients, it
leaves nothing behind on the server: each statement sets the time limit of its own
transaction, and no statement is prepared.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import psycopg
from psycopg import generators, pq
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.numeric import Int8Dumper

from ..errors import OutcomeUnknown
from .engine import Call
from .interface import DatabaseError, DatabaseUnavailable, Row
from .sqlstate import UNKNOWN_OUTCOME, errorOf
from .twistedpsycopg import Connection

__all__ = ["PooledConnection"]

MAX_PREPARED_STATEMENTS: Final = 100
"""
Maximum number of statements prepared on one connection; further ones are sent in full.
"""

MAX_PARAMETERS: Final = 65_535
"""
Maximum number of parameters in the protocol of PostgreSQL.
"""

_NOT_PREPARED: Final = (b"0A000", b"26000", b"42P05")
"""
The SQLSTATEs for a prepared statement that does not exist, no longer fits the tables,
or was prepared by another client of a pooler. The statement was not carried out.
"""

_SET_LIMIT: Final = b"SELECT set_config('statement_timeout', $1, true)"

_TUPLES: Final = pq.ExecStatus.TUPLES_OK
_FATAL: Final = pq.ExecStatus.FATAL_ERROR
_COPY: Final = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)

Results = list[pq.abc.PGresult]


class PooledConnection:
    """
    A connection that carries out one call at a time.

    @ivar call: The call in progress.
    @ivar deadline: The time at which the call in progress expires.
    @ivar lastAnswer: The time of the server's last answer.
    """

    def __init__(self, connection: Connection[Any], limit: str | None = None) -> None:
        """
        @param connection: A connection in autocommit mode that nobody else uses.
        @param limit: The time limit for each statement, in milliseconds, if the
            session on the server has none.
        """
        self.connection = connection
        self.call: Call | None = None
        self.deadline = 0.0
        self.lastAnswer = 0.0
        # psycopg uses the smallest type that holds a number; each type would need a
        # prepared statement of its own.
        connection.adapters.register_dumper(int, Int8Dumper)
        self._transformer = Transformer(connection)
        self._prepared: set[bytes] = set()
        self._limit = limit
        self._canPrepare = limit is None

    async def carryOut(self, call: Call) -> list[Row] | Exception:
        """
        Carry out a call. Afterwards the connection is free again, or closed.

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
                return _interrupted(call, f"the connection was lost: {error}")
            if call.isSent and call.isWrite:
                # psycopg cannot convert a column of the answer.
                return OutcomeUnknown("write")
            # psycopg cannot convert a parameter; its message may repeat the parameter.
            code = getattr(error, "sqlstate", None) or "22000"
            reason = type(error).__name__
            text = f"cannot carry out: {call.statement.sql}: {reason}"
            return DatabaseError(text, code)

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
        sql = call.statement.numbered
        count = len(call.parameters)
        if count > MAX_PARAMETERS:
            raise psycopg.DataError("too many parameters")
        values = transformer.dump_sequence(call.parameters, [PyFormat.AUTO] * count)
        types, formats = transformer.types, transformer.formats
        # If the server has closed the connection, nothing has been sent.
        pgconn.consume_input()
        name = _nameOf(sql, types)
        hasRoom = self._canPrepare and len(self._prepared) < MAX_PREPARED_STATEMENTS
        if hasRoom and name not in self._prepared:
            pgconn.send_prepare(name, sql.encode(), types)
            results = yield from generators.execute(pgconn)
            if _codeOf(results) is not None:
                return results
            self._prepared.add(name)
        if call.answer.called:
            # The caller has cancelled the call.
            return []
        call.isSent = True
        if self._limit is not None:
            parameters = sql.encode(), values, types, formats
            results = yield from self._sendWithLimit(self._limit.encode(), *parameters)
            return results
        if name in self._prepared:
            pgconn.send_query_prepared(name, values, formats)
        else:
            pgconn.send_query_params(sql.encode(), values, types, formats)
        results = yield from generators.execute(pgconn)
        return results

    def _sendWithLimit(self, limit: bytes, *statement: Any) -> PQGen[Results]:
        """
        Send a statement behind another one that sets its time limit. Both are one
        transaction, in one round trip.
        """
        pgconn = self.connection.pgconn
        pgconn.enter_pipeline_mode()
        pgconn.send_query_params(_SET_LIMIT, [limit])
        pgconn.send_query_params(*statement)
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        results: Results = []
        while pgconn.status == pq.ConnStatus.OK:
            part = yield from generators.fetch_many(pgconn)
            if part and part[0].status == pq.ExecStatus.PIPELINE_SYNC:
                pgconn.exit_pipeline_mode()
                break
            results += part
            if part and part[-1].status in _COPY:
                # fetch_many() would return this result again and again.
                break
        hasLimit = results and results[0].status != _FATAL
        return results[1:] if hasLimit else results

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
                    # A pooler may have lost its server, or an earlier result may mean
                    # that the statement was committed.
                    isPooler = not error.code or error.code.startswith("08")
                    isUnknown = isUnknown or isPooler or result is not results[0]
                return _interrupted(call, str(error)) if isUnknown else error
        if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            # The server rolls it back.
            connection.abort(f"COPY or an open transaction: {call.statement.sql}")
            return DatabaseError(connection.lossReason, "0A000")
        return rows


def _interrupted(call: Call, reason: str) -> Exception:
    if call.isSent and call.isWrite:
        return OutcomeUnknown("write")
    return DatabaseUnavailable(reason)


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
