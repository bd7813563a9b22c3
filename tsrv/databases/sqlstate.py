"""
The meanings of PostgreSQL's errors: whether another attempt at a statement or
connection may succeed. See
U{https://www.postgresql.org/docs/current/errcodes-appendix.html}.
"""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import errors, pq

from .interface import (
    ConstraintViolated,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    UniqueViolated,
)

__all__ = ["IDLE_LIMIT", "READ_ONLY", "UNKNOWN_OUTCOME", "errorOf", "refusalOf"]

READ_ONLY: Final = "25006"
"""
The SQLSTATE of a server that accepts no writes. After a failover, another server does.
"""

IDLE_LIMIT: Final = "57P05"
"""
The SQLSTATE with which a server ends a connection that was idle for too long.
"""

UNKNOWN_OUTCOME: Final = ("08007", "40003")
"""
The SQLSTATEs after which nobody knows whether a transaction was committed.
"""

# The connection; conflicting transactions; missing resources; the system; and
# single codes for locks, time limits, and a server that shuts down or starts up.
_TRANSIENT: Final = (
    *("08", "40", "53", "58"),
    *("25006", "25P03", "55006", "55P03", "57014", "57P"),
)

# Parameters that do not fit the statement, and a database that was dropped.
_NOT_TRANSIENT: Final = ("08P01", "57P04")

# Classes of errors whose messages may repeat the values of the statement.
_REPEATING_VALUES: Final = ("21", "22", "23", "44", "P0")

# Classes of errors after which connecting in the same way never succeeds.
_REFUSED: Final = ("0A", "22", "28", "3D", "3F", "42", "55")

_OPTIONS: Final = "check the options in the URL of the database"

_ADVICE: Final = {
    "28P01": "check the password in the URL of the database",
    "28000": "check the user in the URL of the database, and pg_hba.conf",
    "3D000": "create the database, or correct its name in the URL",
    "3F000": "create the schema, or correct its name in the URL",
    "42501": "let the user connect: GRANT CONNECT ON DATABASE",
}


def _isTransient(code: str) -> bool:
    return code.startswith(_TRANSIENT) and code not in _NOT_TRANSIENT


# A missing right. The user had it when the tables were created, and may get it back.
_RIGHTS: Final = "42501"


def errorOf(result: pq.abc.PGresult) -> DatabaseError | DatabaseUnavailable:
    """
    Return the error for the caller of a statement that was not carried out.
    """
    code, message, constraint = (
        (result.error_field(field) or b"").decode("utf-8", "replace")[:500]
        for field in (
            pq.DiagnosticField.SQLSTATE,
            pq.DiagnosticField.MESSAGE_PRIMARY,
            pq.DiagnosticField.CONSTRAINT_NAME,
        )
    )
    try:
        name = errors.lookup(code).__name__
    except KeyError:
        # Functions of the database may raise any code.
        name = "error"
    text = f"PostgreSQL answered with {name} ({code})"
    if constraint:
        text += f": {constraint}"
    elif not code.startswith(_REPEATING_VALUES):
        text += f": {message}"
    if _isTransient(code) or code == _RIGHTS:
        return DatabaseUnavailable(text, code)
    if code.startswith("23"):
        return (UniqueViolated if code == "23505" else ConstraintViolated)(text, code)
    return DatabaseError(text, code)


def refusalOf(error: psycopg.Error) -> DatabaseRefused | DatabaseUnavailable:
    """
    Return the error for the caller that opens the database.

    @param error: The reason why a connection could not be opened.
    """
    code = error.sqlstate or ""
    text = str(error)
    if code.startswith(_REFUSED) and not _isTransient(code):
        return DatabaseRefused(f"{text}: {_ADVICE.get(code, _OPTIONS)}", code)
    if not code and isinstance(error, psycopg.ProgrammingError):
        return DatabaseRefused(f"{text}: {_OPTIONS}")
    return DatabaseUnavailable(text, code)
