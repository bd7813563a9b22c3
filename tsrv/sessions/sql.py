"""
Sessions in a table of a database: SQLite's or PostgreSQL's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import random as _random
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from ..asyncmodule import ISettlesCalls
from ..databases import (
    Database,
    IDatabase,
    Location,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)
from .basestore import (
    BaseStore,
    Row,
)
from .store import (
    ISessionStore,
    Limits,
    checkTable,
)

__all__ = [
    "PostgreSQLSessionStore",
    "SQLSessionStore",
    "SQLiteSessionStore",
    "schemaOf",
]

TABLE: Final = "sessions"


def schemaOf(table: str = TABLE) -> Schema:
    """
    @param table: The name of the table.
    @return: What a database has to have for the sessions.
    @raise ValueError: It is no name of a table.
    """
    checkTable(table)
    index = f'CREATE INDEX "{table}_expires" ON "{table}" (expires)'
    return Schema(
        f"sessions:{table}",
        sqlite=[
            [
                f'CREATE TABLE "{table}" (key BLOB PRIMARY KEY, data BLOB NOT NULL, '
                "version INTEGER NOT NULL, created REAL NOT NULL, "
                "expires REAL NOT NULL) WITHOUT ROWID",
                index,
            ]
        ],
        postgresql=[
            [
                f'CREATE TABLE "{table}" (key bytea PRIMARY KEY, data bytea NOT NULL, '
                "version bigint NOT NULL, created double precision NOT NULL, "
                "expires double precision NOT NULL)",
                index,
            ]
        ],
    )


@implementer(ISessionStore, ISettlesCalls)
class SQLSessionStore(BaseStore):
    """
    A store in a database whose schemas L{schemaOf} is one of.
    """

    def __init__(
        self,
        reactor: Any,
        database: IDatabase,
        table: str = TABLE,
        limits: Limits | None = None,
        *,
        owned: bool = True,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param database: The database.
        @param table: The name of the table.
        @param limits: How long sessions live, and how large they may be.
        @param owned: Whether the database is there for the sessions alone, so
            that it is initialised and closed with them. Otherwise it has to be
            initialised before them.
        @param random: The source of chance: answers numbers from 0 to 1.
        @raise ValueError: That is no name of a table.
        """
        super().__init__(reactor, limits, random)
        self._database = database
        self._owned = owned
        name = checkTable(table)
        self._sql = _Statements(name)

    def initialize(self) -> Deferred[None]:
        """
        @see: L{IAsyncModule.initialize}
        """
        if self.initialized:
            return succeed(None)
        if not self._owned:
            self._begin()
            return succeed(None)
        return self._database.initialize().addCallback(self._opened)

    def _opened(self, result: None) -> None:
        if not self.initialized:
            self._begin()
            self._database.whenLost().addCallback(lambda _: self._end())

    def whenLost(self) -> Deferred[None]:
        """
        @see: L{ISessionStore.whenLost}
        """
        # One that is somebody else's is waited for by its own queue.
        return self._database.whenLost() if self._owned else Deferred()

    def close(self) -> Deferred[None]:
        """
        @see: L{ISessionStore.close}
        """
        self._end()
        return self._database.close() if self._owned else succeed(None)

    def _read(self, key: bytes) -> Deferred[Row | None]:
        now = self._reactor.seconds()
        rows: Deferred[Any] = self._database.read(self._sql.read, key, now)
        return rows.addCallback(lambda found: found[0] if found else None)

    def _insert(self, key: bytes, text: str, now: float, ends: float) -> Deferred[bool]:
        insert = self._sql.insert
        made: Deferred[Any] = self._database.write(
            insert, key, text.encode(), now, ends
        )
        return made.addCallbacks(lambda _: True, _isThere)

    def _update(
        self, key: bytes, text: str, ends: float, version: int
    ) -> Deferred[bool]:
        now = self._reactor.seconds()
        update = self._sql.update
        return _whether(
            self._database.write(update, text.encode(), ends, key, version, now)
        )

    def _move(
        self,
        key: bytes,
        newKey: bytes,
        text: str,
        now: float,
        ends: float,
        version: int,
    ) -> Deferred[bool]:
        words = newKey, text.encode(), now, ends, key, version, now
        return _whether(self._database.write(self._sql.move, *words))

    def _prolong(self, key: bytes) -> Deferred[bool]:
        return Deferred.fromCoroutine(self._use(key))

    async def _use(self, key: bytes) -> bool:
        rows: list[Any] = await self._database.read(
            self._sql.times, key, self._reactor.seconds()
        )
        if not rows:
            return False
        created, expires = rows[0]
        now = self._reactor.seconds()
        if self.limits.isWorthAWrite(created, expires, now):
            ends = self.limits.expiry(created, now)
            # Of many who find that at once, the first one writes.
            await self._database.write(self._sql.touch, ends, key, expires, now)
        return True

    def _delete(self, key: bytes, version: int | None = None) -> Deferred[bool]:
        if version is None:
            now = self._reactor.seconds()
            ended: Deferred[Any] = self._database.write(self._sql.delete, key)
            # One that has ended is removed too, but was none any more.
            return ended.addCallback(lambda rows: any(row[0] > now for row in rows))
        return _whether(self._database.write(self._sql.deleteVersion, key, version))

    def _count(self) -> Deferred[int]:
        now = self._reactor.seconds()
        counted: Deferred[Any] = self._database.read(self._sql.count, now)
        return counted.addCallback(lambda rows: rows[0][0])

    def _list(self, after: bytes, limit: int) -> Deferred[Sequence[tuple[bytes, Row]]]:
        now = self._reactor.seconds()
        listed: Deferred[Any] = self._database.read(self._sql.list, after, now, limit)
        return listed.addCallback(lambda rows: [(row[0], row[1:]) for row in rows])

    def _removeEnded(self, most: int) -> Deferred[int]:
        now = self._reactor.seconds()
        remove = self._sql.removeEnded
        removed: Deferred[Any] = self._database.write(remove, now, most, now)
        return removed.addCallback(len)

    def _removeSome(self, most: int) -> Deferred[int]:
        removed: Deferred[Any] = self._database.write(self._sql.removeSome, most)
        return removed.addCallback(len)


