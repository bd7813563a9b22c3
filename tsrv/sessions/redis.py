"""
Sessions in Redis.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from math import ceil, isfinite
from random import random as _random
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..asyncmodule import ISettlesCalls
from ..queuing.waiters import Waiters
from .basestore import (
    BaseStore,
    Row,
)
from .redisanswers import (
    LATER,
    NoScript,
    SessionsRefused,
    WrongType,
)
from .redislocation import Location
from .redisscripts import (
    COUNT,
    DELETE,
    DELETE_VERSION,
    DISCARD,
    INSERT,
    MOVE,
    PROLONG,
    UPDATE,
    Script,
)
from .store import (
    ISessionStore,
    Limits,
    SessionsUnavailable,
)

if TYPE_CHECKING:
    from .redisconnection import Connection

__all__ = ["RedisSessionStore", "SessionsRefused"]

PREFIX: Final = "tsrv:session:"

_LIMIT: Final = 5.0
"""
How long Redis may take to answer a command, in seconds.
"""

_STEP: Final = 500
"""
How many keys Redis looks at in one step of a search: other commands come in
between.
"""

_PART: Final = 100
"""
How many sessions are read at a time.
"""

_MOST: Final = 10_000
"""
How many may wait for one thing.
"""

_LONGEST: Final = 1e12
"""
No session needs to last longer, in seconds.
"""

_EXTRA: Final = "Redis needs a package that is not installed: pip install 'tsrv[redis]'"

_NOT_CONNECTED: Final = "Redis is not connected"

_DIGITS: Final = re.compile(rb"[1-9][0-9]{0,17}")

_SPECIAL: Final = re.compile(rb"[\\*?\[\]]")


@implementer(ISessionStore, ISettlesCalls)
class RedisSessionStore(BaseStore):
    """
    A store in Redis, version 5 or newer; no cluster.

    Each session is a hash under a key of its own: C{d} is its JSON, C{c} and
    C{x} are when it was made and when it ends, in seconds of the epoch, and C{v}
    is its version. Redis removes it when it has ended, so that there is nothing
    to clean up.

    Sessions last as long as Redis keeps them: with C{appendonly yes} also when it
    is killed, and with C{maxmemory-policy noeviction}, which is the default, also
    when its memory is full.

    To list sessions, to count and to clear them is for administration: all keys
    of the database are looked at, in small steps, for each part of a list anew. A
    session may be counted twice if Redis makes its tables larger or smaller
    meanwhile.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str,
        prefix: str = PREFIX,
        limits: Limits | None = None,
        *,
        connectTimeout: float = 5.0,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param reactor: Provides time, and connections.
        @param url: Where Redis is, see L{Location.parse}.
        @param prefix: What the keys begin with.
        @param limits: How long sessions live, and how large they may be.
        @param connectTimeout: How long it may take to connect and to log in, in
            seconds.
        @param random: The source of chance: answers numbers from 0 to 1.
        @raise ValueError: The URL cannot be understood.
        """
        super().__init__(reactor, limits, random)
        self._location = Location.parse(url)
        self._prefix = prefix.encode()
        self._pattern = _SPECIAL.sub(rb"\\\g<0>", self._prefix) + b"*"
        self._mine = re.compile(re.escape(self._prefix) + rb"([0-9a-f]{64})")
        self._connectTimeout = connectTimeout
        self._opening: Deferred[None] | None = None
        self._connection: Connection | None = None
        # Those that were lost, or given up, may not be gone yet.
        self._connections: dict[Connection, None] = {}
        self._watches = Waiters(_MOST, "for Redis to be lost")

    def __repr__(self) -> str:
        return f"<RedisSessionStore at {self._location}>"

    def initialize(self) -> Deferred[None]:
        """
        Connect, and find out whether sessions can be written.

        @return: A Deferred that fires when that is done. It fails with
            L{SessionsRefused} if no retry will help, and with
            L{SessionsUnavailable} if one may; also if it is being done already.
        """
        if self.initialized:
            return succeed(None)
        if self._opening is not None:
            return fail(SessionsUnavailable("it is being initialised already"))
        opening = Deferred.fromCoroutine(self._open())
        if not opening.called:
            self._opening = opening
        return opening

    async def _open(self) -> None:
        try:
            try:
                from .redisconnection import Connection
            except ImportError:
                raise SessionsRefused(_EXTRA) from None
            connection = Connection(self._reactor, _LIMIT, self._lost, self._ended)
            self._connections[connection] = None
            await connection.open(self._location, self._connectTimeout, self._probe)
        finally:
            self._opening = None
        self._connection = connection
        self._begin()
        self._log.info("Connected to {location}", location=self._location)

    async def _probe(self, connection: Connection) -> None:
        """
        Write something that changes nothing: a copy, and a user who may not
        write, can do all but that.
        """
        await self._runOn(connection, DISCARD, [self._prefix + b"probe"])

    def _lost(self, connection: Connection, reason: str) -> None:
        if self._connection is not connection:
            return
        self._log.warn(
            "Lost {location}: {reason}", location=self._location, reason=reason
        )
        self._leave()

    def _leave(self) -> None:
        """
        It cannot be asked any more.
        """
        self._connection = None
        self._end()
        self._watches.succeed()

    def _ended(self, connection: Connection) -> None:
        del self._connections[connection]

    def whenLost(self) -> Deferred[None]:
        """
        @see: L{ISessionStore.whenLost}
        """
        return self._watches.wait() if self.initialized else succeed(None)

    def close(self) -> Deferred[None]:
        """
        Connections end when what was asked is answered, or the time for that is
        up.

        @see: L{ISessionStore.close}
        """
        if self._opening is not None:
            # Whoever waits for it gave it up.
            self._opening.cancel()
        connection = self._connection
        if connection is not None:
            self._leave()
            connection.finish()
        return Deferred.fromCoroutine(self._whenEnded())

    async def _whenEnded(self) -> None:
        for each in list(self._connections):
            await each.whenEnded()

    def _sweepLater(self) -> None:
        """
        Do nothing: Redis removes what has ended by itself.
        """

    # What is asked for one session.

    def _read(self, key: bytes) -> Deferred[Row | None]:
        name = self._nameOf(key)
        asked = self._ask(b"HMGET", name, b"d", b"c", b"x", b"v")
        return asked.addCallbacks(
            self._rowOf, self._noRow, callbackArgs=(key,), errbackArgs=(key,)
        )

    def _rowOf(self, fields: list[bytes | None], key: bytes) -> Row | None:
        """
        @return: What is kept; L{None} if there is nothing, or it has ended, or is
            damaged.
        """
        if fields == [None] * 4:
            return None
        text, *others = fields
        numbers = _numbersOf(others)
        if text is None or numbers is None:
            self._discard(key, *(each or b"" for each in others))
            return None
        created, expires, version = numbers
        if expires <= self._reactor.seconds():
            return None
        return text, created, expires, version

    def _noRow(self, failure: Failure, key: bytes) -> None:
        """
        What is kept is no hash.
        """
        failure.trap(WrongType)
        self._discard(key)

    def _discard(self, key: bytes, *fields: bytes) -> None:
        name = key.hex()[:12]
        self._log.warn("Removed a session that is damaged: {key}", key=name)
        removed = self._run(DISCARD, "get", self._nameOf(key), *fields)
        removed.addErrback(self._notRemoved)

    def _insert(self, key: bytes, text: str, now: float, ends: float) -> Deferred[bool]:
        words = _number(now), *self._ending(ends)
        name = self._nameOf(key)
        return self._whether(INSERT, "create", name, text.encode(), *words)

    def _update(
        self, key: bytes, text: str, ends: float, version: int
    ) -> Deferred[bool]:
        known = b"%d" % version, _number(self._reactor.seconds())
        words = *known, text.encode(), *self._ending(ends)
        return self._whether(UPDATE, "set", self._nameOf(key), *words)

    def _move(
        self,
        key: bytes,
        newKey: bytes,
        text: str,
        now: float,
        ends: float,
        version: int,
    ) -> Deferred[bool]:
        names = [self._nameOf(key), self._nameOf(newKey)]
        known = b"%d" % version, _number(now)
        words = *known, text.encode(), *self._ending(ends)
        moving = self._runOn(self._connection, MOVE, names, *words, method="renew")
        return Deferred.fromCoroutine(moving).addCallback(bool)

    def _prolong(self, key: bytes) -> Deferred[bool]:
        return Deferred.fromCoroutine(self._use(key))

    async def _use(self, key: bytes) -> bool:
        row = await self._read(key)
        if row is None:
            return False
        _, created, expires, _ = row
        now = self._reactor.seconds()
        if not self.limits.isWorthAWrite(created, expires, now):
            return True
        words = _number(now), *self._ending(self.limits.expiry(created, now))
        return await self._whether(PROLONG, "touch", self._nameOf(key), *words)

    def _delete(self, key: bytes, version: int | None = None) -> Deferred[bool]:
        name = self._nameOf(key)
        if version is None:
            now = _number(self._reactor.seconds())
            return self._whether(DELETE, "destroy", name, now)
        return self._whether(DELETE_VERSION, "destroy", name, b"%d" % version)

    # What is asked for all.

    async def _search(self) -> AsyncIterator[list[bytes]]:
        """
        @return: The keys of all sessions, in no order, some at a time. What is
            not there all the time may be missing, or come twice.
        """
        cursor = b"0"
        while True:
            cursor, names = await self._ask(
                b"SCAN", cursor, b"MATCH", self._pattern, b"COUNT", b"%d" % _STEP
            )
            found = [self._mine.fullmatch(name) for name in names]
            yield [bytes.fromhex(each[1].decode()) for each in found if each]
            if cursor == b"0":
                break

    def _count(self) -> Deferred[int]:
        return Deferred.fromCoroutine(self._countAll())

    async def _countAll(self) -> int:
        count = 0
        now = _number(self._reactor.seconds())
        async for keys in self._search():
            names = [self._nameOf(key) for key in keys]
            count += await self._runOn(self._connection, COUNT, names, now)
        return count

    def _list(self, after: bytes, limit: int) -> Deferred[Sequence[tuple[bytes, Row]]]:
        return Deferred.fromCoroutine(self._listSome(after, limit))

    async def _listSome(self, after: bytes, limit: int) -> Sequence[tuple[bytes, Row]]:
        while True:
            first: list[bytes] = []
            async for keys in self._search():
                later = {key for key in keys if key > after}
                first = sorted(later.union(first))[:limit]
            found: list[tuple[bytes, Row]] = []
            for begin in range(0, len(first), _PART):
                found += await self._readAll(first[begin : begin + _PART])
            if found or not first:
                return found
            # All of these have ended meanwhile, or are damaged, but there may be
            # more.
            after = first[-1]

    async def _readAll(self, keys: list[bytes]) -> list[tuple[bytes, Row]]:
        answers: list[tuple[bool, Any]] = await DeferredList(
            [self._read(key) for key in keys], consumeErrors=True
        )
        rows: list[tuple[bytes, Row]] = []
        for key, (isThere, row) in zip(keys, answers, strict=True):
            if not isThere:
                row.raiseException()
            if row is not None:
                rows.append((key, row))
        return rows

    def _removeEnded(self, most: int) -> Deferred[int]:
        return succeed(0)

    def _removeSome(self, most: int) -> Deferred[int]:
        # Each search begins anew, so that one removes all.
        return Deferred.fromCoroutine(self._removeThem())

    async def _removeThem(self) -> int:
        removed = 0
        async for keys in self._search():
            if keys:
                names = [self._nameOf(key) for key in keys]
                removed += await self._ask(b"DEL", *names, method="clear")
        return removed

    # How it is asked.

    def _nameOf(self, key: bytes) -> bytes:
        return self._prefix + key.hex().encode()

    def _ending(self, ends: float) -> tuple[bytes, bytes]:
        """
        @return: When a session ends, and after how many milliseconds Redis
            removes it: its clock may show another time than that of the program.
        """
        ends = min(ends, _LONGEST)
        left = ceil((ends - self._reactor.seconds()) * 1000)
        return _number(ends), b"%d" % max(left, 1)

    def _ask(self, *words: bytes, method: str | None = None) -> Deferred[Any]:
        if self._connection is None:
            return fail(SessionsUnavailable(_NOT_CONNECTED, LATER))
        return self._connection.ask(*words, method=method)

    def _whether(
        self, script: Script, method: str, name: bytes, *words: bytes
    ) -> Deferred[bool]:
        return self._run(script, method, name, *words).addCallback(bool)

    def _run(
        self, script: Script, method: str, name: bytes, *words: bytes
    ) -> Deferred[Any]:
        running = self._runOn(self._connection, script, [name], *words, method=method)
        return Deferred.fromCoroutine(running)

    async def _runOn(
        self,
        connection: Connection | None,
        script: Script,
        names: list[bytes],
        *words: bytes,
        method: str | None = None,
    ) -> Any:
        """
        Run a script. One that Redis does not know is sent as a whole.
        """
        if connection is None:
            raise SessionsUnavailable(_NOT_CONNECTED, LATER)
        words = b"%d" % len(names), *names, *words
        try:
            return await connection.ask(b"EVALSHA", script.name, *words, method=method)
        except NoScript:
            return await connection.ask(b"EVAL", script.text, *words, method=method)


def _number(value: float) -> bytes:
    return repr(float(value)).encode()


def _numbersOf(fields: Sequence[bytes | None]) -> tuple[float, float, int] | None:
    """
    @param fields: When a session was made, when it ends, and its version, as they
        are kept.
    @return: These as numbers; L{None} if they are damaged.
    """
    created, expires, version = (each or b"" for each in fields)
    try:
        times = float(created), float(expires)
    except ValueError:
        return None
    if not all(map(isfinite, times)) or _DIGITS.fullmatch(version) is None:
        return None
    return *times, int(version)
