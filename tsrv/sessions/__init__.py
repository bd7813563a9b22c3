"""
Web sessions for any site of twisted.web, kept in a database::

    wrapper = QueuingWrapper(SQLiteSessionStore(reactor, "sessions.db"), reactor)
    wrapper.initialize()
    sessions = Sessions(reactor, wrapper.proxy, Cookies(reactor))

    class Visits(AsyncResource):
        async def render_GET(self, request):
            session = await sessions.get(request)
            return text(f"{await session.add('visits')} visits")

L{Sessions} finds the session of a request: a dictionary that is saved before the
last byte of the response is sent. L{Cookies} carry the identifiers of sessions,
L{Quota} limits how many new sessions clients may create, and an L{ISessionStore}
keeps the sessions. A store can be used without the rest.

Two modules need further packages, so this package does not import them:
C{tsrv.sessions.redis} has sessions in Redis, C{tsrv.sessions.klein} sessions for Klein.
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
