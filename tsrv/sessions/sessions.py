"""
The session of a request.

A session is what a store keeps for a visitor between two requests. It is looked up
when a resource asks for it, changed as a dictionary is, and saved before the
response goes out: a browser that follows a redirect at once finds what was done.
For a visitor for whom nothing was stored there is no row and no cookie.

This works with every resource of twisted.web, whether it is one of L{rendering
<tsrv.web.responses>} or not: what the resource writes is held until the session
has been saved.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from twisted.web.server import Request

from ..web.origin import checkOrigin
from .cookies import Cookies
from .deferredresponse import Hold
from .quota import Quota
from .session import Session
from .signing import SigningKeys
from .store import (
    Changes,
    Limits,
    StoredSession,
)

__all__ = ["Cookies", "Quota", "Session", "Sessions", "SigningKeys", "checkOrigin"]

_MOMENT: Final = 60.0
"""
For how many seconds an identifier that was given up is remembered.
"""

_REMEMBERED: Final = 10_000
"""
How many of them are.
"""

_HELD: Final = "_tsrvSession"
"""
Where a request has its session: twisted.web's own C{getComponent} looks for an
adapter each time.
"""


class Store(Protocol):
    """
    What is needed of a store; see L{ISessionStore
    <tsrv.sessions.ISessionStore>}.
    """

    def get(self, identifier: str) -> Deferred[StoredSession | None]:
        """
        Find a session.
        """

    def set(
        self, identifier: str, changes: Changes, known: StoredSession | None = None
    ) -> Deferred[StoredSession | None]:
        """
        Change one that is there.
        """

    def renew(
        self, identifier: str, replacement: str, changes: Changes
    ) -> Deferred[StoredSession | None]:
        """
        Change one that is there, and its identifier.
        """

    def create(
        self, identifier: str, data: Mapping[str, Any]
    ) -> Deferred[StoredSession]:
        """
        Make one.
        """

    def touch(self, identifier: str) -> Deferred[bool]:
        """
        Count a use.
        """

    def destroy(self, identifier: str) -> Deferred[bool]:
        """
        End one.
        """


class _Held:
    """
    The session of a request, or those who wait for it.
    """

    def __init__(self) -> None:
        self.session: Session | None = None
        self.loading: Deferred[Any] | None = None
        self.waiting: list[Deferred[Session]] = []


class Sessions:
    """
    The sessions of a site.

    @ivar store: Where they are.
    @ivar cookies: How visitors carry their identifiers.
    """

    def __init__(
        self,
        reactor: Any,
        store: Store,
        cookies: Cookies,
        *,
        limits: Limits | None = None,
        quota: Quota | None = None,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param store: Where they are, wrapped or not.
        @param cookies: How visitors carry their identifiers.
        @param limits: The limits of the store, if it does not say them itself.
        @param quota: How many new sessions there may be; L{None} for as many as
            there are visitors.
        """
        self._reactor = reactor
        self.store = store
        self.cookies = cookies
        self._limits: Limits = limits or getattr(store, "limits", None) or Limits()
        self._renewed: OrderedDict[str, float] = OrderedDict()
        self._quota = quota

    def get(self, request: Request) -> Deferred[Session]:
        """
        Find the session of a request. It may be asked for again: it stays the
        same.

        @param request: The request. Its response has not begun.
        @return: A Deferred of the session. It fails with an L{Unavailable
            <tsrv.errors.Unavailable>} if the store cannot be asked.
        """
        held: _Held | None = getattr(request, _HELD, None)
        if held is not None:
            if held.session is not None:
                return succeed(held.session)
            return self._wait(held)
        held = _Held()
        setattr(request, _HELD, held)
        sent = self.cookies.read(request)
        if sent is None:
            return succeed(self._make(held, request, None, None))
        waiter = self._wait(held)
        loading = held.loading = self.store.get(sent)
        loading.addCallbacks(
            self._loaded,
            self._notLoaded,
            callbackArgs=(held, request, sent),
            errbackArgs=(held, request),
        )
        return waiter

    def _wait(self, held: _Held) -> Deferred[Session]:
        waiter: Deferred[Session] = Deferred(partial(self._leave, held))
        held.waiting.append(waiter)
        return waiter

    def _leave(self, held: _Held, waiter: Deferred[Session]) -> None:
        """
        One does not wait any more. When nobody does, nothing is looked for.
        """
        if waiter in held.waiting:
            held.waiting.remove(waiter)
            if not held.waiting and held.loading is not None:
                held.loading.cancel()

    def _make(
        self,
        held: _Held,
        request: Request,
        sent: str | None,
        known: StoredSession | None,
    ) -> Session:
        session = held.session = Session(self, request, sent, known)
        Hold(
            request,
            session.finish,
            lambda: self._addHeaders(request, session),
            # Neither is needed any more, and each has the other.
            partial(delattr, request, _HELD),
        )
        return session

    def _loaded(
        self,
        known: StoredSession | None,
        held: _Held,
        request: Request,
        sent: str,
    ) -> None:
        session = self._make(held, request, sent, known)
        waiting, held.waiting = held.waiting, []
        for waiter in waiting:
            # One may have been given up by another.
            if not waiter.called:
                waiter.callback(session)

    def _notLoaded(self, failure: Failure, held: _Held, request: Request) -> None:
        delattr(request, _HELD)
        waiting, held.waiting = held.waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.errback(failure.value)

    def remember(self, identifier: str) -> None:
        """
        An identifier is of no use any more. Requests that were sent with it before
        its browser knew that may still come.
        """
        renewed = self._renewed
        renewed[identifier] = self._reactor.seconds()
        renewed.move_to_end(identifier)
        if len(renewed) > _REMEMBERED:
            renewed.popitem(last=False)

    def wasRenewed(self, identifier: str) -> bool:
        """
        @return: Whether an identifier was in use a moment ago.
        """
        since = self._renewed.get(identifier)
        return since is not None and self._reactor.seconds() - since < _MOMENT

    def admit(self, request: Request) -> None:
        """
        Count a visitor who gets a session.

        @raise TooMany: There are too many.
        """
        if self._quota is not None:
            self._quota.admit(request)

    def isWorthATouch(self, session: StoredSession) -> bool:
        """
        @return: Whether a use of a session is worth a write.
        """
        now = self._reactor.seconds()
        return self._limits.isWorthAWrite(session.created, session.expires, now)

    def _addHeaders(self, request: Request, session: Session) -> None:
        headers: Any = request.responseHeaders
        headers.addRawHeader(b"Vary", b"Cookie")
        if request.cookies:
            # Twisted sends either these or those.
            request.cookies[:0] = headers.getRawHeaders(b"Set-Cookie", [])
        # What the resource says of a page that sets no cookie is its own.
        isOurs = not session.isNew and not headers.hasHeader(b"Cache-Control")
        if isOurs or request.cookies:
            headers.setRawHeaders(b"Cache-Control", [b"no-store"])
