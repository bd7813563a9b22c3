"""
Sessions in Redis.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from hashlib import sha1
from math import ceil, inf, isfinite
from typing import Any, Final

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..asyncmodule import ISettlesCalls
from ..queuing.waiters import Waiters
from .basestore import BaseStore, Row
from .redislocation import Location
from .redisprotocol import (
    Connection,
    NoScript,
    SessionsRefused,
    WrongType,
    unavailable,
)
from .store import ISessionStore, Limits

__all__ = ["RedisSessionStore", "SessionsRefused"]

PREFIX: Final = "tsrv:session:"

SCAN_COUNT: Final = 500
"""
Number of keys that Redis looks at in one step of a search; other commands run
between the steps.
"""

MAX_WATCHERS: Final = 10_000
"""
Maximum number of callers that wait for the store to be lost.
"""

MAX_EXPIRY: Final = 1e12
"""
Latest expiry of a session, in seconds since the epoch.
"""

_VERSION: Final = re.compile(rb"[1-9][0-9]{0,17}")

_PATTERN: Final = re.compile(rb"[\\*?\[\]]")


class _Script:
    """
    A Lua script, which Redis runs in one step.
    """

    def __init__(self, body: str) -> None:
        self._text = (_FUNCTIONS + body).encode()
        self._digest = sha1(self._text).hexdigest().encode()  # noqa: S324

    async def run(
        self,
        connection: Connection | None,
        method: str | None,
        keys: Sequence[bytes],
        *arguments: bytes,
    ) -> Any:
        """
        Run the script by its digest; send its text if Redis does not know it.
        """
        if connection is None:
            raise unavailable("Redis is not connected")
        words = b"%d" % len(keys), *keys, *arguments
        try:
            return await connection.ask(b"EVALSHA", self._digest, *words, method=method)
        except NoScript:
            return await connection.ask(b"EVAL", self._text, *words, method=method)


# A session is a hash: "d" is its JSON, "c" and "x" are when it was created and when
# it expires, in seconds since the epoch, and "v" is its version.
_FUNCTIONS: Final = """
local function field(key, name)
  if redis.call('TYPE', key).ok ~= 'hash' then return '' end
  return redis.call('HGET', key, name) or ''
end
local function expiry(key) return tonumber(field(key, 'x')) or 0 end
local function write(key, data, created, expires, version, milliseconds)
  redis.call('HSET', key, 'd', data, 'c', created, 'x', expires, 'v', version)
  redis.call('PEXPIRE', key, milliseconds)
end
"""

_INSERT: Final = _Script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
write(KEYS[1], unpack(ARGV))
return 1
""")

_REPLACE: Final = _Script("""
local key, newKey, version, now = KEYS[1], KEYS[#KEYS], ARGV[1], tonumber(ARGV[2])
if field(key, 'v') ~= version or not (expiry(key) > now) then return 0 end
if newKey ~= key then redis.call('RENAME', key, newKey) end
write(newKey, unpack(ARGV, 3))
return 1
""")

_EXTEND: Final = _Script("""
if expiry(KEYS[1]) ~= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'x', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""")

# A value that is not a hash has the version "".
_DELETE: Final = _Script("""
if ARGV[2] and field(KEYS[1], 'v') ~= ARGV[2] then return 0 end
local wasThere = expiry(KEYS[1]) > tonumber(ARGV[1])
redis.call('DEL', KEYS[1])
return wasThere and 1 or 0
""")

_COUNT: Final = _Script("""
local count = 0
for _, key in ipairs(KEYS) do
  if expiry(key) > tonumber(ARGV[1]) then count = count + 1 end
end
return count
""")


