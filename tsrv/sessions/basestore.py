"""
What all stores of sessions have in common: what an identifier is, how changes of
several requests come together, when a use is worth a write, and who sweeps.

What is asked for one session while it is being written waits, and is written
together. Between processes a version decides: who finds another one than he has
read looks again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from random import random as _random
from typing import Any, Final

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

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

Row = tuple[str | bytes, float, float, int]
"""
The JSON of a session, when it was made, when it ends, and its version.
"""

_MOST: Final = 10_000
"""
How many changes may wait for one session.
"""

_TOGETHER: Final = 32
"""
How many of them are written together. Each has to be seen to fit, and is answered
with a copy, which all takes time of the reactor.
"""

_TRIES: Final = 100
"""
How often a change is tried that finds that another process was faster.
"""

_NUMBERS: Final = (int, float)

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""
What has nothing in it that could be changed, and comes back from JSON as it was.
"""


class _Change:
    """
    What is to be done to a session.

    @ivar leave: Called when its caller gives it up.
    @ivar session: The session as it is afterwards, or why it is not.
    @ivar answer: Fires with that.
    """

    __slots__ = ("answer", "changes", "known", "leave", "session")

    def __init__(self, changes: Changes, known: StoredSession | None) -> None:
        self.changes = changes
        self.known = known
        self.session: StoredSession | SessionError | None = None
        self.leave: Callable[[], object] = lambda: None
        self.answer: Deferred[StoredSession | None] = Deferred(self._giveUp)

    def _giveUp(self, answer: Deferred[StoredSession | None]) -> None:
        self.leave()

    def settle(self, failure: Failure | None) -> None:
        """
        Answer, if somebody still waits.
        """
        if self.answer.called:
            return
        if failure is not None:
            self.answer.errback(failure.value)
        elif isinstance(self.session, SessionError):
            self.answer.errback(self.session)
        else:
            self.answer.callback(self.session)


