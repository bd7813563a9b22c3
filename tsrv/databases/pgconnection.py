"""
One connection to PostgreSQL, watched by the reactor.

What libpq does takes no thread: it says whether it waits for its socket to be
readable or writable, and the reactor says when it is. The socket is watched
also while nothing is asked, so that its end is noticed at once.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from .interface import (
    DatabaseError,
    Row,
)
from .pgcall import (
    READ_ONLY,
    Call,
    errorOf,
    nameOf,
    textOf,
)

__all__ = ["Connection", "Owner"]

_BAD: Final = pq.ConnStatus.BAD
_IDLE: Final = pq.TransactionStatus.IDLE
_TUPLES: Final = pq.ExecStatus.TUPLES_OK
_FATAL: Final = pq.ExecStatus.FATAL_ERROR
_FINE: Final = (_TUPLES, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
_COPIES: Final = (
    pq.ExecStatus.COPY_IN,
    pq.ExecStatus.COPY_OUT,
    pq.ExecStatus.COPY_BOTH,
)

_MOST: Final = 100
"""
How many statements are prepared on one connection; others are sent in full.
"""

_UNPREPARED: Final = ("0A000", "26000", "42P05")
"""
What is answered when what was prepared is gone, does not fit the tables any
more, or was prepared by somebody else: a pooler may be in between.
"""


_LOST: Final = "the connection to PostgreSQL was lost"


class Owner(Protocol):
    """
    Who has a connection.
    """

    def freed(self, connection: Connection) -> None:
        """
        It can take another statement. The last one is answered after that.
        """

    def broke(self, connection: Connection, reason: str) -> None:
        """
        It is gone. What it was busy with fails after that.
        """

    def dropped(self, connection: Connection) -> None:
        """
        It is gone, and another can be made. What it was busy with fails after
        that.
        """

    def settled(self) -> None:
        """
        What a connection was busy with, when it was freed, broke or was dropped,
        has been answered.
        """


@implementer(IReadWriteDescriptor)
class Connection:
    """
    One connection, which carries out one statement at a time.

    @ivar call: What it is busy with.
    @ivar limit: How many seconds that may take.
    @ivar until: When these are over.
    @ivar life: When the server last said something.
    """

    def __init__(self, reactor: Any, pgconn: pq.abc.PGconn, owner: Owner) -> None:
        """
        @param reactor: Watches the socket.
        @param pgconn: A connection that has been made, and does not block.
        @param owner: Who is told what happens.
        """
        self._reactor = reactor
        self._pgconn = pgconn
        # libpq closes its own when a connection breaks, before the reactor has
        # been told not to watch it any more.
        self._fd = os.dup(pgconn.socket)
        self._owner = owner
        self._isOpen = True
        self._transformer = Transformer()
        self._prepared: set[bytes] = set()
        self._prepares = True
        self._preparing = b""
        self._results: list[pq.abc.PGresult] = []
        self.call: Call | None = None
        self.life: float = reactor.seconds()
        self.limit = 0.0
        self.until = 0.0
        reactor.addReader(self)

    def ask(self, sql: str, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement while nobody else does.

        @param sql: The statement, with numbered parameters.
        @param parameters: The parameters.
        @return: A Deferred of the rows.
        """
        call = Call("check", sql, parameters)
        answer = call.answer
        assert answer is not None
        self.carryOut(call, 0.0)
        return answer

    def carryOut(self, call: Call, limit: float) -> None:
        """
        Carry out a statement.

        @param limit: How many seconds it may take; who has the connection sees
            to that.
        """
        self.call = call
        self.limit = limit
        self.until = self._reactor.seconds() + limit
        try:
            # If it has ended by now, nothing has been sent.
            self._pgconn.consume_input()
            self._send(call)
        except psycopg.Error:
            self._break()

    def _send(self, call: Call) -> None:
        pgconn = self._pgconn
        if call.isPrepared and self._prepares:
            name = nameOf(call.sql, call.types)
            if name in self._prepared:
                call.isSent = True
                pgconn.send_query_prepared(name, call.values, call.formats)
            elif len(self._prepared) < _MOST:
                self._preparing = name
                pgconn.send_prepare(name, call.sql.encode(), call.types)
            else:
                self._sendWhole(call)
        else:
            self._sendWhole(call)
        if pgconn.flush():
            self._reactor.addWriter(self)

    def _sendWhole(self, call: Call) -> None:
        call.isSent = True
        self._pgconn.send_query_params(
            call.sql.encode(), call.values, call.types, call.formats
        )

    def fileno(self) -> int:
        """
        @return: The number of the socket.
        """
        return self._fd

    def logPrefix(self) -> str:
        """
        @return: What the reactor calls it.
        """
        return "PostgreSQL"

    def doRead(self) -> None:
        """
        Take what the server has sent.
        """
        pgconn = self._pgconn
        self.life = self._reactor.seconds()
        try:
            pgconn.consume_input()
            # Without anything asked, this takes what is told to everybody.
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    break
                if result.status in _COPIES:
                    self._drop("COPY has no answer that could be given")
                    return
                self._results.append(result)
                if result.status not in _FINE and not result.error_field(
                    pq.DiagnosticField.SQLSTATE
                ):
                    # It ended, or has begun to speak of something else.
                    self._break()
                    return
            else:
                return
            while pgconn.notifies():
                pass
        except psycopg.Error:
            self._break()
            return
        if self.call is not None:
            self._answered(self.call)

    def doWrite(self) -> None:
        """
        Send what could not be sent yet.
        """
        try:
            if self._pgconn.flush() == 0:
                self._reactor.removeWriter(self)
        except psycopg.Error:
            self._break()

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor has found that the socket has ended, or ends itself.
        """
        self._break()

    def _answered(self, call: Call) -> None:
        """
        The server is ready for the next statement.
        """
        results, self._results = self._results, []
        preparing, self._preparing = self._preparing, b""
        code, outcome = self._outcomeOf(results)
        if code in _UNPREPARED and call.isPrepared and self._prepares:
            # It has not been carried out.
            self._prepares = False
            preparing = preparing or b"?"
            code = ""
        if preparing and not code:
            self._prepared.add(preparing)
            call.isSent = False
            if call.answer is None:
                outcome = []
            else:
                try:
                    self._send(call)
                except psycopg.Error:
                    self._break()
                return
        if call.kind != "check" and self._pgconn.transaction_status != _IDLE:
            self._drop("it leaves a transaction open: that is done for it")
            return
        self.call = None
        if code == READ_ONLY:
            self.close()
            self._owner.broke(self, "the server cannot be written to")
        else:
            self._owner.freed(self)
        call.answered(code, outcome)
        self._owner.settled()

    def _outcomeOf(
        self, results: list[pq.abc.PGresult]
    ) -> tuple[str, list[Row] | Exception]:
        """
        @return: The SQLSTATE, if there was an error, and what to answer.
        """
        rows: list[Row] = []
        for result in results:
            if result.status == _TUPLES:
                transformer = self._transformer
                transformer.set_pgresult(result)
                rows = transformer.load_rows(0, result.ntuples, tuple)
            elif result.status == _FATAL:
                fields = [
                    textOf(result.error_field(field) or b"")
                    for field in (
                        pq.DiagnosticField.SQLSTATE,
                        pq.DiagnosticField.MESSAGE_PRIMARY,
                        pq.DiagnosticField.CONSTRAINT_NAME,
                    )
                ]
                return fields[0], errorOf(*fields)
        return "", rows

    def _break(self) -> None:
        """
        There will be no more answers.
        """
        if not self._isOpen:
            return
        reason = textOf(self._pgconn.error_message) or "the connection has ended"
        call, results = self.call, self._results
        self.close()
        code, outcome = self._outcomeOf(
            [result for result in results if result.status == _FATAL]
        )
        self._owner.broke(self, reason)
        if call is not None:
            if isinstance(outcome, Exception):
                completed = any(result.status in _FINE for result in results)
                call.ended(code, outcome, completed)
            else:
                call.settle(call.interrupted(f"{_LOST}: {reason}"))
        self._owner.settled()

    def _drop(self, reason: str) -> None:
        """
        End it, because of what it was asked to do: the server rolls that back.
        """
        call = self.call
        assert call is not None
        self.close()
        self._owner.dropped(self)
        call.settle(DatabaseError(f"cannot carry out: {call.sql}: {reason}", "0A000"))
        self._owner.settled()

    def giveUp(self, reason: str) -> None:
        """
        End it, because it takes too long.
        """
        call = self.call
        self.close()
        self._owner.broke(self, reason)
        if call is not None:
            call.settle(call.interrupted(reason))
        self._owner.settled()

    def close(self) -> None:
        """
        End it, with a word to the server. The owner is not told.
        """
        if not self._isOpen:
            return
        self._isOpen = False
        self.call = None
        self._results = []
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._pgconn.finish()
        os.close(self._fd)
