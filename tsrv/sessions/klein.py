"""
Klein's sessions, in a store that outlives the process: C{pip install 'tsrv[klein]'}.

Klein's own C{SessionProcurer} uses a L{KleinSessionStore}, which keeps its sessions in
any L{ISessionStore<tsrv.sessions.ISessionStore>}, wrapped or not::

    wrapper = QueuingWrapper(SQLiteSessionStore(reactor, "sessions.db"), reactor)
    sessions = KleinSessionStore(wrapper.proxy, {IUser: userOf})
    procurer = SessionProcurer(sessions)

Klein distinguishes sessions by how they were created: over HTTPS or not, for a cookie
or for a header. The first letter of an identifier tells them apart. The store keeps a
session under the hash of the whole identifier, so an identifier with a changed letter
finds no session. The letter also shows, without a call of the store, which identifiers
must not arrive over plain HTTP.

Importing this module imports Klein, which installs the reactor.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ..extras import needs
from ..queuing.history import explain
from .basestore import BaseStore
from .store import Changes, ISessionStore, StoredSession, makeIdentifier

with needs("klein"):
    from klein.interfaces import ISession, NoSuchSession, SessionMechanism
    from klein.interfaces import ISessionStore as IKleinSessionStore

__all__ = ["Authorizer", "KleinSession", "KleinSessionStore"]

_log = Logger("tsrv.sessions")

_LETTERS: Final = {
    (True, SessionMechanism.Cookie): "C",
    (True, SessionMechanism.Header): "H",
    (False, SessionMechanism.Cookie): "c",
    (False, SessionMechanism.Header): "h",
}

_IDENTIFIER: Final = re.compile("[CHch][A-Za-z0-9_-]{43}")

_CONFIDENTIAL: Final = re.compile("[CH][A-Za-z0-9_-]{43}")

MAX_DISCLOSED_PER_REQUEST: Final = 8
"""
Maximum number of sessions that one request over plain HTTP can end.
"""

MAX_DISCLOSED: Final = 1_000
"""
Maximum number of sessions to destroy that are remembered until that succeeds.
"""


def _keyOf(identifier: str) -> str:
    digest = sha256(identifier.encode("ascii")).digest()
    return urlsafe_b64encode(digest).decode("ascii").rstrip("=")


def _existing(stored: StoredSession | None) -> StoredSession:
    if stored is None:
        raise NoSuchSession("There is no such session")
    return stored


# Sessions are never compared, and their identifiers must not reach a log.
@implementer(ISession)
@dataclass(eq=False, repr=False)
class KleinSession:
    """
    The session of a request, as returned by Klein's C{SessionProcurer}::

        session = await procurer.procureSession(request)
        stored = await session.change(Changes(added={"visits": 1}))

    Each method calls the store, and so sees the changes of other requests. Its
    Deferred fails with C{klein.interfaces.NoSuchSession} if the session has ended, and
    with L{Unavailable<tsrv.errors.Unavailable>} if the store is unavailable.

    @ivar identifier: The identifier that the client sends.
    @ivar isConfidential: Whether the identifier is sent over HTTPS only.
    @ivar authenticatedBy: Whether the identifier is sent in a cookie or in a header.
    """

    identifier: str
    isConfidential: bool
    authenticatedBy: SessionMechanism
    _store: ISessionStore | BaseStore
    _authorizers: Mapping[type[Interface], Authorizer]

    def authorize(
        self, interfaces: Iterable[type[Interface]]
    ) -> Deferred[dict[type[Interface], Any]]:
        """
        Call the authorizers.

        @param interfaces: The requested interfaces.
        @return: A Deferred of the object for each interface, without the interfaces
            that the authorizers refuse; empty if the session has ended.
        """
        return Deferred.fromCoroutine(self._authorize(interfaces))

    async def _authorize(
        self, interfaces: Iterable[type[Interface]]
    ) -> dict[type[Interface], Any]:
        granted = {}
        for interface in interfaces:
            authorizer = self._authorizers.get(interface, lambda session: None)
            try:
                provider = await maybeDeferred(authorizer, self)
            except NoSuchSession:
                return {}
            if provider is not None:
                granted[interface] = provider
        return granted

    def data(self) -> Deferred[dict[str, Any]]:
        """
        Read the content of the session. Use L{change} to change it.

        @return: A Deferred of a copy of the content.
        """
        found = self._store.get(_keyOf(self.identifier)).addCallback(_existing)
        return found.addCallback(lambda stored: stored.data)

    def change(self, changes: Changes) -> Deferred[StoredSession]:
        """
        Change the session, and keep the changes of other requests.

        @param changes: The changes.
        @return: A Deferred of the session after the change. It fails with
            L{SessionError<tsrv.sessions.SessionError>} if the content would be too
            large, or cannot be JSON.
        """
        return self._store.set(_keyOf(self.identifier), changes).addCallback(_existing)

    def renew(self, changes: Changes | None = None) -> Deferred[str]:
        """
        Give the session another identifier; the old one stops working. Do so whenever
        a user logs in or gets more rights, then send L{identifier} to the browser.

        @param changes: Changes to make at the same time.
        @return: A Deferred of the new L{identifier}; see L{change} for its errors.
        """
        return Deferred.fromCoroutine(self._renew(changes or Changes()))

    async def _renew(self, changes: Changes) -> str:
        identifier = self.identifier[0] + makeIdentifier()
        old, new = _keyOf(self.identifier), _keyOf(identifier)
        _existing(await self._store.renew(old, new, changes))
        self.identifier = identifier
        return identifier

    def destroy(self) -> Deferred[bool]:
        """
        End the session.

        @return: A Deferred of C{True} if the session existed, and of C{False} if not.
        """
        return self._store.destroy(_keyOf(self.identifier))


Authorizer = Callable[[KleinSession], Any]
"""
A function that takes a session, and returns the object that its visitor may use, or
L{None}; or a Deferred or coroutine of either.
"""


@implementer(IKleinSessionStore)
class KleinSessionStore:
    """
    The store for Klein's C{SessionProcurer}. Its Deferreds fail with
    L{Unavailable<tsrv.errors.Unavailable>} if the store is unavailable.
    """

    def __init__(
        self,
        store: ISessionStore | BaseStore,
        authorizers: Mapping[type[Interface], Authorizer] | None = None,
        admit: Callable[[], object] | None = None,
    ) -> None:
        """
        @param store: The store, or its proxy. Its owner initialises and closes it.
        @param authorizers: For each interface, the function that returns its object.
        @param admit: Called before a session is created, because Klein creates one for
            each visitor without a session. If C{admit} raises, no session is created.
        """
        self._store = store
        self._admit = admit or (lambda: None)
        self._authorizers = dict(authorizers or {})
        # Keys of sessions to destroy; they must not be loaded meanwhile.
        self._disclosed: dict[str, None] = {}
        self._hasComplained = False

    def newSession(
        self, isConfidential: bool, authenticatedBy: SessionMechanism
    ) -> Deferred[KleinSession]:
        """
        Create an empty session, if it is admitted.

        @param isConfidential: Whether the request has arrived over HTTPS.
        @param authenticatedBy: Whether a cookie or a header will carry the identifier.
        @return: A Deferred of the session. It fails with the error of C{admit}.
        """
        identifier = _LETTERS[isConfidential, authenticatedBy] + makeIdentifier()
        session = self._session(identifier, isConfidential, authenticatedBy)
        creating = maybeDeferred(self._admit)
        creating.addCallback(lambda _: self._store.create(_keyOf(identifier), {}))
        return creating.addCallback(lambda _: session)

    def loadSession(
        self, identifier: str, isConfidential: bool, authenticatedBy: SessionMechanism
    ) -> Deferred[KleinSession]:
        """
        Find a session that was created for this mechanism, and extend its life.

        @param identifier: The identifier that the client has sent.
        @param isConfidential: Whether the request has arrived over HTTPS.
        @param authenticatedBy: Whether a cookie or a header carries the identifier.
        @return: A Deferred of the session. It fails with
            C{klein.interfaces.NoSuchSession} if the session does not exist.
        """
        session = self._session(identifier, isConfidential, authenticatedBy)
        return Deferred.fromCoroutine(self._load(session))

    async def _load(self, session: KleinSession) -> KleinSession:
        letter = _LETTERS[session.isConfidential, session.authenticatedBy]
        identifier = session.identifier
        if identifier[:1] == letter and _IDENTIFIER.fullmatch(identifier):
            key = _keyOf(identifier)
            if key in self._disclosed:
                self._destroy(key)
            elif await self._store.touch(key):
                return session
        raise NoSuchSession("There is no such session")

    def _session(
        self, identifier: str, isConfidential: bool, authenticatedBy: SessionMechanism
    ) -> KleinSession:
        return KleinSession(
            identifier, isConfidential, authenticatedBy, self._store, self._authorizers
        )

    def sentInsecurely(self, identifiers: Sequence[str | bytes]) -> None:
        """
        Destroy sessions whose identifiers must be sent over HTTPS only. If that
        fails, the session is refused, and each attempt to load it is another attempt
        to destroy it.

        @param identifiers: The identifiers that have arrived over plain HTTP.
        """
        texts = (
            each if isinstance(each, str) else each.decode("latin-1")
            for each in identifiers
        )
        secrets = filter(_CONFIDENTIAL.fullmatch, texts)
        for each in islice(secrets, MAX_DISCLOSED_PER_REQUEST):
            self._destroy(_keyOf(each))

    def _destroy(self, key: str) -> None:
        self._disclosed[key] = None
        if len(self._disclosed) > MAX_DISCLOSED:
            del self._disclosed[next(iter(self._disclosed))]
        destroying = self._store.destroy(key)
        destroying.addCallbacks(self._destroyed, self._complain, callbackArgs=(key,))

    def _destroyed(self, existed: bool, key: str) -> None:
        self._disclosed.pop(key, None)
        self._hasComplained = False
        if existed:
            _log.warn("Ended a session whose identifier was sent over plain HTTP")

    def _complain(self, reason: Failure) -> None:
        # Anybody can invent identifiers: log only one error per outage.
        if not self._hasComplained:
            self._hasComplained = True
            _log.warn(
                "A session whose identifier was sent over plain HTTP could not be "
                "ended yet: {error}",
                error=explain(reason.value),
            )
