"""
The common part of all stores: everything a session means. A kind of store only adds
how it reads and writes one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from math import inf
from random import random as _random
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..asyncmodule import NotInitialized
from .merging import MAX_ATTEMPTS, Merger, contended, copyOf
from .store import (
    Changes,
    Entry,
    Limits,
    SessionError,
    StoredSession,
    decode,
    encode,
    keyOf,
)
from .sweep import Sweeper

__all__ = ["BaseStore", "Row"]

_T = TypeVar("_T")

_Result = Deferred[_T] | Coroutine[Deferred[Any], Any, _T]

Row = tuple[Any, Any, Any, Any]
"""
The JSON of a session, when it was created, when it expires, and its version; in a
damaged row, anything.
"""


class BaseStore(ABC):
    """
    A store, apart from where it keeps the sessions.

    @ivar initialized: Whether it can be used now.
    @ivar limits: Lifetimes and maximum size of its sessions.
    @cvar expiresByItself: Whether the database removes expired sessions, so that
        the store need not.
    """

    _log = Logger()

    initialized = False
    expiresByItself = False

    def __init__(
        self,
        reactor: Any,
        limits: Limits | None = None,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param limits: Lifetimes and maximum size of sessions.
        @param random: Returns random numbers from 0 to 1.
        """
        self._reactor = reactor
        self.limits = limits or Limits()
        self._merger = Merger(reactor, self.limits, self._get, self._replace)
        self._sweeper = Sweeper(
            reactor, self._removeExpired, random, sweeps=not self.expiresByItself
        )

    def _begin(self) -> None:
        self.initialized = True
        self._sweeper.start()

    def _end(self) -> None:
        self.initialized = False
        self._sweeper.stop()

    # Each kind of store implements these methods. To all of them a row that has
    # expired does not exist; a boolean says whether there was such a row.

    @abstractmethod
    def _read(self, key: bytes) -> Deferred[Row | None]: ...

    @abstractmethod
    def _insert(self, key: bytes, row: Row) -> _Result[bool]:
        """
        Insert a row, unless there is one.
        """

    @abstractmethod
    def _replace(
        self, key: bytes, version: int, newKey: bytes, row: Row
    ) -> Deferred[bool]:
        """
        Replace a row of this version, in one step, by one with another key or the
        same.
        """

    @abstractmethod
    def _extend(self, key: bytes, before: float, expires: float) -> _Result[Any]:
        """
        Let a row expire later, unless its expiry is no longer what it was before.
        """

    @abstractmethod
    def _delete(self, key: bytes, version: Any = None) -> _Result[bool]:
        """
        Delete a row, if a version is given only with this version.
        """

    @abstractmethod
    def _count(self) -> _Result[int]: ...

    @abstractmethod
    def _list(
        self, after: bytes, limit: int
    ) -> _Result[Sequence[tuple[bytes, Row]]]: ...

    @abstractmethod
    def _removeExpired(self, time: float, limit: int) -> _Result[int]:
        """
        Remove some of the rows that will have expired at a time.

        @return: The number of removed rows; less than C{limit} after the last ones.
        """

    # The methods of the interface.

    def _whenReady(
        self, operation: Callable[..., _Result[_T]], *arguments: Any
    ) -> Deferred[_T]:
        if self.initialized:
            return ensureDeferred(operation(*arguments))
        return fail(NotInitialized("The store of sessions is not initialised"))

    def _onKey(
        self,
        operation: Callable[..., _Result[_T]],
        identifier: str,
        absent: _T,
        *arguments: Any,
    ) -> Deferred[_T]:
        key = keyOf(identifier)
        if key is not None and self.initialized:
            return ensureDeferred(operation(key, *arguments))
        return self._whenReady(succeed, absent)

    def get(self, identifier: str) -> Deferred[StoredSession | None]:
        """
        Find a session.
        """
        return self._onKey(self._get, identifier, None)

    def _get(self, key: bytes) -> Deferred[StoredSession | None]:
        return self._read(key).addCallback(self._decode, key)

    def _decode(self, row: Row | None, key: bytes) -> StoredSession | None:
        if row is None:
            return None
        text, created, expires, version = row
        data = decode(text)
        if (
            data is not None
            and type(created) in (int, float)
            and type(expires) in (int, float)
            and type(version) is int
        ):
            return StoredSession(data, created, expires, version)
        self._log.warn("Removed a damaged session: {key}", key=key.hex()[:12])
        deleting = ensureDeferred(self._delete(key, version))
        deleting.addErrback(self._notDeleted)
        return None

    def _notDeleted(self, failure: Failure) -> None:
        self._log.warn(
            "Cannot remove a damaged session: {reason}", reason=failure.value
        )

    def create(
        self, identifier: str, data: Mapping[str, Any]
    ) -> Deferred[StoredSession]:
        """
        Create a session.
        """
        key = keyOf(identifier)
        if key is None:
            return fail(_malformed())
        return self._whenReady(self._create, key, data)

    async def _create(self, key: bytes, data: Mapping[str, Any]) -> StoredSession:
        text = encode(data, self.limits)
        now: float = self._reactor.seconds()
        expires = self.limits.expiry(now, now)
        if not await self._insert(key, (text, now, expires, 1)):
            raise SessionError("a session with this identifier exists already")
        return StoredSession(copyOf(data, text), now, expires, version=1)

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
        newKey = keyOf(replacement)
        if newKey is None:
            return fail(_malformed())
        return self._onKey(self._renew, identifier, None, newKey, changes)

    async def _renew(
        self, key: bytes, newKey: bytes, changes: Changes
    ) -> StoredSession | None:
        for _ in range(MAX_ATTEMPTS):
            known = await self._get(key)
            if known is None:
                return None
            data = changes.applyTo(known.data)
            text = encode(data, self.limits)
            now: float = self._reactor.seconds()
            expires = self.limits.expiry(now, now)
            version = known.version + 1
            row = text, now, expires, version
            if await self._replace(key, known.version, newKey, row):
                return StoredSession(copyOf(data, text), now, expires, version)
        raise contended()

    def touch(self, identifier: str) -> Deferred[bool]:
        """
        Count a use of a session.
        """
        return self._onKey(self._touch, identifier, False)

    async def _touch(self, key: bytes) -> bool:
        known = await self._get(key)
        if known is None:
            return False
        now = self._reactor.seconds()
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
            # An empty part would mean the end of the list, but all sessions of this
            # part are damaged.
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
        return self._whenReady(self._sweeper.removeAll, self._reactor.seconds())


def _malformed() -> SessionError:
    return SessionError("this is not an identifier of a session")
