"""
What is asked of SQLite, and how it is carried out: many statements at a time.

A thread and the reactor share a batch. The thread takes one statement after
the other out of it, and the reactor may take back those that have not begun:
each is taken by one of them.

A batch of reads is a read after the other. A batch of writes is one
transaction. A statement in it that fails leaves nothing behind, as SQLite itself
sees to, and concerns no other. Only one that fails half way leaves something: then
all is rolled back, and carried out again with a savepoint around each of them,
which takes twice as long. Nothing is answered before it is on the disk.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

from twisted.internet.defer import Deferred

from .interface import (
    ConstraintViolated,
    DatabaseError,
    DatabaseUnavailable,
    OutcomeUnknown,
    Row,
    Statement,
    UniqueViolated,
)

__all__ = [
    "LATER",
    "Batch",
    "Call",
    "Moved",
    "Reads",
    "Writes",
    "codeOf",
    "primaryOf",
    "unavailable",
]

LATER: Final = 1.0
"""
After how many seconds trying again is reasonable.
"""

_PASSING: Final = {
    sqlite3.SQLITE_ABORT,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_SCHEMA,
}
"""
What says nothing about the statement.
"""

_LOST: Final = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOTADB,
}
"""
What may be better with a new connection, and not before.
"""

_CERTAIN: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
}
"""
With these SQLite has not committed. With any other, the last page of the
transaction may be on the disk already, and be found there after a crash.
"""

_HARMLESS: Final = "no such "

_UNIQUE: Final = {
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
    sqlite3.SQLITE_CONSTRAINT_ROWID,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE,
}


class Moved(Exception):
    """
    The file is not at its path any more; nothing that is written into it would
    be found again.
    """


class _RolledBack(Exception):
    """
    The transaction was not to be committed, or is no more.
    """

    sqlite_errorcode = sqlite3.SQLITE_ABORT_ROLLBACK
    sqlite_errorname = "SQLITE_ABORT_ROLLBACK"


class _Half(Exception):
    """
    A statement has failed, and left something behind.
    """


def codeOf(error: BaseException | None) -> int:
    """
    @return: SQLite's extended result code, or 0 if the error is not SQLite's.
    """
    if isinstance(error, MemoryError):
        return sqlite3.SQLITE_NOMEM
    code = getattr(error, "sqlite_errorcode", 0)
    return code if isinstance(code, int) else 0


def primaryOf(error: BaseException | None) -> int:
    """
    @return: SQLite's primary result code, or 0 if the error is not SQLite's.
    """
    return codeOf(error) & 0xFF


def _nameOf(error: BaseException) -> str:
    name = getattr(error, "sqlite_errorname", None)
    return name if isinstance(name, str) else type(error).__name__


def _isLoss(error: BaseException) -> bool:
    code = codeOf(error)
    return (
        isinstance(error, Moved)
        or code & 0xFF in _LOST
        # Plain READONLY is a write among the reads.
        or (code & 0xFF == sqlite3.SQLITE_READONLY and code != code & 0xFF)
    )


def unavailable(code: str) -> DatabaseUnavailable:
    """
    @param code: The name of what keeps the database from carrying out a
        statement now.
    @return: What to say of it.
    """
    return DatabaseUnavailable(
        f"the database cannot carry out a statement now ({code})", LATER, code
    )


def _errorOf(error: BaseException, statement: Statement) -> Exception:
    # SQLite's and Python's messages may repeat what came from outside.
    primary, name = primaryOf(error), _nameOf(error)
    if primary == sqlite3.SQLITE_CONSTRAINT:
        unique = codeOf(error) in _UNIQUE
        kind = UniqueViolated if unique else ConstraintViolated
        return kind(f"a constraint does not hold ({name})", name)
    if primary in _PASSING or _isLoss(error):
        return unavailable(name)
    text = str(error)
    # What is not there is named by the program, and by nobody else.
    said = f": {text}" if text.startswith(_HARMLESS) else ""
    return DatabaseError(f"cannot carry out ({name}{said}): {statement.sql}", name)


class Call:
    """
    One statement, and what becomes of it.

    @ivar number: How many were asked for before.
    @ivar over: Whether nobody waits for the answer any more.
    @ivar rows: Its answer.
    @ivar error: What went wrong instead.
    """

    __slots__ = (
        "_leave",
        "answer",
        "error",
        "number",
        "over",
        "parameters",
        "rows",
        "statement",
    )

    def __init__(
        self,
        statement: Statement,
        parameters: tuple[object, ...],
        number: int,
        leave: Callable[[Call], None],
    ) -> None:
        """
        @param leave: Called when it is given up.
        """
        self.statement = statement
        self.parameters = parameters
        self.number = number
        self.over = False
        self.rows: list[Row] = []
        self.error: Exception | None = None
        self._leave = leave
        self.answer: Deferred[list[Row]] = Deferred(self._giveUp)

    def _giveUp(self, answer: Deferred[list[Row]]) -> None:
        self.over = True
        self._leave(self)

    def settle(self) -> None:
        """
        Answer, if somebody waits for it.
        """
        if not self.over:
            self.over = True
            if self.error is None:
                self.answer.callback(self.rows)
            else:
                self.answer.errback(self.error)

    def fail(self, error: Exception) -> None:
        """
        Answer with an error, if somebody waits for it.
        """
        self.error = error
        self.settle()


class Batch:
    """
    Statements that are carried out together.

    @ivar calls: Those that are neither answered nor taken back; the reactor's.
    @ivar latest: The number of the latest when it was handed over.
    @ivar todo: Those that have not begun.
    @ivar done: Those that are to be answered.
    @ivar begun: Whether the first has begun, or would if there were one.
    @ivar stopped: Whether it is too late to begin, or to be committed.
    @ivar refused: The name of what kept it from beginning, or nothing.
    @ivar lost: The name of what made the connection useless, or nothing.
    """

    latest = 0
    begun = False
    stopped = False
    refused = ""
    lost = ""

    def __init__(self, calls: Iterable[Call]) -> None:
        self.calls = dict.fromkeys(calls)
        self.todo = deque(self.calls)
        self.done: deque[Call] = deque()

    def carryOut(
        self, connection: sqlite3.Connection, check: Callable[[], None]
    ) -> None:
        """
        Carry out what is to do; in the thread of the connection.

        @param check: Raises L{Moved} if the connection is of no use.
        """
        raise NotImplementedError

    def unknown(self) -> Exception:
        """
        @return: What to say of a statement that has begun and does not end.
        """
        raise NotImplementedError

    def takeBack(self) -> list[Call]:
        """
        @return: Those that have not begun, in order; now they never will.
        """
        taken: list[Call] = []
        while True:
            try:
                call = self.todo.pop()
            except IndexError:
                break
            self.calls.pop(call, None)
            taken.append(call)
        taken.reverse()
        return taken

    def takeDone(self) -> list[Call]:
        """
        @return: Those that can be answered, in order, once.
        """
        taken: list[Call] = []
        while self.done:
            call = self.done.popleft()
            self.calls.pop(call, None)
            taken.append(call)
        return taken

    def _taken(self) -> Iterator[Call]:
        while True:
            try:
                call = self.todo.popleft()
            except IndexError:
                break
            if not call.over:
                yield call

    def _seen(self, error: Exception) -> None:
        if _isLoss(error):
            self.lost = _nameOf(error)


class Reads(Batch):
    """
    Statements that change nothing.
    """

    def carryOut(
        self, connection: sqlite3.Connection, check: Callable[[], None]
    ) -> None:
        """
        @see: L{Batch.carryOut}
        """
        self.begun = True
        try:
            check()
        except Moved as error:
            self.refused = self.lost = _nameOf(error)
            return
        execute = connection.execute
        for call in self._taken():
            try:
                call.rows = execute(call.statement.sql, call.parameters).fetchall()
            except Exception as error:
                call.error = _errorOf(error, call.statement)
                self._seen(error)
            self.done.append(call)
            if connection.in_transaction:
                # Whatever follows would be read as it was then.
                connection.rollback()
            if self.lost:
                break

    def unknown(self) -> Exception:
        """
        @see: L{Batch.unknown}
        """
        return DatabaseUnavailable("the database does not answer", LATER)


class Writes(Batch):
    """
    Statements that change something.
    """

    _careful = False
    _committing = False

    def carryOut(
        self, connection: sqlite3.Connection, check: Callable[[], None]
    ) -> None:
        """
        @see: L{Batch.carryOut}
        """
        calls: list[Call] = []

        def taken() -> Iterator[Call]:
            for call in self._taken():
                calls.append(call)
                yield call

        error = self._transaction(connection, check, taken())
        if isinstance(error, _Half):
            self._careful = True
            again = list(calls)
            for call in again:
                call.error = None
            error = self._transaction(connection, check, chain(again, taken()))
        if not self.begun:
            assert error is not None
            self.refused = _nameOf(error)
        elif primaryOf(error) == sqlite3.SQLITE_CONSTRAINT and len(calls) > 1:
            # One that is looked at only in the end: nobody knows whose it is.
            for call in calls:
                if call.error is None:
                    self._settle([call], self._transaction(connection, check, [call]))
        else:
            self._settle(calls, error)
        self.done.extend(calls)

    def _transaction(
        self,
        connection: sqlite3.Connection,
        check: Callable[[], None],
        calls: Iterable[Call],
    ) -> Exception | None:
        """
        @return: What has kept it from being committed.
        """
        self._committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            if self.stopped:
                raise _RolledBack
            self.begun = True
            for call in calls:
                self._statement(connection, call)
            check()
            if self.stopped:
                raise _RolledBack
            self._committing = True
            connection.execute("COMMIT")
        except Exception as error:
            self._seen(error)
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error as another:
                self.lost = _nameOf(another)
            return error
        return None

    def _statement(self, connection: sqlite3.Connection, call: Call) -> None:
        execute = connection.execute
        if self._careful:
            execute("SAVEPOINT one")
        changes = connection.total_changes
        try:
            call.rows = execute(call.statement.sql, call.parameters).fetchall()
        except Exception as error:
            call.error = _errorOf(error, call.statement)
            self._seen(error)
            if self.lost or not connection.in_transaction:
                raise _RolledBack from None
            if self._careful:
                execute("ROLLBACK TO one")
            elif connection.total_changes != changes:
                raise _Half from None
        if self._careful:
            execute("RELEASE one")

    def _settle(self, calls: Iterable[Call], error: Exception | None) -> None:
        if error is None:
            return
        certain = not self._committing or primaryOf(error) in _CERTAIN
        if not certain:
            self.lost = _nameOf(error)
        for call in calls:
            if call.error is None:
                if not certain:
                    call.error = self.unknown()
                elif primaryOf(error) == sqlite3.SQLITE_CONSTRAINT:
                    call.error = _errorOf(error, call.statement)
                else:
                    call.error = unavailable(_nameOf(error))

    def unknown(self) -> Exception:
        """
        @see: L{Batch.unknown}
        """
        return OutcomeUnknown("write")
