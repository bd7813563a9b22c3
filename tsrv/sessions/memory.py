"""
Sessions in memory, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from ..asyncmodule import ISettlesCalls, timeOfDay
from .basestore import BaseStore, Row
from .store import KEY_BYTES, ISessionStore, Limits, SessionsUnavailable

__all__ = ["MemorySessionStore"]


@implementer(ISessionStore, ISettlesCalls)
class MemorySessionStore(BaseStore):
    """
    A store in memory, for tests. Its calls finish at once. It keeps its sessions as
    long as it exists, also while it is closed.

    @ivar rows: For each key the JSON, the times of creation and expiry, and the
        version. Tests may read the rows, and damage them.
    """

    def __init__(
        self,
        reactor: Any,
        limits: Limits | None = None,
        *,
        limit: int = 100_000,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param limits: Lifetimes and maximum size of sessions.
        @param limit: Maximum number of sessions, including expired ones that are not
            removed yet. Creating one more fails with L{SessionsUnavailable}.
        """
        super().__init__(reactor, limits)
        self._limit = limit
        self.rows: dict[bytes, Row] = {}

    def initialize(self) -> Deferred[None]:
        """
        Begin; this never fails.

        @return: A Deferred that has fired.
        """
        if not self.initialized:
            self._begin()
        return succeed(None)

    def close(self) -> Deferred[None]:
        """
        Stop; the sessions stay.

        @return: A Deferred that has fired.
        """
        self._end()
        return succeed(None)

    def _has(self, key: bytes, version: int | None = None) -> bool:
        row = self.rows.get(key)
        if row is None or row[2] <= timeOfDay(self._reactor):
            return False
        return version in (None, row[3])

    def _isSession(self, key: bytes) -> bool:
        return len(key) == KEY_BYTES and self._has(key)

    def _read(self, key: bytes) -> Deferred[Row | None]:
        return succeed(self.rows.get(key))

    def _insert(self, key: bytes, row: Row) -> Deferred[bool]:
        if key in self.rows:
            return succeed(False)
        if len(self.rows) >= self._limit:
            sentence = f"there are {self._limit} sessions already"
            return fail(SessionsUnavailable(sentence))
        self.rows[key] = row
        return succeed(True)

    def _put(self, key: bytes, row: Row) -> Deferred[Any]:
        self.rows[key] = row
        return succeed(None)

    def _replace(
        self, key: bytes, version: int, newKey: bytes, row: Row
    ) -> Deferred[bool]:
        if not self._has(key, version):
            return succeed(False)
        del self.rows[key]
        self.rows[newKey] = row
        return succeed(True)

    def _extend(self, key: bytes, before: float, expires: float) -> Deferred[Any]:
        data, created, _, version = self.rows[key]
        self.rows[key] = (data, created, expires, version)
        return succeed(None)

    def _delete(self, key: bytes, version: Any = None) -> Deferred[bool]:
        found = self._has(key, version)
        if found:
            del self.rows[key]
        return succeed(found)

    def _count(self) -> Deferred[int]:
        return succeed(sum(map(self._isSession, self.rows)))

    def _list(
        self, after: bytes, limit: int
    ) -> Deferred[Sequence[tuple[bytes, Row | None]]]:
        keys = sorted(key for key in self.rows if key > after and self._isSession(key))
        return succeed([(key, self.rows[key]) for key in keys[:limit]])

    def _removeExpired(self, time: float, limit: int) -> Deferred[tuple[int, bool]]:
        expired = (key for key, row in self.rows.items() if row[2] <= time)
        removed = list(islice(expired, limit))
        for key in removed:
            del self.rows[key]
        sessions = sum(len(key) == KEY_BYTES for key in removed)
        return succeed((sessions, len(removed) == limit))
