"""
Web sessions that outlive the process.

A session is a JSON object behind an identifier that only its visitor knows. A
store keeps it under the SHA-256 of that identifier: whoever reads the store can
log in as nobody.

What a request has done to a session reaches the store as L{Changes}, not as a
whole new session: so of two requests at a time, neither undoes what the other
did. A session is made once, by an insertion; every later change is an update,
and finds nothing if the session has been destroyed meanwhile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from secrets import token_urlsafe
from typing import Any, Final, NoReturn

from twisted.internet.defer import Deferred

from ..asyncmodule import IAsyncModule
from ..errors import Unavailable

__all__ = [
    "Changes",
    "Entry",
    "ISessionStore",
    "Limits",
    "SessionError",
    "SessionTooLarge",
    "SessionsUnavailable",
    "StoredSession",
    "checkTable",
    "decode",
    "encode",
    "keyOf",
    "makeIdentifier",
]

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,54}")
"""
PostgreSQL cuts names off behind 63 characters, and that of the index is longer.
"""

_RESERVED: Final = ("sqlite_", "pg_", "tsrv_schema")

_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)
"""
What C{json.dumps} would make anew each time.
"""

_DEEPEST: Final = 100
"""
How often there may be something in something.
"""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class SessionError(Exception):
    """
    Something is wrong with a session, and no retry will help.
    """


class SessionTooLarge(SessionError):
    """
    A session has more in it than a store takes.
    """


class SessionsUnavailable(Unavailable):
    """
    The sessions cannot be had now.
    """


def makeIdentifier() -> str:
    """
    @return: An identifier that nobody can guess: 256 bits, in 43 characters that
        a cookie may have.
    """
    return token_urlsafe(32)


def keyOf(identifier: str) -> bytes | None:
    """
    @param identifier: What a visitor has sent.
    @return: Under what its session is kept; L{None} if no session can have such
        an identifier.
    """
    if _NAME.fullmatch(identifier) is None:
        return None
    return sha256(identifier.encode("ascii")).digest()


def checkTable(name: str) -> str:
    """
    @param name: The name of a table.
    @return: The name.
    @raise ValueError: It is no plain identifier.
    """
    if _IDENTIFIER.fullmatch(name) is None or name.lower().startswith(_RESERVED):
        raise ValueError(
            "the name of a table has to be up to 55 letters, digits and _, and must "
            "not begin with a digit, or as those of the database itself do"
        )
    return name


@dataclass(frozen=True)
class Limits:
    """
    How long a session lives, and how large it may be.

    @ivar idle: The seconds after which one that nobody uses ends; L{None} for
        never.
    @ivar absolute: The seconds after which each ends; L{None} for never. Where
        neither is given, a day.
    @ivar size: How many bytes its JSON may have.
    """

    idle: float | None = 30 * 60.0
    absolute: float | None = 8 * 3600.0
    size: int = 64 * 1024

    def expiry(self, created: float, now: float) -> float:
        """
        @param created: When a session was made, in seconds of the epoch.
        @param now: When it was used.
        @return: When it ends, unless it is used again.
        """
        if self.idle is None and self.absolute is None:
            return created + 24 * 3600.0
        ends = [now + self.idle] if self.idle is not None else []
        if self.absolute is not None:
            ends.append(created + self.absolute)
        return min(ends)

    def isWorthAWrite(self, created: float, expires: float, now: float) -> bool:
        """
        @param created: When a session was made.
        @param expires: When it ends, if it is not used again.
        @param now: When it is used.
        @return: Whether that moves its end by so much that it is worth to be
            written: by a twentieth of the idle limit.
        """
        if self.idle is None:
            return False
        return self.expiry(created, now) - expires >= self.idle / 20


@dataclass(frozen=True, slots=True)
class StoredSession:
    """
    A session as a store has it.

    @ivar data: What is in it; the caller's own.
    @ivar created: When it was made, in seconds of the epoch.
    @ivar expires: When it ends, unless it is used again.
    @ivar version: How often it has been changed.
    @ivar counted: What the counters to which a caller has added were at then,
        before others came.
    """

    data: dict[str, Any] = field(repr=False)
    created: float
    expires: float
    version: int
    counted: Mapping[str, int | float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Changes:
    """
    What was done to a session.

    Where two requests assign to the same member, the later one wins; what they
    do to different members is all there; and what they add to a counter is
    summed up.

    @ivar assigned: Members with their new values.
    @ivar removed: The names of members that are to go.
    @ivar added: What is to be added to members that are numbers; one that is
        not there, or is none, counts as 0.
    """

    assigned: Mapping[str, Any] = field(default_factory=dict, repr=False)
    removed: frozenset[str] = frozenset()
    added: Mapping[str, int | float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.assigned or self.removed or self.added)

    def applyTo(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """
        @param data: What is in a session.
        @return: What is in it afterwards.
        @raise SessionError: A number becomes too large.
        """
        changed = {
            name: value for name, value in data.items() if name not in self.removed
        }
        changed.update(self.assigned)
        for name, number in self.added.items():
            before: Any = changed.get(name)
            try:
                changed[name] = number + (before if type(before) in (int, float) else 0)
            except (TypeError, OverflowError) as error:
                raise SessionError(
                    f"a counter cannot be added to ({type(error).__name__})"
                ) from None
        return changed


def encode(data: Mapping[str, Any], limits: Limits) -> str:
    """
    @param data: What is in a session.
    @param limits: How large it may be.
    @return: It in JSON.
    @raise SessionTooLarge: It has more in it.
    @raise SessionError: JSON has no way to say it.
    """
    try:
        text = _ENCODER.encode(dict(data))
        if text.count("[") + text.count("{") > _DEEPEST:
            _checkDepth(data, _DEEPEST)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionError(
            f"what is in the session cannot be JSON ({type(error).__name__})"
        ) from None
    if size > limits.size:
        raise SessionTooLarge(f"the session has more than {limits.size} bytes")
    return text


def _checkDepth(value: Any, left: int) -> None:
    """
    @raise ValueError: There is something in something, and so on, too often: who
        reads it has less room than who has written it.
    """
    if isinstance(value, Mapping | list | tuple):
        if not left:
            raise ValueError("nested too deeply")
        for each in value.values() if isinstance(value, Mapping) else value:
            _checkDepth(each, left - 1)


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError("too large")
    return number


def _noNumber(name: str) -> NoReturn:
    raise ValueError("not a number")


_DECODER: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_noNumber)


def decode(text: str | bytes) -> dict[str, Any] | None:
    """
    @param text: What a store has.
    @return: What is in the session; L{None} if it is damaged.
    """
    try:
        data = _DECODER.decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


class ISessionStore(IAsyncModule):
    """
    A place for sessions, which answers later.

    Identifiers are what visitors have; a store keeps a session under L{keyOf} of
    its identifier, and answers to one that it does not know, that is no
    identifier, or whose session has ended, that there is none: never by making
    one.

    Each Deferred may be cancelled: what has not begun is not done then. Each
    fails with an L{Unavailable<tsrv.errors.Unavailable>} if the store
    cannot be asked now, in which case nothing was done; and, if it changes
    something, with L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} if nobody
    knows whether that was done. Before it was initialised, and after it was
    closed, each fails with L{NotInitialized<tsrv.asyncmodule.NotInitialized>}.
    """

    def get(identifier: str) -> Deferred[StoredSession | None]:
        """
        @return: A Deferred of the session, or of L{None}. One that is damaged is
            removed, which is logged, and counts as absent.
        """

    def set(
        identifier: str, changes: Changes, known: StoredSession | None = None
    ) -> Deferred[StoredSession | None]:
        """
        Change a session, and count that as a use of it.

        @param changes: What is to be done to it.
        @param known: The session as it was found; if it still is so, it need not
            be looked up again.
        @return: A Deferred of the session as it is then; or of L{None}, if there
            is none any more: it is not made again. It fails with
            L{SessionError} if what would be in it is too large, or no JSON.
        """

    def create(identifier: str, data: Mapping[str, Any]) -> Deferred[StoredSession]:
        """
        Make a session.

        @param identifier: A new one, see L{makeIdentifier}.
        @return: A Deferred of the session. It fails with L{SessionError} if there
            is one of that identifier, or as that of L{set}.
        """

    def renew(
        identifier: str, replacement: str, changes: Changes
    ) -> Deferred[StoredSession | None]:
        """
        Change a session, and give it another identifier, at once: there is no
        moment in which it has both, or none. Its life begins anew.

        @param identifier: The one that it has; it is of no use afterwards.
        @param replacement: A new one, see L{makeIdentifier}.
        @param changes: What is to be done to it.
        @return: A Deferred of the session as it is then; or of L{None}, if there
            was none any more. It fails as that of L{set}.
        """

    def touch(identifier: str) -> Deferred[bool]:
        """
        Count a use of a session: its idle time begins anew. Uses that follow each
        other closely are written once.

        @return: A Deferred of whether there is such a session.
        """

    def destroy(identifier: str) -> Deferred[bool]:
        """
        End a session.

        @return: A Deferred of whether there was one.
        """

    def all(after: bytes = b"", limit: int = 1000) -> Deferred[Sequence[Entry]]:
        """
        List sessions, in the order of their keys; a part at a time.

        @param after: The key behind which to begin.
        @param limit: How many there may be.
        @return: A Deferred of keys and sessions. There are no more when it is
            empty.
        """

    def length() -> Deferred[int]:
        """
        @return: A Deferred of how many sessions there are.
        """

    def clear() -> Deferred[int]:
        """
        End all sessions.

        @return: A Deferred of how many there were.
        """

    def cleanup() -> Deferred[int]:
        """
        Remove what is left of sessions that have ended. A store also does so by
        itself, from time to time.

        @return: A Deferred of how many were removed.
        """

    def whenLost() -> Deferred[None]:
        """
        @return: A Deferred that fires when the store, once initialised, no longer
            is; before that makes any call fail.
        """

    def close() -> Deferred[None]:
        """
        End. It may be called again, and at any time.

        @return: A Deferred that fires when nothing is left open.
        """


Entry = tuple[bytes, StoredSession]
"""
A key, and what is kept under it.
"""