@implementer(ISessionStore, ISettlesCalls)
class RedisSessionStore(BaseStore):
    """
    A store in Redis 5 or newer, not a cluster. Redis removes expired sessions.

    Sessions survive a crash of Redis with C{appendonly yes}, and full memory with
    C{maxmemory-policy noeviction}, which is the default.

    C{all}, C{length} and C{clear} are for administration: they look at all keys of
    the database, in small steps. While Redis resizes its tables, a session may be
    counted twice.
    """

    _log = Logger()

    expiresByItself = True

    def __init__(
        self,
        reactor: Any,
        url: str,
        prefix: str = PREFIX,
        limits: Limits | None = None,
        *,
        connectTimeout: float = 5.0,
    ) -> None:
        """
        @param reactor: Provides time, and connections.
        @param url: The URL of Redis, see L{Location.parse}.
        @param prefix: The beginning of all keys.
        @param limits: Lifetimes and maximum size of sessions.
        @param connectTimeout: Maximum number of seconds to connect and log in.
        @raise ValueError: This is not such a URL.
        """
        super().__init__(reactor, limits)
        self._location = Location.parse(url)
        self._prefix = prefix.encode()
        self._pattern = _PATTERN.sub(rb"\\\g<0>", self._prefix) + b"*"
        self._ownKey = re.compile(re.escape(self._prefix) + rb"([0-9a-f]{64})")
        self._connectTimeout = connectTimeout
        self._opening: Deferred[None] | None = None
        self._connection: Connection | None = None
        # Including the connections that are being closed.
        self._connections: list[Connection] = []
        self._watchers = Waiters(MAX_WATCHERS, "for Redis to be lost")

    def __repr__(self) -> str:
        return f"<RedisSessionStore at {self._location}>"

    def initialize(self) -> Deferred[None]:
        """
        Connect, log in, and check that sessions can be written.

        @return: A Deferred that fires when the store can be used. It fails with
            L{SessionsRefused} if a retry would fail too, and with
            L{SessionsUnavailable} if it may succeed, or if the store is being
            initialised already.
        """
        if self.initialized:
            return succeed(None)
        if self._opening is not None:
            return fail(unavailable("the store is being initialised already"))
        opening = Deferred.fromCoroutine(self._open())
        if not opening.called:
            self._opening = opening
        return opening

    async def _open(self) -> None:
        connection = Connection(self._reactor, self._lost)
        self._connections = [each for each in self._connections if not each.isClosed]
        self._connections.append(connection)
        opening = Deferred.fromCoroutine(self._prepare(connection))
        try:
            await opening.addTimeout(self._connectTimeout, self._reactor)
        except TimedOut:
            seconds = f"{self._connectTimeout:.3g} s"
            connection.abort(f"no answer in {seconds}")
            raise unavailable(f"no answer from {self._location} in {seconds}") from None
        except BaseException:
            connection.abort("it could not be opened")
            raise
        finally:
            self._opening = None
        self._connection = connection
        self._begin()
        self._log.info("Connected to {location}", location=self._location)

    async def _prepare(self, connection: Connection) -> None:
        await connection.open(self._location, self._connectTimeout + 1)
        # A replica, and a user with too few permissions, cannot do this.
        await _DELETE.run(connection, None, [self._prefix + b"probe"], b"0")

    def _lost(self, connection: Connection, reason: str) -> None:
        if connection is self._connection:
            self._log.warn(
                "Lost {location}: {reason}", location=self._location, reason=reason
            )
            self._leave()

    def _leave(self) -> None:
        self._connection = None
        self._end()
        self._watchers.succeed()

    def whenLost(self) -> Deferred[None]:
        """
        Tell when the connection is lost.
        """
        return self._watchers.wait() if self.initialized else succeed(None)

    def close(self) -> Deferred[None]:
        """
        Disconnect when all commands are answered, or the time for that is up.
        """
        if self._opening is not None:
            self._opening.cancel()
        connection = self._connection
        if connection is not None:
            self._leave()
            connection.finish()
        return Deferred.fromCoroutine(self._whenClosed())

    async def _whenClosed(self) -> None:
        for connection in self._connections:
            await connection.whenClosed()

    # One session.

    def _read(self, key: bytes) -> Deferred[Row | None]:
        reading = self._ask(b"HMGET", self._nameOf(key), b"d", b"c", b"x", b"v")
        return reading.addCallbacks(self._rowOf, self._notAHash)

    def _notAHash(self, failure: Failure) -> Row:
        failure.trap(WrongType)
        return None, None, None, b""

    def _rowOf(self, fields: Sequence[bytes | None]) -> Row | None:
        if fields == [None] * 4:
            return None
        data, *numbers = fields
        created, expires, version = (each or b"" for each in numbers)
        try:
            times = float(created), float(expires)
        except ValueError:
            times = inf, inf
        if not all(map(isfinite, times)) or _VERSION.fullmatch(version) is None:
            return None, None, None, version
        if times[1] <= self._reactor.seconds():
            return None
        return data, *times, int(version)

    async def _insert(self, key: bytes, row: Row) -> bool:
        return bool(await self._run(_INSERT, "create", [key], *self._values(row)))

    def _replace(
        self, key: bytes, version: int, newKey: bytes, row: Row
    ) -> Deferred[bool]:
        now = _number(self._reactor.seconds())
        keys, method = ([key], "set") if newKey == key else ([key, newKey], "renew")
        values = b"%d" % version, now, *self._values(row)
        return Deferred.fromCoroutine(self._run(_REPLACE, method, keys, *values))

    async def _extend(self, key: bytes, before: float, expires: float) -> None:
        ending = self._ending(expires)
        await self._run(_EXTEND, "touch", [key], _number(before), *ending)

    async def _delete(self, key: bytes, version: Any = None) -> bool:
        arguments = [_number(self._reactor.seconds())]
        if version is not None:
            arguments.append(b"%d" % version if type(version) is int else version)
        return bool(await self._run(_DELETE, "destroy", [key], *arguments))

    # All sessions.

    async def _search(self) -> AsyncIterator[list[bytes]]:
        """
        @return: The keys of all sessions, in no order, some at a time.
        """
        cursor = b"0"
        while True:
            cursor, names = await self._ask(
                b"SCAN", cursor, b"MATCH", self._pattern, b"COUNT", b"%d" % SCAN_COUNT
            )
            found = [self._ownKey.fullmatch(name) for name in names]
            yield [bytes.fromhex(each[1].decode()) for each in found if each]
            if cursor == b"0":
                break

    async def _count(self) -> int:
        count = 0
        now = _number(self._reactor.seconds())
        async for keys in self._search():
            count += await self._run(_COUNT, None, keys, now)
        return count

    async def _list(self, after: bytes, limit: int) -> Sequence[tuple[bytes, Row]]:
        first: list[bytes] = []
        async for keys in self._search():
            first = sorted({*first, *(key for key in keys if key > after)})[:limit]
        rows = [(key, await self._read(key)) for key in first]
        found = [(key, row) for key, row in rows if row is not None]
        if not found and first:
            # All of these have expired in the meantime.
            return await self._list(first[-1], limit)
        return found

    async def _removeExpired(self, time: float, limit: int) -> int:
        removed = 0
        if time != inf:
            # Redis does it.
            return removed
        async for keys in self._search():
            if keys:
                names = [self._nameOf(key) for key in keys]
                removed += await self._ask(b"DEL", *names, method="clear")
        return removed

    # How Redis is asked.

    def _nameOf(self, key: bytes) -> bytes:
        return self._prefix + key.hex().encode()

    def _values(self, row: Row) -> tuple[bytes, ...]:
        data, created, expires, version = row
        time, milliseconds = self._ending(expires)
        return data, _number(created), time, b"%d" % version, milliseconds

    def _ending(self, expires: float) -> tuple[bytes, bytes]:
        """
        @return: The expiry of a session, and its remaining milliseconds: the clock of
            Redis may differ from the one here.
        """
        expires = min(expires, MAX_EXPIRY)
        left = ceil((expires - self._reactor.seconds()) * 1000)
        return _number(expires), b"%d" % max(left, 1)

    def _ask(self, *words: bytes, method: str | None = None) -> Deferred[Any]:
        if self._connection is None:
            return fail(unavailable("Redis is not connected"))
        return self._connection.ask(*words, method=method)

    async def _run(
        self,
        script: _Script,
        method: str | None,
        keys: Sequence[bytes],
        *arguments: bytes,
    ) -> Any:
        names = [self._nameOf(key) for key in keys]
        return await script.run(self._connection, method, names, *arguments)


def _number(value: float) -> bytes:
    return repr(float(value)).encode()
