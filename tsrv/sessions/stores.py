"""
Web sessions that outlive the process, and the places where they can be kept.

All that is here can be used without the rest of tsrv: a store is made,
initialised, asked and closed by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .memory import MemorySessionStore
from .sql import (
    PostgreSQLSessionStore,
    SQLiteSessionStore,
    SQLSessionStore,
    schemaOf,
)
from .store import (
    Changes,
    Entry,
    ISessionStore,
    Limits,
    SessionError,
    SessionsUnavailable,
    SessionTooLarge,
    StoredSession,
    keyOf,
    makeIdentifier,
)

if TYPE_CHECKING:
    from .redis import RedisSessionStore

__all__ = [
    "Changes",
    "Entry",
    "ISessionStore",
    "Limits",
    "MemorySessionStore",
    "PostgreSQLSessionStore",
    "RedisSessionStore",
    "SQLSessionStore",
    "SQLiteSessionStore",
    "SessionError",
    "SessionTooLarge",
    "SessionsUnavailable",
    "StoredSession",
    "keyOf",
    "makeIdentifier",
    "schemaOf",
]


def __getattr__(name: str) -> Any:
    # A client for Redis is not what everybody has.
    if name == "RedisSessionStore":
        from .redis import RedisSessionStore

        return RedisSessionStore
    raise AttributeError(name)
