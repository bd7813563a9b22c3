"""
SQLite and PostgreSQL behind one interface.

L{Database} is a module for the database at a URL. Each initialisation opens new
connections; a loss closes them. A program puts it behind a wrapper::

    BOOKS = Schema(
        "books",
        {
            "sqlite": [["CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT)"]],
            "postgresql": [["CREATE TABLE books (id BIGINT PRIMARY KEY, title TEXT)"]],
        },
    )
    GET = Statement("SELECT title FROM books WHERE id = ?")

    database = startup.add(
        "database",
        Database(reactor, "sqlite:books.db", [BOOKS]),
        fatal=DatabaseRefused,
        replay=["read"],
    ).proxy
    rows = await database.read(GET, 7)

For PostgreSQL alone, L{tsrv.databases.postgresql.connect} returns a psycopg connection
that waits on the reactor.
"""

from .database import Database
from .interface import (
    ConstraintViolated,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    IDatabase,
    Row,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)
from .location import Location

__all__ = [
    "ConstraintViolated",
    "Database",
    "DatabaseError",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "IDatabase",
    "Location",
    "Row",
    "Schema",
    "Settings",
    "Statement",
    "UniqueViolated",
]
