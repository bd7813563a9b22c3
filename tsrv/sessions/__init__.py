"""
Web sessions for any site of twisted.web, kept in a database.

L{Sessions} finds the session of a request: a dictionary that is saved before the
last byte of the response is sent. L{Cookies} carry the identifiers of sessions,
L{Quota} limits how many new sessions clients may create, and an L{ISessionStore}
keeps what is in them.

A store can be used without the rest: create it, initialise it, ask it, close it.

Two modules need further packages and are imported by themselves: sessions in Redis
are in C{tsrv.sessions.redis}, sessions for Klein in C{tsrv.sessions.klein}.
"""

from .cookies import Cookies
from .memory import MemorySessionStore
from .quota import Quota, TooMany
from .session import Session
from .sessions import Sessions
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

__all__ = [
    "Changes",
    "Cookies",
    "Entry",
    "ISessionStore",
    "Limits",
    "MemorySessionStore",
    "PostgreSQLSessionStore",
    "Quota",
    "SQLSessionStore",
    "SQLiteSessionStore",
    "Session",
    "SessionError",
    "SessionTooLarge",
    "Sessions",
    "SessionsUnavailable",
    "StoredSession",
    "TooMany",
    "keyOf",
    "makeIdentifier",
    "schemaOf",
]
