"""
Two real databases behind one interface.

A database is an asynchronously initialised module: C{initialize()} connects
and brings the schema up to date, C{whenLost()} tells that the connections are
gone, C{close()} ends them. In between there are only two things to ask of it:
L{IDatabase.read} and L{IDatabase.write}, each of one statement. A read is safe
to make twice, and so may be named in a wrapper's C{replay}. A write is a
transaction of its own: when it is answered, it is on the disk.

What goes wrong says whether the statement may have been carried out. A
L{DatabaseUnavailable} says that it was not; an
L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} that nobody knows; any other
error, that it was not, and that to try again would not help.
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
What one row of a result is: integers, floats, texts, bytes and L{None}.
"""


class DatabaseError(Exception):
    """
    A statement could not be carried out, and trying again would not help.

    @ivar code: The SQLSTATE, or the name of SQLite's extended result code.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ConstraintViolated(DatabaseError):
    """
    What was to be written contradicts a constraint.
    """


class UniqueViolated(ConstraintViolated):
    """
    What was to be written already exists: a UNIQUE or PRIMARY KEY constraint.
    """


class DatabaseRefused(DatabaseError):
    """
    The database cannot be had, and no retry will cure that: the password is
    wrong, there is no such database, the file is none. The message says what
    to do.
    """


class DatabaseUnavailable(Unavailable):
    """
    The database cannot carry out a statement, or be connected to, now. The
    statement has not been carried out, and never will be.

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
    One statement, for either database.

    @ivar sql: SQL with a C{?} for each parameter, and no other question mark.
    """

    sql: str

    @cached_property
    def numbered(self) -> str:
        """
        The same with C{$1}, C{$2} and so on, as PostgreSQL has it.
        """
        first, *others = self.sql.split("?")
        return first + "".join(
            f"${number}{text}" for number, text in enumerate(others, 1)
        )


@dataclass(frozen=True)
class Schema:
    """
    The tables of one part of the program, and how they have come to be.

    @ivar part: The name under which the database remembers their version.
    @ivar sqlite: For each version, beginning with 1, the statements that make
        it from the version before.
    @ivar postgresql: The same, in PostgreSQL's words; there are as many.
    """

    part: str
    sqlite: Sequence[Sequence[str]]
    postgresql: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Settings:
    """
    How a database is used.

    @ivar connections: How many connections there are at most for reading;
        PostgreSQL's are for all.
    @ivar statementTimeout: How long one statement may take, in seconds.
    @ivar connectTimeout: How long it may take to connect, in seconds; also how
        long an idle connection may take to show that it is still there, and how
        long SQLite waits for another process to unlock the file.
    @ivar limit: How many statements may wait for a connection; one more fails
        at once with L{DatabaseUnavailable}.
    """

    connections: int = 4
    statementTimeout: float = 10.0
    connectTimeout: float = 5.0
    limit: int = 10_000


class IDatabase(IAsyncModule):
    """
    A database.

    Each statement is one that is prepared in the program; nothing that came
    from outside is ever in it. To cancel an answer gives the statement up: it
    is not carried out if it has not begun; if it has, its answer is dropped.
    """

    def read(statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes nothing.

        @param statement: The statement. It is carried out again if the
            connection breaks, so it really must not change anything.
        @param parameters: As many as it has question marks: integers of 64
            bits, floats, texts, bytes or L{None}.
        @return: A Deferred that fires with the rows. It fails with
            L{DatabaseUnavailable} if that is not possible now, and
            L{DatabaseError} if it never is.
        """

    def write(statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes something, as a transaction.

        @param statement: The statement; C{RETURNING} makes it have rows.
        @param parameters: As for C{read}.
        @return: A Deferred that fires with the rows when the transaction is on
            the disk. It fails as that of C{read}; also with
            L{ConstraintViolated}, and with
            L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} if the connection
            broke, or the time was up, before the answer was there.
        """

    def whenLost() -> Deferred[None]:
        """
        @return: A Deferred that fires when the database, once initialised, no
            longer is; before that makes any call fail.
        """

    def close() -> Deferred[None]:
        """
        End what waits with L{DatabaseUnavailable}, what has begun by its time
        limit, and all connections. It may be called again, and at any time.
        """


@dataclass(frozen=True)
class Location:
    """
    Where a database is. What it looks like has no password in it.

    @ivar kind: Which database.
    @ivar target: The path of SQLite's file, or the URL for PostgreSQL, which
        may have a password in it.
    """

    kind: Literal["sqlite", "postgresql"]
    target: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Location:
        """
        @param url: C{sqlite:PATH}, or C{postgresql://USER:PASSWORD@HOST/NAME}
            as libpq has it.
        @return: The location.
        @raise ValueError: It is neither. The message does not repeat it.
        """
        scheme, _, rest = url.strip().partition(":")
        if scheme == "sqlite" and rest.removeprefix("//"):
            path = rest.removeprefix("//")
            if "\0" not in path and path != ":memory:":
                return cls("sqlite", path)
        elif scheme in ("postgresql", "postgres") and rest.startswith("//"):
            user, _, _ = rest[2:].rpartition("@")
            # libpq and others do not agree where such a password ends, and what
            # is behind that would be shown.
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
    What a kind of database is made of: connections that are opened once, and
    closed once.

    @ivar stuck: How many threads have not come back, and nobody waits for them.
    """

    stuck: int

    def open(self) -> Deferred[None]:
        """
        Connect, and bring the schema up to date.

        @return: A Deferred that fails with L{DatabaseRefused} or
            L{DatabaseUnavailable}; then, and when it is cancelled, nothing is
            left open.
        """

    def read(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        @see: L{IDatabase.read}
        """

    def write(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        @see: L{IDatabase.write}
        """

    def whenLost(self) -> Deferred[None]:
        """
        @see: L{IDatabase.whenLost}
        """

    def close(self) -> Deferred[None]:
        """
        @see: L{IDatabase.close}
        """
