"""
Sessions as a store keeps them, and the interface of a store.

A session is a JSON object behind an identifier that only its visitor knows. A
store keeps the session under the SHA-256 of its identifier, so nobody can log in with
a copy of the database.

A request hands the store its L{Changes}, not a whole new session, so two requests that
run at the same time keep each other's changes. L{ISessionStore.create} inserts a
session once; every later change is an update, and an update does nothing if the session
was destroyed in the meantime.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_urlsafe
from typing import Any, Final

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

DEFAULT_LIFETIME_SECONDS: Final = 24 * 3600.0
"""
Lifetime, in seconds, of a session that has no other limit.
"""

KEY_BYTES: Final = 32
"""
Length of the key of a session, in bytes. A store has other keys for other purposes.
"""

MAX_DEPTH: Final = 100
"""
Maximum number of levels of lists and objects inside each other.
"""

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{43}")

# PostgreSQL cuts names after 63 characters, and "_expires" is added for the index.
_TABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,54}")

_RESERVED_PREFIXES: Final = ("sqlite_", "pg_", "tsrv_schema")


class SessionError(Exception):
    """
    A session cannot be stored, and a retry would fail too.

    @ivar code: The code of the database's error, if it has one.
    """

    code = ""


class SessionTooLarge(SessionError):
    """
    A session cannot be stored, because its JSON is longer than L{Limits.size}.
    """


class SessionsUnavailable(Unavailable):
    """
    The store cannot be used now, and nothing was changed. A retry may succeed.

    @ivar code: The code of the database's error, if it has one.
    """

    code = ""


def makeIdentifier() -> str:
    """
    Make a new identifier of a session.

    @return: 256 random bits in 43 characters that are valid in a cookie.
    """
    return token_urlsafe(32)


def keyOf(identifier: str) -> bytes | None:
    """
    Compute the key under which a store keeps a session.

    @param identifier: The identifier that a client has sent; it may be any text.
    @return: The key, 32 bytes; L{None} if no session can have this identifier.
    """
    if _IDENTIFIER.fullmatch(identifier) is None:
        return None
    return sha256(identifier.encode("ascii")).digest()


def checkTable(name: str) -> str:
    """
    Check the name of a table.

    @param name: The name.
    @return: The same name.
    @raise ValueError: The name is not a plain identifier.
    """
    if _TABLE.fullmatch(name) is None or name.lower().startswith(_RESERVED_PREFIXES):
        raise ValueError(
            "the name of a table must be up to 55 letters, digits and _; it must not "
            "begin with a digit or with a prefix that the database reserves"
        )
    return name


@dataclass(frozen=True)
class Limits:
    """
    Lifetimes and maximum size of sessions. With neither an idle nor an
    absolute limit, a session lives for a day.

    @ivar idle: Seconds after which an unused session expires; L{None} for no limit.
    @ivar absolute: Seconds after which every session expires; L{None} for no limit.
    @ivar size: Maximum size of a session's JSON, in bytes.
    @ivar renewed: Seconds for which a store remembers that an identifier was renewed.
    """

    idle: float | None = 30 * 60.0
    absolute: float | None = 8 * 3600.0
    size: int = 64 * 1024
    renewed: float = 60.0

    def expiry(self, created: float, now: float) -> float:
        """
        Compute when a session expires. All times are in seconds since the epoch.

        @param created: Time of its creation.
        @param now: Time of its last use.
        @return: Time at which it expires unless it is used again.
        """
        if self.idle is None and self.absolute is None:
            return created + DEFAULT_LIFETIME_SECONDS
        ends = [now + self.idle] if self.idle is not None else []
        if self.absolute is not None:
            ends.append(created + self.absolute)
        return min(ends)

    def isWorthAWrite(self, created: float, expires: float, now: float) -> bool:
        """
        Return whether a use of a session is worth a write: whether it moves the expiry
        by at least a twentieth of the idle limit. All times are in seconds since the
        epoch.

        @param created: Time of its creation.
        @param expires: Time at which it expires without this use.
        @param now: Time of this use.
        """
        if self.idle is None:
            return False
        return self.expiry(created, now) - expires >= self.idle / 20


@dataclass(frozen=True, slots=True)
class StoredSession:
    """
    A session as the store keeps it.

    @ivar data: Its content, a copy that belongs to the caller.
    @ivar created: Time of its creation, in seconds since the epoch.
    @ivar expires: Time at which it expires unless it is used again, in seconds since
        the epoch.
    @ivar version: A number that grows with each change.
    @ivar counted: The values of the counters that a change has added to, right after
        this change; C{data} may have later changes, too.
    """

    data: dict[str, Any] = field(repr=False)
    created: float
    expires: float
    version: int
    counted: Mapping[str, int | float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Changes:
    """
    The changes that a request makes to a session. If two requests assign the same
    member, the later one wins; changes of different members are all kept; additions
    are summed::

        await store.set(identifier, Changes({"name": "Ada"}, added={"visits": 1}))

    @ivar assigned: Members and their new values.
    @ivar removed: Names of members to remove.
    @ivar added: Numbers to add to members. A member that does not exist, or is not
        a number, counts as 0.
    """

    assigned: Mapping[str, Any] = field(default_factory=dict, repr=False)
    removed: frozenset[str] = frozenset()
    added: Mapping[str, int | float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.assigned or self.removed or self.added)

    def applyTo(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """
        Apply the changes to a copy of a session's content.

        @param data: The content.
        @return: The content after the changes.
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
                    f"cannot add to a counter ({type(error).__name__})"
                ) from None
        return changed


Entry = tuple[bytes, StoredSession]
"""
A key and the session under it.
"""