class SQLiteSessionStore(SQLSessionStore):
    """
    A store in a file of SQLite.
    """

    def __init__(
        self,
        reactor: Any,
        db: str = "sessions.db",
        table: str = TABLE,
        limits: Limits | None = None,
        *,
        settings: Settings | None = None,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param reactor: Provides the time, and threads.
        @param db: The path of the file; it is made if it is not there.
        @param table: The name of the table.
        @param limits: How long sessions live, and how large they may be.
        @param settings: How the database is used.
        @param random: The source of chance: answers numbers from 0 to 1.
        @raise ValueError: That is no path, or no name of a table.
        """
        database = Database(reactor, f"sqlite:{db}", [schemaOf(table)], settings)
        super().__init__(reactor, database, table, limits, random=random)


class PostgreSQLSessionStore(SQLSessionStore):
    """
    A store in a database of PostgreSQL, which several servers can share.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        table: str = TABLE,
        limits: Limits | None = None,
        *,
        settings: Settings | None = None,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param reactor: Provides the time, and the watching of sockets.
        @param url: Where it is: C{postgresql://USER:PASSWORD@HOST:PORT/NAME}.
        @param table: The name of the table.
        @param limits: How long sessions live, and how large they may be.
        @param settings: How the database is used.
        @param random: The source of chance: answers numbers from 0 to 1.
        @raise ValueError: That is no such URL, or no name of a table.
        """
        if Location.parse(url).kind != "postgresql":
            raise ValueError("the URL of the sessions has to be postgresql://…")
        database = Database(reactor, url, [schemaOf(table)], settings)
        super().__init__(reactor, database, table, limits, random=random)


class _Statements:
    """
    What is asked of a table. Its name has been checked.
    """

    def __init__(self, name: str) -> None:
        # It may be a word that means something.
        table = f'"{name}"'
        self.read = Statement(
            f"SELECT data, created, expires, version FROM {table} "  # noqa: S608
            "WHERE key = ? AND expires > ?"
        )
        self.times = Statement(
            f"SELECT created, expires FROM {table} "  # noqa: S608
            "WHERE key = ? AND expires > ?"
        )
        self.insert = Statement(
            f"INSERT INTO {table} (key, data, version, created, expires) "  # noqa: S608
            "VALUES (?, ?, 1, ?, ?)"
        )
        self.update = Statement(
            f"UPDATE {table} SET data = ?, version = version + 1, expires = ? "  # noqa: S608
            "WHERE key = ? AND version = ? AND expires > ? RETURNING version"
        )
        self.move = Statement(
            f"UPDATE {table} SET key = ?, data = ?, version = version + 1, "  # noqa: S608
            "created = ?, expires = ? "
            "WHERE key = ? AND version = ? AND expires > ? RETURNING version"
        )
        self.touch = Statement(
            f"UPDATE {table} SET expires = ? "  # noqa: S608
            "WHERE key = ? AND expires = ? AND expires > ?"
        )
        self.delete = Statement(
            f"DELETE FROM {table} WHERE key = ? RETURNING expires"  # noqa: S608
        )
        self.deleteVersion = Statement(
            f"DELETE FROM {table} WHERE key = ? AND version = ? "  # noqa: S608
            "RETURNING version"
        )
        self.count = Statement(
            f"SELECT count(*) FROM {table} WHERE expires > ?"  # noqa: S608
        )
        self.list = Statement(
            f"SELECT key, data, created, expires, version FROM {table} "  # noqa: S608
            "WHERE key > ? AND expires > ? ORDER BY key LIMIT ?"
        )
        self.removeEnded = Statement(
            f"DELETE FROM {table} WHERE key IN (SELECT key FROM {table} "  # noqa: S608
            "WHERE expires <= ? ORDER BY expires LIMIT ?) "
            # It may have been used since it was found.
            "AND expires <= ? RETURNING version"
        )
        self.removeSome = Statement(
            f"DELETE FROM {table} WHERE key IN "  # noqa: S608
            f"(SELECT key FROM {table} LIMIT ?) RETURNING version"
        )


def _isThere(failure: Failure) -> bool:
    failure.trap(UniqueViolated)
    return False


def _whether(rows: Deferred[Any]) -> Deferred[bool]:
    return rows.addCallback(bool)