class BaseStore(Sweeper):
    """
    A store, but for where it is. How a session is read and written is left to
    the methods that begin with an underscore and raise L{NotImplementedError}.

    @ivar limits: How long its sessions live.
    """

    def __init__(
        self,
        reactor: Any,
        limits: Limits | None = None,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param limits: How long sessions live, and how large they may be.
        @param random: The source of chance: answers numbers from 0 to 1.
        """
        super().__init__(reactor, random)
        self.limits = limits or Limits()
        self._writing: dict[bytes, dict[_Change, None]] = {}

    # What a kind of store does.

    def _read(self, key: bytes) -> Deferred[Row | None]:
        """
        @return: A Deferred of what is kept, if it has not ended.
        """
        raise NotImplementedError

    def _insert(self, key: bytes, text: str, now: float, ends: float) -> Deferred[bool]:
        """
        Keep a session that is new.

        @return: A Deferred of whether there was none.
        """
        raise NotImplementedError

    def _update(
        self, key: bytes, text: str, ends: float, version: int
    ) -> Deferred[bool]:
        """
        Replace a session, if it still has that version and has not ended.

        @return: A Deferred of whether it had.
        """
        raise NotImplementedError

    def _move(
        self,
        key: bytes,
        newKey: bytes,
        text: str,
        now: float,
        ends: float,
        version: int,
    ) -> Deferred[bool]:
        """
        Replace a session, if it still has that version and has not ended, and keep
        it under another key, as if it had been made now.

        @return: A Deferred of whether it had.
        """
        raise NotImplementedError

    def _prolong(self, key: bytes) -> Deferred[bool]:
        """
        Begin the idle time of a session anew, unless that was done just before.

        @return: A Deferred of whether there is such a session.
        """
        raise NotImplementedError

    def _delete(self, key: bytes, version: int | None = None) -> Deferred[bool]:
        """
        Remove a session.

        @param version: The version that it must have, if that matters.
        @return: A Deferred of whether there was one.
        """
        raise NotImplementedError

    def _count(self) -> Deferred[int]:
        """
        @return: A Deferred of how many there are that have not ended.
        """
        raise NotImplementedError

    def _list(self, after: bytes, limit: int) -> Deferred[Sequence[tuple[bytes, Row]]]:
        """
        @return: A Deferred of keys and what is kept under them, in their order.
        """
        raise NotImplementedError

    # What all do.

    def get(self, identifier: str) -> Deferred[StoredSession | None]:
        """
        @see: L{ISessionStore.get<tsrv.sessions.ISessionStore.get>}
        """
        if not self.initialized:
            return self._notYet()
        key = keyOf(identifier)
        return succeed(None) if key is None else self._get(key)

    def _get(self, key: bytes) -> Deferred[StoredSession | None]:
        return self._read(key).addCallback(self._decoded, key)

    def _decoded(self, row: Row | None, key: bytes) -> StoredSession | None:
        if row is None:
            return None
        text, created, expires, version = row
        data = decode(text) if isinstance(text, str | bytes) else None
        if (
            data is None
            or type(created) not in _NUMBERS
            or type(expires) not in _NUMBERS
            or type(version) is not int
        ):
            name = key.hex()[:12]
            self._log.warn("Removed a session that is damaged: {key}", key=name)
            self._delete(key, version).addErrback(self._notRemoved)
            return None
        return StoredSession(data, created, expires, version)

    def _notRemoved(self, reason: Failure) -> None:
        self._log.warn("It could not be removed: {reason}", reason=reason.value)

    def create(
        self, identifier: str, data: Mapping[str, Any]
    ) -> Deferred[StoredSession]:
        """
        @see: L{ISessionStore.create<tsrv.sessions.ISessionStore.create>}
        """
        if not self.initialized:
            return self._notYet()
        key = keyOf(identifier)
        if key is None:
            return fail(SessionError("that is no identifier of a session"))
        try:
            text = encode(data, self.limits)
        except SessionError as error:
            return fail(error)
        now: float = self._reactor.seconds()
        made = StoredSession(decode(text) or {}, now, self.limits.expiry(now, now), 1)
        return self._insert(key, text, now, made.expires).addCallback(_made, made)

    def set(
        self, identifier: str, changes: Changes, known: StoredSession | None = None
    ) -> Deferred[StoredSession | None]:
        """
        @see: L{ISessionStore.set<tsrv.sessions.ISessionStore.set>}
        """
        if not self.initialized:
            return self._notYet()
        key = keyOf(identifier)
        if key is None:
            return succeed(None)
        change = _Change(changes, known)
        waiting = self._writing.get(key)
        if waiting is None:
            self._writing[key] = {}
            self._carryOut(key, change)
        elif len(waiting) >= _MOST:
            sentence = f"{_MOST} changes wait for one session already"
            return fail(SessionsUnavailable(sentence))
        else:
            waiting[change] = None
            change.leave = lambda: waiting.pop(change, None)
        return change.answer

    def _carryOut(self, key: bytes, change: _Change) -> None:
        """
        Carry out one change, with as little to do as possible if the session has
        been read before, as most have.
        """
        known = change.known
        if known is None:
            Deferred.fromCoroutine(self._write(key, [change]))
            return
        data, text, counted = self._applied([change], known)
        if not text:
            # There may be more room by now.
            change.known = None
            Deferred.fromCoroutine(self._write(key, [change]))
            return
        ends = self.limits.expiry(known.created, self._reactor.seconds())

        def updated(isDone: bool) -> None:
            if isDone:
                change.session = StoredSession(
                    _own(data, text), known.created, ends, known.version + 1, counted[0]
                )
                change.settle(None)
                self._goOn(key)
            else:
                change.known = None
                Deferred.fromCoroutine(self._write(key, [change]))

        def failed(failure: Failure) -> None:
            change.settle(failure)
            self._goOn(key)

        updating = self._update(key, text, ends, known.version)
        change.leave = updating.cancel
        updating.addCallbacks(updated, failed)

    def _goOn(self, key: bytes) -> None:
        changes = self._following(key)
        if changes:
            Deferred.fromCoroutine(self._write(key, changes))
        else:
            del self._writing[key]

    def _following(self, key: bytes) -> list[_Change]:
        """
        @return: What has waited longest, and waits no more.
        """
        waiting = self._writing[key]
        changes = list(islice(waiting, _TOGETHER))
        for change in changes:
            del waiting[change]
        return changes

    async def _write(self, key: bytes, changes: list[_Change]) -> None:
        """
        Carry out changes together, and what comes meanwhile afterwards.
        """
        while changes:
            writing = Deferred.fromCoroutine(self._change(key, changes))
            for change in changes:
                # Who is the only one may give it up.
                change.leave = writing.cancel if len(changes) == 1 else lambda: None
            failure: Failure | None = None
            try:
                await writing
            except Exception:
                failure = Failure()
            for change in changes:
                change.settle(failure)
            changes = self._following(key)
        del self._writing[key]

    async def _change(self, key: bytes, changes: list[_Change]) -> None:
        """
        Apply changes to a session as it is now.
        """
        known = max(
            (each.known for each in changes if each.known is not None),
            key=lambda session: session.version,
            default=None,
        )
        isFresh = False
        for _ in range(_TRIES):
            if known is None:
                known, isFresh = await self._get(key), True
            if known is None:
                for change in changes:
                    change.session = None
                return
            data, text, counted = self._applied(changes, known)
            if not text and isFresh:
                # None of them can be.
                return
            ends = self.limits.expiry(known.created, self._reactor.seconds())
            if text and await self._update(key, text, ends, known.version):
                created, version = known.created, known.version + 1
                for change, numbers in zip(changes, counted, strict=True):
                    if change.session is None:
                        change.session = StoredSession(
                            _own(data, text), created, ends, version, numbers
                        )
                return
            # Somebody else was faster, or may have been.
            known = None
        raise SessionsUnavailable("a session is changed by too many at a time")

    def _applied(
        self, changes: list[_Change], known: StoredSession
    ) -> tuple[Mapping[str, Any], str, list[Mapping[str, Any]]]:
        """
        Apply changes to a session. One that cannot be is told so; the others have
        done nothing wrong.

        @return: What is in the session then, the same as it is stored, or nothing
            if none can be, and for each change what its counters are.
        """
        data: Mapping[str, Any] = known.data
        counted: list[Mapping[str, Any]] = []
        text = ""
        for change in changes:
            try:
                changed = change.changes.applyTo(data)
                text = encode(changed, self.limits)
            except SessionError as error:
                change.session = error
                counted.append({})
            else:
                change.session = None
                data = changed
                counted.append({name: data[name] for name in change.changes.added})
        return data, text, counted

    def renew(
        self, identifier: str, replacement: str, changes: Changes
    ) -> Deferred[StoredSession | None]:
        """
        @see: L{ISessionStore.renew<tsrv.sessions.ISessionStore.renew>}
        """
        if not self.initialized:
            return self._notYet()
        key, newKey = keyOf(identifier), keyOf(replacement)
        if newKey is None:
            return fail(SessionError("that is no identifier of a session"))
        if key is None:
            return succeed(None)
        return Deferred.fromCoroutine(self._renew(key, newKey, changes))

    async def _renew(
        self, key: bytes, newKey: bytes, changes: Changes
    ) -> StoredSession | None:
        for _ in range(_TRIES):
            known = await self._get(key)
            if known is None:
                return None
            data = changes.applyTo(known.data)
            text = encode(data, self.limits)
            now: float = self._reactor.seconds()
            ends = self.limits.expiry(now, now)
            if await self._move(key, newKey, text, now, ends, known.version):
                return StoredSession(_own(data, text), now, ends, known.version + 1)
        raise SessionsUnavailable("a session is changed by too many at a time")

    def touch(self, identifier: str) -> Deferred[bool]:
        """
        @see: L{ISessionStore.touch<tsrv.sessions.ISessionStore.touch>}
        """
        if not self.initialized:
            return self._notYet()
        key = keyOf(identifier)
        return succeed(False) if key is None else self._prolong(key)

    def destroy(self, identifier: str) -> Deferred[bool]:
        """
        @see: L{ISessionStore.destroy<tsrv.sessions.ISessionStore.destroy>}
        """
        if not self.initialized:
            return self._notYet()
        key = keyOf(identifier)
        return succeed(False) if key is None else self._delete(key)

    def all(self, after: bytes = b"", limit: int = 1000) -> Deferred[Sequence[Entry]]:
        """
        @see: L{ISessionStore.all<tsrv.sessions.ISessionStore.all>}
        """
        if not self.initialized:
            return self._notYet()
        return Deferred.fromCoroutine(self._all(after, limit))

    async def _all(self, after: bytes, limit: int) -> Sequence[Entry]:
        while True:
            rows = await self._list(after, limit)
            found = [(key, self._decoded(row, key)) for key, row in rows]
            entries = [(key, each) for key, each in found if each is not None]
            if entries or not rows:
                return entries
            # All of these are damaged, but there may be more.
            after = rows[-1][0]

    def length(self) -> Deferred[int]:
        """
        @see: L{ISessionStore.length<tsrv.sessions.ISessionStore.length>}
        """
        return self._count() if self.initialized else self._notYet()


def _made(isNew: bool, session: StoredSession) -> StoredSession:
    if not isNew:
        raise SessionError("there is a session of that identifier already")
    return session


def _own(data: Mapping[str, Any], text: str) -> dict[str, Any]:
    """
    @return: What is in a session, in which nobody else can change anything.
    """
    if all(type(name) is str and type(data[name]) in _PLAIN for name in data):
        return dict(data)
    own: dict[str, Any] = json.loads(text)
    return own