class ISessionStore(IAsyncModule):
    """
    A store of sessions, an asynchronously initialised module. It keeps each session
    under L{keyOf} its identifier. An identifier that is unknown, malformed, or whose
    session has expired means "no session"; only L{create} creates one.

    Every Deferred can be cancelled; an operation that has not started then never
    starts. A Deferred fails with L{Unavailable<tsrv.errors.Unavailable>} if the
    store cannot be used now and nothing was changed, with
    L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>} if the store was lost during a change,
    and with L{NotInitialized<tsrv.asyncmodule.NotInitialized>} before C{initialize()}
    and after L{close}.

    One more method is optional. C{whenIdle()} returns a Deferred that fires when no
    call is in progress: at once, or when all calls have ended, also by a loss or
    L{close}.
    """

    def get(identifier: str) -> Deferred[StoredSession | None]:
        """
        Find a session. A damaged session is logged and removed, and counts as
        absent.

        @param identifier: The identifier that a client has sent; it may be any text.
        @return: A Deferred of the session; of L{None} if it does not exist.
        """

    def set(
        identifier: str, changes: Changes, known: StoredSession | None = None
    ) -> Deferred[StoredSession | None]:
        """
        Change a session, and count this as a use of it.

        @param identifier: The identifier.
        @param changes: The changes.
        @param known: The session as it was found. If it still has this version, it
            is not read again.
        @return: A Deferred of the session after the change; of L{None} if it does not
            exist, and it is not created again. The Deferred fails with L{SessionError}
            if the session would be too large or cannot be JSON.
        """

    def create(identifier: str, data: Mapping[str, Any]) -> Deferred[StoredSession]:
        """
        Create a session.

        @param identifier: A new identifier, see L{makeIdentifier}.
        @param data: The content of the session, which JSON can express.
        @return: A Deferred of the session. It fails with L{SessionError} if the
            identifier is in use, or for the reasons of L{set}.
        """

    def renew(
        identifier: str, replacement: str, changes: Changes
    ) -> Deferred[StoredSession | None]:
        """
        Change a session and its identifier in one step, and restart its lifetime.

        @param identifier: The present identifier, which becomes invalid.
        @param replacement: A new identifier, see L{makeIdentifier}.
        @param changes: Changes to make at the same time.
        @return: As for L{set}.
        """

    def wasRenewed(identifier: str) -> Deferred[bool]:
        """
        Find out whether an identifier was renewed recently, by any process: a browser
        may have sent a request with the old identifier before the new cookie arrived.

        @param identifier: The old identifier.
        @return: A Deferred of C{True} if it was renewed in the last L{Limits.renewed}
            seconds.
        """

    def touch(identifier: str) -> Deferred[bool]:
        """
        Count a use of a session: its idle time restarts. Uses that follow each other
        closely are written once.

        @param identifier: The identifier.
        @return: A Deferred of C{True} if the session exists, and of C{False} if not.
        """

    def destroy(identifier: str) -> Deferred[bool]:
        """
        Remove a session.

        @param identifier: The identifier.
        @return: A Deferred of C{True} if the session existed, and of C{False} if not.
        """

    def all(after: bytes = b"", limit: int = 1000) -> Deferred[Sequence[Entry]]:
        """
        List sessions in the order of their keys, in parts::

            part = await store.all()
            while part:
                ...
                part = await store.all(after=part[-1][0])

        @param after: The key after which the part begins.
        @param limit: Maximum number of sessions in the part.
        @return: A Deferred of keys and sessions; after the last ones, an empty list.
        """

    def length() -> Deferred[int]:
        """
        Count the sessions.

        @return: A Deferred of their number.
        """

    def clear() -> Deferred[int]:
        """
        Remove all sessions.

        @return: A Deferred of the number of removed sessions.
        """

    def cleanup() -> Deferred[int]:
        """
        Remove expired sessions. A store also removes them by itself.

        @return: A Deferred of the number of removed sessions.
        """

    def whenLost() -> Deferred[None]:
        """
        Watch the store for a loss.

        @return: A Deferred that fires when the store, once ready, is lost or closed.
            It fires before any call fails for that reason. After a loss it may fail
            with the reason.
        """

    def close() -> Deferred[None]:
        """
        Release all connections and timers. The method may be called repeatedly, and at
        any time.

        @return: A Deferred that fires when the store is closed.
        """


_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)


def encode(data: Mapping[str, Any], limits: Limits) -> bytes:
    """
    @return: The content of a session as JSON in UTF-8.
    @raise SessionTooLarge: The JSON is too long.
    @raise SessionError: The content cannot be JSON, or is nested too deeply.
    """
    try:
        text = _ENCODER.encode(dict(data))
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _checkDepth(data, MAX_DEPTH)
        encoded = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionError(
            f"the session cannot be written as JSON ({type(error).__name__})"
        ) from None
    if len(encoded) > limits.size:
        raise SessionTooLarge(f"the session is larger than {limits.size} bytes")
    return encoded


def _checkDepth(value: Any, left: int) -> None:
    # A process that reads the session may have less stack than this one.
    if isinstance(value, Mapping | list | tuple):
        if not left:
            raise ValueError("nested too deeply")
        for each in value.values() if isinstance(value, Mapping) else value:
            _checkDepth(each, left - 1)


# C{int} refuses C{NaN} and C{Infinity}, which are not JSON.
_DECODER: Final = json.JSONDecoder(parse_constant=int)


def decode(text: object) -> dict[str, Any]:
    """
    @param text: The content of a session as a store keeps it.
    @return: The content.
    @raise ValueError: The text is damaged.
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        data = _DECODER.decode(text) if isinstance(text, str) else None
    except RecursionError:
        data = None
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return data
