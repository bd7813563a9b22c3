"""
The interface of all databases.

A database is an asynchronously initialised module that carries out single
statements: L{IDatabase.read} and L{IDatabase.write}. A read is safe to repeat, so a
wrapper may name it in C{replay}. A write is a transaction of its own, which is on
the disk when its Deferred fires.

An error says whether the statement may have been carried out. After
L{DatabaseUnavailable} it was not, and trying again may help; after
L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} nobody knows; after any other error it
was not, and trying again would not help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from twisted.internet.defer import Deferred

from ..asyncmodule import IAsyncModule
from ..errors import OutcomeUnknown, Unavailable

__all__ = [
    "ConstraintViolated",
    "DatabaseError",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "Engine",
    "IDatabase",
    "Location",
    "OutcomeUnknown",
    "Row",
    "Schema",
    "Settings",
    "Statement",
    "UniqueViolated",
]

Row: TypeAlias = tuple[Any, ...]
"""
One row of a result: integers, floats, strings, bytes and L{None}.
"""


class DatabaseError(Exception):
    """
    A statement was not carried out, and trying again would not help.

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
    The values exist already: a UNIQUE or PRIMARY KEY constraint.
    """


class DatabaseRefused(DatabaseError):
    """
    The database cannot be used, and no retry will help: the password is wrong, the
    database does not exist, the file is not a database. The message says what to do.
    """


class DatabaseUnavailable(Unavailable):
    """
    The database cannot be used now. The statement was not carried out.

    @ivar code: The SQLSTATE, or the name of SQLite's extended result code.
    """

    def __init__(
        self, message: str, retryAfter: float | None = None, code: str = ""
    ) -> None:
        super().__init__(message, retryAfter)
        self.code = code


@dataclass(frozen=True)
class Statement:
    """
    One statement, for every kind of database.

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
    The tables of one part of the program, and how they are made.

    @ivar part: The name under which the database remembers the version.
    @ivar sqlite: For each version, beginning with 1, the statements that make it
        from the version before.
    @ivar postgresql: The same for PostgreSQL, with as many versions.
    """

    part: str
    sqlite: Sequence[Sequence[str]]
    postgresql: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Settings:
    """
    How a database is used.

    @ivar connections: Maximum number of connections; SQLite has one more, to write.
    @ivar statementTimeout: Maximum time for one statement, in seconds.
    @ivar connectTimeout: Maximum time to connect, in seconds; also for an idle
        connection to show that the server is still there, and for SQLite to wait
        until another process unlocks the file.
    @ivar limit: Maximum number of calls that wait for a connection. One more fails
        with L{DatabaseUnavailable}.
    """

    connections: int = 4
    statementTimeout: float = 10.0
    connectTimeout: float = 5.0
    limit: int = 10_000


class IDatabase(IAsyncModule):
    """
    A database.

    Statements are constants of the program; values from outside are parameters.
    Cancelling a call gives it up: it is not started any more, or its answer is
    dropped.
    """

    def read(statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes nothing.

        @param statement: The statement. It may be carried out again after a loss.
        @param parameters: One for each question mark: integers of 64 bits, floats,
            strings, bytes or L{None}.
        @return: A Deferred that fires with the rows. It fails with
            L{DatabaseUnavailable} or L{DatabaseError}.
        """

    def write(statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes something, as a transaction.

        @param statement: The statement; C{RETURNING} makes it have rows.
        @param parameters: As for C{read}.
        @return: A Deferred that fires with the rows when the transaction is on the
            disk. It fails like that of C{read}; also with L{ConstraintViolated}, and
            with L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} if the connection
            broke, or the time was up, before the answer arrived.
        """

    def whenLost() -> Deferred[None]:
        """
        @return: A Deferred that fires when the database can no longer be used,
            before any call fails for that reason.
        """

    def close() -> Deferred[None]:
        """
        Fail queued calls with L{DatabaseUnavailable}, let calls in progress finish
        within their time limit, and close all connections. It may be called at any
        time, and repeatedly.
        """


@dataclass(frozen=True)
class Location:
    """
    Where a database is. Its representations do not show a password.

    @ivar kind: The kind of the database.
    @ivar target: The path of SQLite's file, or the URL for PostgreSQL, which may
        contain a password.
    """

    kind: Literal["sqlite", "postgresql"]
    target: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Location:
        """
        @param url: C{sqlite:PATH}, or C{postgresql://USER:PASSWORD@HOST/NAME} as
            libpq understands it.
        @return: The location.
        @raise ValueError: The URL is neither. The message does not repeat it.
        """
        scheme, _, rest = url.strip().partition(":")
        if scheme == "sqlite" and rest.removeprefix("//"):
            path = rest.removeprefix("//")
            if "\0" not in path and path != ":memory:":
                return cls("sqlite", path)
        elif scheme in ("postgresql", "postgres") and rest.startswith("//"):
            user, _, _ = rest[2:].rpartition("@")
            # libpq and urllib disagree about the end of such a password, and would
            # show what is behind it.
            if "#" in rest or set(user) & set("/?@[]"):
                raise ValueError(
                    "special characters in the URL of a database have to be written "
                    "as %XX: # as %23, / as %2F, ? as %3F, @ as %40"
                )
            try:
                urlsplit(url.strip())
            except ValueError:
                pass
            else:
                return cls("postgresql", f"postgresql:{rest}")
        raise ValueError(
            "the URL of a database is sqlite:PATH or "
            "postgresql://USER:PASSWORD@HOST:PORT/NAME"
        )

    @property
    def hasPassword(self) -> bool:
        """
        Whether the URL is a secret.
        """
        if self.kind == "sqlite":
            return False
        split = urlsplit(self.target)
        return ":" in split.netloc.rpartition("@")[0] or any(
            name in ("password", "sslpassword") for name, _ in parse_qsl(split.query)
        )

    def __str__(self) -> str:
        if self.kind == "sqlite":
            return f"sqlite:{self.target}"
        split = urlsplit(self.target)
        user, at, host = split.netloc.rpartition("@")
        return f"postgresql://{user.partition(':')[0]}{at}{host}{split.path}"


class Engine(Protocol):
    """
    One kind of database: L{IDatabase}'s methods on connections that are opened once
    and closed once.

    @ivar stuck: Number of threads that do not return, and that nobody waits for.
    """

    stuck: int

    def open(self) -> Deferred[None]:
        """
        Connect, and bring the schema up to date.

        @return: A Deferred that fails with L{DatabaseRefused} or
            L{DatabaseUnavailable}. If it fails or is cancelled, nothing stays open.
        """

    def read(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes nothing.
        """

    def write(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes something, as a transaction.
        """

    def whenLost(self) -> Deferred[None]:
        """
        Wait until the database can no longer be used.
        """

    def close(self) -> Deferred[None]:
        """
        Close all connections, those in use when their calls have finished.
        """
