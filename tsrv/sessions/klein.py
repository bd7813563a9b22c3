"""
Klein's sessions, in a store that outlives the process.

L{KleinSessionStore} is what Klein's own C{SessionProcurer} asks for sessions; it
keeps them in any L{ISessionStore<tsrv.sessions.ISessionStore>}, be it
wrapped or not::

    wrapper = QueuingWrapper(SQLiteSessionStore(reactor, "sessions.db"), reactor)
    sessions = KleinSessionStore(wrapper.proxy, {IUser: userOf})
    procurer = SessionProcurer(sessions)

Klein tells sessions apart by how they came to be: over HTTPS or not, with a cookie
or in a header. Here an identifier begins with a letter that says so, and a session
is kept under the hash of that letter and the rest. So who changes the letter has the
identifier of no session; and the identifiers that come with each request over plain
HTTP need not be looked up to see that none of them was to be kept secret.

Importing this imports Klein, which installs the reactor.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from .store import (
    Changes,
    ISessionStore,
    StoredSession,
    makeIdentifier,
)

try:
    from klein.interfaces import ISession, NoSuchSession, SessionMechanism
    from klein.interfaces import ISessionStore as IKleinSessionStore
except ImportError as error:
    raise ImportError(
        "Klein's sessions need a package that is not installed: "
        "pip install 'tsrv[klein]'"
    ) from error

__all__ = ["Authorizer", "KleinSession", "KleinSessionStore"]

_KINDS: Final = {
    (True, SessionMechanism.Cookie): "C",
    (True, SessionMechanism.Header): "H",
    (False, SessionMechanism.Cookie): "c",
    (False, SessionMechanism.Header): "h",
}
"""
With which letter an identifier begins.
"""

_IDENTIFIER: Final = re.compile("[CHch][A-Za-z0-9_-]{43}")

_CONFIDENTIAL: Final = re.compile("[CH][A-Za-z0-9_-]{43}")

_MOST_SENT: Final = 8
"""
How many identifiers of one request are looked after. A client that is only careless
sends one in a place, and there are four.
"""

_MOST_DISCLOSED: Final = 1_000
"""
How many sessions that are still to be ended are remembered.
"""


def _keyOf(identifier: str) -> str:
    """
    @return: What the identifier is to the store.
    """
    digest = sha256(identifier.encode("ascii")).digest()
    return urlsafe_b64encode(digest).decode("ascii").rstrip("=")


def _noSession() -> NoSuchSession:
    return NoSuchSession("There is no such session")


@implementer(ISession)
class KleinSession:
    """
    A session of a request.

    What is in it is not kept here: each method asks the store, and so sees what
    other requests have done meanwhile. If the session has been ended, its Deferred
    fails with C{klein.interfaces.NoSuchSession}; if the store cannot be asked now,
    with an L{Unavailable<tsrv.errors.Unavailable>}.

    @ivar identifier: What the visitor has.
    @ivar isConfidential: Whether it is sent over HTTPS alone.
    @ivar authenticatedBy: Where it is sent: in a cookie or in a header.
    """

    def __init__(
        self,
        identifier: str,
        isConfidential: bool,
        authenticatedBy: SessionMechanism,
        store: ISessionStore,
        authorizers: Mapping[type[Interface], Authorizer],
    ) -> None:
        self.identifier = identifier
        self.isConfidential = isConfidential
        self.authenticatedBy = authenticatedBy
        self._store = store
        self._authorizers = authorizers

    def authorize(
        self, interfaces: Iterable[type[Interface]]
    ) -> Deferred[dict[type[Interface], Any]]:
        """
        Find out what may be done in this session.

        @param interfaces: What somebody wants to do.
        @return: A Deferred of what the authorizers have for them. What they refuse,
            or have never heard of, is not in it; if the session has been ended,
            nothing is. It fails if one of them does otherwise.
        """
        return Deferred.fromCoroutine(self._authorize(interfaces))

    async def _authorize(
        self, interfaces: Iterable[type[Interface]]
    ) -> dict[type[Interface], Any]:
        found = {}
        for interface in interfaces:
            authorizer = self._authorizers.get(interface)
            if authorizer is None:
                continue
            try:
                provider = await maybeDeferred(authorizer, self)
            except NoSuchSession:
                return {}
            if provider is not None:
                found[interface] = provider
        return found

    def data(self) -> Deferred[dict[str, Any]]:
        """
        @return: A Deferred of what is in the session now. It is the caller's own:
            to change the session, see L{change}.
        """
        return Deferred.fromCoroutine(self._data())

    async def _data(self) -> dict[str, Any]:
        stored = await self._store.get(_keyOf(self.identifier))
        if stored is None:
            raise _noSession()
        return stored.data

    def change(self, changes: Changes) -> Deferred[StoredSession]:
        """
        Change what is in the session.

        @param changes: What is to be done; with what other requests do at the same
            time, it comes together.
        @return: A Deferred of the session as it is then. It fails with
            L{SessionError<tsrv.sessions.SessionError>} if what would be
            in it is too large, or no JSON.
        """
        return Deferred.fromCoroutine(self._change(changes))

    async def _change(self, changes: Changes) -> StoredSession:
        stored = await self._store.set(_keyOf(self.identifier), changes)
        if stored is None:
            raise _noSession()
        return stored

    def renew(self, changes: Changes | None = None) -> Deferred[None]:
        """
        Give the session another identifier, which its visitor is still to be told;
        the one that he has is that of no session then. Do so with whatever changes
        what he may do: who has made him use an identifier that both know must not
        be logged in with him.

        What another request changes at the same time may be left behind.

        @param changes: What is to be done to the session with that.
        @return: A Deferred that fires when L{identifier} is the new one. It fails as
            that of L{change}.
        """
        return Deferred.fromCoroutine(self._renew(changes or Changes()))

    async def _renew(self, changes: Changes) -> None:
        old = _keyOf(self.identifier)
        stored = await self._store.get(old)
        if stored is None:
            raise _noSession()
        identifier = self.identifier[0] + makeIdentifier()
        new = _keyOf(identifier)
        await self._store.create(new, changes.applyTo(stored.data))
        ended = False
        try:
            ended = await self._store.destroy(old)
        finally:
            if not ended:
                # If it stays, it ends by itself: nobody knows its identifier.
                self._store.destroy(new).addErrback(lambda _: None)
        if not ended:
            # Somebody has logged out meanwhile, and stays so.
            raise _noSession()
        self.identifier = identifier

    def destroy(self) -> Deferred[bool]:
        """
        End the session.

        @return: A Deferred of whether there was one.
        """
        return self._store.destroy(_keyOf(self.identifier))


Authorizer = Callable[[KleinSession], Any]
"""
Takes a session, and answers what its visitor may use, or L{None}, or a Deferred or
coroutine of that.
"""


@implementer(IKleinSessionStore)
class KleinSessionStore:
    """
    Where Klein's C{SessionProcurer} finds sessions.

    Its Deferreds fail with an L{Unavailable<tsrv.errors.Unavailable>} if the
    store cannot be asked now.
    """

    _log = Logger()

    def __init__(
        self,
        store: ISessionStore,
        authorizers: Mapping[type[Interface], Authorizer] | None = None,
        admit: Callable[[], object] | None = None,
    ) -> None:
        """
        @param store: Where the sessions are; or the proxy of that. Who has made it
            initialises and closes it.
        @param authorizers: By interfaces, what says who may use them.
        @param admit: Called before a session is made: Klein does so for whoever
            comes without one. What it raises is why none is made.
        """
        self._store = store
        self._admit = admit or (lambda: None)
        self._authorizers = dict(authorizers or {})
        # Whose identifiers were sent insecurely, and whether they are being ended.
        self._disclosed: dict[str, bool] = {}
        self._complained = False

    def _make(
        self, identifier: str, isConfidential: bool, authenticatedBy: SessionMechanism
    ) -> KleinSession:
        return KleinSession(
            identifier, isConfidential, authenticatedBy, self._store, self._authorizers
        )

    def newSession(
        self, isConfidential: bool, authenticatedBy: SessionMechanism
    ) -> Deferred[KleinSession]:
        """
        Make a session with nothing in it.

        @param isConfidential: Whether it is sent over HTTPS alone.
        @param authenticatedBy: Where it is sent.
        @return: A Deferred of the session. It fails if it is not admitted.
        """
        return Deferred.fromCoroutine(self._new(isConfidential, authenticatedBy))

    async def _new(
        self, isConfidential: bool, authenticatedBy: SessionMechanism
    ) -> KleinSession:
        self._admit()
        identifier = _KINDS[isConfidential, authenticatedBy] + makeIdentifier()
        await self._store.create(_keyOf(identifier), {})
        return self._make(identifier, isConfidential, authenticatedBy)

    def loadSession(
        self, identifier: str, isConfidential: bool, authenticatedBy: SessionMechanism
    ) -> Deferred[KleinSession]:
        """
        Find a session, and count that as a use of it.

        @param identifier: What a visitor has sent.
        @param isConfidential: Whether it came over HTTPS.
        @param authenticatedBy: Where it was.
        @return: A Deferred of the session. It fails with
            C{klein.interfaces.NoSuchSession} if there is none of that identifier,
            or it was made to be sent in another way.
        """
        return Deferred.fromCoroutine(
            self._load(identifier, isConfidential, authenticatedBy)
        )

    async def _load(
        self, identifier: str, isConfidential: bool, authenticatedBy: SessionMechanism
    ) -> KleinSession:
        if _IDENTIFIER.fullmatch(identifier) is None:
            raise _noSession()
        if identifier[0] != _KINDS[isConfidential, authenticatedBy]:
            raise _noSession()
        key = _keyOf(identifier)
        if key in self._disclosed:
            self._end(key)
            raise _noSession()
        if await self._store.get(key) is None or not await self._store.touch(key):
            raise _noSession()
        return self._make(identifier, isConfidential, authenticatedBy)

    def sentInsecurely(self, identifiers: Sequence[str | bytes]) -> None:
        """
        End those sessions of some identifiers that are to be sent over HTTPS alone.
        Klein calls this with all that a request over plain HTTP has brought. Until
        that is done, they cannot be loaded from here; if it fails, it is tried again
        when somebody comes with one.

        @param identifiers: What was sent; Klein has bytes.
        """
        keys: dict[str, None] = {}
        for each in identifiers:
            text = each if isinstance(each, str) else each.decode("latin-1")
            if _CONFIDENTIAL.fullmatch(text) is not None:
                keys[_keyOf(text)] = None
                if len(keys) == _MOST_SENT:
                    break
        for key in keys:
            self._end(key)

    def _end(self, key: str) -> None:
        if self._disclosed.get(key):
            return
        # What is tried again is the latest.
        self._disclosed.pop(key, None)
        if len(self._disclosed) >= _MOST_DISCLOSED:
            del self._disclosed[next(iter(self._disclosed))]
        self._disclosed[key] = True
        self._store.destroy(key).addCallbacks(
            self._ended, self._notEnded, callbackArgs=(key,), errbackArgs=(key,)
        )

    def _ended(self, found: bool, key: str) -> None:
        self._disclosed.pop(key, None)
        self._complained = False
        if found:
            self._log.warn("Ended a session whose identifier was sent over plain HTTP")

    def _notEnded(self, reason: Failure, key: str) -> None:
        if key in self._disclosed:
            self._disclosed[key] = False
        # Anybody can make up identifiers: during an outage, say it once.
        if not self._complained:
            self._complained = True
            self._log.warn(
                "A session whose identifier was sent over plain HTTP could not be "
                "ended yet: {reason}",
                reason=reason.value,
            )
