"""
Merges the changes that several requests make to one session.

A process writes the changes of one session one after the other. While one change is
written, further ones wait, and are then written together. Between processes the
version of the row decides: an update names the version that was read. If another
process was faster, the changes are applied again, to the latest version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from ..asyncmodule import timeOfDay
from .store import (
    Changes,
    Limits,
    SessionError,
    SessionsUnavailable,
    StoredSession,
    encode,
)

__all__ = ["MAX_ATTEMPTS", "Merger", "contended", "copyOf"]

MAX_WAITING_CHANGES: Final = 10_000
"""
Maximum number of changes that wait for one session.
"""

MAX_WRITTEN_TOGETHER: Final = 32
"""
Maximum number of changes in one write. Checking the size of each change, and copying
the session for its caller, blocks the reactor.
"""

MAX_ATTEMPTS: Final = 100
"""
Maximum number of attempts to change a session that other processes change too.
"""

_IMMUTABLE: Final = frozenset({str, int, float, bool, type(None)})


class _Change:
    """
    A change whose caller waits for the result.

    @ivar withdraw: Called when the caller cancels the change.
    @ivar result: The session after the change, or the error.
    """

    __slots__ = ("changes", "deferred", "known", "result", "withdraw")

    deferred: Deferred[StoredSession | None]
    withdraw: Callable[[], object]

    def __init__(self, changes: Changes, known: StoredSession | None) -> None:
        self.changes = changes
        self.known = known
        self.result: StoredSession | SessionError | None = None

    def cancelled(self, deferred: Deferred[StoredSession | None]) -> None:
        self.withdraw()

    def settle(self, failure: Failure | None) -> None:
        if self.deferred.called:
            return
        if failure is not None:
            self.deferred.errback(failure.value)
        elif isinstance(self.result, SessionError):
            self.deferred.errback(self.result)
        else:
            self.deferred.callback(self.result)


class Merger:
    """
    Merges and writes the changes of all sessions of a store.
    """

    def __init__(
        self,
        reactor: Any,
        limits: Limits,
        get: Callable[[bytes], Deferred[StoredSession | None]],
        replace: Callable[[bytes, int, bytes, Any], Deferred[bool]],
    ) -> None:
        """
        @param reactor: Provides the time.
        @param limits: Lifetimes and maximum size of sessions.
        @param get: Reads a session.
        @param replace: Replaces the row of a session, if it has the version that
            was read.
        """
        self._reactor = reactor
        self._limits = limits
        self._get = get
        self._replace = replace
        # The changes that wait, for each session that is being written.
        self._waiting: dict[bytes, dict[_Change, None]] = {}

    def change(
        self, key: bytes, changes: Changes, known: StoredSession | None
    ) -> Deferred[StoredSession | None]:
        """
        Change a session, see L{ISessionStore.set<tsrv.sessions.ISessionStore.set>}.
        """
        change = _Change(changes, known)
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = {}
            return Deferred.fromCoroutine(self._writeFirst(key, change))
        if len(waiting) >= MAX_WAITING_CHANGES:
            sentence = f"{MAX_WAITING_CHANGES} changes wait for this session already"
            return fail(SessionsUnavailable(sentence))
        waiting[change] = None
        change.withdraw = lambda: waiting.pop(change, None)
        change.deferred = Deferred(change.cancelled)
        return change.deferred

    async def _writeFirst(self, key: bytes, change: _Change) -> StoredSession | None:
        try:
            await self._write(key, [change])
        finally:
            if self._waiting[key]:
                Deferred.fromCoroutine(self._writeWaiting(key))
            else:
                del self._waiting[key]
        if isinstance(change.result, SessionError):
            raise change.result
        return change.result

    async def _writeWaiting(self, key: bytes) -> None:
        waiting = self._waiting[key]
        while batch := list(islice(waiting, MAX_WRITTEN_TOGETHER)):
            for each in batch:
                del waiting[each]
            failure: Failure | None = None
            try:
                await self._write(key, batch)
            except Exception:
                failure = Failure()
            for each in batch:
                each.settle(failure)
        del self._waiting[key]

    async def _write(self, key: bytes, batch: list[_Change]) -> None:
        known = batch[0].known
        for each in batch[1:]:
            if known is None or (each.known and each.known.version > known.version):
                known = each.known
        for _ in range(MAX_ATTEMPTS):
            isCurrent = known is None
            if known is None:
                known = await _cancellable(batch, self._get(key))
            if known is None:
                for each in batch:
                    each.result = None
                return
            data, text, counters = self._applyAll(batch, known)
            if text is None and isCurrent:
                return
            created, version = known.created, known.version + 1
            expires = self._limits.expiry(created, timeOfDay(self._reactor))
            row = text, created, expires, version
            if text is not None and await _cancellable(
                batch, self._replace(key, known.version, key, row)
            ):
                for each, counted in zip(batch, counters, strict=True):
                    if each.result is None:
                        each.result = StoredSession(
                            copyOf(data, text), created, expires, version, counted
                        )
                return
            # The session may have changed since it was read.
            known = None
        raise contended()

    def _applyAll(
        self, batch: list[_Change], known: StoredSession
    ) -> tuple[Mapping[str, Any], bytes | None, list[Mapping[str, Any]]]:
        """
        Apply changes that come from different requests. A change that cannot be
        applied fails alone.

        @return: The content after the changes; the same as JSON, or L{None} if no
            change can be applied; and for each change its counters.
        """
        data: Mapping[str, Any] = known.data
        text: bytes | None = None
        counters: list[Mapping[str, Any]] = []
        for each in batch:
            try:
                changed = each.changes.applyTo(data)
                text = encode(changed, self._limits)
            except SessionError as error:
                each.result = error
                counters.append({})
            else:
                each.result = None
                data = changed
                counters.append({name: data[name] for name in each.changes.added})
        return data, text, counters


def _cancellable(batch: list[_Change], waited: Deferred[Any]) -> Deferred[Any]:
    """
    If the batch is one change, let its cancellation cancel the Deferred. Cancelling
    one of several changes does not affect the others.
    """
    if len(batch) == 1:
        batch[0].withdraw = waited.cancel
    return waited


def copyOf(data: Mapping[str, Any], text: bytes) -> dict[str, Any]:
    """
    @param data: The content of a session.
    @param text: The same as JSON.
    @return: A copy that shares no mutable value with the original.
    """
    if all(type(name) is str and type(data[name]) in _IMMUTABLE for name in data):
        return dict(data)
    copy: dict[str, Any] = json.loads(text)
    return copy


def contended() -> SessionsUnavailable:
    """
    @return: The error if other processes change the session all the time.
    """
    return SessionsUnavailable("too many processes change this session at once")
