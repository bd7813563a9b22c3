"""
The session of one request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.web.server import Request

from ..errors import OutcomeUnknown, Unavailable
from .store import (
    Changes,
    SessionError,
    StoredSession,
    makeIdentifier,
)
from .values import (
    copied,
    textOf,
    tokenOf,
)

if TYPE_CHECKING:
    from .sessions import Sessions

__all__ = ["Session"]

_TOKEN: Final = "_token"  # noqa: S105
"""
The member of a session whose token was asked for.
"""


class Session(MutableMapping[str, Any]):
    """
    The session of a request: a dictionary whose values JSON can express. What is
    in them may be changed too.

    Who else changes the same session meanwhile loses nothing: see L{Changes
    <tsrv.sessions.Changes>}. To count, use L{add}.
    """

    _log = Logger()

    def __init__(
        self,
        sessions: Sessions,
        request: Request,
        identifier: str | None,
        known: StoredSession | None,
    ) -> None:
        """
        @param sessions: Where it comes from.
        @param request: The request.
        @param identifier: The identifier that the visitor has sent.
        @param known: The session that the store has found for it.
        """
        self._sessions = sessions
        self._request = request
        self._sent = identifier
        self._identifier = None if known is None else identifier
        self._known = known
        # The one that it will have, if it has been told of.
        self._planned: str | None = None
        # What the resource sees, and may have changed; it is made when it is
        # needed.
        self._data: dict[str, Any] | None = None
        self._renews = False
        self._ended: str | None = None
        self._wasUsed = False
        # Whether there is no way to store it with this response.
        self._isHomeless = False
        # What is done to the store for one request is done in order.
        self._lock = DeferredLock()

    def __repr__(self) -> str:
        # Neither the identifier nor what is in it is for a log.
        return f"<Session of {len(self._current())} members>"

    # What is in it.

    def _current(self) -> dict[str, Any]:
        data = self._data
        if data is None:
            known = self._known
            # What the store has said stays as it was, to be compared with.
            data = {} if known is None else copied(known.data)
            self._data = data
        return data

    def __getitem__(self, name: str) -> Any:
        return self._current()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise TypeError("the name of a member of a session is a string")
        self._current()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._current()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in self._current() if name != _TOKEN])

    def __len__(self) -> int:
        return sum(name != _TOKEN for name in self._current())

    @property
    def isNew(self) -> bool:
        """
        Whether the store does not know it, or not yet.
        """
        return self._identifier is None

    def public(self) -> dict[str, Any]:
        """
        @return: What may be shown of it: what is in it, and C{created} and
            C{expires} in seconds of the epoch; nothing by which somebody could
            take it over.
        """
        known = self._known
        return {
            "data": dict(self),
            "isNew": self.isNew,
            "created": None if known is None else known.created,
            "expires": None if known is None else known.expires,
        }

    # What can be done to it as a whole.

    def add(self, name: str, number: int | float = 1) -> Deferred[int | float]:
        """
        Count: add to a member. It is saved at once, with what was changed before.

        @param name: The name of the member; one that is not there, or no number,
            counts as 0.
        @param number: How much.
        @return: A Deferred of what it then is, which no other request is told. It
            fails as that of L{save}.
        """
        if (
            self._data is None
            and self._identifier is not None
            and not self._renews
            and self._ended is None
            and not self._lock.locked
        ):
            return self._addAlone(self._identifier, name, number)
        return self._lock.run(self._add, name, number)

    def _addAlone(
        self, identifier: str, name: str, number: int | float
    ) -> Deferred[int | float]:
        """
        Count while there is nothing else to be saved.
        """
        self._lock.acquire()
        changes = Changes(added={name: number})
        changing = self._sessions.store.set(identifier, changes, self._known)

        def changed(session: StoredSession | None) -> int | float:
            return self._counted(session, {}, name, number)

        def release(result: Any) -> Any:
            self._lock.release()
            return result

        return changing.addCallback(changed).addBoth(release)

    def _add(self, name: str, number: int | float) -> Deferred[int | float]:
        return Deferred.fromCoroutine(self._saveAndAdd(name, number))

    async def _saveAndAdd(self, name: str, number: int | float) -> int | float:
        if self._identifier is None or self._renews or self._ended is not None:
            await self._save()
        added = Changes(added={name: number})
        identifier = self._identifier
        if identifier is None:
            # There is none yet: this is what makes it.
            current = self._current()
            total: int | float = added.applyTo(current)[name]
            current[name] = total
            await self._save()
            return total
        written = self._written()
        changes = self._changesTo(written)
        changes = replace(changes, added=added.added)
        changed = await self._sessions.store.set(identifier, changes, self._known)
        return self._counted(changed, written, name, number)

    def _counted(
        self,
        changed: StoredSession | None,
        written: Mapping[str, str],
        name: str,
        number: int | float,
    ) -> int | float:
        if changed is None:
            self._wasEnded()
            return number
        self._saved(changed, written)
        return changed.counted[name]

    def regenerate(self) -> None:
        """
        Give it another identifier when it is saved, and let the one that it has
        be of no use any more: whenever somebody logs in, or may do more than
        before. Who had made the visitor use a session of his own is left with
        nothing.

        It has to be done before the response begins. If the session has been ended
        meanwhile, what it had in it is gone, and what was put into it since it was
        loaded is in a new one.
        """
        self._renews = True

    def destroy(self) -> None:
        """
        End it when the response is sent: nobody who has kept the cookie can come
        back to it. What is put into it afterwards makes a new one.
        """
        if self._identifier is not None:
            self._ended = self._identifier
        self._identifier = self._known = None
        self._renews = False
        self._data = {}

    @property
    def token(self) -> str:
        """
        What a program has to send as C{X-CSRF-Token} to show that it has read what
        is for its user alone. It is as long the same as the identifier is; to ask
        for that of a session that is new is to store it.
        """
        known = self.knownToken
        if known is not None:
            return known
        if self._planned is None:
            self._planned = makeIdentifier()
            self._current()[_TOKEN] = True
        return tokenOf(self._planned)

    @property
    def knownToken(self) -> str | None:
        """
        The L{token}, if the store knows the session.
        """
        return None if self._identifier is None else tokenOf(self._identifier)

    # Saving it.

    def finish(self) -> Deferred[None] | None:
        """
        Save what was changed, before the response goes out.

        @return: As L{save}; L{None} if there is nothing to be done.
        """
        if not (
            self._lock.locked
            or self._renews
            or self._ended is not None
            or self._isChanged()
        ):
            known = self._known
            if known is None or self._wasUsed:
                return None
            if not self._sessions.isWorthATouch(known):
                return None
        return self.save()

    def _isChanged(self) -> bool:
        data = self._data
        if data is None or self._isHomeless:
            return False
        if self._known is None:
            return bool(data)
        try:
            return bool(self._changesTo(self._written()))
        except SessionError:
            # To be told by who saves it.
            return True

    def save(self) -> Deferred[None]:
        """
        Save what was changed. That is done by itself before the response goes
        out; only who has to know that it is safe earlier needs this.

        @return: A Deferred that fails with an L{Unavailable
            <tsrv.errors.Unavailable>} if the store cannot be asked, with
            L{SessionError<tsrv.sessions.SessionError>} if it is no
            JSON, too large, or if it needs a cookie and the response has begun,
            and with L{TooMany<tsrv.sessions.TooMany>} if too many new visitors
            have come. What could not be saved then is tried again the next time.
        """
        return self._lock.run(lambda: Deferred.fromCoroutine(self._save()))

    async def _save(self) -> None:
        if self._ended is not None:
            await self._end(self._ended)
        if self._identifier is None:
            await self._make()
        elif self._renews:
            await self._renew(self._identifier)
        else:
            await self._change(self._identifier)

    async def _change(self, identifier: str) -> None:
        written = self._written()
        changes = self._changesTo(written)
        if not changes:
            await self._use(identifier)
            return
        changed = await self._sessions.store.set(identifier, changes, self._known)
        if changed is None:
            self._wasEnded()
        else:
            self._saved(changed, written)

    async def _end(self, identifier: str) -> None:
        await self._sessions.store.destroy(identifier)
        self._ended = self._sent = None
        self._sessions.cookies.expire(self._request)

    async def _make(self) -> None:
        """
        Make a session that the store does not have.
        """
        # Who logs in wants a new one, whatever has become of the one before.
        isWanted, self._renews = self._renews, False
        written = self._written()
        if not written:
            return
        identifier = self._planned or makeIdentifier()
        sessions = self._sessions
        sent = None if isWanted else self._sent
        if sent is not None and sessions.wasRenewed(sent):
            # Its browser has been sent another one, which this would replace.
            self._isHomeless = True
            return
        if not self._canSend(identifier):
            return
        sessions.admit(self._request)
        known = await sessions.store.create(identifier, self._current())
        await self._send(identifier, known, written)

    async def _renew(self, old: str) -> None:
        """
        Give it another identifier.
        """
        sessions, identifier = self._sessions, makeIdentifier()
        if not self._canSend(identifier):
            return
        written = self._written()
        changes = self._changesTo(written)
        known = await sessions.store.renew(old, identifier, changes)
        self._renews = False
        sessions.remember(old)
        if known is None:
            # What is new is in a new one.
            self._wasEnded()
            self._sent = None
            self._data = copied(dict(changes.assigned))
            await self._make()
            return
        await self._send(identifier, known, written)

    def _canSend(self, identifier: str) -> bool:
        """
        @return: Whether the browser can be told of an identifier. Without that
            nobody would find what is stored.
        @raise SessionError: It could have been before the response began.
        """
        cookies = self._sessions.cookies
        if cookies.canWrite(self._request):
            return True
        if self._isHomeless:
            return False
        if self._request.startedWriting:
            raise SessionError("the response has begun: no cookie can be sent any more")
        # It says so in the log.
        cookies.write(self._request, identifier)
        self._isHomeless = True
        return False

    async def _send(
        self, identifier: str, known: StoredSession, written: Mapping[str, str]
    ) -> None:
        if not self._sessions.cookies.write(self._request, identifier):
            # The client has left meanwhile, and will never send it.
            self._wasEnded()
            await self._sessions.store.destroy(identifier)
            return
        self._identifier = identifier
        self._saved(known, written)

    async def _use(self, identifier: str) -> None:
        """
        Count that it was used, if that is worth a write.
        """
        known = self._known
        assert known is not None
        if self._wasUsed or not self._sessions.isWorthATouch(known):
            return
        self._wasUsed = True
        try:
            isThere = await self._sessions.store.touch(identifier)
        except (Unavailable, OutcomeUnknown) as error:
            # The response does not depend on it.
            self._log.debug("A use was not counted: {reason}", reason=error)
        else:
            if not isThere:
                self._wasEnded()

    def _wasEnded(self) -> None:
        """
        Somebody has ended it meanwhile; it is not made again. Nor is the browser
        told to forget it: it may have another one by now.
        """
        self._identifier = self._known = None
        self._data = {}

    # Comparing what is there with what is stored.

    def _written(self) -> dict[str, str]:
        """
        @return: All members, as they would be stored.
        @raise SessionError: JSON has no way to say it.
        """
        return {name: textOf(value) for name, value in self._current().items()}

    def _changesTo(self, written: Mapping[str, str]) -> Changes:
        """
        @return: What makes what is stored what is there.
        """
        before = {} if self._known is None else self._known.data
        return Changes(
            {
                name: json.loads(text)
                for name, text in written.items()
                if name not in before or text != textOf(before[name])
            },
            frozenset(before.keys() - written.keys()),
        )

    def _saved(self, known: StoredSession, written: Mapping[str, str]) -> None:
        """
        It has been stored. What others have done is to be seen from now on; what
        has been changed while it was being stored stays, to be stored the next
        time.

        @param written: What was there when that began.
        """
        self._known = known
        self._wasUsed = True
        data = self._data
        if data is None:
            return
        for name in known.data.keys() | written.keys():
            before = written.get(name)
            now = textOf(data[name]) if name in data else None
            if now != before:
                continue
            if name not in known.data:
                data.pop(name, None)
            elif now != textOf(known.data[name]):
                data[name] = copied(known.data[name])
