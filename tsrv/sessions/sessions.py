"""
The sessions of a site.

A session is loaded when a resource asks for it. From then on the response waits until
the session is saved, see L{tsrv.sessions.deferredresponse}: a browser that follows a
redirect finds all changes. Empty sessions are not stored and set no cookie.
"""

from __future__ import annotations

from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure
from twisted.web.server import Request
from zope.interface import Interface

from ..queuing.waiters import Waiters
from .basestore import BaseStore
from .cookies import Cookies
from .deferredresponse import DeferredResponse
from .quota import Quota
from .session import Session
from .shared import Shared
from .store import ISessionStore, Limits, StoredSession

__all__ = ["Sessions"]

MAX_WAITERS: Final = 1_000
"""
Maximum number of callers that wait for the session of one request.
"""


class ILookup(Interface):
    """
    The component of a request: its session, or the search for its session.
    """


class _Lookup:
    """
    The session of a request, once the store has found it.
    """

    def __init__(self) -> None:
        self.session: Session | None = None
        self.loading: Deferred[Any] | None = None
        self.waiters = Waiters(MAX_WAITERS, "for the session")

    def wait(self) -> Deferred[Session]:
        return self.waiters.wait().addErrback(self._leave)

    def _leave(self, failure: Failure) -> Failure:
        isUnwanted = failure.check(CancelledError) and not self.waiters
        if isUnwanted and self.loading is not None:
            self.loading.cancel()
        return failure


class Sessions:
    """
    The sessions of a site: finds the session of each request.

    @ivar store: The store.
    @ivar cookies: Reads and writes the session cookie.
    """

    def __init__(
        self,
        reactor: Any,
        store: ISessionStore | BaseStore,
        cookies: Cookies,
        *,
        limits: Limits | None = None,
        quota: Quota | None = None,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param store: The store, or its proxy.
        @param cookies: Reads and writes the session cookie.
        @param limits: The limits of the store; by default its attribute C{limits}, or
            C{Limits()} if it has none.
        @param quota: The limit on new sessions; L{None} for no limit.
        """
        self.store = store
        self.cookies = cookies
        self._shared = Shared(reactor, store, cookies, limits, quota)

    def get(self, request: Request) -> Deferred[Session]:
        """
        Return the session of a request; repeated calls return the same object.

        @param request: The request, whose response must not have begun.
        @return: A Deferred of the session. It fails with
            L{Unavailable<tsrv.errors.Unavailable>} if the store is unavailable.
        """
        known: _Lookup | None = request.getComponent(ILookup)
        if known is not None:
            return known.wait() if known.session is None else succeed(known.session)
        lookup = _Lookup()
        request.setComponent(ILookup, lookup)
        identifier = self.cookies.read(request)
        if identifier is None:
            return succeed(self._found(None, lookup, request, None))
        waiter = lookup.wait()
        lookup.loading = loading = self.store.get(identifier)
        loading.addCallbacks(
            self._found,
            self._notFound,
            callbackArgs=(lookup, request, identifier),
            errbackArgs=(lookup, request),
        )
        return waiter

    def _found(
        self,
        known: StoredSession | None,
        lookup: _Lookup,
        request: Request,
        identifier: str | None,
    ) -> Session:
        session = lookup.session = Session(self._shared, request, identifier, known)
        DeferredResponse(
            request,
            session.saveBeforeResponse,
            lambda: _addHeaders(request, session),
            # This breaks the cycle between the request and its session.
            lambda: request.unsetComponent(ILookup),
        )
        lookup.waiters.succeed(session)
        return session

    def _notFound(self, failure: Failure, lookup: _Lookup, request: Request) -> None:
        request.unsetComponent(ILookup)
        error = cast(BaseException, failure.value)
        lookup.waiters.fail(lambda: error)


def _addHeaders(request: Request, session: Session) -> None:
    headers: Any = request.responseHeaders
    varying = headers.getRawHeaders(b"Vary", [])
    headers.setRawHeaders(b"Vary", [b", ".join([*varying, b"Cookie"])])
    if request.cookies:
        # Twisted sends either these cookies or headers named Set-Cookie.
        request.cookies[:0] = headers.getRawHeaders(b"Set-Cookie", [])
    # The resource decides whether an anonymous page may be cached.
    isPersonal = not session.isNew and not headers.hasHeader(b"Cache-Control")
    if isPersonal or request.cookies:
        headers.setRawHeaders(b"Cache-Control", [b"no-store"])
