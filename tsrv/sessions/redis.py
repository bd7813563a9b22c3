"""
Sessions in Redis: C{pip install 'tsrv[redis]'}.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from hashlib import sha1
from math import ceil, inf
from typing import Any, Final

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..asyncmodule import ICountsFailures, ISettlesCalls, timeOfDay
from ..failures import Failures
from .basestore import BaseStore, Row
from .redislocation import Location
from .redisprotocol import (
    Connection,
    NoScript,
    SessionsRefused,
    WrongType,
    unavailable,
)
from .store import ISessionStore, Limits, SessionError, SessionsUnavailable

__all__ = ["RedisSessionStore", "SessionsRefused"]

_log = Logger("tsrv.sessions")

PREFIX: Final = "tsrv:session:"

SCAN_COUNT: Final = 500
"""
Number of keys that Redis looks at in one step of a search; other commands run
between the steps.
"""

MAX_EXPIRY: Final = 1e12
"""
Latest expiry of a session, in seconds since the epoch.
"""


class _Script:
    """
    A Lua script, which Redis runs in one step.
    """

    def __init__(self, body: str) -> None:
        self.text = (_FUNCTIONS + body).encode()
        self.digest = sha1(self.text).hexdigest().encode()  # noqa: S324


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

_PUT: Final = _Script("write(KEYS[1], unpack(ARGV))")

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


@implementer(ISessionStore, ICountsFailures, ISettlesCalls)
class RedisSessionStore(BaseStore):
    """
    A store in Redis 5 or newer, neither a cluster nor a Sentinel. Redis removes expired
    sessions::

        store = RedisSessionStore(reactor, "redis://localhost")

    Sessions survive a crash of Redis with C{appendonly yes}, and full memory with
    C{maxmemory-policy noeviction}, which is the default.

    C{all}, C{length} and C{clear} are for administration: they look at all keys of
    the database, in small steps. While Redis resizes its tables, a session may be
    counted twice.
    """

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
        @param reactor: Provides the time, and connections.
        @param url: C{redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER]}, the same with
            C{rediss:} for TLS, or C{unix://[USER:PASSWORD@]/PATH[?db=NUMBER]}. The
            user may be empty.
        @param prefix: The beginning of all keys, by default C{tsrv:session:}.
        @param limits: Lifetimes and maximum size of sessions.
        @param connectTimeout: Maximum number of seconds to connect and log in.
        @raise ValueError: The URL is invalid.
        """
        super().__init__(reactor, limits)
        self._location = Location.parse(url)
        self._prefix = prefix.encode()
        escaped = re.sub(rb"[\\*?\[\]]", rb"\\\g<0>", self._prefix)
        self._pattern = escaped + b"[0-9a-f]" * 64
        self._connectTimeout = connectTimeout
        self._failures = Failures(reactor, _log, "sessions: a command failed")
        self._opening: Deferred[None] | None = None
        self._wasReady = False
        # The latest connection: new, open or closed.
        self._connection = Connection(reactor, self._lost, self._refused)

    def __repr__(self) -> str:
        return f"<RedisSessionStore at {self._location}>"

    @property
    def failures(self) -> Mapping[str, int]:
        """
        Numbers of commands that failed although the store was ready, by the error code
        of Redis.
        """
        return self._failures.counts

    def initialize(self) -> Deferred[None]:
        """
        Connect, log in, and check that sessions can be written and read.

        @return: A Deferred that fires when the store can be used. It fails with
            L{SessionsRefused} if a retry would fail too, and with
            L{SessionsUnavailable} if it may succeed, or if the store is being
            initialised already. A store that was ready once fails only with
            L{SessionsUnavailable}: Redis may give it back its rights, for example.
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
        connection = self._connection = Connection(
            self._reactor, self._lost, self._refused
        )
        opening = Deferred.fromCoroutine(self._prepare())
        try:
            await opening.addTimeout(self._connectTimeout, self._reactor)
        except TimedOut:
            reason = f"no answer from {self._location} in {self._connectTimeout:.3g} s"
            connection.abort(reason)
            raise unavailable(reason) from None
        except BaseException as error:
            connection.abort("it could not be opened")
            if self._wasReady and isinstance(error, SessionsRefused):
                raise unavailable(str(error)) from None
            raise
        finally:
            self._opening = None
        self._begin()
        if not self._wasReady:
            _log.info("Connected to {location}", location=self._location)
        self._wasReady = True

    async def _prepare(self) -> None:
        await self._connection.open(self._location, self._connectTimeout + 1)
        # This fails on a replica, without sufficient permissions, and on a cluster,
        # where the two keys are on different servers.
        await self._run(_DELETE, None, [b"probe", b"second probe"], 0)
        await self._read(b"probe")

    def _lost(self, connection: Connection, reason: str) -> None:
        if connection is self._connection and self.initialized:
            self._end(lambda: unavailable(f"{self._location}: {reason}"))

    def _refused(
        self, error: SessionError | SessionsUnavailable
    ) -> SessionError | SessionsUnavailable:
        """
        Count and log an error of Redis, unless the error means that the store is lost.

        @return: The error for the caller: Redis may refuse a user temporarily.
        """
        if self.initialized:
            self._failures.add(error.code, error)
        if isinstance(error, SessionsRefused) and self._opening is None:
            return unavailable(str(error))
        return error

    def close(self) -> Deferred[None]:
        """
        Disconnect when Redis has answered all commands, or has not answered for 5
        seconds.

        @return: A Deferred that fires when the connection is closed.
        """
        if self._opening is not None:
            self._opening.cancel()
        if self.initialized:
            self._end()
            self._connection.finish()
        return self._connection.whenClosed()

    # One session.

    def _read(self, key: bytes) -> Deferred[Row | None]:
        reading = self._connection.ask("HMGET", self._nameOf(key), *"dcxv")
        return reading.addCallbacks(self._rowOf, self._notAHash)

    def _rowOf(self, fields: Sequence[bytes | None]) -> Row | None:
        data, created, expires, version = fields
        if data is created is expires is version is None:
            return None
        return data, created, expires, version or b""

    def _notAHash(self, failure: Failure) -> Row:
        failure.trap(WrongType)
        return None, None, None, b""

    async def _insert(self, key: bytes, row: Row) -> bool:
        return bool(await self._run(_INSERT, "create", [key], *self._values(row)))

    async def _put(self, key: bytes, row: Row) -> None:
        await self._run(_PUT, "renew", [key], *self._values(row))

    def _replace(
        self, key: bytes, version: int, newKey: bytes, row: Row
    ) -> Deferred[bool]:
        keys, method = ([key], "set") if newKey == key else ([key, newKey], "renew")
        values = version, timeOfDay(self._reactor), *self._values(row)
        return Deferred.fromCoroutine(self._run(_REPLACE, method, keys, *values))

    async def _extend(self, key: bytes, before: float, expires: float) -> None:
        await self._run(_EXTEND, "touch", [key], before, *self._ending(expires))

    async def _delete(self, key: bytes, version: Any = None) -> bool:
        condition = [] if version is None else [version]
        now = timeOfDay(self._reactor)
        return bool(await self._run(_DELETE, "destroy", [key], now, *condition))

    # All sessions.

    async def _search(self) -> AsyncIterator[list[bytes]]:
        """
        @return: The names of the keys of all sessions, in parts, in no order.
        """
        cursor, more = b"0", True
        while more:
            cursor, names = await self._connection.ask(
                "SCAN", cursor, "MATCH", self._pattern, "COUNT", SCAN_COUNT
            )
            if names:
                yield names
            more = cursor != b"0"

    def _keyOf(self, name: bytes) -> bytes:
        return bytes.fromhex(name.removeprefix(self._prefix).decode())

    async def _count(self) -> int:
        count = 0
        now = timeOfDay(self._reactor)
        async for names in self._search():
            count += await self._run(_COUNT, None, map(self._keyOf, names), now)
        return count

    async def _list(
        self, after: bytes, limit: int
    ) -> Sequence[tuple[bytes, Row | None]]:
        first: list[bytes] = []
        async for names in self._search():
            keys = map(self._keyOf, names)
            first = sorted({*first, *(key for key in keys if key > after)})[:limit]
        return [(key, await self._read(key)) for key in first]

    async def _removeExpired(self, time: float, limit: int) -> tuple[int, bool]:
        removed = 0
        if time == inf:
            async for names in self._search():
                removed += await self._connection.ask("DEL", *names, method="clear")
        return removed, False

    # Commands.

    def _nameOf(self, key: bytes) -> bytes:
        return self._prefix + key.hex().encode()

    def _values(self, row: Row) -> tuple[Any, ...]:
        data, created, expires, version = row
        time, milliseconds = self._ending(expires)
        return data, created, time, version, milliseconds

    def _ending(self, expires: float) -> tuple[float, int]:
        """
        @return: The expiry of a session, and its remaining milliseconds, because the
            clock of Redis may differ from the clock of this process.
        """
        expires = min(expires, MAX_EXPIRY)
        left = ceil((expires - timeOfDay(self._reactor)) * 1000)
        return expires, max(left, 1)

    async def _run(
        self,
        script: _Script,
        method: str | None,
        keys: Iterable[bytes],
        *arguments: bytes | float,
    ) -> Any:
        """
        Run a script by its digest; send its text if Redis does not know it.
        """
        names = [self._nameOf(key) for key in keys]
        words = len(names), *names, *arguments
        ask = self._connection.ask
        try:
            return await ask("EVALSHA", script.digest, *words, method=method)
        except NoScript:
            return await ask("EVAL", script.text, *words, method=method)
