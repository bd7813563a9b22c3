"""
The interface of all databases.

A database is an asynchronously initialised module that carries out single
statements: L{IDatabase.read} and L{IDatabase.write}. A read is safe to repeat, so a
wrapper may have it in C{replay}. A write is a transaction of its own, which is on
the disk when its Deferred fires.

An error says whether the statement may have been carried out. After
L{DatabaseUnavailable} it was not, and a retry may help; after
L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} nobody knows; after any other error it
was not, and a retry would fail too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

from twisted.internet.defer import Deferred

from ..asyncmodule import IAsyncModule
from ..errors import Unavailable

__all__ = [
    "ConstraintViolated",
    "DatabaseError",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "IDatabase",
    "Kind",
    "Row",
    "Schema",
    "Settings",
    "Statement",
    "UniqueViolated",
]

Kind: TypeAlias = Literal["sqlite", "postgresql"]

RETRY_AFTER_SECONDS: Final = 1.0

Row: TypeAlias = tuple[Any, ...]
"""
One row of a result: a tuple of integers, floats, strings, bytes and L{None}.
"""


class DatabaseError(Exception):
    """
    A statement was not carried out, and a retry would fail too.

    @ivar code: The SQLSTATE, or the name of SQLite's extended result code.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ConstraintViolated(DatabaseError):
    """
    The values violate a constraint.
    """


class UniqueViolated(ConstraintViolated):
    """
    The values violate a UNIQUE or PRIMARY KEY constraint.
    """


class DatabaseRefused(DatabaseError):
    """
    The database cannot be used, and no retry will help: the password is wrong, the
    database does not exist, the file is not a database. The message says what to do.
    """


class DatabaseUnavailable(Unavailable):
    """
    The database cannot be used now. The statement was not carried out.

    @ivar code: The SQLSTATE, or the name of SQLite's extended result code;
        C{queue_full} if too many statements wait; C{no_free_connection} if no
        connection was free in time; empty if the database was lost.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message, RETRY_AFTER_SECONDS)
        self.code = code


@dataclass(frozen=True)
class Statement:
    """
    One statement of SQL, for every kind of database. It must not begin or end a
    transaction, because each write is one::

        Statement("SELECT title FROM books WHERE id = ?")

    @ivar sql: SQL with a C{?} for each parameter, and no other question mark.
    """

    sql: str

    @cached_property
    def numbered(self) -> str:
        """
        The statement with C{$1}, C{$2} and so on, as PostgreSQL wants it.
        """
        first, *others = self.sql.split("?")
        return first + "".join(
            f"${number}{text}" for number, text in enumerate(others, 1)
        )


@dataclass(frozen=True)
class Schema:
    """
    The tables of one part of a program, and the statements that make them. To change
    the tables, append a version; each version runs once in each database::

        Schema("books", {"sqlite": [
            ["CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT)"],
            ["ALTER TABLE books ADD author TEXT"],
        ]})

    @ivar part: The name under which the database remembers the version.
    @ivar versions: For each kind of database, and each version beginning with 1, the
        statements that upgrade the tables from the previous version.
    @raise ValueError: The kinds have different numbers of versions.
    """

    part: str
    versions: Mapping[Kind, Sequence[Sequence[str]]]

    def __post_init__(self) -> None:
        if len(set(map(len, self.versions.values()))) > 1:
            raise ValueError(
                f"{self.part}: every kind of database must have the same number of "
                "versions"
            )


@dataclass(frozen=True)
class Settings:
    """
    The limits of a database.

    @ivar connections: Maximum number of connections; SQLite has one more, for writes.
    @ivar statementTimeout: Maximum time for one statement, in seconds.
    @ivar connectTimeout: Maximum time, in seconds, to connect; for an idle connection
        to answer; for another process to unlock SQLite's file; and for SQLite to stop
        after C{statementTimeout}. If SQLite does not stop in this time, its disk counts
        as stalled.
    @ivar limit: Maximum number of calls that wait for a connection. A further call
        fails with L{DatabaseUnavailable}.
    """

    connections: int = 4
    statementTimeout: float = 10.0
    connectTimeout: float = 5.0
    limit: int = 10_000


class IDatabase(IAsyncModule):
    """
    A database.

    Statements are constants of the program; pass values from outside as parameters.
    A call that is cancelled while it waits is never started. If it has started
    already, the statement continues, and its result is dropped.
    """

    def read(statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes nothing.

        @param statement: The statement. It may be carried out again after a loss.
        @param parameters: One value for each question mark: integers of 64 bits,
            floats, strings, bytes or L{None}.
        @return: A Deferred that fires with the rows. It fails with
            L{DatabaseUnavailable} or L{DatabaseError}.
        """

    def write(statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes something, as a transaction.

        @param statement: The statement; with C{RETURNING} it has rows.
        @param parameters: As for L{read}.
        @return: A Deferred that fires with the rows when the transaction is on the disk
            (not for PostgreSQL with C{synchronous_commit=off}). It fails with the
            errors of L{read}, with L{ConstraintViolated}, or with
            L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} if the connection broke, or
            the time limit expired, before the answer arrived.
        """

    def whenLost() -> Deferred[None]:
        """
        Wait for the loss or the closing of the database.

        @return: A Deferred that fires when the database is closed, and fails with
            L{DatabaseUnavailable}, which says why, when the database is lost. It fires
            before any call fails for that reason, except a write whose connection
            breaks before the other connections do.
        """

    def whenIdle() -> Deferred[None]:
        """
        Wait for the end of all calls in progress.

        @return: A Deferred that fires when no call is in progress: at once, or when
            all calls have ended, also by a loss or L{close}. The statement of a
            cancelled call counts until it ends, too.
        """

    def close() -> Deferred[None]:
        """
        Fail queued calls with L{DatabaseUnavailable}, let calls in progress finish
        within their time limit, and close all connections. This method may be called
        at any time, and repeatedly.

        @return: A Deferred that fires when all connections are closed.
        """
