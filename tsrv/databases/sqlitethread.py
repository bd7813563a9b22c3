"""
Batches of calls: the work of a thread of SQLite.

One thread and the reactor share a batch. The thread takes one call after the other
from the batch; the reactor may take back calls that have not begun. Taking is atomic:
either the thread or the reactor takes a call, never both.

A batch of reads is one statement after the other. A batch of writes is one
transaction, and no call finishes before the commit. SQLite undoes a failed statement,
so the failure does not affect the other statements. There are two exceptions: a
statement that fails half way and leaves changes behind, and a constraint that SQLite
checks at the commit. Then the transaction is rolled back, and each of its statements
is carried out again in a transaction of its own.
"""

from __future__ import annotations

import re
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from ..errors import OutcomeUnknown
from .engine import Call
from .interface import (
    ConstraintViolated,
    DatabaseError,
    DatabaseUnavailable,
    Statement,
    UniqueViolated,
)
from .sqlitefile import DAMAGED, TEMPORARY, File, FileMoved, nameOf

__all__ = ["Batch", "Reads", "Writes", "refusedError"]

_NEEDS_NEW_CONNECTION: Final = re.compile(
    # SQLITE_READONLY itself means that a statement of read() tried to write.
    "FileMoved|SQLITE_(CANTOPEN|IOERR|NOTADB|READONLY_)"
)

_NOT_COMMITTED: Final = re.compile("SQLITE_(BUSY|CONSTRAINT|FULL|INTERRUPT)")
"""
Errors of COMMIT after which the transaction is undone. After any other error, its last
page may be on the disk, so the transaction may count as committed after a crash.
"""

_CONSTRAINT: Final = re.compile("SQLITE_CONSTRAINT")
_UNIQUE: Final = re.compile("SQLITE_CONSTRAINT_(PRIMARYKEY|ROWID|UNIQUE)")


class _RolledBack(Exception):
    """
    The transaction ended: SQLite rolled it back, or its time limit expired.
    """

    sqlite_errorname = "SQLITE_ABORT_ROLLBACK"


class _HalfDone(_RolledBack):
    """
    A statement failed and left changes behind.
    """


def refusedError(code: str) -> DatabaseUnavailable:
    """
    Return the error of a statement that cannot be carried out now.
    """
    text = f"the database cannot carry out a statement now ({code})"
    return DatabaseUnavailable(text, code)


def _errorOf(error: BaseException, statement: Statement) -> Exception:
    # Do not repeat the text of the error: it may contain parameters.
    name = nameOf(error)
    if _CONSTRAINT.match(name):
        kind = UniqueViolated if _UNIQUE.match(name) else ConstraintViolated
        return kind(f"the values violate a constraint ({name})", name)
    if TEMPORARY.match(name) or _NEEDS_NEW_CONNECTION.match(name):
        return refusedError(name)
    # But show the name of a missing table or column: it comes from the statement.
    detail = f": {error}" if str(error).startswith("no such ") else ""
    return DatabaseError(f"cannot carry out ({name}{detail}): {statement.sql}", name)


class Batch:
    """
    Calls that one thread carries out together.

    @ivar behind: The calls that were queued when the thread got the batch.
    @ivar begun: Whether the thread has begun with the first call.
    @ivar stopped: Set by the reactor when the time limit has expired.
    @ivar refused: The error that prevented the start of the batch, or C{""}.
    @ivar lost: The error that made the connection useless, or C{""}.
    """

    begun = False
    stopped = False
    refused = ""
    lost = ""

    def __init__(self, calls: Iterable[Call], behind: Sequence[Call]) -> None:
        self.behind = behind
        self._todo = deque(calls)
        self._finished: deque[Call] = deque()
        # Only the reactor's thread uses this dictionary.
        self._unfinished = dict.fromkeys(self._todo)

    def takeBack(self) -> list[Call]:
        """
        Return the calls that have not begun, in order. The thread will not begin them.
        """
        taken: list[Call] = []
        try:
            while True:
                taken.append(self._todo.pop())
                del self._unfinished[taken[-1]]
        except IndexError:
            taken.reverse()
            return taken

    def takeFinished(self) -> list[Call]:
        """
        Return the calls that have finished since the last time, in order.
        """
        taken = [self._finished.popleft() for _ in range(len(self._finished))]
        for call in taken:
            del self._unfinished[call]
        return taken

    def giveUp(self, reason: str) -> list[Call]:
        """
        Return all calls, because the thread is blocked. The outcome of writes that have
        begun is unknown.
        """
        self.lost = reason
        calls = self.takeFinished()
        for call in self.takeBack():
            call.outcome = refusedError(reason)
            calls.append(call)
        for call in self._unfinished:
            # A read has changed nothing.
            error = OutcomeUnknown("write") if call.isWrite else refusedError(reason)
            call.outcome = error
            calls.append(call)
        return calls

    def _next(self) -> Iterator[Call]:
        try:
            while True:
                call = self._todo.popleft()
                if not call.answer.called:
                    yield call
        except IndexError:
            # The reactor may have taken the last call.
            return

    def _noteLoss(self, error: Exception) -> None:
        if isinstance(error, FileMoved):
            self.lost = str(error)
        elif _NEEDS_NEW_CONNECTION.match(nameOf(error)):
            self.lost = nameOf(error)


