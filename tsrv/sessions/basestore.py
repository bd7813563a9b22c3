"""
The common part of all stores: everything but the storage. A kind of store only adds how
it reads and writes rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from math import inf
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..asyncmodule import NotInitialized, timeOfDay
from ..errors import OutcomeUnknown
from ..queuing.history import explain
from ..queuing.waiters import Waiters
from .merging import MAX_ATTEMPTS, Merger, contended, copyOf
from .store import (
    Changes,
    Entry,
    Limits,
    SessionError,
    SessionsUnavailable,
    StoredSession,
    decode,
    encode,
    keyOf,
)
from .sweep import Sweeper

__all__ = ["BaseStore", "Row"]

_log = Logger("tsrv.sessions")

MAX_RENEWED: Final = 10_000
"""
Maximum number of renewed identifiers that a process remembers in L{Limits.renewed}
seconds. It does not remember further ones.
"""

MAX_WATCHERS: Final = 10_000
"""
Maximum number of callers that wait for a store to be lost, or to be idle.
"""

_RENEWED: Final = b"renewed"
"""
Suffix of the keys of renewed identifiers: such a key is longer than a session key.
"""

_T = TypeVar("_T")

_Result = Deferred[_T] | Coroutine[Deferred[Any], Any, _T]

Row = tuple[Any, Any, Any, Any]
"""
The JSON of a session, its times of creation and expiry, and its version. A row in
the database may be damaged: L{BaseStore} checks each row that it reads.
"""


class BaseStore(ABC):
    """
    A store without its storage: subclasses read and write the rows.

    @ivar initialized: Whether the store can be used now.
    @ivar limits: Lifetimes and maximum size of sessions.
    @cvar expiresByItself: Whether the database removes expired sessions, so that
        the store need not remove them.
    """

    initialized = False
    expiresByItself = False

    def __init__(
        self,
        reactor: Any,
        limits: Limits | None = None,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param limits: Lifetimes and maximum size of sessions.
        """
        self._reactor = reactor
        self.limits = limits or Limits()
        self._merger = Merger(reactor, self.limits, self._get, self._replace)
        self._sweeper = Sweeper(
            reactor, self._removeExpired, sweeps=not self.expiresByItself
        )
        self._watchers = Waiters(MAX_WATCHERS, "for the store to be lost")
        self._idlers = Waiters(MAX_WATCHERS, "for the store to be idle")
        self._inProgress = 0
        self._renewedSince, self._renewed = -inf, 0

    def _begin(self) -> None:
        self.initialized = True
        self._sweeper.start()

    def _end(self, makeReason: Callable[[], BaseException] | None = None) -> None:
        """
        @param makeReason: Makes the reason of a loss; L{None} if the store is closed.
        """
        self.initialized = False
        self._sweeper.stop()
        if makeReason is None:
            self._watchers.succeed()
        else:
            self._watchers.fail(makeReason)

    def whenLost(self) -> Deferred[None]:
        """
        Return a Deferred that fires when the store is closed, and fails with the
        reason when it is lost.
        """
        return self._watchers.wait() if self.initialized else succeed(None)

    def whenIdle(self) -> Deferred[None]:
        """
        Return a Deferred that fires when no call is in progress.
        """
        return self._idlers.wait() if self._inProgress else succeed(None)

    # Each kind of store implements these methods. A boolean result says whether the
    # row existed. Only _read() finds expired rows. Rows whose key is longer than
    # KEY_BYTES are not sessions: the store neither counts nor lists them.

    @abstractmethod
    def _read(self, key: bytes) -> Deferred[Row | None]: ...

    @abstractmethod
    def _insert(self, key: bytes, row: Row) -> _Result[bool]: ...

    @abstractmethod
    def _put(self, key: bytes, row: Row) -> _Result[Any]:
        """
        Insert a row; if a row has this key already, only change its expiry.
        """

    @abstractmethod
    def _replace(
        self, key: bytes, version: int, newKey: bytes, row: Row
    ) -> Deferred[bool]:
        """
        Replace a row of this version, in one step; the key may stay the same.
        """

    @abstractmethod
    def _extend(self, key: bytes, before: float, expires: float) -> _Result[Any]:
        """
        Let a row expire later, if its expiry is still C{before}.
        """

    @abstractmethod
    def _delete(self, key: bytes, version: Any = None) -> _Result[bool]:
        """
        Delete a row; with a version, only if it has that version.
        """

    @abstractmethod
    def _count(self) -> _Result[int]: ...

    @abstractmethod
    def _list(
        self, after: bytes, limit: int
    ) -> _Result[Sequence[tuple[bytes, Row | None]]]: ...

    @abstractmethod
    def _removeExpired(self, time: float, limit: int) -> _Result[tuple[int, bool]]:
        """
        Remove some of the rows that will have expired at a time, at most C{limit}.

        @return: The number of removed sessions, and whether there may be more rows.
        """

    # The methods of the interface.

    def _whenReady(
        self, operation: Callable[..., _Result[_T]], *arguments: Any
    ) -> Deferred[_T]:
        if self.initialized:
            return self._counted(operation(*arguments))
        return fail(NotInitialized("The session store is not initialised"))

    def _onKey(
        self,
        operation: Callable[..., _Result[_T]],
        identifier: str,
        absent: _T,
        *arguments: Any,
    ) -> Deferred[_T]:
        key = keyOf(identifier)
        if key is not None and self.initialized:
            return self._counted(operation(key, *arguments))
        return self._whenReady(succeed, absent)

    def _counted(self, result: _Result[_T]) -> Deferred[_T]:
        self._inProgress += 1
        return ensureDeferred(result).addBoth(self._ended)

    def _ended(self, result: _T) -> _T:
        self._inProgress -= 1
        if self._idlers and not self._inProgress:
            self._idlers.succeed()
        return result

    def get(self, identifier: str) -> Deferred[StoredSession | None]:
        """
        Find a session.
        """
        key = keyOf(identifier)
        if key is not None and self.initialized:
            return self._get(key)
        return self._whenReady(succeed, None)

    def _get(self, key: bytes) -> Deferred[StoredSession | None]:
        reading = self._read(key)
        # The most frequent call: counted here, without a callback of _counted().
        self._inProgress += 1
        return reading.addCallbacks(self._found, self._ended, (key,))

    def _found(self, row: Row | None, key: bytes) -> StoredSession | None:
        self._inProgress -= 1
        if self._idlers and not self._inProgress:
            self._idlers.succeed()
        return self._decode(row, key)

    def _decode(self, row: Row | None, key: bytes) -> StoredSession | None:
        if row is None:
            return None
        text, created, expires, version = row
        try:
            session = StoredSession(
                decode(text), float(created), float(expires), int(version)
            )
        except (TypeError, ValueError):
            _log.warn("Removing a damaged session: {key}", key=key.hex()[:12])
            deleting = ensureDeferred(self._delete(key, version))
            deleting.addErrback(self._notDeleted)
            return None
        return session if session.expires > timeOfDay(self._reactor) else None

    def _notDeleted(self, failure: Failure) -> None:
        error = explain(failure.value)
        _log.warn("Cannot remove a damaged session: {error}", error=error)

    def create(
        self, identifier: str, data: Mapping[str, Any]
    ) -> Deferred[StoredSession]:
        """
        Create a session.
        """
        return self._whenReady(self._create, identifier, data)

    async def _create(self, identifier: str, data: Mapping[str, Any]) -> StoredSession:
        key = _validKeyOf(identifier)
        row, session = self._begun(data, version=1)
        if not await self._insert(key, row):
            raise SessionError("a session with this identifier exists already")
        return session

    def _begun(
        self, data: Mapping[str, Any], version: int
    ) -> tuple[Row, StoredSession]:
        """
        @return: A session whose lifetime begins now, as a row and as a result.
        """
        text = encode(data, self.limits)
        now = timeOfDay(self._reactor)
        expires = self.limits.expiry(now, now)
        session = StoredSession(copyOf(data, text), now, expires, version)
        return (text, now, expires, version), session

    def set(
        self, identifier: str, changes: Changes, known: StoredSession | None = None
    ) -> Deferred[StoredSession | None]:
        """
        Change a session.
        """
        return self._onKey(self._merger.change, identifier, None, changes, known)

    def renew(
        self, identifier: str, replacement: str, changes: Changes
    ) -> Deferred[StoredSession | None]:
        """
        Change a session and its identifier.
        """
        return self._onKey(self._renew, identifier, None, replacement, changes)

    async def _renew(
        self, key: bytes, replacement: str, changes: Changes
    ) -> StoredSession | None:
        newKey = _validKeyOf(replacement)
        for attempt in range(MAX_ATTEMPTS):
            known = await self._get(key)
            if known is None:
                return None
            data = changes.applyTo(known.data)
            row, session = self._begun(data, known.version + 1)
            # No request needs this entry while the old identifier is still valid.
            if attempt == 0:
                await self._remember(key)
            if await self._replace(key, known.version, newKey, row):
                return session
        raise contended()

    async def _remember(self, key: bytes) -> None:
        steady = self._reactor.seconds()
        if not 0 <= steady - self._renewedSince < self.limits.renewed:
            self._renewedSince, self._renewed = steady, 0
        self._renewed += 1
        if self._renewed > MAX_RENEWED:
            return
        now = timeOfDay(self._reactor)
        try:
            await self._put(key + _RENEWED, (b"{}", now, now + self.limits.renewed, 1))
        except OutcomeUnknown:
            reason = "the store was lost before the identifier was renewed"
            raise SessionsUnavailable(reason) from None

    def wasRenewed(self, identifier: str) -> Deferred[bool]:
        """
        Return whether an identifier was renewed recently.
        """
        return self._onKey(self._wasRenewed, identifier, False)

    async def _wasRenewed(self, key: bytes) -> bool:
        return await self._get(key + _RENEWED) is not None

    def touch(self, identifier: str) -> Deferred[bool]:
        """
        Count a use of a session.
        """
        return self._onKey(self._touch, identifier, False)

    async def _touch(self, key: bytes) -> bool:
        known = await self._get(key)
        if known is None:
            return False
        now = timeOfDay(self._reactor)
        if self.limits.isWorthAWrite(known.created, known.expires, now):
            expires = self.limits.expiry(known.created, now)
            await self._extend(key, known.expires, expires)
        return True

    def destroy(self, identifier: str) -> Deferred[bool]:
        """
        Remove a session.
        """
        return self._onKey(self._delete, identifier, False)

    def all(self, after: bytes = b"", limit: int = 1000) -> Deferred[Sequence[Entry]]:
        """
        List sessions in the order of their keys.
        """
        return self._whenReady(self._all, after, limit)

    async def _all(self, after: bytes, limit: int) -> Sequence[Entry]:
        while True:
            rows = await self._list(after, limit)
            found = [(key, self._decode(row, key)) for key, row in rows]
            entries = [(key, each) for key, each in found if each is not None]
            if entries or not rows:
                return entries
            # An empty part would mean the end of the list. Here all sessions of
            # the part are damaged, so the search goes on.
            after = rows[-1][0]

    def length(self) -> Deferred[int]:
        """
        Count the sessions.
        """
        return self._whenReady(self._count)

    def clear(self) -> Deferred[int]:
        """
        Remove all sessions, in parts.
        """
        return self._whenReady(self._sweeper.removeAll, inf)

    def cleanup(self) -> Deferred[int]:
        """
        Remove expired sessions, in parts.
        """
        return self._whenReady(self._sweeper.removeAll, timeOfDay(self._reactor))


def _validKeyOf(identifier: str) -> bytes:
    key = keyOf(identifier)
    if key is None:
        raise SessionError("the identifier is not valid: see makeIdentifier()")
    return key
