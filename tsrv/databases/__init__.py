"""
SQLite and PostgreSQL behind one interface.

L{Database} is the module for the database at a URL. Each initialisation opens a new
engine, L{tsrv.databases.sqlite} or L{tsrv.databases.postgresql}; a loss closes it.
For PostgreSQL alone, L{tsrv.databases.postgresql.connect} returns a psycopg
connection that waits on the reactor.
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