class Reads(Batch):
    """
    Statements that change nothing: one after the other.
    """

    def carryOut(self, connection: sqlite3.Connection, file: File) -> None:
        """
        Carry out the calls.
        """
        self.begun = True
        try:
            file.check()
        except FileMoved as error:
            self.refused, self.lost = nameOf(error), str(error)
            return
        execute = connection.execute
        for call in self._next():
            try:
                call.outcome = execute(call.statement.sql, call.parameters).fetchall()
            except Exception as error:
                call.outcome = _errorOf(error, call.statement)
                self._noteLoss(error)
                if DAMAGED.match(nameOf(error)):
                    # The file may be intact again, but not SQLite's cache: drop it.
                    connection.execute("PRAGMA shrink_memory")
            self._finished.append(call)
            if connection.in_transaction:
                # An open transaction would hide all later changes from further reads.
                connection.rollback()
            if self.lost:
                break


class Writes(Batch):
    """
    Statements that change something: one transaction for all of them, or if that is
    not possible, a transaction for each.
    """

    def carryOut(self, connection: sqlite3.Connection, file: File) -> None:
        """
        Carry out the calls.
        """
        together = self._transaction(connection, file, None)
        while not together and self._todo:
            if self.stopped or self.refused or self.lost:
                break
            self._transaction(connection, file, 1)

    def _transaction(
        self, connection: sqlite3.Connection, file: File, count: int | None
    ) -> bool:
        """
        Carry out C{count} calls, or all, in one transaction.

        @return: Whether the calls have finished. Otherwise, carry out each of them
            again, alone.
        """
        calls: list[Call] = []
        begun = committing = False
        error: Exception | None = None
        try:
            connection.execute("BEGIN IMMEDIATE")
            if self.stopped:
                raise _RolledBack
            begun = self.begun = True
            for call in islice(self._next(), count):
                calls.append(call)
                self._execute(connection, call)
            file.check()
            if self.stopped:
                raise _RolledBack
            committing = True
            connection.execute("COMMIT")
        except Exception as raised:
            error = raised
            self._noteLoss(error)
            self._rollBack(connection)
        if error is not None and not begun:
            self.refused = nameOf(error)
        elif error is not None:
            constraint = committing and _CONSTRAINT.match(nameOf(error))
            isOfOneCall = constraint or isinstance(error, _HalfDone)
            if isOfOneCall and len(calls) > 1 and not (self.stopped or self.lost):
                self._todo.extendleft(reversed(calls))
                return False
            self._fail(calls, error, committing)
        self._finished.extend(calls)
        return True

    def _execute(self, connection: sqlite3.Connection, call: Call) -> None:
        execute, changes = connection.execute, connection.total_changes
        try:
            # Keep no cursor in a variable: SQLite counts changes when Python frees it.
            call.outcome = execute(call.statement.sql, call.parameters).fetchall()
        except Exception as error:
            call.outcome = _errorOf(error, call.statement)
            self._noteLoss(error)
            if self.lost or not connection.in_transaction:
                raise _RolledBack from None
            if connection.total_changes != changes:
                raise _HalfDone from None

    def _rollBack(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self.lost = nameOf(error)

    def _fail(self, calls: Sequence[Call], error: Exception, committing: bool) -> None:
        name = nameOf(error)
        unknown = committing and not _NOT_COMMITTED.match(name)
        if unknown:
            self.lost = name
        for call in calls:
            if not call.hasFailed:
                known = _errorOf(error, call.statement)
                call.outcome = OutcomeUnknown("write") if unknown else known
