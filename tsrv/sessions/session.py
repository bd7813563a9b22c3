"""
The session of one request: a dictionary, and when it is saved.

Before the response is sent, the dictionary is compared with what the store returned,
and the differences are saved as L{Changes}. So two requests can change one session at
the same time: each saves only what it has changed itself.

A response with status 429, or 500 and above, says that the request was not carried
out, and saves nothing more: what L{Session.add} and L{Session.save} have saved stays.

The compromises: comparing encodes each member as JSON, unless the request only calls
C{add}. A session can be created or renewed only before the first byte of the response,
while a cookie can be sent. The changes of a request whose session is destroyed
meanwhile are dropped; its cookie stays, because the browser may have a newer one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from copy import deepcopy
from hashlib import sha256
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from ..errors import OutcomeUnknown, Unavailable
from ..queuing.history import explain
from .shared import Shared
from .store import Changes, SessionError, StoredSession, makeIdentifier

__all__ = ["Session"]

_log = Logger("tsrv.sessions")

_ENCODER: Final = json.JSONEncoder(sort_keys=True, allow_nan=False)

_Counters = Mapping[str, int | float]


def _encode(value: Any) -> str:
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionError(
            f"a value of the session cannot be JSON ({type(error).__name__})"
        ) from None


def _encodeAll(data: Mapping[str, Any]) -> dict[str, str]:
    return {name: _encode(value) for name, value in data.items()}


def _tokenOf(identifier: str) -> str:
    return sha256(f"token of {identifier}".encode()).hexdigest()


class Session(MutableMapping[str, Any]):
    """
    The session of a request, as returned by L{get<tsrv.sessions.Sessions.get>}: a
    dictionary whose values JSON can express. Lists and dictionaries in it may be
    changed in place.

    Requests that change one session at the same time keep the changes of each other,
    see L{Changes<tsrv.sessions.Changes>}. Use L{add} to count.
    """

    def __init__(
        self,
        shared: Shared,
        request: Request,
        identifier: str | None = None,
        known: StoredSession | None = None,
    ) -> None:
        """
        @param shared: The parts of the site that all its sessions use.
        @param request: The request.
        @param identifier: The identifier that the browser has sent, if any.
        @param known: The session that the store has under this identifier, if any.
        """
        self._shared = shared
        self._request = request
        self._sent = identifier
        # The identifier under which the store has this session.
        self._identifier = None if known is None else identifier
        self._known = known
        # The identifier that this session will get, if its token was read.
        self._next: str | None = None
        # The copy of _known that the resource sees, made on first use.
        self._data: dict[str, Any] | None = None
        self._renews = False
        self._toDestroy: str | None = None
        # Whether destroy() was called, and no new session was begun since. The result
        # of an operation in progress is then about a session that has ended.
        self._wasDestroyed = False
        self._wasTouched = False
        # The browser cannot get the cookie of a new session.
        self._cannotBeCreated = False
        # Operations of one request on the store run in order.
        self._lock = DeferredLock()

    def __repr__(self) -> str:
        # Neither the identifier nor the data may reach a log.
        return f"<Session of {len(self)} members>"

    def _current(self) -> dict[str, Any]:
        if self._data is None:
            self._data = {} if self._known is None else deepcopy(self._known.data)
        return self._data

    def __getitem__(self, name: str) -> Any:
        return self._current()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise TypeError("the name of a member of a session is a string")
        self._current()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._current()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._current()))

    def __len__(self) -> int:
        return len(self._current())

    @property
    def isNew(self) -> bool:
        """
        Whether the session is not in the store, or not yet.
        """
        return self._identifier is None

    def add(self, name: str, number: int | float = 1) -> Deferred[int | float]:
        """
        Add to a counter, and save the session at once.

        @param name: The name of the counter. A missing member, or one that is not a
            number, counts as 0.
        @param number: The number to add.
        @return: A Deferred of the new value; requests that count at the same time get
            different values. It fails with the errors of L{save}.
        """
        isUnchanged = self._data is None and not self._renews
        if self._identifier is None or not isUnchanged or self._lock.locked:
            return self._lock.run(
                lambda: Deferred.fromCoroutine(self._saveAndAdd(name, number))
            )
        # The most frequent case needs no coroutine.
        self._lock.acquire()
        changes = Changes(added={name: number})
        changing = self._shared.store.set(self._identifier, changes, self._known)
        return changing.addBoth(self._added, name, number)

    def _added(self, result: Any, name: str, number: int | float) -> Any:
        try:
            if isinstance(result, Failure):
                return result
            return self._changed(result, None).get(name, number)
        finally:
            self._lock.release()

    def regenerate(self) -> None:
        """
        Give the session another identifier when it is saved. The old identifier stops
        working. Do so whenever a user logs in or gets more rights: an attacker who
        made the browser use a known session then cannot use the logged-in one.

        Call this before the response begins. If another request destroys the session
        meanwhile, a new session gets only the members that this request assigned.
        """
        self._renews = True
        self._cannotBeCreated = False

    def destroy(self) -> None:
        """
        End the session before the response is sent; its cookie stops working. Members
        that are assigned after this call become a new session.
        """
        if self._identifier is not None:
            self._toDestroy = self._identifier
        self._forget()
        self._renews, self._next, self._wasDestroyed = False, None, True

    @property
    def token(self) -> str:
        """
        The value of C{X-CSRF-Token} by which a client proves that it can read pages of
        this session, see L{checkOrigin<tsrv.web.origin.checkOrigin>}. The token changes
        with the identifier. A session whose token was read is stored, even if it is
        empty.
        """
        if self._identifier is not None and not self._renews:
            return _tokenOf(self._identifier)
        self._next = self._next or makeIdentifier()
        return _tokenOf(self._next)

    def save(self) -> Deferred[None]:
        """
        Save all changes now. Without this call, they are saved before the response is
        sent.

        @return: A Deferred that fires when all changes are saved. It fails with
            L{Unavailable<tsrv.errors.Unavailable>} if the store is unavailable, with
            L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} if the store was lost
            meanwhile, with L{SessionError<tsrv.sessions.SessionError>} if the data
            cannot be JSON, is too large, or needs a cookie after the response has
            begun, and with L{TooMany<tsrv.sessions.TooMany>} if there are too many new
            sessions. The next save retries changes that failed.
        """
        return self._lock.run(lambda: Deferred.fromCoroutine(self._save()))

    def saveBeforeResponse(self) -> Deferred[None] | None:
        """
        Save all changes before the next byte of the response.

        @return: A Deferred that fails like the Deferred of L{save}; L{None} if
            nothing has changed.
        """
        if (
            self._request.code >= 500
            or self._request.code == HTTPStatus.TOO_MANY_REQUESTS
        ):
            if self._lock.locked:
                return self._lock.run(self._takeBack)
            self._takeBack()
            return None
        return self.save() if self._lock.locked or self._needsSaving() else None

    def _takeBack(self) -> None:
        """
        Drop all changes that are not saved.
        """
        self._data = self._next = self._toDestroy = None
        self._renews = False

    def _needsSaving(self) -> bool:
        if self._toDestroy is not None:
            return True
        if self._renews:
            return not self._cannotBeCreated
        if self._known is None:
            isWanted = bool(self._data) or self._next is not None
            return isWanted and not self._cannotBeCreated
        if self._isWorthTouching(self._known):
            return True
        try:
            return self._data is not None and bool(self._changes(self._encoded()))
        except SessionError:
            # save() reports the error.
            return True

    def _isWorthTouching(self, known: StoredSession) -> bool:
        return not self._wasTouched and self._shared.isWorthTouching(known)

    async def _save(self) -> None:
        if self._toDestroy is not None:
            await self._shared.store.destroy(self._toDestroy)
            self._toDestroy = None
            self._shared.cookies.expire(self._request)
        if self._identifier is None:
            await self._create()
        elif self._renews:
            await self._renew(self._identifier)
        else:
            await self._change(self._identifier, {})

    async def _saveAndAdd(self, name: str, number: int | float) -> int | float:
        if self._renews and self._identifier is not None:
            await self._save()
        added = {name: number}
        if self._identifier is not None:
            return (await self._change(self._identifier, added)).get(name, number)
        current = self._current()
        before = dict(current)
        total: int | float = Changes(added=added).applyTo(current)[name]
        current[name] = total
        try:
            await self._save()
        except BaseException:
            # The caller gets an error: the next save must not count the number.
            if name in before:
                current[name] = before[name]
            else:
                current.pop(name, None)
            raise
        return total

    async def _change(self, identifier: str, added: _Counters) -> _Counters:
        encoded = self._encoded()
        changes = self._changes(encoded, added)
        if not changes:
            await self._touch(identifier)
            return {}
        changed = await self._shared.store.set(identifier, changes, self._known)
        return self._changed(changed, encoded)

    def _changed(
        self, changed: StoredSession | None, encoded: Mapping[str, str] | None
    ) -> _Counters:
        if not self._wasDestroyed:
            if changed is None:
                self._forget()
            else:
                self._merge(changed, encoded)
        return {} if changed is None else changed.counted

    async def _create(self) -> None:
        # A login gets a new session even if the old one has ended.
        isLogin, self._renews = self._renews, False
        if not self._data and self._next is None:
            return
        if (
            self._sent
            and not (isLogin or self._cannotBeCreated)
            and await self._shared.store.wasRenewed(self._sent)
        ):
            # The new cookie would replace the one of the renewed session.
            self._cannotBeCreated = True
        if not self._canSend():
            return
        encoded = self._encoded()
        identifier = self._next or makeIdentifier()
        quota = self._shared.quota
        uncount = None if quota is None else quota.count(self._request)
        # While the call is queued, the resource may go on to change members.
        data = {name: json.loads(text) for name, text in (encoded or {}).items()}
        self._wasDestroyed = False
        try:
            stored = await self._shared.store.create(identifier, data)
        except (Unavailable, SessionError):
            if uncount is not None:
                uncount()
            raise
        await self._send(identifier, stored, encoded)

    async def _renew(self, old: str) -> None:
        if not self._canSend():
            return
        identifier = self._next or makeIdentifier()
        encoded = self._encoded()
        changes = self._changes(encoded)
        stored = await self._shared.store.renew(old, identifier, changes)
        # _create() need not ask whether another request has renewed the session.
        self._renews, self._sent = False, None
        if stored is not None:
            await self._send(identifier, stored, encoded)
        elif not self._wasDestroyed:
            self._forget()
            self._data = dict(changes.assigned)
            await self._create()

    def _canSend(self) -> bool:
        if self._cannotBeCreated:
            return False
        if self._request.startedWriting:
            raise SessionError("no cookie can be sent: the response has begun")
        self._cannotBeCreated = not self._shared.cookies.canWrite(self._request)
        return not self._cannotBeCreated

    async def _send(
        self, identifier: str, stored: StoredSession, encoded: Mapping[str, str] | None
    ) -> None:
        if self._wasDestroyed:
            self._toDestroy = identifier
        elif self._shared.cookies.write(self._request, identifier):
            self._identifier, self._next = identifier, None
            self._merge(stored, encoded)
        else:
            # The client has disconnected, and will never send this identifier.
            self._forget()
            await self._shared.store.destroy(identifier)

    async def _touch(self, identifier: str) -> None:
        assert self._known is not None
        if not self._isWorthTouching(self._known):
            return
        self._wasTouched = True
        try:
            exists = await self._shared.store.touch(identifier)
        except (Unavailable, OutcomeUnknown) as error:
            # The response does not depend on the expiry.
            _log.debug("Cannot extend a session: {error}", error=explain(error))
        else:
            if not (exists or self._wasDestroyed):
                self._forget()

    def _forget(self) -> None:
        self._identifier = self._known = None
        self._data = {}

    def _encoded(self) -> dict[str, str] | None:
        # None if the request has not accessed the members.
        return None if self._data is None else _encodeAll(self._data)

    def _changes(
        self, encoded: Mapping[str, str] | None, added: _Counters = MappingProxyType({})
    ) -> Changes:
        if encoded is None:
            return Changes(added=added)
        before = {} if self._known is None else self._known.data
        assigned = {
            name: json.loads(text)
            for name, text in encoded.items()
            if name not in before or text != _encode(before[name])
        }
        removed = frozenset(before.keys() - encoded.keys())
        return Changes(assigned, removed, added)

    def _merge(self, stored: StoredSession, encoded: Mapping[str, str] | None) -> None:
        """
        Show the changes of other requests, but keep changes that this request has made
        since the save began with the members C{encoded}.
        """
        previous, self._known = self._known, stored
        self._wasTouched = True
        data = self._data
        if data is None:
            return
        if encoded is None:
            encoded = {} if previous is None else _encodeAll(previous.data)
        theirs = _encodeAll(stored.data)
        if theirs == encoded:
            return
        for name in theirs.keys() | encoded.keys():
            now = _encode(data[name]) if name in data else None
            if now != encoded.get(name) or now == theirs.get(name):
                continue
            if name in theirs:
                data[name] = json.loads(theirs[name])
            else:
                data.pop(name, None)
