"""
Sessions in memory, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from random import random as _random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from .basestore import (
    BaseStore,
    Row,
)
from .store import (
    ISessionStore,
    Limits,
    SessionsUnavailable,
)

__all__ = ["MemorySessionStore"]


@implementer(ISessionStore)
class MemorySessionStore(BaseStore):
    """
    A store that answers at once. What is in it is there as long as it is itself,
    also when it was closed and is initialised again.
    """

    def __init__(
        self,
        reactor: Any,
        limits: Limits | None = None,
        *,
        most: int = 100_000,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param limits: How long sessions live, and how large they may be.
        @param most: How many there may be, with those that have ended and were
            not removed yet; to make one more fails with L{SessionsUnavailable}.
        @param random: The source of chance: answers numbers from 0 to 1.
        """
        super().__init__(reactor, limits, random)
        self._most = most
        self._rows: dict[bytes, Row] = {}
        self._watching: dict[Deferred[None], None] = {}

    def initialize(self) -> Deferred[None]:
        """
        @see: L{IAsyncModule.initialize}
        """
        if not self.initialized:
            self._begin()
        return succeed(None)

    def whenLost(self) -> Deferred[None]:
        """
        @see: L{ISessionStore.whenLost}
        """
        if not self.initialized:
            return succeed(None)
        watching: Deferred[None] = Deferred(self._unwatch)
        self._watching[watching] = None
        return watching

    def _unwatch(self, watching: Deferred[None]) -> None:
        self._watching.pop(watching, None)

    def close(self) -> Deferred[None]:
        """
        @see: L{ISessionStore.close}
        """
        self._end()
        watching, self._watching = self._watching, {}
        for each in watching:
            # The callback of one may have cancelled another.
            if not each.called:
                each.callback(None)
        return succeed(None)

    def _alive(self, key: bytes) -> Row | None:
        row = self._rows.get(key)
        return None if row is None or row[2] <= self._reactor.seconds() else row

    def _read(self, key: bytes) -> Deferred[Row | None]:
        return succeed(self._alive(key))

    def _insert(self, key: bytes, text: str, now: float, ends: float) -> Deferred[bool]:
        if key in self._rows:
            return succeed(False)
        if len(self._rows) >= self._most:
            return fail(SessionsUnavailable(f"there are {self._most} sessions already"))
        self._rows[key] = (text, now, ends, 1)
        return succeed(True)

    def _update(
        self, key: bytes, text: str, ends: float, version: int
    ) -> Deferred[bool]:
        row = self._alive(key)
        if row is None or row[3] != version:
            return succeed(False)
        self._rows[key] = (text, row[1], ends, version + 1)
        return succeed(True)

    def _move(
        self,
        key: bytes,
        newKey: bytes,
        text: str,
        now: float,
        ends: float,
        version: int,
    ) -> Deferred[bool]:
        row = self._alive(key)
        if row is None or row[3] != version:
            return succeed(False)
        del self._rows[key]
        self._rows[newKey] = (text, now, ends, version + 1)
        return succeed(True)

    def _prolong(self, key: bytes) -> Deferred[bool]:
        row = self._alive(key)
        if row is None:
            return succeed(False)
        text, created, expires, version = row
        now = self._reactor.seconds()
        if self.limits.isWorthAWrite(created, expires, now):
            self._rows[key] = (text, created, self.limits.expiry(created, now), version)
        return succeed(True)

    def _delete(self, key: bytes, version: int | None = None) -> Deferred[bool]:
        row = self._alive(key)
        if row is None or version not in (None, row[3]):
            return succeed(False)
        del self._rows[key]
        return succeed(True)

    def _count(self) -> Deferred[int]:
        now = self._reactor.seconds()
        return succeed(sum(row[2] > now for row in self._rows.values()))

    def _list(self, after: bytes, limit: int) -> Deferred[Sequence[tuple[bytes, Row]]]:
        now = self._reactor.seconds()
        keys = sorted(
            key for key, row in self._rows.items() if key > after and row[2] > now
        )
        return succeed([(key, self._rows[key]) for key in keys[: max(limit, 0)]])

    def _removeEnded(self, most: int) -> Deferred[int]:
        now = self._reactor.seconds()
        ended = (key for key, row in self._rows.items() if row[2] <= now)
        return self._remove(ended, most)

    def _removeSome(self, most: int) -> Deferred[int]:
        return self._remove(self._rows, most)

    def _remove(self, keys: Iterable[bytes], most: int) -> Deferred[int]:
        removed = list(islice(keys, most))
        for key in removed:
            del self._rows[key]
        return succeed(len(removed))
