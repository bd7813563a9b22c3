"""
SQLite and PostgreSQL behind one interface.
"""

from .database import Database
from .interface import (
    ConstraintViolated,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    IDatabase,
    Location,
    Row,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)

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
